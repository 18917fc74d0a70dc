"""The plan of the house, checked: folders, import direction, sizes, names. `python -m tests.house` prints it."""

from collections.abc import Callable

import pytest

from tests import house


@pytest.mark.parametrize("rule", house.RULES, ids=lambda rule: rule.__name__)
def test_rule(rule: Callable[[], list[str]]) -> None:
    assert rule() == []


def test_each_rule_can_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: house.Path) -> None:
    """A package that breaks every rule of imports, parameters, sizes and docstrings."""
    (tmp_path / "spec").mkdir()
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "text.py").write_text("from ablation.spec.study import A\nimport optuna\n")
    (tmp_path / "spec" / "study.py").write_text(
        "from ablation.spec.trial import B\ndef wide(a, b, c, d, e, f, g):\n    import os\n" + "\n" * 500
    )
    (tmp_path / "spec" / "trial.py").write_text("from ablation.spec.study import wide\n")
    (tmp_path / "tools.py").write_text("def cli(): pass\n")
    monkeypatch.setattr(house, "PACKAGE", tmp_path)
    broken = {rule.__name__: rule() for rule in house.RULES}
    assert any("base/text.py imports ablation.spec" in line for line in broken["imports_point_down"])
    assert any("base/text.py imports optuna" in line for line in broken["libraries_stay_in_their_folders"])
    assert broken["no_circles"]
    assert broken["no_imports_in_functions"] == ["spec/study.py:3 imports inside wide()"]
    assert broken["at_most_six_parameters"] == ["spec/study.py: wide() takes 7 parameters"]
    assert broken["files_are_short"] == ["spec/study.py has 503 lines, more than 500"]
    assert "spec/study.py: wide() has no docstring" in broken["public_functions_have_docstrings"]
    assert any("tools.py" in line for line in broken["top_level_files_are_commands"])
