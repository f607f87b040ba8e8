"""Voxel inversion: how well a network predicts if the most relevant voxels are inverted.

The N % most relevant voxels of each sample are replaced by 1 − x, and the network predicts
again. :func:`inverted_logits` and :func:`random_inverted_logits` have one value per N for
each sample; the pooled metrics compute the AUC of these values over all samples.

The masks are those of :func:`quantile_masks`: a map with one channel per channel of the
image has one mask per channel, and a map with one channel has one mask for all. All
channels of the image are inverted together, inside the brain only. Without a brain mask,
the voxels that are not zero in every channel count as brain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Le
from scipy.stats import rankdata

from harness.core.errors import OutOfRange
from harness.core.types import Array
from harness.metrics.localisation import check_finite
from harness.metrics.metric_inputs import Columns, Predict
from harness.metrics.register import choose, metric
from harness.metrics.resampling import resampled
from harness.stats.permutation import resampled_spearman, spearman, spearman_p

__all__ = [
    "PERCENTS",
    "inside_brain",
    "inversion_area",
    "inverted_auroc",
    "inverted_logits",
    "mask_recall",
    "masked_mean_correlation",
    "masked_mean_p",
    "masked_means",
    "quantile_masks",
    "random_inversion_area",
    "random_inverted_auroc",
    "random_inverted_logits",
    "random_mask_recall",
]

Share = Literal["positive", "brain"]
Masks = npt.NDArray[np.bool_]
Percent = Annotated[int, Ge(0), Le(100)]

NAN = float("nan")
PERCENTS = tuple(range(5, 101, 5))
"""Percentages of voxels that are inverted."""
_MEANS_OF = (30, 40, 50)
_SOURCE = "protocol of the MS study on disability (voxel inversion of relevance quantiles)"
_INVERTED = ("inverted_logits", "random_inverted_logits", "target_label")
# Number of changed images that are in memory at once.
_AT_ONCE = 10


def quantile_masks(explanation: Array, brain: Array, percents: Sequence[float], *, of: Share = "positive") -> Masks:
    """Masks of the most relevant voxels of each map.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    brain : (X, Y, Z) bool
    percents : K percentages, in [0, 100]
    of : voxels that are counted: those with ``positive`` relevance inside the brain, or
        all voxels of the ``brain``

    Returns
    -------
    (K, C, X, Y, Z) bool
        Voxels whose relevance is at least the (100 − N)-th percentile, with linear
        interpolation; all voxels that tie with it are included. Empty for N = 0, and for a
        map without positive relevance if ``of="positive"``.
    """
    masks = np.zeros((len(percents), *explanation.shape), bool)
    ranks = 100.0 - np.asarray(percents, np.float64)
    for channel, one in enumerate(explanation):
        counted = choose("of", of, {"positive": brain & (one > 0), "brain": brain})
        if counted.any():
            thresholds = np.percentile(one[counted], ranks)
            for number, threshold in enumerate(thresholds):
                if percents[number] > 0:
                    masks[number, channel] = counted & (one >= threshold)
    return masks


def inside_brain(image: Array, brain: Array | None) -> Masks:
    """Voxels that masks can contain: the brain mask, or without one, the voxels that are not zero in every channel.

    Parameters
    ----------
    image : (C, X, Y, Z) float, as the network reads it
    brain : (X, Y, Z) bool, or ``None``

    Returns
    -------
    (X, Y, Z) bool
    """
    inside: Masks = (image != 0).any(axis=0) if brain is None else brain
    return inside


@metric(
    "inverted_logits",
    source=_SOURCE,
    direction="none",
    range=(-np.inf, np.inf),
    level="probe",
    empty="no voxel to invert: the logit of the image itself; no value for scalars of targets that are not binary",
    kinds=("binary",),
    several=True,
)
def inverted_logits(
    explanation: Array, image: Array, predict_logit: Predict, brain: Array | None = None, *, of: Share = "positive"
) -> dict[str, float]:
    """Logit of the positive class if the N % most relevant voxels are inverted.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float, with one map per channel of the image or one for all
    image : (C, X, Y, Z) float in [0, 1]
    predict_logit : images → logits of the binary target
    brain : (X, Y, Z) bool
    of : voxels that are counted: those with ``positive`` relevance inside the brain, or all
        voxels of the ``brain``

    Returns
    -------
    dict
        Logit for N = 0, 5, …, 100, by N; 0 is the image without inversion.
    """
    masks = quantile_masks(_for_channels(explanation, image), inside_brain(image, brain), PERCENTS, of=of)
    return _logits(image, masks, predict_logit)


@metric(
    "random_inverted_logits",
    source=_SOURCE,
    direction="none",
    range=(-np.inf, np.inf),
    level="probe",
    empty="no voxel to invert: the logit of the image itself; no value for scalars of targets that are not binary",
    kinds=("binary",),
    several=True,
)
def random_inverted_logits(
    explanation: Array,
    image: Array,
    predict_logit: Predict,
    rng: np.random.Generator,
    brain: Array | None = None,
    *,
    of: Share = "positive",
) -> dict[str, float]:
    """Logit of the positive class if random voxels are inverted, as many as for the map.

    Parameters
    ----------
    explanation, image, predict_logit, brain : see :func:`inverted_logits`
    of : voxels that are counted: those with ``positive`` relevance inside the brain, or all
        voxels of the ``brain``
    rng : source of the random voxels, which are inside the brain. Those of a smaller mask
        are part of a larger one

    Returns
    -------
    dict
        Logit for N = 0, 5, …, 100, by N.
    """
    inside = inside_brain(image, brain)
    masks = quantile_masks(_for_channels(explanation, image), inside, PERCENTS, of=of)
    return _logits(image, _random_masks(masks, inside, rng), predict_logit)


@metric(
    "inversion_area",
    source=_SOURCE,
    direction="lower",
    range=(0, 1),
    level="pool",
    empty="only one class: NaN",
    chance="random_inversion_area",
    needs=_INVERTED,
)
def inversion_area(columns: Columns) -> float:
    """Area under the AUC over the inverted percentage, for the masks of the map.

    Parameters
    ----------
    columns : ``inverted_logits``, ``random_inverted_logits`` and ``target_label``

    Returns
    -------
    float
        Mean AUC over N from 5 to 100 % (trapezoidal rule), in [0, 1].
    """
    return _area(columns, "inverted_logits")


@metric(
    "random_inversion_area",
    source=_SOURCE,
    direction="none",
    range=(0, 1),
    level="pool",
    empty="only one class: NaN",
    needs=_INVERTED,
)
def random_inversion_area(columns: Columns) -> float:
    """Area under the AUC over the inverted percentage, for random masks of the same size.

    Parameters
    ----------
    columns : see :func:`inversion_area`

    Returns
    -------
    float
        In [0, 1].
    """
    return _area(columns, "random_inverted_logits")


@metric(
    "random_inverted_auroc",
    source=_SOURCE,
    direction="none",
    range=(0, 1),
    level="pool",
    empty="only one class: NaN",
    needs=_INVERTED,
)
def random_inverted_auroc(columns: Columns, *, percent: Percent = 40) -> float:
    """AUC if random voxels are inverted, as many as the N % most relevant voxels.

    Parameters
    ----------
    columns : see :func:`inversion_area`
    percent : N, a multiple of 5; 0 for the AUC without inversion

    Returns
    -------
    float
        In [0, 1].
    """
    return _auroc(columns, "random_inverted_logits", percent)


@metric(
    "inverted_auroc",
    source=_SOURCE,
    direction="lower",
    range=(0, 1),
    level="pool",
    empty="only one class: NaN",
    chance="random_inverted_auroc",
    needs=_INVERTED,
)
def inverted_auroc(columns: Columns, *, percent: Percent = 40) -> float:
    """AUC if the N % most relevant voxels are inverted; the chance level has random voxels.

    Parameters
    ----------
    columns : see :func:`inversion_area`
    percent : N, a multiple of 5; 0 for the AUC without inversion

    Returns
    -------
    float
        In [0, 1].
    """
    return _auroc(columns, "inverted_logits", percent)


@metric(
    "masked_means",
    source=_SOURCE,
    direction="none",
    range=(-np.inf, np.inf),
    level="probe",
    empty="empty mask: NaN",
    several=True,
)
def masked_means(
    explanation: Array,
    image: Array,
    image_channels: Sequence[str],
    brain: Array | None = None,
    *,
    of: Share = "positive",
) -> dict[str, float]:
    """Mean of each channel of the image inside the mask of its 30, 40 and 50 % most relevant voxels.

    Parameters
    ----------
    explanation, image, brain : see :func:`inverted_logits`
    of : voxels that are counted: those with ``positive`` relevance inside the brain, or all
        voxels of the ``brain``
    image_channels : names of the channels of the image

    Returns
    -------
    dict
        Mean in the unit of the network's input, by ``<channel>:<N>``.
    """
    masks = quantile_masks(_for_channels(explanation, image), inside_brain(image, brain), _MEANS_OF, of=of)
    masks = np.broadcast_to(masks, (len(masks), *image.shape))
    return {
        f"{name}:{percent}": float(image[channel][mask[channel]].mean(dtype=np.float64)) if mask[channel].any() else NAN
        for percent, mask in zip(_MEANS_OF, masks, strict=True)
        for channel, name in enumerate(image_channels)
    }


@metric(
    "mask_recall",
    source=_SOURCE,
    direction="higher",
    range=(0, 1),
    level="explanation",
    empty="no true voxel in the brain: NaN; empty mask: 0",
    chance="random_mask_recall",
)
def mask_recall(
    explanation: Array, target: Array, brain: Array | None = None, *, percent: Percent = 40, of: Share = "brain"
) -> float:
    """Share of the true region that lies in the mask of the N % most relevant voxels.

    Parameters
    ----------
    explanation : (C, X, Y, Z) float
    target : (X, Y, Z) bool
    brain : (X, Y, Z) bool; all voxels without it
    percent : N
    of : voxels that are counted: all voxels of the ``brain``, so that the masks of all maps
        are of one size, or those with ``positive`` relevance inside it

    Returns
    -------
    float
        In [0, 1], mean over the masks of the channels. Its chance level is the share of the
        brain that the masks fill.
    """
    return _filled(explanation, target, target, brain, percent, of)


@metric(
    "random_mask_recall",
    source=_SOURCE,
    direction="none",
    range=(0, 1),
    level="explanation",
    empty="no true voxel in the brain: NaN; empty mask: 0",
)
def random_mask_recall(
    explanation: Array, target: Array, brain: Array | None = None, *, percent: Percent = 40, of: Share = "brain"
) -> float:
    """Share of the brain that lies in the mask of the N % most relevant voxels.

    It is the expected recall of random voxels, as many as those of the mask.

    Parameters
    ----------
    explanation, target, brain : see :func:`mask_recall`
    percent : N
    of : voxels that are counted: all voxels of the ``brain``, or those with ``positive``
        relevance inside it

    Returns
    -------
    float
        In [0, 1].
    """
    return _filled(explanation, np.ones_like(target), target, brain, percent, of)


def _resampled_correlation(columns: Columns, counts: Array, *, channel: str, percent: int) -> Array:
    """Values of :func:`masked_mean_correlation` in bootstrap samples of subjects, (B,)."""
    means, values, subjects = _pairs(columns, channel, percent)
    return resampled_spearman(means, values, counts[:, subjects.astype(np.intp)])


@metric(
    "masked_mean_correlation",
    source="Spearman",
    direction="none",
    range=(-1, 1),
    level="pool",
    empty="fewer than two samples, or no variation: NaN",
    needs=("masked_means", "covariate"),
)
@resampled(_resampled_correlation)
def masked_mean_correlation(
    columns: Columns,
    *,
    channel: str = "",
    percent: Percent = 40,
    interval: Literal["bootstrap", "jackknife"] = "bootstrap",  # read where values are pooled
) -> float:
    """Spearman correlation of the mean of a channel inside the mask with a covariate.

    Parameters
    ----------
    columns : ``masked_means`` and ``covariate``
    channel : name of the channel of the image; may be empty if there is only one. NaN for
        networks that do not read it
    percent : 30, 40 or 50
    interval : how its interval is computed: by a ``bootstrap`` over patients, whose visits are
        drawn together, or by a ``jackknife`` that leaves them out together

    Returns
    -------
    float
        In [−1, 1]. Its sign is that of the relation in the images; orderings compare |ρ|.

    Notes
    -----
    The study resampled no patients. In 2,000 simulated cohorts for each of ρ = 0, .3 and .6, in
    which two of five patients have two visits (standard error of a coverage .005):

    ============  ================  ===============  =================  =============
    interval      coverage, n = 33  mean width       coverage, n = 100  mean width
    ============  ================  ===============  =================  =============
    bootstrap     .951, .943, .949  .68, .64, .48    .945, .941, .949   .40, .36, .27
    jackknife     .964, .954, .949  .72, .67, .51    .946, .946, .949   .40, .37, .28
    ============  ================  ===============  =================  =============

    With 8 patients the bootstrap covers .944 to .961 and the jackknife .959 to .973 (``python
    benchmarks/intervals.py only=correlations``). The bootstrap is narrower at about the stated
    coverage, and therefore the default. Differences between explanations are compared by
    jackknife in any case, and so is a metric whose intervals include trainings.
    """
    means, values, _ = _pairs(columns, channel, percent)
    return spearman(means, values)


@metric(
    "masked_mean_p",
    source="permutation test with subjects as units",
    direction="none",
    range=(0, 1),
    level="pool",
    empty="fewer than two samples, or no variation: NaN",
    needs=("masked_means", "covariate"),
    interval=False,
)
def masked_mean_p(
    columns: Columns, *, channel: str = "", percent: Percent = 40, permutations: Annotated[int, Ge(1)] = 20_000
) -> float:
    """Two-sided permutation p value of :func:`masked_mean_correlation`.

    Parameters
    ----------
    columns : see :func:`masked_mean_correlation`; samples of a subject (column ``subject``)
        are exchanged together
    channel : name of the channel of the image; may be empty if there is only one
    percent : percentage of the mask: 30, 40 or 50
    permutations : number of random permutations

    Returns
    -------
    float
        In (0, 1].
    """
    return spearman_p(*_pairs(columns, channel, percent), permutations=permutations)


def _filled(explanation: Array, region: Array, target: Array, brain: Array | None, percent: int, of: Share) -> float:
    """Share of a region inside the brain that lies in the masks; NaN if the brain has no true voxel."""
    check_finite(explanation)
    inside = np.ones(target.shape, bool) if brain is None else brain
    if not (target & inside).any():
        return NAN
    (masks,) = quantile_masks(explanation, inside, [percent], of=of)
    return float(masks[:, region & inside].mean())


def _for_channels(explanation: Array, image: Array) -> Array:
    """The maps, if they are finite and their number fits the image."""
    check_finite(explanation)
    if len(explanation) not in (1, len(image)):
        raise OutOfRange(
            f"masks need one map, or one for each of the {len(image)} channels of the image, got {len(explanation)} "
            "maps; combine them (combine=sum)"
        )
    return explanation


def _random_masks(masks: Masks, inside: Masks, rng: np.random.Generator) -> Masks:
    """Nested random masks inside the brain with the sizes of other masks, (K, C, X, Y, Z)."""
    places = np.flatnonzero(inside)
    found = np.zeros_like(masks)
    for channel in range(masks.shape[1]):
        order = rng.permutation(places)
        for number, mask in enumerate(masks[:, channel]):
            found[number, channel].flat[order[: int(mask.sum())]] = True
    return found


def _logits(image: Array, masks: Masks, predict_logit: Predict) -> dict[str, float]:
    """Logit of the image and of the image with inverted masks, by percentage."""
    tolerance = 1e-6  # rounding of float32
    if image.min() < -tolerance or image.max() > 1 + tolerance:
        raise OutOfRange(
            f"inversion needs images in [0, 1], got {image.min():.4g} to {image.max():.4g}; choose an adapter that "
            "scales to [0, 1]"
        )
    found = [predict_logit(image[None])]
    for start in range(0, len(masks), _AT_ONCE):
        found.append(predict_logit(np.where(masks[start : start + _AT_ONCE], 1 - image, image)))
    return {str(percent): float(logit) for percent, logit in zip((0, *PERCENTS), np.concatenate(found), strict=True)}


def _aurocs(logits: Array, labels: Array) -> Array:
    """AUC of each column, (K,), of logits (n, K) of labels (n,); NaN if there is only one class."""
    positive = labels > 0
    n, m = int(positive.sum()), int((~positive).sum())
    if n == 0 or m == 0:
        return np.full(logits.shape[1], NAN)
    ranks: Array = rankdata(logits, axis=0)[positive].sum(axis=0)
    found: Array = (ranks - n * (n + 1) / 2) / (n * m)
    return found


def _curve(columns: Columns, name: str, percents: Sequence[int]) -> Array:
    """AUC for each percentage, over the samples with all values."""
    return _aurocs(*_complete(columns, [f"{name}@{percent}" for percent in percents]))


def _complete(columns: Columns, names: Sequence[str]) -> tuple[Array, Array]:
    if absent := [name for name in names if name not in columns]:
        raise OutOfRange(f"there are no values for {', '.join(absent)}; percent must be a multiple of 5")
    table = np.stack([columns[name] for name in (*names, "target_label")], axis=1)
    kept = table[np.isfinite(table).all(axis=1)]
    return kept[:, :-1], kept[:, -1]


def _area(columns: Columns, name: str) -> float:
    curve = _curve(columns, name, PERCENTS)
    return float(np.trapezoid(curve, PERCENTS) / (PERCENTS[-1] - PERCENTS[0]))


def _auroc(columns: Columns, name: str, percent: int) -> float:
    return float(_curve(columns, name, [percent])[0])


def _pairs(columns: Columns, channel: str, percent: int) -> tuple[Array, Array, Array]:
    """Masked means, covariate and subject of the samples with both values."""
    prefix = "masked_means@"
    known = sorted(name.removeprefix(prefix) for name in columns if name.startswith(prefix))
    wanted = [name for name in known if name == f"{channel or name.rpartition(':')[0]}:{percent}"]
    if channel and known and not any(name.rpartition(":")[0] == channel for name in known):
        return np.zeros(0), np.zeros(0), np.zeros(0)  # a network that does not read this channel
    if len(wanted) != 1:
        raise OutOfRange(
            f"channel and percent must name one mask, got channel={channel or 'none'} percent={percent}; known: "
            f"{', '.join(known)}"
        )
    means, values = columns[prefix + wanted[0]], columns["covariate"]
    kept = np.isfinite(means) & np.isfinite(values)
    subjects = columns.get("subject", np.arange(len(means)))
    return means[kept], values[kept], subjects[kept]
