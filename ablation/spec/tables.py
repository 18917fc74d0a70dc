"""The tables of a study file besides those of the hyper-parameters, as pydantic models."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ablation.base.text import require_known
from ablation.spec.architectures import ARCHITECTURES, TIMM, function_name, is_custom, is_timm
from ablation.spec.parameters import Grown, Strict, refuse_duplicates

WEIGHTS_FILES = (".safetensors", ".pth")
TIMM_WEIGHTS = "pretrained"  # what timm downloads for a network's name
NARROW = "vgg16_narrow"  # how the names of the narrow networks begin
NAMED_WEIGHTS = re.compile(f"imagenet|{TIMM_WEIGHTS}|[A-Z][A-Z0-9_]*")


class Backbone(Strict):
    """The network that is reused."""

    name: str = Field(
        "vgg16",
        description="A torchvision network, vgg16_narrow or vgg16_narrow_bn (an eighth of the channels), or timm: and "
        "the name of one of timm's networks.",
        json_schema_extra={"anyOf": [{"enum": list(ARCHITECTURES)}, {"pattern": f"^{TIMM}"}]},
    )
    module: str | None = Field(
        None,
        description="Python file of a custom backbone, in place of name: a function in it returns the blocks.",
    )
    function: str | None = Field(None, description="That function's name; it takes no arguments.")
    weights: str | None = Field(
        "imagenet",
        description="imagenet (torchvision's default weights), the name of other torchvision weights, such as "
        "IMAGENET1K_V1, or a .safetensors or .pth file with torchvision's tensor names; for a network of timm's, "
        "pretrained (what timm downloads for its name), or a file with timm's tensor names.",
    )
    missing_layers: Literal["error", "random"] = Field(
        "error", description="Whether a file that lacks a layer is refused, or the layer starts at random."
    )

    @model_validator(mode="before")
    @classmethod
    def _without_weights(cls, table: Any) -> Any:
        """Give the narrow networks, of which torchvision has no weights, none by default."""
        is_narrow = isinstance(table, dict) and str(table.get("name")).startswith(NARROW)
        return {"weights": None, **table} if is_narrow else table

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        return require_known(name, ARCHITECTURES, "backbone")

    @field_validator("weights")
    @classmethod
    def _check_weights(cls, weights: str | None) -> str | None:
        if weights is not None and not weights.endswith(WEIGHTS_FILES) and not NAMED_WEIGHTS.fullmatch(weights):
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
        is_in_torchvision = not self.name.startswith(NARROW) and not is_custom(self.name)
        if is_timm(self.name):
            if self.weights not in (None, TIMM_WEIGHTS) and not self.has_weights_file:
                raise ValueError(f"weights of {function_name(self.name)} are {TIMM_WEIGHTS!r} or in a file")
            return self
        if self.weights == TIMM_WEIGHTS:
            raise ValueError(f"weights = {TIMM_WEIGHTS!r} is for timm's networks")
        if self.weights is not None and not self.has_weights_file and not is_in_torchvision:
            raise ValueError(f"torchvision has no weights for {self.name}: weights must name a file")
        return self


Resize = Literal["crop", "squash", "pad"]
OWN_SOURCES = ("imagefolder", "manifest", "huggingface")
TABLES = OWN_SOURCES[1:]
FILE_SOURCES = ("flowers102", "dtd", "food101")  # torchvision's sets that are read from the files of their images
SIZED_SOURCES = (*FILE_SOURCES, "oxford_pets")  # torchvision's sets of images of many sizes
MANIFEST_FILES = (".csv", ".parquet")
SAVED_BY_DATASETS = ("dataset_dict.json", "state.json")  # one of them is in a folder of `save_to_disk`
COLUMNS = ("image_column", "label_column", "split_column")


class Data(Grown):
    """The images."""

    added = ("train", "test", "resize", "unreadable", "duplicates", "manifest", *COLUMNS, "groups")

    source: Literal[
        "cifar10", "cifar100", "mnist", "fashion_mnist", "kmnist", "svhn", "stl10", "flowers102", "oxford_pets", "dtd",
        "food101", "imagefolder", "manifest", "huggingface", "digits",
    ] = "cifar10"  # fmt: skip
    root: str | None = Field(
        None,
        description="Folder of the images; torchvision's data sets are downloaded into it (by default: data), and the "
        "paths of a manifest start there (by default: in the manifest's folder). For huggingface, a folder of "
        "save_to_disk, a folder with Parquet files, or such a file.",
    )
    manifest: str | None = Field(
        None,
        description="CSV or Parquet file with a row for each image: its path, its label, perhaps its split and group.",
    )
    image_column: str | None = Field(
        None,
        description="Column of a manifest's paths (by default: path), or of the images of a set (by default: image).",
    )
    label_column: str | None = Field(None, description="Column of the labels (by default: label).")
    split_column: str | None = Field(
        None,
        description="Column that says train, val or test (by default: split, if there is one); '' for none: a fifth of "
        "each class is the test.",
    )
    groups: str | None = Field(
        None,
        description="What belongs together, such as the images of a patient, and stays on one side of every split: a "
        "regular expression with one group, searched in each image's path below root; or a column of the table (by "
        "default: group, if there is one; '' for none).",
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
    train: str | None = Field(
        None,
        description="Folder below root that holds the training images' classes, where its name does not say so; . for "
        "classes alone.",
    )
    test: str | None = Field(None, description="The same for the test images; without it, a fifth of each class.")
    resize: Resize = Field(
        "crop",
        description="How files that are not square get image_size: the shorter side fits and the rest is cut off, both "
        "sides are scaled, or the longer side fits and the rest is black.",
    )
    unreadable: Literal["error", "skip"] = Field(
        "error", description="Whether an image that cannot be read ends the study, or is left out and counted."
    )

    duplicates: Literal["error", "drop", "keep"] | None = Field(
        None,
        description="Whether identical images in two splits or under two labels end the study (error), are left out "
        "(drop: one stays, of two labels none), or all stay (keep); error for your own images, keep for other sets.",
    )

    @property
    def is_own(self) -> bool:
        """Whether the images are the user's own files, on this machine."""
        return self.source in OWN_SOURCES

    @property
    def refuses_duplicates(self) -> bool:
        """Whether identical images in two splits or classes end the study."""
        return self.duplicates == "error" or (self.duplicates is None and self.is_own)

    @model_validator(mode="after")
    def _check(self) -> Self:
        roots = {"imagefolder": "folder with train/<class>/* and test/<class>/*",
                 "huggingface": "a folder of save_to_disk, or Parquet files"}  # fmt: skip
        if self.source in roots and self.root is None:
            raise ValueError(f"source = {self.source!r} needs root = <{roots[self.source]}>")
        if (self.source == "manifest") != (self.manifest is not None):
            raise ValueError("source = 'manifest' needs manifest = <a .csv or .parquet file>; no other has one")
        if self.manifest is not None and not self.manifest.lower().endswith(MANIFEST_FILES):
            raise ValueError(f"manifest must be a .csv or .parquet file, got {self.manifest!r}")
        if self.source not in TABLES and any(getattr(self, name) is not None for name in COLUMNS):
            raise ValueError(f"{', '.join(COLUMNS)} are for source = 'manifest' and 'huggingface'")
        self._check_groups()
        if self.source != "imagefolder" and (self.train is not None or self.test is not None):
            raise ValueError("train and test are for source = 'imagefolder'")
        if self.test is not None and self.train is None:
            raise ValueError("test needs train = <the folder of the training images>")
        for name in ("train", "test"):
            folder = PurePosixPath(getattr(self, name) or ".")
            if folder.is_absolute() or ".." in folder.parts:
                raise ValueError(f"{name} must be a folder below root, got {getattr(self, name)!r}")
        refuse_duplicates(self.classes or [])
        return self

    def _check_groups(self) -> None:
        """Refuse groups of images without paths, and what is neither a column nor an expression with one group."""
        if self.groups is None:
            return
        if not self.is_own:
            raise ValueError("groups are for your own images: source = 'imagefolder', 'manifest' or 'huggingface'")
        if self.source == "huggingface" or (self.source == "manifest" and "(" not in self.groups):
            return  # a column: whether there is one is seen when the manifest is read
        try:
            count = re.compile(self.groups).groups
        except re.error as error:
            raise ValueError(f"groups: {self.groups!r} is no regular expression ({error})") from None
        if count != 1:
            raise ValueError(f"groups: {self.groups!r} must have one group in parentheses, such as '(patient[0-9]+)_'")


