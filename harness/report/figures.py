"""The report's figures, drawn from the store.

Nothing here knows a task: a figure is drawn where the task's metrics, images
and attributions have what it shows, and is left out where they do not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from harness.core.registry import ATTRIBUTIONS, METRICS
from harness.core.task import Component, Configuration, Task
from harness.core.types import Array, Sample, Score
from harness.data.maps import read_maps
from harness.pipeline.artifacts import read_predictions
from harness.pipeline.cell import restored
from harness.pipeline.contribution import Family, families
from harness.pipeline.group_maps import group_sums, lesion_counts, target_mask
from harness.pipeline.leaderboard import is_sound, read_facts
from harness.pipeline.rows import MetricFacts, Row, subject_means
from harness.pipeline.score import THRESHOLD
from harness.report import plots
from harness.report.elements import Figure
from harness.report.plots import Bars
from harness.report.wording import interval_text, row_labels
from harness.sweep.collect import Tables
from harness.sweep.plan import Plan

__all__ = ["figures_of", "figures_of_one"]

_MOST_PANELS = 8
_MOST_PREDICTIONS = 4
_MOST_REGION_METRICS = 4
_UNITS = {"mm3": "mm³", "ml": "ml", "mm": "mm"}
_MARK = "†"
_WAYS = "The subject's right is on the right."


def figures_of(plan: Plan, tables: Tables) -> list[Figure]:
    """Every figure that the rows, the metrics and the stored images allow, in order.

    Parameters
    ----------
    plan : of a run, or recalled
    tables : pooled from its store
    """
    run = _Run(plan, tables)
    return [figure for draw in _FIGURES for figure in draw(run)]


def figures_of_one(plan: Plan, tables: Tables, identity: str, *, anonymous: bool = False) -> dict[str, bytes]:
    """What is worth seeing of one configuration by itself: its trainings, its subjects, its agreement.

    Parameters
    ----------
    identity : of the configuration
    anonymous : whether no subject may be named

    Returns
    -------
    dict
        file name → PNG; empty for a configuration without results
    """
    run = _Run(plan, tables)
    found: dict[str, bytes] = {}
    curves = _histories(run, identity)
    if curves:
        found["training.png"] = plots.training_curves(curves)
    if identity not in run.lines:
        return found
    row = run.rows[identity]
    shown = [name for name in dict.fromkeys((run.objective, *run.task.shown)) if any(row.values.get(name, {}).values())]
    panels = {name: _by_subject(row, name) for name in shown[:_MOST_PREDICTIONS]}
    if panels:
        found["subjects.png"] = plots.subject_dots(panels, named=not anonymous)
    for quantity, unit, truth, prediction in _pairs(run, [identity]):
        name = quantity.replace(" ", "-")
        found[f"{name}-scatter.png"] = plots.truth_scatter(truth, prediction, quantity=quantity, unit=unit)
        found[f"{name}-bland-altman.png"] = plots.bland_altman(truth, prediction, quantity=quantity, unit=unit)
    return found


@dataclass(frozen=True)
class _Run:
    """What the figures are drawn from."""

    plan: Plan
    tables: Tables

    @property
    def task(self) -> Task:
        return self.plan.request.task

    @property
    def objective(self) -> str:
        return self.task.objective

    @cached_property
    def lines(self) -> dict[str, dict[str, Any]]:
        """Configuration id → its line of the leaderboard, best first; only those with a value."""
        lines = {line["configuration"]: line for line in self.tables.prediction.to_pylist()}
        return {key: line for key, line in lines.items() if line[self.objective] is not None}

    @cached_property
    def labels(self) -> dict[str, str]:
        """Configuration id → a short name, marked where it has no rank."""
        table = self.tables.prediction
        return {
            line["configuration"]: label if is_sound(line) else f"{label}{_MARK}"
            for line, label in zip(table.to_pylist(), row_labels(table), strict=True)
        }

    @cached_property
    def rows(self) -> dict[str, Row]:
        return {key: pooled.prediction for key, pooled in self.tables.pooled.items()}

    @cached_property
    def configurations(self) -> dict[str, Configuration]:
        return {one.id: one for one in self.plan.configurations}

    @cached_property
    def facts(self) -> dict[str, MetricFacts]:
        tables = (self.tables.prediction, self.tables.explanation)
        return {metric.name: metric for table in tables for metric in read_facts(table).metrics}

    @cached_property
    def families(self) -> list[Family]:
        return [family for family in families(self.plan.configurations) if len(family.channels) > 1]

    def task_of(self, identity: str) -> Task:
        """The task with the options of a configuration."""
        return restored(self.configurations[identity])

    def metrics(self, function: str) -> dict[str, Component]:
        """Labels of the task's metrics that are this function, with their options."""
        return {label: part for label, part in self.task.metrics.items() if _name(part) == function}

    def score(self, identity: str, label: str) -> Score:
        """A value of the leaderboard."""
        return _score(self.lines[identity], label)

    def sample_of(self, identity: str, subject: str) -> Sample:
        """The first sample of a subject."""
        samples = self.plan.groups[identity].cohort.samples
        return next(sample for sample in samples if sample.subject == subject)

    def prediction(self, identity: str, sample: str) -> Array | None:
        """The stored probability of a sample's mask in the fold that tested it, first seed."""
        for job in self.plan.jobs:
            if job.row == identity and sample in job.evaluated and job.seed == self.plan.request.seeds[0]:
                cell = next(cell for cell in job.cells if cell.stage == "predict")
                record = self.plan.store.get("predict", cell.identity)
                kept = {} if record is None else read_predictions(self.plan.store, record)[sample]
                return next(
                    (one["probability"] for one in kept.values() if one.get("probability", np.zeros(())).ndim), None
                )
        return None

    def explanation(self, identity: str, attribution: str, sample: str) -> Array | None:
        """The stored map (C, X, Y, Z) of a sample in the fold that tested it, first seed."""
        for job in self.plan.jobs:
            if job.row == identity and sample in job.evaluated and job.seed == self.plan.request.seeds[0]:
                for cell in job.cells:
                    record = self.plan.store.get("explain", cell.identity) if cell.label == attribution else None
                    if cell.stage == "explain" and record is not None:
                        return read_maps(self.plan.store, record, [sample]).get(sample)
        return None


