"""Search spaces, samplers and parameter importances."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from ablation.base.seeds import repeat_seed
from ablation.search.space import (
    NumberedQMCSampler,
    NumberedRandomSampler,
    distribution,
    known_params,
    make_sampler,
    parameter_importances,
    sampler_kind,
    suggest,
)
from ablation.spec.arms import Arm, arms
from ablation.storage.store import Store, find_store
from tests.search.steps import begin, claim_all, claim_next, end, study


def test_what_does_not_apply_is_not_sampled() -> None:
    spec = study("joint_search")
    (arm,) = arms(spec)
    seen: Counter[str] = Counter()
    for number in range(300):
        optuna_study = optuna.create_study(sampler=NumberedRandomSampler(number))
        trial = optuna_study.ask()
        chosen = suggest(trial, spec, arm)
        sampled = set(trial.params)
        seen[chosen["strategy"]] += 1
        blocks = int(chosen["truncate_at"][-1])
        always = {"strategy", "truncate_at", "head_width", "lr"}
        if chosen["strategy"] == "feature_extraction":
            assert chosen["freeze_depth"] is None
            assert chosen["backbone_lr_scale"] is None
            assert sampled == always
        else:
            name = f"freeze_depth_{chosen['truncate_at']}"
            assert trial.distributions[name] == IntDistribution(0, blocks)
            assert 0 <= chosen["freeze_depth"] <= blocks
            learning = {"backbone_lr_scale"} if chosen["freeze_depth"] < blocks else set()
            seen["all frozen"] += not learning
            assert sampled == always | {name} | learning
            assert (chosen["backbone_lr_scale"] is None) == (not learning)
        assert chosen["head_warmup_epochs"] == 0
    assert min(seen.values()) > 10


@pytest.mark.parametrize(
    ("search", "before", "largest"),
    [
        ("batch_size={low=8,high=100,step=8}", IntDistribution(8, 96, step=8), 96),
        ("unfreeze_every={low=1,high=2}", IntDistribution(1, 2), 2),
        ("head_dropout={low=0.1,high=0.75,step=0.1}", FloatDistribution(0.1, 0.7, step=0.1), 0.7),
        ("lr={low=0.001,high=0.1,log=true}", FloatDistribution(0.001, 0.1, log=True), 0.1),
    ],
)
def test_a_range_ends_at_its_last_step(
    search: str, before: BaseDistribution, largest: float, recwarn: pytest.WarningsRecorder
) -> None:
    """As in databases of earlier versions, which passed `high` to Optuna; it lowered that, with a warning."""
    name = search.partition("=")[0]
    spec = study("freeze_depth", f"search={{{search}}}")
    assert distribution(spec, name) == before
    assert spec.possible(name, {}) == [before.low, largest]  # type: ignore[attr-defined]
    begun = optuna.create_study(sampler=NumberedRandomSampler(0))
    begun.add_trial(optuna.trial.create_trial(params={name: largest}, distributions={name: before}, value=1))
    trial = begun.ask({name: distribution(spec, name)})
    assert spec.search.get(name).contains(trial.params[name])
    assert not [warning for warning in recwarn if "step" in str(warning.message)]


def test_a_depth_that_the_cut_lowers_stays_on_its_steps(recwarn: pytest.WarningsRecorder) -> None:
    spec = study("freeze_depth", "factors={}", "search={freeze_depth={low=0,high=5,step=2}}")
    assert distribution(spec, "freeze_depth") == IntDistribution(0, 4, step=2)
    assert distribution(spec, "freeze_depth", "block3") == IntDistribution(0, 2, step=2)
    assert not [warning for warning in recwarn if "step" in str(warning.message)]


def test_what_a_study_does_not_name_of_the_newer_parameters_is_left_out() -> None:
    """So that trials of older studies are stored as before; where a study names one, it is None without effect."""
    newer = {"learn", "lr_decay", "head_norm", "head_dropout"}

    def chosen(*settings: str, **levels: Any) -> dict[str, Any]:
        trial = optuna.create_study(sampler=NumberedRandomSampler(0)).ask()
        return suggest(trial, study("freeze_depth", *settings), Arm("a", {"freeze_depth": 3, **levels}))

    assert not newer & chosen().keys()
    assert not newer & chosen("fixed.learn=all", "fixed.head_dropout=0").keys()
    named = chosen("fixed.head_dropout=0.5", "fixed.lr_decay=0.5", "search.learn={choices=['biases']}")
    assert {name: named.get(name) for name in newer} == {
        "learn": "biases", "lr_decay": 0.5, "head_norm": None, "head_dropout": 0.5,
    }  # fmt: skip
    frozen = chosen("fixed.lr_decay=0.5", "search.learn={choices=['biases']}", freeze_depth=5)
    assert (frozen["learn"], frozen["lr_decay"]) == (None, None)
    assert chosen("search.lr_decay={low=0.2,high=0.9}", freeze_depth=4)["lr_decay"] is None  # one block learns
    assert 0.2 <= chosen("search.lr_decay={low=0.2,high=0.9}", freeze_depth="conv4_2")["lr_decay"] <= 0.9


def test_levels_and_fixed_values_are_not_sampled() -> None:
    spec = study("freeze_depth", "fixed.head_warmup_epochs=2")
    trial = optuna.create_study(sampler=NumberedRandomSampler(0)).ask()
    chosen = suggest(trial, spec, Arm("freeze_depth=3", {"freeze_depth": 3}))
    assert (chosen["freeze_depth"], chosen["head_width"], chosen["head_warmup_epochs"]) == (3, 512, 2)
    assert set(trial.params) == {"lr", "backbone_lr_scale"}
    frozen = optuna.create_study(sampler=NumberedRandomSampler(0)).ask()
    chosen = suggest(frozen, spec, Arm("freeze_depth=5", {"freeze_depth": 5}))
    assert (chosen["backbone_lr_scale"], chosen["head_warmup_epochs"]) == (None, 0)
    assert set(frozen.params) == {"lr"}


@pytest.mark.parametrize("sampler", ["qmc", "random"])
def test_parameters_depend_on_seed_and_number_alone(sampler: str, store: Store, tmp_path: Path) -> None:
    settings = ('factors.truncate_at=["block1","block5"]', f"search.sampler={sampler}", "trials_per_arm=4")
    spec = study("vgg_truncation", *settings)
    first = {(c.arm.name, c.trial.number): c.trial.params for c in claim_all(spec, store)}
    assert len(first) == 16
    # The same number has the same values in every arm ...
    for (arm, number), params in first.items():
        shared = {k: params[k] for k in ("lr", "head_width")}
        assert shared == {k: first["block1,feature_extraction", number][k] for k in shared}
        assert ("backbone_lr_scale" in params) == arm.endswith("fine_tune_all")
    assert len({params["lr"] for params in first.values()}) == 4
    # ... and in whatever order the trials are asked for, here one arm after the other from new processes' views.
    other = find_store(str(tmp_path / "other"))
    other.root.mkdir()
    studies = begin(spec, other)
    for arm in reversed(arms(spec)):
        for number in range(4):
            studies.tuning[arm.name].sampler = make_sampler(spec, arm, number)
            trial = studies.tuning[arm.name].ask()
            suggest(trial, spec, arm)
            assert trial.params == first[arm.name, number]
    another_seed = study("vgg_truncation", *settings, "seed=1")
    again = find_store(str(tmp_path / "again"))
    again.root.mkdir()
    claim = claim_next(another_seed, again, begin(another_seed, again))
    assert claim is not None
    suggest(claim.trial, another_seed, claim.arm)
    assert claim.trial.params != first["block1,feature_extraction", 0]


def test_quasi_random_points_cover_the_range(store: Store) -> None:
    """Each eighth of the (logarithmic) range gets one of eight trials, which random points almost never do."""
    spec = study("vgg_truncation", 'factors={truncate_at=["block1"]}', "search={lr={low=1e-4,high=1e-1,log=true}}")
    rates = [claim.trial.params["lr"] for claim in claim_all(spec, store)]
    assert sorted(math.floor((math.log10(rate) + 4) / 3 * 8) for rate in rates) == list(range(8))


def test_sampler_by_budget() -> None:
    for trials, kind in ((20, NumberedQMCSampler), (21, optuna.samplers.TPESampler)):
        spec = study("vgg_truncation", f"trials_per_arm={trials}")
        assert isinstance(make_sampler(spec, arms(spec)[0], 0), kind)
        assert sampler_kind(spec) == ("qmc" if trials == 20 else "tpe")
    assert sampler_kind(study("vgg_truncation", "trials_per_arm=20", "search.sampler=tpe")) == "tpe"
    assert sampler_kind(study("vgg_truncation", "trials_per_arm=99", "confirm.repeats=3")) == "qmc"


def test_tpe_searches_conditional_spaces(store: Store) -> None:
    spec = study("joint_search", "trials_per_arm=36")
    studies = begin(spec, store)
    numbers = []
    while (claim := claim_next(spec, store, studies)) is not None:
        chosen = suggest(claim.trial, spec, claim.arm)
        numbers.append(claim.trial.number)
        end(claim, "finished", 1.0 if chosen["strategy"] == "fine_tune_top" else 0.0)
    assert numbers == list(range(36))
    late = [trial.params["strategy"] for trial in studies.tuning["all"].trials[16:]]
    assert late.count("fine_tune_top") > 13  # it goes where the value is


def test_parameter_importances() -> None:
    spec = study("vgg_truncation")
    rates = (3e-3, 1e-2, 3e-2, 0.3)
    trials = [({"lr": lr, "head_width": width}, lr * 3) for lr in rates for width in (128, 512, 2048)]
    found = parameter_importances(spec, trials)
    assert list(found) == ["lr", "head_width"]
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["lr"] > 0.95
    assert parameter_importances(spec, trials[:1]) == {}
    assert parameter_importances(spec, [({"lr": 0.1}, 0.5), ({"lr": 0.1}, 0.6)]) == {}
    assert parameter_importances(spec, [(params, 0.5) for params, _ in trials]) == {}


# ------------------------------------------------------------------------------------------- known configurations

KNOWN = "known=[{name='published',lr=0.02,head_width=512,backbone_lr_scale=0.5},{head_width=128}]"
SHALLOW = ('factors.truncate_at=["block1"]', "trials_per_arm=4")


@pytest.mark.parametrize("sampler", ["qmc", "random"])
def test_known_configurations_come_first_and_leave_the_sequence_as_it_is(
    sampler: str, store: Store, tmp_path: Path
) -> None:
    settings = (*SHALLOW, f"search.sampler={sampler}")
    found = {
        (c.arm.name, c.trial.number): c.trial.params
        for c in claim_all(study("vgg_truncation", *settings, KNOWN), store)
    }
    other = find_store(str(tmp_path / "other"))
    other.root.mkdir()
    drawn = {(c.arm.name, c.trial.number): c.trial.params for c in claim_all(study("vgg_truncation", *settings), other)}
    frozen, tuned = "block1,feature_extraction", "block1,fine_tune_all"
    assert found[tuned, 0] == {"lr": 0.02, "head_width": 512, "backbone_lr_scale": 0.5}
    assert found[frozen, 0] == {"lr": 0.02, "head_width": 512}  # the scale has no effect there
    for arm in (frozen, tuned):
        assert found[arm, 1] == drawn[arm, 1] | {"head_width": 128}  # what is not known is drawn
        assert [found[arm, number] for number in (2, 3)] == [drawn[arm, number] for number in (2, 3)]


def test_a_known_cut_and_depth_have_the_name_of_their_range(store: Store) -> None:
    known = "known=[{truncate_at='block4',strategy='fine_tune_top',freeze_depth=3},{freeze_depth=1}]"
    spec = study("joint_search", known, "trials_per_arm=2", "search.sampler=random")
    first, second = claim_all(spec, store)
    assert first.trial.params["freeze_depth_block4"] == 3
    assert (first.trial.params["truncate_at"], first.trial.params["strategy"]) == ("block4", "fine_tune_top")
    # Where the cut is drawn, the depth is known for every cut.
    assert set(known_params(spec, arms(spec)[0], 1) or {}) == {
        f"freeze_depth_{cut}" for cut in spec.search.get("truncate_at").choices
    }
    assert [value for name, value in second.trial.params.items() if name.startswith("freeze_depth")] in ([], [1])
    assert known_params(spec, arms(spec)[0], 2) is None


def test_tpe_and_more_trials_than_before_keep_known_configurations(store: Store) -> None:
    one_arm = ('factors={truncate_at=["block1"]}', "fixed.strategy=fine_tune_all", KNOWN)
    first = claim_all(study("vgg_truncation", *one_arm, "trials_per_arm=2"), store)
    assert [c.trial.params["head_width"] for c in first] == [512, 128]
    more = claim_all(study("vgg_truncation", *one_arm, "trials_per_arm=22"), store)
    assert [c.trial.number for c in more] == list(range(2, 22))
    assert 0.02 not in {c.trial.params["lr"] for c in more}


def test_each_repeat_covers_the_range_with_points_of_its_own(store: Store, tmp_path: Path) -> None:
    """Of eight trials in two repeats, each repeat has one in each quarter, as a study with its seed would."""
    settings = ('factors={truncate_at=["block1"]}', "search={lr={low=1e-4,high=1e-1,log=true}}", "trials_per_arm=8")
    spec = study("vgg_truncation", *settings, "confirm.repeats=2")
    rates = [claim.trial.params["lr"] for claim in claim_all(spec, store)]
    for repeat in (0, 1):
        of_repeat = rates[repeat::2]
        assert sorted(math.floor((math.log10(rate) + 4) / 3 * 4) for rate in of_repeat) == list(range(4))
        alone = find_store(str(tmp_path / f"alone {repeat}"))
        alone.root.mkdir()
        other = study("vgg_truncation", *settings, "trials_per_arm=4", f"seed={repeat_seed(spec.seed, repeat)}")
        assert [claim.trial.params["lr"] for claim in claim_all(other, alone)] == of_repeat
    assert len(set(rates)) == 8
