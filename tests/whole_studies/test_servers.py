"""Studies whose databases are servers: many workers, several machines, and servers that go away."""

import http.server
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psycopg
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from ablation.base.errors import StoreAway
from ablation.running import trial, worker
from ablation.running.session import open_session
from ablation.running.worker import work_until_done
from ablation.search import claims
from ablation.search.claims import Claim, _claim, claim_trial, end_trial, release_and_delete
from ablation.search.studies import open_storage, study_arms
from ablation.spec.reading import load_study
from ablation.storage.locks import open_locks
from ablation.storage.store import find_store
from ablation.tracking.client import CHECKPOINT_FILE, KEY_TAG
from ablation.tracking.trial_run import RESUME_FOLDER
from ablation.training.checkpoint import resume_checkpoints
from tests.servers import PostgreSQL, Server, once
from tests.studies import ONE_ARM, Command, patched_train
from tests.victims import Victims, finish_with_a_kill


@pytest.fixture
def databases(postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Empty databases for Optuna and MLflow, in the environment, and a folder for artifacts."""
    environment = {
        "OPTUNA_STORAGE": postgresql.new_database(),
        "MLFLOW_TRACKING_URI": postgresql.new_database(),
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": (tmp_path / "artifacts").as_uri(),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


@pytest.fixture
def tables_made(databases: dict[str, str], postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The same, where MLflow has been before."""
    databases["MLFLOW_TRACKING_URI"] = postgresql.mlflow_database()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", databases["MLFLOW_TRACKING_URI"])
    return databases


def runs(environment: dict[str, str], name: str = "small") -> list[Run]:
    client = MlflowClient(environment["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], "tags.kind = 'trial'", order_by=["tags.trial"]))


def steps(environment: dict[str, str], run: Run) -> list[int]:
    client = MlflowClient(environment["MLFLOW_TRACKING_URI"])
    return [metric.step for metric in client.get_metric_history(run.info.run_id, "val_loss")]


def trials(environment: dict[str, str], arm: str = "fine_tune_all") -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=f"small/{arm}", storage=environment["OPTUNA_STORAGE"]).trials


# ------------------------------------------------------------------------------------------------------ many workers


@pytest.mark.parametrize("start", [*range(3), *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 8))])
def test_fresh_databases_are_made_by_eight_at_once(
    victims: Victims, small_study: Path, tmp_path: Path, databases: dict[str, str], start: int
) -> None:
    workers = [victims.start(tmp_path, [small_study], only_open=True, environment=databases) for _ in range(8)]
    assert [victims.wait(pid) for pid in workers] == [0] * 8, victims.output(tmp_path)
    assert len(optuna.get_all_study_names(databases["OPTUNA_STORAGE"])) == 4
    with psycopg.connect(databases["MLFLOW_TRACKING_URI"]) as database:
        assert database.execute("SELECT count(*) FROM experiments WHERE name = 'small'").fetchone() == (1,)


def test_eight_workers_make_exactly_the_budget(
    victims: Victims, small_study: Path, tmp_path: Path, tables_made: dict[str, str]
) -> None:
    """12 trials, with one worker killed in the middle and replaced; parameters are those of a lone worker."""
    arguments = [small_study, "--epochs", "2", "--trials", "3"]
    finish_with_a_kill(victims, tmp_path, arguments, workers=8, environment=tables_made)
    found = runs(tables_made)
    assert len(found) == 12
    assert set(Counter((run.data.tags["arm"], run.data.tags["trial"]) for run in found).values()) == {1}
    assert {run.info.status for run in found} == {"FINISHED"}
    assert all(steps(tables_made, run) == [1, 2] for run in found)
    rates = set()
    for arm in {run.data.tags["arm"] for run in found}:
        mine = trials(tables_made, arm)
        assert [(t.number, t.state.name, list(t.intermediate_values)) for t in mine] == [
            (number, "COMPLETE", [1, 2]) for number in range(3)
        ]
        rates.add(tuple(t.params["lr"] for t in mine))
    assert len(rates) == 1  # trial n has the same learning rate in every arm, whoever asked for it
    assert not list((tmp_path / "mlruns" / "checkpoints").glob("*/*"))


