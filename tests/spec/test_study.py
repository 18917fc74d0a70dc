import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest

import ablation
from ablation.base.errors import InputError
from ablation.base.text import nearest
from ablation.spec.reading import WithoutEffect, load_study, parse_override
from ablation.spec.schema import study_schema
from ablation.spec.trial import TrialSpec

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.toml"))


def load(path: Path, *settings: str):
    return load_study(path, overrides=[parse_override(setting) for setting in settings])


def test_there_are_studies() -> None:
    assert {path.stem for path in STUDIES} >= {
        "vgg_truncation", "freeze_depth", "head_width", "learning_rate", "strategies", "joint_search",
        "published_result", "resnet50_truncation",
    }  # fmt: skip


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_loads_and_names_its_command(path: Path) -> None:
    spec = load_study(path)
    header = path.read_text().partition("\n\n")[0]
    assert spec.question.endswith("?")
    assert header.splitlines()[0] == "#:schema ../ablation/study.schema.json"
    assert "?" in header.splitlines()[1]
    assert f"python -m ablation.study {path.stem}" in path.read_text()


# ---------------------------------------------------------------------------------------------- the schema of the file


def test_the_schema_is_the_models() -> None:
    committed = json.loads((Path(ablation.__file__).parent / "study.schema.json").read_text())
    assert committed == study_schema(), "python -m ablation.spec.schema >ablation/study.schema.json"
    jsonschema.Draft7Validator.check_schema(committed)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_schema_accepts_every_study(path: Path) -> None:
    jsonschema.validate(tomllib.loads(path.read_text()), study_schema())


@pytest.mark.parametrize(
    "setting",
    [
        "searh.lr=1", "search.lr.hihg=1", "factors.truncate_att=[1]", 'epochs="ten"', "trials_per_arm=true",
        "trials_per_arm=0", "search.lr=0.1", "search.lr.low=-1", "search.head_width={low=1,high=2.5}",
        "search.head_width={choices=[]}", 'factors.strategy=["freeze"]', "backbone.name=vgg17", "data.source=cifar",
        "data.val_fraction=1.5", "search.sampler=grid", "name=other", 'published=[{arm={a=1},accuracyy=1.0}]',
        "search.lr={low=1e-4,high=0.1,choices=[0.1]}",
    ],
)  # fmt: skip
def test_the_schema_refuses_what_is_wrong(study_file: Path, setting: str) -> None:
    content = tomllib.loads(study_file.read_text())
    jsonschema.validate(content, study_schema())
    (*tables, key), value = parse_override(setting)
    table = content
    for name in tables:
        table = table.setdefault(name, {})
    table[key] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, study_schema())


# ------------------------------------------------------------------------------------------------------- what is wrong


