"""Objects of a bucket: conditional writes, faults in one sentence each, and a lock that is renewed.

Two servers are used, both on loopback: moto, a mock of S3 that honours conditional writes
and accepts any key, and a fake that gives the answers of this file.
"""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import json
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from harness.core.errors import RequestError, StoreError
from harness.core.settings import RunSettings
from harness.storage import bucket as module
from harness.storage import lease
from harness.storage.bucket import Bucket
from harness.storage.lease import leased
from harness.storage.lock import LOCK
from harness.storage.publication import publish
from harness.storage.store import open_store


@pytest.fixture
def bucket(s3_url: str) -> Bucket:
    """An empty prefix on the mock, without waits."""
    return Bucket(s3_url, waits_s=())


def test_of_concurrent_writers_one_creates(bucket: Bucket) -> None:
    """Conditional writes are honoured by the mock: sixteen writers, one success, and its content stays."""
    won: dict[str, list[int]] = {f"object-{number}": [] for number in range(4)}
    start = threading.Barrier(16)

    def write(number: int) -> None:
        own = pickle.loads(pickle.dumps(bucket))
        for name, winners in won.items():
            start.wait()
            if own.create(name, b"%d," % number * 50_000):
                winners.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, winners in won.items():
        (winner,) = winners
        assert bucket.read(name) == b"%d," % winner * 50_000


def test_swap_needs_the_present_tag(bucket: Bucket) -> None:
    """An object is replaced only by those who know its present content."""
    assert bucket.create("lock", b"1") and not bucket.create("lock", b"2")
    content, tag = bucket.read_tagged("lock")
    newer = bucket.swap("lock", b"2", tag)
    assert content == b"1" and newer not in (None, tag)
    assert bucket.swap("lock", b"3", tag) is None and bucket.read("lock") == b"2"
    assert bucket.swap("absent", b"3", tag) is None


def test_objects_are_listed_and_deleted(bucket: Bucket, tmp_path: Path) -> None:
    """Names are relative to the prefix; absent objects may be deleted."""
    for name in ("a/b.json", "a/c/d.json", "ab/e.json"):
        bucket.replace(name, name.encode())
    assert bucket.files("a") == {"a/b.json": 8, "a/c/d.json": 10}
    assert bucket.below("a").files() == {"b.json": 8, "c/d.json": 10}
    bucket.download("a/b.json", tmp_path / "x" / "y.json")
    assert (tmp_path / "x" / "y.json").read_text() == "a/b.json"
    bucket.delete("a/b.json", "absent")
    assert list(bucket.files()) == ["a/c/d.json", "ab/e.json"]
    for read in (bucket.read, bucket.read_tagged, bucket.written):
        with pytest.raises(FileNotFoundError):
            read("a/b.json")
    with pytest.raises(FileNotFoundError):
        bucket.download("a/b.json", tmp_path / "x" / "z.json")
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["y.json"]


def test_large_files_are_sent_in_parts(bucket: Bucket, tmp_path: Path) -> None:
    """Their content arrives."""
    (tmp_path / "large").write_bytes(bytes(range(256)) * 50_000)
    bucket.replace("large", tmp_path / "large")
    bucket.download("large", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "large").read_bytes()


