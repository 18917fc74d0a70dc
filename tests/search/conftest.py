from pathlib import Path

import pytest

from ablation.storage.store import Store, find_store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return find_store(str(tmp_path / "store"))