def test_batch_norm_that_learns_needs_more_than_one_image(study_file: Path) -> None:
    settings = ["backbone={name='resnet18'}", "fixed.batch_size=1", "factors={strategy=['feature_extraction']}"]
    settings += ["search={lr={low=0.1,high=1.0}}"]
    load(study_file, *settings)
    with pytest.raises(
        InputError, match="batch_size: resnet18 has batch norm, which learns nothing from single images"
    ):
        load(study_file, *settings, "factors={strategy=['from_scratch']}")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("searh.lr=1", "searh: unknown key; did you mean 'search'?"),
        ("search.lr.lgo=true", "search.lr.lgo: unknown key; did you mean 'log'?"),
        ("search.lr.hihg=1", "search.lr.hihg: unknown key; did you mean 'high'?"),
        ("factors.truncate_att=[1]", "factors.truncate_att: unknown key; did you mean 'truncate_at'?"),
        ('epochs="ten"', "epochs: input should be a valid integer, got 'ten'"),
        ("trials_per_arm=true", "trials_per_arm: input should be a valid integer"),
        ("trials_per_arm=0", "trials_per_arm: input should be greater than or equal to 1, got 0"),
        ("search.lr={low=1.0,high=0.1}", "search.lr: the range is empty: low = 1.0 must be below high = 0.1"),
        ("search.lr={low=0.1,high=0.1}", "search.lr: the range is empty"),
        ("search.head_width={choices=[]}", "search.head_width.choices: list should have at least 1 item"),
        ("search.head_width={choices=[8,8]}", "search.head_width: 8 is listed twice"),
        ("search.lr=0.1", "search.lr: must be { low = ..., high = ... } or { choices = [...] }, got 0.1"),
        ("search.lr.low=-1", "search.lr.low: input should be greater than 0, got -1"),
        ("search.weight_decay={low=0.0,high=1.0,log=true}", "search.weight_decay: log = true needs low > 0"),
        ("search.head_width={low=1,high=2.5}", "search.head_width.high: input should be a valid integer, got 2.5"),
        ("fixed.lr=0.1", "search.lr: also in [fixed]"),
        ("factors.lr=[0.1]", "search.lr: also in [factors]"),
        ('factors.truncate_at=["block9"]', "factors.truncate_at.0: unknown block or unit 'block9'; did you mean"),
        ('factors.truncate_at=["block1","block1"]', "factors: 'block1' is listed twice"),
        ('factors.strategy=["freeze"]', "factors.strategy.0: unknown value 'freeze'; known: feature_extraction"),
        ("backbone.name=vgg17", "backbone.name: unknown backbone 'vgg17'; did you mean"),
        ("backbone.weights=weights.zip", "backbone.weights: must be 'imagenet', the name of other torchvision weights"),
        ("data.source=cifar", "data.source: unknown value 'cifar'; did you mean 'cifar10'?"),
        ("data.val_fraction=1.5", "data.val_fraction: input should be less than 1, got 1.5"),
        ("data.image_size=1", "data.image_size: 1 is too small for block1, which needs 2"),
        ("fixed.freeze_depth=1", "fixed.freeze_depth: has no effect under feature_extraction, fine_tune_all"),
        ("fixed.head_warmup_epochs=9", "head_warmup_epochs: 9 is more than epochs = 3"),
        ('factors.strategy=["fine_tune_top"]', "freeze_depth: fine_tune_top needs it"),
        ("search.sampler=grid", "search.sampler: unknown value 'grid'; known: auto, qmc, random, tpe"),
        ("name=other", "name: not a key"),
        ("search.head_width={low=1,high=8,choices=[8]}", "a search has either low and high, or choices"),
        ("search.optimizer={low=1,high=2}", "search.optimizer.low: has choices only"),
        ('published=[{arm={strategy="typo"}}]', "published.arm.strategy: Input should be 'feature_extraction'"),
        ('published=[{arm={lr=1.0}}]', "published.arm: 'lr' is not one of the factors"),
        ("confirm.repeats=0", "confirm.repeats: input should be greater than or equal to 1, got 0"),
        ("confirm.repeats=9", "confirm.repeats: 9 tunings need as many trials, but trials_per_arm is 2"),
        ("confirm.compare=control", "confirm.control: compare = 'control' needs the control of truncate_at"),
        ("confirm.compare=best", "confirm.compare: unknown value 'best'; known: all, leader, control"),
        ("confirm.equivalence=0", "confirm.equivalence: input should be greater than 0, got 0"),
        ("confirm.champion=cheapest", "confirm: champion = 'cheapest' needs equivalence = <percentage points"),
        ("confirm.champion=first", "confirm.champion: unknown value 'first'; known: best, cheapest"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(study_file: Path, setting: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load(study_file, setting)
    message = str(caught.value)
    assert message.startswith(f"{study_file}, as set on the command line: ")
    assert expected in message
    assert "\n" not in message


def test_a_freeze_depth_beyond_the_cut_is_refused_in_any_combination(study_file: Path) -> None:
    top = 'factors.strategy=["fine_tune_top"]'
    free = "search={lr={choices=[0.1]}}"
    for settings in (
        ("fixed.freeze_depth=2",),  # block1 keeps one block
        ("factors.freeze_depth=[0,2]",),
        ("search.freeze_depth={choices=[0,2]}",),
        ("search.freeze_depth={low=0,high=3}",),  # conv2_1 keeps two
        ("search.freeze_depth={low=2,high=3}", 'factors.truncate_at=["block3","block1"]'),
    ):
        with pytest.raises(InputError, match=r"freeze_depth: \d blocks cannot be frozen where \d are kept"):
            load(study_file, top, free, *settings)
    # A range may reach to the deepest cut: it is lowered at the others.
    spec = load(study_file, top, free, "search.freeze_depth={low=0,high=2}")
    assert len(spec.combinations()) == 2


def test_a_factor_without_effect_is_refused(study_file: Path) -> None:
    with pytest.raises(InputError, match=r"factors.freeze_depth: has no effect in the arm with .*feature_extraction"):
        load(study_file, 'factors.strategy=["feature_extraction","fine_tune_top"]', "factors.freeze_depth=[0,1]",
             "search={lr={choices=[0.1]}}")  # fmt: skip


def test_effects_are_judged_over_all_cases(study_file: Path) -> None:
    """With all blocks frozen no pretrained layer learns, but the search may choose another depth."""
    for depths in ("[0, 1]", "[1, 0]"):
        load(study_file, "factors={backbone_lr_scale=[0.1, 0.2]}", "search={freeze_depth={choices=" + depths + "}}",
             "fixed={strategy='fine_tune_top', truncate_at='block1'}")  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["fixed.learn=block2"], "fixed.learn: block2 cannot learn, because block1 cuts it off (truncate_at = block1"),
        (["fixed.learn=norms"], "fixed.learn: lets norms learn, but vgg16_narrow has no normalisation layers"),
        (['factors.learn=["all","norms"]'], "factors.learn.1: lets norms learn, but vgg16_narrow has no"),
        (["search.learn.choices=[norms]"], "search.learn.choices: input should be a valid list"),
        (["search.learn={choices=['norms']}"], "search.learn.choices.0: lets norms learn"),
        (["fixed.learn=bias"], "fixed.learn: unknown part or block 'bias'; did you mean 'biases'?"),
        (["search.learn={low=1,high=2}"], "search.learn"),
        (['factors.learn=["all","biases"]'], "factors.learn: has no effect in the arm with truncate_at = block1"),
        (['factors.strategy=["feature_extraction"]', "fixed.learn=biases", "search={lr={choices=[0.1]}}"],
         "fixed.learn: has no effect under feature_extraction"),
        (["fixed.lr_decay=0.5", "fixed.learn=block1"], "fixed.lr_decay: has no effect where fewer than two pretrained"),
        (["fixed.lr_decay=0.5", 'factors.truncate_at=["block1"]'], "fixed.lr_decay: has no effect where fewer"),
        (["fixed.lr_decay=0.5", 'factors.strategy=["from_scratch"]', "search={lr={choices=[0.1]}}"],
         "fixed.lr_decay: has no effect under from_scratch"),
        (["fixed.l2_sp=0.1", 'factors.strategy=["from_scratch"]', "search={lr={choices=[0.1]}}"],
         "fixed.l2_sp: has no effect under from_scratch"),
        (["fixed.l2_sp=-1"], "fixed.l2_sp: input should be greater than or equal to 0"),
        (["search.l2_sp={low=0.1,high=1}", 'factors.strategy=["fine_tune_top"]', "fixed.freeze_depth=conv2_2",
          'factors.truncate_at=["block2"]'], "search.l2_sp: has no effect where all layers are frozen"),
        (["fixed.unfreeze_every=1", 'factors.strategy=["feature_extraction"]', "search={lr={choices=[0.1]}}"],
         "fixed.unfreeze_every: has no effect under feature_extraction"),
        (["fixed.unfreeze_every=3"], "unfreeze_every: 3 must be less than epochs = 3, or no block learns"),
        (["factors.unfreeze_every=[0, 1]"], "factors.unfreeze_every: has no effect in the arm with"),
        (["fixed.ema=1"], "fixed.ema: input should be less than 1"),
        (["factors.strategy=['fine_tune_top']", "factors.freeze_depth=[0,1,'conv1_2']", "search={lr={choices=[0.1]}}"],
         "factors.freeze_depth: 'conv1_2' trains the same as 1"),
        (["fixed.patience=2"], "fixed.patience: 2 has no effect within epochs = 3"),
        (["factors.patience=[0, 2]"], "factors.patience: 2 has no effect within epochs = 3"),
        (["search.patience={low=2,high=4}"], "search.patience: 2 has no effect within epochs = 3"),
        (["fixed.unfreeze_every=1", "fixed.head_warmup_epochs=1", "fixed.learn=block1"],
         "fixed.unfreeze_every: has no effect after a warm-up where fewer than two blocks learn"),
        (["factors.unfreeze_every=[0, 1]", "factors.strategy=['fine_tune_all']", "fixed.head_warmup_epochs=1"],
         "factors.unfreeze_every: has no effect after a warm-up where fewer than two blocks learn"),
        (["fixed.patience=-1"], "fixed.patience: input should be greater than or equal to 0"),
        (["fixed.augmentation=hard"], "fixed.augmentation: unknown value 'hard'"),
        (["fixed.lr_decay=0"], "fixed.lr_decay: input should be greater than 0"),
        (["fixed.lr_decay=1.5"], "fixed.lr_decay: input should be less than or equal to 1"),
        (["fixed.head_dropout=1"], "fixed.head_dropout: input should be less than 1"),
        (["fixed.head_norm=group"], "fixed.head_norm: unknown value 'group'"),
        (["fixed.head_norm=batch", "fixed.batch_size=1"], "batch_size: the head has batch norm, which learns nothing"),
        (["fixed.head_width=-1", "search={lr={choices=[0.1]}}"], "fixed.head_width: input should be greater than or"),
        (["search.head_width={low=0,high=64,log=true}"], "search.head_width: log = true needs low > 0, got 0"),
    ],
)  # fmt: skip
def test_what_can_learn_and_how_is_checked(study_file: Path, settings: list[str], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load(study_file, *settings)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_ends_or_unfreezes_in_some_arm_has_an_effect(study_file: Path) -> None:
    more = ("fixed.unfreeze_every=1", "search={lr={choices=[0.1]}}", "factors.strategy=['fine_tune_all']")
    load(study_file, *more, "fixed.patience=1", "fixed.head_warmup_epochs=1")  # two blocks learn where block2 is kept
    load(study_file, *more, "fixed.learn=block1")  # without a warm-up, the head is alone for an epoch


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["source=cifar10", "resize=squash"], "resize: has no effect on cifar10, whose images all have one size"),
        (["source=digits", "resize=pad"], "resize: has no effect on digits, whose images all have one size"),
        (["source=oxford_pets", "unreadable=skip"], "unreadable: has no effect on oxford_pets, which is read as"),
        (["source=oxford_pets", "resize=squash"], None),
        (["source=flowers102", "unreadable=skip", "resize=pad"], None),
        (["source=imagefolder", "root=x", "unreadable=skip", "resize=pad"], None),
    ],
)
def test_keys_for_files_of_many_sizes_are_refused_for_other_sets(
    study_file: Path, settings: list[str], expected: str | None
) -> None:
    words = [f"data.{setting}" for setting in settings]
    if expected is None:
        load(study_file, *words)
        return
    with pytest.raises(WithoutEffect, match=f"data.{expected}") as caught:
        load(study_file, *words)
    assert caught.value.spec.data.source == settings[0].removeprefix("source=")


