"""Input that is not trusted: it is refused with its reason, runs no code and takes no memory.

Images, tables and links of a cohort are tested in ``tests/data/test_verify.py`` (kinds ``inflated``,
``too-large``, ``truncated``, ``link-outside``, ``subject-name``) and ``tests/data/test_pictures.py``, pickled
weights in ``tests/models/test_resnet.py``, hostile text in a report in ``tests/report/test_report.py``.
"""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness.core import registry
from harness.core.errors import CohortError, RegistrationError, StoreError
from harness.data.cache import ArrayCache
from harness.data.cohort import bids
from harness.data.pictures import pictures, write_pictures
from harness.data.table import open_cohort
from harness.simulation.phantom import PhantomPicture
from harness.storage.arrays import read_npy, read_npz
from harness.storage.store import Store
from harness.sweep import catalogue

HERE = "harness-was-here"


class Malicious:
    """An object whose unpickling would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (HERE,))


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever malicious input would do, it would do here; it must not."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / HERE).exists()


def member(array: np.ndarray, shape: str = "") -> bytes:
    """An array in NumPy's format, whose header may state another shape."""
    stream = io.BytesIO()
    np.save(stream, array)
    content = stream.getvalue()
    stated = f"({', '.join(map(str, array.shape))},)".encode()
    if not shape:
        return content
    head, body = content[:128], content[128:]
    assert stated in head
    return head.replace(stated, shape.encode()).replace(b"\n", b"").ljust(127)[:127] + b"\n" + body


def archive(path: Path, **members: bytes) -> Path:
    """A zip file, compressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


NUMBERS = np.arange(6.0)


def test_sound_arrays_are_read(tmp_path: Path) -> None:
    """Scalars, empty arrays, other orders and types, compressed or not."""
    arrays = {
        "a": NUMBERS,
        "scalar": np.array(2.5),
        "none": np.zeros((0, 3), np.float16),
        "order": np.asfortranarray(np.eye(3, dtype=">i2")),
        "bool": np.ones((2, 2), bool),
        "text": np.array(["sub-01", "ü"]),
    }
    np.savez(tmp_path / "plain.npz", **arrays)
    np.savez_compressed(tmp_path / "small.npz", **arrays)
    for name in ("plain.npz", "small.npz"):
        found = read_npz(tmp_path / name)
        assert list(found) == list(arrays)
        for key, array in arrays.items():
            assert found[key].dtype == array.dtype
            np.testing.assert_array_equal(found[key], array)
    np.save(tmp_path / "a.npy", NUMBERS)
    np.testing.assert_array_equal(read_npy(tmp_path / "a.npy"), NUMBERS)


def pickled() -> bytes:
    """An array of Python objects."""
    stream = io.BytesIO()
    np.save(stream, np.array([Malicious()], dtype=object))
    return stream.getvalue()


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "pickle": (pickled, "holds Python objects, which could run code"),
    "false shape": (
        lambda: member(NUMBERS, "(10**12,)".replace("10**12", "1000000000000")),
        "takes 8000000000128 bytes",
    ),
    "negative shape": (lambda: member(NUMBERS, "(-6,)"), r"the shape of an array is \(-6,\)"),
    "shape as text": (lambda: member(NUMBERS, "'six'"), "the shape of an array is 'six'"),
    "bytes behind": (lambda: member(NUMBERS) + bytes(2**20), "takes 176 bytes, got"),
    "cut off": (lambda: member(NUMBERS)[:-8], "takes 176 bytes, got 168"),
    "long header": (lambda: member(NUMBERS)[:6] + b"\x02\x00\xff\xff\xff\x7f" + bytes(64), "has 2147483647 bytes"),
    "code as header": (
        lambda: b"\x93NUMPY\x01\x00\x30\x00" + b"__import__('os').mkdir('harness-was-here')".ljust(48),
        "malformed node",
    ),
    "other content": (lambda: b"<!DOCTYPE html>", "no array in NumPy's format"),
    "nothing": (lambda: b"", "no array in NumPy's format"),
}


@pytest.mark.parametrize("name", BAD)
def test_hostile_arrays_are_refused(tmp_path: Path, name: str) -> None:
    """In a file of one array, and in an archive; the message names the file."""
    make, message = BAD[name]
    (tmp_path / "a.npy").write_bytes(make())
    with pytest.raises(StoreError, match=rf"a\.npy cannot be read: .*{message}"):
        read_npy(tmp_path / "a.npy")
    with pytest.raises(StoreError, match=rf"a\.npz cannot be read: .*{message}"):
        read_npz(archive(tmp_path / "a.npz", good=member(NUMBERS), bad=make()))


def test_zip_bomb_is_not_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that inflates to far more than its array has is refused before it is inflated."""
    path = archive(tmp_path / "bomb.npz", bomb=member(NUMBERS) + bytes(2**26))
    assert path.stat().st_size < 2**17
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("inflated"))
    with pytest.raises(StoreError, match="takes 176 bytes, got 67109040"):
        read_npz(path)


