"""How well a study's forecast foretold the order of its trained arms.

The forecast has no part in any choice: neither trials nor the champion depend on it.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from ablation.analysis.contrasts import level_label
from ablation.analysis.cut_forecasts import MEASURES, cut_name
from ablation.analysis.results import ArmResult, StudyResult
from ablation.spec.objective import ACCURACY, Objective
from ablation.spec.parameters import STRATEGIES

FEWEST_CUTS = 4  # of three, a random order is the right one in one study of six


@dataclass(frozen=True)
class Agreement:
    """How well one measure of a forecast foretold an order.

    Attributes:
        tau: Kendall's rank correlation; None where there are fewer than `FEWEST_CUTS`, or no order.
        first: the cut that the measure puts first.
        behind: by how much that cut's trained arm is behind the best one, in the objective.
    """

    tau: float | None
    first: str
    behind: float


@dataclass(frozen=True)
class Ranking:
    """The arms that differ in their cut alone, in the order of their objective.

    Attributes:
        arms: what they have in common: the labels of their other levels; "all arms" without any.
        is_tested: whether they are compared by the mean over test images; otherwise by the best tuned validation value.
        values: name of a cut -> the objective.
        agreements: a measure of the forecast -> its agreement with them.
        objective: of the study.
    """

    arms: str
    is_tested: bool
    values: dict[str, float]
    agreements: dict[str, Agreement]
    objective: Objective = ACCURACY

    @property
    def best(self) -> str:
        """The best cut, the first of equals."""
        return max(self.values, key=lambda cut: self.objective.goodness(self.values[cut]))


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
    goal = result.spec.goal
    values = {
        cut: float(arm.test_values_S.mean()) if is_tested else float(arm.best.val_value or 0.0)
        for cut, arm in arms.items()
        if arm.best is not None
    }
    agreements, ranks = {}, [goal.goodness(value) for value in values.values()]
    for measure in MEASURES:
        forecast = {cut_name(result.forecast, cut): float(getattr(cut, measure)) for cut in result.forecast}
        foretold = [forecast[cut] for cut in values]
        first = list(values)[int(np.argmax(foretold))]
        tau = float(kendalltau(foretold, ranks).statistic) if len(values) >= FEWEST_CUTS else np.nan
        agreements[measure] = Agreement(
            None if np.isnan(tau) else tau, first, max(ranks) - goal.goodness(values[first])
        )
    return Ranking(others, is_tested, values, agreements, goal)
