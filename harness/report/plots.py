"""Figures of the report: numbers and arrays in, PNG bytes out.

Drawn on matplotlib's own figure objects: no global state, no window, and the
same bytes for the same numbers. Colours are those of Okabe and Ito, which
colour-blind readers can tell apart; nothing is told by colour alone.
"""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from harness.core.errors import OutOfRange
from harness.core.types import Array, Score
from harness.pipeline.leaderboard import read_facts, row_labels

__all__ = [
    "Bars",
    "attribution_slices",
    "bland_altman",
    "channel_bars",
    "curves",
    "grouped_intervals",
    "heat_maps",
    "objective_intervals",
    "prediction_slices",
    "sensitivity_precision",
    "subject_dots",
    "subject_lines",
    "training_curves",
    "truth_scatter",
]

_BLUE, _ORANGE, _GREEN, _GREY, _INK = "#0072B2", "#D55E00", "#009E73", "#8A8F98", "#22262B"
_SKY, _YELLOW, _PURPLE, _AMBER = "#56B4E9", "#F0E442", "#CC79A7", "#E69F00"
_COLOURS = (_BLUE, _ORANGE, _GREEN, _PURPLE, _AMBER, _SKY, _INK, _GREY)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_PIXELS_PER_INCH = 144
_PANELS_PER_ROW = 4
_MOST_NAMES = 40  # of subjects beside an axis


@dataclass(frozen=True)
class Bars:
    """One panel of :func:`channel_bars`.

    Parameters
    ----------
    title : what was asked
    quantity : what the bars measure, for the axis label
    scores : channel → value with its interval; a channel may be absent
    muted : drawn grey, for a control
    """

    title: str
    quantity: str
    scores: Mapping[str, Score]
    muted: bool = False


