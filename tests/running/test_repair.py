"""Stores that are not as they were left: compared, named in plain words, mended without any loss."""

import contextlib
import dataclasses
import shutil
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ablation
from ablation import report
from ablation.analysis.results import read_results
from ablation.base.command_line import run_command
from ablation.base.errors import InputError, StoreAway, StoreError
from ablation.running import repair, session, trial
from ablation.running.repair import compare, difference_texts, find_differences, stored_differences
from ablation.search import patient_storage
from ablation.search.studies import open_storage, study_arms, trial_ends
from ablation.storage.store import find_store
from ablation.tracking.client import KEY_TAG, find_experiment, reading_client
from ablation.tracking.reading import LeftOut, RunRecord
from tests.other_user import as_nobody, folder_for_all, needs_root
from tests.outcomes import outcome
from tests.studies import (
    CONFIRM,
    MLFLOWS_OPTIONS,
    ONE_ARM,
    Command,
    client,
    copy_store,
    patched_train,
    runs,
    signal_handlers_kept,
)

# Two trials, and two confirmation runs of the second.
ARGUMENTS = [*ONE_ARM, *CONFIRM, "--epochs", "2"]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the first test of this module leaves a whole study."""
    return tmp_path_factory.mktemp("pristine") / "s"


@pytest.fixture
def whole(command: Command, study_file: Path, pristine: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The store of a study that has ended, in a folder of its own, as if it had always been there."""
    if not pristine.exists():
        assert command(study_file, "--store", pristine, *ARGUMENTS) == 0
    # Else MLflow would write the files of a run to the folder of the test before, or to the pristine one.
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._artifact_repos_cache", OrderedDict())
    return copy_store(pristine, Path("s").absolute())


@pytest.fixture
def resume(command: Command, study_file: Path, whole: Path) -> Callable[..., int]:
    """The command that resumes the study, or reads its status."""
    return lambda *arguments: command(study_file, "--store", whole, *ARGUMENTS, *arguments)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the epochs that are trained."""
    epochs: list[int] = []
    patched_train(monkeypatch, lambda number, epoch: epochs.append(epoch))
    return epochs


def stored(store: Path) -> dict[str, Any]:
    """Return what both hold of trials; the runs of arm and summary get points whenever the number of seeds changes."""
    return outcome(f"sqlite:///{store}/mlflow.db", f"sqlite:///{store}/optuna.db", kinds="trial confirmation")


def execute(database: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def one_line(text: str) -> str:
    return " ".join(text.split())


# ------------------------------------------------------------------------------- Optuna's database is older, or lost


def forget_trials(store: Path, *numbers_of_kinds: tuple[int, int]) -> None:
    """Delete trials from Optuna's database: (number, 0), or (number, 1) for a confirmation run."""
    for number, kind in numbers_of_kinds:
        chosen = f"SELECT trial_id FROM trials JOIN studies USING (study_id) WHERE number >= {number} AND study_name "
        chosen += "LIKE '%/confirmation'" if kind else "NOT LIKE '%/confirmation'"
        tables = ("trial_params", "trial_values", "trial_intermediate_values", "trial_user_attributes", "trials")
        execute(store / "optuna.db", *(f"DELETE FROM {table} WHERE trial_id IN ({chosen})" for table in tables))


def test_an_older_optuna_database_is_told(
    whole: Path, resume: Callable[..., int], trained: list[int], capsys: Any
) -> None:
    """Nothing is trained, and the test split is not evaluated, again; parameters, values and states are the same."""
    before = stored(whole)
    forget_trials(whole, (1, 0), (0, 1))
    assert resume("--status") == 0
    said = one_line(capsys.readouterr().out)
    assert "lacks trial #1 of fine_tune_all, confirmation run #0 of fine_tune_all, confirmation run #1" in said
    assert resume() == 0
    assert "Added to Optuna's database: 3 trials that only MLflow had" in one_line(capsys.readouterr().out)
    assert trained == []
    assert stored(whole) == before


