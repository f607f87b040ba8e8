"""A folder of images → a verified cohort of prepared, memory-mapped arrays.

Every prepared array is one file in the cache, named by a hash of all that
produced it: the bytes of the original, the grid, the options of its
preparation, the version of the maths. So nothing is ever overwritten, a subset
of the sequences finds its arrays ready, and all processes on a machine map the
same file.

::

    cache/arrays/<key>.npy     the array
    cache/arrays/<key>.json    its shape, dtype and checksum
    cache/digests/<path>.json  hash of an original's bytes, while its inode is untouched
    cache/verified/<key>.json  what was verified without a fault
"""

from __future__ import annotations

import contextlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

import annotated_types
import cc3d
import numpy as np
import pyarrow as pa

from harness.core.errors import CohortError, HarnessError, OutOfRange, StoreError, UnknownName
from harness.core.identity import canonical, code_digest, module_digest
from harness.core.registry import COHORTS
from harness.core.targets import Target
from harness.core.types import JSON, Array, Candidate, Cohort, Fault, Image, Ineligible, Sample, Truth
from harness.data import nifti, transforms
from harness.data.bids import BidsIndex, index
from harness.data.cache import (
    AGAIN,
    CachedImage,
    Digests,
    hash_of,
    known_entry,
    read_json,
    write_entry,
)
from harness.data.transforms import Interpolation, Normalisation
from harness.data.verify import brain_faults, verify
from harness.storage.files import replace_file

__all__ = ["Brain", "CachedImage", "Crop", "bids", "describe", "open_cohort", "save"]

Number = TypeVar("Number", int, float)
Brain = Literal["if_present", "compute", "none"]
Crop = Literal["none", "brain"]

_FORMAT = 3  # of the Arrow table
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
        ``target``; empty for new subjects without labels
    sequences : suffixes of required images; empty for those that all subjects have
    reference : image that defines the grid: ``label``, or a sequence, to which the label is
        then resampled by occupancy. Without a label, ``label`` means the first sequence
    session : sessions of subjects with several: ``only`` allows one session per subject,
        ``all``, ``first``, or the name of a session
    reorient : reorient images to RAS+
    spacing_mm : voxel size, three numbers; empty for that of the reference
    crop : ``brain`` crops to the bounding box of the brain mask
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
    exclude : subjects to leave out
    minimum : minimum number of subjects

    Returns
    -------
    Cohort
        Samples sorted by id; images are the requested sequences in their order;
        masks are ``target``, and ``brain`` and ``regions`` where there are any.

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
        occupied, n4, n4_shrink, brain, brain_from, skull_strip, normalise,
    )  # fmt: skip
    needed = _needed(options, tuple(sequences))
    found = index(root, sequences=needed, label=label or None, session=session, exclude=tuple(exclude))
    wanted = tuple(sequences) or _common_sequences(found)
    digests = Digests(cache / "digests")
    _verified(found, needed=tuple(dict.fromkeys((*wanted, *needed))), options=options, minimum=minimum,
              digests=digests, folder=cache / "verified")  # fmt: skip
    digests.keep()
    samples, faults = [], []
    for candidate in sorted(found.candidates, key=lambda one: one.id):
        try:
            samples.append(_Subject(candidate, options, wanted, digests, cache / "arrays", root).sample())
        except _Unprepared as problem:
            faults.append(problem.fault)
    if faults:
        raise CohortError(faults)
    return Cohort(found.name, tuple(samples), found.ineligible, dict(found.regions), found.label_source)


# --- the table that workers open ---------------------------------------------


_ENTRY = pa.struct(
    [
        ("name", pa.string()),
        ("path", pa.string()),
        ("fingerprint", pa.string()),
        ("shape", pa.list_(pa.int64())),
        ("dtype", pa.string()),
        ("sha256", pa.string()),
        ("coding", pa.string()),
        ("index", pa.int64()),
    ]
)
_COLUMNS = [
    ("id", pa.string()),
    ("subject", pa.string()),
    ("covariates", pa.string()),
    ("affine", pa.list_(pa.float64())),
    ("spacing_mm", pa.list_(pa.float64())),
    ("images", pa.list_(_ENTRY)),
    ("masks", pa.list_(_ENTRY)),
    ("targets", pa.string()),
    ("clean", pa.string()),
    ("weights", pa.string()),
]


