"""``ray_cluster.yaml`` is accepted by Ray's own launcher, and its commands work."""

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
    """The content of the file."""
    return dict(yaml.safe_load((ROOT / "ray_cluster.yaml").read_text()))


@pytest.fixture(scope="module")
def prepared(written: dict[str, Any]) -> dict[str, Any]:
    """The file with Ray's defaults, as ``ray up`` reads it."""
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(written)


def flags(commands: list[str]) -> dict[str, Any]:
    """Options of ``ray start`` among commands, parsed by Ray."""
    from ray.scripts.scripts import start

    arguments = shlex.split(next(one for one in commands if "ray start" in one).partition("ray start ")[2])
    with start.make_context("start", arguments) as context:
        return dict(context.params)


def test_rays_validator_accepts_it(prepared: dict[str, Any]) -> None:
    """Ray's validator accepts the file as prepared by ``ray up``."""
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared)


def test_rays_validator_checks_types(prepared: dict[str, Any]) -> None:
    """Ray's validator checks the types of fields."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(ValidationError, match="is not of type 'array'"):
        validate_config({**prepared, "setup_commands": "pip install"})


def test_rays_validator_refuses_an_unknown_field(prepared: dict[str, Any]) -> None:
    """Ray's validator refuses unknown fields."""
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(ValidationError, match="invented"):
        validate_config({**prepared, "invented": 1})


def test_every_worker_is_kept(written: dict[str, Any], prepared: dict[str, Any]) -> None:
    """All named machines are started and none is stopped."""
    node = prepared["available_node_types"][prepared["head_node_type"]]
    assert node["min_workers"] == node["max_workers"] == len(written["provider"]["worker_ips"])


def test_ray_parses_the_start_command_of_the_head(written: dict[str, Any]) -> None:
    """Ray can parse the start command of the head."""
    given = flags(written["head_start_ray_commands"])
    assert (given["head"], given["port"], given["include_dashboard"]) == (True, 6379, False)


def test_a_worker_connects_to_the_port_of_the_head(written: dict[str, Any]) -> None:
    """Ray can parse the start command of a worker, which connects to the head's port."""
    assert flags(written["worker_start_ray_commands"])["address"] == "$RAY_HEAD_IP:6379"


def test_every_node_starts_with_token_authentication(written: dict[str, Any]) -> None:
    """Every ``ray start`` uses token authentication, which is off by default."""
    commands = written["head_start_ray_commands"] + written["worker_start_ray_commands"]
    starts = [one for one in commands if "ray start" in one]
    assert ["RAY_AUTH_MODE=token " in one for one in starts] == [True, True]


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """The home folder of a node with the project's `ray` script and programs that log their calls."""
    ours, installed, found = (tmp_path / name for name in ("harness/bin", "harness-env/bin", "programs"))
    for folder in (ours, installed, found):
        folder.mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "ray_on_nodes.sh", ours / "ray")
    ray_script = '#!/bin/bash\necho "$RAY_enable_autoscaler_v2 ray $*" >> ~/calls\n'
    (installed / "ray").write_text(ray_script)
    # The second last argument is the address; 10.0.0.9 does not answer.
    ssh_script = '#!/bin/bash\necho "ssh ${@: -2}" >> ~/calls\n[ "${@: -2:1}" != me@10.0.0.9 ]\n'
    (found / "ssh").write_text(ssh_script)
    (installed / "python").write_text(f'#!/bin/bash\nexec {shlex.quote(sys.executable)} "$@"\n')
    for program in (installed / "ray", installed / "python", found / "ssh"):
        program.chmod(0o755)
    return tmp_path


