"""Hyper-parameter search: a phase of its own before the grid, nested in its folds.

For every configuration × outer fold × seed, candidates are trained on a part of
that fold's *training* subjects and judged on the rest of them (the inner
validation). Neither the outer test nor the outer validation subjects are read:
the first would leak, and the second select the epoch of the final training.
With ``search_subjects`` there is one search per configuration, on subjects that
the evaluation leaves out.

Optuna's tree-structured Parzen estimator (TPE) proposes, asynchronous
successive halving (ASHA) stops bad candidates by epoch. With Ray the candidates
of a search train at once; without, Optuna alone does the same in this process.
A candidate is no cell: the store keeps one record per search, written when it
ended::

    store/search/<identity>/record.json

so the same command never searches again, and a driver that was killed redoes at
most the search it was in.

Notes
-----
TPE learns from candidates in the order in which they end. One at a time
(``workers=1``, or ``ray=off``) the same seed gives the same winner; several at
once end in no fixed order, and another winner may be found. What
was found stays: the record is the result.

The winner is the candidate with the best epoch on the inner validation. That
value is optimistic (the best of many) and is never reported as performance.

References
----------
Bergstra et al. 2011 (TPE); Li et al. 2020 (ASHA); Cawley and Talbot 2010 (why
selection must be nested).
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import StoreError
from harness.core.settings import RunSettings
from harness.core.task import Configuration
from harness.core.types import JSON
from harness.pipeline.cell import hardware
from harness.storage.store import RECORD, Store, write_json
from harness.tuning.nested import ALGORITHM, Candidate, Search, with_values
from harness.tuning.spaces import short, space_json
from harness.tuning.trials import try_here, try_on_ray

__all__ = ["Chosen", "as_chosen", "chosen_of", "perform", "recorded"]


@dataclass(frozen=True)
class Chosen:
    """What a search found.

    Parameters
    ----------
    identity, body : of the search
    values : key → value of the winner; empty if every candidate failed
    value : of the winner on the inner validation, optimistic
    trials : all candidates, in the order in which they were proposed
    seconds : wall time
    at_once : candidates that trained at the same time
    reused_code : the search was accepted although the code has changed since
    """

    identity: str
    body: str
    values: Mapping[str, JSON]
    value: float | None
    trials: tuple[Candidate, ...]
    seconds: float = 0.0
    at_once: int = 1
    reused_code: bool = False

    @property
    def error(self) -> str:
        """Why there is no winner; empty if there is one."""
        if self.values:
            return ""
        first = next((trial.error for trial in self.trials if trial.error), "no candidate was tried")
        return f"all {len(self.trials)} candidates of the search failed, the first with {first}"

    def __str__(self) -> str:
        if self.error:
            return self.error
        states = [trial.state for trial in self.trials]
        counts = [f"{states.count(state)} {word}" for state, word in _COUNTED.items() if state in states]
        if len(states) > 1 and len({trial.value for trial in self.trials if trial.value is not None}) == 1:
            counts.append("none better than another, so the first was taken")
        chosen = " ".join(f"{key}={short(value)}" for key, value in self.values.items())
        return f"{chosen} (inner validation {self.value:.3f}; {len(states)} trials{''.join(f', {c}' for c in counts)})"


_COUNTED = {"stopped": "stopped early", "failed": "failed"}


def as_chosen(configuration: Configuration, chosen: Chosen) -> Configuration:
    """The configuration with what its search chose, and which search that was."""
    found = with_values(configuration, chosen.values)
    return dataclasses.replace(
        found, task={**found.task, "search": {"identity": chosen.identity, "reused_code": chosen.reused_code}}
    )


def perform(
    searches: Sequence[Search],
    store: Store,
    settings: RunSettings,
    *,
    found: Callable[[Search, Chosen], None] = lambda search, chosen: None,
) -> dict[str, Chosen]:
    """Carry out searches one after the other and keep what they found.

    Parameters
    ----------
    searches : those that the store does not hold
    settings : ``ray=off`` searches in this process, else Ray must have been started
    found : is told each search that ended and is in the store, in order

    Returns
    -------
    identity of the search → what it found. A search whose candidates all failed
    is among them and not in the store, so that the same command tries it again.
    """
    results: dict[str, Chosen] = {}

    def ended(search: Search, trials: tuple[Candidate, ...], seconds: float, at_once: int) -> None:
        best = _best(trials)
        chosen = Chosen(
            search.identity,
            search.body,
            {} if best is None else best.values,
            None if best is None else best.value,
            trials,
            round(seconds, 3),
            at_once,
        )
        if best is not None:
            _keep(store, search, chosen, "here" if settings.ray == "off" else "ray")
        results[search.identity] = chosen
        found(search, chosen)

    if settings.ray == "off":
        for search in searches:
            started = time.perf_counter()
            ended(search, try_here(search), time.perf_counter() - started, 1)
    elif searches:
        try_on_ray(searches, settings, ended)
    return results


def recorded(store: Store, search: Search, *, accept_code: bool = False) -> Chosen | None:
    """What a search found earlier, or ``None``.

    Parameters
    ----------
    accept_code : take a search of older code, flagged

    Raises
    ------
    StoreError
        If the record cannot be read or is another search's.
    """
    path = store.folder("search", search.identity) / RECORD
    if path.is_file():
        return _read(path, search.identity)
    if accept_code:
        for older in sorted((store.root / "search").glob(f"*/{RECORD}")):
            chosen = _read(older, older.parent.name)
            if chosen.body == search.body:
                return dataclasses.replace(chosen, reused_code=True)
    return None


def chosen_of(store: Store, configuration: Configuration) -> Chosen | None:
    """What the search of a training found, or ``None`` if it was not searched.

    Parameters
    ----------
    configuration : of the training, as :func:`as_chosen` made it

    Raises
    ------
    StoreError
        If the record is gone or cannot be read.
    """
    if "search" not in configuration.task:
        return None
    identity = str(configuration.task["search"]["identity"])
    return _read(store.folder("search", identity) / RECORD, identity)


def _best(trials: Sequence[Candidate]) -> Candidate | None:
    """The highest value; of equals one that ran to its end, then the earlier."""
    judged = [trial for trial in trials if trial.value is not None]
    return max(judged, key=lambda trial: (trial.value, trial.state == "done"), default=None)


def _keep(store: Store, search: Search, chosen: Chosen, runner: str) -> None:
    """Write a record, whole or not at all."""
    what: dict[str, JSON] = {
        **dataclasses.asdict(chosen),
        "configuration": search.configuration.id,
        "fold": search.fold,
        "seed": search.seed,
        "space": space_json(search.space),
        "split": {"train": search.train, "validation": search.validation},
        "algorithm": ALGORITHM,
        "runner": runner,
        "hardware": hardware(),
    }
    write_json(store.folder("search", search.identity) / RECORD, what)


def _read(path: Path, identity: str) -> Chosen:
    try:
        content = json.loads(path.read_text())
        fields = {field.name: content[field.name] for field in dataclasses.fields(Chosen)}
        chosen = Chosen(**{**fields, "trials": tuple(Candidate(**trial) for trial in content["trials"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path} cannot be read ({error}); delete its folder and run the command again") from None
    if chosen.identity != identity:
        raise StoreError(f"{path} is the record of {chosen.identity}; delete its folder and run the command again")
    return chosen
