"""`python -m ablation.study`: what it answers at once."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--help"], 0),
        (["--list"], 0),
        (["vgg_trunkation"], 2),
        (["vgg_truncation", "--set", "search.lr.low=-1"], 2),
        (["vgg_truncation", "--set", "data.source=imagefolder", "--set", "data.root=/nonexistent"], 2),
        (["vgg_truncation", "--set", "backbone.weights=/nonexistent.safetensors"], 2),
        (["vgg_truncation", "--device", "gpu"], 2),
        (["vgg_truncation", "--store", "/dev/null"], 2),
        (["vgg_truncation", "--nonsense"], 2),
    ],
)
def test_quick_answers_import_nothing_large(arguments: list[str], status: int, tmp_path: Path) -> None:
    code = (
        "import sys; from ablation import study; sys.argv = ['study', *sys.argv[1:]]; status = study.main();"
        "print(sorted({'torch', 'mlflow', 'optuna', 'sklearn'} & set(sys.modules)), status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"[] {status}"
    assert len(done.stderr.splitlines()) == (1 if status == 2 else 0)
    assert list(tmp_path.iterdir()) == []  # nothing was written
