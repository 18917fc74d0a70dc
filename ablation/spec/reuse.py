"""What a trial reuses of its backbone and what of it learns, counted in units; needs no network."""

from dataclasses import dataclass
from itertools import pairwise

from ablation.spec.architectures import ARCHITECTURES, block_names, kept_blocks, kept_units, unit_names
from ablation.spec.parameters import STRATEGIES, StrategyName

PARTS = ("all", "norms", "biases")  # values of `learn` besides the names of blocks


@dataclass(frozen=True)
class Reuse:
    """The part of a backbone that a trial keeps, and the part of it that learns.

    Attributes:
        backbone: its name.
        truncate_at: the last block or unit that is kept.
        strategy: says what stays frozen.
        freeze_depth: the leading blocks that `fine_tune_top` freezes (their number), or the last unit that it freezes;
            None for other strategies, and where it is not known yet.
        learn: what of the unfrozen part learns: 'all', 'norms', 'biases' or one block.
    """

    backbone: str
    truncate_at: str
    strategy: StrategyName
    freeze_depth: int | str | None = None
    learn: str = "all"

    @property
    def kept(self) -> int:
        """The number of units that are kept."""
        return kept_units(self.backbone, self.truncate_at)

    @property
    def unfrozen(self) -> range:
        """The units, counted from 0, that the strategy does not freeze."""
        depth = 0 if self.freeze_depth is None else units_up_to(self.backbone, self.freeze_depth)
        frozen = {"all": self.kept, "freeze_depth": min(depth, self.kept), "none": 0}
        return range(frozen[STRATEGIES[self.strategy].freezes], self.kept)

    @property
    def learning(self) -> range:
        """The units, counted from 0, that learn: those of one block, if `learn` names it.

        Units before them are frozen, and so are those after them, through which gradients flow.
        """
        unfrozen = self.unfrozen
        if self.learn in PARTS:
            return unfrozen
        number = block_names(self.backbone).index(self.learn)
        first, end = (units_up_to(self.backbone, blocks) for blocks in (number, number + 1))
        return range(max(first, unfrozen.start), max(first, unfrozen.start, min(end, unfrozen.stop)))

    @property
    def frozen(self) -> int:
        """The number of leading units that do not learn; features are cached behind them."""
        return self.learning.start if self.learning else self.kept

    @property
    def learning_blocks(self) -> int:
        """The number of blocks of which units learn."""
        ends = [units_up_to(self.backbone, number) for number in range(len(block_names(self.backbone)) + 1)]
        blocks = [range(first, end) for first, end in pairwise(ends)]
        return sum(any(unit in self.learning for unit in block) for block in blocks)

    @property
    def training(self) -> tuple[bool, int, bool, range, str]:
        """What a training depends on, by whatever names: from where it starts, what it keeps, what of it learns."""
        with_pool = self.truncate_at in block_names(self.backbone)[: ARCHITECTURES[self.backbone].pools]
        part = self.learn if self.learning and self.learn in ("norms", "biases") else "all"
        return STRATEGIES[self.strategy].starts_pretrained, self.kept, with_pool, self.learning, part

    def applies(self, parameter: str) -> bool:
        """Return whether a hyper-parameter has any effect on such a trial."""
        strategy = STRATEGIES[self.strategy]
        if parameter == "freeze_depth":
            return strategy.freezes == "freeze_depth"
        if parameter == "learn":
            return len(self.unfrozen) > 0
        if parameter in ("backbone_lr_scale", "head_warmup_epochs", "unfreeze_every", "l2_sp"):  # of pretrained layers
            return strategy.starts_pretrained and len(self.learning) > 0
        if parameter == "lr_decay":
            return strategy.starts_pretrained and self.learning_blocks > 1
        return True

    def fault(self) -> tuple[str, str] | None:
        """Return the parameter that contradicts the others, and why; None if such a trial is possible."""
        last = self.freeze_depth if STRATEGIES[self.strategy].freezes == "freeze_depth" else None
        if isinstance(last, str) and units_up_to(self.backbone, last) > self.kept:
            return "freeze_depth", f"{last} cannot be frozen where {self.truncate_at} is the last that is kept"
        blocks = kept_blocks(self.backbone, self.truncate_at)
        if isinstance(last, int) and last > blocks:
            return "freeze_depth", f"{last} blocks cannot be frozen where {blocks} are kept"
        if self.unfrozen and not self.learning:
            is_kept = units_up_to(self.backbone, block_names(self.backbone).index(self.learn)) < self.kept
            why = f"freeze_depth = {self.freeze_depth} freezes it" if is_kept else f"{self.truncate_at} cuts it off"
            return "learn", f"{self.learn} cannot learn, because {why}"
        return None


def unit_at_end(backbone: str, units: int) -> str:
    """Return the name of the last of so many leading units."""
    return [name for names in unit_names(backbone) for name in names][units - 1]


def cut_at_end(backbone: str, units: int) -> str:
    """Return the cut that keeps so many leading units, with the pool behind the last one."""
    ends = {units_up_to(backbone, number): f"block{number}" for number in range(1, len(block_names(backbone)) + 1)}
    return ends.get(units) or unit_at_end(backbone, units)


def units_up_to(backbone: str, freeze_depth: int | str) -> int:
    """Return the number of units up to and including a unit, or of so many leading blocks."""
    if isinstance(freeze_depth, str):
        return kept_units(backbone, freeze_depth)
    return sum(map(len, unit_names(backbone)[:freeze_depth]))
