"""Cluster files for clouds, Kubernetes and Slurm: accepted by published schemas, complete, and with a token."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
CLUSTERS = ROOT / "clusters"
CLOUDS = ("aws", "gcp")


def read(name: str) -> dict[str, Any]:
    """Content of a cluster file."""
    return dict(yaml.safe_load((CLUSTERS / name).read_text("utf-8")))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_rays_validator_accepts_clouds(cloud: str) -> None:
    """Ray's schema accepts the fields of each cloud and their types."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(read(f"{cloud}.yaml")))


@pytest.mark.parametrize("cloud", CLOUDS)
def test_clouds_install_what_own_machines_install(cloud: str) -> None:
    """The same files, pins and token as in ``ray_cluster.yaml``, with autoscaled GPU workers on spot instances."""
    ours, made = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text("utf-8")), read(f"{cloud}.yaml")
    missing = ours["file_mounts"].keys() - made["file_mounts"].keys()
    assert missing == {"~/harness/bin/ray"}  # `ray down` ends the instances, so that no ray must be stopped on them
    assert all("-c ~/harness/constraints.txt" in one for one in made["setup_commands"] if "pip install" in one)
    starts = [one for key in ("head", "worker") for one in made[f"{key}_start_ray_commands"] if "ray start" in one]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token " in one for one in starts)
    worker = made["available_node_types"]["gpu_worker"]
    assert worker["resources"]["GPU"] == 1 and 1 <= worker["min_workers"] < worker["max_workers"]
    assert re.search("spot", json.dumps(worker["node_config"]), flags=re.IGNORECASE)
    assert made["available_node_types"][made["head_node_type"]]["resources"] == {"CPU": 0}


def test_fields_of_kuberay_are_published() -> None:
    """Every field exists in the custom resource definition of KubeRay 1.7.0 and has its type."""
    schema = json.loads((ROOT / "tests" / "kuberay_rayjob.json").read_text("utf-8"))
    made = read("kuberay.yaml")
    jsonschema.validate(made, schema)
    with pytest.raises(jsonschema.ValidationError, match="invented"):
        jsonschema.validate({**made, "invented": 1}, schema)
    with pytest.raises(jsonschema.ValidationError, match="is not of type 'boolean'"):
        jsonschema.validate({**made, "spec": {**made["spec"], "shutdownAfterJobFinishes": "yes"}}, schema)


def test_kuberay_asks_for_the_token_and_our_version_of_ray() -> None:
    """The version of Ray is that of the constraints, and the cluster answers with the token only."""
    cluster = read("kuberay.yaml")["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "constraints.txt").read_text("utf-8")


def test_slurm_script_is_valid_shell() -> None:
    """Bash parses it, and Slurm's options precede the first command."""
    script = CLUSTERS / "slurm.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text("utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert sum(line.startswith("#SBATCH") for line in lines[:first]) == 3
    assert not any(line.startswith("#SBATCH") for line in lines[first:])


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Environment of a Slurm job on three nodes, whose programs log their calls."""
    programs = tmp_path / "programs"
    programs.mkdir()
    scripts = {
        "scontrol": "printf 'n1\\nn2\\nn3\\n'",
        "srun": f'echo "srun $*" >> {tmp_path}/calls; case "$*" in *hostname*) echo "10.0.0.1 fe80::1";; esac',
        "ray": f'echo "ray $*" >> {tmp_path}/calls; [ "$1" != status ] || printf " 1 node_%s\\n" a b c',
        "harness": f'echo "harness $*" >> {tmp_path}/calls; echo "$RAY_AUTH_MODE" >> {tmp_path}/calls',
    }
    for name, text in scripts.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    return {
        "HOME": str(tmp_path), "PATH": f"{programs}:{os.environ['PATH']}", "HARNESS": str(programs / "harness"),
        "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "2",
        "SLURM_CPUS_PER_TASK": "8",
    }  # fmt: skip


def test_slurm_starts_a_head_and_workers_and_runs_the_request(slurm: dict[str, str], tmp_path: Path) -> None:
    """One head, a worker on each other node, with CPUs and GPUs of the job, and the request on the cluster."""
    bash = shutil.which("bash") or "bash"
    words = ["task=epvs", "data=/a folder/x"]
    subprocess.run([bash, str(CLUSTERS / "slurm.sbatch"), *words], env=slurm, cwd=tmp_path, check=True, timeout=60)
    calls = (tmp_path / "calls").read_text().splitlines()
    starts = [one for one in calls if "ray start" in one]
    assert len(starts) == 2 and all("--num-cpus=8 --num-gpus=2" in one for one in starts)
    (head,) = (one for one in starts if "--head" in one)
    assert "--nodelist=n1" in head and "--node-ip-address=10.0.0.1 --port=20007" in head
    (workers,) = (one for one in starts if "--head" not in one)
    assert "--nodes=2" in workers and "--exclude=n1" in workers and "--address=10.0.0.1:20007" in workers
    assert calls[-2:] == ["harness run task=epvs data=/a folder/x ray=10.0.0.1:20007", "token"]
