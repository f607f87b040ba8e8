"""Ray's token: whoever can read it can run programs on the cluster as its owner."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path

from harness.storage.secret import create_secret

__all__ = ["keep_private", "token_file"]


def token_file() -> Path:
    """File from which Ray reads its token, unless ``RAY_AUTH_TOKEN`` has the token itself."""
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given) if given else Path.home() / ".ray" / "auth_token"


def keep_private(*, create: bool) -> str:
    """Make the file of the token readable by its owner only.

    Parameters
    ----------
    create : whether to create a token if there is none, as Ray does for a session of its own

    Returns
    -------
    str
        What was wrong, as a sentence; empty if nothing was, or no file is used.

    Notes
    -----
    Ray 2.60 creates the file with the mode that the umask leaves, which is 0644 on most
    systems, and does not check it.
    """
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return ""
    path = token_file()
    if create and not path.exists() and not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        with contextlib.suppress(OSError):  # without the file, Ray creates it or says what is wrong
            create_secret(path)
    if sys.platform == "win32" or not path.is_file() or not (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
        return ""
    found = f"{path} could be read by other users (mode {mode:04o}), who could run programs as you on your clusters"
    try:
        path.chmod(0o600)
    except OSError:
        return f"{found}; chmod 600 it"
    return f"{found}; its mode is 0600 now. If you do not trust them, ray get-auth-token --generate gives a new token"
