"""One trial, top to bottom."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from ablation.base.device import free_memory, is_out_of_memory
from ablation.base.errors import StoreAway, StoreError
from ablation.base.files import temporary_folder
from ablation.base.interrupts import pause_requested, paused_at_checks
from ablation.base.retries import wait_out
from ablation.base.seeds import named_seed, repeat_seed
from ablation.base.text import first_line
from ablation.data.split import split_seed
from ablation.running.outputs import record_best, record_test
from ablation.running.repair import RUN_STATUS
from ablation.running.session import run_files
from ablation.running.workbench import Workbench, make_training, training_settings, training_sources
from ablation.search.claims import (
    Claim,
    end_trial,
    ensure_held,
    has_ended,
    release_and_delete,
    report_epochs,
    should_prune,
    store_spec,
    stored_spec,
)
from ablation.search.patient_storage import ClaimLost
from ablation.search.space import suggest
from ablation.search.studies import TrialEnd, best_trial, is_better, trial_key
from ablation.spec.metrics import EpochMetrics
from ablation.spec.objective import Objective
from ablation.spec.trial import TrialSpec
from ablation.storage.locks import study_lock
from ablation.tracking.trial_run import TrialRun
from ablation.training.checkpoint import (
    CorruptCheckpoint,
    load_resume_checkpoint,
    resume_checkpoints,
    save_resume_checkpoint,
)
from ablation.training.compiler import has_compiled, release_compiled
from ablation.training.loop import Diverged, train
from ablation.training.schedule import is_over
from ablation.training.sources import Source
from ablation.training.state import Training

CHECKPOINT_SECONDS = 15  # after a crash, at most this much work or one epoch is repeated
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended; `lost` means that another process has resumed it.

    `is_delivered`: whether MLflow has received everything. The rest waits in the trial's folder.
    """

    state: TrialEnd | Literal["lost"]
    value: float | None
    reason: str = ""
    is_delivered: bool = True


def run_trial(
    workbench: Workbench, claim: Claim, spec: TrialSpec, on_epoch: Callable[[TrialSpec, EpochMetrics], None]
) -> Outcome:
    """Train one trial, from its resume checkpoint if it has one, and record its results.

    Divergence and lack of device memory end the trial as failed. After any other exception the trial can be resumed:
    its run is marked SCHEDULED and its lock is released.

    Args:
        workbench: what the study's trials share.
        claim: the trial, which belongs to this process.
        spec: the trial's parameters.
        on_epoch: called after every epoch.
    """
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    session = workbench.session
    run = TrialRun(session.tracker, claim.key, claim.folder, claim.owner, partial(ensure_held, claim))
    try:
        run.start(spec, session.spec, claim.arm, workbench.device.type, run_files(session), workbench.environment)
        if claim.earlier is not None and not claim.earlier.intermediate_values:  # no epoch of it ended
            outcome = Outcome("failed", None)  # or whatever it was before
        elif claim.superseded:
            assert claim.best is not None
            outcome = Outcome("pruned", None, f"superseded: the arm's best trial is #{claim.best.number} now")
        else:
            with run.system_metrics() if session.options.system_metrics else nullcontext():
                outcome = _train_and_record(workbench, claim, spec, run, on_epoch)
        outcome = _as_before(claim, spec, outcome)
        wait_out(lambda: _end_trial(workbench, claim, run, outcome), workbench.patience)
        is_delivered = run.complete()
        if is_delivered:  # else the folder is needed, see `clean_up_ended_trials`
            with suppress(StoreAway):
                is_delivered = release_and_delete(claim)
        return replace(outcome, is_delivered=is_delivered)
    except ClaimLost as lost:
        return Outcome("lost", None, str(lost))
    except BaseException:
        # What cannot be written now is written when the trial is resumed.
        with suppress(StoreAway, StoreError, ClaimLost):
            ensure_held(claim)
            if not has_ended(claim):
                run.pause()
        raise
    finally:
        claim.release()


def _as_before(claim: Claim, spec: TrialSpec, outcome: Outcome) -> Outcome:
    """Return how a trial ended; of one that is trained again, its first end stands, on whatever machine it is now."""
    if claim.earlier is None or claim.ended is None:
        return outcome
    value = claim.earlier.value if claim.ended == "finished" else None
    if outcome.value != value:
        logger.warning("%s #%s: trained again, its value is %s and was %s", spec.arm, spec.trial, outcome.value, value)
    return Outcome(claim.ended, value, claim.earlier.user_attrs.get("reason", ""))


