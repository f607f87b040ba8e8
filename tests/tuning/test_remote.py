"""A command that runs on a cluster through Ray Jobs."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import requests
from ray.job_submission import JobStatus

from harness.cli.commands import run
from harness.core.errors import HarnessError, RequestError
from harness.core.settings import RunSettings
from harness.tuning import remote
from harness.tuning.resources import check_request

ADDRESS = "http://127.0.0.1:8265"
TEXTS = ("task=epvs", "out=/shared/runs of today", "ray=" + ADDRESS)


class Jobs:
    """Ray Jobs in memory, with the calls of its client: a job ends once its whole output was read."""

    def __init__(self, output: str = "one\ntwo\nthree\n", *, code: int = 0, cut_after: int | None = None) -> None:
        self.output, self.code, self.cut_after = output, code, cut_after
        self.jobs: dict[str, JobStatus] = {}
        self.entrypoints: dict[str, str] = {}

    def list_jobs(self) -> list[Any]:
        # A driver that was not submitted as a job has no submission id.
        known = [SimpleNamespace(submission_id=name, status=status) for name, status in self.jobs.items()]
        return [SimpleNamespace(submission_id=None, status=JobStatus.RUNNING), *known]

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: object) -> str:
        if submission_id in self.jobs:
            raise ValueError(f"Job with submission_id {submission_id} already exists")
        self.jobs[submission_id] = JobStatus.RUNNING
        self.entrypoints[submission_id] = entrypoint
        return submission_id

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        """The output in pieces of three characters; the connection is lost once if asked for."""
        for start in range(0, len(self.output), 3):
            if self.cut_after is not None and start >= self.cut_after:
                self.cut_after = None
                raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
            yield self.output[start : start + 3]
        self.jobs[name] = JobStatus.FAILED if self.code else JobStatus.SUCCEEDED

    def get_job_status(self, name: str) -> JobStatus:
        return self.jobs[name]

    def get_job_info(self, name: str) -> Any:
        message = f"failed with exit code {self.code}, last available logs (truncated):\n{self.output}"
        return SimpleNamespace(status=self.jobs[name], driver_exit_code=self.code, message=message)


Follow = Callable[..., tuple[remote.Followed, str, list[str]]]


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch) -> Follow:
    """A function that follows a request on a cluster in memory."""

    def act(jobs: Jobs, texts: tuple[str, ...] = TEXTS) -> tuple[remote.Followed, str, list[str]]:
        monkeypatch.setattr(remote, "_client", lambda address: jobs)
        pieces: list[str] = []
        said: list[str] = []
        return remote.follow(ADDRESS, texts, say=said.append, write=pieces.append), "".join(pieces), said

    return act


def test_output_and_exit_code_come_back(follow: Follow) -> None:
    """The output of the job is written in full, and the exit code of the command is returned."""
    jobs = Jobs(code=2)
    done, output, _ = follow(jobs)
    assert output == jobs.output
    assert (done.code, done.status, done.message) == (2, "FAILED", "failed with exit code 2")


def test_a_running_job_is_followed_again(follow: Follow) -> None:
    """A command whose job is still running submits nothing and shows the output from its start."""
    jobs = Jobs()
    name = remote.job_name(TEXTS)
    jobs.jobs[name] = JobStatus.RUNNING
    done, output, said = follow(jobs)
    assert (done.name, output, jobs.entrypoints) == (name, jobs.output, {})
    assert "already running" in said[0]


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.STOPPED, JobStatus.SUCCEEDED])
def test_a_job_that_ended_is_resumed_under_the_next_name(follow: Follow, status: JobStatus) -> None:
    """The same command after its job ended is a new job, because Ray refuses a name that exists."""
    jobs = Jobs()
    jobs.jobs |= {remote.job_name(TEXTS): status, f"{remote.job_name(TEXTS)}-2": status}
    done, _, _ = follow(jobs)
    assert done.name == f"{remote.job_name(TEXTS)}-3"


def test_two_commands_at_the_same_time_share_one_job(follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that another command submits between look-up and submission is followed."""
    jobs = Jobs()
    listed = jobs.list_jobs

    def late() -> list[Any]:
        found = listed()
        jobs.jobs.setdefault(remote.job_name(TEXTS), JobStatus.RUNNING)
        return found

    monkeypatch.setattr(jobs, "list_jobs", late)
    done, output, _ = follow(jobs)
    assert (done.name, output, jobs.entrypoints) == (remote.job_name(TEXTS), jobs.output, {})


@pytest.mark.parametrize("cut_after", [0, 3, 9])
def test_a_lost_connection_repeats_no_output(follow: Follow, cut_after: int) -> None:
    """After a lost connection, the output goes on where it stopped."""
    jobs = Jobs(cut_after=cut_after)
    assert follow(jobs)[1] == jobs.output


