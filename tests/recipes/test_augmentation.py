"""Poses for augmentation: exact where the grid allows it, and drawn with the published frequencies."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.recipes.augmentation import Pose, draw_poses, transform

SHAPES = [(8, 8), (6, 10), (9, 4), (7, 7)]


def pose(
    n: int, *, flip: tuple[bool, bool] = (False, False), angle: float = 0.0, shift: tuple[float, float] = (0, 0)
) -> Pose:
    """The same pose for n items."""
    return Pose(np.tile(flip, (n, 1)), np.full(n, angle), np.tile(np.asarray(shift, float), (n, 1)))


def items(shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Three items with two channels, the first of which shows the labels."""
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(3, 2, *shape)).astype(np.float32)
    targets = rng.random((3, *shape)) < 0.3
    inputs[:, 0] = targets
    return torch.from_numpy(inputs), torch.from_numpy(targets.astype(np.int64))


def both(one: Pose, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Inputs and labels before and after a pose."""
    inputs, targets = items(shape)
    moved, labels = transform(one, inputs, targets)
    assert (moved.shape, moved.dtype) == (inputs.shape, inputs.dtype)
    assert (labels.shape, labels.dtype) == (targets.shape, targets.dtype)
    return inputs.numpy(), targets.numpy(), moved.numpy(), labels.numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_identity_pose(shape: tuple[int, int]) -> None:
    """Without flip, rotation and shift, items are unchanged."""
    inputs, targets, moved, labels = both(pose(3), shape)
    np.testing.assert_allclose(moved, inputs, atol=2e-6)
    assert np.array_equal(labels, targets)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("flip", [(True, False), (False, True), (True, True)])
def test_flips_agree_with_numpy(shape: tuple[int, int], flip: tuple[bool, bool]) -> None:
    """Flips along X, Y or both agree with numpy."""
    inputs, targets, moved, labels = both(pose(3, flip=flip), shape)
    axes = [axis for axis, wanted in zip((-2, -1), flip, strict=True) if wanted]
    np.testing.assert_allclose(moved, np.flip(inputs, axes), atol=2e-6)
    assert np.array_equal(labels, np.flip(targets, axes))


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("side", [7, 8])
def test_quarter_turns_are_rot90(side: int, turns: int) -> None:
    """On a square, rotations by 90° agree with numpy's rot90, from X towards Y."""
    inputs, targets, moved, labels = both(pose(3, angle=90.0 * turns), (side, side))
    np.testing.assert_allclose(moved, np.rot90(inputs, turns, (-2, -1)), atol=1e-5)
    assert np.array_equal(labels, np.rot90(targets, turns, (-2, -1)))


def test_quarter_turn_on_a_wide_field() -> None:
    """On 6 × 10 voxels, the middle 6 × 6 rotate like a square, since angles refer to voxels."""
    inputs, targets, moved, labels = both(pose(3, angle=90.0), (6, 10))
    np.testing.assert_allclose(moved[..., 2:8], np.rot90(inputs[..., 2:8], 1, (-2, -1)), atol=1e-5)
    assert np.array_equal(labels[..., 2:8], np.rot90(targets[..., 2:8], 1, (-2, -1)))
    np.testing.assert_allclose(moved[..., [0, 1, 8, 9]], 0, atol=1e-5)


def test_small_rotation_agrees_with_scipy() -> None:
    """A small rotation agrees with scipy's linear interpolation about the centre of the field."""
    from scipy import ndimage

    angle = np.deg2rad(16.0)
    inputs, _, moved, _ = both(pose(3, angle=16.0), (9, 12))
    centre = (np.array([9, 12]) - 1) / 2
    out = np.moveaxis(np.indices((9, 12)), 0, -1) - centre
    turned = out @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) + centre
    expected = ndimage.map_coordinates(inputs[0, 1], np.moveaxis(turned, -1, 0), order=1, mode="constant")
    np.testing.assert_allclose(moved[0, 1][2:-2, 2:-2], expected[2:-2, 2:-2], atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("shift", [(2, 0), (0, -3), (-1, 2)])
def test_whole_shifts_are_rolls_with_zeros(shape: tuple[int, int], shift: tuple[int, int]) -> None:
    """A shift by whole voxels moves values and fills with zeros."""
    inputs, targets, moved, labels = both(pose(3, shift=shift), shape)
    np.testing.assert_allclose(moved, _shifted(inputs, shift), atol=1e-5)
    assert np.array_equal(labels, _shifted(targets, shift))


def test_every_item_has_its_own_pose() -> None:
    """Each item has its own pose."""
    inputs, targets = items((6, 10))
    one = Pose(np.array([[True, False], [False, False], [False, True]]), np.zeros(3), np.zeros((3, 2)))
    moved, _ = transform(one, inputs, targets)
    for number, axis in ((0, -2), (2, -1)):
        np.testing.assert_allclose(moved[number], inputs[number].flip(axis), atol=2e-6)
    np.testing.assert_allclose(moved[1], inputs[1], atol=2e-6)


def test_labels_move_with_their_image() -> None:
    """After a pose, labels are where the image that shows them exceeds one half."""
    inputs, targets = items((24, 20))
    one = draw_poses(np.random.default_rng(5), 3, kind="joint", max_angle_deg=30, max_shift_px=5)
    moved, labels = transform(one, inputs, targets)
    # Linear and nearest interpolation may differ where the value is close to one half.
    certain = (moved[:, 0] - 0.5).abs() > 0.3
    assert certain.float().mean() > 0.5
    assert torch.equal(moved[:, 0][certain] > 0.5, labels[certain] > 0)


def test_published_mixture() -> None:
    """Of 398 copies, 2 are flips, 96 rotations and 300 shifts, of the slice and its two flips."""
    n = 200_000
    one = draw_poses(np.random.default_rng(0), n, kind="published", max_angle_deg=16, max_shift_px=45)
    turned, shifted = one.angle_deg != 0, one.shift_px.any(1)
    flipped = one.flip.any(1)
    assert not (turned & shifted).any() and not one.flip.all(1).any()
    assert turned.mean() == pytest.approx(96 / 398, abs=0.005)
    # A shift of zero is drawn once in 91 × 91.
    assert shifted.mean() == pytest.approx(300 / 398, abs=0.005)
    only = flipped & ~turned & ~shifted
    assert only.mean() == pytest.approx(2 / 398, abs=0.001)
    for axis in (0, 1):
        assert one.flip[turned, axis].mean() == pytest.approx(1 / 3, abs=0.01)
        assert one.flip[only, axis].mean() == pytest.approx(1 / 2, abs=0.05)


def test_published_angles_are_whole_degrees() -> None:
    """The 32 angles from −16° to 16° without 0° are drawn equally often."""
    one = draw_poses(np.random.default_rng(0), 300_000, kind="published", max_angle_deg=16, max_shift_px=0)
    angles, counts = np.unique(one.angle_deg[one.angle_deg != 0], return_counts=True)
    assert angles.tolist() == [*range(-16, 0), *range(1, 17)]
    assert counts.max() / counts.min() < 1.2


def test_published_shifts_are_whole_voxels_within_bounds() -> None:
    """Shifts are whole voxels within the bounds."""
    one = draw_poses(np.random.default_rng(0), 5000, kind="published", max_angle_deg=16, max_shift_px=45)
    assert np.array_equal(one.shift_px, np.round(one.shift_px))
    assert np.abs(one.shift_px).max() == 45


def test_joint_poses_do_everything_at_once() -> None:
    """Every item is rotated and shifted within the bounds, and two of three are flipped."""
    one = draw_poses(np.random.default_rng(0), 5000, kind="joint", max_angle_deg=10, max_shift_px=3)
    assert (one.angle_deg != 0).all() and np.abs(one.angle_deg).max() <= 10
    assert (one.shift_px != 0).all() and np.abs(one.shift_px).max() <= 3
    assert one.flip.any(1).mean() == pytest.approx(2 / 3, abs=0.03)


def test_no_augmentation_is_the_identity() -> None:
    """Without augmentation, poses have no flip, rotation or shift."""
    one = draw_poses(np.random.default_rng(0), 50, kind="none", max_angle_deg=16, max_shift_px=45)
    assert not one.flip.any() and not one.angle_deg.any() and not one.shift_px.any()


def test_draws_are_reproducible() -> None:
    """The same generator draws the same poses."""
    one, two = (
        draw_poses(np.random.default_rng(3), 20, kind="joint", max_angle_deg=16, max_shift_px=4) for _ in range(2)
    )
    assert np.array_equal(one.flip, two.flip) and np.array_equal(one.angle_deg, two.angle_deg)


def _shifted(array: np.ndarray, shift: tuple[int, int]) -> np.ndarray:
    """Shift by a slow loop over voxels."""
    found = np.zeros_like(array)
    height, width = array.shape[-2:]
    for x in range(height):
        for y in range(width):
            a, b = x - shift[0], y - shift[1]
            if 0 <= a < height and 0 <= b < width:
                found[..., x, y] = array[..., a, b]
    return found
