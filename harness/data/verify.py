"""Verify a cohort: find all faults of its data in one pass.

A *fault* is something present but wrong; nothing is trained until it is fixed or its subject
is excluded by name. Subjects without a required file or value are *ineligible*; the index has
left them out already. Images are checked at their native resolution, each file is read once,
and two subjects are held in memory at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import nibabel as nib
import numpy as np

from harness.core.types import Array, Candidate, Fault
from harness.data import nifti
from harness.data.bids import INDEX_FAULTS, BidsIndex

__all__ = ["FAULT_KINDS", "brain_faults", "verify"]

_Role = Literal["image", "label", "brain", "regions", "nuisance"]
_OPTIONAL: tuple[_Role, ...] = ("brain", "regions", "nuisance")

FAULT_KINDS: Mapping[str, str] = MappingProxyType(
    dict(
        sorted(
            {
                **INDEX_FAULTS,
                **nifti.IMAGE_FAULTS,
                "affine-mismatch": "files of a subject have the same shape but different positions",
                "all-negative": "no voxel of an image is positive",
                "brain-mask-missing": "no subject has a brain mask, and the preparation needs one",
                "brain-mask-of-some": "some subjects have a brain mask and others do not",
                "constant-image": "all voxels of an image are equal",
                "duplicate-image": "two files with different names have the same voxels",
                "duplicate-subject": "all files of a subject are copies of another's",
                "empty-mask": "no voxel of a mask is set",
                "inverted-mask": "the label covers almost the whole image, so that it may be the background",
                "extreme-intensity": "an image has voxels far more intense than all others",
                "field-of-view": "an image does not cover the label",
                "full-mask": "every voxel of the label is set",
                "negative-mask": "a mask or regions image has negative values",
                "no-orientation": "the header has neither qform nor sform, so left and right are unknown",
                "non-binary": "a mask has values other than 0 and 1",
                "non-finite": "an image has NaN or infinite voxels",
                "one-class": "the target is the same for every eligible subject",
                "orientation-mismatch": "files of a subject have the same shape but different axis directions",
                "out-of-range": "a value of participants.tsv is not plausible",
                "outside-brain": "the label extends beyond the brain mask",
                "qform": "the qform of a header cannot be computed",
                "qform-sform": "the two transforms of a header disagree, so programs place the image differently",
                "regions-not-integer": "a regions image has fractional values",
                "regions-unnamed": "a regions image has labels without a name in any table",
                "shape-mismatch": "a mask has the shape of none of its subject's images",
                "singular-affine": "the affine cannot be inverted",
                "spacing": "a voxel size is zero, negative or not a number",
                "spacing-affine": "the voxel sizes and the affine of a header disagree",
                "spacing-implausible": "a voxel size is below 0.1 mm or above 10 mm",
                "too-few": "there are fewer eligible subjects than the split needs",
                "units": "the header's unit of length is not mm",
            }.items()
        )
    )
)

_SPACING_RANGE_MM = (0.1, 10.0)
_PLACE_TOLERANCE = 0.05  # of the smallest voxel size; rounding of headers stays below it
_QFORM_TOLERANCE = 0.5  # of the smallest voxel size, at the farthest corner
_SPACING_TOLERANCE = 0.01  # relative
_OUTSIDE_IMAGE = 0.01  # fraction of the label's voxels
_OUTSIDE_BRAIN = 0.05  # fraction of the label's voxels; the edge of a brain mask is uncertain
_EXTREME_RATIO = 1e4  # largest magnitude over its 99th percentile
_LARGEST_SHARE = 0.9  # of an image that a label covers
_LARGEST_VALUE = 1e18  # its square is a single-precision number
_SNAP = 1e-3  # distance from a whole number that the scaling of a header explains
_SHOWN = 8  # values in a message
_READERS = 2  # candidates in memory at a time, each with all its images
_SAMPLE = 200_000  # voxels for a percentile


def verify(
    index: BidsIndex,
    *,
    sequences: Sequence[str] = (),
    label: str | None = None,
    optional: Sequence[str] = ("brain", "regions"),
    target: str | None = None,
    minimum: int = 1,
    seen: Callable[[Path, Array, nifti.Header], None] | None = None,
) -> list[Fault]:
    """List all faults of a cohort: those of the index, of each subject, and of the whole cohort.

    Parameters
    ----------
    index : index of the folder; its candidates have every required file
    sequences : names of the used images
    label : name of the used mask, if any
    optional : masks that are used if a subject has them; names of regions are required only
        if ``regions`` is among them
    target : column of participants.tsv that a model predicts, if any
    minimum : number of eligible subjects that the split needs
    seen : called with the path, stored voxels and header of every file that could be read,
        from several threads

    Returns
    -------
    list of Fault
        Empty if there are none. The kinds are the keys of :data:`FAULT_KINDS`.
    """
    faults = list(index.faults)
    prints: dict[str, dict[str, _Print]] = {}

    def examine(candidate: Candidate) -> tuple[list[Fault], dict[str, _Print]]:
        scans, found = _scans(index.root, candidate, sequences, label, optional)
        if seen is not None:
            for scan in scans:
                seen(index.root / scan.file, scan.data, scan.header)
        found += [fault for scan in scans for fault in _scan_faults(scan)]
        found += _subject_faults(index, candidate, scans)
        return found, {scan.name: _Print(candidate.subject, scan.file, scan.digest) for scan in scans}

    # Most of the time goes into decompression, which releases the GIL.
    with ThreadPoolExecutor(_READERS) as readers:
        for candidate, (found, marks) in zip(index.candidates, readers.map(examine, index.candidates), strict=True):
            faults += found
            prints[candidate.id] = marks
    faults += _duplicates(prints)
    faults += _implausible(index)
    faults += _one_class(index, target)
    faults += _too_few(index, minimum)
    return faults


def brain_faults(index: BidsIndex, *, needed_for: str = "") -> list[Fault]:
    """Fault if only some subjects have a brain mask, or if none has and an option needs it.

    With masks of some subjects only, the intensities of subjects would not be comparable.

    Parameters
    ----------
    index : index of the folder
    needed_for : option that needs brain masks; empty if none

    Returns
    -------
    list of Fault
        At most one.
    """
    without = [one.id for one in index.candidates if "brain" not in one.masks]
    if without and len(without) < len(index.candidates):
        value = f"{len(without)} of {len(index.candidates)} subjects have no brain mask: {', '.join(without)}"
        remedy = "Add the masks, or set cohort.brain=compute or cohort.brain=none."
        return [Fault("brain-mask-of-some", "", "", value, "a brain mask for all subjects or for none", remedy)]
    if without and needed_for:
        remedy = "Add them as label-brain_mask, or set cohort.brain=compute (crude)."
        return [Fault("brain-mask-missing", "", "", "the data have no brain masks", f"one for {needed_for}", remedy)]
    return []


@dataclass(frozen=True)
class _Scan:
    """One file that was read.

    Parameters
    ----------
    name : as in the candidate
    role : determines which values are valid
    file : relative to the root
    subject : see :class:`harness.core.types.Candidate`
    header : without repairs
    data : (X, Y, Z), or another shape if the file is faulty
    """

    name: str
    role: _Role
    file: str
    subject: str
    header: nifti.Header
    data: Array

    def fault(self, kind: str, value: str, expected: str, remedy: str) -> Fault:
        return Fault(kind, self.file, self.subject, value, expected, remedy)

    @cached_property
    def limits(self) -> tuple[float, float]:
        """Smallest and largest value; NaN if any voxel is NaN."""
        return float(self.data.min()), float(self.data.max())

    @property
    def finite(self) -> bool:
        return bool(np.all(np.isfinite(self.limits)))

    @property
    def of_pipeline(self) -> bool:
        """Whether it is an optional mask of a derivative."""
        return self.role in _OPTIONAL and self.file.startswith("derivatives")

    @property
    def placed(self) -> bool:
        """Whether its grid can be compared with that of another file."""
        return len(self.header.shape) == 3 and _invertible(self.header.affine)

    @cached_property
    def digest(self) -> str:
        """Hash of the voxels, independent of the number type; empty if duplicates are legitimate."""
        low, high = self.limits
        if self.role in _OPTIONAL or not self.finite or low == high:
            return ""  # one template may serve all subjects
        with np.errstate(over="ignore"):
            values = np.packbits((self.data != 0).ravel("K")) if self.role == "label" else self.data.astype(np.float32)
        start = f"{self.role == 'label'} {self.data.shape}".encode()
        return hashlib.sha256(start + values.tobytes(order="A")).hexdigest()


@dataclass(frozen=True)
class _Print:
    """What the comparison across subjects needs of a file."""

    subject: str
    file: str
    digest: str


def _scans(
    root: Path, candidate: Candidate, sequences: Iterable[str], label: str | None, optional: Iterable[str]
) -> tuple[list[_Scan], list[Fault]]:
    """Used files of a candidate, and faults of those that cannot be read."""
    files: list[tuple[str, _Role, Path]] = [(name, "image", candidate.images[name]) for name in sequences]
    if label is not None:
        files.append((label, "label", candidate.masks[label]))
    extra = [name for name in optional if name in candidate.masks and name != label]
    roles: dict[str, _Role] = {"brain": "brain", "regions": "regions"}
    files += [(name, roles.get(name, "nuisance"), candidate.masks[name]) for name in extra]
    scans, faults = [], []
    for name, role, path in files:
        file = str(path.relative_to(root))
        try:
            header, values = nifti.load(path)
            values = values if role == "image" else _snapped(values)
            scans.append(_Scan(name, role, file, candidate.subject, header, values))
        except nifti.ImageError as error:
            faults.append(Fault(error.kind, file, candidate.subject, error.value, error.expected, error.remedy))
    return scans, faults


def _snapped(values: Array) -> Array:
    """Labels as whole numbers, if rounding is all that separates them: 255 times a slope of 1/255 is not exactly 1."""
    if values.dtype.kind != "f" or not np.all(np.isfinite(values)):
        return values
    whole = np.rint(values)
    return whole if np.max(np.abs(values - whole), initial=0) <= _SNAP else values


def _scan_faults(scan: _Scan) -> list[Fault]:
    checks = (*_HEADER_CHECKS, *_VALUE_CHECKS[scan.role])
    return [fault for check in checks if (fault := check(scan)) is not None]


# --- headers -----------------------------------------------------------------


def _dimensions(scan: _Scan) -> Fault | None:
    if len(scan.header.shape) == 3:
        return None
    error = nifti.dimensions_error(Path(scan.file), scan.header.shape)
    return scan.fault(error.kind, error.value, error.expected, error.remedy)


def _spacing(scan: _Scan) -> Fault | None:
    if _positive(scan.header.spacing_mm):
        return None
    value = f"the voxel size is {_numbers(scan.header.spacing_mm)}"
    remedy = "Set pixdim from the scanner's protocol, or convert the original again."
    return scan.fault("spacing", value, "three positive lengths", remedy)


def _spacing_implausible(scan: _Scan) -> Fault | None:
    sizes, (low, high) = scan.header.spacing_mm, _SPACING_RANGE_MM
    if not _positive(sizes) or _units(scan) or all(low <= size <= high for size in sizes):
        return None
    value = f"the voxel size is {_numbers(sizes)} mm"
    return scan.fault(
        "spacing-implausible", value, f"{low:g} to {high:g} mm", "Check the unit and the header's pixdim."
    )


def _units(scan: _Scan) -> Fault | None:
    # Many programs write "unknown", which means mm in practice.
    if scan.header.units in ("mm", "unknown"):
        return None
    value, remedy = f"the unit is {scan.header.units}", "Convert the affine and pixdim to mm and set xyzt_units."
    return scan.fault("units", value, "mm", remedy)


def _affine(scan: _Scan) -> Fault | None:
    if _invertible(scan.header.affine) or (scan.header.sform is None and _qform(scan) is not None):
        return None
    rows = ", ".join(map(_numbers, scan.header.affine[:3]))
    value = f"the affine has the rows {rows}"
    remedy = "Copy the affine of the original image, or convert it again."
    return scan.fault("singular-affine", value, "an invertible matrix of finite numbers", remedy)


def _no_orientation(scan: _Scan) -> Fault | None:
    if scan.header.qform is not None or scan.header.sform is not None:
        return None
    remedy = "Set the sform from the original image, or convert it again."
    return scan.fault("no-orientation", "qform_code and sform_code are 0", "one of them above 0", remedy)


def _qform(scan: _Scan) -> Fault | None:
    """A qform that other programs may use, although the sform precedes it."""
    qform = scan.header.qform
    if qform is None or np.all(np.isfinite(qform)) or not _positive(scan.header.spacing_mm):
        return None
    remedy = "Copy the affine of the original image to qform and sform, or set qform_code to 0 if the sform is right."
    value = "quaternion and offset give no transform (not finite, or longer than 1)"
    return scan.fault("qform", value, "a unit quaternion and finite offsets", remedy)


def _qform_sform(scan: _Scan) -> Fault | None:
    qform, sform = scan.header.qform, scan.header.sform
    if qform is None or sform is None or not scan.placed or not np.all(np.isfinite(qform)):
        return None
    if not _positive(scan.header.spacing_mm):
        return None  # The qform depends on pixdim, whose fault is reported already.
    apart = _apart(scan.header.shape, qform, sform)
    if apart <= _QFORM_TOLERANCE * _smallest_size(sform):
        return None
    value = f"qform and sform place a corner {apart:.3g} mm apart"
    remedy = "Find out which is right and write it to both (fslorient, nibabel's set_qform)."
    return scan.fault("qform-sform", value, f"less than {_QFORM_TOLERANCE:g} of a voxel", remedy)


def _spacing_affine(scan: _Scan) -> Fault | None:
    sizes = np.asarray(scan.header.spacing_mm)
    if not _positive(sizes) or not _invertible(scan.header.affine):
        return None
    implied = nib.affines.voxel_sizes(scan.header.affine)
    if np.allclose(sizes, implied, rtol=_SPACING_TOLERANCE, atol=0):
        return None
    value = f"pixdim says {_numbers(sizes)} mm and the affine {_numbers(implied)} mm"
    return scan.fault("spacing-affine", value, "the same sizes", "Find out which is right and write it to both.")


# --- values ------------------------------------------------------------------


def _non_finite(scan: _Scan) -> Fault | None:
    if scan.finite:
        return None
    bad = ~np.isfinite(scan.data)
    first = tuple(int(place) for place in np.argwhere(bad)[0])
    value = f"{int(bad.sum())} of {bad.size} voxels are NaN or infinite, the first at {first}"
    return scan.fault("non-finite", value, "finite numbers", "Find the step that made them, or set them to 0.")


def _constant(scan: _Scan) -> Fault | None:
    low, high = scan.limits
    if not scan.finite or low < high:
        return None
    return scan.fault("constant-image", f"every voxel is {low:g}", "contrast", "Convert the original again.")


def _all_negative(scan: _Scan) -> Fault | None:
    low, high = scan.limits
    if not scan.finite or high > 0 or low == high:
        return None
    value, remedy = (
        f"the values are {low:g} to {high:g}",
        "Check the header's slope, and whether the image is inverted.",
    )
    return scan.fault("all-negative", value, "some above 0", remedy)


def _extreme(scan: _Scan) -> Fault | None:
    if not scan.finite:
        return None
    largest = max(map(abs, scan.limits))
    flat = scan.data.ravel(order="K")
    usual = float(np.percentile(np.abs(flat[:: max(1, flat.size // _SAMPLE)].astype(np.float64)), 99))
    if usual == 0 or largest <= _EXTREME_RATIO * usual:
        return None
    value = f"the largest magnitude is {largest:g}, and 99 % of the voxels are below {usual:g}"
    remedy = "Clip the image, or find the step that made the spikes."
    return scan.fault("extreme-intensity", value, f"less than {_EXTREME_RATIO:g} times as much", remedy)


def _negative_mask(scan: _Scan) -> Fault | None:
    if not scan.finite or scan.limits[0] >= 0:
        return None
    value, remedy = f"the smallest value is {scan.limits[0]:g}", "Set the background to 0 and save as uint8."
    return scan.fault("negative-mask", value, "0 or more", remedy)


def _non_binary(scan: _Scan) -> Fault | None:
    low, high = scan.limits
    if not scan.finite or low < 0:
        return None
    if high <= 1 and (scan.data.dtype.kind in "iu" or np.all((scan.data == 0) | (scan.data == 1))):
        return None
    remedy = "Threshold the mask, or choose one of its labels, and save it as 0 and 1."
    return scan.fault("non-binary", f"the values are {_listed(np.unique(scan.data))}", "0 and 1", remedy)


def _empty_mask(scan: _Scan) -> Fault | None:
    if scan.limits != (0.0, 0.0):
        return None
    remedy = "Replace it with the correct file; a subject without the finding must be excluded."
    return scan.fault("empty-mask", "no voxel is set", "at least one voxel", remedy)


def _full_mask(scan: _Scan) -> Fault | None:
    if scan.limits != (1.0, 1.0):
        return None
    remedy = "Replace it with the correct file; it may be a mask of the field of view."
    return scan.fault("full-mask", f"all {scan.data.size} voxels are set", "some background", remedy)


def _not_integer(scan: _Scan) -> Fault | None:
    if not scan.finite or scan.data.dtype.kind in "iu":
        return None
    odd = np.unique(scan.data[scan.data != np.rint(scan.data)])
    if not odd.size:
        return None
    remedy = "Resample label images with nearest neighbours."
    return scan.fault("regions-not-integer", f"there are values such as {_listed(odd)}", "whole numbers", remedy)


def _inverted(scan: _Scan) -> Fault | None:
    if scan.limits != (0.0, 1.0):
        return None
    share = float(np.mean(scan.data != 0))
    if share <= _LARGEST_SHARE:
        return None
    remedy = "Look at the mask; if 1 marks the background, invert it."
    return scan.fault("inverted-mask", f"{share:.1%} of the voxels are set", f"at most {_LARGEST_SHARE:.0%}", remedy)


def _number_range(scan: _Scan) -> Fault | None:
    """Values whose variance single precision cannot hold, e.g. after a wrong slope."""
    low, high = scan.limits
    if not scan.finite or low == high:
        return None
    smallest, largest = 1 / _LARGEST_VALUE, _LARGEST_VALUE
    if (max(abs(low), abs(high)) <= largest and high - low >= smallest) or _extreme(scan):  # spikes are one fault
        return None
    value, expected = f"the values are {low:g} to {high:g}", f"a range from {smallest:g} to {largest:g}"
    return scan.fault("number-range", value, expected, "Rescale the image; check the header's slope.")


_Check = Callable[[_Scan], Fault | None]

_HEADER_CHECKS: tuple[_Check, ...] = (
    _dimensions,
    _spacing,
    _spacing_implausible,
    _units,
    _affine,
    _no_orientation,
    _qform,
    _qform_sform,
    _spacing_affine,
)

_MASK_CHECKS: tuple[_Check, ...] = (_non_finite, _negative_mask, _non_binary, _empty_mask)

_VALUE_CHECKS: Mapping[_Role, tuple[_Check, ...]] = {
    "image": (_non_finite, _number_range, _constant, _all_negative, _extreme),
    "label": (*_MASK_CHECKS, _full_mask, _inverted),
    # A cropped image can lie entirely inside the brain, so a full brain mask is no fault.
    "brain": _MASK_CHECKS,
    "regions": (_non_finite, _negative_mask, _not_integer, _empty_mask),
    "nuisance": (_non_finite, _negative_mask, _non_binary),  # a subject may have none
}


# --- files of one subject against each other ----------------------------------


def _subject_faults(index: BidsIndex, candidate: Candidate, scans: Sequence[_Scan]) -> list[Fault]:
    placed = [scan for scan in scans if scan.placed]
    return [
        *_shape_faults(candidate, placed),
        *_place_faults(placed),
        *_view_faults(placed),
        *_outside_brain(placed),
        *_unnamed_regions(index, scans),
    ]


def _shape_faults(candidate: Candidate, scans: Sequence[_Scan]) -> list[Fault]:
    """Masks with the shape of no image or, if no image is used, with another shape than the label."""
    images = {scan.name: scan.header.shape for scan in scans if scan.role == "image"}
    # Pipelines reorient the images that they mask (fMRIPrep); such masks are placed by world coordinates.
    masks = [scan for scan in scans if scan.role != "image" and not scan.of_pipeline]
    if not images:
        images = {scan.name: scan.header.shape for scan in masks if scan.role == "label"}
    odd = [scan for scan in masks if images and scan.header.shape not in images.values()]
    if odd:  # They may have been drawn on a sequence that is not used.
        images |= _other_shapes(candidate, images)
    shown = ", ".join(f"{name} {shape}" for name, shape in images.items())
    remedy = "Resample the mask to the image it was drawn on (nearest neighbour)."
    return [
        scan.fault("shape-mismatch", f"the shape is {scan.header.shape}", f"the shape of an image: {shown}", remedy)
        for scan in odd
        if scan.header.shape not in images.values()
    ]


def _other_shapes(candidate: Candidate, known: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, path in candidate.images.items():
        try:
            shapes |= {} if name in known else {name: nifti.header(path).shape}
        except nifti.ImageError:
            continue  # Faults of files that are not used do not matter.
    return shapes


def _place_faults(scans: Sequence[_Scan]) -> list[Fault]:
    """Files of equal shape with different positions in space."""
    faults = []
    for shape in dict.fromkeys(scan.header.shape for scan in scans):
        group = [scan for scan in scans if scan.header.shape == shape]
        reference = next((scan for scan in group if scan.role == "label"), group[0])
        size = _smallest_size(reference.header.affine)
        for scan in group:
            if scan.of_pipeline and scan.header.orientation != reference.header.orientation:
                continue
            apart = _apart(shape, scan.header.affine, reference.header.affine)
            if apart > _PLACE_TOLERANCE * size:
                faults.append(_place_fault(scan, reference, apart))
    return faults


def _place_fault(scan: _Scan, reference: _Scan, apart: float) -> Fault:
    ours, theirs = scan.header.orientation, reference.header.orientation
    remedy = "Register and resample the images to one grid; do not copy a header without checking the images."
    if ours != theirs:
        value = f"the axes run to {''.join(ours)}, those of {reference.file} to {''.join(theirs)}"
        return scan.fault("orientation-mismatch", value, "the same directions for the same shape", remedy)
    value = f"a corner is {apart:.3g} mm from that of {reference.file}, which has the same shape"
    value += f" (origins {_numbers(scan.header.affine[:3, 3])} and {_numbers(reference.header.affine[:3, 3])} mm)"
    return scan.fault("affine-mismatch", value, "the same position", remedy)


def _view_faults(scans: Sequence[_Scan]) -> list[Fault]:
    """Images on another grid that do not cover the label or, without one, the centre of the first image."""
    images = [scan for scan in scans if scan.role == "image"]
    label = next((scan for scan in scans if scan.role == "label"), None)
    source = label or next(iter(images), None)
    # Equal shapes are compared voxel by voxel in _place_faults.
    images = [] if source is None else [scan for scan in images if scan.header.shape != source.header.shape]
    if source is None or not images:
        return []
    voxels = np.argwhere(source.data > 0) if label else np.asarray(source.header.shape)[None] // 2
    faults = []
    for scan in images if len(voxels) else []:
        outside = 1 - float(np.mean(_inside(scan, _indices(source, voxels, scan))))
        if outside > _OUTSIDE_IMAGE:
            what = "of the label" if label else f"of the centre of {source.name}"
            value = f"{outside:.0%} {what} lies outside of the image"
            remedy = "Check that both belong to one scan and are in one space."
            faults.append(scan.fault("field-of-view", value, f"at most {_OUTSIDE_IMAGE:.0%}", remedy))
    return faults


def _outside_brain(scans: Sequence[_Scan]) -> list[Fault]:
    by_role = {scan.role: scan for scan in scans}
    if "label" not in by_role or "brain" not in by_role:
        return []
    label, brain = by_role["label"], by_role["brain"]
    voxels = np.argwhere(label.data > 0)
    if not len(voxels) or brain.limits[1] <= 0:
        return []
    places = _indices(label, voxels, brain)
    inside = _inside(brain, places)
    inside[inside] = brain.data[tuple(places[inside].astype(np.int64).T)] > 0
    outside = 1 - float(np.mean(inside))
    if outside <= _OUTSIDE_BRAIN:
        return []
    value = f"{outside:.0%} of its voxels lie outside of {brain.file}"
    remedy = "Look at both; one of them is shifted, flipped or another subject's."
    return [label.fault("outside-brain", value, f"at most {_OUTSIDE_BRAIN:.0%}", remedy)]


def _unnamed_regions(index: BidsIndex, scans: Sequence[_Scan]) -> list[Fault]:
    faults = []
    for scan in scans:
        if scan.role != "regions" or not scan.finite:
            continue
        values = np.unique(scan.data)
        unnamed = [value for value in values[values > 0] if value not in index.regions]
        if unnamed:
            value = f"{len(unnamed)} labels have no name: {_listed(np.asarray(unnamed))}"
            remedy = "Write a *_dseg.tsv with the columns index and name, or take the regions image away."
            faults.append(scan.fault("regions-unnamed", value, "a name for every label", remedy))
    return faults


# --- subjects against each other ----------------------------------------------


def _duplicates(prints: Mapping[str, Mapping[str, _Print]]) -> list[Fault]:
    """Copies of a whole subject (one fault), or of single files.

    A mask that is the same for all, beside images that differ, is a region of an atlas and no
    copy by mistake.
    """
    faults = []
    shared = _shared(prints)
    seen: dict[tuple[tuple[str, str], ...], str] = {}
    first: dict[str, _Print] = {}
    for id, files in prints.items():
        whole = tuple((name, one.digest) for name, one in sorted(files.items()) if one.digest)
        original = seen.setdefault(whole, id)
        if whole and original != id:
            faults.append(_duplicate_subject(id, next(iter(files.values())).subject, original))
            continue
        for name, one in files.items():
            if name not in shared and one.digest and first.setdefault(one.digest, one) is not one:
                faults.append(_duplicate_image(one, first[one.digest]))
    return faults


def _shared(prints: Mapping[str, Mapping[str, _Print]]) -> frozenset[str]:
    """Names of the files that are the same for all of several samples, unless all their files are."""
    names = {name for files in prints.values() for name in files}
    digests = {name: [files[name].digest for files in prints.values() if name in files] for name in names}
    same = {name for name, found in digests.items() if len(found) > 2 and len(set(found)) == 1}
    return frozenset(same) if same < names else frozenset()


def _duplicate_subject(id: str, subject: str, original: str) -> Fault:
    value, remedy = f"all files equal those of {original}", "Exclude one of the two, or copy the correct files."
    return Fault("duplicate-subject", id, subject, value, "each subject once", remedy)


def _duplicate_image(copy: _Print, original: _Print) -> Fault:
    value, remedy = f"the voxels equal those of {original.file}", "Copy the correct file from the source."
    return Fault("duplicate-image", copy.file, copy.subject, value, "different images under different names", remedy)


def _implausible(index: BidsIndex) -> list[Fault]:
    faults = []
    seen: set[tuple[str, str, float]] = set()
    for one in index.candidates:
        subject, row = one.subject, one.covariates
        for column, (low, high) in index.ranges.items():
            found = row.get(column)
            if isinstance(found, float) and not low <= found <= high and (subject, column, found) not in seen:
                seen.add((subject, column, found))
                value, expected = f"{column} of {subject} is {found:g}", f"{low:g} to {high:g}"
                remedy = "Fix the cell, or write n/a."
                faults.append(Fault("out-of-range", "participants.tsv", subject, value, expected, remedy))
    return faults


def _one_class(index: BidsIndex, target: str | None) -> list[Fault]:
    values = {one.covariates.get(target) for one in index.candidates} if target else set()
    if len(values) != 1 or len(index.candidates) < 2:
        return []
    value = f"{target} is {next(iter(values))} for all {len(index.candidates)} eligible subjects"
    remedy = "Choose another target, or subjects that differ in it."
    return [Fault("one-class", "participants.tsv", "", value, "at least two different values", remedy)]


def _too_few(index: BidsIndex, minimum: int) -> list[Fault]:
    subjects = {one.subject for one in index.candidates}
    if len(subjects) >= minimum or not (subjects or index.ineligible):
        return []
    left_out = ", ".join(f"{one.subject} ({one.reason})" for one in index.ineligible[:_SHOWN])
    more = f", and {len(index.ineligible) - _SHOWN} more" if len(index.ineligible) > _SHOWN else ""
    value = f"{len(subjects)} eligible subjects; left out: {left_out or 'none'}{more}"
    remedy = "Ask for fewer sequences or folds, or add subjects."
    return [Fault("too-few", "", "", value, f"at least {minimum}", remedy)]


# --- geometry ------------------------------------------------------------------


def _positive(sizes: Iterable[float]) -> bool:
    return all(np.isfinite(size) and size > 0 for size in sizes)


def _invertible(affine: Array) -> bool:
    """Whether the axes span a volume, relative to their lengths, so that voxel size does not matter."""
    if not np.all(np.isfinite(affine)):
        return False
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.all(lengths > 0) and abs(np.linalg.det(affine[:3, :3] / lengths)) > 1e-3)


def _smallest_size(affine: Array) -> float:
    return float(nib.affines.voxel_sizes(affine).min())


def _apart(shape: tuple[int, ...], one: Array, other: Array) -> float:
    """Largest distance in mm between the corners of a grid under two affines."""
    corners = np.stack(np.meshgrid(*[(0, length - 1) for length in shape]), -1).reshape(-1, 3)
    distances = nib.affines.apply_affine(one, corners) - nib.affines.apply_affine(other, corners)
    return float(np.linalg.norm(distances, axis=1).max())


def _indices(source: _Scan, voxels: Array, onto: _Scan) -> Array:
    """(N, 3) nearest voxel indices, as float, on the grid of ``onto`` for indices of ``source``."""
    change = np.linalg.inv(onto.header.affine) @ source.header.affine
    return np.asarray(np.rint(nib.affines.apply_affine(change, voxels)))


def _inside(scan: _Scan, places: Array) -> Array:
    return np.asarray(np.all((places >= 0) & (places < np.asarray(scan.header.shape)), axis=1))


def _numbers(values: Iterable[float]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"


def _listed(values: Array) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:_SHOWN])
    return shown + (f", … ({len(values)} in all)" if len(values) > _SHOWN else "")
