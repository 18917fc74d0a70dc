import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import IntDistribution

from ablation.base.errors import InputError
from ablation.search.claims import Claim, claim_trial, clean_up_ended_trials, end_trial, release_and_delete, store_spec
from ablation.search.space import (
    NumberedQMCSampler,
    NumberedRandomSampler,
    make_sampler,
    parameter_importances,
    suggest,
)
from ablation.search.status import TrialRecord, best_record, trial_records
from ablation.search.studies import (
    ArmStudies,
    TrialEnd,
    all_ended,
    best_trial,
    check_identity,
    create_arms,
    differences,
    is_better,
    open_storage,
    superseded_keys,
)
from ablation.spec.arms import Arm, arms
from ablation.spec.reading import load_study, parse_override
from ablation.spec.study import StudySpec
from ablation.storage.locks import Locks, open_locks
from ablation.storage.store import Store, build_database, find_store

CONTENT = {"made": "by a test", "trials_per_arm": 1}
STUDIES = Path(__file__).parents[2] / "studies"


def study(name: str, *settings: str) -> StudySpec:
    """Return one of the project's studies with other settings; without confirmation unless they ask for it."""
    overrides = [parse_override(setting) for setting in ("confirm.seeds=0", *settings)]
    return load_study(STUDIES / f"{name}.toml", overrides=overrides)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return find_store(str(tmp_path / "store"))


def begin(spec: StudySpec, store: Store) -> ArmStudies:
    return create_arms(open_storage(store, create=True), spec, CONTENT, "an experiment")


def claim_next(spec: StudySpec, store: Store, studies: ArmStudies, locks: Locks | None = None) -> Any:
    return claim_trial(spec, store, locks or open_locks(store.optuna_url), studies, CONTENT)


def end(claim: Claim, state: TrialEnd, value: float | None, reason: str = "") -> None:
    end_trial(claim, state, value, reason, None)
    release_and_delete(claim)


def records(studies: ArmStudies, store: Store) -> list[TrialRecord]:
    return trial_records(studies, open_locks(store.optuna_url))["block1"]


def claim_all(spec: StudySpec, store: Store) -> list[Claim]:
    studies = begin(spec, store)
    claims = []
    while (claim := claim_next(spec, store, studies)) is not None:
        suggest(claim.trial, spec, claim.arm)
        claims.append(claim)
        end(claim, "finished", 0.5)
    return claims


# ------------------------------------------------------------------------------------------------- the search space


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


# ---------------------------------------------------------------------------------------------------------- sampling


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


# ------------------------------------------------------------------------------------------------ budgets and claims


def test_budgets_are_totals_and_arms_take_turns(store: Store) -> None:
    factors = 'factors={truncate_at=["block1","block2","block3"]}'
    only_lr = "search={lr={low=1e-4,high=1e-1}}"
    spec = study("vgg_truncation", factors, only_lr, "trials_per_arm=2")
    assert [c.arm.name for c in claim_all(spec, store)] == ["block1", "block2", "block3"] * 2
    assert claim_all(spec, store) == []
    more = study("vgg_truncation", factors, only_lr, "trials_per_arm=3")
    assert [(c.arm.name, c.trial.number) for c in claim_all(more, store)] == [(f"block{b}", 2) for b in (1, 2, 3)]


def test_failed_and_pruned_trials_count_and_interrupted_ones_are_continued(store: Store) -> None:
    spec = study("vgg_truncation", 'factors={truncate_at=["block1"]}', "search={lr={low=1e-4,high=1e-1}}",
                 "trials_per_arm=3")  # fmt: skip
    studies = begin(spec, store)
    for state in ("failed", "pruned"):
        claim = claim_next(spec, store, studies)
        assert claim is not None
        suggest(claim.trial, spec, claim.arm)
        end(claim, state, None, f"it {state}")

    interrupted = claim_next(spec, store, studies)
    assert interrupted is not None
    rate = suggest(interrupted.trial, spec, interrupted.arm)["lr"]
    assert claim_next(spec, store, studies) is None  # its owner lives, and the budget is spent
    (record,) = records(studies, store)[2:]
    assert record.state == "running"
    interrupted.release()  # as the death of its process does
    states = [r.state for r in records(studies, store)]
    assert states == ["failed", "pruned", "interrupted"]

    continued = claim_next(spec, store, begin(spec, store))
    assert continued is not None
    assert continued.trial.number == 2
    assert suggest(continued.trial, spec, continued.arm)["lr"] == rate
    end(continued, "finished", 0.75)
    found = records(studies, store)
    assert [(r.state, r.value, r.reason) for r in found] == [
        ("failed", None, "it failed"), ("pruned", None, "it pruned"), ("finished", 0.75, ""),
    ]  # fmt: skip
    assert not continued.folder.exists()
    assert claim_next(spec, store, studies) is None


