"""The MLflow Model Registry: a registered model per study; its alias `champion` names the version of the winner."""

import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
from mlflow.entities import Experiment, LoggedModel, LoggedModelStatus
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec

from ablation.base.errors import InputError, StoreAway, StoreError
from ablation.base.files import temporary_folder
from ablation.base.retries import repeat_briefly
from ablation.base.text import first_line
from ablation.spec.tables import Resize
from ablation.storage.store import Store, find_store
from ablation.tracking import mlflow_settings
from ablation.tracking.client import (
    KEY_TAG,
    REFUSAL_TAG,
    PatientClient,
    find_experiment,
    link_model,
    reading_client,
)
from ablation.tracking.reading import artifact

ALIAS = "champion"
STUDY_TAG = "ablation.study"  # of a registered model: the key of its study
REASON_TAG = "ablation.chosen"  # of a version: why it became the champion
LONGEST_REFUSAL = 500  # characters; an error of torch may be pages long
MODEL_CODE = Path(__file__).with_name("champion_model.py")  # MLflow runs a copy of it where the model is loaded
PROGRAM_FILE = "program.pt2"  # a zip archive
MODEL_NAME = "champion-candidate"  # in MLflow's list of an experiment's models; the alias says which one it is now


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a study's registered model, the run whose network it is, and why."""

    name: str
    version: str
    run_id: str
    reason: str


@dataclass(frozen=True)
class Champion:
    """A study's champion, loaded.

    `probabilities` takes RGB images (uint8 N x S x S x 3, S = `image_size`) and returns those of the K classes (float32
    N x K); other images are an `InputError`. `resize` says how images that are not square got that size in training:
    the study's `data.resize`.
    """

    registered: RegisteredVersion
    arm: str
    classes: list[str]
    image_size: int
    resize: Resize
    probabilities: Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Program:
    """A trained network that needs torch alone to run, and what its MLflow model says of it."""

    path: Path
    """A file of `torch.export`: RGB images (uint8 N x S x S x 3, any N) to class probabilities (N x K)."""
    images_NSSC: np.ndarray
    """An example of its input."""
    classes: list[str]
    """The names of the K classes."""
    about: dict[str, Any]
    """Metadata of the model; its `run_id` is the run that it comes from."""


def save_model(folder: Path, program: Program, model_id: str) -> None:
    """Write an MLflow model that loads where MLflow and torch are, but this package is not.

    Args:
        folder: where to write; must not exist.
        program: the network.
        model_id: the logged model that the folder will be uploaded to.
    """
    images_NSSC, about = program.images_NSSC, program.about
    outputs = Schema([ColSpec("float", name) for name in program.classes])
    inputs = Schema([TensorSpec(np.dtype(np.uint8), (-1, *images_NSSC.shape[1:]))])
    # Otherwise MLflow would load the model in another process to find the requirements, which takes ten seconds. A
    # build's own suffix, such as +cpu, is left out: package indexes do not have it.
    requirements = [
        f"{name}=={metadata.version(name).partition('+')[0]}" for name in ("mlflow", "torch", "numpy", "pandas")
    ]
    # MLflow's copy would have the permissions of this installation's file, not those of any new file.
    code = shutil.copyfile(MODEL_CODE, program.path.with_name(MODEL_CODE.name))
    mlflow.pyfunc.save_model(
        path=str(folder),
        python_model=str(code),
        artifacts={"program": str(program.path)},
        model_config={"classes": list(program.classes)},
        signature=ModelSignature(inputs=inputs, outputs=outputs),
        input_example=images_NSSC,
        pip_requirements=requirements,
        # Otherwise a uv.lock in the working folder would be packed with the model.
        uv_project_path=str(program.path.parent),
        metadata={**about, "classes": program.classes, "image_size": images_NSSC.shape[1]},
        mlflow_model=Model(run_id=about["run_id"], model_uuid=model_id, model_id=model_id),
    )
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache)


