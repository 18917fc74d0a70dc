"""The Optuna studies of a study: opened, created, checked for identity."""

import contextlib
import json
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import optuna
import pytest
import sqlalchemy

from ablation.base.errors import InputError, StoreError
from ablation.search import identity
from ablation.search.identity import changed_declarations, check_identity, differences
from ablation.search.status import trial_records
from ablation.search.studies import (
    arm_key,
    create_arms,
    experiment_key,
    has_begun,
    has_trials,
    open_storage,
    settle_precision,
    stored_content,
    study_arms,
    trial_ends,
)
from ablation.spec.reading import load_study
from ablation.storage.locks import open_locks
from ablation.storage.store import Store
from tests.search.steps import CONTENT, STUDIES, TWO_ARMS, claim_all, study

PAGE = 4096  # bytes of a page of SQLite


def test_differences() -> None:
    old = {"a": 1, "b": {"c": [1, 2], "d": None}}
    assert differences(old, json.loads(json.dumps(old))) == []
    assert differences(old, {"a": 1, "b": {"c": [2, 1]}, "e": 3}) == [("b.c", [1, 2], [2, 1]), ("e", None, 3)]
    new = {"z": 0, "b": 2, "question": "?"}
    assert [field for field, *_ in differences({"question": "!", "b": 1}, new)] == ["question", "b", "z"]


def test_what_planned_looks_decide_by_is_declared() -> None:
    confirm = {"looks": [3, 6], "seeds": 6, "equivalence": 0.5, "champion": "best"}
    other = {"confirm": {**confirm, "equivalence": 20.0, "champion": "cheapest"}}
    (text,) = changed_declarations({"confirm": confirm}, other)
    assert text.startswith("confirm.equivalence (was 0.5, is 20.0: it is declared before the first")


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


@pytest.mark.parametrize(
    ("theirs", "refusal"),
    [
        ("epochs=11", None),
        ("epochs=12", r"epochs \(was 12, is 11\)"),
        ("seed=3", r"epochs \(was 10, is 11\); seed \(was 3"),
    ],
)
def test_a_study_that_another_process_corrects_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch, theirs: str, refusal: str | None
) -> None:
    """Both were started with the corrected file; the other one begins between two questions of this one."""
    storage, mine = open_storage(store, create=True), study("vgg_truncation", "epochs=11")
    begun = study("vgg_truncation")
    create_arms(storage, begun, begun.content(), "an experiment")

    def has_begun(*arguments: Any) -> bool:
        monkeypatch.undo()
        other = study("vgg_truncation", theirs)
        for arm in create_arms(storage, other, other.content(), "an experiment").tuning.values():
            arm.ask()
        return identity.has_begun(*arguments)

    monkeypatch.setattr(identity, "has_begun", has_begun)
    with pytest.raises(InputError, match=refusal) if refusal else contextlib.nullcontext():
        check_identity(storage, mine.name, mine.content())
    assert has_trials(storage, mine.name)


def test_an_arm_that_is_deleted_meanwhile_has_not_begun(store: Store) -> None:
    storage, spec = open_storage(store, create=True), study("vgg_truncation", *TWO_ARMS)
    first, second = create_arms(storage, spec, CONTENT, "an experiment").tuning.values()
    second.ask()
    optuna.delete_study(study_name=first.study_name, storage=storage)
    assert [has_begun(storage, arm.study_name) for arm in (first, second)] == [False, True]


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


def test_a_store_that_is_no_database_is_refused(store: Store) -> None:
    (store.root / "optuna.db").write_text("not a database, not a database, not a database")
    with pytest.raises(
        InputError, match=r"optuna.db: cannot be opened as Optuna's database \(file is not a database\)"
    ):
        open_storage(store, create=True)


@pytest.mark.parametrize("kind", ["noise", "zeros"])
def test_every_overwritten_page_is_refused_in_one_line(store: Store, kind: str) -> None:
    """Whatever part of the database it is: never a traceback, and never another content."""
    claim_all(study("vgg_truncation", *TWO_ARMS), store)
    database = store.root / "optuna.db"
    content = database.read_bytes()
    noise = random.Random(0)
    for page in range(0, len(content), PAGE):
        overwritten = noise.randbytes(PAGE) if kind == "noise" else bytes(PAGE)
        database.write_bytes(content[:page] + overwritten + content[page + PAGE :])
        with pytest.raises(InputError, match="optuna.db: cannot be opened as Optuna's database"):
            open_storage(store)


