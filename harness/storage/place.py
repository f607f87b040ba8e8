"""Where a store keeps its files: in a folder, or in a bucket with local copies of what was read.

Both need few operations: read and replace a small file, list the folders that hold a file,
and add a folder that appears as a whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from harness.core.errors import StoreError
from harness.storage.bucket import Bucket
from harness.storage.files import PART, checksum, replace_file, synchronise

__all__ = ["BucketPlace", "Folder", "Place"]

_DIGITS = 16  # of its checksum in the name of a file in a bucket


class Place(Protocol):
    """Files by their names, which are relative paths with ``/``."""

    def locate(self, name: str) -> str:
        """Full path or address of a name, for messages."""

    def read(self, name: str) -> str:
        """Text of a small file.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """

    def replace(self, name: str, text: str) -> None:
        """Write a small file, or replace it; concurrent readers see either the old or the new text."""

    def delete(self, name: str) -> None:
        """Delete a file, if there is one."""

    def written(self, name: str) -> int:
        """Time at which a file was written, in nanoseconds of the clock of the place.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """

    def names(self, folder: str) -> list[str]:
        """Names of the files directly in a folder, sorted, without hidden ones."""

    def holding(self, folder: str, name: str) -> list[str]:
        """Names of the folders directly in a folder that hold a file of this name, sorted, without hidden ones."""

    def add(
        self,
        folder: str,
        files: Mapping[str, Path],
        checksums: Mapping[str, str],
        last: tuple[str, str],
        *,
        link: bool = False,
    ) -> None:
        """Add a folder that appears as a whole; if it is there, nothing changes.

        Parameters
        ----------
        folder : the folder
        files, checksums : path and SHA-256 of each file, by name
        last : name and text of the file with which the folder is complete
        link : whether the files never change, so that a link suffices

        Raises
        ------
        StoreError
            If a file was damaged on its way.
        """

    def file(self, folder: str, name: str, expected: str) -> Path:
        """Local path of a file of an added folder, after a check of its SHA-256.

        Raises
        ------
        StoreError
            If it is missing, outside its folder, or has another checksum.
        """

    def sweep(self, added: Sequence[str], replaced: Sequence[str]) -> None:
        """Remove the remains of killed writers.

        Parameters
        ----------
        added : folders in which, or one level deeper, folders were added
        replaced : folders below which files were replaced
        """


@dataclass(frozen=True)
class Folder:
    """A folder of a file system; a folder that is added is filled beside its destination and renamed.

    Parameters
    ----------
    root : absolute path; created when first written to
    """

    root: Path

    def locate(self, name: str) -> str:
        """Path of a name."""
        return str(self.root / name)

    def read(self, name: str) -> str:
        """Text of a file, see :meth:`Place.read`."""
        return (self.root / name).read_text("utf-8")

    def replace(self, name: str, text: str) -> None:
        """Write a file, see :meth:`Place.replace`."""
        replace_file(self.root / name, text)

    def delete(self, name: str) -> None:
        """Delete a file, see :meth:`Place.delete`."""
        (self.root / name).unlink(missing_ok=True)

    def written(self, name: str) -> int:
        """Time at which a file was written, see :meth:`Place.written`."""
        return (self.root / name).stat().st_mtime_ns

    def names(self, folder: str) -> list[str]:
        """Files in a folder, see :meth:`Place.names`."""
        return sorted(path.name for path in (self.root / folder).glob("[!.]*"))

    def holding(self, folder: str, name: str) -> list[str]:
        """Folders that hold a file, see :meth:`Place.holding`."""
        return [path.parent.name for path in sorted((self.root / folder).glob(f"[!.]*/{name}"))]

    def add(
        self,
        folder: str,
        files: Mapping[str, Path],
        checksums: Mapping[str, str],
        last: tuple[str, str],
        *,
        link: bool = False,
    ) -> None:
        """Add a folder, see :meth:`Place.add`; files are copied, as they may be on another file system.

        The files are on the disk before the last one is written. After a power failure, a folder
        without its last file is computed again; with it and with empty files, it would be damaged.
        """
        with self._staged(self.root / folder, last[0]) as staged:
            for name, path in files.items():
                if link:
                    os.link(path, staged / name)
                    continue
                shutil.copyfile(path, staged / name)
                if checksum(staged / name) != checksums[name]:
                    raise _damaged(name, folder)
            synchronise([staged, *(staged / name for name in files if not link)])
            replace_file(staged / last[0], last[1])

    @contextlib.contextmanager
    def _staged(self, target: Path, last: str) -> Iterator[Path]:
        """A folder to fill, which is renamed to ``target`` if the ``with`` block succeeds."""
        # tempfile would make the folder private; cells have the user's default permissions.
        staged = target.parent / f".{target.name}-{uuid.uuid4().hex}"
        staged.mkdir(parents=True)
        try:
            yield staged
            if (target / last).exists():
                return  # another writer was first
            shutil.rmtree(target, ignore_errors=True)  # a folder without its last file is incomplete
            try:
                staged.rename(target)
            except OSError:
                if not (target / last).exists():
                    raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def file(self, folder: str, name: str, expected: str) -> Path:
        """Path of a file of an added folder, see :meth:`Place.file`."""
        home = self.root / folder
        path = home / name
        if path.resolve().parent != home.resolve():
            raise _outside(name, folder)
        if not path.is_file() or checksum(path) != expected:
            raise _changed(str(path), str(home))
        return path

    def sweep(self, added: Sequence[str], replaced: Sequence[str]) -> None:
        """Remove the remains of killed writers, see :meth:`Place.sweep`."""
        for folder in added:
            for pattern in (".*-*", "*/.*-*"):
                for path in (self.root / folder).glob(pattern):
                    shutil.rmtree(path, ignore_errors=True)
        for folder in replaced:
            for path in (self.root / folder).rglob(f"{PART}*"):
                path.unlink(missing_ok=True)


@dataclass(frozen=True)
class BucketPlace:
    """Objects of a bucket, with local copies of the files that were written or read here.

    Parameters
    ----------
    bucket : the bucket and prefix
    copies : folder of the copies, which may be deleted at any time
    final : name of the files that complete a folder and never change

    Notes
    -----
    An added folder appears with its last file, which is created on condition that there is
    none: of several writers, one succeeds. The other files precede it, under names that
    begin with digits of their checksums. So two workers that compute the same cell, one of
    which was taken for dead, cannot exchange each other's files, even if their results
    differ in the last digit. Files under their plain names, as in a folder that was copied
    to the bucket, are read, too.

    A complete folder never changes, so its last file is read once by a process.
    """

    bucket: Bucket
    copies: Path
    final: str
    _finished: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def locate(self, name: str) -> str:
        """Address of a name."""
        return f"{self.bucket}/{name}"

    def read(self, name: str) -> str:
        """Text of an object, see :meth:`Place.read`."""
        if name in self._finished:
            return self._finished[name]
        text = self.bucket.read(name).decode("utf-8")
        if name.endswith(f"/{self.final}"):
            self._finished[name] = text
        return text

    def replace(self, name: str, text: str) -> None:
        """Write an object, see :meth:`Place.replace`."""
        self.bucket.replace(name, text.encode())

    def delete(self, name: str) -> None:
        """Delete an object, see :meth:`Place.delete`."""
        self.bucket.delete(name)

    def written(self, name: str) -> int:
        """Time at which an object was written, see :meth:`Place.written`."""
        return self.bucket.written(name)

    def names(self, folder: str) -> list[str]:
        """Objects in a folder, see :meth:`Place.names`."""
        parts = (name.removeprefix(f"{folder}/").split("/") for name in self.bucket.files(folder))
        return sorted(one[0] for one in parts if len(one) == 1 and not one[0].startswith("."))

    def holding(self, folder: str, name: str) -> list[str]:
        """Folders that hold an object, see :meth:`Place.holding`."""
        parts = (one.removeprefix(f"{folder}/").split("/") for one in self.bucket.files(folder))
        return sorted(one[0] for one in parts if len(one) == 2 and one[1] == name and not one[0].startswith("."))

    def add(
        self,
        folder: str,
        files: Mapping[str, Path],
        checksums: Mapping[str, str],
        last: tuple[str, str],
        *,
        link: bool = False,
    ) -> None:
        """Add a folder, see :meth:`Place.add`."""
        name, text = f"{folder}/{last[0]}", last[1]
        for one, path in files.items():
            if checksum(path) != checksums[one]:
                raise _damaged(one, folder)
            self.bucket.replace(f"{folder}/{_named(one, checksums[one])}", path)
        if self.bucket.create(name, text.encode()):
            self._finished[name] = text
            for one, path in files.items():
                replace_file(self.copies / folder / one, path.read_bytes(), durable=False)

    def file(self, folder: str, name: str, expected: str) -> Path:
        """Local copy of a file of an added folder, see :meth:`Place.file`."""
        home = self.copies / folder
        path = home / name
        if path.resolve().parent != home.resolve():
            raise _outside(name, folder)
        if path.is_file() and checksum(path) == expected:
            return path
        for there in (_named(name, expected), name):
            with contextlib.suppress(FileNotFoundError):
                self.bucket.download(f"{folder}/{there}", path)
                if checksum(path) == expected:
                    return path
        path.unlink(missing_ok=True)
        raise _changed(self.locate(f"{folder}/{name}"), self.locate(folder))

    def sweep(self, added: Sequence[str], replaced: Sequence[str]) -> None:
        """Remove the remains of interrupted downloads; objects without their last one are never read."""
        Folder(self.copies).sweep((), (*added, *replaced))


def _named(name: str, digest: str) -> str:
    return f"{digest[:_DIGITS]}-{name}"


def _damaged(name: str, folder: str) -> StoreError:
    return StoreError(f"artifact {name} of cell {folder.rpartition('/')[2]} was damaged on its way to the store")


def _outside(name: str, folder: str) -> StoreError:
    identity = folder.rpartition("/")[2]
    return StoreError(f"artifacts must be inside the cell's folder, the record of {identity} has {name!r}")


def _changed(path: str, folder: str) -> StoreError:
    return StoreError(
        f"{path} is missing or has changed since it was written; delete {folder} and run the command again"
    )
