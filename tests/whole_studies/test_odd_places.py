"""Studies in odd places: clocks that jump, store paths with signs that addresses and shells know."""

import os
import re
import time
from pathlib import Path

import pytest
import time_machine

from ablation.running import trial
from ablation.storage.locks import open_locks
from ablation.storage.store import find_store
from ablation.study import read_status
from tests.outcomes import outcome
from tests.studies import ONE_ARM, Command, patched_train, runs

SMALL = (*ONE_ARM, "--trials", "2", "--epochs", "3", "--set", "confirm.seeds=1")
HOUR = 3600.0


def addresses(store: Path) -> tuple[str, str]:
    return f"sqlite:///{store.absolute()}/mlflow.db", f"sqlite:///{store.absolute()}/optuna.db"


def test_a_clock_that_jumps(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An hour forward and back, and to 1970 and back, at every epoch: the study equals another one.

    No worker loses its trial, and no time is shown that is negative or absurd. The clock that does not jump, by which
    pauses and time-outs go, is left alone.
    """
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)
    assert command(study_file, *SMALL, "--store", "calm") == 0
    capsys.readouterr()
    now = time.time()
    offsets = [HOUR, -HOUR, 10 - now, HOUR, 0, 10 - now, -HOUR, 10 - now, 0]
    store = find_store("jumps")
    locks = open_locks(store.optuna_url)
    seen: list[tuple[int, bool | None]] = []  # running trials as --status has them, and whether another may claim it

    def jump(number: int, epoch: int) -> None:
        clock.move_to(now + offsets.pop(0))
        (lock,) = (store.work_root / "checkpoints").glob("*/*/lock")
        seen.append(
            (len(read_status("small", store)[1]), locks.are_taken([str(lock.parent.relative_to(store.work_root))])[0])
        )

    patched_train(monkeypatch, jump)
    with time_machine.travel(now) as clock:
        assert command(study_file, *SMALL, "--store", "jumps") == 0
        assert offsets == []
        output = capsys.readouterr().out
        assert command("small", "--store", "jumps", "--status") == 0
    assert seen == [(1, True)] * 9
    assert outcome(*addresses(Path("jumps"))) == outcome(*addresses(Path("calm")))
    assert not re.search(r"\d (h|min)\b.*left|-\d+(\.\d)? s", output)  # of a study that takes seconds
    assert not re.search(r"\d (h|min)\b|-\d", capsys.readouterr().out.replace("- ", ""))
    for kind in ("trial", "confirmation", "summary"):
        for run in runs(Path("jumps"), "small", kind):
            assert run.info.end_time >= run.info.start_time


@pytest.mark.skipif(os.name == "nt", reason="names that Windows refuses")
def test_store_paths_with_signs(command: Command, study_file: Path) -> None:
    """All that may stand in a path and that addresses and shells know; % and ? would end an address early."""
    store = Path("a # b & c; $HOME 'd' \"e\" `f` \\g é (h) [i] {j} }k{ ~ + = @ : * !")
    assert command(study_file, *SMALL, "--store", store) == 0
    assert command(study_file, *SMALL, "--store", store) == 0  # resumes
    assert {path.name for path in store.iterdir()} >= {"optuna.db", "mlflow.db", "artifacts", "reports"}
    assert [path.name for path in Path().iterdir()] == [store.name]
    assert len(runs(store, "small")) == 2
    for sign in "%?":
        assert command(study_file, *SMALL, "--store", f"x{sign}y") == 2
    assert not list(Path().glob("x*"))
