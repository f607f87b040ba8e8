"""Parallel execution and hyper-parameter search; the only package that imports Ray, Ray Tune and Optuna."""

from __future__ import annotations

import os

__all__ = ["ENVIRONMENT"]

ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    # Workers keep their working folder, as a run without Ray does.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A failed candidate reports an error and no value, which would otherwise end the run.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}
"""Environment variables for Ray and Tune in our processes; variables that the user has set take precedence."""

# Set on import of this package, before Ray is imported and while there is only one thread: changing
# the environment while another thread reads it is undefined behaviour in C.
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
