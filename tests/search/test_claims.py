"""Budgets, claims and confirmation runs."""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
import pytest

from ablation.base.errors import InputError, StoreAway
from ablation.search.claims import (
    clean_up_ended_trials,
    end_trial,
    has_ended,
    release_and_delete,
    report_epochs,
    store_spec,
)
from ablation.search.lost_trials import train_again
from ablation.search.space import suggest
from ablation.search.status import best_record, trial_records
from ablation.search.studies import again_numbers, all_ended, best_trial, create_arms, is_better, superseded_keys
from ablation.spec.metrics import EpochMetrics
from ablation.spec.objective import ACCURACY
from ablation.storage.locks import FileLocks, open_locks
from ablation.storage.store import Store, find_store, sqlite_path
from tests.search.steps import (
    CONTENT,
    ONE_ARM,
    ONE_CONFIRMED,
    TWO_ARMS,
    begin,
    claim_all,
    claim_next,
    confirmations,
    end,
    records,
    study,
)


def test_budgets_are_totals_and_arms_take_turns(store: Store) -> None:
    factors = 'factors={truncate_at=["block1","block2","block3"]}'
    only_lr = "search={lr={low=1e-4,high=1e-1}}"
    spec = study("vgg_truncation", factors, only_lr, "trials_per_arm=2")
    assert [c.arm.name for c in claim_all(spec, store)] == ["block1", "block2", "block3"] * 2
    assert claim_all(spec, store) == []
    more = study("vgg_truncation", factors, only_lr, "trials_per_arm=3")
    assert [(c.arm.name, c.trial.number) for c in claim_all(more, store)] == [(f"block{b}", 2) for b in (1, 2, 3)]


def test_failed_and_pruned_trials_count_and_interrupted_ones_are_continued(store: Store) -> None:
    spec = study("vgg_truncation", *ONE_ARM, "trials_per_arm=3")
    studies = begin(spec, store)
    for state in ("failed", "pruned"):
        claim = claim_next(spec, store, studies)
        assert claim is not None
        suggest(claim.trial, spec, claim.arm)
        end(claim, state, None, f"it {state}")

    interrupted = claim_next(spec, store, studies)
    rate = suggest(interrupted.trial, spec, interrupted.arm)["lr"]
    assert claim_next(spec, store, studies) is None  # its owner lives, and the budget is spent
    (record,) = records(studies, store)[2:]
    assert record.state == "running"
    interrupted.release()  # as the death of its process does
    states = [r.state for r in records(studies, store)]
    assert states == ["failed", "pruned", "interrupted"]

    continued = claim_next(spec, store, begin(spec, store))
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
    claim.release()  # nothing was suggested yet
    again = claim_next(spec, store, begin(spec, store))
    assert again.trial.number == claim.trial.number
    other = find_store(str(tmp_path / "other"))
    other.root.mkdir()
    untouched = claim_next(spec, other, begin(spec, other))
    assert suggest(again.trial, spec, again.arm) == suggest(untouched.trial, spec, untouched.arm)


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
    assert superseded_keys(spec, studies) == []
    found = trial_records(studies, open_locks(store.optuna_url))
    assert [(r.number, r.confirms, r.state, r.value) for r in found["block1"]] == [
        (0, None, "finished", 0.5), (1, None, "finished", 0.7), (0, 1, "finished", 0.1), (1, 1, "failed", None),
    ]  # fmt: skip
    assert found["block1"][2].params == found["block1"][1].params
    keys = {claim.key for claim in (*tuning, first, second, third, fourth)}
    assert len(keys) == 8


def test_a_larger_budget_supersedes_the_confirmation_of_what_is_not_the_best_any_more(store: Store) -> None:
    spec = study("vgg_truncation", *ONE_CONFIRMED)
    studies = begin(spec, store)
    for value in (0.5, 0.7, 0.6):
        end(claim_next(spec, store, studies), "finished", value)
    interrupted = claim_next(spec, store, studies)
    assert (interrupted.trial.number, interrupted.best.number) == (1, 1)
    store_spec(interrupted, {"it has": "begun"})
    interrupted.release()

    more = study("vgg_truncation", *ONE_CONFIRMED, "trials_per_arm=3")
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
    assert superseded_keys(spec, studies) == [f"{key}/0", f"{key}/1"]
    assert best_trial(confirmation, confirms=1).number == 0
    # More seeds top up, fewer take nothing away.
    end(claim_next(study("vgg_truncation", *ONE_CONFIRMED, "trials_per_arm=3",
                         "confirm.seeds=3"), store, studies), "finished", 0.5)  # fmt: skip
    assert claim_next(more, store, studies) is None
    assert len(confirmations(confirmation)) == 5


