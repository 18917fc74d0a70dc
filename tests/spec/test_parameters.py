"""Strategies are known in one place: a new one needs an entry there, and no other module asks for a name. Ranges."""

import ast
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

import ablation
from ablation.spec.parameters import STRATEGIES, Range, StrategyName


def test_every_strategy_is_described() -> None:
    assert tuple(STRATEGIES) == get_args(StrategyName)


def test_a_range_with_more_steps_than_a_number_can_count_is_refused() -> None:
    """Decimal numbers, in which steps are counted, have 28 digits."""
    with pytest.raises(ValidationError, match="step is too small for the range"):
        Range[float](low=0.0, high=1.0, step=1e-29)
    assert Range[float](low=0.0, high=1.0, step=1e-9).count == 1e9 + 1


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
