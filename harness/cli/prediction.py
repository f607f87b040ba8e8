"""``harness predict``: predictions of new subjects with trained networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.cli.console import left_out
from harness.cli.keys import refuse_unused
from harness.core.errors import RequestError
from harness.core.paths import absolute
from harness.pipeline.prediction import find_networks, predict_subjects, read_subjects
from harness.storage.store import Store
from harness.sweep.grammar import Words
from harness.sweep.request import settings_of

__all__ = ["predict_folder"]


def predict_folder(words: Words, *, say: Callable[[str], None]) -> list[Path]:
    """Predict every subject of a folder.

    Parameters
    ----------
    words : ``model`` (a training cell or a configuration, the first digits are
        enough), ``data``, and optionally ``exclude``, ``out`` (where the model
        was trained) and ``into`` (where predictions go)
    say : is told what happens

    Returns
    -------
    list of Path
        The files, see :func:`harness.pipeline.prediction.predict_subjects`.

    Raises
    ------
    RequestError
        If a word is missing, not used, or names nothing.
    CohortError
        If the data have faults.

    Notes
    -----
    A configuration has one network per fold and seed: their probabilities are
    averaged. None of them saw the new subjects.
    """
    refuse_unused(words, "harness predict", several=("exclude",))
    for key in ("model", "data"):
        if key not in words.values:
            raise RequestError(f"{key}=… is missing: harness predict model=CELL|CONFIGURATION data=DIR")
    chosen = {key: value for key, value in words.values.items() if key in {"out", "exclude"}}
    settings = settings_of(Words(chosen, dict(words.sweeps)))
    store = Store(settings.folder / "store")
    root = absolute(str(words.values["data"]), "data")
    networks = find_networks(store, str(words.values["model"]))
    usual = settings.folder / "predictions" / f"{root.name}-{networks.name[:10]}"
    into = absolute(str(words.values.get("into", usual)), "into")
    say(str(networks))
    subjects = read_subjects(networks, root, settings.folder / "cache", exclude=settings.exclude)
    for sentence in (*left_out(subjects.cohort.ineligible), *subjects.notes):
        say(sentence)
    written, notes = predict_subjects(networks, subjects, store, into, root=root)
    for sentence in notes:
        say(sentence)
    say(f"written: {written[0]}" if len(written) == 1 else f"{len(written)} files written to {into}")
    return written
