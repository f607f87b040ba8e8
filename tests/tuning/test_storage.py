"""Folders of Ray Tune: one per run, and those of killed runs are removed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.tuning.jobs import storage

KILLED = """
import os, signal, sys
from pathlib import Path
from harness.tuning.jobs import storage
with storage(Path(sys.argv[1])) as folder:
    (folder / "trial").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_folder_of_a_killed_run_is_removed_by_the_next(tmp_path: Path) -> None:
    """The next run removes the folder of a killed run."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.glob("tune-*")
    assert (left / "trial").is_dir()
    with storage(tmp_path) as ours:
        assert list(tmp_path.glob("tune-*")) == [ours]


def test_the_folder_of_a_running_run_is_kept(tmp_path: Path) -> None:
    """The folder of a running run is kept."""
    with storage(tmp_path) as one, storage(tmp_path) as other:
        assert one != other
        assert sorted(tmp_path.glob("tune-*")) == sorted([one, other])


def test_folder_is_removed_with_its_run(tmp_path: Path) -> None:
    """The folder is removed at the end of a run, also if the run fails."""
    with pytest.raises(ZeroDivisionError), storage(tmp_path / "ray") as folder:
        assert folder.is_dir()
        raise ZeroDivisionError
    assert not list((tmp_path / "ray").glob("tune-*"))


def test_a_folder_without_a_lock_is_removed(tmp_path: Path) -> None:
    """A folder without a lock, left by an earlier version, is removed."""
    (tmp_path / "tune-abc").mkdir()
    (tmp_path / "other").mkdir()
    with storage(tmp_path):
        assert not (tmp_path / "tune-abc").exists()
        assert (tmp_path / "other").is_dir()
