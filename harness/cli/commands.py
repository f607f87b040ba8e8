"""The commands: each takes overrides and returns an exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le
from rich.text import Text

from harness.cli.console import Watcher, console, left_out, say, show_board, show_estimate, show_subjects, show_table
from harness.cli.keys import refuse_unused
from harness.cli.streams import exit_code_of_stop
from harness.core.errors import RequestError, UnknownName
from harness.core.passwords import command_of
from harness.core.paths import absolute, sqlite_uri
from harness.core.registry import KINDS
from harness.core.settings import RunSettings
from harness.core.values import checked
from harness.storage.files import check_writable
from harness.sweep.catalogue import load_task, task_names
from harness.sweep.grammar import Overrides, parse

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

    from harness.sweep.plan import Plan

__all__ = ["data", "describe", "doctor", "leaderboard", "list_components", "plan", "predict", "report", "run", "ui"]


def run(texts: Sequence[str]) -> int:
    """``harness run``: 0 if all cells are done, 1 if some failed."""
    from harness.cli.api import carry_out
    from harness.report.wording import failure_lines, shapley_rows
    from harness.stats.intervals import MINIMUM_SUBJECTS

    out, overrides = console(), parse(texts)
    if str(overrides.values.get("ray", "")).startswith(("http://", "https://")):
        from harness.cli.remote import run_there

        return run_there(overrides, texts)
    try:
        result = carry_out(overrides, tuple(texts), Watcher(out))
    except KeyboardInterrupt:
        out.print("stopped. Finished cells are kept; resume with the same command:", style="bold")
        out.print(f"  {command_of(texts)}", soft_wrap=True, markup=False)
        return exit_code_of_stop()
    if result.explanations.num_rows:
        _show_explanations(out, result.explanations, most=12)
    _show_leaderboard(out, result.leaderboard, result.targets, result.shown)
    if result.subjects < MINIMUM_SUBJECTS:
        show_subjects(out, result.leaderboard, result.rows)
    if result.shapley is not None:
        show_table(out, *shapley_rows(result.shapley), "Value of each channel (exact Shapley values)")
    out.print(result.verdict)
    for line in failure_lines(result.failures, result.leaderboard):
        say(out, Text(line, style="red"))
    if result.missing and result.failures:
        out.print(f"{result.missing} dependent cells were not run")
    elif result.missing:
        out.print(f"{result.missing} cells were not run; repeat the command to run them")
    places = {"leaderboard": result.csv, "report": result.report, "MLflow": result.mlflow, "bucket": result.bucket}
    _say_places(out, places)
    if result.trouble:
        say(out, Text(f"error: {result.trouble}", style="red"))
    return 0 if result.complete and not result.trouble else 1


def _show_leaderboard(out: Console, table: pa.Table, by_target: Mapping[str, pa.Table], shown: Sequence[str]) -> None:
    """Print the leaderboard or, if configurations predict different targets, that of each target."""
    for title, board in {f"Leaderboard of {target}": one for target, one in by_target.items()}.items():
        show_board(out, board, title, shown=shown)
    if not by_target:
        show_board(out, table, "Leaderboard", shown=shown)


def _show_explanations(out: Console, table: pa.Table, *, most: int = 40) -> None:
    """Show the board of explanations, or a message if none has a score."""
    from harness.pipeline.leaderboard import read_facts

    objective = read_facts(table).objective
    if all(value is None for value in table[objective].to_pylist()):
        message = (
            f"no explanation has a value of {objective}: none is done, or no truth is known, as for measured scores"
        )
        say(out, message)
    else:
        show_board(out, table, "Explanations", most=most)


def plan(texts: Sequence[str]) -> int:
    """``harness plan``."""
    from harness.cli.api import plan_of
    from harness.report.remarks import few_of_a_class

    out = console()
    made, cost = plan_of(parse(texts), Watcher(out))
    few = few_of_a_class(group.cohort for group in made.groups.values())
    for sentence in (*left_out(made.cohort.ineligible), *made.notes, *few):
        say(out, sentence)
    show_estimate(out, made, cost)
    return 0


def list_components(kind: str) -> int:
    """``harness list [KIND]``."""
    out = console()
    kinds = {"task": "tasks", **{name: f"{name}s" for name in KINDS}}
    wanted = [name for name, plural in kinds.items() if kind in ("", name, plural)]
    if not wanted:
        raise UnknownName("kind", kind, kinds.values())
    for name in wanted:
        if name == "task":
            rows = [[task, load_task(task).question] for task in task_names()]
        else:
            rows = [[one, KINDS[name].get(one).summary, KINDS[name].get(one).source] for one in KINDS[name].names()]
        header = ["name", "question"] if name == "task" else ["name", "description", "source"]
        show_table(out, header, rows, kinds[name])
    return 0


def describe(texts: Sequence[str]) -> int:
    """``harness describe task=NAME`` or ``harness describe model=NAME``."""
    from harness.cli.description import describe_component, describe_task

    overrides = parse(texts)
    if overrides.has("task"):
        refuse_unused(overrides, "harness describe task=NAME")
        describe_task(load_task(str(overrides.values["task"])), str(overrides.values.get("format", "text")), console())
        return 0
    refuse_unused(overrides, "harness describe")
    kind, name = next(iter(overrides.values.items()), ("", ""))
    if len(overrides.values) != 1:
        raise RequestError(
            f"exactly one key must be given, task=NAME or one of {', '.join(f'{one}=NAME' for one in KINDS)}; "
            f"got {' '.join(texts) or 'none'}"
        )
    describe_component(kind, str(name), console())
    return 0


def leaderboard(texts: Sequence[str]) -> int:
    """``harness leaderboard task=NAME [run=NAME] [csv=FILE]``, by default of the latest run of the task."""
    from harness.cli.api import rebuild
    from harness.report.csv_files import write_csv
    from harness.report.remarks import remarks
    from harness.report.renaming import renamed_table
    from harness.report.wording import verdict

    overrides = parse(texts)
    refuse_unused(overrides, "harness leaderboard")
    target = _csv_of(overrides)
    made, tables = rebuild(overrides)
    out = console()
    if tables.explanation.num_rows:
        _show_explanations(out, tables.explanation)
    _show_leaderboard(out, tables.prediction, tables.predictions_by_target, made.request.task.shown)
    for line in (verdict(tables.prediction, tables.predictions_by_target), *remarks(made, tables)):
        out.print(line)
    _say_runs(out, made)
    if target is not None:
        out.print(f"written: {write_csv(renamed_table(tables.prediction, made.shown), target)}", soft_wrap=True)
    return 0


def _csv_of(overrides: Overrides) -> Path | None:
    """The CSV file that was asked for; checked before tables are rebuilt."""
    if "csv" not in overrides.values:
        return None
    target = absolute(str(overrides.values["csv"]), "csv")
    if target.exists() and not target.is_file():  # a device would be replaced
        what = "folder" if target.is_dir() else "device"
        raise RequestError(f"csv must be a file, but {target} is a {what}; set csv=FILE")
    check_writable(target.parent, "the folder of csv")
    return target


def report(texts: Sequence[str]) -> int:
    """``harness report task=NAME [run=NAME]``, by default of the latest run of the task."""
    from harness.cli.api import rebuild
    from harness.report.figures.results import Results
    from harness.report.output import make_report

    overrides = parse(texts)
    refuse_unused(overrides, "harness report")
    made, tables = rebuild(overrides)
    out = console()
    _say_runs(out, made)
    out.print(f"written: {make_report(Results(made, tables))}", soft_wrap=True)
    return 0


def predict(texts: Sequence[str]) -> int:
    """``harness predict model=CELL|CONFIGURATION data=DIR [into=DIR]``."""
    from harness.cli.prediction import predict_folder

    out = console()
    predict_folder(parse(texts), say=lambda text: out.print(text, soft_wrap=True))
    return 0


def data(action: str, texts: Sequence[str]) -> int:
    """``harness data make|verify|describe``."""
    from harness.cli import cohorts

    actions = {"make": cohorts.make, "verify": cohorts.verify_folder, "describe": cohorts.describe_folder}
    if action not in actions:
        raise UnknownName("action of harness data", action, actions)
    return actions[action](parse(texts), console())


def ui(texts: Sequence[str]) -> int:
    """``harness ui [out=DIR] [port=5000] [open=true]``: MLflow's web interface, on the loopback interface only."""
    from harness.cli.ui import serve

    overrides = parse(texts)
    refuse_unused(overrides, "harness ui")
    port = checked(Annotated[int, Ge(1), Le(65535)], overrides.values.get("port", 5000), "port")
    open_browser = checked(bool, overrides.values.get("open", False), "open")
    folder = RunSettings(out=str(overrides.values.get("out", "harness-runs"))).folder
    if not (folder / "mlflow.db").is_file():
        raise RequestError(f"{folder} has no mlflow.db; start a run first, or set out=DIR")
    out = console()

    def say(line: str) -> None:
        out.print(line, soft_wrap=True)

    return serve(
        sqlite_uri(folder / "mlflow.db"), folder / "mlflow-artifacts", port, open_browser=open_browser, say=say
    )


def doctor() -> int:
    """``harness doctor``: 1 if something required is missing, otherwise 0."""
    from harness.cli.doctor import examine

    checks = examine()
    marks = {"ok": "✓", "warn": "!", "missing": "✗"}
    rows = [[marks[check.state], check.name, check.value, check.remedy] for check in checks]
    show_table(console(), ["", "what", "found", "next step"], rows)
    return 1 if any(check.state == "missing" for check in checks) else 0


def _say_runs(out: Console, made: Plan) -> None:
    """Print the name of the run, its command, and the names of other runs."""
    from harness.sweep.resume import run_names

    task, name = made.request.task.name, made.request.name
    out.print(f"{'run:':<13}{name}", soft_wrap=True)
    out.print(f"{'command:':<13}{made.request.command}", soft_wrap=True)
    others = [one for one in run_names(made.store, task) if one != name]
    if others:
        out.print(f"{'other runs:':<13}{', '.join(others)} (run=NAME shows one)", soft_wrap=True)


def _say_places(out: object, places: Mapping[str, object]) -> None:
    from rich.console import Console

    assert isinstance(out, Console)
    for name, place in places.items():
        if place:
            out.print(f"{name + ':':<13}{place}", soft_wrap=True)
