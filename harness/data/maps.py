"""Attribution maps as files: NIfTI in the input's affine.

A cell that explains writes a file per sample, named by :func:`map_name`;
:func:`read_maps` finds it again by the cell's record. Maps are ordered
(C, X, Y, Z), C input channels on the sample's grid; a file has the channels
last, as NIfTI wants it.
"""

from __future__ import annotations

import urllib.parse
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.core.errors import OutOfRange, UnknownName
from harness.core.types import Array
from harness.data import nifti
from harness.storage.arrays import read_npy, read_npz
from harness.storage.store import CellRecord, Store

__all__ = [
    "GroupMap",
    "group_map",
    "map_name",
    "read_map",
    "read_maps",
    "read_sums",
    "stored_samples",
    "with_channels",
    "write_map",
    "write_sums",
]

_START, _VOLUME, _PICTURE = "map_", ".nii.gz", ".npy"
_LARGEST = 15  # half precision reaches just below 2 to the 16th


def map_name(sample: str, output: str = "", *, volume: bool = True) -> str:
    """File name of the map of a sample in its cell; names are percent-encoded.

    Parameters
    ----------
    sample : id of the sample
    output : name of the explained scalar; empty for the first one of a cell
    volume : whether the map is a volume (NIfTI) or that of a picture (NumPy array)
    """
    names = [urllib.parse.quote(name, safe="") for name in (sample, output) if name]
    return f"{_START}{','.join(names)}{_VOLUME if volume else _PICTURE}"


def write_map(path: Path, array: Array, affine: Array) -> Path:
    """Write the map of one sample; equal maps give equal bytes.

    Parameters
    ----------
    path : ends in ``.nii.gz``
    array : (C, X, Y, Z) or (X, Y, Z), stored as float32 (X, Y, Z, C), or (X, Y, Z) for one channel
    affine : (4, 4) voxel to world (mm, RAS+), of the input

    Raises
    ------
    OutOfRange
        If the array has other axes.
    """
    values = with_channels(array)
    stored = values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)
    return nifti.write(path, stored, affine, dtype=np.float32)


def read_map(path: Path) -> Array:
    """Read a map that :func:`write_map` wrote: (C, X, Y, Z) float32, unchanged.

    Raises
    ------
    ImageError
        If the file cannot be read, or does not have three or four axes.
    """
    facts, values = nifti.load(path)
    if len(facts.shape) not in (3, 4):
        raise nifti.dimensions_error(path, facts.shape)
    values = values[..., None] if values.ndim == 3 else values
    return np.ascontiguousarray(np.moveaxis(values, -1, 0), dtype=np.float32)


def stored_samples(store: Store, record: CellRecord) -> tuple[str, ...]:
    """Ids of the samples with maps in an explain cell, from the names of its files."""
    return tuple(sorted({_names_of(name)[0] for name in record.artifacts if _is_map(name)}))


def read_maps(
    store: Store, record: CellRecord, samples: Collection[str] | None = None, *, output: str = ""
) -> dict[str, Array]:
    """The maps of an explain cell.

    Parameters
    ----------
    store : the store
    record : record of the cell
    samples : ids of the samples to read, as far as the cell has maps of them; all by default
    output : name of the explained scalar; empty for the first one

    Returns
    -------
    dict
        sample id → (C, X, Y, Z) float32, or (C, H, W) of pictures

    Raises
    ------
    StoreError
        If a file does not match its checksum in the record.
    UnknownName
        If the cell did not explain such a scalar.
    """
    explained = record.facts.get("outputs", ())
    if output and explained and output not in explained:
        raise UnknownName(f"explained scalar of {record.identity}", output, explained)
    return dict(_stored(store, record, samples, output))


def write_sums(path: Path, sums: Array) -> Path:
    """Write sums of maps in half precision, which takes half of the disk space.

    Parameters
    ----------
    path : ends in ``.npz``
    sums : (B, T, C, X, Y, Z) float, finite, B blocks of subjects and T explained outputs

    Notes
    -----
    Each sum is scaled by a power of two, so that values keep 11 significant bits (a relative
    error of 5e-4 at most) down to 4e-9 of the largest. Equal values of one sum stay equal.
    """
    axes = tuple(range(2, sums.ndim))
    _, exponent = np.frexp(np.abs(sums).max(axis=axes, keepdims=True))
    scale = np.ldexp(1.0, exponent - _LARGEST)
    halved = np.stack([(one / by).astype(np.float16) for one, by in zip(sums, scale, strict=True)])
    np.savez_compressed(path, sums=halved, scale=scale)
    return path


