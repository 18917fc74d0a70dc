"""Everything that only a GPU can say, in ten minutes: python -m tests.gpu.measure OUTPUT

In this order: the tests with the mark `cuda`; the speed of training steps in every mode; a profile of steps; the demo;
a whole study on all images. Each part is a process of its own that is stopped, as by Ctrl-C, when its time is up; what
it wrote is kept in the folder OUTPUT, and its end is printed.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

from ablation.base.device import select_device
from ablation.benchmark.step_modes import Work, endless_epochs, mode_rows

MINUTES = 10
GRACE_SECONDS = 20  # for a part that was stopped, to write what it has


class Part(NamedTuple):
    """A part: its command after `python -m`, and its share of the time in seconds; None: all that is left."""

    name: str
    words: list[str]
    seconds: float | None


def parts(output: Path, images: Path | None, weights: Path | None, study: str) -> list[Part]:
    """Return the parts in their order; the study runs only if its images and weights are here."""
    demo = ["ablation.study", "vgg_truncation", "--demo", "--store", str(output / "demo")]
    listed = [
        Part("tests", ["pytest", "-m", "cuda", "tests/gpu"], 190),
        Part("steps", ["tests.gpu.measure", str(output), "--part", "steps", "--seconds", "110"], 130),
        Part("profile", ["tests.gpu.measure", str(output), "--part", "profile"], 40),
        Part("demo", demo, 70),
    ]
    if images is not None and weights is not None:
        words = ["ablation.bench", "--study", study, "--images", str(images), "--weights", str(weights)]
        listed.append(Part("study", [*words, "--output", str(output / "study.json")], None))
    return listed


def run(part: Part, output: Path, deadline: float) -> None:
    """Run a part, with its output in a file; stop it when its time is up, and print the end of the file."""
    started = time.monotonic()
    seconds = deadline - started - GRACE_SECONDS
    seconds = seconds if part.seconds is None else min(seconds, part.seconds)
    if seconds <= 0:
        print(f"\n===== {part.name}: not begun, the time is up", flush=True)
        return
    log = output / f"{part.name}.txt"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *part.words], stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            end = f"exit status {process.wait(seconds)}"
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            end = f"stopped after {seconds:.0f} s"
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    print(f"\n===== {part.name}: {end}, {time.monotonic() - started:.1f} s\n{log.read_text()[-3000:]}", flush=True)


def measure_steps(output: Path, device: torch.device, seconds: float) -> None:
    """Write the rows of `mode_rows` that can be measured in some seconds, a line of JSON each."""
    with (output / "steps.jsonl").open("a") as file:
        for row in mode_rows(device, 3, time.monotonic() + seconds):
            for out in (file, sys.stdout):
                print(json.dumps(row), file=out, flush=True)


def profile_steps(device: torch.device) -> None:
    """Print the share of an epoch in which the device works, eager and captured, and the kernels that take longest."""
    is_cuda = device.type == "cuda"
    kind = "cuda" if is_cuda else "cpu"
    activity = torch.profiler.ProfilerActivity.CUDA if is_cuda else torch.profiler.ProfilerActivity.CPU
    for mode in ("eager", "captured"):
        epochs = endless_epochs(device, Work("block3", is_head=False), 64, mode)
        next(epochs)
        with torch.profiler.profile(activities=[activity]) as profiled:
            started = time.perf_counter()
            next(epochs)
            seconds = time.perf_counter() - started
        events = profiled.key_averages()
        busy = sum(event.self_device_time_total if is_cuda else event.self_cpu_time_total for event in events) / 1e6
        print(f"{mode}: an epoch of {seconds:.3f} s; the device works {busy:.3f} s, {100 * busy / seconds:.0f} %")
        print(events.table(sort_by=f"self_{kind}_time_total", row_limit=15, max_name_column_width=60))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder of the results")
    parser.add_argument("--images", type=Path, metavar="DIR", help="train/<class>/* and test/<class>/*, of the study")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of VGG-16, of the study")
    parser.add_argument("--study", default="vgg_truncation", metavar="NAME", help="vgg_truncation by default")
    parser.add_argument("--device", default="cuda", help="of the steps and the profile; cuda by default")
    parser.add_argument("--part", choices=["steps", "profile"], help="only this part, in this process")
    parser.add_argument("--seconds", type=float, default=110, help="for the part `steps`")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.part == "steps":
        measure_steps(options.output, select_device(options.device), options.seconds)
    elif options.part == "profile":
        profile_steps(select_device(options.device))
    else:
        deadline = time.monotonic() + 60 * MINUTES
        for part in parts(options.output, options.images, options.weights, options.study):
            run(part, options.output, deadline)


if __name__ == "__main__":
    main()