def test_what_overrides_leave_without_effect_stays_in_the_content(study_file: Path) -> None:
    """Studies that were begun before such keys were refused have them in their identity."""
    own = "source = 'imagefolder'\nroot = 'photos'\nresize = 'pad'\nunreadable = 'skip'\n"
    text = study_file.read_text().replace("[fixed]\n", "[fixed]\npatience = 1\n")
    study_file.write_text(text.replace('source = "digits"\n', own))
    notices: list[str] = []
    overrides = [(["epochs"], 2), (["data", "source"], "digits")]
    content = load_study(study_file, overrides=overrides, report=notices.append).content()
    assert content["fixed"]["patience"] == 1
    assert (content["data"]["resize"], content["data"]["unreadable"]) == ("pad", "skip")
    assert notices == [
        "data.resize: has no effect on digits, whose images all have one size",
        "data.unreadable: has no effect on digits, which is read as a whole",
        "fixed.patience: 1 has no effect within epochs = 2",
    ]
    assert load_study(study_file, report=pytest.fail).default("patience") == 1
    same = {"strategy": ["fine_tune_top"], "freeze_depth": [1, "conv1_2"]}
    with pytest.raises(WithoutEffect, match="trains the same as") as caught:
        load_study(study_file, overrides=[*overrides, (["factors"], same)])
    assert caught.value.spec.content()["data"]["resize"] == "pad"
    with pytest.raises(WithoutEffect, match=r"fixed.patience: 3 has no effect"):
        load_study(study_file, overrides=[*overrides, (["fixed", "patience"], 3)])


