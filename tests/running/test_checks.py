"""What --check says of a study that is too small."""

from ablation.data.reading import DataSize
from ablation.running.checks import objective_hints, too_small
from tests.fake_results import fake_spec
from tests.running.test_study_view import study


def test_a_study_too_small_to_answer_is_said_to_be() -> None:
    spec = study(["block1", "block2"], seeds=2)
    seeds, validation, test, per_class = too_small(spec, DataSize(classes=2, train=10, test=50))
    assert seeds == "[confirm] seeds is 2; arms with fewer than 3 are not compared"
    assert validation.startswith("1 validation image, each worth 100.0 points")
    assert test.startswith("50 test images, each worth 2.0 points of accuracy")
    assert per_class == "there are fewer than 5 training images per class"


def test_a_large_study_and_one_without_a_comparison_are_not() -> None:
    large = DataSize(classes=10, train=50_000, test=10_000)
    assert too_small(study(["block1", "block2"], seeds=3), large) == []
    assert too_small(study(["block1"], seeds=0), large) == []


def test_balanced_class_weights_with_accuracy_get_a_hint() -> None:
    """It trains for all classes alike, and would be chosen by the frequent ones."""
    weighted = {"fixed": {"class_weights": "balanced"}}
    (hint,) = objective_hints(fake_spec({}, **weighted))
    assert "objective = 'balanced_accuracy'" in hint
    assert objective_hints(fake_spec({}, **weighted, objective="macro_f1")) == []
    assert objective_hints(fake_spec({})) == []
    (hint,) = objective_hints(fake_spec({"class_weights": ["none", "balanced"]}))