def objective_intervals(table: pa.Table) -> bytes:
    """The objective of every row with its interval, in the table's order.

    Parameters
    ----------
    table : of :func:`harness.pipeline.leaderboard.build`

    Returns
    -------
    bytes
        PNG. Filled and blue: first, or not distinguishable from the first;
        filled and orange: distinguishable; open and grey: not ranked.
    """
    facts, lines, labels = read_facts(table), table.to_pylist(), row_labels(table)
    name = facts.objective
    figure, (axes,) = _figure(1, 1, width=6.0, height=1.4 + 0.3 * max(len(lines), 1))
    kinds = {
        "group": (_BLUE, "o", _BLUE, "first, or not distinguishable from it"),
        "other": (_ORANGE, "s", _ORANGE, "differs from the first"),
        "none": (_GREY, "D", "white", "not ranked"),
    }
    seen = []
    for position, line in enumerate(lines):
        if line[name] is None:
            continue
        leads = line["rank"] == 1 or line["not_distinguishable_from_best"]
        kind = "none" if line["rank"] is None else "group" if leads else "other"
        colour, marker, face, _ = kinds[kind]
        seen.append(kind)
        if line[f"{name}_low"] is not None:
            axes.plot([line[f"{name}_low"], line[f"{name}_high"]], [position] * 2, color=colour, lw=2, zorder=2)
        axes.plot(line[name], position, marker=marker, color=colour, mfc=face, ms=7, ls="none", zorder=3)
    metric = facts.metric(name)
    if math.isfinite(metric.chance):
        axes.axvline(metric.chance, color=_GREY, ls=":", lw=1.2, zorder=1)
        axes.annotate("chance", (metric.chance, 1), (3, -3), xycoords=("data", "axes fraction"), va="top",
                      textcoords="offset points", color=_GREY, fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(lines)), labels)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    better = {"higher": "higher is better", "lower": "lower is better"}.get(metric.direction, "")
    what = "value" if metric.level == "pooled" else "mean"
    axes.set_xlabel(f"{_titled(name, metric.unit)}: {what} and {100 * facts.level:.0f} % interval ({better})")
    handles = [
        Line2D([], [], color=colour, marker=marker, mfc=face, lw=2, label=text)
        for key, (colour, marker, face, text) in kinds.items()
        if key in seen
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    axes.grid(axis="x", color="#E3E6EA", lw=0.8)
    return _png(figure)


def bland_altman(
    truth: Mapping[str, npt.ArrayLike],
    prediction: Mapping[str, npt.ArrayLike],
    *,
    quantity: str = "count",
    unit: str = "",
) -> bytes:
    """Difference against mean of prediction and truth, one panel per configuration.

    Parameters
    ----------
    truth, prediction : label → (n,) values of the same subjects
    quantity, unit : for the axis labels

    Returns
    -------
    bytes
        PNG with bias and limits of agreement, bias ± 1.96 SD; limits are
        left out with fewer than two subjects.

    References
    ----------
    Bland, Altman 1986, Statistical methods for assessing agreement.
    """
    _check_labels(truth, prediction)
    figure, panels = _panels(len(truth))
    for axes, label in zip(panels, truth, strict=True):
        one, two = _paired(truth[label], prediction[label])
        mean, difference = (one + two) / 2, two - one
        axes.axhline(0, color=_GREY, lw=0.8)
        axes.plot(mean, difference, "o", color=_BLUE, ms=5, alpha=0.85)
        if difference.size:
            bias = float(difference.mean())
            axes.axhline(bias, color=_ORANGE, lw=1.6)
            text = f"bias {bias:.3g}"
            if difference.size > 1:
                half = 1.96 * float(difference.std(ddof=1))
                for limit in (bias - half, bias + half):
                    axes.axhline(limit, color=_ORANGE, lw=1.2, ls="--")
                text += f", limits {bias - half:.3g} to {bias + half:.3g}"
            axes.margins(y=0.15)
            axes.text(0.5, 1.02, text.replace("-", "−"), transform=axes.transAxes, ha="center", fontsize=7, color=_INK)
        axes.set_title(label, fontsize=9, pad=14)
    _share_limits(panels, x=True, y=True)
    _outer_labels(figure, panels, f"mean of truth and prediction, {_titled(quantity, unit)}", "prediction − truth")
    return _png(figure)


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
    truth, prediction : label → (n,) values of the same subjects
    quantity, unit : for the axis labels
    """
    _check_labels(truth, prediction)
    figure, panels = _panels(len(truth), square=True)
    pairs = {label: _paired(truth[label], prediction[label]) for label in truth}
    highest = max((float(max(one.max(), two.max())) for one, two in pairs.values() if one.size), default=1.0)
    lowest = min((float(min(one.min(), two.min())) for one, two in pairs.values() if one.size), default=0.0)
    pad = 0.06 * (highest - lowest or 1.0)
    for axes, (label, (one, two)) in zip(panels, pairs.items(), strict=True):
        axes.plot([lowest - pad, highest + pad], [lowest - pad, highest + pad], color=_GREY, lw=1, zorder=1)
        axes.plot(one, two, "o", color=_BLUE, ms=5, alpha=0.85)
        axes.set(xlim=(lowest - pad, highest + pad), ylim=(lowest - pad, highest + pad), aspect="equal")
        axes.set_title(label, fontsize=9)
    _outer_labels(figure, panels, f"truth, {_titled(quantity, unit)}", f"prediction, {_titled(quantity, unit)}")
    return _png(figure)


def sensitivity_precision(points: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]) -> bytes:
    """Sensitivity against precision, with arcs of equal magnitude √(S² + P²).

    Parameters
    ----------
    points : label → sensitivity and precision, (n,) each, one value per subject;
        each is drawn as its mean, subjects as faint dots
    """
    figure, (axes,) = _figure(1, 1, width=6.0, height=4.4)
    pairs = {label: _paired(*point) for label, point in points.items()}
    drawn = np.concatenate([np.concatenate(pair) for pair in pairs.values()] or [np.empty(0)])
    low = max(0.0, math.floor(10 * float(drawn.min()) - 0.5) / 10) if drawn.size else 0.0
    high = 1.0 + 0.03 * (1 - low)
    _arcs(axes, low)
    for index, (label, (one, two)) in enumerate(pairs.items()):
        colour, marker = _look(index)
        axes.plot(one, two, marker, color=colour, ms=3.5, alpha=0.4, ls="none", mew=0, zorder=2)
        if one.size:
            axes.plot(one.mean(), two.mean(), marker, color=colour, ms=10, mec="white", mew=0.8, ls="none", label=label,
                      zorder=3)  # fmt: skip
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", xlabel="sensitivity", ylabel="precision")
    if axes.get_legend_handles_labels()[0]:
        figure.legend(
            loc="outside right upper", frameon=False, fontsize=8, title="mean of the subjects", title_fontsize=8
        )
    return _png(figure)


def subject_lines(values: Mapping[str, Mapping[str, float]], *, quantity: str = "", unit: str = "") -> bytes:
    """One line per subject over the configurations: do all subjects agree?

    Parameters
    ----------
    values : configuration → subject → value, in the order to be drawn
    quantity, unit : for the axis label
    """
    labels = list(values)
    subjects = sorted({subject for by_subject in values.values() for subject in by_subject})
    figure, (axes,) = _figure(1, 1, width=max(4.8, 1.6 + 0.55 * len(labels)), height=3.6)
    named = len(subjects) <= len(_COLOURS)
    for index, subject in enumerate(subjects):
        colour, marker = _look(index) if named else (_GREY, "o")
        line = [values[label].get(subject, math.nan) for label in labels]
        axes.plot(range(len(labels)), line, marker=marker, color=colour, lw=1.3, ms=5, alpha=0.85,
                  label=subject if named else None)  # fmt: skip
    means = [_mean(list(values[label].values())) for label in labels]
    axes.plot(range(len(labels)), means, color=_INK, lw=0, marker="_", ms=22, mew=2.5, label="mean")
    slanted = sum(len(label) for label in labels) > 60
    axes.set_xticks(range(len(labels)), labels, rotation=30 if slanted else 0, ha="right" if slanted else "center")
    axes.set_xlim(-0.4, len(labels) - 0.6)
    axes.set_ylabel(_titled(quantity, unit))
    axes.grid(axis="y", color="#E3E6EA", lw=0.8)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return _png(figure)


def subject_dots(panels: Mapping[str, Mapping[str, Sequence[float]]], *, named: bool = True) -> bytes:
    """Every subject's value of one configuration, one panel per quantity.

    Parameters
    ----------
    panels : quantity → subject → one value per seed, in the order to be drawn
    named : whether subjects are named; never where they are too many to be read
    """
    subjects = list(dict.fromkeys(name for panel in panels.values() for name in panel))
    named = named and len(subjects) <= _MOST_NAMES
    height = 1.0 + (0.2 * len(subjects) if named else min(0.05 * len(subjects) + 0.8, 4.0))
    figure, all_axes = _figure(1, max(len(panels), 1), width=1.4 + 2.3 * max(len(panels), 1), height=height)
    for axes, (quantity, panel) in zip(all_axes, panels.items(), strict=False):
        means = [_mean(panel.get(name, ())) for name in subjects]
        for position, name in enumerate(subjects):
            seeds = panel.get(name, ())
            axes.plot(seeds, [position] * len(seeds), "o", color=_BLUE, ms=3, alpha=0.35, mew=0)
        axes.plot(means, range(len(subjects)), "o", color=_BLUE, ms=5 if named else 3.5)
        overall = _mean(means)
        if math.isfinite(overall):
            axes.axvline(overall, color=_ORANGE, lw=1.4)
            axes.set_title(f"mean {overall:.3g}".replace("-", "−"), fontsize=8)
        axes.set_ylim(len(subjects) - 0.4, -0.6)
        axes.set_yticks(range(len(subjects)) if named else [], subjects if named and axes is all_axes[0] else None)
        axes.tick_params(axis="y", labelsize=7, labelleft=named and axes is all_axes[0])
        axes.set_xlabel(quantity)
        axes.locator_params(axis="x", nbins=4)
        axes.grid(axis="x", color="#E3E6EA", lw=0.8)
    all_axes[0].set_ylabel("" if named else f"{len(subjects)} subjects")
    return _png(figure)


def training_curves(panels: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """Losses over epochs, a line per training, one panel per quantity.

    Parameters
    ----------
    panels : quantity → training → one value per epoch
    """
    figure, all_axes = _figure(1, max(len(panels), 1), width=1.0 + 3.0 * max(len(panels), 1), height=2.8)
    for axes, (quantity, lines) in zip(all_axes, panels.items(), strict=False):
        crowded = len(lines) > len(_COLOURS)
        for index, (label, line) in enumerate(lines.items()):
            colour, alpha = (_BLUE, 0.35) if crowded else (_look(index)[0], 0.9)
            axes.plot(range(1, len(line) + 1), line, color=colour, lw=1.1, alpha=alpha, label=label,
                      marker="o" if len(line) == 1 else None, ms=4)  # fmt: skip
        axes.set_xlabel("epoch")
        axes.set_ylabel(quantity)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y", color="#E3E6EA", lw=0.8)
    handles, labels = all_axes[0].get_legend_handles_labels()
    if handles and len(handles) <= len(_COLOURS):
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=7.5)
    return _png(figure)


def channel_bars(panels: Sequence[Bars]) -> bytes:
    """One value per channel in several senses, side by side.

    Parameters
    ----------
    panels : in order; a channel that is absent from one of them is left empty there
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.scores))
    nothing = Score(math.nan, math.nan, math.nan, 0)
    count = max(len(panels), 1)
    figure, all_axes = _figure(1, count, width=1.0 + 2.15 * count, height=1.3 + 0.36 * max(len(names), 1))
    for axes, panel in zip(all_axes, panels, strict=False):
        _bars(axes, {name: panel.scores.get(name, nothing) for name in names}, _GREY if panel.muted else _BLUE)
        axes.set_title(panel.title, fontsize=9)
        axes.set_xlabel(panel.quantity)
        if axes is not all_axes[0]:
            axes.set_yticklabels([])
    for quantity in {panel.quantity for panel in panels}:
        alike = [axes for axes, panel in zip(all_axes, panels, strict=False) if panel.quantity == quantity]
        _share_limits(alike, x=True, y=False)
    return _png(figure)


