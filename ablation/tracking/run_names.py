"""The names that MLflow shows for arms and runs: `block3 / fine-tune all / seed 1`."""

from ablation.spec.arms import Arm
from ablation.spec.parameters import STRATEGIES, levels_name

SEED_TAG = "ablation.seed"  # the seed of all random numbers of a run, 19 digits; its parameter `seed` counts from 1


def arm_title(arm: Arm) -> str:
    """Return an arm's name as people write it: `block3 / fine-tune all`; one that a study file gives stays as it is."""
    if arm.name != levels_name(arm.levels):
        return arm.name
    levels = [levels_name({factor: level}) for factor, level in arm.levels.items()]
    return " / ".join(
        level.replace("fine_tune", "fine-tune").replace("_", " ") if level in STRATEGIES else level for level in levels
    )


def run_title(arm: Arm, number: int, *, is_confirmation: bool, repeat: int | None = None) -> str:
    """Return a run's name in MLflow.

    Args:
        arm: its arm; the only arm of a study that compares nothing is left out.
        number: of the trial or of the confirmation run in its arm, from 0.
        is_confirmation: whether it is a confirmation run: it differs from the arm's others by its seed.
        repeat: of the arm's tuning, from 0; None where there is one.
    """
    count = f"{'seed' if is_confirmation else 'trial'} {number + 1}"
    count = count if repeat is None else f"repeat {repeat + 1} / {count}"
    return f"{arm_title(arm)} / {count}" if arm.compared_levels else count
