"""One search: what is tuned, on whom, and how a candidate is judged."""

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
from harness.pipeline.networks import build_network
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
    "judge",
    "plan_search",
    "with_values",
]

FACTOR = 3
"""One of so many candidates passes a rung."""
# Enters every identity; the version is raised when proposals or rungs change.
ALGORITHM = {"name": "optuna", "sampler": "tpe", "pruner": "asha", "factor": FACTOR, "version": 1}
_SHARE = 1 / 5  # of the training subjects judge candidates

Report = Callable[[int, float], None]


@dataclass(frozen=True)
class Search:
    """One search: what is tuned, and on whom. Plain values that cross to a worker.

    Parameters
    ----------
    configuration : the grid's point, whose values hold wherever no dimension says otherwise
    space : dimensions
    train, validation : sample ids of the inner split
    fingerprint : of what a training reads of these samples
    fold : of the outer split; -1 if the search serves all folds
    seed : of proposals and trainings
    trials : candidates
    cohort : table of the cohort, on storage that every node sees
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
        """Hash of exactly what determines the winner (when candidates run one at a time)."""
        return identify({**self._determined_by(), "code": self._code()})

    @property
    def body(self) -> str:
        """The identity without the code, by which ``accept_code`` finds older searches."""
        return identify(self._determined_by())

    def _determined_by(self) -> dict[str, JSON]:
        described = self.configuration.task
        return {
            "stage": "search",
            "task_version": described["version"],
            **{part: described[part] for part in ("adapter", *TUNED)},
            "space": space_json(self.space),
            "train": self.train,
            "validation": self.validation,
            "cohort": self.fingerprint,
            "seed": self.seed,
            "trials": self.trials,
            "algorithm": ALGORITHM,
        }

    def _code(self) -> list[str]:
        """Digests of what a candidate may run: several if the model itself is a dimension."""
        models = [one.values for one in self.space if isinstance(one, Choice) and one.key == "model"]
        settings: list[dict[str, JSON]] = [{"model": model} for model in models[0]] if models else [{}]
        return sorted({digest("train", restored(with_values(self.configuration, values))) for values in settings})


@dataclass(frozen=True)
class Candidate:
    """One trial of a search.

    Parameters
    ----------
    values : key → what was tried
    state : ``done``, ``stopped`` (by ASHA, before its last epoch) or ``failed``
    value : of its best epoch on the inner validation; ``None`` if it failed
    epochs : that it trained
    error : first line, if it failed
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
    cohort, path : opened, and its table
    training : sample ids of the fold's training subjects; of the cohort's other
        samples nothing is used, not even for the identity

    Raises
    ------
    OutOfRange
        With fewer than two training subjects.
    """
    own = dataclasses.replace(cohort, samples=tuple(one for one in cohort.samples if one.id in set(training)))
    inner, held_out = inner_split([(one.id, one.subject) for one in own.samples])
    adapter: Adapter = restored(configuration).adapter()
    fingerprint = own.fingerprint(reads_of(adapter, adapter.spec(own))["train"])
    return Search(configuration, tuple(space), inner, held_out, fingerprint, fold, seed, trials, path)


def inner_split(samples: Sequence[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Who trains and who judges the candidates of a fold.

    Parameters
    ----------
    samples : (sample id, subject) of the fold's training samples

    Returns
    -------
    sample ids that train, sample ids that judge: one fifth of the subjects,
    rounded, at least one. The draw depends on the subjects alone, so that all
    seeds and configurations of a fold share it.

    Raises
    ------
    OutOfRange
        With fewer than two subjects.
    """
    subjects = sorted({subject for _, subject in samples})
    if len(subjects) < 2:
        raise OutOfRange(
            f"2 <= training subjects must hold for a nested search (some train, some judge), got {len(subjects)}: "
            f"{', '.join(subjects) or 'none'}; add subjects, or name search_subjects that the evaluation leaves out"
        )
    count = max(1, math.floor(_SHARE * len(subjects) + 0.5))
    order = generator(0, "search", "split", *subjects).permutation(len(subjects))
    judges = {subjects[number] for number in order[:count]}
    return (
        tuple(name for name, subject in samples if subject not in judges),
        tuple(name for name, subject in samples if subject in judges),
    )


def with_values(configuration: Configuration, values: Mapping[str, JSON]) -> Configuration:
    """The configuration with a candidate's values; what is searched is no longer noted in it."""
    task = restored(configuration)
    # A component starts with its own defaults, so it comes before its options.
    for key in sorted(values, key=lambda key: "." in key):
        task = override(task, key, values[key])
    described = describe(task)
    plain = {key: value for key, value in configuration.task.items() if key != "searched"}
    changed = {part: described[part] for part in {key.partition(".")[0] for key in values}}
    return dataclasses.replace(configuration, task=json.loads(json.dumps({**plain, **changed})))


def judge(search: Search, values: Mapping[str, JSON], cohort: Cohort, report: Report) -> None:
    """Train one candidate; the objective function of every search.

    Parameters
    ----------
    cohort : only the samples of the inner split are read
    report : is told (epoch, best selection value so far) after each epoch, and
        may raise to end the training

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

    def told(epoch: Epoch) -> None:
        nonlocal best
        # The final training keeps its best epoch, so a candidate is worth its best one.
        best = max(best, epoch.validation)
        report(epoch.epoch, best)

    train(
        lambda: build_network(task, spec),
        task.recipe(),
        adapter,
        spec,
        [samples[name] for name in search.train],
        [samples[name] for name in search.validation],
        seed=search.seed,
        report=told,
    )


def epochs_of(search: Search, values: Mapping[str, JSON]) -> int:
    """Epochs that a candidate would train."""
    return int(restored(with_values(search.configuration, values)).recipe().epochs)
