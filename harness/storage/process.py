"""Processes of this machine, told apart from later ones with the same number."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Process", "machine", "start_of"]

_PROC = Path("/proc")
_STATE, _START = 0, 19  # fields of /proc/PID/stat behind the name of the program, proc_pid_stat(5)


@dataclass(frozen=True)
class Process:
    """A process of some machine.

    Parameters
    ----------
    pid : its number
    machine : where this number is valid, see :func:`machine`
    started : its start, see :func:`start_of`; with the others, it is unique
    """

    pid: int
    machine: str
    started: str

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process of this machine that has a number now."""
        return cls(pid, machine(), start_of(pid))

    @classmethod
    def current(cls) -> Process:
        """This process."""
        return cls.of(os.getpid())

    def runs(self) -> bool:
        """Whether the process runs, and can be seen from here; a zombie does not run."""
        return bool(self.started) and self.machine == machine() and self.started == start_of(self.pid)


def start_of(pid: int) -> str:
    """When a process started, as text that is only compared.

    Parameters
    ----------
    pid : number of a process of this machine

    Returns
    -------
    str
        Empty if the process has ended or is a zombie.

    Notes
    -----
    On Linux, these are the clock ticks since the start of the machine. The seconds since 1970 of
    psutil, which are used elsewhere, change with the clock of the system.
    """
    if not (_PROC / "self" / "stat").exists():
        return _start_by_psutil(pid)
    try:
        text = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    # The name of the program is in parentheses, and may have some itself.
    fields = text.rpartition(")")[2].split()
    return "" if fields[_STATE] in "ZX" else fields[_START]


def _start_by_psutil(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else repr(process.create_time())
    except psutil.NoSuchProcess:
        return ""


def machine() -> str:
    """The start of this machine and the namespace of process numbers; empty if unknown."""
    try:
        start = (_PROC / "sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{start} {(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""
