"""Workers killed at every step and at any moment: what remains is exactly what an undisturbed study leaves."""

import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from safetensors import safe_open

from tests.studies import sampled_rates
from tests.victims import Victims, bytes_of, finish_with_a_kill

TIMES = ("images_per_second", "training_seconds", "inference_seconds")
ONE_ARM = ["--set", 'factors={strategy=["fine_tune_all"]}', "--set", "fixed.truncate_at=block1"]


def state(store: Path, arm: str = "fine_tune_all") -> dict[str, Any]:
    """Return all that a study has left, without what is random (ids) or depends on the clock."""
    database = sqlite3.connect(f"file:{store}/mlflow.db?mode=ro", uri=True)
    names = dict(database.execute("SELECT run_uuid, name FROM runs"))

    def readable(text: str) -> str:
        for run, name in names.items():
            text = text.replace(run, name)
        return text

    storage = optuna.storages.RDBStorage(f"sqlite:///{store}/optuna.db")
    trials = [
        (
            t.number,
            t.state.name,
            t.value,
            t.params,
            t.intermediate_values,
            t.user_attrs["spec"],
            t.user_attrs.get("confirms"),
            t.user_attrs.get("reason"),
        )
        for name in sorted(optuna.get_all_study_names(storage))
        if name in (f"small/{arm}", f"small/{arm}/confirmation")
        for t in optuna.load_study(study_name=name, storage=storage).trials
    ]
    storage.engine.dispose()
    runs = []
    for run, status in database.execute("SELECT run_uuid, status FROM runs ORDER BY name"):

        def rows(columns: str, table: str, of: str = run) -> list[Any]:
            return sorted(database.execute(f"SELECT {columns} FROM {table} WHERE run_uuid = ?", (of,)))

        metrics = rows("key, step, value", "metrics")
        tags = [
            (k, readable(v))
            for k, v in rows("key, value", "tags")
            if k not in ("ablation.key", "mlflow.runName", "mlflow.user", "worker")
            and not k.startswith("ablation.sha256")
        ]
        (inputs,) = database.execute("SELECT count(*) FROM inputs WHERE destination_id = ?", (run,)).fetchone()
        folder = store / "artifacts" / "small" / run / "artifacts"
        files = {
            str(path.relative_to(folder)): content(path)
            for path in folder.rglob("*") if path.is_file() and path.parent.name != "report"  # it says how long it took
        }  # fmt: skip
        if "about.json" in files:
            about = json.loads(files["about.json"])
            files["about.json"] = {**about, "arm_keys": len(about["arm_keys"])}  # which are random
        runs.append({
            "status": status,
            "params": rows("key, value", "params"),
            "steps": [(key, step) for key, step, _ in metrics],
            "metrics": [row for row in metrics if row[0] not in TIMES],
            "tags": tags,
            "inputs": inputs,
            "files": files,
        })  # fmt: skip
    query = (
        "SELECT name, alias, version, run_id FROM registered_model_aliases JOIN model_versions USING (name, version)"
    )
    champions = [(*row[:3], readable(row[3])) for row in database.execute(query)]
    models = database.execute("SELECT name, status FROM logged_models").fetchall()
    versions = database.execute("SELECT name, version FROM model_versions").fetchall()
    database.close()
    left = [path.name for path in (store / "checkpoints").glob("*/*")]
    registry = {"champions": champions, "models": models, "versions": versions}
    return {"trials": trials, "runs": runs, "registry": registry, "left": left}


def content(path: Path) -> Any:
    """Return what a file holds: tensors, a picture's bytes, or text."""
    if path.suffix == ".safetensors":
        return tensors(path)
    return path.read_bytes() if path.suffix == ".png" else path.read_text()


def tensors(path: Path) -> Any:
    """Return the content of a safetensors file, whose metadata come in any order."""
    with safe_open(path, framework="numpy") as file:
        names = sorted(file.keys())
        return sorted((file.metadata() or {}).items()), [(name, file.get_tensor(name).tobytes()) for name in names]


# Three trials: the first finishes, the second is pruned, the third diverges; and one that finishes, and is confirmed.
THREE_ENDS = ["--trials", "3", "--set", "search={lr={choices=[0.01, 1e30]}, sampler='random', pruner='median'}"]
ONE_END = ["--trials", "1", "--set", "confirm.seeds=1"]


def new_places(steps: list[str]) -> list[int]:
    """Return the numbers of the steps that follow another step than the same step did before."""
    places: dict[tuple[str, ...], int] = {}
    for number in range(len(steps)):
        places.setdefault(tuple(steps[max(0, number - 1) : number + 1]), number)
    return list(places.values())


