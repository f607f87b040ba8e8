"""The store commits cells completely or not at all, and verifies what it reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import StoreError
from harness.core.task import Configuration
from harness.storage.files import checksum
from harness.storage.store import RECORD, CellRecord, ReadOnce, Store, write_json, write_record


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


def test_record_lists_every_file_with_its_checksum(made: Any) -> None:
    """The record lists every file with its checksum."""
    folder = made()
    assert json.loads((folder / RECORD).read_text())["artifacts"] == {"weights.bin": checksum(folder / "weights.bin")}


def test_committed_cell_is_found(store: Store, made: Any) -> None:
    """A committed cell has a record and its artifacts."""
    record = store.commit(made(seconds=2.5, facts={"epochs": 3}))
    assert store.get("train", "abc") == record
    assert (record.seconds, record.facts) == (2.5, {"epochs": 3})
    assert store.artifact(record, "weights.bin").read_text() == "weights"


def test_missing_cell_is_none(store: Store) -> None:
    """A cell that was not committed has no record, without an error."""
    assert store.get("train", "abc") is None
    assert store.failure("abc") is None
    assert list(store.records("train")) == []


def test_records_are_read_once(store: Store, made: Any) -> None:
    """A known record and a checked artifact are not read again; an absent record is looked up again."""
    once = ReadOnce(store.root)
    assert once.get("train", "abc") is None
    store.commit(made())
    record = once.get("train", "abc")
    assert record is not None
    path = once.artifact(record, "weights.bin")
    (store.folder("train", "abc") / RECORD).unlink()
    path.unlink()
    assert once.get("train", "abc") is record
    assert once.artifact(record, "weights.bin") == path
    assert store.get("train", "abc") is None


def test_second_commit_keeps_the_first(store: Store, made: Any) -> None:
    """A second commit of the same cell keeps the first."""
    store.commit(made(content="first"))
    store.commit(made(content="second"))
    record = store.get("train", "abc")
    assert record is not None and store.artifact(record, "weights.bin").read_text() == "first"


def test_commit_leaves_no_temporary_folder(store: Store, made: Any) -> None:
    """Commits leave no temporary folder."""
    for content in ("first", "second"):
        store.commit(made(content=content))
    assert [path.name for path in (store.root / "train").iterdir()] == ["abc"]


def test_cell_permissions_follow_the_umask(store: Store, made: Any, tmp_path: Path) -> None:
    """Files of a cell have the permissions of the user's umask."""
    store.commit(made())
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    cell = store.folder("train", "abc")
    assert cell.stat().st_mode == (tmp_path / "folder").stat().st_mode
    assert (cell / RECORD).stat().st_mode == (tmp_path / "file").stat().st_mode


def test_interrupted_commit_does_not_count(store: Store, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit killed before the rename does not count, and a second one succeeds."""

    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        store.commit(made())
    assert store.get("train", "abc") is None
    store.commit(made(content="again"))
    assert store.get("train", "abc") is not None


def test_incomplete_folder_is_replaced(store: Store, made: Any) -> None:
    """A cell folder without a record does not count and is replaced."""
    half = store.folder("train", "abc")
    half.mkdir(parents=True)
    (half / "weights.bin").write_text("half")
    assert store.get("train", "abc") is None and list(store.records("train")) == []
    record = store.commit(made())
    assert store.get("train", "abc") == record
    assert store.artifact(record, "weights.bin").read_text() == "weights"


def test_failed_rename_raises(store: Store, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the rename fails, for example on a full disk, an error is raised."""

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        store.commit(made())


def test_artifact_damaged_before_the_commit_is_refused(store: Store, made: Any) -> None:
    """An artifact that changed before the commit is refused."""
    folder = made()
    (folder / "weights.bin").write_text("other")
    with pytest.raises(StoreError, match=r"artifact weights\.bin of cell abc was damaged on its way to the store"):
        store.commit(folder)
    assert store.get("train", "abc") is None


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_artifact_damaged_in_the_store_is_refused(store: Store, made: Any, damage: str) -> None:
    """A changed or missing artifact raises an error that suggests what to delete."""
    record = store.commit(made())
    path = store.folder("train", "abc") / "weights.bin"
    path.write_text("other") if damage == "changed" else path.unlink()
    with pytest.raises(
        StoreError, match=r"weights\.bin is missing or has changed .*; delete .*abc and run the command"
    ):
        store.artifact(record, "weights.bin")


def test_artifact_that_is_not_listed(store: Store, made: Any) -> None:
    """A file that the record does not list is not an artifact."""
    record = store.commit(made())
    (store.folder("train", "abc") / "extra").touch()
    with pytest.raises(StoreError, match=r"cell abc has no artifact 'extra'; it has weights\.bin"):
        store.artifact(record, "extra")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "sub/../../secret", "..", ""])
