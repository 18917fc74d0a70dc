"""A study's runs, read back from MLflow."""

import hashlib
import json
import stat
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlflow.entities import Run, ViewType
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from ablation.base.errors import InputError, StoreAway, StoreError
from ablation.base.files import temporary_folder, write_atomically
from ablation.storage.store import Store
from ablation.tracking.client import (
    ABOUT_FILE,
    KEY_TAG,
    NOTE_TAG,
    REPORT_FOLDER,
    PatientClient,
    find_experiment,
    reading_client,
    search_all_runs,
)
from ablation.tracking.run_names import SEED_TAG

WORKER_TAG = "worker"  # JSON: the process that trains the run, see `describe_process`
CHECKSUM_TAG = "ablation.sha256"  # with a file's name behind it: the SHA-256 of that file of the run


class HiddenFile(InputError):
    """A file of a run or a model is there, but this user may not read it."""


@dataclass(frozen=True)
class RunRecord:
    """A run as MLflow has it; `metrics` holds the last value of each, and the parameter `seed` is that of training.

    `began` and `ended` are in milliseconds since 1970; None where that is not known. `is_deleted`: whether somebody has
    deleted it in MLflow, which still has it.
    """

    run_id: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    artifact_uri: str
    began: int | None = None
    ended: int | None = None
    is_deleted: bool = False

    @property
    def key(self) -> str:
        """The key of its trial; "" without one."""
        return self.tags.get(KEY_TAG, "")

    @property
    def is_confirmation(self) -> bool:
        """Whether it is a confirmation run, by its parameters, which nobody can edit."""
        return self.params.get("confirms", "null") != "null"

    @property
    def is_complete(self) -> bool:
        """Whether it has ended, and has all metrics of its end, or the reason why it has none."""
        if self.status == "FINISHED":
            objective = self.params.get("objective", "accuracy")
            needed = [f"best_val_{objective}", *(["test_accuracy"] if self.is_confirmation else [])]
            return all(name in self.metrics for name in needed)
        return self.status in ("KILLED", "FAILED") and "reason" in self.tags


@dataclass(frozen=True)
class LeftOut:
    """Runs of a study that no figure uses: which, and why; `is_mendable` where `--repair` mends that."""

    text: str
    is_mendable: bool


@dataclass(frozen=True)
class StudyRecord:
    """A study's experiment: its summary run, that run's description of it (see `SummaryRun.begin`), other runs.

    `deleted` are runs that somebody has deleted in MLflow; `earlier_summaries` are other summary runs of the study,
    also deleted ones.
    """

    experiment_id: str
    summary: RunRecord
    about: dict[str, Any]
    runs: list[RunRecord]
    deleted: list[RunRecord] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    earlier_summaries: list[RunRecord] = field(default_factory=list)


def _run_record(run: Run) -> RunRecord:
    data, info = run.data, run.info
    params = {**data.params, **({"seed": data.tags[SEED_TAG]} if SEED_TAG in data.tags else {})}
    is_deleted = info.lifecycle_stage == "deleted"
    return RunRecord(
        info.run_id, info.status, data.tags, params, data.metrics, info.artifact_uri, info.start_time, info.end_time,
        is_deleted,
    )  # fmt: skip


