"""Explanations as values: which attribution, of what, combined how, of which samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge

from harness.core.errors import OutOfRange

__all__ = ["FIELDS", "Combine", "Explanation", "Keep", "Rule"]

Combine = Literal["none", "sum", "relevance_times_input"]
Rule = Literal["tested", "correct", "true_positive"]
Keep = Literal["maps", "sums", "maps+sums"]


@dataclass(frozen=True)
class Explanation:
    """One explanation of a trained network.

    Parameters
    ----------
    attribution : the method with its options
    of : the scalar that is explained. Empty: each target's own scalar, which is the
        output of a number, the logit of a binary target, the logit of the predicted
        class, and the lesion evidence of a mask. ``"NAME"``: that of one target, or a
        scalar that the model exposes; ``"NAME:CLASS"``: the logit of one class
    combine : ``none`` keeps a map for each input channel, ``sum`` adds them,
        ``relevance_times_input`` adds the products of map and input
    samples : ``tested`` explains all, ``correct`` those that were classified
        correctly, ``true_positive`` those that were correctly called positive
    chosen_by : target of the classification by which samples are chosen; empty takes
        the only binary or classes target
    at_most : number of samples that are explained, the most confident first; 0 for all
    postprocess : applied to each sample's map before it is kept
    keep : ``maps`` of every sample, ``sums`` over blocks of samples, or both

    Raises
    ------
    OutOfRange
        If a value is not one of those above.
    """

    attribution: partial[Any]
    of: str = ""
    combine: Combine = "none"
    samples: Rule = "tested"
    chosen_by: str = ""
    at_most: Annotated[int, Ge(0)] = 0
    postprocess: partial[Any] | None = None
    keep: Keep = "maps"

    def __post_init__(self) -> None:
        for name, kind in (("combine", Combine), ("samples", Rule), ("keep", Keep)):
            if getattr(self, name) not in get_args(kind):
                raise OutOfRange(f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")
        if self.at_most < 0:
            raise OutOfRange(f"`at_most >= 0` must hold, got {self.at_most}")

    @property
    def chooses(self) -> bool:
        """Whether samples are chosen by their predictions."""
        return self.samples != "tested" or self.at_most > 0

    @property
    def summed(self) -> bool:
        """Whether sums over blocks of samples are kept."""
        return "sums" in self.keep

    @property
    def judged_as_sum(self) -> bool:
        """Whether metrics see the sum over samples; where each map is kept, they see those."""
        return self.keep == "sums"

    @property
    def mapped(self) -> bool:
        """Whether each sample's map is kept."""
        return "maps" in self.keep


FIELDS = ("of", "combine", "samples", "chosen_by", "at_most", "keep")
"""Fields that are plain values, in order."""
