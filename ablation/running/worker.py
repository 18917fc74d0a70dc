"""A worker's loop: one trial after another until none is left."""

import os
import time
from contextlib import suppress
from functools import partial

from ablation.base.command_line import WORKER_VARIABLE
from ablation.base.core_use import BusyCores
from ablation.base.device import select_device
from ablation.base.errors import StoreAway, StoreError
from ablation.base.interrupts import stop_with_parent
from ablation.base.retries import wait_out
from ablation.base.text import format_params
from ablation.running.looks import decide_due_look
from ablation.running.mlflow_pages import write_views
from ablation.running.options import RunOptions
from ablation.running.session import Session, deliver_and_reconcile, open_session, show_progress
from ablation.running.study_view import StudyView
from ablation.running.trial import find_or_create_spec, run_trial
from ablation.running.workbench import set_up_workbench
from ablation.search.claims import Claim, claim_trial
from ablation.search.identity import check_not_replaced
from ablation.search.patient_storage import RecordMissing
from ablation.search.studies import all_ended, has_confirmations, superseded_keys
from ablation.spec.study import StudySpec
from ablation.spec.trial import TrialSpec
from ablation.storage.store import Store
from ablation.training.feature_cache import FeatureCache, pretrained_network

WAIT_SECONDS = 1  # between two searches for a trial whose worker has died


def run_worker(spec: StudySpec, store: Store, options: RunOptions) -> None:
    """Work on a study until no trial is left, for the supervising process that started this one."""
    stop_with_parent()
    work_until_done(open_session(spec, store, options, is_worker=True))


def work_until_done(session: Session) -> None:
    """Run one trial after another until every arm has its budget and all trials have ended.

    While no trial is free but other workers are busy, this worker waits: one of them may die, and its trial be resumed.

    Raises:
        InputError: the images do not fit into the device's memory, or another study of the same name has begun.
        StoreError: a store can no longer be used.
    """
    spec = session.spec
    device = select_device(session.options.device_name)
    cores = BusyCores("this process gets") if device.type == "cpu" else None
    with StudyView(spec, cores) as progress:
        features = FeatureCache(
            session.store.work_root / "features",
            session.options.feature_limit,
            lambda: pretrained_network(spec, session.weights, device),
            progress.show_computing,
            int(os.environ.get(WORKER_VARIABLE, "1")),
        )
        workbench = set_up_workbench(session, device, features)
        wait = partial(wait_out, patience=workbench.patience, say=progress.show_waiting)
        waits_for_mlflow = False
        shows_confirmations: bool | None = None

        def claim_next() -> tuple[Claim, TrialSpec] | None:
            """Claim a trial, with its parameters; None if none is free."""
            try:
                show_progress(session, progress)  # other processes may share the work
                claim = claim_trial(spec, session.store, session.locks, session.studies, session.content)
                return None if claim is None else (claim, find_or_create_spec(workbench, claim))
            except StoreAway:
                session.locks.release_all()  # a trial's lock may have been acquired already
                raise
            except RecordMissing:
                check_not_replaced(session.store, spec.name, session.content)
                raise

        while True:
            if waits_for_mlflow:
                with suppress(StoreAway):
                    deliver_and_reconcile(session)
                    waits_for_mlflow = False
            claimed = wait(claim_next)
            if claimed is None:
                if wait(lambda: decide_due_look(session)):
                    continue
                if wait(lambda: all_ended(spec, session.studies)):
                    return
                progress.show_waiting("waiting for the trials of other workers")
                time.sleep(WAIT_SECONDS)
                continue
            claim, trial_spec = claimed
            if claim.best is not None and not waits_for_mlflow:
                with suppress(StoreAway, StoreError):  # tried again with the next one
                    shows_confirmations = show_confirmations(session, shows_confirmations)
            tuned = claim.trial if claim.best is None else claim.best
            known = f"(known: {trial_spec.known})" if trial_spec.known else ""
            notes = [format_params(tuned.params), known, "(resumed)" if claim.resumed else ""]
            progress.show_trial_start(trial_spec, " ".join(filter(None, notes)))
            outcome = run_trial(workbench, claim, trial_spec, progress.show_epoch)
            progress.show_trial_end(trial_spec, outcome.state, outcome.value, outcome.reason)
            waits_for_mlflow = waits_for_mlflow or not outcome.is_delivered


def show_confirmations(session: Session, shown: bool | None) -> bool:
    """Let MLflow's views show confirmation runs once one has finished, and none of an earlier best configuration.

    Args:
        session: the study's.
        shown: what an earlier call returned, which is not written again; None before.

    Returns:
        Whether they show confirmation runs.

    Raises:
        StoreAway: a server does not answer.
        StoreError: a store cannot be used.
    """
    has_finished = has_confirmations(session.spec, session.studies)
    if has_finished != shown:
        session.tracker.mark_superseded(superseded_keys(session.spec, session.studies))
        write_views(session.tracker, session.spec, has_confirmations=has_finished)
    return has_finished
