"""The same store in a folder and in a bucket of a mock of S3: one suite for both."""

from __future__ import annotations

import json
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.core.errors import StoreError
from harness.core.task import Configuration
from harness.storage.bucket import Bucket
from harness.storage.store import RECORD, CellRecord, Store

Make = Callable[..., Path]


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store."""
    if request.param == "folder":
        return Store(tmp_path / "store")
    return Store(tmp_path / "copies", Bucket(request.getfixturevalue("s3_url"), waits_s=()))


def elsewhere(store: Store, tmp_path: Path) -> Store:
    """The same store, opened by another process on another machine."""
    return Store(store.root if store.bucket is None else tmp_path / "elsewhere", store.bucket)


def damage(store: Store, record: CellRecord) -> None:
    """Change the bytes of an artifact where they are kept."""
    if store.bucket is None:
        (store.folder(record.stage, record.identity) / "weights.bin").write_text("other")
        return
    (name,) = (name for name in store.bucket.files(f"train/{record.identity}") if name.endswith("weights.bin"))
    store.bucket.replace(name, b"other")


def test_committed_cell_is_found_from_everywhere(store: Store, made: Make, tmp_path: Path) -> None:
    """Its record and its artifacts are read here and elsewhere."""
    record = store.commit(made(seconds=2.5, facts={"epochs": 3}, parents=("x",)))
    other = elsewhere(store, tmp_path)
    for one in (store, other, pickle.loads(pickle.dumps(store))):
        assert one.get("train", "abc") == record
        assert one.artifact(record, "weights.bin").read_text() == "weights"
    assert other.written(record) > 1.7e18


def test_missing_cell_is_none(store: Store) -> None:
    """A cell that was not committed has no record, without an error; it can be committed later."""
    assert store.get("train", "abc") is None and store.failure("abc") is None
    assert list(store.records("train")) == [] and store.evaluations("score", "abc") == ()


def test_second_commit_keeps_the_first(store: Store, made: Make, tmp_path: Path) -> None:
    """Equal identities mean equal content, so the first result stays, with its own artifacts."""
    first = store.commit(made(content="first"))
    elsewhere(store, tmp_path).commit(made(content="second"))
    found = elsewhere(store, tmp_path).get("train", "abc")
    assert found == first and elsewhere(store, tmp_path).artifact(found, "weights.bin").read_text() == "first"


def test_artifacts_are_on_the_disk_before_the_cell_is_there(
    made: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure, a record that is there must not name files that are empty."""
    synchronised, before = set[int](), set[int]()
    rename = Path.rename

    def noted(number: int) -> None:
        synchronised.add(os.fstat(number).st_ino)

    def named(self: Path, target: Path) -> Path:
        before.update(synchronised)
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", named)
    store = Store(tmp_path / "store")
    record = store.commit(made())
    folder = store.folder(record.stage, record.identity)
    assert record.artifacts
    assert before >= {path.stat().st_ino for path in (folder, *folder.iterdir())}


def test_of_many_writers_one_succeeds(store: Store, made: Make, tmp_path: Path) -> None:
    """Whoever wins, the record and the artifacts are those of one writer."""
    folders = [made(content=f"writer-{number}", seconds=float(number)) for number in range(8)]
    start = threading.Barrier(len(folders))

    def write(folder: Path) -> None:
        own = pickle.loads(pickle.dumps(store))
        start.wait()
        own.commit(folder)

    threads = [threading.Thread(target=write, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other = elsewhere(store, tmp_path)
    (record,) = other.records("train")
    assert other.artifact(record, "weights.bin").read_text() == f"writer-{record.seconds:.0f}"


def test_cell_without_record_does_not_count(store: Store, made: Make) -> None:
    """A writer that was killed before the record leaves no cell, and another one can write it."""
    folder = made()
    if store.bucket is None:
        (store.root / "train" / "abc").mkdir(parents=True)
        (store.root / "train" / "abc" / "weights.bin").write_text("half")
    else:
        store.bucket.replace("train/abc/0123-weights.bin", b"half")
    assert store.get("train", "abc") is None and list(store.records("train")) == []
    record = store.commit(folder)
    assert store.artifact(record, "weights.bin").read_text() == "weights"


def test_artifact_damaged_before_the_commit_is_refused(store: Store, made: Make) -> None:
    """Its checksum is compared, and there is no record."""
    folder = made()
    (folder / "weights.bin").write_text("damaged")
    with pytest.raises(StoreError, match=r"artifact weights\.bin of cell abc was damaged on its way to the store"):
        store.commit(folder)
    assert store.get("train", "abc") is None


def test_artifact_damaged_in_the_store_is_refused(store: Store, made: Make, tmp_path: Path) -> None:
    """The error says where it is and what to do."""
    record = store.commit(made())
    damage(store, record)
    with pytest.raises(StoreError, match=r"weights\.bin is missing or has changed .* delete .*train/abc and run the"):
        elsewhere(store, tmp_path).artifact(record, "weights.bin")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b", ".."])
def test_names_outside_of_the_cell_are_refused(store: Store, made: Make, name: str) -> None:
    """Neither written nor read."""
    folder = made()
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**record, "artifacts": {name: "0" * 64}}))
    with pytest.raises(StoreError, match="must be a plain file name"):
        store.commit(folder)
    outside = CellRecord("abc", "train", "done", "conf", 0, 1, artifacts={name: "0" * 64})
    with pytest.raises(StoreError, match="must be inside the cell's folder|is missing"):
        store.artifact(outside, name)


