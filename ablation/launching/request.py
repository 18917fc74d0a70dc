"""A launch: the workers of a study that an engine is asked for, and what an engine says of its workers."""

import re
import sys
import tomllib
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ablation.base.errors import InputError
from ablation.base.text import nearest
from ablation.storage.store import Store

OPTION_NAME = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True)
class Launch:
    """The workers of a study, as any engine is asked for them."""

    study: str
    label: str
    """The engine's name for the workers of this study in this store, see `launch_label`."""
    study_file: Path
    arguments: tuple[str, ...]
    """The options of `python -m ablation.study` for each worker."""
    workers: int | None
    """How many workers to place; None is the engine's default."""
    grace: float
    """Seconds that a worker takes at most to save and to end after a signal."""
    options: Mapping[str, str]
    """What the user says to the engine; an empty value is a flag."""
    folder: Path
    """The folder in the store for what is submitted and for the workers' output."""
    working_folder: Path

    @property
    def command(self) -> list[str]:
        """The command of a worker on a machine that sees this one's files, to be run in `working_folder`."""
        return [sys.executable, "-m", "ablation.study", str(self.study_file), *self.arguments]


@dataclass(frozen=True)
class EngineWorker:
    """A worker as its engine describes it."""

    id: str
    """The engine's name for the worker's job."""
    state: str
    host: str
    since: str
    """When it started to run or, if it waits, when it was submitted."""


class Engine(Protocol):
    """What each engine's module offers. All functions raise `InputError` with what the engine said."""

    def compose(self, launch: Launch) -> str:
        """Return what would be submitted, as text that a person can read, edit and submit."""

    def submit(self, launch: Launch) -> str:
        """Submit it; return a line that says under which name."""

    def cancel(self, label: str, options: Mapping[str, str]) -> list[str]:
        """End the workers, queued and running; return the names of the engine's objects that it deleted, if any."""

    def output(self, label: str, folder: Path, options: Mapping[str, str]) -> str:
        """Return how to see what workers wrote that have ended, or nothing; `folder` as in `Launch`."""

    def workers(self, label: str, options: Mapping[str, str]) -> list[EngineWorker]:
        """Return the workers that run or wait."""


def launch_label(study: str, store: Store) -> str:
    """Return the name by which an engine knows the workers of a study in a store: each study of each store has its own.

    Its checksum tells studies apart whose names an engine shortens or writes in small letters. It leaves out the user
    and the password of the database, which may change and are nobody else's business.
    """
    database = re.sub(r"(?<=://)[^/@]+@|(?<=[?&])(user|password)=[^&]*", "", store.optuna_url)
    return f"ablation-{study}-{zlib.crc32(f'{study} {store.root} {database}'.encode()):08x}"


def read_options(settings: Iterable[str], file: Path | None) -> dict[str, str]:
    """Return the options of an engine: those of the table [launch] of a file, then KEY=VALUE, which win.

    Raises:
        InputError: an option or the file cannot be understood; names it.
    """
    options = {} if file is None else _read_table(file)
    for setting in settings:
        name, separator, value = setting.partition("=")
        if not separator:
            raise InputError(f"--engine-option: {setting!r} is not KEY=VALUE; a flag is written KEY=")
        options[name] = value
    for name, value in options.items():
        if not OPTION_NAME.fullmatch(name):
            raise InputError(f"--engine-option: {name!r} is no option's name: small letters, digits and -")
        if not value.isprintable():
            raise InputError(f"--engine-option: the value of {name} contains a line's end or a sign that is not shown")
    return options


def _read_table(file: Path) -> dict[str, str]:
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8-sig"))  # as a study file
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"--engine-file: {file} cannot be read ({reason})") from None
    table = content.get("launch")
    if not isinstance(table, dict):
        raise InputError(f"--engine-file: {file} has no table [launch]")
    options = {}
    for name, value in table.items():
        if not isinstance(value, str | int | float):
            raise InputError(f"--engine-file: launch.{name} must be text, a number, true or false")
        if value is not False:
            options[name] = "" if value is True else str(value)  # true is a flag, and false is none
    return options


def refuse_unknown(options: Iterable[str], known: Iterable[str], engine: str) -> None:
    """Refuse options that an engine does not have.

    Raises:
        InputError: names the first one, and the nearest that there is.
    """
    for name in options:
        if name not in known:
            raise InputError(f"--engine-option: {name} is unknown on {engine}{nearest(name, known)}")
