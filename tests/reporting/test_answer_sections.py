"""The sections on the answer: what stands in them where there is little to compare."""

from ablation.analysis.answer import analyse
from ablation.reporting.answer_sections import interaction_blocks
from ablation.reporting.content import Items
from tests.fake_results import FOUR, TWO_BY_TWO, fake_result

FOUR_CUTS = TWO_BY_TWO | {"truncate_at": ["block1", "block2", "block3", "block5"]}
EIGHT = {f"{cut},{strategy}": 0.8 for cut in FOUR_CUTS["truncate_at"] for strategy in FOUR_CUTS["strategy"]}


def test_before_anything_is_confirmed_no_interaction_is_left_out() -> None:
    analysis = analyse(fake_result(TWO_BY_TWO, FOUR, seeds=0))
    assert analysis.compared.interaction_missing
    assert interaction_blocks(analysis, {}) == []


def test_interactions_that_are_not_tested_are_no_table() -> None:
    """One of a 2 x 2 grid, and the six pairs of four cuts, each with the two strategies."""
    blocks = interaction_blocks(analyse(fake_result(TWO_BY_TWO, FOUR, seeds=1)), {})
    lacking = "with feature_extraction and fine_tune_all: an arm lacks 3 seeds"
    assert blocks == [Items([f"Left out: block3 and block5 {lacking}."])]
    blocks = interaction_blocks(analyse(fake_result(FOUR_CUTS, EIGHT, seeds=1, images=50)), {})
    assert blocks == [Items([f"Left out: block1 and block2 {lacking}; likewise 5 other interactions."])]
