"""Geometric and intensity transforms."""

from __future__ import annotations

import nibabel as nib
import nibabel.processing
import numpy as np
import pytest
import scipy.ndimage
import SimpleITK as sitk

from harness.core.errors import OutOfRange
from harness.data import transforms

SHAPE = (12, 10, 8)


def rotation(degrees: float, axis: int = 2) -> np.ndarray:
    """(3, 3) rotation about one axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned = np.eye(3)
    a, b = [i for i in range(3) if i != axis]
    turned[a, a], turned[a, b], turned[b, a], turned[b, b] = c, -s, s, c
    return turned


def affine_of(spacing=(1.0, 1.0, 1.0), origin=(-5.0, 3.0, 7.0), turn=None) -> np.ndarray:
    """An affine with the given spacing, origin and rotation."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if turn is None else turn) @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


# Permuted and flipped axes, anisotropic.
ODD = np.array([[0, 0, -2.0, 40], [-1.0, 0, 0, 25], [0, 1.5, 0, -9], [0, 0, 0, 1]])


@pytest.fixture
def rng() -> np.random.Generator:
    """A random generator with a fixed seed."""
    return np.random.default_rng(7)


def blob(shape, affine, centre_mm, sigma_mm=3.0) -> np.ndarray:
    """A Gaussian at a world coordinate."""
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = nib.affines.apply_affine(affine, indices)
    return np.exp(-((world - centre_mm) ** 2).sum(-1) / (2 * sigma_mm**2))


def centre_of(array, affine) -> np.ndarray:
    """Centre of mass in world coordinates."""
    return nib.affines.apply_affine(affine, scipy.ndimage.center_of_mass(array))


# --- reorient ---


def test_reorient_gives_ras(rng):
    """Axes are right, anterior, superior."""
    _, affine = transforms.reorient(rng.random(SHAPE), ODD)
    assert nib.aff2axcodes(affine) == ("R", "A", "S")


def test_reorient_keeps_each_voxel_at_its_world_coordinate(rng):
    """Values are found at their original world coordinates."""
    array = rng.random(SHAPE)
    turned, affine = transforms.reorient(array, ODD)
    for index in [(0, 0, 0), (11, 9, 7), (3, 5, 2)]:
        world = nib.affines.apply_affine(ODD, index)
        there = np.rint(nib.affines.apply_affine(np.linalg.inv(affine), world)).astype(int)
        assert turned[tuple(there)] == array[index]


def test_reorient_agrees_with_nibabel(rng):
    """The array and affine are those of nibabel's closest canonical image."""
    array = rng.random(SHAPE)
    oblique = ODD @ affine_of(turn=rotation(12, 1))
    expected = nib.as_closest_canonical(nib.Nifti1Image(array, oblique))
    turned, affine = transforms.reorient(array, oblique)
    np.testing.assert_array_equal(turned, expected.get_fdata())
    np.testing.assert_allclose(affine, expected.affine, atol=1e-5)


def test_reorient_keeps_further_axes(rng):
    """A trailing channel axis stays last."""
    array = rng.random((*SHAPE, 2))
    turned, _ = transforms.reorient(array, ODD)
    np.testing.assert_array_equal(turned[..., 1], transforms.reorient(array[..., 1], ODD)[0])


# --- regrid ---


def test_regrid_keeps_the_field_of_view():
    """Doubling the spacing halves the shape, and the outer corners coincide."""
    affine = affine_of((1, 1, 2), turn=rotation(20))
    shape, coarse = transforms.regrid((12, 10, 8), affine, (2, 2, 4))
    assert shape == (6, 5, 4)
    for corner in [(-0.5, -0.5, -0.5), (5.5, 4.5, 3.5)]:
        fine_corner = (np.array(corner) + 0.5) * 2 - 0.5
        np.testing.assert_allclose(
            nib.affines.apply_affine(coarse, corner), nib.affines.apply_affine(affine, fine_corner), atol=1e-9
        )


