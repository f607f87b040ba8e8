"""Content of the MLflow run of a configuration: pooled metrics, figures and group maps."""

from __future__ import annotations

import math
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.core.identity import identify, module_digest
from harness.core.task import Task
from harness.core.types import Array
from harness.data.maps import GroupMap, group_map, with_channels, write_map
from harness.pipeline.cell import Cell, is_done, restored
from harness.pipeline.group_maps import group_sums
from harness.pipeline.leaderboard import read_facts
from harness.report.drawing import listed_errors
from harness.report.figures import figures_of_one
from harness.report.figures.inversion import mask_shares
from harness.report.figures.results import Results
from harness.report.figures.scenes import scene_of
from harness.report.plots.canvas import texts_drawn
from harness.report.previews import draw_map
from harness.report.searches import winners
from harness.storage.store import CellRecord, Store, write_json
from harness.sweep.collect import Tables
from harness.sweep.plan import Plan
from harness.tuning.spaces import short

__all__ = ["chosen_tags", "pooled_files", "pooled_metrics", "pooled_of", "write_mask_shares"]

_DRAWN_BY = (
    "harness.data.maps",
    "harness.report.figures.agreement",
    "harness.report.figures.configuration",
    "harness.report.figures.inversion",
    "harness.report.figures.results",
    "harness.report.figures.scenes",
    "harness.report.plots.canvas",
    "harness.report.plots.slices",
    "harness.report.plots.subjects",
    "harness.report.previews",
    "harness.report.runs",
)


def pooled_metrics(tables: Tables, identity: str) -> dict[str, float]:
    """Values of a configuration's rows with their intervals; those of attributions are named ``attribution/metric``."""
    found: dict[str, float] = {}
    for table in (tables.prediction, tables.explanation):
        names = [f"{metric.name}{end}" for metric in read_facts(table).metrics for end in ("", "_low", "_high")]
        for line in table.to_pylist():
            if line["configuration"] == identity:
                start = f"{line['attribution']}/" if line["attribution"] else ""
                found |= {f"{start}{name}": line[name] for name in names if line.get(name) is not None}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def chosen_tags(plan: Plan, identity: str) -> dict[str, str]:
    """Tags with the values chosen by the searches of a configuration; empty without a search."""
    return {
        f"chosen.{where}": " ".join(f"{key}={short(value)}" for key, value in chosen.values.items())
        for configuration, where, chosen in winners(plan)
        if configuration.id == identity
    }


def pooled_of(plan: Plan, identity: str, metrics: dict[str, float]) -> str:
    """Digest of the content of a configuration's run; if it is unchanged, nothing is drawn and sent again."""
    own = [cell for job in plan.jobs if job.row == identity for cell in job.cells]
    done = sorted(cell.identity for cell in own if is_done(cell, plan.store))
    code = [module_digest(name) for name in _DRAWN_BY]
    return identify(
        {
            "cells": done,
            "wanted": len(own),
            "metrics": metrics,
            "anonymous": plan.request.settings.anonymous,
            **({"pseudonyms": plan.shown("sub-x")} if plan.pseudonyms else {}),
            "code": code,
        }
    )


def pooled_files(run: Results, identity: str, folder: Path) -> list[str]:
    """Write the figures and group maps of a configuration for its MLflow run.

    Parameters
    ----------
    run : results of the run
    identity : id of the configuration
    folder : folder for ``*.png`` (at the top level, as MLflow's comparison expects),
        ``maps/<attribution>_mean.nii.gz`` with a PNG for the first of each attribution,
        ``maps/<attribution>_mask_share.nii.gz`` if the most relevant voxels are inverted, and
        ``maps/none.txt`` with the reasons if there is no mean map or no mask share. A map of
        several channels has their names in a JSON file beside it

    Returns
    -------
    list of str
        Figures that could not be drawn, each with its error.
    """
    with texts_drawn(run.plan.shown):
        failed = _pooled_files(run, identity, folder)
    return [run.plan.shown(line) for line in failed]


def _pooled_files(run: Results, identity: str, folder: Path) -> list[str]:
    plan, tables = run.plan, run.tables
    anonymous = plan.request.settings.anonymous
    failed: list[str] = []
    reasons = []
    with listed_errors("figures", failed):
        for name, draw in figures_of_one(plan, tables, identity, anonymous=anonymous).items():
            with listed_errors(name, failed):
                (folder / name).write_bytes(draw())
    drawn: set[str] = set()
    for name, made in _means(plan, identity):
        if made.found.values is None:
            reason = made.found.reason.partition(":")[0] if anonymous else made.found.reason
            reasons.append(plan.shown(f"{name}: {reason}"))
            continue
        stem = folder / "maps" / f"{urllib.parse.quote(name, safe=' ')}_mean"
        _write_named(stem, made.found.values, made.found.affine, made.shown)
        if made.attribution not in drawn:
            drawn.add(made.attribution)
            with listed_errors(f"map of {name}", failed):
                _draw_mean(stem.with_name(f"{stem.name}.png"), made, plan, identity)
    with listed_errors("mask shares", failed):
        for name, reason in write_mask_shares(run, identity, folder / "maps").items():
            reasons.append(plan.shown(f"{name}, mask share: {reason.partition(':')[0] if anonymous else reason}"))
    if reasons:
        (folder / "maps").mkdir(exist_ok=True)
        (folder / "maps" / "none.txt").write_text("\n".join(reasons) + "\n", "utf-8")
    return failed


