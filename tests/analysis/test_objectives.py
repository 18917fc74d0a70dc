"""Studies that are compared by another objective than accuracy: who wins, what the report says, how sure it is."""

import re
from dataclasses import replace

import numpy as np
import pytest

from ablation.analysis.across_studies import arms_across, check_same_question, differences_across
from ablation.analysis.answer import StudyAnalysis, analyse
from ablation.analysis.arm_summaries import best_so_far, champion_run, winning_arm
from ablation.analysis.champion import choose_champion
from ablation.analysis.estimator import Estimator
from ablation.analysis.pooling import analyse_study
from ablation.analysis.predictions import Predictions
from ablation.analysis.repeats import repeat_moments
from ablation.analysis.results import ArmResult, StudyResult
from ablation.analysis.seeds import seed_moments
from ablation.analysis.statistics import carrying_units
from ablation.analysis.tuning import best_of, tuned_minus_confirmed
from ablation.base.errors import InputError
from ablation.reporting.comparison_of_studies import across_sentences, across_tables
from ablation.reporting.content import Items
from ablation.reporting.method_sections import meaning_blocks
from ablation.spec.arms import arms
from ablation.spec.objective import OBJECTIVES
from tests.fake_results import fake_arm, fake_predictions, fake_result, fake_spec, fake_study

LOSS, BALANCED = OBJECTIVES["loss"], OBJECTIVES["balanced_accuracy"]
CUTS = {"truncate_at": ["block3", "block4"]}


def loss_predictions(loss: float, accuracy: float, seed: int, images: int = 200) -> Predictions:
    """Return predictions of about this mean loss and this accuracy."""
    random = np.random.default_rng(seed)
    labels_N = np.arange(images) % 4
    predicted_N = np.where(np.arange(images) < accuracy * images, labels_N, (labels_N + 1) % 4)
    predictions = fake_predictions(predicted_N, labels_N, 4)
    return replace(predictions, losses_N=loss * random.uniform(0.9, 1.1, images))


def loss_study(**changes: object) -> StudyResult:
    """Return a study in which block4 has the lower loss and block3 the higher accuracy, in validation and test."""
    spec = fake_spec(CUTS, objective="loss", confirm={"seeds": 3}, **changes)
    losses = {"block3": 0.9, "block4": 0.4}
    accuracies = {"block3": 0.9, "block4": 0.7}
    results = []
    for arm in arms(spec):
        loss = losses[arm.name]
        tuned = [loss + 0.2, loss - 0.05, loss + 0.1]
        predictions = [loss_predictions(loss, accuracies[arm.name], seed) for seed in range(3)]
        results.append(fake_arm(spec, arm, tuned, [loss + 0.01 * s for s in range(3)], predictions))
    return fake_study(spec, results, ["a", "b", "c", "d"])


def test_the_winner_has_the_lowest_loss_although_its_accuracy_is_lower() -> None:
    result = loss_study()
    block3, block4 = result.arms
    assert block4.test_accuracies_S.mean() < block3.test_accuracies_S.mean()
    winner = winning_arm(result)
    assert winner is block4
    assert champion_run(block4).number == 0  # of 0.40, 0.41 and 0.42
    assert block4.best is not None
    assert block4.best.val_value == pytest.approx(0.35)  # the lowest of its trials
    choice = choose_champion(result)
    assert choice is not None
    assert choice.arm is block4
    assert choice.reason == "its arm has the lowest mean validation loss (0.4100, n = 3 seeds)"
    analysis = analyse(result)
    (factor,) = analysis.factors
    (difference,) = factor.family
    assert factor.ahead == "block4"
    assert difference.estimate.value == pytest.approx(0.5, abs=0.02)  # block3 minus block4, in nats
    assert difference.loser == "block3"
    assert analysis.verdict[0].startswith("By loss, block4 is clearly better than block3, by 0.")
    assert analysis.verdict[0].endswith(" nats.")
    assert "block4 minus block3 -0." in analysis.evidence[0]
    assert "in nats (lower is better), 3 seeds" in analysis.evidence[0]
    assert analysis.chances_of_best["block4"] > 0.99
    assert analysis.from_best["block4"].low == 0
    assert [ends.may_be_best for ends in analysis.from_best.values()] == [False, True]


