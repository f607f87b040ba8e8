"""One run at a time for each output folder."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from harness.storage import lock
from harness.storage.lock import LOCK, holder_of, only_run

HOLDER = """
import sys, time
from pathlib import Path
from harness.storage.lock import only_run
with only_run(Path(sys.argv[1]), "harness run task=first", say=print):
    print("held", flush=True)
    time.sleep(600)
"""


def held_by_another(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lock of a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_second_run_says_who_holds_the_folder_and_waits(tmp_path: Path) -> None:
    """The second run names the first, waits until it has ended, and then holds the folder."""
    first = held_by_another(tmp_path)
    said: list[str] = []
    waits, entered = threading.Event(), threading.Event()

    def say(text: str) -> None:
        said.append(text)
        waits.set()

    def second() -> None:
        with only_run(tmp_path, "harness run task=second", say=say):
            entered.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert waits.wait(60) and not entered.is_set()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    thread.join(60)
    assert entered.is_set()
    (sentence,) = said
    assert f"waiting for another run in {tmp_path}: harness run task=first (process {first.pid} on" in sentence
    assert f"on {socket.gethostname()}, since 20" in sentence and "out=DIR" in sentence


def test_lock_of_a_killed_run_is_free(tmp_path: Path) -> None:
    """After SIGKILL the file still names the run, but does not keep the next one waiting."""
    first = held_by_another(tmp_path)
    first.kill()
    first.communicate()
    assert holder_of(tmp_path) is not None
    said: list[str] = []
    with only_run(tmp_path, "harness run task=next", say=said.append):
        holder = holder_of(tmp_path)
        assert holder is not None and (holder.pid, holder.command) == (os.getpid(), "harness run task=next")
    assert said == [] and holder_of(tmp_path) is None


def test_lock_is_released_after_an_error(tmp_path: Path) -> None:
    """An error in the run releases the folder, which is created if needed."""
    folder = tmp_path / "a" / "b"
    with pytest.raises(ZeroDivisionError), only_run(folder, "first", say=print):
        raise ZeroDivisionError
    with only_run(folder, "second", say=pytest.fail):
        pass


def test_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has no locks, the run continues and says what the user must see to."""

    def flock(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    said: list[str] = []
    with only_run(tmp_path, "harness run", say=said.append):
        pass
    assert said == [
        f"{tmp_path} is on a file system without locks: make sure that no other run uses it at the same time"
    ]


def test_unexpected_error_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that does not mean that the lock is held is raised instead of waiting for ever."""

    def flock(file: object, how: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"), only_run(tmp_path, "harness run", say=print):
        pass


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": 1}'])
def test_unreadable_content_names_nobody(tmp_path: Path, content: str) -> None:
    """The content of the file is for people: whatever is in it, it is no error."""
    (tmp_path / LOCK).write_text(content)
    assert holder_of(tmp_path) is None
