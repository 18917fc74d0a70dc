"""Study files that overrides change: what loses its effect is dropped, with a line."""

from pathlib import Path

import pytest

from ablation.base.errors import InputError
from ablation.spec.reading import WithoutEffect, load_study, parse_override
from ablation.spec.study import StudySpec
from tests.studies import Command

STUDIES = Path(__file__).parents[2] / "studies"
FEATURES_ALONE = 'factors.strategy=["feature_extraction"]'


def load(path: Path, *settings: str) -> tuple[StudySpec, list[str]]:
    """Return the study and the lines that the user gets."""
    lines: list[str] = []
    overrides = [parse_override(setting) for setting in settings]
    return load_study(path, overrides=overrides, report=lines.append), lines


def write_study(folder: Path, tables: str) -> Path:
    path = folder / "narrowed.toml"
    path.write_text('question = "Which?"\ntrials_per_arm = 1\nepochs = 4\n' + tables)
    return path


def test_a_search_without_effect_is_dropped() -> None:
    spec, lines = load(STUDIES / "vgg_truncation.toml", FEATURES_ALONE)
    assert lines == ["search.backbone_lr_scale is dropped: it has no effect under feature_extraction"]
    assert set(spec.search.entries()) == {"lr", "head_width"}
    assert spec.content()["fixed"]["backbone_lr_scale"] == 0.1  # as in a file that does not name it
    assert load(STUDIES / "vgg_truncation.toml")[1] == []


