"""Hosts on one machine: network, process, mount and host-name namespaces, each with its own sshd and home.

Everything runs below one process, the *lab*, which is the init process of a process
namespace and reads from a pipe of pytest. When pytest ends, however it ends, the pipe
closes, the lab ends, and the kernel ends all processes, networks and mounts below it.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BRIDGE = "10.77.0.1"
HOME = "/home/cluster"
SHARED = "/shared"
PROGRAMS = ("ip", "mount", "nsenter", "rsync", "ss", "ssh", "ssh-keygen", "sshd", "unshare")
# Packages that ray[default], our extra ``jobs``, adds to ray[tune].
EXTRA_JOBS = ("aiohttp_cors", "colorful", "grpc", "opencensus", "prometheus_client", "smart_open", "virtualenv")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Columns that differ between two runs of the same work.
OWN = ("train_s", "explain_s", "command", "mlflow_run")
# A process of Ray, by its command line.
RAY = re.compile(r"raylet|gcs_server|ray::|log_monitor|ray/_private|monitor\.py|default_worker")

# Init process of a host; arguments: folder, name, address, folders to bind, shared folder. The root is a private copy
# of this machine's (overlay), with an empty home of root, /tmp, /dev/shm, and its own /proc and host name.
_BOOT = r"""
set -e
folder=$1 name=$2 address=$3 shared=$4; shift 4
mount --make-rprivate /
root=$folder/root
mkdir -p "$root" "$folder/upper" "$folder/work"
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$root"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/dev/shm"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/run"
for path; do mkdir -p "$root$path"; mount --bind -o ro "$path" "$root$path"; done
mkdir -p "$root/home/cluster" "$root/clone" "$root/shared" "$root/proc"
mount --bind "$shared" "$root/shared"
mount -t proc proc "$root/proc"
mkdir -p "$root/sys"; mount -t sysfs sysfs "$root/sys"
sed -i 's|^root:.*|root:x:0:0:root:/home/cluster:/bin/bash|' "$root/etc/passwd"
rm -f "$root/etc/hosts" "$root/etc/resolv.conf"
printf '127.0.0.1 localhost\n%s %s\n' "$address" "$name" > "$root/etc/hosts"
: > "$root/etc/resolv.conf"
hostname "$name"
cp -a "$folder/home/." "$root/home/cluster/"
chmod 700 "$root/home/cluster" "$root/home/cluster/.ssh"
cd "$root"
mkdir -p run/sshd
exec chroot . /bin/bash -c '
cd /home/cluster
ssh-keygen -q -t ed25519 -N "" -f /run/host_key
$(command -v sshd || echo /usr/sbin/sshd) -f /dev/null -h /run/host_key -o PidFile=none -o UseDNS=no -o UsePAM=no \
    -o PermitRootLogin=prohibit-password -o MaxStartups=100
