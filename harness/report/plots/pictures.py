"""Pictures overlaid with maps."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from harness.core.types import Array
from harness.report.plots.canvas import AMBER, figure_of, png_of
from harness.report.plots.slices import draw_outline

__all__ = ["picture_maps"]

_SIDE = 1.5  # inches of a panel
_GREY = np.array([0.299, 0.587, 0.114])  # luminance of red, green and blue


def picture_maps(
    pictures: Mapping[str, Array],
    maps: Mapping[str, Mapping[str, Array]],
    outlines: Mapping[str, Array],
    *,
    shape: tuple[int, int],
) -> bytes:
    """Maps of several pictures, one row per method and one column per picture.

    Parameters
    ----------
    pictures : (H, W, 3) float in [0, 1] by column; drawn in the first row, and in grey under
        the maps. Without any, maps are drawn on white
    maps : (H, W) map by method and column. Each is scaled by its largest absolute value:
        red is positive, blue negative
    outlines : (H, W) bool by column, the truth; columns without one have no outline
    shape : (H, W)

    Returns
    -------
    bytes
        PNG; equal input gives equal bytes.
    """
    columns = list(dict.fromkeys([*pictures, *(name for one in maps.values() for name in one)]))
    rows: list[tuple[str, Mapping[str, Array] | None]] = [("", None)] if pictures else []
    rows += maps.items()
    tall = _SIDE * shape[0] / shape[1]
    figure, grid = figure_of(
        len(rows), len(columns), width=0.8 + (_SIDE + 0.1) * len(columns), height=0.4 + (tall + 0.1) * len(rows)
    )
    for row, (method, of_method) in enumerate(rows):
        panels = grid[row * len(columns) : (row + 1) * len(columns)]
        for axes, name in zip(panels, columns, strict=True):
            if of_method is None and name in pictures:
                axes.imshow(np.clip(pictures[name], 0, 1), extent=_extent(shape), interpolation="nearest")
            elif of_method is not None and name in of_method:
                _overlay(axes, pictures.get(name), of_method[name], shape)
            if name in outlines:
                draw_outline(axes, outlines[name][::-1].T, (1.0, 1.0), AMBER, "-", 0.8)
            axes.set(xticks=[], yticks=[], xlim=(0, shape[1]), ylim=(0, shape[0]))
            if row == 0:
                axes.set_title(name, fontsize=7.5)
        panels[0].set_ylabel(method.replace("_", " "), fontsize=7.5)
    return png_of(figure)


def _overlay(axes: Axes, picture: Array | None, shown: Array, shape: tuple[int, int]) -> None:
    if picture is not None:
        axes.imshow(picture @ _GREY, cmap="gray", vmin=0, vmax=1, extent=_extent(shape), interpolation="nearest")
    scaled = shown / (float(np.abs(shown).max()) or 1.0)
    axes.imshow(
        scaled, cmap="RdBu_r", vmin=-1, vmax=1, extent=_extent(shape), interpolation="nearest",
        alpha=1.0 if picture is None else np.clip(1.2 * np.abs(scaled), 0, 0.85),
    )  # fmt: skip


def _extent(shape: tuple[int, int]) -> tuple[float, float, float, float]:
    return 0.0, float(shape[1]), 0.0, float(shape[0])
