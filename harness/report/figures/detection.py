"""Figures of lesion detection: sensitivity and precision, by tolerance and by lesion size."""

from __future__ import annotations

import math
from collections.abc import Iterator

from harness.core.task import Component
from harness.core.types import Score
from harness.report import plots
from harness.report.elements import Figure
from harness.report.figures.results import Results

__all__ = ["detection_figures"]


def detection_figures(run: Results) -> Iterator[Figure]:
    """Figures for the task's metrics of sensitivity and precision."""
    if run.lines:
        yield from _plane(run)
        yield from _tolerances(run)
        yield from _sizes(run)


def _plane(run: Results) -> Iterator[Figure]:
    found = _first_pair(run)
    if found is None:
        return
    one, two = found
    points = {}
    for key in run.lines:
        first, second = run.values(key, one), run.values(key, two)
        common = [subject for subject in first if subject in second]
        points[run.labels[key]] = ([first[name] for name in common], [second[name] for name in common])
    chance = [run.score(key, name).chance for key in run.lines for name in found]
    known = [value for value in chance if math.isfinite(value)]
    note = f" Random centres would score {min(known):.2f} to {max(known):.2f} on both axes." if known else ""
    yield Figure(
        "Sensitivity and precision",
        f"{_matching(run.task.metrics[one])}. Large markers are means over subjects, small ones single subjects; "
        f"arcs join points of equal magnitude √(S² + P²).{note}",
        plots.sensitivity_precision(points),
        section="Detection",
    )


def _tolerances(run: Results) -> Iterator[Figure]:
    panels: dict[str, dict[str, dict[float | str, Score]]] = {}
    for function in ("sensitivity", "precision"):
        options = {label: one.keywords for label, one in run.metrics(function).items()}
        labels = {
            float(given["tolerance_mm"]): label
            for label, given in options.items()
            if "tolerance_mm" in given and not given.get("size_bin")
        }
        if len(labels) > 1:
            panels[function] = {
                run.labels[key]: {at: run.score(key, labels[at]) for at in sorted(labels)} for key in run.lines
            }
    if not panels:
        return
    first = next(iter(panels))
    yield Figure(
        "Effect of the tolerance",
        f"A centre counts as found within this distance. {first.capitalize()} of the configurations: "
        f"{', '.join(_spreads(panels[first]))}. Where all values are similar and far above chance, the metric is "
        "saturated and cannot distinguish the configurations. Bars are 95 % intervals; the grey band is the score of "
        "random centres.",
        plots.curves(panels, x_label="tolerance (mm)", limits=(0.0, 1.0)),
        broad=True,
        section="Detection",
    )


def _spreads(lines: dict[str, dict[float | str, Score]]) -> list[str]:
    """Lowest and highest value of the configurations at each tolerance with the chance level, as text."""
    texts = []
    for at in next(iter(lines.values())):
        values = [line[at].value for line in lines.values()]
        chances = [line[at].chance for line in lines.values() if math.isfinite(line[at].chance)]
        near = f" (chance up to {max(chances):.2f})" if chances else ""
        texts.append(f"{min(values):.2f} to {max(values):.2f} at {at:g} mm{near}")
    return texts


def _sizes(run: Results) -> Iterator[Figure]:
    bins = {
        tuple(one.keywords["size_bin"]): label
        for label, one in run.metrics("sensitivity").items()
        if one.keywords.get("size_bin")
    }
    if len(bins) < 2:
        return
    ordered = sorted(bins)
    names = [
        f"{low} and more" if bound == ordered[-1] else f"{low} to {high}" for bound in ordered for low, high in [bound]
    ]
    lines: dict[str, dict[float | str, Score]] = {
        run.labels[key]: {name: run.score(key, bins[bound]) for name, bound in zip(names, ordered, strict=True)}
        for key in run.lines
    }
    yield Figure(
        "Sensitivity by lesion size",
        f"Sensitivity by size of the true lesion. {_matching(run.task.metrics[bins[ordered[0]]])}. The grey band "
        "is the score of random centres.",
        plots.curves({"sensitivity": lines}, x_label="voxels of the true lesion", limits=(0.0, 1.0)),
        section="Detection",
    )


def _first_pair(run: Results) -> tuple[str, str] | None:
    """Labels of the first sensitivity metric and of the precision metric with the same options."""
    for label, one in run.metrics("sensitivity").items():
        for other, candidate in run.metrics("precision").items():
            common = set(one.keywords) & set(candidate.keywords)
            same = all(one.keywords[name] == candidate.keywords[name] for name in common)
            if same and not one.keywords.get("size_bin"):
                return label, other
    return None


def _matching(metric: Component) -> str:
    """Description of how lesions are matched."""
    tolerance = metric.keywords.get("tolerance_mm")
    return "By lesion" if tolerance is None else f"By lesion centre, within {tolerance:g} mm"
