"""The source of this package as it runs: its digest."""

import hashlib
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def source_digest() -> str:
    """Return the SHA-256 of the package's Python files, with their paths, in hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(PACKAGE).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()
