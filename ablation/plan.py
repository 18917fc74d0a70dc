"""What a study will cost, before anything runs, and what a smaller one would give up."""

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ablation import architecture
from ablation.blocks import blank_image, feature_shape, outline_blocks
from ablation.data import DataSize
from ablation.datasets import SIDES
from ablation.design import Arm, arms
from ablation.features import SHARE_OF_DEVICE, frozen_cuts
from ablation.models import build_model
from ablation.probe import Conditions, Failure, Kind, Probe, Speed
from ablation.seeding import select_precision
from ablation.spec import HeadPool, Range, StudySpec
from ablation.stats import Assumed, smallest_difference
from ablation.strategies import apply_strategy
from ablation.tables import Table, count_arms
from ablation.train import CALIBRATION_IMAGES
from ablation.view import format_duration

BYTES_PER_PARAMETER = 4  # checkpoints are float32
BYTES_PER_FEATURE = {"bfloat16": 2, "float16": 2}  # else 4
HEAD_POOL_SIZE = {1: 1, 2: 2, "flatten": 1024}  # for finding the largest

RUN_SECONDS = 0.1  # of a run, for MLflow, Optuna and checkpoints
STUDY_SECONDS = 10  # for starting and for the report
LIBRARY_BYTES = 300_000_000  # of MLflow, Optuna and what the report needs, which are not loaded here
BUSY_CORES = 0.3  # of other processes, which are worth a word
STEP_OPERATIONS = 1000  # for which an optimizer's step of one parameter stands, in choosing what is measured
ALIKE = 0.8  # kinds of training whose operations differ by less are not worth two measurements

# As in `tests/calibration.py`, at an accuracy of 0.88.
ASSUMED = Assumed(seed_sd=0.005, same_arm=0.09, other_arm=0.122)


# -------------------------------------------------------------------------------------------------- parameters, disk


@dataclass(frozen=True)
class ArmPlan:
    """An arm's budget and the largest network that a trial of it can train; `checkpoint_bytes` is for the whole arm.

    `cheapest` and `costliest` are the kinds of training that its search can choose; the same where they hardly differ.
    """

    arm: Arm
    trials: int
    confirmations: int
    trained_parameters: int
    all_parameters: int
    checkpoint_bytes: int
    cheapest: Kind
    costliest: Kind


def plan(spec: StudySpec, num_classes: int, *, stores_features: bool = True) -> list[ArmPlan]:
    """Return the plan of every arm; `stores_features` says whether what frozen layers compute is computed once."""
    found = []
    seeds = spec.confirm.seeds
    kept = spec.trials_per_arm + seeds if spec.tracking.checkpoints == "all" else 1 + min(1, seeds)
    for arm in arms(spec):
        trained, total = _largest(spec, arm, num_classes)
        disk = kept * trained * BYTES_PER_PARAMETER
        cheapest, costliest = _extreme_kinds(spec, arm, stores_features)
        found.append(ArmPlan(arm, spec.trials_per_arm, seeds, trained, total, disk, cheapest, costliest))
    return found


def _largest(spec: StudySpec, arm: Arm, num_classes: int) -> tuple[int, int]:
    """Return the largest (trained, all) parameters of any trial of the arm."""
    width = max(spec.possible("head_width", arm.levels))
    pool = max(spec.possible("head_pool", arm.levels), key=lambda pool: HEAD_POOL_SIZE[pool])
    sizes = []
    for strategy in spec.possible("strategy", arm.levels):
        for cut in spec.possible("truncate_at", arm.levels):
            kept = architecture.kept_blocks(spec.backbone.name, cut)
            depth = min(*spec.possible("freeze_depth", arm.levels), kept) if strategy == "fine_tune_top" else None
            with torch.device("meta"):
                model = build_model(spec.backbone.name, cut, width, pool, num_classes, spec.data.image_size)
            apply_strategy(model, strategy, freeze_depth=depth, lr=1.0, backbone_lr_scale=None, weight_decay=0.0)
            sizes.append(
                (
                    sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
                    sum(parameter.numel() for parameter in model.parameters()),
                )
            )
    return max(sizes)


