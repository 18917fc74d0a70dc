"""What a study locks while it ends, what it holds in memory while its workers run, and what a repair waits for."""

import contextvars
import gc
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ablation import study as study_command
from ablation.analysis import results
from ablation.base.errors import InputError, StoreAway
from ablation.base.retries import wait_out
from ablation.data.image_set import ImageSet
from ablation.data.split import Split
from ablation.running import champion as running_champion
from ablation.running import session as running_session
from ablation.running import study as running_study
from ablation.running import trial
from ablation.running.champion import EXAMPLE_IMAGES
from ablation.running.options import RunOptions
from ablation.running.session import Session, open_stores
from ablation.search.claims import claim_trial, end_trial, release_and_delete
from ablation.search.studies import create_arms, open_storage, stored_arms
from ablation.spec.reading import load_study
from ablation.storage.locks import FileLocks, open_locks, study_lock
from ablation.storage.store import Store, find_store
from ablation.tracking import trial_run
from ablation.tracking.client import NOTE_TAG
from ablation.tracking.saved_views import BEST_ARM_VIEW, CURRENT_CONFIRMATIONS, VIEW_TAG, view_state
from ablation.tracking.summary_run import SummaryRun
from tests.servers import PostgreSQL
from tests.studies import ONE_ARM, Command, client, new_tracker, patched_train, runs

LIMIT = 20  # seconds for what takes less than one
CONTENT = {"made": "by a test", "trials_per_arm": 2}


def claim_and_end_a_trial(store: Store, study_file: Path) -> None:
    """Do what a worker of another study does to the locks and the database."""
    spec = load_study(study_file, name="other")
    studies = create_arms(open_storage(store, create=True), spec, CONTENT, "an experiment")
    claim = claim_trial(spec, store, open_locks(store.optuna_url), studies, CONTENT)
    assert claim is not None
    end_trial(claim, "failed", None, "a test", None)
    release_and_delete(claim)


def seconds_beside(function: Callable[[], None]) -> float:
    """Run a function in a thread; return its duration, or LIMIT if it has not ended by then."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    start = time.monotonic()
    thread.start()
    thread.join(LIMIT)
    assert errors == []
    return LIMIT if thread.is_alive() else time.monotonic() - start


def test_a_study_that_is_stopped_while_it_begins_is_marked_as_one_that_will_resume(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(running_study, "write_views", stop)
    assert command(study_file, *ONE_ARM) == 130
    (summary,) = runs(Path("mlruns"), "small", "summary")
    assert summary.info.status == "SCHEDULED"


def test_views_show_trials_until_a_confirmation_run_of_the_best_has_finished(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study that is extended shows neither runs of a configuration that is no longer the best, nor its old answer."""
    moments: list[tuple[str, int, bool]] = []

    def note(trial: int, epoch: int) -> None:
        (experiment,) = (e for e in client(Path("mlruns")).search_experiments() if e.name == "small")
        shown = view_state(experiment.tags[VIEW_TAG + BEST_ARM_VIEW])["searchFilter"]
        found = client(Path("mlruns")).search_runs([experiment.experiment_id], shown)
        moments.append((shown, len(found), "\n" in experiment.tags[NOTE_TAG] or "**" in experiment.tags[NOTE_TAG]))

    settings = (*ONE_ARM, "--epochs", "1", "--set", "confirm.seeds=2")
    patched_train(monkeypatch, note)
    assert command(study_file, *settings, "--trials", "1") == 0
    assert moments == [("tags.kind = 'trial'", 1, False)] * 2 + [(CURRENT_CONFIRMATIONS, 2, False)]
    moments.clear()
    assert command(study_file, *settings, "--trials", "6") == 0
    assert len(runs(Path("mlruns"), "small", "confirmation")) == 4  # another trial is the best now
    assert moments == [(CURRENT_CONFIRMATIONS, 2, False)] * 5 + [
        ("tags.kind = 'trial'", 6, False), (CURRENT_CONFIRMATIONS, 2, False),
    ]  # fmt: skip


