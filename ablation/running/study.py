"""A study from its first trial to its report and champion."""

import shlex
import sys
from contextlib import suppress
from dataclasses import replace
from typing import get_args

from ablation import __version__
from ablation.analysis.results import NothingFinished
from ablation.base.errors import StoreAway, StoreError
from ablation.base.terminal import say, show_table
from ablation.base.text import plural
from ablation.data.images import normalisation_for
from ablation.data.samples import draw_samples, samples_file
from ablation.reporting.report import show_report, write_report
from ablation.running.champion import keep_examples, register_champion
from ablation.running.cut_forecast import show_forecast
from ablation.running.options import RunOptions, worker_devices
from ablation.running.session import Session, deliver_and_reconcile, open_session, run_files, summary_key
from ablation.running.supervisor import supervise_workers
from ablation.running.worker import work_until_done
from ablation.search.status import status_table, trial_records
from ablation.search.studies import arm_key
from ablation.spec.architectures import ARCHITECTURES, block_names, is_custom
from ablation.spec.parameters import Augmentation
from ablation.spec.study import StudySpec
from ablation.storage.locks import study_lock
from ablation.storage.store import Store
from ablation.tracking.client import SAMPLES_FILE, ui_address, ui_command


def run_study(spec: StudySpec, store: Store, options: RunOptions) -> None:
    """Tune every arm up to its budget, confirm its best configuration, and print the answer.

    Raises:
        InputError: the study, its data or its weights cannot be used as they are.
        StoreError: a store can no longer be used, or a worker failed.
    """
    session = open_session(spec, store, options)
    devices = worker_devices(options)
    begin_summary(session)
    try:
        show_forecast(session, devices[0])
        if len(devices) == 1:
            work_until_done(session)
        else:
            session = replace(session, images=keep_examples(session.images))  # each worker reads its own
            supervise_workers(session, devices)
        conclude_study(session)
    except BaseException as error:
        with suppress(StoreAway, StoreError):
            session.tracker.end_summary(summary_key(session), "SCHEDULED")
            if isinstance(error, KeyboardInterrupt):
                deliver_and_reconcile(session)
        raise
    say(f"\nTo see it in the MLflow UI:\n    {ui_command(store)}")
    if store.has_own_tracking:
        address = ui_address(session.tracker.experiment_id, has_confirmations=spec.confirm.seeds > 0)
        say(f"    then open {address}")


def begin_summary(session: Session) -> None:
    """Log what the report needs to know of the study besides its runs."""
    spec, images, split = session.spec, session.images, session.split
    backbone = spec.backbone.name
    custom_backbone = {  # so that the report does not need its code
        "blocks": len(block_names(backbone)),
        "has_batch_norm": ARCHITECTURES[backbone].has_batch_norm,
    }
    about = {
        "version": __version__,
        "own_backbone": custom_backbone if is_custom(backbone) else None,
        "spec": spec.model_dump(mode="json"),
        "command": shlex.join(["python", "-m", "ablation.study", *sys.argv[1:]]),
        "classes": images.classes,
        "data_digest": images.digest,
        "weights_digest": session.weights.digest if session.weights else None,
        "train_images": len(split.train_N),
        "val_images": len(split.val_N),
        "test_images": len(images.test_labels_N),
        "arm_keys": [arm_key(study) for study in session.studies.all()],
    }
    possible = {kind for levels in spec.combinations() for kind in spec.possible("augmentation", levels)}
    augmentations = [kind for kind in get_args(Augmentation) if kind in possible - {"none"}]  # each includes the last
    normalisation = normalisation_for(session.weights, spec.data.image_size)
    samples = draw_samples(images, split.train_N, normalisation, augmentations, spec.seed)
    files = {name: text.encode() for name, text in run_files(session).items()}
    files[SAMPLES_FILE] = samples_file(samples)
    with session.locks.exclusive(study_lock(spec.name)):  # two processes at once must not both create the run
        session.tracker.begin_summary(summary_key(session), spec.name, about, files)


def conclude_study(session: Session) -> None:
    """Write and print the report, and register the champion.

    Raises:
        StoreError: MLflow does not answer; the results that it has not received wait in the store.
    """
    spec, store = session.spec, session.store
    waiting_trials = deliver_and_reconcile(session)
    try:
        with session.locks.exclusive(study_lock(spec.name)):  # of two processes at once, the later one knows more
            report = write_report(store, spec.name)
            register_champion(store, report.result, session.images)
            session.tracker.describe(f"**{report.answer}**\n\n{spec.question}")  # the UI shows the first line
            session.tracker.end_summary(summary_key(session), "FINISHED")
    except NothingFinished as nothing:
        with suppress(StoreAway):
            session.tracker.end_summary(summary_key(session), "FAILED")
        show_arms(session)
        say(f"There is nothing to report: {nothing}.")
        return
    except StoreAway as away:
        show_arms(session)
        raise StoreError(
            f"{away}; the report and the runs of {plural(waiting_trials, 'trial')} are kept in {store.work_root} "
            "until it does: run the same command again then"
        ) from None
    show_report(report)


def show_arms(session: Session) -> None:
    """Print the study's arms with their trials by state."""
    spec, trials = session.spec, trial_records(session.studies, session.locks)
    show_table(status_table(spec.name, trials, spec.trials_per_arm, spec.confirm.seeds))
