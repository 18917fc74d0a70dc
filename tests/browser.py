"""Chromium without a window, for tests and pictures of the MLflow UI and of reports."""

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHARTS = ".js-plotly-plot .main-svg, svg.parcoords"
MLFLOW_STATE = """
if (location.protocol == 'http:') {  // a blank page has no storage
    localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
    localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
}
"""  # otherwise the assistant's panel covers a quarter of a fresh browser


@contextlib.contextmanager
def browser_page(width: int = 1500, height: int = 950) -> Iterator["Page"]:
    """Yield a page of a new browser; its viewport is in pixels."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - an optional dependency

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.add_init_script(MLFLOW_STATE)
        try:
            yield page
        finally:
            browser.close()


@contextlib.contextmanager
def mlflow_ui(store: Path, study: str) -> Iterator[list[str]]:
    """Yield the addresses that `python -m ablation.ui` prints for a study."""
    command = [sys.executable, "-m", "ablation.ui", study, "--store", str(store), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        lines = []
        for line in process.stdout:
            if line.startswith("Ctrl-C"):
                break
            lines.append(line.split()[-1])
        yield lines
    finally:
        process.terminate()
        process.wait(30)


def open_view(page: "Page", address: str) -> float:
    """Open a view of the MLflow UI; return the seconds until its charts are drawn."""
    begin = time.monotonic()
    page.goto("about:blank")  # otherwise another part behind the hash would not load the page again
    page.goto(address)
    page.wait_for_selector(CHARTS, timeout=120_000)
    return time.monotonic() - begin
