"""Ray's token is readable by its owner only."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from harness.tuning.token import keep_private, token_file


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and no settings of Ray's tokens."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_token_is_private(home: Path) -> None:
    """It is created before Ray would create it with mode 0644; an existing one is kept."""
    assert keep_private(create=False) == "" and not token_file().exists()
    assert keep_private(create=True) == ""
    token = token_file().read_text()
    assert token_file() == home / ".ray" / "auth_token" and _mode(token_file()) == 0o600 and len(token.strip()) == 64
    assert keep_private(create=True) == "" and token_file().read_text() == token


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_token_that_others_can_read(home: Path, mode: int) -> None:
    """Its mode is corrected, which is told with the remedy."""
    token_file().parent.mkdir()
    token_file().write_text("ab" * 32)
    token_file().chmod(mode)
    told = keep_private(create=False)
    assert f"(mode {mode:04o})" in told and "0600 now" in told and "gives a new token" in told
    assert _mode(token_file()) == 0o600 and keep_private(create=False) == ""


def test_a_file_of_another_place(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that Ray is told to read is corrected, and never created."""
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(home / "mine"))
    assert keep_private(create=True) == "" and not (home / "mine").exists()
    (home / "mine").write_text("ab" * 32)
    (home / "mine").chmod(0o644)
    assert str(home / "mine") in keep_private(create=True) and _mode(home / "mine") == 0o600


@pytest.mark.parametrize(("name", "value"), [("RAY_AUTH_MODE", "disabled"), ("RAY_AUTH_TOKEN", "ab" * 32)])
def test_no_file_is_used(home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """Without tokens, or with the token in the environment, no file is created."""
    monkeypatch.setenv(name, value)
    assert keep_private(create=True) == "" and not token_file().exists()


def test_ray_takes_the_token(home: Path) -> None:
    """Ray accepts the file as it is written here."""
    keep_private(create=True)
    # "local", because without an address Ray connects to a cluster that another test runs on this machine.
    start = "ray.init(address='local', include_dashboard=False, num_cpus=1)"
    code = f"import ray; {start}; print(ray.get(ray.put(3))); ray.shutdown()"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "RAY_AUTH_MODE": "token"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.strip() == "3", done.stderr
    assert _mode(token_file()) == 0o600
