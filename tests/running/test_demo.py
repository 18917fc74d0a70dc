from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from pydantic import BaseModel

from ablation.analysis.wording import shown_question
from ablation.base.errors import InputError
from ablation.networks.weights import read_weights
from ablation.running import demo_network
from ablation.running.demo import demo_cut, demo_overrides, demo_part, demo_weights_path, needs_pretraining
from ablation.running.options import RunOptions
from ablation.running.session import open_stores
from ablation.spec.reading import load_study, read_study_file
from ablation.spec.study import StudySpec
from ablation.storage.store import find_store
from tests.studies import REPOSITORY

STUDY = """
question = "Which cut?"
trials_per_arm = 1
epochs = 1
[backbone]
name = "resnet50"
[factors]
truncate_at = ["unit2_1", "unit3_4", "unit3_5", "block5"]
[confirm]
seeds = 1
control = { truncate_at = "unit3_5" }
"""


def demo_of(file: str, folder: Path) -> StudySpec:
    """Return the demo of a study file."""
    path = folder / "other.toml"
    path.write_text(file)
    overrides = demo_overrides(read_study_file(path), find_store(str(folder / "store")))
    return load_study(path, name="other-demo", overrides=overrides)


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        ("block2", "block2"), ("conv3_2", "conv3_2"), ("unit3_2", "conv3_2"), ("unit4_6", "conv4_3"),
        ("unit1_1", "conv1_1"), ("block7", "block5"), ("unit6_1", "block5"), ("unit0_0", "unit0_0"),
        ("nonsense", "nonsense"), (3, 3),
    ],
)  # fmt: skip
def test_cuts_of_other_networks_become_the_nearest(cut: object, expected: object) -> None:
    assert demo_cut(cut) == expected


def test_a_demo_asks_of_its_own_images(tmp_path: Path) -> None:
    """Its stored question stays as it was, so that demos of older versions are resumed."""
    path = REPOSITORY / "studies" / "vgg_truncation.toml"
    changes = demo_overrides(read_study_file(path), find_store(str(tmp_path / "store")))
    spec = load_study(path, name="demo", overrides=changes)
    note = "(demo: a narrow VGG-16 from the digits 0-4 to the digits 5-9)"
    assert spec.question == f"Which VGG-16 truncation point transfers best to CIFAR-10? {note}"
    assert shown_question(spec.question) == (
        "Which VGG-16 truncation point transfers best to handwritten digits? (demo: a narrow VGG-16, pretrained on the "
        "digits 0 to 4, for images of the digits 5 to 9)"
    )
    assert shown_question("Is it for CIFAR-10?") == "Is it for CIFAR-10?"


def test_a_study_of_another_network_has_a_demo(tmp_path: Path) -> None:
    spec = demo_of(STUDY, tmp_path)
    assert spec.factors.get("truncate_at") == ["conv2_1", "conv3_3", "block5"]
    assert spec.confirm.control == {"truncate_at": "conv3_3"}


PARTS = """
question = "Which part?"
trials_per_arm = 3
epochs = 1
[backbone]
name = "vit_b_16"
[data]
image_size = 32
[fixed]
strategy = "fine_tune_top"
freeze_depth = {depth}
[factors]
learn = ["norms", "block9", "block12", "all"]
"""


@pytest.mark.parametrize(("depth", "expected"), [(2, 2), ('"unit2_1"', "conv2_1"), (0, 0), ('"unit1_2"', "conv1_2")])
def test_what_learns_of_another_network_is_the_nearest(tmp_path: Path, depth: object, expected: object) -> None:
    """Its norms learn in a narrow network that has some."""
    spec = demo_of(PARTS.format(depth=depth), tmp_path)
    assert spec.backbone.name == "vgg16_narrow_bn"
    assert spec.factors.get("learn") == ["norms", "block5", "all"]
    assert spec.fixed.get("freeze_depth") == expected


@pytest.mark.parametrize(
    ("depth", "expected"), [(7, 5), ("unit7_1", 5), ("unit3_9", "conv3_3"), ("conv3_1", "conv3_1")]
)
def test_depths_of_deeper_networks(depth: object, expected: object) -> None:
    assert demo_part("freeze_depth", depth) == expected


LISTED = """
question = "Which?"
trials_per_arm = 3
epochs = 1
[backbone]
name = "resnet50"
[search]
truncate_at = { choices = ["unit2_1", "unit3_4"] }
[[arms]]
lr = 0.1
[[arms]]
lr = 0.2
[[known]]
truncate_at = "unit2_1"
[[known]]
truncate_at = "unit3_4"
[[known]]
truncate_at = "unit3_4"
name = "again"
"""


