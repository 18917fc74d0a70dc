"""The estimator over seeds and images in other code, by which tests recompute a report from raw predictions.

Variances come from a table of squares by `np.var`, quantiles and p-values from `scipy.stats`, the simultaneous ones
from a simulation of whole runs' errors that shares no code with `ablation.analysis`.

Legend: S seeds, N test images.
"""

from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from ablation.analysis.results import StudyResult

FACTORS: dict[str, list[Any]] = {
    "truncate_at": ["block3", "block4", "block5"],
    "strategy": ["feature_extraction", "fine_tune_all"],
}
ACCURACIES = {
    "block3,feature_extraction": 0.90, "block3,fine_tune_all": 0.92, "block4,feature_extraction": 0.893,
    "block4,fine_tune_all": 0.913, "block5,feature_extraction": 0.86, "block5,fine_tune_all": 0.885,
}  # fmt: skip


def raw(study: StudyResult) -> dict[str, np.ndarray]:
    """Return arm -> 1.0 where a run is right about an image, S x N."""
    return {
        arm.arm.name: np.array(
            [p.predicted_N == p.labels_N for run in arm.confirmations if (p := run.predictions) is not None], float
        )
        for arm in study.arms
    }


def residual_over_N(y_SN: np.ndarray) -> float:
    S, N = y_SN.shape
    rest_SN = y_SN - y_SN.mean(axis=0, keepdims=True) - y_SN.mean(axis=1, keepdims=True) + y_SN.mean()
    return float((rest_SN**2).sum() / ((S - 1) * (N - 1)) / N)


def error(weights: dict[str, float], right: dict[str, np.ndarray]) -> tuple[float, float, float]:
    """Return a contrast's value, standard error and Satterthwaite's degrees of freedom."""
    N = next(iter(right.values())).shape[1]
    mean_N = sum(weight * right[arm].mean(axis=0) for arm, weight in weights.items())
    parts = []
    rest = 0.0
    for arm, weight in weights.items():
        S, least = len(right[arm]), max(residual_over_N(right[arm]), N**-2)
        s_squared = float(np.var(right[arm].mean(axis=1), ddof=1))
        parts.append((weight**2 * max(s_squared, least) / S, S - 1 if s_squared > least else N - 1))
        rest += weight**2 * residual_over_N(right[arm]) / S
    parts.append((max(float(np.var(mean_N, ddof=1)) / N - rest, 0.0), N - 1))
    variance = sum(part for part, _ in parts)
    return float(mean_N.mean()), variance**0.5, variance**2 / sum(part**2 / df for part, df in parts)


def marginal(factor: int, first: str, second: str) -> dict[str, float]:
    """Return the difference of two levels' means over the levels of the other factor."""
    of_level = [[arm for arm in ACCURACIES if arm.split(",")[factor] == level] for level in (first, second)]
    weights = {arm: 1 / len(of_level[0]) for arm in of_level[0]}
    return weights | {arm: -1 / len(of_level[1]) for arm in of_level[1]}


def family() -> dict[tuple[str, str], dict[str, float]]:
    """Return the contrasts of the whole answer, by the first two cells of their rows."""
    contrasts: dict[tuple[str, str], dict[str, float]] = {}
    for number, levels in enumerate(FACTORS.values()):
        contrasts |= {pair: marginal(number, *pair) for pair in combinations(levels, 2)}
    frozen, tuned = FACTORS["strategy"]
    for first, base in combinations(FACTORS["truncate_at"], 2):
        contrasts[f"{first} \u2212 {base}", f"{frozen} rather than {tuned}"] = {
            f"{first},{frozen}": 1.0, f"{base},{frozen}": -1.0, f"{first},{tuned}": -1.0, f"{base},{tuned}": 1.0,
        }  # fmt: skip
    return contrasts


def largest_of_simulated_studies(
    contrasts: list[dict[str, float]], right: dict[str, np.ndarray], studies: int
) -> tuple[np.ndarray, list[tuple[float, float, float]]]:
    """Return each simulated study's largest statistic, as a normal deviate, and each contrast's error."""
    rng = np.random.default_rng(99)
    arms = list(right)
    N = right[arms[0]].shape[1]
    S = np.array([len(right[arm]) for arm in arms])
    least = np.array([max(residual_over_N(right[arm]), N**-2) for arm in arms])
    v = np.maximum([np.var(right[arm].mean(axis=1), ddof=1) for arm in arms], least)
    means = np.array([right[arm].mean(axis=0) for arm in arms])
    K = np.cov(means) / N - np.diag([residual_over_N(right[arm]) for arm in arms] / S)
    W = np.array([[weights.get(arm, 0.0) for arm in arms] for weights in contrasts])
    found = [error(weights, right) for weights in contrasts]
    values, vectors = np.linalg.eigh(K)
    K_plus = (vectors * np.maximum(values, 0)) @ vectors.T
    covariance = W @ (np.diag(v / S) + K_plus) @ W.T
    z = stats.multivariate_normal(np.zeros(len(arms)), np.diag(v / S) + K_plus, allow_singular=True)
    errors = z.rvs(studies, random_state=rng) @ W.T
    errors *= np.array([e for _, e, _ in found]) / np.sqrt(np.diag(covariance))
    drawn = np.maximum(v * rng.chisquare(S - 1, (studies, len(arms))) / (S - 1), least) / S
    images = np.maximum(np.einsum("ca,ab,cb->c", W, K, W), 0)
    variance = drawn @ (W**2).T + images
    df = variance**2 / ((drawn**2 / np.where(drawn * S <= least, N - 1, S - 1)) @ (W**4).T + images**2 / (N - 1))
    return deviate(errors**2 / variance, df).max(axis=1), found


def deviate(squared: Any, df: Any) -> Any:
    """Wallace's (1959) transformation of t, in its published form."""
    return (8 * df + 1) / (8 * df + 3) * np.sqrt(df * np.log(1 + squared / df))
