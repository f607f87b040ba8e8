"""One run at a time for each output folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

__all__ = ["LOCK", "Holder", "holder_of", "only_run"]

LOCK = "running.lock"
"""File in the output folder that a run locks."""

_PAUSE_S = 0.5
# File systems without locks: NFS mounted with nolock, some FUSE file systems.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
# What a server answers if a lock is held and it does not implement waiting.
_HELD = {errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK}


@dataclass(frozen=True)
class Holder:
    """The run that holds a lock.

    Parameters
    ----------
    pid : its process
    host : name of the machine on which it runs
    since : start time, ISO 8601 with the offset to UTC
    command : its command line
    """

    pid: int
    host: str
    since: str
    command: str

    def __str__(self) -> str:
        return f"{self.command} (process {self.pid} on {self.host}, since {self.since})"


def holder_of(folder: Path) -> Holder | None:
    """The run that last locked a folder, or ``None`` if it has ended or is unknown."""
    try:
        return Holder(**json.loads((folder / LOCK).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@contextlib.contextmanager
def only_run(folder: Path, command: str, *, say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other run uses an output folder, and keep others waiting during a ``with`` block.

    Two runs would compute the same cells twice, and would open two MLflow runs for one
    configuration. The second run finds the cells of the first in the store.

    Parameters
    ----------
    folder : the output folder; created if needed
    command : command line of this run, shown to those that wait
    say : called once if another run is waited for, or if the folder cannot be locked

    Notes
    -----
    The lock is ``flock`` on the file :data:`LOCK`. The system releases it when the
    process ends, however it ends, so that no stale lock remains; the content of the file
    is for people only. On NFS, Linux passes ``flock`` to the server as a lock of the whole
    file, which holds between machines if the share is mounted with locks (the default;
    not with ``nolock`` or ``local_lock=flock``). After a machine crashed, its lock is
    released once the server notices, for NFSv4 after the lease time of about 90 seconds.
    Without locks, the run continues with a warning.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        if not _lock(file, folder, say):
            yield
            return
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        _write(file, json.dumps(asdict(Holder(os.getpid(), socket.gethostname(), since, command))))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # the content is for people only
                _write(file, "")


def _lock(file: IO[str], folder: Path, say: Callable[[str], None]) -> bool:
    """Lock a file, waiting if necessary; ``False`` if the file system has no locks."""
    said = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                say(f"{folder} is on a file system without locks: make sure that no other run uses it at the same time")
                return False
            if error.errno not in _HELD:
                raise
        else:
            return True
        if not said and (holder := holder_of(folder)) is not None:  # None while it is being written
            said = True
            say(f"waiting for another run in {folder}: {holder}. Its results will be used; out=DIR runs at once")
        time.sleep(_PAUSE_S)


def _write(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
