"""The view of a running study, on a terminal and as plain lines."""

import io
from typing import Any, Literal

import pytest
from rich.console import Console

from ablation.base import interrupts
from ablation.base import terminal as base_terminal
from ablation.base.terminal import is_live
from ablation.running import study_view
from ablation.running.study_view import CleanerAfterResize, StudyView, dotted, is_progress, sparkline
from ablation.search.studies import TrialRecord
from ablation.spec.metrics import EpochMetrics
from ablation.spec.study import StudySpec
from ablation.spec.trial import TrialSpec


def study(blocks: list[str], trials: int = 2, seeds: int = 1) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "small",
            "question": "?",
            "trials_per_arm": trials,
            "epochs": 3,
            "backbone": {"name": "vgg16", "weights": None},
            "data": {"source": "digits"},
            "fixed": {"strategy": "from_scratch"},
            "factors": {"truncate_at": blocks},
            "search": {"lr": {"low": 1e-3, "high": 1e-1, "log": True}},
            "confirm": {"seeds": seeds},
        }
    )


BLOCKS = [f"block{number}" for number in range(1, 6)]


def metrics(epoch: int, accuracy: float) -> EpochMetrics:
    return EpochMetrics(epoch, 1.0, 0.5, 2.0, accuracy, 0.01, 1234.5, timestamp=0)


def spec(arm: str = "block1", confirms: int | None = None) -> TrialSpec:
    return TrialSpec.model_construct(arm=arm, trial=0, epochs=3, confirms=confirms, objective="accuracy")


State = Literal["finished", "pruned", "failed", "running", "interrupted", "unknown"]


def run(arm: str, number: int, value: float | None, state: State = "finished", confirms: int | None = None) -> Any:
    return TrialRecord(arm, number, confirms, state, value, {}, 3, "", "", 10.0)


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    set_console(monkeypatch, Console(force_terminal=True, width=100, height=30))


def set_console(monkeypatch: pytest.MonkeyPatch, console: Console) -> None:
    monkeypatch.setattr(study_view, "console", console)
    monkeypatch.setattr(base_terminal, "console", console)


def shown(view: StudyView, width: int = 100, height: int = 30) -> list[str]:
    return [line.plain.rstrip() for line in view.lines(width, height)]


def halfway() -> StudyView:
    view = StudyView(study(["block1", "block2"], trials=2, seeds=2))
    view.update({"block1": [], "block2": []}, 8)
    view.update(
        {
            "block1": [run("block1", 0, 0.90), run("block1", 1, None, "failed")],
            "block2": [run("block2", 0, 0.94), run("block2", 1, 0.92), run("block2", 0, 0.95, confirms=0)],
        },
        8,
    )
    return view


def test_it_shows_phase_arms_trials_seeds_failures_and_the_running_epoch() -> None:
    view = halfway()
    view.show_trial_start(spec(confirms=0), "lr 0.01")
    for epoch, accuracy in enumerate((0.1, 0.45, 0.8), start=1):
        view.show_epoch(spec(confirms=0), metrics(epoch, accuracy))
    text = shown(view)
    assert text[0].startswith("small  tuning > confirmation > report  5/8 runs  0 s")
    assert text[1].count("━") == 61  # of 99 characters, 5 of 8
    assert text[2].startswith(
        "block1 confirmation #0  epoch 3/3 ▁▄█  val. accuracy 0.8000  1,234 images/s  train loss 1.0000"
    )
    assert text[3] == "lr 0.01"
    assert text[5].split() == ["arm", "best", "0.900", "0.950", "trials", "seeds"]
    assert text[6].split() == ["block1", "0.9000", "●", "2/2", "0/2", "1", "failed"]
    assert text[7].split() == ["block2", "0.9400", "·", "●", "◆", "2/2", "1/2"]
    assert text[8:] == ["· trial  ● best trial  ◆ confirmation run"]


