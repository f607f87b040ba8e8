"""Names of runs, used in file names.

The tables, the report and the plan of a run are named after it. Different runs have
different names, and repeating a command gives the same name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from harness.core.identity import identify
from harness.core.settings import RunSettings
from harness.core.space import grids_of, text_of
from harness.core.task import Task
from harness.core.types import JSON
from harness.sweep.grammar import Overrides

__all__ = ["DEFAULT", "full_key", "run_name"]

DEFAULT = "default"
"""Name of a run without overrides of a task that has no experiments."""

# Settings define how and where a run executes; only these affect its results.
_DECISIVE = {"exclude", "search_subjects", "trials"}
_NOT_NAMED = {field.name for field in dataclasses.fields(RunSettings)} - _DECISIVE | {"task", "profile", "experiment"}
# For these keys, a list means several values.
_SEVERAL = ("seed", "fold", "attribution", "exclude", "search_subjects")
_NAMING = {"exclude", "search_subjects", "split.test_subjects"}  # their values are names of subjects
_LONGEST = 48  # characters before the digest; file systems allow 255 for a name with its suffixes
_DIGITS = 6


def run_name(
    overrides: Overrides, task: Task, settings: RunSettings, *, profile: str, experiment: str, seeds: tuple[JSON, ...]
) -> str:
    """Name of the run that a command starts.

    Parameters
    ----------
    overrides : overrides of the command
    task : task with the short names of keys and the axes of experiments
    settings : settings with the data folder
    profile, experiment : profile and experiment in use; names of several experiments are joined by ``+``
    seeds : seeds of the profile; overrides that give the same seeds do not affect the name

    Returns
    -------
    str
        The experiment alone (``ablation``) if nothing else is given. Otherwise the
        experiment, the name of the data folder, the profile and as many overrides as
        fit, followed by a digest of all of them (``noise_model-ridge-3fa2c1``). Only
        letters, digits and ``+ - . _``.

    Notes
    -----
    The default experiment is left out if overrides replace all of its axes. Neither the
    order of the overrides matters, nor whether keys are short (``noise``) or full
    (``targets.scores.noise``).
    """
    given = _overrides(overrides, task, seeds)
    grids = [grid for one in experiment.split("+") for grid in grids_of(task.experiments.get(one, {}))]
    axes = {full_key(key, task) for grid in grids for key in grid}
    start = "" if axes and axes <= set(given) and experiment == task.experiment else experiment
    folder, plain = settings.data_folder, profile == "quick"
    if plain and folder is None and not given and re.fullmatch(r"\w+", start or DEFAULT):
        return start or DEFAULT
    shown = {key: [] if settings.pseudonymise and key in _NAMING else values for key, values in given.items()}
    parts = [start, "" if folder is None else folder.name, "" if plain else profile, *_texts(shown, overrides, task)]
    text = "_".join(filter(None, map(_safe, parts)))[:_LONGEST].strip("-._")
    digest = identify([experiment, profile, "" if folder is None else str(folder), given])[:_DIGITS]
    return f"{text or DEFAULT}-{digest}"


def full_key(key: str, task: Task) -> str:
    """The full key of a short one, such as ``targets.scores.noise`` of ``noise``; other keys are unchanged."""
    return task.axes.get(key, key)


def _overrides(overrides: Overrides, task: Task, seeds: tuple[JSON, ...]) -> dict[str, list[JSON]]:
    """Values of all overrides that affect the results, by full key."""
    found: dict[str, list[JSON]] = {one.key: [str(one)] for one in overrides.space}
    for key in (*overrides.sweeps, *overrides.values):
        if key not in _NOT_NAMED:
            single = key in overrides.values and key not in _SEVERAL
            found[key] = [_number(value) for value in ([overrides.values[key]] if single else overrides.several(key))]
    if found.get("seed") == list(seeds):
        del found["seed"]
    return {full_key(key, task): values for key, values in found.items()}


def _texts(given: Mapping[str, list[JSON]], overrides: Overrides, task: Task) -> list[str]:
    """Overrides as parts of a name, in the order: leaderboard columns, other axes, subsets, options."""
    short, swept = {full: name for name, full in task.axes.items()}, {full_key(key, task) for key in overrides.sweeps}
    searched = {full_key(one.key, task) for one in overrides.space}

    def order(key: str) -> tuple[bool, bool, bool, str]:
        name = short.get(key, key)
        return name not in task.columns, key not in swept or key in _SEVERAL, "." in name, key

    def text(key: str) -> str:
        values = () if key in searched else map(text_of, given[key])
        return "-".join([short.get(key, key), *values])

    return [text(key) for key in sorted(given, key=order)]


def _number(value: JSON) -> JSON:
    """Whole numbers as ``int``, so that 0 and 0.0 give the same name."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _safe(text: str) -> str:
    """The text with all characters but letters, digits and ``+ . _`` replaced by hyphens."""
    return re.sub(r"[^A-Za-z0-9+._]+", "-", text).strip("-.")
