"""What a store holds, as plain values to compare, read without the package: python -m tests.stored_format STORE

`tests/whole_studies/stored_format.json` was recorded with it, first from a store that commit b2e65c6 wrote, before the
package had folders. It must change only together with code that still reads the stores written before.
"""

import hashlib
import io
import json
import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

ANY = "*"  # stands for a value that depends on the machine, the clock or chance
ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
# Tags, parameters and fields whose values are left out: they depend on the machine, its libraries or the training.
VARYING = {
    "ablation", "device", "epoch", "host", "loss", "mlflow", "model", "mlflow.user", "numpy", "optuna",
    "owner", "platform", "process", "python", "threads", "torch", "torchvision", "val_accuracy", "version",
}  # fmt: skip
ONLY_IN_A_CLONE = {"commit", "mlflow.source.git.commit"}


def plain(value: Any, key: str = "") -> Any:
    """Return a stored value as JSON can hold it: without ids, numbers of training, and what varies."""
    if key in VARYING:
        return ANY
    if isinstance(value, dict):
        kept = {str(name): item for name, item in value.items() if name not in ONLY_IN_A_CLONE}
        return {ID.sub("ID", name): plain(item, name) for name, item in kept.items()}
    if isinstance(value, list | tuple):
        return [plain(item, key) for item in value]
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, str):
        if value.startswith(("{", "[")):
            return plain(json.loads(value), key)
        return ID.sub("ID", value)
    return value


def shape(value: Any) -> Any:
    """Return the keys of nested dictionaries and the types of what they hold."""
    if isinstance(value, dict):
        return {str(name): shape(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [shape(item) for item in value[:1]]
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__


def rows(database: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return list(connection.execute(query, values))


def tracking(store: Path) -> dict[str, Any]:
    """Return the experiment, the runs by name, and the registered model."""
    database = store / "mlflow.db"

    def pairs(table: str, column: str, owner: object) -> Any:
        found = rows(database, f"SELECT key, value FROM {table} WHERE {column} = ? ORDER BY key", owner)
        # Checksums of files differ with the order of the metadata in them.
        left_out = ("mlflow.note.content", "ablation.sha256")
        return plain({key: value for key, value in found if not key.startswith(left_out)})

    runs: dict[str, Any] = {}
    for run, name, status in rows(database, "SELECT run_uuid, name, status FROM runs ORDER BY name"):
        steps: dict[str, list[int]] = {}
        for key, step in rows(database, "SELECT key, step FROM metrics WHERE run_uuid = ? ORDER BY key, step", run):
            steps.setdefault(key, []).append(step)
        runs[name] = {
            "status": status,
            "params": pairs("params", "run_uuid", run),
            "tags": pairs("tags", "run_uuid", run),
            "metrics": steps,
        }
    (experiment,) = rows(database, "SELECT experiment_id FROM experiments WHERE name = 'small'")
    return {
        "experiment": sorted(pairs("experiment_tags", "experiment_id", experiment[0])),
        "runs": runs,
        "data sets": rows(database, "SELECT DISTINCT name, digest, dataset_source_type FROM datasets"),
        "registered": {
            "tags": sorted(key for (key,) in rows(database, "SELECT key FROM registered_model_tags")),
            "aliases": rows(database, "SELECT name, alias, version FROM registered_model_aliases"),
            "version": sorted(key for (key,) in rows(database, "SELECT DISTINCT key FROM model_version_tags")),
        },
    }


def search(store: Path) -> dict[str, Any]:
    """Return the Optuna studies by name, with their trials."""
    database = store / "optuna.db"
    studies: dict[str, Any] = {}
    for number, name in rows(database, "SELECT study_id, study_name FROM studies ORDER BY study_name"):
        attributes = rows(
            database, "SELECT key, value_json FROM study_user_attributes WHERE study_id = ? ORDER BY key", number
        )
        studies[name] = {"attributes": {key: plain(json.loads(value), key) for key, value in attributes}, "trials": []}
        trials = "SELECT trial_id, state FROM trials WHERE study_id = ? ORDER BY number"
        for trial, state in rows(database, trials, number):
            attributes = rows(
                database, "SELECT key, value_json FROM trial_user_attributes WHERE trial_id = ? ORDER BY key", trial
            )
            parameters = rows(
                database,
                "SELECT param_name, param_value, distribution_json FROM trial_params WHERE trial_id = ? ORDER BY 1",
                trial,
            )
            steps = rows(database, "SELECT step FROM trial_intermediate_values WHERE trial_id = ? ORDER BY 1", trial)
            studies[name]["trials"].append({
                "state": state,
                "params": {key: [round(value, 12), plain(kind)] for key, value, kind in parameters},
                "attributes": {key: plain(json.loads(value), key) for key, value in attributes},
                "steps": [step for (step,) in steps],
            })  # fmt: skip
    return studies


def content(path: Path) -> Any:
    """Return what kind of content a file has."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            metadata = {key: plain(value, key) for key, value in sorted((file.metadata() or {}).items())}
            names = sorted(file.keys())
            varies = {"mistakes", "sheet"} & {*names}  # depend on the training, or on zlib
            return [metadata, names if varies else {name: plain(file.get_tensor(name)) for name in names}]
    if path.suffix == ".ckpt":
        data = path.read_bytes()
        assert hashlib.sha256(data[32:]).digest() == data[:32]
        state = torch.load(io.BytesIO(data[32:]), weights_only=True)
        del state["optimizer"]["param_groups"]  # torch's
        return shape(state)
    if path.name in ("about.json", "study.json"):
        return plain(json.loads(path.read_text(encoding="utf-8")))
    return shape(json.loads(path.read_text(encoding="utf-8"))) if path.suffix == ".json" else ANY


def files(store: Path) -> dict[str, Any]:
    """Return the store's files by path, those of runs by the run's name; no locks, databases, plots, models."""
    names = dict(rows(store / "mlflow.db", "SELECT run_uuid, name FROM runs"))
    contents = {}
    for path in sorted(store.rglob("*")):
        parts = [names.get(part, ID.sub("ID", part)) for part in path.relative_to(store).parts]
        is_left_out = "models" in parts or path.name == "lock" or path.suffix in (".lock", ".db", ".png", ".svg")
        if path.is_file() and not is_left_out:
            contents["/".join(parts)] = content(path)
    return contents


def shared(value: Any, tables: dict[str, Any]) -> Any:
    """Return a value whose long tables are replaced by their digests, which `tables` gets: most come several times."""
    if isinstance(value, list):
        return [shared(item, tables) for item in value]
    if not isinstance(value, dict):
        return value
    short = {name: shared(item, tables) for name, item in value.items()}
    if len(short) < 12 or any("/" in name for name in short):
        return short
    digest = hashlib.sha256(json.dumps(short, sort_keys=True).encode()).hexdigest()[:8]
    tables[digest] = short
    return f"table {digest}"


def stored_format(store: Path) -> dict[str, Any]:
    """Return all of it, as it comes out of JSON."""
    tables: dict[str, Any] = {}
    parts = {"tracking": tracking(store), "search": search(store), "files": files(store)}
    return {**shared(json.loads(json.dumps(parts)), tables), "tables": tables}


if __name__ == "__main__":
    json.dump(stored_format(Path(sys.argv[1])), sys.stdout, indent=1, sort_keys=True)
