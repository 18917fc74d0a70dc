"""How fast it is: python -m ablation.bench

This package and a plain PyTorch loop do the same work in turns, in the same process. The plain loop is as the tutorials
write it: a DataLoader with torchvision's transforms, the whole network in every epoch, float32. Tables go to the
terminal, all measurements to a JSON file.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from ablation import __version__
from ablation.base.command_line import check_device_name, run_command
from ablation.base.errors import InputError
from ablation.base.files import expand, write_atomically
from ablation.benchmark import SMALL_TRIALS


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--images", metavar="DIR", help="train/<class>/* and test/<class>/*.  [default: scikit-learn's digits]")
@click.option("--weights", metavar="FILE", help="Weights of VGG-16, as for a study.  [default: random weights]")
@click.option("--limit", type=click.IntRange(100), default=5000, metavar="N", help="Training images.  [default: 5000]")
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps.  [default: auto]")
@click.option("--repeats", type=click.IntRange(1), default=3, metavar="N", help="Of each measurement.  [default: 3]")
@click.option(
    "--fill", type=click.IntRange(2 * SMALL_TRIALS), default=100, metavar="N",
    help="Small trials in one store, to see whether they stay fast.  [default: 100]",
)  # fmt: skip
@click.option("--output", default="bench.json", metavar="FILE", help="All measurements.  [default: bench.json]")
@click.version_option(__version__)
def cli(images: str | None, weights: str | None, limit: int, device: str, repeats: int, fill: int, output: str) -> None:
    """Measure how fast trainings, trials and studies are on this machine, beside a plain PyTorch loop."""
    check_device_name(device)
    target = expand(output)
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise InputError(f"--output: {target} cannot be written")

    from ablation.base.terminal import show_table
    from ablation.benchmark.measures import (
        feature_extraction,
        fine_tuning,
        process_peak_bytes,
        small_trials,
        start_up,
        tracking_overhead,
        training_steps,
    )
    from ablation.benchmark.subject import load_subject
    from ablation.benchmark.tables import provenance, result_tables
    from ablation.search import configure_optuna
    from ablation.tracking import configure_mlflow

    configure_mlflow()
    configure_optuna()
    with tempfile.TemporaryDirectory(prefix="ablation-bench-") as folder:
        subject = load_subject(images, weights, limit, device, repeats, Path(folder))
        measurements: dict[str, Any] = {"about": provenance(subject, images, weights)}
        for measure in (feature_extraction, fine_tuning, training_steps, small_trials, tracking_overhead, start_up):
            print(f"measuring: {measure.__name__.replace('_', ' ')} ...", file=sys.stderr, flush=True)
            started = time.perf_counter()
            measurements[measure.__name__] = measure(subject, Path(folder), fill) | {
                "seconds": round(time.perf_counter() - started, 1)
            }
            measurements["peak_memory_bytes"] = process_peak_bytes()
            write_atomically(target, json.dumps(measurements, indent=2).encode())  # kept if a later measurement fails
    for table in result_tables(measurements):
        show_table(table)
        print()
    print(f"All measurements: {target}")


if __name__ == "__main__":
    sys.exit(run_command(cli))
