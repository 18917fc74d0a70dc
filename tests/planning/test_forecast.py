from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ablation.analysis.boundaries import planned_levels
from ablation.analysis.power import assumed_moments, smallest_differences
from ablation.data import reading
from ablation.data.reading import DataSize
from ablation.planning import workload
from ablation.planning.forecast import (
    ASSUMED,
    LIBRARY_BYTES,
    Budget,
    Span,
    StudyPlan,
    arm_spans,
    budgets,
    differences_found,
    feature_seconds,
    fewest_images,
    level_of_plan,
    memory,
    planned_budget,
    study_span,
)
from ablation.planning.probe import Failure, Kind, Probe, Speed
from ablation.planning.tables import arms_table, budget_table
from ablation.planning.workload import feature_bytes, frozen_parts, plan, shared_conditions
from ablation.spec.study import StudySpec

SPEC: dict[str, Any] = {
    "name": "s",
    "question": "?",
    "trials_per_arm": 1,
    "epochs": 1,
    "backbone": {"name": "vgg16", "weights": "imagenet"},
    "data": {"source": "cifar10"},
}
EXTRACTION = {"strategy": ["feature_extraction"], "truncate_at": ["block1", "conv2_1"]}
TOP = {"strategy": ["fine_tune_top"], "truncate_at": ["block3"]}
DEPTHS = {"search": {"freeze_depth": {"low": 1, "high": 3}}}

# Of 1,000 training images 100 are for validation, and there are 200 test images; in 4 bytes unless the precision is 16.
BLOCK1, BLOCK1_POOLED, CONV2_1_POOLED = 64 * 16 * 16, 64 * 4, 128 * 4
BLOCK2, BLOCK3_POOLED = 128 * 8 * 8, 256 * 4


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"factors": EXTRACTION}, 1000 * (BLOCK1_POOLED + CONV2_1_POOLED) * 4),
        ({"factors": EXTRACTION, "precision": "bfloat16"}, 1000 * (BLOCK1_POOLED + CONV2_1_POOLED) * 2),
        ({"factors": EXTRACTION, "fixed": {"augmentation": "flip"}}, 1900 * (BLOCK1_POOLED + CONV2_1_POOLED) * 4),
        ({"factors": EXTRACTION, "fixed": {"augmentation": "crop_flip"}}, 100 * (BLOCK1_POOLED + CONV2_1_POOLED) * 4),
        ({"factors": EXTRACTION, "confirm": {"seeds": 2}}, 1200 * (BLOCK1_POOLED + CONV2_1_POOLED) * 4),
        ({"factors": EXTRACTION, "trials_per_arm": 2, "confirm": {"seeds": 2, "repeats": 2}},
         2200 * (BLOCK1_POOLED + CONV2_1_POOLED) * 4),
        (
            {"factors": EXTRACTION, "confirm": {"seeds": 2}, "precision": "bfloat16"},
            (1000 * 2 + 200 * 4) * (BLOCK1_POOLED + CONV2_1_POOLED),
        ),
        (
            {"factors": EXTRACTION, "trials_per_arm": 3, "backbone": {"name": "vgg16", "missing_layers": "random"}},
            3 * 1000 * (BLOCK1_POOLED + CONV2_1_POOLED) * 4,
        ),
        ({"factors": EXTRACTION, "fixed": {"head_pool": "flatten"}}, 1000 * (BLOCK1 + 128 * 16 * 16) * 4),
        ({"factors": TOP} | DEPTHS, 1000 * (BLOCK1 + BLOCK2 + BLOCK3_POOLED) * 4),
        ({"factors": {"strategy": ["fine_tune_all", "from_scratch"]}}, 0),
        # A unit as the depth: behind a block's last convolution comes its pool, in the middle of a block none.
        ({"factors": TOP | {"freeze_depth": ["conv1_2", "conv2_1"]}}, 1000 * (BLOCK1 + 128 * 16 * 16) * 4),
        # One block learns: those before it are frozen, and in a network from scratch different in each trial.
        ({"factors": {"learn": ["block2", "norms"]}, "fixed": {"strategy": "fine_tune_all"},
          "backbone": {"name": "vgg16_bn"}}, 1000 * BLOCK1 * 4),
        ({"factors": {"learn": ["block2"]}, "fixed": {"strategy": "from_scratch"}, "trials_per_arm": 4},
         4 * 1000 * BLOCK1 * 4),
    ],
)  # fmt: skip
def test_bytes_of_features_by_hand(more: dict[str, Any], expected: int) -> None:
    spec = StudySpec(**(SPEC | more))
    size = DataSize(10, 1000, 200)
    assert feature_bytes(spec, size, shared_conditions(spec, size, CPU).precision) == expected


