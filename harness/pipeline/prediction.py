"""Predict new subjects: find the networks, prepare the images on their grid, and write the files."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.core.errors import HarnessError, RequestError, StoreError
from harness.core.registry import COHORTS
from harness.core.space import text_of
from harness.core.spreadsheets import plain_cell
from harness.core.targets import KINDS, THRESHOLD, Target
from harness.core.task import Configuration, describe_component, restore
from harness.core.types import JSON, Adapter, Array, Cohort, Prediction, Sample
from harness.data import bids, bids_writing, nifti, transforms
from harness.data.bids_files import entities_of
from harness.data.grids import TrainingGrid, spacing_text
from harness.data.pictures import write_picture
from harness.pipeline.cell import digest
from harness.pipeline.job import load_member
from harness.pipeline.predict import predict
from harness.pipeline.train import controlled
from harness.storage.files import replace_file
from harness.storage.store import CellRecord, Store

__all__ = ["Networks", "NewSubjects", "Place", "find_networks", "predict_subjects", "read_subjects", "write_masks"]

_SPACE = re.compile(r"_(space-[A-Za-z0-9]+)")
_PLANES = {"L": "sagittal", "R": "sagittal", "A": "coronal", "P": "coronal", "I": "axial", "S": "axial"}


@dataclass(frozen=True)
class Networks:
    """Trained networks of one configuration, whose predictions are averaged.

    Parameters
    ----------
    records : records of their trainings, all with the same version of the code
    configuration : configuration of the first training; after a search, those of other
        folds may differ
    left_out : other trainings of the same configuration
    is_older : whether they were trained with another version of the code
    """

    records: tuple[CellRecord, ...]
    configuration: Configuration
    left_out: tuple[CellRecord, ...] = ()
    is_older: bool = False

    @property
    def name(self) -> str:
        """Id of the training if there is only one, otherwise of the configuration."""
        return self.records[0].identity if len(self.records) == 1 else self.records[0].configuration

    def __str__(self) -> str:
        count = f"{len(self.records)} trained network{'s' if len(self.records) != 1 else ''}"
        parts = [f"{count} of {' '.join(map(str, self.configuration.axes.values()))}"]
        if self.is_older:
            parts.append("trained with another version of the code")
        if accepted := sum(record.reused_code for record in self.records):
            parts.append(f"{accepted} accepted from older code")
        if self.left_out:
            ids = ", ".join(record.identity for record in self.left_out)
            parts.append(f"left out {len(self.left_out)} of other code or searches: {ids} (set model=CELL to use one)")
        return "; ".join(parts)


@dataclass(frozen=True)
class Place:
    """Grid on which a prediction is written.

    Parameters
    ----------
    shape, affine : the grid
    header : header of the file with this grid; ``None`` to keep the grid of the network
    space : BIDS entity of the file, e.g. ``space-MNI152NLin6Asym``; empty if it has none
    """

    shape: tuple[int, ...]
    affine: Array
    header: nifti.Header | None = None
    space: str = ""


@dataclass(frozen=True)
class NewSubjects:
    """New subjects, prepared like those of the training.

    Parameters
    ----------
    cohort : cohort without truth
    places : grid of each prediction, by sample
    notes : notes on their grid, for the user
    """

    cohort: Cohort
    places: Mapping[str, Place]
    notes: tuple[str, ...] = ()


def find_networks(store: Store, wanted: str) -> Networks:
    """Find networks by the id of a training or of a configuration.

    Parameters
    ----------
    store : the store
    wanted : the id; its first digits suffice

    Raises
    ------
    RequestError
        If no id or several match, or if the networks of a configuration were trained with
        several versions of the code, none of them the present one.

    Notes
    -----
    For a configuration, only networks of one version of the code are used, the present
    one if there are any. Otherwise, a fold that was trained twice would be counted twice,
    and networks of different code might not agree. With ``accept_code``, a training of
    older code is also stored under its present identity; it is counted once.
    """
    records = list(store.records("train"))
    cells = [record for record in records if record.identity.startswith(wanted)]
    found = cells or [record for record in records if record.configuration.startswith(wanted)]
    identities = {record.identity if cells else record.configuration for record in found}
    if len(identities) != 1 or not wanted:
        known = {record.configuration: record for record in records}
        listed = "; ".join(f"{identity[:10]} ({_axes(store, record)})" for identity, record in sorted(known.items()))
        what = "matches no training" if not identities else "matches several"
        raise RequestError(f"model={wanted} {what} in {store}; configurations: {listed or '(none)'}")
    current = [record for record in found if record.code == _code_of_today(store, record)]
    versions = {record.code for record in found}
    if not current and len(versions) > 1:
        listed = "; ".join(
            ", ".join(record.identity for record in found if record.code == version) for version in sorted(versions)
        )
        raise RequestError(
            f"all networks of model={wanted} must be of one version of the code, got several and none of the present "
            f"one; by version: {listed}. Choose one network (model=CELL), or run the configuration again"
        )
    chosen = _latest(store, current or found)
    left_out = tuple(record for record in found if record not in chosen)
    return Networks(chosen, _configuration(store, chosen[0]), left_out, not current)


def _axes(store: Store, record: CellRecord) -> str:
    axes = _configuration(store, record).axes
    return ", ".join(f"{name}={text_of(value)}" for name, value in axes.items()) or "no axes"


def _latest(store: Store, records: Sequence[CellRecord]) -> tuple[CellRecord, ...]:
    """The most recent training of each fold and seed; there may be two if a search was repeated."""
    found: dict[tuple[int, int], CellRecord] = {}
    for record in sorted(records, key=store.written):
        found[record.fold, record.seed] = record
    return tuple(found[key] for key in sorted(found))


def _code_of_today(store: Store, record: CellRecord) -> str:
    return digest("train", restore(_configuration(store, record).task))


def _configuration(store: Store, record: CellRecord) -> Configuration:
    """Configuration with which a network was trained; after a search, folds may differ."""
    try:
        return store.configuration(record.identity)
    except StoreError:
        return store.configuration(record.configuration)


def read_subjects(networks: Networks, root: Path, cache: Path, *, exclude: tuple[str, ...] = ()) -> NewSubjects:
    """Read new subjects on the grid on which the networks were trained.

    Parameters
    ----------
    networks : the networks
    root : folder of the subjects, in the layout of the task's reader
    cache : folder of prepared arrays
    exclude : subjects to leave out

    Raises
    ------
    CohortError
        If the data are faulty.
    RequestError
        If they cannot be resampled to the grid of the training.
    """
    task = restore(networks.configuration.task)
    adapter: Adapter = task.adapter()
    options = describe_component(COHORTS, task.cohort)
    trained, is_bids = _training_grid(networks), options["use"] == "bids"
    changes: dict[str, Any] = {"sequences": adapter.reads.images, "exclude": exclude, "minimum": 1}
    if "label" in options and not adapter.reads.masks:  # for lesion maps, the mask is the image
        changes["label"] = ""
    if "truth" in options:  # new subjects have no truth, wherever that of the training was
        changes["truth"] = ""
    places: dict[str, Place] = {}
    notes: tuple[str, ...] = ()
    if is_bids:
        more, places, notes = _on_grid(options, adapter.reads.images, trained, root, exclude)
        changes |= more
    cohort: Cohort = task.cohort.func(root, cache, **{**task.cohort.keywords, **changes})
    trained.check(cohort.samples, template=not is_bids)
    notes = (*notes, *trained.check_spaces(cohort.samples, template=not is_bids))
    own = {one.id: Place(one.shape, one.affine) for one in cohort.samples if one.affine is not None}
    return NewSubjects(cohort, {**own, **places}, notes)


def _training_grid(networks: Networks) -> TrainingGrid:
    return TrainingGrid.merged([TrainingGrid.from_json(record.facts["grid"]) for record in networks.records])


def _on_grid(
    options: Mapping[str, JSON],
    images: tuple[str, ...],
    trained: TrainingGrid,
    root: Path,
    exclude: tuple[str, ...],
) -> tuple[dict[str, Any], dict[str, Place], tuple[str, ...]]:
    """Options of the reader ``bids`` for the training grid, the grids of the predictions, and notes for the user."""
    by_label = options["reference"] == "label"
    needed = images if by_label else tuple(dict.fromkeys((*images, str(options["reference"]))))
    found = bids.index(
        root, sequences=needed, session=str(options["session"]), space=str(options.get("space", "")), exclude=exclude
    )
    try:
        headers = {one.id: {name: nifti.header(one.images[name]) for name in needed} for one in found.candidates}
    except HarnessError:  # the reader lists this fault, and all others
        return {}, {}, ()

    def spacing(header: nifti.Header) -> tuple[float, float, float]:
        affine = header.affine
        if options["reorient"]:
            _, affine = transforms.reorient(np.broadcast_to(np.uint8(0), header.shape), affine)
        return transforms.spacing_of(affine)

    def is_fine(name: str) -> bool:
        return all(trained.holds(spacing(one[name])) for one in headers.values())

    reference = next(filter(is_fine, images), images[0]) if by_label else str(options["reference"])
    changes: dict[str, Any] = {"reference": reference}
    notes = []
    if by_label:
        notes.append(f"reference=label, but new subjects have no label; the grid of {reference} is used")
    others = {key: own for key, one in headers.items() if not trained.holds(own := spacing(one[reference]))}
    if trained.spacing_mm and not options["spacing_mm"] and others:
        changes["spacing_mm"] = trained.spacing_mm
        listed = ", ".join(f"{key} has {spacing_text(own)}" for key, own in others.items())
        size = spacing_text(trained.spacing_mm)
        notes.append(f"trained at {size}, {listed}: resampled to {size}")
    places = {
        one.id: Place(headers[one.id][reference].shape, headers[one.id][reference].affine, headers[one.id][reference],
                      _space_of(one.images[reference]))
        for one in found.candidates
    }  # fmt: skip
    return changes, places, tuple(notes)


def _space_of(path: Path) -> str:
    found = _SPACE.search(path.name)
    return found[1] if found else ""


def predict_subjects(
    networks: Networks, subjects: NewSubjects, store: Store, into: Path, *, root: Path
) -> tuple[list[Path], list[str]]:
    """Predict all new subjects with the average of all networks, and write the predictions.

    Parameters
    ----------
    networks : the networks
    subjects : the new subjects
    store : the store with the weights
    into : folder of the predictions, a BIDS derivative; created if needed
    root : folder of the subjects' data set

    Returns
    -------
    list of Path
        Files. For a target of kind mask, a binary mask and a probability image per subject
        (:func:`write_masks`). For all other targets, one table ``predictions.tsv`` with a
        row per subject.
    list of str
        Notes for the user, on slices outside the field of view of the networks.

    Raises
    ------
    RequestError
        If the folder contains another data set.
    """
    bids_writing.begin_derivatives(
        into,
        name=f"Predictions of {networks.name} for {root.name}",
        source=root,
        version=importlib.metadata.version("harness"),
        parameters={"networks": [record.identity for record in networks.records]},
    )
    loaded = [load_member(restore(_configuration(store, one).task), store, one) for one in networks.records]
    members, spec = [member for member, _ in loaded], loaded[0][1]
    recipe = restore(networks.configuration.task).recipe()
    label = entities_of(str(networks.configuration.task["cohort"].get("label", "")))[1]
    masks = [target.name for target in spec.targets if not target.of_sample]
    written: list[Path] = []
    unseen: dict[str, list[str]] = {}
    rows: dict[str, Prediction] = {}
    with controlled(recipe.threads, 0):
        for sample in subjects.cohort.samples:
            found = predict(members, spec, sample, batch_size=recipe.batch_size)
            place = subjects.places.get(sample.id)
            for name in masks:
                named = label if name == "target" and label else name
                written += write_masks(into, sample, found[name]["probability"], place, named)
            if masks and place is not None and (outside := _outside(sample, place)):
                unseen.setdefault(outside, []).append(sample.id)
            rows[sample.id] = found
    if others := [target for target in spec.targets if target.of_sample]:
        written.append(_write_table(into, rows, others))
    return written, [
        f"{outside} are outside the field of view of the networks, where predictions are 0: {', '.join(ids)}"
        for outside, ids in unseen.items()
    ]


def write_masks(into: Path, sample: Sample, probability: Array, place: Place | None, label: str) -> list[Path]:
    """Write a binary mask and a probability image.

    Parameters
    ----------
    into : folder of the data set
    sample : the sample
    probability : probability map on the grid of the sample
    place : grid of the files; ``None`` for pictures, which are written as PNG
    label : label of the mask

    Returns
    -------
    list of Path
        For volumes, BIDS derivatives. Probabilities are interpolated linearly and masks by
        nearest neighbour; both are 0 outside the field of view of the networks.
    """
    if place is None:
        found = {"probseg": 255 * probability, "mask": 255 * (probability > THRESHOLD)}
        paths = {name: into / name / f"{sample.id}_label-{label}.png" for name in found}
        for name, values in found.items():
            write_picture(paths[name], np.rint(values))
        return list(paths.values())
    session = [part for part in sample.id.split("_") if part.startswith("ses-")]
    folder = into.joinpath(sample.subject, *session, "anat")
    stem = "_".join(filter(None, (sample.id, place.space, f"label-{label}")))
    source = sample.grid.affine
    likely = transforms.resample(probability, source, place.shape, place.affine, order="linear")
    mask = transforms.resample(probability > THRESHOLD, source, place.shape, place.affine, order="nearest")
    return [
        nifti.write(folder / f"{stem}_{suffix}.nii.gz", values, place.affine, dtype=dtype, like=place.header)
        for suffix, values, dtype in (("probseg", likely, np.float32), ("mask", mask, np.uint8))
    ]


def _outside(sample: Sample, place: Place) -> str:
    """Description of the slices of a file outside the field of view of the networks; empty if there are none."""
    everywhere = np.ones(sample.shape, bool)
    seen = transforms.resample(everywhere, sample.grid.affine, place.shape, place.affine, order="nearest")
    parts = []
    for axis, direction in enumerate(nifti.orientation(place.affine)):
        of_slice = np.asarray(seen.any(axis=tuple(other for other in range(3) if other != axis)))
        if not of_slice.all():
            parts.append(f"{np.count_nonzero(~of_slice)} of {len(of_slice)} {_PLANES[direction]} slices")
    return " and ".join(parts)


def _write_table(into: Path, predictions: Mapping[str, Prediction], targets: Sequence[Target]) -> Path:
    """Write ``predictions.tsv``: one row per sample, one column per number, probability or class probability."""
    rows: list[str] = []
    for sample, found in predictions.items():
        values: dict[str, float] = {}
        for target in targets:
            values |= KINDS[target.kind].columns(target, found[target.name])
        if not rows:
            rows.append("\t".join(("participant_id", *map(plain_cell, values))))
        rows.append("\t".join((plain_cell(sample), *(f"{value:.6g}" for value in values.values()))))
    replace_file(into / "predictions.tsv", "\n".join(rows) + "\n")
    return into / "predictions.tsv"
