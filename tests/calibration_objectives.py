"""Are the report's intervals calibrated for other objectives than accuracy? Simulated studies on unbalanced classes.

    python -m tests.calibration_objectives [STUDIES]

Ten classes, whose shares fall from 30 % to 2 %, of which every study draws its images anew. A run's logit of class k
for an image is a sum of normal variables: one that all arms share, one of the arm, one of the run, with the shares of
variance of `tests.calibration`; the true class has a margin more, and the margin has a seed effect. The truth is the
metric over the population, from 150 runs on 10,000 images each; equal arms differ by nothing, however they err.

Legend: S seeds, N test images, K classes.
"""

import sys
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from ablation.analysis.estimator import Estimator
from ablation.analysis.scores import image_scores
from ablation.spec.objective import OBJECTIVES, Objective
from tests.calibration import DIFFICULTY, DRAWS, OWN, REST, SIMULATION_SEED, covers, pairs

STUDIES = 400
SHARES_K = np.geomspace(0.30, 0.02, 10) / np.geomspace(0.30, 0.02, 10).sum()
SPREAD = 1.5  # standard deviation of a logit
POPULATION, RUNS = 10_000, 150  # images and runs of which the truth is the mean
NAMES = ("balanced_accuracy", "macro_f1", "loss")


@dataclass(frozen=True)
class Cell:
    """A kind of study that is simulated many times.

    Attributes:
        name: what is special about it.
        seeds: runs per arm.
        better: by how much the first arm's margin is larger.
        margin: of all arms.
        arms: their number.
        images: test images.
    """

    name: str
    seeds: int = 5
    better: float = 0.0
    margin: float = 4.0
    arms: int = 4
    images: int = 1_000


CELLS = [
    Cell("3 seeds", seeds=3),
    Cell("5 seeds"),
    Cell("3 seeds, one arm better", seeds=3, better=0.8),
    Cell("5 seeds, one arm better", better=0.8),
    Cell("5 seeds, few mistakes", margin=7.0),
    Cell("5 seeds, 150 images", images=150),
]


def simulate_scores(
    rng: np.random.Generator, margins: list[float], seeds: int, images: int
) -> dict[str, dict[str, np.ndarray]]:
    """Return objective -> arm -> `image_scores` of each run, S x N."""
    K = len(SHARES_K)
    labels_N = rng.choice(K, images, p=SHARES_K)
    is_true_NK = labels_N[:, None] == np.arange(K)
    shared_NK = np.sqrt(DIFFICULTY) * rng.standard_normal((images, K))
    scores: dict[str, dict[str, np.ndarray]] = {name: {} for name in NAMES}
    for arm, margin in enumerate(margins):
        seen_NK = shared_NK + np.sqrt(OWN) * rng.standard_normal((images, K))
        runs: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
        for _ in range(seeds):
            logits_NK = SPREAD * (seen_NK + np.sqrt(REST) * rng.standard_normal((images, K)))
            logits_NK = logits_NK + (margin + 0.1 * rng.standard_normal()) * is_true_NK
            losses_N = logsumexp(logits_NK, axis=1) - logits_NK[is_true_NK]
            for name, of_runs in runs.items():
                of_runs.append(image_scores(OBJECTIVES[name], labels_N, logits_NK.argmax(axis=1), losses_N))
        for name, of_runs in runs.items():
            scores[name][f"arm {arm}"] = np.array(of_runs)
    return scores


def truth_of(margin: float, rng: np.random.Generator) -> dict[str, float]:
    """Return objective -> the metric of an arm over the population of images and seeds."""
    parts = [simulate_scores(rng, [margin], 1, POPULATION) for _ in range(RUNS)]
    return {name: float(np.mean([part[name]["arm 0"].mean() for part in parts])) for name in NAMES}


def judge(
    scores: dict[str, np.ndarray], truth: dict[str, float], objective: Objective
) -> tuple[float, float, float, float]:
    """Return whether a study declares a false difference, whether all its intervals hold, the share of the arms'
    intervals that do, and the share of true differences that are shown (NaN without any).
    """
    contrasts = pairs(tuple(scores))
    true_values = [sum(weight * truth[arm] for arm, weight in weights.items()) for weights in contrasts]
    estimator = Estimator(objective=objective)
    estimates = estimator.simultaneous(contrasts, scores, DRAWS)
    shown = [(estimate.p or 0.0) < 0.05 for estimate in estimates]
    wrong = [s and (t == 0 or (e.value > 0) != (t > 0)) for s, e, t in zip(shown, estimates, true_values, strict=True)]
    own = [covers(estimator.contrast({arm: 1.0}, {arm: scores[arm]}), truth[arm]) for arm in scores]
    real = [s for s, t in zip(shown, true_values, strict=True) if t != 0]
    hold = all(covers(e, t) for e, t in zip(estimates, true_values, strict=True))
    return float(any(wrong)), float(hold), float(np.mean(own)), float(np.mean(real)) if real else np.nan


def main(studies: int = STUDIES) -> int:
    """Print the table as markdown; return 1 if intervals of differences hold in fewer than 93 % of studies."""
    print(
        "| objective, simulated studies | any false declaration | all intervals hold | arms' intervals hold | shown |"
    )
    print("| --- | --- | --- | --- | --- |")
    is_calibrated = True
    for number, cell in enumerate(CELLS):
        rng = np.random.default_rng([SIMULATION_SEED, 4_000 + number])
        margins = [cell.margin + cell.better, *[cell.margin] * (cell.arms - 1)]
        equal = truth_of(cell.margin, rng)
        first = truth_of(margins[0], rng) if cell.better else equal
        truths = {name: {f"arm {a}": equal[name] for a in range(cell.arms)} | {"arm 0": first[name]} for name in NAMES}
        outcomes: dict[str, list[tuple[float, ...]]] = {name: [] for name in NAMES}
        for _ in range(studies):
            scores = simulate_scores(rng, margins, cell.seeds, cell.images)
            for name in NAMES:
                outcomes[name].append(judge(scores[name], truths[name], OBJECTIVES[name]))
        for name in NAMES:
            values_BX = np.array(outcomes[name])
            shares_X, errors_X = values_BX.mean(axis=0), values_BX.std(axis=0, ddof=1) / np.sqrt(studies)
            is_calibrated &= bool(shares_X[1] >= 0.93 - 2 * errors_X[1])
            cells = [
                "-" if np.isnan(share) else f"{100 * share:.1f} % ± {100 * error:.1f}"
                for share, error in zip(shares_X, errors_X, strict=True)
            ]
            print(f"| {OBJECTIVES[name].label} {equal[name]:.3f}, {cell.name} | {' | '.join(cells)} |", flush=True)
    return 0 if is_calibrated else 1


if __name__ == "__main__":
    sys.exit(main(*(int(word) for word in sys.argv[1:2])))
