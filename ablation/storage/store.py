"""A store: its folder and the addresses of its databases."""

import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ablation.base.command_line import refusing_unreachable_paths
from ablation.base.errors import InputError
from ablation.base.files import check_temporary_folder, expand, file_system

DEFAULT_STORE = "mlruns"
SQLITE = "sqlite:///"
# Several machines can mount them, and SQLite's locks do not reach from one machine to another (sqlite.org/faq.html#q5).
NETWORK_FILE_SYSTEMS = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "fuse.sshfs", "lustre", "gpfs", "beegfs", "ceph", "fuse.ceph-fuse",
    "glusterfs", "fuse.glusterfs", "fuse.s3fs", "fuse.gcsfuse",
}  # fmt: skip
# What is written in a store's folder.
WRITTEN = ("optuna.db", "mlflow.db", "claim.lock", "locks", "checkpoints", "features", "artifacts")
# Variables of the environment: where the databases are, and who asks.
ADDRESSES = (
    "OPTUNA_STORAGE", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)  # fmt: skip
DATABASES = ("OPTUNA_STORAGE", "MLFLOW_TRACKING_URI")
LONGEST_PATH = 430  # bytes; SQLite's own limit is 512, and the journal of a database that is being made has a long name
POSTGRESQL = ("postgresql://", "postgresql+psycopg://")
POSTGRESQL_PACKAGES = "python -m pip install 'psycopg[binary]>=3.2' 'sqlalchemy>=2.1'"  # what these need
SERVERS = ("http://", "https://")  # of MLflow


