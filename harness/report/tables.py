"""The report's tables beside the leaderboards: what the paper says, and what each channel is worth."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from harness.core.errors import UnknownName
from harness.core.hypotheses import Hypothesis, Published, label_key
from harness.core.registry import METRICS
from harness.core.seeding import generator
from harness.core.task import Configuration, Task
from harness.core.types import JSON, Array
from harness.metrics.metric_inputs import MetricInputs
from harness.metrics.register import evaluate
from harness.pipeline.cell import Job
from harness.pipeline.leaderboard import is_sound, read_facts
from harness.pipeline.rows import MetricFacts, Row, subject_means
from harness.pipeline.score import level_of
from harness.report.elements import Cell, ReportTable
from harness.report.wording import interval_text, row_labels, shapley_rows
from harness.stats.hypotheses import Contrast, Estimate, Finding, Pair, judge, mean_contrast, pooled_contrast
from harness.stats.intervals import MINIMUM_SUBJECTS
from harness.sweep.catalogue import load_task
from harness.sweep.collect import Tables, regions_of_interest
from harness.sweep.grid import idle_options
from harness.sweep.plan import Plan
from harness.tuning.search import Chosen, chosen_of
from harness.tuning.spaces import short

__all__ = ["findings", "report_tables", "winners"]

_MARKS = {"supported": "good", "not supported": "bad", "undecided": "open"}
_REGION = "region"

Found = tuple[Mapping[str, JSON], Finding]


def report_tables(plan: Plan, tables: Tables, shapley: pa.Table | None) -> list[ReportTable]:
    """Every table that the claims of the task's paper and the rows allow, in order.

    Parameters
    ----------
    plan : of a run, or recalled
    tables : pooled from its store
    shapley : of :func:`harness.pipeline.contribution.shapley_table`
    """
    made: list[ReportTable] = []
    task = _declared(plan.request.task)
    found = findings(plan, tables)
    if found:
        made.append(_hypotheses_table(found, generated=plan.request.settings.data_folder is None))
    if task.published is not None:
        made += _published_tables(task.published, plan, tables)
    if shapley is not None:
        made.append(_shapley_table(shapley))
    rois = regions_of_interest(plan)
    if rois is not None:
        made.append(_rois_table(rois))
    if plan.request.task.summed:
        made.append(_scores_table(tables))
    found_by_search = winners(plan)
    if found_by_search:
        made.append(_winners_table(plan, found_by_search))
    return made


def _rois_table(rois: pa.Table) -> ReportTable:
    """Where the signal of simulated scores lies."""

    def line(one: Mapping[str, Any]) -> tuple[str | Cell, ...]:
        shares = (one["mean_load"], one["prevalence_max"], one["volume_rho"])
        return (
            one["name"],
            Cell(one["centre_mm"], "number"),
            Cell(one["size_mm"], "number"),
            Cell(f"{one['touched']} of {one['patients']}", "number"),
            *(Cell("" if share is None else f"{share:.3f}", "number") for share in shares),
        )

    return ReportTable(
        "Where the signal lies",
        ("region", "centre, mm", "size, mm", "patients it touches", "mean load", "highest prevalence", "ρ with volume"),
        tuple(line(one) for one in rois.to_pylist()),
        "Scores are simulated from the lesioned share (load) of these regions, drawn where enough patients have "
        "lesions. ρ is Spearman's correlation of the load and the total lesion volume.",
        section="Regions",
    )


def _scores_table(tables: Tables) -> ReportTable:
    """R² and average precision of each score by itself."""
    shown = ("r2", "relevance_ap")
    lines = [line for line in tables.regions.to_pylist() if line["metric"] in shown and line["value"] is not None]
    axes = read_facts(tables.prediction).axes
    return ReportTable(
        "Each score by itself",
        ("score", *axes, "attribution", "metric", "value"),
        tuple(
            (
                line["region"],
                *(Cell(_text(line[name])) for name in axes),
                Cell(line["attribution"] or "–"),
                Cell(line["metric"]),
                Cell(
                    f"{line['value']:.3f}",
                    "number",
                    "" if line["low"] is None else f"[{line['low']:.2f}, {line['high']:.2f}]",
                ),
            )
            for line in lines
        ),
        "R² pooled over all tested subjects; average precision of the map summed over them. Intervals: bootstrap over "
        "subjects (from 100 on, leaving out one at a time); of maps, leaving out one block of subjects at a time.",
        section="Regions",
    )


def winners(plan: Plan) -> list[tuple[Configuration, str, Chosen]]:
    """What every search of a run chose: the row, the trainings that it served in words, and the choice.

    Returns
    -------
    list
        In the order of the rows; empty where nothing was searched, or no search
        has ended yet.
    """
    rows = {one.id: one for one in plan.configurations}
    served: dict[tuple[str, str], list[Job]] = {}
    chosen: dict[str, Chosen] = {}
    for job in plan.jobs:
        one = chosen_of(plan.store, job.configuration)
        if one is not None:
            chosen[one.identity] = one
            served.setdefault((job.row, one.identity), []).append(job)
    return [(rows[row], _served(plan, own), chosen[identity]) for (row, identity), own in served.items()]


def _served(plan: Plan, jobs: Sequence[Job]) -> str:
    """Folds and seeds in words."""
    first = jobs[0]
    if len(jobs) > 1 and len(jobs) == sum(one.row == first.row for one in plan.jobs):
        return "all folds and seeds"
    return ", ".join(f"fold {one.fold} seed {one.seed}" for one in jobs)


def _winners_table(plan: Plan, found: Sequence[tuple[Configuration, str, Chosen]]) -> ReportTable:
    """One line per search: what was chosen, and what it was worth inside the fold."""
    axes = list(dict.fromkeys(name for configuration, _, _ in found for name in configuration.axes))
    keys = list(dict.fromkeys(key for _, _, chosen in found for key in chosen.values))
    lines = []
    for configuration, where, chosen in found:
        states = [trial.state for trial in chosen.trials]
        lines.append(
            (
                *(_text(configuration.axes.get(name, "")) for name in axes),
                where,
                *(short(chosen.values[key]) if key in chosen.values else "" for key in keys),
                interval_text(chosen.value),
                f"{len(states)} ({states.count('stopped')} stopped, {states.count('failed')} failed)",
            )
        )
    note = (
        "A search saw training subjects of its own fold alone, or subjects that are left out here: nobody who is "
        "tested had a say. The value is that of the best of all candidates on the inner validation: optimistic, and no "
        "performance."
    )
    columns = (*axes, "searched for", *keys, "inner validation", "candidates")
    return ReportTable("What the searches chose", columns, tuple(lines), note)


def findings(plan: Plan, tables: Tables) -> list[Found]:
    """What the data say of each ordering of the task's paper that applies.

    Returns
    -------
    list
        (axes that were held fixed, finding): each ordering once for every
        combination of the other axes of the run.

    Notes
    -----
    A configuration that the leaderboard keeps out of its ranking (incomplete,
    failed, collapsed) is not compared here either.
    """
    task = plan.request.task
    found: list[Found] = []
    if idle_options(task):
        return found  # a measured score: what the paper says of simulated ones does not apply
    for ordering in _declared(task).hypotheses:
        if ordering.metric not in task.metrics:
            continue
        of_maps = level_of(task.metrics[ordering.metric]) == "explanation"
        table = tables.explanation if of_maps else tables.prediction
        facts = read_facts(table)
        sound = [line for line in table.to_pylist() if is_sound(line)]
        metric = facts.metric(ordering.metric)
        for fixed, lines in _strata(ordering, sound, facts.axes):
            values = _arms(ordering, lines, tables)
            contrast = _contrast(ordering, metric, task, values)
            if contrast is None:
                continue
            finding = judge(ordering, list(values), contrast, direction=metric.direction, level=facts.level)
            if finding is not None:
                found.append((fixed, finding))
    return found


def _declared(task: Task) -> Task:
    """The task as its module declares it: a plan that was recalled knows no claims."""
    if task.hypotheses or task.published:
        return task
    try:
        return load_task(task.name)
    except UnknownName:
        return task


# Orderings


def _strata(
    ordering: Hypothesis, lines: Sequence[Mapping[str, Any]], axes: Sequence[str]
) -> Iterator[tuple[dict[str, JSON], list[Mapping[str, Any]]]]:
    """Lines that fit what the ordering holds fixed, by their other axes."""
    wanted = {name: label_key(value) for name, value in ordering.at.items() if name != _REGION}
    if any(line["attribution"] for line in lines):
        axes = (*axes, "attribution")
    others = [name for name in axes if name not in {ordering.over, *wanted}]
    varying = [name for name in others if len({_text(line[name]) for line in lines}) > 1]
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for line in lines:
        if all(label_key(line.get(name)) == value for name, value in wanted.items()):
            groups.setdefault(tuple(_text(line[name]) for name in others), []).append(line)
    for group in groups.values():
        yield {name: group[0][name] for name in varying}, group


def _arms(ordering: Hypothesis, lines: Sequence[Mapping[str, Any]], tables: Tables) -> dict[str, Row]:
    """Label → the row whose values are compared."""
    arms: dict[str, Row] = {}
    for line in lines:
        pooled = tables.pooled[line["configuration"]]
        if line["attribution"]:
            own = next(row for row in pooled.explanations if row.attribution == line["attribution"])
            arms.setdefault(str(line[ordering.over]), own)
        elif ordering.over == _REGION:
            arms.update({name: rows[0] for name, rows in pooled.regions.items()})
        elif ordering.over in line:
            row = pooled.regions.get(ordering.at[_REGION], (None,))[0] if _REGION in ordering.at else pooled.prediction
            if row is not None:
                arms.setdefault(str(line[ordering.over]), row)
    return arms


def _contrast(ordering: Hypothesis, metric: MetricFacts, task: Task, arms: Mapping[str, Row]) -> Contrast | None:
    values = {label: subject_means(row, ordering.metric) for label, row in arms.items()}
    if metric.level != "pooled" or all(values.values()):  # a pooled objective has a pseudo-value for each subject
        return mean_contrast(values) if any(values.values()) else None
    part = task.metrics[ordering.metric]
    needs = METRICS.get(METRICS.name_of(part.func)).facts["needs"]
    columns = {label: _by_seed(row, needs) for label, row in arms.items()}
    if not needs or not all(of_arm and all(of_arm.values()) for of_arm in columns.values()):
        return None

    def statistic(chosen: Mapping[str, Array]) -> float:
        """The mean over seeds, as in the table."""
        seeds = sorted({key.partition(" ")[0] for key in chosen})
        tables = [{name: chosen[f"{seed} {name}"] for name in needs} for seed in seeds]
        return math.fsum(evaluate(part, MetricInputs(columns=table)) for table in tables) / len(tables)

    return pooled_contrast(columns, statistic, rng=lambda: generator(0, "ordering", ordering.metric))


def _by_seed(row: Row, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """``"<seed> <metric>"`` → subject → value."""
    seeds = sorted({seed for name in names for of_one in row.values.get(name, {}).values() for seed in of_one})
    return {
        f"{seed} {name}": {subject: of_one.get(seed, math.nan) for subject, of_one in row.values.get(name, {}).items()}
        for seed in seeds
        for name in names
    }


def _hypotheses_table(found: Sequence[Found], *, generated: bool) -> ReportTable:
    fixed = list(dict.fromkeys(name for one, _ in found for name in one))
    lines = [
        (
            Cell(finding.hypothesis.id),
            *(Cell(_text(one.get(name))) for name in fixed),
            Cell(_statement(finding.hypothesis), "wrap"),
            Cell(finding.hypothesis.metric),
            Cell(finding.outcome, "wrap", finding.reason, mark=_MARKS[finding.outcome]),
            _pair_cell(finding.decisive, finding.hypothesis, wrap=True),
            Cell(finding.hypothesis.support, "wrap", finding.hypothesis.caution),
        )
        for one, finding in found
    ]
    return ReportTable(
        "Orderings that the paper reports",
        ("id", *fixed, "the paper says", "metric", "here: pairs", "hangs on", "backed by the paper"),
        tuple(lines),
        "> means better, whichever end of the metric that is. Differences are in the metric's unit and paired over "
        "subjects, with 95 % t intervals, or bootstrap intervals where the metric is pooled (ICC); those are too "
        "narrow with few subjects. Supported: the interval of every pair lies on the claimed side. Not supported: "
        "that of one pair lies on the other side, after Bonferroni's correction for the pairs of the statement. "
        f"Undecided: anything else, and everything with fewer than {MINIMUM_SUBJECTS} subjects. The statements "
        "themselves are not adjusted for their number."
        f"{' On generated data they test the generator, not the brain.' if generated else ''}",
        folded=_pairs_table(found, fixed),
    )


def _pairs_table(found: Sequence[Found], fixed: Sequence[str]) -> ReportTable:
    lines = [
        (
            Cell(finding.hypothesis.id),
            *(Cell(_text(one.get(name))) for name in fixed),
            Cell(finding.hypothesis.metric),
            _pair_cell(pair, finding.hypothesis),
            Cell(str(pair.difference.n), "number"),
            Cell(pair.outcome, mark=_MARKS[pair.outcome]),
        )
        for one, finding in found
        for pair in finding.pairs
    ]
    return ReportTable(
        f"All {len(lines)} pairs", ("id", *fixed, "metric", "difference", "subjects", "here"), tuple(lines)
    )


def _statement(ordering: Hypothesis) -> str:
    where = ordering.at.get(_REGION, "").replace("_", " ")
    text = (
        f"{ordering.statement} (within ±{ordering.margin:g})"
        if ordering.relation == "equivalent"
        else ordering.statement
    )
    return f"{text} [{where}]" if where and where not in text else text


def _pair_cell(pair: Pair, ordering: Hypothesis, *, wrap: bool = False) -> Cell:
    against = f" − {pair.second}" if pair.second else ""
    text = f"{pair.first}{against}".replace("_", " ")
    return Cell(text, "wrap" if wrap else "", _signed(pair.difference, sign=bool(pair.second)))


def _signed(estimate: Estimate, *, sign: bool) -> str:
    text = interval_text(estimate.value, estimate.low, estimate.high).replace("-", "−")
    text = text.replace(" ", "\u00a0")  # an interval stays in one line
    return f"+{text}" if sign and estimate.value > 0 else text


# Published values


def _published_tables(published: Published, plan: Plan, tables: Tables) -> Iterator[ReportTable]:
    table = tables.prediction
    facts, labels = read_facts(table), row_labels(table)
    known = {metric.name for metric in facts.metrics}
    metrics = [name for name in published.metrics if name in known]
    by_key = {label_key(label): values for label, values in published.values.items()}
    lines = []
    for line, label in zip(table.to_pylist(), labels, strict=True):
        values = by_key.get(label_key(line.get(published.over)))
        if values is not None and any(line[name] is not None for name in metrics):
            stated = dict(zip(published.metrics, values, strict=True))
            lines.append(
                (
                    Cell(label, range="" if is_sound(line) else line["status"]),
                    *(_beside(line, name, stated[name]) for name in metrics),
                )
            )
    if lines and metrics:
        yield ReportTable(
            "Beside the published values",
            (published.over, *metrics),
            tuple(lines),
            f"Ours on {plan.cohort.name}, {len(plan.cohort.subjects)} subjects; in grey those of {published.source}. "
            "Other subjects, another recipe or size of network, and matching rules that the paper does not state: "
            "compare orders, not values.",
        )


def _beside(line: Mapping[str, Any], name: str, stated: tuple[float, float | None]) -> Cell:
    value, error = stated
    text = f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"
    return Cell(interval_text(line[name]).replace("-", "−"), "number", text)


# Contributions


def _shapley_table(table: pa.Table) -> ReportTable:
    header, rows = shapley_rows(table)
    lines = table.to_pylist()
    metric, nothing = lines[0]["metric"], lines[0]["nothing"]
    axes = header.index("channel")
    totals = ", ".join(dict.fromkeys(f"{line['all']:.2f}" for line in lines))
    flags = "; ".join(dict.fromkeys(line["flags"] for line in lines if line["flags"]))
    warning = f" These numbers are no finding, because sets are flagged. {flags}." if flags else ""
    return ReportTable(
        "What each channel is worth",
        ("channel", *header[:axes], *header[axes + 1 :]),
        tuple(
            (Cell(row[axes]), *(Cell(one) for one in row[:axes]), *(_split(one) for one in row[axes + 1 :]))
            for row in rows
        ),
        f"In {metric}, with 95 % t intervals over subjects. The exact Shapley value is the mean of what a channel adds "
        f"over all orders of joining, from networks trained on every set; no channel is worth {nothing:g}, and the "
        f"values add up to what all together score ({totals}). Left out: what all together lose without it. "
        f"Alone: what it scores by itself.{warning}",
        section="Explanations",
    )


def _split(text: str) -> Cell:
    value, _, interval = text.replace("-", "−").partition(" ")
    return Cell(value, "number", interval)


def _text(value: JSON) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
