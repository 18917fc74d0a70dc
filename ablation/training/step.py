"""One training step: run eagerly or, on CUDA, captured once in a graph and replayed.

A step at a small batch launches hundreds of kernels, and a GPU finishes each before the host has launched the next: an
H100 worked 16 % of the time. So a step needs nothing of the host. The order of the images, the random numbers of their
augmentation and the learning rates of an epoch are on the device before its first step, and the place in the epoch is
counted there. After a few eager steps, the step is captured in a CUDA graph; every later one is a single launch that
computes the same numbers.

Legend: B images of a batch, S steps of an epoch, K classes.
"""

import logging
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

from ablation.base.device import autocast
from ablation.base.text import first_line
from ablation.spec.architectures import is_custom
from ablation.training.compiler import compiled_forward
from ablation.training.loss import balanced_weights, mixed_loss
from ablation.training.settings import TrainingSettings
from ablation.training.sources import EpochOrder, FeatureSource, Source
from ablation.training.state import Training

EAGER_STEPS = 3  # before a capture: they make the optimizer's state, and cuDNN chooses its algorithms
FEWEST_REPLAYS = 50  # of a graph, whose capture takes about as long as so many eager steps
logger = logging.getLogger(__name__)


def may_capture(
    device: torch.device, rows_device: torch.device, settings: TrainingSettings, *, runs_foreign_code: bool
) -> bool:
    """Return whether a step may be captured in a CUDA graph.

    Not where `torch.compile` has graphs of its own, nor where the rows are in the host's memory, which a graph cannot
    read. Nor where it runs a user's code or timm's, which may do something else in each call, such as draw from
    Python's generator, or free what a graph would read, such as timm's cached biases of attention.
    """
    return device.type == "cuda" and rows_device == device and settings.compile == "none" and not runs_foreign_code


