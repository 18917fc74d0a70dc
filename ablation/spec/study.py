"""The content of a study file as pydantic models, checked before anything is written."""

import re
from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from ablation.base.text import require_known
from ablation.spec.architectures import ARCHITECTURES, block_names, cut_names, is_custom, kept_blocks, smallest_image
from ablation.spec.parameters import (
    STRATEGIES,
    Choices,
    Factors,
    Fixed,
    Hyperparameters,
    Range,
    Search,
    Strict,
    applies,
    refuse_duplicates,
)

WEIGHTS_FILES = (".safetensors", ".pth")
TORCHVISION_WEIGHTS = re.compile("imagenet|[A-Z][A-Z0-9_]*")


class Superfluous(ValueError):
    """An entry of a study has no effect, or names a level or a factor that the study does not have.

    Attributes:
        keys: the entry's path in the file; without the entry, this error would not occur.
        drop_notice: the line for the user where the entry is dropped instead.
    """

    def __init__(self, message: str, keys: tuple[str | int, ...], drop_notice: str):
        super().__init__(message)
        self.keys = keys
        self.drop_notice = drop_notice


class Backbone(Strict):
    """The network that is reused."""

    name: str = Field(
        "vgg16",
        description="A torchvision network, or vgg16_narrow (VGG-16 with an eighth of the channels).",
        json_schema_extra={"enum": list(ARCHITECTURES)},
    )
    module: str | None = Field(
        None,
        description="Python file of a custom backbone, in place of name: a function in it returns the blocks.",
    )
    function: str | None = Field(None, description="That function's name; it takes no arguments.")
    weights: str | None = Field(
        "imagenet",
        description="imagenet (torchvision's default weights), the name of other torchvision weights, such as "
        "IMAGENET1K_V1, or a .safetensors or .pth file with torchvision's tensor names.",
    )
    missing_layers: Literal["error", "random"] = Field(
        "error", description="Whether a file that lacks a layer is refused, or the layer starts at random."
    )

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return require_known(name, ARCHITECTURES, "backbone")

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, weights: str | None) -> str | None:
        if weights is not None and not weights.endswith(WEIGHTS_FILES) and not TORCHVISION_WEIGHTS.fullmatch(weights):
            raise ValueError(
                "must be 'imagenet', the name of other torchvision weights such as 'IMAGENET1K_V1', or a .safetensors "
                f"or .pth file, got {weights!r}"
            )
        return weights

    @property
    def has_weights_file(self) -> bool:
        """Whether the weights come from a file that the user names."""
        return self.weights is not None and self.weights.endswith(WEIGHTS_FILES)

    @model_validator(mode="after")
    def _check(self) -> Self:
        is_in_torchvision = self.name != "vgg16_narrow" and not is_custom(self.name)
        if self.weights is not None and not self.has_weights_file and not is_in_torchvision:
            raise ValueError(f"torchvision has no weights for {self.name}: weights must name a file")
        return self


