"""Tables as text: labels of rows, intervals, the verdict, and short tables for the console."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from harness.core.types import JSON
from harness.pipeline.leaderboard import GIVEN_MODELS, TableFacts, read_facts
from harness.pipeline.ranking import text_of_label
from harness.stats.intervals import MINIMUM_SUBJECTS
from harness.storage.store import CellRecord

__all__ = [
    "SHARES",
    "board_notes",
    "console_rows",
    "failure_lines",
    "interval_text",
    "plain_text",
    "rankings",
    "row_labels",
    "shapley_rows",
    "typographic",
    "varying_strata",
    "verdict",
]

_MOST_NOTES = 3
_SPELLED_OUT = 4  # so many rows are named, even if they are all the others
_TINY = 1e-6  # smaller numbers are shown in scientific notation
SHARES = ("shapley", "left_out", "alone")
"""Columns of :func:`harness.pipeline.contribution.shapley_table` in the order in which they are shown."""


def row_labels(table: pa.Table, *, attribution: bool = True) -> list[str]:
    """Short names of rows: the axes that vary, and the attribution.

    One varying axis gives its bare value ("T2w+FLAIR") or, if that is a number, "noise=0.1";
    several give "model=a, noise=0.1"; if none varies, the attribution alone, or all axes.

    Parameters
    ----------
    table : leaderboard from :func:`harness.pipeline.leaderboard.build`
    attribution : whether to include the attribution
    """
    return _labels(table.to_pylist(), read_facts(table), attribution=attribution)


def varying_strata(table: pa.Table) -> list[str]:
    """Columns that separate the rankings of a table; empty if all rows are ranked together."""
    lines = table.to_pylist()
    return [name for name in read_facts(table).strata if _differ(lines, name)]


def rankings(table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """Rows of each ranking, by the name of its problem (``noise=0.1``); the name is empty if there is only one."""
    facts, strata = read_facts(table), varying_strata(table)
    found: dict[str, list[dict[str, Any]]] = {}
    for line in table.to_pylist():
        named = (f"{name}={line[name]}" if name in facts.axes else str(line[name]) for name in strata)
        found.setdefault(", ".join(named), []).append(line)
    return found


def verdict(table: pa.Table, by_target: Mapping[str, pa.Table] | None = None) -> str:
    """Conclusions that the statistics support, one sentence per ranking.

    Parameters
    ----------
    table : leaderboard from :func:`harness.pipeline.leaderboard.build`
    by_target : leaderboards of single targets, by target, if configurations predict
        different sets of targets; the sentences are then about these

    Notes
    -----
    A sentence names the first row of the ranking and all rows that are not
    distinguishable from it, and says if this holds for the trained models only. With fewer
    than six subjects it is "undecided", however large the differences are; if nothing can
    be ranked, it gives the reason.
    """
    if by_target:
        return "\n".join(
            f"{target}, {line}" if len(rankings(one)) > 1 else f"{target}: {line}"
            for target, one in by_target.items()
            for line in verdict(one).splitlines()
        )
    facts, sentences = read_facts(table), []
    for name, lines in rankings(table).items():
        labels = _labels(lines, facts)
        sentence = _sentence([{**line, "label": label} for line, label in zip(lines, labels, strict=True)], facts)
        sentences.append(f"{name}: {sentence}" if name else sentence)
    return "\n".join(sentences) or "nothing to rank: no configuration has a result yet."


def interval_text(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """Value and interval such as ``0.74 [0.70, 0.78]``, with suitable decimals; "–" if there is no value."""
    if value is None or not math.isfinite(value):
        return "–"
    known = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
    parts = [value, low, high] if known else [value]
    largest = max(abs(part) for part in parts if part is not None)
    # Two decimals for numbers around one, and two digits at least for small ones.
    decimals = 2 if largest == 0 else min(max(1 - math.floor(math.log10(largest)), 2), 9) if largest < 10 else 1
    decimals = 0 if largest >= 100 else decimals
    if 0 < largest < _TINY:
        texts = [f"{part or 0.0:.1e}" for part in parts]
        return f"{texts[0]} [{texts[1]}, {texts[2]}]" if known else texts[0]
    texts = [f"{round(part or 0.0, decimals) + 0.0:.{decimals}f}" for part in parts]  # + 0.0: no "-0.00"
    return f"{texts[0]} [{texts[1]}, {texts[2]}]" if known else texts[0]


def typographic(numbers: str) -> str:
    """Numbers with minus signs instead of hyphens."""
    return numbers.replace("-", "−")


def plain_text(value: JSON) -> str:
    """Any value as text; a dash for ``None``."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def console_rows(table: pa.Table, *, shown: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """A short table of text for the console.

    Parameters
    ----------
    table : the leaderboard
    shown : further metrics, shown without intervals; metrics without values are left out

    Returns
    -------
    header, rows
        Rank, columns that separate the rankings, other axes, attribution (if any), the
        objective, its chance level and ceiling if known, the difference from the first
        row, further metrics, the seconds that an attribution takes per fold, and the
        status unless all rows are ranked. ``=`` marks rows that are not distinguishable
        from the first of their ranking.
    """
    facts, lines = read_facts(table), table.to_pylist()
    explained = any(line["attribution"] for line in lines)
    labels = list(dict.fromkeys([*varying_strata(table), *facts.axes]))
    header = ["rank", *labels, *(["attribution"] if explained else []), facts.objective]
    known = [name for name in table.column_names if any(line[name] is not None for line in lines)]
    more = [name for name in shown if name != facts.objective and name in known]
    status = any(line["status"] != "ranked" for line in lines)
    bounds = [bound for bound in ("chance", "ceiling") if _is_bound(lines, f"{facts.objective}_{bound}")]
    costs = explained and any(line.get("explain_s") is not None for line in lines)
    header += [*bounds, "difference", *more, *(["s a fold"] if costs else []), *(["status"] if status else [])]
    rows = []
    for line in lines:
        same = line["not_distinguishable_from_best"] and line["difference"] != 0
        cells = ["" if line["rank"] is None else str(line["rank"]) + (" =" if same else "")]
        cells += ["" if line.get(name) is None else str(line[name]) for name in labels]
        cells += [line["attribution"]] if explained else []
        cells += [_cell(line, facts.objective)]
        cells += [interval_text(line[f"{facts.objective}_{bound}"]) for bound in bounds]
        cells += [_cell(line, "difference") if line["difference"] is not None else ""]
        cells += [interval_text(line[name]) for name in more]
        seconds = line.get("explain_s")
        cells += ["" if seconds is None or math.isnan(seconds) else f"{seconds:.1f}"] if costs else []
        rows.append([*cells, *([line["status"]] if status else [])])
    return header, rows


def board_notes(table: pa.Table) -> list[str]:
    """Lines below a table on the console: what intervals cover, how the first row was chosen, flags of ranked rows."""
    facts, lines = read_facts(table), table.to_pylist()
    over = list(dict.fromkeys(line["interval_over"] for line in lines if line[f"{facts.objective}_low"] is not None))
    notes = [f"brackets: {100 * facts.level:.0f} % intervals over {' or '.join(over)}"] if over else []
    if any((line["rank"] or 1) > 1 for line in lines):
        notes.append("the first row was selected on these subjects: expect a lower value on others")
    flagged = [
        f"{label}: {line['flags']}"
        for label, line in zip(row_labels(table), lines, strict=True)
        if line["rank"] is not None and line["flags"]
    ]
    notes += flagged[:_MOST_NOTES]
    if len(flagged) > _MOST_NOTES:
        notes.append(f"{len(flagged) - _MOST_NOTES} more rows have flags, which are in the CSV file")
    return notes


def _labels(lines: Sequence[Mapping[str, Any]], facts: TableFacts, *, attribution: bool = True) -> list[str]:
    varying = [name for name in facts.axes if _differ(lines, name)]
    labels = []
    for line in lines:
        explained = [line["attribution"]] if attribution and line["attribution"] else []
        names = varying or ([] if explained else list(facts.axes))
        names = [name for name in names if line[name] is not None]  # without options that the components do not have
        alone = len(names) == 1 and _speaks_for_itself(line[names[0]])
        parts = [str(line[name]) if alone else f"{name}={line[name]}" for name in names]
        labels.append(", ".join([*parts, *explained]) or line["configuration"])
    return labels


def _speaks_for_itself(value: object) -> bool:
    """Whether a value is understood without the name of its axis: not if it is empty, true, false or a number."""
    if value == "" or isinstance(value, bool | int | float):
        return False
    return re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", str(value)) is None


def _differ(lines: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Whether a column has several values."""
    return len({text_of_label(line.get(name)) for line in lines}) > 1