def test_regrid_refuses_a_spacing_of_zero():
    """A spacing must be positive."""
    with pytest.raises(OutOfRange, match="three spacings > 0"):
        transforms.regrid(SHAPE, np.eye(4), (1, 0, 1))


# --- resample ---


@pytest.mark.parametrize("order", ["linear", "nearest", "bspline"])
def test_resampling_onto_the_same_grid_changes_nothing(order, rng):
    """The identity is exact, also for an oblique anisotropic grid."""
    array = rng.random(SHAPE).astype(np.float32)
    affine = affine_of((1, 0.7, 3), turn=rotation(20))
    np.testing.assert_array_equal(transforms.resample(array, affine, SHAPE, affine, order=order), array)


def test_resampling_onto_a_flipped_grid_and_back_is_exact(rng):
    """Voxel centres coincide after a flip."""
    array = rng.random(SHAPE).astype(np.float32)
    turned, turned_affine = transforms.reorient(array, ODD)
    there = transforms.resample(array, ODD, turned.shape, turned_affine)
    np.testing.assert_allclose(there, turned, atol=1e-5)
    np.testing.assert_allclose(transforms.resample(there, turned_affine, SHAPE, ODD), array, atol=1e-5)


def test_a_blob_stays_at_its_world_coordinate():
    """The blob keeps its position when resampled between anisotropic and oblique grids."""
    centre = np.array([22.0, 15.0, 2.0])
    source = blob((24, 20, 18), ODD, centre)
    target_affine = affine_of((1.2, 1.0, 1.4), origin=(4, -2, -14), turn=rotation(15))
    moved = transforms.resample(source, ODD, (40, 40, 28), target_affine)
    np.testing.assert_allclose(centre_of(moved, target_affine), centre, atol=0.05)
    np.testing.assert_allclose(moved, blob((40, 40, 28), target_affine, centre), atol=0.08)


@pytest.mark.parametrize(("order", "degree"), [("linear", 1), ("nearest", 0), ("bspline", 3)])
def test_resampling_agrees_with_nibabel_inside(order, degree, rng):
    """Inside the field of view values equal those of nibabel.processing."""
    array = scipy.ndimage.gaussian_filter(rng.random((24, 22, 20)), 1.5).astype(np.float32)
    affine = affine_of((1, 1.2, 1.5))
    shape, target = (10, 9, 8), affine_of((1.1, 0.9, 1.3), origin=(2.13, 10.37, 16.71), turn=rotation(10))
    expected = nibabel.processing.resample_from_to(nib.Nifti1Image(array, affine), (shape, target), order=degree)
    made = transforms.resample(array, affine, shape, target, order=order)
    np.testing.assert_allclose(made, expected.get_fdata(), atol=2e-3 if order == "bspline" else 1e-5)


