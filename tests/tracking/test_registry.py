"""A registered champion answers as its run did, wherever it is loaded."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablation.analysis.champion import choose_champion
from ablation.analysis.predictions import load_predictions
from ablation.analysis.results import read_results
from ablation.base.errors import InputError, StoreError
from ablation.data.reading import load_images
from ablation.spec.tables import Data
from ablation.storage.store import find_store
from ablation.tracking.registry import RegisteredVersion, load_champion
from tests.champions import (
    FLOAT16_ROUNDING,
    ChampionStudy,
    model_folder,
    predictions_file,
    winning_run,
    with_val_accuracy,
)
from tests.servers import Server, free_port
from tests.studies import REPOSITORY, STUDY

# Only MLflow's own API, in a process in which `ablation` cannot be imported.
FRESH = """
import json, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ablation", "optuna", "safetensors"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Block())
import mlflow, numpy

address, images, answer = sys.argv[1:]
mlflow.set_tracking_uri(address)
model = mlflow.pyfunc.load_model("models:/small@champion")
table = model.predict(numpy.load(images))
numpy.save(answer, table.to_numpy())
print(json.dumps([list(table.columns), model.input_example.tolist(), model.metadata.metadata]))
"""


def test_a_fresh_process_with_mlflow_alone_reproduces_the_stored_predictions(
    champion_study: ChampionStudy, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", champion_study.images.test_images_NHWC)
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FRESH, champion_study.store.tracking_uri, "../images.npy", "../answer.npy"],
        cwd=tmp_path / "elsewhere", capture_output=True, text=True, env=environment_without(REPOSITORY),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    columns, example, metadata = json.loads(done.stdout.splitlines()[-1])
    assert columns == [str(digit) for digit in range(10)]
    assert np.array_equal(np.array(example, np.uint8), champion_study.images.test_images_NHWC[:2])
    run_id = winning_run(champion_study.result)
    assert (metadata["run_id"], metadata["classes"], metadata["image_size"]) == (run_id, columns, 32)
    stored = load_predictions(predictions_file(champion_study, run_id))
    answer_NK = np.load(tmp_path / "answer.npy")
    assert answer_NK.dtype == np.float32
    assert np.abs(answer_NK - stored.probabilities_NK.astype(np.float32)).max() < FLOAT16_ROUNDING
    assert np.array_equal(answer_NK.argmax(1), stored.predicted_N)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def environment_without(folder: Path) -> dict[str, str]:
    """Return the environment without a search path that leads to the package."""
    return {name: value for name, value in os.environ.items() if not (name == "PYTHONPATH" and str(folder) in value)}


def test_any_number_of_images_and_no_other_size(champion_study: ChampionStudy) -> None:
    champion = load_champion("small", store=str(champion_study.store.root))
    images_NSSC = champion_study.images.test_images_NHWC
    all_NK = champion.probabilities(images_NSSC)
    assert np.allclose(all_NK.sum(1), 1, atol=1e-5)
    for start, count in ((0, 1), (5, 3), (0, 65)):
        assert np.allclose(champion.probabilities(images_NSSC[start : start + count]), all_NK[start : start + count])
    expected = r"^probabilities: takes a NumPy array of RGB images, uint8 N x 32 x 32 x 3, not "
    wrong: Any
    for wrong, what in [
        (images_NSSC[:2, :16], "uint8 2 x 16 x 32 x 3$"), (images_NSSC[0], "uint8 32 x 32 x 3$"),
        (images_NSSC[:1] / 255, "float64 1 x 32 x 32 x 3$"), (images_NSSC[:2].tolist(), "list$"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=expected + what):
            champion.probabilities(wrong)


def test_frozen_layers_are_in_the_model(champion_study: ChampionStudy) -> None:
    """The checkpoint does not hold them; the champion of a frozen arm needs no weights file."""
    arm = next(arm for arm in champion_study.result.arms if arm.arm.levels["strategy"] == "feature_extraction")
    run = arm.confirmations[0]
    champion_study.register(with_val_accuracy(champion_study.result, run.run_id, 3.0))
    weights = Path(str(champion_study.result.spec.backbone.weights))
    hidden = weights.rename(weights.with_suffix(".hidden"))
    try:
        answer_NK = load_champion("small", store=str(champion_study.store.root)).probabilities(
            champion_study.images.test_images_NHWC
        )
    finally:
        hidden.rename(weights)
    stored = load_predictions(predictions_file(champion_study, run.run_id))
    assert np.abs(answer_NK - stored.probabilities_NK.astype(np.float32)).max() < FLOAT16_ROUNDING


def test_a_copied_store_answers_where_it_is(champion_study: ChampionStudy, tmp_path: Path) -> None:
    images_NSSC = champion_study.images.test_images_NHWC[:7]
    expected_NK = load_champion("small", store=str(champion_study.store.root)).probabilities(images_NSSC)
    shutil.copytree(champion_study.store.root, tmp_path / "copy")
    hidden = champion_study.store.root.rename(champion_study.store.root.with_name("hidden"))
    try:
        copy = find_store(str(tmp_path / "copy"))
        assert np.array_equal(load_champion("small", store=str(copy.root)).probabilities(images_NSSC), expected_NK)
        shutil.rmtree(copy.artifacts("small") / "models")
        with pytest.raises(InputError, match="the files of the champion of 'small' are gone"):
            load_champion("small", store=str(copy.root))
    finally:
        hidden.rename(champion_study.store.root)


@pytest.mark.parametrize("damage", ["cut off", "in a weight"])
def test_a_damaged_model_is_one_line(
    champion_study: ChampionStudy, tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    """Torch would log its traceback for the first, and answer with the damaged weights for the second."""
    shutil.copytree(champion_study.store.root, tmp_path / "copy")
    store = find_store(str(tmp_path / "copy"))
    program = model_folder(champion_study, store) / "artifacts" / "program.pt2"
    content = bytearray(program.read_bytes())
    if damage == "cut off":
        del content[1000:]
    else:
        with zipfile.ZipFile(program) as archive:
            weight = max(
                (info for info in archive.infolist() if "/weights/" in info.filename), key=attrgetter("file_size")
            )
        middle = weight.header_offset + weight.file_size // 2
        content[middle : middle + 100] = bytes(100)
    program.write_bytes(content)
    with pytest.raises(StoreError, match="the champion of 'small' cannot be loaded"):
        load_champion("small", store=str(store.root))
    assert capfd.readouterr().err == ""


def test_the_model_holds_what_it_needs_and_nothing_of_the_working_folder(
    champion_study: ChampionStudy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    champion_study.forget()
    monkeypatch.chdir(tmp_path)
    for name in ("uv.lock", "pyproject.toml"):  # MLflow packs those that it finds
        (tmp_path / name).write_text('[project]\nname = "unrelated"\n')
    champion_study.register()
    folder = model_folder(champion_study, champion_study.store)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "MLmodel", "artifacts/program.pt2", "champion_model.py", "conda.yaml", "input_example.json", "python_env.yaml",
        "requirements.txt", "serving_input_example.json",
    }  # fmt: skip
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert [line.partition("==")[0] for line in lines] == ["mlflow", "torch", "numpy", "pandas"]
    assert all(line.partition("==")[2] and "+" not in line for line in lines)  # a local version is on no index
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pyproject.toml", "uv.lock"]


@pytest.mark.slow
def test_mlflow_serves_it(champion_study: ChampionStudy, tmp_path: Path) -> None:
    port = free_port()
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "-p", str(port),
             "-m", "models:/small@champion"],
            cwd=tmp_path, stdout=log, stderr=log, start_new_session=True,
            env={**environment_without(REPOSITORY), "MLFLOW_TRACKING_URI": champion_study.store.tracking_uri},
        )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server)
        images_NSSC = champion_study.images.test_images_NHWC[:3]
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps({"inputs": images_NSSC.tolist()}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            rows = json.load(answer)["predictions"]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
    stored = load_predictions(predictions_file(champion_study, winning_run(champion_study.result)))
    for row, expected_K in zip(rows, stored.probabilities_NK[:3].tolist(), strict=True):
        assert list(row) == [str(digit) for digit in range(10)]
        assert list(row.values()) == pytest.approx(expected_K, abs=FLOAT16_ROUNDING)


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(180):
        assert process.poll() is None, "the server has ended"
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(address):
            return
        time.sleep(0.5)
    raise AssertionError(f"{address} does not answer")


@pytest.mark.slow
def test_a_tracking_server_keeps_it_too(
    server: Server, narrow_weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(STUDY.format(weights=narrow_weights))
    command = [sys.executable, "-m", "ablation.study", "small.toml", "--trials", "1", "--epochs", "1"]
    done = subprocess.run([*command, "--set", "confirm.seeds=1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    store = find_store(None)
    study = ChampionStudy(store, read_results(store, "small"), load_images(Data(source="digits")))
    run = next(r for arm in study.result.arms for r in arm.confirmations if r.run_id == winning_run(study.result))
    assert study.champion().source.startswith("mlflow-artifacts:")
    answer_NK = load_champion("small").probabilities(study.images.test_images_NHWC)
    assert run.predictions is not None
    assert np.abs(answer_NK - run.predictions.probabilities_NK.astype(np.float32)).max() < FLOAT16_ROUNDING
    choice = choose_champion(study.result)
    assert choice is not None
    registered = RegisteredVersion("small", "1", run.run_id, choice.reason)
    assert study.register() == registered
    assert (study.versions(), len(study.models())) == ({run.run_id: "1"}, 1)
