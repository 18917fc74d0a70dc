"""The report of a study, or of its repeats: python -m ablation.report NAME...

The report needs only MLflow's data, on any machine. The same content becomes a page (report.html) and a text with
plots beside it (report.md); a short form goes to the terminal.
"""

import sys

import click

from ablation import __version__
from ablation.base.command_line import patience_option, run_command, store_option
from ablation.base.errors import InputError
from ablation.base.files import expand
from ablation.spec.reading import check_name
from ablation.storage.store import find_store_to_write


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@store_option("Folder with the results.")
@click.option("--output", metavar="DIR", help="Folder for the report.  [default: reports/NAME... in the store]")
@click.option(
    "--format",
    "form",
    type=click.Choice(["latex", "csv", "json", "bibtex"]),
    help="Print tables for a paper (latex), all runs (csv), the numbers of the answer (json) or the methods' sources "
    "(bibtex); write no report.",
)
@patience_option("Time to wait for a server that is away.  [default: 2]")
@click.version_option(__version__)
def cli(
    names: tuple[str, ...], store_folder: str | None, output: str | None, form: str | None, patience: float | None
) -> None:
    """Write the report of the study NAME from its data in MLflow, and print its short form.

    Several studies that differ in their seed alone are pooled: the answer then holds for the whole study done again.
    """
    for name in names:
        check_name(name)
    if form is not None and output is not None:
        raise InputError("--output: --format prints to standard output and writes no report")
    store = find_store_to_write(store_folder)
    store.check_reachable()

    from ablation.base.retries import wait_out
    from ablation.base.terminal import loading, say_prose

    with loading("MLflow and Altair"):
        from ablation.reporting.exports import export
        from ablation.reporting.report import analyse_looked_at, read_studies, show_report, write_report
        from ablation.running.repair import stored_differences
        from ablation.search import configure_optuna
        from ablation.tracking import configure_mlflow

    configure_mlflow()
    configure_optuna()
    if form is not None:
        analysis = wait_out(lambda: analyse_looked_at(store, read_studies(store, names)), patience)
        click.echo(export(analysis, form), nl=False)
        return
    folder = None if output is None else expand(output)
    show_report(wait_out(lambda: write_report(store, names, folder), patience))
    for name in names:
        for text in stored_differences(store, name):
            say_prose(text)


if __name__ == "__main__":
    sys.exit(run_command(cli))
