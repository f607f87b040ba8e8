"""Console output during and after a command."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

import pyarrow as pa
from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from harness.core.registry import METRICS
from harness.core.types import Ineligible
from harness.pipeline.cell import Job, is_done
from harness.pipeline.leaderboard import read_facts
from harness.pipeline.rows import Row
from harness.report.remarks import few_of_a_class
from harness.report.wording import board_notes, console_rows, varying_strata
from harness.storage.store import CellRecord
from harness.sweep.estimate import Estimate
from harness.sweep.plan import Plan

__all__ = [
    "Watcher",
    "console",
    "duration",
    "left_out",
    "say",
    "show_board",
    "show_estimate",
    "show_subjects",
    "show_table",
    "size",
]

_PLAIN_EVERY_S = 10.0
_WORD = 16  # characters; longer words, such as paths, may be folded in a table
_NAME = 24  # longest name that is never broken into lines
_NARROWEST = 20  # characters of the console


def console() -> Console:
    """Console of this process; 160 columns wide if the output is not a terminal, so that leaderboards fit.

    Text is printed as it is: ``[red]`` and ``:smile:`` may be part of a path.
    """
    made = Console(highlight=False, markup=False, emoji=False, soft_wrap=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = 160
    made.width = max(made.width, _NARROWEST)  # COLUMNS=0, as batch systems set it, would print nothing
    return made


def say(out: Console, text: str | Text) -> None:
    """Print a sentence; it is wrapped on a terminal only, so that paths in files and pipes are not broken."""
    out.print(text, soft_wrap=not out.is_terminal)


class Watcher:
    """Shows the progress of a run: a live bar on a terminal, plain lines elsewhere."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._started_s = time.monotonic()
        self._plan: Plan | None = None
        self._todo = self._done = self._failed = 0
        self._open: dict[tuple[str, int, int], int] = {}  # running trainings and the number of their remaining cells
        self._scores: dict[str, list[float]] = defaultdict(list)
        self._printed_s = 0.0
        self._live: Live | None = None
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=min(30, max(8, out.width // 5))),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            console=out,
        )
        self._bar = self._progress.add_task("cells", total=None, left="", visible=False)

    def message(self, text: str) -> None:
        """Print a message for the user."""
        say(self._out, Text("· ", style="dim") + Text(text))

    def planned(self, plan: Plan, todo: int) -> None:
        """Print a summary of the plan and start the bar."""
        self._plan, self._todo = plan, todo
        few = few_of_a_class(group.cohort for group in plan.groups.values())
        for sentence in (*left_out(plan.cohort.ineligible), *plan.notes, *few):
            self.message(sentence)
        self.message(f"source of the truth: {plan.cohort.label_source}")
        done = len(plan.cells) - todo
        self.message(
            f"{counted(len(plan.configurations), 'configuration')}, {counted(len(plan.jobs), 'training')}, "
            f"{counted(len(plan.cells), 'cell')}: "
            f"{done} done, {todo} to do"
        )
        if not todo:
            return
        self._started_s = time.monotonic()
        if self._out.is_terminal:
            self._progress.update(self._bar, total=todo, visible=True)
            self._live = Live(self._picture(), console=self._out, refresh_per_second=4, transient=True)
            self._live.start()

    def started(self, job: Job) -> None:
        """Note that a job started."""
        key = (job.row, job.fold, job.seed)
        self._open[key] = self._open.get(key, 0) + len(job.cells)
        self._update()

    def committed(self, record: CellRecord, objective: float) -> None:
        """Count a cell that is done or failed."""
        if record.state == "done":
            self._done += 1
        else:
            self._failed += 1
            self.message(f"failed: {record.stage} {record.label} fold {record.fold} seed {record.seed}: {record.error}")
        self._close(record)
        if not math.isnan(objective):
            self._scores[record.configuration].append(objective)
        self._update()

    def ended(self) -> None:
        """Stop the bar and print a summary."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._todo:
            took = duration(time.monotonic() - self._started_s)
            self.message(f"{self._done} cells done, {self._failed} failed, in {took}")
            self._todo = 0

    def _close(self, record: CellRecord) -> None:
        """Count down the remaining cells of a training; if the training failed, none remains."""
        key = (record.configuration, record.fold, record.seed)
        self._open[key] = self._open.get(key, 0) - 1
        if self._open[key] <= 0 or (record.state == "failed" and record.stage == "train"):
            del self._open[key]

    def _update(self) -> None:
        if self._live is not None:
            left = self._left()
            self._progress.update(self._bar, completed=self._done + self._failed, left=left)
            self._live.update(self._picture())
        elif time.monotonic() - self._printed_s > _PLAIN_EVERY_S:
            self._printed_s = time.monotonic()
            best = self._best()
            self.message(
                f"{self._done + self._failed}/{self._todo} cells, {len(self._open)} trainings running, "
                f"{self._failed} failed"
                + (f", {left}" if (left := self._left()) else "")
                + (f"; best so far {best}" if best else "")
            )

    def _left(self) -> str:
        """Remaining time, once 5 % of the cells are done; before that, the start of Ray dominates."""
        ended = self._done + self._failed
        if ended < self._todo / 20:
            return ""
        return f"{duration((time.monotonic() - self._started_s) / ended * (self._todo - ended))} left"

    def _best(self) -> str:
        """Configuration with the best mean objective so far; empty if there is none."""
        if not self._scores or self._plan is None:
            return ""
        task = self._plan.request.task
        facts = METRICS.get(METRICS.name_of(task.metrics[task.objective].func)).facts
        best = max if facts["direction"] == "higher" else min
        identity = best(self._scores, key=lambda key: statistics.fmean(self._scores[key]))
        configuration = next(one for one in self._plan.configurations if one.id == identity)
        name = " ".join(str(value) for value in configuration.axes.values())
        values = self._scores[identity]
        return f"{name} {self._plan.request.task.objective} {statistics.fmean(values):.3f} ({len(values)} trainings)"

    def _picture(self) -> Table:
        picture = Table.grid(padding=(0, 1))
        picture.add_row(self._progress)
        best = self._best()
        state = f"  {len(self._open)} trainings running, {self._failed} failed"
        picture.add_row(Text(f"  best so far: {best}{state}" if best else "  training …", style="dim"))
        return picture


def show_board(out: Console, board: pa.Table, title: str, *, shown: Sequence[str] = (), most: int = 40) -> None:
    """Print a leaderboard.

    Parameters
    ----------
    out : console to print to
    board : the leaderboard
    title : title of the table
    shown : metrics to show in addition to the objective
    most : largest number of rows; the CSV file has all of them
    """
    facts, strata = read_facts(board), varying_strata(board)
    header, rows = console_rows(board, shown=shown)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    textual = {*facts.axes, *facts.strata, "attribution", "status"}
    for name in header:
        style = "bold" if name == facts.objective else ""
        table.add_column(name, justify="left" if name in textual else "right", style=style)
    rankings = [tuple(line[name] for name in strata) for line in board.to_pylist()]
    for row, ranking, following in zip(rows[:most], rankings, [*rankings[1:], None], strict=False):
        table.add_row(*map(Text, row), style="" if row[0] else "dim", end_section=following not in (ranking, None))
    _show(out, table, header, rows[:most])
    if len(rows) > most:
        out.print(f"{len(rows) - most} more rows in the CSV file", style="dim")
    if any(row[0].endswith("=") for row in rows):
        within = f" with the same {' and '.join(strata)}" if strata else ""
        out.print(f"=  not distinguishable from the first{within} (paired t, Bonferroni over all pairs)", style="dim")
    for note in board_notes(board):
        out.print(note, style="dim")


def show_subjects(out: Console, board: pa.Table, pooled: Sequence[Row]) -> None:
    """Print the objective of each subject, for cohorts that are too small for a ranking.

    Parameters
    ----------
    out : console to print to
    board : the leaderboard
    pooled : pooled results of the configurations on the board
    """
    facts = read_facts(board)
    if facts.metric(facts.objective).level == "pooled":
        return  # its values of subjects are pseudo-values
    by_id = {row.configuration: row for row in pooled}
    ordered = [by_id[identity] for identity in board.column("configuration").to_pylist()]
    subjects = sorted({subject for row in ordered for subject in row.values.get(facts.objective, {})})
    table = Table(title=f"{facts.objective} of each subject", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in (*facts.axes, *subjects):
        table.add_column(name, justify="right" if name in subjects else "left")
    rows = []
    for row in ordered:
        values = row.values.get(facts.objective, {})
        cells = [_mean_text(values.get(subject, {})) for subject in subjects]
        rows.append([*(str(row.axes.get(name, "")) for name in facts.axes), *cells])
        table.add_row(*rows[-1])
    _show(out, table, [*facts.axes, *subjects], rows)


def _mean_text(by_seed: Mapping[int, float]) -> str:
    known = [value for value in by_seed.values() if not math.isnan(value)]
    return f"{statistics.fmean(known):.3f}" if known else "–"


def left_out(ineligible: Sequence[Ineligible]) -> list[str]:
    """Messages listing the subjects that were left out, one message per reason."""
    reasons: dict[str, list[str]] = {}
    for one in ineligible:
        reasons.setdefault(one.reason, []).append(one.subject)
    return [f"left out {len(who)} ({why}): {', '.join(who)}" for why, who in reasons.items()]


def show_table(out: Console, header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a plain table."""
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in zip(header, *rows, strict=True):
        table.add_column(column[0], overflow="fold", no_wrap=_is_of_names(column))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    _show(out, table, header, rows)


def _show(out: Console, table: Table, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; on a console that is too narrow for its columns, one line per cell."""
    columns = list(zip(header, *rows, strict=True))
    if sum(map(_narrowest, columns)) + 2 * len(columns) <= out.width:
        out.print(table)
        return
    if table.title:
        out.print(table.title)
    for row in rows:
        out.print()
        for name, cell in zip(header, row, strict=True):
            if cell.strip():
                out.print(Text(f"{name}: {cell}" if name else cell), overflow="fold")
    out.print()


def _narrowest(column: Sequence[str]) -> int:
    """Width below which a column is hard to read: that of its longest word; words that are longer are folded."""
    longest = max((len(word) for cell in column for word in cell.split()), default=0)
    return longest if _is_of_names(column) else min(_WORD, longest)


def _is_of_names(column: Sequence[str]) -> bool:
    """Whether all cells are short single words, such as kinds of faults, which are not broken into lines."""
    return all(" " not in cell and len(cell) <= _NAME for cell in column)


def show_estimate(out: Console, made: Plan, cost: Estimate) -> None:
    """Print what a run would do and its estimated cost."""
    counts: dict[str, list[int]] = {one.id: [0, 0, 0] for one in made.configurations}
    for job in made.jobs:
        counts[job.row][0] += 1
        for cell in job.cells:
            counts[job.row][1] += 1
            counts[job.row][2] += is_done(cell, made.store)
    axes = list(dict.fromkeys(name for one in made.configurations for name in one.axes))
    rows = [
        [one.id[:10], *(str(one.axes.get(name, "")) for name in axes), *map(str, counts[one.id])]
        for one in made.configurations
    ]
    show_table(out, ["configuration", *axes, "trainings", "cells", "done"], rows)
    say(out, made.sentence)
    say(
        out,
        f"{cost.cells} cells to do, {cost.done} done. "
        f"{cost.time_text.capitalize() if cost.seconds == 0 else f'About {cost.time_text}'} "
        f"with {cost.workers} at a time on {cost.where}, "
        f"{size(cost.memory_bytes)} of memory each in addition to the libraries (about 0.7 GB), "
        f"{size(cost.disk_bytes)} of disk.",
    )
    if cost.unknown:
        say(out, f"Some networks could not be timed, and the estimate lacks their time: {cost.unknown}")


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """Seconds as text with a suitable unit."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes as text with a suitable unit."""
    for unit, step in (("GB", 1e9), ("MB", 1e6)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"
