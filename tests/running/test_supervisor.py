"""`--workers N`: processes that share a study, are replaced when they are killed, and stop with the one that began."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from ablation.base.errors import InputError, StoreError
from ablation.base.interrupts import grace_left, handle_interrupts, pause_status
from ablation.running import supervisor
from ablation.running.session import Session
from ablation.running.supervisor import DEATHS_IN_A_ROW, Progress, run_workers, supervise_workers
from ablation.spec.reading import load_study
from tests.studies import client, runs, signal_handlers_kept

Said = list[tuple[int, str]]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, sys, time, signal; {code}"]


def test_lines_devices_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(9)))
    said: Said = []
    code = "print('uses', sys.argv[2]); print(os.environ['OMP_NUM_THREADS'], 'threads', file=sys.stderr); " \
           "print(os.environ['ABLATION_WORKER'], 'on it')"  # fmt: skip
    devices = ["cuda:0", "cuda:1", "cuda:0"]
    run_workers(python(code), devices, lambda *line: said.append(line), lambda: Progress(0, 0))
    assert sorted(said) == [
        (1, "2 on it"), (1, "3 threads"), (1, "uses cuda:0"), (2, "1 on it"), (2, "3 threads"), (2, "uses cuda:1"),
        (3, "2 on it"), (3, "3 threads"), (3, "uses cuda:0"),
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.02)


def test_the_end_of_the_last_worker_is_seen_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 60)
    said: Said = []
    began = time.monotonic()
    code = "time.sleep(sys.argv[2] == 'b'); print(*range(999), sep=os.linesep)"
    run_workers(python(code), ["a", "b"], lambda *line: said.append(line), lambda: Progress(0, 0))
    assert time.monotonic() - began < 30
    assert sorted(said) == sorted((worker, str(number)) for worker in (1, 2) for number in range(999))


@pytest.mark.parametrize(
    ("death", "end"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL, which may mean that memory ran out"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
        ("sys.exit(1)", "ended with status 1"),
    ],
)
def test_a_worker_that_dies_starts_again(death: str, end: str, tmp_path: Path) -> None:
    said: Said = []
    code = f"first = not os.path.exists({str(tmp_path / 'x')!r}); open({str(tmp_path / 'x')!r}, 'w'); " \
           f"first and {death}; print('done')"  # fmt: skip
    run_workers(python(code), ["cpu"], lambda *line: said.append(line), lambda: Progress(1, 0))
    assert said == [(1, f"{end}; starts again in 0 seconds"), (1, "done")]


def test_workers_that_die_again_and_again_end_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses grow."""
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.4)
    monkeypatch.setattr(supervisor, "DEATHS_IN_A_ROW", 3)
    said: Said = []
    code = "print('too large', flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    reason = r"^worker [12] was killed by SIGKILL.*, \d times in a row without progress: too large$"
    with pytest.raises(StoreError, match=reason):
        run_workers(python(code), ["a", "b"], lambda *line: said.append(line), lambda: Progress(1, 0))
    for worker in (1, 2):
        pauses = [line.rpartition(" in ")[2] for number, line in said if number == worker and "starts again" in line]
        assert pauses[:2] == ["0 seconds", "1 second"]


