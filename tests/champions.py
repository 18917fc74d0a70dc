"""A finished study with its champion, for the tests of all that can be done with one."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from ablation.analysis.champion import choose_champion
from ablation.analysis.results import StudyResult, read_results
from ablation.data.image_set import ImageSet
from ablation.data.reading import load_images
from ablation.running.champion import register_champion
from ablation.storage.store import Store, find_store
from ablation.tracking.confirmed_models import MODEL_TYPE
from ablation.tracking.registry import RegisteredVersion
from tests.studies import copy_store

FLOAT16_ROUNDING = 2**-12 + 1e-6  # half a step between 0.5 and 1, where it is largest, and float32's own error


@dataclass(frozen=True)
class ChampionStudy:
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
        """Return the logged models of champions; each confirmation run has another, without files."""
        models = self.client.search_logged_models([self.result.experiment_id])
        return [model for model in models if model.model_type != MODEL_TYPE]

    def register(self, result: StudyResult | None = None) -> RegisteredVersion | None:
        """Register the champion of the study, or of what its results might have been."""
        result = result or self.result
        return register_champion(self.store, result, self.images, choose_champion(result))

    def forget(self) -> None:
        """Delete all registered and logged models, as if the study had never ended."""
        with contextlib.suppress(Exception):
            self.client.delete_registered_model("small")
        for model in self.models():
            self.client.delete_logged_model(model.model_id)


@pytest.fixture(scope="session")
def champion_study_once(tmp_path_factory: pytest.TempPathFactory, finished_study: Path) -> ChampionStudy:
    """A study with confirmation, run by the real command."""
    store = find_store(str(copy_store(finished_study / "store", tmp_path_factory.mktemp("champion") / "store")))
    result = read_results(store, "small")
    return ChampionStudy(store, result, load_images(result.spec.data))


@pytest.fixture
def champion_study(champion_study_once: ChampionStudy) -> Iterator[ChampionStudy]:
    """The same; a test may do to its registry what it likes."""
    yield champion_study_once
    expected = winning_run(champion_study_once.result)
    if champion_study_once.versions() != {expected: "1"} or champion_study_once.champion().run_id != expected:
        champion_study_once.forget()
        assert champion_study_once.register() is not None


def winning_run(result: StudyResult) -> str:
    """Return the run that should be the champion, computed from the plain metrics."""
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


def model_folder(champion_study: ChampionStudy, store: Store) -> Path:
    """Return where the champion's files are in the store, or in a copy of it."""
    return store.artifacts("small") / "models" / Path(champion_study.champion().source).parts[-2] / "artifacts"


def predictions_file(champion_study: ChampionStudy, run_id: str) -> Path:
    return champion_study.store.artifacts("small") / run_id / "artifacts" / "test" / "predictions.safetensors"
