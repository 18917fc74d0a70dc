"""The forecast of a study: its time and memory, and the price of a smaller budget."""

import math
from dataclasses import dataclass, replace

import torch

from ablation.analysis.boundaries import planned_levels, unplanned_level
from ablation.analysis.contrasts import interactions, label_pairs, level_comparisons, level_label, pivots, places
from ablation.analysis.power import Assumed, assumed_moments, smallest_differences
from ablation.analysis.simultaneous import FEWEST_SEEDS
from ablation.analysis.statistics import ALPHA
from ablation.base.text import format_duration
from ablation.data.reading import DataSize, is_mapped
from ablation.planning.probe import Conditions, Failure, Probe, Speed
from ablation.planning.workload import ArmPlan, feature_bytes, stored_images
from ablation.spec.study import StudySpec
from ablation.training.feature_cache import SHARE_OF_DEVICE
from ablation.training.state import CALIBRATION_IMAGES

RUN_SECONDS = 0.1  # per run, for MLflow, Optuna and checkpoints
STUDY_SECONDS = 10  # for the start and the report
CUDA_BYTES = 600_000_000  # of a GPU's memory: CUDA's context and libraries of a process, besides its tensors
LIBRARY_BYTES = 300_000_000  # memory of MLflow, Optuna and the report's libraries, which are not loaded here

# As in `tests/calibration.py`, at an accuracy of 0.88.
ASSUMED = Assumed(seed_sd=0.005, same_arm=0.09, other_arm=0.122)


@dataclass(frozen=True)
class StudyPlan:
    """A study with the measurements that its forecast is made from.

    Attributes:
        spec: the study.
        size: of its data.
        feature_limit: bytes that cached features may take on disk.
        arms: the plan of each arm.
        conditions: what the measured trainings share.
        probe: the measurements.
    """

    spec: StudySpec
    size: DataSize
    feature_limit: int
    arms: list[ArmPlan]
    conditions: Conditions
    probe: Probe


@dataclass(frozen=True)
class Budget:
    """The trials of an arm, and the confirmation runs of each repeat of its tuning."""

    name: str
    trials: int
    seeds: int
    repeats: int = 1

    @property
    def confirmations(self) -> int:
        """The number of an arm's confirmation runs."""
        return self.repeats * self.seeds


def planned_budget(spec: StudySpec) -> Budget:
    """Return the budget that the study file sets."""
    return Budget("as planned", spec.trials_per_arm, spec.confirm.seeds, spec.confirm.repeats)


