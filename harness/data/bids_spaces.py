"""Spaces of image files that are stated beside their names: in JSON files and by folders of derivatives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.core.types import JSON
from harness.data.bids_files import entities_of, is_native, link_out
from harness.data.participants import read_json

__all__ = ["FolderSpaces", "StatedSpace", "reference_space"]

_KEYS = ("SpatialReference", "Space")
_TEMPLATE_FILE = re.compile(r"tpl-([A-Za-z0-9]+)")  # names of TemplateFlow
_SPACE_IN_NAME = re.compile(r"space-([A-Za-z0-9]+)")
_TEMPLATE_FOLDER = re.compile(r"(?<![A-Za-z0-9])((?:MNI|ICBM152|IXI549Space)[A-Za-z0-9]*)", re.IGNORECASE)
_NATIVE_FOLDER = re.compile(r"(?<![A-Za-z0-9])(native|individual|T1w|FLAIR)[-_]?space(?![A-Za-z0-9])", re.IGNORECASE)
_IMAGE_FILE = re.compile(r"\.(nii|mgz|mgh|img|hdr|nrrd|mha|mnc)(\.gz)?$", re.IGNORECASE)
# Files of FSL, SPM and the MNI whose names have words of both kinds.
_TEMPLATE_IMAGES = (
    (re.compile(r"mni152_t1_[\d.]+mm", re.IGNORECASE), "MNI152NLin6Asym"),
    (re.compile(r"mni_icbm152_t1_tal_nlin_asym_09c", re.IGNORECASE), "MNI152NLin2009cAsym"),
    (re.compile(r"avg152t1", re.IGNORECASE), "MNI152Lin"),
    (re.compile(r"single_subj_t1", re.IGNORECASE), "MNIColin27"),
)
# Standard templates of BIDS 1.10, appendix "Coordinate systems", as they are spelt there.
_TEMPLATES = {
    name.lower(): name
    for name in (
        "ICBM452AirSpace", "ICBM452Warp5Space", "IXI549Space", "MNI305", "MNIColin27", "MNI152Lin", "MNI152NLin6Sym",
        "MNI152NLin6Asym", "MNI152NLin2009aSym", "MNI152NLin2009aAsym", "MNI152NLin2009bSym",
        "MNI152NLin2009bAsym", "MNI152NLin2009cSym", "MNI152NLin2009cAsym", "NIHPD", "OASIS30AntsOASISAnts",
        "OASIS30Atropos", "Talairach", "UNCInfant", "fsaverage", "fsaverage5", "fsaverage6", "fsaverageSym", "fsLR",
    )
}  # fmt: skip
_TEMPLATES |= {"ixi549": "IXI549Space", "colin27": "MNIColin27"}
_MNI_WORDS = re.compile(
    r"(mni|mniicbm|icbm)(152)?(n?lin|non|nonlinear|linear|a?sym|a?symmetric|(20)?09[abc]?|6(th)?|gen(eration)?|fsl)*"
)
_FILLERS = frozenset({"a", "an", "at", "coordinate", "coordinates", "image", "in", "of", "reference", "s", "space",
                      "standard", "stereotactic", "stereotaxic", "template", "the"})  # fmt: skip
_SUBJECT_WORDS = frozenset({"original", "participant", "patient", "patients", "participants", "subjects"})
_NOT = frozenset({"no", "non", "not", "without"})
_UNKNOWN = re.compile(r"\d+|unknown|unspecified|undefined|other|mixed|true|false|tbd", re.IGNORECASE)
_RESOLUTION = re.compile(r":(res|cohort|den)-\w+|\b[\d.]+ ?mm\b")


@dataclass(frozen=True)
class StatedSpace:
    """The space that a JSON file or the name of a folder states.

    Parameters
    ----------
    space : a template, or ``individual``, ``orig``, ``T1w`` and the like for that of the
        subject; empty if none is stated, or if it is not understood
    unread : what is stated but not understood; empty if there is no such thing
    file : the JSON file
    """

    space: str = ""
    unread: str = ""
    file: Path | None = None

    def __bool__(self) -> bool:
        return bool(self.space or self.unread)


def reference_space(content: Mapping[str, JSON] | None, file: Path | None = None) -> StatedSpace:
    """The space that a JSON file states under ``SpatialReference`` (BIDS) or ``Space``.

    Values are texts or, for images with several references, objects of texts, of which that
    of the volume counts.

    Examples
    --------
    >>> reference_space({"SpatialReference": "bids::sub-01/anat/sub-01_T1w.nii.gz"}).space
    'individual'
    >>> reference_space({"SpatialReference": "https://example.org/tpl-MNI152NLin6Asym_res-01_T1w.nii.gz"}).space
    'MNI152NLin6Asym'
    >>> reference_space({"SpatialReference": "somewhere else"}).unread
    'somewhere else'
    """
    for key in _KEYS:
        value = (content or {}).get(key)
        texts = [text for one in _texts(value) if (text := one.strip()) and text.lower() not in ("n/a", "none")]
        if not texts:
            continue
        found = {_understood(text) for text in texts}
        if "" in found or len(found) > 1:
            return StatedSpace(unread=value if isinstance(value, str) else json.dumps(value), file=file)
        return StatedSpace(found.pop(), file=file)
    return StatedSpace()


def _texts(value: JSON) -> list[str]:
    """The texts of a value; of an object, that of the volume if it is named."""
    if value is None or isinstance(value, str):
        return [value] if value else []
    if isinstance(value, Mapping):
        volume = [one for key, one in value.items() if "volume" in key.lower()]
        return [text for one in volume or value.values() for text in _texts(one)]
    if isinstance(value, list):
        return [text for one in value for text in _texts(one)]
    return [json.dumps(value)]


def _understood(text: str) -> str:
    """The space that a text means: a keyword, a file, or a phrase such as ``native space``; empty if unclear."""
    for pattern in (_TEMPLATE_FILE, _SPACE_IN_NAME):
        if found := pattern.search(text):
            return _TEMPLATES.get(found[1].lower(), found[1])
    if "sub-" in text:
        return "individual"
    text = _RESOLUTION.sub(" ", text).strip()
    name = re.split(r"[/\\:]", text)[-1]
    if _IMAGE_FILE.search(name):  # the folders above a file say little: bids::derivatives/mni/T1w_acpc.nii.gz
        stem = _IMAGE_FILE.sub("", name)
        template = next((space for pattern, space in _TEMPLATE_IMAGES if pattern.match(stem)), "")
        return template or _of_words(stem) or ("individual" if "/anat/" in f"/{text}" else "")
    if re.fullmatch(r"[A-Za-z0-9]+", text):
        return _of_words(text) or ("" if _UNKNOWN.fullmatch(text) else text)
    return _of_words(text)


def _of_words(text: str) -> str:
    """The space of a keyword or phrase, in which words of one kind occur: of the subject, or of a template."""
    if is_native(text):
        return text
    words = re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower())
    plain = [word.removesuffix("space") or word for word in words]
    joined = "".join(word for word in plain if word not in _FILLERS)
    template = _TEMPLATES.get(joined, "") or _TEMPLATES.get(re.sub(r"[^a-z0-9]", "", text.lower()), "")
    if template:
        return template
    native = [word for word in plain if word in _SUBJECT_WORDS or is_native(word)]
    of_template = [word for word in plain if re.match(r"mni|icbm|ixi|tal|fsav|fslr|colin|norm|warp|standard", word)]
    if _NOT & set(plain) or (native and of_template):
        return ""
    if native:
        return "individual"
    if _MNI_WORDS.fullmatch(joined):
        return _as_spelt(joined)
    return ""


def _as_spelt(joined: str) -> str:
    """An MNI152 template of these words as BIDS spells it, as far as they tell which one it is."""
    year = re.search(r"09([abc])", joined)
    shape = "Asym" if "asym" in joined else "Sym" if "sym" in joined else ""
    if year:
        return f"MNI152NLin2009{year[1]}{shape}"
    if "6" in joined:
        return f"MNI152NLin6{shape}"
    if "lin" in joined and "nlin" not in joined and "nonlin" not in joined:
        return "MNI152Lin"
    return "MNI" if joined == "mni" else "MNI152"


def _folder_space(name: str) -> str:
    """The space in the name of a derivative: ``lesions_space-T1w``, ``masks-MNI152NLin6Asym``, ``native-space``."""
    for pattern in (_SPACE_IN_NAME, _TEMPLATE_FOLDER, _NATIVE_FOLDER):
        if found := pattern.search(name):
            return found[1]
    return ""


@dataclass(frozen=True)
class FolderSpaces:
    """Spaces of the files in a data set or a derivative.

    Parameters
    ----------
    root : the data set
    pipeline : path of the derivative relative to the data set; empty for the data set itself
    links : folder outside of the data set into which links may lead; JSON files elsewhere are
        not read
    """

    root: Path
    pipeline: str = ""
    links: Path | None = None
    _known: dict[Path, list[_Inherited]] = field(default_factory=dict, repr=False, compare=False)

    def _inherited(self, folder: Path) -> list[_Inherited]:
        """What the JSON files in a folder state, the most specific first."""
        if folder not in self._known:
            found = []
            for path in sorted(folder.glob("*.json")):
                if link_out(path, self.root, self.links):
                    continue  # a fault of its own
                if stated := reference_space(read_json(path)[0], path):
                    found.append(_Inherited(*entities_of(path.name), stated))
            self._known[folder] = sorted(found, key=lambda one: -len(one.entities))
        return self._known[folder]

    @property
    def _of_folder(self) -> StatedSpace:
        path = self.root / self.pipeline / "dataset_description.json"
        read = self.pipeline and not link_out(path, self.root, self.links)
        content, _ = read_json(path) if read else ({}, "")
        return reference_space(content, path) or StatedSpace(_folder_space(self.pipeline))

    def of(self, path: Path, entities: Mapping[str, str], suffix: str) -> StatedSpace:
        """The space of a file that is stated elsewhere than in its name.

        The JSON file beside it precedes those of the folders above, which apply to all files
        with their entities, as in BIDS; the folder of the derivative comes last.

        Parameters
        ----------
        path : the image
        entities, suffix : parts of its name
        """
        for folder in self._above(path):
            for one in self._inherited(folder):
                if one.suffix == suffix and one.entities.items() <= entities.items():
                    return one.stated
        return self._of_folder

    def _above(self, path: Path) -> Iterable[Path]:
        """The folder of a file and those above it in the data set."""
        for folder in path.parents:
            yield folder
            if folder == self.root / self.pipeline:
                return


@dataclass(frozen=True)
class _Inherited:
    """The files to which a JSON file applies, and the space that it states."""

    entities: Mapping[str, str]
    suffix: str
    stated: StatedSpace
