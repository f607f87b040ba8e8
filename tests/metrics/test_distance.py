"""Distances against scipy, MONAI, surface-distance and hand-worked numbers."""

from __future__ import annotations

import numpy as np
import pytest
import surface_distance
import torch
from monai.metrics import compute_hausdorff_distance
from scipy.ndimage import distance_transform_edt

from harness.core.errors import OutOfRange
from harness.metrics import compute


def _directed(ours: np.ndarray, theirs: np.ndarray, spacing_mm) -> np.ndarray:
    """Distances from the voxels of one mask to the other mask, by the Euclidean distance transform."""
    return distance_transform_edt(~theirs, sampling=spacing_mm)[ours]


@pytest.mark.parametrize(("combine", "merge"), [("mean", np.mean), ("max", np.max)])
@pytest.mark.parametrize("units", ["mm", "voxels"])
def test_average_agrees_with_the_distance_transform(blobs, spacing_mm, combine, merge, units):
    """Averages by nearest neighbours agree with the Euclidean distance transform."""
    prediction, target = blobs(0), blobs(1)
    sampling = spacing_mm if units == "mm" else (1, 1, 1)
    directions = [_directed(prediction, target, sampling).mean(), _directed(target, prediction, sampling).mean()]
    value = compute(
        "average_hausdorff",
        prediction=prediction,
        target=target,
        spacing_mm=spacing_mm,
        combine=combine,
        units=units,
    )
    assert value == pytest.approx(merge(directions))


def test_average_worked_by_hand():
    """{0, 1} against {1, 4} on a line of 2 mm: (2 + 0)/2 and (0 + 6)/2, 2 mm on average."""
    prediction, target = (np.zeros((6, 1, 1), dtype=bool) for _ in range(2))
    prediction[[0, 1]] = target[[1, 4]] = True
    given = {"prediction": prediction, "target": target, "spacing_mm": (2, 1, 1)}
    assert compute("average_hausdorff", **given) == 2
    assert compute("average_hausdorff", **given, combine="max") == 3
    assert compute("average_hausdorff", **given, combine="max", units="voxels") == 1.5


def test_spacing_matters():
    """A shift of one voxel costs the spacing along its axis."""
    mask = np.zeros((5, 5, 5), dtype=bool)
    mask[2, 2, 2] = True
    spacing_mm = (1.0, 0.8, 2.5)
    costs = [
        compute("average_hausdorff", prediction=np.roll(mask, 1, axis), target=mask, spacing_mm=spacing_mm)
        for axis in range(3)
    ]
    assert costs == pytest.approx(spacing_mm)


@pytest.mark.parametrize("seed", range(3))
def test_hausdorff_95_agrees_with_monai(blobs, spacing_mm, seed):
    """The 95th percentile of surface distances agrees with MONAI."""
    prediction, target = blobs(seed), blobs(seed + 10)
    expected = compute_hausdorff_distance(
        torch.from_numpy(prediction)[None, None],
        torch.from_numpy(target)[None, None],
        include_background=True,
        percentile=95,
        spacing=spacing_mm,
    ).item()
    value = compute("hausdorff_95", prediction=prediction, target=target, spacing_mm=spacing_mm)
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_hausdorff_95_agrees_with_surface_distance_on_boxes(spacing_mm):
    """Parallel boxes shifted by three voxels agree with surface-distance, for any definition of a surface."""
    target = np.zeros((24, 20, 16), dtype=bool)
    target[4:12, 4:14, 4:12] = True
    prediction = np.roll(target, 3, axis=0)
    distances = surface_distance.compute_surface_distances(target, prediction, spacing_mm)
    expected = surface_distance.compute_robust_hausdorff(distances, 95)
    value = compute("hausdorff_95", prediction=prediction, target=target, spacing_mm=spacing_mm)
    assert value == pytest.approx(expected) == pytest.approx(3.0)


def test_mahalanobis_agrees_with_scipy(blobs):
    """The Mahalanobis distance agrees with scipy for the pooled covariance with divisor n."""
    from scipy.spatial.distance import mahalanobis

    prediction, target = blobs(0), blobs(1) & (np.arange(16) > 5)
    ours, theirs = np.argwhere(prediction), np.argwhere(target)
    pooled = (len(ours) * np.cov(ours.T, bias=True) + len(theirs) * np.cov(theirs.T, bias=True)) / (
        len(ours) + len(theirs)
    )
    expected = mahalanobis(ours.mean(axis=0), theirs.mean(axis=0), np.linalg.inv(pooled))
    assert expected > 0.1
    assert compute("mahalanobis", prediction=prediction, target=target) == pytest.approx(expected)


def test_mahalanobis_worked_by_hand():
    """Two cubes of 2³, three voxels apart, have a variance of 1/4 per axis: the distance is 3 / ½ = 6."""
    target = np.zeros((8, 4, 4), dtype=bool)
    target[1:3, 1:3, 1:3] = True
    assert compute("mahalanobis", prediction=np.roll(target, 3, axis=0), target=target) == pytest.approx(6)


def test_mahalanobis_does_not_depend_on_spacing(blobs):
    """The Mahalanobis distance does not depend on the spacing."""
    prediction, target = blobs(0), blobs(1)
    stretched = [np.argwhere(mask) * (1.0, 0.8, 2.0) for mask in (prediction, target)]
    sizes = [len(voxels) for voxels in stretched]
    pooled = sum(size * np.cov(voxels.T, bias=True) for size, voxels in zip(sizes, stretched, strict=True)) / sum(sizes)
    shift = stretched[0].mean(axis=0) - stretched[1].mean(axis=0)
    expected = np.sqrt(shift @ np.linalg.inv(pooled) @ shift)
    assert compute("mahalanobis", prediction=prediction, target=target) == pytest.approx(expected)


def test_flat_masks_have_no_mahalanobis_distance():
    """If all voxels lie in one plane, the covariance is singular and the distance NaN."""
    x, y, z = np.indices((9, 9, 9))
    for plane in (z == 4, (x + y + z) == 12, (2 * x - 3 * y + z) == 2):
        prediction, target = plane & (x > 3), plane & (y > 3)
        assert prediction.any() and target.any()
        assert np.isnan(compute("mahalanobis", prediction=prediction, target=target))


@pytest.mark.parametrize("name", ["average_hausdorff", "hausdorff_95", "mahalanobis"])
def test_perfect_is_zero_and_empty_is_nan(blobs, spacing_mm, name):
    """Equal masks have distance 0, and an empty mask has none."""
    some, none = blobs(0), np.zeros_like(blobs(0))
    assert compute(name, prediction=some, target=some, spacing_mm=spacing_mm) == 0
    for prediction, target in ((none, some), (some, none), (none, none)):
        assert np.isnan(compute(name, prediction=prediction, target=target, spacing_mm=spacing_mm))


def test_unknown_option_is_refused(blobs, spacing_mm):
    """An unknown unit is refused, and the message lists the valid ones."""
    with pytest.raises(OutOfRange, match="units of metric average_hausdorff must be one of mm, voxels, got 'voxel'"):
        compute("average_hausdorff", prediction=blobs(0), target=blobs(1), spacing_mm=spacing_mm, units="voxel")
