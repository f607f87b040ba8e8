"""The command line."""

from __future__ import annotations

import errno
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.streams import degrade, exit_code_of_stop, handle_termination
from harness.core.errors import CohortError, HarnessError, RequestError
from harness.core.passwords import without_passwords_of

__all__ = ["app", "main"]

app = typer.Typer(
    name="harness",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Train every model of a published medical-imaging experiment, explain it, score predictions and "
        "explanations against a known truth, and rank them.\n\n"
        "Overrides are key=value; a comma or range() sweeps: sequences=T2w,T2w+FLAIR seed=0,1 noise=range(0,0.6,0.1)."
    ),
)

_FULL = {errno.ENOSPC, errno.EDQUOT}
# Errors of files and folders, whose remedy is outside of the program.
_FILE_ERRORS = _FULL | {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.ESTALE),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG, errno.EMFILE, errno.ENFILE),
}

OverrideList = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)]


@app.command()
def run(overrides: OverrideList = None) -> None:
    """Train, explain, score and rank; repeat the command to resume.

    Exit codes: 0 all cells are done, 1 some cells failed (they are listed), 2 the request or the data are wrong
    and nothing was started, 130 stopped by Ctrl-C and 143 by a termination signal (finished cells are kept).
    """
    from harness.cli import commands

    raise typer.Exit(commands.run(overrides or []))


@app.command()
def plan(overrides: OverrideList = None) -> None:
    """Show what a run would do and its estimated cost, without training."""
    from harness.cli import commands

    raise typer.Exit(commands.plan(overrides or []))


@app.command("list")
def list_(kind: Annotated[str, typer.Argument(help="tasks, models, attributions, metrics, …")] = "") -> None:
    """List tasks, models, attributions, metrics and other components."""
    from harness.cli import commands

    raise typer.Exit(commands.list_components(kind))


@app.command()
def describe(overrides: OverrideList = None) -> None:
    """Describe a task (task=epvs) with every key, value and bound, or a component (model=unet)."""
    from harness.cli import commands

    raise typer.Exit(commands.describe(overrides or []))


@app.command()
def leaderboard(overrides: OverrideList = None) -> None:
    """Rebuild a leaderboard from the store (task=epvs for the latest run, run=NAME for another; csv=FILE)."""
    from harness.cli import commands

    raise typer.Exit(commands.leaderboard(overrides or []))


@app.command()
def report(overrides: OverrideList = None) -> None:
    """Rebuild the HTML report from the store (task=epvs for the latest run, run=NAME for another)."""
    from harness.cli import commands

    raise typer.Exit(commands.report(overrides or []))


@app.command()
def predict(overrides: OverrideList = None) -> None:
    """Predict new subjects with a trained model (model=CELL data=DIR)."""
    from harness.cli import commands

    raise typer.Exit(commands.predict(overrides or []))


@app.command()
def data(
    action: Annotated[str, typer.Argument(help="make, verify or describe")],
    overrides: OverrideList = None,
) -> None:
    """Generate a cohort, verify a folder, or describe a cohort."""
    from harness.cli import commands

    raise typer.Exit(commands.data(action, overrides or []))


@app.command()
def ui(overrides: OverrideList = None) -> None:
    """Show the runs in MLflow's web interface, on this machine only."""
    from harness.cli import commands

    raise typer.Exit(commands.ui(overrides or []))


@app.command()
def doctor() -> None:
    """Check this machine: Python, torch, GPUs, Ray, MLflow, memory, disk and optional packages."""
    from harness.cli import commands

    raise typer.Exit(commands.doctor())


def main() -> None:
    """Entry point. Expected errors are shown as one message: exit code 2 for a wrong request or data, otherwise 1."""
    degrade()
    handle_termination()
    try:
        Path.cwd()
    except OSError:  # libraries end the process when they load
        print("error: the current folder no longer exists; change to another one (cd) and repeat", file=sys.stderr)
        sys.exit(2)
    try:
        app()
    except SystemExit as stop:
        # Typer ends with 130 for any interruption.
        sys.exit(exit_code_of_stop() if stop.code == 128 + signal.SIGINT else stop.code)
    except (RequestError, CohortError) as error:
        print(f"error: {_shown(error)}", file=sys.stderr)
        sys.exit(2)
    except HarnessError as error:
        print(f"error: {_shown(error)}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        if error.errno not in _FILE_ERRORS:
            raise
        print(f"error: {_file_error(error)}", file=sys.stderr)
        sys.exit(1)


def _shown(error: HarnessError) -> str:
    """The message of an error, without passwords of the command line."""
    return without_passwords_of(str(error), sys.argv[1:])


def _file_error(error: OSError) -> str:
    """A message for a file or folder that became unusable during a command, with the next step."""
    where = f" {error.filename}" if error.filename else " a file"
    if error.errno in _FULL:
        return (
            f"cannot write{where}: the disk is full. Finished cells are kept; free space, or set TMPDIR if temporary "
            "files filled the disk, then repeat the command"
        )
    return (
        f"cannot use{where}: {error.strerror}. Finished cells are kept; check that it exists and its permissions, "
        "then repeat the command"
    )
