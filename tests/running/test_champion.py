"""The champion: what is registered, that it answers as its run did, wherever it is loaded, and `ablation.predict`."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ablation.analysis.results import StudyResult, load_predictions, read_results
from ablation.base.command_line import run_command
from ablation.base.errors import InputError, StoreAway, StoreError
from ablation.data.reading import ImageSet, load_images
from ablation.predict import cli, read_image
from ablation.running.champion import register_champion, version_description
from ablation.spec.study import Data
from ablation.storage.store import Store, find_store
from ablation.tracking.registry import RegisteredVersion, find_champion, load_champion
from tests.servers import Server, free_port
from tests.studies import REPOSITORY, STUDY

FLOAT16_ROUNDING = 2**-12 + 1e-6  # half a step between 0.5 and 1, where it is largest, and float32's own error


@dataclass(frozen=True)
class Crowned:
    """A study that has run to its end."""

    store: Store
    result: StudyResult
    images: ImageSet

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.store.tracking_uri, registry_uri=self.store.tracking_uri)

    def versions(self) -> dict[str, str]:
        """Return run -> version."""
        return {version.run_id: str(version.version) for version in self.client.search_model_versions("name = 'small'")}

    def champion(self) -> ModelVersion:
        return self.client.get_model_version_by_alias("small", "champion")

    def models(self) -> list[Any]:
        return list(self.client.search_logged_models([self.result.experiment_id]))

    def forget(self) -> None:
        """Delete all registered and logged models, as if the study had never been finished."""
        with contextlib.suppress(Exception):
            self.client.delete_registered_model("small")
        for model in self.models():
            self.client.delete_logged_model(model.model_id)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, narrow_weights: Path) -> Crowned:
    """A study with confirmation, run by the real command."""
    folder = tmp_path_factory.mktemp("crowned")
    (folder / "small.toml").write_text(STUDY.format(weights=narrow_weights))
    command = [sys.executable, "-m", "ablation.study", "small.toml", "--store", "store", "--set", "confirm.seeds=2"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    store = find_store(str(folder / "store"))
    result = read_results(store, "small")
    return Crowned(store, result, load_images(result.spec.data))


@pytest.fixture
def crowned(finished: Crowned) -> Iterator[Crowned]:
    """The same; a test may do to its registry what it likes."""
    yield finished
    expected = winning_run(finished.result)
    if finished.versions() != {expected: "1"} or finished.champion().run_id != expected:
        finished.forget()
        assert register_champion(finished.store, finished.result, finished.images) is not None


def winning_run(result: StudyResult) -> str:
    """Return the run that should be the champion, worked out from the plain figures."""
    means = [sum(run.val_accuracy or 0 for run in arm.confirmations) / len(arm.confirmations) for arm in result.arms]
    runs = result.arms[means.index(max(means))].confirmations
    values = [run.val_accuracy for run in runs]
    return runs[values.index(max(values))].run_id


def with_val_accuracy(result: StudyResult, run_id: str, accuracy: float) -> StudyResult:
    """Return a study in which a confirmation run has another validation accuracy."""
    arms = [
        replace(arm, confirmations=[
            replace(run, val_accuracy=accuracy) if run.run_id == run_id else run for run in arm.confirmations
        ])
        for arm in result.arms
    ]  # fmt: skip
    return replace(result, arms=arms)


def model_folder(crowned: Crowned, store: Store) -> Path:
    """Return where the champion's files are in the store, or in a copy of it."""
    return store.artifacts("small") / "models" / Path(crowned.champion().source).parts[-2] / "artifacts"


def predictions_file(crowned: Crowned, run_id: str) -> Path:
    return crowned.store.artifacts("small") / run_id / "artifacts" / "test" / "predictions.safetensors"


# -------------------------------------------------------------------------------------------------- who is crowned