def test_arrays_larger_than_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros compress a thousandfold, so that a true header does not help."""
    path = archive(tmp_path / "a.npz", a=member(np.zeros(2**16)), b=member(np.zeros(2**16)))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=2**20))
    with pytest.raises(StoreError, match="its arrays take 1048832 bytes, and this machine has 1048576"):
        read_npz(path)


def test_false_directory_of_an_archive(tmp_path: Path) -> None:
    """A directory that states fewer bytes than a member has cannot make it inflate."""
    path = archive(tmp_path / "a.npz", a=member(NUMBERS) + bytes(2**20))
    long, short = (2**20 + 176).to_bytes(4, "little"), (176).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(long, short))
    with pytest.raises(StoreError, match="cannot be read: Bad CRC-32"):
        read_npz(path)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "|O"},
        {"shape": [10**12]},
        {"shape": [-3, -2]},
        {"shape": ["a"]},
        {"offset": -8},
        {"length": 10**15},
        {"coding": "pickle"},
        {"dtype": "no type"},
        {"key": None, "shape": None},
    ],
)
def test_hostile_entries_of_the_cache_are_ignored(tmp_path: Path, change: dict[str, Any]) -> None:
    """An entry that does not agree with its bytes is prepared again, as one that was cut off."""
    with ArrayCache(tmp_path / "arrays") as cache:
        cache.add("key", NUMBERS)
    index = next((tmp_path / "arrays").glob("*.jsonl"))
    index.write_text(json.dumps(json.loads(index.read_text()) | change) + "\n")
    with ArrayCache(tmp_path / "arrays") as cache:
        assert cache.known("key") is None


@pytest.mark.parametrize(
    "content",
    ["[]", "null", "{}", "{", '{"identity": "x"}', "[" * 100_000, b"\xff\xfe", b"\x80\x04\x95", '{"a": 1e999}'],
)
def test_records_that_are_none(tmp_path: Path, content: str | bytes) -> None:
    """A record of a cell is JSON of known fields; anything else is refused with its path."""
    folder = tmp_path / "train" / "x"
    folder.mkdir(parents=True)
    (folder / "record.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(StoreError, match=r"train/x/record\.json (cannot be read|must be)"):
        Store(tmp_path).get("train", "x")
    for folder in ("failed", "configurations"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.json").write_bytes((tmp_path / "train/x/record.json").read_bytes())
    if content != '{"identity": "x"}':
        with pytest.raises(StoreError, match=r"failed/x\.json cannot be read"):
            Store(tmp_path).failure("x")
    with pytest.raises(StoreError, match=r"configurations/x\.json cannot be read"):
        Store(tmp_path).configuration("x")


@pytest.mark.parametrize("content", [b"", b"ARROW1\0\0", b"\x80\x04\x95pickle", b"ARROW1\0\0" + bytes(200) + b"ARROW1"])
def test_cohort_tables_that_are_none(tmp_path: Path, content: bytes) -> None:
    """The table of a cohort is Arrow, never a pickle."""
    (tmp_path / "cohort.arrow").write_bytes(content)
    with pytest.raises(StoreError, match="is no cohort that can be read"):
        open_cohort(tmp_path / "cohort.arrow")


# --- names -------------------------------------------------------------------------------

SCRIPT = "<script>alert(1)</script>"


def test_subject_with_a_path_in_participants(tmp_path: Path) -> None:
    """A row that names a path is a row without folder; no such path is opened."""
    root = cohort(tmp_path)
    with (root / "participants.tsv").open("a") as table:
        table.write("../../etc/passwd\n")
    with pytest.raises(CohortError, match=r"\[subject-without-folder\].*sub-\.\./\.\./etc/passwd has a row but no"):
        bids(root, tmp_path / "cache", label="lesion")


@pytest.mark.parametrize("name", [f"sub-{SCRIPT.replace('/', '-')}", "sub-a b", "sub-..", "sub-01\n02"])
def test_folder_of_a_subject_with_other_characters(tmp_path: Path, name: str) -> None:
    """Ids become names of files and text of pages, so that only letters and digits are read."""
    root = cohort(tmp_path)
    (root / name / "anat").mkdir(parents=True)
    with pytest.raises(CohortError, match=r"\[subject-name\]"):
        bids(root, tmp_path / "cache", label="lesion")


@pytest.mark.parametrize("name", ["../../../../../etc/passwd", "/etc/passwd", "images/../../labels.csv"])
def test_picture_outside_of_the_folder(tmp_path: Path, name: str) -> None:
    """The table of pictures cannot name other files."""
    root = tmp_path / "pictures"
    image = np.zeros((4, 4, 3), np.uint8)
    write_pictures(
        root, iter([[PhantomPicture(id=one, subject=one, image=image, mask=None, covariates={})] for one in "abc"])
    )
    with (root / "labels.csv").open("a") as table:
        table.write(f"{name},d\n")
    with pytest.raises(CohortError, match=r"\[(picture-)?outside\]"):
        pictures(root, tmp_path / "cache")


def cohort(tmp_path: Path) -> Path:
    """The tables of a BIDS folder with three subjects, without images."""
    root = tmp_path / "cohort"
    for number in range(3):
        (root / f"sub-{number}" / "anat").mkdir(parents=True)
    (root / "participants.tsv").write_text("participant_id\nsub-0\nsub-1\nsub-2\n")
    (root / "dataset_description.json").write_text('{"Name": "cohort", "BIDSVersion": "1.10.0"}')
    return root


# --- code of others ----------------------------------------------------------------------


def _module(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import a_package_that_is_not_there", "ModuleNotFoundError: No module named 'a_package_that_is_not_there'"),
        ("1 / 0", r"ZeroDivisionError: division by zero \(broken_plugin\.py:1\)"),
        ("def f(:", "SyntaxError: invalid syntax"),
    ],
)
def test_plugin_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    """The error names the package, the line and what to do, instead of a traceback."""
    _module(tmp_path, "broken_plugin", text, monkeypatch)
    point = importlib.metadata.EntryPoint("mine", "broken_plugin", "harness.plugins")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [point])
    registry.load_plugins.cache_clear()
    try:
        with pytest.raises(RegistrationError, match=f"plug-in broken_plugin cannot be imported: {message}"):
            registry.load_plugins()
    finally:
        registry.load_plugins.cache_clear()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise ValueError('no data today')", r"ValueError: no data today \(broken_task\.py:1\); fix the file"),
        ("import a_package_that_is_not_there", "ModuleNotFoundError"),
        ("", r"broken_task\.TASK must be a harness\.core\.task\.Task, got NoneType"),
        ("TASK = 3", "got int"),
    ],
)
def test_task_that_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    """The error names the task, its module and the line."""
    _module(tmp_path, "broken_task", text, monkeypatch)
    monkeypatch.setattr(catalogue, "task_names", lambda: {"mine": "broken_task"})
    with pytest.raises(RegistrationError, match=message):
        catalogue.load_task("mine")
