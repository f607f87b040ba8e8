"""CSV files of a run: the leaderboard and the other tables."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from harness.core.spreadsheets import plain_cell
from harness.report.renaming import renamed_table
from harness.storage.files import replace_file
from harness.sweep.collect import Tables, agreements, regions_of_interest
from harness.sweep.plan import Plan

__all__ = ["write_csv", "write_tables"]


def write_tables(plan: Plan, tables: Tables, shapley: pa.Table | None) -> Path:
    """Write all tables of a run.

    Parameters
    ----------
    plan : plan of the run, which also says under which names subjects are shown
    tables : tables of the run
    shapley : table from :func:`harness.pipeline.contribution.shapley_table`

    Returns
    -------
    pathlib.Path
        File of the leaderboard. The other tables are in the same folder,
        ``<run>-<what>.csv``; those that only an earlier run of this name had are removed.
    """
    path = plan.request.leaderboard_path
    beside = {
        "explanations": tables.explanation,
        "regions": tables.regions,
        "agreement": agreements(plan),
        "rois": regions_of_interest(plan),
        "shapley": shapley,
        "targets": _joined(tables.predictions_by_target),
        "targets-explanations": _joined(
            {target: one.explanation for target, one in tables.by_target.items() if one.explanation is not None}
        ),
    }
    for what, table in beside.items():
        file = path.with_name(f"{plan.request.name}-{what}.csv")
        if table is None:
            file.unlink(missing_ok=True)
        else:
            write_csv(renamed_table(table, plan.shown), file)
    return write_csv(renamed_table(tables.prediction, plan.shown), path)


def _joined(by_target: Mapping[str, pa.Table]) -> pa.Table | None:
    """One table with the target as the first column; ``None`` if there are no targets."""
    named = [
        one.add_column(0, "target", pa.array([target] * one.num_rows, pa.string())) for target, one in by_target.items()
    ]
    return (
        pa.concat_tables([one.replace_schema_metadata() for one in named], promote_options="default") if named else None
    )


def write_csv(table: pa.Table, path: str | os.PathLike[str]) -> Path:
    """Write a table as CSV, atomically.

    Parameters
    ----------
    table : the table
    path : path of the file; its folder is created if needed

    Returns
    -------
    pathlib.Path
        Path of the file. Floats have six significant digits, nulls and NaN are empty,
        and lines end with ``\\n``, so that equal tables give equal files. Text that begins like
        a formula has an apostrophe before it, see :func:`harness.core.spreadsheets.plain_cell`.
    """
    target = Path(path)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(plain_cell, table.column_names))
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
    return plain_cell(str(value))
