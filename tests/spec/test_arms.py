from pathlib import Path

from ablation.spec.arms import Arm, arms, next_arm, published_for
from ablation.spec.reading import load_study

STUDIES = Path(__file__).parents[2] / "studies"


def test_arms_are_named_by_their_levels() -> None:
    names = [arm.name for arm in arms(load_study(STUDIES / "vgg_truncation.toml"))]
    assert len(names) == 10
    assert names[:3] == ["block1,feature_extraction", "block1,fine_tune_all", "block2,feature_extraction"]
    assert [arm.name for arm in arms(load_study(STUDIES / "joint_search.toml"))] == ["all"]
    assert arms(load_study(STUDIES / "freeze_depth.toml"))[0].name == "freeze_depth=0"


def test_arms_take_turns_until_each_has_its_budget() -> None:
    three = [Arm(name, {}) for name in "abc"]
    used = {"a": 0, "b": 2, "c": 0}
    order = []
    while (arm := next_arm(three, used, 3)) is not None:
        order.append(arm.name)
        used[arm.name] += 1
    assert "".join(order) == "acacabc"
    assert used == {"a": 3, "b": 3, "c": 3}


def test_published_figures_belong_to_their_arm() -> None:
    spec = load_study(STUDIES / "published_result.toml")
    figures = {arm.name: published_for(spec, arm) for arm in arms(spec)}
    assert [entry["val_accuracy"] for entry in figures["block5"]] == [0.8456]
    assert [entry["val_accuracy"] for entry in figures["block3"]] == [0.8923]
    assert [entry["loss"] for entry in figures["block3"]] == [0.0025]
