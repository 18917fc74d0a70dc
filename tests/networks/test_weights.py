import hashlib
import json
import os
import re
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import save_file

from ablation.base.errors import InputError
from ablation.networks import weights as weights_module
from ablation.networks.blocks import expected_tensors
from ablation.networks.weights import IMAGENET_MEAN, check_layers, read_weights


def tensors(cut: str = "block2", backbone: str = "vgg16_narrow") -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {k: random.normal(size=s).astype(np.float32) for k, (_, s) in expected_tensors(backbone, cut).items()}


def write(state: dict[str, torch.Tensor], path: Path) -> None:
    if path.suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)


def test_expected_tensors_of_vgg16() -> None:
    expected = expected_tensors("vgg16", "conv3_2")
    assert list(expected)[:2] == ["features.0.weight", "features.0.bias"]
    assert expected["features.12.weight"] == ("conv3_2", (256, 256, 3, 3))
    assert len(expected) == 12


def test_safetensors_and_pth_are_the_same_weights(tmp_path: Path) -> None:
    state = tensors()
    save_file(state, tmp_path / "w.safetensors")
    torch.save({k: torch.from_numpy(v) for k, v in state.items()} | {"classifier.0.bias": torch.ones(2)},
               tmp_path / "w.pth")  # fmt: skip
    one = read_weights("vgg16_narrow", str(tmp_path / "w.safetensors"))
    other = read_weights("vgg16_narrow", str(tmp_path / "w.pth"))
    assert one.digest == other.digest
    assert one.mean == IMAGENET_MEAN
    assert all(np.array_equal(one.tensors[key], state[key]) for key in state)
    state["features.0.bias"][0] += 1
    save_file(state, tmp_path / "w.safetensors")
    assert read_weights("vgg16_narrow", str(tmp_path / "w.safetensors")).digest != one.digest


def test_metadata_sets_the_normalisation(tmp_path: Path) -> None:
    metadata = {"input_mean": json.dumps([0.1, 0.2, 0.3]), "input_std": json.dumps([1, 2, 3])}
    save_file(tensors(), tmp_path / "w.safetensors", metadata)
    weights = read_weights("vgg16_narrow", str(tmp_path / "w.safetensors"))
    assert (weights.mean, weights.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    for key, text in (
        ("mean", "[1, 2]"), ("mean", "5"), ("mean", "[NaN, 0, 0]"), ("mean", "[1e999, 0, 0]"),
        ("std", "[1, 0, 1]"), ("std", "[1, 1, -1]"), ("std", "[NaN, 1, 1]"),
    ):  # fmt: skip
        save_file(tensors(), tmp_path / "w.safetensors", {f"input_{key}": text})
        with pytest.raises(InputError, match="must be three finite numbers each, and those of input_std above 0"):
            read_weights("vgg16_narrow", str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2])
