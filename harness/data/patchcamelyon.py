"""Read the HDF5 files of PatchCamelyon as a cohort.

::

    pcam/
      camelyonpatch_level_2_split_<split>_x.h5      patches, ``x`` (N, 96, 96, 3) uint8
      camelyonpatch_level_2_split_<split>_y.h5      labels, ``y`` (N, 1, 1, 1), 0 or 1
      camelyonpatch_level_2_split_<split>_meta.csv  optional: slide (``wsi``) of each patch
      camelyonpatch_level_2_split_<split>_mask.h5   optional: tumour, ``mask`` (N, 96, 96, 1)

with the splits ``train``, ``valid`` and ``test``, as far as they are there. Names may begin
otherwise. Patches are copied to the cache block by block, so that no file is ever in memory
as a whole; a second reading opens no file of patches.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import annotated_types
import h5py
import numpy as np

from harness.core.errors import CohortError, OutOfRange, UnknownName
from harness.core.identity import canonical, code_digest
from harness.core.registry import COHORTS
from harness.core.seeding import generator
from harness.core.types import Array, Cohort, Fault, Ineligible, Sample
from harness.data.cache import RUNS_CODE, ArrayCache, CachedImage, Coding, Digests, hash_of
from harness.data.pictures import fault, refuse_links

__all__ = ["OFFICIAL", "patchcamelyon"]

OFFICIAL = ("train", "valid", "test")
"""Names of the official splits, which share no slide."""

_NAME = "rgb"
_BLOCK = 256  # patches that are in memory at a time
_INFLATION = 1032  # the most by which deflate shrinks
_NO_MASKS: Mapping[str, CachedImage] = {}
_TRUE, _FALSE = ("true", "1", "1.0"), ("false", "0", "0.0")


@COHORTS.register("patchcamelyon", source="Veeling et al. 2018, arXiv:1806.03962 (PatchCamelyon)")
def patchcamelyon(
    root: Path,
    cache: Path,
    *,
    sequences: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    minimum: Annotated[int, annotated_types.Ge(1)] = 3,
    patches: Annotated[int, annotated_types.Ge(0)] = 0,
    links: Path | None = None,
) -> Cohort:
    """Patches of PatchCamelyon with their labels, slides and official splits.

    Parameters
    ----------
    root : folder of the unpacked HDF5 files
    cache : folder of prepared arrays; 9 GB for all 327,680 patches
    sequences : names of the images to read: ``rgb``, or empty
    exclude : slides to leave out or, without a table of slides, patches
    minimum : minimum number of slides or, without a table of slides, of patches
    patches : number of patches of each split, drawn at random; 0 for all
    links : folder outside of the data set into which links may lead; empty for none. Links
        within the data set are always followed

    Returns
    -------
    Cohort
        One sample per patch, named by its split and its number in the file, from 0. The image
        ``rgb`` is (96, 96, 3) uint8, and the mask ``target``, if there is a file of masks,
        (96, 96) bool. The subject is the slide or, without a table of slides, the patch.
        Covariates: ``label`` (1 if tumour touches the central 32 × 32 pixels) and ``split``
        (``train``, ``valid`` or ``test``), which ``split=by_column`` uses. Notes say how many
        patches are equal.

    Raises
    ------
    CohortError
        With all faults: no such files, files that are still packed, several files for one
        split, links out of the data set, arrays of other names, shapes or types, or whose
        values are not in the file, labels other than 0 and 1, tables that do not match the
        labels, slides in several splits, too few slides.
    """
    root, cache = Path(root).absolute(), Path(cache).absolute()
    for name in sequences:
        if name != _NAME:
            raise OutOfRange(f"patches have the one image {_NAME}, got {name}")
    refuse_links(root, [path for path in sorted(root.glob("*")) if path.suffix in (".h5", ".csv")], links)
    parts = _parts(root)
    known = {subject for part in parts for subject in part.subjects}
    for name in exclude:
        if name not in known:
            raise UnknownName(f"subject of {root.name} (exclude)", name, known)
    chosen = {part.split: _chosen(part, frozenset(exclude), patches) for part in parts}
    subjects = {part.subjects[index] for part in parts for index in chosen[part.split]}
    if len(subjects) < minimum:
        raise CohortError([fault("too-few-subjects", "", "", f"{len(subjects)} subjects", f"at least {minimum}",
                                 "Use more files or patches, or exclude fewer subjects.")])  # fmt: skip
    digests = Digests(cache / "digests", root)
    samples: list[Sample] = []
    with ArrayCache(cache / "arrays") as arrays:
        for part in parts:
            samples += _samples(part, chosen[part.split], digests, arrays)
    digests.keep()
    left_out = tuple(Ineligible(name, "excluded by request") for name in sorted(set(exclude)))
    samples.sort(key=lambda one: one.id)
    return Cohort(root.name, tuple(samples), left_out, notes=tuple(_notes(parts, samples, patches)))


@dataclass(frozen=True)
class _Part:
    """The files of one split, verified.

    Parameters
    ----------
    split : name of the split
    images : file of the patches
    labels : (N,) uint8
    subjects : slide of each patch, or names of the patches
    masks : file of the masks, if there is one
    slides : whether subjects are slides
    """

    split: str
    images: Path
    labels: Array
    subjects: Sequence[str]
    masks: Path | None
    slides: bool


@dataclass
class _Found:
    """Faults that were found so far."""

    root: Path
    faults: list[Fault] = field(default_factory=list)

    def add(self, kind: str, path: Path, value: str, expected: str, remedy: str) -> None:
        """Add a fault of a file."""
        name = path.relative_to(self.root).as_posix() if path != self.root else ""
        self.faults.append(fault(kind, name, "", value, expected, remedy))


def _parts(root: Path) -> list[_Part]:
    """All splits of a folder, without their patches.

    Raises
    ------
    CohortError
        With all faults.
    """
    found = _Found(root)
    parts = [part for split in OFFICIAL if (part := _part(root, split, found)) is not None]
    if not parts and not found.faults:
        packed = sorted(root.glob("*_x.h5.gz")) if root.is_dir() else []
        value = f"only packed files, such as {packed[0].name}" if packed else "no file *_x.h5 of a split"
        remedy = "Unpack all of them (gunzip)." if packed else "Name the folder of the HDF5 files."
        found.add("no-files", root, value, "files such as camelyonpatch_level_2_split_train_x.h5", remedy)
    of_slide: dict[str, list[str]] = defaultdict(list)
    for part in parts:
        for subject in dict.fromkeys(part.subjects):
            of_slide[subject].append(part.split)
    for slide, splits in of_slide.items():
        if len(splits) > 1:
            found.faults.append(fault("leak", "", slide, f"slide {slide} is in {' and '.join(splits)}",
                                      "each slide in one split", "Correct the tables of the slides."))  # fmt: skip
    if found.faults:
        raise CohortError(found.faults)
    return parts


def _part(root: Path, split: str, found: _Found) -> _Part | None:
    """The files of one split; ``None`` if it has none, or a fault."""
    before = len(found.faults)
    images = _only(root, f"{split}_x.h5", found)
    if images is None:
        return None
    count = _check_array(images, "x", "(N, H, W, 3) of type uint8", found)
    label_file = _only(root, f"{split}_y.h5", found)
    if label_file is None:
        found.add("no-file", root, f"no file *{split}_y.h5", f"labels of the patches in {images.name}", "Add it.")
        return None
    labels = _labels(label_file, count, found)
    masks = _only(root, f"{split}_mask.h5", found)
    if masks is not None and count is not None and _check_array(masks, "mask", "(N, H, W, 1)", found) != count:
        found.add("count", masks, "another number of masks than of patches", f"{count[0]} masks of equal size",
                  "Use the files of one release.")  # fmt: skip
    table = _only(root, f"{split}_meta.csv", found)
    slides = None if table is None else _slides(table, labels, found)
    if len(found.faults) > before or labels is None:
        return None
    names = slides or [f"{split}_{number:06d}" for number in range(len(labels))]
    return _Part(split, images, labels, names, masks, slides is not None)


def _only(root: Path, ending: str, found: _Found) -> Path | None:
    """The file with an ending, ``None`` without one."""
    files = sorted(root.glob(f"*{ending}")) if root.is_dir() else []
    if len(files) > 1:
        found.add("several", files[0], f"{', '.join(one.name for one in files)} all end in {ending}", "one file",
                  "Move the others to another folder.")  # fmt: skip
    return files[0] if files else None


def _check_array(path: Path, key: str, expected: str, found: _Found) -> tuple[int, int, int] | None:
    """Number, height and width of the arrays in a file; ``None`` after a fault."""
    try:
        with h5py.File(path) as file:
            if not _is_array(file, key, expected, path, found):
                return None
            shape, dtype = file[key].shape, file[key].dtype
    except OSError as error:
        found.add("unreadable", path, str(error), "an HDF5 file", "Unpack or download it again.")
        return None
    channels = 3 if key == "x" else 1
    if len(shape) != 4 or shape[3] != channels or (key == "x" and dtype != np.uint8):
        found.add("shape", path, f"{key} {shape} of type {dtype}", f"{key} {expected}", "Use the published file.")
        return None
    return int(shape[0]), int(shape[1]), int(shape[2])


def _is_array(file: h5py.File, key: str, expected: str, path: Path, found: _Found) -> bool:
    """Whether a file has an array, with its values in this file; a fault is added if not.

    HDF5 can refer to other files of this machine, by links, external storage and virtual
    arrays, and a small file can describe an array that fills the memory.
    """
    names = file.id.links
    if not names.exists(key.encode()):
        found.add("no-array", path, f"no array {key}, only {', '.join(file) or 'nothing'}", f"{key} {expected}",
                  "Use the published file.")  # fmt: skip
        return False
    value = ""
    if names.get_info(key.encode()).type != h5py.h5l.TYPE_HARD:
        value = f"{key} is a link"
    elif not isinstance(array := file[key], h5py.Dataset):
        value = f"{key} is a group"
    elif array.external or array.is_virtual:
        value = f"the values of {key} are in other files"
    elif array.dtype.hasobject:
        value = f"{key} {array.shape} of type {array.dtype}"
    elif array.nbytes > _INFLATION * path.stat().st_size:
        value = f"{key} {array.shape} is described with {array.nbytes:,} bytes, which a file of this size cannot hold"
    if value:
        found.add("no-array", path, value, f"{key} {expected}, stored in this file", "Use the published file.")
    return not value


def _labels(path: Path, count: tuple[int, int, int] | None, found: _Found) -> Array | None:
    """Labels, (N,) uint8; ``None`` after a fault."""
    try:
        with h5py.File(path) as file:
            if not _is_array(file, "y", "one label a patch", path, found):
                return None
            labels = np.asarray(file["y"]).reshape(-1)
    except OSError as error:
        found.add("unreadable", path, str(error), "an HDF5 file", "Unpack or download it again.")
        return None
    if count is not None and len(labels) != count[0]:
        found.add("count", path, f"{len(labels)} labels", f"{count[0]}, one for each patch",
                  "Use the files of one release.")  # fmt: skip
        return None
    if wrong := sorted({str(one) for one in np.unique(labels)} - {"0", "1"}):
        found.add("label", path, f"labels {', '.join(wrong[:5])}", "0 or 1", "Use the published file.")
        return None
    return labels.astype(np.uint8)


def _slides(path: Path, labels: Array | None, found: _Found) -> list[str] | None:
    """Slide of each patch; ``None`` after a fault."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = list(csv.DictReader(file))
    if not lines or "wsi" not in lines[0]:
        found.add("no-column", path, "no column wsi, or no rows", "the slide of each patch", "Use the published file.")
        return None
    slides = [(line["wsi"] or "").strip() for line in lines]
    if absent := [number for number, name in enumerate(slides) if not name]:
        found.add("no-slide", path, f"{len(absent)} rows without a slide, the first is {absent[0]}",
                  "a slide in each row", "Use the published file.")  # fmt: skip
    if labels is None:
        return None
    if len(lines) != len(labels):
        found.add("count", path, f"{len(lines)} rows", f"{len(labels)}, one for each patch",
                  "Use the files of one release.")  # fmt: skip
        return None
    stated = [(line.get("center_tumor_patch") or "").strip().lower() for line in lines]
    wrong = [
        number
        for number, (text, label) in enumerate(zip(stated, labels.tolist(), strict=True))
        if text in (*_TRUE, *_FALSE) and (text in _TRUE) != bool(label)
    ]
    if wrong:
        found.add("label", path, f"center_tumor_patch differs from the labels in {len(wrong)} rows, the first is "
                  f"{wrong[0]}", "equal labels", "Use the files of one release.")  # fmt: skip
    return slides


