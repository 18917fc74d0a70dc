"""`python -m ablation.predict`."""

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from ablation.analysis.predictions import load_predictions
from ablation.base.command_line import run_command
from ablation.predict import BATCH_SIZE, Prediction, as_csv, cli, predict_files, read_image
from ablation.spec.tables import Resize
from ablation.tracking.registry import load_champion
from tests.champions import FLOAT16_ROUNDING, ChampionStudy, predictions_file, winning_run
from tests.studies import REPOSITORY

BILINEAR = Image.Resampling.BILINEAR
Predict = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Predict:
    """`python -m ablation.predict ARGUMENTS` in this process; returns the exit status and what was printed."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
        try:
            status = run_command(cli)
        except SystemExit as end:
            status = int(str(end.code))
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def rows_of(output: str) -> list[list[str]]:
    """Return the cells of a markdown table's rows."""
    lines = [line for line in output.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_it_prints_the_classes_with_probabilities(
    champion_study: ChampionStudy, command: Predict, tmp_path: Path
) -> None:
    """An image of the test split, from a file, gets the answer that its run stored."""
    paths = [tmp_path / f"{number}.png" for number in (3, 11)]
    for path in paths:
        Image.fromarray(champion_study.images.test_images_NHWC[int(path.stem)]).save(path)
    status, output, _ = command("small", *paths, "--store", champion_study.store.root, "--top", 3)
    assert status == 0
    run_id = winning_run(champion_study.result)
    assert (
        f"small: champion, version 1 (arm {champion_study.client.get_run(run_id).data.tags['arm']}, run {run_id})"
        in output
    )
    assert "The champion was chosen by validation: its arm and conv2_1,fine_tune_all share the highest" in output
    assert "7 less probable classes are not shown" in output
    stored = load_predictions(predictions_file(champion_study, run_id))
    rows = rows_of(output)
    assert [row[0] for row in rows] == [str(paths[0])] * 3 + [str(paths[1])] * 3
    for path, mine in zip(paths, (rows[:3], rows[3:]), strict=True):
        probabilities_K = stored.probabilities_NK[int(path.stem)].astype(float)
        assert int(mine[0][1]) == stored.predicted_N[int(path.stem)]
        shown = [float(row[2]) for row in mine]
        assert shown == pytest.approx(sorted(probabilities_K, reverse=True)[:3], abs=FLOAT16_ROUNDING + 5e-5)
        assert [probabilities_K[int(row[1])] for row in mine] == pytest.approx(shown, abs=FLOAT16_ROUNDING + 5e-5)


def test_formats_for_programs_say_the_same(champion_study: ChampionStudy, command: Predict, tmp_path: Path) -> None:
    """Nothing but JSON or CSV is printed, with all digits."""
    path = tmp_path / 'a "b", c.png'
    Image.fromarray(champion_study.images.test_images_NHWC[3]).save(path)
    arguments = ("small", path, "--store", champion_study.store.root, "--top", 2, "--format")
    as_text, as_json, as_csv = (command(*arguments, output_format) for output_format in ("text", "json", "csv"))
    assert (as_text[0], as_json[0], as_csv[0]) == (0, 0, 0)
    content = json.loads(as_json[1])
    assert content["champion"]["run"] == winning_run(champion_study.result)
    assert content["champion"]["chosen"].startswith("its arm and conv2_1,fine_tune_all share the highest mean")
    (image,) = content["images"]
    assert image["image"] == str(path)
    rows = list(csv.DictReader(io.StringIO(as_csv[1])))
    assert [row["rank"] for row in rows] == ["1", "2"]
    for row, entry, shown in zip(rows, image["classes"], rows_of(as_text[1]), strict=True):
        assert row["image"] == str(path)
        assert row["class"] == entry["class"] == shown[1]
        assert float(row["probability"]) == entry["probability"]
        assert shown[2] == f"{entry['probability']:.4f}"


@pytest.mark.parametrize("output_format", ["json", "csv", "text"])
def test_nobody_reads_what_is_printed(
    champion_study: ChampionStudy, command: Predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output_format: str
) -> None:
    """`>&-` closes the standard output, which Python then does not have."""
    Image.fromarray(champion_study.images.test_images_NHWC[3]).save(tmp_path / "3.png")
    monkeypatch.setattr(sys, "stdout", None)
    store = champion_study.store.root
    assert command("small", tmp_path / "3.png", "--store", store, "--format", output_format)[0] == 0


def test_csv_has_no_formulas() -> None:
    """The names of files and classes are users'; numbers stay numbers."""
    prediction = Prediction(Path("=1+1.png"), [("@sum", 0.75), ("-1", 0.25)])
    (_, *rows) = csv.reader(io.StringIO(as_csv([prediction], with_heading=True)))
    assert rows == [["'=1+1.png", "1", "'@sum", "0.75"], ["'=1+1.png", "2", "-1", "0.25"]]


def test_files_of_every_kind_are_read_as_training_images_are(
    champion_study: ChampionStudy, command: Predict, tmp_path: Path
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
        assert np.array_equal(read_image(tmp_path / name, 32, "crop"), champion_study.images.test_images_NHWC[0])
    wide = Image.new("RGB", (90, 40))
    wide.paste(Image.fromarray(champion_study.images.test_images_NHWC[0]).resize((40, 40)), (25, 0))
    wide.save(tmp_path / "wide.jpg")
    status, output, _ = command(
        "small", *(tmp_path / name for name in [*kinds, "wide.jpg"]), "--store", champion_study.store.root, "--top", 1
    )
    assert status == 0
    rows = rows_of(output)
    assert len({tuple(row[1:]) for row in rows[:4]}) == 1
    assert len(rows) == 5


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_files_are_scaled_as_the_study_scaled_its_own(
    champion_study: ChampionStudy, command: Predict, tmp_path: Path, resize: Resize
) -> None:
    """A wide picture of two digits: its middle is cut out, both are squeezed, or black is added."""
    study, path = champion_study, tmp_path / "wide.png"
    pixels_HWC = np.concatenate(list(study.images.test_images_NHWC[:2]), axis=1)
    Image.fromarray(pixels_HWC).save(path)
    data = study.result.spec.data.model_copy(update={"resize": resize})
    result = replace(study.result, spec=study.result.spec.model_copy(update={"data": data}))
    study.forget()
    try:
        assert study.register(result) is not None
        assert f'data.resize = "{resize}"' in study.champion().description
        champion = load_champion("small", store=str(study.store.root))
        status, output, _ = command("small", path, "--store", study.store.root, "--top", 10, "--format", "json")
    finally:
        study.forget()  # the fixture registers it again
    assert (status, champion.resize) == (0, resize)
    (image,) = json.loads(output)["images"]
    probabilities = {entry["class"]: entry["probability"] for entry in image["classes"]}
    padded_HWC = np.pad(np.asarray(Image.fromarray(pixels_HWC).resize((32, 16), BILINEAR)), ((8, 8), (0, 0), (0, 0)))
    squeezed_HWC = np.asarray(Image.fromarray(pixels_HWC).resize((32, 32), BILINEAR))
    expected_SSC = {"crop": pixels_HWC[:, 16:48], "squash": squeezed_HWC, "pad": padded_HWC}[resize]
    expected_K = champion.probabilities(np.ascontiguousarray(expected_SSC)[None])[0]
    assert [probabilities[name] for name in champion.classes] == pytest.approx(list(expected_K), abs=1e-6)


def names_in(output: str, output_format: str) -> list[str]:
    """Return the names of the images that are classified, in order; what was printed must be a valid document."""
    if output_format == "json":
        return [image["image"] for image in json.loads(output)["images"]]
    if output_format == "csv":
        return [row["image"] for row in csv.DictReader(io.StringIO(output))]
    return [row[0] for row in rows_of(output)]


@pytest.mark.parametrize("output_format", ["text", "json", "csv"])
def test_what_can_be_read_is_classified_and_the_rest_is_named(
    champion_study: ChampionStudy, command: Predict, tmp_path: Path, output_format: str
) -> None:
    """Folders are read as those of a study, at any depth; a pipe is not waited for."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    good = [tmp_path / "good.png", folder / "b.png", folder / "more" / "a.png"]
    for path in [*good, folder / ".hidden.png"]:
        Image.fromarray(champion_study.images.test_images_NHWC[3]).save(path)
    bad = [tmp_path / "bad.png", folder / "c.png", folder / "nowhere.png", folder / "pipe.png"]
    for path in [*bad[:2], folder / "notes.txt"]:
        path.write_text("not an image")
    bad[2].symlink_to(tmp_path / "none")
    os.mkfifo(bad[3])
    options = ("--store", champion_study.store.root, "--top", 1, "--format", output_format)
    status, output, errors = command("small", bad[0], good[0], folder, *options)
    assert status == 1
    assert names_in(output, output_format) == list(map(str, good))
    reasons = ["not an image", "not an image", "No such file or directory", "a pipe"]
    lines = [f"error: {path}: cannot be read as an image ({why})" for path, why in zip(bad, reasons, strict=True)]
    assert errors.splitlines() == lines
    status, output, errors = command("small", *bad[:2], *options)
    assert (status, rows_of(output), errors.splitlines()) == (2, [], lines[:2])
    assert output_format == "text" or output == ""


def test_images_are_read_and_classified_in_batches(tmp_path: Path) -> None:
    """A champion whose second class is the more probable the brighter an image; a broken one shifts no other."""
    sizes, faults = [], []

    def probabilities(images_NSSC: np.ndarray) -> np.ndarray:
        sizes.append(len(images_NSSC))
        bright_N = images_NSSC[:, 0, 0, 0] / 255
        return np.stack([1 - bright_N, bright_N], axis=1)

    champion: Any = SimpleNamespace(
        image_size=4, resize="crop", classes=["dark", "bright"], probabilities=probabilities
    )
    paths = [tmp_path / f"{grey}.png" for grey in range(2 * BATCH_SIZE + 3)]
    for grey, path in enumerate(paths):
        Image.new("L", (4, 4), grey).save(path)
    paths[1].write_text("not an image")
    batches = predict_files(champion, paths, 2, faults.append)
    assert (len(next(batches)), sizes) == (BATCH_SIZE - 1, [BATCH_SIZE - 1])  # before the others are read
    predictions = list(batches)
    assert (list(map(len, predictions)), sizes[1:]) == ([BATCH_SIZE, 3], [BATCH_SIZE, 3])
    assert [str(fault) for fault in faults] == [f"{paths[1]}: cannot be read as an image (not an image)"]
    last = predictions[-1][-1]
    assert (last.path, last.classes) == (paths[130], [("bright", 130 / 255), ("dark", 1 - 130 / 255)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["small", "{image}", "{tmp}/none.png"], "{tmp}/none.png: no such file"),
        (["small", "{image}", "{tmp}/empty"], "{tmp}/empty: holds no images"),
        (["small", "{tmp}/text.png"], "{tmp}/text.png: cannot be read as an image (not an image)"),
        (["small", "{tmp}/cut.png"], "{tmp}/cut.png: cannot be read as an image ("),
        (["small", "{tmp}/stack.tif"], "{tmp}/stack.tif: cannot be read as an image (a stack of 2 pictures: save"),
        (["smal", "{image}"], "{store}/mlflow.db: has no study 'smal'; did you mean 'small'?"),
        (["../small", "{image}"], "the study's name '../small' must be"),
        (["small"], "Missing argument 'IMAGE...'"),
        (["small", "{image}", "--top", "0"], "Invalid value for '--top'"),
        (["small", "{image}", "--store", "{tmp}/nowhere"], "{tmp}/nowhere: is no store, or an empty one"),
    ],
)
def test_refusals_are_one_line(
    champion_study: ChampionStudy, command: Predict, tmp_path: Path, arguments: list[str], message: str
) -> None:
    image = tmp_path / "digit.png"
    Image.fromarray(champion_study.images.test_images_NHWC[0]).save(image)
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    pages = [Image.new("RGB", (8, 8)) for _ in range(2)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:100])
    arguments = [argument.format(image=image, tmp=tmp_path) for argument in arguments]
    if "--store" not in arguments:
        arguments += ["--store", str(champion_study.store.root)]
    status, output, errors = command(*arguments)
    assert (status, rows_of(output)) == (2, [])
    assert errors.startswith(f"error: {message.format(tmp=tmp_path, store=champion_study.store.root)}")
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
