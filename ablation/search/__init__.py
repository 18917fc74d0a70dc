"""All of Optuna: search spaces and samplers, a study per arm, trials claimed and ended.

Optuna's verbosity is set here, before any file of this folder uses it.
"""

import warnings

import optuna

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
