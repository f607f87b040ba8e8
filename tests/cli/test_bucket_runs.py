"""Runs whose results are in a bucket, on a mock of S3 that honours conditional writes."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.cli.api import Silent, carry_out
from harness.core.errors import RequestError, StoreError
from harness.storage import bucket as module
from harness.storage.bucket import Bucket
from harness.storage.store import Store
from harness.sweep.grammar import texts_of, to_overrides

Overrides = Callable[..., dict[str, Any]]
NEEDS_EXTRA = r"out=s3://lab/x needs the extra s3, which is not installed: pip install"

# Values that differ between runs of the same cells.
CLOCK = {"train_s", "mlflow_run", "command"}

RUN = """
import ast, sys
import harness
harness.run(**ast.literal_eval(sys.argv[1]))
"""


class Told(Silent):
    """An observer that keeps the messages."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        """Keep a message."""
        self.texts.append(text)


def rows_of(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file without what depends on the clock."""
    with path.open(newline="") as file:
        return [{key: one for key, one in row.items() if key not in CLOCK} for row in csv.DictReader(file)]


def contents(places: Iterable[Path], *, since: float) -> dict[Path, bytes]:
    """Contents of all files that were written after a time; other sessions of Ray may remove theirs."""
    found = {}
    for path in (path for place in places for path in place.rglob("*")):
        with contextlib.suppress(OSError):
            if path.is_file() and path.stat().st_mtime > since:
                found[path] = path.read_bytes()
    return found


def values_of(store: Store) -> dict[str, Any]:
    """Values of the metrics of all cells, by identity."""
    found = {}
    for record in (one for cell in store.records("predict") for one in store.evaluations("score", cell.identity)):
        found[record.identity] = json.loads(store.artifact(record, "values.json").read_text())
    return found


def test_killed_run_is_resumed_with_the_values_of_a_local_run(
    s3_url: str, tiny_overrides: Overrides, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    board_of: Callable[..., Path],
) -> None:  # fmt: skip
    """The driver is killed after its first cells; the same command in another folder ends in the local tables."""
    bucket = Bucket(s3_url)
    overrides = tiny_overrides(s3_url)
    overrides["data"] = str(overrides["data"])
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    with subprocess.Popen([sys.executable, "-c", RUN, repr(overrides)], cwd=tmp_path / "first") as driver:
        deadline = time.monotonic() + 300
        while not any(name.startswith("store/predict") for name in bucket.files()) and time.monotonic() < deadline:
            assert driver.poll() is None
            time.sleep(0.05)
        driver.send_signal(signal.SIGKILL)
    before = [name for name in bucket.files("store") if name.endswith("record.json")]
    assert before and json.loads(bucket.read("running.lock"))["holder"]["pid"] == driver.pid

    monkeypatch.chdir(tmp_path / "second")
    read = to_overrides(**{**overrides, "report": True})
    told = Told()
    result = carry_out(read, texts_of(read), told)
    assert result.complete and result.bucket == s3_url
    assert result.csv.is_relative_to(tmp_path / "second" / "harness-runs" / "s3" / "lab")
    assert not (tmp_path / "second" / "s3:").exists()
    assert any(f"cells, tables and report are in {s3_url}" in text for text in told.texts)

    # The cells of the killed run were used, and all of them are those of the local run.
    local, remote = Store(finished / "store"), Store(tmp_path / "third", Bucket(f"{s3_url}/store"))
    assert values_of(remote) == values_of(local) != {}
    (row,), (expected,) = rows_of(result.csv), rows_of(board_of(finished))
    assert {key: (one, expected[key]) for key, one in row.items() if one != expected[key]} == {}
    assert {name for name in bucket.files("store") if name.endswith("record.json")}.issuperset(before)

    # Tables and report are in the bucket, too, and nothing is left of the lock or the check.
    there = bucket.files()
    assert bucket.read(f"leaderboards/epvs/{result.csv.name}") == result.csv.read_bytes()
    assert result.report is not None and there[f"reports/epvs/{result.csv.stem}/index.html"] > 1000
    assert there["reports/epvs/index.html"] > 100 and there["running.lock"] == 0
    assert not [name for name in there if name.startswith("check-")]
    for name in there:
        assert b"s3cr3t" not in bucket.read(name)
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert b"s3cr3t" not in path.read_bytes()

    # The tables are rebuilt from the bucket.
    (board,) = harness.table(task="epvs", out=s3_url).to_pylist()
    assert f"{board['dice']:.6g}" == f"{float(rows_of(result.csv)[0]['dice']):.6g}"


def test_repeated_run_computes_nothing(
    s3_url: str, tiny_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run, in another folder, finds every cell and writes none."""
    times = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        read = to_overrides(**tiny_overrides(s3_url))
        result = carry_out(read, texts_of(read), Silent())
        assert result.complete
        names = [name for name in Bucket(s3_url).files("store") if name.endswith("record.json")]
        times.append({name: Bucket(s3_url).written(name) for name in names})
        time.sleep(1.1)  # the clock of the server has seconds
    assert times[0] == times[1] != {}


def test_refused_before_anything_is_computed(
    s3_url: str, tiny_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the extra, without the bucket, and without a server: one sentence, and no folder named s3:."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=r"there is no bucket absent-bucket at http://127\.0\.0\.1"):
        harness.run(**tiny_overrides("s3://absent-bucket/x"))
    with monkeypatch.context() as patch:
        patch.setattr("harness.storage.patience.time.sleep", lambda seconds: None)
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        with pytest.raises((RequestError, StoreError), match=r"http://127\.0\.0\.1:9 does not answer"):
            harness.plan(**tiny_overrides("s3://lab/x"))
    monkeypatch.setattr(module, "has_extra", lambda: False)
    for command in (harness.run, harness.plan):
        with pytest.raises(RequestError, match=NEEDS_EXTRA):
            command(**tiny_overrides("s3://lab/x"))
    assert not (tmp_path / "s3:").exists() and not list(tmp_path.rglob("record.json"))


@pytest.mark.ray
def test_workers_commit_to_the_bucket(
    s3_url: str, tiny_overrides: Overrides, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Ray, each worker writes its cells itself; the values are those of the local run, and no log has the keys."""
    monkeypatch.chdir(tmp_path)
    started = time.time() - 1
    result = harness.run(**tiny_overrides(s3_url, ray="auto", workers=1))
    assert result.complete
    remote = Store(tmp_path / "elsewhere", Bucket(f"{s3_url}/store"))
    assert values_of(remote) == values_of(Store(finished / "store")) != {}
    # Tune would send the keys to its workers, and Ray would write them to its logs.
    found = contents((tmp_path, *Path("/tmp/ray").glob("session_2*")), since=started)
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    assert len(found) > 20 and not [path for path, content in found.items() if secret in content]
