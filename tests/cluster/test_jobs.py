"""``ray=http://…`` against a real Ray Jobs, on a host of the lab; needs ``ray[default]`` beside what the lab needs."""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator

import pytest

from .lab import EXTRA_JOBS, HOME, Host, Lab, lab_in, missing
from .strangers import answers, ask, methods_of_ray, sockets

ADDRESS = "http://127.0.0.1:8265"
WORDS = (
    "run task=epvs sequences=T2w phantom_subjects=3 'phantom.shape=[32,32,10]' recipe.epochs=2 "
    "seed=0,1 attribution=random mlflow=off report=false "
    f"out=/shared/runs ray={ADDRESS}"
)
# A page of metrics for Prometheus: comments, and names with labels and a number.
METRICS = re.compile(r"(#.*|[a-zA-Z_:][a-zA-Z0-9_:]*(\{.*\})? \S+|)")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A host with a head of Ray that serves Ray Jobs on its loopback interface and asks for a token; a stranger."""
    if reason := missing():
        pytest.skip(reason)
    for name in EXTRA_JOBS:
        pytest.importorskip(name, reason=f"Ray Jobs needs ray[default]; not installed: {name}")
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
    with lab_in(folder / "lab") as made:
        made.add("stranger", folder / "empty")
        head = made.add("head", home)
        python = shlex.quote(sys.executable)
        connect = "import socket; socket.create_connection(('127.0.0.1', 8265))"
        _run(
            head,
            f"{python} -c 'from ray.scripts.scripts import main; main()' start --head --port=6379 --num-cpus=2 "
            "--dashboard-host=127.0.0.1 --disable-usage-stats\n"
            f"for _ in $(seq 120); do {python} -c {shlex.quote(connect)} 2> /dev/null && exit; sleep 1; done; exit 1",
        )
        yield made


@pytest.fixture
def host(lab: Lab) -> Host:
    """The host that serves Ray Jobs."""
    return lab.hosts["head"]


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
        f"set -m; harness {WORDS} > log 2>&1 &\n"
        "for _ in $(seq 1200); do grep -q verifying log && break; sleep .2; done\n"
        "kill -INT %1; wait %1; echo exit $?; cat log",
    )
    assert "\nexit 130\n" in f"\n{first}", first
    assert "submitted as job harness-" in first and "Follow it again with the same command" in first
    second = _run(host, f"harness {WORDS}")
    assert "is already running; its output from the start" in second and "30 cells: 0 done" in second
    third = _run(host, f"harness {WORDS}")
    assert "-2\n" in third.partition("submitted as job")[2] and "30 cells: 30 done" in third


@pytest.mark.ray
def test_wrong_token_is_told(host: Host) -> None:
    """The message names the token, not the connection."""
    output = _run(host, f"HOME={HOME}/other harness {WORDS}; echo exit $?")
    assert "requires its token, but the token is wrong" in output and output.endswith("exit 2\n")


@pytest.mark.ray
def test_strangers_read_metrics_and_nothing_else(lab: Lab) -> None:
    """With the extra, Ray serves metrics for Prometheus to all; every other call from another host needs the token."""
    head, stranger = lab.hosts["head"], lab.hosts["stranger"]
    names = sockets(head)
    ports = [(head.address, port) for port, program in names.items() if program != "sshd"]
    assert (head.address, 6379) in ports and 8265 not in names
    metrics = []
    for one in ask(stranger, ports, methods_of_ray(), ""):
        if not (found := answers(one)):
            continue
        assert list(found) == ["GET"], f"port {one['port']} ({names[one['port']]}) answers {found}"
        page = stranger.run(
            f"{shlex.quote(sys.executable)} -c 'import sys, urllib.request as one; "
            "print(one.urlopen(sys.argv[1], timeout=9).read().decode())' "
            f"http://{one['address']}:{one['port']}/"
        )
        assert all(METRICS.fullmatch(line) for line in page.splitlines()), f"port {one['port']}: {page[:2000]}"
        metrics.append(one["port"])
    assert metrics, "Ray no longer serves metrics: docs/cluster.md must say so"