@dataclass(frozen=True)
class _Mean:
    """A group map, and the labels of its picture."""

    found: GroupMap
    attribution: str
    channels: tuple[str, ...]
    output: str = ""

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the channels, if the map has one value per channel."""
        values = self.found.values
        return self.channels if values is not None and len(self.channels) == len(values) else ()

    @property
    def title(self) -> str:
        """Title of the picture, with the number of subjects."""
        of = f" of {self.output}" if self.output else ""
        return f"{self.attribution.replace('_', ' ')}{of}: mean of {self.found.subjects} subjects"


def _means(plan: Plan, identity: str) -> Iterator[tuple[str, _Mean]]:
    """Names and mean maps of all attributions, and of all outputs if several are explained."""
    cohort = plan.groups[identity].cohort
    if any(sample.affine is None for sample in cohort.samples):
        return  # samples without a common grid have no mean map
    subjects = {sample.id: sample.subject for sample in cohort.samples}
    task = _task_of(plan, identity)
    for attribution, cells in _explained(plan, identity).items():
        channels = tuple(str(name) for name in next(iter(cells.values())).facts.get("channels", ()))
        if task.explained[attribution].judged_as_sum:
            for output, found in _of_sums(plan.store, cells, cohort.samples[0].grid.affine, subjects).items():
                yield f"{attribution}_{output}", _Mean(found, attribution, channels, output)
        else:
            affines = {sample.id: sample.grid.affine for sample in cohort.samples}
            found = group_map(plan.store, cells.values(), affines, subjects)
            yield attribution, _Mean(found, attribution, channels)


def write_mask_shares(run: Results, identity: str, folder: Path) -> dict[str, str]:
    """Write the share of the samples whose mask contains each voxel, for every explanation with inverted masks.

    Parameters
    ----------
    run : results
    identity : id of a configuration
    folder : folder for ``<attribution>_mask_share.nii.gz``, on the grid of the samples

    Returns
    -------
    dict
        Explanation without such a map → the reason.
    """
    reasons: dict[str, str] = {}
    if not run.metrics("inverted_auroc"):
        return reasons
    for attribution in _explained(run.plan, identity):
        found = mask_shares(run, identity, attribution)
        if found.values is None:
            reasons[attribution] = found.reason
            continue
        names = run.channels_of(identity)
        stem = folder / f"{urllib.parse.quote(attribution, safe=' ')}_mask_share"
        _write_named(stem, found.values, found.affine, names if len(names) == len(found.values) else ())
    return reasons


def _write_named(stem: Path, values: Array, affine: Array, channels: Sequence[str]) -> None:
    """Write a map and, if it has several channels, a JSON file with their names, which the header must not contain."""
    write_map(stem.with_name(f"{stem.name}.nii.gz"), with_channels(values, channels), affine)
    if len(channels) > 1:
        write_json(stem.with_name(f"{stem.name}.json"), {"channels": list(channels)})


def _explained(plan: Plan, identity: str) -> dict[str, dict[Cell, CellRecord]]:
    """Finished explain cells with their records, by attribution."""
    found: dict[str, dict[Cell, CellRecord]] = {}
    for job in plan.jobs:
        for cell in job.cells if job.row == identity else ():
            record = plan.store.get(cell.stage, cell.identity) if cell.stage == "explain" else None
            if record is not None:
                found.setdefault(cell.label, {})[cell] = record
    return found


def _of_sums(
    store: Store, cells: Mapping[Cell, CellRecord], affine: Array, subjects: Mapping[str, str]
) -> dict[str, GroupMap]:
    """Mean over the explained samples, by output, from cells that keep sums over blocks of subjects."""
    totals: dict[str, Array] = {}
    # One cell at a time, because at full resolution the sums of all folds take gigabytes.
    for cell, record in cells.items():
        outputs, sums = group_sums({cell: record}, store)
        for index, output in enumerate(outputs):
            totals[output] = totals.get(output, 0.0) + sums[:, index].sum(axis=0, dtype=np.float64)
    samples = [name for record in cells.values() for name in record.facts["samples"]]
    count = len({subjects[name] for name in samples})
    return {name: GroupMap((total / len(samples)).astype(np.float32), affine, count) for name, total in totals.items()}


def _task_of(plan: Plan, identity: str) -> Task:
    return restored(next(one for one in plan.configurations if one.id == identity))


def _draw_mean(path: Path, made: _Mean, plan: Plan, identity: str) -> None:
    values = made.found.values
    assert values is not None
    reads = _task_of(plan, identity).adapter().reads
    scene = scene_of(plan.groups[identity].cohort, reads, made.shown, made.output, values.shape[1:])
    picture = draw_map(
        values,
        made.found.affine,
        background=np.stack(list(scene.images.values())) if scene.images else None,
        outline=scene.outline,
        channels=made.shown,
        title=made.title,
    )
    path.write_bytes(picture)
