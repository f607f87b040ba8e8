"""The explain stage: attribution maps of trained networks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from harness.attribution import attribute
from harness.attribution.batches import Numbers, Parts
from harness.core.errors import CellError, RequestError
from harness.core.explanations import Explanation
from harness.core.registry import ATTRIBUTIONS
from harness.core.seeding import seed_of
from harness.core.targets import KINDS, Target
from harness.core.types import NUISANCE, Array, FittedAdapter, NetworkSpec, Prediction, Sample
from harness.pipeline.networks import MARGIN, OWN, Member, Scalar, Scalars, device, scalars_of, tensor_of

__all__ = [
    "BLOCKS",
    "Explained",
    "Shared",
    "blocks_of",
    "check_one_grid",
    "choose_samples",
    "chosen_target",
    "classified_target",
    "explain",
    "explained_inputs",
    "method_of",
    "uses_predictions",
]

BLOCKS = 4
"""Number of blocks of about equally many subjects per fold whose sums are kept, for jackknife intervals."""


@dataclass(frozen=True)
class Explained:
    """Explanation of one sample.

    Parameters
    ----------
    outputs : names of the T explained scalars
    maps : (T, C, …) float32 in the space of the sample's images; higher means more evidence
    numbers : what the method reports beside its maps, T numbers by name
    parts : maps that the method combines, such as those of several scales: name → (T, …)
    """

    outputs: tuple[str, ...]
    maps: Array
    numbers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    parts: Mapping[str, Array] = field(default_factory=dict)


@dataclass
class _Raw:
    """Maps of a method in the space of the inputs, as :func:`_attributed` returns them."""

    maps: list[list[Array]]
    numbers: dict[str, tuple[float, ...]]
    parts: dict[str, Array]

    @property
    def nbytes(self) -> int:
        return sum(one.nbytes for one in (*chain.from_iterable(self.maps), *self.parts.values()))


@dataclass
class Shared:
    """Maps of a method before they are combined, kept for further explanations by the same method.

    Parameters
    ----------
    limit : number of bytes that are kept at most; other maps are computed again
    """

    limit: int = 1 << 28
    raw: dict[tuple[int, str], _Raw] = field(default_factory=dict)
    held: int = 0

    def keep(self, key: tuple[int, str], raw: _Raw) -> None:
        """Keep the maps of a network and sample, if they fit."""
        if self.held + raw.nbytes <= self.limit:
            self.held += raw.nbytes
            self.raw[key] = raw


def method_of(explanation: Explanation) -> str:
    """What determines the maps of an explanation before they are combined, as text."""
    component = explanation.attribution
    options = json.dumps(component.keywords, sort_keys=True, default=str)
    return f"{ATTRIBUTIONS.name_of(component.func)} {options} {explanation.of}"


def explain(
    members: Sequence[Member],
    spec: NetworkSpec,
    sample: Sample,
    explanation: Explanation,
    *,
    seed: int,
    classes: Mapping[str, int] | None = None,
    shared: Shared | None = None,
) -> Explained:
    """Maps of one sample, averaged over networks.

    Parameters
    ----------
    members : one network, or those of an ensemble
    explanation : the explanation
    seed : seed of the random stream, which is named by method and sample; the label of
        the method has no effect
    classes : predicted class of each classes target, whose logit is explained, and the second
        most probable one, as in :class:`harness.pipeline.networks.Scalars`
    shared : maps that explanations by the same method (:func:`method_of`) share

    Raises
    ------
    CellError
        If a map has values that are not finite.
    """
    shared = Shared(limit=0) if shared is None else shared
    found = []
    for place, member in enumerate(members):
        raw = shared.raw.get((place, sample.id))
        if raw is None:
            raw = _raw(member, spec, sample, explanation, seed=seed, classes=classes or {})
            shared.keep((place, sample.id), raw)
        found.append(_of_member(member, spec, sample, explanation, raw))
    maps = found[0].maps
    if len(found) > 1:
        maps = np.asarray(np.mean([one.maps for one in found], axis=0, dtype=np.float64))
    if not np.isfinite(maps).all():
        name = ATTRIBUTIONS.name_of(explanation.attribution.func)
        raise CellError(f"maps must be finite, got NaN or infinite values in the {name} map of {sample.id}")
    numbers = {
        key: tuple(np.mean([one.numbers[key] for one in found], axis=0).tolist())
        for key in found[0].numbers
        if all(key in one.numbers for one in found)
    }
    parts = {name: np.mean([one.parts[name] for one in found], axis=0) for name in found[0].parts}
    return Explained(found[0].outputs, maps.astype(np.float32), numbers, parts)


def _raw(
    member: Member,
    spec: NetworkSpec,
    sample: Sample,
    explanation: Explanation,
    *,
    seed: int,
    classes: Mapping[str, int],
) -> _Raw:
    name = ATTRIBUTIONS.name_of(explanation.attribution.func)
    return _attributed(
        member,
        spec,
        scalars_of(explanation.of, spec, member.network),
        explained_inputs(member, sample),
        explanation,
        name=name,
        stream=seed_of(seed, "attribution", name, sample.id),
        classes=classes,
    )


def _of_member(member: Member, spec: NetworkSpec, sample: Sample, explanation: Explanation, raw: _Raw) -> Explained:
    pairs = explained_inputs(member, sample)
    maps: Sequence[Sequence[Array]] = raw.maps
    numbers, parts = raw.numbers, raw.parts
    names = tuple(scalar.name for scalar in scalars_of(explanation.of, spec, member.network))
    if explanation.of.endswith(OWN):
        maps, names, numbers, parts = [_own_channels(maps)], (explanation.of,), {}, {}
    images = []
    for of_scalar in maps:
        channels = [
            _combined(member.adapter.to_image(one, sample), pairs[place][0], explanation, member, sample)
            for one, place in zip(of_scalar, spec.explained, strict=True)
        ]
        images.append(_over_inputs(channels, explanation))
    if explanation.postprocess is not None:
        images = [explanation.postprocess(one.copy(), sample.spacing_mm) for one in images]  # others may use it
    several = {
        key: np.stack([member.adapter.to_image(one[:, None], sample)[0] for one in of_scalars])
        for key, of_scalars in parts.items()
    }
    return Explained(names, np.stack(images).astype(np.float32), numbers, several)


def _own_channels(maps: Sequence[Sequence[Array]]) -> list[Array]:
    """One map per input whose channels each come from the map of their own scalar, counted over all inputs."""
    merged, first = [], 0
    for place in range(len(maps[0])):
        count = maps[0][place].shape[1]
        merged.append(np.stack([maps[first + channel][place][:, channel] for channel in range(count)], axis=1))
        first += count
    return merged


def explained_inputs(member: Member, sample: Sample) -> tuple[tuple[Array, Array | None], ...]:
    """Each input as the array that is explained, and the array that is added to it, if any."""
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
) -> _Raw:
    """One map (N, C, *space) for each scalar and explained input, and what the method reports beside them.

    Numbers are means over items; maps that the method combines are (T, N, *space).
    """
    targets = list(range(len(scalars)))
    options = explanation.attribution.keywords
    count = len(pairs[0][0])
    fixed_places = [place for place in range(len(pairs)) if place not in spec.explained]
    # Inputs that are not explained are fixed at the item's value, so items are then explained one by one.
    groups = [slice(0, count)] if not fixed_places else [slice(index, index + 1) for index in range(count)]
    found: list[list[list[Array]]] = []
    reported: dict[str, list[Array]] = {}
    joint: dict[str, list[Array]] = {}
    for number, group in enumerate(groups):
        drawn = stream if len(groups) == 1 else seed_of(stream, number)
        tensors = {place: tensor_of(pairs[place][0][group]).to(device()) for place in range(len(pairs))}
        added = [pairs[place][1] for place in spec.explained]
        network = Scalars(
            member.network,
            spec,
            scalars,
            fixed={place: tensors[place] for place in fixed_places},
            added=[None if one is None else tensor_of(one[group]).to(device()) for one in added]
            if any(one is not None for one in added)
            else (),
            classes=classes,
        )
        inputs = tuple(tensors[place] for place in spec.explained)
        numbers: Numbers = {}
        parts: Parts = {}
        if len(inputs) == 1:
            alone = attribute(name, network, inputs[0], targets, seed=drawn, numbers=numbers, parts=parts, **options)
            maps = [[one] for one in alone]
        else:
            maps = attribute(name, network, inputs, targets, seed=drawn, numbers=numbers, parts=parts, **options)
        for key, values in numbers.items():
            reported.setdefault(key, []).append(values)
        for key, values in parts.items():
            joint.setdefault(key, []).append(values)
        found.append([[each.detach().cpu().numpy() for each in of_scalar] for of_scalar in maps])
    joined = [
        [np.concatenate([group[scalar][place] for group in found]) for place in range(len(spec.explained))]
        for scalar in targets
    ]
    means = {key: tuple(np.concatenate(several, axis=1).mean(axis=1).tolist()) for key, several in reported.items()}
    return _Raw(joined, means, {key: np.concatenate(several, axis=1) for key, several in joint.items()})


def _combined(image: Array, items: Array, explanation: Explanation, member: Member, sample: Sample) -> Array:
    if explanation.combine == "none":
        return image
    if explanation.combine == "relevance_times_input":
        image = image * member.adapter.to_image(items, sample)
    total: Array = image.sum(axis=0, keepdims=True)
    if explanation.combine == "within_nuisance":
        total = total * (sample.masks[NUISANCE].load() > 0 if NUISANCE in sample.masks else 0.0)
    return total


def _over_inputs(channels: Sequence[Array], explanation: Explanation) -> Array:
    if explanation.combine == "none" or len(channels) == 1:
        return np.concatenate(channels) if len(channels) > 1 else channels[0]
    total: Array = np.sum(channels, axis=0)
    return total


def chosen_target(explanation: Explanation, spec: NetworkSpec) -> Target | None:
    """The target by whose predictions samples are chosen; ``None`` if all samples are explained.

    Raises
    ------
    RequestError
        If the network has no such target, or several and none is given.
    """
    if not explanation.chooses:
        return None
    known = [target for target in spec.targets if KINDS[target.kind].class_count(target)]
    wanted = [target for target in known if explanation.chosen_by in ("", target.name)]
    if len(wanted) != 1:
        raise RequestError(
            f"samples={explanation.samples} at_most={explanation.at_most} needs one binary or classes target, "
            f"got {', '.join(target.name for target in wanted) or 'none'}; set chosen_by="
        )
    if explanation.samples == "true_positive" and wanted[0].classes:
        raise RequestError(
            f"samples=true_positive needs a binary target, but {wanted[0].name} has classes; set samples=correct"
        )
    return wanted[0]


def classified_target(scalar: str, spec: NetworkSpec) -> Target | None:
    """The target whose predictions are evaluated beside an explained scalar.

    Parameters
    ----------
    scalar : name of the scalar (:class:`harness.pipeline.networks.Scalar`)

    Returns
    -------
    Target or None
        The target to which the scalar belongs; for a scalar that the model exposes, the only
        binary target, or none if there are several.
    """
    own = [target for target in spec.targets if target.name == scalar.partition(":")[0]]
    binary = [target for target in spec.targets if target.kind == "binary"]
    found = own or binary
    return found[0] if len(found) == 1 else None


def uses_predictions(explanation: Explanation, spec: NetworkSpec) -> bool:
    """Whether an explanation needs the predictions, to choose samples or to explain the predicted class."""
    explained = [target for target in spec.targets if explanation.of in ("", target.name, target.name + MARGIN)]
    return chosen_target(explanation, spec) is not None or any(target.classes for target in explained)


def choose_samples(
    explanation: Explanation,
    spec: NetworkSpec,
    samples: Sequence[Sample],
    predictions: Mapping[str, Prediction],
) -> list[Sample]:
    """Choose the samples to explain; their order is kept.

    Parameters
    ----------
    samples : all predicted samples
    predictions : predictions, by sample id
    """
    target = chosen_target(explanation, spec)
    if target is None:
        return list(samples)
    kind = KINDS[target.kind]
    found = [sample for sample in samples if _fits(explanation, target, sample, predictions[sample.id][target.name])]
    if explanation.at_most:
        sure = sorted(found, key=lambda one: (-kind.confidence(predictions[one.id][target.name]), one.id))
        kept = {one.id for one in sure[: explanation.at_most]}
        found = [one for one in found if one.id in kept]
    return found


def _fits(explanation: Explanation, target: Target, sample: Sample, prediction: Mapping[str, Array]) -> bool:
    if explanation.samples == "tested":
        return True
    predicted = KINDS[target.kind].predicted_class(prediction)
    right = predicted == int(sample.targets[target.name])
    return right and (explanation.samples == "correct" or predicted == 1)


def check_one_grid(samples: Sequence[Sample]) -> None:
    """Check that maps of samples can be summed voxel by voxel.

    Raises
    ------
    CellError
        If two samples differ in shape, or in affine by more than a thousandth of a millimetre.
    """
    first = samples[0]
    for other in samples[1:]:
        what = "shapes" if other.shape != first.shape else "affines"
        if what == "shapes" or not _same_affine(first, other):
            raise CellError(
                f"sums of maps need one grid for all samples, but {first.id} and {other.id} have different {what}; "
                "keep and judge maps of samples (keep=maps, judged=maps)"
            )


def _same_affine(one: Sample, other: Sample) -> bool:
    if one.affine is None or other.affine is None:
        return one.affine is other.affine
    return bool(np.allclose(one.affine, other.affine, rtol=0, atol=1e-3))


def blocks_of(subjects: Sequence[str]) -> Iterator[Array]:
    """Indices of the samples in each block of consecutive subjects; blocks have about equally many subjects.

    Parameters
    ----------
    subjects : subject of each sample; all samples of a subject are in the same block
    """
    names = np.array(list(dict.fromkeys(subjects)))
    for block in np.array_split(names, min(BLOCKS, len(names))):
        yield np.flatnonzero(np.isin(subjects, block))
