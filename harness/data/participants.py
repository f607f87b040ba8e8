"""participants.tsv and participants.json: the rows of a BIDS data set, as numbers where they are numbers.

Real tables have ``n/a``, ages such as ``89+``, rows that are too short, subjects listed
twice, and the marks of Excel and R: semicolons, quotes, ``1`` or ``1.0`` for ``sub-01``. What
has one meaning is read, with a note if the meaning was inferred; everything else is a fault.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import json
import re
import unicodedata
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from harness.core.types import JSON, Fault
from harness.data.bids_files import listed

__all__ = [
    "PARTICIPANTS_FAULTS",
    "Participants",
    "NO_TABLE",
    "decimal_point",
    "is_number",
    "missing_codes",
    "read_json",
    "read_participants",
    "read_rows",
    "read_sessions",
]

PARTICIPANTS_FAULTS: Mapping[str, str] = MappingProxyType(
    {
        "column-missing": "participants.tsv lacks a column that the task needs",
        "column-mixed": "a column of numbers holds something that is no number",
        "number-range": "a number is too large or too small to be stored",
        "level-unknown": "a value is none of the levels that participants.json declares",
        "participants-columns": "participants.tsv has no column participant_id, or one name twice",
        "participants-duplicate": "a subject has two rows in participants.tsv",
        "participants-json": "participants.json is not a JSON object",
        "participants-missing": "the task needs a column, and there is no participants.tsv",
        "participants-ragged": "a row of participants.tsv is longer or shorter than its header",
        "participants-id": "a participant_id could be several subjects",
        "participants-unreadable": "participants.tsv is empty or not UTF-8 text",
        "sessions-table": "a table sub-*_sessions.tsv cannot be read, or lacks or repeats a session",
    }
)

NO_TABLE = "there is no participants.tsv"
"""Beginning of the note on a table by another name, which is not read."""

# ASCII only: digits of other scripts, such as ٣, are numbers for Python, but not for other programs.
_NUMBER = re.compile(
    r"(?P<before>[<>≤≥]=?\s*)?(?P<number>[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?)(?P<after>\s*\+)?", re.ASCII
)
_NOT_AVAILABLE = {"", "n/a", "na", "nan", "none", "null"}
# Marks of missing values in Excel, SPSS, Stata and R, in any column, and among numbers.
_MARKS = frozenset(
    {"#n/a", "#null!", "#value!", "#div/0!", "#ref!", "#num!", "#name?", "<na>", "n.a.", "n. a.", "not available", "."}
)
_MARKS_AMONG_NUMBERS = frozenset({"-", "--", "–", "—", "?", "unknown", "missing", "nd", "n.d.", "x"})
_MINUS = re.compile(r"^[−–‒](?=\s*[0-9.])")  # signs that typesetting puts for -
_AGE_RANGE = (0.0, 120.0)
_LARGEST = 1e38  # targets and covariates are single-precision numbers in a network
_SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas", " ": "spaces"}
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+", re.ASCII)
_SEPARATOR_MARK = re.compile(r"\"?sep[=](?P<sign>\\t|.)\"?[,;\t ]*", re.IGNORECASE)  # which Excel reads and writes
_TABLES = (".csv", ".tsv", ".txt", ".xls", ".xlsx", ".ods", ".csv.gz", ".tsv.gz")
_CODES = frozenset({-9, -88, -99, -888, -999, -9999, 99, 888, 999, 9999})  # written for missing values in many tables


@dataclass(frozen=True)
class Participants:
    """What participants.tsv says.

    Parameters
    ----------
    present : whether there is a table that can be read
    rows : subject → column → number, text, or ``None`` for n/a
    notes : (subject, text) of what was read with a reservation; the subject is empty if it
        concerns the whole table
    ranges : column → (lowest, highest) plausible value, from participants.json; always for age
    """

    present: bool = False
    rows: Mapping[str, Mapping[str, float | str | None]] = field(default_factory=dict)
    notes: tuple[tuple[str, str], ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def read_json(path: Path) -> tuple[dict[str, JSON] | None, str]:
    """A JSON object, or ``None`` and what is wrong with it (empty if nothing is)."""
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        return None, f"it cannot be read ({error})"
    if not isinstance(content, dict):
        return None, f"it holds a {type(content).__name__}"
    return content, ""


def read_participants(
    root: Path, required: Sequence[str], subjects: Sequence[str] = ()
) -> tuple[Participants, list[Fault]]:
    """Read the table of a data set.

    Parameters
    ----------
    root : the BIDS folder
    required : columns that the task needs; without any, a missing table is no fault
    subjects : names of the folders of subjects, as which inexact ids are read

    Returns
    -------
    table : without rows if the table cannot be read
    faults : what is wrong with it, in reading order
    """
    path = root / "participants.tsv"
    if not path.exists():
        if path.is_symlink():
            value = f"a link to {path.readlink()}, which is not there"
            return Participants(), [_table_fault("unreadable", value, "a table", "Fetch the content, or fix the link.")]
        if required:
            return Participants(), [_table_missing(root, required)]
        others = _other_tables(root)
        return Participants(notes=((("", f"{NO_TABLE}, but {others}; {_SAVE_AS}"),) if others else ())), []
    try:
        table = _cells(_decoded(path.read_bytes()))
    except (OSError, UnicodeDecodeError) as error:
        value = f"it cannot be read ({error})"
        return Participants(), [_table_fault("unreadable", value, "UTF-8 text", "Save it as UTF-8.")]
    except csv.Error as error:
        remedy = "Save it with tabs between the cells and without quotes."
        return Participants(), [_table_fault("unreadable", f"it cannot be read ({error})", "a table", remedy)]
    if not table.lines:
        return Participants(), [_table_fault("unreadable", "no lines", "a header and rows", "Fill it, or delete it.")]
    columns, notes = _columns(table.lines[0][1])
    if "participant_id" not in columns or len(set(columns)) < len(columns):
        value = f"the columns are {', '.join(columns)}"
        remedy = "Name the column of subjects participant_id, and separate columns by tabs."
        return Participants(), [_table_fault("columns", value, "participant_id and every name once", remedy)]
    return _rows(root, table, columns, required, subjects, [*table.notes, *notes])


def read_sessions(
    root: Path, sessions: Mapping[str, Sequence[str]]
) -> tuple[dict[str, dict[str, float | str | None]], list[tuple[str, str]], list[Fault]]:
    """Read the tables of sessions, ``sub-01/sub-01_sessions.tsv``, whose values differ between visits.

    Parameters
    ----------
    root : the BIDS folder
    sessions : names of the sessions of each subject, e.g. ``ses-1``

    Returns
    -------
    rows : dict
        ``sub-01_ses-1`` → column → number, text, or ``None`` for n/a; only for sessions in a
        table.
    notes : as of :class:`Participants`
    faults : what is wrong with the tables
    """
    texts: dict[str, dict[str, str]] = {}
    columns: dict[str, None] = {}
    faults: list[Fault] = []
    for subject, names in sessions.items():
        path = root / subject / f"{subject}_sessions.tsv"
        if not path.is_file():
            continue
        rows, problem = _session_rows(path)
        known = [one for one in rows if one in names]
        if not problem and rows and not known and any(names):
            problem = f"the sessions are {', '.join(rows)}, but the folders are {', '.join(names)}"
        if problem:
            file, remedy = (
                f"{subject}/{path.name}",
                "Write a tab-separated table with session_id and a row per session.",
            )
            faults.append(Fault("sessions-table", file, subject, problem, "one row for each session", remedy))
        for session in known:
            texts[f"{subject}_{session}"] = rows[session]
            columns |= dict.fromkeys(rows[session])
    found, notes, value_faults = _values(texts, list(columns))
    for fault in value_faults:
        subject = fault.subject.partition("_")[0]
        faults.append(replace(fault, file=f"{subject}/{subject}_sessions.tsv"))
    return found, notes, faults


def _session_rows(path: Path) -> tuple[dict[str, dict[str, str]], str]:
    """Rows of a table by session, and what is wrong with it."""
    try:
        table = _cells(_decoded(path.read_bytes()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return {}, f"it cannot be read ({error})"
    header = table.lines[0][1] if table.lines else []
    if "session_id" not in header or len(set(header)) < len(header):
        return {}, f"the columns are {', '.join(header) or 'none'}, without session_id or with one name twice"
    rows: dict[str, dict[str, str]] = {}
    for number, cells in table.lines[1:]:
        row = dict(zip(header, cells, strict=False))
        name = row.pop("session_id")
        name = name if name.startswith("ses-") else f"ses-{name}"
        if name in rows or len(cells) != len(header):
            return {}, f"line {number} repeats {name}, or has {len(cells)} cells for {len(header)} columns"
        rows[name] = row
    return rows, ""


def read_rows(path: Path, names: Sequence[str]) -> tuple[list[dict[str, str]], str]:
    """Read a table of another kind with the same tolerance: encodings, separators, quotes, ends of lines.

    Parameters
    ----------
    path : the table, usually separated by commas
    names : names of columns that are found in any letter case

    Returns
    -------
    rows : column → cell without spaces around it, empty if a row is too short
    problem : why it cannot be read; empty if it can
    """
    try:
        table = _cells(_decoded(path.read_bytes()), ",")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return [], f"it cannot be read ({error})"
    header = table.lines[0][1] if table.lines else []
    columns = [next((name for name in names if name == cell.lower()), cell) for cell in header]
    rows = [dict.fromkeys(columns, "") | dict(zip(columns, cells, strict=False)) for _, cells in table.lines[1:]]
    if table.separator == ";":
        _with_points({str(number): row for number, row in enumerate(rows)}, european=True)
    return rows, ""


def _table_missing(root: Path, required: Sequence[str]) -> Fault:
    others = _other_tables(root)
    value = f"there is no such file, but {others}" if others else "there is no such file"
    remedy = f"Write a tab-separated table with the columns participant_id, {', '.join(required)}."
    return Fault("participants-missing", "participants.tsv", "", value, "a table of subjects", remedy)


_SAVE_AS = "it is not read; save it as participants.tsv, a text file with tabs between the cells"


def _other_tables(root: Path) -> str:
    """Names of tables that may be that of subjects by another name, such as ``participants.csv``; empty if none."""
    names = [path.name for path in root.iterdir() if path.name.lower().endswith(_TABLES) and path.is_file()]
    meant = [name for name in names if name.lower().startswith("participant")]
    return ", ".join(sorted(meant))


def _table_fault(kind: str, value: str, expected: str, remedy: str, subject: str = "") -> Fault:
    return Fault(f"participants-{kind}", "participants.tsv", subject, value, expected, remedy)


def decimal_point(text: str) -> str:
    """A number with a decimal comma, such as ``41,5``, with a point; empty for other texts.

    For ``1,234``, whose comma may separate thousands, both readings: ``1.234 or 1234``.
    """
    if not _DECIMAL_COMMA.fullmatch(text):
        return ""
    point = text.replace(",", ".")
    return f"{point} or {text.replace(',', '')}" if _is_thousands(text) else point


def _is_thousands(text: str) -> bool:
    """Whether the comma of a number may separate thousands: ``1,234`` but not ``0,234`` or ``1234,567``."""
    return re.fullmatch(r"[-+]?[1-9]\d{0,2},\d{3}", text) is not None


def missing_codes(values: Mapping[str, float]) -> dict[str, float]:
    """Values that are probably codes for missing ones, such as −999 or 999.

    Parameters
    ----------
    values : numbers of a column, by sample

    Returns
    -------
    dict
        The values that are common codes and lie apart from all values that are none: below
        them if those are not negative, otherwise outside their range by more than its width.
        Empty if fewer than two values are left.
    """
    others = [value for value in values.values() if value not in _CODES]
    if len(others) < 2:
        return {}
    low, high = min(others), max(others)
    width = high - low

    def apart(value: float) -> bool:
        return (value < 0 <= low) or value > high + width or value < low - width

    return {name: value for name, value in values.items() if value in _CODES and apart(value)}


# --- lines and cells -------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """Lines of a table with their numbers, the separator of its cells, and notes on both."""

    lines: tuple[tuple[int, list[str]], ...]
    separator: str
    notes: tuple[tuple[str, str], ...]


def _decoded(content: bytes) -> str:
    """Text of a file in UTF-8 or, if it starts with the mark of it (Excel's "Unicode text"), in UTF-16."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        text = content.decode("utf-16")
    elif b"\0" in content[:4]:  # without the mark; the names of columns are ASCII
        text = content.decode("utf-16-be" if content.startswith(b"\0") else "utf-16-le")
    else:
        text = content.decode("utf-8-sig")
    return unicodedata.normalize("NFC", text)  # macOS may write é as two characters


def _cells(text: str, usual: str = "\t") -> _Table:
    """Cells of all lines that are not empty, without quotes and spaces around them.

    ``usual`` separates them if the header has one name only.
    """
    text, stated, notes = _without_preface(text)
    header = text.lstrip("\r\n").partition("\n")[0]
    separator = stated or next((sign for sign in _SEPARATORS if sign in header.strip()), usual)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=True)
    lines = tuple((reader.line_num, [cell.strip() for cell in line]) for line in reader if any(map(str.strip, line)))
    if separator != "\t":
        sign = _SEPARATORS.get(separator, repr(separator))
        notes.append(("", f"participants.tsv is separated by {sign}, not by tabs"))
    lines = _without_empty_ends(lines)
    if lines and lines[0][1][0] == "" and "participant_id" in lines[0][1]:  # row names of R
        lines = tuple((number, line[1:]) for number, line in lines)
        notes.append(("", "the first column of participants.tsv has no name and is not used"))
    elif _has_row_names(lines):
        lines = (lines[0], *((number, line[1:]) for number, line in lines[1:]))
        notes.append(
            ("", "the first cell of each row of participants.tsv has no column (row names of R) and is left out")
        )
    return _Table(lines, separator, tuple(notes))


