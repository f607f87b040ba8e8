"""Cache of prepared arrays: packs that hold many arrays each.

A *pack* is a binary file with an index beside it. One preparation writes one pack: arrays
are appended as they are made, each followed by its line in the index. An interrupted
preparation therefore loses nothing that was complete, and several may run at once. A later
preparation appends only what no pack of the folder holds, to a pack of its own.

::

    <name>.bin     arrays, each aligned to 64 bytes
    <name>.jsonl   one line per array: key, offset, length, shape, dtype, coding, sha256

Dense arrays are memory-mapped, except small ones, such as patches, which are read: pages of
mapped files count as memory of a process, which would grow with the number of patches that
it has seen. An array that is mostly zero, such as a lesion mask, can be
stored as *runs*: the starts and lengths of runs of non-zero voxels, and their values unless
all are one. 821 stroke masks take 10 MB as runs and 3 GB as bytes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

import numpy as np

from harness.core.errors import StoreError
from harness.core.types import JSON, Array
from harness.storage.files import checksum, replace_file

__all__ = [
    "AGAIN",
    "RUNS_CODE",
    "ArrayCache",
    "CachedImage",
    "Coding",
    "Digests",
    "hash_of",
    "read_json",
    "shared_length",
    "shared_shape",
]

Coding = Literal["dense", "runs"]
_CODINGS: dict[str, Coding] = {"dense": "dense", "runs": "runs"}

AGAIN = "Run the command on the original data again: it prepares what is missing."

RUNS_CODE = (f"{__name__}:_runs", f"{__name__}:_voxels_of")
"""The code that stores arrays as runs and reads them, for the keys of such arrays."""

_DATA, _INDEX = ".bin", ".jsonl"
_ALIGNMENT = 64  # bytes
_LARGEST = 2**36  # bytes of an array that is stored as runs
_SMALL = 2**18  # bytes; smaller arrays are read rather than mapped
_SETTLED_NS = 2_000_000_000  # a file changed more recently could change again within its time stamp


@dataclass(frozen=True, slots=True)
class CachedImage:
    """A prepared array on disk, read on demand; can be pickled.

    Parameters
    ----------
    path : binary file of the pack
    fingerprint : hash of everything that determines the values
    shape : (X, Y, Z), or (H, W, 3) for a picture
    dtype : NumPy type string, e.g. ``<f4``
    coding : how the array is stored
    offset, length : position and size in the file, in bytes
    sha256 : checksum of these bytes
    """

    path: Path
    fingerprint: str
    shape: tuple[int, ...]
    dtype: str
    coding: Coding
    offset: int
    length: int
    sha256: str

    def load(self) -> Array:
        """Read-only array of ``shape``, memory-mapped if it is large, or a new array decoded from runs.

        Raises
        ------
        StoreError
            If the file is missing or too short.
        """
        if self.coding == "dense":
            return self._mapped(self.dtype, self.shape)
        array = np.zeros(int(np.prod(self.shape)), self.dtype)
        voxels, values = self.voxels()
        array[voxels] = values
        return array.reshape(self.shape)

    def voxels(self) -> tuple[Array, Array]:
        """Non-zero voxels; runs are not expanded to the whole array.

        Returns
        -------
        (N,) int64 and (N,) of the image's dtype
            Sorted flat indices in C order, and the values there.

        Raises
        ------
        StoreError
            If the file is missing or too short.
        """
        if self.coding == "dense":
            array = self.load().ravel()
            voxels = np.flatnonzero(array)
            return voxels, array[voxels]
        return _voxels_of(self._mapped("<i4"), self.dtype)

    def check(self) -> None:
        """Compare the stored bytes with their checksum.

        Raises
        ------
        StoreError
            If they differ, or if the file is missing or too short.
        """
        if hashlib.sha256(self._mapped("|u1").data).hexdigest() != self.sha256:
            raise StoreError(
                f"the bytes of a prepared image must match their checksum: {self.path}, bytes {self.offset} to "
                f"{self.offset + self.length}, do not. Delete the file. {AGAIN}"
            )

    def touch(self) -> None:
        """Check that the file exists and is long enough, without reading the array.

        Raises
        ------
        StoreError
            If it is missing or too short.
        """
        self._facts()

    def _facts(self) -> os.stat_result:
        """Status of the file, which must be long enough."""
        end = self.offset + self.length
        try:
            facts = self.path.stat()
        except FileNotFoundError:
            raise StoreError(f"a file of prepared images is missing: {self.path}. {AGAIN}") from None
        if facts.st_size < end:
            raise StoreError(
                f"a file of prepared images must have at least {end} bytes: {self.path} has {facts.st_size}. {AGAIN}"
            )
        return facts

    def _mapped(self, dtype: str, shape: tuple[int, ...] = (-1,)) -> Array:
        """Read-only array of the stored bytes: a view of the mapped file, or a copy of a few bytes."""
        facts = self._facts()
        kind = np.dtype(dtype)
        if not self.length:
            return np.frombuffer(b"", kind).reshape(shape)
        if self.length <= _SMALL and hasattr(os, "pread"):
            opened = _opened(self.path, facts.st_dev, facts.st_ino)
            return np.frombuffer(os.pread(opened.descriptor, self.length, self.offset), kind).reshape(shape)
        whole = _memory_map(self.path, facts.st_dev, facts.st_ino, facts.st_size)
        return np.frombuffer(whole, kind, self.length // kind.itemsize, self.offset).reshape(shape)


class _Opened:
    """An open file, which is closed when nothing refers to it."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)