# --------------------------------------------------------------------------------------------------- several machines


def test_another_machine_goes_on_from_the_uploaded_checkpoint(
    command: Command, study_file: Path, tables_made: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)
    study_of = [study_file, *ONE_ARM, "--trials", "1", "--epochs", "4"]

    def fault(number: int, epoch: int) -> None:
        if epoch == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patched_train(patch, fault)
        assert command(*study_of) == 130
    (run,) = runs(tables_made)
    uploaded = Path(run.info.artifact_uri.removeprefix("file://")) / RESUME_FOLDER
    assert [path.name for path in resume_checkpoints(uploaded)] == ["epoch-000003.ckpt", "epoch-000002.ckpt"]
    newest = resume_checkpoints(uploaded)[0]
    newest.write_bytes(newest.read_bytes()[:1000])  # as an upload that was cut off leaves it

    (tmp_path / "machine2").mkdir()
    monkeypatch.chdir(tmp_path / "machine2")
    trained: list[int] = []
    patched_train(monkeypatch, lambda number, epoch: trained.append(epoch))
    assert command(*study_of) == 0
    assert trained == [3, 4]
    (again,) = runs(tables_made)
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    assert steps(tables_made, again) == [1, 2, 3, 4]
    assert list(trials(tables_made)[0].intermediate_values) == [1, 2, 3, 4]
    assert not uploaded.exists()
    # The first machine tidies up when it is used again.
    monkeypatch.chdir(tmp_path / "work")
    assert list(Path("mlruns/checkpoints").glob("*/*"))
    assert command(*study_of) == 0
    assert not list(Path("mlruns/checkpoints").glob("*/*"))
    assert steps(tables_made, again) == [1, 2, 3, 4]


def test_a_study_whose_runs_are_elsewhere_is_refused(
    command: Command, study_file: Path, tables_made: dict[str, str], postgresql: PostgreSQL,
    monkeypatch: pytest.MonkeyPatch, capsys: Any,
) -> None:  # fmt: skip
    small = [study_file, *ONE_ARM, "--epochs", "1", "--trials"]
    assert command(*small, "1") == 0
    elsewhere = postgresql.new_database()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    assert command(*small, "2") == 2
    assert "were logged to another MLflow store than MLFLOW_TRACKING_URI" in capsys.readouterr().err
    with psycopg.connect(elsewhere) as database:
        assert database.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)
    assert len(trials(tables_made)) == 1


# ------------------------------------------------------------------------------------------------ the database is away


def at_epochs(monkeypatch: pytest.MonkeyPatch, actions: dict[int, Callable[[], object]]) -> None:
    """Do something after epochs of the first trial, before they are saved."""
    patched_train(monkeypatch, lambda number, epoch: actions.get(epoch if number == 0 else 0, lambda: None)())


@pytest.mark.usefixtures("impatient")
def test_a_trial_trains_on_while_the_database_is_away(
    command: Command, study_file: Path, tables_made: dict[str, str], postgresql: PostgreSQL,
    monkeypatch: pytest.MonkeyPatch, caplog: Any,
) -> None:  # fmt: skip
    """It stops in the middle of a trial and comes back when the trial has ended; MLflow's is the same server."""
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)

    def stop_for_seconds() -> None:
        postgresql.stop()
        threading.Timer(4, postgresql.start).start()

    at_epochs(monkeypatch, {2: stop_for_seconds})
    assert command(study_file, *ONE_ARM, "--trials", "2", "--epochs", "4") == 0
    assert caplog.text.count("waiting for up to 15 min") == 1
    first, second = runs(tables_made)
    for run in (first, second):
        assert run.info.status == "FINISHED"
        assert steps(tables_made, run) == [1, 2, 3, 4]
        paths = [file.path for file in MlflowClient().list_artifacts(run.info.run_id)]
        assert paths == ["checkpoint", "study.json", "study.toml"]
    assert [list(t.intermediate_values) for t in trials(tables_made)] == [[1, 2, 3, 4]] * 2


