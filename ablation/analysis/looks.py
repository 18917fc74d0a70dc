"""Looks at a study's answer: at which level each is tested, and what a planned look decides."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ablation.analysis.boundaries import planned_levels, unplanned_level
from ablation.analysis.compared_repeats import compared_repeats
from ablation.analysis.comparison import Difference, compare, compared_pairs
from ablation.analysis.contrasts import level_comparisons, places
from ablation.analysis.estimator import Estimator
from ablation.analysis.results import StudyResult, read_results
from ablation.analysis.simultaneous import FEWEST_SEEDS
from ablation.analysis.statistics import ALPHA
from ablation.analysis.wording import ordinal, percent
from ablation.base.errors import InputError, StoreAway, StoreError
from ablation.spec.looks import Decision, current_look
from ablation.storage.store import Store
from ablation.tracking.looks import LOOK_TAG, TAG_LIMIT


@dataclass(frozen=True)
class PastLook:
    """A report that was made of a study: when, and of what.

    Attributes:
        name: of the tag that records it, the same for the same data and tests.
        time: when the first report of these data was made, in UTC.
        seeds: confirmation runs of each arm, in the study's order; of very many arms, the fewest and the most.
        trials: ended trials of each arm; likewise.
        control: factor -> control, as in the study file.
        compare: what was compared, as in the study file.
    """

    name: str
    time: datetime
    seeds: tuple[int, ...]
    trials: tuple[int, ...]
    control: Mapping[str, Any]
    compare: str

    def stored(self) -> str:
        """Return it as a tag holds it."""
        stored = {"time": self.time.isoformat(), **_subject(self)}
        if len(text := json.dumps(stored)) <= TAG_LIMIT:
            return text
        ranges = {name: [min(stored[name]), max(stored[name])] for name in ("seeds", "trials")}
        return json.dumps({**stored, **ranges})


def _subject(look: PastLook) -> dict[str, Any]:
    return {
        "seeds": list(look.seeds),
        "trials": list(look.trials),
        "control": dict(look.control),
        "compare": look.compare,
    }


def past_looks(tags: Mapping[str, str]) -> list[PastLook]:
    """Return the recorded looks at a study, the first one first, from the tags of its summary run."""
    looks = []
    for name, value in tags.items():
        if name.startswith(f"{LOOK_TAG}."):
            try:
                stored = json.loads(value)
                time = datetime.fromisoformat(stored["time"])
                time = time if time.tzinfo else time.replace(tzinfo=UTC)
                seeds, trials = (tuple(map(int, stored[name])) for name in ("seeds", "trials"))
                looks.append(PastLook(name, time, seeds, trials, dict(stored["control"]), str(stored["compare"])))
            except (ValueError, KeyError, TypeError):  # edited by hand: it still counts
                looks.append(PastLook(name, datetime.min.replace(tzinfo=UTC), (), (), {}, ""))
    return sorted(looks, key=lambda look: (look.time, look.name))


def this_look(result: StudyResult) -> PastLook | None:
    """Return the look that a report of these results is, at the present time; None if it tests nothing.

    Its time is after that of all recorded looks, whatever the clocks of their machines.
    """
    if result.independent_images < 2:
        return None
    usable = [name for name, units in _tested_units(result).items() if units >= FEWEST_SEEDS]
    all_places = places(result.spec)
    _, pairs = compared_pairs(result)
    if not level_comparisons({name: all_places[name] for name in usable}, pairs):
        return None
    confirm = result.spec.confirm
    latest = max((look.time for look in past_looks(result.tags)), default=datetime.min.replace(tzinfo=UTC))
    look = PastLook(
        name="",
        time=max(datetime.now(UTC), latest + timedelta(milliseconds=1)),
        seeds=tuple(len(arm.confirmed) for arm in result.arms),
        trials=tuple(sum(trial.state != "unfinished" for trial in arm.trials) for arm in result.arms),
        control=confirm.control,
        compare=confirm.compare,
    )
    digest = hashlib.sha256(json.dumps(_subject(look), sort_keys=True).encode()).hexdigest()[:16]
    return replace(look, name=f"{LOOK_TAG}.{digest}")


def _tested_units(result: StudyResult) -> dict[str, int]:
    """Return the seeds of each arm, or the compared repeats of its tuning: none if one of them lacks it."""
    if result.spec.confirm.repeats == 1:
        return {arm.arm.name: len(arm.confirmed) for arm in result.arms}
    repeats, _ = compared_repeats(result)
    return {
        arm.arm.name: len(repeats) if all(repeat.arms[number].confirmed for repeat in repeats) else 0
        for number, arm in enumerate(result.arms)
    }


def count_looks(store: Store, study: str) -> int:
    """Return how many looks at a study a store has recorded; 0 where it cannot be read, or is not there yet."""
    try:
        return len(past_looks(read_results(store, study, with_details=False).tags))
    except (InputError, StoreAway, StoreError):
        return 0


def look_number(result: StudyResult) -> int:
    """Return which look, from 1, a report of these results is: that of its first report, else one after the last."""
    look, recorded = this_look(result), [past.name for past in past_looks(result.tags)]
    if look is None or look.name not in recorded:
        return len(recorded) + 1
    return recorded.index(look.name) + 1


def level_of(result: StudyResult) -> float:
    """Return the chance of any false declaration in a report of these results: 5 %, or what is left of it."""
    looks = result.spec.confirm.looks
    if looks:
        return planned_levels(looks)[result.look] if result.look is not None else ALPHA  # no test yet, or pooled
    return unplanned_level(look_number(result))


def estimator_of(result: StudyResult) -> Estimator:
    """Return the estimator of a study, or of pooled ones: what it repeats, its groups, its objective and its level."""
    is_repeated = result.spec.confirm.repeats > 1
    return Estimator("tuning" if is_repeated else "seed", result.test_groups_N, result.spec.goal, level_of(result))


def look_sentences(result: StudyResult) -> list[str]:
    """Return which look at the study this is and at which level it is tested; none for the only one."""
    confirm, level = result.spec.confirm, percent(level_of(result))
    if confirm.looks:
        if result.look is None:
            return []
        seeds = confirm.looks[result.look]
        text = f"Planned look {result.look + 1} of {len(confirm.looks)}, at {seeds} seeds: tested at {level}"
        ended = result.decisions and result.decisions[-1].is_sure and seeds < confirm.seeds
        return [f"{text}; the study ended here, because the answer is sure." if ended else f"{text}."]
    number = look_number(result)
    if number == 1 or this_look(result) is None:
        return []
    name = ordinal(number)
    return [f"{name[0].upper()}{name[1:]} look at this study: tested at {level}."]


def decide(result: StudyResult) -> Decision:
    """Return what the planned look decides whose runs have all ended.

    An arm is stopped if all its comparisons are decided, each shown or equivalent, or if it is shown to be worse than
    the arm with the best mean. In a study of several factors, every arm serves the comparisons of all of them, so
    that none is stopped before the answer is sure. It is sure where nothing undecided is left between arms of which at
    least one would get further seeds; nothing is sure where nothing could be compared, as after failed runs.

    Args:
        result: the study as of this look, see `StudyResult.look`.
    """
    assert result.look is not None
    spec, seeds = result.spec, current_look(result.spec.confirm, result.decisions)
    correct = result.scores
    compared = compare(result, correct, estimator_of(result))
    margin = spec.margin
    factors = [factor for factor in compared.factors if len(factor.levels) > 1]
    if len(factors) != 1:
        differences = [difference for factor in factors for difference in factor.at_levels or factor.family]
        return Decision(seeds, (), bool(differences) and all(is_decided(d, margin) for d in differences))
    (factor,) = factors
    arm_of = {place[factor.factor]: arm for arm, place in places(spec).items()}
    pairs = [(difference, arm_of[difference.first], arm_of[difference.second]) for difference in factor.family]
    leader = max(correct, key=lambda arm: spec.goal.goodness(float(correct[arm].mean())), default="")
    stopped_before = {arm for decision in result.decisions for arm in decision.stopped}
    stopped = []
    for arm in arm_of.values():
        mine = [(difference, {first, second}) for difference, first, second in pairs if arm in (first, second)]
        is_beaten = arm != leader and any(
            difference.is_shown and between == {arm, leader} for difference, between in mine
        )
        is_done = bool(mine) and all(is_decided(difference, margin) for difference, _ in mine)
        if arm not in stopped_before and (is_beaten or is_done):
            stopped.append(arm)
    gets_more = set(arm_of.values()) - stopped_before - set(stopped)
    open_pairs = [
        difference
        for difference, first, second in pairs
        if not is_decided(difference, margin) and {first, second} & gets_more
    ]
    return Decision(seeds, tuple(stopped), bool(pairs) and not open_pairs)


def is_decided(difference: Difference, margin: float | None) -> bool:
    """Return whether further seeds are not needed: the difference is shown, or equivalent within the margin."""
    return difference.is_shown or (margin is not None and difference.equivalence(margin) == "equivalent")
