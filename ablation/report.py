"""The report of a study: python -m ablation.report NAME

The report needs only MLflow's data, on any machine. The same content becomes a page (report.html) and a text with
plots beside it (report.md); a short form goes to the terminal.
"""

import sys

import click

from ablation import __version__
from ablation.base.command_line import patience_option, run_command
from ablation.base.files import expand
from ablation.spec.reading import check_name
from ablation.storage.store import find_store


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("name", metavar="NAME")
@click.option("--store", "store_option", metavar="DIR", help="Folder with the results.  [default: mlruns]")
@click.option("--output", metavar="DIR", help="Folder for the report.  [default: reports/NAME in the store]")
@patience_option("Time to wait for a server that is away.  [default: 2]")
@click.version_option(__version__)
def cli(name: str, store_option: str | None, output: str | None, patience: float | None) -> None:
    """Write the report of the study NAME from its data in MLflow, and print its short form."""
    check_name(name)
    store = find_store(store_option)

    from ablation.base.retries import START_PATIENCE, wait_out
    from ablation.reporting.report import show_report, write_report
    from ablation.search import configure_optuna
    from ablation.tracking import configure_mlflow

    configure_mlflow()
    configure_optuna()
    folder = None if output is None else expand(output)
    seconds = START_PATIENCE if patience is None else patience
    show_report(wait_out(lambda: write_report(store, name, folder), seconds))


if __name__ == "__main__":
    sys.exit(run_command(cli))