# Ranking


def _ranking(run: _Run) -> Iterator[Figure]:
    if not run.lines:
        return
    yield Figure(
        "Ranking",
        f"{_how(run)} of each configuration, with its 95 % interval.{_marks(list(run.labels.values()))}",
        plots.objective_intervals(run.tables.prediction),
        section="Leaderboard",
    )


def _how(run: _Run) -> str:
    pooled = run.facts[run.objective].level == "pooled"
    return f"{run.objective}, pooled over subjects," if pooled else f"Mean {run.objective} over subjects"


def _subjects(run: _Run) -> Iterator[Figure]:
    if run.facts[run.objective].level == "pooled":
        return  # pseudo-values compare configurations, they are nobody's score
    values = {run.labels[key]: subject_means(run.rows[key], run.objective) for key in run.lines}
    if len(values) < 2 or not any(values.values()):
        return
    yield Figure(
        "Every subject",
        f"One line per subject, configurations from the best to the worst {run.objective}. Lines that run in parallel "
        "say that subjects differ but agree on the order; lines that cross say that they do not.",
        plots.subject_lines(values, quantity=run.objective),
        broad=len(values) > _MOST_PANELS,
        section="Leaderboard",
    )


# Detection


def _plane(run: _Run) -> Iterator[Figure]:
    found = _first_pair(run)
    if found is None:
        return
    one, two = found
    points = {}
    for key in run.lines:
        first, second = subject_means(run.rows[key], one), subject_means(run.rows[key], two)
        common = [subject for subject in first if subject in second]
        points[run.labels[key]] = ([first[name] for name in common], [second[name] for name in common])
    chance = [_score(line, name).chance for line in run.lines.values() for name in found]
    known = [value for value in chance if math.isfinite(value)]
    said = f" Random centres would score {min(known):.2f} to {max(known):.2f} on both axes." if known else ""
    yield Figure(
        "Sensitivity and precision",
        f"{_at_tolerance(run.task.metrics[one])}. Large markers are means over subjects, small ones single subjects; "
        f"arcs join points of equal magnitude √(S² + P²).{said}",
        plots.sensitivity_precision(points),
        section="Detection",
    )


