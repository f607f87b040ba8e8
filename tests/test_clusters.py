"""Cluster files for clouds, Kubernetes and Slurm: accepted by published schemas, complete, and with a token."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
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


@pytest.mark.parametrize("cloud", CLOUDS)
def test_clouds_install_the_launcher_beside_ray(cloud: str) -> None:
    """What Ray's launcher needs goes to the environment whose ``ray`` is then started."""
    header = (CLUSTERS / f"{cloud}.yaml").read_text("utf-8").partition("cluster_name:")[0]
    (install,) = (line for line in header.splitlines() if "pip install" in line)
    assert install.startswith("#     .venv/bin/python -m pip install -c constraints.txt ")
    assert "#     .venv/bin/ray up " in header


GENERATE = "ray get-auth-token --generate"
PLACES = ("README.md", "docs/cluster.md", "ray_cluster.yaml", "clusters/aws.yaml", "clusters/gcp.yaml")


@pytest.mark.parametrize("place", PLACES)
def test_a_new_token_is_neither_shown_nor_readable_for_others(place: str) -> None:
    """Ray prints the token and writes its file with mode 0644, so that both are prevented wherever it is made."""
    after = (ROOT / place).read_text("utf-8").split(GENERATE)[1:]
    assert after and all(text.startswith(" > /dev/null && chmod 600 ~/.ray/auth_token") for text in after)


@pytest.mark.parametrize("place", PLACES[2:])
def test_nodes_keep_the_token_to_their_user(place: str) -> None:
    """The copy on each node is for its user only, whatever mode the original has."""
    assert "chmod 600 ~/.ray/auth_token" in yaml.safe_load((ROOT / place).read_text("utf-8"))["setup_commands"]


@pytest.mark.parametrize("extra", ["jobs", "s3"])
def test_nodes_can_install_an_extra(extra: str, tmp_path: Path) -> None:
    """The documented line is one of ``setup_commands`` with the extra, and the shell of a node expands its paths."""
    page = (ROOT / "docs" / "cluster.md").read_text("utf-8")
    (line,) = re.findall(rf"^  - (.*pip install .*\[{extra}\].*)$", page, flags=re.MULTILINE)
    (command,) = yaml.safe_load(f"- {line}")
    commands = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text("utf-8"))["setup_commands"]
    assert command.replace(f"'[{extra}]'", "") in commands
    python = tmp_path / "harness-env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", command], env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}, cwd=tmp_path,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-2:] == ["-e", f"{tmp_path}/harness[{extra}]"] and "~" not in done.stdout


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


