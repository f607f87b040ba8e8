"""participants.tsv and participants.json: the rows of a BIDS data set, as numbers where they are numbers.

Real tables hold ``n/a``, ages such as ``89+``, rows that are too short, and
subjects listed twice. What can be read is read; what is wrong is said.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import numpy as np

from harness.core.types import JSON, Fault

__all__ = ["PARTICIPANTS_FAULTS", "Participants", "read_json", "read_participants"]

PARTICIPANTS_FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "column-missing": "participants.tsv lacks a column that the task needs",
        "column-mixed": "a column of numbers holds something that is no number",
        "level-unknown": "a value is none of the levels that participants.json declares",
        "participants-columns": "participants.tsv has no column participant_id, or one name twice",
        "participants-duplicate": "a subject has two rows in participants.tsv",
        "participants-json": "participants.json is not a JSON object",
        "participants-missing": "the task needs a column, and there is no participants.tsv",
        "participants-ragged": "a row of participants.tsv is longer or shorter than its header",
        "participants-unreadable": "participants.tsv is empty or not UTF-8 text",
    }
)

_NUMBER = re.compile(r"(?P<before>[<>≤≥]=?\s*)?(?P<number>[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)(?P<after>\s*\+)?")
_NOT_AVAILABLE = {"", "n/a", "na", "nan", "none", "null"}
_AGE_RANGE = (0.0, 120.0)


@dataclass(frozen=True)
class Participants:
    """What participants.tsv says.

    Parameters
    ----------
    present : whether there is a table that can be read
    rows : subject → column → number, text, or ``None`` for n/a
    notes : (subject, text) of values that were read with a reservation
    ranges : column → (lowest, highest) credible value, from participants.json; age always
    """

    present: bool = False
    rows: Mapping[str, Mapping[str, float | str | None]] = field(default_factory=dict)
    notes: tuple[tuple[str, str], ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def read_json(path: Path) -> tuple[dict[str, JSON] | None, str]:
    """A JSON object, or ``None`` and what is wrong with it (empty if nothing is)."""
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        return None, f"it cannot be read ({error})"
    if not isinstance(content, dict):
        return None, f"it holds a {type(content).__name__}"
    return content, ""


def read_participants(root: Path, required: Sequence[str]) -> tuple[Participants, list[Fault]]:
    """Read the table of a data set.

    Parameters
    ----------
    root : the BIDS folder
    required : columns that the task needs; without any, a missing table is no fault

    Returns
    -------
    table : without rows if the table cannot be read
    faults : what is wrong with it, in reading order
    """
    path = root / "participants.tsv"
    if not path.exists():
        if not required:
            return Participants(), []
        value = "there is no such file"
        remedy = f"Write a tab-separated table with the columns participant_id, {', '.join(required)}."
        return Participants(), [Fault("participants-missing", path.name, "", value, "a table of subjects", remedy)]
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        value = f"it cannot be read ({error})"
        return Participants(), [_table_fault("unreadable", value, "UTF-8 text", "Save it as UTF-8.")]
    if not lines:
        return Participants(), [_table_fault("unreadable", "no lines", "a header and rows", "Fill it, or delete it.")]
    columns = [column.strip() for column in lines[0].split("\t")]
    if "participant_id" not in columns or len(set(columns)) < len(columns):
        value = f"the columns are {', '.join(columns)}"
        remedy = "Name the column of subjects participant_id, and separate columns by tabs."
        return Participants(), [_table_fault("columns", value, "participant_id and every name once", remedy)]
    return _rows(root, lines, columns, required)


def _table_fault(kind: str, value: str, expected: str, remedy: str, subject: str = "") -> Fault:
    return Fault(f"participants-{kind}", "participants.tsv", subject, value, expected, remedy)


def _rows(
    root: Path, lines: Sequence[str], columns: Sequence[str], required: Sequence[str]
) -> tuple[Participants, list[Fault]]:
    texts: dict[str, dict[str, str]] = {}
    faults: list[Fault] = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        cells = [cell.strip() for cell in line.split("\t")]
        subject = _subject_of(cells, columns)
        if len(cells) != len(columns):
            value, expected = f"line {number} has {len(cells)} cells", f"{len(columns)} as in the header"
            faults.append(_table_fault("ragged", value, expected, "Write n/a for what is not known.", subject))
        if subject in texts:
            value = f"{subject} has a second row in line {number}"
            faults.append(_table_fault("duplicate", value, "one row each", "Delete one of them.", subject))
            continue
        texts[subject] = dict(zip(columns, cells, strict=False))
    faults += [_missing_column(column, columns) for column in required if column not in columns]
    described, described_faults = _described(root)
    rows, notes, value_faults = _values(texts, [column for column in columns if column != "participant_id"])
    faults += [*described_faults, *value_faults, *_level_faults(texts, described)]
    return Participants(True, rows, tuple(notes), _ranges(described)), faults


def _missing_column(column: str, columns: Sequence[str]) -> Fault:
    near = difflib.get_close_matches(column, columns, n=1)
    remedy = f"Did you mean {near[0]}?" if near else "Add the column, or ask for one of these."
    value = f"the columns are {', '.join(columns)}"
    return Fault("column-missing", "participants.tsv", "", value, f"a column {column}", remedy)


def _subject_of(cells: Sequence[str], columns: Sequence[str]) -> str:
    place = columns.index("participant_id")
    name = cells[place] if place < len(cells) else ""
    return name if name.startswith("sub-") or not name else f"sub-{name}"


def _values(
    texts: Mapping[str, Mapping[str, str]], columns: Sequence[str]
) -> tuple[dict[str, dict[str, float | str | None]], list[tuple[str, str]], list[Fault]]:
    """Cells as numbers where most of their column are numbers, else as text; n/a as ``None``."""
    rows: dict[str, dict[str, float | str | None]] = {subject: {} for subject in texts}
    notes: list[tuple[str, str]] = []
    faults: list[Fault] = []
    for column in columns:
        present = {subject: row.get(column, "") for subject, row in texts.items()}
        cells = {subject: text for subject, text in present.items() if text.lower() not in _NOT_AVAILABLE}
        found = {subject: _NUMBER.fullmatch(text) for subject, text in cells.items()}
        numeric = 2 * sum(match is not None for match in found.values()) > len(cells)
        for subject, text in cells.items():
            match = found[subject]
            if not numeric:
                rows[subject][column] = text
            elif match is None:
                faults.append(_mixed_column(subject, column, text))
            else:
                rows[subject][column] = float(match["number"])
                if match["before"] or match["after"]:
                    notes.append((subject, f"{subject}: {column} {text} is read as {float(match['number']):g}"))
        for row in rows.values():
            row.setdefault(column, None)
    return rows, notes, faults


def _mixed_column(subject: str, column: str, text: str) -> Fault:
    value, expected = f"{column} of {subject} is {text!r}", "a number, as in most rows, or n/a"
    return Fault("column-mixed", "participants.tsv", subject, value, expected, "Fix the cell, or write n/a.")


def _described(root: Path) -> tuple[dict[str, JSON], list[Fault]]:
    path = root / "participants.json"
    if not path.exists():
        return {}, []
    content, problem = read_json(path)
    if content is None:
        remedy = "Fix the file, or delete it: it is optional."
        return {}, [Fault("participants-json", path.name, "", problem, "a JSON object", remedy)]
    return {column: facts for column, facts in content.items() if isinstance(facts, dict)}, []


def _level_faults(texts: Mapping[str, Mapping[str, str]], described: Mapping[str, JSON]) -> list[Fault]:
    faults = []
    for column, facts in described.items():
        levels = facts.get("Levels")
        if not isinstance(levels, dict) or not levels:
            continue
        for subject, row in texts.items():
            text = row.get(column, "")
            if text.lower() not in _NOT_AVAILABLE and text not in levels:
                value, expected = f"{column} of {subject} is {text!r}", f"one of {', '.join(levels)}"
                remedy = "Fix the cell, or add the level to participants.json."
                faults.append(Fault("level-unknown", "participants.tsv", subject, value, expected, remedy))
    return faults


def _ranges(described: Mapping[str, JSON]) -> dict[str, tuple[float, float]]:
    ranges = {"age": _AGE_RANGE}
    for column, facts in described.items():
        low, high = facts.get("Minimum", -np.inf), facts.get("Maximum", np.inf)
        if isinstance(low, int | float) and isinstance(high, int | float) and (low, high) != (-np.inf, np.inf):
            ranges[column] = (float(low), float(high))
    return ranges
