"""The cache of prepared arrays: one file each, named by all that produced it.

Dense arrays are memory-mapped. A lesion mask is mostly empty, so it may be kept
as *runs*: where voxels that are not zero begin, how many follow, and their values
unless all are one. 821 stroke masks take 10 MB so, against 3 GB as bytes; all
processes of a machine map the same file and decode what they need.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from harness.core.errors import StoreError
from harness.core.types import JSON, Array
from harness.storage.files import checksum, replace_file

__all__ = [
    "AGAIN",
    "CachedImage",
    "Coding",
    "Digests",
    "hash_of",
    "known_entry",
    "known_packed",
    "read_json",
    "write_entry",
    "write_packed",
]

Coding = Literal["dense", "runs"]

_SETTLED_NS = 2_000_000_000  # a file touched more recently could change again within its time stamp
AGAIN = "Run the command on the original data again: what is missing is prepared anew."


@dataclass(frozen=True)
class CachedImage:
    """A prepared array on disk; picklable, opened when asked for.

    Parameters
    ----------
    path : the ``.npy`` file
    fingerprint : hash of everything that produced the values; the file's name
    shape : (X, Y, Z)
    dtype : as numpy writes it, e.g. ``<f4``
    sha256 : of the file's bytes
    coding : how the file holds the array
    index : row of the file's array where it holds many images of one shape, else −1;
        a fingerprint is then of the one image, and the checksum of the file
    """

    path: Path
    fingerprint: str
    shape: tuple[int, ...]
    dtype: str
    sha256: str
    coding: Coding = "dense"
    index: int = -1

    def load(self) -> Array:
        """Array (X, Y, Z): a read-only view of the memory map, or decoded from runs.

        Raises
        ------
        StoreError
            If the file is gone, or is not what was written.
        """
        if self.index >= 0:
            row: Array = self._mapped(None, self.dtype)[self.index]
            return row
        if self.coding == "dense":
            return self._mapped(self.shape, self.dtype)
        array = np.zeros(int(np.prod(self.shape)), self.dtype)
        voxels, values = self.voxels()
        array[voxels] = values
        return array.reshape(self.shape)

    def voxels(self) -> tuple[Array, Array]:
        """Voxels that are not zero, without making the array.

        Returns
        -------
        (N,) int64 and (N,) of the image's dtype
            Flat indices in C order, rising, and the values there.
        """
        if self.coding == "dense":
            array = self.load().ravel()
            voxels = np.flatnonzero(array)
            return voxels, array[voxels]
        words = self._mapped(None, "<i4")
        count = int(words[0])
        starts, lengths = words[1 : 1 + count].astype(np.int64), words[1 + count : 1 + 2 * count].astype(np.int64)
        ends = np.cumsum(lengths)
        voxels = np.arange(int(ends[-1]) if count else 0) + np.repeat(starts - (ends - lengths), lengths)
        stored = words[1 + 2 * count :]
        values = stored.view("<f4").astype(self.dtype) if stored.size else np.ones(voxels.size, self.dtype)
        return voxels, values

    def check(self) -> None:
        """Compare the file's bytes with their checksum.

        Raises
        ------
        StoreError
            If they differ.
        """
        self.touch()
        if checksum(self.path) != self.sha256:
            raise StoreError(f"a prepared image is corrupted: {self.path} has another checksum. Delete it. {AGAIN}")

    def touch(self) -> None:
        """Open the file and compare its header; :class:`StoreError` if it is not what was written."""
        if self.index >= 0:
            array = self._mapped(None, self.dtype)
            if array.shape[1:] != self.shape or self.index >= len(array):
                raise StoreError(
                    f"{self.path} does not hold {self.index + 1} images of {self.shape}. Delete it. {AGAIN}"
                )
        elif self.coding == "dense":
            self._mapped(self.shape, self.dtype)
        else:
            self._mapped(None, "<i4")

    def _mapped(self, shape: tuple[int, ...] | None, dtype: str) -> Array:
        try:
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise StoreError(f"a prepared image is not in the cache: {self.path} is gone. {AGAIN}") from None
        except (ValueError, OSError, EOFError) as error:
            raise StoreError(f"a prepared image is corrupted: {self.path} ({error}). Delete it. {AGAIN}") from error
        if (shape is not None and array.shape != shape) or array.dtype.str != dtype:
            found = f"{array.shape} {array.dtype.str}"
            raise StoreError(
                f"a prepared image is not the one written: {self.path} must hold {shape or 'runs'} {dtype}, "
                f"got {found}. Delete it. {AGAIN}"
            )
        return np.asarray(array)


@dataclass
class Digests:
    """Hashes of originals, remembered in the cache while size, times and inode stay.

    Notes
    -----
    A file that was touched a moment ago is hashed again next time: it could
    change once more without a later time stamp.
    """

    folder: Path
    fresh: dict[Path, dict[str, JSON]] = field(default_factory=dict)
    known: dict[Path, str] = field(default_factory=dict)

    def of(self, path: Path) -> str:
        """SHA-256 of a file's bytes."""
        if path not in self.known:
            facts = path.stat()
            signature = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, facts.st_dev]
            note = self.folder / f"{hash_of(str(path.resolve()))[:32]}.json"
            content = read_json(note) or {}
            if content.get("signature") == signature:
                self.known[path] = content["sha256"]
            else:
                self.known[path] = checksum(path)
                if time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) > _SETTLED_NS:
                    self.fresh[note] = {"signature": signature, "sha256": self.known[path]}
        return self.known[path]

    def keep(self) -> None:
        """Write what was hashed; only once the cohort is found faultless."""
        for note, content in self.fresh.items():
            replace_file(note, json.dumps(content), durable=False)
        self.fresh.clear()


