"""A small process beside the driver that ends the driver's own Ray if the driver dies.

Ray ties only its server processes to the driver. Its agents notice the death of their raylet
only after seconds, and then wait for the GCS, which is dead as well: they were still there
after ten seconds. A worker that computes ends after its computation. So the guard, which
nothing else depends on, notes which processes belong to the driver's Ray while the driver
lives, and kills them when it has died.

A process belongs to it if

- it is a child of the driver and runs a program of Ray's installation, or
- it descends from such a process, whatever it calls itself, or
- it runs a program of Ray's installation and names the session of such a process, which
  finds the ones that were started in the last second and whose parent is dead.

The Ray of another driver, a cluster to which the driver only connects, and the driver's other
children are none of these.

The module is run as a program, without the rest of the package: it must start fast, and must
not be affected by the working folder.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

__all__ = ["Family", "guarded"]

_EVERY_S = 0.5
_SHARE = 20.0  # one part of the time is used for scans
_LAST_S = 20.0  # most that ending the processes may take
_QUIET = 3  # scans in a row without a process of the family, after which there is none
_SESSION = re.compile(r"session_[0-9_-]+_[0-9]+")


@dataclass
class Family:
    """The processes of the Ray that a driver has started.

    Parameters
    ----------
    driver : number of the driver's process
    programs : folder of Ray's installation
    known : processes found so far, alive or dead; a number that is used again is another process
    sessions : names of their sessions
    """

    driver: int
    programs: str
    known: set[psutil.Process] = field(default_factory=set)
    sessions: set[str] = field(default_factory=set)

    def living(self, *, orphans: bool = False) -> set[psutil.Process]:
        """Find the processes that live now, also new ones.

        Parameters
        ----------
        orphans : whether to look for processes of known sessions whose parent is dead; this
            reads all command lines
        """
        parents = {one.pid: one for one in self.known if one.is_running()}
        # The folder of Ray is an argument of this process, too.
        others = [one for one in psutil.process_iter(["ppid"]) if one.pid not in (*parents, os.getpid())]
        for one in others:
            if one.info["ppid"] == self.driver or (orphans and self.sessions):
                parents |= {one.pid: one} if self._is_root(one) else {}
        generation = others
        while generation:
            generation = [one for one in others if one.pid not in parents and one.info["ppid"] in parents]
            parents |= {one.pid: one for one in generation}
        self.known = set(parents.values())
        return {one for one in self.known if _lives(one)}

    def _is_root(self, process: psutil.Process) -> bool:
        """Whether a process runs one of Ray's programs, and is a child of the driver or names a known session."""
        try:
            command = process.cmdline()
        except psutil.Error:
            return False
        if not any(part.startswith(self.programs) for part in command):
            return False
        names = set(_SESSION.findall(" ".join(command)))
        if process.info["ppid"] == self.driver:
            self.sessions |= names
            return True
        return bool(names & self.sessions)


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


@contextlib.contextmanager
def guarded(driver: int, programs: Path) -> Iterator[None]:
    """Run a guard during a ``with`` block, in which Ray is started and shut down.

    Parameters
    ----------
    driver : number of this process
    programs : folder of Ray's installation

    Notes
    -----
    The guard has its own process session, so that neither Ctrl-C nor the end of a terminal
    reaches it. At the end of the block it is terminated, and ends what Ray has left behind.
    """
    guard = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).resolve()), str(driver), f"{programs}/"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        cwd="/",
    )  # fmt: skip
    try:
        yield
    finally:
        guard.terminate()
        guard.wait()


def _end(family: Family) -> None:
    """Kill all processes of the family, and those that they start meanwhile."""
    until_s, quiet = time.monotonic() + _LAST_S, 0
    while quiet < _QUIET and time.monotonic() < until_s:
        living = family.living(orphans=True)
        for one in living:
            with contextlib.suppress(psutil.Error):
                one.kill()
        quiet = 0 if living else quiet + 1
        time.sleep(0.05)


def main(arguments: Sequence[str]) -> None:
    """Watch the driver until it dies or this process is terminated, then end its Ray."""
    stopped = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, stop)
    driver = psutil.Process(int(arguments[0]))
    family = Family(driver.pid, arguments[1])
    next_s = 0.0
    while not stopped and _lives(driver):
        if time.monotonic() >= next_s:
            used_s = time.process_time()
            family.living()
            next_s = time.monotonic() + _SHARE * (time.process_time() - used_s)  # on machines with many processes
        time.sleep(_EVERY_S)
    _end(family)


if __name__ == "__main__":
    main(sys.argv[1:])
