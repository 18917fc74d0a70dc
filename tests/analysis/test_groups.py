"""Intervals over groups of test images: by hand, against copies of single images, and by simulation.

Legend: A arms, S seeds, R repeats, N test images, G groups of them.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ablation.analysis.answer import analyse
from ablation.analysis.estimator import OVER_SEEDS, Estimator
from ablation.analysis.looks import this_look
from ablation.analysis.pooling import analyse_study
from ablation.analysis.predictions import load_predictions
from ablation.analysis.repeats import repeat_moments, variance_components
from ablation.analysis.results import StudyResult
from ablation.analysis.seeds import seed_moments
from ablation.analysis.statistics import exact_test, image_covariance
from ablation.reporting.answer_sections import difference_blocks
from ablation.reporting.method_sections import independence
from tests.calibration import simulate
from tests.fake_results import TWO_BY_TWO, fake_result

DIFFERENCE = {"a": 1.0, "b": -1.0}
PAIRS = [DIFFERENCE, {"a": 1.0, "c": -1.0}, {"b": 1.0, "c": -1.0}]
COPIES = 5


def test_the_covariance_by_hand() -> None:
    # The groups' sums are 1, -1/2 and -1/2; 3 / 2 times the sum of their squares is 9/4, over 16.
    values_1N = np.array([[0.5, 0.5, -0.5, -0.5]])
    assert image_covariance(values_1N, np.array([0, 0, 1, 2])) == pytest.approx(9 / 64)
    assert image_covariance(values_1N) == pytest.approx(1 / 3 / 4)
    assert image_covariance(values_1N, np.array([2, 0, 1, 3])) == pytest.approx(1 / 3 / 4), "groups of one image"
    two_2N = np.array([[0.5, 0.5, -0.5, -0.5], [0.25, -0.25, 0.5, -0.5]])
    # Sums of the second: 0, 1/2, -1/2. The products of the sums are 0, -1/4 and 1/4.
    assert image_covariance(two_2N, np.array([0, 0, 1, 2])) == pytest.approx(np.array([[9 / 64, 0], [0, 3 / 64]]))


def test_the_moments_of_an_arm_by_hand() -> None:
    # Two seeds, right about 1 1 0 0 and 1 0 0 0; groups {0, 1} and {2, 3}. Mean 3/8; the images' means 1, 1/2, 0, 0
    # less 3/8 sum to 3/4 and -3/4: 2 * 18/16 / 16. Residuals are -1/8 3/8 -1/8 -1/8 and the negative: sums 1/4 and -1/4
    # in both seeds, 2 * 2 * 2/16 / 16.
    y_SN = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool)
    moments = seed_moments({"a": y_SN}, np.array([0, 0, 1, 1]))
    assert moments.residual_A == pytest.approx([1 / 32])
    assert moments.images_AA == pytest.approx(np.array([[9 / 64 - 1 / 64]]))
    assert moments.variance_A == pytest.approx([1 / 4]), "s² is 1/32; the least is that of one of two groups"
    assert (moments.images, moments.units) == (4, 2)


@pytest.fixture
def single() -> dict[str, np.ndarray]:
    return simulate(np.random.default_rng(3), {"a": 0.9, "b": 0.87, "c": 0.86}, 0.01, 4, 300)


def copied(correct: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return five copies of each image, in some order, and their groups."""
    order_N = np.random.default_rng(0).permutation(np.repeat(np.arange(300), COPIES))
    return {arm: y_SN[:, order_N] for arm, y_SN in correct.items()}, order_N


