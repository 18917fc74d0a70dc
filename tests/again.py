"""A small study on real images, done again ten times: how often do its intervals hold for the other times?

    python -m tests.again FOLDER --images /tmp/data/cifar10 --weights weights/vgg16-imagenet.safetensors

The design: VGG-16 cut after each block, feature extraction, two trials of four epochs per
arm, three confirmation seeds, CIFAR-10's 10,000 test images; each of the ten studies has another seed and with it
another subset of training images, split, tuning points and seeds. Studies that have ended are kept in FOLDER, and the
same command resumes the others. One store has all ten, so that features of the test images are computed once per cut.

Legend: A arms, R studies, N test images.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import click
import numpy as np

from ablation.analysis.estimator import OVER_SEEDS, Estimator
from ablation.analysis.repeats import repeat_moments
from ablation.analysis.results import StudyResult, read_results
from ablation.analysis.statistics import Estimate
from ablation.storage.store import find_store

STUDY = """\
question       = "Where should VGG-16 be cut for CIFAR-10?"
trials_per_arm = {trials}
epochs         = {epochs}

[backbone]
name    = "vgg16"
weights = "{weights}"

[data]
source = "imagefolder"
root   = "{images}"
limit  = {limit}

[fixed]
strategy = "feature_extraction"

[factors]
truncate_at = [{cuts}]

[search]
lr         = {{ low = 1e-3, high = 1e-1, log = true }}
head_width = {{ choices = [128, 256, 512] }}

[confirm]
seeds = {seeds}
"""


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--images", required=True, help="Image folder with train and test.")
@click.option("--weights", required=True, help="Weights of all of VGG-16's convolutions.")
@click.option("--limit", default=5_000, show_default=True, help="Training images of a study.")
@click.option("--studies", default=10, show_default=True, type=click.IntRange(6), help="How often the study is done.")
@click.option("--blocks", default=5, show_default=True, help="Cuts that are compared, from the first block.")
def main(folder: Path, images: str, weights: str, limit: int, studies: int, blocks: int) -> None:
    """Run the studies that have not ended in FOLDER, and print how often intervals hold."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "again.toml"
    cuts = ", ".join(f'"block{number + 1}"' for number in range(blocks))
    places = {"weights": Path(weights).resolve(), "images": Path(images).resolve()}
    file.write_text(STUDY.format(trials=2, epochs=4, seeds=3, limit=limit, cuts=cuts, **places), encoding="utf-8")
    store = folder / "store"
    environment = {**os.environ, "ABLATION_CACHE": str(folder / "cache")}
    for seed in range(1, studies + 1):
        command = [sys.executable, "-m", "ablation.study", str(file), "--store", str(store)]
        command += ["--name", f"again-{seed}", "--set", f"seed={seed}"]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        click.echo(f"study {seed} of {studies} has ended", err=True)
    print_table([correct(read_results(find_store(str(store)), f"again-{seed}")) for seed in range(1, studies + 1)])


def correct(result: StudyResult) -> dict[str, np.ndarray]:
    """Return arm -> whether each confirmation run is right about each image, S x N."""
    return {
        arm.arm.name: np.array([p.predicted_N == p.labels_N for run in arm.confirmed if (p := run.predictions)])
        for arm in result.arms
    }


def print_table(by_study: list[dict[str, np.ndarray]]) -> None:
    """Print how often intervals of one study, and of half of the studies pooled, hold for the others.

    Args:
        by_study: see `correct`.
    """
    print("| intervals of | hold for | share | half width (points) | disjoint pairs |")
    print("| --- | --- | --- | --- | --- |")
    pairs = list(combinations(by_study[0], 2))
    values_RC = np.array([[float(y[a].mean() - y[b].mean()) for a, b in pairs] for y in by_study])
    print(f"| one study | the mean of the other {len(by_study) - 1} | {of_one(by_study, pairs, values_RC)} |")
    right = {arm: np.array([y[arm].mean(axis=0) for y in by_study]) for arm in by_study[0]}
    for name, cell in of_halves(right, pairs, values_RC).items():
        print(f"| {len(by_study) // 2} studies pooled | {name} | {cell} | - |")


