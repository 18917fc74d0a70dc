"""Cached features: the outputs of frozen layers, computed once and reused by every trial that has the same layers.

A trial's frozen layers get the same images in every epoch, so their outputs are stored, and the rest of the network is
trained on them. A file's name is a digest of everything that its features depend on (the images, their normalisation,
the layers and their tensors, the precision, the device), so stale features are never read: a change gives another name.

Legend: N images, B images of a batch, C channels, H and W pixels, D features.
"""

import hashlib
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import nn

from ablation.base.disk_cache import files_to_evict
from ablation.base.errors import StoreError
from ablation.base.files import write_atomically
from ablation.base.text import first_line
from ablation.data.images import Images, evaluation_batch_size, normalise
from ablation.networks.blocks import build_blocks, expected_tensors, initialise_blocks, kept_parts
from ablation.networks.transfer_model import build_pool
from ablation.networks.weights import Weights
from ablation.spec.parameters import CACHEABLE, STRATEGIES, Augmentation, HeadPool, Strategy
from ablation.spec.study import StudySpec
from ablation.storage.locks import file_lock
from ablation.training.sources import (
    FeatureSource,
    FixedLayers,
    FrozenPart,
    ImageSource,
    Point,
    Source,
    channels_first,
    run_layers,
    text_digest,
)

# Version of the file format and of the preprocessing. Raise it to invalidate all cached features.
FORMAT_VERSION = 1
SHARE_OF_DEVICE = 0.25  # of a GPU's memory, for features of all its workers; the rest is for trainings
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained(FixedLayers):
    """The longest network that trials of a study freeze whole, and the points at which they cut and pool it, in order.

    The first trial that needs one of the points computes all of them, in one pass over the images.
    """

    points: list[Point]
    cuts: list[tuple[str, HeadPool]] = field(default_factory=list)  # what each point is in a study file


def pretrained_network(spec: StudySpec, weights: Weights | None, device: torch.device) -> Pretrained:
    """Return the network that trials of a study have in common if they freeze all of it; no points if no trial does."""
    return network_to_cuts(spec, frozen_cuts(spec), weights, device)


def network_to_cuts(
    spec: StudySpec, cuts: Mapping[str, Sequence[HeadPool]], weights: Weights | None, device: torch.device
) -> Pretrained:
    """Return the pretrained network up to the deepest of some cuts, with a point for each of them and its pools.

    Cuts for which the weights lack a layer are left out: every trial draws its own random layers there.
    """
    complete = {
        cut: pools
        for cut, pools in cuts.items()
        if weights is not None and expected_tensors(spec.backbone.name, cut).keys() <= weights.tensors.keys()
    }
    if weights is None or not complete:
        return Pretrained([], [])
    ends = {cut: len(kept_parts(spec.backbone.name, cut)) for cut in complete}
    longest = max(complete, key=lambda cut: ends[cut])
    blocks = build_blocks(spec.backbone.name, longest, spec.data.image_size)
    initialise_blocks(blocks, spec.backbone.name, weights.tensors, torch.Generator())
    blocks = blocks.eval().to(device).to(memory_format=torch.channels_last)
    places = [(cut, pool) for cut in sorted(complete, key=lambda cut: ends[cut]) for pool in complete[cut]]
    points = [Point(ends[cut], build_pool(spec.backbone.name, cut, spec.data.image_size, pool)) for cut, pool in places]
    return Pretrained([layer for block in blocks for layer in block.children()], points, places)


def frozen_cuts(spec: StudySpec) -> dict[str, list[HeadPool]]:
    """Return the cuts of networks that a study's trials may freeze whole, each with the pools that may follow."""
    return _cuts(spec, lambda strategy: strategy.freezes == "all")


def pretrained_cuts(spec: StudySpec) -> dict[str, list[HeadPool]]:
    """Return the cuts of networks that a study's trials may start from pretrained weights, each with its pools."""
    return _cuts(spec, lambda strategy: strategy.starts_pretrained)


def _cuts(spec: StudySpec, is_wanted: Callable[[Strategy], bool]) -> dict[str, list[HeadPool]]:
    cuts: dict[str, list[HeadPool]] = {}
    for levels in spec.combinations():
        if any(is_wanted(STRATEGIES[strategy]) for strategy in spec.possible("strategy", levels)):
            for cut in spec.possible("truncate_at", levels):
                pools = cuts.setdefault(cut, [])
                pools += [pool for pool in spec.possible("head_pool", levels) if pool not in pools]
    return cuts


