"""All of MLflow: an experiment per study, a flat run per trial, a summary run with the report, a registered champion.

MLflow reads its environment variables when it is imported, so they are set here, before any file of this folder can
import it.
"""

import logging
import os

# Otherwise it sends usage statistics on its user's behalf.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A tracking server that does not answer is given up after 10 seconds; MLflow's own limits add up to many minutes. What
# it did not take is kept, so nothing is gained by trying again at once.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines for every run that ends

logging.getLogger("mlflow").setLevel(logging.WARNING)  # else it announces every table of a new database
logging.getLogger("alembic").setLevel(logging.WARNING)
# Else a GPU that does not tell everything, such as its power, is announced with every sample.
logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # else a lost database prints pages of SQL
