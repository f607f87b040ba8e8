"""The store: results of cells, by identity.

::

    store/
      train/<identity>/record.json + artifacts      one folder per finished cell
      predict/ explain/                             the same
      score/<cell>/<identity>/  probe/…  pool/…     values of metrics, below the cell that they evaluate
      failed/<identity>.json, .txt                  the last failure of a cell, its traceback
      configurations/<id>.json                      the configurations
      plans/<task>/<run>.json                       the cells of a run
      plans/<task>/latest                           the name of the latest run

The folder of a finished cell appears atomically: it is filled elsewhere and renamed into
place. Failures are stored separately, so that they can neither be mistaken for results
nor overwrite them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from harness.core.errors import StoreError
from harness.core.task import Configuration
from harness.core.types import JSON
from harness.storage.files import PART, checksum, replace_file

__all__ = ["RECORD", "STAGES", "TRACEBACK", "CellRecord", "ReadOnce", "Stage", "Store", "write_json", "write_record"]

RECORD = "record.json"
TRACEBACK = "traceback.txt"
Stage = Literal["train", "predict", "explain", "probe", "score", "pool"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class CellRecord:
    """Record of one cell.

    Parameters
    ----------
    identity, stage : identity and stage of the cell
    state : ``done`` or ``failed``
    configuration : id of its configuration
    fold, seed : fold and seed of its training
    label : label of its explanation; empty for trainings, predictions and their scores
    artifacts : SHA-256 of each file, by name
    seconds : wall time
    hardware : hardware on which it ran
    facts : further plain values, e.g. the number of parameters
    error : first line of the error, and where it was raised
    body : identity without code digests
    code : digest of the code in its identity; empty for values of metrics
    parents : identities of the cells from whose artifacts it was computed
    group : for values of metrics, the cell that they evaluate; empty for other stages
    metrics : identities of its metrics, by label
    reused_code : whether the record was accepted although the code has changed since
    """

    identity: str
    stage: Stage
    state: Literal["done", "failed"]
    configuration: str
    fold: int
    seed: int
    label: str = ""
    artifacts: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    hardware: Mapping[str, JSON] = field(default_factory=dict)
    facts: Mapping[str, JSON] = field(default_factory=dict)
    error: str = ""
    body: str = ""
    code: str = ""
    parents: tuple[str, ...] = ()
    group: str = ""
    metrics: Mapping[str, str] = field(default_factory=dict)
    reused_code: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "parents", tuple(self.parents))  # JSON has lists


_NO_RECORD = (ValueError, TypeError, RecursionError)  # raised for text that is no JSON object of the known fields


def _record_of(path: Path, what: str) -> CellRecord:
    """The record in a file; ``what`` is to be deleted if it cannot be read."""
    try:
        record = CellRecord(**json.loads(path.read_text("utf-8")))
        if wrong := _wrong_fields(record):
            raise TypeError(f"wrong types of {', '.join(wrong)}")
        return record
    except _NO_RECORD as error:
        raise _unreadable(path, error, what) from None


def _wrong_fields(record: CellRecord) -> list[str]:
    """Fields of a record whose values have not the type that is written."""
    texts = ("identity", "stage", "configuration", "label", "error", "body", "code", "group")
    sound = {name: isinstance(getattr(record, name), str) for name in texts}
    sound |= {name: type(getattr(record, name)) is int for name in ("fold", "seed")}
    sound |= {name: isinstance(getattr(record, name), dict) for name in ("hardware", "facts")}
    for name in ("artifacts", "metrics"):
        found = getattr(record, name)
        sound[name] = isinstance(found, dict) and all(isinstance(one, str) for one in found.values())
    sound["parents"] = all(isinstance(one, str) for one in record.parents)
    sound["state"] = record.state in ("done", "failed")
    sound["seconds"] = isinstance(record.seconds, int | float)
    return [name for name, is_sound in sound.items() if not is_sound]


def _unreadable(path: Path, error: Exception, what: str) -> StoreError:
    return StoreError(f"{path} cannot be read ({error}); delete {what} and run the command again")


@dataclass(frozen=True)
class Store:
    """Records and artifacts in a folder.

    Parameters
    ----------
    root : absolute path of the ``store`` folder; created when first written to
    """

    root: Path

    def folder(self, stage: str, identity: str, *, group: str = "") -> Path:
        """Folder of a finished cell."""
        return self.root / stage / group / identity

    def get(self, stage: str, identity: str, *, group: str = "") -> CellRecord | None:
        """The record of a finished cell, or ``None``.

        Parameters
        ----------
        stage, identity : stage and identity of the cell
        group : for values of metrics, the cell that they evaluate

        Raises
        ------
        StoreError
            If the record cannot be read or belongs to another cell.
        """
        path = self.folder(stage, identity, group=group) / RECORD
        try:
            record = _record_of(path, "its folder")
        except FileNotFoundError:
            return None
        if (record.stage, record.identity) != (stage, identity):
            raise StoreError(
                f"{path} must be the record of {stage} {identity}, got {record.stage} {record.identity}; "
                "delete its folder and run the command again"
            )
        return record

    def evaluations(self, stage: str, group: str) -> tuple[CellRecord, ...]:
        """All records with values of one cell, one for each time that metrics were added."""
        found = (self.root / stage / group).glob(f"[!.]*/{RECORD}") if group else ()
        records = (self.get(stage, path.parent.name, group=group) for path in sorted(found))
        return tuple(record for record in records if record is not None)

    def artifact(self, record: CellRecord, name: str) -> Path:
        """Path of an artifact, after a check of its checksum.

        Raises
        ------
        StoreError
            If the record does not list it, if it is outside the cell's folder, or if its
            checksum differs.
        """
        if name not in record.artifacts:
            raise StoreError(f"cell {record.identity} has no artifact {name!r}; it has {', '.join(record.artifacts)}")
        folder = self.folder(record.stage, record.identity, group=record.group)
        path = folder / name
        if path.resolve().parent != folder.resolve():
            raise StoreError(
                f"artifacts must be inside the cell's folder, the record of {record.identity} has {name!r}"
            )
        if not path.is_file() or checksum(path) != record.artifacts[name]:
            raise StoreError(
                f"{path} is missing or has changed since it was written; delete {folder} and run the command again"
            )
        return path

    def commit(self, source: Path) -> CellRecord:
        """Add the folder of a cell, completed by :func:`write_record`, to the store.

        The folder is copied next to its destination (it may be on another file system),
        checked and renamed. If the cell is already done, nothing changes, because equal
        identities mean equal content. Of a failed cell, the record and the traceback are
        stored.

        Raises
        ------
        StoreError
            If an artifact was damaged, or the record names a file or folder outside its own.
        """
        record = CellRecord(**json.loads((source / RECORD).read_text("utf-8")))
        if _plain(record.stage) not in STAGES:
            raise StoreError(f"the stage of a cell must be one of {', '.join(STAGES)}, got {record.stage!r}")
        group = _plain(record.group) if record.group else ""
        target, failed = self.folder(record.stage, _plain(record.identity), group=group), self.root / "failed"
        if record.state != "done":
            if self.get(record.stage, record.identity, group=group) is None:
                write_json(failed / f"{record.identity}.json", dataclasses.asdict(record))
                if TRACEBACK in record.artifacts:
                    shutil.copyfile(source / TRACEBACK, failed / f"{record.identity}.txt")
            return record
        with self._staged(target) as staged:
            for name, expected in record.artifacts.items():
                shutil.copyfile(source / _plain(name), staged / name)
                if checksum(staged / name) != expected:
                    raise StoreError(f"artifact {name} of cell {record.identity} was damaged on its way to the store")
            write_json(staged / RECORD, dataclasses.asdict(record))
        for end in ("json", "txt"):
            (failed / f"{record.identity}.{end}").unlink(missing_ok=True)
        return record

    def adopt(self, record: CellRecord, identity: str, *, code: str = "", parents: Sequence[str] = ()) -> CellRecord:
        """Copy a record of older code to a cell of the present code, with a flag.

        The older record is kept. Both are the same result, under the identities that two
        versions of the code give it.

        Parameters
        ----------
        record : record of older code
        identity, code, parents : fields of the cell for which it is accepted
        """
        adopted = dataclasses.replace(record, identity=identity, code=code, parents=tuple(parents), reused_code=True)
        with self._staged(self.folder(record.stage, identity)) as staged:
            for name in record.artifacts:
                os.link(self.artifact(record, name), staged / name)
            write_json(staged / RECORD, dataclasses.asdict(adopted))
        return adopted

    @contextlib.contextmanager
    def _staged(self, target: Path) -> Iterator[Path]:
        """A folder to fill, which is renamed to ``target`` if the ``with`` block succeeds."""
        # tempfile would make the folder private; cells have the user's default permissions.
        staged = target.parent / f".{target.name}-{uuid.uuid4().hex}"
        staged.mkdir(parents=True)
        try:
            yield staged
            if (target / RECORD).exists():
                return  # another writer was first
            shutil.rmtree(target, ignore_errors=True)  # a folder without record is incomplete
            try:
                staged.rename(target)
            except OSError:
                if not (target / RECORD).exists():
                    raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def failure(self, identity: str) -> CellRecord | None:
        """The last failure of a cell that is not done, or ``None``."""
        path = self.root / "failed" / f"{identity}.json"
        return _record_of(path, "it") if path.is_file() else None

    def records(self, stage: str) -> Iterator[CellRecord]:
        """All finished cells of a stage, by identity."""
        for path in sorted((self.root / stage).glob(f"[!.]*/{RECORD}")):
            record = self.get(stage, path.parent.name)
            if record is not None:
                yield record

    def written(self, record: CellRecord) -> int:
        """Time at which a finished cell was written, in nanoseconds of the file system's clock."""
        return (self.folder(record.stage, record.identity, group=record.group) / RECORD).stat().st_mtime_ns

    def sweep(self) -> None:
        """Remove the remains of interrupted commits."""
        for stage in STAGES:
            for pattern in (".*-*", "*/.*-*"):
                for path in (self.root / stage).glob(pattern):
                    shutil.rmtree(path, ignore_errors=True)
        for folder in ("failed", "configurations", "plans"):
            for path in (self.root / folder).rglob(f"{PART}*"):
                path.unlink(missing_ok=True)

    def remember(self, configuration: Configuration) -> None:
        """Store a configuration, so that its id can be resolved."""
        write_json(self.root / "configurations" / f"{configuration.id}.json", dataclasses.asdict(configuration))

    def configuration(self, identity: str) -> Configuration:
        """The configuration with this id.

        Raises
        ------
        StoreError
            If it is not in the store, or cannot be read.
        """
        path = self.root / "configurations" / f"{identity}.json"
        if not path.is_file():
            raise StoreError(f"no configuration {identity} is in {self.root}")
        try:
            return Configuration(**json.loads(path.read_text("utf-8")))
        except _NO_RECORD as error:
            raise _unreadable(path, error, "it") from None