class FeatureCache:
    """Cached features: files in a folder, which several processes may share, and the files that this process has open.

    Args:
        folder: where the files are; created with the first file.
        limit: bytes that the files may take together; the least recently used are deleted. With 0 nothing is cached.
        make_pretrained: makes the network that the study's trials have in common, once it is needed.
        say: called with a description of each computation, which may take minutes.
        workers: how many share the device, each with features of its own.
    """

    def __init__(
        self,
        folder: Path,
        limit: int,
        make_pretrained: Callable[[], Pretrained],
        say: Callable[[str], None],
        workers: int = 1,
    ):
        self.folder = folder
        self.limit = limit
        self.make_pretrained = make_pretrained
        self.say = say
        self.workers = workers
        self._can_store = True  # until an error of the disk
        self._refused: set[str] = set()  # names of features for which there is no room
        self._opened: dict[str, torch.Tensor] = {}  # by name, mapped from their files
        self._on_device: OrderedDict[str, torch.Tensor] = OrderedDict()  # copies of them, the most recently used last
        self._may_use_device = True

    @cached_property
    def pretrained(self) -> Pretrained:
        """The network that the study's trials have in common."""
        return self.make_pretrained()

    def source(
        self, images: Images, frozen: FrozenPart, augmentation: Augmentation, beside: Source | None = None
    ) -> Source:
        """Return what a training reads: cached features if possible, else the images.

        Features of random crops cannot be cached, nor features that exceed the limit or the room on the disk.

        Args:
            images: to read.
            frozen: the part of the network whose outputs are cached.
            augmentation: what is done to the images in a training.
            beside: what the same training reads, too, and keeps where it is.
        """
        image_source = ImageSource(images, frozen, augmentation)
        if self.limit == 0 or not frozen.layers or augmentation not in CACHEABLE:
            return image_source
        held = [beside.features, beside.mirrored] if isinstance(beside, FeatureSource) else []
        opened: dict[str, torch.Tensor] = {}
        for mirror in (False, True) if augmentation == "flip" else (False,):
            name, features = self._open(images, frozen, mirror)
            if features is None:
                return image_source
            opened[name] = features
        plain, *others = self._placed(opened, images.labels_N.device, held)
        mirrored = others[0] if others else None
        return FeatureSource(plain, mirrored, images.labels_N, len(frozen.layers), image_source.batch_size)

    def release_device(self) -> bool:
        """Remove all features from the device for good, because a training needs its memory.

        Returns:
            Whether there were any.
        """
        had_any = bool(self._on_device)
        self._on_device.clear()
        self._may_use_device = False
        return had_any

    def _open(self, images: Images, frozen: FrozenPart, mirror: bool) -> tuple[str, torch.Tensor | None]:
        """Return name and features of the images or their mirror images, computed if necessary; None without room."""
        origin = _origin(images, frozen, mirror)
        name = _name(_digests(origin, frozen.layer_digests), frozen.end)
        known = {*self._opened, *self._on_device}
        for other in [other for other in known if not self._paths(other)[0].exists()]:
            self._forget(other)  # another process deleted it for its room, which an open file would keep
        if name not in self._opened:
            try:
                features = self._read(name)
                if features is None and self._can_store and name not in self._refused:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    with file_lock(self.folder / "lock"):  # another process may be computing the same features
                        features = self._read(name)
                        if features is None and self._compute(images, frozen, origin, mirror):
                            features = self._read(name)
            except (OSError, StoreError) as error:
                logger.warning("no more features are cached; frozen layers compute them in every epoch: %s", error)
                self._can_store = False
                features = None
            if features is None:
                self._refused.add(name)
                return name, None
            self._opened[name] = features
        with suppress(OSError):  # the file may be another user's
            os.utime(self._paths(name)[0])  # records the use
        return name, self._opened[name]

    def _forget(self, name: str) -> None:
        self._opened.pop(name, None)
        self._on_device.pop(name, None)

    def _placed(
        self, opened: Mapping[str, torch.Tensor], device: torch.device, held: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor]:
        """Return features where they are read fastest: on a GPU if all fit into this worker's part of a quarter of it.

        For the CPU they stay in the file, which the system keeps in memory, once for all processes.

        Args:
            opened: features of one training, by name, as read from their files.
            device: of the training.
            held: features that the training reads, too: they take their part of the room, and keep it.
        """
        on_host = list(opened.values())
        if device.type != "cuda":
            return [features.to(device) for features in on_host]
        budget = torch.cuda.get_device_properties(device).total_memory * SHARE_OF_DEVICE / self.workers
        budget -= sum(tensor.nbytes for tensor in held if tensor is not None and tensor.device.type == "cuda")
        needed = sum(features.nbytes for features in on_host)
        if needed > budget or not self._may_use_device:
            return on_host
        others = {
            name: copy.nbytes
            for name, copy in self._on_device.items()
            if name not in opened and all(copy is not tensor for tensor in held)
        }
        for name in list(others):
            if sum(others.values()) + needed > budget:
                del self._on_device[name], others[name]
        try:
            copies = {name: self._on_device.get(name, features).to(device) for name, features in opened.items()}
        except torch.OutOfMemoryError:
            return on_host
        for name, copy in copies.items():
            self._on_device[name] = copy
            self._on_device.move_to_end(name)
        return list(copies.values())

    def _read(self, name: str) -> torch.Tensor | None:
        """Return cached features, mapped from their file; None if it is missing or damaged."""
        description_path, path = self._paths(name)
        try:
            description = json.loads(description_path.read_text())
            if _file_digest(path) != description["sha256"]:
                raise ValueError("wrong checksum")
            # Copy on write, because torch expects memory that it may write.
            return torch.from_numpy(np.load(path, mmap_mode="c")).view(getattr(torch, description["dtype"]))
        except FileNotFoundError:  # also if another process has just deleted it
            return None
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s is damaged (%s) and is computed again", path, first_line(error))
            description_path.unlink(missing_ok=True)  # so that nobody reads the file again
            return None

    def _paths(self, name: str) -> tuple[Path, Path]:
        """Return the paths of a file's description (checksum and dtype) and of the file itself."""
        return self.folder / f"{name}.json", self.folder / f"{name}.npy"

    def _compute(self, images: Images, frozen: FrozenPart, origin: str, mirror: bool) -> bool:
        """Compute and store features at the frozen part's end; if it is one of the study's points, at all of them.

        Returns:
            Whether there was room for them.
        """
        for layers, digests, points in self._passes(frozen, origin):
            two_NCHW = normalise(images.images_NCHW[:2].to(images.labels_N.device), frozen.normalisation)
            samples = run_layers(two_NCHW, layers, points, frozen.precision)
            if self._make_room(len(images) * sum(sample[0].nbytes for sample in samples)):
                self._store(images, frozen, mirror, layers, points, digests)
                return True
        if not self._refused:
            logger.warning("features that exceed --feature-cache, or the disk, are computed in every epoch")
        return False

    def _passes(self, frozen: FrozenPart, origin: str) -> Iterator[tuple[list[nn.Module], list[str], list[Point]]]:
        """Yield what a pass over the images can compute, as (layers, digests of their outputs, points to store).

        First the points of the study, if the frozen part ends at one of them: that one, whose file may be damaged, and
        those that are not stored. Then its end alone.
        """
        own_digests = _digests(origin, frozen.layer_digests)
        wanted = _name(own_digests, frozen.end)
        digests = _digests(origin, self.pretrained.layer_digests)
        points = {_name(digests, point): point for point in self.pretrained.points}
        if wanted in points:  # else it is a part of a network, or a network with random layers
            is_needed = {name: name == wanted or not self._paths(name)[0].exists() for name in points}
            yield self.pretrained.layers, digests, [point for name, point in points.items() if is_needed[name]]
        yield frozen.layers, own_digests, [frozen.end]

    def _make_room(self, needed: int) -> bool:
        """Delete files of crashed processes and, if necessary, the least recently used, to make room for some bytes.

        Returns:
            Whether there is room; if not, no complete file has been deleted.
        """
        for path in [*self.folder.glob("*.tmp"), *self.folder.glob("*.npy")]:
            if path.suffix == ".tmp" or not path.with_suffix(".json").exists():
                path.unlink()
        last_used = {path: path.with_suffix(".json").stat().st_mtime for path in self.folder.glob("*.npy")}
        evicted = files_to_evict(self.folder, last_used, needed, self.limit)
        for path in evicted or []:
            self._forget(path.stem)
            path.with_suffix(".json").unlink()
            path.unlink()
        return evicted is not None

    def _store(
        self,
        images: Images,
        frozen: FrozenPart,
        mirror: bool,
        layers: list[nn.Module],
        points: list[Point],
        digests: list[str],
    ) -> None:
        """Write a file for each point, in batches of a fixed size in the images' order.

        The computation starts from the deepest stored activations before the first point, if there are any.
        """
        self.say(f"caching the features of {len(images):,} images")
        device = images.labels_N.device
        first = points[0].layers
        stored = None
        while first > 0 and (stored := self._read(digests[first])) is None:
            first -= 1
        paths = [self._paths(_name(digests, point)) for point in points]
        temporary = [path.with_suffix(".tmp") for _, path in paths]
        try:
            with ExitStack() as stack:
                files = [stack.enter_context(path.open("wb")) for path in temporary]
                batch_size = evaluation_batch_size(images, frozen.normalisation)
                for batch_B in torch.split(torch.arange(len(images)), batch_size):
                    if stored is not None:
                        activations = channels_first(stored[batch_B].to(device))
                    else:
                        images_BCHW = images.read(batch_B)
                        activations = normalise(images_BCHW.flip(3) if mirror else images_BCHW, frozen.normalisation)
                    outputs = run_layers(activations, layers, points, frozen.precision, first)
                    dtypes = [_append(file, rows, len(images)) for file, rows in zip(files, outputs, strict=True)]
                for file in files:
                    file.flush()
                    os.fsync(file.fileno())
            for unfinished, (description, path), dtype in zip(temporary, paths, dtypes, strict=True):
                unfinished.replace(path)
                write_atomically(description, json.dumps({"sha256": _file_digest(path), "dtype": dtype}).encode())
        except (OSError, StoreError):  # a full disk needs the room
            for unfinished, (description, path) in zip(temporary, paths, strict=True):
                unfinished.unlink(missing_ok=True)
                if not description.exists():
                    path.unlink(missing_ok=True)
            raise