def test_only_depths_on_the_steps_of_a_searched_range_are_counted() -> None:
    """Depths 1 and 3: block2's features can never be cached."""
    spec = StudySpec(**(SPEC | {"factors": TOP, "search": {"freeze_depth": {"low": 1, "high": 3, "step": 2}}}))
    assert feature_bytes(spec, DataSize(10, 1000, 200), "float32") == 1000 * (BLOCK1 + BLOCK3_POOLED) * 4
    assert frozen_parts(spec) == [("block3", 7), ("block3", 2)]  # units
    # Depths 0 and 2 of 0 to 3: the range's upper end is not among them.
    spec = StudySpec(**(SPEC | {"factors": TOP, "search": {"freeze_depth": {"low": 0, "high": 3, "step": 2}}}))
    assert feature_bytes(spec, DataSize(10, 1000, 200), "float32") == 1000 * BLOCK2 * 4


def test_what_learns_decides_the_work() -> None:
    """Of VGG-16's first two blocks with batch norm, with a linear head on 128 x 2 x 2 features."""
    of = {"backbone": {"name": "vgg16_bn"}, "factors": {"learn": ["norms", "block1", "block2", "all"]}}
    fixed = {"strategy": "fine_tune_all", "truncate_at": "block2", "head_width": 0}
    plans = plan(StudySpec(**(SPEC | of | {"fixed": fixed})), 10)
    head, norms = 512 * 10 + 10, 2 * (64 + 64 + 128 + 128)
    block1 = 3 * 64 * 9 + 64 * 64 * 9 + 2 * 64 + 2 * 128
    block2 = 64 * 128 * 9 + 128 * 128 * 9 + 2 * 128 + 2 * 256
    assert [arm.trained_parameters - head for arm in plans] == [norms, block1, block2, block1 + block2]
    assert {arm.all_parameters - head for arm in plans} == {block1 + block2}
    kinds = [arm.costliest for arm in plans]
    assert [kind.frozen_units for kind in kinds] == [0, 0, 2, 0]
    assert [kind.reads_features for kind in kinds] == [False, False, True, False]
    spec = StudySpec(**(SPEC | of | {"fixed": fixed}))
    norms_work, block1_work, block2_work, all_work = (workload._operations(spec, kind) for kind in kinds)
    assert block2_work < norms_work < block1_work < all_work


def test_a_network_is_counted_once_for_all_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    real = workload.run_parts
    monkeypatch.setattr(workload, "run_parts", lambda *of: counted.append(of[1]) or real(*of))
    workload._costs_of_parts.cache_clear()
    heads = {"head_width": [8, 16], "head_pool": [1, 2], "batch_size": [8, 16], "optimizer": ["sgd", "adamw"]}
    search = {name: {"choices": choices} for name, choices in heads.items()}
    spec = StudySpec(**(SPEC | {"factors": {"truncate_at": ["block1", "block2"]}, "search": search}))
    assert len(plan(spec, 10)) == 2
    assert counted == ["block1", "block2"]


