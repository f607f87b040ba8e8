"""``python tests/chaos/chaos.py --rounds 20 --seed 0`` harms a sweep of 42 cells, one way in each round.

Each round draws a harm, a stage and the number of a call from its seed, starts the sweep in
a process and mount namespace of its own, waits until a worker of Ray is inside of that call,
and strikes. The same command is then repeated until it succeeds, and the round passes if

- the harm struck inside of a worker;
- the tables are those of the undisturbed sweep, value for value, whose values differ from row to row;
- MLflow has one finished run per configuration and training;
- the store has no half-written cell and no remains;
- ten seconds after each end of a command, no process of it is left, not even the worker inside of that call;
- every attempt that failed was listed with its reason, and after the end of a driver what is left to do.

Twenty harms are dealt from a deck, so that as many seeds in a row see each of them once.
Needs Linux and the rights to make namespaces (root, or unprivileged user namespaces).
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
_ORPHANS_S = 10.0
_RUN_S = 400.0  # longest run of the command
_MOST_RUNS = 4
_PASSING_S = 10.0  # for which the store is read-only or full
_LOCK_S = 30.0  # longest wait for the lock of the database
_CLOCK_S = -2 * 86400
_SKIPPED = 77  # exit code

# What the output lists of an attempt that failed, by the harm.
_LISTED = {
    "worker killed": r"attempt 1 failed: .*worker or node died",
    "store read-only": r"cannot write to .*[Rr]ead-only",
    "hang": r"attempt 1 failed: .*took longer than",
}
_END_DRIVER = ("driver killed", "node killed", "raylet killed", "driver terminated", "clock set back")
# What it lists after the driver has ended: the next run says what is left to do, and does it.
_RESUMED = r"(?:.*\n)*.* cells: \d+ done, [1-9]\d* to do\n(?:.*\n)*.* [1-9]\d* cells done, 0 failed"
_ENDED = rf" cells: 0 done, [1-9]\d* to do\n{_RESUMED}"

# What the output of all runs must list, as a regular expression; empty if the harm may pass unnoticed.
HARMS = {
    "worker killed": _LISTED["worker killed"],
    "raylet killed": _LISTED["worker killed"],
    "driver killed": _ENDED,
    "node killed": _ENDED,
    "driver terminated": _ENDED,
    "MLflow server killed, back soon": "",
    "MLflow server killed, back later": r"cannot write to MLflow",
    "store read-only": _LISTED["store read-only"],
    "store full": r"cannot write to .*[Nn]o space left",
    "database locked": r"cannot write to MLflow .*database is locked",
    "raise": r"failed: .*RuntimeError: a cell that raises",
    "hang": rf"{_LISTED['hang']} .*\n(.*\n)*.*failed: .*took longer than",
    "memory": r"failed: .*MemoryError",
    "nan": r"failed: .*(NaN|finite|nan)",
    "segfault": _LISTED["worker killed"],
    "clock set back": _ENDED,
    "two drivers": r"waiting for another run",
    "worker killed, then driver killed": _LISTED["worker killed"] + _RESUMED,
    "store read-only, then driver killed": _LISTED["store read-only"] + _RESUMED,
    "hang, then node killed": _LISTED["hang"] + _RESUMED,
}

ENTRY_POINTS = "[harness.plugins]\nchaos = chaos_components\n\n[harness.tasks]\nchaos = chaos_components:TASK\n"
OVERRIDES = (
    "task=chaos",
    "phantom_subjects=3",
    "phantom.shape=[24,24,8]",
    "phantom.density=4000",
    "sequences=T2w,T2w+FLAIR",
    "report=false",
    "time_limit=0.75",
)
CELLS = 42
TRACKED = 2 + 6  # configurations and trainings


@dataclass(frozen=True)
class Round:
    """What is drawn from a seed.

    Parameters
    ----------
    seed : the seed
    harm : name of the harm; empty for the undisturbed sweep
    stage : stage that it strikes, ``train`` or ``explain``
    call : number of the call of that stage among those of all workers, from 1
    """

    seed: int
    harm: str
    stage: str
    call: int

    @classmethod
    def drawn(cls, seed: int) -> Round:
        """The round of a seed."""
        deck = list(HARMS)
        random.Random(seed // len(deck)).shuffle(deck)
        rng = random.Random(f"round {seed}")
        stage = rng.choice(["train", "explain"])
        return cls(seed, deck[seed % len(deck)], stage, rng.randint(2, 5))

    @property
    def own(self) -> str:
        """The harm that the worker does itself; empty for others."""
        first = self.harm.partition(",")[0]
        return first if first in ("raise", "hang", "memory", "nan", "segfault") else ""


@dataclass
class Outcome:
    """Result of a round.

    Parameters
    ----------
    struck : where the harm struck
    codes : exit codes of the runs of the command
    problems : what was wrong; empty if the round passes
    tables : rows of all tables
    seconds : wall time
    """

    struck: str = ""
    codes: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    tables: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    seconds: float = 0.0


def missing_rights() -> str:
    """Why rounds cannot be run here; empty if they can."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return "needs Linux with unshare (util-linux)"
    done = subprocess.run([*_namespace(), "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, text=True)
    return "" if done.returncode == 0 else f"namespaces or mounts are not permitted: {done.stderr.strip()}"


def _namespace() -> list[str]:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]


# Outside of the namespace


def prepare(work: Path) -> None:
    """Install the components in a folder, and compile the wrong clock if there is a compiler."""
    site = work / "site"
    metadata = site / "harness_chaos-1.0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "chaos_components.py", site)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: harness-chaos\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    for folder in ("runs", "logs"):
        (work / folder).mkdir(exist_ok=True)
    if shutil.which("cc"):
        subprocess.run(["cc", "-shared", "-fPIC", "-o", work / "clock.so", HERE / "clock.c", "-ldl"], check=True)


def perform(one: Round, work: Path) -> Outcome:
    """Perform a round in a namespace of its own, which ends with all its processes."""
    began_s = time.monotonic()
    answer = work / "logs" / f"{one.seed}.json"
    answer.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).resolve()), "--inside", json.dumps(asdict(one)), "--work", str(work)]
    with (work / "logs" / f"{one.seed}.chaos").open("w") as log:
        subprocess.run([*_namespace(), *command], stdout=log, stderr=log, stdin=subprocess.DEVNULL, check=False)
    if not answer.is_file():
        tail = (work / "logs" / f"{one.seed}.chaos").read_text()[-300:]
        return Outcome(problems=[f"the round itself failed: {tail}"])
    outcome = Outcome(**json.loads(answer.read_text()))
    outcome.seconds = time.monotonic() - began_s
    return outcome