def save(cohort: Cohort, path: Path) -> Path:
    """Write a cohort as an Arrow table (IPC file) of one row per sample.

    The images stay in the cache; the table names them by absolute path and
    fingerprint. The same cohort gives the same bytes.

    Raises
    ------
    StoreError
        If an image is not in a cache.
    """
    rows = [
        {
            "id": sample.id,
            "subject": sample.subject,
            "covariates": json.dumps(dict(sample.covariates), sort_keys=True),
            "affine": None if sample.affine is None else np.asarray(sample.affine, float).ravel().tolist(),
            "spacing_mm": None if sample.spacing_mm is None else [float(size) for size in sample.spacing_mm],
            "images": [_row(name, image) for name, image in sample.images.items()],
            "masks": [_row(name, image) for name, image in sample.masks.items()],
            "targets": json.dumps(dict(sample.targets)),  # their order is that of the outputs
            "clean": json.dumps(dict(sample.clean)),
            "weights": json.dumps(dict(sample.weights)),
        }
        for sample in cohort.samples
    ]
    facts = {
        "format": _FORMAT,
        "name": cohort.name,
        "ineligible": [asdict(one) for one in cohort.ineligible],
        "regions": {str(value): name for value, name in cohort.regions.items()},
        "label_source": cohort.label_source,
        "truth": None if cohort.truth is None else _truth_row(cohort.truth),
        "targets": [asdict(target) for target in cohort.targets],
    }
    schema = pa.schema(_COLUMNS, metadata={"harness.cohort": json.dumps(facts, sort_keys=True)})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    replace_file(Path(path), sink.getvalue())
    return Path(path)


def open_cohort(path: Path, *, check_content: bool = False) -> Cohort:
    """Open a table written by :func:`save`; no original is touched.

    Parameters
    ----------
    path : the table
    check_content : also compare every array with its checksum (reads everything)

    Raises
    ------
    StoreError
        If the table or a prepared image is missing, corrupted or of another
        version; all bad images are named.
    """
    table, facts = _read_table(Path(path))
    rows = table.to_pylist()
    samples = tuple(
        Sample(
            id=row["id"],
            subject=row["subject"],
            images={entry["name"]: _entry_image(entry) for entry in row["images"]},
            masks={entry["name"]: _entry_image(entry) for entry in row["masks"]},
            covariates=json.loads(row["covariates"]),
            affine=None if row["affine"] is None else np.array(row["affine"], float).reshape(4, 4),
            spacing_mm=None if row["spacing_mm"] is None else _three(row["spacing_mm"]),
            targets=json.loads(row["targets"]),
            clean=json.loads(row["clean"]),
            weights=json.loads(row["weights"]),
        )
        for row in rows
    )
    truth = None if facts["truth"] is None else _read_truth(facts["truth"])
    entries = [_entry_image(entry) for row in rows for entry in (*row["images"], *row["masks"])]
    # Of a file that holds many images the last one is enough.
    once = {image.path: image for image in sorted(entries, key=lambda image: image.index)}
    problems = _problems(once.values(), check_content=check_content)
    if problems:
        raise StoreError("\n".join([f"{path}: {len(problems)} of its images cannot be used:", *problems]))
    return Cohort(
        name=facts["name"],
        samples=samples,
        ineligible=tuple(Ineligible(**one) for one in facts["ineligible"]),
        regions={int(value): name for value, name in facts["regions"].items()},
        label_source=facts["label_source"],
        truth=truth,
        targets=tuple(Target(**{**one, "classes": tuple(one["classes"])}) for one in facts["targets"]),
    )