def budgets(planned: Budget) -> list[Budget]:
    """Return the budget and the smaller ones: half the trials, three fifths of the seeds (at least three), and both.

    With repeats, which are the unit, a single seed of each is enough, and each keeps a trial.
    """
    least = FEWEST_SEEDS if planned.repeats == 1 else 1
    trials, seeds = max(planned.repeats, planned.trials // 2), max(least, math.ceil(0.6 * planned.seeds))
    choices = [planned]
    if trials < planned.trials:
        choices.append(replace(planned, name="half the trials", trials=trials))
    if seeds < planned.seeds:
        choices.append(replace(planned, name="fewer seeds", seeds=seeds))
    return [*choices, replace(planned, name="both", trials=trials, seeds=seeds)] if len(choices) == 3 else choices


@dataclass(frozen=True)
class Span:
    """Seconds if the search always chooses the cheapest (`least`) and the costliest (`most`) kind of training."""

    least: float
    most: float

    def __add__(self, other: "Span") -> "Span":
        return Span(self.least + other.least, self.most + other.most)

    def times(self, count: float) -> "Span":
        """Return the span of `count` of these in a row."""
        return Span(self.least * count, self.most * count)

    def text(self) -> str:
        """Return the span as '40 s', '5 to 12 min' or '40 s to 12 min'."""
        least, most = (duration_text(seconds) for seconds in (self.least, self.most))
        if least == most:
            return least
        number, unit = least.split(maxsplit=1)
        return f"{number if most.split(maxsplit=1)[1] == unit else least} to {most}"


def duration_text(seconds: float) -> str:
    """Return a duration such as '4.0 s', '40 s', '12 min', '3 h 05 min' or, from ten hours on, '20 h'."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return format_duration(seconds) if seconds < 10 * 3600 else f"{seconds / 3600:,.0f} h"


def trial_seconds(speed: Speed, conditions: Conditions, epochs: int) -> float:
    """Return the seconds of a trial: its start, the standardisation of features, and its epochs with validation."""
    epoch = conditions.train_images * speed.train + conditions.val_images * speed.evaluate
    calibration = min(CALIBRATION_IMAGES, conditions.train_images) * speed.evaluate
    return RUN_SECONDS + speed.begin + calibration + epochs * epoch


def arm_spans(study: StudyPlan, arm: ArmPlan) -> tuple[Span, Span] | Failure:
    """Return the seconds of one trial of an arm and of one confirmation run, which also evaluates the test split."""
    trials, tests = [], []
    for kind in (arm.cheapest, arm.costliest):
        speed = study.probe.speeds[kind]
        if isinstance(speed, Failure):
            return speed
        trials.append(trial_seconds(speed, study.conditions, study.spec.epochs))
        tests.append(study.conditions.test_images * speed.test)
    trial = Span(min(trials), max(trials))
    return trial, trial + Span(min(tests), max(tests))


def feature_seconds(study: StudyPlan, budget: Budget) -> float:
    """Return the seconds that computing all cached features takes, once for each image and mirror image of a split."""
    trained, tested = stored_images(study.spec, study.size)
    # Layers without weights are random and differ between runs.
    is_random = study.spec.backbone.missing_layers == "random"
    networks = budget.trials + budget.confirmations if is_random else 1
    splits = 1 if is_random else budget.repeats
    speeds = [speed for speed in study.probe.frozen.values() if not isinstance(speed, Failure)]
    return networks * sum(splits * trained * in_precision + tested * in_float32 for in_precision, in_float32 in speeds)


def study_span(study: StudyPlan, budget: Budget) -> Span:
    """Return the seconds of the whole study with one worker and a budget, without the arms that cannot run."""
    fixed = STUDY_SECONDS + feature_seconds(study, budget)
    total = Span(fixed, fixed)
    for arm in study.arms:
        spans = arm_spans(study, arm)
        if not isinstance(spans, Failure):
            trial, confirmation = spans
            total = total + trial.times(budget.trials) + confirmation.times(budget.confirmations)
    return total


def chance_of_best_tenth(trials: int) -> float:
    """Return the chance that at least one of `trials` random trials is among the best tenth of all possible ones."""
    return 1 - 0.9**trials


def level_of_plan(spec: StudySpec, looks_before: int) -> float:
    """Return the level of the tests that a plan is for: of the last planned look, else of the next one."""
    looks = spec.confirm.looks
    return planned_levels(looks)[-1] if looks else unplanned_level(looks_before + 1)


def fewest_images(level: float) -> int:
    """Return how many images, or groups of them, must favour one side before McNemar's exact test shows a difference.

    Args:
        level: of the test.
    """
    return math.ceil(1 - math.log2(level))


def differences_found(spec: StudySpec, images: int, seeds: int, level: float = ALPHA) -> dict[str, float]:
    """Return factor -> the smallest difference between two of its levels that four of five studies would find.

    With repeats none is promised: it depends on how much tunings differ, which is not known beforehand. Below
    `fewest_images` none can be shown. Images of a group are taken to be right or wrong together.

    The differences (fractions of accuracy) are those that the report tests: between the means of the levels' arms,
    corrected for all differences and interactions together; `level` is as in `simultaneous`. Below three seeds none is
    tested.
    """
    if seeds < FEWEST_SEEDS or images < fewest_images(level) or spec.confirm.repeats > 1:
        return {}
    all_places = places(spec)
    first_levels = {factor: level_label(factor, levels[0]) for factor, levels in spec.compared_levels().items()}
    pairs = label_pairs(spec, pivots(spec, first_levels))  # whichever level leads, as many pairs are compared
    comparisons = level_comparisons(all_places, pairs)
    if not comparisons:
        return {}
    crossed, _ = interactions(all_places, pairs)
    moments = assumed_moments(list(all_places), ASSUMED, seeds=seeds, images=images)
    first_of = {c.factor: number for number, c in reversed(list(enumerate(comparisons)))}  # all others are alike
    weights_CA = moments.weights([c.weights for c in comparisons] + [c.weights for c in crossed])
    smallest = smallest_differences(weights_CA, moments, list(first_of.values()), level)
    differences = dict(zip(first_of, smallest, strict=True))
    return {factor: differences[factor] for factor in pairs if factor in differences}


@dataclass(frozen=True)
class Memory:
    """Bytes that one worker needs on its device: in total, and the shares of images and of features.

    `mapped` are those of images that do not fit into the machine's memory: they take as much of the disk.
    """

    total: int
    images: int
    features: int
    mapped: int = 0


def workers_that_fit(needed: int, free: int, cores: int) -> int:
    """Return how many workers fit on a GPU, at least one, with a tenth of its free memory left and a core for each.

    Args:
        needed: bytes of the GPU's memory that a worker needs, see `memory`.
        free: its free bytes.
        cores: the cores of this machine for each of its GPUs.
    """
    return max(1, min(cores, int(0.9 * free / (needed + CUDA_BYTES))))


def memory(study: StudyPlan) -> Memory:
    """Return the memory of a worker: the measured peak, the images, and on a GPU the features.

    The CPU holds the images twice, as decoded and as used, or reads them through a memory map. A GPU holds features up
    to a share of its memory, which its workers divide: larger ones stay on the host. For the CPU they stay in files.
    """
    peak, size, device = study.probe.peak_bytes, study.size, study.conditions.device
    image = 3 * study.conditions.side**2
    used = (size.train + (size.test if study.spec.confirm.seeds else 0)) * image
    decoded = (size.train + size.test) * image
    mapped = decoded if is_mapped(study.spec.data, size, study.conditions.side) else 0
    if device.type == "cuda":
        stored = feature_bytes(study.spec, size, study.conditions.precision)
        most = round(torch.cuda.get_device_properties(device).total_memory * SHARE_OF_DEVICE)
        features = min(stored, most) if stored <= study.feature_limit else 0
        return Memory(peak + used + features, used, features, mapped)
    if mapped:
        return Memory(peak + LIBRARY_BYTES, 0, 0, mapped)
    return Memory(peak + LIBRARY_BYTES + decoded + used, decoded + used, 0)
