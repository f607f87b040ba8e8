"""Read lesion masks in a template space as a cohort whose samples share one grid.

On a coarser grid, each voxel holds the fraction that is lesioned, because thresholding would
lose small lesions (37 of 821 stroke masks at 5 mm).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import annotated_types
import nibabel as nib
import numpy as np

from harness.core.errors import CohortError, HarnessError, OutOfRange
from harness.core.identity import canonical, code_digest
from harness.core.registry import COHORTS
from harness.core.types import Array, Candidate, Cohort, Fault, Sample
from harness.data import nifti, transforms
from harness.data.bids import BidsIndex, index
from harness.data.bids_files import is_mni, listed
from harness.data.cache import RUNS_CODE, ArrayCache, CachedImage, Digests, hash_of
from harness.data.cohort_notes import Kept, kept_of, outside_notes, resolution_notes
from harness.data.grid import VoxelGrid
from harness.data.verified import READERS, verify_once

__all__ = ["PUBLISHED_BOX_MM", "Box", "lesions"]

Box = Literal["published", "brain", "native"]

# Centres of the first and last voxel of 1 mm along X, Y, Z, in MNI space.
PUBLISHED_BOX_MM = ((-76.0, 75.0), (-106.0, 72.0), (-62.0, 79.0))  # 152 × 179 × 142 voxels
_OBLIQUE = 0.01  # radians; rounding stays far below
_BRAIN_BOX_MM = ((-80.0, 80.0), (-114.0, 80.0), (-80.0, 90.0))  # 161 × 195 × 171 voxels


@COHORTS.register("lesions", source="Gorgolewski et al. 2016, doi:10.1038/sdata.2016.44")
def lesions(
    root: Path,
    cache: Path,
    *,
    label: str = "lesion",
    sequences: tuple[str, ...] = (),
    session: str = "only",
    box: Box = "brain",
    box_mm: tuple[float, ...] = (),
    spacing_mm: tuple[Annotated[float, annotated_types.Gt(0)], ...] = (),
    truth: str = "",
    space: str = "",
    links: Path | None = None,
    exclude: tuple[str, ...] = (),
    minimum: Annotated[int, annotated_types.Ge(1)] = 3,
) -> Cohort:
    """Lesion masks of a BIDS folder, resampled to one grid in template space.

    The masks are verified, resampled by world coordinates, and cached.

    Parameters
    ----------
    root : BIDS folder with masks named ``space-<template>_label-<label>_mask``, in one
        template space
    cache : folder of prepared arrays
    label : label of the masks; a name may include entities (``desc-rater1_lesion``)
    sequences : must be empty, because there are no images
    session : sessions of subjects with several: ``only`` allows one session per subject,
        ``all``, ``first`` (in numerical order), or the name of a session
    box : field of view: ``brain`` (161 × 195 × 171 mm, with brainstem and cerebellum),
        ``published`` (152 × 179 × 142 mm, see Notes), or ``native``, the common grid of the
        masks
    box_mm : other field of view, x0, x1, y0, y1, z0, z1: centres of the outermost voxels at
        1 mm. Overrides ``box``
    spacing_mm : voxel size, one or three numbers; empty for 1 mm or the native voxel size
    truth : folder of the masks: ``raw`` (the data set itself) or a derivative
        (``derivatives/manual``); empty for the data set itself or, if it has none, the only
        derivative that has. With ``+``, the first that a subject has
    space : use only masks of this template (``MNI152NLin6Asym``); empty for that which most
        subjects have
    links : folder outside of the data set into which links may lead; empty for none. Links
        within the data set are always followed
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
    is centred on the midline and contains the cerebrum, but not all of brainstem and
    cerebellum. Volume outside of the box is reported in the notes of the cohort.

    Masks that name a template space are used rather than others. If no mask names a space,
    they must share one grid, and a note says that they are taken to be in MNI space.
    """
    root, cache = Path(root).absolute(), Path(cache).absolute()
    if not label:
        raise OutOfRange("cohort.label must be the label of the lesion masks, got an empty one; set e.g. label=lesion")
    if sequences:
        raise OutOfRange(f"sequences must be empty for lesion masks, got {', '.join(sequences)}")
    spacing = tuple(spacing_mm) * 3 if len(spacing_mm) == 1 else tuple(spacing_mm)
    if len(spacing) not in (0, 3):
        raise OutOfRange(f"spacing_mm must have one number, three (X, Y, Z) or none, got {spacing}")
    found = index(root, label=label, optional=(), session=session, exclude=tuple(exclude),
                  truth=truth, space=space, template=True, links=links)  # fmt: skip
    digests = Digests(cache / "digests", root)
    seen: dict[Path, tuple[Array, Array]] = {}
    faults = [*_unnamed_spaces(found, label), *_other_templates(found, box, box_mm)]
    verify_once(found, label=label, minimum=minimum, digests=digests, folder=cache / "verified",
                seen=_keeper(seen), more=faults)  # fmt: skip
    grid = _grid(found, label, box, tuple(box_mm), spacing)
    digests.keep()
    with ArrayCache(cache / "arrays") as arrays, ThreadPoolExecutor(READERS) as readers:
        work = _Work(found.root, label, grid, digests, arrays, seen)
        made = list(readers.map(work.sample, sorted(found.candidates, key=lambda one: one.id)))
    faults = [one for one in made if isinstance(one, Fault)]
    if faults:
        raise CohortError(faults)
    parts = [one for one in made if not isinstance(one, Fault)]
    kept = {sample.id: one for sample, one in parts}
    notes = [*_oblique_notes(found, label), *resolution_notes(found, [label])]
    notes += outside_notes(kept, [grid], what="lesion", remedy=_MORE[box] if not box_mm else _MORE["published"])
    return Cohort(
        found.name, tuple(sample for sample, _ in parts), found.ineligible, label_source=found.label_source,
        notes=(*found.notes, *notes), files=found.files,
    )  # fmt: skip


_MORE = {
    "published": "cohort.box=brain or cohort.box=native keeps more",
    "brain": "cohort.box=native keeps all",
    "native": "all masks should be on one grid",
}
"""What keeps more of a lesion than a box."""


@dataclass(frozen=True)
class _Work:
    """Resamples masks to the grid; a file is read only if neither cache nor verification has its mask."""

    root: Path
    label: str
    grid: VoxelGrid
    digests: Digests
    arrays: ArrayCache
    seen: dict[Path, tuple[Array, Array]]

    def sample(self, candidate: Candidate) -> tuple[Sample, Kept] | Fault:
        """The sample of a candidate and what the grid keeps of its lesion, or its fault."""
        path = candidate.masks[self.label]
        try:
            image, kept = self._image(path)
        except HarnessError as error:
            return self._fault("preparation", candidate, path, str(error), "a mask that can be prepared", "Fix it.")
        if image is None:
            remedy = "Choose a larger box (cohort.box=native), or bring the mask to the template's space."
            return self._fault("label-vanished", candidate, path, "no voxel of the mask lies in the box",
                               f"a lesion within {self.grid.text_with_corner}", remedy)  # fmt: skip
        sample = Sample(
            id=candidate.id,
            subject=candidate.subject,
            images={},
            masks={"lesion": image},
            covariates=dict(candidate.covariates),
            affine=self.grid.affine,
            spacing_mm=transforms.spacing_of(self.grid.affine),
            space=candidate.space,
        )
        return sample, kept

    def _image(self, path: Path) -> tuple[CachedImage | None, Kept]:
        """The mask on the grid, ``None`` if nothing of it is left, and what the grid keeps."""
        key, kept_key = self._key(path, "occupancy", _CODE), self._key(path, "kept", (*_CODE, *_KEPT_CODE))
        known, kept = self.arrays.known(key), self.arrays.known(kept_key)
        if known is not None and kept is not None:
            return known, Kept.from_array(kept.load())
        mask, affine = self.seen.pop(path) if path in self.seen else _cropped(*nifti.read(path))
        filled = _filled(mask, affine, self.grid)
        kept = self.arrays.add(kept_key, kept_of(mask, affine, self.grid).as_array())
        image = self.arrays.add(key, filled, coding="runs") if filled.any() else None
        return image, Kept.from_array(kept.load())

    def _key(self, path: Path, what: str, code: Sequence[str]) -> str:
        """Key of a prepared array: everything that determines its values."""
        values = {what: self.digests.of(path), "grid": self.grid.key, "code": code_digest(code)}
        return hash_of(canonical(values))[:32]

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


_KEPT_CODE = ("harness.data.cohort_notes:kept_of",)


def _unnamed_spaces(found: BidsIndex, label: str) -> list[Fault]:
    """Fault of masks that name no space and are on several grids, so that they are hardly in one template."""
    paths = {one.id: one.masks[label] for one in found.candidates}
    if (
        not paths
        or any("_space-" in path.name for path in paths.values())
        or any(one.space for one in found.candidates)
    ):
        return []
    try:
        grids = _grids(paths)
    except HarnessError:  # verification reports files that cannot be read
        return []
    if len(grids) < 2:
        return []
    value = f"{len(paths)} masks name no space and are on {len(grids)} grids: {_grids_text(grids)}"
    remedy = "Normalise them to a template and name it: sub-01_space-MNI152NLin6Asym_label-lesion_mask.nii.gz"
    return [Fault("space-native", "", "", value, "masks in one template space", remedy)]


def _other_templates(found: BidsIndex, box: Box, box_mm: Sequence[float]) -> list[Fault]:
    """Fault of masks in a template that is not MNI152, whose boxes would cut out other parts of the brain."""
    others = [one for one in found.candidates if one.space and not is_mni(one.space)]
    if not others or (box == "native" and not box_mm):
        return []
    named = " and ".join(f"space-{name}" for name in sorted({one.space for one in others}))
    value = f"{len(others)} masks are in {named} ({listed([one.id for one in others])})"
    asked = "cohort.box_mm" if box_mm else f"cohort.box={box}"
    remedy = "Take the grid of the masks (cohort.box=native), or bring them into an MNI152 template."
    return [Fault("space-template", "", "", value, f"an MNI152 template, in which {asked} is defined", remedy)]


def _oblique_notes(found: BidsIndex, label: str) -> list[str]:
    """Note on masks whose axes are oblique, as images of a scanner are and templates are not."""
    oblique = [
        one.id
        for one in found.candidates
        if np.any(nib.affines.obliquity(nifti.header(one.masks[label]).affine) > _OBLIQUE)
    ]
    if not oblique:
        return []
    return [f"the axes of {len(oblique)} masks are oblique, unlike those of a template: {listed(oblique)}"]


def _grids_text(grids: Sequence[tuple[VoxelGrid, list[str]]]) -> str:
    shown = "; ".join(f"{grid.text} ({listed(names, 3)})" for grid, names in grids[:4])
    return shown + ("; …" if len(grids) > 4 else "")


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
        ends = _ends(box, box_mm)
        shape = tuple(round(high - low) + 1 for low, high in ends)
        affine = np.eye(4)
        affine[:3, 3] = [low for low, _ in ends]
    if spacing:
        shape, affine = transforms.regrid(shape, affine, spacing)
    grid = VoxelGrid((shape[0], shape[1], shape[2]), affine)
    grid.check_fits("cohort.spacing_mm" if spacing else "cohort.spacing_mm, or a smaller cohort.box_mm")
    return grid


def _ends(box: Box, box_mm: Sequence[float]) -> tuple[tuple[float, float], ...]:
    if not box_mm:
        return _BRAIN_BOX_MM if box == "brain" else PUBLISHED_BOX_MM
    if len(box_mm) != 6 or any(low > high for low, high in zip(box_mm[::2], box_mm[1::2], strict=True)):
        raise OutOfRange(f"cohort.box_mm must be x0 <= x1, y0 <= y1, z0 <= z1 in mm, six numbers; got {tuple(box_mm)}")
    return tuple(zip(map(float, box_mm[::2]), map(float, box_mm[1::2]), strict=True))


def _native(found: BidsIndex, label: str) -> tuple[tuple[int, ...], Array]:
    """Grid that all masks share, reoriented to RAS+."""
    grids = _grids({one.id: one.masks[label] for one in found.candidates})
    if len(grids) > 1:
        others = [name for _, names in grids[1:] for name in names]
        value = f"{len(grids)} grids; {len(others)} masks are not on that of the others: {listed(others)}"
        remedy = "Take cohort.box=brain, or bring all masks to one grid."
        raise CohortError([Fault("grids-differ", "", "", value, "one grid for all with cohort.box=native", remedy)])
    return grids[0][0].shape, grids[0][0].affine


def _grids(paths: Mapping[str, Path]) -> list[tuple[VoxelGrid, list[str]]]:
    """Grids of masks, reoriented to RAS+, with the ids of their samples; the most frequent first."""
    known: dict[tuple[object, ...], tuple[VoxelGrid, list[str]]] = {}
    for id, path in paths.items():
        facts = nifti.header(path)
        if len(facts.shape) != 3 or not np.all(np.isfinite(facts.affine)):
            continue  # a fault of its own
        turned, affine = transforms.reorient(np.broadcast_to(np.uint8(0), facts.shape), facts.affine)
        key = (turned.shape, tuple(np.round(affine, 3).ravel().tolist()))
        grid = VoxelGrid((turned.shape[0], turned.shape[1], turned.shape[2]), affine)
        known.setdefault(key, (grid, []))[1].append(id)
    return sorted(known.values(), key=lambda one: -len(one[1]))