def test_tuning_by_loss() -> None:
    block4 = loss_study().arms[1]
    assert best_so_far(block4.trials).tolist() == pytest.approx([0.6, 0.35, 0.35])
    found = best_of(block4.trials)
    assert found is not None
    assert found.expected_T.tolist() == pytest.approx([(0.6 + 0.35 + 0.5) / 3, (0.35 + 0.35 + 0.5) / 3, 0.35])
    assert found.last_gain == pytest.approx(0.05)
    assert np.all(found.low_T <= found.expected_T)
    assert np.all(found.expected_T <= found.high_T)
    luck = tuned_minus_confirmed([block4])
    assert luck is not None
    assert luck.mean == pytest.approx(0.35 - 0.41)


def test_equivalence_of_losses_is_in_nats() -> None:
    def verdict(equivalence: float) -> str:
        result = loss_study()
        block3, block4 = result.arms
        same = [loss_predictions(0.401, 0.9, seed) for seed in range(3)]
        runs = [replace(run, predictions=p, test_loss=0.401) for run, p in zip(block3.confirmations, same, strict=True)]
        confirm = result.spec.confirm.model_copy(update={"equivalence": equivalence})
        spec = result.spec.model_copy(update={"confirm": confirm})
        return analyse(replace(result, spec=spec, arms=[replace(block3, confirmations=runs), block4])).answer

    assert verdict(0.05) == "By loss, block4 and block3 are equally good, within 0.05 nats."
    assert "might be equally good" in verdict(0.0001)


def unbalanced_study(**changes: object) -> StudyResult:
    """Return a study in which block3 finds the frequent class and block4 the rare one; accuracy prefers block3."""
    spec = fake_spec(CUTS, **{"objective": "balanced_accuracy", "confirm": {"seeds": 3}, **changes})
    labels_N = np.array([0] * 360 + [1] * 40)
    right = {"block3": (0.97, 0.40), "block4": (0.85, 0.85)}
    results: list[ArmResult] = []
    for index, arm in enumerate(arms(spec)):
        predictions = []
        for seed in range(spec.confirm.seeds * spec.confirm.repeats):
            random = np.random.default_rng([index, seed])
            chance_N = np.where(labels_N == 0, *right[arm.name])
            is_right_N = random.uniform(size=400) < chance_N
            predictions.append(fake_predictions(np.where(is_right_N, labels_N, 1 - labels_N), labels_N, 2))
        mean = float(np.mean(right[arm.name]))
        vals = [mean + 0.001 * s for s in range(len(predictions))]
        results.append(fake_arm(spec, arm, [mean - 0.1, mean + 0.01, mean], vals, predictions))
    return fake_study(spec, results, ["often", "rare"])


def test_balanced_accuracy_decides_on_unbalanced_classes() -> None:
    result = unbalanced_study()
    block3, block4 = result.arms
    assert block3.test_accuracies_S.mean() > block4.test_accuracies_S.mean()
    analysis = analyse(result)
    assert analysis.winner is block4
    assert analysis.verdict[0].startswith("By balanced accuracy, block4 is clearly better than block3, by 1")
    (difference,) = analysis.factors[0].family
    by_hand = [
        np.mean([(p.predicted_N == p.labels_N)[p.labels_N == k].mean() for k in (0, 1)])
        for arm in (block3, block4)
        for run in arm.confirmations
        if (p := run.predictions) is not None
    ]
    assert difference.estimate.value == pytest.approx(np.mean(by_hand[:3]) - np.mean(by_hand[3:]))


def test_the_report_says_how_few_images_of_a_class_count() -> None:
    def text(result: StudyResult) -> str:
        return " ".join(
            text for block in meaning_blocks(analyse(result)) if isinstance(block, Items) for text in block.texts
        )

    assert "Fewer than 5 images or groups of a class" in text(unbalanced_study())
    assert "of a class" not in text(loss_study())