def _tolerances(run: _Run) -> Iterator[Figure]:
    panels: dict[str, dict[str, dict[float | str, Score]]] = {}
    by_tolerance: dict[str, dict[float, str]] = {}
    for function in ("sensitivity", "precision"):
        parts = {label: part.keywords for label, part in run.metrics(function).items()}
        chosen = {
            float(options["tolerance_mm"]): label
            for label, options in parts.items()
            if "tolerance_mm" in options and not options.get("size_bin")
        }
        if len(chosen) > 1:
            by_tolerance[function] = dict(sorted(chosen.items()))
            panels[function] = {
                run.labels[key]: {at: run.score(key, label) for at, label in by_tolerance[function].items()}
                for key in run.lines
            }
    if not panels or not run.lines:
        return
    first = next(iter(panels))
    spreads = []
    for at in by_tolerance[first]:
        values = [line[at].value for line in panels[first].values()]
        chances = [line[at].chance for line in panels[first].values() if math.isfinite(line[at].chance)]
        near = f" (chance up to {max(chances):.2f})" if chances else ""
        spreads.append(f"{min(values):.2f} to {max(values):.2f} at {at:g} mm{near}")
    yield Figure(
        "What the tolerance decides",
        f"A centre counts as found within this distance. {first.capitalize()} of the configurations: "
        f"{', '.join(spreads)}. Where all of them come together high above chance the measure is saturated and cannot "
        "tell them apart. Bars are 95 % intervals; the grey band is what random centres score.",
        plots.curves(panels, x_label="tolerance (mm)", limits=(0.0, 1.0)),
        broad=True,
        section="Detection",
    )


def _sizes(run: _Run) -> Iterator[Figure]:
    bins = {
        tuple(part.keywords["size_bin"]): label
        for label, part in run.metrics("sensitivity").items()
        if part.keywords.get("size_bin")
    }
    if len(bins) < 2 or not run.lines:
        return
    ordered = sorted(bins)
    names = [
        f"{low} and more" if bound == ordered[-1] else f"{low} to {high}" for bound in ordered for low, high in [bound]
    ]
    lines: dict[str, dict[float | str, Score]] = {
        run.labels[key]: {name: run.score(key, bins[bound]) for name, bound in zip(names, ordered, strict=True)}
        for key in run.lines
    }
    yield Figure(
        "Small lesions and large ones",
        f"Sensitivity by size of the true lesion. {_at_tolerance(run.task.metrics[bins[ordered[0]]])}. The grey band "
        "is what random centres score.",
        plots.curves({"sensitivity": lines}, x_label="voxels of the true lesion", limits=(0.0, 1.0)),
        section="Detection",
    )


# Agreement


def _agreement(run: _Run) -> Iterator[Figure]:
    for quantity, unit, truth, prediction in _pairs(run, list(run.lines)[:_MOST_PANELS]):
        left = len(run.lines) - len(truth)
        more = f" The {len(truth)} best of {len(run.lines)} configurations." if left > 0 else ""
        yield Figure(
            f"{quantity.capitalize()}: prediction against truth",
            f"A point per subject; on the line they agree.{more}",
            plots.truth_scatter(truth, prediction, quantity=quantity, unit=unit),
            broad=len(truth) > 2,
            section="Agreement",
        )
        yield Figure(
            f"{quantity.capitalize()}: Bland–Altman",
            "Prediction − truth against their mean, a point per subject: bias (solid) and limits of agreement, "
            f"bias ± 1.96 SD (dashed). Points below zero are underestimates.{more}",
            plots.bland_altman(truth, prediction, quantity=quantity, unit=unit),
            broad=len(truth) > 2,
            section="Agreement",
        )


def _pairs(run: _Run, keys: Sequence[str]) -> Iterator[tuple[str, str, dict[str, Array], dict[str, Array]]]:
    """Quantity, unit, truth and prediction by label of the row, wherever the task measures both."""
    for label in run.task.metrics:
        other = f"predicted_{label.removeprefix('true_')}"
        if not label.startswith("true_") or other not in run.task.metrics:
            continue
        quantity, unit = _quantity(label.removeprefix("true_"))
        truth, prediction = {}, {}
        for key in keys:
            one, two = subject_means(run.rows[key], label), subject_means(run.rows[key], other)
            common = [name for name in one if name in two]
            if common:
                truth[run.labels[key]] = np.array([one[name] for name in common])
                prediction[run.labels[key]] = np.array([two[name] for name in common])
        if truth:
            yield quantity, unit, truth, prediction


# Regions


