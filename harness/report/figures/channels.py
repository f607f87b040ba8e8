"""Figures of input channels: their value for the prediction, and their share of the attribution."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.core.registry import ATTRIBUTIONS
from harness.core.types import Score
from harness.pipeline.contribution import Family
from harness.report import plots
from harness.report.elements import Figure
from harness.report.figures.results import MARK, Results, note_on_marks, score_in
from harness.report.plots import Bars
from harness.report.wording import interval_text, typographic

__all__ = ["gain_figures", "share_figures"]


def gain_figures(run: Results) -> Iterator[Figure]:
    """Gain from adding each channel to each set of other channels, if both sets were run."""
    for family in run.families:
        groups: dict[str, dict[str, Score]] = {}
        for (channel, others), gain in family.gains(run.rows, run.objective).items():
            marked = any(MARK in run.labels[family.members[one]] for one in (others, others | {channel}))
            name = f"to {family.name(others)}{MARK if marked else ''}"
            groups.setdefault(f"adding {channel}", {})[name] = gain
        if groups:
            note = note_on_marks([name for rows in groups.values() for name in rows])
            yield Figure(
                "Gain from adding a channel" + _of(family, run),
                f"Paired difference in {run.objective} over subjects, with 95 % interval: the set with the channel "
                "− the set without it, if both were run. The intervals are not adjusted for multiple comparisons."
                f"{note}",
                plots.grouped_intervals(groups, x_label=f"difference in {run.objective}", zero=True),
                section="Explanations",
            )


def share_figures(run: Results) -> Iterator[Figure]:
    """Shares of the attribution of each channel, compared with its value for the prediction."""
    for family in run.families:
        identity = family.members.get(frozenset(family.channels))
        if identity is None:
            continue
        panels = []
        for line in run.tables.explanation.to_pylist():
            if line["configuration"] == identity:
                panels += _share(run, line, family.channels)
        panels.sort(key=lambda panel: panel.muted)
        dropped = family.left_out(run.rows, run.objective)
        shares = family.shapley(run.rows, run.facts[run.objective])
        notes = ["Grey panels are controls."] if any(panel.muted for panel in panels) else []
        if dropped:
            panels.append(Bars("loss when left out", run.objective, dropped))
        if shares:
            panels.append(Bars("Shapley value", f"share of {run.objective}", shares))
        if panels:
            notes += _notes(run, family, identity, dropped, exact=bool(shares))
            yield Figure(
                "Attribution shares and the value of channels" + _of(family, run),
                f"{run.labels.get(identity, '')}: share of the absolute attribution of each channel, by method, "
                f"compared with its value, the {run.objective} of networks trained with and without it. The two may "
                f"differ, because a network can use a channel that others could replace. {' '.join(notes)}",
                plots.channel_bars(panels),
                broad=True,
                section="Explanations",
            )


def _notes(run: Results, family: Family, identity: str, dropped: Mapping[str, Score], *, exact: bool) -> list[str]:
    """Notes on how the values of channels were obtained."""
    notes = [f"Loss of {run.objective} if left out of training: {_losses(dropped)}."] if dropped else []
    untested = [name for name in family.channels if name not in dropped]
    if untested:
        notes.append(f"This run has no network trained on all channels except {' or '.join(untested)}.")
    if exact:
        notes.append(f"Shapley values are exact, over all {len(family.members)} sets.")
    used = [key for key in family.members.values() if exact or key == identity]
    used += [family.members[frozenset(family.channels) - {name}] for name in dropped]
    unsound = [run.labels[key] for key in dict.fromkeys(used) if MARK in run.labels[key]]
    if unsound:
        notes.append(f"Based on {', '.join(unsound)}.{note_on_marks(unsound)}")
    return notes


def _share(run: Results, line: Mapping[str, Any], channels: Sequence[str]) -> list[Bars]:
    """Panel of one attribution; empty if its shares are not known."""
    labels = {one.keywords.get("channel"): label for label, one in run.metrics("channel_share").items()}
    known = [name for name in channels if name in labels and line.get(labels[name]) is not None]
    shares = {name: score_in(line, labels[name]) for name in known}
    if not shares:
        return []
    attribution = line["attribution"]
    function = run.task.attributions[attribution].func
    muted = bool(ATTRIBUTIONS.get(ATTRIBUTIONS.name_of(function)).facts.get("control"))
    return [Bars(attribution.replace("_", " "), "share of attribution", shares, muted)]


def _losses(scores: Mapping[str, Score]) -> str:
    """Losses as text: ``T1w 0.02 [0.01, 0.03], …``."""
    texts = (
        f"{name} {typographic(interval_text(score.value, score.low, score.high))}" for name, score in scores.items()
    )
    return ", ".join(texts)


def _of(family: Family, run: Results) -> str:
    """The axes of a family in parentheses; empty if there is only one family."""
    if len(run.families) < 2:
        return ""
    return f" ({', '.join(f'{name}={value}' for name, value in family.axes.items())})"
