"""Small studies for tests: run by their command line in this process, and read back from both stores."""

import contextlib
import hashlib
import inspect
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.store.db import utils
from mlflow.store.model_registry import sqlalchemy_store as model_registry
from PIL.Image import Image
from sqlalchemy import Engine, event
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import LRUCache

from ablation.base.interrupts import NAMES, forget_interrupts
from ablation.base.seeds import named_seed
from ablation.data import reading
from ablation.data.near_duplicates import NearDuplicates, find_near_duplicates
from ablation.running import trial
from ablation.search.space import NumberedRandomSampler
from ablation.storage.store import Store
from ablation.tracking.client import open_client
from ablation.tracking.experiment import Tracker
from ablation.training.loop import train

REPOSITORY = Path(__file__).parent.parent

STUDY = """
question = "Which cut of a small network?"
trials_per_arm = 2
epochs = 3

[backbone]
name = "vgg16_narrow"
weights = "{weights}"

[data]
source = "digits"
limit = 200
val_fraction = 0.25

[fixed]
batch_size = 32

[factors]
truncate_at = ["block1", "conv2_1"]
strategy = ["feature_extraction", "fine_tune_all"]

[search]
lr = {{ low = 1e-3, high = 1e-1, log = true }}
head_width = {{ choices = [8, 16] }}
backbone_lr_scale = {{ low = 0.01, high = 1.0, log = true }}
"""


@contextlib.contextmanager
def signal_handlers_kept() -> Iterator[None]:
    """Let a command line set its signal handlers in this process for the time of this context."""
    before = {number: signal.getsignal(number) for number in (signal.Signals[name] for name in NAMES)}
    try:
        yield
    finally:
        forget_interrupts()
        for number, handler in before.items():
            signal.signal(number, handler)


def read_migrations_once() -> None:
    """Let Optuna and MLflow read their migrations once per process, not once per database that is opened."""
    folders: dict[str | None, ScriptDirectory] = {}
    read = ScriptDirectory.from_config

    def read_once(config: Config) -> ScriptDirectory:
        folder = config.get_main_option("script_location")
        if folder not in folders:
            folders[folder] = read(config)
        return folders[folder]

    ScriptDirectory.from_config = read_once  # type: ignore[method-assign]


def compile_statements_once() -> None:
    """Let SQLite's databases share compiled statements: a study would compile a hundred anew for its own databases."""
    shared: LRUCache[Any, Any] = LRUCache(2000)
    begin = Engine.__init__

    def begin_with_statements(engine: Engine, *args: Any, **kwargs: Any) -> None:
        begin(engine, *args, **kwargs)
        if isinstance(engine.dialect, SQLiteDialect_pysqlite):
            engine._compiled_cache = shared

    Engine.__init__ = begin_with_statements  # type: ignore[method-assign, assignment]
    # A statement is found by the dialect it was compiled for, of which each database has its own.
    SQLiteDialect_pysqlite.__eq__ = lambda one, other: type(one) is type(other)  # type: ignore[method-assign]
    SQLiteDialect_pysqlite.__hash__ = lambda one: hash(type(one))  # type: ignore[method-assign, assignment]


# What MLflow sets for each session on SQLite, from its own code.
MLFLOWS_OPTIONS = re.findall(r'"(PRAGMA .+?);"', inspect.getsource(vars(utils)["_get_managed_session_maker"]))


def set_options_once() -> None:
    """Let MLflow set them once per connection: half of all its statements set them anew.

    Its sessions do not check either that they write only where its developers meant to, as they do under pytest alone.
    """
    assert MLFLOWS_OPTIONS
    make: Callable[..., Any] = vars(utils)["_get_managed_session_maker"]

    def set_options(connection: sqlite3.Connection, record: ConnectionPoolEntry, *_: object) -> None:
        if "has_mlflows_options" not in record.info:
            for option in MLFLOWS_OPTIONS:
                connection.execute(option)
            record.info["has_mlflows_options"] = True

    def make_without_options(sessions: Any, database: str) -> Any:
        if database == "sqlite":
            event.listen(sessions.kw["bind"], "checkout", set_options)
        open_session = make(sessions, "a database that has no options")
        return lambda read_only=True: open_session(read_only=False)

    for owner in (utils, model_registry):
        vars(owner)["_get_managed_session_maker"] = make_without_options


