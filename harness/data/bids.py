"""Index of a BIDS folder: which files belong to which subject.

Only tables and JSON files are opened, so indexing is fast. The images are checked in
:mod:`harness.data.verify`.

Supported files, for every subject and session::

    participants.tsv, participants.json, dataset_description.json, *dseg.tsv
    sub-01/[ses-1/]anat/sub-01[_ses-1][_key-value]_<suffix>.nii[.gz]          an image
    sub-01/[ses-1/]anat/sub-01[_ses-1][_key-value]_label-<what>_mask.nii[.gz]  a mask
    sub-01/[ses-1/]anat/sub-01[_ses-1][_key-value]_desc-brain_mask.nii[.gz]    the brain
    sub-01/[ses-1/]anat/sub-01[_ses-1][_key-value]_dseg.nii[.gz]               regions
    derivatives/<pipeline>/sub-01/…                                            masks only
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType

from harness.core.errors import UnknownName
from harness.core.types import JSON, Candidate, Fault, Ineligible
from harness.data.participants import PARTICIPANTS_FAULTS, Participants, read_json, read_participants

__all__ = ["INDEX_FAULTS", "BidsIndex", "index"]

INDEX_FAULTS: Mapping[str, str] = MappingProxyType(
    {
        **PARTICIPANTS_FAULTS,
        "ambiguous": "several files match a sequence or label equally well",
        "broken-folder-link": "a subject's folder is a broken link",
        "description-missing": "there is no dataset_description.json",
        "description-unreadable": "dataset_description.json is not a JSON object",
        "empty-folder": "the folder has no files",
        "folder-missing": "the folder does not exist",
        "folder-unreadable": "a folder cannot be listed by this user",
        "misplaced-file": "a file in a subject's folder is named after another subject or session",
        "not-a-folder": "the path is a file",
        "not-bids": "there are no sub-* folders",
        "regions-conflict": "two tables give the same region different names",
        "regions-table": "the table of region names cannot be read",
        "sequence-unknown": "no subject has a sequence or label with this name",
        "session-mix": "a subject has images inside and outside of session folders",
        "sessions-several": "a subject has several complete sessions, and none was chosen",
        "sidecar": "the JSON file beside a mask cannot be read",
        "space-mix": "no single space has all files of a subject",
        "subject-name": "the name of a subject's folder contains characters other than letters and digits",
        "subject-unlisted": "a subject has a folder but no row in participants.tsv",
        "subject-without-folder": "a subject has a row in participants.tsv but no folder",
    }
)

_SUBJECT = re.compile(r"sub-[A-Za-z0-9+]+")
_NOT_IMAGES = {"mask", "dseg", "probseg"}
_NATIVE_SPACES = {"", "individual", "native", "orig", "scanner", "FLAIR", "SWI", "T1w", "T2w"}
_WHERE = {"sub", "ses", "space"}


@dataclass(frozen=True)
class BidsIndex:
    """Files of a BIDS folder; no image has been opened.

    Parameters
    ----------
    root : the folder
    name : name of the data set in dataset_description.json, or else that of the folder
    candidates : subjects (or sessions) with every required file, sorted by id
    ineligible : subjects without a required file or value, or left out by request
    faults : errors in names and tables
    regions : label value → name of the region; empty if there is no table
    label_source : sequences on which the label was drawn, from its JSON sidecar
    notes : values that were converted, e.g. age ``89+`` read as 89
    ranges : column → (lowest, highest) plausible value, from participants.json, and for age
    """

    root: Path
    name: str
    candidates: tuple[Candidate, ...] = ()
    ineligible: tuple[Ineligible, ...] = ()
    faults: tuple[Fault, ...] = ()
    regions: Mapping[int, str] = field(default_factory=dict)
    label_source: str = "not stated by the data"
    notes: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def index(
    root: str | Path,
    *,
    sequences: Sequence[str] = (),
    label: str | None = None,
    optional: Sequence[str] = ("brain", "regions"),
    required: Sequence[str] = (),
    session: str = "only",
    exclude: Sequence[str] = (),
) -> BidsIndex:
    """Find the files of all subjects, and list what is missing or wrong.

    Parameters
    ----------
    root : the BIDS folder
    sequences : suffixes of the images that a subject must have. A name may include entities
        (``ce-gadolinium_T1w``); otherwise the file with the fewest entities is used
    label : the mask that a subject must have (``label-<label>_mask``), if any
    optional : masks that are used if a subject has them
    required : columns of participants.tsv that must have a value
    session : ``"only"`` (several sessions of a subject are a fault), ``"all"`` (each session
        is a candidate), ``"first"``, or the name of a session (``ses-2``)
    exclude : subjects or sessions to leave out, with or without ``sub-``; their faults are
        not reported

    Returns
    -------
    BidsIndex
        If the folder cannot be used, an index with the faults and without candidates; the
        caller decides when to stop.

    Raises
    ------
    UnknownName
        If an excluded name is not in the data set.
    """
    root = Path(root)
    faults = _root_faults(root)
    if faults:
        return BidsIndex(root, root.name, faults=tuple(faults))
    survey = _Survey(root, tuple(sequences), label, tuple(optional), session, _excluded(root, exclude))
    table, table_faults = read_participants(root, required)
    found = _candidates(survey, table, tuple(required))
    regions, region_faults = _region_names(root, found.candidates)
    source, sidecar_faults = _label_source(root, found.candidates, label)
    name, name_faults = _name(root)
    faults = [*name_faults, *table_faults, *_listing_faults(survey, table), *found.faults]
    faults += [*region_faults, *sidecar_faults, *_absent(survey, found.present)]
    return BidsIndex(
        root=root,
        name=name,
        candidates=tuple(found.candidates),
        ineligible=tuple(sorted(found.ineligible, key=lambda one: one.subject)),
        faults=tuple(fault for fault in faults if fault.subject not in survey.exclude),
        regions=regions,
        label_source=source,
        notes=tuple(note for subject, note in table.notes if subject not in survey.exclude),
        ranges=table.ranges,
    )


@dataclass(frozen=True, eq=False)
class _File:
    """One image file and the parts of its name."""

    path: Path
    entities: Mapping[str, str]
    suffix: str
    derived: bool

    @property
    def space(self) -> str:
        space = self.entities.get("space", "")
        return "" if space in _NATIVE_SPACES else space

    @property
    def mask_name(self) -> str:
        """``regions`` for a segmentation, or else the label or description of the mask."""
        if self.suffix == "dseg":
            return "regions"
        return self.entities.get("label") or self.entities.get("desc") or ""

    def extras(self, asked: Iterable[str] = ()) -> int:
        """Number of entities other than subject, session, space, the first run and those asked for."""
        known = _WHERE | set(asked)
        first_run = {("run", "1"), ("run", "01"), ("run", "001")}
        return sum(key not in known and (key, value) not in first_run for key, value in self.entities.items())


@dataclass(frozen=True)
class _Survey:
    """What to look for in a folder, and its subjects."""

    root: Path
    sequences: tuple[str, ...]
    label: str | None
    optional: tuple[str, ...]
    session: str
    exclude: frozenset[str]

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        return _subjects(self.root)

    @property
    def named_session(self) -> str:
        """The session requested by name; empty for ``only``, ``all`` and ``first``."""
        if self.session in ("all", "first", "only"):
            return ""
        return self.session if self.session.startswith("ses-") else f"ses-{self.session}"

    @property
    def wanted(self) -> tuple[str, ...]:
        return (*self.sequences, *((self.label,) if self.label else ()))


@dataclass(frozen=True)
class _Choice:
    """The files chosen from one folder, what is missing, and what is wrong with the choice."""

    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    missing: tuple[str, ...]
    present: frozenset[str]
    faults: tuple[Fault, ...]


@dataclass
class _Found:
    """Results for all subjects, in their order; ``present`` holds all names that occur."""

    candidates: list[Candidate] = field(default_factory=list)
    ineligible: list[Ineligible] = field(default_factory=list)
    present: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)


def _root_faults(root: Path) -> list[Fault]:
    if not root.exists():
        near = difflib.get_close_matches(root.name, _names(root.parent), n=3)
        remedy = f"Near: {', '.join(near)}." if near else "Check data=."
        return [Fault("folder-missing", str(root), "", "there is no such folder", "a BIDS folder", remedy)]
    if not root.is_dir():
        return [Fault("not-a-folder", str(root), "", "a file", "a BIDS folder", "Give the folder that holds it.")]
    try:
        names = sorted(path.name for path in root.iterdir())
    except OSError as error:
        return [_folder_unreadable(root, root, "", error)]
    if not names:
        remedy = "Copy the data there, or make a phantom cohort: harness data make."
        return [Fault("empty-folder", str(root), "", "no files", "sub-* folders", remedy)]
    if not any(name.startswith("sub-") for name in names):
        value = f"no sub-* folder among {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
        remedy = "Arrange the files as sub-<id>/anat/sub-<id>_<suffix>.nii.gz, or give the folder above or below."
        return [Fault("not-bids", str(root), "", value, "sub-* folders", remedy)]
    return []


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def _subjects(root: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in root.iterdir() if path.name.startswith("sub-") and path.is_dir()))


def _excluded(root: Path, exclude: Sequence[str]) -> frozenset[str]:
    """Excluded names with ``sub-``; all must exist in the data set."""
    if not exclude:
        return frozenset()
    known = set(_subjects(root)) | {path.name for path in root.glob("sub-*") if path.is_symlink()}
    known |= {f"{name}_{child}" for name in known for child in _names(root / name) if child.startswith("ses-")}
    known |= set(read_participants(root, ())[0].rows)
    wished = [name if name in known or name.startswith("sub-") else f"sub-{name}" for name in exclude]
    for name in wished:
        if name not in known:
            raise UnknownName("subject", name, known)
    return frozenset(wished)


# --- dataset_description.json and the list of subjects -----------------------


def _name(root: Path) -> tuple[str, list[Fault]]:
    path = root / "dataset_description.json"
    remedy = 'Write at least {"Name": "…", "BIDSVersion": "1.10.0"} into it.'
    if not path.exists():
        expected = "a dataset_description.json"
        return root.name, [Fault("description-missing", path.name, "", "there is no such file", expected, remedy)]
    content, problem = read_json(path)
    if content is None:
        return root.name, [Fault("description-unreadable", path.name, "", problem, "a JSON object", remedy)]
    return str(content.get("Name") or root.name), []


def _listing_faults(survey: _Survey, table: Participants) -> list[Fault]:
    """Folders without a row, rows without a folder, and invalid names of folders."""
    faults = [_name_fault(name) for name in survey.subjects if not _SUBJECT.fullmatch(name)]
    for path in sorted(survey.root.glob("sub-*")):
        if path.is_symlink() and not path.exists():
            value, remedy = f"a link to {path.readlink()}, which is not there", "Fetch the content, or fix the link."
            faults.append(Fault("broken-folder-link", path.name, path.name, value, "a folder", remedy))
    if not table.present or not table.rows:
        return faults
    for subject in survey.subjects:
        if subject not in table.rows:
            value, remedy = f"{subject} has a folder but no row", "Add a row (n/a where nothing is known)."
            faults.append(Fault("subject-unlisted", "participants.tsv", subject, value, "a row", remedy))
    for subject in table.rows:
        if subject not in survey.subjects:
            value, remedy = f"{subject or '(no name)'} has a row but no folder", "Copy the folder, or delete the row."
            faults.append(Fault("subject-without-folder", "participants.tsv", subject, value, "a folder", remedy))
    return faults


def _name_fault(name: str) -> Fault:
    remedy = "Rename the folder, its files and its row in participants.tsv."
    return Fault("subject-name", name, name, f"the name is {name!r}", "sub- and letters and digits only", remedy)


# --- subjects and their sessions ---------------------------------------------


def _candidates(survey: _Survey, table: Participants, required: tuple[str, ...]) -> _Found:
    """Candidates of all subjects that have every required value."""
    found = _Found(ineligible=[Ineligible(name, "excluded by request") for name in sorted(survey.exclude)])
    for subject in survey.subjects:
        if subject in survey.exclude or not _SUBJECT.fullmatch(subject):
            continue
        covariates = table.rows.get(subject, {})
        absent = [column for column in required if covariates.get(column) is None]
        one = _sessions(survey, subject, covariates)
        if absent and one.candidates:
            reason = f"{', '.join(absent)} n/a in participants.tsv"
            one = _Found(ineligible=[Ineligible(subject, reason)], present=one.present)
        found.candidates += one.candidates
        found.ineligible += one.ineligible
        found.present |= one.present
        found.faults += one.faults
    return found


def _sessions(survey: _Survey, subject: str, covariates: Mapping[str, float | str | None]) -> _Found:
    """Candidates of one subject as ``session`` demands, or the reason why there are none."""
    groups, faults = _grouped_files(survey, subject)
    named = survey.named_session
    if named and named not in groups:
        has = ", ".join(filter(None, groups)) or "no sessions"
        return _Found(ineligible=[Ineligible(subject, f"no {named}; has {has}")], faults=faults)
    if not named and "" in groups and len(groups) > 1:
        faults.append(_session_mix(subject, groups))
    ids = {f"{subject}_{session}" if session else subject: session for session in groups}
    choices = {
        id: _choose(survey, subject, groups[session])
        for id, session in ids.items()
        if id not in survey.exclude and named in ("", session)
    }
    usable = [id for id, choice in choices.items() if not choice.missing]
    if survey.session == "first":
        usable = usable[:1]
    if survey.session == "only" and len(usable) > 1 and "" not in groups:
        faults.append(_several_sessions(subject, usable))
    return _Found(
        candidates=[Candidate(id, subject, choices[id].images, choices[id].masks, covariates) for id in usable],
        ineligible=_left_out(survey, subject, choices, usable),
        present=set().union(*(choice.present for choice in choices.values())),
        faults=[*faults, *(fault for id in usable for fault in choices[id].faults)],
    )


def _left_out(survey: _Survey, subject: str, choices: Mapping[str, _Choice], usable: Sequence[str]) -> list[Ineligible]:
    """Reasons per subject, or per session if each session is a candidate."""
    reasons = {id: _reason(choice) for id, choice in choices.items() if choice.missing}
    if survey.session == "all" and choices:
        return [Ineligible(id, reason) for id, reason in reasons.items()]
    if usable or any(name.startswith(f"{subject}_") for name in survey.exclude):
        return []
    if len(choices) > 1:
        return [Ineligible(subject, "; ".join(f"{id}: {reason}" for id, reason in reasons.items()))]
    return [Ineligible(subject, next(iter(reasons.values()), "no images in anat"))]


def _reason(choice: _Choice) -> str:
    return f"no {', '.join(choice.missing)}; has {', '.join(sorted(choice.present)) or 'nothing'}"


def _session_mix(subject: str, groups: Iterable[str]) -> Fault:
    value = f"images in {subject}/anat and in {', '.join(filter(None, groups))}"
    remedy = "Move all images into session folders, or name one: session=ses-…"
    return Fault("session-mix", subject, subject, value, "either sessions or none", remedy)


def _several_sessions(subject: str, usable: Sequence[str]) -> Fault:
    value, remedy = f"{', '.join(usable)} are all complete", "Choose: session=first, session=all or session=ses-…"
    return Fault("sessions-several", subject, subject, value, "one session", remedy)


# --- the files of one session ------------------------------------------------


def _grouped_files(survey: _Survey, subject: str) -> tuple[dict[str, list[_File]], list[Fault]]:
    """Image files of a subject by session (``""`` without one); sessions without images are left out."""
    groups: dict[str, list[_File]] = {}
    faults: list[Fault] = []
    homes = [survey.root / subject, *sorted(survey.root.glob(f"derivatives/*/{subject}"))]
    for home in homes:
        derived = home != homes[0]
        for session in ["", *(name for name in _names(home) if name.startswith("ses-"))]:
            files, found = _files(survey.root, home / session / "anat", subject, session, derived=derived)
            faults += found
            if files:
                groups.setdefault(session, []).extend(files)
    return dict(sorted(groups.items())), faults


def _files(root: Path, folder: Path, subject: str, session: str, *, derived: bool) -> tuple[list[_File], list[Fault]]:
    """Image files of one ``anat`` folder, in order of their names."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.name.endswith((".nii", ".nii.gz")))
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except OSError as error:
        return [], [_folder_unreadable(root, folder, subject, error)]
    files, faults = [], []
    for path in paths:
        if path.name.startswith("."):
            continue
        *pairs, suffix = path.name.partition(".nii")[0].split("_")
        entities = dict(pair.partition("-")[::2] for pair in pairs)
        found = (f"sub-{entities.get('sub', '')}", f"ses-{entities['ses']}" if "ses" in entities else "")
        if found != (subject, session):
            faults.append(_misplaced(str(path.relative_to(root)), subject, session, found))
        elif not derived or suffix in _NOT_IMAGES:
            files.append(_File(path, entities, suffix, derived))
    return files, faults


