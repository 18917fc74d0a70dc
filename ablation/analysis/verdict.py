"""The verdict: the answer in plain words, a line per factor, at most forty words in all unless names are long."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ablation.analysis.comparison import Difference, FactorAnalysis, least_beaten
from ablation.analysis.wording import join, margin_words, points
from ablation.spec.objective import ACCURACY, Objective

MOST_WORDS = 40
FORMS = 4  # of a line, from the longest to the shortest
REST = "More below."  # for the lines that there is no room for


@dataclass(frozen=True)
class Standing:
    """How the other levels compare with one, by their differences from it.

    Attributes:
        level: its label.
        better: shown to be better than it, with by how much.
        equal: equivalent within the margin.
        undecided: tested, and neither, with by how much they are behind it.
        worse: shown to be worse, with by how much.
        untested: without seeds enough for a test.
        bound: the largest difference from any undecided level that is possible; None without.
        objective: what is compared.
    """

    level: str
    better: dict[str, float]
    equal: list[str]
    undecided: dict[str, float]
    worse: dict[str, float]
    untested: list[str]
    bound: float | None
    objective: Objective = ACCURACY

    def amount(self, difference: float) -> str:
        """Return a difference with its unit."""
        return f"{points(difference, self.objective)} {self.objective.unit}"

    def by(self, amounts: dict[str, float], form: int) -> str:
        """Return by how much levels are better or worse, such as ', by 1.2 to 9.9 points'; nothing in short forms."""
        return "" if form >= 2 or not amounts else f", by {self.range(amounts)} {self.objective.unit}"

    def range(self, amounts: dict[str, float]) -> str:
        """Return the smallest and the largest amount, such as '1.2 to 9.9'."""
        low, high = (points(end, self.objective) for end in (min(amounts.values()), max(amounts.values())))
        return low if low == high else f"{low} to {high}"

    def possibly(self) -> str:
        """Return how far undecided levels are behind, and may be at most, such as ' (5.4 behind, at most 13.7)'."""
        assert self.bound is not None
        if min(self.undecided.values()) < 0:
            return f" (within {self.amount(self.bound)})"
        unit = "" if self.worse else f" {self.objective.unit}"  # else it follows
        return f" ({self.range(self.undecided)}{unit} behind, at most {points(self.bound, self.objective)})"


def standing(level: str, differences: Sequence[Difference], margin: float | None) -> Standing:
    """Return how the other levels compare with one; the equivalence margin is a fraction."""
    better: dict[str, float] = {}
    worse: dict[str, float] = {}
    undecided: dict[str, float] = {}
    equal, untested, bounds = [], [], []
    for difference in differences:
        if level not in (difference.first, difference.second):
            continue
        other = difference.second if level == difference.first else difference.first
        gain = difference.gain if level == difference.first else -difference.gain
        if not difference.is_tested:
            untested.append(other)
        elif margin is not None and difference.equivalence(margin) == "equivalent":
            equal.append(other)
        elif not difference.is_shown:
            undecided[other] = gain
            bounds.append(difference.bound)
        elif gain > 0:
            worse[other] = gain
        else:
            better[other] = -gain
    objective = differences[0].objective if differences else ACCURACY
    return Standing(level, better, equal, undecided, worse, untested, max(bounds, default=None), objective)


def factor_lines(factors: Sequence[FactorAnalysis], margin: float | None) -> list[str]:
    """Return a line for each factor, with its name where there are several; `margin` is a fraction.

    The first line names the objective unless it is accuracy.

    The longest line is shortened until all of them have at most `MOST_WORDS` words. Lines that still have no room are
    left to the report, but never the first one, however long its names are.
    """
    makers = [_maker(factor, margin, len(factors) > 1, is_first=factor is factors[0]) for factor in factors]
    forms = [0] * len(factors)
    lines = [make(0) for make in makers]
    while sum(map(_words, lines)) > MOST_WORDS and any(form < FORMS - 1 for form in forms):
        longest = max((i for i, form in enumerate(forms) if form < FORMS - 1), key=lambda i: _words(lines[i]))
        forms[longest] += 1
        lines[longest] = makers[longest](forms[longest])
    rest: list[str] = []
    while len(lines) > 1 and sum(map(_words, [*lines, *rest])) > MOST_WORDS:
        lines, rest = lines[:-1], [REST]
    return [*lines, *rest]


def reference(factor: FactorAnalysis) -> str:
    """Return the label of the level that the others are compared with in words.

    The pivot, else the level that is ahead; where that one has too few seeds, the best of those that are tested.
    """
    named = factor.pivot or factor.ahead or factor.levels[0].label
    with_named = [difference for difference in factor.family if named in (difference.first, difference.second)]
    tested = [difference for difference in factor.family if difference.is_tested]
    if not tested or not with_named or any(difference.is_tested for difference in with_named):
        return named
    return least_beaten(tested)


def _words(text: str) -> int:
    return len(text.split())


def _maker(factor: FactorAnalysis, margin: float | None, named: bool, *, is_first: bool) -> Callable[[int], str]:
    start = f"By {factor.objective.label}, " if is_first and factor.objective != ACCURACY else ""

    def make(form: int) -> str:
        text = _line(factor, margin, form)
        if named or start:
            return f"{start}{factor.factor + ': ' if named else ''}{text}."
        is_label = text.startswith(tuple(level.label for level in factor.levels))
        return (text if is_label else text[0].upper() + text[1:]) + "."

    return make


def _line(factor: FactorAnalysis, margin: float | None, form: int) -> str:
    if not factor.family:
        return "nothing can be compared"
    if factor.by_level:
        if form == FORMS - 1 or len(factor.by_level) > 1:  # effects at levels of one factor hide those of another
            return f"the effect depends on {join(list(factor.by_level))}"
        ((other, differences),) = factor.by_level.items()
        return _line_by_level(factor, other, differences, margin, form)
    pivot = reference(factor)
    if not any(pivot in (difference.first, difference.second) for difference in factor.family):
        return f"nothing can be compared with {pivot} yet"
    if not any(difference.is_tested for difference in factor.family):
        if not all(difference.lacks_seeds for difference in factor.family):
            return "nothing can be compared on a single test image or group"
        return f"too few {factor.family[0].unit}s to compare; each arm needs three"
    return _sentence(standing(pivot, factor.family, margin), factor, margin, form)


def _sentence(view: Standing, factor: FactorAnalysis, margin: float | None, form: int) -> str:
    """Return how the levels compare with one of them, in one of four lengths."""
    level = f"the control {view.level}" if factor.control else view.level
    others = len(view.better) + len(view.equal) + len(view.undecided) + len(view.worse) + len(view.untested)
    if others == 1 and not view.untested:
        return _pair(view, level, margin, form)
    if len(view.undecided) == others and view.bound is not None:
        if form == FORMS - 1:
            return "no clear winner"
        levels = "arms" if factor.factor == "arm" else "levels"
        which = f"{join([view.level, *view.undecided])}" if others < 4 and form < 2 else f"{others + 1} {levels}"
        return f"no clear winner among {which}: any difference from {level} is below {view.amount(view.bound)}"
    parts = []
    if factor.pivot is None:
        parts.append(f"{level} is {'ahead' if view.undecided or view.untested or view.equal else 'best'}")
    else:
        role = "" if factor.control else ", which led the tuning"
        parts.append(f"compared with {level}{role}")
    if form == FORMS - 1 and factor.pivot is None:
        return parts[0]
    might = f"might be as good{view.possibly() if view.undecided and form == 0 else ''}"
    for names, of_one, of_several, end in (
        (list(view.better), "is clearly better", "are clearly better", view.by(view.better, form)),
        (view.equal, "is as good", "are as good", ""),
        (list(view.undecided), might, might, ""),
        (list(view.worse), "is clearly worse", "are clearly worse", view.by(view.worse, form)),
        (view.untested, "has too few seeds", "have too few seeds", ""),
    ):
        if names:
            is_long = form > 0 and len(names) > 2
            all_or_some = "all others" if len(names) == others else f"{len(names)} others"
            subject = all_or_some if is_long else join(names)
            parts.append(f"{subject} {of_one if len(names) == 1 else of_several}{end}")
    start, *rest = parts
    return f"{start}{': ' if factor.pivot else '; '}{'; '.join(rest)}" if rest else start


def _pair(view: Standing, level: str, margin: float | None, form: int) -> str:
    """Return how two levels compare; in the shortest form, without the other's name."""
    is_short = form == FORMS - 1
    for amounts, verb in ((view.worse, "better"), (view.better, "worse")):
        if amounts:
            than = "" if is_short else f" than {join(list(amounts))}{view.by(amounts, form)}"
            return f"{level} is clearly {verb}{than}"
    if view.equal:
        within = "" if is_short else f", within {margin_words(margin or 0.0, view.objective)}"
        return f"{'both' if is_short else f'{level} and {view.equal[0]}'} are equally good{within}"
    if is_short or view.bound is None:
        return "no clear winner"
    both = join([level, *view.undecided])
    return f"{both} might be equally good: any difference is below {view.amount(view.bound)}"


