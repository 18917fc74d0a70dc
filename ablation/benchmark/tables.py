"""The tables of `ablation.bench`."""

from typing import Any

import torch

from ablation.base.machine import describe_environment
from ablation.base.text import Table
from ablation.benchmark.measures import EPOCHS, TRIALS
from ablation.benchmark.subject import BATCH_SIZE, Measured, Subject


def provenance(subject: Subject, images: str | None, weights: str | None) -> dict[str, Any]:
    """Return what the figures belong to."""
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


def result_tables(figures: dict[str, Any]) -> list[Table]:
    """Return what the terminal shows."""
    about = figures["about"]
    where = f"{about['device']}, {about['threads']} threads, torch {about['torch']}"
    extraction, fine_tuning, steps = figures["feature_extraction"], figures["fine_tuning"], figures["training_steps"]
    small, minute, start = figures["small_trials"], figures["tracking_overhead"], figures["start_up"]
    studies = Measured(extraction["study_seconds"])
    plain = extraction["plain_seconds_of_one_trial"]
    without = seconds_for(about["training images"], extraction["images_per_second_without_stored_features"])
    with_features = Measured([s / EPOCHS for s in extraction["training_seconds_of_a_trial"]])
    ours, others = Measured(fine_tuning["ours"]), Measured(fine_tuning["plain"])
    share = minute["tracking_seconds"] / minute["trial_seconds"]
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
            "",
        ],
        [f"fine-tuning all up to {fine_tuning['cut']}, our batches of {fine_tuning['our_batch_size']} (images/s)",
         ours.text(), others.text(), f"{fine_tuning['ratio']:.2f}"],
    ]  # fmt: skip
    costs = [
        ["an epoch on stored features (s)", with_features.text(3)],
        ["the same without stored features (s)", without.text(2)],
        ["from one small trial to the next, the first of a store (s)", Measured(small["first_seconds"]).text(3)],
        [f"the same, the last of {small['trials']} (s)", Measured(small["last_seconds"]).text(3)],
        ["of which training (s)", f"{small['of_which_training']:.3f}"],
        [f"memory gained in {small['trials']} trials (MB)", f"{small['memory_growth_bytes'] / 1e6:,.0f}"],
        [f"MLflow in a trial of {minute['trial_seconds']:.0f} s", f"{minute['tracking_seconds']:.2f} s, {share:.2%}"],
        ["from the command to the first trial, new store (s)", Measured(start["new_store"]).text(1)],
        ["the same, in a store that is there (s)", Measured(start["old_store"]).text(1)],
        ["peak memory of this process (GB)", f"{figures['peak_memory_bytes'] / 1e9:.1f}"],
    ]
    ceiling = Measured([rate / 1e9 for rate in steps["ceiling_flops"]])
    rates = [
        [row["cut"], row["strategy"], str(row["batch_size"]), Measured(row["images_per_second"]).text(),
         f"{row['share_of_ceiling']:.0%}"]
        for row in steps["rows"]
    ]  # fmt: skip
    spread = "Medians, with the smallest and the largest value."
    return [
        Table(f"The same work ({where})", ["what", "ablation", "plain loop", "ratio"], work, [spread]),
        Table("What a trial costs besides", ["what", "measured"], costs, [spread]),
        Table(
            f"Training step, {steps['precision']}, without stored features",
            ["cut", "strategy", "batch size", "images/s", "share of ceiling"],
            rates,
            [
                f"The ceiling is a large matrix product: {ceiling.text()} GFLOP/s; a CPU's convolutions may exceed it, "
                "they have another library.",
                spread,
            ],
        ),
    ]


def seconds_for(images: int, rates: list[float]) -> Measured:
    """Return the seconds for so many images at each rate."""
    return Measured([images / rate for rate in rates])