@dataclass(frozen=True)
class Candidate:
    """A run whose model is to be the champion of its study."""

    study: str
    """The study's name, which becomes the registered model's."""
    experiment_id: str
    run_id: str
    question: str
    """The study's, which becomes the description of a new registered model."""
    description: str
    """Of the version, in Markdown."""
    reason: str
    """Why it was chosen."""
    study_key: str
    """The key of the study's summary run: another Optuna database may have a study of the same name."""


def register_version(store: Store, candidate: Candidate, build: Callable[[Path], Program]) -> RegisteredVersion:
    """Register a run's model under its study's name, and set the alias `champion` to it.

    A call completes what an earlier one began, so that a run has one model and one version however often this is called
    and wherever a process dies. One process of a study at a time may call it.

    Args:
        store: where the study is.
        candidate: the run, and the texts that the registry shows.
        build: writes the run's network into a folder. It is called before MLflow is, which has nothing of a model that
            cannot be built.

    Raises:
        InputError: a registered model of that name belongs to something else, or `build` cannot make the model.
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    study = candidate.study
    try:
        client = reading_client(store)
    except InputError as error:  # it was open a moment ago
        raise StoreError(str(error)) from None
    is_known = _owns_model(client, candidate)
    version = _find_version(client, candidate)
    if version is None:
        model = _log_model(client, candidate, build)
        if not is_known:
            _create_model(client, candidate)
        version = repeat_briefly(lambda: _find_version(client, candidate) or _create_version(client, candidate, model))
    elif version.description != candidate.description:  # more seeds have changed the arm's mean
        client.update_model_version(study, version.version, candidate.description)
    if version.tags.get(REASON_TAG) != candidate.reason:
        client.set_model_version_tag(study, str(version.version), REASON_TAG, candidate.reason)
    number = str(version.version)  # a server says '1', a database 1
    if str(client.get_registered_model(study).aliases.get(ALIAS)) != number:
        client.set_registered_model_alias(study, ALIAS, number)
    return RegisteredVersion(study, number, candidate.run_id, candidate.reason)


def _find_version(client: PatientClient, candidate: Candidate) -> ModelVersion | None:
    """Return the first version of the candidate's model.

    Later ones are deleted: a server may have carried out a call after it was given up.
    """
    query = f"name = '{candidate.study}' and run_id = '{candidate.run_id}'"
    versions: list[ModelVersion] = sorted(client.search_model_versions(query), key=lambda found: int(found.version))
    for double in versions[1:]:
        if double.source == versions[0].source:
            client.delete_model_version(candidate.study, str(double.version))
    return versions[0] if versions else None


def _create_version(client: PatientClient, candidate: Candidate, model: LoggedModel) -> ModelVersion:
    # By the address of its files: MLflow resolves models:/<id> at an address that is global to the process.
    version: ModelVersion = client.create_model_version(
        candidate.study, model.artifact_location, candidate.run_id, description=candidate.description,
        tags={REASON_TAG: candidate.reason}, model_id=model.model_id,
    )  # fmt: skip
    return version


def _registered_model(client: PatientClient, study: str) -> RegisteredModel | None:
    found = client.search_registered_models(f"name = '{study}'")
    return next((model for model in found if model.name == study), None)  # some databases do not mind the case


def _owns_model(client: PatientClient, candidate: Candidate) -> bool:
    """Return whether the study has its registered model.

    Raises:
        InputError: a registered model of that name is not the study's.
    """
    study, key = candidate.study, client.get_experiment(candidate.experiment_id).tags[KEY_TAG]
    model = _registered_model(client, study)
    if model is None:
        return False
    if model.tags.get(KEY_TAG) != key:
        whose = "not this study's"
    elif model.tags.get(STUDY_TAG) != candidate.study_key:
        whose = "the champion of a study of the same name in another Optuna database"
    else:
        return True
    raise InputError(
        f"the MLflow Model Registry has a model {study!r} that is {whose}, and it is left alone; rename or delete it, "
        "then run the same command again"
    )


def _create_model(client: PatientClient, candidate: Candidate) -> None:
    """Create the registered model.

    Raises:
        InputError: somebody else has made one of that name meanwhile.
    """
    key = client.get_experiment(candidate.experiment_id).tags[KEY_TAG]
    tags = {KEY_TAG: key, STUDY_TAG: candidate.study_key}
    try:
        repeat_briefly(
            lambda: client.create_registered_model(candidate.study, tags=tags, description=candidate.question)
        )
    except StoreError as error:
        if error.code != "RESOURCE_ALREADY_EXISTS" or not _owns_model(client, candidate):
            raise


def _log_model(client: PatientClient, candidate: Candidate, build: Callable[[Path], Program]) -> LoggedModel:
    """Return the run's logged model; an upload that did not end is repeated.

    Raises:
        InputError: `build` cannot make the model; nothing is created then.
    """
    run_id = candidate.run_id
    query = f"source_run_id = '{run_id}' and name = '{MODEL_NAME}'"

    def find() -> LoggedModel | None:
        models: list[LoggedModel] = client.search_logged_models([candidate.experiment_id], query)
        # One that is ready, else the first: a server may have carried out a call after it was given up.
        models = sorted(models, key=lambda model: (model.status != LoggedModelStatus.READY, model.creation_timestamp))
        for double in models[1:]:
            client.delete_logged_model(double.model_id)
        return models[0] if models else None

    def find_or_create() -> LoggedModel:
        return find() or client.create_logged_model(candidate.experiment_id, MODEL_NAME, run_id)

    model = find()
    if model is None or model.status != LoggedModelStatus.READY:
        with temporary_folder() as folder:
            program = build(folder)
            model = repeat_briefly(find_or_create)
            save_model(folder / "model", program, model.model_id)
            client.log_model_artifacts(model.model_id, str(folder / "model"))
        link_model(client, run_id, model.model_id)
        model = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return model


def keep_refusal(store: Store, run_id: str, reason: str) -> None:
    """Keep in a study's summary run why its best run is not registered as champion; '' forgets what is kept.

    Raises:
        InputError: the store cannot be opened.
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    client = reading_client(store)
    if reason:
        client.set_tag(run_id, REFUSAL_TAG, reason[:LONGEST_REFUSAL])
    else:
        client.delete_tag(run_id, REFUSAL_TAG)


