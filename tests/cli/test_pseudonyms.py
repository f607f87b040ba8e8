"""``pseudonymise=true``: what is shown and shared names no subject, and has the same values."""

from __future__ import annotations

import contextlib
import csv
import gzip
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from matplotlib.text import Text

import harness
from harness.pipeline.leaderboard import VOLATILE
from harness.report.plots import canvas
from harness.storage.bucket import Bucket

Overrides = Callable[..., dict[str, Any]]

PRIVATE = {"cache", "cohorts", "phantoms", "ray", "store", "pseudonym.key"}
MARKS = ("DESCRIPTION1970", "/home/scanner/AUX", "INTENTNAME", "DBNAME", "EXTENSIONTEXT")
NAMES = {"sub-01": "Miller1970", "sub-02": "Weber1971", "sub-03": "Khan1972", "sub-04": "Okoye1974"}
LEFT_OUT = "Okoye1974"
ABSENT = "Novak1973"


@pytest.fixture(scope="module")
def named(phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom with names as ids, marks in all headers, and a subject without images."""
    root = tmp_path_factory.mktemp("clinic") / "data"
    shutil.copytree(phantom_root, root)
    for before, after in NAMES.items():
        for path in sorted((root / before).rglob(f"{before}*")):
            path.rename(path.with_name(path.name.replace(before, f"sub-{after}")))
        (root / before).rename(root / f"sub-{after}")
        table = root / "participants.tsv"
        if table.is_file():
            table.write_text(table.read_text().replace(before, f"sub-{after}"))
    for path in root.rglob("*.nii.gz"):
        mark(path)
    (root / f"sub-{ABSENT}" / "anat").mkdir(parents=True)
    if (table := root / "participants.tsv").is_file():
        columns = len(table.read_text().partition("\n")[0].split("\t"))
        with table.open("a") as file:
            file.write("\t".join([f"sub-{ABSENT}", *["n/a"] * (columns - 1)]) + "\n")
    return root


def mark(path: Path) -> None:
    """Write every free text of a header, and an extension."""
    image = nib.load(path)
    header = image.header
    for key, text in zip(("descrip", "aux_file", "intent_name", "db_name"), MARKS, strict=False):
        header[key] = text.encode()
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", MARKS[4].encode()))
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), None, header), path)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All texts of the figures that are drawn."""
    texts: list[str] = []
    save = canvas.Canvas.savefig

    def listen(self: Any, *given: Any, **options: Any) -> None:
        save(self, *given, **options)
        texts.extend(text.get_text() for text in self.findobj(Text))

    monkeypatch.setattr(canvas.Canvas, "savefig", listen)
    return texts


def contents(folder: Path) -> dict[str, bytes]:
    """Names and, inflated, contents of all files of an output folder that may be shared."""
    found = {}
    for path in sorted(folder.rglob("*")):
        where = path.relative_to(folder)
        if path.is_file() and where.parts[0] not in PRIVATE:
            content = path.read_bytes()
            found[str(where)] = gzip.decompress(content) if path.name.endswith(".gz") else content
    return found


def rows(path: Path) -> list[dict[str, str]]:
    """Rows of a table, without columns that differ between runs."""
    volatile = {*VOLATILE, "command"}
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key not in volatile} for row in csv.DictReader(file)]


