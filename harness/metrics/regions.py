"""Restriction of metric inputs to a brain region.

A lesion belongs as a whole to the region that contains its centre, because cutting a
lesion at the border would create two smaller lesions.
"""

from __future__ import annotations

import numpy as np

from harness.core.errors import OutOfRange, RequestError
from harness.core.types import Array
from harness.metrics.metric_inputs import Lesions, MetricInputs

__all__ = ["restrict", "within"]


def restrict(mask: Array, lesions: Lesions, regions: Array, value: int) -> Array:
    """Keep the lesions whose centre lies in one region.

    Parameters
    ----------
    mask : (X, Y, Z) bool
    lesions : lesions of the mask
    regions : (X, Y, Z) integer label image
    value : label of the region

    Returns
    -------
    (X, Y, Z) bool array
        Empty if no lesion has its centre in the region. The centre is the voxel that
        contains the centroid, which may lie outside a curved lesion.

    Raises
    ------
    OutOfRange
        If the shapes differ.
    """
    if not mask.shape == lesions.labels.shape == regions.shape:
        raise OutOfRange(
            f"mask, lesions and regions must have the same shape (X, Y, Z), got mask {mask.shape}, "
            f"lesions {lesions.labels.shape}, regions {regions.shape}; resample the label image"
        )
    keep = np.zeros(lesions.count + 1, dtype=bool)
    keep[1:] = regions[tuple(lesions.centre_voxels.T)] == value
    return mask & keep[lesions.labels]


def within(inputs: MetricInputs, regions: Array, value: int) -> MetricInputs:
    """Restrict the metric inputs of a subject to one region.

    Parameters
    ----------
    inputs : metric inputs with prediction, target and spacing
    regions : (X, Y, Z) integer label image
    value : label of the region

    Returns
    -------
    MetricInputs
        ``prediction`` and ``target`` contain the lesions of the region (:func:`restrict`),
        ``brain`` is the intersection of brain and region. Probability and explanation are
        not restricted.

    Raises
    ------
    RequestError
        If prediction, target or spacing is missing.
    """
    if inputs.prediction_lesions is None or inputs.target_lesions is None:
        raise RequestError("a region needs `prediction`, `target` and `spacing_mm`, of which one is missing; pass all")
    assert inputs.prediction is not None and inputs.target is not None
    inside = regions == value
    return MetricInputs(
        prediction=restrict(inputs.prediction, inputs.prediction_lesions, regions, value),
        target=restrict(inputs.target, inputs.target_lesions, regions, value),
        probability=inputs.probability,
        spacing_mm=inputs.spacing_mm,
        brain=inside if inputs.brain is None else inside & inputs.brain,
        explanation=inputs.explanation,
        channels=inputs.channels,
        rng=inputs.rng,
    )
