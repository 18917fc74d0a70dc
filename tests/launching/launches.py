"""Launches for tests: of small workers that do next to nothing, and of a small study beside an undisturbed one."""

import sys
from pathlib import Path

import pytest
import torch

from ablation.base.command_line import run_command
from ablation.launch import cli as launch_command
from ablation.launching.request import Launch, launch_label
from ablation.storage.store import find_store
from tests.studies import ONE_ARM, REPOSITORY, Command, history, runs, signal_handlers_kept


class WorkerLaunch(Launch):
    """A launch of `tests.launching.patient_worker`, whose arguments it has."""

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "tests.launching.patient_worker", *self.arguments]


def launch_of(folder: Path, *arguments: object, workers: int = 1, **options: str) -> Launch:
    return WorkerLaunch(
        study="cuts",
        label=f"ablation-cuts-{folder.name}",
        study_file=folder / "cuts.toml",
        arguments=tuple(map(str, arguments)),
        workers=workers,
        grace=10,
        options={name.replace("_", "-"): value for name, value in options.items()},
        folder=folder / "launch",
        working_folder=REPOSITORY,
    )


KINDS = ("trial", "confirmation")
BUDGET = ("--epochs", 120, *ONE_ARM, "--set", "confirm.seeds=1", "--set", 'precision="float32"')


def launch_study(study: Path, store: Path, engine: str, *options: object) -> str:
    """Launch two workers of a study on an engine by the command line; return the launch's label."""
    arguments = ("launch", study, "--on", engine, "--workers", 2, *options, "--", *BUDGET, "--store", store)
    with pytest.MonkeyPatch.context() as patch, signal_handlers_kept():
        patch.setattr(sys, "argv", list(map(str, arguments)))
        patch.setenv("OMP_NUM_THREADS", "1")  # with another number of threads, sums differ
        assert run_command(launch_command) == 0
    return launch_label("small", find_store(str(store)))


def has_checkpoint(store: Path) -> bool:
    return any(path.name != "lock" for path in store.glob("checkpoints/*/*/*"))


Curves = dict[str, dict[str, dict[str, list[tuple[int, float]]]]]  # kind -> run's name -> metric -> (step, value)
_undisturbed: Curves = {}  # of the only study that is compared; it is run once


def curves(store: Path) -> Curves:
    return {kind: {run.info.run_name: history(store, run) for run in runs(store, "small", kind)} for kind in KINDS}


def check_equals_undisturbed(command: Command, study: Path, store: Path) -> None:
    """Run the same study here, and compare: exactly its budget, every metric of every epoch once, the same values."""
    if not _undisturbed:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as the engines' workers have
        assert command(study, *BUDGET, "--store", "undisturbed") == 0
        torch.set_num_threads(threads)
        _undisturbed.update(curves(Path.cwd() / "undisturbed"))
    assert [len(_undisturbed[kind]) for kind in KINDS] == [2, 1]
    for kind in KINDS:
        found = runs(store, "small", kind)
        assert len(found) == len(_undisturbed[kind])
        assert {run.info.status for run in found} == {"FINISHED"}
    found_curves = curves(store)
    assert {kind: found_curves[kind].keys() for kind in KINDS} == {kind: _undisturbed[kind].keys() for kind in KINDS}
    for kind in KINDS:
        for name, metrics in _undisturbed[kind].items():
            other = found_curves[kind][name]
            assert {metric for metric in metrics if metrics[metric] != other.get(metric)} == set(), name
