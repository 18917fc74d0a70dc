"""The MLflow client: opens a store, checks it, and translates errors."""

import os
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlencode, urlsplit

import requests
import sqlalchemy
import sqlalchemy.exc
from mlflow import MlflowClient
from mlflow.entities import Experiment, LoggedModelOutput, Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store import db_migrations
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from mlflow.version import VERSION

from ablation.base.errors import InputError, StoreError
from ablation.base.interrupts import uninterrupted
from ablation.base.retries import repeat_briefly
from ablation.base.text import nearest
from ablation.spec.reading import NAME_PATTERN
from ablation.storage.locks import POSTGRES_CONNECT_ARGS, opening
from ablation.storage.new_database import build_database
from ablation.storage.outages import opening_reason, store_error
from ablation.storage.store import (
    DEFAULT_STORE,
    POSTGRESQL,
    POSTGRESQL_PACKAGES,
    SERVERS,
    Store,
    sqlite_path,
)
from ablation.tracking.answers import MLFLOW

T = TypeVar("T")


def folder_to_name(store: Store) -> Path | None:
    """Return the folder that a command on a store must name; None for the default one, and behind a server."""
    is_default = store.root == Path(DEFAULT_STORE).absolute()
    return store.root if store.has_own_tracking and not is_default else None


def ui_command(store: Store, study: str) -> str:
    """Return the command that opens the MLflow UI on a study; for a store behind a server, the server has the UI."""
    command = ["python", "-m", "ablation.ui", study]
    folder = folder_to_name(store)
    if folder is not None:
        is_below = folder.is_relative_to(Path.cwd())
        command += ["--store", str(folder.relative_to(Path.cwd()) if is_below else folder)]
    return shlex.join(command)


def ui_server(store: Store) -> str:
    """Return the address of the MLflow UI: the tracking server's, else that of a UI on this machine."""
    if not is_server(store):
        return "http://127.0.0.1:5000"
    scheme, place, path, *_ = urlsplit(store.tracking_uri)
    return f"{scheme}://{place.rpartition('@')[2]}{path.rstrip('/')}"  # without name and password


CHECKPOINT_FILE = "checkpoint/best.safetensors"
PREDICTIONS_FILE = "test/predictions.safetensors"  # of a confirmation run
STUDY_JSON = "study.json"  # of every run: the study file with overrides and defaults
ABOUT_FILE = "about.json"  # of the summary run: the study's content, for the report
SAMPLES_FILE = "samples.safetensors"  # of the summary run: training images for the report
DATA_FILE = "data.safetensors"  # of the summary run: what the report shows of the whole set
FORECAST_FILE = "forecast.json"  # of the summary run: what the features of each cut say before any training

REPORT_FOLDER = "report"  # of the summary run
KEY_TAG = "ablation.key"  # unique: finds a run whose id was not stored
REFUSAL_TAG = "ablation.not_registered"  # of a summary run: why the best run of its study is not the champion
NOTE_TAG = "mlflow.note.content"  # shown as a run's or an experiment's description
COLOUR_TAG = "mlflow.runColor"  # in the charts of the UI, where a person can change it

# Called before every call to MLflow, see `guarded`.
_guard: ContextVar[Callable[[], object]] = ContextVar("guard", default=lambda: None)

AWAY_SECONDS = 30  # for which a trial does not call a server again that did not answer

# Calls that MLflow refuses when they have been carried out before.
ONCE = ("create_", "log_outputs", "restore_experiment")

# Calls that MLFLOW_ENABLE_ASYNC_LOGGING would hand to a thread, whose errors nobody hears of.
LOGGING_CALLS = ("log_batch", "log_metric", "log_param", "set_tag")

RunStatus = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]


class PatientClient:
    """MLflow's client for a store, with the methods of `MlflowClient`.

    Calls that fail because a server or database is away are repeated for a few seconds, except those that can be made
    only `ONCE`: they may have succeeded, so who makes them looks first.

    Every method raises:
        StoreAway: the server or database is away for longer.
        StoreError: MLflow refuses the call, or its database cannot be used; `code` is MLflow's.
    """

    def __init__(self, store: Store):
        self._store = store
        uri = _client_uri(store)
        self._client = MlflowClient(uri, registry_uri=uri)  # whatever MLFLOW_REGISTRY_URI says
        self.tracking_uri: str = self._client.tracking_uri

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if name in LOGGING_CALLS:
                kwargs["synchronous"] = True
            try:
                return self.ask(lambda: method(*args, **kwargs), repeat=not name.startswith(ONCE))
            except StoreError as error:
                if name.startswith("delete_") and error.code == "RESOURCE_DOES_NOT_EXIST":
                    return None  # only the answer to an earlier attempt was lost
                raise

        return call

    def ask(self, call: Callable[[], T], *, repeat: bool = True) -> T:
        """Return what a call to MLflow returns; raise as every method does."""
        return ask_mlflow(self._store, call, repeat=repeat)


