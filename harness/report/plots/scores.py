"""Plots of values with intervals, by configuration, setting, channel and region."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from harness.core.types import Score
from harness.pipeline.leaderboard import read_facts
from harness.report.plots.canvas import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    SPINE,
    figure_of,
    grid_lines,
    look,
    mean_of,
    png_of,
    share_limits,
    titled,
)
from harness.report.wording import row_labels

__all__ = ["Bars", "channel_bars", "colour_range", "curves", "grouped_intervals", "heat_maps", "objective_intervals"]


@dataclass(frozen=True)
class Bars:
    """One panel of :func:`channel_bars`.

    Parameters
    ----------
    title : title of the panel
    quantity : label of the axis
    scores : values with intervals, by channel; channels may be missing
    muted : whether bars are drawn in grey, for a control
    """

    title: str
    quantity: str
    scores: Mapping[str, Score]
    muted: bool = False


def objective_intervals(table: pa.Table) -> bytes:
    """Objective of every row with its interval, in the order of the table.

    Parameters
    ----------
    table : leaderboard from :func:`harness.pipeline.leaderboard.build`

    Returns
    -------
    bytes
        PNG. Filled and blue: first, or not distinguishable from the first;
        filled and orange: distinguishable; open and grey: not ranked.
    """
    facts, lines, labels = read_facts(table), table.to_pylist(), row_labels(table)
    name = facts.objective
    figure, (axes,) = figure_of(1, 1, width=6.0, height=1.4 + 0.3 * max(len(lines), 1))
    kinds = {
        "group": (BLUE, "o", BLUE, "first, or not distinguishable from it"),
        "other": (ORANGE, "s", ORANGE, "differs from the first"),
        "none": (GREY, "D", "white", "not ranked"),
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
        axes.axvline(metric.chance, color=GREY, ls=":", lw=1.2, zorder=1)
        axes.annotate("chance", (metric.chance, 1), (3, -3), xycoords=("data", "axes fraction"), va="top",
                      textcoords="offset points", color=GREY, fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(lines)), labels)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    better = {"higher": "higher is better", "lower": "lower is better"}.get(metric.direction, "")
    what = "mean" if metric.level == "subject" else "value"
    axes.set_xlabel(f"{titled(name, metric.unit)}: {what} and {100 * facts.level:.0f} % interval ({better})")
    handles = [
        Line2D([], [], color=colour, marker=marker, mfc=face, lw=2, label=text)
        for key, (colour, marker, face, text) in kinds.items()
        if key in seen
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    grid_lines(axes, "x")
    return png_of(figure)


def grouped_intervals(
    groups: Mapping[str, Mapping[str, Score]], *, x_label: str, zero: bool = False, chance: float = math.nan
) -> bytes:
    """Values with intervals, in groups below each other.

    Parameters
    ----------
    groups : values by group and row; each group has a colour and marker
    x_label : label of the value axis
    zero : whether to draw a line at zero
    chance : chance level, drawn if known
    """
    count = sum(len(rows) for rows in groups.values()) + len(groups)
    figure, (axes,) = figure_of(1, 1, width=6.0, height=0.9 + 0.21 * max(count, 1))
    names: list[str] = []
    headings: list[int] = []
    for index, (group, rows) in enumerate(groups.items()):
        colour, marker = look(index)
        headings.append(len(names))
        names.append(group)
        for row, score in rows.items():
            if math.isfinite(score.low):
                axes.plot([score.low, score.high], [len(names)] * 2, color=colour, lw=1.8, zorder=2)
            if math.isfinite(score.value):
                axes.plot(score.value, len(names), marker=marker, color=colour, ms=5.5, zorder=3)
            names.append(row)
    if zero:
        axes.axvline(0, color=GREY, lw=1, zorder=1)
    if math.isfinite(chance):
        axes.axvline(chance, color=GREY, ls=":", lw=1.2, zorder=1)
        axes.annotate("chance", (chance, 1), (0, 2), xycoords=("data", "axes fraction"), textcoords="offset points",
                      ha="center", va="bottom", color=GREY, fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0, labelsize=7.5)
    for position in headings:
        axes.get_yticklabels()[position].set_fontweight("bold")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(x_label)
    grid_lines(axes, "x")
    return png_of(figure)


def channel_bars(panels: Sequence[Bars]) -> bytes:
    """Bar plots of several quantities per channel, side by side.

    Parameters
    ----------
    panels : panels in order; a channel that is missing in a panel is left empty there
    """
    names = list(dict.fromkeys(name for panel in panels for name in panel.scores))
    nothing = Score(math.nan, math.nan, math.nan, 0)
    count = max(len(panels), 1)
    figure, all_axes = figure_of(1, count, width=1.0 + 2.15 * count, height=1.3 + 0.36 * max(len(names), 1))
    for axes, panel in zip(all_axes, panels, strict=False):
        _bars(axes, {name: panel.scores.get(name, nothing) for name in names}, GREY if panel.muted else BLUE)
        axes.set_title(panel.title, fontsize=9)
        axes.set_xlabel(panel.quantity)
        if axes is not all_axes[0]:
            axes.set_yticklabels([])
    for quantity in {panel.quantity for panel in panels}:
        alike = [axes for axes, panel in zip(all_axes, panels, strict=False) if panel.quantity == quantity]
        share_limits(alike, x=True, y=False)
    return png_of(figure)


def curves(
    panels: Mapping[str, Mapping[str, Mapping[float | str, Score]]],
    *,
    x_label: str,
    limits: tuple[float, float] = (-math.inf, math.inf),
    levels: Mapping[str, float] = MappingProxyType({}),
) -> bytes:
    """Values over a setting, one line per configuration, with a band for the chance level.

    Parameters
    ----------
    panels : values with intervals, by quantity, configuration and setting. Settings are
        numbers, drawn to scale, or names, evenly spaced
    x_label : label of the setting axis
    limits : range of the metric, to which the axis is limited
    levels : values that do not depend on the setting, by name, each a dashed line across all panels
    """
    figure, all_axes = figure_of(1, max(len(panels), 1), width=2.2 + 3.3 * max(len(panels), 1), height=3.5)
    for axes, (quantity, lines) in zip(all_axes, panels.items(), strict=False):
        settings = list(dict.fromkeys(setting for line in lines.values() for setting in line))
        to_scale = all(isinstance(setting, int | float) for setting in settings)
        at = {setting: float(setting) if to_scale else float(index) for index, setting in enumerate(settings)}
        span = max(at.values(), default=0.0) - min(at.values(), default=0.0) or 1.0
        _chance_band(axes, lines, at)
        for index, (label, line) in enumerate(lines.items()):
            colour, marker = look(index)
            # Slightly shifted, so that intervals do not overlap.
            shift = (index - (len(lines) - 1) / 2) * span * 0.012
            x = [at[setting] + shift for setting in line]
            axes.plot(x, [score.value for score in line.values()], marker=marker, color=colour, lw=1.3, ms=4.5,
                      mec="white", mew=0.5, label=label, zorder=3)  # fmt: skip
            for position, score in zip(x, line.values(), strict=True):
                if math.isfinite(score.low):
                    axes.plot([position] * 2, [score.low, score.high], color=colour, lw=1.0, alpha=0.55, zorder=2)
        for name, value in levels.items():
            axes.axhline(value, color=INK, lw=1.1, ls=(0, (4, 2)), label=name, zorder=2.5)
        axes.set_xticks([at[setting] for setting in settings], [f"{setting}" for setting in settings])
        axes.set_xlabel(x_label)
        axes.set_ylabel(quantity)
        _within(axes, limits)
        grid_lines(axes, "y")
    if panels and all_axes[0].get_legend_handles_labels()[0]:
        handles, labels = all_axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    return png_of(figure)


def heat_maps(
    panels: Mapping[str, Mapping[str, Mapping[str, Score]]], *, lower_is_better: Collection[str] = ()
) -> bytes:
    """Heat maps of configurations by region, one panel per metric; darker is better.

    The range of the colours is at least the median width of the intervals, so that values
    that differ less than they are uncertain have similar colours.

    Parameters
    ----------
    panels : values by metric, configuration and region; each field shows its value
    lower_is_better : metrics for which small values are dark
    """
    rows = list(dict.fromkeys(row for panel in panels.values() for row in panel))
    columns = list(dict.fromkeys(name for panel in panels.values() for row in panel.values() for name in row))
    across = min(len(panels), 2) or 1
    down = math.ceil(len(panels) / across) or 1
    width, height = 1.6 + across * (0.3 + 0.56 * max(len(columns), 2)), down * (1.1 + 0.27 * max(len(rows), 1))
    figure, all_axes = figure_of(down, across, width=width, height=height)
    for spare in all_axes[len(panels) :]:
        spare.remove()
    for number, (axes, (metric, panel)) in enumerate(zip(all_axes, panels.items(), strict=False)):
        nothing = Score(math.nan, math.nan, math.nan, 0)
        values = np.array([[panel.get(row, {}).get(name, nothing).value for name in columns] for row in rows])
        low, high = colour_range([score for row in panel.values() for score in row.values()])
        shade = (values - low) / (high - low)
        shade = 1 - shade if metric in lower_is_better else shade
        axes.imshow(np.ma.masked_invalid(shade), cmap="Blues", vmin=-0.15, vmax=1.25, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            dark = bool(shade[row, column] > 0.62)
            text = f"{value:.2f}" if math.isfinite(value) else "–"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else INK)
        axes.set_xticks(range(len(columns)), [name.replace("_", " ") for name in columns], rotation=35, ha="right",
                        rotation_mode="anchor")  # fmt: skip
        axes.set_yticks(range(len(rows)), rows if number % across == 0 else [""] * len(rows))
        axes.tick_params(length=0, labelsize=7.5)
        axes.spines[:].set_visible(False)
        axes.set_title(metric, fontsize=9)
    return png_of(figure)


def colour_range(scores: Iterable[Score]) -> tuple[float, float]:
    """Values of the lightest and the darkest colour; at least as far apart as the intervals are wide."""
    known = [score for score in scores if math.isfinite(score.value)]
    if not known:
        return 0.0, 1.0
    low, high = min(score.value for score in known), max(score.value for score in known)
    widths = [score.high - score.low for score in known if math.isfinite(score.high - score.low)]
    missing = max(float(np.median(widths)) if widths else 0.0, high - low, 1e-12) - (high - low)
    return low - missing / 2, high + missing / 2


def _bars(axes: Axes, scores: Mapping[str, Score], colour: str) -> None:
    for position, score in enumerate(scores.values()):
        if not math.isfinite(score.value):
            continue
        axes.barh(position, score.value, color=colour, height=0.58, alpha=0.85)
        if math.isfinite(score.low):
            axes.plot([score.low, score.high], [position] * 2, color=INK, lw=1.4, solid_capstyle="butt")
    axes.axvline(0, color=SPINE, lw=1)
    axes.set_yticks(range(len(scores)), list(scores))
    axes.set_ylim(len(scores) - 0.4, -0.6)
    grid_lines(axes, "x")


def _chance_band(axes: Axes, lines: Mapping[str, Mapping[float | str, Score]], at: Mapping[float | str, float]) -> None:
    """Draw a band from the lowest to the highest chance level of all lines, and a line at their mean."""
    chances = {setting: [line[setting].chance for line in lines.values() if setting in line] for setting in at}
    known = {at[key]: kept for key, values in chances.items() if (kept := [v for v in values if math.isfinite(v)])}
    if not known:
        return
    x = list(known)
    axes.fill_between(
        x, [min(v) for v in known.values()], [max(v) for v in known.values()], color=GREY, alpha=0.25, lw=0
    )
    axes.plot(x, [mean_of(v) for v in known.values()], color=GREY, ls=":", lw=1.4, marker=".", ms=4, label="chance")


def _within(axes: Axes, limits: tuple[float, float]) -> None:
    """Limit an axis to a range with room for markers at its ends; intervals beyond it are cut off."""
    low, high = axes.get_ylim()
    if math.isfinite(limits[0]):
        low = max(low, limits[0] - 0.03)
    if math.isfinite(limits[1]):
        high = min(high, limits[1] + 0.03)
    axes.set_ylim(low, high)
