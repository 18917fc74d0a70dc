import dataclasses
import hashlib
import json
from datetime import UTC, datetime

from ablation.analysis.registration import registration_changes, registration_content, registration_sentences
from ablation.analysis.results import StudyResult
from ablation.base import source
from ablation.base.source import source_digest
from ablation.reporting.registration_section import registration_blocks
from ablation.tracking.registration import Registration, content_digest, registration_bytes
from tests.fake_results import fake_result

CODE = {"version": "0.1.0", "digest": "c" * 64}
CUTS = {"truncate_at": ["block3", "block5"]}
WHEN = datetime(2026, 11, 27, 16, 5, tzinfo=UTC)


def registered(**changes: object) -> StudyResult:
    """Return a study that was registered as it is, with changes made since."""
    before = fake_result(CUTS, {"block3": 0.8, "block5": 0.9}, preregister=True)
    sealed = registration_bytes(registration_content(before.spec, "d" * 64, "w" * 64, CODE))
    registration = Registration(WHEN, content_digest(sealed), json.loads(sealed), {CODE["digest"]: "ablation 0.1.0"})
    spec = before.spec.model_copy(update=changes)
    return dataclasses.replace(before, spec=spec, registration=registration)


def test_a_study_that_is_as_registered_says_so() -> None:
    result = registered()
    assert result.registration is not None
    assert registration_changes(result) == []
    digits = result.registration.digest[:12]
    assert registration_sentences(result) == [f"As registered on 2026-11-27 (sha256 {digits}...)."]
    assert result.registration.content is not None
    sealed = result.registration.content
    assert sealed["question"] == "Which one is better?"
    assert sealed["arms"] == ["block3", "block5"]
    assert sealed["tests"] == {
        "objective": "accuracy", "compare": "all", "control": {}, "equivalence": None, "seeds": 3, "repeats": 1,
        "looks": [], "trials_per_arm": 3, "level": 0.05,
    }  # fmt: skip
    assert (sealed["data"]["digest"], sealed["backbone"]["weights_digest"]) == ("d" * 64, "w" * 64)
    assert sealed["settings"]["search"]["head_width"] == {"choices": [128, 256, 512]}
    assert "Nothing differs" in str(registration_blocks(result))


def test_what_differs_is_listed_item_by_item() -> None:
    plain = registered()
    confirm = plain.spec.confirm.model_copy(update={"seeds": 5, "control": {"truncate_at": "block3"}})
    result = registered(confirm=confirm, epochs=9)
    assert registration_changes(result) == [
        "settings.epochs (registered 4, now 9)",
        'tests.control.truncate_at (registered none, now "block3")',
        "tests.seeds (registered 3, now 5)",
    ]
    (sentence,) = registration_sentences(result)
    assert sentence.startswith("Registered on 2026-11-27 (sha256 ")
    assert "and differs in settings.epochs (registered 4, now 9);" in sentence


def test_other_code_other_data_and_deleted_runs_differ() -> None:
    result = registered()
    assert result.registration is not None
    other = dataclasses.replace(
        result.registration, code={CODE["digest"]: "ablation 0.1.0", "e" * 64: "ablation 0.2.0"}
    )
    arms = [dataclasses.replace(arm, deleted=arm.trials[:1]) for arm in result.arms]
    changed = dataclasses.replace(result, registration=other, data_digest="x" * 64, arms=arms)
    assert registration_changes(changed) == [
        f'data.digest (registered "{"d" * 64}", now "{"x" * 64}")',
        "code (registered ablation 0.1.0 with source cccccccccccc, also used ablation 0.2.0 with source eeeeeeeeeeee)",
        "runs (2 runs deleted in MLflow)",
    ]


def test_a_lost_or_exchanged_registration_is_said() -> None:
    result = registered()
    assert result.registration is not None
    lost = dataclasses.replace(result, registration=None)
    assert registration_sentences(lost) == ["This study was to be registered, but its registration is lost."]
    exchanged = dataclasses.replace(result, registration=dataclasses.replace(result.registration, content=None))
    assert "is not the one that was sealed" in registration_sentences(exchanged)[0]
    plain = fake_result(CUTS, {"block3": 0.8, "block5": 0.9})
    assert registration_sentences(plain) == []
    assert registration_blocks(plain) == []


def test_the_digest_of_the_source_is_that_of_all_its_files() -> None:
    digest = hashlib.sha256()
    for path in sorted(source.PACKAGE.rglob("*.py")):
        file = path.read_bytes()
        digest.update(f"{path.relative_to(source.PACKAGE).as_posix()} {len(file)}\n".encode() + file)
    assert source_digest() == digest.hexdigest()
    assert source.PACKAGE.name == "ablation"
