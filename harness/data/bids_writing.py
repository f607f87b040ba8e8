"""BIDS folders written: generated subjects, and derivatives."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from harness.core.errors import HarnessError, RequestError
from harness.core.types import JSON
from harness.data import nifti
from harness.data.bids_files import made_by_harness
from harness.data.participants import read_json
from harness.simulation.phantom import PhantomSubject

__all__ = ["begin_derivatives", "write_phantom"]

_SUBJECT = re.compile(r"sub-[A-Za-z0-9+]+")


def write_phantom(
    root: str | Path,
    subjects: Iterable[PhantomSubject | Sequence[PhantomSubject]],
    *,
    name: str,
    ids: Sequence[str] | None = None,
    label_sources: Mapping[str, Sequence[str]] | None = None,
    columns: Mapping[str, Mapping[str, JSON]] | None = None,
    generated_by: Mapping[str, JSON] | None = None,
    image_dtype: npt.DTypeLike = np.float32,
    space: str = "",
) -> Path:
    """Write generated subjects as a BIDS folder, which :func:`index` reads like any other.

    The folder appears complete or not at all, and the same subjects give the same bytes.

    Parameters
    ----------
    root : the folder to make; it must not exist, or be empty
    subjects : written one by one, so a generator keeps one in memory; several visits of a
        subject become sessions, and values that differ between them a table of sessions
    name : of the data set
    ids : ``sub-…`` of each subject; by default numbered from ``sub-01``
    label_sources : mask → sequences on which it would have been drawn
    columns : column of participants.tsv → its description for participants.json
    generated_by : name and parameters of the generator, for dataset_description.json
    image_dtype : number type of the images; integers are rounded
    space : template space that the names of the files state; empty for that of the subject

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    HarnessError
        If the folder is not empty, or an id is not a name that BIDS allows.
    """
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise HarnessError(f"{root} must be a new or an empty folder; delete it, or choose another")
    part = root.with_name(f".{root.name}.{uuid.uuid4().hex}.part")
    try:
        _write_all(part, subjects, ids, label_sources or {}, np.dtype(image_dtype), columns or {}, space)
        _write_description(part, name, generated_by)
        root.parent.mkdir(parents=True, exist_ok=True)
        part.rename(root)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return root


def _write_all(
    part: Path,
    subjects: Iterable[PhantomSubject | Sequence[PhantomSubject]],
    ids: Sequence[str] | None,
    label_sources: Mapping[str, Sequence[str]],
    image_dtype: npt.DTypeLike,
    columns: Mapping[str, Mapping[str, JSON]],
    space: str,
) -> None:
    rows: dict[str, Mapping[str, float | str | None]] = {}
    regions: dict[int, str] = {}
    part.mkdir(parents=True)
    for number, subject in enumerate(subjects):
        visits = list(subject) if isinstance(subject, Sequence) else [subject]
        id = ids[number] if ids is not None else f"sub-{number + 1:02d}"
        if not _SUBJECT.fullmatch(id) or id in rows:
            raise HarnessError(f"ids must be different and read sub-<letters and digits>, got {id!r}")
        for session, visit in enumerate(visits, start=1):
            names = [id, *([f"ses-{session}"] if len(visits) > 1 else [])]
            start = "_".join([*names, *([f"space-{space}"] if space else [])])
            _write_visit(part, "/".join([*names, "anat"]), start, visit, label_sources, image_dtype)
            regions |= visit.region_names
        rows[id] = _of_all_visits(visits)
        if len(visits) > 1:
            _write_sessions(part / id / f"{id}_sessions.tsv", visits, set(rows[id]))
    if not rows:
        raise HarnessError(f"a cohort needs at least one subject, got none for {part.parent}")
    _write_participants(part, rows, columns)
    if regions:
        lines = ["index\tname", *(f"{number}\t{name}" for number, name in sorted(regions.items()))]
        (part / "label-regions_dseg.tsv").write_text("\n".join(lines) + "\n", "utf-8")


def _of_all_visits(visits: Sequence[PhantomSubject]) -> dict[str, float | str]:
    """Values that are the same at all visits."""
    first = visits[0].covariates
    return {name: value for name, value in first.items() if all(one.covariates.get(name) == value for one in visits)}


def _write_sessions(path: Path, visits: Sequence[PhantomSubject], shared: Container[str]) -> None:
    """Write a table of what differs between visits."""
    names = [name for name in dict.fromkeys(key for one in visits for key in one.covariates) if name not in shared]
    lines = ["\t".join(["session_id", *names])]
    for session, one in enumerate(visits, start=1):
        lines.append("\t".join([f"ses-{session}", *(_cell(one.covariates.get(name)) for name in names)]))
    path.write_text("\n".join(lines) + "\n", "utf-8")


def _write_visit(
    root: Path,
    folder: str,
    start: str,
    subject: PhantomSubject,
    label_sources: Mapping[str, Sequence[str]],
    image_dtype: npt.DTypeLike,
) -> None:
    anat = root / folder
    for suffix, (array, affine) in subject.images.items():
        nifti.write(anat / f"{start}_{suffix}.nii.gz", array, affine, dtype=image_dtype)
    for label, (array, affine) in subject.masks.items():
        stem = f"{start}_label-{label}_{'dseg' if label == 'regions' else 'mask'}"
        narrow = np.uint8 if np.max(array, initial=0) < 256 else np.int32
        nifti.write(anat / f"{stem}.nii.gz", array, affine, dtype=narrow)
        sources = [f"bids::{folder}/{start}_{suffix}.nii.gz" for suffix in label_sources.get(label, ())]
        kind = {"regions": "ROI", "brain": "Brain"}.get(label, "Lesion")
        facts: dict[str, JSON] = {"Type": kind, **({"Sources": sources} if sources else {})}
        _write_json(anat / f"{stem}.json", facts)


def _write_participants(
    part: Path,
    rows: Mapping[str, Mapping[str, float | str | None]],
    columns: Mapping[str, Mapping[str, JSON]],
) -> None:
    names = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = ["\t".join(["participant_id", *names])]
    lines += ["\t".join([id, *(_cell(row.get(column)) for column in names)]) for id, row in rows.items()]
    (part / "participants.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    described = {"participant_id": {"Description": "Unique participant identifier"}}
    _write_json(part / "participants.json", {**described, **{column: columns.get(column, {}) for column in names}})


def _cell(value: float | str | None) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "n/a"
    text = value if isinstance(value, str) else repr(float(value)).removesuffix(".0")
    if "\t" in text or "\n" in text:
        raise HarnessError(f"a cell of participants.tsv must hold no tab or line break, got {text!r}")
    return text


def _write_description(part: Path, name: str, generated_by: Mapping[str, JSON] | None) -> None:
    made = {"Name": "harness", "Description": "generated data, no person behind it", **(generated_by or {})}
    facts = {"Name": name, "BIDSVersion": "1.10.0", "DatasetType": "derivative", "GeneratedBy": [made]}
    _write_json(part / "dataset_description.json", facts)


def begin_derivatives(folder: Path, *, name: str, source: Path, version: str, parameters: Mapping[str, JSON]) -> Path:
    """Make a folder for what was computed from a data set, and say so in its dataset_description.json.

    Parameters
    ----------
    folder : of the derivatives; made if it is not there
    name : of the derivatives
    source : folder of the data set that they were computed from
    version : of the program
    parameters : what determined the result

    Returns
    -------
    Path
        The description.

    Raises
    ------
    RequestError
        If the folder is a data set of another kind: what is computed is not to
        be mixed with what was measured.
    """
    target = folder / "dataset_description.json"
    if target.exists():
        content, problem = read_json(target)
        if content is None or not made_by_harness(content) or content.get("Name") != name:
            raise RequestError(
                f"{folder} holds another data set ({problem or (content or {}).get('Name', 'without a name')}); "
                "nothing was written. Name a new folder"
            )
    made = {"Name": "harness", "Version": version, "Parameters": dict(parameters)}
    facts = {
        "Name": name,
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [made],
        "SourceDatasets": [{"URL": source.absolute().as_uri()}],
    }
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(target, facts)
    return target


def _write_json(path: Path, content: Mapping[str, JSON]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
