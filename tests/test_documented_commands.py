"""Commands in README and documentation work on the cluster that ``ray_cluster.yaml`` starts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The nodes ask for the token, and have harness in an environment that is not on their path.
START = "RAY_AUTH_MODE=token ~/harness-env/bin/harness "


def commands_on_the_head(text: str) -> list[str]:
    """Commands with ``ray=HEAD_NODE``, whether in a block or in a sentence; continued lines are joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    pieces = re.split(r"[`\n]", joined)
    return [piece.strip() for piece in pieces if "ray=HEAD_NODE" in piece]


def test_commands_on_the_head_use_its_token_and_its_environment() -> None:
    """Otherwise Ray refuses the driver, or the shell finds no ``harness``."""
    found = {page.name: commands_on_the_head(page.read_text("utf-8")) for page in PAGES}
    assert {"README.md", "cluster.md"} <= {name for name, commands in found.items() if commands}
    wrong = [f"{name}: {one}" for name, commands in found.items() for one in commands if not one.startswith(START)]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("and `harness run ray=HEAD_NODE:6379`, with", "harness run ray=HEAD_NODE:6379"),
        ("```\nharness run \\\n    ray=HEAD_NODE:6379\n```", "harness run ray=HEAD_NODE:6379"),
    ],
)
def test_commands_are_found_in_sentences_and_blocks(text: str, command: str) -> None:
    """Both forms are in the documentation."""
    assert commands_on_the_head(text) == [command]
