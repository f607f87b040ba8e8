"""Cells and jobs: what is to be computed, by identity.

A *cell* is one configuration × fold × seed × stage (× attribution). A *job*
is one training with everything below it that is missing; it is what one worker
is given, as plain JSON.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from harness.core.identity import code_digest, identify, module_digest
from harness.core.registry import ATTRIBUTIONS, MODELS
from harness.core.task import Component, Configuration, Task, modules_of, restore
from harness.core.types import JSON, Split, View
from harness.storage.store import Stage, Store

__all__ = [
    "Job",
    "Cell",
    "attributions_of",
    "jobs",
    "cells_of",
    "digest",
    "hardware",
    "is_grouped",
    "missing",
    "restored",
]

# What each stage runs besides its parts; editing one of these is a change of the stage.
_STAGE_MODULES = {
    "train": ("harness.pipeline.train",),
    "explain": ("harness.pipeline.explain",),
    "score": ("harness.pipeline.score",),
    "pool": ("harness.pipeline.aggregate",),
}


@dataclass(frozen=True)
class Cell:
    """One thing to compute.

    Parameters
    ----------
    stage : train, explain or score
    identity : hash of exactly what determines the result
    configuration : id
    fold, seed : of the training
    label : the attribution; empty for a training and for the score of its predictions
    parent : identity of the cell whose artifacts are needed; empty for a training
    body : the identity without the code digests, by which ``accept_code`` finds
        records of older code
    """

    stage: Stage
    identity: str
    body: str
    configuration: str
    fold: int
    seed: int
    label: str = ""
    parent: str = ""


@dataclass(frozen=True)
class Job:
    """One training and the cells below it.

    Parameters
    ----------
    configuration : plain JSON, crosses to the worker
    split : sample ids of the fold
    fold, seed : of the training
    train : identity of the training, which need not be among the cells
    cells : what is to be computed, in order
    search : identity of the search that must end before this can be trained;
        empty where there is none or it has ended
    """

    configuration: Configuration
    split: Split
    fold: int
    seed: int
    train: str
    cells: tuple[Cell, ...]
    search: str = ""

    @property
    def row(self) -> str:
        """Id of the configuration that the leaderboard shows.

        It differs from that of ``configuration`` where a search has chosen
        values for this fold and seed.
        """
        return self.cells[0].configuration

    def awaiting(self, search: str) -> Job:
        """The same training while its options are not known: cells that no store holds."""

        def unknown(identity: str) -> str:
            return identify({"search": search, "cell": identity}) if identity else ""

        cells = [
            dataclasses.replace(
                cell, identity=unknown(cell.identity), body=unknown(cell.body), parent=unknown(cell.parent)
            )
            for cell in self.cells
        ]
        return dataclasses.replace(self, train=unknown(self.train), cells=tuple(cells), search=search)

    def settled(self, configuration: Configuration) -> Job:
        """The same training with the values that its search has chosen."""
        cells = cells_of(configuration, self.split, self.fold, self.seed, row=self.row)
        return Job(configuration, self.split, self.fold, self.seed, cells[0].identity, cells)

    def only(self, wanted: Sequence[Cell]) -> Job:
        """The same training with some of its cells."""
        keep = {cell.identity for cell in wanted}
        return dataclasses.replace(self, cells=tuple(cell for cell in self.cells if cell.identity in keep))


def jobs(
    configuration: Configuration,
    folds: Sequence[Split],
    seeds: Sequence[int],
    *,
    only_folds: Sequence[int] | None = None,
) -> Iterator[Job]:
    """Every training of a configuration with its cells.

    Parameters
    ----------
    folds : all folds of the split
    seeds : of the trainings
    only_folds : indices of folds to run; all by default
    """
    for fold, split in enumerate(folds):
        if only_folds is not None and fold not in only_folds:
            continue
        for seed in seeds:
            cells = cells_of(configuration, split, fold, seed)
            yield Job(configuration, split, fold, seed, cells[0].identity, cells)


def cells_of(configuration: Configuration, split: Split, fold: int, seed: int, *, row: str = "") -> tuple[Cell, ...]:
    """The cells of one training, in an order in which they can be computed.

    Parameters
    ----------
    row : id of the leaderboard's configuration, if it is not this one (see
        :attr:`Job.row`); in no identity
    """
    row = row or configuration.id
    task = restored(configuration)
    described = configuration.task
    trained = {
        "stage": "train",
        "task_version": described["version"],
        **{part: described[part] for part in ("view", "model")},
        "recipe": _recipe(task, described["recipe"]),
        "split": dataclasses.asdict(split),
        "seed": seed,
        "cohort": configuration.fingerprint,
    }
    train = Cell(
        "train",
        identify({**trained, "code": digest("train", task)}),
        identify(trained),
        row,
        fold,
        seed,
    )

    def below(parent: Cell, stage: Stage, label: str, **what: JSON) -> Cell:
        code = digest(stage, task, label)
        identity = identify({"stage": stage, "parent": parent.identity, "code": code, **what})
        body = identify({"stage": stage, "parent": parent.body, **what})
        return Cell(stage, identity, body, row, fold, seed, label, parent.identity)

    metrics = {"metrics": described["metrics"], "regional": described["regional"]}
    cells = [train, below(train, "score", "", **metrics)]
    for label in attributions_of(task):
        processed = {key: described[key] for key in ("postprocessing",) if key in described}
        explained = below(train, "explain", label, attribution=described["attributions"][label], **processed)
        cells.append(explained)
        if not is_grouped(task):  # else maps are judged as a sum over folds, which is pooling
            cells.append(below(explained, "score", label, **metrics))
    return tuple(cells)


def attributions_of(task: Task) -> dict[str, Component]:
    """The attributions that can explain the task's model: some need what only some models have."""
    model = MODELS.get(MODELS.name_of(task.model.func)).facts
    return {
        label: part
        for label, part in task.attributions.items()
        if all(model.get(need) for need in ATTRIBUTIONS.get(ATTRIBUTIONS.name_of(part.func)).facts.get("needs", ()))
    }