def test_record_with_a_path_outside_its_folder_is_refused(store: Store, made: Any, name: str) -> None:
    """A record with an artifact path outside its folder is refused, on commit and on read."""
    folder = made()
    record = json.loads((folder / RECORD).read_text())
    record["artifacts"] = {name: "0" * 64}
    (folder / RECORD).write_text(json.dumps(record))
    with pytest.raises(StoreError, match="the name of an artifact must be a plain file name, got"):
        store.commit(folder)
    shutil.copytree(folder, store.folder("train", "abc"))
    with pytest.raises(StoreError, match="must be inside the cell's folder|is missing or has changed"):
        store.artifact(store.get("train", "abc"), name)  # type: ignore[arg-type]


def test_link_out_of_the_folder_is_refused(store: Store, made: Any, tmp_path: Path) -> None:
    """A symbolic link out of the folder is refused, even if the content is correct."""
    record = store.commit(made())
    path = store.folder("train", "abc") / "weights.bin"
    shutil.copy(path, tmp_path / "elsewhere")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="must be inside the cell's folder, .* has 'weights.bin'"):
        store.artifact(record, "weights.bin")


@pytest.mark.parametrize(
    ("field", "value"), [("identity", "../../x"), ("stage", "../x"), ("stage", "other"), ("group", "../x")]
)
def test_record_with_a_path_outside_the_store_is_refused(store: Store, made: Any, field: str, value: str) -> None:
    """A record whose identity, stage or group is not a plain folder name is refused."""
    folder = made()
    record = {**json.loads((folder / RECORD).read_text()), field: value}
    (folder / RECORD).write_text(json.dumps(record))
    with pytest.raises(
        StoreError, match="plain file name|stage of a cell must be one of train, predict, explain, probe, score, pool"
    ):
        store.commit(folder)