def test_features_are_counted_in_the_precision_that_auto_resolves_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA, 'auto' is a precision of 16 bits: 2 bytes for a feature of trainings, 4 for one of tests."""
    monkeypatch.setattr(workload, "select_precision", lambda *_, **__: "bfloat16")
    content = STUDY | {"search": {}, "factors": {"truncate_at": ["block1"], "strategy": ["feature_extraction"]}}
    study = study_of(content)
    assert study.spec.precision == "auto"
    expected = (2000 * 2 + 100 * 4) * BLOCK1_POOLED
    assert expected == 1_126_400
    assert "Cached features take up to 1.1 MB (limit: --feature-cache)." in arms_table(study).notes
    # They fit, where 4 bytes for each feature would not.
    fitting = study_of(content, feature_limit=expected)
    assert fitting.arms[0].costliest.reads_features
    assert "Cached features take up to 1.1 MB (limit: --feature-cache)." in arms_table(fitting).notes
    exceeding = arms_table(study_of(content, feature_limit=expected - 1)).notes
    assert any(note.startswith("Cached features would take up to 1.1 MB, more than --feature") for note in exceeding)


# The smallest network of each; `tests/commands/test_backbones.py` lists the cuts of all.
FAMILIES = [
    "vgg11", "vgg11_bn", "vgg16_narrow", "alexnet", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2",
    "densenet121", "efficientnet_b0", "efficientnet_v2_s", "mobilenet_v2", "mobilenet_v3_small", "convnext_tiny",
    "regnet_x_400mf", "regnet_y_400mf", "vit_b_16",
]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_backbones_of_every_family_can_be_planned(name: str) -> None:
    weights = "w.pth" if name.startswith("vgg16_narrow") else "imagenet"
    more = {"backbone": {"name": name, "weights": weights}, "data": {"image_size": 224}}
    (arm,) = plan(StudySpec(**(SPEC | more | {"fixed": {"strategy": "fine_tune_all"}})), 10)
    assert arm.trained_parameters == arm.all_parameters > 10_000


def test_convnext_features_stay_in_float32() -> None:
    more = {"backbone": {"name": "convnext_tiny"}, "data": {"image_size": 32}}
    spec = StudySpec(**(SPEC | more | {"precision": "bfloat16", "fixed": {"truncate_at": "block1"}}))
    assert feature_bytes(spec, DataSize(10, 1000, 200), "bfloat16") == 1000 * 96 * 4 * 4


# ------------------------------------------------------------------------------------------------------------- time

STUDY: dict[str, Any] = {
    "name": "s",
    "question": "?",
    "trials_per_arm": 8,
    "epochs": 10,
    "backbone": {"name": "vgg16"},
    "data": {"source": "cifar10"},
    "factors": {"truncate_at": ["block1", "block2"], "strategy": ["feature_extraction", "fine_tune_all"]},
    "search": {"lr": {"low": 1e-3, "high": 1e-1}, "head_width": {"choices": [128, 1024, 256]}},
    "confirm": {"seeds": 5},
}
SIZE = DataSize(10, 2000, 100)  # 1,800 training and 200 validation images
CPU = torch.device("cpu")


def study_of(content: dict[str, Any], *, feature_limit: int = 10**10, **changes: Any) -> StudyPlan:
    """Return a plan in which reading features takes a thousandth of a second for each image, all else a hundredth."""
    spec = StudySpec(**content)
    common = shared_conditions(spec, SIZE, CPU)
    arms = plan(spec, 10, stores_features=feature_bytes(spec, SIZE, common.precision) <= feature_limit)
    speeds: dict[Kind, Speed | Failure] = {}
    for arm in arms:
        for kind in (arm.cheapest, arm.costliest):
            train = (0.001 if kind.reads_features else 0.01) * kind.head_width / 1024
            speeds[kind] = Speed(begin=0.5, train=train, evaluate=0.002, test=0.004)
    frozen: dict[tuple[str, int], tuple[float, float] | Failure] = dict.fromkeys(frozen_parts(spec), (0.01, 0.02))
    measurements = Probe(speeds, frozen, 12.0, 0.0, 1_000_000_000, 8_000_000_000)
    return StudyPlan(spec, SIZE, feature_limit, arms, common, replace(measurements, **changes))


def test_time_by_hand() -> None:
    study = study_of(STUDY)
    extraction, fine_tuning = study.arms[0], study.arms[1]
    # A run's start, 1,000 images for the features' standardisation, ten epochs of training and validation.
    rest = 0.1 + 0.5 + 1000 * 0.002 + 10 * 200 * 0.002
    cheap, costly = rest + 10 * 1800 * 0.001 * 128 / 1024, rest + 10 * 1800 * 0.001
    tuned = rest + 10 * 1800 * 0.01  # fine-tuning differs so little that the costliest stands for all
    test = 100 * 0.004
    spans = arm_spans(study, extraction)
    assert not isinstance(spans, Failure)
    assert (spans[0].least, spans[0].most) == pytest.approx((cheap, costly))
    assert (spans[1].least, spans[1].most) == pytest.approx((cheap + test, costly + test))
    assert fine_tuning.cheapest == fine_tuning.costliest
    # Of the longest network that is frozen whole, once: 2,000 images, and 100 in float32.
    once = 2000 * 0.01 + 100 * 0.02
    assert feature_seconds(study, Budget("", 8, 5)) == pytest.approx(once)
    total = study_span(study, Budget("", 8, 5))
    assert total.least == pytest.approx(10 + once + 2 * (13 * (cheap + tuned) + 2 * 5 * test))
    assert total.most == pytest.approx(10 + once + 2 * (13 * (costly + tuned) + 2 * 5 * test))
    assert study_span(study, Budget("", 4, 3)).most == pytest.approx(
        10 + once + 2 * (7 * (costly + tuned) + 2 * 3 * test)
    )
    table = arms_table(study)
    assert [row[-1] for row in table.rows[:2]] == ["8.8 to 25 s", "3 min"]
    assert any(
        "about 85 min to 1 h 32 min, depending on what its search chooses; 22 s of it for computing cached features"
        in n
        for n in table.notes
    )
    assert any("Measured here in 12 s" in note for note in table.notes)


def test_repeats_by_hand() -> None:
    """Three splits have features of their own, 2,000 images each; the 100 test images have theirs once."""
    content = STUDY | {"trials_per_arm": 8, "confirm": {"seeds": 2, "repeats": 3}}
    study, alone = study_of(content), study_of(STUDY | {"trials_per_arm": 8, "confirm": {"seeds": 6}})
    budget = planned_budget(study.spec)
    assert (budget.trials, budget.seeds, budget.repeats, budget.confirmations) == (8, 2, 3, 6)
    once = feature_seconds(alone, planned_budget(alone.spec))
    assert feature_seconds(study, budget) == pytest.approx(once + 2 * 2000 * 0.01)
    longer = study_span(study, budget).most - study_span(alone, planned_budget(alone.spec)).most
    assert longer == pytest.approx(2 * 2000 * 0.01)
    assert [(b.trials, b.seeds) for b in budgets(budget)] == [(8, 2), (4, 2)]
    assert [(b.trials, b.seeds) for b in budgets(Budget("", 5, 3, 3))] == [(5, 3), (3, 3), (5, 2), (3, 2)]
    assert any("which are 3 tunings with 2 or 3 trials and 2 seeds each" in note for note in arms_table(study).notes)
    table = budget_table(study)
    assert [row[1:3] + row[4:] for row in table.rows] == [["8", "6", "19 %", "-"], ["4", "6", "10 %", "-"]]
    assert any("compared paired by repeat" in note for note in table.notes)


def test_features_that_are_not_stored_are_computed_in_every_epoch() -> None:
    study = study_of(STUDY, feature_limit=1000)
    assert not any(arm.costliest.reads_features for arm in study.arms)
    assert any("the times assume that they are computed in every epoch" in n for n in arms_table(study).notes)
    flipped = study_of(STUDY | {"fixed": {"augmentation": "flip"}})
    assert feature_seconds(flipped, Budget("", 8, 5)) == pytest.approx((2 * 1800 + 200) * 0.01 + 100 * 0.02)
    random = study_of(STUDY | {"backbone": {"missing_layers": "random"}})
    assert feature_seconds(random, Budget("", 8, 5)) == pytest.approx(13 * 22)
    cropped = study_of(STUDY | {"fixed": {"augmentation": "crop_flip"}})
    assert not any(arm.costliest.reads_features for arm in cropped.arms)


def test_what_is_measured_of_a_search_are_its_ends() -> None:
    searched = {
        "truncate_at": {"choices": ["block2", "block1", "block3"]},
        "strategy": {"choices": ["feature_extraction", "fine_tune_top"]},
        "freeze_depth": {"low": 0, "high": 3},
        "batch_size": {"choices": [128, 32]},
        "optimizer": {"choices": ["sgd", "adamw"]},
    }
    (arm,) = study_of(STUDY | {"factors": {}, "search": searched}).arms
    assert arm.cheapest == Kind("block1", 2, True, 256, 2, 128, "none", "sgd")
    assert arm.costliest == Kind("block3", 0, False, 256, 2, 32, "none", "adamw")
    spec = StudySpec(**(STUDY | {"factors": {}, "search": searched}))
    assert frozen_parts(spec) == [("block3", 7), ("block3", 4)]


def test_arms_that_cost_the_same_are_the_same_kind() -> None:
    factors = {"strategy": ["fine_tune_all", "from_scratch"], "lr": [0.1, 0.01]}
    arms = study_of(STUDY | {"factors": factors, "search": {}}).arms
    assert len({kind for arm in arms for kind in (arm.cheapest, arm.costliest)}) == 1


def test_an_arm_that_cannot_run_is_told_and_not_counted() -> None:
    study = study_of(STUDY)
    speeds = study.probe.speeds | {study.arms[3].costliest: Failure("CUDA out of memory.")}
    failing = replace(study, probe=replace(study.probe, speeds=speeds))
    table = arms_table(failing)
    assert [row[-1] for row in table.rows][3] == "cannot run"
    assert "block2,fine_tune_all cannot run here: CUDA out of memory." in table.notes
    tuned = arm_spans(study, study.arms[3])
    assert not isinstance(tuned, Failure)
    difference = study_span(study, Budget("", 8, 5)).most - study_span(failing, Budget("", 8, 5)).most
    assert difference == pytest.approx(8 * tuned[0].most + 5 * tuned[1].most)
    failing_cache = replace(study.probe, frozen={("block2", 2): Failure("CUDA out of memory.")})
    notes = arms_table(replace(study, probe=failing_cache)).notes
    assert "The features of frozen layers cannot be computed here: CUDA out of memory." in notes


def test_what_makes_it_faster_is_said() -> None:
    plain = " ".join(arms_table(study_of(STUDY)).notes)
    assert "faster" not in plain
    assert "It may take less" not in plain
    changed = STUDY | {"search": {"pruner": "median"}, "fixed": {"head_warmup_epochs": 1}, "compile": "default"}
    notes = " ".join(arms_table(study_of(changed, busy_cores=1.5)).notes)
    for part in ("1.5 cores busy", "pruned trials end earlier", "only a part learns", "without torch.compile"):
        assert part in notes


def test_memory_by_hand() -> None:
    # 2,000 training and 100 test images of CIFAR-10, as read and as used.
    images = 2 * 2100 * 3 * 32 * 32
    needed = memory(study_of(STUDY))
    assert (needed.total, needed.images, needed.features) == (1_000_000_000 + LIBRARY_BYTES + images, images, 0)
    unconfirmed = memory(study_of(STUDY | {"confirm": {"seeds": 0}}))
    assert unconfirmed.images == (2100 + 2000) * 3 * 32 * 32
    # Images that all have one size are enlarged on the device, files when they are read.
    assert memory(study_of(STUDY | {"data": {"source": "stl10", "image_size": 224}})).images == 2 * 2100 * 3 * 96 * 96
    assert memory(study_of(STUDY | {"data": {"source": "dtd", "image_size": 64}})).images == 2 * 2100 * 3 * 64 * 64
    assert "about 1.3 GB of memory, 0.01 GB of it images; free now: 8.0 GB" in arms_table(study_of(STUDY)).notes[-1]


def test_images_that_do_not_fit_take_disk_and_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read through a memory map; sets that have none are refused when the study starts."""
    pictures = 2100 * 3 * 64 * 64
    monkeypatch.setattr(reading, "available_memory", lambda: 1_000_000)
    study = study_of(STUDY | {"data": {"source": "dtd", "image_size": 64}})
    needed = memory(study)
    assert (needed.total, needed.images, needed.mapped) == (1_000_000_000 + LIBRARY_BYTES, 0, pictures)
    note = arms_table(study).notes[-1]
    assert "The images do not fit into memory: 0.03 GB of them are decoded onto the disk." in note
    assert memory(study_of(STUDY)).mapped == 0
    monkeypatch.setattr(reading, "available_memory", lambda: 10**12)
    assert memory(study_of(STUDY | {"data": {"source": "dtd", "image_size": 64}})).mapped == 0


@pytest.mark.parametrize(
    ("span", "text"),
    [
        ((4.04, 4.04), "4.0 s"),
        ((4, 40), "4.0 to 40 s"),
        ((40, 600), "40 s to 10 min"),
        ((3 * 3600, 3.5 * 3600), "3 h 00 min to 3 h 30 min"),
        ((9 * 3600 + 120, 40 * 3600), "9 h 02 min to 40 h"),
        ((3600 * 20, 3600 * 2000), "20 to 2,000 h"),
    ],
)
def test_spans_are_readable(span: tuple[float, float], text: str) -> None:
    assert Span(*span).text() == text


# -------------------------------------------------------------------------------------------------- smaller budgets


@pytest.mark.parametrize(
    ("planned", "smaller"),
    [
        ((8, 5), [(4, 5), (8, 3), (4, 3)]),
        ((3, 3), [(1, 3)]),
        ((1, 5), [(1, 3)]),
        ((8, 2), [(4, 2)]),
        ((8, 0), [(4, 0)]),
        ((1, 1), []),
    ],
)
def test_smaller_budgets(planned: tuple[int, int], smaller: list[tuple[int, int]]) -> None:
    assert [(budget.trials, budget.seeds) for budget in budgets(Budget("as planned", *planned))] == [planned, *smaller]


