"""How fast it is: python -m ablation.bench

The same work is done by this package and by a plain PyTorch loop as the tutorials write it - a DataLoader with
torchvision's transforms, the whole network in every epoch, float32 - in the same process, one after the other in turns.
A table goes to the terminal, all figures to a JSON file.

Legend: N images, B images of a batch, C channels, H and W pixels, K classes.
"""

import contextlib
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import psutil

from ablation import __version__
from ablation.command_line import run_command
from ablation.seeding import check_device_name
from ablation.spec import InputError, expand, load_study
from ablation.store import StoreError, find_store, write_atomically
from ablation.tables import Table

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ablation.data import Images, Normalisation
    from ablation.models import TransferModel
    from ablation.results import RunResult
    from ablation.store import Store
    from ablation.weights import Weights

BATCH_SIZE = 64
TRIALS, EPOCHS = 10, 10  # of the feature extraction study
HEAD_WIDTH, LR = 256, 0.01
CUTS = ("block1", "block2", "block3", "block4", "block5")
MINUTE = 65  # seconds: a trial of a minute or more
SMALL_TRIALS = 10  # at the beginning and at the end of a store that is filled


@dataclass(frozen=True)
class Subject:
    """What is measured on: a device, images and weights."""

    device: "torch.device"
    train_images: "Images"
    val_images: "Images"
    classes: int
    weights: "Weights"
    overrides: list[tuple[list[str], Any]]  # that let a study read the same
    repeats: int

    @property
    def normalisation(self) -> "Normalisation":
        """Of the weights."""
        from ablation.data import Normalisation

        return Normalisation(self.weights.mean, self.weights.std, 32)


