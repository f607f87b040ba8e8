"""Cells and jobs: units of work, and their identities.

A *cell* is one unit of stored work: a training, its predictions, one explanation, or
values of metrics. Its parents are the cells whose results it needs. A *job* is the work
of one worker, as plain JSON: one training with its dependent cells, or the cells of an
ensemble, in which the networks of all folds are averaged on a fixed test set.
"""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from harness.core.explanations import Explanation
from harness.core.identity import code_digest, digest_of, identify, module_digest
from harness.core.registry import ADAPTERS, ATTRIBUTIONS, METRICS, MODELS, POSTPROCESSINGS, RECIPES
from harness.core.targets import KINDS
from harness.core.task import Component, Configuration, Task, restore
from harness.core.types import JSON, NUISANCE, TRUTH, Adapter, Cohort, Folds, NetworkSpec, Reads, Split
from harness.metrics.register import inputs_of
from harness.pipeline.artifacts import spec_json
from harness.pipeline.explain import chosen_target, uses_predictions
from harness.pipeline.networks import oracle_arguments
from harness.storage.store import CellRecord, Stage, Store

__all__ = [
    "ENSEMBLE",
    "Cell",
    "Job",
    "cells_by_this_code",
    "cells_of",
    "digest",
    "ensembles",
    "explanations_of",
    "failure_of",
    "hardware",
    "holds",
    "is_done",
    "jobs",
    "metric_identities",
    "missing",
    "covariates_of_metrics",
    "reads_of",
    "records_of",
    "restored",
]

ENSEMBLE = -1
"""Fold of cells that average the networks of all folds."""

# Entry points of each stage; all code that they reach, besides components, is part of the stage's digest.
_STAGE_CODE: Mapping[str, tuple[str, ...]] = {
    "train": ("harness.pipeline.train:train", "harness.pipeline.initial_weights:initialised"),
    "predict": ("harness.pipeline.predict:predict",),
    "explain": (
        "harness.pipeline.explain:explain",
        "harness.pipeline.explain:choose_samples",
        "harness.pipeline.explain:blocks_of",
    ),
    "probe": ("harness.pipeline.probe:probe_sample",),
    "score": (
        "harness.pipeline.score:score_prediction",
        "harness.pipeline.score:score_map",
        "harness.pipeline.score:collapse_flags",
    ),
    "pool": ("harness.pipeline.aggregate:pooled_value", "harness.pipeline.group_maps:group_values"),
}
# Modules that write the files of all stages. Their imports are not part of the digests.
_SHARED_MODULES = ("harness.pipeline.job", "harness.pipeline.artifacts")
# Inputs of metrics of explanations that come from the predictions.
_PREDICTED = frozenset[str]().union(*(kind.prediction_inputs for kind in KINDS.values() if not kind.of_sample))


@dataclass(frozen=True)
class Cell:
    """One unit of work.

    Parameters
    ----------
    stage : train, predict, explain, probe or score
    identity : hash of exactly what determines the result
    body : the identity without code digests, by which ``accept_code`` finds records of
        older code; empty for values of metrics, which are computed again
    configuration : id of the configuration
    fold : fold of the training, or :data:`ENSEMBLE`
    seed : seed of the training
    label : label of the explanation; empty for trainings, predictions and their scores
    parents : identities of the cells whose artifacts are needed, the direct parent first
    metrics : (label, identity) of each metric of a score or probe cell
    code : code digest in the identity; empty for values of metrics, each of which has
        its own
    """

    stage: Stage
    identity: str
    body: str
    configuration: str
    fold: int
    seed: int
    label: str = ""
    parents: tuple[str, ...] = ()
    metrics: tuple[tuple[str, str], ...] = ()
    code: str = ""

    @property
    def group(self) -> str:
        """Identity of the cell that a score or probe cell evaluates; empty for other stages."""
        return self.parents[0] if self.metrics else ""

    def only(self, wanted: Sequence[tuple[str, str]]) -> Cell:
        """A score or probe cell with some of the metrics."""
        metrics = tuple(one for one in self.metrics if one in wanted)
        return dataclasses.replace(self, metrics=metrics, identity=_values_identity(self.stage, self.parents, metrics))


