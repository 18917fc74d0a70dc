"""`ablation.load_results`: a study as a pandas table, one row per run."""

import os
from typing import Any

import pandas as pd

from ablation.analysis.results import ArmResult, StudyResult, read_results
from ablation.analysis.runs import RunResult
from ablation.spec.parameters import Hyperparameters, without_none
from ablation.spec.trial import TrialSpec
from ablation.storage.store import find_store
from ablation.tracking import mlflow_settings

# The columns of a run and their types. Those of its hyper-parameters follow in the table; `_dtype` returns their types.
DTYPES = {
    "run_id": "string",
    "arm": "string",
    "kind": "string",
    "number": "int64",
    "repeat": "int64",
    "state": "string",
    "reason": "string",
    "is_best": "bool",
    "is_superseded": "bool",
    "val_accuracy": "float64",
    "best_epoch": "Int64",
    "test_accuracy": "float64",
    "test_balanced_accuracy": "float64",
    "test_macro_f1": "float64",
    "test_loss": "float64",
    "trained_parameters": "Int64",
    "training_seconds": "float64",
    "seed": "int64",
    "known": "string",
}


@mlflow_settings()
def load_results(study: str, *, store: str | os.PathLike[str] | None = None) -> pd.DataFrame:
    """Return the runs of a study, of every arm: the trials that tuned it, then its confirmation runs.

    Confirmation runs of a planned look that is not complete are left out, so that nobody looks early.

    Args:
        study: its name.
        store: its folder; as for `--store`, the environment's addresses or `mlruns` by default.

    Returns:
        A row per run, and the columns:

        - `run_id`: its id in MLflow; string.
        - `arm`: as in the report; string.
        - `kind`: 'trial' or 'confirmation'; string.
        - `number`: from 0, of the arm's runs of this kind; int64.
        - `repeat`: of the arm's tuning, from 0; 0 for all runs of a study without `confirm.repeats`; int64.
        - `state`: 'finished', 'pruned', 'failed' or 'unfinished'; string.
        - `reason`: why it was pruned or failed, otherwise empty; string.
        - `is_best`: whether it is a trial whose configuration confirmation runs of the arm repeat; bool.
        - `is_superseded`: whether it confirms a configuration that is not the arm's best any more; bool.
        - `val_accuracy`: of its best epoch, a fraction; float64. This and the other metrics are missing unless the run
          finished.
        - `val_balanced_accuracy`, `val_macro_f1` or `val_loss`: the same, in a study with that objective alone.
        - `best_epoch`: counted from 1; Int64.
        - `test_accuracy`, `test_balanced_accuracy`, `test_macro_f1`, `test_loss`: of confirmation runs, fractions and
          nats (balanced accuracy and macro F1: the means over classes of recall and of the F1 score); float64.
        - `trained_parameters`: the number of parameters that are trained; Int64.
        - `training_seconds`: of all epochs, without evaluation; float64.
        - `seed`: the seed of all its random numbers; int64.
        - `known`: the name of the known configuration that it has; missing for one that the search drew; string.
        - a column per hyper-parameter, by its name in the study file: string, int64, Int64 or float64. A value that
          does not apply to a run, such as `freeze_depth` to feature extraction, is missing; `head_pool` is '1', '2' or
          'flatten', and `freeze_depth` a number of blocks as a string ('2') or a unit.

    Raises:
        InputError: there is no such study, no trial of it has finished, or this version cannot read it.
        StoreAway: the tracking server does not answer.
        StoreError: MLflow's store cannot be used.
    """
    return runs_table(read_results(find_store(store), study, with_details=False))


def runs_table(result: StudyResult) -> pd.DataFrame:
    """Return the runs of a study, as `load_results` does."""
    dtypes: dict[str, str] = {}
    for name, dtype in DTYPES.items():
        dtypes |= {name: dtype} | ({result.spec.goal.val_metric: "float64"} if name == "val_accuracy" else {})
    dtypes |= {name: _dtype(TrialSpec.model_fields[name].annotation) for name in Hyperparameters.model_fields}
    rows = [[_value(name, arm, run) for name in dtypes] for arm in result.arms for run in arm.runs]
    return pd.DataFrame(rows, columns=list(dtypes)).astype(dtypes)


def _value(column: str, arm: ArmResult, run: RunResult) -> Any:
    """Return a run's value of a column: its own, or of what was trained."""
    if column == "kind":
        return "confirmation" if run.is_confirmation else "trial"
    if column == "is_best":
        return run in arm.chosen
    if column == "is_superseded":
        return run in arm.superseded
    if column in ("head_pool", "freeze_depth"):  # some of their values are numbers, some are names
        value = getattr(run.spec, column)
        return None if value is None else str(value)
    return getattr(run, column) if hasattr(run, column) else getattr(run.spec, column)


def _dtype(annotation: Any) -> str:
    """Return the type of a hyper-parameter's column; where it may not apply, values may be missing."""
    plain = without_none(annotation)
    is_optional = plain is not annotation
    if plain is int:
        return "Int64" if is_optional else "int64"
    return "float64" if plain is float else "string"
