"""The command line."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from harness.core.errors import CohortError, HarnessError, RequestError

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
        "Words are key=value: a comma sweeps (sequences=T2w,T2w+FLAIR seed=0,1), so does range(0,0.6,0.1)."
    ),
)

WordList = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", show_default=False)]


@app.command()
def run(words: WordList = None) -> None:
    """Train, explain, score and rank; the same command again resumes.

    Exit codes: 0 every cell is done, 1 some cells failed (they are listed), 2 the request or the data are wrong
    and nothing was started, 130 stopped by Ctrl-C (what was finished is kept).
    """
    from harness.cli import commands

    raise typer.Exit(commands.run(words or []))


@app.command()
def plan(words: WordList = None) -> None:
    """Show what a run would do and cost; trains nothing."""
    from harness.cli import commands

    raise typer.Exit(commands.plan(words or []))


@app.command("list")
def list_(kind: Annotated[str, typer.Argument(help="tasks, models, attributions, metrics, …")] = "") -> None:
    """List tasks, models, attributions, metrics and the other parts."""
    from harness.cli import commands

    raise typer.Exit(commands.list_parts(kind))


@app.command()
def describe(words: WordList = None) -> None:
    """Describe a task (task=epvs) with every key, value and bound, or a part (model=unet)."""
    from harness.cli import commands

    raise typer.Exit(commands.describe(words or []))


@app.command()
def leaderboard(words: WordList = None) -> None:
    """Rebuild the leaderboard from the store alone (task=epvs: its latest run; run=NAME: another; csv=FILE)."""
    from harness.cli import commands

    raise typer.Exit(commands.leaderboard(words or []))


@app.command()
def report(words: WordList = None) -> None:
    """Rebuild the HTML report from the store alone (task=epvs: its latest run; run=NAME: another)."""
    from harness.cli import commands

    raise typer.Exit(commands.report(words or []))


@app.command()
def predict(words: WordList = None) -> None:
    """Predict new subjects with a trained model (model=CELL data=DIR)."""
    from harness.cli import commands

    raise typer.Exit(commands.predict(words or []))


@app.command()
def data(
    action: Annotated[str, typer.Argument(help="make, verify or describe")],
    words: WordList = None,
) -> None:
    """Make a generated cohort, verify a folder, or describe it."""
    from harness.cli import commands

    raise typer.Exit(commands.data(action, words or []))


@app.command()
def ui(words: WordList = None) -> None:
    """Show the runs in MLflow's web interface, on this machine only."""
    from harness.cli import commands

    raise typer.Exit(commands.ui(words or []))


@app.command()
def doctor() -> None:
    """Say what this machine has: Python, torch, GPUs, Ray, MLflow, disk, optional parts."""
    from harness.cli import commands

    raise typer.Exit(commands.doctor())


def main() -> None:
    """Entry point: errors made on purpose are one message and exit code 2 (1 if cells failed)."""
    try:
        app()
    except (RequestError, CohortError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
