"""Strategies are known in one place: a new one needs an entry there, and no other module asks for a name."""

import ast
from pathlib import Path
from typing import get_args

import pytest

import ablation
from ablation.spec.parameters import STRATEGIES, Strategy, StrategyName, applies


def test_every_strategy_is_described() -> None:
    assert tuple(STRATEGIES) == get_args(StrategyName)


def test_no_module_compares_the_names_of_strategies() -> None:
    package = Path(ablation.__file__).parent
    comparisons = []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            compared = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            compared += [case.pattern for case in node.cases] if isinstance(node, ast.Match) else []
            constants = {
                inner.value for part in compared for inner in ast.walk(part) if isinstance(inner, ast.Constant)
            }
            if constants & STRATEGIES.keys():
                comparisons.append(f"{path.relative_to(package)}:{node.lineno}")
    # The benchmark's own choice: a network of one block has no top to fine-tune.
    assert [place for place in comparisons if not place.startswith("benchmark/measures.py")] == []


@pytest.mark.parametrize(
    ("strategy", "freeze_depth", "expected"),
    [
        ("feature_extraction", None, set()),
        ("fine_tune_top", None, {"freeze_depth", "backbone_lr_scale", "head_warmup_epochs"}),
        ("fine_tune_top", 1, {"freeze_depth", "backbone_lr_scale", "head_warmup_epochs"}),
        ("fine_tune_top", 2, {"freeze_depth"}),  # all kept blocks are frozen
        ("fine_tune_all", None, {"backbone_lr_scale", "head_warmup_epochs"}),
        ("from_scratch", None, set()),
    ],
)
def test_parameters_with_an_effect(strategy: StrategyName, freeze_depth: int | None, expected: set[str]) -> None:
    parameters = ("freeze_depth", "backbone_lr_scale", "head_warmup_epochs")
    assert {name for name in parameters if applies(name, strategy, freeze_depth, 2)} == expected
    assert applies("lr", strategy, freeze_depth, 2)


def test_a_new_strategy_needs_no_other_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """What applies to it follows from its description."""
    monkeypatch.setitem(STRATEGIES, "random_features", Strategy(starts_pretrained=False, freezes="all"))
    assert not applies("backbone_lr_scale", "random_features", None, 2)  # type: ignore[arg-type]
    assert STRATEGIES["random_features"].frozen_blocks(3, None) == 3  # type: ignore[index]
