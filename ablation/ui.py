"""`python -m ablation.ui`: MLflow's UI on a store."""

import importlib.util
import ipaddress
import os
import sys

import click

from ablation import __version__
from ablation.base.command_line import refusing_unreachable_paths, run_command
from ablation.base.errors import InputError
from ablation.storage.store import Store, find_store


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--store", "store_option", metavar="DIR", help="Folder with the results.  [default: mlruns]")
@click.option("--host", default="127.0.0.1", metavar="HOST", help="Address to listen at.  [default: 127.0.0.1]")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=5000, metavar="PORT", help="Port to listen at.  [default: 5000]"
)
@click.option(
    "--auth", "with_auth", is_flag=True, help="Ask for a name and a password, by MLflow's basic authentication."
)
@click.version_option(__version__)
def cli(store_option: str | None, host: str, port: int, with_auth: bool) -> None:
    """Open MLflow's UI on a store; Ctrl-C ends it."""
    store = find_store(store_option)
    with refusing_unreachable_paths():
        check_servable(store, host, with_auth=with_auth)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", host, "--port", str(port)]
    command += ["--app-name", "basic-auth"] if with_auth else []
    shown = f"[{host}]" if ":" in host else host
    # The UI opens in its GenAI mode without the workflow.
    print(f"open http://{shown}:{port}/#/experiments?workflowType=machine_learning", flush=True)
    # In the environment: other users of the machine could read the password in an argument.
    os.execve(sys.executable, command, {**os.environ, "MLFLOW_BACKEND_STORE_URI": store.tracking_uri})


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
