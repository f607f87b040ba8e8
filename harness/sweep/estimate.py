"""Estimate the cost of a run by timing one batch for each kind of configuration."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from harness.core.identity import identify
from harness.core.seeding import generator
from harness.core.types import Adapter, Cohort, FittedAdapter, Sample
from harness.models.fitting import Fitted
from harness.pipeline.cell import Job, restored
from harness.pipeline.explain import BLOCKS
from harness.pipeline.items import HELD_BYTES
from harness.pipeline.networks import build_network, device, split_outputs, tensor_of
from harness.pipeline.train import controlled
from harness.recipes.recipe import Batch
from harness.sweep.plan import Plan
from harness.tuning.resources import Resources, resources, room

__all__ = ["Estimate", "estimate"]

_FITTED = 40  # training samples to which an adapter is fitted for the timing
_PROBED = 2  # items in the timed batch; time is assumed to be proportional to their number


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
    unknown : error of configurations that could not be timed (their cells will fail with
        it), empty if all could
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
        for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
            if self.seconds >= 2 * size:
                return f"{self.seconds / size:.1f} {unit}"
        return f"{self.seconds:.0f} seconds"


@dataclass(frozen=True)
class _Cost:
    """Cost of one item of a configuration.

    Parameters
    ----------
    train_s, infer_s : seconds of a training step and of a prediction, per item
    parameters : number of parameters of the network
    item_bytes : size of an item's inputs and targets
    share : items drawn per epoch, divided by the number of items
    slices : whether items are slices of a volume
    sums : number of sums of maps that an explanation keeps per fold, if it keeps sums
    """

    train_s: float
    infer_s: float
    parameters: int
    item_bytes: int
    share: float
    slices: bool
    sums: int


def estimate(plan: Plan) -> Estimate:
    """Estimate the missing cells of a plan.

    Notes
    -----
    One step with two items is timed for each kind of network. An attribution counts
    as four training steps per item; scores, and networks that cannot run, count as
    zero. The true time is within a factor of about two on an otherwise idle machine.
    """
    todo = plan.missing()
    cells = [cell for job in plan.jobs for cell in job.cells]
    missing = sum(len(job.cells) for job in todo)
    costs: dict[str, _Cost | None] = {}
    searches: dict[str, float] = {}  # several trainings may share a search
    unknown = ""
    seconds: dict[str, float] = {}
    memory, disk = 0.0, 0.0
    for job in todo:
        if job.is_ensemble:  # a few predictions
            continue
        cohort = plan.groups[job.configuration.id].cohort
        samples = {sample.id: sample for sample in cohort.samples}
        described = job.configuration.task
        key = identify([described["model"], described["recipe"], described["adapter"], job.configuration.fingerprint])
        if key not in costs:
            try:
                costs[key] = _probe(job, cohort, samples[job.split.train[0]])
            except Exception as error:  # a broken model fails in its cells; the plan goes on
                costs[key], unknown = None, f"{type(error).__name__}: {error}"
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
    workers = min(room(there, plan.request.settings), max(1, len(todo)))
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
        unknown=unknown,
        where=there.where,
    )


def _probe(job: Job, cohort: Cohort, sample: Sample) -> _Cost:
    """Time one training step and one prediction; the first of two steps is a warm-up."""
    task = restored(job.configuration)
    own = {one.id: one for one in cohort.samples}
    adapter: Adapter = task.adapter()
    spec = adapter.spec(cohort)
    if isinstance(adapter, FittedAdapter):
        # The fitted state does not affect the time, so a few subjects suffice.
        adapter = adapter.fit([own[name] for name in job.split.train[:_FITTED]], spec.targets)
    recipe = task.recipe()
    inputs, targets = adapter.inputs(sample), adapter.targets(sample, spec.targets)
    item_bytes = sum(one[0].nbytes for one in (*inputs, *targets.values()))
    sums = BLOCKS * len(spec.targets)
    slices = len(inputs[0]) > 1
    batch = Batch(
        tuple(tensor_of(one[:_PROBED]) for one in inputs),
        {name: tensor_of(one[:_PROBED]) for name, one in targets.items()},
    )
    with controlled(recipe.threads, 0):
        network = build_network(task, spec).to(device())
        if isinstance(network, Fitted):  # fitted in closed form within seconds: there is no step to time
            return _Cost(0.0, 0.0, item_bytes // 4 * spec.width, item_bytes, 0.0, slices=slices, sums=sums)
        optimiser = recipe.optimiser(list(network.parameters()))
        rng = generator(0, "probe")
        timed = []
        for _ in range(2):
            started = time.perf_counter()
            changed = recipe.augment(rng, batch).to(device())
            loss = recipe.loss(split_outputs(network(*changed.inputs), spec.targets), changed, spec.targets)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            loss.item()
            timed.append(time.perf_counter() - started)
        started = time.perf_counter()
        with torch.inference_mode():
            split_outputs(network(*batch.to(device()).inputs), spec.targets)
        inferred = time.perf_counter() - started
    parameters = sum(parameter.numel() for parameter in network.parameters())
    count, items = len(batch.inputs[0]), len(inputs[0])
    share = len(recipe.sample(generator(0, "probe"), targets)) / items
    return _Cost(timed[1] / count, inferred / count, parameters, item_bytes, share, slices, sums)


def _seconds(job: Job, cost: _Cost, samples: Mapping[str, Sample]) -> float:
    recipe = restored(job.configuration).recipe()
    total = 0.0
    test = _items(job.evaluated, samples, cost)
    if job.cells[0].stage == "train":
        train, validation = _items(job.split.train, samples, cost), _items(job.split.validation, samples, cost)
        epoch = train * cost.share * cost.train_s + validation * cost.infer_s
        total += recipe.epochs * epoch + test * cost.infer_s
    explained = sum(cell.stage == "explain" for cell in job.cells)
    return total + explained * test * 4 * cost.train_s


def _search_seconds(job: Job, cost: _Cost, samples: Mapping[str, Sample]) -> float:
    """Seconds of one candidate of a search, if it is not stopped early and trains on the whole fold."""
    alone = job.only([cell for cell in job.cells if cell.stage == "train"])
    return _seconds(alone, cost, samples)


def _memory(job: Job, cost: _Cost, samples: Mapping[str, Sample]) -> float:
    items = _items((*job.split.train, *job.split.validation), samples, cost)
    images = min(items * cost.item_bytes, float(HELD_BYTES))  # larger data sets are not held in memory
    return 4.0 * 4 * cost.parameters + images  # weights, gradients, two moments


def _disk(job: Job, cost: _Cost, samples: Mapping[str, Sample]) -> float:
    items = _items(job.evaluated, samples, cost)
    known = restored(job.configuration).explained
    explained = [known[cell.label] for cell in job.cells if cell.stage == "explain"]
    # Sums of maps are stored in half precision; predictions of slices are images.
    kept = sum(items * one.mapped + cost.sums / 2 * one.summed for one in explained)
    predicted = 0.2 * items if cost.slices else 0.0
    training = 4.0 * cost.parameters + predicted * cost.item_bytes if job.cells[0].stage == "train" else 0.0
    return training + kept * cost.item_bytes


def _items(names: Sequence[str], samples: Mapping[str, Sample], cost: _Cost) -> float:
    """Number of items of some samples: of their slices, or of the samples themselves."""
    return float(np.sum([samples[name].shape[-1] if cost.slices else 1 for name in names]))
