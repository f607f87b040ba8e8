"""``harness data``: make, verify and describe cohorts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict, Unpack

from rich.console import Console

from harness.cli.console import counted, left_out, say, show_table
from harness.cli.keys import refuse_unused
from harness.core.errors import CohortError, RequestError
from harness.core.paths import absolute
from harness.core.types import Fault, Ineligible
from harness.data import bids
from harness.data.cohort_notes import resolution_notes
from harness.data.summary import describe
from harness.data.verify import brain_faults, verify
from harness.storage.files import check_writable
from harness.sweep.cohorts import generate
from harness.sweep.grammar import Overrides
from harness.sweep.plan import Request, prepare
from harness.sweep.request import defaults_for_data, resolve

_MINIMUM = 3  # subjects that a run needs: one to train, one to validate, one to test

__all__ = ["describe_folder", "faults_of", "make", "verify_folder"]


def make(overrides: Overrides, out: Console) -> int:
    """``harness data make task=NAME into=DIR``: write a generated cohort."""
    refuse_unused(overrides, "harness data make")
    into = str(overrides.values.get("into", ""))
    if not into:
        raise RequestError("into= must be given; set into=DIR, a new folder")
    root = absolute(into, "into")
    check_writable(root, "into")
    if root.exists() and any(root.iterdir()):
        raise RequestError(f"into= must be a new or empty folder, but {root} has files; nothing was written")
    task = resolve(Overrides({key: value for key, value in overrides.values.items() if key != "into"})).task
    generate(task, root)
    say(out, f"{task.phantom_subjects} subjects written to {root}")
    return 0


def verify_folder(overrides: Overrides, out: Console) -> int:
    """``harness data verify``: list every fault that would stop a run.

    With ``data=DIR label=NAME sequences=A,B``, the files are verified as they are. With
    ``task=NAME data=DIR`` and any overrides of a run, they are also prepared as in that run.
    """
    if overrides.has("task"):
        return _verify_for_run(overrides, out)
    refuse_unused(overrides, "harness data verify", several=("exclude", "sequences"))
    root, label, sequences, exclude = _folder(overrides)
    choices = _choices(overrides)
    if not sequences:
        sequences = _common(bids.index(root, exclude=exclude, label=label or None, **choices))
        out.print(f"sequences that every subject has: {', '.join(sequences) or '(none)'}")
    index, faults = faults_of(root, sequences=sequences, label=label, exclude=exclude, **choices)
    say(out, f"{root}: {len(index.candidates)} subjects usable, {len(index.ineligible)} left out")
    _say_notes(out, index.ineligible, (*index.notes, *resolution_notes(index, sequences)))
    return _show_faults(out, faults)


class _Choices(TypedDict, total=False):
    """Options of the readers that decide which files are used."""

    session: str
    space: str
    truth: str


def _choices(overrides: Overrides) -> _Choices:
    values = overrides.values
    return {
        "session": str(values.get("cohort.session", "only")),
        "space": str(values.get("cohort.space", "")),
        "truth": str(values.get("cohort.truth", "")),
    }


def _say_notes(out: Console, ineligible: Sequence[Ineligible], notes: Sequence[str]) -> None:
    for sentence in (*left_out(ineligible), *notes):
        say(out, sentence)


def faults_of(
    root: Path, *, sequences: tuple[str, ...], label: str, exclude: tuple[str, ...] = (), **choices: Unpack[_Choices]
) -> tuple[bids.BidsIndex, tuple[Fault, ...]]:
    """Index of a folder, and all faults that the ``bids`` reader finds before it prepares images.

    Parameters
    ----------
    root : the folder
    sequences, label, exclude : see :func:`harness.data.bids.index`
    choices : its options ``session``, ``space`` and ``truth``
    """
    index = bids.index(root, sequences=sequences, label=label or None, exclude=exclude, **choices)
    faults = verify(index, sequences=sequences, label=label or None, minimum=_MINIMUM if label else 1)
    return index, tuple(dict.fromkeys((*faults, *brain_faults(index))))


def _verify_for_run(overrides: Overrides, out: Console) -> int:
    request = resolve(overrides)
    if request.settings.data_folder is None:
        raise RequestError("data= must be given; set data=DIR (generated cohorts need no verification)")
    _say_defaults(out, request)
    try:
        made = prepare(request, say=partial(say, out))
    except CohortError as error:
        _say_notes(out, error.ineligible, error.notes)
        return _show_faults(out, error.faults)
    cohort = made.cohort
    say(out, f"{cohort.name}: {len(cohort.subjects)} subjects usable, {len(cohort.ineligible)} left out")
    _say_notes(out, cohort.ineligible, made.notes)
    return _show_faults(out, ())


def _say_defaults(out: Console, request: Request) -> None:
    """Name the options whose defaults differ from those for generated images."""
    if values := defaults_for_data(request):
        say(out, f"your own data: {values} (override them to change this)")


def _show_faults(out: Console, faults: Sequence[Fault]) -> int:
    """Show the faults; exit code 1 if there are any."""
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
    out.print(counted(len(faults), "fault"))
    return 1


def describe_folder(overrides: Overrides, out: Console) -> int:
    """``harness data describe task=NAME [data=DIR …]``: the cohort as a run would use it."""
    request = resolve(overrides)
    _say_defaults(out, request)
    cohort = prepare(request, say=partial(say, out)).cohort
    rows = [[key, _text(value)] for key, value in describe(cohort).items()]
    show_table(out, ["what", "value"], rows, cohort.name)
    return 0


def _common(index: bids.BidsIndex) -> tuple[str, ...]:
    """Suffixes of the images that all subjects have."""
    sets = [set(candidate.images) for candidate in index.candidates]
    return tuple(sorted(set.intersection(*sets))) if sets else ()


def _folder(overrides: Overrides) -> tuple[Path, str, tuple[str, ...], tuple[str, ...]]:
    if "data" not in overrides.values:
        raise RequestError("data= must be given; set data=DIR")
    root = absolute(str(overrides.values["data"]), "data")
    named = "+".join(str(one) for one in overrides.several("sequences"))
    sequences = tuple(dict.fromkeys(name for name in named.split("+") if name))
    exclude = tuple(str(one) for one in overrides.several("exclude"))
    return root, str(overrides.values.get("label", "")), sequences, exclude


def _text(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_text(one)}" for key, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