def _refusal(client: PatientClient, experiment_id: str, model: RegisteredModel | None) -> str:
    """Return why a study's best run is not registered as champion, as `keep_refusal` has kept it; else ''.

    Of several studies of one name, it is of the one that the registered model is of, else of that begun last.
    """
    query = "tags.kind = 'summary'"
    if model is not None and STUDY_TAG in model.tags:
        query += f" and tags.`{KEY_TAG}` = '{model.tags[STUDY_TAG]}'"
    runs = client.search_runs([experiment_id], query)  # those that began last come first
    return str(runs[0].data.tags.get(REFUSAL_TAG, "")) if runs else ""


def _find_champion(
    client: PatientClient, study: str, experiment: Experiment, model: RegisteredModel | None
) -> ModelVersion:
    """Return the version that a study's alias `champion` names, as MLflow has it.

    Raises:
        InputError: it has no champion.
    """
    number = None if model is None else model.aliases.get(ALIAS)
    if number is None:
        why = _refusal(client, experiment.experiment_id, model) or (
            "it gets one when its command ends, after all confirmation runs (of which confirm.seeds = 0 has none)"
            if model is None
            else f"its registered model has no version with the alias {ALIAS!r}"
        )
        raise InputError(f"study {study!r} has no champion: {why}")
    version: ModelVersion = client.get_model_version(study, str(number))
    return version


def _own_model(client: PatientClient, study: str, experiment: Experiment) -> RegisteredModel | None:
    model = _registered_model(client, study)
    return model if model is not None and model.tags.get(KEY_TAG) == experiment.tags[KEY_TAG] else None


