"""``harness predict``: NIfTI predictions of new subjects with a trained model."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from harness.cli.console import left_out
from harness.cli.keys import refuse_unused
from harness.core.errors import RequestError, StoreError
from harness.core.registry import COHORTS
from harness.core.task import Component, Configuration, Task, describe_component, restore
from harness.core.types import Adapter, Array, Cohort, Prediction, Sample
from harness.data import bids, nifti, transforms
from harness.pipeline.job import load_member
from harness.pipeline.predict import predict
from harness.pipeline.score import THRESHOLD
from harness.pipeline.train import controlled
from harness.storage.files import replace_file
from harness.storage.store import CellRecord, Store
from harness.sweep.grammar import Words
from harness.sweep.request import settings_of

__all__ = ["predict_folder"]


def predict_folder(words: Words, *, say: Callable[[str], None]) -> list[Path]:
    """Predict every subject of a folder.

    Parameters
    ----------
    words : ``model`` (a training cell or a configuration, the first digits are
        enough), ``data``, and optionally ``exclude``, ``out`` (where the model
        was trained) and ``into`` (where predictions go)
    say : is told what happens

    Returns
    -------
    list of Path
        A binary mask and a probability image per subject, in BIDS derivative
        names, on the grid of the subject's own reference image: a probability is
        interpolated linearly, a mask takes its nearest voxel, and both are 0
        where the network did not look. Of a task that predicts numbers one
        table, ``predictions.tsv``, with a row per subject.

    Raises
    ------
    RequestError
        If a word is missing, not used, or names nothing.
    CohortError
        If the data have faults.

    Notes
    -----
    A configuration has one network per fold and seed: their probabilities are
    averaged. None of them saw the new subjects. The reference is the image
    whose grid the cohort's option ``reference`` names, the first sequence where
    that is the label; a reader other than ``bids`` names none, and its
    predictions stay on the grid on which the network works.
    """
    refuse_unused(words, "harness predict", several=("exclude",))
    for key in ("model", "data"):
        if key not in words.values:
            raise RequestError(f"say {key}=…: harness predict model=CELL|CONFIGURATION data=DIR")
    chosen = {key: value for key, value in words.values.items() if key in {"out", "exclude"}}
    settings = settings_of(Words(chosen, dict(words.sweeps)))
    store = Store(settings.folder / "store")
    root = Path(str(words.values["data"])).expanduser().resolve()
    records, configuration = _trained(store, str(words.values["model"]))
    made_by = records[0].identity if len(records) == 1 else configuration.id
    usual = settings.folder / "predictions" / f"{root.name}-{made_by[:10]}"
    into = Path(str(words.values.get("into", usual))).expanduser().resolve()
    task = restore(configuration.task)
    adapter: Adapter = task.adapter()
    say(f"{len(records)} trained networks of {' '.join(map(str, configuration.axes.values()))}")
    cohort = _cohort(task, root, settings.folder / "cache", adapter, settings.exclude)
    for sentence in left_out(cohort.ineligible):
        say(sentence)
    bids.begin_derivatives(
        into,
        name=f"Predictions of {made_by} for {root.name}",
        source=root,
        version=importlib.metadata.version("harness"),
        parameters={"networks": [record.identity for record in records]},
    )
    found = _predicted(cohort, records, store)
    if not all(
        "probability" in kept and kept["probability"].ndim == 3 for one in found.values() for kept in one.values()
    ):
        return [_write_table(into, found)]
    grids = _references(task.cohort, root, adapter, settings.exclude)
    written: list[Path] = []
    for sample in cohort.samples:
        grid = grids.get(sample.id, (sample.shape, sample.grid.affine))
        probability = next(iter(found[sample.id].values()))["probability"]
        written += _write(into, sample, probability, grid, str(configuration.task["cohort"]["label"]))
    return written


def _trained(store: Store, wanted: str) -> tuple[list[CellRecord], Configuration]:
    """The trainings that a cell's or a configuration's id names."""
    records = list(store.records("train"))
    cells = [record for record in records if record.identity.startswith(wanted)]
    found = cells or [record for record in records if record.configuration.startswith(wanted)]
    identities = {record.identity if cells else record.configuration for record in found}
    if len(identities) != 1 or not wanted:
        ids = sorted({record.configuration for record in records})
        what = "names no training" if not identities else "names several"
        raise RequestError(f"model={wanted} {what} in {store.root}; configurations: {', '.join(ids) or '(none)'}")
    return found, _configuration(store, found[0])


def _configuration(store: Store, record: CellRecord) -> Configuration:
    """What a network was trained with; of a searched configuration each fold has its own."""
    try:
        return store.configuration(record.identity)
    except StoreError:
        return store.configuration(record.configuration)


def _cohort(task: Task, root: Path, cache: Path, adapter: Adapter, exclude: tuple[str, ...]) -> Cohort:
    """New subjects prepared as the training's were, but without a truth."""
    part = task.cohort
    # Of whole lesion maps the mask is the image.
    truth = {} if adapter.reads.masks else {"label": ""}
    options = {**part.keywords, **truth, "sequences": adapter.reads.images, "exclude": exclude, "minimum": 1}
    cohort: Cohort = part.func(root, cache, **options)
    return cohort


