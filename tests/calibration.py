"""Are the report's intervals and tests calibrated? Simulated studies whose truth is known.

    python -m tests.calibration

The population is a latent probit model. A run is right about an image where

    threshold(run) + difficulty(image) + own(arm, image) + rest(arm, seed, image) > 0

with three independent normal variables whose variances add up to 1: the difficulty is shared by all arms, `own` is what
an arm makes of an image whatever the seed, and `rest` is new in every run. The threshold is the normal quantile of the
run's accuracy over the population of images, which is the arm's accuracy plus a seed effect that is normal with the
stated standard deviation. The truth is the arm's accuracy over the population of images: every study draws its images
anew, and arms that are equal in truth err on different images. With the shares below and an accuracy of 0.88, two runs
of an arm disagree on about 9 % of the images and runs of two arms on about 12 %.

Legend: S seeds, N test images.
"""

import sys
from collections.abc import Mapping
from itertools import combinations

import numpy as np
from scipy.special import ndtri

from ablation.analysis.statistics import Estimate, contrast, holm

SIMULATION_SEED = 20_240_501
STUDIES = 400
SEEDS = 5
IMAGES = 10_000
SEED_SDS = (0.001, 0.003, 0.01)  # as fractions
ACCURACY = 0.88
TRUE_DIFFERENCE = 0.01
DIFFICULTY, OWN, REST = 0.70, 0.14, 0.16  # shares of the latent variance

ONE_FACTOR = ("a", "b", "c", "d", "e")
TWO_FACTORS = tuple(f"{u}{v}" for u in "xy" for v in "123")

Weights = dict[str, float]


def simulate(
    rng: np.random.Generator, accuracies: Mapping[str, float], seed_sd: float, seeds: int, images: int
) -> dict[str, np.ndarray]:
    """Return what a study's runs get right, by arm, bool, S x N.

    Args:
        rng: the source of everything random.
        accuracies: arm -> its accuracy over the population of images.
        seed_sd: standard deviation of a run's accuracy over that population, as a fraction.
        seeds: runs per arm.
        images: test images.
    """
    difficulty_N = np.sqrt(DIFFICULTY) * rng.standard_normal(images, np.float32)
    correct = {}
    for arm, accuracy in accuracies.items():
        seen_N = difficulty_N + np.float32(np.sqrt(OWN)) * rng.standard_normal(images, np.float32)
        threshold_S = ndtri(accuracy + seed_sd * rng.standard_normal(seeds)).astype(np.float32)
        rest_SN = np.float32(np.sqrt(REST)) * rng.standard_normal((seeds, images), np.float32)
        correct[arm] = threshold_S[:, None] + seen_N + rest_SN > 0
    return correct


def pairs(arms: tuple[str, ...]) -> list[Weights]:
    """Return the differences of all pairs of arms."""
    return [{a: 1.0, b: -1.0} for a, b in combinations(arms, 2)]


def pairs_of_levels(position: int) -> list[Weights]:
    """Return the differences of a factor's marginal means in `TWO_FACTORS`, whose names hold its levels there."""
    levels = sorted({arm[position] for arm in TWO_FACTORS})
    size = len(TWO_FACTORS) / len(levels)
    sign = [{first: 1 / size, second: -1 / size} for first, second in combinations(levels, 2)]
    return [{arm: s[arm[position]] for arm in TWO_FACTORS if arm[position] in s} for s in sign]


