"""Read a folder of pictures with a table as a cohort.

::

    my-patches/
      labels.csv              one row per picture: image, subject, and any covariates
      images/<image>          PNG or TIFF, all of one size
      masks/<image>           optional mask of the target; pixels above 0 belong to it
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import annotated_types
import numpy as np
from PIL import Image as Picture
from PIL import UnidentifiedImageError

from harness.core.errors import CohortError, OutOfRange, UnknownName
from harness.core.identity import canonical, code_digest
from harness.core.registry import COHORTS
from harness.core.types import Array, Cohort, Fault, Ineligible, Sample
from harness.data.cache import ArrayCache, CachedImage, Digests, hash_of
from harness.data.participants import read_rows
from harness.simulation.phantom import PhantomPicture
from harness.storage.files import replace_file

__all__ = ["pictures", "write_picture", "write_pictures"]

_TABLE, _IMAGES, _MASKS = "labels.csv", "images", "masks"
_NAME = "rgb"
_EMPTY = ("", "n/a", "na", "nan", "none", "null")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")


@COHORTS.register("pictures", source="an image folder with labels.csv")
def pictures(
    root: Path,
    cache: Path,
    *,
    sequences: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    minimum: Annotated[int, annotated_types.Ge(1)] = 3,
) -> Cohort:
    """RGB pictures of equal size from an image folder with a table.

    The pictures are verified and cached.

    Parameters
    ----------
    root : folder with ``labels.csv`` and ``images/``
    cache : folder of prepared arrays
    sequences : names of the images to read: ``rgb``, or empty
    exclude : subjects to leave out
    minimum : minimum number of subjects

    Returns
    -------
    Cohort
        One sample per row, sorted by id, which is the file name without its extension. The
        image ``rgb`` is (H, W, 3) uint8; the mask ``target``, if there is a file in
        ``masks/``, is (H, W) bool. Columns other than ``image`` and ``subject`` are
        covariates; without a column ``subject``, each picture is a subject.

    Raises
    ------
    CohortError
        With all faults: a missing table or column, rows without a file, files that cannot be
        read, pictures of different sizes, duplicate names.
    """
    root, cache = Path(root).absolute(), Path(cache).absolute()
    for name in sequences:
        if name != _NAME:
            raise OutOfRange(f"pictures have the one image {_NAME}, got {name}")
    rows = _rows(root, exclude)
    subjects = {row.subject for row in rows}
    if len(subjects) < minimum:
        raise CohortError([_fault("too-few-subjects", _TABLE, "", f"{len(subjects)} subjects", f"at least {minimum}",
                                  "Add pictures, or exclude fewer subjects.")])  # fmt: skip
    digests = Digests(cache / "digests", root)
    with ArrayCache(cache / "arrays") as arrays:
        images = _prepared(root, _IMAGES, rows, digests, arrays)
        with_mask = [row for row in rows if (root / _MASKS / row.image).is_file()]
        masks = _prepared(root, _MASKS, with_mask, digests, arrays, shape=images[0].shape[:2]) if with_mask else []
    mask_of = dict(zip([row.id for row in with_mask], masks, strict=True))
    samples = [
        Sample(
            id=row.id,
            subject=row.subject,
            images={_NAME: image},
            masks={"target": mask_of[row.id]} if row.id in mask_of else {},
            covariates=row.covariates,
        )
        for row, image in zip(rows, images, strict=True)
    ]
    left_out = tuple(Ineligible(name, "excluded by request") for name in sorted(set(exclude)))
    return Cohort(root.name, tuple(sorted(samples, key=lambda one: one.id)), left_out)


def write_pictures(root: Path, subjects: Iterator[Sequence[PhantomPicture]]) -> None:
    """Write generated pictures in the layout that :func:`pictures` reads; the table is written last."""
    lines: list[dict[str, object]] = []
    for made in subjects:
        for one in made:
            name = f"{one.id}.png"
            write_picture(root / _IMAGES / name, one.image)
            if one.mask is not None:
                write_picture(root / _MASKS / name, np.asarray(one.mask, np.uint8) * 255)
            lines.append({"image": name, "subject": one.subject, **one.covariates})
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    replace_file(root / _TABLE, text.getvalue())


@dataclass(frozen=True)
class _Row:
    """A row of the table."""

    id: str
    image: str
    subject: str
    covariates: Mapping[str, float | str | None]


def _rows(root: Path, exclude: Sequence[str]) -> list[_Row]:
    """Rows of the table, except those of excluded subjects."""
    path = root / _TABLE
    if not path.is_file():
        raise CohortError([_fault("no-table", _TABLE, "", "there is no such file", "a table with a column image",
                                  f"Write {_TABLE} into {root}.")])  # fmt: skip
    lines, problem = read_rows(path, ("image", "subject"))
    if problem:
        raise CohortError([_fault("no-table", _TABLE, "", problem, "a table in UTF-8", "Save it as CSV in UTF-8.")])
    if not lines or "image" not in lines[0]:
        raise CohortError([_fault("no-column", _TABLE, "", "no column image, or no rows", "one row per picture",
                                  "Put the names of the pictures in a column image.")])  # fmt: skip
    rows = [_row(line) for line in lines]
    known = {row.subject for row in rows}
    for name in exclude:
        if name not in known:
            raise UnknownName(f"subject of {root.name} (exclude)", name, known)
    rows = [row for row in rows if row.subject not in exclude]
    faults = [fault for row in rows if (fault := _fault_of(root, row))]
    counts = Counter(row.id for row in rows if row.id)
    faults += [
        _fault("twice", _TABLE, "", f"{name} occurs {count} times", "unique names", "Remove or rename the duplicates.")
        for name, count in counts.items()
        if count > 1
    ]
    if faults:
        raise CohortError(faults)
    return rows


def _row(line: Mapping[str, str | None]) -> _Row:
    image = (line["image"] or "").strip()
    name = Path(image).stem
    rest = {key: _value(text) for key, text in line.items() if key not in ("image", "subject") and key is not None}
    return _Row(name, image, (line.get("subject") or "").strip() or name, rest)


def _fault_of(root: Path, row: _Row) -> Fault | None:
    """Fault of the file name in a row, or ``None``."""
    if not row.image:
        return _fault("no-name", _TABLE, row.subject, "a row without a picture", "a file name in the column image",
                      "Complete the row, or remove it.")  # fmt: skip
    path = root / _IMAGES / row.image
    # Links are allowed, but names must not lead out of the folder.
    if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(root / _IMAGES)):
        return _fault("outside", _TABLE, row.subject, f"{row.image} lies outside the folder {_IMAGES}",
                      f"a file in {_IMAGES}", "Copy it there.")  # fmt: skip
    if not path.is_file():
        return _fault("no-file", f"{_IMAGES}/{row.image}", row.subject, "there is no such file",
                      "a picture for every row", "Add it, or remove the row.")  # fmt: skip
    return None


def _value(text: str | None) -> float | str | None:
    if text is None or text.strip().lower() in _EMPTY:
        return None
    try:
        number = float(text)
    except ValueError:
        return text.strip()
    return number if math.isfinite(number) else text.strip()


def _prepared(
    root: Path,
    folder: str,
    rows: Sequence[_Row],
    digests: Digests,
    arrays: ArrayCache,
    *,
    shape: tuple[int, ...] = (),
) -> list[CachedImage]:
    """Cached images of all rows; a file is decoded only if the cache has no image of its content.

    Parameters
    ----------
    shape : (H, W) of the pictures, of which these are the masks; empty for the pictures
    """
    code = code_digest([f"{__name__}:{name}" for name in ("_read", "_as_mask", "_MODES")])
    paths = [root / folder / row.image for row in rows]
    # By content, not by name: a folder that was moved needs no new training.
    keys = [hash_of(canonical({"picture": digests.of(path), "mask": bool(shape), "code": code}))[:32] for path in paths]
    known = [arrays.known(key) for key in keys]
    _check_files(root, folder, rows, known, shape)
    digests.keep()

    def prepare(key: str, path: Path) -> CachedImage:
        array = _read(path)
        return arrays.add(key, _as_mask(array) if shape else array)

    return [image or prepare(key, path) for image, key, path in zip(known, keys, paths, strict=True)]


def _check_files(
    root: Path, folder: str, rows: Sequence[_Row], known: Sequence[CachedImage | None], shape: tuple[int, ...]
) -> None:
    """Raise all faults: files that cannot be read, that have not 8 bits per channel, or that differ in size.

    Only the headers of files that are not in the cache are read.
    """
    sizes: dict[str, tuple[int, int]] = {}
    faults = []
    for row, image in zip(rows, known, strict=True):
        file = f"{folder}/{row.image}"
        if image is not None:
            sizes[row.image] = (image.shape[1], image.shape[0])
            continue
        try:
            with Picture.open(root / file) as picture:
                sizes[row.image], mode = picture.size, picture.mode
        except (OSError, UnidentifiedImageError) as error:
            faults.append(_fault("unreadable", file, row.subject, str(error), "a PNG or TIFF",
                                 "Replace the file, or remove its row."))  # fmt: skip
            continue
        if not shape and mode not in _MODES:
            faults.append(_fault("depth", file, row.subject, f"pixels of type {mode}", "8 bits per channel",
                                 "Convert it; values are not rescaled here."))  # fmt: skip
    if not sizes:
        raise CohortError(faults)
    usual = (shape[1], shape[0]) if shape else Counter(sizes.values()).most_common(1)[0][0]
    expected = f"{usual[0]} x {usual[1]} as {'its picture' if shape else 'most'}"
    for row in rows:
        size = sizes.get(row.image, usual)
        if size != usual:
            faults.append(_fault("size", f"{folder}/{row.image}", row.subject, f"{size[0]} x {size[1]} pixels",
                                 expected, "Crop or resample it, or remove its row."))  # fmt: skip
    if faults:
        raise CohortError(faults)


def _read(path: Path) -> Array:
    """Pixels (H, W, 3) uint8; the channels of a grey picture are equal."""
    with Picture.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _as_mask(array: Array) -> Array:
    found: Array = array.max(axis=2) > 0
    return found


def write_picture(path: Path, array: Array) -> None:
    """Write a picture, (H, W) or (H, W, 3) with values 0 to 255, as PNG; missing folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(np.asarray(array, np.uint8)).save(path)


def _fault(kind: str, file: str, subject: str, value: str, expected: str, remedy: str) -> Fault:
    return Fault(kind, file, subject, value, expected, remedy)
