"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

__all__ = ["PART", "checksum", "replace_file"]

PART = ".part-"
"""How the name of a file begins that is not whole yet; what a killed process left of them may be removed."""


def replace_file(path: Path, content: str | bytes | memoryview, *, durable: bool = True) -> None:
    """Put a file in place in one step: whoever reads meanwhile sees the old one or the new one.

    Parameters
    ----------
    path : the file; its folder is made if needed
    content : text is written as UTF-8, line ends as they are
    durable : wait until it is on the disk, so that it outlives a loss of power;
        what can be made again need not
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
    """SHA-256 of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