def test_a_finished_study_has_its_champion(crowned: Crowned) -> None:
    """The command itself has registered it."""
    run_id = winning_run(crowned.result)
    version = crowned.champion()
    assert (version.run_id, crowned.versions()) == (run_id, {run_id: "1"})
    (model,) = crowned.models()
    assert version.source == model.artifact_location
    outputs = [output.model_id for output in crowned.client.get_run(run_id).outputs.model_outputs]
    assert outputs.count(model.model_id) == 1
    run = next(r for arm in crowned.result.arms for r in arm.confirmations if r.run_id == run_id)
    assert f"arm `{run.spec.arm}`" in version.description
    for figure in (run.val_accuracy, run.test_accuracy):
        assert f"| {figure:.4f} |" in version.description
    assert crowned.client.get_registered_model("small").description == "Which cut of a small network?"


def test_its_description_does_not_need_the_predictions(crowned: Crowned) -> None:
    arm = next(
        arm for arm in crowned.result.arms if winning_run(crowned.result) in {r.run_id for r in arm.confirmations}
    )
    lost = replace(arm, confirmations=[replace(run, predictions=None) for run in arm.confirmations])
    run = lost.confirmations[0]
    assert version_description(crowned.result, lost, run, 32) == version_description(crowned.result, arm, run, 32)


def test_crowning_again_changes_nothing(crowned: Crowned) -> None:
    before = crowned.versions(), crowned.models()[0].to_dictionary(), crowned.champion().last_updated_timestamp
    again = register_champion(crowned.store, crowned.result, crowned.images)
    assert again is not None
    assert (again.name, again.version, again.run_id) == ("small", "1", winning_run(crowned.result))
    assert (
        crowned.versions(),
        crowned.models()[0].to_dictionary(),
        crowned.champion().last_updated_timestamp,
    ) == before


def test_the_alias_follows_the_winner_there_and_back(crowned: Crowned) -> None:
    first = winning_run(crowned.result)
    other = next(arm for arm in crowned.result.arms if all(run.run_id != first for run in arm.confirmations))
    second = other.confirmations[1].run_id
    register_champion(
        crowned.store, with_val_accuracy(crowned.result, second, 3.0), crowned.images
    )  # mean above 1: it must win
    assert (crowned.champion().run_id, str(crowned.champion().version)) == (second, "2")
    register_champion(crowned.store, crowned.result, crowned.images)
    assert (crowned.champion().run_id, crowned.versions()) == (first, {first: "1", second: "2"})


def test_test_accuracies_choose_nothing(crowned: Crowned) -> None:
    """Those who are worst on validation are given the best test accuracies, and the other way round."""
    arms = [
        replace(arm, confirmations=[
            replace(run, test_accuracy=1 - (run.val_accuracy or 0), predictions=None) for run in arm.confirmations
        ])
        for arm in crowned.result.arms
    ]  # fmt: skip
    again = register_champion(crowned.store, replace(crowned.result, arms=arms), crowned.images)
    assert again is not None
    assert again.run_id == winning_run(crowned.result)


@pytest.mark.parametrize("missing", ["a confirmation run", "a trial", "confirmation"])
def test_an_incomplete_study_crowns_nobody(crowned: Crowned, missing: str) -> None:
    crowned.forget()
    arms = list(crowned.result.arms)
    spec = crowned.result.spec
    if missing == "a confirmation run":
        arms[0] = replace(arms[0], confirmations=arms[0].confirmations[:1])
    elif missing == "a trial":
        arms[0] = replace(arms[0], trials=arms[0].trials[:1])
    else:
        spec = spec.model_copy(update={"confirm": spec.confirm.model_copy(update={"seeds": 0})})
    assert register_champion(crowned.store, replace(crowned.result, spec=spec, arms=arms), crowned.images) is None
    assert list(crowned.client.search_registered_models()) == []
    with pytest.raises(InputError, match=r"study 'small' has no champion: it gets one when all its confirmation runs"):
        find_champion(crowned.store, "small")