def test_what_a_smaller_budget_gives_up() -> None:
    table = budget_table(study_of(STUDY))
    assert [row[0] for row in table.rows] == ["as planned", "half the trials", "fewer seeds", "both"]
    assert [row[1:3] for row in table.rows] == [["8", "5"], ["4", "5"], ["8", "3"], ["4", "3"]]
    assert [row[4] for row in table.rows] == ["57 %", "34 %", "57 %", "34 %"]  # 1 - 0.9 ** 8, 1 - 0.9 ** 4
    differences = [row[5] for row in table.rows]
    assert differences[0] == differences[1] != differences[2] == differences[3]
    assert any("100 test images" in note for note in table.notes)
    unconfirmed = budget_table(study_of(STUDY | {"confirm": {"seeds": 0}}))
    assert [row[5] for row in unconfirmed.rows] == ["-", "-"]
    assert any("nothing is confirmed" in note for note in unconfirmed.notes)
    alone = budget_table(study_of(STUDY | {"factors": {}}))
    assert any("There is one arm" in note for note in alone.notes)
    unsearched = budget_table(study_of(STUDY | {"search": {}}))
    assert [row[4] for row in unsearched.rows] == ["-"] * 4
    assert any("Nothing is searched" in note for note in unsearched.notes)


def test_a_plan_has_the_level_at_which_its_report_tests() -> None:
    """Of the last planned look, or of the next one; a lower level finds only larger differences."""
    plain = budget_table(study_of(STUDY))
    planned = budget_table(study_of(STUDY | {"confirm": {"seeds": 5, "looks": [3, 5]}}))
    level = planned_levels([3, 5])[-1]
    assert f"at the last planned look, which is tested at {100 * level:.3g} %" in " ".join(planned.notes)
    third = budget_table(study_of(STUDY), looks_before=2)
    assert "at the third look at this study, which is tested at 0.625 %" in " ".join(third.notes)
    assert "tested at" not in " ".join(plain.notes)
    spec = StudySpec(**STUDY)
    found = differences_found(spec, 100, 5, 0.05 / 2**3)
    assert third.rows[0][5] == ", ".join(f"{factor} {100 * size:.1f}" for factor, size in found.items())
    assert all(found[factor] > size for factor, size in differences_found(spec, 100, 5).items())
    assert level_of_plan(StudySpec(**STUDY | {"confirm": {"seeds": 5, "looks": [3, 5]}}), 4) == level


