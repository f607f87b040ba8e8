"""A cluster started from ``ray_cluster.yaml`` on three hosts: `ray up`, a run that loses a host, `ray down`.

The hosts are namespaces of this machine, see ``lab.py``. Two values of the file
differ from those of a user: addresses and user name. Its commands are unchanged. Because
the hosts have no network, the environment ``~/harness-env`` exists before `ray up` (as
the first command of the file allows), refers to the packages of this Python, and its
``pip.conf`` makes pip find the build requirement in a folder.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest

from .lab import EXTRA_JOBS, HOME, RAY, ROOT, Host, Lab, lab_in, missing, ray_processes, tables_of, wait_for
from .strangers import UNAUTHENTICATED, answers, ask, methods_of_ray, sockets

# One set of sequences, two subjects fewer than by default, two seeds: 8 trainings of seconds.
RUN = (
    "run task=epvs sequences=T2w seed=0,1 phantom_subjects=4 recipe.epochs=8 attribution=saliency,random "
    "mlflow=off report=false ray={head}:6379 out=/shared/{out}"
)
TRAININGS = 2 * 4


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A network with three machines, one machine of the user, and one of somebody else."""
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cluster")
    with lab_in(folder / "lab") as made:
        _keys(folder)
        for name in ("head", "worker1", "worker2"):
            _prepare(made.add(name, folder / "node"))
        made.add("stranger", folder / "empty")
        own = made.add("own", folder / "own", clone=ROOT)
        _fill_in(made, own)
        yield made


