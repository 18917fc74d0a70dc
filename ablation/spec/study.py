"""The content of a study file as pydantic models, checked before anything is written."""

from collections.abc import Iterator
from itertools import product
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from ablation.base.text import nearest, require_known
from ablation.spec.architectures import (
    ARCHITECTURES,
    block_names,
    cut_names,
    image_size_fault,
    kept_blocks,
    unit_names,
)
from ablation.spec.objective import OBJECTIVES, Objective, ObjectiveName
from ablation.spec.parameters import (
    ADDED,
    STRATEGIES,
    Choices,
    Configuration,
    Factors,
    Fixed,
    Grown,
    Hyperparameters,
    Range,
    Search,
)
from ablation.spec.reuse import PARTS, Reuse
from ablation.spec.tables import Backbone, Confirm, Data, Published, Tracking

ONE_BLOCK = "has no effect where fewer than two pretrained blocks learn"


class Superfluous(ValueError):
    """An entry of a study has no effect, or names a level or a factor that the study does not have.

    Attributes:
        keys: the entry's path in the file; without the entry, this error would not occur.
        drop_notice: the line for the user where the entry is dropped instead; '' for one that stays, see `load_study`.
    """

    def __init__(self, message: str, keys: tuple[str | int, ...], drop_notice: str = ""):
        super().__init__(message)
        self.keys = keys
        self.drop_notice = drop_notice


def _without_effect(keys: tuple[str | int, ...], reason: str) -> Superfluous:
    """Return the error of an entry that is dropped where overrides leave it without effect."""
    entry = ".".join(map(str, keys))
    return Superfluous(f"{entry}: {reason}", keys, f"{entry} is dropped: it {reason}")


