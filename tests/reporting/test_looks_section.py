"""Looks as a store has them: what a report reads, what it records, what it says."""

import dataclasses
from pathlib import Path
from unittest.mock import Mock

import pytest
from mlflow import MlflowClient

from ablation.analysis.looks import count_looks, level_of, past_looks, this_look
from ablation.analysis.pooling import analyse_study
from ablation.analysis.results import StudyResult, read_results
from ablation.base.errors import InputError, StoreAway, StoreError
from ablation.base.text import Table
from ablation.reporting import looks_section
from ablation.reporting.looks_section import look_blocks, record_look
from ablation.reporting.report import analyse_looked_at, read_studies, write_report
from ablation.storage.store import Store, find_store
from ablation.tracking.client import open_client
from ablation.tracking.experiment import Tracker
from ablation.tracking.looks import log_look
from tests.fake_results import begin_fake_summary, fake_result, store_study

CUTS = {"truncate_at": ["block3", "block5"]}
ACCURACIES = {"block3": 0.80, "block5": 0.90}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return find_store(str(tmp_path / "store"))


def test_between_two_planned_looks_the_report_shows_the_last_complete_one(store: Store) -> None:
    planned = fake_result(CUTS, ACCURACIES, seeds=4, confirm={"seeds": 8, "looks": [3, 5, 8]})
    store_study(store, planned)
    result = look_at(store, "fake")
    assert result.look == 0
    assert [len(arm.confirmed) for arm in result.arms] == [3, 3]
    assert [[run.number for run in arm.held_back] for arm in result.arms] == [[3], [3]]
    assert result.missing_confirmations == 2 * (8 - 4)
    assert result.test_evaluations == 8
    assert level_of(result) < 0.001
    analysis = analyse_study(result)
    assert analysis.verdict[0].startswith("Preliminary: ")
    assert "Planned look 1 of 3, at 3 seeds: tested at" in " ".join(analysis.evidence)
    text = str(look_blocks(result))
    assert "The next look is at 3 seeds" in text  # nobody has decided yet
    assert "Held back: 2 confirmation runs beyond the last complete look" in text


def test_after_the_last_planned_look_no_other_is_announced() -> None:
    result = fake_result(CUTS, ACCURACIES, confirm={"seeds": 3, "looks": [3]})
    assert "The next look is at 3 seeds, the last one." in str(look_blocks(result))
    assert "next look" not in str(look_blocks(dataclasses.replace(result, look=0)))


def test_before_the_first_planned_look_nothing_is_shown(store: Store) -> None:
    store_study(store, fake_result(CUTS, ACCURACIES, seeds=4, confirm={"seeds": 8, "looks": [5, 8]}))
    result = look_at(store, "fake")
    assert (result.look, past_looks(result.tags)) == (None, [])
    assert [arm.confirmed for arm in result.arms] == [[], []]
    assert all(run.curves for arm in result.arms for run in arm.drawn_runs)  # those of the best trials
    verdict = analyse_study(result).verdict[0]
    assert "no answer is possible: the first planned look, at 5 seeds, is not complete" in verdict


def test_looks_without_a_plan_are_recorded_once_each(store: Store) -> None:
    store_study(store, fake_result(CUTS, ACCURACIES, seeds=3))
    first = look_at(store, "fake")
    (look,) = past_looks(first.tags)
    assert (look.seeds, look.trials, look.compare) == ((3, 3), (3, 3), "all")
    assert (level_of(first), look_blocks(first)) == (0.05, [])
    assert past_looks(look_at(store, "fake").tags) == [look]

    # Another process looked at other data at the same time, and each keeps the other's record.
    other = dataclasses.replace(first, arms=[dataclasses.replace(arm, trials=arm.trials[:2]) for arm in first.arms])
    second = this_look(other)
    assert second is not None
    tags = log_look(store, first.summary_run_id, second.name, second.stored())
    assert tags == log_look(store, first.summary_run_id, second.name, "another time")  # the first record stays
    assert [each.name for each in past_looks(tags)] == [look.name, second.name]
    assert level_of(dataclasses.replace(other, tags=tags)) == 0.0125
    again = look_at(store, "fake")
    assert level_of(again) == 0.05
    assert "first report" in str(look_blocks(again))

    client = MlflowClient(f"sqlite:///{store.root}/mlflow.db")
    assert len(client.search_runs([first.experiment_id], "tags.kind = 'summary'")) == 1


def test_looks_are_counted_without_writing_anything(store: Store) -> None:
    assert count_looks(store, "fake") == 0
    assert not store.root.exists()
    store_study(store, fake_result(CUTS, ACCURACIES, seeds=3))
    assert count_looks(store, "fake") == 0
    look_at(store, "fake")
    assert count_looks(store, "fake") == 1
    assert count_looks(store, "nobody") == 0


