"""Search spaces, samplers and parameter importances."""

import math
from collections import Counter
from pathlib import Path

import optuna
import pytest
from optuna.distributions import IntDistribution

from ablation.search.space import (
    NumberedQMCSampler,
    NumberedRandomSampler,
    make_sampler,
    parameter_importances,
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
    settings = (f"search.sampler={sampler}", "trials_per_arm=4")
    spec = study("vgg_truncation", *settings)
    first = {(c.arm.name, c.trial.number): c.trial.params for c in claim_all(spec, store)}
    assert len(first) == 40
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
    assert claim_all(another_seed, again)[0].trial.params != first["block1,feature_extraction", 0]


def test_quasi_random_points_cover_the_range(store: Store) -> None:
    """Each eighth of the (logarithmic) range gets one of eight trials, which random points almost never do."""
    spec = study("vgg_truncation", 'factors={truncate_at=["block1"]}', "search={lr={low=1e-4,high=1e-1,log=true}}")
    rates = [claim.trial.params["lr"] for claim in claim_all(spec, store)]
    assert sorted(math.floor((math.log10(rate) + 4) / 3 * 8) for rate in rates) == list(range(8))


def test_sampler_by_budget() -> None:
    for trials, kind in ((20, NumberedQMCSampler), (21, optuna.samplers.TPESampler)):
        spec = study("vgg_truncation", f"trials_per_arm={trials}")
        assert isinstance(make_sampler(spec, arms(spec)[0], 0), kind)


def test_tpe_searches_conditional_spaces(store: Store) -> None:
    spec = study("joint_search", "trials_per_arm=50")
    studies = begin(spec, store)
    numbers = []
    while (claim := claim_next(spec, store, studies)) is not None:
        chosen = suggest(claim.trial, spec, claim.arm)
        numbers.append(claim.trial.number)
        end(claim, "finished", 1.0 if chosen["strategy"] == "fine_tune_top" else 0.0)
    assert numbers == list(range(50))
    late = [trial.params["strategy"] for trial in studies.tuning["all"].trials[20:]]
    assert late.count("fine_tune_top") > 20  # it goes where the value is


def test_parameter_importances() -> None:
    spec = study("vgg_truncation")
    arm = arms(spec)[0]
    rates = (1e-4, 1e-3, 1e-2, 1e-1)
    trials = [({"lr": lr, "head_width": width}, lr * 9) for lr in rates for width in (128, 256, 512, 1024)]
    found = parameter_importances(spec, arm, trials)
    assert list(found) == ["lr", "head_width"]
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["lr"] > 0.95
    assert parameter_importances(spec, arm, trials[:1]) == {}
    assert parameter_importances(spec, arm, [({"lr": 0.1}, 0.5), ({"lr": 0.1}, 0.6)]) == {}
    assert parameter_importances(spec, arm, [(params, 0.5) for params, _ in trials]) == {}
