"""Drivers of databases that a user names by URI."""

from __future__ import annotations

import importlib.util

from harness.core.errors import RequestError
from harness.core.passwords import without_password

__all__ = ["DRIVERS", "check_driver"]

# Module of the driver that SQLAlchemy takes for each database (psycopg since its version 2.1), and how to install it.
DRIVERS = {
    "sqlite": ("sqlite3", "it is part of Python"),
    "postgresql": ("psycopg", "pip install -c constraints.txt -e '.[postgres]'"),
    "mysql": ("MySQLdb", "pip install mysqlclient, or name another driver (mysql+pymysql://…)"),
    "mssql": ("pyodbc", "pip install pyodbc, or name another driver (mssql+pymssql://…)"),
}


def check_driver(uri: str, key: str, accepted: str) -> None:
    """Refuse the URI of a database that cannot work; nothing is connected to.

    Parameters
    ----------
    uri : URI of the database
    key : name of the setting
    accepted : what the setting accepts, for the error message; ``{got}`` stands for the value

    Raises
    ------
    RequestError
        If it is no URI of a database, or the driver of its database is not installed.
    """
    scheme, sign, _ = uri.partition("://")
    database, _, driver = scheme.lower().partition("+")
    # A text without a scheme may have a password, too.
    shown = without_password(uri) if sign else without_password(f"db://{uri}")[5:]
    if database == "postgres":
        raise RequestError(f"{key} must be written postgresql://…, got {shown}; postgres:// is not read any more")
    if not sign or database not in DRIVERS:
        raise RequestError(f"{key} must be {accepted.format(got=f'got {shown}')}")
    module, remedy = DRIVERS[database]
    if driver and driver != "pysqlite":
        module, remedy = driver, f"pip install {driver}"
    if importlib.util.find_spec(module) is None:
        raise RequestError(f"{key}={shown} needs the package {module}, which is not installed: {remedy}")
