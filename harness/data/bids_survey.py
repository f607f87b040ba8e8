"""What a BIDS folder holds, before files are chosen: subjects, their image files, and where truth comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from harness.core.errors import UnknownName
from harness.core.types import Fault
from harness.data.bids_files import (
    EXTENSIONS,
    NOT_IMAGES,
    ImageFile,
    best_mask,
    entities_of,
    listed,
    made_by_harness,
    makers_of,
    natural,
    stem_of,
    tool_prefix,
)
from harness.data.bids_spaces import FolderSpaces
from harness.data.participants import read_json

__all__ = ["RAW", "Survey", "TruthSource", "folder_unreadable", "names_in"]

RAW = "raw"
"""Value of ``truth`` for masks in the data set itself."""

_ITSELF = "the data set itself"

Groups = Mapping[str, list[ImageFile]]


@dataclass(frozen=True)
class TruthSource:
    """The folders from which masks of the label are taken.

    Parameters
    ----------
    pipelines : e.g. ``derivatives/manual``, empty for the data set itself; the first that a
        session has is used
    faults : why they cannot be used
    notes : (subject, text) of masks that come from a derivative, and of masks that are not used
    """

    pipelines: tuple[str, ...] = ("",)
    faults: tuple[Fault, ...] = ()
    notes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Survey:
    """What to look for in a folder, and its subjects and files; see :func:`harness.data.bids.index`."""

    root: Path
    sequences: tuple[str, ...] = ()
    label: str | None = None
    optional: tuple[str, ...] = ()
    session: str = "only"
    exclude: frozenset[str] = field(default_factory=frozenset)
    truth: str = ""
    space: str = ""
    template: bool = False
    links: Path | None = None

    @cached_property
    def subjects(self) -> tuple[str, ...]:
        """Names of all folders of subjects, sorted."""
        return tuple(
            sorted(path.name for path in self.root.iterdir() if path.name.startswith("sub-") and path.is_dir())
        )

    @property
    def named_session(self) -> str:
        """The session requested by name; empty for ``only``, ``all`` and ``first``."""
        if self.session in ("all", "first", "only"):
            return ""
        return self.session if self.session.startswith("ses-") else f"ses-{self.session}"

    @property
    def wanted(self) -> tuple[str, ...]:
        """Names of the images and the mask that every subject must have."""
        return (*self.sequences, *((self.label,) if self.label else ()))

    @cached_property
    def found(self) -> Mapping[str, tuple[Groups, list[Fault]]]:
        """Image files of each subject by session, sessions in numerical order, and faults of their names."""
        spaces: dict[str, FolderSpaces] = {}
        return {subject: _grouped_files(self.root, subject, spaces, self.links) for subject in self.subjects}

    @cached_property
    def by_path(self) -> Mapping[Path, ImageFile]:
        """All image files."""
        return {file.path: file for groups, _ in self.found.values() for file in _all(groups)}

    def files(self, subject: str, session: str) -> list[ImageFile]:
        """The files of a session among which to choose: masks of the label from one source, one space if asked for."""
        held = self._in_space(self.found[subject][0][session])
        if not self.label:
            return held
        label = entities_of(self.label)[1]
        masks = self._masks(held)
        chosen = next((one for one in self.source.pipelines if any(file.pipeline == one for file in masks)), None)
        allowed = {file for file in masks if file.pipeline == chosen}
        return [file for file in held if file.suffix != "mask" or file.mask_name != label or file in allowed]

    def native_masks(self, subject: str, session: str) -> list[ImageFile]:
        """Masks of the label in native space, from the sources of the truth, beside those in a template."""
        held = self.found[subject][0][session]
        own = [file for file in held if file.suffix == "mask" and file.mask_name == self._label_name]
        return [file for file in own if not file.space and file.pipeline in self.source.pipelines]

    def check_space(self) -> None:
        """Raise :class:`~harness.core.errors.UnknownName` if no file is in the requested space."""
        stated = (file.stated_space for groups, _ in self.found.values() for file in _all(groups))
        known = {"native", *filter(None, stated)}
        if self.space and self.space not in known:
            raise UnknownName("space", self.space, known)

    def check_session(self) -> None:
        """Raise :class:`~harness.core.errors.UnknownName` if no subject has the requested session."""
        if not self.named_session:
            return
        known = {session for subject in self._included for session in self.found[subject][0]} - {""}
        if known and self.named_session not in known:
            raise UnknownName("session", self.named_session, known)

    @cached_property
    def source(self) -> TruthSource:
        """Where masks of the label are taken from."""
        return _source(self) if self.label else TruthSource()

    @cached_property
    def templates(self) -> Mapping[str, int]:
        """Template spaces of the label's masks, with the number of sessions that have one."""
        counts: Counter[str] = Counter()
        for subject in self._included:
            for session in self.found[subject][0]:
                spaces = {file.space for file in self.files(subject, session) if file.mask_name == self._label_name}
                counts.update(spaces - {""})
        return dict(counts)

    @cached_property
    def pipelines(self) -> Mapping[str, tuple[str, bool]]:
        """Folders of derivatives that hold subjects, with their programs, and whether this program is among them."""
        found = {}
        for one in sorted({file.pipeline for groups, _ in self.found.values() for file in _all(groups)} - {""}):
            content, _ = read_json(self.root / one / "dataset_description.json")
            found[one] = (", ".join(makers_of(content)), made_by_harness(content))
        return found

    @property
    def _included(self) -> list[str]:
        return [subject for subject in self.subjects if subject not in self.exclude]

    @property
    def _label_name(self) -> str:
        return entities_of(self.label or "")[1]

    def _in_space(self, files: Iterable[ImageFile]) -> list[ImageFile]:
        """All files, or those of the requested space."""
        if not self.space:
            return list(files)
        if self.space == "native":
            return [file for file in files if not file.space]
        return [file for file in files if file.stated_space == self.space]

    def _masks(self, files: Iterable[ImageFile]) -> list[ImageFile]:
        """Masks of the label that may be truth; in a template where one is needed and the session has one."""
        masks = [file for file in files if file.suffix == "mask" and file.mask_name == self._label_name]
        masks = [file for file in masks if not file.pipeline or not self.pipelines[file.pipeline][1]]
        if self.template and self.truth != RAW:
            return [file for file in masks if file.space] or masks
        return masks

    def holders(self) -> dict[str, list[str]]:
        """Folders with masks of the label that may be truth (empty for the data set itself) → subjects."""
        found: dict[str, list[str]] = {}
        for subject in self._included:
            masks = [file for files in self.found[subject][0].values() for file in self._masks(self._in_space(files))]
            for pipeline in sorted({file.pipeline for file in masks}):
                found.setdefault(pipeline, []).append(subject)
        return dict(sorted(found.items()))

    def unused(self, chosen: Sequence[str]) -> dict[str, list[str]]:
        """Folders with masks of the label from which none is used → subjects."""
        found: dict[str, list[str]] = {}
        for subject in self._included:
            for files in self.found[subject][0].values():
                for pipeline in sorted({file.pipeline for file in files if best_mask([file], self.label or "")}):
                    if pipeline not in chosen:
                        found.setdefault(pipeline, []).append(subject)
        return {pipeline: list(dict.fromkeys(subjects)) for pipeline, subjects in sorted(found.items())}


