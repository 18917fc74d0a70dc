"""Kubernetes: the objects, validated against the schemas of three versions; no cluster is asked."""

import dataclasses
import json
import shutil
import subprocess
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ablation.base.errors import InputError
from ablation.launching import kubernetes
from ablation.launching.request import EngineWorker, Launch
from ablation.spec.files import study_files
from tests.studies import REPOSITORY

VERSIONS = ("1.32", "1.34", "1.36")
KUSTOMIZE = REPOSITORY / "docker" / "kubernetes"


def launch_of(**options: str) -> Launch:
    return Launch(
        study="vgg_truncation", label="ablation-vgg_truncation-0a1b2c3d", study_file=study_files()["vgg_truncation"],
        arguments=("--grace", "100", "--set", "seed=3"), workers=6, grace=100,
        options={name.replace("_", "-"): value for name, value in options.items()},
        folder=Path("launch"), working_folder=Path.cwd(),
    )  # fmt: skip


def composed(**options: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(kubernetes.compose(launch_of(image="r.example.org/ablation:1", **options))))


def validate(objects: list[dict[str, Any]]) -> None:
    assert objects
    for version in VERSIONS:
        for manifest in objects:
            kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize(
    "options", [{}, {"gpus": "0", "cpu": "2", "memory": "8Gi"}, {"queue": "team", "priority_class": "low"}]
)
def test_what_is_submitted_is_valid(options: dict[str, str]) -> None:
    validate(composed(**options))


def test_the_check_is_strict() -> None:
    configuration, job = composed()
    del configuration
    job["spec"]["podFailurePolicy"]["rules"][0]["onPodConditions"][0].pop("status")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[0], strict=True)
    (_, job) = composed()
    job["spec"]["no_such_key"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[0], strict=True)


def test_a_study_file_of_notepad_is_written_line_by_line(tmp_path: Path) -> None:
    """Behind a byte order mark, YAML would put it into one line that nobody can read."""
    file = tmp_path / "mine.toml"
    file.write_text('question = "?"\ntrials_per_arm = 1\n', encoding="utf-8-sig")
    launch = dataclasses.replace(launch_of(image="r.example.org/ablation:1"), study_file=file)
    assert '  mine.toml: |\n    question = "?"\n    trials_per_arm = 1\n' in kubernetes.compose(launch)


def test_the_job_has_what_was_asked_for() -> None:
    configuration, job = composed(gpus="2", memory="8Gi", queue="team")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert job["metadata"]["name"] == configuration["metadata"]["name"] == "ablation-vgg-truncation-0a1b2c3d"
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (6, 6)
    assert pod["terminationGracePeriodSeconds"] == 130  # the grace period and half a minute
    assert container["image"] == "r.example.org/ablation:1"
    assert container["args"] == ["/study/vgg_truncation.toml", "--grace", "100", "--set", "seed=3"]
    assert container["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": "2"}
    assert configuration["data"]["vgg_truncation.toml"] == study_files()["vgg_truncation"].read_text()
    assert pod["volumes"][0] == {"name": "study", "configMap": {"name": "ablation-vgg-truncation-0a1b2c3d"}}
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert job["spec"]["suspend"] is True
    assert "suspend" not in composed()[1]["spec"]
    assert (
        "nvidia.com/gpu"
        not in composed(gpus="0")[1]["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    )


@pytest.mark.parametrize(
    "options", [{"cpu": "0.5", "memory": "1.5G"}, {"cpu": "500m", "memory": "512Mi"}, {"memory": "16000000000"}]
)
def test_quantities_of_kubernetes_are_accepted(options: dict[str, str]) -> None:
    validate(composed(namespace="team-1", gpus="0", **options))


def test_exit_statuses_mean_what_workers_mean() -> None:
    rules = composed()[1]["spec"]["podFailurePolicy"]["rules"]
    by_status = {tuple(rule["onExitCodes"]["values"]): rule["action"] for rule in rules if "onExitCodes" in rule}
    assert by_status == {(75,): "Ignore", (2,): "FailJob"}


def test_long_names_fit_into_the_names_of_pods() -> None:
    name = kubernetes.object_name(f"ablation-{'A_long.name' * 9}-0a1b2c3d")
    assert len(f"{name}-99999") <= 63
    assert name.startswith("ablation-a-long-name")
    assert name.endswith("-0a1b2c3d")


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "image=REGISTRY/ablation:TAG is needed"),
     ({"image": "x", "quene": "a"}, "quene is unknown on kubernetes; did you mean 'queue'"),
     ({"image": ""}, "image needs a value"), ({"gpus": "two"}, "gpus must be a whole number, got 'two'"),
     ({"cpu": "-1"}, "cpu must be such as 4 or 500m, got '-1'"), ({"memory": "16 GB"}, "memory must be such as 16Gi"),
     ({"namespace": "My_NS"}, "namespace must be small letters, digits and -, got 'My_NS'")],
)  # fmt: skip
def test_what_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kubernetes.compose(launch_of(**options))


