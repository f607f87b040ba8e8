"""Tables as CSV files: the leaderboard of a run and what lies beside it."""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.storage.files import replace_file
from harness.sweep.collect import Tables, agreements, regions_of_interest
from harness.sweep.plan import Plan

__all__ = ["write_csv", "write_tables"]


def write_tables(plan: Plan, tables: Tables, shapley: pa.Table | None) -> Path:
    """Write every table of a run.

    Parameters
    ----------
    shapley : of :func:`harness.pipeline.contribution.shapley_table`

    Returns
    -------
    pathlib.Path
        The leaderboard. The others lie beside it, ``<run>-<what>.csv``; a table that
        an earlier run of this name had and this one lacks is removed.
    """
    path = plan.request.leaderboard_path
    beside = {
        "explanations": tables.explanation,
        "regions": tables.regions,
        "agreement": agreements(plan),
        "rois": regions_of_interest(plan),
        "shapley": shapley,
    }
    for what, table in beside.items():
        file = path.with_name(f"{plan.request.name}-{what}.csv")
        if table is None:
            file.unlink(missing_ok=True)
        else:
            write_csv(table, file)
    return write_csv(tables.prediction, path)


def write_csv(table: pa.Table, path: str | os.PathLike[str]) -> Path:
    """Write a table as CSV, whole or not at all.

    Parameters
    ----------
    table : any
    path : the file; its folder is made if needed

    Returns
    -------
    pathlib.Path
        The file. Floats have six significant digits, nulls and NaN are empty,
        lines end in a bare newline: equal tables give equal bytes.
    """
    target = Path(path)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.column_names)
    for line in table.to_pylist():
        writer.writerow([_cell(line[name]) for name in table.column_names])
    replace_file(target, buffer.getvalue())
    return target


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value + 0.0:.6g}"
    return str(value)