def test_a_trial_killed_before_its_parameters_gets_the_same_ones(store: Store, tmp_path: Path) -> None:
    spec = study("vgg_truncation", "trials_per_arm=1")
    studies = begin(spec, store)
    claim = claim_next(spec, store, studies)
    assert claim is not None
    claim.release()  # nothing was suggested yet
    again = claim_next(spec, store, begin(spec, store))
    assert again is not None
    assert again.trial.number == claim.trial.number
    other = find_store(str(tmp_path / "other"))
    other.root.mkdir()
    untouched = claim_next(spec, other, begin(spec, other))
    assert untouched is not None
    assert suggest(again.trial, spec, again.arm) == suggest(untouched.trial, spec, untouched.arm)


# ------------------------------------------------------------------------------------------------------ confirmation

TWO_ARMS = (
    'factors={truncate_at=["block1","block2"]}',
    "search={lr={low=1e-4,high=1e-1}}",
    "trials_per_arm=2",
    "confirm.seeds=2",
)


def confirmations(study: optuna.Study) -> list[tuple[int, int, str]]:
    return [(trial.number, trial.user_attrs["confirms"], trial.state.name) for trial in study.trials]


def test_confirmation_runs_come_after_tuning_and_arms_take_turns(store: Store) -> None:
    spec = study("vgg_truncation", *TWO_ARMS)
    studies = begin(spec, store)
    value = {("block1", 0): 0.5, ("block1", 1): 0.7, ("block2", 0): 0.6, ("block2", 1): 0.6}
    tuning = [claim_next(spec, store, studies) for _ in range(4)]
    assert all(claim.best is None for claim in tuning)
    for claim in tuning[:3]:
        end(claim, "finished", value[claim.arm.name, claim.trial.number])
    # block2's last trial goes on elsewhere: block1 alone is confirmed, because block2 has no best trial yet.
    first, second = (claim_next(spec, store, studies) for _ in range(2))
    assert claim_next(spec, store, studies) is None
    assert [(c.arm.name, c.trial.number, c.best.number, c.superseded) for c in (first, second)] == [
        ("block1", 0, 1, False), ("block1", 1, 1, False),
    ]  # fmt: skip
    assert not all_ended(spec, studies)
    end(tuning[3], "finished", 0.6)
    third = claim_next(spec, store, studies)
    assert (third.arm.name, third.best.number) == ("block2", 0)  # the first of equals
    end(first, "finished", 0.1)  # a low value makes no other trial the best
    end(second, "failed", None, "it diverged")
    end(third, "finished", 0.2)
    fourth = claim_next(spec, store, studies)
    end(fourth, "finished", 0.3)
    assert claim_next(spec, store, studies) is None  # one that failed counts, too
    assert all_ended(spec, studies)
    assert superseded_keys(studies) == []
    found = trial_records(studies, open_locks(store.optuna_url))
    assert [(r.number, r.confirms, r.state, r.value) for r in found["block1"]] == [
        (0, None, "finished", 0.5), (1, None, "finished", 0.7), (0, 1, "finished", 0.1), (1, 1, "failed", None),
    ]  # fmt: skip
    assert found["block1"][2].params == found["block1"][1].params
    keys = {claim.key for claim in (*tuning, first, second, third, fourth)}
    assert len(keys) == 8


