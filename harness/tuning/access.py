"""Whom a Ray cluster answers: only callers with its token, or everyone."""

from __future__ import annotations

import re
import socket
import struct

__all__ = ["access", "asks_for_token"]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS, _HEADERS, _DATA = 4, 1, 0
_END_STREAM, _END_HEADERS = 1, 4
_UNAUTHENTICATED = b"16"
_WAIT_S = 5.0


def access(address: str) -> str:
    """Whom the cluster at ``ray=ADDRESS`` answers, as a sentence, with what to do if that is everyone."""
    asks = asks_for_token(address)
    if asks:
        return f"the cluster at ray={address} answers only with a token"
    if asks is None:
        return (
            f"the cluster at ray={address} does not say whether it asks for a token; it does if each node was started "
            "with RAY_AUTH_MODE=token"
        )
    return (
        f"the cluster at ray={address} ANSWERS EVERYONE who reaches it, who can then run programs as its user. End it; "
        "make a token with `ray get-auth-token --generate > /dev/null && chmod 600 ~/.ray/auth_token`; copy this file "
        "to all nodes and to this machine; and start each node with RAY_AUTH_MODE=token ray start"
    )


def asks_for_token(address: str) -> bool | None:
    """Whether the cluster refuses a caller without a token; ``None`` if nothing there says so.

    Parameters
    ----------
    address : ``HOST:PORT`` or ``ray://HOST:PORT``

    Notes
    -----
    This process sends its token to every server, and a server without authentication ignores it.
    So one call of gRPC (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md) is made
    by hand, without a token: whether the head is alive, which changes nothing. Every status but
    ``UNAUTHENTICATED`` is that of a server that would have answered.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return None
    got = b""
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_WAIT_S) as connection:
            connection.sendall(_call(f"{host}:{port}", "/ray.rpc.NodeInfoGcsService/CheckAlive"))
            while chunk := connection.recv(65536):
                got += chunk
                # The first field of this name is sent in full; later ones could be numbers of a table.
                if found := re.search(rb"grpc-status[\x01\x02](\d+)", got):
                    return found[1] == _UNAUTHENTICATED
    except OSError:
        pass
    return None


def _call(authority: str, method: str) -> bytes:
    """What a client sends to call a method with an empty message."""
    fields = {
        ":method": "POST", ":scheme": "http", ":path": method, ":authority": authority,
        "te": "trailers", "content-type": "application/grpc",
    }  # fmt: skip
    headers = b"".join(_field(name, value) for name, value in fields.items())
    return (
        _PREFACE
        + _frame(_SETTINGS, 0, 0, b"")
        + _frame(_HEADERS, _END_HEADERS, 1, headers)
        + _frame(_DATA, _END_STREAM, 1, bytes(5))  # not compressed, length 0
    )


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2 (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _field(name: str, value: str) -> bytes:
    """A header field that is sent in full and not kept (RFC 7541, section 6.2.2)."""
    data = value.encode()[:126]  # longer ones need another form of length; only names of hosts can be so long
    return bytes([0, len(name)]) + name.encode() + bytes([len(data)]) + data
