"""The actor of a worker, without a cluster: its child is cancelled at any moment, and does not start for ever."""

import sys
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs ablation[ray]")

from ablation.launching import ray_actor
from ablation.networks import weights

WAIT = 10  # seconds at most


class Child:
    """A worker that ends with status 1 at once, or with status 75 when its standard input is closed."""

    def __init__(self, *, lives: bool):
        self.closed = threading.Event()
        self.stdin = SimpleNamespace(close=self.closed.set)
        self.lives = lives

    def wait(self) -> int:
        if self.lives:
            assert self.closed.wait(WAIT)
        return 75 if self.lives else 1


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Is set when the actor ends itself."""
    event = threading.Event()
    context = SimpleNamespace(current_actor="me")
    fake = SimpleNamespace(get_runtime_context=lambda: context, kill=lambda handle: event.set())
    monkeypatch.setattr(ray_actor, "ray", fake)
    monkeypatch.setattr(ray_actor, "FIRST_PAUSE", 0.001)
    yield event
    assert event.wait(WAIT)


def actor_of(monkeypatch: pytest.MonkeyPatch, start: Any) -> ray_actor.WorkerActor:
    monkeypatch.setattr(ray_actor.WorkerActor, "_start", start)
    return ray_actor.WorkerActor([], Path(), {})


def test_a_worker_that_starts_while_the_actor_is_cancelled_is_not_missed(
    monkeypatch: pytest.MonkeyPatch, killed: threading.Event
) -> None:
    children: list[Child] = []
    is_starting, may_start = threading.Event(), threading.Event()

    def start(_: Any) -> Child:
        if children:
            is_starting.set()
            assert may_start.wait(WAIT)
        children.append(Child(lives=bool(children)))
        return children[-1]

    actor = actor_of(monkeypatch, start)
    assert is_starting.wait(WAIT)
    cancel = threading.Thread(target=actor.cancel)
    cancel.start()
    cancel.join(0.1)
    may_start.set()
    cancel.join(WAIT)
    assert children[1].closed.wait(WAIT)
    assert killed.wait(WAIT)
    assert len(children) == 2


@pytest.mark.parametrize(("seconds", "starts"), [(600, 5), (4000, 12)])
def test_a_study_that_fails_after_minutes_does_not_start_for_ever(
    monkeypatch: pytest.MonkeyPatch, killed: threading.Event, seconds: int, starts: int
) -> None:
    """Reading images and writing the report may take minutes each time; a worker that lived for an hour did work."""
    children: list[Child] = []
    twelfth, moments = threading.Event(), count(0, seconds)
    monkeypatch.setattr(ray_actor, "time", SimpleNamespace(monotonic=lambda: next(moments)))

    def start(_: Any) -> Child:
        children.append(Child(lives=len(children) == 11))
        if children[-1].lives:
            twelfth.set()
        return children[-1]

    actor = actor_of(monkeypatch, start)
    if starts == 12:
        assert twelfth.wait(WAIT)
        actor.cancel()
    assert killed.wait(WAIT)
    assert len(children) == starts


def test_weights_that_a_node_cannot_download_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The check of a study only warns of them, with status 0, beside other warnings."""

    def no_internet(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr(weights, "urlopen", no_internet)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    warning = weights.check_download("resnet18", "imagenet")
    lines = ["cuts.toml is fine", warning, "warning: [confirm] seeds is 1"]

    def check(lines: list[str], status: int = 0) -> str:
        program = (
            f"import sys; print({chr(10).join(lines)!r}); print('error: no images', file=sys.stderr); exit({status})"
        )
        return ray_actor.why_not([sys.executable, "-c", program], tmp_path, {})

    assert check(lines).startswith("backbone.weights: https://download.pytorch.org/models/resnet18")
    assert "could not be downloaded (Network is unreachable)" in check(lines)
    assert check([*lines[:1], *lines[2:]]) == ""
    assert check(lines, 2) == "no images"
