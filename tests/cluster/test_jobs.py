"""``ray=http://…`` against a real Ray Jobs, on a host of the lab; needs ``ray[default]`` beside what the lab needs."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from collections.abc import Iterator

import pytest

from .lab import HOME, Host, lab_in, missing

ADDRESS = "http://127.0.0.1:8265"
WORDS = (
    "run task=epvs sequences=T2w phantom_subjects=3 'phantom.shape=[32,32,10]' recipe.epochs=2 mlflow=off report=false "
    f"out=/shared/runs ray={ADDRESS}"
)
# Of the extra ray[default].
NEEDED = ("aiohttp_cors", "colorful", "grpc", "opencensus", "prometheus_client", "smart_open", "virtualenv")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host with a head of Ray that serves Ray Jobs on its loopback interface, and asks for a token."""
    if reason := missing():
        pytest.skip(reason)
    if absent := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        pytest.skip(f"Ray Jobs needs ray[default]; not installed: {', '.join(absent)}")
    folder = tmp_path_factory.mktemp("jobs")
    home = folder / "home"
    for path, text in (
        (".ray/auth_token", "ab" * 32),
        ("other/.ray/auth_token", "cd" * 32),
        ("bin/harness", f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m harness "$@"\n'),
    ):
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(text)
    (home / "bin" / "harness").chmod(0o755)
    with lab_in(folder / "lab") as lab:
        made = lab.add("head", home)
        python = shlex.quote(sys.executable)
        connect = "import socket; socket.create_connection(('127.0.0.1', 8265))"
        _run(
            made,
            f"{python} -c 'from ray.scripts.scripts import main; main()' start --head --port=6379 --num-cpus=2 "
            "--dashboard-host=127.0.0.1 --disable-usage-stats\n"
            f"for _ in $(seq 120); do {python} -c {shlex.quote(connect)} 2> /dev/null && exit; sleep 1; done; exit 1",
        )
        yield made


def _run(host: Host, script: str) -> str:
    """Run a script with the environment of the user of the host."""
    path = f"{HOME}/bin:{os.environ['PATH']}"
    packages = os.pathsep.join(one for one in sys.path if one.endswith("-packages"))
    return host.run(script, PATH=path, PYTHONPATH=packages, RAY_AUTH_MODE="token")


@pytest.mark.ray
def test_interrupted_command_is_followed_again_and_resumed(host: Host) -> None:
    """Ctrl-C leaves the job running; the same command follows it, and after its end finds all cells done."""
    first = _run(
        host,
        f"set -m; harness {WORDS} > log 2>&1 & for _ in $(seq 600); do grep -q verifying log && break; sleep .2; done\n"
        "kill -INT %1; wait %1; echo exit $?; cat log",
    )
    assert "\nexit 130\n" in f"\n{first}", first
    assert "submitted as job harness-" in first and "Follow it again with the same command" in first
    second = _run(host, f"harness {WORDS}")
    assert "is already running; its output from the start" in second and "27 cells: 0 done" in second
    third = _run(host, f"harness {WORDS}")
    assert "-2\n" in third.partition("submitted as job")[2] and "27 cells: 27 done" in third


@pytest.mark.ray
def test_wrong_token_is_told(host: Host) -> None:
    """The message names the token, not the connection."""
    output = _run(host, f"HOME={HOME}/other harness {WORDS}; echo exit $?")
    assert "requires its token, but the token is wrong" in output and output.endswith("exit 2\n")
