"""Files appear whole or not at all, and the machine's cores are counted once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.core.machine import usable_cores
from harness.storage.files import checksum, replace_file


@pytest.mark.parametrize(
    ("content", "expected"), [("µ\r\n", b"\xc2\xb5\r\n"), (b"\x00", b"\x00"), (memoryview(b"a"), b"a")]
)
def test_content_is_written_as_it_is(tmp_path: Path, content: str | bytes | memoryview, expected: bytes) -> None:
    """Text is UTF-8 with its own line ends; missing folders are made."""
    replace_file(tmp_path / "new" / "file", content)
    assert (tmp_path / "new" / "file").read_bytes() == expected


def test_a_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    """A content that cannot be encoded is found before anything is replaced."""
    replace_file(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        replace_file(tmp_path / "file", "\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_failed_replacement_leaves_no_part(tmp_path: Path) -> None:
    """A folder in the way stays, and nothing lies beside it."""
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file"):
        replace_file(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_is_as_readable_as_the_user_wants(tmp_path: Path) -> None:
    """What others of a group read is not made private on its way."""
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("durable", [True, False])
def test_only_what_cannot_be_made_again_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    """Thousands of prepared arrays need no loss of power in mind."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    replace_file(tmp_path / "file", "", durable=durable)
    assert len(synced) == durable


def test_checksum_is_sha256(tmp_path: Path) -> None:
    """The empty file has the well-known value."""
    (tmp_path / "empty").touch()
    assert checksum(tmp_path / "empty").startswith("e3b0c44298fc1c149afbf4c8996fb924")


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler may allow fewer than there are; where nobody says so, all count."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores() == 7
