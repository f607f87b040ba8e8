"""What the guard ends when a driver dies, and what it leaves alone."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harness.tuning.guard import Family, guarded

SERVER = """
import subprocess, sys, time
rest = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", rest], start_new_session=True)
time.sleep(600)
"""

# A driver under guard, with a server of its own that has a child, and with another child.
DRIVER = """
import os, subprocess, sys, time
from pathlib import Path
from harness.tuning.guard import guarded
programs = Path(sys.argv[1])
with guarded(os.getpid(), programs):
    subprocess.Popen([sys.executable, str(programs / "server.py"), "--session=session_2026-01-02_03-04-05_6_7"])
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    if sys.argv[2] == "stay":
        time.sleep(600)
    input()
"""


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder in the place of Ray's installation."""
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "server.py").write_text(SERVER)
    return tmp_path / "ray"


@pytest.fixture
def stranger(programs: Path) -> Iterator[psutil.Popen]:
    """A process of the same installation that belongs to another driver."""
    process = psutil.Popen([sys.executable, str(programs / "server.py"), "--session=session_2026-01-02_03-04-05_6_8"])
    until(lambda: len(process.children()) == 1)
    yield process
    for one in (*process.children(), process):
        one.kill()
    process.wait()


def until(holds: object) -> None:
    """Wait until a function returns true."""
    assert callable(holds)
    for _ in range(600):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("the state was not reached in a minute")


def running(process: psutil.Process) -> bool:
    """Whether a process runs and is no zombie."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("end", ["killed", "left"])
def test_only_the_drivers_own_ray_is_ended(programs: Path, stranger: psutil.Popen, end: str) -> None:
    """A server and its child end with a killed driver, and at the end of the block; nothing else does."""
    driver = psutil.Popen(
        [sys.executable, "-c", DRIVER, str(programs), "stay" if end == "killed" else "leave"], stdin=subprocess.PIPE
    )
    until(lambda: len(driver.children(recursive=True)) == 4)
    (guard,) = (one for one in driver.children() if "guard.py" in " ".join(one.cmdline()))
    (server,) = (one for one in driver.children() if str(programs / "server.py") in one.cmdline())
    (other,) = (one for one in driver.children() if one not in (guard, server))
    (child,) = server.children()
    try:
        time.sleep(2.0)  # for scans, of which there are two per second
        if end == "killed":
            driver.send_signal(signal.SIGKILL)
        driver.communicate(b"\n")
        until(lambda: not running(guard))
        assert not running(server) and not running(child)
        assert running(other) and running(stranger) and running(stranger.children()[0])
    finally:
        for one in (server, child, other):
            if running(one):
                one.kill()


def test_process_of_a_known_session_is_found_without_its_parent(programs: Path, stranger: psutil.Popen) -> None:
    """A process that was started after the last scan, and whose parent is dead, is known by its session."""
    family = Family(2**22 + 1, f"{programs}/")
    assert family.living(orphans=True) == set()
    family.sessions.add("session_2026-01-02_03-04-05_6_8")
    assert family.living() == set()
    assert {one.pid for one in family.living(orphans=True)} == {stranger.pid, stranger.children()[0].pid}


def test_reader_of_a_log_does_not_belong_to_ray(programs: Path, tmp_path: Path) -> None:
    """A command that names the session, but is no program of Ray, is left alone."""
    family = Family(2**22 + 1, f"{programs}/", sessions={"session_2026-01-02_03-04-05_6_9"})
    reader = [sys.executable, "-c", "input()", "/tmp/ray/session_2026-01-02_03-04-05_6_9/logs/raylet.out"]
    with subprocess.Popen(reader, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert family.living(orphans=True) == set()
        process.kill()


def test_block_that_raises_ends_its_guard(programs: Path) -> None:
    """The guard does not outlive the block."""
    before = set(psutil.Process().children())
    with pytest.raises(ValueError, match="in the block"), guarded(psutil.Process().pid, programs):
        (guard,) = set(psutil.Process().children()) - before
        raise ValueError("in the block")
    assert not guard.is_running()
