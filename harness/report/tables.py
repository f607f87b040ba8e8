"""Tables of the report other than the leaderboards."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pyarrow as pa

from harness.core.registry import MODELS
from harness.pipeline.aggregate import Pooled
from harness.pipeline.leaderboard import read_facts
from harness.report.agreement import agreements
from harness.report.elements import Cell, ReportTable, interval_cell
from harness.report.paper import paper_tables
from harness.report.searches import searches_table, winners
from harness.report.wording import SHARES, plain_text, rankings, row_labels
from harness.sweep.collect import Tables, regions_of_interest
from harness.sweep.plan import Plan

__all__ = ["report_tables"]


def report_tables(plan: Plan, tables: Tables, shapley: pa.Table | None) -> list[ReportTable]:
    """All tables that apply to a run, in order.

    Parameters
    ----------
    plan : plan of the run
    tables : tables of the run
    shapley : table from :func:`harness.pipeline.contribution.shapley_table`
    """
    made = list(paper_tables(plan, tables))
    if shapley is not None:
        made.append(_shapley_table(shapley))
    rois = regions_of_interest(plan)
    if rois is not None:
        made.append(_rois_table(rois))
    targets = {one.name for group in plan.groups.values() for one in group.cohort.targets if one.of_sample}
    if targets:
        made += _targets_table(plan, tables, targets)
    made += _gain_table(tables)
    made += _concordance_table(tables.explanation, tables.pooled)
    found = winners(plan)
    if found:
        made.append(searches_table(found))
    return made


def _gain_table(tables: Tables) -> list[ReportTable]:
    """Paired differences of the objective from a baseline model, in each problem that has one."""
    table = tables.prediction
    if "gain_over" not in table.column_names:
        return []
    labels = dict(zip(table["configuration"].to_pylist(), row_labels(table), strict=True))
    facts = read_facts(table)
    shown = [
        (problem, line) for problem, lines in rankings(table).items() for line in lines if line["gain_over"] is not None
    ]
    rows = [
        (
            problem or "–",
            labels[line["configuration"]],
            interval_cell(line[facts.objective], *_ends(line, facts.objective)),
            interval_cell(line["gain"], *_ends(line, "gain")),
        )
        for problem, line in shown
    ]
    baselines = list(dict.fromkeys(line["gain_over"] for _, line in shown))
    what = " and ".join(f"{name} ({MODELS.get(name).facts['baseline']})" for name in baselines)
    return [
        ReportTable(
            f"Gain over {' and '.join(baselines)}",
            ("problem", "configuration", facts.objective, "gain"),
            tuple(rows),
            f"Paired difference of {facts.objective} from {what}, with {100 * facts.level:.0f} % interval for each. "
            "Positive if the configuration is better.",
            section="Leaderboard",
        )
    ]


def _concordance_table(table: pa.Table, pooled: Mapping[str, Pooled]) -> list[ReportTable]:
    """Kendall's τ between the ranking metric of explanations and each other one, over the explanations of a model."""
    objective = read_facts(table).objective
    rows = [
        (
            one.label,
            Cell(one.metric),
            Cell(str(one.explanations), "number"),
            interval_cell(one.tau, one.low, one.high),
            interval_cell(one.p),
        )
        for one in agreements(table, pooled)
    ]
    if not rows:
        return []
    note = (
        f"Kendall's τ over explanations: 1 if a metric orders them as {objective} does, −1 if it orders them the "
        "other way round. Brackets: 95 % bootstrap intervals over subjects, for these explanations, where both metrics "
        "are means over subjects. p is two-sided, not adjusted, and treats explanations as independent."
    )
    columns = ("configuration", "metric", "explanations", f"τ with {objective}", "p")
    return [ReportTable(f"Agreement with {objective}", columns, tuple(rows), note, section="Explanations")]


def _ends(line: Mapping[str, Any], name: str) -> tuple[float | None, float | None]:
    return line[f"{name}_low"], line[f"{name}_high"]


def _rois_table(rois: pa.Table) -> ReportTable:
    """Table of the regions from which scores are simulated."""

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
        "Regions of interest",
        (
            "region",
            "centre, mm",
            "size, mm",
            "patients with lesions there",
            "mean load",
            "highest prevalence",
            "ρ with volume",
        ),
        tuple(line(one) for one in rois.to_pylist()),
        "Scores are simulated from the lesioned share (load) of these regions, which are drawn where enough patients "
        "have lesions. ρ is Spearman's correlation of the load and the total lesion volume.",
        section="Regions",
    )


def _targets_table(plan: Plan, tables: Tables, targets: Collection[str]) -> list[ReportTable]:
    """Table of the ranking metrics per target; none if there are no values per target."""
    task, axes = plan.request.task, read_facts(tables.prediction).axes
    lines = [
        line
        for line in tables.regions.to_pylist()
        if line["region"] in targets
        and line["metric"] in (task.objective, task.explanation_objective)
        and line["value"] is not None
    ]
    if not lines:
        return []
    note = f"{task.objective} of the predictions"
    if any(line["attribution"] for line in lines):
        note += f", {task.explanation_objective} of the explanations"
    over = dict.fromkeys(line["interval_over"] for line in lines)
    note += f", with 95 % intervals over {' or over '.join(over)} (interval_over in the CSV file)"
    rows = [
        (
            line["region"],
            *(Cell(plain_text(line[name])) for name in axes),
            Cell(line["attribution"] or "–"),
            Cell(line["metric"]),
            interval_cell(line["value"], line["low"], line["high"]),
        )
        for line in lines
    ]
    columns = ("target", *axes, "attribution", "metric", "value")
    return [ReportTable("Each target alone", columns, tuple(rows), f"{note}.", section="Regions")]


def _shapley_table(table: pa.Table) -> ReportTable:
    lines, names = table.to_pylist(), table.column_names
    axes = names[: names.index("channel")]
    metric, nothing = lines[0]["metric"], lines[0]["nothing"]
    totals = ", ".join(dict.fromkeys(f"{line['all']:.2f}" for line in lines))
    flags = "; ".join(dict.fromkeys(line["flags"] for line in lines if line["flags"]))
    warning = f" These numbers are not a finding, because sets are flagged: {flags}." if flags else ""
    return ReportTable(
        "Value of each channel",
        ("channel", *axes, "Shapley value", "left out", "alone"),
        tuple(
            (
                Cell(line["channel"]),
                *(Cell(plain_text(line[name])) for name in axes),
                *(interval_cell(line[name], line[f"{name}_low"], line[f"{name}_high"]) for name in SHARES),
            )
            for line in lines
        ),
        f"In {metric}, with 95 % t intervals over subjects. The exact Shapley value is the mean gain from adding the "
        f"channel, over all orders in which channels can be added, with networks trained on every set. The empty set "
        f"has a score of {nothing:g}, and the values add up to the score of all channels ({totals}). Left out: the "
        f"loss of all channels without this one. Alone: the score of this channel only.{warning}",
        section="Explanations",
    )