def test_a_searched_patience_that_begins_with_none_has_an_effect(study_file: Path) -> None:
    """The search may choose 1; of {0, 5, 10} the smallest that is not 0 is 5."""
    assert load(study_file, "search.patience={low=0,high=20}", "epochs=3").search.get("patience") is not None
    assert load(study_file, "search.patience={low=0,high=10,step=5}", "epochs=7").search.get("patience") is not None
    with pytest.raises(WithoutEffect, match=r"search.patience: 5 has no effect within epochs = 6"):
        load(study_file, "search.patience={low=0,high=10,step=5}", "epochs=6")


def test_a_range_is_as_wide_as_its_steps_reach(study_file: Path) -> None:
    fine_tuned = 'factors={strategy=["fine_tune_all"]}'
    load(study_file, fine_tuned, "epochs=10", "search.unfreeze_every={low=1,high=10,step=4}")  # 1, 5 and 9
    with pytest.raises(InputError, match="unfreeze_every: 9 must be less than epochs = 9"):
        load(study_file, fine_tuned, "epochs=9", "search.unfreeze_every={low=1,high=10,step=4}")


def test_a_narrow_network_from_scratch_needs_no_weights(study_file: Path) -> None:
    named = re.search(r'weights = "(.*)"\n', study_file.read_text())
    assert named
    assert load(study_file, "epochs=3").backbone.weights == named[1]
    study_file.write_text(study_file.read_text().replace(named[0], ""))
    assert load(study_file, 'factors={strategy=["from_scratch"]}').backbone.weights is None
    with pytest.raises(InputError, match=r"backbone.weights: only from_scratch can do without pretrained weights"):
        load(study_file)


