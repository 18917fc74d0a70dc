"""SLURM: what is submitted, and what becomes of workers on a real SLURM that preempts, cancels and loses them."""

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ablation.base.command_line import JOB_VARIABLE
from ablation.base.errors import InputError
from ablation.launching import programs, slurm
from ablation.launching.request import EngineWorker, Launch
from tests.launching.launches import check_equals_undisturbed, has_checkpoint, launch_of, launch_study
from tests.launching.slurm_cluster import SlurmCluster, wait_for
from tests.studies import Command

Disturbance = Callable[[SlurmCluster, str], None]  # of the workers of a launch, by its label

# -------------------------------------------------------------------------------------------- without any SLURM


def test_the_script_says_what_the_user_says_to_slurm(tmp_path: Path) -> None:
    launch = launch_of(tmp_path, "a b", workers=4, partition="gpu", gres="gpu:1", exclusive="", comment="two words")
    lines = slurm.compose(launch).splitlines()
    assert lines[0] == "#!/bin/bash"
    directives = [line for line in lines if line.startswith("#SBATCH")]
    for directive in (
        "--array=1-4",
        "--partition=gpu",
        "--gres=gpu:1",
        "--exclusive",
        "--comment='two words'",
        "--requeue",
    ):
        assert f"#SBATCH {directive}" in directives
    assert "#SBATCH --signal=B:USR2@40" in directives  # the grace period and half a minute
    assert any(line.endswith("tests.launching.patient_worker 'a b' &") for line in lines)


@pytest.mark.parametrize(
    "signal", ["B:USR2@300", "B:USR1@120", "RB:SIGTERM", "B:XCPU@60", "b:usr2@300", "B:12@10", "B:24"]
)
def test_the_users_signal_wins(tmp_path: Path, signal: str) -> None:
    text = slurm.compose(launch_of(tmp_path, signal=signal))
    assert re.findall(r"--signal=(.*)", text) == [signal]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"array": "1-99"}, "array is set by the launch"), ({"arr": "1-99"}, "arr is set by the launch"),
     ({"wait": ""}, "wait is set by the launch"), ({"clusters": "a,b"}, "clusters: set SLURM_CLUSTERS instead"),
     ({"signal": "USR1@120"}, "signal must be such as B:USR1@120, got 'USR1@120'"),
     ({"signal": "B:KILL@120"}, "signal must be such as"), ({"signal": "B:USR1@1 --array=1-9"}, "signal must be"),
     ({"signal": "B:9@120"}, "signal must be such as"), ({"signal": "B:u\u017fr1"}, "signal must be such as"),
     ({"comment": "", "time": "60"}, "comment needs a value on slurm"), ({"partition": ""}, "partition needs a value"),
     ({"signal": "B:USR1@9"}, "signal=B:USR1@9 gives a notice of 9 s, less than --grace 10$"),
     ({"signa": "USR1@120"}, "signa is set by the launch"), ({"sig": "B:USR1@120"}, "sig is set by the launch")],
)  # fmt: skip
def test_options_that_would_lose_workers_are_refused(tmp_path: Path, options: dict[str, str], message: str) -> None:
    """Without B:, SLURM signals job steps alone, which the script does not have."""
    with pytest.raises(InputError, match=f"^--engine-option: {message}"):
        slurm.compose(launch_of(tmp_path, **options))


@pytest.mark.parametrize(
    ("options", "least"),
    [({"time": "1"}, "60 s, but must be longer than 100 s"), ({"time": "1:40"}, "100 s, but must be longer than 100 s"),
     ({"time-min": "0:01:00"}, "60 s, but"), ({"time": "0-0:1"}, "60 s, but"),
     ({"time": "6", "signal": "B:USR1@300"}, "360 s, but must be longer than 360 s"),
     ({"time": "2", "signal": "B:USR1"}, "120 s, but must be longer than 120 s")],
)  # fmt: skip
def test_a_time_limit_that_leaves_no_time_to_work_is_refused(
    tmp_path: Path, options: dict[str, str], least: str
) -> None:
    """With a grace period of 10 s, notice is given 40 s before the limit; a signal that says nothing, 60 s before."""
    name = next(iter(options))
    with pytest.raises(InputError, match=f"^--engine-option: {name}={options[name]} is {least}"):
        slurm.compose(launch_of(tmp_path, **options))


