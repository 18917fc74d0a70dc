"""The repeats of a study's tuning, each as a study of its own, and which of them are compared."""

from dataclasses import replace

from ablation.analysis.results import StudyResult
from ablation.analysis.wording import join


def compared_repeats(result: StudyResult) -> tuple[list[StudyResult], list[str]]:
    """Return the repeats that the figures are of, and which others have begun, as a sentence.

    A repeat in which an arm has yet to be confirmed is left out, unless that holds for all.
    """
    repeats = repeats_of(result)
    begun = [number for number, repeat in enumerate(repeats) if any(arm.confirmed for arm in repeat.arms)]
    lacking = {
        number: [arm.arm.name for arm in repeats[number].arms if arm.chosen and not arm.confirmed] for number in begun
    }
    complete = [number for number in begun if not lacking[number]]
    if not complete:
        return [repeats[number] for number in begun] or repeats, []
    texts = [
        f"repeat {number + 1}, in which {join(names)} {'is' if len(names) == 1 else 'are'} not confirmed"
        for number, names in lacking.items()
        if names
    ]
    left_out = [f"Left out of means over tunings, intervals and tests: {'; '.join(texts)}."] if texts else []
    return [repeats[number] for number in complete], left_out


def repeats_of(result: StudyResult) -> list[StudyResult]:
    """Return the repeats of a study's tuning, each as a study of its own; a study without repeats is the only one."""
    spec = result.spec
    if spec.confirm.repeats == 1:
        return [result]

    return [
        replace(
            result,
            spec=spec.model_copy(
                update={
                    "name": f"{spec.name} repeat {repeat + 1}",
                    "trials_per_arm": spec.trials_of(repeat),
                    "confirm": spec.confirm.model_copy(update={"repeats": 1}),
                }
            ),
            arms=[arm.of_repeat(repeat) for arm in result.arms],
        )
        for repeat in range(spec.confirm.repeats)
    ]
