"""A study's results in MLflow, as plain values: the report and the champion need nothing else.

Legend: S confirmation runs (seeds), N test images, K classes.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ablation.analysis.cut_forecasts import CutForecast, forecast_from_json
from ablation.analysis.predictions import Predictions, load_predictions
from ablation.analysis.runs import CHANGES, CURVES, RunResult, State, best_run
from ablation.base.errors import InputError
from ablation.data.samples import Samples, load_samples
from ablation.data.set_summary import SetSummary, load_summary
from ablation.search.studies import own_arm_keys
from ablation.spec.architectures import add_custom_architecture
from ablation.spec.arms import Arm, arms, published_for
from ablation.spec.looks import Decision, current_look, most_seeds_of_arms, seeds_of_arms
from ablation.spec.study import StudySpec
from ablation.spec.trial import TrialSpec
from ablation.storage.store import Store
from ablation.tracking.client import DATA_FILE, FORECAST_FILE, PREDICTIONS_FILE, SAMPLES_FILE, folder_to_name
from ablation.tracking.looks import decisions_in, looks_of
from ablation.tracking.reading import (
    HiddenFile,
    LeftOut,
    RunRecord,
    StudyRecord,
    read_curves,
    read_study,
    run_file,
    run_words,
)
from ablation.tracking.registration import Registration, read_registration

T = TypeVar("T")

RUN_LISTS = ("trials", "confirmations", "superseded", "deleted", "held_back")  # of an arm


class NothingFinished(InputError):
    """No trial of a study has finished, so there is nothing to read."""


@dataclass(frozen=True)
class ArmResult:
    """An arm's runs: the trials that tuned it, and the runs that confirm its best configuration.

    `superseded` confirmed a configuration that was the best while the budget was smaller. `published` are results of
    others, as in the study file.
    """

    arm: Arm
    trials: list[RunResult]
    confirmations: list[RunResult]
    superseded: list[RunResult]
    published: list[dict[str, Any]] = field(default_factory=list)
    deleted: list[RunResult] = field(default_factory=list)
    """Runs of both kinds that somebody has deleted in MLflow. No figure uses them, but they do not run again, and what
    a deleted trial found best stays confirmed."""
    held_back: list[RunResult] = field(default_factory=list)
    """Confirmation runs of a planned look that is not complete: no figure uses them, so that nobody looks early."""

    @property
    def ended_trials(self) -> int:
        """The number of trials that have ended, deleted ones included."""
        return sum(run.state != "unfinished" for run in self.trials) + sum(
            not run.is_confirmation for run in self.deleted
        )

    @cached_property
    def all_trials(self) -> list[RunResult]:
        """Its trials in the study's order, deleted ones included."""
        deleted = [run for run in self.deleted if not run.is_confirmation]
        return sorted([*self.trials, *deleted], key=lambda run: run.number)

    @cached_property
    def chosen(self) -> list[RunResult]:
        """The trials whose configurations are confirmed: the best of each repeat of the tuning, in their order."""
        repeats = sorted({run.repeat for run in self.all_trials})
        best = [best_run([run for run in self.all_trials if run.repeat == repeat]) for repeat in repeats]
        return [run for run in best if run is not None]

    @cached_property
    def best(self) -> RunResult | None:
        """The finished trial with the best validation value of all repeats, the first of equals; None without one."""
        return best_run(self.all_trials)

    @property
    def runs(self) -> list[RunResult]:
        """All of its runs but those that are deleted or held back."""
        return [*self.trials, *self.confirmations, *self.superseded]

    def of_repeat(self, repeat: int) -> "ArmResult":
        """Return the arm with the runs of one repeat of the tuning."""
        of_repeat: dict[str, Any] = {
            name: [run for run in getattr(self, name) if run.repeat == repeat] for name in RUN_LISTS
        }
        return replace(self, **of_repeat)

    def with_seeds(self, seeds: int) -> "ArmResult":
        """Return the arm with its first confirmation runs, by their number; the others are held back."""
        numbers = sorted(run.number for run in self._begun)[:seeds]
        return replace(
            self,
            confirmations=[run for run in self.confirmations if run.number in numbers],
            held_back=[run for run in self.confirmations if run.number not in numbers],
        )

    def has_ended(self, seeds: int) -> bool:
        """Return whether so many confirmation runs have ended, however they ended; an arm without any needs none."""
        return not self.chosen or sum(run.state != "unfinished" for run in self._begun) >= seeds

    @property
    def _begun(self) -> list[RunResult]:
        chosen = {run.number for run in self.chosen}
        return [*self.confirmations, *(run for run in self.deleted if run.spec.confirms in chosen)]

    @property
    def confirmed(self) -> list[RunResult]:
        """The confirmation runs that finished and still have their predictions."""
        return [run for run in self.confirmations if run.predictions is not None and run.test_accuracy is not None]

    @property
    def drawn_runs(self) -> list[RunResult]:
        """The runs whose learning curves the report draws: the finished confirmation runs, else the best trial."""
        finished = [run for run in self.confirmations if run.val_accuracy is not None]
        return finished or ([self.best] if self.best is not None else [])

    @property
    def test_accuracies_S(self) -> np.ndarray:
        """The test accuracies of the confirmed runs, float64."""
        return np.array([run.test_accuracy for run in self.confirmed], np.float64)

    @property
    def test_values_S(self) -> np.ndarray:
        """The objective on the test images of the confirmed runs, float64."""
        return np.array([run.test_value for run in self.confirmed], np.float64)

    @property
    def scores_SN(self) -> np.ndarray:
        """What each test image contributes to the objective of each confirmed run, see `image_scores`."""
        return np.array([run.predictions.scores_N(run.spec.goal) for run in self.confirmed if run.predictions])

    @property
    def test_groups_N(self) -> np.ndarray | None:
        """What each test image of the confirmed runs belongs to, see `Predictions`."""
        return next((run.predictions.groups_N for run in self.confirmed if run.predictions is not None), None)


