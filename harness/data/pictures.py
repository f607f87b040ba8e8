"""Read a folder of pictures with a table as a cohort.

::

    my-patches/
      labels.csv              one row per picture: image, subject, and any covariates; common
                              other names of these two columns (file, slide, …) are understood
      images/<image>          PNG, JPEG or TIFF, all of one size
      masks/<image>           optional mask of the target; pixels above 0 belong to it
      masks-<name>/<image>    optional further masks: the pixels that determine the target T
                              in masks-truth_T/, those of a nuisance in masks-nuisance/
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
from harness.data.bids_files import link_out
from harness.data.cache import ArrayCache, CachedImage, Digests, hash_of
from harness.data.participants import read_rows
from harness.simulation.phantom import PhantomPicture
from harness.storage.files import replace_file

__all__ = [
    "PictureRow",
    "fault",
    "pictures",
    "prepare_pictures",
    "refuse_links",
    "write_picture",
    "write_pictures",
]

_TABLE, _IMAGES, _MASKS = "labels.csv", "images", "masks"
_NAME = "rgb"
_EMPTY = ("", "n/a", "na", "nan", "none", "null")
_IMAGE_COLUMNS = ("image", "file", "filename", "file_name", "path")
_SUBJECT_COLUMNS = ("subject", "subject_id", "patient", "patient_id", "slide", "slide_id", "wsi")
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")


@COHORTS.register("pictures", source="an image folder with labels.csv")
def pictures(
    root: Path,
    cache: Path,
    *,
    sequences: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    minimum: Annotated[int, annotated_types.Ge(1)] = 3,
    image_column: str = "",
    subject_column: str = "",
    links: Path | None = None,
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
    image_column : column with the names of the files; empty for ``image`` or, without it,
        ``file``, ``filename``, ``file_name`` or ``path``
    subject_column : column with the subject whose pictures stay together when the data are
        split, such as a patient or a slide; empty for ``subject`` or, without it,
        ``subject_id``, ``patient``, ``patient_id``, ``slide``, ``slide_id`` or ``wsi``
    links : folder outside of the data set into which links may lead; empty for none. Links
        within the data set are always followed

    Returns
    -------
    Cohort
        One sample per row, sorted by id, which is the file name without its extension. The
        image ``rgb`` is (H, W, 3) uint8; the mask ``target``, if there is a file in
        ``masks/``, and a mask for each folder ``masks-<name>/`` are (H, W) bool. Other
        columns are covariates. Without a column of subjects, each picture is a subject,
        which a note says.

    Raises
    ------
    CohortError
        With all faults: a missing table or column, several columns that may name the
        pictures or subjects, rows without a file, files that cannot be read, pictures of
        different sizes, duplicate names.
    """
    root, cache = Path(root).absolute(), Path(cache).absolute()
    for name in sequences:
        if name != _NAME:
            raise OutOfRange(f"pictures have the one image {_NAME}, got {name}")
    refuse_links(root, [root / _TABLE], links)
    table = _read_table(root, image_column, subject_column)
    folder = _IMAGES if (root / _IMAGES).is_dir() else ""
    rows = _rows(root, folder, table, exclude)
    refuse_links(root, [root / place / row.image for place in (folder, *_mask_folders(root).values()) for row in rows],
                  links)  # fmt: skip
    subjects = {row.subject for row in rows}
    if len(subjects) < minimum:
        raise CohortError([fault("too-few-subjects", _TABLE, "", f"{len(subjects)} subjects", f"at least {minimum}",
                                  "Add pictures, or exclude fewer subjects.")])  # fmt: skip
    digests = Digests(cache / "digests", root)
    with ArrayCache(cache / "arrays") as arrays:
        images = prepare_pictures(root, folder, rows, digests, arrays)
        masks: dict[str, dict[str, CachedImage]] = {row.id: {} for row in rows}
        for name, place in _mask_folders(root).items():
            own = [row for row in rows if (root / place / row.image).is_file()]
            made = prepare_pictures(root, place, own, digests, arrays, shape=images[0].shape[:2]) if own else []
            for row, mask in zip(own, made, strict=True):
                masks[row.id][name] = mask
    samples = [
        Sample(
            id=row.id,
            subject=row.subject,
            images={_NAME: image},
            masks=masks[row.id],
            covariates=row.covariates,
        )
        for row, image in zip(rows, images, strict=True)
    ]
    left_out = tuple(Ineligible(name, "excluded by request") for name in sorted(set(exclude)))
    return Cohort(root.name, tuple(sorted(samples, key=lambda one: one.id)), left_out, notes=_notes(table, rows))


