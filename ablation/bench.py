"""How fast it is: python -m ablation.bench

This package and a plain PyTorch loop do the same work in turns, in the same process. The plain loop is as the tutorials
write it: a DataLoader with torchvision's transforms, the whole network in every epoch, float32. With `--study`, a whole
study runs instead, and the time that each of its parts takes is measured. Tables go to the terminal, all measurements
to a JSON file. With `--scale`, trainings return at once, and what a trial costs beside them is measured.
"""

import json
import os
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ablation import __version__
from ablation.base.command_line import check_device_name, refusing_unreachable_paths, run_command
from ablation.base.errors import InputError
from ablation.base.files import expand, write_atomically
from ablation.base.text import Table
from ablation.benchmark import SMALL_TRIALS
from ablation.spec.files import check_images, check_weights_file, find_study_file
from ablation.spec.reading import WithoutEffect, load_study
from ablation.spec.study import StudySpec
from ablation.storage.store import find_store
from ablation.study import load_backbone, study_overrides

ONLY_WITHOUT_STUDY = {"limit": "--set data.limit=N", "repeats": "the study runs once", "fill": "--trials N"}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--images", metavar="DIR", help="train/<class>/* and test/<class>/*.  [default: scikit-learn's digits]")
@click.option("--weights", metavar="FILE", help="Weights of VGG-16, as for a study.  [default: random weights]")
@click.option("--limit", type=click.IntRange(100), default=5000, metavar="N", help="Training images.  [default: 5000]")
@click.option("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.  [default: auto]")
@click.option(
    "--repeats", type=click.IntRange(1), default=3, metavar="N", help="Repetitions of each measurement.  [default: 3]"
)
@click.option(
    "--fill", type=click.IntRange(2 * SMALL_TRIALS), default=100, metavar="N",
    help="Small trials in one store, to see whether they stay fast.  [default: 100]",
)  # fmt: skip
@click.option(
    "--study", is_flag=False, flag_value="vgg_truncation", metavar="[NAME]",
    help="Measure the whole study NAME instead, with its own images and weights by default.  [NAME: vgg_truncation]",
)  # fmt: skip
@click.option(
    "--scale", type=click.IntRange(100), metavar="N",
    help="Measure a study of N trials that return at once instead, on the servers that the environment names, if both.",
)  # fmt: skip
@click.option(
    "--workers", type=click.IntRange(1), default=1, metavar="N", help="With --scale: processes.  [default: 1]"
)
@click.option("--trials", type=int, metavar="N", help="With --study: total number of trials per arm.")
@click.option("--epochs", type=int, metavar="N", help="With --study: number of epochs per trial.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="With --study: set a field; repeatable.")
@click.option(
    "--output", default="bench.json", metavar="FILE", help="File for all measurements.  [default: bench.json]"
)
@click.version_option(__version__)
@click.pass_context
def cli(
    context: click.Context,
    images: str | None,
    weights: str | None,
    limit: int,
    device: str,
    repeats: int,
    fill: int,
    study: str | None,
    scale: int | None,
    workers: int,
    trials: int | None,
    epochs: int | None,
    settings: tuple[str, ...],
    output: str,
) -> None:
    """Measure how fast trainings, trials and studies are on this machine, beside a plain PyTorch loop."""
    check_device_name(device)
    target = expand(output)
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise InputError(f"--output: {target} cannot be written")
    changes = study_overrides(Path(), None, trials, epochs, settings)
    chosen = {name for name in context.params if context.get_parameter_source(name) == ParameterSource.COMMANDLINE}
    if scale is not None and chosen - {"scale", "workers", "output"}:
        raise InputError("--scale: goes with --workers and --output alone")
    if scale is None and workers > 1:
        raise InputError("--workers: only with --scale")
    if study is None and changes:
        raise InputError("--trials, --epochs and --set: only with --study")
    for name, instead in ONLY_WITHOUT_STUDY.items():
        if study is not None and name in chosen:
            raise InputError(f"--{name}: not with --study; {instead}")
    spec = None if study is None else spec_to_measure(study, images, weights, changes)

    from ablation.base.terminal import loading

    with loading("torch, MLflow and Optuna"):
        from ablation.base.core_use import core_use, read_core_times
        from ablation.benchmark.measures import (
            feature_extraction,
            fine_tuning,
            process_peak_bytes,
            small_trials,
            start_up,
            tracking_overhead,
            training_steps,
        )
        from ablation.benchmark.step_modes import step_modes
        from ablation.benchmark.subject import load_subject
        from ablation.benchmark.tables import provenance, result_tables
        from ablation.search import configure_optuna
        from ablation.tracking import configure_mlflow

    configure_mlflow()
    configure_optuna()
    with tempfile.TemporaryDirectory(prefix="ablation-bench-") as name:
        folder = Path(name)
        if scale is not None:
            return measure_scale(scale, workers, folder, target)
        if spec is not None:
            return measure_study(spec, device, folder, target)
        measures = (
            feature_extraction, fine_tuning, training_steps, step_modes, small_trials, tracking_overhead, start_up
        )  # fmt: skip
        subject = load_subject(images, weights, limit, device, repeats, folder)
        measurements: dict[str, Any] = {"about": provenance(subject, images, weights)}
        for measure in measures:
            print(f"measuring: {measure.__name__.replace('_', ' ')} ...", file=sys.stderr, flush=True)
            before = read_core_times()
            result = measure(subject, folder, fill)
            after = read_core_times()
            measurements[measure.__name__] = result | {
                "seconds": round(after.wall - before.wall, 1),
                "core_use": asdict(core_use(before, after)),
            }
            measurements["peak_memory_bytes"] = process_peak_bytes()
            write_atomically(target, json.dumps(measurements, indent=2).encode())  # kept if a later measurement fails
    return show_results(measurements, result_tables(measurements), target)


def measure_scale(count: int, workers: int, folder: Path, target: Path) -> None:
    """Run a simulated study, and print what a trial, --status and reading the results cost."""
    from ablation.benchmark.scale import scale
    from ablation.benchmark.tables import scale_table

    store = find_store(str(folder))
    if os.environ.get("OPTUNA_STORAGE") and os.environ.get("MLFLOW_TRACKING_URI"):
        store = replace(find_store(None), root=folder)
    measured = scale(store, count, workers)
    show_results(measured, [scale_table(measured)], target)


def spec_to_measure(
    study: str, images: str | None, weights: str | None, changes: list[tuple[list[str], Any]]
) -> StudySpec:
    """Return the study with these images and weights, where there are any, and other changes.

    Raises:
        InputError: there is no such study, or it is not valid.
    """
    overrides: list[tuple[list[str], Any]] = []
    overrides += [(["data", "source"], "imagefolder"), (["data", "root"], images)] if images else []
    overrides += [(["backbone", "weights"], weights)] if weights else []
    with refusing_unreachable_paths():
        path, overrides = find_study_file(study), [*overrides, *changes]
        try:
            spec = load_study(path, overrides=overrides, load_backbone=load_backbone)
        except WithoutEffect as error:  # changes nothing that is measured
            spec = error.spec
        check_weights_file(spec)
        check_images(spec.data)
    return spec


def measure_study(spec: StudySpec, device: str, folder: Path, target: Path) -> None:
    """Run a study in a temporary store, and print the tables of its time."""
    from ablation.base.core_use import core_use, read_core_times
    from ablation.benchmark.tables import study_tables
    from ablation.benchmark.whole_study import whole_study

    before = read_core_times()
    measured = whole_study(spec, find_store(str(folder)), device)
    measured["core_use"] = asdict(core_use(before, read_core_times()))
    show_results(measured, study_tables(measured), target)
    if not measured["is_whole"]:
        raise KeyboardInterrupt


def show_results(measurements: dict[str, Any], tables: list[Table], target: Path) -> None:
    """Write all measurements to a file, and print the tables of them."""
    from ablation.base.terminal import show_table

    write_atomically(target, json.dumps(measurements, indent=2).encode())
    for table in tables:
        show_table(table)
        print()
    print(f"All measurements: {target}")


if __name__ == "__main__":
    sys.exit(run_command(cli))
