"""What the choice of files means for a whole cohort: other contrasts, mixed spaces, several variants."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from harness.core.types import Candidate, Fault
from harness.data.bids_files import ImageFile, contrast_of, entities_of, is_mni, listed
from harness.data.bids_survey import Survey

__all__ = [
    "as_sentences",
    "contrast_faults",
    "space_faults",
    "space_notes",
    "unread_notes",
    "variant_notes",
    "variants",
    "without_spaces",
]


def as_sentences(notes: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Notes as sentences; equal notes of several subjects are one: ``sub-01, sub-02: age 89+ is read as 89``."""
    by_text: dict[str, list[str]] = {}
    for subject, text in notes:
        by_text.setdefault(text, []).append(subject)
    named = {text: list(dict.fromkeys(filter(None, subjects))) for text, subjects in by_text.items()}
    return tuple(f"{listed(subjects)}: {text}" if subjects else text for text, subjects in named.items())


def variants(root: Path, candidates: Sequence[Candidate], names: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Which file each name means.

    Parameters
    ----------
    root : the BIDS folder
    candidates : candidates with their files
    names : names of images and masks

    Returns
    -------
    dict
        name → variant of the file's name, e.g. ``ce-gadolinium_T1w`` → ids of candidates,
        the most frequent variant first
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name in names:
        by_variant: dict[str, list[str]] = {}
        for one in candidates:
            path = one.images.get(name) or one.masks.get(name)
            if path is not None:
                by_variant.setdefault(_variant(root, path), []).append(one.id)
        found[name] = dict(sorted(by_variant.items(), key=lambda item: -len(item[1])))
    return found


def without_spaces(found: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, dict[str, list[str]]]:
    """The same without spaces in the names of variants, for masks whose spaces are compared otherwise."""
    merged: dict[str, dict[str, list[str]]] = {}
    for name, own in found.items():
        parts = merged.setdefault(name, {})
        for variant, ids in own.items():
            parts.setdefault(re.sub(r"space-[^_/]+_", "", variant), []).extend(ids)
    return merged


def _variant(root: Path, path: Path) -> str:
    entities, suffix = entities_of(path.name)
    parts = path.relative_to(root).parts
    pipeline = "/".join(parts[:2]) + "/" if parts[0] == "derivatives" else ""
    return pipeline + ImageFile(path, entities, suffix).variant()


def contrast_faults(found: Mapping[str, Mapping[str, Sequence[str]]], images: Iterable[str]) -> list[Fault]:
    """Faults of sequences that show another contrast in some subjects."""
    faults = []
    for name in images:
        own = found[name]
        contrasts: dict[str, dict[str, Sequence[str]]] = {}
        for variant, ids in own.items():
            contrasts.setdefault(contrast_of(_beyond(variant, name)), {})[variant] = ids
        if len(contrasts) > 1:
            most = max(contrasts, key=lambda one: (_count(contrasts[one]), not one))
            changed = {variant: ids for one in contrasts if one for variant, ids in contrasts[one].items()}
            others = [part for one, part in contrasts.items() if one != most]
            ids = [id for part in others for named in part.values() for id in named]
            remedy = (
                f"Leave them out (exclude={','.join(ids[:8])}{',…' if len(ids) > 8 else ''}), or ask for one contrast "
            )
            remedy += f"by its name, e.g. sequences={next(iter(changed))}"
            faults.append(Fault("contrast-mix", "", "", _shares(name, changed, own), "one contrast for all", remedy))
    return faults


def variant_notes(found: Mapping[str, Mapping[str, Sequence[str]]], images: Iterable[str]) -> list[str]:
    """Notes on names that mean different files in different subjects, or another contrast in all of them."""
    notes = []
    for name, own in found.items():
        changed = {variant: ids for variant, ids in own.items() if contrast_of(_beyond(variant, name))}
        if name in images and changed:
            if len(changed) == len(own):  # otherwise it is a fault
                notes.append(_shares(name, changed, own))
        elif len(own) > 1:
            most = next(iter(own))
            notes.append(f"{_shares(name, {key: ids for key, ids in own.items() if key != most}, own)}, else {most}")
    return notes


def _beyond(variant: str, name: str) -> str:
    """The variant without the entities that were asked for."""
    entities, suffix = entities_of(variant.rpartition("/")[2])
    asked = entities_of(name)[0]
    return "_".join([*(f"{key}-{value}" for key, value in entities.items() if key not in asked), suffix])


def _count(own: Mapping[str, Sequence[str]]) -> int:
    return sum(map(len, own.values()))


def _shares(name: str, some: Mapping[str, Sequence[str]], of: Mapping[str, Sequence[str]]) -> str:
    total = _count(of)
    parts = [
        f"{variant} in all {total} subjects" if len(ids) == total else
        f"{variant} in {len(ids)} of {total} subjects ({listed(ids)})"
        for variant, ids in some.items()
    ]  # fmt: skip
    return f"{name} is {' and '.join(parts)}"


# --- spaces of masks on a template ---------------------------------------------------


def space_faults(survey: Survey, candidates: Sequence[Candidate]) -> list[Fault]:
    """Faults of masks that are not in one template space; masks that name no space are one group of their own."""
    unread = _unread(survey, candidates)
    if unread:
        return [_space_unread(survey.root, value, files) for value, files in unread.items()]
    spaces = _spaces(survey, candidates)
    named = [space for space in spaces if space]
    native = [file for space, files in spaces.items() if not space for file, _ in files]
    explicit = sorted({file.space_text for file in native if file.stated_space})
    if len(spaces) > 1 and not all(map(is_mni, spaces)):
        value = "; ".join(text for text in _counted(spaces))
        most = max(named, key=lambda space: len(spaces[space])) if named else ""
        others = [id for space, files in spaces.items() if space != most for _, id in files]
        remedy = f"Bring all masks into one template space, or leave the others out: exclude={','.join(others[:8])}"
        remedy += ",…" if len(others) > 8 else ""
        return [Fault("space-mix", "", "", value, "one template space for all masks", remedy)]
    if explicit:
        value = f"{len(native)} masks are in the space of the subject: {', '.join(explicit)}"
        remedy = "Normalise the masks to a template, e.g. MNI152NLin6Asym, and name it: space-MNI152NLin6Asym"
        return [Fault("space-native", "", "", value, "masks in one template space", remedy)]
    return []


def _unread(survey: Survey, candidates: Sequence[Candidate]) -> dict[str, list[tuple[ImageFile, str]]]:
    """What JSON files state as the space and is not understood → files whose names state none, and ids."""
    found: dict[str, list[tuple[ImageFile, str]]] = {}
    for one in candidates:
        for path in (*one.images.values(), *one.masks.values()):
            file = survey.by_path[path]
            if file.unread and "space" not in file.entities:
                found.setdefault(file.unread, []).append((file, one.id))
    return found


def _space_unread(root: Path, value: str, files: Sequence[tuple[ImageFile, str]]) -> Fault:
    """The fault of one statement, which may be that of several masks."""
    where = files[0][0].unread_in
    remedy = (
        'Write "SpatialReference": "orig" for the space of the subject, or the template, e.g. "MNI152NLin6Asym", into '
        "it, or name the space in the names of the masks: space-MNI152NLin6Asym."
    )
    subjects = listed(list(dict.fromkeys(id for _, id in files)))
    return Fault(
        "space-unread", str(where.relative_to(root)) if where else "", "",
        f"the space of the masks is {value!r} ({subjects})", "the space of the subject or a template", remedy,
    )  # fmt: skip


def unread_notes(survey: Survey, candidates: Sequence[Candidate]) -> list[tuple[str, str]]:
    """(subject, text) of files whose stated space is not understood, where no template is needed."""
    return [
        (id, f"the space {value!r} in {file.unread_in.name if file.unread_in else 'a JSON file'} is not understood; "
         "the file is taken to be in the space of the subject")
        for value, files in _unread(survey, candidates).items()
        for file, id in files
    ]  # fmt: skip


def space_notes(survey: Survey, candidates: Sequence[Candidate]) -> list[str]:
    """Notes on several variants of one template, on a template that is not MNI, and on names without a space."""
    spaces = _spaces(survey, candidates)
    named = [space for space in spaces if space]
    notes = _contradictions(spaces)
    if len({space.lower() for space in spaces}) > 1 and all(map(is_mni, spaces)):
        count = len({space.lower() for space in spaces})
        notes.append(
            f"WARNING: the masks are in {count} MNI152 templates, in which the same place of the brain is some mm "
            f"apart; use one of them for all masks: {'; '.join(_counted(spaces))}"
        )
    elif named and not is_mni(named[0]) and len(spaces) == 1:
        notes.append(f"space-{named[0]} of the masks is not an MNI152 template; positions in MNI space do not apply")
    elif list(spaces) == [""] and not any(file.stated_space or file.unread for file, _ in spaces[""]):
        notes.append("the names of the masks state no space; they are taken to be in MNI space (space-MNI152NLin6Asym)")
    return notes


def _contradictions(spaces: Mapping[str, Sequence[tuple[ImageFile, str]]]) -> list[str]:
    """Notes on masks whose name states another space than their JSON file or the folder of the derivative."""
    found: dict[tuple[str, str], list[str]] = {}
    for files in spaces.values():
        for file, id in files:
            if file.contradiction:
                found.setdefault((file.space_text, file.contradiction), []).append(id)
    return [
        f"{listed(ids)}: the name of the mask states {named}, but its JSON file or folder {other}; the name is used"
        for (named, other), ids in found.items()
    ]


def _spaces(survey: Survey, candidates: Sequence[Candidate]) -> dict[str, list[tuple[ImageFile, str]]]:
    """Space of the label's masks → files and ids."""
    spaces: dict[str, list[tuple[ImageFile, str]]] = {}
    for one in candidates:
        file = survey.by_path[one.masks[survey.label or ""]]
        spaces.setdefault(file.space, []).append((file, one.id))
    return dict(sorted(spaces.items()))


def _counted(spaces: Mapping[str, Sequence[tuple[ImageFile, str]]]) -> list[str]:
    """``7 subjects in space-T1w (sub-01, …)`` per space as the names state it."""
    stated: dict[str, list[str]] = {}
    for files in spaces.values():
        for file, id in files:
            stated.setdefault(file.space_text, []).append(id)
    counts = Counter({text: len(ids) for text, ids in stated.items()})
    return [
        f"{count} {'subject' if count == 1 else 'subjects'} {'in ' if text.startswith('space') else 'with '}{text} "
        f"({listed(stated[text])})"
        for text, count in counts.most_common()
    ]
