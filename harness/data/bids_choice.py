"""Choose the files of one session: the best match of every name, all from one space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.types import Fault
from harness.data.bids_files import NOT_IMAGES, ImageFile, best_image, best_mask, entities_of, mask_names
from harness.data.bids_survey import Survey

__all__ = ["Choice", "choose", "name_in_files"]


@dataclass(frozen=True)
class Choice:
    """The files chosen from one session, what is missing, and what is wrong with the choice.

    Parameters
    ----------
    images, masks : name → file
    missing : required names without a file
    present : names that could be asked for
    faults : names that several files match equally well, and files in different spaces
    notes : what else could have been chosen
    space : template space of the files; empty for the space of the subject
    """

    images: Mapping[str, Path]
    masks: Mapping[str, Path]
    missing: tuple[str, ...]
    present: frozenset[str]
    faults: tuple[Fault, ...]
    notes: tuple[str, ...] = ()
    space: str = ""


def name_in_files(survey: Survey, name: str) -> str:
    """The name of a sequence, or that of the label as its files have it: ``label-lesion_mask``."""
    if name != survey.label:
        return name
    *pairs, label = name.split("_")
    return "_".join([*pairs, f"label-{label}_mask"])


def choose(survey: Survey, subject: str, session: str) -> Choice:
    """The best file for every name, all from one space if one has all of them."""
    files = survey.files(subject, session)
    answers = {name: _best(files, survey, name) for name in survey.wanted}
    missing = tuple(name_in_files(survey, name) for name, best in answers.items() if not best)
    complete = _complete_spaces(survey, files)
    faults = []
    if not complete and not missing:
        faults.append(_space_mix(subject, answers))
    if _undecided(survey, complete):
        faults.append(_several_spaces(subject, complete))
    chosen = [file for file in files if file.space == complete[0]] if complete else files
    images, masks, ties = _named(survey, chosen)
    faults += [_ambiguous(survey, subject, name, best) for name, best in ties.items()]
    present = _present(files) | {name_in_files(survey, name) for name, best in answers.items() if best}
    notes = _others(survey, chosen, masks, complete) if survey.label not in ties else []
    notes += [note for name in survey.sequences if name in images and (note := _other_runs(chosen, images[name]))]
    if survey.template and complete and complete[0] and survey.native_masks(subject, session):
        notes.append(f"masks in native space are not used; those in space-{complete[0]} are")
    space = complete[0] if complete else ""
    return Choice(images, masks, missing, present, tuple(faults), tuple(notes), space)


def _complete_spaces(survey: Survey, files: Sequence[ImageFile]) -> list[str]:
    """Spaces with all wanted files: native before others or, if a template is needed, the most frequent template."""
    within: dict[str, list[ImageFile]] = {}
    for file in files:
        within.setdefault(file.space, []).append(file)
    complete = sorted(space for space in within if all(_best(within[space], survey, one) for one in survey.wanted))
    if survey.template:
        complete.sort(key=lambda space: -survey.templates.get(space, 0))
    return complete


def _undecided(survey: Survey, complete: Sequence[str]) -> bool:
    """Whether two template spaces are equally good."""
    if not survey.wanted or len(complete) < 2 or not complete[0]:
        return False
    if survey.template:
        return survey.templates.get(complete[0]) == survey.templates.get(complete[1])
    return True


def _best(files: Sequence[ImageFile], survey: Survey, name: str) -> list[ImageFile]:
    return best_mask(files, name) if name == survey.label else best_image(files, name)


def _present(files: Sequence[ImageFile]) -> frozenset[str]:
    """Names that could be asked for; an image that a plain name does not mean, by its full name."""
    names = {f"label-{name}_mask" for name in mask_names(files)}
    for suffix in {file.suffix for file in files} - NOT_IMAGES:
        own = [file for file in files if file.suffix == suffix]
        names |= {suffix} if best_image(own, suffix) else {file.variant() for file in own}
    return frozenset(names)


def _named(
    survey: Survey, files: Sequence[ImageFile]
) -> tuple[dict[str, Path], dict[str, Path], dict[str, list[ImageFile]]]:
    """Images and masks by name, and the used names that several files match equally well.

    Such a name is left out if it is not used. If it is used, its first file is kept, so that
    verification can find further faults; the run stops in any case.
    """
    suffixes = sorted({file.suffix for file in files} - NOT_IMAGES)
    images = {name: best_image(files, name) for name in dict.fromkeys((*survey.sequences, *suffixes))}
    labels = (survey.label,) if survey.label else ()
    masks = {name: best_mask(files, name) for name in dict.fromkeys((*labels, *mask_names(files)))}
    used = {name: images[name] for name in survey.sequences}
    used |= {name: masks[name] for name in (*labels, *survey.optional) if name in masks}
    ties = {name: best for name, best in used.items() if len(best) > 1}
    return _first(images, ties), _first(masks, ties), ties


def _first(answers: Mapping[str, Sequence[ImageFile]], ties: Mapping[str, object]) -> dict[str, Path]:
    return {name: best[0].path for name, best in answers.items() if len(best) == 1 or name in ties}


def _others(
    survey: Survey, files: Sequence[ImageFile], masks: Mapping[str, Path], complete: Sequence[str]
) -> list[str]:
    """Notes on other masks of the label and other spaces, which are not used."""
    notes = []
    others = " and ".join(f"space-{space}" for space in complete[1:] if space)
    if survey.template and others:
        notes.append(f"masks in {others} are not used; those in space-{complete[0]} are")
    label = entities_of(survey.label or "")[1]
    own = [file for file in files if label and file.suffix == "mask" and file.mask_name == label]
    used = next((file for file in own if file.path == masks.get(survey.label or "")), None)
    rest = [file for file in own if file is not used]
    if used is not None and rest:
        listing = ", ".join(sorted(file.variant() for file in rest))
        notes.append(f"{used.variant()} is used; {listing} {'is' if len(rest) == 1 else 'are'} not")
    return notes


def _other_runs(files: Sequence[ImageFile], used: Path) -> str:
    """Note on further runs of an image, which are not used; empty if there are none."""
    own = next(file for file in files if file.path == used)
    rest = [
        file
        for file in files
        if (file.suffix, file.pipeline, file.extras()) == (own.suffix, own.pipeline, own.extras())
        and file.run != own.run
    ]
    if not rest:
        return ""
    listing = ", ".join(f"run-{file.entities['run']}" for file in sorted(rest, key=lambda file: file.run))
    return f"run {own.run} of {own.suffix} is used; {listing} {'is' if len(rest) == 1 else 'are'} not"


# --- faults ------------------------------------------------------------------------


def _space_mix(subject: str, answers: Mapping[str, Sequence[ImageFile]]) -> Fault:
    value = "; ".join(f"{name} in {_spaces(files)}" for name, files in answers.items())
    remedy = "Bring all files of the subject into one space."
    return Fault("space-mix", subject, subject, value, "all files in one space", remedy)


def _several_spaces(subject: str, spaces: Sequence[str]) -> Fault:
    value = f"complete in {' and in '.join(f'space-{space}' for space in spaces if space)}"
    remedy = f"Choose one, e.g. cohort.space={spaces[0]}"
    return Fault("ambiguous", subject, subject, value, "one space", remedy)


def _spaces(files: Sequence[ImageFile]) -> str:
    return ", ".join(sorted({f"space-{file.space}" if file.space else "native space" for file in files}))


def _ambiguous(survey: Survey, subject: str, name: str, files: Sequence[ImageFile]) -> Fault:
    value = f"{name} could be {' or '.join(file.path.name for file in files)}"
    where = str(files[0].path.parent.relative_to(survey.root))
    return Fault("ambiguous", where, subject, value, f"one file for {name}", _ambiguous_remedy(survey, name, files))


def _ambiguous_remedy(survey: Survey, name: str, files: Sequence[ImageFile]) -> str:
    asked, plain = entities_of(name)
    entities = "_".join(
        f"{key}-{value}" for key, value in sorted(files[0].extras(asked)) if (key, value) != ("label", plain)
    )
    if name == survey.label and entities:
        return f"Choose one, e.g. label={entities}_{plain}, or keep one of them in the folder."
    if name in survey.sequences and entities:
        return f"Ask for one by its entities, e.g. sequences={entities}_{name}, or keep one of them in the folder."
    if name == "brain":
        return "Keep one of them in the folder, or set cohort.brain=none or cohort.brain=compute."
    return "Keep one of them in the folder."
