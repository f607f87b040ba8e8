"""``harness run … ray=http://HOST:PORT``: the command runs on the cluster, and its output is shown here."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import PurePosixPath

from harness.cli.console import console
from harness.cli.streams import exit_code_of_stop
from harness.core.errors import HarnessError, RequestError
from harness.core.passwords import command_of, passwords_in, without_password
from harness.sweep.catalogue import load_task
from harness.sweep.grammar import Overrides
from harness.tuning.remote import follow

__all__ = ["run_there"]


def run_there(overrides: Overrides, texts: Sequence[str]) -> int:
    """Run a request on a cluster through Ray Jobs, and follow it.

    Parameters
    ----------
    overrides, texts : the request, parsed and as typed

    Returns
    -------
    int
        Exit code of the command on the cluster, or 130 after Ctrl-C, which leaves it running.

    Raises
    ------
    RequestError
        If the task is unknown, ``out`` or ``data`` is not an absolute path, or a URI has a
        password, which Ray would keep in the table of its jobs and in its logs.
    """
    address = str(overrides.values["ray"])
    _check(overrides, texts)
    out, command, shown = console(), command_of(texts), without_password(address)

    def say(text: str) -> None:
        out.print(f"· {text}", soft_wrap=True, markup=False, highlight=False)

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    jobs: list[str] = []
    try:
        done = follow(address, texts, say=say, write=write, attached=jobs.append)
    except KeyboardInterrupt:
        print()
        if jobs:
            say(f"detached; the run goes on at {shown}. Follow it again with the same command: {command}")
            say(f"stop it: ray job stop --address {shown} {jobs[0]}")
        else:
            say(f"stopped before {shown} confirmed a job. If there is one, the same command follows it: {command}")
        return exit_code_of_stop()
    except RequestError:
        raise
    except HarnessError as error:
        raise HarnessError(f"{error}. The run may go on; follow it again with the same command: {command}") from None
    if done.status != "SUCCEEDED":
        say(f"job {done.name} ended as {done.status}: {done.message}. Finished cells are kept; resume with: {command}")
    return done.code


def _check(overrides: Overrides, texts: Sequence[str]) -> None:
    """Refuse what is certain to fail on the cluster, or would mean something else there; all faults at once."""
    faults = []
    for key in ("out", "data"):
        value = str(overrides.values.get(key, ""))
        if key == "out" and value.startswith("s3://"):
            continue
        # A path of the cluster; relative, it would depend on where Ray starts the command.
        if (value or key == "out") and not PurePosixPath(value).is_absolute():
            faults.append(f"{key} must be an absolute path on the nodes of the cluster, got {value or 'none'}")
    if faults:
        raise RequestError(f"with ray=http://…, {'; '.join(faults)}. Set it to a folder that all nodes see")
    keys = [key for key, _, value in (text.partition("=") for text in texts) if key != "ray" and passwords_in(value)]
    if keys:
        raise RequestError(
            f"with ray=http://…, {' and '.join(keys)} must have no password, because Ray shows the command of a job to "
            "everyone who can reach the cluster, and writes it to its logs. Leave it out, and give it to the head of "
            "the cluster: in ~/.pgpass or PGPASSWORD for PostgreSQL, in MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) for an MLflow server"
        )
    if isinstance(task := overrides.values.get("task"), str):
        load_task(task)