def _misplaced(file: str, subject: str, session: str, found: tuple[str, str]) -> Fault:
    value = f"the name says {'_'.join(filter(None, found))}"
    expected = f"a name with {'_'.join(filter(None, (subject, session)))}"
    return Fault("misplaced-file", file, subject, value, expected, "Rename the file, or move it where it belongs.")


def _folder_unreadable(root: Path, folder: Path, subject: str, error: OSError) -> Fault:
    file = str(folder.relative_to(root)) if folder != root else str(root)
    value, remedy = error.strerror or str(error), "Ask its owner for access, or chmod u+rx it."
    return Fault("folder-unreadable", file, subject, value, "a folder that can be listed", remedy)


def _choose(survey: _Survey, subject: str, files: Sequence[_File]) -> _Choice:
    """The best file for every name, all from one space if one has all of them."""
    answers = {name: _best(files, survey, name) for name in survey.wanted}
    missing = tuple(_spoken(survey, name) for name, best in answers.items() if not best)
    present = {file.suffix for file in files} - _NOT_IMAGES | {f"label-{name}_mask" for name in _labels(files)}
    present |= {_spoken(survey, name) for name, best in answers.items() if best}
    within: dict[str, list[_File]] = {}
    for file in files:
        within.setdefault(file.space, []).append(file)
    complete = [space for space in sorted(within) if all(_best(within[space], survey, name) for name in survey.wanted)]
    faults = []
    if not complete and not missing:
        faults.append(_space_mix(subject, answers))
    if survey.wanted and len(complete) > 1 and complete[0]:
        faults.append(_several_spaces(subject, complete))
    images, masks, ties = _named(survey, within[complete[0]] if complete else files)
    faults += [_ambiguous(survey.root, subject, name, best) for name, best in ties.items()]
    return _Choice(images, masks, missing, frozenset(present), tuple(faults))


