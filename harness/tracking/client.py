"""Open MLflow clients, and lock out other processes while runs are created."""

from __future__ import annotations

import contextlib
import importlib.util
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.core.databases import check_driver
from harness.core.errors import HarnessError
from harness.core.paths import sqlite_path, sqlite_uri
from harness.tracking.reach import check_answers

__all__ = ["check_uri", "exclusive", "open_client"]

_SERVED = ("http", "https", "databricks", "databricks-uc")
# Of a database that answers but refuses, such as for a wrong password. MLflow's ten tries take 100 s.
_TRIES = 3
_ACCEPTED = (
    "auto, off, or the URI of a server or database (http://HOST:5000, postgresql://USER@HOST/NAME, sqlite:///FILE), "
    "{got}; artifacts on s3:// belong to the server (mlflow server --artifacts-destination)"
)


def check_uri(uri: str) -> None:
    """Refuse a tracking URI that cannot work, before anything is computed; nothing is connected to.

    Parameters
    ----------
    uri : value of ``mlflow=``

    Raises
    ------
    RequestError
        If it is no URI of a server or database, or the driver of its database is not installed.
    HarnessError
        If it is a database, and MLflow is installed where it cannot open one.
    """
    if uri in ("off", "databricks") or uri.lower().startswith(tuple(f"{one}://" for one in _SERVED)):
        return
    if uri != "auto":
        check_driver(uri, "mlflow", _ACCEPTED)
    if (found := importlib.util.find_spec("mlflow")) is not None and found.origin:
        _refuse_percent(uri, Path(found.origin).parent)


def open_client(uri: str) -> Any:
    """A client of a tracking server or database; a missing database is created.

    Parameters
    ----------
    uri : URI of the server or database

    Returns
    -------
    mlflow.MlflowClient

    Raises
    ------
    HarnessError
        If the server does not answer, the database is incomplete because an interrupted process was creating or
        upgrading it, or if MLflow is installed where it cannot open one.

    Notes
    -----
    MLflow creates a database in many steps, and cannot continue where a killed process
    stopped. A new SQLite database is therefore created under another name, and renamed
    once it is complete.
    """
    check_answers(uri)
    import mlflow
    from mlflow import MlflowClient
    from mlflow.store.db import utils

    utils.MAX_RETRY_COUNT = _TRIES
    path = sqlite_path(uri)
    _refuse_percent(uri, Path(mlflow.__file__).parent)
    if path is not None and not path.exists():
        _create(path)
    elif path is not None:
        _refuse_incomplete(path)
    return MlflowClient(tracking_uri=uri)


def _refuse_percent(uri: str, package: Path) -> None:
    """Refuse databases if MLflow's folder has a % in its path, which its migrations read as a placeholder."""
    if "%" in str(package) and not uri.startswith(tuple(f"{one}://" for one in _SERVED)):
        raise HarnessError(
            f"MLflow cannot open a database if it is installed below a folder with % in its name ({package}); clone or "
            "install into another folder, or set mlflow=off"
        )


def _create(path: Path) -> None:
    """Create a database that is either complete or absent."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.unlink(missing_ok=True)  # of a process that was killed
    store = SqlAlchemyStore(sqlite_uri(new), str(path.parent / "mlflow-artifacts"))  # type: ignore[no-untyped-call]
    store.engine.dispose()
    new.replace(path)


def _refuse_incomplete(path: Path) -> None:
    """Refuse a database with the temporary table of a migration that did not finish."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    if any(name.startswith("_alembic_tmp_") for name in tables):
        raise HarnessError(
            f"{path} is incomplete: a process that was creating or upgrading it was killed. Move it away and repeat "
            "the command; all results in the store are written to a new database"
        )


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
