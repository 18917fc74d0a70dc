"""The commands that a report prints: none that would be refused, and each with the store of the study."""

import ast
import dataclasses
import shlex

import pytest

from ablation.analysis.answer import analyse
from ablation.analysis.results import StudyResult
from ablation.reporting.answer_sections import champion_blocks
from ablation.reporting.content import Code, Paragraph, study_command
from ablation.reporting.exports import paper_block
from ablation.tracking.client import REFUSAL_TAG
from tests.fake_results import fake_result


@pytest.fixture(scope="module")
def result() -> StudyResult:
    return fake_result({"truncate_at": ["block1", "block2"]}, {"block1": 0.6, "block2": 0.8}, name="cuts")


def codes_and_texts(result: StudyResult) -> tuple[list[str], list[str]]:
    blocks = champion_blocks(analyse(result))
    codes = [block.text for block in blocks if isinstance(block, Code)]
    return codes, [block.text for block in blocks if isinstance(block, Paragraph)]


@pytest.mark.parametrize(
    ("store", "predict", "load"),
    [
        ("", "python -m ablation.predict cuts IMAGE...", 'ablation.load_champion("cuts")'),
        (
            "/some dir/it's \u00fc",
            "python -m ablation.predict cuts --store '/some dir/it'\"'\"'s \u00fc' IMAGE...",
            'ablation.load_champion("cuts", store="/some dir/it\'s \u00fc")',
        ),
        (
            '/a"b',
            "python -m ablation.predict cuts --store '/a\"b' IMAGE...",
            r'ablation.load_champion("cuts", store="/a\"b")',
        ),
    ],
)
def test_commands_find_the_store_of_the_study(result: StudyResult, store: str, predict: str, load: str) -> None:
    in_store = dataclasses.replace(result, store=store)
    codes, (what, _) = codes_and_texts(in_store)
    assert codes == [predict, load]
    assert " is the champion: " in what
    call = ast.parse(load, mode="eval").body
    assert isinstance(call, ast.Call)
    assert {word.arg: ast.literal_eval(word.value) for word in call.keywords} == ({"store": store} if store else {})
    (note,) = paper_block(analyse(in_store)).table.notes
    named = f" --store {shlex.quote(store)}" if store else ""
    assert note.startswith(f"python -m ablation.report cuts{named} --format latex prints it")
    assert study_command(in_store, "ablation.data", "suspects") == f"python -m ablation.data suspects cuts{named}"


def test_pooled_studies_are_named_one_by_one(result: StudyResult) -> None:
    one, other = (dataclasses.replace(result, spec=result.spec.model_copy(update={"name": name})) for name in "ab")
    pooled = dataclasses.replace(one, studies=[one, other], store="/s")
    assert study_command(pooled, "ablation.report") == "python -m ablation.report a b --store /s"


def test_a_run_that_is_not_registered_has_no_commands(result: StudyResult) -> None:
    codes, (what, why) = codes_and_texts(dataclasses.replace(result, tags={REFUSAL_TAG: "its weights are gone"}))
    assert codes == []
    assert what.startswith("block2, confirmation run #")
    assert " is the best run: its arm has the highest mean validation accuracy" in what
    assert why == "Its model is not registered as the champion: its weights are gone."


def test_a_study_that_is_not_complete_has_no_commands(result: StudyResult) -> None:
    """Nothing is registered before all confirmation runs have ended."""
    arm = dataclasses.replace(result.arms[1], confirmations=result.arms[1].confirmations[:2])
    codes, (what,) = codes_and_texts(dataclasses.replace(result, arms=[result.arms[0], arm]))
    assert codes == []
    assert " leads so far: " in what
