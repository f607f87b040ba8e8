"""Opening a client of MLflow: quietly, without telemetry, and one process at a time where runs are created."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["exclusive", "open_client"]


def open_client(uri: str) -> Any:
    """A client of a tracking server or database, which is created if there is none.

    Parameters
    ----------
    uri : of the server or database

    Returns
    -------
    mlflow.MlflowClient
    """
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Let one process at a time run the block.

    Two drivers that share a folder would else race in the migration of a new
    database, and could both find that a run is missing and create it.

    Parameters
    ----------
    folder : holds the lock file ``mlflow.lock``; made if needed
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "mlflow.lock").open("a") as file:
        if sys.platform != "win32":
            import fcntl

            with contextlib.suppress(OSError):  # a file system without locks: the search before creating remains
                fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file releases the lock
