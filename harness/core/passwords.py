"""Passwords in URIs: found, hidden for display, and removed from messages.

What is shown errs on the safe side. Users type passwords with ``/``, ``#``, ``@`` and spaces,
which RFC 3986 forbids and SQLAlchemy accepts in part, so that everything up to the last ``@``
may belong to one. The URI that is used is never changed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from urllib.parse import unquote, unquote_plus

__all__ = ["command_of", "passwords_in", "without_password", "without_passwords_of"]

HIDDEN = "***"

_URI = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/+", re.ASCII)
_FILES = ("sqlite", "file")  # schemes without users
# The user alone is a token in addresses of web servers, also before an empty or a conventional password.
_TOKEN = re.compile(r"(?P<secret>[^:]*?)(?::(?:x-oauth-basic)?)?@(?!.*@)", re.DOTALL)
_USER = re.compile(r"[^:]*?:(?P<secret>.+)@", re.DOTALL)
_QUERY = re.compile(r"(?<=[?&])(?P<name>[^=&?]+)=(?P<secret>[^&]*?)(?=&|['\"\])}]*$)", re.DOTALL)
_SECRET = re.compile(
    r"[\w.-]*(?:password|passwd|passphrase|pwd|token|secret|signature|credentials?|(?:api|access|account|private)key)"
    r"|(?:[\w.-]*[_.-])?(?:pass|key|sig|auth)|odbc_connect",
    re.IGNORECASE,
)
_SHORTEST = 3  # characters of a password that is removed from a message; a shorter one would garble it


def _spans(text: str) -> list[tuple[int, int]]:
    """Places of passwords in a text with one URI, from left to right, without overlap."""
    found: list[tuple[int, int]] = []
    if (uri := _URI.search(text)) is None:
        return found
    scheme = uri["scheme"].lower().partition("+")[0]
    if scheme not in _FILES:
        web = _TOKEN.match(text, uri.end()) if scheme in ("http", "https") else None
        user = web or _USER.match(text, uri.end())
        if user is not None and user["secret"]:
            found.append(user.span("secret"))
    for one in _QUERY.finditer(text, uri.end()):
        if _SECRET.fullmatch(unquote_plus(one["name"])) and one["secret"]:
            found.append(one.span("secret"))
    return _united(found)


def _united(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans in order, those that overlap as one: the last ``@`` may be in a parameter."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if found and start < found[-1][1]:
            start, end = found[-1][0], max(end, found.pop()[1])
        found.append((start, end))
    return found


def without_password(text: str) -> str:
    """A URI, or an override with one, without passwords and tokens, for display.

    Parameters
    ----------
    text : ``URI`` or ``key=URI``; any other text is returned unchanged

    Notes
    -----
    Hidden are the password before the last ``@``, a token in the place of a user in an
    address of a web server, and parameters of the query with names such as ``password``,
    ``access_token`` and ``key``. A user is shown.
    """
    for start, end in reversed(_spans(text)):
        text = f"{text[:start]}{HIDDEN}{text[end:]}"
    return text


def passwords_in(text: str) -> tuple[str, ...]:
    """Passwords and tokens of a URI or override, as written and decoded; empty without any."""
    found = [text[start:end] for start, end in _spans(text)]
    decoded = [form for one in found for form in (one, unquote(one), unquote_plus(one))]
    return tuple(dict.fromkeys(filter(None, decoded)))


def without_passwords_of(message: str, texts: Iterable[str]) -> str:
    """A message, such as that of an error, without the passwords of URIs or overrides.

    Parameters
    ----------
    message : any text
    texts : URIs or overrides whose passwords it may contain
    """
    texts = [text for text in texts if passwords_in(text)]
    for text in texts:
        message = message.replace(text, without_password(text))
    secrets = {one for text in texts for one in passwords_in(text)}
    # Also as written in a representation, and in parts, because a comma makes two values of an override.
    secrets |= {repr(one)[1:-1] for one in secrets} | {part for one in secrets for part in re.split(r"[,\s'\"]+", one)}
    for one in sorted(secrets, key=len, reverse=True):
        if len(one) >= _SHORTEST:
            message = message.replace(one, HIDDEN)
    return message


def command_of(texts: Sequence[str]) -> str:
    """``harness run`` with overrides, quoted for a shell, without passwords: for everything that shows a command."""
    return shlex.join(["harness", "run", *map(without_password, texts)])
