"""Data for the figures: the tables of a run, and the contents of its store."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from harness.core.registry import METRICS
from harness.core.task import Component, Configuration, Task
from harness.core.types import Array, Sample, Score
from harness.data.maps import GroupMap, read_maps
from harness.pipeline.artifacts import read_predictions
from harness.pipeline.cell import Job, restored
from harness.pipeline.contribution import Family, families
from harness.pipeline.leaderboard import is_sound, read_facts
from harness.pipeline.rows import MetricFacts, Row, subject_means
from harness.report.wording import rankings, row_labels
from harness.sweep.collect import Tables
from harness.sweep.plan import Plan

__all__ = ["MARK", "MOST_PANELS", "Results", "note_on_marks", "score_in"]

MARK = "†"
"""Mark after the label of a configuration that is not ranked."""

MOST_PANELS = 8
"""Largest number of configurations that are drawn side by side."""


@dataclass(frozen=True)
class Results:
    """Results of a run, for the figures.

    Parameters
    ----------
    plan : plan of the run
    tables : tables of the run
    """

    plan: Plan
    tables: Tables

    @cached_property
    def shares(self) -> dict[tuple[str, str], GroupMap]:
        """Mask shares by configuration and attribution, as far as they are known: they take seconds each."""
        return {}

    @property
    def task(self) -> Task:
        """The task of the run."""
        return self.plan.request.task

    @property
    def objective(self) -> str:
        """Label of the metric that ranks configurations."""
        return self.task.objective

    @cached_property
    def lines(self) -> dict[str, dict[str, Any]]:
        """Rows of the leaderboard that have a value, by configuration id, in order."""
        lines = {line["configuration"]: line for line in self.tables.prediction.to_pylist()}
        return {key: line for key, line in lines.items() if line[self.objective] is not None}

    @cached_property
    def problems(self) -> dict[str, list[str]]:
        """Ids of the configurations of each problem, in the order of its ranking."""
        found = {
            name: [line["configuration"] for line in lines if line["configuration"] in self.lines]
            for name, lines in rankings(self.tables.prediction).items()
        }
        return {name: keys for name, keys in found.items() if keys}

    @cached_property
    def leaders(self) -> list[str]:
        """Ids of the configurations of the first problem, best first; empty without results."""
        return next(iter(self.problems.values()), [])

    @cached_property
    def labels(self) -> dict[str, str]:
        """Short names by configuration id, marked if the configuration is not ranked."""
        table = self.tables.prediction
        return {
            line["configuration"]: label if is_sound(line) else f"{label}{MARK}"
            for line, label in zip(table.to_pylist(), row_labels(table), strict=True)
        }

    @cached_property
    def rows(self) -> dict[str, Row]:
        """Pooled predictions by configuration id."""
        return {key: pooled.prediction for key, pooled in self.tables.pooled.items()}

    @cached_property
    def configurations(self) -> dict[str, Configuration]:
        """Configurations by id."""
        return {one.id: one for one in self.plan.configurations}

    @cached_property
    def facts(self) -> dict[str, MetricFacts]:
        """Facts of each metric, by label."""
        tables = (self.tables.prediction, self.tables.explanation)
        return {metric.name: metric for table in tables for metric in read_facts(table).metrics}

    @cached_property
    def families(self) -> list[Family]:
        """Groups of configurations that differ only in their channels, if there are several channels."""
        return [family for family in families(self.plan.configurations) if len(family.channels) > 1]

    @cached_property
    def targets(self) -> set[str]:
        """Names of targets with one value per sample, which have their own rows in the tables."""
        return {one.name for group in self.plan.groups.values() for one in group.cohort.targets if one.of_sample}

    @property
    def pooled(self) -> bool:
        """Whether the objective is one value over all subjects."""
        return self.facts[self.objective].level == "pooled"

    def task_of(self, identity: str) -> Task:
        """The task of a configuration."""
        return restored(self.configurations[identity])

    def channels_of(self, identity: str) -> tuple[str, ...]:
        """Names of the images that a configuration reads."""
        return tuple(self.task_of(identity).adapter().reads.images)

    def metrics(self, function: str) -> dict[str, Component]:
        """The task's metrics that use a registered function, by label."""
        return {label: one for label, one in self.task.metrics.items() if METRICS.name_of(one.func) == function}

    def score(self, identity: str, label: str) -> Score:
        """A value of the leaderboard with its interval."""
        return score_in(self.lines[identity], label)

    def values(self, identity: str, metric: str) -> dict[str, float]:
        """Mean over seeds of each subject."""
        return subject_means(self.rows[identity], metric)

    @property
    def subject_metric(self) -> str:
        """Metric by which subjects are compared: the objective, or a shown metric if it is pooled; empty if none is."""
        known = [name for name in (self.objective, *self.task.shown) if name in self.facts]
        ordered = [name for name in known if self.facts[name].direction in ("higher", "lower")]
        return next((name for name in ordered if self.facts[name].level == "subject"), "")

    def chosen_subjects(self, identity: str) -> dict[str, str]:
        """Best, median and worst subject of a configuration; fewer for fewer than three subjects."""
        if not self.subject_metric:
            return {}
        sign = -1 if self.facts[self.subject_metric].direction == "higher" else 1
        means = self.values(identity, self.subject_metric)
        known = [name for name in means if math.isfinite(means[name])]
        ordered = sorted(known, key=lambda name: (sign * means[name], name))
        if not ordered:
            return {}
        places = {"best": 0, "worst": len(ordered) - 1, "median": len(ordered) // 2}
        found: dict[str, str] = {}
        for name, place in places.items():
            if ordered[place] not in found.values():
                found[name] = ordered[place]
        return {name: found[name] for name in ("best", "median", "worst") if name in found}

    def sample_of(self, identity: str, subject: str) -> Sample:
        """The first sample of a subject."""
        samples = self.plan.groups[identity].cohort.samples
        return next(sample for sample in samples if sample.subject == subject)

    def prediction(self, identity: str, sample: str) -> Array | None:
        """Stored probability map of a sample, from the first seed of the fold that tested it."""
        for job in self._tested(identity, sample):
            cell = next(cell for cell in job.cells if cell.stage == "predict")
            record = self.plan.store.get("predict", cell.identity)
            kept = {} if record is None else read_predictions(self.plan.store, record)[sample]
            return next(
                (one["probability"] for one in kept.values() if one.get("probability", np.zeros(())).ndim), None
            )
        return None

    def explanation(self, identity: str, attribution: str, sample: str) -> Array | None:
        """Stored map (C, X, Y, Z) of a sample, from the first seed of the fold that tested it."""
        for job in self._tested(identity, sample):
            for cell in job.cells:
                record = self.plan.store.get("explain", cell.identity) if cell.label == attribution else None
                if cell.stage == "explain" and record is not None:
                    return read_maps(self.plan.store, record, [sample]).get(sample)
        return None

    def _tested(self, identity: str, sample: str) -> list[Job]:
        """Jobs of the first seed that evaluated a sample."""
        seed = self.plan.request.seeds[0]
        return [job for job in self.plan.jobs if job.row == identity and job.seed == seed and sample in job.evaluated]


def score_in(line: Mapping[str, Any], name: str, *, bounds: tuple[str, str] | None = None) -> Score:
    """A value of a row with its interval and chance level; ``bounds`` are the columns of the interval."""
    low, high = bounds or (f"{name}_low", f"{name}_high")
    found = [line.get(key) for key in (name, low, high, f"{name}_chance")]
    value, lowest, highest, chance = (math.nan if number is None else float(number) for number in found)
    return Score(value, lowest, highest, 0, chance=chance)


def note_on_marks(labels: Sequence[str]) -> str:
    """Explanation of the mark, if any label has it."""
    note = f" {MARK} Collapsed or incomplete, in this and all figures below: not a finding."
    return note if any(MARK in one for one in labels) else ""