def test_a_gap_is_trained_and_the_rest_is_told(whole: Path, resume: Callable[..., int], trained: list[int]) -> None:
    """Of a trial between two others, the run is lost as well: it gets the parameters of its number again."""
    before = stored(whole)
    forget_trials(whole, (0, 0), (0, 1))
    delete_for_good(whole, runs(whole, "small")[0])
    assert resume() == 0
    assert trained == [1, 2]
    assert stored(whole) == before


def test_a_lost_trial_that_is_confirmed_is_trained_again(
    whole: Path, resume: Callable[..., int], trained: list[int]
) -> None:
    """Both databases have lost it, and no later trial is known, but its confirmation runs are."""
    before = stored(whole)
    delete_for_good(whole, runs(whole, "small")[1])
    (whole / "optuna.db").unlink()
    assert resume("--repair") == 0
    assert trained == [1, 2]
    assert stored(whole) == before


def test_a_trial_that_ended_unseen_is_told(whole: Path, resume: Callable[..., int], trained: list[int]) -> None:
    """Optuna's database is of the moment in which a confirmation run trained."""
    before = stored(whole)
    execute(
        whole / "optuna.db",
        "UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE number = 1 AND study_id = 2",
        "DELETE FROM trial_values WHERE trial_id = 4",
        "DELETE FROM trial_intermediate_values WHERE trial_id = 4 AND step = 2",
    )
    assert resume() == 0
    assert trained == []
    assert stored(whole) == before


@pytest.mark.parametrize("state", ["lost", "empty"])
def test_a_lost_optuna_database(
    whole: Path, resume: Callable[..., int], trained: list[int], capsys: Any, state: str
) -> None:
    """Nothing is trained again in silence; --repair tells a new database of all that MLflow has."""
    before = stored(whole)
    (whole / "optuna.db").unlink()
    if state == "empty":
        (whole / "optuna.db").touch()
    capsys.readouterr()
    assert resume() == 2
    assert capsys.readouterr().err == (
        "error: MLflow has 4 runs of a study 'small', of which Optuna's database has no trial: if its trials were "
        "lost, --repair tells it of them; else choose another --name\n"
    )
    assert (whole / "optuna.db").exists() == (state == "empty")
    assert resume("--repair", "--epochs", "3") == 2
    assert "they were made with other settings: epochs (was 2, is 3)" in capsys.readouterr().err
    assert resume("--repair") == 0
    assert trained == []
    assert stored(whole) == before
    assert len(runs(whole, "small", "summary")) == 1
    assert resume("--trials", "3") == 0
    assert trained[:2] == [1, 2]


# -------------------------------------------------------------------------------------------- MLflow has lost something


def test_runs_that_mlflow_lost_are_trained_again(
    whole: Path, resume: Callable[..., int], trained: list[int], capsys: Any
) -> None:
    """As by `mlflow gc`, or a database of yesterday: named at each start, exit status 1, until --repair."""
    before = stored(whole)
    lost = [runs(whole, "small")[1], runs(whole, "small", "confirmation")[0]]
    delete_for_good(whole, *lost)
    capsys.readouterr()
    assert resume() == 1
    output, error = capsys.readouterr()
    said = (
        "MLflow lacks the runs of trial #1 of fine_tune_all, confirmation run #0 of fine_tune_all: unless another "
        "machine has yet to deliver them, --repair trains them again"
    )
    assert said in one_line(output)
    assert error == f"error: the study is not complete: {said}\n"
    assert resume("--status") == 0
    assert said in one_line(capsys.readouterr().out)
    assert trained == []
    (arm,) = read_results(find_store(str(whole)), "small").arms
    assert [run.number for run in arm.confirmations] == [1]  # it still confirms the arm's best trial
    assert resume("--repair") == 0
    said = one_line(capsys.readouterr().out)
    assert "MLflow lacks the runs of trial #1 of fine_tune_all, confirmation run #0 of fine_tune_all: they are" in said
    assert "--repair" not in said
    assert trained == [1, 2, 1, 2]
    assert stored(whole) == before
    assert resume() == 0
    assert trained == [1, 2, 1, 2]


