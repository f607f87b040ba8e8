"""``harness predict``: NIfTI predictions of new subjects with a trained model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from harness.data import nifti
from harness.door.console import left_out
from harness.door.request import settings_of
from harness.door.words import Words
from harness.errors import RequestError, StoreError
from harness.scoring import THRESHOLD
from harness.spec import Configuration, Part, restore
from harness.stages import load_network
from harness.store import CellRecord, Store
from harness.training import controlled, infer
from harness.types import Array, Cohort, Sample, View

__all__ = ["predict_folder"]


def predict_folder(words: Words, *, say: Callable[[str], None]) -> list[Path]:
    """Predict every subject of a folder.

    Parameters
    ----------
    words : ``model`` (a training cell or a configuration, the first digits are
        enough), ``data``, and optionally ``out`` (where the model was trained)
        and ``into`` (where predictions go)
    say : is told what happens

    Returns
    -------
    list of Path
        A binary mask and a probability image per subject, in BIDS derivative
        names, on the grid on which the network works.

    Notes
    -----
    A configuration has one network per fold and seed: their probabilities are
    averaged. None of them saw the new subjects.
    """
    known = {"model", "data", "out", "into", "exclude"}
    unknown = [key for key in (*words.values, *words.sweeps) if key not in known]
    if unknown:
        raise RequestError(f"harness predict takes {', '.join(sorted(known))}, got {unknown[0]}")
    for key in ("model", "data"):
        if key not in words.values:
            raise RequestError(f"say {key}=…: harness predict model=CELL|CONFIGURATION data=DIR")
    settings = settings_of(Words({key: value for key, value in words.values.items() if key in {"out", "exclude"}}))
    store = Store(settings.folder / "store")
    root = Path(str(words.values["data"])).expanduser().resolve()
    into = Path(str(words.values.get("into", settings.folder / "predictions"))).expanduser().resolve()
    records, configuration = _trained(store, str(words.values["model"]))
    task = restore(configuration.task)
    view: View = task.view()
    say(f"{len(records)} trained networks of {' '.join(map(str, configuration.axes.values()))}")
    cohort = _cohort(task.cohort, root, settings.folder / "cache", view, settings.exclude)
    for sentence in left_out(cohort.ineligible):
        say(sentence)
    recipe = task.recipe()
    sums: dict[str, Array] = {}
    with controlled(recipe.threads, 0):
        for record in records:
            network = load_network(
                restore(_configuration(store, record).task), view, store.artifact(record, "weights.safetensors")
            )
            for sample in cohort.samples:
                probability = infer(network, view, sample, batch_size=recipe.batch_size)["probability"]
                sums[sample.id] = sums.get(sample.id, np.zeros_like(probability)) + probability / len(records)
    written: list[Path] = []
    for sample in cohort.samples:
        written += _write(into, sample, sums[sample.id], str(configuration.task["cohort"]["label"]))
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


def _cohort(part: Part, root: Path, cache: Path, view: View, exclude: tuple[str, ...]) -> Cohort:
    """New subjects prepared as the training's were, but without a truth."""
    options = {**part.keywords, "label": "", "sequences": view.images, "exclude": exclude, "minimum": 1}
    cohort: Cohort = part.func(root, cache, **options)
    return cohort


def _write(into: Path, sample: Sample, probability: Array, label: str) -> list[Path]:
    folder = into / sample.subject / "anat"
    stem = f"{sample.id}_label-{label}"
    return [
        nifti.write(folder / f"{stem}_probseg.nii.gz", probability, sample.affine, dtype=np.float32),
        nifti.write(
            folder / f"{stem}_mask.nii.gz", (probability > THRESHOLD).astype(np.uint8), sample.affine, dtype=np.uint8
        ),
    ]
