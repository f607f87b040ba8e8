"""Run the cells of a job in this process, independently of Ray."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from harness.core.errors import CellError, StoreError, first_line
from harness.core.explanations import Explanation
from harness.core.seeding import seed_of
from harness.core.targets import KINDS
from harness.core.task import Task
from harness.core.types import JSON, Adapter, Array, Cohort, FittedAdapter, NetworkSpec, Prediction, Sample
from harness.data.grids import TrainingGrid
from harness.data.maps import read_maps, write_sums
from harness.data.splits import check_leaks
from harness.pipeline.artifacts import (
    EXAMPLES,
    as_stored,
    read_arrays,
    read_numbers,
    read_predictions,
    read_spec,
    spec_json,
    write_arrays,
    write_maps,
    write_numbers,
    write_parts,
    write_predictions,
    write_values,
)
from harness.pipeline.cell import Cell, Job, cells_by_this_code, hardware, is_done, restored
from harness.pipeline.explain import (
    Explained,
    Shared,
    blocks_of,
    check_one_grid,
    choose_samples,
    chosen_target,
    explain,
    method_of,
    uses_predictions,
)
from harness.pipeline.initial_weights import initialised
from harness.pipeline.networks import MARGIN, Member, build_network, device
from harness.pipeline.predict import predict
from harness.pipeline.probe import Sizes, probe_sample
from harness.pipeline.score import Values, collapse_flags, score_map, score_prediction
from harness.pipeline.train import controlled, train
from harness.storage.store import TRACEBACK, CellRecord, Store, write_json, write_record

__all__ = ["Emit", "Limit", "execute", "load_member", "unlimited"]

_WEIGHTS, _STATE, _SUMS = "weights.safetensors", "adapter.npz", "blocks.npz"

Emit = Callable[[Path], None]
Limit = Callable[[Cell], contextlib.AbstractContextManager[None]]
"""Limits the time of a cell; raises an error if the cell took too long."""


def unlimited(cell: Cell) -> contextlib.AbstractContextManager[None]:
    """No limit of the time of a cell."""
    return contextlib.nullcontext()


def execute(job: Job, cohort: Cohort, store: Store, emit: Emit, *, limit: Limit = unlimited) -> None:
    """Compute the cells of a job, in order.

    Parameters
    ----------
    job : the job
    cohort : cohort of its configuration
    store : store from which results of earlier stages are read; nothing is written to it
    emit : called with the completed folder of each cell, done or failed; must copy the
        folder before it returns
    limit : context manager in which each cell is computed

    Notes
    -----
    A cell that fails is emitted as failed with its first error line. Cells that depend on
    it are not run and stay missing.
    """
    work = _Work(job, cohort, store, limit)
    for cell in job.cells:
        if is_done(cell, store):
            continue  # computed before a worker died
        if work.broken.intersection(cell.parents):
            work.broken.add(cell.identity)
            continue
        with tempfile.TemporaryDirectory(prefix="harness-cell-") as name:
            folder = Path(name)
            record = work.run(cell, folder)
            write_record(folder, record)
            emit(folder)


def load_member(task: Task, store: Store, record: CellRecord) -> tuple[Member, NetworkSpec]:
    """Load a trained network with its adapter, and its specification.

    Parameters
    ----------
    task : task with the options of the training
    store : the store
    record : record of the training
    """
    spec = read_spec(record.facts["spec"])
    adapter: Adapter = task.adapter()
    if record.facts["adapter_state"] and isinstance(adapter, FittedAdapter):
        adapter = adapter.load_state(read_arrays(store.artifact(record, _STATE)))
    return Member(_network(task, spec, store.artifact(record, _WEIGHTS)), adapter), spec


def _network(task: Task, spec: NetworkSpec, weights: Path) -> torch.nn.Module:
    network = build_network(task, spec)
    network.load_state_dict(safetensors.torch.load_file(weights))
    return network.to(device()).eval()


@dataclass
class _Work:
    """State shared by the cells of a running job."""

    job: Job
    cohort: Cohort
    store: Store
    limit: Limit = unlimited
    broken: set[str] = field(default_factory=set)
    trained: dict[str, Member] = field(default_factory=dict)
    predicted: dict[str, Mapping[str, Prediction]] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=dict)
    maps: dict[str, dict[str, Explained]] = field(default_factory=dict)
    shared: dict[str, Shared] = field(default_factory=dict)

    def run(self, cell: Cell, folder: Path) -> CellRecord:
        """Compute one cell into a folder."""
        started = time.perf_counter()
        facts: dict[str, JSON] = {}
        error = ""
        stages = {
            "train": self._train,
            "predict": self._predict,
            "explain": self._explain,
            "score": self._score,
            "probe": self._probe,
        }
        try:
            self._refuse_other_code(cell)
            with self.limit(cell), controlled(self.recipe_threads, seed_of(self.job.seed, cell.stage)):
                facts = stages[cell.stage](cell, folder)
        except Exception as problem:  # the cell is recorded as failed
            error = first_line(problem, where=True)
            self.broken.add(cell.identity)
            for path in folder.iterdir():
                path.unlink()
            (folder / TRACEBACK).write_text(traceback.format_exc(), "utf-8", "backslashreplace")
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
            code=cell.code,
            parents=cell.parents,
            group=cell.group,
            metrics=dict(cell.metrics),
        )

    @cached_property
    def task(self) -> Task:
        return restored(self.job.configuration)

    @cached_property
    def spec(self) -> NetworkSpec:
        adapter: Adapter = self.task.adapter()
        return adapter.spec(self.cohort)

    @cached_property
    def recipe_threads(self) -> int:
        return int(self.task.recipe().threads)

    @cached_property
    def samples(self) -> Mapping[str, Sample]:
        return {sample.id: sample for sample in self.cohort.samples}

    @property
    def evaluated(self) -> list[Sample]:
        return [self.samples[name] for name in self.job.evaluated]

    @cached_property
    def ours(self) -> tuple[set[str], set[str]]:
        """Identities of the job's cells and metrics, from the code of this process."""
        cells = cells_by_this_code(self.job, self.cohort)
        return {cell.identity for cell in cells}, {identity for cell in cells for _, identity in cell.metrics}

    def _refuse_other_code(self, cell: Cell) -> None:
        cells, metrics = self.ours
        if cell.metrics and {identity for _, identity in cell.metrics} <= metrics:
            return
        if cell.identity not in cells:
            raise CellError(
                "this worker runs another version of the code than the driver; install the same version on every node"
            )

    def _train(self, cell: Cell, folder: Path) -> dict[str, JSON]:
        split = self.job.split
        check_leaks(split, {sample.id: sample.subject for sample in self.cohort.samples})
        trained = train(
            lambda: initialised(self.task, self.spec, self.job.configuration.task),
            self.task.recipe(),
            self.task.adapter(),
            self.spec,
            [self.samples[name] for name in split.train],
            [self.samples[name] for name in split.validation],
            seed=self.job.seed,
        )
        safetensors.torch.save_file(trained.weights, folder / _WEIGHTS)
        state = trained.adapter.state if isinstance(trained.adapter, FittedAdapter) else {}
        if state:
            write_arrays(folder / _STATE, state)
        network = _network(self.task, self.spec, folder / _WEIGHTS)
        self.trained[cell.identity] = Member(network, trained.adapter)
        history = [
            {"epoch": e.epoch, "loss": e.loss, "validation": None if math.isnan(e.validation) else e.validation}
            for e in trained.history
        ]
        write_json(folder / "history.json", history)
        write_json(folder / "split.json", {"train": split.train, "validation": split.validation, "test": split.test})
        return {
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "adapter_state": bool(state),
            "best_epoch": trained.best_epoch,
            "epochs": len(history),
            "spec": spec_json(self.spec),
            "grid": TrainingGrid.of([self.samples[name] for name in split.train]).to_json(),
        }

    def _predict(self, cell: Cell, folder: Path) -> dict[str, JSON]:
        batch_size = self.task.recipe().batch_size
        predictions: dict[str, Prediction] = {}
        for sample in self.evaluated:
            made = predict(self._members, self.spec, sample, batch_size=batch_size)
            _check_finite(sample, made)
            predictions[sample.id] = as_stored(made)  # the only copy that is held
        write_predictions(folder, predictions)
        self.predicted[cell.identity] = predictions
        return {"samples": list(predictions), "networks": len(self._members)}

    def _explain(self, cell: Cell, folder: Path) -> dict[str, JSON]:
        explanation = self.task.explained[cell.label]
        samples = self._chosen(cell, explanation)
        if not samples:
            raise CellError(
                f"no sample fits samples={explanation.samples} of {len(self.job.evaluated)}; "
                f"set explanations.{cell.label}.samples=tested, or train longer"
            )
        if explanation.summed:
            check_one_grid(self.cohort.samples)  # sums of all folds are added
        # Maps are large: only those of the last explanation are held, and only if other cells need them.
        found: dict[str, Explained] = {}
        self.maps = {cell.identity: found}
        is_needed = any(cell.identity in one.parents for one in self.job.cells)
        shared = self._shared(cell, explanation)
        sums: list[Array] = []
        numbers: dict[str, Mapping[str, Sequence[float]]] = {}
        parts: dict[str, Mapping[str, Array]] = {}
        shown = sorted(sample.id for sample in samples)[:EXAMPLES]
        outputs: tuple[str, ...] = ()
        flat = True
        for block in blocks_of([sample.subject for sample in samples]):
            total: Array | None = None
            for sample in (samples[index] for index in block):
                one = self._explained(cell, explanation, sample, shared)
                numbers |= {sample.id: one.numbers} if one.numbers else {}
                parts |= {sample.id: one.parts} if one.parts and sample.id in shown else {}
                outputs, flat = one.outputs, flat and not np.any(one.maps != one.maps.flat[0])
                if explanation.mapped:
                    write_maps(folder, sample, one.outputs, one.maps)
                    found |= {sample.id: one} if is_needed else {}
                if explanation.summed:
                    total = one.maps.astype(np.float64) if total is None else total + one.maps
            if total is not None:
                sums.append(total)
        if explanation.summed:
            stacked = np.stack(sums).astype(np.float32)
            flat = not np.any(stacked != stacked.flat[0])
            write_sums(folder / _SUMS, stacked)
        if numbers:
            write_numbers(folder, numbers)
        if parts:
            write_parts(folder, outputs, parts)
        return {
            "channels": list(self._channels(explanation)),
            "outputs": list(outputs),
            "samples": [sample.id for sample in samples],
            "flags": ["flat map"] if flat else [],
        }

    def _score(self, cell: Cell, folder: Path) -> dict[str, JSON]:
        labels, values = [label for label, _ in cell.metrics], Values()
        flags: list[str] = []
        if cell.label:
            predictions = self._predictions(cell.parents[1])
            for sample, one in self._maps(cell.parents[0]):
                score_map(
                    self.task, self.spec, sample, one, predictions[sample.id], labels, values,
                    channels=self._channels(self.task.explained[cell.label]), seed=cell.seed,
                )  # fmt: skip
        else:
            predictions = self._predictions(cell.parents[0])
            for sample in self.evaluated:
                score_prediction(
                    self.task, self.spec, sample, predictions[sample.id], labels, values,
                    seed=cell.seed, regions=self.cohort.regions,
                )  # fmt: skip
            flags = collapse_flags(self.spec, self.evaluated, predictions)
        self._write_values(folder, cell, values)
        return {"flags": flags}

    def _probe(self, cell: Cell, folder: Path) -> dict[str, JSON]:
        explanation = self.task.explained[cell.label]
        predictions, values = self._predictions(cell.parents[1]), Values()
        for sample, one in self._maps(cell.parents[0]):
            probe_sample(
                self.task, self.spec, self._members, sample, explanation, one, predictions[sample.id],
                [label for label, _ in cell.metrics], values,
                channels=self._channels(explanation), seed=cell.seed,
                batch_size=self.task.recipe().batch_size, classes=self._classes(predictions[sample.id]),
                sizes=self.sizes,
            )  # fmt: skip
        self._write_values(folder, cell, values)
        return {}

    def _write_values(self, folder: Path, cell: Cell, values: Values) -> None:
        """Write values by the identity of each metric; metrics that apply to no sample have none."""
        empty: dict[str, JSON] = {"values": {}, "chance": {}}
        write_values(
            folder, {identity: values.get(label, {"label": label, **empty}) for label, identity in cell.metrics}
        )

    def _chosen(self, cell: Cell, explanation: Explanation) -> list[Sample]:
        if chosen_target(explanation, self.spec) is None:
            return self.evaluated
        return choose_samples(explanation, self.spec, self.evaluated, self._predictions(cell.parents[-1]))

    def _shared(self, cell: Cell, explanation: Explanation) -> Shared | None:
        """Maps that later explanations of the job by the same method use, or that earlier ones kept."""
        method = method_of(explanation)
        later = self.job.cells[self.job.cells.index(cell) + 1 :]
        found = self.shared.pop(method, None)
        if any(one.stage == "explain" and method_of(self.task.explained[one.label]) == method for one in later):
            found = found or Shared()
            self.shared[method] = found
        return found

    def _explained(self, cell: Cell, explanation: Explanation, sample: Sample, shared: Shared | None) -> Explained:
        classes = {}
        if uses_predictions(explanation, self.spec):
            classes = self._classes(self._predictions(cell.parents[-1])[sample.id])
        return explain(self._members, self.spec, sample, explanation, seed=cell.seed, classes=classes, shared=shared)

    def _classes(self, prediction: Prediction) -> dict[str, int]:
        """Predicted class of each target with named classes, and the second most probable one for its margin."""
        named = [target for target in self.spec.targets if target.classes]
        first = {one.name: KINDS[one.kind].predicted_class(prediction[one.name]) for one in named}
        return first | {one.name + MARGIN: KINDS[one.kind].runner_up(prediction[one.name]) for one in named}

    def _channels(self, explanation: Explanation) -> tuple[str, ...]:
        return self.spec.channels if explanation.combine == "none" else ("all",)

    @property
    def _members(self) -> Sequence[Member]:
        """Networks of the job, loaded from the store unless they were trained here."""
        for identity in self.job.trainings:
            if identity not in self.trained:
                record = self._record("train", identity)
                self.trained[identity] = load_member(self._task_of(record), self.store, record)[0]
        return [self.trained[identity] for identity in self.job.trainings]

    def _task_of(self, record: CellRecord) -> Task:
        """Task with which a network was trained; a search may have chosen different options for each fold."""
        try:
            return restored(self.store.configuration(record.identity))
        except StoreError:
            return self.task

    def _predictions(self, identity: str) -> Mapping[str, Prediction]:
        if identity not in self.predicted:
            self.predicted[identity] = read_predictions(self.store, self._record("predict", identity))
        return self.predicted[identity]

    def _maps(self, identity: str) -> Iterator[tuple[Sample, Explained]]:
        """Explained samples with their maps, from memory or, one at a time, from the store."""
        if identity in self.maps:
            found = self.maps[identity]
            yield from ((sample, found[sample.id]) for sample in self.evaluated if sample.id in found)
            return
        record = self._record("explain", identity)
        outputs, numbers = tuple(record.facts["outputs"]), read_numbers(self.store, record)
        for sample in self.evaluated:
            if sample.id in record.facts["samples"]:
                maps = [read_maps(self.store, record, [sample.id], output=output)[sample.id] for output in outputs]
                yield sample, Explained(outputs, np.stack(maps), numbers.get(sample.id, {}))

    def _record(self, stage: str, identity: str) -> CellRecord:
        record = self.store.get(stage, identity)
        if record is None:
            raise CellError(f"the {stage} cell {identity} that it needs is not in the store")
        return record


def _check_finite(sample: Sample, prediction: Prediction) -> None:
    for target, kept in prediction.items():
        if not all(np.isfinite(array).all() for array in kept.values()):
            raise CellError(f"the prediction of {target} for {sample.id} is not finite; try a smaller recipe.lr")