def test_each_repeat_has_its_best_trial_confirmed(store: Store) -> None:
    """Trials 0 and 2 are the first repeat's, 1 and 3 the second's; repeats take turns, arms within them."""
    repeats = (*TWO_ARMS, "trials_per_arm=4", "confirm.repeats=2")
    spec = study("vgg_truncation", *repeats)
    studies = begin(spec, store)
    values = {"block1": (0.5, 0.9, 0.6, 0.8), "block2": (0.7, 0.1, 0.7, None)}
    for _ in range(8):
        claim = claim_next(spec, store, studies)
        value = values[claim.arm.name][claim.trial.number]
        end(claim, "finished" if value else "failed", value)
    found = []
    while (claim := claim_next(spec, store, studies)) is not None:
        found.append((claim.arm.name, claim.best.number))
        assert not all_ended(spec, studies)
        if len(found) == 3:  # its process dies before it has begun: the same one is resumed
            claim.release()
            claim = claim_next(spec, store, begin(spec, store))
            assert (claim.arm.name, claim.best.number, claim.resumed, claim.superseded) == ("block1", 1, True, False)
        end(claim, "finished", 0.5)
    one_each = [("block1", 2), ("block2", 0), ("block1", 1), ("block2", 1)]
    assert found == one_each * 2
    assert all_ended(spec, studies)
    assert superseded_keys(spec, studies) == []

    more = study("vgg_truncation", *repeats, "trials_per_arm=5")  # another trial of the first repeat
    for _ in range(2):
        claim = claim_next(more, store, studies)
        end(claim, "finished", 0.95 if claim.arm.name == "block1" else 0.2)
    new = [claim_next(more, store, studies) for _ in range(2)]
    assert [(claim.arm.name, claim.best.number) for claim in new] == [("block1", 4)] * 2
    for claim in new:
        end(claim, "finished", 0.5)
    assert claim_next(more, store, studies) is None
    key = studies.confirmation["block1"].user_attrs["key"]
    assert superseded_keys(more, studies) == [f"{key}/0", f"{key}/2"]


def test_an_interrupted_run_of_a_repeat_that_lost_its_trials_is_superseded(store: Store) -> None:
    """Somebody restored an old copy of the database, in which the second repeat's trial has not finished."""
    spec = study("vgg_truncation", *ONE_CONFIRMED, "confirm.repeats=2", "confirm.seeds=1")
    studies = begin(spec, store)
    for value in (0.5, 0.6):
        end(claim_next(spec, store, studies), "finished", value)
    end(claim_next(spec, store, studies), "finished", 0.5)
    interrupted = claim_next(spec, store, studies)
    store_spec(interrupted, {"any": "parameters"})
    interrupted.release()
    database = sqlite3.connect(sqlite_path(store.optuna_url))
    with database:
        database.execute("UPDATE trials SET state = 'FAIL' WHERE number = 1 AND study_id = 1")
    database.close()
    claim = claim_next(spec, store, begin(spec, store))
    assert (claim.key, claim.resumed, claim.superseded, claim.best.number) == (interrupted.key, True, True, 0)
    end(claim, "pruned", None)
    assert claim_next(spec, store, begin(spec, store)) is None


def test_trials_that_somebody_deleted_are_trained_again_and_stay_confirmed(store: Store) -> None:
    """In Optuna's dashboard, which deletes an arm's trials and leaves their confirmation runs."""
    spec = study("vgg_truncation", *ONE_CONFIRMED)
    claim_all(spec, store)
    before = records(begin(spec, store), store)
    optuna.delete_study(study_name="vgg_truncation/block1", storage=begin(spec, store).tuning["block1"]._storage)
    studies = begin(spec, store)
    assert [(record.confirms, record.state) for record in records(studies, store)] == [(0, "finished")] * 2
    assert [(claim.trial.number, claim.best) for claim in claim_all(spec, store)] == [(0, None), (1, None)]
    assert records(begin(spec, store), store)[2].params == before[2].params != {}
    assert all_ended(spec, begin(spec, store))


