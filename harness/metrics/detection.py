"""Lesion-wise detection metrics.

A match rule defines which predicted lesions match which true lesions:

========================  =====================================================
``match``                 a true and a predicted lesion match if …
========================  =====================================================
``"one_to_one"``          their centres are near; each lesion is matched at most
                          once, in a matching with as many pairs as possible
``"many_to_one"``         their centres are near; lesions may be matched several
                          times
``"centre_in_mask"``      the predicted centre is a voxel of the true lesion
``"any_overlap"``         they have a common voxel
========================  =====================================================

Two centres are *near* if their distance is at most ``tolerance_mm``, up to rounding.
With ``tolerance_mm=0`` they are near if they are in the same voxel, because
centroids of different masks rarely coincide exactly. A positive tolerance below the
voxel size can therefore be stricter than 0. The last two rules do not use the
tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Ge
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, maximum_bipartite_matching
from scipy.spatial import KDTree

from harness.core.errors import OutOfRange
from harness.core.types import Array, Source
from harness.metrics.metric_inputs import Lesions
from harness.metrics.register import choose, metric

__all__ = [
    "Match",
    "chance_magnitude_accuracy",
    "chance_precision",
    "chance_sensitivity",
    "magnitude_accuracy",
    "precision",
    "predicted_count",
    "sensitivity",
    "true_count",
]

Match = Literal["one_to_one", "many_to_one", "any_overlap", "centre_in_mask"]
SizeBin = tuple[int, int | None]
Tolerance = Annotated[float, Ge(0)]
Draws = Annotated[int, Ge(1)]

NAN = float("nan")
CENTRES = Source(
    authors="Rashid et al.",
    year=2023,
    title="Deep learning based detection of enlarged perivascular spaces on brain MRI",
    doi="10.1016/j.ynirp.2023.100162",
)

_ROUNDING_MM = 1e-6


@dataclass(frozen=True, eq=False)
class _Centres:
    """Centres of predicted lesions, or random points.

    ``positions_mm`` (m, 3), ``voxels`` (m, 3); ``labels`` (X, Y, Z) is ``None`` for random
    points, which represent lesions of one voxel.
    """

    positions_mm: npt.NDArray[np.float64]
    voxels: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32] | None = None

    @property
    def count(self) -> int:
        return len(self.voxels)


_Pairs = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


@metric(
    "sensitivity",
    source=CENTRES,
    direction="higher",
    range=(0, 1),
    empty="no true lesion (of that size): NaN; no predicted lesion: 0",
    chance="chance_sensitivity",
)
def sensitivity(
    target_lesions: Lesions,
    prediction_lesions: Lesions,
    *,
    tolerance_mm: Tolerance = 3.0,
    match: Match = "one_to_one",
    size_bin: SizeBin | None = None,
) -> float:
    """Share of true lesions that are detected.

    Parameters
    ----------
    target_lesions, prediction_lesions : lesions of one subject, on the same grid
    tolerance_mm : largest distance of matching centres in mm; 0 means the same voxel
    match : how lesions are matched: by near centres ``one_to_one`` or ``many_to_one``, by
        ``any_overlap``, or by the predicted ``centre_in_mask`` of the true lesion
    size_bin : smallest and largest number of voxels of the true lesions that are counted;
        the upper bound may be null. Lesions of all sizes are matched before. Among
        one-to-one matchings with equally many pairs, the one with the smallest sum of
        distances determines which lesions are detected

    Returns
    -------
    float
        In [0, 1]; NaN if there are no true lesions (of that size), 0 if nothing is
        predicted.
    """
    found, total = _found(target_lesions, _predicted(prediction_lesions), tolerance_mm, match, size_bin)
    return found / total if total else NAN


@metric(
    "precision",
    source=CENTRES,
    direction="higher",
    range=(0, 1),
    empty="no predicted lesion: NaN; no true lesion: 0",
    chance="chance_precision",
)
def precision(
    target_lesions: Lesions,
    prediction_lesions: Lesions,
    *,
    tolerance_mm: Tolerance = 3.0,
    match: Match = "one_to_one",
) -> float:
    """Share of predicted lesions that are correct.

    Parameters
    ----------
    target_lesions, prediction_lesions : lesions of one subject, on the same grid
    tolerance_mm : largest distance of matching centres in mm; 0 means the same voxel
    match : how lesions are matched: by near centres ``one_to_one`` or ``many_to_one``, by
        ``any_overlap``, or by the predicted ``centre_in_mask`` of the true lesion

    Returns
    -------
    float
        In [0, 1]; NaN if nothing is predicted, 0 if there are no true lesions.
    """
    right = _right(target_lesions, _predicted(prediction_lesions), tolerance_mm, match)
    return right / prediction_lesions.count if prediction_lesions.count else NAN


@metric(
    "magnitude_accuracy",
    source=CENTRES,
    direction="higher",
    range=(0, math.sqrt(2)),
    empty="no true lesion: NaN; no predicted lesion: 0",
    chance="chance_magnitude_accuracy",
)
def magnitude_accuracy(
    target_lesions: Lesions,
    prediction_lesions: Lesions,
    *,
    tolerance_mm: Tolerance = 3.0,
    match: Match = "one_to_one",
) -> float:
    """Magnitude of the vector (sensitivity, precision), √(S² + P²).

    Parameters
    ----------
    target_lesions, prediction_lesions : lesions of one subject, on the same grid
    tolerance_mm : largest distance of matching centres in mm; 0 means the same voxel
    match : how lesions are matched: by near centres ``one_to_one`` or ``many_to_one``, by
        ``any_overlap``, or by the predicted ``centre_in_mask`` of the true lesion

    Returns
    -------
    float
        In [0, √2]; NaN if there are no true lesions. 0 if nothing is predicted, although
        the precision is undefined then, so that such subjects count in the mean.
    """
    centres = _predicted(prediction_lesions)
    found, total = _found(target_lesions, centres, tolerance_mm, match, None)
    return _magnitude(found, _right(target_lesions, centres, tolerance_mm, match), total, centres.count)


@metric("true_count", source="", direction="none", range=(0, float("inf")), empty="0")
def true_count(target_lesions: Lesions) -> float:
    """Number of true lesions.

    Returns
    -------
    float
        0 for an empty mask.
    """
    return float(target_lesions.count)


@metric("predicted_count", source="", direction="none", range=(0, float("inf")), empty="0")
def predicted_count(prediction_lesions: Lesions) -> float:
    """Number of predicted lesions.

    Returns
    -------
    float
        0 for an empty mask.
    """
    return float(prediction_lesions.count)


@metric(
    "chance_sensitivity",
    source="",
    direction="none",
    range=(0, 1),
    empty="no true lesion (of that size): NaN; no predicted lesion: 0",
)
def chance_sensitivity(
    target_lesions: Lesions,
    prediction_lesions: Lesions,
    spacing_mm: tuple[float, float, float],
    rng: np.random.Generator,
    brain: Array | None = None,
    *,
    tolerance_mm: Tolerance = 3.0,
    match: Match = "one_to_one",
    size_bin: SizeBin | None = None,
    draws: Draws = 20,
) -> float:
    """Sensitivity of random centres, as many as are predicted.

    Parameters
    ----------
    target_lesions, prediction_lesions : lesions of one subject, on the same grid
    spacing_mm : (3,) voxel size along X, Y, Z
    rng : random generator
    brain : (X, Y, Z) bool, voxels where centres are placed; the whole volume if absent. If
        it is empty, the result is NaN
    tolerance_mm : largest distance of matching centres in mm; 0 means the same voxel
    match : how lesions are matched: by near centres ``one_to_one`` or ``many_to_one``, by
        ``any_overlap``, or by the random ``centre_in_mask`` of the true lesion
    size_bin : smallest and largest number of voxels of the true lesions that are counted;
        the upper bound may be null
    draws : number of random placements that are averaged

    Returns
    -------
    float
        In [0, 1]; NaN and 0 as for :func:`sensitivity`.

    Notes
    -----
    Centres are distributed uniformly over the brain and independently. They represent
    lesions of one voxel, so that the chance level for ``match="any_overlap"`` is lower
    than for larger lesions.
    """
    scores = []
    for centres in _random_centres(prediction_lesions.count, target_lesions, spacing_mm, rng, brain, draws):
        found, total = _found(target_lesions, centres, tolerance_mm, match, size_bin)
        scores.append(found / total if total else NAN)
    return _mean(scores)


@metric(
    "chance_precision",
    source="",
    direction="none",
    range=(0, 1),
    empty="no predicted lesion: NaN; no true lesion: 0",
)
def chance_precision(
    target_lesions: Lesions,
    prediction_lesions: Lesions,
    spacing_mm: tuple[float, float, float],
    rng: np.random.Generator,
    brain: Array | None = None,
    *,
    tolerance_mm: Tolerance = 3.0,
    match: Match = "one_to_one",
    draws: Draws = 20,
) -> float:
    """Precision of random centres, as many as are predicted.

    Parameters
    ----------
    target_lesions, prediction_lesions : lesions of one subject, on the same grid
    spacing_mm : (3,) voxel size along X, Y, Z
    rng : random generator
    brain : (X, Y, Z) bool, voxels where centres are placed; the whole volume if absent. If
        it is empty, the result is NaN
    tolerance_mm : largest distance of matching centres in mm; 0 means the same voxel
    match : how lesions are matched: by near centres ``one_to_one`` or ``many_to_one``, by
        ``any_overlap``, or by the random ``centre_in_mask`` of the true lesion
    draws : number of random placements that are averaged

    Returns
    -------
    float
        In [0, 1]; NaN and 0 as for :func:`precision`.
    """
    count = prediction_lesions.count
    if not count:
        return NAN
    placements = _random_centres(count, target_lesions, spacing_mm, rng, brain, draws)
    return _mean([_right(target_lesions, centres, tolerance_mm, match) / count for centres in placements])


@metric(
    "chance_magnitude_accuracy",
    source="",
    direction="none",
    range=(0, math.sqrt(2)),
    empty="no true lesion: NaN; no predicted lesion: 0",
)
def chance_magnitude_accuracy(
    target_lesions: Lesions,
    prediction_lesions: Lesions,
    spacing_mm: tuple[float, float, float],
    rng: np.random.Generator,
    brain: Array | None = None,
    *,
    tolerance_mm: Tolerance = 3.0,
    match: Match = "one_to_one",
    draws: Draws = 20,
) -> float:
    """Magnitude accuracy of random centres, as many as are predicted.

    Parameters
    ----------
    target_lesions, prediction_lesions : lesions of one subject, on the same grid
    spacing_mm : (3,) voxel size along X, Y, Z
    rng : random generator
    brain : (X, Y, Z) bool, voxels where centres are placed; the whole volume if absent. If
        it is empty, the result is NaN
    tolerance_mm : largest distance of matching centres in mm; 0 means the same voxel
    match : how lesions are matched: by near centres ``one_to_one`` or ``many_to_one``, by
        ``any_overlap``, or by the random ``centre_in_mask`` of the true lesion
    draws : number of random placements that are averaged

    Returns
    -------
    float
        In [0, √2]; NaN and 0 as for :func:`magnitude_accuracy`.
    """
    scores = []
    for centres in _random_centres(prediction_lesions.count, target_lesions, spacing_mm, rng, brain, draws):
        found, total = _found(target_lesions, centres, tolerance_mm, match, None)
        right = _right(target_lesions, centres, tolerance_mm, match)
        scores.append(_magnitude(found, right, total, centres.count))
    return _mean(scores)


def _mean(scores: list[float]) -> float:
    # There are no scores if there is no voxel to place a centre in.
    return float(np.mean(scores)) if scores else NAN


def _magnitude(found: int, right: int, true: int, predicted: int) -> float:
    if not true:
        return NAN
    return math.hypot(found / true, right / predicted) if predicted else 0.0


def _predicted(lesions: Lesions) -> _Centres:
    return _Centres(lesions.centroids_mm, lesions.centre_voxels, lesions.labels)


def _random_centres(
    count: int,
    truth: Lesions,
    spacing_mm: tuple[float, float, float],
    rng: np.random.Generator,
    brain: Array | None,
    draws: int,
) -> list[_Centres]:
    shape = truth.labels.shape
    allowed = np.arange(truth.labels.size) if brain is None else np.flatnonzero(brain)
    if not allowed.size:
        return []
    # Drawn at once, so that random numbers do not depend on the options.
    chosen = rng.integers(allowed.size, size=(draws, count))
    within = rng.uniform(-0.5, 0.5, size=(draws, count, 3))
    # Flattened because of a bug of numpy 2.4 for long arrays of shape (n, 1) (numpy issue 31980).
    voxels = np.stack(np.unravel_index(allowed[chosen].ravel(), shape), axis=-1).reshape(draws, count, 3)
    positions = (voxels + within) * np.asarray(spacing_mm, dtype=np.float64)
    return [_Centres(*placement) for placement in zip(positions, voxels, strict=True)]


def _found(
    truth: Lesions, centres: _Centres, tolerance_mm: float, match: str, size_bin: SizeBin | None
) -> tuple[int, int]:
    """Number of detected and number of all true lesions."""
    related = _related(truth, centres, tolerance_mm, match)
    if size_bin is None:
        matched = _matching(related, truth.count, centres.count) if match == "one_to_one" else _distinct(related[0])
        return matched, truth.count
    wanted = _in_bin(truth.sizes_voxels, size_bin)
    found = np.zeros(truth.count, dtype=bool)
    found[_nearest_matching(truth, centres, related) if match == "one_to_one" else related[0]] = True
    return int(np.count_nonzero(found & wanted)), int(np.count_nonzero(wanted))


def _right(truth: Lesions, centres: _Centres, tolerance_mm: float, match: str) -> int:
    """Number of correct predicted lesions."""
    related = _related(truth, centres, tolerance_mm, match)
    return _matching(related, truth.count, centres.count) if match == "one_to_one" else _distinct(related[1])


def _related(truth: Lesions, centres: _Centres, tolerance_mm: float, match: str) -> _Pairs:
    """Index pairs (true lesion, predicted lesion) of matching lesions."""
    if not tolerance_mm >= 0:
        raise OutOfRange(f"`tolerance_mm >= 0` must hold, got {tolerance_mm}")
    relation = choose("match", match, _RELATIONS)
    if not truth.count or not centres.count:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    return relation(truth, centres, tolerance_mm)


def _near(truth: Lesions, centres: _Centres, tolerance_mm: float) -> _Pairs:
    if tolerance_mm > 0:
        tree = KDTree(centres.positions_mm)
        hits = tree.query_ball_point(truth.centroids_mm, tolerance_mm + _ROUNDING_MM, return_sorted=True)
    else:
        # Indices are integers: a distance below 0.5 means the same voxel.
        hits = KDTree(centres.voxels).query_ball_point(truth.centre_voxels, 0.5, return_sorted=True)
    lengths = [len(hit) for hit in hits]
    return np.repeat(np.arange(truth.count), lengths), np.concatenate([np.asarray(hit, dtype=np.int64) for hit in hits])


def _centre_in_mask(truth: Lesions, centres: _Centres, tolerance_mm: float) -> _Pairs:
    hit = truth.labels[tuple(centres.voxels.T)].astype(np.int64)
    return hit[hit > 0] - 1, np.flatnonzero(hit)


def _any_overlap(truth: Lesions, centres: _Centres, tolerance_mm: float) -> _Pairs:
    if centres.labels is None:
        return _centre_in_mask(truth, centres, tolerance_mm)
    both = (truth.labels > 0) & (centres.labels > 0)
    pairs = np.unique(np.stack([truth.labels[both], centres.labels[both]]), axis=1).astype(np.int64) - 1
    return pairs[0], pairs[1]


_RELATIONS: Mapping[str, Callable[[Lesions, _Centres, float], _Pairs]] = {
    "any_overlap": _any_overlap,
    "centre_in_mask": _centre_in_mask,
    "many_to_one": _near,
    "one_to_one": _near,
}


def _distinct(indices: npt.NDArray[np.int64]) -> int:
    return len(np.unique(indices))


def _matching(related: _Pairs, true: int, predicted: int) -> int:
    """Number of pairs of a maximum matching."""
    if not related[0].size:
        return 0
    graph = csr_array((np.ones(len(related[0]), dtype=np.int8), related), shape=(true, predicted))
    return int(np.count_nonzero(maximum_bipartite_matching(graph, perm_type="column") >= 0))


def _nearest_matching(truth: Lesions, centres: _Centres, related: _Pairs) -> npt.NDArray[np.int64]:
    """True lesions of the maximum matching with the smallest sum of distances."""
    rows, columns = related
    if not rows.size:
        return rows
    distances = np.linalg.norm(truth.centroids_mm[rows] - centres.positions_mm[columns], axis=1)
    # The matching graph has many small components, which are solved separately.
    nodes = truth.count + centres.count
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, truth.count + columns)), shape=(nodes, nodes))
    component = connected_components(graph, directed=False)[1][rows]
    order = np.argsort(component, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(component[order])) + 1)
    return np.concatenate([_assign(rows[group], columns[group], distances[group]) for group in groups])


def _assign(
    rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], distances: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    if len(rows) == 1:
        return rows
    true, row = np.unique(rows, return_inverse=True)
    predicted, column = np.unique(columns, return_inverse=True)
    # A missing pair costs more than all distances together, so that the number of pairs is maximal.
    missing = 1 + distances.max() * min(len(true), len(predicted))
    cost = np.full((len(true), len(predicted)), missing)
    cost[row, column] = distances
    chosen, partner = linear_sum_assignment(cost)
    return np.asarray(true[chosen[cost[chosen, partner] < missing]])


def _in_bin(sizes_voxels: npt.NDArray[np.int64], size_bin: SizeBin) -> npt.NDArray[np.bool_]:
    low, high = size_bin
    if high is not None and not low <= high:
        raise OutOfRange(f"`low <= high` must hold for size_bin, got low={low}, high={high}")
    return (sizes_voxels >= low) & (sizes_voxels <= (high if high is not None else np.inf))