@dataclass(frozen=True)
class Job:
    """One training and its dependent cells, or the cells of an ensemble.

    Parameters
    ----------
    configuration : the configuration, plain JSON that is sent to the worker
    split : sample ids of the fold; for an ensemble, only the fixed test set
    fold, seed : fold and seed of the training; the fold of ensembles is :data:`ENSEMBLE`
    trainings : identities of the trainings whose networks are used: one, or those of
        all folds
    cells : cells to compute, in order
    search : identity of the search that must end before the training; empty if there is
        none or it has ended
    """

    configuration: Configuration
    split: Split
    fold: int
    seed: int
    trainings: tuple[str, ...]
    cells: tuple[Cell, ...]
    search: str = ""

    @property
    def row(self) -> str:
        """Id of the leaderboard row.

        It differs from the id of ``configuration`` if a search has chosen values for
        this fold and seed.
        """
        return self.cells[0].configuration

    @property
    def train(self) -> str:
        """Identity of the training; for an ensemble, of the first one."""
        return self.trainings[0]

    @property
    def is_ensemble(self) -> bool:
        """Whether the networks of all folds are averaged."""
        return self.fold == ENSEMBLE

    @property
    def evaluated(self) -> tuple[str, ...]:
        """Ids of the samples that are predicted and explained."""
        return evaluated(self.split)

    def awaiting(self, search: str) -> Job:
        """The same job before its search has ended, with placeholder identities."""

        def unknown(identity: str) -> str:
            return identify({"search": search, "cell": identity}) if identity else ""

        cells = [
            dataclasses.replace(
                cell,
                identity=unknown(cell.identity),
                body=unknown(cell.body),
                parents=tuple(map(unknown, cell.parents)),
                metrics=tuple((label, unknown(identity)) for label, identity in cell.metrics),
            )
            for cell in self.cells
        ]
        trainings = tuple(map(unknown, self.trainings))
        return dataclasses.replace(self, trainings=trainings, cells=tuple(cells), search=search)

    def settled(self, configuration: Configuration, cohort: Cohort) -> Job:
        """The same job with the values that its search has chosen."""
        cells = cells_of(configuration, cohort, self.split, self.fold, self.seed, row=self.row)
        return Job(configuration, self.split, self.fold, self.seed, (cells[0].identity,), cells)

    def only(self, wanted: Sequence[Cell]) -> Job:
        """The same job with some of its cells."""
        return dataclasses.replace(self, cells=tuple(wanted))


def evaluated(split: Split) -> tuple[str, ...]:
    """Samples of a fold that are predicted and explained: its test set or, if empty, its validation set."""
    return split.test or split.validation


def jobs(
    configuration: Configuration,
    cohort: Cohort,
    folds: Folds,
    seeds: Sequence[int],
    *,
    only_folds: Sequence[int] | None = None,
) -> Iterator[Job]:
    """All trainings of a configuration with their cells.

    Parameters
    ----------
    configuration : the configuration
    cohort : cohort of the configuration
    folds : folds of the split
    seeds : seeds of the trainings
    only_folds : indices of the folds to run; all by default
    """
    for fold, split in enumerate(folds.folds):
        if only_folds is not None and fold not in only_folds:
            continue
        for seed in seeds:
            cells = cells_of(configuration, cohort, split, fold, seed)
            yield Job(configuration, split, fold, seed, (cells[0].identity,), cells)


def ensembles(trained: Sequence[Job], cohort: Cohort, test: Sequence[str]) -> Iterator[Job]:
    """The ensemble of each seed on the fixed test set, which needs the trainings of all folds.

    Parameters
    ----------
    trained : all trainings of one leaderboard row
    cohort : cohort of the configuration
    test : sample ids of the fixed test set; without any, there is no ensemble
    """
    if not test:
        return
    split = Split((), (), tuple(test))
    for seed in dict.fromkeys(job.seed for job in trained):
        members = [job for job in trained if job.seed == seed]
        trainings = [job.cells[0] for job in members]
        configuration = members[0].configuration
        cells = _below(configuration, cohort, split, ENSEMBLE, seed, trainings, row=members[0].row)
        yield Job(configuration, split, ENSEMBLE, seed, tuple(cell.identity for cell in trainings), cells)


