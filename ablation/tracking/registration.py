"""A study's registration, sealed before its first trial: a file of its summary run, and a tag with its digest."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ablation.base.errors import InputError
from ablation.storage.store import Store
from ablation.tracking.reading import HiddenFile, RunRecord, run_file
from ablation.tracking.summary_run import SummaryRun

REGISTRATION_FILE = "registration.json"
REGISTRATION_TAG = "ablation.registration"  # the digest of that file, and when it was written; set last
CODE_TAG = "ablation.code"  # with the digest of ablation's source behind it: the version that worked on the study


@dataclass(frozen=True)
class Registration:
    """What was sealed before the first trial.

    Attributes:
        time: when, in UTC.
        digest: the SHA-256 of the file.
        content: the file's; None if it is lost, or is another one than was sealed.
        code: the source digests with which the study was worked on, and their versions.
    """

    time: datetime
    digest: str
    content: dict[str, Any] | None
    code: Mapping[str, str]


def registration_bytes(content: Mapping[str, Any]) -> bytes:
    """Return the file of a registration: the same content gives the same bytes, and so the same digest."""
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False).encode()


def content_digest(content: bytes) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def log_registration(summary: SummaryRun, content: Mapping[str, Any]) -> str:
    """Seal a registration now; return its digest.

    The tag with the digest is set last: a registration whose process died before is made again.

    Raises:
        StoreAway: the tracking server does not answer.
    """
    file = registration_bytes(content)
    sealed = {"sha256": content_digest(file), "time": datetime.now(UTC).isoformat(timespec="seconds")}
    summary.log_file(REGISTRATION_FILE, file)
    summary.set_tags({REGISTRATION_TAG: json.dumps(sealed)})
    return sealed["sha256"]


def read_registration(store: Store, summary: RunRecord) -> Registration | None:
    """Return the registration of a study; None if it has none.

    Raises:
        HiddenFile: this user may not read it.
        StoreAway: the tracking server does not answer.
    """
    try:
        sealed = json.loads(summary.tags[REGISTRATION_TAG])
        digest, time = str(sealed["sha256"]), datetime.fromisoformat(sealed["time"])
    except (KeyError, ValueError, TypeError):
        return None
    content = None
    try:
        with run_file(store, summary, REGISTRATION_FILE) as path:
            file = path.read_bytes()
        content = json.loads(file) if content_digest(file) == digest else None
    except HiddenFile:
        raise
    except InputError:
        pass
    prefix = f"{CODE_TAG}."
    code = {name.removeprefix(prefix): tag for name, tag in summary.tags.items() if name.startswith(prefix)}
    return Registration(time, digest, content, code)
