"""Shared by all commands: errors become one line and an exit status."""

import errno
import gc
import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from ablation.base.cores import prepare_threads
from ablation.base.errors import InputError, NothingLearned, StoreAway, StoreError
from ablation.base.files import HOME_OF_THE_HOMELESS, NO_TEMPORARY_FOLDER, has_temporary_folder, is_home_known
from ablation.base.interrupts import forget_interrupts, handle_interrupts, pause_status
from ablation.base.text import SHOWN, first_line, one_line

REFUSED, FAULT = 2, 1  # exit statuses: the user's input; a store or server. See `pause_status` for the others

SHOWN_ERRORS = (InputError, StoreError, StoreAway, NothingLearned, click.ClickException)  # whose text is for users

GARBAGE_THRESHOLD = 10_000  # new objects before a search for garbage; with Python's 700, small studies took 4 % longer

Command = TypeVar("Command", bound=Callable[..., Any])

JOB_VARIABLE = "ABLATION_JOB"  # an engine's id of the worker, set by the launch
# Set for the workers of `--workers`, to how many of them share a device; an option would be suggested to users.
WORKER_VARIABLE = "ABLATION_WORKER"


def run_command(command: click.Command) -> int:
    """Run a command on the arguments of this process; return its exit status.

    With `ABLATION_DEBUG=1` in the environment, errors are raised with their traceback instead.
    """
    gc.set_threshold(GARBAGE_THRESHOLD)
    handle_interrupts()
    prepare_threads()
    if not is_home_known():
        os.environ["HOME"] = HOME_OF_THE_HOMELESS
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # else somebody has replaced it, or there is none
            stream.reconfigure(errors=SHOWN)  # names and signs that its encoding lacks must not end a study
    try:
        command.main(standalone_mode=False)
    except (*SHOWN_ERRORS, OSError, UnicodeEncodeError) as error:
        if os.environ.get("ABLATION_DEBUG") == "1":
            error.__suppress_context__ = False  # the error behind it is shown, too
            raise
        return _report_error(error)
    except (KeyboardInterrupt, click.Abort):
        return pause_status()
    finally:
        forget_interrupts()
    return 0


@contextmanager
def refusing_unreachable_paths() -> Iterator[None]:
    """Refuse a path that the user named and may not reach; this context must use no other paths.

    Raises:
        InputError: names the path.
    """
    try:
        yield
    except PermissionError as error:
        raise InputError(_os_text(error)) from None


def patience_option(help_text: str) -> Callable[[Command], Command]:
    """Return the option --patience MINUTES; its parameter `patience` is in seconds, None where it is not given."""

    def seconds(context: click.Context, option: click.Parameter, minutes: float | None) -> float | None:
        return None if minutes is None else 60 * check_finite(context, option, minutes)

    return click.option("--patience", type=click.FloatRange(0), metavar="MINUTES", callback=seconds, help=help_text)


def store_option(help_text: str) -> Callable[[Command], Command]:
    """Return the option --store DIR; its parameter is `store_folder`, None where it is not given."""
    default = "[default: MLFLOW_TRACKING_URI and OPTUNA_STORAGE, else mlruns]"
    return click.option("--store", "store_folder", metavar="DIR", help=f"{help_text}  {default}")


def check_finite(_: click.Context, option: click.Parameter, number: float) -> float:
    """Return an option's number unless it is infinite or nan, which click's ranges let pass; a click callback.

    Raises:
        InputError: names the option.
    """
    if not math.isfinite(number):
        raise InputError(f"{option.opts[0]}: must be a number of {option.metavar}, got {number}")
    return number


def with_options(command: Sequence[str], *options: str) -> list[str]:
    """Return a command with further options: at its end, or before the `--` after which it takes none."""
    end = command.index("--") if "--" in command else len(command)
    return [*command[:end], *options, *command[end:]]


def check_one_of(*flags: tuple[str, bool]) -> None:
    """Refuse flags that exclude each other, given as (name, whether it is set).

    Raises:
        InputError: two are set; names them.
    """
    chosen = [name for name, is_set in flags if is_set]
    if len(chosen) > 1:
        raise InputError(f"{chosen[0]} and {chosen[1]}: choose one of them")


def _report_error(error: Exception) -> int:
    """Print an error as one line; return the exit status."""
    if isinstance(error, click.ClickException):
        return _fail(error.format_message(), REFUSED)
    if isinstance(error, BrokenPipeError):  # whatever read the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python would complain at its exit
        return FAULT
    if isinstance(error, FileNotFoundError) and not has_temporary_folder():  # some libraries need it to be imported
        return _fail(NO_TEMPORARY_FOLDER, REFUSED)
    if isinstance(error, OSError):  # names too long for a file system were given by the user
        return _fail(_os_text(error), REFUSED if error.errno == errno.ENAMETOOLONG else FAULT)
    if isinstance(error, UnicodeEncodeError):
        return _fail(f"{_around(error)}: is not UTF-8" if error.encoding == "utf-8" else first_line(error), REFUSED)
    return _fail(str(error), REFUSED if isinstance(error, InputError) else FAULT)


def _around(error: UnicodeEncodeError) -> str:
    """Return the part of a text that could not be encoded: the name of a file, as a rule, whose bytes are not UTF-8."""
    before, after = error.object[: error.start].split("\n")[-1], error.object[error.start :].split("\n")[0]
    return before[-200:] + after[:50]


def _os_text(error: OSError) -> str:
    return first_line(error) if error.filename is None else f"{error.filename}: {error.strerror}"


def _fail(message: str, status: int) -> int:
    print(f"error: {one_line(' '.join(message.split()))}", file=sys.stderr)
    return status


def check_device_name(name: str) -> str:
    """Return the device name if it is well-formed; `check_device` finds out whether it exists.

    Raises:
        InputError: it is not auto, cpu, cuda, cuda:N or mps.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:(0|[1-9]\d?))?|mps", name):
        raise InputError(f"--device: unknown device {name!r}; must be auto, cpu, cuda, cuda:N or mps")
    return name
