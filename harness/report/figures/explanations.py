"""Figures of explanations: methods compared, maps of one subject, and maps summed over subjects."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from harness.core.types import Array, Cohort, Score
from harness.pipeline.group_maps import group_sums, lesion_counts, target_mask
from harness.pipeline.leaderboard import read_facts
from harness.report import plots
from harness.report.elements import Figure
from harness.report.figures.examples import SIDES, slice_of, true_mask
from harness.report.figures.results import MARK, Results, score_in

__all__ = ["group_map_figures", "map_figures", "method_figures"]


def group_map_figures(run: Results) -> Iterator[Figure]:
    """The summed maps of the first configuration, a picture per score, the truth outlined where it is known."""
    leader = next((key for key in run.leaders if MARK not in run.labels[key]), None)
    if leader is None or not run.task.summed:
        return
    maps = _summed_maps(run, leader)
    if not maps:
        return
    cohort = run.plan.groups[leader].cohort
    counts = lesion_counts(cohort) if cohort.truth is None else np.asarray(cohort.truth.counts.load())
    for output, of_score in maps.items():
        target = None if cohort.truth is None else target_mask(cohort.truth, output)
        where = "with most lesioned voxels; no truth is known" if target is None else "with most of the outlined region"
        at = int(np.argmax((counts > 0).sum(axis=(0, 1)) if target is None else target.sum(axis=(0, 1))))
        yield Figure(
            f"Maps of {output}, {run.labels[leader]}",
            "Sum over all tested patients on the number of lesions (grey), in the axial slice "
            f"{where} (z = {_height_mm(cohort, counts.shape, at):.0f} mm at its centre); the patients' left is on the "
            "left. Red: evidence for a higher score. Blue: for a lower one.",
            plots.attribution_slices(
                {"number of lesions": counts},
                {label: {"number of lesions": one} for label, one in of_score.items()},
                target if target is not None else np.zeros(counts.shape, dtype=bool),
                spacing_mm=cohort.samples[0].grid.spacing_mm,
                index=at,
            ),
            section="Explanations",
        )


def method_figures(run: Results) -> Iterator[Figure]:
    """Every attribution method on every configuration, by the objective of explanations."""
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
        f"Mean {name} over subjects with its 95 % interval, each method on each configuration. "
        "A method is worth its time where it does better than the controls.",
        plots.grouped_intervals(by_method, x_label=name, chance=float(np.mean(chances)) if chances else math.nan),
        section="Explanations",
    )


def map_figures(run: Results) -> Iterator[Figure]:
    """The maps of one subject, of the configuration with most channels."""
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
        f"Attribution per channel, a row per method with its own colour scale. Red: evidence for a lesion. Blue: "
        f"against one. Orange: the true outline. Axial slice {at + 1} of {truth.shape[2]}. {SIDES} A method that gives "
        "one number per channel tints the whole slice.",
        plots.attribution_slices(images, maps, truth[box], spacing_mm=sample.grid.spacing_mm, index=at),
        broad=True,
        section="Explanations",
    )


def _summed_maps(run: Results, identity: str) -> dict[str, dict[str, Array]]:
    """Output → attribution → sum over the tested subjects of all folds and seeds, first channel."""
    cells = [cell for job in run.plan.jobs if job.row == identity for cell in job.cells if cell.stage == "explain"]
    maps: dict[str, dict[str, Array]] = {}
    for label in dict.fromkeys(cell.label for cell in cells):
        own = [cell for cell in cells if cell.label == label and run.plan.store.get("explain", cell.identity)]
        outputs, sums = group_sums(own, run.plan.store) if own else ((), np.empty(0))
        for index, output in enumerate(outputs):
            maps.setdefault(output, {})[label] = sums[:, index, 0].sum(axis=0, dtype=np.float64)
    return maps


def _height_mm(cohort: Cohort, shape: tuple[int, ...], at: int) -> float:
    """Height of the centre of an axial slice."""
    x, y = (np.array(shape[:2]) - 1) / 2
    return float((cohort.samples[0].grid.affine @ [x, y, at, 1])[2])
