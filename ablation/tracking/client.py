"""The MLflow client: opens a store, checks it, and translates errors."""

import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import quote, urlencode

import requests
import sqlalchemy
import sqlalchemy.exc
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run
from mlflow.exceptions import MlflowException, RestException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from mlflow.version import VERSION

from ablation.base.errors import InputError, StoreAway, StoreError
from ablation.base.interrupts import uninterrupted
from ablation.base.text import first_line, nearest
from ablation.storage.locks import POSTGRES_CONNECT_ARGS, opening
from ablation.storage.store import POSTGRESQL, Store, build_database, sqlite_path


def ui_command(store: Store) -> str:
    """Return the command that opens the MLflow UI on a store."""
    if store.has_own_tracking:
        database = store.root / "mlflow.db"
        if database.is_relative_to(Path.cwd()):
            database = database.relative_to(Path.cwd())
        return f"python -m mlflow ui --backend-store-uri {shlex.quote(f'sqlite:///{database}')}"
    if store.tracking_uri.startswith("http"):
        return "open the address in MLFLOW_TRACKING_URI"
    return 'python -m mlflow ui --backend-store-uri "$MLFLOW_TRACKING_URI"'


def ui_address(experiment_id: str, *, has_confirmations: bool) -> str:
    """Return the address of an experiment's charts in a UI started by `ui_command`: of its confirmation runs if any."""
    # The UI opens in its GenAI mode without the workflow.
    query = {"compareRunsMode": "CHART", "workflowType": "machine_learning"}
    if has_confirmations:
        query |= {"searchFilter": "tags.kind = 'confirmation'"}
        query |= {"orderByKey": "metrics.`test_accuracy`", "orderByAsc": "false"}
    return f"http://127.0.0.1:5000/#/experiments/{experiment_id}/runs?{urlencode(query, quote_via=quote)}"


CHECKPOINT_FILE = "checkpoint/best.safetensors"
PREDICTIONS_FILE = "test/predictions.safetensors"  # of a confirmation run
STUDY_FILE = "about.json"  # of the summary run: the study's content, for the report
SAMPLES_FILE = "samples.safetensors"  # of the summary run: training images for the report
FORECAST_FILE = "forecast.json"  # of the summary run: what the features of each cut say before any training

REPORT_FOLDER = "report"  # of the summary run
KEY_TAG = "ablation.key"  # unique: finds a run whose id was not stored
NOTE_TAG = "mlflow.note.content"  # shown as a run's or an experiment's description

AWAY_SECONDS = 10  # pause between calls to a server that did not answer

RunStatus = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]


def search_all_runs(client: MlflowClient, experiment_id: str, query: str) -> Iterator[Run]:
    """Yield all runs of an experiment that match a query, page by page."""
    token = None
    while True:
        page = client.search_runs([experiment_id], query, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


@contextmanager
def mlflow_errors(store: Store) -> Iterator[None]:
    """Translate errors of calls to MLflow: StoreAway if a server may come back, otherwise StoreError."""
    try:
        with uninterrupted():
            yield
    except (MlflowException, requests.RequestException, OSError) as error:
        reason = first_line(error)
        if store.has_remote_tracking and is_outage(error):
            raise StoreAway(f"MLflow does not answer ({reason})") from None
        raise StoreError(f"{_where(store)}: MLflow's store cannot be used ({reason})") from None


def is_outage(error: BaseException) -> bool:
    """Return whether a call failed because a server did not answer, so that it may succeed later.

    MLflow's client raises the same class, with the code of a server's fault, for calls that it refuses itself.
    """
    if isinstance(error, MlflowException):
        if type(error.__cause__).__name__ in ("OperationalError", "InterfaceError"):  # of a database
            return True
        status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
        is_of_server = isinstance(error, RestException) or str(error).startswith("API request to")
        return is_of_server and (status >= 500 or error.error_code == "REQUEST_LIMIT_EXCEEDED")
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, requests.RequestException)


def _where(store: Store) -> str:
    return str(store.root / "mlflow.db") if store.has_own_tracking else "MLFLOW_TRACKING_URI"