touch /run/ready
while :; do sleep 1000 & wait; done'
"""


def missing() -> str:
    """What this machine lacks for the lab; empty if nothing.

    Each reason names the program or right that is missing.
    """
    if not sys.platform.startswith("linux"):
        return "namespaces need Linux"
    absent = [program for program in PROGRAMS if shutil.which(program, path=PATH) is None]
    if absent:
        return f"these programs must be installed: {', '.join(absent)}"
    if os.geteuid() != 0:
        return "network and mount namespaces with an sshd each need root"
    script = (
        "mount -t tmpfs tmpfs /mnt && mkdir /mnt/a /mnt/b /mnt/c && "
        "mount -t overlay overlay -o lowerdir=/,upperdir=/mnt/a,workdir=/mnt/b /mnt/c && "
        "ip link add one type veth peer name two && ip link add three type bridge && hostname lab"
    )
    tried = subprocess.run(
        ["unshare", *_NAMESPACES, "sh", "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    if tried.returncode:
        return (
            f"no right to create namespaces with a network and an overlay: {tried.stderr.strip() or tried.returncode}"
        )
    return ""


_NAMESPACES = ("--net", "--pid", "--mount", "--uts", "--ipc", "--fork", "--mount-proc", "--kill-child")


@dataclass
class Host:
    """A host of the lab.

    Parameters
    ----------
    name : host name
    address : address in the network of the lab
    init : process id of its init process, as seen from pytest
    """

    name: str
    address: str
    init: int

    def command(self, script: str, **environment: str) -> list[str]:
        """The command that runs a shell script on this host, in the home of its user."""
        variables = {"HOME": HOME, "PATH": PATH, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", **environment}
        given = [f"{key}={value}" for key, value in variables.items()]
        enter = ["nsenter", "--target", str(self.init), "--all", "--root"]
        return [*enter, "env", "-i", f"--chdir={HOME}", *given, "bash", "-c", script]

    def run(self, script: str, *, limit_s: float = 300, check: bool = True, **environment: str) -> str:
        """Run a shell script on this host.

        Returns
        -------
        str
            Standard output and standard error together.
        """
        done = subprocess.run(
            self.command(script, **environment),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=limit_s,
            check=False, start_new_session=True,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"{self.name}: exit {done.returncode} of {script}\n{done.stdout[-4000:]}")
        return done.stdout

    def processes(self) -> list[str]:
        """Command lines of all processes in this host's process namespace."""
        try:
            own = Path(f"/proc/{self.init}/ns/pid").readlink()
        except FileNotFoundError:
            return []
        lines = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (folder / "ns/pid").readlink() == own:
                    lines.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:  # ended, or a process of the system
                pass
        return lines