def test_a_worker_that_cannot_start_does_not_end_the_work_of_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The other one trains for longer than five deaths take, without an epoch, then ends the study."""
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.001)
    deaths, end = 0, tmp_path / "end"
    code = (
        f"end = {str(end)!r}\n"
        "while sys.argv[2] == 'good' and not os.path.exists(end): time.sleep(0.02)\n"
        "sys.exit(sys.argv[2] == 'bad' and 'error: no such device')"
    )

    def say(number: int, line: str) -> None:
        nonlocal deaths
        deaths += (number, line) == (2, "error: no such device")
        if deaths > DEATHS_IN_A_ROW:
            end.touch()

    run_workers(python(code), ["good", "bad"], say, lambda: Progress(not end.exists(), 0))
    assert deaths > DEATHS_IN_A_ROW


def test_deaths_with_progress_in_between_are_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    deaths = supervisor.WorkerDeaths()
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"], text=True)
    process.wait()
    worker = supervisor.Worker(1, "cpu", process, ["error: the disk is full"])
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 1.0)
    for epochs, pauses in enumerate([[1, 2, 4, 8], [16, 32, 60, 60], [60] * 4]):  # while other workers train
        deaths.note_progress(Progress(1, epochs))
        assert [deaths.pause_after(worker, []) for _ in range(DEATHS_IN_A_ROW - 1)] == pauses
    with pytest.raises(StoreError, match="^worker 1 ended with status 1, 5 times .* progress: the disk is full"):
        deaths.pause_after(worker, [])
    deaths.note_progress(Progress(1, 3))
    worker.has_trained = True
    assert [deaths.pause_after(worker, []) for _ in range(2)] == [1, 1]


@pytest.mark.parametrize(
    ("line", "pauses"),
    [("  epoch 3/9  val. accuracy 0.5000", [1, 1]), ("  finished: val. accuracy 0.5 (0.3 s)", [1, 1]),
     ("[1/6] block1 #0: lr=0.1", [1, 2]), ("  failed: CUDA error (0.1 s)", [1, 2])],
)  # fmt: skip
def test_only_a_worker_that_trained_starts_again_soon(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, pauses: list[int]
) -> None:
    """The third of its processes succeeds."""
    said: list[float] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(supervisor.WorkerDeaths, "pause_after", noted(supervisor.WorkerDeaths.pause_after, said))
    code = f"n = len(os.listdir('.')); open(str(n), 'w'); print({line!r}, flush=True); sys.exit(n < 2)"
    run_workers(python(code), ["cpu"], lambda *_: None, lambda: Progress(1, 0))
    assert [pause / supervisor.FIRST_PAUSE for pause in said] == pauses


def noted(function: Callable[..., float], results: list[float]) -> Callable[..., float]:
    def call(*arguments: object) -> float:
        results.append(function(*arguments))
        return results[-1]

    return call


def test_the_view_shows_what_ended_while_workers_paused(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def pause(*_: object) -> None:
        done.append("the workers paused")
        raise KeyboardInterrupt

    monkeypatch.setattr(supervisor, "run_workers", pause)
    monkeypatch.setattr(supervisor, "show_progress", lambda *_: done.append("shown"))
    with pytest.raises(KeyboardInterrupt):
        supervise_workers(cast(Session, SimpleNamespace(spec=load_study(study_file, name="small"))), ["cpu"])
    assert done == ["the workers paused", "shown"]


def test_options_stand_before_what_ends_them(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `study --workers 2 -- NAME`, after which another option would be a second name."""
    commands: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", ["study", "--workers", "2", "--", str(study_file)])
    monkeypatch.setattr(supervisor, "run_workers", lambda command, *_: commands.append(command))
    monkeypatch.setattr(supervisor, "show_progress", lambda *_: None)
    supervise_workers(cast(Session, SimpleNamespace(spec=load_study(study_file, name="small"))), ["cpu"])
    assert commands[0][2:5] == ["ablation.study", "--workers", "2"]
    assert commands[0][5:] == ["--grace", f"{0.8 * grace_left():g}", "--", str(study_file)]
    said: Said = []
    run_workers(
        [*python("print(sys.argv[1:])"), "--", "x"], ["cpu"], lambda *line: said.append(line), lambda: Progress(0, 0)
    )
    assert said == [(1, "['--device', 'cpu', '--', 'x']")]


def test_a_dead_worker_does_not_matter_once_nothing_is_left() -> None:
    code = "sys.exit(1) if sys.argv[2] == 'b' else 0"
    run_workers(python(code), ["a", "b"], lambda *line: None, lambda: Progress(0, 0))


def test_refused_input_stays_refused_input() -> None:
    code = "sys.stdout.buffer.write(b'error: caf\\xe9\\n'); sys.exit(2)"  # not UTF-8
    with pytest.raises(InputError, match="worker 1 ended with status 2: caf\N{REPLACEMENT CHARACTER}"):
        run_workers(python(code), ["cpu"], lambda *line: None, lambda: Progress(1, 0))