def _end_trial(workbench: Workbench, claim: Claim, run: TrialRun, outcome: Outcome) -> None:
    """Close the run, then the Optuna trial: after a crash in between the trial is resumed and ends again.

    The other order could leave a run open for ever.

    Raises:
        StoreAway: Optuna's database does not answer; call this again.
        ClaimLost: see `ensure_held`.
    """
    assert outcome.state != "lost"
    ensure_held(claim)
    study = workbench.session.spec
    only_best = study.tracking.checkpoints == "best_per_arm"
    # Under the study's lock, else two trials of an arm that end at once could both be its best.
    with claim.locks.exclusive(study_lock(study.name)) if only_best else nullcontext():
        if only_best and outcome.value is not None:
            _keep_best(claim, run, outcome.value, study.goal)
        run.end(RUN_STATUS[outcome.state], outcome.reason)
        end_trial(claim, outcome.state, outcome.value, outcome.reason, run.run_id)


def _keep_best(claim: Claim, run: TrialRun, value: float, goal: Objective) -> None:
    """Delete the checkpoint of this trial or of the arm's best trial so far, whichever is worse."""
    leader = best_trial(claim.study, claim.trial.user_attrs.get("confirms"))
    if leader is not None and leader.number != claim.trial.number:
        is_best = is_better(value, claim.trial.number, leader, goal)
        run.delete_checkpoint(trial_key(claim.study, leader.number) if is_best else claim.key)


def find_or_create_spec(workbench: Workbench, claim: Claim) -> TrialSpec:
    """Return the trial's parameters: the study's settings and Optuna's choices, as they were when the trial began.

    A trial that is resumed with its weights in another place, or on another device, keeps its parameters. A
    confirmation run has the parameters of the trial that it confirms, with its own seed.
    """
    stored = stored_spec(claim)
    if stored is not None:
        return TrialSpec.from_params(stored)
    spec = _new_spec(workbench, claim) if claim.best is None else _confirming_spec(workbench, claim)
    store_spec(claim, spec.to_params())
    return spec


def _confirming_spec(workbench: Workbench, claim: Claim) -> TrialSpec:
    assert claim.best is not None
    number, study = claim.trial.number, workbench.session.spec
    seed = repeat_seed(study.seed, study.repeat_of(claim.best.number))
    changes = {
        "trial": number,
        "confirms": claim.best.number,
        # The arm is part of it, because arms are compared as if their seeds were independent.
        "seed": named_seed(seed, "confirmation", claim.arm.name, number),
        "threads": workbench.threads,
    }
    return TrialSpec.from_params(claim.best.user_attrs["spec"]).model_copy(update=changes)


def _new_spec(workbench: Workbench, claim: Claim) -> TrialSpec:
    session, number = workbench.session, claim.trial.number
    study = session.spec
    repeat = study.repeat_of(number)
    seed = repeat_seed(study.seed, repeat)
    return TrialSpec(
        study=study.name,
        arm=claim.arm.name,
        trial=number,
        repeat=repeat if study.confirm.repeats > 1 else None,
        known=study.known_name(number),
        seed=named_seed(seed, "trial", study.place_of(number)),
        epochs=study.epochs,
        objective=study.objective,
        precision=session.precision,
        compile=study.compile,
        deterministic=study.deterministic,
        threads=workbench.threads,
        backbone=study.backbone.name,
        backbone_module=study.backbone.module,
        weights=study.backbone.weights,
        weights_digest=session.weights.digest if session.weights else None,
        missing_layers=study.backbone.missing_layers,
        data_source=study.data.source,
        data_digest=session.images.digest,
        data_seed=split_seed(seed),
        data_limit=study.data.limit,
        val_fraction=study.data.val_fraction,
        image_size=study.data.image_size,
        num_classes=len(session.images.classes),
        **suggest(claim.trial, study, claim.arm),
    )


