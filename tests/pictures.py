"""Make the pictures of README.md anew: python -m tests.pictures [mlflow] [report] [terminal]

They show the demo of `vgg_truncation`, which runs first unless `--store` names a folder that has it: the first saved
view of the MLflow UI, the first screen of the report, and the live view in a terminal. They need Chromium, the package
`playwright` and, for the terminal, `tmux`; a picture takes about fifteen seconds.
"""

import html
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click

from tests.browser import browser_page, mlflow_ui, open_view
from tests.studies import REPOSITORY

PICTURES = REPOSITORY / ".github"
STUDY = "vgg_truncation"
COLUMNS, LINES = 110, 34  # of the terminal
SGR = {"1": "font-weight:bold", "2": "opacity:.6", "31": "color:#f66", "32": "color:#5c5", "33": "color:#dc5",
       "34": "color:#69f", "35": "color:#d7d", "36": "color:#5cc"}  # fmt: skip


def demo_command(store: Path) -> list[str]:
    return [sys.executable, "-m", "ablation.study", STUDY, "--demo", "--store", str(store)]


def take_mlflow(store: Path) -> None:
    """The first view, without the notice that a view is shared."""
    with mlflow_ui(store, f"{STUDY}-demo") as addresses, browser_page(1500, 1020) as page:
        open_view(page, addresses[0])
        page.get_by_label("Hide banner").click()
        page.wait_for_timeout(3000)  # until the last chart is drawn
        page.screenshot(path=PICTURES / "mlflow-ui.png")


def take_report(store: Path) -> None:
    """The first screen."""
    with browser_page(1200, 1000) as page:
        page.goto((store / "reports" / f"{STUDY}-demo" / "report.html").resolve().as_uri())
        page.wait_for_timeout(1000)
        page.screenshot(path=PICTURES / "report.png")


def take_terminal(_: Path) -> None:
    """The live view of a demo halfway, in tmux, drawn by the browser with the terminal's colours."""
    with tempfile.TemporaryDirectory() as folder:
        tmux = ["tmux", "-S", str(Path(folder) / "socket")]
        command = demo_command(Path(folder) / "store")
        size = ["-x", str(COLUMNS), "-y", str(LINES)]
        environment = {name: value for name, value in os.environ.items() if name not in ("CI", "NO_COLOR")}
        environment["TERM"] = "xterm-256color"
        subprocess.run([*tmux, "new-session", "-d", *size, *command], check=True, env=environment)
        try:
            screen = ""
            deadline = time.monotonic() + 300
            while "confirmation #1" not in screen and time.monotonic() < deadline:
                time.sleep(1)
                shown = subprocess.run([*tmux, "capture-pane", "-p", "-e"], capture_output=True, text=True)
                if shown.returncode != 0:  # the demo has ended
                    break
                screen = shown.stdout
        finally:
            subprocess.run([*tmux, "kill-server"], capture_output=True)
    with browser_page(1000, 640) as page:
        page.set_content(terminal_page(screen))
        page.locator("pre").screenshot(path=PICTURES / "terminal.png")


def terminal_page(screen: str) -> str:
    """Return a page that shows a terminal's text, whose colours are escape sequences."""
    parts: list[str] = []
    active: list[str] = []  # codes of the text's style
    for part in screen.rstrip().split("\x1b["):
        codes, is_sequence, text = part.partition("m")
        if not parts or not is_sequence:
            parts.append(html.escape(part))
            continue
        for code in codes.split(";"):
            kept = [] if code in ("", "0") else [c for c in active if code != "39" or not c.startswith("3")]
            active = [*kept, code]
        styles = ";".join(SGR[code] for code in active if code in SGR)
        parts.append(f'<span style="{styles}">{html.escape(text)}</span>')
    style = "display:inline-block;margin:0;padding:16px;background:#16181d;color:#ddd;font:14px/1.25 monospace"
    return f'<pre style="{style}">{"".join(parts)}</pre>'


TAKERS = {"mlflow": take_mlflow, "report": take_report, "terminal": take_terminal}


@click.command()
@click.argument("pictures", nargs=-1, type=click.Choice(list(TAKERS)))
@click.option("--store", type=click.Path(path_type=Path), help="A store with the demo, finished.")
def main(pictures: Sequence[str], store: Path | None) -> None:
    """Take the pictures that are named, or all."""
    with tempfile.TemporaryDirectory() as folder:
        if store is None:
            store = Path(folder)
            subprocess.run(demo_command(store), check=True, stdout=subprocess.DEVNULL)
        for name in pictures or TAKERS:
            TAKERS[name](store)
            print(PICTURES / f"{name}")


if __name__ == "__main__":
    main()
