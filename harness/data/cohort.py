"""Read a BIDS folder of images as a verified cohort of prepared, memory-mapped arrays.

The key of a prepared array is a hash of everything that determines its values: the bytes of
the original, the grid, the options of its preparation, and the code. Nothing is ever
overwritten, a subset of the sequences needs no preparation, and all processes of a machine
map the same files.

::

    cache/arrays/              prepared arrays, see harness.data.cache
    cache/digests/<root>.json  checksums of the originals of a cohort
    cache/verified/<key>.json  what was verified without a fault
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Literal, get_args

import annotated_types
import numpy as np

from harness.core.errors import CohortError, HarnessError, OutOfRange, UnknownName
from harness.core.identity import canonical, code_digest
from harness.core.registry import COHORTS
from harness.core.types import JSON, NUISANCE, Array, Candidate, Cohort, Fault, Image, Sample
from harness.data import nifti, transforms
from harness.data.bids import BidsIndex, index
from harness.data.cache import ArrayCache, CachedImage, Digests, hash_of
from harness.data.cohort_notes import Kept, kept_of, lesion_notes, outside_notes, resolution_notes
from harness.data.grid import VoxelGrid
from harness.data.transforms import Interpolation, Normalisation
from harness.data.verified import verify_once
from harness.data.verify import brain_faults

__all__ = ["Brain", "Crop", "bids"]

Brain = Literal["if_present", "compute", "none"]
Crop = Literal["none", "brain"]

_BRAIN_SOURCES = ("T1w", "T2w", "FLAIR")  # in this order, whatever sequences a run asks for


@COHORTS.register("bids", source="Gorgolewski et al. 2016, doi:10.1038/sdata.2016.44")
def bids(
    root: Path,
    cache: Path,
    *,
    label: str = "pvs",
    sequences: tuple[str, ...] = (),
    reference: str = "label",
    session: str = "only",
    reorient: bool = True,
    spacing_mm: tuple[float, ...] = (),
    crop: Crop = "none",
    margin_mm: Annotated[float, annotated_types.Ge(0)] = 5.0,
    size: tuple[int, ...] = (),
    interpolation: Interpolation = "linear",
    antialias: bool = True,
    occupied: Annotated[float, annotated_types.Gt(0), annotated_types.Le(1)] = 0.5,
    n4: bool = False,
    n4_shrink: Annotated[int, annotated_types.Ge(1)] = 4,
    brain: Brain = "if_present",
    brain_from: str = "",
    skull_strip: bool = False,
    normalise: Normalisation = "zscore",
    nuisance: str = "",
    truth: str = "",
    space: str = "",
    links: Path | None = None,
    exclude: tuple[str, ...] = (),
    minimum: Annotated[int, annotated_types.Ge(1)] = 3,
) -> Cohort:
    """Images and masks of a BIDS folder, resampled to one grid per subject.

    The files are verified, prepared and cached. The grid of a subject is that of the
    reference, after reorienting, resampling and cropping. Each image is corrected for the
    bias field on its own grid, resampled once, and normalised.

    Parameters
    ----------
    root : BIDS folder
    cache : folder of prepared arrays, shared by all cohorts; created if needed
    label : label of the mask to predict (``label-<label>_mask``), which becomes the mask
        ``target``; a name may include entities (``desc-rater1_lesion``). Empty for new
        subjects without labels
    sequences : suffixes of required images, with entities if needed
        (``ce-gadolinium_T1w``); empty for those that all subjects have
    reference : image that defines the grid: ``label``, or a sequence, to which the label is
        then resampled by occupancy. Without a label, ``label`` means the first sequence
    session : sessions of subjects with several: ``only`` allows one session per subject,
        ``all``, ``first`` (in numerical order), or the name of a session
    reorient : reorient images to RAS+
    spacing_mm : voxel size, three numbers; empty for that of the reference
    crop : ``brain`` crops to the bounding box of the brain mask and the label
    margin_mm : margin around the brain if cropped, in mm
    size : number of voxels along each axis, centred in the field of view or, if cropped, in
        the brain; images are cropped or padded with zeros. 0 leaves an axis unchanged, empty
        all axes
    interpolation : interpolation of images; masks are resampled by occupancy, region labels
        by majority
    antialias : smooth images before resampling them to a coarser grid
    occupied : minimum occupancy of a voxel that belongs to a mask; with 0.5, resampling
        removes lesions smaller than half a voxel
    n4 : correct the bias field by N4 (slow; cached)
    n4_shrink : shrink factor of the image on which the bias field is estimated
    brain : ``if_present`` uses the brain masks of the data, ``compute`` also creates crude
        ones for subjects without, ``none`` ignores them
    brain_from : sequence from which brain masks are computed; empty for the first of T1w,
        T2w, FLAIR that a subject has, whether or not it is in ``sequences``
    skull_strip : set voxels outside the brain to 0, after normalisation
    normalise : normalisation of intensities, with statistics of the brain or, without a
        brain mask, of the volume on the final grid
    nuisance : label of the mask of a known nuisance, such as lesions, which becomes the mask
        ``nuisance`` of the subjects that have it; empty for none
    truth : folder of the masks of the label: ``raw`` (the data set itself) or a derivative
        (``derivatives/manual``); empty for the data set itself or, if it has none, the only
        derivative that has. With ``+``, the first that a subject has
    space : use only files of this space (``MNI152NLin6Asym``, ``native``); empty for that
        which has all files of a subject, native first
    links : folder outside of the data set into which links may lead; empty for none. Links
        within the data set are always followed
    exclude : subjects to leave out
    minimum : minimum number of subjects

    Returns
    -------
    Cohort
        Samples sorted by id; images are the requested sequences in their order;
        masks are ``target``, and ``brain``, ``regions`` and ``nuisance`` where there are any.

    Raises
    ------
    CohortError
        With all faults of the data; nothing is cached then. Faults that only
        preparation can find (a label that vanishes on the grid) are listed
        together as well, after all subjects were tried.
    OutOfRange
        If options contradict each other.
    """
    root, cache = Path(root).absolute(), Path(cache).absolute()
    options = _Options(
        label, reference, reorient, tuple(spacing_mm), crop, margin_mm, tuple(size), interpolation, antialias,
        occupied, n4, n4_shrink, brain, brain_from, skull_strip, normalise, nuisance,
    )  # fmt: skip
    needed = _needed(options, tuple(sequences))
    find = partial(index, root, label=label or None, optional=options.masks, session=session,
                   exclude=tuple(exclude), truth=truth, space=space, links=links)  # fmt: skip
    found = find(sequences=needed)
    wanted = tuple(sequences) or _common_sequences(found)
    if not sequences and not found.faults:
        found = find(sequences=tuple(dict.fromkeys((*wanted, *needed))))  # which is told of them, too
    digests = Digests(cache / "digests", root)
    verify_once(
        found, label=label, sequences=tuple(dict.fromkeys((*wanted, *needed))), optional=options.masks,
        minimum=minimum, digests=digests, folder=cache / "verified", more=_brain_faults(found, options),
    )  # fmt: skip
    digests.keep()
    samples, faults, subjects = [], [], []
    with ArrayCache(cache / "arrays") as arrays:
        for candidate in sorted(found.candidates, key=lambda one: one.id):
            subject = _Subject(candidate, options, wanted, digests, arrays, root)
            try:
                samples.append(subject.sample())
            except _Unprepared as problem:
                faults.append(problem.fault)
            subjects.append(subject)
        if faults:
            raise CohortError(faults)
        notes = (*found.notes, *resolution_notes(found, wanted), *_lost(subjects, options))
    return Cohort(
        found.name, tuple(samples), found.ineligible, dict(found.regions), found.label_source,
        notes=notes, files=found.files,
    )  # fmt: skip


# --- options and checks before preparation ---------------------------------------------


@dataclass(frozen=True)
class _Options:
    """How arrays are prepared; see :func:`bids`."""

    label: str
    reference: str
    reorient: bool
    spacing_mm: tuple[float, ...]
    crop: Crop
    margin_mm: float
    size: tuple[int, ...]
    interpolation: Interpolation
    antialias: bool
    occupied: float
    n4: bool
    n4_shrink: int
    brain: Brain
    brain_from: str
    skull_strip: bool
    normalise: Normalisation
    nuisance: str

    @property
    def masks(self) -> tuple[str, ...]:
        """Masks that are used where a subject has them."""
        usual = ("regions",) if self.brain == "none" else ("brain", "regions")
        return (*usual, self.nuisance) if self.nuisance else usual

    def __post_init__(self) -> None:
        for name, value, known in [
            ("brain", self.brain, Brain),
            ("crop", self.crop, Crop),
            ("interpolation", self.interpolation, Interpolation),
            ("normalise", self.normalise, Normalisation),
        ]:
            if value not in get_args(known):
                raise UnknownName(f"value of {name}", value, get_args(known))
        for name, numbers in [("spacing_mm", self.spacing_mm), ("size", self.size)]:
            if len(numbers) not in (0, 3):
                raise OutOfRange(f"{name} must have three numbers (X, Y, Z) or none, got {numbers}")
        if self.nuisance and self.nuisance in (self.label, "brain", "regions"):
            raise OutOfRange(
                f"cohort.nuisance must be another mask than the label, brain and regions, got {self.nuisance}"
            )
        if not 0 < self.occupied <= 1:
            raise OutOfRange(f"0 < occupied <= 1 must hold, got {self.occupied}")
        if self.brain == "none" and (self.skull_strip or self.crop == "brain"):
            asking = "cohort.skull_strip=true" if self.skull_strip else "cohort.crop=brain"
            raise OutOfRange(
                f"{asking} needs a brain mask, got cohort.brain=none; set cohort.brain=if_present or "
                "cohort.brain=compute"
            )


def _needed(options: _Options, sequences: tuple[str, ...]) -> tuple[str, ...]:
    """Sequences that a subject must have: those requested, and those that the preparation uses."""
    extra = [options.reference] if options.reference != "label" else []
    extra += [options.brain_from] if options.brain_from and options.brain == "compute" else []
    return tuple(dict.fromkeys((*sequences, *extra)))


def _common_sequences(found: BidsIndex) -> tuple[str, ...]:
    """Sequences that all candidates have, sorted."""
    if not found.candidates:
        return ()
    common = set.intersection(*(set(one.images) for one in found.candidates))
    if not common:
        some = sorted({name for one in found.candidates for name in one.images})
        raise OutOfRange(
            f"at least one sequence must be there for all {len(found.candidates)} subjects, and none is; name the "
            f"sequences that are needed (sequences=…, there is {', '.join(some) or 'none'}) to leave out the others"
        )
    return tuple(sorted(common))


def _brain_faults(found: BidsIndex, options: _Options) -> list[Fault]:
    """Fault if only some subjects have a brain mask, or if none has and an option needs it."""
    if options.brain != "if_present":
        return []
    asking = (
        "cohort.skull_strip=true" if options.skull_strip else "cohort.crop=brain" if options.crop == "brain" else ""
    )
    return brain_faults(found, needed_for=asking)


def _lost(subjects: Sequence[_Subject], options: _Options) -> list[str]:
    """Notes on what the grids of all subjects do not keep of labels and brains."""
    notes: list[str] = []
    grids = [subject.grid for subject in subjects]
    remedy = "cohort.crop=none cohort.size=[] keeps the whole image"
    if options.label:
        kept = {subject.candidate.id: subject.label_kept for subject in subjects}
        notes += outside_notes(kept, grids, what="label", remedy=remedy) + lesion_notes(kept)
    brains = {subject.candidate.id: one for subject in subjects if (one := subject.brain_kept) is not None}
    return notes + outside_notes(brains, grids, what="brain", remedy=remedy)


# --- values of prepared arrays; editing this code changes their keys ----------


def _read(path: Path, *, reorient: bool) -> tuple[Array, Array]:
    """Image and affine of a file."""
    array, affine = nifti.read(path)
    return transforms.reorient(array, affine) if reorient else (array, affine)


def _read_mask(path: Path, *, reorient: bool) -> tuple[Array, Array]:
    """Mask, bool, and affine of a file."""
    values, affine = _read(path, reorient=reorient)
    return values > 0.5, affine


def _filled(mask: Array, affine: Array, grid: VoxelGrid, *, share: float) -> Array:
    """Mask on a grid: voxels of which at least a share is in the mask."""
    # The tolerance keeps voxels that are filled exactly to the share in the mask.
    return np.asarray(transforms.occupancy(mask, affine, grid.shape, grid.affine) >= share - 1e-5, dtype=bool)


def _labelled(labels: Array, affine: Array, grid: VoxelGrid) -> Array:
    """Region labels on a grid."""
    return transforms.majority(np.rint(labels).astype(np.int32), affine, grid.shape, grid.affine)


def _prepared(
    image: Array,
    affine: Array,
    grid: VoxelGrid,
    inside: Array | None,
    tissue: tuple[Array, Array] | None,
    options: _Options,
) -> Array:
    """Image on a grid, corrected and normalised.

    Parameters
    ----------
    inside : brain mask on the grid, if any
    tissue : brain mask on its own grid and its affine, for the correction of the bias field
    """
    if options.n4:
        x, y, z = image.shape
        own = None if tissue is None else _filled(*tissue, VoxelGrid((x, y, z), affine), share=0.5)
        image = transforms.n4(image, affine, own, shrink=options.n4_shrink)
    if options.antialias:
        image = transforms.match_resolution(image, affine, grid.affine)
    image = transforms.resample(image, affine, grid.shape, grid.affine, order=options.interpolation)
    image = transforms.normalise(image, inside, how=options.normalise)
    if options.skull_strip and inside is not None:
        image[~inside] = 0
    return image


_CODE = (
    *(f"{__name__}:{name}" for name in ("_read", "_read_mask", "_filled", "_labelled", "_prepared")),
    "harness.data.transforms:brain_mask",
)
_KEPT_CODE = ("harness.data.cohort_notes:kept_of",)


# --- one subject -------------------------------------------------------------


class _Unprepared(Exception):
    """A fault that is found only during preparation."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


