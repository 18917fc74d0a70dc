"""What all commands have in common: their exit statuses, and that no password is shown."""

import functools
import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ablation.base import retries
from ablation.base.command_line import run_command
from ablation.base.errors import InputError, StoreAway, StoreError
from tests.studies import signal_handlers_kept

PASSWORD = "s3cret-of-mine"
STORED = [
    ["study", "{file}"],
    ["study", "{file}", "--repair"],
    ["study", "{file}", "--status"],
    ["study", "--list"],
    ["report", "small"],
    ["report", "small", "--format", "json"],
    ["report", "small", "small-2"],
    ["predict", "small", "{image}"],
    ["compare", "small", "small-2"],
    ["data.__main__", "suspects", "small"],
    ["ui", "small", "--no-browser"],
    ["launch", "{file}", "--on", "slurm", "--status"],
]
PRINTED = [
    ["launch", "{file}", "--on", "local", "--print"],
    ["launch", "{file}", "--on", "slurm", "--print"],
    ["launch", "{file}", "--on", "ray", "--print"],
    ["launch", "{file}", "--on", "kubernetes", "--print", "--engine-option", "image=place/ablation:1"],
]
COMMANDS = ["study", "launch", "compare", "report", "predict", "backbones", "bench", "ui", "data.__main__"]


def run(arguments: list[str]) -> int:
    """Run a command in this process."""
    name, *rest = arguments
    cli = importlib.import_module(f"ablation.{name}").cli
    with pytest.MonkeyPatch.context() as patch, signal_handlers_kept():
        patch.setattr(sys, "argv", [name, *rest])
        return run_command(cli)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("arguments", [*STORED, *PRINTED], ids=" ".join)
def test_no_password_is_shown(
    arguments: list[str], study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Of servers that do not answer, nor written to a file; in no argument of a process either."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(retries, "START_PATIENCE", 0.0)
    monkeypatch.setenv("OPTUNA_STORAGE", f"postgresql://me:{PASSWORD}@127.0.0.1:1/studies")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{PASSWORD}@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    (tmp_path / "image.png").write_bytes(b"not looked at")
    can_wait = arguments[0] in ("study", "report", "predict", "compare") and "--list" not in arguments
    words = [word.format(file=study_file, image="image.png") for word in arguments]
    status = run([*words, *(["--patience", "0"] if can_wait else [])])
    output, errors = capfd.readouterr()
    assert status == (0 if arguments in PRINTED or "--list" in arguments else status)
    assert status != 0 or output
    for text in (output, errors, caplog.text, *map(repr, caplog.records)):
        assert PASSWORD not in text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes()


@pytest.mark.parametrize("name", COMMANDS)
def test_exit_statuses(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As the table of docker/README.md says: of what a command may raise, and of the requests to pause."""
    cli = importlib.import_module(f"ablation.{name}").cli
    ends: list[tuple[BaseException, int]] = [
        (StoreError("x"), 1),
        (StoreAway("x"), 1),
        (InputError("x"), 2),
        (KeyboardInterrupt(), 130),
    ]

    def stop_by_term() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    def raise_it(error: BaseException) -> None:
        raise error

    acts: list[tuple[Callable[[], object], int]] = [(stop_by_term, 75), (lambda: None, 0)]
    acts += [(functools.partial(raise_it, error), status) for error, status in ends]
    for act, status in acts:

        def end(*_: Any, act: Callable[[], object] = act, **__: Any) -> None:
            act()

        monkeypatch.setattr(cli, "callback", end)
        words = {"compare": ["a", "b"], "data.__main__": ["a"], "launch": ["a", "--on", "local"], "report": ["a"],
                 "predict": ["a", "b"], "ui": ["a"]}  # fmt: skip
        assert run([name, *words.get(name, [])]) == status
        assert run([name, "--no-such-option"]) == 2
        capsys.readouterr()
