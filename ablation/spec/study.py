"""What a study file may say, checked by pydantic before anything is written."""

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
TORCHVISIONS = re.compile("imagenet|[A-Z][A-Z0-9_]*")  # names of weights


class Backbone(Strict):
    """The network that is reused."""

    name: str = Field(
        "vgg16",
        description="A torchvision network, or vgg16_narrow (an eighth of the channels).",
        json_schema_extra={"enum": list(ARCHITECTURES)},
    )
    module: str | None = Field(
        None,
        description="Python file with a function that returns the blocks of a network of your own, in place of name.",
    )
    function: str | None = Field(None, description="That function's name; it takes nothing.")
    weights: str | None = Field(
        "imagenet",
        description="imagenet (torchvision's default), the name of other weights that torchvision has, such as "
        "IMAGENET1K_V1, or a .safetensors or .pth file in torchvision's names.",
    )
    missing_layers: Literal["error", "random"] = Field("error", description="What a layer the file lacks means.")

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return require_known(name, ARCHITECTURES, "backbone")

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, weights: str | None) -> str | None:
        if weights is not None and not weights.endswith(WEIGHTS_FILES) and not TORCHVISIONS.fullmatch(weights):
            raise ValueError(
                f"must be 'imagenet', a name of torchvision's such as 'IMAGENET1K_V1', or a .safetensors or .pth file, "
                f"got {weights!r}"
            )
        return weights

    @property
    def has_weights_file(self) -> bool:
        """Whether the weights are read from a file that the user names."""
        return self.weights is not None and self.weights.endswith(WEIGHTS_FILES)

    @model_validator(mode="after")
    def _check(self) -> Self:
        is_torchvisions = self.name != "vgg16_narrow" and not is_custom(self.name)
        if self.weights is not None and not self.has_weights_file and not is_torchvisions:
            raise ValueError(f"torchvision has no weights for {self.name}: weights must name a file")
        return self


class Data(Strict):
    """The images."""

    source: Literal[
        "cifar10", "cifar100", "mnist", "fashion_mnist", "kmnist", "svhn", "stl10", "flowers102", "oxford_pets", "dtd",
        "food101", "imagefolder", "digits",
    ] = "cifar10"  # fmt: skip
    root: str | None = Field(
        None, description="Folder of the images; torchvision's sets are downloaded to it, by default to data."
    )
    val_fraction: float = Field(0.1, gt=0, lt=1, description="Share of the training images, split off stratified.")
    limit: int | None = Field(None, ge=2, description="Stratified subset of this many images, before that split.")
    classes: Annotated[list[str], Field(min_length=2)] | None = Field(None, description="Only these classes.")
    image_size: int = Field(
        32, ge=1, le=1024, description="Height and width in pixels that the network gets; other images are resized."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.source == "imagefolder" and self.root is None:
            raise ValueError("source = 'imagefolder' needs root = <folder with train/<class>/* and test/<class>/*>")
        refuse_duplicates(self.classes or [])
        return self


class Confirm(Strict):
    """How often each arm's best configuration is retrained with a fresh seed, and what is compared then."""

    seeds: int = Field(0, ge=0)
    control: dict[str, str | int | float] = Field(
        {}, description="Factor -> the level that its other levels are compared with; by default all pairs are."
    )


class Tracking(Strict):
    """What is kept."""

    checkpoints: Literal["all", "best_per_arm"] = "all"


class Published(Strict):
    """Figures that somebody published for an arm, shown beside ours."""

    arm: dict[str, str | int | float]
    source: str | None = None
    loss: float | None = None
    accuracy: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None


class StudySpec(Strict):
    """One question: a study file, its overrides applied, its defaults filled in."""

    name: str
    question: str
    trials_per_arm: int = Field(ge=1)
    epochs: int = Field(ge=1)
    seed: int = Field(0, ge=0, description="Every random number of the study derives from it.")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on CUDA, where the device has it, else float32."
    )
    compile: Literal["none", "default"] = Field(
        "none", description="Mode of torch.compile for the training step; compiled once for all trials of one shape."
    )
    deterministic: bool = Field(False, description="Bit-identical repeats on CUDA; slower. The CPU always is.")
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
        for levels in self.combinations():
            _check_combination(self, levels)
        _check_effects(self)
        for published in self.published:
            _check_published(self, published)
        for factor, level in self.confirm.control.items():
            if level not in self.factors.entries().get(factor, []):
                raise ValueError(f"confirm.control: {factor} = {level!r} is not a level of a factor")
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
        """Return what identifies the study besides its name: all of the file, without places."""
        places = {"data": {"root"}, "backbone": {"module", "function"}}
        content: dict[str, Any] = self.model_dump(mode="json", exclude={"name": True, **places})
        for table in ("factors", "search"):
            content[table] = {key: value for key, value in content[table].items() if value is not None}
        varied = content["factors"].keys() | content["search"].keys()
        content["fixed"] = {name: self.default(name) for name in Hyperparameters.model_fields if name not in varied}
        # What all studies were before there was a choice.
        if self.compile == "none":
            del content["compile"]
        if content["fixed"].get("class_weights") == "none":
            del content["fixed"]["class_weights"]
        if self.backbone.has_weights_file:
            content["backbone"]["weights"] = "file"  # what it holds, its digest, is added when it has been read
        return content


