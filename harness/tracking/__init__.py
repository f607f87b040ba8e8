"""Tracking of runs in MLflow; the only package that imports it."""

from __future__ import annotations

import logging
import os

__all__ = ["ENVIRONMENT"]

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's default of seven retries would delay the end of a run by four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    # A server that accepts connections and says nothing would hold up the end of a run; the default is two minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    # PostgreSQL's client would wait for the system's limit of two minutes.
    "PGCONNECT_TIMEOUT": "10",
    # Otherwise every step of creating a database is printed.
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}
"""Environment variables for MLflow in our processes; variables that the user has set take precedence."""

# Set on import of this package, before the tracker's thread starts, because all threads share the
# environment and the log levels.
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
for _name in ("alembic", "mlflow"):
    logging.getLogger(_name).setLevel(logging.ERROR)
# The tracker reports errors of the database in one sentence; MLflow would print their traceback.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