def every_place(steps: list[str]) -> list[int]:
    return list(range(len(steps)))


# The first from the study's creation on, the other from that of its confirmation run.
@pytest.mark.parametrize(("budget", "first_trial"), [(THREE_ENDS, None), (ONE_END, 1)])
@pytest.mark.parametrize("places", [new_places, pytest.param(every_place, marks=pytest.mark.slow)])
def test_killed_at_every_step(
    victims: Victims,
    small_study: Path,
    tmp_path: Path,
    budget: list[str],
    first_trial: int | None,
    places: Callable[[list[str]], list[int]],
) -> None:
    """Killed right before each step of a study, and so right after the one before it; then run again to its end."""
    seed = next(seed for seed in range(99) if sampled_rates(seed, [0.01, 1e30], 3) == [0.01, 0.01, 1e30])
    arguments = [small_study, "--store", "s", "--epochs", "2", "--set", f"seed={seed}", *ONE_ARM, *budget]
    assert victims.run(tmp_path, arguments) == 0, victims.output(tmp_path)
    steps = victims.steps(tmp_path)
    expected = state(tmp_path / "s")
    ends = [row[1] for row in expected["trials"]]
    statuses = [run["status"] for run in expected["runs"]]  # of trials, arm and summary
    if budget == THREE_ENDS:
        assert ends == ["COMPLETE", "PRUNED", "FAIL"]
        assert sorted(statuses) == ["FAILED", "FINISHED", "FINISHED", "FINISHED", "KILLED"]
        assert expected["registry"]["versions"] == []
    else:
        assert ends == ["COMPLETE"] * 2
        assert statuses == ["FINISHED"] * 4
        assert len(expected["registry"]["champions"]) == 1
    assert expected["left"] == []

    begin = steps.index("INSERT INTO studies")
    if first_trial is not None:
        begin = [number for number, step in enumerate(steps) if step == "INSERT INTO trials"][first_trial]
    # MLflow's tables take seconds to make, so that is done once, after a kill in the middle of it.
    store = tmp_path / "s"
    shutil.rmtree(store)
    assert victims.run(tmp_path, arguments, kill_at=steps.index("CREATE TABLE datasets")) == -signal.SIGKILL
    assert victims.run(tmp_path, arguments, kill_at=begin) == -signal.SIGKILL
    shutil.copytree(store, tmp_path / "template")
    assert victims.run(tmp_path, arguments) == 0
    assert state(store) == expected
    steps = victims.steps(tmp_path)
    statements = {"INSERT INTO runs", "INSERT INTO metrics", "UPDATE trials SET"}
    assert statements | {"fsync", "replace", "_delete_folder"} <= set(steps)

    shutil.rmtree(store)
    (tmp_path / "template").rename(store)

    def check(left: Path) -> None:
        assert state(left) == expected

    check_ends_after_kills(victims, tmp_path, arguments, places(steps), check)


def check_ends_after_kills(
    victims: Victims,
    folder: Path,
    arguments: Sequence[object],
    numbers: Sequence[int],
    check: Callable[[Path], None],
) -> None:
    """Kill a study right before each of some steps; run what is left to its end, and check the store.

    A kill that leaves what one before it left, byte for byte, is not tested again: a new process knows nothing else.

    Args:
        victims: run the study.
        folder: with the store `s` from which the study begins.
        arguments: of the study.
        numbers: of the steps, ascending.
        check: is called with each store that has ended.
    """
    killed: dict[bytes, tuple[int, Path]] = {}
    for number, copy in zip(numbers, victims.copies_before(numbers, folder, arguments), strict=True):
        killed.setdefault(digest(copy), (number, copy))
    shutil.rmtree(folder / "s")
    for number, copy in killed.values():
        print(f"killed before step {number}")
        copy.rename(folder / "s")
        assert victims.run(folder, arguments) == 0, victims.output(folder)
        check(folder / "s")
        shutil.rmtree(folder / "s")


def digest(folder: Path) -> bytes:
    """Return a hash of all that a folder holds: names and contents."""
    return hashlib.sha256(repr(sorted(bytes_of(folder).items())).encode()).digest()


