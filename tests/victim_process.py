"""Runs the command line in forked children that kill themselves at a chosen step, for `test_faults.py`.

Started once, this process imports everything and runs a study, so that a victim costs a fork instead of seconds of
imports. That study also checks that every step and every replacement below takes place: a function that the package
calls by another name now would lose its kill points silently. It reads orders, a line of JSON each, and answers each
with a line of JSON:

- `{"arguments": [...], "folder": ..., "environment": {...}, "kill_at": N | NAME | null, "stop_at": [N...],
  "steps": FILE, "only_open": ..., "user": [UID, GROUP, UMASK] | null, "clock": [SECONDS...]}` forks a child that runs
  `python -m ablation.study ARGUMENTS` in the folder. It gets SIGKILL right before its N-th step, from 0, or before the
  first of a name; without `kill_at` it runs to its end and writes the names of its steps into the file. It gets SIGSTOP
  right before each of the steps in `stop_at`. With `only_open` it opens the stores and does nothing else. With `user`
  it first becomes one who has no entry, no home folder and no other group. Its clock is wrong by the first number of
  seconds in `clock`, and by the next one of them, in turn, from each evaluation on. The answer is its process id.
- `{"wait": PID}` waits until a child ends or stops; the answer is its exit status, negative for a signal, or "stopped".
"""

import contextlib
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
import time_machine
import torch
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.store.db import utils as mlflow_database

from ablation import study
from ablation.data.split import split_seed
from ablation.reporting import report
from ablation.running import champion, session, trial
from ablation.running import study as running_study
from ablation.running.options import RunOptions
from ablation.running.session import open_stores
from ablation.search import claims, studies
from ablation.spec.reading import load_study
from ablation.storage.locks import FileLocks
from ablation.training import loop
from tests.studies import compile_statements_once, read_migrations_once, set_options_once

# What leaves a trace outside the process, besides the databases' transactions, and the two halves of an epoch.
STEPS: list[tuple[Any, str]] = [
    (os, "fsync"),
    (Path, "replace"),
    (Path, "unlink"),
    (LocalArtifactRepository, "log_artifact"),
    (claims, "_delete_folder"),
    (FileLocks, "try_acquire"),
    (FileLocks, "release"),
    (trial, "make_training"),
    (loop, "evaluate"),
]


class PruneTrialOne(optuna.pruners.BasePruner):
    """Prunes trial 1 after its first epoch."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.number == 1


calls: Counter[str] = Counter()  # of the replacements, by name


def replace(owner: Any, name: str, function: Callable[..., Any]) -> None:
    """Replace a function in the module that calls it, and count its calls."""

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[name] += 1
        return function(*args, **kwargs)

    assert callable(getattr(owner, name))
    calls[name] = 0
    setattr(owner, name, counted)


def main() -> None:
    torch.set_num_threads(1)  # so that no thread is there to be lost in a fork
    trial.CHECKPOINT_SECONDS = 0
    read_migrations_once()
    compile_statements_once()
    set_options_once()
    replace_slow_functions()
    run_once(sys.argv[1])
    answer("ready")
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            status = os.waitpid(order["wait"], os.WUNTRACED)[1]
            answer("stopped" if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status))
            continue
        pid = os.fork()
        if pid == 0:
            run(**order)
        answer(pid)


def replace_slow_functions() -> None:
    """Replace what costs time and has no step.

    That is reading the same images, comparing MLflow's schema with its migrations, plotting, and translating the
    champion's network.
    """
    splits: dict[str, Any] = {}
    real_load: Callable[..., Any] = vars(session)["load_split"]

    def load_once(data: Any, seed: int, **kwargs: Any) -> Any:
        if str(data) not in splits:
            splits[str(data)] = real_load(data, seed, **kwargs)
        return splits[str(data)]

    def pruner(spec: Any) -> optuna.pruners.BasePruner:
        return PruneTrialOne() if spec.search.pruner != "none" else optuna.pruners.NopPruner()

    replace(session, "load_split", load_once)
    replace(studies, "make_pruner", pruner)
    replace(mlflow_database, "_verify_schema", lambda engine: None)
    replace(report, "draw_figures", lambda analysis, kinds: {})
    replace(champion, "export_program", lambda model, images, path: path.write_text("a program"))
    load_once(load_study(Path(sys.argv[1]), name="small").data, split_seed(0))


def run_once(study_file: str) -> None:
    """Run a study here, so that no child has to compile SQL and templates anew, which takes longest."""
    steps: Counter[str] = Counter()
    real = [(owner, name, vars(owner)[name]) for owner, name in STEPS]
    with tempfile.TemporaryDirectory() as store, contextlib.redirect_stdout(sys.stderr):
        one_arm = ["--set", 'factors={strategy=["fine_tune_all"]}', "--set", "fixed.truncate_at=block1"]
        # From the third checkpoint on, the oldest is deleted.
        budget = ["--trials", "1", "--epochs", "4", "--set", "confirm.seeds=1"]
        sys.argv = ["study", study_file, "--store", store, *one_arm, *budget]
        install_steps(lambda name: steps.update([name]))
        assert study.main() == 0
        assert study.main() == 0  # as what is left after a kill is opened again
    for owner, name, function in real:
        setattr(owner, name, function)
    lost = [name for _, name in STEPS if not steps[name]] + [name for name, count in calls.items() if not count]
    assert not lost, f"the package does not call these where tests/victim_process.py replaces them: {lost}"


def install_steps(step: Callable[[str], None]) -> None:
    """Call `step` with a function's name before every call of it."""
    for owner, name in STEPS:
        setattr(owner, name, preceded(getattr(owner, name), partial(step, name)))