def read_sums(path: Path) -> Array:
    """Read sums that :func:`write_sums` wrote, (B, T, C, X, Y, Z) float32."""
    file = read_npz(path)
    sums: Array = np.multiply(file["sums"], file["scale"], dtype=np.float64).astype(np.float32)
    return sums


@dataclass(frozen=True)
class GroupMap:
    """The mean map of a group of subjects.

    Parameters
    ----------
    values : (C, X, Y, Z) float32, or ``None`` if there is no map
    affine : (4, 4) affine of all samples
    subjects : number of subjects
    reason : why there is no map; empty if there is one
    """

    values: Array | None
    affine: Array
    subjects: int
    reason: str = ""


def group_map(
    store: Store, records: Iterable[CellRecord], affines: Mapping[str, Array], subjects: Mapping[str, str]
) -> GroupMap:
    """Mean over subjects of the mean over each subject's maps (seeds, sessions), voxel by voxel.

    All samples must have the same shape and, within 0.001 mm, the same affine; maps are not
    resampled.

    Parameters
    ----------
    store : the store
    records : records of the explain cells of one configuration and attribution
    affines : sample id → (4, 4) voxel to world
    subjects : sample id → subject

    Returns
    -------
    GroupMap
        Without values, but with the reason, if there are no maps or no common grid.
    """
    records = tuple(records)
    held = [sample for record in records for sample in stored_samples(store, record)]
    if not held:
        return GroupMap(None, np.eye(4), 0, "no maps")
    first, affine = held[0], np.asarray(affines[held[0]], dtype=float)
    other = next((one for one in held if not np.allclose(affines[one], affine, rtol=0, atol=1e-3)), "")
    if other:
        return GroupMap(None, affine, 0, f"no common grid: {first} and {other} have different affines")
    counts = Counter(subjects[sample] for sample in held)
    total: Array | None = None
    # One map at a time, because hundreds of maps at full resolution do not fit into memory.
    for sample, one in (pair for record in records for pair in _stored(store, record, None)):
        if total is None:
            first, total = sample, np.zeros(one.shape)
        if one.shape != total.shape:
            reason = f"no common grid: {first} has the shape {total.shape}, {sample} {one.shape}"
            return GroupMap(None, affine, 0, reason)
        total += one / (counts[subjects[sample]] * len(counts))
    return GroupMap(np.asarray(total, dtype=np.float32), affine, len(counts))


# Names and arrays


def _is_map(name: str) -> bool:
    return name.startswith(_START) and name.endswith((_VOLUME, _PICTURE))


def _names_of(name: str) -> tuple[str, str]:
    """Sample and output of a file name; the output is empty for the first one."""
    plain = name.removeprefix(_START).removesuffix(_VOLUME).removesuffix(_PICTURE)
    sample, _, output = plain.partition(",")
    return urllib.parse.unquote(sample), urllib.parse.unquote(output)


def _stored(
    store: Store, record: CellRecord, samples: Collection[str] | None, output: str = ""
) -> Iterator[tuple[str, Array]]:
    """Sample id and map, one at a time."""
    outputs = record.facts.get("outputs", ())
    wanted = "" if outputs and output == outputs[0] else output
    for name in sorted(filter(_is_map, record.artifacts)):
        sample, own = _names_of(name)
        if own == wanted and (samples is None or sample in samples):
            path = store.artifact(record, name)
            yield sample, read_map(path) if name.endswith(_VOLUME) else read_npy(path)


def with_channels(array: Array, channels: Sequence[str] = ()) -> Array:
    """The map with an axis of channels, (C, X, Y, Z).

    Raises
    ------
    OutOfRange
        If the array has other axes, or another number of channels than names.
    """
    values = np.asarray(array)[None] if np.ndim(array) == 3 else np.asarray(array)
    if values.ndim != 4 or not values.size:
        raise OutOfRange(f"a map must have the axes (C, X, Y, Z) or (X, Y, Z), none empty; got {np.shape(array)}")
    if channels and len(channels) != len(values):
        raise OutOfRange(f"names == channels must hold for a map, got {list(channels)} for {len(values)} channels")
    return values
