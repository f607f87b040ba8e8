"""Plots of the report: from numbers and arrays to PNG bytes."""

from harness.report.plots.pictures import picture_maps
from harness.report.plots.scores import Bars, channel_bars, curves, grouped_intervals, heat_maps, objective_intervals
from harness.report.plots.slices import attribution_slices, prediction_slices
from harness.report.plots.subjects import (
    bland_altman,
    sensitivity_precision,
    subject_dots,
    subject_lines,
    training_curves,
    truth_scatter,
)

__all__ = [
    "Bars",
    "attribution_slices",
    "bland_altman",
    "channel_bars",
    "curves",
    "grouped_intervals",
    "heat_maps",
    "objective_intervals",
    "picture_maps",
    "prediction_slices",
    "sensitivity_precision",
    "subject_dots",
    "subject_lines",
    "training_curves",
    "truth_scatter",
]