FEWEST_AT_A_LOOK = 3  # seeds; with fewer nothing is tested


class Confirm(Grown):
    """How often tuning is repeated and its best configuration retrained, and which levels are compared."""

    added = ("repeats", "compare", "looks", "equivalence", "champion")

    seeds: int = Field(
        0,
        ge=0,
        description="Retrainings of each arm's best configuration, each with a fresh seed; of each repeat's. With 0 "
        "there is no test accuracy and no champion; with fewer than 3, and without repeats, nothing is tested.",
    )
    repeats: int = Field(
        1,
        ge=1,
        description="Tunings of each arm, which share its trials: each has a train/validation split and tuning points "
        "of its own, the same in every arm, and its best configuration is retrained. Arms are then compared paired by "
        "repeat, and the answer holds over other tunings.",
    )
    compare: Literal["all", "leader", "control"] = Field(
        "all",
        description="What is compared in a factor without a control: all pairs of its levels, or every level with the "
        "one that leads in tuning (by validation). control: every factor must have a control.",
    )
    control: dict[str, str | int | float] = Field(
        {},
        description="Factor -> the level that its other levels are compared with. In a study with [[arms]]: arm -> the "
        "name of the arm that the others are compared with.",
    )
    looks: list[int] = Field(
        [],
        description="Seeds at which the answer is tested, rising; the last is seeds. The 5 % of false declarations are "
        "spent over these looks (O'Brien and Fleming), arms that are surely beaten get no further seeds, and the study "
        "ends when the answer is sure.",
    )
    equivalence: float | None = Field(
        None,
        gt=0,
        lt=100,
        description="Percentage points of the objective, or nats of a loss, below which a difference does not matter: "
        "levels are then reported as equivalent, not equivalent, or undecided.",
    )
    champion: Literal["best", "cheapest"] = Field(
        "best",
        description="Whose model is registered: that of the arm with the best validation accuracy, or of the arm that "
        "classifies an image with the fewest operations among those that are not worse than it by equivalence.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.champion == "cheapest" and self.equivalence is None:
            raise ValueError("champion = 'cheapest' needs equivalence = <percentage points that it may be worse>")
        if not self.looks:
            return self
        if self.looks != sorted(set(self.looks)) or self.looks[0] < FEWEST_AT_A_LOOK:
            raise ValueError(f"looks must be rising numbers of seeds from {FEWEST_AT_A_LOOK}, got {self.looks}")
        if self.looks[-1] != self.seeds:
            raise ValueError(f"looks: the last one is all seeds, so {self.looks[-1]} must be seeds = {self.seeds}")
        if 10 * self.looks[0] < self.looks[-1]:  # its level would be below 1e-9
            raise ValueError(f"looks: the first one needs a tenth of all {self.seeds} seeds, got {self.looks[0]}")
        if self.repeats > 1:
            raise ValueError("looks: a look counts seeds, but with repeats the unit is a tuning; use one of the two")
        return self

    @property
    def runs(self) -> int:
        """The number of confirmation runs of an arm, over all repeats."""
        return self.repeats * self.seeds


class Tracking(Strict):
    """What the store keeps of the runs."""

    checkpoints: Literal["all", "best_per_arm"] = Field("all", description="Whose checkpoints are kept.")


class Published(Strict):
    """Metrics that were published for an arm, shown beside the study's own."""

    arm: dict[str, str | int | float] = Field(description="Levels of the arm, or parameters that it sets.")
    source: str | None = None
    loss: float | None = None
    accuracy: float | None = None
    val_loss: float | None = None
    val_accuracy: float | None = None