def test_copies_of_an_image_are_as_good_as_the_image(single: dict[str, np.ndarray]) -> None:
    """Groups of identical images make every number what it is without the copies; without groups, intervals shrink."""
    many, groups_N = copied(single)
    grouped = Estimator(groups_N=groups_N)
    for weights in (DIFFERENCE, {"a": 1.0}):
        expected, found = OVER_SEEDS.contrast(weights, single), grouped.contrast(weights, many)
        assert list(vars(found).values()) == pytest.approx(list(vars(expected).values()))
    expected_all, found_all = OVER_SEEDS.simultaneous(PAIRS, single, 9_999), grouped.simultaneous(PAIRS, many, 9_999)
    for one, other in zip(expected_all, found_all, strict=True):
        assert list(vars(other).values()) == pytest.approx(list(vars(one).values()))
    assert grouped.chances_of_best(many, 9_999) == pytest.approx(OVER_SEEDS.chances_of_best(single, 9_999))
    narrow, wide = (OVER_SEEDS.contrast({"a": 1.0}, correct) for correct in (many, single))
    assert narrow.high - narrow.low < 0.8 * (wide.high - wide.low)


def test_the_exact_test_is_of_groups() -> None:
    """Arms differ on 3 images of 40, all five copies of each: three in favour of a, not fifteen."""
    a_N, b_N = np.ones(40, bool), np.arange(40) >= 3
    single = {"a": np.tile(a_N, (3, 1)), "b": np.tile(b_N, (3, 1))}
    moments = seed_moments(single)
    many = {arm: y_SN.repeat(COPIES, 1) for arm, y_SN in single.items()}
    grouped = seed_moments(many, np.arange(40).repeat(COPIES))
    weights_A = moments.weights([DIFFERENCE])[0]
    assert exact_test(weights_A, grouped, 0.05) == pytest.approx(exact_test(weights_A, moments, 0.05))
    assert exact_test(weights_A, grouped, 0.05)[2] == pytest.approx(2 * 0.5**3)
    assert exact_test(weights_A, seed_moments(many), 0.05) is None


def test_repeats_with_copies_of_images(single: dict[str, np.ndarray]) -> None:
    right = {arm: y_SN.astype(float) for arm, y_SN in single.items()}
    many, groups_N = copied(right)
    moments, grouped = repeat_moments(right), repeat_moments(many, groups_N)
    assert grouped.images_AA == pytest.approx(moments.images_AA)
    assert grouped.units == 300
    over_images, over_groups = Estimator("tuning"), Estimator("tuning", groups_N)
    expected = over_images.simultaneous(PAIRS, right, 9_999)
    found = over_groups.simultaneous(PAIRS, many, 9_999)
    for one, other in zip(expected, found, strict=True):
        assert list(vars(other).values()) == pytest.approx(list(vars(one).values()))
    assert over_groups.chances_of_best(many, 9_999) == pytest.approx(over_images.chances_of_best(right, 9_999))
    variances = dict.fromkeys("abc", 1e-5)
    of_copies = variance_components(PAIRS, grouped, variances)
    assert vars(of_copies) == pytest.approx(vars(variance_components(PAIRS, moments, variances)))


