"""A study from its first trial to its report."""

import shlex
import sys
from contextlib import suppress

from ablation import __version__
from ablation.analysis.results import NothingFinished
from ablation.base.errors import StoreAway, StoreError
from ablation.base.terminal import say, show_table
from ablation.data.images import normalisation_for
from ablation.data.samples import draw_samples, samples_file
from ablation.reporting.report import show_report, write_report
from ablation.running.champion import register_champion
from ablation.running.options import RunOptions, worker_devices
from ablation.running.session import Session, deliver_and_reconcile, open_session, run_files, summary_key
from ablation.running.supervisor import supervise_workers
from ablation.running.worker import work_until_done
from ablation.search.status import status_table, trial_records
from ablation.search.studies import arm_key
from ablation.spec.architectures import ARCHITECTURES, block_names, is_custom
from ablation.spec.study import StudySpec
from ablation.storage.store import Store
from ablation.tracking.client import SAMPLES_FILE, ui_address, ui_command


def run_study(spec: StudySpec, store: Store, options: RunOptions) -> None:
    """Bring every arm to its budget, confirm what was found, and print the answer."""
    session = open_session(spec, store, options)
    devices = worker_devices(options)
    begin_summary(session)
    try:
        if len(devices) == 1:
            work_until_done(session)
        else:
            supervise_workers(session, devices)
        conclude_study(session)
    except BaseException as error:
        with suppress(StoreAway, StoreError):
            session.tracker.end_summary(summary_key(session), "SCHEDULED")
            if isinstance(error, KeyboardInterrupt):
                deliver_and_reconcile(session)
        raise
    say(f"\nLook at it in the MLflow UI:\n    {ui_command(store)}")
    if store.has_own_tracking:
        address = ui_address(session.tracker.experiment_id, has_confirmations=spec.confirm.seeds > 0)
        say(f"    then open {address}")


def begin_summary(session: Session) -> None:
    """Write down what the report needs to know of the study besides its runs."""
    spec, images, split = session.spec, session.images, session.split
    backbone = spec.backbone.name
    own_backbone = {  # what the report needs to know of it without its code
        "blocks": len(block_names(backbone)),
        "has_batch_norm": ARCHITECTURES[backbone].has_batch_norm,
    }
    about = {
        "version": __version__,
        "own_backbone": own_backbone if is_custom(backbone) else None,
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
    augmentations = sorted(possible - {"none"}, reverse=True)  # flip before crop_flip, which does more
    normalisation = normalisation_for(session.weights, spec.data.image_size)
    samples = draw_samples(images, split.train_N, normalisation, augmentations, spec.seed)
    files = {name: text.encode() for name, text in run_files(session).items()}
    files[SAMPLES_FILE] = samples_file(samples)
    with session.locks.exclusive():  # two that begin at once must not both make the run
        session.tracker.begin_summary(summary_key(session), spec.name, about, files)


def conclude_study(session: Session) -> None:
    """Write and print the report, and register the champion.

    Raises:
        StoreError: the results are safe, but MLflow does not answer and has yet to get some of them.
    """
    spec, store = session.spec, session.store
    waiting = deliver_and_reconcile(session)
    try:
        with session.locks.exclusive():  # two that end at once must not both write it, and the later one knows more
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
            f"{away}; the report and the runs of {waiting} trials wait for it, kept in {store.work_root}: "
            "run the same command again when it answers"
        ) from None
    show_report(report)


def show_arms(session: Session) -> None:
    """Print the study's arms with their trials by state."""
    spec, found = session.spec, trial_records(session.studies, session.locks)
    show_table(status_table(spec.name, found, spec.trials_per_arm, spec.confirm.seeds))
