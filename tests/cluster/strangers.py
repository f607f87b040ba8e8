"""What Ray on hosts of the lab answers to callers with or without its token."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from .lab import Host

# Services without a generated Python module are found in the programs of Ray.
PROGRAMS = ("core/src/ray/raylet/raylet", "core/src/ray/gcs/gcs_server")
# Of gRPC itself; every server of Ray answers anyone that it is alive, and nothing else.
HEALTH = "/grpc.health.v1.Health/Check"
UNAUTHENTICATED, UNKNOWN = "16", "12"


def methods_of_ray() -> list[str]:
    """All gRPC methods of Ray, ``/package.Service/Method``, from its modules and its programs."""
    import ray.core.generated

    found = {HEALTH}
    for module in pkgutil.iter_modules(ray.core.generated.__path__):
        if module.name.endswith("_pb2"):
            described = importlib.import_module(f"ray.core.generated.{module.name}").DESCRIPTOR
            for service in described.services_by_name.values():
                found |= {f"/{service.full_name}/{method.name}" for method in service.methods}
    for program in PROGRAMS:
        content = (Path(ray.__file__).parent / program).read_bytes()
        found |= {name.decode() for name in re.findall(rb"/ray\.rpc\.[A-Za-z.]+/[A-Za-z]+(?=\0)", content)}
    return sorted(found)


def sockets(host: Host) -> dict[int, str]:
    """Ports that a host listens on at addresses that others reach, with the program."""
    ports = {}
    for line in host.run("ss -H -ltnp").splitlines():
        address, _, port = line.split()[3].rpartition(":")
        program = re.search(r'\(\("([^"]*)"', line)
        if not address.startswith(("127.", "[::1]")):
            ports[int(port)] = program[1] if program else "?"
    return ports


def ask(caller: Host, ports: list[tuple[str, int]], methods: list[str], token: str) -> list[dict[str, Any]]:
    """Answers of ports to calls from a host."""
    probe = (Path(__file__).parent / "probe.py").read_text()
    given = json.dumps({"ports": ports, "methods": methods, "token": token})
    done = subprocess.run(
        caller.command(f"{shlex.quote(sys.executable)} -c {shlex.quote(probe)}"),
        input=given, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def answers(one: dict[str, Any]) -> dict[str, str]:
    """What a port answers to a caller without the right token: method or ``GET`` with the status; empty if nothing."""
    refused = (UNAUTHENTICATED, UNKNOWN, "closed")
    found = {key: value for key, value in one["grpc"].items() if value not in refused and key != HEALTH}
    status = one["http"].split(" ")[1] if one["http"].startswith("HTTP") else ""
    if status not in ("", "401", "403"):
        found["GET"] = one["http"]
    return found