class StudySpec(Grown):
    """One question: a study file with its overrides applied and its defaults filled in."""

    added = ("arms", "known", "objective", "preregister")

    name: str
    question: str
    trials_per_arm: int = Field(ge=1)
    epochs: int = Field(ge=1)
    seed: int = Field(0, ge=0, description="Every random number of the study derives from it.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="auto: bfloat16 where a device is faster in it, float16 on an older GPU, else float32.",
    )
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = Field(
        "none", description="Mode of torch.compile for the training step, compiled once per network shape."
    )
    objective: ObjectiveName = Field(
        "accuracy",
        description="The metric by which trials, epochs, arms and the champion are chosen, and which the report "
        "compares; loss (cross-entropy) is better the lower it is.",
    )
    deterministic: bool = Field(False, description="Bit-identical repeats on CUDA, slower; on the CPU they always are.")
    backbone: Backbone = Backbone()
    data: Data = Data()
    fixed: Fixed = Fixed()
    factors: Factors = Factors()
    arms: list[Configuration] = Field(
        [],
        description="The arms one by one, in place of [factors]: a comparison that is no full grid. What an arm does "
        "not set is as in [fixed].",
    )
    search: Search = Search()
    known: list[Configuration] = Field(
        [],
        description="Values of searched parameters that every arm's first trials have; the search draws what one does "
        "not set.",
    )
    preregister: bool = Field(
        False,
        description="Seal the question, the arms, the tests and the digests of data, weights and code before the first "
        "trial; the report says what differs.",
    )
    confirm: Confirm = Confirm()
    tracking: Tracking = Tracking()
    published: list[Published] = Field([])

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_tables(self)
        _check_effects(self)  # first: a value without effect cannot make a combination impossible
        _check_depths(self)
        _check_arms(self)
        for levels in self.combinations():
            _check_combination(self, levels)
        for number in range(len(self.published)):
            _check_published(self, number)
        _check_repeats(self)
        for number in range(len(self.known)):
            _check_known(self, number)
        if self.confirm.champion == "cheapest" and self.objective != "accuracy":
            raise ValueError("confirm.champion: 'cheapest' compares accuracies; it needs objective = 'accuracy'")
        if self.confirm.compare == "control":
            for factor, compared in self.compared_levels().items():
                if len(compared) > 1 and factor not in self.confirm.control:
                    raise ValueError(f"confirm.control: compare = 'control' needs the control of {factor}")
        for factor, level in self.confirm.control.items():
            if level not in self.compared_levels().get(factor, []):
                entry = f"{factor} = {level!r}"
                raise Superfluous(
                    f"confirm.control: {entry} is not a level of a factor",
                    ("confirm", "control", factor),
                    f"confirm.control: {entry} is dropped: it is not a level of a factor",
                )
        return self

    @property
    def goal(self) -> Objective:
        """The objective with all that follows from it."""
        return OBJECTIVES[self.objective]

    @property
    def margin(self) -> float | None:
        """The equivalence margin as a fraction, of a loss in nats; None without one."""
        return None if self.confirm.equivalence is None else self.confirm.equivalence / self.goal.per_unit

    def combinations(self) -> list[dict[str, Any]]:
        """Return the factor levels of every arm, the first factor slowest; without factors, one empty dict.

        In a study with [[arms]], they are the parameters that each arm sets.
        """
        if self.arms:
            return [arm.entries() for arm in self.arms]
        factors: dict[str, list[Any]] = self.factors.entries()
        return [dict(zip(factors, levels, strict=True)) for levels in product(*factors.values())]

    def arm_parameters(self) -> list[str]:
        """Return the factors, or the parameters that at least one of [[arms]] sets."""
        names = {name for levels in self.combinations() for name in levels}
        return [name for name in Hyperparameters.model_fields if name in names]

    def compared_levels(self) -> dict[str, list[Any]]:
        """Return what the report compares: factor -> its levels, or 'arm' -> the names of [[arms]]."""
        return {"arm": [arm.label for arm in self.arms]} if self.arms else self.factors.entries()

    def repeat_of(self, trial: int) -> int:
        """Return the repeat of the tuning, from 0, that a trial with this number belongs to: repeats take turns."""
        return trial % self.confirm.repeats

    def place_of(self, trial: int) -> int:
        """Return the number of a trial, from 0, among those of its repeat."""
        return trial // self.confirm.repeats

    def trials_of(self, repeat: int) -> int:
        """Return how many of an arm's trials a repeat has; the first repeats have one more where they are unequal."""
        return len(range(repeat, self.trials_per_arm, self.confirm.repeats))

    def known_number(self, trial: int) -> int | None:
        """Return which known configuration every arm's trial with this number has; None for one that is drawn.

        Each repeat begins with the known configurations.
        """
        place = self.place_of(trial)
        return place if place < len(self.known) else None

    def known_name(self, trial: int) -> str | None:
        """Return the name of the known configuration of every arm's trial with this number; None for other trials."""
        number = self.known_number(trial)
        return None if number is None else self.known[number].label

    def possible(self, parameter: str, levels: dict[str, Any]) -> list[Any]:
        """Return the values that a parameter can take in the arm with these levels (a range: its two ends)."""
        if parameter in levels:
            return [levels[parameter]]
        searched = self.search.get(parameter)
        if searched is not None:
            return list(searched.choices) if isinstance(searched, Choices) else [searched.low, searched.largest]
        return [self.default(parameter)]

    def may_exceed_zero(self, parameter: str) -> bool:
        """Return whether a numeric parameter is above 0 in a trial of some arm."""
        return any(max(self.possible(parameter, levels)) > 0 for levels in self.combinations())

    def reuses(self, levels: dict[str, Any]) -> list[Reuse]:
        """Return every way in which a trial of an arm may reuse the backbone."""
        search = self.search.get("freeze_depth")
        reuses = []
        for cut in self.possible("truncate_at", levels):
            depths = self.possible("freeze_depth", levels)
            if isinstance(search, Range) and "freeze_depth" not in levels:  # the search lowers its upper end
                high = min(search.high, kept_blocks(self.backbone.name, cut))
                depths = list(range(search.low, max(search.low, high) + 1, search.step or 1))
            others = (self.possible("strategy", levels), depths, self.possible("learn", levels))
            reuses += [Reuse(self.backbone.name, cut, *values) for values in product(*others)]
        return reuses

    def leaves_out(self, parameter: str) -> bool:
        """Return whether what is stored leaves a parameter out: it is new, and has its default in every arm."""
        if parameter not in ADDED or self.search.get(parameter) is not None:
            return False
        is_default = self.default(parameter) == Hyperparameters.model_fields[parameter].default
        return is_default and parameter not in self.arm_parameters()

    def default(self, parameter: str) -> Any:
        """Return the fixed value of a parameter that is neither a factor nor searched."""
        value = self.fixed.get(parameter)
        if value is None:
            value = Hyperparameters.model_fields[parameter].default
        if parameter == "truncate_at" and value is None:
            value = block_names(self.backbone.name)[-1]
        return value

    def content(self) -> dict[str, Any]:
        """Return what identifies the study besides its name: the whole file without the paths in it."""
        paths = {"data": {"root", "manifest"}, "backbone": {"module", "function"}}
        content: dict[str, Any] = self.model_dump(mode="json", exclude={"name": True, **paths})
        for table in ("factors", "search"):
            content[table] = {key: value for key, value in content[table].items() if value is not None}
        for table in content.keys() & {"arms", "known"}:
            content[table] = [
                {key: value for key, value in item.items() if value is not None} for item in content[table]
            ]
        set_by_all = set.intersection(*({*levels} for levels in self.combinations()))
        varied = content["search"].keys() | set_by_all
        content["fixed"] = {name: self.default(name) for name in Hyperparameters.model_fields if name not in varied}
        # Left out at their defaults, so that studies stored before these options existed keep their identity.
        if self.compile == "none":
            del content["compile"]
        if content["fixed"].get("class_weights") == "none":
            del content["fixed"]["class_weights"]
        content["fixed"] = {name: value for name, value in content["fixed"].items() if not self.leaves_out(name)}
        if self.backbone.has_weights_file:
            content["backbone"]["weights"] = "file"  # the digest of its tensors is added once they are read
        return content


