"""The tables of `ablation.bench`."""

from typing import Any

import torch

from ablation.base.machine import describe_environment
from ablation.base.text import Table
from ablation.benchmark.measures import EPOCHS, TRIALS
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


def result_tables(measurements: dict[str, Any]) -> list[Table]:
    """Return the terminal's tables: the same work twice, the costs of a trial, and the training steps.

    Args:
        measurements: `about`, `peak_memory_bytes`, and the result of each function of `measures` by its name.
    """
    about = measurements["about"]
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
        [f"fine_tune_all at {fine_tuning['cut']}, our batch size {fine_tuning['our_batch_size']} (images/s)",
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
            f"MLflow in a trial of {minute['trial_seconds']:.0f} s",
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
                f"The ceiling is the speed of a large matrix product: {ceiling.text()} GFLOP/s. On a CPU, convolutions "
                "can exceed it, because another library computes them.",
                spread,
            ],
        ),
    ]


def seconds_for(images: int, rates: list[float]) -> Measured:
    """Return the seconds for `images` images at each rate (images per second)."""
    return Measured([images / rate for rate in rates])