def test_the_command_says_what_it_drops(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("vgg_truncation", "--store", "s", "--check", "--set", FEATURES_ALONE) == 0
    shown = capsys.readouterr().out
    assert "search.backbone_lr_scale is dropped: it has no effect under feature_extraction\n" in shown
    assert "5 arms" in shown


@pytest.mark.parametrize("table", ["search", "fixed"])
def test_everything_that_belongs_to_a_strategy_is_dropped(tmp_path: Path, table: str) -> None:
    """The freeze depth, the rate and the warm-up of a strategy that is narrowed away; the latter with fewer epochs."""
    depth, scale, warmup = (
        ("2", "0.5", "3") if table == "fixed" else ("{low=0,high=2}", "{low=0.1,high=1}", "{low=0,high=3}")
    )
    path = write_study(
        tmp_path,
        '[factors]\nstrategy = ["feature_extraction", "fine_tune_top"]\n'
        f"[{table}]\nfreeze_depth = {depth}\nbackbone_lr_scale = {scale}\nhead_warmup_epochs = {warmup}\n",
    )
    spec, lines = load(path, FEATURES_ALONE, "epochs=2")
    names = ("freeze_depth", "backbone_lr_scale", "head_warmup_epochs")
    assert lines == [f"{table}.{name} is dropped: it has no effect under feature_extraction" for name in names]
    assert not getattr(spec, table).entries()
    spec, lines = load(path, 'factors.strategy=["fine_tune_all"]')
    assert lines == [f"{table}.freeze_depth is dropped: it has no effect under fine_tune_all"]


def test_levels_and_factors_that_are_gone_are_dropped_elsewhere(tmp_path: Path) -> None:
    path = write_study(
        tmp_path,
        '[factors]\nstrategy = ["feature_extraction", "fine_tune_all"]\ntruncate_at = ["block1", "block2"]\n'
        '[confirm.control]\nstrategy = "fine_tune_all"\ntruncate_at = "block1"\n'
        '[[published]]\narm = { strategy = "fine_tune_all", truncate_at = "block1" }\naccuracy = 0.9\n'
        '[[published]]\narm = { truncate_at = "block1" }\naccuracy = 0.8\n',
    )
    spec, lines = load(path, FEATURES_ALONE)
    assert lines == [
        "confirm.control: strategy = 'fine_tune_all' is dropped: it is not a level of a factor",
        "published.arm: is shown nowhere: no arm has strategy = fine_tune_all, truncate_at = block1",
    ]
    assert spec.confirm.control == {"truncate_at": "block1"}
    assert len(spec.published) == 2  # as in the content of studies that were begun before there was that line
    spec, lines = load(path, 'factors={truncate_at=["block1","block2"]}')
    assert lines == [
        "the published result for strategy = fine_tune_all, truncate_at = block1 is dropped: "
        "'strategy' is not one of the factors",
        "confirm.control: strategy = 'fine_tune_all' is dropped: it is not a level of a factor",
    ]
    assert [published.accuracy for published in spec.published] == [0.8]


def test_a_published_result_that_no_arm_shows_is_refused(tmp_path: Path) -> None:
    """But not in what is stored of a study, which earlier versions accepted."""
    factors = '[factors]\ntruncate_at = ["block1", "block2"]\n'
    path = write_study(tmp_path, f'{factors}[[published]]\narm = {{ truncate_at = "block3" }}\naccuracy = 0.9\n')
    with pytest.raises(
        WithoutEffect, match=r"published.arm: is shown nowhere: no arm has truncate_at = block3"
    ) as caught:
        load(path)
    stored = caught.value.spec.model_dump(mode="json")
    assert StudySpec.model_validate(stored).published[0].arm == {"truncate_at": "block3"}
    shown, lines = load(path, 'factors.truncate_at=["block1","block3"]')
    assert (len(shown.published), lines) == (1, [])


def test_a_known_configuration_of_what_has_no_effect_stays_without_a_line(tmp_path: Path) -> None:
    path = write_study(tmp_path, "[search]\npatience = { choices = [2, 3] }\n[[known]]\npatience = 2\n")
    spec, lines = load(path, "epochs=3")
    assert lines == ["search.patience: 2 has no effect within epochs = 3"]
    assert spec.known_name(0) == "patience=2"


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = write_study(tmp_path, "")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(path)[0].epochs == 4


@pytest.mark.parametrize(
    "setting", ["search.backbone_lr_scale.low=0.01", "search.backbone_lr_scale={low=0.1,high=1.0}",
                "search={lr={low=0.1,high=1.0},backbone_lr_scale={low=0.1,high=1.0}}"]
)  # fmt: skip
def test_what_an_override_names_is_refused(setting: str) -> None:
    for settings in ((FEATURES_ALONE, setting), (setting, FEATURES_ALONE)):
        with pytest.raises(InputError, match=r"search.backbone_lr_scale: has no effect under feature_extraction"):
            load(STUDIES / "vgg_truncation.toml", *settings)


def test_in_a_file_it_is_refused_whatever_is_overridden(tmp_path: Path) -> None:
    path = write_study(tmp_path, '[fixed]\nstrategy = "feature_extraction"\nhead_warmup_epochs = 1\n')
    for settings in ((), ("epochs=5",), ("trials_per_arm=2", "data.limit=100")):
        with pytest.raises(InputError, match="fixed.head_warmup_epochs: has no effect under feature_extraction"):
            load(path, *settings)


def test_a_file_that_needs_its_overrides_can_be_narrowed(tmp_path: Path) -> None:
    """Its images' folder, say, differs from machine to machine."""
    path = write_study(
        tmp_path,
        '[data]\nsource = "imagefolder"\n[fixed]\nbackbone_lr_scale = 0.5\n'
        '[factors]\nstrategy = ["feature_extraction", "fine_tune_all"]\n',
    )
    _, lines = load(path, "data.root=images", FEATURES_ALONE)
    assert lines == ["fixed.backbone_lr_scale is dropped: it has no effect under feature_extraction"]


def test_a_narrowed_study_of_a_custom_backbone_runs_its_file_once(tmp_path: Path) -> None:
    calls = []

    def load_backbone(module: str | None, name: str, image_size: int) -> str:
        calls.append(module)
        return "vgg16"

    path = write_study(
        tmp_path,
        '[backbone]\nmodule = "gone.py"\nfunction = "mine"\nweights = "w.pth"\n[fixed]\nbackbone_lr_scale = 0.5\n'
        '[factors]\nstrategy = ["feature_extraction", "fine_tune_all"]\n',
    )
    overrides = [parse_override("backbone.module=here.py"), parse_override(FEATURES_ALONE)]
    lines: list[str] = []
    load_study(path, overrides=overrides, load_backbone=load_backbone, report=lines.append)
    assert (len(lines), calls) == (1, ["here.py"])