class TestValues:
    """Records of values are stored in the group of the cell that they evaluate."""

    @pytest.fixture
    def valued(self, tmp_path: Path) -> Any:
        """A function that makes a completed folder with values of some metrics."""

        def make(identity: str, *metrics: str, group: str = "cell", stage: Any = "score", state: Any = "done") -> Path:
            folder = tmp_path / f"work-{stage}-{group}-{identity}-{state}"
            folder.mkdir()
            (folder / "values.json").write_text(json.dumps(list(metrics)))
            named = {name: f"id-{name}" for name in metrics}
            write_record(folder, CellRecord(identity, stage, state, "conf", 0, 1, group=group, metrics=named))
            return folder

        return make

    def test_all_values_of_a_cell_are_found(self, store: Store, valued: Any) -> None:
        """All values of a cell and stage are found, whenever they were added."""
        made = [store.commit(valued(*given)) for given in (("b", "dice"), ("a", "auc", "icc"))]
        store.commit(valued("c", "dice", group="other"))
        store.commit(valued("d", "curve", stage="probe"))
        assert store.evaluations("score", "cell") == (made[1], made[0])
        assert [record.identity for record in store.evaluations("probe", "cell")] == ["d"]
        assert store.evaluations("pool", "cell") == ()
        assert made[1].metrics == {"auc": "id-auc", "icc": "id-icc"}

    def test_cells_without_values_have_no_group(self, store: Store, made: Any) -> None:
        """Cells without metrics have no group."""
        store.commit(made())
        assert store.evaluations("train", "") == ()

    def test_values_lie_in_the_folder_of_their_group(self, store: Store, valued: Any) -> None:
        """The record and artifacts of values are found in the folder of their group."""
        record = store.commit(valued("a", "dice"))
        assert store.folder("score", "a", group="cell") == store.root / "score" / "cell" / "a"
        assert store.get("score", "a", group="cell") == record and store.get("score", "a") is None
        assert json.loads(store.artifact(record, "values.json").read_text()) == ["dice"]

    def test_interrupted_commit_of_values_does_not_count(
        self, store: Store, valued: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A commit of values killed before the rename does not count, and sweeping removes its files."""

        def killed(self: Path, target: Path) -> Path:
            raise KeyboardInterrupt

        kept = store.commit(valued("a", "dice"))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", killed)
            patch.setattr(shutil, "rmtree", lambda *given, **named: None)  # as if the process had ended
            with pytest.raises(KeyboardInterrupt):
                store.commit(valued("b", "auc"))
        assert len(list((store.root / "score" / "cell").iterdir())) == 2
        assert store.evaluations("score", "cell") == (kept,)
        store.sweep()
        assert [path.name for path in (store.root / "score" / "cell").iterdir()] == ["a"]
        assert store.evaluations("score", "cell") == (kept,)

    def test_failed_values_are_kept_apart(self, store: Store, valued: Any) -> None:
        """Failed values are listed as failures and do not count as values."""
        store.commit(valued("a", "dice", state="failed"))
        assert store.evaluations("score", "cell") == ()
        assert store.failure("a") is not None

    def test_damaged_record_is_named(self, store: Store, valued: Any) -> None:
        """A damaged record of values raises an error that names it."""
        store.commit(valued("a", "dice"))
        (store.folder("score", "a", group="cell") / RECORD).write_text("{")
        with pytest.raises(StoreError, match=r"cell.a.record\.json cannot be read"):
            store.evaluations("score", "cell")


@pytest.mark.parametrize("text", ["{", "[]", '{"identity": 1}'])
def test_record_that_cannot_be_read(store: Store, made: Any, text: str) -> None:
    """A damaged record raises an error that names the file and a remedy."""
    store.commit(made())
    (store.folder("train", "abc") / RECORD).write_text(text)
    with pytest.raises(
        StoreError, match=r"record\.json cannot be read .*; delete its folder and run the command again"
    ):
        store.get("train", "abc")


def test_record_of_another_cell(store: Store, made: Any) -> None:
    """A record in the folder of another cell raises an error."""
    store.commit(made())
    shutil.copytree(store.folder("train", "abc"), store.folder("train", "xyz"))
    shutil.copytree(store.folder("train", "abc"), store.folder("score", "abc"))
    for stage, identity in (("train", "xyz"), ("score", "abc")):
        with pytest.raises(StoreError, match="got train abc; delete its folder"):
            store.get(stage, identity)


def test_failure_is_kept_apart_with_its_traceback(store: Store, made: Any) -> None:
    """The error and traceback of a failed cell are stored, and the cell is not done."""
    store.commit(made(state="failed", content="Traceback …", error="ValueError: no"))
    assert store.get("train", "abc") is None
    failure = store.failure("abc")
    assert failure is not None and (failure.state, failure.error) == ("failed", "ValueError: no")
    assert (store.root / "failed" / "abc.txt").read_text() == "Traceback …"


def test_failure_never_overwrites_a_result(store: Store, made: Any) -> None:
    """A failure does not replace a done cell."""
    done = store.commit(made())
    store.commit(made(state="failed", error="ValueError: no"))
    assert store.get("train", "abc") == done and store.failure("abc") is None


def test_success_removes_the_failure(store: Store, made: Any) -> None:
    """A success removes the recorded failure."""
    store.commit(made(state="failed", error="ValueError: no"))
    store.commit(made())
    assert store.failure("abc") is None and list((store.root / "failed").iterdir()) == []


def test_records_lists_what_is_done(store: Store, made: Any) -> None:
    """``records`` lists done cells without failures and leftovers."""
    for identity in ("b", "a"):
        store.commit(made(identity))
    store.commit(made("c", state="failed", error="x"))
    (store.root / "train" / ".d-123").mkdir()
    assert [record.identity for record in store.records("train")] == ["a", "b"]


def test_sweep_removes_only_leftovers(store: Store, made: Any) -> None:
    """Sweeping removes leftovers of killed processes and keeps cells."""
    store.commit(made())
    leftovers = [
        store.root / "train" / ".abc-x1",
        store.root / "score" / ".z-9",
        store.root / "score" / "group" / ".z-9",
        store.root / "pool" / "group" / ".y-8",
    ]
    for folder in leftovers:
        folder.mkdir(parents=True)
        (folder / "weights.bin").touch()
    (store.root / "plans").mkdir()
    (store.root / "plans" / ".part-8f").touch()
    store.sweep()
    assert store.get("train", "abc") is not None
    assert not any(path.exists() for path in leftovers) and list((store.root / "plans").iterdir()) == []


def test_adopted_record_is_flagged_and_shares_its_files(store: Store, made: Any) -> None:
    """A record adopted under another identity is flagged and shares the files of the original."""
    old = store.commit(made())
    adopted = store.adopt(old, "new")
    assert adopted.reused_code and not old.reused_code
    assert store.get("train", "new") == adopted and store.get("train", "abc") == old
    paths = [store.artifact(record, "weights.bin") for record in (old, adopted)]
    assert paths[0].samefile(paths[1])


def test_damaged_record_is_not_adopted(store: Store, made: Any) -> None:
    """A damaged record is not adopted."""
    old = store.commit(made())
    (store.folder("train", "abc") / "weights.bin").write_text("other")
    with pytest.raises(StoreError, match="has changed"):
        store.adopt(old, "new")
    assert [path.name for path in (store.root / "train").iterdir()] == ["abc"]


def test_configuration_is_stored(store: Store) -> None:
    """The configuration of an id is stored."""
    described = {key: {} for key in ("name", "version", "targets", "adapter", "split", "model", "recipe")}
    one = Configuration(described, {"noise": 0.1}, "quick", "f")
    store.remember(one)
    assert store.configuration(one.id) == one


def test_unknown_configuration(store: Store) -> None:
    """An unknown configuration raises an error that names the store."""
    with pytest.raises(StoreError, match="no configuration xyz is in .*store"):
        store.configuration("xyz")


def test_failed_json_write_leaves_no_file(tmp_path: Path) -> None:
    """If JSON cannot be written, the old file is kept and no temporary file is left."""
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
