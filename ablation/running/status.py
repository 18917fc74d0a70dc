"""What a store has of a study, for --status: its arms, their runs by state, what trains now."""

import difflib
from contextlib import suppress
from dataclasses import replace

from ablation.base.errors import InputError, NoSuchStudy, StoreAway, StoreError
from ablation.base.text import Table, nearest
from ablation.running.repair import logged_study, runs_without_trials, stored_differences
from ablation.running.running_trials import RunningTrial, running_trials
from ablation.search.status import count_runs, status_table, trial_records
from ablation.search.studies import ArmStudies, open_storage, stored_decisions, stored_studies, study_arms
from ablation.spec.files import study_files
from ablation.spec.looks import decision_texts, most_seeds_of_arms
from ablation.spec.objective import OBJECTIVES
from ablation.spec.tables import Confirm
from ablation.storage.locks import open_locks
from ablation.storage.store import Store
from ablation.tracking.reading import unreported_texts
from ablation.tracking.registry import champion_texts


def read_status(study: str, store: Store) -> tuple[Table, list[RunningTrial]]:
    """Return the table of arms of --status, and the trials that train now.

    Raises:
        NoSuchStudy: the store has no study of this name.
        InputError: Optuna's database has lost it.
        StoreAway: a server does not answer.
        StoreError: a store cannot be used.
    """
    store.check_reachable()
    storage = open_storage(store)
    studies = study_arms(storage, study) if storage else ArmStudies({}, {})
    if not studies.tuning:
        with suppress(StoreAway, StoreError):
            if (record := logged_study(store, study)) is not None:
                raise InputError(f"{runs_without_trials(study, record)}: --repair tells it of them")
        names = (stored_studies(storage) if storage else []) or _similar_files(study)
        raise NoSuchStudy(f"{store.root}: has no study {study!r}{nearest(study, names) if names else ''}")
    contents = [arm.user_attrs.get("content", {}) for arm in studies.tuning.values()]
    budget = max(content.get("trials_per_arm", 0) for content in contents)
    confirm = Confirm.model_validate(contents[0].get("confirm", {}))
    decisions = [decision for arm in studies.tuning.values() for decision in stored_decisions(arm)]
    goal = OBJECTIVES[contents[0].get("objective", "accuracy")]
    trials = trial_records(studies, open_locks(store.optuna_url))
    seeds = most_seeds_of_arms(confirm, trials, decisions)
    table = status_table(study, trials, budget, seeds, confirm.repeats, goal)
    ended, total = count_runs(trials, budget, seeds, confirm.repeats)
    looks = decision_texts(confirm, decisions, has_ended=ended == total)
    texts = [
        *champion_texts(store, study, is_complete=ended == total),
        *(unreported_texts(store, study) if ended == total else []),
    ]
    arms = replace(table, notes=[*table.notes, *looks, *texts, *stored_differences(store, study)])
    return arms, running_trials(study, store, studies, trials)


def _similar_files(study: str) -> list[str]:
    """Return the names of study files that a study's name, or its demo's, resembles; none if it is one of them."""
    name, files = study.removesuffix("-demo"), study_files()
    return [] if name in files else difflib.get_close_matches(name, files)
