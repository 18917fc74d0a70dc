"""Where the results of studies are: folders, database addresses, and the locks that die with their process."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ablation.spec import InputError, expand

DEFAULT_STORE = "mlruns"


@dataclass(frozen=True)
class Store:
    """A folder with everything of its own, and the addresses of the two databases, in it or elsewhere."""

    root: Path
    tracking_uri: str
    optuna_url: str

    @property
    def has_own_tracking(self) -> bool:
        """Whether MLflow's database and artifacts are in the folder."""
        return self.tracking_uri == _sqlite(self.root / "mlflow.db")

    @property
    def has_own_optuna(self) -> bool:
        """Whether Optuna's database is in the folder."""
        return self.optuna_url == _sqlite(self.root / "optuna.db")

    @property
    def is_empty(self) -> bool:
        """Whether no study can have run in it yet."""
        return self.has_own_optuna and not (self.root / "optuna.db").exists()

    def check_writable(self) -> None:
        """Refuse a folder that cannot be written or made, without touching it.

        Raises:
            InputError: says which folder it is.
        """
        existing = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        if not existing.is_dir():
            raise InputError(f"--store: {existing} is not a folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise InputError(f"--store: {existing} cannot be written")

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            InputError: it cannot be made.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--store: {self.root} cannot be written ({error.strerror})") from None

    def artifacts(self, study: str) -> Path:
        """Return the folder of a study's artifacts, where MLflow's database is in the store."""
        return self.root / "artifacts" / study

    def trial_folder(self, study: str, arm: str, number: int) -> Path:
        """Return the folder of an unfinished trial: its lock and its resume checkpoint."""
        return self.root / "checkpoints" / study / arm / str(number)

    def claim_lock(self) -> FileLock:
        """Return the lock under which databases are first made and trials are claimed."""
        return FileLock(self.root / "claim.lock")


def _sqlite(path: Path) -> str:
    return f"sqlite:///{path}"


def find_store(option: str | None) -> Store:
    """Return the store to use, without touching it.

    `option` (--store) wins over MLFLOW_TRACKING_URI and OPTUNA_STORAGE, and those over the default, `mlruns` in the
    working folder.
    """
    root = expand(option or DEFAULT_STORE).resolve()
    own_tracking, own_optuna = _sqlite(root / "mlflow.db"), _sqlite(root / "optuna.db")
    if option is not None:
        return Store(root, own_tracking, own_optuna)
    return Store(
        root,
        os.environ.get("MLFLOW_TRACKING_URI") or own_tracking,
        os.environ.get("OPTUNA_STORAGE") or own_optuna,
    )


def build_database(path: Path, build: Callable[[str], object]) -> None:
    """Make a SQLite database under another name and give it its own when it is complete.

    A process that dies while it makes the tables would otherwise leave half a database that nothing can open.

    Args:
        path: where it shall be; nothing is done where it already is.
        build: opens the database at an address and makes its tables.
    """
    if path.exists():
        return
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    build(_sqlite(unfinished))
    unfinished.replace(path)


def try_lock(folder: Path) -> FileLock | None:
    """Take the lock of a trial's folder, or return None where a living process holds it.

    The operating system frees it when its process ends, however it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock
