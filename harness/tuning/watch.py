"""Threads of a worker that end its process: when the driver has died, and when a cell exceeds its time limit.

Neither can be done from within the computation, which may be inside of a library call that
never returns. A process can only be ended as a whole, so the cell that took too long is
noted first, in a file that the next worker of its job reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from harness.core.errors import CellError, StoreError
from harness.core.settings import RunSettings
from harness.pipeline.cell import Cell
from harness.storage.bucket import Bucket
from harness.storage.process import Process

__all__ = ["Deadline", "TimeLimit", "end_with", "time_limit_s"]

_EVERY_S = 1.0
_AGAIN_S = 10.0  # a component may catch the first error
_LEAST_S, _FACTOR = 600.0, 10.0  # of time_limit=auto
_NOTE_S = 10.0  # most that writing a note may take
_ENDED = 75  # exit code, EX_TEMPFAIL
_watched: set[Process] = set()  # a worker runs many jobs of one driver


def end_with(driver: Process) -> None:
    """End this process soon after the driver, even if the driver was killed and this process computes.

    Parameters
    ----------
    driver : process of the driver

    Notes
    -----
    Ray ends its workers gracefully if a driver dies, that is, after their computation.
    A driver on another machine, or in another container, cannot be seen from here and is
    left to Ray.
    """
    if driver in _watched or not driver.runs():
        return
    _watched.add(driver)

    def watch() -> None:
        while driver.runs():
            time.sleep(_EVERY_S)
        os._exit(_ENDED)

    threading.Thread(target=watch, name="driver", daemon=True).start()


def time_limit_s(settings: RunSettings, seconds: Mapping[str, float]) -> float | None:
    """Seconds that one cell may take, or ``None`` for no limit.

    Parameters
    ----------
    settings : settings of the run
    seconds : estimated seconds of each training with its dependent cells; without any,
        ``time_limit=auto`` is no limit
    """
    if settings.time_limit == "auto":
        return max(_LEAST_S, _FACTOR * max(seconds.values())) if seconds else None
    return None if settings.time_limit in ("off", math.inf) else 60 * float(settings.time_limit)


def _reason(seconds: float) -> str:
    return (
        f"it took longer than {seconds / 60:.3g} minutes (time_limit) and was ended; if it does not hang, set a longer "
        "time_limit=MINUTES"
    )


@dataclass(frozen=True)
class TimeLimit:
    """Ends this process, a worker, if a cell takes longer than a limit.

    Parameters
    ----------
    seconds : limit for each cell
    notes : folder or bucket for the notes on ended cells, which all workers can read and
        write; created if needed
    """

    seconds: float
    notes: Path | Bucket

    @contextlib.contextmanager
    def __call__(self, cell: Cell) -> Iterator[None]:
        """Limit the time of a ``with`` block.

        Raises
        ------
        CellError
            If an earlier attempt of this cell exceeded the limit.
        """
        if reason := self.failure_of(cell):
            raise CellError(reason)
        ended = threading.Event()

        def watch() -> None:
            if ended.wait(self.seconds):
                return
            # A server that does not answer may block the writer for ever.
            writer = threading.Thread(target=self._note, args=(cell,), name="note", daemon=True)
            writer.start()
            writer.join(_NOTE_S)
            os._exit(_ENDED)

        threading.Thread(target=watch, name="time limit", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def failure_of(self, cell: Cell) -> str:
        """Why an attempt of a cell was ended; empty if none was."""
        if isinstance(self.notes, Bucket):
            is_noted = cell.identity in self.notes.files()
        else:
            is_noted = (self.notes / cell.identity).exists()
        return _reason(self.seconds) if is_noted else ""

    def _note(self, cell: Cell) -> None:
        """Note that a cell took too long; without a note, it is tried again."""
        with contextlib.suppress(OSError, StoreError):
            if isinstance(self.notes, Bucket):
                dataclasses.replace(self.notes, waits_s=()).replace(cell.identity, b"")
            else:
                self.notes.mkdir(parents=True, exist_ok=True)
                (self.notes / cell.identity).touch()


@dataclass(frozen=True)
class Deadline:
    """Raises an error in this process if a cell takes longer than a limit; for ``ray=off``.

    Parameters
    ----------
    seconds : limit for each cell

    Notes
    -----
    The error is raised by a timer of the system, in the main thread only, between two
    steps of the interpreter: a library call that never returns is not ended. With Ray, it
    is.
    """

    seconds: float

    @contextlib.contextmanager
    def __call__(self, cell: Cell) -> Iterator[None]:
        """Limit the time of a ``with`` block.

        Raises
        ------
        CellError
            In the block, if it takes too long.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: FrameType | None) -> NoReturn:
            raise CellError(_reason(self.seconds))

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, self.seconds, _AGAIN_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