def judge(
    family: list[Weights], correct: Mapping[str, np.ndarray], truth: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return, of each contrast of a family, whether Holm's p is below 0.05 and whether the 95 % interval covers."""
    estimates = [contrast(weights, correct) for weights in family]
    true_values = [sum(w * truth[arm] for arm, w in weights.items()) for weights in family]
    declared = np.array(holm([e.p for e in estimates if e.p is not None]), float) < 0.05
    covered = [covers(e, value) for e, value in zip(estimates, true_values, strict=True)]
    return declared, np.array(covered)


def covers(estimate: Estimate, truth: float) -> bool:
    """Return whether a 95 % interval holds the true value; several seeds always give an interval."""
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= truth <= estimate.high


def simulate_studies(rng: np.random.Generator, seed_sd: float, studies: int, images: int) -> dict[str, np.ndarray]:
    """Return, by the name of a row of the table, what each study adds to it, a share from 0 to 1."""
    equal = dict.fromkeys(ONE_FACTOR, ACCURACY)
    one_better = equal | {"a": ACCURACY + TRUE_DIFFERENCE}
    two = {arm: one_better[arm] for arm in "ab"}
    equal_two_factors = dict.fromkeys(TWO_FACTORS, ACCURACY)
    rows: dict[str, list[float]] = {name: [] for name in BOUNDS}
    for _ in range(studies):
        correct = simulate(rng, equal, seed_sd, SEEDS, images)
        rows["runs of one arm disagree"].append(float(np.mean(correct["a"][0] != correct["a"][1])))
        rows["runs of two arms disagree"].append(float(np.mean(correct["a"][0] != correct["b"][0])))
        declared, covered = judge(pairs(ONE_FACTOR), correct, equal)
        rows["5 equal arms: any difference declared"].append(float(declared.any()))
        rows["5 equal arms: intervals of differences cover"].append(covered.mean())
        means = [contrast({arm: 1.0}, correct) for arm in ONE_FACTOR]
        rows["5 equal arms: intervals of means cover"].append(float(np.mean([covers(e, ACCURACY) for e in means])))

        correct = simulate(rng, equal_two_factors, seed_sd, SEEDS, images)
        for position, name in enumerate(("2 levels", "3 levels")):
            declared, covered = judge(pairs_of_levels(position), correct, equal_two_factors)
            rows[f"2 x 3 equal arms, factor of {name}: any difference declared"].append(float(declared.any()))
            rows[f"2 x 3 equal arms, factor of {name}: intervals of differences cover"].append(covered.mean())

        declared, _ = judge(pairs(("a", "b")), simulate(rng, two, seed_sd, SEEDS, images), two)
        rows["2 arms 1 point apart: declared"].append(declared.mean())
        declared, covered = judge(pairs(ONE_FACTOR), simulate(rng, one_better, seed_sd, SEEDS, images), one_better)
        rows["5 arms, one 1 point better: each of its 4 differences declared"].append(declared[:4].mean())
        rows["5 arms, one 1 point better: intervals of differences cover"].append(covered.mean())
    return {name: np.array(values, float) for name, values in rows.items()}


ERRORS, COVERAGE, FREE = (0.0, 29 / 400), (0.93, 0.97), (0.0, 1.0)  # 29 of 400: 5 % and twice its Monte-Carlo error

BOUNDS = {
    "5 equal arms: any difference declared": ERRORS,
    "5 equal arms: intervals of differences cover": COVERAGE,
    "5 equal arms: intervals of means cover": COVERAGE,
    "2 x 3 equal arms, factor of 2 levels: any difference declared": ERRORS,
    "2 x 3 equal arms, factor of 2 levels: intervals of differences cover": COVERAGE,
    "2 x 3 equal arms, factor of 3 levels: any difference declared": ERRORS,
    "2 x 3 equal arms, factor of 3 levels: intervals of differences cover": COVERAGE,
    "5 arms, one 1 point better: intervals of differences cover": COVERAGE,
    "2 arms 1 point apart: declared": FREE,
    "5 arms, one 1 point better: each of its 4 differences declared": FREE,
    "runs of one arm disagree": FREE,
    "runs of two arms disagree": FREE,
}


def main() -> int:
    """Print the table as markdown; return 1 if a value is out of bounds."""
    results = [
        simulate_studies(np.random.default_rng([SIMULATION_SEED, i]), seed_sd, STUDIES, IMAGES)
        for i, seed_sd in enumerate(SEED_SDS)
    ]
    print("| standard deviation of the seed effect | " + " | ".join(f"{100 * sd:g} points" for sd in SEED_SDS), end="")
    print(" | wanted |\n|" + " --- |" * (len(SEED_SDS) + 2))
    is_calibrated = True
    for name, (low, high) in BOUNDS.items():
        cells = []
        for result in results:
            share_of_study = result[name]
            share, error = share_of_study.mean(), share_of_study.std(ddof=1) / np.sqrt(STUDIES)
            count = f"{share_of_study.sum():.0f} of {STUDIES}, " if (low, high) == ERRORS else ""
            cells.append(f"{count}{100 * share:.1f} % ± {100 * error:.1f}")
            is_calibrated &= bool(low <= share <= high)
        wanted = {ERRORS: f"at most 29 of {STUDIES}", COVERAGE: "93 to 97 %", FREE: ""}[low, high]
        print(f"| {name} | " + " | ".join(cells) + f" | {wanted} |")
    print(
        f"\nEach cell: {STUDIES} simulated studies of {SEEDS} seeds per arm and {IMAGES} test images, accuracy "
        f"{ACCURACY}, ± its Monte-Carlo standard error; simulation seed {SIMULATION_SEED}. Declared: p < 0.05 after "
        "Holm's correction over all pairs of a factor's levels. Intervals: 95 %."
    )
    return 0 if is_calibrated else 1


if __name__ == "__main__":
    sys.exit(main())
