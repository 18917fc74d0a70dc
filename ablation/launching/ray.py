"""Ray: workers are detached actors. Each runs a worker as a child process, on whichever node has what it needs."""

import contextlib
import logging
import math
import os
import re
import shlex
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ablation.base.command_line import JOB_VARIABLE
from ablation.base.errors import InputError
from ablation.base.text import first_line, plural
from ablation.launching.ray_actor import WorkerActor, why_not
from ablation.launching.request import EngineWorker, Launch, refuse_unknown

AMOUNTS = ("num-cpus", "num-gpus", "memory")
OPTIONS = ("address", *AMOUNTS, "accelerator-type")
NAMESPACE = "ablation"
PASSED_ON = ("ABLATION_", "MLFLOW_", "OPTUNA_", "PG")  # what the variables of the submitting process begin with
JOB_COPY = "working_dir_files"  # the folder in which Ray keeps what `ray job submit --working-dir` has copied
ANSWER_SECONDS = 5  # an actor that does not answer waits for its node


def compose(launch: Launch) -> str:
    """Return what each actor is and runs.

    Raises:
        InputError: an option is unknown, or has no value that there can be.
    """
    needs = ", ".join(f"{name}={value}" for name, value in _needs(launch.options).items())
    return (
        f"# {plural(launch.workers or 1, 'detached actor')} {launch.label}-N in the namespace {NAMESPACE}, "
        f"each with {needs or 'a CPU and, where the cluster has any, a GPU'}:\n"
        f"cd {shlex.quote(str(launch.working_folder))}\n{shlex.join(launch.command)}"
    )


def _needs(options: Mapping[str, str]) -> dict[str, Any]:
    """Return the options of Ray's actors, by the names that Ray has for them."""
    refuse_unknown(options, OPTIONS, "ray")
    needs: dict[str, Any] = {}
    for name, text in options.items():
        if name in AMOUNTS:
            try:
                amount = int(text) if text.isdecimal() else float(text)
            except ValueError:
                amount = math.nan
            if not 0 <= amount < math.inf:
                raise InputError(f"--engine-option: {name} must be a number from 0, got {text!r}")
            needs[name.replace("-", "_")] = amount
        elif name == "accelerator-type":
            if not text:
                raise InputError("--engine-option: accelerator-type needs a value on ray")
            needs["accelerator_type"] = text
    return needs


def submit(launch: Launch) -> str:
    """Start the actors once every node that could hold one has checked the study.

    Raises:
        InputError: there is no cluster, or a node cannot run the study; names the node and what it lacks.
    """
    needs = _needs(launch.options)
    if JOB_COPY in launch.folder.parts:
        raise InputError(
            f"--store: {launch.folder.parent} is in the copy of a folder that Ray deletes after a job; name one outside"
        )
    with _cluster(launch.options):
        if "num_gpus" not in needs:
            resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
            needs["num_gpus"] = 1 if resources.get("GPU") else 0
        needs.setdefault("num_cpus", 1)
        variables = {name: value for name, value in os.environ.items() if name.startswith(PASSED_ON)}
        nodes = _check_nodes(launch, needs, variables)
        taken = set(ray.util.list_named_actors())
        free = (name for number in range(1, 10**6) if (name := f"{launch.label}-{number}") not in taken)
        for name, _ in zip(free, range(launch.workers or 1), strict=False):
            options = {**needs, "name": name, "lifetime": "detached", "max_restarts": -1}
            ray.remote(WorkerActor).options(**options).remote(
                launch.command, launch.working_folder, {**variables, JOB_VARIABLE: name}
            )
    wait = "" if nodes else "; they wait, because no node of the cluster has what they need"
    return f"{plural(launch.workers or 1, 'worker')} submitted to Ray as {launch.label}-N{wait}"