def _without_preface(text: str) -> tuple[str, str, list[tuple[str, str]]]:
    """The text without lines before the header that are no part of the table, the stated separator, and notes.

    Excel marks the separator by a line ``sep=;``, and programs write comments, ``# exported``.
    Lines become empty, so that their numbers stay.
    """
    separator, left_out = "", []
    lines = text.splitlines(keepends=True)
    for place, line in enumerate(lines):
        bare = line.strip("\r\n")
        mark = _SEPARATOR_MARK.fullmatch(bare.strip())
        comment = bare.lstrip().startswith("#") and not re.match(r"\W*participant", bare, re.IGNORECASE)
        if mark:
            separator = "\t" if mark["sign"] == "\\t" else mark["sign"]
        elif not comment and bare.strip():
            break
        if bare.strip():
            left_out.append(bare.strip())
        lines[place] = line[len(bare) :] or "\n"
    notes = [("", f"the line {line!r} before the header of participants.tsv is left out") for line in left_out]
    return "".join(lines), separator, notes


def _has_row_names(lines: Sequence[tuple[int, list[str]]]) -> bool:
    """Whether each row starts with a cell for which the header has no name, as R writes tables.

    In a table separated by commas, decimal commas give one cell more, too; then the first
    cells are the subjects.
    """
    header = lines[0][1] if lines else []
    rows = [line for _, line in lines[1:]]
    if not rows or "participant_id" not in header or any(len(row) != len(header) + 1 for row in rows):
        return False
    place = header.index("participant_id")
    if any(row[place].lower().startswith("sub") for row in rows):
        return False
    return all(row[place + 1].lower().startswith("sub") for row in rows) or (
        [row[0] for row in rows] == [str(number) for number in range(1, len(rows) + 1)]
        and len({row[place + 1] for row in rows}) == len(rows)
    )


