"""Figures of agreement between predicted and true quantities of the subjects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from harness.core.types import Array
from harness.report import plots
from harness.report.elements import Figure
from harness.report.figures.results import MOST_PANELS, Results

__all__ = ["Quantity", "agreement_figures", "quantities_of"]

_UNITS = {"mm3": "mm³", "ml": "ml", "mm": "mm"}


@dataclass(frozen=True)
class Quantity:
    """A quantity with true and predicted values.

    Parameters
    ----------
    name, unit : name and unit, e.g. ``volume``, ``mm³``
    truth, prediction : (n,) values of the same subjects, by label of the configuration
    """

    name: str
    unit: str
    truth: dict[str, Array]
    prediction: dict[str, Array]


def agreement_figures(run: Results) -> Iterator[Figure]:
    """Scatter and Bland–Altman plots of every quantity with true and predicted values."""
    for quantity in quantities_of(run, list(run.lines)[:MOST_PANELS]):
        shown, title = len(quantity.truth), quantity.name.capitalize()
        more = f" The first {shown} of {len(run.lines)} configurations." if len(run.lines) > shown else ""
        yield Figure(
            f"{title}: prediction against truth",
            f"One point per subject; the line shows perfect agreement.{more}",
            plots.truth_scatter(quantity.truth, quantity.prediction, quantity=quantity.name, unit=quantity.unit),
            broad=shown > 2,
            section="Agreement",
        )
        yield Figure(
            f"{title}: Bland–Altman",
            "Prediction − truth against their mean, one point per subject; bias (solid) and limits of agreement, "
            f"bias ± 1.96 SD (dashed). Points below zero are underestimates.{more}",
            plots.bland_altman(quantity.truth, quantity.prediction, quantity=quantity.name, unit=quantity.unit),
            broad=shown > 2,
            section="Agreement",
        )


def quantities_of(run: Results, keys: Sequence[str]) -> Iterator[Quantity]:
    """Quantities that have both a metric ``true_…`` and a metric ``predicted_…``, for some configurations."""
    for label in run.task.metrics:
        name = label.removeprefix("true_")
        other = f"predicted_{name}"
        if name == label or other not in run.task.metrics:
            continue
        truth, prediction = {}, {}
        for key in keys:
            one, two = run.values(key, label), run.values(key, other)
            common = [subject for subject in one if subject in two]
            if common:
                truth[run.labels[key]] = np.array([one[subject] for subject in common])
                prediction[run.labels[key]] = np.array([two[subject] for subject in common])
        if truth:
            yield Quantity(*_name_and_unit(name), truth, prediction)


def _name_and_unit(name: str) -> tuple[str, str]:
    """Name and unit of a quantity: ``volume_mm3`` gives volume and mm³."""
    stem, _, end = name.rpartition("_")
    return (stem.replace("_", " "), _UNITS[end]) if end in _UNITS and stem else (name.replace("_", " "), "")
