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
place. In a bucket, the keys are the same except for those of the artifacts, and a cell is
finished with its record, see :class:`~harness.storage.place.BucketPlace`. Failures are
stored separately, so that they can neither be mistaken for results nor overwrite them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from harness.core.errors import StoreError
from harness.core.settings import RunSettings
from harness.core.task import Configuration
from harness.core.types import JSON
from harness.storage.bucket import Bucket
from harness.storage.files import checksum, replace_file
from harness.storage.place import BucketPlace, Folder, Place

__all__ = [
    "RECORD",
    "STAGES",
    "TRACEBACK",
    "CellRecord",
    "ReadOnce",
    "Stage",
    "Store",
    "open_store",
    "write_json",
    "write_record",
]

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


def _record_of(text: str, where: str, what: str) -> CellRecord:
    """The record in a text; ``what`` is to be deleted if it cannot be read."""
    try:
        record = CellRecord(**json.loads(text))
        if wrong := _wrong_fields(record):
            raise TypeError(f"wrong types of {', '.join(wrong)}")
        return record
    except _NO_RECORD as error:
        raise _unreadable(where, error, what) from None


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


def _unreadable(path: str, error: Exception, what: str) -> StoreError:
    return StoreError(f"{path} cannot be read ({error}); delete {what} and run the command again")


@dataclass(frozen=True)
class Store:
    """Records and artifacts in a folder, or in a bucket.

    Parameters
    ----------
    root : absolute path of the ``store`` folder, created when first written to; with a
        bucket, of the local copies
    bucket : the bucket and prefix; ``None`` for a folder
    """

    root: Path
    bucket: Bucket | None = None

    @cached_property
    def place(self) -> Place:
        """Where the files are."""
        return Folder(self.root) if self.bucket is None else BucketPlace(self.bucket, self.root, RECORD)

    def __str__(self) -> str:
        return str(self.bucket or self.root)

    def __reduce__(self) -> tuple[type[Store], tuple[Path, Bucket | None]]:
        """Send the place alone to other processes, without what was read."""
        return Store, (self.root, self.bucket)

    def telling(self, say: Callable[[str], None]) -> Store:
        """The same store; if its bucket cannot be reached for a while, ``say`` is called once."""
        return self if self.bucket is None else Store(self.root, Bucket(self.bucket.url, say, self.bucket.waits_s))

    def folder(self, stage: str, identity: str, *, group: str = "") -> Path:
        """Folder of a finished cell; with a bucket, of its local copy."""
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
        name = f"{_name(stage, identity, group)}/{RECORD}"
        try:
            record = _record_of(self._text(name, "its folder"), self.place.locate(name), "its folder")
        except FileNotFoundError:
            return None
        if (record.stage, record.identity) != (stage, identity):
            raise StoreError(
                f"{self.place.locate(name)} must be the record of {stage} {identity}, got {record.stage} "
                f"{record.identity}; delete its folder and run the command again"
            )
        return record

    def _text(self, name: str, what: str) -> str:
        try:
            return self.place.read(name)
        except UnicodeDecodeError as error:
            raise _unreadable(self.place.locate(name), error, what) from None

    def evaluations(self, stage: str, group: str) -> tuple[CellRecord, ...]:
        """All records with values of one cell, one for each time that metrics were added."""
        found = self.place.holding(f"{stage}/{group}", RECORD) if group else ()
        records = (self.get(stage, identity, group=group) for identity in found)
        return tuple(record for record in records if record is not None)

    def artifact(self, record: CellRecord, name: str) -> Path:
        """Path of an artifact, or of its local copy, after a check of its checksum.

        Raises
        ------
        StoreError
            If the record does not list it, if it is outside the cell's folder, or if its
            checksum differs.
        """
        if name not in record.artifacts:
            raise StoreError(f"cell {record.identity} has no artifact {name!r}; it has {', '.join(record.artifacts)}")
        return self.place.file(_name(record.stage, record.identity, record.group), name, record.artifacts[name])

    def commit(self, source: Path) -> CellRecord:
        """Add the folder of a cell, completed by :func:`write_record`, to the store.

        If the cell is already done, nothing changes, because equal identities mean equal
        content. Of a failed cell, the record and the traceback are stored.

        Raises
        ------
        StoreError
            If an artifact was damaged, or the record names a file or folder outside its own.
        """
        record = CellRecord(**json.loads((source / RECORD).read_text("utf-8")))
        if _plain(record.stage) not in STAGES:
            raise StoreError(f"the stage of a cell must be one of {', '.join(STAGES)}, got {record.stage!r}")
        group = _plain(record.group) if record.group else ""
        name, failed = _name(record.stage, _plain(record.identity), group), f"failed/{record.identity}"
        if record.state != "done":
            if self.get(record.stage, record.identity, group=group) is None:
                self.place.replace(f"{failed}.json", _json_of(dataclasses.asdict(record)))
                if TRACEBACK in record.artifacts:
                    self.place.replace(f"{failed}.txt", (source / TRACEBACK).read_text("utf-8"))
            return record
        files = {one: source / _plain(one) for one in record.artifacts}
        self.place.add(name, files, record.artifacts, (RECORD, _json_of(dataclasses.asdict(record))))
        for end in ("json", "txt"):
            self.place.delete(f"{failed}.{end}")
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
        files = {name: self.artifact(record, name) for name in record.artifacts}
        last = (RECORD, _json_of(dataclasses.asdict(adopted)))
        self.place.add(_name(record.stage, identity, ""), files, record.artifacts, last, link=True)
        return adopted

    def failure(self, identity: str) -> CellRecord | None:
        """The last failure of a cell that is not done, or ``None``."""
        name = f"failed/{identity}.json"
        try:
            return _record_of(self._text(name, "it"), self.place.locate(name), "it")
        except FileNotFoundError:
            return None

    def records(self, stage: str) -> Iterator[CellRecord]:
        """All finished cells of a stage, by identity."""
        for identity in self.place.holding(stage, RECORD):
            record = self.get(stage, identity)
            if record is not None:
                yield record

    def written(self, record: CellRecord) -> int:
        """Time at which a finished cell was written, in nanoseconds of the clock of the file system or server."""
        return self.place.written(f"{_name(record.stage, record.identity, record.group)}/{RECORD}")

    def sweep(self) -> None:
        """Remove the remains of interrupted commits."""
        self.place.sweep(STAGES, ("failed", "configurations", "plans"))

    def remember(self, configuration: Configuration) -> None:
        """Store a configuration, so that its id can be resolved."""
        self.keep(f"configurations/{configuration.id}.json", dataclasses.asdict(configuration))

    def keep(self, name: str, value: JSON) -> None:
        """Store a JSON file, such as a plan, under a relative path; an older one is replaced."""
        self.place.replace(name, _json_of(value))

    def configuration(self, identity: str) -> Configuration:
        """The configuration with this id.

        Raises
        ------
        StoreError
            If it is not in the store, or cannot be read.
        """
        name = f"configurations/{identity}.json"
        try:
            return Configuration(**json.loads(self.place.read(name)))
        except FileNotFoundError:
            raise StoreError(f"no configuration {identity} is in {self}") from None
        except _NO_RECORD as error:
            raise _unreadable(self.place.locate(name), error, "it") from None


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


