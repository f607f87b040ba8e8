"""Tables on the task's paper: tests of its hypotheses, and its published values compared with ours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.core.hypotheses import Hypothesis, Published, label_key
from harness.core.registry import METRICS
from harness.core.task import VALIDATION, Task
from harness.core.types import JSON, Array, Score
from harness.metrics.metric_inputs import MetricInputs
from harness.metrics.register import evaluate
from harness.pipeline.leaderboard import is_sound, read_facts
from harness.pipeline.ranking import text_of_label
from harness.pipeline.rows import MetricFacts, Row, subject_means
from harness.report.elements import Cell, ReportTable, interval_cell
from harness.report.wording import interval_text, plain_text, row_labels, typographic
from harness.stats.hypotheses import Contrast, Estimate, Finding, Pair, judge, mean_contrast, pooled_contrast
from harness.stats.intervals import FOLDS, MINIMUM_SUBJECTS
from harness.sweep.catalogue import declared
from harness.sweep.collect import Tables
from harness.sweep.grid import idle_options
from harness.sweep.plan import Plan

__all__ = ["findings", "paper_tables"]

_MARKS = {"supported": "good", "not supported": "bad", "undecided": "open"}
_REGION = "region"

_METRIC = "metric"

Found = tuple[Mapping[str, JSON], Finding]
Arms = Mapping[str, tuple[Row, str]]
"""Row and metric of each label whose values are compared."""


def paper_tables(plan: Plan, tables: Tables) -> Iterator[ReportTable]:
    """Tables of the hypotheses that apply to a run, and of published values of its configurations."""
    task = _as_declared(plan.request.task)
    found = findings(plan, tables)
    if found:
        yield _hypotheses_table(found, generated=plan.request.settings.data_folder is None)
    for published in task.published:
        yield from _published_tables(published, plan, tables)


def findings(plan: Plan, tables: Tables) -> list[Found]:
    """Test each hypothesis of the task's paper that applies to a run.

    Returns
    -------
    list
        Pairs of fixed axes and finding; each hypothesis is tested once for every
        combination of the other axes of the run.

    Notes
    -----
    Configurations that are not ranked (incomplete, failed, collapsed) are left out.
    """
    task = plan.request.task
    found: list[Found] = []
    if idle_options(task):
        return found  # a measured score, to which hypotheses on simulated scores do not apply
    for hypothesis in _as_declared(task).hypotheses:
        if hypothesis.metric not in task.metrics:
            continue
        table = tables.explanation if task.of_explanations(hypothesis.metric) else tables.prediction
        facts = read_facts(table)
        sound = [line for line in table.to_pylist() if is_sound(line)]
        metric = facts.metric(hypothesis.metric)
        for fixed, lines in _comparable(hypothesis, sound, dict.fromkeys((*facts.axes, *facts.strata))):
            named = {label_key(label) for group in hypothesis.groups for label in group}
            arms = {key: arm for key, arm in _arms(hypothesis, lines, tables).items() if label_key(key) in named}
            contrast = _contrast(hypothesis, metric, task, arms)
            if contrast is None:
                continue
            by_fold = all(name in row.by_fold and row.values.get(name) for row, name in arms.values())
            finding = judge(
                hypothesis,
                list(arms),
                contrast,
                direction=metric.direction,
                level=facts.level,
                minimum=FOLDS[0] if by_fold else MINIMUM_SUBJECTS,
            )
            if finding is not None:
                found.append((fixed, finding))
    return found


def _as_declared(task: Task) -> Task:
    """The task with its hypotheses, which a plan loaded from the store does not have."""
    return task if task.hypotheses or task.published else declared(task)


def _comparable(
    hypothesis: Hypothesis, lines: Sequence[Mapping[str, Any]], axes: Iterable[str]
) -> Iterator[tuple[dict[str, JSON], list[Mapping[str, Any]]]]:
    """Rows of one ranking that match the fixed axes of the hypothesis, grouped by their other axes.

    A fixed axis that the table does not have is not varied in the run.
    """
    wanted = {name: label for name, label in hypothesis.at.items() if name != _REGION}
    if any(line["attribution"] for line in lines):
        axes = (*axes, "attribution")
    others = [name for name in axes if name not in {hypothesis.over, *wanted}]
    varying = [name for name in others if len({text_of_label(line[name]) for line in lines}) > 1]
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for line in lines:
        if _is_at(line, wanted):
            groups.setdefault(tuple(text_of_label(line[name]) for name in others), []).append(line)
    for group in groups.values():
        yield {name: group[0][name] for name in varying}, group


def _arms(hypothesis: Hypothesis, lines: Sequence[Mapping[str, Any]], tables: Tables) -> Arms:
    """Rows and metrics whose values are compared, by label."""
    arms: dict[str, tuple[Row, str]] = {}
    for line in lines:
        pooled = tables.pooled[line["configuration"]]
        own = pooled.prediction
        if line["attribution"]:
            own = next(row for row in pooled.explanations if row.attribution == line["attribution"])
        if hypothesis.over == _METRIC:
            labels = [label for group in hypothesis.groups for label in group]
            arms.update({label: (own, label) for label in labels if label in own.values or label in own.pooled})
        elif hypothesis.over == _REGION:
            arms.update({name: (rows[0], hypothesis.metric) for name, rows in pooled.regions.items()})
        elif hypothesis.over in line:
            where = None if line["attribution"] else hypothesis.at.get(_REGION)
            row = own if where is None else pooled.regions.get(where, (None,))[0]
            if row is not None:
                arms.setdefault(str(line[hypothesis.over]), (row, hypothesis.metric))
    return arms


def _contrast(hypothesis: Hypothesis, metric: MetricFacts, task: Task, arms: Arms) -> Contrast | None:
    if metric.level == "pooled" and not _has_interval(task, hypothesis.metric):
        return _without_interval({label: row.pooled[name] for label, (row, name) in arms.items() if name in row.pooled})
    values = {label: _with_sign(row, name, hypothesis) for label, (row, name) in arms.items()}
    if metric.level != "pooled" or all(values.values()):  # a pooled metric has a pseudo-value for each subject
        pooled = {label: _pooled_value(row, name, hypothesis) for label, (row, name) in arms.items()}
        known = pooled if metric.level == "pooled" else None
        return mean_contrast(values, range=metric.range, pooled=known) if any(values.values()) else None
    component = task.metrics[hypothesis.metric]
    needs = METRICS.get(METRICS.name_of(component.func)).facts["needs"]
    columns = {label: _by_seed(row, needs) for label, (row, _) in arms.items()}
    if (
        hypothesis.over == _METRIC
        or not needs
        or not all(of_arm and all(of_arm.values()) for of_arm in columns.values())
    ):
        return None

    def statistic(chosen: Mapping[str, Array]) -> float:
        """Mean over seeds, as in the leaderboard."""
        seeds = sorted({key.partition(" ")[0] for key in chosen})
        tables = [{name: chosen[f"{seed} {name}"] for name in needs} for seed in seeds]
        return math.fsum(evaluate(component, MetricInputs(columns=table)) for table in tables) / len(tables)

    return pooled_contrast(columns, statistic, range=metric.range)


def _has_interval(task: Task, label: str) -> bool:
    return bool(METRICS.get(METRICS.name_of(task.metrics[label].func)).facts["interval"])


def _without_interval(scores: Mapping[str, Score]) -> Contrast | None:
    """Values that are inferences themselves, such as p values, in place of intervals."""

    def contrast(first: str, second: str, level: float) -> Estimate:
        value = scores[first].value - (scores[second].value if second else 0.0)
        return Estimate(value, value, value, scores[first].n)

    return contrast if scores else None


def _with_sign(row: Row, name: str, hypothesis: Hypothesis) -> dict[str, float]:
    """Values by subject; of a hypothesis on magnitudes, pseudo-values times the sign of the pooled value."""
    means = subject_means(row, name)
    if not hypothesis.magnitude or name not in row.pooled:
        return means
    sign = math.copysign(1.0, row.pooled[name].value)
    return {subject: sign * value for subject, value in means.items()}


def _pooled_value(row: Row, name: str, hypothesis: Hypothesis) -> float:
    value = row.pooled[name].value if name in row.pooled else math.nan
    return abs(value) if hypothesis.magnitude else value


def _by_seed(row: Row, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Values by ``"<seed> <metric>"`` and subject."""
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
            *(Cell(plain_text(one.get(name))) for name in fixed),
            Cell(_statement(finding.hypothesis), "wrap"),
            Cell(finding.hypothesis.metric),
            Cell(finding.outcome, "wrap", finding.reason, mark=_MARKS[finding.outcome]),
            _pair_cell(finding.decisive, finding.hypothesis, wrap=True),
            Cell(finding.hypothesis.support, "wrap", finding.hypothesis.caution),
        )
        for one, finding in found
    ]
    return ReportTable(
        "Hypotheses of the paper",
        ("id", *fixed, "hypothesis", "metric", "result", "decisive pair", "support in the paper"),
        tuple(lines),
        "> means better, whatever the direction of the metric. Differences are in the unit of the metric and "
        "paired over subjects, with 95 % t intervals, or jackknife intervals where the metric is pooled (ICC, "
        "R²): over folds if the leaderboard's intervals include trainings, otherwise given the trained models. "
        "Supported: the interval of every pair is on the side of the hypothesis. Not supported: the interval of "
        "one pair is on the other side, after Bonferroni correction for the pairs of the hypothesis. Undecided: "
        f"otherwise, and always with fewer than {MINIMUM_SUBJECTS} subjects (or {FOLDS[0]} folds). "
        "There is no adjustment for the number of hypotheses."
        f"{' On generated data, they test the generator rather than the brain.' if generated else ''}",
        folded=_pairs_table(found, fixed),
    )


