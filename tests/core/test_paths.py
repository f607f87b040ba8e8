"""Paths are absolute once they are read, and addresses of databases are what SQLAlchemy reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.core.errors import RequestError
from harness.core.paths import absolute, absolute_sqlite, sqlite_uri


def test_relative_path_starts_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dots are resolved as well."""
    monkeypatch.chdir(tmp_path)
    assert absolute("a/../b") == tmp_path / "b"


def test_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a shell has it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute("~/runs") == tmp_path / "runs"


def test_home_of_an_unknown_user() -> None:
    """The option is named, without a traceback."""
    with pytest.raises(RequestError, match="out must be a path, got '~nobody-here/runs': there is no such home folder"):
        absolute("~nobody-here/runs", "out")


def test_address_is_no_path() -> None:
    """A folder named ``s3:`` would be made in the working folder."""
    with pytest.raises(RequestError, match=r"out must be a local path, got the URI 's3://bucket/runs'"):
        absolute("s3://bucket/runs", "out")


@pytest.mark.parametrize("name", ["plain", "with space", "50%", "50%25", "why?", "#1", "a+b@c:d&e=f;[g]", "é"])
def test_database_has_the_path_that_it_was_made_for(name: str) -> None:
    """SQLAlchemy reads the same path back."""
    from sqlalchemy.engine import make_url

    read = make_url(sqlite_uri(Path("/runs") / name / "mlflow.db"))
    assert (read.database, dict(read.query)) == (f"/runs/{name}/mlflow.db", {})


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:///my.db", "sqlite:///{cwd}/my.db"),
        ("sqlite:///my.db?timeout=9", "sqlite:///{cwd}/my.db?timeout=9"),
        ("sqlite:///50%25.db", "sqlite+pysqlite:///{cwd}/50%25.db"),
        ("sqlite:////runs/my.db", "sqlite:////runs/my.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("http://host:5000", "http://host:5000"),
        ("auto", "auto"),
    ],
)
def test_only_relative_databases_change(
    uri: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their path starts in the working folder; what follows it stays."""
    monkeypatch.chdir(tmp_path)
    assert absolute_sqlite(uri) == expected.format(cwd=tmp_path)