def delete_for_good(store: Path, *lost: Any) -> None:
    ids = ", ".join(f"'{run.info.run_id}'" for run in lost)
    tables = ("tags", "params", "metrics", "latest_metrics", "runs")
    execute(store / "mlflow.db", *(f"DELETE FROM {table} WHERE run_uuid IN ({ids})" for table in tables))
    for run in lost:
        shutil.rmtree(store / "artifacts" / "small" / run.info.run_id)


def test_a_repair_that_was_interrupted_is_resumed(
    whole: Path, resume: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """By the ordinary command, from the trial's checkpoint; the trial counts as unfinished until then."""
    before = stored(whole)
    delete_for_good(whole, runs(whole, "small", "confirmation")[0])
    epochs: list[int] = []

    def fault(number: int, epoch: int) -> None:
        epochs.append(epoch)
        if len(epochs) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)
    patched_train(monkeypatch, fault)
    assert resume("--repair") == 130
    capsys.readouterr()
    assert resume("--status") == 0
    assert "| 1 finished, 1 interrupted |" in capsys.readouterr().out
    assert resume() == 0
    assert epochs == [1, 2, 2]
    assert stored(whole) == before
    assert not list((whole / "checkpoints").rglob("*.ckpt"))


def test_a_trial_that_is_trained_again_waits_for_its_database(
    whole: Path, resume: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Away when the training has ended: what it took would be lost to a failure of a few seconds."""
    before = stored(whole)
    delete_for_good(whole, runs(whole, "small")[1])
    ask, failures = patient_storage.ask_database, iter(())

    def ask_in_turn(call: Callable[[], Any], **options: Any) -> Any:
        for failure in failures:
            raise failure
        return ask(call, **options)

    def fault(number: int, epoch: int) -> None:
        nonlocal failures
        failures = iter([StoreAway("Optuna's database does not answer")] if epoch == 2 else [])

    monkeypatch.setattr(patient_storage, "ask_database", ask_in_turn)
    patched_train(monkeypatch, fault)
    assert resume("--repair") == 0
    assert next(failures, None) is None
    assert stored(whole) == before


def test_a_superseded_confirmation_run_ends_where_it_ended(
    whole: Path, resume: Callable[..., int], trained: list[int]
) -> None:
    """It was superseded after an epoch: trained again, it does not go on to the test split."""
    execute(
        whole / "optuna.db",
        "UPDATE trials SET state = 'PRUNED' WHERE number = 0 AND study_id = 2",
        "DELETE FROM trial_values WHERE trial_id = 3",
        "DELETE FROM trial_intermediate_values WHERE trial_id = 3 AND step = 2",
    )
    delete_for_good(whole, runs(whole, "small", "confirmation")[0])
    assert resume("--repair") == 0
    assert trained == [1]
    ended = {run.info.status: run.data.metrics for run in runs(whole, "small", "confirmation")}
    assert sorted(ended) == ["FINISHED", "KILLED"]
    assert "test_accuracy" not in ended["KILLED"]


@pytest.mark.parametrize("place", [0, 1])
def test_a_run_that_was_deleted_on_purpose_stays_out(
    whole: Path,
    resume: Callable[..., int],
    trained: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    place: int,
) -> None:
    """The best trial, or a confirmation run of it: the study ends; --redo restores it."""
    before = stored(whole)
    deleted = [runs(whole, "small")[1], runs(whole, "small", "confirmation")[0]][place]
    words = ["trial #1 of fine_tune_all", "confirmation run #0 of fine_tune_all"][place]
    client(whole).delete_run(deleted.info.run_id)
    capsys.readouterr()
    assert resume() == 0
    said = one_line(capsys.readouterr().out)
    assert f"Deleted in MLflow, and left out: {words}; --redo restores them" in said
    assert f"Left out, because deleted in MLflow: {words}." in said
    assert "Preliminary" not in said
    assert resume("--status") == 0
    assert f"Deleted in MLflow, and left out: {words}" in one_line(capsys.readouterr().out)
    (arm,) = read_results(find_store(str(whole)), "small").arms
    assert (len(arm.trials), len(arm.confirmations)) == ((1, 2), (2, 1))[place]
    monkeypatch.setattr("sys.argv", ["report", "small", "--store", str(whole)])
    with signal_handlers_kept():
        assert run_command(report.cli) == 0
    assert f"Deleted in MLflow, and left out: {words}" in one_line(capsys.readouterr().out)
    assert resume("--redo") == 0
    said = one_line(capsys.readouterr().out)
    assert f"Deleted in MLflow, and restored: {words} " in said
    assert "--redo restores" not in said
    assert trained == []
    assert stored(whole) == before


def test_a_run_that_is_deleted_while_it_trains_stays_out(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, caplog: Any, whole: Path
) -> None:
    """The study ends all the same; --redo restores the run, and --repair trains again what it lacks."""
    trained = []

    def delete(number: int, epoch: int) -> None:
        trained.append(epoch)
        if trained == [1, 2, 1]:
            client(Path("t")).delete_run(runs(Path("t"), "small")[1].info.run_id)

    patched_train(monkeypatch, delete)
    arguments = (study_file, "--store", "t", *ARGUMENTS)
    assert command(*arguments) == 0
    said = one_line(capsys.readouterr().out)
    assert "Left out, because deleted in MLflow: trial #1 of fine_tune_all." in said
    assert "Preliminary" not in said
    assert "was deleted; its results are dropped" in caplog.text
    trained.clear()
    assert command(*arguments, "--redo") == 1
    assert "MLflow lacks the runs of trial #1 of fine_tune_all" in capsys.readouterr().err
    assert command(*arguments, "--repair") == 0
    assert trained == [1, 2]
    assert stored(Path("t").absolute()) == stored(whole)


@pytest.mark.parametrize("place", [0, 1])
def test_a_run_that_was_deleted_on_purpose_stays_out_where_optuna_is_lost(
    whole: Path, resume: Callable[..., int], trained: list[int], place: int
) -> None:
    """Its end is told to the new database as that of the others; a double that was deleted is told once."""
    before = stored(whole)
    deleted = [runs(whole, "small")[1], runs(whole, "small", "confirmation")[0]][place]
    client(whole).delete_run(deleted.info.run_id)
    (whole / "optuna.db").unlink()
    assert resume("--repair") == 0
    assert trained == []
    (arm,) = read_results(find_store(str(whole)), "small").arms
    assert [run.run_id for run in arm.deleted] == [deleted.info.run_id]
    assert resume("--redo") == 0
    assert trained == []
    assert stored(whole) == before


@pytest.mark.parametrize("way", ["renamed", "deleted", "gone"])
def test_the_experiment(whole: Path, resume: Callable[..., int], trained: list[int], capsys: Any, way: str) -> None:
    before = stored(whole)
    api = client(whole)
    experiment = api.get_experiment_by_name("small")
    assert experiment is not None
    capsys.readouterr()
    if way == "renamed":
        api.rename_experiment(experiment.experiment_id, "mine")
        assert len(ablation.load_results("small", store=str(whole))) == 4
        assert resume() == 0
        assert trained == []
        api.rename_experiment(experiment.experiment_id, "small")
    elif way == "deleted":
        api.delete_experiment(experiment.experiment_id)
        assert resume() == 2
        assert "the MLflow experiment 'small' was deleted; --redo restores it" in capsys.readouterr().err
        assert resume("--redo") == 0
        assert trained == []
    else:
        delete_for_good(whole, *(runs(whole, "small") + runs(whole, "small", "confirmation")))
        tables = ("tags", "params", "metrics", "runs", "latest_metrics", "experiment_tags", "logged_models")
        mine = f"DELETE FROM experiments WHERE experiment_id = {experiment.experiment_id}"
        execute(whole / "mlflow.db", *(f"DELETE FROM {table}" for table in tables), mine)
        assert resume() == 2
        assert "were logged to another MLflow store than" in (error := capsys.readouterr().err)
        assert "let --repair train them again" in error
        assert resume("--repair") == 0
        assert trained == [1, 2] * 4
    assert stored(whole) == before


@pytest.mark.parametrize("state", ["lost", "empty", "a folder"])
def test_a_lost_mlflow_database(
    whole: Path, pristine: Path, resume: Callable[..., int], trained: list[int], capsys: Any, state: str
) -> None:
    """Refused for the right reason, at once, and no table is made."""
    database = whole / "mlflow.db"
    before = stored(pristine)  # MLflow keeps a connection to what it has opened
    database.rename(whole / "before.db")
    if state == "empty":
        database.touch()
    if state == "a folder":
        database.mkdir()
    capsys.readouterr()
    assert resume() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    if state == "a folder":
        assert error == f"error: {database} is a folder, not MLflow's database\n"
        return
    word = {"lost": "does not exist", "empty": "is empty"}[state]
    assert f"{database} {word}, but study 'small' has trials whose runs were in it" in error
    assert database.exists() == (state == "empty")
    assert state == "lost" or database.stat().st_size == 0
    if state == "lost":
        shutil.rmtree(whole / "artifacts")
        assert resume("--repair") == 0
        assert trained == [1, 2] * 4
        assert stored(whole) == before


@pytest.mark.parametrize(
    ("version", "words"),
    [("0123456789ab", "is of a newer MLflow than"), ("451aebb31d03", "is of an older MLflow: back it up, then")],
)
def test_another_schema_is_called_what_it_is(
    whole: Path, resume: Callable[..., int], capsys: Any, version: str, words: str
) -> None:
    execute(whole / "mlflow.db", f"UPDATE alembic_version SET version_num = '{version}'")
    capsys.readouterr()
    assert resume() == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


# ------------------------------------------------------------------------------------------------- files and tags


def predictions_of(store: Path, run: Any) -> Path:
    return store / "artifacts" / "small" / run.info.run_id / "artifacts" / "test" / "predictions.safetensors"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "deleted": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "all of artifacts": lambda path: shutil.rmtree(path.parents[4]),
}


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage != "all of artifacts"])
def test_damaged_predictions_are_named(whole: Path, damage: str) -> None:
    (run, other) = runs(whole, "small", "confirmation")
    DAMAGES[damage](predictions_of(whole, run))
    result = read_results(find_store(str(whole)), "small")
    assert [run.run_id for run in result.arms[0].confirmed] == [other.info.run_id]
    assert result.missing_confirmations == 0
    (left_out,) = result.left_out
    assert left_out.text.startswith(f"confirmation run #0 of fine_tune_all: run {run.info.run_id}")
    assert left_out.is_mendable


@needs_root
def test_what_one_may_not_read_is_named_and_not_called_damaged(whole: Path) -> None:
    """Of another user's store; the rest of the study is read."""
    run, other = runs(whole, "small", "confirmation")
    with folder_for_all() as folder:
        store = find_store(str(shutil.copytree(whole, folder / "s")))
        predictions_of(store.root, run).chmod(0o600)

        def look() -> tuple[list[str], list[tuple[str, bool]], list[str]]:
            result = read_results(store, "small")
            confirmed = [run.run_id for run in result.arms[0].confirmed]
            left_out = [(each.text, each.is_mendable) for each in result.left_out]
            return confirmed, left_out, repair.stored_differences(store, "small")

        look()  # so that everything is imported
        confirmed, left_out, differences = as_nobody(look)
        assert confirmed == [other.info.run_id]
        text = (
            f"confirmation run #0 of fine_tune_all: run {run.info.run_id}: its test/predictions.safetensors cannot be "
            "read (Permission denied)"
        )
        assert left_out == [[text, False]]
        assert differences == ["This user may not read the test predictions of confirmation run #0 of fine_tune_all"]
        (summary,) = runs(whole, "small", "summary")
        (store.artifacts("small") / summary.info.run_id / "artifacts").chmod(0o700)

        def refuse() -> str:
            with pytest.raises(InputError) as refused:
                read_results(store, "small")
            return str(refused.value)

        assert as_nobody(refuse).endswith("its about.json cannot be read (Permission denied)")


@pytest.mark.parametrize("damage", ["a folder", "all of artifacts"])
def test_damaged_predictions_are_repaired(
    whole: Path, resume: Callable[..., int], trained: list[int], capsys: Any, damage: str
) -> None:
    """The run is never taken for one that has not finished; --repair trains it again."""
    before = stored(whole)
    all_of_them = damage == "all of artifacts"
    (run, other) = runs(whole, "small", "confirmation")
    DAMAGES[damage](predictions_of(whole, run))
    capsys.readouterr()
    assert resume() == 1
    output, error = capsys.readouterr()
    assert error.count("\n") == 1
    assert f"the study is not complete: confirmation run #0 of fine_tune_all: run {run.info.run_id}" in error
    assert "no confirmation run has finished yet" not in output
    assert ("the predictions of its confirmation runs are lost" in one_line(output)) == all_of_them
    (arm,) = read_results(find_store(str(whole)), "small").arms
    assert [run.run_id for run in arm.confirmed] == ([] if all_of_them else [other.info.run_id])
    assert resume("--repair") == 0
    assert trained == [1, 2] * (2 if all_of_them else 1)
    assert stored(whole) == before
    (arm,) = read_results(find_store(str(whole)), "small").arms
    assert len(arm.confirmed) == 2


@pytest.mark.parametrize("kind", ["trial", "confirmation", "summary"])
def test_a_run_that_is_there_twice_is_no_row_and_is_deleted(
    whole: Path, resume: Callable[..., int], trained: list[int], kind: str
) -> None:
    """A server carried out a creation after its client had given up."""
    before = stored(whole)
    run = runs(whole, "small", kind)[0]
    tracking = client(whole)
    double = tracking.create_run(run.info.experiment_id, tags=run.data.tags).info.run_id
    for name, value in run.data.params.items():
        tracking.log_param(double, name, value)
    store = find_store(str(whole))
    if kind == "summary":  # the double has no files yet, and is not read
        assert read_results(store, "small").missing_trials == 0
    else:
        with pytest.raises(StoreError, match=r"#0 of fine_tune_all has 2 MLflow runs; run the study once more"):
            read_results(store, "small")
    assert resume() == 0
    assert trained == []
    assert tracking.get_run(double).info.lifecycle_stage == "deleted"
    assert stored(whole) == before
    assert read_results(store, "small").missing_trials == 0


def test_a_checkpoint_has_a_checksum(whole: Path, command: Command) -> None:
    run = runs(whole, "small")[0].info.run_id
    ablation.load_model(run, store=str(whole))
    checkpoint = whole / "artifacts" / "small" / run / "artifacts" / "checkpoint" / "best.safetensors"
    flip(checkpoint)
    with pytest.raises(InputError, match=r"checkpoint/best.safetensors is damaged: its checksum is wrong"):
        ablation.load_model(run, store=str(whole))
    DAMAGES["a folder"](checkpoint)
    with pytest.raises(InputError, match=r"best.safetensors"):
        ablation.load_model(run, store=str(whole))


@pytest.mark.parametrize(
    ("tag", "value"), [("arm", None), ("kind", "y"), ("environment", "{no JSON"), ("environment", "[]")]
)
def test_tags_that_a_person_edited_are_named(whole: Path, tag: str, value: str | None) -> None:
    (run, _) = runs(whole, "small")
    if value is None:
        client(whole).delete_tag(run.info.run_id, tag)
    else:
        client(whole).set_tag(run.info.run_id, tag, value)
    result = read_results(find_store(str(whole)), "small")
    fault = f"trial #0 of fine_tune_all (MLflow run {run.info.run_id}): its tag {tag!r} was edited or deleted"
    assert result.left_out == [LeftOut(fault, is_mendable=True)]
    assert [trial.number for trial in result.arms[0].trials] == [1]


def test_tags_that_a_person_edited_are_written_again(
    whole: Path, resume: Callable[..., int], trained: list[int], capsys: Any
) -> None:
    before = stored(whole)
    (run, _) = runs(whole, "small")
    for tag in ("kind", "arm", "trial", "environment"):
        client(whole).set_tag(run.info.run_id, tag, "x")
    capsys.readouterr()
    assert resume() == 1
    assert "its tag 'kind' was edited or deleted: --repair mends that" in capsys.readouterr().err
    assert resume("--repair") == 0
    assert trained == []
    assert stored(whole) == before


# ------------------------------------------------------------------------------------------- whose report it is


def test_a_report_is_that_of_the_stores_own_study(
    whole: Path, command: Command, study_file: Path, resume: Callable[..., int], monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
) -> None:  # fmt: skip
    """Two Optuna databases share one MLflow store and a study's name; the other one's summary run is the newer."""
    own = {run.info.run_id for kind in ("trial", "confirmation") for run in runs(whole, "small", kind)}
    (summary,) = runs(whole, "small", "summary")
    with monkeypatch.context() as patch:
        patch.setattr(session, "logged_study", lambda store, name: None)  # as versions before began it
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{whole}/mlflow.db")
        patch.setenv("OPTUNA_STORAGE", f"sqlite:///{Path('other.db').absolute()}")
        assert command(study_file, *ONE_ARM, "--trials", "1", "--epochs", "1") == 0
        result = read_results(find_store(None), "small")
        assert [trial.run_id in own for trial in result.arms[0].trials] == [False]
    capsys.readouterr()
    assert resume() == 0
    assert "n (seeds)" in capsys.readouterr().out
    result = read_results(find_store(str(whole)), "small")
    assert result.summary_run_id == summary.info.run_id
    assert {run.run_id for arm in result.arms for run in (*arm.trials, *arm.confirmations)} == own
    (whole / "optuna.db").rename(whole / "elsewhere.db")  # a copy without Optuna's database says whose report it is
    result = read_results(find_store(str(whole)), "small")
    namesakes = "2 studies are called 'small' here; this is the one that was begun last"
    assert result.left_out == [LeftOut(namesakes, is_mendable=False)]


@pytest.mark.parametrize("key", [None, "0123/summary"])
def test_a_foreign_summary_blocks_nothing(whole: Path, resume: Callable[..., int], key: str | None) -> None:
    """A run that somebody has tagged as one, or that is another database's and has no description."""
    api = client(whole)
    experiment = api.get_experiment_by_name("small")
    assert experiment is not None
    before = read_results(find_store(str(whole)), "small").summary_run_id
    tags = {"kind": "summary", "study": "small", **({} if key is None else {KEY_TAG: key})}
    api.create_run(experiment.experiment_id, tags=tags)
    assert read_results(find_store(str(whole)), "small").summary_run_id == before
    assert resume() == 0
    (whole / "optuna.db").rename(whole / "elsewhere.db")
    assert read_results(find_store(str(whole)), "small").summary_run_id == before


# --------------------------------------------------------------------------------------- locked by another program


@pytest.mark.usefixtures("impatient")
def test_a_locked_mlflow_database_is_waited_for(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """By a backup, say: while a trial trains, its calls wait in the outbox; at the study's end they are delivered."""
    assert command(study_file, "--store", "other", *ARGUMENTS) == 0

    backup = None

    def lock(number: int, epoch: int) -> None:
        nonlocal backup
        if (number, epoch) == (0, 1):
            backup = sqlite3.connect("s/mlflow.db", check_same_thread=False, isolation_level=None)
            backup.execute("BEGIN EXCLUSIVE")
            threading.Timer(3, backup.close).start()

    patched_train(monkeypatch, lock)
    impatient = [*MLFLOWS_OPTIONS, "PRAGMA busy_timeout = 50"]  # ms
    monkeypatch.setattr("tests.studies.MLFLOWS_OPTIONS", impatient)
    assert command(study_file, "--store", "s", *ARGUMENTS) == 0
    assert backup is not None
    assert "MLflow does not answer (database is locked); results are kept until it does" in caplog.text
    assert "MLflow answers again" in caplog.text
    assert stored(Path("s").absolute()) == stored(Path("other").absolute())


# ------------------------------------------------------------------------------------------------ the comparison


def record(number: int, status: str = "FINISHED", *, is_deleted: bool = False, **tags: str) -> RunRecord:
    tags = {KEY_TAG: f"a/{number}", "arm": "x", "trial": str(number), "kind": "trial", **tags}
    params = {"study": "small", "arm": "x", "trial": str(number), "confirms": "null"}
    metrics = {"best_val_accuracy": 0.5} if status == "FINISHED" else {}
    return RunRecord(f"run{number}", status, tags, params, metrics, "", is_deleted=is_deleted)


def test_the_comparison() -> None:
    """Trial by trial: alike, unfinished, lost, cut short, deleted, edited; runs of trials that Optuna lacks."""
    ends: Any = dict(zip([f"a/{n}" for n in range(7)], ["finished", None, "finished", "finished", "pruned", "failed",
                                                        "finished"], strict=True))  # fmt: skip
    cut_short = dataclasses.replace(record(3), metrics={})
    records = [
        record(0), record(1, "RUNNING"), cut_short, record(4, "KILLED", is_deleted=True),
        record(5, "FAILED", reason="it diverged", trial="x"), record(6), record(6, is_deleted=True), record(7),
        record(8, "RUNNING"), record(9, is_deleted=True), dataclasses.replace(record(10), tags={KEY_TAG: "b/0"}),
        dataclasses.replace(record(11), tags={KEY_TAG: "a/x"}),
    ]  # fmt: skip
    found = compare(ends, {"a": ("trial", "x")}, records)
    assert [(difference.key, difference.kind) for difference in found] == [
        ("a/2", "lost"), ("a/3", "lost"), ("a/4", "deleted"), ("a/5", "edited"),
        ("a/7", "missing_in_optuna"), ("a/8", "orphan")
    ]  # fmt: skip
    texts = difference_texts(found)
    assert texts[0].startswith("MLflow lacks the runs of trial #2 of x, trial #3 of x: ")
    assert len(texts) == 5
    many = [dataclasses.replace(found[0], words=f"trial #{n}") for n in range(9)]
    assert "trial #4, 4 more: " in difference_texts(many)[0]


def test_a_trial_that_ends_while_the_runs_are_read_is_not_lost(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process works on the study: its run was read before it ended, or before it was there."""
    store = find_store(str(whole))
    storage = open_storage(store)
    assert storage is not None
    studies, api = study_arms(storage, "small"), reading_client(store)
    experiment = find_experiment(api, store, "small")
    after = trial_ends(studies)
    assert list(after.values()) == ["finished"] * 4
    first, second, *_ = after
    ends = [{key: None if key == first else end for key, end in after.items() if key != second}]

    def read(*_: Any) -> list[RunRecord]:
        ends.append(after)
        return []

    monkeypatch.setattr(repair, "read_runs", read)
    monkeypatch.setattr(repair, "trial_ends", lambda studies: ends[-1])
    found = find_differences(api, experiment.experiment_id, store, studies, thoroughly=False)
    assert {difference.key for difference in found} == {*after} - {first, second}


def test_what_waits_in_the_store_for_mlflow_is_not_lost(whole: Path) -> None:
    store, (run, *_) = find_store(str(whole)), runs(whole, "small")
    delete_for_good(whole, run)
    (line,) = stored_differences(store, "small")
    assert line.startswith("MLflow lacks the runs of trial #0 of fine_tune_all")
    store.trial_folder(run.data.tags["ablation.key"]).mkdir(parents=True)
    assert stored_differences(store, "small") == []
