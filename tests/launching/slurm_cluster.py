"""A real SLURM that tests start on loopback: munge, a controller, and nodes on this machine."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.servers import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
# The time for which credentials are valid is also how long a requeued job waits: two minutes by default.
AuthInfo=socket={folder}/munge.socket,cred_expire=6
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MinJobAge=60
JobRequeue=1
SlurmdTimeout=10
InactiveLimit=0
SchedulerParameters=sched_interval=2,bf_interval=2
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=10 MaxTime=60
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


class SlurmCluster:
    """A SLURM with nodes n1, n2, ... of one core each, whose daemons are this process's children."""

    def __init__(self, folder: Path, nodes: int = 2):
        missing = [program for program in PROGRAMS if shutil.which(program) is None]
        if missing:
            pytest.skip(f"no SLURM ({', '.join(missing)} missing): apt-get install slurm-wlm munge")
        if os.getuid() != 0:
            pytest.skip("SLURM's daemons are started as root only")
        self.folder = folder
        self.configuration = folder / "slurm.conf"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        host = socket.gethostname()
        names = [f"n{number + 1}" for number in range(nodes)]
        lines = [f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=1 State=UNKNOWN"
                 for name in names]  # fmt: skip
        text = CONFIGURATION.format(host=host, port=free_port(), folder=folder, nodes="\n".join(lines))
        self.configuration.write_text(text)
        for name in ("state", *(f"spool-{node}" for node in names)):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        self._start("munged", "munged", "--foreground", "--force", f"--socket={folder}/munge.socket",
                    f"--key-file={key}", f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log",
                    f"--seed-file={folder}/munged.seed")  # fmt: skip
        wait_for(lambda: (folder / "munge.socket").exists(), 20, self.logs)
        self._start("slurmctld", "slurmctld", "-D", "-f", str(self.configuration))
        for name in names:
            self.start_node(name)
        try:
            for name in names:
                wait_for(lambda name=name: self.node_state(name) == "idle", 40, self.logs)  # type: ignore[misc]
        except BaseException:
            self.stop()
            raise

    @property
    def environment(self) -> dict[str, str]:
        """The variables of SLURM's programs."""
        return {**os.environ, "SLURM_CONF": str(self.configuration)}

    def _start(self, name: str, *command: str) -> None:
        log = (self.folder / f"{name}.out").open("ab")
        # They end with this process, whatever ends it.
        command = ("setpriv", "--pdeathsig", "TERM", *command)
        self.daemons[name] = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, cwd=self.folder)

    def start_node(self, name: str) -> None:
        self._start(name, "slurmd", "-D", "-f", str(self.configuration), "-N", name)

    def lose_node(self, name: str) -> None:
        """Kill a node's daemon and all that runs on it, as if it had lost its power."""
        daemon = self.daemons.pop(name)
        daemon.kill()
        daemon.wait()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                variables = process.environ()
                if variables.get("SLURM_CONF") == str(self.configuration) and variables.get("SLURMD_NODENAME") == name:
                    for victim in (*process.parents()[:1], process):  # slurmstepd first, which would report the end
                        if victim.pid not in (os.getpid(), 1):
                            victim.kill()

    def node_state(self, name: str) -> str:
        return self.run("sinfo", "--noheader", f"--nodes={name}", "--format=%t", "--partition=low", check=False).strip()

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0 or not check, (command, done.stderr)
        return done.stdout

    def job_states(self) -> dict[str, str]:
        """Return the states of the jobs that wait, run, or have ended a moment ago."""
        lines = self.run("squeue", "--noheader", "--array", "--states=all", "--format=%i %T").splitlines()
        return dict(line.split() for line in lines)

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.log"))

    def stop(self) -> None:
        if "slurmctld" in self.daemons:
            self.run("scancel", "--user=root", check=False)
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and self.run("squeue", "--noheader", check=False):
                time.sleep(0.2)
        for daemon in reversed(self.daemons.values()):
            daemon.send_signal(signal.SIGTERM)
        for daemon in self.daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def wait_for(condition: Callable[[], bool], seconds: float, explain: Callable[[], object] = str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.2)