def test_listed_arms_and_known_configurations_have_the_nearest_cuts(tmp_path: Path) -> None:
    spec = demo_of(LISTED, tmp_path)
    assert [known.entries() for known in spec.known] == [{"truncate_at": "conv2_1"}, {"truncate_at": "conv3_3"}]
    assert [arm.label for arm in spec.arms] == ["lr=0.1", "lr=0.2"]

    cuts = ("unit2_1", "unit3_4", "unit3_5", "block5")
    listed = "".join(f'[[arms]]\ntruncate_at = "{cut}"\n' for cut in cuts)
    spec = demo_of(STUDY.partition("[factors]")[0] + listed, tmp_path)
    assert [arm.label for arm in spec.arms] == ["conv2_1", "conv3_3", "block5"]


TOP = "strategy = 'fine_tune_top'"
VIT = "[backbone]\nname = 'vit_b_16'\n"
THREE = [
    f"[[arms]]\nname = '{name}'\ntruncate_at = 'block{n}'\n" for name, n in (("six", 6), ("all", 12), ("three", 3))
]


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ("[fixed]\nstrategy = 'fine_tune_all'\nhead_warmup_epochs = 10", {"epochs": 11}),
        ("[fixed]\nstrategy = 'fine_tune_all'\nhead_warmup_epochs = 6", {"epochs": 6}),  # as before
        ("[factors]\nunfreeze_every = [0, 6]\n[fixed]\nstrategy = 'fine_tune_all'", {"epochs": 7}),
        ("[search]\nhead_warmup_epochs = { low = 0, high = 9 }\n[fixed]\nstrategy = 'fine_tune_all'", {"epochs": 10}),
        ("[[arms]]\nstrategy = 'fine_tune_all'\nhead_warmup_epochs = 8", {"epochs": 9}),
        (f"{VIT}[fixed]\n{TOP}\n[search]\nfreeze_depth = {{ low = 0, high = 12 }}",
         {"search.freeze_depth": {"low": 0, "high": 5}}),
        (f"{VIT}[fixed]\n{TOP}\n[search]\nfreeze_depth = {{ low = 7, high = 12 }}",
         {"search.freeze_depth": {"choices": [5]}}),
        (f"{VIT}[fixed]\n{TOP}\n[search]\nfreeze_depth = {{ low = 3, high = 12, step = 3 }}",
         {"search.freeze_depth": {"choices": [3]}}),
        (f"{VIT}[factors]\ntruncate_at = ['block6', 'block9']\n[confirm]\nseeds = 5\nlooks = [3, 5]",
         {"confirm.looks": []}),
        (f"{VIT}[factors]\ntruncate_at = ['block2', 'block9']\n[confirm]\nseeds = 5\nlooks = [3, 5]",
         {"confirm.looks": [3]}),
        (f"{VIT}{''.join(THREE)}[confirm]\nseeds = 5\ncompare = 'control'\ncontrol = {{ arm = 'all' }}",
         {"confirm.control": {"arm": "six"}}),
        (f"{VIT}{''.join(THREE)}[confirm]\nseeds = 5\ncontrol = {{ arm = 'all' }}",
         {"confirm.control": {}}),  # dropped, as before
        (f"{VIT}{''.join(THREE)}[confirm]\nseeds = 5\ncontrol = {{ arm = 'three' }}",
         {"confirm.control": {"arm": "three"}}),
        (f"{VIT}[[arms]]\ntruncate_at = 'block6'\n{''.join(THREE[1:])}"
         "[confirm]\nseeds = 5\ncompare = 'control'\ncontrol = { arm = 'all' }",
         {"confirm.control": {"arm": "block5"}}),
        (f"{VIT}{THREE[2]}[[arms]]\ntruncate_at = 'block9'\nlr = 0.1\n"
         "[confirm]\nseeds = 5\ncompare = 'control'\ncontrol = { arm = 'block9,lr=0.1' }",
         {"confirm.control": {"arm": "block5,lr=0.1"}}),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_demo_is_made_to_fit(tables: str, expected: dict[str, object], tmp_path: Path) -> None:
    ((key, value),) = expected.items()
    found: object = demo_of(f"question = '?'\ntrials_per_arm = 4\nepochs = 30\n{tables}\n", tmp_path)
    for name in key.split("."):
        found = getattr(found, name)
    assert (found.model_dump(exclude_defaults=True) if isinstance(found, BaseModel) else found) == value


def test_arms_of_the_command_line_may_lack_the_control(tmp_path: Path) -> None:
    """The demo names no control that they have not."""
    path = tmp_path / "other.toml"
    path.write_text(f"question = '?'\ntrials_per_arm = 4\nepochs = 30\n{VIT}{''.join(THREE)}"
                    "[confirm]\nseeds = 5\ncontrol = { arm = 'all' }\n")  # fmt: skip
    changes = demo_overrides(read_study_file(path), find_store(str(tmp_path / "store")))
    arms = [{"name": "one", "truncate_at": "block1"}, {"name": "two", "truncate_at": "block2"}]
    assert load_study(path, overrides=[*changes, (["arms"], arms)]).confirm.control == {}


