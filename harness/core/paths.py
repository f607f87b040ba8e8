"""Paths of a request, made absolute once, when the request is read."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from harness.core.errors import RequestError

__all__ = ["absolute", "absolute_sqlite", "sqlite_uri"]

_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)([^?]+)(\?.*)?")


def absolute(path: str | Path, key: str = "a path") -> Path:
    """A path that means the same in every thread, process and working folder.

    Parameters
    ----------
    path : as the user gives it; ``~`` is the home folder, and a relative path
        starts in the working folder
    key : the option that it is the value of, for the error

    Raises
    ------
    RequestError
        If it is a URI, or starts with the home folder of an unknown user.
    """
    if "://" in str(path):
        raise RequestError(f"{key} must be a path on this machine, got the address {str(path)!r}; mount it here")
    try:
        return Path(path).expanduser().resolve()
    except RuntimeError:  # of expanduser
        raise RequestError(f"{key} must be a path, got {str(path)!r}: no user of this name has a home folder") from None


def sqlite_uri(path: Path) -> str:
    """The URI of an SQLite database for SQLAlchemy, which decodes ``%`` and ends the path at ``?``.

    Notes
    -----
    Where something is encoded the driver is named as well: MLflow makes the
    folder of a ``sqlite:///`` URI without decoding it, and a stray folder
    ``50%25`` would appear beside ``50%``.
    """
    text = str(path)
    encoded = text.replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{encoded}" if encoded == text else f"sqlite+pysqlite:///{encoded}"


def absolute_sqlite(uri: str) -> str:
    """An SQLite URI with an absolute path; any other address is returned as it is."""
    found = _SQLITE.fullmatch(uri)
    if found is None or found[2].startswith(("/", ":memory:", "file:")):
        return uri
    return sqlite_uri(absolute(unquote(found[2]), "mlflow")) + (found[3] or "")
