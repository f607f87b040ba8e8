"""What the ports of a machine answer to a caller with or without a token; run as a script in another namespace.

Standard input is JSON with ``ports`` (pairs of address and port), ``methods`` (gRPC
methods, ``/package.Service/Method``) and ``token`` (empty: none is sent). Standard output
is JSON: for each port, what it answers to HTTP/1.1, and the gRPC status of each method.
Only the standard library is used.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import sys

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_LIMIT_S = 5.0


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """An HTTP/2 frame (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name: str, value: str) -> bytes:
    """A header field without indexing and Huffman code (RFC 7541, section 6.2.2); value of at most 126 bytes."""
    return bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def call(address: str, port: int, method: str, token: str) -> str:
    """The status that a gRPC server gives to an empty message.

    Returns
    -------
    str
        The number of the status, ``16`` for an unauthenticated caller and ``12`` for a
        method that is not known; ``closed`` if the connection ends, and ``silent`` if
        nothing comes within five seconds.
    """
    fields = {":method": "POST", ":scheme": "http", ":path": method, ":authority": f"{address}:{port}"}
    # Ray 2.60 checks the token of its synchronisation of nodes only if a node is named; without, the server ends.
    fields |= {"te": "trailers", "content-type": "application/grpc", "node_id": "ab" * 28}
    if token:
        fields["authorization"] = f"Bearer {token}"
    headers = b"".join(literal(name, value) for name, value in fields.items())
    # Settings, headers (end of headers), and an empty message (end of stream).
    sent = PREFACE + frame(4, 0, 0, b"") + frame(1, 4, 1, headers) + frame(0, 1, 1, bytes(5))
    got = b""
    try:
        with socket.create_connection((address, port), timeout=_LIMIT_S) as connection:
            connection.sendall(sent)
            while chunk := connection.recv(65536):
                got += chunk
                # The first of a connection is never in the table of its headers.
                if found := re.search(rb"grpc-status[\x01\x02](\d+)", got):
                    return found[1].decode()
    except TimeoutError:
        return "silent"
    except OSError:
        pass
    return "closed"


def get(address: str, port: int, token: str) -> str:
    """First line that a port answers to ``GET /`` by HTTP/1.1; ``closed`` or ``silent`` if there is none."""
    authorization = f"Authorization: Bearer {token}\r\n" if token else ""
    request = f"GET / HTTP/1.1\r\nHost: {address}:{port}\r\n{authorization}Connection: close\r\n\r\n"
    try:
        with socket.create_connection((address, port), timeout=_LIMIT_S) as connection:
            connection.sendall(request.encode())
            got = connection.recv(4096)
    except TimeoutError:
        return "silent"
    except OSError:
        return "closed"
    return got.split(b"\r\n")[0].decode("ascii", "backslashreplace") if got else "closed"


def asked(address: str, port: int, methods: list[str], token: str) -> dict[str, object]:
    """The answer of a port to HTTP/1.1, and the gRPC status of each method."""
    statuses: dict[str, str] = {}
    for method in methods:
        statuses[method] = call(address, port, method, token)
        if len(statuses) == 3 and not any(status.isdigit() for status in statuses.values()):  # not gRPC
            break
    return {"address": address, "port": port, "http": get(address, port, token), "grpc": statuses}


if __name__ == "__main__":
    given = json.load(sys.stdin)
    answers = [asked(address, port, given["methods"], given["token"]) for address, port in given["ports"]]
    json.dump(answers, sys.stdout)
