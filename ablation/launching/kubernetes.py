"""Kubernetes: workers are the indices of a Job, made from docker/kubernetes/base/job.yaml and applied by `kubectl`."""

import json
import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ablation.base.errors import InputError
from ablation.base.text import plural
from ablation.launching.programs import call
from ablation.launching.request import EngineWorker, Launch, refuse_unknown

# In a wheel, the template is beside this file.
PLACES = (Path(__file__).with_name("job.yaml"), Path(__file__).parents[2] / "docker/kubernetes/base/job.yaml")
OPTIONS = ("image", "namespace", "context", "gpus", "cpu", "memory", "queue", "priority-class")
# What `kubectl` or the cluster would refuse, and --print would not.
FORMS = {
    "namespace": (r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", "small letters, digits and -"),
    "gpus": (r"\d+", "a whole number"),
    "cpu": (r"\d+(\.\d+)?|\d+m", "such as 4 or 500m"),
    "memory": (r"\d+(\.\d+)?([kMGTPE]|[KMGTPE]i)?", "such as 16Gi"),
}
NEEDED = ("secret/ablation-addresses", "pvc/ablation-images", "pvc/ablation-store")
INSTANCE = "app.kubernetes.io/instance"


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes text of several lines, such as a study file, line by line."""


def _represent_text(dumper: Any, text: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def compose(launch: Launch) -> str:
    """Return the ConfigMap with the study and the Job, as YAML."""
    return _manifests(launch, is_suspended=True)


def _manifests(launch: Launch, *, is_suspended: bool) -> str:
    _check(launch.options)
    if "image" not in launch.options:
        raise InputError("--engine-option: image=REGISTRY/ablation:TAG is needed: where the cluster gets the image")
    name = object_name(launch.label)
    configuration = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "ablation", INSTANCE: name}},
        "data": {f"{launch.study_file.stem}.toml": launch.study_file.read_text(encoding="utf-8-sig")},
    }
    job = _job(launch, name)
    if "queue" in launch.options:
        job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = launch.options["queue"]
        job["spec"]["suspend"] = is_suspended
    return str(yaml.dump_all([configuration, job], Dumper=_Dumper, sort_keys=False, width=120))


def _job(launch: Launch, name: str) -> dict[str, Any]:
    template = next(place for place in PLACES if place.exists())
    job: dict[str, Any] = yaml.safe_load(template.read_text(encoding="utf-8"))
    options, pod = launch.options, job["spec"]["template"]["spec"]
    job["metadata"]["name"] = name
    for labels in (job["metadata"]["labels"], job["spec"]["template"]["metadata"]["labels"]):
        labels[INSTANCE] = name
    job["spec"]["completions"] = job["spec"]["parallelism"] = launch.workers or 1
    pod["terminationGracePeriodSeconds"] = math.ceil(launch.grace) + 30
    (container,) = pod["containers"]
    container["image"] = options["image"]
    container["args"] = [f"/study/{launch.study_file.stem}.toml", *launch.arguments]
    pod["volumes"][0]["configMap"]["name"] = name
    resources = container["resources"]
    if "cpu" in options:
        resources["requests"]["cpu"] = options["cpu"]
    if "memory" in options:
        resources["requests"]["memory"] = resources["limits"]["memory"] = options["memory"]
    if (gpus := options.get("gpus", "1")) == "0":
        del resources["limits"]["nvidia.com/gpu"]
    else:
        resources["limits"]["nvidia.com/gpu"] = gpus
    if "priority-class" in options:
        pod["priorityClassName"] = options["priority-class"]
    return job


def object_name(label: str) -> str:
    """Return a launch's label as a name that Kubernetes takes, short enough for the host names of its pods."""
    before, _, digest = label.rpartition("-")
    return f"{re.sub('[^a-z0-9]+', '-', before.lower())[:40].strip('-')}-{digest}"


def _check(options: Mapping[str, str]) -> None:
    refuse_unknown(options, OPTIONS, "kubernetes")
    for name, value in options.items():
        if not value:
            raise InputError(f"--engine-option: {name} needs a value on kubernetes")
        pattern, form = FORMS.get(name, ("(?s:.*)", ""))
        if not re.fullmatch(pattern, value, re.ASCII):
            raise InputError(f"--engine-option: {name} must be {form}, got {value!r}")


def _kubectl(options: Mapping[str, str], *arguments: str, text: str = "") -> str:
    _check(options)
    where = [f"--{name}={options[name]}" for name in ("context", "namespace") if name in options]
    return call("kubectl", *where, *arguments, text=text)


def submit(launch: Launch) -> str:
    """Apply the objects, once the server has agreed to all of them and the Secret and the claims were found.

    A Job that runs gets as many workers as are asked for; those above that number save and end.

    Raises:
        InputError: an object is missing or refused, or the Job would start no worker.
    """
    compose(launch)  # refuses options
    name, count = object_name(launch.label), launch.workers or 1
    _kubectl(launch.options, "get", *NEEDED, "--output=name")
    job = json.loads(_kubectl(launch.options, "get", "job", name, "--ignore-not-found", "--output=json") or "{}")
    if "deletionTimestamp" in job.get("metadata", {}):
        raise InputError(f"kubernetes: the Job {name} is being deleted: launch again in a moment")
    if has_ended(job):
        raise InputError(f"kubernetes: the Job {name} has ended: --cancel deletes it; then launch again")
    specification = job.get("spec", {})
    before = specification.get("completions")
    if before is not None and launch.workers in (None, before):
        has = f"has {plural(before, 'worker')} already"
        raise InputError(f"kubernetes: the Job {name} {has}: --workers N changes their number, --cancel ends them")
    # Kueue resumes a new Job when it admits it; to suspend it again would end its pods.
    text = _manifests(launch, is_suspended=specification.get("suspend", True))
    _kubectl(launch.options, "apply", "--dry-run=server", "--filename=-", text=text)
    _kubectl(launch.options, "apply", "--filename=-", text=text)
    where = output(launch.label, launch.folder, launch.options)
    if before is None:
        return f"{plural(count, 'worker')} submitted to Kubernetes as Job {name}; {where}"
    ends = f", {before - count} of which save and end" if count < before else ""
    return f"The Job {name} now has {plural(count, 'worker')} instead of {before}{ends}; {where}"


def has_ended(job: Mapping[str, Any]) -> bool:
    """Return whether a Job has ended, and will start nothing; False for an empty mapping, which is none."""
    conditions = job.get("status", {}).get("conditions", [])
    return any(each["type"] in ("Complete", "Failed") and each["status"] == "True" for each in conditions)


def cancel(label: str, options: Mapping[str, str]) -> list[str]:
    """Delete the Job, its pods, which are given their time to save, and the ConfigMap; return Job and ConfigMap."""
    selector = f"--selector={INSTANCE}={object_name(label)}"
    said = _kubectl(options, "delete", "job,configmap", selector, "--wait=false", "--output=name")
    return [line for line in said.splitlines() if "/" in line]  # not "No resources found"


def output(label: str, folder: Path, options: Mapping[str, str]) -> str:
    """Return the command that shows what the pods wrote; it works until the Job is deleted."""
    del folder
    place = "".join(f" --{key}={shlex.quote(options[key])}" for key in ("context", "namespace") if key in options)
    return f"output: kubectl{place} logs job/{object_name(label)}"


def workers(label: str, options: Mapping[str, str]) -> list[EngineWorker]:
    """Return the pods that run or wait."""
    text = _kubectl(options, "get", "pods", f"--selector={INSTANCE}={object_name(label)}", "--output=json")
    pods = [pod for pod in json.loads(text)["items"] if pod["status"]["phase"] in ("Pending", "Running")]
    return [_worker(pod) for pod in pods]


def _worker(pod: dict[str, Any]) -> EngineWorker:
    metadata, status = pod["metadata"], pod["status"]
    reasons = [condition["reason"] for condition in status.get("conditions", []) if condition.get("reason")]
    state = "terminating" if "deletionTimestamp" in metadata else status["phase"].lower()
    shown = f"{state} ({reasons[0]})" if state == "pending" and reasons else state
    since = status.get("startTime", metadata["creationTimestamp"])
    return EngineWorker(metadata["name"], shown, pod["spec"].get("nodeName", "-"), since)
