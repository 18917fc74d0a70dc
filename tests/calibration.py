"""Are the report's intervals and tests calibrated? Simulated studies whose truth is known.

    python -m tests.calibration [STUDIES]            # one study: other seeds, other images
    python -m tests.calibration again [STUDIES]      # pooled repeats: the whole study again
    python -m tests.calibration best [STUDIES]       # comparisons with the best arm
    python -m tests.calibration looks [STUDIES]      # several looks at a study while it grows

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
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from scipy.special import ndtri

from ablation.analysis.best_arms import FromBest
from ablation.analysis.boundaries import planned_levels, unplanned_level
from ablation.analysis.contrasts import Comparison, CrossComparison, comparisons_at, interactions, level_comparisons
from ablation.analysis.estimator import OVER_SEEDS, Estimator
from ablation.analysis.simultaneous import FEWEST_BEYOND
from ablation.analysis.statistics import ALPHA, Estimate

SIMULATION_SEED = 20_240_501
STUDIES = 400
ACCURACY = 0.88
DIFFICULTY, OWN, REST = 0.70, 0.14, 0.16  # shares of the latent variance

DRAWS = 1_999  # of each study's test; a report takes 99,999
ERRORS, COVERAGE = (0.0, 0.05), (0.94, 0.97)  # wanted, but for two Monte-Carlo standard errors
FREE = (0.0, 1.0)
OVER_REPEATS = Estimator("tuning")

Weights = dict[str, float]


def simulate(
    rng: np.random.Generator,
    accuracies: Mapping[str, float],
    seed_sd: float | Mapping[str, float],
    seeds: int | Mapping[str, int],
    images: int,
    group: int = 1,
) -> dict[str, np.ndarray]:
    """Return what a study's runs get right, by arm, bool, S x N.

    Args:
        rng: the source of everything random.
        accuracies: arm -> its accuracy over the population of images.
        seed_sd: standard deviation of a run's accuracy over that population, as a fraction; by arm where it differs.
        seeds: runs per arm; by arm where they differ.
        images: test images.
        group: how many of them, one after the other, belong together: they have difficulty and `own` in common.
    """

    def drawn_N(deviation: np.floating) -> np.ndarray:
        return np.repeat(deviation * rng.standard_normal(images // group, np.float32), group)

    difficulty_N = drawn_N(np.sqrt(DIFFICULTY))
    correct = {}
    for arm, accuracy in accuracies.items():
        seen_N = difficulty_N + drawn_N(np.float32(np.sqrt(OWN)))
        S = seeds if isinstance(seeds, int) else seeds[arm]
        deviation = seed_sd if isinstance(seed_sd, float) else seed_sd[arm]
        drawn_S = np.clip(accuracy + deviation * rng.standard_normal(S), 1e-6, 1 - 1e-6)
        threshold_S = ndtri(drawn_S).astype(np.float32)
        rest_SN = np.float32(np.sqrt(REST)) * rng.standard_normal((S, images), np.float32)
        correct[arm] = threshold_S[:, None] + seen_N + rest_SN > 0
    return correct


def pairs(arms: tuple[str, ...]) -> list[Weights]:
    """Return the differences of all pairs of arms."""
    return [{a: 1.0, b: -1.0} for a, b in combinations(arms, 2)]


@dataclass(frozen=True)
class Cell:
    """A kind of study that is simulated many times.

    Attributes:
        name: what is special about it.
        levels: the number of levels of each factor.
        seeds: runs per arm; a list gives each arm its own number.
        images: test images.
        seed_sd: standard deviation of the seed effect, as a fraction; a list gives each arm its own.
        accuracy: of all arms over the population of images.
        better: by how much the first arm is better, as a fraction.
        diverged: whether one run of the first arm is at chance level.
        margin: of equivalence, as a fraction.
        group: how many images belong together, which the analysis knows.
    """

    name: str
    levels: tuple[int, ...] = (5,)
    seeds: int | tuple[int, ...] = 5
    images: int = 2_000
    seed_sd: float | tuple[float, ...] = 0.003
    accuracy: float = ACCURACY
    better: float = 0.0
    diverged: bool = False
    margin: float | None = None
    group: int = 1


@dataclass(frozen=True)
class AgainCell:
    """A kind of study that is repeated as a whole; the truth is its mean over all repeats and images.

    Attributes:
        levels: arms, all equal.
        repeats: of the study.
        luck: standard deviation of an arm's accuracy over repeats, in points.
        images: test images.
        seeds: runs per arm in each repeat.
    """

    levels: int
    repeats: int
    luck: float
    images: int = 2_000
    seeds: int = 3

    @property
    def name(self) -> str:
        """What is special about it."""
        return f"{self.levels} arms, {self.repeats} repeats, luck {self.luck:g} points, {self.images:,} images"


LUCK = (0.0, 0.3, 0.5, 1.0, 2.0)
AGAIN_CELLS = [
    *(AgainCell(5, repeats, luck) for repeats in (3, 5) for luck in LUCK),
    *(AgainCell(5, repeats, luck, 10_000, 2) for repeats in (3, 5) for luck in LUCK),
    *(AgainCell(2, 3, luck) for luck in LUCK),
]
AGAIN_COVERAGE = (0.93, 0.98)

CELLS = [
    Cell("2 seeds", seeds=2),
    Cell("3 seeds", seeds=3),
    Cell("5 seeds"),
    Cell("10 seeds", seeds=10),
    Cell("seeds' deviation 0.1 points, 10,000 images", seed_sd=0.001, images=10_000),
    Cell("10,000 images", images=10_000),
    Cell("seeds' deviation 1 point, 10,000 images", seed_sd=0.01, images=10_000),
    Cell("200 images", images=200),
    Cell("1,000 images, 3 seeds", images=1_000, seeds=3),
    Cell("2 levels, 3 seeds", levels=(2,), seeds=3),
    Cell("10 levels, 3 seeds", levels=(10,), seeds=3),
    Cell("10 levels, 5 seeds", levels=(10,)),
    Cell("2 x 5 arms, 3 seeds", levels=(2, 5), seeds=3),
    Cell("2 x 5 arms", levels=(2, 5)),
    Cell("2 x 2 x 3 arms, 3 seeds", levels=(2, 2, 3), seeds=3),
    Cell("2 x 2 x 3 arms", levels=(2, 2, 3)),
    Cell("accuracy 0.1", accuracy=0.1),
    Cell("accuracy 0.99", accuracy=0.99, seed_sd=0.001),
    Cell("accuracy 0.999", accuracy=0.999, seed_sd=0.0003),
    Cell("accuracy 0.999, 200 images", accuracy=0.999, seed_sd=0.0003, images=200),
    Cell("one run diverged", diverged=True),
    Cell("unequal variances: one arm 3 points", seed_sd=(0.03, 0.003, 0.003, 0.003, 0.003)),
    Cell("unequal seeds: 10, 5, 5, 3, 3", seeds=(10, 5, 5, 3, 3)),
    Cell("both unequal, noisiest arm with 3 seeds", seeds=(3, 5, 5, 10, 10), seed_sd=(0.03, 0.003, 0.003, 0.01, 0.01)),
    Cell("low power: one arm 0.5 points better", better=0.005),
    Cell("one arm 2 points better", better=0.02, images=10_000),
    Cell("2 x 2 arms, one 4 points better: an interaction", levels=(2, 2), better=0.04),
    Cell("equivalence: 2 arms at the margin of 1 point", levels=(2,), better=0.01, images=10_000, margin=0.01),
    Cell("equivalence: 2 equal arms, margin 1 point", levels=(2,), images=10_000, margin=0.01),
    Cell("images in groups of 5, 3 seeds", seeds=3, group=5),
    Cell("images in groups of 10", group=10),
]


@dataclass(frozen=True)
class Outcome:
    """What one simulated study says.

    Attributes:
        is_wrong: whether its answer declares any difference or interaction that is none, or in the wrong direction.
        is_shown: the share of the true differences of the first arm that it declares; NaN without any.
        all_cover: whether all simultaneous intervals of differences and interactions hold; NaN where none is tested.
        means_cover: the share of the arms' intervals that hold.
        is_equivalent: the share of differences that it declares equivalent; NaN without a margin.
    """

    is_wrong: float
    is_shown: float
    all_cover: float
    means_cover: float
    is_equivalent: float


def one_study(cell: Cell, rng: np.random.Generator) -> Outcome:
    """Simulate a study of a kind, and judge its answer as `comparison.compare` makes it."""
    place_of = {
        ",".join(map(str, place)): {f"f{n}": f"f{n}={level}" for n, level in enumerate(place)}
        for place in product(*(range(levels) for levels in cell.levels))
    }
    arms = list(place_of)
    truth = dict.fromkeys(arms, cell.accuracy) | {arms[0]: cell.accuracy + cell.better}
    seed_sd = dict(zip(arms, cell.seed_sd, strict=True)) if isinstance(cell.seed_sd, tuple) else cell.seed_sd
    seeds = dict(zip(arms, cell.seeds, strict=True)) if isinstance(cell.seeds, tuple) else cell.seeds
    correct = simulate(rng, truth, seed_sd, seeds, cell.images, cell.group)
    groups_N = None if cell.group == 1 else np.arange(cell.images) // cell.group
    if cell.diverged:
        correct[arms[0]][0] = rng.random(cell.images) < 0.1
    estimator = Estimator(groups_N=groups_N)
    means = [
        covers(estimator.contrast({arm: 1.0}, correct), truth[arm])
        for arm in arms
        if not (cell.diverged and arm == arms[0])
    ]
    usable = estimator.usable(correct)
    tested = {arm: place_of[arm] for arm in usable}
    pairs_of = {
        f"f{n}": list(combinations([f"f{n}={level}" for level in range(levels)], 2))
        for n, levels in enumerate(cell.levels)
    }
    main = level_comparisons(tested, pairs_of)
    crossed, _ = interactions(tested, pairs_of)
    contrasts: list[Comparison | CrossComparison] = [*main, *crossed]
    estimates = estimator.simultaneous([c.weights for c in contrasts], usable, DRAWS)
    true_values = [_true(c.weights, truth) for c in contrasts]
    shown_factors = [
        factors
        for c, e in zip(crossed, estimates[len(main) :], strict=True)
        if e.p is not None and e.p < 0.05
        for factors in (c.factors, c.factors[::-1])
    ]
    at_levels = comparisons_at(tested, pairs_of, dict.fromkeys(shown_factors))
    of_levels = estimator.simultaneous([c.weights for c in at_levels], usable, DRAWS)
    replaced = {factor for factor, _ in shown_factors}  # whose averages the answer leaves out
    said = [
        (estimate, true)
        for c, estimate, true in zip(contrasts, estimates, true_values, strict=True)
        if not (isinstance(c, Comparison) and c.factor in replaced)
    ] + [(e, _true(c.weights, truth)) for c, e in zip(at_levels, of_levels, strict=True)]
    of_first = [e for e, true in zip(estimates, true_values, strict=True) if abs(true) > 1e-12]
    return Outcome(
        is_wrong=float(any(_is_wrong(e, true) for e, true in said)),
        is_shown=float(np.mean([e.p is not None and e.p < 0.05 for e in of_first])) if of_first else np.nan,
        all_cover=float(all(covers(e, t) for e, t in zip(estimates, true_values, strict=True)))
        if estimates
        else np.nan,
        means_cover=float(np.mean(means)),
        is_equivalent=_equivalent(estimates, cell.margin),
    )


def _equivalent(estimates: list[Estimate], margin: float | None) -> float:
    """Return the share of intervals within the margin; NaN without one."""
    if margin is None:
        return np.nan
    return float(
        np.mean([e.low is not None and e.high is not None and max(-e.low, e.high) < margin for e in estimates])
    )


def _true(weights: Weights, truth: Mapping[str, float]) -> float:
    return sum(weight * truth[arm] for arm, weight in weights.items())


def _is_wrong(estimate: Estimate, true: float) -> bool:
    is_shown = estimate.p is not None and estimate.p < 0.05
    return is_shown and (abs(true) < 1e-12 or (estimate.value > 0) != (true > 0))


def covers(estimate: Estimate, truth: float) -> bool:
    """Return whether a 95 % interval holds the true value; several seeds always give an interval."""
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low <= truth <= estimate.high


def simulate_repeats(rng: np.random.Generator, cell: AgainCell) -> dict[str, np.ndarray]:
    """Return the share of each repeat's runs that are right about each image, by arm, R x N.

    A repeat shifts all arms together (its split) and each on its own (its tuning), both by the cell's luck, and its
    configuration is right about other images: a part of `REST`.
    """
    of_configuration = 0.06
    difficulty_N = np.sqrt(DIFFICULTY) * rng.standard_normal(cell.images, np.float32)
    split_R = cell.luck / 100 * rng.standard_normal(cell.repeats)
    right = {}
    for arm in range(cell.levels):
        seen_N = difficulty_N + np.float32(np.sqrt(OWN)) * rng.standard_normal(cell.images, np.float32)
        y_RN = np.empty((cell.repeats, cell.images))
        for repeat, split in enumerate(split_R):
            accuracy = ACCURACY + split + cell.luck / 100 * rng.standard_normal()
            chosen_N = np.float32(np.sqrt(of_configuration)) * rng.standard_normal(cell.images, np.float32)
            drawn_S = np.clip(accuracy + 0.003 * rng.standard_normal(cell.seeds), 1e-6, 1 - 1e-6)
            rest_SN = np.float32(np.sqrt(REST - of_configuration)) * rng.standard_normal(
                (cell.seeds, cell.images), np.float32
            )
            threshold_S1 = ndtri(drawn_S).astype(np.float32)[:, None]
            y_RN[repeat] = (threshold_S1 + seen_N + chosen_N + rest_SN > 0).mean(axis=0)
        right[f"arm {arm}"] = y_RN
    return right


def one_pooled_study(cell: AgainCell, rng: np.random.Generator) -> Outcome:
    """Simulate the repeats of a study, and judge their answer as `pooling.analyse_pooled` makes it."""
    right = simulate_repeats(rng, cell)
    contrasts = pairs(tuple(right))
    estimates = OVER_REPEATS.simultaneous(contrasts, right, DRAWS)
    alone = [OVER_REPEATS.contrast(weights, right) for weights in contrasts]
    return Outcome(
        is_wrong=float(any(_is_wrong(estimate, 0.0) for estimate in estimates)),
        is_shown=np.nan,
        all_cover=float(all(covers(estimate, 0.0) for estimate in estimates)),
        means_cover=float(np.mean([covers(estimate, 0.0) for estimate in alone])),
        is_equivalent=np.nan,
    )


def again(studies: int = STUDIES) -> int:
    """Print the table of pooled repeats; return 1 if a value is out of bounds by more than two standard errors."""
    print(
        "| pooled repeats of simulated studies | any false declaration | all intervals hold | single differences hold |"
    )
    print("| --- | --- | --- | --- |")
    is_calibrated = True
    for number, cell in enumerate(AGAIN_CELLS):
        rng = np.random.default_rng([SIMULATION_SEED, 1_000 + number])
        outcomes = [one_pooled_study(cell, rng) for _ in range(studies)]
        cells = []
        for name, low, high in (
            ("is_wrong", *ERRORS),
            ("all_cover", AGAIN_COVERAGE[0], 1.0),
            ("means_cover", *AGAIN_COVERAGE),
        ):
            values = np.array([getattr(outcome, name) for outcome in outcomes])
            share, error = values.mean(), values.std(ddof=1) / np.sqrt(studies)
            is_calibrated &= bool(low - 2 * error <= share <= high + 2 * error)
            cells.append(f"{100 * share:.1f} % ± {100 * error:.1f}")
        print(f"| {cell.name} | " + " | ".join(cells) + " |", flush=True)
    return 0 if is_calibrated else 1


BEST_CELLS: list[Cell | AgainCell] = [
    Cell("5 equal arms, 3 seeds", seeds=3),
    Cell("5 equal arms"),
    Cell("10 equal arms", levels=(10,)),
    Cell("one arm 0.5 points better", better=0.005),
    Cell("one arm 2 points better", better=0.02),
    Cell("2 arms, one 1 point better", levels=(2,), better=0.01),
    Cell("unequal variances: the best 3 points", better=0.01, seed_sd=(0.03, 0.003, 0.003, 0.003, 0.003)),
    Cell("unequal seeds: the best 3, others 5 and 10", better=0.01, seeds=(3, 5, 5, 10, 10)),
    Cell("200 images", images=200),
    Cell("accuracy 0.999", accuracy=0.999, seed_sd=0.0003),
    AgainCell(5, 3, 0.5),
    AgainCell(5, 5, 1.0),
]
BEST_COVERAGE = 0.94  # at least; intervals from the best hold more often where arms are equal


def from_best_of(cell: Cell | AgainCell, rng: np.random.Generator) -> tuple[dict[str, FromBest], dict[str, float]]:
    """Simulate a study of a kind; return each arm's interval from the best other one, and the true accuracies."""
    if isinstance(cell, AgainCell):
        right = simulate_repeats(rng, cell)
        return OVER_REPEATS.from_best(right, DRAWS), dict.fromkeys(right, ACCURACY)
    arms = [f"arm {number}" for number in range(cell.levels[0])]
    truth = dict.fromkeys(arms, cell.accuracy) | {arms[0]: cell.accuracy + cell.better}
    seed_sd = dict(zip(arms, cell.seed_sd, strict=True)) if isinstance(cell.seed_sd, tuple) else cell.seed_sd
    seeds = dict(zip(arms, cell.seeds, strict=True)) if isinstance(cell.seeds, tuple) else cell.seeds
    return OVER_SEEDS.from_best(simulate(rng, truth, seed_sd, seeds, cell.images), DRAWS), truth


