"""Image files of a BIDS subject: the parts of their names, and which file a name means."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.types import JSON

__all__ = [
    "EXTENSIONS",
    "NOT_IMAGES",
    "ImageFile",
    "best_image",
    "best_mask",
    "contrast_of",
    "entities_of",
    "is_image",
    "is_mni",
    "is_native",
    "is_predicted",
    "link_out",
    "listed",
    "made_by_harness",
    "makers_of",
    "mask_names",
    "natural",
    "stem_of",
    "tool_prefix",
    "unseen_files",
]

EXTENSIONS = (".nii", ".nii.gz")
NOT_IMAGES = frozenset({"defacemask", "dseg", "mask", "probseg"})
"""Suffixes of files that are no images of the subject."""

_WHERE = frozenset({"sub", "ses", "space"})
_PARTS = frozenset({"phase", "real", "imag"})  # complex-valued data; part-mag is the usual magnitude
_LOCALISER = re.compile(r"locali[sz]er|scout|survey|smartbrain|(3|three|tri)plane|^loc\d*$", re.IGNORECASE)
_NUMBERED = ("echo", "flip", "inv", "mt")  # entities of images with a contrast for each value
_FREE = ("acq", "rec", "desc")  # entities whose values are free words
_AGENT_IN_WORD = re.compile(r"gad|dotarem|magnevist|prohance|multihance|contrast|enhance")
_AGENT_WORDS = frozenset({"ce", "gd", "km", "postgd", "postce", "postc", "postcon", "postkm", "gdpost", "dce", "tce"})
_AGENT_AT_END = re.compile(r"[A-Z\d]ce$|(?<![A-Z]{2})CE$")  # MPRAGEce, 3DCE, but not SPACE
_WITHOUT = re.compile(r"^(pre|no|non|un|without|ohne|sans)|(pre|non|without)$")
_DERIVED = re.compile(r"min ?ip|thick ?slab|projection|subtract|synth|(^| )(mip|mips|derived)( |$)")
# Spaces of BIDS that are those of the subject; other names are those of a template.
_NATIVE = frozenset(
    {
        "acpc", "anat", "func", "individual", "native", "orig", "scanner", "self", "subject",
        "asl", "b0", "bold", "boldref", "ct", "dwi", "epi", "flair", "mp2rage", "pdt2", "pdw", "perf", "pet", "swi",
        "t1", "t1map", "t1w", "t2", "t2map", "t2starmap", "t2starw", "t2w", "unit1",
    }
)  # fmt: skip
_NATIVE_NAME = re.compile(f"({'|'.join(sorted(_NATIVE, key=len, reverse=True))})+(space|image)?")  # subjectT1w
_MNI = re.compile(r"MNI|MNI152.*|ICBM152.*|IXI549Space", re.IGNORECASE)
_OTHER_FORMATS = (".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".mnc", ".par", ".nii.bz2", ".nii.zip")
_CIFTI = (".dscalar.nii", ".dlabel.nii", ".dtseries.nii", ".dconn.nii", ".pconn.nii", ".ptseries.nii")
_MOST = 3  # names in a message
_GENERATED_BY = frozenset({"generatedby", "pipelinedescription"})


@dataclass(frozen=True, eq=False)
class ImageFile:
    """One image file and the parts of its name.

    Parameters
    ----------
    path : the file
    entities : key → value, e.g. ``sub`` → ``01``
    suffix : e.g. ``T1w`` or ``mask``
    pipeline : folder of the derivative that holds it, e.g. ``derivatives/fmriprep``; empty
        for files of the data set itself
    elsewhere : space that its JSON file or the folder of the derivative states; empty if
        none. The name precedes it
    unread : what its JSON file states as its space, if that is not understood
    unread_in : that JSON file
    """

    path: Path
    entities: Mapping[str, str]
    suffix: str
    pipeline: str = ""
    elsewhere: str = ""
    unread: str = ""
    unread_in: Path | None = None

    @property
    def stated_space(self) -> str:
        """The space as it is stated; empty if it is not."""
        return self.entities.get("space", "") or self.elsewhere

    @property
    def space(self) -> str:
        """Template space; empty for the space of the subject, or if none is stated."""
        return "" if is_native(self.stated_space) else self.stated_space

    @property
    def space_text(self) -> str:
        """``space-T1w``, or a sentence if the name states no space."""
        if not self.stated_space:
            return "no space in the name"
        return f"space-{self.stated_space}" + ("" if "space" in self.entities else " (not in the name)")

    @property
    def contradiction(self) -> str:
        """Another space than that in the name, which is stated elsewhere; empty if there is none."""
        named = self.entities.get("space", "")
        if named and self.unread:
            return repr(self.unread)
        if not named or not self.elsewhere or (is_native(named) and is_native(self.elsewhere)):
            return ""
        return "" if named.lower() == self.elsewhere.lower() else self.elsewhere

    @property
    def mask_name(self) -> str:
        """``regions`` for a segmentation, or else the label or description of the mask."""
        if self.suffix == "dseg":
            # Segmentations by a pipeline are tissues or an atlas; its user did not ask for them as regions.
            wanted = not self.pipeline or "regions" in (self.entities.get("label"), self.entities.get("desc"))
            return "regions" if wanted else ""
        return self.entities.get("label") or self.entities.get("desc") or ""

    @property
    def run(self) -> int:
        """Number of the run; 1 if the name states none."""
        run = self.entities.get("run", "1")
        return int(run) if run.isascii() and run.isdigit() else 1

    def extras(self, asked: Iterable[str] = ()) -> frozenset[tuple[str, str]]:
        """Entities other than subject, session, space, run and those asked for."""
        known = _WHERE | {"run"} | set(asked)
        return frozenset(pair for pair in self.entities.items() if pair[0] not in known and pair != ("part", "mag"))

    def variant(self, asked: Iterable[str] = ()) -> str:
        """The name as it would have to be asked for: ``ce-gadolinium_T1w``; a first run is not named."""
        left_out = {"sub", "ses", *asked} | ({"run"} if self.run == 1 else set())
        pairs = [f"{key}-{value}" for key, value in self.entities.items() if key not in left_out]
        return "_".join([*pairs, self.suffix])


def entities_of(name: str) -> tuple[dict[str, str], str]:
    """Entities and suffix of a file name, or of a name that is asked for.

    Examples
    --------
    >>> entities_of("ce-gadolinium_T1w")
    ({'ce': 'gadolinium'}, 'T1w')
    """
    *pairs, suffix = name.partition(".")[0].split("_")
    return dict(pair.partition("-")[::2] for pair in pairs), suffix


def stem_of(name: str) -> str:
    """Name of an image file without its extension: ``sub-01_acq-1.5T_T1w`` of ``sub-01_acq-1.5T_T1w.nii.gz``."""
    end = next((one for one in sorted(EXTENSIONS, key=len, reverse=True) if name.lower().endswith(one)), "")
    return name[: len(name) - len(end)]


def is_image(path: Path) -> bool:
    """Whether a file is a NIfTI image by its name, in small or capital letters."""
    return path.name.lower().endswith(EXTENSIONS) and path.is_file()


def link_out(path: Path, root: Path, allowed: Path | None = None) -> str:
    """The link through which a path below ``root`` leads out of it, and where to; empty if it stays inside.

    Links inside of a data set are usual, because git-annex and DataLad store files so. A link
    to another place could show any file of this machine.

    Parameters
    ----------
    path : file or folder below ``root``
    root : folder of the data set, which may be a link itself
    allowed : another folder into which links may lead
    """
    places = [Path(os.path.realpath(one)) for one in (root, allowed) if one is not None]
    if any(Path(os.path.realpath(path)).is_relative_to(place) for place in places):
        return ""
    parts = path.relative_to(root).parts
    for depth in range(1, len(parts) + 1):
        one = root.joinpath(*parts[:depth])
        if one.is_symlink() and not any(Path(os.path.realpath(one)).is_relative_to(place) for place in places):
            return f"{one.relative_to(root)} → {os.path.realpath(one)}"
    return f"{path.relative_to(root)} → {os.path.realpath(path)}"


def natural(text: str) -> list[tuple[int, str]]:
    """Key that sorts ``ses-2`` before ``ses-10``."""
    parts = re.split(r"([0-9]+)", text)  # int() would refuse ²
    return [(int(part), "") if part.isascii() and part.isdigit() else (-1, part) for part in parts if part]


def tool_prefix(name: str, subject: str) -> str:
    """What a program such as SPM puts in front of a name: ``wr`` of ``wrsub-01_T1w.nii``; empty if nothing."""
    prefix, found, rest = name.partition(f"{subject}_")
    return prefix if found and rest and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,9}", prefix) else ""


def is_native(space: str) -> bool:
    """Whether a space is that of the subject, or not stated."""
    return not space or _NATIVE_NAME.fullmatch(space.lower()) is not None


def is_mni(space: str) -> bool:
    """Whether a space is one of the MNI152 templates, which differ by a few mm."""
    return _MNI.fullmatch(space) is not None


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names in a message; those that are too many are counted."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, … and {len(names) - most} more"


# --- which file a name means -----------------------------------------------------


def best_image(files: Sequence[ImageFile], name: str) -> list[ImageFile]:
    """Files that an image may mean; several if the name does not decide.

    The file without further entities is meant. If there is none, that with further
    entities is, unless there are several that differ in more than the run. Phase images and
    localisers are never meant by a plain name.

    Parameters
    ----------
    files : files of one session
    name : suffix, with entities before it if they are asked for (``ce-gadolinium_T1w``)
    """
    asked, suffix = entities_of(name)
    matching = [
        file
        for file in files
        if file.suffix == suffix and asked.items() <= file.entities.items() and _is_meant(file, asked)
    ]
    return _plainest(matching, asked)


def best_mask(files: Sequence[ImageFile], name: str) -> list[ImageFile]:
    """Files that a mask may mean; see :func:`best_image`. ``label-brain`` precedes ``desc-brain``.

    Parameters
    ----------
    files : files of one session
    name : label, with entities before it if they are asked for (``desc-rater1_lesion``)
    """
    asked, label = entities_of(name)
    matching = [
        file
        for file in files
        if file.suffix in ("mask", "dseg") and file.mask_name == label and asked.items() <= file.entities.items()
    ]
    matching = [file for file in matching if not file.pipeline] or matching
    for key in ("label", "desc"):
        named = [file for file in matching if file.entities.get(key) == label]
        if named:
            return _plainest(named, [*asked, key])
    return _plainest(matching, asked)


def contrast_of(variant: str) -> str:
    """Which other contrast an image shows than its suffix says, by its name; empty for that of the suffix.

    Equal texts are comparable contrasts: all images with a contrast agent are, but those of
    two echoes are not.

    Examples
    --------
    >>> contrast_of("acq-postGd_T1w"), contrast_of("ce-gadolinium_T1w"), contrast_of("acq-preGd_T1w")
    ('agent', 'agent', '')
    >>> contrast_of("echo-02_T2starw"), contrast_of("rec-MIP_SWI")
    ('echo-2', 'derived')
    """
    entities, _ = entities_of(variant)
    values = [entities[key] for key in _FREE if key in entities]
    found = ["agent"] if _has_agent(entities.get("ce", ""), values) else []
    found += ["derived"] if any(_DERIVED.search(" ".join(_words(one))) for one in values) else []
    found += [f"{key}-{entities[key].lstrip('0')}" for key in _NUMBERED if key in entities]
    return " ".join(found)


def _words(value: str) -> list[str]:
    """The words of an entity in small letters: ``postGd`` → post, gd."""
    plain = re.sub(r"prescan(norm)?", "", value, flags=re.IGNORECASE)  # a correction of the scanner
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", plain)]


def _has_agent(agent: str, values: Iterable[str]) -> bool:
    """Whether an image was taken with a contrast agent, by its entity ``ce`` or words of others."""
    if agent and not _WITHOUT.search(agent.lower()):
        return True
    for value in values:
        words = _words(value)
        if any(_WITHOUT.search(word) for word in words):
            continue
        last = words[-1:] == ["post"] or (words[:1] == ["post"] and len(words[-1]) < 2)
        if (
            last
            or _AGENT_AT_END.search(value)
            or any(word in _AGENT_WORDS or _AGENT_IN_WORD.search(word) for word in words)
        ):
            return True
    return False


def mask_names(files: Iterable[ImageFile]) -> list[str]:
    """Names of all masks, sorted."""
    return sorted({file.mask_name for file in files if file.suffix in ("mask", "dseg")} - {""})


def _is_meant(file: ImageFile, asked: Mapping[str, str]) -> bool:
    hidden_part = "part" not in asked and file.entities.get("part") in _PARTS
    named = [file.entities.get(key, "") for key in ("acq", "rec", "desc") if key not in asked]
    localiser = any(_LOCALISER.search(value) for value in named)
    return not hidden_part and not localiser


def _plainest(files: Sequence[ImageFile], asked: Iterable[str]) -> list[ImageFile]:
    """The first run of the file without further entities, or of every variant if none is plain."""
    asked = tuple(asked)
    variants: dict[tuple[str, frozenset[tuple[str, str]]], list[ImageFile]] = {}
    for file in files:
        variants.setdefault((file.pipeline, file.extras(asked)), []).append(file)
    plain = {key: found for key, found in variants.items() if not key[1]}
    best: list[ImageFile] = []
    for found in (plain or variants).values():
        first = min(file.run for file in found)
        best += [file for file in found if file.run == first]
    return best


# --- where files come from ---------------------------------------------------------


def _makers(description: Mapping[str, JSON] | None) -> list[JSON]:
    """Entries under ``GeneratedBy``, a list in BIDS and anything in real data, also in other letters and nested.

    Older versions of BIDS have ``PipelineDescription`` instead.
    """
    stated = [value for key, value in (description or {}).items() if key.lower() in _GENERATED_BY]
    return list(_entries(stated))


def _entries(value: JSON) -> Iterable[JSON]:
    """The entries of a list that may hold further lists."""
    if isinstance(value, list):
        for one in value:
            yield from _entries(one)
    elif value is not None:
        yield value


def _named(entry: JSON, name: str) -> JSON:
    """The value of a key in any letters; ``None`` if there is none."""
    content = entry if isinstance(entry, dict) else {}
    return next((value for key, value in content.items() if key.lower() == name), None)


def makers_of(description: Mapping[str, JSON] | None) -> list[str]:
    """Programs under ``GeneratedBy`` of a dataset_description.json, whatever its shape."""
    names = [_named(entry, "name") if isinstance(entry, dict) else entry for entry in _makers(description)]
    return [str(name) for name in names if name]


def made_by_harness(description: Mapping[str, JSON] | None) -> bool:
    """Whether this program made the files of a data set."""
    return any(re.match(r"\s*harness\b", name, flags=re.IGNORECASE) for name in makers_of(description))


def is_predicted(description: Mapping[str, JSON] | None) -> bool:
    """Whether this program predicted the files, rather than generated subjects with a known truth."""
    networks = any(_named(_named(entry, "parameters"), "networks") is not None for entry in _makers(description))
    return networks and made_by_harness(description)


# --- files that are not read ---------------------------------------------------------


def unseen_files(root: Path, subject: str, suffixes: Collection[str] = ()) -> str:
    """Image files of a subject that are not read, each kind with what to do; empty if there are none.

    Parameters
    ----------
    root : the BIDS folder
    subject : the subject; of derivatives, only masks are listed
    suffixes : list only files with these suffixes, and no copies of files that are read
    """
    by_remedy: dict[str, list[str]] = {}
    homes = {root / subject: "", **dict.fromkeys(sorted(root.glob(f"derivatives/*/{subject}")), "")}
    elsewhere = _other_homes(root, subject)
    read = {path.name for home in homes for path in home.rglob("*")} if elsewhere else set()
    for home, told in {**homes, **elsewhere}.items():
        for path in sorted(home.rglob("*")):
            wanted = "_mask." in path.name.lower() or (home.parent == root or (bool(told) and not suffixes))
            remedy = "" if not wanted else told if told and path.name not in read else _remedy(path, home)
            if remedy and (not suffixes or _is_missed(path, suffixes)) and (not told or is_image(path)):
                start = home if home.parent == root else root
                by_remedy.setdefault(remedy, []).append(str(path.relative_to(start)))
    return "; ".join(f"{listed(names, _MOST)}: {remedy}" for remedy, names in by_remedy.items())


def _other_homes(root: Path, subject: str) -> dict[Path, str]:
    """Folders of a subject in places that are not read, with what to do: nested derivatives, and sources."""
    found: dict[Path, str] = {}
    for top, deepest in (("derivatives", 4), ("sourcedata", 2), ("rawdata", 2)):
        level = [root / top]
        for depth in range(1, deepest + 1):
            for folder in level:
                home, where = folder / subject, folder.relative_to(root)
                if top != "derivatives" and home.is_dir():
                    found[home] = f"{where} is not read; copy them to {subject}/anat, or masks to derivatives/NAME"
                elif depth > 2 and home.is_dir():
                    flat = "-".join(where.parts[1:])
                    found[home] = f"nested folders are not read; move {where} to derivatives/{flat}"
            level = [one for folder in level for one in _folders(folder) if depth < deepest]
    return found


def _folders(folder: Path) -> list[Path]:
    """Folders in a folder, without those of subjects; none if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(one.name for one in entries if not one.name.startswith(("sub-", ".")) and one.is_dir())
    except OSError:
        return []
    return [folder / name for name in names]


