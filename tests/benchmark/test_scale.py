"""A simulated study: every trial is claimed once, by one process or two, and its costs are measured."""

from pathlib import Path

import pytest

from ablation.benchmark.scale import scale
from ablation.benchmark.tables import scale_table
from ablation.search.studies import open_storage, stored_studies
from ablation.storage.store import find_store
from ablation.tracking.reading import read_study


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_simulated_study_is_measured(tmp_path: Path, workers: int) -> None:
    store = find_store(str(tmp_path / "s"))
    measured = scale(store, 10, workers)
    assert (measured["trials"], measured["workers"], measured["connections"]) == (10, workers, None)
    assert (measured["processor_seconds"] is None) == (workers > 1)
    for name in ("claims_per_second", "first_tenth_seconds", "last_tenth_seconds", "status_seconds", "results_seconds"):
        assert measured[name] > 0, name
    assert measured["optuna_bytes"] == (store.root / "optuna.db").stat().st_size
    storage = open_storage(store)
    assert storage is not None
    (study,) = stored_studies(storage)
    runs = read_study(store, study).runs
    assert sorted((run.tags["arm"], run.tags["trial"]) for run in runs) == [
        (f"block{block}", str(number)) for block in range(1, 6) for number in range(2)
    ]
    assert {run.status for run in runs} == {"FINISHED"}
    rows = dict(scale_table(measured).rows)
    assert ("the processor's time for a trial (s)" in rows) == (workers == 1)
    assert rows["--status (s)"] == f"{measured['status_seconds']:.2f}"
    assert "most connections to PostgreSQL" not in rows
