"""Geometric and intensity transforms of images before training.

An *affine* is the (4, 4) matrix from voxel indices to world coordinates in mm, RAS+ as in
nibabel. A *grid* is a shape with an affine. No function changes its arguments.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, cast

import cc3d
import nibabel.affines
import nibabel.orientations
import numpy as np
import scipy.ndimage
import scipy.sparse
import SimpleITK as sitk
from skimage.filters import threshold_otsu

from harness.core.errors import OutOfRange
from harness.core.types import Array

__all__ = [
    "Interpolation",
    "Normalisation",
    "brain_mask",
    "crop",
    "crop_box",
    "fit_box",
    "foreground",
    "majority",
    "match_resolution",
    "n4",
    "normalise",
    "occupancy",
    "regrid",
    "reorient",
    "resample",
    "spacing_of",
]

Interpolation = Literal["linear", "nearest", "bspline"]
Normalisation = Literal["zscore", "minmax", "percentile", "none"]

_INTERPOLATORS = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor, "bspline": sitk.sitkBSpline}
_FWHM = 2 * math.sqrt(2 * math.log(2))  # full width at half maximum of a Gaussian with standard deviation one
_SAME = 0.01  # voxels: grids that differ by less everywhere (affines are stored in float32) are one grid
_ITK = threading.Lock()  # guards ITK's global number of threads


# --- geometry ---------------------------------------------------------------


def spacing_of(affine: Array) -> tuple[float, float, float]:
    """Distance in mm between voxel centres along each axis, from (4, 4) `affine`."""
    sizes = nibabel.affines.voxel_sizes(np.asarray(affine, float))
    return float(sizes[0]), float(sizes[1]), float(sizes[2])


def reorient(array: Array, affine: Array) -> tuple[Array, Array]:
    """Flip and permute axes to the closest RAS+ orientation.

    Nothing is interpolated; a voxel keeps its world coordinate. Oblique images stay oblique.

    Parameters
    ----------
    array : (X, Y, Z, ...) array, any dtype; further axes stay as they are
    affine : (4, 4) voxel to world (mm, RAS+)

    Returns
    -------
    array, affine
        View of the same values, and its affine.
    """
    affine = np.asarray(affine, float)
    orientation = nibabel.orientations.io_orientation(affine)
    turned = nibabel.orientations.apply_orientation(array, orientation)
    back = nibabel.orientations.inv_ornt_aff(orientation, array.shape[:3])
    return turned, affine @ back


def regrid(shape: Sequence[int], affine: Array, spacing_mm: Sequence[float]) -> tuple[tuple[int, int, int], Array]:
    """Grid with another spacing that covers the same field of view.

    The low corners coincide; at the high end, the field of view is covered up to half a new
    voxel. The axis directions do not change.

    Parameters
    ----------
    shape : (3,) voxels along X, Y, Z
    affine : (4, 4) voxel to world (mm)
    spacing_mm : (3,) new voxel size along X, Y, Z

    Raises
    ------
    OutOfRange
        If a spacing is not positive.
    """
    if len(spacing_mm) != 3 or min(spacing_mm) <= 0:
        raise OutOfRange(f"three spacings > 0 must be given for spacing_mm, got {tuple(spacing_mm)}")
    affine = np.asarray(affine, float)
    scale = np.asarray(spacing_mm, float) / np.asarray(spacing_of(affine))
    wanted = np.maximum(1, np.floor(np.asarray(shape[:3]) / scale + 0.5)).astype(int)
    step = np.diag([*scale, 1.0])
    step[:3, 3] = (scale - 1) / 2  # the low corner of voxel 0 stays where it was
    return (int(wanted[0]), int(wanted[1]), int(wanted[2])), affine @ step


def resample(
    array: Array,
    affine: Array,
    target_shape: Sequence[int],
    target_affine: Array,
    *,
    order: Interpolation = "linear",
    fill: float = 0.0,
) -> Array:
    """Resample an image to the voxel centres of another grid.

    If the grids differ by a shift of whole voxels, values are copied without interpolation,
    so a crop is exact. The field of view ends half a voxel beyond the outermost centres;
    between these centres and its end, values are constant.

    Parameters
    ----------
    array : (X, Y, Z) array; bool needs ``order="nearest"``
    affine : (4, 4) voxel to world (mm) of `array`
    target_shape, target_affine : the new grid
    order : interpolation; ``bspline`` is cubic and may overshoot
    fill : value outside the field of view

    Returns
    -------
    (target_shape) array
        float32; with ``order="nearest"`` the dtype of `array`.

    Raises
    ------
    OutOfRange
        If `array` is not 3D, or bool is to be interpolated.

    Notes
    -----
    The interpolation uses index coordinates and one affine between the grids. Sheared grids
    are therefore handled correctly, and the LPS+ convention of ITK does not matter.
    """
    _require_volume(array)
    if order not in _INTERPOLATORS:
        raise OutOfRange(f"order must be one of {', '.join(_INTERPOLATORS)}, got {order!r}")
    if array.dtype == bool and order != "nearest":
        raise OutOfRange(
            f"order='nearest' must be given for a bool mask, got {order!r}; occupancy() gives the filled fraction"
        )
    return _resampled(array, _index_map(affine, target_affine), target_shape, order, fill)


def _resampled(
    array: Array, onto: Array, target_shape: Sequence[int], order: Interpolation, fill: float, *, threads: int = 0
) -> Array:
    """Resample by the map from target to source indices; with 0 threads, ITK chooses the number."""
    dtype = array.dtype if order == "nearest" else np.dtype(np.float32)
    shift = _whole_shift(onto, target_shape)
    if shift is not None:
        return _copy_shifted(array.astype(dtype, copy=False), shift, target_shape, fill)
    # ITK has no bool and no foreign byte order; integer labels and float64 keep their type.
    pixel_type = np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")
    image = sitk.GetImageFromArray(np.ascontiguousarray(array, dtype=pixel_type))
    # The last array axis is ITK's first, so the map is turned in both axes.
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(onto[:3, :3][::-1, ::-1].ravel().tolist())
    transform.SetTranslation(onto[:3, 3][::-1].tolist())
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(n) for n in reversed(target_shape)])
    resampler.SetTransform(transform)
    resampler.SetInterpolator(_INTERPOLATORS[order])
    resampler.SetDefaultPixelValue(float(fill))
    if threads:
        resampler.SetNumberOfThreads(threads)
    return np.asarray(sitk.GetArrayFromImage(resampler.Execute(image)), dtype=dtype)


def match_resolution(array: Array, affine: Array, target_affine: Array) -> Array:
    """Smooth an image before it is resampled to a coarser grid, to avoid aliasing.

    Along each axis, the point spread function of a source voxel (a Gaussian with the voxel
    size as full width at half maximum) is widened to that of a target voxel. Axes that do not
    become coarser are not smoothed.

    Parameters
    ----------
    array : (X, Y, Z) array
    affine : (4, 4) voxel to world (mm) of `array`
    target_affine : (4, 4) voxel to world (mm) of the new grid

    Returns
    -------
    (X, Y, Z) float32 array on the original grid

    References
    ----------
    Cardoso et al. 2015, "Scale factor point spread function matching",
    doi:10.1007/978-3-319-24571-3_81.
    """
    image = array.astype(np.float32, copy=False)
    # Extent of a target voxel along each source axis, in source voxels.
    ratio = np.abs(_index_map(affine, target_affine)[:3, :3]).max(axis=1)
    sigma = np.sqrt(np.maximum(ratio**2 - 1, 0)) / _FWHM
    if np.all(ratio <= 1 + 1e-3):
        return image
    return cast(Array, scipy.ndimage.gaussian_filter(image, sigma, mode="nearest"))


def occupancy(mask: Array, affine: Array, target_shape: Sequence[int], target_affine: Array) -> Array:
    """Fraction of each voxel of another grid that a mask fills.

    Exact if the axes of the grids are parallel, for any ratio and offset. For oblique grids,
    each target voxel is sampled on a lattice of at least 4 points along each axis, and at
    least 2 for each source voxel.

    Parameters
    ----------
    mask : (X, Y, Z) bool array
    affine : (4, 4) voxel to world (mm) of `mask`
    target_shape, target_affine : the new grid

    Returns
    -------
    (target_shape) float32 array in [0, 1]; an empty mask gives zeros
    """
    _require_volume(mask)
    onto = _index_map(affine, target_affine)
    shift = _whole_shift(onto, target_shape)
    if shift is not None:
        return _copy_shifted(mask.astype(bool), shift, target_shape, False).astype(np.float32)
    axes = np.abs(onto[:3, :3]).argmax(axis=0)  # source axis along which each target axis runs
    rest = onto[:3, :3].copy()
    rest[axes, range(3)] = 0
    parallel = len(set(axes)) == 3 and np.abs(rest).sum(axis=1).max() * max(target_shape) < _SAME
    if not parallel:
        return _probed(mask, onto, target_shape)
    filled = mask.astype(np.float32)
    for target, source in enumerate(axes):
        weights = _overlap(mask.shape[source], int(target_shape[target]), onto[source, target], float(onto[source, 3]))
        flat = np.moveaxis(filled, source, 0)
        made = weights @ flat.reshape(flat.shape[0], -1)
        filled = np.moveaxis(made.reshape(-1, *flat.shape[1:]), 0, source)
    turned = filled.transpose(axes)
    return np.clip(np.ascontiguousarray(turned), 0, 1).astype(np.float32)


def majority(labels: Array, affine: Array, target_shape: Sequence[int], target_affine: Array) -> Array:
    """Label that fills most of each voxel of another grid, including label 0.

    Parameters
    ----------
    labels : (X, Y, Z) non-negative integer array
    affine : (4, 4) voxel to world (mm) of `labels`
    target_shape, target_affine : the new grid; labels are 0 outside the field of view

    Returns
    -------
    (target_shape) array of the dtype of `labels`; ties go to the smaller label
    """
    _require_volume(labels)
    # The share of a voxel outside the field of view counts as label 0.
    best = 1 - occupancy(labels != 0, affine, target_shape, target_affine)
    winner = np.zeros(tuple(target_shape), labels.dtype)
    for label in np.unique(labels[labels != 0]):
        share = occupancy(labels == label, affine, target_shape, target_affine)
        wins = share > best + 1e-6
        winner[wins], best[wins] = label, share[wins]
    return winner


# --- boxes ------------------------------------------------------------------


def crop_box(mask: Array, margin: int | Sequence[int] = 0) -> tuple[slice, slice, slice]:
    """Bounding box of a mask with a margin, clipped to the array.

    Parameters
    ----------
    mask : (X, Y, Z) bool array
    margin : voxels on each side, one number or one per axis

    Returns
    -------
    three slices; those of the whole array if the mask is empty
    """
    _require_volume(mask)
    margins = np.broadcast_to(np.asarray(margin, int), 3)
    found = scipy.ndimage.find_objects(mask.astype(np.uint8), max_label=1)[0]
    box = found if found is not None else tuple(slice(0, n) for n in mask.shape)
    low = [max(0, part.start - m) for part, m in zip(box, margins, strict=True)]
    high = [min(n, part.stop + m) for part, m, n in zip(box, margins, mask.shape, strict=True)]
    return slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2])


def fit_box(box: Sequence[slice], size: Sequence[int]) -> tuple[slice, slice, slice]:
    """Box of a given size with the same centre, which may extend beyond the array.

    Parameters
    ----------
    box : three slices
    size : (3,) voxels along X, Y, Z; 0 keeps the extent of `box` along that axis

    Returns
    -------
    three slices for :func:`crop`; a negative ``start`` means padding
    """
    if len(size) != 3 or min(size) < 0:
        raise OutOfRange(f"three sizes >= 0 must be given in voxels, got {tuple(size)}")
    parts = []
    for part, wanted in zip(box, size, strict=True):
        length = wanted or part.stop - part.start
        # Twice the centre is whole; so is the start, rounded down for odd differences.
        start = (part.start + part.stop - length) // 2
        parts.append(slice(start, start + length))
    return parts[0], parts[1], parts[2]


def crop(array: Array, affine: Array, box: Sequence[slice], *, fill: float = 0.0) -> tuple[Array, Array]:
    """Crop an image to a box, padding where the box extends beyond it.

    Parameters
    ----------
    array : (X, Y, Z) array
    affine : (4, 4) voxel to world (mm)
    box : three slices in voxels; a negative ``start`` is outside, as in :func:`fit_box`
    fill : value of padding

    Returns
    -------
    array, affine
        New array, and the affine with which each voxel keeps its world coordinate.
    """
    _require_volume(array)
    start = np.array([part.start for part in box])
    shape = [part.stop - part.start for part in box]
    moved = np.eye(4)
    moved[:3, 3] = start
    return _copy_shifted(array, start, shape, fill), np.asarray(affine, float) @ moved


# --- masks and intensity ----------------------------------------------------


def foreground(array: Array) -> Array:
    """Voxels brighter than Otsu's threshold (bool); a constant image has none."""
    finite = array[np.isfinite(array)]
    if finite.size == 0 or finite.min() == finite.max():
        return np.zeros(array.shape, bool)
    return np.asarray(array > threshold_otsu(finite), dtype=bool)