def curves(
    panels: Mapping[str, Mapping[str, Mapping[float | str, Score]]],
    *,
    x_label: str,
    limits: tuple[float, float] = (-math.inf, math.inf),
) -> bytes:
    """A value over some setting, one line per configuration; a band shows what chance scores.

    Parameters
    ----------
    panels : quantity → configuration → setting → value with its interval. Settings
        are numbers, drawn to scale, or names, drawn evenly
    x_label : of the setting
    limits : the metric's range, which the axis does not leave
    """
    figure, all_axes = _figure(1, max(len(panels), 1), width=2.2 + 3.3 * max(len(panels), 1), height=3.5)
    for axes, (quantity, lines) in zip(all_axes, panels.items(), strict=False):
        settings = list(dict.fromkeys(setting for line in lines.values() for setting in line))
        to_scale = all(isinstance(setting, int | float) for setting in settings)
        at = {setting: float(setting) if to_scale else float(index) for index, setting in enumerate(settings)}
        span = max(at.values(), default=0.0) - min(at.values(), default=0.0) or 1.0
        _chance_band(axes, lines, at)
        for index, (label, line) in enumerate(lines.items()):
            colour, marker = _look(index)
            # Beside each other, so that intervals can be told apart.
            shift = (index - (len(lines) - 1) / 2) * span * 0.012
            x = [at[setting] + shift for setting in line]
            axes.plot(x, [score.value for score in line.values()], marker=marker, color=colour, lw=1.3, ms=4.5,
                      mec="white", mew=0.5, label=label, zorder=3)  # fmt: skip
            for position, score in zip(x, line.values(), strict=True):
                if math.isfinite(score.low):
                    axes.plot([position] * 2, [score.low, score.high], color=colour, lw=1.0, alpha=0.55, zorder=2)
        axes.set_xticks([at[setting] for setting in settings], [f"{setting}" for setting in settings])
        axes.set_xlabel(x_label)
        axes.set_ylabel(quantity)
        _within(axes, limits)
        axes.grid(axis="y", color="#E3E6EA", lw=0.8)
    if panels and all_axes[0].get_legend_handles_labels()[0]:
        handles, labels = all_axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    return _png(figure)


