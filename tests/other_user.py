"""What a user without rights sees; only root can become one."""

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NOBODY = 65534

needs_root = pytest.mark.skipif(sys.platform == "win32" or os.getuid() != 0, reason="only root can become another user")


def as_nobody(function: Callable[[], Any]) -> Any:
    """Call a function in a forked process of the user `nobody`; return its result, which JSON can store.

    A new interpreter may not be where nobody can start it. For the same reason, call the function as root first if it
    imports anything.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            answer = {"result": function()}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        with os.fdopen(write_end, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        answer = json.load(pipe)
    os.waitpid(pid, 0)
    assert "error" not in answer, answer["error"]
    return answer["result"]


@contextmanager
def folder_for_all() -> Iterator[Path]:
    """Make a folder that every user can read; pytest's own folder cannot be entered by others."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
