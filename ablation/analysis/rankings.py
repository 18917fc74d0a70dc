"""How well a study's forecast foretold the order of its trained arms.

The forecast has no part in any choice: neither trials nor the champion depend on it.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from ablation.analysis.contrasts import level_label
from ablation.analysis.cut_forecasts import MEASURES, cut_name
from ablation.analysis.results import ArmResult, StudyResult
from ablation.analysis.statistics import kendall_tau
from ablation.spec.parameters import STRATEGIES

FEWEST_CUTS = 4  # of three, a random order is the right one in one study of six


@dataclass(frozen=True)
class Agreement:
    """How well one measure of a forecast foretold an order.

    Attributes:
        tau: Kendall's rank correlation; None where there are fewer than `FEWEST_CUTS`, or no order.
        first: the cut that the measure puts first.
        behind: by how much that cut's trained arm is behind the best one, in accuracy.
    """

    tau: float | None
    first: str
    behind: float


@dataclass(frozen=True)
class Ranking:
    """The arms that differ in their cut alone, in the order of their accuracies.

    Attributes:
        arms: what they have in common: the labels of their other levels; "all arms" without any.
        is_tested: whether they are compared by mean test accuracy; otherwise by the best tuned validation accuracy.
        accuracies: name of a cut -> accuracy.
        agreements: a measure of the forecast -> its agreement with them.
    """

    arms: str
    is_tested: bool
    accuracies: dict[str, float]
    agreements: dict[str, Agreement]

    @property
    def best(self) -> str:
        """The cut with the highest accuracy, the first of equals."""
        return max(self.accuracies, key=lambda cut: self.accuracies[cut])


def rankings(result: StudyResult) -> list[Ranking]:
    """Return a ranking for each combination of the factors besides cut and pool under which two cuts or more finished.

    Arms that start from random weights are left out: a forecast is about pretrained features.
    """
    groups: dict[str, dict[str, ArmResult]] = defaultdict(dict)
    names = {(cut.truncate_at, cut.head_pool): cut_name(result.forecast, cut) for cut in result.forecast}
    for arm in result.arms:
        if arm.best is None or not STRATEGIES[arm.best.spec.strategy].starts_pretrained:
            continue
        name = names.get((arm.best.spec.truncate_at, arm.best.spec.head_pool))
        if name is None:
            continue
        others = [level_label(f, level) for f, level in arm.arm.levels.items() if f not in ("truncate_at", "head_pool")]
        groups[", ".join(others) or "all arms"][name] = arm
    return [_ranking(result, others, arms) for others, arms in groups.items() if len(arms) > 1]


def _ranking(result: StudyResult, others: str, arms: dict[str, ArmResult]) -> Ranking:
    is_tested = all(arm.confirmed for arm in arms.values())
    accuracies = {
        cut: float(arm.test_accuracies_S.mean()) if is_tested else float(arm.best.val_accuracy or 0.0)
        for cut, arm in arms.items()
        if arm.best is not None
    }
    agreements = {}
    for measure in MEASURES:
        forecast = {cut_name(result.forecast, cut): float(getattr(cut, measure)) for cut in result.forecast}
        foretold = [forecast[cut] for cut in accuracies]
        first = list(accuracies)[int(np.argmax(foretold))]
        tau = kendall_tau(foretold, list(accuracies.values())) if len(accuracies) >= FEWEST_CUTS else None
        agreements[measure] = Agreement(tau, first, max(accuracies.values()) - accuracies[first])
    return Ranking(others, is_tested, accuracies, agreements)
