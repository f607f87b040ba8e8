"""Does an explanation lie where the truth is, and on which channel?

All scores but the last see one map per subject, the channels taken together by
``sign``: ``"signed"`` adds them up, ``"positive"`` adds what speaks for the output,
``"absolute"`` adds the sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Ge
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree
from scipy.special import digamma

from harness.core.errors import OutOfRange, RequestError
from harness.core.types import Array, Source
from harness.metrics.register import choose, metric

__all__ = [
    "ap_of_ceiling",
    "cdc",
    "channel_share",
    "peak_distance_mm",
    "pearson_between",
    "pointing_game",
    "pr_auc_1000",
    "random_ap",
    "rc_rate",
    "relevance_ap",
    "relevance_mass",
    "top_k_intersection",
]

Sign = Literal["signed", "positive", "absolute"]
Size = Literal["positive", "absolute"]
Inside = Literal["volume", "brain"]

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

SHAMIR = Source(
    authors="Shamir et al.",
    year=2019,
    title="Continuous Dice coefficient: a method for evaluating probabilistic segmentations",
    doi="10.1101/306977",
)

# Voxels that are compared with the thresholds at a time: what fits a processor's cache.
_AT_ONCE = 1 << 15
# Peaks up to here are quicker one by one than through a map of all distances.
_FEW_PEAKS = 1 << 12

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
def relevance_ap(
    explanation: Array,
    target: Array,
    brain: Array | None = None,
    *,
    sign: Sign = "signed",
    inside: Inside = "volume",
) -> float:
    """Exact average precision of the map as a ranking of voxels.

    Σ (Rᵢ − Rᵢ₋₁) Pᵢ over all distinct values of the map; voxels of equal value are
    taken together.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    target : (X, Y, Z) bool
    brain : (X, Y, Z) bool, needed if ``inside="brain"``
    sign : how channels are taken together
    inside : rank the voxels of the whole volume or of the brain

    Returns
    -------
    float
        In [0, 1]; NaN if the target is empty or the map is NaN there. An even map
        scores the prevalence, a random one :func:`random_ap`.
    """
    relevance, target = _voxels(explanation, target, brain, sign, inside)
    if not target.any():
        return NAN
    # Recall grows only at the values of target voxels, so only those need counting.
    values, new = np.unique(relevance[target], return_counts=True)
    if np.isnan(values[-1]):
        return NAN
    found = np.cumsum(new[::-1])[::-1]
    # No voxel below all of them counts, and each other one only by which of them it reaches: nothing is sorted.
    reached = np.searchsorted(values, relevance[relevance >= values[0]], side="right")
    chosen = np.cumsum(np.bincount(reached - 1, minlength=len(values))[::-1])[::-1]
    return float(np.sum(new * (found / chosen)) / found[0])


@metric(
    "ap_of_ceiling",
    source="average precision over its geometric ceiling",
    direction="none",
    range=(0, float("inf")),
    level="explanation",
    empty="target empty, or the ceiling is zero: NaN",
)
def ap_of_ceiling(explanation: Array, target: Array, exact: Array, *, sign: Sign = "signed") -> float:
    """Average precision over what the same method reaches on a model that is exact.

    Windows of occlusion smear a perfect answer over their surroundings, more or
    less as they meet the region's edges; so maps of several regions, windows and
    strides can only be compared by their share of that ceiling.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    target : (X, Y, Z) bool
    exact : (X, Y, Z) float
    sign : how channels are taken together

    Returns
    -------
    float
        At least 0; 1 is as good as an exact model. NaN if the target is empty.
    """
    best = relevance_ap(exact[None], target, sign=sign)
    return relevance_ap(explanation, target, sign=sign) / best if best > 0 else NAN


@metric("random_ap", source="expectation over random rankings", direction="none", range=(0, 1), empty="0")
def random_ap(target: Array, brain: Array | None = None, *, inside: Inside = "volume") -> float:
    """Average precision that a random ranking of the voxels scores on average.

    (H_N + (n − 1)(N − H_N) / (N − 1)) / N for n target voxels of N, H_N being the sum
    of 1/i up to N. A little above the prevalence n/N, which is the same for an even map.

    Parameters
    ----------
    target : (X, Y, Z) bool
    brain : (X, Y, Z) bool, needed if ``inside="brain"``
    inside : count the voxels of the whole volume or of the brain

    Returns
    -------
    float
        In [0, 1]; 0 for an empty mask.
    """
    where = _where(inside, brain)
    n, of = int(np.count_nonzero(target[where])), int(target[where].size)
    if n in (0, of):
        return float(n == of)
    harmonic = float(digamma(of + 1) + np.euler_gamma)
    return (harmonic + (n - 1) * (of - harmonic) / (of - 1)) / of


@metric(
    "pr_auc_1000",
    source="1,000 linear thresholds, as in the publications of the lesion-symptom simulation",
    direction="higher",
    range=(0, 1),
    level="explanation",
    empty="target empty: NaN",
    chance="prevalence",
)
def pr_auc_1000(
    explanation: Array,
    target: Array,
    brain: Array | None = None,
    *,
    anchored: bool = True,
    thresholds: Annotated[int, Ge(2)] = 1000,
    sign: Sign = "signed",
    inside: Inside = "volume",
) -> float:
    """Area under the precision-recall curve of equidistant thresholds.

    From the map's maximum down to its minimum; a voxel is chosen from the
    threshold on. The area is that of the trapezoids.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    target : (X, Y, Z) bool
    brain : (X, Y, Z) bool, needed if ``inside="brain"``
    anchored : begin the curve at recall 0 with the precision of the first threshold.
        The published curve begins where the first threshold puts it, and loses
        the area before: a map whose target is one plateau at the maximum scores 0
    thresholds : how many
    sign : how channels are taken together
    inside : the voxels of the whole volume or of the brain

    Returns
    -------
    float
        In [0, 1]; NaN if the target is empty. An even map scores the prevalence
        (not anchored: 0).

    Notes
    -----
    For parity; :func:`relevance_ap` is exact.
    """
    relevance, target = _voxels(explanation, target, brain, sign, inside)
    positives = int(np.count_nonzero(target))
    if not positives:
        return NAN
    levels = np.linspace(relevance.max(), relevance.min(), thresholds)[::-1]
    chosen, found = _at_least(relevance, levels), _at_least(relevance[target], levels)
    recall, precision = found[::-1] / positives, (found / chosen)[::-1]
    if anchored:
        recall, precision = np.r_[0.0, recall], np.r_[precision[0], precision]
    # Trapezoids of a curve within the unit square; sums of a thousand may exceed it by rounding.
    return min(float(np.trapezoid(precision, recall)), 1.0)


@metric(
    "cdc",
    source=SHAMIR,
    direction="higher",
    range=(0, 1),
    level="explanation",
    empty="target empty: NaN; nothing positive: 0",
)
def cdc(explanation: Array, target: Array) -> float:
    """Continuous Dice coefficient of the target and the positive part of the map.

    2 Σ AB / (c Σ A + Σ B) for the target A and the map B, without its negative values
    and divided by its maximum; c is the mean of B where both are positive, 1 if they
    do not meet.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float, channels are added up
    target : (X, Y, Z) bool

    Returns
    -------
    float
        In [0, 1]; NaN if the target is empty, 0 if nothing is positive. If the map
        is positive throughout the target it is 2m / (1 + m), m being the share of
        the map's mass inside (:func:`relevance_mass` with ``sign="positive"``).
    """
    if not target.any():
        return NAN
    mass = np.maximum(_SIGNS["signed"](explanation), 0)
    highest = float(mass.max())
    if highest <= 0:
        return 0.0
    inside = mass[target] / highest
    both = float(inside.sum())
    c = both / np.count_nonzero(inside) if both > 0 else 1.0
    return min(2 * both / (c * inside.size + float(mass.sum()) / highest), 1.0)


@metric(
    "rc_rate",
    source="ROI contribution rate of the lesion-symptom simulation",
    direction="none",
    range=(-float("inf"), float("inf")),
    level="explanation",
    empty="no (or no net) attribution in any region, or no such region: NaN",
)
def rc_rate(
    explanation: Array,
    rois: Array,
    *,
    roi: Annotated[int, Ge(0)] = 0,
    sign: Sign = "positive",
    literal: bool = False,
) -> float:
    """Share that one region has of the attribution inside all regions.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    rois : (R, X, Y, Z) bool
    roi : which region, counted from 0
    sign : of the attribution that counts, channels taken together
    literal : the published score of a region, Σ_ROI A / (Σ A + voxels of the region),
        before the share is taken. It mixes attribution with a count of voxels and is
        the same for regions of equal size

    Returns
    -------
    float
        In [0, 1], and shares of all regions add up to 1; with ``sign="signed"`` any
        number. NaN if there is no attribution in any region, or no such region.

    Notes
    -----
    An exact model of score = Σ wₖ · loadₖ does not give the weights but
    wₖ Lₖ / Σ wⱼ Lⱼ, L being the regions' mean loads (for regions of equal size).
    """
    if roi >= len(rois):
        return NAN
    mass = choose("sign", sign, _SIGNS)(explanation)
    scores = np.array([mass[region].sum() for region in rois])
    if literal:
        scores = scores / (mass.sum() + np.count_nonzero(rois, axis=(1, 2, 3)))
    total = float(scores.sum())
    return float(scores[roi]) / total if total != 0 else NAN


@metric(
    "peak_distance_mm",
    source="distance of the peak from the truth, as in lesion-symptom simulations",
    direction="lower",
    range=(0, float("inf")),
    level="explanation",
    empty="target empty: NaN",
)
def peak_distance_mm(
    explanation: Array, target: Array, spacing_mm: tuple[float, float, float], *, sign: Sign = "signed"
) -> float:
    """Distance from the map's highest voxel to the nearest voxel of the target.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    target : (X, Y, Z) bool
    spacing_mm : (3,) voxel size along X, Y, Z
    sign : how channels are taken together

    Returns
    -------
    float
        In mm, 0 if it lies inside; the mean over voxels that are equally high; NaN
        if the target is empty.
    """
    if not target.any():
        return NAN
    relevance = choose("sign", sign, _SIGNS)(explanation)
    peaks = relevance == relevance.max()
    if np.count_nonzero(peaks) > _FEW_PEAKS:
        return float(distance_transform_edt(~target, sampling=spacing_mm)[peaks].mean())
    nearest, _ = KDTree(np.argwhere(target) * spacing_mm).query(np.argwhere(peaks) * spacing_mm)
    return float(nearest.mean())


def pearson_between(first: Array, second: Array) -> float:
    """Pearson correlation of two maps, voxel by voxel.

    Parameters
    ----------
    first, second : float arrays of one shape

    Returns
    -------
    float
        In [-1, 1]; NaN if one of them is even.

    Raises
    ------
    OutOfRange
        If the shapes differ.
    """
    if first.shape != second.shape:
        raise OutOfRange(f"two maps must have one shape to be compared, got {first.shape} and {second.shape}")
    one, other = (each.astype(np.float64).ravel() - each.mean(dtype=np.float64) for each in (first, second))
    if not np.ptp(first) or not np.ptp(second):
        return NAN
    return float(np.clip(one @ other / np.sqrt((one @ one) * (other @ other)), -1, 1))


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


def _voxels(explanation: Array, target: Array, brain: Array | None, sign: str, inside: str) -> tuple[Array, Array]:
    """The map as one number per voxel, and the target, of the voxels that count."""
    where = _where(inside, brain)
    return choose("sign", sign, _SIGNS)(explanation)[where].ravel(), target[where].ravel()


def _where(inside: str, brain: Array | None) -> Any:
    if not choose("inside", inside, {"brain": True, "volume": False}):
        return ...
    if brain is None:
        raise RequestError("inside=brain needs `brain`, which is absent; give a mask, or inside=volume")
    return brain


def _at_least(values: Array, levels: Array) -> npt.NDArray[np.int64]:
    """(T,): how many values reach each of the equidistant, rising levels, the first of which is their minimum."""
    low, step = levels[0], (levels[-1] - levels[0]) / (len(levels) - 1)
    if not step > 0:
        return np.full(len(levels), values.size)
    counts = np.zeros(len(levels), dtype=np.int64)
    above = np.r_[levels[1:], np.inf]
    for start in range(0, values.size, _AT_ONCE):
        part = values[start : start + _AT_ONCE]
        # The division may miss a level by its rounding, hence one look up and one down.
        of = np.minimum(((part - low) / step).astype(np.intp), len(levels) - 1)
        of += part >= above[of]
        of -= part < levels[of]
        counts += np.bincount(of, minlength=len(levels))
    return np.cumsum(counts[::-1])[::-1]
