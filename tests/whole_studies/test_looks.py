"""Studies that are looked at several times: planned looks, looks without a plan, and what is declared before."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from ablation.running import looks, study
from ablation.running.session import Session
from tests.outcomes import outcome
from tests.studies import Command, arm_study, runs

THREE = (
    "--set", "factors={lr=[1e-6, 0.03, 0.06]}", "--set", "search={}", "--set", "fixed.truncate_at=block1",
    "--trials", "1", "--set", "epochs=2",
)  # fmt: skip
PLANNED = ("--set", "confirm.seeds=5", "--set", "confirm.looks=[3, 4, 5]")


def seeds(store: str) -> dict[str, int]:
    """Return arm -> number of its confirmation runs."""
    arms = [run.data.tags["arm"] for run in runs(Path(store), "small", "confirmation")]
    return {arm: arms.count(arm) for arm in dict.fromkeys(arms)}


def all_of(store: str) -> object:
    root = Path(store).absolute()
    return outcome(f"sqlite:///{root}/mlflow.db", f"sqlite:///{root}/optuna.db")


def tags(store: str) -> dict[str, str]:
    (summary,) = runs(Path(store), "small", "summary")
    return {name: value for name, value in summary.data.tags.items() if name.startswith("ablation.")}


def test_beaten_arms_stop_and_kills_between_looks_change_nothing(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (study_file, *THREE, *PLANNED)
    assert command(*arguments, "--store", "whole") == 0
    assert "Look at 3 seeds: no further seeds for lr=1e-06." in capsys.readouterr().out
    assert seeds("whole") == {"lr=1e-06": 3, "lr=0.03": 5, "lr=0.06": 5}
    assert command(study_file, "--status", "--store", "whole") == 0
    status = capsys.readouterr().out
    assert "16 of 16 runs ended (1 trial and up to 5 confirmation runs per arm)" in status
    assert "Look at 3 seeds: no further seeds for lr=1e-06." in status
    page = Path("whole/reports/small/report.md").read_text()
    assert "Planned look 3 of 3, at 5 seeds: tested at" in page
    assert "next look" not in status + page
    assert "What is missing" not in page

    real, stops = looks.decide, ["before", "between", "no"]

    def killed(*arguments: object) -> object:
        if stops[0] == "before":
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    def killed_store(*arguments: object) -> None:
        if stops[0] == "between":  # MLflow has the decision, Optuna's database has not
            raise KeyboardInterrupt
        real_store(*arguments)  # type: ignore[arg-type]

    real_store = looks.store_decisions
    monkeypatch.setattr(looks, "decide", killed)
    monkeypatch.setattr(looks, "store_decisions", killed_store)
    for status_code in (130, 130, 0):
        assert command(*arguments, "--store", "broken") == status_code
        if stops[0] == "before":  # the runs of the look have ended, and nobody has decided
            assert seeds("broken") == {"lr=1e-06": 3, "lr=0.03": 3, "lr=0.06": 3}
            assert "looks" not in arm_study(Path("broken"), "small/lr=1e-06").user_attrs
        stops.pop(0)
    assert all_of("broken") == all_of("whole")
    decided = {name: value for name, value in tags("whole").items() if "decided" in name}
    assert {name: value for name, value in tags("broken").items() if "decided" in name} == decided
    assert json.loads(decided["ablation.decided.3"]) == {"seeds": 3, "stopped": ["lr=1e-06"], "sure": False}

    changed = (study_file, *THREE, "--store", "whole")
    assert command(*changed, "--set", "confirm.seeds=6", "--set", "confirm.looks=[3, 4, 6]") == 2
    assert "confirm.looks (was [3, 4, 5], is [3, 4, 6]: it is declared before" in capsys.readouterr().err
    assert command(*changed, *PLANNED, "--trials", "2") == 2
    assert "trials_per_arm (was 1, is 2: it is declared before" in capsys.readouterr().err


def test_a_sure_answer_ends_the_study(command: Command, study_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = (*THREE, "--set", "factors={lr=[1e-6, 0.06]}")
    assert command(study_file, *two, *PLANNED, "--store", "sure") == 0
    assert seeds("sure") == {"lr=1e-06": 3, "lr=0.06": 3}
    assert "the study ended here, because the answer is sure" in capsys.readouterr().out
    assert command(study_file, *two, *PLANNED, "--store", "sure") == 0  # and it does not begin again
    assert seeds("sure") == {"lr=1e-06": 3, "lr=0.06": 3}


@pytest.mark.slow
def test_two_workers_decide_alike(command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the two workers; the bits depend on the number of threads
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for store, workers in (("one", "1"), ("two", "2")):
        assert command(study_file, *THREE, *PLANNED, "--store", store, "--workers", workers) == 0
    torch.set_num_threads(threads)
    assert all_of("one") == all_of("two")
    assert {name: value for name, value in tags("one").items() if "decided" in name} == {
        name: value for name, value in tags("two").items() if "decided" in name
    }


def test_looks_without_a_plan_are_paid_for(
    command: Command, study_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (study_file, *THREE, "--store", "free", "--set")
    assert command(*arguments, "confirm.seeds=2") == 0
    assert [name for name in tags("free") if "look" in name] == []  # nothing is tested: no look
    assert command(*arguments, "confirm.seeds=3") == 0
    first = Path("free/reports/small/report.md").read_text()
    capsys.readouterr()
    assert command(*arguments, "confirm.seeds=3") == 0
    assert "look at this study" not in capsys.readouterr().out
    assert Path("free/reports/small/report.md").read_text() == first
    assert command(*arguments, "confirm.seeds=4") == 0
    assert "Second look at this study: tested at 1.25 %." in capsys.readouterr().out
    second = Path("free/reports/small/report.md").read_text()
    assert "Looks at this study" in second
    assert len([name for name in tags("free") if "look" in name]) == 2
    assert command(*arguments, "confirm.control={lr=0.03}") == 2
    assert "confirm.control.lr (was not set, is 0.03: it is declared before the first" in capsys.readouterr().err


def test_a_registered_study_is_sealed_before_its_first_trial(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = (study_file, *THREE, "--set", "factors={lr=[0.03, 0.06]}", "--set", "confirm.seeds=1")
    registering = (*arguments, "--set", "preregister=true", "--store", "sealed")

    def stopped(session: Session) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # the study is stopped before its first trial
        patch.setattr(study, "work_until_done", stopped)
        assert command(*registering) == 130
    sealed = json.loads(tags("sealed")["ablation.registration"])
    assert f"Registered before the first trial: sha256 {sealed['sha256']}" in capsys.readouterr().out
    (file,) = Path("sealed").rglob("registration.json")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == sealed["sha256"]
    assert json.loads(file.read_text())["tests"]["seeds"] == 1

    assert command(*registering) == 0
    assert json.loads(tags("sealed")["ablation.registration"]) == sealed  # sealed once
    assert f"As registered on {sealed['time'][:10]} (sha256 {sealed['sha256'][:12]}...)." in capsys.readouterr().out
    assert command(*registering, "--set", "confirm.seeds=2") == 0
    assert "differs in tests.seeds (registered 1, now 2)." in capsys.readouterr().out
    file.write_text("{}")
    assert command(*registering, "--set", "confirm.seeds=2") == 0
    assert "is not the one that was sealed" in capsys.readouterr().out

    assert command(*arguments, "--store", "plain") == 0
    assert command(*arguments, "--set", "preregister=true", "--store", "plain") == 2
    error = capsys.readouterr().err
    assert "error: preregister: study 'small' has trials already" in error
    assert "ablation.registration" not in tags("plain")