@pytest.mark.parametrize("fate", ["ended", "taken"])
def test_a_trial_that_another_worker_took_over_is_discarded(
    command: Command, study_file: Path, tables_made: dict[str, str], postgresql: PostgreSQL,
    monkeypatch: pytest.MonkeyPatch, capsys: Any, fate: str,
) -> None:  # fmt: skip
    """Our connection breaks after epoch 2; before we notice, another worker has the trial, or has even ended it."""
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(worker, "WAIT_SECONDS", 0.1)
    taken: list[Claim] = []

    def steal() -> None:
        postgresql.query("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        store = find_store(None)
        spec = load_study(study_file, name="small", overrides=[
            (["factors"], {"strategy": ["fine_tune_all"]}), (["fixed", "truncate_at"], "block1"),
            (["trials_per_arm"], 1), (["epochs"], 4),
        ])  # fmt: skip
        storage = open_storage(store)
        assert storage is not None
        studies = study_arms(storage, "small")
        claim = claim_trial(spec, store, open_locks(store.optuna_url), studies, {})
        assert claim is not None
        assert (claim.trial.number, claim.resumed) == (0, True)
        taken.append(claim)
        if fate == "ended":
            end_trial(claim, "finished", 0.125, "", None)
            release_and_delete(claim)

    def give_back() -> None:
        """The other worker dies, long after ours has noticed that it is not wanted."""
        if fate == "taken" and taken:
            taken[0].release()

    at_epochs(monkeypatch, {2: steal})
    real = worker.time.sleep
    monkeypatch.setattr(worker.time, "sleep", lambda seconds: (give_back(), real(seconds)))
    # The other worker did not log the best epoch of the trial that it ended: the report lacks it, and it is said.
    assert command(study_file, *ONE_ARM, "--trials", "1", "--epochs", "4") == (1 if fate == "ended" else 0)
    output = capsys.readouterr().out
    assert "lost: another worker" in output
    (only,) = trials(tables_made)
    (run,) = runs(tables_made)
    assert run.info.status == "FINISHED"
    if fate == "ended":
        assert only.value == 0.125
        assert steps(tables_made, run) == [1]  # nothing was written after the loss
    else:
        assert list(only.intermediate_values) == steps(tables_made, run) == [1, 2, 3, 4]
        assert "(resumed)" in output


def test_a_connection_that_breaks_around_a_claim_leaks_nothing(
    command: Command, study_file: Path, tables_made: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Optuna's own connection fails right after the lock of a trial was taken, and again when its owner is checked."""
    real, calls = _claim, []

    def failing(*args: Any, **kwargs: Any) -> Claim:
        calls.append(1)
        if len(calls) == 1:
            raise StoreAway("Optuna's database does not answer (for a moment)")
        return real(*args, **kwargs)

    monkeypatch.setattr(claims, "_claim", failing)
    assert command(study_file, *ONE_ARM, "--trials", "1", "--epochs", "1") == 0
    assert "(for a moment); waiting" in capsys.readouterr().out
    assert [t.state.name for t in trials(tables_made)] == ["COMPLETE"]


def test_whose_a_trial_is_has_to_be_seen(
    study_file: Path,
    tables_made: dict[str, str],
    postgresql: PostgreSQL,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lock is taken again, but the check of the owner fails once: the next `ensure_held` must check again."""
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)
    seen = []

    def lose(number: int, epoch: int) -> None:
        if epoch == 2:
            postgresql.query("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
            database = tables_made["OPTUNA_STORAGE"].rpartition("/")[2]
            postgresql.query("UPDATE trial_user_attributes SET value_json = '\"-other\"' WHERE key = 'owner'", database)

    real = claims._stored

    def failing_once(trial: optuna.Trial) -> Any:
        if not seen and sys._getframe(1).f_code.co_name == "ensure_held":
            seen.append(1)
            raise StoreAway("starting up")
        return real(trial)

    patched_train(monkeypatch, lose)
    monkeypatch.setattr(claims, "_stored", failing_once)
    monkeypatch.setattr(
        "ablation.running.study.run_study", lambda *arguments: work_until_done(open_session(*arguments))
    )
    monkeypatch.setattr(worker, "all_ended", lambda *_: bool(seen))
    monkeypatch.setattr(worker, "claim_trial", once(claim_trial))
    assert command(study_file, *ONE_ARM, "--trials", "1", "--epochs", "4") == 0
    assert seen
    (only,) = trials(tables_made)
    assert list(only.intermediate_values) == [1]  # nothing was written for a trial that is another's


# ----------------------------------------------------------------------------------------- the tracking server is away


@pytest.mark.usefixtures("impatient")
def test_the_tracking_server_is_away_for_a_whole_trial(
    command: Command, study_file: Path, server: Server, postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch,
    capsys: Any, caplog: Any,
) -> None:  # fmt: skip
    """It stops in the middle of trial 0, is away for all of trial 1, and comes back in trial 2; then for the end.

    One warning; what the machine's load was meanwhile comes late, too.
    """
    environment = {"OPTUNA_STORAGE": postgresql.new_database(), "MLFLOW_TRACKING_URI": server.address}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.02")
    actions = {(0, 2): server.stop, (2, 2): server.start, (3, 1): server.stop}

    def act(number: int, epoch: int) -> None:
        actions.get((number, epoch), lambda: None)()
        time.sleep(0.05)

    patched_train(monkeypatch, act)
    arguments = [study_file, *ONE_ARM, "--epochs", "3", "--trials"]
    assert command(*arguments, "3", "--system-metrics") == 0
    assert [record.getMessage()[:22] for record in caplog.records if record.levelno >= logging.WARNING] == [
        "MLflow does not answer", "MLflow answers again",
    ]  # fmt: skip
    assert not any("SystemMetrics" in thread.name for thread in threading.enumerate())
    for run in runs(environment):
        assert run.info.status == "FINISHED"
        assert steps(environment, run) == [1, 2, 3]
        assert len(run.inputs.dataset_inputs) == 1
        paths = {file.path for file in MlflowClient().list_artifacts(run.info.run_id, "checkpoint")}
        assert paths == {CHECKPOINT_FILE}
        frozen = trials(environment)[int(run.data.tags["trial"])]
        assert frozen.value == run.data.metrics["best_val_accuracy"]
        loads = MlflowClient().get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
        assert len(loads) > 5
        assert [point.step for point in loads] == list(range(len(loads)))
    assert len(runs(environment)) == 3
    assert caplog.text.count("MLflow does not answer") == caplog.text.count("MLflow answers again") == 1
    assert not list(Path("mlruns/checkpoints").glob("*/*"))

    # It goes away for good: the study ends, says so, and the next start delivers.
    capsys.readouterr()
    assert command(*arguments, "4", "--patience", "0.02") == 1
    captured = capsys.readouterr()
    assert "4 finished" in captured.out
    assert "the results of 1 trial are kept in" in captured.err
    assert "no complete report yet: run the same command again" in captured.err
    assert [t.state.name for t in trials(environment)] == ["COMPLETE"] * 4
    server.start()
    (outbox,) = Path("mlruns/checkpoints").glob("*/*/outbox-*")
    gone = Path(*outbox.parts[:-2], "9", "outbox")  # of a trial that was deleted from both stores
    gone.mkdir(parents=True)
    (gone / "000001.json").write_text('{"call": "end", "arguments": {}, "file": null}')
    assert command(*arguments, "4") == 0
    assert "was deleted; its results are dropped" in caplog.text
    assert [steps(environment, run) for run in runs(environment)] == [[1, 2, 3]] * 4
    assert {run.info.status for run in runs(environment)} == {"FINISHED"}
    assert not list(Path("mlruns/checkpoints").glob("*/*"))


# -------------------------------------------------------------------------------------------------------- refusals


def tables(address: str) -> list[Any]:
    """Return the tables of a database with the number of their rows."""
    with psycopg.connect(address) as database:
        names = [row[0] for row in database.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        return sorted((name, database.execute(f'SELECT count(*) FROM "{name}"').fetchone()) for name in names)


def refused(command: Command, capsys: Any, *arguments: object) -> str:
    """Return the one line with which a command is refused, before it has written anything here."""
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    assert command(*arguments) == 2
    error: str = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert PostgreSQL.PASSWORD not in error
    assert sorted(Path().rglob("*")) == before
    return error


@pytest.mark.parametrize(
    ("variable", "address", "expected"),
    [
        ("OPTUNA_STORAGE", "mysql://u:hush@h/d", "OPTUNA_STORAGE: must be sqlite:///FILE or postgresql://"),
        ("OPTUNA_STORAGE", "postgresql://ablation:hush@127.0.0.1:{port}/x", "password authentication failed"),
        ("OPTUNA_STORAGE", "postgresql://ablation:not-a-secret@127.0.0.1:{port}/none", '"none" does not exist'),
        ("OPTUNA_STORAGE", "postgresql://ablation:x@hush@127.0.0.1:9/x", "write @ / ? # in a user name or password as"),
        ("MLFLOW_TRACKING_URI", "http://ablation:x/hush@127.0.0.1:9", "MLFLOW_TRACKING_URI: write @ / ? #"),
        ("OPTUNA_STORAGE", "postgresql://ablation:hush@127.0.0.1:port/x", "OPTUNA_STORAGE: cannot be opened"),
        ("MLFLOW_TRACKING_URI", "postgresql://ablation:hush@127.0.0.1:{port}/x", "password authentication failed"),
        ("MLFLOW_TRACKING_URI", "nonsense://ablation:hush@h", "MLFLOW_TRACKING_URI: must be http"),
    ],
)
def test_wrong_addresses_are_refused(
    command: Command, study_file: Path, databases: dict[str, str], postgresql: PostgreSQL,
    monkeypatch: pytest.MonkeyPatch, capsys: Any, variable: str, address: str, expected: str,
) -> None:  # fmt: skip
    monkeypatch.setenv(variable, address.format(port=postgresql.port))
    error = refused(command, capsys, study_file)
    assert expected in error
    assert "hush" not in error
    for name in {"OPTUNA_STORAGE", "MLFLOW_TRACKING_URI"} - {variable}:
        assert tables(databases[name]) == []


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("variable", "address"),
    [
        ("OPTUNA_STORAGE", "postgresql://ablation:hush@127.0.0.1:9/x"),
        ("MLFLOW_TRACKING_URI", "postgresql://ablation:hush@127.0.0.1:9/x"),
        ("MLFLOW_TRACKING_URI", "http://ablation:hush@127.0.0.1:9"),
        ("MLFLOW_TRACKING_URI", "http://ablation:hush@nowhere.invalid"),
    ],
)
def test_a_server_that_is_not_there_is_waited_for(
    command: Command, study_file: Path, databases: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any,
    caplog: Any, variable: str, address: str,
) -> None:  # fmt: skip
    """For as long as the patience; a person may have to change nothing, so the status is not that of a refusal."""
    monkeypatch.setenv(variable, address)
    assert command(study_file, "--patience", "0.02") == 1
    error = capsys.readouterr().err
    reason = "the name of its host is unknown" if "nowhere" in address else "refused"
    assert reason in error.splitlines()[-1]
    assert caplog.text.count(f"{reason}") == caplog.text.count("waiting for up to 1 s") == 1
    assert "hush" not in error + caplog.text
    for name in {"OPTUNA_STORAGE", "MLFLOW_TRACKING_URI"} - {variable}:
        assert tables(databases[name]) == []


class Pretender(http.server.BaseHTTPRequestHandler):
    """A server that says it is an old MLflow, or lets nobody in."""

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def answer(self) -> None:
        status, text = {"/version": (200, "2.9.2")}.get(self.path, (self.server.status, "{}"))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, "the server is MLflow 2.9.2, but MLflow 3."),
        (401, "cannot be opened as MLflow's store"),
    ],
)
def test_a_server_that_does_not_fit_is_refused(
    command: Command, study_file: Path, databases: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any,
    status: int, expected: str,
) -> None:  # fmt: skip
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pretender) as server:
        server.status = status
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        assert expected in refused(command, capsys, study_file)
        server.shutdown()
    assert tables(databases["OPTUNA_STORAGE"]) == []


@pytest.mark.parametrize(
    ("variable", "newer", "expected"),
    [
        ("OPTUNA_STORAGE", "UPDATE alembic_version SET version_num = 'v99.0.0.a'", "OPTUNA_STORAGE: cannot be opened"),
        ("MLFLOW_TRACKING_URI", "UPDATE alembic_version SET version_num = 'abc'", "found version abc"),
    ],
)
def test_a_newer_schema_is_refused(
    command: Command, study_file: Path, tables_made: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any,
    variable: str, newer: str, expected: str,
) -> None:  # fmt: skip
    small = [study_file, *ONE_ARM, "--epochs", "1", "--trials"]
    assert command(*small, "1") == 0
    with psycopg.connect(tables_made[variable]) as database:
        database.execute(newer)
    before = {name: tables(tables_made[name]) for name in ("OPTUNA_STORAGE", "MLFLOW_TRACKING_URI")}
    monkeypatch.setenv(variable, f"{tables_made[variable]}?application_name=again")  # MLflow looks once per address
    assert expected in refused(command, capsys, *small, "2")
    assert {name: tables(tables_made[name]) for name in before} == before


def test_one_database_for_both_is_refused(
    command: Command, study_file: Path, databases: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", databases["OPTUNA_STORAGE"])
    assert "need two databases" in refused(command, capsys, study_file)
    assert tables(databases["OPTUNA_STORAGE"]) == []


def test_reconciliation_closes_what_is_left_open(
    command: Command, study_file: Path, tables_made: dict[str, str]
) -> None:
    """Runs that say they go on though their trial has ended or is not there; another database's are left alone."""
    assert command(study_file, *ONE_ARM, "--trials", "2", "--epochs", "1") == 0
    client = MlflowClient(tables_made["MLFLOW_TRACKING_URI"])
    first, second = runs(tables_made)
    arm_key = first.data.tags[KEY_TAG].rpartition("/")[0]
    client.update_run(first.info.run_id, status="RUNNING")
    client.update_run(second.info.run_id, status="SCHEDULED")
    for key in (f"{arm_key}/7", "ffff/0"):
        client.create_run(first.info.experiment_id, tags={"kind": "trial", KEY_TAG: key, "trial": key})
    assert command(study_file, *ONE_ARM, "--trials", "2", "--epochs", "1") == 0
    assert {run.data.tags["trial"]: run.info.status for run in runs(tables_made)} == {
        "0": "FINISHED", "1": "FINISHED", f"{arm_key}/7": "FAILED", "ffff/0": "RUNNING",
    }  # fmt: skip


def test_passwords_are_nowhere(
    command: Command, study_file: Path, databases: dict[str, str], capsys: Any, tmp_path: Path
) -> None:
    assert command(study_file, *ONE_ARM, "--epochs", "1", "--trials", "1") == 0
    captured = capsys.readouterr()
    assert PostgreSQL.PASSWORD not in captured.out + captured.err
    for name in ("OPTUNA_STORAGE", "MLFLOW_TRACKING_URI"):
        with psycopg.connect(databases[name]) as database:
            for table, _ in tables(databases[name]):
                assert PostgreSQL.PASSWORD not in str(database.execute(f'SELECT * FROM "{table}"').fetchall())
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or PostgreSQL.PASSWORD.encode() not in path.read_bytes()
