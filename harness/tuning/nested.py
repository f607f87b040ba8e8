"""A nested search: its options, its inner split, and the evaluation of a candidate."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.core.errors import OutOfRange
from harness.core.identity import identify
from harness.core.overrides import override
from harness.core.seeding import generator
from harness.core.space import Choice, Dimension
from harness.core.task import Configuration, describe
from harness.core.types import JSON, Adapter, Cohort
from harness.pipeline.cell import digest, reads_of, restored
from harness.pipeline.initial_weights import initialised
from harness.pipeline.train import Epoch, train
from harness.tuning.spaces import TUNED, space_json

__all__ = [
    "ALGORITHM",
    "Candidate",
    "FACTOR",
    "Report",
    "Search",
    "epochs_of",
    "inner_split",
    "train_candidate",
    "plan_search",
    "with_values",
]

FACTOR = 3
"""Reduction factor of ASHA: one in ``FACTOR`` candidates passes a rung."""
# Part of every identity; the version must be raised when proposals or rungs change.
ALGORITHM = {"name": "optuna", "sampler": "tpe", "pruner": "asha", "factor": FACTOR, "version": 1}
_SHARE = 1 / 5  # share of the training subjects used for the inner validation

Report = Callable[[int, float], None]


@dataclass(frozen=True)
class Search:
    """A search, as plain values that can be sent to a worker.

    Parameters
    ----------
    configuration : the grid point, whose values apply to all options that are not searched
    space : dimensions of the search space
    train, validation : sample ids of the inner split
    fingerprint : fingerprint of the data that a training reads of these samples
    fold : index of the outer fold; -1 if the search serves all folds
    seed : seed of proposals and trainings
    trials : number of candidates
    cohort : file of the cohort's table, on storage that every node can read
    """

    configuration: Configuration
    space: tuple[Dimension, ...]
    train: tuple[str, ...]
    validation: tuple[str, ...]
    fingerprint: str
    fold: int
    seed: int
    trials: int
    cohort: Path

    @property
    def identity(self) -> str:
        """Hash of exactly what determines the winner if candidates run one at a time."""
        return identify({**self._determined_by(), "code": self._code()})

    @property
    def body(self) -> str:
        """The identity without the code, by which ``accept_code`` finds searches of older code."""
        return identify(self._determined_by())

    def _determined_by(self) -> dict[str, JSON]:
        described = self.configuration.task
        return {
            "stage": "search",
            "task_version": described["version"],
            **{component: described[component] for component in ("adapter", *TUNED)},
            "model": self.configuration.model,
            "space": space_json(self.space),
            "train": self.train,
            "validation": self.validation,
            "cohort": self.fingerprint,
            "seed": self.seed,
            "trials": self.trials,
            "algorithm": ALGORITHM,
        }

    def _code(self) -> list[str]:
        """Digests of the code that candidates run; several if the model itself is searched."""
        models = [one.values for one in self.space if isinstance(one, Choice) and one.key == "model"]
        settings: list[dict[str, JSON]] = [{"model": model} for model in models[0]] if models else [{}]
        return sorted({digest("train", restored(with_values(self.configuration, values))) for values in settings})


@dataclass(frozen=True)
class Candidate:
    """One trial of a search.

    Parameters
    ----------
    values : option values, by key
    state : ``done``, ``stopped`` (by ASHA, before its last epoch) or ``failed``
    value : selection value of the best epoch on the inner validation samples; ``None`` if it failed
    epochs : number of epochs trained
    error : first line of the error, if it failed
    """

    values: Mapping[str, JSON]
    state: Literal["done", "stopped", "failed"]
    value: float | None
    epochs: int
    error: str = ""


def plan_search(
    configuration: Configuration,
    space: Sequence[Dimension],
    cohort: Cohort,
    path: Path,
    training: Sequence[str],
    *,
    fold: int,
    seed: int,
    trials: int,
) -> Search:
    """The search of one fold.

    Parameters
    ----------
    configuration : the grid point
    space : dimensions of the search space
    cohort : the cohort
    path : file of its table
    training : sample ids of the fold's training subjects; the other samples are not
        used, not even for the identity
    fold : index of the outer fold; -1 if the search serves all folds
    seed : seed of proposals and trainings
    trials : number of candidates

    Raises
    ------
    OutOfRange
        If there are fewer than two training subjects.
    """
    own = dataclasses.replace(cohort, samples=tuple(one for one in cohort.samples if one.id in set(training)))
    inner, held_out = inner_split([(one.id, one.subject) for one in own.samples])
    adapter: Adapter = restored(configuration).adapter()
    fingerprint = own.fingerprint(reads_of(adapter, adapter.spec(own))["train"])
    return Search(configuration, tuple(space), inner, held_out, fingerprint, fold, seed, trials, path)


def inner_split(samples: Sequence[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split the training samples of a fold into inner training and inner validation samples.

    Parameters
    ----------
    samples : (sample id, subject) of the fold's training samples

    Returns
    -------
    training, validation : tuples of str
        Sample ids. The validation samples are those of one fifth of the subjects,
        rounded, at least one. The draw depends only on the subjects, so that all
        seeds and configurations of a fold share it.

    Raises
    ------
    OutOfRange
        If there are fewer than two subjects.
    """
    subjects = sorted({subject for _, subject in samples})
    if len(subjects) < 2:
        raise OutOfRange(
            f"a nested search needs at least 2 training subjects (to train and to validate), got {len(subjects)}: "
            f"{', '.join(subjects) or 'none'}; add subjects, or set search_subjects= to search on separate subjects"
        )
    count = max(1, math.floor(_SHARE * len(subjects) + 0.5))
    order = generator(0, "search", "split", *subjects).permutation(len(subjects))
    held_out = {subjects[number] for number in order[:count]}
    return (
        tuple(name for name, subject in samples if subject not in held_out),
        tuple(name for name, subject in samples if subject in held_out),
    )


