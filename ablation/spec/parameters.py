"""The hyper-parameters, and the tables that name them: `[fixed]`, `[factors]`, `[search]`, `[[arms]]`, `[[known]]`."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from math import inf
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    create_model,
    model_serializer,
    model_validator,
)


class Strict(BaseModel):
    """A pydantic model that refuses unknown keys, does not coerce types, and is immutable."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Grown(Strict):
    """A table, or a whole study, to which keys were added: what is stored of older studies stays as it was."""

    added: ClassVar[tuple[str, ...]]

    @model_serializer(mode="wrap")
    def _without_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave added keys out at their defaults."""
        defaults = {name: type(self).model_fields[name].default for name in self.added}
        return {name: value for name, value in write(self).items() if name not in defaults or value != defaults[name]}


StrategyName = Literal["feature_extraction", "fine_tune_top", "fine_tune_all", "from_scratch"]
FreezeDepth = Annotated[int, Field(ge=0)] | str
Augmentation = Literal["none", "flip", "crop_flip", "strong"]
CACHEABLE = ("none", "flip")  # augmentations whose features can be stored; random crops would need as many copies
HeadPool = Literal[1, 2, "flatten"]
HeadNorm = Literal["none", "batch", "layer"]
ClassWeights = Literal["none", "balanced"]


class Hyperparameters(Strict):
    """Everything that a study may fix, compare as a factor, or search, with its defaults.

    The optimizer's defaults are those of Kornblith et al. (2019, "Do Better ImageNet Models Transfer Better?", A.5):
    SGD with Nesterov momentum 0.9 and a cosine schedule. Weight decay 5e-4 is Simonyan and Zisserman's (2014).
    """

    truncate_at: str | None = Field(
        None,
        description="Last block or unit that is kept, all blocks by default; `ablation backbones NAME` lists them.",
    )
    strategy: StrategyName = Field("feature_extraction", description="How the pretrained network is reused.")
    freeze_depth: FreezeDepth | None = Field(
        None,
        description="What stays frozen under fine_tune_top: a number of leading blocks, or everything up to a unit.",
    )
    learn: str = Field(
        "all",
        description="What of the unfrozen layers learns: all, norms (of normalisation layers only; Frankle et al., "
        "2021), biases (Ben Zaken et al., 2022), or one block, such as block2 (Lee et al., 2023).",
    )
    head_width: int = Field(
        256, ge=0, le=65536, description="Hidden units of the new head; 0 is a single linear layer, a linear probe."
    )
    head_pool: HeadPool = Field(
        2, description="Height and width to which features are average-pooled, at most; flatten keeps them all."
    )
    head_norm: HeadNorm = Field(
        "none", description="Normalisation between the pooled features and the head's first layer."
    )
    head_dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the last layer's inputs that is dropped in training (Srivastava, 2014)."
    )
    lr: float = Field(1e-2, gt=0, description="Peak learning rate of the head.")
    backbone_lr_scale: float = Field(
        0.1, gt=0, le=1, description="Learning rate of pretrained trainable layers, relative to lr (Girshick, 2014)."
    )
    lr_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Learning rate of each pretrained block, relative to the block above it (Howard and Ruder, 2018).",
    )
    l2_sp: float = Field(
        0.0, ge=0, description="Pull towards the pretrained weights, in place of weight decay (Li et al., 2018)."
    )
    unfreeze_every: int = Field(
        0,
        ge=0,
        description="Epochs after which one more block learns, from the top; 0: all from the start (Howard and Ruder, "
        "2018).",
    )
    head_warmup_epochs: int = Field(0, ge=0, description="Epochs in which only the head learns (Kumar et al., 2022).")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd has Nesterov momentum 0.9.")
    weight_decay: float = Field(5e-4, ge=0, description="Weight decay; biases and scales of channels are not decayed.")
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
    ema: float = Field(
        0.0, ge=0, lt=1, description="Decay of the weights' moving average, which is evaluated; 0: the weights are."
    )
    patience: int = Field(
        0, ge=0, description="Epochs without a better value of the objective after which a training ends; 0: never."
    )
    batch_size: int = Field(
        64, ge=1, description="Training images per step; small batches learn more per epoch (Masters and Luschi, 2018)."
    )
    augmentation: Augmentation = Field(
        "none",
        description="Random flips (flip), also random crops after 4 pixels of padding (crop_flip), also random erasing "
        "and mixup or CutMix (strong; Zhong et al., 2020, Zhang et al., 2018, Yun et al., 2019).",
    )


# Hyper-parameters that older versions did not have. What is stored leaves them out where a study has their defaults in
# every arm, so that it stays what it was.
ADDED = frozenset({"learn", "head_norm", "head_dropout", "lr_decay", "l2_sp", "unfreeze_every", "ema", "patience"})


@dataclass(frozen=True)
class Strategy:
    """A way to reuse a network: whether its blocks start pretrained, and which of them stay frozen.

    `freezes` is 'all' (all kept blocks), 'freeze_depth' (everything up to what that parameter says), or 'none'.
    """

    starts_pretrained: bool
    freezes: Literal["all", "freeze_depth", "none"]


STRATEGIES: dict[StrategyName, Strategy] = {
    "feature_extraction": Strategy(starts_pretrained=True, freezes="all"),
    "fine_tune_top": Strategy(starts_pretrained=True, freezes="freeze_depth"),
    "fine_tune_all": Strategy(starts_pretrained=True, freezes="none"),
    "from_scratch": Strategy(starts_pretrained=False, freezes="none"),
}


T = TypeVar("T")
Number = TypeVar("Number", int, float)


class Range(Strict, Generic[Number]):
    """A numeric search range, both ends included."""

    low: Number
    high: Number
    log: bool = False
    step: Number | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high, step = float(self.low), float(self.high), self.step
        if not low < high:
            raise ValueError(f"the range is empty: low = {self.low} must be below high = {self.high}")
        if self.log and low <= 0:
            raise ValueError(f"log = true needs low > 0, got {self.low}")
        if step is not None and (self.log or not 0 < float(step) <= high - low):
            raise ValueError("step must be positive, at most high - low, and not combined with log")
        if step is not None and (high - low) / float(step) > 1e15:
            raise ValueError("step is too small for the range")
        return self

    @property
    def largest(self) -> Number:
        """The largest value that the search can choose: below `high` where no step reaches it."""
        if self.step is None:
            return self.high
        low, high, step = (Decimal(str(number)) for number in (self.low, self.high, self.step))  # as in Optuna
        return type(self.low)(low + (high - low) // step * step)

    @property
    def count(self) -> float:
        """The number of values that the search can choose; infinite for fractions without a step."""
        step: Any = self.step or (1 if isinstance(self.low, int) else 0)
        return round((self.largest - self.low) / step) + 1 if step else inf

    def contains(self, value: Any) -> bool:
        """Return whether the search can choose a value: it lies in the range, and on its steps if there are any."""
        if isinstance(value, str):  # of a parameter that is a number or a name
            return False
        steps = 0.0 if self.step is None else (value - self.low) / self.step
        return bool(self.low <= value <= self.high) and abs(steps - round(steps)) < 1e-8  # as in Optuna


class Choices(Strict, Generic[T]):
    """A search over a list of values."""

    choices: Annotated[list[T], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        refuse_duplicates(self.choices)
        return self

    def contains(self, value: Any) -> bool:
        """Return whether the search can choose a value."""
        return value in self.choices


def refuse_duplicates(values: Sequence[Hashable]) -> None:
    """Raise ValueError if a value is listed twice."""
    for value, count in Counter(values).items():
        if count > 1:
            raise ValueError(f"{value!r} is listed twice")


def _search_kind(value: Any) -> str:
    keys = value if isinstance(value, dict) else type(value).model_fields if isinstance(value, BaseModel) else {}
    return "choices" if "choices" in keys else "range"


def without_none(annotation: Any) -> Any:
    """Return the type T of an annotation `T | None`; any other annotation as it is."""
    if get_origin(annotation) in (Union, UnionType):
        return Union[tuple(a for a in get_args(annotation) if a is not NoneType)]  # noqa: UP007 - of any number
    return annotation


def numeric_type(annotation: Any) -> Any:
    """Return the one of an annotation's types that is a number, with its bounds; None if there is none."""
    types = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((t for t in types if (t.__origin__ if get_origin(t) is Annotated else t) in (int, float)), None)