def test_published_folder_is_the_same_there(bucket: Bucket, tmp_path: Path) -> None:
    """Stale objects of a whole folder are deleted, those of others are kept."""
    for name in ("reports/run/01-a.png", "reports/run/stale.png", "reports/other/index.html"):
        bucket.replace(name, b"old")
    for name in ("reports/run/01-a.png", "reports/run/index.html", "leaderboards/run.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("new")
    assert publish(bucket, tmp_path, [tmp_path / "leaderboards" / "run.csv"], [tmp_path / "reports" / "run"]) == 3
    assert list(bucket.files()) == [
        *("leaderboards/run.csv", "reports/other/index.html", "reports/run/01-a.png", "reports/run/index.html")
    ]
    assert bucket.read("reports/run/01-a.png") == b"new"


def test_keys_are_not_sent_to_workers(bucket: Bucket) -> None:
    """What is pickled is the address, also after the client was used."""
    bucket.replace("a", b"1")
    sent = pickle.dumps(bucket)
    assert b"s3cr3t" not in sent and b"key-of-tests" not in sent and "s3cr3t" not in repr(bucket)
    assert pickle.loads(sent).read("a") == b"1"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("s3://", "must be s3://BUCKET/PREFIX"),
        ("s3://Lab/x", "lower-case letters"),
        ("s3://lab//x", "begin with no dot"),
        ("s3://lab/../x", "begin with no dot"),
        ("s3://lab/a b", "got 's3://lab/a b'"),
        ("s3://lab/x?endpoint=http://h", "got"),
        ("s3://key:hidden@lab/x", r"without keys, got s3://key:\*\*\*@lab/x; set AWS_ACCESS_KEY_ID"),
    ],
)
def test_addresses_are_checked(out: str, message: str) -> None:
    """Before anything is written, and without a repetition of the secret."""
    with pytest.raises(RequestError, match=message) as caught:
        RunSettings(out=out)
    assert "hidden" not in str(caught.value)


