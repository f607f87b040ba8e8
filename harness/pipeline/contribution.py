"""Contribution of each input channel: left out, alone, and as Shapley value.

All three compare configurations that differ only in their channels. They describe
networks trained without a channel, not one network whose input is withheld.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from harness.core.identity import identify
from harness.core.task import Configuration
from harness.core.types import JSON, Array, Score
from harness.pipeline.cell import restored
from harness.pipeline.rows import MetricFacts, Row, subject_means
from harness.stats.intervals import mean_score, shapley_scores

__all__ = ["Family", "families", "shapley_table", "score_without_input"]


# Parts of the description that configurations of a family share.
_SHARED = ("phantom", "phantom_subjects", "phantom_seed", "cohort", "targets", "split", "model", "recipe")


@dataclass(frozen=True)
class Family:
    """Configurations that differ only in their input channels.

    Parameters
    ----------
    axes : axes that all of them share
    channels : all channels, in the order of the largest member
    members : ids of the configurations, by set of channels
    """

    axes: Mapping[str, JSON]
    channels: tuple[str, ...]
    members: Mapping[frozenset[str], str]

    def name(self, subset: Collection[str]) -> str:
        """Name of a set of channels, such as ``T2w+FLAIR``, in the family's order."""
        return "+".join(channel for channel in self.channels if channel in subset)

    @property
    def complete(self) -> bool:
        """Whether there are at least two channels, and a configuration for every non-empty subset."""
        return len(self.channels) > 1 and len(self.members) == 2 ** len(self.channels) - 1

    def gains(self, rows: Mapping[str, Row], metric: str) -> dict[tuple[str, frozenset[str]], Score]:
        """Gain from adding a channel to a set of others, if both sets were run.

        Parameters
        ----------
        rows : rows of the configurations, by id
        metric : metric of which differences are computed

        Returns
        -------
        dict
            Mean paired differences by (channel, set of others), in the order of the
            channels. The set is not empty. Differences without common subjects are left out.
        """
        found = {}
        for channel in self.channels:
            for others, identity in self.members.items():
                if channel not in others and others | {channel} in self.members:
                    both, without = _columns([self.members[others | {channel}], identity], rows, metric)
                    gain = mean_score(both - without)
                    if gain.n:
                        found[channel, others] = gain
        return found

    def left_out(self, rows: Mapping[str, Row], metric: str) -> dict[str, Score]:
        """Loss of the full set of channels without each of them, if the rest was run."""
        everything = frozenset(self.channels)
        return {
            channel: gain
            for (channel, others), gain in self.gains(rows, metric).items()
            if others == everything - {channel}
        }

    def shapley(self, rows: Mapping[str, Row], facts: MetricFacts) -> dict[str, Score]:
        """Exact Shapley value of each channel; empty unless all subsets were run.

        Parameters
        ----------
        rows : rows of the configurations, by id
        facts : facts of the metric. Higher must be better, and its value without input must
            be known: its chance level, or otherwise the lower end of its range (an empty
            mask has a Dice of 0)
        """
        nothing = score_without_input(facts)
        if not self.complete or math.isnan(nothing):
            return {}
        columns = _columns(list(self.members.values()), rows, facts.name)
        values = dict(zip(self.members, columns, strict=True))
        shares = shapley_scores(values, self.channels, empty=nothing)
        return {channel: share for channel, share in shares.items() if share.n}


def families(configurations: Sequence[Configuration]) -> list[Family]:
    """Configurations grouped by everything but their channels, in order of appearance.

    Of configurations with the same channels in a different order, the first is used.
    """
    groups: dict[str, list[tuple[tuple[str, ...], Configuration]]] = {}
    for one in configurations:
        channels = tuple(restored(one).adapter().reads.images)
        # The option of the adapter that lists the channels may differ.
        adapter = {
            key: value
            for key, value in one.task["adapter"].items()
            if frozenset(str(value).split("+")) != frozenset(channels)
        }
        rest = {**{name: one.task[name] for name in _SHARED if name in one.task}, "adapter": adapter}
        groups.setdefault(identify(rest), []).append((channels, one))
    return [_family(group) for group in groups.values()]


