"""A study that repeats its tuning: each repeat is a study of its own, and interruptions change nothing."""

from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run

from ablation import load_results
from ablation.base.seeds import repeat_seed
from ablation.running import trial
from tests.studies import ONE_ARM, Command, client, history, patched_train, runs

IMAGES = ("--set", "data={source='digits', classes=['0', '1', '2'], val_fraction=0.25}", "--set", "epochs=2")
REPEATS = ("--trials", "4", "--set", "confirm.repeats=2", "--set", "confirm.seeds=1")


def outcome(store: Path, run: Run) -> dict[str, Any]:
    """Return a run's parameters and curves, without what says to which repeat it belongs."""
    params = {k: v for k, v in run.data.params.items() if k not in ("repeat", "trial", "seed")}
    return {"params": params, "curves": history(store, run), "seed": run.data.tags["ablation.seed"]}


def test_a_repeat_is_a_study_of_its_own_and_goes_on_after_interruptions(
    command: Command, study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trial, "CHECKPOINT_SECONDS", 0)
    whole, broken = Path("whole"), Path("broken")
    arguments = (study_file, *ONE_ARM, *IMAGES)
    assert command(*arguments, *REPEATS, "--store", "whole") == 0
    assert "Still missing" not in capsys.readouterr().out

    # Trials of the repeats take turns, and each has the split, the points and the seeds of a study with its seed.
    tuned = runs(whole, "small")
    assert [run.data.tags["repeat"] for run in tuned] == ["0", "1", "0", "1"]
    for repeat in (0, 1):
        alone = Path(f"alone-{repeat}")
        settings = ("--trials", "2", "--set", f"seed={repeat_seed(0, repeat)}")
        assert command(*arguments, *settings, "--store", str(alone)) == 0
        assert [outcome(whole, run) for run in tuned[repeat::2]] == [
            outcome(alone, run) for run in runs(alone, "small")
        ]
    assert tuned[0].data.params["data_seed"] != tuned[1].data.params["data_seed"]

    confirmed = runs(whole, "small", "confirmation")
    assert [run.data.params["repeat"] for run in confirmed] == ["0", "1"]
    for run, of_repeat in zip(confirmed, (tuned[0::2], tuned[1::2]), strict=True):
        best = max(of_repeat, key=lambda trial: trial.data.metrics["best_val_accuracy"])
        assert run.data.params["confirms"] == best.data.tags["trial"]
        assert run.data.params["data_seed"] == best.data.params["data_seed"]
    assert confirmed[1].info.run_name.endswith("repeat 2 / seed 2")
    table = load_results("small", store="whole")
    assert list(table["repeat"]) == [0, 1, 0, 1, 0, 1]
    assert int(table["is_best"].sum()) == 2
    assert client(whole).get_model_version_by_alias("small", "champion").run_id in {r.info.run_id for r in confirmed}

    def fault(number: int, epoch: int) -> None:
        if (number, epoch) in ((1, 1), (4, 1)):
            raise KeyboardInterrupt

    for status in (130, 130, 0):
        with monkeypatch.context() as patch:
            patched_train(patch, fault if status else lambda number, epoch: None)
            assert command(*arguments, *REPEATS, "--store", "broken") == status
    for kind in ("trial", "confirmation"):
        found, wanted = (
            sorted((run.data.tags["trial"], str(outcome(store, run))) for run in runs(store, "small", kind))
            for store in (broken, whole)
        )
        assert found == wanted

    capsys.readouterr()
    assert command(study_file, "--status", "--store", "whole") == 0
    assert "6 of 6 runs ended (4 trials and 2 confirmation runs per arm, in 2 tunings)" in capsys.readouterr().out
    changed = ("--trials", "4", "--set", "confirm.seeds=1", "--store", "whole")
    assert command(*arguments, *changed) == 2
    assert "confirm.repeats (was 2, is not set)" in capsys.readouterr().err
    assert command(*arguments, *REPEATS, "--set", "confirm.seeds=2", "--store", "whole") == 0
    assert len(runs(whole, "small", "confirmation")) == 4
