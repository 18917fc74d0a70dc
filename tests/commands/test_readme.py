"""The pages: what is quick is run, of what takes longer the arguments are read; links, tables and trees are checked."""

import importlib
import importlib.util
import re
import shlex
import sys
import textwrap
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from PIL import Image
from pydantic_core import PydanticUndefined

import ablation
from ablation.base.command_line import run_command
from ablation.spec.architectures import ARCHITECTURES, is_timm
from ablation.spec.files import SCHEMA, find_study_file, study_files
from ablation.spec.metrics import EpochMetrics
from ablation.spec.parameters import STRATEGIES, Hyperparameters
from ablation.spec.reading import load_study, parse_override
from ablation.spec.study import StudySpec
from ablation.spec.tables import Data, Published
from tests.house import FOLDERS, MOST_WORDS, PACKAGE
from tests.studies import REPOSITORY, signal_handlers_kept

PAGES = {
    path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("[!.]*/*.md")])
}
MODULES = re.compile(r"ablation\.(study|launch|report|compare|predict|backbones|bench|ui)")
COMMANDS: dict[str, click.Command] = {
    name: importlib.import_module(f"ablation.{name}").cli
    for name in ("study", "launch", "report", "compare", "predict", "backbones", "bench", "ui")
} | {"data": importlib.import_module("ablation.data.__main__").cli}
QUICK = {"--list", "--new", "--check", "--plan"}  # --plan of a study whose images are missing is refused at once
PATH = re.compile(r"[\w./-]+/[\w.-]+\.(?:py|md|yaml|toml|txt|in|sh|cff)")


def blocks(page: str, language: str) -> list[str]:
    """Return the fenced blocks of a page in a language, without their indentation."""
    fenced = re.findall(rf"^ *```{language}\n(.*?)^ *```$", PAGES[page], re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(block) for block in fenced]


def prose(page: str) -> str:
    """Return a page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)


def spans(page: str) -> list[str]:
    """Return the inline code of a page."""
    return re.findall(r"`([^`]+)`", prose(page).replace("\n", " "))


def lines(page: str) -> list[str]:
    """Return the command lines of a page: in blocks and in the text, `&&` taken apart."""
    in_blocks = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    in_text = [span for span in spans(page) if span.startswith("python -m ")]
    return [part for line in [*in_blocks, *in_text] for part in line.split("&&")]


def words_of(line: str) -> list[str]:
    """Return the words of a command line; NAME stands for a study or a backbone, and what may be left out is there."""
    name = "vgg16" if "ablation.backbones" in line else "vgg_truncation"
    line = re.sub(r"\[(--\w+ \w+)\]", r"\1", line.replace("NAME", name))
    return shlex.split(line, comments=True)


def commands(page: str) -> list[list[str]]:
    """Return the arguments of every `python -m ablation.X` of a page, X first, also of containers that run a study."""
    unique: list[list[str]] = []
    for line in lines(page):
        command: list[str] = []
        if "python -m ablation." in line:
            words = words_of(line)
            module, *arguments = words[words.index("-m") + 1 :]
            if MODULES.fullmatch(module):
                command = [module.removeprefix("ablation."), *arguments]
        elif re.match(r"docker compose run|STUDY=", line):
            words = words_of(line)
            is_run = "run" in words
            arguments = words[words.index("--rm") + 2 :] if is_run else shlex.split(words[0].removeprefix("STUDY="))
            command = ["study", *arguments]
        if command and command not in unique:
            unique.append(command)
    return unique


ALL_COMMANDS = [command for page in PAGES for command in commands(page)]
UNIQUE_COMMANDS = [command for n, command in enumerate(ALL_COMMANDS) if command not in ALL_COMMANDS[:n]]
WRITTEN = {command[-1] for command in ALL_COMMANDS if "--new" in command}  # studies that a page has written by --new


def is_quick(command: list[str]) -> bool:
    return bool(QUICK & set(command)) or (command[0] == "backbones" and len(command) > 1)


def parsed(command: list[str]) -> dict[str, Any]:
    """Return a command's arguments as click reads them."""
    module, *arguments = command
    # Where the text only names the command.
    needed = {"launch": ["x", "--on", "local"], "report": ["x"], "predict": ["x", "y"]}.get(module, [])
    return COMMANDS[module].make_context(module, arguments or needed).params


# ------------------------------------------------------------------------------------------------------- commands


def test_there_are_commands() -> None:
    assert {command[0] for command in ALL_COMMANDS} == {
        "study",
        "launch",
        "report",
        "compare",
        "predict",
        "backbones",
        "bench",
        "ui",
    }
    assert sum(map(is_quick, UNIQUE_COMMANDS)) >= 4
    assert all(PAGES[page] for page in ("README.md", "CONTRIBUTING.md"))
    assert {page.partition("/")[0] for page in PAGES if "/" in page} >= {
        "ablation", "docker", "mlruns", "studies", "tests",
    }  # fmt: skip


@pytest.mark.parametrize("command", UNIQUE_COMMANDS, ids=" ".join)
def test_its_arguments_are_understood(command: list[str]) -> None:
    assert parsed(command)


