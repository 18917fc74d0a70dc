"""The wheel, away from the repository, and the console command."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from ablation import __version__
from ablation.__main__ import COMMANDS
from tests.studies import REPOSITORY


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what the wheel holds, and nothing else of the repository."""
    source, built, target = (tmp_path_factory.mktemp(name) for name in ("source", "built", "target"))
    for name in ("ablation", "studies", "docker/kubernetes"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    build = f"from hatchling.build import build_wheel; build_wheel({str(built)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def run(installed: Path, folder: Path, *commands: Sequence[str]) -> list[str]:
    """`ablation ARGUMENTS`, one command after the other, as the wheel has it; returns what each prints.

    The repository comes later in the path.
    """
    code = (
        "import json, sys, ablation.__main__ as command; print(command.__file__)\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['ablation', *arguments]\n"
        "    try: command.main()\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
        "    print(chr(12))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(commands)], cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    place, _, output = done.stdout.partition("\n")
    assert place == str(installed / "ablation" / "__main__.py")
    return output.split("\f\n")[:-1]


def test_the_wheel_runs_a_study_and_reports_it(installed: Path, tmp_path: Path) -> None:
    budget = ("--trials", "1", "--epochs", "1", "--set", "confirm.seeds=1")
    budget += ("--set", 'factors={strategy=["fine_tune_top", "fine_tune_all"]}', "--set", "fixed.truncate_at=block3")
    study = ("study", "strategies", "--demo", *budget, "--store", "s")
    _, report = run(installed, tmp_path, study, ("report", "strategies-demo", "--store", "s"))
    assert (tmp_path / "s" / "reports" / "strategies-demo" / "report.html").is_file()
    assert "Which strategy is best on all of VGG-16" in report.splitlines()[1]


def test_the_wheel_has_all_studies(installed: Path, tmp_path: Path) -> None:
    (table,) = run(installed, tmp_path, ("study", "--list"))
    studies = sorted(path.stem for path in (REPOSITORY / "studies").glob("*.toml"))
    listed = [line.split(" | ")[0].strip("| ") for line in table.splitlines() if line.startswith("| ")]
    assert listed[2:] == studies  # below the table's head
    found = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    others = {
        "ablation/py.typed",
        "ablation/study.schema.json",
        *(f"ablation/reporting/templates/report.{kind}" for kind in ("html.j2", "css", "js")),
        "ablation/spec/study_template.toml",
        "ablation/launching/slurm_array.sh",
        "ablation/launching/job.yaml",
    }
    assert found >= {f"ablation/studies/{study}.toml" for study in studies} | others
    assert not any(name.startswith("studies") for name in found)


def console(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "ablation", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_the_same_as_its_module(name: str) -> None:
    module = subprocess.run([sys.executable, "-m", f"ablation.{name}", "--help"], capture_output=True, text=True)
    assert console(name, "--help").stdout == module.stdout != ""


def test_what_the_command_says_itself() -> None:
    assert console("--version").stdout == f"ablation, version {__version__}\n"
    assert console().stdout == console("--help").stdout
    assert all(f"  {name} " in console().stdout for name in COMMANDS)
    refused = console("stduy")
    assert (refused.returncode, refused.stderr) == (2, "error: no command 'stduy'; did you mean 'study'?\n")
