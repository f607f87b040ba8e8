"""Addresses of the pages of MLflow's web interface that show the runs.

By default, MLflow opens an experiment with an overview of language-model traces, which
shows no runs. The addresses here lead to the table of runs in its machine-learning
view, with the metrics that rank them as columns, and to the comparison of the latest run.
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
"""Tags of an experiment: identity of its latest run, and its start time in ms."""

RUN = "harness.run"
"""Tag of a configuration's MLflow run: identity of the latest harness run that includes it."""

_KEY = "harness"
VIEW = f"mlflow.sharedViewState.{_KEY}"
"""Tag of an experiment with a saved view of the table of runs."""

_MOST_COMPARED = 100  # runs in one address; also the page size of MLflow's table of runs
_QUERY = "workflowType=machine_learning"


@dataclass(frozen=True)
class SavedView:
    """Saved view of the table of runs, which MLflow shows first.

    Parameters
    ----------
    name : name in MLflow's menu of views
    metrics, params, tags : columns, in the order tags, metrics, params
    order_by : metric by which rows are sorted; empty to sort by time, newest first
    ascending : whether the lowest value comes first
    """

    name: str
    metrics: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    order_by: str = ""
    ascending: bool = False

    def to_tag(self, made: int) -> str:
        """Value of the experiment tag :data:`VIEW`.

        Parameters
        ----------
        made : creation time in ms
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
    """Addresses of the pages of one task; they start with ``#`` and are appended to the server's address.

    Parameters
    ----------
    task : name of the experiment
    runs : table of all configurations
    compare : comparison of the configurations of the latest run, at most the first
        hundred; empty if there is only one
    configurations : number of configurations in the latest run
    """

    task: str
    runs: str
    compare: str
    configurations: int


def runs_page(experiment: str, *, parent: str = "") -> str:
    """Address of an experiment's table of runs, with the view saved in :data:`VIEW`.

    Parameters
    ----------
    experiment : id of the experiment
    parent : id of a run whose child runs are listed, with MLflow's default columns;
        empty for all runs
    """
    shown = f"viewStateShareKey={_KEY}"
    if parent:  # MLflow ignores a saved view if there is a filter
        shown = f"searchFilter={_quoted(f'tags.`mlflow.parentRunId` = {parent!r}')}"
    return f"#/experiments/{_quoted(experiment)}/runs?{_QUERY}&{shown}"


def compare_page(experiment: str, runs: Sequence[str]) -> str:
    """Address of the page that compares runs; empty for fewer than two.

    Parameters
    ----------
    experiment : id of the experiment
    runs : ids of the runs, of which at most the first hundred are compared
    """
    if len(runs) < 2:
        return ""
    named = _quoted(json.dumps(list(runs[:_MOST_COMPARED]), separators=(",", ":")))
    return f"#/compare-runs?runs={named}&experiments={_quoted(json.dumps([experiment]))}&{_QUERY}"


def compared(count: int) -> str:
    """Number of runs in a comparison as text: ``8 configurations``, or ``100 of 120 configurations``."""
    return f"{count} configurations" if count <= _MOST_COMPARED else f"{_MOST_COMPARED} of {count} configurations"


def pages_of(uri: str) -> list[TaskPages]:
    """Pages of all tasks that were run, the latest first.

    Parameters
    ----------
    uri : URI of the tracking server or database
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