def _region_words(run: _Run) -> str:
    return "Each score by itself" if run.task.summed else "Mean over subjects within each region of the label image"


def _regions(run: _Run) -> Iterator[Figure]:
    by_metric: dict[str, dict[str, dict[str, Score]]] = {}
    missing = 0
    for line in run.tables.regions.to_pylist():
        if line["configuration"] in run.lines and not line["attribution"]:
            row = by_metric.setdefault(line["metric"], {}).setdefault(run.labels[line["configuration"]], {})
            row[line["region"]] = _score(line, "value", bounds=("low", "high"))
            missing += line["missing"] > 0
    known = [
        name for name, rows in by_metric.items()
        if any(math.isfinite(score.value) for row in rows.values() for score in row.values())
    ]  # fmt: skip
    directed = [name for name in known if run.facts[name].direction in ("higher", "lower")]
    first = [name for name in (run.objective, *run.task.shown) if name in directed]
    chosen = list(dict.fromkeys([*first, *directed]))[:_MOST_REGION_METRICS]
    if not chosen:
        return
    order = list(run.labels[key] for key in run.lines)
    panels = {name: {row: by_metric[name][row] for row in order if row in by_metric[name]} for name in chosen}
    said = " Fields in which a subject has no value (no lesion there) average the others." if missing else ""
    yield Figure(
        "By score" if run.task.summed else "By region",
        f"{_region_words(run)}; the darker the better.{said} All of them with their intervals are in "
        f"leaderboards/{run.task.name}/{run.plan.request.name}-regions.csv.",
        plots.heat_maps(panels, lower_is_better=[name for name in chosen if run.facts[name].direction == "lower"]),
        broad=True,
        section="Regions",
    )


# Group maps


def _group_maps(run: _Run) -> Iterator[Figure]:
    """The summed maps of the leader, a picture per score, the truth outlined where it is known."""
    leader = next((key for key in run.lines if _MARK not in run.labels[key]), None)
    if leader is None or not run.task.summed:
        return
    cohort = run.plan.groups[leader].cohort
    cells = [cell for job in run.plan.jobs if job.row == leader for cell in job.cells if cell.stage == "explain"]
    maps: dict[str, dict[str, Array]] = {}
    for label in dict.fromkeys(cell.label for cell in cells):
        own = [cell for cell in cells if cell.label == label and run.plan.store.get("explain", cell.identity)]
        outputs, sums = group_sums(own, run.plan.store) if own else ((), np.empty(0))
        for index, output in enumerate(outputs):
            maps.setdefault(output, {})[label] = sums[:, index, 0].sum(axis=0, dtype=np.float64)
    if not maps:
        return
    counts = lesion_counts(cohort) if cohort.truth is None else np.asarray(cohort.truth.counts.load())
    for output, of_score in maps.items():
        target = None if cohort.truth is None else target_mask(cohort.truth, output)
        where = "with most lesioned voxels; no truth is known" if target is None else "with most of the outlined region"
        at = int(np.argmax((counts > 0).sum(axis=(0, 1)) if target is None else target.sum(axis=(0, 1))))
        x, y = (np.array(counts.shape[:2]) - 1) / 2
        height = float((cohort.samples[0].grid.affine @ [x, y, at, 1])[2])
        yield Figure(
            f"Maps of {output}, {run.labels[leader]}",
            "Sum over all tested patients on the number of lesions (grey), in the axial slice "
            f"{where} (z = {height:.0f} mm at its centre); the patients' left is on the left. Red speaks for a "
            "higher score, blue for a lower one.",
            plots.attribution_slices(
                {"number of lesions": counts},
                {label: {"number of lesions": one} for label, one in of_score.items()},
                target if target is not None else np.zeros(counts.shape, dtype=bool),
                spacing_mm=cohort.samples[0].grid.spacing_mm,
                index=at,
            ),
            section="Explanations",
        )


# Images


def _examples(run: _Run) -> Iterator[Figure]:
    leader = next(iter(run.lines), None)
    if leader is None:
        return
    for name, subject in _chosen_subjects(run, leader).items():
        figure = _example(run, leader, name, subject)
        if figure is not None:
            yield figure