def test_a_model_of_somebody_else_is_left_alone(crowned: Crowned, caplog: pytest.LogCaptureFixture) -> None:
    crowned.forget()
    crowned.client.create_registered_model("small", tags={"team": "another"})
    assert register_champion(crowned.store, crowned.result, crowned.images) is None
    (message,) = [record.getMessage() for record in caplog.records if record.name == "ablation.running.champion"]
    assert "has a model 'small' that is not this study's" in message
    theirs = crowned.client.get_registered_model("small")
    assert (theirs.tags, theirs.aliases, crowned.versions()) == ({"team": "another"}, {}, {})
    with pytest.raises(InputError, match="has no champion"):
        find_champion(crowned.store, "small")


def test_what_cannot_be_exported_costs_the_champion_alone(
    crowned: Crowned, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("data-dependent control flow\nand 300 lines more")

    crowned.forget()
    with monkeypatch.context() as patch:
        patch.setattr("torch.export.export", refuse)
        assert register_champion(crowned.store, crowned.result, crowned.images) is None
    said = "no champion is registered: torch.export cannot export it (data-dependent control flow)"
    assert caplog.messages.count(said) == 1
    assert register_champion(crowned.store, crowned.result, crowned.images) is not None


def test_lost_weights_cost_the_champion_alone(crowned: Crowned, caplog: pytest.LogCaptureFixture) -> None:
    crowned.forget()
    arm = next(arm for arm in crowned.result.arms if arm.arm.levels["strategy"] == "feature_extraction")
    result = with_val_accuracy(crowned.result, arm.confirmations[0].run_id, 3.0)
    backbone = result.spec.backbone.model_copy(update={"weights": "moved.safetensors"})
    moved = replace(result, spec=result.spec.model_copy(update={"backbone": backbone}))
    assert register_champion(crowned.store, moved, crowned.images) is None
    assert "no champion is registered: backbone.weights: moved.safetensors: no such file" in caplog.text
    again = register_champion(
        crowned.store, result, crowned.images
    )  # they are where they were: what was begun is finished
    assert again is not None
    assert len(crowned.models()) == 1


def test_a_server_that_went_away_is_said_to_be_away(crowned: Crowned) -> None:
    """So that the end of a study says what waits, and the same command goes on; no warning would do that."""
    store = replace(crowned.store, tracking_uri=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StoreAway):
        register_champion(store, crowned.result, crowned.images)


@pytest.mark.parametrize(
    "call",
    [
        "create_registered_model",
        "create_logged_model",
        "log_model_artifacts",
        "log_outputs",
        "finalize_logged_model",
        "create_model_version",
        "set_registered_model_alias",
    ],
)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_process_may_die_at_any_call(
    crowned: Crowned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str, moment: str
) -> None:
    program = shutil.copy(model_folder(crowned, crowned.store) / "artifacts" / "program.pt2", tmp_path)
    monkeypatch.setattr(
        "ablation.running.champion.export_program", lambda model, images, path: shutil.copy(program, path)
    )  # it is slow
    crowned.forget()
    original = getattr(MlflowClient, call)

    def dies(*arguments: Any, **named: Any) -> Any:
        if moment == "after":
            original(*arguments, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, dies)
        with pytest.raises(KeyboardInterrupt):
            register_champion(crowned.store, crowned.result, crowned.images)
    register_champion(crowned.store, crowned.result, crowned.images)
    run_id = winning_run(crowned.result)
    assert (crowned.champion().run_id, crowned.versions()) == (run_id, {run_id: "1"})
    (model,) = crowned.models()
    outputs = [output.model_id for output in crowned.client.get_run(run_id).outputs.model_outputs]
    assert outputs.count(model.model_id) == 1
    assert load_champion("small", store=str(crowned.store.root)).registered.run_id == run_id


# --------------------------------------------------------------------------------------- it answers as its run did

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


def test_a_fresh_process_with_mlflow_alone_reproduces_the_stored_predictions(crowned: Crowned, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", crowned.images.test_images_NHWC)
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FRESH, crowned.store.tracking_uri, "../images.npy", "../answer.npy"],
        cwd=tmp_path / "elsewhere", capture_output=True, text=True, env=environment_without(REPOSITORY),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    columns, example, metadata = json.loads(done.stdout.splitlines()[-1])
    assert columns == [str(digit) for digit in range(10)]
    assert np.array_equal(np.array(example, np.uint8), crowned.images.test_images_NHWC[:2])
    run_id = winning_run(crowned.result)
    assert (metadata["run_id"], metadata["classes"], metadata["image_size"]) == (run_id, columns, 32)
    stored = load_predictions(predictions_file(crowned, run_id))
    answer_NK = np.load(tmp_path / "answer.npy")
    assert answer_NK.dtype == np.float32
    assert np.abs(answer_NK - stored.probabilities_NK.astype(np.float32)).max() < FLOAT16_ROUNDING
    assert np.array_equal(answer_NK.argmax(1), stored.predicted_N)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def environment_without(folder: Path) -> dict[str, str]:
    """Return the environment without a search path that leads to the package."""
    return {name: value for name, value in os.environ.items() if not (name == "PYTHONPATH" and str(folder) in value)}


def test_any_number_of_images_and_no_other_size(crowned: Crowned) -> None:
    champion = load_champion("small", store=str(crowned.store.root))
    images_NSSC = crowned.images.test_images_NHWC
    all_NK = champion.probabilities(images_NSSC)
    assert np.allclose(all_NK.sum(1), 1, atol=1e-5)
    for start, count in ((0, 1), (5, 3), (0, 65)):
        assert np.allclose(champion.probabilities(images_NSSC[start : start + count]), all_NK[start : start + count])
    for wrong in (images_NSSC[:, :16], images_NSSC[0], images_NSSC.astype(np.float32) / 255):
        with pytest.raises(Exception, match="schema"):
            champion.probabilities(wrong)


def test_frozen_layers_are_in_the_model(crowned: Crowned) -> None:
    """The checkpoint does not hold them; the champion of a frozen arm needs no weights file."""
    arm = next(arm for arm in crowned.result.arms if arm.arm.levels["strategy"] == "feature_extraction")
    run = arm.confirmations[0]
    register_champion(crowned.store, with_val_accuracy(crowned.result, run.run_id, 3.0), crowned.images)
    weights = Path(str(crowned.result.spec.backbone.weights))
    hidden = weights.rename(weights.with_suffix(".hidden"))
    try:
        answer_NK = load_champion("small", store=str(crowned.store.root)).probabilities(crowned.images.test_images_NHWC)
    finally:
        hidden.rename(weights)
    stored = load_predictions(predictions_file(crowned, run.run_id))
    assert np.abs(answer_NK - stored.probabilities_NK.astype(np.float32)).max() < FLOAT16_ROUNDING


def test_a_copied_store_answers_where_it_is(crowned: Crowned, tmp_path: Path) -> None:
    images_NSSC = crowned.images.test_images_NHWC[:7]
    expected_NK = load_champion("small", store=str(crowned.store.root)).probabilities(images_NSSC)
    shutil.copytree(crowned.store.root, tmp_path / "copy")
    hidden = crowned.store.root.rename(crowned.store.root.with_name("hidden"))
    try:
        copy = find_store(str(tmp_path / "copy"))
        assert np.array_equal(load_champion("small", store=str(copy.root)).probabilities(images_NSSC), expected_NK)
        shutil.rmtree(copy.artifacts("small") / "models")
        with pytest.raises(InputError, match="the files of the champion of 'small' are gone"):
            load_champion("small", store=str(copy.root))
    finally:
        hidden.rename(crowned.store.root)


def test_a_damaged_model_is_one_line(crowned: Crowned, tmp_path: Path) -> None:
    shutil.copytree(crowned.store.root, tmp_path / "copy")
    store = find_store(str(tmp_path / "copy"))
    program = model_folder(crowned, store) / "artifacts" / "program.pt2"
    program.write_bytes(program.read_bytes()[:1000])
    with pytest.raises(StoreError, match="the champion of 'small' cannot be loaded"):
        load_champion("small", store=str(store.root))


def test_the_model_holds_what_it_needs_and_nothing_of_the_working_folder(
    crowned: Crowned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    crowned.forget()
    monkeypatch.chdir(tmp_path)
    for name in ("uv.lock", "pyproject.toml"):  # MLflow packs those that it finds
        (tmp_path / name).write_text('[project]\nname = "unrelated"\n')
    register_champion(crowned.store, crowned.result, crowned.images)
    folder = model_folder(crowned, crowned.store)
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "MLmodel", "artifacts/program.pt2", "champion_model.py", "conda.yaml", "input_example.json", "python_env.yaml",
        "requirements.txt", "serving_input_example.json",
    }  # fmt: skip
    lines = (folder / "requirements.txt").read_text().splitlines()
    assert [line.partition("==")[0] for line in lines] == ["mlflow", "torch", "numpy", "pandas"]
    assert all(line.partition("==")[2] and "+" not in line for line in lines)  # a local version is on no index
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pyproject.toml", "uv.lock"]


@pytest.mark.slow
def test_mlflow_serves_it(crowned: Crowned, tmp_path: Path) -> None:
    port = free_port()
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "-p", str(port),
             "-m", "models:/small@champion"],
            cwd=tmp_path, stdout=log, stderr=log, start_new_session=True,
            env={**environment_without(REPOSITORY), "MLFLOW_TRACKING_URI": crowned.store.tracking_uri},
        )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server)
        images_NSSC = crowned.images.test_images_NHWC[:3]
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
    stored = load_predictions(predictions_file(crowned, winning_run(crowned.result)))
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
    study = Crowned(store, read_results(store, "small"), load_images(Data(source="digits")))
    run = next(r for arm in study.result.arms for r in arm.confirmations if r.run_id == winning_run(study.result))
    assert study.champion().source.startswith("mlflow-artifacts:")
    answer_NK = load_champion("small").probabilities(study.images.test_images_NHWC)
    assert run.predictions is not None
    assert np.abs(answer_NK - run.predictions.probabilities_NK.astype(np.float32)).max() < FLOAT16_ROUNDING
    assert register_champion(store, study.result, study.images) == RegisteredVersion("small", "1", run.run_id)
    assert (study.versions(), len(study.models())) == ({run.run_id: "1"}, 1)