def check_experiment(store: Store, study: str, key: str | None) -> None:
    """Refuse a study that could not log to a store, without changing anything.

    Args:
        store: where the study would run.
        study: its name.
        key: the key of the experiment that its trials were logged to; None without any.

    Raises:
        InputError: the store cannot be opened or was moved, or the experiment was deleted or is in another store.
    """
    client = open_client(store)
    with opening_errors(store):
        experiment = client.get_experiment_by_name(study) if client is not None else None
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        raise InputError(f"the MLflow experiment {study!r} was deleted; restore it, or choose another --name")
    if key is not None and (experiment is None or experiment.tags.get(KEY_TAG) != key):
        raise InputError(
            f"the trials of study {study!r} were logged to another MLflow store than {_where(store)}; "
            "use that one, or choose another --name"
        )
    if experiment is None:
        return
    if store.has_own_tracking and experiment.artifact_location != store.artifacts(study).as_uri():
        raise InputError(
            f"--store: {store.root} is a copy, and MLflow keeps the address of its artifacts "
            f"({experiment.artifact_location}); it can be read here, but a study resumes only where it was started"
        )


def open_client(store: Store, *, create: bool = False) -> MlflowClient | None:
    """Return a client on the store; None where a database has no tables of MLflow, unless `create` makes them.

    Raises:
        InputError: the store cannot be opened, or its server has another major version than this client.
    """
    with opening_errors(store), opening(store.tracking_uri, create=create):
        if not is_server(store) and not create and not _has_tables(store):
            return None
        build_database(store.tracking_uri, lambda url: MlflowClient(url).search_experiments(max_results=1))
        client = MlflowClient(tracking_uri=_client_uri(store))
        theirs = _server_version(store) if is_server(store) else VERSION
        client.search_experiments(max_results=1)  # fails without permission
    if theirs.split(".")[0] != VERSION.split(".")[0]:
        raise InputError(f"MLFLOW_TRACKING_URI: the server is MLflow {theirs}, but MLflow {VERSION} is installed here")
    return client


@contextmanager
def opening_errors(store: Store) -> Iterator[None]:
    """Translate errors of opening a store to InputError, in one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"MLFLOW_TRACKING_URI: needs {error.name}; install ablation[postgresql]") from None
    except InputError:
        raise
    except (
        MlflowException, sqlalchemy.exc.SQLAlchemyError, requests.RequestException, StoreAway, OSError, ValueError
    ) as error:  # fmt: skip
        reason = first_line(getattr(error, "orig", None) or error)
        raise InputError(f"{_where(store)}: cannot be opened as MLflow's store ({reason})") from None


def _client_uri(store: Store) -> str:
    """Return the address for MLflow's client; for PostgreSQL with the time to wait for a lost server."""
    if not store.tracking_uri.startswith(POSTGRESQL):
        return store.tracking_uri
    mark = "&" if "?" in store.tracking_uri else "?"
    return f"{store.tracking_uri}{mark}{urlencode(POSTGRES_CONNECT_ARGS)}"


def is_server(store: Store) -> bool:
    """Return whether the store's runs are behind a tracking server, not in a database."""
    return store.tracking_uri.startswith(("http://", "https://"))


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
        return sqlite_path(store.tracking_uri).exists()
    engine = sqlalchemy.create_engine(_client_uri(store))
    try:
        return bool(sqlalchemy.inspect(engine).has_table("experiments"))
    finally:
        engine.dispose()


def reading_client(store: Store) -> MlflowClient:
    """Return a client on a store that is not empty.

    Raises:
        InputError: the store cannot be opened, or is empty.
        StoreAway: the tracking server does not answer.
        StoreError: it answers with a fault.
    """
    if is_server(store):
        with mlflow_errors(store):  # `open_client` does not distinguish a server that may come back
            MlflowClient(tracking_uri=_client_uri(store)).search_experiments(max_results=1)
    client = open_client(store)
    if client is None:
        raise InputError(f"{_where(store)}: is no store, or an empty one")
    return client


def find_experiment(client: MlflowClient, store: Store, study: str) -> Experiment:
    """Return a study's experiment.

    Raises:
        InputError: there is no such study.
    """
    experiment = client.get_experiment_by_name(study)
    if experiment is None or KEY_TAG not in experiment.tags:
        names = [other.name for other in client.search_experiments() if KEY_TAG in other.tags]
        raise InputError(f"{_where(store)}: has no study {study!r}{nearest(study, names) if names else ''}")
    return experiment