class Kubectl:
    """Stands for `kubectl`: keeps what it was called with, and answers or refuses."""

    def __init__(self, answer: str = "", refused: str = "nothing"):
        self.answer, self.refused = answer, refused
        self.calls: list[str] = []

    def __call__(self, *command: str, text: str = "") -> str:
        self.calls.append(" ".join(command))
        if self.refused in command:
            raise InputError("kubectl: refused")
        return self.answer


def test_everything_is_checked_before_anything_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = launch_of(image="x", namespace="team")
    for refused in ("get", "--dry-run=server"):
        kubectl = Kubectl(refused=refused)
        monkeypatch.setattr(kubernetes, "call", kubectl)
        with pytest.raises(InputError, match="refused"):
            kubernetes.submit(launch)
        assert not any("apply --filename" in call for call in kubectl.calls)
    kubectl = Kubectl()
    monkeypatch.setattr(kubernetes, "call", kubectl)
    assert "6 workers submitted to Kubernetes as Job ablation-vgg-truncation-0a1b2c3d" in kubernetes.submit(launch)
    assert kubectl.calls[-1] == "kubectl --namespace=team apply --filename=-"


@pytest.mark.parametrize(
    ("completions", "condition", "message"),
    [(6, "SuccessCriteriaMet", "has 6 workers already: --workers N changes their number, --cancel"),
     (4, "Failed", "has ended: --cancel deletes it"), (4, "Complete", "has ended: --cancel deletes it"),
     (4, "Suspended", None)],
)  # fmt: skip
def test_a_job_that_would_start_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, completions: int, condition: str, message: str | None
) -> None:
    calls = []
    job = {"spec": {"completions": completions}, "status": {"conditions": [{"type": condition, "status": "True"}]}}

    def kubectl(*command: str, text: str = "") -> str:
        calls.append(command)
        return json.dumps(job) if "job" in command else ""

    monkeypatch.setattr(kubernetes, "call", kubectl)
    with pytest.raises(InputError, match=message) if message else nullcontext():
        kubernetes.submit(launch_of(image="x"))
    assert (calls[-1] == ("kubectl", "apply", "--filename=-")) is (message is None)


@pytest.mark.parametrize(
    ("before", "said"),
    [(2, "now has 6 workers instead of 2;"), (8, "now has 6 workers instead of 8, 2 of which save and end;")],
)
def test_a_job_that_runs_gets_as_many_workers_as_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, before: int, said: str
) -> None:
    job = {"spec": {"completions": before}}
    monkeypatch.setattr(kubernetes, "call", lambda *command, text="": json.dumps(job) if "job" in command else "")
    assert f"The Job ablation-vgg-truncation-0a1b2c3d {said} output:" in kubernetes.submit(launch_of(image="x"))
    with pytest.raises(InputError, match=f"has {before} workers already"):  # nobody asked for another number
        kubernetes.submit(dataclasses.replace(launch_of(image="x"), workers=None))


