"""A study from its first trial to its report and champion."""

import shlex
import sys
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import get_args

from ablation import __version__
from ablation.analysis.results import NothingFinished
from ablation.analysis.wording import shown_question
from ablation.base.errors import NothingLearned, StoreAway, StoreError
from ablation.base.retries import wait_out
from ablation.base.terminal import say_prose, show_table, waiting
from ablation.base.text import escape_markdown, plural
from ablation.data.images import normalisation_for
from ablation.data.sample_drawing import draw_samples
from ablation.data.samples import samples_file
from ablation.data.set_summary import summarise_set, summary_file
from ablation.reporting.report import Report, show_report, write_report
from ablation.running.champion import keep_examples, register_champion
from ablation.running.cut_forecast import show_forecast
from ablation.running.looks import share_decisions
from ablation.running.mlflow_pages import conclude_pages, write_views
from ablation.running.options import RunOptions, worker_devices
from ablation.running.registration import seal
from ablation.running.repair import (
    BY_REDO,
    BY_REPAIR,
    Difference,
    difference_texts,
    find_differences,
    mend,
    restore_deleted,
)
from ablation.running.session import (
    Session,
    deliver_and_reconcile,
    open_session,
    run_files,
)
from ablation.running.supervisor import supervise_workers
from ablation.running.worker import work_until_done
from ablation.search.status import status_table, trial_records
from ablation.search.studies import TrialRecord, all_ended, arm_key, has_confirmations, read_decisions
from ablation.spec.architectures import ARCHITECTURES, block_names, is_custom
from ablation.spec.looks import most_seeds_of_arms
from ablation.spec.parameters import Augmentation
from ablation.spec.study import StudySpec
from ablation.storage.locks import check_held, study_lock
from ablation.storage.store import Store
from ablation.tracking.client import DATA_FILE, REFUSAL_TAG, SAMPLES_FILE, guarded
from ablation.training.loop import LOSS_BECAME

MENDING = ("--repair", "--redo")  # options that the command which resumes a study does not need


def run_study(spec: StudySpec, store: Store, options: RunOptions) -> None:
    """Tune every arm up to its budget, confirm its best configuration, and print the answer.

    Raises:
        InputError: the study, its data or its weights cannot be used as they are.
        StoreError: a store can no longer be used, or a worker failed.
    """
    session = open_session(spec, store, options)
    wait_out(lambda: mend_stores(session), options.patience)
    devices = worker_devices(options)
    try:
        begin_summary(session)
        show_forecast(session, devices[0])
        if len(devices) == 1:
            work_until_done(session)
        else:
            session = replace(session, images=keep_examples(session.images))  # each worker reads its own
            supervise_workers(session, devices)
        conclude_study(session)
    except NothingLearned:  # the study is over
        raise
    except BaseException as error:
        with suppress(StoreAway, StoreError):
            session.summary.pause()
            if isinstance(error, KeyboardInterrupt):
                deliver_and_reconcile(session)
        raise


def mend_stores(session: Session) -> None:
    """Say where Optuna's database and MLflow differ; mend it if `--repair` or `--redo` ask for that.

    Raises:
        StoreAway: a server does not answer.
        StoreError: a store cannot be used.
    """
    options, tracker = session.options, session.tracker
    if options.repair:
        deliver_and_reconcile(session)  # what waits here for MLflow is not lost
    # Of two repairs at once, the later one sees what the earlier one has noted: nothing is trained twice.
    with session.locks.exclusive(study_lock(session.spec.name)) if options.repair or options.redo else nullcontext():
        differences = session_differences(session, thoroughly=options.repair)
        mended = (BY_REDO if options.redo else {}) | (BY_REPAIR if options.repair else {})
        for text in difference_texts(differences, mended):
            say_prose(text)
        if options.redo:
            restore_deleted(differences, tracker)
        if options.repair:
            mend(differences, session.store, session.studies, session.locks, tracker)