TOP = ('factors={strategy=["fine_tune_top"]}', "fixed.truncate_at=conv3_2", "search={lr={choices=[0.1]}}")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["fixed.freeze_depth=conv3_3"], "fixed.freeze_depth: conv3_3 cannot be frozen where conv3_2 is the last"),
        (["search.freeze_depth={choices=[1,'conv4_1']}"], "search.freeze_depth: conv4_1 cannot be frozen where"),
        (["factors.freeze_depth=['conv1_1','conv3_3']"], "factors.freeze_depth: conv3_3 cannot be frozen where"),
        (["fixed.freeze_depth=block2"], "fixed.freeze_depth: unknown unit 'block2'"),
        (["fixed.freeze_depth=conv9_9"], "fixed.freeze_depth: unknown unit 'conv9_9'"),
        (["fixed.freeze_depth=-1"], "fixed.freeze_depth"),
        (["fixed.freeze_depth=1.5"], "fixed.freeze_depth"),
        (["fixed.freeze_depth=conv2_2", "fixed.learn=block2"], "fixed.learn: block2 cannot learn, because"),
        (["search.freeze_depth={low=0,high=2}", "fixed.learn=block2"], "because freeze_depth = 2 freezes it"),
        (["fixed.freeze_depth=conv3_2", "fixed.learn=biases"], "fixed.learn: has no effect where all layers are"),
    ],
)  # fmt: skip
def test_units_that_can_be_frozen(study_file: Path, settings: list[str], expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load(study_file, *TOP, *settings)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_unit_is_a_depth_in_every_table(study_file: Path) -> None:
    assert load(study_file, *TOP, "fixed.freeze_depth=conv3_1").default("freeze_depth") == "conv3_1"
    levels = load(study_file, *TOP, "factors.freeze_depth=[0,'conv1_1',1,'conv3_2']").combinations()
    assert [level["freeze_depth"] for level in levels] == [0, "conv1_1", 1, "conv3_2"]
    choices = load(study_file, *TOP, "search.freeze_depth={choices=[1,'conv2_1']}").search.get("freeze_depth")
    assert choices.choices == [1, "conv2_1"]
    depths = load(study_file, *TOP, "search.freeze_depth={low=1,high=3}")
    assert [reuse.frozen for reuse in depths.reuses({"strategy": "fine_tune_top"})] == [2, 4, 6]
    for width in ("fixed.head_width=0", "factors.head_width=[0,8]", "search.head_width={choices=[0,8]}"):
        load(study_file, *TOP, "fixed.freeze_depth=1", width)


def test_newer_parameters_at_their_defaults_do_not_change_what_a_study_is(study_file: Path) -> None:
    content = load(study_file).content()
    same = ("fixed.learn=all", "fixed.lr_decay=1.0", "fixed.head_norm=none", "fixed.head_dropout=0.0")
    assert load(study_file, *same).content() == content
    assert not {"learn", "lr_decay", "head_norm", "head_dropout"} & content["fixed"].keys()
    for setting in ("fixed.learn=biases", "fixed.lr_decay=0.5", "fixed.head_norm=batch", "fixed.head_dropout=0.5"):
        more = 'factors.truncate_at=["block2"]'
        name, value = setting.removeprefix("fixed.").split("=")
        assert str(load(study_file, more, setting).content()["fixed"][name]) == value


def test_newer_keys_of_confirm_at_their_defaults_do_not_change_what_a_study_is(study_file: Path) -> None:
    content = load(study_file).content()
    assert load(study_file, "confirm.compare=all", "confirm.repeats=1").content() == content
    assert content["confirm"].keys() == {"seeds", "control"}
    assert load(study_file, "confirm.champion=best").content() == content
    settings = ("confirm.compare=leader", "confirm.equivalence=1.0", "confirm.champion=cheapest")
    changed = load(study_file, *settings).content()["confirm"]
    assert (changed["compare"], changed["equivalence"], changed["champion"]) == ("leader", 1.0, "cheapest")
    with pytest.raises(InputError, match="'cheapest' compares accuracies; it needs objective = 'accuracy'"):
        load(study_file, *settings, "objective=loss")


def test_malformed_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("question = ")
    with pytest.raises(InputError, match=r"bad\.toml: not valid TOML: Invalid value"):
        load_study(tmp_path / "bad.toml")
    with pytest.raises(InputError, match=r"none\.toml: cannot be read"):
        load_study(tmp_path / "none.toml")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(InputError, match="question: field required"):
        load_study(tmp_path / "empty.toml")


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-x", "a'b", "x" * 101])
def test_unsafe_names_are_refused(study_file: Path, name: str) -> None:
    with pytest.raises(InputError, match="the study.s name"):
        load_study(study_file, name=name or "\0")


def test_combinations_are_the_product_of_the_factors(study_file: Path) -> None:
    assert load(study_file).combinations() == [
        {"truncate_at": "block1", "strategy": "feature_extraction"},
        {"truncate_at": "block1", "strategy": "fine_tune_all"},
        {"truncate_at": "conv2_1", "strategy": "feature_extraction"},
        {"truncate_at": "conv2_1", "strategy": "fine_tune_all"},
    ]


def test_defaults_are_content_and_places_are_not(study_file: Path) -> None:
    spec = load(study_file)
    assert spec.content() == load(study_file, "fixed.weight_decay=5e-4", "data.root=/elsewhere").content()
    assert spec.content() == load(study_file, "backbone.weights=/elsewhere/narrow.safetensors").content()
    assert spec.content() != load(study_file, "fixed.weight_decay=1e-4").content()
    assert spec.content()["fixed"]["optimizer"] == "sgd"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data.limit=500", (["data", "limit"], 500)),
        ("fixed.lr=1e-3", (["fixed", "lr"], 1e-3)),
        ("data.source=digits", (["data", "source"], "digits")),
        ("data.root=/a b/c", (["data", "root"], "/a b/c")),
        ('factors.lr=[1,"a"]', (["factors", "lr"], [1, "a"])),
        ("data.root=2024-01-01", (["data", "root"], "2024-01-01")),
    ],
)
def test_overrides_are_toml_or_text(text: str, expected: object) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["epochs", "=3", "a..b=1"])
def test_malformed_overrides(text: str) -> None:
    with pytest.raises(InputError, match="must be KEY=VALUE"):
        parse_override(text)


