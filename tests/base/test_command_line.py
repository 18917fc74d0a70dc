import errno
import io
import os
import sys
import tempfile

import click
import pytest

from ablation.base import terminal
from ablation.base.command_line import check_device_name, refusing_unreachable_paths, run_command
from ablation.base.errors import InputError, StoreError
from ablation.base.text import Table
from tests.studies import signal_handlers_kept


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (InputError("two\n lines"), 2, "error: two lines\n"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/usr/lib/x"), 1,
         "error: /usr/lib/x: Permission denied\n"),
        (PermissionError("not allowed"), 1, "error: not allowed\n"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "nnn"), 2, "error: nnn: File name too long\n"),
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


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "CPU", "", "cuda:0:1", "cuda:08", "cuda:100", f"cuda:{10**20}"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="must be auto, cpu, cuda, cuda:N or mps"):
        check_device_name(name)


@pytest.mark.parametrize(("is_there", "status"), [(True, 1), (False, 2)])
def test_a_library_that_finds_no_folder_for_temporary_files(
    is_there: bool, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some ask for it when they are imported, before anything can be checked."""

    def find() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    if not is_there:
        monkeypatch.setattr(tempfile, "gettempdir", find)
    monkeypatch.setattr(sys, "argv", ["fails"])
    with signal_handlers_kept():
        assert run_command(click.Command("fails", callback=find)) == status
    said = "error: no folder for temporary files can be written: set TMPDIR to one\n"
    assert (capsys.readouterr().err == said) is not is_there


def test_a_path_that_the_user_named_is_refused() -> None:
    with pytest.raises(InputError, match=r"^photos/train: Permission denied$"), refusing_unreachable_paths():
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "photos/train")


@pytest.mark.parametrize("error", [InputError("x"), PermissionError("x"), StoreError("x"), click.UsageError("x")])
def test_debugging_shows_the_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the error behind it, which its one line does not show."""

    @click.command()
    def fails() -> None:
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            raise error from None

    monkeypatch.setattr(sys, "argv", ["fails"])
    monkeypatch.setenv("ABLATION_DEBUG", "1")
    with signal_handlers_kept(), pytest.raises(type(error)) as caught:
        run_command(fails)
    assert isinstance(caught.value.__context__, ZeroDivisionError)
    assert not caught.value.__suppress_context__


def test_a_name_that_is_not_utf8_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    def fails() -> None:
        ("a long text\n/data/caf\udce9.png 7\nmore of it").encode()

    monkeypatch.setattr(sys, "argv", ["fails"])
    with signal_handlers_kept():
        assert run_command(fails) == 2
    assert capsys.readouterr().err == "error: /data/caf\\xe9.png 7: is not UTF-8\n"


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", b"caf\\xe9 0.5 +- 0.1"), ("latin-1", b"caf\xe9 0.5 \xb1 0.1")]
)
def test_an_output_that_is_not_utf8_gets_what_it_can_show(
    encoding: str, shown: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines, tables and errors; none of them may end a study that has finished."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2)]
    text = "café 0.5 ± 0.1"

    @click.command()
    def says() -> None:
        terminal.say(text)
        terminal.show_table(Table(text, ["a"], [[text]], [text]))
        raise StoreError(text)

    monkeypatch.setattr(sys, "argv", ["says"])
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    with signal_handlers_kept():
        assert run_command(says) == 1
    output, errors = (stream.buffer.getvalue() for stream in streams)  # type: ignore[attr-defined]
    assert output.count(shown) == 4
    assert errors == b"error: " + shown + b"\n"
