"""The container and the development container: their files exist, and they install the pinned versions."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

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


def installs() -> list[str]:
    """Every ``pip install`` of the Dockerfile."""
    commands = [one for name, value in instructions() if name == "RUN" for one in re.split(r"&&|;", value)]
    return [one for one in commands if "pip install" in one]


def test_every_installation_is_pinned() -> None:
    """Each ``pip install`` uses the constraints, and leaves no cache in the image."""
    assert len(installs()) == 3
    assert all("-c constraints.txt" in one and "--no-cache-dir" in one for one in installs())


def test_only_torch_comes_from_the_index_of_pytorch() -> None:
    """That index lacks the pinned versions of what torch needs, and no package of PyPI is looked for on another one."""
    (torch,) = (one for one in installs() if "index-url" in one)
    assert "--no-deps torch --index-url https://download.pytorch.org/whl/cpu" in torch
    assert installs().index(torch) < len(installs()) - 1


def test_container_has_what_ray_jobs_need() -> None:
    """KubeRay submits through Ray Jobs and probes the dashboard; both are in this extra."""
    assert installs()[-1].split()[-1] == '".[${EXTRAS}]"'
    arguments = [f"{name} {value}" for name, value in instructions()]
    base = next(number for number, one in enumerate(arguments) if one.startswith("FROM "))
    assert arguments.index("ARG EXTRAS=jobs") > base, "before FROM, an argument is empty in RUN"


def test_documented_extras_of_the_container_exist() -> None:
    """Commands that build an image with other extras name those of ``pyproject.toml``, and keep ``jobs``."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for path in (ROOT / "Dockerfile", ROOT / "docs" / "cluster.md"):
        named = re.findall(r"--build-arg EXTRAS=(\S+)", path.read_text("utf-8"))
        assert named and all({"jobs"} < set(one.split(",")) <= extras.keys() for one in named), path


def test_container_does_not_run_as_root() -> None:
    """The last user is not root and a number, and commands are lists, so that signals reach the program."""
    (user,) = (value for name, value in instructions() if name == "USER")
    assert int(user) > 0 and any(f"useradd --create-home --uid {user} " in value for _, value in instructions())
    assert all(isinstance(json.loads(value), list) for name, value in instructions() if name in ("ENTRYPOINT", "CMD"))


def test_development_container_uses_a_target_of_make() -> None:
    """It has a supported version of Python, and its setup is a target of the Makefile."""
    made = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text("utf-8"))
    assert re.search(r":3\.1[123]-", made["image"])
    command, target = made["postCreateCommand"].split()
    assert command == "make" and re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE)


# A command for the shell, the words of a command, or several commands by name.
COMMAND = (str, list, dict)

# Top-level fields of devcontainer.json and their types, of the specification (https://containers.dev/implementors/
# json_reference), without those for Docker Compose.
FIELDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("$schema", "name", "image", "containerUser", "remoteUser", "waitFor", "userEnvProbe"), (str,)),
    **dict.fromkeys(("shutdownAction", "workspaceFolder", "workspaceMount"), (str,)),
    **dict.fromkeys(("build", "features", "customizations", "secrets", "containerEnv", "remoteEnv"), (dict,)),
    **dict.fromkeys(("portsAttributes", "otherPortsAttributes", "hostRequirements"), (dict,)),
    **dict.fromkeys(("forwardPorts", "mounts", "capAdd", "securityOpt", "runArgs"), (list,)),
    "overrideFeatureInstallOrder": (list,),
    "appPort": (int, str, list),
    **dict.fromkeys(("updateRemoteUserUID", "init", "privileged", "overrideCommand"), (bool,)),
    **dict.fromkeys(("initializeCommand", "onCreateCommand", "updateContentCommand"), COMMAND),
    **dict.fromkeys(("postCreateCommand", "postStartCommand", "postAttachCommand"), COMMAND),
}  # fmt: skip


def wrong_fields(made: Mapping[str, Any]) -> list[str]:
    """Fields that the specification does not have, or has with another type; and a container without an origin."""
    unknown = [f"{name} is unknown" for name in made if name not in FIELDS]
    typed = [name for name, value in made.items() if name in FIELDS and not isinstance(value, FIELDS[name])]
    origin = [] if ("image" in made) != ("build" in made) else ["it must have either image or build"]
    return [*unknown, *(f"{name} has another type" for name in typed), *origin]


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({}, []),
        ({"postCreateComand": "make"}, ["postCreateComand is unknown"]),
        ({"runArgs": "--shm-size=4g"}, ["runArgs has another type"]),
        ({"build": {"dockerfile": "../Dockerfile"}}, ["it must have either image or build"]),
    ],
)
def test_development_container_has_fields_of_the_specification(change: dict[str, Any], wrong: list[str]) -> None:
    """Tools ignore a misspelt field in silence; it is found here, as are wrong types."""
    made = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text("utf-8"))
    assert wrong_fields({**made, **change}) == wrong