def compared(outcome: Outcome, expected: Outcome) -> list[str]:
    """Differences between the tables of a round and those of the undisturbed sweep."""
    problems = []
    if outcome.tables.keys() != expected.tables.keys():
        problems.append(f"tables {sorted(outcome.tables)} instead of {sorted(expected.tables)}")
    for name in outcome.tables.keys() & expected.tables.keys():
        if outcome.tables[name] != expected.tables[name]:
            problems.append(f"{name} differs")
    return problems


def alike(expected: Outcome) -> Iterator[str]:
    """Columns of the undisturbed sweep that could not show a difference, as of collapsed networks."""
    rows = [row for table in expected.tables.values() for row in table]
    for column in ("dice", "relevance_ap"):
        values = [float(row[column]) for row in rows if row.get(column)]
        if len(set(values)) < 2 or not any(0.1 < value < 1.0 for value in values):
            yield f"tables of collapsed networks would always be equal: {column} is {values}"


def line(one: Round, outcome: Outcome) -> str:
    """A row of the table."""
    codes = ", ".join(map(str, outcome.codes))
    verdict = "pass" if not outcome.problems else f"FAIL: {'; '.join(outcome.problems)}"
    return f"| {one.seed} | {one.harm} | {outcome.struck} | {codes} | {outcome.seconds:.0f} | {verdict} |"


