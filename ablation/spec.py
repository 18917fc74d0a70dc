"""What a study file may say, and what a single trial is: pydantic models, checked before anything is written."""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, Self, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from ablation import architecture, custom


class InputError(ValueError):
    """Something the user gave is wrong; its text is the one line the user gets."""


def expand(path: str) -> Path:
    """Return a path with a leading ~ replaced by the home folder."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises where there is no such user


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its kind where it has none; user names and passwords are hidden."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return re.sub(r"://[^/@\s]+@", "://***@", line)


class Strict(BaseModel):
    """Unknown keys are refused, types are not coerced, and a loaded value never changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


# ---------------------------------------------------------------------------------------------- hyper-parameters

StrategyName = Literal["feature_extraction", "fine_tune_top", "fine_tune_all", "from_scratch"]
Augmentation = Literal["none", "flip", "crop_flip"]
HeadPool = Literal[1, 2, "flatten"]
ClassWeights = Literal["none", "balanced"]


class Hyperparameters(Strict):
    """Everything that a study may fix, compare as a factor, or search; the defaults are what an unmentioned one gets.

    The optimizer's defaults and the range `lr = 1e-4 .. 1e-1` are those of Kornblith et al. (2019, "Do Better ImageNet
    Models Transfer Better?", A.5): SGD with Nesterov momentum 0.9 and a cosine schedule. Weight decay 5e-4 is Simonyan
    and Zisserman's (2014).
    """

    truncate_at: str | None = Field(
        None,
        description="Last block or unit that is kept, all blocks by default; `ablation backbones NAME` lists them.",
    )
    strategy: StrategyName = Field("feature_extraction", description="How the pretrained network is reused.")
    freeze_depth: int | None = Field(None, ge=0, description="Leading blocks that stay frozen under fine_tune_top.")
    head_width: int = Field(256, ge=1, le=65536, description="Hidden units of the new head.")
    head_pool: HeadPool = Field(2, description="Average-pool the features to at most this size, or keep them all.")
    lr: float = Field(1e-2, gt=0, description="Peak learning rate of the head.")
    backbone_lr_scale: float = Field(
        0.1, gt=0, le=1, description="Learning rate of pretrained trainable layers, relative to lr (Girshick, 2014)."
    )
    head_warmup_epochs: int = Field(0, ge=0, description="Epochs in which only the head learns (Kumar et al., 2022).")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="sgd has Nesterov momentum 0.9.")
    weight_decay: float = Field(5e-4, ge=0, description="Decay of weights; biases are left alone.")
    max_grad_norm: float = Field(
        5.0, gt=0, description="Longer gradients are scaled down to this norm (Pascanu et al., 2013)."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Szegedy et al., 2016.")
    class_weights: ClassWeights = Field(
        "none", description="balanced: every class has the same weight in the training loss, whatever its size."
    )
    schedule: Literal["cosine", "constant"] = Field("cosine", description="Learning rate over all training steps.")
    batch_size: int = Field(
        64, ge=1, description="Training images per step; small ones learn more per epoch (Masters and Luschi, 2018)."
    )
    augmentation: Augmentation = Field("none", description="flip, or flip and a random crop after 4 pixels of padding.")


# A parameter that only some strategies have; every other parameter applies to all of them.
APPLIES_TO: dict[str, tuple[StrategyName, ...]] = {
    "freeze_depth": ("fine_tune_top",),
    "backbone_lr_scale": ("fine_tune_top", "fine_tune_all"),
    "head_warmup_epochs": ("fine_tune_top", "fine_tune_all"),
}


def applies(parameter: str, strategy: str, freeze_depth: int | None, blocks: int) -> bool:
    """Say whether a parameter has any effect on a trial that keeps `blocks` blocks of the backbone.

    `freeze_depth` is the trial's, None while unknown: with every kept block frozen, no pretrained layer learns.
    """
    if strategy not in APPLIES_TO.get(parameter, (strategy,)):
        return False
    return parameter not in ("backbone_lr_scale", "head_warmup_epochs") or freeze_depth is None or freeze_depth < blocks


# ---------------------------------------------------------------------------------- the three kinds of parameters

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
        _refuse_duplicates(self.choices)
        return self


def _refuse_duplicates(values: Sequence[object]) -> None:
    twice = [value for i, value in enumerate(values) if value in values[:i]]
    if twice:
        raise ValueError(f"{twice[0]!r} is listed twice")


def _search_kind(value: Any) -> str:
    keys = value if isinstance(value, dict) else type(value).model_fields if isinstance(value, BaseModel) else {}
    return "choices" if "choices" in keys else "range"


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (a for a in get_args(annotation) if a is not NoneType)
    return annotation


def _parameter_table(model_name: str, base: type[Strict], kind: Literal["fixed", "factor", "search"]) -> Any:
    """Make the model of one of the three tables, with an optional entry per hyper-parameter."""
    fields: dict[str, Any] = {}
    for name, field in Hyperparameters.model_fields.items():
        plain = _without_none(field.annotation)
        value: Any = Annotated[plain, Field(), *field.metadata]  # the type with its bounds, such as gt=0
        if kind == "factor":
            value = Annotated[list[value], Field(min_length=1)]
        elif kind == "search" and plain in (int, float):
            tagged_range = Annotated[Range[value], Tag("range")]
            value = Annotated[tagged_range | Annotated[Choices[value], Tag("choices")], Discriminator(_search_kind)]
        elif kind == "search":
            value = Choices[value]
        fields[name] = (value | None, Field(None, description=field.description))
    return create_model(model_name, __base__=base, **fields)


class _Table(Strict):
    def get(self, parameter: str) -> Any:
        """Return the value, the levels or the range of a hyper-parameter, None where the table does not have it."""
        return getattr(self, parameter)

    def entries(self) -> dict[str, Any]:
        """Return what the table says: hyper-parameter -> value, levels or range, in the order of Hyperparameters."""
        values = {name: self.get(name) for name in Hyperparameters.model_fields}
        return {name: value for name, value in values.items() if value is not None}


class _FactorTable(_Table):
    @model_validator(mode="after")
    def _check(self) -> Self:
        for levels in self.entries().values():
            _refuse_duplicates(levels)
        return self


class _SearchTable(_Table):
    sampler: Literal["auto", "qmc", "random", "tpe"] = Field(
        "auto", description="auto: quasi-random for up to 20 trials per arm, TPE above."
    )
    pruner: Literal["none", "median", "hyperband"] = Field("none", description="A pruner gives arms unequal budgets.")


if TYPE_CHECKING:
    Fixed = _Table
    Factors = _FactorTable
    Search = _SearchTable
else:
    Fixed = _parameter_table("Fixed", _Table, "fixed")
    Factors = _parameter_table("Factors", _FactorTable, "factor")
    Search = _parameter_table("Search", _SearchTable, "search")


# ------------------------------------------------------------------------------------------------ the study file


def _known(value: str, known: Iterable[str], what: str) -> str:
    known = list(known)
    if value not in known:
        raise ValueError(f"unknown {what} {value!r}{nearest(value, known)}")
    return value


def nearest(word: str, known: Iterable[str]) -> str:
    """Return '; did you mean ...?' with the closest known word, else '; known: ...'."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if not close:
        return f"; known: {', '.join(known)}"
    best = next((candidate for candidate in close if sorted(candidate) == sorted(word)), close[0])  # letters swapped
    return f"; did you mean {best!r}?"


WEIGHTS_FILES = (".safetensors", ".pth")
TORCHVISIONS = re.compile("imagenet|[A-Z][A-Z0-9_]*")  # names of weights


class Backbone(Strict):
    """The network that is reused."""

    name: str = Field(
        "vgg16",
        description="A torchvision network, or vgg16_narrow (an eighth of the channels).",
        json_schema_extra={"enum": list(architecture.BACKBONES)},
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
        return _known(name, architecture.BACKBONES, "backbone")

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
        is_torchvisions = self.name != "vgg16_narrow" and not custom.is_custom(self.name)
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
        _refuse_duplicates(self.classes or [])
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
    published: list[Published] = []

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
            value = architecture.block_names(self.backbone.name)[-1]
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
                _known(cut, architecture.cut_names(spec.backbone.name), "block or unit")
            except ValueError as error:
                raise ValueError(f"{table}.truncate_at: {error}") from None


def _check_combination(spec: StudySpec, levels: dict[str, Any]) -> None:
    """Refuse an arm in which something is impossible, whatever the search chooses."""
    where = ", ".join(f"{k} = {v}" for k, v in levels.items())
    cuts = spec.possible("truncate_at", levels)
    strategies = spec.possible("strategy", levels)
    kept = [architecture.kept_blocks(spec.backbone.name, cut) for cut in cuts]
    for cut in cuts:
        needed = architecture.smallest_image(spec.backbone.name, cut)
        if spec.data.image_size < needed:
            raise ValueError(f"data.image_size: {spec.data.image_size} is too small for {cut}, it needs {needed}")
    if spec.backbone.weights is None and set(strategies) != {"from_scratch"}:
        raise ValueError("backbone.weights: only from_scratch can do without pretrained weights")
    learns_batch_norm = architecture.BACKBONES[spec.backbone.name].has_batch_norm and set(strategies) != {
        "feature_extraction"
    }
    if learns_batch_norm and 1 in spec.possible("batch_size", levels):
        raise ValueError(f"batch_size: {spec.backbone.name} has batch norm, which learns nothing from single images")
    warmup = max(spec.possible("head_warmup_epochs", levels))
    if warmup > spec.epochs:
        raise ValueError(f"head_warmup_epochs: {warmup} is more than epochs = {spec.epochs}")

    if "fine_tune_top" in strategies:
        depths = spec.possible("freeze_depth", levels)
        most = min(kept)
        if isinstance(spec.search.get("freeze_depth"), Range):  # its upper end is lowered to what each cut keeps
            all_cuts = (cut for other in spec.combinations() for cut in spec.possible("truncate_at", other))
            most = max(architecture.kept_blocks(spec.backbone.name, cut) for cut in all_cuts)
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
            if strategies.isdisjoint(APPLIES_TO.get(parameter, strategies)):
                raise ValueError(f"{table}.{parameter}: has no effect under {', '.join(sorted(strategies))}")


def _check_published(spec: StudySpec, published: Published) -> None:
    for factor in published.arm:
        if factor not in spec.factors.entries():
            raise ValueError(f"published.arm: {factor!r} is not one of the factors")
        if factor == "truncate_at":
            _known(str(published.arm[factor]), architecture.cut_names(spec.backbone.name), "block or unit")
        try:
            Factors(**{factor: [published.arm[factor]]})
        except ValidationError as error:
            raise ValueError(f"published.arm.{factor}: {error.errors()[0]['msg']}") from None


def study_schema() -> dict[str, Any]:
    """Return a JSON Schema (draft 7) of a study file, with which editors complete and check it while it is written.

    What it cannot say, such as that a cut belongs to the backbone, `load_study` checks.
    """
    made = StudySpec.model_json_schema()
    del made["properties"]["name"]  # that of the file
    made["required"].remove("name")
    schema = _for_toml(made, made["$defs"])
    del schema["$defs"]
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema}


def _for_toml(schema: Any, definitions: dict[str, Any]) -> Any:
    """Return a part of pydantic's schema without references, and without null, which TOML does not have."""
    if isinstance(schema, list):
        return [_for_toml(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        schema = {**definitions[schema["$ref"].rpartition("/")[2]], **schema}
    schema = {key: _for_toml(value, definitions) for key, value in schema.items() if key != "$ref"}
    if isinstance(schema.get("title"), str):
        del schema["title"]  # made of Python's names
    if "default" in schema and (schema["default"] is None or isinstance(schema["default"], dict)):
        del schema["default"]  # not given, or a table of which each key has its own
    if isinstance(schema.get("anyOf"), list):
        others = [part for part in schema["anyOf"] if part != {"type": "null"}]
        schema = {**schema, "anyOf": others} if len(others) > 1 else {**others[0], **schema, "anyOf": None}
        schema = {key: value for key, value in schema.items() if value is not None}
    return schema


# ------------------------------------------------------------------------------------------------------ one trial


class TrialSpec(Strict):
    """All that a trial is; it round-trips through the parameters of its MLflow run.

    A parameter that does not apply is None (`freeze_depth` unless the top is fine-tuned, `backbone_lr_scale` where no
    pretrained layer learns, `threads` on a GPU). `threads` is there because the CPU's results depend on it in the last
    bit. A confirmation run is one that `confirms` a trial of its arm: the same but for its seed, and `trial` counts the
    arm's confirmation runs.
    """

    study: str
    arm: str
    trial: int
    confirms: int | None = None
    seed: int
    epochs: int
    precision: str
    compile: str = "none"
    deterministic: bool
    threads: int | None = None
    backbone: str
    backbone_module: str | None = None
    weights: str | None
    weights_digest: str | None
    missing_layers: str
    data_source: str
    data_digest: str
    data_seed: int
    data_limit: int | None
    val_fraction: float
    image_size: int
    num_classes: int
    strategy: StrategyName
    truncate_at: str
    freeze_depth: int | None
    head_width: int
    head_pool: HeadPool
    lr: float
    backbone_lr_scale: float | None
    head_warmup_epochs: int
    optimizer: str
    weight_decay: float
    max_grad_norm: float
    label_smoothing: float
    class_weights: ClassWeights = "none"
    schedule: str
    batch_size: int
    augmentation: Augmentation

    def to_params(self) -> dict[str, str]:
        """Return the parameters as MLflow stores them: strings as they are, everything else as JSON."""
        return {k: v if isinstance(v, str) else json.dumps(v) for k, v in self.model_dump().items()}

    @classmethod
    def from_params(cls, params: dict[str, str]) -> Self:
        """Rebuild the specification from a run's parameters; other parameters are ignored.

        Raises:
            InputError: the run is not one of ours, or lacks a parameter.
        """
        values: dict[str, Any] = {}
        for name, field in cls.model_fields.items():
            if name not in params and not field.is_required():
                continue
            if name not in params:
                raise InputError(f"the run has no parameter {name!r}: so it is not a trial, or one of another version")
            is_text = _without_none(field.annotation) is str and params[name] != "null"
            values[name] = params[name] if is_text else _from_json(params[name])
        return cls(**values)


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # a string of a Literal type


# ----------------------------------------------------------------------------------------------- reading the file

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
) -> StudySpec:
    """Read and check a study file.

    Args:
        path: a TOML file.
        name: what the study is called; the file's name without its suffix by default.
        overrides: (key path, value) pairs that replace what the file says, in order.

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
        content = _with_own_backbone(content)
    except ValueError as error:
        raise InputError(f"{where}: backbone.{error}") from None
    try:
        return StudySpec(name=check_name(name or path.stem), **content)
    except ValidationError as error:
        raise InputError(f"{where}: {describe(error)}") from None


def _with_own_backbone(content: dict[str, Any]) -> dict[str, Any]:
    """Return a file's content with the name of a backbone of one's own, if it has one, after running its module.

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
    return {
        **content,
        "backbone": {"weights": None, **backbone, "name": custom.load(backbone["module"], backbone["function"])},
    }


def describe(error: ValidationError) -> str:
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
    numeric = [name for name, f in Hyperparameters.model_fields.items() if _without_none(f.annotation) in (int, float)]
    is_tagged = len(location) > 2 and location[0] == "search" and location[1] in numeric
    return location[:2] + location[3:] if is_tagged else location


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys that are known in the table in which an unknown one was found."""
    model: Any = StudySpec
    for step in location[:-1]:
        if model is Search:
            return list(Range.model_fields | Choices.model_fields)
        if isinstance(step, str) and step in model.model_fields:
            model = Published if step == "published" else _without_none(model.model_fields[step].annotation)
    fields = model.model_fields
    return [key for key in fields if key != "name" or model is not StudySpec]


if __name__ == "__main__":  # python -m ablation.spec >ablation/study.schema.json
    print(json.dumps(study_schema(), indent=2))