def feature_bytes(spec: StudySpec, size: DataSize) -> int:
    """Return the bytes of everything that a study's trials may store of frozen layers, see `features`."""
    numbers: dict[tuple[str, HeadPool | None], int] = {}  # of an image, behind a cut or block, pooled or not
    for levels in spec.combinations():
        for cut in spec.possible("truncate_at", levels):
            channels, side, _ = feature_shape(spec.backbone.name, cut, spec.data.image_size)
            kept = architecture.kept_blocks(spec.backbone.name, cut)
            for depth in _frozen_blocks(spec, levels, kept) - {0}:
                if depth == kept:
                    for pool in spec.possible("head_pool", levels):
                        numbers[cut, pool] = channels * (side if pool == "flatten" else min(pool, side)) ** 2
                else:
                    shape = feature_shape(spec.backbone.name, f"block{depth}", spec.data.image_size)
                    numbers[f"block{depth}", None] = math.prod(shape)
    # ConvNeXt's blocks end in what autocast leaves in float32.
    bytes_each = 4 if spec.backbone.name.startswith("convnext") else BYTES_PER_FEATURE.get(spec.precision, 4)
    trained, tested = stored_images(spec, size)
    # Layers without weights are random, in every trial others.
    networks = spec.trials_per_arm + spec.confirm.seeds if spec.backbone.missing_layers == "random" else 1
    return (trained * bytes_each + tested * 4) * sum(numbers.values()) * networks  # tests are always in float32


def stored_images(spec: StudySpec, size: DataSize) -> tuple[int, int]:
    """Return of how many images for trainings and of how many test images what frozen layers compute is stored."""
    augmentations = {a for levels in spec.combinations() for a in spec.possible("augmentation", levels)}
    orientations = 2 if "flip" in augmentations else 1 if "none" in augmentations else 0  # random crops are not stored
    validation = round(size.train * spec.data.val_fraction)
    return (size.train - validation) * orientations + validation, size.test if spec.confirm.seeds > 0 else 0


def _frozen_blocks(spec: StudySpec, levels: dict[str, Any], kept: int) -> set[int]:
    """Return how many of the kept blocks trials of an arm may freeze."""
    strategies = set(spec.possible("strategy", levels))
    found = {kept} if "feature_extraction" in strategies else set()
    found |= {0} if strategies & {"fine_tune_all", "from_scratch"} else set()
    if "fine_tune_top" in strategies:
        depths = spec.possible("freeze_depth", levels)
        if isinstance(spec.search.get("freeze_depth"), Range):
            depths = list(range(depths[0], depths[1] + 1))
        found |= {depth for depth in depths if depth <= kept}
    return found


# ----------------------------------------------------------------------------------------------- kinds of training


def _extreme_kinds(spec: StudySpec, arm: Arm, stores_features: bool) -> tuple[Kind, Kind]:
    """Return the cheapest and the costliest kind of training that an arm's search can choose."""
    others = ("head_width", "head_pool", "batch_size", "augmentation", "optimizer")
    work = {}
    for cut in spec.possible("truncate_at", arm.levels):
        kept = architecture.kept_blocks(spec.backbone.name, cut)
        for frozen in sorted(_frozen_blocks(spec, arm.levels, kept)):
            for width, pool, batch, augmentation, optimizer in product(*(spec.possible(o, arm.levels) for o in others)):
                stored = stores_features and frozen > 0 and augmentation != "crop_flip"
                kind = Kind(cut, frozen, stored, width, pool, batch, augmentation, optimizer)
                work[kind] = _operations(spec, kind)
    cheapest, costliest = min(work, key=lambda kind: work[kind]), max(work, key=lambda kind: work[kind])
    return (costliest if work[cheapest] > ALIKE * work[costliest] else cheapest), costliest


def _operations(spec: StudySpec, kind: Kind) -> float:
    """Return roughly how many floating point operations an image takes in an epoch; backward is twice forward."""
    blocks = outline_blocks(spec.backbone.name, kind.truncate_at).eval()
    maps = blank_image(spec.backbone.name, spec.data.image_size)
    frozen = learning = parameters = 0
    for number, block in enumerate(blocks):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            maps = block(maps)
        if number < kind.frozen_blocks:
            frozen += counter.get_total_flops()
        else:
            learning += counter.get_total_flops()
            parameters += sum(parameter.numel() for parameter in block.parameters())
    _, channels, side, _ = maps.shape
    pooled = channels * (side if kind.head_pool == "flatten" else min(kind.head_pool, side)) ** 2
    head = pooled * kind.head_width
    states = 2 if kind.optimizer == "adamw" else 1
    step = STEP_OPERATIONS * states * (parameters + head) / kind.batch_size
    return (0 if kind.reads_features else frozen) + 3 * (learning + 2 * head) + step


