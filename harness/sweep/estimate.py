"""What a run will cost, from one batch of one configuration of each kind."""

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
from harness.pipeline.networks import build_network, device, split_outputs
from harness.pipeline.train import controlled
from harness.recipes.recipe import Batch
from harness.sweep.plan import Plan
from harness.tuning.resources import Resources, resources, room

__all__ = ["Estimate", "estimate"]

_FITTED = 40  # training samples by which an adapter is fitted for the probe
_PROBED = 2  # items; time is taken to grow with their number


@dataclass(frozen=True)
class Estimate:
    """What a run will cost.

    Parameters
    ----------
    configurations, trainings : asked for
    cells : missing
    done : cells that are there
    seconds : wall time of the missing trainings and their predictions, spread
        over the workers; a step takes as long there as it took here
    memory_bytes : of one worker's network, gradients, optimiser and images
    disk_bytes : that missing cells will take
    workers : jobs at a time
    of_training : seconds of each missing training, with what is below it, by its identity
    where : the machine or cluster that has so many workers
    unknown : why some could not be probed (their cells will say it again), empty if all could
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
        """The time in words."""
        for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
            if self.seconds >= 2 * size:
                return f"{self.seconds / size:.1f} {unit}"
        return f"{self.seconds:.0f} seconds"


@dataclass(frozen=True)
class _Cost:
    """What one item costs: seconds, parameters, bytes, how often an epoch uses it; and whether items are slices.

    ``sums`` is how many maps an attribution keeps of a fold if it sums them, else 0: it keeps one of each item.
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
    One step of two items is timed for each kind of network; attributions are
    counted as four passes each, scores as nothing, and what cannot run as
    nothing. The true time is within a factor of about two on a quiet machine.
    """
    todo = plan.missing()
    cells = [cell for job in plan.jobs for cell in job.cells]
    missing = sum(len(job.cells) for job in todo)
    costs: dict[str, _Cost | None] = {}
    searches: dict[str, float] = {}  # several trainings may share one
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
            except Exception as error:  # a broken model is its cells' failure, not the plan's
                costs[key], unknown = None, f"{type(error).__name__}: {error}"
        one = costs[key]
        if one is None:
            continue
        # What is below a training may be missing without it, in a job for each attribution.
        seconds[job.train] = seconds.get(job.train, 0.0) + _seconds(job, one, samples)
        searches |= {job.search: _search_seconds(job, one, samples)} if job.search else {}
        disk += _disk(job, one, samples)
        memory = max(memory, _memory(job, one, samples))
    # Where nothing is to be done, no cluster needs to be there.
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
    """Time one step and one prediction; the second of two, as the first warms up."""
    task = restored(job.configuration)
    own = {one.id: one for one in cohort.samples}
    adapter: Adapter = task.adapter()
    spec = adapter.spec(cohort)
    if isinstance(adapter, FittedAdapter):
        # What an adapter learns changes no time; a few subjects stand for all.
        adapter = adapter.fit([own[name] for name in job.split.train[:_FITTED]], spec.targets)
    recipe = task.recipe()
    inputs, targets = adapter.inputs(sample), adapter.targets(sample, spec.targets)
    item_bytes = sum(one[0].nbytes for one in (*inputs, *targets.values()))
    sums = 0 if any(one.mapped for one in task.explained.values()) else BLOCKS * len(spec.targets)
    slices = len(inputs[0]) > 1
    batch = Batch(
        tuple(torch.from_numpy(one[:_PROBED]) for one in inputs),
        {name: torch.from_numpy(one[:_PROBED]) for name, one in targets.items()},
    )
    with controlled(recipe.threads, 0):
        network = build_network(task, spec).to(device())
        if isinstance(network, Fitted):  # seconds, and no step to be timed
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
    """One candidate of a search, as if none were stopped and it trained on the whole fold."""
    alone = job.only([cell for cell in job.cells if cell.stage == "train"])
    return _seconds(alone, cost, samples)


def _memory(job: Job, cost: _Cost, samples: Mapping[str, Sample]) -> float:
    items = _items((*job.split.train, *job.split.validation), samples, cost)
    images = min(items * cost.item_bytes, float(HELD_BYTES))  # what takes more is not held in memory
    return 4.0 * 4 * cost.parameters + images  # weights, gradients, two moments


def _disk(job: Job, cost: _Cost, samples: Mapping[str, Sample]) -> float:
    items = _items(job.evaluated, samples, cost)
    explained = sum(cell.stage == "explain" for cell in job.cells)
    # Sums of maps are kept in half precision; where there are slices, predictions are images.
    kept = cost.sums / 2 if cost.sums else items
    predicted = 0.2 * items if cost.slices else 0.0
    training = 4.0 * cost.parameters + predicted * cost.item_bytes if job.cells[0].stage == "train" else 0.0
    return training + explained * kept * cost.item_bytes


def _items(names: Sequence[str], samples: Mapping[str, Sample], cost: _Cost) -> float:
    """Slices of some samples, or the samples themselves."""
    return float(np.sum([samples[name].shape[-1] if cost.slices else 1 for name in names]))
