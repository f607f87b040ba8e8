"""Estimate the cost of a run by timing one batch for each kind of configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from harness.core.identity import identify
from harness.core.types import Sample
from harness.pipeline.cell import Job, restored
from harness.pipeline.items import HELD_BYTES
from harness.sweep.plan import Plan
from harness.sweep.probe import Cost, ProbeError, measure
from harness.tuning.resources import Resources, resources, room

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a run.

    Parameters
    ----------
    configurations, trainings : number requested
    cells : number of missing cells
    done : number of finished cells
    seconds : wall time of the missing trainings and their dependent cells, divided
        by the number of workers; a step is assumed to take as long there as here
    memory_bytes : memory of one worker: network, gradients, optimiser and images
    disk_bytes : disk space of the missing cells
    workers : number of jobs that run at the same time
    of_training : seconds of each missing training and its dependent cells, by its identity
    where : machine or cluster on which the workers run
    unknown : why configurations could not be timed, empty if all could; their time is not
        included
    """

    configurations: int
    trainings: int
    cells: int
    done: int
    seconds: float
    memory_bytes: float
    disk_bytes: float
    workers: int
    of_training: Mapping[str, float]
    unknown: str = ""
    where: str = "this machine"

    @property
    def time_text(self) -> str:
        """The time as text, with a unit."""
        if self.unknown and not self.seconds:
            return "an unknown time"
        for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
            if self.seconds >= 2 * size:
                return f"{self.seconds / size:.1f} {unit}"
        return f"{self.seconds:.0f} seconds"


def estimate(plan: Plan, say: Callable[[str], None] = lambda _: None) -> Estimate:
    """Estimate the missing cells of a plan.

    Parameters
    ----------
    plan : the plan
    say : called with a message if the timing of a network takes longer than a few seconds

    Notes
    -----
    One step with two items is timed for each kind of network, in a separate process (see
    :mod:`harness.sweep.probe`). An attribution counts as four training steps per item;
    scores, and networks that cannot be timed, count as zero. The true time is within a
    factor of about two on an otherwise idle machine.
    """
    todo = plan.missing()
    cells = [cell for job in plan.jobs for cell in job.cells]
    missing = sum(len(job.cells) for job in todo)
    costs: dict[str, Cost | None] = {}
    searches: dict[str, float] = {}  # several trainings may share a search
    unknown: list[str] = []
    seconds: dict[str, float] = {}
    memory, disk = 0.0, 0.0
    for job in todo:
        if job.is_ensemble:  # a few predictions
            continue
        group = plan.groups[job.configuration.id]
        samples = {sample.id: sample for sample in group.cohort.samples}
        described = job.configuration.task
        key = identify([described["model"], described["recipe"], described["adapter"], job.configuration.fingerprint])
        if key not in costs:
            try:
                costs[key] = measure(job, group.path, say)
            except Exception as error:  # a broken model fails in its cells; the plan goes on
                costs[key] = None
                unknown.append(str(error) if isinstance(error, ProbeError) else f"{type(error).__name__}: {error}")
        one = costs[key]
        if one is None:
            continue
        # Where the training is done, each missing explanation is a job with the same training.
        seconds[job.train] = seconds.get(job.train, 0.0) + _seconds(job, one, samples)
        searches |= {job.search: _search_seconds(job, one, samples)} if job.search else {}
        disk += _disk(job, one, samples)
        memory = max(memory, _memory(job, one, samples))
    # If nothing is missing, the cluster does not have to be reachable.
    there = resources(plan.request.settings) if todo else Resources(1, 0, "this machine")
    # Explanations of few trainings are jobs of their own (harness.sweep.run).
    jobs = sum(max(1, len({cell.label for cell in job.cells if cell.label})) for job in todo)
    workers = min(room(there, plan.request.settings), max(1, jobs))
    return Estimate(
        configurations=len(plan.configurations),
        trainings=sum(not job.is_ensemble for job in plan.jobs),
        cells=missing,
        done=len(cells) - missing,
        seconds=(sum(seconds.values()) + plan.request.settings.trials * sum(searches.values())) / workers,
        memory_bytes=memory,
        disk_bytes=disk,
        workers=workers,
        of_training=seconds,
        unknown="; ".join(dict.fromkeys(unknown)),
        where=there.where,
    )


def _seconds(job: Job, cost: Cost, samples: Mapping[str, Sample]) -> float:
    recipe = restored(job.configuration).recipe()
    total = 0.0
    test = _items(job.evaluated, samples, cost)
    if job.cells[0].stage == "train":
        train, validation = _items(job.split.train, samples, cost), _items(job.split.validation, samples, cost)
        epoch = train * cost.share * cost.train_s + validation * cost.infer_s
        training = len(job.split.train) * cost.fit_s if cost.fit_s else recipe.epochs * epoch
        total += training + test * cost.infer_s
    explained = sum(cell.stage == "explain" for cell in job.cells)
    return total + explained * test * 4 * cost.train_s


def _search_seconds(job: Job, cost: Cost, samples: Mapping[str, Sample]) -> float:
    """Seconds of one candidate of a search, if it is not stopped early and trains on the whole fold."""
    alone = job.only([cell for cell in job.cells if cell.stage == "train"])
    return _seconds(alone, cost, samples)


def _memory(job: Job, cost: Cost, samples: Mapping[str, Sample]) -> float:
    items = _items((*job.split.train, *job.split.validation), samples, cost)
    images = min(items * cost.item_bytes, float(HELD_BYTES))  # larger data sets are not held in memory
    return 4.0 * 4 * cost.parameters + images  # weights, gradients, two moments


def _disk(job: Job, cost: Cost, samples: Mapping[str, Sample]) -> float:
    items = _items(job.evaluated, samples, cost)
    known = restored(job.configuration).explained
    explained = [known[cell.label] for cell in job.cells if cell.stage == "explain"]
    # Sums of maps are stored in half precision; predictions of slices are images.
    kept = sum(items * one.mapped + cost.sums / 2 * one.summed for one in explained)
    predicted = 0.2 * items if cost.slices else 0.0
    training = 4.0 * cost.parameters + predicted * cost.item_bytes if job.cells[0].stage == "train" else 0.0
    return training + kept * cost.item_bytes


def _items(names: Sequence[str], samples: Mapping[str, Sample], cost: Cost) -> float:
    """Number of items of some samples: of their slices, or of the samples themselves."""
    return float(np.sum([samples[name].shape[-1] if cost.slices else 1 for name in names]))
