from itertools import pairwise

import numpy as np
import pytest
from scipy.special import ndtri

from ablation.analysis.boundaries import planned_levels, unplanned_level


@pytest.mark.parametrize(
    ("looks", "boundaries"),
    [
        # Published for Lan and DeMets's spending function of the O'Brien and Fleming type, two-sided 5 %.
        ([1, 2, 3, 4], [4.333, 2.963, 2.359, 2.014]),
        ([1, 2, 3, 4, 5], [4.877, 3.357, 2.680, 2.290, 2.031]),
        ([1, 2], [2.963, 1.969]),
        ([7], [1.960]),
    ],
)
def test_boundaries_are_the_published_ones(looks: list[int], boundaries: list[float]) -> None:
    found = [float(-ndtri(level / 2)) for level in planned_levels(looks)]
    assert found == pytest.approx(boundaries, abs=6e-4)


def test_early_looks_have_tiny_levels() -> None:
    """Not 0, by which nothing can be divided."""
    first, *_, last = planned_levels([3, 10, 30])
    assert 0 < first < 1e-9
    assert 0.045 < last < 0.05


def test_unequal_looks_together_err_as_often_as_alpha() -> None:
    """A random walk that is looked at after 3, 5, 8 and 12 steps."""
    looks = [3, 5, 8, 12]
    walks_BS = np.random.default_rng(3).standard_normal((200_000, 12)).cumsum(axis=1)
    boundaries = [float(-ndtri(level / 2)) for level in planned_levels(looks)]
    crossed_B = np.zeros(len(walks_BS), bool)
    for seeds, boundary in zip(looks, boundaries, strict=True):
        crossed_B |= np.abs(walks_BS[:, seeds - 1]) / seeds**0.5 > boundary
    assert crossed_B.mean() == pytest.approx(0.05, abs=0.0015)  # three Monte-Carlo standard errors
    levels = planned_levels(looks)
    assert all(earlier < later for earlier, later in pairwise(levels))
    assert levels[-1] < 0.05


def test_unplanned_looks_have_all_of_alpha_once() -> None:
    assert [unplanned_level(number) for number in (1, 2, 3, 4)] == [0.05, 0.0125, 0.00625, 0.003125]