def _is_bound(lines: Sequence[Mapping[str, JSON]], name: str) -> bool:
    """Whether a bound is shown: some row has it, and not all rows have the end of the metric's range."""
    known = {line.get(name) for line in lines} - {None}
    return bool(known) and known != {1.0}


def shapley_rows(table: pa.Table) -> tuple[list[str], list[list[str]]]:
    """Shapley values as text for the console: header and rows.

    Parameters
    ----------
    table : table from :func:`harness.pipeline.contribution.shapley_table`
    """
    names = table.column_names
    axes = names[: names.index("channel")]
    header = [*axes, "channel", "Shapley value", "left out", "alone"]
    lines = [
        [*(str(line[name]) for name in (*axes, "channel")), *(_cell(line, name) for name in SHARES)]
        for line in table.to_pylist()
    ]
    return header, lines


def failure_lines(failures: Sequence[CellRecord], leaderboard: pa.Table) -> list[str]:
    """One line per configuration, stage and error, with the folds and seeds that failed."""
    names = dict(zip(leaderboard["configuration"].to_pylist(), row_labels(leaderboard), strict=True))
    failed_in: dict[tuple[str, str], list[str]] = {}
    for one in failures:
        what = " ".join(filter(None, (one.stage, names.get(one.configuration, ""), one.label)))
        failed_in.setdefault((what, one.error), []).append(f"{one.fold}/{one.seed}")
    return [f"failed: {what}, fold/seed {', '.join(places)}: {error}" for (what, error), places in failed_in.items()]


