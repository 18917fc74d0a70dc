"""Tables on a terminal."""

import re

import pytest
from rich.console import Console

from ablation.base import terminal
from ablation.base.terminal import show_table
from ablation.base.text import Table


def test_columns_of_numbers_are_aligned_at_the_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their headings are: the contents alone decide."""
    console = Console(force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(terminal, "console", console)
    rows = [["a", "7 finished", "1,200", "-"], ["b", "11 failed, 1 running", "8", "12 min"]]
    with console.capture() as capture:
        show_table(Table("Title", ["arm", "trials", "made up", "another heading"], rows))
    lines = capture.get().splitlines()[-3:-1]
    cells = [[cell[1:-1] for cell in line.strip("│").split("│")] for line in lines]
    assert cells == [
        ["a  ", "7 finished          ", "1,200", "      -"],
        ["b  ", "11 failed, 1 running", "    8", " 12 min"],
    ]


def test_headings_make_no_column_wider_than_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(force_terminal=True, width=100, height=14, color_system=None)
    monkeypatch.setattr(terminal, "console", console)
    with console.capture() as capture:
        show_table(Table("Title", ["arm", "smallest difference (points)"], [["block1,fine_tune_all", "0.5"]]))
    lines = [re.sub(" +", " ", line.replace("┃", "").replace("│", "")).strip() for line in capture.get().splitlines()]
    assert lines[2:5] == ["smallest", "difference", "arm (points)"]
    assert lines[6] == "block1,fine_tune_all 0.5"
