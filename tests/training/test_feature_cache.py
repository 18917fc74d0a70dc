"""Stored features: the same figures with and without them, nothing stale, a bounded folder."""

import json
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from ablation.base.disk_cache import KEPT_FREE
from ablation.base.generators import generator
from ablation.data.images import Images
from ablation.data.normalisation import Normalisation
from ablation.networks.transfer_model import Head, TransferModel, build_model, initialise
from ablation.networks.weights import read_weights
from ablation.running.workbench import SplitImages, training_sources
from ablation.spec.reuse import units_up_to
from ablation.spec.study import StudySpec
from ablation.training import feature_cache, sources
from ablation.training.feature_cache import FeatureCache, Pretrained, pretrained_network
from ablation.training.sources import (
    FeatureSource,
    FrozenPart,
    ImageSource,
    Point,
    batch_places,
    draw_epoch,
    frozen_part,
    run_layers,
)
from tests.training.test_loop import CPU, NORMALISATION

MEGABYTE = 1_000_000


def some_images(n: int, seed: int) -> Images:
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator(seed, "pixels"))
    return Images(pixels, torch.randint(0, 3, (n,), generator=generator(seed, "labels")))


# 97 images are six batches of 16 and one image.
TRAIN, VAL = some_images(97, 1), some_images(30, 2)


def network(cut: str = "block3", seed: int = 0) -> TransferModel:
    model = build_model("vgg16_narrow", cut, Head(8, 2), 3, 32)
    initialise(model, None, seed)
    return model.to(memory_format=torch.channels_last)


def cache(folder: Path, limit: int = 100 * MEGABYTE, pretrained: Pretrained | None = None) -> FeatureCache:
    return FeatureCache(folder, limit, lambda: pretrained or Pretrained([], []), lambda text: None)


def frozen_blocks(model: TransferModel, blocks: int, precision: str = "float32") -> FrozenPart:
    """Return the first blocks of a network as its frozen part."""
    return frozen_part(model, model.layers_up_to(units_up_to(model.backbone, blocks)), NORMALISATION, precision)


def part(blocks: int = 3, precision: str = "float32", **of: Any) -> FrozenPart:
    return frozen_blocks(network(**of), blocks, precision)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npy"))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Layers that were run on 16 images or more: a list of how many, one entry for every call."""
    calls: list[int] = []
    real = run_layers

    def counting(activations: torch.Tensor, layers: Any, points: Any, precision: str, first: int = 0) -> Any:
        if len(activations) > 2:
            calls.append(points[-1].layers - first)
        return real(activations, layers, points, precision, first)

    for module in (feature_cache, sources):
        monkeypatch.setattr(module, "run_layers", counting)
    return calls


# -------------------------------------------------------------------------------------------- the same figures


def test_flips_are_those_of_the_images(tmp_path: Path) -> None:
    """Recomputed image by image: each row is that of the image or of its mirror image."""
    frozen = part(1, cut="block2")
    source = cache(tmp_path).source(TRAIN, frozen, "flip")
    order = torch.arange(97)
    batch = source.read(draw_epoch(source, order, 97, generator(9)), slice(0, 97))
    rows = batch.inputs
    images = ImageSource(TRAIN, frozen, "flip")
    expected = images.read(draw_epoch(images, order, 97, generator(9)), slice(0, 97))
    assert torch.equal(rows, expected.inputs)
    assert rows.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(batch.labels_B, TRAIN.labels_N)
    plain, mirrored = frozen(TRAIN.images_NCHW), frozen(TRAIN.images_NCHW.flip(3))
    flips = [torch.equal(row, other) for row, other in zip(rows, mirrored, strict=True)]
    assert 30 < sum(flips) < 70
    assert all(flip or torch.equal(row, other) for flip, row, other in zip(flips, rows, plain, strict=True))


def test_an_epoch_has_every_image_once(tmp_path: Path) -> None:
    frozen = part(3)
    order = torch.randperm(97, generator=generator(1))
    for source in (ImageSource(TRAIN, frozen, "none"), cache(tmp_path).source(TRAIN, frozen, "none")):
        epoch = draw_epoch(source, order, 40, generator(2))
        batches = [source.read(epoch, places) for places in batch_places(len(order), 40)]
        assert [len(batch.labels_B) for batch in batches] == [40, 40, 17]
        assert torch.equal(torch.cat([batch.labels_B for batch in batches]), TRAIN.labels_N[order])
        assert torch.equal(torch.cat([batch.inputs for batch in batches]), frozen(TRAIN.images_NCHW)[order])


