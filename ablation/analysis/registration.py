"""What a registration seals, and what differs from it."""

import json
from typing import Any

from ablation.analysis.looks import past_looks
from ablation.analysis.results import StudyResult
from ablation.analysis.statistics import ALPHA
from ablation.base.text import plural
from ablation.search.identity import differences
from ablation.spec.arms import arms
from ablation.spec.study import StudySpec

SHOWN_DIGITS = 12  # of a digest in a sentence


def registration_content(
    spec: StudySpec, data_digest: str, weights_digest: str | None, code: dict[str, str]
) -> dict[str, Any]:
    """Return what a registration seals: question, arms, tests, settings, and the digests of data, weights and code.

    Args:
        spec: the study. A custom backbone's name contains the digest of its code.
        data_digest: of the images.
        weights_digest: of the pretrained weights; None without any.
        code: `version` of ablation, and `digest` of its source.
    """
    content = spec.content()
    confirm = spec.confirm
    own_place = ("question", "trials_per_arm", "confirm", "objective", "data", "backbone", "preregister", "published")
    return {
        "study": spec.name,
        "question": spec.question,
        "arms": [arm.name for arm in arms(spec)],
        "tests": {
            "objective": spec.objective,
            "compare": confirm.compare,
            "control": confirm.control,
            "equivalence": confirm.equivalence,
            "seeds": confirm.seeds,
            "repeats": confirm.repeats,
            "looks": confirm.looks,
            "trials_per_arm": spec.trials_per_arm,
            "level": ALPHA,
        },
        "data": {**content["data"], "digest": data_digest},
        "backbone": {**content["backbone"], "weights_digest": weights_digest},
        "code": code,
        "settings": {name: value for name, value in content.items() if name not in own_place},
    }


def registration_changes(result: StudyResult) -> list[str]:
    """Return what differs from what was registered, item by item; none for a study that is as registered."""
    registration = result.registration
    if registration is None:
        return ["the registration is lost"]
    if registration.content is None:
        return ["the sealed file is lost, or is not the one that was sealed"]
    sealed = registration.content
    code = sealed.get("code", {})
    present = json.loads(json.dumps(registration_content(result.spec, result.data_digest, result.weights_digest, code)))
    changes = [
        f"{field} (registered {_shown(old)}, now {_shown(new)})" for field, old, new in differences(sealed, present)
    ]
    others = {digest: version for digest, version in registration.code.items() if digest != code.get("digest")}
    changes += [
        f"code (registered ablation {code.get('version')} with source {str(code.get('digest'))[:SHOWN_DIGITS]}, also "
        f"used {version} with source {digest[:SHOWN_DIGITS]})"
        for digest, version in sorted(others.items())
    ]
    looks = len(past_looks(result.tags))
    if not result.spec.confirm.looks and looks > 1:
        changes.append(f"looks (registered one, made {looks})")
    if deleted := sum(len(arm.deleted) for arm in result.arms):
        changes.append(f"runs ({plural(deleted, 'run')} deleted in MLflow)")
    return changes


def _shown(value: Any) -> str:
    return "none" if value in (None, [], {}) else json.dumps(value, ensure_ascii=False)


def registration_sentences(result: StudyResult) -> list[str]:
    """Return whether the study is as registered, as a sentence; none for a study that is not registered."""
    if not result.spec.preregister:
        return []
    changes, registration = registration_changes(result), result.registration
    if registration is None:
        return ["This study was to be registered, but its registration is lost."]
    when = f"on {registration.time:%Y-%m-%d} (sha256 {registration.digest[:SHOWN_DIGITS]}...)"
    return [f"As registered {when}." if not changes else f"Registered {when}, and differs in {'; '.join(changes)}."]
