"""Copy finished files, such as tables and reports, from the local folder of a run to its bucket."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.storage.bucket import Bucket

__all__ = ["publish"]


def publish(bucket: Bucket, root: Path, files: Sequence[Path], whole: Sequence[Path] = ()) -> int:
    """Write files to a bucket under the same relative paths.

    Parameters
    ----------
    bucket : the bucket and prefix of the output
    root : local folder of the output
    files : files below ``root``
    whole : folders below ``root``; of these, objects that are no longer files are deleted

    Returns
    -------
    int
        Number of files.

    Raises
    ------
    StoreError
        If the bucket cannot be written to.
    """
    every = [*files, *(path for folder in whole for path in sorted(folder.rglob("*")) if path.is_file())]
    names = [path.relative_to(root).as_posix() for path in every]
    for name, path in zip(names, every, strict=True):
        bucket.replace(name, path.read_bytes())
    for folder in whole:
        stale = set(bucket.files(folder.relative_to(root).as_posix())).difference(names)
        bucket.delete(*sorted(stale))
    return len(every)