def session_differences(session: Session, *, thoroughly: bool) -> list[Difference]:
    """Return where the study's databases differ, see `find_differences`."""
    tracker = session.tracker
    return find_differences(
        tracker.client, tracker.experiment_id, session.store, session.studies, thoroughly=thoroughly
    )


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
        "command": shlex.join(["python", "-m", "ablation.study", *(a for a in sys.argv[1:] if a not in MENDING)]),
        "classes": images.classes,
        "data_digest": images.digest,
        "data_reading": images.reading,
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
    files[DATA_FILE] = summary_file(summarise_set(images, split))

    def begin() -> None:
        with session.locks.exclusive(study_lock(spec.name)):  # two processes at once must not both create the run
            session.summary.begin(about, files)
            share_decisions(session)
            seal(session)
            write_views(session.tracker, spec, has_confirmations=has_confirmations(spec, session.studies))
            if not all_ended(spec, session.studies):
                session.tracker.describe(escape_markdown(shown_question(spec.question)))  # without an earlier answer

    wait_out(begin, session.options.patience)


def conclude_study(session: Session) -> None:
    """Deliver what MLflow has not received yet, write and print the report, and register the champion.

    Raises:
        StoreError: a server was away for too long, and results wait in the store; or MLflow lacks runs that have ended.
        NothingLearned: no trial finished.
    """
    patience = session.options.delivery_patience
    try:
        wait_out(lambda: deliver_and_reconcile(session), patience)
        with waiting("Report: drawing the plots, registering the champion"):
            report = wait_out(lambda: _report_and_register(session), patience)
    except StoreAway as away:
        with suppress(StoreAway):
            show_arms(session)
        raise StoreError(f"{away}; the study has no complete report yet: run the same command again then") from None
    differences = wait_out(lambda: session_differences(session, thoroughly=False), patience)
    if report is None:
        trials = show_arms(session)
        deleted = sum(difference.kind == "deleted" for difference in differences)
        missing = sum(trial.state == "finished" for trial in trials) - deleted
    else:
        show_report(report)
        missing = report.analysis.result.missing_trials + report.analysis.result.missing_confirmations
    incomplete = difference_texts([difference for difference in differences if difference.kind == "lost"])
    for left_out in [] if report is None else report.analysis.result.left_out:
        incomplete.append(f"{left_out.text}: --repair mends that" if left_out.is_mendable else left_out.text)
    if missing > 0 and not incomplete:
        incomplete = [f"MLflow lacks {plural(missing, 'run')} of trials that have ended"]
    if incomplete:
        raise StoreError(f"the study is not complete: {'; '.join(incomplete)}")
    if report is None:
        reasons = [trial.reason for trial in trials if trial.state == "failed"]
        raise NothingLearned(failure_text(reasons) if reasons else "no trial finished")


def failure_text(reasons: list[str]) -> str:
    """Return what to change in a study of which every trial failed for these reasons."""
    if any("out of memory" in reason for reason in reasons):
        advice = "try a smaller batch_size"
    elif any(LOSS_BECAME in reason for reason in reasons):
        advice = "try a lower lr"
    else:
        advice = "the table above has the reasons"
    return f"every trial failed; {advice}"


def _report_and_register(session: Session) -> Report | None:
    """Write the report and register the champion; return None, and say why, where there is nothing to report.

    Raises:
        StoreAway: a server does not answer, or the lock was lost, so that another process may have done all this.
    """
    spec, store, locks = session.spec, session.store, session.locks
    lock = study_lock(spec.name)
    with locks.exclusive(lock), guarded(partial(check_held, locks, lock)):  # of two processes, the later one knows more
        try:
            session.summary.find()  # restores one that was deleted meanwhile
            report = write_report(store, [spec.name])
        except NothingFinished as nothing:
            session.summary.end("FAILED")
            say_prose(f"There is nothing to report: {nothing}.")
            return None
        register_champion(store, report.analysis.result, session.images, report.analysis.champion)
        refusal = session.summary.tags().get(REFUSAL_TAG)
        if refusal != report.analysis.result.tags.get(REFUSAL_TAG):
            report = write_report(store, [spec.name])  # it says whether there is a champion to load
        conclude_pages(session.summary, report.analysis.result)
        # The UI shows the first two lines.
        question = escape_markdown(shown_question(spec.question))
        session.tracker.describe(f"**{question}** {escape_markdown(report.analysis.answer)}")
        session.summary.end("FINISHED")
    return report


def show_arms(session: Session) -> list[TrialRecord]:
    """Print the study's arms with their trials by state; return the trials."""
    spec, trials = session.spec, trial_records(session.studies, session.locks)
    seeds = most_seeds_of_arms(spec.confirm, trials, read_decisions(spec, session.studies))
    show_table(status_table(spec.name, trials, spec.trials_per_arm, seeds, spec.confirm.repeats, spec.goal))
    return [trial for arm_trials in trials.values() for trial in arm_trials]
