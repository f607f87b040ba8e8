"""The explain stage: maps of trained networks for their samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from harness.attribution import attribute
from harness.core.errors import CellError, RequestError
from harness.core.explanations import Explanation
from harness.core.registry import ATTRIBUTIONS
from harness.core.seeding import seed_of
from harness.core.targets import Target
from harness.core.types import Array, FittedAdapter, NetworkSpec, Prediction, Sample
from harness.pipeline.networks import Member, Scalar, Scalars, device, scalars_of
from harness.pipeline.predict import is_correct, predicted_class

__all__ = ["BLOCKS", "Explained", "blocks_of", "choose_samples", "chosen_target", "explain", "explained_inputs"]

BLOCKS = 4
"""Sums that are kept of each fold, of about as many samples each; leaving one out gives intervals."""


@dataclass(frozen=True)
class Explained:
    """What an explanation gives of one sample.

    Parameters
    ----------
    outputs : names of the T explained scalars
    maps : (T, C, …) float32 in the space of the sample's images; more means more evidence
    """

    outputs: tuple[str, ...]
    maps: Array


def explain(
    members: Sequence[Member],
    spec: NetworkSpec,
    sample: Sample,
    explanation: Explanation,
    *,
    seed: int,
    classes: Mapping[str, int] | None = None,
) -> Explained:
    """Maps of one sample, averaged over networks.

    Parameters
    ----------
    members : one network, or those of an ensemble
    explanation : which attribution, of what, combined how
    seed : of the stream of random numbers, which the method and the sample
        name; under which label a task knows the method changes nothing
    classes : classes target → predicted class, of which the logit is explained

    Raises
    ------
    CellError
        If a map holds values that are not finite.
    """
    found = [_of_member(member, spec, sample, explanation, seed=seed, classes=classes or {}) for member in members]
    maps = found[0].maps
    if len(found) > 1:
        maps = np.asarray(np.mean([one.maps for one in found], axis=0, dtype=np.float64))
    if not np.isfinite(maps).all():
        name = ATTRIBUTIONS.name_of(explanation.attribution.func)
        raise CellError(f"the {name} map of {sample.id} holds values that are not finite")
    return Explained(found[0].outputs, maps.astype(np.float32))


def _of_member(
    member: Member,
    spec: NetworkSpec,
    sample: Sample,
    explanation: Explanation,
    *,
    seed: int,
    classes: Mapping[str, int],
) -> Explained:
    scalars = scalars_of(explanation.of, spec, member.network)
    name = ATTRIBUTIONS.name_of(explanation.attribution.func)
    stream = seed_of(seed, "attribution", name, sample.id)
    pairs = explained_inputs(member, sample)
    maps = _attributed(member, spec, scalars, pairs, explanation, name=name, stream=stream, classes=classes)
    images = []
    for of_scalar in maps:
        channels = [
            _combined(member.adapter.to_image(one, sample), pairs[place][0], explanation, member, sample)
            for one, place in zip(of_scalar, spec.explained, strict=True)
        ]
        images.append(_over_inputs(channels, explanation))
    if explanation.postprocess is not None:
        images = [explanation.postprocess(one, sample.spacing_mm) for one in images]
    return Explained(tuple(scalar.name for scalar in scalars), np.stack(images).astype(np.float32))


def explained_inputs(member: Member, sample: Sample) -> tuple[tuple[Array, Array | None], ...]:
    """Each input as what is explained of it and what is added to it, if anything."""
    if isinstance(member.adapter, FittedAdapter):
        return member.adapter.explained(sample)
    return tuple((one, None) for one in member.adapter.inputs(sample))


def _attributed(
    member: Member,
    spec: NetworkSpec,
    scalars: Sequence[Scalar],
    pairs: Sequence[tuple[Array, Array | None]],
    explanation: Explanation,
    *,
    name: str,
    stream: int,
    classes: Mapping[str, int],
) -> list[list[Array]]:
    """One map (N, C, *space) for each scalar and explained input."""
    targets = list(range(len(scalars)))
    options = explanation.attribution.keywords
    count = len(pairs[0][0])
    fixed_places = [place for place in range(len(pairs)) if place not in spec.explained]
    # What is not explained is held at an item's own value, so then items are explained one by one.
    groups = [slice(0, count)] if not fixed_places else [slice(index, index + 1) for index in range(count)]
    found: list[list[list[Array]]] = []
    for number, group in enumerate(groups):
        drawn = stream if len(groups) == 1 else seed_of(stream, number)
        tensors = {place: torch.from_numpy(pairs[place][0][group]).to(device()) for place in range(len(pairs))}
        added = [pairs[place][1] for place in spec.explained]
        network = Scalars(
            member.network,
            spec,
            scalars,
            fixed={place: tensors[place] for place in fixed_places},
            added=[None if one is None else torch.from_numpy(one[group]).to(device()) for one in added]
            if any(one is not None for one in added)
            else (),
            classes=classes,
        )
        inputs = tuple(tensors[place] for place in spec.explained)
        if len(inputs) == 1:
            maps = [[one] for one in attribute(name, network, inputs[0], targets, seed=drawn, **options)]
        else:
            maps = attribute(name, network, inputs, targets, seed=drawn, **options)
        found.append([[each.detach().cpu().numpy() for each in of_scalar] for of_scalar in maps])
    return [
        [np.concatenate([group[scalar][place] for group in found]) for place in range(len(spec.explained))]
        for scalar in targets
    ]


def _combined(image: Array, items: Array, explanation: Explanation, member: Member, sample: Sample) -> Array:
    if explanation.combine == "none":
        return image
    if explanation.combine == "relevance_times_input":
        image = image * member.adapter.to_image(items, sample)
    total: Array = image.sum(axis=0, keepdims=True)
    return total


def _over_inputs(channels: Sequence[Array], explanation: Explanation) -> Array:
    if explanation.combine == "none" or len(channels) == 1:
        return np.concatenate(channels) if len(channels) > 1 else channels[0]
    total: Array = np.sum(channels, axis=0)
    return total


def chosen_target(explanation: Explanation, spec: NetworkSpec) -> Target | None:
    """The classification by which samples are chosen; ``None`` where all are explained.

    Raises
    ------
    RequestError
        If the network has no such target, or several and none is named.
    """
    if not explanation.chooses:
        return None
    known = [target for target in spec.targets if target.kind in ("binary", "classes")]
    wanted = [target for target in known if explanation.chosen_by in ("", target.name)]
    if len(wanted) != 1:
        raise RequestError(
            f"samples={explanation.samples} at_most={explanation.at_most} chooses by one binary or classes target, "
            f"got {', '.join(target.name for target in wanted) or 'none'}; name it: chosen_by="
        )
    if explanation.samples == "true_positive" and wanted[0].kind != "binary":
        raise RequestError(
            f"samples=true_positive needs a binary target, and {wanted[0].name} has classes; take correct"
        )
    return wanted[0]


def choose_samples(
    explanation: Explanation,
    spec: NetworkSpec,
    samples: Sequence[Sample],
    predictions: Mapping[str, Prediction],
) -> list[Sample]:
    """The samples that are explained, in their own order.

    Parameters
    ----------
    samples : all that were predicted
    predictions : sample id → prediction
    """
    target = chosen_target(explanation, spec)
    if target is None:
        return list(samples)
    found = [sample for sample in samples if _fits(explanation, target, sample, predictions[sample.id][target.name])]
    if explanation.at_most:
        sure = sorted(found, key=lambda one: (-_confidence(target, predictions[one.id][target.name]), one.id))
        kept = {one.id for one in sure[: explanation.at_most]}
        found = [one for one in found if one.id in kept]
    return found


def _fits(explanation: Explanation, target: Target, sample: Sample, prediction: Mapping[str, Array]) -> bool:
    if explanation.samples == "tested":
        return True
    right = is_correct(target, prediction, sample.targets[target.name])
    return right and (explanation.samples == "correct" or predicted_class(target, prediction) == 1)


def _confidence(target: Target, prediction: Mapping[str, Array]) -> float:
    """Probability of the predicted class."""
    if target.kind == "binary":
        p = float(prediction["probability"])
        return max(p, 1 - p)
    return float(np.max(prediction["probabilities"]))


def blocks_of(count: int) -> Iterator[Array]:
    """Numbers of the samples of each block, of about as many consecutive samples each."""
    yield from np.array_split(np.arange(count), min(BLOCKS, count))
