"""Study files: read, changed by `--set`, checked, refused in one line."""

import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ablation.base.errors import InputError
from ablation.base.text import nearest
from ablation.spec.parameters import Choices, Hyperparameters, Range, Search, without_none
from ablation.spec.study import Published, StudySpec

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def check_name(name: str) -> str:
    """Return the name of a study if it is safe as a file name and in a query, else raise InputError."""
    if not NAME_PATTERN.fullmatch(name):
        raise InputError(
            f"the study's name {name!r} must be 1-100 letters, digits, '_', '-' or '.', not starting with a sign"
        )
    return name


def parse_override(text: str) -> tuple[list[str], Any]:
    """Split `--set KEY=VALUE`; the value is read as TOML and, where it is not TOML, taken as a string."""
    key, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise InputError(f"--set {text}: must be KEY=VALUE, such as --set data.limit=5000")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    if not isinstance(parsed, str | int | float | bool | list | dict):
        parsed = value  # a date, say: the name of a folder
    return [part.strip() for part in key.split(".")], parsed


def read_study_file(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        InputError: the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {str(error).splitlines()[0]}") from None


def load_study(
    path: Path,
    *,
    name: str | None = None,
    overrides: Iterable[tuple[list[str], Any]] = (),
    load_custom: Callable[[str, str], str] | None = None,
) -> StudySpec:
    """Read and check a study file.

    Args:
        path: a TOML file.
        name: what the study is called; the file's name without its suffix by default.
        overrides: (key path, value) pairs that replace what the file says, in order.
        load_custom: runs a custom backbone's file (see `load_custom_backbone`, which needs torch); without it, a study
            of a custom backbone cannot be loaded.

    Raises:
        InputError: with the file, the field and what would be right, in one line.
    """
    content = read_study_file(path)
    overrides = list(overrides)
    where = f"{path}, as set on the command line" if overrides else str(path)
    for keys, value in overrides:
        table = content
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise InputError(f"--set {'.'.join(keys)}: {key!r} is not a table")
        table[keys[-1]] = value
    if "name" in content:
        raise InputError(f"{where}: name: not a key; the study is called after its file, or by --name")
    try:
        content = _with_custom_backbone(content, load_custom)
    except ValueError as error:
        raise InputError(f"{where}: backbone.{error}") from None
    try:
        return StudySpec(name=check_name(name or path.stem), **content)
    except ValidationError as error:
        raise InputError(f"{where}: {validation_message(error)}") from None


def _with_custom_backbone(content: dict[str, Any], load_custom: Callable[[str, str], str] | None) -> dict[str, Any]:
    """Return a file's content with the name of a custom backbone, if it has one, after running its module.

    Raises:
        ValueError: begins with the key that is wrong.
    """
    backbone = content.get("backbone")
    if not isinstance(backbone, dict) or not {"module", "function"} & backbone.keys():
        return content
    for key, other in (("module", "function"), ("function", "module")):
        if not isinstance(backbone.get(key), str):
            raise ValueError(f"{key}: must be a text, beside backbone.{other}")
    if "name" in backbone:
        raise ValueError("name: not beside backbone.module, which takes its place")
    assert load_custom is not None, "a study of a custom backbone needs `load_custom`"
    name = load_custom(backbone["module"], backbone["function"])
    return {**content, "backbone": {"weights": None, **backbone, "name": name}}


def validation_message(error: ValidationError) -> str:
    """Put a pydantic error into one line: the field, what is wrong with it, and the nearest key for an unknown one."""
    parts = []
    for problem in error.errors()[:3]:
        location = [str(step) for step in _without_tag(problem["loc"])]
        message = problem["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        if problem["type"] == "extra_forbidden":
            known = _keys_beside(_without_tag(problem["loc"]))
            message = f"unknown key{nearest(location[-1], known)}"
            if location[-1] in known:  # both kinds of search at once
                message = "a search has either low and high, or choices"
        elif problem["type"] == "literal_error" and isinstance(problem["input"], str):
            known = re.findall(r"'([^']*)'", problem["ctx"]["expected"])
            message = f"unknown value {problem['input']!r}{nearest(problem['input'], known)}"
        elif problem["type"] == "model_type" and location[:1] == ["search"]:
            message = f"must be {{ low = ..., high = ... }} or {{ choices = [...] }}, got {problem['input']!r}"
        elif problem["type"] in ("model_type", "dict_type"):
            message = f"must be a table, got {problem['input']!r}"
        elif problem["type"] not in ("value_error", "missing"):
            message += f", got {problem['input']!r}"
        parts.append(": ".join([".".join(location), message]) if location else message)
    more = error.error_count() - len(parts)
    return "; ".join(parts) + (f" (and {more} more)" if more > 0 else "")


def _without_tag(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Drop what pydantic inserts into the location of a numeric search: whether it was read as range or as choices."""
    numeric = [name for name, f in Hyperparameters.model_fields.items() if without_none(f.annotation) in (int, float)]
    is_tagged = len(location) > 2 and location[0] == "search" and location[1] in numeric
    return location[:2] + location[3:] if is_tagged else location


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are known in the table in which an unknown one was found."""
    model: Any = StudySpec
    for step in location[:-1]:
        if model is Search:
            return list(Range.model_fields | Choices.model_fields)
        if isinstance(step, str) and step in model.model_fields:
            model = Published if step == "published" else without_none(model.model_fields[step].annotation)
    fields = model.model_fields
    return [key for key in fields if key != "name" or model is not StudySpec]
