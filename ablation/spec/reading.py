"""Reads a study file, applies `--set`, and refuses what is wrong in one line."""

import copy
import re
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ablation.base.errors import InputError
from ablation.base.text import nearest
from ablation.spec.architectures import is_timm
from ablation.spec.no_effect import check_new_study
from ablation.spec.parameters import Choices, Configuration, Hyperparameters, Range, Search, numeric_type, without_none
from ablation.spec.study import StudySpec, Superfluous
from ablation.spec.tables import TIMM_WEIGHTS, Data, Published

LISTED: dict[str, Any] = {"published": Published, "arms": Configuration, "known": Configuration}  # lists of tables

Entry = tuple[str | int, ...]  # an entry's path in a study file: keys, and positions in lists

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def check_name(name: str) -> str:
    """Return the name of a study if it is safe as a file name and in a query, else raise InputError."""
    if not NAME_PATTERN.fullmatch(name):
        raise InputError(
            f"the study's name {name!r} must be 1 to 100 letters, digits, '_', '-' or '.', and start with a letter or "
            "digit"
        )
    return name


def parse_override(text: str) -> tuple[list[str], Any]:
    """Split `--set KEY=VALUE` into keys and value; a value that is not TOML is a string."""
    key, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise InputError(f"--set {text}: must be KEY=VALUE, such as --set data.limit=5000")
    if re.search("[\ud800-\udfff]", text):  # no database can hold it
        raise InputError(f"--set {text}: is not UTF-8")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value
    if not isinstance(parsed, str | int | float | bool | list | dict):
        parsed = value  # such as a date, which may be the name of a folder
    return [part.strip() for part in key.split(".")], parsed


