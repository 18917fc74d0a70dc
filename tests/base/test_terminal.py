"""Tables and sentences on a terminal."""

import gc
import io
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from rich.console import Console

from ablation.base import terminal
from ablation.base.interrupts import handle_interrupts
from ablation.base.terminal import columns_that_fit, loading, say_prose, show_table
from ablation.base.text import Table
from tests.studies import signal_handlers_kept

RUN_ID = "0123456789abcdef0123456789abcdef"
STATUS = Table(
    "small: 4 of 8 runs ended",
    ["arm", "trials", "best val. accuracy", "its MLflow run", "confirmation runs"],
    [["block1,feature_extraction", "7 finished, 1 failed", "0.9123", RUN_ID, "none"]] * 2,
    ["block1,feature_extraction #3 failed: the training loss became nan in epoch 2"],
    optional=["confirmation runs", "best val. accuracy"],
)


def printed(monkeypatch: pytest.MonkeyPatch, table: Table, width: int, **options: object) -> list[str]:
    console = Console(force_terminal=True, width=width, height=14, color_system=None, **options)  # type: ignore[arg-type]
    monkeypatch.setattr(terminal, "console", console)
    with console.capture() as capture:
        show_table(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_columns_of_numbers_are_aligned_at_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their headings are: the contents alone decide."""
    rows = [["a", "7 finished", "1,200", "-"], ["b", "11 failed, 1 running", "8", "12 min"]]
    lines = printed(monkeypatch, Table("Title", ["arm", "trials", "made up", "another heading"], rows), 100)
    assert lines[-2:] == [
        "a    7 finished            1,200        -",
        "b    11 failed, 1 running      8   12 min",
    ]


def test_headings_make_no_column_wider_than_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("Title", ["arm", "smallest difference (points)"], [["block1,fine_tune_all", "0.5"]])
    assert printed(monkeypatch, table, 100) == [
        "Title",
        "                        smallest",
        "                      difference",
        "arm                     (points)",
        "────────────────────────────────",
        "block1,fine_tune_all         0.5",
    ]


@pytest.mark.parametrize(("width", "hidden"), [(60, []), (80, ["confirmation runs"]), (100, []), (200, [])])
def test_ids_names_and_numbers_stay_whole(monkeypatch: pytest.MonkeyPatch, width: int, hidden: list[str]) -> None:
    lines = printed(monkeypatch, STATUS, width)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for whole in ("block1,feature_extraction", RUN_ID, "0.9123"):
        assert text.count(whole) >= 2
    assert ("No room for: confirmation runs." in lines) == bool(hidden)
    words = " ".join(text.split())
    assert "block1,feature_extraction #3 failed: the training loss became nan in epoch 2" in words


def test_columns_are_left_out_in_their_order() -> None:
    table = Table("", ["a", "b", "c"], [["12345", "12345", "12345"]], optional=["b", "c"])
    assert columns_that_fit(table, 19) == ([0, 1, 2], [5, 5, 5])
    assert columns_that_fit(table, 18) == ([0, 2], [5, 5])
    assert columns_that_fit(table, 11) == ([0], [5])
    assert columns_that_fit(table, 4) is None


def test_a_row_that_does_not_fit_is_a_list_that_names_every_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("Arms", ["head_width", "optimizer"], [["2", "sgd"], ["16", "adamw"]])
    assert printed(monkeypatch, table, 12) == [
        "Arms",
        "head_width 2", "  optimizer  sgd",
        "head_width 16", "  optimizer  adamw",
    ]  # fmt: skip


def test_a_column_without_a_heading_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("Study", ["", "measured"], [["trainings", "8"]])
    assert printed(monkeypatch, table, 40)[-1].split() == ["trainings", "8"]
    assert columns_that_fit(table, 40) == ([0, 1], [9, 8])


def test_wide_characters_count_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a terminal draws them: Chinese, Japanese and Korean, and emojis."""
    table = Table("Classes", ["class", "images"], [["日本語", "12"], ["犬", "8"]])
    assert columns_that_fit(table, 40) == ([0, 1], [6, 6])
    assert [line.split() for line in printed(monkeypatch, table, 40)[-2:]] == [["日本語", "12"], ["犬", "8"]]
    assert columns_that_fit(table, 13) is None
    assert printed(monkeypatch, Table("", ["class", "数", "n"], [["a", "1", "2"]], []), 4)[-2:] == [
        "  数  1",
        "  n   2",
    ]


def test_the_stressed_row_alone_is_bold(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(force_terminal=True, width=80, color_system="standard")
    monkeypatch.setattr(terminal, "console", console)
    with console.capture() as capture:
        show_table(Table("", ["arm"], [["first"], ["second"]], bold_row=1))
    lines = capture.get().splitlines()
    assert ["first" in line and "\x1b[1m" not in line for line in lines[-2:]] == [True, False]
    assert "\x1b[1msecond" in lines[-1]


def test_prose_wraps_at_words_below_its_own_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "The winner is block1,fine_tune_all, which nobody foresaw at all."
    console = Console(force_terminal=True, width=30, color_system=None)
    monkeypatch.setattr(terminal, "console", console)
    with console.capture() as capture:
        say_prose(text, "Answer  ")
    assert capture.get().splitlines() == [
        "Answer  The winner is",
        "        block1,fine_tune_all,",
        "        which nobody foresaw",
        "        at all.",
    ]
    pipe = Console(force_terminal=False, width=30)
    monkeypatch.setattr(terminal, "console", pipe)
    with pipe.capture() as capture:
        say_prose(text, "Answer  ")
    assert capture.get() == f"Answer  {text}\n"


@pytest.mark.parametrize("is_missing", [False, True])
def test_no_search_for_garbage_looks_at_what_was_imported(is_missing: bool) -> None:
    """Those after it are made again, also where a library is missing."""
    with suppress(ModuleNotFoundError), loading("libraries"):
        assert not gc.isenabled()
        imported: list[object] = []
        if is_missing:
            raise ModuleNotFoundError
    own: list[object] = []
    assert gc.isenabled()
    searched = {id(thing) for thing in gc.get_objects()}
    assert id(own) in searched
    assert id(imported) not in searched


def test_imports_are_shown_where_no_program_reads(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("CI", "NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    screen = io.StringIO()
    monkeypatch.setattr(terminal, "error_console", Console(file=screen, force_terminal=True))
    monkeypatch.setattr(terminal, "console", Console(force_terminal=True))
    with loading("torch and MLflow"):
        pass
    assert "Loading torch and MLflow" in screen.getvalue()
    assert capsys.readouterr().out == ""


def test_an_interrupt_waits_for_the_end_of_imports() -> None:
    done = []

    def import_libraries() -> None:
        with loading("libraries"):
            signal.raise_signal(signal.SIGINT)
            done.append("imported")

    with signal_handlers_kept():
        handle_interrupts()
        with pytest.raises(KeyboardInterrupt):
            import_libraries()
    assert done == ["imported"]
    assert gc.isenabled()


def test_libraries_report_nothing_at_the_end() -> None:
    """Triton's bindings list what is left, and the garbage that was never looked at would be."""
    code = "from ablation.base.terminal import loading\nwith loading('torch'):\n    import torch._dynamo"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
