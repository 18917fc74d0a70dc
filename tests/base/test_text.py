"""Text that people read."""

import pytest

from ablation.base.text import (
    SHOWN,
    Table,
    defused,
    escape_markdown,
    format_duration,
    format_params,
    listed,
    plural,
    visible,
)


def test_markdown() -> None:
    table = Table("Which?", ["arm", "value"], [["a|b", "1"]], ["a note"])
    assert table.markdown().splitlines() == [
        "Which?", "", "| arm | value |", "| --- | --- |", "| a\\|b | 1 |", "", "- a note",
    ]  # fmt: skip


def test_formats() -> None:
    assert format_params({"b": 0.000123456, "a": "x"}) == "a x, b 0.000123"


def test_durations() -> None:
    assert [format_duration(s) for s in (40, 89.6, 720, 3 * 3600 + 300)] == ["40 s", "90 s", "12 min", "3 h 05 min"]


def test_long_lists_are_cut() -> None:
    assert [listed(list("abc"), most) for most in (4, 3, 2)] == ["a, b, c", "a, b, c", "a, b and 1 more"]


def test_plural() -> None:
    counts = (0, 1, 5, 1200)
    assert [plural(count, "arm") for count in counts] == ["0 arms", "1 arm", "5 arms", "1,200 arms"]
    assert [plural(count, "class", "classes") for count in (1, 2)] == ["1 class", "2 classes"]


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred\x07", r"a\x1b[31mred\x07"),
        ("50 %\r100 %", r"50 %\r100 %"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("abc\u202ecba", r"abc\u202ecba"),
        ("soft\xadhy\u200bphen\u2060s", r"soft\xadhy\u200bphen\u2060s"),
        (
            "a\u034fb\u115fc\u1160d\u180ee\u3164f\uffa0g\U000e0041",
            r"a\u034fb\u115fc\u1160d\u180ee\u3164f\uffa0g\U000e0041",
        ),
        ("\u2764\ufe0f \u0915\u094d\u200d", "\u2764\ufe0f \u0915\u094d\u200d"),
        ("caf\udce9", r"caf\xe9"),  # a file name in Latin-1, as Python reads it
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        (
            "\N{DOG FACE} \u0645\u0631 $x$ <b> \N{LATIN SMALL LETTER E WITH ACUTE}",
            "\N{DOG FACE} \u0645\u0631 $x$ <b> é",
        ),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_row_of_a_table_is_a_line() -> None:
    table = Table("A\x1b[2Jtitle", ["a\nb", "c"], [["x\r\ny", "1\u2028|2"]], ["a\nnote"])
    assert table.markdown().splitlines() == [
        r"A\x1b[2Jtitle", "", r"| a\nb | c |", "| --- | --- |", r"| x\r\ny | 1\u2028\|2 |", "", r"- a\nnote",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("ascii", rb"0.7 +- 0.1 caf\xe9 \xff"),
        ("latin-1", b"0.7 \xb1 0.1 caf\xe9 \\xff"),
        ("utf-8", "0.7 ± 0.1 café \\xff".encode()),
    ],
)
def test_a_stream_gets_what_it_can_show(encoding: str, written: bytes) -> None:
    assert "0.7 ± 0.1 café \udcff".encode(encoding, SHOWN) == written


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("fine_tune_all", "fine_tune_all"),
        ("_a_ b", "\\_a\\_ b"),
        ("a\n# b", "a # b"),
        ("1 < 2 * 3", "1 &lt; 2 \\* 3"),
        ("<img src='http://x/y'>", "&lt;img src='http://x/y'\\>"),
        ("![a](http://x/y)", "!\\[a\\](http://x/y)"),
        ("&lt;b&gt; &#60; R&D", "&amp;lt;b&amp;gt; &amp;#60; R&D"),
        ("$\\frac{$", "&#36;\\\\frac{&#36;"),
        ("# not a heading", "\\# not a heading"),
        ("- no list", "\\- no list"),
        ("1. no list", "1\\. no list"),
        ("-8.8 and +1.2", "-8.8 and +1.2"),
        ("0.75 is no list", "0.75 is no list"),
        ("a\x1b[2J\u202eb", "a\\\\x1b\\[2J\\\\u202eb"),
    ],
)
def test_escape_markdown(text: str, escaped: str) -> None:
    assert escape_markdown(text) == escaped


def test_no_cell_is_a_formula() -> None:
    cells = ["=1+1", "+cmd|' /C calc'!A0", "-1+1", "@sum", "\t=1", "\r=1"]
    assert [defused(cell) for cell in cells] == [f"'{cell}" for cell in cells]
    kept = ["a=1", "-1", "+1.5e-3", -8.5, 3, ""]  # numbers, also as the names of classes
    assert [defused(cell) for cell in kept] == kept
    assert defused(None) == ""
