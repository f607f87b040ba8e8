"""LIME: a linear model of the network's answers to images with hidden segments, on one or several scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from harness.attribution.batches import BatchSize, Inputs, Maps, Numbers, Parts, independent_size
from harness.attribution.fills import Fill, filled
from harness.attribution.lime_segments import Labels, Segmentation, segments_of
from harness.core.errors import OutOfRange
from harness.core.registry import ATTRIBUTIONS
from harness.core.seeding import generator
from harness.core.types import Array

__all__ = ["LEVELS", "Fit", "Scheme", "combined", "lime", "linear_fit", "multiscale_lime", "proximity", "scale_weights"]

Scheme = Literal["segments", "inverse", "gaussian"]
Response = Literal["probability", "output"]

_CONSTANT = 1e-6  # answers that differ less than this relative to the largest are equal up to rounding

LEVELS = tuple(side**2 for side in range(4, 21))
"""Wanted numbers of segments of the published study, 4² to 20²."""

_RIBEIRO = "Ribeiro, Singh & Guestrin 2016, doi:10.1145/2939672.2939778"
_MULTISCALE = "the multi-scale LIME study, Algorithm 1 and Eqs. 2 and 3"


@dataclass(frozen=True)
class Fit:
    """A weighted linear model of answers.

    Parameters
    ----------
    coefficients : (s, K) float64, one per segment and output
    r2 : (K,) float64, weighted coefficient of determination; NaN if all answers are equal
    """

    coefficients: Array
    r2: Array


@ATTRIBUTIONS.register("lime", source=_RIBEIRO)
def lime(
    model: nn.Module,
    inputs: Inputs,
    targets: Sequence[int],
    *,
    seed: int,
    numbers: Numbers,
    segmentation: Segmentation = "slic",
    segments: Annotated[int, Gt(0)] = 100,
    compactness: Annotated[float, Gt(0)] = 10.0,
    samples: Annotated[int, Ge(0)] = 0,
    per_segment: Annotated[int, Gt(0)] = 10,
    fill: Fill = "black",
    response: Response = "output",
    kernel_width: Annotated[float, Gt(0)] = 0.25,
    penalty: Annotated[float, Ge(0)] = 0.0,
    repeats: Annotated[int, Gt(0)] = 1,
    batch_size: BatchSize = 64,
) -> Maps:
    """LIME: coefficients of a linear model of the output on shown segments.

    Random halves of the segments are hidden, the network answers each image, and a linear
    model is fitted to the answers, in which images with more shown segments count more.

    Parameters
    ----------
    model, inputs, targets, seed, numbers : see :mod:`harness.attribution`; images in [0, 1].
        Segments are shared by all inputs
    segmentation : ``slic``, ``quickshift``, ``felzenszwalb``, or ``squares`` for a regular grid
    segments : wanted number of segments
    compactness : weight of the distance in space against that in colour, for ``slic``
    samples : number of images with hidden segments; 0 for ``per_segment`` times the number of
        segments
    per_segment : images for each segment, if ``samples`` is 0
    fill : what hidden segments are replaced by: ``black``, ``white``, the ``mean`` colour, a
        ``blur`` of the image, or its ``background`` (the median of its brightest 5 %)
    response : what is modelled: the ``probability`` 1 / (1 + exp(−output)), as published, or
        the ``output`` itself
    kernel_width : w of the weights √exp(−d² / w²), where d is the cosine distance of an image to
        the whole one
    penalty : ridge penalty of the fit; 0 for least squares, 1 as in the package lime
    repeats : number of repetitions, with other random numbers, whose mean is taken
    batch_size : maximum number of images in a forward pass

    Returns
    -------
    list
        Coefficient of its segment for each pixel, the same in all channels; positive where
        showing the segment raises the response. ``numbers`` has ``weighted_r2`` of the fit,
        the number of ``segments`` and, with several repeats, ``repeat_sd``: the standard
        deviation of a pixel over repeats, averaged over pixels.

    Raises
    ------
    OutOfRange
        If inputs differ in space, or the segmentation does not support the image.

    Notes
    -----
    Segments are shown with a probability of one half, as in the published notebook. The
    fit is of least squares with an intercept; if it is not unique, the coefficients of
    smallest norm are taken.
    """
    x, joined = _joined(inputs), _Joined(model, [one.shape[1] for one in inputs])
    shared = _Surrogate(joined, targets, fill, response, kernel_width, penalty, batch_size)
    maps, quality, deviation, counts = [], [], [], []
    for item in range(len(x)):
        image = x[item].detach().cpu().numpy()
        labels = segments_of(image, segmentation, count=segments, compactness=compactness)
        count = int(labels.max()) + 1
        number = samples or per_segment * count
        fits = [
            shared.fit(x[item : item + 1], labels, number, generator(seed, "lime", item, 0, repeat))
            for repeat in range(repeats)
        ]
        several = np.stack([fit.coefficients for fit in fits])
        maps.append(several.mean(axis=0)[labels])
        quality.append(np.mean([fit.r2 for fit in fits], axis=0))
        deviation.append(_deviation(several[:, labels]))
        counts.append(np.full(len(targets), float(count)))
    numbers |= {"weighted_r2": np.stack(quality, axis=1), "segments": np.stack(counts, axis=1)}
    numbers |= {"repeat_sd": np.stack(deviation, axis=1)} if repeats > 1 else {}
    return _maps(maps, inputs)


@ATTRIBUTIONS.register("multiscale_lime", source=_MULTISCALE)
def multiscale_lime(
    model: nn.Module,
    inputs: Inputs,
    targets: Sequence[int],
    *,
    seed: int,
    numbers: Numbers,
    parts: Parts,
    segmentation: Segmentation = "slic",
    levels: tuple[int, ...] = LEVELS,
    scheme: Scheme = "segments",
    notebook_sign: bool = False,
    merge_equal: bool = False,
    compactness: Annotated[float, Gt(0)] = 5.0,
    per_segment: Annotated[int, Gt(0)] = 10,
    fill: Fill = "black",
    response: Response = "output",
    kernel_width: Annotated[float, Gt(0)] = 0.25,
    penalty: Annotated[float, Ge(0)] = 0.0,
    repeats: Annotated[int, Gt(0)] = 1,
    batch_size: BatchSize = 64,
) -> Maps:
    """Multi-scale LIME: LIME maps on several scales, scaled to [0, 1] and averaged with weights.

    Parameters
    ----------
    model, inputs, targets, seed, numbers, parts : see :mod:`harness.attribution`; images in
        [0, 1]. Segments are shared by all inputs
    segmentation : ``slic``, ``quickshift``, ``felzenszwalb``, or ``squares`` for regular grids
    levels : wanted number of segments of each scale
    scheme : weights of the scales by the trapezoidal rule over their numbers of ``segments``
        (scheme 1 of the study, which favours fine scales) or over the ``inverse`` numbers
        (scheme 2, coarse scales); or ``gaussian``
    notebook_sign : for ``inverse``, weights as in the published notebook, in which all but the
        first interval are negative
    merge_equal : average scales with the same number of segments before weighting; otherwise
        an interval between two of them has no width
    compactness : weight of the distance in space against that in colour, for ``slic``
    per_segment : images for each segment of a scale
    fill : what hidden segments are replaced by: ``black``, ``white``, the ``mean`` colour, a
        ``blur`` of the image, or its ``background`` (the median of its brightest 5 %)
    response : what is modelled: the ``probability`` 1 / (1 + exp(−output)), as published, or
        the ``output`` itself
    kernel_width : w of the weights √exp(−d² / w²), where d is the cosine distance of an image to
        the whole one
    penalty : ridge penalty of the fits; 0 for least squares
    repeats : number of repetitions, with other random numbers, whose mean is taken
    batch_size : maximum number of images in a forward pass

    Returns
    -------
    list
        Weighted mean of the scaled maps, in [0, 1] unless ``notebook_sign`` is set, the same in
        all channels. ``numbers`` has ``weighted_r2`` (mean over the fits), ``segments`` (sum
        over the scales), ``flat_levels`` (scales on which all coefficients are equal, whose
        map is 0) and, with several repeats, ``repeat_sd``. ``parts`` has the scaled map of
        each scale.

    Raises
    ------
    OutOfRange
        If inputs differ in space, there is no level, or the segmentation does not support the
        image.

    Notes
    -----
    The study leaves open what happens to scales that SLIC gives the same number of
    segments, or fewer than the scale before. Here, scales are sorted by their number.
    Equations 2 and 3 need a scale 0 that the algorithm does not have; weights are those of
    the L − 1 intervals between L scales, half of each to either side, divided by their
    sum. The printed weights of scheme 2 are all negative, since 1 / s falls; their absolute
    values are used. The abstract mentions Gaussian weights without a definition; here they
    are exp(−(s − m)² / (2 v)) with the mean m and the variance v of the numbers of segments.
    """
    if not levels:
        raise OutOfRange("levels must name one number of segments or more, got none")
    x, joined = _joined(inputs), _Joined(model, [one.shape[1] for one in inputs])
    shared = _Surrogate(joined, targets, fill, response, kernel_width, penalty, batch_size)
    maps, quality, deviation, counts, flat, each = [], [], [], [], [], []
    for item in range(len(x)):
        image = x[item].detach().cpu().numpy()
        scales = [segments_of(image, segmentation, count=one, compactness=compactness) for one in levels]
        found = [int(labels.max()) + 1 for labels in scales]
        runs, totals = [], [np.zeros((*labels.shape, len(targets))) for labels in scales]
        for repeat in range(repeats):
            fits = [
                shared.fit(
                    x[item : item + 1], labels, per_segment * count, generator(seed, "lime", item, level, repeat)
                )
                for level, (labels, count) in enumerate(zip(scales, found, strict=True))
            ]
            scaled = [_scaled(fit.coefficients)[labels] for fit, labels in zip(fits, scales, strict=True)]
            totals = [total + one for total, one in zip(totals, scaled, strict=True)]
            runs.append(combined(scaled, found, scheme, notebook_sign=notebook_sign, merge_equal=merge_equal))
            quality.append(np.mean([fit.r2 for fit in fits], axis=0))
            flat.append(np.sum([np.ptp(fit.coefficients, axis=0) == 0 for fit in fits], axis=0))
        maps.append(np.mean(runs, axis=0))
        each.append(np.stack(totals) / repeats)
        deviation.append(_deviation(np.stack(runs)))
        counts.append(np.full(len(targets), float(sum(found))))
    shape = (len(x), repeats, len(targets))
    numbers |= {
        "weighted_r2": np.reshape(quality, shape).mean(axis=1).T,
        "flat_levels": np.reshape(flat, shape).mean(axis=1).T,
        "segments": np.stack(counts, axis=1),
    }
    numbers |= {"repeat_sd": np.stack(deviation, axis=1)} if repeats > 1 else {}
    if each:  # (N, L, *space, K)
        by_level = np.moveaxis(np.stack(each), (1, -1), (0, 1))
        parts |= {f"{number}: {levels[number - 1]} segments": one for number, one in enumerate(by_level, 1)}
    return _maps(maps, inputs)


def proximity(shown: Array, width: float) -> Array:
    """Weight of each image in the fit: √exp(−d² / width²), where d is the cosine distance to the whole image.

    Parameters
    ----------
    shown : (n, s) bool, True for segments that are shown
    width : width of the kernel

    Returns
    -------
    (n,) float64
        In (0, 1]. The distance of an image without any segment is 1.
    """
    distance = 1 - np.sqrt(shown.mean(axis=1, dtype=np.float64))
    weights: Array = np.sqrt(np.exp(-(distance**2) / width**2))
    return weights


def linear_fit(shown: Array, answers: Array, weights: Array, *, penalty: float = 0.0) -> Fit:
    """Weighted ridge regression with an intercept, which is not penalised, from one Gram matrix.

    Parameters
    ----------
    shown : (n, s) bool or float
    answers : (n, K) float
    weights : (n,) float, above 0
    penalty : ridge penalty; 0 for least squares of smallest norm

    Returns
    -------
    Fit
        Coefficients and weighted R² of K outputs. Answers that are equal up to rounding have
        coefficients of exactly 0, because scaling would blow up the rounding.
    """
    x, y = np.asarray(shown, np.float64), np.asarray(answers, np.float64)
    share = weights / weights.sum()
    mean_x, mean_y = share @ x, share @ y
    # Rows times the root of the weight, so that one matrix product gives the Gram matrix.
    root = np.sqrt(weights)[:, None]
    centred, aims = (x - mean_x) * root, (y - mean_y) * root
    gram = centred.T @ centred
    gram.flat[:: len(gram) + 1] += penalty
    coefficients = np.linalg.lstsq(gram, centred.T @ aims, rcond=None)[0]
    coefficients[:, np.ptp(y, axis=0) <= _CONSTANT * np.abs(y).max(axis=0)] = 0.0
    total = np.where(coefficients.any(axis=0), (aims**2).sum(axis=0), 0.0)
    left = ((aims - centred @ coefficients) ** 2).sum(axis=0)
    return Fit(coefficients, 1 - np.divide(left, total, out=np.full(len(total), np.nan), where=total > 0))


def scale_weights(counts: Sequence[int], scheme: Scheme, *, notebook_sign: bool = False) -> Array:
    """Weights of scales, which sum to one.

    Parameters
    ----------
    counts : numbers of segments of the scales, in any order
    scheme, notebook_sign : see :func:`multiscale_lime`

    Returns
    -------
    (L,) float64
        In the order of ``counts``. Equal weights if all numbers are equal.
    """
    sizes = np.asarray(counts, np.float64)
    if scheme == "gaussian":
        weights = np.exp(-((sizes - sizes.mean()) ** 2) / (2 * sizes.var())) if np.ptp(sizes) else np.ones_like(sizes)
        found: Array = weights / weights.sum()
        return found
    order = np.argsort(sizes, kind="stable")
    nodes = sizes[order] if scheme == "segments" else 1 / sizes[order]
    widths = np.diff(nodes)
    if notebook_sign and scheme == "inverse":
        widths[:1] = np.abs(widths[:1])
    else:
        widths = np.abs(widths)
    halves = np.concatenate([[0.0], widths]) / 2 + np.concatenate([widths, [0.0]]) / 2
    weights = np.empty_like(sizes)
    weights[order] = halves / halves.sum() if halves.sum() else 1 / len(sizes)
    return weights


def combined(
    maps: Sequence[Array],
    counts: Sequence[int],
    scheme: Scheme,
    *,
    notebook_sign: bool = False,
    merge_equal: bool = False,
) -> Array:
    """Weighted mean of the maps of several scales.

    Parameters
    ----------
    maps : maps of one shape, one per scale
    counts : numbers of segments of the scales
    scheme, notebook_sign, merge_equal : see :func:`multiscale_lime`
    """
    if merge_equal:
        known = sorted(set(counts))
        maps = [
            np.mean([one for one, own in zip(maps, counts, strict=True) if own == count], axis=0) for count in known
        ]
        counts = known
    weights = scale_weights(counts, scheme, notebook_sign=notebook_sign)
    total: Array = np.tensordot(weights, np.stack(maps), axes=1)
    return total


@dataclass(frozen=True)
class _Surrogate:
    """Options of the linear model of a network's answers."""

    model: nn.Module
    targets: Sequence[int]
    fill: Fill
    response: Response
    kernel_width: float
    penalty: float
    batch_size: int

    def fit(self, image: Tensor, labels: Labels, count: int, rng: np.random.Generator) -> Fit:
        """Fit the answers to images of which random segments are shown.

        Parameters
        ----------
        image : (1, C, *space)
        labels : (*space) labels of s segments
        count : number of images
        rng : source of the random numbers
        """
        shown = rng.random((count, int(labels.max()) + 1)) < 0.5
        answers = self.answers(image, labels, shown)
        return linear_fit(shown, answers, proximity(shown, self.kernel_width), penalty=self.penalty)

    @torch.no_grad()
    def answers(self, image: Tensor, labels: Labels, shown: Array) -> Array:
        """Responses, (n, K) float64, to the images in which the segments are shown."""
        size = independent_size(self.model, (image,), self.batch_size, copies=len(shown))
        hidden = torch.from_numpy(filled(image[0].cpu().numpy(), self.fill)).to(image)[None]
        places = torch.from_numpy(labels).to(image.device).flatten()
        found = []
        for rows in torch.split(torch.from_numpy(shown).to(image.device), size):
            masks = rows.index_select(1, places).reshape(len(rows), 1, *labels.shape)
            found.append(self.model(torch.where(masks, image, hidden))[:, list(self.targets)])
        answers = torch.cat(found).double()
        return (torch.sigmoid(answers) if self.response == "probability" else answers).cpu().numpy()