# ----------------------------------------------------------------------------------------- python -m ablation.predict

Predict = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Predict:
    """`python -m ablation.predict ARGUMENTS` in this process; returns the exit status and what was printed."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
        status = run_command(cli)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def rows_of(output: str) -> list[list[str]]:
    """Return the cells of a markdown table's rows."""
    lines = [line for line in output.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_it_prints_the_classes_with_probabilities(crowned: Crowned, command: Predict, tmp_path: Path) -> None:
    """An image of the test split, from a file, gets the answer that its run stored."""
    paths = [tmp_path / f"{number}.png" for number in (3, 11)]
    for path in paths:
        Image.fromarray(crowned.images.test_images_NHWC[int(path.stem)]).save(path)
    status, output, _ = command("small", *paths, "--store", crowned.store.root, "--top", 3)
    assert status == 0
    run_id = winning_run(crowned.result)
    assert f"small: champion, version 1 (arm {crowned.client.get_run(run_id).data.tags['arm']}, run {run_id})" in output
    assert "7 less probable classes are not shown" in output
    stored = load_predictions(predictions_file(crowned, run_id))
    rows = rows_of(output)
    assert [row[0] for row in rows] == [str(paths[0])] * 3 + [str(paths[1])] * 3
    for path, mine in zip(paths, (rows[:3], rows[3:]), strict=True):
        probabilities_K = stored.probabilities_NK[int(path.stem)].astype(float)
        assert int(mine[0][1]) == stored.predicted_N[int(path.stem)]
        shown = [float(row[2]) for row in mine]
        assert shown == pytest.approx(sorted(probabilities_K, reverse=True)[:3], abs=FLOAT16_ROUNDING + 5e-5)
        assert [probabilities_K[int(row[1])] for row in mine] == pytest.approx(shown, abs=FLOAT16_ROUNDING + 5e-5)


def test_files_of_every_kind_are_read_as_training_images_are(
    crowned: Crowned, command: Predict, tmp_path: Path
) -> None:
    """A digit as scikit-learn has it (8 x 8, grey) becomes the same 32 x 32 pixels that training saw, in any mode."""
    digits = load_digits()
    _, test = train_test_split(np.arange(1797), test_size=0.2, stratify=digits.target, random_state=0)
    grey = Image.fromarray(np.round(digits.images[test[0]] * (255 / 16)).astype(np.uint8))
    kinds = {
        "grey.png": grey,
        "rgba.png": grey.convert("RGBA"),
        "palette.png": grey.convert("P"),
        "rgb.bmp": grey.convert("RGB"),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name, 32), crowned.images.test_images_NHWC[0])
    wide = Image.new("RGB", (90, 40))
    wide.paste(Image.fromarray(crowned.images.test_images_NHWC[0]).resize((40, 40)), (25, 0))
    wide.save(tmp_path / "wide.jpg")
    status, output, _ = command(
        "small", *(tmp_path / name for name in [*kinds, "wide.jpg"]), "--store", crowned.store.root, "--top", 1
    )
    assert status == 0
    rows = rows_of(output)
    assert len({tuple(row[1:]) for row in rows[:4]}) == 1
    assert len(rows) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small", "{image}", "{tmp}/none.png"], "{tmp}/none.png: no such file"),
        (["small", "{tmp}"], "{tmp}: is a folder"),
        (["small", "{image}", "{tmp}/text.png"], "{tmp}/text.png: cannot be read as an image"),
        (["small", "{image}", "{tmp}/cut.png"], "{tmp}/cut.png: cannot be read as an image"),
        (["smal", "{image}"], "{store}/mlflow.db: has no study 'smal'; did you mean 'small'?"),
        (["../small", "{image}"], "the study's name '../small' must be"),
        (["small"], "Missing argument 'IMAGE...'"),
        (["small", "{image}", "--top", "0"], "Invalid value for '--top'"),
        (["small", "{image}", "--store", "{tmp}/nowhere"], "{tmp}/nowhere: is no store, or an empty one"),
    ],
)
def test_refusals_are_one_line(
    crowned: Crowned, command: Predict, tmp_path: Path, arguments: list[str], message: str
) -> None:
    image = tmp_path / "digit.png"
    Image.fromarray(crowned.images.test_images_NHWC[0]).save(image)
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:100])
    arguments = [argument.format(image=image, tmp=tmp_path) for argument in arguments]
    if "--store" not in arguments:
        arguments += ["--store", str(crowned.store.root)]
    status, output, errors = command(*arguments)
    assert (status, rows_of(output)) == (2, [])
    assert errors.startswith(f"error: {message.format(tmp=tmp_path, store=crowned.store.root)}")
    assert len(errors.splitlines()) == 1
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--help"], 0), (["small", "none.png"], 2), (["small", "{file}", "--store", "none"], 2)]
)
def test_quick_answers_import_nothing_large(tmp_path: Path, arguments: list[str], status: int) -> None:
    code = (
        "import sys; from ablation import predict; status = predict.run_command(predict.cli);"
        "print(sorted({'torch', 'mlflow', 'optuna', 'sklearn', 'pandas'} & set(sys.modules)), status)"
    )
    arguments = [argument.format(file=__file__) for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == f"[] {status}", done.stderr
    assert list(tmp_path.iterdir()) == []