def brain_mask(array: Array, affine: Array, *, closing_mm: float = 4.0) -> Array:
    """Crude brain mask for data without one.

    The steps are Otsu's threshold, the largest 26-connected component, closing, and filling
    of holes.

    Parameters
    ----------
    array : (X, Y, Z) array of an image with dark background
    affine : (4, 4) voxel to world (mm)
    closing_mm : radius of the closing, at least 0

    Returns
    -------
    (X, Y, Z) bool array; a constant image gives an empty mask

    Notes
    -----
    This is no skull stripping: if the image shows the scalp, the mask includes scalp and
    skull. For published results, add proper masks to the data (``label-brain_mask``).
    """
    _require_volume(array)
    rough = foreground(array)
    if not rough.any():
        return rough
    largest = np.asarray(cc3d.largest_k(rough, k=1, connectivity=26)) > 0
    closed = _closed(largest, np.asarray(spacing_of(affine)), closing_mm)
    return np.asarray(scipy.ndimage.binary_fill_holes(closed), dtype=bool)


def n4(
    array: Array,
    affine: Array,
    mask: Array | None = None,
    *,
    shrink: int = 4,
    iterations: Sequence[int] = (50, 50, 50, 50),
) -> Array:
    """Divide by a smooth bias field that is estimated from the image (N4, Tustison 2010).

    Parameters
    ----------
    array : (X, Y, Z) array; only positive voxels are used for the estimate
    affine : (4, 4) voxel to world (mm)
    mask : (X, Y, Z) bool array of the tissue used for the estimate; ``None`` for Otsu's
        foreground
    shrink : factor, at least 1, by which the image is shrunk along each axis for the
        estimate; short axes are shrunk less
    iterations : maximum number of iterations, one number per level of the spline

    Returns
    -------
    (X, Y, Z) float32 array

    Raises
    ------
    OutOfRange
        If `shrink` is below 1, or no positive voxel lies in the mask.

    Notes
    -----
    Runs on one thread, because the result depends on the number of threads.

    References
    ----------
    Tustison et al. 2010, "N4ITK", doi:10.1109/TMI.2010.2046908.
    """
    _require_volume(array)
    if shrink < 1:
        raise OutOfRange(f"shrink >= 1 must hold for n4, got {shrink}")
    values = np.ascontiguousarray(array, dtype=np.float32)
    inside = (foreground(values) if mask is None else mask.astype(bool)) & (values > 0)
    if not inside.any():
        raise OutOfRange("n4 needs a positive voxel inside its mask, got none; check the mask, or turn n4 off")
    spacing = spacing_of(affine)
    with _single_thread():
        image, tissue = _as_itk(values, spacing), _as_itk(inside.astype(np.uint8), spacing)
        # A spline of order 3 needs at least 8 voxels along each axis.
        factors = [max(1, min(shrink, size // 8)) for size in image.GetSize()]
        small, small_tissue = sitk.Shrink(image, factors), sitk.Shrink(tissue, factors)
        if not sitk.GetArrayViewFromImage(small_tissue).any():
            small, small_tissue = image, tissue
        corrector = sitk.N4BiasFieldCorrectionImageFilter()
        corrector.SetMaximumNumberOfIterations([int(n) for n in iterations])
        corrector.Execute(small, small_tissue)
        log_field = sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image))
    return np.asarray(values / np.exp(log_field), dtype=np.float32)


def normalise(
    array: Array,
    mask: Array | None = None,
    *,
    how: Normalisation = "zscore",
    low_percent: float = 1.0,
    high_percent: float = 99.0,
) -> Array:
    """Normalise the intensities of one volume.

    The statistics are those of the mask or, without a mask, of the whole volume; all voxels
    are normalised.

    Parameters
    ----------
    array : (X, Y, Z) array
    mask : (X, Y, Z) bool array or ``None``
    how : ``zscore`` to mean 0 and standard deviation 1; ``minmax`` from smallest and largest
        value to 0 and 1; ``percentile`` from the low and high percentile to 0 and 1, clipped;
        ``none`` only converts to float32
    low_percent, high_percent : percentiles for ``percentile``

    Returns
    -------
    (X, Y, Z) float32 array

    Raises
    ------
    OutOfRange
        If the mask is empty, or all its voxels have the same value.
    """
    if how == "none":
        return array.astype(np.float32)
    if how not in ("zscore", "minmax", "percentile"):
        raise OutOfRange(f"normalise must be one of zscore, minmax, percentile, none, got {how!r}")
    values = (array if mask is None else array[mask.astype(bool)]).astype(np.float64).ravel()
    if values.size == 0:
        raise OutOfRange(f"cohort.normalise={how} needs a voxel inside the mask, got an empty mask")
    if how == "zscore":
        offset, scale = values.mean(), values.std()
    elif how == "minmax":
        offset, scale = values.min(), np.ptp(values)
    else:
        if not 0 <= low_percent < high_percent <= 100:
            raise OutOfRange(f"0 <= low_percent < high_percent <= 100 must hold, got {low_percent} and {high_percent}")
        offset, high = np.percentile(values, [low_percent, high_percent])
        scale = high - offset
    if not scale > 1e-12 * max(1.0, abs(float(offset))):
        raise OutOfRange(f"cohort.normalise={how} needs voxels that differ, got only values near {float(offset):g}")
    scaled = (array - offset) / scale
    return np.asarray(np.clip(scaled, 0, 1) if how == "percentile" else scaled, dtype=np.float32)


# --- implementation -----------------------------------------------------------------


def _require_volume(array: Array) -> None:
    if array.ndim != 3:
        raise OutOfRange(f"an image must have 3 axes (X, Y, Z), got {array.ndim} with shape {array.shape}")


def _index_map(affine: Array, target_affine: Array) -> Array:
    """Voxel indices of the target grid → (fractional) voxel indices of the source."""
    return np.linalg.solve(np.asarray(affine, float), np.asarray(target_affine, float))


def _whole_shift(onto: Array, target_shape: Sequence[int]) -> Array | None:
    """The shift between two grids, if they differ only by a shift of whole voxels."""
    shift = np.rint(onto[:3, 3])
    rest = onto[:3].copy()
    rest[:, 3] -= shift
    rest[:, :3] -= np.eye(3)
    # The largest deviation, at the farthest voxel.
    off = np.abs(rest) @ np.array([*target_shape, 1.0])
    return shift.astype(int) if off.max() < _SAME else None


def _copy_shifted(array: Array, start: Array, shape: Sequence[int], fill: float) -> Array:
    made = np.full(tuple(shape), fill, array.dtype)
    stop = np.minimum(start + np.asarray(shape), array.shape)
    begin = np.maximum(start, 0)
    if np.any(stop <= begin):
        return made
    source = tuple(slice(int(a), int(b)) for a, b in zip(begin, stop, strict=True))
    place = tuple(slice(int(a), int(b)) for a, b in zip(begin - start, stop - start, strict=True))
    made[place] = array[source]
    return made


def _overlap(source: int, target: int, step: float, offset: float) -> scipy.sparse.csr_array:
    """(target, source) fraction of each target interval that each source interval covers.

    Target interval t spans ``offset + step·(t ± ½)`` in source indices, source
    interval s spans ``s ± ½``.
    """
    centre = offset + step * np.arange(target)
    low, high = centre - abs(step) / 2, centre + abs(step) / 2
    rows, columns, shares = [], [], []
    for t in range(target):
        first, last = max(0, math.floor(low[t] + 0.5)), min(source - 1, math.ceil(high[t] - 0.5))
        for s in range(first, last + 1):
            share = (min(high[t], s + 0.5) - max(low[t], s - 0.5)) / abs(step)
            if share > 1e-9:
                rows.append(t)
                columns.append(s)
                shares.append(share)
    return scipy.sparse.csr_array((np.array(shares, np.float32), (rows, columns)), shape=(target, source))


def _probed(mask: Array, onto: Array, target_shape: Sequence[int]) -> Array:
    """Occupancy from sample points in each target voxel, for grids that are not parallel."""
    counts = [max(4, 2 * math.ceil(n - 1e-6)) for n in np.linalg.norm(onto[:3, :3], axis=0)]
    fractions = [(np.arange(n) + 0.5) / n - 0.5 for n in counts]
    total = np.zeros(tuple(target_shape), np.float32)
    pixels = mask.astype(np.uint8)
    moved = np.eye(4)
    for point in np.stack(np.meshgrid(*fractions, indexing="ij"), axis=-1).reshape(-1, 3):
        moved[:3, 3] = point
        # In many small calls, starting threads costs more than it saves.
        total += _resampled(pixels, onto @ moved, target_shape, "nearest", 0.0, threads=1)
    return total / np.float32(math.prod(counts))


def _closed(mask: Array, spacing_mm: Array, radius_mm: float) -> Array:
    """Closing with a ball: dilation, then erosion, by distance."""
    if radius_mm <= 0:
        return mask
    room = [(int(n), int(n)) for n in np.ceil(radius_mm / spacing_mm).astype(int) + 1]
    padded = np.pad(mask, room)  # with background, so that the edge of the array does not limit the dilation
    grown = scipy.ndimage.distance_transform_edt(~padded, sampling=spacing_mm) <= radius_mm
    shrunk = scipy.ndimage.distance_transform_edt(grown, sampling=spacing_mm) > radius_mm
    inner = tuple(slice(a, -b) for a, b in room)
    return np.asarray(shrunk[inner] | mask, dtype=bool)


def _as_itk(array: Array, spacing_mm: Sequence[float]) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(s) for s in reversed(spacing_mm)])
    return image


@contextmanager
def _single_thread() -> Iterator[None]:
    """Run ITK on one thread; the setting is global, so one caller at a time."""
    with _ITK:
        before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        try:
            yield
        finally:
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
