"""Paths of a request, made absolute when the request is read."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from urllib.parse import unquote

from harness.core.errors import RequestError
from harness.core.passwords import without_password

__all__ = [
    "absolute",
    "absolute_sqlite",
    "bucket_url",
    "check_encoding",
    "sqlite_path",
    "sqlite_uri",
]

# As pathlib writes s3://bucket, it is s3:/bucket; C:/ is a drive of Windows.
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_SQLITE = re.compile(r"(sqlite(?:\+\w+)?:///)([^?]+)(\?.*)?")


def absolute(path: str | Path, key: str = "a path") -> Path:
    """Make a path absolute, so that it does not depend on the working folder.

    Parameters
    ----------
    path : path as given by the user; ``~`` at its beginning is the home folder
    key : name of the option, for the error message

    Raises
    ------
    RequestError
        If it is a URI, refers to the home folder of an unknown user, or has bytes that
        are not text.
    """
    if "://" in str(path) or _URI.match(str(path)):
        raise RequestError(
            f"{key} must be a local path, got the URI {without_password(str(path))!r}; mount that storage first "
            "(NFS, s3fs, rclone mount) and give the folder"
        )
    if "\0" in str(path):
        raise RequestError(f"{key} must be a path, got {str(path)!r} with a null character")
    try:
        # Path("./~x") is Path("~x"), but only a path that begins with ~ names a home folder.
        found = (Path(path).expanduser() if str(path).startswith("~") else Path(path)).resolve()
    except RuntimeError:  # of expanduser
        raise RequestError(f"{key} must be a path, got {str(path)!r}: there is no such home folder") from None
    except OSError as error:  # such as a loop of links, or a name that is too long
        raise RequestError(f"{key} must be a path, got {str(path)!r}: {error.strerror}") from None
    check_encoding(str(found), key)
    return found


def bucket_url(text: str, key: str) -> str:
    """The address of a bucket, without a slash at its end; empty for anything else, such as a path.

    Parameters
    ----------
    text : value as given by the user
    key : name of the option, for the error message

    Raises
    ------
    RequestError
        If it begins with ``s3://``, but is no plain ``s3://BUCKET/PREFIX``.

    Notes
    -----
    Names of buckets have 3 to 63 lower-case letters, digits, dots and hyphens
    (https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html). Prefixes
    are limited to characters that need no encoding anywhere, because they are folders, too.
    """
    if not text.startswith("s3://"):
        return ""
    place = text.removeprefix("s3://").rstrip("/")
    found = f"s3://{place}"
    if "@" in found:
        raise RequestError(
            f"{key} must be s3://BUCKET/PREFIX without keys, got {without_password(found)}; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY"
        )
    bucket, *parts = place.split("/")
    if not _BUCKET.fullmatch(bucket) or not all(_PART.fullmatch(one) for one in parts):
        raise RequestError(
            f"{key} must be s3://BUCKET/PREFIX: a bucket of 3 to 63 lower-case letters, digits, dots and hyphens, and "
            f"parts of letters, digits, dots, hyphens and underscores that begin with no dot, got {found!r}"
        )
    return found


def check_encoding(text: str, what: str) -> None:
    """Refuse text from the command line or a file name that is not valid in the locale's encoding.

    Raises
    ------
    RequestError
        If it has bytes that Python could not decode; they cannot be written to any file.
    """
    if any("\udc80" <= one <= "\udcff" for one in text):
        raise RequestError(
            f"{what} must be valid {sys.getfilesystemencoding()} text, the encoding of this locale, got {text!a}; "
            "set PYTHONUTF8=1 if it is UTF-8, otherwise rename it"
        )


def sqlite_uri(path: Path) -> str:
    """URI of an SQLite database for SQLAlchemy, with ``%`` and ``?`` encoded.

    Notes
    -----
    An encoded URI also names the driver. Otherwise MLflow creates the folder of a
    ``sqlite:///`` URI without decoding it, so that a stray folder ``50%25`` appears
    next to ``50%``.
    """
    text = str(path)
    encoded = text.replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{encoded}" if encoded == text else f"sqlite+pysqlite:///{encoded}"


def absolute_sqlite(uri: str, key: str = "mlflow") -> str:
    """Make the path of an SQLite URI absolute; other URIs are returned unchanged."""
    found = _SQLITE.fullmatch(uri)
    if found is None or found[2].startswith("/") or sqlite_path(uri) is None:
        return uri
    return sqlite_uri(absolute(unquote(found[2]), key)) + (found[3] or "")


def sqlite_path(uri: str) -> Path | None:
    """File of an SQLite URI; None for other databases, servers and databases in memory."""
    found = _SQLITE.fullmatch(uri)
    if found is None or found[2].startswith((":memory:", "file:")):
        return None
    return Path(unquote(found[2]))
