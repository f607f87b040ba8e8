"""Atomic writing of files, and folders that can be written to."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.core.errors import RequestError

__all__ = ["PART", "check_writable", "checksum", "replace_file", "synchronise"]

_THREADS = 8
_NOT_SYNCHRONISED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}  # folders of some file systems

PART = ".part-"
"""Prefix of incomplete files; those left by killed processes may be removed."""


def replace_file(path: Path, content: str | bytes | memoryview, *, durable: bool = True) -> None:
    """Write a file atomically: concurrent readers see either the old or the new content.

    Parameters
    ----------
    path : path of the file; its folder is created if needed
    content : content; text is written as UTF-8, line ends unchanged
    durable : whether to wait until it is on the disk, so that it survives a power failure;
        not needed for files that can be recreated
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{PART}{uuid.uuid4().hex}")
    try:
        with part.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def synchronise(paths: Sequence[Path]) -> None:
    """Wait until files, or the names in folders, are on the disk, so that they survive a power failure.

    Notes
    -----
    All at the same time, because file systems with a journal, such as ext4, write the files for
    which several threads wait in one go; one after the other, each would take as long as all.
    """
    if paths:
        with ThreadPoolExecutor(min(len(paths), _THREADS)) as pool:
            list(pool.map(_synchronise, paths))


def _synchronise(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in _NOT_SYNCHRONISED:
            raise
    finally:
        os.close(number)


def check_writable(folder: Path, key: str) -> None:
    """Check before anything is computed that results can be written to a folder; nothing is left there.

    Parameters
    ----------
    folder : absolute path of the folder, which may be missing
    key : name of the option, for the error message

    Raises
    ------
    RequestError
        If it or the first folder above it that exists is a file or cannot be written to.
    """
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir():
            raise RequestError(f"{key} must be a folder, but {there} is a file; choose another path")
        tempfile.TemporaryDirectory(prefix=PART, dir=there).cleanup()
    except OSError as error:
        raise RequestError(
            f"{key} must be a folder that this user can write to, got {folder}: {error.strerror}; "
            "choose another path, or change its permissions"
        ) from None


def checksum(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