def grouped_intervals(
    groups: Mapping[str, Mapping[str, Score]], *, x_label: str, zero: bool = False, chance: float = math.nan
) -> bytes:
    """Values with intervals, in groups one below the other.

    Parameters
    ----------
    groups : group → row → value; each group has its colour and marker
    x_label : of the value
    zero : whether the axis is marked at zero
    chance : marked if it is known
    """
    count = sum(len(rows) for rows in groups.values()) + len(groups)
    figure, (axes,) = _figure(1, 1, width=6.0, height=0.9 + 0.21 * max(count, 1))
    names: list[str] = []
    headings: list[int] = []
    for index, (group, rows) in enumerate(groups.items()):
        colour, marker = _look(index)
        headings.append(len(names))
        names.append(group)
        for row, score in rows.items():
            if math.isfinite(score.low):
                axes.plot([score.low, score.high], [len(names)] * 2, color=colour, lw=1.8, zorder=2)
            if math.isfinite(score.value):
                axes.plot(score.value, len(names), marker=marker, color=colour, ms=5.5, zorder=3)
            names.append(row)
    if zero:
        axes.axvline(0, color=_GREY, lw=1, zorder=1)
    if math.isfinite(chance):
        axes.axvline(chance, color=_GREY, ls=":", lw=1.2, zorder=1)
        axes.annotate("chance", (chance, 1), (0, 2), xycoords=("data", "axes fraction"), textcoords="offset points",
                      ha="center", va="bottom", color=_GREY, fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0, labelsize=7.5)
    for position in headings:
        axes.get_yticklabels()[position].set_fontweight("bold")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(x_label)
    axes.grid(axis="x", color="#E3E6EA", lw=0.8)
    return _png(figure)


