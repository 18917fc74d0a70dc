"""Servers that tests start on loopback: PostgreSQL, MLflow, and proxies before them that let calls fail."""

import contextlib
import http.client
import http.server
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import psycopg
import pytest
import requests
from mlflow import MlflowClient

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

    def new_database(self, template: str = "template1") -> str:
        """Make an empty database, or a copy of another, and return its address."""
        name = f"d{uuid.uuid4().hex}"
        self.query(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.address(name)

    def mlflow_database(self) -> str:
        """Make a database with MLflow's tables, which take seconds to make, and return its address."""
        if not self.query("SELECT 1 FROM pg_database WHERE datname = 'mlflow'"):
            self.query("CREATE DATABASE mlflow")
            MlflowClient(self.address("mlflow")).search_experiments()
            self.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'mlflow'")
        return self.new_database("mlflow")


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


# What a proxy does with a request to a tracking server. Those before "lost" never reach it; "late" does, 12 s later,
# when MLflow's client has given up; of the others only the answer suffers.
HttpFault = Literal["reset", "503", "late", "lost", "empty", "cut"]
HTTP_FAULTS: tuple[HttpFault, ...] = ("reset", "503", "lost", "empty", "cut")


def reset(connection: socket.socket) -> None:
    """End a connection so that the other side gets a reset."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


class _Requests(http.server.BaseHTTPRequestHandler):
    """Passes requests on, and does to them what the proxy's `fault` says."""

    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault: HttpFault | None = self.server.proxy.fault(self.command, self.path)
        self.server.proxy.counts[fault or "none"] += 1
        if fault == "reset":
            self._break()
            return
        if fault == "503":
            self._send(503, {"Retry-After": "1", "Content-Type": "text/plain"}, b"busy")
            return
        if fault == "late":
            time.sleep(12)
        upstream = http.client.HTTPConnection(self.server.proxy.target, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            upstream.request(self.command, self.path, body, headers)
            response = upstream.getresponse()
            content = response.read()
        except OSError:  # the server is stopped
            self._break()
            return
        finally:
            upstream.close()
        if fault in ("lost", "late"):
            self._break()
            return
        dropped = ("transfer-encoding", "connection", "content-length", "date", "server")
        kept = {name: value for name, value in response.getheaders() if name.lower() not in dropped}
        if fault == "empty":
            self._send(response.status, kept, b"")
        elif fault == "cut" and len(content) > 1:
            self._send(response.status, {**kept, "Content-Length": str(len(content))}, content[: len(content) // 2])
            self._break()
        else:
            self._send(response.status, kept, content)

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            self.wfile.flush()

    def _break(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _answer


class _QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    proxy: Any

    def handle_error(self, *_: object) -> None:
        """A connection that breaks is what the proxy is for."""


class HttpProxy:
    """A proxy before a tracking server. `counts` has the number of requests by what was done to them.

    Attributes:
        fault: is called with the method and the path of a request; returns what to do with it, or None.
    """

    def __init__(self, target: str):
        self.target = urlsplit(target).netloc
        self.fault: Callable[[str, str], HttpFault | None] = lambda method, path: None
        self.counts: Counter[str] = Counter()
        self._server = _QuietServer(("127.0.0.1", 0), _Requests)
        self._server.proxy = self
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def fail_at_random(self, rate: float, seed: int, faults: tuple[HttpFault, ...] = HTTP_FAULTS) -> None:
        """Let a share of all requests fail from now on."""
        chance = random.Random(seed)
        self.fault = lambda method, path: chance.choice(faults) if chance.random() < rate else None

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class TcpProxy:
    """A proxy before any server. `counts` has the number of packets by what was done to them.

    Attributes:
        breaks: is called for every packet; returns whether its connection is reset in its place.
        delay: seconds by which every packet is held back.
    """

    def __init__(self, port: int):
        self.target = port
        self.breaks: Callable[[], bool] = lambda: False
        self.delay = 0.0
        self.counts: Counter[str] = Counter()
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def fail_at_random(self, rate: float, seed: int) -> None:
        """Let a share of all packets be replaced by a reset from now on."""
        chance = random.Random(seed)
        self.breaks = lambda: chance.random() < rate

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                ours, _ = self._listener.accept()
                try:
                    theirs = socket.create_connection(("127.0.0.1", self.target))
                except OSError:  # the server is stopped
                    reset(ours)
                    continue
                pair = (ours, theirs)
                self._pairs.add(pair)
                for source, sink in (pair, pair[::-1]):
                    threading.Thread(target=self._pass_on, args=(pair, source, sink), daemon=True).start()

    def _pass_on(self, pair: tuple[socket.socket, socket.socket], source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while packet := source.recv(65536):
                if self.breaks():
                    self.counts["reset"] += 1
                    break
                self.counts["passed"] += 1
                time.sleep(self.delay)
                sink.sendall(packet)
        self._pairs.discard(pair)
        for side in pair:
            reset(side)

    def reset_all(self) -> None:
        """Reset every connection once."""
        for pair in list(self._pairs):
            self.counts["reset"] += 1
            for side in pair:
                reset(side)

    def close(self) -> None:
        self._listener.close()
        self.reset_all()


@contextlib.contextmanager
def proxied(server: Server, postgresql: PostgreSQL) -> Iterator[tuple[HttpProxy, TcpProxy, dict[str, str]]]:
    """Yield proxies before both servers, and the variables of a new store behind them."""
    web, database = HttpProxy(server.address), TcpProxy(postgresql.port)
    address = postgresql.new_database().replace(f":{postgresql.port}/", f":{database.port}/")
    try:
        yield web, database, {"OPTUNA_STORAGE": address, "MLFLOW_TRACKING_URI": web.address}
    finally:
        web.close()
        database.close()
