"""The colours of arms, the same in the report and in the MLflow UI."""

from collections.abc import Sequence

from ablation.spec.arms import Arm

# Okabe and Ito's (2008), which colour-blind readers can tell apart, darkened where they would be faint on white, and a
# brown for their second blue, whose shades look like those of the first.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b07d00", "#6b3a1e", "#c05e97", "#6a5acd")
LIGHTEST = 0.6  # share of white in the lightest shade of a colour


def arm_colours(arms: Sequence[Arm]) -> dict[str, str]:
    """Return the colour of each arm, such as '#0072b2', by name: for charts that cannot show an arm by a marker, too.

    Arms with the same level of the first factor have the same hue, as in the report; their other levels give the shade.

    Args:
        arms: all of the study, in their order.
    """
    firsts = list(dict.fromkeys(_first_level(arm) for arm in arms))
    by_hue: dict[str, list[str]] = {}
    for arm in arms:
        by_hue.setdefault(COLOURS[firsts.index(_first_level(arm)) % len(COLOURS)], []).append(arm.name)
    return {
        name: _mixed_with_white(hue, LIGHTEST * place / max(1, len(names) - 1))
        for hue, names in by_hue.items()
        for place, name in enumerate(names)
    }


def _first_level(arm: Arm) -> str:
    return str(next(iter(arm.compared_levels.values()), arm.name))


def _mixed_with_white(colour: str, share: float) -> str:
    channels = bytes.fromhex(colour.removeprefix("#"))
    return f"#{bytes(round(channel + share * (255 - channel)) for channel in channels).hex()}"
