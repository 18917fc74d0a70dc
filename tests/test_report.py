import pytest

from ablation.report import best_of, count_states, format_params, result_table, standard_error, status_table
from ablation.search import TrialRecord


def record(arm: str, number: int, state: str, value: float | None = None, reason: str = "") -> TrialRecord:
    return TrialRecord(arm, number, state, value, {"lr": 0.012345, "head_width": 8}, 2, reason, f"run-{arm}-{number}")


TRIALS = {
    "a": [record("a", 0, "finished", 0.5), record("a", 1, "finished", 0.75), record("a", 2, "finished", 0.75)],
    "b": [record("b", 0, "failed", reason="it diverged"), record("b", 1, "running")],
}
LEVELS = {"a": {"cut": "block1"}, "b": {"cut": "block2"}}


def test_the_best_is_the_first_of_equals() -> None:
    assert best_of(TRIALS["a"]).number == 1
    assert best_of(TRIALS["b"]) is None


def test_result_table() -> None:
    table = result_table("Which?", LEVELS, TRIALS, {"a": [{"arm": {}, "val_accuracy": 0.8456}], "b": []}, 3, 100)
    assert table.columns == ["cut", "best val. accuracy", "its parameters", "trials", "epochs trained", "published"]
    assert table.rows == [
        ["block1", "0.7500", "head_width 8, lr 0.0123", "3 finished", "6", "val_accuracy 0.8456"],
        ["block2", "-", "-", "1 failed, 1 running", "4", "-"],
    ]
    assert table.notes[0] == "Not complete: 1 trials are running."
    assert "n = 100 images" in table.notes[1]
    assert "no confirmation run has measured test accuracy" in table.notes[-1]
    assert table.markdown().splitlines()[:4] == [
        "Which?", "", "| cut | best val. accuracy | its parameters | trials | epochs trained | published |",
        "| --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip


def test_status_table() -> None:
    table = status_table("small", TRIALS, 3)
    assert table.title == "small: 4 of 6 trials ended (3 per arm)"
    assert table.rows == [["a", "3 finished", "0.7500", "run-a-1"], ["b", "1 failed, 1 running", "-", "-"]]
    assert table.notes == ["b #0 failed: it diverged"]


def test_standard_error_by_hand() -> None:
    # 75 of 100 right: (77 / 104) * (27 / 104) / 104, its root
    assert standard_error(0.75, 100) == pytest.approx(0.042991, abs=1e-6)
    assert standard_error(1.0, 6) > 0.1  # six right of six prove little


def test_formats() -> None:
    assert count_states([]) == "none"
    assert format_params({"b": 0.000123456, "a": "x"}) == "a x, b 0.000123"
