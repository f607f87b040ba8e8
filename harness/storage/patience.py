"""Wait for a folder that cannot be written to for a while: read-only, full, or a server that does not answer."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from harness.core.errors import StoreError

__all__ = ["WAITS_S", "Patience"]

T = TypeVar("T")

WAITS_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds between the tries; one minute in all."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_AWAY = {errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN}
# Errors that pass when a disk is freed, a file system is mounted again, or a server returns.
_PASSING = _FULL | _AWAY | {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}


class Patience:
    """Repeats what could not be written, and says so once.

    Parameters
    ----------
    folder : folder that is written to, or address of a server, for the messages
    say : called once, when the first try fails
    waits_s : seconds to wait before each further try
    what : what is tried, for the messages
    """

    def __init__(
        self,
        folder: Path | str,
        say: Callable[[str], None],
        *,
        waits_s: Sequence[float] = WAITS_S,
        what: str = "write to",
    ) -> None:
        self._folder, self._say, self._waits_s, self._what = folder, say, tuple(waits_s), what
        self._said = False

    def __call__(self, write: Callable[[], T]) -> T:
        """Write, and try again while the folder is read-only, full or out of reach.

        Parameters
        ----------
        write : what is written; may be called several times, so that it must start anew
            each time

        Raises
        ------
        StoreError
            If the last try failed too.
        OSError
            If the error is none that passes, such as a missing file.
        """
        for wait_s in self._waits_s:
            try:
                return write()
            except OSError as error:
                if error.errno not in _PASSING:
                    raise
                self._announce(error)
                time.sleep(wait_s)
        try:
            return write()
        except OSError as error:
            if error.errno not in _PASSING:
                raise
            raise StoreError(
                f"cannot {self._what} {self._folder} ({_reason(error)}), also after {sum(self._waits_s):.0f} s. "
                f"Finished cells are kept; {_remedy(error)}, then repeat the command"
            ) from None

    def _announce(self, error: OSError) -> None:
        if not self._said:
            self._said = True
            self._say(
                f"cannot {self._what} {self._folder} ({_reason(error)}); the run waits and tries again for "
                f"{sum(self._waits_s):.0f} s"
            )


def _reason(error: OSError) -> str:
    usual = os.strerror(error.errno) if error.errno else ""
    return usual.lower() if error.strerror == usual else str(error.strerror or error)


def _remedy(error: OSError) -> str:
    if error.errno in _FULL:
        return "free space"
    return "check the connection and the server" if error.errno in _AWAY else "make it writable"