@lru_cache(maxsize=64)
def _opened(path: Path, device: int, inode: int) -> _Opened:
    """A file, shared by its images and by threads, which read at positions of their own."""
    return _Opened(path)


@lru_cache(maxsize=64)
def _memory_map(path: Path, device: int, inode: int, size: int) -> mmap:
    """Read-only memory map of a file, shared by its images.

    A map for each image would be slower, and the number of maps and open files is limited.
    """
    with path.open("rb") as file:
        return mmap(file.fileno(), size, access=ACCESS_READ)


class ArrayCache:
    """The prepared arrays of a folder; adding and looking up are thread-safe.

    Use it as a context manager. The packs of the folder are read when it is created; arrays
    that are added go to a new pack, which is created with the first of them.

    Parameters
    ----------
    folder : folder of the packs; created if needed
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._pack: _Pack | None = None
        self._images: dict[str, CachedImage] = {}
        for path in sorted(folder.glob(f"*{_INDEX}")):
            self._images.update((image.fingerprint, image) for image in _complete(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            self._close()

    def known(self, key: str) -> CachedImage | None:
        """The array stored under a key, or ``None``."""
        return self._images.get(key)

    def add(self, key: str, array: Array, *, coding: Coding = "dense") -> CachedImage:
        """Store an array; one that is already stored under the key is kept.

        Parameters
        ----------
        key : hash of everything that determines the values
        array : array of any shape; values stored as runs are rounded to float32
        coding : ``runs`` if most voxels are zero

        Raises
        ------
        StoreError
            If the array holds Python objects.
        """
        # Not ascontiguousarray, which makes a scalar an array of one element.
        array = np.asarray(array, order="C")
        if array.dtype.hasobject:
            raise StoreError(f"a prepared array must hold numbers, got dtype {array.dtype} for {key}")
        stored = (array if coding == "dense" else _runs(array)).reshape(-1).view("|u1")
        sha256 = hashlib.sha256(stored.data).hexdigest()
        with self._lock:
            if key not in self._images:
                if self._pack is None:
                    self._pack = _Pack(self._folder)
                try:
                    image = self._pack.append(key, stored, array.shape, array.dtype.str, coding, sha256)
                except BaseException:
                    self._close()  # nothing may follow an incomplete array or line
                    raise
                self._images[key] = image
            return self._images[key]

    def _close(self) -> None:
        pack, self._pack = self._pack, None
        if pack is not None:
            pack.close()


class _Pack:
    """A pack that is being written."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{uuid.uuid4().hex}{_DATA}"
        self._data: BinaryIO = self.path.open("xb")
        self._index: BinaryIO = self.path.with_suffix(_INDEX).open("xb")
        self._end = 0

    def append(
        self, key: str, stored: Array, shape: tuple[int, ...], dtype: str, coding: Coding, sha256: str
    ) -> CachedImage:
        """Write the bytes of an array, then its line."""
        padding = -self._end % _ALIGNMENT
        offset = self._end + padding
        self._data.write(bytes(padding))
        self._data.write(stored.data)
        self._data.flush()
        facts = {
            "key": key, "offset": offset, "length": stored.size, "shape": shape, "dtype": dtype, "coding": coding,
            "sha256": sha256,
        }  # fmt: skip
        self._index.write(json.dumps(facts).encode() + b"\n")
        self._index.flush()
        self._end = offset + stored.size
        return CachedImage(self.path, key, shape, dtype, coding, offset, stored.size, sha256)

    def close(self) -> None:
        """Wait until everything is on the disk, and close the files; an empty pack is removed."""
        with self._data, self._index:
            os.fsync(self._data.fileno())
        if not self._end:
            self.path.unlink()
            self.path.with_suffix(_INDEX).unlink()


def _complete(index: Path) -> Iterator[CachedImage]:
    """Arrays of a pack whose line and bytes are complete; another process may still be writing it."""
    path = index.with_suffix(_DATA)
    size = 0
    try:
        with index.open("rb") as lines:
            for line in lines:
                image = _image_of(line, path)
                if image is None:
                    continue
                if image.offset + image.length > size:
                    size = path.stat().st_size  # after the line, which is never ahead of the data
                if image.offset + image.length <= size:
                    yield image
    except FileNotFoundError:
        return


