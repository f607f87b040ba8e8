"""Run the cells of a job in this process; nothing here knows of Ray."""

from __future__ import annotations

import inspect
import math
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from harness.core.errors import CellError
from harness.core.registry import OUTCOMES
from harness.core.seeding import seed_of
from harness.core.task import Task, describe_part
from harness.core.types import JSON, Array, Cohort, Sample, View
from harness.data.maps import map_name, read_maps, write_map, write_sums
from harness.data.splits import check_leaks
from harness.pipeline.cell import Cell, Job, cells_of, hardware, is_grouped, restored
from harness.pipeline.explain import explain, explain_group
from harness.pipeline.score import score_explanation, score_numbers, score_prediction
from harness.pipeline.train import Epoch, controlled, device, infer, train
from harness.storage.store import TRACEBACK, CellRecord, Store, write_json, write_record

__all__ = ["Emit", "build_network", "execute", "load_trained"]

_WEIGHTS, _LEARNED = "weights.safetensors", "view.npz"

Emit = Callable[[Path], None]
Progress = Callable[[Cell, Epoch], None]


def execute(job: Job, cohort: Cohort, store: Store, emit: Emit, *, progress: Progress | None = None) -> None:
    """Compute the cells of a job, in order.

    Parameters
    ----------
    job : what is wanted
    store : read only; artifacts of earlier stages are taken from there
    emit : is given a completed folder for each cell, done or failed, and must
        take it over before it returns
    progress : is told each epoch

    Notes
    -----
    A cell that fails is emitted as failed with its first error line; cells that
    need its result are not tried and stay missing.
    """
    work = _Work(job, cohort, store, progress)
    for cell in job.cells:
        if store.get(cell.stage, cell.identity) is not None:
            continue  # the first half of a job whose worker died
        if cell.parent in work.broken:
            work.broken.add(cell.identity)
            continue
        with tempfile.TemporaryDirectory(prefix="harness-cell-") as name:
            folder = Path(name)
            record = work.run(cell, folder)
            write_record(folder, record)
            emit(folder)


def build_network(task: Task, view: View) -> torch.nn.Module:
    """An untrained network of a task; weights come from torch's global stream.

    Parameters
    ----------
    view : of the cohort (:meth:`harness.core.types.View.of`)
    """
    asked = inspect.signature(task.model.func).parameters
    own = {name: value for name, value in _supplied(task, view).items() if name in asked}
    network: torch.nn.Module = task.model(len(view.channels), view.outputs, **own)
    return network


def _supplied(task: Task, view: View) -> dict[str, JSON]:
    """What models may ask for (:data:`harness.core.task.SUPPLIED`): the grid, and, oracles alone, what is hidden."""
    if task.outcome is None:
        return {"image_shape": view.shape}
    tells = OUTCOMES.get(OUTCOMES.name_of(task.outcome.func)).facts.get("tells")
    return {"image_shape": view.shape, **(tells(describe_part(OUTCOMES, task.outcome)) if tells else {})}


def load_trained(task: Task, view: View, store: Store, record: CellRecord) -> tuple[torch.nn.Module, View]:
    """A trained network in evaluation mode, and the view with what it learned of the training samples.

    Parameters
    ----------
    view : of a cohort
    record : of the training
    """
    learned: dict[str, Array] = {}
    if record.facts.get("view_learned"):
        learned = _load(store.artifact(record, _LEARNED))
    return _load_network(task, view, store.artifact(record, _WEIGHTS)), view.knowing(learned)


def _load_network(task: Task, view: View, weights: Path) -> torch.nn.Module:
    network = build_network(task, view)
    network.load_state_dict(safetensors.torch.load_file(weights))
    return network.to(device()).eval()


