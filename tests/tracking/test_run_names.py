"""Names of runs, as people write them; small seeds beside those of training."""

from pathlib import Path

import pytest

from ablation.spec.arms import Arm, arms
from ablation.storage.store import Store
from ablation.tracking.client import PatientClient
from ablation.tracking.experiment import Tracker
from ablation.tracking.reading import read_run
from ablation.tracking.run_names import SEED_TAG, arm_title, run_title
from ablation.tracking.trial_run import TrialRun
from tests.fake_results import ENVIRONMENT, fake_result, fake_spec

BLOCK3 = {"truncate_at": "block3", "strategy": "fine_tune_all"}


@pytest.mark.parametrize(
    ("arm", "title"),
    [
        (Arm("block3,fine_tune_all", BLOCK3), "block3 / fine-tune all"),
        (Arm("block3,fine_tune_all", BLOCK3, is_listed=True), "block3 / fine-tune all"),  # one of [[arms]], unnamed
        (
            Arm("feature_extraction,freeze_depth=2", {"strategy": "feature_extraction", "freeze_depth": 2}),
            "feature extraction / freeze_depth=2",
        ),
        (Arm("plain, 0=1", {}, is_listed=True), "plain, 0=1"),
        (Arm("lr=0.1, head_width=0", {"head_width": 0, "lr": 0.1}, is_listed=True), "lr=0.1, head_width=0"),
        (Arm("fine_tune_all", {"lr": 0.1}, is_listed=True), "fine_tune_all"),
    ],
)
def test_arms(arm: Arm, title: str) -> None:
    """A name that a study file gives stays as it is."""
    assert arm_title(arm) == title


def test_runs() -> None:
    block3 = Arm("block3", {"truncate_at": "block3"})
    assert run_title(Arm("block3,fine_tune_all", BLOCK3), 0, is_confirmation=True) == "block3 / fine-tune all / seed 1"
    assert run_title(block3, 4, is_confirmation=False) == "block3 / trial 5"
    assert run_title(block3, 4, is_confirmation=False, repeat=1) == "block3 / repeat 2 / trial 5"


def test_the_only_arm_is_left_out_but_none_that_is_called_like_it() -> None:
    (only,) = arms(fake_spec({}))
    assert run_title(only, 0, is_confirmation=True) == "seed 1"
    named, _ = arms(fake_spec({}, arms=[{"name": "all"}, {"name": "flipped", "augmentation": "flip"}]))
    assert run_title(named, 0, is_confirmation=True) == "all / seed 1"


def test_a_run_shows_a_small_seed_and_keeps_its_own(tmp_path: Path, store: Store, tracker: Tracker) -> None:
    """Also one whose process died when it had created it."""
    result = fake_result({"truncate_at": ["block1"]}, {"block1": 0.5}, images=20)
    (arm,) = result.arms
    run = arm.confirmations[1]
    assert run.spec.seed == 1001

    def start() -> str:
        started = TrialRun(tracker, "a/0", tmp_path, "")
        started.start(run.spec, result.spec, arm.arm, "cpu", {}, ENVIRONMENT)
        assert started.run_id is not None
        return started.run_id

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PatientClient, "log_batch", interrupt, raising=False)
        with pytest.raises(KeyboardInterrupt):
            start()
    new, again = start(), start()
    assert new == again
    data = tracker.client.get_run(new).data
    assert (data.params["seed"], data.tags[SEED_TAG]) == ("2", "1001")
    assert read_run(store, new).params["seed"] == "1001"


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt
