"""What a paper claims, as plain data: hypotheses to be tested, values to stand beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from harness.core.errors import OutOfRange

__all__ = ["Hypothesis", "Published", "Relation", "label_key"]

Relation = Literal["better", "equivalent", "reaches"]


@dataclass(frozen=True)
class Hypothesis:
    """A testable statement of a paper; which end of the metric is better, the metric says.

    Parameters
    ----------
    id : short name, for the table
    statement : in words
    metric : label of one of the task's metrics
    groups : labels, best group first. ``"better"``: every member of a group is
        better than every member of the next one. ``"equivalent"``: any two members
        of the one group. ``"reaches"``: each member of the one group by itself
    over : what the labels are: an axis of the leaderboard, or ``"region"``
    at : what is held fixed: a region by ``"region"``, or a label by its axis
    relation : see ``groups``
    margin : in the metric's unit. Better by more than this; equivalent within
        plus or minus this; or the value that is reached
    support : how well the paper itself backs it: strong, moderate or weak
    caution : what to bear in mind
    """

    id: str
    statement: str
    metric: str
    groups: tuple[tuple[str, ...], ...]
    over: str
    at: Mapping[str, str] = field(default_factory=dict)
    relation: Relation = "better"
    margin: float = 0.0
    support: str = ""
    caution: str = ""

    def __post_init__(self) -> None:
        fits = len(self.groups) > 1 if self.relation == "better" else len(self.groups) == 1
        if not fits or not all(self.groups):
            wanted = "two groups or more" if self.relation == "better" else "one group"
            raise OutOfRange(
                f"ordering {self.id} ({self.relation}) must name {wanted}, none of them empty; got {self.groups}"
            )
        if self.relation == "equivalent" and not self.margin > 0:
            raise OutOfRange(f"`0 < margin` must hold for ordering {self.id} (equivalent), got margin={self.margin}")


@dataclass(frozen=True)
class Published:
    """A table of a paper.

    Parameters
    ----------
    source : which table of which paper, and what its numbers are
    over : the axis whose labels the rows are
    metrics : labels of the task's metrics, one per column
    values : row → a (value, standard error) per column; ``None`` where none is printed
    """

    source: str
    over: str
    metrics: tuple[str, ...]
    values: Mapping[str, tuple[tuple[float, float | None], ...]]

    def __post_init__(self) -> None:
        for label, row in self.values.items():
            if len(row) != len(self.metrics):
                raise OutOfRange(
                    f"row {label} of {self.source} must have a value for each of {len(self.metrics)} metrics, "
                    f"got {len(row)}"
                )


def label_key(label: object) -> frozenset[str]:
    """By what labels are compared: parts joined by ``+`` are a set, whose order says nothing."""
    return frozenset(str(label).split("+"))