def _parameter_table(model_name: str, base: type[Strict], kind: Literal["fixed", "factor", "search"]) -> Any:
    """Create the model of one of the tables, with an optional entry per hyper-parameter."""
    fields: dict[str, Any] = {}
    for name, field in Hyperparameters.model_fields.items():
        plain_type = without_none(field.annotation)
        value: Any = Annotated[plain_type, Field(), *field.metadata]  # the type with its bounds, such as gt=0
        if kind == "factor":
            value = Annotated[list[value], Field(min_length=1)]
        elif kind == "search" and numeric_type(plain_type) is not None:
            number: Any = Annotated[numeric_type(plain_type), Field(), *field.metadata]
            tagged_range = Annotated[Range[number], Tag("range")]
            value = Annotated[tagged_range | Annotated[Choices[value], Tag("choices")], Discriminator(_search_kind)]
        elif kind == "search":
            value = Choices[value]
        fields[name] = (value | None, Field(None, description=field.description))
    return create_model(model_name, __base__=base, **fields)


class _Table(Grown):
    added = tuple(ADDED)

    def get(self, parameter: str) -> Any:
        """Return the value, the levels or the range of a hyper-parameter, None if it is not in the table."""
        return getattr(self, parameter)

    def entries(self) -> dict[str, Any]:
        """Return the table: hyper-parameter -> value, levels or range, in the order of Hyperparameters."""
        values = {name: self.get(name) for name in Hyperparameters.model_fields}
        return {name: value for name, value in values.items() if value is not None}


def levels_name(levels: dict[str, Any]) -> str:
    """Return a name made of levels; a number stands with its factor: `block3,fine_tune_all`, `freeze_depth=2`."""
    return ",".join(level if isinstance(level, str) else f"{factor}={level}" for factor, level in levels.items())


class _NamedTable(_Table):
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.,=+-]{0,99}$",
        description="Name in the report and in MLflow: letters, digits, spaces and _ - . , = +.",
    )

    @property
    def label(self) -> str:
        """The name; without one, the values."""
        return self.name or levels_name(self.entries())


class _FactorTable(_Table):
    @model_validator(mode="after")
    def _check(self) -> Self:
        for levels in self.entries().values():
            refuse_duplicates(levels)
        return self


class _SearchTable(_Table):
    sampler: Literal["auto", "qmc", "random", "tpe"] = Field(
        "auto",
        description="auto: quasi-random for up to 20 trials per arm and with confirm.repeats, TPE for more.",
    )
    pruner: Literal["none", "median", "hyperband"] = Field(
        "none", description="Stops poor trials early; arms then get unequal budgets."
    )


if TYPE_CHECKING:
    Fixed = _Table
    Configuration = _NamedTable
    Factors = _FactorTable
    Search = _SearchTable
else:
    Fixed = _parameter_table("Fixed", _Table, "fixed")
    Configuration = _parameter_table("Configuration", _NamedTable, "fixed")
    Factors = _parameter_table("Factors", _FactorTable, "factor")
    Search = _parameter_table("Search", _SearchTable, "search")
