"""Plots of single subjects and trainings: lines, dots and scatter plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from harness.core.errors import OutOfRange
from harness.core.types import Array
from harness.report.plots.canvas import (
    BLUE,
    COLOURS,
    GREY,
    INK,
    ORANGE,
    check_labels,
    figure_of,
    grid_lines,
    look,
    mean_of,
    outer_labels,
    panels_of,
    png_of,
    share_limits,
    titled,
)
from harness.report.wording import typographic

__all__ = [
    "bland_altman",
    "sensitivity_precision",
    "subject_dots",
    "subject_lines",
    "training_curves",
    "truth_scatter",
]

_MOST_NAMES = 40  # largest number of subjects that are named on an axis
_PATCH = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}


def subject_lines(values: Mapping[str, Mapping[str, float]], *, quantity: str = "", unit: str = "") -> bytes:
    """One line per subject over the configurations, to compare their order between subjects.

    Parameters
    ----------
    values : values by configuration and subject, in drawing order
    quantity, unit : quantity and unit of the axis
    """
    labels = list(values)
    subjects = sorted({subject for by_subject in values.values() for subject in by_subject})
    figure, (axes,) = figure_of(1, 1, width=max(4.8, 1.6 + 0.55 * len(labels)), height=3.6)
    named = len(subjects) <= len(COLOURS)
    for index, subject in enumerate(subjects):
        colour, marker = look(index) if named else (GREY, "o")
        line = [values[label].get(subject, math.nan) for label in labels]
        axes.plot(range(len(labels)), line, marker=marker, color=colour, lw=1.3, ms=5, alpha=0.85,
                  label=subject if named else None)  # fmt: skip
    means = [mean_of(list(values[label].values())) for label in labels]
    axes.plot(range(len(labels)), means, color=INK, lw=0, marker="_", ms=22, mew=2.5, label="mean")
    slanted = sum(len(label) for label in labels) > 60
    axes.set_xticks(range(len(labels)), labels, rotation=30 if slanted else 0, ha="right" if slanted else "center")
    axes.set_xlim(-0.4, len(labels) - 0.6)
    axes.set_ylabel(titled(quantity, unit))
    grid_lines(axes, "y")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return png_of(figure)


def subject_dots(panels: Mapping[str, Mapping[str, Sequence[float]]], *, named: bool = True) -> bytes:
    """Values of all subjects of one configuration, one panel per quantity.

    Parameters
    ----------
    panels : values per seed by quantity and subject, in drawing order
    named : whether subjects are named; names are left out if there are too many
    """
    subjects = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    named = named and len(subjects) <= _MOST_NAMES
    height = 1.0 + (0.2 * len(subjects) if named else min(0.05 * len(subjects) + 0.8, 4.0))
    figure, all_axes = figure_of(1, max(len(panels), 1), width=1.4 + 2.3 * max(len(panels), 1), height=height)
    for axes, (quantity, panel) in zip(all_axes, panels.items(), strict=False):
        means = [mean_of(panel.get(name, ())) for name in subjects]
        for position, name in enumerate(subjects):
            seeds = panel.get(name, ())
            axes.plot(seeds, [position] * len(seeds), "o", color=BLUE, ms=3, alpha=0.35, mew=0)
        axes.plot(means, range(len(subjects)), "o", color=BLUE, ms=5 if named else 3.5)
        overall = mean_of(means)
        if math.isfinite(overall):
            axes.axvline(overall, color=ORANGE, lw=1.4)
            axes.set_title(typographic(f"mean {overall:.3g}"), fontsize=8)
        axes.set_ylim(len(subjects) - 0.4, -0.6)
        axes.set_yticks(range(len(subjects)) if named else [], subjects if named and axes is all_axes[0] else None)
        axes.tick_params(axis="y", labelsize=7, labelleft=named and axes is all_axes[0])
        axes.set_xlabel(quantity)
        axes.locator_params(axis="x", nbins=4)
        grid_lines(axes, "x")
    all_axes[0].set_ylabel("" if named else f"{len(subjects)} subjects")
    return png_of(figure)


def truth_scatter(
    truth: Mapping[str, npt.ArrayLike],
    prediction: Mapping[str, npt.ArrayLike],
    *,
    quantity: str = "count",
    unit: str = "",
) -> bytes:
    """Prediction against truth with the line of identity, one panel per configuration.

    Parameters
    ----------
    truth, prediction : (n,) values of the same subjects, by label
    quantity, unit : quantity and unit of the axes
    """
    check_labels(truth, prediction)
    figure, panels = panels_of(len(truth), square=True)
    pairs = {label: _paired(truth[label], prediction[label]) for label in truth}
    highest = max((float(max(one.max(), two.max())) for one, two in pairs.values() if one.size), default=1.0)
    lowest = min((float(min(one.min(), two.min())) for one, two in pairs.values() if one.size), default=0.0)
    pad = 0.06 * (highest - lowest or 1.0)
    for axes, (label, (one, two)) in zip(panels, pairs.items(), strict=True):
        axes.plot([lowest - pad, highest + pad], [lowest - pad, highest + pad], color=GREY, lw=1, zorder=1)
        axes.plot(one, two, "o", color=BLUE, ms=5, alpha=0.85)
        axes.set(xlim=(lowest - pad, highest + pad), ylim=(lowest - pad, highest + pad), aspect="equal")
        axes.set_title(label, fontsize=9)
    outer_labels(figure, panels, f"truth, {titled(quantity, unit)}", f"prediction, {titled(quantity, unit)}")
    return png_of(figure)


def bland_altman(
    truth: Mapping[str, npt.ArrayLike],
    prediction: Mapping[str, npt.ArrayLike],
    *,
    quantity: str = "count",
    unit: str = "",
) -> bytes:
    """Difference of prediction and truth against their mean, one panel per configuration.

    Parameters
    ----------
    truth, prediction : (n,) values of the same subjects, by label
    quantity, unit : quantity and unit of the axes

    Returns
    -------
    bytes
        PNG with bias and limits of agreement, bias ± 1.96 SD; without limits if there
        are fewer than two subjects.

    References
    ----------
    Bland, Altman 1986, Statistical methods for assessing agreement.
    """
    check_labels(truth, prediction)
    figure, panels = panels_of(len(truth))
    for axes, label in zip(panels, truth, strict=True):
        one, two = _paired(truth[label], prediction[label])
        mean, difference = (one + two) / 2, two - one
        axes.axhline(0, color=GREY, lw=0.8)
        axes.plot(mean, difference, "o", color=BLUE, ms=5, alpha=0.85)
        if difference.size:
            bias = float(difference.mean())
            axes.axhline(bias, color=ORANGE, lw=1.6)
            text = f"bias {bias:.3g}"
            if difference.size > 1:
                half = 1.96 * float(difference.std(ddof=1))
                for limit in (bias - half, bias + half):
                    axes.axhline(limit, color=ORANGE, lw=1.2, ls="--")
                text += f", limits {bias - half:.3g} to {bias + half:.3g}"
            axes.margins(y=0.15)
            axes.text(0.5, 1.02, typographic(text), transform=axes.transAxes, ha="center", fontsize=7, color=INK)
        axes.set_title(label, fontsize=9, pad=14)
    share_limits(panels, x=True, y=True)
    outer_labels(figure, panels, f"mean of truth and prediction, {titled(quantity, unit)}", "prediction − truth")
    return png_of(figure)


def sensitivity_precision(points: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]) -> bytes:
    """Sensitivity against precision, with arcs of equal magnitude √(S² + P²).

    Parameters
    ----------
    points : sensitivity and precision, (n,) each with one value per subject, by label;
        drawn as their means, with subjects as faint dots
    """
    figure, (axes,) = figure_of(1, 1, width=6.0, height=4.4)
    pairs = {label: _paired(*point) for label, point in points.items()}
    drawn = np.concatenate([np.concatenate(pair) for pair in pairs.values()] or [np.empty(0)])
    low = max(0.0, math.floor(10 * float(drawn.min()) - 0.5) / 10) if drawn.size else 0.0
    high = 1.0 + 0.03 * (1 - low)
    _arcs(axes, low)
    for index, (label, (one, two)) in enumerate(pairs.items()):
        colour, marker = look(index)
        axes.plot(one, two, marker, color=colour, ms=3.5, alpha=0.4, ls="none", mew=0, zorder=2)
        if one.size:
            axes.plot(one.mean(), two.mean(), marker, color=colour, ms=10, mec="white", mew=0.8, ls="none", label=label,
                      zorder=3)  # fmt: skip
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", xlabel="sensitivity", ylabel="precision")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(
            loc="outside right upper", frameon=False, fontsize=8, title="mean of the subjects", title_fontsize=8
        )
    return png_of(figure)


def training_curves(panels: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """Losses over epochs, one line per training and one panel per quantity.

    Parameters
    ----------
    panels : values per epoch, by quantity and training
    """
    figure, all_axes = figure_of(1, max(len(panels), 1), width=1.0 + 3.0 * max(len(panels), 1), height=2.8)
    for axes, (quantity, lines) in zip(all_axes, panels.items(), strict=False):
        crowded = len(lines) > len(COLOURS)
        for index, (label, line) in enumerate(lines.items()):
            colour, alpha = (BLUE, 0.35) if crowded else (look(index)[0], 0.9)
            axes.plot(range(1, len(line) + 1), line, color=colour, lw=1.1, alpha=alpha, label=label,
                      marker="o" if len(line) == 1 else None, ms=4)  # fmt: skip
        axes.set_xlabel("epoch")
        axes.set_ylabel(quantity)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        grid_lines(axes, "y")
    handles, labels = all_axes[0].get_legend_handles_labels()
    if handles and len(handles) <= len(COLOURS):
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=7.5)
    return png_of(figure)


def _arcs(axes: Axes, low: float) -> None:
    """Draw arcs of equal magnitude, labelled where they leave the square [low, 1]²."""
    angle = np.linspace(0, np.pi / 2, 400)
    for radius in np.arange(0.1, 1.45, 0.1 if low > 0.35 else 0.2):
        x, y = radius * np.cos(angle), radius * np.sin(angle)
        inside = (x >= low) & (x <= 1) & (y >= low) & (y <= 1)
        if not inside.any():
            continue
        axes.plot(x[inside], y[inside], color="#D5D9DE", lw=0.9, zorder=0)
        end = int(np.argmax(inside))
        axes.text(x[end], y[end], f"{radius:.1f}", color=GREY, fontsize=7, ha="center", va="center", bbox=_PATCH)


def _paired(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[Array, Array]:
    one, two = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if one.shape != two.shape:
        raise OutOfRange(f"both axes must have the same subjects, got {one.size} and {two.size} values")
    kept = np.isfinite(one) & np.isfinite(two)
    return one[kept], two[kept]
