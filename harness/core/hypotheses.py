"""Hypotheses and published results of a paper, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from harness.core.errors import OutOfRange

__all__ = ["Hypothesis", "Published", "Relation", "label_key"]

Relation = Literal["better", "equivalent", "reaches", "below"]


@dataclass(frozen=True)
class Hypothesis:
    """A testable statement of a paper.

    Whether high or low values are better is defined by the metric.

    Parameters
    ----------
    id : short name for tables
    statement : the hypothesis in words
    metric : label of one of the task's metrics
    groups : labels, best group first. For ``"better"``, every member of a group is
        better than every member of the next group. For ``"equivalent"``, all members
        of the single group are equivalent. For ``"reaches"``, each member of the single
        group is at least as good as ``margin``; for ``"below"``, it is less than ``margin``,
        whatever the direction of the metric, as a p value
    over : what the labels belong to: a column of the leaderboard, ``"region"``, or
        ``"metric"`` to compare metrics of one row with each other
    at : what is held fixed: column → label, or ``"region"`` → name of the region
    relation : see ``groups``
    margin : in the unit of the metric. ``"better"``: smallest difference;
        ``"equivalent"``: largest difference in either direction; ``"reaches"``: the
        value to reach; ``"below"``: the upper bound
    magnitude : whether absolute values are compared; for pooled metrics only
    support : how well the paper supports the hypothesis: strong, moderate or weak
    caution : limitation to report with the result
    """

    id: str
    statement: str
    metric: str
    groups: tuple[tuple[str, ...], ...]
    over: str
    at: Mapping[str, str] = field(default_factory=dict)
    relation: Relation = "better"
    margin: float = 0.0
    magnitude: bool = False
    support: str = ""
    caution: str = ""

    def __post_init__(self) -> None:
        fits = len(self.groups) > 1 if self.relation == "better" else len(self.groups) == 1
        if not fits or not all(self.groups):
            wanted = "two groups or more" if self.relation == "better" else "one group"
            raise OutOfRange(
                f"hypothesis {self.id} ({self.relation}) must name {wanted}, none of them empty; got {self.groups}"
            )
        if self.over == "metric" and self.metric not in self.groups[0]:
            raise OutOfRange(
                f"the metric of hypothesis {self.id}, which compares metrics, must be in its first group, "
                f"got {self.metric} and {self.groups[0]}"
            )
        if self.relation == "equivalent" and not self.margin > 0:
            raise OutOfRange(f"`0 < margin` must hold for hypothesis {self.id} (equivalent), got margin={self.margin}")


@dataclass(frozen=True)
class Published:
    """A table of results from a paper.

    Parameters
    ----------
    source : paper, table and kind of values
    over : leaderboard column whose labels are the rows
    metrics : labels of the task's metrics, one per column; with ``_validation`` at the end
        for values on validation samples
    values : row label → (value, standard error) for each column; the standard error is
        ``None`` where the paper gives none, and the value NaN where it gives no value
    title : what distinguishes this table from others of the paper
    at : what the published rows hold fixed: column → label, as in :class:`Hypothesis`. Other
        rows have no published values
    """

    source: str
    over: str
    metrics: tuple[str, ...]
    values: Mapping[str, tuple[tuple[float, float | None], ...]]
    title: str = ""
    at: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for label, row in self.values.items():
            if len(row) != len(self.metrics):
                raise OutOfRange(
                    f"row {label} of {self.source} must have a value for each of {len(self.metrics)} metrics, "
                    f"got {len(row)}"
                )


def label_key(label: object) -> frozenset[str]:
    """Key for comparing labels; the order of names joined by ``+`` does not matter."""
    return frozenset(str(label).split("+"))