def test_resampling_agrees_with_simpleitk_in_physical_space(rng):
    """Values equal those of SimpleITK, which uses LPS coordinates."""

    def as_itk(array, affine):
        lps = np.diag([-1, -1, 1, 1]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
        image.SetOrigin(lps[:3, 3].tolist())
        image.SetSpacing(spacing.tolist())
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        return image

    array = rng.random((14, 13, 12)).astype(np.float32)
    target = affine_of((1.3, 1.1, 0.8), origin=(15, 10, -7), turn=rotation(25, 0))
    reference = as_itk(np.zeros(SHAPE, np.float32), target)
    expected = sitk.GetArrayFromImage(sitk.Resample(as_itk(array, ODD), reference, sitk.Transform(), sitk.sitkLinear))
    made = transforms.resample(array, ODD, SHAPE, target)
    assert (made > 0).mean() > 0.3
    np.testing.assert_allclose(made, expected.transpose(2, 1, 0), atol=1e-4)


def test_outside_the_field_of_view_is_fill(rng):
    """Voxels outside the field of view have the fill value."""
    array = rng.random(SHAPE) + 1
    far = affine_of((0.5, 0.5, 0.5), origin=(500, 0, 0))
    assert np.all(transforms.resample(array, affine_of(), SHAPE, far, fill=-3.0) == -3.0)


def test_field_of_view_includes_the_outer_half_voxel():
    """On a grid of half the spacing, the outermost voxels have the value of the border, not fill."""
    array = np.full(SHAPE, 5.0)
    shape, fine = transforms.regrid(SHAPE, affine_of(), (0.5, 0.5, 0.5))
    np.testing.assert_allclose(transforms.resample(array, affine_of(), shape, fine, fill=0.0), 5.0)


def test_nearest_keeps_the_labels_and_their_type(rng):
    """Labels are not interpolated."""
    labels = rng.integers(0, 4, SHAPE).astype(np.int16) * 1000
    target = affine_of((0.8, 1.3, 1.0), origin=(-4.7, 3.2, 7.1), turn=rotation(8))
    made = transforms.resample(labels, affine_of(), SHAPE, target, order="nearest")
    assert made.dtype == np.int16
    assert set(np.unique(made)) <= {0, 1000, 2000, 3000}


def test_linear_interpolation_of_a_mask_is_refused():
    """Masks need occupancy or order='nearest'."""
    with pytest.raises(OutOfRange, match="order='nearest' must be given for a bool mask"):
        transforms.resample(np.ones(SHAPE, bool), np.eye(4), SHAPE, np.eye(4))


def test_an_unknown_order_is_refused():
    """The message lists the valid orders."""
    with pytest.raises(OutOfRange, match="linear, nearest, bspline"):
        transforms.resample(np.ones(SHAPE), np.eye(4), SHAPE, np.eye(4), order="cubic")


def test_a_volume_must_have_three_axes():
    """The message shows the shape of a time series."""
    with pytest.raises(OutOfRange, match=r"got 4 with shape \(2, 2, 2, 5\)"):
        transforms.resample(np.ones((2, 2, 2, 5)), np.eye(4), SHAPE, np.eye(4))


def test_whole_voxel_shifts_are_copied_exactly(rng):
    """Shifting the grid by whole voxels copies values exactly and fills the rest."""
    array = rng.random(SHAPE)
    affine = affine_of((1, 2, 3), turn=rotation(30))
    moved = affine.copy()
    moved[:3, 3] = nib.affines.apply_affine(affine, (2, -1, 0))
    made = transforms.resample(array, affine, SHAPE, moved, fill=9)
    np.testing.assert_array_equal(made[:10, 1:, :], array[2:, :9, :].astype(np.float32))
    assert np.all(made[10:] == 9) and np.all(made[:, 0] == 9)


# --- match_resolution ---


def test_blur_has_the_width_that_a_coarser_grid_needs():
    """Its standard deviation is √(f² − 1)/2.3548 source voxels along an axis that becomes f times coarser."""
    point = np.zeros((3, 3, 41))
    point[1, 1, 20] = 1
    made = transforms.match_resolution(point, affine_of(), affine_of((1, 1, 4)))
    profile = made[1, 1]
    variance = (profile * (np.arange(41) - 20) ** 2).sum() / profile.sum()
    assert variance == pytest.approx((4**2 - 1) / 2.354820**2, rel=0.02)
    assert made[0].sum() == 0


def test_blur_leaves_a_finer_grid_alone(rng):
    """Images are not smoothed before upsampling."""
    array = rng.random(SHAPE).astype(np.float32)
    np.testing.assert_array_equal(transforms.match_resolution(array, affine_of(), affine_of((0.5, 1, 1))), array)


# --- occupancy ---


def test_occupancy_on_the_same_grid_is_the_mask(rng):
    """Occupancy is 0 or 1."""
    mask = rng.random(SHAPE) > 0.6
    np.testing.assert_array_equal(transforms.occupancy(mask, ODD, SHAPE, ODD), mask)


def test_occupancy_does_not_set_the_global_number_of_threads(rng, monkeypatch):
    """Masks are prepared by several threads, which share this setting of ITK."""

    def refuse(number):
        raise AssertionError("the global number of threads was set")

    monkeypatch.setattr(sitk.ProcessObject, "SetGlobalDefaultNumberOfThreads", refuse)
    oblique = affine_of(turn=rotation(12, 1))
    made = transforms.occupancy(rng.random(SHAPE) > 0.6, affine_of(), SHAPE, oblique)
    assert made.any()


def test_occupancy_of_whole_blocks_is_their_mean(rng):
    """On a grid of 2×2×4 blocks, occupancy is the mean of each block."""
    mask = rng.random((12, 10, 8)) > 0.6
    shape, coarse = transforms.regrid(mask.shape, affine_of(), (2, 2, 4))
    expected = mask.reshape(6, 2, 5, 2, 2, 4).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(transforms.occupancy(mask, affine_of(), shape, coarse), expected, atol=1e-6)


def test_occupancy_through_flipped_and_permuted_axes(rng):
    """Occupancy equals that of the reoriented mask."""
    mask = rng.random(SHAPE) > 0.6
    turned, affine = transforms.reorient(mask, ODD)
    shape, coarse = transforms.regrid(turned.shape, affine, (3.0, 2.0, 2.5))
    made = transforms.occupancy(mask, ODD, shape, coarse)
    np.testing.assert_allclose(made, transforms.occupancy(turned, affine, shape, coarse), atol=1e-6)
    assert made.shape == shape


def test_occupancy_with_a_non_integer_ratio():
    """Voxels of 1 mm on a grid of 1.5 mm, calculated by hand."""
    mask = np.zeros((6, 1, 1), bool)
    mask[2] = True  # from 1.5 to 2.5 mm past the centre of voxel 0, 2 to 3 mm past its low corner
    shape, coarse = transforms.regrid(mask.shape, np.eye(4), (1.5, 1, 1))
    shares = transforms.occupancy(mask, np.eye(4), shape, coarse)
    np.testing.assert_allclose(shares.ravel(), [0, 2 / 3, 0, 0], atol=1e-6)


def test_occupancy_keeps_the_volume(rng):
    """The sum of occupancy times voxel volume equals the volume of the mask."""
    mask = np.zeros((20, 20, 20), bool)
    mask[6:14, 7:12, 5:15] = True
    affine = affine_of(origin=(0, 0, 0))
    for turn, tolerance in [(None, 1e-5), (rotation(30), 0.02)]:
        target = affine_of((1.7, 2.1, 2.6), origin=(3 if turn is None else 12, -3, -1), turn=turn)
        shares = transforms.occupancy(mask, affine, (16, 16, 12), target)
        assert shares.sum() * np.prod((1.7, 2.1, 2.6)) == pytest.approx(400, rel=tolerance)


def test_occupancy_of_an_empty_mask_is_zero():
    """Occupancy is zero everywhere."""
    assert not transforms.occupancy(np.zeros(SHAPE, bool), np.eye(4), (3, 3, 3), affine_of((3, 3, 3))).any()


def test_majority_is_the_label_with_the_largest_share():
    """In a block of eight voxels, five with label 7 outnumber three with label 2."""
    labels = np.full((2, 2, 2), 7, np.uint8)
    labels[0, 0, 0] = labels[1, 0, 0] = labels[0, 1, 0] = 2
    shape, coarse = transforms.regrid(labels.shape, np.eye(4), (2, 2, 2))
    np.testing.assert_array_equal(transforms.majority(labels, np.eye(4), shape, coarse), [[[7]]])


def test_majority_on_the_same_grid_is_the_labels(rng):
    """Labels are unchanged."""
    labels = rng.integers(0, 5, SHAPE).astype(np.int16)
    np.testing.assert_array_equal(transforms.majority(labels, ODD, SHAPE, ODD), labels)


def test_majority_outside_the_field_of_view_is_background():
    """Voxels that lie mostly outside belong to no region."""
    labels = np.full((4, 1, 1), 3, np.uint8)
    target = np.eye(4)
    target[0, 3] = 2.6
    np.testing.assert_array_equal(transforms.majority(labels, np.eye(4), (3, 1, 1), target).ravel(), [3, 0, 0])


# --- boxes ---


def test_crop_box_with_margin_stays_inside():
    """The box is extended by the margin of each axis and clipped at the border."""
    mask = np.zeros(SHAPE, bool)
    mask[1:4, 5, 2:6] = True
    assert transforms.crop_box(mask, (2, 1, 1)) == (slice(0, 6), slice(4, 7), slice(1, 7))


def test_crop_box_of_an_empty_mask_is_the_whole_volume():
    """An empty mask does not crop."""
    assert transforms.crop_box(np.zeros(SHAPE, bool)) == (slice(0, 12), slice(0, 10), slice(0, 8))


def test_crop_keeps_each_voxel_at_its_world_coordinate(rng):
    """The affine of the crop accounts for the offset of the box."""
    array = rng.random(SHAPE)
    box = (slice(2, 9), slice(-3, 4), slice(1, 8))
    cut, affine = transforms.crop(array, ODD, box)
    assert cut.shape == (7, 7, 7)
    np.testing.assert_allclose(nib.affines.apply_affine(affine, (1, 4, 2)), nib.affines.apply_affine(ODD, (3, 1, 3)))
    assert cut[1, 4, 2] == array[3, 1, 3]
    assert np.all(cut[:, :3] == 0)


def test_fit_box_keeps_the_centre():
    """Longer and shorter boxes have the same centre; 0 keeps the extent."""
    box = (slice(2, 6), slice(0, 10), slice(3, 5))
    assert transforms.fit_box(box, (8, 4, 0)) == (slice(0, 8), slice(3, 7), slice(3, 5))


# --- masks and intensity ---


def head() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image of an ellipsoid with a dark hole and a bright voxel outside, its affine, and the ellipsoid."""
    affine = affine_of((1, 1, 2))
    grid = np.stack(np.meshgrid(*map(np.arange, (40, 36, 20)), indexing="ij"), -1)
    inside = (((grid - (20, 18, 10)) / (14, 12, 7)) ** 2).sum(-1) <= 1
    image = np.where(inside, 100.0, 5.0)
    image[18:22, 16:20, 9:11] = 6.0
    image[1, 1, 1] = 120.0
    return image, affine, inside


def test_brain_mask_is_the_filled_largest_component():
    """The hole is filled, and the bright voxel outside is excluded."""
    image, affine, inside = head()
    made = transforms.brain_mask(image, affine, closing_mm=2.0)
    assert not made[1, 1, 1] and made[20, 18, 10]
    assert (made ^ inside).sum() < 0.03 * inside.sum()
    assert made[inside].all()


def test_brain_mask_closing_does_not_reach_the_border_of_the_array():
    """A brain truncated by the field of view keeps its shape at the border."""
    image = np.full((10, 10, 10), 100.0)
    image[:, :, 6:] = 1.0
    np.testing.assert_array_equal(transforms.brain_mask(image, np.eye(4)), image > 50)


def test_brain_mask_of_a_constant_image_is_empty():
    """Without contrast no brain is found."""
    assert not transforms.brain_mask(np.full(SHAPE, 3.0), np.eye(4)).any()


def bias_problem() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Two tissues with a smooth bias field: biased image, true image, mask and affine."""
    rng = np.random.default_rng(3)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (32, 30, 16)], indexing="ij"), -1)
    mask = (grid**2).sum(-1) < 0.9
    truth = np.where(mask, np.where(np.sin(7 * grid[..., 0]) * np.sin(6 * grid[..., 1]) > 0, 150.0, 100.0), 0.0)
    field = np.exp(0.4 * grid[..., 0] - 0.3 * grid[..., 1] * grid[..., 2])
    image = np.where(mask, truth * field + rng.normal(0, 1, truth.shape), 0)
    return image, truth, mask, affine_of((1, 1, 2))