def read_runs(client: PatientClient, experiment_id: str) -> list[RunRecord]:
    """Return all runs of an experiment, also those that somebody has deleted in MLflow.

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    return [_run_record(run) for run in search_all_runs(client, experiment_id, "", ViewType.ALL)]


def unreported_texts(store: Store, study: str) -> list[str]:
    """Return that a study whose runs have all ended lacks its report, as a sentence; none where nobody can say."""
    try:
        client = reading_client(store)
        experiment = find_experiment(client, store, study)
        summaries = list(search_all_runs(client, experiment.experiment_id, "tags.kind = 'summary'"))
    except (InputError, StoreAway, StoreError):
        return []
    if all(run.info.status not in ("RUNNING", "SCHEDULED") for run in summaries):
        return []
    return [
        "All runs have ended, but not the study: unless a process is writing its report, run the study's command once "
        "more for its report and its champion."
    ]


@dataclass(frozen=True)
class OpenRun:
    """A run that has not ended: its worker as `describe_process` has it, and times in milliseconds since 1970."""

    worker: dict[str, str]
    began: int | None
    last_epoch: int | None
    """When its last epoch ended; None before."""


def read_open_runs(store: Store, study: str) -> dict[str, OpenRun]:
    """Return the runs of a study that have not ended, by the key of their trial.

    Raises:
        InputError: there is no such study in MLflow.
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    client = reading_client(store)
    experiment = find_experiment(client, store, study)
    found = {}
    for run in search_all_runs(client, experiment.experiment_id, "attributes.status = 'RUNNING'", ViewType.ACTIVE_ONLY):
        epochs = client.get_metric_history(run.info.run_id, "train_loss")
        last_epoch = max(epochs, key=lambda point: point.step).timestamp if epochs else None  # clocks may be set back
        found[run.data.tags.get(KEY_TAG, "")] = OpenRun(_worker(run), run.info.start_time, last_epoch)
    return found


def _worker(run: Run) -> dict[str, str]:
    try:
        worker = json.loads(run.data.tags.get(WORKER_TAG, "{}"))
    except ValueError:  # somebody has edited it
        return {}
    return worker if isinstance(worker, dict) else {}


def edited_tags(run: RunRecord) -> dict[str, str]:
    """Return the tags of a trial's run that somebody has edited or deleted, with what they should be.

    The parameters of a run, which nobody can edit, say what it is. An `environment` that cannot be read becomes '{}'.
    """
    kind = "confirmation" if run.is_confirmation else "trial"
    expected = {"arm": run.params["arm"], "trial": run.params["trial"], "kind": kind}
    edited = {name: value for name, value in expected.items() if run.tags.get(name) != value}
    try:
        is_readable = isinstance(json.loads(run.tags.get("environment", "{}")), dict)
    except ValueError:
        is_readable = False
    return edited if is_readable else {**edited, "environment": "{}"}


def run_words(run: RunRecord) -> str:
    """Return how people call a trial's run, such as "trial #3 of block1"."""
    kind = "confirmation run" if run.is_confirmation else "trial"
    return f"{kind} #{run.params['trial']} of {run.params['arm']}"


def read_run(store: Store, run_id: str) -> RunRecord:
    """Return a run of the store.

    Raises:
        InputError: there is no such run.
        StoreAway: the tracking server does not answer.
    """
    client = reading_client(store)
    try:
        return _run_record(client.get_run(run_id))
    except StoreError:
        raise InputError(f"{store.root}: has no MLflow run {run_id!r}") from None


