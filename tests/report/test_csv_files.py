"""All tables of a run can be opened in a spreadsheet program."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

import harness
from harness.report.csv_files import write_csv

Overrides = Callable[..., dict[str, Any]]
FORMULA = '=HYPERLINK("http://e/0")'


def cells_of(path: Path) -> list[str]:
    """All cells of a table, with its header; outside of quotes, any line break ends a line, as in a spreadsheet."""
    return [cell for line in csv.reader(io.StringIO(path.read_text(), newline=None)) for cell in line]


def begins_like_a_formula(cell: str) -> bool:
    """Whether a spreadsheet program would compute the cell, and it is no number."""
    if not cell.startswith(("=", "+", "-", "@", "\t", "\r")):
        return False
    try:
        float(cell)
    except ValueError:
        return True
    return False


def test_no_table_of_a_run_has_a_formula(tiny_overrides: Overrides, phantom_root: Path, tmp_path: Path) -> None:
    """The names of regions come from files of others."""
    data = tmp_path / "data"
    shutil.copytree(phantom_root, data)
    (names,) = data.rglob("label-regions_dseg.tsv")
    lines = names.read_text().splitlines()
    names.write_text("\n".join([*lines[:1], *(f"{line.partition(chr(9))[0]}\t{FORMULA}{line}" for line in lines[1:])]))
    overrides = tiny_overrides(tmp_path / "runs", data=data, model__width=(2, 3), attribution="random,saliency")
    result = harness.run(**overrides)
    assert result.complete
    tables = sorted(result.csv.parent.glob("*.csv"))
    assert len(tables) >= 3
    for path in tables:
        assert not [cell for cell in cells_of(path) if begins_like_a_formula(cell)], path.name
    regions = next(path for path in tables if path.name.endswith("-regions.csv"))
    assert any(cell.startswith(f"'{FORMULA}") for cell in cells_of(regions))


def test_texts_and_headers_are_no_formulas_and_numbers_are_numbers(tmp_path: Path) -> None:
    """In columns of any type."""
    table = pa.table(
        {
            "=1+1": pa.array([FORMULA, "-0.5", None, "left\r=1"], pa.string()),
            "value": pa.array([-0.5, float("-inf"), float("nan"), 2.0], pa.float64()),
            "count": pa.array([-3, 0, None, 7], pa.int64()),
            "ranked": pa.array([True, False, None, True], pa.bool_()),
        }
    )
    path = write_csv(table, tmp_path / "table.csv")
    with path.open(newline="") as file:
        found = list(csv.reader(file))
    assert found == [
        ["'=1+1", "value", "count", "ranked"],
        [f"'{FORMULA}", "-0.5", "-3", "true"],
        ["-0.5", "-inf", "0", "false"],
        ["", "", "", ""],
        ["left\n=1", "2", "7", "true"],
    ]
    assert not [cell for cell in cells_of(path) if begins_like_a_formula(cell)]