def heat_maps(
    panels: Mapping[str, Mapping[str, Mapping[str, Score]]], *, lower_is_better: Collection[str] = ()
) -> bytes:
    """Values of configurations in regions, one panel per metric; the darker the better.

    Parameters
    ----------
    panels : metric → configuration → region → value; its number is written in each field
    lower_is_better : metrics of which small values are dark
    """
    rows = list(dict.fromkeys(row for panel in panels.values() for row in panel))
    columns = list(dict.fromkeys(name for panel in panels.values() for row in panel.values() for name in row))
    across = min(len(panels), 2) or 1
    down = math.ceil(len(panels) / across) or 1
    size = {
        "width": 1.6 + across * (0.3 + 0.56 * max(len(columns), 2)),
        "height": down * (1.1 + 0.27 * max(len(rows), 1)),
    }
    figure, all_axes = _figure(down, across, **size)
    for spare in all_axes[len(panels) :]:
        spare.remove()
    for number, (axes, (metric, panel)) in enumerate(zip(all_axes, panels.items(), strict=False)):
        nothing = Score(math.nan, math.nan, math.nan, 0)
        values = np.array([[panel.get(row, {}).get(name, nothing).value for name in columns] for row in rows])
        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        shade = (values - low) / (high - low or 1.0)
        shade = 1 - shade if metric in lower_is_better else shade
        axes.imshow(np.ma.masked_invalid(shade), cmap="Blues", vmin=-0.15, vmax=1.25, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            dark = bool(shade[row, column] > 0.62)
            text = f"{value:.2f}" if math.isfinite(value) else "–"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else _INK)
        axes.set_xticks(range(len(columns)), [name.replace("_", " ") for name in columns], rotation=35, ha="right",
                        rotation_mode="anchor")  # fmt: skip
        axes.set_yticks(range(len(rows)), rows if number % across == 0 else [""] * len(rows))
        axes.tick_params(length=0, labelsize=7.5)
        axes.spines[:].set_visible(False)
        axes.set_title(metric, fontsize=9)
    return _png(figure)


