"""Paths are made absolute when they are read, and database addresses are valid for SQLAlchemy."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.core.errors import RequestError
from harness.core.paths import absolute, absolute_sqlite, sqlite_path, sqlite_uri
from harness.core.settings import RunSettings


def test_relative_path_starts_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is resolved from the working folder, including dots."""
    monkeypatch.chdir(tmp_path)
    assert absolute("a/../b") == tmp_path / "b"


def test_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tilde is expanded to the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert absolute("~/runs") == tmp_path / "runs"


def test_a_name_with_a_tilde_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a path that begins with a tilde names a home folder."""
    monkeypatch.chdir(tmp_path)
    assert absolute("./~root") == tmp_path / "~root"
    assert absolute("./~nobody-here,y={z}%1") == tmp_path / "~nobody-here,y={z}%1"


def test_home_of_an_unknown_user_is_refused() -> None:
    """The home folder of an unknown user is refused, and the message names the option."""
    with pytest.raises(RequestError, match="out must be a path, got '~nobody-here/runs': there is no such home folder"):
        absolute("~nobody-here/runs", "out")


def test_uri_is_not_a_path() -> None:
    """A URI is refused where a local path is needed."""
    with pytest.raises(RequestError, match=r"out must be a local path, got the URI 's3://bucket/runs'"):
        absolute("s3://bucket/runs", "out")


@pytest.mark.parametrize(
    "path", [Path("s3://bucket/runs"), "S3://bucket/runs", "gs:/b", "file:///tmp/x", "gs://k:pw@b/x"]
)
def test_uris_make_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str | Path) -> None:
    """Neither as text nor as a path, from which pathlib removes a slash; a password is not repeated."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        RequestError, match=r"out must be a local path, got the URI .*; mount that storage first"
    ) as one:
        RunSettings(out=path)  # type: ignore[arg-type]
    assert "pw" not in str(one.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["s3", "a:b", "runs/s3:/x", "C:/x"])
def test_colons_are_no_uris(path: str) -> None:
    """Names of folders may contain colons."""
    assert absolute(path).name == path.rpartition("/")[2]


@pytest.mark.parametrize("name", ["plain", "with space", "50%", "50%25", "why?", "#1", "a+b@c:d&e=f;[g]", "é"])
def test_database_address_has_the_original_path(name: str) -> None:
    """SQLAlchemy reads the original path from the database address."""
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
    """Only relative SQLite addresses change, and their query is kept."""
    monkeypatch.chdir(tmp_path)
    assert absolute_sqlite(uri) == expected.format(cwd=tmp_path)


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("sqlite:////a/b.db", Path("/a/b.db")),
        (sqlite_uri(Path("/50% off/what?.db")), Path("/50% off/what?.db")),
        ("sqlite:///b.db?timeout=9", Path("b.db")),
        ("sqlite:///:memory:", None),
        ("http://127.0.0.1:5000", None),
        ("postgresql://user@host/base", None),
    ],
)
def test_file_of_an_sqlite_uri(uri: str, path: Path | None) -> None:
    """Only SQLite databases have a file."""
    assert sqlite_path(uri) == path
