"""A mask of the cohort as what is predicted."""

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
    """Predict a mask, voxel by voxel.

    Parameters
    ----------
    cohort : whose samples have the mask
    cache : folder of prepared arrays; not needed
    name : of the mask; ``target`` is the label that the cohort was read with

    Raises
    ------
    RequestError
        If some samples have no such mask. Subjects of a folder without labels can be
        predicted by a trained network, not trained on.
    """
    without = [sample.id for sample in cohort.samples if name not in sample.masks]
    if without:
        raise RequestError(
            f"every sample must have the mask {name} to predict it, got {len(without)} without: "
            f"{', '.join(without[:8])}{', …' if len(without) > 8 else ''}"
        )
    return dataclasses.replace(cohort, targets=(*cohort.targets, Target(name, "mask")))