@dataclass(frozen=True)
class Measured:
    """Repeated measurements of one figure."""

    values: list[float]

    @property
    def median(self) -> float:
        """Their median."""
        return statistics.median(self.values)

    def text(self, digits: int = 0) -> str:
        """Return the median with the smallest and largest value."""
        low, high = min(self.values), max(self.values)
        return f"{self.median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f}, n = {len(self.values)})"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--images", metavar="DIR", help="train/<class>/* and test/<class>/*.  [default: scikit-learn's digits]")
@click.option("--weights", metavar="FILE", help="Weights of VGG-16, as for a study.  [default: random ones]")
@click.option("--limit", type=click.IntRange(100), default=5000, metavar="N", help="Images.  [default: 5000]")
@click.option("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps.  [default: auto]")
@click.option("--repeats", type=click.IntRange(1), default=3, metavar="N", help="Of each measurement.  [default: 3]")
@click.option(
    "--fill", type=click.IntRange(2 * SMALL_TRIALS), default=100, metavar="N",
    help="Small trials in one store, to see whether they stay fast.  [default: 100]",
)  # fmt: skip
@click.option("--output", default="bench.json", metavar="FILE", help="All figures.  [default: bench.json]")
@click.version_option(__version__)
def cli(images: str | None, weights: str | None, limit: int, device: str, repeats: int, fill: int, output: str) -> None:
    """Measure how fast trainings, trials and studies are here, beside a plain PyTorch loop."""
    check_device_name(device)
    target = expand(output)
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise InputError(f"--output: {target} cannot be written")
    from ablation.view import show_table

    with tempfile.TemporaryDirectory(prefix="ablation-bench-") as folder:
        subject = prepare(images, weights, limit, device, repeats, Path(folder))
        figures: dict[str, Any] = {"about": describe(subject, images, weights)}
        for measure in (feature_extraction, fine_tuning, training_steps, small_trials, tracking, start_up):
            print(f"measuring: {measure.__name__.replace('_', ' ')} ...", file=sys.stderr, flush=True)
            begun = time.perf_counter()
            figures[measure.__name__] = measure(subject, Path(folder), fill) | {
                "seconds": round(time.perf_counter() - begun, 1)
            }
            figures["peak_memory_bytes"] = peak_memory()
            write_atomically(target, json.dumps(figures, indent=2).encode())  # a fault later on loses nothing
    for table in tables(figures):
        show_table(table)
        print()
    print(f"All figures: {target}")


# ------------------------------------------------------------------------------------------------------------ subject


def prepare(
    images: str | None, weights: str | None, limit: int, device_name: str, repeats: int, folder: Path
) -> Subject:
    """Read images and weights.

    Raises:
        InputError: they cannot be read, or the weights lack one of the first three blocks.
    """
    import torch
    from safetensors.torch import save_file

    from ablation.blocks import expected_tensors
    from ablation.data import load_split, split_seed, to_device
    from ablation.data import measure as measure_data
    from ablation.seeding import generator, select_device
    from ablation.spec import Data
    from ablation.weights import check_layers, read_weights

    if weights is None:
        weights = str(folder / "random.safetensors")
        shapes = {key: shape for key, (_, shape) in expected_tensors("vgg16", "block5").items()}
        random = generator("bench")
        he = {key: (2 / (9 * shape[1])) ** 0.5 if len(shape) == 4 else 0.0 for key, shape in shapes.items()}
        tensors = {key: torch.randn(shape, generator=random) * he[key] for key, shape in shapes.items()}
        save_file(tensors, weights, {"architecture": "vgg16"})
    data = Data(source="imagefolder", root=images) if images else Data(source="digits")
    data = data.model_copy(update={"limit": min(limit, measure_data(data).train)})
    found, split = load_split(data, split_seed(0))
    device = select_device(device_name)
    train_images, val_images = (
        to_device(found.train_images_NHWC, found.train_labels_N, chosen, device)
        for chosen in (split.train_N, split.val_N)
    )
    loaded = read_weights("vgg16", weights)
    check_layers(loaded, weights, "vgg16", {"block3"})
    overrides: list[tuple[list[str], Any]] = [
        (["backbone", "weights"], weights),
        (["data", "source"], data.source),
        (["data", "limit"], limit),
    ]
    if images:
        overrides.append((["data", "root"], images))
    return Subject(device, train_images, val_images, len(found.classes), loaded, overrides, repeats)


def describe(subject: Subject, images: str | None, weights: str | None) -> dict[str, Any]:
    """Return what the figures belong to."""
    import torch

    from ablation.environment import describe_environment

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


# -------------------------------------------------------------------------------------------- networks, and plain loops


def network(subject: Subject, cut: str, head_width: int = HEAD_WIDTH, seed: int = 0) -> "TransferModel":
    """Build a network on the device, as a trial does; layers that the weights lack are random."""
    from ablation.models import build_model, initialise

    size = subject.train_images.images_NCHW.shape[-1]
    model = build_model("vgg16", cut, head_width, 2, subject.classes, size)
    initialise(model, "vgg16", subject.weights, seed)
    return model.to(subject.device)


def plain_loader(images: "Images", normalisation: "Normalisation", *, shuffle: bool) -> Any:
    """Return a DataLoader as torchvision's tutorials have it: PIL images, transformed one by one by two workers."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    pixels = images.images_NCHW.permute(0, 2, 3, 1).cpu().numpy()
    labels = images.labels_N.tolist()
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(normalisation.mean, normalisation.std)])

    class Pictures(Dataset[Any]):
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, number: int) -> Any:
            return transform(Image.fromarray(pixels[number])), labels[number]

    return DataLoader(Pictures(), batch_size=BATCH_SIZE, shuffle=shuffle, num_workers=2)


def plain_epoch(model: "nn.Module", optimizer: "torch.optim.Optimizer", loader: Any, device: "torch.device") -> float:
    """Train one epoch the plain way; return its seconds."""
    from torch.nn.functional import cross_entropy
    from torch.nn.utils import clip_grad_norm_

    begun = time.perf_counter()
    model.train()
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        loss.item()  # for the running loss that tutorials print
    return time.perf_counter() - begun


def plain_accuracy(model: "nn.Module", loader: Any, device: "torch.device") -> float:
    """Return the accuracy over a loader's images."""
    import torch

    model.eval()
    correct = total = 0
    with torch.no_grad():
        for images, labels in loader:
            correct += int((model(images.to(device)).argmax(1).cpu() == labels).sum())
            total += len(labels)
    return correct / total


def our_epochs(
    subject: Subject, cut: str, strategy: Any, images: "Images", batch_size: int = BATCH_SIZE, **more: Any
) -> Iterator[float]:
    """Train without end, as a trial does; yield each epoch's images per second, its evaluation excluded."""
    import torch

    from ablation.data import Images
    from ablation.features import ImageSource, frozen_part
    from ablation.seeding import select_precision
    from ablation.strategies import STRATEGIES, apply_strategy
    from ablation.train import Training, make_optimizer, train

    precision = more.pop("precision", select_precision("auto", subject.device))
    model = network(subject, cut).to(memory_format=torch.channels_last)
    depth = len(model.blocks) - 1
    frozen = frozen_part(model, STRATEGIES[strategy].frozen_blocks(depth + 1, depth), subject.normalisation, precision)
    groups = apply_strategy(model, strategy, freeze_depth=depth, lr=1e-4, backbone_lr_scale=0.1, weight_decay=5e-4)
    optimizer = make_optimizer("sgd", groups, subject.device)
    scaler = torch.amp.GradScaler(subject.device.type, enabled=precision == "float16")
    few = Images(subject.val_images.images_NCHW[:2], subject.val_images.labels_N[:2])
    settings = {"compile_mode": "none"} | more
    for metrics in train(
        Training(model, frozen, optimizer, scaler),
        ImageSource(images, frozen, "none"),
        ImageSource(few, frozen, "none"),
        epochs=10**6,
        batch_size=batch_size,
        schedule="constant",
        label_smoothing=0.0,
        class_weights="none",
        max_grad_norm=5.0,
        head_warmup_epochs=0,
        precision=precision,
        seed=0,
        **settings,
    ):
        yield metrics.images_per_second


def first_images(subject: Subject, cpu: int, gpu: int) -> "Images":
    """Return as many training images as measure a device well."""
    from ablation.data import Images

    count = cpu if subject.device.type == "cpu" else gpu
    return Images(subject.train_images.images_NCHW[:count], subject.train_images.labels_N[:count])


# --------------------------------------------------------------------------------------------- what is measured


def feature_extraction(subject: Subject, folder: Path, fill: int) -> dict[str, Any]:
    """A study of ten trials of ten epochs, from its start to its report, beside the plain loop for the same trials.

    The plain loop is timed on the first trial and multiplied; so is a trial without stored features, on one epoch.
    """
    import torch

    content = {
        "trials_per_arm": TRIALS,
        "epochs": EPOCHS,
        "fixed": {"strategy": "feature_extraction", "truncate_at": "block3", "batch_size": BATCH_SIZE},
        "search": {
            "lr": {"low": 1e-3, "high": 1e-1, "log": True},
            "head_width": {"choices": [128, 256, 512]},
        },
    }
    run_study(subject, folder / "warm-up", content | {"trials_per_arm": 1, "epochs": 1}, few_images(subject))
    seconds = []
    for repeat in range(subject.repeats):
        begun = time.perf_counter()
        store = run_study(subject, folder / f"extraction-{repeat}", content)
        seconds.append(time.perf_counter() - begun)
    trials = finished_trials(store)
    first = trials[0]

    train_loader = plain_loader(subject.train_images, subject.normalisation, shuffle=True)
    val_loader = plain_loader(subject.val_images, subject.normalisation, shuffle=False)
    model = network(subject, "block3", first.spec.head_width, seed=first.spec.seed)
    standardise(subject, model)
    model.blocks.requires_grad_(False)
    optimizer = torch.optim.SGD(
        model.head.parameters(), lr=first.spec.lr, momentum=0.9, nesterov=True, weight_decay=first.spec.weight_decay
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    accuracies = []
    begun = time.perf_counter()
    for _ in range(EPOCHS):
        plain_epoch(model, optimizer, train_loader, subject.device)
        scheduler.step()
        accuracies.append(plain_accuracy(model, val_loader, subject.device))
    plain = time.perf_counter() - begun
    uncached = our_epochs(subject, "block3", "feature_extraction", first_images(subject, 1000, 20_000))
    next(uncached)
    return {
        "study_seconds": seconds,
        "plain_seconds_of_one_trial": plain,
        "ratio": TRIALS * plain / statistics.median(seconds),
        "our_accuracy": first.val_accuracy,
        "plain_accuracy": max(accuracies),
        "validation_images": len(subject.val_images),
        "training_seconds_of_a_trial": [trial.training_seconds for trial in trials],
        "images_per_second_without_stored_features": [next(uncached) for _ in range(subject.repeats)],
    }


def fine_tuning(subject: Subject, folder: Path, fill: int) -> dict[str, Any]:
    """Images per second of fine-tuning everything, ours and the plain loop in turns.

    On the CPU both compute in float32, in batches of 64; on CUDA ours does what a study does there, in its best batch.
    """
    import torch

    is_cuda = subject.device.type == "cuda"
    cut = "block5" if is_cuda else "block3"
    images = first_images(subject, 640, 20_000)
    loader = plain_loader(images, subject.normalisation, shuffle=True)
    model = network(subject, cut)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=5e-4)
    candidates = {}
    for batch_size in (64, 256, 1024) if is_cuda else (BATCH_SIZE,):
        epochs = our_epochs(subject, cut, "fine_tune_all", images, batch_size)
        next(epochs)
        candidates[batch_size] = (next(epochs), epochs)
    best = max(candidates, key=lambda batch_size: candidates[batch_size][0])
    ours = candidates[best][1]
    plain_epoch(model, optimizer, loader, subject.device)
    found: dict[str, list[float]] = {"ours": [], "plain": []}
    for _ in range(subject.repeats):
        found["ours"].append(next(ours))
        found["plain"].append(len(images) / plain_epoch(model, optimizer, loader, subject.device))
    ratio = statistics.median(found["ours"]) / statistics.median(found["plain"])
    return {"cut": cut, "our_batch_size": best, **found, "ratio": ratio}


def training_steps(subject: Subject, folder: Path, fill: int) -> dict[str, Any]:
    """Images per second of every cut and strategy without stored features, and the share of the device's ceiling."""
    import torch

    precision = "bfloat16" if subject.device.type == "cuda" else "float32"
    ceiling = Measured([matmul_rate(subject.device, getattr(torch, precision)) for _ in range(subject.repeats)])
    is_cuda = subject.device.type == "cuda"
    rows = []
    for cut in CUTS:
        for strategy in ("feature_extraction", "fine_tune_top", "fine_tune_all"):
            if cut == "block1" and strategy == "fine_tune_top":
                continue  # no block is left to freeze
            for batch_size in (64, 256, 1024) if is_cuda else (BATCH_SIZE,):
                if is_cuda:
                    torch.cuda.reset_peak_memory_stats(subject.device)
                epochs = our_epochs(
                    subject, cut, strategy, first_images(subject, 256, 20_000), batch_size, precision=precision
                )
                next(epochs)
                rates = Measured([next(epochs) for _ in range(subject.repeats)])
                rows.append({
                    "cut": cut,
                    "strategy": strategy,
                    "batch_size": batch_size,
                    "images_per_second": rates.values,
                    "share_of_ceiling": rates.median * flops_of_an_image(subject, cut, strategy) / ceiling.median,
                    "peak_memory_bytes": torch.cuda.max_memory_allocated(subject.device) if is_cuda else None,
                })  # fmt: skip
    return {"precision": precision, "ceiling_flops": ceiling.values, "rows": rows}


def matmul_rate(device: "torch.device", dtype: "torch.dtype") -> float:
    """Return the floating point operations per second of a large matrix product."""
    import torch

    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    repeats = 20 if device.type == "cuda" else 3
    torch.matmul(a, b)
    _synchronise(device)
    begun = time.perf_counter()
    for _ in range(repeats):
        torch.matmul(a, b)
    _synchronise(device)
    return repeats * 2 * side**3 / (time.perf_counter() - begun)


def flops_of_an_image(subject: Subject, cut: str, strategy: Any) -> float:
    """Return the floating point operations of one image in a training step, forward and backward."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ablation.strategies import apply_strategy

    model = network(subject, cut)
    depth = len(model.blocks) - 1
    apply_strategy(model, strategy, freeze_depth=depth, lr=1.0, backbone_lr_scale=1.0, weight_decay=0.0)
    size = subject.train_images.images_NCHW.shape[-1]
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(8, 3, size, size, device=subject.device)).sum().backward()
    return float(counter.get_total_flops()) / 8


def small_trials(subject: Subject, folder: Path, fill: int) -> dict[str, Any]:
    """Seconds from one trial to the next where the training itself is nothing: at first, and when a store is full."""
    content = {
        "trials_per_arm": SMALL_TRIALS,
        "epochs": 1,
        "fixed": {"strategy": "feature_extraction", "truncate_at": "block1", "head_width": 16},
        "search": {"lr": {"low": 1e-3, "high": 1e-1, "log": True}, "sampler": "random"},
    }
    store = run_study(subject, folder / "small", content, few_images(subject))
    memory = resident_bytes()
    run_study(subject, folder / "small", content | {"trials_per_arm": fill}, few_images(subject))
    starts = trial_starts(store)
    cycles = [after - before for before, after in pairwise(starts)]
    del cycles[SMALL_TRIALS - 1]  # between the two commands
    training = sum(trial.training_seconds or 0.0 for trial in finished_trials(store)) / fill
    return {
        "trials": fill,
        "first_seconds": cycles[1 : SMALL_TRIALS - 1],
        "last_seconds": cycles[-SMALL_TRIALS:],
        "of_which_training": training,
        "memory_growth_bytes": resident_bytes() - memory,
    }


def tracking(subject: Subject, folder: Path, fill: int) -> dict[str, Any]:
    """The share of MLflow's calls in a trial of a minute."""
    from ablation.tracking import TrialRun

    epochs = our_epochs(subject, "block3", "fine_tune_all", first_images(subject, 256, 20_000))
    next(epochs)
    rate = next(epochs)
    content = {
        "trials_per_arm": 1,
        "epochs": math.ceil(MINUTE * rate / len(subject.train_images)),
        "fixed": {"strategy": "fine_tune_all", "truncate_at": "block3", "lr": 1e-3},
    }
    spent: list[float] = []
    with timed(TrialRun, "_do", spent), timed(TrialRun, "complete", spent):
        store = run_study(subject, folder / "tracking", content)
    (trial,) = finished_trials(store)
    return {"trial_seconds": trial.training_seconds, "calls": len(spent), "tracking_seconds": sum(spent)}


def start_up(subject: Subject, folder: Path, fill: int) -> dict[str, Any]:
    """Seconds from the command to its first trial, imports included, in a new store and in one that is there."""
    study = folder / "start.toml"
    content = {"epochs": 1, "fixed": {"strategy": "feature_extraction", "truncate_at": "block1"}}
    study.write_text(toml({"question": "?", "trials_per_arm": 1, "backbone": {"name": "vgg16"}} | content))
    overrides = [*subject.overrides, *few_images(subject)]
    settings = [f"{'.'.join(path)}={value}" for path, value in overrides]
    command = [sys.executable, "-m", "ablation.study", str(study), "--device", subject.device.type]
    command += [argument for setting in settings for argument in ("--set", setting)]
    found: dict[str, list[float]] = {"new_store": [], "old_store": []}
    for repeat in range(subject.repeats):
        for trials, name in ((1, "new_store"), (2, "old_store")):
            arguments = [*command, "--store", str(folder / f"start-{repeat}"), "--trials", str(trials)]
            begun = time.perf_counter()
            seconds, line = None, ""
            with subprocess.Popen(
                arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | UNBUFFERED
            ) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if seconds is None and line.startswith("["):
                        seconds = time.perf_counter() - begun
            if process.returncode != 0 or seconds is None:
                raise StoreError(f"the study that was started ended with status {process.returncode}: {line.strip()}")
            found[name].append(seconds)
    return dict(found)


# ------------------------------------------------------------------------------------------------------------ helpers

UNBUFFERED = {"PYTHONUNBUFFERED": "1"}


def standardise(subject: Subject, model: "TransferModel") -> None:
    """Set the constants of the features, as a trial does."""
    from ablation.features import ImageSource, frozen_part
    from ablation.models import calibrate
    from ablation.train import calibration_sample

    source = ImageSource(subject.train_images, frozen_part(model, 0, subject.normalisation, "float32"), "none")
    calibrate(model, source.subset(calibration_sample(len(subject.train_images))).in_order(), 0, "float32")


def run_study(
    subject: Subject, folder: Path, content: dict[str, Any], overrides: list[tuple[list[str], Any]] | None = None
) -> "Store":
    """Run a study as the command line does, in a store of its own, silently; return the store."""
    from ablation import study

    path = folder.with_suffix(".toml")
    text = toml({"question": "How fast?", "backbone": {"name": "vgg16"}} | content)
    path.write_text(text)
    spec = load_study(path, name="bench", overrides=[*subject.overrides, *(overrides or [])])
    store = find_store(str(folder))
    with contextlib.redirect_stdout(io.StringIO()):
        study.run_study(spec, store, str(subject.device), 10**10, text, system_metrics=False, workers=1)
    return store


def few_images(subject: Subject) -> list[tuple[list[str], Any]]:
    """Return the override that leaves few images, but two for validation of every class."""
    everything = len(subject.train_images) + len(subject.val_images)
    return [(["data", "limit"], min(everything, max(100, 20 * subject.classes)))]


def toml(content: dict[str, Any]) -> str:
    """Return a study file: plain values, then tables of plain values or of inline tables."""
    plain = [f"{key} = {_toml_value(value)}" for key, value in content.items() if not isinstance(value, dict)]
    for key, table in content.items():
        if isinstance(table, dict):
            plain += [f"[{key}]", *(f"{name} = {_toml_value(value)}" for name, value in table.items())]
    return "\n".join(plain) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml_value(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)


def finished_trials(store: "Store") -> list["RunResult"]:
    """Return the trials of the study in a store, in the order of their numbers."""
    from ablation.results import read_results

    return [trial for arm in read_results(store, "bench").arms for trial in arm.trials]


def trial_starts(store: "Store") -> list[float]:
    """Return when each trial began, seconds, sorted."""
    from ablation import search

    storage = search.open_storage(store)
    assert storage is not None
    trials = [trial for arm in search.study_arms(storage, "bench").tuning.values() for trial in arm.trials]
    return sorted(trial.datetime_start.timestamp() for trial in trials if trial.datetime_start)


@contextlib.contextmanager
def timed(owner: Any, name: str, spent: list[float]) -> Iterator[None]:
    """Note the seconds that each call of a method takes."""
    real: Callable[..., Any] = getattr(owner, name)

    def method(*args: Any, **kwargs: Any) -> Any:
        begun = time.perf_counter()
        try:
            return real(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - begun)

    setattr(owner, name, method)
    try:
        yield
    finally:
        setattr(owner, name, real)


def peak_memory() -> int:
    """Return the bytes that this process had in use at most."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # which Windows does not have

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident_bytes() -> int:
    """Return the memory that this process has in use."""
    return int(psutil.Process().memory_info().rss)


def _synchronise(device: "torch.device") -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


# ------------------------------------------------------------------------------------------------------------- tables


def tables(figures: dict[str, Any]) -> list[Table]:
    """Return what the terminal shows."""
    about = figures["about"]
    where = f"{about['device']}, {about['threads']} threads, torch {about['torch']}"
    extraction, fine_tuning, steps = figures["feature_extraction"], figures["fine_tuning"], figures["training_steps"]
    small, minute, start = figures["small_trials"], figures["tracking"], figures["start_up"]
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


if __name__ == "__main__":
    sys.exit(run_command(cli))