def read_study(store: Store, study: str, arm_keys: Collection[str] = ()) -> StudyRecord:
    """Return a study's runs.

    Args:
        store: where the study is.
        study: its name.
        arm_keys: the keys of its arms; without any, the study of that name whose summary run started last.

    Raises:
        InputError: the store cannot be opened, or has no such study.
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    client = reading_client(store)
    experiment = find_experiment(client, store, study)
    runs = read_runs(client, experiment.experiment_id)
    # A run that somebody else has tagged as a summary has no key.
    summaries = [run for run in runs if run.tags.get("kind") == "summary" and run.key and not run.is_deleted]
    own = [run for run in summaries if not arm_keys or run.key.rpartition("/")[0] in arm_keys]
    summary, about = _described(store, study, own)
    # An experiment may hold the runs of another Optuna database, and a run that was made a moment ago.
    records = runs_of_arms(runs, {*about.get("arm_keys", []), *arm_keys})
    active = [run for run in records if not run.is_deleted]
    _check_keys(study, active)
    active_keys = {run.key for run in active}
    deleted = {run.key: run for run in records if run.key not in active_keys}  # else it was a double
    edited = {run.run_id: edited_tags(run) for run in active}
    left_out = [
        LeftOut(f"{run_words(run)} (MLflow run {run.run_id}): its tag {name!r} was edited or deleted", is_mendable=True)
        for run in active for name in edited[run.run_id]
    ]  # fmt: skip
    namesakes = len({run.key for run in own})
    if namesakes > 1 and not arm_keys:  # an earlier draft of the study may have left a summary, too
        text = f"{namesakes} studies are called {study!r} here; this is the one that was begun last"
        left_out.append(LeftOut(text, is_mendable=False))
    readable = [run for run in active if not edited[run.run_id]]
    earlier = [run for run in runs if run.key == summary.key and run.run_id != summary.run_id]
    return StudyRecord(experiment.experiment_id, summary, about, readable, list(deleted.values()), left_out, earlier)


def runs_of_arms(runs: Iterable[RunRecord], arm_keys: Collection[str]) -> list[RunRecord]:
    """Return the runs of the trials of some arms, by the keys of the arms.

    Those are left out whose start is not complete, or whose key somebody has edited: a trial's ends with its number.
    """
    return [
        run
        for run in runs
        if (key := run.key.rpartition("/"))[0] in arm_keys and "study" in run.params and key[2] == run.params["trial"]
    ]


def _described(store: Store, study: str, summaries: Sequence[RunRecord]) -> tuple[RunRecord, dict[str, Any]]:
    """Return the summary run that was begun last, of those whose description of the study can be read; and that.

    Raises:
        InputError: there is none that can be read.
    """
    if not summaries:
        raise InputError(f"study {study!r} has no summary run: run the study once more, then it can be read")
    for run in sorted(summaries, key=lambda run: run.began or 0, reverse=True):
        try:
            with run_file(store, run, ABOUT_FILE) as path:
                about = json.loads(path.read_text(encoding="utf-8"))
        except HiddenFile:
            raise
        except (InputError, ValueError):
            continue
        if isinstance(about, dict):
            return run, about
    raise InputError(f"study {study!r}: its summary run has no readable {ABOUT_FILE}: run it once more")


def _check_keys(study: str, records: Iterable[RunRecord]) -> None:
    """Refuse results in which a trial has two runs.

    Raises:
        StoreError: names the trial.
    """
    counts = Counter(record.key for record in records)
    for record in records:
        if counts[record.key] > 1:
            raise StoreError(
                f"study {study!r}: {run_words(record)} has {counts[record.key]} MLflow runs; run the study once more, "
                "which deletes the doubles"
            )


def read_curves(store: Store, run_ids: Iterable[str], metrics: Iterable[str]) -> dict[str, dict[str, list[float]]]:
    """Return the histories of metrics, a value per step: run id -> metric -> values. Each is a request of its own.

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    client = reading_client(store)

    def values(run_id: str, metric: str) -> list[float]:
        history = client.get_metric_history(run_id, metric)
        return [point.value for point in sorted(history, key=lambda point: point.step)]

    metrics = tuple(metrics)
    return {run_id: {metric: values(run_id, metric) for metric in metrics} for run_id in run_ids}


def artifact_path(store: Store, run: RunRecord, name: str) -> Path:
    """Return the path of a run's artifact in a store with its own database, which may have been moved or copied."""
    return artifact_folder(store, run.artifact_uri, levels=3) / name


def artifact_folder(store: Store, address: str, levels: int) -> Path:
    """Return the folder of artifacts in a store with a database of its own, which may have been moved or copied.

    Args:
        store: where they are now.
        address: the absolute address that MLflow stored.
        levels: how many names at its end are below the store's folder of artifacts: 3 for a run
            (<study>/<run>/artifacts), 4 for a logged model (<study>/models/<model>/artifacts).
    """
    assert store.has_own_tracking
    study, *folders = address.rstrip("/").split("/")[-levels:]
    return store.artifacts(study).joinpath(*folders)


@contextmanager
def run_file(store: Store, run: RunRecord, name: str) -> Iterator[Path]:
    """Yield the path of a run's artifact, a file or a folder; it is downloaded unless the store has its own database.

    Raises:
        InputError: the run has no such artifact, or it is not the file that was logged.
        HiddenFile: this user may not read it.
        StoreAway: the tracking server does not answer.
    """
    with artifact(store, run.artifact_uri, name, levels=3, what=f"run {run.run_id}: its {name}") as file:
        yield _intact(run, name, file)