def cells_of(
    configuration: Configuration, cohort: Cohort, split: Split, fold: int, seed: int, *, row: str = ""
) -> tuple[Cell, ...]:
    """Cells of one training, in an order in which they can be computed.

    Parameters
    ----------
    configuration : the configuration
    cohort : cohort of the configuration
    split : sample ids of the fold
    fold, seed : fold and seed of the training
    row : id of the leaderboard row, if it differs from that of the configuration (see
        :attr:`Job.row`); not part of any identity
    """
    row = row or configuration.id
    task, described = restored(configuration), configuration.task
    spec, reads = _bound(configuration, cohort)
    validation = split.validation if _validates(task) else ()
    trained = {
        "stage": "train",
        "task_version": described["version"],
        "adapter": described["adapter"],
        "model": configuration.model,
        "oracle": oracle_arguments(task),
        "recipe": _recipe(task, described["recipe"]),
        "spec": spec_json(spec),
        "split": {"train": split.train, "validation": validation},
        "seed": seed,
        "data": cohort.fingerprint(reads["train"], (*split.train, *validation)),
    }
    code = digest("train", task)
    train = Cell("train", identify({**trained, "code": code}), identify(trained), row, fold, seed, code=code)
    return (train, *_below(configuration, cohort, split, fold, seed, [train], row=row))


def cells_by_this_code(job: Job, cohort: Cohort) -> tuple[Cell, ...]:
    """All cells of a job's training or ensemble, with identities from the code of this process."""
    if not job.is_ensemble:
        return cells_of(job.configuration, cohort, job.split, job.fold, job.seed)
    trainings = [Cell("train", identity, "", job.row, job.fold, job.seed) for identity in job.trainings]
    return _below(job.configuration, cohort, job.split, job.fold, job.seed, trainings, row=job.row)


def _below(
    configuration: Configuration,
    cohort: Cohort,
    split: Split,
    fold: int,
    seed: int,
    trainings: Sequence[Cell],
    *,
    row: str,
) -> tuple[Cell, ...]:
    """Predictions, explanations and values of one network or of an ensemble."""
    task, described = restored(configuration), configuration.task
    ids = evaluated(split)
    spec, reads = _bound(configuration, cohort)
    parents = tuple(cell.identity for cell in trainings)

    def below(stage: Stage, label: str, parents: Sequence[Cell], **what: JSON) -> Cell:
        identity = {"stage": stage, "samples": ids, **what}
        code = digest(stage, task, label)
        return Cell(
            stage,
            identify({**identity, "parents": [one.identity for one in parents], "code": code}),
            identify({**identity, "parents": [one.body for one in parents]}),
            row,
            fold,
            seed,
            label,
            tuple(one.identity for one in parents),
            code=code,
        )

    def values(stage: Stage, label: str, over: Cell, level: str, more: Sequence[str] = ()) -> list[Cell]:
        data = cohort.fingerprint(reads["probe" if stage == "probe" else "score"], ids)
        metrics = metric_identities(task, described, level, over.identity, data, predictions=predict.identity)
        needed = (over.identity, *more)
        made = Cell(stage, _values_identity(stage, needed, metrics), "", row, fold, seed, label, needed, metrics)
        return [made] if metrics else []

    predict = below("predict", "", trainings, data=cohort.fingerprint(reads["predict"], ids))
    cells = [predict, *values("score", "", predict, "subject")]
    for label in explanations_of(task):
        explanation = task.explained[label]
        chooses = chosen_target(explanation, spec) is not None
        explain = below(
            "explain",
            label,
            [*trainings, predict] if uses_predictions(explanation, spec) else trainings,
            attribution=described["attributions"][label],
            explanation=_stored(explanation, described["explanations"][label]),
            postprocessing=described.get("postprocessing"),
            data=cohort.fingerprint(_reads_of_maps(reads["choose" if chooses else "explain"], explanation), ids),
        )
        cells.append(explain)
        if not explanation.judged_as_sum:
            cells += values("score", label, explain, "explanation", (predict.identity,))
        if explanation.mapped:
            cells += values("probe", label, explain, "probe", (predict.identity, *parents))
    return tuple(cells)


def _stored(explanation: Explanation, described: JSON) -> JSON:
    """The fields of an explanation that determine its maps, and what is stored of them; not what is judged."""
    kept = [name for name, wanted in (("maps", explanation.mapped), ("sums", explanation.summed)) if wanted]
    return {**{name: value for name, value in described.items() if name != "judged"}, "keep": "+".join(kept)}