def _pairs_table(found: Sequence[Found], fixed: Sequence[str]) -> ReportTable:
    lines = [
        (
            Cell(finding.hypothesis.id),
            *(Cell(plain_text(one.get(name))) for name in fixed),
            Cell(finding.hypothesis.metric),
            _pair_cell(pair, finding.hypothesis),
            Cell(str(pair.difference.n), "number"),
            Cell(pair.outcome, mark=_MARKS[pair.outcome]),
        )
        for one, finding in found
        for pair in finding.pairs
    ]
    return ReportTable(
        f"All {len(lines)} pairs", ("id", *fixed, "metric", "difference", "subjects or folds", "result"), tuple(lines)
    )


def _statement(hypothesis: Hypothesis) -> str:
    where = hypothesis.at.get(_REGION, "").replace("_", " ")
    text = (
        f"{hypothesis.statement} (within ±{hypothesis.margin:g})"
        if hypothesis.relation == "equivalent"
        else hypothesis.statement
    )
    return f"{text} [{where}]" if where and where not in text else text


def _pair_cell(pair: Pair, hypothesis: Hypothesis, *, wrap: bool = False) -> Cell:
    against = f" − {pair.second}" if pair.second else ""
    text = f"{pair.first}{against}".replace("_", " ")
    return Cell(text, "wrap" if wrap else "", _signed(pair.difference, sign=bool(pair.second)))