class Data(Strict):
    """The images."""

    source: Literal[
        "cifar10", "cifar100", "mnist", "fashion_mnist", "kmnist", "svhn", "stl10", "flowers102", "oxford_pets", "dtd",
        "food101", "imagefolder", "digits",
    ] = "cifar10"  # fmt: skip
    root: str | None = Field(
        None, description="Folder of the images; torchvision's data sets are downloaded into it (by default: data)."
    )
    val_fraction: float = Field(
        0.1, gt=0, lt=1, description="Share of the training images that is split off for validation, stratified."
    )
    limit: int | None = Field(
        None, ge=2, description="Number of training images to use, a stratified subset drawn before that split."
    )
    classes: Annotated[list[str], Field(min_length=2)] | None = Field(None, description="Use only these classes.")
    image_size: int = Field(
        32, ge=1, le=1024, description="Height and width in pixels of the network's input; other images are resized."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.source == "imagefolder" and self.root is None:
            raise ValueError("source = 'imagefolder' needs root = <folder with train/<class>/* and test/<class>/*>")
        refuse_duplicates(self.classes or [])
        return self


class Confirm(Strict):
    """How many times each arm's best configuration is retrained with a fresh seed, and which levels are compared."""

    seeds: int = Field(0, ge=0, description="Retrainings of each arm's best configuration.")
    control: dict[str, str | int | float] = Field(
        {},
        description="Factor -> the level that its other levels are compared with; by default, all pairs are compared.",
    )


class Tracking(Strict):
    """What the store keeps of the runs."""

    checkpoints: Literal["all", "best_per_arm"] = Field("all", description="Whose checkpoints are kept.")


class Published(Strict):
    """Metrics that were published for an arm, shown beside the study's own."""

    arm: dict[str, str | int | float]
    source: str | None = None
    loss: float | None = None
    accuracy: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None


class StudySpec(Strict):
    """One question: a study file with its overrides applied and its defaults filled in."""

    name: str
    question: str
    trials_per_arm: int = Field(ge=1)
    epochs: int = Field(ge=1)
    seed: int = Field(0, ge=0, description="Every random number of the study derives from it.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on CUDA (float16 on an older GPU), else float32."
    )
    compile: Literal["none", "default"] = Field(
        "none", description="Mode of torch.compile for the training step, compiled once per network shape."
    )
    deterministic: bool = Field(False, description="Bit-identical repeats on CUDA, slower; on the CPU they always are.")
    backbone: Backbone = Backbone()
    data: Data = Data()
    fixed: Fixed = Fixed()
    factors: Factors = Factors()
    search: Search = Search()
    confirm: Confirm = Confirm()
    tracking: Tracking = Tracking()
    published: list[Published] = Field([])

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_tables(self)
        _check_effects(self)  # first: a value without effect cannot make a combination impossible
        for levels in self.combinations():
            _check_combination(self, levels)
        for number in range(len(self.published)):
            _check_published(self, number)
        for factor, level in self.confirm.control.items():
            if level not in self.factors.entries().get(factor, []):
                entry = f"{factor} = {level!r}"
                raise Superfluous(
                    f"confirm.control: {entry} is not a level of a factor",
                    ("confirm", "control", factor),
                    f"confirm.control: {entry} is dropped: it is not a level of a factor",
                )
        return self

    def combinations(self) -> list[dict[str, Any]]:
        """Return the factor levels of every arm, the first factor slowest; without factors, one empty dict."""
        factors: dict[str, list[Any]] = self.factors.entries()
        return [dict(zip(factors, levels, strict=True)) for levels in product(*factors.values())]

    def possible(self, parameter: str, levels: dict[str, Any]) -> list[Any]:
        """Return the values that a parameter can take in the arm with these levels (a range: its two ends)."""
        if parameter in levels:
            return [levels[parameter]]
        searched = self.search.get(parameter)
        if searched is not None:
            return list(searched.choices) if isinstance(searched, Choices) else [searched.low, searched.high]
        return [self.default(parameter)]

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
        paths = {"data": {"root"}, "backbone": {"module", "function"}}
        content: dict[str, Any] = self.model_dump(mode="json", exclude={"name": True, **paths})
        for table in ("factors", "search"):
            content[table] = {key: value for key, value in content[table].items() if value is not None}
        varied = content["factors"].keys() | content["search"].keys()
        content["fixed"] = {name: self.default(name) for name in Hyperparameters.model_fields if name not in varied}
        # Left out at their defaults, so that studies stored before these options existed keep their identity.
        if self.compile == "none":
            del content["compile"]
        if content["fixed"].get("class_weights") == "none":
            del content["fixed"]["class_weights"]
        if self.backbone.has_weights_file:
            content["backbone"]["weights"] = "file"  # the digest of its tensors is added once they are read
        return content


def _check_tables(spec: StudySpec) -> None:
    """Refuse a parameter that is in two tables, and a cut that the backbone does not have."""
    tables = {"fixed": spec.fixed.entries(), "factors": spec.factors.entries(), "search": spec.search.entries()}
    for parameter in Hyperparameters.model_fields:
        places = [table for table, entries in tables.items() if parameter in entries]
        if len(places) > 1:
            raise ValueError(f"{places[1]}.{parameter}: also in [{places[0]}]; a parameter can be in one table only")
    for table, entries in tables.items():
        value = entries.get("truncate_at")
        cuts = [value] if isinstance(value, str) else value.choices if isinstance(value, Choices) else value or []
        for cut in cuts:
            try:
                require_known(cut, cut_names(spec.backbone.name), "block or unit")
            except ValueError as error:
                raise ValueError(f"{table}.truncate_at: {error}") from None


def _check_combination(spec: StudySpec, levels: dict[str, Any]) -> None:
    """Refuse an arm in which a combination of values is impossible, or a factor has no effect."""
    where = ", ".join(f"{k} = {v}" for k, v in levels.items())
    cuts = spec.possible("truncate_at", levels)
    strategies = spec.possible("strategy", levels)
    kept = [kept_blocks(spec.backbone.name, cut) for cut in cuts]
    for cut in cuts:
        needed = smallest_image(spec.backbone.name, cut)
        if spec.data.image_size < needed:
            raise ValueError(f"data.image_size: {spec.data.image_size} is too small for {cut}, which needs {needed}")
    if spec.backbone.weights is None and any(STRATEGIES[strategy].starts_pretrained for strategy in strategies):
        random_starts = [name for name, strategy in STRATEGIES.items() if not strategy.starts_pretrained]
        raise ValueError(f"backbone.weights: only {' or '.join(random_starts)} can do without pretrained weights")
    learns_batch_norm = ARCHITECTURES[spec.backbone.name].has_batch_norm and any(
        STRATEGIES[strategy].freezes != "all" for strategy in strategies
    )
    if learns_batch_norm and 1 in spec.possible("batch_size", levels):
        raise ValueError(f"batch_size: {spec.backbone.name} has batch norm, which learns nothing from single images")
    warmup = max(spec.possible("head_warmup_epochs", levels))
    if warmup > spec.epochs:
        raise ValueError(f"head_warmup_epochs: {warmup} is more than epochs = {spec.epochs}")

    frozen_to_depth = [strategy for strategy in strategies if STRATEGIES[strategy].freezes == "freeze_depth"]
    if frozen_to_depth:
        depths = spec.possible("freeze_depth", levels)
        most = min(kept)
        if isinstance(spec.search.get("freeze_depth"), Range):  # each arm lowers its upper end to the blocks it keeps
            all_cuts = (cut for other in spec.combinations() for cut in spec.possible("truncate_at", other))
            most = max(kept_blocks(spec.backbone.name, cut) for cut in all_cuts)
        table = "factors" if "freeze_depth" in levels else "search" if spec.search.get("freeze_depth") else "fixed"
        if depths == [None]:
            raise ValueError(f"freeze_depth: {frozen_to_depth[0]} needs it in [fixed], [factors] or [search]")
        for depth, limit in ((min(depths), min(kept)), (max(depths), most)):
            if depth > limit:
                at = f" ({where})" if where else ""
                raise ValueError(f"{table}.freeze_depth: {depth} blocks cannot be frozen where {limit} are kept{at}")
    for factor in levels:
        depths = spec.possible("freeze_depth", levels)
        if not any(applies(factor, *case, max(kept)) for case in product(strategies, depths)):
            raise ValueError(f"factors.{factor}: has no effect in the arm with {where}")


def _check_effects(spec: StudySpec) -> None:
    """Refuse a parameter that is set or searched but has no effect in any arm."""
    for table in ("fixed", "search"):
        for parameter in getattr(spec, table).entries():
            strategies = {s for levels in spec.combinations() for s in spec.possible("strategy", levels)}
            if not any(applies(parameter, strategy, None, 1) for strategy in strategies):
                entry, reason = f"{table}.{parameter}", f"has no effect under {', '.join(sorted(strategies))}"
                raise Superfluous(f"{entry}: {reason}", (table, parameter), f"{entry} is dropped: it {reason}")


def _check_published(spec: StudySpec, number: int) -> None:
    """Refuse a published result whose arm has another factor, or a level that no study can have."""
    published = spec.published[number]
    for factor in published.arm:
        if factor not in spec.factors.entries():
            arm = ", ".join(f"{name} = {level}" for name, level in published.arm.items())
            reason = f"{factor!r} is not one of the factors"
            raise Superfluous(
                f"published.arm: {reason}",
                ("published", number),
                f"the published result for {arm} is dropped: {reason}",
            )
        if factor == "truncate_at":
            require_known(str(published.arm[factor]), cut_names(spec.backbone.name), "block or unit")
        try:
            Factors(**{factor: [published.arm[factor]]})
        except ValidationError as error:
            raise ValueError(f"published.arm.{factor}: {error.errors()[0]['msg']}") from None