def _append(file: BinaryIO, rows: torch.Tensor, total: int) -> str:
    """Append rows to a .npy file that will have `total` of them, channels last; return their dtype's name."""
    array = (rows.permute(0, 2, 3, 1) if rows.ndim == 4 else rows).cpu().contiguous()
    numbers = (array if array.dtype == torch.float32 else array.view(torch.int16)).numpy()  # NumPy has no bfloat16
    if file.tell() == 0:
        header = {"descr": numbers.dtype.str, "fortran_order": False, "shape": (total, *numbers.shape[1:])}
        np.lib.format.write_array_header_2_0(file, header)
    file.write(numbers.data)
    return str(array.dtype).removeprefix("torch.")


def _origin(images: Images, frozen: FrozenPart, mirror: bool) -> str:
    """Return a digest of everything that activations depend on besides the layers and their tensors."""
    device = images.labels_N.device
    is_cuda = device.type == "cuda"
    processor = torch.cuda.get_device_name(device) if is_cuda else torch.backends.cpu.get_cpu_capability()
    modes = [
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.are_deterministic_algorithms_enabled(),
    ]
    inputs = [images.digest, mirror, asdict(frozen.normalisation), evaluation_batch_size(images, frozen.normalisation)]
    computation = [frozen.precision, device.type, processor, *modes, str(torch.__version__)]
    return text_digest(json.dumps([FORMAT_VERSION, *inputs, *computation]))


def _digests(origin: str, layer_digests: Sequence[str]) -> list[str]:
    """Return digests that identify the activations after the first 0, 1, 2, ... layers."""
    return list(accumulate(layer_digests, lambda before, layer: text_digest(before + layer), initial=origin))


def _name(digests: Sequence[str], point: Point) -> str:
    """Return the file name, without its suffix, of the features at a point."""
    digest = digests[point.layers]
    return digest if point.pool is None else text_digest(f"{digest}{point.pool}")


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
