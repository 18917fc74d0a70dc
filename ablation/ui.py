"""`python -m ablation.ui`: the MLflow UI on a store, opened where it answers a study's question."""

import importlib.util
import ipaddress
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import click

from ablation import __version__
from ablation.base.command_line import refusing_unreachable_paths, run_command, store_option
from ablation.base.errors import InputError, StoreError
from ablation.storage.store import Store, find_store

FIRST_PORT, PORTS = 5000, 100  # those that are tried
END_SECONDS = 10  # for the server to end by itself
SERVER_VARIABLES = {  # a variable that the user has set wins
    "MLFLOW_DISABLE_TELEMETRY": "true",  # otherwise MLflow sends usage statistics on its user's behalf
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # jobs for GenAI, in processes that take 2 GB
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("study", metavar="[NAME]", required=False)
@store_option("Folder with the results.")
@click.option("--host", default="127.0.0.1", metavar="HOST", help="Address to listen at.  [default: 127.0.0.1]")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Port to listen at.  [default: the first free one from 5000]",
)
@click.option(
    "--auth", "with_auth", is_flag=True, help="Ask for a name and a password, by MLflow's basic authentication."
)
@click.option("--no-browser", is_flag=True, help="Print the addresses; open none of them.")
@click.version_option(__version__)
def cli(
    study: str | None, store_folder: str | None, host: str, port: int | None, with_auth: bool, no_browser: bool
) -> None:
    """Open the MLflow UI on a store, at the study NAME if there is one; Ctrl-C ends it."""
    store = find_store(store_folder)
    with refusing_unreachable_paths():
        check_servable(store, host, with_auth=with_auth)
    port = free_port(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port), "--workers", "1"]
    command += ["--app-name", "basic-auth"] if with_auth else []
    # In the environment: other users of the machine could read the password in an argument.
    environment = {**SERVER_VARIABLES, **os.environ, "MLFLOW_BACKEND_STORE_URI": store.tracking_uri}
    with tempfile.TemporaryFile() as log, running(command, environment, log) as process:
        pages = pages_to_open(store, study, address)  # found while the server starts
        wait_until_it_answers(process, address, log)
        width = max(len(name) for name, _ in pages)
        for name, page in pages:
            print(f"{name:<{width}}  {page}", flush=True)
        print("Ctrl-C ends the UI.", flush=True)
        if not no_browser and has_screen():
            webbrowser.open(pages[0][1])
        process.wait()
        raise StoreError(f"the MLflow UI has ended ({last_line(log)})")


def free_port(host: str, port: int | None) -> int:
    """Return the port to listen at: the one that was asked for, else the first free one from 5000.

    Raises:
        InputError: the port belongs to another program, or the host is none of this machine's.
    """
    for candidate in range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]:
        try:
            family, *_, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                if sys.platform != "win32":  # where it would allow a port that is in use
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except socket.gaierror as error:
            raise InputError(f"--host: {host} is unknown ({error.strerror})") from None
        except OSError as error:
            reason = error.strerror
            continue
        return candidate
    ports = f"{FIRST_PORT} to {FIRST_PORT + PORTS - 1}" if port is None else port
    raise InputError(f"--port: {ports} on {host} cannot be used ({reason})")


@contextmanager
def running(command: list[str], environment: dict[str, str], log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in this context; its output goes to `log`."""
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def pages_to_open(store: Store, study: str | None, address: str) -> list[tuple[str, str]]:
    """Return names and addresses of pages of the UI, the one to open first.

    They are a study's saved views, of the store's only study where none is named; else the list of studies. Of a study
    whose views somebody has deleted, its runs are opened.

    Raises:
        InputError: there is no such study.
    """
    from ablation.base.terminal import loading

    with loading("MLflow"):
        from ablation.tracking import configure_mlflow
        from ablation.tracking.saved_views import stored_views

    configure_mlflow()
    experiment_id, views = stored_views(store, study, address)
    if experiment_id is None:
        # The UI opens in its GenAI mode without the workflow.
        return [("Studies", f"{address}/#/experiments?workflowType=machine_learning")]
    return views or [("Runs", f"{address}/#/experiments/{experiment_id}/runs?workflowType=machine_learning")]


def wait_until_it_answers(process: subprocess.Popen[bytes], address: str, log: IO[bytes]) -> None:
    """Wait until the server answers.

    Raises:
        StoreError: it has ended before.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not reach this machine
    while process.poll() is None:
        try:
            with direct.open(f"{address}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise StoreError(f"the MLflow UI does not start ({last_line(log)})")


def last_line(log: IO[bytes]) -> str:
    """Return the last line of a server's output."""
    log.seek(0)
    lines = log.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "without a word")


def has_screen() -> bool:
    """Return whether a browser can show a page; without a screen, Python would open one in this terminal."""
    variables = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in variables)


def check_servable(store: Store, host: str, *, with_auth: bool) -> None:
    """Refuse a store that cannot be shown, and an address that would show it to everybody.

    Raises:
        InputError: the store is empty or is a server, which has its own UI; the host is not this machine alone and
            `--auth` is missing; MLflow's authentication is not installed.
    """
    if store.tracking_uri.startswith("http"):
        raise InputError("MLFLOW_TRACKING_URI: names a server, which has its own UI: open its address")
    if store.has_own_tracking and not (store.root / "mlflow.db").is_file():
        raise InputError(f"--store: {store.root} is no store, or an empty one: run a study first")
    if not _is_loopback(host) and not with_auth:
        raise InputError(f"--host: {host} would show everything to everybody who reaches it; add --auth")
    if with_auth and importlib.util.find_spec("flask_wtf") is None:
        raise InputError("--auth: needs more packages: pip install mlflow[auth]")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


if __name__ == "__main__":
    sys.exit(run_command(cli))