def known_entry(folder: Path, key: str) -> CachedImage | None:
    """The entry of this name, or ``None`` if there is none that is whole."""
    path = folder / f"{key}.npy"
    facts = read_json(path.with_suffix(".json"))
    if facts is None:
        return None
    image = CachedImage(path, key, tuple(facts["shape"]), facts["dtype"], facts["sha256"], facts.get("coding", "dense"))
    try:
        image.touch()
    except StoreError:
        return None
    return image


def write_entry(folder: Path, key: str, array: Array, *, coding: Coding = "dense") -> CachedImage:
    """Write facts first and the array last: an array without facts is never trusted.

    Parameters
    ----------
    key : name of the entry, a hash of all that produced the array
    array : (X, Y, Z); in runs, values are kept as float32
    coding : ``runs`` where most voxels are zero
    """
    array = np.ascontiguousarray(array)
    sink = io.BytesIO()
    np.save(sink, array if coding == "dense" else _runs(array), allow_pickle=False)
    content = sink.getbuffer()
    path = folder / f"{key}.npy"
    facts = {
        "shape": list(array.shape),
        "dtype": array.dtype.str,
        "sha256": hashlib.sha256(content).hexdigest(),
        "coding": coding,
    }
    replace_file(path.with_suffix(".json"), json.dumps(facts), durable=False)
    replace_file(path, content, durable=False)
    return CachedImage(path, key, array.shape, array.dtype.str, str(facts["sha256"]), coding)


def write_packed(folder: Path, key: str, images: Iterable[tuple[str, Array]], count: int) -> list[CachedImage]:
    """Write many images of one shape as one memory-mapped array; they are held one at a time.

    Parameters
    ----------
    key : name of the entry, a hash of all that produced the images
    images : fingerprint and array of each
    count : how many there are

    Returns
    -------
    list of CachedImage
        In the same order.

    Raises
    ------
    StoreError
        If the images have different shapes or types.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}.npy"
    fingerprints: list[str] = []
    with tempfile.TemporaryDirectory(prefix=".packed-", dir=folder) as name:
        packed: Array | None = None
        for number, (fingerprint, image) in enumerate(images):
            if packed is None:
                packed = np.lib.format.open_memmap(
                    Path(name) / "packed.npy", mode="w+", dtype=image.dtype, shape=(count, *image.shape)
                )
            if (image.shape, image.dtype) != (packed.shape[1:], packed.dtype):
                raise StoreError(
                    f"images that are packed must have one shape and type, got {packed.shape[1:]} {packed.dtype} "
                    f"and {image.shape} {image.dtype}"
                )
            packed[number] = image
            fingerprints.append(fingerprint)
        assert packed is not None and len(fingerprints) == count
        shape, dtype = packed.shape[1:], packed.dtype.str
        del packed  # flushes
        facts = {"shape": list(shape), "dtype": dtype, "sha256": checksum(Path(name) / "packed.npy"),
                 "fingerprints": fingerprints}  # fmt: skip
        replace_file(path.with_suffix(".json"), json.dumps(facts), durable=False)
        (Path(name) / "packed.npy").replace(path)
    return _rows_of(path, facts)


def known_packed(folder: Path, key: str) -> list[CachedImage] | None:
    """The images of a packed entry, or ``None`` if there is none that is whole."""
    path = folder / f"{key}.npy"
    facts = read_json(path.with_suffix(".json"))
    if facts is None or "fingerprints" not in facts:
        return None
    rows = _rows_of(path, facts)
    try:
        rows[-1].touch()
    except StoreError:
        return None
    return rows


def _rows_of(path: Path, facts: Mapping[str, JSON]) -> list[CachedImage]:
    shape = tuple(facts["shape"])
    return [
        CachedImage(path, fingerprint, shape, facts["dtype"], facts["sha256"], index=number)
        for number, fingerprint in enumerate(facts["fingerprints"])
    ]


def _runs(array: Array) -> Array:
    """Number of runs, their starts, their lengths, and the values as bits unless all are one; (M,) int32."""
    flat = array.ravel()
    voxels = np.flatnonzero(flat)
    first = np.flatnonzero(np.diff(voxels, prepend=-2) > 1)
    lengths = np.diff(first, append=voxels.size)
    values = flat[voxels].astype("<f4")
    bits = np.empty(0, "<i4") if (values == 1).all() else values.view("<i4")
    return np.concatenate([[first.size], voxels[first], lengths, bits]).astype("<i4")


def read_json(path: Path) -> JSON:
    """Content of a JSON file; ``None`` if there is none that can be read."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def hash_of(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()
