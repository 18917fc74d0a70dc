"""The tables of `ablation.bench`."""

from collections.abc import Callable
from typing import Any

import torch

from ablation.base.cores import core_share
from ablation.base.machine import describe_environment
from ablation.base.text import Table, plural
from ablation.benchmark.measures import EPOCHS, TRIALS
from ablation.benchmark.step_modes import MODES
from ablation.benchmark.subject import BATCH_SIZE, Measured, Subject


def provenance(subject: Subject, images: str | None, weights: str | None) -> dict[str, Any]:
    """Return the machine, versions and data that the measurements belong to."""
    return {
        **describe_environment(subject.device),
        "threads": torch.get_num_threads(),
        "training images": len(subject.train_images),
        "validation images": len(subject.val_images),
        "image size": list(subject.train_images.images_NCHW.shape[2:]),
        "images": "an image folder" if images else "scikit-learn's digits",
        "weights": "a file" if weights else "random",
        "batch size": BATCH_SIZE,
        "repeats": subject.repeats,
    }


def scale_table(measured: dict[str, Any]) -> Table:
    """Return the table of a simulated study, see `scale`."""
    figures = {
        "trials claimed per second, all processes": f"{measured['claims_per_second']:.2f}",
        "from one trial to the next, the first tenth (s)": f"{measured['first_tenth_seconds']:.3f}",
        "the same, the last tenth (s)": f"{measured['last_tenth_seconds']:.3f}",
        **({"the processor's time for a trial (s)": f"{used:.3f}"} if (used := measured["processor_seconds"]) else {}),
        "--status (s)": f"{measured['status_seconds']:.2f}",
        "reading all results (s)": f"{measured['results_seconds']:.2f}",
    }
    sizes = {"Optuna's database": measured["optuna_bytes"], "MLflow's database": measured["mlflow_bytes"]}
    figures |= {f"{name} (MB)": f"{size / 1e6:.1f}" for name, size in sizes.items() if size is not None}
    if measured["connections"] is not None:
        figures["most connections to PostgreSQL"] = str(measured["connections"])
    processes = plural(measured["workers"], "process", "processes")
    title = f"{plural(measured['trials'], 'trial')} that return at once, {processes}"
    return Table(title, ["measured", "value"], [[name, value] for name, value in figures.items()])


def result_tables(measurements: dict[str, Any]) -> list[Table]:
    """Return the terminal's tables: the same work twice, the costs of a trial, and the training steps.

    Args:
        measurements: `about`, `peak_memory_bytes`, and the result of each function of `measures` by its name.
    """
    about = measurements["about"]
    results = {name: result for name, result in measurements.items() if name not in ("about", "peak_memory_bytes")}
    where = f"{about['device']}, {about['threads']} threads, torch {about['torch']}"
    extraction, fine_tuning = measurements["feature_extraction"], measurements["fine_tuning"]
    steps, small = measurements["training_steps"], measurements["small_trials"]
    minute, start = measurements["tracking_overhead"], measurements["start_up"]
    studies = Measured(extraction["study_seconds"])
    plain = extraction["plain_seconds_of_one_trial"]
    without = seconds_for(about["training images"], extraction["images_per_second_without_stored_features"])
    with_features = Measured([s / EPOCHS for s in extraction["training_seconds_of_a_trial"]])
    ours, plain_rates = Measured(fine_tuning["ours"]), Measured(fine_tuning["plain"])
    share = 100 * minute["tracking_seconds"] / minute["trial_seconds"]
    work = [
        [
            f"feature extraction, block3, {TRIALS} trials of {EPOCHS} epochs (s)",
            studies.text(1),
            f"{TRIALS * plain:,.0f} ({TRIALS} x {plain:,.1f}, n = 1)",
            f"{extraction['ratio']:.1f}",
        ],
        [
            f"its first trial's validation accuracy ({extraction['validation_images']} images)",
            f"{extraction['our_accuracy']:.4f}",
            f"{extraction['plain_accuracy']:.4f}",
            "-",
        ],
        [f"fine_tune_all at {fine_tuning['cut']}, {fine_tuning['precision']}, our batch size "
         f"{fine_tuning['our_batch_size']} (images/s)",
         ours.text(), plain_rates.text(), f"{fine_tuning['ratio']:.2f}"],
    ]  # fmt: skip
    costs = [
        ["an epoch on cached features (s)", with_features.text(3)],
        ["the same without cached features (s)", without.text(2)],
        ["from one small trial to the next, in a new store (s)", Measured(small["first_seconds"]).text(3)],
        [f"the same, after {small['trials']} trials (s)", Measured(small["last_seconds"]).text(3)],
        ["training in a small trial (s)", f"{small['of_which_training']:.3f}"],
        [f"growth of memory in {small['trials']} trials (MB)", f"{small['memory_growth_bytes'] / 1e6:,.0f}"],
        [
            f"MLflow in a trial of {minute['trial_seconds']:.0f} s, {minute['epochs']} epochs",
            f"{minute['tracking_seconds']:.2f} s, {share:.2f} %",
        ],
        ["from the command to the first trial, new store (s)", Measured(start["new_store"]).text(1)],
        ["the same, existing store (s)", Measured(start["old_store"]).text(1)],
        ["peak memory of this process (GB)", f"{measurements['peak_memory_bytes'] / 1e9:.1f}"],
    ]
    ceiling = Measured([rate / 1e9 for rate in steps["ceiling_flops"]])
    rates = [
        [row["cut"], row["strategy"], str(row["batch_size"]), Measured(row["images_per_second"]).text(),
         f"{100 * row['share_of_ceiling']:.0f} %"]
        for row in steps["rows"]
    ]  # fmt: skip
    spread = "Medians, with the smallest and the largest value; n is the number of measurements."
    return [
        Table(f"The same work ({where})", ["work", "ablation", "plain loop", "ratio"], work, [spread]),
        Table("Costs of trials and studies", ["cost", "measured"], costs, [spread]),
        Table(
            f"Training step, {steps['precision']}, without cached features",
            ["cut", "strategy", "batch size", "images/s", "share of ceiling"],
            rates,
            [
                f"The ceiling is the speed of a large matrix product or convolution: {ceiling.text()} GFLOP/s.",
                spread,
            ],
        ),
        *mode_tables(measurements["step_modes"]["rows"]),
        cores_table({name: result["core_use"] for name, result in results.items() if result["seconds"] > 0}),
    ]


