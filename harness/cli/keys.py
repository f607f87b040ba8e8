"""Keys that each command accepts, so that no override is silently ignored."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from harness.core.errors import RequestError, UnknownName
from harness.core.overrides import keys
from harness.core.registry import KINDS
from harness.sweep.catalogue import load_task, task_names
from harness.sweep.grammar import Overrides
from harness.sweep.request import RUN_KEYS

__all__ = ["TAKES", "refuse_unused"]

_LIKE_RUN = "harness run, harness plan, harness data describe task=NAME, harness data verify task=NAME"

TAKES: Mapping[str, tuple[str, ...]] = {
    "harness data make": ("into", "phantom", "phantom_seed", "phantom_subjects", "profile", "task"),
    "harness data verify": ("cohort.session", "cohort.space", "cohort.truth", "data", "exclude", "label", "sequences"),
    "harness describe": tuple(sorted(KINDS)),
    "harness describe task=NAME": ("format", "task"),
    "harness leaderboard": ("csv", "out", "run", "task"),
    "harness predict": ("data", "exclude", "into", "model", "out"),
    "harness report": ("out", "run", "task"),
    "harness ui": ("open", "out", "port"),
    "harness.table": ("out", "run", "task"),
}
"""Keys of commands with few of them; the others accept the keys of a run (:func:`harness.sweep.request.resolve`)."""


def refuse_unused(overrides: Overrides, command: str, *, several: Collection[str] = ()) -> None:
    """Refuse overrides that a command does not use.

    Parameters
    ----------
    overrides : overrides of the command
    command : a key of :data:`TAKES`
    several : keys that may have more than one value

    Raises
    ------
    RequestError
        If the command does not use a key; lists the keys that it uses, and the commands
        that use this key.
    UnknownName
        If no command uses a key.

    Notes
    -----
    A command that accepts a component (``phantom``) accepts its options (``phantom.shape``).
    """
    known = TAKES[command]
    for key in (*overrides.values, *overrides.sweeps, *(dimension.key for dimension in overrides.space)):
        if key in known or ("." in key and key.partition(".")[0] in set(known) & set(KINDS)):
            continue
        users = ", ".join([name for name in TAKES if key in TAKES[name]] + [_LIKE_RUN] * _of_run(key, overrides))
        if not users:
            raise UnknownName(f"key of {command}", key, known)
        raise RequestError(
            f"{command} does not use {key}=; it takes {', '.join(f'{one}=' for one in known)}. "
            f"{key}= is a key of: {users}"
        )
    for key in (*overrides.sweeps, *(dimension.key for dimension in overrides.space)):
        if key not in several:
            raise RequestError(f"{command} takes one value of {key}, got {key}={_values_text(overrides, key)}")


def _of_run(key: str, overrides: Overrides) -> bool:
    """Whether a run uses a key."""
    if key in RUN_KEYS:
        return True
    task = str(overrides.values.get("task", ""))
    return task in task_names() and key in keys(load_task(task))


def _values_text(overrides: Overrides, key: str) -> str:
    return ",".join(map(str, overrides.sweeps[key])) if key in overrides.sweeps else "(a search space)"
