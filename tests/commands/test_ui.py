"""`python -m ablation.ui`: MLflow's UI on a store, for this machine alone unless it asks for a password."""

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from ablation.base.errors import InputError, StoreError
from ablation.storage.store import find_store
from ablation.tracking.client import open_client
from ablation.ui import check_servable, last_line, running, wait_until_it_answers
from ablation.ui import free_port as port_to_listen_at
from tests.servers import free_port


def store_with_something(folder: Path) -> Path:
    store = find_store(str(folder / "s"))
    store.prepare()
    client = open_client(store, create=True)
    assert client is not None
    client.create_experiment("a-study-to-be-seen")
    return store.root


def test_it_shows_the_store(tmp_path: Path) -> None:
    root, port = store_with_something(tmp_path), free_port()
    command = [sys.executable, "-m", "ablation.ui", "--store", str(root), "--port", str(port)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    limit = threading.Timer(120, process.kill)  # else a line that never comes would be waited for
    limit.start()
    try:
        assert process.stdout is not None
        address = f"http://127.0.0.1:{port}/"
        # It is printed when the server answers.
        assert process.stdout.readline() == f"Studies  {address}#/experiments?workflowType=machine_learning\n"
        request = urllib.request.Request(
            f"{address}ajax-api/2.0/mlflow/experiments/search?max_results=10",
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert b"a-study-to-be-seen" in answer.read()
        process.send_signal(signal.SIGINT)
        process.wait(30)
    finally:
        limit.cancel()
        process.kill()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_alone(host: str, tmp_path: Path) -> None:
    check_servable(find_store(str(store_with_something(tmp_path))), host, with_auth=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_not_to_everybody_without_a_password(host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = find_store(str(store_with_something(tmp_path)))
    with pytest.raises(
        InputError, match=f"--host: {host} would show everything to everybody who reaches it; add --auth"
    ):
        check_servable(store, host, with_auth=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--auth: needs more packages: pip install mlflow\[auth\]"):
        check_servable(store, host, with_auth=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    check_servable(store, host, with_auth=True)


def test_nothing_to_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is no store, or an empty one"):
        check_servable(find_store(str(tmp_path / "none")), "localhost", with_auth=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    with pytest.raises(InputError, match="names a server, which has its own UI"):
        check_servable(find_store(None), "localhost", with_auth=False)


def test_a_port_of_another_program_is_refused_or_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(InputError, match=f"--port: {taken} on 127.0.0.1 cannot be used \\(.*in use"):
            port_to_listen_at("127.0.0.1", taken)
        monkeypatch.setattr("ablation.ui.FIRST_PORT", taken)
        assert taken < port_to_listen_at("127.0.0.1", None) < taken + 100


def test_a_server_that_does_not_start_is_an_error() -> None:
    words = "import sys; print('a first line'); sys.exit('no memory, say')"
    with TemporaryFile() as log, running([sys.executable, "-c", words], dict(os.environ), log) as process:
        with pytest.raises(StoreError, match=r"does not start \(no memory, say\)"):
            wait_until_it_answers(process, "http://127.0.0.1:9", log)
        assert last_line(log) == "no memory, say"


def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")  # where nobody listens
    with (
        HTTPServer(("127.0.0.1", 0), Healthy) as server,
        TemporaryFile() as log,
        running(["sleep", "10"], dict(os.environ), log) as process,
    ):
        threading.Thread(target=server.handle_request, daemon=True).start()
        wait_until_it_answers(process, f"http://127.0.0.1:{server.server_port}", log)


class Healthy(BaseHTTPRequestHandler):
    """Answers 200."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()


def test_a_server_ends_with_the_command() -> None:
    with TemporaryFile() as log, running(["sleep", "60"], dict(os.environ), log) as process:
        assert process.poll() is None
    assert process.poll() is not None
