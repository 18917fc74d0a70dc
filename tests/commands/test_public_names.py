"""The names that `import ablation` gives, and what the import costs."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

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
        "Champion", "InputError", "OpenStudy", "StoreAway", "StoreError", "__version__", "load_champion", "load_model",
        "load_results", "open_study",
    }  # fmt: skip
    assert dir(ablation) == sorted(ablation.__all__)
    with pytest.raises(AttributeError, match="module 'ablation' has no attribute 'load_nothing'"):
        ablation.load_nothing  # noqa: B018


def test_the_import_loads_nothing_large() -> None:
    code = f"import ablation, json, sys; print(json.dumps(sorted({LARGE!r} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_names_can_be_used_where_warnings_are_errors() -> None:
    code = "import ablation, warnings; warnings.simplefilter('error'); [getattr(ablation, n) for n in ablation.__all__]"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_type_checker_knows_the_names_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(
        "from pathlib import Path\nimport ablation\n"
        "def ends(study: ablation.OpenStudy, champion: ablation.Champion) -> str:\n"
        "    return study.answer + champion.arm\n"
        "ablation.open_study('a', store=Path('mlruns'))\n"
        "ablation.nonsense\n"
    )
    # Only where the names are defined: to follow all that these import takes half a minute.
    ours = {
        str(sys.modules[getattr(ablation, name).__module__].__file__)
        for name in set(ablation.__all__) - {"__version__"}
    }
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=skip", "--cache-dir", str(tmp_path / "c"),
               "use.py", ablation.__file__, *ours]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    of_use = [line for line in done.stdout.splitlines() if line.startswith("use.py")]
    assert of_use == ['use.py:6: error: Module has no attribute "nonsense"  [attr-defined]'], done.stdout + done.stderr
