"""The complete settings of one trial, which round-trip through MLflow's parameters."""

import json
from typing import Any, Self

from ablation.base.errors import InputError
from ablation.spec.objective import OBJECTIVES, Objective, ObjectiveName
from ablation.spec.parameters import (
    ADDED,
    Augmentation,
    ClassWeights,
    HeadNorm,
    HeadPool,
    StrategyName,
    Strict,
    without_none,
)
from ablation.spec.reuse import Reuse


def trial_name(arm: str, number: int, *, is_confirmation: bool) -> str:
    """Return the name of a trial or of a confirmation run in the terminal, such as 'block1 confirmation #0'."""
    return f"{arm} {'confirmation ' if is_confirmation else ''}#{number}"


class TrialSpec(Strict):
    """The complete settings of a trial; they round-trip through the parameters of its MLflow run.

    A parameter that does not apply is None (`freeze_depth` unless the top is fine-tuned, `backbone_lr_scale` where no
    pretrained layer learns, `threads` on a GPU). `threads` is included because the CPU's results depend on it in the
    last bit. `known` is the name of the known configuration that the trial has, and absent from the parameters of other
    trials; so are hyper-parameters that older versions did not have (`ADDED`), where the study leaves them at their
    defaults, `repeat`, which counts the tunings of an arm from 0, in a study with one, and `objective` in a study that
    chooses by accuracy. A confirmation run
    `confirms` a trial of its arm: only its seed differs, and `trial` counts the arm's confirmation runs.
    """

    study: str
    arm: str
    trial: int
    repeat: int | None = None
    confirms: int | None = None
    known: str | None = None
    seed: int
    epochs: int
    objective: ObjectiveName = "accuracy"
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
    freeze_depth: int | str | None
    learn: str | None = "all"
    head_width: int
    head_pool: HeadPool
    head_norm: HeadNorm = "none"
    head_dropout: float = 0.0
    lr: float
    backbone_lr_scale: float | None
    lr_decay: float | None = 1.0
    l2_sp: float | None = 0.0
    unfreeze_every: int | None = 0
    head_warmup_epochs: int
    optimizer: str
    weight_decay: float
    max_grad_norm: float
    label_smoothing: float
    class_weights: ClassWeights = "none"
    schedule: str
    ema: float = 0.0
    patience: int = 0
    batch_size: int
    augmentation: Augmentation

    @property
    def name(self) -> str:
        """The trial's name in the terminal."""
        return trial_name(self.arm, self.trial, is_confirmation=self.confirms is not None)

    @property
    def goal(self) -> Objective:
        """The study's objective, which chooses the epoch."""
        return OBJECTIVES[self.objective]

    @property
    def reuse(self) -> Reuse:
        """What the trial reuses of its backbone, and what of it learns."""
        return Reuse(self.backbone, self.truncate_at, self.strategy, self.freeze_depth, self.learn or "all")

    def to_params(self) -> dict[str, str]:
        """Return the parameters as MLflow stores them: strings unchanged, everything else as JSON."""
        values = self.model_dump(exclude=set(ADDED - self.model_fields_set))
        for name, without in (("known", None), ("repeat", None), ("objective", "accuracy")):
            if values[name] == without:
                del values[name]
        return {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}

    @classmethod
    def from_params(cls, params: dict[str, str]) -> Self:
        """Rebuild the specification from a run's parameters; unknown parameters are ignored.

        Raises:
            InputError: a parameter is missing: the run is not a trial, or one of another version.
        """
        values: dict[str, Any] = {}
        for name, field in cls.model_fields.items():
            if name in params:
                is_text = without_none(field.annotation) is str and params[name] != "null"
                values[name] = params[name] if is_text else _from_json(params[name])
            elif field.is_required():
                raise InputError(
                    f"the run has no parameter {name!r}: it is not a trial, or was made by another version"
                )
        return cls(**values)


def _from_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # a string of a Literal type