def _predicted(cohort: Cohort, records: Sequence[CellRecord], store: Store) -> dict[str, Prediction]:
    """The prediction of each sample, averaged over all networks."""
    loaded = [load_member(restore(_configuration(store, record).task), store, record) for record in records]
    members, spec = [member for member, _ in loaded], loaded[0][1]
    recipe = restore(_configuration(store, records[0]).task).recipe()
    with controlled(recipe.threads, 0):
        return {sample.id: predict(members, spec, sample, batch_size=recipe.batch_size) for sample in cohort.samples}


def _write_table(into: Path, predictions: Mapping[str, Prediction]) -> Path:
    """``predictions.tsv``: a row per sample, a column per number, probability or probability of a class."""
    rows: list[str] = []
    for sample, targets in predictions.items():
        values: dict[str, float] = {}
        for name, kept in targets.items():
            if "value" in kept:
                values[name] = float(kept["value"])
            elif "probability" in kept:
                values[f"{name}_probability"] = float(kept["probability"])
            else:
                values |= {f"{name}_probability_{k}": float(p) for k, p in enumerate(kept["probabilities"])}
        if not rows:
            rows.append("\t".join(("participant_id", *values)))
        rows.append("\t".join((sample, *(f"{value:.6g}" for value in values.values()))))
    replace_file(into / "predictions.tsv", "\n".join(rows) + "\n")
    return into / "predictions.tsv"


def _references(
    part: Component, root: Path, adapter: Adapter, exclude: tuple[str, ...]
) -> dict[str, tuple[tuple[int, ...], Array]]:
    """Sample → shape and affine of the file on whose grid its prediction belongs."""
    options = describe_component(COHORTS, part)
    if options["use"] != "bids":
        return {}
    name = adapter.reads.images[0] if options["reference"] == "label" else str(options["reference"])
    needed = tuple(dict.fromkeys((*adapter.reads.images, name)))
    found = bids.index(root, sequences=needed, session=str(options["session"]), exclude=exclude)
    headers = {one.id: nifti.header(one.images[name]) for one in found.candidates}
    return {id: (facts.shape, facts.affine) for id, facts in headers.items()}


def _write(
    into: Path, sample: Sample, probability: Array, grid: tuple[tuple[int, ...], Array], label: str
) -> list[Path]:
    session = [part for part in sample.id.split("_") if part.startswith("ses-")]
    folder = into.joinpath(sample.subject, *session, "anat")
    stem = f"{sample.id}_label-{label}"
    shape, affine = grid
    likely = transforms.resample(probability, sample.grid.affine, shape, affine, order="linear")
    mask = transforms.resample(probability > THRESHOLD, sample.grid.affine, shape, affine, order="nearest")
    return [
        nifti.write(folder / f"{stem}_probseg.nii.gz", likely, affine, dtype=np.float32),
        nifti.write(folder / f"{stem}_mask.nii.gz", mask, affine, dtype=np.uint8),
    ]