def test_a_store_that_may_not_be_written_is_read_without_a_record(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store_study(store, fake_result(CUTS, ACCURACIES, seeds=3))
    result = read_results(store, "fake")
    assert this_look(result) is not None

    def refusing(error: Exception) -> StudyResult:
        monkeypatch.setattr(looks_section, "log_look", Mock(side_effect=error))
        return record_look(store, result)

    for error in (
        StoreError("Permission denied", code="PERMISSION_DENIED"),
        StoreError("", "(psycopg.errors.InsufficientPrivilege) permission denied for table tags", "BAD_REQUEST"),
        StoreError("", "(psycopg.errors.ReadOnlySqlTransaction) cannot execute INSERT in a read-only transaction"),
        StoreError("", "(sqlite3.OperationalError) attempt to write a readonly database", "BAD_REQUEST"),
    ):
        assert refusing(error) is result
    for other in (
        StoreError("", '(psycopg.errors.UndefinedTable) relation "tags" does not exist', "BAD_REQUEST"),
        StoreAway("it does not answer"),
    ):
        with pytest.raises(type(other)):
            refusing(other)


def look_at(store: Store, name: str) -> StudyResult:
    """Read a study as for a report."""
    return record_look(store, read_results(store, name))


def looks_of(store: Store, name: str) -> list[str]:
    return [look.name for look in past_looks(read_results(store, name).tags)]


def test_what_is_not_shown_is_not_recorded(store: Store, tmp_path: Path) -> None:
    for name, epochs in (("a", 4), ("b", 5)):
        store_study(store, fake_result(CUTS, ACCURACIES, seeds=3, name=name, seed=epochs, epochs=epochs))
    for pooled in (read_studies, write_report):
        with pytest.raises(InputError, match="they differ in epochs"):
            pooled(store, ["a", "b"])
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        write_report(store, ["a"], tmp_path / "file" / "below")
    assert looks_of(store, "a") == looks_of(store, "b") == []
    analyse_looked_at(store, read_studies(store, ["a"]))
    assert (len(looks_of(store, "a")), looks_of(store, "b")) == (1, [])


def test_looks_outlive_the_summary_run_that_has_them(store: Store) -> None:
    """Somebody deletes it in MLflow: the report is refused until the study has another one, which knows them."""
    result = fake_result(CUTS, ACCURACIES, seeds=3)
    store_study(store, result)
    first = look_at(store, "fake")
    client = open_client(store)
    assert client is not None
    client.delete_run(first.summary_run_id)
    with pytest.raises(InputError, match="has no summary run: run the study once more"):
        look_at(store, "fake")
    fewer = [dataclasses.replace(arm, trials=arm.trials[:2]) for arm in first.arms]
    with pytest.raises(StoreError, match="deleted"):  # between its reading and the record
        record_look(store, dataclasses.replace(first, arms=fewer))
    tracker = Tracker(client, store, "fake", "?")
    tracker.find_or_create("summary", "fake summary", {"study": "fake", "kind": "summary"})  # as older versions did
    begin_fake_summary(store, result)
    again = look_at(store, "fake")
    assert again.summary_run_id != first.summary_run_id
    assert [look.name for look in past_looks(again.tags)] == [look.name for look in past_looks(first.tags)]
    other = dataclasses.replace(again, arms=fewer)
    assert level_of(other) == 0.0125
    recorded = record_look(store, other)
    assert len(past_looks(recorded.tags)) == 2
    assert [level_of(recorded), level_of(again)] == [0.0125, 0.05]


def test_what_tests_nothing_is_not_recorded(store: Store) -> None:
    store_study(store, fake_result(CUTS, ACCURACIES, seeds=2))
    assert past_looks(look_at(store, "fake").tags) == []


def test_a_look_whose_record_is_damaged_has_no_date(store: Store) -> None:
    store_study(store, fake_result(CUTS, ACCURACIES, seeds=3))
    first = look_at(store, "fake")
    (name,) = [tag for tag in first.tags if tag.startswith("ablation.look.")]
    damaged = dataclasses.replace(first, tags={**first.tags, "ablation.look.edited": "{"})
    table, _ = look_blocks(damaged)
    assert isinstance(table, Table)
    assert [row[:4] for row in table.rows] == [
        ["1", "-", "-", "-"],
        ["2", f"{past_looks({name: first.tags[name]})[0].time:%Y-%m-%d %H:%M} UTC", "3", "3"],
    ]