# Inside of the namespace


class Sweep:
    """The command, its processes and its output folder."""

    def __init__(self, one: Round, work: Path) -> None:
        self.one, self.work = one, work
        self.out, self.orders = work / "runs" / "out", work / f"orders-{one.seed}"
        self.outcome = Outcome()
        self.server: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.logs: list[Path] = []
        self.tracking = f"sqlite:///{self.out / 'mlflow.db'}"

    @property
    def database(self) -> Path:
        """The database of MLflow."""
        return self.work / f"server-{self.one.seed}.db" if self.port else self.out / "mlflow.db"

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """Start the command."""
        tracking = [f"mlflow=http://127.0.0.1:{self.port}"] if self.port else []
        command = [str(Path(sys.executable).with_name("harness")), "run", *OVERRIDES, f"out={self.out}", *tracking]
        self.logs.append(self.work / "logs" / f"{self.one.seed}-{len(self.logs) + 1}.log")
        with self.logs[-1].open("wb") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.work,
                env={
                    **os.environ,
                    "PYTHONPATH": str(self.work / "site"),
                    "CHAOS": str(self.orders),
                    "OMP_NUM_THREADS": "1",
                    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
                    **environment,
                },
            )

    def finish(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for the end of the command, note its exit code, and count what it leaves."""
        try:
            code = process.wait(_RUN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
            self.outcome.problems.append(f"run {len(self.outcome.codes) + 1} did not end in {_RUN_S:.0f} s")
        self.outcome.codes.append(code)
        self.count_orphans()
        return code

    def count_orphans(self) -> None:
        """Note processes that are left after ten seconds, and end them."""
        until_s = time.monotonic() + _ORPHANS_S
        while (left := self.processes()) and time.monotonic() < until_s:
            time.sleep(0.2)
        if left:
            names = ", ".join(sorted({title[:80] for title in left.values()}))
            self.outcome.problems.append(f"left after {_ORPHANS_S:.0f} s: {names}")
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def processes(self) -> dict[int, str]:
        """Processes of the command in this namespace, with their names."""
        ours = {1, os.getpid()}
        # The group of processes that were started outside of this namespace is 0 here.
        served = os.getpgid(self.server.pid) if self.server and self.server.poll() is None else None
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) in ours:
                continue
            with contextlib.suppress(OSError):
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                if title and os.getpgid(int(entry.name)) != served:  # a zombie has no command line
                    found[int(entry.name)] = title
        return found

    def serve(self) -> None:
        """Start an MLflow server, and wait until it answers."""
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        uri, files = f"sqlite:///{self.database}", self.work / f"artifacts-{self.one.seed}"
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--artifacts-destination"]
        command += [str(files), "--serve-artifacts", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.work / "logs" / f"{self.one.seed}-server.log").open("ab") as log:
            self.server = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **quiet}, start_new_session=True
            )
        until_s = time.monotonic() + 120
        while time.monotonic() < until_s:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.2)
        raise TimeoutError("the MLflow server does not answer")

    def stop_server(self) -> None:
        """Kill the MLflow server with its workers."""
        assert self.server is not None
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()

    def inside(self, process: subprocess.Popen[bytes]) -> dict[str, str | int] | None:
        """Wait until a worker is inside of the call that is struck; ``None`` if the command ended before."""
        until_s = time.monotonic() + _RUN_S
        path = self.orders / "inside.json"
        while process.poll() is None and time.monotonic() < until_s and not path.exists():
            time.sleep(0.02)
        return json.loads(path.read_text()) if path.exists() else None

    def release(self) -> None:
        """Let the worker that waits for the harm go on."""
        (self.orders / "struck").touch()


def within(one: Round, work: Path) -> Outcome:
    """Perform a round; called in its namespace."""
    _mount("tmpfs", work / "runs", "-t", "tmpfs", "-o", "size=300m")
    Path("/tmp/ray").mkdir(exist_ok=True)
    for folder in ("/tmp/ray", "/dev/shm"):  # of this round only
        _mount("tmpfs", Path(folder), "-t", "tmpfs")
    sweep = Sweep(one, work)
    shutil.rmtree(sweep.orders, ignore_errors=True)
    sweep.orders.mkdir()
    if one.harm:
        orders = {"harm": one.own, "stage": one.stage, "call": one.call}
        (sweep.orders / "orders.json").write_text(json.dumps(orders))
    if one.harm.startswith("MLflow"):
        sweep.serve()
    first = sweep.start()
    environment: dict[str, str] = {}
    if one.harm:
        where = sweep.inside(first)
        if where is None:
            sweep.outcome.problems.append("the harm did not strike")
        else:
            sweep.outcome.struck = f"{where['stage']} call {where['call']}, {where['title']} ({where['pid']})"
            if not one.own and not {first.pid, int(where["pid"])} <= sweep.processes().keys():
                sweep.outcome.problems.append("driver and worker are not among the counted processes")
            strike(sweep, first, int(where["pid"]))
            sweep.release()
    code = sweep.finish(first)
    if one.harm == "MLflow server killed, back later":
        sweep.serve()
    if one.harm == "clock set back":
        if not (work / "clock.so").exists():
            sweep.outcome.problems.append("the clock cannot be set back without a C compiler")
        environment = {"LD_PRELOAD": str(work / "clock.so"), "CHAOS_CLOCK_S": str(_CLOCK_S)}
    while code != 0 and len(sweep.outcome.codes) < _MOST_RUNS:
        code = sweep.finish(sweep.start(**environment))
    sweep.outcome.problems += [*checked_codes(sweep), *checked_store(sweep), *checked_tracking(sweep)]
    sweep.outcome.problems += checked_list(sweep)
    if sweep.server is not None:
        sweep.stop_server()
    sweep.outcome.tables = tables_of(sweep.out)
    return sweep.outcome


def strike(sweep: Sweep, driver: subprocess.Popen[bytes], worker: int) -> None:
    """Do the harm, while a worker is inside of a cell; returns when it may go on.

    If the harm ends the driver, the worker is still held while orphans are counted: it ends
    only if it is ended.
    """
    harms: dict[str, Callable[[], None]] = {
        "worker killed": lambda: os.kill(worker, signal.SIGKILL),
        "raylet killed": lambda: _kill_raylet(sweep),
        "driver killed": driver.kill,
        "node killed": lambda: os.kill(-1, signal.SIGKILL),
        "driver terminated": driver.terminate,
        "clock set back": driver.terminate,
        "MLflow server killed": sweep.stop_server,
        "store read-only": lambda: _read_only(sweep),
        "store full": lambda: _full(sweep),
        "database locked": lambda: _lock(sweep),
        "two drivers": lambda: _second(sweep, driver),
        "raise": _nothing,
        "hang": _nothing,
        "memory": _nothing,
        "nan": _nothing,
        "segfault": _nothing,
    }
    first, _, then = sweep.one.harm.partition(", ")
    harms[first]()
    if then == "back soon":
        threading.Timer(5.0, sweep.serve).start()
    if then.startswith("then"):
        _wait_until_listed(sweep.logs[-1], _LISTED[first])
        time.sleep(2.0)  # in the middle of the recovery
        harms[then.removeprefix("then ")]()
    if first in _END_DRIVER or then.startswith("then"):
        driver.wait(_RUN_S)
        sweep.count_orphans()


def _nothing() -> None:
    """The worker harms itself."""


def _kill_raylet(sweep: Sweep) -> None:
    (raylet,) = (pid for pid, title in sweep.processes().items() if "raylet/raylet" in title.split(" ")[0])
    os.kill(raylet, signal.SIGKILL)


def _read_only(sweep: Sweep) -> None:
    """Make the store read-only for a while, for files that are opened from now on.

    A file system with files that are open for writing cannot be mounted read-only, so a
    second mount that is read-only is put on top.
    """
    folder, aside = sweep.work / "runs", sweep.work / f"read-only-{sweep.one.seed}"
    aside.mkdir()
    _mount(str(folder), aside, "--bind")
    _mount("", aside, "-o", "remount,ro,bind")  # before anyone can open a file of this mount
    _mount(str(aside), folder, "--move")
    _once_noticed(sweep, lambda: subprocess.run(["umount", "-l", str(folder)], check=True))


def _full(sweep: Sweep) -> None:
    """Fill the disk of the store for a while."""
    path = sweep.work / "runs" / "fill"
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            if not file.write(bytes(2**16)):
                break
    _once_noticed(sweep, path.unlink)


def _lock(sweep: Sweep) -> None:
    """Lock the database for longer than MLflow waits; returns once it is locked."""
    try:
        held = sqlite3.connect(f"{sweep.database.as_uri()}?mode=rw", uri=True, timeout=_LOCK_S, check_same_thread=False)
        held.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        sweep.outcome.problems.append(f"{sweep.database.name} was not locked: {error}")
    else:
        _once_noticed(sweep, held.close, least_s=4 * _PASSING_S)


def _once_noticed(sweep: Sweep, undo: Callable[[], object], *, least_s: float = _PASSING_S) -> None:
    """End a harm after some seconds, but not before the run has met it: on a busy machine, cells take longer."""
    log = sweep.logs[-1]

    def wait() -> None:
        time.sleep(least_s)
        _wait_until_listed(log, "cannot write to")
        undo()

    threading.Thread(target=wait, daemon=True).start()


def _wait_until_listed(log: Path, pattern: str) -> None:
    """Wait until a run has listed a failure; if it never does, the round is found to lack it."""
    until_s = time.monotonic() + _RUN_S
    while not re.search(pattern, log.read_text(errors="replace")) and time.monotonic() < until_s:
        time.sleep(0.1)


def _second(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
    """Start the same command beside the first, which goes on."""
    second = sweep.start()
    said = sweep.logs[-1]
    until_s = time.monotonic() + _RUN_S
    while "waiting for another run" not in said.read_text() and time.monotonic() < until_s and second.poll() is None:
        time.sleep(0.1)
    if f"process {driver.pid} on" not in said.read_text():
        sweep.outcome.problems.append("the second driver did not say who holds the store")
    sweep.release()
    sweep.outcome.codes.append(driver.wait(_RUN_S))
    sweep.outcome.codes.append(second.wait(_RUN_S))


def _mount(source: str, target: Path, *options: str) -> None:
    subprocess.run(["mount", *options, *([source] if source else []), str(target)], check=True)


# Checks


def checked_codes(sweep: Sweep) -> Iterator[str]:
    """The last run must succeed; none may end in a traceback."""
    if sweep.outcome.codes[-1] != 0:
        yield f"exit codes {sweep.outcome.codes}"
    for log in sweep.logs:
        if "Traceback (most recent call last)" in log.read_text(errors="replace"):
            yield f"traceback in {log.name}"


def checked_list(sweep: Sweep) -> Iterator[str]:
    """Attempts that failed must be listed with their reason."""
    expected = HARMS.get(sweep.one.harm, "")
    shown = "".join(log.read_text(errors="replace") for log in sweep.logs)
    if expected and not re.search(expected, shown):
        yield f"the output does not list {expected!r}"


def checked_store(sweep: Sweep) -> Iterator[str]:
    """All cells must be complete, and nothing else may be left."""
    store, count = sweep.out / "store", 0
    for stage in ("train", "predict", "explain", "probe", "score"):
        for folder in (one for one in (store / stage).rglob("*") if one.is_dir()):
            if folder.name.startswith("."):
                yield f"remains of a commit: {folder.name}"
            elif not (folder / "record.json").is_file():
                if not any(one.is_dir() for one in folder.iterdir()):
                    yield f"half-written cell: {folder.relative_to(store)}"
            else:
                count += 1
                record = json.loads((folder / "record.json").read_text())
                for name, digest in record["artifacts"].items():
                    if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                        yield f"damaged: {folder.relative_to(store)}/{name}"
    if count != CELLS:
        yield f"{count} cells instead of {CELLS}"
    for pattern in ("store/failed/*", "ray/tune-*", "store/**/.part-*", "leaderboards/**/.part-*"):
        for path in sweep.out.glob(pattern):
            yield f"left: {path.relative_to(sweep.out)}"


def checked_tracking(sweep: Sweep) -> Iterator[str]:
    """MLflow must have one finished run per identity."""
    with contextlib.closing(sqlite3.connect(sweep.database)) as database:
        found = database.execute(
            "select tags.value, runs.status from tags join runs using (run_uuid) "
            "where tags.key = 'harness.identity' and runs.lifecycle_stage = 'active'"
        ).fetchall()
        (earliest,) = database.execute("select min(end_time) from runs").fetchone()
    identities = [identity for identity, _ in found]
    if len(set(identities)) != len(identities):
        yield f"{len(identities)} MLflow runs for {len(set(identities))} identities"
    if len(set(identities)) != TRACKED:
        yield f"{len(set(identities))} identities in MLflow instead of {TRACKED}"
    states = {state for _, state in found}
    if states != {"FINISHED"}:
        yield f"MLflow runs are {', '.join(sorted(states))}"
    if sweep.one.harm == "clock set back" and earliest / 1000 > time.time() + _CLOCK_S / 2:
        yield "the clock was not set back"


def tables_of(out: Path) -> dict[str, list[dict[str, str]]]:
    """Rows of all tables, without columns that may differ when a command is repeated."""
    from harness.pipeline.leaderboard import VOLATILE

    found = {}
    for path in sorted((out / "leaderboards").rglob("*.csv")):
        with path.open() as file:
            rows = [{key: row[key] for key in row if key not in (*VOLATILE, "command")} for row in csv.DictReader(file)]
        found[path.name] = rows
    return found


# The program


def _as_init(one: Round, work: Path) -> int:
    """Be the first process of the namespace, which takes over orphans: perform the round in a child."""
    child = os.fork()
    if child == 0:
        outcome = within(one, work)
        (work / "logs" / f"{one.seed}.json").write_text(json.dumps(asdict(outcome)))
        os._exit(0)
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Perform rounds and print their table; 0 if all passed, 77 if they cannot be performed here."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="number of rounds")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first round; each next one is one higher")
    parser.add_argument("--work", type=Path, help="folder for logs, which is kept; by default a temporary one")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        return _as_init(Round(**json.loads(given.inside)), given.work)
    if why := missing_rights():
        _say(f"skipped: {why}")
        return _SKIPPED
    work = given.work or Path(tempfile.mkdtemp(prefix="harness-chaos-"))
    work.mkdir(parents=True, exist_ok=True)
    work = work.resolve()
    prepare(work)
    _say(f"logs: {work / 'logs'}")
    expected = perform(Round(-1, "", "", 0), work)
    expected.problems += alike(expected)
    if expected.problems or expected.codes != [0]:
        _say(f"the undisturbed sweep failed: {expected.codes} {'; '.join(expected.problems)}")
        return 1
    _say("| seed | harm | struck | exit codes | s | verdict |\n|---|---|---|---|---|---|")
    failed = 0
    for seed in range(given.seed, given.seed + given.rounds):
        one = Round.drawn(seed)
        outcome = perform(one, work)
        outcome.problems += compared(outcome, expected)
        failed += bool(outcome.problems)
        _say(line(one, outcome))
    _say(f"{given.rounds - failed} of {given.rounds} rounds passed")
    if not failed and given.work is None:
        shutil.rmtree(work)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