def test_head_of_kuberay_expands_the_request(tmp_path: Path) -> None:
    """The submitter's shell, which has no ``OVERRIDES``, leaves the variable to the shell of the head."""
    (tmp_path / "harness").write_text('#!/bin/bash\necho "$#: $*"\n')
    (tmp_path / "harness").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    # KubeRay joins the entrypoint into a script of bash, and `ray job submit` quotes the words that it gets.
    submit = f"{shlex.quote(sys.executable)} -c 'import shlex, sys; print(shlex.join(sys.argv[2:]))'"
    script = f"{submit} -- {read('kuberay.yaml')['spec']['entrypoint']} ;"
    submitted = subprocess.run(
        ["bash", "-ce", "--", script], env=environment, capture_output=True, text=True, check=True
    ).stdout
    request = {"OVERRIDES": "task=epvs data=/shared/bids gpus=1"}
    done = subprocess.run(
        ["bash", "-c", submitted], env={**environment, **request}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "5: run task=epvs data=/shared/bids gpus=1 ray=127.0.0.1:6379\n"


def test_commands_for_kuberay_give_each_flag_once() -> None:
    """``kubectl`` uses the last of two selectors, so that ``-l`` and ``--selector`` must not meet."""
    header = (CLUSTERS / "kuberay.yaml").read_text("utf-8").partition("apiVersion:")[0]
    commands = [shlex.split(line.strip("# "), comments=True) for line in header.splitlines() if "kubectl" in line]
    flags = [[word.partition("=")[0] for word in words if word.startswith("-")] for words in commands]
    same = [["-l" if flag == "--selector" else flag for flag in one] for one in flags]
    assert len(commands) == 3 and all(len(set(one)) == len(one) for one in same)


def test_kuberay_is_one_whose_probes_the_image_answers() -> None:
    """Before 1.7, KubeRay runs wget in the image, which has none; its probes need Ray's dashboard (extra ``jobs``)."""
    assert "KubeRay (1.7 or later)" in (CLUSTERS / "kuberay.yaml").read_text("utf-8").splitlines()[0]
    assert "\nARG EXTRAS=jobs\n" in (ROOT / "Dockerfile").read_text("utf-8")


def test_slurm_script_is_valid_shell() -> None:
    """Bash parses it, and Slurm's options precede the first command."""
    script = CLUSTERS / "slurm.sbatch"
    subprocess.run(["bash", "-n", str(script)], check=True)
    lines = script.read_text("utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert sum(line.startswith("#SBATCH") for line in lines[:first]) == 3
    assert not any(line.startswith("#SBATCH") for line in lines[first:])


def test_slurm_is_submitted_as_documented() -> None:
    """The header and the page have the same command, with GPUs and CPUs for what the request asks."""
    texts = [(CLUSTERS / "slurm.sbatch").read_text("utf-8"), (ROOT / "docs" / "cluster.md").read_text("utf-8")]
    found = [re.search(r"sbatch --nodes=3 .*\\\n.*", text) for text in texts]
    words = [shlex.split(one.group().replace("\n#", "\n").replace("\\\n", " ")) for one in found if one]
    assert len(words) == 2 and words[0] == words[1]
    assert {"--gpus-per-node=2", "--cpus-per-task=16", "gpus=0.5"} <= set(words[0])


# What `hostname -I` prints: addresses of all interfaces, of which other nodes reach only some.
ADDRESSES = "fe80::1 127.0.1.1 10.0.0.1 172.17.0.1"


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """Environment of a Slurm job on three nodes, whose programs log their calls."""
    programs = tmp_path / "my programs"
    programs.mkdir()
    log = tmp_path / "calls"
    scripts = {
        "scontrol": "printf 'n1\\nn2\\nn3\\n'",
        "srun": f'echo "srun $*" >> {log}; case "$*" in *hostname*) echo "$ADDRESSES";; esac',
        "ray": (
            f'echo "ray $*" >> {log}; [ "$1" != status ] || printf " 1 node_%s\\n" $JOINED\n'
            f'[ "$1" != get-auth-token ] || {{ echo new > ~/.ray/auth_token; stat -c %a ~/.ray/* > {tmp_path}/mode; }}'
        ),
        # The head and the workers are started in the background.
        "harness": (
            f'for _ in $(seq 200); do [ "$(grep -c "^srun.*ray start" {log})" = 2 ] && break; sleep 0.05; done\n'
            f'echo "harness $*" >> {log}; echo "$RAY_AUTH_MODE" >> {log}'
        ),
    }
    for name, text in scripts.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    return {
        "HOME": str(tmp_path), "PATH": f"{programs}:{os.environ['PATH']}", "HARNESS": str(programs / "harness"),
        "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "2",
        "SLURM_CPUS_PER_TASK": "8", "ADDRESSES": ADDRESSES, "JOINED": "a b c",
    }  # fmt: skip


def submit(slurm: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the script as Slurm does."""
    bash = shutil.which("bash") or "bash"
    return subprocess.run(
        [bash, str(CLUSTERS / "slurm.sbatch"), *words], env=slurm, cwd=folder, check=False, timeout=60,
        capture_output=True, text=True, umask=0o022,
    )  # fmt: skip


def test_slurm_starts_a_head_and_workers_and_runs_the_request(slurm: dict[str, str], tmp_path: Path) -> None:
    """One head, a worker on each other node, with CPUs and GPUs of the job, and the request on the cluster."""
    done = submit(slurm, tmp_path, "task=epvs", "data=/a folder/x")
    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    starts = [one for one in calls if "ray start" in one]
    assert len(starts) == 2 and all("--num-cpus=8 --num-gpus=2" in one for one in starts)
    (head,) = (one for one in starts if "--head" in one)
    assert "--nodelist=n1" in head and "--node-ip-address=10.0.0.1 --port=20007" in head
    (workers,) = (one for one in starts if "--head" not in one)
    assert "--nodes=2" in workers and "--exclude=n1" in workers and "--address=10.0.0.1:20007" in workers
    assert calls[-2:] == ["harness run task=epvs data=/a folder/x ray=10.0.0.1:20007", "token"]
    assert "have joined" not in done.stderr


def test_slurm_says_which_part_of_the_nodes_runs(slurm: dict[str, str], tmp_path: Path) -> None:
    """If a node does not join in time, the run starts with the others, and says so."""
    done = submit({**slurm, "JOINED": "a b", "JOIN_SECONDS": "1"}, tmp_path, "task=epvs")
    assert done.returncode == 0 and "only 2 of 3 nodes have joined Ray" in done.stderr
    assert "ray-7.log" in done.stderr and "JOIN_SECONDS=600" in done.stderr
    assert "harness run task=epvs" in (tmp_path / "calls").read_text()


@pytest.mark.parametrize(("given", "cpus"), [({}, 8), ({"SLURM_CPUS_PER_TASK": "", "SLURM_CPUS_ON_NODE": "4"}, 4)])
def test_steps_of_slurm_have_the_cpus_that_ray_counts(
    slurm: dict[str, str], tmp_path: Path, given: dict[str, str], cpus: int
) -> None:
    """Since Slurm 22.05, srun does not take this number from sbatch, and may bind a step to one core."""
    assert submit({**slurm, **given}, tmp_path, "task=epvs").returncode == 0
    steps = [one for one in (tmp_path / "calls").read_text().splitlines() if one.startswith("srun") and "ray" in one]
    assert len(steps) == 2
    assert all(f"--cpus-per-task={cpus} " in one and f"--num-cpus={cpus} " in one for one in steps)


@pytest.mark.parametrize("addresses", ["", "127.0.1.1 fe80::1"])
def test_slurm_refuses_an_address_that_others_cannot_reach(
    slurm: dict[str, str], tmp_path: Path, addresses: str
) -> None:
    """A node that knows only its loopback interface is named; no Ray is started there."""
    done = submit({**slurm, "ADDRESSES": addresses}, tmp_path, "task=epvs")
    assert done.returncode == 1 and "the first node, n1, must have an IPv4 address" in done.stderr
    assert "ray start" not in (tmp_path / "calls").read_text()


def test_slurm_makes_a_token_that_only_its_user_reads(slurm: dict[str, str], tmp_path: Path) -> None:
    """From the moment when the file exists, and also if it was there with a wide mode."""
    token = tmp_path / ".ray" / "auth_token"
    token.chmod(0o644)
    assert submit(slurm, tmp_path, "task=epvs").returncode == 0
    assert (token.read_text(), token.stat().st_mode & 0o777) == ("secret", 0o600)
    token.unlink()
    assert submit(slurm, tmp_path, "task=epvs").returncode == 0
    assert (token.read_text(), (tmp_path / "mode").read_text()) == ("new\n", "600\n")
