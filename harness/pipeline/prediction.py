"""Predictions of new subjects: which networks are averaged, on which grid they work, and the files they give."""

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
from harness.core.targets import Target
from harness.core.task import Configuration, describe_component, restore
from harness.core.types import JSON, Adapter, Array, Cohort, Prediction, Sample
from harness.data import bids, bids_writing, nifti, transforms
from harness.data.grids import TrainingGrid, spacing_text
from harness.data.pictures import write_picture
from harness.pipeline.cell import digest
from harness.pipeline.job import load_member
from harness.pipeline.predict import predict
from harness.pipeline.score import THRESHOLD
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
    records : of their trainings, all of one version of the code
    configuration : of the first; of a searched one, each fold has options of its own
    left_out : other trainings of the same configuration
    is_older : whether they were trained by other code than that of this version
    """

    records: tuple[CellRecord, ...]
    configuration: Configuration
    left_out: tuple[CellRecord, ...] = ()
    is_older: bool = False

    @property
    def name(self) -> str:
        """Id of the one training, or of the configuration."""
        return self.records[0].identity if len(self.records) == 1 else self.records[0].configuration

    def __str__(self) -> str:
        count = f"{len(self.records)} trained network{'s' if len(self.records) != 1 else ''}"
        parts = [f"{count} of {' '.join(map(str, self.configuration.axes.values()))}"]
        if self.is_older:
            parts.append("trained by another version of the code")
        if accepted := sum(record.reused_code for record in self.records):
            parts.append(f"{accepted} accepted from older code")
        if self.left_out:
            ids = ", ".join(record.identity for record in self.left_out)
            parts.append(f"left out {len(self.left_out)} of other code or searches: {ids} (model=CELL names one)")
        return "; ".join(parts)


@dataclass(frozen=True)
class Place:
    """The file on whose grid a prediction belongs.

    Parameters
    ----------
    shape, affine : its grid
    header : of the file; ``None`` if the prediction stays on the grid of the network
    space : its BIDS entity, e.g. ``space-MNI152NLin6Asym``; empty if it has none
    """

    shape: tuple[int, ...]
    affine: Array
    header: nifti.Header | None = None
    space: str = ""


@dataclass(frozen=True)
class NewSubjects:
    """New subjects, prepared as those of the training were.

    Parameters
    ----------
    cohort : without a truth
    places : sample → where its prediction belongs
    notes : what is to be known of their grid
    """

    cohort: Cohort
    places: Mapping[str, Place]
    notes: tuple[str, ...] = ()


def find_networks(store: Store, wanted: str) -> Networks:
    """The networks that the id of a training or of a configuration names.

    Parameters
    ----------
    wanted : its first digits are enough

    Raises
    ------
    RequestError
        If it names nothing or several, or a configuration whose networks were trained
        by several versions of the code, none of them this one.

    Notes
    -----
    Of a configuration, only networks of one version of the code are taken, this one if
    there are any: the same fold trained twice would count twice, and networks of
    different code need not agree. ``accept_code`` files a training of older code under
    today's identity as well; it is one network.
    """
    records = list(store.records("train"))
    cells = [record for record in records if record.identity.startswith(wanted)]
    found = cells or [record for record in records if record.configuration.startswith(wanted)]
    identities = {record.identity if cells else record.configuration for record in found}
    if len(identities) != 1 or not wanted:
        ids = sorted({record.configuration for record in records})
        what = "names no training" if not identities else "names several"
        raise RequestError(f"model={wanted} {what} in {store.root}; configurations: {', '.join(ids) or '(none)'}")
    current = [record for record in found if record.code == _code_of_today(store, record)]
    versions = {record.code for record in found}
    if not current and len(versions) > 1:
        listed = "; ".join(
            ", ".join(record.identity for record in found if record.code == version) for version in sorted(versions)
        )
        raise RequestError(
            f"all networks must be of one version of the code, and none of model={wanted} is of this one; "
            f"by version: {listed}. Name one network (model=CELL), or run the configuration again"
        )
    chosen = _latest(store, current or found)
    left_out = tuple(record for record in found if record not in chosen)
    return Networks(chosen, _configuration(store, chosen[0]), left_out, not current)


def _latest(store: Store, records: Sequence[CellRecord]) -> tuple[CellRecord, ...]:
    """The training of each fold and seed that was written last: a search that was made again leaves two."""
    found: dict[tuple[int, int], CellRecord] = {}
    for record in sorted(records, key=store.written):
        found[record.fold, record.seed] = record
    return tuple(found[key] for key in sorted(found))


def _code_of_today(store: Store, record: CellRecord) -> str:
    return digest("train", restore(_configuration(store, record).task))


def _configuration(store: Store, record: CellRecord) -> Configuration:
    """What a network was trained with; of a searched configuration each fold has its own."""
    try:
        return store.configuration(record.identity)
    except StoreError:
        return store.configuration(record.configuration)


def read_subjects(networks: Networks, root: Path, cache: Path, *, exclude: tuple[str, ...] = ()) -> NewSubjects:
    """Read new subjects onto the grid on which the networks were trained.

    Parameters
    ----------
    root : their folder, in the layout that the task's reader takes
    cache : folder of prepared arrays
    exclude : subjects to leave out

    Raises
    ------
    CohortError
        If the data have faults.
    RequestError
        If they cannot be brought to the grid of the training.

    Notes
    -----
    With one voxel size in training, images are resampled to it. A cohort's option
    ``reference=label`` has no meaning for subjects without a label: the first sequence
    stands in whose voxels have the size of the training's, else the first.
    """
    task = restore(networks.configuration.task)
    adapter: Adapter = task.adapter()
    options = describe_component(COHORTS, task.cohort)
    trained, is_bids = _training_grid(networks), options["use"] == "bids"
    changes: dict[str, Any] = {"sequences": adapter.reads.images, "exclude": exclude, "minimum": 1}
    if "label" in options and not adapter.reads.masks:  # of lesion maps the mask is the image
        changes["label"] = ""
    places: dict[str, Place] = {}
    notes: tuple[str, ...] = ()
    if is_bids:
        more, places, notes = _on_grid(options, adapter.reads.images, trained, root, exclude)
        changes |= more
    cohort: Cohort = task.cohort.func(root, cache, **{**task.cohort.keywords, **changes})
    trained.check(cohort.samples, template=not is_bids)
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
    """Options of the reader ``bids`` that give new subjects the training's grid, their places, and what to say."""
    by_label = options["reference"] == "label"
    needed = images if by_label else tuple(dict.fromkeys((*images, str(options["reference"]))))
    found = bids.index(root, sequences=needed, session=str(options["session"]), exclude=exclude)
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
        notes.append(f"reference=label, and new subjects have no label: their grid is that of {reference}")
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
    """Predict every new subject with the average of all networks, and write what they say.

    Parameters
    ----------
    into : folder of the predictions, a BIDS derivative; made if needed
    root : folder of the data set that the subjects are from

    Returns
    -------
    list of Path
        Of a target that is a mask, a binary mask and a probability image per subject
        (:func:`write_masks`). Of all others one table, ``predictions.tsv``, with a row
        per subject.
    list of str
        What to know of them: slices that the networks did not see.

    Raises
    ------
    RequestError
        If the folder holds another data set.
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
    label = str(networks.configuration.task["cohort"].get("label", ""))
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
        f"{outside} lie outside of the field of the networks, where predictions are 0: {', '.join(ids)}"
        for outside, ids in unseen.items()
    ]


def write_masks(into: Path, sample: Sample, probability: Array, place: Place | None, label: str) -> list[Path]:
    """Write a binary mask and a probability image.

    Parameters
    ----------
    into : folder of the data set
    probability : on the grid of the sample
    place : where it belongs; ``None`` for a picture, which gives PNG files
    label : what the mask is of

    Returns
    -------
    list of Path
        Of a volume, BIDS derivatives: a probability is interpolated linearly, a mask
        takes its nearest voxel, and both are 0 where the networks did not look.
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
    """Slices of a file that lie outside of the field that the networks saw; empty if there are none."""
    everywhere = np.ones(sample.shape, bool)
    seen = transforms.resample(everywhere, sample.grid.affine, place.shape, place.affine, order="nearest")
    parts = []
    for axis, direction in enumerate(nifti.orientation(place.affine)):
        of_slice = np.asarray(seen.any(axis=tuple(other for other in range(3) if other != axis)))
        if not of_slice.all():
            parts.append(f"{np.count_nonzero(~of_slice)} of {len(of_slice)} {_PLANES[direction]} slices")
    return " and ".join(parts)


def _write_table(into: Path, predictions: Mapping[str, Prediction], targets: Sequence[Target]) -> Path:
    """``predictions.tsv``: a row per sample, a column per number, probability or probability of a class."""
    rows: list[str] = []
    for sample, found in predictions.items():
        values: dict[str, float] = {}
        for target in targets:
            kept = found[target.name]
            if target.kind == "number":
                values[target.name] = float(kept["value"])
            elif target.kind == "binary":
                values[f"{target.name}_probability"] = float(kept["probability"])
            else:
                named = zip(target.classes, kept["probabilities"], strict=True)
                values |= {f"{target.name}_probability_{name}": float(one) for name, one in named}
        if not rows:
            rows.append("\t".join(("participant_id", *values)))
        rows.append("\t".join((sample, *(f"{value:.6g}" for value in values.values()))))
    replace_file(into / "predictions.tsv", "\n".join(rows) + "\n")
    return into / "predictions.tsv"