def prediction_slices(
    images: Mapping[str, Array],
    truth: Array,
    predictions: Mapping[str, Array],
    *,
    spacing_mm: tuple[float, float, float],
    index: int | None = None,
) -> bytes:
    """One axial slice with the outlines of truth and prediction.

    Parameters
    ----------
    images : sequence → (X, Y, Z); drawn alone with the truth first
    truth : (X, Y, Z) bool
    predictions : title → (X, Y, Z) bool, drawn on the first image
    spacing_mm : (3,) voxel size along X, Y, Z
    index : slice along Z; by default the one with most true voxels
    """
    at = _busiest(truth) if index is None else index
    first = next(iter(images.values()))
    cells: list[tuple[str, Array, Array | None]] = [(name, image, None) for name, image in images.items()]
    cells += [(label, first, prediction) for label, prediction in predictions.items()]
    figure, panels = _image_panels(len(cells), first.shape, spacing_mm)
    for axes, (label, image, prediction) in zip(panels, cells, strict=True):
        _show(axes, image[:, :, at], spacing_mm)
        _outline(axes, truth[:, :, at], spacing_mm, _AMBER, "-")
        if prediction is not None:
            _outline(axes, prediction[:, :, at], spacing_mm, _SKY, (0, (1.5, 1.5)))
        axes.set_title(label, fontsize=8.5)
    handles = [Line2D([], [], color=_AMBER, lw=1.6, label="truth")]
    handles += [Line2D([], [], color=_SKY, lw=1.6, ls=(0, (1.5, 1.5)), label="prediction")] if predictions else []
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return _png(figure)


def attribution_slices(
    images: Mapping[str, Array],
    maps: Mapping[str, Mapping[str, Array]],
    truth: Array,
    *,
    spacing_mm: tuple[float, float, float],
    index: int | None = None,
) -> bytes:
    """One axial slice of each channel with its attribution laid over it, a row per method.

    Parameters
    ----------
    images : channel → (X, Y, Z)
    maps : method → channel → (X, Y, Z), the same channels
    truth : (X, Y, Z) bool, outlined
    spacing_mm : (3,) voxel size along X, Y, Z
    index : slice along Z; by default the one with most true voxels

    Returns
    -------
    bytes
        PNG. The channels of a method share one colour scale, which ends at the
        99.5th percentile of the size of all its values shown; red speaks for the
        target, blue against it.
    """
    at = _busiest(truth) if index is None else index
    first = next(iter(images.values()))
    aspect = first.shape[1] * spacing_mm[1] / (first.shape[0] * spacing_mm[0])
    size = {"width": 1.3 + 1.9 * len(images), "height": 0.4 + (1.9 * aspect + 0.15) * max(len(maps), 1)}
    figure, grid = _figure(max(len(maps), 1), len(images), **size)
    for row, (method, of_channel) in enumerate(maps.items()):
        _check_labels(images, of_channel)
        panels = grid[row * len(images) : (row + 1) * len(images)]
        planes = {name: np.nan_to_num(of_channel[name][:, :, at].astype(float)) for name in images}
        shown = np.abs(np.concatenate([plane.ravel() for plane in planes.values()]))
        limit = float(np.percentile(shown, 99.5)) or float(shown.max()) or 1.0
        drawn: Any = None
        for axes, (name, plane) in zip(panels, planes.items(), strict=True):
            _show(axes, images[name][:, :, at], spacing_mm)
            drawn = axes.imshow(
                plane.T, cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower", interpolation="nearest",
                extent=_extent(plane.shape, spacing_mm), alpha=np.clip(np.abs(plane.T) / limit, 0, 0.7),
            )  # fmt: skip
            _outline(axes, truth[:, :, at], spacing_mm, _AMBER, "-")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(name, fontsize=8.5)
        panels[0].set_ylabel(method.replace("_", " "), fontsize=8.5)
        bar = figure.colorbar(drawn, ax=list(panels), shrink=0.8, pad=0.02, aspect=14, format="%.2g")
        bar.ax.tick_params(labelsize=6.5)
        bar.outline.set_visible(False)
    return _png(figure)


