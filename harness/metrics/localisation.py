"""Does an explanation lie where the truth is, and on which channel?

All scores but the last see one map per subject, the channels taken together by
``sign``: ``"signed"`` adds them up, ``"positive"`` adds what speaks for the output,
``"absolute"`` adds the sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge
from sklearn.metrics import average_precision_score

from harness.metrics.register import choose, metric
from harness.types import Array, Source

__all__ = ["channel_share", "pointing_game", "relevance_ap", "relevance_mass", "top_k_intersection"]

Sign = Literal["signed", "positive", "absolute"]
Size = Literal["positive", "absolute"]

NAN = float("nan")
ARRAS = Source(
    authors="Arras, Osman & Samek",
    year=2022,
    title="CLEVR-XAI: a benchmark dataset for the ground truth evaluation of neural network explanations",
    doi="10.1016/j.inffus.2021.11.008",
)
ZHANG = Source(
    authors="Zhang et al.",
    year=2018,
    title="Top-down neural attention by excitation backprop",
    doi="10.1007/s11263-017-1059-x",
)
THEINER = Source(
    authors="Theiner, Müller-Budack & Ewerth",
    year=2022,
    title="Interpretable semantic photo geolocation",
)

_SIGNS: Mapping[str, Callable[[Array], Array]] = {
    "absolute": lambda maps: np.abs(maps).sum(axis=0, dtype=np.float64),
    "positive": lambda maps: np.maximum(maps, 0).sum(axis=0, dtype=np.float64),
    "signed": lambda maps: maps.sum(axis=0, dtype=np.float64),
}


@metric(
    "relevance_mass",
    source=ARRAS,
    direction="higher",
    range=(0, 1),
    level="explanation",
    empty="target empty, or no relevance at all: NaN",
    chance="prevalence",
)
def relevance_mass(explanation: Array, target: Array, *, sign: Size = "absolute") -> float:
    """Share of the relevance that lies inside the target.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    target : (X, Y, Z) bool
    sign : count the size of every value, or only the positive ones

    Returns
    -------
    float
        In [0, 1]; NaN if the target is empty or there is no relevance. An even map
        scores the prevalence of the target.
    """
    mass = choose("sign", sign, {name: _SIGNS[name] for name in ("absolute", "positive")})(explanation)
    total = float(mass.sum())
    # The sum of a part, added in another order, may exceed the whole by rounding.
    return min(float(mass[target].sum()) / total, 1.0) if total > 0 and target.any() else NAN


@metric(
    "relevance_ap",
    source="average precision as in scikit-learn",
    direction="higher",
    range=(0, 1),
    level="explanation",
    empty="target empty: NaN",
    chance="prevalence",
)
def relevance_ap(explanation: Array, target: Array, *, sign: Sign = "signed") -> float:
    """Exact average precision of the map as a ranking of voxels.

    Σ (Rᵢ − Rᵢ₋₁) Pᵢ over all distinct values of the map; voxels of equal value are
    taken together.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    target : (X, Y, Z) bool
    sign : how channels are taken together

    Returns
    -------
    float
        In [0, 1]; NaN if the target is empty. An even map scores the prevalence.
    """
    if not target.any():
        return NAN
    relevance = choose("sign", sign, _SIGNS)(explanation)
    return float(average_precision_score(target.ravel(), relevance.ravel()))


@metric(
    "pointing_game",
    source=ZHANG,
    direction="higher",
    range=(0, 1),
    level="explanation",
    empty="target empty: NaN",
    chance="prevalence",
)
def pointing_game(explanation: Array, target: Array, *, sign: Sign = "signed") -> float:
    """Whether the highest voxel of the map lies inside the target.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    target : (X, Y, Z) bool
    sign : how channels are taken together

    Returns
    -------
    float
        1 or 0; the share of hits if several voxels are equally high; NaN if the
        target is empty. An even map scores the prevalence.

    Notes
    -----
    Without the original's margin around the target, which is wider than a lesion.
    """
    relevance = choose("sign", sign, _SIGNS)(explanation)
    return float(target[relevance == relevance.max()].mean()) if target.any() else NAN


@metric(
    "top_k_intersection",
    source=THEINER,
    direction="higher",
    range=(0, 1),
    level="explanation",
    empty="target empty: NaN",
    chance="prevalence",
)
def top_k_intersection(
    explanation: Array, target: Array, *, k: Annotated[int, Ge(1)] | None = None, sign: Sign = "signed"
) -> float:
    """Share of the k highest voxels that lie inside the target.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    target : (X, Y, Z) bool
    k : number of voxels; None takes as many as the target has
    sign : how channels are taken together

    Returns
    -------
    float
        In [0, 1]; NaN if the target is empty. Of the voxels that tie for the last
        places, the share inside the target counts, which is what a random choice
        would score on average; an even map scores the prevalence.
    """
    relevance = choose("sign", sign, _SIGNS)(explanation)
    if not target.any():
        return NAN
    k = min(k or int(np.count_nonzero(target)), target.size)
    threshold = np.partition(relevance, -k, axis=None)[-k]
    above, tied = relevance > threshold, relevance == threshold
    places = k - int(np.count_nonzero(above))
    return float(np.count_nonzero(target[above]) + places * target[tied].mean()) / k


@metric(
    "channel_share",
    source="",
    direction="none",
    range=(0, 1),
    level="explanation",
    empty="no such channel, or no attribution at all: NaN",
)
def channel_share(explanation: Array, channels: tuple[str, ...], *, channel: str = "") -> float:
    """Share of the attribution, by size, that one input channel gets.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    channels : C names
    channel : name of one of them

    Returns
    -------
    float
        In [0, 1], the shares of all channels add up to 1; NaN if the model has no
        such channel or the explanation is zero everywhere.
    """
    sizes = np.abs(explanation).sum(axis=(1, 2, 3), dtype=np.float64)
    if channel not in channels or not sizes.any():
        return NAN
    return float(sizes[channels.index(channel)] / sizes.sum())