def with_values(configuration: Configuration, values: Mapping[str, JSON]) -> Configuration:
    """The configuration with the values of a candidate, without the description of the search."""
    task = restored(configuration)
    # Components before their options, because choosing a component resets its options.
    for key in sorted(values, key=lambda key: "." in key):
        task = override(task, key, values[key])
    described = describe(task)
    plain = {key: value for key, value in configuration.task.items() if key != "searched"}
    changed = {component: described[component] for component in {key.partition(".")[0] for key in values}}
    return dataclasses.replace(configuration, task=json.loads(json.dumps({**plain, **changed})))


def train_candidate(search: Search, values: Mapping[str, JSON], cohort: Cohort, report: Report) -> None:
    """Train one candidate; the objective function of every search.

    Parameters
    ----------
    search : the search
    values : option values of the candidate, by key
    cohort : the cohort, of which only samples of the inner split are read
    report : called with the epoch and the best selection value so far after each epoch;
        may raise an exception to end the training

    Raises
    ------
    CellError
        If the loss or the selection value is not finite.
    """
    task = restored(with_values(search.configuration, values))
    adapter: Adapter = task.adapter()
    spec = adapter.spec(cohort)
    samples = {one.id: one for one in cohort.samples if one.id in {*search.train, *search.validation}}
    best = -math.inf

    def on_epoch(epoch: Epoch) -> None:
        nonlocal best
        # The final training keeps its best epoch, so candidates are compared by theirs.
        best = max(best, epoch.validation)
        report(epoch.epoch, best)

    train(
        lambda: initialised(task, spec, search.configuration.task),
        task.recipe(),
        adapter,
        spec,
        [samples[name] for name in search.train],
        [samples[name] for name in search.validation],
        seed=search.seed,
        report=on_epoch,
    )


def epochs_of(search: Search, values: Mapping[str, JSON]) -> int:
    """Number of epochs of a candidate."""
    return int(restored(with_values(search.configuration, values)).recipe().epochs)