# Parts of figures

_PATCH = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}


def _figure(rows: int, columns: int, *, width: float, height: float) -> tuple[Canvas, Sequence[Axes]]:
    figure = Canvas(figsize=(width, height), dpi=_PIXELS_PER_INCH, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if rows > 1:
        figure.set_layout_engine("constrained", h_pad=0.1)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        _tidy(axes)
    return figure, list(grid.flat)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#B4BAC2")
    axes.tick_params(labelsize=8, color="#B4BAC2", labelcolor=_INK)
    axes.xaxis.label.set_fontsize(8.5)
    axes.yaxis.label.set_fontsize(8.5)
    axes.set_axisbelow(True)


def _panels(count: int, *, square: bool = False) -> tuple[Canvas, Sequence[Axes]]:
    if count == 0:
        raise OutOfRange("at least one configuration must be drawn, got none")
    columns = min(count, _PANELS_PER_ROW)
    rows = math.ceil(count / columns)
    side = 2.4
    size = {"width": 0.7 + side * columns, "height": 0.6 + (side if square else 2.0) * rows}
    figure, panels = _figure(rows, columns, **size)
    for spare in panels[count:]:
        spare.remove()
    return figure, panels[:count]


def _image_panels(
    count: int, shape: tuple[int, ...], spacing_mm: tuple[float, float, float]
) -> tuple[Canvas, Sequence[Axes]]:
    columns = min(count, _PANELS_PER_ROW)
    rows = math.ceil(count / columns)
    aspect = shape[1] * spacing_mm[1] / (shape[0] * spacing_mm[0])
    figure, panels = _figure(rows, columns, width=0.6 + 2.3 * columns, height=0.5 + (2.3 * aspect + 0.3) * rows)
    for axes in panels:
        axes.set_axis_off()
    return figure, panels[:count]


def _outer_labels(figure: Canvas, panels: Sequence[Axes], x: str, y: str) -> None:
    """Labels for all panels, which share their limits; numbers stand at the left and below only."""
    figure.supxlabel(x, fontsize=8.5)
    figure.supylabel(y, fontsize=8.5)
    for index, axes in enumerate(panels):
        axes.locator_params(nbins=4)
        below = index + _PANELS_PER_ROW < len(panels)
        axes.tick_params(labelleft=index % _PANELS_PER_ROW == 0, labelbottom=not below)


def _share_limits(panels: Sequence[Axes], *, x: bool, y: bool) -> None:
    if x:
        limits = [axes.get_xlim() for axes in panels]
        for axes in panels:
            axes.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
    if y:
        limits = [axes.get_ylim() for axes in panels]
        for axes in panels:
            axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _bars(axes: Axes, scores: Mapping[str, Score], colour: str) -> None:
    for position, score in enumerate(scores.values()):
        if not math.isfinite(score.value):
            continue
        axes.barh(position, score.value, color=colour, height=0.58, alpha=0.85)
        if math.isfinite(score.low):
            axes.plot([score.low, score.high], [position] * 2, color=_INK, lw=1.4, solid_capstyle="butt")
    axes.axvline(0, color="#B4BAC2", lw=1)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.set_ylim(len(scores) - 0.4, -0.6)
    axes.grid(axis="x", color="#E3E6EA", lw=0.8)


def _chance_band(axes: Axes, lines: Mapping[str, Mapping[float | str, Score]], at: Mapping[float | str, float]) -> None:
    """Between the lowest and the highest chance of all lines, with a line at their mean."""
    chances = {setting: [line[setting].chance for line in lines.values() if setting in line] for setting in at}
    known = {at[key]: kept for key, values in chances.items() if (kept := [v for v in values if math.isfinite(v)])}
    if not known:
        return
    x = list(known)
    axes.fill_between(
        x, [min(v) for v in known.values()], [max(v) for v in known.values()], color=_GREY, alpha=0.25, lw=0
    )
    axes.plot(x, [_mean(v) for v in known.values()], color=_GREY, ls=":", lw=1.4, marker=".", ms=4, label="chance")


def _within(axes: Axes, limits: tuple[float, float]) -> None:
    """Leave room for the markers at the ends of the range; bounds of intervals beyond it are cut."""
    low, high = axes.get_ylim()
    if math.isfinite(limits[0]):
        low = max(low, limits[0] - 0.03)
    if math.isfinite(limits[1]):
        high = min(high, limits[1] + 0.03)
    axes.set_ylim(low, high)


def _arcs(axes: Axes, low: float) -> None:
    """Arcs of equal magnitude, labelled where they leave the square [low, 1]²."""
    angle = np.linspace(0, np.pi / 2, 400)
    for radius in np.arange(0.1, 1.45, 0.1 if low > 0.35 else 0.2):
        x, y = radius * np.cos(angle), radius * np.sin(angle)
        inside = (x >= low) & (x <= 1) & (y >= low) & (y <= 1)
        if not inside.any():
            continue
        axes.plot(x[inside], y[inside], color="#D5D9DE", lw=0.9, zorder=0)
        end = int(np.argmax(inside))
        axes.text(x[end], y[end], f"{radius:.1f}", color=_GREY, fontsize=7, ha="center", va="center", bbox=_PATCH)


def _show(axes: Axes, plane: Array, spacing_mm: tuple[float, float, float]) -> None:
    low, high = np.nanpercentile(plane, (1, 99))
    axes.imshow(
        plane.T, cmap="gray", vmin=low, vmax=high if high > low else low + 1, origin="lower",
        extent=_extent(plane.shape, spacing_mm), interpolation="nearest",
    )  # fmt: skip


def _outline(
    axes: Axes, mask: Array, spacing_mm: tuple[float, float, float], colour: str, style: Any, width: float = 1.2
) -> None:
    """Along the edges of voxels: a contour would round lesions of a few voxels away."""
    inside = np.pad(np.asarray(mask, dtype=bool), 1)
    x, y = spacing_mm[:2]
    # An edge lies between two neighbours of which one is inside.
    across = [((i * x, (j - 1) * y), (i * x, j * y)) for i, j in np.argwhere(inside[1:] != inside[:-1])]
    along = [(((i - 1) * x, j * y), (i * x, j * y)) for i, j in np.argwhere(inside[:, 1:] != inside[:, :-1])]
    lines = LineCollection([*across, *along], colors=colour, linewidths=width, linestyles=style, capstyle="round")
    axes.add_collection(lines, autolim=False)


def _extent(shape: tuple[int, ...], spacing_mm: tuple[float, float, float]) -> tuple[float, float, float, float]:
    return 0.0, shape[0] * spacing_mm[0], 0.0, shape[1] * spacing_mm[1]


def _busiest(truth: Array) -> int:
    return int(np.argmax(np.asarray(truth, dtype=bool).sum(axis=(0, 1))))


def _look(index: int) -> tuple[str, str]:
    # After a round of colours each meets another marker.
    turn = index // len(_COLOURS)
    return _COLOURS[index % len(_COLOURS)], _MARKERS[(index + turn) % len(_MARKERS)]


def _titled(quantity: str, unit: str) -> str:
    return f"{quantity} ({unit})" if unit else quantity


def _mean(values: Sequence[float]) -> float:
    kept = [value for value in values if math.isfinite(value)]
    return math.fsum(kept) / len(kept) if kept else math.nan


def _paired(first: npt.ArrayLike, second: npt.ArrayLike) -> tuple[Array, Array]:
    one, two = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if one.shape != two.shape:
        raise OutOfRange(f"both axes must have the same subjects, got {one.size} and {two.size} values")
    kept = np.isfinite(one) & np.isfinite(two)
    return one[kept], two[kept]


def _check_labels(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    if set(first) != set(second):
        raise OutOfRange(f"both sides must have the same labels, got {sorted(first)} and {sorted(second)}")


def _png(figure: Canvas) -> bytes:
    buffer = io.BytesIO()
    # Without the version of matplotlib in it, equal figures are equal bytes.
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.08, metadata={"Software": None})
    return buffer.getvalue()