def names_in(folder: Path) -> list[str]:
    """Names in a folder, sorted; none if it cannot be listed."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def folder_unreadable(root: Path, folder: Path, subject: str, error: OSError) -> Fault:
    """The fault of a folder that cannot be listed."""
    file = str(folder.relative_to(root)) if folder != root else str(root)
    value, remedy = error.strerror or str(error), "Ask its owner for access, or chmod u+rx it."
    return Fault("folder-unreadable", file, subject, value, "a folder that can be listed", remedy)


# --- where truth comes from --------------------------------------------------------


def _source(survey: Survey) -> TruthSource:
    """Masks of the data set itself precede those of a derivative; predictions of this program are never truth."""
    holders = survey.holders()
    faults: list[Fault] = []
    if survey.truth:
        chosen, faults = _requested(survey)
    else:
        derived = [pipeline for pipeline in holders if pipeline]
        chosen = [""] if "" in holders or not derived else derived[:1]
        faults = [_several_sources(survey, holders)] if chosen != [""] and len(derived) > 1 else []
    notes = [] if faults else _source_notes(survey, holders, chosen)
    return TruthSource(tuple(chosen), tuple(faults), tuple(notes))


def _requested(survey: Survey) -> tuple[list[str], list[Fault]]:
    """The folders that ``truth`` names, in their order."""
    chosen, faults = [], []
    known = {RAW, *survey.pipelines}
    for name in survey.truth.split("+"):
        found = next((one for one in (name, f"derivatives/{name}") if one in known), None)
        if found is None:
            raise UnknownName("source of the truth", name, known)
        chosen.append("" if found == RAW else found)
        if found != RAW and survey.pipelines[found][1]:
            value = f"the masks in {found} are predictions of harness"
            remedy = "Choose masks that were drawn by people or by another program (cohort.truth=…)."
            faults.append(Fault("truth-predicted", found, "", value, "masks that are no predictions", remedy))
    return chosen, faults


def _several_sources(survey: Survey, holders: Mapping[str, list[str]]) -> Fault:
    value = " and ".join(f"{pipeline} ({listed(subjects)})" for pipeline, subjects in holders.items())
    remedy = f"Choose one: cohort.truth={next(iter(holders))}"
    expected = "one source of the truth"
    return Fault("truth-several", "derivatives", "", f"{_label_files(survey)} is in {value}", expected, remedy)


def _label_files(survey: Survey) -> str:
    return f"label-{entities_of(survey.label or '')[1]}_mask"


def _source_notes(survey: Survey, holders: Mapping[str, list[str]], chosen: Sequence[str]) -> list[tuple[str, str]]:
    notes = []
    left = {subject for subjects in holders.values() for subject in subjects}
    for pipeline in chosen:
        own = [subject for subject in holders.get(pipeline, ()) if subject in left]
        left -= set(own)
        if pipeline:
            text = f"{_label_files(survey)} is taken from {pipeline}{_made_by(survey, pipeline)}"
            notes += [(subject, text) for subject in own]
    for pipeline, subjects in survey.unused(chosen).items():
        if pipeline and survey.pipelines[pipeline][1]:
            text = f"{_label_files(survey)} in {pipeline} is a prediction of harness and is never used as truth"
        else:
            where, name = (f"{pipeline}{_made_by(survey, pipeline)}", pipeline) if pipeline else (_ITSELF, RAW)
            text = f"{_label_files(survey)} in {where} is not used as truth (cohort.truth={name} would use it)"
        notes += [(subject, text) for subject in subjects]
    return notes


def _made_by(survey: Survey, pipeline: str) -> str:
    makers = survey.pipelines[pipeline][0]
    return f" (made by {makers})" if makers else " (it does not state the program that made it)"


# --- image files of a subject --------------------------------------------------------


def _all(groups: Groups) -> Iterable[ImageFile]:
    return (file for files in groups.values() for file in files)


def _grouped_files(
    root: Path, subject: str, spaces: dict[str, FolderSpaces], links: Path | None
) -> tuple[Groups, list[Fault]]:
    """Image files of a subject by session (``""`` without one); sessions without images are left out.

    ``spaces`` keeps what is stated for all subjects of a folder.
    """
    groups: dict[str, list[ImageFile]] = {}
    faults: list[Fault] = []
    derived = sorted([*root.glob(f"derivatives/{subject}"), *root.glob(f"derivatives/*/{subject}")])
    for home in (root / subject, *derived):
        pipeline = "" if home.parent == root else str(home.parent.relative_to(root))
        for session in ["", *(name for name in names_in(home) if name.startswith("ses-"))]:
            stated = spaces.setdefault(pipeline, FolderSpaces(root, pipeline, links))
            files, found = _files(root, home / session / "anat", subject, session, pipeline, stated)
            faults += found
            if files:
                groups.setdefault(session, []).extend(files)
    return dict(sorted(groups.items(), key=lambda item: natural(item[0]))), faults


def _files(
    root: Path, folder: Path, subject: str, session: str, pipeline: str, spaces: FolderSpaces
) -> tuple[list[ImageFile], list[Fault]]:
    """Image files of one ``anat`` folder, in order of their names; of derivatives, only masks."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.name.endswith(EXTENSIONS))
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except OSError as error:
        return [], [folder_unreadable(root, folder, subject, error)]
    files, faults = [], []
    for path in paths:
        entities, suffix = entities_of(path.name)
        if (
            path.name.startswith(".")
            or "." in stem_of(path.name)
            or (pipeline and suffix not in NOT_IMAGES)
            or tool_prefix(path.name, subject)
        ):
            continue
        found = (f"sub-{entities.get('sub', '')}", f"ses-{entities['ses']}" if "ses" in entities else "")
        if found != (subject, session):
            faults.append(_misplaced(str(path.relative_to(root)), subject, session, found))
        else:
            stated = spaces.of(path, entities, suffix)
            files.append(ImageFile(path, entities, suffix, pipeline, stated.space, stated.unread, stated.file))
    return files, faults


def _misplaced(file: str, subject: str, session: str, found: tuple[str, str]) -> Fault:
    value = f"the name says {'_'.join(filter(None, found))}"
    expected = f"a name with {'_'.join(filter(None, (subject, session)))}"
    return Fault("misplaced-file", file, subject, value, expected, "Rename the file, or move it where it belongs.")
