"""Random and damaged input: no error but ours, and no hang.

``make fuzz`` runs 10,000 cases of each test; FUZZ_CASES sets another number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from harness.core.errors import HarnessError
from harness.core.settings import RunSettings
from harness.core.types import Candidate
from harness.data import nifti
from harness.data.bids_tables import label_source, region_names
from harness.data.cache import ArrayCache
from harness.data.participants import read_participants, read_rows, read_sessions
from harness.storage.arrays import read_npy, read_npz
from harness.storage.store import CellRecord, Store
from harness.sweep.grammar import parse
from harness.sweep.resume import recall

hypothesis = pytest.importorskip("hypothesis")
strategies = pytest.importorskip("hypothesis.strategies")
given, st = hypothesis.given, strategies

CASES = int(os.environ.get("FUZZ_CASES", "50"))
PATIENCE_S = 20  # a case takes milliseconds

bounded = hypothesis.settings(
    max_examples=CASES,
    deadline=None,
    database=None,
    derandomize=CASES <= 1000,  # the same cases in continuous integration, others with make fuzz
    suppress_health_check=list(hypothesis.HealthCheck),
)


class CaseHangs(BaseException):
    """A case takes too long. Not an ``Exception``, which readers turn into an error of ours."""


@contextlib.contextmanager
def only_our_errors(patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Allow errors raised on purpose; a case that hangs is interrupted."""

    def interrupt(_: int, frame: FrameType | None) -> None:
        raise CaseHangs(f"a case takes more than {patience_s} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, patience_s)
    try:
        with contextlib.suppress(HarnessError):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose files each case replaces."""
    return tmp_path_factory.mktemp("fuzz")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
"""Anything that JSON can hold, with NaN and infinity, which Python's JSON holds as well."""


def damaged(content: bytes) -> Any:
    """The content with a few bytes replaced, removed or inserted, or cut off."""
    place = st.integers(0, max(len(content) - 1, 0))
    changes = st.lists(
        st.tuples(st.sampled_from(["replace", "remove", "insert", "cut"]), place, st.binary(min_size=1, max_size=8)),
        min_size=1,
        max_size=4,
    )

    def apply(steps: list[tuple[str, int, bytes]]) -> bytes:
        made = bytearray(content)
        for kind, at, new in steps:
            if kind == "replace":
                made[at : at + len(new)] = new
            elif kind == "remove":
                del made[at : at + len(new)]
            elif kind == "insert":
                made[at:at] = new
            else:
                del made[at:]
        return bytes(made)

    return changes.map(apply)


# --- the command line ----------------------------------------------------------------

PIECES = st.sampled_from(
    ["=", ",", "(", ")", "[", "]", "{", "}", "'", '"', "\\", "$", "${", ":", "+", "~", "@", "-", ".", "*", " ", "\t",
     "\n", "range(", "interval(", "choice(", "tag(", "log", "search", "glob(", "sort(", "shuffle(", "int(", "str(",
     "json(", "recipe.lr", "seed", "out", "data", "nan", "inf", "1e9", "1e-5", "0", "1", "true", "null", "T2w", "é",
     "\0", "\udc80"]
)  # fmt: skip
TEXTS = st.lists(PIECES | st.text(max_size=3), max_size=12).map("".join)


@bounded
@given(
    st.lists(st.builds("{}={}".format, st.sampled_from(["seed", "recipe.lr", "out", "x"]), TEXTS) | TEXTS, max_size=3)
)
def test_overrides(texts: list[str]) -> None:
    """Any text is read, or refused as an override."""
    with only_our_errors():
        parse(texts)


# --- images ----------------------------------------------------------------------------


def image(kind: type[Any] = nib.Nifti1Image) -> bytes:
    """A small image."""
    made = kind(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([1.5, 1, 2, 1]))
    made.header.set_slope_inter(2, 1)
    return bytes(made.to_bytes())


@bounded
@given(damaged(image()) | damaged(image(nib.Nifti2Image)), st.sampled_from([".nii", ".nii.gz"]))
def test_headers_of_images(folder: Path, content: bytes, end: str) -> None:
    """A damaged header, which is compressed after it was damaged."""
    _read_image(folder / f"image{end}", gzip.compress(content, 1) if end == ".nii.gz" else content)


@bounded
@given(damaged(gzip.compress(image(), 1, mtime=0)) | st.binary(max_size=400))
def test_compressed_images(folder: Path, content: bytes) -> None:
    """A damaged stream, and other content."""
    _read_image(folder / "image.nii.gz", content)


def _read_image(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for read in (nifti.header, nifti.read, nifti.load):
        with only_our_errors():
            read(path)


# --- tables ------------------------------------------------------------------------------

TABLE = b"participant_id\tage\tsex\nsub-01\t41\tF\nsub-02\t89+\tn/a\nsub-03\t4,5\tM\n"
REGIONS = b"index\tname\n1\tleft\n2\tright\n"
JSONS = VALUES.map(lambda value: json.dumps(value).encode())
COLUMNS = st.dictionaries(
    st.sampled_from(["age", "sex"]),
    st.fixed_dictionaries({}, optional={"Levels": VALUES, "Minimum": VALUES, "Maximum": VALUES}),
).map(lambda value: json.dumps(value).encode())


@bounded
@given(damaged(TABLE) | st.binary(max_size=200), JSONS | COLUMNS | damaged(b'{"sex": {"Levels": {"F": ""}}}'))
def test_participants(folder: Path, table: bytes, described: bytes) -> None:
    """participants.tsv, participants.json and tables of sessions and pictures."""
    (folder / "participants.tsv").write_bytes(table)
    (folder / "participants.json").write_bytes(described)
    (folder / "sub-01").mkdir(exist_ok=True)
    (folder / "sub-01" / "sub-01_sessions.tsv").write_bytes(table.replace(b"participant_id", b"session_id"))
    with only_our_errors():
        read_participants(folder, ("age",), ("sub-01", "sub-02", "sub-03"))
    with only_our_errors():
        read_sessions(folder, {"sub-01": ["ses-1", "ses-2"]})
    with only_our_errors():
        read_rows(folder / "participants.tsv", ("participant_id", "age"))


@bounded
@given(damaged(REGIONS) | st.binary(max_size=100), JSONS | VALUES.map(lambda one: json.dumps({"Levels": one}).encode()))
def test_tables_beside_images(folder: Path, table: bytes, described: bytes) -> None:
    """Names of regions, and the sources of a label."""
    beside = folder / "sub-01" / "anat"
    beside.mkdir(parents=True, exist_ok=True)
    (beside / "sub-01_dseg.tsv").write_bytes(table)
    (beside / "sub-01_dseg.json").write_bytes(described)
    (beside / "sub-01_label-lesion_mask.json").write_bytes(described)
    masks = {"regions": beside / "sub-01_dseg.nii.gz", "lesion": beside / "sub-01_label-lesion_mask.nii.gz"}
    candidate = Candidate(id="sub-01", subject="sub-01", images={}, masks=masks, covariates={})
    with only_our_errors():
        region_names(folder, [candidate])
    with only_our_errors():
        label_source(folder, [candidate], "lesion")


# --- the store ---------------------------------------------------------------------------

RECORD = dataclasses.asdict(
    CellRecord("i", "train", "done", "c", 0, 0, artifacts={"a.txt": "0" * 64}, facts={"x": 1}, parents=("p",))
)
CHANGED = st.tuples(st.sampled_from(sorted(RECORD)), VALUES).map(
    lambda pair: json.dumps({**RECORD, pair[0]: pair[1]}).encode()
)


@bounded
@given(CHANGED | JSONS | damaged(json.dumps(RECORD).encode()))
def test_records(folder: Path, content: bytes) -> None:
    """Records of cells, of failures, and configurations."""
    for where in ("train/i/record.json", "failed/i.json", "configurations/i.json", "score/i/i/record.json"):
        (folder / where).parent.mkdir(parents=True, exist_ok=True)
        (folder / where).write_bytes(content)
    (folder / "train/i/a.txt").write_text("text")
    store = Store(folder)
    with only_our_errors():
        record = store.get("train", "i")
        assert record is not None
        for name in record.artifacts:
            with only_our_errors():
                store.artifact(record, name)
    for read in (store.failure, store.configuration, lambda _: list(store.records("train"))):
        with only_our_errors():
            read("i")
    with only_our_errors():
        store.evaluations("score", "i")


PLAN = {
    "rows": ["c"], "configurations": {"c": {"task": {}, "axes": {}, "profile": "quick", "data": "x"}}, "cohorts": {},
    "jobs": [], "seeds": [0], "profile": "quick", "data": "", "shared": [], "name": "r", "typed": [], "sentence": "",
}  # fmt: skip
CHANGED_PLAN = st.tuples(st.sampled_from(sorted(PLAN)), VALUES).map(lambda pair: json.dumps({**PLAN, pair[0]: pair[1]}))


@bounded
@given(CHANGED_PLAN | JSONS.map(bytes.decode) | damaged(json.dumps(PLAN).encode()).map(lambda b: b.decode("latin1")))
def test_plans(folder: Path, content: str) -> None:
    """Plans of runs, from which tables are rebuilt."""
    plans = folder / "out" / "store" / "plans" / "epvs"
    plans.mkdir(parents=True, exist_ok=True)
    (plans / "r.json").write_text(content, "utf-8", "surrogateescape")
    with only_our_errors():
        recall("epvs", RunSettings(out=str(folder / "out")), name="r")


def archive(path: Path) -> bytes:
    """An archive of two arrays."""
    np.savez_compressed(path, a=np.arange(9.0), b=np.ones((2, 3), np.float16))
    return path.read_bytes()


@bounded
@given(st.data())
def test_arrays(folder: Path, data: Any) -> None:
    """Files of arrays."""
    sound = archive(folder / "sound.npz")
    (folder / "a.npz").write_bytes(data.draw(damaged(sound)))
    with only_our_errors():
        read_npz(folder / "a.npz")
    np.save(folder / "sound.npy", np.arange(9.0))
    (folder / "a.npy").write_bytes(data.draw(damaged((folder / "sound.npy").read_bytes())))
    with only_our_errors():
        read_npy(folder / "a.npy")


ENTRY = {"key": "k", "offset": 0, "length": 72, "shape": [9], "dtype": "<f8", "coding": "dense", "sha256": "0" * 64}
ENTRIES = st.tuples(st.sampled_from(sorted(ENTRY)), VALUES).map(
    lambda pair: json.dumps({**ENTRY, pair[0]: pair[1]}).encode() + b"\n"
)


@bounded
@given(ENTRIES | JSONS | damaged(json.dumps(ENTRY).encode() + b"\n"))
def test_index_of_the_cache(folder: Path, line: bytes) -> None:
    """Lines of the index of prepared arrays."""
    cache = folder / "arrays"
    cache.mkdir(exist_ok=True)
    (cache / "x.bin").write_bytes(bytes(72))
    (cache / "x.jsonl").write_bytes(line)
    with only_our_errors(), ArrayCache(cache) as arrays:
        found = arrays.known("k")
        if found is not None:
            found.load()
            found.check()


def test_the_guard_lets_other_errors_pass() -> None:
    """Otherwise no test here could fail."""
    with pytest.raises(KeyError), only_our_errors():
        raise KeyError
    with only_our_errors():
        raise HarnessError


@pytest.mark.parametrize("caught", [OSError, Exception])
def test_the_guard_finds_a_hang_in_code_that_catches_errors(caught: type[Exception]) -> None:
    """A reader that turns every error into one of ours does not hide that it hangs."""

    def read() -> None:
        try:
            time.sleep(5)
        except caught as error:
            raise HarnessError from error

    with pytest.raises(CaseHangs), only_our_errors(patience_s=0.05):
        read()