def test_floating_point_numbers_of_other_sizes_are_read(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    state = {key: torch.from_numpy(tensor).to(dtype) for key, tensor in tensors().items()}
    write(state, tmp_path / f"w.{suffix}")
    weights = read_weights("vgg16_narrow", str(tmp_path / f"w.{suffix}"))
    assert all(np.array_equal(weights.tensors[key], tensor.float().numpy()) for key, tensor in state.items())
    assert {tensor.dtype for tensor in weights.tensors.values()} == {np.dtype(np.float32)}
    whole = {key: tensor.float() for key, tensor in state.items()}
    write(whole, tmp_path / "float32.pth")
    assert read_weights("vgg16_narrow", str(tmp_path / "float32.pth")).digest == weights.digest


@pytest.mark.parametrize(
    ("change", "suffixes", "expected"),
    [
        (lambda tensor: tensor.double() * 1e300, ("pth", "safetensors"), "holds values that are not finite in float32"),
        (lambda tensor: tensor.to(torch.complex64), ("pth", "safetensors"), "(complex64, strided) cannot be read"),
        (lambda tensor: tensor.to_sparse(), ("pth",), "(float32, sparse_coo) cannot be read as float32"),
        (lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8), ("pth",), "(qint8, strided) cannot"),
        (lambda tensor: tensor.to("meta"), ("pth",), "cannot be read"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_float32_cannot_hold_is_refused(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor], suffixes: tuple[str, ...], expected: str
) -> None:
    state = {key: torch.from_numpy(tensor) for key, tensor in tensors().items()}
    state["features.0.bias"] = change(state["features.0.bias"])
    for suffix in suffixes:
        write(state, tmp_path / f"w.{suffix}")
        with pytest.raises(InputError, match=re.escape(expected)):
            read_weights("vgg16_narrow", str(tmp_path / f"w.{suffix}"))


def test_weights_that_do_not_fit_into_memory_are_not_said_to_be_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    save_file(tensors(), tmp_path / "w.safetensors")
    monkeypatch.setattr(torch.Tensor, "float", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        read_weights("vgg16_narrow", str(tmp_path / "w.safetensors"))


def test_weights_are_in_memory_once_while_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[weakref.ref[torch.Tensor]] = []
    real = weights_module._array

    def array(named: str, key: str, tensor: torch.Tensor) -> np.ndarray:
        assert all(before() is None for before in copied)
        copied.append(weakref.ref(tensor))
        return real(named, key, tensor)

    monkeypatch.setattr(weights_module, "_array", array)
    write({key: torch.from_numpy(tensor) for key, tensor in tensors().items()}, tmp_path / "w.pth")
    read_weights("vgg16_narrow", str(tmp_path / "w.pth"))
    assert len(copied) == len(tensors())


def test_the_digest_of_weights_stays_what_it_was(tmp_path: Path) -> None:
    """Studies store it. Computed here as it was in the first version."""
    state = tensors()
    save_file({key: tensor.astype(np.float64) for key, tensor in state.items()}, tmp_path / "w.safetensors")
    digest = hashlib.sha256(b"[[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]")
    for key in sorted(state):
        digest.update(key.encode() + state[key].tobytes())
    assert read_weights("vgg16_narrow", str(tmp_path / "w.safetensors")).digest == digest.hexdigest()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pickled-code-ran",)


def test_bad_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def refused(name: str, match: str) -> None:
        with pytest.raises(InputError, match=match):
            read_weights("vgg16_narrow", name)

    refused("none.safetensors", "none.safetensors: no such file")
    Path("bad.safetensors").write_bytes(b"\0" * 100)
    refused("bad.safetensors", "not a readable safetensors file")
    save_file(tensors(), "cut.safetensors")
    Path("cut.safetensors").write_bytes(Path("cut.safetensors").read_bytes()[:-10])
    refused("cut.safetensors", "not a readable safetensors file")
    save_file(tensors(), "named.safetensors", {"architecture": "vgg19"})
    refused("named.safetensors", "holds vgg19, but backbone.name is vgg16_narrow")
    save_file(tensors(backbone="vgg16"), "wide.safetensors")
    refused("wide.safetensors", r"features.0.bias has shape \[64\], but conv1_1 of vgg16_narrow has \[8\]")
    save_file(tensors() | {"features.1.weight": np.ones(1, np.float32)}, "extra.safetensors")
    refused("extra.safetensors", "features.1.weight does not belong to vgg16_narrow: another architecture")
    save_file({"layer1.weight": np.ones(1, np.float32)}, "resnet.safetensors")
    refused("resnet.safetensors", "layer1.weight does not belong to vgg16_narrow: another architecture")
    save_file({"classifier.0.bias": np.ones(1, np.float32)}, "classifier.safetensors")
    refused("classifier.safetensors", "has none of vgg16_narrow's tensors, such as features.0.weight")
    broken = tensors()
    broken["features.0.bias"][0] = np.nan
    save_file(broken, "nan.safetensors")
    refused("nan.safetensors", "features.0.bias holds values that are not finite")

    Path("bad.pth").write_bytes(b"no zip")
    refused("bad.pth", "bad.pth: ")
    torch.save({"features.0.weight": Evil()}, "evil.pth")
    refused("evil.pth", "pickled code, which is not run")
    assert not Path("pickled-code-ran").exists()
    Path("empty.pth").write_bytes(b"")
    refused("empty.pth", "empty.pth: cannot be read")
    torch.save({1: torch.ones(1)}, "numbers.pth")
    refused("numbers.pth", "must hold a state_dict")
    torch.save([torch.ones(1)], "list.pth")
    refused("list.pth", "must hold a state_dict")


def test_missing_layers_are_named(tmp_path: Path) -> None:
    save_file(tensors("conv2_1"), tmp_path / "w.safetensors")
    weights = read_weights("vgg16_narrow", str(tmp_path / "w.safetensors"))
    check_layers(weights, "w", "vgg16_narrow", ["block1", "conv2_1"])
    with pytest.raises(InputError, match=r"w: has no conv2_2 \(features.7.weight\), which truncate_at = block2 needs"):
        check_layers(weights, "w", "vgg16_narrow", ["block5", "block1", "block2"])


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_the_names_of_old_densenet_files(tmp_path: Path, suffix: str) -> None:
    """torchvision's files still say denselayer1.norm.1 where its networks say denselayer1.norm1."""
    state = tensors("block2", "densenet121")
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", key): tensor for key, tensor in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    if suffix == "pth":
        torch.save({key: torch.from_numpy(tensor) for key, tensor in old.items()}, tmp_path / "w.pth")
    else:
        save_file(old, tmp_path / "w.safetensors")
    weights = read_weights("densenet121", str(tmp_path / f"w.{suffix}"))
    check_layers(weights, "w", "densenet121", ["block2"])
    assert all(np.array_equal(weights.tensors[key], state[key]) for key in state)


@pytest.mark.real_data
def test_real_weights(real_data: Path) -> None:
    weights = read_weights("vgg16", str(real_data / "weights" / "vgg16-imagenet-voc-blocks1-3.safetensors"))
    check_layers(weights, "w", "vgg16", ["block3"])
    assert weights.mean == (0.485, 0.456, 0.406)
    with pytest.raises(InputError, match="holds vgg19, but backbone.name is vgg16"):
        read_weights("vgg16", str(real_data / "weights" / "vgg19-imagenet-blocks1-3.safetensors"))


def test_download_failure_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(InputError) as caught:
        read_weights("vgg16", "imagenet")
    for part in ("no route to host", f"{tmp_path}/hub/checkpoints/vgg16-397923af.pth", "--demo"):
        assert part in str(caught.value)


def test_a_file_placed_by_hand_is_read_without_running_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    cached = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    cached.parent.mkdir(parents=True)
    state = {key: torch.from_numpy(array) for key, array in tensors("block1", "vgg16").items()}
    torch.save(state, cached)
    assert sorted(read_weights("vgg16", "imagenet").tensors) == sorted(state)
    torch.save({"features.0.weight": Evil()}, cached)
    with pytest.raises(InputError, match="pickled code, which is not run"):
        read_weights("vgg16", "imagenet")
    assert not Path("pickled-code-ran").exists()
    cached.write_text("<html>404</html>")
    with pytest.raises(InputError, match="corrupt, or holds pickled code"):
        read_weights("vgg16", "imagenet")


def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    """torch's reader raises a KeyError for the first, an IndexError for the second, an AssertionError for the third."""
    torch.save(torch.ones(2), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    old = (tmp_path / "w.pth").read_bytes()
    key = re.findall(rb"\d{9,}", old)[-1]  # the tensor's name, which its numbers follow
    before, _, after = old.rpartition(key)
    for content in (b"junk text here", b".", before + b"0" * len(key) + after):
        (tmp_path / "w.pth").write_bytes(content)
        with pytest.raises(InputError, match=r"w\.pth: damaged, or not a file that torch\.save wrote$"):
            read_weights("vgg16_narrow", str(tmp_path / "w.pth"))
