"""One run at a time for each bucket: a lock that its owner renews, and that ends when it does not."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime

from harness.core.errors import StoreError
from harness.storage.bucket import Bucket
from harness.storage.lock import LOCK, Holder
from harness.storage.process import Process, machine

__all__ = ["EXPIRES_S", "Lease", "leased"]

EXPIRES_S = 60.0
"""Seconds after which a lock that was not renewed is free."""

_RENEWED_S = 10.0
_PAUSE_S = 2.0


@dataclass(frozen=True)
class _Owner:
    """Content of the lock.

    Parameters
    ----------
    token : random, new for each run
    count : number of renewals, so that the entity tag changes with each
    machine, started : of its :class:`~harness.storage.process.Process`
    holder : what is shown to those that wait
    """

    token: str
    count: int
    machine: str
    started: str
    holder: Holder

    @classmethod
    def of_this_process(cls, command: str) -> _Owner:
        since = datetime.now().astimezone().isoformat(" ", "seconds")
        holder = Holder(os.getpid(), socket.gethostname(), since, command)
        process = Process.current()
        return cls(secrets.token_hex(16), 0, process.machine, process.started, holder)

    @classmethod
    def read(cls, content: bytes) -> _Owner | None:
        """The owner in a lock; ``None`` if it is free or cannot be read."""
        try:
            found = json.loads(content)
            return cls(**{**found, "holder": Holder(**found["holder"])})
        except (ValueError, TypeError, KeyError):
            return None

    def written(self, count: int) -> bytes:
        return json.dumps({**asdict(self), "count": count}).encode()

    @property
    def has_ended(self) -> bool:
        """Whether this is a process of this machine that has ended; others cannot be seen from here."""
        process = Process(self.holder.pid, self.machine, self.started)
        return bool(self.machine) and self.machine == machine() and not process.runs()


class Lease:
    """A lock in a bucket that is held and renewed by this process."""

    def __init__(self, bucket: Bucket, owner: _Owner, tag: str) -> None:
        self._bucket, self._owner, self._tag = bucket, owner, tag
        self._count, self._lost = 0, ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lock of the bucket", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise an error if another run has taken the lock.

        Raises
        ------
        StoreError
            If this run could not renew its lock for a while, for example because the machine
            slept, and another one has started.
        """
        if self._lost:
            raise StoreError(self._lost)

    def release(self) -> None:
        """Free the lock for the next run."""
        self._ended.set()
        self._thread.join()
        if not self._lost:
            with contextlib.suppress(StoreError):  # it expires in any case
                self._bucket.swap(LOCK, b"", self._tag)

    def _renew(self) -> None:
        while not self._ended.wait(_RENEWED_S):
            self._count += 1
            content = self._owner.written(self._count)
            try:
                tag = self._bucket.swap(LOCK, content, self._tag)
                if tag is None:
                    found, tag = _read(self._bucket)
                    other = _Owner.read(found)
                    # It is its own if the answer to an earlier try, or to an earlier renewal, was lost.
                    if other is None or other.token != self._owner.token:
                        self._lost = _lost_to(self._bucket, other)
                        return
            except StoreError:
                continue  # out of reach, as for all other calls, which say so
            self._tag = tag


@contextlib.contextmanager
def leased(bucket: Bucket, command: str, *, say: Callable[[str], None]) -> Iterator[Lease]:
    """Wait until no other run uses a bucket, and keep others waiting during a ``with`` block.

    Parameters
    ----------
    bucket : bucket and prefix of the output
    command : command line of this run, shown to those that wait
    say : called once if another run is waited for

    Raises
    ------
    StoreError
        If the bucket cannot be used.

    Notes
    -----
    The lock is the object :data:`~harness.storage.lock.LOCK`. It is created on condition
    that there is none, and renewed every 10 s on condition that it is unchanged. Whoever
    waits takes it over, on the same condition, if it has not changed for
    :data:`EXPIRES_S` seconds of the clock of the one that waits, so that clocks need not
    agree; or at once, if its owner was a process of this machine that has ended.

    If an owner cannot renew for longer, another run may start. Both write cells on
    condition that there are none, so results are not damaged; the first run ends with
    its next cell, see :meth:`Lease.check`.
    """
    owner = _Owner.of_this_process(command)
    lease = Lease(bucket, owner, _acquire(bucket, owner, say))
    try:
        yield lease
    finally:
        lease.release()


def _acquire(bucket: Bucket, owner: _Owner, say: Callable[[str], None]) -> str:
    """Wait for the lock; its entity tag."""
    content, said = owner.written(0), False
    seen, since = "", time.monotonic()
    while True:
        if bucket.create(LOCK, content):
            return _read(bucket)[1]
        found, tag = _read(bucket)
        if not tag:
            continue  # deleted since then
        if found == content:
            return tag  # the answer to the first try was lost
        if tag != seen:
            seen, since = tag, time.monotonic()
        other = _Owner.read(found)
        if other is None or other.has_ended or time.monotonic() - since > EXPIRES_S:
            taken = bucket.swap(LOCK, content, tag)
            if taken is not None:
                return taken
            continue
        if not said:
            said = True
            say(
                f"waiting for another run in {bucket}: {other.holder}. Its results will be used; "
                f"if it was killed, its lock ends within {EXPIRES_S:.0f} s"
            )
        time.sleep(_PAUSE_S)


def _read(bucket: Bucket) -> tuple[bytes, str]:
    try:
        return bucket.read_tagged(LOCK)
    except FileNotFoundError:
        return b"", ""


def _lost_to(bucket: Bucket, other: _Owner | None) -> str:
    who = f"another run has taken it over: {other.holder}" if other else "it was removed"
    return (
        f"the lock of {bucket} could not be renewed for {EXPIRES_S:.0f} s, and {who}. Finished cells are kept; repeat "
        "the command once that run has ended"
    )