def test_n4_reduces_a_simulated_bias_field():
    """The coefficient of variation within one tissue is more than halved."""
    image, truth, mask, affine = bias_problem()
    made = transforms.n4(image, affine, mask, shrink=2)
    tissue = truth == 150

    def variation(array):
        return array[tissue].std() / array[tissue].mean()

    assert variation(image) > 0.15
    assert variation(made) < 0.5 * variation(image)


def test_n4_is_deterministic_and_keeps_the_number_of_threads():
    """Results do not depend on ITK's global number of threads."""
    image, _, mask, affine = bias_problem()
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    first = transforms.n4(image, affine, mask, iterations=(5, 5))
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before + 3)
    try:
        second = transforms.n4(image, affine, mask, iterations=(5, 5))
        assert sitk.ProcessObject.GetGlobalDefaultNumberOfThreads() == before + 3
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    np.testing.assert_array_equal(first, second)


def test_n4_needs_a_positive_voxel():
    """The bias field of an image of zeros is undefined."""
    with pytest.raises(OutOfRange, match="n4 needs a positive voxel"):
        transforms.n4(np.zeros(SHAPE), np.eye(4))


def test_zscore_inside_the_mask(rng):
    """Mean 0 and standard deviation 1 inside; the same scaling outside."""
    array, mask = rng.normal(50, 9, SHAPE), rng.random(SHAPE) > 0.5
    made = transforms.normalise(array, mask)
    assert made[mask].mean() == pytest.approx(0, abs=1e-6)
    assert made[mask].std() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(made, (array - array[mask].mean()) / array[mask].std(), rtol=1e-4, atol=1e-5)