@dataclass(frozen=True)
class StudyResult:
    """A study as it stands. `command` is the one that ran it last; image counts are of each split.

    `samples` are some of its training images, and `images` is what the report shows of the whole set; None where the
    store has none. `forecast` has a row for each cut; none where the study compares no cuts of a pretrained network, or
    nothing was foretold.
    """

    spec: StudySpec
    experiment_id: str
    summary_run_id: str
    command: str
    classes: list[str]
    data_digest: str
    weights_digest: str | None
    train_images: int
    val_images: int
    test_images: int
    arms: list[ArmResult]
    samples: Samples | None = None
    images: SetSummary | None = None
    forecast: list[CutForecast] = field(default_factory=list)
    data_reading: str = ""  # how an image folder was understood
    left_out: list[LeftOut] = field(default_factory=list)  # runs that the store has, but not as they were
    tags: Mapping[str, str] = field(default_factory=dict)  # of the summary run
    registration: Registration | None = None
    look: int | None = None
    """Number of the planned look, from 0, whose runs all figures are of; None without planned looks, before the first
    of them is complete, and of pooled studies."""
    store: str = ""
    """The folder that commands on the study must name with `--store`; '' where they need not."""
    studies: list["StudyResult"] = field(default_factory=list)
    """Those that are pooled, each as it stands; none of a single study."""

    @property
    def decisions(self) -> list[Decision]:
        """What the planned looks so far decided."""
        return decisions_in(self.spec.confirm, self.tags)

    @property
    def test_groups_N(self) -> np.ndarray | None:
        """What each test image belongs to, as numbers from 0, int64; None where images are independent."""
        return next((arm.test_groups_N for arm in self.arms if arm.confirmed), None)

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """Confirmed arm -> what each test image contributes to the objective of its runs: `ArmResult.scores_SN`."""
        return {arm.arm.name: arm.scores_SN for arm in self.arms if arm.confirmed}

    @property
    def independent_images(self) -> int:
        """How many test images, or groups of them, are independent."""
        return self.test_images if self.test_groups_N is None else int(self.test_groups_N.max()) + 1

    @property
    def missing_trials(self) -> int:
        """How many trials have yet to end before every arm has its budget."""
        return sum(max(0, self.spec.trials_per_arm - arm.ended_trials) for arm in self.arms)

    @property
    def missing_confirmations(self) -> int:
        """How many of the `planned_confirmations` have yet to end."""
        if self.studies:  # each by what its own looks decided
            return sum(study.missing_confirmations for study in self.studies)
        return sum(max(0, planned - ended) for planned, ended in self._confirmations)

    @property
    def planned_confirmations(self) -> int:
        """How many confirmation runs the arms' best configurations have or will have, at most.

        None has an arm, or a repeat of its tuning, whose trials have all ended without one that finished.
        """
        return sum(planned for planned, _ in self._confirmations)

    @property
    def _confirmations(self) -> Iterator[tuple[int, int]]:
        """The numbers of planned and of ended confirmation runs, for each repeat of an arm's tuning that has any."""
        seeds = most_seeds_of_arms(self.spec.confirm, [arm.arm.name for arm in self.arms], self.decisions)
        for arm in self.arms:
            chosen = {run.repeat: run.number for run in arm.chosen}
            runs = [run for run in (*arm.confirmations, *arm.held_back) if run.state != "unfinished"]
            for repeat in range(self.spec.confirm.repeats):
                if repeat in chosen or arm.ended_trials < self.spec.trials_per_arm:
                    ended = sum(run.repeat == repeat for run in runs)
                    ended += sum(run.spec.confirms == chosen.get(repeat, "none") for run in arm.deleted)
                    yield seeds[arm.arm.name], ended

    @property
    def left_out_texts(self) -> list[str]:
        """Which runs no figure uses although they have ended, and why, as sentences."""
        if self.studies:
            return [f"{study.spec.name}: {text}" for study in self.studies for text in study.left_out_texts]
        deleted = [f"{run.label} of {arm.arm.name}" for arm in self.arms for run in arm.deleted]
        texts = [f"Left out: {each.text}." for each in self.left_out]
        return texts + ([f"Left out, because deleted in MLflow: {', '.join(deleted)}."] if deleted else [])

    @property
    def test_evaluations(self) -> int:
        """How often the test split was evaluated, superseded and deleted runs included."""
        evaluated = [
            run for arm in self.arms for run in (*arm.confirmations, *arm.held_back, *arm.superseded, *arm.deleted)
        ]
        return sum(run.test_accuracy is not None for run in evaluated)