def frozen_parts(spec: StudySpec) -> list[tuple[str, int]]:
    """Return the (cut, blocks) of which what they compute is stored: the longest whole network and the deepest part.

    All others are computed on the way, if the deeper ones come later.
    """
    backbone = spec.backbone.name
    whole = [(cut, architecture.kept_blocks(backbone, cut)) for cut in frozen_cuts(spec)]
    parts = []
    for levels in spec.combinations():
        for cut in spec.possible("truncate_at", levels):
            kept = architecture.kept_blocks(backbone, cut)
            parts += [(cut, depth) for depth in _frozen_blocks(spec, levels, kept) if 0 < depth < kept]
    longest = max(whole, key=lambda part: architecture.kept_units(backbone, part[0]), default=None)
    deepest = max(parts, key=lambda part: part[1], default=None)
    return [part for part in (longest, deepest) if part is not None]


def conditions(spec: StudySpec, size: DataSize, device: torch.device) -> Conditions:
    """Return what all trainings of a study have in common."""
    validation = round(size.train * spec.data.val_fraction)
    return Conditions(
        backbone=spec.backbone.name,
        classes=size.classes,
        image_size=spec.data.image_size,
        side=SIDES.get(spec.data.source, spec.data.image_size),
        train_images=size.train - validation,
        val_images=validation,
        test_images=size.test,
        precision=select_precision(spec.precision, device),
        device=device,
    )


# ------------------------------------------------------------------------------------------------------------- time


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
        least, most = (_duration(seconds) for seconds in (self.least, self.most))
        if least == most:
            return least
        number, unit = least.split(maxsplit=1)
        return f"{number if most.split(maxsplit=1)[1] == unit else least} to {most}"


def _duration(seconds: float) -> str:
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


# ------------------------------------------------------------------------------------------------- smaller budgets


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


# ----------------------------------------------------------------------------------------------------------- memory


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


# ----------------------------------------------------------------------------------------------------------- tables


def arms_table(study: StudyPlan) -> Table:
    """Make the table of the arms, with notes on disk, time and memory."""
    rows, failed = [], []
    for arm in study.arms:
        spans = arm_spans(study, arm)
        if isinstance(spans, Failure):
            failed.append(f"{arm.arm.name} cannot run here: {spans.reason.rstrip('.')}.")
        rows.append(
            [
                arm.arm.name,
                f"{arm.trained_parameters:,}",
                f"{arm.all_parameters:,}",
                _megabytes(arm.checkpoint_bytes),
                "cannot run" if isinstance(spans, Failure) else spans[0].text(),
            ]
        )
    failed += [
        f"What frozen layers compute cannot be computed here: {speed.reason.rstrip('.')}."
        for speed in study.measured.frozen.values()
        if isinstance(speed, Failure)
    ]
    runs = sum(arm.trials + arm.confirmations for arm in study.arms)
    notes = [
        f"{count_arms(len(study.arms))}, {runs} trainings, {runs * study.spec.epochs} epochs: an arm has "
        f"{study.spec.trials_per_arm} trials and {study.spec.confirm.seeds} confirmation runs.",
        f"Checkpoints take up to {_megabytes(sum(arm.checkpoint_bytes for arm in study.arms))} "
        f'(tracking.checkpoints = "{study.spec.tracking.checkpoints}").',
        "Parameters are those of the largest network that the search can choose.",
        _feature_note(study),
        *failed,
        *_time_notes(study),
        _memory_note(study),
    ]
    columns = ["arm", "trained parameters", "all parameters", "disk", "run time"]
    return Table(study.spec.question, columns, rows, notes)


def _feature_note(study: StudyPlan) -> str:
    needed = feature_bytes(study.spec, study.size)
    note = (
        f"What frozen layers compute takes up to {_megabytes(needed)} in the store, at most what --feature-cache allows"
    )
    if needed <= study.feature_limit:
        return f"{note}."
    return f"{note}, which is less: the times are those of computing it in every epoch."


