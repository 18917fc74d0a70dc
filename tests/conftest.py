"""Shared fixtures: small studies on scikit-learn's digits, and the real images and weights where they are at hand."""

import atexit
import gc
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import vl_convert
from filelock import FileLock

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported, here and by processes that tests start
    # Pytest's workers, one per core, would otherwise start as many threads each, and these would spin while they wait.
    # Steps as small as those of tests take twice the CPU time with two threads.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "0")

from ablation import study
from ablation.base import retries
from ablation.data import set_summary
from ablation.reporting import report
from ablation.running import champion
from ablation.search import configure_optuna, studies
from ablation.storage.new_database import build_database
from ablation.storage.store import SQLITE, sqlite_path
from ablation.tracking import client, configure_mlflow, experiment
from tests.champions import champion_study, champion_study_once  # noqa: F401 - fixtures
from tests.servers import PostgreSQL, Server
from tests.studies import (
    REPOSITORY,
    STUDY,
    Command,
    compare_once,
    compile_statements_once,
    read_migrations_once,
    run_small_study,
    scale_digits_once,
    set_options_once,
    signal_handlers_kept,
)
from tests.victims import Victims

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
configure_mlflow()
configure_optuna()
read_migrations_once()
compile_statements_once()
set_options_once()
scale_digits_once()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No address from outside, no cache in the home folder, and no precision that depends on the machine's CPU."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", raising=False)
    monkeypatch.setenv("ABLATION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ablation.base.device.cpu_computes_bfloat16", lambda: False)


@pytest.fixture(autouse=True)
def _files_of_passed_tests_are_deleted(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[None]:
    """Thousands of stores take gigabytes; the folder stays, because MLflow caches by address."""
    failures = request.session.testsfailed
    yield
    if request.session.testsfailed == failures:
        for path in tmp_path.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)


def folder_of_all_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that has the temporary folders of all of pytest's workers."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def empty_databases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the templates, which pytest's workers share."""
    folder = folder_of_all_workers(tmp_path_factory) / "databases"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True)
def _tables_are_made_once(monkeypatch: pytest.MonkeyPatch, empty_databases: Path) -> None:
    """A new database is a copy of the first one: MLflow takes a second to make the tables, Optuna a tenth of one."""
    for name, owner in (("mlflow", client), ("optuna", studies)):
        monkeypatch.setattr(owner, "build_database", partial(copy_database, empty_databases / f"{name}.db"))


def copy_database(template: Path, url: str, build: Callable[[str], object]) -> None:
    """Create a database as `build_database` does, from a template that is built where it is not there yet."""
    if url.startswith(SQLITE) and sqlite_path(url).exists():
        return  # where another user may not see the template
    with FileLock(f"{template}.lock"):  # by one of pytest's workers, for all
        build_database(f"{SQLITE}{template}", build)
    build_database(url, lambda new: shutil.copyfile(template, sqlite_path(new)))


@pytest.fixture(scope="session")
def narrow_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of all layers of vgg16_narrow, as a safetensors file."""
    import torch
    from safetensors.torch import save_file

    from ablation.networks.blocks import expected_tensors

    random = torch.Generator().manual_seed(7)
    shapes = {key: shape for key, (_, shape) in expected_tensors("vgg16_narrow", "block5").items()}
    tensors = {key: torch.randn(shape, generator=random) * 0.1 for key, shape in shapes.items()}
    path = tmp_path_factory.mktemp("weights") / "narrow.safetensors"
    save_file(tensors, path, {"architecture": "vgg16_narrow"})
    return path


@pytest.fixture(scope="session")
def finished_study(tmp_path_factory: pytest.TempPathFactory, narrow_weights: Path) -> Path:
    """The folder of a study with confirmation that has run, by the real command: small.toml, store, output.txt.

    All of pytest's workers share it, so a test changes nothing in it; `copy_store` makes a copy that a test may change.
    """
    folder = folder_of_all_workers(tmp_path_factory) / "finished-study"
    with FileLock(f"{folder}.lock"):
        if not (folder / "output.txt").exists():
            run_small_study(folder, narrow_weights)
    return folder