def test_folder_that_was_copied_to_a_bucket_is_read(s3_url: str, made: Make, tmp_path: Path) -> None:
    """With the plain names that files have in a folder."""
    folder, bucket = Store(tmp_path / "store"), Bucket(s3_url)
    record = folder.commit(made())
    for path in (path for path in folder.root.rglob("*") if path.is_file()):
        bucket.replace(path.relative_to(folder.root).as_posix(), path)
    copied = Store(tmp_path / "copies", bucket)
    assert list(copied.records("train")) == [record]
    assert copied.artifact(record, "weights.bin").read_text() == "weights"


def test_values_of_a_cell_are_found(store: Store, made: Make, tmp_path: Path) -> None:
    """All records below the cell that they evaluate, and no others."""
    for identity in ("one", "two"):
        store.commit(made(identity, stage="score", group="parent", metrics={"dice": identity}))
    store.commit(made("three", stage="score", group="other"))
    found = elsewhere(store, tmp_path).evaluations("score", "parent")
    assert [record.identity for record in found] == ["one", "two"]
    assert store.get("score", "one", group="parent") == found[0]


def test_failure_is_kept_apart_until_there_is_a_result(store: Store, made: Make, tmp_path: Path) -> None:
    """It never overwrites a result, and the result removes it."""
    failed = store.commit(made(state="failed", content="Traceback", error="ValueError: no"))
    assert elsewhere(store, tmp_path).failure("abc") == failed
    assert store.place.read("failed/abc.txt") == "Traceback"
    done = store.commit(made())
    assert store.failure("abc") is None and store.get("train", "abc") == done
    store.commit(made(state="failed", content="again"))
    assert store.failure("abc") is None


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"identity": "abc"}', "\udcff"])
def test_record_that_cannot_be_read(store: Store, text: str) -> None:
    """The error names it and says what to do."""
    content = text.encode("utf-8", "surrogateescape")
    if store.bucket is None:
        (store.root / "train" / "abc").mkdir(parents=True)
        (store.root / "train" / "abc" / RECORD).write_bytes(content)
    else:
        store.bucket.replace(f"train/abc/{RECORD}", content)
    with pytest.raises(StoreError, match=r"train/abc/record\.json cannot be read .*; delete its folder and run"):
        store.get("train", "abc")


def test_record_of_another_cell(store: Store, made: Make) -> None:
    """It is refused."""
    store.commit(made())
    store.place.replace(f"train/other/{RECORD}", store.place.read(f"train/abc/{RECORD}"))
    with pytest.raises(StoreError, match="must be the record of train other, got train abc"):
        store.get("train", "other")


def test_adopted_record_is_flagged(store: Store, made: Make, tmp_path: Path) -> None:
    """The same files are found under both identities."""
    record = store.commit(made())
    adopted = store.adopt(record, "new", code="c0de", parents=("p",))
    other = elsewhere(store, tmp_path)
    assert adopted.reused_code and other.get("train", "new") == adopted and other.get("train", "abc") == record
    assert other.artifact(adopted, "weights.bin").read_text() == "weights"


def test_plans_and_configurations(store: Store, tmp_path: Path) -> None:
    """They are replaced, listed and read elsewhere."""
    configuration = Configuration({"name": "epvs"}, {"model": "unet"}, "quick", "f1n6e4")
    store.remember(configuration)
    for content in ("old", "new"):
        store.keep("plans/epvs/run.json", content)
    store.place.replace("plans/epvs/latest", "run\n")
    other = elsewhere(store, tmp_path)
    assert other.configuration(configuration.id) == configuration
    assert json.loads(other.place.read("plans/epvs/run.json")) == "new"
    assert other.place.names("plans/epvs") == ["latest", "run.json"]
    with pytest.raises(StoreError, match=r"no configuration 0000 is in"):
        other.configuration("0000")


def test_sweep_keeps_what_is_done(store: Store, made: Make, tmp_path: Path) -> None:
    """Remains are removed; cells, failures and plans are not."""
    record = store.commit(made())
    store.commit(made("f", state="failed"))
    store.keep("plans/epvs/run.json", {})
    (store.root / "plans" / "epvs").mkdir(parents=True, exist_ok=True)
    (store.root / "plans" / "epvs" / ".part-1").touch()
    store.sweep()
    assert store.get("train", "abc") == record and store.failure("f") is not None
    assert store.place.names("plans/epvs") == ["run.json"] and not list(store.root.rglob(".part-*"))
    assert elsewhere(store, tmp_path).artifact(record, "weights.bin").read_text() == "weights"