def test_killed_while_features_are_stored(victims: Victims, small_study: Path, tmp_path: Path) -> None:
    """What is left of them is made again, and the study is one that was not disturbed."""
    arguments = [small_study, "--store", "s", "--epochs", "1", "--trials", "1", "--set", "fixed.truncate_at=block1"]
    arguments += ["--set", 'factors={strategy=["feature_extraction"]}', "--set", "search={lr={low=0.001, high=0.03}}"]
    store, template = tmp_path / "s", tmp_path / "template"
    assert victims.run(tmp_path, arguments, kill_at="make_training") == -signal.SIGKILL
    store.rename(template)

    def start_over() -> None:
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(template, store)

    def features() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (store / "features").iterdir()}

    start_over()
    assert victims.run(tmp_path, arguments) == 0, victims.output(tmp_path)
    expected, stored = state(store, "feature_extraction"), features()
    assert len(stored) == 5  # of training and validation images, each with its description; and the lock
    steps = victims.steps(tmp_path)
    begun = steps.index("make_training")
    while_storing = range(begun + 1, steps.index("evaluate") + 1)
    assert [steps[number] for number in while_storing].count("replace") == 4

    def check(left: Path) -> None:
        assert state(left, "feature_extraction") == expected
        assert features() == stored

    start_over()
    check_ends_after_kills(victims, tmp_path, arguments, while_storing, check)


@pytest.mark.parametrize("wanted", [8, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_random_moments(victims: Victims, small_study: Path, tmp_path: Path, wanted: int) -> None:
    """Four workers on three trials; so many times one of them is killed and replaced."""
    arguments = [small_study, "--store", "s", "--epochs", "30", "--trials", "3", *ONE_ARM]
    arguments += ["--set", "search={lr={low=0.001, high=0.03}, sampler='random'}"]
    store, template = tmp_path / "s", tmp_path / "template"
    assert victims.run(tmp_path, arguments) == 0, victims.output(tmp_path)
    expected = state(store)
    assert [len(trial[4]) for trial in expected["trials"]] == [30] * 3
    begin = victims.steps(tmp_path).index("INSERT INTO trials")
    shutil.rmtree(store)
    assert victims.run(tmp_path, arguments, kill_at=begin) == -signal.SIGKILL
    store.rename(template)

    moments = random.Random(0)
    kills = rounds = 0
    while kills < wanted:
        rounds += 1
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(template, store)
        workers = [victims.start(tmp_path, arguments) for _ in range(4)]
        while kills < wanted:
            time.sleep(moments.uniform(0.2, 1.2))
            if any(victims.has_ended(pid) for pid in workers):
                break  # nothing is left to do
            victim = moments.choice(workers)
            os.kill(victim, signal.SIGKILL)
            victims.wait(victim)
            workers[workers.index(victim)] = victims.start(tmp_path, arguments)
            kills += 1
        victims.check_ends(workers, tmp_path)
        assert state(store) == expected
    assert rounds < wanted


def test_four_workers_make_exactly_the_budget(victims: Victims, small_study: Path, tmp_path: Path) -> None:
    """On SQLite: 16 trials, with one worker killed in the middle and replaced."""
    arguments = [small_study, "--store", "s", "--epochs", "2", "--trials", "4"]
    finish_with_a_kill(victims, tmp_path, arguments, workers=4, environment={})
    store = tmp_path / "s"
    for arm in (
        "block1,feature_extraction",
        "block1,fine_tune_all",
        "conv2_1,feature_extraction",
        "conv2_1,fine_tune_all",
    ):
        found = state(store, arm)
        assert [(trial[0], trial[1], len(trial[4])) for trial in found["trials"]] == [
            (number, "COMPLETE", 2) for number in range(4)
        ]
    runs = [run for run in found["runs"] if ("kind", "trial") in run["tags"]]
    assert len(runs) == len({(dict(run["tags"])["arm"], dict(run["tags"])["trial"]) for run in runs}) == 16
    assert {run["status"] for run in found["runs"]} == {"FINISHED"}
    assert all(run["steps"].count(("val_accuracy", step)) == 1 for run in runs for step in (1, 2))
    assert "locked" not in victims.output(tmp_path)


@pytest.mark.parametrize("start", [*range(3), *(pytest.param(n, marks=pytest.mark.slow) for n in range(3, 8))])
def test_fresh_stores_are_made_by_four_at_once(victims: Victims, small_study: Path, tmp_path: Path, start: int) -> None:
    workers = [victims.start(tmp_path, [small_study, "--store", "s"], only_open=True) for _ in range(4)]
    victims.check_ends(workers, tmp_path)
    assert len(optuna.get_all_study_names(f"sqlite:///{tmp_path}/s/optuna.db")) == 4
