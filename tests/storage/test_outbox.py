from pathlib import Path

import pytest

from ablation.base.errors import StoreAway
from ablation.storage import outbox
from ablation.storage.outbox import Outbox


def test_calls_come_out_in_order_with_their_files(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox")
    assert list(box.entries()) == []
    assert not box.folder.exists()
    (tmp_path / "best.bin").write_bytes(b"weights")
    for number in range(12):  # more than one digit
        box.add("log", {"number": number, "text": "ü"})
    box.add("result", {}, tmp_path / "best.bin")
    (tmp_path / "best.bin").write_bytes(b"changed later")

    found = list(Outbox(tmp_path / "outbox").entries())
    assert [(entry.call, entry.arguments) for entry in found[:-1]] == [
        ("log", {"number": number, "text": "ü"}) for number in range(12)
    ]
    assert found[-1].file is not None
    assert (found[-1].file.name, found[-1].file.read_bytes()) == ("best.bin", b"weights")
    for entry in (*found[:3], found[-1]):
        box.remove(entry)
    box.add("later", {})
    assert [entry.arguments.get("number") for entry in box.entries()] == [*range(3, 12), None]
    box.clear()
    assert list(box.entries()) == []
    box.clear()


def test_entries_that_another_process_delivers_are_left_to_it(tmp_path: Path) -> None:
    """A frozen process that comes back may read an outbox beside its successor."""
    box = Outbox(tmp_path / "outbox")
    box.add("one", {})
    box.add("two", {})
    mine = box.entries()
    first = next(mine)
    Outbox(tmp_path / "outbox").clear()
    box.remove(first)
    with pytest.raises(StoreAway, match="another process delivers these results"):
        next(mine)


def test_a_crash_leaves_all_of_an_entry_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Outbox(tmp_path / "outbox")
    (tmp_path / "best.bin").write_bytes(b"weights")
    writes = []
    real = outbox.write_atomically

    def crash(path: Path, content: bytes) -> None:
        writes.append(path.name)
        if len(writes) == 2:
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(outbox, "write_atomically", crash)
    with pytest.raises(KeyboardInterrupt):
        box.add("result", {}, tmp_path / "best.bin")
    assert writes == ["best.bin", "000001.json"]  # the entry last
    assert list(box.entries()) == []
