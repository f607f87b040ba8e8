"""The container and the development container: their files exist, and they install the pinned versions."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile with their arguments, continued lines joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text("utf-8"))
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def test_instructions_are_known_and_in_order() -> None:
    """Docker knows every instruction; a base image with a version comes first, after its argument."""
    names = [name for name, _ in instructions()]
    assert set(names) <= {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "ENTRYPOINT", "CMD"}
    assert names[:2] == ["ARG", "FROM"] and names.count("FROM") == 1
    (image,) = (value for name, value in instructions() if name == "FROM")
    assert re.fullmatch(r"python:\$\{PYTHON\}-slim-[a-z]+", image)


def test_copied_files_exist_and_are_sent_to_docker() -> None:
    """What is copied is in the project and not ignored."""
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    copied = [one for name, value in instructions() if name == "COPY" for one in value.split()[:-1]]
    assert sorted(copied) == sorted(sent)
    assert [one for one in copied if not (ROOT / one).exists()] == []


def test_every_installation_is_pinned() -> None:
    """Each ``pip install`` uses the constraints, and leaves no cache in the image."""
    installs = [
        one
        for name, value in instructions()
        if name == "RUN"
        for one in re.split(r"&&|;", value)
        if "pip install" in one
    ]
    assert len(installs) == 3
    assert all("-c constraints.txt" in one and "--no-cache-dir" in one for one in installs)


def test_container_does_not_run_as_root() -> None:
    """The last user is not root, and commands are lists, so that signals reach the program."""
    users = [value for name, value in instructions() if name == "USER"]
    assert users == ["harness"]
    assert all(isinstance(json.loads(value), list) for name, value in instructions() if name in ("ENTRYPOINT", "CMD"))


def test_development_container_uses_a_target_of_make() -> None:
    """It has a supported version of Python, and its setup is a target of the Makefile."""
    made = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text("utf-8"))
    assert re.search(r":3\.1[123]-", made["image"])
    command, target = made["postCreateCommand"].split()
    assert command == "make" and re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE)
