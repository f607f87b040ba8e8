"""The aggregate stage: combine the values of one configuration over samples, folds and seeds.

Aggregation uses only the store. Pooled values are stored too, each under an identity that
depends on the metric, its code and the identities of the pooled values.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from harness.core.explanations import Explanation
from harness.core.identity import identify
from harness.core.registry import METRICS, MODELS, TARGETS
from harness.core.seeding import generator
from harness.core.targets import hardly_varies
from harness.core.task import VALIDATION, Component, Configuration, Task, describe_component
from harness.core.types import JSON, Adapter, Array, Cohort, NetworkSpec, Score
from harness.metrics.metric_inputs import MetricInputs
from harness.metrics.register import evaluate, evaluate_ceiling, evaluate_chance, inputs_of
from harness.metrics.resampling import Resampled, resampled_by
from harness.pipeline.artifacts import read_values
from harness.pipeline.cell import ENSEMBLE, Cell, Job, digest, explanations_of, failure_of, holds, records_of, restored
from harness.pipeline.explain import chosen_target, classified_target
from harness.pipeline.group_maps import GroupScores, score_group, training_of
from harness.pipeline.pooled import cached
from harness.pipeline.rows import MetricFacts, Row, Values, null_of, number_of, score_from_json, score_to_json
from harness.pipeline.score import LOW_SPREAD, level_of
from harness.stats.intervals import (
    BOOTSTRAP_SAMPLES,
    MINIMUM_SUBJECTS,
    MOST_OF_TRAINING,
    Training,
    bootstrap_counts,
    bootstrap_interval,
    jackknife_interval,
    pseudo_values,
    takes_training_in,
    with_training,
)
from harness.storage.store import CellRecord, Store

__all__ = ["Pooled", "has_fixed_test", "metric_facts", "pool", "pooled_value"]

Held = Mapping[Cell, tuple[CellRecord, ...]]
_SPREADS = (("target_score", "predicted_score"), ("target_label", "predicted_probability"))


@dataclass(frozen=True)
class Pooled:
    """Rows of one configuration.

    Parameters
    ----------
    prediction : row of its predictions
    explanations : rows of its explanations
    regions : rows by name of a region or target, predictions first
    """

    prediction: Row
    explanations: tuple[Row, ...]
    regions: Mapping[str, tuple[Row, ...]]


def metric_facts(task: Task, levels: Sequence[str], *, fixed_test: bool = False) -> tuple[MetricFacts, ...]:
    """Facts about the metrics of a task.

    Parameters
    ----------
    task : the task
    levels : levels of the metrics; pooled values of explanations belong to ``"probe"``
    fixed_test : whether metrics of predictions are also computed for validation samples
    """
    found = []
    for label, component in task.metrics.items():
        level = level_of(component)
        place = "probe" if level == "pool" and task.of_explanations(label) else level
        if place not in levels:
            continue
        entry = METRICS.get(METRICS.name_of(component.func))
        if entry.facts["several"]:
            continue
        low, high = entry.facts["range"]
        chance = entry.facts["chance"]
        facts = MetricFacts(
            label,
            direction=entry.facts["direction"],
            range=(low, high),
            chance=float(chance) if isinstance(chance, int | float) else math.nan,
            # A ceiling that depends on the data is unknown here; it is not the end of the range. A metric
            # without a best value has none.
            ceiling=_ceiling(entry.facts["direction"], low, high) if entry.facts["ceiling"] is None else math.nan,
            level=_level_of_values(task, level),
            source=entry.source,
            summary=entry.summary,
        )
        found.append(facts)
        tuned = not _needs(task, label).isdisjoint(chosen_on_validation(task))
        if fixed_test and place in ("subject", "pool") and not tuned:
            summary = f"{facts.summary} On validation samples, predicted by the network of their fold."
            found.append(dataclasses.replace(facts, name=label + VALIDATION, summary=summary))
    return tuple(found)


def has_fixed_test(jobs: Iterable[Job]) -> bool:
    """Whether the test set is fixed: folds then have no test samples, and only ensembles predict it."""
    return any(not job.split.test for job in jobs)


def _level_of_values(task: Task, level: str) -> str:
    """:attr:`MetricFacts.level` of a metric of one level."""
    if level != "explanation":
        return "pooled" if level == "pool" else "subject"
    summed = {one.judged_as_sum for one in task.explained.values()}
    return "mixed" if len(summed) > 1 else "pooled" if True in summed else "subject"


@dataclass
class Table:
    """Values of metrics per sample, for one target, region or explained scalar.

    Parameters
    ----------
    columns : values by metric, sample and seed; NaN where undefined
    exposed : whether the scalar is exposed by the model, and the predictions are those of a target beside it
    """

    columns: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    exposed: bool = False

    @property
    def metrics(self) -> set[str]:
        """Metrics that have values."""
        return {metric_of(name) for name in self.columns}

    def put(self, metric: str, sample: str, seed: int, value: float | None) -> None:
        """Add one value."""
        number = math.nan if value is None else value
        self.columns.setdefault(metric, {}).setdefault(sample, {})[seed] = number

    def by_subject(self, subjects: Mapping[str, str]) -> dict[str, dict[str, dict[int, float]]]:
        """Mean over the samples of each subject, by metric, subject and seed; undefined values are skipped."""
        gathered: dict[str, dict[str, dict[int, list[float]]]] = {}
        for metric, samples in self.columns.items():
            into = gathered.setdefault(metric, {})
            for sample, seeds in samples.items():
                for seed, value in seeds.items():
                    into.setdefault(subjects[sample], {}).setdefault(seed, []).append(value)
        return {
            metric: {
                subject: {seed: _mean(several) for seed, several in seeds.items()} for subject, seeds in of.items()
            }
            for metric, of in gathered.items()
        }


@dataclass
class _Read:
    """Values of some cells.

    Parameters
    ----------
    targets, regions : values by name
    identities : identities of the values that were read, by metric
    """

    targets: dict[str, Table] = field(default_factory=dict)
    regions: dict[str, Table] = field(default_factory=dict)
    identities: dict[str, list[str]] = field(default_factory=dict)


def read_cells(store: Store, held: Held, cells: Iterable[Cell]) -> _Read:
    """Read all values of some score or probe cells.

    Parameters
    ----------
    store : the store
    held : records by cell
    cells : the cells
    """
    found = _Read()
    for cell in cells:
        values: dict[str, JSON] = {}
        for record in held[cell]:
            values |= read_values(store, record)
        for label, identity in cell.metrics:
            if identity in values:
                found.identities.setdefault(label, []).append(identity)
                for suffix, kind in (("", "values"), ("_chance", "chance")):
                    _put(found, label + suffix, cell.seed, values[identity][kind])
    return found


def _put(found: _Read, metric: str, seed: int, samples: Mapping[str, JSON]) -> None:
    for sample, of_sample in samples.items():
        for into, kind in ((found.targets, "targets"), (found.regions, "regions")):
            for name, value in of_sample[kind].items():
                table = into.setdefault(name, Table())
                if isinstance(value, Mapping):
                    for part, one in value.items():
                        table.put(f"{metric}@{part}", sample, seed, one)
                else:
                    table.put(metric, sample, seed, value)


def pool(
    configuration: Configuration,
    jobs: Sequence[Job],
    cohort: Cohort,
    store: Store,
    *,
    facts: Mapping[str, JSON],
) -> Pooled:
    """Aggregate the results of one configuration.

    Parameters
    ----------
    configuration : the configuration
    jobs : all its trainings and ensembles with all their cells, done or not
    cohort : cohort, with the subjects of the samples and the truth of summed explanations
    store : the store
    facts : further columns of every row
    """
    return _Aggregate(configuration, jobs, cohort, store, facts).rows()


@dataclass
class _Aggregate:
    """State while the rows of a configuration are built."""

    configuration: Configuration
    jobs: Sequence[Job]
    cohort: Cohort
    store: Store
    facts: Mapping[str, JSON]

    @cached_property
    def task(self) -> Task:
        return restored(self.configuration)

    @cached_property
    def spec(self) -> NetworkSpec:
        adapter: Adapter = self.task.adapter()
        return adapter.spec(self.cohort)

    @cached_property
    def subjects(self) -> Mapping[str, str]:
        return {sample.id: sample.subject for sample in self.cohort.samples}

    @cached_property
    def cells(self) -> list[Cell]:
        return [cell for job in self.jobs for cell in job.cells]

    @cached_property
    def held(self) -> Held:
        """Records of all cells, read once."""
        return {cell: records_of(cell, self.store) for cell in self.cells}

    @cached_property
    def folds(self) -> Mapping[str, int]:
        """Fold in which each subject is tested, if intervals of pooled values are by fold; otherwise empty."""
        found = {self.subjects[sample]: job.fold for job in self.jobs for sample in job.split.test}
        # `with_training` takes the factor of a whole cross-validation, which is too small for a part of it.
        whole = found.keys() == set(self.subjects.values()) and self._all_done(["train", "predict"])
        sizes = Counter(found.values())
        return found if whole and not self.fixed_test and takes_training_in(list(sizes.values())) else {}

    def _all_done(self, stages: Sequence[str], label: str = "") -> bool:
        """Whether the cells of some stages are finished in all folds."""
        return all(self.held[cell] for cell in self.cells if cell.stage in stages and cell.label == label)

    @cached_property
    def fixed_test(self) -> bool:
        return has_fixed_test(self.jobs)

    def rows(self) -> Pooled:
        """All rows."""
        scores = [cell for cell in self.cells if cell.stage == "score" and not cell.label]
        tested = [cell for cell in scores if not self.fixed_test or cell.fold == ENSEMBLE]
        validated = [cell for cell in scores if self.fixed_test and cell.fold != ENSEMBLE]
        values, pooled, regions = self._predictions(tested, validated)
        known = self._known([pooled, *(scores for _, scores in regions.values())])
        known += self._low_spread(tested)
        if self.fixed_test:
            more, more_pooled, _ = self._predictions(validated)
            values |= {self._on_validation(name): of for name, of in more.items()}
            pooled = {**pooled, **{self._on_validation(name): score for name, score in more_pooled.items()}}
        by_fold = frozenset(pooled) if self.folds else frozenset()
        prediction = self._row("", values, pooled, known, by_fold)
        lines = {name: [self._row("", of, scores, known, by_fold)] for name, (of, scores) in regions.items()}
        explanations = []
        for label in explanations_of(self.task):
            row, by_output = self._explanation(label, known)
            explanations.append(row)
            for name, one in by_output.items():
                lines.setdefault(name, []).append(one)
        return Pooled(prediction, tuple(explanations), {name: tuple(rows) for name, rows in lines.items()})

    @cached_property
    def predicted(self) -> _Read:
        """Values of all predictions, on validation and test samples."""
        scores = [cell for cell in self.cells if cell.stage == "score" and not cell.label]
        return read_cells(self.store, self.held, scores)

    def _on_validation(self, column: str) -> str:
        """Name of a column for validation samples; the suffix of a chance level stays last."""
        metric = column if column in self.task.metrics else column.removesuffix("_chance")
        return metric + VALIDATION + column.removeprefix(metric)

    def _predictions(
        self, cells: Sequence[Cell], validated: Sequence[Cell] = ()
    ) -> tuple[dict[str, Any], dict[str, Score], dict[str, tuple[dict[str, Any], dict[str, Score]]]]:
        """Values and pooled scores of predictions: overall, and per region and target.

        Parameters
        ----------
        cells : score cells
        validated : score cells of validation samples, from which pooled metrics are computed
            that other pooled metrics need
        """
        read = read_cells(self.store, self.held, cells)
        self._add_chosen(read, read_cells(self.store, self.held, validated))
        pooled, paired = self._pooled(read, list(read.targets.values()))
        whole: dict[str, Any] = {**_whole(self.task, read.targets, self.subjects), **paired}
        by_target = {name: table for name, table in read.targets.items() if self._is_listed(name)}
        if len(by_target) == 1 and not self.task.regional:
            by_target = {}  # the only target has the values of the whole
        regions: dict[str, tuple[dict[str, Any], dict[str, Score]]] = {}
        for name, table in {**by_target, **read.regions}.items():
            scores, pairs = self._pooled(read, [table], region=name)
            values: dict[str, Any] = {**table.by_subject(self.subjects), **pairs}
            regions[name] = (values, scores)
        return whole, pooled, regions

    def _add_chosen(self, read: _Read, validation: _Read) -> None:
        """Add what is chosen on validation samples, such as a threshold, as a column with one value."""
        for label in chosen_on_validation(self.task):
            component, needs = self.task.metrics[label], _needs(self.task, label)
            for name, table in read.targets.items():
                source = validation.targets.get(name, Table())
                if not needs <= source.metrics:
                    continue
                samples = {sample for of in table.columns.values() for sample in of}
                columns = _sampled([source], needs, self.subjects).tables
                for seed, one in zip(_seeds([source]), columns, strict=True):
                    value = evaluate(component, MetricInputs(columns=one))
                    for sample in samples:
                        table.put(label, sample, seed, value)
                read.identities[label] = sorted(one for need in needs for one in validation.identities[need])

    def _is_listed(self, target: str) -> bool:
        """Whether a target has its own rows: only targets that are not images."""
        return any(one.name == target and one.of_sample for one in self.cohort.targets)

    def _explanation(self, label: str, known: tuple[str, ...]) -> tuple[Row, dict[str, Row]]:
        """Row of one explanation, and rows of each explained scalar."""
        own = [cell for cell in self.cells if cell.label == label]
        explain = [cell for cell in own if cell.stage == "explain"]
        seconds = _seconds(self.held, explain)
        read = read_cells(self.store, self.held, [cell for cell in own if cell.metrics])
        values: dict[str, Any] = _whole(self.task, read.targets, self.subjects)
        outputs: dict[str, Row] = {}
        joined = self._with_predictions(read)
        pooled, paired = self._pooled(joined, list(joined.targets.values()), explanation=label)
        values |= paired
        by_fold = set(pooled) if self.folds else set()
        found = GroupScores()
        if self.task.explained[label].judged_as_sum:
            records = {cell: self.held[cell][0] for cell in explain if self.held[cell]}
            whole = bool(self.folds) and self._all_done(["explain"], label)
            found = score_group(self.task, self.configuration, label, records, self.cohort, self.store, all_folds=whole)
            values, pooled = {**values, **found.paired}, {**pooled, **found.whole}
            by_fold |= set(found.whole) if found.by_fold else set()
        for name in dict.fromkeys((*found.by_output, *(read.targets if len(read.targets) > 1 else ()))):
            of_output: Values = {}
            alone: Mapping[str, Score] = {}
            if name in read.targets:
                of_output = read.targets[name].by_subject(self.subjects)
                alone, _ = self._pooled(joined, [joined.targets[name]], region=name, explanation=label)
            of_output = {**of_output, **found.paired_by_output.get(name, {})}
            by_metric = {**alone, **found.by_output.get(name, {})}
            outputs[name] = self._row(label, of_output, by_metric, known, frozenset(by_fold), explain_s=seconds)
        return self._row(label, values, pooled, known, frozenset(by_fold), explain_s=seconds), outputs

    def _with_predictions(self, read: _Read) -> _Read:
        """Values of an explanation beside those of the target of each scalar, for the explained samples."""
        if not any(
            level_of(one) == "pool" and self.task.of_explanations(name) for name, one in self.task.metrics.items()
        ):
            return read
        joined: dict[str, Table] = {}
        for scalar, table in read.targets.items():
            explained = {sample for samples in table.columns.values() for sample in samples}
            target = classified_target(scalar, self.spec)
            of_target = self.predicted.targets.get(target.name if target else "", Table())
            columns = {
                metric: {sample: seeds for sample, seeds in samples.items() if sample in explained}
                for metric, samples in of_target.columns.items()
            }
            exposed = target is None or target.name != scalar.partition(":")[0]
            joined[scalar] = Table({**columns, **table.columns}, exposed)
        return _Read(joined, {}, {**self.predicted.identities, **read.identities})

    def _row(
        self,
        label: str,
        values: Values,
        pooled: Mapping[str, Score],
        known: tuple[str, ...],
        by_fold: frozenset[str],
        **more: JSON,
    ) -> Row:
        wanted = [cell for cell in self.cells if cell.label in ("", label)]
        complete, flags = _state(self.store, self.held, wanted)
        if self.fixed_test and not any(job.is_ensemble for job in self.jobs):
            complete, flags = False, (*flags, "incomplete: no ensemble on the fixed test set, which needs all folds")
        flags += known
        # Explanations of a collapsed network are flagged like its predictions.
        flags += _flags(self.held, [cell for cell in wanted if cell.stage == "score" and not cell.label])
        flags += _flags(self.held, [cell for cell in wanted if cell.stage == "explain" and label])
        if _any_reused(self.held, wanted):
            flags += ("older code accepted",)
        trained = [cell for cell in self.cells if cell.stage == "train"]
        explains = _explains(self.task.explained[label], self.spec, self.configuration) if label else {}
        counts = {
            "folds": len({job.fold for job in self.jobs if not job.is_ensemble}),
            "seeds": len({job.seed for job in self.jobs}),
            "train_s": _seconds(self.held, trained),
        }
        return Row(
            self.configuration.id,
            dict(self.configuration.axes),
            label,
            values,
            pooled,
            {**self.facts, **counts, **more},
            explains,
            by_fold,
            self._baseline if not label else "",
            complete,
            flags,
        )

    @property
    def _baseline(self) -> str:
        """Name of the model if it declares to be a baseline."""
        name = MODELS.name_of(self.task.model.func)
        return name if MODELS.get(name).facts.get("baseline") else ""

    def _known(self, pooled: Sequence[Mapping[str, Score]]) -> tuple[str, ...]:
        """Flags that do not come from cells; targets are checked separately, because a mean may hide one of them."""
        flags = []
        if MODELS.get(MODELS.name_of(self.task.model.func)).facts.get("oracle"):
            flags.append("oracle: the model receives information that the task hides")
        flags += _controls(self.task)
        for label, score in ((label, score) for one in pooled for label, score in one.items()):
            fault = METRICS.get(METRICS.name_of(self.task.metrics[label].func)).facts["fault"]
            if fault is not None and score.value < fault[0]:
                flags.append(fault[1])
        return tuple(dict.fromkeys(flags))

    def _low_spread(self, tested: Sequence[Cell]) -> tuple[str, ...]:
        """Flag of predictions with a low spread over all folds, if the folds are too small to show it alone."""
        if _flags(self.held, tested):
            return ()
        tables = read_cells(self.store, self.held, tested).targets.values()
        seeds = {job.seed for job in self.jobs}
        pairs = [
            (_of_seed(table.columns[prediction], seed), _of_seed(table.columns[truth], seed))
            for table in tables
            for truth, prediction in _SPREADS
            for seed in sorted(seeds)
            if {truth, prediction} <= set(table.columns)
        ]
        return (f"{LOW_SPREAD} over all folds",) if any(hardly_varies(*pair) for pair in pairs) else ()

    def _pooled(
        self, read: _Read, tables: Sequence[Table], *, region: str = "", explanation: str = ""
    ) -> tuple[dict[str, Score], dict[str, dict[str, dict[int, float]]]]:
        """Pooled metrics of predictions or of an explanation, from the store if available.

        Parameters
        ----------
        tables : tables of the targets, or of one target or region; a metric is averaged
            over those that have all its columns
        region : name of a region, target or scalar, for which only regional metrics are pooled, if there are any
        explanation : label of an explanation; empty for predictions

        Returns
        -------
        scores : dict
            Scores by metric.
        paired : dict
            Pseudo-values by metric and subject or fold
            (:func:`~harness.stats.intervals.pseudo_values`), for paired comparisons; none for
            metrics without an interval.
        """
        task = self.task
        labels = [
            label
            for label, one in task.metrics.items()
            if level_of(one) == "pool" and task.of_explanations(label) == bool(explanation)
        ]
        labels = [label for label in labels if not region or label in (task.regional or labels)]
        parts = {label: [one for one in tables if _applies(task, label, one)] for label in labels}
        metrics = [(label, self._pooled_identity(label, read, region)) for label in labels if parts[label]]

        def compute(wanted: Sequence[str]) -> dict[str, JSON]:
            return {
                label: pooled_value(
                    task,
                    label,
                    parts[label],
                    self.subjects,
                    folds=self.folds,
                    paired=self._is_paired(label, region),
                )
                for label in wanted
            }

        what = {"row": self.configuration.id, "region": region}
        group = identify({**what, "explanation": explanation} if explanation else what)
        kept = cached(self.store, group, self.configuration.id, metrics, compute, label=explanation)
        scores = {label: score_from_json(one["score"]) for label, one in kept.items()}
        paired = {
            label: {subject: {0: number_of(value)} for subject, value in one["paired"].items()}
            for label, one in kept.items()
            if one["paired"]
        }
        return scores, paired

    def _is_paired(self, label: str, region: str) -> bool:
        """Whether pseudo-values are needed: of the objective, for rankings of all targets or of one of them."""
        ranks = label in (self.task.objective, self.task.explanation_objective)
        return ranks and (not region or self._is_listed(region))

    def _pooled_identity(self, label: str, read: _Read, region: str) -> str:
        needed = _reads(self.task, label) or set(read.identities)
        return identify(
            {
                "stage": "pool",
                "metric": self.configuration.task["metrics"][label],
                "region": region,
                "columns": {name: sorted(read.identities[name]) for name in sorted(needed & set(read.identities))},
                "paired": self._is_paired(label, region),
                "by_fold": bool(self.folds),
                "code": digest("pool", self.task, label),
            }
        )


def _controls(task: Task) -> list[str]:
    """Flags of targets with an option that makes a configuration a null control, unless it poses the problem."""
    found = []
    for label, component in task.targets.items():
        described = describe_component(TARGETS, component)
        option = TARGETS.get(described["use"]).facts.get("control", "")
        if option and described[option] and not task.poses(f"targets.{label}.{option}"):
            found.append(f"control: trained and tested with labels of other subjects ({option})")
    return list(dict.fromkeys(found))


def _explains(explanation: Explanation, spec: NetworkSpec, configuration: Configuration) -> dict[str, JSON]:
    """What an explanation explains, see :attr:`harness.pipeline.rows.Row.explains`."""
    targets, chosen = [target.name for target in spec.targets], chosen_target(explanation, spec)
    own = targets[0] if len(targets) == 1 else "all targets"
    samples: str = explanation.samples + (f" by {chosen.name}" if chosen else "")
    samples += f", at most {explanation.at_most}" if explanation.at_most else ""
    samples += ", summed" if explanation.judged_as_sum else ""
    found: dict[str, JSON] = {"explained_scalar": explanation.of or own, "explained_samples": samples}
    if chosen:  # each network chooses other samples
        axes = ", ".join(f"{name}={value}" for name, value in configuration.axes.items())
        found["samples_chosen_by"] = axes or configuration.id
    return found


def _needs(task: Task, label: str) -> set[str]:
    """Columns that a pooled metric requires."""
    return set(METRICS.get(METRICS.name_of(task.metrics[label].func)).facts["needs"])


def _applies(task: Task, label: str, table: Table) -> bool:
    """Whether a table has the columns of a pooled metric, and they belong to one output.

    The value of a scalar that the model exposes says nothing about the label of a target.
    """
    needed = _needs(task, label)
    of_scalar = any(name in task.metrics and "predict" in inputs_of(task.metrics[name]) for name in needed)
    return needed <= table.metrics and not (table.exposed and of_scalar)


def _reads(task: Task, label: str) -> set[str]:
    """Columns that a pooled metric, its chance level and its ceiling read; empty if they read all columns."""
    needed = _needs(task, label)
    facts = METRICS.get(METRICS.name_of(task.metrics[label].func)).facts
    for name in (facts["chance"], facts["ceiling"]):
        needed |= set(METRICS.get(name).facts["needs"]) if needed and isinstance(name, str) else set()
    return needed


def metric_of(column: str) -> str:
    """Metric of a column, which is ``METRIC@NAME`` if the metric has several values."""
    return column.partition("@")[0]


def _whole(task: Task, tables: Mapping[str, Table], subjects: Mapping[str, str]) -> dict[str, Any]:
    """Values over all targets: of a single target, or the mean over several, without descriptive metrics."""
    by_target = {name: table.by_subject(subjects) for name, table in tables.items()}
    labels = dict.fromkeys(label for of in by_target.values() for label in of)
    found: dict[str, Any] = {}
    for label in labels:
        own = [of[label] for of in by_target.values() if label in of]
        if len(own) == 1:
            found[label] = own[0]
        elif not _is_description(task, label):
            found[label] = _mean_over_targets(own)
    return found


def _is_description(task: Task, label: str) -> bool:
    component = task.metrics.get(label.removesuffix("_chance"), None)
    return component is None or METRICS.get(METRICS.name_of(component.func)).facts["direction"] == "none"


def _mean_over_targets(own: Sequence[Mapping[str, Mapping[int, float]]]) -> dict[str, dict[int, float]]:
    """Mean over targets, by subject and seed."""
    subjects = dict.fromkeys(subject for of in own for subject in of)
    seeds = sorted({seed for of in own for by_seed in of.values() for seed in by_seed})
    return {
        subject: {seed: _mean([of.get(subject, {}).get(seed, math.nan) for of in own]) for seed in seeds}
        for subject in subjects
    }


def _of_seed(column: Mapping[str, Mapping[int, float]], seed: int) -> Array:
    """(samples, 1) values of one seed."""
    return np.array([[of[seed]] for of in column.values() if seed in of], float)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


@dataclass(frozen=True)
class _Sampled:
    """Columns over samples for several tables and seeds, and the samples of each subject.

    Parameters
    ----------
    subjects : names of the subjects, in order
    rows : indices of the samples of each subject
    tables : columns (n,) over samples, by metric, for each table and seed; seeds vary fastest
    seeds : number of seeds
    """

    subjects: tuple[str, ...]
    rows: tuple[Array, ...]
    tables: tuple[Mapping[str, Array], ...]
    seeds: int


def _sampled(tables: Sequence[Table], needed: set[str], subjects: Mapping[str, str]) -> _Sampled:
    """Columns of each table and seed over all samples, with NaN where a sample has no value."""
    samples = list(dict.fromkeys(one for table in tables for name in table.columns for one in table.columns[name]))
    seeds = _seeds(tables)
    order = list(dict.fromkeys(subjects[sample] for sample in samples))
    codes = {subject: number for number, subject in enumerate(order)}
    rows: dict[str, list[int]] = {subject: [] for subject in order}
    for number, sample in enumerate(samples):
        rows[subjects[sample]].append(number)
    columns = tuple(
        {
            name: np.array([table.columns[name].get(sample, {}).get(seed, math.nan) for sample in samples])
            for name in table.columns
            if metric_of(name) in needed or not needed
        }
        | {"subject": np.array([codes[subjects[sample]] for sample in samples], np.float64)}
        for table in tables
        for seed in seeds
    )
    return _Sampled(tuple(order), tuple(np.array(rows[subject]) for subject in order), columns, len(seeds))


def _seeds(tables: Sequence[Table]) -> list[int]:
    """All seeds, in order."""
    return sorted(
        {seed for table in tables for of in table.columns.values() for by_seed in of.values() for seed in by_seed}
    )


def chosen_on_validation(task: Task) -> list[str]:
    """Labels of pooled metrics that other pooled metrics need; they are computed on validation samples."""
    pooled = [label for label, one in task.metrics.items() if level_of(one) == "pool"]
    needed = {name for label in pooled for name in _needs(task, label)}
    return [label for label in pooled if label in needed]


def _statistic(component: Component, sampled: _Sampled, tables: slice = slice(None)) -> Callable[[Array], float]:
    """A function of subject indices that returns the mean of a pooled metric over the tables, or some of them."""

    def statistic(subjects: Array) -> float:
        rows = np.concatenate([sampled.rows[subject] for subject in subjects])
        columns = ({name: column[rows] for name, column in table.items()} for table in sampled.tables[tables])
        return float(np.mean([evaluate(component, MetricInputs(columns=one)) for one in columns]))

    return statistic


def pooled_value(
    task: Task,
    label: str,
    tables: Sequence[Table],
    subjects: Mapping[str, str],
    *,
    folds: Mapping[str, int],
    paired: bool,
) -> JSON:
    """A pooled metric as JSON, with the pseudo-values of its interval.

    Parameters
    ----------
    tables : values of the samples, for each target or region
    subjects : subject of each sample
    folds : fold in which each subject is tested, if intervals are by fold
        (:func:`harness.stats.intervals.takes_training_in`); otherwise empty
    paired : whether pseudo-values by subject or fold are needed even for a metric without an interval
    """
    component = task.metrics[label]
    sampled = _sampled(tables, _reads(task, label), subjects)
    # A metric without an interval, such as a p value by permutation, can take long.
    used = paired or METRICS.get(METRICS.name_of(component.func)).facts["interval"]
    own, compared = _pseudo_values(component, sampled, folds, training_of(task)) if used else ({}, {})
    missing = {} if folds else dict.fromkeys(sampled.subjects, math.nan)
    pairs = {unit: null_of(value) for unit, value in {**missing, **compared}.items()} if used else {}
    return {
        "score": score_to_json(_pooled_score(component, sampled, list(own.values()), folds=bool(folds))),
        "paired": pairs,
    }


def _pseudo_values(
    component: Component, sampled: _Sampled, folds: Mapping[str, int], training: Training
) -> tuple[dict[str, float], dict[str, float]]:
    """Jackknife pseudo-values of a pooled metric, by fold or by subject; subjects without all columns have none.

    Returns
    -------
    own : of the interval of the value. What training subjects add to the error of a prediction
        is limited (:data:`harness.stats.intervals.MOST_OF_TRAINING`)
    compared : of comparisons with other rows, as if test subjects added no error: rows share
        them, so that differences may depend on the trainings only
    """
    needed = METRICS.get(METRICS.name_of(component.func)).facts["needs"]
    complete, statistic = _complete(sampled, needed), _statistic(component, sampled)
    of_subjects = pseudo_values(lambda kept: statistic(complete[kept]), len(complete))
    if not folds:
        alone = {sampled.subjects[one]: float(value) for one, value in zip(complete, of_subjects, strict=False)}
        return alone, alone
    fold_of = np.array([folds[sampled.subjects[one]] for one in complete])
    numbers = np.unique(fold_of)

    def of_seed(seed: int) -> Array:
        one = _statistic(component, sampled, slice(seed, None, sampled.seeds))
        return pseudo_values(lambda kept: one(complete[np.isin(fold_of, numbers[kept])]), len(numbers))

    values = np.stack([of_seed(seed) for seed in range(sampled.seeds)])
    error = float(np.std(of_subjects, ddof=1)) / math.sqrt(len(complete))

    def named(found: Array) -> dict[str, float]:
        return {f"fold {number:02d}": float(value) for number, value in zip(numbers, found, strict=False)}

    own = with_training(values, error, training=training, most=MOST_OF_TRAINING)
    return named(own), named(with_training(values, training=training))


def _pooled_score(component: Component, sampled: _Sampled, pseudo: Sequence[float], *, folds: bool = False) -> Score:
    """A pooled metric with its interval, by jackknife or, if the metric is asked to, by bootstrap over subjects.

    Parameters
    ----------
    pseudo : pseudo-values of the folds, or of the subjects with all columns; other subjects
        count as missing
    folds : whether the units are folds, whose trainings the interval includes
    """
    facts = METRICS.get(METRICS.name_of(component.func)).facts
    value = _statistic(component, sampled)(np.arange(len(sampled.subjects)))
    n = len(_complete(sampled, facts["needs"]))
    more: dict[str, Any] = {
        "missing": len(sampled.subjects) - n,
        "ceiling": float(np.mean([evaluate_ceiling(component, MetricInputs(columns=one)) for one in sampled.tables])),
        "chance": _chance(component, sampled),
    }
    if not facts["interval"]:
        return Score(value, math.nan, math.nan, n, **more)
    if n < MINIMUM_SUBJECTS:
        reason = f"{n} subjects; an interval of a pooled value needs {MINIMUM_SUBJECTS}"
        return Score(value, math.nan, math.nan, n, reason=reason, **more)
    options, resample = describe_component(METRICS, component), resampled_by(component.func)
    if resample and options["interval"] == "bootstrap" and not folds:
        found = bootstrap_interval(_bootstrapped(component, resample, sampled, options), value)
    else:
        found = jackknife_interval(pseudo, value, range=facts["range"])
    return Score(value, found.low, found.high, n, se=found.se, reason=found.reason, **more)


def _bootstrapped(component: Component, resample: Resampled, sampled: _Sampled, options: Mapping[str, JSON]) -> Array:
    """Values of a pooled metric in bootstrap samples of the subjects with all columns, the same for all rows."""
    facts = METRICS.get(METRICS.name_of(component.func)).facts
    complete = _complete(sampled, facts["needs"])
    counts = np.zeros((BOOTSTRAP_SAMPLES, len(sampled.subjects)), np.int64)
    counts[:, complete] = bootstrap_counts(generator(0, "bootstrap"), len(complete))
    given = {name: value for name, value in options.items() if name not in ("use", "interval")}
    found: Array = np.mean([resample(one, counts, **given) for one in sampled.tables], axis=0)
    return found


def _complete(sampled: _Sampled, needed: Sequence[str]) -> Array:
    """Indices of the subjects with at least one sample that has all required columns; any column if none is."""
    columns = [
        np.isfinite(column)
        for table in sampled.tables
        for name, column in table.items()
        if metric_of(name) in needed or not needed
    ]
    complete = np.all(columns, axis=0)
    return np.flatnonzero([bool(complete[rows].any()) for rows in sampled.rows])


def _chance(component: Component, sampled: _Sampled) -> float:
    """Chance level for these columns, if it depends on them; constant chance levels are facts of the metric."""
    if not isinstance(METRICS.get(METRICS.name_of(component.func)).facts["chance"], str):
        return math.nan
    return float(np.mean([evaluate_chance(component, MetricInputs(columns=one)) for one in sampled.tables]))


def _state(store: Store, held: Held, cells: Sequence[Cell]) -> tuple[bool, tuple[str, ...]]:
    """Whether all cells are done, and flags for those that are not."""
    undone = [cell for cell in cells if not holds(cell, held[cell])]
    failures = [failure for cell in undone if (failure := failure_of(cell, store)) is not None]
    flags = []
    if failures:
        flags.append(f"failed: {len(failures)} of {len(cells)} cells, {failures[0].error}")
    elif undone:
        flags.append(f"incomplete: {len(cells) - len(undone)} of {len(cells)} cells")
    return not undone, tuple(flags)


def _flags(held: Held, cells: Sequence[Cell]) -> tuple[str, ...]:
    """Flags of the cells, with counts; for values, only flags of records with metrics of the cell."""
    kept = [[record for record in held[cell] if _is_of(record, cell)] for cell in cells]
    found = [{flag for record in records for flag in record.facts.get("flags", [])} for records in kept if records]
    names = sorted(set().union(*found))
    return tuple(f"{flag} in {sum(flag in one for one in found)} of {len(found)} cells" for flag in names)


def _is_of(record: CellRecord, cell: Cell) -> bool:
    """Whether a record has metrics of a cell, and not only others such as metrics of older code."""
    wanted = {identity for _, identity in cell.metrics}
    return not wanted or not wanted.isdisjoint(record.metrics.values())


def _any_reused(held: Held, cells: Sequence[Cell]) -> bool:
    return any(record.reused_code for cell in cells if not cell.metrics for record in held[cell])


def _seconds(held: Held, cells: Sequence[Cell]) -> float:
    """Mean wall time of a cell in seconds."""
    seconds = [record.seconds for cell in cells for record in held[cell]]
    return round(float(np.mean(seconds)), 2) if seconds else math.nan


def _ceiling(direction: str, low: float, high: float) -> float:
    best = {"higher": high, "lower": low, "zero": 0.0}.get(direction, math.nan)
    return best if math.isfinite(best) else math.nan
