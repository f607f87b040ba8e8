"""Explanations: which attribution, of which output, combined how, and for which samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge

from harness.core.errors import OutOfRange

__all__ = ["FIELDS", "Combine", "Explanation", "Judged", "Keep", "Rule"]

Combine = Literal["none", "sum", "relevance_times_input", "within_nuisance"]
Rule = Literal["tested", "correct", "true_positive"]
Keep = Literal["maps", "sums", "maps+sums"]
Judged = Literal["auto", "maps", "sums"]


@dataclass(frozen=True)
class Explanation:
    """One explanation of a trained network.

    Parameters
    ----------
    attribution : attribution method with its options
    of : scalar to explain. ``NAME`` is a target, or a scalar that the model exposes;
        ``NAME:CLASS`` is the logit of one class, ``NAME:margin`` the logit of the predicted
        class minus that of the second most probable one. ``NAME:own`` explains each input channel
        by the exposed scalar ``NAME:CHANNEL``, in one map. If empty, every target is explained
        by its own scalar: the output for a number, the logit for a binary target, the
        logit of the predicted class for classes, and the sum over voxels of the
        softplus of the lesion margin for a mask
    combine : how the maps of the input channels are combined: ``none`` keeps one map
        per channel, ``sum`` adds them, ``relevance_times_input`` multiplies each map
        by its input before adding, ``within_nuisance`` adds them and keeps what lies in the
        nuisance mask of the sample, none of it without one; with the attribution ``constant``,
        this is the mask itself, a control
    samples : samples to explain: ``tested`` takes all test samples, ``correct`` those
        that are classified correctly, ``true_positive`` those that are correctly
        classified as positive
    chosen_by : target whose predictions select the samples; if empty, the only binary
        or classes target
    at_most : maximum number of samples, the most confident first; 0 for no limit
    postprocess : postprocessing applied to the map of each sample before it is stored
    keep : what is stored: the ``maps`` of all samples, ``sums`` over blocks of subjects,
        or both. What is judged is stored in any case
    judged : what metrics of explanations are computed on: the ``maps`` of all samples, or
        the ``sums`` over samples; ``auto`` for the maps if ``keep`` names them, otherwise
        the sums. Metrics that run the network again are computed on maps only

    Raises
    ------
    OutOfRange
        If a field has a value that is not listed above.
    """

    attribution: partial[Any]
    of: str = ""
    combine: Combine = "none"
    samples: Rule = "tested"
    chosen_by: str = ""
    at_most: Annotated[int, Ge(0)] = 0
    postprocess: partial[Any] | None = None
    keep: Keep = "maps"
    judged: Judged = "auto"

    def __post_init__(self) -> None:
        for name, kind in (("combine", Combine), ("samples", Rule), ("keep", Keep), ("judged", Judged)):
            if getattr(self, name) not in get_args(kind):
                raise OutOfRange(f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")
        if self.at_most < 0:
            raise OutOfRange(f"`at_most >= 0` must hold, got {self.at_most}")

    @property
    def chooses(self) -> bool:
        """Whether samples are selected by their predictions."""
        return self.samples != "tested" or self.at_most > 0

    @property
    def judged_as_sum(self) -> bool:
        """Whether metrics are computed on the sum over samples rather than on the map of each sample."""
        return self.judged == "sums" or (self.judged == "auto" and self.keep == "sums")

    @property
    def summed(self) -> bool:
        """Whether sums over blocks of subjects are stored."""
        return "sums" in self.keep or self.judged_as_sum

    @property
    def mapped(self) -> bool:
        """Whether the map of each sample is stored."""
        return "maps" in self.keep or not self.judged_as_sum


FIELDS = ("of", "combine", "samples", "chosen_by", "at_most", "keep", "judged")
"""Names of the fields that hold plain values, in order."""
