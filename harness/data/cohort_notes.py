"""Notes for the user on what the preparation of a cohort loses, and on subjects with other voxel sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cc3d
import nibabel as nib
import numpy as np

from harness.core.types import Array
from harness.data import nifti, transforms
from harness.data.bids import BidsIndex
from harness.data.bids_files import listed
from harness.data.grid import VoxelGrid
from harness.data.grids import spacing_text

__all__ = ["Kept", "kept_of", "lesion_notes", "outside_notes", "resolution_notes"]

_NAMED = 0.01  # share of the volume above which a subject is named
_COARSER = 1.9  # ratio of voxel sizes that changes what can be seen


@dataclass(frozen=True)
class Kept:
    """What a grid keeps of a mask.

    Parameters
    ----------
    volume_mm3 : volume of the mask in its file
    outside_mm3 : volume of the voxels whose centres are outside of the grid
    lesions : 26-connected components in the file
    vanished : components inside of the grid of which no voxel is left on it
    """

    volume_mm3: float
    outside_mm3: float
    lesions: int = 0
    vanished: int = 0

    @classmethod
    def from_array(cls, values: Array) -> Kept:
        """The inverse of :meth:`as_array`."""
        volume, outside, lesions, vanished = values.tolist()
        return cls(volume, outside, int(lesions), int(vanished))

    def as_array(self) -> Array:
        """The four numbers, (4,) float64, for the cache."""
        return np.array([self.volume_mm3, self.outside_mm3, self.lesions, self.vanished], np.float64)

    @property
    def share_outside(self) -> float:
        """Share of the volume that is outside, in [0, 1]; 0 for an empty mask."""
        return self.outside_mm3 / self.volume_mm3 if self.volume_mm3 else 0.0


def kept_of(mask: Array, affine: Array, grid: VoxelGrid, prepared: Array | None = None) -> Kept:
    """What a grid keeps of a mask.

    Parameters
    ----------
    mask : (X, Y, Z) bool, as in the file
    affine : (4, 4) voxel to world of the mask
    grid : the grid
    prepared : the mask on the grid, bool; without it, lesions are not counted
    """
    voxels = np.argwhere(mask)
    size = float(abs(np.linalg.det(affine[:3, :3])))
    places = np.rint(nib.affines.apply_affine(np.linalg.inv(grid.affine) @ affine, voxels)).astype(np.int64)
    inside = np.all((places >= 0) & (places < np.asarray(grid.shape)), axis=1)
    lesions, vanished = 0, 0
    if prepared is not None and len(voxels):
        components, lesions = cc3d.connected_components(mask.astype(np.uint8), connectivity=26, return_N=True)
        own = components[tuple(voxels.T)]
        hit = inside.copy()
        hit[inside] = prepared[tuple(places[inside].T)]
        vanished = len(set(own[inside].tolist()) - set(own[hit].tolist()))
    return Kept(len(voxels) * size, float(np.count_nonzero(~inside)) * size, int(lesions), vanished)


def outside_notes(
    kept: Mapping[str, Kept], grids: Sequence[VoxelGrid], *, what: str, remedy: str, of: str = "samples"
) -> list[str]:
    """Note on volume outside of the field of view; none if nothing is outside.

    Parameters
    ----------
    kept : sample → what its grid keeps
    grids : grids of the samples
    what : what lies outside, e.g. ``label``
    remedy : options that keep more
    of : what the keys of ``kept`` are
    """
    lost = {name: one.share_outside for name, one in kept.items() if one.outside_mm3 > 0}
    if not lost:
        return []
    total = sum(one.outside_mm3 for one in kept.values()) / sum(one.volume_mm3 for one in kept.values())
    most = sorted(lost, key=lambda name: -lost[name])
    named = [f"{name} {_percent(lost[name])}" for name in most if lost[name] >= _NAMED] or most
    sizes = listed(list(dict.fromkeys(grid.text for grid in grids)), 2)
    return [
        f"field of view of {sizes}: {_percent(total)} of the {what} volume lies outside, "
        f"in {len(lost)} of {len(kept)} {of} ({listed(named)}); {remedy}"
    ]


def lesion_notes(kept: Mapping[str, Kept]) -> list[str]:
    """Note on lesions that no voxel of the grid holds; none if there are none."""
    lost = {name: one.vanished for name, one in kept.items() if one.vanished}
    if not lost:
        return []
    named = [f"{name} {count}" for name, count in sorted(lost.items(), key=lambda item: -item[1])]
    return [
        f"{sum(lost.values())} of {sum(one.lesions for one in kept.values())} lesions vanish when the label is "
        f"resampled ({listed(named)}); a finer cohort.spacing_mm or a lower cohort.occupied keeps more"
    ]


def _percent(share: float) -> str:
    return "less than 1 %" if share < 0.01 else f"{100 * share:.0f} %"


def resolution_notes(index: BidsIndex, names: Sequence[str]) -> list[str]:
    """Notes on subjects whose images have much larger or smaller voxels than those of most subjects.

    A localiser or a low-resolution image under the usual name is found in this way.

    Parameters
    ----------
    index : index of the folder; images that cannot be read are skipped
    names : names of the used images or masks
    """
    notes = []
    for name in names:
        sizes: dict[str, tuple[float, ...]] = {}
        for one in index.candidates:
            try:
                sizes[one.id] = transforms.spacing_of(nifti.header({**one.masks, **one.images}[name]).affine)
            except nifti.ImageError:
                continue  # verification reports it
        notes += _odd_sizes(name, sizes)
    return notes


def _odd_sizes(name: str, sizes: Mapping[str, tuple[float, ...]]) -> list[str]:
    sizes = {id: size for id, size in sizes.items() if np.all(np.isfinite(size)) and min(size) > 0}  # else a fault
    if len(sizes) < 2:
        return []
    # Sorted, because axes may be stored in any order.
    usual = np.median([sorted(size) for size in sizes.values()], axis=0)
    odd = [
        f"{id} {spacing_text(size)}"
        for id, size in sizes.items()
        if max(np.max(np.sort(size) / usual), np.max(usual / np.sort(size))) > _COARSER
    ]
    return [f"voxels of {name} are {spacing_text(tuple(usual))} in most subjects, but: {listed(odd)}"] if odd else []
