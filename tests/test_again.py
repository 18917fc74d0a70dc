"""The table of `tests.again`, for simulated studies whose luck is known. Legend: S seeds, N images."""

import re

import numpy as np
import pytest

from tests.again import print_table


def studies(luck: float) -> list[dict[str, np.ndarray]]:
    """Return eight studies of two arms that each study shifts by its own luck, a standard deviation in accuracy."""
    rng = np.random.default_rng(8)
    difficulty_N = rng.random(2_000)
    found = []
    for _ in range(8):
        accuracies = {"a": 0.80 + luck * rng.standard_normal(), "b": 0.75 + luck * rng.standard_normal()}
        found.append({arm: difficulty_N + 0.1 * rng.standard_normal((3, 2_000)) < p for arm, p in accuracies.items()})
    return found


def shares(capsys: pytest.CaptureFixture[str], luck: float) -> tuple[list[int], int]:
    """Return the shares of intervals that hold, in percent, and how many pairs of intervals are disjoint."""
    print_table(studies(luck))
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| one study", *["| 4 studies pooled"] * 2]
    assert "the mean of the other 4, 70 splits" in rows[1]
    disjoint = re.search(r"(\d+) of 28 \|$", rows[0])
    assert disjoint is not None
    return [int(row.split(" | ")[2].split()[0]) for row in rows], int(disjoint[1])


def test_luck_breaks_the_intervals_of_one_study_and_not_those_of_pooled_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (one, pooled, allowed), disjoint = shares(capsys, luck=0.03)
    assert one < 60
    assert disjoint > 8
    assert allowed >= max(pooled, 90)
    assert pooled > one + 20
    (one, pooled, allowed), disjoint = shares(capsys, luck=0.0)
    assert min(one, pooled, allowed) >= 90
    assert disjoint == 0
