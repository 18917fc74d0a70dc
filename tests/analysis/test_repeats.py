"""Contrasts over repeats of a study, against hand-computed values and SciPy. Legend: R repeats, N test images."""

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as scipy_stats

from ablation.analysis.estimator import Estimator
from ablation.analysis.repeats import combined_statistic, repeat_moments, variance_components
from ablation.analysis.simultaneous import from_normal_scale
from ablation.spec.objective import OBJECTIVES

DIFFERENCE = {"a": 1.0, "b": -1.0}
OVER_REPEATS = Estimator("tuning")


def drawn(arms: str = "abc", repeats: int = 4, images: int = 300) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    difficulty_N = random.uniform(size=images)
    shift_R = random.normal(0, 0.03, repeats)
    return {
        arm: np.clip(
            0.8 + 0.02 * n + shift_R[:, None] + random.normal(0, 0.2, (repeats, images)) - difficulty_N / 5, 0, 1
        )
        for n, arm in enumerate(arms)
    }


def test_the_variance_is_the_estimator_of_the_issue() -> None:
    """V = s^2/R + var_n(mean_r D)/N - MS/(RN), with D the difference on each image in each repeat."""
    right = drawn()
    D_RN = right["a"] - right["b"]
    R, N = D_RN.shape
    rest_RN = D_RN - D_RN.mean(axis=1, keepdims=True) - D_RN.mean(axis=0) + D_RN.mean()
    residual = (rest_RN**2).sum() / ((R - 1) * (N - 1))
    images = D_RN.mean(axis=0).var(ddof=1) / N - residual / (R * N)
    moments = repeat_moments(right)
    of_repeats_C, images_C = moments.variance_parts(moments.weights([DIFFERENCE]))
    assert of_repeats_C[0] == pytest.approx(D_RN.mean(axis=1).var(ddof=1) / R)
    assert images_C[0] == pytest.approx(max(images, 1 / N**2))


def test_what_a_repeat_does_to_all_arms_cancels() -> None:
    right = drawn()
    shift_R1 = np.array([[0.05], [-0.04], [0.0], [0.02]])
    before, after = (
        OVER_REPEATS.contrast(DIFFERENCE, {arm: y_RN + by for arm, y_RN in right.items()}) for by in (0.0, shift_R1)
    )
    assert after.standard_error == pytest.approx(before.standard_error)
    assert OVER_REPEATS.contrast({"a": 1.0}, {arm: y + shift_R1 for arm, y in right.items()}).standard_error != (
        pytest.approx(OVER_REPEATS.contrast({"a": 1.0}, right).standard_error)
    )


def test_the_interval_combines_t_and_normal_quantiles() -> None:
    right = drawn()
    moments = repeat_moments(right)
    (of_repeats,), (images,) = moments.variance_parts(moments.weights([DIFFERENCE]))
    half = np.sqrt(scipy_stats.t(3).isf(0.025) ** 2 * of_repeats + scipy_stats.norm.isf(0.025) ** 2 * images)
    estimate = OVER_REPEATS.contrast(DIFFERENCE, right)
    assert estimate.low is not None
    assert estimate.value == pytest.approx(float((right["a"] - right["b"]).mean()))
    assert estimate.value - estimate.low == pytest.approx(half, rel=0.03)  # `from_normal_scale` is that exact


@pytest.mark.parametrize("degrees", [2, 4, 9])
@pytest.mark.parametrize(("of_repeats", "images"), [(1.0, 1e-6), (1.0, 1.0), (1e-6, 1.0), (0.0, 1.0)])
def test_the_statistic_is_where_the_interval_reaches_zero(degrees: int, of_repeats: float, images: float) -> None:
    for value in (0.01, 1.0, 5.0):
        statistic = float(combined_statistic(np.array(value**2), np.array(of_repeats), np.array(images), degrees))

        def excess(z: float, value: float = value) -> float:
            t = float(from_normal_scale(z, np.array(degrees)))
            return t**2 * of_repeats + z**2 * images - value**2

        assert statistic == pytest.approx(optimize.brentq(excess, 0, min(25.0, value / np.sqrt(images) + 1)), rel=1e-6)


def test_intervals_exclude_zero_where_p_is_below_five_percent() -> None:
    right = drawn(images=600)
    right["b"] += 0.03
    contrasts = [{"a": 1.0, "b": -1.0}, {"a": 1.0, "c": -1.0}, {"b": 1.0, "c": -1.0}]
    together = OVER_REPEATS.simultaneous(contrasts, right)
    for weights, estimate in zip(contrasts, together, strict=True):
        alone = OVER_REPEATS.contrast(weights, right)
        assert estimate.p is not None
        assert alone.p is not None
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.p > alone.p
        assert (estimate.p < 0.05) == (estimate.low > 0 or estimate.high < 0)


def test_two_repeats_are_not_tested() -> None:
    right = drawn(repeats=2)
    estimate = OVER_REPEATS.contrast(DIFFERENCE, right)
    assert estimate.value == pytest.approx(float((right["a"] - right["b"]).mean()))
    assert estimate.low is None
    assert estimate.p is None
    assert OVER_REPEATS.chances_of_best(right) == {}


