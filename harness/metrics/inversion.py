"""Voxel inversion: how a classifier's AUC falls if the most relevant voxels are inverted."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Gt, Le
from scipy import stats

from harness.core.types import Array
from harness.metrics.columns import complete
from harness.metrics.metric_inputs import Columns, Predict
from harness.metrics.register import choose, metric

__all__ = [
    "SHARES",
    "inversion_area",
    "inverted_auroc",
    "inverted_logit",
    "inverted_share",
    "masked_mean",
    "quantile_mask",
]

NAN = float("nan")
SOURCE = "the MS disability study, Section II (voxel inversion)"

Of = Literal["positive", "brain"]
Share = Annotated[float, Gt(0), Le(1)]

SHARES = tuple(range(10, 101, 10))
"""Percentages of voxels of the metrics ``inverted_10`` to ``inverted_100``."""
_LOGITS = tuple(f"inverted_{share}" for share in SHARES)
_NEEDS = ("target_label", "predicted_logit", *_LOGITS)


def quantile_mask(explanation: Array, inside: Array, share: float, of: Of = "positive") -> npt.NDArray[np.bool_]:
    """The most relevant voxels of each map.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    inside : (X, Y, Z) bool, voxels that count
    share : share of voxels, in (0, 1]
    of : ``positive``: voxels that reach the (1 − share) quantile of the positive values
        inside; ``brain``: this share of all voxels inside, the highest first

    Returns
    -------
    (C, X, Y, Z) bool array
        Ties at the quantile are all in the mask. Empty where a map has no positive value.
    """
    masks = np.zeros(explanation.shape, bool)
    for mask, values in zip(masks, explanation, strict=True):
        counted = values[inside]
        if of == "positive":
            counted = counted[counted > 0]
        if counted.size:
            threshold = np.quantile(counted, 1 - share)
            mask[...] = inside & (values >= threshold)
            if of == "positive":
                mask &= values > 0
    return masks


def _inside(image: Array, brain: Array | None) -> npt.NDArray[np.bool_]:
    """The brain or, without a brain mask, voxels that are not zero in all channels."""
    found: npt.NDArray[np.bool_] = (image != 0).any(axis=0) if brain is None else np.asarray(brain, bool)
    return found


def _of(of: Of) -> Of:
    return choose("of", of, {"positive": of, "brain": of})


@metric(
    "inverted_logit",
    source=SOURCE,
    direction="none",
    range=(-np.inf, np.inf),
    level="probe",
    empty="the logit of the unchanged image",
    kinds=("binary",),
)
def inverted_logit(
    explanation: Array,
    image: Array,
    predict_output: Predict,
    brain: Array | None = None,
    *,
    share: Share = 0.4,
    of: Of = "positive",
) -> float:
    """Logit of the image in which the most relevant voxels x are replaced by 1 − x.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float; with one channel, its mask is used for all channels of
        the image
    image : (C, X, Y, Z) float in [0, 1]
    predict_output : the network
    brain : (X, Y, Z) bool; without it, voxels that are not zero in all channels
    share : share of voxels that are inverted
    of : of which voxels, see :func:`quantile_mask`

    Returns
    -------
    float
        Any number.
    """
    mask = quantile_mask(explanation, _inside(image, brain), share, _of(of))
    return float(predict_output(np.where(mask, 1 - image, image)[None])[0])


@metric(
    "inverted_share",
    source="the share of voxels of the mask",
    direction="none",
    range=(0, 1),
    level="probe",
    empty="0",
)
def inverted_share(
    explanation: Array, image: Array, brain: Array | None = None, *, share: Share = 0.4, of: Of = "positive"
) -> float:
    """Share of the voxels of the brain that are inverted; methods can be compared only at similar shares.

    Parameters
    ----------
    explanation, image, brain, share, of : see :func:`inverted_logit`

    Returns
    -------
    float
        In [0, 1].
    """
    inside = _inside(image, brain)
    mask = quantile_mask(explanation, inside, share, _of(of))
    return float(mask[:, inside].mean()) if inside.any() else 0.0


@metric(
    "masked_mean",
    source=SOURCE,
    direction="none",
    range=(-np.inf, np.inf),
    level="probe",
    empty="no voxel in the mask: NaN",
)
def masked_mean(
    explanation: Array,
    image: Array,
    brain: Array | None = None,
    *,
    channel: Annotated[int, Ge(0)] = 0,
    share: Share = 0.4,
    of: Of = "positive",
) -> float:
    """Mean of a channel of the image in the most relevant voxels.

    Parameters
    ----------
    explanation, image, brain, share, of : see :func:`inverted_logit`
    channel : index of the channel; NaN if the image does not have it

    Returns
    -------
    float
        In the unit of the image.
    """
    if channel >= len(image):
        return NAN
    masks = quantile_mask(explanation, _inside(image, brain), share, _of(of))
    values = image[channel][masks[channel if len(masks) > 1 else 0]]
    return float(values.mean()) if values.size else NAN


def _auroc(columns: Columns, name: str) -> float:
    labels, logits = complete(columns, ("target_label", name))
    positive = labels == 1
    count, others = int(positive.sum()), int((~positive).sum())
    if not count or not others:
        return NAN
    # Mann and Whitney's statistic; scikit-learn's function takes thirty times as long, and there are many.
    ranks = float(stats.rankdata(logits)[positive].sum())
    return (ranks - count * (count + 1) / 2) / (count * others)


@metric(
    "inverted_auroc",
    source=SOURCE,
    direction="lower",
    range=(0, 1),
    level="pool",
    empty="only one label occurs: NaN",
    needs=_NEEDS,
)
def inverted_auroc(columns: Columns, *, share: Annotated[int, Ge(0), Le(100)] = 40) -> float:
    """Area under the ROC curve after a share of the voxels was inverted.

    It has no floor at 0.5: inverted images can reverse the ranking of patients.

    Parameters
    ----------
    columns : ``target_label``, ``predicted_logit`` and ``inverted_10`` to ``inverted_100``
    share : percentage, a multiple of 10; 0 for the unchanged images

    Returns
    -------
    float
        In [0, 1].
    """
    steps = (0, *SHARES)
    nearest = min(steps, key=lambda one: abs(one - share))
    return _auroc(columns, f"inverted_{nearest}" if nearest else "predicted_logit")


@metric(
    "inversion_area",
    source="the area under the curve of the MS disability study; not published as a number",
    direction="lower",
    range=(0, 1),
    level="pool",
    empty="only one label occurs: NaN",
    needs=_NEEDS,
)
def inversion_area(columns: Columns) -> float:
    """Area under the curve of AUC against the share of inverted voxels, from 0 to 100 %.

    Trapezoidal rule over 0, 10, …, 100 %. Lower values mean that the AUC falls earlier.
    Explanations can be compared with those of random maps (random masks of a similar size).

    Parameters
    ----------
    columns : ``target_label``, ``predicted_logit`` and ``inverted_10`` to ``inverted_100``

    Returns
    -------
    float
        In [0, 1].
    """
    curve = [_auroc(columns, name) for name in ("predicted_logit", *_LOGITS)]
    return float(np.trapezoid(curve, dx=1 / len(SHARES)))
