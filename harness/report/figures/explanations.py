"""Figures of explanations: comparison of methods, maps of one subject, and maps summed over subjects."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from harness.core.types import Array, Score
from harness.pipeline.group_maps import group_sums
from harness.pipeline.leaderboard import read_facts
from harness.report import plots
from harness.report.elements import Figure
from harness.report.figures.examples import SIDES, slice_of, true_mask
from harness.report.figures.results import MARK, Results, score_in
from harness.report.figures.scenes import Scene, scene_of
from harness.report.remarks import UNRANKED

__all__ = ["group_map_figures", "map_figures", "method_figures"]


def group_map_figures(run: Results) -> Iterator[Figure]:
    """Summed maps, one figure per output, with the truth outlined if known.

    With a known truth, the maps of the first configuration are drawn, since the table ranks
    the maps of all others. Without it, nothing ranks maps, and those of all configurations
    are drawn.
    """
    for identity in _with_maps(run):
        cohort = run.plan.groups[identity].cohort
        if any(sample.affine is None for sample in cohort.samples):
            continue  # samples without a common grid have no summed maps
        for output, maps in _summed_maps(run, identity).items():
            first = next(iter(maps.values()))
            reads = run.task_of(identity).adapter().reads
            scene = scene_of(cohort, reads, reads.images, output, first.shape[1:])
            if len(scene.images) in (1, len(first)):
                yield _group_map(run, identity, output, maps, scene)


def _with_maps(run: Results) -> list[str]:
    """Ids of the configurations whose summed maps are drawn: the first, and all of measured scores."""
    first = next((key for key in run.leaders if MARK not in run.labels[key]), None)
    return [
        key
        for keys in run.problems.values()
        for key in keys
        if key == first or run.plan.groups[key].cohort.truth is None
    ]


def _group_map(run: Results, identity: str, output: str, maps: Mapping[str, Array], scene: Scene) -> Figure:
    """Maps (C, X, Y, Z) of all attributions in one slice; with a single background image, only the first channel."""
    grid = run.plan.groups[identity].cohort.samples[0].grid
    images, outline = scene.images, scene.outline
    busy = np.any([image > 0 for image in images.values()], axis=0) if outline is None else outline
    at = int(np.argmax(busy.sum(axis=(0, 1))))
    where = "with its highest sum" if outline is None else "with most of the outlined region"
    rank = f" No truth is known. {UNRANKED.format(run.objective)}" if outline is None else ""
    centre = [*(np.array(busy.shape[:2]) - 1) / 2, at, 1]
    height_mm = float((grid.affine @ centre)[2])
    return Figure(
        f"Maps of {output}, {run.labels[identity]}",
        f"Sum over all tested subjects on the {scene.caption} (grey), in the axial slice {where} (z = {height_mm:.0f} "
        f"mm at its centre). {SIDES} Red: evidence for a higher value. Blue: for a lower one.{rank}",
        plots.attribution_slices(
            images,
            {label: dict(zip(images, one, strict=False)) for label, one in maps.items()},
            np.zeros(busy.shape, dtype=bool) if outline is None else outline,
            spacing_mm=grid.spacing_mm,
            index=at,
        ),
        section="Explanations",
    )


_AVERAGED = {
    "subject": "Mean {} over subjects",
    "pooled": "{} of the maps summed over subjects",
    "mixed": "Mean {0} over subjects, or {0} of the maps summed over subjects,",
}
"""What a value is, by the level of the metric."""


def method_figures(run: Results) -> Iterator[Figure]:
    """Explanation objective of every attribution method on every configuration."""
    table = run.tables.explanation
    if not table.num_rows:
        return
    name = read_facts(table).objective
    by_method: dict[str, dict[str, Score]] = {}
    for line in table.to_pylist():
        if line[name] is not None:
            row = by_method.setdefault(line["attribution"].replace("_", " "), {})
            row[run.labels[line["configuration"]]] = score_in(line, name)
    if not by_method:
        return
    chances = [score.chance for rows in by_method.values() for score in rows.values() if math.isfinite(score.chance)]
    yield Figure(
        "Attribution methods",
        f"{_AVERAGED[read_facts(table).metric(name).level].format(name)} with 95 % interval, for each method on each "
        "configuration. "
        "A method that does not exceed the controls is not informative.",
        plots.grouped_intervals(by_method, x_label=name, chance=float(np.mean(chances)) if chances else math.nan),
        section="Explanations",
    )


def map_figures(run: Results) -> Iterator[Figure]:
    """Maps of one subject, for the configuration with the most channels."""
    identity = max(run.lines, key=lambda key: len(run.channels_of(key)), default=None)
    chosen = {} if identity is None else run.chosen_subjects(identity)
    if identity is None or not chosen:
        return
    channels = run.channels_of(identity)
    subject = chosen.get("median") or next(iter(chosen.values()))
    sample = run.sample_of(identity, subject)
    truth = true_mask(sample)
    if truth is None or any(name not in sample.images for name in channels):
        return
    box, at = slice_of(sample, truth)
    maps = {}
    for attribution in run.task.attributions:
        one = run.explanation(identity, attribution, sample.id)
        if one is not None and one.shape == (len(channels), *truth.shape):
            maps[attribution] = {name: one[index][box] for index, name in enumerate(channels)}
    if not maps:
        return
    images = {name: np.asarray(sample.images[name].load())[box] for name in channels}
    yield Figure(
        f"Maps of {subject}, {run.labels[identity]}",
        f"Attribution per channel, one row per method, each with its own colour scale. Red: evidence for the "
        f"target. Blue: evidence against it. Orange: true outline. Axial slice {at + 1} of {truth.shape[2]}. "
        f"{SIDES} Methods with one value per channel colour the whole slice.",
        plots.attribution_slices(images, maps, truth[box], spacing_mm=sample.grid.spacing_mm, index=at),
        broad=True,
        section="Explanations",
    )


def _summed_maps(run: Results, identity: str) -> dict[str, dict[str, Array]]:
    """Sums (C, X, Y, Z) over test subjects of all folds and seeds, by output and attribution, where sums are kept."""
    store = run.plan.store
    cells = [cell for job in run.plan.jobs if job.row == identity for cell in job.cells if cell.stage == "explain"]
    maps: dict[str, dict[str, Array]] = {}
    for label in dict.fromkeys(cell.label for cell in cells if run.task.explained[cell.label].summed):
        found = {cell: store.get("explain", cell.identity) for cell in cells if cell.label == label}
        own = {cell: record for cell, record in found.items() if record is not None}
        outputs, sums = group_sums(own, store) if own else ((), np.empty(0))
        for index, output in enumerate(outputs):
            maps.setdefault(output, {})[label] = sums[:, index].sum(axis=0, dtype=np.float64)
    return maps
