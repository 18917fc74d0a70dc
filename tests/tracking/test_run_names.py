"""Names of runs, as people write them; small seeds beside those of training."""

from pathlib import Path

import pytest

from ablation.storage.store import find_store
from ablation.tracking.client import open_client
from ablation.tracking.experiment import Tracker
from ablation.tracking.reading import read_run
from ablation.tracking.run_names import SEED_TAG, arm_title, run_title
from ablation.tracking.trial_run import TrialRun
from tests.fake_results import ENVIRONMENT, fake_result


@pytest.mark.parametrize(
    ("arm", "title"),
    [
        ("block3,fine_tune_all", "block3 / fine-tune all"),
        ("feature_extraction,freeze_depth=2", "feature extraction / freeze_depth=2"),
        ("my_own arm", "my_own arm"),
    ],
)
def test_arms(arm: str, title: str) -> None:
    assert arm_title(arm) == title


def test_runs() -> None:
    assert run_title("block3,fine_tune_all", 0, is_confirmation=True) == "block3 / fine-tune all / seed 1"
    assert run_title("block3", 4, is_confirmation=False) == "block3 / trial 5"
    assert run_title("all", 0, is_confirmation=True) == "seed 1"
    assert run_title("block3", 4, is_confirmation=False, repeat=1) == "block3 / repeat 2 / trial 5"


def test_a_run_shows_a_small_seed_and_keeps_its_own(tmp_path: Path) -> None:
    """A run of an older version has its own as the parameter, and keeps it when it is resumed."""
    store = find_store(str(tmp_path / "s"))
    store.prepare()
    client = open_client(store, create=True)
    assert client is not None
    tracker = Tracker(client, store, "fake", "?")
    run = fake_result({"truncate_at": ["block1"]}, {"block1": 0.5}, images=20).arms[0].confirmations[1]
    assert run.spec.seed == 1001

    def start(key: str) -> str:
        started = TrialRun(tracker, key, tmp_path / key, "")
        started.start(run.spec, "nowhere", "cpu", {}, ENVIRONMENT)
        assert started.run_id is not None
        return started.run_id

    new, again = start("new"), start("new")
    assert new == again
    data = client.get_run(new).data
    assert (data.params["seed"], data.tags[SEED_TAG]) == ("2", "1001")
    assert read_run(store, new).params["seed"] == "1001"

    old, _ = tracker.find_or_create("old", "block1 confirmation #1", {"kind": "confirmation"})
    client.log_param(old, "seed", "1001")
    assert start("old") == old
    assert client.get_run(old).data.params["seed"] == read_run(store, old).params["seed"] == "1001"

    bare, _ = tracker.find_or_create("bare", "block1 confirmation #1", {"kind": "confirmation"})  # died at once
    assert start("bare") == bare
    assert read_run(store, bare).params["seed"] == "1001"
