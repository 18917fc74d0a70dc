"""The names of classes: which are unknown, and which look the same but differ in letters, spaces or Unicode."""

import unicodedata
from collections.abc import Collection, Iterable

from ablation.base.errors import InputError
from ablation.base.text import one_line


def refuse_unknown(chosen: Iterable[str], known: Collection[str]) -> None:
    """Refuse a name in `data.classes` that no class has.

    Raises:
        InputError: names it, and the classes that there are.
    """
    names = set(known)
    for name in chosen:
        if name not in names:
            raise InputError(one_line(f"data.classes: no class {name!r}; known: {', '.join(known)}"))


def refuse_look_alikes(names: Iterable[str]) -> None:
    """Refuse two classes that are one to a reader. Single letters may differ in case: A and a.

    Raises:
        InputError: names the two.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(folded(name), name)
        if other != name:
            raise InputError(
                f"data: the classes {other!r} and {name!r} differ only in case, spaces or how letters are written: "
                "give them one name, or name both in data.classes"
            )


def folded(name: str) -> str:
    """Return what is the same for names that look alike."""
    name = " ".join(unicodedata.normalize("NFC", name).split())
    return name if len(name) == 1 else unicodedata.normalize("NFC", name.casefold())