def _labels(files: Iterable[_File]) -> list[str]:
    return sorted({file.mask_name for file in files if file.suffix in ("mask", "dseg")} - {""})


def _spoken(survey: _Survey, name: str) -> str:
    return f"label-{name}_mask" if name == survey.label else name


def _space_mix(subject: str, answers: Mapping[str, Sequence[_File]]) -> Fault:
    value = "; ".join(f"{name} in {_spaces(files)}" for name, files in answers.items())
    remedy = "Bring all files of the subject into one space."
    return Fault("space-mix", subject, subject, value, "all files in one space", remedy)


def _several_spaces(subject: str, spaces: Sequence[str]) -> Fault:
    value = f"complete in {' and in '.join(f'space-{space}' for space in spaces)}"
    return Fault("ambiguous", subject, subject, value, "one space", "Keep one of the spaces in this folder.")


def _spaces(files: Sequence[_File]) -> str:
    return ", ".join(sorted({f"space-{file.space}" if file.space else "native space" for file in files}))


def _best(files: Sequence[_File], survey: _Survey, name: str) -> list[_File]:
    """Files that match a name best; several if they match equally well."""
    return _best_mask(files, name) if name == survey.label else _best_image(files, name)


def _best_image(files: Sequence[_File], name: str) -> list[_File]:
    *pairs, suffix = name.split("_")
    asked = dict(pair.partition("-")[::2] for pair in pairs)
    matching = [file for file in files if file.suffix == suffix and asked.items() <= file.entities.items()]
    return _plainest({file: (file.extras(asked),) for file in matching})