def _train_and_record(
    workbench: Workbench,
    claim: Claim,
    spec: TrialSpec,
    run: TrialRun,
    on_epoch: Callable[[TrialSpec, EpochMetrics], None],
    *,
    may_capture: bool = True,
) -> Outcome:
    training: Training | None = None
    epochs: Iterator[EpochMetrics] | None = None
    val_source: Source | None = None
    # torch.compile's modes with CUDA graphs keep the memory of those of earlier trials.
    had_compiled = has_compiled() and spec.compile not in ("none", "default")
    prunes = claim.ended == "pruned" or (workbench.session.spec.search.pruner != "none" and spec.confirms is None)
    try:
        training = make_training(spec, workbench)
        training.may_capture = may_capture
        _restore(training, claim, run, workbench)
        saved_at = time.monotonic()
        with suppress(StoreAway):
            _log(claim, run, training)  # a crash between saving and logging must not lose an epoch
        if training.history and prunes and _is_pruned(claim, spec, training):
            return _pruned(spec, training)
        try:
            # Features are computed here, which nothing waits for.
            train_source, val_source = training_sources(training, spec, workbench)
            epochs = train(training, train_source, val_source, training_settings(spec))
            del train_source  # it ends with the epochs
            with paused_at_checks():
                for metrics in epochs:
                    on_epoch(spec, metrics)
                    pruned = prunes and _is_pruned(claim, spec, training)
                    ends = pruned or is_over(training.history, training_settings(spec))
                    if ends or pause_requested() or time.monotonic() - saved_at >= CHECKPOINT_SECONDS:
                        # Epochs are logged only after they are saved: none is logged twice with other values.
                        _save(workbench, claim, run, training)
                        with suppress(StoreAway):
                            _log(claim, run, training)
                        saved_at = time.monotonic()
                    if pruned:
                        return _pruned(spec, training)
                    if pause_requested():
                        break  # the end of the context raises
        except Diverged as error:
            # Nothing is saved: resumed from the last checkpoint, the trial diverges again.
            wait_out(partial(_log, claim, run, training), workbench.patience)
            return Outcome("failed", None, str(error))
        wait_out(partial(_log, claim, run, training), workbench.patience)
        record_best(workbench, claim, spec, run, training, val_source)
        if spec.confirms is not None:
            record_test(workbench, claim, spec, run, training, val_source)
        return Outcome("finished", training.best.value(spec.goal))
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = f"out of memory on {workbench.device}: {first_line(error)}"
    # Outside the handler, where the traceback no longer keeps the frames with their tensors.
    had_graph = training is not None and training.has_graph
    training = epochs = val_source = None  # a generator that is not at its end keeps its network
    had_features = workbench.features.release_device()
    release_compiled()
    free_memory(workbench.device)
    wait_out(lambda: ensure_held(claim), workbench.patience)
    if not had_features and (had_graph or had_compiled):
        how = "without CUDA graphs, which is slower" if had_graph else "after earlier trials' graphs were released"
        logger.warning("%s #%s: %s; resumed %s", spec.arm, spec.trial, reason, how)
    if had_features or had_graph or had_compiled:  # without what is released the trial may fit
        return _train_and_record(workbench, claim, spec, run, on_epoch, may_capture=may_capture and had_features)
    return Outcome("failed", None, reason)


def _save(workbench: Workbench, claim: Claim, run: TrialRun, training: Training) -> None:
    """Write a resume checkpoint, and upload it if another machine may take the trial over."""
    with suppress(StoreAway):
        ensure_held(claim)  # a process that was frozen must not write beside its successor
    path = save_resume_checkpoint(claim.folder, len(training.history), training.state_dict())
    if workbench.session.tracker.shares_checkpoints:
        run.upload_resume_checkpoint(path)


def _log(claim: Claim, run: TrialRun, training: Training) -> None:
    """Log epochs to MLflow and report them to Optuna.

    Raises:
        StoreAway: Optuna's database does not answer; the epochs of a later call include these.
        ClaimLost: see `ensure_held`.
    """
    ensure_held(claim)
    run.log_epochs(training.history)
    report_epochs(claim, training.history, training.objective)


def _is_pruned(claim: Claim, spec: TrialSpec, training: Training) -> bool:
    """Return whether the study's pruner gives the trial up; False while the database does not answer."""
    if claim.earlier is not None:
        return claim.ended == "pruned" and len(training.history) >= len(claim.earlier.intermediate_values)
    with suppress(StoreAway):
        if not is_over(training.history, training_settings(spec)):
            ensure_held(claim)
            report_epochs(claim, training.history, training.objective)
            return should_prune(claim)
    return False


def _pruned(spec: TrialSpec, training: Training) -> Outcome:
    return Outcome("pruned", None, f"pruned after epoch {len(training.history)} of {spec.epochs}")


def _restore(training: Training, claim: Claim, run: TrialRun, workbench: Workbench) -> None:
    """Load the last resume checkpoint that can be read, of this machine or of another."""
    with temporary_folder() as folder:
        for path in _available_checkpoints(claim, run, workbench, folder):
            try:
                training.load_state_dict(load_resume_checkpoint(path, workbench.device))
            except CorruptCheckpoint as error:
                logger.warning("%s; resuming from the checkpoint before it, or from the start", error)
                path.unlink()
                continue
            break
    if not training.devices:
        training.devices.append((1, workbench.device.type))
    elif training.devices[-1][1] != workbench.device.type:
        training.devices.append((len(training.history) + 1, workbench.device.type))
    if len(training.devices) > 1:
        run.log_devices(", ".join(f"{device} from epoch {epoch}" for epoch, device in training.devices))


def _available_checkpoints(claim: Claim, run: TrialRun, workbench: Workbench, folder: Path) -> Iterator[Path]:
    local_checkpoints = resume_checkpoints(claim.folder)
    if workbench.session.tracker.shares_checkpoints and claim.resumed:
        newest = local_checkpoints[0].name if local_checkpoints else ""
        yield from run.download_resume_checkpoints(folder, after=newest)
    yield from local_checkpoints