def test_a_pause_is_shown_in_place_of_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """And by nothing else: what the signal's handler prints is drawn over and moves the view."""
    set_console(monkeypatch, Console(file=io.StringIO(), force_terminal=True, width=100, height=30))
    for name in ("CI", "NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(interrupts, "_state", interrupts._State())
    with halfway() as view:
        assert interrupts._state.has_view
        interrupts._state.text = "pausing"
        assert shown(view)[2] == "pausing"
    assert not interrupts._state.has_view


def test_the_legend_has_the_marks_that_can_occur() -> None:
    view = StudyView(study(["block1"], seeds=0))
    assert shown(view)[-1] == "· trial  ● best trial"
    assert "trial" not in shown(view, width=30)[-1]  # too narrow for an axis


def test_what_does_not_fit_beside_a_running_trial_is_left_out_whole() -> None:
    view = halfway()
    view.show_trial_start(spec(confirms=0), "lr 0.01")
    view.show_epoch(spec(confirms=0), metrics(1, 0.5))
    state = "block1 confirmation #0  epoch 1/3 ▄  val. accuracy 0.5000"
    assert shown(view, 80)[2] == f"{state}  1,234 images/s"  # 73 characters; 92 with the loss
    assert shown(view, 73)[2] == state
    view.show_worker_line(1, "[1/2] block1 #0: lr 0.01, head_width 512")
    assert shown(view, 32)[2] == "worker 1  block1 #0  lr 0.01"


def test_superseded_runs_are_no_seeds_of_the_arm() -> None:
    view = StudyView(study(["block1"], trials=2, seeds=2))
    old = [run("block1", number, 0.90, confirms=0) for number in range(2)]
    view.update({"block1": [run("block1", 0, 0.90), run("block1", 1, 0.94), *old]}, 6)
    assert shown(view)[-2].split()[-1] == "0/2"


def test_the_phase_follows_the_runs() -> None:
    view = StudyView(study(["block1", "block2"], trials=1, seeds=1))
    tuned: dict[str, list[TrialRecord]] = {"block1": [run("block1", 0, 0.5)], "block2": []}
    phases = []
    for new in ([], [run("block2", 0, 0.5)], [run("block2", 0, 0.5, confirms=0)]):
        tuned["block2"] += new
        view.update(tuned, 4)
        phases.append(view.phase())
    tuned["block1"].append(run("block1", 0, 0.6, confirms=0))
    view.update(tuned, 4)
    assert [*phases, view.phase()] == ["tuning", "confirmation", "confirmation", "report"]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_nothing_moves(width: int) -> None:
    view = halfway()
    view.show_trial_start(spec(), "lr 0.01, " * 40)
    before = shown(view, width)
    view.show_epoch(spec(), metrics(1, 0.5))
    after = shown(view, width)
    assert len(after) == len(before) == 9
    assert max(map(len, after)) < width
    for part in ("block1", "block2", "0.9400", "2/2", "1 failed", "epoch 1/3"):
        assert part in "\n".join(after)


def test_values_are_on_an_axis_between_the_smallest_and_the_largest() -> None:
    runs = [run("a", 0, 0.90), run("a", 1, 0.94), run("a", 0, 0.92, confirms=1), run("a", 2, None, "failed")]
    assert dotted(runs, 0.90, 0.94, 9) == "·   ◆   ●"
    assert dotted(runs[:1], 0.90, 0.90, 5) == "  ●  "
    assert dotted([], 0.0, 1.0, 3) == "   "


def test_a_low_terminal_shows_the_best_arms() -> None:
    view = StudyView(study(BLOCKS))
    values = dict(zip(BLOCKS, (0.1, 0.9, 0.2, 0.8, 0.7), strict=True))
    view.update({name: [run(name, 0, value)] for name, value in values.items()}, 15)
    text = "\n".join(shown(view, height=10))
    assert [name for name in BLOCKS if name in text] == ["block2", "block4", "block5"]


def test_a_terminal_that_became_narrower_is_cleared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30)
    set_console(monkeypatch, console)
    cleaner = CleanerAfterResize()
    codes = []
    for width in (100, 200, 60, 60, 80):
        console.width = width
        codes.append("".join(map(str, cleaner.process_renderables([]))))
    assert codes == ["", "", "\x1b[2J\x1b[H", "", ""]


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("NO_COLOR", "1"), ("TERM", "dumb")])
def test_where_lines_cannot_be_drawn_over_they_are_plain(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert is_live()
    monkeypatch.setenv(name, value)
    set_console(monkeypatch, Console(force_terminal=True, width=100))
    assert not is_live()
    with StudyView(study(["block1"])) as view:
        view.update({"block1": []}, 3)
        view.show_trial_start(spec(), "lr 0.01")
    output = capsys.readouterr().out
    assert "[1/3] block1 #0: lr 0.01\n" in output.replace("\x1b[0m", "")
    assert "\x1b[" not in output.replace("\x1b[0m", "")


def test_in_a_notebook_and_in_a_pipe_lines_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for console in (Console(force_terminal=True, force_jupyter=True), Console(file=io.StringIO())):
        set_console(monkeypatch, console)
        assert not is_live()


def test_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    set_console(monkeypatch, Console(force_terminal=False, width=80))
    view = StudyView(study(["block1"]))
    view.update({"block1": []}, 2)
    view.show_trial_start(spec(), "lr 0.01")
    view.show_epoch(spec(), metrics(1, 0.5))  # too soon after the line before
    view.show_trial_end(spec(), "failed", None, "the loss became nan")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[1/2] block1 #0: lr 0.01"
    assert lines[1].startswith("  failed: the loss became nan (0.0 s")
    assert len(lines) == 2
    view.show_trial_start(spec(confirms=4), "lr 0.01")
    assert capsys.readouterr().out == "[2/2] block1 confirmation #0: lr 0.01\n"
    view.show_trial_start(spec(), "")  # of a study without a search
    line = capsys.readouterr().out
    assert line == "[2/2] block1 #0\n"
    view.show_worker_line(1, line.rstrip())
    assert view.workers[1].text() == "block1 #0"


def test_lines_about_epochs_and_ended_trials_are_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_console(monkeypatch, Console(force_terminal=False, width=80))
    view = StudyView(study(["block1"]))
    view.seconds_between = 0
    view.show_trial_start(spec(), "lr 0.01")
    view.show_computing("caching features")
    view.show_epoch(spec(), metrics(1, 0.5))
    for state in ("finished", "pruned", "failed", "lost"):
        view.show_trial_end(spec(), state, 0.5, "why")
    lines = capsys.readouterr().out.splitlines()
    assert [is_progress(line) for line in lines] == [False, False, True, True, True, False, False]


def test_every_worker_and_the_trials_of_other_machines_are_shown() -> None:
    view = StudyView(study(["block1"], trials=4))
    view.show_worker_line(2, "[2/5] block1 #1: lr 0.02")
    view.show_worker_line(2, "  epoch 1/3  val. accuracy 0.1")
    view.show_worker_line(1, "[1/5] block1 #0: lr 0.01")
    view.show_worker_line(2, "  epoch 2/3  val. accuracy 0.2  1,234 images/s")
    running = [run("block1", number, None, "running") for number in range(3)]
    view.update({"block1": running}, 5)
    assert shown(view)[2:5] == [
        "worker 1  block1 #0  lr 0.01",
        "worker 2  block1 #1  epoch 2/3  val. accuracy 0.2  1,234 images/s",
        "elsewhere  block1 #2  epoch 3/3",
    ]


def test_a_log_has_every_line_of_workers_but_few_about_epochs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_console(monkeypatch, Console(force_terminal=False, width=80))
    view = StudyView(study(["block1"]))
    for line in ("[1/2] block1 #0: lr 0.01", "  epoch 1/3  a", "  epoch 2/3  b", "  finished: c"):
        view.show_worker_line(2, line)
    view.show_worker_line(1, "  epoch 1/3  d")
    for _ in range(3):
        view.show_waiting("waiting for others")
    assert capsys.readouterr().out.splitlines() == [
        "worker 2 | [1/2] block1 #0: lr 0.01",
        "worker 2 |   epoch 1/3  a",
        "worker 2 |   finished: c",
        "worker 1 |   epoch 1/3  d",
        "waiting for others",
    ]


class Cores:
    """Says that cores are busy whenever it is asked."""

    def __init__(self) -> None:
        self.pauses = 0

    def update(self) -> str:
        return "cores busy: this process gets 0.9 of 2"

    def pause(self) -> None:
        self.pauses += 1


def test_busy_cores_are_shown_while_a_trial_trains_and_nothing_moves() -> None:
    cores = Cores()
    watching, other = StudyView(study(["block1"]), cores), StudyView(study(["block1"]))  # type: ignore[arg-type]
    note = cores.update()
    assert note not in shown(watching)  # no trial has begun
    for view in (watching, other):
        view.show_trial_start(spec(), "lr 0.01")
    lines, without = shown(watching), shown(other)
    assert lines.count(note) == 1
    assert ["" if line == note else line for line in lines] == without
    watching.show_waiting("waiting for others")
    assert note not in shown(watching)
    assert "waiting for others" in shown(watching)
    assert cores.pauses == 1
    watching.show_trial_start(spec(), "lr 0.01")
    assert note in shown(watching)


def test_sparkline() -> None:
    assert sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert sparkline([0.3]) == "▄"


def test_the_time_left_is_estimated_for_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimate takes longer the more runs a study has: 2 s here, so that the next one comes 40 s later."""
    now, calls = [0.0], []
    monkeypatch.setattr(study_view.time, "monotonic", lambda: now[0])
    view = StudyView(study(["block1"]))

    def estimate(*_: object) -> None:
        calls.append(now[0])
        now[0] += 2

    monkeypatch.setattr(view.left, "update", estimate)
    for now[0] in (10.0, 13.0, 49.0, 51.0, 60.0):
        view.update({"block1": [run("block1", 0, 0.5)]}, 3)
    assert calls == [10.0, 51.0]
    assert view.ended == 1
