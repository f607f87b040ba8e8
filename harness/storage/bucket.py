"""An object store as the place of results: ``s3://BUCKET/PREFIX``.

The library is obstore, Python's interface to the Rust crate object_store. Endpoint and
keys come from the usual environment variables (``AWS_ENDPOINT_URL``,
``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_SESSION_TOKEN``, ``AWS_REGION``)
or from the role of the machine. Nothing here keeps them: what is sent to workers is the
address alone, and each node has its own environment.

Source: https://developmentseed.org/obstore/latest/api/store/aws/; conditional writes of
S3, https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-requests.html
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import secrets
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from harness.core.errors import RequestError, StoreError
from harness.storage.files import PART
from harness.storage.patience import WAITS_S, Patience

if TYPE_CHECKING:
    from obstore.store import S3Store

__all__ = ["INSTALL", "Bucket", "has_extra"]

T = TypeVar("T")

INSTALL = "pip install -c constraints.txt -e '.[s3]'"
"""Command that installs the extra."""

_CODE = re.compile(r"<Code>(\w+)</Code>")
_KEYS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN of temporary keys)"
# Answers of S3 to keys that it does not know; all other refusals are missing rights.
_BAD_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
_OTHER_REGION = {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
# Addresses from which object_store asks for the role of a machine or container, if the environment has no keys.
_ROLES = ("169.254.169.254", "169.254.170.2", "169.254.170.23")
# What passes: no connection, no answer in time, a server that is overloaded or starts.
_AWAY = re.compile(r"error sending request|HTTP error|timed out|status code: (5(?!01)\d\d|429|408)")
_CONFLICTS, _CONFLICT_S = 10, 0.2
# Of one try, and of the tries of the library itself, which say nothing.
_CONNECT, _TRANSFER, _AT_ONCE = timedelta(seconds=5), timedelta(seconds=120), timedelta(seconds=20)


def has_extra() -> bool:
    """Whether the packages of the extra ``s3`` are installed."""
    return importlib.util.find_spec("obstore") is not None


def _silent(text: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Bucket:
    """Objects below a prefix of a bucket, by their names relative to it.

    Parameters
    ----------
    url : ``s3://BUCKET`` or ``s3://BUCKET/PREFIX``, without a slash at the end
    say : called once, when the server cannot be reached; not sent to workers
    waits_s : seconds to wait before each further try

    Raises
    ------
    RequestError
        If the extra is not installed.

    Notes
    -----
    Every call waits while the server cannot be reached, as
    :class:`~harness.storage.patience.Patience` does for folders, and then raises
    ``StoreError`` with one sentence. A refusal (no such bucket, no right, wrong keys)
    does not pass, and raises ``StoreError`` at once.
    """

    url: str
    say: Callable[[str], None] = field(default=_silent, compare=False, repr=False)
    waits_s: tuple[float, ...] = field(default=WAITS_S, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not has_extra():
            raise RequestError(f"out={self.url} needs the extra s3, which is not installed: {INSTALL}")
        if (endpoint := _endpoint()) and not re.match(r"https?://[^/\s]+", endpoint):
            raise RequestError(
                f"AWS_ENDPOINT_URL must be http://HOST:PORT or https://HOST, got {endpoint!r}; correct it"
            )

    def __str__(self) -> str:
        return self.url

    def __reduce__(self) -> tuple[type[Bucket], tuple[str]]:
        """Send the address alone to other processes: neither keys nor the function ``say``."""
        return Bucket, (self.url,)

    def below(self, folder: str) -> Bucket:
        """The objects below a further prefix."""
        return Bucket(f"{self.url}/{folder}", self.say, self.waits_s)

    def read(self, name: str) -> bytes:
        """Content of an object.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """
        import obstore

        return self._patiently(lambda: bytes(obstore.get(self._client, name).bytes()))

    def read_tagged(self, name: str) -> tuple[bytes, str]:
        """Content of an object and its entity tag, which changes with the content.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """
        import obstore

        def get() -> tuple[bytes, str]:
            found = obstore.get(self._client, name)
            return bytes(found.bytes()), str(found.meta["e_tag"])

        return self._patiently(get)

    def replace(self, name: str, content: bytes | Path) -> None:
        """Write an object, or replace it; readers see either the old or the new content.

        Parameters
        ----------
        name : name of the object
        content : content, or the file that has it; large files are sent in parts
        """
        import obstore

        self._patiently(lambda: obstore.put(self._client, name, content))

    def create(self, name: str, content: bytes) -> bool:
        """Write an object unless there is one; of several writers, one succeeds.

        Returns
        -------
        bool
            Whether it was written. If the connection is lost before the answer arrives,
            the second try finds the object of the first; so whoever must know compares
            the content.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        def put() -> bool:
            for _ in range(_CONFLICTS):
                try:
                    obstore.put(self._client, name, content, mode="create")
                    return True
                except AlreadyExistsError:
                    # S3 also refuses while another writer, which may fail, is not ready (ConditionalRequestConflict).
                    with contextlib.suppress(FileNotFoundError):
                        obstore.head(self._client, name)
                        return False
                    time.sleep(_CONFLICT_S)
            raise OSError(errno.ETIMEDOUT, f"{self._where()} refuses {name}, but has none")

        return self._patiently(put)

    def swap(self, name: str, content: bytes, tag: str) -> str | None:
        """Replace an object if it still has the entity tag; its new tag, or ``None`` if it has changed."""
        import obstore
        from obstore.exceptions import PreconditionError

        def put() -> str | None:
            try:
                return str(obstore.put(self._client, name, content, mode={"e_tag": tag})["e_tag"])
            except (PreconditionError, FileNotFoundError):
                return None

        return self._patiently(put)

    def delete(self, *names: str) -> None:
        """Delete objects, if they exist."""
        import obstore

        def delete() -> None:
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    obstore.delete(self._client, name)

        self._patiently(delete)

    def files(self, folder: str = "") -> Mapping[str, int]:
        """Sizes in bytes of all objects below a folder, by name, sorted."""
        import obstore

        def collect() -> dict[str, int]:
            found = obstore.list(self._client, folder or None).collect()
            return {one["path"]: one["size"] for one in sorted(found, key=lambda one: one["path"])}

        return self._patiently(collect)

    def written(self, name: str) -> int:
        """Time at which an object was written, in nanoseconds since 1970, whole seconds.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """
        import obstore

        return self._patiently(lambda: int(obstore.head(self._client, name)["last_modified"].timestamp()) * 10**9)

    def download(self, name: str, path: Path) -> None:
        """Write an object to a file, atomically; its folder is created if needed.

        Raises
        ------
        FileNotFoundError
            If there is no such object.
        """
        import obstore

        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{PART}{uuid.uuid4().hex}")

        def fetch() -> None:
            with part.open("wb") as file:
                for piece in obstore.get(self._client, name):
                    file.write(piece)

        try:
            self._patiently(fetch)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def check(self) -> None:
        """Check before anything is computed that results can be written and read back; nothing is left there.

        Raises
        ------
        RequestError
            If the bucket cannot be reached, read or written, or the server does not honour
            conditional writes, without which two writers could overwrite each other.
        """
        name, content = f"check-{secrets.token_hex(8)}", secrets.token_bytes(16)
        try:
            self.create(name, content)
            try:
                if self.read(name) != content:
                    raise RequestError(
                        f"out={self.url} must return what was written to it, but {self._where()} returns something "
                        "else; use another server, or a local folder"
                    )
                if self.create(name, b"again") or self.swap(name, b"again", '"none"') is not None:
                    raise RequestError(
                        f"out={self.url} must be on a server that honours conditional writes (If-None-Match, "
                        f"If-Match), but {self._where()} overwrites objects in spite of them, so that two runs could "
                        "damage each other's results; use another server, or a local folder"
                    )
            finally:
                self.delete(name)
        except StoreError as error:
            raise RequestError(str(error)) from None

    @cached_property
    def _client(self) -> S3Store:
        from obstore.store import S3Store

        endpoint = _endpoint()
        return S3Store.from_url(
            self.url,
            config={"endpoint": endpoint} if endpoint else None,
            client_options={
                "allow_http": endpoint.startswith("http://"),
                "connect_timeout": _CONNECT,
                "timeout": _TRANSFER,
            },
            retry_config={"max_retries": 2, "retry_timeout": _AT_ONCE},
        )

    @cached_property
    def _patience(self) -> Patience:
        return Patience(self.url, self.say, waits_s=self.waits_s, what="use")

    def _patiently(self, call: Callable[[], T]) -> T:
        def attempt() -> T:
            with self._understood():
                return call()

        return self._patience(attempt)

    @contextlib.contextmanager
    def _understood(self) -> Iterator[None]:
        """Translate errors of obstore: ``OSError`` with ``ETIMEDOUT`` for what passes, ``StoreError`` otherwise.

        The text of the library is not repeated, because servers may answer with parts of
        the request.
        """
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        bucket = self.url.removeprefix("s3://").partition("/")[0]
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise StoreError(
                    f"there is no bucket {bucket} at {self._where()}; create it, or correct out={self.url}"
                ) from None
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.url) from None
        except (PermissionDeniedError, UnauthenticatedError, BaseError, PermissionError) as error:
            text, code = str(error), _code(error)
            if any(address in text for address in _ROLES):
                raise StoreError(
                    f"there are no keys for {self.url}: neither in the environment nor as a role of this machine; "
                    f"{_KEYS}. Keys in ~/.aws are not read: "
                    'eval "$(aws configure export-credentials --format env)"'
                ) from None
            if code in _BAD_KEYS:
                raise StoreError(f"{self._where()} does not accept the keys for {self.url} ({code}); {_KEYS}") from None
            if not isinstance(error, BaseError) or isinstance(error, PermissionDeniedError | UnauthenticatedError):
                raise StoreError(
                    f"access to {self.url} is denied ({code or 'forbidden'}); these keys need the rights to list the "
                    "bucket and to get, put and delete objects below this prefix (s3:ListBucket, GetObject, PutObject, "
                    "DeleteObject)"
                ) from None
            if code in _OTHER_REGION or "incorrectly configured region" in text:
                raise StoreError(
                    f"the bucket {bucket} is in another region than AWS_REGION={_region()}; set AWS_REGION"
                ) from None
            if _AWAY.search(text):
                raise OSError(errno.ETIMEDOUT, f"{self._where()} does not answer") from None
            raise StoreError(
                f"{self._where()} answers a request for {self.url} as no S3 server does "
                f"({code or text.partition('Debug source')[0].rpartition(' - ')[2].strip()}); correct AWS_ENDPOINT_URL"
            ) from None

    def _where(self) -> str:
        endpoint = _endpoint()
        if not endpoint:
            return f"AWS in {_region()} (AWS_ENDPOINT_URL is not set)"
        return re.sub(r"//[^/@]*@", "//", endpoint)


def _code(error: BaseException) -> str:
    found = _CODE.search(str(error))
    return found[1] if found else ""


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
