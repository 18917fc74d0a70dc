"""The tables of `--plan`."""

from ablation.base.text import Table, count_arms, format_duration
from ablation.data.reading import DataSize
from ablation.planning.forecast import (
    ASSUMED,
    RUN_SECONDS,
    STUDY_SECONDS,
    StudyPlan,
    arm_spans,
    budgets,
    chance_of_best_tenth,
    differences_found,
    duration_text,
    feature_seconds,
    memory,
    planned_budget,
    study_span,
)
from ablation.planning.probe import Failure
from ablation.planning.workload import feature_bytes
from ablation.spec.study import StudySpec

BUSY_CORES = 0.3  # of other processes, which are worth a word


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
        total += f"; {duration_text(once)} of it for what frozen layers compute"
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
