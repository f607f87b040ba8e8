"""``harness run … ray=http://HOST:PORT``: the command runs on the cluster, and its output is shown here."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import PurePosixPath

from harness.cli.console import console
from harness.cli.streams import exit_code_of_stop
from harness.core.errors import HarnessError, RequestError
from harness.sweep.catalogue import load_task
from harness.sweep.grammar import Overrides
from harness.tuning.remote import follow, job_name

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
        If the task is unknown, or ``out`` or ``data`` is not an absolute path.
    """
    address = str(overrides.values["ray"])
    _check(overrides)
    out, command = console(), f"harness run {shlex.join(texts)}"

    def say(text: str) -> None:
        out.print(f"· {text}", soft_wrap=True, markup=False, highlight=False)

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        done = follow(address, texts, say=say, write=write)
    except KeyboardInterrupt:
        print()
        say(f"detached; the run goes on at {address}. Follow it again with the same command: {command}")
        say(f"stop it: ray job stop --address {address} ID, with the ID that begins with {job_name(texts)}")
        return exit_code_of_stop()
    except RequestError:
        raise
    except HarnessError as error:
        raise HarnessError(f"{error}. The run may go on; follow it again with the same command: {command}") from None
    if done.status != "SUCCEEDED":
        say(f"job {done.name} ended as {done.status}: {done.message}. Finished cells are kept; resume with: {command}")
    return done.code


def _check(overrides: Overrides) -> None:
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
    if isinstance(task := overrides.values.get("task"), str):
        load_task(task)