@contextmanager
def guarded(check: Callable[[], object]) -> Iterator[None]:
    """Call `check` before every call to MLflow in this context, also when one is repeated.

    A process may be frozen between two calls, and come back when another one has its lock. `check` raises an error
    then, so that nothing is written over what the other has written.
    """
    token = _guard.set(check)
    try:
        yield
    finally:
        _guard.reset(token)


def ask_mlflow(store: Store, call: Callable[[], T], *, repeat: bool = True) -> T:
    """Return what a call to a store's MLflow returns.

    Args:
        store: where the call goes.
        call: is repeated for a few seconds while the server or database is away.
        repeat: whether to do that.

    Raises:
        StoreAway: the server or database is away for longer.
        StoreError: MLflow refuses the call, or its database cannot be used.
    """

    def attempt() -> T:
        _guard.get()()
        try:
            with uninterrupted():
                return call()
        except (MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
            code = error.error_code if isinstance(error, MlflowException) else ""
            raise store_error(error, MLFLOW, f"{_where(store)}: MLflow's store", code) from None

    return repeat_briefly(attempt) if repeat else attempt()


def search_all_runs(
    client: PatientClient, experiment_id: str, query: str, view: int = ViewType.ACTIVE_ONLY
) -> Iterator[Run]:
    """Yield all runs of an experiment that match a query, page by page; `view` says whether deleted ones, too."""
    return all_pages(client.search_runs, [experiment_id], query, view)


def all_pages(search: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[Any]:
    """Yield all that a search of MLflow's client finds with these arguments, page by page."""
    token = None
    while True:
        page = search(*args, **kwargs, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def link_model(client: PatientClient, run_id: str, model_id: str) -> None:
    """Name a logged model as a run's output, unless the run names it already.

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """

    def attempt() -> None:
        outputs = client.get_run(run_id).outputs
        if outputs is None or model_id not in [output.model_id for output in outputs.model_outputs]:
            client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])

    repeat_briefly(attempt)


def _where(store: Store) -> str:
    return str(store.root / "mlflow.db") if store.has_own_tracking else "MLFLOW_TRACKING_URI"


def check_experiment(
    store: Store, study: str, key: str | None, *, is_repair: bool = False, is_redo: bool = False
) -> str | None:
    """Refuse a study that could not log to a store, without changing anything.

    Args:
        store: where the study would run.
        study: its name.
        key: the key of the experiment that its trials were logged to; None without any.
        is_repair: whether runs that MLflow has lost will be made again.
        is_redo: whether an experiment that somebody has deleted in MLflow will be restored.

    Returns:
        The id of its experiment; None where there is none yet.

    Raises:
        InputError: the store cannot be opened or was moved, or the experiment was deleted or is in another store.
        StoreAway: the server or database is away.
    """
    client = open_client(store)
    if client is None and key is not None and not store.has_remote_tracking and not is_repair:
        state = "is empty" if sqlite_path(store.tracking_uri).exists() else "does not exist"
        raise InputError(
            f"{_where(store)} {state}, but study {study!r} has trials whose runs were in it: restore it from a backup, "
            "let --repair train them again, or choose another --name"
        )
    with opening_errors(store):
        experiment = None if client is None else experiment_of(client, study, key)
    if experiment is not None and experiment.lifecycle_stage == "deleted" and not is_redo:
        raise InputError(
            f"the MLflow experiment {experiment.name!r} was deleted; --redo restores it, or choose another --name"
        )
    if key is not None and experiment is None and not is_repair:
        raise InputError(
            f"the trials of study {study!r} were logged to another MLflow store than {_where(store)}, or it has lost "
            "them: use that one, let --repair train them again, or choose another --name"
        )
    if experiment is None:
        return None
    if store.has_own_tracking and experiment.artifact_location != store.artifacts(study).as_uri():
        raise InputError(
            f"--store: {store.root} is a copy, and MLflow keeps the address of its artifacts "
            f"({experiment.artifact_location}); it can be read here, but a study resumes only where it was started"
        )
    return str(experiment.experiment_id)


def experiment_of(client: PatientClient, study: str, key: str | None = None) -> Experiment | None:
    """Return a study's experiment, under whatever name somebody has given it; None if there is none.

    Args:
        client: of the store.
        study: the study's name.
        key: the experiment's; None where that is not known. An experiment without a key is then taken for the study's
            only if it has the study's name.
    """
    named: Experiment | None = client.get_experiment_by_name(study)
    if named is not None and (key is None or named.tags.get(KEY_TAG) == key):
        return named
    experiments = [other for other in all_pages(client.search_experiments, ViewType.ALL) if KEY_TAG in other.tags]
    if key is not None:
        return next((other for other in experiments if other.tags[KEY_TAG] == key), None)
    if not NAME_PATTERN.fullmatch(study):  # no study has such a name, and a query could not hold it
        return None
    ids = [other.experiment_id for other in experiments]
    runs = client.search_runs(ids, f"tags.kind = 'summary' and tags.study = '{study}'", max_results=1) if ids else []
    return next((other for run in runs for other in experiments if other.experiment_id == run.info.experiment_id), None)


def open_client(store: Store, *, create: bool = False) -> PatientClient | None:
    """Return a client on the store; None where a database has no tables of MLflow, unless `create` makes them.

    Raises:
        InputError: the store cannot be opened, or its server has another major version than this client.
        StoreAway: the server or database is away.
    """
    with opening_errors(store):
        client = ask_mlflow(store, lambda: _open(store, create))
        theirs = ask_mlflow(store, lambda: _server_version(store)) if is_server(store) else VERSION
    if theirs.split(".")[0] != VERSION.split(".")[0]:
        raise InputError(f"MLFLOW_TRACKING_URI: the server is MLflow {theirs}, but MLflow {VERSION} is installed here")
    return client


def _open(store: Store, create: bool) -> PatientClient | None:
    with opening(store.tracking_uri, create=create):
        # Asked first: where it cannot be opened, MLflow tries for minutes without a word.
        if not is_server(store) and not _has_tables(store) and not create:
            return None
        build_database(store.tracking_uri, lambda url: MlflowClient(url).search_experiments(max_results=1))
        client = PatientClient(store)
        client._client.search_experiments(max_results=1)  # fails without permission; who called this repeats it
        return client


@contextmanager
def opening_errors(store: Store) -> Iterator[None]:
    """Translate errors of opening a store to InputError, in one line; `StoreAway` is passed on."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"MLFLOW_TRACKING_URI: needs {error.name}: {POSTGRESQL_PACKAGES}") from None
    except InputError:
        raise
    except (StoreError, ValueError) as error:
        reason = _schema_reason(error) or opening_reason(error)
        raise InputError(f"{_where(store)}: cannot be opened as MLflow's store ({reason})") from None


def _schema_reason(error: Exception) -> str | None:
    """Return in words how a database's schema differs from this MLflow's, which calls a newer one out-of-date, too."""
    versions = re.search(r"database schema \(found version (\w+)", str(error))
    if versions is None:
        return None
    found = versions.group(1)
    folder = Path(db_migrations.__path__[0]) / "versions"
    if any(folder.glob(f"{found}_*.py")):
        return f"its schema, found version {found}, is of an older MLflow: back it up, then python -m mlflow db upgrade"
    return f"its schema, found version {found}, is of a newer MLflow than {VERSION}, which is installed here"


def _client_uri(store: Store) -> str:
    """Return the address for MLflow's client; for PostgreSQL with the time to wait for a lost server."""
    if not store.tracking_uri.startswith(POSTGRESQL):
        return store.tracking_uri
    mark = "&" if "?" in store.tracking_uri else "?"
    return f"{store.tracking_uri}{mark}{urlencode(POSTGRES_CONNECT_ARGS)}"


def is_server(store: Store) -> bool:
    """Return whether the store's runs are behind a tracking server, not in a database."""
    return store.tracking_uri.startswith(SERVERS)


def artifact_location(store: Store, study: str) -> str:
    """Return the address of a study's artifacts in a store without a tracking server: clients write them directly."""
    root = None if store.has_own_tracking else os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT")
    return f"{root.rstrip('/')}/{study}" if root else store.artifacts(study).as_uri()


def _server_version(store: Store) -> str:
    """Return a server's version, or ours if it does not report one: it is another program with MLflow's interface."""
    credentials = get_default_host_creds(store.tracking_uri)  # type: ignore[no-untyped-call]
    response = http_request(credentials, "/version", "GET")  # type: ignore[no-untyped-call]
    text = response.text.strip()
    return text if response.status_code == 200 and re.fullmatch(r"\d+\.\d+\S*", text) else VERSION


def _has_tables(store: Store) -> bool:
    if not store.has_remote_tracking:
        path = sqlite_path(store.tracking_uri)
        if path.is_dir():
            raise InputError(f"{path} is a folder, not MLflow's database")
        if not path.exists():
            return False
    engine = sqlalchemy.create_engine(_client_uri(store))
    try:
        return bool(sqlalchemy.inspect(engine).has_table("experiments"))
    finally:
        engine.dispose()


def reading_client(store: Store) -> PatientClient:
    """Return a client on a store that is not empty.

    Raises:
        InputError: the store cannot be opened, or is empty.
        StoreAway: the server or database is away.
    """
    client = open_client(store)
    if client is None:
        raise InputError(f"{_where(store)}: is no store, or an empty one")
    return client


def find_experiment(client: PatientClient, store: Store, study: str) -> Experiment:
    """Return a study's experiment.

    Raises:
        InputError: there is no such study.
        StoreAway: the server or database is away.
        StoreError: MLflow's store cannot be used.
    """
    experiment = experiment_of(client, study)
    if experiment is None or KEY_TAG not in experiment.tags:
        names = [other.name for other in all_pages(client.search_experiments) if KEY_TAG in other.tags]
        raise InputError(f"{_where(store)}: has no study {study!r}{nearest(study, names) if names else ''}")
    if experiment.lifecycle_stage == "deleted":
        raise InputError(f"{_where(store)}: the experiment of study {study!r} was deleted; --redo restores it")
    return experiment
