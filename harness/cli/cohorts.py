"""``harness data``: make, verify and describe cohorts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from harness.cli.console import left_out, show_table
from harness.cli.keys import refuse_unused
from harness.core.errors import CohortError, RequestError
from harness.core.paths import absolute
from harness.core.types import Fault
from harness.data import bids
from harness.data.summary import describe
from harness.data.verify import brain_faults, verify
from harness.sweep.cohorts import generate
from harness.sweep.grammar import Words
from harness.sweep.plan import prepare
from harness.sweep.request import resolve

_MINIMUM = 3  # subjects that a run needs: one to train, one to validate, one to test

__all__ = ["describe_folder", "faults_of", "make", "verify_folder"]


def make(words: Words, out: Console) -> int:
    """``harness data make task=NAME into=DIR``: write a generated cohort."""
    refuse_unused(words, "harness data make")
    into = str(words.values.get("into", ""))
    if not into:
        raise RequestError("where to? Say into=DIR, a folder that does not exist yet")
    root = absolute(into, "into")
    if root.exists() and any(root.iterdir()):
        raise RequestError(f"{root} is not empty; nothing was written. Name a new folder")
    task = resolve(Words({key: value for key, value in words.values.items() if key != "into"})).task
    generate(task, root)
    out.print(f"{task.phantom_subjects} subjects written to {root}")
    return 0


def verify_folder(words: Words, out: Console) -> int:
    """``harness data verify``: list every fault that a run would stop at.

    With ``data=DIR label=NAME sequences=A,B`` the files are verified as they
    are. With ``task=NAME data=DIR`` and any words of a run, they are prepared as
    that run would prepare them, too.
    """
    if words.has("task"):
        return _verify_for_run(words, out)
    refuse_unused(words, "harness data verify", several=("exclude", "sequences"))
    root, label, sequences, exclude = _folder(words)
    if not sequences:
        sequences = _common(bids.index(root, exclude=exclude, label=label or None))
        out.print(f"sequences that every subject has: {', '.join(sequences) or '(none)'}")
    index, faults = faults_of(root, sequences=sequences, label=label, exclude=exclude)
    out.print(f"{root}: {len(index.candidates)} subjects usable, {len(index.ineligible)} left out")
    for sentence in left_out(index.ineligible):
        out.print(sentence, markup=False)
    return _show_faults(out, faults)


def faults_of(
    root: Path, *, sequences: tuple[str, ...], label: str, exclude: tuple[str, ...] = ()
) -> tuple[bids.BidsIndex, tuple[Fault, ...]]:
    """What a folder holds, and all that the ``bids`` reader would find wrong before it prepares anything."""
    index = bids.index(root, sequences=sequences, label=label or None, exclude=exclude)
    faults = verify(index, sequences=sequences, label=label or None, minimum=_MINIMUM if label else 1)
    return index, tuple(dict.fromkeys((*faults, *brain_faults(index))))


def _verify_for_run(words: Words, out: Console) -> int:
    request = resolve(words)
    if request.settings.data_folder is None:
        raise RequestError("which folder? Say data=DIR (a cohort that a task generates is sound)")
    try:
        made = prepare(request, say=out.print)
    except CohortError as error:
        return _show_faults(out, error.faults)
    cohort = made.cohort
    out.print(f"{cohort.name}: {len(cohort.subjects)} subjects usable, {len(cohort.ineligible)} left out")
    for sentence in left_out(cohort.ineligible):
        out.print(sentence, markup=False)
    return _show_faults(out, ())


def _show_faults(out: Console, faults: Sequence[Fault]) -> int:
    """The list; 0 if it is empty."""
    if not faults:
        out.print("no faults")
        return 0
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
    if "data" not in words.values:
        raise RequestError("which folder? Say data=DIR")
    root = absolute(str(words.values["data"]), "data")
    named = "+".join(str(one) for one in words.several("sequences"))
    sequences = tuple(dict.fromkeys(name for name in named.split("+") if name))
    exclude = tuple(str(one) for one in words.several("exclude"))
    return root, str(words.values.get("label", "")), sequences, exclude


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_text(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
