"""Voxel grid to which images are resampled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.core.types import JSON, Array
from harness.data import transforms

__all__ = ["VoxelGrid"]


@dataclass(frozen=True)
class VoxelGrid:
    """Shape and affine of a voxel grid.

    Parameters
    ----------
    shape : (3,) number of voxels along X, Y, Z
    affine : (4, 4) voxel to world (mm, RAS+)
    """

    shape: tuple[int, int, int]
    affine: Array

    @property
    def key(self) -> JSON:
        """Plain JSON for an identity; rounded, because the last bits may differ between machines."""
        return [list(self.shape), (np.round(self.affine, 6) + 0.0).tolist()]

    @property
    def text(self) -> str:
        """``152×179×142 voxels of 1×1×1 mm``."""
        sizes = "×".join(f"{size:.3g}" for size in transforms.spacing_of(self.affine))
        return f"{'×'.join(map(str, self.shape))} voxels of {sizes} mm"

    @property
    def text_with_corner(self) -> str:
        """The same with the centre of the first voxel in mm."""
        return f"{self.text} from ({', '.join(f'{value:.4g}' for value in self.affine[:3, 3])}) mm"