def _example(run: _Run, leader: str, name: str, subject: str) -> Figure | None:
    sample = run.sample_of(leader, subject)
    truth = _mask(sample)
    if truth is None:
        return None
    keys = list(run.lines)
    spread = np.linspace(0, len(keys) - 1, min(len(keys), _MOST_PREDICTIONS)).round().astype(int)
    box, at = _box(sample, truth)
    predictions: dict[str, Array] = {}
    for key in [keys[number] for number in dict.fromkeys(spread.tolist())]:
        probability = run.prediction(key, sample.id)
        if probability is not None and probability.shape == truth.shape:
            value = subject_means(run.rows[key], run.objective).get(subject, math.nan)
            predictions[f"{run.labels[key]}\n{run.objective} {interval_text(value)}"] = (probability > THRESHOLD)[box]
    if not predictions:
        return None
    images = {image: np.asarray(sample.images[image].load())[box] for image in _images(run, leader, sample)}
    return Figure(
        f"Example: the {name} subject, {subject}",
        f"By {run.objective} of {run.labels[leader]}. Axial slice {at + 1} of {truth.shape[2]}, the one with most "
        f"true voxels. Predictions of configurations from the first to the last of the ranking, at a probability of "
        f"{THRESHOLD:g}: orange alone is missed, blue alone is wrong. {_WAYS}",
        plots.prediction_slices(images, truth[box], predictions, spacing_mm=sample.grid.spacing_mm, index=at),
        broad=True,
        section="Examples",
    )


# Explanations


def _methods(run: _Run) -> Iterator[Figure]:
    table = run.tables.explanation
    if not table.num_rows:
        return
    name = read_facts(table).objective
    by_method: dict[str, dict[str, Score]] = {}
    for line in table.to_pylist():
        if line[name] is not None:
            row = by_method.setdefault(line["attribution"].replace("_", " "), {})
            row[run.labels[line["configuration"]]] = _score(line, name)
    if not by_method:
        return
    chances = [score.chance for rows in by_method.values() for score in rows.values() if math.isfinite(score.chance)]
    yield Figure(
        "Attribution methods",
        f"Mean {name} over subjects with its 95 % interval, each method on each configuration. "
        "A method is worth its time where it leaves the controls behind.",
        plots.grouped_intervals(by_method, x_label=name, chance=float(np.mean(chances)) if chances else math.nan),
        section="Explanations",
    )


def _overlays(run: _Run) -> Iterator[Figure]:
    identity = _most_channels(run)
    if identity is None:
        return
    channels = run.task_of(identity).adapter().reads.images
    subject = _chosen_subjects(run, identity).get("median") or next(iter(_chosen_subjects(run, identity).values()))
    sample = run.sample_of(identity, subject)
    truth = _mask(sample)
    if truth is None or any(name not in sample.images for name in channels):
        return
    box, at = _box(sample, truth)
    maps = {}
    for attribution in run.task.attributions:
        one = run.explanation(identity, attribution, sample.id)
        if one is not None and one.shape == (len(channels), *truth.shape):
            maps[attribution] = {name: one[index][box] for index, name in enumerate(channels)}
    if not maps:
        return
    images = {name: np.asarray(sample.images[name].load())[box] for name in channels}
    yield Figure(
        f"What {run.labels[identity]} looks at: {subject}",
        f"Attribution per channel, a row per method with a scale of its own: red speaks for a lesion, blue against; "
        f"the true outline is orange. Axial slice {at + 1} of {truth.shape[2]}. {_WAYS} A method that gives one number "
        "per channel tints the whole slice.",
        plots.attribution_slices(images, maps, truth[box], spacing_mm=sample.grid.spacing_mm, index=at),
        broad=True,
        section="Explanations",
    )


