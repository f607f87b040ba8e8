"""What a network still recognises if only the explanation is shown, and if it is hidden.

The network was never shown images with hidden parts. Its answer therefore depends on what
hidden pixels are replaced by (the option ``fill``), and means little where the network
already calls an empty image positive (:func:`blank_probability`). The chance level of each
metric is that of the same map with its pixels in random order, which has the same histogram.

All metrics are of the class that the network predicts for the whole image: the
probability p of the positive class, or 1 − p.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Gt, Lt
from scipy.special import expit

from harness.attribution.fills import Fill, filled
from harness.core.types import Array
from harness.metrics.localisation import check_finite
from harness.metrics.metric_inputs import Predict
from harness.metrics.register import metric

__all__ = [
    "blank_probability",
    "deletion_area",
    "explanation_accuracy",
    "insertion_area",
    "kept_accuracy",
    "keeps_label",
    "random_deletion_area",
    "random_explanation_accuracy",
    "random_insertion_area",
    "random_kept_accuracy",
    "share_shown",
    "shown_map",
]

_STUDY = "the multi-scale LIME study (ea)"
_PETSIUK = "Petsiuk, Das & Saenko 2018, arXiv:1806.07421"
Steps = Annotated[int, Gt(0)]
Percent = Annotated[float, Gt(0), Lt(100)]


def shown_map(explanation: Array) -> Array:
    """How much of each voxel is shown: the sum over channels, scaled to [0, 1].

    Parameters
    ----------
    explanation : (C, X, Y, Z) float

    Returns
    -------
    (X, Y, Z) float64
        A constant map shows everything if it is positive, otherwise nothing.
    """
    check_finite(explanation)
    total = explanation.sum(axis=0, dtype=np.float64)
    low, width = float(total.min()), float(np.ptp(total))
    if width > 0:
        found: Array = (total - low) / width
        return found
    return np.full(total.shape, float(low > 0))


@metric(
    "explanation_accuracy",
    source=_STUDY,
    direction="higher",
    range=(0, 1),
    level="probe",
    kinds=("binary",),
    chance="random_explanation_accuracy",
)
def explanation_accuracy(explanation: Array, image: Array, predict_logit: Predict, *, fill: Fill = "black") -> float:
    """Probability of the predicted class if the image is shown in proportion to the map, as published (ea).

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    image : (C, X, Y, Z) float in [0, 1]
    predict_logit : images → logits of the binary target
    fill : what is seen where nothing is shown: ``black``, ``white``, the ``mean`` colour, a
        ``blur`` of the image, or its ``background``

    Returns
    -------
    float
        In [0, 1].
    """
    return _accuracy(_mixed(image, shown_map(explanation), fill), image, predict_logit)


@metric("random_explanation_accuracy", source=_STUDY, direction="none", range=(0, 1), level="probe", kinds=("binary",))
def random_explanation_accuracy(
    explanation: Array, image: Array, predict_logit: Predict, rng: np.random.Generator, *, fill: Fill = "black"
) -> float:
    """:func:`explanation_accuracy` of the same map with its pixels in random order.

    Parameters
    ----------
    explanation, image, predict_logit : see :func:`explanation_accuracy`
    rng : source of the order
    fill : what is seen where nothing is shown

    Returns
    -------
    float
        In [0, 1].
    """
    return _accuracy(_mixed(image, _shuffled(shown_map(explanation), rng), fill), image, predict_logit)


@metric(
    "kept_accuracy",
    source=_STUDY,
    direction="higher",
    range=(0, 1),
    level="probe",
    kinds=("binary",),
    chance="random_kept_accuracy",
)
def kept_accuracy(
    explanation: Array, image: Array, predict_logit: Predict, *, fill: Fill = "black", percent: Percent = 40.0
) -> float:
    """Probability of the predicted class if only the N % highest voxels of the map are shown.

    Parameters
    ----------
    explanation, image, predict_logit : see :func:`explanation_accuracy`
    fill : what is seen elsewhere: ``black``, ``white``, the ``mean`` colour, a ``blur`` of the
        image, or its ``background``
    percent : N

    Returns
    -------
    float
        In [0, 1]. Voxels that tie with the lowest shown value are shown in their order.
    """
    return _accuracy(_mixed(image, _highest(shown_map(explanation), percent / 100)[0], fill), image, predict_logit)


@metric("random_kept_accuracy", source=_STUDY, direction="none", range=(0, 1), level="probe", kinds=("binary",))
def random_kept_accuracy(
    explanation: Array,
    image: Array,
    predict_logit: Predict,
    rng: np.random.Generator,
    *,
    fill: Fill = "black",
    percent: Percent = 40.0,
) -> float:
    """:func:`kept_accuracy` of random voxels.

    Parameters
    ----------
    explanation, image, predict_logit : see :func:`explanation_accuracy`
    rng : source of the order
    fill : what is seen elsewhere
    percent : N

    Returns
    -------
    float
        In [0, 1].
    """
    (shown,) = _highest(_shuffled(shown_map(explanation), rng), percent / 100)
    return _accuracy(_mixed(image, shown, fill), image, predict_logit)


@metric("keeps_label", source=_STUDY, direction="higher", range=(0, 1), level="probe", kinds=("binary",))
def keeps_label(explanation: Array, image: Array, predict_logit: Predict, *, fill: Fill = "black") -> float:
    """Whether the predicted class stays the same if the image is shown in proportion to the map.

    Parameters
    ----------
    explanation, image, predict_logit : see :func:`explanation_accuracy`
    fill : what is seen where nothing is shown: ``black``, ``white``, the ``mean`` colour, a
        ``blur`` of the image, or its ``background``

    Returns
    -------
    float
        1 or 0.
    """
    return float(explanation_accuracy(explanation, image, predict_logit, fill=fill) >= 0.5)


@metric("share_shown", source=_STUDY, direction="none", range=(0, 1), level="explanation")
def share_shown(explanation: Array) -> float:
    """Mean of the map scaled to [0, 1]: how much of the image :func:`explanation_accuracy` shows.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float

    Returns
    -------
    float
        In [0, 1].
    """
    return float(shown_map(explanation).mean())


@metric("blank_probability", source="a control of ea", direction="none", range=(0, 1), level="probe", kinds=("binary",))
def blank_probability(image: Array, predict_logit: Predict, *, fill: Fill = "black") -> float:
    """Probability of the predicted class if nothing of the image is shown.

    Near 1, the network recognises the class in an empty image, and
    :func:`explanation_accuracy` says nothing.

    Parameters
    ----------
    image, predict_logit : see :func:`explanation_accuracy`
    fill : what is seen: ``black``, ``white``, the ``mean`` colour, a ``blur`` of the image, or
        its ``background``

    Returns
    -------
    float
        In [0, 1].
    """
    return _accuracy(_filled(image, fill), image, predict_logit)


@metric(
    "deletion_area",
    source=_PETSIUK,
    direction="lower",
    range=(0, 1),
    level="probe",
    kinds=("binary",),
    chance="random_deletion_area",
)
def deletion_area(
    explanation: Array, image: Array, predict_logit: Predict, *, fill: Fill = "black", steps: Steps = 10
) -> float:
    """Mean probability of the predicted class while the highest voxels of the map are hidden first.

    Parameters
    ----------
    explanation, image, predict_logit : see :func:`explanation_accuracy`
    fill : what hidden voxels are replaced by: ``black``, ``white``, the ``mean`` colour, a
        ``blur`` of the image, or its ``background``
    steps : number of steps between the whole image and nothing

    Returns
    -------
    float
        Area under the curve over the hidden share from 0 to 1, in [0, 1].
    """
    return _area(shown_map(explanation), image, predict_logit, fill, steps, hide=True)


@metric("random_deletion_area", source=_PETSIUK, direction="none", range=(0, 1), level="probe", kinds=("binary",))
def random_deletion_area(
    explanation: Array,
    image: Array,
    predict_logit: Predict,
    rng: np.random.Generator,
    *,
    fill: Fill = "black",
    steps: Steps = 10,
) -> float:
    """:func:`deletion_area` of voxels in random order.

    Parameters
    ----------
    explanation, image, predict_logit : see :func:`explanation_accuracy`
    rng : source of the order
    fill : what hidden voxels are replaced by
    steps : number of steps between the whole image and nothing

    Returns
    -------
    float
        In [0, 1].
    """
    return _area(_shuffled(shown_map(explanation), rng), image, predict_logit, fill, steps, hide=True)


@metric(
    "insertion_area",
    source=_PETSIUK,
    direction="higher",
    range=(0, 1),
    level="probe",
    kinds=("binary",),
    chance="random_insertion_area",
)
def insertion_area(
    explanation: Array, image: Array, predict_logit: Predict, *, fill: Fill = "black", steps: Steps = 10
) -> float:
    """Mean probability of the predicted class while the highest voxels of the map are shown first.

    Parameters
    ----------
    explanation, image, predict_logit : see :func:`explanation_accuracy`
    fill : what is seen elsewhere: ``black``, ``white``, the ``mean`` colour, a ``blur`` of the
        image, or its ``background``
    steps : number of steps between nothing and the whole image

    Returns
    -------
    float
        Area under the curve over the shown share from 0 to 1, in [0, 1].
    """
    return _area(shown_map(explanation), image, predict_logit, fill, steps, hide=False)


@metric("random_insertion_area", source=_PETSIUK, direction="none", range=(0, 1), level="probe", kinds=("binary",))
def random_insertion_area(
    explanation: Array,
    image: Array,
    predict_logit: Predict,
    rng: np.random.Generator,
    *,
    fill: Fill = "black",
    steps: Steps = 10,
) -> float:
    """:func:`insertion_area` of voxels in random order.

    Parameters
    ----------
    explanation, image, predict_logit : see :func:`explanation_accuracy`
    rng : source of the order
    fill : what is seen elsewhere
    steps : number of steps between nothing and the whole image

    Returns
    -------
    float
        In [0, 1].
    """
    return _area(_shuffled(shown_map(explanation), rng), image, predict_logit, fill, steps, hide=False)


def _mixed(image: Array, shown: Array, fill: Fill) -> Array:
    """The image where it is shown, and the fill elsewhere, (C, X, Y, Z)."""
    found: Array = image * shown + _filled(image, fill) * (1 - shown)
    return found


def _filled(image: Array, fill: Fill) -> Array:
    """A fill of an image whose axes of one voxel do not count as space."""
    space = tuple(side for side in image.shape[1:] if side > 1) or (1,)
    return filled(image.reshape(len(image), *space), fill).reshape(image.shape)


def _accuracy(changed: Array, image: Array, predict_logit: Predict) -> float:
    """Probability for a changed image of the class predicted for the whole one."""
    whole, logit = predict_logit(np.stack([image, changed]).astype(np.float32))
    return float(expit(logit if whole >= 0 else -logit))


def _highest(shown: Array, *shares: float) -> Array:
    """1 for each share of the voxels with the highest values, otherwise 0, (n, X, Y, Z); ties in their order."""
    order = np.argsort(-shown, axis=None, kind="stable")
    found = np.zeros((len(shares), shown.size))
    for one, share in zip(found, shares, strict=True):
        one[order[: round(share * shown.size)]] = 1
    return found.reshape(-1, *shown.shape)


def _shuffled(shown: Array, rng: np.random.Generator) -> Array:
    return rng.permutation(shown.ravel()).reshape(shown.shape)


def _area(shown: Array, image: Array, predict_logit: Predict, fill: Fill, steps: int, *, hide: bool) -> float:
    shares = np.linspace(0.0, 1.0, steps + 1)
    masks = _highest(shown, *shares)[:, None]
    masks = 1 - masks if hide else masks
    images = image * masks + _filled(image, fill) * (1 - masks)
    logits = predict_logit(np.concatenate([image[None], images]).astype(np.float32))
    curve = expit(logits[1:] if logits[0] >= 0 else -logits[1:])
    return float(np.trapezoid(curve, shares))