@pytest.mark.parametrize("sizes", ["equal", "unequal"])
def test_intervals_cover_with_groups_and_not_without(sizes: str) -> None:
    """40 groups of 5 images (or of 1 to 9), which are easy or hard together, also for one arm alone; 400 studies."""
    random = np.random.default_rng(5)

    def study(G: int, seeds: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        counts_G = np.full(G, 5) if sizes == "equal" else random.integers(1, 10, G)
        groups_N = np.repeat(np.arange(G), counts_G)
        N = len(groups_N)
        shared_N = random.normal(0, 1, G)[groups_N] + random.normal(0, 0.7, N)
        correct = {}
        for arm in "ab":
            own_N = random.normal(0, 0.5, G)[groups_N] + random.normal(0, 0.3, N)
            correct[arm] = (
                0.9 + shared_N + own_N + random.normal(0, 0.05, (seeds, 1)) + random.normal(0, 0.5, (seeds, N)) > 0
            )
        return correct, groups_N

    truth = float(np.mean([study(4000, 4)[0]["a"].mean() for _ in range(20)]))
    counts = {"difference": 0, "mean": 0, "without": 0}
    for _ in range(400):
        correct, groups_N = study(40, 4)
        for name, weights, value, groups in (
            ("difference", DIFFERENCE, 0.0, groups_N),
            ("mean", {"a": 1.0}, truth, groups_N),
            ("without", {"a": 1.0}, truth, None),
        ):
            estimate = Estimator(groups_N=groups).contrast(weights, correct)
            counts[name] += estimate.low <= value <= estimate.high
    coverage = {name: count / 400 for name, count in counts.items()}
    assert 0.92 <= coverage["difference"] <= 0.98
    assert 0.92 <= coverage["mean"] <= 0.98
    assert coverage["without"] < 0.9


def test_groups_are_stored_with_the_predictions(tmp_path: Path) -> None:
    tensors = {
        "probabilities": np.full((3, 2), 0.5, np.float16),
        "predicted": np.array([0, 1, 1], np.uint8),
        "labels": np.array([0, 1, 0], np.uint8),
    }
    save_file(tensors, tmp_path / "without.safetensors")
    save_file({**tensors, "groups": np.array([0, 1, 0], np.int64)}, tmp_path / "with.safetensors")
    assert load_predictions(tmp_path / "without.safetensors").groups_N is None
    groups_N = load_predictions(tmp_path / "with.safetensors").groups_N
    assert groups_N is not None
    assert groups_N.tolist() == [0, 1, 0]


def test_a_single_group_tests_nothing_and_the_answer_says_so() -> None:
    """Five patients leave one of them for the test split: no number of seeds says how patients differ."""
    accuracies = {"block3,feature_extraction": 0.6, "block3,fine_tune_all": 0.7}
    accuracies |= {"block5,feature_extraction": 0.8, "block5,fine_tune_all": 0.9}
    result = fake_result(TWO_BY_TWO, accuracies, seeds=3, images=200)
    analysis = analyse(of_one_group(result))
    assert analysis.verdict == [
        f"{factor}: nothing can be compared on a single test image or group." for factor in TWO_BY_TWO
    ]
    assert (analysis.chances_of_best, analysis.from_best, analysis.compared.contrasts) == ({}, {}, [])
    assert analysis.evidence[0].endswith("3 seeds; a single test image, or a single group of them, proves nothing.")
    assert analysis.compared.interaction_missing == [
        "block3 and block5 with feature_extraction and fine_tune_all: nothing is tested on a single image or group"
    ]
    assert not any("fewer than" in str(block) for block in difference_blocks(analysis))
    assert this_look(analysis.result) is None, "what tests nothing is no look"
    assert analyse(fake_result(TWO_BY_TWO, accuracies, seeds=3, images=1)).verdict == analysis.verdict
    repeated = fake_result(
        {"truncate_at": ["block3", "block5"]}, {"block3": 0.6, "block5": 0.9}, seeds=1, images=200,
        trials_per_arm=3, confirm={"seeds": 1, "repeats": 3},
    )  # fmt: skip
    over_repeats = analyse_study(of_one_group(repeated))
    assert over_repeats.verdict == ["Nothing can be compared on a single test image or group."]
    assert all(arm.estimate is not None and arm.estimate.low is None for arm in over_repeats.arms)


def test_one_group_is_not_called_independent() -> None:
    result = fake_result({"truncate_at": ["block3", "block5"]}, {"block3": 0.9, "block5": 0.8}, images=40)
    text = "All test images are of one group (data.groups): they may be easy or hard together."
    assert independence(of_one_group(result)) == text


def of_one_group(result: StudyResult) -> StudyResult:
    """Return the study with test images that all belong together."""
    arms = [
        replace(
            arm,
            confirmations=[
                replace(run, predictions=replace(run.predictions, groups_N=np.zeros(result.test_images, np.int64)))
                for run in arm.confirmations
                if run.predictions is not None
            ],
        )
        for arm in result.arms
    ]
    return replace(result, arms=arms)
