"""Figures of a single configuration: training curves, subjects and agreement."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial

from harness.pipeline.rows import Row, subject_means
from harness.report import plots
from harness.report.figures.agreement import quantities_of
from harness.report.figures.results import Results
from harness.sweep.collect import Tables
from harness.sweep.plan import Plan

__all__ = ["figures_of_one"]

_MOST_METRICS = 4


def figures_of_one(
    plan: Plan, tables: Tables, identity: str, *, anonymous: bool = False
) -> dict[str, Callable[[], bytes]]:
    """Figures of a configuration for its MLflow run.

    Parameters
    ----------
    plan : plan of the run
    tables : tables of the run
    identity : id of the configuration
    anonymous : whether to leave out the names of subjects

    Returns
    -------
    dict
        File name → function that draws the PNG, so that an error in one does not affect
        the others; empty for a configuration without results.
    """
    run = Results(plan, tables)
    found: dict[str, Callable[[], bytes]] = {}
    curves = _histories(run, identity)
    if curves:
        found["training.png"] = partial(plots.training_curves, curves)
    if identity not in run.lines:
        return found
    row = run.rows[identity]
    shown = [name for name in dict.fromkeys((run.objective, *run.task.shown)) if any(row.values.get(name, {}).values())]
    panels = {name: _by_subject(row, name) for name in shown[:_MOST_METRICS]}
    if panels:
        found["subjects.png"] = partial(plots.subject_dots, panels, named=not anonymous)
    for one in quantities_of(run, [identity]):
        name = one.name.replace(" ", "-")
        for kind, plot in (("scatter", plots.truth_scatter), ("bland-altman", plots.bland_altman)):
            found[f"{name}-{kind}.png"] = partial(plot, one.truth, one.prediction, quantity=one.name, unit=one.unit)
    return found


def _histories(run: Results, identity: str) -> dict[str, dict[str, list[float]]]:
    """Values per epoch by quantity and training, for all trainings that recorded them."""
    found: dict[str, dict[str, list[float]]] = {}
    for job in run.plan.jobs:
        record = run.plan.store.get("train", job.train) if job.row == identity else None
        if record is None or "history.json" not in record.artifacts:
            continue
        history = json.loads(run.plan.store.artifact(record, "history.json").read_text("utf-8"))
        names = dict.fromkeys(name for epoch in history for name in epoch if name != "epoch")
        for name in names:
            line = [epoch.get(name) for epoch in history]
            if all(isinstance(value, int | float) for value in line):
                found.setdefault(name, {})[f"fold {job.fold} seed {job.seed}"] = line
    return found


def _by_subject(row: Row, metric: str) -> dict[str, list[float]]:
    """Values per seed by subject, subjects sorted by their means."""
    means = subject_means(row, metric)
    order = sorted((name for name in means if math.isfinite(means[name])), key=lambda name: (means[name], name))
    return {name: list(row.values[metric][name].values()) for name in order}
