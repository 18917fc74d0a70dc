"""What the commands have in common: errors become one line and an exit status."""

import re
import sys

import click

from ablation.base.errors import InputError, StoreAway, StoreError
from ablation.base.interrupts import handle_interrupts

REFUSED, FAULT, STOPPED = 2, 1, 130  # exit statuses: the user's input, a store or server, Ctrl-C or SIGTERM


def run_command(command: click.Command) -> int:
    """Run a command on the arguments of this process; return its exit status."""
    handle_interrupts()
    try:
        command.main(standalone_mode=False)
    except InputError as error:
        return _fail(str(error), REFUSED)
    except click.ClickException as error:
        return _fail(error.format_message(), REFUSED)
    except PermissionError as error:  # of a path in a folder that may not be searched
        return _fail(f"{error.filename}: {error.strerror}", REFUSED)
    except (StoreError, StoreAway) as error:
        return _fail(str(error), FAULT)
    except (KeyboardInterrupt, click.Abort):
        return STOPPED
    return 0


def _fail(message: str, status: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status


def check_device_name(name: str) -> str:
    """Return a device's name if it has the right form; whether the device is there is seen later.

    Raises:
        InputError: it is not auto, cpu, cuda, cuda:N or mps.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", name):
        raise InputError(f"--device: unknown device {name!r}; must be auto, cpu, cuda, cuda:N or mps")
    return name