def test_random_crops_are_not_stored(tmp_path: Path) -> None:
    assert isinstance(cache(tmp_path).source(TRAIN, part(3), "crop_flip"), ImageSource)
    assert isinstance(cache(tmp_path).source(TRAIN, part(3), "strong"), ImageSource)
    assert isinstance(cache(tmp_path).source(TRAIN, part(0), "none"), ImageSource)
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_is_stored_as_it_is(tmp_path: Path) -> None:
    frozen = part(2, precision="bfloat16")
    for store in (cache(tmp_path), cache(tmp_path)):
        (rows,) = store.source(TRAIN, frozen, "none").in_order()
        assert rows.dtype == torch.bfloat16
        assert torch.equal(rows, frozen(TRAIN.images_NCHW))
    assert files(tmp_path)[0].stat().st_size == pytest.approx(97 * 16 * 8 * 8 * 2, abs=200)


@dataclass(frozen=True)
class Placed:
    """Stands for a tensor on a device."""

    nbytes: int
    device: torch.device = CPU
    copies: ClassVar[list[int]] = []  # bytes of each copy to another device

    def to(self, device: torch.device) -> "Placed":
        if device == self.device:
            return self
        self.copies.append(self.nbytes)
        return Placed(self.nbytes, device)


class CacheOfGpu(FeatureCache):
    """The cache as on a GPU; `reads` counts the files that were read."""

    reads = 0

    def _read(self, name: str) -> Any:
        features = super()._read(name)
        self.reads += features is not None
        return None if features is None else Placed(features.nbytes)

    def _placed(self, opened: Any, device: torch.device, held: Any) -> Any:
        return super()._placed(opened, torch.device("cuda"), held)


@pytest.mark.parametrize(
    ("room", "on_gpu"),  # the room in sets of training and of validation features, and bytes
    [
        ((2, 1, 0), [True, True, True]),
        ((2, 1, -4), [True, True, False]),
        ((2, 0, -4), [False, False, True]),
        ((1, 1, -4), [False, False, True]),
        ((1, 0, 0), [False, False, True]),
        ((0, 1, -4), [False, False, False]),
    ],
)
def test_features_of_one_training_do_not_drive_each_other_out(
    room: tuple[int, int, int], on_gpu: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of plain, mirrored and validation features a GPU gets what fits into its quarter, once for all trials."""
    frozen = part(3)
    of_train, of_val = (frozen(images.images_NCHW).nbytes for images in (TRAIN, VAL))
    quarter = room[0] * of_train + room[1] * of_val + room[2]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=4 * quarter))
    monkeypatch.setattr(Placed, "copies", [])
    store = CacheOfGpu(tmp_path, 10**9, lambda: Pretrained([], []), lambda text: None)
    for _ in range(3):
        train_source = store.source(TRAIN, frozen, "flip")
        val_source = store.source(VAL, frozen, "none", beside=train_source)
        assert isinstance(train_source, FeatureSource)
        assert isinstance(val_source, FeatureSource)
        read = [train_source.features, train_source.mirrored, val_source.features]
        assert [features.nbytes for features in read if features is not None] == [of_train, of_train, of_val]
        assert [features is not None and features.device.type == "cuda" for features in read] == on_gpu
        assert store._on_device.keys() == {
            name for name, copy in store._on_device.items() if any(copy is features for features in read)
        }, "nothing is there that is not read"
    assert store.reads == 3
    assert Placed.copies == [features.nbytes for features in read if features.device.type == "cuda"]


@pytest.mark.parametrize(("workers", "kind"), [(1, "cuda"), (2, "cpu")])
def test_workers_of_a_gpu_share_its_quarter(
    workers: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen = part(3)
    room = frozen(TRAIN.images_NCHW).nbytes
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=4 * room))
    store = CacheOfGpu(tmp_path, 10**9, lambda: Pretrained([], []), lambda text: None, workers)
    source = store.source(TRAIN, frozen, "none")
    assert isinstance(source, FeatureSource)
    assert source.features.device.type == kind


def test_validation_leaves_the_features_of_its_training_on_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where those for validation do not fit beside them: they are read from the host, in every trial."""
    frozen = part(3)
    of_train, of_val = (frozen(images.images_NCHW).nbytes for images in (TRAIN, VAL))
    quarter = of_train + of_val // 2
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=4 * quarter))
    monkeypatch.setattr(Placed, "copies", [])
    store = CacheOfGpu(tmp_path, 10**9, lambda: Pretrained([], []), lambda text: None)
    workbench: Any = SimpleNamespace(images_of=lambda spec: SplitImages(TRAIN, VAL), features=store)
    training: Any = SimpleNamespace(frozen=frozen)
    spec: Any = SimpleNamespace(augmentation="none")
    for _ in range(6):
        _, val_source = training_sources(training, spec, workbench)
        assert isinstance(val_source, FeatureSource)
        assert val_source.features.device.type == "cpu"
    assert Placed.copies == [of_train]


