"""Hyper-parameter search, nested in the folds and performed before the grid.

For each configuration, outer fold and seed, candidates are trained on some of the
fold's *training* subjects and evaluated on the others (the inner validation). Neither
the outer test subjects nor the outer validation subjects are read: the former would
leak, and the latter select the epoch of the final training. With ``search_subjects``,
there is one search per configuration, on subjects that are excluded from the
evaluation.

Optuna's tree-structured Parzen estimator (TPE) proposes candidates, and asynchronous
successive halving (ASHA) stops poor candidates early. With Ray, the candidates of a
search train in parallel; without, Optuna runs them one by one in this process.
Candidates are not cells. The store keeps one record per search, written when the
search ends::

    store/search/<identity>/record.json

so repeating a command repeats no search, and if the driver is killed, at most the
current search is lost.

Notes
-----
TPE learns from candidates in the order in which they end. With one candidate at a
time (``workers=1`` or ``ray=off``), the same seed gives the same winner. With several,
the order may vary, and so may the winner; the recorded winner is used from then on.

The winner is the candidate with the best epoch on the inner validation samples. This
value is optimistic (the best of many) and is never reported as performance.

References
----------
Bergstra et al. 2011 (TPE); Li et al. 2020 (ASHA); Cawley and Talbot 2010 (why
selection must be nested).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from harness.core.errors import StoreError
from harness.core.settings import RunSettings
from harness.core.task import Configuration
from harness.core.types import JSON
from harness.pipeline.cell import hardware
from harness.storage.patience import Patience
from harness.storage.store import RECORD, Store
from harness.tuning.nested import ALGORITHM, Candidate, Search, with_values
from harness.tuning.spaces import short, space_json
from harness.tuning.trials import try_here, try_on_ray

__all__ = ["Chosen", "as_chosen", "chosen_of", "perform", "recorded"]


@dataclass(frozen=True)
class Chosen:
    """Result of a search.

    Parameters
    ----------
    identity, body : identity of the search, with and without the code
    values : option values of the winner, by key; empty if all candidates failed
    value : selection value of the winner on the inner validation samples (optimistic)
    trials : all candidates, in the order in which they were proposed
    seconds : wall time
    at_once : number of candidates trained at the same time
    reused_code : whether the search was accepted although the code has changed since
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
        """Reason why there is no winner; empty if there is one."""
        if self.values:
            return ""
        first = next((trial.error for trial in self.trials if trial.error), "no candidate was trained")
        return f"all {len(self.trials)} candidates of the search failed; the first error: {first}"

    def __str__(self) -> str:
        if self.error:
            return self.error
        states = [trial.state for trial in self.trials]
        counts = [f"{states.count(state)} {text}" for state, text in _COUNTED.items() if state in states]
        if len(states) > 1 and len({trial.value for trial in self.trials if trial.value is not None}) == 1:
            counts.append("all with the same value, so the first was chosen")
        chosen = " ".join(f"{key}={short(value)}" for key, value in self.values.items())
        return f"{chosen} (inner validation {self.value:.3f}; {len(states)} trials{''.join(f', {c}' for c in counts)})"


_COUNTED = {"stopped": "stopped early", "failed": "failed"}


def as_chosen(configuration: Configuration, chosen: Chosen) -> Configuration:
    """The configuration with the values that its search chose, and the identity of the search."""
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
    patience: Patience | None = None,
) -> dict[str, Chosen]:
    """Perform searches one after the other and record their results.

    Parameters
    ----------
    searches : searches that are not in the store
    store : store for the results
    settings : settings of the run; with ``ray=off``, candidates are trained in this
        process, otherwise Ray must have been started
    found : called with each search and its result, in order
    patience : repeats what cannot be written for a while

    Returns
    -------
    dict of str to Chosen
        Results by the identity of the search. If all candidates failed, the result is
        returned but not stored, so that repeating the command repeats the search.
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
            keep = partial(_keep, store, search, chosen, "here" if settings.ray == "off" else "ray")
            if patience is None:
                keep()
            else:
                patience(keep)
        results[search.identity] = chosen
        found(search, chosen)

    if settings.ray == "off":
        for search in searches:
            started = time.perf_counter()
            ended(search, try_here(search, settings), time.perf_counter() - started, 1)
    elif searches:
        try_on_ray(searches, store, settings, ended)
    return results


def recorded(store: Store, search: Search, *, accept_code: bool = False) -> Chosen | None:
    """Stored result of a search, or ``None``.

    Parameters
    ----------
    store : the store
    search : the search
    accept_code : whether to accept a search of older code, with a flag

    Raises
    ------
    StoreError
        If the record cannot be read or belongs to another search.
    """
    with contextlib.suppress(FileNotFoundError):
        return _read(store, search.identity)
    if accept_code:
        for older in store.place.holding("search", RECORD):
            chosen = _read(store, older)
            if chosen.body == search.body:
                return dataclasses.replace(chosen, reused_code=True)
    return None


def chosen_of(store: Store, configuration: Configuration) -> Chosen | None:
    """Result of the search of a training, or ``None`` if there was no search.

    Parameters
    ----------
    store : the store
    configuration : configuration of the training, as returned by :func:`as_chosen`

    Raises
    ------
    StoreError
        If the record is missing or cannot be read.
    """
    if "search" not in configuration.task:
        return None
    identity = str(configuration.task["search"]["identity"])
    try:
        return _read(store, identity)
    except FileNotFoundError:
        raise StoreError(
            f"{store.place.locate(_name(identity))} is missing; delete its folder and run the command again"
        ) from None


def _best(trials: Sequence[Candidate]) -> Candidate | None:
    """Candidate with the highest value; ties are broken in favour of complete, then earlier candidates."""
    evaluated = [trial for trial in trials if trial.value is not None]
    return max(evaluated, key=lambda trial: (trial.value, trial.state == "done"), default=None)


def _keep(store: Store, search: Search, chosen: Chosen, runner: str) -> None:
    """Write the record of a search atomically."""
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
    store.keep(_name(search.identity), what)


def _name(identity: str) -> str:
    """Name of the record of a search in the store."""
    return f"search/{identity}/{RECORD}"


def _read(store: Store, identity: str) -> Chosen:
    path = store.place.locate(_name(identity))
    try:
        content = json.loads(store.place.read(_name(identity)))
        fields = {field.name: content[field.name] for field in dataclasses.fields(Chosen)}
        chosen = Chosen(**{**fields, "trials": tuple(Candidate(**trial) for trial in content["trials"])})
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path} cannot be read ({error}); delete its folder and run the command again") from None
    if chosen.identity != identity:
        raise StoreError(
            f"{path} must be the record of {identity}, got {chosen.identity}; "
            "delete its folder and run the command again"
        )
    return chosen