def open_store(settings: RunSettings, *, say: Callable[[str], None] = lambda text: None) -> Store:
    """The store of a run: in its output folder, or in its bucket.

    Parameters
    ----------
    settings : settings of the run
    say : called once, when a bucket cannot be reached

    Raises
    ------
    RequestError
        If the output is a bucket and the extra is not installed.
    """
    bucket = Bucket(settings.bucket, say).below("store") if settings.bucket else None
    return Store(settings.folder / "store", bucket)


def write_record(folder: Path, record: CellRecord) -> None:
    """Complete the folder of a cell: compute the checksums of its files and write the record."""
    artifacts = {path.name: checksum(path) for path in sorted(folder.iterdir()) if path.name != RECORD}
    write_json(folder / RECORD, dataclasses.asdict(dataclasses.replace(record, artifacts=artifacts)))


def write_json(path: Path, value: JSON) -> None:
    """Write a JSON file atomically."""
    replace_file(path, _json_of(value))


def _json_of(value: JSON) -> str:
    return json.dumps(value, indent=1, default=list)


def _name(stage: str, identity: str, group: str) -> str:
    """Name of the folder of a cell."""
    return "/".join(filter(None, (stage, group, identity)))


def _plain(name: str) -> str:
    if Path(name).name != name or name in {"", ".", ".."}:
        raise StoreError(f"the name of an artifact must be a plain file name, got {name!r}")
    return name
