"""Index of a BIDS folder: which files belong to which subject.

Only tables and JSON files are opened, so indexing is fast. The images are checked in
:mod:`harness.data.verify`.

Supported files, for every subject and session::

    participants.tsv, participants.json, dataset_description.json, *dseg.tsv
    sub-01/sub-01_sessions.tsv                                                 values of each visit
    sub-01/[ses-1/]anat/sub-01[_ses-1][_key-value]_<suffix>.nii[.gz]          an image
    sub-01/[ses-1/]anat/sub-01[_ses-1][_key-value]_label-<what>_mask.nii[.gz]  a mask
    sub-01/[ses-1/]anat/sub-01[_ses-1][_key-value]_desc-brain_mask.nii[.gz]    the brain
    sub-01/[ses-1/]anat/sub-01[_ses-1][_key-value]_dseg.nii[.gz]               regions
    derivatives/<pipeline>/sub-01/…                                            masks only

Which of several files is used is decided by rules that are documented in
:mod:`harness.data.bids_files`; whatever is not the plain case is told in the notes.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from types import MappingProxyType

from harness.core.errors import UnknownName
from harness.core.types import Candidate, Fault, Ineligible
from harness.data.bids_choice import Choice, choose, name_in_files
from harness.data.bids_files import best_mask, entities_of, is_image, is_predicted, link_out, listed, unseen_files
from harness.data.bids_notes import (
    as_sentences,
    contrast_faults,
    space_faults,
    space_notes,
    unread_notes,
    variant_notes,
    variants,
    without_spaces,
)
from harness.data.bids_survey import Survey, folder_unreadable, names_in
from harness.data.bids_tables import label_source, region_names
from harness.data.participants import PARTICIPANTS_FAULTS, Participants, read_json, read_participants, read_sessions

__all__ = ["INDEX_FAULTS", "BidsIndex", "index"]

INDEX_FAULTS: Mapping[str, str] = MappingProxyType(
    {
        **PARTICIPANTS_FAULTS,
        "ambiguous": "several files match a sequence or label equally well",
        "broken-folder-link": "a subject's folder is a broken link",
        "contrast-mix": "a sequence shows another contrast in some subjects, e.g. with a contrast agent",
        "description-missing": "there is no dataset_description.json",
        "description-unreadable": "dataset_description.json is not a JSON object",
        "empty-folder": "the folder has no files",
        "folder-missing": "the folder does not exist",
        "folder-unreadable": "a folder cannot be listed by this user",
        "link-outside": "a link leads out of the data set",
        "misplaced-file": "a file in a subject's folder is named after another subject or session",
        "not-a-folder": "the path is a file",
        "not-bids": "there are no sub-* folders",
        "regions-conflict": "two tables give the same region different names",
        "regions-table": "the table of region names cannot be read",
        "sequence-unknown": "no subject has a sequence or label with this name",
        "session-mix": "a subject has images inside and outside of session folders",
        "sessions-several": "a subject has several complete sessions, and none was chosen",
        "sidecar": "the JSON file beside a mask cannot be read",
        "space-mix": "the files of a subject, or lesion masks of several, are not in one space",
        "space-native": "lesion masks are in the space of the subject where a template is needed",
        "space-unread": "a lesion mask states a space that is not understood, where a template is needed",
        "subject-name": "the name of a subject's folder contains characters other than letters and digits",
        "subject-unlisted": "a subject has a folder but no row in participants.tsv",
        "subject-without-folder": "a subject has a row in participants.tsv but no folder",
        "truth-predicted": "the masks are predictions of this program, which are no truth",
        "truth-several": "several derivatives have masks of the label, and none was chosen",
    }
)

_MOST_UNSEEN = 3  # subjects with a note of their own
_SUBJECT = re.compile(r"sub-[A-Za-z0-9+]+")


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
    notes : what was read with a reservation, e.g. age ``89+`` read as 89, masks of a derivative
    files : name of an image or mask → variant of its file name → number of candidates
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
    files: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
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
    truth: str = "",
    space: str = "",
    template: bool = False,
    links: Path | None = None,
) -> BidsIndex:
    """Find the files of all subjects, and list what is missing or wrong.

    Parameters
    ----------
    root : the BIDS folder
    sequences : suffixes of the images that a subject must have. A name may include entities
        (``ce-gadolinium_T1w``). Otherwise the file without entities is used or, if there is
        none, the only other one; several are a fault
    label : the mask that a subject must have (``label-<label>_mask``), if any; a name may
        include entities (``desc-rater1_lesion``)
    optional : masks that are used if a subject has them
    required : columns of participants.tsv that must have a value
    session : ``"only"`` (several sessions of a subject are a fault), ``"all"`` (each session
        is a candidate), ``"first"`` (in numerical order), or the name of a session (``ses-2``)
    exclude : subjects or sessions to leave out, with or without ``sub-``; their faults are
        not reported
    truth : where masks of the label are taken from: ``raw`` (the data set itself) or a
        derivative (``derivatives/manual``). By default, the data set itself or, if it has
        none, the only derivative that has. With ``+``, the first that a subject has.
        Predictions of this program are refused
    space : use only files of this space (``MNI152NLin6Asym``, ``native``); by default, that
        which has all files of a subject, native first
    template : whether masks must be in one template space. Masks that name one are used,
        rather than others; a mix of template and native space is a fault
    links : folder outside of the data set into which links may lead; links within the data
        set are always followed

    Returns
    -------
    BidsIndex
        If the folder cannot be used, an index with the faults and without candidates; the
        caller decides when to stop.

    Raises
    ------
    UnknownName
        If an excluded name, the source of the truth or the space is not in the data set.
    """
    root = Path(root)
    faults = _root_faults(root) or _table_links(root, links)
    if faults:
        return BidsIndex(root, root.name, faults=tuple(faults))
    survey = Survey(
        root, tuple(sequences), label, tuple(optional), session, _excluded(root, exclude), truth, space, template,
        links,
    )  # fmt: skip
    survey.check_space()
    survey.check_session()
    table, table_faults = read_participants(root, required, survey.subjects)
    sessions, session_notes, session_faults = read_sessions(
        root, {subject: list(filter(None, survey.found[subject][0])) for subject in survey.subjects}
    )
    found = _candidates(survey, table, tuple(required), sessions)
    regions, region_faults = region_names(root, found.candidates)
    if "regions" in survey.optional and not regions and not region_faults:
        found = _without_regions(found)
    source, sidecar_faults = label_source(root, found.candidates, label)
    name, name_faults = _name(survey)
    chosen = variants(root, found.candidates, survey.wanted)
    faults = [*name_faults, *table_faults, *_listing_faults(survey, table), *survey.source.faults, *found.faults]
    faults += [*session_faults, *region_faults, *sidecar_faults, *_absent(survey, found.present)]
    faults += contrast_faults(chosen, survey.sequences)
    faults += _file_links(root, found.candidates, links)
    notes = [
        *table.notes,
        *session_notes,
        *survey.source.notes,
        *found.notes,
        *_from_derivatives(survey, found.candidates),
    ]
    notes += [("", text) for text in _unseen_notes(survey, found.candidates)]
    notes += [("", text) for text in _session_notes(survey, found.candidates)]
    if template and label:
        faults += space_faults(survey, found.candidates)
        notes += [("", text) for text in space_notes(survey, found.candidates)]
    else:
        notes += unread_notes(survey, found.candidates)
    notes += [("", text) for text in variant_notes(without_spaces(chosen) if template else chosen, survey.sequences)]
    return BidsIndex(
        root=root,
        name=name,
        candidates=tuple(found.candidates),
        ineligible=tuple(sorted(found.ineligible, key=lambda one: one.subject)),
        faults=tuple(fault for fault in faults if fault.subject not in survey.exclude),
        regions=regions,
        label_source=source,
        notes=as_sentences((subject, text) for subject, text in notes if subject not in survey.exclude),
        files={one: {variant: len(ids) for variant, ids in own.items()} for one, own in chosen.items()},
        ranges=table.ranges,
    )


@dataclass
class _Found:
    """Results for all subjects, in their order; ``present`` holds all names that occur."""

    candidates: list[Candidate] = field(default_factory=list)
    ineligible: list[Ineligible] = field(default_factory=list)
    present: set[str] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)


def _without_regions(found: _Found) -> _Found:
    """Candidates without regions images whose labels no table names; they were not asked for."""
    held = [one.subject for one in found.candidates if "regions" in one.masks]
    if not held:
        return found
    text = (
        "the regions image is not used, because no table names its labels (*_dseg.tsv with the columns index and name)"
    )
    candidates = [
        dataclasses.replace(one, masks={name: path for name, path in one.masks.items() if name != "regions"})
        for one in found.candidates
    ]
    return dataclasses.replace(found, candidates=candidates, notes=[*found.notes, *((one, text) for one in held)])


def _from_derivatives(survey: Survey, candidates: Iterable[Candidate]) -> list[tuple[str, str]]:
    """Notes on optional masks that are taken from a derivative."""
    notes = []
    for one in candidates:
        for name in survey.optional:
            parts = one.masks[name].relative_to(survey.root).parts if name in one.masks else ("",)
            if parts[0] == "derivatives":
                notes.append((one.subject, f"the mask {name} is taken from {'/'.join(parts[:2])}"))
    return notes


def _session_notes(survey: Survey, candidates: Sequence[Candidate]) -> list[str]:
    """Note on subjects whose session is another than that of most, e.g. because their baseline is missing."""
    if survey.session == "all" or survey.named_session:
        return []
    sessions: dict[str, list[str]] = {}
    for one in candidates:
        if one.id != one.subject:
            sessions.setdefault(one.id.removeprefix(f"{one.subject}_"), []).append(one.subject)
    count = sum(map(len, sessions.values()))
    usual = max(sessions, key=lambda session: len(sessions[session]), default="")
    if len(sessions) < 2 or 2 * len(sessions[usual]) <= count:
        return []
    others = [
        f"{session} in {len(subjects)} of {count} subjects ({listed(subjects)})"
        for session, subjects in sessions.items()
        if session != usual
    ]
    return [f"the session is {' and '.join(others)}, else {usual}"]


def _unseen_notes(survey: Survey, candidates: Iterable[Candidate]) -> list[str]:
    """Note on files of usable subjects that are not read, e.g. of another session."""
    suffixes = {entities_of(name)[1] for name in survey.sequences} | ({"mask"} if survey.label else set())
    subjects = dict.fromkeys(one.subject for one in candidates) if suffixes else {}
    unseen = {subject: text for subject in subjects if (text := unseen_files(survey.root, subject, suffixes))}
    if len(unseen) > _MOST_UNSEEN:
        first = next(iter(unseen))
        return [f"files of {len(unseen)} subjects are not read, e.g. of {first}: {unseen[first]}"]
    return [f"not read of {subject}: {text}" for subject, text in unseen.items()]


def _root_faults(root: Path) -> list[Fault]:
    if not root.exists():
        near = difflib.get_close_matches(root.name, names_in(root.parent), n=3)
        remedy = f"Near: {', '.join(near)}." if near else "Check data=."
        return [Fault("folder-missing", str(root), "", "there is no such folder", "a BIDS folder", remedy)]
    if not root.is_dir():
        return [Fault("not-a-folder", str(root), "", "a file", "a BIDS folder", "Give the folder that holds it.")]
    try:
        names = sorted(path.name for path in root.iterdir())
    except OSError as error:
        return [folder_unreadable(root, root, "", error)]
    if not names:
        remedy = "Copy the data there, or make a phantom cohort: harness data make."
        return [Fault("empty-folder", str(root), "", "no files", "sub-* folders", remedy)]
    if not any(name.startswith("sub-") and (root / name).is_dir() for name in names):
        return [_not_bids(root, names)]
    return []


def _table_links(root: Path, allowed: Path | None) -> list[Fault]:
    """Tables whose content is elsewhere; they are not opened, because messages quote what is wrong with a table."""
    tables = [path for end in ("tsv", "json") for one in ("", "sub-*/") for path in sorted(root.glob(f"{one}*.{end}"))]
    found = {where: "" for path in tables if path.exists() and (where := link_out(path, root, allowed))}
    return [_link_fault(where, subject) for where, subject in found.items()]


def _file_links(root: Path, candidates: Iterable[Candidate], allowed: Path | None) -> list[Fault]:
    """Images, and JSON files beside them, whose content is elsewhere; one fault for each link."""
    found: dict[str, str] = {}
    beside: dict[Path, list[Path]] = {}  # JSON files of a folder, which may state the space of its images
    for one in candidates:
        for path in (*one.images.values(), *one.masks.values()):
            stem = path.name.partition(".nii")[0]
            above = [folder for folder in path.parents if folder != root and folder.is_relative_to(root)]
            beside |= {folder: sorted(folder.glob("*.json")) for folder in above if folder not in beside}
            stated = [file for folder in above for file in beside[folder]]
            for file in (path, path.with_name(f"{stem}.json"), path.with_name(f"{stem}.tsv"), *stated):
                if file.exists() and (where := link_out(file, root, allowed)):
                    found.setdefault(where, one.subject)
    return [_link_fault(where, subject) for where, subject in found.items()]


def _link_fault(where: str, subject: str) -> Fault:
    file, _, target = where.partition(" → ")
    remedy = f"Copy the content, or set cohort.links={PurePath(target).parent} if you trust this data set."
    return Fault("link-outside", file, subject, f"a link to {target}", "a link within the data set", remedy)


def _not_bids(root: Path, names: Sequence[str]) -> Fault:
    value = f"no sub-* folder among {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
    remedy = "Arrange the files as sub-<id>/anat/sub-<id>_<suffix>.nii.gz, or give the folder above or below."
    return Fault("not-bids", str(root), "", value, "sub-* folders", remedy)


def _subjects(root: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in root.iterdir() if path.name.startswith("sub-") and path.is_dir()))


def _excluded(root: Path, exclude: Sequence[str]) -> frozenset[str]:
    """Excluded names with ``sub-``; all must exist in the data set."""
    if not exclude:
        return frozenset()
    known = set(_subjects(root)) | {path.name for path in root.glob("sub-*") if path.is_symlink()}
    known |= {f"{name}_{child}" for name in known for child in names_in(root / name) if child.startswith("ses-")}
    known |= set(read_participants(root, (), _subjects(root))[0].rows)
    wished = [name if name in known or name.startswith("sub-") else f"sub-{name}" for name in exclude]
    for name in wished:
        if name not in known:
            raise UnknownName("subject", name, known)
    return frozenset(wished)


# --- dataset_description.json and the list of subjects -----------------------


def _name(survey: Survey) -> tuple[str, list[Fault]]:
    """Name of the data set, and faults of its description."""
    root, path = survey.root, survey.root / "dataset_description.json"
    remedy = 'Write at least {"Name": "…", "BIDSVersion": "1.10.0"} into it.'
    if not path.exists():
        expected = "a dataset_description.json"
        return root.name, [Fault("description-missing", path.name, "", "there is no such file", expected, remedy)]
    content, problem = read_json(path)
    if content is None:
        return root.name, [Fault("description-unreadable", path.name, "", problem, "a JSON object", remedy)]
    name = str(content.get("Name") or root.name)
    return name, [_predicted(path)] if survey.label and is_predicted(content) else []


def _predicted(path: Path) -> Fault:
    value = "the data set holds predictions of harness (GeneratedBy)"
    return Fault(
        "truth-predicted", path.name, "", value, "masks that are no predictions", "Give the folder of the data."
    )


def _listing_faults(survey: Survey, table: Participants) -> list[Fault]:
    """Folders without a row, rows without a folder, and invalid names of folders."""
    faults = [_name_fault(name) for name in survey.subjects if not _SUBJECT.fullmatch(name)]
    faults += [_case_fault(name) for name in names_in(survey.root) if _is_misspelt(survey.root / name)]
    faults += [_loose_file(path.name) for path in sorted(survey.root.glob("sub-*")) if is_image(path)]
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


def _loose_file(name: str) -> Fault:
    subject = name.partition("_")[0].partition(".")[0]
    value, remedy = "the file lies beside the folders of subjects", f"Move it to {subject}/anat."
    return Fault("misplaced-file", name, subject, value, f"a file in {subject}/anat", remedy)


def _is_misspelt(path: Path) -> bool:
    """Whether a folder looks like one of a subject, but is not read: ``Sub-01``, ``sub_01``."""
    looks = re.match(r"sub[-_ ]\w|sub\d", path.name, re.IGNORECASE)
    return bool(looks) and not path.name.startswith("sub-") and path.is_dir()


def _case_fault(name: str) -> Fault:
    value, remedy = f"the folder {name!r} is not read", "Rename it and its files to sub-…, or move it elsewhere."
    return Fault("subject-name", name, "", value, "sub- in small letters", remedy)


# --- subjects and their sessions ---------------------------------------------


def _of_session(candidate: Candidate, sessions: Mapping[str, Mapping[str, float | str | None]]) -> Candidate:
    """The candidate with the values of its own session, which precede those of its subject."""
    own = {name: value for name, value in sessions.get(candidate.id, {}).items() if value is not None}
    return dataclasses.replace(candidate, covariates={**candidate.covariates, **own}) if own else candidate


def _candidates(
    survey: Survey,
    table: Participants,
    required: tuple[str, ...],
    sessions: Mapping[str, Mapping[str, float | str | None]],
) -> _Found:
    """Candidates of all subjects that have every required value."""
    found = _Found(ineligible=[Ineligible(name, "excluded by request") for name in sorted(survey.exclude)])
    for subject in survey.subjects:
        if subject in survey.exclude or not _SUBJECT.fullmatch(subject):
            continue
        covariates = table.rows.get(subject, {})
        absent = [column for column in required if covariates.get(column) is None]
        one = _sessions(survey, subject, covariates)
        one.candidates = [_of_session(candidate, sessions) for candidate in one.candidates]
        if absent and one.candidates:
            reason = f"{', '.join(absent)} n/a in participants.tsv"
            one = _Found(ineligible=[Ineligible(subject, reason)], present=one.present)
        found.candidates += one.candidates
        found.ineligible += one.ineligible
        found.present |= one.present
        found.faults += one.faults
        found.notes += one.notes
    return found


def _sessions(survey: Survey, subject: str, covariates: Mapping[str, float | str | None]) -> _Found:
    """Candidates of one subject as ``session`` demands, or the reason why there are none."""
    groups, name_faults = survey.found[subject]
    faults = list(name_faults)
    named = survey.named_session
    if named and named not in groups:
        has = ", ".join(filter(None, groups)) or "no sessions"
        return _Found(ineligible=[Ineligible(subject, f"no {named}; has {has}")], faults=faults)
    # Derivatives of a subject with sessions often hold its anatomy above them (fMRIPrep).
    if not named and len(groups) > 1 and any(not file.pipeline for file in groups.get("", ())):
        faults.append(_session_mix(subject, groups))
    ids = {f"{subject}_{session}" if session else subject: session for session in groups}
    choices = {
        id: choose(survey, subject, session)
        for id, session in ids.items()
        if id not in survey.exclude and named in ("", session)
    }
    complete = [id for id, choice in choices.items() if not choice.missing]
    usable = complete[:1] if survey.session == "first" else complete
    if survey.session == "only" and len(usable) > 1 and not any(fault.kind == "session-mix" for fault in faults):
        faults.append(_several_sessions(subject, usable))
    notes = [note for id in usable for note in choices[id].notes]
    notes += _first_notes([ids[id] for id in choices], [ids[id] for id in usable]) if survey.session == "first" else []
    return _Found(
        candidates=[
            Candidate(id, subject, choices[id].images, choices[id].masks, covariates, choices[id].space)
            for id in usable
        ],
        ineligible=_left_out(survey, subject, choices, usable),
        present=set().union(*(choice.present for choice in choices.values())),
        faults=[*faults, *(fault for id in usable for fault in choices[id].faults)],
        notes=[(subject, note) for note in notes],
    )


def _first_notes(sessions: Sequence[str], used: Sequence[str]) -> list[str]:
    """Notes on a first session that was not the obvious one."""
    if len(sessions) < 2 or not used:
        return []
    if used[0] != sessions[0]:
        return [f"the first complete session is {used[0]} of {', '.join(filter(None, sessions))}"]
    if len({re.sub(r"\d+", "", session) for session in sessions}) > 1:
        return [f"the first session in alphabetical order is {used[0]} of {', '.join(filter(None, sessions))}"]
    return []


def _left_out(survey: Survey, subject: str, choices: Mapping[str, Choice], usable: Sequence[str]) -> list[Ineligible]:
    """Reasons per subject, or per session if each session is a candidate."""
    reasons = {id: _reason(choice) for id, choice in choices.items() if choice.missing}
    unseen = "" if usable else unseen_files(survey.root, subject)
    more = f"; not read: {unseen}" if unseen else ""
    if survey.session == "all" and choices:
        # A derivative above the sessions is no session that lacks images.
        return [Ineligible(id, reason + more) for id, reason in reasons.items() if id != subject or not usable]
    if usable or any(name.startswith(f"{subject}_") for name in survey.exclude):
        return []
    if len(choices) > 1:
        return [Ineligible(subject, "; ".join(f"{id}: {reason}" for id, reason in reasons.items()) + more)]
    return [Ineligible(subject, next(iter(reasons.values()), "no images in anat") + more)]


def _reason(choice: Choice) -> str:
    has = ", ".join(sorted(choice.present)) or "nothing"
    others = [name for name in sorted(choice.present) if name.rpartition("_")[2] in choice.missing]
    hint = f" ({', '.join(others)} must be asked for by that name)" if others else ""
    return f"no {', '.join(choice.missing)}; has {has}{hint}"


def _session_mix(subject: str, groups: Iterable[str]) -> Fault:
    value = f"images in {subject}/anat and in {', '.join(filter(None, groups))}"
    remedy = "Move all images into session folders, or name one: cohort.session=ses-…"
    return Fault("session-mix", subject, subject, value, "either sessions or none", remedy)


def _several_sessions(subject: str, usable: Sequence[str]) -> Fault:
    value, remedy = (
        f"{', '.join(usable)} are all complete",
        "Choose: cohort.session=first, cohort.session=all or cohort.session=ses-…",
    )
    return Fault("sessions-several", subject, subject, value, "one session", remedy)


# --- names that no subject has ---------------------------------------------------


def _absent(survey: Survey, present: Iterable[str]) -> list[Fault]:
    """Names that no subject has, which are probably misspelt."""
    known = sorted(present)
    wanted = [name for name in map(partial(name_in_files, survey), survey.wanted) if name not in known]
    unseen = (unseen_files(survey.root, subject) for subject in survey.subjects) if wanted else iter(())
    hints = [f"not read: {one}" for one in (next(filter(None, unseen), ""),) if one]
    masks = as_sentences(survey.source.notes) if survey.label else ()
    of_label = name_in_files(survey, survey.label) if survey.label else ""
    if misnamed := _misnamed(survey):
        masks = (*masks, misnamed)
    found = [_sequence_unknown(name, known, [*hints, *(masks if name == of_label else ())]) for name in wanted]
    alone = re.search(r"label-(\w+)_mask", " ".join(known))
    if alone and not survey.label:  # without a label, no mask is the truth
        told = f" Masks alone can be the images: set cohort=lesions cohort.label={alone[1]} and ask for lesion_mask."
        found = [dataclasses.replace(one, remedy=one.remedy + told) for one in found]
    return found


def _misnamed(survey: Survey) -> str:
    """A file that is probably a mask of the label by another name, such as ``…_label-lesion_dseg.nii.gz``."""
    label = entities_of(survey.label or "")[1].lower()
    for path, file in survey.by_path.items() if label else ():
        names = (file.suffix, file.entities.get("label", ""), file.entities.get("desc", ""))
        if any(label in name.lower() for name in names) and not best_mask([file], survey.label or ""):
            entities = [f"{key}-{value}" for key, value in file.entities.items() if key not in ("label", "desc")]
            return f"{path.name} would be {'_'.join(entities)}_label-{survey.label}_mask.nii.gz as a mask of 0 and 1"
    return ""


def _sequence_unknown(name: str, known: Sequence[str], hints: Sequence[str]) -> Fault:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    remedy = f"Did you mean {' or '.join(near)}?" if near else "Ask for one of these, or add the files."
    value = f"no subject has {name}; the data set has {', '.join(known) or 'no images'}"
    value = "; ".join([value, *hints])
    return Fault("sequence-unknown", "", "", value, "one of these names", remedy)
