from pathlib import Path

import pytest

from ablation.storage.store import Store, find_store
from ablation.tracking.experiment import Tracker
from tests.studies import new_tracker


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return find_store(str(tmp_path / "s"))


@pytest.fixture
def tracker(store: Store) -> Tracker:
    """The experiment of a study called `fake`, without a run."""
    return new_tracker(store, "fake")