def _check_tables(spec: StudySpec) -> None:
    """Refuse a parameter that is in two tables, and a block or unit that the backbone does not have."""
    tables = {"fixed": spec.fixed.entries(), "factors": spec.factors.entries(), "search": spec.search.entries()}
    for parameter in Hyperparameters.model_fields:
        places = [table for table, entries in tables.items() if parameter in entries]
        if len(places) > 1:
            raise ValueError(f"{places[1]}.{parameter}: also in [{places[0]}]; a parameter can be in one table only")
    blocks = block_names(spec.backbone.name)
    units = [unit for names in unit_names(spec.backbone.name) for unit in names]
    names = {
        "truncate_at": (blocks + units, "block or unit"),
        "freeze_depth": (units, "unit"),
        "learn": ([*PARTS, *blocks], "part or block"),
    }
    for parameter, (known, what) in names.items():
        for keys, value in _values(spec, parameter):
            if isinstance(value, str) and value not in known:
                raise ValueError(f"{'.'.join(map(str, keys))}: unknown {what} {value!r}{nearest(value, known)}")


def _values(spec: StudySpec, parameter: str) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Yield the path in the file and the value of each entry that gives a parameter a value; not of a range."""
    if (value := spec.fixed.get(parameter)) is not None:
        yield ("fixed", parameter), value
    for number, level in enumerate(spec.factors.get(parameter) or []):
        yield ("factors", parameter, number), level
    if isinstance(searched := spec.search.get(parameter), Choices):
        for number, choice in enumerate(searched.choices):
            yield ("search", parameter, "choices", number), choice
    for table, entries in (("arms", spec.arms), ("known", spec.known)):
        for number, entry in enumerate(entries):
            if (value := entry.get(parameter)) is not None:
                yield (table, number, parameter), value


def _check_combination(spec: StudySpec, levels: dict[str, Any]) -> None:
    """Refuse an arm in which a combination of values is impossible, or a factor has no effect."""
    strategies = spec.possible("strategy", levels)
    for cut in spec.possible("truncate_at", levels):
        if fault := image_size_fault(spec.data.image_size, spec.backbone.name, cut):
            raise ValueError(f"data.image_size: {fault}")
    if spec.backbone.weights is None and any(STRATEGIES[strategy].starts_pretrained for strategy in strategies):
        random_starts = [name for name, strategy in STRATEGIES.items() if not strategy.starts_pretrained]
        raise ValueError(f"backbone.weights: only {' or '.join(random_starts)} can do without pretrained weights")
    learns_batch_norm = ARCHITECTURES[spec.backbone.name].has_batch_norm and any(
        STRATEGIES[reuse.strategy].freezes != "all" and reuse.learn != "biases" for reuse in spec.reuses(levels)
    )
    if 1 in spec.possible("batch_size", levels):
        owner = spec.backbone.name if learns_batch_norm else "the head"
        if learns_batch_norm or "batch" in spec.possible("head_norm", levels):
            raise ValueError(f"batch_size: {owner} has batch norm, which learns nothing from single images")
    warmup = max(spec.possible("head_warmup_epochs", levels))
    if warmup > spec.epochs:
        raise ValueError(f"head_warmup_epochs: {warmup} is more than epochs = {spec.epochs}")
    unfreezing = max(spec.possible("unfreeze_every", levels))
    if unfreezing >= spec.epochs:
        raise ValueError(f"unfreeze_every: {unfreezing} must be less than epochs = {spec.epochs}, or no block learns")
    depths = spec.possible("freeze_depth", levels)
    for strategy in strategies:
        if STRATEGIES[strategy].freezes == "freeze_depth" and depths == [None]:
            table = "[[arms]]" if spec.arms else "[factors]"
            raise ValueError(f"freeze_depth: {strategy} needs it in [fixed], {table} or [search]")
    for parameter, reason in filter(None, (reuse.fault() for reuse in spec.reuses(levels))):
        raise ValueError(f"{table_of(spec, parameter, levels)}.{parameter}: {reason}{_in_arm(levels)}")
    for factor in levels:
        if not applies_in(spec, factor, levels):
            raise ValueError(
                f"{table_of(spec, factor, levels)}.{factor}: has no effect in the arm with {levels_text(levels)}"
            )


def levels_text(levels: dict[str, Any]) -> str:
    """Return levels, or what an arm sets, as text."""
    return ", ".join(f"{name} = {level}" for name, level in levels.items())


def _in_arm(levels: dict[str, Any]) -> str:
    return f" ({levels_text(levels)})" if levels else ""


def table_of(spec: StudySpec, parameter: str, levels: dict[str, Any]) -> str:
    """Return the table from which trials of an arm have a parameter."""
    if parameter in levels:
        return f"arms.{spec.combinations().index(levels)}" if spec.arms else "factors"
    return "search" if spec.search.get(parameter) is not None else "fixed"


def applies_in(spec: StudySpec, parameter: str, levels: dict[str, Any]) -> bool:
    """Return whether a parameter has an effect on some trial of the arm with these levels."""
    return any(reuse.applies(parameter) for reuse in spec.reuses(levels))


def _check_arms(spec: StudySpec) -> None:
    """Refuse [[arms]] beside [factors] or [search] of the same parameter, and arms of one name."""
    if not spec.arms:
        return
    if spec.factors.entries():
        raise ValueError("arms: a study has either [factors] or [[arms]]")
    labels: list[str] = []
    for number, arm in enumerate(spec.arms):
        levels = arm.entries()
        for parameter in levels:
            if spec.search.get(parameter) is not None:
                raise ValueError(f"arms.{number}.{parameter}: also in [search]; a parameter can be in one of them only")
        if not arm.label:
            raise ValueError(f"arms.{number}: an arm that sets nothing needs a name")
        if arm.label in labels or arm.label == "confirmation":  # which would be read as the end of another study's name
            raise ValueError(f"arms.{number}: needs another name than {arm.label!r}")
        labels.append(arm.label)
    for parameter in spec.fixed.entries():
        if all(parameter in levels for levels in spec.combinations()):
            raise _without_effect(("fixed", parameter), "has no effect, because every arm sets it")


def _check_effects(spec: StudySpec) -> None:
    """Refuse a parameter that is set or searched but has no effect in any arm."""
    strategies = {s for levels in spec.combinations() for s in spec.possible("strategy", levels)}
    last = block_names(spec.backbone.name)[-1]
    for table in ("fixed", "search"):
        for parameter in getattr(spec, table).entries():
            reason = f"has no effect under {', '.join(sorted(strategies))}"
            has_effect = any(Reuse(spec.backbone.name, last, strategy).applies(parameter) for strategy in strategies)
            if has_effect and parameter in ADDED:  # older studies may have other parameters where all is frozen
                reason = ONE_BLOCK if parameter == "lr_decay" else "has no effect where all layers are frozen"
                has_effect = any(applies_in(spec, parameter, levels) for levels in spec.combinations())
            if not has_effect:
                raise _without_effect((table, parameter), reason)
    for keys, value in _values(spec, "learn"):
        if value == "norms" and not ARCHITECTURES[spec.backbone.name].has_norms:
            reason = f"lets norms learn, but {spec.backbone.name} has no normalisation layers"
            raise _without_effect(keys[:2] if keys[0] in ("arms", "known") else keys, reason)


def _check_depths(spec: StudySpec) -> None:
    """Refuse a range of depths beyond the blocks that any arm keeps; at other cuts the search lowers its upper end."""
    depths = spec.search.get("freeze_depth")
    if isinstance(depths, Range):
        cuts = {cut for levels in spec.combinations() for cut in spec.possible("truncate_at", levels)}
        most = max(kept_blocks(spec.backbone.name, cut) for cut in cuts)
        if depths.largest > most:
            raise ValueError(f"search.freeze_depth: {depths.largest} blocks cannot be frozen where {most} are kept")


def _check_known(spec: StudySpec, number: int) -> None:
    """Refuse a known configuration that some arm's search cannot choose, or that is listed twice."""
    known, values = spec.known[number], spec.known[number].entries()
    if not values:
        raise ValueError(f"known.{number}: sets no parameter")
    earlier = spec.known[:number]
    if any(values == other.entries() or known.label == other.label for other in earlier):
        raise ValueError(f"known.{number}: {known.label!r} is listed twice")
    for parameter, value in values.items():
        search = spec.search.get(parameter)
        if search is not None and search.contains(value):
            continue
        if not any(applies_in(spec, parameter, levels) for levels in spec.combinations()):
            raise _without_effect(("known", number, parameter), "has no effect in any arm")
        reason = f"{parameter} = {value!r} is outside of its range" if search else f"{parameter!r} is not searched"
        raise Superfluous(
            f"known.{number}: {reason}",
            ("known", number),
            f"the known configuration {known.label} is dropped: {reason}",
        )
    for levels in spec.combinations():
        for parameter, reason in filter(None, (reuse.fault() for reuse in spec.reuses(levels | values))):
            raise ValueError(f"known.{number}.{parameter}: {reason}{_in_arm(levels)}")