class TrainingStep:
    """The step of a training: `begin_epoch`, then `run` for each batch.

    Attributes:
        loss_sum: of all images of the epoch so far, float32, on the device.
        correct: how many of them were recognised, int64, on the device.
    """

    def __init__(self, training: Training, source: Source, settings: TrainingSettings):
        self.model, self.optimizer, self.scaler = training.model, training.optimizer, training.scaler
        self.source, self.settings = source, settings
        self.device = source.labels_N.device
        self.forward = compiled_forward(settings.compile)
        # Kept, because finding them in a deep network at every step takes as long as a small head.
        self._parameters = [parameter for parameter in training.model.parameters() if parameter.requires_grad]
        is_balanced = settings.class_weights == "balanced"
        self.weights_K = balanced_weights(source.labels_N, training.model.num_classes) if is_balanced else None
        self.loss_sum = torch.zeros((), device=self.device)
        self.correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self._images_read = torch.zeros((), dtype=torch.int64, device=self.device)
        self._rates_device = self.device if self.device.type == "cuda" else torch.device("cpu")  # MPS has no float64
        self._steps_made = torch.zeros((), dtype=torch.int64, device=self._rates_device)
        self._epoch: EpochOrder | None = None
        self._rates_S = self._decays_S = torch.empty(0)
        self._training = training
        is_head = isinstance(source, FeatureSource) and source.start == len(training.model.layers)
        runs_foreign_code = is_custom(training.model.backbone) and not is_head
        self._may_capture = training.may_capture and may_capture(
            self.device, source.device, settings, runs_foreign_code=runs_foreign_code
        )
        # A fused kernel divides gradients by a number while it reads them, which saves a CPU a sixth of a head's step.
        is_fused = all(group["fused"] for group in self.optimizer.param_groups)
        self._divides_in_update = is_fused and self.device.type == "cpu" and not self.scaler.is_enabled()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._full_batch = self._graph_batch = self._eager_steps = 0
        self._learning: range | None = None
        tensors = training.model.state_dict(keep_vars=True)
        self._averages = [(tensors[name].detach(), average) for name, average in training.averages.items()]
        pulled = training.start.items() if settings.l2_sp > 0 else ()
        self._pulled = [(tensors[name], start) for name, start in pulled if isinstance(tensors[name], nn.Parameter)]
        for group in self.optimizer.param_groups:  # on CUDA a tensor, which a graph reads at every replay
            rate = float(group["lr"])
            group["lr"] = torch.tensor(rate, device=self.device) if self.device.type == "cuda" else rate

    def begin_epoch(self, epoch: EpochOrder, rates: Sequence[float], decays: Sequence[float], learning: range) -> None:
        """Put everything that an epoch needs onto the device.

        Args:
            epoch: the order of its images, and the random numbers of their augmentation.
            rates: share of the peak learning rate at each step.
            decays: share of the old moving average of the weights in the new one, at each step.
            learning: the layers that learn; a change needs another graph.
        """
        for counter in (self.loss_sum, self.correct, self._images_read, self._steps_made):
            counter.zero_()
        if learning != self._learning:
            self._graph, self._eager_steps, self._learning = None, 0, learning
        rates_S = torch.tensor(rates, dtype=torch.float64)  # as the host computes them
        decays_S = torch.tensor(decays)
        if self._epoch is None:
            self._epoch, self._rates_S = epoch, rates_S.to(self._rates_device)
            self._decays_S = decays_S.to(self._rates_device)
        else:  # into the same memory, which is what a graph reads
            self._epoch.copy_(epoch)
            self._rates_S.copy_(rates_S)
            self._decays_S.copy_(decays_S)

    def run(self, places: slice, *, steps_left: int) -> None:
        """Make the step on the images at these places of the epoch.

        Args:
            places: those that follow the last step's.
            steps_left: how many steps the same layers will still learn: a graph is captured only if that saves time.
        """
        batch = places.stop - places.start
        if places.start == 0:
            self._full_batch = batch  # an epoch's last batch may be of another size, and is not worth a graph
        can_capture = self._may_capture and self._eager_steps >= EAGER_STEPS and steps_left >= FEWEST_REPLAYS
        if self._graph is None and can_capture and batch == self._full_batch:
            self._capture(batch)
        if self._graph is not None and batch == self._graph_batch:
            self._graph.replay()
        else:
            self._step(places)
            self._eager_steps += 1

    def _capture(self, batch: int) -> None:
        """Capture the step for batches of this size in a graph; nothing is computed."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._step(self._images_read + torch.arange(batch, device=self.device))
        except RuntimeError as error:  # something that a graph cannot do, or no memory left for it
            self._may_capture = self._training.may_capture = False
            # torch 2.11 leaves its stream, and a generator that still captures: the next dropout would raise an error.
            torch.cuda.set_stream(stream)
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            if self.scaler.is_enabled():
                self.scaler._per_optimizer_states.clear()  # of the step that was not made
            self.optimizer.zero_grad(set_to_none=True)
            logger.warning("trains without CUDA graphs, which is slower: %s", first_line(error))
            return
        self._graph, self._graph_batch = graph, batch
        self._training.has_graph = True

    def _step(self, places_B: slice | torch.Tensor) -> None:
        """Read a batch, compute its loss and gradients, and update the network."""
        assert self._epoch is not None
        self._set_learning_rates()
        batch = self.source.read(self._epoch, places_B)
        labels_B = batch.labels_B
        with autocast(self.device, self.settings.precision, keeps_casts=self.device.type != "cuda"):
            logits_BK = self.forward(self.model, batch.inputs, self.source.start)
        smoothing = self.settings.label_smoothing
        loss = mixed_loss(logits_BK.float(), labels_B, batch.own_share, self.weights_K, smoothing)
        for parameter in self._parameters:
            parameter.grad = None
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._update()
        self._average()
        self.loss_sum += loss.detach() * len(labels_B)  # read at the end of the epoch: here it would stall a GPU
        self.correct += (logits_BK.argmax(1) == labels_B).sum()
        self._images_read += len(labels_B)
        self._steps_made += 1

    def _update(self) -> None:
        """Pull pretrained weights back to their start, scale gradients that are too long down, update the network."""
        self.scaler.unscale_(self.optimizer)
        for parameter, start in self._pulled:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=self.settings.l2_sp)
        if self._divides_in_update:
            norm = get_total_norm([p.grad for p in self._parameters if p.grad is not None])
            self.optimizer.grad_scale = (norm / self.settings.max_grad_norm).clamp(min=1)  # type: ignore[attr-defined]
            self.optimizer.step()
            return
        clip_grad_norm_(self._parameters, self.settings.max_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _average(self) -> None:
        """Move the averages of the tensors that learn towards them."""
        if self._averages:
            decay = torch.take(self._decays_S, self._steps_made)
            for tensor, average in self._averages:
                average.lerp_(tensor, 1 - decay)

    def _set_learning_rates(self) -> None:
        rate = torch.take(self._rates_S, self._steps_made)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].copy_(rate * group["peak_lr"])
            else:
                group["lr"] = group["peak_lr"] * rate.item()