def scale_digits_once() -> None:
    """Let scikit-learn's digits be scaled once per process, not once per study."""
    scaled: dict[tuple[bytes, int], np.ndarray] = {}
    scale: Callable[[Image, int], np.ndarray] = vars(reading)["fit_image"]

    def scale_once(image: Image, size: int) -> np.ndarray:
        key = (image.tobytes(), size)
        if key not in scaled:
            scaled[key] = scale(image, size)
        return scaled[key]

    vars(reading)["fit_image"] = scale_once


_compared: dict[bytes, NearDuplicates] = {}


def compare_once(pictures: list[np.ndarray]) -> NearDuplicates:
    """Compare pictures as `find_near_duplicates` does, those of equal studies once per process."""
    key = hashlib.sha256(b"".join(picture.tobytes() for picture in pictures)).digest()
    if key not in _compared:
        _compared[key] = find_near_duplicates(pictures)
    return _compared[key]


Command = Callable[..., int]


def run_small_study(folder: Path, weights: Path) -> None:
    """Run a study of four arms with two confirmation runs each, as its own process, in a folder that is made."""
    folder.mkdir()
    (folder / "small.toml").write_text(STUDY.format(weights=weights))
    study = subprocess.run(
        [sys.executable, "-m", "ablation.study", "small.toml", "--store", "store", *CONFIRM],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert study.returncode == 0, study.stderr
    (folder / "output.txt").write_text(study.stdout)


def copy_store(store: Path, target: Path) -> Path:
    """Copy a store as if its studies had run in the copy: MLflow keeps absolute addresses of artifacts."""
    shutil.copytree(store, target)
    with contextlib.closing(sqlite3.connect(target / "mlflow.db")) as database, database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for _, column, *_ in database.execute(f'PRAGMA table_info("{table}")').fetchall():
                database.execute(
                    f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)',
                    (store.as_uri(), target.as_uri(), store.as_uri()),
                )
    return target


def client(store: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{store.absolute()}/mlflow.db")  # MLflow caches by address


def runs(store: Path, name: str, kind: str = "trial") -> list[Run]:
    """Return a study's runs, oldest first."""
    api = client(store)
    experiment = api.get_experiment_by_name(name)
    assert experiment is not None
    found = api.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'", order_by=["attributes.start_time"])
    return list(found)


def history(store: Path, run: Run) -> dict[str, list[tuple[int, float]]]:
    """Return a run's curves, (step, value) by metric, without what depends on the clock."""
    api = client(store)
    return {
        name: [(m.step, m.value) for m in api.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
        if name not in ("images_per_second", "training_seconds", "inference_seconds")
    }


def new_tracker(store: Store, study: str) -> Tracker:
    """Return a study's experiment, made with its store where there is none."""
    store.prepare()
    opened = open_client(store, create=True)
    assert opened is not None
    return Tracker(opened, store, study, "?")


def arm_study(store: Path, name: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{store.absolute()}/optuna.db")


CONFIRM = ("--set", "confirm.seeds=2")


def sampled_rates(seed: int, choices: list[float], trials: int) -> list[float]:
    """Return the learning rates of the first trials of a random search over some."""
    optuna_study = optuna.create_study(sampler=NumberedRandomSampler(named_seed(seed, "sampler") % 2**32))
    return [optuna_study.ask().suggest_categorical("lr", choices) for _ in range(trials)]


ONE_ARM = ("--set", 'factors={strategy=["fine_tune_all"]}', "--set", "fixed.truncate_at=block1")


def patched_train(monkeypatch: pytest.MonkeyPatch, fault: Callable[[int, int], None]) -> None:
    """Call fault(trial number in this process, epoch) after every epoch, before anything is saved."""
    real, count = train, [-1]

    def faulty(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        number = count[0]
        for metrics in real(*args, **kwargs):
            fault(number, metrics.epoch)
            yield metrics

    monkeypatch.setattr(trial, "train", faulty)
