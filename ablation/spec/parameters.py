"""The hyper-parameters, and the tables `[fixed]`, `[factors]` and `[search]` that name them."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, create_model, model_validator


class Strict(BaseModel):
    """A pydantic model that refuses unknown keys, does not coerce types, and is immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


StrategyName = Literal["feature_extraction", "fine_tune_top", "fine_tune_all", "from_scratch"]
Augmentation = Literal["none", "flip", "crop_flip"]
HeadPool = Literal[1, 2, "flatten"]
ClassWeights = Literal["none", "balanced"]


class Hyperparameters(Strict):
    """Everything that a study may fix, compare as a factor, or search, with its defaults.

    The optimizer's defaults and the range `lr = 1e-4 .. 1e-1` are those of Kornblith et al. (2019, "Do Better ImageNet
    Models Transfer Better?", A.5): SGD with Nesterov momentum 0.9 and a cosine schedule. Weight decay 5e-4 is Simonyan
    and Zisserman's (2014).
    """

    truncate_at: str | None = Field(
        None,
        description="Last block or unit that is kept, all blocks by default; `ablation backbones NAME` lists them.",
    )
    strategy: StrategyName = Field("feature_extraction", description="How the pretrained network is reused.")
    freeze_depth: int | None = Field(
        None, ge=0, description="Number of leading blocks that stay frozen under fine_tune_top."
    )
    head_width: int = Field(256, ge=1, le=65536, description="Hidden units of the new head.")
    head_pool: HeadPool = Field(
        2, description="Height and width to which features are average-pooled, at most; flatten keeps them all."
    )
    lr: float = Field(1e-2, gt=0, description="Peak learning rate of the head.")
    backbone_lr_scale: float = Field(
        0.1, gt=0, le=1, description="Learning rate of pretrained trainable layers, relative to lr (Girshick, 2014)."
    )
    head_warmup_epochs: int = Field(0, ge=0, description="Epochs in which only the head learns (Kumar et al., 2022).")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd has Nesterov momentum 0.9.")
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay; biases are not decayed.")
    max_grad_norm: float = Field(
        5.0, gt=0, description="Gradients with a larger norm are scaled down to it (Pascanu et al., 2013)."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Label smoothing of the training loss (Szegedy et al., 2016)."
    )
    class_weights: ClassWeights = Field(
        "none", description="balanced: all classes have the same weight in the training loss, regardless of size."
    )
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="Course of the learning rate over all training steps."
    )
    batch_size: int = Field(
        64, ge=1, description="Training images per step; small batches learn more per epoch (Masters and Luschi, 2018)."
    )
    augmentation: Augmentation = Field(
        "none", description="Random flips, or flips and random crops after 4 pixels of padding."
    )


@dataclass(frozen=True)
class Strategy:
    """A way to reuse a network: whether its blocks start pretrained, and which of them stay frozen.

    `freezes` is 'all' (all kept blocks), 'freeze_depth' (as many leading blocks as that parameter says), or 'none'.
    """

    starts_pretrained: bool
    freezes: Literal["all", "freeze_depth", "none"]

    def frozen_blocks(self, kept: int, freeze_depth: int | None) -> int:
        """Return how many of `kept` leading blocks stay frozen in a trial with this `freeze_depth`."""
        if self.freezes == "freeze_depth":
            assert freeze_depth is not None
            assert freeze_depth <= kept
            return freeze_depth
        return kept if self.freezes == "all" else 0


STRATEGIES: dict[StrategyName, Strategy] = {
    "feature_extraction": Strategy(starts_pretrained=True, freezes="all"),
    "fine_tune_top": Strategy(starts_pretrained=True, freezes="freeze_depth"),
    "fine_tune_all": Strategy(starts_pretrained=True, freezes="none"),
    "from_scratch": Strategy(starts_pretrained=False, freezes="none"),
}


