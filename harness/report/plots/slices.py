"""Axial slices of images, overlaid with the truth, predictions and maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D

from harness.core.types import Array
from harness.report.plots.canvas import AMBER, PANELS_PER_ROW, SKY, Canvas, check_labels, figure_of, png_of

__all__ = ["attribution_slices", "draw_grey", "draw_outline", "extent_of", "prediction_slices"]


def prediction_slices(
    images: Mapping[str, Array],
    truth: Array,
    predictions: Mapping[str, Array],
    *,
    spacing_mm: tuple[float, float, float],
    index: int | None = None,
) -> bytes:
    """An axial slice with the outlines of truth and predictions.

    Parameters
    ----------
    images : (X, Y, Z) images by sequence; drawn first, with the truth only
    truth : (X, Y, Z) bool
    predictions : (X, Y, Z) bool masks by title, drawn on the first image
    spacing_mm : (3,) voxel size along X, Y, Z
    index : index of the slice along Z; by default, the one with the most true voxels
    """
    at = _busiest(truth) if index is None else index
    first = next(iter(images.values()))
    cells: list[tuple[str, Array, Array | None]] = [(name, image, None) for name, image in images.items()]
    cells += [(label, first, prediction) for label, prediction in predictions.items()]
    figure, panels = _image_panels(len(cells), first.shape, spacing_mm)
    for axes, (label, image, prediction) in zip(panels, cells, strict=True):
        draw_grey(axes, image[:, :, at], spacing_mm)
        draw_outline(axes, truth[:, :, at], spacing_mm, AMBER, "-")
        if prediction is not None:
            draw_outline(axes, prediction[:, :, at], spacing_mm, SKY, (0, (1.5, 1.5)))
        axes.set_title(label, fontsize=8.5)
    handles = [Line2D([], [], color=AMBER, lw=1.6, label="truth")]
    handles += [Line2D([], [], color=SKY, lw=1.6, ls=(0, (1.5, 1.5)), label="prediction")] if predictions else []
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return png_of(figure)


def attribution_slices(
    images: Mapping[str, Array],
    maps: Mapping[str, Mapping[str, Array]],
    truth: Array,
    *,
    spacing_mm: tuple[float, float, float],
    index: int | None = None,
    opaque: bool = False,
) -> bytes:
    """An axial slice of each channel, overlaid with its attribution, one row per method.

    Parameters
    ----------
    images : (X, Y, Z) images by channel
    maps : (X, Y, Z) maps by method and channel, with the channels of ``images``
    truth : (X, Y, Z) bool, drawn as outline
    spacing_mm : (3,) voxel size along X, Y, Z
    index : index of the slice along Z; by default, the one with the most true voxels
    opaque : whether the map hides the image where it is not zero, so that equal values look
        equal in all channels; otherwise, the image shines through small values

    Returns
    -------
    bytes
        PNG. The channels of a method share one colour scale, which ends at the 99.5th
        percentile of all absolute values shown; red is evidence for the target, blue
        evidence against it. A scale without negative values starts at zero.
    """
    at = _busiest(truth) if index is None else index
    first = next(iter(images.values()))
    aspect = first.shape[1] * spacing_mm[1] / (first.shape[0] * spacing_mm[0])
    height = 0.4 + (1.9 * aspect + 0.15) * max(len(maps), 1)
    figure, grid = figure_of(max(len(maps), 1), len(images), width=1.3 + 1.9 * len(images), height=height)
    for row, (method, of_channel) in enumerate(maps.items()):
        check_labels(images, of_channel)
        panels = grid[row * len(images) : (row + 1) * len(images)]
        planes = {name: np.nan_to_num(of_channel[name][:, :, at].astype(float)) for name in images}
        shown = np.abs(np.concatenate([plane.ravel() for plane in planes.values()]))
        limit = float(np.percentile(shown, 99.5)) or float(shown.max()) or 1.0
        signed = any((plane < 0).any() for plane in planes.values())
        drawn: Any = None
        for axes, (name, plane) in zip(panels, planes.items(), strict=True):
            draw_grey(axes, images[name][:, :, at], spacing_mm)
            drawn = axes.imshow(
                plane.T, cmap="RdBu_r" if signed else "Reds", vmin=-limit if signed else 0.0, vmax=limit,
                origin="lower", interpolation="nearest", extent=extent_of(plane.shape, spacing_mm),
                alpha=(plane.T != 0).astype(float) if opaque else np.clip(np.abs(plane.T) / limit, 0, 0.7),
            )  # fmt: skip
            draw_outline(axes, truth[:, :, at], spacing_mm, AMBER, "-")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if row == 0:
                axes.set_title(name, fontsize=8.5)
        panels[0].set_ylabel(method.replace("_", " "), fontsize=8.5)
        bar = figure.colorbar(drawn, ax=list(panels), shrink=0.8, pad=0.02, aspect=14, format="%.2g")
        bar.ax.tick_params(labelsize=6.5)
        bar.outline.set_visible(False)
    return png_of(figure)


def _image_panels(
    count: int, shape: tuple[int, ...], spacing_mm: tuple[float, float, float]
) -> tuple[Canvas, Sequence[Axes]]:
    columns = min(count, PANELS_PER_ROW)
    rows = math.ceil(count / columns)
    aspect = shape[1] * spacing_mm[1] / (shape[0] * spacing_mm[0])
    figure, panels = figure_of(rows, columns, width=0.6 + 2.3 * columns, height=0.5 + (2.3 * aspect + 0.3) * rows)
    for axes in panels:
        axes.set_axis_off()
    return figure, panels[:count]


def draw_grey(axes: Axes, plane: Array, spacing_mm: Sequence[float]) -> None:
    """Draw an image in grey, black at its 1st and white at its 99th percentile.

    Parameters
    ----------
    axes : axes to draw on
    plane : (A, B), drawn with A to the right and B upwards
    spacing_mm : voxel size along A, B; further values are ignored
    """
    low, high = np.nanpercentile(plane, (1, 99))
    axes.imshow(
        plane.T, cmap="gray", vmin=low, vmax=high if high > low else low + 1, origin="lower",
        extent=extent_of(plane.shape, spacing_mm), interpolation="nearest",
    )  # fmt: skip


def draw_outline(
    axes: Axes, mask: Array, spacing_mm: Sequence[float], colour: str, style: Any, width: float = 1.2
) -> None:
    """Draw the outline of a mask along voxel edges, because a contour would smooth away small lesions.

    Parameters
    ----------
    axes : axes to draw on
    mask : (A, B), nonzero inside
    spacing_mm : voxel size along A, B; further values are ignored
    colour, style, width : properties of the line
    """
    inside = np.pad(np.asarray(mask, dtype=bool), 1)
    x, y = spacing_mm[:2]
    # An edge separates two neighbours of which exactly one is inside.
    across = [((i * x, (j - 1) * y), (i * x, j * y)) for i, j in np.argwhere(inside[1:] != inside[:-1])]
    along = [(((i - 1) * x, j * y), (i * x, j * y)) for i, j in np.argwhere(inside[:, 1:] != inside[:, :-1])]
    lines = LineCollection([*across, *along], colors=colour, linewidths=width, linestyles=style, capstyle="round")
    axes.add_collection(lines, autolim=False)


def extent_of(shape: Sequence[int], spacing_mm: Sequence[float]) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of a plane (A, B) in mm."""
    return 0.0, shape[0] * spacing_mm[0], 0.0, shape[1] * spacing_mm[1]


def _busiest(truth: Array) -> int:
    return int(np.argmax(np.asarray(truth, dtype=bool).sum(axis=(0, 1))))