def _best_mask(files: Sequence[_File], name: str) -> list[_File]:
    ranks = {}
    for file in files:
        if file.suffix in ("mask", "dseg") and file.mask_name == name:
            # label-brain_mask takes precedence over desc-brain_mask.
            plain = file.entities.get("label") == name
            ranks[file] = (file.derived, file.extras({"label"}), not plain)
    return _plainest(ranks)


def _plainest(ranks: Mapping[_File, tuple[int, ...]]) -> list[_File]:
    best = min(ranks.values(), default=())
    return [file for file, rank in ranks.items() if rank == best]


def _named(survey: _Survey, files: Sequence[_File]) -> tuple[dict[str, Path], dict[str, Path], dict[str, list[_File]]]:
    """Images and masks by name, and the used names that several files match equally well.

    Such a name is left out if it is not used. If it is used, its first file is kept, so that
    verification can find further faults; the run stops in any case.
    """
    suffixes = sorted({file.suffix for file in files} - _NOT_IMAGES)
    images = {name: _best_image(files, name) for name in dict.fromkeys((*survey.sequences, *suffixes))}
    masks = {name: _best_mask(files, name) for name in _labels(files)}
    used = {name: images[name] for name in survey.sequences}
    used |= {name: masks[name] for name in (survey.label, *survey.optional) if name in masks}
    ties = {name: best for name, best in used.items() if len(best) > 1}
    return _first(images, ties), _first(masks, ties), ties


