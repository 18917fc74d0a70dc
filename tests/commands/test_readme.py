"""The README's commands: what is quick is run, of what takes longer the arguments are read."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
MODULES = re.compile(r"ablation\.(study|report|predict|backbones|bench|ui)")
QUICK = {"--list", "--plan", "--new", "--check"}


def commands() -> list[list[str]]:
    """Return the arguments of every `python -m ablation.X` in the README, X first; in blocks and in the text."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
    lines = [part for line in blocks.splitlines() for part in line.split("&&") if "python -m ablation." in part]
    lines += re.findall(r"`(python -m ablation\.[^`]*)`", README.replace("\n", " "))
    found = []
    for line in lines:
        line = re.sub(r"\[(--\w+ \w+)\]", r"\1", line.replace("NAME", "vgg_truncation"))  # what may be left out
        words = shlex.split(line, comments=True)
        if MODULES.fullmatch(words[words.index("-m") + 1]):
            module, *arguments = words[words.index("-m") + 1 :]
            command = [module.removeprefix("ablation."), *arguments]
            if command not in found:
                found.append(command)
    return found


def is_quick(command: list[str]) -> bool:
    return bool(QUICK & set(command)) or (command[0] == "backbones" and len(command) > 1)


def test_there_are_commands() -> None:
    assert {command[0] for command in commands()} == {"study", "report", "predict", "backbones", "bench", "ui"}
    assert sum(map(is_quick, commands())) >= 4


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_its_arguments_are_understood(command: list[str]) -> None:
    module = importlib.import_module(f"ablation.{command[0]}")
    needed = {"report": ["x"], "predict": ["x", "y"]}.get(command[0], [])  # where the text only names the command
    context: click.Context = module.cli.make_context(command[0], command[1:] or needed)
    assert context.params


def test_quick_ones_run(tmp_path: Path) -> None:
    (network,) = re.findall(r"```python\n(# nets.py\n.*?)```", README, re.DOTALL)
    (tmp_path / "nets.py").write_text(network)
    for command in filter(is_quick, commands()):
        module, *arguments = command
        done = subprocess.run(
            [sys.executable, "-m", f"ablation.{module}", *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        if "--check" in command:  # of the file that --new has just written: its pictures are still to come
            assert done.returncode == 2, command
            assert "data.root: pictures: there is no such folder" in done.stderr
        else:
            assert done.returncode == 0, (command, done.stderr)
