"""Servers that tests start on loopback: PostgreSQL and MLflow."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import requests

PORTS_PER_WORKER = 400


def free_port() -> int:
    """Return a port that nothing listens on.

    Each of pytest's workers has a range of its own, below the ports that systems give to outgoing connections, so that
    nothing takes the port before the server does.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 20_000 + PORTS_PER_WORKER * (worker % 30)
    for port in random.SystemRandom().sample(range(first, first + PORTS_PER_WORKER), PORTS_PER_WORKER):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise AssertionError(f"no free port from {first} on")


class PostgreSQL:
    """A PostgreSQL server of Debian's package on loopback, with a folder of its own."""

    PASSWORD = "not-a-secret"

    def __init__(self, folder: Path):
        self.folder = folder
        versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        if not versions:
            pytest.skip("no PostgreSQL: Debian's package postgresql has it")
        self.programs = versions[-1]
        self.port = free_port()
        folder.mkdir()
        password = folder / "password"
        password.write_text(self.PASSWORD)
        if os.getuid() == 0:  # it refuses to run as root
            for path in (folder, password):
                shutil.chown(path, "postgres")
        self._run("initdb", "--auth=scram-sha-256", f"--pwfile={password}", "-U", "ablation")
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        subprocess.run([*user, str(self.programs / program), "-D", str(self.folder / "data"), *arguments],
                       check=True, capture_output=True, cwd="/")  # fmt: skip

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def query(self, sql: str, database: str = "postgres") -> list[Any]:
        with psycopg.connect(self.address(database), autocommit=True) as connection:
            answer = connection.execute(sql)
            return answer.fetchall() if answer.description else []

    def address(self, database: str) -> str:
        return f"postgresql://ablation:{self.PASSWORD}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Make an empty database and return its address."""
        name = f"d{uuid.uuid4().hex}"
        self.query(f"CREATE DATABASE {name}")
        return self.address(name)


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls another the first time, and returns None from then on."""
    is_first = iter([True])
    return lambda *args: function(*args) if next(is_first, False) else None


class Server:
    """An MLflow tracking server, with its artifacts."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
             "--artifacts-destination", str(self.folder / "artifacts"), "--port", str(self.port), "--workers", "1"],
            stdout=(self.folder / "log").open("a"), stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while True:
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            try:
                assert requests.get(f"{self.address}/health", timeout=1).text == "OK"
                return
            except requests.RequestException:
                time.sleep(0.2)

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
