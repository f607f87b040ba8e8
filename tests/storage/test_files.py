"""Files are written completely or not at all, and usable cores are counted."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from harness.core.machine import usable_cores
from harness.storage.files import checksum, replace_file, synchronise


@pytest.mark.parametrize(
    ("content", "expected"), [("µ\r\n", b"\xc2\xb5\r\n"), (b"\x00", b"\x00"), (memoryview(b"a"), b"a")]
)
def test_content_is_written_as_it_is(tmp_path: Path, content: str | bytes | memoryview, expected: bytes) -> None:
    """Text is written as UTF-8 with its own line ends, and missing folders are created."""
    replace_file(tmp_path / "new" / "file", content)
    assert (tmp_path / "new" / "file").read_bytes() == expected


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    """If the content cannot be encoded, the old file is kept."""
    replace_file(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        replace_file(tmp_path / "file", "\ud800")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_failed_replacement_leaves_no_file(tmp_path: Path) -> None:
    """If a folder is in the way, the write fails and leaves no other file."""
    (tmp_path / "file").mkdir()
    with pytest.raises(OSError, match="file"):
        replace_file(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_file_permissions_follow_the_umask(tmp_path: Path) -> None:
    """A new file has the permissions of the user's umask."""
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("durable", [True, False])
def test_only_durable_files_are_synchronised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool) -> None:
    """Only durable files are synchronised to disk."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    replace_file(tmp_path / "file", "", durable=durable)
    assert len(synced) == durable


def test_checksum_is_sha256(tmp_path: Path) -> None:
    """The checksum is SHA-256, here of an empty file."""
    (tmp_path / "empty").touch()
    assert checksum(tmp_path / "empty").startswith("e3b0c44298fc1c149afbf4c8996fb924")


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores are counted by the CPU affinity of the process, or all if there is none."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert usable_cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores() == 7


def test_folder_that_cannot_be_synchronised_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems refuse it for folders; an error of the disk is one."""

    def refuse(number: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    code = errno.EINVAL
    synchronise([tmp_path])
    code = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        synchronise([tmp_path])