def score_without_input(facts: MetricFacts) -> float:
    """Value of a metric without any input; NaN if it is not known or higher is not better."""
    if facts.direction != "higher":
        return math.nan
    return next((value for value in (facts.chance, facts.range[0]) if math.isfinite(value)), math.nan)


def shapley_table(
    configurations: Sequence[Configuration], rows: Mapping[str, Row], facts: MetricFacts
) -> pa.Table | None:
    """Contribution of each channel, if every subset of the channels was run.

    Parameters
    ----------
    configurations : configurations of a run
    rows : rows of predictions, by configuration id
    facts : facts of the metric

    Returns
    -------
    pyarrow.Table or None
        One row per family and channel: the family's axes, ``channel``, and in the unit of
        the metric ``shapley``, ``left_out`` (loss of the full set without the channel) and
        ``alone`` (value of the channel alone), each with ``_low`` and ``_high`` over
        subjects; ``subjects``, ``metric``, ``nothing`` (value without channels), ``all``
        (value of all channels), and ``flags`` of the configurations, as collapsed sets are
        included. ``None`` if no family is complete.
    """
    lines: list[dict[str, JSON]] = []
    for family in families(configurations):
        shares = family.shapley(rows, facts)
        if not shares:
            continue
        dropped = family.left_out(rows, facts.name)
        flags = [
            f"{family.name(subset)}: {flag}"
            for subset, identity in family.members.items()
            for flag in rows[identity].flags
        ]
        everything = _mean(rows[family.members[frozenset(family.channels)]], facts.name)
        for channel, share in shares.items():
            alone = _mean(rows[family.members[frozenset({channel})]], facts.name)
            lines.append(
                {
                    **family.axes,
                    "channel": channel,
                    **_parts("shapley", share),
                    **_parts("left_out", dropped[channel]),
                    **_parts("alone", alone),
                    "subjects": share.n,
                    "metric": facts.name,
                    "nothing": score_without_input(facts),
                    "all": everything.value,
                    "flags": "; ".join(flags),
                }
            )
    return pa.Table.from_pylist(lines) if lines else None


def _family(group: Sequence[tuple[tuple[str, ...], Configuration]]) -> Family:
    largest = max((channels for channels, _ in group), key=len)
    channels = tuple(dict.fromkeys([*largest, *(name for names, _ in group for name in names)]))
    members: dict[frozenset[str], str] = {}
    for names, one in group:
        members.setdefault(frozenset(names), one.id)
    first = group[0][1].axes
    shared = {name: value for name, value in first.items() if all(one.axes.get(name) == value for _, one in group[1:])}
    # In a family with one member, channels are shared too, but they do not label the family.
    varied = {name for name, value in shared.items() if frozenset(str(value).split("+")) == frozenset(group[0][0])}
    return Family({name: value for name, value in shared.items() if name not in varied}, channels, members)


def _columns(identities: Sequence[str], rows: Mapping[str, Row], metric: str) -> Array:
    """(configurations, subjects), NaN where a subject has no value."""
    means = [subject_means(rows[identity], metric) for identity in identities]
    subjects = sorted({subject for one in means for subject in one})
    return np.array([[one.get(subject, math.nan) for subject in subjects] for one in means], dtype=float)


def _mean(row: Row, metric: str) -> Score:
    """The value of the leaderboard, as the pooled value or the mean over subjects."""
    if metric in row.pooled:
        return row.pooled[metric]
    return mean_score(list(subject_means(row, metric).values()))


def _parts(name: str, score: Score) -> dict[str, float | None]:
    found = {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
    return {key: None if math.isnan(value) else value for key, value in found.items()}