def _check_tables(spec: StudySpec) -> None:
    """A parameter stands in one of the three tables only, and every cut that is named exists."""
    tables = {"fixed": spec.fixed.entries(), "factors": spec.factors.entries(), "search": spec.search.entries()}
    for parameter in Hyperparameters.model_fields:
        found = [table for table, entries in tables.items() if parameter in entries]
        if len(found) > 1:
            raise ValueError(f"{found[1]}.{parameter}: also in [{found[0]}]; a parameter is in one table only")
    for table, entries in tables.items():
        value = entries.get("truncate_at")
        cuts = [value] if isinstance(value, str) else value.choices if isinstance(value, Choices) else value or []
        for cut in cuts:
            try:
                require_known(cut, cut_names(spec.backbone.name), "block or unit")
            except ValueError as error:
                raise ValueError(f"{table}.truncate_at: {error}") from None


def _check_combination(spec: StudySpec, levels: dict[str, Any]) -> None:
    """Refuse an arm in which something is impossible, whatever the search chooses."""
    where = ", ".join(f"{k} = {v}" for k, v in levels.items())
    cuts = spec.possible("truncate_at", levels)
    strategies = spec.possible("strategy", levels)
    kept = [kept_blocks(spec.backbone.name, cut) for cut in cuts]
    for cut in cuts:
        needed = smallest_image(spec.backbone.name, cut)
        if spec.data.image_size < needed:
            raise ValueError(f"data.image_size: {spec.data.image_size} is too small for {cut}, it needs {needed}")
    if spec.backbone.weights is None and any(STRATEGIES[strategy].starts_pretrained for strategy in strategies):
        raise ValueError("backbone.weights: only from_scratch can do without pretrained weights")
    learns_batch_norm = ARCHITECTURES[spec.backbone.name].has_batch_norm and any(
        STRATEGIES[strategy].freezes != "all" for strategy in strategies
    )
    if learns_batch_norm and 1 in spec.possible("batch_size", levels):
        raise ValueError(f"batch_size: {spec.backbone.name} has batch norm, which learns nothing from single images")
    warmup = max(spec.possible("head_warmup_epochs", levels))
    if warmup > spec.epochs:
        raise ValueError(f"head_warmup_epochs: {warmup} is more than epochs = {spec.epochs}")

    if any(STRATEGIES[strategy].freezes == "freeze_depth" for strategy in strategies):
        depths = spec.possible("freeze_depth", levels)
        most = min(kept)
        if isinstance(spec.search.get("freeze_depth"), Range):  # its upper end is lowered to what each cut keeps
            all_cuts = (cut for other in spec.combinations() for cut in spec.possible("truncate_at", other))
            most = max(kept_blocks(spec.backbone.name, cut) for cut in all_cuts)
        table = "factors" if "freeze_depth" in levels else "search" if spec.search.get("freeze_depth") else "fixed"
        if depths == [None]:
            raise ValueError("freeze_depth: fine_tune_top needs it in [fixed], [factors] or [search]")
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
                raise ValueError(f"{table}.{parameter}: has no effect under {', '.join(sorted(strategies))}")


def _check_published(spec: StudySpec, published: Published) -> None:
    for factor in published.arm:
        if factor not in spec.factors.entries():
            raise ValueError(f"published.arm: {factor!r} is not one of the factors")
        if factor == "truncate_at":
            require_known(str(published.arm[factor]), cut_names(spec.backbone.name), "block or unit")
        try:
            Factors(**{factor: [published.arm[factor]]})
        except ValidationError as error:
            raise ValueError(f"published.arm.{factor}: {error.errors()[0]['msg']}") from None
