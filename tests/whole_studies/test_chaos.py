"""Three workers on servers that fail, are restarted and break, while workers are killed and frozen: nothing is lost.

`CHAOS_SEED` and `CHAOS_SECONDS` in the environment choose another disorder, and how long it lasts.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.disks import small_disk
from tests.outcomes import outcome
from tests.servers import HttpProxy, PostgreSQL, Server, TcpProxy, proxied
from tests.studies import REPOSITORY, Command
from tests.victims import Victim, Victims

Worker = subprocess.Popen[bytes] | Victim
WORKERS = 3
DISK = Path("mlruns")  # where the workers keep checkpoints, features and results until they are delivered
LONGEST_REST = 900  # seconds in which the study has to end once it is left alone


def output() -> str:
    """Return what all workers have printed."""
    return "".join(path.read_text() for path in Path().glob("steps.*"))


class Chaos:
    """Workers and servers, and all that can be done to them."""

    def __init__(self, start: Callable[[], Worker], chance: random.Random):
        self.start = start
        self.chance = chance
        self.workers = [start() for _ in range(WORKERS)]
        self.done: Counter[str] = Counter()

    def replace_the_dead(self) -> None:
        """Start a worker for each that has ended, as a scheduler does."""
        self.workers = [worker if worker.poll() is None else self.start() for worker in self.workers]

    def kill(self) -> None:
        self.chance.choice(self.workers).kill()

    def pause(self) -> None:
        self.chance.choice(self.workers).terminate()

    def freeze(self) -> None:
        worker = self.chance.choice(self.workers)
        if worker.poll() is None:
            worker.send_signal(signal.SIGSTOP)
            time.sleep(self.chance.uniform(1, 8))
            worker.send_signal(signal.SIGCONT)

    def rest(self) -> None:
        """Let the workers end the study, each with exit status 0."""
        deadline = time.monotonic() + LONGEST_REST
        while any(worker.poll() != 0 for worker in self.workers):
            assert time.monotonic() < deadline, output()[-5000:]
            self.workers = [worker if worker.poll() in (None, 0) else self.start() for worker in self.workers]
            time.sleep(0.5)

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()


def disturb(chaos: Chaos, servers: tuple[Server, PostgreSQL, HttpProxy, TcpProxy], seconds: float, seed: int) -> None:
    """Do what chance says, one thing after another, for some time."""
    server, postgresql, web, database = servers

    def restart_mlflow() -> None:
        server.stop()
        time.sleep(chaos.chance.uniform(0, 3))
        server.start()

    def restart_postgresql() -> None:
        postgresql.stop()
        time.sleep(chaos.chance.uniform(0, 3))
        postgresql.start()

    def slow_down() -> None:
        database.delay = 0.02
        time.sleep(3)
        database.delay = 0.0

    def fill_the_disk() -> None:
        filler = DISK / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**16))
        time.sleep(chaos.chance.uniform(1, 4))
        filler.unlink()

    actions = {
        "kill": chaos.kill, "pause": chaos.pause, "freeze": chaos.freeze, "reset": database.reset_all,
        "restart MLflow": restart_mlflow, "restart PostgreSQL": restart_postgresql, "delay": slow_down,
    }  # fmt: skip
    if DISK.is_mount():
        actions["full disk"] = fill_the_disk
    web.fail_at_random(0.05, seed, ("reset", "503", "lost", "empty", "cut", "late"))
    database.fail_at_random(0.002, seed)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(chaos.chance.uniform(1, 5))
        name = chaos.chance.choice(list(actions))
        actions[name]()
        chaos.done[name] += 1
        chaos.replace_the_dead()
    web.fault, database.breaks = (lambda method, path: None), lambda: False


ONE_CUT = ["--set", "fixed.truncate_at=block1", "--set", 'factors={strategy=["feature_extraction", "fine_tune_all"]}']


def start_process(arguments: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a worker as users do."""
    command = [sys.executable, "-m", "ablation.study", *arguments]
    with Path("steps.out").open("a") as log:
        return subprocess.Popen(
            command, env={**os.environ, **environment, "PYTHONPATH": str(REPOSITORY)}, stdout=log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("changes", "trials", "seconds"), [(ONE_CUT, 3, 12), pytest.param([], 12, 120, marks=pytest.mark.slow)]
)
def test_nothing_is_lost(
    command: Command, study_file: Path, server: Server, postgresql: PostgreSQL, victims: Victims, changes: list[str],
    trials: int, seconds: float, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Exactly the budget, one run per key, every point once, nothing open; all values are an undisturbed study's.

    In the short form the workers are forked, so that they spend their time in the study and not with imports; what is
    slow is replaced, such as the plots and the champion's program: see `tests.victim_process`. The long form is real.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of workers; the bits depend on it
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(10**6))
    seconds = float(os.environ.get("CHAOS_SECONDS") or seconds)
    print(f"CHAOS_SEED={seed}")
    arguments = [str(study_file), "--device", "cpu", "--set", "confirm.seeds=2", "--epochs", "8"]
    arguments += ["--trials", str(trials), *changes]
    assert command(*arguments, "--store", "whole") == 0
    whole = outcome(*[f"sqlite:///{Path('whole').absolute()}/{name}.db" for name in ("mlflow", "optuna")])
    with small_disk(DISK, megabytes=40), proxied(server, postgresql) as (web, database, environment):

        def start() -> Worker:
            if changes == ONE_CUT:
                return Victim(victims, victims.start(Path.cwd(), arguments, environment=environment))
            return start_process(arguments, environment)

        chaos = Chaos(start, random.Random(seed))
        try:
            disturb(chaos, (server, postgresql, web, database), seconds, seed)
            chaos.rest()
        finally:
            chaos.close()
        print(f"{dict(chaos.done)}; {dict(web.counts)} requests, {dict(database.counts)} packets")
        assert outcome(environment["MLFLOW_TRACKING_URI"], environment["OPTUNA_STORAGE"]) == whole
    assert "Traceback" not in output(), "Traceback" + output().partition("Traceback")[2][:5000]
    assert PostgreSQL.PASSWORD not in output()
