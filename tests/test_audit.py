"""``make audit``: packages that were not checked are never reported as sound."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "audit.py"
SOUND = {"name": "one", "version": "1.0", "vulns": []}
WEAK = {"name": "two", "version": "2.0", "vulns": [{"id": "CVE-1", "fix_versions": ["2.1"]}]}
HOPELESS = {"name": "three", "version": "3.0", "vulns": [{"id": "CVE-2", "fix_versions": []}]}
SKIPPED = {"name": "four", "skip_reason": "Dependency not found on PyPI"}


@pytest.mark.parametrize(
    ("packages", "code", "text"),
    [
        ([SOUND], 0, "1 of 1 packages checked, 0 known vulnerabilities"),
        ([SOUND, WEAK], 1, "two 2.0: CVE-1, fixed in 2.1"),
        ([HOPELESS, SKIPPED], 1, "three 3.0: CVE-2, fixed in no version"),
        ([SOUND, SKIPPED], 2, "1 of 2 packages checked"),
        ([SKIPPED] * 9, 2, "0 of 9 packages checked"),
        ([SKIPPED] * 9, 2, "repeat it where pypi.org can be reached"),
        ([], 2, "nothing was checked"),
    ],
)
def test_judgement(packages: list[Any], code: int, text: str) -> None:
    """A vulnerability is 1, an incomplete check 2, and only a complete check without a finding 0."""
    spec = importlib.util.spec_from_file_location("audit", TOOL)
    assert spec is not None and spec.loader is not None
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    found, lines = audit.judge(packages)
    assert found == code and text in "\n".join(lines)