@pytest.mark.parametrize("time", ["1:41", "2", "0:02:00", "1-0", "0-1:0:0", "0", "UNLIMITED", "-1"])
def test_other_time_limits_are_slurms_business(tmp_path: Path, time: str) -> None:
    assert f"#SBATCH --time={time}\n" in slurm.compose(launch_of(tmp_path, time=time))


def test_an_edited_script_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that a launch wrote or printed is replaced, whatever its options were."""
    monkeypatch.setenv("PATH", stand_in(tmp_path, sbatch="echo 7"))
    first, second = (launch_of(tmp_path, workers=workers) for workers in (1, 2))
    script = slurm.script_path(first)
    slurm.submit(first)
    slurm.submit(second)
    written = script.read_text()
    assert written == slurm.compose(second) != slurm.compose(first)
    script.write_text(f"{slurm.compose(first)}\n")  # as --print writes it to a file
    slurm.submit(second)
    for edited in (written.replace("\nset +e", "\nmodule load cuda\nset +e"), written.rpartition("\n# The")[0],
                   f"{written}echo done\n", written.replace("\n", "\r\n")):  # fmt: skip
        script.write_bytes(edited.encode())
        with pytest.raises(
            InputError, match=f"^{script}: was edited.*: submit it by `sbatch {script}`, or move it away"
        ):
            slurm.submit(second)
        assert script.read_bytes() == edited.encode()


def test_the_newest_output_of_a_study_is_named(tmp_path: Path) -> None:
    for number, name in enumerate(("a-0_10_1.log", "a-0_9_2.log", "b-0_11_1.log")):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (number, number))
    assert slurm.output("a-0", tmp_path, {}) == f"newest output: {tmp_path}/a-0_9_2.log"
    assert slurm.output("c-0", tmp_path, {}) == slurm.output("a-0", tmp_path / "none", {}) == ""


def test_a_suspended_task_that_cannot_resume_is_not_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To resume takes the rights of an operator; `scancel` alone would end the task unsaved."""
    path = stand_in(
        tmp_path, squeue="echo '7_1|SUSPENDED|n1|-|-|None'", scancel=f"touch {tmp_path}/cancelled",
        scontrol=f"echo $* > {tmp_path}/asked; echo 'Access/permission denied' >&2; exit 1",
    )  # fmt: skip
    monkeypatch.setenv("PATH", path)
    message = "^scontrol: Access/permission denied; nothing was cancelled: task 7_1 is suspended, and `scancel` would"
    with pytest.raises(InputError, match=message):
        slurm.cancel("a-0", {})
    assert (tmp_path / "asked").read_text() == "resume 7_1\n"
    assert not (tmp_path / "cancelled").exists()


def test_a_cluster_that_only_sbatch_would_know_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_CLUSTERS", "other")
    with pytest.raises(InputError, match=r"^SBATCH_CLUSTERS: set SLURM_CLUSTERS instead, for --status and --cancel"):
        slurm.submit(launch_of(tmp_path))
    assert list(tmp_path.iterdir()) == []


