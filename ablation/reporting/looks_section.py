"""Looks at a study's answer: recorded when a report is made, and the section that lists them."""

import re
from dataclasses import replace

from ablation.analysis.boundaries import planned_levels, unplanned_level
from ablation.analysis.looks import PastLook, past_looks, this_look
from ablation.analysis.results import StudyResult
from ablation.analysis.wording import percent
from ablation.base.errors import StoreError
from ablation.base.text import Table, plural
from ablation.reporting.content import Block, Items, seeds_text
from ablation.spec.looks import decision_texts
from ablation.storage.store import Store
from ablation.tracking.looks import log_look

REFUSALS = ("PERMISSION_DENIED", "UNAUTHENTICATED")  # MLflow's codes
# The databases' words, which MLflow passes on with a code of no meaning.
READ_ONLY = re.compile("InsufficientPrivilege|ReadOnlySqlTransaction|readonly database")


def record_look(store: Store, result: StudyResult) -> StudyResult:
    """Record in a study's summary run that somebody looks at its answer; return the results with this record.

    It is called when nothing can refuse the report any more, and before anybody sees it. A look that tests nothing, or
    at data that were looked at before, is none. A store that this user may not write keeps no record.

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used, or the summary run was deleted a moment ago: nothing is shown then.
    """
    look = this_look(result)
    if look is None or store.is_read_only or look.name in result.tags:
        return result
    try:
        recorded = log_look(store, result.summary_run_id, look.name, look.stored())
    except StoreError as error:
        if error.code in REFUSALS or READ_ONLY.search(error.reason):
            return result
        raise
    return replace(result, tags={**result.tags, **recorded})


def look_blocks(result: StudyResult) -> list[Block]:
    """Return the planned looks with their levels, and the reports that were made; none of a first, unplanned look."""
    past = past_looks(result.tags)
    if result.spec.confirm.looks:
        return [_planned_table(result), *([_past_table(result, past)] if past else [])]
    return [_past_table(result, past), Items([UNPLANNED])] if len(past) > 1 else []


UNPLANNED = (
    "Each look at other data, or at other comparisons, is another chance of a false declaration. The first was tested "
    "at 5 %; without planned looks ([confirm] looks), the k-th is tested at 5 % / 2^k: its intervals are wider, and "
    "its p-values are multiplied so that 0.05 remains the limit. Reading the same data again is no look. A report of "
    "an unfinished study is one if it tests something."
)


def _planned_table(result: StudyResult) -> Table:
    confirm = result.spec.confirm
    texts = decision_texts(confirm, result.decisions, has_ended=result.look == len(confirm.looks) - 1)
    levels = planned_levels(confirm.looks)
    rows = [[str(seeds), percent(level)] for seeds, level in zip(confirm.looks, levels, strict=True)]
    held_back = sum(len(arm.held_back) for arm in result.arms)
    notes = [
        *texts,
        "The levels spend 5 % over all looks (O'Brien and Fleming's boundaries by the spending function of Lan and "
        "DeMets, 1983). The simultaneous intervals of differences hold at all looks together in 95 of 100 studies; "
        "those of arms and levels are 95 % each. P-values are multiplied so that 0.05 remains the limit.",
    ]
    if held_back:
        notes.append(
            f"Held back: {plural(held_back, 'confirmation run')} beyond the last complete look, which no figure of "
            "this report uses."
        )
    return Table("Planned", ["seeds", "level"], rows, notes)


def _past_table(result: StudyResult, past: list[PastLook]) -> Table:
    rows = [
        [
            str(number),
            f"{look.time:%Y-%m-%d %H:%M} UTC" if look.seeds else "-",  # edited by hand
            _range(look.seeds),
            _range(look.trials),
            ", ".join(f"{factor}: {level}" for factor, level in look.control.items()) or look.compare or "-",
            *([] if result.spec.confirm.looks else [percent(unplanned_level(number))]),
        ]
        for number, look in enumerate(past, start=1)
    ]
    columns = ["look", "first report", "seeds per arm", "trials per arm", "compared with"]
    return Table("Reports", [*columns, *([] if result.spec.confirm.looks else ["level"])], rows)


def _range(counts: tuple[int, ...]) -> str:
    return seeds_text((min(counts), max(counts))) if counts else "-"
