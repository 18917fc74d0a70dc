import pytest
import torch

from ablation.base.errors import InputError
from ablation.training.compiler import check_compiler


def test_a_compiler_that_does_not_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no compiler found\nlong advice")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(InputError, match=r"compile: torch.compile does not work here \(no compiler found\)"):
        check_compiler("default", torch.device("cpu"))
