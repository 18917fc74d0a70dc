"""The live view in a real terminal, tmux: made narrower and wider while it runs, it leaves no ghosts."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Two arms whose trials end one after the other, for a minute.
VIEW = """
import sys, time
from tests.running.test_study_view import StudyView, metrics, run, spec, study
view = StudyView(study(["block1", "block2"]))
print("before\\n" * 12)  # at the top of the screen, no ghost would be left
with view:
    for number in range(240):
        runs = {"block1": [run("block1", 0, 0.9)], "block2": [run("block2", 0, 0.9 + number / 10_000)]}
        view.update(runs, 6)
        view.show_trial_start(spec(), f"head_width 256, lr 0.01 {'and more ' * 12}")
        view.show_epoch(spec(), metrics(1, 0.5))
        time.sleep(0.25)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux")
def test_a_resized_terminal_shows_every_line_once(tmp_path: Path) -> None:
    tmux = ["tmux", "-S", str(tmp_path / "socket")]
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR", "TMUX")}
    command = [*tmux, "new-session", "-d", "-x", "200", "-y", "30", sys.executable, "-c", VIEW]
    subprocess.run(command, check=True, env={**kept, "TERM": "xterm-256color"})

    def screen() -> list[str]:
        shown = subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True, check=True).stdout
        return [line.rstrip() for line in shown.splitlines() if line.strip()]

    try:
        deadline = time.monotonic() + 60
        while not any("block2" in line for line in screen()) and time.monotonic() < deadline:
            time.sleep(0.2)
        for width in (80, 60, 200, 80):
            subprocess.run([*tmux, "resize-window", "-x", str(width), "-y", "30"], check=True)
            time.sleep(2)  # eight drawings
            lines = screen()
            assert max(map(len, lines)) < width, width
            for beginning in ("small  ", "arm  ", "block1 #0", "block1  ", "block2  "):
                found = [line for line in lines if line.startswith(beginning)]
                assert len(found) == 1, (width, beginning, lines)
    finally:
        subprocess.run([*tmux, "kill-server"], capture_output=True)