def best(studies: int = STUDIES) -> int:
    """Print the table of comparisons with the best; return 1 if too few intervals hold."""
    print("| simulated studies | all intervals hold | the best arm is said to be possibly the best | arms so called |")
    print("| --- | --- | --- | --- |")
    is_calibrated = True
    for number, cell in enumerate(BEST_CELLS):
        rng = np.random.default_rng([SIMULATION_SEED, 2_000 + number])
        hold, found, named = [], [], []
        for _ in range(studies):
            ends, truth = from_best_of(cell, rng)
            gaps = {arm: truth[arm] - max(truth[other] for other in truth if other != arm) for arm in truth}
            hold.append(all(ends[arm].low <= gap <= ends[arm].high for arm, gap in gaps.items()))
            found.append(ends[max(truth, key=lambda arm: truth[arm])].may_be_best)
            named.append(sum(each.may_be_best for each in ends.values()))
        cells = []
        for values in (np.array(hold, float), np.array(found, float)):
            share, error = values.mean(), values.std(ddof=1) / np.sqrt(studies)
            is_calibrated &= bool(share >= BEST_COVERAGE - 2 * error)
            cells.append(f"{100 * share:.1f} % ± {100 * error:.1f}")
        print(f"| {cell.name} | {' | '.join(cells)} | {np.mean(named):.1f} of {len(truth)} |", flush=True)
    return 0 if is_calibrated else 1