@dataclass(frozen=True)
class _Subject:
    """Prepares one candidate; originals are read only if the cache has no prepared array."""

    candidate: Candidate
    options: _Options
    sequences: tuple[str, ...]
    digests: Digests
    arrays: ArrayCache
    root: Path

    def sample(self) -> Sample:
        """All images and masks of the subject, on its grid."""
        candidate = self.candidate
        masks: dict[str, Image] = {}
        if self.options.label:
            masks["target"] = self._target()
        if self.options.nuisance in candidate.masks:
            masks[NUISANCE] = self._filled_mask(candidate.masks[self.options.nuisance], self.grid)
        brain = self._brain(self.grid)
        if brain is not None:
            masks["brain"] = brain
        if "regions" in candidate.masks:
            masks["regions"] = self._regions()
        images: dict[str, Image] = {name: self._image(name, brain) for name in self.sequences}
        return Sample(
            id=candidate.id,
            subject=candidate.subject,
            images=images,
            masks=masks,
            covariates=dict(candidate.covariates),
            affine=self.grid.affine,
            spacing_mm=transforms.spacing_of(self.grid.affine),
            space=candidate.space,
        )

    # The grid

    @cached_property
    def grid(self) -> VoxelGrid:
        """Grid of the reference after reorienting, resampling and cropping."""
        grid, options = self._field, self.options
        box = tuple(slice(0, length) for length in grid.shape)
        brain = self._brain(grid) if options.crop == "brain" else None
        if brain is not None:
            margin = np.ceil(options.margin_mm / np.array(transforms.spacing_of(grid.affine))).astype(int)
            box = self._with_label(transforms.crop_box(brain.load(), margin.tolist()))
        if options.size:
            box = transforms.fit_box(box, options.size)
        empty, affine = transforms.crop(np.broadcast_to(np.uint8(0), grid.shape), grid.affine, box)
        return VoxelGrid((empty.shape[0], empty.shape[1], empty.shape[2]), affine)

    def _with_label(self, box: tuple[slice, slice, slice]) -> tuple[slice, ...]:
        """The box of the brain, extended to the label where it is outside, along axes without a given size."""
        if not self.options.label:
            return box
        label = self._filled_label(self._field).load()
        if not label.any():
            return box
        sizes = self.options.size or (0, 0, 0)
        return tuple(
            part if size else slice(min(part.start, own.start), max(part.stop, own.stop))
            for part, own, size in zip(box, transforms.crop_box(label), sizes, strict=True)
        )

    @cached_property
    def _field(self) -> VoxelGrid:
        """Grid of the reference before cropping."""
        path = self._reference
        with self._named(path):
            facts = nifti.header(path)
            shape, affine = facts.shape, facts.affine
            if self.options.reorient:
                turned, affine = transforms.reorient(np.broadcast_to(np.uint8(0), shape), affine)
                shape = turned.shape
            if self.options.spacing_mm:
                shape, affine = transforms.regrid(shape, affine, self.options.spacing_mm)
        grid = VoxelGrid((shape[0], shape[1], shape[2]), affine)
        grid.check_fits("cohort.spacing_mm")
        return grid

    @property
    def _reference(self) -> Path:
        if self.options.reference != "label":
            return self.candidate.images[self.options.reference]
        if self.options.label:
            return self.candidate.masks[self.options.label]
        return self.candidate.images[self.sequences[0]]

    # Masks

    def _target(self) -> CachedImage:
        target = self._filled_label(self.grid)
        if self.label_kept.volume_mm3 and not target.load().any():
            path = self.candidate.masks[self.options.label]
            value = f"{self.label_kept.volume_mm3:.4g} mm³ in the file, nothing on the grid of {self.grid.text}"
            remedy = "Choose a finer cohort.spacing_mm, a lower cohort.occupied, or a larger cohort.size."
            self._fail("label-vanished", path, value, "a label that survives preparation", remedy)
        return target

    def _filled_label(self, grid: VoxelGrid) -> CachedImage:
        """The label on a grid."""
        return self._filled_mask(self.candidate.masks[self.options.label], grid)

    def _filled_mask(self, path: Path, grid: VoxelGrid) -> CachedImage:
        """A mask on a grid."""
        share = self.options.occupied

        def make() -> Array:
            return _filled(*self._mask(path), grid, share=share)

        return self._cached({"mask": self.digests.of(path), "occupied": share}, grid, make)

    @cached_property
    def label_kept(self) -> Kept:
        """What the grid of the subject keeps of the label."""
        path, share = self.candidate.masks[self.options.label], self.options.occupied

        def make() -> Array:
            return kept_of(*self._mask(path), self.grid, self._filled_label(self.grid).load()).as_array()

        recipe = {"kept": self.digests.of(path), "occupied": share, "version": code_digest(_KEPT_CODE)}
        return Kept.from_array(self._cached(recipe, self.grid, make).load())

    @cached_property
    def brain_kept(self) -> Kept | None:
        """What the grid of the subject keeps of its brain; ``None`` without a brain mask or a size."""
        brain = self._brain(self._field) if self.options.size else None
        return None if brain is None else kept_of(brain.load(), self._field.affine, self.grid)

    def _regions(self) -> CachedImage:
        path = self.candidate.masks["regions"]

        def make() -> Array:
            return _labelled(*self._read(path), self.grid)

        return self._cached({"regions": self.digests.of(path)}, self.grid, make)

    def _brain(self, grid: VoxelGrid) -> CachedImage | None:
        if not self._brain_key:
            return None
        return self._cached(
            {**self._brain_key, "occupied": 0.5},
            grid,
            lambda: _filled(*self._native_brain, grid, share=0.5),
        )

    @cached_property
    def _brain_key(self) -> dict[str, JSON]:
        """What determines the brain mask before resampling; empty if there is none."""
        if self.options.brain == "none":
            return {}
        if "brain" in self.candidate.masks:
            return {"mask": self.digests.of(self.candidate.masks["brain"])}
        if self.options.brain == "compute":
            return {"brain_of": self.digests.of(self._brain_source)}
        return {}

    @cached_property
    def _native_brain(self) -> tuple[Array, Array]:
        """The brain mask on its own grid, and its affine."""
        if "brain" in self.candidate.masks:
            return self._mask(self.candidate.masks["brain"])
        with self._named(self._brain_source):
            image, affine = self._read(self._brain_source)
            return transforms.brain_mask(image, affine), affine

    @property
    def _brain_source(self) -> Path:
        images = self.candidate.images
        if self.options.brain_from:
            return images[self.options.brain_from]
        # Independent of the requested sequences, so that a subset of them gives the same mask.
        return images[next((name for name in _BRAIN_SOURCES if name in images), min(images))]

    # Images

    def _image(self, name: str, brain: CachedImage | None) -> CachedImage:
        path, options = self.candidate.images[name], self.options
        uses_brain = brain is not None and (options.n4 or options.skull_strip or options.normalise != "none")
        recipe = {
            "image": self.digests.of(path),
            "interpolation": options.interpolation,
            "antialias": options.antialias,
            "n4": options.n4_shrink if options.n4 else 0,
            "skull_strip": options.skull_strip,
            "normalise": options.normalise,
            "brain": self._brain_key if uses_brain else {},
        }

        def make() -> Array:
            with self._named(path):
                inside = None if brain is None else brain.load()
                tissue = self._native_brain if options.n4 and brain is not None else None
                return _prepared(*self._read(path), self.grid, inside, tissue, options)

        return self._cached(recipe, self.grid, make)

    def _read(self, path: Path) -> tuple[Array, Array]:
        with self._named(path):
            return _read(path, reorient=self.options.reorient)

    def _mask(self, path: Path) -> tuple[Array, Array]:
        with self._named(path):
            return _read_mask(path, reorient=self.options.reorient)

    # The cache

    def _cached(self, recipe: Mapping[str, JSON], grid: VoxelGrid, make: Callable[[], Array]) -> CachedImage:
        """The array of this recipe, prepared if it is not in the cache."""
        reorient = self.options.reorient
        key = hash_of(canonical({**recipe, "grid": grid.key, "code": code_digest(_CODE), "reorient": reorient}))[:32]
        known = self.arrays.known(key)
        return known if known is not None else self.arrays.add(key, make())

    # Faults

    @contextlib.contextmanager
    def _named(self, path: Path) -> Iterator[None]:
        """Name the file and the subject that could not be prepared."""
        try:
            yield
        except HarnessError as error:
            self._fail("preparation", path, str(error), "an image that can be prepared", "Fix or exclude it.")

    def _fail(self, kind: str, path: Path, value: str, expected: str, remedy: str) -> None:
        file = str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)
        raise _Unprepared(Fault(kind, file, self.candidate.subject, value, expected, remedy))