def metric_identities(
    task: Task, described: Mapping[str, JSON], level: str, parent: str, data: str, *, predictions: str = ""
) -> tuple[tuple[str, str], ...]:
    """(label, identity) of every metric of one level.

    The identity of a metric depends on its options, its code, the cell that it evaluates
    and the data that it reads, but not on other metrics.

    Parameters
    ----------
    task : the task
    described : the task as JSON
    parent : identity of the cell or other result that is evaluated
    data : fingerprint of the samples
    predictions : identity of the predictions, for metrics of explanations that read them
    """
    found = []
    for label, component in task.metrics.items():
        if METRICS.get(METRICS.name_of(component.func)).facts["level"] == level:
            what = {
                "metric": described["metrics"][label],
                "regional": label in described["regional"],
                "parents": [parent, predictions] if _reads_predictions(component, level) else [parent],
                "data": data,
                "code": digest({"subject": "score", "explanation": "score"}.get(level, level), task, label),
            }
            found.append((label, identify(what)))
    return tuple(found)


def _reads_predictions(component: Component, level: str) -> bool:
    """Whether a metric reads predictions besides the cell that it evaluates; probes read the predicted classes."""
    entry = METRICS.get(METRICS.name_of(component.func))
    named = [METRICS.get(name) for name in (entry.facts["chance"], entry.facts["ceiling"]) if isinstance(name, str)]
    inputs = {name for one in (entry, *named) for name in one.facts["inputs"]}
    return level == "probe" or (level == "explanation" and not inputs.isdisjoint(_PREDICTED))


def explanations_of(task: Task) -> list[str]:
    """Labels of the explanations that the task's model supports.

    A model supports an explanation if it has what the
    attribution needs (such as weights), and exposes the scalar that is explained, if only
    models expose it. Maps of a channel that the adapter does not give are left out, too.
    """
    model = MODELS.get(MODELS.name_of(task.model.func)).facts
    exposed = {name for other in MODELS.names() for name in _exposes(MODELS.get(other).facts, {})}
    own = _exposes(model, task.model.keywords)
    found = []
    for label, component in task.attributions.items():
        facts = ATTRIBUTIONS.get(ATTRIBUTIONS.name_of(component.func)).facts
        scalar = task.explained[label].of.partition(":")[0]
        supported = all(model.get(need) for need in facts.get("needs", ())) and (scalar not in exposed or scalar in own)
        if supported and _has_channel(task, component.keywords.get(facts.get("of_channel", ""), 0)):
            found.append(label)
    return found


def _has_channel(task: Task, index: int) -> bool:
    """Whether the adapter gives a channel of this index; True if its options do not say how many it gives."""
    channels = task.adapter.keywords.get("channels")
    return not channels or not isinstance(channels, str) or index < len(channels.split("+"))


def _exposes(facts: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[str, ...]:
    """First parts of the names of exposed scalars that a model declares, given its options."""
    declared = facts.get("exposes", ())
    found: tuple[str, ...] = declared(options) if callable(declared) else tuple(declared)
    return found


def reads_of(adapter: Adapter, spec: NetworkSpec, covariates: tuple[str, ...] = ()) -> dict[str, Reads]:
    """Data that each stage reads of a sample.

    ``choose`` is for explanations of chosen samples, ``all`` for what any stage reads.

    Parameters
    ----------
    covariates : covariates that metrics read (:func:`covariates_of_metrics`)
    """
    own = adapter.reads
    masks = tuple(target.name for target in spec.targets if not target.of_sample)
    values = tuple(target.name for target in spec.targets)
    truths = tuple(f"{TRUTH}{name}" for name in values)
    evaluated_masks = _unique(masks, ("target", "brain", "regions"), truths, (NUISANCE,))
    grid: tuple[Literal["affine", "spacing_mm"], ...] = ("affine", "spacing_mm")
    # A training records the grid of its samples, maps have the affine, and metrics and postprocessing use voxel sizes.
    explain = dataclasses.replace(own, grid=grid)
    train = dataclasses.replace(explain, masks=_unique(own.masks, masks), targets=values, weights=values)
    return {
        "train": train,
        "predict": own,
        "explain": explain,
        "choose": dataclasses.replace(explain, targets=values),
        "score": Reads(
            masks=evaluated_masks, covariates=covariates, targets=values, clean=values, grid=("spacing_mm",)
        ),
        "probe": dataclasses.replace(explain, masks=_unique(own.masks, evaluated_masks), targets=values),
        "all": dataclasses.replace(
            train,
            masks=_unique(own.masks, evaluated_masks),
            covariates=_unique(own.covariates, covariates),
            clean=values,
        ),
    }


def _reads_of_maps(reads: Reads, explanation: Explanation) -> Reads:
    """What an explanation reads of a sample."""
    if explanation.combine != "within_nuisance":
        return reads
    return dataclasses.replace(reads, masks=_unique(reads.masks, (NUISANCE,)))


def covariates_of_metrics(task: Task) -> tuple[str, ...]:
    """Covariates that the metrics of a task read, by their option ``name``."""
    reading = [one for one in task.metrics.values() if "covariates" in inputs_of(one)]
    return _unique(tuple(str(one.keywords.get("name", "")) for one in reading))


def _unique(*names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for several in names for name in several))