def run_on(node: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program on a node."""
    environment = {"HOME": str(node), "PATH": f"{node / 'programs'}:{os.environ['PATH']}"}
    return subprocess.run(
        arguments, cwd=node, env=environment, capture_output=True, text=True, timeout=60, check=False,
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def calls(node: Path) -> list[str]:
    """Logged calls of a node, in order."""
    return (node / "calls").read_text().splitlines()


def become_head(node: Path, *workers: str) -> None:
    """Write the file that ``ray up`` leaves on the head."""
    cluster = {"provider": {"worker_ips": workers}, "auth": {"ssh_user": "me"}}
    (node / "ray_bootstrap_config.yaml").write_text(json.dumps(cluster))


def test_head_uses_autoscaler_v1(written: dict[str, Any], node: Path) -> None:
    """The head uses autoscaler v1 although ``ray up`` exports v2, with which the local provider loses workers."""
    from ray.autoscaler._private.util import with_envs

    start = next(one for one in written["head_start_ray_commands"] if "ray start" in one)
    (command,) = with_envs([start], {"RAY_enable_autoscaler_v2": "1"})
    assert run_on(node, "bash", "-c", command).returncode == 0
    assert calls(node)[0].startswith("0 ray start --head ")


def test_ray_is_on_the_path_of_a_login_shell(written: dict[str, Any], node: Path) -> None:
    """``ray stop`` works in a login shell, as ``ray down`` runs it, and setup adds one line only once."""
    from ray.autoscaler._private.command_runner import _with_interactive

    (setup,) = (one for one in written["setup_commands"] if "bashrc" in one)
    for _ in range(2):
        assert run_on(node, "bash", "-c", setup).returncode == 0
    done = run_on(node, "bash", "-c", " ".join(_with_interactive("ray stop")))
    assert done.returncode == 0, done.stderr
    assert calls(node) == [" ray stop"]
    assert len((node / ".bashrc").read_text().splitlines()) == 1


def test_stopping_the_head_stops_its_workers(node: Path) -> None:
    """The head is stopped before its workers, since its autoscaler would start them again."""
    become_head(node, "10.0.0.2", "10.0.0.3")
    done = run_on(node, str(node / "harness/bin/ray"), "stop")
    assert done.returncode == 0, done.stderr
    stop = "~/harness-env/bin/ray stop > /dev/null"
    assert calls(node)[0] == " ray stop"
    assert sorted(calls(node)[1:]) == [f"ssh me@10.0.0.2 {stop}", f"ssh me@10.0.0.3 {stop}"]


def test_worker_that_cannot_be_stopped_is_named(node: Path) -> None:
    """If a worker cannot be stopped, it is named, the others are stopped, and the command fails."""
    become_head(node, "10.0.0.9", "10.0.0.3")
    done = run_on(node, str(node / "harness/bin/ray"), "stop")
    assert done.returncode == 1
    assert "Ray could not be stopped on me@10.0.0.9; run on that machine" in done.stderr
    assert "Ray is stopped on me@10.0.0.3." in done.stdout


def test_stopping_a_worker_stops_no_other_node(node: Path) -> None:
    """Stopping a worker stops no other node."""
    assert run_on(node, str(node / "harness/bin/ray"), "stop").returncode == 0
    assert calls(node) == [" ray stop"]


def test_other_commands_go_to_the_installed_ray(node: Path) -> None:
    """Other commands are passed to the installed ray, also on the head."""
    become_head(node, "10.0.0.2")
    assert run_on(node, str(node / "harness/bin/ray"), "status", "--address", "here").returncode == 0
    assert calls(node) == [" ray status --address here"]


def test_mounted_paths_exist(written: dict[str, Any]) -> None:
    """Every mounted relative path exists in the project."""
    ours = [path for path in written["file_mounts"].values() if not path.startswith("~")]
    assert [path for path in ours if not (ROOT / path).exists()] == []


def test_files_for_the_installation_are_mounted(written: dict[str, Any]) -> None:
    """The packages, build files and pins are mounted on the nodes."""
    needed = {"harness", "tasks", "search_spaces", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert needed <= set(written["file_mounts"].values())


def test_every_installation_is_pinned(written: dict[str, Any]) -> None:
    """Each ``pip install`` on a node uses the constraints file."""
    installs = [one for one in written["setup_commands"] if "pip install" in one]
    assert installs and all("-c ~/harness/constraints.txt" in one for one in installs)