def write_pictures(root: Path, subjects: Iterator[Sequence[PhantomPicture]]) -> None:
    """Write generated pictures in the layout that :func:`pictures` reads; the table is written last."""
    lines: list[dict[str, object]] = []
    for made in subjects:
        for one in made:
            name = f"{one.id}.png"
            write_picture(root / _IMAGES / name, one.image)
            if one.mask is not None:
                write_picture(root / _MASKS / name, np.asarray(one.mask, np.uint8) * 255)
            for kind, mask in one.masks.items():
                write_picture(root / f"{_MASKS}-{kind}" / name, np.asarray(mask, np.uint8) * 255)
            lines.append({"image": name, "subject": one.subject, **one.covariates})
    text = io.StringIO()
    table = csv.DictWriter(text, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    table.writeheader()
    table.writerows(lines)
    replace_file(root / _TABLE, text.getvalue())


@dataclass(frozen=True)
class PictureRow:
    """A picture of a cohort.

    Parameters
    ----------
    id : id of the sample
    image : file, relative to the folder of the pictures
    subject : subject of the picture
    covariates : covariates by name
    """

    id: str
    image: str
    subject: str
    covariates: Mapping[str, float | str | None]


def _mask_folders(root: Path) -> dict[str, str]:
    """Name of each mask and its folder."""
    more = sorted(path.name for path in root.glob(f"{_MASKS}-*") if path.is_dir())
    found = {"target": _MASKS} if (root / _MASKS).is_dir() else {}
    return found | {name.removeprefix(f"{_MASKS}-"): name for name in more}


@dataclass(frozen=True)
class _Table:
    """Lines of the table, and the columns that name the picture and the subject; ``subject`` may be empty."""

    lines: Sequence[Mapping[str, str | None]]
    image: str
    subject: str


def _read_table(root: Path, image_column: str, subject_column: str) -> _Table:
    path = root / _TABLE
    if not path.is_file():
        raise CohortError([fault("no-table", _TABLE, "", "there is no such file", "a table with a column image",
                                  _without_table(root))])  # fmt: skip
    own = [name for name in (image_column, subject_column) if name]
    lines, problem = read_rows(path, (*own, *_IMAGE_COLUMNS, *_SUBJECT_COLUMNS))
    if problem:
        raise CohortError([fault("no-table", _TABLE, "", problem, "a table in UTF-8", "Save it as CSV in UTF-8.")])
    if not lines:
        raise CohortError([fault("no-row", _TABLE, "", "the table has no rows", "one row per picture",
                                  "Add a row for each picture.")])  # fmt: skip
    header = list(lines[0])
    image, faults = _column(header, image_column, _IMAGE_COLUMNS, "pictures", "image_column")
    subject, more = _column(header, subject_column, _SUBJECT_COLUMNS, "subjects", "subject_column")
    if not image and not faults:
        faults = [fault("no-column", _TABLE, "", f"no column names the pictures, only {', '.join(header)}",
                        "one row per picture, with a column image",
                        "Rename the column, or name it by cohort.image_column=.")]  # fmt: skip
    if faults or more:
        raise CohortError([*faults, *more])
    return _Table(lines, image, subject)


def _without_table(root: Path) -> str:
    """What to do about a missing table."""
    if any(root.glob("*_x.h5*")):
        return "For the HDF5 files of PatchCamelyon, set cohort=patchcamelyon."
    return f"Write {_TABLE} into {root}."


def _column(header: Sequence[str], asked: str, known: Sequence[str], what: str, option: str) -> tuple[str, list[Fault]]:
    """The column that names the pictures or subjects, empty if there is none, and faults."""
    if asked:
        absent = fault("no-column", _TABLE, "", f"no column {asked}, only {', '.join(header)}",
                       f"the column that names the {what}", f"Correct cohort.{option}=.")  # fmt: skip
        return asked, [] if asked in header else [absent]
    found = [name for name in known if name in header]
    if len(found) > 1 and found[0] != known[0]:
        return "", [fault("columns", _TABLE, "", f"{' and '.join(found)} may both name the {what}",
                          f"one such column, or a column {known[0]}",
                          f"Choose one by cohort.{option}=.")]  # fmt: skip
    return (found or [""])[0], []


def _notes(table: _Table, rows: Sequence[PictureRow]) -> tuple[str, ...]:
    """What was inferred about the columns."""
    if not table.subject:
        return (
            f"{_TABLE} has no column for the subject, patient or slide: each of the {len(rows)} pictures counts as a "
            "subject, so that pictures of one slide may be in the training and the test set, and values may be too "
            "good; name the column by cohort.subject_column=, if there is one",
        )
    if table.subject != _SUBJECT_COLUMNS[0]:
        return (f"subjects are those of the column {table.subject} of {_TABLE}; their pictures stay together",)
    return ()


def _rows(root: Path, folder: str, table: _Table, exclude: Sequence[str]) -> list[PictureRow]:
    """Rows of the table, except those of excluded subjects."""
    rows = [_row(line, table) for line in table.lines]
    known = {row.subject for row in rows}
    for name in exclude:
        if name not in known:
            raise UnknownName(f"subject of {root.name} (exclude)", name, known)
    rows = [row for row in rows if row.subject not in exclude]
    faults = [found for row in rows if (found := _fault_of(root, folder, row))]
    counts = Counter(row.id for row in rows if row.id)
    faults += [
        fault("twice", _TABLE, "", f"{name} occurs {count} times", "unique names", "Remove or rename the duplicates.")
        for name, count in counts.items()
        if count > 1
    ]
    if faults:
        raise CohortError(faults)
    return rows


def _row(line: Mapping[str, str | None], table: _Table) -> PictureRow:
    image = (line[table.image] or "").strip().removeprefix(f"{_IMAGES}/")
    name = Path(image).stem
    own = (table.image, table.subject)
    rest = {key: _value(text) for key, text in line.items() if key not in own and key is not None}
    return PictureRow(name, image, (line.get(table.subject) or "").strip() or name, rest)


def _fault_of(root: Path, folder: str, row: PictureRow) -> Fault | None:
    """Fault of the file name in a row, or ``None``."""
    if not row.image:
        return fault("no-name", _TABLE, row.subject, "a row without a picture", "a file name for every row",
                      "Complete the row, or remove it.")  # fmt: skip
    path = root / folder / row.image
    # Links are allowed, but names must not lead out of the folder.
    if not Path(os.path.normpath(path)).is_relative_to(os.path.normpath(root / folder)):
        return fault("outside", _TABLE, row.subject, f"{row.image} lies outside the folder {folder or root.name}",
                      f"a file in {folder or root.name}", "Copy it there.")  # fmt: skip
    if not path.is_file():
        return fault("no-file", _file(folder, row), row.subject, "there is no such file",
                      "a picture for every row", "Add it, or remove the row.")  # fmt: skip
    return None


def refuse_links(root: Path, paths: Sequence[Path], allowed: Path | None) -> None:
    """Refuse files whose content is outside of the folder, see :func:`harness.data.bids_files.link_out`.

    Parameters
    ----------
    root : folder of the data set
    paths : files below it, which need not exist
    allowed : folder outside of the data set into which links may lead

    Raises
    ------
    CohortError
        With all such links.
    """
    found = dict.fromkeys(filter(None, (link_out(path, root, allowed) for path in paths)))
    faults = []
    for where in found:
        file, _, target = where.partition(" → ")
        remedy = f"Copy the content, or set cohort.links={Path(target).parent} if you trust this data set."
        faults.append(fault("link-outside", file, "", f"a link to {target}", "a link within the data set", remedy))
    if faults:
        raise CohortError(faults)


def _value(text: str | None) -> float | str | None:
    if text is None or text.strip().lower() in _EMPTY:
        return None
    try:
        number = float(text)
    except ValueError:
        return text.strip()
    return number if math.isfinite(number) else text.strip()


def prepare_pictures(
    root: Path,
    folder: str,
    rows: Sequence[PictureRow],
    digests: Digests,
    arrays: ArrayCache,
    *,
    shape: tuple[int, ...] = (),
    side: int = 0,
) -> list[CachedImage]:
    """Cached images of all rows; a file is decoded only if the cache has no image of its content.

    Parameters
    ----------
    root : folder of the cohort
    folder : folder of the files below it
    rows : the pictures, at least one
    digests, arrays : the cache
    shape : (H, W) of the pictures, of which these are the masks; empty for the pictures
    side : height and width to which pictures are resampled; 0 keeps their size

    Returns
    -------
    list of CachedImage
        (H, W, 3) uint8 each, or (H, W) bool for masks.

    Raises
    ------
    CohortError
        Lists all files that cannot be read, that have not 8 bits per channel, or that
        differ in size.
    """
    code = code_digest([f"{__name__}:{name}" for name in ("_read", "_as_mask", "_MODES")])
    how = {"mask": bool(shape), "code": code} | ({"side": side} if side else {})
    paths = [root / folder / row.image for row in rows]
    # By content, not by name: a folder that was moved needs no new training.
    keys = [hash_of(canonical({"picture": digests.of(path), **how}))[:32] for path in paths]
    known = [arrays.known(key) for key in keys]
    _check_files(root, folder, rows, known, shape, resampled=bool(side))
    digests.keep()

    def prepare(key: str, path: Path) -> CachedImage:
        array = _read(path, side)
        return arrays.add(key, _as_mask(array) if shape else array)

    return [image or prepare(key, path) for image, key, path in zip(known, keys, paths, strict=True)]


def _check_files(
    root: Path,
    folder: str,
    rows: Sequence[PictureRow],
    known: Sequence[CachedImage | None],
    shape: tuple[int, ...],
    *,
    resampled: bool,
) -> None:
    """Raise all faults: files that cannot be read, that have not 8 bits per channel, or that differ in size.

    Only the headers of files that are not in the cache are read. Pictures that are resampled
    must be square, but may differ in size.
    """
    sizes: dict[str, tuple[int, int]] = {}
    faults = []
    for row, image in zip(rows, known, strict=True):
        file = _file(folder, row)
        if image is not None:
            sizes[row.image] = (image.shape[1], image.shape[0])
            continue
        try:
            with Picture.open(root / file) as picture:
                sizes[row.image], mode = picture.size, picture.mode
        except (OSError, UnidentifiedImageError) as error:
            faults.append(fault("unreadable", file, row.subject, str(error), "a PNG, JPEG or TIFF",
                                 "Replace the file, or remove its row."))  # fmt: skip
            continue
        if not shape and mode not in _MODES:
            faults.append(fault("depth", file, row.subject, f"pixels of type {mode}", "8 bits per channel",
                                 "Convert it; values are not rescaled here."))  # fmt: skip
    if not sizes:
        raise CohortError(faults)
    if resampled:
        faults += [
            fault("size", _file(folder, row), row.subject, "{} x {} pixels".format(*sizes[row.image]), "a square",
                  "Crop it, or remove it.")
            for row in rows
            if row.image in sizes and sizes[row.image][0] != sizes[row.image][1]
        ]  # fmt: skip
        sizes = {}
    usual = (shape[1], shape[0]) if shape else Counter(sizes.values() or [(0, 0)]).most_common(1)[0][0]
    expected = f"{usual[0]} x {usual[1]} as {'its picture' if shape else 'most'}"
    for row in rows:
        size = sizes.get(row.image, usual)
        if size != usual:
            faults.append(fault("size", _file(folder, row), row.subject, f"{size[0]} x {size[1]} pixels",
                                 expected, "Crop or resample it, or remove its row."))  # fmt: skip
    if faults:
        raise CohortError(faults)


def _file(folder: str, row: PictureRow) -> str:
    return f"{folder}/{row.image}" if folder else row.image


def _read(path: Path, side: int = 0) -> Array:
    """Pixels (H, W, 3) uint8, resampled to side × side unless it is 0; the channels of a grey picture are equal."""
    with Picture.open(path) as image:
        found = image.convert("RGB")
        return np.asarray(found.resize((side, side), Picture.Resampling.BOX) if side else found)


def _as_mask(array: Array) -> Array:
    found: Array = array.max(axis=2) > 0
    return found


def write_picture(path: Path, array: Array) -> None:
    """Write a picture, (H, W) or (H, W, 3) with values 0 to 255, as PNG; missing folders are created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(np.asarray(array, np.uint8)).save(path)


def fault(kind: str, file: str, subject: str, value: str, expected: str, remedy: str) -> Fault:
    """A fault, see :class:`harness.core.types.Fault`."""
    return Fault(kind, file, subject, value, expected, remedy)
