"""Whether the server of a tracking URI answers; MLflow itself would try for minutes, without a word."""

from __future__ import annotations

import http.client
import socket
import ssl
import struct
import urllib.request
from urllib.parse import urlsplit

from harness.core.errors import HarnessError

__all__ = ["LIMIT_S", "check_answers"]

LIMIT_S = 5.0
"""Seconds within which a server must accept a connection, and again to answer."""

_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
# PostgreSQL's request for encryption, which it answers without a password ("Message Formats" of its manual).
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)


def check_answers(uri: str) -> None:
    """Check within seconds that a server or database answers; nothing is sent that is secret.

    Parameters
    ----------
    uri : tracking URI; one without a server, such as that of an SQLite database, is not checked

    Raises
    ------
    HarnessError
        If nothing accepts a connection, or what accepts it says nothing.
    """
    scheme = urlsplit(uri).scheme.lower().partition("+")[0]
    place = _host_and_port(uri, scheme)
    if place is None:
        return
    host, port = place
    try:
        if scheme in ("http", "https"):
            _ask_web_server(scheme, host, port)
        else:
            _ask_database(scheme, host, port)
    except TimeoutError:
        raise HarnessError(f"{host}:{port} does not answer within {LIMIT_S:.0f} s") from None
    except (OSError, http.client.HTTPException) as error:
        reason = str(getattr(error, "strerror", "") or error or type(error).__name__)
        raise HarnessError(f"nothing answers at {host}:{port} ({reason})") from None


def _host_and_port(uri: str, scheme: str) -> tuple[str, int] | None:
    """Host and port of a URI; ``None`` if it has none, several, or is reached through a proxy."""
    if scheme not in _PORTS:
        return None
    try:
        if scheme in ("http", "https"):
            found = urlsplit(uri)
            host, port = found.hostname or "", found.port
            if scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
                return None
        else:
            from sqlalchemy.engine import make_url

            read = make_url(uri)
            host, port = ("" if "host" in read.query else read.host or ""), read.port
    except Exception:
        return None
    return (host, port or _PORTS[scheme]) if host and "," not in host else None


def _ask_web_server(scheme: str, host: str, port: int) -> None:
    """Read the beginning of any answer; errors such as 401 are answers, and certificates are for MLflow to judge."""
    if scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, port, timeout=LIMIT_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=LIMIT_S)
    try:
        connection.request("GET", "/health")
        connection.getresponse()
    finally:
        connection.close()


def _ask_database(scheme: str, host: str, port: int) -> None:
    """Connect, and read a byte where the protocol has an answer that needs no password."""
    with socket.create_connection((host, port), timeout=LIMIT_S) as connection:
        if scheme == "postgresql":
            connection.sendall(_SSL_REQUEST)
        if scheme in ("postgresql", "mysql") and not connection.recv(1):
            raise ConnectionResetError("the connection was closed")