def test_a_lost_connection_that_stays_lost_is_told(follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of Ray Jobs that stays becomes one sentence."""
    jobs = Jobs()

    async def lost(name: str) -> AsyncIterator[str]:
        raise RuntimeError("WebSocket connection closed unexpectedly")
        yield ""

    monkeypatch.setattr(jobs, "tail_job_logs", lost)
    monkeypatch.setattr(remote, "_PAUSE_S", 0.0)
    with pytest.raises(HarnessError, match=f"Ray Jobs at ray={ADDRESS} failed: WebSocket connection closed"):
        follow(jobs)


LOST = [
    requests.exceptions.ConnectionError("Connection refused"),
    requests.exceptions.Timeout(),
    aiohttp.ServerDisconnectedError(),
    aiohttp.ClientPayloadError(),
]


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", ["tail_job_logs", "get_job_status", "get_job_info"])
def test_every_kind_of_lost_connection_is_told(
    follow: Follow, monkeypatch: pytest.MonkeyPatch, call: str, error: Exception
) -> None:
    """Whatever call fails and however: one sentence, to which the command adds how to follow the job again."""
    jobs = Jobs()

    async def lost_output(name: str) -> AsyncIterator[str]:
        raise error
        yield ""

    def lost(name: str) -> None:
        raise error

    monkeypatch.setattr(jobs, call, lost_output if call == "tail_job_logs" else lost)
    monkeypatch.setattr(remote, "_client", lambda address: jobs)
    monkeypatch.setattr(remote, "_PAUSE_S", 0.0)
    with pytest.raises(HarnessError, match=r"was lost \(\w+\)\. The run may go on; follow it again with") as raised:
        run(list(TEXTS))
    assert not isinstance(raised.value, RequestError)


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_a_status_that_is_lost_once_repeats_no_output(
    follow: Follow, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The status is asked for again."""
    jobs = Jobs()
    asked, errors = jobs.get_job_status, [error]

    def lost_once(name: str) -> JobStatus:
        if errors:
            raise errors.pop()
        return asked(name)

    monkeypatch.setattr(jobs, "get_job_status", lost_once)
    monkeypatch.setattr(remote, "_PAUSE_S", 0.0)
    assert follow(jobs)[1] == jobs.output


@pytest.mark.parametrize("is_lost", [True, False])
def test_any_number_of_cuts_is_bridged_if_output_arrives_between(
    follow: Follow, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    """Each connection brings one more letter, and is lost, or closed as if the job had ended."""
    jobs, opened = Jobs(), itertools.count(1)

    async def a_letter_more(name: str) -> AsyncIterator[str]:
        count = next(opened)
        yield jobs.output[:count]
        if count >= len(jobs.output):
            jobs.jobs[name] = JobStatus.SUCCEEDED
        elif is_lost:
            raise aiohttp.ServerDisconnectedError

    monkeypatch.setattr(jobs, "tail_job_logs", a_letter_more)
    monkeypatch.setattr(remote, "_PAUSE_S", 0.0)
    assert follow(jobs)[1] == jobs.output


def test_output_after_a_cut_is_read_although_the_job_has_ended(follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that ends while the connection is lost has output that was not seen."""
    jobs = Jobs(cut_after=3)
    monkeypatch.setattr(jobs, "get_job_status", lambda name: JobStatus.SUCCEEDED)
    monkeypatch.setattr(remote, "_PAUSE_S", 0.0)
    assert follow(jobs)[1] == jobs.output


def test_output_that_cannot_be_written_is_no_lost_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """``harness run … | head`` ends, and is not connected again."""
    jobs, opened = Jobs(), list[str]()
    tail = jobs.tail_job_logs

    def counted(name: str) -> AsyncIterator[str]:
        opened.append(name)
        return tail(name)

    def closed(text: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(jobs, "tail_job_logs", counted)
    monkeypatch.setattr(remote, "_client", lambda address: jobs)
    with pytest.raises(HarnessError, match=r"cannot be written here \(BrokenPipeError"):
        remote.follow(ADDRESS, TEXTS, say=print, write=closed)
    assert len(opened) == 1


def test_name_depends_on_the_request_only() -> None:
    """Order of overrides and address do not matter; a value does."""
    name = remote.job_name(TEXTS)
    assert name == remote.job_name(("ray=http://other:1", *reversed(TEXTS[:2])))
    assert name != remote.job_name((*TEXTS, "seed=1"))


def test_command_on_the_cluster_has_the_same_overrides(tmp_path: Path) -> None:
    """A shell gives the program the overrides as typed, and the address of its own cluster."""
    program = tmp_path / "harness"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_ADDRESS": "10.0.0.1:6379", "HOME": str(tmp_path)}
    texts = (*TEXTS, "note=a 'b' $HOME `x`")
    done = subprocess.run(
        ["sh", "-c", remote.entrypoint(texts)], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == ["run", *TEXTS[:2], "note=a 'b' $HOME `x`", "ray=10.0.0.1:6379"]


@pytest.fixture
def refusing() -> Iterator[Callable[[int], str]]:
    """A function that starts a server which answers every request with one status, and returns its address."""
    servers: list[HTTPServer] = []

    def start(status: int) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(("status", "found"), [(401, "no token was sent"), (403, "the token is wrong")])
def test_missing_and_wrong_tokens_are_told_apart(refusing: Callable[[int], str], status: int, found: str) -> None:
    """Ray's client and a server that refuses: the message says what is wrong with the token, and what to do."""
    with pytest.raises(RequestError, match=f"requires its token, but {found}; set RAY_AUTH_MODE=token, and copy"):
        remote.follow(refusing(status), TEXTS, say=print, write=print)


def test_nobody_at_the_address_is_told() -> None:
    """Without a server, the message names what the head needs."""
    with pytest.raises(RequestError, match="Ray Jobs must answer at ray=http://127.0.0.1:9, but nothing does"):
        remote.follow("http://127.0.0.1:9", TEXTS, say=print, write=print)


def test_relative_folders_are_refused_at_once() -> None:
    """Paths of the cluster must be absolute; both are named."""
    with pytest.raises(RequestError, match="out must be an absolute path.*got none; data must be.*got bids"):
        run(["task=epvs", "data=bids", f"ray={ADDRESS}"])


def test_interrupt_detaches(
    follow: Follow, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C ends the command with code 130, leaves the job running, and says how to follow it again."""
    jobs = Jobs()

    async def interrupted(name: str) -> AsyncIterator[str]:
        yield "one\n"
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "tail_job_logs", interrupted)
    monkeypatch.setattr(remote, "_client", lambda address: jobs)
    assert run(list(TEXTS)) == 130
    assert jobs.jobs == {remote.job_name(TEXTS): JobStatus.RUNNING}
    output = capsys.readouterr().out
    assert f"ray job stop --address {ADDRESS} {remote.job_name(TEXTS)}\n" in output
    assert f"Follow it again with the same command: harness run {shlex.join(TEXTS)}" in output


def test_interrupt_before_there_is_a_job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C while the cluster is looked for promises no run."""
    jobs = Jobs()

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "list_jobs", interrupted)
    monkeypatch.setattr(remote, "_client", lambda address: jobs)
    assert run(list(TEXTS)) == 130
    output = capsys.readouterr().out
    assert f"stopped before {ADDRESS} confirmed a job" in output and "goes on" not in output


def test_interrupt_is_not_swallowed_by_the_connection(follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C detaches also while a client waits that ignores cancellations, as one does that closes a connection."""
    jobs = Jobs()

    async def stubborn(name: str) -> AsyncIterator[str]:
        yield "one\n"
        os.kill(os.getpid(), signal.SIGINT)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(20)
        jobs.jobs[name] = JobStatus.SUCCEEDED

    monkeypatch.setattr(jobs, "tail_job_logs", stubborn)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            follow(jobs)
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(jobs.jobs.values()) == [JobStatus.RUNNING]


def test_python_interface_refuses_the_address() -> None:
    """Only the command can run through Ray Jobs."""
    with pytest.raises(RequestError, match="only the command `harness run` can run through Ray Jobs"):
        check_request(RunSettings(ray=ADDRESS))


@pytest.mark.parametrize(
    "override",
    ["mlflow=postgresql://u:S3CRET@h/d", "mlflow='postgresql://u@h/d?password=S3CRET'", "optuna=postgresql://u:S3CRET@h/d",
     "mlflow=https://S3CRET@host"],
)  # fmt: skip
def test_passwords_are_not_sent(monkeypatch: pytest.MonkeyPatch, override: str) -> None:
    """Ray shows the command of a job to all who reach the cluster; the remedy is named, the password is not."""
    monkeypatch.setattr(remote, "_client", pytest.fail)
    with pytest.raises(RequestError, match="must have no password.*PGPASSWORD.*MLFLOW_TRACKING_PASSWORD") as raised:
        run([*TEXTS, override])
    assert "S3CRET" not in str(raised.value) and override.partition("=")[0] in str(raised.value)


def test_password_of_the_address_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither when the user detaches nor in errors."""

    def interrupted(*given: object, **more: object) -> remote.Followed:
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.cli.remote.follow", interrupted)
    run(["task=epvs", "out=/shared/runs", "ray=http://me:S3CRET@127.0.0.1:9"])
    monkeypatch.undo()
    with pytest.raises(RequestError) as raised:
        run(["task=epvs", "out=/shared/runs", "ray=http://me:S3CRET@127.0.0.1:9"])
    shown = capsys.readouterr()
    assert "me:***@127.0.0.1:9" in shown.out and "S3CRET" not in shown.out + shown.err + str(raised.value)