def applies(parameter: str, strategy: StrategyName, freeze_depth: int | None, blocks: int) -> bool:
    """Return whether a parameter has any effect on a trial that keeps `blocks` blocks of the backbone.

    `freeze_depth` is the trial's, or None if it is not yet known. (With all kept blocks frozen, no pretrained layer
    learns.)
    """
    reuse = STRATEGIES[strategy]
    if parameter == "freeze_depth":
        return reuse.freezes == "freeze_depth"
    if parameter in ("backbone_lr_scale", "head_warmup_epochs"):  # both act on pretrained layers that learn
        return reuse.starts_pretrained and reuse.freezes != "all" and (freeze_depth is None or freeze_depth < blocks)
    return True


T = TypeVar("T")


class Range(Strict, Generic[T]):
    """A numeric search range, both ends included."""

    low: T
    high: T
    log: bool = False
    step: T | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high, step = float(self.low), float(self.high), self.step  # type: ignore[arg-type]
        if not low < high:
            raise ValueError(f"the range is empty: low = {self.low} must be below high = {self.high}")
        if self.log and low <= 0:
            raise ValueError(f"log = true needs low > 0, got {self.low}")
        if step is not None and (self.log or not 0 < float(step) <= high - low):  # type: ignore[arg-type]
            raise ValueError("step must be positive, at most high - low, and not combined with log")
        return self


class Choices(Strict, Generic[T]):
    """A search over a list of values."""

    choices: Annotated[list[T], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse_duplicates(self.choices)
        return self


def refuse_duplicates(values: Sequence[object]) -> None:
    """Raise ValueError if a value is listed twice."""
    duplicates = [value for i, value in enumerate(values) if value in values[:i]]
    if duplicates:
        raise ValueError(f"{duplicates[0]!r} is listed twice")


def _search_kind(value: Any) -> str:
    keys = value if isinstance(value, dict) else type(value).model_fields if isinstance(value, BaseModel) else {}
    return "choices" if "choices" in keys else "range"


def without_none(annotation: Any) -> Any:
    """Return the type T of an annotation `T | None`; any other annotation as it is."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (a for a in get_args(annotation) if a is not NoneType)
    return annotation


def _parameter_table(model_name: str, base: type[Strict], kind: Literal["fixed", "factor", "search"]) -> Any:
    """Create the model of one of the three tables, with an optional entry per hyper-parameter."""
    fields: dict[str, Any] = {}
    for name, field in Hyperparameters.model_fields.items():
        plain_type = without_none(field.annotation)
        value: Any = Annotated[plain_type, Field(), *field.metadata]  # the type with its bounds, such as gt=0
        if kind == "factor":
            value = Annotated[list[value], Field(min_length=1)]
        elif kind == "search" and plain_type in (int, float):
            tagged_range = Annotated[Range[value], Tag("range")]
            value = Annotated[tagged_range | Annotated[Choices[value], Tag("choices")], Discriminator(_search_kind)]
        elif kind == "search":
            value = Choices[value]
        fields[name] = (value | None, Field(None, description=field.description))
    return create_model(model_name, __base__=base, **fields)


class _Table(Strict):
    def get(self, parameter: str) -> Any:
        """Return the value, the levels or the range of a hyper-parameter, None if it is not in the table."""
        return getattr(self, parameter)

    def entries(self) -> dict[str, Any]:
        """Return the table: hyper-parameter -> value, levels or range, in the order of Hyperparameters."""
        values = {name: self.get(name) for name in Hyperparameters.model_fields}
        return {name: value for name, value in values.items() if value is not None}


class _FactorTable(_Table):
    @model_validator(mode="after")
    def _check(self) -> Self:
        for levels in self.entries().values():
            refuse_duplicates(levels)
        return self


class _SearchTable(_Table):
    sampler: Literal["auto", "qmc", "random", "tpe"] = Field(
        "auto", description="auto: quasi-random for up to 20 trials per arm, TPE for more."
    )
    pruner: Literal["none", "median", "hyperband"] = Field(
        "none", description="Stops poor trials early; arms then get unequal budgets."
    )


if TYPE_CHECKING:
    Fixed = _Table
    Factors = _FactorTable
    Search = _SearchTable
else:
    Fixed = _parameter_table("Fixed", _Table, "fixed")
    Factors = _parameter_table("Factors", _FactorTable, "factor")
    Search = _parameter_table("Search", _SearchTable, "search")
