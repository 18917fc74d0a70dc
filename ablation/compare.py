"""Compare studies of one question on several data sets or networks: python -m ablation.compare NAME NAME..."""

import sys

import click

from ablation import __version__
from ablation.base.command_line import patience_option, run_command, store_option
from ablation.base.errors import InputError
from ablation.spec.reading import check_name
from ablation.storage.store import find_store_to_write


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", metavar="NAME NAME...", nargs=-1, required=True)
@store_option("Folder with the results.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", help="[default: text]")
@patience_option("Time to wait for a server that is away.  [default: 2]")
@click.version_option(__version__)
def cli(names: tuple[str, ...], store_folder: str | None, form: str, patience: float | None) -> None:
    """Compare studies that ask one question of several data sets or networks, and print what holds of all.

    The studies compare the same levels; each is one observation. From three studies on, the mean difference of two
    levels has an interval for other data sets or networks like these.
    """
    for name in names:
        check_name(name)
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError("which studies? name at least two, each once")
    store = find_store_to_write(store_folder)
    store.check_reachable()

    from ablation.base.retries import wait_out
    from ablation.base.terminal import loading, say, say_prose, show_table

    with loading("MLflow and Optuna"):
        from ablation.reporting.comparison_of_studies import across_json, across_sentences, across_tables, read_studies
        from ablation.search import configure_optuna
        from ablation.tracking import configure_mlflow

    configure_mlflow()
    configure_optuna()
    analyses = wait_out(lambda: read_studies(store, names), patience)
    if form == "json":
        click.echo(across_json(analyses), nl=False)
        return
    for table in across_tables(analyses):
        show_table(table)
        say("")
    for sentence in across_sentences(analyses):
        say_prose(sentence)


if __name__ == "__main__":
    sys.exit(run_command(cli))
