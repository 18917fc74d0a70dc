"""`python -m ablation.ui`: MLflow's UI on a store, for this machine alone unless it asks for a password."""

import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from ablation.base.errors import InputError
from ablation.storage.store import find_store
from ablation.tracking.client import open_client
from ablation.ui import check_servable
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
    try:
        assert process.stdout is not None
        address = f"http://127.0.0.1:{port}/"
        assert process.stdout.readline() == f"open {address}#/experiments?workflowType=machine_learning\n"
        request = urllib.request.Request(
            f"{address}ajax-api/2.0/mlflow/experiments/search?max_results=10",
            headers={"Content-Type": "application/json"},
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:
                    assert b"a-study-to-be-seen" in answer.read()
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.wait(30)
    finally:
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