def test_nothing_that_is_shared_names_a_subject(
    named: Path, tiny_overrides: Overrides, tmp_path: Path, drawn: list[str]
) -> None:
    """Neither ids nor texts of headers are in names or contents of files, and all values are those without it."""
    options = {"data": named, "report": True, "mlflow": "auto", "exclude": (LEFT_OUT,)}
    plain = harness.run(**tiny_overrides(tmp_path / "plain", **options))
    assert plain.complete
    # The search works: without pseudonyms, the ids are found, also in figures.
    open_files = contents(tmp_path / "plain")
    assert any(name.encode() in content for name in NAMES.values() for content in open_files.values())
    assert any(name in text for name in NAMES.values() for text in drawn)
    drawn.clear()

    out = tmp_path / "runs"
    result = harness.run(**tiny_overrides(out, pseudonymise=True, **options))
    assert result.complete and stat.S_IMODE((out / "pseudonym.key").stat().st_mode) == 0o600
    assert {path.name for path in out.iterdir()} - PRIVATE <= {
        "leaderboards", "mlflow.db", "mlflow-artifacts", "mlflow.lock", "reports", "running.lock",
    }  # fmt: skip
    found = contents(out)
    assert any(name.startswith("mlflow-artifacts/") and name.endswith(".png") for name in found)
    hidden = [*NAMES.values(), ABSENT, *MARKS]
    for name, content in found.items():
        assert not [text for text in hidden if text in name or text.encode() in content], name
    assert not [text for text in drawn if any(one in text for one in hidden)]
    assert any("sub-p" in text for text in drawn)
    page = found[next(name for name in found if name.startswith("reports/") and name.count("/") == 3
                      and name.endswith("index.html"))].decode()  # fmt: skip
    assert len(set(re.findall(r"sub-p[0-9a-f]{12}", page))) >= 2

    # Equal value for value.
    for path in sorted(plain.csv.parent.iterdir()):
        other = result.csv.parent / path.name.replace(plain.csv.stem, result.csv.stem)
        assert rows(other) == rows(path)

    assert "exclude" in result.csv.stem  # but not whom, as the search above has shown

    # Repeating the command computes nothing and writes the same; so do the other commands, which know the setting.
    key = (out / "pseudonym.key").read_bytes()
    records = {path: path.stat().st_mtime_ns for path in (out / "store").rglob("record.json")}
    tables = {name: content for name, content in found.items() if name.endswith(".csv")}
    assert harness.run(**tiny_overrides(out, pseudonymise=True, **options)).complete
    assert {path: path.stat().st_mtime_ns for path in (out / "store").rglob("record.json")} == records
    assert (out / "pseudonym.key").read_bytes() == key
    again = contents(out)
    assert {name: content for name, content in again.items() if name.endswith(".csv")} == tables
    assert not [name for name, content in again.items() if any(one.encode() in content for one in hidden)]


RUN = "import ast, sys, harness; harness.run(**ast.literal_eval(sys.argv[1]))"


@contextlib.contextmanager
def killed_after_a_training(
    overrides: dict[str, Any], folder: Path, trained: Callable[[], bool]
) -> Iterator[subprocess.Popen[bytes]]:
    """A run in a process of its own, until it has trained a network; it is killed at the end of the block."""
    words = [sys.executable, "-c", RUN, repr({key: str(value) if key in ("out", "data") else value
                                              for key, value in overrides.items()})]  # fmt: skip
    with subprocess.Popen(words, cwd=folder) as driver:
        try:
            deadline = time.monotonic() + 300
            while not trained() and time.monotonic() < deadline:
                assert driver.poll() is None
                time.sleep(0.1)
            yield driver
        finally:
            driver.kill()


def test_no_file_of_a_run_that_goes_on_or_was_killed_names_a_subject(
    named: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    """The lock has the command, with pseudonyms for the subjects that it leaves out."""
    out, hidden = tmp_path / "runs", [*NAMES.values(), ABSENT, *MARKS]
    overrides = tiny_overrides(out, data=named, pseudonymise=True, mlflow="auto", report=True, exclude=(LEFT_OUT,))
    seen: dict[str, bytes] = {}

    def trained() -> bool:
        with contextlib.suppress(FileNotFoundError):  # of a file that is replaced
            for name, content in contents(out).items():
                seen[name] = seen.get(name, b"") + content
        return any(out.glob("store/predict/*/record.json"))

    with killed_after_a_training(overrides, tmp_path, trained):
        pass
    seen |= {f"{name} after the end": content for name, content in contents(out).items()}
    assert b"exclude=sub-p" in seen["running.lock"] and b"exclude=sub-p" in seen["running.lock after the end"]
    assert any(name.startswith("mlflow.db") for name in seen)
    for name, content in seen.items():
        assert not [text for text in hidden if text in name or text.encode() in content], name


def test_the_lock_of_a_bucket_names_no_subject(
    s3_url: str, named: Path, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    """Everyone who can read the bucket can read it."""
    bucket, hidden = Bucket(s3_url), [*NAMES.values(), ABSENT]
    overrides = tiny_overrides(s3_url, data=named, pseudonymise=True, exclude=(LEFT_OUT,))
    with killed_after_a_training(overrides, tmp_path, lambda: any(bucket.files("store/train"))):
        pass
    lock = bucket.read("running.lock")
    assert b"exclude=sub-p" in lock and not [text for text in hidden if text.encode() in lock]