@pytest.mark.parametrize(
    ("search", "known", "expected"),
    [
        ("{ low = 0, high = 12, step = 4 }", [8, 0, 4], [4, 0]),  # the demo's search chooses 0 or 4
        ("{ low = 0, high = 12 }", [8, 0, 4], [5, 0]),
        ("{ low = 4, high = 12, step = 4 }", [8, 4], [4]),
        ("{ low = 8, high = 12, step = 4 }", [8, 12], [5]),
        ("{ choices = [0, 4, 8] }", [8, 0, 4], [5, 0]),
    ],
)
def test_known_depths_are_those_that_the_search_of_the_demo_can_choose(
    search: str, known: list[int], expected: list[int], tmp_path: Path
) -> None:
    tables = "".join(f"[[known]]\nfreeze_depth = {depth}\n" for depth in known)
    head = f"question = '?'\ntrials_per_arm = 4\nepochs = 30\n{VIT}[fixed]\n{TOP}\n"
    spec = demo_of(f"{head}[search]\nfreeze_depth = {search}\n{tables}", tmp_path)
    assert [each.get("freeze_depth") for each in spec.known] == expected


@pytest.mark.parametrize("question", ["", "question = 5\n"])
def test_a_study_without_a_question_has_no_demo(question: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"question: (field required|input should be a valid string, got 5)$"):
        demo_of(f"{question}trials_per_arm = 4\nepochs = 3\n", tmp_path)


def test_the_network_is_the_same_whatever_the_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its weights are part of the study's identity, which machines share."""
    monkeypatch.setattr(demo_network, "SETTINGS", replace(demo_network.SETTINGS, epochs=1))
    threads, digests = torch.get_num_threads(), set()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            path = tmp_path / f"{number}.safetensors"
            demo_network.pretrain_demo_network(path, "vgg16_narrow")
            digests.add(read_weights("vgg16_narrow", str(path)).digest)
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    assert len(digests) == 1


def test_a_network_that_another_machine_wrote_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have begun the study with it; both have one folder, and unlike CPUs."""
    path = tmp_path / "demo" / "weights.safetensors"

    def pretrained(_: str) -> bytes:
        path.parent.mkdir()
        path.write_bytes(b"theirs")
        return b"ours"

    monkeypatch.setattr(demo_network, "_pretrained", pretrained)
    demo_network.pretrain_demo_network(path, "vgg16_narrow")
    assert path.read_bytes() == b"theirs"


def test_a_demo_is_refused_where_another_machine_pretrained_other_weights(tmp_path: Path) -> None:
    """Even before its first trial: the other machine is about to make one."""
    path, store = REPOSITORY / "studies" / "vgg_truncation.toml", find_store(str(tmp_path / "store"))
    spec = load_study(path, name="vgg_truncation-demo", overrides=demo_overrides(read_study_file(path), store))
    assert needs_pretraining(spec, store)

    def content(digest: str) -> dict[str, object]:
        return {**spec.content(), "backbone": {**spec.content()["backbone"], "weights_digest": digest}}

    _, studies, *_ = open_stores(spec, store, content("its"), RunOptions(), is_worker=False)
    with pytest.raises(InputError) as caught:
        open_stores(spec, store, content("ours"), RunOptions(), is_worker=False)
    file = demo_weights_path(store, "vgg16_narrow")
    assert str(caught.value) == (
        "study 'vgg_truncation-demo' was begun with another pretrained network (of another kind of CPU, or of an older "
        f"version): copy demo/{file.name} from the store in which it was begun to {file}, or run the demo in another "
        "--store"
    )
    next(iter(studies.tuning.values())).ask()
    open_stores(spec, store, content("its"), RunOptions(), is_worker=False)  # it has been copied


def test_a_demo_that_changes_its_network_is_begun_anew_until_it_has_a_trial(tmp_path: Path) -> None:
    """`learn = "norms"` needs a network with norms; its weights are others wherever it was pretrained."""
    store = find_store(str(tmp_path / "store"))

    def begin(file: str) -> optuna.Study:
        spec = demo_of(file, tmp_path)
        content = spec.content()
        content["backbone"]["weights_digest"] = spec.backbone.name
        _, studies, *_ = open_stores(spec, store, content, RunOptions(), is_worker=False)
        return next(iter(studies.tuning.values()))

    begin(STUDY)
    begin(PARTS.format(depth=2)).ask()
    with pytest.raises(
        InputError, match=r"other settings: question .*; backbone.name \(was 'vgg16_narrow_bn', is 'vgg16_narrow'\)"
    ):
        begin(STUDY)
