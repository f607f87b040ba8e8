"""Atomic writing of files."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

__all__ = ["PART", "checksum", "replace_file"]

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


def checksum(path: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