def _first(answers: Mapping[str, Sequence[_File]], ties: Mapping[str, object]) -> dict[str, Path]:
    return {name: best[0].path for name, best in answers.items() if len(best) == 1 or name in ties}


def _ambiguous(root: Path, subject: str, name: str, files: Sequence[_File]) -> Fault:
    value = f"{name} could be {' or '.join(file.path.name for file in files)}"
    remedy = f"Keep one of them in the folder; for an image, or ask by its entities, e.g. acq-…_{name}."
    where = str(files[0].path.parent.relative_to(root))
    return Fault("ambiguous", where, subject, value, f"one file for {name}", remedy)


def _absent(survey: _Survey, present: Iterable[str]) -> list[Fault]:
    """Names that no subject has, which are probably misspelt."""
    known = sorted(present)
    return [
        _sequence_unknown(name, known) for name in map(partial(_spoken, survey), survey.wanted) if name not in known
    ]


def _sequence_unknown(name: str, known: Sequence[str]) -> Fault:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    remedy = f"Did you mean {' or '.join(near)}?" if near else "Ask for one of these, or add the files."
    value = f"no subject has {name}; the data set has {', '.join(known) or 'no images'}"
    return Fault("sequence-unknown", "", "", value, "one of these names", remedy)


# --- names of regions, source of the label -----------------------------------