def _without_empty_ends(lines: Sequence[tuple[int, list[str]]]) -> tuple[tuple[int, list[str]], ...]:
    """Lines without empty cells behind the last named column, which Excel writes."""
    header = lines[0][1] if lines else []
    width = max((place for place, name in enumerate(header, 1) if name), default=0)
    if any(any(line[width : len(header)]) for _, line in lines):
        width = len(header)  # a column with values and without a name
    return tuple((number, line if any(line[width:]) else line[:width]) for number, line in lines)


def _columns(header: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Names of the columns; ``Participant_ID`` is read as ``participant_id``."""
    columns = list(header)
    alike = [name for name in columns if re.sub(r"[ -]", "_", name.lower().lstrip("# ")) == "participant_id"]
    if "participant_id" in columns or len(alike) != 1:
        return columns, []
    columns[columns.index(alike[0])] = "participant_id"
    return columns, [("", f"the column {alike[0]} of participants.tsv is read as participant_id")]


def _rows(
    root: Path,
    table: _Table,
    columns: Sequence[str],
    required: Sequence[str],
    subjects: Sequence[str],
    notes: Sequence[tuple[str, str]],
) -> tuple[Participants, list[Fault]]:
    texts: dict[str, dict[str, str]] = {}
    ids = _Ids(columns, subjects)
    faults: list[Fault] = []
    for number, cells in table.lines[1:]:
        subject = ids.subject(cells)
        if len(cells) != len(columns):
            value, expected = f"line {number} has {len(cells)} cells", f"{len(columns)} as in the header"
            remedy = "Write n/a for what is not known."
            if table.separator == "," and len(cells) > len(columns):
                remedy = "Separate cells by tabs, or quote those with commas (decimal commas)."
            faults.append(_table_fault("ragged", value, expected, remedy, subject))
        if subject in texts:
            value = f"{subject} has a second row in line {number}"
            faults.append(_table_fault("duplicate", value, "one row each", "Delete one of them.", subject))
            continue
        texts[subject] = dict(zip(columns, cells, strict=False))
    faults += ids.faults
    faults += [_missing_column(column, columns) for column in required if column not in columns]
    described, described_faults = _described(root)
    comma = _with_points(texts, european=table.separator == ";")
    rows, value_notes, value_faults = _values(texts, [column for column in columns if column != "participant_id"])
    faults += [*described_faults, *value_faults, *_level_faults(texts, described)]
    return Participants(True, rows, (*notes, *ids.notes, *comma, *value_notes), _ranges(described)), faults


def _with_points(texts: Mapping[str, dict[str, str]], *, european: bool) -> list[tuple[str, str]]:
    """Replace decimal commas in columns of numbers; the notes say in which columns.

    A column is left as it is if it has one comma only or decimal points, too, or if its
    commas may all separate thousands, except in a ``european`` table, which is separated by
    semicolons because commas are decimal.
    """
    changed = []
    for column in dict.fromkeys(name for row in texts.values() for name in row if name != "participant_id"):
        cells = [row[column] for row in texts.values() if column in row and not _is_missing(row[column])]
        commas = [text for text in cells if _DECIMAL_COMMA.fullmatch(text)]
        numbers = [text for text in cells if _NUMBER.fullmatch(text)]
        if not commas or (not european and all(map(_is_thousands, commas))):
            continue
        mixed = len(commas) < 2 or any("." in text for text in numbers)
        if not european and (mixed or 2 * (len(commas) + len(numbers)) <= len(cells)):
            continue
        changed.append(column)
        for row in texts.values():
            if _DECIMAL_COMMA.fullmatch(row.get(column, "")):
                row[column] = row[column].replace(",", ".")
    return [("", f"decimal commas of {', '.join(sorted(changed))} are read as points")] if changed else []


def _is_missing(text: str) -> bool:
    return text.lower() in _NOT_AVAILABLE or text.lower() in _MARKS


class _Ids:
    """Reads the cells of participant_id as subjects.

    Parameters
    ----------
    columns : names of the columns
    subjects : names of the folders
    """

    def __init__(self, columns: Sequence[str], subjects: Sequence[str]) -> None:
        self._place = columns.index("participant_id")
        self._known = set(subjects)
        self._alike: dict[str, list[str]] = {}
        for name in subjects:
            self._alike.setdefault(_plain_id(name), []).append(name)
        self._read: dict[str, str] = {}
        self.faults: list[Fault] = []

    def _cell(self, cells: Sequence[str]) -> str:
        return cells[self._place] if self._place < len(cells) else ""

    def subject(self, cells: Sequence[str]) -> str:
        """``sub-01`` for ``sub-01`` and ``01``, and for ``1``, ``1.0`` or ``SUB-01`` if no other folder is meant."""
        text = self._cell(cells)
        name = _with_sub(text)
        if not text or name in self._known:
            return name
        alike = self._alike.get(_plain_id(text), [])
        if len(alike) > 1:
            value = f"participant_id {text} could be {' or '.join(alike)}"
            remedy = "Write the names of the folders into the column."
            self.faults.append(_table_fault("id", value, "the name of one folder", remedy, alike[0]))
            return name
        if not alike:
            return name
        self._read[text] = alike[0]
        return alike[0]

    @property
    def notes(self) -> list[tuple[str, str]]:
        """Note on all ids that are no names of folders."""
        if not self._read:
            return []
        ids, folders = listed(list(self._read), 4), listed(list(self._read.values()), 4)
        verb = "is" if len(self._read) == 1 else "are"
        return [("", f"participant_id {ids} {verb} read as {folders}")]


def _with_sub(text: str) -> str:
    return text if text.startswith("sub-") or not text else f"sub-{text}"


def _plain_id(text: str) -> str:
    """What is equal for ``sub-01``, ``1``, ``1.0``, ``Sub_01``: without prefix, zeros in front and a decimal ``.0``."""
    label = re.sub(r"^sub(ject)?[-_ ]*", "", text.strip("'` ").lower())  # Excel's mark of text is '
    label = re.sub(r"^([0-9]+)\.0+$", r"\1", label)
    return label.lstrip("0") or "0" if label.isascii() and label.isdigit() else label


def is_number(text: str) -> bool:
    """Whether a cell would be read as a number, with a bound such as ``>20``."""
    return _NUMBER.fullmatch(_MINUS.sub("-", text.strip())) is not None


def _missing_column(column: str, columns: Sequence[str]) -> Fault:
    near = difflib.get_close_matches(column, columns, n=1)
    remedy = f"Did you mean {near[0]}?" if near else "Add the column, or ask for one of these."
    value = f"the columns are {', '.join(columns)}"
    return Fault("column-missing", "participants.tsv", "", value, f"a column {column}", remedy)


def _values(
    texts: Mapping[str, Mapping[str, str]], columns: Sequence[str]
) -> tuple[dict[str, dict[str, float | str | None]], list[tuple[str, str]], list[Fault]]:
    """Cells as numbers where most of their column are numbers, else as text; n/a as ``None``."""
    rows: dict[str, dict[str, float | str | None]] = {subject: {} for subject in texts}
    notes: list[tuple[str, str]] = []
    faults: list[Fault] = []
    for column in columns:
        present = {subject: row.get(column, "") for subject, row in texts.items()}
        cells = {subject: text for subject, text in present.items() if not _is_missing(text)}
        found = {subject: _NUMBER.fullmatch(_MINUS.sub("-", text)) for subject, text in cells.items()}
        blank = {subject for subject, text in cells.items() if text.lower() in _MARKS_AMONG_NUMBERS}
        numeric = 2 * sum(match is not None for match in found.values()) > len(cells) - len(blank)
        marked = {subject for subject, text in present.items() if text.lower() in _MARKS}
        marked |= blank if numeric else set()
        notes += [(subject, f"{column} {present[subject]} is read as n/a") for subject in present if subject in marked]
        cells = {subject: text for subject, text in cells.items() if subject not in marked}
        for subject, text in cells.items():
            match = found[subject]
            if not numeric:
                rows[subject][column] = text
            elif match is None:
                faults.append(_mixed_column(subject, column, text))
            else:
                number = float(match["number"])
                rows[subject][column] = number
                if not _is_stored(match["number"]):
                    faults.append(_number_range(subject, column, text))
                elif match["before"] or match["after"] or _MINUS.match(text):
                    notes.append((subject, f"{column} {text} is read as {number:g}"))
        for row in rows.values():
            row.setdefault(column, None)
        notes += _column_notes(column, {subject: rows[subject][column] for subject in cells})
    return rows, notes, faults


def _column_notes(column: str, values: Mapping[str, float | str | None]) -> list[tuple[str, str]]:
    """Notes on codes for missing values among numbers, and on numbers that are read as text."""
    numbers = {subject: value for subject, value in values.items() if isinstance(value, float)}
    notes = [
        (subject, f"{column} {code:g} may be a code for a missing value; write n/a if it is")
        for subject, code in missing_codes(numbers).items()
    ]
    texts = [value for value in values.values() if isinstance(value, str)]
    if texts and all(map(decimal_point, texts)):
        notes.append(("", f"{column} has decimal commas and is read as text; write decimal points, such as 41.5"))
    return notes


def _is_stored(text: str) -> bool:
    """Whether single precision can hold a number: 1e400 would be infinite, and 1e-400 zero."""
    number = float(text)
    digits = text.lower().partition("e")[0]
    return abs(number) <= _LARGEST and (abs(number) >= 1 / _LARGEST or not re.search("[1-9]", digits))


def _number_range(subject: str, column: str, text: str) -> Fault:
    value, expected = f"{column} of {subject} is {text}", f"0, or a magnitude from {1 / _LARGEST:g} to {_LARGEST:g}"
    return Fault("number-range", "participants.tsv", subject, value, expected, "Fix the cell, or write n/a.")


def _mixed_column(subject: str, column: str, text: str) -> Fault:
    value, expected = f"{column} of {subject} is {text!r}", "a number, as in most rows, or n/a"
    remedy = f"Write a decimal point: {decimal_point(text)}" if decimal_point(text) else "Fix the cell, or write n/a."
    return Fault("column-mixed", "participants.tsv", subject, value, expected, remedy)


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
            if not _is_missing(text) and not _is_level(text, levels):
                value, expected = f"{column} of {subject} is {text!r}", f"one of {', '.join(levels)}"
                remedy = "Fix the cell, or add the level to participants.json."
                faults.append(Fault("level-unknown", "participants.tsv", subject, value, expected, remedy))
    return faults


def _is_level(text: str, levels: Container[str]) -> bool:
    """Whether a cell is one of the declared levels; pandas writes the level 1 as 1.0."""
    plain = re.sub(r"^([-+]?\d+)\.0+$", r"\1", text)
    return text in levels or plain in levels


def _ranges(described: Mapping[str, JSON]) -> dict[str, tuple[float, float]]:
    ranges = {"age": _AGE_RANGE}
    for column, facts in described.items():
        low, high = facts.get("Minimum", -np.inf), facts.get("Maximum", np.inf)
        if isinstance(low, int | float) and isinstance(high, int | float) and (low, high) != (-np.inf, np.inf):
            ranges[column] = (float(low), float(high))
    return ranges
