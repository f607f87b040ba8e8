"""Which command uses which words, so that none takes a word and ignores it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from harness.core.errors import RequestError, UnknownName
from harness.core.overrides import keys
from harness.core.registry import KINDS
from harness.sweep.catalogue import load_task, task_names
from harness.sweep.grammar import Words
from harness.sweep.request import RUN_WORDS

__all__ = ["TAKES", "refuse_unused"]

_LIKE_RUN = "harness run, harness plan, harness data describe task=NAME, harness data verify task=NAME"

TAKES: Mapping[str, tuple[str, ...]] = {
    "harness data make": ("into", "phantom", "phantom_seed", "phantom_subjects", "profile", "task"),
    "harness data verify": ("data", "exclude", "label", "sequences"),
    "harness describe": tuple(sorted(KINDS)),
    "harness describe task=NAME": ("format", "task"),
    "harness leaderboard": ("csv", "out", "run", "task"),
    "harness predict": ("data", "exclude", "into", "model", "out"),
    "harness report": ("out", "run", "task"),
    "harness ui": ("open", "out", "port"),
    "harness.table": ("out", "run", "task"),
}
"""The commands with few words; the others take those of a run (see :func:`harness.sweep.request.resolve`)."""


def refuse_unused(words: Words, command: str, *, several: Collection[str] = ()) -> None:
    """Refuse words that a command would take no notice of.

    Parameters
    ----------
    command : a key of :data:`TAKES`
    several : words that may have more than one value

    Raises
    ------
    RequestError
        With what the command takes, and which commands use the word.
    UnknownName
        If no command does.

    Notes
    -----
    Where a part is taken (``phantom``), so are its options (``phantom.shape``).
    """
    known = TAKES[command]
    for key in (*words.values, *words.sweeps, *(dimension.key for dimension in words.space)):
        if key in known or ("." in key and key.partition(".")[0] in set(known) & set(KINDS)):
            continue
        users = ", ".join([name for name in TAKES if key in TAKES[name]] + [_LIKE_RUN] * _of_run(key, words))
        if not users:
            raise UnknownName(f"word of {command}", key, known)
        raise RequestError(
            f"{command} does not use {key}=; it takes {', '.join(f'{one}=' for one in known)}. "
            f"{key}= is a word of: {users}"
        )
    for key in (*words.sweeps, *(dimension.key for dimension in words.space)):
        if key not in several:
            raise RequestError(f"{command} takes one value of {key}, got {key}={_spoken(words, key)}")


def _of_run(key: str, words: Words) -> bool:
    """Whether a run has a use for a word."""
    if key in RUN_WORDS:
        return True
    task = str(words.values.get("task", ""))
    return task in task_names() and key in keys(load_task(task))


def _spoken(words: Words, key: str) -> str:
    return ",".join(map(str, words.sweeps[key])) if key in words.sweeps else "(a space of values)"
