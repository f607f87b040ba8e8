"""A cohort on nodes that share no folder: its table and prepared images travel through a bucket."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from harness.core.errors import StoreError
from harness.core.types import Cohort
from harness.data.table import files_of, open_cohort
from harness.storage.bucket import Bucket

__all__ = ["open_shared", "share"]


def share(tables: Iterable[Path], root: Path, bucket: Bucket) -> int:
    """Write tables of cohorts and the prepared images that they name to a bucket.

    Parameters
    ----------
    tables : tables, written by :func:`harness.data.table.save`
    root : folder that contains all these files, and has the same path on all nodes
    bucket : bucket and prefix for them

    Returns
    -------
    int
        Number of files that were not there yet.

    Notes
    -----
    Names of tables and of files of images are digests of their content or of what
    determines it, so a file of the same name and size is the same.
    """
    there, written = bucket.files(), 0
    for path in sorted({file for table in tables for file in (table, *files_of(table))}):
        name = path.relative_to(root).as_posix()
        if there.get(name) != path.stat().st_size:
            bucket.replace(name, path)
            written += 1
    return written


def open_shared(table: Path, root: Path, bucket: Bucket) -> Cohort:
    """Open a cohort, after its missing files were read from a bucket to the paths that they have elsewhere.

    Parameters
    ----------
    table, root, bucket : as of :func:`share`

    Raises
    ------
    StoreError
        If a file is neither here nor in the bucket.
    """
    _fetch([table], root, bucket)
    _fetch(files_of(table), root, bucket)
    return open_cohort(table)


def _fetch(paths: Iterable[Path], root: Path, bucket: Bucket) -> None:
    for path in paths:
        if not path.is_file():
            name = path.relative_to(root).as_posix()
            try:
                bucket.download(name, path)
            except FileNotFoundError:
                raise StoreError(f"{path} is missing, and so is {bucket}/{name}; run the command again") from None