@dataclass(frozen=True)
class ReadOnce(Store):
    """A store whose records are read once, and whose artifacts are checked once.

    For tables, report and MLflow after a run, which need the same records many times.
    Records in the store never change, so only those that are absent are looked up again.
    """

    _records: dict[tuple[str, str, str], CellRecord] = field(default_factory=dict, repr=False, compare=False)
    _artifacts: dict[tuple[str, str], Path] = field(default_factory=dict, repr=False, compare=False)

    def get(self, stage: str, identity: str, *, group: str = "") -> CellRecord | None:
        """The record of a finished cell, or ``None``, see :meth:`Store.get`."""
        key = (stage, identity, group)
        if key not in self._records:
            found = super().get(stage, identity, group=group)
            if found is None:
                return None
            self._records[key] = found
        return self._records[key]

    def artifact(self, record: CellRecord, name: str) -> Path:
        """Path of an artifact, see :meth:`Store.artifact`."""
        key = (f"{record.stage} {record.group} {record.identity}", name)
        if key not in self._artifacts:
            self._artifacts[key] = super().artifact(record, name)
        return self._artifacts[key]


def write_record(folder: Path, record: CellRecord) -> None:
    """Complete the folder of a cell: compute the checksums of its files and write the record."""
    artifacts = {path.name: checksum(path) for path in sorted(folder.iterdir()) if path.name != RECORD}
    write_json(folder / RECORD, dataclasses.asdict(dataclasses.replace(record, artifacts=artifacts)))


def write_json(path: Path, value: JSON) -> None:
    """Write a JSON file atomically."""
    replace_file(path, json.dumps(value, indent=1, default=list))


def _plain(name: str) -> str:
    if Path(name).name != name or name in {"", ".", ".."}:
        raise StoreError(f"the name of an artifact must be a plain file name, got {name!r}")
    return name