def is_grouped(task: Task) -> bool:
    """Whether explanations are judged as their sum over subjects."""
    view: View = task.view()
    return view.grouped


def _recipe(task: Task, described: JSON) -> JSON:
    """What of a recipe a training depends on: a model that fits itself has no epochs."""
    fitted = MODELS.get(MODELS.name_of(task.model.func)).facts.get("fitted")
    return {"threads": described["threads"]} if fitted else described


def missing(job: Job, store: Store) -> Job | None:
    """The part of a job that the store does not hold, or ``None``."""
    wanted = [cell for cell in job.cells if store.get(cell.stage, cell.identity) is None]
    return job.only(wanted) if wanted else None


def digest(stage: str, task: Task, label: str = "") -> str:
    """Digest of the code that a stage of a task runs."""
    parts = {
        "train": (task.view, task.model, task.recipe),
        "explain": tuple(part for part in (task.attributions.get(label), task.postprocessing) if part is not None),
        "score": tuple(task.metrics.values()),
        "pool": tuple(task.metrics.values()),
    }[stage]
    return _digest((*_STAGE_MODULES[stage], *modules_of(*parts)))


@cache
def _digest(modules: tuple[str, ...]) -> str:
    # What joins the parts and writes their files is of every stage, but what it imports is not.
    return identify([code_digest(modules), module_digest("harness.pipeline.job")])


_known: dict[str, Task] = {}


def restored(configuration: Configuration) -> Task:
    """The task of a configuration, built once per process."""
    key = identify(configuration.task)
    if key not in _known:
        _known[key] = restore(configuration.task)
    return _known[key]


def hardware() -> dict[str, JSON]:
    """What this process runs on, for the record."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__, "gpu": gpu}
