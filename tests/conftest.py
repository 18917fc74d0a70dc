"""Shared fixtures: small studies on scikit-learn's digits, and the real images and weights where they are at hand."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No address from outside, and no cache in the home folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    monkeypatch.delenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", raising=False)
    monkeypatch.setenv("ABLATION_CACHE", str(tmp_path / "cache"))


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


STUDY = """
question = "Which cut of a small network?"
trials_per_arm = 2
epochs = 3

[backbone]
name = "vgg16_narrow"
weights = "{weights}"

[data]
source = "digits"
limit = 200
val_fraction = 0.25

[fixed]
batch_size = 32

[factors]
truncate_at = ["block1", "conv2_1"]
strategy = ["feature_extraction", "fine_tune_all"]

[search]
lr = {{ low = 1e-3, high = 1e-1, log = true }}
head_width = {{ choices = [8, 16] }}
backbone_lr_scale = {{ low = 0.01, high = 1.0, log = true }}
"""


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


@contextlib.contextmanager
def signal_handlers_kept() -> Iterator[None]:
    """Let a command line set its signal handlers in this process for the time of this context."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Victims:
    """The process of `victims.py`, which forks workers that can be killed at a chosen step."""

    def __init__(self, study_file: Path):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.victims", str(study_file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
        )  # fmt: skip
        self.ended: dict[int, int] = {}
        assert self._answer() == "ready"

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def _order(self, **order: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def start(
        self,
        folder: Path,
        arguments: Sequence[object],
        *,
        kill_at: int | str | None = None,
        environment: dict[str, str] | None = None,
        only_open: bool = False,
    ) -> int:
        """Start `python -m ablation.study ARGUMENTS` in a folder; return its process id."""
        pid: int = self._order(
            arguments=[str(argument) for argument in arguments], folder=str(folder), kill_at=kill_at,
            environment=environment or {}, steps=str(folder / "steps"), only_open=only_open,
        )  # fmt: skip
        return pid

    def wait(self, pid: int) -> int:
        """Return a worker's exit status, negative for a signal."""
        if pid not in self.ended:
            self.ended[pid] = self._order(wait=pid)
        return self.ended[pid]

    def has_ended(self, pid: int) -> bool:
        """Return whether a worker has ended, by itself or killed."""
        if pid in self.ended:
            return True
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"  # a zombie, not waited for

    def run(self, folder: Path, arguments: Sequence[object], *, kill_at: int | str | None = None) -> int:
        return self.wait(self.start(folder, arguments, kill_at=kill_at))

    @staticmethod
    def steps(folder: Path) -> list[str]:
        """Return the names of the steps of the last run that was not killed."""
        return (folder / "steps").read_text().splitlines()

    @staticmethod
    def output(folder: Path) -> str:
        """Return what all runs in a folder have printed."""
        return (folder / "steps.out").read_text()


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


def finish_with_a_kill(
    victims: Victims, folder: Path, arguments: Sequence[object], *, workers: int, environment: dict[str, str]
) -> None:
    """Let several workers finish a study; one is killed in the middle of its first trial and replaced."""

    def start(kill_at: str | None = None) -> int:
        return victims.start(folder, arguments, environment=environment, kill_at=kill_at)

    victim = start(kill_at="evaluate")
    others = [start() for _ in range(workers - 1)]
    assert victims.wait(victim) == -signal.SIGKILL
    others.append(start())
    assert [victims.wait(pid) for pid in others] == [0] * workers, victims.output(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class PostgreSQL:
    """A PostgreSQL server of Debian's package on loopback, with a folder of its own."""

    PASSWORD = "not-a-secret"

    def __init__(self, folder: Path):
        self.folder = folder
        (found,) = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:] or [None]
        if found is None:
            pytest.skip("no PostgreSQL: Debian's package postgresql has it")
        self.programs = found
        self.port = free_port()
        folder.mkdir()
        password = folder / "password"
        password.write_text(self.PASSWORD)
        if os.getuid() == 0:  # it refuses to run as root
            for path in (folder, password):
                shutil.chown(path, "postgres")
        self._run("initdb", "--auth=scram-sha-256", f"--pwfile={password}", "-U", "ablation")
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        subprocess.run([*user, str(self.programs / program), "-D", str(self.folder / "data"), *arguments],
                       check=True, capture_output=True, cwd="/")  # fmt: skip

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def query(self, sql: str, database: str = "postgres") -> list[Any]:
        with psycopg.connect(self.address(database), autocommit=True) as connection:
            answer = connection.execute(sql)
            return answer.fetchall() if answer.description else []

    def address(self, database: str) -> str:
        return f"postgresql://ablation:{self.PASSWORD}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Make an empty database and return its address."""
        name = f"d{uuid.uuid4().hex}"
        self.query(f"CREATE DATABASE {name}")
        return self.address(name)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    # Not in pytest's own folder, which its user could not enter.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        server = PostgreSQL(Path(folder) / "postgresql")
        yield server
        server.stop()
