"""Fixtures of the tests of the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.storage.store import CellRecord, write_record


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a completed folder of a cell, as a worker does."""

    def make(identity: str = "abc", *, content: str = "weights", state: Any = "done", **more: Any) -> Path:
        folder = tmp_path / f"work-{identity}-{content}-{state}"
        folder.mkdir()
        (folder / ("weights.bin" if state == "done" else "traceback.txt")).write_text(content)
        write_record(folder, CellRecord(identity, more.pop("stage", "train"), state, "conf", 0, 1, **more))
        return folder

    return make