def _keys(folder: Path) -> None:
    """Homes of the user on the own machine (key and token) and on the nodes (public key, build requirement)."""
    own, node = folder / "own", folder / "node"
    (own / ".ssh").mkdir(parents=True)
    (node / ".ssh").mkdir(parents=True)
    key = own / ".ssh" / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True, timeout=60)
    (node / ".ssh" / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
    (node / "wheels").mkdir()
    build = distribution("setuptools")
    with zipfile.ZipFile(node / "wheels" / f"setuptools-{build.version}-py3-none-any.whl", "w") as wheel:
        for file in build.files or ():
            if not {"__pycache__", ".."} & set(file.parts):
                wheel.write(str(file.locate()), str(file))


def _prepare(node: Host) -> None:
    """Make ``~/harness-env`` with this Python's packages but the extra ``jobs``, and a pip that uses no network."""
    packages = [path for path in sys.path if path.endswith("-packages")]
    python = Path(sys.base_prefix) / "bin" / "python3"
    hide = f"import sys; sys.modules.update(dict.fromkeys({EXTRA_JOBS}))"  # what is None cannot be imported
    script = "#!/home/cluster/harness-env/bin/python\nfrom ray.scripts.scripts import main\nmain()\n"
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    node.run(
        f"set -e; {shlex.quote(str(python))} -m venv --without-pip ~/harness-env\n"
        f"printf '%s\\n' {shlex.join(packages)} > ~/harness-env/lib/{version}/site-packages/packages.pth\n"
        f"printf '%s\\n' {shlex.quote(hide)} > ~/harness-env/lib/{version}/site-packages/sitecustomize.py\n"
        "printf '[global]\\nno-index = true\\nfind-links = /home/cluster/wheels\\n' > ~/harness-env/pip.conf\n"
        f"printf %s {shlex.quote(script)} > ~/harness-env/bin/ray; chmod +x ~/harness-env/bin/ray"
    )


def _fill_in(lab: Lab, own: Host) -> None:
    """Write the file of the project with addresses and user, and create the token as its comment says."""
    text = (ROOT / "ray_cluster.yaml").read_text()
    values = {"HEAD_NODE": "head", "WORKER_NODE_1": "worker1", "WORKER_NODE_2": "worker2"}
    for word, name in values.items():
        text = text.replace(word, lab.hosts[name].address)
    Path(f"/proc/{own.init}/root{HOME}/ray_cluster.yaml").write_text(text.replace("SSH_USER", "root"))
    _ray(own, "get-auth-token --generate > /dev/null && chmod 600 ~/.ray/auth_token")


def _ray(own: Host, arguments: str, *, limit_s: float = 400) -> str:
    """Run a command of Ray on the own machine, in the clone."""
    start = f"{shlex.quote(sys.executable)} -c 'from ray.scripts.scripts import main; main()'"
    return own.run(f"cd /clone && {start} {arguments}", limit_s=limit_s, RAY_USAGE_STATS_ENABLED="0")


def _on_head(own: Host, head: Host, command: str) -> list[str]:
    """The command that runs another one on the head by ssh, as ``ray attach`` does."""
    ssh = "ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
    return own.command(f"{ssh} root@{head.address} {shlex.quote(command)}")


class Run:
    """``harness run`` on the head, started from the own machine."""

    def __init__(self, lab: Lab, out: str) -> None:
        self.folder, self.log = lab.shared / out, lab.folder / f"{out}.log"
        head = lab.hosts["head"]
        words = RUN.format(head=head.address, out=out)
        command = f"OMP_NUM_THREADS=1 RAY_AUTH_MODE=token ~/harness-env/bin/harness {words}"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                _on_head(lab.hosts["own"], head, command),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def trained(self) -> int:
        """Number of finished trainings; checks that the run still goes on."""
        number = len(list((self.folder / "store" / "train").glob("*/record.json")))
        assert self.process.poll() is None or number == TRAININGS, self.log.read_text()[-4000:]
        return number

    def finish(self) -> None:
        """Wait for its end, which must be a success."""
        assert self.process.wait(timeout=900) == 0, self.log.read_text()[-4000:]

    def tables(self) -> dict[str, list[dict[str, str]]]:
        """Rows of its tables by name of the file."""
        return tables_of(self.folder)


def _alive(head: Host) -> int:
    """Number of nodes that have joined."""
    script = "RAY_AUTH_MODE=token ~/harness-env/bin/ray status"
    active = head.run(script, check=False).partition("Active:")[2].partition("Pending:")[0]
    return sum(int(number) for number in re.findall(r"(?m)^\s*(\d+) ", active))


def _check_sockets(lab: Lab) -> None:
    """Nothing but sshd answers to a machine without the token, and methods of Ray do with it."""
    stranger, methods = lab.hosts["stranger"], methods_of_ray()
    nodes = [lab.hosts[name] for name in ("head", "worker1", "worker2")]
    names = {(node.address, port): program for node in nodes for port, program in sockets(node).items()}
    ports = [address for address, program in names.items() if program != "sshd"]
    assert (nodes[0].address, 6379) in ports
    token = (Path(f"/proc/{lab.hosts['own'].init}/root{HOME}") / ".ray" / "auth_token").read_text().strip()
    answered: list[tuple[str, dict[str, str]]] = []
    reached: Counter[str] = Counter()
    seen = []
    for sent in ("", "0" * 64):
        for one in ask(stranger, ports, methods, sent):
            statuses = Counter(one["grpc"].values())
            name = names[one["address"], one["port"]]
            where = f"{one['address']}:{one['port']} {name}"
            seen.append(f"{where}, token {sent[:4] or 'none'}: {one['http']!r} {dict(statuses)}")
            if found := answers(one):
                answered.append((where, found))
            reached[name] += statuses[UNAUTHENTICATED]
    (lab.folder / "sockets.txt").write_text("\n".join(seen) + "\n")
    assert answered == []
    assert reached["gcs_server"] > 50 and reached["raylet"] > 50, "the probe must reach the services of Ray"
    (allowed,) = ask(stranger, [(nodes[0].address, 6379)], ["/ray.rpc.NodeInfoGcsService/CheckAlive"], token)
    assert list(allowed["grpc"].values()) == ["0"]


@pytest.mark.ray
def test_run_on_three_hosts_survives_the_loss_of_one(lab: Lab) -> None:
    """`ray up` starts all nodes; a run that loses one has the tables of an undisturbed run; `ray down` stops Ray.

    Meanwhile nothing answers to a machine without the token.
    """
    own, head, lost = (lab.hosts[name] for name in ("own", "head", "worker2"))
    _ray(own, f"up --yes {HOME}/ray_cluster.yaml")
    wait_for(lambda: _alive(head) == 3, "three nodes must join", limit_s=240)

    undisturbed = Run(lab, "undisturbed")
    wait_for(lambda: undisturbed.trained() >= 1, "trainings must start", limit_s=240)
    _check_sockets(lab)
    undisturbed.finish()

    disturbed = Run(lab, "disturbed")
    wait_for(lambda: disturbed.trained() >= 2, "trainings must start", limit_s=240)
    busy = [line for line in lost.processes() if line.startswith("ray::") and "IDLE" not in line]
    assert any("RuntimeEnv" not in line for line in busy), f"the lost host must be at work, it runs {busy}"
    assert disturbed.trained() < TRAININGS
    lab.cut_off(lost)
    disturbed.finish()

    expected = undisturbed.tables()
    dice = [float(row["dice"]) for rows in expected.values() for row in rows if row.get("dice")]
    assert any(0.1 < value < 1.0 for value in dice), f"tables of collapsed networks would always be equal: {dice}"
    assert disturbed.tables() == expected

    before = head.processes()
    assert any(RAY.search(line) for line in before)
    _ray(own, f"down --yes {HOME}/ray_cluster.yaml")
    for host in (head, lab.hosts["worker1"], lost):
        wait_for(lambda: not ray_processes(host), f"{host.name} still runs {ray_processes(host)}", limit_s=30)  # noqa: B023
