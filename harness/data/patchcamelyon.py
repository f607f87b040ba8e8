"""Read PatchCamelyon's HDF5 files as a cohort.

::

    pcam/
      camelyonpatch_level_2_split_train_x.h5     dataset x, (n, 96, 96, 3) uint8
      camelyonpatch_level_2_split_train_y.h5     dataset y, (n, 1, 1, 1), 0 or 1
      camelyonpatch_level_2_split_train_meta.csv one row per patch, with its slide (wsi); optional
      …_valid_x.h5, …_valid_y.h5, …, …_test_meta.csv

Patches are copied once, in blocks, into the cache of prepared arrays, from which trainings
read them through a memory map. A cohort never holds its patches in memory.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import annotated_types
import h5py
import numpy as np

from harness.core.errors import CohortError, OutOfRange, UnknownName
from harness.core.identity import canonical
from harness.core.registry import COHORTS
from harness.core.seeding import generator
from harness.core.types import Array, Cohort, Fault, Ineligible, Sample
from harness.data.cache import ArrayCache, CachedImage, Digests, hash_of
from harness.data.pictures import fault

__all__ = ["PARTS", "patchcamelyon"]

PARTS = ("train", "valid", "test")
"""Parts of the official split."""

_NAME = "rgb"
_BLOCK = 512  # patches that are in memory at once


@COHORTS.register("patchcamelyon", source="Veeling et al. 2018, arXiv:1806.03962 (PatchCamelyon, CC0)")
def patchcamelyon(
    root: Path,
    cache: Path,
    *,
    sequences: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    minimum: Annotated[int, annotated_types.Ge(1)] = 3,
    images: Annotated[int, annotated_types.Ge(0)] = 0,
    parts: tuple[str, ...] = PARTS,
) -> Cohort:
    """Patches of PatchCamelyon with the label, the slide and the part of the official split.

    Parameters
    ----------
    root : folder of the HDF5 files
    cache : folder of prepared arrays
    sequences : names of the images to read: ``rgb``, or empty
    exclude : slides to leave out
    minimum : minimum number of slides
    images : number of patches of each part, drawn at random; 0 for all
    parts : parts of the official split to read

    Returns
    -------
    Cohort
        One sample per patch, with the id ``<part>-<number>``, whose subject is the slide. The
        image ``rgb`` is (96, 96, 3) uint8. Covariates: ``tumour`` (0 or 1) and ``part``. If a
        part has no table of slides, each of its patches is its own subject, which a note says.

    Raises
    ------
    CohortError
        With all faults: files that are missing or cannot be read, patches that are no 8-bit
        RGB pictures, labels that are not 0 or 1, numbers of patches, labels and rows that
        differ.
    """
    root, cache = Path(root).absolute(), Path(cache).absolute()
    if any(name != _NAME for name in sequences):
        raise OutOfRange(f"PatchCamelyon has the one image {_NAME}, got {', '.join(sequences)}")
    for name in parts:
        if name not in PARTS:
            raise UnknownName("part of PatchCamelyon", name, PARTS)
    read = [_Part.of(root, name) for name in parts]
    if faults := [one for part in read for one in part.faults]:
        raise CohortError(faults)
    known = {slide for part in read for slide in part.slides}
    for name in exclude:
        if name not in known:
            raise UnknownName(f"slide of {root.name} (exclude)", name, known)
    samples: list[Sample] = []
    notes = []
    digests = Digests(cache / "digests", root)
    with ArrayCache(cache / "arrays") as arrays:
        for part in read:
            rows = np.array([row for row in range(len(part.labels)) if part.slides[row] not in exclude], np.int64)
            if images and images < len(rows):
                notes.append(f"{images} of {len(rows)} patches of {part.name} were drawn (cohort.images={images})")
                rows = np.sort(generator(0, "patchcamelyon", part.name).choice(rows, images, replace=False))
            samples += [
                Sample(
                    f"{part.name}-{row:06d}", part.slides[row], {_NAME: image}, {},
                    {"tumour": float(part.labels[row]), "part": part.name},
                )
                for row, image in zip(rows.tolist(), _images(part, rows, digests, arrays), strict=True)
            ]  # fmt: skip
            if not part.has_slides:
                notes.append(
                    f"slides of {part.name} are not known (no {part.table.name}): patches count as independent"
                )
    digests.keep()
    count = len({one.subject for one in samples})
    if count < minimum:
        raise CohortError([fault("too-few-subjects", "", "", f"{count} slides", f"at least {minimum}",
                                 "Read more parts or patches, or exclude fewer slides.")])  # fmt: skip
    left_out = tuple(Ineligible(name, "excluded by request") for name in sorted(set(exclude)))
    return Cohort(root.name, tuple(samples), left_out, notes=tuple(notes))


@dataclass(frozen=True)
class _Part:
    """Files, labels and slides of one part of the split.

    Parameters
    ----------
    name : name of the part
    pictures, table : file of the patches, and table of the slides
    labels : (n,) 0 or 1
    slides : slide of each patch, or its own id
    has_slides : whether slides are known
    faults : faults of the files
    """

    name: str
    pictures: Path
    table: Path
    labels: Array
    slides: Sequence[str]
    has_slides: bool
    faults: tuple[Fault, ...] = ()

    @classmethod
    def of(cls, root: Path, name: str) -> _Part:
        """Read labels and slides, and check the patches without reading them."""
        start = f"camelyonpatch_level_2_split_{name}"
        pictures, labels, table = (root / f"{start}_{end}" for end in ("x.h5", "y.h5", "meta.csv"))
        faults: list[Fault] = []
        shape, kind = _described(pictures, "x", faults)
        if shape and (len(shape) != 4 or shape[3] != 3 or kind != "uint8"):
            faults.append(fault("depth", pictures.name, "", f"{kind} of shape {shape}", "uint8 (n, height, width, 3)",
                                "Download the file again."))  # fmt: skip
        found = _labels(labels, faults)
        slides = _slides(table, faults)
        counts = {pictures.name: shape[0] if shape else 0, labels.name: len(found)}
        counts |= {table.name: len(slides)} if slides is not None else {}
        if not faults and len(set(counts.values())) > 1:
            listed = ", ".join(f"{file} {count}" for file, count in counts.items())
            faults.append(fault("count", pictures.name, "", listed, "as many patches as labels and rows",
                                "Download the files again."))  # fmt: skip
        names = slides if slides is not None else [f"{name}-{row:06d}" for row in range(len(found))]
        return cls(name, pictures, table, found, names, slides is not None, tuple(faults))


def _described(path: Path, dataset: str, faults: list[Fault]) -> tuple[tuple[int, ...], str]:
    """Shape and type of a dataset; empty with a fault if it cannot be read."""
    try:
        with h5py.File(path, "r") as file:
            found: Any = file[dataset]
            return tuple(int(side) for side in found.shape), str(found.dtype)
    except (OSError, KeyError) as error:
        what = "there is no such file" if not path.exists() else f"cannot be read: {error}"
        faults.append(fault("unreadable", path.name, "", what, f"an HDF5 file with the dataset {dataset}",
                            "Download and unpack it, or name the other parts (cohort.parts=)."))  # fmt: skip
        return (), ""


def _labels(path: Path, faults: list[Fault]) -> Array:
    shape, _ = _described(path, "y", faults)
    if not shape:
        return np.zeros(0)
    with h5py.File(path, "r") as file:
        found: Array = np.asarray(file["y"]).reshape(-1)
    odd = found[(found != 0) & (found != 1)]
    if odd.size:
        faults.append(fault("label", path.name, "", f"{odd.size} labels such as {odd[0]}", "0 or 1",
                            "Download the file again."))  # fmt: skip
    return found


def _slides(path: Path, faults: list[Fault]) -> list[str] | None:
    """Slide of each patch; ``None`` without a table."""
    if not path.exists():
        return None
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = list(csv.DictReader(file))
    if not lines or "wsi" not in lines[0]:
        faults.append(fault("no-column", path.name, "", "no column wsi, or no rows", "the slide of each patch",
                            "Download the file again, or remove it to do without slides."))  # fmt: skip
        return None
    return [line["wsi"].strip() for line in lines]


def _images(part: _Part, rows: Array, digests: Digests, arrays: ArrayCache) -> Iterator[CachedImage]:
    """Cached images of some patches; blocks with patches that are not cached are read from the file."""
    digest = digests.of(part.pictures)
    with h5py.File(part.pictures, "r") as file:
        data: Any = file["x"]
        for start in range(0, len(rows), _BLOCK):
            own = rows[start : start + _BLOCK]
            keys = [hash_of(canonical({"patchcamelyon": digest, "row": int(row)}))[:32] for row in own]
            known = [arrays.known(key) for key in keys]
            if all(known):
                yield from (one for one in known if one is not None)
                continue
            dense = own[-1] - own[0] + 1 == len(own)  # h5py reads a range faster than a list of rows
            block = np.asarray(data[own[0] : own[-1] + 1] if dense else data[own])
            for key, image, patch in zip(keys, known, block, strict=True):
                yield image or arrays.add(key, patch)
