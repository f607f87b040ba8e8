"""A run with passwords in its URIs, whose MLflow is away, and that is stopped: nothing has a password."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

SECRET = "S3CRET"


def test_passwords_stand_nowhere_and_a_stopped_run_ends_at_once(small_run: tuple[str, ...], tmp_path: Path) -> None:
    """Neither in files nor on the screen, during the run and after SIGTERM; tables come before MLflow's return."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    words = [
        *(sys.executable, "-m", "harness", "run", *small_run, "attribution=random", "sequences=T2w", "ray=off"),
        *("out=runs", f"mlflow='postgresql://u@127.0.0.1:{port}/d?password={SECRET}1'"),
        f"optuna='postgresql://u:{SECRET}2/#@{SECRET}3@127.0.0.1:{port}/e'",
    ]
    held, printed, stopped_s = set[Path](), [], 0.0
    with subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
    ) as driver:
        assert driver.stdout is not None
        try:
            for line in driver.stdout:
                printed.append(line)
                held |= files_with_secret(tmp_path)
                if "tables and report are written, but MLflow is away" in line:
                    assert any(tmp_path.rglob("leaderboards/epvs/*.csv"))
                    driver.send_signal(signal.SIGTERM)
                    stopped_s = time.monotonic()
            code = driver.wait()
        finally:
            driver.kill()
    text = "".join(printed)
    assert stopped_s and code == 143, text
    assert time.monotonic() - stopped_s < 15  # five seconds on a machine that does nothing else
    assert "nothing answers at 127.0.0.1" in text and "The run continues" in text
    assert "resume with the same command" in text and "password=***" in text and "u:***@127.0.0.1" in text
    assert SECRET not in text
    assert held | files_with_secret(tmp_path) == set()
    assert any(b"password=***" in path.read_bytes() for path in tmp_path.rglob("*.csv"))


def files_with_secret(folder: Path) -> set[Path]:
    """Files that have a password at this moment; some may be replaced meanwhile."""
    found = set()
    for path in folder.rglob("*"):
        try:
            if path.is_file() and SECRET.encode() in path.read_bytes():
                found.add(path)
        except FileNotFoundError:
            continue
    return found
