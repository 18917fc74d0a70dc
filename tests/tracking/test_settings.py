"""MLflow's settings: library functions leave their caller's process as it was, commands set what they need."""

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ablation.tracking import LOG_LEVELS, VARIABLES, configure_mlflow, mlflow_settings
from tests.studies import runs

# A notebook's process: `snapshot` returns whatever belongs to it and not to a library.
NOTEBOOK = """
import hashlib, json, logging, os, random, signal, sys, threading, warnings
import matplotlib, mlflow, numpy, optuna, torch
# Their imports set warning filters, log levels and handlers, whoever imports them first.
import alembic.command, scipy.optimize, scipy.special, sqlalchemy, sympy
from mlflow import environment_variables as variables
from PIL import Image, ImageFile

def snapshot():
    loggers = [logging.root, *(logging.getLogger(name) for name in LOGGERS)]
    return {
        **{f"variable {name}": value for name, value in os.environ.items()},
        "tracking": mlflow.get_tracking_uri(),
        "registry": mlflow.get_registry_uri(),
        "retries": variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(),
        "timeout": variables.MLFLOW_HTTP_REQUEST_TIMEOUT.get(),
        "active run": str(mlflow.active_run()),
        "active model": mlflow.get_active_model_id(),
        "warnings": [repr(warnings.filters), repr(warnings.showwarning)],
        "optuna": optuna.logging.get_verbosity(),
        "torch": [
            torch.get_num_threads(), torch.get_num_interop_threads(), str(torch.get_default_dtype()),
            str(torch.get_default_device()), torch.initial_seed(), torch.are_deterministic_algorithms_enabled(),
            torch.get_float32_matmul_precision(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
            torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32,
        ],
        "random": [hashlib.sha256(state).hexdigest() for state in (
            torch.get_rng_state().numpy().tobytes(), repr(random.getstate()).encode(),
            repr(numpy.random.get_state()).encode(),
        )],
        "numpy": [repr(numpy.get_printoptions()), repr(numpy.geterr())],
        "matplotlib": [matplotlib.get_backend(), repr(dict(matplotlib.rcParams))],
        "pillow": [Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES],
        "process": [os.getcwd(), list(sys.path), list(sys.argv), repr(sys.excepthook), repr(sys.displayhook)],
        "signals": [repr(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
        "threads": threading.active_count(),
        **{f"logger {logger.name}": [
            logger.level, logger.disabled, logger.propagate, repr(logger.handlers), repr(logger.filters)
        ] for logger in loggers},
    }

LOGGERS = sorted(logging.root.manager.loggerDict)
"""

CALLS = """
matplotlib.use("agg")
before = snapshot()
import ablation
store, run, champion = json.loads(sys.argv[1])

def changes(name, *arguments, **options):
    try:
        getattr(ablation, name)(*arguments, **options)
        outcome = "returned"
    except ablation.InputError:
        outcome = "refused"
    after = snapshot()
    return [name, outcome, {
        key: [before.get(key), after.get(key)] for key in {**before, **after} if before.get(key) != after.get(key)
    }]

print(json.dumps([
    changes("load_results", "nope", store="/wrong"),
    changes("load_results", "nope", store=store),
    changes("load_results", "small", store=store),
    changes("load_model", "nope", store="/wrong"),
    changes("load_model", "nope", store=store),
    changes("load_model", run, store=store),
    changes("load_champion", "nope", store="/wrong"),
    changes("load_champion", "nope", store=store),
    changes("load_champion", "small", store=store),
]))
default = mlflow.MlflowClient("sqlite:///notebook.db").get_experiment("0").artifact_location
print(json.dumps([default, os.getcwd()]))
"""


@pytest.fixture
def study(finished_study: Path) -> Path:
    """The store of a study that has a champion."""
    return finished_study / "store"


def python(code: str, study: Path, folder: Path, environment: dict[str, str] | None = None) -> list[str]:
    """Run code in a process of its own, in an environment without MLflow's variables; return the lines it prints."""
    run, *_ = runs(study, "small")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "_MLFLOW"))}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps([str(study), run.info.run_id, "small"])],
        cwd=folder, capture_output=True, text=True, env={**clean, "DO_NOT_TRACK": "true", **(environment or {})},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_library_functions_leave_the_process_as_it_was(study: Path, tmp_path: Path) -> None:
    changes, default = map(json.loads, python(NOTEBOOK + CALLS, study, tmp_path))
    assert [(name, outcome) for name, outcome, _ in changes] == [
        (name, outcome)
        for name in ("load_results", "load_model", "load_champion")
        for outcome in ("refused", "refused", "returned")
    ]
    assert [changed for _, _, changed in changes] == [{}] * len(changes)
    location, folder = default
    assert location.removeprefix("file://").startswith(folder)


FIRST_IMPORT = """
import json, os, sys

class Watch:
    telemetry = []

    def find_spec(self, name, path=None, target=None):
        if name == "mlflow":
            self.telemetry.append(os.environ.get("MLFLOW_DISABLE_TELEMETRY"))

sys.meta_path.insert(0, Watch())
before = dict(os.environ)
import ablation
try:
    ablation.load_results("nope", store="/wrong")
except ablation.InputError:
    from mlflow import environment_variables as variables
    effective = variables.MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(), variables.MLFLOW_HTTP_REQUEST_TIMEOUT.get()
    print(json.dumps([Watch.telemetry, before == dict(os.environ), effective]))
"""


def test_the_first_import_of_mlflow_is_without_telemetry(study: Path, tmp_path: Path) -> None:
    (line,) = python(FIRST_IMPORT, study, tmp_path)
    assert json.loads(line) == [["true"], True, [7, 120]]  # MLflow's own limits


def state() -> tuple[dict[str, str | None], dict[str, int]]:
    variables = {name: os.environ.get(name) for name in VARIABLES}
    return variables, {name: logging.getLogger(name).level for name in LOG_LEVELS}


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in which nobody has configured MLflow."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in LOG_LEVELS:
        monkeypatch.setattr(logging.getLogger(name), "level", logging.NOTSET)


@pytest.mark.usefixtures("unset")
def test_settings_hold_until_the_last_of_several_threads_has_left() -> None:
    before = state()
    is_inside, may_leave = threading.Event(), threading.Event()

    def other() -> None:
        with mlflow_settings():
            is_inside.set()
            may_leave.wait()

    @mlflow_settings()
    def fail() -> None:
        thread.start()
        is_inside.wait()
        assert state() == (VARIABLES, LOG_LEVELS)
        raise ValueError("within")

    thread = threading.Thread(target=other)
    with pytest.raises(ValueError, match="within"):
        fail()
    assert state() == (VARIABLES, LOG_LEVELS)
    may_leave.set()
    thread.join()
    assert state() == before


@pytest.mark.usefixtures("unset")
def test_what_the_user_has_set_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    with mlflow_settings():
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "50"  # another thread of a notebook
    assert state()[0] == {
        **dict.fromkeys(VARIABLES), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "50"
    }  # fmt: skip


@pytest.mark.usefixtures("unset")
def test_a_command_configures_its_whole_process() -> None:
    configure_mlflow()
    assert state() == (VARIABLES, LOG_LEVELS)
    with mlflow_settings():  # of a library function that a command calls
        pass
    assert state() == (VARIABLES, LOG_LEVELS)
    for name in VARIABLES:
        del os.environ[name]
