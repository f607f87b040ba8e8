"""Waiting for a folder that cannot be written to for a while."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.core.errors import StoreError
from harness.storage import patience
from harness.storage.patience import WAITS_S, Patience


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits so far, which take no time."""
    found: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", found.append)
    return found


def failing(times: int, number: int) -> Callable[[], str]:
    """A function that raises an error of the system a few times."""
    left = [times]

    def write() -> str:
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return "written"

    return write


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EACCES])
def test_writing_is_repeated_and_said_once(number: int, waited: list[float]) -> None:
    """A folder that cannot be written to for a while is waited for; the user is told once."""
    said: list[str] = []
    patient = Patience(Path("/runs"), said.append)
    assert patient(failing(3, number)) == "written"
    assert patient(failing(1, number)) == "written"
    assert waited == [1.0, 2.0, 4.0, 1.0]
    reason = os.strerror(number).lower()
    assert said == [f"cannot write to /runs ({reason}); the run waits and tries again for 60 s"]


@pytest.mark.parametrize(("number", "remedy"), [(errno.ENOSPC, "free space"), (errno.EROFS, "make it writable")])
def test_waiting_ends_in_one_sentence(number: int, remedy: str, waited: list[float]) -> None:
    """After the last try, the error says where, why, for how long, what is kept and what to do."""
    reason = os.strerror(number).lower()
    with pytest.raises(
        StoreError,
        match=rf"cannot write to /runs \({reason}\), also after 60 s\. Finished cells are kept; {remedy}, then repeat",
    ):
        Patience(Path("/runs"), print)(failing(100, number))
    assert tuple(waited) == WAITS_S


def test_other_errors_are_raised_at_once(waited: list[float]) -> None:
    """A missing file or an error of the program is not waited for."""
    with pytest.raises(FileNotFoundError):
        Patience(Path("/runs"), pytest.fail)(failing(1, errno.ENOENT))
    with pytest.raises(ZeroDivisionError):
        Patience(Path("/runs"), pytest.fail)(lambda: 1 / 0)
    assert waited == []
