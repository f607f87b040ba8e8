"""Tables and JSON files beside the images: names of regions, and sequences on which masks were drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.core.types import JSON, Candidate, Fault
from harness.data.bids_files import entities_of
from harness.data.participants import read_json

__all__ = ["label_source", "region_names"]


def region_names(root: Path, candidates: Sequence[Candidate]) -> tuple[dict[int, str], list[Fault]]:
    """Label value → name, from tables beside the regions images, and those at the root that apply to them.

    As in BIDS, a table at the root applies to images that have all entities of its name:
    ``desc-aseg_dseg.tsv`` does not name the tissues of ``sub-01_dseg.nii.gz``.
    """
    images = [entities_of(one.masks["regions"].name)[0] for one in candidates if "regions" in one.masks]
    shared = [path for pattern in ("*dseg.tsv", "*label-regions_*.json") for path in sorted(root.glob(pattern))]
    tables = [(path, "") for path in shared if any(_applies(path, entities) for entities in images)]
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


def _applies(table: Path, image: Mapping[str, str]) -> bool:
    """Whether an image has all entities of a table; ``label-regions`` applies to every segmentation."""
    return all(image.get(key, "regions") == value for key, value in entities_of(table.name)[0].items())


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


def label_source(root: Path, candidates: Sequence[Candidate], label: str | None) -> tuple[str, list[Fault]]:
    """Sequences under ``Sources`` in the JSON files of the masks, with counts if they differ."""
    stated: Counter[str] = Counter()
    faults: dict[str, Fault] = {}
    end = f"label-{entities_of(label or '')[1]}_mask"
    shared = [(path, "") for path in sorted(root.glob("*.json")) if path.stem.endswith(end)]
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
