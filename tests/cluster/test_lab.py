"""The lab says what this machine lacks for it."""

from __future__ import annotations

import os

import pytest

from . import lab


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that is not installed is named in the reason."""
    monkeypatch.setattr(lab, "PROGRAMS", ("sh", "no-such-program"))
    assert lab.missing() == "these programs must be installed: no-such-program"


def test_a_missing_right_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root, the reason says so."""
    monkeypatch.setattr(lab, "PROGRAMS", ("sh",))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert lab.missing() == "network and mount namespaces with an sshd each need root"
