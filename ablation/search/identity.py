"""A study's identity: its content, compared with that of the trials that its name has already."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from ablation.base.errors import InputError
from ablation.search.studies import brief_storage, has_begun, stored_arms, stored_content, stored_studies
from ablation.spec.architectures import function_name, is_custom, is_timm
from ablation.storage.store import Store

MAY_CHANGE = ("trials_per_arm", "confirm")  # of a study that has trials
NEVER_CHANGES = "confirm.repeats"  # what a trial is depends on it
# What must be declared before the first look at the test images: once a confirmation run has begun, it is fixed.
DECLARED = ("confirm.control", "confirm.compare", "confirm.looks")
PLANNED = ("confirm.seeds", "trials_per_arm", "confirm.equivalence")  # the same, where looks are planned


def check_identity(
    storage: BaseStorage,
    study: str,
    content: dict[str, Any],
    ignored: Sequence[str] = (),
    *,
    is_begun: bool = False,
    own_weights: Path | None = None,
) -> None:
    """Refuse to resume a study whose file, data, weights or code differ from those of its trials.

    Args:
        storage: where the trials are.
        study: the study's name.
        content: the study's content now.
        ignored: fields of the content that are not known yet.
        is_begun: whether another process has begun the study, so that the check applies even if there is no trial yet.
        own_weights: the file of a demo's weights, which each machine pretrains. Those of another kind of CPU differ,
            and are refused even if there is no trial yet: the machine that has begun the study is about to make one.
            A demo may change its network until then.

    Raises:
        InputError: names the changed fields, and a name under which the variant can run.
    """

    def stored_contents() -> dict[str, dict[str, Any]]:
        arms = stored_arms(storage, study, confirmation=False)
        return {name: arm.get("content", {}) for name, arm in arms.items()}

    contents = stored_contents()
    for old_content in contents.values():
        fields = [field for field, *_ in differences(old_content, content)]
        if own_weights is not None and "backbone.weights_digest" in fields and "backbone.name" not in fields:
            raise InputError(
                f"study {study!r} was begun with another pretrained network (of another kind of CPU, or of an older "
                f"version): copy {own_weights.parent.name}/{own_weights.name} from the store in which it was begun to "
                f"{own_weights}, or run the demo in another --store"
            )
    # Trials are asked for only where something differs: that takes seconds in a study with a hundred arms.
    is_declared = any(changed_declarations(old_content, content) for old_content in contents.values())
    is_confirmed = is_declared and any(
        has_begun(storage, name) for name in stored_arms(storage, study, confirmation=True)
    )

    def changes(old_content: dict[str, Any]) -> list[str]:
        declared = changed_declarations(old_content, content) if is_confirmed else []
        return [*content_changes(old_content, content, ignored), *declared]

    for name, old_content in contents.items():
        if not changes(old_content) or not (is_begun or has_begun(storage, name)):
            continue
        # Read again: before the arm had a trial, another process may have replaced what was compared.
        changed = changes(stored_contents().get(name, content))
        if changed:
            names = stored_studies(storage)
            free_name = next(free for number in count(2) if (free := f"{study}-{number}") not in names)
            how = "in another --store" if study.endswith("-demo") else f"as a study of its own, with --name {free_name}"
            raise InputError(
                f"study {study!r} has trials that were made with other settings: {'; '.join(changed)}; "
                f"run this variant {how}"
            )


def check_not_replaced(store: Store, study: str, content: dict[str, Any]) -> None:
    """Refuse to work on Optuna studies that another process has replaced before they had a trial, see `create_arms`.

    Raises:
        InputError: the study of this name has other content; names the changed fields.
    """
    with brief_storage(store) as storage:
        stored = None if storage is None else stored_content(storage, study)
    if stored is not None:
        refuse_replaced(study, content_changes(stored, content))


def refuse_replaced(study: str, changes: Sequence[str]) -> None:
    """Refuse to work on a study that another process has begun anew with these changes of its content, if any.

    Raises:
        InputError: names the changes.
    """
    if changes:
        raise InputError(f"another study called {study!r} was begun at the same time: {'; '.join(changes)}")


def changed_declarations(old_content: dict[str, Any], content: dict[str, Any]) -> list[str]:
    """Return what was declared before the first confirmation run and is another now, such as the control."""
    declared = (*DECLARED, *(PLANNED if old_content.get("confirm", {}).get("looks") else ()))
    return [
        f"{field} (was {_shown(old)}, is {_shown(new)}: it is declared before the first confirmation run)"
        for field, old, new in differences(old_content, content)
        if _is_in(field, declared)
    ]


def content_changes(old_content: dict[str, Any], content: dict[str, Any], ignored: Sequence[str] = ()) -> list[str]:
    """Return the fields in which two contents differ, such as 'epochs (was 10, is 11)'.

    Budgets, which may change, and `ignored` fields are left out.
    """
    return [
        f"{field} (was {_shown(old)}, is {_shown(new)}{_why(field, old, new)})"
        for field, old, new in differences(old_content, content)
        if field == NEVER_CHANGES or not _is_in(field, (*MAY_CHANGE, *ignored))
    ]


def _is_in(field: str, fields: Sequence[str]) -> bool:
    """Return whether a field is one of these, or a part of one."""
    return any(f"{field}.".startswith(f"{other}.") for other in fields)


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)


def _why(field: str, old: Any, new: Any) -> str:
    """Return in words what a changed digest means; '' for other fields."""
    are_custom = field == "backbone.name" and all(isinstance(name, str) and is_custom(name) for name in (old, new))
    if are_custom and function_name(old) == function_name(new):
        what = "timm's version, or the image size," if is_timm(new) else "its code, or what that imports,"
        return f": {what} has changed"
    whys = {
        "data.digest": ": the images have changed",
        "data.decoding": ": its images were decoded by another version of ablation",
    }
    return whys.get(field, "")


def differences(old: Any, new: Any, field: str = "") -> list[tuple[str, Any, Any]]:
    """Return (field, old, new) for every place in which two nested contents differ, in their order."""
    if isinstance(old, dict) and isinstance(new, dict):
        nested = []
        for key in dict.fromkeys([*old, *new]):
            nested += differences(old.get(key), new.get(key), f"{field}.{key}" if field else key)
        return nested
    return [] if old == new else [(field, old, new)]
