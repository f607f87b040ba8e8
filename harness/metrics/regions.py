"""The same metrics in a part of the brain.

A lesion belongs to the region that holds its centre, and belongs to it whole: a
cut through a lesion would make two small ones of it.
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
    lesions : of that mask
    regions : (X, Y, Z) integer label image
    value : label of the region

    Returns
    -------
    (X, Y, Z) bool array
        Empty if no lesion has its centre in the region. The centre is the voxel
        that holds the centroid, which may lie outside a bent lesion.

    Raises
    ------
    OutOfRange
        If the shapes differ.
    """
    if not mask.shape == lesions.labels.shape == regions.shape:
        raise OutOfRange(
            f"mask, lesions and regions must have one shape (X, Y, Z), got mask {mask.shape}, "
            f"lesions {lesions.labels.shape}, regions {regions.shape}; resample the label image"
        )
    keep = np.zeros(lesions.count + 1, dtype=bool)
    keep[1:] = regions[tuple(lesions.centre_voxels.T)] == value
    return mask & keep[lesions.labels]


def within(evidence: MetricInputs, regions: Array, value: int) -> MetricInputs:
    """A subject's evidence, restricted to one region.

    Parameters
    ----------
    evidence : with prediction, target and spacing
    regions : (X, Y, Z) integer label image
    value : label of the region

    Returns
    -------
    MetricInputs
        Prediction and target hold the lesions of the region (:func:`restrict`),
        ``brain`` is the part of the brain inside the region; probability and
        explanation stay whole.
    """
    if evidence.prediction_lesions is None or evidence.target_lesions is None:
        raise RequestError("a region needs `prediction`, `target` and `spacing_mm`, of which one is absent; give all")
    assert evidence.prediction is not None and evidence.target is not None
    inside = regions == value
    return MetricInputs(
        prediction=restrict(evidence.prediction, evidence.prediction_lesions, regions, value),
        target=restrict(evidence.target, evidence.target_lesions, regions, value),
        probability=evidence.probability,
        spacing_mm=evidence.spacing_mm,
        brain=inside if evidence.brain is None else inside & evidence.brain,
        explanation=evidence.explanation,
        channels=evidence.channels,
        rng=evidence.rng,
    )
