import shutil
from pathlib import Path

import pytest

from ablation.base.disk_cache import KEPT_FREE, files_to_evict


def test_the_least_recently_used_files_go_until_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, middle, new = (tmp_path / name for name in ("old", "middle", "new"))
    for path in (old, middle, new):
        path.write_bytes(bytes(100))
    last_used = {new: 3.0, old: 1.0, middle: 2.0}

    def evicted(needed: int, limit: int) -> list[Path] | None:
        return files_to_evict(tmp_path, last_used, needed, limit)

    assert evicted(100, 400) == []
    assert evicted(101, 400) == [old]
    assert evicted(300, 400) == [old, middle]
    assert evicted(400, 400) == [old, middle, new]
    assert evicted(401, 400) is None
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, KEPT_FREE + 50))
    assert evicted(50, 10**6) == []
    assert evicted(151, 10**6) == [old, middle]
    assert evicted(351, 10**6) is None
