"""MLflow; imported here and nowhere else."""

from __future__ import annotations

import logging
import os

__all__ = ["ENVIRONMENT"]

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's own seven attempts keep the end of a run waiting for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    # Else every step of creating a database is printed.
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}
"""How MLflow must behave in our processes, unless the user's environment says otherwise."""

# When this package is imported, before the tracker's thread is started: the environment and the levels
# of loggers belong to all threads.
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
for _name in ("alembic", "mlflow"):
    logging.getLogger(_name).setLevel(logging.ERROR)
