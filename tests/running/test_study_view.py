"""The view of a running study, on a terminal and as plain lines."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from ablation.running import study_view
from ablation.running.study_view import StudyView, sparkline


def metrics(epoch: int, accuracy: float) -> SimpleNamespace:
    return SimpleNamespace(epoch=epoch, train_loss=1.0, val_loss=2.0, val_accuracy=accuracy, images_per_second=1234.5)


def spec(arm: str = "block1") -> SimpleNamespace:
    return SimpleNamespace(arm=arm, trial=0, epochs=3, confirms=None)


def ended(value: float) -> SimpleNamespace:
    return SimpleNamespace(value=value, has_ended=True, confirms=None)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(force_terminal=True, width=100, height=14, color_system=None)
    monkeypatch.setattr(study_view, "console", console)
    return console


def rendered(progress: StudyView, console: Console) -> str:
    with console.capture() as capture:
        console.print(progress._render())
    return capture.get()


def test_live_view_shows_progress_curve_and_the_best(terminal: Console) -> None:
    progress = StudyView("small", ["block1", "block2"])
    progress.update({"block1": [], "block2": [ended(0.5)]}, 4)
    progress.show_trial_start(spec(), "lr 0.01")
    for epoch, accuracy in enumerate((0.1, 0.45, 0.8), start=1):
        progress.show_epoch(spec(), metrics(epoch, accuracy))
    text = rendered(progress, terminal)
    for part in ("small", "1/4", "block1 #0  lr 0.01", "epoch 3/3", "▁▄█", "val. accuracy 0.8000", "1,234 images/s"):
        assert part in text
    progress.show_trial_end(spec(), "finished", 0.8, "")
    progress.update({"block1": [ended(0.8)], "block2": [ended(0.5)]}, 4)
    text = rendered(progress, terminal)
    assert "2/4" in text
    assert "left" in text
    assert re.search(r"block1 +0\.8000 +━{24} *$", text, re.MULTILINE)  # a bar of 30 at 1.0
    assert re.search(r"block2 +0\.5000 +━{15} *$", text, re.MULTILINE)


def test_a_low_terminal_shows_the_best_arms(terminal: Console) -> None:
    best = {f"arm{number:02}": number / 100 for number in range(21)}
    progress = StudyView("many", list(best))
    progress.update({name: [ended(value)] for name, value in best.items()}, 21)
    text = rendered(progress, terminal)
    assert [name for name in best if name in text] == [f"arm{number:02}" for number in range(15, 21)]


def test_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(study_view, "console", Console(force_terminal=False, width=80))
    progress = StudyView("small", ["block1"])
    progress.update({"block1": []}, 2)
    progress.show_trial_start(spec(), "lr 0.01")
    progress.show_epoch(spec(), metrics(1, 0.5))  # too soon after the line before
    progress.show_trial_end(spec(), "failed", None, "the loss became nan")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[1/2] block1 #0: lr 0.01"
    assert lines[1].startswith("  failed: the loss became nan (0.0 s")
    assert len(lines) == 2
    confirmation = spec()
    confirmation.confirms = 4
    progress.show_trial_start(confirmation, "lr 0.01")
    assert capsys.readouterr().out == "[2/2] block1 confirmation #0: lr 0.01\n"


def test_workers_and_waiting(terminal: Console, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    progress = StudyView("small", ["block1"])
    progress.show_worker_line(2, "  epoch 1/3  val. loss 2.0")
    progress.show_worker_line(1, "[1/2] block1 #0: lr 0.01")
    progress.show_worker_line(2, "  epoch 2/3  val. loss 1.0")
    lines = [line.strip() for line in rendered(progress, terminal).splitlines()]
    assert "worker 1  [1/2] block1 #0: lr 0.01" in lines
    assert "worker 2  epoch 2/3  val. loss 1.0" in lines
    assert "epoch 1/3" not in "".join(lines)
    monkeypatch.setattr(study_view, "console", Console(force_terminal=False, width=80))
    for _ in range(3):
        progress.show_waiting("waiting for others")
    progress.show_worker_line(2, "  finished")
    assert capsys.readouterr().out.splitlines() == ["waiting for others", "worker 2 |   finished"]


class Cores:
    """Says that cores are busy whenever it is asked."""

    def __init__(self) -> None:
        self.pauses = 0

    def update(self) -> str:
        return "cores busy: this process gets 0.9 of 2"

    def pause(self) -> None:
        self.pauses += 1


def test_busy_cores_are_shown_while_a_trial_trains_and_nothing_moves(terminal: Console) -> None:
    cores = Cores()
    watching, other = StudyView("small", ["block1"], cores), StudyView("small", ["block1"])  # type: ignore[arg-type]
    note = cores.update()
    assert note not in rendered(watching, terminal)  # no trial has begun
    for progress in (watching, other):
        progress.show_trial_start(spec(), "lr 0.01")
    lines, without = (rendered(progress, terminal).splitlines() for progress in (watching, other))
    assert [line.strip() for line in lines].count(note) == 1
    assert [line for line in lines if line.strip() != note] == [
        line for line, beside in zip(without, lines, strict=True) if beside.strip() != note
    ]
    watching.show_waiting("waiting for others")
    assert note not in rendered(watching, terminal)
    assert cores.pauses == 1
    watching.show_trial_start(spec(), "lr 0.01")
    assert note in rendered(watching, terminal)


def test_sparkline() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([0.3]) == "▄"
