"""Ray: what becomes of workers on a real cluster on loopback, of which a node is lost, and what is refused."""

import dataclasses
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from ablation.base.errors import InputError
from ablation.launching.request import Launch
from tests.launching.launches import WorkerLaunch, check_equals_undisturbed, has_checkpoint, launch_of, launch_study
from tests.launching.slurm_cluster import wait_for
from tests.studies import REPOSITORY, Command

ray = pytest.importorskip("ray", reason="needs ablation[ray]")
from ray.cluster_utils import Cluster  # noqa: E402

from ablation.launching import ray as engine  # noqa: E402 - needs ray

NODE: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs and two nodes with one each, which all listen on loopback alone."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in {
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_health_check_period_ms": "500",  # a dead node is noticed within two seconds
            "RAY_health_check_failure_threshold": "3",
            "RAY_health_check_initial_delay_ms": "500",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",  # Ray would set it to an actor's CPUs, and with more threads sums differ
        }.items():
            patch.setenv(variable, value)
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
        cluster.add_node(**NODE)
        cluster.add_node(**NODE)
        yield cluster
        cluster.shutdown()  # type: ignore[no-untyped-call]


def states(launch: Launch) -> dict[str, str]:
    return {worker.id.rpartition("-")[2]: worker.state for worker in engine.workers(launch.label, launch.options)}


def steps(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def test_workers_are_placed_listed_and_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    """Three workers on two CPUs: two run and save when they are cancelled, the third never starts."""
    log = tmp_path / "log"
    launch = launch_of(tmp_path, log, 1000, workers=3, address=cluster.address)
    assert engine.submit(launch) == f"3 workers submitted to Ray as {launch.label}-N"
    wait_for(lambda: steps(log).count("start") == 2, 60)
    wait_for(lambda: sorted(states(launch).values()) == ["running", "running", "waiting"], 60)
    assert engine.workers(f"{launch.label}0", launch.options) == []
    engine.cancel(launch.label, launch.options)
    wait_for(lambda: states(launch) == {}, 60)
    assert steps(log).count("saved") == 2
    assert steps(log).count("start") == 2


def test_a_node_that_cannot_run_the_study_is_named(cluster: Cluster, tmp_path: Path) -> None:
    launch = dataclasses.replace(launch_of(tmp_path, address=cluster.address), working_folder=tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"^node \S+: \S+/elsewhere: No such file or directory$"):
        engine.submit(launch)
    fields = {field.name: getattr(launch, field.name) for field in dataclasses.fields(launch)}
    with pytest.raises(InputError, match=r"^node \S+: .*cuts\.toml"):
        engine.submit(Launch(**fields | {"working_folder": REPOSITORY, "arguments": ()}))
    assert states(launch) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"num-cpu": "1"}, "num-cpu is unknown on ray; did you mean 'num-cpus'?"),
     ({"num-cpus": "many"}, "num-cpus must be a number from 0, got 'many'"),
     ({"num-cpus": "nan"}, "num-cpus must be a number from 0, got 'nan'"),
     ({"num-gpus": "-1"}, "num-gpus must be a number from 0"), ({"memory": "inf"}, "memory must be a number from 0"),
     ({"accelerator-type": ""}, "accelerator-type needs a value on ray"),
     ({"address": "127.0.0.1:1"}, "^ray: 127.0.0.1:1 cannot be reached \\(Connection refused\\)")],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, options: dict[str, str], message: str) -> None:
    launch = WorkerLaunch("cuts", "label", tmp_path / "cuts.toml", (), 1, 10, options, tmp_path, tmp_path)
    with pytest.raises(InputError, match=message):
        engine.submit(launch)
    if "address" not in options:  # which is looked for when it is needed
        with pytest.raises(InputError, match=message):
            engine.compose(launch)


@pytest.mark.parametrize(
    ("variable", "options", "address"),
    [(None, {}, "auto"), ("", {}, "auto"), ("h:1", {"address": ""}, "h:1"), ("h:1", {"address": "auto"}, "h:1"),
     ("local", {"address": "ray://h"}, "ray://h"), ("local", {}, None), ("local", {"address": "auto"}, None),
     ("h:1", {"address": "local"}, None)],
)  # fmt: skip
def test_the_cluster_is_one_that_stays(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, options: dict[str, str], address: str | None
) -> None:
    """With the address local, Ray would start a cluster that ends with the command."""
    taken = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    monkeypatch.setattr(engine.socket, "create_connection", lambda *_: io.BytesIO())
    monkeypatch.setattr(ray, "init", lambda address, **_: taken.append(address))
    refused = pytest.raises(InputError, match="^ray: the address local is") if address is None else nullcontext()
    with refused, engine._cluster(options):
        pass
    assert taken == [address][: address is not None]


