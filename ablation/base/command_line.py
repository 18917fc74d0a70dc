"""Shared by all commands: errors become one line and an exit status."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from ablation.base.cores import prepare_threads
from ablation.base.errors import InputError, StoreAway, StoreError
from ablation.base.interrupts import handle_interrupts

REFUSED, FAULT, STOPPED = 2, 1, 130  # exit statuses: the user's input, a store or server, Ctrl-C or SIGTERM


def run_command(command: click.Command) -> int:
    """Run a command on the arguments of this process; return its exit status.

    With `ABLATION_DEBUG=1` in the environment, errors are raised with their traceback instead.
    """
    handle_interrupts()
    prepare_threads()
    try:
        command.main(standalone_mode=False)
    except (InputError, click.ClickException, PermissionError, StoreError, StoreAway) as error:
        if os.environ.get("ABLATION_DEBUG") == "1":
            error.__suppress_context__ = False  # the error behind it is shown, too
            raise
        return _report_error(error)
    except (KeyboardInterrupt, click.Abort):
        return STOPPED
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
        raise InputError(_permission_text(error)) from None


def _report_error(error: Exception) -> int:
    """Print an error as one line; return the exit status."""
    if isinstance(error, click.ClickException):
        return _fail(error.format_message(), REFUSED)
    if isinstance(error, PermissionError):
        return _fail(_permission_text(error), FAULT)
    return _fail(str(error), REFUSED if isinstance(error, InputError) else FAULT)


def _permission_text(error: PermissionError) -> str:
    return str(error) if error.filename is None else f"{error.filename}: {error.strerror}"


def _fail(message: str, status: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status


def check_device_name(name: str) -> str:
    """Return the device name if it is well-formed; `check_device` finds out whether it exists.

    Raises:
        InputError: it is not auto, cpu, cuda, cuda:N or mps.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", name):
        raise InputError(f"--device: unknown device {name!r}; must be auto, cpu, cuda, cuda:N or mps")
    return name
