import json
from pathlib import Path

import pytest

from ablation.base.errors import InputError
from ablation.spec.arms import Arm, arms, differing_parameters, next_arm, published_for
from ablation.spec.reading import load_study, parse_override
from ablation.spec.study import StudySpec

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
    assert [entry["val_accuracy"] for entry in figures["frozen base"]] == [0.8456]
    assert [entry["val_accuracy"] for entry in figures["tuned top"]] == [0.8923]
    assert [entry["loss"] for entry in figures["tuned top"]] == [0.0025]


# ------------------------------------------------------------------------------------------------------------ [[arms]]

LISTED = """
question = "What helps?"
trials_per_arm = 4
epochs = 2

[backbone]
name = "vgg16"

[fixed]
truncate_at = "block3"

[search]
lr = { low = 1e-3, high = 1e-1, log = true }
head_width = { choices = [8, 16] }
backbone_lr_scale = { low = 0.25, high = 1.0, step = 0.25 }
freeze_depth = { low = 0, high = 3 }

[[arms]]
name = "plain"

[[arms]]
label_smoothing = 0.1

[[arms]]
strategy = "fine_tune_top"

[[arms]]
strategy = "fine_tune_top"
truncate_at = "block5"
"""


def listed(tmp_path: Path, *settings: str, text: str = LISTED) -> StudySpec:
    """Return the study above with other settings."""
    path = tmp_path / "listed.toml"
    path.write_text(text)
    return load_study(path, overrides=[parse_override(setting) for setting in settings])


def test_listed_arms_have_what_they_set_and_else_what_is_fixed(tmp_path: Path) -> None:
    spec = listed(tmp_path)
    names = ["plain", "label_smoothing=0.1", "fine_tune_top", "block5,fine_tune_top"]
    assert [arm.name for arm in arms(spec)] == names
    assert [spec.possible("truncate_at", arm.levels) for arm in arms(spec)] == [["block3"]] * 3 + [["block5"]]
    assert [spec.possible("label_smoothing", arm.levels) for arm in arms(spec)] == [[0.0], [0.1], [0.0], [0.0]]
    assert spec.compared_levels() == {"arm": names}
    assert arms(spec)[3].compared_levels == {"arm": "block5,fine_tune_top"}
    plain, smooth, top, deep = arms(spec)
    assert differing_parameters(spec, plain, smooth) == ["label_smoothing"]
    assert differing_parameters(spec, top, deep) == ["truncate_at"]
    assert differing_parameters(spec, plain, deep) == ["truncate_at", "strategy"]


def test_two_of_very_many_arms_are_compared_without_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred arms have 4,950 pairs: asking all arms for each of them took most of a report's time."""
    spec = listed(tmp_path)
    first, *_, last = arms(spec)
    monkeypatch.setattr(StudySpec, "combinations", lambda spec: pytest.fail("all arms were asked"))
    assert differing_parameters(spec, first, last) == ["truncate_at", "strategy"]


