"""Looks at a study's answer, as tags of its summary run: reports that were made, and what planned looks decided."""

import json
from collections.abc import Iterable, Mapping

from ablation.spec.looks import Decision, decision_from
from ablation.spec.tables import Confirm
from ablation.storage.store import Store
from ablation.tracking.client import reading_client
from ablation.tracking.reading import RunRecord

LOOK_TAG = "ablation.look"  # with a digest behind it: when somebody looked at the answer, and at what
DECISION_TAG = "ablation.decided"  # with a number of seeds behind it: what the planned look decided
TAG_LIMIT = 5_000  # characters; MLflow cuts what is longer, older versions from here on


def decision_tags(decisions: list[Decision]) -> dict[str, str]:
    """Return the tags that hold what planned looks decided.

    A text that stops very many arms has further tags, which come before its first: a process that dies meanwhile has
    decided nothing.
    """
    tags = {}
    for decision in decisions:
        name, text = f"{DECISION_TAG}.{decision.seeds}", json.dumps(decision.stored())
        for number, start in enumerate(range(TAG_LIMIT, len(text), TAG_LIMIT), start=2):
            tags[f"{name}.{number}"] = text[start : start + TAG_LIMIT]
        tags[name] = text[:TAG_LIMIT]
    return tags


def decisions_in(confirm: Confirm, tags: Mapping[str, str]) -> list[Decision]:
    """Return what the planned looks so far decided, from the tags of the summary run, up to one that is damaged."""
    decisions: list[Decision] = []
    for seeds in confirm.looks:
        try:
            decisions.append(decision_from(json.loads(_whole_text(tags, f"{DECISION_TAG}.{seeds}"))))
        except (ValueError, KeyError, TypeError):
            break
    return decisions


def _whole_text(tags: Mapping[str, str], name: str) -> str:
    """Return the text of a tag and its further ones."""
    parts = [tags[name]]
    while (further := f"{name}.{len(parts) + 1}") in tags:
        parts.append(tags[further])
    return "".join(parts)


def looks_of(summaries: Iterable[RunRecord]) -> dict[str, str]:
    """Return the tags of looks that summary runs have; those of deleted ones count as before."""
    return {
        name: value for summary in summaries for name, value in summary.tags.items() if name.startswith(f"{LOOK_TAG}.")
    }


def log_look(store: Store, run_id: str, name: str, value: str) -> dict[str, str]:
    """Tag the summary run with a look at the study, unless it has this tag; return all its tags.

    Each look has a tag of its own, so that of two who look at once neither overwrites the other's.

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used, or the run was deleted.
    """
    client = reading_client(store)
    if name not in client.get_run(run_id).data.tags:
        client.set_tag(run_id, name, value)
    return dict(client.get_run(run_id).data.tags)
