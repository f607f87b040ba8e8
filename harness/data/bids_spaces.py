"""Spaces of image files that are stated beside their names: in JSON files and by folders of derivatives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.core.types import JSON
from harness.data.bids_files import entities_of
from harness.data.participants import read_json

__all__ = ["FolderSpaces", "reference_space"]

_KEYS = ("SpatialReference", "Space")
_TEMPLATE_FILE = re.compile(r"tpl-([A-Za-z0-9]+)")  # names of TemplateFlow
_SPACE_IN_NAME = re.compile(r"space-([A-Za-z0-9]+)")
_TEMPLATE_FOLDER = re.compile(r"(?<![A-Za-z0-9])((?:MNI|ICBM152|IXI549Space)[A-Za-z0-9]*)", re.IGNORECASE)
_NATIVE_FOLDER = re.compile(r"(?<![A-Za-z0-9])(native|individual|T1w|FLAIR)[-_]?space(?![A-Za-z0-9])", re.IGNORECASE)


def reference_space(content: Mapping[str, JSON] | None) -> str:
    """The space that a JSON file states under ``SpatialReference`` (BIDS) or ``Space``; empty if none.

    Examples
    --------
    >>> reference_space({"SpatialReference": "bids::sub-01/anat/sub-01_T1w.nii.gz"})
    'individual'
    >>> reference_space({"SpatialReference": "https://example.org/tpl-MNI152NLin6Asym_res-01_T1w.nii.gz"})
    'MNI152NLin6Asym'
    """
    for key in _KEYS:
        text = (content or {}).get(key)
        if not isinstance(text, str):
            continue
        for pattern in (_TEMPLATE_FILE, _SPACE_IN_NAME):
            if found := pattern.search(text):
                return found[1]
        if "sub-" in text:
            return "individual"
        if re.fullmatch(r"[A-Za-z0-9]+", text.strip()):
            return text.strip()
    return ""


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
    folder : the data set itself or the derivative
    pipeline : path of the derivative relative to the data set; empty for the data set itself
    """

    folder: Path
    pipeline: str = ""

    @cached_property
    def _inherited(self) -> list[tuple[Mapping[str, str], str, str]]:
        """Entities, suffix and space of the JSON files at the top of the folder, the most specific first."""
        found = []
        for path in sorted(self.folder.glob("*.json")):
            if space := reference_space(read_json(path)[0]):
                found.append((*entities_of(path.name), space))
        return sorted(found, key=lambda one: -len(one[0]))

    @cached_property
    def _of_folder(self) -> str:
        content, _ = read_json(self.folder / "dataset_description.json") if self.pipeline else ({}, "")
        return reference_space(content) or _folder_space(self.pipeline)

    def of(self, path: Path, entities: Mapping[str, str], suffix: str) -> str:
        """The space of a file that is stated elsewhere than in its name; empty if it is not.

        The JSON file beside it precedes those at the top of the folder, which apply to all
        files with their entities, as in BIDS; the folder comes last.

        Parameters
        ----------
        path : the image
        entities, suffix : parts of its name
        """
        beside = path.with_name(path.name.partition(".")[0] + ".json")
        if beside.is_file() and (space := reference_space(read_json(beside)[0])):
            return space
        for own, of_suffix, space in self._inherited:
            if of_suffix == suffix and own.items() <= entities.items():
                return space
        return self._of_folder
