"""A secret key in a file that only its owner can read."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import sys
import uuid
from pathlib import Path

from harness.core.errors import RequestError
from harness.storage.files import PART

__all__ = ["create_secret", "secret_key"]

_BYTES = 32


def secret_key(path: Path) -> bytes:
    """The key in a file, which is created with mode 0600 if there is none.

    Parameters
    ----------
    path : the file: one line of 64 hexadecimal digits

    Returns
    -------
    bytes
        32 bytes.

    Raises
    ------
    RequestError
        If other users can read the file, or it holds no key.
    """
    if not path.exists():
        create_secret(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if sys.platform != "win32" and mode & 0o077:
        raise RequestError(f"{path} must be readable by its owner only, but its mode is {mode:04o}; chmod 600 it")
    text = path.read_text("ascii", "replace").strip()
    if not re.fullmatch(rf"[0-9a-f]{{{2 * _BYTES}}}", text):
        raise RequestError(
            f"{path} must hold a key of {2 * _BYTES} hexadecimal digits; restore it from a copy or, if new pseudonyms "
            "may be given to all subjects, delete it"
        )
    return bytes.fromhex(text)


def create_secret(path: Path) -> None:
    """Create a file of 64 random hexadecimal digits with mode 0600; if another process is faster, its file is kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{PART}{uuid.uuid4().hex}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{secrets.token_hex(_BYTES)}\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(part, path)  # unlike a renamed file, a link replaces nothing
    finally:
        part.unlink(missing_ok=True)
