"""The driver's part of a run whose output folder cannot be written to for a while."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.core.errors import StoreError
from harness.storage import patience
from harness.storage.patience import Patience
from harness.storage.store import CellRecord, Store, write_record
from harness.tuning.jobs import _GIVES_UP, _SAYS, _driver


class Checkpoint:
    """A checkpoint of Tune with the folder of a finished cell."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        write_record(folder, CellRecord("abc", "train", "done", "configuration", 0, 0))
        self._folder = folder

    @contextlib.contextmanager
    def as_directory(self) -> Iterator[str]:
        """The folder."""
        yield str(self._folder)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits take no time."""
    monkeypatch.setattr(patience.time, "sleep", lambda seconds: None)


def failing(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the store be full a few times."""
    commit, left = Store.commit, [times]

    def full(self: Store, source: Path) -> CellRecord:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return commit(self, source)

    monkeypatch.setattr(Store, "commit", full)


def test_cell_is_committed_once_there_is_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit to a full disk is repeated; the cell is in the store, its folder is emptied, and the run goes on."""
    store, records, said = Store(tmp_path / "store"), list[CellRecord](), list[str]()
    failing(3, monkeypatch)
    driver = _driver([], store, records.append, print, Patience(tmp_path, said.append), said.append)
    driver.on_checkpoint(0, [], None, Checkpoint(tmp_path / "cell"))
    assert [record.identity for record in records] == ["abc"] and store.get("train", "abc") is not None
    assert not list((tmp_path / "cell").iterdir()) and len(said) == 1
    driver.on_step_end(0, [])


def test_run_ends_if_a_cell_can_never_be_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune ignores errors of the callback for checkpoints, so the error is raised again at the end of the step."""
    store, records = Store(tmp_path / "store"), list[CellRecord]()
    failing(1000, monkeypatch)
    driver = _driver([], store, records.append, print, Patience(tmp_path, print), print)
    with pytest.raises(StoreError):
        driver.on_checkpoint(0, [], None, Checkpoint(tmp_path / "cell"))
    with pytest.raises(StoreError, match=r"no space left on device\), also after 60 s\. Finished cells are kept; free"):
        driver.on_step_end(0, [])
    assert records == [] and (tmp_path / "cell" / "record.json").is_file()


def test_sentences_of_workers_reach_the_user(tmp_path: Path) -> None:
    """What a worker says is passed on; if it gives up, the run ends with its sentence."""
    said: list[str] = []
    driver = _driver([], Store(tmp_path), print, print, Patience(tmp_path, print), said.append)
    driver.on_trial_result(0, [], None, {_SAYS: "the disk is full"})
    driver.on_step_end(0, [])
    driver.on_trial_result(0, [], None, {_GIVES_UP: "the disk is full for good"})
    with pytest.raises(StoreError, match="the disk is full for good"):
        driver.on_step_end(0, [])
    assert said == ["the disk is full"]
