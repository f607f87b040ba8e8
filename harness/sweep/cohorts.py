"""Cohorts of a sweep: read or generate them, add the targets, and save them for the workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import OutOfRange, UnknownName
from harness.core.identity import digest_of, identify
from harness.core.registry import KINDS
from harness.core.settings import RunSettings
from harness.core.task import Task, describe_component
from harness.core.types import Cohort, Reads
from harness.data.bids_writing import write_phantom
from harness.data.pictures import write_pictures
from harness.data.table import save

__all__ = [
    "Group",
    "generate",
    "images_of",
    "phantom_folder",
    "read_cohort",
    "root_of",
    "saved",
    "separate_search_subjects",
    "with_targets",
]


@dataclass(frozen=True)
class Group:
    """A cohort shared by several configurations.

    Parameters
    ----------
    path : file with the cohort's table, which the workers open
    cohort : the cohort, in memory
    """

    path: Path
    cohort: Cohort


_FEWEST = 3  # subjects, whatever cohort.minimum says


def images_of(tasks: Sequence[Task]) -> tuple[str, ...]:
    """Names of all images that any of the tasks reads, so that they can share one cohort."""
    return tuple(sorted({name for task in tasks for name in task.adapter().reads.images}))


def read_cohort(task: Task, sequences: tuple[str, ...], settings: RunSettings, say: Callable[[str], None]) -> Cohort:
    """Read and verify the cohort of a task; without ``data=``, generate it first."""
    root = root_of(task, settings)
    if settings.data_folder is None and not root.exists():
        say(f"generating {task.phantom_subjects} subjects with known truth in {root}")
        try:
            generate(task, root)
        except OSError:
            if not root.exists():  # otherwise another run has generated the same cohort in the meantime
                raise
    say(f"reading and verifying {root}")
    options = getattr(task.cohort, "keywords", {})
    cohort: Cohort = task.cohort(
        root,
        settings.folder / "cache",
        sequences=sequences,
        exclude=tuple(dict.fromkeys((*settings.exclude, *options.get("exclude", ())))),
        minimum=max(_FEWEST, options.get("minimum", _FEWEST)),
    )
    return cohort


def with_targets(task: Task, cohort: Cohort, settings: RunSettings) -> Cohort:
    """The cohort with the targets of the task."""
    for component in task.targets.values():
        cohort = component(cohort, settings.folder / "cache")
    return cohort


def saved(cohort: Cohort, settings: RunSettings) -> Group:
    """Save a cohort's table to a file that the workers can open."""
    sample = cohort.samples[0]
    targets = tuple(target.name for target in cohort.targets)
    everything = Reads(
        tuple(sorted({name for one in cohort.samples for name in one.images})),
        tuple(sorted({name for one in cohort.samples for name in one.masks})),
        tuple(sorted({name for one in cohort.samples for name in one.covariates})),
        targets=targets,
        weights=targets,
        clean=targets,
        grid=("affine", "spacing_mm"),
    )
    content = [cohort.name, cohort.fingerprint(everything), cohort.truth.fingerprint if cohort.truth else ""]
    path = settings.folder / "cohorts" / f"{identify([*content, sorted(sample.images)])}.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    save(cohort, path)
    return Group(path, cohort)


def separate_search_subjects(group: Group, settings: RunSettings) -> tuple[Group, Group]:
    """Split a cohort into the subjects that are evaluated and those used by the search."""
    known = group.cohort.subjects
    wished = [name if name in known or name.startswith("sub-") else f"sub-{name}" for name in settings.search_subjects]
    for name in wished:
        if name not in known:
            raise UnknownName("subject of the cohort (search_subjects)", name, known)
    samples = group.cohort.samples
    chosen = tuple(sample for sample in samples if sample.subject in wished)
    rest = tuple(sample for sample in samples if sample.subject not in wished)
    if len(known) - len(set(wished)) < 3:
        raise OutOfRange(
            f"at least 3 subjects must be left for the evaluation, got {len(known) - len(set(wished))} of {len(known)} "
            f"without search_subjects={','.join(wished)}; name fewer, or remove it to search within each fold"
        )
    evaluated, tuning = (dataclasses.replace(group.cohort, samples=part) for part in (rest, chosen))
    return saved(evaluated, settings), saved(tuning, settings)


def root_of(task: Task, settings: RunSettings) -> Path:
    """The folder from which the cohort of a task is read."""
    return settings.data_folder or phantom_folder(task, settings)


def phantom_folder(task: Task, settings: RunSettings) -> Path:
    """Folder of the generated cohort of a task; its name has a digest of everything that determines the content."""
    what = {
        "phantom": describe_component(KINDS["phantom"], task.phantom),
        "subjects": task.phantom_subjects,
        "seed": task.phantom_seed,
        "code": digest_of(task.phantom, KINDS["phantom"]),
    }
    return settings.folder / "phantoms" / f"{task.name}-{identify(what)[:10]}"


def generate(task: Task, root: Path) -> None:
    """Write the generated cohort of a task in the layout that its reader expects: BIDS, or pictures with a table."""
    subjects = (task.phantom(task.phantom_seed, number) for number in range(task.phantom_subjects))
    phantoms = KINDS["phantom"]
    described = describe_component(phantoms, task.phantom)
    facts = phantoms.get(described["use"]).facts
    if facts.get("layout") == "pictures":
        write_pictures(root, subjects)
        return
    sources = {facts["target"]: (facts["label_source"],)} if "label_source" in facts else {}
    write_phantom(
        root,
        subjects,
        name=f"{task.name} phantom",
        label_sources=sources,
        generated_by={"Name": "harness", "Parameters": described},
        space=facts.get("space", ""),
    )