def _signed(estimate: Estimate, *, sign: bool) -> str:
    ends = (estimate.low, estimate.high) if estimate.low != estimate.high else ()  # none of a p value
    text = typographic(interval_text(estimate.value, *ends))
    text = text.replace(" ", "\u00a0")  # an interval stays in one line
    return f"+{text}" if sign and estimate.value > 0 else text


def _published_tables(published: Published, plan: Plan, tables: Tables) -> Iterator[ReportTable]:
    of_explanations = plan.request.task.of_explanations(published.metrics[0].removesuffix(VALIDATION))
    table = tables.explanation if of_explanations else tables.prediction
    facts, labels = read_facts(table), row_labels(table)
    known = {metric.name for metric in facts.metrics}
    metrics = [name for name in published.metrics if name in known]
    by_key = {label_key(label): values for label, values in published.values.items()}
    lines = []
    for line, label in zip(table.to_pylist(), labels, strict=True):
        values = by_key.get(label_key(line.get(published.over))) if _is_published(line, published) else None
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
            f"Comparison with published values, {published.title}"
            if published.title
            else "Comparison with published values",
            (published.over, *metrics),
            tuple(lines),
            f"Our values are from {plan.cohort.name}, {len(plan.cohort.subjects)} subjects; values in grey are from "
            f"{published.source}. Subjects, recipe, network size and matching rules differ, so compare orders, not "
            "values.",
        )


def _is_published(line: Mapping[str, Any], published: Published) -> bool:
    """Whether a row is of the published configuration, and no control."""
    return not str(line["status"]).startswith("control") and _is_at(line, published.at)


def _is_at(line: Mapping[str, Any], at: Mapping[str, str]) -> bool:
    """Whether a row has the fixed labels; a column that the table lacks is not varied in the run."""
    return all(name not in line or _is_same(line[name], label) for name, label in at.items())


def _is_same(value: JSON, label: str) -> bool:
    """Whether a value has a label; 5 and 5.0 are the same."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}" == label
    return label_key(value) == label_key(label)


def _beside(line: Mapping[str, Any], name: str, stated: tuple[float, float | None]) -> Cell:
    value, error = stated
    text = "" if math.isnan(value) else _two_digits(value)
    if text and error is not None:
        text = f"{text} ± {_two_digits(error)}"
    return replace(interval_cell(line[name]), range=typographic(text))


def _two_digits(value: float) -> str:
    """Two decimals, or one digit for a number that they would round to zero, such as a p value."""
    return f"{value:.2f}" if abs(value) >= 0.01 or value == 0 else f"{value:.1g}"