def _chosen(part: _Part, excluded: frozenset[str], count: int) -> list[int]:
    """Numbers of the patches of a split that are read, in order."""
    left = [number for number, subject in enumerate(part.subjects) if subject not in excluded]
    if not 0 < count < len(left):
        return left
    drawn = generator(0, "patchcamelyon", part.split).permutation(len(left))[:count]
    return [left[index] for index in sorted(drawn.tolist())]


def _samples(part: _Part, chosen: Sequence[int], digests: Digests, arrays: ArrayCache) -> Iterator[Sample]:
    """Samples of a split; patches that are not in the cache are copied block by block."""
    images = _cached(part.images, "x", chosen, digests, arrays)
    masks = _cached(part.masks, "mask", chosen, digests, arrays) if part.masks is not None else None
    covariates: list[dict[str, float | str | None]] = [
        {"label": label, "split": part.split} for label in (0.0, 1.0)
    ]  # shared by all samples
    for place, number in enumerate(chosen):
        yield Sample(
            id=f"{part.split}_{number:06d}",
            subject=part.subjects[number],
            images={_NAME: images[place]},
            masks=_NO_MASKS if masks is None else {"target": masks[place]},
            covariates=covariates[int(part.labels[number])],
        )


def _cached(path: Path, key: str, chosen: Sequence[int], digests: Digests, arrays: ArrayCache) -> list[CachedImage]:
    """Cached arrays of a file, (H, W, 3) uint8 each, or (H, W) bool for masks."""
    digest, coding = digests.of(path), _coding(key)
    code = code_digest([f"{__name__}:_prepared", *(RUNS_CODE if coding == "runs" else ())])
    keys = [hash_of(canonical({"file": digest, "array": key, "number": one, "code": code}))[:32] for one in chosen]
    images = [arrays.known(one) for one in keys]
    missing = [place for place, image in enumerate(images) if image is None]
    if missing:
        with h5py.File(path) as file:
            for start in range(0, len(missing), _BLOCK):
                places = missing[start : start + _BLOCK]
                block = _read(file[key], [chosen[place] for place in places])
                for place, array in zip(places, block, strict=True):
                    images[place] = arrays.add(keys[place], _prepared(array, key), coding=coding)
    return [image for image in images if image is not None]


