"""Figure of scalars that networks expose, such as attention weights."""

from __future__ import annotations

import math
from collections.abc import Iterator

from harness.report import plots
from harness.report.elements import Figure
from harness.report.figures.results import MOST_PANELS, Results, note_on_marks

__all__ = ["exposed_figures"]


def exposed_figures(run: Results) -> Iterator[Figure]:
    """Mean of each exposed scalar with its interval, one panel per configuration that exposes them."""
    labels = {one.keywords.get("name", label): label for label, one in run.metrics("exposed_scalar").items()}
    panels = []
    for key in run.lines:
        scores = {name.rpartition(":")[2]: run.score(key, label) for name, label in labels.items()}
        known = {name: score for name, score in scores.items() if math.isfinite(score.value)}
        if known:
            quantity = next(iter(labels)).partition(":")[0]
            panels.append((run.labels[key], plots.Bars(run.labels[key], quantity, known)))
    shown = panels[:MOST_PANELS]
    if shown:
        left_out = (
            f" {len(panels) - len(shown)} more configurations are in the table." if len(panels) > len(shown) else ""
        )
        yield Figure(
            "Scalars that the network exposes",
            "Mean over the samples that the metric takes (by default, those classified correctly), with 95 % "
            f"intervals. Attention weights sum to one.{left_out}{note_on_marks([label for label, _ in shown])}",
            plots.channel_bars([bars for _, bars in shown]),
            broad=len(shown) > 2,
            section="Predictions",
        )