def test_a_larger_budget_supersedes_the_confirmation_of_what_is_not_the_best_any_more(store: Store) -> None:
    spec = study("vgg_truncation", *TWO_ARMS, 'factors={truncate_at=["block1"]}')
    studies = begin(spec, store)
    for value in (0.5, 0.7, 0.6):
        end(claim_next(spec, store, studies), "finished", value)
    interrupted = claim_next(spec, store, studies)
    assert (interrupted.trial.number, interrupted.best.number) == (1, 1)
    store_spec(interrupted, {"it has": "begun"})
    interrupted.release()

    more = study("vgg_truncation", *TWO_ARMS, 'factors={truncate_at=["block1"]}', "trials_per_arm=3")
    end(claim_next(more, store, studies), "finished", 0.8)
    old = claim_next(more, store, studies)
    assert (old.trial.number, old.superseded, old.best.number) == (1, True, 2)
    end(old, "pruned", None, "superseded")
    new = [claim_next(more, store, studies) for _ in range(2)]
    assert [(claim.superseded, claim.best.number) for claim in new] == [(False, 2)] * 2
    for claim in new:
        end(claim, "finished", 0.75)
    assert claim_next(more, store, studies) is None
    assert all_ended(more, studies)
    confirmation = studies.confirmation["block1"]
    assert confirmations(confirmation) == [
        (0, 1, "COMPLETE"), (1, 1, "PRUNED"), (2, 2, "COMPLETE"), (3, 2, "COMPLETE"),
    ]  # fmt: skip
    key = confirmation.user_attrs["key"]
    assert superseded_keys(studies) == [f"{key}/0", f"{key}/1"]
    assert best_trial(confirmation, confirms=1).number == 0
    # More seeds top up, fewer take nothing away.
    end(claim_next(study("vgg_truncation", *TWO_ARMS, 'factors={truncate_at=["block1"]}', "trials_per_arm=3",
                         "confirm.seeds=3"), store, studies), "finished", 0.5)  # fmt: skip
    assert claim_next(more, store, studies) is None
    assert len(confirmations(confirmation)) == 5


def test_an_arm_without_a_finished_trial_is_not_confirmed(store: Store) -> None:
    spec = study("vgg_truncation", *TWO_ARMS, "trials_per_arm=1", "confirm.seeds=1")
    studies = begin(spec, store)
    end(claim_next(spec, store, studies), "failed", None, "it diverged")
    end(claim_next(spec, store, studies), "finished", 0.5)
    claim = claim_next(spec, store, studies)
    assert claim.arm.name == "block2"
    end(claim, "finished", 0.4)
    assert claim_next(spec, store, studies) is None
    assert all_ended(spec, studies)


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


# ---------------------------------------------------------------------------------------------------------- identity


def test_differences() -> None:
    old = {"a": 1, "b": {"c": [1, 2], "d": None}}
    assert differences(old, json.loads(json.dumps(old))) == []
    assert differences(old, {"a": 1, "b": {"c": [2, 1]}, "e": 3}) == [("b.c", [1, 2], [2, 1]), ("e", None, 3)]


def test_only_budgets_may_change(store: Store) -> None:
    spec = study("vgg_truncation")
    storage = open_storage(store, create=True)
    check_identity(storage, spec.name, spec.content())  # a new study
    (first, *_) = create_arms(storage, spec, spec.content(), "an experiment").tuning.values()
    other = study("vgg_truncation", "epochs=11")
    check_identity(storage, other.name, other.content())  # nothing has run yet
    with pytest.raises(InputError, match="made with other settings"):  # but another process has begun it
        check_identity(storage, other.name, other.content(), is_begun=True)
    first.ask()
    for allowed in ("trials_per_arm=9", "confirm.seeds=1", "data.root=/elsewhere"):
        changed = study("vgg_truncation", allowed)
        check_identity(storage, changed.name, changed.content())
    changed = study("vgg_truncation", "epochs=11", "fixed.weight_decay=0.0", 'factors.truncate_at=["block1"]')
    with pytest.raises(InputError) as caught:
        check_identity(storage, changed.name, changed.content())
    for part in ("epochs (was 10, is 11)", "fixed.weight_decay (was 0.0005, is 0.0)", "factors.truncate_at",
                 "--name vgg_truncation-2"):  # fmt: skip
        assert part in str(caught.value)
    renamed = load_study(STUDIES / "vgg_truncation.toml", name="vgg_truncation-2")
    check_identity(storage, renamed.name, changed.content())


def test_unknown_fields_are_left_out(store: Store) -> None:
    spec = study("vgg_truncation")
    storage = open_storage(store, create=True)
    create_arms(storage, spec, {"data": {"digest": "a"}}, "an experiment").tuning["block1,fine_tune_all"].ask()
    check_identity(storage, spec.name, {"data": {"digest": ""}}, ignored=["data.digest"])
    with pytest.raises(InputError, match=r"data.digest \(was 'a', is 'b': the images have changed\)"):
        check_identity(storage, spec.name, {"data": {"digest": "b"}})


def test_an_arm_that_was_only_begun_to_be_made_is_completed(store: Store) -> None:
    spec = study("vgg_truncation")
    storage = open_storage(store, create=True)
    optuna.create_study(study_name="vgg_truncation/block1,fine_tune_all", storage=storage, direction="maximize")
    check_identity(storage, spec.name, spec.content())
    arms_made = create_arms(storage, spec, spec.content(), "an experiment").tuning
    assert arms_made["block1,fine_tune_all"].user_attrs["content"] == spec.content()
    keys = {arm.user_attrs["key"] for arm in arms_made.values()}
    assert len(keys) == 10
    again = create_arms(storage, spec, spec.content(), "an experiment").tuning
    assert {arm.user_attrs["key"] for arm in again.values()} == keys