class _Joined(nn.Module):
    """A model of the channels of all its inputs in one tensor."""

    def __init__(self, model: nn.Module, widths: Sequence[int]) -> None:
        super().__init__()
        self.model, self.widths = model, list(widths)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs, (N, K)."""
        found: Tensor = self.model(*torch.split(x, self.widths, dim=1))
        return found


def _joined(inputs: Inputs) -> Tensor:
    """All channels of all inputs, (N, C, *space)."""
    spaces = sorted({tuple(x.shape[2:]) for x in inputs})
    if len(spaces) != 1 or not 2 <= len(spaces[0]) <= 3:
        listed = ", ".join(map(str, spaces))
        raise OutOfRange(f"LIME needs inputs of one shape, with two or three axes, got {listed}; choose occlusion")
    return torch.cat(list(inputs), dim=1)


def _scaled(coefficients: Array) -> Array:
    """Coefficients of each output scaled to [0, 1]; 0 if all are equal."""
    low, width = coefficients.min(axis=0), np.ptp(coefficients, axis=0)
    found: Array = np.divide(coefficients - low, width, out=np.zeros_like(coefficients), where=width > 0)
    return found


def _deviation(runs: Array) -> Array:
    """Standard deviation over repeats, averaged over pixels, (K,); NaN for one repeat."""
    if len(runs) < 2:
        return np.full(runs.shape[-1], np.nan)
    found: Array = runs.std(axis=0, ddof=1).reshape(-1, runs.shape[-1]).mean(axis=0)
    return found


def _maps(found: Sequence[Array], inputs: Inputs) -> Maps:
    """Maps of all outputs from those of the items, (*space, K) each; the same in all channels."""
    stacked = torch.from_numpy(np.stack(found))
    return [
        tuple(stacked[..., number][:, None].to(x).expand_as(x).clone() for x in inputs)
        for number in range(stacked.shape[-1])
    ]
