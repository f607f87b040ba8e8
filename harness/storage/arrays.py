"""Read NumPy files whose content is not trusted: no pickled objects, no more memory than the file accounts for."""

from __future__ import annotations

import ast
import math
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import psutil

from harness.core.errors import StoreError
from harness.core.types import Array

__all__ = ["read_npy", "read_npz"]

_HEADERS = {(1, 0): 10, (2, 0): 12, (3, 0): 12}  # bytes before the description of an array
_LONGEST_HEADER = 2**16
_MAGIC = b"\x93NUMPY"
_FAULTS = (OSError, EOFError, ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError,
           NotImplementedError, OverflowError, RuntimeError, zipfile.BadZipFile, zlib.error)  # fmt: skip


def read_npz(path: Path) -> dict[str, Array]:
    """Arrays of an ``.npz`` file, by name.

    Raises
    ------
    StoreError
        If it cannot be read, holds Python objects, describes other arrays than it has bytes
        for, or more than fit into the memory of this machine.

    Notes
    -----
    The directory of the archive states how long each member is when inflated, and each array
    states its shape. Both are compared before anything is inflated, so that neither a small
    file that inflates to terabytes nor a header with a false shape takes any memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for one in members:
                with archive.open(one) as stream:
                    _check(stream, one.file_size)
            _check_memory(sum(one.file_size for one in members))
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except _FAULTS as error:
        raise _refused(path, error) from error


def read_npy(path: Path) -> Array:
    """The array of an ``.npy`` file.

    Raises
    ------
    StoreError
        As of :func:`read_npz`.
    """
    try:
        with path.open("rb") as stream:
            _check(stream, path.stat().st_size)
        array: Array = np.load(path, allow_pickle=False)
        return array
    except _FAULTS as error:
        raise _refused(path, error) from error


def _check(stream: IO[bytes], length: int) -> None:
    """Raise ``ValueError`` unless an array has as many bytes as its header describes."""
    start = stream.read(8)
    if len(start) < 8 or start[:6] != _MAGIC or (start[6], start[7]) not in _HEADERS:
        raise ValueError("it is no array in NumPy's format")
    wide = _HEADERS[start[6], start[7]] - 8
    size = int.from_bytes(stream.read(wide), "little")
    if size > _LONGEST_HEADER:
        raise ValueError(f"the description of an array has {size} bytes")
    described = ast.literal_eval(stream.read(size).decode("latin1"))
    kind = np.dtype(described["descr"])
    if kind.hasobject:
        raise ValueError("it holds Python objects, which could run code")
    shape = described["shape"]
    if not isinstance(shape, tuple) or not all(isinstance(one, int) and one >= 0 for one in shape):
        raise ValueError(f"the shape of an array is {shape!r}")
    expected = 8 + wide + size + kind.itemsize * math.prod(shape)
    if expected != length:
        raise ValueError(f"an array of the shape {shape} and type {kind} takes {expected} bytes, got {length}")


def _check_memory(needed: int) -> None:
    has = psutil.virtual_memory().total
    if needed > has:
        raise ValueError(f"its arrays take {needed} bytes, and this machine has {has}")


def _refused(path: Path, error: BaseException) -> StoreError:
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return StoreError(f"{path} cannot be read: {reason}; delete its folder and run the command again")
