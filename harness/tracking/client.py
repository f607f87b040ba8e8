"""Open MLflow clients, and lock out other processes while runs are created."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["exclusive", "open_client"]


def open_client(uri: str) -> Any:
    """A client of a tracking server or database; a missing database is created.

    Parameters
    ----------
    uri : URI of the server or database

    Returns
    -------
    mlflow.MlflowClient
    """
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Allow only one process at a time to run a ``with`` block.

    Otherwise, two drivers that share a folder could migrate a new database at the same
    time, or could both create a missing run.

    Parameters
    ----------
    folder : folder of the lock file ``mlflow.lock``; created if needed
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "mlflow.lock").open("a") as file:
        if sys.platform != "win32":
            import fcntl

            with contextlib.suppress(OSError):  # without file locks, runs are still searched before they are created
                fcntl.flock(file, fcntl.LOCK_EX)
        yield  # closing the file releases the lock