def test_zscore_of_the_whole_volume_without_a_mask(rng):
    """Mean and standard deviation are those of the whole volume."""
    array = rng.normal(50, 9, SHAPE)
    np.testing.assert_allclose(transforms.normalise(array), (array - array.mean()) / array.std(), rtol=1e-5, atol=1e-6)


def test_minmax_scales_the_mask_to_zero_and_one(rng):
    """The minimum is 0 and the maximum 1."""
    array, mask = rng.normal(50, 9, SHAPE), rng.random(SHAPE) > 0.5
    made = transforms.normalise(array, mask, how="minmax")
    assert (made[mask].min(), made[mask].max()) == (0, 1)


def test_percentiles_are_scaled_to_zero_and_one_and_clipped():
    """The 25th percentile becomes 0, the 75th becomes 1, and values beyond are clipped."""
    array = np.arange(1001.0).reshape(1001, 1, 1)
    made = transforms.normalise(array, how="percentile", low_percent=25, high_percent=75).ravel()
    np.testing.assert_allclose(made[[0, 250, 500, 750, 1000]], [0, 0, 0.5, 1, 1])


def test_no_normalisation_is_a_float32_copy():
    """``none`` changes the dtype only."""
    array = np.arange(8, dtype=np.int16).reshape(2, 2, 2)
    made = transforms.normalise(array, how="none")
    assert made.dtype == np.float32
    np.testing.assert_array_equal(made, array)


