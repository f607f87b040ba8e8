"""``ray_cluster.yaml`` is one that Ray's own launcher accepts, and nothing in it is invented."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """The file as it stands."""
    return dict(yaml.safe_load((ROOT / "ray_cluster.yaml").read_text()))


@pytest.fixture(scope="module")
def prepared(written: dict[str, Any]) -> dict[str, Any]:
    """The file with Ray's defaults, as ``ray up`` reads it."""
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(written)


def flags(commands: list[str]) -> dict[str, Any]:
    """Options of the ``ray start`` among commands, read by Ray's own parser."""
    from ray.scripts.scripts import start

    words = shlex.split(next(one for one in commands if "ray start" in one).partition("ray start ")[2])
    with start.make_context("start", words) as context:
        return dict(context.params)


def test_rays_validator_accepts_it(prepared: dict[str, Any]) -> None:
    """Prepared as ``ray up`` does, it raises nothing."""
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared)


def test_rays_validator_refuses_an_invented_field(prepared: dict[str, Any]) -> None:
    """The validator is one that refuses what it does not know."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(ValidationError, match="invented"):
        validate_config({**prepared, "invented": 1})


def test_every_worker_is_kept(written: dict[str, Any], prepared: dict[str, Any]) -> None:
    """All the machines that are named are brought up and none is let go."""
    node = prepared["available_node_types"][prepared["head_node_type"]]
    assert node["min_workers"] == node["max_workers"] == len(written["provider"]["worker_ips"])


def test_the_head_starts_with_flags_that_ray_knows(written: dict[str, Any]) -> None:
    """Ray's own parser reads the start command of the head."""
    given = flags(written["head_start_ray_commands"])
    assert (given["head"], given["port"], given["include_dashboard"]) == (True, 6379, False)


def test_a_worker_joins_the_head_on_its_port(written: dict[str, Any]) -> None:
    """Ray's own parser reads the start command of a worker."""
    assert flags(written["worker_start_ray_commands"])["address"] == "$RAY_HEAD_IP:6379"


def test_no_node_starts_without_a_token(written: dict[str, Any]) -> None:
    """``ray start`` has no authentication unless it is asked for."""
    commands = written["head_start_ray_commands"] + written["worker_start_ray_commands"]
    starts = [one for one in commands if "ray start" in one]
    assert ["RAY_AUTH_MODE=token " in one for one in starts] == [True, True]


def test_what_is_sent_to_the_nodes_exists_here(written: dict[str, Any]) -> None:
    """Every relative path that is mounted is one of this project."""
    ours = [path for path in written["file_mounts"].values() if not path.startswith("~")]
    assert [path for path in ours if not (ROOT / path).exists()] == []


def test_what_an_installation_needs_is_sent(written: dict[str, Any]) -> None:
    """The packages that are installed, what builds them and the pins reach the nodes."""
    needed = {"harness", "tasks", "search_spaces", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert needed <= set(written["file_mounts"].values())


def test_every_installation_is_pinned(written: dict[str, Any]) -> None:
    """Each ``pip install`` on a node uses the constraints file."""
    installs = [one for one in written["setup_commands"] if "pip install" in one]
    assert installs and all("-c ~/harness/constraints.txt" in one for one in installs)