def read_study_file(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        InputError: the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid TOML: {str(error).splitlines()[0]}") from None


LoadBackbone = Callable[[str | None, str, int], str]  # see `networks.timm_backbones.load_backbone`, which needs torch


class WithoutEffect(InputError):
    """Something in a study file has no effect; otherwise the study is right, and `spec` has it."""

    def __init__(self, message: str, spec: StudySpec):
        super().__init__(message)
        self.spec = spec


def load_study(
    path: Path,
    *,
    name: str | None = None,
    overrides: Iterable[tuple[list[str], Any]] = (),
    load_backbone: LoadBackbone | None = None,
    report: Callable[[str], None] | None = None,
) -> StudySpec:
    """Read and check a study file.

    An entry of the file that loses its effect through the overrides (`backbone_lr_scale` where they leave only
    feature_extraction) is dropped. One that only `check_new_study` minds is named but stays: studies that were begun
    before have it in their content. Both are errors in the file alone, and if an override names the entry.

    Args:
        path: a TOML file.
        name: the study's name; the file's name without its suffix by default.
        overrides: (keys, value) pairs that replace entries of the file, in order.
        load_backbone: loads a custom backbone, or one of timm's networks; without it, no study of these can be loaded.
        report: called with a line for each entry that is dropped or has no effect.

    Raises:
        InputError: in one line: the file, the field and what would be right.
    """
    content = read_study_file(path)
    overrides = list(overrides)
    where = f"{path}, as set on the command line" if overrides else str(path)
    changed = _with_overrides(content, overrides)
    if "name" in changed:
        raise InputError(f"{where}: name: not a key; the study is named after its file, or by --name")
    try:
        changed = _with_loaded_backbone(changed, load_backbone)
    except ValueError as error:
        raise InputError(f"{where}: backbone.{error}") from None
    study_name = check_name(name or path.stem)
    notices: list[str] = []
    spec = None
    while True:
        try:
            checked = StudySpec(name=study_name, **changed)
            spec = spec or checked  # what is left out below, to find further faults, stays in it
            check_new_study(checked)
            break
        except ValueError as error:
            entry = _superfluous(error)
            if entry is None or not _is_by_overrides(entry.keys, content, changed, overrides):
                if spec is not None:
                    raise WithoutEffect(f"{where}: {error}", spec) from None
                message = validation_message(error) if isinstance(error, ValidationError) else str(error)
                raise InputError(f"{where}: {message}") from None
        changed = _without(changed, entry.keys)
        if spec is None or not entry.drop_notice:  # else it is right in the study, in which what it needs stays
            notices.append(entry.drop_notice or str(entry))
    if report is not None:
        for notice in notices:
            report(notice)
    return spec


def _with_overrides(content: dict[str, Any], overrides: list[tuple[list[str], Any]]) -> dict[str, Any]:
    """Return a copy of a file's content with some entries replaced."""
    changed = copy.deepcopy(content)
    for keys, value in overrides:
        table = changed
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise InputError(f"--set {'.'.join(keys)}: {key!r} is not a table")
        table[keys[-1]] = value
    return changed


def _superfluous(error: ValueError) -> Superfluous | None:
    """Return the check's exception if an error is about an entry that the study could do without."""
    if not isinstance(error, ValidationError):
        return error if isinstance(error, Superfluous) else None
    causes = [problem.get("ctx", {}).get("error") for problem in error.errors()]
    return next((cause for cause in causes if isinstance(cause, Superfluous)), None)


def _is_by_overrides(
    entry: Entry, content: dict[str, Any], changed: dict[str, Any], overrides: list[tuple[list[str], Any]]
) -> bool:
    """Return whether overrides made an entry superfluous: they do not name it, and the file alone has none."""
    if not overrides or any(_overlap(keys, entry) for keys, _ in overrides):
        return False
    try:
        # With the backbone as changed, so that a custom backbone's file is not run again.
        check_new_study(StudySpec(name="file", **{**content, "backbone": changed.get("backbone", {})}))
    except ValueError as error:
        return _superfluous(error) is None  # other faults, such as a missing key, the overrides may have mended
    return True


def _overlap(keys: Iterable[str], entry: Entry) -> bool:
    """Return whether one of two paths begins with the other."""
    return all(key == step for key, step in zip(keys, entry, strict=False))


def _without(content: dict[str, Any], entry: Entry) -> dict[str, Any]:
    """Return a copy of a study's content without an entry."""
    content = copy.deepcopy(content)
    *above, last = entry
    table: Any = content
    for key in above:
        table = table[key]
    del table[last]
    return content


def _with_loaded_backbone(content: dict[str, Any], load_backbone: LoadBackbone | None) -> dict[str, Any]:
    """Load the study's backbone if it is a custom one, or one of timm's; return the content with its full name.

    Raises:
        ValueError: a key is wrong; the message begins with it.
    """
    backbone, data = content.get("backbone"), content.get("data")
    if not isinstance(backbone, dict):
        return content
    module, name = None, backbone.get("name")
    weights: str | None = TIMM_WEIGHTS
    if {"module", "function"} & backbone.keys():
        for key, other in (("module", "function"), ("function", "module")):
            if not isinstance(backbone.get(key), str):
                raise ValueError(f"{key}: must be a text, together with backbone.{other}")
        if "name" in backbone:
            raise ValueError("name: not allowed together with backbone.module, which replaces it")
        module, name, weights = backbone["module"], backbone["function"], None
    elif not isinstance(name, str) or not is_timm(name):
        return content
    assert load_backbone is not None, "a study of a custom backbone, or of one of timm's, needs `load_backbone`"
    default = Data.model_fields["image_size"].default
    image_size = data.get("image_size", default) if isinstance(data, dict) else default
    if type(image_size) is not int or image_size < 1:
        image_size = default  # a wrong one is refused with the other keys
    return {**content, "backbone": {"weights": weights, **backbone, "name": load_backbone(module, name, image_size)}}


def validation_message(error: ValidationError) -> str:
    """Return a pydantic error as one line: each field, its fault, and the nearest key for an unknown one."""
    parts = []
    for problem in error.errors()[:3]:
        location = [str(step) for step in _without_tag(problem["loc"])]
        message = problem["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        if problem["type"] == "extra_forbidden":
            known = _keys_beside(_without_tag(problem["loc"]))
            message = f"unknown key{nearest(location[-1], known)}"
            if location[-1] in known:  # a range and choices together, or a range of names
                is_numeric = location[1] in _numeric_parameters()
                message = "a search has either low and high, or choices" if is_numeric else "has choices only"
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
    """Return a fault's location without the tag that pydantic inserts for a numeric search: range or choices."""
    is_tagged = len(location) > 2 and location[0] == "search" and location[1] in _numeric_parameters()
    return location[:2] + location[3:] if is_tagged else location


def _numeric_parameters() -> list[str]:
    """Return the parameters that a search may have a range of."""
    return [name for name, field in Hyperparameters.model_fields.items() if numeric_type(field.annotation) is not None]


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """Return the known keys of the table that has an unknown key."""
    model: Any = StudySpec
    for step in location[:-1]:
        if model is Search:
            return list(Range.model_fields | Choices.model_fields)
        if isinstance(step, str) and step in model.model_fields:
            model = LISTED.get(step) or without_none(model.model_fields[step].annotation)
    fields = model.model_fields
    return [key for key in fields if key != "name" or model is not StudySpec]