def test_the_chance_to_be_best_of_two_arms_is_that_of_their_difference() -> None:
    right = drawn("ab", repeats=6)
    moments = repeat_moments(right)
    (of_repeats,), (images,) = moments.variance_parts(moments.weights([DIFFERENCE]))
    value = OVER_REPEATS.contrast(DIFFERENCE, right).value
    random = np.random.default_rng(1)
    drawn_B = value + random.standard_t(5, 400_000) * np.sqrt(of_repeats) + random.normal(0, np.sqrt(images), 400_000)
    assert OVER_REPEATS.chances_of_best(right)["a"] == pytest.approx((drawn_B > 0).mean(), abs=0.01)


def test_the_components_add_up_to_the_variance() -> None:
    right = drawn()
    moments = repeat_moments(right)
    (of_repeats,), (images,) = moments.variance_parts(moments.weights([DIFFERENCE]))
    parts = variance_components([DIFFERENCE], moments, {"a": 2e-5, "b": 1e-5, "c": 0.0})
    assert parts.seeds == pytest.approx(3e-5 / 4)
    assert parts.seeds + parts.tuning == pytest.approx(of_repeats)
    assert parts.images == pytest.approx(images)
    alone = variance_components([DIFFERENCE], moments, dict.fromkeys("abc", np.nan))
    assert (alone.seeds, alone.tuning) == (None, pytest.approx(of_repeats))


def test_repeats_that_agree_by_chance_do_not_make_the_threshold_smaller() -> None:
    """Studies with the same mean square of arms by repeats have the same threshold, however it falls on differences.

    In the first, what repeats do to a and b is the same, so that their difference does not vary. Were each difference
    simulated with its own variance, that one would be taken for one of images alone.
    """
    random = np.random.default_rng(3)
    images_AN = random.uniform(0.4, 0.6, (3, 500))
    together_AR = np.array([[1, 0, -1], [1, 0, -1], [0, 0, 0]])
    spread_AR = np.array([[1, 0, -1], [-1, 1, 0], [0, -1, 1]])

    def mean_square(effects_AR: np.ndarray) -> float:
        rest_AR = effects_AR - effects_AR.mean(axis=0) - effects_AR.mean(axis=1, keepdims=True) + effects_AR.mean()
        return float((rest_AR**2).sum() / 4)

    spread_AR = spread_AR * np.sqrt(mean_square(together_AR) / mean_square(spread_AR))
    thresholds = []
    for effects_AR in (together_AR, spread_AR):
        y_ARN = images_AN[:, None] + 0.01 * effects_AR[:, :, None]
        right = dict(zip("abc", y_ARN, strict=True))
        contrasts = [{"a": 1.0, "b": -1.0}, {"a": 1.0, "c": -1.0}, {"b": 1.0, "c": -1.0}]
        estimate = OVER_REPEATS.simultaneous(contrasts, right, 999)[1]
        moments = repeat_moments(right)
        of_repeats_C, images_C = moments.variance_parts(moments.weights(contrasts))
        assert estimate.high is not None
        half, parts = estimate.high - estimate.value, (of_repeats_C[1], images_C[1])

        def excess(z: float, half: float = half, parts: tuple[float, float] = parts) -> float:
            return float(from_normal_scale(z, np.array(2.0)) ** 2 * parts[0] + z**2 * parts[1] - half**2)

        thresholds.append(optimize.brentq(excess, 1.0, 6.0))
    assert thresholds[0] == pytest.approx(thresholds[1], rel=1e-6)


def test_few_images_that_carry_a_difference_widen_its_interval_over_repeats() -> None:
    """Four images of a rare class in 200, where images count unequally: Student's t has about three degrees of freedom.

    The t is that of m - 1 degrees, with m = (sum of d²)² / (sum of d⁴) of the images' influences d.
    """
    D_N = np.where(np.arange(200) < 4, 1.0, 0.0)
    right = {"a": np.tile(D_N, (3, 1)), "b": np.zeros((3, 200))}
    d_N = D_N - D_N.mean()
    plain, carrying = d_N.var(ddof=1) / 200, (d_N**2).sum() ** 2 / (d_N**4).sum()
    assert carrying == pytest.approx(4, abs=0.2)
    wider = (scipy_stats.t(carrying - 1).isf(0.025) / scipy_stats.norm.isf(0.025)) ** 2
    assert wider > 2
    images = {}
    for name in ("balanced_accuracy", "accuracy"):
        moments = repeat_moments(right, objective=OBJECTIVES[name])
        images[name] = float(moments.variance_parts(moments.weights([DIFFERENCE]))[1][0])
    assert images["accuracy"] == pytest.approx(plain)
    assert images["balanced_accuracy"] == pytest.approx(plain * wider, rel=0.08)  # of t², see `from_normal_scale`
    estimate = Estimator("tuning", objective=OBJECTIVES["balanced_accuracy"]).contrast(DIFFERENCE, right)
    assert estimate.low is not None
    assert estimate.value - estimate.low == pytest.approx(
        scipy_stats.norm.isf(0.025) * np.sqrt(images["balanced_accuracy"])
    )
