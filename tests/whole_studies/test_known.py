"""A study of listed arms and known configurations, from its command to its results."""

from pathlib import Path

import ablation
from tests.studies import Command, arm_study, runs

SETTINGS = (
    "--store", "s", "--set", "epochs=1", "--set", "factors={}", "--set", "confirm.seeds=1",
    "--set", "arms=[{name='plain',truncate_at='block1'},{truncate_at='conv2_1',strategy='fine_tune_all'}]",
    "--set", "known=[{name='published',lr=0.02,head_width=16,backbone_lr_scale=0.5}]",
)  # fmt: skip


def test_known_configurations_are_marked_in_both_stores(command: Command, study_file: Path) -> None:
    assert command(study_file, *SETTINGS, "--trials", "1") == 0
    assert command(study_file, *SETTINGS, "--trials", "2") == 0  # a larger budget adds drawn trials
    trials = {(run.data.tags["arm"], run.data.tags["trial"]): run.data.params for run in runs(Path("s"), "small")}
    arms = ["plain", "conv2_1,fine_tune_all"]
    assert sorted(trials) == sorted((arm, number) for arm in arms for number in ("0", "1"))
    for arm in arms:
        known, drawn = trials[arm, "0"], trials[arm, "1"]
        assert (known["known"], known["lr"], known["head_width"]) == ("published", "0.02", "16")
        assert "known" not in drawn
        assert drawn["lr"] != "0.02"
    assert (trials["plain", "0"]["backbone_lr_scale"], trials[arms[1], "0"]["backbone_lr_scale"]) == ("null", "0.5")
    assert [trial.params["lr"] == 0.02 for trial in arm_study(Path("s"), "small/plain").trials] == [True, False]

    table = ablation.load_results("small", store="s")
    of_trials = table[table.kind == "trial"]
    assert of_trials.known.fillna("").tolist() == ["published", ""] * 2
    first_confirmed = table[(table.kind == "confirmation") & ~table.is_superseded]
    best = dict(zip(of_trials[of_trials.is_best].arm, of_trials[of_trials.is_best].known.fillna(""), strict=True))
    assert dict(zip(first_confirmed.arm, first_confirmed.known.fillna(""), strict=True)) == best
    report = Path("s/reports/small/report.md").read_text()
    assert "| plain | published |" in report
    assert "Marginal means" not in report
