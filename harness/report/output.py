"""Write the report of a run, and the list of reports of its task."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import time
import urllib.parse
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from harness.core.types import JSON
from harness.pipeline.cell import failure_of, is_done
from harness.pipeline.contribution import shapley_table
from harness.pipeline.leaderboard import read_facts
from harness.report.drawing import listed_errors
from harness.report.elements import Cell, Figure, ReportTable
from harness.report.figures import figures_of
from harness.report.figures.results import MARK, Results
from harness.report.page import write_list_of_runs, write_report
from harness.report.plots.canvas import texts_drawn
from harness.report.remarks import remarks
from harness.report.renaming import renamed
from harness.report.runs import write_mask_shares
from harness.report.tables import report_tables
from harness.report.wording import failure_lines, verdict
from harness.storage.bucket import Bucket
from harness.storage.store import CellRecord
from harness.sweep.collect import Tables
from harness.sweep.plan import Plan
from harness.sweep.resume import known_runs, latest_run

__all__ = ["make_report", "shapley_of", "undone"]


def shapley_of(plan: Plan, tables: Tables) -> pa.Table | None:
    """Shapley values of the input channels for the objective; ``None`` unless every set of channels was run."""
    facts = read_facts(tables.prediction)
    rows = {key: pooled.prediction for key, pooled in tables.pooled.items()}
    return shapley_table(plan.configurations, rows, facts.metric(facts.objective))


def undone(plan: Plan) -> tuple[tuple[CellRecord, ...], int]:
    """Failed cells of a run, and the number of cells that are neither done nor failed."""
    waiting = [cell for cell in plan.cells if not is_done(cell, plan.store)]
    found = [(cell, failure_of(cell, plan.store)) for cell in waiting]
    # Configurations may share a training, whose record has the id of one of them.
    failures = tuple(
        dataclasses.replace(one, configuration=cell.configuration) for cell, one in found if one is not None
    )
    return failures, len(waiting) - len(failures)


def make_report(run: Results) -> Path:
    """Write the HTML page of a run, its figures as files, and the list of the task's reports.

    Parameters
    ----------
    run : results of the run

    Returns
    -------
    pathlib.Path
        The page, ``reports/<task>/<run>/index.html``. Maps of where the masks of
        explanations agree are in ``maps/`` beside it. Figures and maps of an earlier report
        of the run are removed.
    """
    plan, tables = run.plan, run.tables
    task, folder = plan.request.task, plan.request.report_folder
    with texts_drawn(plan.shown):
        figures, undrawn = figures_of(run)
    figures = renamed(figures, plan.shown)
    _write_figures(folder, figures)
    with listed_errors("maps", undrawn):
        _write_maps(run, folder / "maps")
    failures, missing = undone(plan)
    notes = [plan.sentence, f"Source of the truth: {plan.cohort.label_source}."]
    notes += [f"Data: {note}." for note in plan.notes]
    notes += failure_lines(failures, tables.prediction)
    notes += [f"Some figures could not be drawn. {line}" for line in undrawn]
    if missing:
        notes.append(f"{missing} cells are missing; repeat the command to run them.")
    page = write_report(
        folder / "index.html",
        title=task.name,
        run=plan.request.name,
        question=task.question,
        source=task.source,
        figures=figures,
        shown=task.shown,
        **renamed(
            {
                "verdict": "\n".join(
                    [verdict(tables.prediction, tables.predictions_by_target), *remarks(plan, tables)]
                ),
                "leaderboard": tables.prediction,
                "explanations": tables.explanation if tables.explanation.num_rows else None,
                "by_target": {target: (one.prediction, one.explanation) for target, one in tables.by_target.items()},
                "tables": report_tables(plan, tables, shapley_of(plan, tables)),
                "provenance": _provenance(plan),
                "notes": notes,
                "ineligible": plan.cohort.ineligible,
            },
            plan.shown,
        ),
    )
    _write_list(plan)
    return page


def _write_figures(folder: Path, figures: Sequence[Figure]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("[0-9][0-9]-*.png"):
        stale.unlink()
    for number, figure in enumerate(figures, 1):
        slug = "-".join(re.findall(r"\w+", figure.title.lower()))[:60]
        if isinstance(figure.image, bytes):
            (folder / f"{number:02d}-{slug}.png").write_bytes(figure.image)


def _write_maps(run: Results, folder: Path) -> None:
    """Write where the masks of explanations agree, as NIfTI, in a folder for each configuration."""
    if folder.is_dir():
        shutil.rmtree(folder)  # of an earlier report
    labels = [run.labels[identity].removesuffix(MARK) for identity in run.lines]
    for identity, label in zip(run.lines, labels, strict=True):
        name = "-".join(re.findall(r"[\w.+=]+", label))
        own = folder / (name if labels.count(label) == 1 else f"{name}-{identity[:8]}")
        reasons = write_mask_shares(run, identity, own)
        if reasons:
            own.mkdir(parents=True, exist_ok=True)
            lines = [run.plan.shown(f"{attribution}: {reason}\n") for attribution, reason in reasons.items()]
            (own / "none.txt").write_text("".join(lines), "utf-8")


def _write_list(plan: Plan) -> None:
    """Write ``reports/<task>/index.html``, the list of reports of a task, the latest run first."""
    task, folder = plan.request.task, plan.request.report_folder.parent
    latest = latest_run(plan.store, task.name)
    runs = {one.name: one for one in known_runs(plan.store, task.name)}
    written = _in_bucket(plan)
    written |= {name: page.stat().st_mtime for name in runs if (page := folder / name / "index.html").is_file()}
    known = sorted(
        (runs[name] for name in written if name in runs), key=lambda one: (one.name != latest, -written[one.name])
    )
    lines = [
        (
            Cell(one.name, "wrap", link=f"{urllib.parse.quote(one.name)}/index.html"),
            Cell("latest" if one.name == latest else ""),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(written[one.name])),
            one.profile,
            Cell(str(one.configurations), "number"),
            Cell(plan.shown(one.command), "wrap"),
        )
        for one in known
    ]
    columns = ("run", "", "report written", "profile", "configurations", "command")
    note = "harness leaderboard and harness report show the latest run; set run=NAME to show another one."
    write_list_of_runs(
        folder / "index.html",
        title=task.name,
        question=task.question,
        source=task.source,
        runs=ReportTable("Runs", columns, tuple(lines), note),
    )


def _in_bucket(plan: Plan) -> dict[str, float]:
    """Reports of the task that are in the bucket of the run, and when they were written, seconds since 1970."""
    if not plan.request.settings.bucket:
        return {}
    bucket = Bucket(plan.request.settings.bucket).below(f"reports/{plan.request.task.name}")
    pages = [name for name in bucket.files() if name.count("/") == 1 and name.endswith("/index.html")]
    return {name.partition("/")[0]: bucket.written(name) / 1e9 for name in pages}


def _provenance(plan: Plan) -> dict[str, JSON]:
    first = plan.configurations[0]
    return {
        "command": plan.request.command,
        "profile": first.profile,
        "cohort": f"{plan.cohort.name}, {len(plan.cohort.subjects)} subjects",
        "folds": len({job.fold for job in plan.jobs}),
        "seeds": ", ".join(map(str, plan.request.seeds)),
        "recipe": json.dumps(first.task["recipe"]),
        "model": json.dumps(first.task["model"]),
        **_hardware(plan),
    }


def _hardware(plan: Plan) -> dict[str, JSON]:
    """Hardware of the trainings; differing values are joined."""
    found: dict[str, dict[str, None]] = {}
    for cell in plan.cells:
        record = plan.store.get(cell.stage, cell.identity) if cell.stage == "train" else None
        for key, value in record.hardware.items() if record is not None else ():
            found.setdefault(key, {})[str(value)] = None
    return {key: ", ".join(filter(None, values)) for key, values in found.items()}
