"""``harness data``: make, verify and describe cohorts."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from harness.data import bids
from harness.data.cohort import describe
from harness.data.verify import verify
from harness.door.console import left_out, show_table
from harness.door.request import resolve
from harness.door.words import Words
from harness.errors import RequestError
from harness.sweep import generate, prepare

_MINIMUM = 3  # subjects that a run needs: one to train, one to validate, one to test

__all__ = ["describe_folder", "make", "verify_folder"]


def make(words: Words, out: Console) -> int:
    """``harness data make task=NAME into=DIR``: write a generated cohort."""
    into, rest = _take(words, "into")
    if not into:
        raise RequestError("where to? Say into=DIR, a folder that does not exist yet")
    root = Path(into).expanduser().resolve()
    if root.exists() and any(root.iterdir()):
        raise RequestError(f"{root} is not empty; nothing was written. Name a new folder")
    task = resolve(rest).task
    generate(task, root)
    out.print(f"{task.phantom_subjects} subjects written to {root}")
    return 0


def verify_folder(words: Words, out: Console) -> int:
    """``harness data verify data=DIR label=NAME sequences=A,B``: list every fault."""
    root, label, sequences, exclude = _folder(words)
    if not sequences:
        sequences = _common(bids.index(root, exclude=exclude, label=label or None))
        out.print(f"sequences that every subject has: {', '.join(sequences) or '(none)'}")
    index = bids.index(root, sequences=sequences, label=label or None, exclude=exclude)
    faults = verify(index, sequences=sequences, label=label or None, minimum=_MINIMUM if label else 1)
    out.print(f"{root}: {len(index.candidates)} subjects usable, {len(index.ineligible)} left out")
    for sentence in left_out(index.ineligible):
        out.print(sentence, markup=False)
    if faults:
        show_table(
            out,
            ["#", "fault", "file", "found", "expected", "next step"],
            [
                [str(number), fault.kind, fault.file, fault.value, fault.expected, fault.remedy]
                for number, fault in enumerate(faults, 1)
            ],
        )
        out.print(f"{len(faults)} faults")
        return 1
    out.print("no faults")
    return 0


def describe_folder(words: Words, out: Console) -> int:
    """``harness data describe task=NAME [data=DIR …]``: what a run would see."""
    cohort = prepare(resolve(words), say=out.print).cohort
    rows = [[key, _text(value)] for key, value in describe(cohort).items()]
    show_table(out, ["what", "value"], rows, cohort.name)
    return 0


def _common(index: bids.BidsIndex) -> tuple[str, ...]:
    """Suffixes of the images that all subjects have."""
    sets = [set(candidate.images) for candidate in index.candidates]
    return tuple(sorted(set.intersection(*sets))) if sets else ()


def _folder(words: Words) -> tuple[Path, str, tuple[str, ...], tuple[str, ...]]:
    known = {"data", "label", "sequences", "exclude"}
    unknown = [key for key in (*words.values, *words.sweeps) if key not in known]
    if unknown:
        raise RequestError(f"harness data verify takes {', '.join(sorted(known))}, got {unknown[0]}")
    if "data" not in words.values:
        raise RequestError("which folder? Say data=DIR")
    root = Path(str(words.values["data"])).expanduser().resolve()
    named = "+".join(str(one) for one in words.several("sequences"))
    sequences = tuple(dict.fromkeys(name for name in named.split("+") if name))
    exclude = tuple(str(one) for one in words.several("exclude"))
    return root, str(words.values.get("label", "")), sequences, exclude


def _take(words: Words, key: str) -> tuple[str, Words]:
    rest = {name: value for name, value in words.values.items() if name != key}
    return str(words.values.get(key, "")), Words(rest, words.sweeps, words.space)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_text(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