def test_a_crash_while_a_database_is_made_leaves_none(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    url = f"sqlite:///{path}"

    def crash(url: str) -> None:
        Path(url.removeprefix("sqlite:///")).write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_database(url, crash)
    assert not path.exists()
    build_database(url, lambda url: optuna.storages.RDBStorage(url).engine.dispose())
    optuna.storages.RDBStorage(f"sqlite:///{path}")
    build_database(url, crash)  # it is there, so nothing is built
    assert [entry.name for entry in tmp_path.iterdir()] == ["some.db"]


def test_leftovers_of_ended_trials_are_swept(store: Store) -> None:
    spec = study("vgg_truncation", 'factors={truncate_at=["block1"]}', "search={lr={low=1e-4,high=1e-1}}")
    studies = begin(spec, store)
    ended, waits, interrupted, running = (claim_next(spec, store, studies) for _ in range(4))
    for claim in (ended, waits):
        end(claim, "finished", 0.5)
        claim.folder.mkdir()
        (claim.folder / "epoch-000001.ckpt").write_text("left by a crash")
    interrupted.release()
    (ended.folder.parent / ".DS_Store").touch()
    asked = []

    def complete(key: str, folder: Path, owner: str, is_best: bool) -> bool:
        asked.append((key, folder, owner, is_best))
        return key == ended.key

    assert clean_up_ended_trials(store, open_locks(store.optuna_url), studies, complete) == 1
    assert asked == [(ended.key, ended.folder, "", True), (waits.key, waits.folder, "", False)]
    assert not ended.folder.exists()
    assert [claim.folder.exists() for claim in (waits, interrupted, running)] == [True] * 3
    assert [record.state for record in records(studies, store)[2:]] == ["interrupted", "running"]


def test_another_study_of_the_same_name_begun_at_the_same_time_is_noticed(store: Store) -> None:
    spec = study("vgg_truncation", 'factors={truncate_at=["block1"]}', "search={lr={low=1e-4,high=1e-1}}")
    studies = begin(spec, store)
    storage = studies.tuning["block1"]._storage
    # Before our first trial, another process sees no trial and makes the name its own; a larger budget alone may come.
    create_arms(storage, spec, CONTENT | {"trials_per_arm": 9}, "an experiment")
    end(claim_next(spec, store, studies), "finished", 0.5)
    create_arms(storage, spec, CONTENT | {"made": "by another"}, "an experiment")
    with pytest.raises(InputError, match="was begun at the same time: made .was 'by another', is 'by a test'."):
        claim_next(spec, store, studies)
    assert len(studies.tuning["block1"].trials) == 1


def test_equal_values_leave_the_first_trial_in_front(store: Store) -> None:
    spec = study("vgg_truncation", 'factors={truncate_at=["block1"]}', "search={lr={low=1e-4,high=1e-1}}")
    studies = begin(spec, store)
    claims = [claim_next(spec, store, studies) for _ in range(3)]
    for number in (1, 0, 2):  # they need not end in order
        end(claims[number], "finished", 0.5)
        leader = best_trial(studies.tuning["block1"])
        assert leader.number == {1: 1, 0: 0, 2: 0}[number]
    assert not is_better(0.5, 5, leader)
    assert is_better(0.6, 5, leader)
    first = records(studies, store)
    assert best_record(first).number == 0


def test_a_store_that_is_no_database_is_refused(store: Store) -> None:
    (store.root / "optuna.db").write_text("not a database, not a database, not a database")
    with pytest.raises(
        InputError, match=r"optuna.db: cannot be opened as Optuna's database \(file is not a database\)"
    ):
        open_storage(store, create=True)


def test_addresses_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    default = find_store(None)
    assert default.root == tmp_path / "mlruns"
    assert default.has_own_optuna
    assert default.has_own_tracking
    assert default.is_empty
    monkeypatch.setenv("OPTUNA_STORAGE", "postgresql://u:secret@nowhere/x")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    given = find_store(None)
    assert (given.optuna_url, given.tracking_uri) == ("postgresql://u:secret@nowhere/x", "http://127.0.0.1:1")
    assert not given.is_empty
    chosen = find_store("here")
    assert chosen.optuna_url == f"sqlite:///{tmp_path}/here/optuna.db"
    assert chosen.has_own_tracking
    with pytest.raises(InputError) as caught:
        open_storage(given)
    assert "secret" not in str(caught.value)