def test_local_folder_of_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is below the usual folder, never one named ``s3:``."""
    monkeypatch.chdir(tmp_path)
    settings = RunSettings(out="s3://lab/epvs/")
    assert (settings.out, settings.bucket) == ("s3://lab/epvs", "s3://lab/epvs")
    assert settings.folder == tmp_path / "harness-runs" / "s3" / "lab" / "epvs"
    assert RunSettings(out="s3").bucket == "" and RunSettings(out="s3").folder == tmp_path / "s3"


def test_without_the_extra_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it, and without a folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RequestError, match=r"out=s3://lab/x needs the extra s3, .* pip install .*'\.\[s3\]'"):
        open_store(RunSettings(out="s3://lab/x"))
    assert list(tmp_path.iterdir()) == []


# ---- faults ----

Answer = Callable[[str, str, dict[str, str]], tuple[int, bytes]]


@contextlib.contextmanager
def fake_server(answer: Answer, port: int = 0) -> Iterator[str]:
    """A server that gives the answers of a function of method, path and headers: a status and a body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = answer(self.command, self.path, dict(self.headers))
            self.send_response(status)
            self.send_header("ETag", '"tag"')
            self.send_header("Last-Modified", "Fri, 27 Nov 2026 01:00:00 GMT")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _answer

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def refusing(status: int, code: str) -> Answer:
    """Refuse everything with an error of S3, with what its answers may repeat of the request."""
    secret = "<AWSAccessKeyId>key-of-tests</AWSAccessKeyId><StringToSign>sign</StringToSign>"
    return lambda method, path, headers: (status, f"<Error><Code>{code}</Code>{secret}</Error>".encode())


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "NoSuchBucket", r"there is no bucket lab at http://127.*; create it, or correct out=s3://lab/x"),
        (403, "AccessDenied", r"access to s3://lab/x is denied \(AccessDenied\); these keys need the rights to list"),
        (403, "InvalidAccessKeyId", r"does not accept the keys .*\(InvalidAccessKeyId\); set AWS_ACCESS_KEY_ID and"),
        (403, "SignatureDoesNotMatch", r"does not accept the keys .*; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS"),
        (400, "ExpiredToken", r"does not accept the keys for s3://lab/x \(ExpiredToken\)"),
        (400, "AuthorizationHeaderMalformed", r"bucket lab is in another region than AWS_REGION=us-east-1.*set AWS_R"),
        (501, "NotImplemented", r"answers a request for s3://lab/x as no S3 .*\(NotImplemented\); correct AWS_E"),
    ],
)
def test_refusals_are_one_sentence(
    status: int, code: str, message: str, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the remedy, at once, and without parts of the request."""
    said: list[str] = []
    with fake_server(refusing(status, code)) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        for call in (lambda one: one.check(), lambda one: one.read("a"), lambda one: one.replace("a", b"1")):
            with pytest.raises((RequestError, StoreError), match=message) as caught:
                call(Bucket("s3://lab/x", said.append))
            assert "key-of-tests" not in str(caught.value) and "\n" not in str(caught.value)
    assert said == []


@pytest.mark.parametrize("endpoint", ["nonsense", "127.0.0.1:9000", "http://"])
def test_endpoint_is_checked(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library would end in a panic."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(RequestError, match=f"must be http://HOST:PORT or https://HOST, got '{endpoint}'"):
        Bucket("s3://lab/x")


def test_missing_keys_are_told(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A role is asked for at the address of the container, which refuses here."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with fake_server(refusing(403, "Forbidden")) as address:
        monkeypatch.setattr(module, "_ROLES", (address,))
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", address)
        with pytest.raises(RequestError, match=r"there are no keys for s3://lab/x: .*set AWS_ACCESS_KEY_ID .*~/\.aws"):
            Bucket("s3://lab/x", waits_s=()).check()


def test_server_without_conditions_is_refused(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it overwrites objects in spite of conditions, nothing is computed, and nothing of the check is left."""
    kept: dict[str, bytes] = {}
    bodies: list[str] = []

    def answer(method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        if method == "GET":
            return 200, kept.get(path, b"")
        if method == "PUT":
            bodies.append(path)
            return 200, b""
        return 200, b"<DeleteResult><Deleted><Key>x</Key></Deleted></DeleteResult>"

    with fake_server(answer) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setattr(module.secrets, "token_bytes", lambda count: b"")
        with pytest.raises(RequestError, match=r"must be on a server that honours conditional writes .*another server"):
            Bucket("s3://lab/x", waits_s=()).check()
    assert len(bodies) == 2


def test_writer_that_fails_beside_another_leaves_the_object_to_it(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 answers 409 while another writer is not ready; if that one fails, the object is created by the second try."""
    asked: list[str] = []

    def answer(method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
        asked.append(method)
        if method == "HEAD":
            return 404, b""
        is_first = asked.count("PUT") == 1
        return (409, b"<Error><Code>ConditionalRequestConflict</Code></Error>") if is_first else (200, b"")

    with fake_server(answer) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        assert Bucket("s3://lab/x", waits_s=()).create("a", b"1")
    assert asked == ["PUT", "HEAD", "PUT"]


def test_lost_connection_is_waited_for_and_said_once(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is away for three tries and then back: nothing is lost."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(module, "_AT_ONCE", module.timedelta(0))
    said: list[str] = []
    with contextlib.ExitStack() as servers:
        waited: list[float] = []

        def wait(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 3:
                servers.enter_context(fake_server(lambda *request: (200, b"content"), port))

        monkeypatch.setattr("harness.storage.patience.time.sleep", wait)
        place = Bucket("s3://lab/x", said.append)
        assert place.read("a") == b"content" and waited == [1.0, 2.0, 4.0]
    assert said == [
        f"cannot use s3://lab/x (http://127.0.0.1:{port} does not answer); the run waits and tries again for 60 s"
    ]
    monkeypatch.setattr("harness.storage.patience.time.sleep", lambda seconds: None)
    with pytest.raises(
        StoreError, match=r"cannot use s3://lab/x .* after 60 s\. Finished cells are kept; check the connection and"
    ):
        place.replace("a", b"1")


# ---- the lock ----

HOLDER = """
import sys, time
from harness.storage.bucket import Bucket
from harness.storage.lease import leased
with leased(Bucket(sys.argv[1]), "harness run task=first", say=print):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is renewed, tried and given up faster."""
    for name, seconds in (("EXPIRES_S", 1.0), ("_RENEWED_S", 0.05), ("_PAUSE_S", 0.05)):
        monkeypatch.setattr(lease, name, seconds)


def test_second_run_waits_until_the_first_was_killed(bucket: Bucket, quick: None) -> None:
    """It names the first one; the lock of a killed process of this machine ends at once."""
    command = [sys.executable, "-c", HOLDER, bucket.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        said: list[str] = []
        waits, entered = threading.Event(), threading.Event()

        def say(text: str) -> None:
            said.append(text)
            waits.set()

        def second() -> None:
            with leased(bucket, "harness run task=second", say=say):
                entered.set()

        # With the usual time, so that it cannot have expired.
        lease.EXPIRES_S = 60.0
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(60) and not entered.is_set()
        first.send_signal(signal.SIGKILL)
        thread.join(60)
    assert entered.is_set()
    (sentence,) = said
    assert f"waiting for another run in {bucket}: harness run task=first (process {first.pid} on" in sentence
    assert b"s3cr3t" not in bucket.read(LOCK)


def test_lock_is_renewed_and_released(bucket: Bucket, quick: None) -> None:
    """While it is held, it changes; afterwards, it is free at once."""
    with leased(bucket, "harness run", say=print) as held:
        first = bucket.read(LOCK)
        deadline = time.monotonic() + 30
        while bucket.read(LOCK) == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert json.loads(bucket.read(LOCK))["count"] > json.loads(first)["count"] == 0
        held.check()
    assert bucket.read(LOCK) == b""
    with leased(bucket, "harness run", say=pytest.fail):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b'{"token": 1}'])
def test_unreadable_lock_is_free(bucket: Bucket, content: bytes, quick: None) -> None:
    """Whatever stands in it, it names nobody."""
    bucket.replace(LOCK, content)
    with leased(bucket, "harness run", say=pytest.fail):
        assert json.loads(bucket.read(LOCK))["holder"]["command"] == "harness run"


def test_lock_of_another_machine_expires(bucket: Bucket, quick: None) -> None:
    """Its process cannot be seen from here: it is waited for until the lock has not changed for a while."""
    with leased(bucket, "harness run task=away", say=print):
        content = {**json.loads(bucket.read(LOCK)), "machine": "elsewhere"}
    bucket.replace(LOCK, json.dumps(content).encode())
    said: list[str] = []
    with leased(bucket, "harness run", say=said.append):
        pass
    (sentence,) = said
    assert "harness run task=away" in sentence and "its lock ends within 1 s" in sentence


@pytest.mark.skipif(sys.platform != "linux", reason="psutil for Linux")
@pytest.mark.parametrize("step_s", [-1, 1])
def test_a_step_of_the_clock_frees_no_lock(
    bucket: Bucket, quick: None, monkeypatch: pytest.MonkeyPatch, step_s: int
) -> None:
    """The owner on this machine runs, although its start in seconds since 1970 is another one now."""
    with leased(bucket, "harness run", say=print):
        owner = lease._Owner.read(bucket.read(LOCK))
        moved = psutil.boot_time() + step_s
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: moved)
        assert owner is not None and not owner.has_ended


def test_renewal_whose_answer_was_lost_is_its_own(bucket: Bucket, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock has another tag than the owner knows, but still its token; it is renewed on."""
    swap, unanswered = Bucket.swap, [True]

    def lossy(self: Bucket, name: str, content: bytes, tag: str) -> str | None:
        newer = swap(self, name, content, tag)
        if unanswered:
            unanswered.clear()
            raise StoreError("the connection was lost after the request")
        return newer

    with leased(bucket, "harness run", say=print) as held:
        monkeypatch.setattr(Bucket, "swap", lossy)
        deadline = time.monotonic() + 30
        while json.loads(bucket.read(LOCK))["count"] < 4 and time.monotonic() < deadline:
            held.check()
            time.sleep(0.02)
        assert not unanswered and json.loads(bucket.read(LOCK))["count"] >= 4
    assert bucket.read(LOCK) == b""


def test_owner_learns_that_it_lost_the_lock(bucket: Bucket, quick: None) -> None:
    """After a sleep of the machine, another run may have started; the first one ends, and leaves the lock alone."""
    with leased(bucket, "harness run task=other", say=print):
        other = bucket.read(LOCK)
    with leased(bucket, "harness run", say=print) as held:
        bucket.replace(LOCK, other)
        deadline = time.monotonic() + 30
        with pytest.raises(StoreError, match=r"another run has taken it over: harness run task=other .*repeat the com"):
            while time.monotonic() < deadline:
                held.check()
                time.sleep(0.02)
    assert bucket.read(LOCK) == other


def test_extra_is_found_where_it_is_installed() -> None:
    """What is looked up is the package that is imported."""
    assert module.has_extra() is (importlib.util.find_spec("obstore") is not None)
