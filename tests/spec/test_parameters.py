"""Strategies are known in one place: a new one needs an entry there, and no other module asks for a name."""

import ast
from pathlib import Path
from typing import get_args

import ablation
from ablation.spec.parameters import STRATEGIES, StrategyName


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
