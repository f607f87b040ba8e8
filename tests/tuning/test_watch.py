"""The end of workers whose driver has died, and of cells that take too long."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from harness.core.errors import CellError, OutOfRange
from harness.core.settings import RunSettings, settings_from
from harness.pipeline.cell import Cell, Job
from harness.storage.bucket import Bucket
from harness.storage.patience import Patience
from harness.storage.process import Process
from harness.storage.store import CellRecord, Store
from harness.sweep.grammar import parse
from harness.sweep.request import resolve
from harness.tuning.jobs import _record_death
from harness.tuning.watch import Deadline, TimeLimit, end_with, time_limit_s

CELL = Cell("train", "abc", "", "configuration", 0, 0)

# A driver, and a worker in the middle of a computation.
PAIR = """
import subprocess, sys, time
from harness.storage.process import Process
driver = Process.current()
worker = subprocess.Popen([sys.executable, "-c", '''
import sys, time
from harness.storage.process import Process
from harness.tuning.watch import end_with
end_with(Process(int(sys.argv[1]), *sys.argv[2:]))
print("watching", flush=True)
time.sleep(600)
''', str(driver.pid), driver.machine, driver.started], stdout=subprocess.PIPE, text=True)
assert worker.stdout.readline() == "watching\\n"
print(worker.pid, flush=True)
time.sleep(600)
"""

HANGING = """
import sys, time
from pathlib import Path
from harness.pipeline.cell import Cell
from harness.tuning.watch import TimeLimit
with TimeLimit(0.2, Path(sys.argv[1])) (Cell("train", "abc", "", "configuration", 0, 0)):
    time.sleep(600)
"""


def test_worker_ends_after_its_driver_was_killed() -> None:
    """A worker that computes ends by itself after SIGKILL of the driver."""
    driver = subprocess.Popen([sys.executable, "-c", PAIR], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    worker = psutil.Process(int(driver.stdout.readline()))
    assert worker.is_running()
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    worker.wait(timeout=60)


def test_driver_that_cannot_be_seen_is_not_watched() -> None:
    """A driver in another container has no process here; this worker would end at once."""
    driver, before = Process.current(), threading.active_count()
    end_with(Process(driver.pid, "elsewhere", driver.started))
    assert threading.active_count() == before


def test_hanging_worker_is_ended_and_its_next_attempt_fails(tmp_path: Path) -> None:
    """A worker that hangs is ended; the next attempt of the cell raises the reason instead of hanging again."""
    done = subprocess.run([sys.executable, "-c", HANGING, str(tmp_path / "ended")], timeout=60, check=False)
    assert done.returncode == 75
    limit = TimeLimit(0.2, tmp_path / "ended")
    with pytest.raises(CellError, match=r"took longer than 0\.00333 minutes \(time_limit\) and was ended; if it does"):
        limit(CELL).__enter__()
    assert "took longer" in limit.failure_of(CELL)
    assert limit.failure_of(Cell("predict", "def", "", "configuration", 0, 0)) == ""


def test_notes_are_objects_where_nodes_share_no_folder(s3_url: str) -> None:
    """The worker that is ended leaves its note in the bucket, where the next attempt finds it."""
    script = HANGING.replace("Path(sys.argv[1])", "Bucket(sys.argv[1])")
    script = script.replace("from pathlib import Path", "from harness.storage.bucket import Bucket")
    done = subprocess.run([sys.executable, "-c", script, s3_url], timeout=60, check=False)
    assert done.returncode == 75 and list(Bucket(s3_url).files()) == [CELL.identity]
    with pytest.raises(CellError, match="took longer"):
        TimeLimit(0.2, Bucket(s3_url))(CELL).__enter__()


def test_hanging_worker_is_ended_even_if_its_note_hangs(tmp_path: Path) -> None:
    """A folder on a server that does not answer any more blocks whoever writes to it."""
    blocked = "from harness.tuning import watch\nwatch._NOTE_S = 0.2\n"
    blocked += "watch.TimeLimit._note = lambda self, cell: time.sleep(600)\nwith TimeLimit"
    script = HANGING.replace("with TimeLimit", blocked)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "ended")], timeout=60, check=False)
    assert done.returncode == 75


def test_cell_within_its_limit_leaves_nothing(tmp_path: Path) -> None:
    """A cell that ends in time leaves no note and no thread."""
    before = threading.active_count()
    with TimeLimit(60, tmp_path / "ended")(CELL):
        assert threading.active_count() == before + 1
    while threading.active_count() > before:
        time.sleep(0.01)
    assert not (tmp_path / "ended").exists()


def test_reason_of_a_job_that_was_ended_each_time(tmp_path: Path) -> None:
    """If the limit ended a worker for the third time, the record has this reason."""
    limit, store, records = TimeLimit(60, tmp_path / "ended"), Store(tmp_path / "store"), list[CellRecord]()
    limit.notes.mkdir()
    (limit.notes / CELL.identity).touch()
    job = Job.__new__(Job)
    object.__setattr__(job, "cells", (CELL,))
    _record_death(job, store, records.append, Patience(tmp_path, print), limit=limit)
    assert [record.error for record in records] == [limit.failure_of(CELL)]


def test_deadline_raises_in_this_process() -> None:
    """Without Ray, an error is raised in the cell, and the handler of the signal is restored."""
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(CellError, match="took longer"), Deadline(0.05)(CELL):
        time.sleep(60)
    assert signal.getsignal(signal.SIGALRM) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    with Deadline(60)(CELL):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_deadline_in_another_thread_is_no_limit() -> None:
    """Signals reach the main thread only; a run in another thread of a notebook has no limit."""
    found: list[str] = []

    def work() -> None:
        with Deadline(0.01)(CELL):
            found.append("computed")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["computed"]


@pytest.mark.parametrize(
    ("time_limit", "estimates", "expected"),
    [
        ("off", {"a": 100.0}, None),
        (2.5, {"a": 100.0}, 150.0),
        ("auto", {"a": 1.0, "b": 2.0}, 600.0),
        ("auto", {"a": 100.0, "b": 200.0}, 2000.0),
        ("auto", {}, None),
        (float("inf"), {"a": 100.0}, None),
    ],
)
def test_limit_in_seconds(time_limit: float | str, estimates: dict[str, float], expected: float | None) -> None:
    """Minutes, or ten times the longest estimate and at least ten minutes, or none."""
    settings = RunSettings(time_limit=time_limit)  # type: ignore[arg-type]
    assert time_limit_s(settings, estimates) == expected


@pytest.mark.parametrize(
    ("text", "value"), [("5", 5.0), ("0.5", 0.5), ("off", "off"), ("false", "off"), ("auto", "auto")]
)
def test_limit_on_the_command_line(text: str, value: float | str) -> None:
    """A number of minutes, ``off`` or ``auto``."""
    assert resolve(parse(["task=epvs", f"time_limit={text}"])).settings.time_limit == value


@pytest.mark.parametrize("value", [0, -1, "soon", True, "nan"])
def test_wrong_limit_is_refused(value: object) -> None:
    """The limit must be positive."""
    with pytest.raises(OutOfRange, match="time_limit must be"):
        settings_from({"time_limit": value})
