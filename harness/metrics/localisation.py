"""Metrics of explanations: localisation of the truth, and shares of input channels.

Except for :func:`channel_share`, the channels of a map are combined by ``sign``:
``"signed"`` adds the values, ``"positive"`` the positive values, and ``"absolute"`` the
absolute values.

Every metric of a map refuses values that are not finite, wherever they are: a rank, a
maximum or a share of such a map would depend on how the metric is computed.
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
    "check_finite",
    "nuisance_mass",
    "nuisance_share",
    "peak_distance_mm",
    "pearson_between",
    "pointing_game",
    "pr_auc_1000",
    "prevalence",
    "random_ap",
    "rc_rate",
    "relevance_ap",
    "relevance_mass",
    "top_k_intersection",
]

Sign = Literal["signed", "positive", "absolute"]
Size = Literal["positive", "absolute"]
Inside = Literal["volume", "brain", "brain_if_known"]

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

# Number of voxels that are compared with the thresholds at once, so that they fit into the CPU cache.
_AT_ONCE = 1 << 15
# Up to this number of peaks, a search tree is faster than a distance transform.
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
    """Share of the attribution that lies inside the target.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    target : (X, Y, Z) bool
    sign : values that are summed: ``absolute`` values or ``positive`` values

    Returns
    -------
    float
        In [0, 1]; NaN if the target is empty or there is no attribution. The prevalence of
        the target for a constant map.
    """
    mass = _combined(explanation, choose("sign", sign, {"absolute": sign, "positive": sign}))
    total = float(mass.sum())
    # Due to rounding, a partial sum may exceed the total.
    return min(float(mass[target].sum()) / total, 1.0) if total > 0 and target.any() else NAN


@metric(
    "nuisance_mass",
    source=ARRAS,
    direction="none",
    range=(0, 1),
    level="explanation",
    empty="no nuisance mask, or no relevance at all: NaN",
    chance="nuisance_share",
)
def nuisance_mass(explanation: Array, nuisance: Array | None = None, *, sign: Size = "absolute") -> float:
    """Share of the attribution that lies on a known nuisance, which rises if the network uses it as a shortcut.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    nuisance : (X, Y, Z) bool
    sign : values that are summed: ``absolute`` values or ``positive`` values

    Returns
    -------
    float
        In [0, 1]; NaN without a nuisance or if there is no attribution. The share of the
        voxels for a constant map.
    """
    check_finite(explanation)
    return NAN if nuisance is None else relevance_mass(explanation, nuisance, sign=sign)


@metric("nuisance_share", source="the definition", direction="none", range=(0, 1), level="explanation", empty="NaN")
def nuisance_share(explanation: Array, nuisance: Array | None = None) -> float:
    """Share of the voxels that belong to a known nuisance.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float, not used
    nuisance : (X, Y, Z) bool

    Returns
    -------
    float
        In [0, 1]; NaN without a nuisance.
    """
    check_finite(explanation)
    return NAN if nuisance is None else float(nuisance.mean())


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
    """Average precision of the map as a ranking of voxels.

    This is Σ (Rᵢ − Rᵢ₋₁) Pᵢ over all distinct values of the map, without approximation by
    thresholds. Ties are counted together.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    target : (X, Y, Z) bool
    brain : (X, Y, Z) bool, required if ``inside="brain"``
    sign : how channels are combined: sum of ``signed``, ``positive`` or ``absolute`` values
    inside : voxels that are ranked: those of the whole ``volume``, of the ``brain``, or of the
        brain if there is a mask (``brain_if_known``)

    Returns
    -------
    float
        In [0, 1]; NaN if the target is empty. The prevalence for a constant map, and
        :func:`random_ap` for a random one.
    """
    relevance, target = _voxels(explanation, target, brain, sign, inside)
    if not target.any():
        return NAN
    # Recall increases only at the values of target voxels, so only these are counted.
    values, new = np.unique(relevance[target], return_counts=True)
    found = np.cumsum(new[::-1])[::-1]
    # Counting the voxels that reach each of these values avoids sorting all voxels.
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
    """Average precision relative to that of the same method for an exact model.

    Occlusion windows blur the map even of an exact model, depending on their position
    relative to the region. Therefore maps for different regions, windows and strides are
    comparable only relative to this ceiling.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    target : (X, Y, Z) bool
    exact : (X, Y, Z) float
    sign : how channels are combined: sum of ``signed``, ``positive`` or ``absolute`` values

    Returns
    -------
    float
        At least 0; 1 for the map of an exact model; NaN if the target is empty.
    """
    found, best = (relevance_ap(each, target, sign=sign) for each in (explanation, exact[None]))
    return found / best if best > 0 else NAN


@metric("prevalence", source="", direction="none", range=(0, 1), empty="0")
def prevalence(target: Array, brain: Array | None = None, *, inside: Inside = "volume") -> float:
    """Share of true voxels, which is the expected precision of a random ranking, and the AP of a constant map.

    Parameters
    ----------
    target : (X, Y, Z) bool
    brain : (X, Y, Z) bool, required if ``inside="brain"``
    inside : voxels that are counted, see :func:`relevance_ap`

    Returns
    -------
    float
        In [0, 1]; 0 for an empty mask, and if no voxel is counted.
    """
    counted = target[_where(inside, brain)]
    return float(counted.mean()) if counted.size else 0.0


@metric("random_ap", source="expectation over random rankings", direction="none", range=(0, 1), empty="0")
def random_ap(target: Array, brain: Array | None = None, *, inside: Inside = "volume") -> float:
    """Expected average precision of a random ranking of voxels.

    This is (H_N + (n − 1)(N − H_N) / (N − 1)) / N for n of N voxels in the target, where
    H_N is the sum of 1/i up to N. It is slightly higher than the prevalence n/N, the
    average precision of a constant map.

    Parameters
    ----------
    target : (X, Y, Z) bool
    brain : (X, Y, Z) bool, required if ``inside="brain"``
    inside : voxels that are ranked, see :func:`relevance_ap`

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
    """Area under the precision-recall curve over equidistant thresholds.

    Thresholds range from the maximum to the minimum of the map, and voxels that reach a
    threshold are selected. The area is computed by the trapezoidal rule.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    target : (X, Y, Z) bool
    brain : (X, Y, Z) bool, required if ``inside="brain"``
    anchored : start the curve at recall 0 with the precision of the first threshold. The
        published curve starts at the recall of the first threshold, so that the area
        before it is lost: a map that is constant and maximal in the target has the area 0
    thresholds : number of thresholds
    sign : how channels are combined: sum of ``signed``, ``positive`` or ``absolute`` values
    inside : voxels that are used, see :func:`relevance_ap`

    Returns
    -------
    float
        In [0, 1]; NaN if the target is empty. The prevalence for a constant map, or 0 if
        not ``anchored``.

    Notes
    -----
    This metric is for comparison with publications; :func:`relevance_ap` is exact.
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
    # The area may exceed 1 by rounding.
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
    """Continuous Dice coefficient of the target and the positive values of the map.

    This is 2 Σ AB / (c Σ A + Σ B) for the target A and the map B, with negative values set
    to zero and divided by its maximum; c is the mean of B where both are positive, or 1 if
    they do not overlap.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float; channels are summed
    target : (X, Y, Z) bool

    Returns
    -------
    float
        In [0, 1]; NaN if the target is empty, 0 if no value is positive. If the map is
        positive in the whole target, this is 2m / (1 + m), where m is the share of the
        attribution inside (:func:`relevance_mass` with ``sign="positive"``).
    """
    mass = np.maximum(_combined(explanation), 0)
    if not target.any():
        return NAN
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
    """Share of one region in the attribution inside all regions.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    rois : (R, X, Y, Z) bool
    roi : index of the region, from 0
    sign : how channels are combined: sum of ``signed``, ``positive`` or ``absolute`` values
    literal : compute shares of the published score of a region, Σ_ROI A / (Σ A + voxels of
        the region), instead of shares of its attribution. The score adds attribution and
        a number of voxels; for regions of equal size, the shares are the same

    Returns
    -------
    float
        In [0, 1], with a sum of 1 over all regions; any number with ``sign="signed"``. NaN
        if there is no attribution in any region, or no such region.

    Notes
    -----
    For an exact model of score = Σ wₖ · loadₖ, the shares are not the weights but
    wₖ Lₖ / Σ wⱼ Lⱼ, where L are the mean loads (for regions of equal size).
    """
    mass = _combined(explanation, sign)
    if roi >= len(rois):
        return NAN
    scores = np.array([mass[region].sum() for region in rois])
    if literal:
        scores = scores / (mass.sum() + np.count_nonzero(rois, axis=(1, 2, 3)))
    total = float(scores.sum())
    return float(scores[roi]) / total if total != 0 else NAN


@metric(
    "peak_distance_mm",
    source="distance of the peak to the truth, as in lesion-symptom simulations",
    direction="lower",
    range=(0, float("inf")),
    level="explanation",
    empty="target empty: NaN",
)
def peak_distance_mm(
    explanation: Array, target: Array, spacing_mm: tuple[float, float, float], *, sign: Sign = "signed"
) -> float:
    """Distance from the maximum of the map to the nearest voxel of the target.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    target : (X, Y, Z) bool
    spacing_mm : (3,) voxel size along X, Y, Z
    sign : how channels are combined: sum of ``signed``, ``positive`` or ``absolute`` values

    Returns
    -------
    float
        In mm, 0 inside the target; the mean over all maxima if there are several; NaN if
        the target is empty.
    """
    relevance = _combined(explanation, sign)
    if not target.any():
        return NAN
    peaks = relevance == relevance.max()
    if np.count_nonzero(peaks) > _FEW_PEAKS:
        return float(distance_transform_edt(~target, sampling=spacing_mm)[peaks].mean())
    nearest, _ = KDTree(np.argwhere(target) * spacing_mm).query(np.argwhere(peaks) * spacing_mm)
    return float(nearest.mean())


def pearson_between(first: Array, second: Array) -> float:
    """Pearson correlation of two maps over voxels.

    Parameters
    ----------
    first, second : float arrays of equal shape

    Returns
    -------
    float
        In [-1, 1]; NaN if a map is constant.

    Raises
    ------
    OutOfRange
        If the shapes differ.
    """
    if first.shape != second.shape:
        raise OutOfRange(f"two maps must have the same shape to be compared, got {first.shape} and {second.shape}")
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
    """Whether the maximum of the map lies inside the target.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    target : (X, Y, Z) bool
    sign : how channels are combined: sum of ``signed``, ``positive`` or ``absolute`` values

    Returns
    -------
    float
        1 or 0; the share of hits if there are several maxima; NaN if the target is empty.
        The prevalence for a constant map.

    Notes
    -----
    The margin around the target in the original method is not used, because it is wider
    than a lesion.
    """
    relevance = _combined(explanation, sign)
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
    """Share of the k voxels with the highest values that lie inside the target.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    target : (X, Y, Z) bool
    k : number of voxels; null takes the number of voxels of the target
    sign : how channels are combined: sum of ``signed``, ``positive`` or ``absolute`` values

    Returns
    -------
    float
        In [0, 1]; NaN if the target is empty. Ties at the lowest of the k values are
        resolved by the expectation of a random choice, so that a constant map has the
        prevalence.
    """
    relevance = _combined(explanation, sign)
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
    """Share of one input channel in the absolute attribution.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    channels : names of the C channels
    channel : name of the channel

    Returns
    -------
    float
        In [0, 1], with a sum of 1 over all channels; NaN if there is no such channel or
        the explanation is zero everywhere.
    """
    check_finite(explanation)
    sizes = np.abs(explanation).sum(axis=(1, 2, 3), dtype=np.float64)
    if channel not in channels or not sizes.any():
        return NAN
    return float(sizes[channels.index(channel)] / sizes.sum())


def _combined(explanation: Array, sign: str = "signed") -> Array:
    """Map over all channels, (X, Y, Z) float64, of a map that must be finite."""
    check_finite(explanation)
    return choose("sign", sign, _SIGNS)(explanation)


def check_finite(explanation: Array) -> None:
    """Refuse a map with values that are not finite.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float

    Raises
    ------
    OutOfRange
        If a value is NaN or infinite.
    """
    bad = int(explanation.size - np.isfinite(explanation).sum())
    if bad:
        raise OutOfRange(
            f"`explanation` must be finite everywhere, got {bad} NaN or infinite of {explanation.size} values; set "
            "voxels without a value to zero"
        )


def _voxels(explanation: Array, target: Array, brain: Array | None, sign: str, inside: str) -> tuple[Array, Array]:
    """Values of the map and of the target, for the voxels that are used."""
    where = _where(inside, brain)
    return _combined(explanation, sign)[where].ravel(), target[where].ravel()


def _where(inside: str, brain: Array | None) -> Any:
    needs_mask = choose("inside", inside, {"volume": None, "brain": True, "brain_if_known": False})
    if needs_mask is None or (brain is None and not needs_mask):
        return ...
    if brain is None:
        raise RequestError("inside=brain needs `brain`, which is missing; pass a mask, or set inside=volume")
    return brain


def _at_least(values: Array, levels: Array) -> npt.NDArray[np.int64]:
    """Number of values that reach each of T equidistant, increasing levels, the first of which is their minimum."""
    low, step = levels[0], (levels[-1] - levels[0]) / (len(levels) - 1)
    if not step > 0:
        return np.full(len(levels), values.size)
    counts = np.zeros(len(levels), dtype=np.int64)
    above = np.r_[levels[1:], np.inf]
    for start in range(0, values.size, _AT_ONCE):
        chunk = values[start : start + _AT_ONCE]
        # Due to rounding, the division may be off by one level in either direction.
        of = np.minimum(((chunk - low) / step).astype(np.intp), len(levels) - 1)
        of += chunk >= above[of]
        of -= chunk < levels[of]
        counts += np.bincount(of, minlength=len(levels))
    return np.cumsum(counts[::-1])[::-1]