def _region_names(root: Path, candidates: Sequence[Candidate]) -> tuple[dict[int, str], list[Fault]]:
    """Label value → name, from tables at the root and beside the regions images."""
    tables = [(path, "") for pattern in ("*dseg.tsv", "*label-regions_*.json") for path in sorted(root.glob(pattern))]
    for one in candidates:
        beside = (_beside(one.masks["regions"], end) for end in (".tsv", ".json") if "regions" in one.masks)
        tables += [(path, one.subject) for path in beside if path.exists()]
    names: dict[int, tuple[str, str]] = {}
    faults: list[Fault] = []
    for path, subject in tables:
        file = str(path.relative_to(root))
        found, problem = _lookup_table(path)
        if problem:
            remedy = "Write a tab-separated table with the columns index and name."
            faults.append(Fault("regions-table", file, subject, problem, "numbers with names", remedy))
        for number, name in found.items():
            first, origin = names.setdefault(number, (name, file))
            if name != first:
                value = f"region {number} is {name!r} here and {first!r} in {origin}"
                remedy = "Give every region the same name everywhere."
                faults.append(Fault("regions-conflict", file, subject, value, "one name for each region", remedy))
    return {number: name for number, (name, _) in sorted(names.items())}, faults


def _beside(image: Path, end: str) -> Path:
    return image.with_name(image.name.partition(".nii")[0] + end)