def _truth_row(truth: Truth) -> dict[str, JSON]:
    return {
        "rois": [_row(name, image) for name, image in truth.rois.items()],
        "weights": {score: dict(weights) for score, weights in truth.weights.items()},
        "counts": _row("counts", truth.counts),
        "table": [dict(line) for line in truth.table],
        "linear": truth.linear,
    }


def _read_truth(row: Mapping[str, JSON]) -> Truth:
    rois = {entry["name"]: _entry_image(entry) for entry in row["rois"]}
    return Truth(rois, row["weights"], _entry_image(row["counts"]), tuple(row["table"]), row.get("linear", True))


def _problems(images: Iterable[CachedImage], *, check_content: bool) -> list[str]:
    problems = []
    for image in images:
        try:
            if check_content:
                image.check()
            else:
                image.touch()
        except StoreError as error:
            problems.append(str(error))
    return problems


def _read_table(path: Path) -> tuple[pa.Table, dict[str, JSON]]:
    try:
        with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
            table = reader.read_all()
        facts = json.loads((table.schema.metadata or {})[b"harness.cohort"])
    except FileNotFoundError:
        raise StoreError(f"the cohort's table is missing: {path}. {AGAIN}") from None
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise StoreError(f"{path} is no cohort that can be read ({error!r}). Delete it. {AGAIN}") from error
    if facts.get("format") != _FORMAT:
        raise StoreError(f"{path} has the format {facts.get('format')}, this version reads {_FORMAT}. {AGAIN}")
    return table, facts


def _row(name: str, image: Image) -> dict[str, JSON]:
    if not isinstance(image, CachedImage):
        raise StoreError(
            f"a saved cohort holds images of a cache only, got {type(image).__name__} for {name}; "
            "a reader of another format gives CachedImage, too"
        )
    return {**asdict(image), "name": name, "path": str(image.path.absolute()), "shape": list(image.shape)}


def _entry_image(entry: Mapping[str, JSON]) -> CachedImage:
    return CachedImage(
        Path(entry["path"]),
        entry["fingerprint"],
        tuple(entry["shape"]),
        entry["dtype"],
        entry["sha256"],
        entry["coding"],
        entry["index"],
    )


# --- what is in it -----------------------------------------------------------


def describe(cohort: Cohort) -> dict[str, JSON]:
    """Facts about a cohort, for the screen and the report; JSON.

    Lesions are 26-connected components of the mask ``target`` on the prepared grid.

    Returns
    -------
    dict
        ``name``, ``subjects``, ``samples``, ``sequences`` and ``masks`` (name →
        samples that have it), ``shapes`` and ``spacing_mm`` (text → samples), ``lesions``
        (per sample: count and volume in mm³ with total, mean, lowest, highest;
        ``mean_voxels``; ``without``: samples without one; ``None`` if there is no target),
        ``age`` and ``sex`` where participants.tsv has them, ``regions``,
        ``label_source``, ``ineligible``.
    """
    samples = cohort.samples
    facts: dict[str, JSON] = {
        "name": cohort.name,
        "subjects": len(cohort.subjects),
        "samples": len(samples),
        "sequences": dict(Counter(name for one in samples for name in one.images)),
        "masks": dict(Counter(name for one in samples for name in one.masks)),
        "shapes": dict(Counter("×".join(map(str, one.shape)) for one in samples)),
        "spacing_mm": dict(
            Counter("×".join(f"{size:.4g}" for size in one.spacing_mm) for one in samples if one.spacing_mm)
        ),
        "lesions": _lesions(samples),
        "age": _ages([one.covariates["age"] for one in samples if "age" in one.covariates]),
        "sex": dict(Counter(str(one.covariates["sex"] or "n/a") for one in samples if "sex" in one.covariates)),
        "regions": {str(value): name for value, name in cohort.regions.items()},
        "label_source": cohort.label_source,
        "ineligible": [asdict(one) for one in cohort.ineligible],
    }
    return facts