def _line_by_level(
    factor: FactorAnalysis, other: str, differences: Sequence[Difference], margin: float | None, form: int
) -> str:
    """Return the effect of a factor at each level of another, with which it interacts."""
    views = {}
    for at in dict.fromkeys(str(d.at) for d in differences):
        here = [d for d in differences if d.at == at]
        views[at] = standing(factor.pivot or least_beaten(here), here, margin)
    leaders = {view.level for view in views.values()}
    if len(leaders) == 1 and not any(view.better or _rivals(view) for view in views.values()):
        winner = leaders.pop()
        if form == 0:
            return f"{winner} is best{_join_by(views)}"
        amounts = {f"{at}/{name}": gain for at, view in views.items() for name, gain in view.worse.items()}
        view = next(iter(views.values()))
        return f"{winner} is best with every {other}{view.by(amounts, form - 1)}"
    clauses = "; ".join(f"with {at} {_clause(view, factor, form)}" for at, view in views.items())
    largest = _largest_at_a_level(factor, differences, margin)
    return clauses if form < 2 or largest is None else min(clauses, largest, key=_words)


def _largest_at_a_level(factor: FactorAnalysis, differences: Sequence[Difference], margin: float | None) -> str | None:
    """Return the largest shown effect, the level at which it is, and whether others show any; None without one."""
    shown = [difference for difference in differences if difference.is_shown]
    relevant = [d for d in shown if margin is None or d.equivalence(margin) != "equivalent"]
    if not relevant:
        return None
    largest = max(relevant, key=lambda difference: abs(difference.gain))
    winner = largest.first if largest.loser == largest.second else largest.second
    than = "" if len(factor.levels) == 2 else f" than {largest.loser}"
    amount = f"{points(abs(largest.gain), largest.objective)} {largest.objective.unit}"
    elsewhere = "other differences are" if any(d.at != largest.at for d in shown) else "no difference is"
    return f"{winner} is better{than} with {largest.at} (by {amount}); elsewhere {elsewhere} shown"


def _join_by(views: dict[str, Standing]) -> str:
    clauses = [f"{view.by(view.worse, 0).removeprefix(', ')} with {at}" for at, view in views.items()]
    return f", {join(clauses)}"


def _rivals(view: Standing) -> list[str]:
    return [*view.undecided, *view.equal, *view.untested]


def _clause(view: Standing, factor: FactorAnalysis, form: int) -> str:
    rivals = _rivals(view)
    if view.better:
        beat = "beats" if len(view.better) == 1 else "beat"
        return f"{join(list(view.better))} {beat} {view.level}{view.by(view.better, form + 1)}"
    if not rivals:
        return f"{view.level} is best{view.by(view.worse, form)}"
    if view.equal and len(view.equal) == len(rivals) and not view.worse:
        return f"{join([view.level, *view.equal])} are equally good"
    if len(rivals) + 1 == len(factor.levels):
        return "nothing is clear"
    return f"{view.level} is ahead" + (f" ({join(rivals)} might be as good)" if form == 0 else "")