def _listens(run: _Run) -> Iterator[Figure]:
    """Shares of attribution beside what the channels are worth."""
    for family in run.families:
        identity = family.members.get(frozenset(family.channels))
        panels = []
        for line in run.tables.explanation.to_pylist():
            if identity is not None and line["configuration"] == identity:
                panels += _share(run, line, family.channels)
        panels.sort(key=lambda panel: panel.muted)
        dropped = family.left_out(run.rows, run.objective)
        shares = family.shapley(run.rows, run.facts[run.objective])
        if dropped:
            panels.append(Bars("loss when left out", run.objective, dropped))
        if shares:
            panels.append(Bars("Shapley value", f"share of {run.objective}", shares))
        if not panels or identity is None:
            continue
        said = ["Grey panels are controls."] if any(panel.muted for panel in panels) else []
        said += [f"Loss of {run.objective} when left out of training: {_named(dropped)}."] if dropped else []
        untested = [name for name in family.channels if name not in dropped]
        if untested:
            said.append(f"This run trained no network on all but {' or '.join(untested)}.")
        if shares:
            said.append(f"Shapley values are exact, over all {len(family.members)} sets.")
        used = [key for key in family.members.values() if shares or key == identity]
        used += [family.members[frozenset(family.channels) - {name}] for name in dropped]
        unsound = [run.labels[key] for key in dict.fromkeys(used) if _MARK in run.labels[key]]
        if unsound:
            said.append(f"This rests on {', '.join(unsound)}.{_marks(unsound)}")
        yield Figure(
            "What the network listens to, and what that is worth" + _of(family, run),
            f"{run.labels.get(identity, '')}: share of the absolute attribution that each channel gets, by method, "
            f"beside what the channel is worth in {run.objective} to networks trained with and without it. "
            f"They need not agree: a network can listen to a channel that others could replace. {' '.join(said)}",
            plots.channel_bars(panels),
            broad=True,
            section="Explanations",
        )


def _gains(run: _Run) -> Iterator[Figure]:
    for family in run.families:
        groups: dict[str, dict[str, Score]] = {}
        for (channel, others), gain in family.gains(run.rows, run.objective).items():
            marked = any(_MARK in run.labels[family.members[one]] for one in (others, others | {channel}))
            name = f"to {family.name(others)}{_MARK if marked else ''}"
            groups.setdefault(f"adding {channel}", {})[name] = gain
        if groups:
            said = _marks([name for rows in groups.values() for name in rows])
            yield Figure(
                "What a channel adds" + _of(family, run),
                f"Paired difference in {run.objective} over subjects, with its 95 % interval: the set with the channel "
                "− the set without it, wherever both were trained. These intervals are not adjusted for their number."
                f"{said}",
                plots.grouped_intervals(groups, x_label=f"difference in {run.objective}", zero=True),
                section="Explanations",
            )


_FIGURES: Sequence[Callable[[_Run], Iterator[Figure]]] = (
    _ranking,
    _subjects,
    _plane,
    _tolerances,
    _sizes,
    _agreement,
    _regions,
    _group_maps,
    _examples,
    _methods,
    _gains,
    _listens,
    _overlays,
)


# One configuration


def _histories(run: _Run, identity: str) -> dict[str, dict[str, list[float]]]:
    """Quantity → training → one value per epoch, of every training that wrote them down."""
    found: dict[str, dict[str, list[float]]] = {}
    for job in run.plan.jobs:
        record = run.plan.store.get("train", job.train) if job.row == identity else None
        if record is None or "history.json" not in record.artifacts:
            continue
        history = json.loads(run.plan.store.artifact(record, "history.json").read_text())
        names = dict.fromkeys(name for epoch in history for name in epoch if name != "epoch")
        for name in names:
            line = [epoch.get(name) for epoch in history]
            if all(isinstance(value, int | float) for value in line):
                found.setdefault(name, {})[f"fold {job.fold} seed {job.seed}"] = line
    return found


def _by_subject(row: Row, metric: str) -> dict[str, list[float]]:
    """Subject → one value per seed, subjects in the order of their means."""
    means = subject_means(row, metric)
    order = sorted((name for name in means if math.isfinite(means[name])), key=lambda name: (means[name], name))
    return {name: list(row.values[metric][name].values()) for name in order}


# Parts


def _name(part: Component) -> str:
    return METRICS.name_of(part.func)


def _score(line: Mapping[str, Any], name: str, *, bounds: tuple[str, str] | None = None) -> Score:
    low, high = bounds or (f"{name}_low", f"{name}_high")
    value, low_value, high_value, chance = (line.get(key) for key in (name, low, high, f"{name}_chance"))

    def number(found: float | None) -> float:
        return math.nan if found is None else float(found)

    return Score(number(value), number(low_value), number(high_value), 0, chance=number(chance))


def _marks(labels: Sequence[str]) -> str:
    """What the mark means, where there is one."""
    return (
        f" {_MARK} Collapsed or incomplete, here and below: no finding." if any(_MARK in one for one in labels) else ""
    )


