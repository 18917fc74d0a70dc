"""What a study would take: time, memory, and what a smaller budget gives up."""

import math
from dataclasses import dataclass

import torch

from ablation.analysis.statistics import Assumed, smallest_difference
from ablation.base.text import format_duration
from ablation.data.reading import DataSize
from ablation.planning.probe import Conditions, Failure, Probe, Speed
from ablation.planning.workload import ArmPlan, feature_bytes, stored_images
from ablation.spec.study import StudySpec
from ablation.training.feature_cache import SHARE_OF_DEVICE
from ablation.training.loop import CALIBRATION_IMAGES

RUN_SECONDS = 0.1  # of a run, for MLflow, Optuna and checkpoints
STUDY_SECONDS = 10  # for starting and for the report
LIBRARY_BYTES = 300_000_000  # of MLflow, Optuna and what the report needs, which are not loaded here

# As in `tests/calibration.py`, at an accuracy of 0.88.
ASSUMED = Assumed(seed_sd=0.005, same_arm=0.09, other_arm=0.122)


@dataclass(frozen=True)
class StudyPlan:
    """A study, its arms, and what was measured for it under which conditions.

    `feature_limit` is how many bytes may be stored of what frozen layers compute.
    """

    spec: StudySpec
    size: DataSize
    feature_limit: int
    arms: list[ArmPlan]
    given: Conditions
    measured: Probe


@dataclass(frozen=True)
class Budget:
    """Trials and confirmation runs of an arm."""

    name: str
    trials: int
    seeds: int


def planned_budget(spec: StudySpec) -> Budget:
    """Return what the study file says."""
    return Budget("as planned", spec.trials_per_arm, spec.confirm.seeds)


def budgets(planned: Budget) -> list[Budget]:
    """Return a budget, and what can be had of half the trials, three fifths of the seeds (at least two), and both."""
    trials, seeds = max(1, planned.trials // 2), max(2, math.ceil(0.6 * planned.seeds))
    found = [planned]
    if trials < planned.trials:
        found.append(Budget("half the trials", trials, planned.seeds))
    if seeds < planned.seeds:
        found.append(Budget("fewer seeds", planned.trials, seeds))
    return [*found, Budget("both", trials, seeds)] if len(found) == 3 else found


@dataclass(frozen=True)
class Span:
    """Seconds, if the search always chooses what is cheapest and what is costliest."""

    least: float
    most: float

    def __add__(self, other: "Span") -> "Span":
        return Span(self.least + other.least, self.most + other.most)

    def times(self, count: float) -> "Span":
        """Return the seconds of so many."""
        return Span(self.least * count, self.most * count)

    def text(self) -> str:
        """Return it as '40 s', '5 to 12 min' or '40 s to 12 min'."""
        least, most = (duration_text(seconds) for seconds in (self.least, self.most))
        if least == most:
            return least
        number, unit = least.split(maxsplit=1)
        return f"{number if most.split(maxsplit=1)[1] == unit else least} to {most}"


def duration_text(seconds: float) -> str:
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return format_duration(seconds) if seconds < 10 * 3600 else f"{seconds / 3600:,.0f} h"


def trial_seconds(speed: Speed, given: Conditions, epochs: int) -> float:
    """Return the seconds of a trial: its start, the features' standardisation, and its epochs with validation."""
    epoch = given.train_images * speed.train + given.val_images * speed.evaluate
    calibration = min(CALIBRATION_IMAGES, given.train_images) * speed.evaluate
    return RUN_SECONDS + speed.begin + calibration + epochs * epoch


def arm_spans(study: StudyPlan, arm: ArmPlan) -> tuple[Span, Span] | Failure:
    """Return the seconds of an arm's trial and of its confirmation run, which evaluates the test split, too."""
    trials, tests = [], []
    for kind in (arm.cheapest, arm.costliest):
        speed = study.measured.speeds[kind]
        if isinstance(speed, Failure):
            return speed
        trials.append(trial_seconds(speed, study.given, study.spec.epochs))
        tests.append(study.given.test_images * speed.test)
    trial = Span(min(trials), max(trials))
    return trial, trial + Span(min(tests), max(tests))


def feature_seconds(study: StudyPlan, budget: Budget) -> float:
    """Return the seconds for what frozen layers compute once: of every image, and of its mirror image if flipped."""
    trained, tested = stored_images(study.spec, study.size)
    # Layers without weights are random, in every run others.
    networks = budget.trials + budget.seeds if study.spec.backbone.missing_layers == "random" else 1
    speeds = [speed for speed in study.measured.frozen.values() if not isinstance(speed, Failure)]
    return networks * sum(trained * own + tested * float32 for own, float32 in speeds)


def study_span(study: StudyPlan, budget: Budget) -> Span:
    """Return the seconds of a whole study with a budget and one worker; arms that cannot run are left out."""
    fixed = STUDY_SECONDS + feature_seconds(study, budget)
    total = Span(fixed, fixed)
    for arm in study.arms:
        spans = arm_spans(study, arm)
        if not isinstance(spans, Failure):
            trial, confirmation = spans
            total = total + trial.times(budget.trials) + confirmation.times(budget.seeds)
    return total


def chance_of_best_tenth(trials: int) -> float:
    """Return the chance that one of so many random trials is among the best tenth of all that could be tried."""
    return 1 - 0.9**trials


def differences_found(spec: StudySpec, test_images: int, seeds: int) -> dict[str, float]:
    """Return factor -> the smallest difference between two of its levels that four of five studies would find.

    Levels are compared as in the report: their arms' mean, corrected over all pairs or all levels but the control.
    """
    found = {}
    factors = {factor: levels for factor, levels in spec.factors.entries().items() if len(levels) > 1}
    combinations = len(spec.combinations())
    for factor, levels in factors.items():
        family = len(levels) - 1 if factor in spec.confirm.control else math.comb(len(levels), 2)
        difference = smallest_difference(
            combinations // len(levels), ASSUMED, seeds=seeds, images=test_images, family=family
        )
        if difference is not None:
            found[factor] = difference
    return found


@dataclass(frozen=True)
class Memory:
    """Bytes that one worker needs on its device, and those of them that are images and features."""

    total: int
    images: int
    features: int


def memory(study: StudyPlan) -> Memory:
    """Return what a worker needs: what was measured, and the images, which the CPU has twice: as read, and as used.

    A GPU holds features, up to a share of its memory; on the CPU they stay in files.
    """
    peak, size, device = study.measured.peak_bytes, study.size, study.given.device
    image = 3 * study.given.side**2
    used = (size.train + (size.test if study.spec.confirm.seeds else 0)) * image
    if device.type == "cuda":
        stored = feature_bytes(study.spec, size)
        most = round(torch.cuda.get_device_properties(device).total_memory * SHARE_OF_DEVICE)
        features = min(stored, most) if stored <= study.feature_limit else 0
        return Memory(peak + used + features, used, features)
    read = (size.train + size.test) * image
    return Memory(peak + LIBRARY_BYTES + read + used, read + used, 0)