LOOKS = (3, 5, 8, 12)  # seeds
LOOK_LEVELS = (2, 5, 10)  # arms, all equal
PLANNED = planned_levels(LOOKS)
LOOK_DRAWS = (DRAWS, 3_999, 9_999)


def declares(correct: Mapping[str, np.ndarray], contrasts: list[Weights], level: float) -> bool:
    """Return whether a test of a family at this level shows any difference.

    A lower level needs more simulated studies; one that is too low even for the most takes Bonferroni's bound, as the
    report does, for which their number does not matter.
    """
    draws = next((draws for draws in LOOK_DRAWS if level * (draws + 1) > FEWEST_BEYOND + 1), DRAWS)
    return any(e.p is not None and e.p < ALPHA for e in Estimator(level=level).simultaneous(contrasts, correct, draws))


def looked_at(levels: int, rng: np.random.Generator) -> tuple[bool, bool, bool, bool]:
    """Return whether a study of equal arms declares anything that is false.

    At planned looks; at as many unplanned ones; at a look at five seeds, after which the arm with the highest mean is
    declared the control; and at three looks at five seeds each, before which more trials chose other configurations.
    """
    arms = tuple(f"arm {number}" for number in range(levels))
    correct = simulate(rng, dict.fromkeys(arms, ACCURACY), 0.003, 15, 2_000)
    all_pairs = pairs(arms)

    def runs(start: int, end: int) -> dict[str, np.ndarray]:
        return {arm: y_SN[start:end] for arm, y_SN in correct.items()}

    first = declares(runs(0, 5), all_pairs, unplanned_level(1))
    control = max(arms, key=lambda arm: float(correct[arm][:5].mean()))
    with_control: list[Weights] = [{arm: 1.0, control: -1.0} for arm in arms if arm != control]
    return (
        any(declares(runs(0, seeds), all_pairs, level) for seeds, level in zip(LOOKS, PLANNED, strict=True)),
        any(declares(runs(0, seeds), all_pairs, unplanned_level(n)) for n, seeds in enumerate(LOOKS, start=1)),
        first or declares(runs(0, 5), with_control, unplanned_level(2)),
        first or any(declares(runs(5 * n, 5 * n + 5), all_pairs, unplanned_level(n + 1)) for n in (1, 2)),
    )


