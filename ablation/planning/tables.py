"""The tables of `--plan`."""

from dataclasses import replace

from ablation.analysis.simultaneous import FEWEST_SEEDS
from ablation.analysis.wording import chance_words, ordinal, percent, shown_question
from ablation.base.text import Table, format_duration, plural
from ablation.data.reading import DataSize
from ablation.planning.forecast import (
    ASSUMED,
    RUN_SECONDS,
    STUDY_SECONDS,
    Span,
    StudyPlan,
    arm_spans,
    budgets,
    chance_of_best_tenth,
    differences_found,
    duration_text,
    feature_seconds,
    fewest_images,
    level_of_plan,
    memory,
    planned_budget,
    study_span,
)
from ablation.planning.probe import Failure
from ablation.planning.workload import feature_bytes
from ablation.spec.study import StudySpec

BUSY_CORES = 0.3  # used by other processes; from here on a note warns of it


def arms_table(study: StudyPlan, on_cpu: Span | None = None) -> Table:
    """Return the table of the arms, with notes on disk, time and memory.

    Args:
        study: the study on the device that it would run on.
        on_cpu: the study's seconds on the CPU where that would be faster, see `faster_on_cpu`.
    """
    rows, failures = [], []
    for arm in study.arms:
        spans = arm_spans(study, arm)
        if isinstance(spans, Failure):
            failures.append(f"{arm.arm.name} cannot run here: {spans.reason.rstrip('.')}.")
        rows.append(
            [
                arm.arm.name,
                f"{arm.trained_parameters:,}",
                f"{arm.all_parameters:,}",
                _megabytes(arm.checkpoint_bytes),
                "cannot run" if isinstance(spans, Failure) else spans[0].text(),
            ]
        )
    failures += [
        f"The features of frozen layers cannot be computed here: {speed.reason.rstrip('.')}."
        for speed in study.probe.frozen.values()
        if isinstance(speed, Failure)
    ]
    runs = len(study.arms) * (study.spec.trials_per_arm + study.spec.confirm.runs)
    notes = [
        f"{plural(len(study.arms), 'arm')}, {plural(runs, 'training')}, {plural(runs * study.spec.epochs, 'epoch')}: "
        f"an arm has {plural(study.spec.trials_per_arm, 'trial')} and "
        f"{plural(study.spec.confirm.runs, 'confirmation run')}{_repeats_text(study.spec)}.",
        f"Checkpoints take up to {_megabytes(sum(arm.checkpoint_bytes for arm in study.arms))} "
        f'(tracking.checkpoints = "{study.spec.tracking.checkpoints}").',
        "Parameters and disk are those of the largest network that the search can choose.",
        _feature_note(study),
        *failures,
        *_time_notes(study),
        *([] if on_cpu is None else [_cpu_note(study, on_cpu)]),
        _memory_note(study),
    ]
    columns = ["arm", "trained parameters", "all parameters", "disk", "run time"]
    return Table(shown_question(study.spec.question), columns, rows, notes)


def _repeats_text(spec: StudySpec) -> str:
    """Return how an arm's trials and confirmation runs are divided among the repeats of its tuning; '' without any."""
    repeats = spec.confirm.repeats
    if repeats == 1:
        return ""
    fewest, most = spec.trials_of(repeats - 1), spec.trials_of(0)
    trials = plural(most, "trial") if fewest == most else f"{fewest} or {most} trials"
    return f", which are {repeats} tunings with {trials} and {plural(spec.confirm.seeds, 'seed')} each"


def _feature_note(study: StudyPlan) -> str:
    needed = feature_bytes(study.spec, study.size, study.conditions.precision)
    if needed == 0:
        return "The study has no cached features."
    if needed <= study.feature_limit:
        return f"Cached features take up to {_megabytes(needed)} (limit: --feature-cache)."
    return (
        f"Cached features would take up to {_megabytes(needed)}, more than --feature-cache allows "
        f"({_megabytes(study.feature_limit)}): the times assume that they are computed in every epoch."
    )


def _time_notes(study: StudyPlan) -> list[str]:
    budget = planned_budget(study.spec)
    once = feature_seconds(study, budget)
    conditions = f"With one worker on {study.conditions.device}, in {study.conditions.precision},"
    total = f"{conditions} the study takes about {study_span(study, budget).text()}"
    if any(arm.cheapest != arm.costliest for arm in study.arms):
        total += ", depending on what its search chooses"
    if once:
        total += f"; {duration_text(once)} of it for computing cached features"
    basis = (
        f"Measured here in {format_duration(study.probe.seconds)}, on random images. Assumed: {RUN_SECONDS} s per run "
        f"for MLflow, Optuna and checkpoints, {STUDY_SECONDS} s for the start and the report. Not included: downloads "
        "and the decoding of images."
    )
    if study.probe.busy_cores >= BUSY_CORES:
        basis += (
            f" Other processes kept {study.probe.busy_cores:.1f} cores busy meanwhile: the estimate can be several "
            "times too high."
        )
    spec = study.spec
    reasons = ["pruned trials end earlier"] if spec.search.pruner != "none" else []
    reasons += ["trainings without progress end earlier"] if spec.may_exceed_zero("patience") else []
    waits = spec.may_exceed_zero("head_warmup_epochs") or spec.may_exceed_zero("unfreeze_every")
    reasons += ["epochs in which only a part learns are shorter"] if waits else []
    reasons += ["the measurement ran without torch.compile"] if spec.compile != "none" else []
    looks = spec.confirm.looks
    if len(looks) > 1:
        first = study_span(study, replace(budget, seeds=looks[0])).text()
        reasons.insert(0, f"a study whose answer is sure at the look at {looks[0]} seeds takes about {first}")
    return [f"{total}.", basis] + ([f"It may take less: {', '.join(reasons)}."] if reasons else [])


