"""Target from a mask of the cohort."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from harness.core.errors import RequestError
from harness.core.registry import TARGETS
from harness.core.targets import Target
from harness.core.types import Cohort

__all__ = ["mask"]


@TARGETS.register("mask", source="the label image of the data")
def mask(cohort: Cohort, cache: Path, *, name: str = "target") -> Cohort:
    """Mask, for segmentation.

    Parameters
    ----------
    cohort : cohort with the mask
    cache : folder of prepared arrays; unused
    name : name of the mask; ``target`` is the label of the cohort

    Raises
    ------
    RequestError
        If samples have no such mask. Subjects without labels can be predicted by a trained
        network, but not used for training.
    """
    without = [sample.id for sample in cohort.samples if name not in sample.masks]
    if without:
        raise RequestError(
            f"every sample must have the mask {name} to be predicted, but {len(without)} have none: "
            f"{', '.join(without[:8])}{', …' if len(without) > 8 else ''}"
        )
    return dataclasses.replace(cohort, targets=(*cohort.targets, Target(name, "mask")))
