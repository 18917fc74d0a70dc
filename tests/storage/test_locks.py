import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ablation.base.errors import StoreError
from ablation.storage.locks import CLAIM_LOCK, FileLocks, Locks, PostgresLocks, open_locks, study_lock
from tests.other_user import as_nobody, folder_for_all, needs_root
from tests.servers import PostgreSQL

TRIAL = "checkpoints/0123/4"


@pytest.fixture(params=["files", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "files":
        return f"sqlite:///{tmp_path}/optuna.db"
    postgresql: PostgreSQL = request.getfixturevalue("postgresql")
    return postgresql.new_database()


def test_one_holder_at_a_time(address: str) -> None:
    mine, theirs = open_locks(address), open_locks(address)
    assert not mine.are_taken([TRIAL])[0]
    assert mine.try_acquire(TRIAL)
    assert mine.is_held(TRIAL)
    assert not theirs.is_held(TRIAL)
    assert mine.are_taken([TRIAL])[0]
    assert theirs.are_taken([TRIAL])[0]
    assert not theirs.try_acquire(TRIAL)
    assert theirs.try_acquire(TRIAL + "5")
    mine.release(TRIAL)
    assert not mine.is_held(TRIAL)
    assert not theirs.are_taken([TRIAL])[0]
    assert theirs.try_acquire(TRIAL)
    mine.release(TRIAL)  # not ours: nothing happens
    assert theirs.is_held(TRIAL)


def test_several_locks_are_looked_at_together(address: str) -> None:
    mine, theirs = open_locks(address), open_locks(address)
    names = [f"checkpoints/0123/{number}" for number in range(4)]
    assert mine.are_taken([]) == []
    assert mine.are_taken(names) == [False] * 4
    assert mine.try_acquire(names[0])
    assert theirs.try_acquire(names[2])
    with theirs.exclusive():
        pass
    assert mine.are_taken(names) == [True, False, True, False]


def test_exclusive_waits_and_may_be_nested(address: str) -> None:
    mine, theirs = open_locks(address), open_locks(address)
    order = []
    about_to_wait = threading.Event()

    def other() -> None:
        about_to_wait.set()
        with theirs.exclusive():
            order.append("theirs")

    with mine.exclusive():
        with mine.exclusive():
            thread = threading.Thread(target=other)
            thread.start()
            about_to_wait.wait()
            time.sleep(0.3)
        time.sleep(0.3)
        assert mine.is_held(CLAIM_LOCK)
        order.append("mine")
    thread.join()
    assert order == ["mine", "theirs"]
    assert not mine.is_held(CLAIM_LOCK)


def test_a_study_s_lock_is_its_own(address: str) -> None:
    """Also where the study is called like the claim lock."""
    mine, theirs = open_locks(address), open_locks(address)
    with mine.exclusive(study_lock("claim")), mine.exclusive(study_lock("claim")):
        assert mine.is_held(study_lock("claim"))
        assert not mine.is_held(CLAIM_LOCK)
        with theirs.exclusive(), theirs.exclusive(study_lock("other")):
            assert theirs.is_held(CLAIM_LOCK)
            assert not theirs.are_taken([TRIAL])[0]
        with mine.exclusive():
            assert mine.is_held(CLAIM_LOCK)
        waiting = threading.Thread(target=lambda: theirs.exclusive(study_lock("claim")).__enter__(), daemon=True)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(10)
    assert not waiting.is_alive()
    assert not mine.is_held(study_lock("claim"))


@needs_root
def test_a_user_who_may_only_read() -> None:
    with folder_for_all() as folder:
        locks = open_locks(f"sqlite:///{folder}/optuna.db")
        names = [f"checkpoints/0123/{number}" for number in range(4)]
        for name in names[:3]:
            with locks.exclusive():
                assert locks.try_acquire(name)
        locks.release(names[1])
        (folder / names[2] / "lock").chmod(0o600)
        theirs = open_locks(f"sqlite:///{folder}/optuna.db")
        assert as_nobody(lambda: theirs.are_taken(names)) == [True, False, None, False]
        assert locks.try_acquire(names[1])

        def claim() -> list[bool | None]:
            with theirs.exclusive():
                return theirs.are_taken(names)

        (folder / "claim.lock").chmod(0o666)
        assert as_nobody(claim) == [None, None, None, False]  # and does not wait for itself


def test_locks_die_with_their_process(address: str) -> None:
    code = (
        "import sys, time; from ablation.storage.locks import open_locks; locks = open_locks(sys.argv[1]);"
        f"assert locks.try_acquire({TRIAL!r}); print('got it', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, address], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "got it\n"
    mine = open_locks(address)
    assert mine.are_taken([TRIAL])[0]
    assert not mine.try_acquire(TRIAL)
    other.kill()
    other.wait()
    deadline = time.monotonic() + 10
    while not mine.try_acquire(TRIAL):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lost_connection_loses_the_locks(postgresql: PostgreSQL) -> None:
    address = postgresql.new_database()
    mine, theirs = PostgresLocks(address), PostgresLocks(address)
    assert mine.try_acquire(TRIAL)
    terminate(postgresql)
    assert not mine.is_held(TRIAL)
    assert theirs.try_acquire(TRIAL)
    assert not mine.is_held(TRIAL)
    assert not mine.try_acquire(TRIAL)
    mine.release(TRIAL)
    assert theirs.is_held(TRIAL)


def test_all_are_released_at_once(address: str) -> None:
    mine, theirs = open_locks(address), open_locks(address)
    for name in (TRIAL, TRIAL + "5"):
        assert mine.try_acquire(name)
    mine.release_all()
    for name in (TRIAL, TRIAL + "5"):
        assert theirs.try_acquire(name)


def test_a_lost_exclusive_lock_hides_no_error(postgresql: PostgreSQL) -> None:
    address = postgresql.new_database()
    mine, theirs = PostgresLocks(address), PostgresLocks(address)

    def lose_and_fail() -> None:
        with mine.exclusive():
            assert mine.is_held(CLAIM_LOCK)
            terminate(postgresql)
            assert not mine.is_held(CLAIM_LOCK)
            with theirs.exclusive():
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        lose_and_fail()
    with theirs.exclusive():
        assert not mine.is_held(CLAIM_LOCK)
    with mine.exclusive():
        assert mine.is_held(CLAIM_LOCK)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_in_the_middle_of_a_wait(postgresql: PostgreSQL, number: int) -> None:
    """Ctrl-C while another has the exclusive lock: it comes through, and the locks can be used again."""
    address = postgresql.new_database()
    mine, theirs = PostgresLocks(address), PostgresLocks(address)
    assert mine.try_acquire(TRIAL)
    handler = signal.signal(number, signal.default_int_handler)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), number))
    with theirs.exclusive():
        timer.start()
        with pytest.raises(KeyboardInterrupt), mine.exclusive():
            pass
    signal.signal(number, handler)
    assert not mine.is_held(TRIAL)
    assert mine.try_acquire(TRIAL)
    with mine.exclusive():
        pass


def terminate(postgresql: PostgreSQL) -> None:
    """Break the connections that hold locks."""
    postgresql.query("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    locks: Locks = FileLocks(tmp_path / "file" / "store")
    with pytest.raises(StoreError, match="file/store cannot be written"), locks.exclusive():
        pass
    with pytest.raises(StoreError, match="cannot be written"):
        locks.try_acquire(TRIAL)
    assert not locks.are_taken([TRIAL])[0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
