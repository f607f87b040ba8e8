"""Keys and descriptions of voxel grids."""

from __future__ import annotations

import numpy as np
import pytest

from harness.core.errors import OutOfRange
from harness.data.grid import VoxelGrid

AFFINE = np.diag([1.0, 2.0, 2.5, 1.0])


def test_rounding_errors_do_not_change_the_key() -> None:
    """Neither differences in the last bits nor a negative zero change the key."""
    other = AFFINE * (1 + 1e-9)
    other[0, 1] = -0.0
    assert VoxelGrid((4, 5, 6), other).key == VoxelGrid((4, 5, 6), AFFINE).key


@pytest.mark.parametrize(("shape", "moved"), [((4, 5, 7), 0.0), ((4, 5, 6), 0.001)])
def test_different_grids_have_different_keys(shape: tuple[int, int, int], moved: float) -> None:
    """Another shape, or an origin shifted by 0.001 mm, changes the key."""
    shifted = AFFINE.copy()
    shifted[0, 3] += moved
    assert VoxelGrid(shape, shifted).key != VoxelGrid((4, 5, 6), AFFINE).key


def test_text_shows_shape_spacing_and_origin() -> None:
    """The text of messages, with and without the origin."""
    affine = AFFINE.copy()
    affine[:3, 3] = (-76, -106.5, 12)
    grid = VoxelGrid((152, 179, 142), affine)
    assert grid.text == "152×179×142 voxels of 1×2×2.5 mm"
    assert grid.text_with_corner == "152×179×142 voxels of 1×2×2.5 mm from (-76, -106.5, 12) mm"


def test_grid_that_exceeds_the_memory_is_refused() -> None:
    """Before an image is made; a typo in a voxel size would end the process without a message."""
    VoxelGrid((200, 200, 200), np.eye(4)).check_fits("cohort.spacing_mm")
    with pytest.raises(OutOfRange, match=r"a grid of 100000×100000×100000 voxels .*; set a larger cohort.spacing_mm"):
        VoxelGrid((100_000,) * 3, np.eye(4)).check_fits("cohort.spacing_mm")
