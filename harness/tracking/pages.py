"""Addresses of the pages of MLflow's web interface that show what was run.

MLflow opens an experiment on an overview of language-model traces, without any
run. The addresses here lead to the table of runs in its machine-learning view,
with the columns that rank them, and to the comparison of the latest run.
"""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.core.types import JSON
from harness.tracking.client import open_client

__all__ = [
    "LATEST",
    "LATEST_TIME",
    "RUN",
    "VIEW",
    "SavedView",
    "TaskPages",
    "compare_page",
    "compared",
    "pages_of",
    "runs_page",
]

LATEST, LATEST_TIME = "harness.latest", "harness.latest_time"
"""Tags of an experiment: identity of its latest run, and when it began (ms)."""

RUN = "harness.run"
"""Tag of a configuration's MLflow run: identity of the latest harness run that it was part of."""

_KEY = "harness"
VIEW = f"mlflow.sharedViewState.{_KEY}"
"""Tag of an experiment by which MLflow finds a saved view of the table of runs."""

_MOST_COMPARED = 100  # runs in one address; MLflow's table of runs holds as many
_QUERY = "workflowType=machine_learning"


@dataclass(frozen=True)
class SavedView:
    """The table of runs as it is first seen.

    Parameters
    ----------
    name : as MLflow's menu of views shows it
    metrics, params, tags : columns; tags come first, then metrics, each in the order given
    order_by : the metric by which rows are sorted; empty sorts by time, the newest first
    ascending : the lowest value first
    """

    name: str
    metrics: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    order_by: str = ""
    ascending: bool = False

    def to_tag(self, made: int) -> str:
        """Value of the experiment's tag :data:`VIEW`.

        Parameters
        ----------
        made : time in ms
        """
        columns = [f"{kind}.`{name}`" for kind in ("tags", "metrics", "params") for name in getattr(self, kind)]
        columns += ["attributes.`Dataset`", "attributes.`Source`"]
        state: dict[str, JSON] = {
            "selectedColumns": columns,
            "columnOrder": columns,
            "orderByKey": f"metrics.`{self.order_by}`" if self.order_by else "attributes.start_time",
            "orderByAsc": self.ascending,
        }
        return json.dumps({"name": self.name, "createdAt": made, "updatedAt": made, "state": json.dumps(state)})


@dataclass(frozen=True)
class TaskPages:
    """Where the runs of one task are seen; addresses begin with ``#`` and follow that of the server.

    Parameters
    ----------
    task : name of the experiment
    runs : the table of all configurations
    compare : the configurations of the latest run side by side, of very many the
        first hundred; empty if there is only one
    configurations : number of configurations in the latest run
    """

    task: str
    runs: str
    compare: str
    configurations: int


def runs_page(experiment: str, *, parent: str = "") -> str:
    """The table of an experiment's runs, as saved in :data:`VIEW`.

    Parameters
    ----------
    experiment : its id
    parent : list only the runs below this one, in MLflow's default columns
    """
    shown = f"viewStateShareKey={_KEY}"
    if parent:  # MLflow ignores a saved view beside a filter
        shown = f"searchFilter={_quoted(f'tags.`mlflow.parentRunId` = {parent!r}')}"
    return f"#/experiments/{_quoted(experiment)}/runs?{_QUERY}&{shown}"


def compare_page(experiment: str, runs: Sequence[str]) -> str:
    """The page that shows runs side by side; empty for fewer than two, of very many the first.

    Parameters
    ----------
    experiment : its id
    runs : their ids
    """
    if len(runs) < 2:
        return ""
    named = _quoted(json.dumps(list(runs[:_MOST_COMPARED]), separators=(",", ":")))
    return f"#/compare-runs?runs={named}&experiments={_quoted(json.dumps([experiment]))}&{_QUERY}"


def compared(count: int) -> str:
    """How many runs a comparison holds: ``8 configurations``, or ``100 of 120 configurations``."""
    return f"{count} configurations" if count <= _MOST_COMPARED else f"{_MOST_COMPARED} of {count} configurations"


def pages_of(uri: str) -> list[TaskPages]:
    """The pages of every task that was run, the latest first.

    Parameters
    ----------
    uri : of the tracking server or database
    """
    client = open_client(uri)
    tagged = [one for one in client.search_experiments() if LATEST in one.tags]
    tagged.sort(key=lambda one: (int(one.tags.get(LATEST_TIME, 0)), one.name), reverse=True)
    return [_pages(client, one.experiment_id, one.name, one.tags) for one in tagged]


def _pages(client: Any, experiment: str, name: str, tags: Mapping[str, str]) -> TaskPages:
    found = client.search_runs([experiment], f"tags.`{RUN}` = '{tags[LATEST]}'")
    runs = [run.info.run_id for run in found]
    return TaskPages(name, runs_page(experiment), compare_page(experiment, runs), len(runs))


def _quoted(text: str) -> str:
    return urllib.parse.quote(text, safe="")
