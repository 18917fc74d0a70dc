"""Studies for tests, and the steps of a worker on their trials."""

from pathlib import Path
from typing import Any

import optuna

from ablation.search.claims import Claim, claim_trial, end_trial, release_and_delete
from ablation.search.space import suggest
from ablation.search.status import TrialRecord, trial_records
from ablation.search.studies import ArmStudies, TrialEnd, create_arms, open_storage
from ablation.spec.reading import load_study, parse_override
from ablation.spec.study import StudySpec
from ablation.storage.locks import Locks, open_locks
from ablation.storage.store import Store

CONTENT = {"made": "by a test", "trials_per_arm": 1}
STUDIES = Path(__file__).parents[2] / "studies"


def study(name: str, *settings: str) -> StudySpec:
    """Return one of the project's studies with other settings; without confirmation unless they ask for it."""
    overrides = [parse_override(setting) for setting in ("confirm.seeds=0", *settings)]
    return load_study(STUDIES / f"{name}.toml", overrides=overrides)


def begin(spec: StudySpec, store: Store) -> ArmStudies:
    return create_arms(open_storage(store, create=True), spec, CONTENT, "an experiment")


def claim_next(spec: StudySpec, store: Store, studies: ArmStudies, locks: Locks | None = None) -> Any:
    return claim_trial(spec, store, locks or open_locks(store.optuna_url), studies, CONTENT)


def end(claim: Claim, state: TrialEnd, value: float | None, reason: str = "") -> None:
    end_trial(claim, state, value, reason, None)
    release_and_delete(claim)


def records(studies: ArmStudies, store: Store) -> list[TrialRecord]:
    return trial_records(studies, open_locks(store.optuna_url))["block1"]


def claim_all(spec: StudySpec, store: Store) -> list[Claim]:
    studies = begin(spec, store)
    claims = []
    while (claim := claim_next(spec, store, studies)) is not None:
        suggest(claim.trial, spec, claim.arm)
        claims.append(claim)
        end(claim, "finished", 0.5)
    return claims


ONE_ARM = ('factors={truncate_at=["block1"]}', "search={lr={low=1e-4,high=1e-1}}")
ONE_CONFIRMED = (*ONE_ARM, "trials_per_arm=2", "confirm.seeds=2")
TWO_ARMS = (*ONE_CONFIRMED, 'factors={truncate_at=["block1","block2"]}')


def confirmations(study: optuna.Study) -> list[tuple[int, int, str]]:
    return [(trial.number, trial.user_attrs["confirms"], trial.state.name) for trial in study.trials]
