"""The objective of a study: what is better, what it is called, and what is stored of it."""

from pathlib import Path

import pytest

from ablation.base.errors import InputError
from ablation.spec.objective import ACCURACY, OBJECTIVES
from ablation.spec.reading import load_study
from ablation.spec.trial import TrialSpec
from tests.fake_results import fake_result, fake_spec


def test_the_best_is_the_highest_or_for_a_loss_the_lowest() -> None:
    assert ACCURACY.best([0.3, 0.9, 0.5]) == 0.9
    assert OBJECTIVES["loss"].best([0.3, 0.9, 0.5]) == 0.3
    for objective in OBJECTIVES.values():  # what has no value is no better than anything
        assert all(objective.goodness(value) >= objective.goodness(None) for value in (0.0, 0.5, objective.largest))
    assert OBJECTIVES["macro_f1"].val_metric == "val_macro_f1"
    assert OBJECTIVES["loss"].best_metric == "best_val_loss"
    assert OBJECTIVES["balanced_accuracy"].test_metric == "test_balanced_accuracy"


def test_what_is_stored_of_a_study_without_the_key_is_as_before() -> None:
    default, explicit = fake_spec({}), fake_spec({}, objective="accuracy")
    assert default.content() == explicit.content()
    assert "objective" not in default.content()
    assert "objective" not in default.model_dump(mode="json")
    assert fake_spec({}, objective="loss").content() == default.content() | {"objective": "loss"}


def test_a_trial_has_the_objective_in_its_parameters_unless_it_is_accuracy() -> None:
    accuracy, loss = (
        fake_result({}, {"all": 0.8}, objective=objective).arms[0].trials[0].spec for objective in ("accuracy", "loss")
    )
    assert "objective" not in accuracy.to_params()
    assert loss.to_params() == accuracy.to_params() | {"objective": "loss"}
    assert TrialSpec.from_params(loss.to_params()).goal == OBJECTIVES["loss"]
    assert TrialSpec.from_params(accuracy.to_params()).goal == ACCURACY  # also of a run of an older version


@pytest.mark.parametrize("overrides", [[], [(["objective"], "balanced_acuracy")]])
def test_an_unknown_objective_is_refused_with_the_nearest_one(
    tmp_path: Path, overrides: list[tuple[list[str], str]]
) -> None:
    text = 'question = "?"\ntrials_per_arm = 1\nepochs = 1\n'
    path = tmp_path / "s.toml"
    path.write_text(text if overrides else f'objective = "balanced_acuracy"\n{text}')
    with pytest.raises(InputError, match=r"objective: unknown value 'balanced_acuracy'; did you mean 'balanced_accur"):
        load_study(path, overrides=overrides)
