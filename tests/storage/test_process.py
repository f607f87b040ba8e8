"""Processes are told apart from later ones with the same number, whatever the clock does."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harness.storage import process
from harness.storage.process import Process


@pytest.fixture(params=["proc", "psutil"])
def source(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both sources of start times, of which the second is used where there is no ``/proc``."""
    if request.param == "psutil":
        monkeypatch.setattr(process, "_PROC", tmp_path)
    elif not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        yield started
        started.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="psutil for Linux")
@pytest.mark.parametrize("step_s", [-1, 1, 3600])
def test_a_step_of_the_clock_ends_no_process(step_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil adds the time at which the machine started, which moves with the clock."""
    current = Process.current()
    moved = psutil.boot_time() + step_s
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: moved)
    assert current.runs()


def test_number_of_another_process_is_another_process(source: None) -> None:
    """Numbers of processes are used again; the start tells them apart."""
    current = Process.current()
    assert current.runs() and not dataclasses.replace(current, started="0").runs()


def test_process_of_another_machine_is_not_seen(source: None) -> None:
    """The same number and start on another machine is another process."""
    assert not dataclasses.replace(Process.current(), machine="elsewhere").runs()


def test_zombie_does_not_run(source: None, child: subprocess.Popen[bytes]) -> None:
    """A process whose parent does not wait for it has ended."""
    found = Process.of(child.pid)
    assert found.runs()
    child.kill()
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    assert not found.runs() and not Process.of(child.pid).runs()


def test_ended_process_does_not_run(source: None, child: subprocess.Popen[bytes]) -> None:
    """Its number names no process any more."""
    found = Process.of(child.pid)
    child.kill()
    child.communicate()
    assert not found.runs() and Process.of(child.pid).started == ""


def test_name_of_a_program_may_have_parentheses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel writes it as it is; the fields are counted from behind it."""
    for name in ("self", "7"):
        (tmp_path / name).mkdir()
        fields = ("S", *map(str, range(4, 53)))
        (tmp_path / name / "stat").write_text(f"7 (a ) Z 1 (b) {' '.join(fields)}\n")
    monkeypatch.setattr(process, "_PROC", tmp_path)
    assert process.start_of(7) == "22"