@pytest.mark.parametrize(
    ("live", "suspended"),
    [("", True), ('{"spec": {"completions": 4, "suspend": true}}', True),
     ('{"spec": {"completions": 4, "suspend": false}}', False)],
)  # fmt: skip
def test_a_job_that_its_queue_has_admitted_is_not_suspended_again(
    monkeypatch: pytest.MonkeyPatch, live: str, suspended: bool
) -> None:
    """To suspend a Job ends its pods."""
    applied = []

    def kubectl(*command: str, text: str = "") -> str:
        applied.extend([job["spec"]["suspend"] for job in yaml.safe_load_all(text) if job["kind"] == "Job"])
        return live if "job" in command else ""

    monkeypatch.setattr(kubernetes, "call", kubectl)
    kubernetes.submit(launch_of(image="x", queue="team"))
    assert applied == [suspended] * 2  # tried by the server, then applied


def test_a_job_that_is_being_deleted_is_not_taken_for_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"metadata": {"deletionTimestamp": "2026-11-27T10:00:00Z"}, "status": {}}
    monkeypatch.setattr(kubernetes, "call", lambda *command, text="": json.dumps(job) if "job" in command else "")
    with pytest.raises(InputError, match=r"is being deleted: launch again in a moment$"):
        kubernetes.submit(launch_of(image="x"))


@pytest.mark.parametrize(
    ("said", "deleted"),
    [("job.batch/a-0\nconfigmap/a-0\n", ["job.batch/a-0", "configmap/a-0"]), ("No resources found\n", [])],
)
def test_cancel_says_what_it_deleted(monkeypatch: pytest.MonkeyPatch, said: str, deleted: list[str]) -> None:
    kubectl = Kubectl(said)
    monkeypatch.setattr(kubernetes, "call", kubectl)
    assert kubernetes.cancel("ablation-a-0", {}) == deleted
    selector = "--selector=app.kubernetes.io/instance=ablation-a-0"
    assert kubectl.calls == [f"kubectl delete job,configmap {selector} --wait=false --output=name"]


def test_pods_are_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def pod(name: str, phase: str, **status: Any) -> dict[str, Any]:
        metadata = {"name": name, "creationTimestamp": "2026-11-27T10:00:00Z"}
        return {"metadata": metadata, "spec": {}, "status": {"phase": phase, **status}}

    waits = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    pods = [pod("a-0", "Running", startTime="2026-11-27T10:01:00Z"), pod("a-1", "Succeeded"),
            pod("a-2", "Pending", conditions=[waits])]  # fmt: skip
    pods[0]["spec"]["nodeName"] = "node7"
    monkeypatch.setattr(kubernetes, "call", Kubectl(json.dumps({"items": pods})))
    assert kubernetes.workers("ablation-cuts-0", {}) == [
        EngineWorker("a-0", "running", "node7", "2026-11-27T10:01:00Z"),
        EngineWorker("a-2", "pending (Unschedulable)", "-", "2026-11-27T10:00:00Z"),
    ]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl, which has kustomize")
@pytest.mark.parametrize("overlay", ["base", "kueue"])
def test_the_kustomization_is_valid(tmp_path: Path, overlay: str) -> None:
    folder = tmp_path / "kubernetes"
    shutil.copytree(KUSTOMIZE, folder)
    shutil.copy(study_files()["vgg_truncation"], folder / "base" / "study.toml")
    shutil.copy(folder / "base" / "addresses.example.env", folder / "base" / "addresses.env")
    built = subprocess.run(["kubectl", "kustomize", folder / overlay], capture_output=True, text=True, check=True)
    objects = list(yaml.safe_load_all(built.stdout))
    assert sorted(manifest["kind"] for manifest in objects) == [
        "ConfigMap", "Job", "PersistentVolumeClaim", "PersistentVolumeClaim", "Secret",
    ]  # fmt: skip
    validate(objects)
    (job,) = [manifest for manifest in objects if manifest["kind"] == "Job"]
    assert ("kueue.x-k8s.io/queue-name" in job["metadata"]["labels"]) is (overlay == "kueue")


def test_the_pods_output_is_asked_for_where_they_are() -> None:
    options = {"namespace": "ml", "gpus": "1"}
    assert kubernetes.output("a-0", Path(), options) == "output: kubectl --namespace=ml logs job/a-0"