@dataclass
class _Work:
    """State while a job runs: what its cells share."""

    job: Job
    cohort: Cohort
    store: Store
    progress: Progress | None
    broken: set[str] = field(default_factory=set)
    trained: tuple[torch.nn.Module, View] | None = None
    predictions: dict[str, Array] = field(default_factory=dict)
    maps: dict[str, dict[str, Array]] = field(default_factory=dict)

    def run(self, cell: Cell, folder: Path) -> CellRecord:
        """Compute one cell into a folder."""
        started = time.perf_counter()
        facts: dict[str, JSON] = {}
        error = ""
        try:
            self._refuse_other_code(cell)
            with controlled(self.recipe_threads, seed_of(self.job.seed, cell.stage)):
                facts = {"train": self._train, "explain": self._explain, "score": self._score}[cell.stage](cell, folder)
        except Exception as problem:  # a broken cell stays broken, with its first error line
            error = _first_line(problem)
            self.broken.add(cell.identity)
            for path in folder.iterdir():
                path.unlink()
            (folder / TRACEBACK).write_text(traceback.format_exc())
        return CellRecord(
            identity=cell.identity,
            stage=cell.stage,
            state="failed" if error else "done",
            configuration=cell.configuration,
            fold=cell.fold,
            seed=cell.seed,
            label=cell.label,
            seconds=round(time.perf_counter() - started, 3),
            hardware=hardware(),
            facts=facts,
            error=error,
            body=cell.body,
        )

    @cached_property
    def task(self) -> Task:
        return restored(self.job.configuration)

    @cached_property
    def view(self) -> View:
        view: View = self.task.view()
        return view.of(self.cohort)

    @cached_property
    def recipe_threads(self) -> int:
        return int(self.task.recipe().threads)

    @cached_property
    def samples(self) -> Mapping[str, Sample]:
        return {sample.id: sample for sample in self.cohort.samples}

    def _refuse_other_code(self, cell: Cell) -> None:
        ours = {ours.identity for ours in cells_of(self.job.configuration, self.job.split, cell.fold, cell.seed)}
        if cell.identity not in ours:
            raise CellError(
                "this worker runs another version of the code than the driver; install the same version on every node"
            )

    def _train(self, cell: Cell, folder: Path) -> dict[str, JSON]:
        split = self.job.split
        check_leaks(split, {sample.id: sample.subject for sample in self.cohort.samples})
        recipe = self.task.recipe()
        trained = train(
            lambda: build_network(self.task, self.view),
            recipe,
            self.view,
            [self.samples[name] for name in split.train],
            [self.samples[name] for name in split.validation],
            seed=self.job.seed,
            report=None if self.progress is None else lambda epoch: self.progress(cell, epoch),  # type: ignore[misc]
        )
        safetensors.torch.save_file(trained.weights, folder / _WEIGHTS)
        if trained.view.learned:
            _save(folder / _LEARNED, trained.view.learned)
        network, view = self.trained = _load_network(self.task, self.view, folder / _WEIGHTS), trained.view
        for name in split.test:
            arrays = infer(network, view, self.samples[name], batch_size=recipe.batch_size)
            # Half precision holds a probability to 5e-4 and halves the store.
            self.predictions[name] = (
                arrays["scores"] if "scores" in arrays else arrays["probability"].astype(np.float16)
            )
        _save(folder / "predictions.npz", self.predictions)
        history = [
            {"epoch": e.epoch, "loss": e.loss, "validation": None if math.isnan(e.validation) else e.validation}
            for e in trained.history
        ]
        write_json(folder / "history.json", history)
        write_json(folder / "split.json", {"train": split.train, "validation": split.validation, "test": split.test})
        parameters = sum(parameter.numel() for parameter in network.parameters())
        return {
            "parameters": parameters,
            "view_learned": bool(view.learned),
            "best_epoch": trained.best_epoch,
            "epochs": len(history),
            "outputs": list(self.view.explained),
        }

    def _explain(self, cell: Cell, folder: Path) -> dict[str, JSON]:
        network, view = self._trained()
        if is_grouped(self.task):
            return self._explain_group(network, view, cell, folder)
        part, done = self.task.attributions[cell.label], self.task.postprocessing
        maps = {
            name: explain(network, view, self.samples[name], part, seed=cell.seed, postprocessing=done)[0]
            for name in self.job.split.test
        }
        for name, one in maps.items():
            if not np.isfinite(one).all():
                raise CellError(f"the {cell.label} map of {name} holds values that are not finite")
        for name, one in maps.items():
            write_map(folder / map_name(name), one, self.samples[name].affine, channels=self.view.channels)
        self.maps[cell.identity] = maps
        return {"channels": list(self.view.channels)}

    def _explain_group(self, network: torch.nn.Module, view: View, cell: Cell, folder: Path) -> dict[str, JSON]:
        samples = [self.samples[name] for name in self.job.split.test]
        part, done = self.task.attributions[cell.label], self.task.postprocessing
        sums = explain_group(network, view, samples, part, seed=cell.seed, postprocessing=done)
        if not np.isfinite(sums).all():
            raise CellError(f"the {cell.label} maps hold values that are not finite")
        write_sums(folder / "blocks.npz", sums)
        return {
            "channels": list(self.view.channels),
            "outputs": list(self.view.explained),
            "flags": [] if np.any(sums != sums.flat[0]) else ["flat map"],
        }

    def _score(self, cell: Cell, folder: Path) -> dict[str, JSON]:
        predictions = self.predictions or self._arrays("train", self.job.train, "predictions.npz")
        maps: Mapping[str, Array] = {}
        if cell.label:
            maps = self.maps.pop(cell.parent, {}) or self._maps(cell.parent)
        if is_grouped(self.task):
            samples = [self.samples[name] for name in self.job.split.test]
            names = self.view.explained
            numbers, flags = score_numbers(self.task, samples, predictions, names, seed=cell.seed)
            write_json(folder / "values.json", {key: one.to_json() for key, one in numbers.items()})
            return {"flags": flags}
        scored: dict[str, JSON] = {}
        for name in self.job.split.test:
            sample, probability = self.samples[name], predictions[name].astype(np.float32)
            if cell.label:
                one = score_explanation(
                    self.task, sample, probability, maps[name], channels=self.view.channels, seed=cell.seed
                )
            else:
                one = score_prediction(self.task, sample, probability, seed=cell.seed, regions=self.cohort.regions)
            scored[name] = one.to_json()
        write_json(folder / "values.json", scored)
        # One subject that is rightly free of lesions is no collapse; all of them are.
        return {"flags": sorted(set.intersection(*(set(one["flags"]) for one in scored.values())))}

    def _maps(self, identity: str) -> dict[str, Array]:
        record = self.store.get("explain", identity)
        if record is None:
            raise CellError("the explain cell it needs is not in the store")
        return read_maps(self.store, record)

    def _trained(self) -> tuple[torch.nn.Module, View]:
        if self.trained is None:
            record = self.store.get("train", self.job.train)
            if record is None:
                raise CellError("its training is not in the store")
            self.trained = load_trained(self.task, self.view, self.store, record)
        return self.trained

    def _arrays(self, stage: str, identity: str, name: str) -> dict[str, Array]:
        record = self.store.get(stage, identity)
        if record is None:
            raise CellError(f"the {stage} cell it needs is not in the store")
        return _load(self.store.artifact(record, name))


def _save(path: Path, arrays: Mapping[str, Array]) -> None:
    named: dict[str, Any] = dict(arrays)
    np.savez_compressed(path, **named)


def _load(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def _first_line(problem: BaseException) -> str:
    line = str(problem).strip().partition("\n")[0] or "no message"
    frames = traceback.extract_tb(problem.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(problem).__name__}: {line}{where}"