def test_an_override_that_is_not_utf8() -> None:
    with pytest.raises(InputError, match="is not UTF-8"):
        parse_override("data.root=/caf\udce9")


def test_override_through_a_value(study_file: Path) -> None:
    with pytest.raises(InputError, match="'epochs' is not a table"):
        load(study_file, "epochs.x=1")


def test_nearest() -> None:
    assert nearest("blok3", ["block3", "conv1_1"]) == "; did you mean 'block3'?"
    assert nearest("zzz", ["a", "b"]) == "; known: a, b"
    assert nearest("zzz", ["a", "A"]) == "; known: a, A"
    assert nearest("VGG16", ["resnet18", "vgg16"]) == "; did you mean 'vgg16'?"
    assert nearest("imagenet1k_v1", ["IMAGENET1K_V1", "IMAGENET1K_V2"]) == "; did you mean 'IMAGENET1K_V1'?"


@pytest.mark.parametrize(
    ("weights", "head_pool", "scale"), [(None, 2, None), ("imagenet", "flatten", 0.125), ("12", 1, 1e-17)]
)
def test_trial_spec_round_trips_through_strings(weights: str | None, head_pool: object, scale: float | None) -> None:
    spec = TrialSpec(
        study="s", arm="block3,fine_tune_all", trial=3, seed=2**63 - 1, epochs=2, precision="float32",
        deterministic=False, backbone="vgg16", weights=weights, weights_digest=None, missing_layers="error",
        data_source="digits", data_digest="00ff", data_seed=5, data_limit=None, val_fraction=0.1, image_size=32,
        num_classes=10, strategy="fine_tune_all", truncate_at="block3", freeze_depth=None, head_width=8,
        head_pool=head_pool, lr=0.1 + 0.2, backbone_lr_scale=scale, head_warmup_epochs=0, optimizer="sgd",
        weight_decay=5e-4, max_grad_norm=5.0, label_smoothing=0.0, schedule="cosine", batch_size=32,
        augmentation="flip",
    )  # fmt: skip
    params = spec.to_params()
    assert all(isinstance(value, str) for value in params.values())
    assert TrialSpec.from_params(params) == spec
    with pytest.raises(InputError, match="no parameter 'lr'"):
        TrialSpec.from_params({key: value for key, value in params.items() if key != "lr"})