def champion_texts(store: Store, study: str, *, is_complete: bool = True) -> list[str]:
    """Return which run is a study's champion, and why; of a complete study also why the best run is not.

    Nothing where nobody can say.
    """
    texts = []
    try:
        client = reading_client(store)
        experiment = find_experiment(client, store, study)
        model = _own_model(client, study, experiment)
        refusal = _refusal(client, experiment.experiment_id, model)
        texts = [f"The best run is not registered as the champion: {refusal}."] if refusal and is_complete else []
        version = _find_champion(client, study, experiment, model)
        run = client.get_run(version.run_id)
    except (InputError, StoreAway, StoreError):
        return texts
    reason = version.tags.get(REASON_TAG, "chosen by validation")
    earlier = " Its configuration is no longer its arm's best." if "superseded" in run.data.tags else ""
    return [f"The champion is {run.info.run_name} (version {version.version}): {reason}.{earlier}", *texts]


@mlflow_settings()
def load_champion(study: str, *, store: str | os.PathLike[str] | None = None) -> Champion:
    """Load a study's champion; this runs code of the store, as `mlflow.pyfunc.load_model` does.

    A store that was copied or moved is read where it is. MLflow's own `models:/NAME@champion` cannot do that: it goes
    to the address at which the store was when the model was registered.

    Args:
        study: its name.
        store: its folder; as for `--store`, the environment's addresses or `mlruns` by default.

    Returns:
        The champion, on the CPU: its arm, its classes, and a function from images to class probabilities.

    Raises:
        InputError: there is no such study or champion, or its files are gone.
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used, or the champion's files are damaged.
    """
    place = find_store(store)
    client = reading_client(place)
    experiment = find_experiment(client, place, study)
    version = _find_champion(client, study, experiment, _own_model(client, study, experiment))
    address = client.get_model_version_download_uri(study, str(version.version))
    files = f"the files of the champion of {study!r}"
    with artifact(place, address, "", levels=4, what=files) as folder:
        if folder is None:
            raise InputError(f"{files} are gone: MLflow has the address {address}")
        try:
            _check_program(folder)
            model = mlflow.pyfunc.load_model(str(folder), suppress_warnings=True)
        except Exception as error:  # whatever its code and torch raise for damaged files
            raise StoreError(f"the champion of {study!r} cannot be loaded ({first_line(error)})") from None
    about = model.metadata.metadata
    reason = version.tags.get(REASON_TAG, "")
    registered = RegisteredVersion(study, str(version.version), str(version.run_id), reason)
    size = int(about["image_size"])

    @mlflow_settings()
    def probabilities(images_NSSC: np.ndarray) -> np.ndarray:
        _check_images(images_NSSC, size)
        probabilities_NK: np.ndarray = model.predict(images_NSSC).to_numpy()
        return probabilities_NK

    return Champion(registered, about["arm"], list(about["classes"]), size, about["resize"], probabilities)


def _check_program(model: Path) -> None:
    """Raise an error if a model's program is damaged: torch loads one without a look at the checksums in it."""
    path = model / "artifacts" / PROGRAM_FILE
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"{PROGRAM_FILE} is damaged: the checksum of its {damaged} is wrong")


def _check_images(images_NSSC: Any, size: int) -> None:
    """Refuse what the champion does not take; MLflow's own message would repeat the images."""
    expected = f"probabilities: takes a NumPy array of RGB images, uint8 N x {size} x {size} x 3"
    if not isinstance(images_NSSC, np.ndarray):
        raise InputError(f"{expected}, not {type(images_NSSC).__name__}")
    if images_NSSC.dtype != np.uint8 or images_NSSC.ndim != 4 or images_NSSC.shape[1:] != (size, size, 3):
        shape = " x ".join(map(str, images_NSSC.shape))
        raise InputError(f"{expected}, not {images_NSSC.dtype} {shape}")
