"""The settings of a training."""

from dataclasses import dataclass

from ablation.spec.objective import ObjectiveName
from ablation.spec.parameters import ClassWeights


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of a training, whatever its network and images; `Hyperparameters` names their sources."""

    epochs: int
    """Passes over the training images in total; a resumed training counts those before it."""
    batch_size: int
    """Images per step."""
    seed: int
    """Determines the order of the images, their augmentation, and the random numbers of layers such as dropout."""
    precision: str
    """What the layers compute in: 'float32', 'bfloat16' or 'float16'."""
    optimizer: str = "sgd"
    """'sgd' (Nesterov momentum 0.9) or 'adamw'."""
    schedule: str = "cosine"
    """Learning rate over all steps: 'cosine' or 'constant'."""
    label_smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes."""
    class_weights: ClassWeights = "none"
    """'balanced' gives every class the same weight in the training loss."""
    max_grad_norm: float = 5.0
    """Longer gradients are scaled down to this norm."""
    l2_sp: float = 0.0
    """Strength of the pull towards the pretrained weights, which then are not decayed towards zero."""
    head_warmup_epochs: int = 0
    """First epochs, in which only the head learns."""
    unfreeze_every: int = 0
    """Epochs after which one more block learns, from the top; 0: all from the start."""
    ema: float = 0.0
    """Decay of the weights' moving average, which is what is evaluated and kept; 0: the weights are."""
    patience: int = 0
    """Epochs without a better value of the objective after which the training ends; 0: never."""
    objective: ObjectiveName = "accuracy"
    """The validation metric that chooses the best epoch."""
    compile: str = "none"
    """A mode of `torch.compile`, or 'none'."""
