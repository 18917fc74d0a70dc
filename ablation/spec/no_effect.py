"""Refuses in a study file what has no effect. A stored study may have it, from before it was refused."""

from typing import Any

from ablation.spec.arms import arms, published_for
from ablation.spec.parameters import Range
from ablation.spec.study import StudySpec, Superfluous, applies_in, levels_text, table_of
from ablation.spec.tables import FILE_SOURCES, SIZED_SOURCES

REUSED = ("strategy", "truncate_at", "freeze_depth", "learn")  # what a `Reuse` is made of


def check_new_study(spec: StudySpec) -> None:
    """Refuse in a study that has not begun arms that train the same, and values with which nothing changes.

    Raises:
        Superfluous: of a value that the study could do without.
        ValueError: of an arm, or of a factor's level.
    """
    _check_data(spec)
    _check_same_arms(spec)
    _check_patience(spec)
    _check_unfreezing(spec)
    _check_published(spec)


def _check_data(spec: StudySpec) -> None:
    """Refuse what is for image files of many sizes, where a set is of other images."""
    data = spec.data
    for key, is_set, sources, reason in (
        ("resize", data.resize != "crop", SIZED_SOURCES, "whose images all have one size"),
        ("unreadable", data.unreadable == "skip", FILE_SOURCES, "which is read as a whole"),
    ):
        if is_set and not data.is_own and data.source not in sources:
            raise Superfluous(f"data.{key}: has no effect on {data.source}, {reason}", ("data", key))


def _check_same_arms(spec: StudySpec) -> None:
    """Refuse [[arms]], or levels of a factor, that train the same under other names."""
    names = [name for name in spec.arm_parameters() if name not in REUSED]
    trained = [_training(spec, arm.entries(), names) for arm in spec.arms]
    for number, training in enumerate(trained):
        if (first := trained.index(training)) < number:
            raise ValueError(f"arms.{number}: trains the same as {spec.arms[first].label!r}")
    factors, combinations = spec.factors.entries(), spec.combinations()
    trained = [_training(spec, arm, names) for arm in combinations] if factors else []
    for factor, levels in factors.items():
        arms = [
            [training for training, arm in zip(trained, combinations, strict=True) if arm[factor] == level]
            for level in levels
        ]
        for number, of_level in enumerate(arms):
            if (first := arms.index(of_level)) < number:
                raise ValueError(f"factors.{factor}: {levels[number]!r} trains the same as {levels[first]!r}")


def _training(spec: StudySpec, levels: dict[str, Any], names: list[str]) -> tuple[Any, ...]:
    """Return what a training in the arm with these levels depends on, by whatever names they call it."""
    others = [name for name in names if applies_in(spec, name, levels)]
    return [reuse.training for reuse in spec.reuses(levels)], [(name, spec.possible(name, levels)) for name in others]


def _check_patience(spec: StudySpec) -> None:
    """Refuse a patience that no training can lose before its last epoch."""
    searched = spec.search.get("patience")
    for levels in spec.combinations():
        values = spec.possible("patience", levels)
        if isinstance(searched, Range) and "patience" not in levels:
            values = [searched.low or searched.step or 1]
        patience = min((value for value in values if value > 0), default=0)
        if patience >= max(spec.epochs - 1, 1):
            _refuse(spec, "patience", levels, f"has no effect within epochs = {spec.epochs}", f"{patience} ")


def _check_unfreezing(spec: StudySpec) -> None:
    """Refuse `unfreeze_every` where a warm-up comes before the only block that learns, in an arm's level or in all."""
    unfreezing = [levels for levels in spec.combinations() if max(spec.possible("unfreeze_every", levels)) > 0]
    in_vain = [
        levels
        for levels in unfreezing
        if min(spec.possible("head_warmup_epochs", levels)) > 0
        and all(reuse.learning_blocks < 2 for reuse in spec.reuses(levels))
    ]
    for levels in in_vain:
        if "unfreeze_every" in levels or in_vain == unfreezing:
            reason = "has no effect after a warm-up where fewer than two blocks learn"
            _refuse(spec, "unfreeze_every", levels, reason)


def _check_published(spec: StudySpec) -> None:
    """Refuse a published result that no arm's page would show."""
    shown = [published for arm in arms(spec) for published in published_for(spec, arm)]
    for number, published in enumerate(spec.published):
        if published.model_dump() not in shown:
            reason = f"is shown nowhere: no arm has {levels_text(published.arm)}"
            raise Superfluous(f"published.arm: {reason}", ("published", number))


def _refuse(spec: StudySpec, parameter: str, levels: dict[str, Any], reason: str, value: str = "") -> None:
    """Raise an error that names the table from which an arm has a parameter."""
    table = table_of(spec, parameter, levels)
    entry = f"{table}.{parameter}"
    if table in ("fixed", "search"):
        raise Superfluous(f"{entry}: {value}{reason}", (table, parameter))
    raise ValueError(f"{entry}: {value}{reason}")