def _check_repeats(spec: StudySpec) -> None:
    """Refuse looks without arms to compare, repeats without trials enough, and one repeat that depends on another."""
    repeats, trials = spec.confirm.repeats, spec.trials_per_arm
    if spec.confirm.looks and len(spec.combinations()) < 2:
        raise ValueError("confirm.looks: a study with one arm compares nothing, so that no look could end it early")
    if repeats > trials:
        raise ValueError(f"confirm.repeats: {repeats} tunings need as many trials, but trials_per_arm is {trials}")
    if len(spec.known) > trials // repeats:
        each = f", which {repeats} repeats share" if repeats > 1 else ""
        raise ValueError(f"known: {len(spec.known)} configurations do not fit into {trials} trials_per_arm{each}")
    if repeats == 1:
        return
    if spec.search.sampler == "tpe":
        raise ValueError("search.sampler: 'tpe' learns from the trials of all repeats; with confirm.repeats use 'qmc'")
    if spec.search.pruner != "none":
        raise ValueError(
            f"search.pruner: {spec.search.pruner!r} compares the trials of all repeats; with confirm.repeats use 'none'"
        )
    if spec.confirm.compare == "leader":
        raise ValueError("confirm.compare: each repeat may have another leader; with confirm.repeats use 'all'")


def _check_published(spec: StudySpec, number: int) -> None:
    """Refuse a published result whose arm has another factor, or a level that no study can have."""
    published = spec.published[number]
    for factor in published.arm:
        if factor not in spec.arm_parameters():
            reason = f"{factor!r} is not one of the factors" if not spec.arms else f"no arm sets {factor!r}"
            raise Superfluous(
                f"published.arm: {reason}",
                ("published", number),
                f"the published result for {levels_text(published.arm)} is dropped: {reason}",
            )
        if factor == "truncate_at":
            require_known(str(published.arm[factor]), cut_names(spec.backbone.name), "block or unit")
        try:
            Factors(**{factor: [published.arm[factor]]})
        except ValidationError as error:
            raise ValueError(f"published.arm.{factor}: {error.errors()[0]['msg']}") from None
