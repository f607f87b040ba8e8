"""Many cells: Ray, Tune and Optuna live here and nowhere else."""

from __future__ import annotations

import os

__all__ = ["ENVIRONMENT"]

ENVIRONMENT = {
    "RAY_AIR_NEW_OUTPUT": "0",
    # Workers stay in the folder they were started in, as a run without Ray does.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # A candidate of a search that failed reports its error and no value; Tune would end the run for that.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}
"""How Ray and Tune must behave in our processes, unless the user's environment says otherwise."""

# Once, when this package is imported: Ray is not imported yet, and there is one thread only. The
# environment belongs to all threads, and changing it while another one reads it is undefined in C.
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
