"""Voxel grid to which images are resampled."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from harness.core.errors import OutOfRange
from harness.core.types import JSON, Array
from harness.data import transforms

__all__ = ["VoxelGrid"]

_COPIES = 8  # single-precision copies of an image while several subjects are prepared at a time


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

    def check_fits(self, key: str) -> None:
        """Check that images on this grid fit into memory, before one is made.

        Parameters
        ----------
        key : the option that determines the grid

        Raises
        ------
        OutOfRange
            If the working copies of one image exceed the memory of this machine.
        """
        needed = _COPIES * 4 * float(np.prod([float(side) for side in self.shape]))
        has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > has:
            raise OutOfRange(
                f"an image must fit into memory, got a grid of {self.text}, whose preparation needs about "
                f"{needed / 1e9:.3g} GB of the {has / 1e9:.3g} GB of this machine; set a larger {key}"
            )

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