def test_features_of_flips_leave_those_of_other_trainings_on_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where trials with and without flips alternate, and a GPU has room for one set of training features."""
    frozen = part(3)
    quarter = frozen(TRAIN.images_NCHW).nbytes
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=4 * quarter))
    monkeypatch.setattr(Placed, "copies", [])
    store = CacheOfGpu(tmp_path, 10**9, lambda: Pretrained([], []), lambda text: None)
    for augmentation, device in (("flip", "cpu"), ("none", "cuda")) * 2:
        source = store.source(TRAIN, frozen, augmentation)
        assert isinstance(source, FeatureSource)
        assert source.features.device.type == device
    assert (store.reads, Placed.copies) == (2, [quarter])
    assert store.release_device()
    assert not store.release_device()
    source = store.source(TRAIN, frozen, "none")
    assert isinstance(source, FeatureSource)
    assert source.features.device.type == "cpu"
    assert store.reads == 2, "what the host has is not read again"


# ---------------------------------------------------------------------------------------------- computed once


def test_what_is_stored_is_not_computed_again(tmp_path: Path, computed: list[int]) -> None:
    store = cache(tmp_path)
    store.source(TRAIN, part(3), "none")
    assert computed == [17]  # seven convolutions, their ReLUs, three pools
    store.source(TRAIN, part(3), "none")
    cache(tmp_path).source(TRAIN, part(3), "none")
    assert computed == [17]
    store.source(TRAIN, part(3), "flip")
    assert computed == [17, 17]


def test_longer_parts_start_from_stored_shorter_ones(tmp_path: Path, computed: list[int]) -> None:
    store = cache(tmp_path)
    store.source(TRAIN, part(2), "none")
    rows = list(store.source(TRAIN, part(3), "none").in_order())
    assert computed == [10, 7]
    assert torch.equal(torch.cat(rows), part(3)(TRAIN.images_NCHW))


STUDY = {
    "name": "s",
    "question": "?",
    "trials_per_arm": 1,
    "epochs": 1,
    "backbone": {"name": "vgg16_narrow", "weights": "w.pth"},
    "data": {"source": "digits"},
    "factors": {"truncate_at": ["block3", "conv2_1", "block2"], "strategy": ["feature_extraction", "fine_tune_all"]},
    "search": {"head_pool": {"choices": [1, 2]}},
}


def test_all_cuts_of_a_study_are_computed_in_one_pass(
    tmp_path: Path, computed: list[int], narrow_weights: Path
) -> None:
    weights = read_weights("vgg16_narrow", str(narrow_weights))
    store = cache(tmp_path, pretrained=pretrained_network(StudySpec(**STUDY), weights, torch.device("cpu")))
    for cut, blocks in (("conv2_1", 2), ("block2", 2), ("block3", 3)):
        for pool in (1, 2):
            model = build_model("vgg16_narrow", cut, Head(8, pool), 3, 32)
            initialise(model, weights, pool)
            frozen = frozen_blocks(model.to(memory_format=torch.channels_last), blocks)
            (rows,) = store.source(TRAIN, frozen, "none").in_order()
            assert computed == [17], "in one pass, when the first of them is asked for"
            assert torch.equal(rows, frozen(TRAIN.images_NCHW))
            computed.pop()
    assert len(files(tmp_path)) == 6


def test_layers_without_weights_are_every_trials_own(tmp_path: Path, narrow_weights: Path) -> None:
    whole = read_weights("vgg16_narrow", str(narrow_weights))
    first_two = {k: v for k, v in whole.tensors.items() if int(k.split(".")[1]) < 10}
    weights = replace(whole, tensors=first_two)
    shared = pretrained_network(StudySpec(**STUDY), weights, torch.device("cpu"))
    assert [point.layers for point in shared.points] == [7, 7, 10, 10]
    store = cache(tmp_path, pretrained=shared)
    found = []
    for seed in (1, 2):
        model = build_model("vgg16_narrow", "block3", Head(8, 2), 3, 32)
        initialise(model, weights, seed)
        frozen = frozen_blocks(model.to(memory_format=torch.channels_last), 3)
        (rows,) = store.source(TRAIN, frozen, "none").in_order()
        assert torch.equal(rows, frozen(TRAIN.images_NCHW))
        found.append(rows)
    assert not torch.equal(*found)


def test_several_processes_compute_it_once(tmp_path: Path, computed: list[int]) -> None:
    """Each with its own open files, as processes have: the others wait for the first, then read."""
    with ThreadPoolExecutor(4) as pool:
        sources = list(pool.map(lambda _: cache(tmp_path).source(TRAIN, part(3), "none"), range(4)))
    assert computed == [17]
    expected = part(3)(TRAIN.images_NCHW)
    assert all(torch.equal(next(iter(source.in_order())), expected) for source in sources)


def test_points_of_different_types(tmp_path: Path) -> None:
    """Autocast leaves some layers in float32: each file says what it holds."""
    layers = [torch.nn.BatchNorm2d(3).eval(), torch.nn.Conv2d(3, 4, 3).eval()]
    shared = Pretrained(layers, [Point(1, torch.nn.AvgPool2d(16)), Point(2, torch.nn.AvgPool2d(15))])
    store = cache(tmp_path, pretrained=shared)
    for point, dtype in zip(shared.points, (torch.float32, torch.bfloat16), strict=True):
        frozen = FrozenPart(layers[: point.layers], point.pool, NORMALISATION, "bfloat16")
        (rows,) = store.source(TRAIN, frozen, "none").in_order()
        assert rows.dtype == dtype
        assert torch.equal(rows, frozen(TRAIN.images_NCHW))
    assert len(files(tmp_path)) == 2


# ------------------------------------------------------------------------------------------------ never stale


def changed_layer(number: int) -> FrozenPart:
    frozen = part(3)
    with torch.no_grad():
        next(frozen.layers[number].parameters())[0, 0, 0, 0] += 1e-3
    return frozen


def changed_pixel() -> Images:
    pixels = TRAIN.images_NCHW.clone()
    pixels[50, 0, 0, 0] += 1
    return Images(pixels, TRAIN.labels_N)


CHANGES = {
    "a pixel": lambda: (changed_pixel(), part(3)),
    "the order": lambda: (Images(TRAIN.images_NCHW.flip(0), TRAIN.labels_N), part(3)),
    "the first layer": lambda: (TRAIN, changed_layer(0)),
    "the last layer": lambda: (TRAIN, changed_layer(-3)),
    "the mean": lambda: (TRAIN, replace(part(3), normalisation=Normalisation((0.4, 0.5, 0.5), (0.25,) * 3))),
    "the precision": lambda: (TRAIN, part(3, precision="bfloat16")),
    "the cut": lambda: (TRAIN, part(2, cut="block2")),
    "the pool": lambda: (TRAIN, replace(part(3), pool=torch.nn.AvgPool2d(4))),
    "no pool": lambda: (TRAIN, part(3, cut="block4")),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_stale_is_met(tmp_path: Path, change: str) -> None:
    cache(tmp_path).source(TRAIN, part(3), "none")
    images, frozen = CHANGES[change]()
    (rows,) = cache(tmp_path).source(images, frozen, "none").in_order()
    assert torch.equal(rows, frozen(images.images_NCHW))
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("damage", ["a byte", "the end", "the file", "the description", "another file's"])
def test_damaged_files_are_made_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    cache(tmp_path).source(TRAIN, part(3), "none")
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    about = path.with_suffix(".json")
    if damage == "a byte":
        path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    elif damage == "the end":
        path.write_bytes(whole[:-1])
    elif damage == "the file":
        path.unlink()
    elif damage == "the description":
        about.write_text("{")
    else:
        about.write_text(json.dumps({"sha256": "0" * 64, "dtype": "float32"}))
    with caplog.at_level(logging.WARNING):
        (rows,) = cache(tmp_path).source(TRAIN, part(3), "none").in_order()
    assert torch.equal(rows, part(3)(TRAIN.images_NCHW))
    assert path.read_bytes() == whole
    assert ("damaged" in caplog.text) == (damage != "the file")


# ----------------------------------------------------------------------------------------------------- bounds


def test_the_folder_stays_below_its_limit(tmp_path: Path, computed: list[int]) -> None:
    """Room for two: the one that was used least recently goes."""
    one = cache(tmp_path).source(TRAIN, part(3), "none")
    assert isinstance(one, FeatureSource)
    size = files(tmp_path)[0].stat().st_size

    def use(seed: int) -> None:
        store = cache(tmp_path, limit=int(2.5 * size))
        assert isinstance(store.source(TRAIN, part(3, seed=seed), "none"), FeatureSource)
        for number, path in enumerate(sorted(tmp_path.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)):
            os.utime(path, (number, number))  # far enough apart for any file system's clock
        assert sum(path.stat().st_size for path in files(tmp_path)) <= 2.5 * size

    computed.clear()
    for seed in (0, 1, 0, 2, 0, 1):
        use(seed)
    assert len(computed) == 3, "1 and 2 are computed, and 1 again, which had to go for 2"
    assert torch.equal(next(iter(one.in_order())), part(3)(TRAIN.images_NCHW)), "what is open can still be read"


def test_what_another_process_deletes_is_let_go(tmp_path: Path) -> None:
    """An open file would keep its room on the disk."""
    store = cache(tmp_path)
    store.source(TRAIN, part(3), "none")
    for path in tmp_path.iterdir():
        path.unlink()
    store.source(VAL, part(3), "none")
    assert [len(opened) for opened in store._opened.values()] == [len(VAL)]


def test_room_is_kept_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is deleted where that does not help."""
    cache(tmp_path).source(VAL, part(3), "none")
    stored = files(tmp_path)
    free = shutil._ntuple_diskusage(10**12, 10**12, KEPT_FREE + 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    assert isinstance(cache(tmp_path).source(TRAIN, part(3), "none"), ImageSource)
    assert files(tmp_path) == stored
    assert isinstance(cache(tmp_path).source(VAL, part(3), "none"), FeatureSource)


def test_what_is_stored_is_read_even_if_nothing_can_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    cache(tmp_path).source(VAL, part(3), "none")
    store = cache(tmp_path)
    monkeypatch.setattr(feature_cache, "_append", full)
    assert isinstance(store.source(TRAIN, part(3), "none"), ImageSource)
    assert isinstance(store.source(VAL, part(3), "none"), FeatureSource)


def test_what_exceeds_the_limit_is_computed_in_every_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And costs nothing that is stored already."""
    cache(tmp_path).source(VAL, part(3), "none")
    stored = files(tmp_path)
    store = cache(tmp_path, limit=stored[0].stat().st_size + 100)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert isinstance(store.source(TRAIN, part(3), "none"), ImageSource)
    assert caplog.text.count("exceed --feature-cache") == 1
    assert files(tmp_path) == stored
    assert isinstance(store.source(VAL, part(3), "none"), FeatureSource)


def test_cuts_are_computed_alone_where_all_of_them_exceed_the_limit(tmp_path: Path, narrow_weights: Path) -> None:
    weights = read_weights("vgg16_narrow", str(narrow_weights))
    model = build_model("vgg16_narrow", "block2", Head(8, 1), 3, 32)
    initialise(model, weights, 0)
    frozen = frozen_blocks(model.to(memory_format=torch.channels_last), 2)
    shared = pretrained_network(StudySpec(**STUDY), weights, torch.device("cpu"))
    store = cache(tmp_path, limit=97 * 16 * 4 + 200, pretrained=shared)
    assert isinstance(store.source(TRAIN, frozen, "none"), FeatureSource)
    assert len(files(tmp_path)) == 1


def test_a_full_disk_is_no_reason_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    store = cache(tmp_path)
    monkeypatch.setattr(feature_cache, "_append", full)
    with caplog.at_level(logging.WARNING):
        assert isinstance(store.source(TRAIN, part(3), "none"), ImageSource)
        assert isinstance(store.source(TRAIN, part(3, seed=1), "none"), ImageSource)
    assert caplog.text.count("No space left") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    monkeypatch.undo()
    assert isinstance(cache(tmp_path).source(TRAIN, part(3), "none"), FeatureSource)
    assert list(tmp_path.glob("*.tmp")) == []