@dataclass(frozen=True)
class Store:
    """A folder, and the addresses of the two databases, which are in the folder or elsewhere."""

    root: Path
    tracking_uri: str
    optuna_url: str

    @property
    def has_own_tracking(self) -> bool:
        """Whether MLflow's database and artifacts are in the folder."""
        return self.tracking_uri == sqlite_url(self.root / "mlflow.db")

    @property
    def has_own_optuna(self) -> bool:
        """Whether Optuna's database is in the folder."""
        return self.optuna_url == sqlite_url(self.root / "optuna.db")

    def check_reachable(self) -> None:
        """Refuse a folder that this user may not enter.

        Raises:
            InputError: names the path.
        """
        with refusing_unreachable_paths():
            _ = self.has_remote_optuna or sqlite_path(self.optuna_url).exists()

    @property
    def is_read_only(self) -> bool:
        """Whether MLflow's database is in the folder, and this user cannot write there."""
        database = self.root / "mlflow.db"
        places = (database, self.root, self.root / "artifacts")
        return self.has_own_tracking and database.exists() and not all(os.access(place, os.W_OK) for place in places)

    @property
    def has_remote_tracking(self) -> bool:
        """Whether MLflow is a server, which may not answer for a while."""
        return not self.tracking_uri.startswith(SQLITE)

    @property
    def has_remote_optuna(self) -> bool:
        """Whether Optuna's database is a server, so that trials may be shared between machines."""
        return not self.optuna_url.startswith(SQLITE)

    @property
    def work_root(self) -> Path:
        """The folder of locks and unfinished trials: beside Optuna's database if that is a file, else the root."""
        return self.root if self.has_remote_optuna else sqlite_path(self.optuna_url).parent

    def check_writable(self) -> None:
        """Refuse a folder that cannot be written or created, without touching it, and SQLite on a network file system.

        What goes into a store is a temporary file first, so a machine that has no folder for these is refused, too.

        Raises:
            InputError: names the folder or the file.
        """
        check_temporary_folder()
        try:
            existing = next(folder for folder in (self.root, *self.root.parents) if folder.exists())
        except OSError as error:  # a name is too long, or links form a circle
            raise InputError(f"--store: {self.root} cannot be used ({error.strerror})") from None
        if not existing.is_dir():
            raise InputError(f"--store: {existing} is not a folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise InputError(f"--store: {existing} cannot be written")
        for place in (existing / name for name in WRITTEN if existing == self.root):
            if place.exists() and not os.access(place, os.W_OK):
                raise InputError(
                    f"--store: {place} cannot be written: the users of a store need a group that may write its folder "
                    "(g+ws) and its files (g+w)"
                )
        for url in (self.tracking_uri, self.optuna_url):
            if url.startswith(SQLITE) and (kind := file_system(sqlite_path(url).parent)) in NETWORK_FILE_SYSTEMS:
                raise InputError(
                    f"--store: {sqlite_path(url)} would be SQLite on a network file system ({kind}), whose locks it "
                    "cannot trust: set OPTUNA_STORAGE to a PostgreSQL and MLFLOW_TRACKING_URI to a server, or give "
                    "--store a local folder"
                )

    def prepare(self) -> None:
        """Create the folder.

        Raises:
            InputError: it cannot be created.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--store: {self.root} cannot be written ({error.strerror})") from None

    def artifacts(self, study: str) -> Path:
        """Return the folder of a study's artifacts in a store that has MLflow's database."""
        return self.root / "artifacts" / study

    def trial_folder(self, key: str) -> Path:
        """Return the folder of an unfinished trial: its lock, its resume checkpoints, its outbox for MLflow.

        `key` (<arm's key>/<number>) is unique among the trials of all databases.
        """
        return self.work_root / "checkpoints" / key


def sqlite_url(path: Path) -> str:
    """Return the SQLite address of a file."""
    return f"{SQLITE}{path}"


def sqlite_path(url: str) -> Path:
    """Return the file of a SQLite address."""
    return Path(url.removeprefix(SQLITE)).absolute()


def find_store(option: str | os.PathLike[str] | None) -> Store:
    """Return the store to use, without touching it.

    `option` (--store) wins over MLFLOW_TRACKING_URI and OPTUNA_STORAGE, and those over the default, `mlruns` in the
    working folder.

    Raises:
        InputError: `option` is empty or an address, the store is a file, or an address is ambiguous or not supported.
    """
    if option is not None:
        _check_is_folder_name(os.fspath(option))
    named = DEFAULT_STORE if option is None else option
    root = Path(os.path.realpath(expand(named)))  # Path.resolve raises where links form a circle
    if os.path.exists(root) and not os.path.isdir(root):  # noqa: PTH110, PTH112 - where one may not look, no error
        raise InputError(f"--store: {root} is not a folder")
    _check_path(root)
    own_tracking, own_optuna = sqlite_url(root / "mlflow.db"), sqlite_url(root / "optuna.db")
    is_database_here = option is not None or not all(os.environ.get(variable) for variable in DATABASES)
    if is_database_here and (length := len(os.fsencode(root))) > LONGEST_PATH:
        raise InputError(f"--store: {root} has {length} bytes, and SQLite opens no file below more than {LONGEST_PATH}")
    if option is not None:
        return Store(root, own_tracking, own_optuna)
    for variable in ADDRESSES:
        if not _is_utf8(os.environ.get(variable, "")):
            raise InputError(f"{variable}: is not UTF-8")
    for variable in DATABASES:
        if re.search(rf"^{SQLITE}.*[%?]", os.environ.get(variable, ""), re.DOTALL):
            raise InputError(f"{variable}: the address of a SQLite file can hold neither % nor ?, so no options either")
    optuna_url = os.environ.get("OPTUNA_STORAGE") or own_optuna
    if optuna_url.startswith("grpc://"):
        raise InputError(
            "OPTUNA_STORAGE: Optuna's gRPC proxy has no lock that dies with its worker; name the PostgreSQL behind it"
        )
    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI") or own_tracking
    _check_address("OPTUNA_STORAGE", optuna_url)
    _check_address("MLFLOW_TRACKING_URI", tracking_uri, SERVERS)
    if _database(tracking_uri) == _database(optuna_url):
        raise InputError(
            "OPTUNA_STORAGE and MLFLOW_TRACKING_URI: need two databases, because some tables have the same name"
        )
    return Store(root, tracking_uri, optuna_url)


def _check_is_folder_name(option: str) -> None:
    """Refuse what is no name of a folder: nothing, as of a variable that is not set, or a database's address."""
    if not option:
        raise InputError("--store: is empty; name a folder, or leave it out")
    if re.match(r"[a-z][a-z0-9+]+:/", option):
        raise InputError(f"--store: {option} is no folder; {' and '.join(DATABASES)} are variables for addresses")


def find_store_to_write(option: str | None) -> Store:
    """Return the store as `find_store` does; if its folder is a group's (g+ws), this process writes for the group.

    Its umask lets the group read and replace what it writes, anywhere and to its end: for commands, not for a notebook.

    Raises:
        InputError: as `find_store`.
    """
    store = find_store(option)
    of_a_group = stat.S_ISGID | stat.S_IWGRP
    with suppress(OSError):  # it is not there yet, or may not be reached
        if store.root.stat().st_mode & of_a_group == of_a_group:
            os.umask(os.umask(0o002) & ~stat.S_IRWXG)
    return store


def _database(url: str) -> str:
    """Return which database an address names, whoever asks and by whatever driver; the same for a file's other names.

    A host's other names are not known.
    """
    scheme, _, place = url.split("?")[0].partition("://")
    kind = scheme.split("+")[0]
    return f"{kind} {os.path.realpath(place[1:]) if kind == 'sqlite' else place.rpartition('@')[2]}"


def _check_path(root: Path) -> None:
    """Refuse a path that an address of a database could not hold: libraries would use another file."""
    if re.search(r"[%?\0]", str(root)) or not _is_utf8(str(root)):
        raise InputError(f"--store: {root} contains %, ? or bytes that are not UTF-8, which databases cannot open")


def _is_utf8(text: str) -> bool:
    """Return whether a text from outside was UTF-8: Python keeps other bytes as surrogates."""
    return re.search("[\ud800-\udfff]", text) is None


def _check_address(variable: str, url: str, servers: tuple[str, ...] = ()) -> None:
    """Refuse another database, which lacks a lock that dies with its owner, or which nobody has tried here.

    Also a password that could end an address early: libraries would read half of it as a host, and print it.
    """
    if not url.startswith((SQLITE, *POSTGRESQL, *servers)) or url == SQLITE:
        forms = "sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
        raise InputError(f"{variable}: must be {'http://HOST:PORT, ' if servers else ''}{forms}")
    before, at, _ = url.partition("://")[2].rpartition("@")
    if not url.startswith(SQLITE) and at and re.search(r"[@/?#]", before):
        raise InputError(f"{variable}: write @ / ? # in a user name or password as %40 %2F %3F %23")