@dataclass
class Lab:
    """A network of hosts on this machine.

    Parameters
    ----------
    folder : folder of the lab on this machine
    init : process id of the lab's init process, as seen from pytest
    hosts : its hosts by name
    starters : processes that started them
    """

    folder: Path
    init: int
    hosts: dict[str, Host] = field(default_factory=dict)
    starters: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def shared(self) -> Path:
        """The folder that all hosts see as ``/shared``."""
        return self.folder / "shared"

    def inside(self, *arguments: str) -> str:
        """Run a program in the lab, outside of its hosts."""
        done = subprocess.run(
            ["nsenter", "--target", str(self.init), "--all", *arguments],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, f"{shlex.join(arguments)}: {done.stderr}"
        return done.stdout

    def add(self, name: str, home: Path, *, clone: Path | None = None) -> Host:
        """Start a host whose home is a copy of a folder; with a clone of the project at ``/clone``, if given."""
        number = len(self.hosts) + 11
        address, folder = f"10.77.0.{number}", self.folder / "hosts" / name
        folder.mkdir(parents=True)
        home.mkdir(exist_ok=True)
        shutil.copytree(home, folder / "home", symlinks=True)
        (folder / "home" / ".ssh").mkdir(exist_ok=True)
        enter = ["nsenter", "--target", str(self.init), "--all"]
        log = (self.folder / f"{name}.log").open("w")
        process = subprocess.Popen(
            [*enter, "unshare", *_NAMESPACES, "bash", str(self.folder / "boot.sh"), str(folder), name, address,
             str(self.shared), *_bound()],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        log.close()
        self.starters.append(process)
        told = f"{name} does not start, see {self.folder / name}.log"
        init = wait_for(lambda: _init_below(process.pid, _depth(self.init) + 1), told)
        for arguments in (
            [
                "link",
                "add",
                f"to-{number}",
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                str(self._pid_inside(init)),
            ],
            ["link", "set", f"to-{number}", "master", "bridge", "up"],
        ):
            self.inside("ip", *arguments)
        for arguments in (
            ["link", "set", "lo", "up"],
            ["address", "add", f"{address}/24", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
            # Ray asks the routing table for the address of its node.
            ["route", "add", "default", "via", BRIDGE],
        ):
            subprocess.run(["nsenter", "--target", str(init), "--net", "ip", *arguments], check=True, timeout=60)
        host = self.hosts[name] = Host(name, address, init)
        wait_for(lambda: Path(f"/proc/{init}/root/run/ready").exists(), told)
        if clone is not None:
            host.run("mkdir -p /clone")
            shutil.copytree(clone, Path(f"/proc/{init}/root/clone"), dirs_exist_ok=True, ignore=_not_sources)
        return host

    def cut_off(self, host: Host) -> None:
        """End a host as a loss of power would: its network goes first, so that no connection is closed."""
        self.inside("ip", "link", "set", f"to-{host.address.rpartition('.')[2]}", "down")
        os.kill(host.init, 9)
        wait_for(lambda: not Path(f"/proc/{host.init}").exists(), f"{host.name} does not end")

    def _pid_inside(self, pid: int) -> int:
        """The process id of a process as the lab sees it."""
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-2])
        raise AssertionError(f"no NSpid of {pid}")


def _bound() -> list[str]:
    """Folders of the Python installation and its packages, which hosts see read-only at the same path."""
    packages = [path for path in sys.path if path.endswith("-packages") and Path(path).is_dir()]
    return [*dict.fromkeys([sys.base_prefix, str(ROOT), sys.prefix, *site.getsitepackages(), *packages])]


def _not_sources(folder: str, names: Sequence[str]) -> list[str]:
    """Entries of a clone that are neither sources nor configuration."""
    return [
        one for one in names if one in {"__pycache__", "harness-runs", "build"} or one.startswith((".git", ".venv"))
    ]


def _init_below(pid: int, depth: int) -> int:
    """The process below another one that is the first of a process namespace at a depth; 0 if there is none yet."""
    try:
        words = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid:"))
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    seen = words.split()[1:]
    if len(seen) == depth and seen[-1] == "1":
        return pid
    return next((found for child in children if (found := _init_below(int(child), depth))), 0)


def _depth(pid: int) -> int:
    """In how many nested process namespaces a process is."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return len(next(line for line in lines if line.startswith("NSpid:")).split()) - 1


def wait_for(ready: Callable[[], Any], otherwise: str, *, limit_s: float = 60) -> Any:
    """Wait until a function returns something true, and return that.

    Raises
    ------
    AssertionError
        After the limit, with the given message.
    """
    end = time.monotonic() + limit_s
    while not (found := ready()):
        assert time.monotonic() < end, otherwise
        time.sleep(0.2)
    return found


@contextlib.contextmanager
def lab_in(folder: Path) -> Iterator[Lab]:
    """A lab whose files are in a folder; all its processes, mounts and networks end with the ``with`` block."""
    (folder / "shared").mkdir(parents=True)
    (folder / "boot.sh").write_text(_BOOT)
    script = (
        "mount --make-rprivate / && ip link set lo up && ip link add bridge type bridge && "
        f"ip address add {BRIDGE}/24 dev bridge && ip link set bridge up && exec cat"
    )
    process = subprocess.Popen(
        ["unshare", *_NAMESPACES, "sh", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    try:
        init = wait_for(lambda: _init_below(process.pid, _depth(os.getpid()) + 1), "the lab does not start")
        wait_for(lambda: b"cat" in Path(f"/proc/{init}/cmdline").read_bytes(), "the lab does not start")
        yield Lab(folder, init)
    finally:
        process.stdin.close()
        process.wait(timeout=60)


def tables_of(out: Path) -> dict[str, list[dict[str, str]]]:
    """Rows of the tables of a run by name of the file, without measured times, the command and the tracking run."""
    tables = {}
    for path in sorted((out / "leaderboards").rglob("*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        tables[path.name] = [{key: row[key] for key in row if key not in OWN} for row in rows]
    return tables


def ray_processes(host: Host) -> list[str]:
    """Processes of Ray on a host."""
    return [line for line in host.processes() if RAY.search(line)]
