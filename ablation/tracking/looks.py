"""Looks at a study's answer, as tags of its summary run: reports that were made, and what planned looks decided."""

import json
from collections.abc import Mapping

from ablation.spec.looks import Decision, decision_from
from ablation.spec.tables import Confirm
from ablation.storage.store import Store
from ablation.tracking.client import reading_client

LOOK_TAG = "ablation.look"  # with a digest behind it: when somebody looked at the answer, and at what
DECISION_TAG = "ablation.decided"  # with a number of seeds behind it: what the planned look decided


def decision_tags(decisions: list[Decision]) -> dict[str, str]:
    """Return the tags that hold what planned looks decided."""
    return {f"{DECISION_TAG}.{decision.seeds}": json.dumps(decision.stored()) for decision in decisions}


def decisions_in(confirm: Confirm, tags: Mapping[str, str]) -> list[Decision]:
    """Return what the planned looks so far decided, from the tags of the summary run, up to one that is damaged."""
    decisions: list[Decision] = []
    for seeds in confirm.looks:
        try:
            decisions.append(decision_from(json.loads(tags[f"{DECISION_TAG}.{seeds}"])))
        except (ValueError, KeyError, TypeError):
            break
    return decisions


def log_look(store: Store, run_id: str, name: str, value: str) -> dict[str, str]:
    """Tag the summary run with a look at the study, unless it has this tag; return all its tags.

    Each look has a tag of its own, so that of two who look at once neither overwrites the other's.

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    client = reading_client(store)
    if name not in client.get_run(run_id).data.tags:
        client.set_tag(run_id, name, value)
    return dict(client.get_run(run_id).data.tags)
