"""Previews of maps in three planes, for viewing results without a NIfTI viewer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from harness.core.errors import OutOfRange
from harness.core.types import Array
from harness.data.maps import with_channels
from harness.report.plots.canvas import AMBER, GREY, SPINE, figure_of, png_of
from harness.report.plots.slices import draw_grey, draw_outline, extent_of
from harness.report.wording import typographic

__all__ = ["draw_map"]

_INCHES = 2.0  # height of the tallest plane
_WIDEST, _NARROWEST = 8.0, 4.0  # largest width of all planes together, smallest width of the picture, in inches
_MOST_VOXELS = 300  # largest number of pixels along a side of a plane; larger planes are reduced
_SPARSE = 0.05  # a background with a smaller share of the voxels is a lesion mask, which is not cropped


def draw_map(
    values: Array,
    affine: Array,
    *,
    background: Array | None = None,
    outline: Array | None = None,
    channels: Sequence[str] = (),
    title: str = "",
) -> bytes:
    """Draw a map in three planes through the strongest voxel of each channel, one row per channel.

    The planes are axial, coronal and sagittal after the grid is rotated to the nearest
    RAS+ axes; the subject's right is on the right.

    Parameters
    ----------
    values : (C, X, Y, Z) or (X, Y, Z) float, higher means more evidence; NaN counts as 0
    affine : (4, 4) voxel to world (mm, RAS+)
    background : (X, Y, Z) for all channels or (C, X, Y, Z), drawn in grey underneath. The
        picture is cropped to the voxels that differ from the first one, unless they are few
    outline : (X, Y, Z) bool, the truth
    channels : names of the C channels
    title : title of the picture

    Returns
    -------
    bytes
        PNG; equal input gives equal bytes. All channels share one colour scale, centred
        at zero and ending at the 99.5th percentile of the absolute nonzero values shown.
        Of several equally strong voxels, the one nearest to the centre of the truth (if
        there is none, of the background or the grid) is shown.

    Raises
    ------
    OutOfRange
        If the arrays are not on one grid, or the number of names is not that of channels.
    """
    shown = np.nan_to_num(with_channels(values, channels).astype(np.float32, copy=False))
    scene = _Scene.of(shown, affine, background, outline)
    # For 2D patches, leave out planes that are one voxel high.
    flat = [side.stop - side.start == 1 for side in scene.box]
    planes = [plane for plane in _PLANES if not (flat[plane.across] or flat[plane.up])] or [_PLANES[0]]
    extent = [(side.stop - side.start) * mm for side, mm in zip(scene.box, scene.spacing_mm, strict=True)]
    scale = min(
        _INCHES / max(extent[plane.up] for plane in planes), _WIDEST / sum(extent[plane.across] for plane in planes)
    )
    widths = [extent[plane.across] for plane in planes]
    height = max(extent[plane.up] for plane in planes) * scale + 0.45
    width = max(sum(widths) * scale + 1.3, _NARROWEST)
    figure, panels = figure_of(len(shown), len(planes), width=width, height=height * len(shown) + 0.2, widths=widths)
    cuts = [[_cut(scene, number, plane) for plane in planes] for number in range(len(shown))]
    sizes = np.concatenate([np.abs(cut.values).ravel() for row in cuts for cut in row])
    limit = float(np.percentile(sizes[sizes > 0], 99.5)) if sizes.any() else 1.0
    names = list(channels) or _numbered(len(shown))
    for number, (name, row) in enumerate(zip(names, cuts, strict=True)):
        own = panels[number * len(planes) : (number + 1) * len(planes)]
        for axes, plane, cut in zip(own, planes, row, strict=True):
            drawn = _draw(axes, plane, cut, limit)
        own[0].set_title(_heading(scene, number, name), fontsize=8, loc="left", pad=12)
    bar = figure.colorbar(drawn, ax=list(panels), shrink=min(1.0, 1 / len(shown) + 0.2), pad=0.02, format="%.2g")
    bar.ax.tick_params(labelsize=6.5)
    bar.outline.set_visible(False)
    if title:
        figure.suptitle(title, fontsize=9.5, x=0.01, ha="left")
    return png_of(figure)


@dataclass(frozen=True)
class _Plane:
    """A plane: its normal axis, the axes to the right and upwards, and the letters at their ends."""

    through: int
    across: int
    up: int
    letters: tuple[str, str, str, str]  # left, right, bottom, top


_PLANES = (
    _Plane(2, 0, 1, ("L", "R", "P", "A")),
    _Plane(1, 0, 2, ("L", "R", "I", "S")),
    _Plane(0, 1, 2, ("P", "A", "I", "S")),
)


@dataclass(frozen=True)
class _Cut:
    """Arrays of one plane, (across, up), and the size of its voxels."""

    values: Array
    grey: Array | None
    outline: Array | None
    spacing_mm: tuple[float, float]


@dataclass(frozen=True)
class _Scene:
    """The arrays to draw, on axes to the right, anterior and superior."""

    values: Array  # (C, X, Y, Z)
    background: Array | None  # (1 or C, X, Y, Z)
    outline: Array | None  # (X, Y, Z)
    affine: Array
    spacing_mm: tuple[float, ...]
    box: tuple[slice, ...]
    peaks: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, values: Array, affine: Array, background: Array | None, outline: Array | None) -> _Scene:
        grid = values.shape[1:]
        for name, one in (("background", background), ("outline", outline)):
            if one is not None and (one.shape[-3:] != grid or one.ndim > (4 if name == "background" else 3)):
                raise OutOfRange(f"{name} and map must be on one grid, got {one.shape} and {values.shape}")
        turn = nib.orientations.io_orientation(affine)
        values = _turned(values, turn)
        grey = None if background is None else _turned(background[None] if background.ndim == 3 else background, turn)
        if grey is not None and len(grey) not in (1, len(values)):
            raise OutOfRange(f"a background must have one channel or {len(values)}, got {len(grey)}")
        truth = None if outline is None else _turned(np.asarray(outline)[None] > 0, turn)[0]
        seen = None if grey is None else (grey != grey[:, :1, :1, :1]).any(axis=0)
        box = _box(seen if seen is not None and seen.mean() > _SPARSE else None, truth, values.shape[1:])
        marked = next((one for one in (truth, seen) if one is not None and one.any()), None)
        centre = _centre(np.ones(values.shape[1:], bool) if marked is None else marked)
        moved = affine @ nib.orientations.inv_ornt_aff(turn, grid)
        spacing = tuple(float(side) for side in nib.affines.voxel_sizes(moved))
        return cls(values, grey, truth, moved, spacing, box, tuple(_peak(one, centre) for one in values))


def _turned(values: Array, turn: Array) -> Array:
    """Rotate (C, ...) arrays from stored axes to the nearest RAS+ axes."""
    return np.moveaxis(nib.orientations.apply_orientation(np.moveaxis(values, 0, -1), turn), -1, 0)


def _profile(mask: Array, axis: int) -> Array:
    """Number of voxels of a mask at each position of an axis."""
    return np.asarray(mask.sum(axis=tuple(other for other in range(3) if other != axis)))


def _centre(mask: Array) -> Array:
    return np.array([np.average(np.arange(mask.shape[axis]), weights=_profile(mask, axis)) for axis in range(3)])


def _box(seen: Array | None, truth: Array | None, shape: Sequence[int]) -> tuple[slice, ...]:
    """Bounding box of the part of the grid to show, with a margin of two voxels."""
    if seen is None:
        return tuple(slice(0, side) for side in shape)
    inside = seen if truth is None else seen | truth
    found = [np.flatnonzero(_profile(inside, axis)) for axis in range(3)]
    return tuple(
        slice(max(int(at[0]) - 2, 0), min(int(at[-1]) + 3, side)) for at, side in zip(found, shape, strict=True)
    )


def _peak(values: Array, centre: Array) -> tuple[int, ...]:
    """Index of the strongest voxel; ties go to the one nearest to the centre, then to the first."""
    size = np.abs(values)
    found = np.argwhere(size == size.max())
    return tuple(int(place) for place in found[np.argmin(((found - centre) ** 2).sum(axis=1))])


def _cut(scene: _Scene, number: int, plane: _Plane) -> _Cut:
    """Map, background and outline of one channel in one plane."""
    at = scene.peaks[number][plane.through]
    where = tuple(at if axis == plane.through else side for axis, side in enumerate(scene.box))
    values, grey, truth = scene.values[number][where], None, None
    if scene.background is not None:
        grey = _fewer(scene.background[number if len(scene.background) > 1 else 0][where].astype(np.float32))
    if scene.outline is not None:
        truth = _fewer(scene.outline[where])
    # If several voxels share a pixel, the strongest is shown.
    high, low = _fewer(np.maximum(values, 0)), -_fewer(np.maximum(-values, 0))
    shown = np.where(high >= -low, high, low)
    sides = [
        scene.spacing_mm[axis] * count / left
        for axis, count, left in zip((plane.across, plane.up), values.shape, shown.shape, strict=True)
    ]
    return _Cut(shown, grey, truth, (sides[0], sides[1]))


def _fewer(plane: Array) -> Array:
    """Reduce a plane by taking the maximum of the voxels that share a pixel."""
    for axis, length in enumerate(plane.shape):
        if length > _MOST_VOXELS:
            plane = np.maximum.reduceat(plane, np.arange(_MOST_VOXELS) * length // _MOST_VOXELS, axis=axis)
    return plane


def _draw(axes: Axes, plane: _Plane, cut: _Cut, limit: float) -> AxesImage:
    """Draw one plane and return the image of the map, which has the colour scale."""
    if cut.grey is not None:
        draw_grey(axes, cut.grey, cut.spacing_mm)
    strength = np.abs(cut.values.T) / limit
    drawn = axes.imshow(
        cut.values.T, cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower", interpolation="nearest",
        extent=extent_of(cut.values.shape, cut.spacing_mm),
        alpha=1.0 if cut.grey is None else np.clip(1.2 * strength, 0, 0.9),
    )  # fmt: skip
    if cut.outline is not None:
        draw_outline(axes, cut.outline, cut.spacing_mm, AMBER, "-", 1.0)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=cut.grey is None, color=SPINE)
    places = ((-0.01, 0.5, "right"), (1.01, 0.5, "left"), (0.5, -0.01, "center"), (0.5, 1.01, "center"))
    for letter, (x, y, side) in zip(plane.letters, places, strict=True):
        up = {-0.01: "top", 1.01: "bottom"}.get(y, "center")
        axes.text(x, y, letter, transform=axes.transAxes, ha=side, va=up, fontsize=6.5, color=GREY)
    return drawn


def _heading(scene: _Scene, number: int, name: str) -> str:
    peak = scene.peaks[number]
    place = nib.affines.apply_affine(scene.affine, peak)
    where = ", ".join(f"{side:.0f}" if abs(side) >= 0.5 else "0" for side in place)
    text = typographic(f"strongest {scene.values[number][peak]:.3g} at ({where}) mm")
    return f"{name}: {text}" if name else text


def _numbered(count: int) -> list[str]:
    return [""] if count == 1 else [f"channel {number}" for number in range(1, count + 1)]