def test_listed_arms_are_part_of_the_identity(tmp_path: Path) -> None:
    content = listed(tmp_path).content()
    assert content["arms"][:2] == [{"name": "plain"}, {"label_smoothing": 0.1}]
    assert content["fixed"]["truncate_at"] == "block3"  # of the arms that do not set it
    assert content["fixed"]["label_smoothing"] == 0.0
    assert not {"arms", "known"} & load_study(STUDIES / "vgg_truncation.toml").content().keys()
    assert "strategy" not in load_study(STUDIES / "published_result.toml").content()["fixed"]  # every arm sets it


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("factors={strategy=['from_scratch']}", "arms: a study has either [factors] or [[arms]]"),
        ("arms=[{}]", "arms.0: an arm that sets nothing needs a name"),
        ("arms=[{name='confirmation'}]", "arms.0: needs another name than 'confirmation'"),
        ("arms=[{name='a/b'}]", "arms.0.name: string should match pattern"),
        ("arms=[{name='a'},{name='a',strategy='from_scratch'}]", "arms.1: needs another name than 'a'"),
        ("arms=[{name='from_scratch'},{strategy='from_scratch'}]", "arms.1: needs another name than 'from_scratch'"),
        ("arms=[{name='a'},{name='b'}]", "arms.1: trains the same as 'a'"),
        ("arms=[{name='a'},{name='b',augmentation='none'}]", "arms.1: trains the same as 'a'"),  # the default
        (
            "arms=[{strategy='fine_tune_top',freeze_depth=2},{strategy='fine_tune_top',freeze_depth='conv2_2'}]",
            "arms.1: trains the same as 'fine_tune_top,freeze_depth=2'",
        ),
        (
            "arms=[{strategy='fine_tune_top',freeze_depth=2,learn='block3'},{strategy='fine_tune_top',freeze_depth=2}]",
            "arms.1: trains the same as '",
        ),
        (
            "arms=[{strategy='fine_tune_top',freeze_depth=0},{strategy='fine_tune_all'}]",
            "arms.1: trains the same as 'fine_tune_top,freeze_depth=0'",
        ),
        (
            "arms=[{strategy='fine_tune_top',freeze_depth=3},{strategy='feature_extraction'}]",
            "arms.1: trains the same as 'fine_tune_top,freeze_depth=3'",
        ),
        ("arms=[{lr=0.1}]", "arms.0.lr: also in [search]; a parameter can be in one of them only"),
        ("arms=[{truncate_at='block9'}]", "arms.0.truncate_at: unknown block or unit 'block9'; did you mean"),
        ("arms=[{strategy='freeze'}]", "arms.0.strategy: unknown value 'freeze'"),
        ("arms=[{strateg='freeze'}]", "arms.0.strateg: unknown key; did you mean 'strategy'?"),
        ("arms=[{epochs=1}]", "arms.0.epochs: unknown key"),
        ("arms=[{label_smoothing=1.5}]", "arms.0.label_smoothing: input should be less than 1, got 1.5"),
        ("arms=[{head_warmup_epochs=1}]", "arms.0.head_warmup_epochs: has no effect in the arm with"),
        ("confirm.control={strategy='fine_tune_top'}", "confirm.control: strategy = 'fine_tune_top' is not a level"),
        ("confirm.control={arm='other'}", "confirm.control: arm = 'other' is not a level of a factor"),
        ("published=[{arm={lr=0.1}}]", "published.arm: no arm sets 'lr'"),
    ],
)  # fmt: skip
def test_arms_that_are_wrong_are_named(tmp_path: Path, setting: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        listed(tmp_path, "search={lr={low=0.001,high=0.1}}", "arms=[{name='plain'}]", setting)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_arms_that_train_otherwise_are_accepted(tmp_path: Path) -> None:
    """The pool behind a block is cut off at its last unit; biases alone learn; pretrained layers start elsewhere."""
    sets = "{truncate_at='block2'},{truncate_at='conv2_2'},{learn='biases'},{strategy='from_scratch'},{name='plain'}"
    top = "{strategy='fine_tune_top',freeze_depth=1},{strategy='fine_tune_top',freeze_depth='conv2_1'}"
    rates = "search={lr={low=0.001,high=0.1}}"
    listed(tmp_path, rates, "fixed.strategy=fine_tune_all", f"arms=[{sets}]")
    listed(tmp_path, rates, f"arms=[{top}]")


def test_stored_arms_that_train_the_same_can_be_read(tmp_path: Path) -> None:
    """As a study that was stored before they were refused."""
    rates = "search={lr={low=0.001,high=0.1}}"
    stored = listed(tmp_path, "arms=[{strategy='from_scratch'},{name='b'}]", rates)
    content = stored.model_dump(mode="json") | {"arms": [{"name": "a"}, {"name": "b"}], "epochs": 3}
    content["fixed"]["patience"] = 5
    assert [arm.name for arm in arms(StudySpec.model_validate_json(json.dumps(content)))] == ["a", "b"]


def test_a_fixed_value_that_every_arm_replaces_is_refused(tmp_path: Path) -> None:
    text = LISTED.replace('name = "plain"', 'truncate_at = "block1"').replace(
        "label_", 'truncate_at = "block2"\nlabel_'
    )
    text = text.replace('strategy = "fine_tune_top"\n\n', 'strategy = "fine_tune_top"\ntruncate_at = "block4"\n\n')
    with pytest.raises(InputError, match=r"fixed.truncate_at: has no effect, because every arm sets it"):
        listed(tmp_path, text=text)


def test_an_arm_may_be_the_control(tmp_path: Path) -> None:
    assert listed(tmp_path, "confirm.control={arm='plain'}").confirm.control == {"arm": "plain"}


# ----------------------------------------------------------------------------------------------------------- [[known]]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("known=[{}]", "known.0: sets no parameter"),
        ("known=[{lr=0.01},{lr=0.01}]", "known.1: 'lr=0.01' is listed twice"),
        ("known=[{lr=0.01,name='a'},{lr=0.02,name='a'}]", "known.1: 'a' is listed twice"),
        ("known=[{lr=0.2}]", "known.0: lr = 0.2 is outside of its range"),
        ("known=[{head_width=32}]", "known.0: head_width = 32 is outside of its range"),
        ("known=[{backbone_lr_scale=0.3}]", "known.0: backbone_lr_scale = 0.3 is outside of its range"),  # no step
        ("known=[{batch_size=32}]", "known.0: 'batch_size' is not searched"),
        ("known=[{truncate_at='block3'}]", "known.0: 'truncate_at' is not searched"),
        ("known=[{lr='high'}]", "known.0.lr: input should be a valid number, got 'high'"),
        ("known=[{lrr=0.01}]", "known.0.lrr: unknown key; did you mean 'lr'?"),
        ("known=[{lr=0.01},{lr=0.02},{lr=0.03},{lr=0.04},{lr=0.05}]",
         "known: 5 configurations do not fit into 4 trials_per_arm"),
        ("known=[{freeze_depth=4}]", "known.0: freeze_depth = 4 is outside of its range"),
    ],
)  # fmt: skip
def test_known_configurations_that_are_wrong_are_named(tmp_path: Path, setting: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        listed(tmp_path, setting)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_known_freeze_depth_fits_every_arm_in_which_it_has_an_effect(tmp_path: Path) -> None:
    deeper = ("search.freeze_depth={low=0,high=5}", "known=[{freeze_depth=4}]")
    with pytest.raises(
        InputError, match=r"known.0.freeze_depth: 4 blocks cannot be frozen where 3 are kept \(strategy"
    ):
        listed(tmp_path, *deeper)
    only_deep = "arms=[{name='plain'},{strategy='fine_tune_top',truncate_at='block5'}]"
    assert listed(tmp_path, *deeper, only_deep).known  # without effect on the plain arm


def test_a_known_configuration_names_its_trial_and_is_part_of_the_identity(tmp_path: Path) -> None:
    spec = listed(tmp_path, "known=[{name='published',lr=0.01,head_width=16},{lr=0.02}]")
    assert [spec.known_name(number) for number in range(3)] == ["published", "lr=0.02", None]
    assert spec.content()["known"] == [{"name": "published", "head_width": 16, "lr": 0.01}, {"lr": 0.02}]


def test_known_configurations_that_no_longer_fit_an_overridden_search_are_dropped(tmp_path: Path) -> None:
    text = LISTED + '[[known]]\nlr = 0.01\nbackbone_lr_scale = 0.5\n\n[[known]]\nname = "wide"\nhead_width = 16\n'
    path = tmp_path / "known.toml"
    path.write_text(text)
    notices: list[str] = []

    def load(*settings: str) -> StudySpec:
        return load_study(path, overrides=[parse_override(setting) for setting in settings], report=notices.append)

    assert [known.label for known in load("search.head_width={choices=[8]}").known] == ["lr=0.01,backbone_lr_scale=0.5"]
    assert notices == ["the known configuration wide is dropped: head_width = 16 is outside of its range"]
    notices.clear()
    # What has no effect any more is left out of a configuration, which keeps the rest.
    without = load("arms=[{name='plain'}]")
    assert [known.label for known in without.known] == ["lr=0.01", "wide"]
    assert "known.0.backbone_lr_scale is dropped: it has no effect in any arm" in notices