def test_status_says_that_a_report_is_still_to_come(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    words = "All runs have ended, but not the study"
    settings = (*ONE_ARM, "--trials", "1", "--epochs", "1")
    with monkeypatch.context() as patch:
        patch.setattr(running_study, "conclude_study", stop)
        assert command(study_file, *settings) == 130
    assert command(study_file, "--status") == 0
    assert words in " ".join(capsys.readouterr().out.split())
    assert command(study_file, *settings) == 0
    assert command(study_file, "--status") == 0
    assert words not in " ".join(capsys.readouterr().out.split())


def test_a_summary_that_somebody_deletes_while_the_study_trains_is_restored(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted: list[str] = []

    def delete(trial: int, epoch: int) -> None:
        if not deleted:
            (summary,) = runs(Path("mlruns"), "small", "summary")
            deleted.append(summary.info.run_id)
            client(Path("mlruns")).delete_run(summary.info.run_id)

    patched_train(monkeypatch, delete)
    assert command(study_file, *ONE_ARM, "--trials", "1", "--epochs", "1") == 0
    (summary,) = runs(Path("mlruns"), "small", "summary")
    assert [summary.info.run_id] == deleted
    assert summary.info.status == "FINISHED"


@pytest.mark.parametrize("database", ["files", "postgresql"])
def test_other_studies_go_on_while_one_begins_and_ends(
    database: str,
    command: Command,
    study_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """While it writes to MLflow, another study of the store claims and ends a trial, and `--status` answers."""
    if database == "postgresql":
        server: PostgreSQL = request.getfixturevalue("postgresql")
        monkeypatch.setenv("OPTUNA_STORAGE", server.new_database())
    seconds: list[tuple[str, float]] = []

    def slow(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def act_first(*args: Any, **kwargs: Any) -> Any:
            store = find_store(None)
            seconds.append((name, seconds_beside(lambda: claim_and_end_a_trial(store, study_file))))
            seconds.append((name, seconds_beside(lambda: study_command.show_status("other", store, None))))
            return function(*args, **kwargs)

        return act_first

    moments = [(SummaryRun, "begin"), (trial, "_keep_best"), (running_study, "write_report"),
               (running_study, "register_champion")]  # fmt: skip
    for owner, name in moments:
        monkeypatch.setattr(owner, name, slow(name, getattr(owner, name)))
    settings = ("--trials", "1", "--epochs", "1", "--set", "tracking.checkpoints=best_per_arm")
    assert command(study_file, *ONE_ARM, *settings) == 0
    assert [name for name, _ in seconds] == [name for _, name in moments for _ in range(2)]
    assert [name for name, duration in seconds if duration >= LIMIT] == []
    assert "other: 4 of 8 runs ended" in capsys.readouterr().out


def test_two_processes_of_one_study_wait_for_each_other(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report is written under the study's lock."""
    waited: list[bool] = []
    threads: list[threading.Thread] = []
    write_report = running_study.write_report

    def check_lock(store: Store, names: list[str]) -> Any:
        def acquire() -> None:
            with open_locks(store.optuna_url).exclusive(study_lock(*names)):
                waited.append(False)

        threads.append(threading.Thread(target=acquire, daemon=True))
        threads[-1].start()
        time.sleep(0.3)
        waited.append(True)
        return write_report(store, names)

    monkeypatch.setattr(running_study, "write_report", check_lock)
    assert command(study_file, *ONE_ARM, "--trials", "1", "--epochs", "1") == 0
    for thread in threads:
        thread.join(30)
    assert waited == [True, False]


def test_the_supervisor_of_workers_drops_its_images(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps what the champion's registration needs, and the digest."""
    pixels: list[weakref.ref[np.ndarray]] = []
    examples: list[np.ndarray] = []
    digests: list[str] = []
    load_split = running_session.load_split

    def load(*args: Any, **kwargs: Any) -> tuple[ImageSet, Split]:
        images, split = load_split(*args, **kwargs)
        pixels.extend(weakref.ref(array) for array in (images.train_images_NHWC, images.test_images_NHWC))
        examples.append(images.test_images_NHWC[:EXAMPLE_IMAGES].copy())
        digests.append(images.digest)
        return images, split

    def supervise(session: Session, devices: list[str]) -> None:
        gc.collect()
        assert devices == ["cpu", "cpu"]
        assert [reference() for reference in pixels] == [None, None]
        assert np.array_equal(session.images.test_images_NHWC, examples[0])
        assert session.images.test_images_NHWC.base is None
        assert session.images.digest == digests[0]
        supervised.append(session)

    supervised: list[Session] = []
    monkeypatch.setattr(running_session, "load_split", load)
    monkeypatch.setattr(running_study, "supervise_workers", supervise)
    assert command(study_file, *ONE_ARM, "--workers", "2", "--device", "cpu") == 1  # no trial has run
    assert len(supervised) == 1


def repairing(folder: Path) -> Any:
    """Return what `mend_stores` needs of a session of its own."""
    locks = open_locks(f"sqlite:///{folder}/optuna.db")
    spec = SimpleNamespace(name="small")
    options = RunOptions(repair=True)
    return SimpleNamespace(options=options, spec=spec, tracker=None, store=None, studies=None, locks=locks)


def test_of_two_repairs_at_once_the_later_one_sees_what_the_earlier_one_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would train again what the earlier one has trained meanwhile."""
    lost, noted = ["a trial"], []
    has_begun = threading.Event()

    def find(session: Any, thoroughly: bool) -> list[Any]:
        has_begun.set()
        found = [SimpleNamespace(kind="lost", words=each) for each in lost if each not in noted]
        time.sleep(0.3)
        return found

    monkeypatch.setattr(running_study, "deliver_and_reconcile", lambda session: None)
    monkeypatch.setattr(running_study, "session_differences", find)
    monkeypatch.setattr(running_study, "mend", lambda found, *_: noted.extend(each.words for each in found))
    first = threading.Thread(target=running_study.mend_stores, args=(repairing(tmp_path),))
    first.start()
    has_begun.wait()
    running_study.mend_stores(repairing(tmp_path))
    first.join()
    assert noted == ["a trial"]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("failures", [4, 1000])
def test_the_report_comes_after_the_delivery_of_the_last_results(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    failures: int,
) -> None:  # fmt: skip
    """The test figures of the last run do not reach MLflow, and then the report cannot be read at once.

    Both are waited for. Where the figures still wait when patience ends, the exit status is not 0: MLflow answers all
    questions meanwhile, and what it has makes a whole report, but of one run less.
    """
    calls = []
    real_call, real_read = trial_run._CALLS["log_result"], results.read_curves

    def log_result(run: Any, file: Path | None, **arguments: Any) -> None:
        calls.append(arguments)
        if arguments.get("folder") == "test" and len(calls) <= failures:
            raise StoreAway("MLflow does not answer (503)")
        real_call(run, file, **arguments)

    def read_curves(*arguments: Any) -> Any:
        reads.append(arguments)
        if len(reads) == 1:
            raise StoreAway("MLflow does not answer (no answer in time)")
        return real_read(*arguments)

    reads: list[Any] = []
    monkeypatch.setitem(trial_run._CALLS, "log_result", log_result)
    monkeypatch.setattr(results, "read_curves", read_curves)
    patience = "0.02" if failures > 9 else "1"
    settings = ("--trials", "1", "--epochs", "1", "--set", "confirm.seeds=1", "--patience", patience)
    status = command(study_file, *ONE_ARM, *settings)
    output, errors = capsys.readouterr()
    (run,) = runs(Path("mlruns"), "small", "confirmation")
    assert "still missing" not in output
    if failures > 9:
        assert status == 1
        assert "the results of 1 trial are kept in" in errors
        assert errors.count("\n") == 1
        assert "test_accuracy" not in run.data.metrics
        monkeypatch.setitem(trial_run._CALLS, "log_result", real_call)
        status = command(study_file, *ONE_ARM, *settings)
        (run,) = runs(Path("mlruns"), "small", "confirmation")
    assert status == 0
    assert len(reads) > 1
    assert run.info.status == "FINISHED"
    assert f"test accuracy {run.data.metrics['test_accuracy']:.4f}" in capsys.readouterr().out + output
    (champion,) = client(Path("mlruns")).search_model_versions("name = 'small'")
    assert champion.run_id == run.info.run_id


@pytest.mark.usefixtures("impatient")
def test_a_process_that_was_frozen_does_not_write_over_the_report_and_champion_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loses the study's lock after its report; another one concludes the study; then it makes its next call."""
    store = find_store(str(tmp_path))
    tracker = new_tracker(store, "small")
    file_locks = open_locks(store.optuna_url)
    is_lost = False

    def write(text: str) -> None:
        tracker.client.set_experiment_tag(tracker.experiment_id, "champion", text)

    def report(*_: object) -> Any:
        nonlocal is_lost
        is_lost = len(reports) == 0
        reports.append(len(reports))
        if is_lost:
            contextvars.Context().run(write, "the other's")  # a process of its own has no guard of this one
        result = SimpleNamespace(number=reports[-1], tags={})
        analysis = SimpleNamespace(result=result, answer="", champion=f"champion {reports[-1]}")
        return SimpleNamespace(analysis=analysis)

    reports: list[int] = []
    seen: list[str] = []
    concluded: list[object] = []
    monkeypatch.setattr(file_locks, "is_held", lambda name: name == study_lock("small") and not is_lost)
    monkeypatch.setattr(running_study, "write_report", report)
    monkeypatch.setattr(running_study, "register_champion", lambda *given: write(f"{given[3]} of {given[1].number}"))
    monkeypatch.setattr(running_study, "conclude_pages", lambda *arguments: concluded.append(arguments[1].number))
    session: Any = SimpleNamespace(
        spec=SimpleNamespace(name="small", question=""),
        store=store,
        locks=file_locks,
        tracker=tracker,
        images=None,
        summary=SummaryRun(tracker, "x/summary"),
    )

    def attempt() -> Any:
        nonlocal is_lost
        is_lost = False  # each attempt acquires the lock
        try:
            return running_study._report_and_register(session)
        finally:
            seen.append(tracker.client.get_experiment(tracker.experiment_id).tags["champion"])

    wait_out(attempt, 60)
    assert seen == ["the other's", "champion 1 of 1"]
    assert (reports, concluded) == ([0, 1], [1])


def test_a_study_that_another_process_registers_meanwhile(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was begun without `preregister`, then that was added; the other process begins between two questions."""
    spec, store = load_study(study_file), find_store(str(tmp_path / "store"))
    storage = open_storage(store, create=True)
    create_arms(storage, spec, spec.content(), "an experiment")
    registered = spec.model_copy(update={"preregister": True})

    def has_trials(*arguments: Any) -> bool:
        monkeypatch.undo()
        for arm in create_arms(storage, registered, registered.content(), "an experiment").tuning.values():
            arm.ask()
        return running_session.has_trials(*arguments)

    monkeypatch.setattr(running_session, "has_trials", has_trials)
    running_session._check_begun(registered, store)
    assert running_session.has_trials(storage, spec.name)


def test_a_start_whose_lock_is_lost_settles_nothing(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was lost while Optuna was told of trials, which is said although the start is repeated."""
    spec, store = load_study(study_file), find_store(str(tmp_path / "store"))
    is_held, told = FileLocks.is_held, iter([2, 0])

    def restore_ended_trials(*_: object) -> int:
        count = next(told)
        monkeypatch.setattr(FileLocks, "is_held", lambda *_: False if count else is_held(*_))
        return count

    monkeypatch.setattr(running_session, "restore_ended_trials", restore_ended_trials)
    start = partial(open_stores, spec, store, spec.content(), RunOptions(), is_worker=False)
    with pytest.raises(StoreAway, match="the connection broke that held a lock"):
        start()
    storage = open_storage(store)
    assert storage is not None
    assert not any("precision" in arm for arm in stored_arms(storage, "small").values())
    start()
    assert all("precision" in arm for arm in stored_arms(storage, "small", confirmation=False).values())
    assert capsys.readouterr().out.count("2 trials that only MLflow had") == 1


def test_a_repair_waits_until_results_of_this_machine_are_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else MLflow would seem to have lost what waits in the outbox, and it would be trained again."""
    server_is_away = True

    def deliver(session: Any) -> None:
        if server_is_away:
            raise StoreAway("MLflow does not answer")

    compared: list[Any] = []
    monkeypatch.setattr(running_study, "deliver_and_reconcile", deliver)
    monkeypatch.setattr(
        running_study, "session_differences", lambda session, thoroughly: compared.append(session) or []
    )
    monkeypatch.setattr(running_study, "mend", lambda *_: None)
    session = repairing(tmp_path)
    with pytest.raises(StoreAway):
        running_study.mend_stores(session)
    assert compared == []
    server_is_away = False
    running_study.mend_stores(session)
    assert compared == [session]


def test_who_begins_a_name_that_is_replaced_is_refused(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before our first trial, another process makes the name its own, with values of which the lowest is the best."""
    real = running_study.work_until_done

    def after_another(session: Session) -> None:
        spec = session.spec.model_copy(update={"objective": "loss"})
        content = session.content | {"objective": "loss"}
        create_arms(open_storage(session.store), spec, content, session.tracker.key)
        real(session)

    monkeypatch.setattr(running_study, "work_until_done", after_another)
    assert command(study_file, "--store", "s", *ONE_ARM, "--trials", 1, "--set", "confirm.seeds=1") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: another study called 'small' was begun at the same time: objective (was 'loss'")


def test_a_draft_that_was_changed_before_its_first_trial_is_no_second_study(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its arms and its summary run stay in the stores; the study is complete without them."""
    with monkeypatch.context() as begun:
        begun.setattr(running_study, "work_until_done", lambda session: None)
        command(study_file, "--store", "s", "--set", "factors.strategy=['feature_extraction', 'fine_tune_all']")
    arguments = ["--store", "s", *ONE_ARM, "--trials", 1, "--set", "confirm.seeds=1"]
    assert command(study_file, *arguments) == 0
    assert command(study_file, *arguments) == 0


def test_the_report_says_whether_there_is_a_champion_to_load(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is written before the registration, and once more where that has changed what it says."""
    arguments = (study_file, *ONE_ARM, "--trials", "1", "--epochs", "1", "--set", "confirm.seeds=1")
    reports = []
    write_report = running_study.write_report

    def count(*given: Any) -> Any:
        reports.append(given)
        return write_report(*given)

    def refuse(*_: object) -> None:
        raise InputError("torch.export cannot export it (a branch)")

    monkeypatch.setattr(running_study, "write_report", count)
    page = Path("mlruns/reports/small/report.md")
    with monkeypatch.context() as patch:
        patch.setattr(running_champion, "export_program", refuse)
        for written in (2, 3):  # the second time, it is known before
            assert command(*arguments) == 0
            assert len(reports) == written
            text = page.read_text()
            assert "confirmation run #" in text
            assert " is the best run: its arm has the highest mean validation accuracy" in text
            assert "Its model is not registered as the champion: torch.export cannot export it (a branch)." in text
            assert "ablation.predict" not in text
            assert "load_champion" not in text
            assert page.read_bytes() == next(Path("mlruns/artifacts").rglob("report/report.md")).read_bytes()
    study_command.show_status("small", find_store(None), None)
    assert "The best run is not registered as the champion: torch.export cannot" in capsys.readouterr().out
    assert command(*arguments) == 0
    assert len(reports) == 5
    text = page.read_text()
    assert " is the champion: " in text
    assert "not registered" not in text
    assert "\n    python -m ablation.predict small IMAGE...\n" in text
    assert command(*arguments) == 0
    assert len(reports) == 6
