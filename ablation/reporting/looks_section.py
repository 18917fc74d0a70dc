"""Looks at a study's answer: recorded when its results are read for a report, and the section that lists them."""

from dataclasses import replace

from ablation.analysis.boundaries import planned_levels, unplanned_level
from ablation.analysis.looks import PastLook, past_looks, percent, this_look
from ablation.analysis.results import StudyResult, read_results
from ablation.base.errors import StoreError
from ablation.base.text import Table, plural
from ablation.reporting.content import Block, Items
from ablation.spec.looks import decision_texts
from ablation.storage.store import Store
from ablation.tracking.looks import log_look


def look_at(store: Store, name: str) -> StudyResult:
    """Read a study for a report, and record that its answer was looked at, in its summary run.

    The look is recorded before anybody sees it. One that tests nothing, or of data that were looked at before, is none.
    A store that this user cannot write keeps no record, nor does a server that refuses it.

    Raises:
        as `read_results`.
    """
    result = read_results(store, name)
    look = this_look(result)
    if look is None or store.is_read_only or look.name in result.tags:
        return result
    try:
        return replace(result, tags=log_look(store, result.summary_run_id, look.name, look.stored()))
    except StoreError:
        return result


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
    texts = decision_texts(confirm, result.decisions)
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
            f"{look.time:%Y-%m-%d %H:%M} UTC",
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
    if not counts:
        return "-"
    return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