def _check_nodes(launch: Launch, needs: Mapping[str, Any], variables: Mapping[str, str]) -> int:
    """Let each node that could hold a worker check the study; return how many there are."""
    checks = []
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        if node["Alive"] and _has(node["Resources"], needs):
            on_node = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            check = ray.remote(why_not).options(scheduling_strategy=on_node, num_cpus=0, max_retries=0)
            answer = check.remote(launch.command, launch.working_folder, variables)
            checks.append((node["NodeManagerHostname"], answer))
    for host, answer in checks:
        if error := ray.get(answer):
            raise InputError(f"node {host}: {error}")
    return len(checks)


def _has(resources: Mapping[str, float], needs: Mapping[str, Any]) -> bool:
    """Return whether a node with these resources could hold an actor."""
    amounts = {"CPU": needs["num_cpus"], "GPU": needs["num_gpus"], "memory": needs.get("memory", 0)}
    kind = needs.get("accelerator_type")
    return (kind is None or f"accelerator_type:{kind}" in resources) and all(
        resources.get(name, 0) >= amount for name, amount in amounts.items()
    )


def cancel(label: str, options: Mapping[str, str]) -> list[str]:
    """End the workers that wait for a node, then let the others save and end."""
    with _cluster(options):
        actors = _actors(label)
        for actor, answer in actors.values():
            if answer is None:
                ray.kill(actor)
        calls = [actor.cancel.remote() for actor, answer in actors.values() if answer]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=ANSWER_SECONDS)
    return []


def output(label: str, folder: Path, options: Mapping[str, str]) -> str:
    """Return the commands that show what actors wrote that have ended; they need `ray[default]`."""
    del folder, options
    return f"output: ray list actors --filter state=DEAD (those named {label}-N), then ray logs actor --id ID"


def workers(label: str, options: Mapping[str, str]) -> list[EngineWorker]:
    """Return the actors of the workers, running or waiting for a node."""
    with _cluster(options):
        return [
            EngineWorker(name, "running", *answer) if answer else EngineWorker(name, "waiting", "-", "-")
            for name, (_, answer) in _actors(label).items()
        ]


def _actors(label: str) -> dict[str, tuple[Any, tuple[str, str] | None]]:
    """Return a launch's actors by name, with what each says of itself: nothing if it has not started."""
    found = {}
    for name in sorted(ray.util.list_named_actors()):
        if name.rpartition("-")[0] == label:
            with contextlib.suppress(ValueError):  # it has just ended
                found[name] = ray.get_actor(name)
    calls: dict[str, Any] = {name: actor.describe.remote() for name, actor in found.items()}
    if not calls:
        return {}
    ray.wait(list(calls.values()), num_returns=len(calls), timeout=ANSWER_SECONDS)
    answers: dict[str, tuple[Any, tuple[str, str] | None]] = {}
    for name, call in calls.items():
        with contextlib.suppress(ray.exceptions.ActorDiedError):
            try:
                answer: Any = ray.get(call, timeout=0)
            except (ray.exceptions.GetTimeoutError, ray.exceptions.ActorUnavailableError):
                answer = None
            answers[name] = (found[name], answer)
    return answers


@contextlib.contextmanager
def _cluster(options: Mapping[str, str]) -> Iterator[None]:
    """Connect this process to the cluster, for the time of this context."""
    address = options.get("address") or "auto"
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or "auto"
    if address == "local":
        raise InputError("ray: the address local is a cluster that would end with this command; name one that stays")
    if found := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address):  # Ray itself would try for minutes
        try:
            socket.create_connection((found[1], int(found[2])), ANSWER_SECONDS).close()
        except OSError as error:
            raise InputError(f"ray: {address} cannot be reached ({error.strerror or error})") from None
    try:
        ray.init(address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        yield
    except InputError:
        raise
    except ConnectionError:
        raise InputError(
            "ray: no cluster was found here; start one (ray start --head), or name one: "
            "--engine-option address=HOST:6379"
        ) from None
    except RuntimeError as error:  # such as another version of Ray or Python, on several lines
        raise InputError(f"ray: {' '.join(str(error).split())}") from None
    except (ValueError, ray.exceptions.RayError) as error:
        raise InputError(f"ray: {first_line(error)}") from None
    finally:
        ray.shutdown()