def _lesions(samples: Iterable[Sample]) -> JSON:
    counts, volumes, voxels, without = [], [], 0, []
    for sample in samples:
        if "target" not in sample.masks:
            continue
        mask = sample.masks["target"].load()
        _, count = cc3d.connected_components(mask.astype(np.uint8), connectivity=26, return_N=True)
        filled = int(np.count_nonzero(mask))
        counts.append(float(count))
        volumes.append(filled * float(abs(np.linalg.det(sample.grid.affine[:3, :3]))))
        voxels += filled
        without += [] if filled else [sample.id]
    if not counts:
        return None
    mean_voxels = round(voxels / sum(counts), 2) if sum(counts) else None
    return {"count": _spread(counts), "volume_mm3": _spread(volumes), "mean_voxels": mean_voxels, "without": without}


def _spread(values: Sequence[float]) -> dict[str, float]:
    summary = {"total": sum(values), "mean": sum(values) / len(values), "lowest": min(values), "highest": max(values)}
    return {name: round(value, 3) for name, value in summary.items()}


def _ages(values: Sequence[float | str | None]) -> JSON:
    """Numbers are summarised; text such as ``89+`` is listed, unknown ages are counted."""
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    words = sorted({value for value in values if isinstance(value, str)})
    if not values:
        return None
    summary = {name: value for name, value in _spread(numbers).items() if name != "total"} if numbers else {}
    return {**summary, "n": len(numbers), "unknown": sum(value is None for value in values), "not_numbers": words}


# --- before anything is prepared ---------------------------------------------


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

    @property
    def masks(self) -> tuple[str, ...]:
        """Masks that are used where a subject has them."""
        return ("regions",) if self.brain == "none" else ("brain", "regions")

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
        if not 0 < self.occupied <= 1:
            raise OutOfRange(f"0 < occupied <= 1 must hold, got {self.occupied}")
        if self.brain == "none" and (self.skull_strip or self.crop == "brain"):
            asking = "skull_strip=true" if self.skull_strip else "crop=brain"
            raise OutOfRange(f"{asking} needs a brain mask, got brain=none; use brain=if_present or brain=compute")


def _needed(options: _Options, sequences: tuple[str, ...]) -> tuple[str, ...]:
    """Sequences that a subject must have: those asked for, and those that others depend on."""
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


def _verified(
    found: BidsIndex,
    *,
    needed: tuple[str, ...],
    options: _Options,
    minimum: int,
    digests: Digests,
    folder: Path,
) -> None:
    """Raise all faults; remember a faultless cohort, so that a subset of its sequences is not read again."""
    brain_faults = _brain_faults(found, options)
    rest, images = _what_is_verified(found, needed, options, minimum, digests)
    known = [] if rest is None else [set(map(tuple, read_json(path) or ())) for path in folder.glob(f"{rest}-*.json")]
    clean = any(images <= one for one in known)
    label, optional = options.label or None, options.masks
    checked = [] if clean else verify(found, sequences=needed, label=label, optional=optional, minimum=minimum)
    faults = list(dict.fromkeys((*found.faults, *checked, *brain_faults)))
    if faults:
        raise CohortError(faults)
    if rest is not None and not clean:
        content = canonical(sorted(images))
        replace_file(folder / f"{rest}-{hash_of(content)[:20]}.json", content.encode())


def _what_is_verified(
    found: BidsIndex, needed: tuple[str, ...], options: _Options, minimum: int, digests: Digests
) -> tuple[str | None, set[tuple[str, ...]]]:
    """Hash of what must be equal, and the images, of which a subset is as good; ``None`` if a file is unreadable.

    A fault belongs to files that are there, so fewer images of the same
    subjects with the same masks cannot have more faults.
    """

    def entry(one: Candidate, name: str, path: Path) -> tuple[str, ...]:
        return one.id, name, path.name, digests.of(path)

    kept = [name for name in (options.label, *options.masks) if name]
    try:
        images = {entry(one, name, one.images[name]) for one in found.candidates for name in needed}
        masks = [entry(one, name, one.masks[name]) for one in found.candidates for name in kept if name in one.masks]
    except (OSError, KeyError):
        return None, set()
    rest = {
        "code": code_digest(["harness.data.verify"]),
        "subjects": [[one.id, one.subject, dict(one.covariates)] for one in found.candidates],
        "masks": masks,
        "regions": {str(value): name for value, name in found.regions.items()},
        "ranges": {column: list(limits) for column, limits in found.ranges.items()},
        "names": [options.label, *options.masks],
        "minimum": minimum,
    }
    return hash_of(repr(rest))[:20], images