def stand_in(folder: Path, **programs: str) -> str:
    """Write programs of SLURM, each given as lines of a shell; return a path that begins with them."""
    for name, lines in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_what_the_launch_says_wins_over_the_sites_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sbatch` lets SBATCH_JOB_NAME and the like win over the script, and its arguments over both."""
    said = tmp_path / "said"
    words = "echo '24 nodes are free'; echo 2026; echo '17;cluster'; echo '3 days until the maintenance'"
    sbatch = f"printf '%s\\n' \"$@\" > {said}; {words}"
    monkeypatch.setenv("PATH", stand_in(tmp_path, sbatch=sbatch))
    launch = launch_of(tmp_path, workers=4, partition="gpu", exclusive="", comment="two words")
    assert slurm.submit(launch).startswith("4 workers submitted to SLURM as job 17; ")
    assert said.read_text().splitlines() == [
        "--parsable", f"--job-name={launch.label}", "--array=1-4", f"--output={launch.folder}/{launch.label}_%A_%a.log",
        "--open-mode=append", "--requeue", "--signal=B:USR2@40", "--partition=gpu", "--exclusive",
        "--comment=two words", str(slurm.script_path(launch)),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sbatch", "message", "stays"),
    [("exec sleep 60", "^sbatch: no answer in 0.5 s; the job may be queued all the same: --status shows it$", True),
     ("echo tested", "^sbatch: submitted no job; it said 'tested'$", False), ("exit 1", "ended with status 1", False)],
)  # fmt: skip
def test_the_script_stays_while_its_job_may_be_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sbatch: str, message: str, stays: bool
) -> None:
    monkeypatch.setattr(programs, "TIMEOUT_SECONDS", 0.5)
    monkeypatch.setenv("PATH", stand_in(tmp_path, sbatch=f"[ $1 = --version ] && exit\n{sbatch}"))
    launch = launch_of(tmp_path)
    with pytest.raises(InputError, match=message):
        slurm.submit(launch)
    assert slurm.script_path(launch).exists() is stays


@dataclasses.dataclass(frozen=True)
class ShellLaunch(Launch):
    """A launch of a line of a shell, its argument."""

    @property
    def command(self) -> list[str]:
        return ["bash", "-c", *self.arguments]


@pytest.mark.parametrize("added", ["", "set -euo pipefail\n"])
def test_each_signal_pauses_the_worker_and_returns_it_to_the_queue(tmp_path: Path, added: str) -> None:
    """Whatever the user's variables hide from squeue and scancel, and although the controller is away at first."""
    notices = ("INT", "TERM", "HUP", "USR1", "USR2", "XCPU")
    said = tmp_path / "said"
    away = 'name="$(basename "$0")_$SLURM_ARRAY_TASK_ID"; [ -e $name ] || { touch $name; exit 1; }\n'
    path = stand_in(
        tmp_path, sleep="exec /bin/sleep 0.1",
        squeue=f'cd {tmp_path}; {away}echo "${{SLURM_CLUSTERS-${{SQUEUE_STATES-RUNNING}}}}"',
        scancel=f'echo "scancel ${{SCANCEL_STATE-}}${{SLURM_CLUSTERS-}}" >> {said}',
        scontrol=f'cd {tmp_path}; {away}echo "$*" >> {said}; kill -KILL "$PPID"',  # as SLURM ends the script
    )  # fmt: skip
    environment = {"PATH": path, "SQUEUE_STATES": "PENDING", "SCANCEL_STATE": "PENDING", "SLURM_ARRAY_JOB_ID": "7",
                   "SLURM_CLUSTERS": "a,b"}  # fmt: skip

    def start(task: str, line: str) -> subprocess.Popen[bytes]:
        launch = ShellLaunch("cuts", "ablation-cuts-0", tmp_path, (line,), 1, 10, {}, tmp_path, tmp_path)
        script = slurm.script_path(launch)
        script.write_text(slurm.compose(launch).replace("\n\n", f"\n{added}\n", 1))
        own = shutil.copy(script, tmp_path / f"{task}.sh")
        return subprocess.Popen(["env", "--default-signal", "bash", own], stdout=subprocess.DEVNULL,
                                env={**environment, "SLURM_ARRAY_TASK_ID": task})  # fmt: skip

    tasks = {name: start(name, f"trap 'exit 75' XCPU; touch {name}; while :; do sleep 0.1; done") for name in notices}
    for name, task in tasks.items():
        wait_for(lambda name=name: (tmp_path / name).exists(), 20)  # type: ignore[misc]
        task.send_signal(getattr(signal, f"SIG{name}"))
    assert {task.wait(20) for task in tasks.values()} == {-signal.SIGKILL}
    assert sorted(said.read_text().splitlines()) == sorted(f"requeue 7_{name}" for name in notices)
    said.unlink()
    assert start("done", "true").wait(20) == 0
    assert said.read_text() == "scancel \n"


def test_lines_that_name_a_cluster_are_no_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With SLURM_CLUSTERS, squeue writes them even without a header."""
    fields = "7_1|RUNNING|n1|2026-11-27T11:00:00|2026-11-27T10:00:00|None"
    squeue = f"echo 'CLUSTER: a'; echo '{fields}'; echo; echo 'CLUSTER: b'"
    monkeypatch.setenv("PATH", stand_in(tmp_path, squeue=squeue))
    assert slurm.workers("x", {}) == [EngineWorker("7_1", "running", "n1", "2026-11-27T11:00:00")]


def test_without_slurm_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="sbatch: there is no such program here"):
        slurm.submit(launch_of(tmp_path))
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------- a real SLURM


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    with tempfile.TemporaryDirectory() as folder:  # a short path, for the sockets
        started = SlurmCluster(Path(folder))
        yield started
        started.stop()


@pytest.fixture
def on_cluster(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlurmCluster]:
    monkeypatch.setenv("SLURM_CONF", str(cluster.configuration))
    yield cluster
    cluster.run("scancel", "--user=root", check=False)
    wait_for(lambda: cluster.run("squeue", "--noheader") == "", 60, cluster.logs)


def lines_of(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def count(log: Path, line: str) -> int:
    return lines_of(log).count(line)


def outputs(launch: Launch) -> str:
    return "\n".join(path.read_text() for path in launch.folder.glob("*.log"))


def task_of(launch: Launch) -> str:
    (worker,) = slurm.workers(launch.label, {})
    return worker.id


def wait_for_lines(launch: Launch, log: Path, line: str, number: int, seconds: float = 60) -> None:
    wait_for(lambda: count(log, line) >= number, seconds, lambda: (lines_of(log), outputs(launch)))


def wait_for_the_end(launch: Launch, seconds: float = 60) -> None:
    wait_for(
        lambda: slurm.workers(launch.label, {}) == [],
        seconds,
        lambda: (slurm.workers(launch.label, {}), outputs(launch)),
    )


def high_priority_job(cluster: SlurmCluster, tmp_path: Path) -> str:
    """Submit a job for both nodes that preempts what runs there; it ends when it is cancelled."""
    script = tmp_path / "urgent.sh"
    script.write_text(f"#!/bin/bash\n#SBATCH --output={tmp_path}/urgent.log\nsleep 600\n")
    return cluster.run("sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", str(script)).strip()


def test_workers_are_placed_listed_and_a_finished_study_ends_those_that_wait(
    on_cluster: SlurmCluster, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    launch = launch_of(tmp_path, log, 12, workers=3)
    with pytest.MonkeyPatch.context() as site:
        variables = {
            "SBATCH_JOB_NAME": "mine",
            "SBATCH_ARRAY_INX": "1-9",
            "SBATCH_WAIT": "1",
            "SQUEUE_STATES": "CANCELLED",
        }
        for name, value in variables.items():
            site.setenv(name, value)
        assert re.match(r"3 workers submitted to SLURM as job \d+; output: ", slurm.submit(launch))
        wait_for_lines(launch, log, "start", 2)
        first, second, third = slurm.workers(launch.label, {})
    assert {first.host, second.host} == {"n1", "n2"}
    assert [first.state, second.state] == ["running", "running"]
    assert third.state.startswith("pending")  # with SLURM's reason once it has looked
    assert third.id.partition("_")[0] == first.id.partition("_")[0]
    assert all(re.match(r"\d{4}-\d\d-\d\dT", worker.since) for worker in (first, second, third))
    assert slurm.workers("ablation-another", {}) == []
    wait_for_the_end(launch)
    assert count(log, "start") == 2  # the third never ran


def test_what_slurm_refuses_is_one_line_and_leaves_nothing(on_cluster: SlurmCluster, tmp_path: Path) -> None:
    launch = launch_of(tmp_path, tmp_path / "log", 1, partition="nowhere")
    with pytest.raises(InputError, match="^sbatch: .*invalid partition specified: nowhere") as error:
        slurm.submit(launch)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="unrecognized option '--no-such=1'"):
        slurm.submit(dataclasses.replace(launch, options={"no-such": "1"}))
    assert on_cluster.run("squeue", "--noheader") == ""
    assert list(launch.folder.iterdir()) == []


@pytest.mark.slow
def test_a_node_that_does_not_see_the_files_ends_the_launch(on_cluster: SlurmCluster, tmp_path: Path) -> None:
    launch = launch_of(tmp_path, tmp_path / "log", 1, workers=4)
    slurm.script_path(launch).parent.mkdir()
    elsewhere = tmp_path / "by_hand.sh"  # the script's place is on no node
    elsewhere.write_text(slurm.compose(launch))
    on_cluster.run("sbatch", str(elsewhere))
    wait_for_the_end(launch)
    assert "does not see" in outputs(launch)
    assert not (tmp_path / "log").exists()


@pytest.mark.slow
def test_a_preempted_worker_saves_and_resumes(on_cluster: SlurmCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    launch = launch_of(tmp_path, log, 60, time="10")
    slurm.submit(launch)
    wait_for_lines(launch, log, "epoch", 3)
    urgent = high_priority_job(on_cluster, tmp_path)
    wait_for_lines(launch, log, "saved", 1)
    wait_for(lambda: slurm.workers(launch.label, {})[0].state.startswith("pending"), 60, on_cluster.logs)
    on_cluster.run("scancel", urgent)
    wait_for_the_end(launch, 90)
    assert (count(log, "start"), count(log, "saved"), count(log, "epoch")) == (2, 1, 60)
    assert "start number 1" in outputs(launch)


@pytest.mark.slow
def test_a_worker_whose_time_is_up_saves_and_resumes(on_cluster: SlurmCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    launch = launch_of(tmp_path, log, 120, time="3", signal="B:USR1@20")
    script = slurm.script_path(launch)
    script.parent.mkdir()
    script.write_text(slurm.compose(launch).replace("--time=3", "--time=1"))  # a launch refuses a limit as short
    on_cluster.run("sbatch", str(script))
    wait_for_lines(launch, log, "saved", 1, 90)
    wait_for_the_end(launch, 120)
    assert count(log, "epoch") == 120
    assert count(log, "start") == count(log, "saved") + 1


@pytest.mark.slow
def test_a_cancelled_worker_saves_and_does_not_return(on_cluster: SlurmCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    launch = launch_of(tmp_path, log, 1000, workers=4)
    slurm.submit(launch)
    wait_for_lines(launch, log, "epoch", 4)
    slurm.cancel(launch.label, {})
    wait_for_the_end(launch)
    assert (count(log, "start"), count(log, "saved")) == (2, 2)
    with pytest.raises(AssertionError):
        wait_for(lambda: slurm.workers(launch.label, {}) != [], 12)  # requeued jobs wait for six seconds


@pytest.mark.slow
def test_a_suspended_worker_stands_still_and_continues(on_cluster: SlurmCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    launch = launch_of(tmp_path, log, 20)
    slurm.submit(launch)
    wait_for_lines(launch, log, "epoch", 3)
    task = task_of(launch)
    on_cluster.run("scontrol", "suspend", task)
    wait_for(lambda: slurm.workers(launch.label, {})[0].state == "suspended", 20)
    epochs = count(log, "epoch")
    with pytest.raises(AssertionError):
        wait_for(lambda: count(log, "epoch") > epochs + 1, 4)
    on_cluster.run("scontrol", "resume", task)
    wait_for_the_end(launch)
    assert (count(log, "start"), count(log, "epoch")) == (1, 20)


@pytest.mark.slow
def test_a_suspended_worker_that_is_cancelled_saves(on_cluster: SlurmCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    launch = launch_of(tmp_path, log, 1000)
    slurm.submit(launch)
    wait_for_lines(launch, log, "epoch", 3)
    on_cluster.run("scontrol", "suspend", task_of(launch))
    time.sleep(5)  # SLURM takes two seconds to stop what runs
    slurm.cancel(launch.label, {})
    wait_for_the_end(launch)
    assert (count(log, "start"), count(log, "saved")) == (1, 1)


@pytest.mark.slow
def test_a_worker_on_a_lost_node_starts_on_another(on_cluster: SlurmCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    launch = launch_of(tmp_path, log, 40)
    slurm.submit(launch)
    wait_for_lines(launch, log, "epoch", 3)
    (worker,) = slurm.workers(launch.label, {})
    on_cluster.lose_node(worker.host)
    try:
        wait_for_lines(launch, log, "start", 2, 120)
        (other,) = slurm.workers(launch.label, {})
        assert (other.id, other.state) == (worker.id, "running")
        assert other.host != worker.host
        wait_for_the_end(launch)
        assert (count(log, "saved"), count(log, "epoch")) == (0, 40)
    finally:
        on_cluster.start_node(worker.host)
        wait_for(lambda: on_cluster.node_state(worker.host) == "idle", 60, on_cluster.logs)


@pytest.mark.slow
def test_a_worker_is_requeued_more_than_ten_times(on_cluster: SlurmCluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    launch = launch_of(tmp_path, log, 1, 0.1, 12)
    slurm.submit(launch)
    wait_for_lines(launch, log, "epoch", 1, 240)
    wait_for_the_end(launch)
    assert count(log, "start") == 13
    assert "start number 12" in outputs(launch)


def preempt(cluster: SlurmCluster, label: str) -> None:
    """Send workers back to the queue, as a preemption does when its grace time is over."""
    for worker in slurm.workers(label, {}):
        cluster.run("scontrol", "requeue", worker.id)


def suspend(cluster: SlurmCluster, label: str) -> None:
    tasks = [worker.id for worker in slurm.workers(label, {})]
    for command in ("suspend", "resume"):
        for task in tasks:
            cluster.run("scontrol", command, task)
        time.sleep(3)


def kill(cluster: SlurmCluster, label: str) -> None:
    """Kill the processes of one worker; its task has failed then, and the other worker does the rest."""
    del cluster
    killed = slurm.workers(label, {})[0].id
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(JOB_VARIABLE) == killed and "ablation.study" in process.cmdline():
                process.kill()


def lose_node(cluster: SlurmCluster, label: str) -> None:
    host = slurm.workers(label, {})[0].host
    cluster.lose_node(host)
    wait_for(lambda: cluster.node_state(host).startswith("down"), 90, cluster.logs)
    cluster.start_node(host)


@pytest.mark.slow
@pytest.mark.parametrize("disturb", [preempt, suspend, kill, lose_node])
def test_a_disturbed_study_equals_an_undisturbed_one(
    on_cluster: SlurmCluster, command: Command, small_study: Path, tmp_path: Path, disturb: Disturbance
) -> None:
    store = tmp_path / "on_slurm"
    label = launch_study(small_study, store, "slurm")

    def output() -> str:
        return "\n".join(path.read_text() for path in (store / "launch").glob("*.log"))

    wait_for(lambda: has_checkpoint(store), 90, output)
    disturb(on_cluster, label)
    wait_for(lambda: slurm.workers(label, {}) == [], 180, output)
    assert ("start number 1" in output() and "(resumed)" in output()) or disturb is not preempt
    assert "ended with status 137" in output() or disturb is not kill
    check_equals_undisturbed(command, small_study, store)