def test_a_cluster_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 1.0\n    Python: 3.9\n")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(InputError, match="^ray: Version mismatch: The cluster was started with: Ray: 1.0 Python: 3.9$"):
        engine.workers("ablation-cuts-0", {"address": "auto"})


def test_a_store_in_the_copy_that_ray_makes_for_a_job_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "runtime_resources/working_dir_files/_ray_pkg_0/mlruns"
    launch = WorkerLaunch("cuts", "label", tmp_path / "cuts.toml", (), 1, 10, {}, folder / "launch", tmp_path)
    with pytest.raises(InputError, match=f"^--store: {folder} is in the copy of a folder that Ray deletes"):
        engine.submit(launch)


def test_what_is_printed(tmp_path: Path) -> None:
    options = {"num-gpus": "0.5"}
    arguments = ("--epochs", "1")
    launch = Launch("cuts", "ablation-cuts-0", Path("cuts.toml"), arguments, 2, 10, options, tmp_path, Path("/a b"))
    assert engine.compose(launch).splitlines() == [
        "# 2 detached actors ablation-cuts-0-N in the namespace ablation, each with num_gpus=0.5:",
        "cd '/a b'",
        f"{sys.executable} -m ablation.study cuts.toml --epochs 1",
    ]


@pytest.mark.slow
def test_a_worker_that_dies_starts_again_until_it_dies_too_often(cluster: Cluster, tmp_path: Path) -> None:
    """The worker crashes five times in a row: `PAUSES` is no number."""
    launch = launch_of(tmp_path, tmp_path / "log", 8, 1, "x", address=cluster.address)
    engine.submit(launch)
    wait_for(lambda: states(launch) == {}, 120)
    resumed = launch_of(tmp_path, tmp_path / "pauses", 2, 0.1, 3, address=cluster.address)
    engine.submit(resumed)
    wait_for(lambda: states(resumed) == {}, 120)
    assert steps(tmp_path / "pauses").count("start") == 4


@pytest.mark.slow
def test_a_killed_actor_takes_its_worker_with_it_and_another_resumes(cluster: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    launch = launch_of(tmp_path, log, 40, address=cluster.address)
    engine.submit(launch)
    wait_for(lambda: steps(log).count("epoch") > 3, 60)
    (child,) = (process for process in psutil.process_iter() if str(log) in process.cmdline())
    os.kill(child.ppid(), signal.SIGKILL)
    wait_for(lambda: states(launch) == {}, 120)
    assert (steps(log).count("start"), steps(log).count("epoch")) == (2, 40)


@pytest.mark.slow
def test_a_study_that_loses_a_node_equals_an_undisturbed_one(
    cluster: Cluster, command: Command, small_study: Path, tmp_path: Path
) -> None:
    """The nodes with room for a worker are lost, and the study waits for another one."""
    store = tmp_path / "on_ray"
    lost = cluster.add_node(**NODE | {"num_cpus": 8})
    options = {"address": cluster.address}
    needs = ("--engine-option", f"address={cluster.address}", "--engine-option", "num-cpus=4")
    label = launch_study(small_study, store, "ray", *needs)
    wait_for(lambda: has_checkpoint(store), 90)
    cluster.remove_node(lost, allow_graceful=False)
    wait_for(lambda: [worker.state for worker in engine.workers(label, options)] == ["waiting"] * 2, 60)
    other = cluster.add_node(**NODE | {"num_cpus": 8})
    wait_for(lambda: engine.workers(label, options) == [], 180)
    cluster.remove_node(other)
    check_equals_undisturbed(command, small_study, store)


def kill_actors(workers: list[psutil.Process]) -> None:
    for worker in workers:
        os.kill(worker.ppid(), signal.SIGKILL)


def kill_workers(workers: list[psutil.Process]) -> None:
    for worker in workers:
        worker.kill()


def stop_workers(workers: list[psutil.Process]) -> None:
    for worker in workers:
        worker.suspend()
    time.sleep(5)
    for worker in workers:
        worker.resume()


@pytest.mark.slow
@pytest.mark.parametrize("disturb", [kill_actors, kill_workers, stop_workers])
def test_a_disturbed_study_equals_an_undisturbed_one(
    cluster: Cluster, command: Command, small_study: Path, tmp_path: Path,
    disturb: Callable[[list[psutil.Process]], None],
) -> None:  # fmt: skip
    store, options = tmp_path / "on_ray", {"address": cluster.address}
    label = launch_study(small_study, store, "ray", "--engine-option", f"address={cluster.address}")
    wait_for(lambda: has_checkpoint(store), 90)
    workers = [process for process in psutil.process_iter() if str(store) in process.cmdline()]
    assert len(workers) == 2
    disturb(workers)
    wait_for(lambda: engine.workers(label, options) == [], 180)
    assert all(worker.is_running() is False for worker in workers)
    check_equals_undisturbed(command, small_study, store)