def read_results(store: Store, study: str, *, with_details: bool = True) -> StudyResult:
    """Read a study from its MLflow store.

    Args:
        store: where the study is.
        study: its name.
        with_details: whether to read what the report alone needs, with a request or a download each: learning curves,
            predictions, samples and the forecast.

    Raises:
        NothingFinished: no trial of the study has finished, as far as MLflow knows.
        InputError: there is no such study, or this version cannot read it.
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    record = read_study(store, study, own_arm_keys(store, study))
    about = record.about
    try:
        if about.get("own_backbone"):
            add_custom_architecture(about["spec"]["backbone"]["name"], **about["own_backbone"])
        spec = StudySpec.model_validate_json(json.dumps(about["spec"]))
    except (KeyError, ValueError):
        version = about.get("version", "another version")
        raise InputError(f"study {study!r} was made by ablation {version}, which this version cannot read") from None
    results = [_arm_result(spec, arm, record) for arm in arms(spec)]
    if not any(result.best for result in results):
        raise NothingFinished(f"study {study!r} has no finished trial yet")
    results, look = _at_look(spec, decisions_in(spec.confirm, record.summary.tags), results)
    study_result = StudyResult(
        spec=spec,
        experiment_id=record.experiment_id,
        summary_run_id=record.summary.run_id,
        command=about["command"],
        classes=about["classes"],
        data_digest=about["data_digest"],
        data_reading=about.get("data_reading", ""),
        weights_digest=about["weights_digest"],
        train_images=about["train_images"],
        val_images=about["val_images"],
        test_images=about["test_images"],
        arms=results,
        left_out=record.left_out,
        tags={**looks_of(record.earlier_summaries), **record.summary.tags},
        look=look,
        store=str(folder_to_name(store) or ""),
    )
    return _with_details(store, record, study_result) if with_details else study_result


def _at_look(
    spec: StudySpec, decisions: Sequence[Decision], results: list[ArmResult]
) -> tuple[list[ArmResult], int | None]:
    """Return the arms with the runs of the last planned look that is complete, and its number; see `StudyResult`."""
    if not spec.confirm.looks:
        return results, None
    seeds = seeds_of_arms(spec.confirm, [arm.arm.name for arm in results], decisions)
    number = spec.confirm.looks.index(current_look(spec.confirm, decisions))
    is_tuned = all(arm.ended_trials >= spec.trials_per_arm for arm in results)
    if not is_tuned or not all(arm.has_ended(seeds[arm.arm.name]) for arm in results):
        number -= 1
        seeds = {arm: min(count, spec.confirm.looks[number]) if number >= 0 else 0 for arm, count in seeds.items()}
    return [arm.with_seeds(seeds[arm.arm.name]) for arm in results], number if number >= 0 else None


def _arm_result(spec: StudySpec, arm: Arm, record: StudyRecord) -> ArmResult:
    records = [run for run in record.runs if run.tags["arm"] == arm.name]
    trials, confirmations = (
        sorted((_run_result(run) for run in records if run.is_confirmation == kind), key=lambda run: run.number)
        for kind in (False, True)
    )
    deleted = [_run_result(run) for run in record.deleted if run.params["arm"] == arm.name]
    result = ArmResult(arm, trials, [], [], published_for(spec, arm), deleted)
    chosen = {run.number for run in result.chosen}
    # A trial whose run, or the end of it, is lost was its arm's best unless its confirmation runs say otherwise.
    marked = {run.run_id for run in records if "superseded" in run.tags}
    confirmed = {run.spec.confirms for run in confirmations if run.run_id not in marked}
    lost = confirmed - {run.number for run in result.all_trials if run.state != "unfinished"}
    current = [run for run in confirmations if run.spec.confirms in chosen | lost]
    superseded = [run for run in confirmations if run not in current]
    return replace(result, confirmations=current, superseded=superseded)


STATES: dict[str, State] = {"FINISHED": "finished", "KILLED": "pruned", "FAILED": "failed"}


def _run_result(run: RunRecord) -> RunResult:
    state = STATES.get(run.status, "unfinished")

    def metric(name: str) -> float | None:
        return run.metrics.get(name) if state == "finished" else None

    def count(name: str) -> int | None:
        value = metric(name)
        return None if value is None else int(value)

    return RunResult(
        run_id=run.run_id,
        number=int(run.params["trial"]),
        state=state,
        reason=run.tags.get("reason", ""),
        spec=TrialSpec.from_params(run.params),
        device=run.tags.get("device", ""),
        environment=json.loads(run.tags.get("environment", "{}")),
        curves={},
        val_accuracy=metric("best_val_accuracy"),
        best_epoch=count("best_epoch"),
        trained_parameters=count("trained_parameters"),
        training_seconds=metric("training_seconds"),
        test_accuracy=metric("test_accuracy"),
        test_loss=metric("test_loss"),
        test_balanced_accuracy=metric("test_balanced_accuracy"),
        test_macro_f1=metric("test_macro_f1"),
        val_loss=metric("best_val_loss"),
        val_balanced_accuracy=metric("best_val_balanced_accuracy"),
        val_macro_f1=metric("best_val_macro_f1"),
        inference_operations=metric("inference_operations"),
        inference_seconds=metric("inference_seconds"),
        changes={name: _of_blocks(run, name) for name in CHANGES},
    )


def _of_blocks(run: RunRecord, metric: str) -> dict[str, float]:
    """Return the last value of a metric of each block, by the name of the block."""
    return {
        name.removeprefix(f"{metric}/"): value for name, value in run.metrics.items() if name.startswith(f"{metric}/")
    }


def _with_details(store: Store, record: StudyRecord, study: StudyResult) -> StudyResult:
    """Return a study with what only its report needs.

    That is the registration, the summary run's files, the learning curves that are drawn, and the predictions of
    confirmation runs; runs whose predictions cannot be read are left out.
    """
    records = {run.run_id: run for run in [*record.runs, *record.deleted]}
    drawn, left_out = [run for arm in study.arms for run in arm.drawn_runs], list(study.left_out)
    names = dict.fromkeys([*CURVES, *(run.spec.goal.val_metric for run in drawn)])
    curves = read_curves(store, [run.run_id for run in drawn], list(names))

    def detailed(run: RunResult) -> RunResult:
        return replace(
            run,
            curves={name: np.array(values) for name, values in curves.get(run.run_id, {}).items()},
            predictions=None if run.test_accuracy is None else _predictions(store, records[run.run_id], left_out),
        )

    arms = [
        replace(
            arm,
            trials=[detailed(run) for run in arm.trials],
            confirmations=[detailed(run) for run in arm.confirmations],
            deleted=[run if run.is_confirmation else detailed(run) for run in arm.deleted],
        )
        for arm in study.arms
    ]
    return replace(
        study,
        arms=arms,
        left_out=left_out,
        registration=read_registration(store, record.summary),
        samples=_optional(store, record.summary, SAMPLES_FILE, load_samples),
        images=_optional(store, record.summary, DATA_FILE, load_summary),
        forecast=_optional(store, record.summary, FORECAST_FILE, _forecast) or [],
    )


def _predictions(store: Store, run: RunRecord, left_out: list[LeftOut]) -> Predictions | None:
    """Return a run's predictions; None where they are lost or damaged, which is added to `left_out`."""
    try:
        with run_file(store, run, PREDICTIONS_FILE) as path:
            predictions = load_predictions(path)
        if run.params.get("objective") == "loss" and predictions.losses_N is None:
            raise InputError(f"{PREDICTIONS_FILE} is damaged (it has no losses)")
        return predictions
    except InputError as error:
        left_out.append(LeftOut(f"{run_words(run)}: {error}", not isinstance(error, HiddenFile)))
        return None


def _optional(store: Store, summary: RunRecord, file: str, load: Callable[[Path], T]) -> T | None:
    """Return what a file of the summary run holds; None where it is lost or damaged."""
    try:
        with run_file(store, summary, file) as path:
            return load(path)
    except (InputError, ValueError):
        return None


def _forecast(path: Path) -> list[CutForecast]:
    return forecast_from_json(path.read_text(encoding="utf-8"))
