"""``ray_cluster.yaml`` is one that Ray's own launcher accepts, and nothing in it is invented."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
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


def test_rays_validator_refuses_commands_that_are_no_list(prepared: dict[str, Any]) -> None:
    """It knows the type of a field, though it reads no command."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(ValidationError, match="is not of type 'array'"):
        validate_config({**prepared, "setup_commands": "pip install"})


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


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """The home of a node: the `ray` of this project, and programs that write down how they were called."""
    ours, installed, found = (tmp_path / name for name in ("harness/bin", "harness-env/bin", "programs"))
    for folder in (ours, installed, found):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "ray_on_nodes.sh", ours / "ray")
    says = '#!/bin/bash\necho "$RAY_enable_autoscaler_v2 ray $*" >> ~/calls\n'
    (installed / "ray").write_text(says)
    # The address is the last word but one; 10.0.0.9 does not answer.
    reaches = '#!/bin/bash\necho "ssh ${@: -2}" >> ~/calls\n[ "${@: -2:1}" != me@10.0.0.9 ]\n'
    (found / "ssh").write_text(reaches)
    (installed / "python").write_text(f'#!/bin/bash\nexec {shlex.quote(sys.executable)} "$@"\n')
    for program in (installed / "ray", installed / "python", found / "ssh"):
        program.chmod(0o755)
    return tmp_path


def on(node: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program on a node."""
    environment = {"HOME": str(node), "PATH": f"{node / 'programs'}:{os.environ['PATH']}"}
    return subprocess.run(
        words, cwd=node, env=environment, capture_output=True, text=True, timeout=60, check=False,
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def calls(node: Path) -> list[str]:
    """What was called on a node, in order."""
    return (node / "calls").read_text().splitlines()


def become_head(node: Path, *workers: str) -> None:
    """Leave what ``ray up`` leaves on the head."""
    cluster = {"provider": {"worker_ips": workers}, "auth": {"ssh_user": "me"}}
    (node / "ray_bootstrap_config.yaml").write_text(json.dumps(cluster))


def test_the_head_keeps_the_first_autoscaler(written: dict[str, Any], node: Path) -> None:
    """``ray up`` exports the second one before each command, and the local provider loses workers with it."""
    from ray.autoscaler._private.util import with_envs

    start = next(one for one in written["head_start_ray_commands"] if "ray start" in one)
    (command,) = with_envs([start], {"RAY_enable_autoscaler_v2": "1"})
    assert on(node, "bash", "-c", command).returncode == 0
    assert calls(node)[0].startswith("0 ray start --head ")


def test_ray_is_on_the_path_of_a_login_shell(written: dict[str, Any], node: Path) -> None:
    """``ray down`` runs a bare ``ray stop`` in one; setting up twice adds one line."""
    from ray.autoscaler._private.command_runner import _with_interactive

    (setup,) = (one for one in written["setup_commands"] if "bashrc" in one)
    for _ in range(2):
        assert on(node, "bash", "-c", setup).returncode == 0
    done = on(node, "bash", "-c", " ".join(_with_interactive("ray stop")))
    assert done.returncode == 0, done.stderr
    assert calls(node) == [" ray stop"]
    assert len((node / ".bashrc").read_text().splitlines()) == 1


def test_stopping_the_head_stops_its_workers(node: Path) -> None:
    """The head goes first, as its autoscaler would start them again."""
    become_head(node, "10.0.0.2", "10.0.0.3")
    done = on(node, str(node / "harness/bin/ray"), "stop")
    assert done.returncode == 0, done.stderr
    stop = "~/harness-env/bin/ray stop > /dev/null"
    assert calls(node)[0] == " ray stop"
    assert sorted(calls(node)[1:]) == [f"ssh me@10.0.0.2 {stop}", f"ssh me@10.0.0.3 {stop}"]


def test_worker_that_cannot_be_stopped_is_named(node: Path) -> None:
    """The others are stopped, and the command fails."""
    become_head(node, "10.0.0.9", "10.0.0.3")
    done = on(node, str(node / "harness/bin/ray"), "stop")
    assert done.returncode == 1
    assert "Ray was not stopped on me@10.0.0.9; run this there" in done.stderr
    assert "Ray is stopped on me@10.0.0.3." in done.stdout


def test_stopping_a_worker_stops_nobody_else(node: Path) -> None:
    """A worker knows nothing of the cluster."""
    assert on(node, str(node / "harness/bin/ray"), "stop").returncode == 0
    assert calls(node) == [" ray stop"]


def test_other_commands_go_to_the_installed_ray(node: Path) -> None:
    """On the head as well."""
    become_head(node, "10.0.0.2")
    assert on(node, str(node / "harness/bin/ray"), "status", "--address", "here").returncode == 0
    assert calls(node) == [" ray status --address here"]


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
