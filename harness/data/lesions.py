"""Read lesion masks in a template space as a cohort whose samples share one grid.

On a coarser grid, each voxel holds the fraction that is lesioned, because thresholding would
lose small lesions (37 of 821 stroke masks at 5 mm).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import annotated_types
import numpy as np

from harness.core.errors import CohortError, HarnessError, OutOfRange
from harness.core.identity import canonical, code_digest
from harness.core.registry import COHORTS
from harness.core.types import Array, Candidate, Cohort, Fault, Sample
from harness.data import nifti, transforms
from harness.data.bids import BidsIndex, index
from harness.data.cache import RUNS_CODE, ArrayCache, CachedImage, Digests, hash_of
from harness.data.grid import VoxelGrid
from harness.data.verified import READERS, verify_once

__all__ = ["PUBLISHED_BOX_MM", "Box", "lesions"]

Box = Literal["published", "native"]

# Centres of the first and last voxel of 152 × 179 × 142 voxels of 1 mm along X, Y, Z, in MNI space.
PUBLISHED_BOX_MM = ((-76.0, 75.0), (-106.0, 72.0), (-62.0, 79.0))


@COHORTS.register("lesions", source="Gorgolewski et al. 2016, doi:10.1038/sdata.2016.44")
def lesions(
    root: Path,
    cache: Path,
    *,
    label: str = "lesion",
    sequences: tuple[str, ...] = (),
    session: str = "only",
    box: Box = "published",
    box_mm: tuple[float, ...] = (),
    spacing_mm: tuple[Annotated[float, annotated_types.Gt(0)], ...] = (),
    exclude: tuple[str, ...] = (),
    minimum: Annotated[int, annotated_types.Ge(1)] = 3,
) -> Cohort:
    """Lesion masks of a BIDS folder, resampled to one grid in template space.

    The masks are verified, resampled by world coordinates, and cached.

    Parameters
    ----------
    root : BIDS folder with masks named ``label-<label>_mask``, in one template space
    cache : folder of prepared arrays
    label : label of the masks
    sequences : must be empty, because there are no images
    session : sessions of subjects with several: ``only`` allows one session per subject,
        ``all``, ``first``, or the name of a session
    box : field of view: ``published`` (152 × 179 × 142 mm, see Notes), or ``native``, the
        common grid of the masks
    box_mm : other field of view, x0, x1, y0, y1, z0, z1: centres of the outermost voxels at
        1 mm. Overrides ``box``
    spacing_mm : voxel size, one or three numbers; empty for 1 mm or the native voxel size
    exclude : subjects to leave out
    minimum : minimum number of subjects

    Returns
    -------
    Cohort
        Samples sorted by id; the mask ``lesion`` is (X, Y, Z) float32 in [0, 1],
        the fraction of each voxel that is lesioned.

    Raises
    ------
    CohortError
        With all faults of the data; nothing is cached then.
    OutOfRange
        If options contradict each other.

    Notes
    -----
    The study (Section II) gives the size of its box, but not its position in MNI space; ours
    is centred on the midline and contains the cerebrum.
    """
    root, cache = Path(root).absolute(), Path(cache).absolute()
    if sequences:
        raise OutOfRange(f"sequences must be empty for lesion masks, got {', '.join(sequences)}")
    spacing = tuple(spacing_mm) * 3 if len(spacing_mm) == 1 else tuple(spacing_mm)
    if len(spacing) not in (0, 3):
        raise OutOfRange(f"spacing_mm must have one number, three (X, Y, Z) or none, got {spacing}")
    found = index(root, label=label, optional=(), session=session, exclude=tuple(exclude))
    digests = Digests(cache / "digests", root)
    seen: dict[Path, tuple[Array, Array]] = {}
    verify_once(found, label=label, minimum=minimum, digests=digests, folder=cache / "verified", seen=_keeper(seen))
    grid = _grid(found, label, box, tuple(box_mm), spacing)
    digests.keep()
    with ArrayCache(cache / "arrays") as arrays, ThreadPoolExecutor(READERS) as readers:
        work = _Work(found.root, label, grid, digests, arrays, seen)
        made = list(readers.map(work.sample, sorted(found.candidates, key=lambda one: one.id)))
    faults = [one for one in made if isinstance(one, Fault)]
    if faults:
        raise CohortError(faults)
    samples = tuple(one for one in made if isinstance(one, Sample))
    return Cohort(found.name, samples, found.ineligible, label_source=found.label_source)


@dataclass(frozen=True)
class _Work:
    """Resamples masks to the grid; a file is read only if neither cache nor verification has its mask."""

    root: Path
    label: str
    grid: VoxelGrid
    digests: Digests
    arrays: ArrayCache
    seen: dict[Path, tuple[Array, Array]]

    def sample(self, candidate: Candidate) -> Sample | Fault:
        """The sample of a candidate, or its fault."""
        path = candidate.masks[self.label]
        try:
            image = self._image(path)
        except HarnessError as error:
            return self._fault("preparation", candidate, path, str(error), "a mask that can be prepared", "Fix it.")
        if image is None:
            remedy = "Choose a larger box (box_mm=…, box=native), or bring the mask to the template's space."
            return self._fault("label-vanished", candidate, path, "no voxel of the mask lies in the box",
                               f"a lesion within {self.grid.text_with_corner}", remedy)  # fmt: skip
        return Sample(
            id=candidate.id,
            subject=candidate.subject,
            images={},
            masks={"lesion": image},
            covariates=dict(candidate.covariates),
            affine=self.grid.affine,
            spacing_mm=transforms.spacing_of(self.grid.affine),
        )

    def _image(self, path: Path) -> CachedImage | None:
        code = code_digest(_CODE)
        key = hash_of(canonical({"occupancy": self.digests.of(path), "grid": self.grid.key, "code": code}))[:32]
        known = self.arrays.known(key)
        if known is not None:
            return known
        filled = _filled(*(self.seen.pop(path) if path in self.seen else _cropped(*nifti.read(path))), self.grid)
        return self.arrays.add(key, filled, coding="runs") if filled.any() else None

    def _fault(self, kind: str, candidate: Candidate, path: Path, value: str, expected: str, remedy: str) -> Fault:
        return Fault(kind, str(path.relative_to(self.root)), candidate.subject, value, expected, remedy)


def _cropped(values: Array, affine: Array) -> tuple[Array, Array]:
    """The mask cropped to its lesion; most of a mask is empty."""
    mask = values > 0.5
    return transforms.crop(mask, affine, transforms.crop_box(mask))


def _filled(mask: Array, affine: Array, grid: VoxelGrid) -> Array:
    """The fraction of each voxel of a grid that is in the mask."""
    mask, affine = transforms.reorient(mask, affine)
    return transforms.occupancy(mask, affine, grid.shape, grid.affine)


# The code that determines the values of prepared arrays; editing it changes their keys.
_CODE = ("harness.data.nifti:read", *(f"{__name__}:{name}" for name in ("_cropped", "_filled")), *RUNS_CODE)


def _keeper(seen: dict[Path, tuple[Array, Array]]) -> Callable[[Path, Array, nifti.Header], None]:
    """Function that keeps each mask that verification reads, cropped to its lesion."""

    def keep(path: Path, values: Array, header: nifti.Header) -> None:
        if values.ndim == 3 and (values > 0.5).any():  # an empty mask is a fault, and would not be cropped
            seen[path] = _cropped(values, header.affine)

    return keep


def _grid(found: BidsIndex, label: str, box: Box, box_mm: Sequence[float], spacing: Sequence[float]) -> VoxelGrid:
    """Grid of all samples."""
    if box == "native" and not box_mm:
        shape, affine = _native(found, label)
    else:
        ends = _ends(box_mm)
        shape = tuple(round(high - low) + 1 for low, high in ends)
        affine = np.eye(4)
        affine[:3, 3] = [low for low, _ in ends]
    if spacing:
        shape, affine = transforms.regrid(shape, affine, spacing)
    return VoxelGrid((shape[0], shape[1], shape[2]), affine)


def _ends(box_mm: Sequence[float]) -> tuple[tuple[float, float], ...]:
    if not box_mm:
        return PUBLISHED_BOX_MM
    if len(box_mm) != 6 or any(low > high for low, high in zip(box_mm[::2], box_mm[1::2], strict=True)):
        raise OutOfRange(f"box_mm must be x0 <= x1, y0 <= y1, z0 <= z1 in mm, six numbers; got {tuple(box_mm)}")
    return tuple(zip(map(float, box_mm[::2]), map(float, box_mm[1::2]), strict=True))


def _native(found: BidsIndex, label: str) -> tuple[tuple[int, ...], Array]:
    """Grid that all masks share, reoriented to RAS+."""
    grids: dict[tuple[object, ...], list[str]] = {}
    known: dict[tuple[object, ...], tuple[tuple[int, ...], Array]] = {}
    for one in found.candidates:
        facts = nifti.header(one.masks[label])
        turned, affine = transforms.reorient(np.broadcast_to(np.uint8(0), facts.shape), facts.affine)
        key = (turned.shape, tuple(np.round(affine, 3).ravel().tolist()))
        grids.setdefault(key, []).append(one.id)
        known[key] = (turned.shape, affine)
    if len(grids) > 1:
        most = max(grids, key=lambda key: len(grids[key]))
        others = [name for key, names in grids.items() if key != most for name in names]
        raise CohortError(
            [
                Fault(
                    "grids-differ", "", "", f"{len(grids)} grids; {len(others)} masks are not on that of the others: "
                    f"{', '.join(others[:8])}{', …' if len(others) > 8 else ''}",
                    "one grid for all with box=native", "Take box=published, or bring all masks to one grid.",
                )
            ]
        )  # fmt: skip
    return known[next(iter(grids))]
