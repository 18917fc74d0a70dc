"""Calls that wait on disk until a server answers again: in order, one file each."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation.base.errors import StoreAway
from ablation.base.files import write_atomically

OF_ANOTHER = "another process delivers these results"


@dataclass(frozen=True)
class Entry:
    """A call with its arguments (which JSON can store) and, for some calls, a file to upload."""

    path: Path
    call: str
    arguments: dict[str, Any]
    file: Path | None


class Outbox:
    """The calls that wait in a folder. One process at a time may use it; an empty outbox has no files.

    A process that was frozen, or lost its lock, may still use it beside its successor; it then ends with StoreAway.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, call: str, arguments: dict[str, Any], file: Path | None = None) -> None:
        """Store a call and a copy of its file, so that a crash at any moment leaves all of it or nothing.

        Raises:
            StoreError: the disk is full, or cannot be written.
        """
        number = max((int(path.stem) for path in self.folder.glob("*.json")), default=0) + 1
        entry = self.folder / f"{number:06}.json"
        if file is not None:
            write_atomically(entry.with_suffix("") / file.name, file.read_bytes())
        content = {"call": call, "arguments": arguments, "file": file.name if file else None}
        write_atomically(entry, json.dumps(content).encode())

    def entries(self) -> Iterator[Entry]:
        """Yield the calls that wait, the oldest first.

        Raises:
            StoreAway: another process delivers them.
        """
        for path in sorted(self.folder.glob("*.json")):
            try:
                content = json.loads(path.read_bytes())
            except FileNotFoundError:
                raise StoreAway(OF_ANOTHER) from None
            file = path.with_suffix("") / content["file"] if content["file"] else None
            yield Entry(path, content["call"], content["arguments"], file)

    def remove(self, entry: Entry) -> None:
        """Delete a call that was delivered."""
        entry.path.unlink(missing_ok=True)
        if entry.file is not None:
            shutil.rmtree(entry.file.parent, ignore_errors=True)

    def clear(self) -> None:
        """Delete all calls."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