def test_repeats_and_groups_with_another_objective() -> None:
    result = unbalanced_study(confirm={"seeds": 1, "repeats": 3})
    analysis = analyse_study(result)
    assert analysis.is_repeated
    assert analysis.answer.startswith("By balanced accuracy, block4")
    summary = analysis.arms[1]
    assert summary.test is not None
    assert summary.test.mean == pytest.approx(result.arms[1].test_values_S.mean())
    scores = {arm.arm.name: arm.scores_SN for arm in result.arms}
    alone = seed_moments(scores, objective=BALANCED)
    each = np.arange(400)
    grouped = seed_moments(scores, each, BALANCED)
    assert grouped.images_AA == pytest.approx(alone.images_AA)  # groups of one image are images
    assert grouped.residual_A == pytest.approx(alone.residual_A)
    pairs_N = each // 2
    doubled = {arm: np.repeat(y_SN[:, ::2], 2, axis=1) for arm, y_SN in scores.items()}
    weights = {"block3": 1.0, "block4": -1.0}
    halves = {arm: y_SN[:, ::2].copy() for arm, y_SN in scores.items()}
    of_halves, of_pairs = (
        Estimator(objective=BALANCED).contrast(weights, halves),
        Estimator(groups_N=pairs_N, objective=BALANCED).contrast(weights, doubled),
    )
    assert of_pairs.standard_error == pytest.approx(of_halves.standard_error, rel=0.01)
    assert repeat_moments(scores, pairs_N, BALANCED).units == 200


def test_few_images_that_decide_make_few_degrees_of_freedom() -> None:
    """Four images of a rare class, all in favour of one arm, prove nothing: the sign test has p = 0.125."""
    labels_N = np.array([0] * 180 + [1] * 20)
    ahead_N, behind_N = labels_N.copy(), labels_N.copy()
    behind_N[-4:] = 0
    scores = {
        name: np.tile(fake_predictions(predicted_N, labels_N, 2).scores_N(BALANCED), (5, 1))
        for name, predicted_N in (("ahead", ahead_N), ("behind", behind_N))
    }
    moments = seed_moments(scores, objective=BALANCED)
    weights_CA = moments.weights([{"ahead": 1.0, "behind": -1.0}])
    assert carrying_units(weights_CA, moments)[0] == pytest.approx(
        6.15, abs=0.01
    )  # sixteen others tell of their recall
    (estimate,) = Estimator(objective=BALANCED).simultaneous([{"ahead": 1.0, "behind": -1.0}], scores)
    assert estimate.value == pytest.approx(0.1)
    assert estimate.p is not None
    assert estimate.p > 0.05


def test_intervals_are_cut_to_what_a_metric_can_be() -> None:
    labels_N = np.array([0] * 30 + [1] * 20)
    predicted_N = labels_N.copy()
    predicted_N[[0, 1, -1, -2]] = [1, 1, 0, 0]
    perfect = {"a": np.tile(fake_predictions(predicted_N, labels_N, 2).scores_N(BALANCED), (3, 1))}
    estimate = Estimator(objective=BALANCED).contrast({"a": 1.0}, perfect)
    assert (estimate.low or 0) > 0
    assert estimate.high == 1.0
    losses = {"a": np.random.default_rng(0).uniform(0, 3, (3, 40))}
    of_losses = Estimator(objective=LOSS).contrast({"a": 1.0}, losses)
    assert (of_losses.high or 0) > of_losses.value > 1
    certain = {"a": np.zeros((3, 40)), "b": np.zeros((3, 40))}
    nothing = Estimator(objective=LOSS).contrast({"a": 1.0, "b": -1.0}, certain)
    assert (nothing.value, nothing.p) == (0.0, 1.0)


def test_bool_values_are_accuracies_alone() -> None:
    right = {"a": np.ones((3, 4), bool)}
    with pytest.raises(InputError, match="expected float64"):
        seed_moments(right, objective=BALANCED)


def test_studies_of_losses_over_data_sets() -> None:
    analyses = [analyse(loss_study(name=name)) for name in ("birds", "cars")]
    check_same_question([analysis.result for analysis in analyses])
    (difference,) = differences_across(analyses)
    assert difference.wins == 0  # block3 has the higher loss in both
    assert [arm.name for arm in arms_across(analyses)] == ["block4", "block3"]
    assert arms_across(analyses)[0].best_in == ["birds", "cars"]
    table, differences = across_tables(analyses)
    assert table.title == "Test loss of each arm, over studies"
    assert differences.columns[1] == "nats"
    third = [*analyses, analyse(loss_study(name="planes"))]
    assert re.match(
        r"block4 is better than block3 over studies like these, by 0\.\d+ nats \(", across_sentences(third)[0]
    )
    accuracy: StudyAnalysis = analyse(fake_result(CUTS, {"block3": 0.9, "block4": 0.8}))
    with pytest.raises(InputError, match="their objectives are loss and accuracy"):
        check_same_question([analyses[0].result, accuracy.result])