def looks(studies: int = STUDIES) -> int:
    """Print the table of looks, of two arms over three times the studies, because their test simulates nothing.

    Returns:
        1 if planned looks err too often.
    """
    print("| simulated studies | planned looks | unplanned looks | a control declared later | trials raised twice |")
    print("| --- | --- | --- | --- | --- |")
    is_calibrated = True
    for number, levels in enumerate(LOOK_LEVELS):
        rng = np.random.default_rng([SIMULATION_SEED, 3_000 + number])
        count = 3 * studies if levels == 2 else studies
        outcomes_BX = np.array([looked_at(levels, rng) for _ in range(count)], float)
        shares_X, errors_X = outcomes_BX.mean(axis=0), outcomes_BX.std(axis=0, ddof=1) / np.sqrt(count)
        is_calibrated &= bool(shares_X[0] <= ERRORS[1] + 2 * errors_X[0])
        cells = [f"{100 * share:.1f} % ± {100 * error:.1f}" for share, error in zip(shares_X, errors_X, strict=True)]
        print(f"| {levels} equal arms | " + " | ".join(cells) + " |", flush=True)
    return 0 if is_calibrated else 1


def main(studies: int = STUDIES) -> int:
    """Print the table as markdown; return 1 if a value is out of bounds by more than two standard errors."""
    print("| simulated studies | any false declaration | all intervals hold | arms' intervals hold | true ones shown |")
    print("| --- | --- | --- | --- | --- |")
    is_calibrated = True
    for number, cell in enumerate(CELLS):
        rng = np.random.default_rng([SIMULATION_SEED, number])
        outcomes = [one_study(cell, rng) for _ in range(studies)]
        cells = []
        for name, (low, high) in (
            ("is_wrong", ERRORS),
            ("all_cover", COVERAGE),
            ("means_cover", FREE),
            ("is_shown", FREE),
        ):
            values = np.array([getattr(outcome, name) for outcome in outcomes])
            if name == "is_shown" and cell.margin is not None:
                values = np.array([outcome.is_equivalent for outcome in outcomes])
            if np.isnan(values).all():
                cells.append("-")
                continue
            share, error = values.mean(), values.std(ddof=1) / np.sqrt(studies)
            is_calibrated &= bool(low - 2 * error <= share <= high + 2 * error) or (
                name == "all_cover" and share > high
            )
            equivalent = "equivalent: " if name == "is_shown" and cell.margin is not None else ""
            cells.append(f"{equivalent}{100 * share:.1f} % ± {100 * error:.1f}")
        print(f"| {cell.name} | " + " | ".join(cells) + " |", flush=True)
    return 0 if is_calibrated else 1


if __name__ == "__main__":
    table = {"again": again, "best": best, "looks": looks}.get(sys.argv[1] if len(sys.argv) > 1 else "", main)
    sys.exit(table(*(int(word) for word in sys.argv[1:] if word.isdecimal())))
