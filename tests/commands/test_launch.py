"""`python -m ablation.launch`: refused in one line before anything is written, and shown by --print."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from ablation import launch
from ablation.base.command_line import run_command
from ablation.base.terminal import say
from ablation.launching import local, slurm
from ablation.launching.request import EngineWorker
from ablation.planning.forecast import Memory
from tests.studies import Command, signal_handlers_kept

Launcher = Callable[..., int]


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Launcher:
    folder = tmp_path / "work"
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["launch", *map(str, arguments)])
        with signal_handlers_kept():
            return run_command(launch.cli)

    return run


def test_print_submits_and_writes_nothing(
    launcher: Launcher, study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = launcher(study_file, "--on", "slurm", "--workers", 2, "--print", "--", "--name", "mine", "--grace", "90")
    text = capsys.readouterr().out
    assert status == 0
    assert "#SBATCH --array=1-2\n" in text
    assert "#SBATCH --signal=B:USR2@120\n" in text
    assert f"-m ablation.study {study_file} --name mine --grace 90 &\n" in text
    assert f"cd {Path.cwd()}" in text
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(("free", "cores", "workers"), [(40, 64, 28), (40, 16, 16), (2, 64, 2)])
def test_workers_per_gpu_follow_the_memory_of_a_trial(
    launcher: Launcher, study_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    free: int, cores: int, workers: int,
) -> None:  # fmt: skip
    """Two GPUs; a worker needs 1.9 GB and CUDA's own 0.6; a tenth stays free, and each has a core; one is the least."""
    plan = SimpleNamespace(probe=SimpleNamespace(free_bytes=free * 10**9))
    monkeypatch.setattr(local, "gpu_count", lambda: 2)
    monkeypatch.setattr("ablation.base.cores.usable_cores", lambda: cores)
    monkeypatch.setattr("ablation.base.device.check_device", lambda name: SimpleNamespace(type="cuda"))
    monkeypatch.setattr(
        "ablation.planning.measured_plan.measured_plan", lambda spec, device, limit: (say("probing"), plan)[1]
    )
    monkeypatch.setattr("ablation.planning.forecast.memory", lambda study: Memory(1_900_000_000, 0, 0))
    assert launcher(study_file, "--on", "local", "--per-gpu", "auto", "--print") == 0
    captured = capsys.readouterr()
    each = workers // 2
    assert f"{each} worker{'s' * (each > 1)} on each GPU: each needs about 1.9 of {free}.0 GB\n" in captured.err
    assert "Measuring the memory that a worker needs\nprobing\n" in captured.err
    (command,) = captured.out.splitlines()  # progress does not stand beside what would be submitted
    assert command.endswith(f"--workers {workers}")