def _cpu_note(study: StudyPlan, on_cpu: Span) -> str:
    on_device = study_span(study, planned_budget(study.spec))
    return f"The CPU would be faster: about {on_cpu.text()} instead of {on_device.text()}; use --device cpu."


def _memory_note(study: StudyPlan) -> str:
    needed = memory(study)
    where = "the GPU's memory" if study.conditions.device.type == "cuda" else "memory"
    features = f" and {_gigabytes(needed.features)} cached features" if needed.features else ""
    mapped = ""
    if needed.mapped:
        mapped = f" The images do not fit into memory: {_gigabytes(needed.mapped)} of them are decoded onto the disk."
    return (
        f"A worker needs about {_gigabytes(needed.total)} of {where}, {_gigabytes(needed.images)} of it "
        f"images{features}; free now: {_gigabytes(study.probe.free_bytes)}.{mapped}"
    )


def budget_table(study: StudyPlan, looks_before: int = 0) -> Table:
    """Return the table of the planned budget and smaller ones: their time, and how much less they find.

    Args:
        study: the study on the device that it would run on.
        looks_before: how many looks at this study its store has recorded.
    """
    level = level_of_plan(study.spec, looks_before)
    is_searched = bool(study.spec.search.entries())
    rows = []
    for budget in budgets(planned_budget(study.spec)):
        differences = differences_found(study.spec, study.size.independent_images, budget.seeds, level)
        differences_text = ", ".join(f"{factor} {100 * size:.1f}" for factor, size in differences.items())
        rows.append(
            [
                budget.name,
                str(budget.trials),
                str(budget.confirmations),
                study_span(study, budget).text(),
                chance_words(chance_of_best_tenth(budget.trials // budget.repeats)) if is_searched else "-",
                differences_text or "-",
            ]
        )
    whose = "an arm's" if study.spec.confirm.repeats == 1 else "a repeat's"
    notes = [
        f"Best tenth: the chance that at least one of {whose} trials is among the best tenth of all configurations of "
        "its search. It holds for random trials, and approximately for quasi-random ones."
        if is_searched
        else "Nothing is searched: an arm's trials differ in their seeds alone.",
        _difference_note(study.spec, study.size, looks_before),
        "Fewer epochs would also save time, but favour arms that learn fast, such as feature extraction. How much the "
        "result would change cannot be known beforehand.",
    ]
    metric = "" if study.spec.objective == "accuracy" else " in accuracy"
    columns = ["budget", "trials", "seeds", "time", "best tenth", f"smallest difference{metric} (points)"]
    return Table("What a smaller budget would give up", columns, rows, notes)


def _difference_note(spec: StudySpec, size: DataSize, looks_before: int) -> str:
    if spec.confirm.seeds == 0:
        return "The study has no [confirm] seeds: nothing is confirmed on the test images, and no difference is tested."
    if spec.confirm.repeats > 1:
        few = f"; fewer than {FEWEST_SEEDS} are not compared" if spec.confirm.repeats < FEWEST_SEEDS else ""
        return (
            "Arms are compared paired by repeat: how small a difference is found depends on how much tunings differ, "
            f"which cannot be known beforehand{few}."
        )
    if spec.confirm.seeds < FEWEST_SEEDS:
        return f"Fewer than {FEWEST_SEEDS} seeds cannot tell a difference from chance: no difference is tested."
    if len(spec.combinations()) == 1:
        return "There is one arm: no difference is tested."
    images = plural(size.test, "test image")
    if size.test_groups is not None:
        images = f"{plural(size.test_groups, 'group')} of {images}, right or wrong together"
    fewest = fewest_images(level_of_plan(spec, looks_before))
    if size.independent_images < fewest:
        return f"There are {images}: fewer than {fewest} cannot show a difference in accuracy, however large it is."
    of = "arms" if spec.arms else "levels of a factor"
    level = percent(level_of_plan(spec, looks_before))
    tested = ""
    if spec.confirm.looks:
        tested = f", at the last planned look, which is tested at {level}"
    elif looks_before:
        tested = f", at the {ordinal(looks_before + 1)} look at this study, which is tested at {level}"
    unknown = "" if spec.objective == "accuracy" else f" How much {spec.goal.label} varies is not known beforehand."
    return (
        f"Smallest difference: the smallest difference in accuracy between two {of} that the report would show in 4 of "
        f"5 such studies, corrected for all that is compared{tested}. Assumed: {images}, a standard "
        f"deviation over seeds of {100 * ASSUMED.seed_sd} points, an accuracy of 0.88, and runs that disagree on "
        f"{100 * ASSUMED.same_arm:.0f} % of the images within one arm and on {100 * ASSUMED.other_arm:.0f} % between "
        f"two arms.{unknown}"
    )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e9:.2f} GB"