@contextmanager
def artifact(store: Store, address: str, name: str, levels: int, what: str) -> Iterator[Path | None]:
    """Yield the path of an artifact, None if there is none; it is downloaded unless the store has its own database.

    Args:
        store: where it is.
        address: of the artifacts of its run or logged model, as MLflow stored it.
        name: the artifact's; "" is all that the address has.
        levels: see `artifact_folder`.
        what: what a person calls it.

    Raises:
        HiddenFile: this user may not read it.
        StoreAway: the tracking server does not answer.
    """
    if not store.has_own_tracking:
        with temporary_folder() as folder:
            yield download(PatientClient(store), address, name, folder)
        return
    path = artifact_folder(store, address, levels) / name
    try:
        is_there = may_read(path)
    except OSError as error:
        raise HiddenFile(f"{what} cannot be read ({error.strerror})") from None
    yield path if is_there else None


def _intact(run: RunRecord, name: str, file: Path | None) -> Path:
    """Return a run's file.

    Raises:
        InputError: it is missing, or it is not the file that was logged.
    """
    if file is None:
        raise InputError(
            f"run {run.run_id} has no {name}: it did not end, its checkpoint was not kept, or somebody deleted it"
        )
    expected = run.tags.get(checksum_tag(name))  # of the files that trials log
    if expected is not None and (not file.is_file() or file_checksum(file) != expected):
        raise InputError(f"run {run.run_id}: its {name} is damaged: its checksum is wrong")
    return file


def may_read(path: Path) -> bool:
    """Return whether a file is there, or a folder with something in it.

    Raises:
        OSError: it, or a folder above it, may not be read.
    """
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            return any(path.iterdir())
        path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def checksum_tag(name: str) -> str:
    """Return the tag with the checksum of a run's file."""
    return f"{CHECKSUM_TAG}.{name}"


def file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(client: PatientClient, address: str, name: str, folder: Path) -> Path | None:
    """Download an artifact, a file or a folder, and check the sizes of its files.

    Args:
        client: of the store.
        address: of the artifacts, as MLflow stored it.
        name: the artifact's; "" is all that the address has.
        folder: where to put it.

    Returns:
        Its path; None if there is no such artifact.

    Raises:
        StoreAway: the server does not answer, or an answer was cut.
        StoreError: it refuses, or the folder cannot be written.
    """
    repository = client.ask(lambda: get_artifact_repository(address, tracking_uri=client.tracking_uri))
    sizes = _file_sizes(client, repository, name)
    if not sizes:
        return None

    def attempt() -> None:
        repository.download_artifacts(name, str(folder))  # type: ignore[no-untyped-call]
        for path, size in sizes.items():
            if size is not None and (folder / path).stat().st_size != size:
                raise StoreAway(f"MLflow does not answer (the download of {path} was cut)")

    client.ask(attempt)
    return folder / name


def _file_sizes(client: PatientClient, repository: ArtifactRepository, name: str) -> dict[str, int | None]:
    """Return the files of an artifact with their sizes in bytes, None where they are not known."""
    if name:
        parent = str(Path(name).parent)
        entries = client.ask(lambda: repository.list_artifacts(None if parent == "." else parent))
        file = next((entry for entry in entries if entry.path == name), None)
        if file is None or not file.is_dir:
            return {} if file is None else {name: file.file_size}
    sizes: dict[str, int | None] = {}
    for entry in client.ask(lambda: repository.list_artifacts(name or None)):
        sizes |= _file_sizes(client, repository, entry.path) if entry.is_dir else {entry.path: entry.file_size}
    return sizes


def log_report(store: Store, run_id: str, files: Mapping[str, bytes], note: str) -> None:
    """Put files (name -> content) into a run's artifact folder `report`, and set the run's description (Markdown).

    Raises:
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    client = reading_client(store)
    with temporary_folder() as target:
        if store.has_own_tracking:  # it may have been moved, so that MLflow has another address
            target = artifact_path(store, _run_record(client.get_run(run_id)), REPORT_FOLDER)
            target.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(target / name, content)  # also over a file of another user, which only they may write
        if not store.has_own_tracking:
            client.log_artifacts(run_id, str(target), REPORT_FOLDER)
        client.set_tag(run_id, NOTE_TAG, note)