@pytest.fixture
def study_file(tmp_path: Path, narrow_weights: Path) -> Path:
    """A study of four arms that runs in seconds."""
    path = tmp_path / "small.toml"
    path.write_text(STUDY.format(weights=narrow_weights))
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real images and weights; see the README."""
    path = Path(os.environ.get("ABLATION_REAL_DATA") or REPOSITORY.parent / "shared")
    if not (path / "data" / "cifar10-jpeg.tar.xz").is_file():
        pytest.skip(f"no real images and weights in {path}; set ABLATION_REAL_DATA to a folder that has them")
    return path


@pytest.fixture(scope="session")
def real_images(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder with the first 120 training and 5 test images of every class of CIFAR-10 (JPEG copy)."""
    root = tmp_path_factory.mktemp("real")
    counts: dict[str, int] = {}
    with tarfile.open(real_data / "data" / "cifar10-jpeg.tar.xz") as archive:
        for member in archive:
            folder = str(Path(member.name).parent)
            if member.isfile() and counts.get(folder, 0) < (120 if "/train/" in member.name else 5):
                counts[folder] = counts.get(folder, 0) + 1
                archive.extract(member, root, filter="data")
    return root / "cifar10"


# ------------------------------------------------------------------------------------------ processes that are killed


@pytest.fixture(scope="session")
def small_study(tmp_path_factory: pytest.TempPathFactory, narrow_weights: Path) -> Path:
    """The file of `study_file`, for all tests together."""
    path = tmp_path_factory.mktemp("small") / "small.toml"
    path.write_text(STUDY.format(weights=narrow_weights))
    return path


@pytest.fixture(scope="session")
def victims(small_study: Path) -> Iterator[Victims]:
    started = Victims(small_study)
    yield started
    assert started.process.stdin is not None
    started.process.stdin.close()
    started.process.wait()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as victims have: the bits depend on it."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    # Not in pytest's own folder, which its user could not enter.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        server = PostgreSQL(Path(folder) / "postgresql")
        yield server
        server.stop()


@pytest.fixture
def exported_champions() -> None:
    """The studies of `command` translate their champion's network into a program, which takes a second."""


@pytest.fixture
def plots_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports have the definitions and texts of their plots, but no drawings, which take seconds."""
    monkeypatch.setattr(vl_convert, "vegalite_to_svg", lambda definition: "<svg></svg>")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Command:
    """`python -m ablation.study ARGUMENTS` in an empty folder, in this process; returns the exit status.

    Its reports have no figures, which take seconds to draw, and its champions no program; `finished_study` has them.
    """
    monkeypatch.setattr(set_summary, "find_near_duplicates", compare_once)
    monkeypatch.setattr(report, "draw_figures", lambda analysis, kinds: {})
    if "exported_champions" not in request.fixturenames:
        monkeypatch.setattr(champion, "export_program", lambda model, images, path: path.write_text("a program"))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["study", *map(str, arguments)])
        with signal_handlers_kept():
            return study.main()

    return run


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls are repeated for a moment, after pauses of a moment, so that tests of outages take seconds."""
    monkeypatch.setattr(retries, "BRIEF_SECONDS", 0.3)
    monkeypatch.setattr(retries, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(experiment, "AWAY_SECONDS", 0.1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    started = Server(tmp_path / "server")
    yield started
    started.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests that need a GPU where there is none."""
    on_gpu = [item for item in items if item.get_closest_marker("cuda")]
    if on_gpu and not torch_sees_a_gpu():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


@pytest.fixture(scope="module", autouse=True)
def _searches_for_garbage_are_short() -> None:
    """What earlier files and all libraries left is out of the searches, of up to a second, after a lack of memory."""
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    atexit.register(gc.unfreeze)  # else libraries report all that is left at the end


def torch_sees_a_gpu() -> bool:
    """Return whether torch can compute on CUDA here; it is imported only where a test needs to know."""
    import torch

    return torch.cuda.is_available()
