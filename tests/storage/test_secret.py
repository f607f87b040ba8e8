"""The file of a secret key: created once, readable by its owner only."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.core.errors import RequestError
from harness.storage.secret import secret_key


def test_key_is_created_once(tmp_path: Path) -> None:
    """With mode 0600; later calls, also at the same time, return the same key."""
    path = tmp_path / "runs" / "pseudonym.key"
    with ThreadPoolExecutor(8) as several:
        keys = set(several.map(secret_key, [path] * 32))
    assert len(keys) == 1 and len(keys.pop()) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == ["pseudonym.key"]


def test_keys_differ(tmp_path: Path) -> None:
    """Each folder has its own."""
    assert secret_key(tmp_path / "a") != secret_key(tmp_path / "b")


def test_key_that_others_can_read(tmp_path: Path) -> None:
    """It is refused, because names could be computed from it."""
    secret_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(RequestError, match="its mode is 0640; chmod 600 it"):
        secret_key(tmp_path / "key")


@pytest.mark.parametrize("content", [b"", b"0123", b"\xff" * 64, b"g" * 64])
def test_damaged_key(tmp_path: Path, content: bytes) -> None:
    """Without the key, subjects would silently get new pseudonyms."""
    secret_key(tmp_path / "key")
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(RequestError, match="must hold a key of 64 hexadecimal digits"):
        secret_key(tmp_path / "key")
