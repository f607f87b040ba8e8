"""Read a folder of UTKFace as a cohort.

::

    UTKFace/
      [age]_[sex]_[ethnicity]_[date].jpg.chip.jpg     aligned and cropped, 200 × 200 pixels
      [age]_[sex]_[ethnicity]_[date].jpg              as photographed

Pictures may lie in subfolders (``part1/``, …). Labels are read from the names and never
guessed: a name that lacks a field, or has a value that the data set does not define, is left
out and listed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import annotated_types

from harness.core.errors import CohortError, OutOfRange, UnknownName
from harness.core.registry import COHORTS
from harness.core.seeding import generator
from harness.core.types import Cohort, Fault, Ineligible, Sample
from harness.data.cache import ArrayCache, Digests
from harness.data.pictures import PictureRow, fault, prepare_pictures, refuse_links

__all__ = ["ETHNICITIES", "SEXES", "utkface"]

SEXES = ("male", "female")
"""Sexes by their number in the name."""

ETHNICITIES = ("White", "Black", "Asian", "Indian")
"""Ethnicities by their number in the name; the fifth, 4, stands for all others and is left out."""

_NAME = "rgb"
_OLDEST = 116
_OTHERS = len(ETHNICITIES)
_ENDINGS = (".jpg.chip.jpg", ".jpg", ".jpeg", ".png")
_DATE_DIGITS = (8, 17)  # of the date alone, and with the time in milliseconds
_TERMS = (
    "UTKFace is available for non-commercial research purposes only, and the copyright of its pictures belongs to "
    "their owners: do not publish, sell or pass on pictures, or maps that show a face; reports show no face unless "
    "show_images=true"
)
_IDENTITIES = (
    "UTKFace does not say who is shown, so that two pictures of one person may be in the training and the test set, "
    "and values may be too good"
)


@COHORTS.register("utkface", source="Zhang, Song & Qi 2017, doi:10.1109/CVPR.2017.463 (UTKFace)")
def utkface(
    root: Path,
    cache: Path,
    *,
    sequences: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    minimum: Annotated[int, annotated_types.Ge(1)] = 3,
    images: Annotated[int, annotated_types.Ge(0)] = 0,
    side: Annotated[int, annotated_types.Ge(0)] = 0,
    links: Path | None = None,
) -> Cohort:
    """Faces of UTKFace with age, sex and ethnicity from the names of the files.

    The data set is for non-commercial research only, which all commands and the report say.

    Parameters
    ----------
    root : folder of the pictures
    cache : folder of prepared arrays
    sequences : names of the images to read: ``rgb``, or empty
    exclude : pictures to leave out, by their names up to ``.jpg``
    minimum : minimum number of pictures
    images : number of pictures, drawn at random from all that can be used; 0 for all. The
        study used 9,000
    side : height and width to which square pictures are resampled; 0 keeps their size
    links : folder outside of the data set into which links may lead; empty for none. Links
        within the data set are always followed

    Returns
    -------
    Cohort
        One sample and subject per picture, sorted by id, the name up to ``.jpg``. The image
        ``rgb`` is (H, W, 3) uint8. Covariates: ``age`` in years, ``sex`` (``male``,
        ``female``) and ``ethnicity``. Pictures whose names cannot be read, and pictures
        with equal content, are ineligible; those of the fifth ethnicity are counted in a
        note. The cohort is private: reports show its pictures only with
        ``show_images=true``.

    Raises
    ------
    CohortError
        With all faults: no such pictures, links out of the data set, the same name twice, files
        that cannot be read, pictures of different sizes.
    """
    root, cache = Path(root).absolute(), Path(cache).absolute()
    for name in sequences:
        if name != _NAME:
            raise OutOfRange(f"pictures have the one image {_NAME}, got {name}")
    rows, unread = _rows(root, exclude)
    refuse_links(root, [root / row.image for row in rows], links)
    others = [row for row in rows if row.covariates["ethnicity"] is None]
    rows = [row for row in rows if row.covariates["ethnicity"] is not None]
    digests = Digests(cache / "digests", root)
    rows, equal = _without_duplicates(root, rows, digests)
    found = len(rows)
    rows = _drawn(rows, images)
    if len(rows) < minimum:
        raise CohortError([_too_few(len(rows), minimum, unread)])
    with ArrayCache(cache / "arrays") as arrays:
        made = prepare_pictures(root, "", rows, digests, arrays, side=side)
    samples = tuple(
        Sample(row.id, row.subject, {_NAME: image}, {}, row.covariates) for row, image in zip(rows, made, strict=True)
    )
    excluded = [Ineligible(name, "excluded by request") for name in sorted(set(exclude))]
    notes = [_TERMS, _IDENTITIES]
    notes += [f"{len(others)} pictures of the fifth ethnicity (others) were left out"] if others else []
    if images:
        of = f"{len(rows)} of {found} pictures were drawn" if len(rows) < found else f"all {found} pictures are used"
        notes.append(f"{of} (cohort.images={images})")
    notes += [f"pictures were resampled to {side} × {side} pixels"] if side else []
    return Cohort(root.name, samples, (*unread, *equal, *excluded), notes=tuple(notes), private=True)


@dataclass(frozen=True)
class _Labels:
    """Labels in the name of a file; ``problem`` says why they cannot be read."""

    age: int = 0
    sex: int = 0
    ethnicity: int = 0
    problem: str = ""


def _rows(root: Path, exclude: Sequence[str]) -> tuple[list[PictureRow], list[Ineligible]]:
    """Pictures with readable names, sorted by id, and those that are left out; the ethnicity of others is ``None``."""
    if not root.is_dir():
        raise CohortError([fault("no-folder", "", "", f"there is no folder {root}", "a folder of UTKFace",
                                 "Correct the path.")])  # fmt: skip
    paths = sorted(
        path
        for path in root.rglob("*")
        if path.name.lower().endswith(_ENDINGS) and not path.name.startswith(".") and path.is_file()
    )
    ids: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        ids[_id(path.name)].append(path.relative_to(root).as_posix())
    for name in exclude:
        if name not in ids:
            raise UnknownName(f"picture of {root.name} (exclude)", name, ids)
    twice = [
        fault("twice", ", ".join(files), name, f"{name} occurs {len(files)} times", "unique names",
              "Keep one of them, for example only the aligned pictures (.jpg.chip.jpg).")
        for name, files in ids.items()
        if len(files) > 1 and name not in exclude
    ]  # fmt: skip
    if twice:
        raise CohortError(twice)
    rows, left_out = [], []
    for name, (file, *_) in sorted(ids.items()):
        if name in exclude:
            continue
        labels = _labels(name)
        if labels.problem:
            left_out.append(Ineligible(Path(file).name, labels.problem))
        else:
            known = ETHNICITIES[labels.ethnicity] if labels.ethnicity < _OTHERS else None
            facts: dict[str, float | str | None] = {
                "age": float(labels.age),
                "sex": SEXES[labels.sex],
                "ethnicity": known,
            }
            rows.append(PictureRow(name, file, name, facts))
    return rows, left_out


def _id(name: str) -> str:
    """Name of a file up to its ending."""
    ending = next(one for one in _ENDINGS if name.lower().endswith(one))
    return name[: -len(ending)]


def _labels(name: str) -> _Labels:
    """Labels in a name without its ending."""
    fields = name.split("_")
    if len(fields) != 4:
        return _Labels(problem=f"the name has {len(fields)} fields instead of age_sex_ethnicity_date")
    if not all(field.isascii() and field.isdigit() for field in fields):
        return _Labels(problem="a field of the name is not a whole number")
    age, sex, ethnicity = (int(field) for field in fields[:3])
    if age > _OLDEST:
        return _Labels(problem=f"the age in the name is above {_OLDEST}")
    if sex >= len(SEXES):
        return _Labels(problem="the sex in the name is neither 0 nor 1")
    if ethnicity > _OTHERS:
        return _Labels(problem=f"the ethnicity in the name is above {_OTHERS}")
    if not _DATE_DIGITS[0] <= len(fields[3]) <= _DATE_DIGITS[1]:
        return _Labels(problem="the date in the name has not 8 to 17 digits")
    return _Labels(age, sex, ethnicity)


def _without_duplicates(
    root: Path, rows: Sequence[PictureRow], digests: Digests
) -> tuple[list[PictureRow], list[Ineligible]]:
    """Pictures of different content; of several with equal content and labels the first is kept, otherwise none."""
    groups: dict[str, list[PictureRow]] = defaultdict(list)
    for row in rows:
        groups[digests.of(root / row.image)].append(row)
    dropped: dict[str, str] = {}
    for group in groups.values():
        if len({_text(row.covariates) for row in group}) > 1:
            reason = "pictures with equal content have different labels"
            dropped |= {row.id: reason for row in group}
        else:
            dropped |= {row.id: "equal content and labels as another picture, which is kept" for row in group[1:]}
    return (
        [row for row in rows if row.id not in dropped],
        [Ineligible(name, reason) for name, reason in sorted(dropped.items())],
    )


def _text(labels: Mapping[str, float | str | None]) -> str:
    return repr(sorted(labels.items()))


def _drawn(rows: Sequence[PictureRow], count: int) -> list[PictureRow]:
    """Some pictures, drawn at random; their order is kept."""
    if not 0 < count < len(rows):
        return list(rows)
    chosen = generator(0, "utkface").permutation(len(rows))[:count]
    return [rows[index] for index in sorted(chosen)]


def _too_few(count: int, minimum: int, unread: Sequence[Ineligible]) -> Fault:
    found = f"{count} pictures named age_sex_ethnicity_date.jpg with four known ethnicities"
    if unread:
        found += f", and {len(unread)} with other names ({', '.join(one.subject for one in unread[:3])}, …)"
    return fault("too-few-subjects", "", "", found, f"at least {minimum}",
                 "Name the folder of the pictures; do not rename the files.")  # fmt: skip
