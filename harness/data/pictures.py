"""A folder of pictures with a table → a cohort of samples that have pixels.

::

    my-patches/
      labels.csv              one row a picture: image, subject, and whatever else is known
      images/<image>          PNG or TIFF, all of one size
      masks/<image>           optional, where the evidence lies; pixels above 0 count
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import annotated_types
import numpy as np
from PIL import Image as Picture
from PIL import UnidentifiedImageError

from harness.core.errors import CohortError, OutOfRange
from harness.core.identity import canonical, module_digest
from harness.core.registry import COHORTS
from harness.core.types import Array, Cohort, Fault, Ineligible, Sample
from harness.data.cache import CachedImage, hash_of, known_packed, write_packed
from harness.simulation.phantom import PhantomPicture
from harness.storage.files import replace_file

__all__ = ["pictures", "write_picture", "write_pictures"]

_TABLE, _IMAGES, _MASKS = "labels.csv", "images", "masks"
_NAME = "rgb"
_EMPTY = ("", "n/a", "NA", "nan")


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

    The pictures are verified and packed into one memory-mapped array.

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
        One sample a row, sorted by id, which is the file's name without ending; its
        image ``rgb`` is (H, W, 3) uint8, its mask ``target``, where there is a file in
        ``masks/``, (H, W) bool. Columns other than ``image`` and ``subject`` are
        covariates; without a column ``subject`` each picture is a subject.

    Raises
    ------
    CohortError
        With all faults: a missing table or column, rows without a file, files that
        cannot be read, pictures of another size, names that occur twice.
    """
    root, cache = Path(root).absolute(), Path(cache).absolute()
    for name in sequences:
        if name != _NAME:
            raise OutOfRange(f"pictures have the one image {_NAME}, got {name}")
    rows = [row for row in _rows(root) if row.subject not in exclude]
    subjects = {row.subject for row in rows}
    if len(subjects) < minimum:
        raise CohortError([_fault("too-few-subjects", _TABLE, "", f"{len(subjects)} subjects", f"at least {minimum}",
                                  "Add pictures, or exclude fewer subjects.")])  # fmt: skip
    images = _packed(root, [root / _IMAGES / row.image for row in rows], cache, mask=False)
    with_mask = [row for row in rows if (root / _MASKS / row.image).is_file()]
    masks = _packed(root, [root / _MASKS / row.image for row in with_mask], cache, mask=True) if with_mask else []
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
    left_out = tuple(Ineligible(name, "excluded") for name in exclude)
    return Cohort(root.name, tuple(sorted(samples, key=lambda one: one.id)), left_out)


def write_pictures(root: Path, subjects: Iterator[Sequence[PhantomPicture]]) -> None:
    """Write generated pictures as :func:`pictures` reads them; the table last."""
    lines: list[dict[str, object]] = []
    for made in subjects:
        for one in made:
            name = f"{one.id}.png"
            write_picture(root / _IMAGES / name, one.image)
            if one.mask is not None:
                write_picture(root / _MASKS / name, np.asarray(one.mask, np.uint8) * 255)
            lines.append({"image": name, "subject": one.subject, **one.covariates})
    columns = list(dict.fromkeys(key for line in lines for key in line))
    path = root / _TABLE
    text = [",".join(columns)]
    text += [",".join(str(line.get(key, "")) for key in columns) for line in lines]
    replace_file(path, "\n".join(text) + "\n")


@dataclass(frozen=True)
class _Row:
    """A row of the table."""

    id: str
    image: str
    subject: str
    covariates: Mapping[str, float | str | None]


def _rows(root: Path) -> list[_Row]:
    path = root / _TABLE
    if not path.is_file():
        raise CohortError([_fault("no-table", _TABLE, "", "there is no such file", "a table with a column image",
                                  f"Write {_TABLE} into {root}.")])  # fmt: skip
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = list(csv.DictReader(file))
    if not lines or "image" not in lines[0]:
        raise CohortError([_fault("no-column", _TABLE, "", "no column image, or no rows", "one row a picture",
                                  "Name the pictures in a column image.")])  # fmt: skip
    rows, faults, seen = [], [], set[str]()
    for line in lines:
        image = (line["image"] or "").strip()
        name = Path(image).stem
        if name in seen:
            faults.append(_fault("twice", _TABLE, name, f"{name} is named twice", "names that differ", "Rename one."))
        if not (root / _IMAGES / image).is_file():
            faults.append(_fault("no-file", f"{_IMAGES}/{image}", name, "there is no such file",
                                 "a picture for every row", "Add it, or take the row out."))  # fmt: skip
        seen.add(name)
        rest = {key: _value(text) for key, text in line.items() if key not in ("image", "subject") and key is not None}
        rows.append(_Row(name, image, (line.get("subject") or name).strip(), rest))
    if faults:
        raise CohortError(faults)
    return rows


def _value(text: str | None) -> float | str | None:
    if text is None or text.strip() in _EMPTY:
        return None
    try:
        return float(text)
    except ValueError:
        return text.strip()


def _packed(root: Path, paths: Sequence[Path], cache: Path, *, mask: bool) -> list[CachedImage]:
    """All pictures in one array; read again only if a file changed."""
    facts = [path.stat() for path in paths]
    signature = [[str(path), one.st_size, one.st_mtime_ns, one.st_ino] for path, one in zip(paths, facts, strict=True)]
    key = hash_of(canonical({"pictures": signature, "mask": mask, "version": module_digest(__name__)}))[:32]
    known = known_packed(cache / "arrays", key)
    if known is not None:
        return known
    _check_sizes(root, paths)

    def read() -> Iterator[tuple[str, Array]]:
        for path in paths:
            array = _read(path)
            yield hashlib.sha256(path.read_bytes()).hexdigest()[:32], _as_mask(array) if mask else array

    return write_packed(cache / "arrays", key, read(), len(paths))


def _check_sizes(root: Path, paths: Sequence[Path]) -> None:
    """Refuse what cannot be read, or has another size than most; headers alone are read."""
    sizes: dict[Path, tuple[int, int]] = {}
    faults = []
    for path in paths:
        try:
            with Picture.open(path) as image:
                sizes[path] = image.size
        except (OSError, UnidentifiedImageError) as error:
            faults.append(_fault("unreadable", str(path.relative_to(root)), path.stem, str(error), "a PNG or TIFF",
                                 "Replace the file, or take its row out."))  # fmt: skip
    counts = {size: list(sizes.values()).count(size) for size in set(sizes.values())}
    usual = max(counts, key=lambda size: counts[size], default=(0, 0))
    faults += [
        _fault("size", str(path.relative_to(root)), path.stem, f"{size[0]} x {size[1]} pixels",
               f"{usual[0]} x {usual[1]} as most", "Crop or resample it, or take its row out.")
        for path, size in sizes.items()
        if size != usual
    ]  # fmt: skip
    if faults:
        raise CohortError(faults)


def _read(path: Path) -> Array:
    """(H, W, 3) uint8; grey pictures have three equal channels."""
    with Picture.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _as_mask(array: Array) -> Array:
    found: Array = array.max(axis=2) > 0
    return found


def write_picture(path: Path, array: Array) -> None:
    """Write a picture, (H, W) or (H, W, 3) from 0 to 255, as PNG; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(np.asarray(array, np.uint8)).save(path)


def _fault(kind: str, file: str, subject: str, value: str, expected: str, remedy: str) -> Fault:
    return Fault(kind, file, subject, value, expected, remedy)