def cores_table(uses: dict[str, dict[str, float]]) -> Table:
    """Return the table of the cores' use; `uses` has the fields of `CoreUse` for every measurement."""
    rows = [[name.replace("_", " "), f"{use['own']:.1f}", f"{use['others']:.1f}"] for name, use in uses.items()]
    note = (
        f"Cores kept busy on average, of {core_share():.3g} that this process may use. Where others kept some busy, "
        "what was measured is slower than on an idle machine."
    )
    return Table("Use of the cores", ["measurement", "by the benchmark", "by others"], rows, [note])


def mode_tables(rows: list[dict[str, Any]]) -> list[Table]:
    """Return the tables of the training step by mode: its speed, and what its first epoch takes; none without rows."""
    if not rows:
        return []
    modes = [mode for mode in MODES if any(row["mode"] == mode for row in rows)]
    lines = list(dict.fromkeys((row["work"], row["batch_size"]) for row in rows))

    def cells(text: Callable[[dict[str, Any]], str]) -> list[list[str]]:
        texts = {(row["work"], row["batch_size"], row["mode"]): text(row) for row in rows}
        return [[work, str(batch), *(texts.get((work, batch, mode), "-") for mode in modes)] for work, batch in lines]

    count = len(rows[0]["images_per_second"])
    columns = ["work", "batch size", *modes]
    return [
        Table(
            "Training step by mode, bfloat16 (images/s)",
            columns,
            cells(lambda row: f"{Measured(row['images_per_second']).median:,.0f}"),
            [
                f"Medians of {plural(count, 'epoch')} on random images; captured: in a CUDA graph, which `compile = "
                '"none"` does; the last columns are the values of `compile`.'
            ],
        ),
        Table(
            "From the start to the end of the first epoch (s)",
            columns,
            cells(lambda row: f"{row['seconds_of_the_first_epoch']:.1f}"),
            ["With what is captured or compiled; the next trial of the same shape need not compile again."],
        ),
    ]


def study_tables(measured: dict[str, Any]) -> list[Table]:
    """Return the tables of a whole study: its time and the device's work, and where the time went."""
    about, share, use = measured["environment"], measured["device_share"], measured["core_use"]
    seconds, between = measured["seconds"], measured["seconds_between_trials"]
    work = "not measured" if share is None else f"{100 * share:.0f} %"
    parts = [(part, spent) for part, spent in measured["seconds_of_parts"].items() if spent > 0]
    whole = [] if measured["is_whole"] else ["The study was stopped before its end."]
    is_cuda = "cuda" in about
    meaning = (
        "A GPU works while a kernel runs on it, as its driver counts."
        if is_cuda
        else f"A CPU works while it computes, on all of the {plural(measured['threads'], 'thread')}."
    )
    return [
        Table(
            f"Study {measured['study']} ({about['device']}, torch {about['torch']})",
            ["measure", "measured"],
            [
                ["from the command to the end", f"{seconds / 60:.1f} min ({seconds:,.1f} s)"],
                ["trainings", str(measured["trainings"])],
                ["from the first trial's start to the last one's end", f"{between:,.1f} s"],
                ["share of it in which the device worked", work],
                ["cores kept busy on average: by the study, by others", f"{use['own']:.1f}, {use['others']:.1f}"],
            ],
            [*whole, meaning],
        ),
        Table(
            "Where the time went",
            ["part", "seconds", "share"],
            [[part, f"{spent:,.1f}", f"{100 * spent / seconds:.0f} %"] for part, spent in parts],
        ),
    ]


def seconds_for(images: int, rates: list[float]) -> Measured:
    """Return the seconds for `images` images at each rate (images per second)."""
    return Measured([images / rate for rate in rates])
