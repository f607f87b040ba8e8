"""A cohort as a table that workers open; the images stay in the cache."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa

from harness.core.errors import StoreError
from harness.core.targets import Target
from harness.core.types import JSON, Cohort, Image, Ineligible, Sample, Truth
from harness.data.cache import AGAIN, CachedImage, shared_length, shared_shape
from harness.storage.files import replace_file

__all__ = ["files_of", "open_cohort", "save"]

Number = TypeVar("Number", int, float)

_FORMAT = 5  # of the Arrow table
_ROWS = 4096  # of a record batch; a cohort may have hundreds of thousands

_ENTRY = pa.struct(
    [
        ("name", pa.string()),
        ("path", pa.string()),
        ("fingerprint", pa.string()),
        ("shape", pa.list_(pa.int64())),
        ("dtype", pa.string()),
        ("coding", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("sha256", pa.string()),
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
    ("space", pa.string()),
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
    facts = {
        "format": _FORMAT,
        "name": cohort.name,
        "ineligible": [asdict(one) for one in cohort.ineligible],
        "regions": {str(value): name for value, name in cohort.regions.items()},
        "label_source": cohort.label_source,
        "truth": None if cohort.truth is None else _truth_row(cohort.truth),
        "targets": [asdict(target) for target in cohort.targets],
        "notes": list(cohort.notes),
        "files": {name: dict(variants) for name, variants in cohort.files.items()},
        "private": cohort.private,
    }
    schema = pa.schema(_COLUMNS, metadata={"harness.cohort": json.dumps(facts, sort_keys=True)})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, len(cohort.samples), _ROWS):
            rows = _rows(cohort.samples[start : start + _ROWS])
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    replace_file(Path(path), sink.getbuffer())
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
    samples, facts = _read_table(Path(path))
    truth = None if facts["truth"] is None else _read_truth(facts["truth"])
    # All of them come from a cache, see _row.
    entries: list[CachedImage] = [
        image
        for sample in samples
        for image in (*sample.images.values(), *sample.masks.values())
        if isinstance(image, CachedImage)
    ]
    # If the last image of a file is there, so are the others.
    last: dict[Path, CachedImage] = {}
    for image in entries:
        if image.path not in last or image.offset + image.length > last[image.path].offset + last[image.path].length:
            last[image.path] = image
    problems = _problems(last.values(), check_content=False)
    if check_content and not problems:
        problems = _problems(entries, check_content=True)
    if problems:
        raise StoreError("\n".join([f"{path}: its images cannot be used:", *problems]))
    return Cohort(
        name=facts["name"],
        samples=samples,
        ineligible=tuple(Ineligible(**one) for one in facts["ineligible"]),
        regions={int(value): name for value, name in facts["regions"].items()},
        label_source=facts["label_source"],
        truth=truth,
        targets=tuple(Target(**{**one, "classes": tuple(one["classes"])}) for one in facts["targets"]),
        notes=tuple(facts["notes"]),
        files=facts["files"],
        private=facts.get("private", False),
    )


def files_of(path: Path) -> tuple[Path, ...]:
    """Files of all images that a table names, sorted, whether they are there or not.

    Raises
    ------
    StoreError
        If the table is missing, corrupted or of another version.
    """
    samples, facts = _read_table(Path(path))
    images = [image for sample in samples for image in (*sample.images.values(), *sample.masks.values())]
    if facts["truth"] is not None:
        truth = _read_truth(facts["truth"])
        images += [*truth.rois.values(), truth.counts]
    return tuple(sorted({image.path for image in images if isinstance(image, CachedImage)}))


def _truth_row(truth: Truth) -> dict[str, JSON]:
    return {
        "rois": [_row(name, image) for name, image in truth.rois.items()],
        "weights": {score: dict(weights) for score, weights in truth.weights.items()},
        "mask": truth.mask,
        "counts": _row("counts", truth.counts),
        "table": [dict(line) for line in truth.table],
        "linear": truth.linear,
    }


def _read_truth(row: Mapping[str, JSON]) -> Truth:
    rois = {entry["name"]: _entry_image(entry) for entry in row["rois"]}
    return Truth(rois, row["weights"], row["mask"], _entry_image(row["counts"]), tuple(row["table"]), row["linear"])


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


def _read_table(path: Path) -> tuple[tuple[Sample, ...], dict[str, JSON]]:
    """Samples and facts of a table, read batch by batch.

    Raises
    ------
    StoreError
        If the table is missing, corrupted or of another version.
    """
    try:
        with pa.OSFile(str(path)) as file, pa.ipc.open_file(file) as reader:
            facts = json.loads((reader.schema.metadata or {})[b"harness.cohort"])
            samples = tuple(_samples(reader)) if facts.get("format") == _FORMAT else ()
    except FileNotFoundError:
        raise StoreError(f"the cohort's table is missing: {path}. {AGAIN}") from None
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise StoreError(f"{path} is no cohort that can be read ({error!r}). Delete it. {AGAIN}") from error
    if facts.get("format") != _FORMAT:
        raise StoreError(f"{path} has the format {facts.get('format')}, this version reads {_FORMAT}. {AGAIN}")
    return samples, facts


def _samples(reader: pa.RecordBatchFileReader) -> Iterator[Sample]:
    for number in range(reader.num_record_batches):
        for row in reader.get_batch(number).to_pylist():
            yield Sample(
                id=row["id"],
                subject=sys.intern(row["subject"]),
                images={entry["name"]: _entry_image(entry) for entry in row["images"]},
                masks={entry["name"]: _entry_image(entry) for entry in row["masks"]},
                covariates=_mapping(row["covariates"]),
                affine=None if row["affine"] is None else np.array(row["affine"], float).reshape(4, 4),
                spacing_mm=None if row["spacing_mm"] is None else _three(row["spacing_mm"]),
                targets=_mapping(row["targets"]),
                clean=_mapping(row["clean"]),
                weights=_mapping(row["weights"]),
                space=sys.intern(row.get("space") or ""),  # tables of older versions lack it
            )


def _rows(samples: Iterable[Sample]) -> list[dict[str, JSON]]:
    return [
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
            "space": sample.space,
        }
        for sample in samples
    ]


# Samples with equal values share them: hundreds of thousands of patches have few different labels.
@lru_cache(maxsize=1024)
def _mapping(text: str) -> Mapping[str, JSON]:
    found: Mapping[str, JSON] = json.loads(text)
    return found


@lru_cache(maxsize=1024)
def _path(text: str) -> Path:
    return Path(text)


def _row(name: str, image: Image) -> dict[str, JSON]:
    if not isinstance(image, CachedImage):
        raise StoreError(
            f"a saved cohort holds images of a cache only, got {type(image).__name__} for {name}; "
            "a reader of another format gives CachedImage, too"
        )
    return {**asdict(image), "name": name, "path": str(image.path.absolute()), "shape": list(image.shape)}


def _entry_image(entry: Mapping[str, JSON]) -> CachedImage:
    return CachedImage(
        _path(entry["path"]),
        entry["fingerprint"],
        shared_shape(*entry["shape"]),
        sys.intern(entry["dtype"]),
        entry["coding"],
        entry["offset"],
        shared_length(entry["length"]),
        entry["sha256"],
    )


def _three(values: Sequence[Number]) -> tuple[Number, Number, Number]:
    return values[0], values[1], values[2]
