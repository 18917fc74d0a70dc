import json
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import IntDistribution

from ablation import search
from ablation.design import Arm, arms
from ablation.locks import Locks, open_locks
from ablation.report import best_of
from ablation.spec import InputError, StudySpec, load_study, parse_override
from ablation.store import Store, build_database, find_store

CONTENT = {"made": "by a test", "trials_per_arm": 1}
STUDIES = Path(__file__).parent.parent / "studies"


def study(name: str, *settings: str) -> StudySpec:
    return load_study(STUDIES / f"{name}.toml", overrides=[parse_override(setting) for setting in settings])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return find_store(str(tmp_path / "store"))


def begin(spec: StudySpec, store: Store) -> dict[str, optuna.Study]:
    return search.create_arms(search.open_storage(store, create=True), spec, CONTENT, "an experiment")


def claim_next(spec: StudySpec, store: Store, studies: dict[str, optuna.Study], locks: Locks | None = None) -> Any:
    return search.claim_trial(spec, store, locks or open_locks(store.optuna_url), studies, CONTENT)


def end(claim: search.Claim, state: search.TrialEnd, value: float | None, reason: str = "") -> None:
    search.end_trial(claim, state, value, reason, None)
    search.drop(claim)


def records(study: optuna.Study, store: Store) -> list[search.TrialRecord]:
    return search.records("block1", study, open_locks(store.optuna_url))


def claim_all(spec: StudySpec, store: Store) -> list[search.Claim]:
    studies = begin(spec, store)
    claims = []
    while (claim := claim_next(spec, store, studies)) is not None:
        search.suggest(claim.trial, spec, claim.arm)
        claims.append(claim)
        end(claim, "finished", 0.5)
    return claims


# ------------------------------------------------------------------------------------------------- the search space


def test_what_does_not_apply_is_not_sampled() -> None:
    spec = study("joint_search")
    (arm,) = arms(spec)
    seen: Counter[str] = Counter()
    for number in range(300):
        optuna_study = optuna.create_study(sampler=search.NumberedRandomSampler(number))
        trial = optuna_study.ask()
        chosen = search.suggest(trial, spec, arm)
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
    trial = optuna.create_study(sampler=search.NumberedRandomSampler(0)).ask()
    chosen = search.suggest(trial, spec, Arm("freeze_depth=3", {"freeze_depth": 3}))
    assert (chosen["freeze_depth"], chosen["head_width"], chosen["head_warmup_epochs"]) == (3, 512, 2)
    assert set(trial.params) == {"lr", "backbone_lr_scale"}
    frozen = optuna.create_study(sampler=search.NumberedRandomSampler(0)).ask()
    chosen = search.suggest(frozen, spec, Arm("freeze_depth=5", {"freeze_depth": 5}))
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
            studies[arm.name].sampler = search.make_sampler(spec, arm, number)
            trial = studies[arm.name].ask()
            search.suggest(trial, spec, arm)
            assert trial.params == first[arm.name, number]
    another_seed = study("vgg_truncation", *settings, "seed=1")
    again = find_store(str(tmp_path / "again"))
    again.root.mkdir()
    assert claim_all(another_seed, again)[0].trial.params != first["block1,feature_extraction", 0]


def test_quasi_random_points_cover_the_range(store: Store) -> None:
    """Each eighth of the (logarithmic) range gets one of eight trials, which random points almost never do."""
    import math

    spec = study("vgg_truncation", 'factors={truncate_at=["block1"]}', "search={lr={low=1e-4,high=1e-1,log=true}}")
    rates = [claim.trial.params["lr"] for claim in claim_all(spec, store)]
    assert sorted(math.floor((math.log10(rate) + 4) / 3 * 8) for rate in rates) == list(range(8))


def test_sampler_by_budget() -> None:
    for trials, kind in ((20, search.NumberedQMCSampler), (21, optuna.samplers.TPESampler)):
        spec = study("vgg_truncation", f"trials_per_arm={trials}")
        assert isinstance(search.make_sampler(spec, arms(spec)[0], 0), kind)


def test_tpe_searches_conditional_spaces(store: Store) -> None:
    spec = study("joint_search", "trials_per_arm=50")
    studies = begin(spec, store)
    numbers = []
    while (claim := claim_next(spec, store, studies)) is not None:
        chosen = search.suggest(claim.trial, spec, claim.arm)
        numbers.append(claim.trial.number)
        end(claim, "finished", 1.0 if chosen["strategy"] == "fine_tune_top" else 0.0)
    assert numbers == list(range(50))
    late = [trial.params["strategy"] for trial in studies["all"].trials[20:]]
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
        search.suggest(claim.trial, spec, claim.arm)
        end(claim, state, None, f"it {state}")

    interrupted = claim_next(spec, store, studies)
    assert interrupted is not None
    rate = search.suggest(interrupted.trial, spec, interrupted.arm)["lr"]
    assert claim_next(spec, store, studies) is None  # its owner lives, and the budget is spent
    (record,) = records(studies["block1"], store)[2:]
    assert record.state == "running"
    interrupted.release()  # as the death of its process does
    states = [r.state for r in records(studies["block1"], store)]
    assert states == ["failed", "pruned", "interrupted"]

    continued = claim_next(spec, store, begin(spec, store))
    assert continued is not None
    assert continued.trial.number == 2
    assert search.suggest(continued.trial, spec, continued.arm)["lr"] == rate
    end(continued, "finished", 0.75)
    found = records(studies["block1"], store)
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
    assert search.suggest(again.trial, spec, again.arm) == search.suggest(untouched.trial, spec, untouched.arm)