def _sentence(lines: Sequence[Mapping[str, Any]], facts: TableFacts) -> str:
    objective = facts.objective
    ranked = [line for line in lines if line["rank"] is not None]
    if not ranked:
        return _undecided(lines, objective)
    first = [line["label"] for line in ranked if line["rank"] == 1]
    score = _cell(ranked[0], objective)
    lead = f"{' and '.join(first)} lead{'s' if len(first) == 1 else ''} ({objective} {score})"
    if _is_chance(ranked[0], facts):
        chance = interval_text(ranked[0][f"{objective}_chance"])
        lead = f"nothing is better than chance ({objective} {chance}); {lead}"
    others = [line for line in ranked if line["rank"] != 1]
    if not others:
        return f"{lead}." if len(ranked) > 1 else f"{lead}; nothing else is ranked."
    given = ", given the trained models" if {line["interval_over"] for line in ranked} == {GIVEN_MODELS} else ""
    if any(line["not_distinguishable_from_best"] is None for line in others):
        if given and any(line["attribution"] for line in ranked):
            return f"{lead}; its interval is given the trained models, so it is not compared with the others."
        return f"{lead}; {objective} is pooled over subjects, so there is no paired comparison with the others."
    same = [line["label"] for line in others if line["not_distinguishable_from_best"]]
    if same:
        # A list of everything says nothing that its length does not say.
        named = f"all {len(same)} others" if len(same) == len(others) > _SPELLED_OUT else ", ".join(same)
        return f"{lead}; not distinguishable from {'it' if len(first) == 1 else 'them'}{given}: {named}."
    return f"{lead} and differs from {'the other' if len(others) == 1 else f'all {len(others)} others'}{given}."


def _is_chance(line: Mapping[str, Any], facts: TableFacts) -> bool:
    """Whether a row is no better than chance."""
    value, chance = line[facts.objective], line.get(f"{facts.objective}_chance")
    if value is None or chance is None:
        return False
    return bool(value >= chance if facts.metric(facts.objective).direction == "lower" else value <= chance)


def _undecided(lines: Sequence[Mapping[str, Any]], objective: str) -> str:
    waiting = [line for line in lines if line["status"].startswith("undecided")]
    if not waiting:
        return "nothing is ranked: every configuration is incomplete, failed, collapsed, an oracle or a control."
    n = max(line["subjects"] for line in waiting)
    reason = f"undecided: {n} subject{'s' if n != 1 else ''}, and fewer than {MINIMUM_SUBJECTS} are not ranked"
    best = waiting[0]
    return f"{reason}; the best {objective} so far is that of {best['label']}, {_cell(best, objective)}."


def _cell(line: Mapping[str, Any], name: str) -> str:
    return interval_text(line[name], line.get(f"{name}_low"), line.get(f"{name}_high"))