def test_a_plan_counts_groups_of_test_images() -> None:
    """As the report does: of 45 images in three groups it has p = 0.25 at best."""
    images, groups, few = (
        budget_table(replace(study_of(STUDY), size=DataSize(10, 2000, *test)))
        for test in ((20, None), (2000, 20), (2000, 3))
    )
    assert images.rows[0][5] == groups.rows[0][5] != "-"
    assert "Assumed: 20 test images, a standard" in " ".join(images.notes)
    assert "Assumed: 20 groups of 2,000 test images, right or wrong together, a standard" in " ".join(groups.notes)
    assert [row[5] for row in few.rows] == ["-"] * 4
    assert any(
        note.startswith("There are 3 groups of 2,000 test images") and "fewer than 6 cannot show" in note
        for note in few.notes
    )
    assert (fewest_images(0.05), fewest_images(2**-6), fewest_images(0.0156)) == (6, 7, 8)  # p = 2^(1 - n)


def test_a_plan_says_that_its_difference_is_one_of_accuracy() -> None:
    table = budget_table(study_of(STUDY | {"objective": "macro_f1"}))
    assert table.columns[5] == "smallest difference in accuracy (points)"
    assert "How much macro F1 varies is not known beforehand." in " ".join(table.notes)
    assert budget_table(study_of(STUDY)).columns[5] == "smallest difference (points)"


