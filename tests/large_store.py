"""Make a store of 1,000 runs without training, to measure the MLflow UI on it: python -m tests.large_store FOLDER

Prints the seconds from opening each view in a fresh browser until its charts are drawn; needs Chromium and playwright.
"""

import random
import sys
import time
from pathlib import Path

from mlflow.entities import Metric, Param

from ablation.spec.arms import arms
from ablation.storage.store import find_store
from ablation.tracking import configure_mlflow
from ablation.tracking.arm_runs import ArmRun, keep_arm_runs
from ablation.tracking.run_names import run_title
from ablation.tracking.saved_views import keep_views, study_views
from ablation.tracking.summary_run import SummaryRun
from tests.browser import browser_page, mlflow_ui, open_view
from tests.fake_results import fake_spec
from tests.studies import new_tracker

RUNS = {"trial": 90, "confirmation": 9}  # per arm; with the arms' own runs, 1,000
CURVES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_balanced_accuracy", "val_macro_f1", "lr")
SPEC = fake_spec({"truncate_at": ["block1", "block2", "block3", "block4", "block5"],
                  "strategy": ["feature_extraction", "fine_tune_all"]})  # fmt: skip


def make_store(folder: Path) -> None:
    store = find_store(str(folder))
    tracker = new_tracker(store, SPEC.name)
    random.seed(0)
    now = int(time.time() * 1000)
    arm_runs = []
    for place, arm in enumerate(arms(SPEC)):
        for kind, number in ((kind, number) for kind, count in RUNS.items() for number in range(count)):
            title = run_title(arm, number, is_confirmation=kind == "confirmation")
            tags = {"study": SPEC.name, "arm": arm.name, "kind": kind, "trial": str(number)}
            run_id, _ = tracker.find_or_create(f"{arm.name}/{kind}/{number}", title, tags)
            top = 0.6 + 0.03 * place + 0.02 * random.random()
            values = {"best_val_accuracy": top, "training_seconds": 5.0, "trained_parameters": 1000.0 * (place + 1)}
            values |= {"test_accuracy": top} if kind == "confirmation" else {}
            metrics = [Metric(name, top * (1 - 0.5**n), now + n, n) for n in range(1, 11) for name in CURVES]
            metrics += [Metric(name, value, now, 0) for name, value in values.items()]
            chosen = {"arm": arm.name, "lr": random.random(), "head_width": random.choice([128, 256, 512])}
            chosen |= arm.levels
            tracker.client.log_batch(run_id, metrics, [Param(name, str(value)) for name, value in chosen.items()])
            tracker.client.set_terminated(run_id, "FINISHED")
        means = {"test_accuracy": 0.6 + 0.03 * place, "best_val_accuracy": 0.6 + 0.03 * place, "rank": 10.0 - place}
        arm_runs.append(ArmRun(arm, {**means, "training_seconds": 5.0}, "made up", "#0072b2"))
    keep_arm_runs(SummaryRun(tracker, "summary"), arm_runs, [run.arm.name for run in arm_runs])
    keep_views(tracker, study_views(SPEC, has_confirmations=True, has_arm_runs=True))


def main() -> None:
    folder = Path(sys.argv[1])
    if not folder.exists():
        configure_mlflow()
        make_store(folder)
    with mlflow_ui(folder, SPEC.name) as addresses:
        for address in addresses[:-1]:  # the last one opens a table, which is empty here
            with browser_page() as page:
                print(f"{open_view(page, address):5.1f} s  {address.rpartition('=')[2]}")


if __name__ == "__main__":
    main()
