"""Large studies without training, made by SQL, and what their trials, --status, report, --list and the UI cost then.

    python -m tests.grown_study FOLDER --trials 10000      one study of so many trials: copies of fifty simulated ones
    python -m tests.grown_study FOLDER --studies 100       so many studies in one store

A store that exists is measured as it is, so that a change can be compared.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import sqlalchemy
from sqlalchemy import Connection, Table, select

from ablation.analysis.results import read_results
from ablation.benchmark.scale import ARMS, scale, simulated_spec, work
from ablation.running.mlflow_pages import conclude_pages
from ablation.running.options import RunOptions
from ablation.running.session import open_session
from ablation.search import configure_optuna
from ablation.search.studies import open_storage, stored_content, stored_studies, study_arms
from ablation.storage.store import Store, find_store
from ablation.tracking import configure_mlflow
from tests.browser import browser_page, mlflow_ui, open_view

SEED_TRIALS = 50  # that are really run, and then copied
MEASURED = 25  # further trials, run in the grown store
ROWS_AT_ONCE = 20_000

Row = dict[str, Any]


def grow(store: Store, study: str, trials_per_arm: int) -> None:
    """Copy the ended trials of a study, which has no confirmation runs, until each arm has so many."""
    made: dict[
        tuple[str, int], tuple[str, int, str]
    ] = {}  # (arm's key, number) -> old run's id, old number, new run's id
    with _opened(store.optuna_url) as (connection, tables):
        for arm in _rows(connection, tables["studies"]):
            if arm["study_name"].startswith(f"{study}/"):
                _grow_arm(connection, tables, arm["study_id"], trials_per_arm, made)
    with _opened(store.tracking_uri) as (connection, tables):
        _copy_runs(connection, tables, made)


def _grow_arm(
    connection: Connection, tables: Mapping[str, Table], study_id: int, count: int,
    made: dict[tuple[str, int], tuple[str, int, str]],
) -> None:  # fmt: skip
    attributes = {row["key"]: json.loads(row["value_json"]) for row in
                  _rows(connection, tables["study_user_attributes"], study_id=study_id)}  # fmt: skip
    trials = sorted(_rows(connection, tables["trials"], study_id=study_id), key=lambda row: row["number"])
    last_id = connection.execute(select(sqlalchemy.func.max(tables["trials"].c.trial_id))).scalar_one()
    ids: list[tuple[int, int, int]] = []  # old trial's id, new number, new id
    for number in range(len(trials), count):
        ids.append((trials[number % len(trials)]["trial_id"], number, last_id + 1 + len(ids)))
    old_trials = {row["trial_id"]: row for row in trials}
    _insert(
        connection,
        tables["trials"],
        ({**old_trials[old], "number": number, "trial_id": new} for old, number, new in ids),
    )
    for name in ("trial_params", "trial_values", "trial_intermediate_values", "trial_user_attributes"):
        table = tables[name]
        (own_id,) = (column.name for column in table.primary_key)
        of_trial: dict[int, list[Row]] = {}
        for row in _rows(connection, table):
            of_trial.setdefault(row["trial_id"], []).append({key: row[key] for key in row if key != own_id})

        def copies(of_trial: Mapping[int, list[Row]] = of_trial) -> Iterable[Row]:
            for old, number, new in ids:
                for row in of_trial.get(old, []):
                    yield {**row, "trial_id": new, **_attribute(row, number, made, attributes["key"], old_trials[old])}

        _insert(connection, table, copies())
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(
            "select setval(pg_get_serial_sequence('trials', 'trial_id'), max(trial_id)) from trials"
        )


def _attribute(row: Row, number: int, made: dict[tuple[str, int], tuple[str, int, str]], arm_key: str, old: Row) -> Row:
    """Return what is another in the copy of a trial's attribute: its number, and the id of its run."""
    if row.get("key") == "spec":
        return {"value_json": json.dumps({**json.loads(row["value_json"]), "trial": str(number)})}
    if row.get("key") == "run_id":
        run_id = uuid.uuid4().hex
        made[arm_key, number] = json.loads(row["value_json"]), old["number"], run_id
        return {"value_json": json.dumps(run_id)}
    return {}


def _copy_runs(
    connection: Connection, tables: Mapping[str, Table], made: Mapping[tuple[str, int], tuple[str, int, str]]
) -> None:
    """Copy MLflow's runs: (arm's key, number) -> old run's id, old number, new run's id."""
    of_run: dict[str, dict[str, list[Row]]] = {}
    columns = {"runs": "run_uuid", "tags": "run_uuid", "params": "run_uuid", "metrics": "run_uuid",
               "latest_metrics": "run_uuid", "inputs": "destination_id"}  # fmt: skip
    for name, column in columns.items():
        of_run[name] = {}
        for row in _rows(connection, tables[name]):
            of_run[name].setdefault(row[column], []).append(row)
    context = next(iter(_rows(connection, tables["input_tags"])))
    inputs: list[str] = []
    for name, column in columns.items():

        def copies(name: str = name, column: str = column) -> Iterable[Row]:
            for (arm_key, number), (old, old_number, new) in made.items():
                changes = {
                    ("tags", "trial"): str(number), ("tags", "ablation.key"): f"{arm_key}/{number}",
                    ("params", "trial"): str(number), ("params", "seed"): str(number + 1),
                }  # fmt: skip
                for row in of_run[name].get(old, []):
                    copy = {**row, column: new}
                    if name == "runs":
                        copy["name"] = row["name"].replace(f"trial {old_number + 1}", f"trial {number + 1}")
                        copy["artifact_uri"] = row["artifact_uri"].replace(old, new)
                    elif name == "inputs":
                        copy["input_uuid"] = uuid.uuid4().hex
                        inputs.append(copy["input_uuid"])
                    elif (name, row["key"]) in changes:
                        copy["value"] = changes[name, row["key"]]
                    elif (name, row["key"]) == ("tags", "mlflow.runName"):
                        copy["value"] = row["value"].replace(f"trial {old_number + 1}", f"trial {number + 1}")
                    yield copy

        _insert(connection, tables[name], copies())
    _insert(connection, tables["input_tags"], ({**context, "input_uuid": each} for each in inputs))


@contextlib.contextmanager
def _opened(url: str) -> Any:
    engine = sqlalchemy.create_engine(url)
    metadata = sqlalchemy.MetaData()
    metadata.reflect(engine)
    with engine.begin() as connection:
        yield connection, metadata.tables
    engine.dispose()


def _rows(connection: Connection, table: Table, **where: Any) -> list[Row]:
    query = select(table)
    for name, value in where.items():
        query = query.where(table.c[name] == value)
    return [dict(row) for row in connection.execute(query).mappings()]


def _insert(connection: Connection, table: Table, rows: Iterable[Row]) -> None:
    waiting: list[Row] = []
    for row in rows:
        waiting.append(row)
        if len(waiting) == ROWS_AT_ONCE:
            connection.execute(table.insert(), waiting)
            waiting = []
    if waiting:
        connection.execute(table.insert(), waiting)


def run_more(store: Store, study: str, count: int) -> None:
    """Run further trials of a grown study in this process; print what one of them takes of the processor."""
    storage = open_storage(store)
    assert storage is not None
    content = stored_content(storage, study)
    assert content is not None
    spec = simulated_spec(SEED_TRIALS).model_copy(update={"name": study})
    most = max(len(arm.get_trials(deepcopy=False)) for arm in study_arms(storage, study).tuning.values())
    more = spec.model_copy(update={"trials_per_arm": most + count // len(ARMS)})
    used = work(store, more.model_dump(mode="json"))
    print(f"a further trial, of the processor: {statistics.median(used):.3f} s (n = {len(used)})", flush=True)


def conclude(store: Store, study: str) -> None:
    """Write what the MLflow UI shows of a study that has ended."""
    session = open_session(read_results(store, study).spec, store, RunOptions(device_name="cpu"))
    conclude_pages(session.summary, read_results(store, study))


def command(*arguments: str) -> None:
    """Run a command of the package, as a user does."""
    subprocess.run([sys.executable, "-m", *arguments], check=True, stdout=subprocess.DEVNULL)


def timed(name: str, call: Callable[[], object]) -> None:
    """Print the seconds that a call takes by the clock, and of the processor with those of its children."""
    began, used = time.perf_counter(), sum(os.times()[:4])
    call()
    print(f"{name}: {time.perf_counter() - began:.2f} s, of the processor {sum(os.times()[:4]) - used:.2f}", flush=True)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--trials", type=click.IntRange(SEED_TRIALS), default=SEED_TRIALS)
@click.option("--studies", type=click.IntRange(1), default=1)
def main(folder: Path, trials: int, studies: int) -> None:
    """Make a store, unless it exists, and measure it."""
    configure_mlflow()
    configure_optuna()
    store, is_new = find_store(str(folder)), not folder.exists()
    if is_new:
        for _ in range(studies):
            scale(store, SEED_TRIALS, 1)
    storage = open_storage(store)
    assert storage is not None
    study = stored_studies(storage)[0]
    if is_new and trials > SEED_TRIALS:
        timed(f"copying the trials of {study}", lambda: grow(store, study, trials // len(ARMS)))
    timed("a start, and what ends a study but its report", lambda: conclude(store, study))
    in_store = ("--store", str(folder))
    timed(f"starting {study}, and {MEASURED} further trials", lambda: run_more(store, study, MEASURED))
    timed("--status", lambda: command("ablation.study", study, "--status", *in_store))
    timed("--list", lambda: command("ablation.study", "--list", *in_store))
    timed("report", lambda: command("ablation.report", study, *in_store))
    with mlflow_ui(folder, study) as addresses:
        for address in addresses[:-1]:
            with browser_page() as page:
                print(f"UI: {open_view(page, address):5.1f} s  {address.rpartition('=')[2]}", flush=True)


if __name__ == "__main__":
    main()