def of_one(by_study: list[dict[str, np.ndarray]], pairs: list[tuple[str, str]], values_RC: np.ndarray) -> str:
    """Return the cells of the first row: differences' own 95 % intervals over seeds and images."""
    intervals = [[OVER_SEEDS.contrast({a: 1.0, b: -1.0}, y) for a, b in pairs] for y in by_study]
    R = len(by_study)
    others_RC = (values_RC.sum(axis=0) - values_RC) / (R - 1)
    holds_RC = np.array([[_holds(intervals[r][c], others_RC[r, c]) for c in range(len(pairs))] for r in range(R)])
    disjoint = sum(
        _are_disjoint(intervals[first][c], intervals[second][c])
        for first, second in combinations(range(R), 2)
        for c in range(len(pairs))
    )
    total = R * (R - 1) // 2 * len(pairs)
    width = _half_width([estimate for row in intervals for estimate in row])
    return f"{_share(holds_RC.mean(axis=1))} | {width} | {disjoint} of {total}"


def of_halves(right: Mapping[str, np.ndarray], pairs: list[tuple[str, str]], values_RC: np.ndarray) -> dict[str, str]:
    """Return target -> cells, over all splits of the studies into two halves.

    The mean of the other half has an error of its own, as large as that of the half which is pooled; an interval that
    allows for it has the repeats' part of its variance twice.
    """
    R = len(values_RC)
    holds, allowed, estimates = [], [], []
    for half in combinations(range(R), R // 2):
        rest = [r for r in range(R) if r not in half]
        for c, (a, b) in enumerate(pairs):
            mine = {arm: right[arm][list(half)] for arm in (a, b)}
            target = float(values_RC[rest, c].mean())
            weights = {a: 1.0, b: -1.0}
            estimate, moments = Estimator("tuning").contrast(weights, mine), repeat_moments(mine)
            parts = moments.variance_parts(moments.weights([weights]))
            of_repeats, of_images = (float(part[0]) for part in parts)
            holds.append(_holds(estimate, target))
            assert estimate.high is not None
            wider = np.sqrt(1 + of_repeats / (of_repeats + of_images)) * (estimate.high - estimate.value)
            allowed.append(abs(target - estimate.value) <= wider)
            estimates.append(estimate)
    splits = len(holds) // len(pairs)
    widths = _half_width(estimates)
    of_splits = [np.reshape(each, (splits, len(pairs))).mean() for each in (holds, allowed)]
    return {
        f"the mean of the other {R - R // 2}, {splits} splits": f"{100 * of_splits[0]:.0f} % | {widths}",
        "the same, allowing for that mean's own error": f"{100 * of_splits[1]:.0f} % | -",
    }


def _share(shares_R: np.ndarray) -> str:
    """Return a share with its standard error over studies."""
    return f"{100 * shares_R.mean():.0f} ± {100 * shares_R.std(ddof=1) / np.sqrt(len(shares_R)):.0f} %"


def _holds(estimate: Estimate, target: float) -> bool:
    assert estimate.low is not None
    assert estimate.high is not None
    return bool(estimate.low <= target <= estimate.high)


def _are_disjoint(first: Estimate, second: Estimate) -> bool:
    ends = (first.low, first.high, second.low, second.high)
    assert None not in ends
    low, high, other_low, other_high = map(float, ends)  # type: ignore[arg-type]
    return high < other_low or other_high < low


def _half_width(estimates: list[Estimate]) -> str:
    return f"{100 * float(np.mean([((e.high or 0.0) - (e.low or 0.0)) / 2 for e in estimates])):.1f}"


if __name__ == "__main__":
    main()