def test_differences_are_those_that_the_report_tests() -> None:
    """Three pairs of cuts, one pair of strategies and three interactions are tested together."""
    factors = {"truncate_at": ["block1", "block2", "block3"], "strategy": ["feature_extraction", "fine_tune_all"]}
    spec = StudySpec(**(STUDY | {"factors": factors}))
    cuts = ("block1", "block2", "block3")
    arms = [f"{cut},{strategy}" for cut in cuts for strategy in factors["strategy"]]
    rows = [(1, 1, -1, -1, 0, 0), (1, 1, 0, 0, -1, -1), (0, 0, 1, 1, -1, -1)]
    crossed = [(1, -1, -1, 1, 0, 0), (1, -1, 0, 0, -1, 1), (0, 0, 1, -1, -1, 1)]
    weights_CA = np.array([*(np.array(rows) / 2), np.array((1, -1, 1, -1, 1, -1)) / 3, *crossed])
    moments = assumed_moments(arms, ASSUMED, seeds=5, images=1000)
    of_cuts, of_strategies = smallest_differences(weights_CA, moments, [0, 3])
    assert differences_found(spec, 1000, 5) == pytest.approx({"truncate_at": of_cuts, "strategy": of_strategies})
    controlled = StudySpec(
        **(STUDY | {"factors": factors, "confirm": {"seeds": 5, "control": {"truncate_at": "block1"}}})
    )
    assert differences_found(controlled, 1000, 5)["truncate_at"] < of_cuts, "fewer comparisons"
    assert differences_found(spec, 1000, 2) == {}
