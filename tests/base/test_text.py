"""Text that people read."""

import pytest

from ablation.base.text import Table, format_duration, format_params, plural


def test_markdown() -> None:
    table = Table("Which?", ["arm", "value"], [["a|b", "1"]], ["a note"])
    assert table.markdown().splitlines() == [
        "Which?", "", "| arm | value |", "| --- | --- |", "| a\\|b | 1 |", "", "- a note",
    ]  # fmt: skip


def test_formats() -> None:
    assert format_params({"b": 0.000123456, "a": "x"}) == "a x, b 0.000123"


def test_durations() -> None:
    assert [format_duration(s) for s in (40, 89.6, 720, 3 * 3600 + 300)] == ["40 s", "90 s", "12 min", "3 h 05 min"]


def test_plural() -> None:
    counts = (0, 1, 5, 1200)
    assert [plural(count, "arm") for count in counts] == ["0 arms", "1 arm", "5 arms", "1,200 arms"]


@pytest.mark.parametrize(
    "cell",
    ["0", "-8.8", "\u22128.8", "+1.2", "< 0.001", "> 1,000", "0.75 \u00b1 0.01", "1.2 to 3.4", "5 to 12 min", "37 %",
     "1e-05", "64 x 32 x 32", "0.5%", "3 h 05 min"],
)  # fmt: skip
def test_a_column_of_numbers(cell: str) -> None:
    assert Table("", ["arm", "x"], [["block1", cell], ["block2", "-"]]).numeric_columns() == {1}


@pytest.mark.parametrize("cell", ["", "-", "block1", "1.jpg", "3f0a9c", "7 finished, 1 failed", "cannot run", "3x"])
def test_a_column_of_text(cell: str) -> None:
    assert Table("", ["x"], [["-"], [cell]]).numeric_columns() == set()
    assert Table("", ["x"], [["1"], [cell]]).numeric_columns() == ({0} if cell == "-" else set())


def test_a_table_without_rows_has_no_numeric_columns() -> None:
    assert Table("", ["x"], []).numeric_columns() == set()