# ---------------------------------------------------------------------------------------------------------- identity


def test_differences() -> None:
    old = {"a": 1, "b": {"c": [1, 2], "d": None}}
    assert search.differences(old, json.loads(json.dumps(old))) == []
    assert search.differences(old, {"a": 1, "b": {"c": [2, 1]}, "e": 3}) == [("b.c", [1, 2], [2, 1]), ("e", None, 3)]


def test_only_budgets_may_change(store: Store) -> None:
    spec = study("vgg_truncation")
    storage = search.open_storage(store, create=True)
    search.check_identity(storage, spec.name, spec.content())  # a new study
    (first, *_) = search.create_arms(storage, spec, spec.content(), "an experiment").values()
    other = study("vgg_truncation", "epochs=11")
    search.check_identity(storage, other.name, other.content())  # nothing has run yet
    first.ask()
    for allowed in ("trials_per_arm=9", "confirm.seeds=1", "data.root=/elsewhere"):
        changed = study("vgg_truncation", allowed)
        search.check_identity(storage, changed.name, changed.content())
    changed = study("vgg_truncation", "epochs=11", "fixed.weight_decay=0.0", 'factors.truncate_at=["block1"]')
    with pytest.raises(InputError) as caught:
        search.check_identity(storage, changed.name, changed.content())
    for part in ("epochs (was 10, is 11)", "fixed.weight_decay (was 0.0005, is 0.0)", "factors.truncate_at",
                 "--name vgg_truncation-2"):  # fmt: skip
        assert part in str(caught.value)
    renamed = load_study(STUDIES / "vgg_truncation.toml", name="vgg_truncation-2")
    search.check_identity(storage, renamed.name, changed.content())


def test_unknown_fields_are_left_out(store: Store) -> None:
    spec = study("vgg_truncation")
    storage = search.open_storage(store, create=True)
    search.create_arms(storage, spec, {"data": {"digest": "a"}}, "an experiment")["block1,fine_tune_all"].ask()
    search.check_identity(storage, spec.name, {"data": {"digest": ""}}, ignored=["data.digest"])
    with pytest.raises(InputError, match=r"data.digest \(was 'a', is 'b'\)"):
        search.check_identity(storage, spec.name, {"data": {"digest": "b"}})


def test_an_arm_that_was_only_begun_to_be_made_is_completed(store: Store) -> None:
    spec = study("vgg_truncation")
    storage = search.open_storage(store, create=True)
    optuna.create_study(study_name="vgg_truncation/block1,fine_tune_all", storage=storage, direction="maximize")
    search.check_identity(storage, spec.name, spec.content())
    arms_made = search.create_arms(storage, spec, spec.content(), "an experiment")
    assert arms_made["block1,fine_tune_all"].user_attrs["content"] == spec.content()
    keys = {arm.user_attrs["key"] for arm in arms_made.values()}
    assert len(keys) == 10
    again = search.create_arms(storage, spec, spec.content(), "an experiment")
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

    assert search.sweep(store, open_locks(store.optuna_url), studies, complete) == 1
    assert asked == [(ended.key, ended.folder, "", True), (waits.key, waits.folder, "", False)]
    assert not ended.folder.exists()
    assert [claim.folder.exists() for claim in (waits, interrupted, running)] == [True] * 3
    assert [record.state for record in records(studies["block1"], store)[2:]] == ["interrupted", "running"]


def test_another_study_of_the_same_name_begun_at_the_same_time_is_noticed(store: Store) -> None:
    spec = study("vgg_truncation", 'factors={truncate_at=["block1"]}', "search={lr={low=1e-4,high=1e-1}}")
    studies = begin(spec, store)
    # Before our first trial, another process sees no trial and makes the name its own; a larger budget alone may come.
    search.create_arms(studies["block1"]._storage, spec, CONTENT | {"trials_per_arm": 9}, "an experiment")
    end(claim_next(spec, store, studies), "finished", 0.5)
    search.create_arms(studies["block1"]._storage, spec, CONTENT | {"made": "by another"}, "an experiment")
    with pytest.raises(InputError, match="was begun at the same time: made .was 'by another', is 'by a test'."):
        claim_next(spec, store, studies)
    assert len(studies["block1"].trials) == 1


def test_equal_values_leave_the_first_trial_in_front(store: Store) -> None:
    spec = study("vgg_truncation", 'factors={truncate_at=["block1"]}', "search={lr={low=1e-4,high=1e-1}}")
    studies = begin(spec, store)
    claims = [claim_next(spec, store, studies) for _ in range(3)]
    for number in (1, 0, 2):  # they need not end in order
        end(claims[number], "finished", 0.5)
        leader = search.best_trial(studies["block1"])
        assert leader.number == {1: 1, 0: 0, 2: 0}[number]
    assert not search.is_better(0.5, 5, leader)
    assert search.is_better(0.6, 5, leader)
    first = records(studies["block1"], store)
    assert best_of(first).number == 0


def test_a_store_that_is_no_database_is_refused(store: Store) -> None:
    (store.root / "optuna.db").write_text("not a database, not a database, not a database")
    with pytest.raises(
        InputError, match=r"optuna.db: cannot be opened as Optuna's database \(file is not a database\)"
    ):
        search.open_storage(store, create=True)


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
        search.open_storage(given)
    assert "secret" not in str(caught.value)