def test_a_lost_run_is_trained_again_though_what_it_confirms_was_deleted(store: Store) -> None:
    spec = study("vgg_truncation", *ONE_CONFIRMED, "confirm.seeds=1")
    studies = begin(spec, store)
    for value in (0.5, 0.6, 0.5):
        end(claim_next(spec, store, studies), "finished", value)
    optuna.delete_study(study_name="vgg_truncation/block1", storage=studies.tuning["block1"]._storage)
    fewer = study("vgg_truncation", *ONE_CONFIRMED, "confirm.seeds=0", "trials_per_arm=1")
    studies = begin(fewer, store)
    train_again(studies.confirmation["block1"], [0])
    end(claim_next(fewer, store, studies), "finished", 0.5)
    lost = claim_next(fewer, store, studies)
    assert (lost.study.study_name, lost.trial.number) == ("vgg_truncation/block1/confirmation", 0)
    assert lost.best is not None  # it is a confirmation run


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


def test_leftovers_of_ended_trials_are_swept(store: Store) -> None:
    spec = study("vgg_truncation", *ONE_ARM)
    studies = begin(spec, store)
    ended, waits, interrupted, running = (claim_next(spec, store, studies) for _ in range(4))
    for claim in (ended, waits):
        end(claim, "finished", 0.5)
        claim.folder.mkdir()
        (claim.folder / "epoch-000001.ckpt").write_text("left by a crash")
    interrupted.release()
    (ended.folder.parent / ".DS_Store").touch()
    asked = []

    def complete(key: str, folder: Path, owner: str, is_best: bool, ensure_held: Callable[[], None]) -> bool:
        ensure_held()
        asked.append((key, folder, owner, is_best))
        return key == ended.key

    assert clean_up_ended_trials(store, open_locks(store.optuna_url), studies, complete) == 1
    assert asked == [(ended.key, ended.folder, "", True), (waits.key, waits.folder, "", False)]
    assert not ended.folder.exists()
    assert [claim.folder.exists() for claim in (waits, interrupted, running)] == [True] * 3
    assert [record.state for record in records(studies, store)[2:]] == ["interrupted", "running"]


def test_who_lost_the_lock_leaves_the_folder_to_its_new_owner(store: Store) -> None:
    """Whether it ended the trial itself or sweeps: what another process delivers must not be deleted meanwhile."""
    spec = study("vgg_truncation", *ONE_ARM)
    studies = begin(spec, store)
    claim = claim_next(spec, store, studies)
    end_trial(claim, "finished", 0.5, "", None)
    claim.folder.mkdir(exist_ok=True)
    claim.locks.release_all()  # as a lost connection does
    assert not release_and_delete(claim)
    locks = open_locks(store.optuna_url)

    def complete(key: str, folder: Path, owner: str, is_best: bool, ensure_held: Callable[[], None]) -> bool:
        ensure_held()
        locks.release_all()
        with pytest.raises(StoreAway, match="the connection broke that held a lock"):
            ensure_held()
        return True

    assert clean_up_ended_trials(store, locks, studies, complete) == 1
    assert claim.folder.exists()


def test_another_study_of_the_same_name_begun_at_the_same_time_is_noticed(store: Store) -> None:
    spec = study("vgg_truncation", *ONE_ARM)
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
    spec = study("vgg_truncation", *ONE_ARM)
    studies = begin(spec, store)
    claims = [claim_next(spec, store, studies) for _ in range(3)]
    for number in (1, 0, 2):  # they need not end in order
        end(claims[number], "finished", 0.5)
        leader = best_trial(studies.tuning["block1"])
        assert leader.number == {1: 1, 0: 0, 2: 0}[number]
    assert not is_better(0.5, 5, leader, ACCURACY)
    assert is_better(0.6, 5, leader, ACCURACY)
    first = records(studies, store)
    assert best_record(first).number == 0