# ------------------------------------------------------------------------------------------------ repeats of the tuning


def test_trials_take_turns_between_repeats(study_file: Path) -> None:
    spec = load(study_file, "trials_per_arm=7", "confirm.repeats=3", "known=[{lr=0.02}]")
    assert [spec.repeat_of(trial) for trial in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [spec.place_of(trial) for trial in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert [spec.trials_of(repeat) for repeat in range(3)] == [3, 2, 2]
    assert [spec.known_number(trial) for trial in range(4)] == [0, 0, 0, None]  # of each repeat, the first trial
    assert load(study_file, "confirm.repeats=2", "confirm.seeds=3").confirm.runs == 6
    assert load(study_file, "confirm.repeats=2").content()["confirm"]["repeats"] == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("search.sampler=tpe", "search.sampler: 'tpe' learns from the trials of all repeats"),
        ("search.pruner=median", "search.pruner: 'median' compares the trials of all repeats"),
        ("confirm.compare=leader", "confirm.compare: each repeat may have another leader"),
        (
            "known=[{lr=0.02},{lr=0.03}]",
            "known: 2 configurations do not fit into 2 trials_per_arm, which 2 repeats share",
        ),
    ],
)
def test_what_makes_repeats_depend_on_each_other_is_refused(study_file: Path, setting: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(study_file, "confirm.repeats=2", setting)
    assert message in str(caught.value)
