"""Figures of cohorts of pictures: mean maps of each explained scalar, and some pictures with their maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from harness.core.registry import ATTRIBUTIONS
from harness.core.types import Array, Cohort, Sample
from harness.data.maps import read_maps
from harness.pipeline.artifacts import EXAMPLES, read_parts
from harness.report import plots
from harness.report.elements import Figure
from harness.report.figures.results import MARK, Results

__all__ = ["picture_figures"]

_IMAGE = "rgb"
_AVERAGED = 100  # largest number of pictures whose maps are averaged
_FEWEST = 10  # a mean of fewer pictures could show one of them
_MOST_COLUMNS = 4

_HIDDEN = (
    "Pictures of this data set are not shown, and neither is their mean: set show_images=true to show them, if the "
    "terms of the data allow it."
)


def picture_figures(run: Results) -> Iterator[Figure]:
    """For each explained scalar, the mean maps of the configurations that explain it, and examples.

    Pictures of a cohort that is private are drawn only with ``show_images=true``.
    """
    sound = [key for keys in run.problems.values() for key in keys if MARK not in run.labels[key]]
    own = [key for key in sound if _of_pictures(run.plan.groups[key].cohort)]
    if not own:
        return
    shown = run.plan.request.settings.show_images or not any(run.plan.groups[key].cohort.private for key in own)
    explained = {key: _scalars(run, key, shown=shown) for key in own}
    for scalar in dict.fromkeys(name for of in explained.values() for name in of):
        keys = [key for key in own if explained[key].get(scalar)][:_MOST_COLUMNS]
        maps = {key: {label: _maps(run, key, label, scalar) for label in explained[key][scalar]} for key in keys}
        yield from _means(run, scalar, maps, shown=shown)
        if shown:
            most = max(keys, key=lambda key: (len(explained[key]), len(explained[key][scalar])))
            yield from _examples(run, scalar, most, maps)
            for label in explained[most][scalar]:
                yield from _scales(run, scalar, most, label, maps[most][label])


def _of_pictures(cohort: Cohort) -> bool:
    return all(_IMAGE in sample.images and sample.affine is None for sample in cohort.samples)


def _scalars(run: Results, identity: str, *, shown: bool) -> dict[str, list[str]]:
    """Explained scalars of a configuration, with the labels of the explanations that have maps of each picture."""
    found: dict[str, list[str]] = {}
    for cell in _cells(run, identity):
        record = run.plan.store.get("explain", cell)
        label = "" if record is None else record.label
        if record is None or not run.task.explained[label].mapped:
            continue
        name = ATTRIBUTIONS.name_of(run.task.attributions[label].func)
        if shown or not ATTRIBUTIONS.get(name).facts.get("shows_input"):
            for output in record.facts["outputs"]:
                labels = found.setdefault(output, [])
                labels += [label] if label not in labels else []
    return found


def _cells(run: Results, identity: str) -> list[str]:
    """Identities of the explain cells of the first seed."""
    seed = run.plan.request.seeds[0]
    own = [job for job in run.plan.jobs if job.row == identity and job.seed == seed]
    return [cell.identity for job in own for cell in job.cells if cell.stage == "explain"]


def _maps(run: Results, identity: str, label: str, scalar: str) -> dict[str, Array]:
    """Maps (H, W) of some tested pictures, summed over channels, by sample."""
    found: dict[str, Array] = {}
    for cell in _cells(run, identity):
        record = run.plan.store.get("explain", cell)
        if record is None or record.label != label or len(found) >= _AVERAGED:
            continue
        chosen = list(record.facts["samples"])[: _AVERAGED - len(found)]
        maps = read_maps(run.plan.store, record, chosen, output=scalar)
        found |= {name: one.sum(axis=0, dtype=np.float64) for name, one in maps.items()}
    return found


def _means(
    run: Results, scalar: str, maps: Mapping[str, Mapping[str, Mapping[str, Array]]], *, shown: bool
) -> Iterator[Figure]:
    """Mean maps, one column per configuration."""
    pictures: dict[str, Array] = {}
    outlines: dict[str, Array] = {}
    panels: dict[str, dict[str, Array]] = {}
    counts = []
    for key, by_label in maps.items():
        column = run.labels[key]
        samples = _samples(run, key, [name for of in by_label.values() for name in of])
        if len({sample.shape for sample in samples}) != 1 or (not shown and len(samples) < _FEWEST):
            continue
        counts.append(len(samples))
        if shown:
            pictures[column] = np.mean([_picture(sample) for sample in samples], axis=0)
        truths = [truth for sample in samples if (truth := sample.truth_of(scalar)) is not None]
        if len(truths) == len(samples):
            outlines[column] = np.mean([truth.load() > 0 for truth in truths], axis=0) >= 0.5
        for label, of in by_label.items():
            if of:
                panels.setdefault(label, {})[column] = np.mean([_scaled(one) for one in of.values()], axis=0)
    if not panels:
        return
    shape = next(iter(next(iter(panels.values())).values())).shape
    outlined = " Orange: pixels that determine the target in at least half of the pictures." if outlines else ""
    yield Figure(
        f"Mean maps of {scalar}",
        f"Mean over {max(counts)} tested pictures, each map scaled by its largest value. Red: evidence for a higher "
        f"value; squared maps have no sign.{outlined}{'' if shown else f' {_HIDDEN}'}",
        plots.picture_maps(pictures, panels, outlines, shape=(shape[0], shape[1])),
        section="Explanations",
    )


def _examples(
    run: Results, scalar: str, key: str, maps: Mapping[str, Mapping[str, Mapping[str, Array]]]
) -> Iterator[Figure]:
    """Some tested pictures with their maps."""
    by_label = maps[key]
    names = sorted(set.intersection(*(set(of) for of in by_label.values())))[:EXAMPLES]
    samples = _samples(run, key, names)
    if not samples or len({sample.shape for sample in samples}) != 1:
        return
    truths = {sample.id: sample.truth_of(scalar) for sample in samples}
    yield Figure(
        f"Pictures with maps of {scalar}, {run.labels[key]}",
        "The first tested pictures by name, not chosen by their maps. Each map is scaled by its largest value. Red: "
        "evidence for a higher value; squared maps have no sign. Orange: pixels that determine the target, if known.",
        plots.picture_maps(
            {sample.id: _picture(sample) for sample in samples},
            {label: {sample.id: of[sample.id] for sample in samples} for label, of in by_label.items()},
            {name: np.asarray(truth.load() > 0) for name, truth in truths.items() if truth is not None},
            shape=(samples[0].shape[0], samples[0].shape[1]),
        ),
        broad=True,
        section="Explanations",
    )


def _scales(run: Results, scalar: str, key: str, label: str, combined: Mapping[str, Array]) -> Iterator[Figure]:
    """Some tested pictures with the maps that a method combines, such as those of several scales."""
    parts: dict[str, dict[str, Array]] = {}
    for cell in _cells(run, key):
        record = run.plan.store.get("explain", cell)
        if record is not None and record.label == label:
            parts |= read_parts(run.plan.store, record, scalar)
    samples = _samples(run, key, [name for name in sorted(parts) if name in combined][:EXAMPLES])
    if not samples:
        return
    rows: dict[str, dict[str, Array]] = {}
    for sample in samples:
        for name, one in parts[sample.id].items():
            rows.setdefault(name, {})[sample.id] = one
    truths = {sample.id: sample.truth_of(scalar) for sample in samples}
    yield Figure(
        f"Scales of {label}, {run.labels[key]}",
        f"The maps that {label} combines, and their combination in the last row, for the first tested pictures by "
        "name. Each map is scaled by its largest value. Orange: pixels that determine the target, if known.",
        plots.picture_maps(
            {sample.id: _picture(sample) for sample in samples},
            {**rows, "combined": {sample.id: combined[sample.id] for sample in samples}},
            {name: np.asarray(truth.load() > 0) for name, truth in truths.items() if truth is not None},
            shape=(samples[0].shape[0], samples[0].shape[1]),
        ),
        broad=True,
        section="Explanations",
    )


def _samples(run: Results, key: str, names: list[str]) -> list[Sample]:
    wanted = set(names)
    return [sample for sample in run.plan.groups[key].cohort.samples if sample.id in wanted]


def _picture(sample: Sample) -> Array:
    """(H, W, 3) float in [0, 1]."""
    return np.asarray(sample.images[_IMAGE].load(), np.float64) / 255


def _scaled(one: Array) -> Array:
    return np.asarray(one / (float(np.abs(one).max()) or 1.0))
