"""Common parts of all plots: size, colours, axes and PNG output.

Plots use matplotlib's figure objects without pyplot: no global state, no window, and
equal bytes for equal data. The colours are those of Okabe and Ito, which colour-blind
readers can distinguish; no information is conveyed by colour alone.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator

from harness.core.errors import OutOfRange

__all__ = [
    "AMBER",
    "BLUE",
    "COLOURS",
    "Canvas",
    "GREY",
    "INK",
    "ORANGE",
    "PANELS_PER_ROW",
    "SKY",
    "SPINE",
    "check_labels",
    "figure_of",
    "grid_lines",
    "look",
    "mean_of",
    "outer_labels",
    "panels_of",
    "png_of",
    "share_limits",
    "texts_drawn",
    "titled",
]

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#8A8F98", "#22262B"
SKY, PURPLE, AMBER, SPINE = "#56B4E9", "#CC79A7", "#E69F00", "#B4BAC2"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, AMBER, SKY, INK, GREY)
PANELS_PER_ROW = 4
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_PIXELS_PER_INCH = 144


def figure_of(
    rows: int, columns: int, *, width: float, height: float, widths: Sequence[float] | None = None
) -> tuple[Canvas, Sequence[Axes]]:
    """A figure of ``width`` × ``height`` inches and its axes, row by row; ``widths`` are relative column widths."""
    figure = Canvas(figsize=(width, height), dpi=_PIXELS_PER_INCH, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    if rows > 1:
        figure.set_layout_engine("constrained", h_pad=0.1)
    grid = figure.subplots(rows, columns, squeeze=False, width_ratios=widths)
    for axes in grid.flat:
        _tidy(axes)
    return figure, list(grid.flat)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(SPINE)
    axes.tick_params(labelsize=8, color=SPINE, labelcolor=INK)
    axes.xaxis.label.set_fontsize(8.5)
    axes.yaxis.label.set_fontsize(8.5)
    axes.set_axisbelow(True)


def panels_of(count: int, *, square: bool = False) -> tuple[Canvas, Sequence[Axes]]:
    """A figure with one panel per configuration, several per row.

    Raises
    ------
    OutOfRange
        If there is no configuration.
    """
    if count == 0:
        raise OutOfRange("at least one configuration must be drawn, got none")
    columns = min(count, PANELS_PER_ROW)
    rows = math.ceil(count / columns)
    side = 2.4
    height = 0.6 + (side if square else 2.0) * rows
    figure, panels = figure_of(rows, columns, width=0.7 + side * columns, height=height)
    for spare in panels[count:]:
        spare.remove()
    return figure, panels[:count]


def outer_labels(figure: Canvas, panels: Sequence[Axes], x: str, y: str) -> None:
    """Label a grid of panels with common limits; tick labels are at the left and bottom only."""
    figure.supxlabel(x, fontsize=8.5)
    figure.supylabel(y, fontsize=8.5)
    for index, axes in enumerate(panels):
        axes.locator_params(nbins=4)
        below = index + PANELS_PER_ROW < len(panels)
        axes.tick_params(labelleft=index % PANELS_PER_ROW == 0, labelbottom=not below)


def share_limits(panels: Sequence[Axes], *, x: bool, y: bool) -> None:
    """Give all panels common limits that include the data of all."""
    if x:
        limits = [axes.get_xlim() for axes in panels]
        for axes in panels:
            axes.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
    if y:
        limits = [axes.get_ylim() for axes in panels]
        for axes in panels:
            axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def grid_lines(axes: Axes, axis: Literal["x", "y"]) -> None:
    """Draw faint grid lines for an axis."""
    axes.grid(axis=axis, color="#E3E6EA", lw=0.8)


def look(index: int) -> tuple[str, str]:
    """Colour and marker of a line, by its number; there are 64 combinations."""
    # After each cycle of colours, the markers are shifted.
    turn = index // len(COLOURS)
    return COLOURS[index % len(COLOURS)], _MARKERS[(index + turn) % len(_MARKERS)]


def titled(quantity: str, unit: str) -> str:
    """Label of an axis, such as ``volume (ml)``."""
    return f"{quantity} ({unit})" if unit else quantity


def mean_of(values: Sequence[float]) -> float:
    """Mean of the finite values; NaN if there is none."""
    kept = [value for value in values if math.isfinite(value)]
    return math.fsum(kept) / len(kept) if kept else math.nan


_rename: ContextVar[Callable[[str], str] | None] = ContextVar("_rename", default=None)


@contextlib.contextmanager
def texts_drawn(rename: Callable[[str], str]) -> Iterator[None]:
    """Draw other texts within a ``with`` block, such as pseudonyms of subjects.

    Parameters
    ----------
    rename : applied to each text of each figure
    """
    token = _rename.set(rename)
    try:
        yield
    finally:
        _rename.reset(token)


def _replace_texts(figure: Canvas, rename: Callable[[str], str]) -> None:
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_locator(), FixedLocator):  # otherwise, labels are numbers
                before = [label.get_text() for label in axis.get_ticklabels()]
                after = [rename(text) for text in before]
                if after != before:
                    axis.set_ticklabels(after)
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if (after_ := rename(text.get_text())) != text.get_text():
            text.set_text(after_)


def png_of(figure: Canvas) -> bytes:
    """The figure as PNG; equal figures give equal bytes."""
    rename = _rename.get()
    if rename is not None:
        _replace_texts(figure, rename)
    buffer = io.BytesIO()
    # By default, the file would contain the version of matplotlib.
    figure.savefig(buffer, format="png", bbox_inches="tight", pad_inches=0.08, metadata={"Software": None})
    return buffer.getvalue()


def check_labels(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    """Check that two mappings have the same labels.

    Raises
    ------
    OutOfRange
        If they have not.
    """
    if set(first) != set(second):
        raise OutOfRange(f"both sides must have the same labels, got {sorted(first)} and {sorted(second)}")