@pytest.mark.parametrize("how", ["zscore", "minmax", "percentile"])
def test_a_constant_image_cannot_be_normalised(how):
    """A standard deviation or range of zero raises."""
    with pytest.raises(OutOfRange, match=f"normalise={how} needs voxels that differ, got only values near 7"):
        transforms.normalise(np.full(SHAPE, 7.0), how=how)


def test_an_empty_mask_cannot_normalise():
    """The message says so."""
    with pytest.raises(OutOfRange, match="got an empty mask"):
        transforms.normalise(np.ones(SHAPE), np.zeros(SHAPE, bool))


def test_an_unknown_normalisation_is_refused():
    """The message lists the valid values."""
    with pytest.raises(OutOfRange, match="zscore, minmax, percentile, none"):
        transforms.normalise(np.ones(SHAPE), how="robust")


def test_inputs_are_not_modified(rng):
    """No transform writes into its input."""
    array = rng.random(SHAPE).astype(np.float32) + 0.5
    array.flags.writeable = False
    transforms.normalise(array)
    transforms.n4(array, np.eye(4), array > 0.7, iterations=(2,))
    transforms.resample(array, np.eye(4), SHAPE, affine_of((1.1, 1, 1)))
    transforms.match_resolution(array, np.eye(4), affine_of((2, 2, 2)))
    transforms.brain_mask(array, np.eye(4))