def _coding(key: str) -> Coding:
    return "runs" if key == "mask" else "dense"


def _read(array: h5py.Dataset, numbers: Sequence[int]) -> Array:
    """Some arrays of a file, in ascending order; neighbours are read at once, which is faster."""
    if numbers[-1] - numbers[0] < 4 * len(numbers):
        block = np.asarray(array[numbers[0] : numbers[-1] + 1])
        found: Array = block[np.asarray(numbers) - numbers[0]]
        return found
    return np.stack([np.asarray(array[number]) for number in numbers])


def _prepared(array: Array, key: str) -> Array:
    found: Array = array[..., 0] > 0 if key == "mask" else array
    return found


def _notes(parts: Sequence[_Part], samples: Sequence[Sample], patches: int) -> Iterator[str]:
    """What the user should know about the files."""
    if patches:
        yield f"up to {patches} patches of each split were drawn at random (cohort.patches={patches})"
    if without := [part.split for part in parts if not part.slides]:
        yield (
            f"there is no table of slides (*_meta.csv) of {', '.join(without)}: each patch counts as a subject, so "
            "that intervals ignore that patches of one slide are alike; use split=by_column, which keeps the official "
            "splits"
        )
    if absent := [split for split in OFFICIAL if split not in {part.split for part in parts}]:
        yield f"there are no files of the split {', '.join(absent)}"
    contents: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        image = sample.images[_NAME]
        assert isinstance(image, CachedImage)
        contents[image.sha256].append(sample)
    equal = [several for several in contents.values() if len(several) > 1]
    if equal:
        count = sum(len(several) for several in equal)
        across = sum(len({one.covariates["split"] for one in several}) > 1 for several in equal)
        opposed = sum(len({one.covariates["label"] for one in several}) > 1 for several in equal)
        yield (
            f"{count} patches are equal to another one; of {len(equal)} groups of equal patches, {across} are in "
            f"several splits and {opposed} have different labels"
        )
    labels = Counter((str(one.covariates["split"]), one.covariates["label"]) for one in samples)
    shares = ", ".join(
        f"{part.split} {labels[part.split, 1.0]} of {labels[part.split, 0.0] + labels[part.split, 1.0]}"
        for part in parts
    )
    yield f"patches with tumour in the centre: {shares}"