@pytest.mark.parametrize("number", ["auto", "2"])
def test_workers_per_gpu_need_a_gpu(
    launcher: Launcher, study_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    number: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(local, "gpu_count", lambda: 0)
    assert launcher(study_file, "--on", "local", "--per-gpu", number, "--print") == 2
    assert capsys.readouterr().err.startswith("error: --per-gpu: this machine has no CUDA device")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine-option", "nonsense"], "--engine-option: 'nonsense' is not KEY=VALUE"),
        (["--engine-option", "array=1-9"], "--engine-option: array is set by the launch on slurm itself"),
        (["--engine-file", "none.toml"], "--engine-file: none.toml cannot be read"),
        (["--print", "--cancel"], "--print and --cancel: choose one of them"),
        (["--per-gpu", "2"], "--per-gpu: goes with --on local"),
        (["--engine-option", "per-gpu=2"], "--per-gpu: goes with --on local"),
        (["--engine-option", "partition="], "--engine-option: partition needs a value on slurm"),
        (["--engine-option", "time=1"], "--engine-option: time=1 is 60 s, but must be longer than 120 s"),
        (["--engine-option", "wai="], "--engine-option: wai is set by the launch on slurm itself"),
        (["--", "--check"], "--check: is no option of a worker"),
        (["--", "--workers", "2"], "--workers: belongs before --\n"),
        (["--", "--grace", "inf"], "--grace: must be a number of SECONDS, got inf"),
        (["--", "--feature-cache", "nan"], "--feature-cache: must be a number of GB, got nan"),
        (["--", "--device", "gpu"], "--device: unknown device 'gpu'"),
        (["--", "--demo", "--name", "mine"], "--name: a demo is always called NAME-demo"),
        (["--", "--epoch", "2"], "No such option '--epoch'"),
        (["--", "--epochs", "0"], "epochs"),
        (["--", "--set", "data.source=imagefolder", "--set", "data.root=nowhere"], "there is no such folder"),
    ],
)
def test_what_is_refused(
    launcher: Launcher, study_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(slurm, "call", lambda *_, **__: pytest.fail("SLURM was called"))
    assert launcher(study_file, "--on", "slurm", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    "way", [("--per-gpu", "xyz"), ("--engine-option", "per-gpu=2"), ("--engine-file", "file.toml")]
)
def test_workers_and_workers_per_gpu_exclude_each_other(
    launcher: Launcher, study_file: Path, capsys: pytest.CaptureFixture[str], way: tuple[str, str]
) -> None:
    Path("file.toml").write_text("[launch]\nper-gpu = 2\n")
    assert launcher(study_file, "--on", "local", "--workers", 3, *way, "--print") == 2
    assert capsys.readouterr().err == "error: --per-gpu: goes with --on local and without --workers\n"


def test_kubernetes_gets_what_its_workers_accept(
    launcher: Launcher, study_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quick try, a demo and a study that has begun may have what has no effect; images are in the cluster alone."""
    study_file.write_text(study_file.read_text().replace("[fixed]\n", "[fixed]\npatience = 2\n"))
    start = (study_file, "--on", "kubernetes", "--print", "--engine-option", "image=r/a:1", "--")
    elsewhere = ("--set", "data={source='imagefolder', root='nowhere'}")
    assert launcher(*start, *elsewhere) == 2
    assert "fixed.patience: 2 has no effect within epochs = 3" in capsys.readouterr().err
    for is_begun, options in ((False, ["--epochs", "3", *elsewhere]), (False, ["--demo"]), (True, elsewhere)):
        monkeypatch.setattr("ablation.study.may_have_begun", lambda store, name, is_begun=is_begun: is_begun)
        assert launcher(*start, *options) == 0, capsys.readouterr().err
        assert "kind: Job" in capsys.readouterr().out
    assert list(Path.cwd().iterdir()) == []


def test_without_the_engine_nothing_is_written(
    launcher: Launcher, study_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(Path.cwd()))
    assert launcher(study_file, "--on", "slurm") == 2
    assert capsys.readouterr().err.startswith("error: sbatch: there is no such program here")
    assert list(Path.cwd().iterdir()) == []


def test_workers_of_a_study_whose_file_is_gone(
    launcher: Launcher, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = [EngineWorker("7_1", "running", "n1", "2026-11-27T11:00:00")]
    cancelled: list[str] = []
    deleted: list[str] = []
    monkeypatch.setattr(slurm, "workers", lambda label, options: running)
    monkeypatch.setattr(slurm, "cancel", lambda label, options: cancelled.append(label) or deleted)
    assert launcher("gone", "--on", "slurm", "--status") == 0
    assert "No trial has begun" in (said := capsys.readouterr().out)
    assert "7_1" in said
    assert launcher("gone", "--on", "slurm", "--cancel") == 0
    assert capsys.readouterr().out == "1 worker of gone asked to save and end; what they have done is kept.\n"
    running.clear()
    assert launcher("gone", "--on", "slurm", "--cancel") == 0
    none = f"No worker of gone runs or waits on slurm ({Path.cwd()}/mlruns: has no study 'gone').\n"
    assert capsys.readouterr().out == none
    deleted += ["job/a", "map/a"]  # of an ended job, which has no worker
    assert launcher("gone", "--on", "slurm", "--cancel") == 0
    assert capsys.readouterr().out == "No worker of gone runs or waits on slurm; deleted: job/a, map/a.\n"
    assert len(cancelled) == 3  # a queue may hold what has no worker yet
    assert launcher("gone", "--on", "slurm") == 2
    assert capsys.readouterr().err.startswith("error: no study 'gone'")


def test_a_database_that_cannot_be_opened_is_not_called_a_study_that_has_not_begun(
    launcher: Launcher, study_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "workers", lambda label, options: [])
    Path("mlruns").mkdir()
    Path("mlruns/optuna.db").write_bytes(b"no database" * 100)
    assert launcher(study_file, "--on", "slurm", "--status") == 2
    captured = capsys.readouterr()
    assert "No trial has begun" not in captured.out
    assert "cannot be opened as Optuna's database" in captured.err


def test_a_missing_module_of_an_engine_is_named_with_its_extra(
    launcher: Launcher, study_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("ray", "ray.util", "ablation.launching.ray", "ablation.launching.ray_actor"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert launcher(study_file, "--on", "ray", "--status") == 2
    assert capsys.readouterr().err == "error: --on ray: needs ray: python -m pip install ray\n"


def test_status_shows_arms_and_workers(
    command: Command,
    launcher: Launcher,
    study_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels = []

    def workers(label: str, options: object) -> list[EngineWorker]:
        labels.append(label)
        return [EngineWorker("7_1", "running", "n1", "2026-11-27T11:00:00"),
                EngineWorker("7_2", "pending (Resources)", "-", "2026-11-27T10:59:00")]  # fmt: skip

    monkeypatch.setattr(slurm, "workers", workers)
    assert launcher(study_file, "--on", "slurm", "--status") == 0
    assert "No trial has begun" in capsys.readouterr().out
    one_arm = ("--set", 'factors.strategy=["feature_extraction"]', "--set", 'factors.truncate_at=["block1"]')
    assert command(study_file, "--trials", 1, "--epochs", 1, "--set", "confirm.seeds=1", *one_arm) == 0
    capsys.readouterr()
    assert launcher(study_file, "--on", "slurm", "--status") == 0
    text = capsys.readouterr().out
    assert "newest output" not in text
    assert "| 7_2 | pending (Resources) | - | 2026-11-27T10:59:00 | - | - |" in text
    assert text.index("1 finished" if "1 finished" in text else "finished") < text.index("7_1")
    assert len(set(labels)) == 1

    monkeypatch.setattr(slurm, "workers", lambda label, options: [])
    monkeypatch.setattr(slurm, "cancel", lambda label, options: [])
    log = Path(f"mlruns/launch/{labels[0]}_7_1.log")
    log.parent.mkdir()
    log.touch()
    assert launcher(study_file, "--on", "slurm", "--status") == 0
    assert f"- no worker runs or waits; newest output: {log.absolute()}\n" in capsys.readouterr().out
    assert launcher(study_file, "--on", "slurm", "--cancel") == 0
    assert capsys.readouterr().out == f"No worker of {study_file.stem} runs or waits on slurm.\n"
    assert launcher(f"{study_file.stem}s", "--on", "slurm", "--cancel") == 0
    assert f"has no study '{study_file.stem}s'; did you mean '{study_file.stem}'?).\n" in capsys.readouterr().out