@pytest.mark.parametrize("seed", range(3))
def test_single_bytes_that_were_overwritten(store: Store, seed: int) -> None:
    """They may hit what nobody reads; else the study is refused in one line."""
    spec = study("vgg_truncation", *TWO_ARMS)
    claim_all(spec, store)
    database = store.root / "optuna.db"
    content, noise = bytearray(database.read_bytes()), random.Random(seed)
    for _ in range(20):
        content[noise.randrange(len(content))] = noise.randrange(256)
    database.write_bytes(content)
    with contextlib.suppress(InputError, StoreError):
        storage = open_storage(store)
        if storage is not None:
            check_identity(storage, spec.name, CONTENT, is_begun=True)
            arms = study_arms(storage, spec.name)
            trial_records(arms, open_locks(store.optuna_url))
            trial_ends(arms)


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """Yield the SQL that any database is asked in the test."""
    asked: list[str] = []

    def note(*arguments: Any) -> None:
        asked.append(arguments[2])

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", note)
    yield asked
    sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", note)


def test_a_start_asks_as_little_of_many_arms_as_of_few(store: Store, statements: list[str]) -> None:
    """Half of it happens while no worker can claim a trial."""
    blocks = [f"block{number}" for number in range(1, 6)]
    counts: dict[int, list[int]] = {}
    for arms in (1, 5):
        spec = study("vgg_truncation", f"factors={{truncate_at={blocks[:arms]}}}".replace("'", '"'), "confirm.seeds=1")
        spec = spec.model_copy(update={"name": f"of{arms}"})
        content = {"made": "by a test"}
        studies = create_arms(open_storage(store, create=True), spec, content, "an experiment")
        settle_precision(open_storage(store), spec.name, studies, "float32")
        studies.tuning["block1"].ask()
        storage = open_storage(store)
        counts[arms] = []
        for step in (
            partial(stored_content, storage, spec.name),
            partial(check_identity, storage, spec.name, content, is_begun=True),
            partial(has_trials, storage, spec.name),
            partial(experiment_key, storage, spec.name),
            partial(create_arms, storage, spec, content, "an experiment"),
            partial(settle_precision, storage, spec.name, studies, "float32"),
        ):
            statements.clear()
            step()
            counts[arms].append(len(statements))
    *few, created, settled = counts[1]
    *many, created_again, settled_again = counts[5]
    assert (many, settled_again) == (few, settled)
    assert (few[:2], settled) == ([4, 4], 4)
    assert (
        created_again - created <= 2 * 4 * 3
    )  # the Optuna studies of four arms: one's number, and its direction twice


def test_arms_that_another_process_makes_at_the_same_time_are_used(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection may have lost the lock: they have one key, whoever made them."""
    spec = study("vgg_truncation", *TWO_ARMS)
    storage = open_storage(store, create=True)
    other = create_arms(storage, spec, CONTENT, "an experiment")
    with monkeypatch.context() as patch:
        patch.setattr(type(storage), "get_all_studies", lambda _: [])  # as it was a moment before
        mine = create_arms(storage, spec, CONTENT, "an experiment")
    assert trial_ends(mine) == {}
    assert [arm_key(arm) for arm in mine.all()] == [arm_key(arm) for arm in other.all()]
    assert {arm.metric_names[0] for arm in mine.all() if arm.metric_names} == {spec.goal.val_metric}


def test_an_arm_that_lost_a_part_is_completed(store: Store) -> None:
    spec = study("vgg_truncation", *TWO_ARMS)
    storage = open_storage(store, create=True)
    for arm in ("block1", "block2"):
        made = optuna.create_study(storage=storage, study_name=f"{spec.name}/{arm}", direction="maximize")
        made.set_user_attr("content", CONTENT)
        made.set_user_attr("key", arm)
    found = create_arms(storage, spec, CONTENT, "an experiment").tuning
    for name, arm in found.items():
        assert arm.metric_names == [spec.goal.val_metric]
        assert (arm_key(arm), arm.user_attrs["experiment"]) == (name, "an experiment")
    assert create_arms(storage, spec, CONTENT, "another").tuning["block1"].user_attrs["experiment"] == "another"
