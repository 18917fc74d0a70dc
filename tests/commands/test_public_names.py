"""The names that `import ablation` gives, and what the import costs."""

import inspect
import json
import subprocess
import sys

import pytest

import ablation

LARGE = {"torch", "mlflow", "optuna", "pandas", "numpy", "matplotlib", "sklearn", "scipy", "pydantic", "click", "rich"}


@pytest.mark.parametrize("name", sorted(set(ablation.__all__) - {"__version__"}))
def test_each_public_name_is_importable_and_documented(name: str) -> None:
    public = getattr(ablation, name)
    assert public.__name__ == name
    assert inspect.getdoc(public)


@pytest.mark.parametrize("name", ["load_champion", "load_model", "load_results", "open_study"])
def test_the_functions_say_what_they_take_return_and_raise(name: str) -> None:
    function = getattr(ablation, name)
    text = inspect.getdoc(function) or ""
    assert all(f"\n{section}:\n" in text for section in ("Args", "Returns", "Raises"))
    assert [parameter for parameter in inspect.signature(function).parameters if f"    {parameter}: " not in text] == []
    assert f"`{name}`" in (ablation.__doc__ or "")


def test_all_names_are_listed() -> None:
    assert set(ablation.__all__) == {
        "InputError", "StoreAway", "StoreError", "__version__", "load_champion", "load_model", "load_results",
        "open_study",
    }  # fmt: skip
    with pytest.raises(AttributeError, match="module 'ablation' has no attribute 'load_nothing'"):
        ablation.load_nothing  # noqa: B018


def test_the_import_loads_nothing_large() -> None:
    code = f"import ablation, json, sys; print(json.dumps(sorted({LARGE!r} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