def _first_pair(run: _Run) -> tuple[str, str] | None:
    """The first sensitivity and the precision with the same options."""
    for label, part in run.metrics("sensitivity").items():
        for other, candidate in run.metrics("precision").items():
            common = set(part.keywords) & set(candidate.keywords)
            same = all(part.keywords[name] == candidate.keywords[name] for name in common)
            if same and not part.keywords.get("size_bin") and run.lines:
                return label, other
    return None


def _at_tolerance(part: Component) -> str:
    tolerance = part.keywords.get("tolerance_mm")
    return "By lesion" if tolerance is None else f"By lesion centre, within {tolerance:g} mm"


def _quantity(name: str) -> tuple[str, str]:
    """``volume_mm3`` → volume, mm³."""
    stem, _, end = name.rpartition("_")
    return (stem.replace("_", " "), _UNITS[end]) if end in _UNITS and stem else (name.replace("_", " "), "")


def _chosen_subjects(run: _Run, identity: str) -> dict[str, str]:
    """Best, median and worst subject of a configuration by the objective; fewer if there are fewer."""
    sign = -1 if run.facts[run.objective].direction == "higher" else 1
    means = subject_means(run.rows[identity], run.objective)
    ordered = sorted(
        (name for name in means if math.isfinite(means[name])), key=lambda name: (sign * means[name], name)
    )
    if not ordered:
        return {}
    places = {"best": 0, "worst": len(ordered) - 1, "median": len(ordered) // 2}
    found: dict[str, str] = {}
    for name, place in places.items():
        if ordered[place] not in found.values():
            found[name] = ordered[place]
    return {name: found[name] for name in ("best", "median", "worst") if name in found}


def _mask(sample: Sample) -> Array | None:
    """The true mask of a volume, ``None`` where the sample is no volume or has none."""
    if "target" not in sample.masks or len(sample.masks["target"].shape) != 3:
        return None
    truth: Array = np.asarray(sample.masks["target"].load() > 0)
    return truth


def _box(sample: Sample, truth: Array) -> tuple[tuple[slice, slice, slice], int]:
    """The part of a slice that holds the brain, with a margin, and the busiest slice of the truth."""
    at = int(np.argmax(truth.sum(axis=(0, 1))))
    inside = truth[:, :, at]
    if "brain" in sample.masks and sample.masks["brain"].shape == truth.shape:
        inside = inside | (np.asarray(sample.masks["brain"].load())[:, :, at] > 0)
    if not inside.any():
        return (slice(None), slice(None), slice(None)), at
    sides = []
    for axis in (0, 1):
        found = np.flatnonzero(inside.any(axis=1 - axis))
        sides.append(slice(max(int(found[0]) - 2, 0), int(found[-1]) + 3))
    return (sides[0], sides[1], slice(None)), at


def _images(run: _Run, leader: str, sample: Sample) -> list[str]:
    """Images that any configuration reads, those of the leader first."""
    adapters = [run.task_of(key).adapter() for key in (leader, *run.lines)]
    names = dict.fromkeys(name for adapter in adapters for name in adapter.reads.images)
    return [name for name in names if name in sample.images and len(sample.images[name].shape) == 3]


def _most_channels(run: _Run) -> str | None:
    """The first of those with most input channels, if it has several subjects' values."""
    return max(run.lines, key=lambda key: len(run.task_of(key).adapter().reads.images), default=None)


def _share(run: _Run, line: Mapping[str, Any], channels: Sequence[str]) -> list[Bars]:
    """The panel of one attribution, if its shares are known."""
    labels = {part.keywords.get("channel"): label for label, part in run.metrics("channel_share").items()}
    known = [name for name in channels if name in labels and line.get(labels[name]) is not None]
    shares = {name: _score(line, labels[name]) for name in known}
    if not shares:
        return []
    attribution = line["attribution"]
    function = run.task.attributions[attribution].func
    muted = bool(ATTRIBUTIONS.get(ATTRIBUTIONS.name_of(function)).facts.get("control"))
    return [Bars(attribution.replace("_", " "), "share of attribution", shares, muted)]


def _named(scores: Mapping[str, Score]) -> str:
    """Losses in words."""
    texts = (
        f"{name} {interval_text(score.value, score.low, score.high).replace('-', '−')}"
        for name, score in scores.items()
    )
    return ", ".join(texts)


def _of(family: Family, run: _Run) -> str:
    """Which family, where there are several."""
    if len(run.families) < 2:
        return ""
    return f" ({', '.join(f'{name}={value}' for name, value in family.axes.items())})"
