"""``harness predict``: predictions of new subjects with trained networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.cli.console import left_out
from harness.cli.keys import refuse_unused
from harness.core.errors import RequestError
from harness.core.paths import absolute
from harness.pipeline.prediction import find_networks, predict_subjects, read_subjects
from harness.storage.files import check_writable
from harness.storage.store import open_store
from harness.sweep.grammar import Overrides
from harness.sweep.request import settings_of

__all__ = ["predict_folder"]


def predict_folder(overrides: Overrides, *, say: Callable[[str], None]) -> list[Path]:
    """Predict every subject of a folder.

    Parameters
    ----------
    overrides : ``model`` (identity of a training cell or a configuration; its first
        digits suffice), ``data``, and optionally ``exclude``, ``out`` (output folder
        of the run that trained the model) and ``into`` (folder for the predictions)
    say : called with progress messages

    Returns
    -------
    list of Path
        Files that were written, see :func:`harness.pipeline.prediction.predict_subjects`.

    Raises
    ------
    RequestError
        If a key is missing or not used, or a value names nothing.
    CohortError
        If the data have faults.

    Notes
    -----
    A configuration has one network per fold and seed; their probabilities are
    averaged.
    """
    refuse_unused(overrides, "harness predict", several=("exclude",))
    for key in ("model", "data"):
        if key not in overrides.values:
            raise RequestError(f"{key}= must be given: harness predict model=CELL|CONFIGURATION data=DIR")
    chosen = {key: value for key, value in overrides.values.items() if key in {"out", "exclude"}}
    settings = settings_of(Overrides(chosen, dict(overrides.sweeps)))
    store = open_store(settings, say=say)
    root = absolute(str(overrides.values["data"]), "data")
    networks = find_networks(store, str(overrides.values["model"]))
    usual = settings.folder / "predictions" / f"{root.name}-{networks.name[:10]}"
    into = absolute(str(overrides.values.get("into", usual)), "into")
    check_writable(into, "into")
    say(str(networks))
    subjects = read_subjects(networks, root, settings.folder / "cache", exclude=settings.exclude)
    for sentence in (*left_out(subjects.cohort.ineligible), *subjects.cohort.notes, *subjects.notes):
        say(sentence)
    written, notes = predict_subjects(networks, subjects, store, into, root=root)
    for sentence in notes:
        say(sentence)
    say(f"written: {written[0]}" if len(written) == 1 else f"{len(written)} files written to {into}")
    return written