def is_done(cell: Cell, store: Store) -> bool:
    """Whether a cell is in the store; for values, with all of its metrics."""
    return holds(cell, records_of(cell, store))


def holds(cell: Cell, records: Sequence[CellRecord]) -> bool:
    """Whether records of a cell are complete; for values, whether they have all of its metrics."""
    return bool(records) and not _absent(cell, records)


def failure_of(cell: Cell, store: Store) -> CellRecord | None:
    """The last failure of a cell that is not done, or of its missing metrics."""
    failed = store.failure(cell.identity)
    if failed is None and cell.metrics:
        failed = store.failure(cell.only(_absent(cell, records_of(cell, store))).identity)
    return failed


def records_of(cell: Cell, store: Store) -> tuple[CellRecord, ...]:
    """Records of a cell in the store; for values, one for each time that metrics were added."""
    if cell.metrics:
        return store.evaluations(cell.stage, cell.group)
    record = store.get(cell.stage, cell.identity)
    return () if record is None else (record,)


def missing(job: Job, store: Store) -> Job | None:
    """The part of a job that is not in the store, or ``None``."""
    wanted = []
    for cell in job.cells:
        records = records_of(cell, store)
        if not holds(cell, records):
            wanted.append(cell.only(_absent(cell, records)) if cell.metrics else cell)
    return job.only(wanted) if wanted else None


def _absent(cell: Cell, records: Sequence[CellRecord]) -> list[tuple[str, str]]:
    """Metrics of a cell without values in its records."""
    held = {identity for record in records for identity in record.metrics.values()}
    return [(label, identity) for label, identity in cell.metrics if identity not in held]


def _values_identity(stage: str, parents: Sequence[str], metrics: Sequence[tuple[str, str]]) -> str:
    return identify({"stage": stage, "parents": list(parents), "metrics": sorted(identity for _, identity in metrics)})


def _recipe(task: Task, described: JSON) -> JSON:
    """Options of a recipe that affect a training; for models that fit themselves, epochs do not."""
    return {"threads": described["threads"]} if _is_fitted(task) else described


def _is_fitted(task: Task) -> bool:
    """Whether the model fits itself."""
    return bool(MODELS.get(MODELS.name_of(task.model.func)).facts.get("fitted"))


def _validates(task: Task) -> bool:
    """Whether a training uses validation samples, because its recipe selects an epoch."""
    return not _is_fitted(task) and task.recipe().select is not None


def digest(stage: str, task: Task, label: str = "") -> str:
    """Digest of the code that a stage runs.

    Parameters
    ----------
    stage : name of the stage
    task : the task
    label : label of the explanation or metric
    """
    if stage == "train":
        components = [(ADAPTERS, task.adapter), (MODELS, task.model), (RECIPES, task.recipe)]
    elif stage == "predict":
        components = [(ADAPTERS, task.adapter)]
    elif stage == "explain":
        explanation = task.explained[label]
        components = [(ADAPTERS, task.adapter), (ATTRIBUTIONS, explanation.attribution)]
        components += [(POSTPROCESSINGS, explanation.postprocess)] if explanation.postprocess is not None else []
    else:
        components = [(METRICS, task.metrics[label])]
    return identify([_stage_digest(stage), *(digest_of(component, registry) for registry, component in components)])


@cache
def _stage_digest(stage: str) -> str:
    return identify([code_digest(_STAGE_CODE[stage]), *(module_digest(name) for name in _SHARED_MODULES)])


_known: dict[str, Task] = {}


def restored(configuration: Configuration) -> Task:
    """The task of a configuration, built once per process."""
    key = identify(configuration.task)
    if key not in _known:
        _known[key] = restore(configuration.task)
    return _known[key]


def _bound(configuration: Configuration, cohort: Cohort) -> tuple[NetworkSpec, dict[str, Reads]]:
    task = restored(configuration)
    adapter: Adapter = task.adapter()
    spec = adapter.spec(cohort)
    return spec, reads_of(adapter, spec, covariates_of_metrics(task))


def hardware() -> dict[str, JSON]:
    """Hardware of this process, for the record."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__, "gpu": gpu}