def answer(value: object) -> None:
    print(json.dumps(value), flush=True)


def run(
    arguments: list[str],
    folder: str,
    environment: dict[str, str],
    kill_at: int | str | None,
    stop_at: list[int],
    steps: str,
    only_open: bool,
    user: tuple[int, int, int] | None,
    clock: list[float],
) -> None:
    """Be the child: never returns."""
    jump = wrong_clock(clock)
    if user is not None:
        become(*user)
    os.chdir(folder)
    os.environ.update(environment)
    for stream, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(Path(steps).with_suffix(suffix), os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
    names: list[str] = []

    def step(name: str) -> None:
        if kill_at in (len(names), name):
            os.kill(os.getpid(), signal.SIGKILL)
        if len(names) in stop_at:
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # no step further; stops all other threads too
        names.append(name)
        if name == "evaluate":
            jump()

    install_steps(step)
    listen_to_transactions(step)
    if only_open:
        replace(running_study, "run_study", only_open_stores)
    sys.argv = ["study", *arguments]
    status = 70
    try:
        status = study.main()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        if kill_at is None:
            Path(steps).write_text("\n".join(names))
        os._exit(status)


def become(uid: int, group: int, umask: int) -> None:
    os.setgroups([])
    os.setgid(group)
    os.setuid(uid)
    os.umask(umask)
    os.environ.pop("HOME", None)


def wrong_clock(seconds: list[float]) -> Callable[[], None]:
    """Make the clock of this process wrong by the first of some seconds; return what makes it wrong by the next."""
    if not seconds:
        return lambda: None
    now, began, wrong = time.time(), time.monotonic(), itertools.cycle(seconds)
    clock = time_machine.travel(now + next(wrong)).start()
    return lambda: clock.move_to(now + time.monotonic() - began + next(wrong))


def only_open_stores(spec: Any, store: Any, *_: object) -> None:
    open_stores(spec, store, spec.content(), RunOptions(), is_worker=False)


def preceded(function: Callable[..., Any], step: Callable[[], None]) -> Callable[..., Any]:
    def with_step(*args: Any, **kwargs: Any) -> Any:
        step()
        return function(*args, **kwargs)

    return with_step


def listen_to_transactions(step: Callable[[str], None]) -> None:
    """Call `step` before every commit of a transaction that wrote, named after the first statement that did."""

    def execute(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if not statement.lstrip().upper().startswith(("SELECT", "PRAGMA", "BEGIN")):
            connection.info.setdefault("wrote", " ".join(statement.split()[:3]))

    def commit(connection: Any) -> None:
        if wrote := connection.info.pop("wrote", None):
            step(wrote)

    sqlalchemy.event.listen(sqlalchemy.Engine, "after_cursor_execute", execute)
    sqlalchemy.event.listen(sqlalchemy.Engine, "commit", commit)


if __name__ == "__main__":
    main()
