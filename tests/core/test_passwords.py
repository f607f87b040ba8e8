"""Passwords of URIs are hidden wherever a URI, an override or a command is shown."""

from __future__ import annotations

import pytest

from harness.core.databases import check_driver
from harness.core.errors import RequestError
from harness.core.passwords import command_of, passwords_in, without_password, without_passwords_of
from harness.sweep.grammar import parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://me:S3@host/db", "postgresql://me:***@host/db"),
        ("mlflow=http://me:S3=w@host:5000", "mlflow=http://me:***@host:5000"),
        ("mlflow='postgresql://me:S3%25ss@host/db'", "mlflow='postgresql://me:***@host/db'"),
        ("mysql+pymysql://me:S3:S3@host/db", "mysql+pymysql://me:***@host/db"),
        ("postgresql://:S3@host/db", "postgresql://:***@host/db"),
        ("postgresql://me@server:S3@host/db", "postgresql://me@server:***@host/db"),
        ("postgresql:/me:S3@host/db", "postgresql:/me:***@host/db"),
        # Characters that a URI must not have
        ("postgresql://me:S3/S3@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:5432/S3@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:S3#S3@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:S3?S3@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:S3@S3@host/db", "postgresql://me:***@host/db"),
        ("optuna='postgresql://me:S3 S3@host/db'", "optuna='postgresql://me:***@host/db'"),
        ("http://me:S3\nS3@host", "http://me:***@host"),
        # Tokens
        ("https://S3@host", "https://***@host"),
        ("mlflow=https://S3:@host/a", "mlflow=https://***:@host/a"),
        ("https://S3:x-oauth-basic@host", "https://***:x-oauth-basic@host"),
        # Parameters
        ("mlflow=postgresql://u@h/d?password=S3", "mlflow=postgresql://u@h/d?password=***"),
        ("mlflow='postgresql://u@h/d?password=S3'", "mlflow='postgresql://u@h/d?password=***'"),
        ("postgresql://u@h/d?a=b&sslpassword=S3&c=d", "postgresql://u@h/d?a=b&sslpassword=***&c=d"),
        ("postgresql://u@h/d?PassWord=S3", "postgresql://u@h/d?PassWord=***"),
        ("postgresql://u@h/d?pass%77ord=S3", "postgresql://u@h/d?pass%77ord=***"),
        ("mysql://u@h/d?passwd=S3", "mysql://u@h/d?passwd=***"),
        ("https://h/?token=S3&access_token=S3&key=S3&api_key=S3&x-amz-signature=S3",
         "https://h/?token=***&access_token=***&key=***&api_key=***&x-amz-signature=***"),
        ("mssql+pyodbc:///?odbc_connect=UID%3Du%3BPWD%3DS3", "mssql+pyodbc:///?odbc_connect=***"),
        ("postgresql://u@h:1/d?password=S3@S3", "postgresql://u@h:***"),
        ("postgresql://u:S3@h/d?password=S3", "postgresql://u:***@h/d?password=***"),
        ("sqlite:////a/b.db?key=S3", "sqlite:////a/b.db?key=***"),
    ],
)  # fmt: skip
def test_passwords_are_not_shown(text: str, expected: str) -> None:
    """In URIs, and in overrides, which are shown in tables and reports."""
    assert without_password(text) == expected
    assert "S3" not in expected and passwords_in(text)
    assert without_password(expected) == expected  # plans are shown again


@pytest.mark.parametrize(
    "text",
    ["noise=0.1", "http://[", "http://host:5000", "http://host:5000/#/experiments/1?a=b", "postgresql://me@host:5432/db",
     "postgresql://me@host/db?sslmode=require&passfile=/home/me/.pgpass&sslkey=/a.key", "sqlite:////a:b@c/mlflow.db",
     "exclude=a:b@c", "databricks://profile", "s3://bucket/prefix", "data=/scans/key=1/a:b@c", "off", ""],
)  # fmt: skip
def test_other_texts_are_unchanged(text: str) -> None:
    """Users, files of passwords and keys, and paths are shown."""
    assert without_password(text) == text and passwords_in(text) == ()


@pytest.mark.parametrize("password", ["S3CRET", "S3C%2FRET", "S3C'RET", "S3CR,ETS", "S3C RET"])
def test_messages_have_no_password(password: str) -> None:
    """As written, decoded, in a representation, and split at a comma."""
    uri = f"postgresql://me:{password}@host/db"
    for shown in (uri, repr(f"mlflow={uri}"), password, password.replace("%2F", "/"), password.replace(",", ", ")):
        message = without_passwords_of(f"cannot use {shown}: refused", [f"mlflow={uri}"])
        assert not [part for part in ("S3C", "RET", "ETS") if part in message], message
        assert message.startswith("cannot use ") and message.endswith(": refused")


def test_commands_have_no_password() -> None:
    """The command is quoted for a shell."""
    texts = ["task=epvs", "mlflow=postgresql://me:S3 S3@host/db", "sequences=T2w,FLAIR"]
    assert command_of(texts) == "harness run task=epvs 'mlflow=postgresql://me:***@host/db' sequences=T2w,FLAIR"


@pytest.mark.parametrize("text", ["mlflow=postgresql://me:S3CRET(@host/db", "mlflow=[postgresql://me:S3CRET@host/db"])
def test_overrides_that_cannot_be_read_show_no_password(text: str) -> None:
    """Their message repeats them."""
    with pytest.raises(RequestError, match="cannot read") as raised:
        parse([text])
    assert "S3CRET" not in str(raised.value)


@pytest.mark.parametrize("uri", ["me:S3CRET@host/db", "postgres://me:S3CRET@host/db", "oracle://h/d?password=S3CRET"])
def test_refused_addresses_show_no_password(uri: str) -> None:
    """Also without a scheme."""
    with pytest.raises(RequestError, match="mlflow must be") as raised:
        check_driver(uri, "mlflow", "a database, {got}")
    assert "S3CRET" not in str(raised.value)