def _brain_faults(found: BidsIndex, options: _Options) -> list[Fault]:
    """Brain masks of some subjects only, or of none where an option needs them."""
    if options.brain != "if_present":
        return []
    asking = "skull_strip=true" if options.skull_strip else "crop=brain" if options.crop == "brain" else ""
    return brain_faults(found, needed_for=asking)


# --- one subject -------------------------------------------------------------


class _Unprepared(Exception):
    """A fault that only preparation can find."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


@dataclass(frozen=True)
class _Grid:
    shape: tuple[int, int, int]
    affine: Array

    @property
    def key(self) -> JSON:
        # Rounded: the last bits of a product may differ between machines.
        return [list(self.shape), (np.round(self.affine, 6) + 0.0).tolist()]


@dataclass(frozen=True)
class _Subject:
    """Prepares one candidate; originals are read only where the cache has no entry."""

    candidate: Candidate
    options: _Options
    sequences: tuple[str, ...]
    digests: Digests
    arrays: Path
    root: Path

    def sample(self) -> Sample:
        """All images and masks of the subject, on its grid."""
        candidate = self.candidate
        masks: dict[str, Image] = {}
        if self.options.label:
            masks["target"] = self._target()
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
        )

    # The grid

    @cached_property
    def grid(self) -> _Grid:
        """The grid of the reference, with another spacing and field if asked for."""
        grid, options = self._field, self.options
        box = tuple(slice(0, length) for length in grid.shape)
        brain = self._brain(grid) if options.crop == "brain" else None
        if brain is not None:
            margin = np.ceil(options.margin_mm / np.array(transforms.spacing_of(grid.affine))).astype(int)
            box = transforms.crop_box(brain.load(), margin.tolist())
        if options.size:
            box = transforms.fit_box(box, options.size)
        empty, affine = transforms.crop(np.broadcast_to(np.uint8(0), grid.shape), grid.affine, box)
        return _Grid((empty.shape[0], empty.shape[1], empty.shape[2]), affine)

    @cached_property
    def _field(self) -> _Grid:
        """The grid of the reference before cropping."""
        path = self._reference
        with self._named(path):
            facts = nifti.header(path)
            shape, affine = facts.shape, facts.affine
            if self.options.reorient:
                turned, affine = transforms.reorient(np.broadcast_to(np.uint8(0), shape), affine)
                shape = turned.shape
            if self.options.spacing_mm:
                shape, affine = transforms.regrid(shape, affine, self.options.spacing_mm)
        return _Grid((shape[0], shape[1], shape[2]), affine)

    @property
    def _reference(self) -> Path:
        if self.options.reference != "label":
            return self.candidate.images[self.options.reference]
        if self.options.label:
            return self.candidate.masks[self.options.label]
        return self.candidate.images[self.sequences[0]]

    # Masks

    def _target(self) -> CachedImage:
        path = self.candidate.masks[self.options.label]

        def make() -> Array:
            mask, affine = self._read(path)
            filled = self._filled(mask > 0.5, affine, self.grid)
            before = int(np.count_nonzero(mask > 0.5))
            if before and not filled.any():
                value = f"{before} voxels in the file, none on the grid of {self._spoken(self.grid)}"
                remedy = "Choose a finer spacing_mm, a lower occupied=, or a larger field."
                self._fail("label-vanished", path, value, "a label that survives preparation", remedy)
            return filled

        return self._cached({"mask": self.digests.of(path), "occupied": self.options.occupied}, self.grid, make)

    def _regions(self) -> CachedImage:
        path = self.candidate.masks["regions"]

        def make() -> Array:
            labels, affine = self._read(path)
            return transforms.majority(np.rint(labels).astype(np.int32), affine, self.grid.shape, self.grid.affine)

        return self._cached({"regions": self.digests.of(path)}, self.grid, make)

    def _brain(self, grid: _Grid) -> CachedImage | None:
        if not self._brain_key:
            return None
        return self._cached(
            {**self._brain_key, "occupied": 0.5},
            grid,
            lambda: self._filled(*self._native_brain, grid, share=0.5),
        )

    @cached_property
    def _brain_key(self) -> dict[str, JSON]:
        """What determines the brain mask at its own resolution; empty if there is none."""
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
            mask, affine = self._read(self.candidate.masks["brain"])
            return mask > 0.5, affine
        with self._named(self._brain_source):
            image, affine = self._read(self._brain_source)
            return transforms.brain_mask(image, affine), affine

    @property
    def _brain_source(self) -> Path:
        images = self.candidate.images
        if self.options.brain_from:
            return images[self.options.brain_from]
        # Not the first of the requested sequences: a subset of them must give the same mask.
        return images[next((name for name in _BRAIN_SOURCES if name in images), min(images))]

    def _filled(self, mask: Array, affine: Array, grid: _Grid, *, share: float | None = None) -> Array:
        share = self.options.occupied if share is None else share
        # A voxel that is half filled in exact arithmetic belongs to the mask.
        return np.asarray(transforms.occupancy(mask, affine, grid.shape, grid.affine) >= share - 1e-5, dtype=bool)

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
                return self._prepared(path, brain)

        return self._cached(recipe, self.grid, make)

    def _prepared(self, path: Path, brain: CachedImage | None) -> Array:
        options, grid = self.options, self.grid
        image, affine = self._read(path)
        inside = None if brain is None else brain.load()
        if options.n4:
            tissue = None
            if brain is not None:
                tissue = self._filled(*self._native_brain, _Grid(_three(image.shape), affine), share=0.5)
            image = transforms.n4(image, affine, tissue, shrink=options.n4_shrink)
        if options.antialias:
            image = transforms.match_resolution(image, affine, grid.affine)
        image = transforms.resample(image, affine, grid.shape, grid.affine, order=options.interpolation)
        image = transforms.normalise(image, inside, how=options.normalise)
        if options.skull_strip and inside is not None:
            image[~inside] = 0
        return image

    def _read(self, path: Path) -> tuple[Array, Array]:
        with self._named(path):
            array, affine = nifti.read(path)
        return transforms.reorient(array, affine) if self.options.reorient else (array, affine)

    # The cache

    def _cached(self, recipe: Mapping[str, JSON], grid: _Grid, make: Callable[[], Array]) -> CachedImage:
        """The entry of this recipe; made if it is not there, or not whole."""
        versions = [module_digest(name) for name in ("harness.data.transforms", __name__)]
        reorient = self.options.reorient
        key = hash_of(canonical({**recipe, "grid": grid.key, "versions": versions, "reorient": reorient}))[:32]
        known = known_entry(self.arrays, key)
        return known if known is not None else write_entry(self.arrays, key, make())

    # Faults

    @contextlib.contextmanager
    def _named(self, path: Path) -> Iterator[None]:
        """Say which file of which subject could not be prepared."""
        try:
            yield
        except HarnessError as error:
            self._fail("preparation", path, str(error), "an image that can be prepared", "Mend or exclude it.")

    def _fail(self, kind: str, path: Path, value: str, expected: str, remedy: str) -> None:
        file = str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)
        raise _Unprepared(Fault(kind, file, self.candidate.subject, value, expected, remedy))

    @staticmethod
    def _spoken(grid: _Grid) -> str:
        sizes = "×".join(f"{size:.3g}" for size in transforms.spacing_of(grid.affine))
        return f"{'×'.join(map(str, grid.shape))} voxels of {sizes} mm"


def _three(values: Sequence[Number]) -> tuple[Number, Number, Number]:
    return values[0], values[1], values[2]