def test_trials_that_are_trained_again_are_claimed_once_each_and_keep_their_end(store: Store) -> None:
    spec = study("vgg_truncation", *TWO_ARMS, "confirm.seeds=1", 'factors={truncate_at=["block1"]}')
    claim_all(spec, store)
    studies = begin(spec, store)
    ends = [(trial.state, trial.value) for trial in studies.tuning["block1"].trials]
    train_again(studies.tuning["block1"], [1])
    train_again(studies.confirmation["block1"], [0])
    assert not all_ended(spec, studies)
    assert [record.state for record in records(begin(spec, store), store)] == ["finished", "interrupted", "interrupted"]
    claims = [claim_next(spec, store, begin(spec, store)) for _ in range(3)]  # each a process of its own
    assert claims[2] is None
    assert [(c.trial.number, c.ended, c.best and c.best.number) for c in claims[:2]] == [
        (1, "finished", None), (0, "finished", 0)
    ]  # fmt: skip
    for claim in claims[:2]:
        assert not has_ended(claim)
        end_trial(claim, "finished", 0.1, "", "a new run")
        assert has_ended(claim)  # a process that dies now must not mark the run as one that resumes
        end_trial(claim, "finished", 0.1, "", "a new run")  # the answer was lost
        claim.release()
    assert [again_numbers(each) for each in studies.all()] == [[], []]
    assert [(trial.state, trial.value) for trial in studies.tuning["block1"].trials] == ends
    assert [record.run_id for record in records(begin(spec, store), store)] == ["", "a new run", "a new run"]
    assert all_ended(spec, studies)
    assert claim_next(spec, store, studies) is None


