"""``clusters/slurm.sbatch`` on three nodes of a real Slurm: a run, a job that is cancelled, and the same job again.

The nodes are hosts of the lab, see ``lab.py``. They share the home folder of their user
and the folder of the results, as the nodes of a cluster do. The controller runs on the
first of them.
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .lab import PATH, ROOT, Lab, lab_in, missing, ray_processes, tables_of, wait_for

NODES = ("n1", "n2", "n3")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "hostname")
CONFIGURATION = """
ClusterName=lab
SlurmctldHost=n1({controller})
SlurmUser=root
AuthType=auth/none
CredType=cred/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
StateSaveLocation=/run/slurm/state
SlurmdSpoolDir=/run/slurm/spool
SlurmctldPidFile=/run/slurm/slurmctld.pid
SlurmdPidFile=/run/slurm/slurmd.pid
KillWait=5
{nodes}
PartitionName=main Nodes=ALL Default=YES State=UP
"""
# Slurm 22.05 looks for version 2 of control groups unless it is told not to.
CONTROL_GROUPS = "CgroupPlugin=cgroup/v1\n"
RUN = (
    "task=epvs sequences=T2w seed=0,1,2 phantom_subjects=4 recipe.epochs=8 attribution=saliency,random "
    "mlflow=off report=false out=/shared/{out}"
)
TRAININGS = 3 * 4


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Three nodes of a Slurm cluster."""
    absent = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    if absent:
        pytest.skip(f"these programs must be installed: {', '.join(absent)}")
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    with lab_in(folder / "lab") as made:
        (made.shared / "home").mkdir()
        for name in NODES:
            made.add(name, folder / "empty")
        _start_slurm(made)
        yield made


def _start_slurm(lab: Lab) -> None:
    """Configure all nodes, and start the controller on the first one."""
    addresses = {name: lab.hosts[name].address for name in NODES}
    nodes = "\n".join(f"NodeName={name} NodeAddr={one} CPUs=1 State=UNKNOWN" for name, one in addresses.items())
    text = CONFIGURATION.format(controller=addresses["n1"], nodes=nodes)
    (lab.shared / "slurm.conf").write_text(text)
    (lab.shared / "cgroup.conf").write_text(CONTROL_GROUPS)
    known = "\n".join(f"{address} {name}" for name, address in addresses.items())
    for name in NODES:
        lab.hosts[name].run(
            "set -e; mount --bind /shared/home /home/cluster; mkdir -p /etc/slurm /run/slurm/state /run/slurm/spool\n"
            "mount -t tmpfs tmpfs /sys/fs/cgroup\n"
            f"printf '%s\\n' {shlex.quote(known)} >> /etc/hosts\n"
            "cp /shared/slurm.conf /shared/cgroup.conf /etc/slurm/\n"
            + ("slurmctld -L /shared/slurmctld.log\n" if name == "n1" else "")
            + f"slurmd -N {name} -L /shared/slurmd-{name}.log"
        )
    first = lab.hosts["n1"]
    wait_for(lambda: first.run("sinfo -h -t idle -o %D", check=False).strip() == "3", "all nodes must be idle")


class Job:
    """A job that the script makes of a request."""

    def __init__(self, lab: Lab, out: str) -> None:
        self.first, self.folder = lab.hosts["n1"], lab.shared / out
        script = ROOT / "clusters" / "slurm.sbatch"
        harness = Path(sys.prefix) / "bin" / "harness"
        submitted = self.first.run(
            f"cd /shared && sbatch --parsable --nodes=3 --cpus-per-task=1 {shlex.quote(str(script))} "
            f"{RUN.format(out=out)}",
            HARNESS=str(harness), SLURM_CONF="/etc/slurm/slurm.conf",
        )  # fmt: skip
        self.number = int(submitted.split()[-1])
        self.log = lab.shared / f"harness-{self.number}.log"

    def state(self) -> str:
        """State of the job, such as ``RUNNING`` or ``COMPLETED``."""
        shown = self.first.run(f"scontrol show job {self.number}", check=False)
        return shown.partition("JobState=")[2].split()[0] if "JobState=" in shown else ""

    def trained(self) -> dict[str, int]:
        """Finished trainings, with the time at which each was written."""
        records = (self.folder / "store" / "train").glob("*/record.json")
        return {one.parent.name: one.stat().st_mtime_ns for one in records}

    def told(self) -> str:
        """The end of its log, and of that of Ray."""
        logs = (self.log, self.log.with_name(f"ray-{self.number}.log"))
        return "\n".join(one.read_text()[-3000:] for one in logs if one.exists())

    def finish(self) -> None:
        """Wait for its end, which must be a success."""
        wait_for(lambda: self.state() not in ("PENDING", "RUNNING", "COMPLETING"), "the job must end", limit_s=600)
        assert self.state() == "COMPLETED", self.told()


@pytest.mark.slow
@pytest.mark.ray
def test_slurm_runs_on_three_nodes_and_resumes(lab: Lab) -> None:
    """All nodes work; a cancelled job leaves no process, and the same command ends with the same tables."""
    undisturbed = Job(lab, "undisturbed")
    workers: set[str] = set()

    def at_work() -> bool:
        workers.update(name for name in NODES if any("ray::" in line for line in lab.hosts[name].processes()))
        return len(undisturbed.trained()) == TRAININGS or undisturbed.state() not in ("PENDING", "RUNNING")

    wait_for(at_work, "trainings must end", limit_s=400)
    undisturbed.finish()
    assert workers == set(NODES), undisturbed.told()
    assert "have joined" not in undisturbed.log.read_text()
    token = lab.shared / "home" / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600

    cancelled = Job(lab, "disturbed")
    wait_for(lambda: len(cancelled.trained()) >= 2, "trainings must start", limit_s=240)
    cancelled.first.run(f"scancel {cancelled.number}")
    wait_for(lambda: cancelled.state() == "CANCELLED", "the job must be cancelled", limit_s=60)
    for host in lab.hosts.values():
        wait_for(lambda: not ray_processes(host), f"{host.name} still runs {ray_processes(host)}", limit_s=60)  # noqa: B023
    done = cancelled.trained()
    assert 2 <= len(done) < TRAININGS

    again = Job(lab, "disturbed")
    again.finish()
    assert tables_of(again.folder) == tables_of(undisturbed.folder) != {}
    assert len(again.trained()) == TRAININGS and done.items() <= again.trained().items()