def _lookup_table(path: Path) -> tuple[dict[int, str], str]:
    """Names by number, and what is wrong with the table."""
    try:
        if path.suffix == ".json":
            content, problem = read_json(path)
            labels: Mapping[str, JSON] = {}
            for key in ("Levels", "LabelMap", "Labels"):
                labels = labels or (content or {}).get(key, {})
            return {int(number): str(name) for number, name in labels.items()}, problem
        header, *lines = path.read_text("utf-8-sig").splitlines()
        columns = header.split("\t")
        number, name = columns.index("index"), columns.index("name")
        rows = [line.split("\t") for line in lines if line.strip()]
        return {int(row[number]): row[name].strip() for row in rows}, ""
    except (OSError, ValueError, IndexError, AttributeError) as error:
        return {}, f"it cannot be read ({error})"


def _label_source(root: Path, candidates: Sequence[Candidate], label: str | None) -> tuple[str, list[Fault]]:
    """Sequences under ``Sources`` in the JSON files of the masks, with counts if they differ."""
    stated: Counter[str] = Counter()
    faults: dict[str, Fault] = {}
    shared = [(path, "") for path in sorted(root.glob("*.json")) if path.stem.endswith(f"label-{label}_mask")]
    for one in candidates:
        if label is None or label not in one.masks:
            continue
        own = _beside(one.masks[label], ".json")
        for path, subject in [(own, one.subject)] if own.exists() else shared[:1]:
            content, problem = read_json(path)
            stated[_sources(content or {})] += 1
            if content is None:
                file, remedy = str(path.relative_to(root)), "Fix the file, or delete it: it is optional."
                faults[file] = Fault("sidecar", file, subject, problem, "a JSON object", remedy)
    stated.pop("", None)
    if len(stated) > 1:
        return "; ".join(f"{source} ({count} masks)" for source, count in sorted(stated.items())), [*faults.values()]
    return next(iter(stated), "not stated by the data"), [*faults.values()]


def _sources(content: Mapping[str, JSON]) -> str:
    """``["bids::sub-01/anat/sub-01_T2w.nii.gz", …]`` → ``"T2w, …"``."""
    sources = content.get("Sources") or []
    names = [str(source) for source in (sources if isinstance(sources, list) else [sources])]
    return ", ".join(name.rpartition("_")[2].partition(".")[0] for name in names)
