import errno
import os
import sys

import click
import pytest

from ablation.base.command_line import run_command
from ablation.base.errors import InputError, StoreError
from tests.studies import signal_handlers_kept


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (InputError("two\n lines"), 2, "error: two lines\n"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "photos/train"), 2,
         "error: photos/train: Permission denied\n"),
        (StoreError("the disk is full"), 1, "error: the disk is full\n"),
        (KeyboardInterrupt(), 130, "\n"),  # which click prints, after the ^C of the terminal
    ],
)  # fmt: skip
def test_errors_become_a_line_and_a_status(
    error: BaseException, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def fails() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["fails"])
    with signal_handlers_kept():
        assert run_command(fails) == status
    assert capsys.readouterr().err == said