def test_what_a_worker_wrote_is_heard_after_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that reads the first one's output is late, and the other one's end ends the wait for lines."""
    listen, has_ended = supervisor._listen, threading.Event()

    def listen_late(worker: supervisor.Worker, output: supervisor.Output) -> None:
        if worker.number == 1:
            worker.process.wait()
            has_ended.set()
            time.sleep(0.3)
        has_ended.wait()
        listen(worker, output)

    monkeypatch.setattr(supervisor, "_listen", listen_late)
    monkeypatch.setattr(supervisor, "POLL_SECONDS", 10)
    code = "sys.exit(sys.argv[2] == 'a' and (print('error: no such thing') or 2))"
    with pytest.raises(InputError, match="^worker 1 ended with status 2: no such thing$"):
        run_workers(python(code), ["a", "b"], lambda *line: None, lambda: Progress(1, 0))


@pytest.mark.parametrize(("statuses", "expected"), [((75, 0), 75), ((130, 130), 130), ((0, 0), None)])
def test_workers_that_are_paused_alone_pause_the_study_once_none_works(
    statuses: tuple[int, int], expected: int | None
) -> None:
    """As when somebody sends a signal to a worker, or a batch system to all processes."""
    code = f"sys.exit(dict(a={statuses[0]}, b={statuses[1]})[sys.argv[2]])"

    def run() -> None:
        run_workers(python(code), ["a", "b"], lambda *line: None, lambda: Progress(1, 0))

    with signal_handlers_kept():
        handle_interrupts()
        if expected is None:
            run()
        else:
            with pytest.raises(KeyboardInterrupt):
                run()
            assert pause_status() == expected


def test_closing_its_input_stops_a_worker() -> None:
    code = (
        "import time; from ablation.base.interrupts import handle_interrupts, stop_with_parent\n"
        "handle_interrupts()\n"
        "try: stop_with_parent(); print('on', flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt: print('stopped')"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "on\n"
    process.stdin.close()
    assert process.wait(20) == 0  # not only when the sleep is over
    assert process.stdout.readline() == "stopped\n"


def test_two_workers_on_the_command_line(study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after a trial pauses both; run again, one of them is killed, and the study ends complete.

    Both share one SQLite file, to which they also log system metrics, and the forecast is printed once.
    """
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.02")
    command = [sys.executable, "-m", "ablation.study", str(study_file), "--store", "s", "--system-metrics"]
    command += ["--set", 'factors={truncate_at=["block1", "conv2_1"]}', "--set", "fixed.strategy=fine_tune_all"]
    command += ["--trials", "3", "--epochs", "20", "--workers", "2"]

    def run(act: int) -> tuple[int, list[str]]:
        """Send a signal after a trial: SIGINT to the command, SIGKILL to its first worker."""
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        deadline = threading.Timer(240, process.kill)
        deadline.start()
        lines = []
        acted = False
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            if "finished: " in line and not acted:
                acted = True
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                os.kill(process.pid if act == signal.SIGINT else int(children[0]), act)
        deadline.cancel()
        return process.wait(), lines

    status, lines = run(signal.SIGINT)
    assert status == 130, lines
    assert "Stopped; everything that had finished is kept. To resume:" in lines
    assert not any("ABLATION_WORKER" in line or "--grace" in line for line in lines)
    assert sum("Before any training" in line for line in lines) == 1  # the forecast
    said = lines
    found = runs(tmp_path / "s", "small")
    assert {run.info.status for run in found} <= {"FINISHED", "SCHEDULED"}
    assert [run.info.status for run in found] != ["FINISHED"] * 6
    time.sleep(0.1)
    left = subprocess.run(["pgrep", "-f", str(study_file)], capture_output=True, text=True).stdout
    assert left == ""

    status, lines = run(signal.SIGKILL)
    assert status == 0, lines
    assert "worker 1 | was killed by SIGKILL, which may mean that memory ran out; starts again in 1 second" in lines
    assert not any("locked" in line for line in said + lines)
    for arm in ("block1", "conv2_1"):
        assert any(line.startswith(f"| {arm} | ") and "3 finished" in line for line in lines)
    found = runs(tmp_path / "s", "small")
    assert [run.info.status for run in found] == ["FINISHED"] * 6
    assert len({(run.data.tags["arm"], run.data.tags["trial"]) for run in found}) == 6
    api = client(tmp_path / "s")
    for run in found:
        points = api.get_metric_history(run.info.run_id, "system/cpu_utilization_percentage")
        assert points
        assert [point.step for point in points] == list(range(len(points)))
    (summary,) = runs(tmp_path / "s", "small", "summary")
    forecast = api.get_metric_history(summary.info.run_id, "forecast_ridge_accuracy")
    assert [point.step for point in forecast] == [1, 2]
    assert {run.data.params["threads"] for run in found} == {str(max(1, len(os.sched_getaffinity(0)) // 2))}


def test_a_look_that_takes_long_is_rarer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks a question per arm; when a worker ends, one is made in any case."""
    looks: list[float] = []

    def look() -> Progress:
        looks.append(time.monotonic())
        time.sleep(0.001)
        return Progress(1, 0)

    monkeypatch.setattr(supervisor, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(supervisor, "SHARE_OF_POLLS", 1e-9)
    run_workers(python("time.sleep(0.3)"), ["cpu"], lambda *_: None, look)
    assert len(looks) <= 3  # at the beginning, in the first round, and when the worker has ended