def _is_missed(path: Path, suffixes: Collection[str]) -> bool:
    """Whether a file has one of the suffixes, and no copy of it is read."""
    stem = path.name.partition(".")[0]
    suffix = stem_of(path.name).rpartition("_")[2].partition(".")[0]  # a dot may be in an entity before it
    wanted = suffix.lower() in {one.lower() for one in suffixes}
    copies = {path.with_name(stem + extension) for extension in EXTENSIONS} - {path}
    return wanted and not any(copy.exists() for copy in copies)


def _remedy(path: Path, home: Path) -> str:
    """What to do so that a file is read; empty if it is read, or is no image of the subject."""
    name = path.name.lower()
    if name.startswith("."):
        return ""
    if name.endswith(EXTENSIONS) and (prefix := tool_prefix(path.name, home.name)):
        return (
            f"the name starts with {prefix} (of SPM, e.g.); to use it, name it as BIDS does, e.g. {home.name}_space-…"
        )
    if name.endswith((".hdr", ".img", ".img.gz", ".hdr.gz")):
        return "convert the .hdr/.img pair to .nii.gz"
    if name.endswith(_OTHER_FORMATS):
        return "convert it to .nii.gz"
    if not name.endswith(EXTENSIONS):
        return "complete or rename it; the name must end in .nii or .nii.gz" if ".nii" in name else ""
    if not path.name.endswith(EXTENSIONS):
        return "write the extension in small letters"
    if "." in stem_of(path.name):
        return "" if name.endswith(_CIFTI) else "a dot is not allowed in an entity; rename it, e.g. 1p5T for 1.5T"
    folders = path.relative_to(home).parts[:-1]
    expected = folders in (("anat",),) or (len(folders) == 2 and folders[0].startswith("ses-") and folders[1] == "anat")
    usual = {"func", "dwi", "fmap", "perf", "eeg", "meg", "ieeg", "pet", "micr", "nirs"}
    entities, suffix = entities_of(path.name)
    if expected and suffix == "mask" and not entities.keys() & {"label", "desc"}:
        return "the name does not say what the mask shows; rename it to …_label-NAME_mask.nii.gz"
    return "" if expected or usual & set(folders) else "move it to anat"