@pytest.mark.parametrize("command", [command for command in UNIQUE_COMMANDS if len(command) > 1], ids=" ".join)
def test_its_study_or_backbone_exists(command: list[str]) -> None:
    params = parsed(command)
    if command[0] == "backbones":
        assert params["name"] in ARCHITECTURES or params["module"] is not None or is_timm(str(params["name"]))
    elif params.get("study") is not None:
        name = str(params["study"]).removesuffix("-demo")
        assert name in study_files() or name in WRITTEN
        if params.get("settings"):  # every key of --set exists, and its value is one
            overrides = [parse_override(setting) for setting in params["settings"]]
            assert load_study(find_study_file(name), overrides=overrides).name == name
            keys = {setting.partition("=")[0] for setting in params["settings"]}
            assert "data.root" not in keys or "data.source" in keys  # a root alone is where CIFAR-10 is


def test_quick_ones_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (network,) = [block for block in blocks("studies/README.md", "python") if block.startswith("# nets.py")]
    (tmp_path / "nets.py").write_text(network)
    monkeypatch.chdir(tmp_path)

    def run(command: list[str]) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", command)
        with signal_handlers_kept():
            status = run_command(COMMANDS[command[0]])
        return status, capsys.readouterr().err

    for command in filter(is_quick, UNIQUE_COMMANDS):
        status, error = run(command)
        if {"--check", "--plan"} & set(command) and set(WRITTEN) & set(command):  # by --new: its pictures are to come
            assert status == 2, command
            assert "data.root: pictures: there is no such folder" in error
        else:
            assert status == 0, (command, error)

    for number in range(30):  # what the front page asks for: pictures/<class>/*
        path = tmp_path / "pictures" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    (check,) = [command for command in UNIQUE_COMMANDS if "--check" in command]
    assert run(check) == (0, "")


@pytest.mark.parametrize("page", PAGES)
def test_the_package_is_not_installed_from_pypi(page: str) -> None:
    """There the name is another project's."""
    assert re.findall(r"ablation\[|pip\s+install\s+(?:-\S+\s+)*['\"]?ablation\b", PAGES[page]) == []


@pytest.mark.parametrize("page", PAGES)
def test_modules_and_tests_that_are_run_exist(page: str) -> None:
    text = "\n".join([*blocks(page, "sh"), *spans(page)])
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert module == "ablation.X" or importlib.util.find_spec(module) is not None, module
    for arguments in re.findall(r"python -m pytest (.*)", text):
        paths = [argument for argument in shlex.split(arguments) if "/" in argument]
        assert all((REPOSITORY / path).exists() for path in paths), arguments


def test_containers_exist() -> None:
    compose = (REPOSITORY / "docker" / "compose.yaml").read_text(encoding="utf-8")
    services = re.findall(r"^  ([a-z-]+):", compose.partition("\nservices:\n")[2], re.MULTILINE)
    profiles = {name for names in re.findall(r"profiles: \[(.*)\]", compose) for name in names.split(", ")}
    text = "\n".join(line for page in PAGES for line in lines(page) if "docker compose" in line)
    named = re.findall(r"(?:run --rm|(?:compose|cluster) up|--scale) ([a-z-]+)", text)
    assert len(named) >= 5
    assert set(named) <= set(services)
    assert set(re.findall(r"--profile ([a-z-]+)", text)) <= profiles
    assert (REPOSITORY / "docker" / "prepare.sh").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_options_in_the_text_exist(page: str) -> None:
    known = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    named = [option for span in spans(page) if span.startswith("--") for option in re.findall(r"--[a-z-]+", span)]
    assert set(named) - known == {"--help"} & set(named)


# ---------------------------------------------------------------------------------------------------------- links


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"`[^`]*`", "", prose(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.resolve().relative_to(REPOSITORY).as_posix()), target


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    for span in spans(page):
        path = span.replace("NAME", "vgg_truncation")
        if PATH.fullmatch(path) and Path(path).stem not in WRITTEN:
            roots = (REPOSITORY, PACKAGE, (REPOSITORY / page).parent)
            assert any((root / path).exists() for root in roots), span


@pytest.mark.parametrize("page", PAGES)
def test_python_names_exist(page: str) -> None:
    for name in re.findall(r"`ablation\.([a-zA-Z]\w*)", prose(page)):
        assert name in ablation.__all__ or importlib.util.find_spec(f"ablation.{name}") is not None, name


@pytest.mark.parametrize("page", PAGES)
def test_no_machine_is_named(page: str) -> None:
    assert re.findall(r"(?<![\w.~])/(?:work|tmp|home|root)\b", PAGES[page]) == []


# ------------------------------------------------------------------------------------------------ blocks and tables


def test_the_front_page_is_short() -> None:
    assert len(PAGES["README.md"].split()) <= MOST_WORDS == 1800


@pytest.mark.parametrize("page", PAGES)
def test_python_compiles(page: str) -> None:
    for block in blocks(page, "python"):
        compile(block, page, "exec")
    for block in blocks(page, "sh"):
        for option, code in pairwise(shlex.split(block, comments=True)):
            if option == "-c":
                compile(code, page, "exec")