def test_the_trials_of_an_arm_are_read_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A question to the database for each trial would take minutes where the database is far away."""
    spec = study("vgg_truncation", *TWO_ARMS)
    claim_all(spec, store)
    studies, asked = begin(spec, store), []
    storage = type(studies.tuning["block1"]._storage)
    ask = storage.get_study_user_attrs
    monkeypatch.setattr(storage, "get_study_user_attrs", lambda self, number: asked.append(number) or ask(self, number))
    locks = open_locks(store.optuna_url)
    first = trial_records(studies, locks)
    assert [len(of_arm) for of_arm in first.values()] == [4, 4]
    assert len(asked) == len(studies.all()) == 4
    assert trial_records(studies, locks) == first
    assert len(asked) == 4


# ------------------------------------------------------------------------------------------- known configurations

KNOWN = (*TWO_ARMS, "known=[{lr=0.05}]")


def test_two_workers_claim_every_known_configuration_once(store: Store) -> None:
    spec = study("vgg_truncation", *KNOWN)
    claims = []
    for _ in range(2):  # of both arms, each a process of its own
        studies, locks = begin(spec, store), open_locks(store.optuna_url)
        claims += [claim_next(spec, store, studies, locks) for _ in range(2)]
    rates = {(c.arm.name, c.trial.number): suggest(c.trial, spec, c.arm)["lr"] for c in claims}
    assert sorted(rates) == [("block1", 0), ("block1", 1), ("block2", 0), ("block2", 1)]
    assert [key for key, rate in rates.items() if rate == 0.05] == [("block1", 0), ("block2", 0)]


def test_a_known_trial_resumes_with_its_values(store: Store) -> None:
    spec = study("vgg_truncation", *KNOWN)
    claim_next(
        spec, store, begin(spec, store)
    ).release()  # as the death of its process does, before it asked for values
    resumed = claim_next(spec, store, begin(spec, store))
    assert (resumed.resumed, resumed.trial.number) == (True, 0)
    assert suggest(resumed.trial, spec, resumed.arm)["lr"] == 0.05


def test_a_process_that_dies_after_enqueueing_leaves_the_trial_to_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = study("vgg_truncation", *KNOWN)
    studies = begin(spec, store)

    def die(study: optuna.Study) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "ask", die)
        with pytest.raises(KeyboardInterrupt):
            claim_next(spec, store, studies)
    waiting = studies.tuning["block1"].get_trials()
    assert [trial.state.name for trial in waiting] == ["WAITING"]
    assert records(studies, store) == []  # nothing has begun
    found = [(c.arm.name, c.trial.number, c.trial.params["lr"]) for c in claim_all(spec, store) if c.best is None]
    assert [(arm, number) for arm, number, _ in found] == [("block1", 0), ("block2", 0), ("block1", 1), ("block2", 1)]
    assert [rate == 0.05 for *_, rate in found] == [True, True, False, False]
    assert all_ended(spec, begin(spec, store))


def test_a_waiting_trial_beyond_a_smaller_budget_holds_nobody_up(store: Store) -> None:
    spec = study("vgg_truncation", *TWO_ARMS, "confirm.seeds=0", "trials_per_arm=1")
    studies = begin(spec, store)
    claim_all(spec, store)
    studies.tuning["block1"].enqueue_trial({"lr": 0.05})
    assert claim_next(spec, store, studies) is None
    assert all_ended(spec, studies)


class CountingLocks(FileLocks):
    """Locks of files that count the questions about the locks of trials."""

    def __init__(self, store: Store) -> None:
        super().__init__(sqlite_path(store.optuna_url).parent)
        self.questions = 0

    def are_taken(self, names: Sequence[str]) -> list[bool | None]:
        self.questions += bool(names)
        return super().are_taken(names)

    def try_acquire(self, name: str) -> bool:
        self.questions += 1
        return super().try_acquire(name)


def test_a_claim_asks_as_little_beside_many_workers_as_beside_one(store: Store) -> None:
    """Each question is one to a server, while all other workers wait for the claim lock."""
    factors = 'factors={truncate_at=["block1"]}'
    spec = study("vgg_truncation", factors, "search={lr={low=1e-4,high=1e-1}}", "trials_per_arm=6")
    studies, questions, claims = begin(spec, store), [], []
    for _ in range(6):
        locks = CountingLocks(store)  # another process's, which lives on
        claims.append(claim_next(spec, store, studies, locks))
        questions.append(locks.questions)
    assert [claim.trial.number for claim in claims] == list(range(6))
    assert questions == [1, 2, 2, 2, 2, 2]  # whether the running ones live, and the lock of the new one
    locks = CountingLocks(store)
    assert [record.state for record in trial_records(studies, locks)["block1"]] == ["running"] * 6
    assert locks.questions == 1
    claims[3].release()
    assert claim_next(spec, store, studies).trial.number == 3


def test_the_steps_of_a_trial_do_not_read_the_whole_study(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = study("vgg_truncation", *ONE_ARM, "trials_per_arm=1")
    studies = begin(spec, store)
    claim = claim_next(spec, store, studies)
    suggest(claim.trial, spec, claim.arm)
    epochs = [EpochMetrics(epoch, 1.0, 0.5, 2.0, 0.1 * epoch, 0.01, 1.0, timestamp=0) for epoch in (1, 2)]
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "get_trials", lambda *_, **__: pytest.fail("read the whole study"))
        report_epochs(claim, epochs[:1], spec.goal)
        report_epochs(claim, epochs, spec.goal)
        assert not has_ended(claim)
        end_trial(claim, "finished", 0.2, "", None)
        assert has_ended(claim)
    (trial,) = studies.tuning["block1"].trials
    assert (trial.value, trial.intermediate_values) == (0.2, {1: 0.1, 2: 0.2})


def test_records_of_ended_trials_are_kept_up_to_the_first_that_has_not_ended(store: Store) -> None:
    spec = study("vgg_truncation", *ONE_ARM, "trials_per_arm=3")
    studies, locks = begin(spec, store), open_locks(store.optuna_url)
    claims = [claim_next(spec, store, studies) for _ in range(3)]
    for claim in claims:
        suggest(claim.trial, spec, claim.arm)

    def states() -> list[tuple[str, float | None]]:
        return [(record.state, record.value) for record in trial_records(studies, locks)["block1"]]

    end(claims[1], "finished", 0.25)
    assert states() == [("running", None), ("finished", 0.25), ("running", None)]
    claims[2].release()
    end(claims[0], "finished", 0.5)
    assert states() == [("finished", 0.5), ("finished", 0.25), ("interrupted", None)]
    assert [record.number for record in studies.ended[f"{spec.name}/block1"]] == [0, 1]
    assert states()[:2] == [("finished", 0.5), ("finished", 0.25)]
