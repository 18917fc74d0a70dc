"""Levels of tests that are repeated while a study grows: alpha spent over planned looks, divided for others."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from ablation.analysis.statistics import ALPHA

NODES = 200  # of the quadrature over what has not been shown so far; more change no level's fourth digit


def planned_levels(looks: Sequence[int], alpha: float = ALPHA) -> list[float]:
    """Return the two-sided level of the test at each look, so that the chance of any false declaration is alpha.

    Each side spends 2 - 2 Phi(z(alpha / 4) / sqrt(t)) of its half of alpha up to the share t of all seeds, close to the
    boundaries of O'Brien and Fleming (Lan and DeMets, 1983). A statistic of few seeds has to be very large, and the
    last look keeps almost all of alpha.

    Args:
        looks: seeds of each look, rising; those of the last are all.
        alpha: of all looks together.
    """
    shares = np.array(looks) / looks[-1]
    spent = 4 * ndtr(ndtri(alpha / 4) / np.sqrt(shares))  # by both sides
    boundaries: list[float] = []  # of the sum process, whose variance at a look is its share
    points_P, density_P = np.zeros(1), np.ones(1)  # where the process may be without having been shown; their weights
    before_share, before_spent = 0.0, 0.0
    for share, spent_here in zip(shares, spent, strict=True):
        deviation = np.sqrt(share - before_share)
        boundary = _boundary(points_P, density_P, deviation, spent_here - before_spent)
        boundaries.append(boundary / np.sqrt(share))
        nodes_P, weights_P = np.polynomial.legendre.leggauss(NODES)
        next_P = boundary * nodes_P
        steps_PP = (next_P[:, None] - points_P) / deviation
        normal_PP = np.exp(-(steps_PP**2) / 2) / np.sqrt(2 * np.pi) / deviation
        points_P, density_P = next_P, boundary * weights_P * (normal_PP @ density_P)
        before_share, before_spent = share, spent_here
    return [float(2 * ndtr(-boundary)) for boundary in boundaries]


def _boundary(points_P: np.ndarray, density_P: np.ndarray, deviation: float, chance: float) -> float:
    """Return the boundary that a normal step from these points crosses on either side with this chance."""

    def excess(boundary: float) -> float:
        crossing_P = ndtr((points_P - boundary) / deviation) + ndtr((-points_P - boundary) / deviation)
        return float(crossing_P @ density_P) - chance

    return float(brentq(excess, 0.0, 20.0, xtol=1e-15))


def unplanned_level(number: int, alpha: float = ALPHA) -> float:
    """Return the level of an unplanned look, from 1: all of alpha at the first, then alpha / 2^number.

    Nobody knows of a first look that others will follow; together they stay below 1.5 alpha. Looks share most of their
    data, so that studies without a difference declare one in about 5 % (see `tests/calibration.md`).
    """
    return alpha if number == 1 else alpha / 2**number
