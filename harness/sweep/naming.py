"""Names of runs: what was asked for, as part of a file name.

The tables, the report and the plan of a run carry its name. Different runs have
different names, and the same command has the same name again.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from harness.core.identity import identify
from harness.core.settings import RunSettings
from harness.core.space import text_of
from harness.core.task import Task
from harness.core.types import JSON
from harness.sweep.grammar import Words

__all__ = ["DEFAULT", "run_name"]

DEFAULT = "default"
"""Name of a run without overrides of a task that has no experiments."""

# Settings say how and where it runs; of these alone the result depends.
_DECISIVE = {"exclude", "search_subjects", "trials"}
_NOT_NAMED = {field.name for field in dataclasses.fields(RunSettings)} - _DECISIVE | {"task", "profile", "experiment"}
# Of these a list is several values, not one.
_SEVERAL = ("seed", "fold", "attribution", "exclude", "search_subjects")
_LONGEST = 48  # characters before the digest; file systems allow 255 for a name with all its endings
_DIGITS = 6


def run_name(
    words: Words, task: Task, settings: RunSettings, *, profile: str, experiment: str, seeds: tuple[JSON, ...]
) -> str:
    """Name of what a command runs.

    Parameters
    ----------
    words : of the command
    task : knows the short names of keys and the axes of experiments
    settings : tell where the data are
    profile, experiment : that apply
    seeds : of the profile; the same seeds as an override change nothing

    Returns
    -------
    str
        The experiment alone (``ablation``) where nothing else is given. Else the
        experiment, the name of the data folder, the profile and the overrides, as far
        as they fit, and a digest of all of them (``noise_model-ridge-3fa2c1``).
        Letters, digits and ``+ - . _`` only.

    Notes
    -----
    The default experiment is left out where overrides replace all of its axes. The
    order of overrides does not matter, nor whether a key is short (``noise``) or
    full (``outcome.noise``).
    """
    given = _overrides(words, task, seeds)
    axes = {_full(key, task) for key in task.experiments.get(experiment, {})}
    start = "" if axes and axes <= set(given) and experiment == task.experiment else experiment
    folder, plain = settings.data_folder, profile == "quick"
    if plain and folder is None and not given and re.fullmatch(r"\w+", start or DEFAULT):
        return start or DEFAULT
    parts = [start, "" if folder is None else folder.name, "" if plain else profile, *_texts(given, words, task)]
    text = "_".join(filter(None, map(_safe, parts)))[:_LONGEST].strip("-._")
    digest = identify([experiment, profile, "" if folder is None else str(folder), given])[:_DIGITS]
    return f"{text or DEFAULT}-{digest}"


def _overrides(words: Words, task: Task, seeds: tuple[JSON, ...]) -> dict[str, list[JSON]]:
    """Full key → its values, of every word on which the result depends."""
    found: dict[str, list[JSON]] = {one.key: [str(one)] for one in words.space}
    for key in (*words.sweeps, *words.values):
        if key not in _NOT_NAMED:
            single = key in words.values and key not in _SEVERAL
            found[key] = [_number(value) for value in ([words.values[key]] if single else words.several(key))]
    if found.get("seed") == list(seeds):
        del found["seed"]
    return {_full(key, task): values for key, values in found.items()}


def _texts(given: Mapping[str, list[JSON]], words: Words, task: Task) -> list[str]:
    """Overrides as parts of a name, what tells most first: columns of the leaderboard, other axes, subsets, options."""
    short, swept = {full: name for name, full in task.axes.items()}, {_full(key, task) for key in words.sweeps}
    searched = {_full(one.key, task) for one in words.space}

    def order(key: str) -> tuple[bool, bool, bool, str]:
        name = short.get(key, key)
        return name not in task.columns, key not in swept or key in _SEVERAL, "." in name, key

    def text(key: str) -> str:
        values = () if key in searched else map(text_of, given[key])
        return "-".join([short.get(key, key), *values])

    return [text(key) for key in sorted(given, key=order)]


def _number(value: JSON) -> JSON:
    """A whole number as such: 0 and 0.0 are one value of an option."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _full(key: str, task: Task) -> str:
    return task.axes.get(key, key)


def _safe(text: str) -> str:
    """The text with hyphens for other characters than letters, digits and ``+ . _``."""
    return re.sub(r"[^A-Za-z0-9+._]+", "-", text).strip("-.")