def test_toml_loads(tmp_path: Path) -> None:
    contents = [tomllib.loads(block) for page in PAGES for block in blocks(page, "toml")]
    assert len(contents) >= 2
    (whole,) = [block for block in blocks("studies/README.md", "toml") if "question" in block]
    template = (PACKAGE / "spec" / "study_template.toml").read_text(encoding="utf-8")
    assert whole == template.format(schema=f"../{PACKAGE.name}/{SCHEMA}", command="my_cut")
    (tmp_path / "my_cut.toml").write_text(whole)
    assert len(load_study(tmp_path / "my_cut.toml").combinations()) == 6


def test_a_table_becomes_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [block for block in blocks("studies/README.md", "python") if "truth.csv" in block]
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("truth.csv").write_text("image,patient,MEL,NV,BCC\n0001,p1,0.0,1.0,0.0\n0002,p2,0.0,0.0,1.0\n")
    exec(code, {})
    assert Path("photos/labels.csv").read_text() == "path,label,group\n0001.jpg,NV,p1\n0002.jpg,BCC,p2\n"


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the tables below a heading, without their heads."""
    section = re.split(r"^#+ ", PAGES[page].partition(f"# {heading}\n")[2], flags=re.MULTILINE)[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line[:1] == "|"
    ]
    heads = [number for number, row in enumerate(cells) if set(row[0]) <= {"-", "|"}]
    return [row for number, row in enumerate(cells) if number not in heads and number + 1 not in heads]


def test_the_front_page_has_the_numbers_of_the_pages_that_it_names() -> None:
    fixed, tuned = rows("README.md", "Real results")[-2:]
    cuts = rows("studies/results.md", "The results on the front page")[:5]
    assert [fixed[1:], tuned[1:]] == [[cut[column] for cut in cuts] for column in (1, 3)]
    on_cpu, on_gpu, tuned_on_cpu, tuned_on_gpu = [row[2:] for row in rows("README.md", "How fast")]
    speed = PAGES["ablation/speed.md"]
    assert all(" | ".join(measured) in speed for measured in (on_cpu, tuned_on_cpu))
    assert all(cell.removesuffix(" (n = 1)") in speed for cell in on_gpu[:1] + tuned_on_gpu[:2])


def keys_with_defaults() -> dict[str, Any]:
    """Return every key of a study file but the hyper-parameters, with its default."""
    keys: dict[str, Any] = {}
    for name, field in StudySpec.model_fields.items():
        if name in ("name", "fixed", "factors"):
            continue
        inner = getattr(field.annotation, "model_fields", None)
        if inner is None:
            keys[name] = field.default
        else:
            keys |= {f"{name}.{key}": f.default for key, f in inner.items() if key not in Hyperparameters.model_fields}
    return keys | {f"published.{key}": field.default for key, field in Published.model_fields.items()}


def documented_defaults(heading: str) -> dict[str, Any]:
    """Return what the page on studies says of keys and their defaults; None where it says that there is none."""
    defaults: dict[str, Any] = {}
    for names, _, default in rows("studies/README.md", heading):
        code = re.match(r"`([^`]+)`", default)
        assert code or default.startswith("none"), names
        for name in re.findall(r"`([^`]+)`", names):
            defaults[name] = tomllib.loads(f"value = {code[1]}")["value"] if code else None
    return defaults


def test_every_key_is_described() -> None:
    hyperparameters = {name: field.default for name, field in Hyperparameters.model_fields.items()}
    assert documented_defaults("Hyper-parameters") == hyperparameters
    nothing: list[Any] = [None, PydanticUndefined, {}, []]
    others = {key: None if default in nothing else default for key, default in keys_with_defaults().items()}
    assert documented_defaults("All other keys") == others


def test_every_value_is_described() -> None:
    assert [row[0].strip("`") for row in rows("studies/README.md", "Strategies")] == list(STRATEGIES)
    assert {row[0].strip("`") for row in rows("studies/README.md", "Studies")} == {
        path.stem for path in (REPOSITORY / "studies").glob("*.toml")
    }
    assert set(get_args(Data.model_fields["source"].annotation)) <= set(spans("studies/README.md"))
    assert set(EpochMetrics.__dataclass_fields__) - {"epoch", "timestamp"} <= set(spans("mlruns/README.md"))


def test_the_tree_is_the_package() -> None:
    (tree,) = blocks("ablation/README.md", "text")
    files, folders = set(), []
    for line in filter(None, tree.splitlines()):
        name, text = line.split(maxsplit=1)
        assert text, line
        if name.endswith("/"):
            folders.append(name.removesuffix("/"))
        else:
            files.add(f"{folders[-1]}/{name}" if line.startswith(" ") else name)
    assert folders == list(reversed(FOLDERS))
    real = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    skipped = {"README.md", "speed.md", "py.typed"}
    assert files == {
        name for name in real if name not in skipped and "__pycache__" not in name and not name.endswith("/__init__.py")
    }