def _image_of(line: bytes, path: Path) -> CachedImage | None:
    """The array of a line of an index; ``None`` if the line is incomplete."""
    if not line.endswith(b"\n"):
        return None
    try:
        facts = json.loads(line)
        image = CachedImage(
            path, facts["key"], shared_shape(*facts["shape"]), sys.intern(facts["dtype"]), _CODINGS[facts["coding"]],
            facts["offset"], shared_length(facts["length"]), facts["sha256"],
        )  # fmt: skip
        return image if _is_sound(image) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_sound(image: CachedImage) -> bool:
    """Whether shape, type and length of an entry agree, so that loading it takes no more memory than it has bytes for.

    Runs may be far shorter than the array that they describe, which must fit into memory.
    """
    if not isinstance(image.fingerprint, str) or not isinstance(image.sha256, str):
        return False
    numbers = (image.offset, image.length, *image.shape)
    if not all(type(one) is int and one >= 0 for one in numbers) or np.dtype(image.dtype).hasobject:
        return False
    size = math.prod(image.shape) * np.dtype(image.dtype).itemsize
    return size == image.length if image.coding == "dense" else size <= _LARGEST


@lru_cache(maxsize=1024)
def shared_length(number: int) -> int:
    """The same number for all arrays of a size."""
    return number


@lru_cache(maxsize=1024)
def shared_shape(*sides: int) -> tuple[int, ...]:
    """The same tuple for all arrays of a shape."""
    return sides


@dataclass
class Digests:
    """SHA-256 of original files, remembered while size, times and inode stay the same.

    Parameters
    ----------
    folder : folder of the remembered digests; one file per cohort
    root : folder of the cohort

    Notes
    -----
    The digest of a file that changed less than two seconds ago is not remembered, because the
    file could change again without a later time stamp.
    """

    folder: Path
    root: Path
    fresh: dict[str, list[JSON]] = field(default_factory=dict)
    known: dict[Path, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._file = self.folder / f"{hash_of(str(self.root.resolve()))[:32]}.json"
        self._prefix = f"{self.root}{os.sep}"
        self._remembered = self._read()

    def of(self, path: Path) -> str:
        """SHA-256 of a file's bytes, in hexadecimal digits; ``OSError`` if it is no file."""
        if path not in self.known:
            facts = path.stat()
            if not stat.S_ISREG(facts.st_mode):  # a pipe would wait for ever
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            signature = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, facts.st_dev]
            name = str(path).removeprefix(self._prefix)
            *before, digest = self._remembered.get(name) or [None]
            if before == signature:
                self.known[path] = digest
            else:
                self.known[path] = checksum(path)
                if time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) > _SETTLED_NS:
                    self.fresh[name] = [*signature, self.known[path]]
        return self.known[path]

    def keep(self) -> None:
        """Remember what was hashed; call it only if the cohort has no faults."""
        if self.fresh:
            # Read again: another process may have added other files of the cohort.
            self._remembered = {**self._read(), **self.fresh}
            replace_file(self._file, json.dumps(self._remembered), durable=False)
        self.fresh.clear()

    def _read(self) -> dict[str, list[JSON]]:
        content = read_json(self._file)
        return content if isinstance(content, dict) else {}


def _runs(array: Array) -> Array:
    """Number of runs, their starts, their lengths, and the values as bits unless all are one; (M,) int32."""
    flat = array.ravel()
    voxels = np.flatnonzero(flat)
    first = np.flatnonzero(np.diff(voxels, prepend=-2) > 1)
    lengths = np.diff(first, append=voxels.size)
    values = flat[voxels].astype("<f4")
    bits = np.empty(0, "<i4") if (values == 1).all() else values.view("<i4")
    return np.concatenate([[first.size], voxels[first], lengths, bits]).astype("<i4")


def _voxels_of(words: Array, dtype: str) -> tuple[Array, Array]:
    """The inverse of :func:`_runs`: flat indices of the non-zero voxels, (N,) int64, and their values, (N,)."""
    count = int(words[0])
    starts, lengths = words[1 : 1 + count].astype(np.int64), words[1 + count : 1 + 2 * count].astype(np.int64)
    ends = np.cumsum(lengths)
    voxels = np.arange(int(ends[-1]) if count else 0) + np.repeat(starts - (ends - lengths), lengths)
    stored = words[1 + 2 * count :]
    values = stored.view("<f4").astype(dtype) if stored.size else np.ones(voxels.size, dtype)
    return voxels, values


def read_json(path: Path) -> JSON:
    """Content of a JSON file, or ``None`` if it is missing or cannot be read."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def hash_of(text: str) -> str:
    """SHA-256 of a text, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()