def _time_notes(study: StudyPlan) -> list[str]:
    budget = planned_budget(study.spec)
    once = feature_seconds(study, budget)
    total = f"With one worker on {study.given.device}, the study takes about {study_span(study, budget).text()}"
    if any(arm.cheapest != arm.costliest for arm in study.arms):
        total += ", as cheap or as costly as its searches can choose"
    if once:
        total += f"; {_duration(once)} of it for what frozen layers compute"
    measured = (
        f"Measured here in {format_duration(study.measured.seconds)}, on random images. Assumed: {RUN_SECONDS} s a run "
        f"for MLflow, Optuna and checkpoints, {STUDY_SECONDS} s for the start and the report. Not counted: downloads, "
        "decoding images."
    )
    if study.measured.busy_cores >= BUSY_CORES:
        measured += f" Other processes kept {study.measured.busy_cores:.1f} cores busy meanwhile: it is a rough figure."
    spec = study.spec
    warms_up = any(max(spec.possible("head_warmup_epochs", levels)) > 0 for levels in spec.combinations())
    shorter = ["pruned trials end earlier"] if spec.search.pruner != "none" else []
    shorter += ["epochs in which only the head learns are shorter"] if warms_up else []
    shorter += ["it was measured without torch.compile"] if spec.compile != "none" else []
    return [f"{total}.", measured] + ([f"It may take less: {', '.join(shorter)}."] if shorter else [])


def _memory_note(study: StudyPlan) -> str:
    needed = memory(study)
    where = "the GPU's memory" if study.given.device.type == "cuda" else "memory"
    features = f" and {_gigabytes(needed.features)} features of frozen layers" if needed.features else ""
    return (
        f"A worker needs about {_gigabytes(needed.total)} of {where}, {_gigabytes(needed.images)} of it "
        f"images{features}; free now: {_gigabytes(study.measured.free_bytes)}."
    )


def budget_table(study: StudyPlan) -> Table:
    """Make the table of what smaller budgets would give up."""
    is_searched = bool(study.spec.search.entries())
    rows = []
    for budget in budgets(planned_budget(study.spec)):
        found = differences_found(study.spec, study.size.test, budget.seeds)
        named = [f"{factor} {100 * difference:.1f}" for factor, difference in found.items()]
        rows.append(
            [
                budget.name,
                str(budget.trials),
                str(budget.seeds),
                study_span(study, budget).text(),
                _percent(chance_of_best_tenth(budget.trials)) if is_searched else "-",
                ", ".join(named) or "-",
            ]
        )
    notes = [
        "Best tenth: the chance that one of an arm's trials is among the best tenth of all that its search could try; "
        "for random trials, which quasi-random ones about are."
        if is_searched
        else "Nothing is searched: an arm's trials differ in their seeds alone.",
        _difference_note(study.spec, study.size),
        "Fewer epochs would save time, too, but favour arms that learn fast, as feature extraction does; how much that "
        "would change cannot be said beforehand.",
    ]
    columns = ["budget", "trials", "seeds", "time", "best tenth", "smallest difference (points)"]
    return Table("What a smaller budget would give up", columns, rows, notes)


def _difference_note(spec: StudySpec, size: DataSize) -> str:
    if spec.confirm.seeds == 0:
        return "The study has no [confirm] seeds: nothing is confirmed on the test images, and no difference is tested."
    if spec.confirm.seeds == 1:
        return "With one seed nothing tells chance from a difference: none is tested."
    if len(spec.combinations()) == 1:
        return "There is one arm: no difference is tested."
    return (
        "Smallest difference: between two levels of a factor, in accuracy, that the report would find in 4 of 5 such "
        f"studies, after Holm's correction. Assumed: {size.test:,} test images, a standard deviation over seeds of "
        f"{100 * ASSUMED.seed_sd} points, an accuracy of 0.88 with runs of one arm disagreeing on "
        f"{100 * ASSUMED.same_arm:.0f} % and of two on {100 * ASSUMED.other_arm:.0f} % of the images."
    )


def _percent(share: float) -> str:
    return "over 99 %" if share > 0.99 else f"{100 * share:.0f} %"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e9:.2f} GB"
