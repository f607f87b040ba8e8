"""Explanations of trained networks: scalars, inputs, combination of maps, and choice of samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from harness.attribution.controls import random_map
from harness.attribution.gradients import input_x_gradient, saliency
from harness.attribution.postprocessing import rectified
from harness.core.errors import CellError, RequestError
from harness.core.explanations import Explanation
from harness.core.targets import Target
from harness.core.task import Task
from harness.core.types import Array, Cohort, Input, NetworkSpec, Prediction, Reads, Sample
from harness.pipeline.explain import (
    Shared,
    blocks_of,
    choose_samples,
    chosen_target,
    explain,
    explained_inputs,
    method_of,
)
from harness.pipeline.networks import Member, build_network
from harness.testing import ArrayImage

AGE, SMILE = Target("age", "number"), Target("smile", "binary")
HAIR = Target("hair", "classes", ("black", "blond", "red"))
GRADIENT = partial(input_x_gradient)
SPEC = NetworkSpec(
    (
        Input("colour", ("red", "green"), (4, 5)),
        Input("height", ("height",), explained=False),
        Input("depth", ("depth",), (4, 5)),
    ),
    (AGE, HAIR),
)


def negated(maps: Array, spacing_mm: object) -> Array:
    """Change the maps in place."""
    maps *= -1
    return maps


@dataclass(frozen=True)
class TwoImages:
    """An adapter with two pictures and a scalar per sample, for one or several random items."""

    items: int = 1
    added: float = 0.0

    def inputs(self, sample: Sample) -> tuple[Array, ...]:
        rng = np.random.default_rng(3)
        colour, depth = rng.random((self.items, 2, 4, 5)), rng.random((self.items, 1, 4, 5))
        height = np.arange(1, self.items + 1)[:, None]
        return tuple(one.astype(np.float32) for one in (colour, height, depth))

    def to_image(self, maps: Array, sample: Sample) -> Array:
        """Maps of all items, side by side."""
        return np.concatenate(list(maps), axis=-1)


@dataclass(frozen=True)
class Shifted(TwoImages):
    """A fitted adapter that adds an unexplained constant to the first picture."""

    def fit(self, training: Any, targets: Any) -> Any: ...

    @property
    def state(self) -> Mapping[str, Array]:
        return {}

    def load_state(self, state: Any) -> Any: ...

    reads = Reads()

    def spec(self, cohort: Cohort) -> NetworkSpec:
        return SPEC

    def targets(self, sample: Sample, targets: Any) -> dict[str, Array]:
        return {}

    def to_prediction(self, outputs: Any, sample: Sample, targets: Any) -> Prediction:
        return {}

    def explained(self, sample: Sample) -> tuple[tuple[Array, Array | None], ...]:
        colour, height, depth = self.inputs(sample)
        return (colour, np.full_like(colour, 2.0)), (height, None), (depth, None)


class Products(torch.nn.Module):
    """A linear network: sums of weight × picture, times the height."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.colour = torch.nn.Parameter(torch.randn(4, 2, 4, 5, generator=draw))
        self.depth = torch.nn.Parameter(torch.randn(4, 1, 4, 5, generator=draw))

    def forward(self, colour: torch.Tensor, height: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        scores = torch.einsum("ncxy,kcxy->nk", colour, self.colour) + torch.einsum("ncxy,kcxy->nk", depth, self.depth)
        return scores * height


class Squares(Products):
    """A network that applies ``Products`` to squares, so that gradients depend on the input."""

    def forward(self, colour: torch.Tensor, height: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        return super().forward(colour**2, height, depth**2)


SAMPLE = Sample("one", "one", {}, {}, {})


def made(explanation: Explanation, adapter: Any = TwoImages(), network: Any = None, **more: Any) -> Any:
    """An explanation of the linear network."""
    member = Member((network or Products()).eval(), adapter)
    return explain([member], SPEC, SAMPLE, explanation, seed=0, classes={"hair": 1}, **more)


def weights(number: int) -> Array:
    """Weights of one output for all channels, (3, 4, 5)."""
    network = Products()
    return torch.cat([network.colour[number], network.depth[number]]).detach().numpy()


def pictures(adapter: Any = TwoImages()) -> Array:
    """All explained channels of the items, (N, 3, 4, 5)."""
    colour, _, depth = adapter.inputs(SAMPLE)
    return np.concatenate([colour, depth], axis=1)


class TestExplain:
    """Maps of a linear network agree with those worked out by hand."""

    def test_each_scalar_has_a_map_of_each_explained_channel(self) -> None:
        """Each scalar has one map per channel of the explained inputs; for classes, the predicted one is explained."""
        found = made(Explanation(GRADIENT))
        assert found.outputs == ("age", "hair") and found.maps.dtype == np.float32
        expected = [weights(0) * pictures()[0], weights(2) * pictures()[0]]
        np.testing.assert_allclose(found.maps, expected, rtol=1e-5)

    @pytest.mark.parametrize(("of", "column"), [("age", 0), ("hair:black", 1), ("hair:red", 3)])
    def test_of_one_scalar(self, of: str, column: int) -> None:
        """``of`` selects one target or one class."""
        found = made(Explanation(GRADIENT, of=of))
        assert found.outputs == (of,)
        np.testing.assert_allclose(found.maps[0], weights(column) * pictures()[0], rtol=1e-5)

    def test_sum_is_over_all_channels_of_all_inputs(self) -> None:
        """``combine="sum"`` sums over all channels of all inputs."""
        found = made(Explanation(GRADIENT, combine="sum"))
        np.testing.assert_allclose(found.maps[0], (weights(0) * pictures()[0]).sum(0, keepdims=True), rtol=1e-4)

    def test_relevance_times_input_adds_products(self) -> None:
        """``relevance_times_input`` sums the products of relevance and input over channels."""
        found = made(Explanation(partial(saliency), combine="relevance_times_input"))
        expected = (np.abs(weights(0)) * pictures()[0]).sum(0, keepdims=True)
        np.testing.assert_allclose(found.maps[0], expected, rtol=1e-5)

    def test_explanations_by_one_method_share_its_maps(self) -> None:
        """The second one computes nothing again and is the same as alone, whatever the first does with the maps."""
        calls: list[int] = []

        class Counted(Products):
            """It counts its calls."""

            def forward(self, *inputs: Any) -> Any:
                calls.append(1)
                return super().forward(*inputs)

        member = Member(Counted().eval(), TwoImages())
        first = Explanation(partial(saliency), postprocess=partial(negated))
        second = Explanation(partial(saliency), combine="relevance_times_input")
        assert method_of(first) == method_of(second) != method_of(Explanation(partial(saliency), of="age"))

        def maps(of: Explanation, shared: Shared | None) -> Array:
            return explain([member], SPEC, SAMPLE, of, seed=0, classes={"hair": 1}, shared=shared).maps

        alone, shared = [maps(one, None) for one in (first, second)], Shared()
        calls.clear()
        np.testing.assert_array_equal(maps(first, shared), alone[0])
        needed = len(calls)
        np.testing.assert_array_equal(maps(second, shared), alone[1])
        assert len(calls) == needed and 0 < shared.held <= shared.limit
        small = Shared(limit=shared.held - 1)
        np.testing.assert_array_equal(maps(first, small), alone[0])
        assert not small.raw

    def test_within_the_nuisance(self) -> None:
        """``within_nuisance`` keeps the sum over channels where the nuisance is, which is nowhere without its mask."""
        of = Explanation(GRADIENT, combine="within_nuisance")
        whole = made(Explanation(GRADIENT, combine="sum")).maps
        inside = np.zeros(whole.shape[2:], bool)
        inside[1:3, 2:] = True
        member = Member(Products().eval(), TwoImages())
        sample = dataclasses.replace(SAMPLE, masks={"nuisance": ArrayImage(inside)})
        found = explain([member], SPEC, sample, of, seed=0, classes={"hair": 1})
        np.testing.assert_array_equal(found.maps, whole * inside)
        assert not made(of).maps.any()

    def test_items_are_explained_with_their_own_fixed_inputs(self) -> None:
        """Each item is explained with its own height, and the adapter assembles the maps."""
        adapter = TwoImages(items=3)
        found = made(Explanation(GRADIENT, of="age"), adapter)
        expected = np.concatenate([(n + 1) * weights(0) * pictures(adapter)[n] for n in range(3)], axis=-1)
        assert found.maps.shape == (1, 3, 4, 15)
        np.testing.assert_allclose(found.maps[0], expected, rtol=1e-5)

    def test_added_component_is_not_explained(self) -> None:
        """The gradient is taken at the sum that the network sees, and multiplied by the explained component only."""
        found = made(Explanation(GRADIENT, of="age"), Shifted(), Squares())
        x, seen = pictures()[0], pictures()[0] + np.array([2, 2, 0])[:, None, None]
        np.testing.assert_allclose(found.maps[0], weights(0) * 2 * seen * x, rtol=1e-4)

    def test_explained_inputs_of_a_plain_adapter_are_its_inputs(self) -> None:
        """Without a fitted adapter, nothing is added to the explained inputs."""
        pairs = explained_inputs(Member(Products(), TwoImages()), SAMPLE)
        assert [more for _, more in pairs] == [None] * 3
        assert all(np.array_equal(one, own) for (one, _), own in zip(pairs, TwoImages().inputs(SAMPLE), strict=True))

    def test_postprocessing_comes_last(self) -> None:
        """Postprocessing is applied to the combined map."""
        found = made(Explanation(GRADIENT, combine="sum", postprocess=partial(rectified)))
        plain = made(Explanation(GRADIENT, combine="sum"))
        assert (plain.maps < 0).any()
        np.testing.assert_array_equal(found.maps, np.maximum(plain.maps, 0))

    def test_several_networks_are_averaged(self) -> None:
        """The map of an ensemble is the mean over its networks, each with its own adapter."""
        members = [Member(Products().eval(), TwoImages()), Member(Squares().eval(), Shifted())]
        apart = [
            explain([one], SPEC, SAMPLE, Explanation(GRADIENT), seed=0, classes={"hair": 0}).maps for one in members
        ]
        found = explain(members, SPEC, SAMPLE, Explanation(GRADIENT), seed=0, classes={"hair": 0})
        assert not np.allclose(*apart)
        np.testing.assert_allclose(found.maps, (apart[0].astype(float) + apart[1]) / 2, rtol=1e-6)

    def test_random_maps_depend_on_seed_and_sample(self) -> None:
        """Random maps depend on seed and sample."""
        one, member = Explanation(partial(random_map)), Member(Products().eval(), TwoImages())

        def maps(seed: int, sample: Sample) -> Array:
            return explain([member], SPEC, sample, one, seed=seed, classes={"hair": 0}).maps

        first = maps(0, SAMPLE)
        np.testing.assert_array_equal(first, maps(0, SAMPLE))
        assert not np.array_equal(first, maps(1, SAMPLE))
        assert not np.array_equal(first, maps(0, dataclasses.replace(SAMPLE, id="other")))

    def test_random_maps_of_items_differ(self) -> None:
        """Random maps of two items of a sample differ."""
        maps = made(Explanation(partial(random_map), of="age"), TwoImages(items=2)).maps[0]
        assert not np.array_equal(maps[..., :5], maps[..., 5:])

    def test_map_that_is_not_finite_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A map with NaN is refused, and the message names method and sample."""
        monkeypatch.setattr(
            "harness.pipeline.explain.attribute",
            lambda name, network, inputs, targets, **more: [
                [torch.full_like(one, torch.nan) for one in inputs] for _ in targets
            ],
        )
        with pytest.raises(
            CellError, match="maps must be finite, got NaN or infinite values in the input_x_gradient map of one"
        ):
            made(Explanation(GRADIENT))

    def test_network_is_unchanged(self) -> None:
        """Gradients, mode and weights of the network are unchanged."""
        network = Products().train()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        explain([Member(network, TwoImages())], SPEC, SAMPLE, Explanation(GRADIENT), seed=0, classes={"hair": 0})
        assert network.training and all(one.grad is None and one.requires_grad for one in network.parameters())
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())

    def test_exposed_scalar_of_a_study(self, study: Task, crowd: Cohort, crowd_spec: NetworkSpec) -> None:
        """An exposed scalar is explained by its own gradient, (1, 3, H, W)."""
        torch.manual_seed(0)
        network, adapter, sample = build_network(study, crowd_spec).eval(), study.adapter(), crowd.samples[0]
        found = explain([Member(network, adapter)], crowd_spec, sample, Explanation(GRADIENT, of="gate"), seed=0)
        image, height = (torch.from_numpy(one) for one in adapter.inputs(sample))
        image.requires_grad_()
        (gradient,) = torch.autograd.grad(network.exposed(image, height)["gate"].sum(), image)  # type: ignore[operator]
        assert found.outputs == ("gate",)
        np.testing.assert_allclose(found.maps, (gradient * image).detach().numpy(), rtol=1e-4, atol=1e-9)


class TestChoice:
    """Choice of the explained samples."""

    SPEC = NetworkSpec((), (AGE, SMILE, HAIR))

    @pytest.fixture
    def predicted_samples(self) -> tuple[list[Sample], dict[str, Prediction]]:
        """Samples with labels 0 0 0 1 1 1 and probabilities .1 .6 .45 .9 .7 .2; predicted hair is always correct."""
        labels, chances = [0, 0, 0, 1, 1, 1], [0.1, 0.6, 0.45, 0.9, 0.7, 0.2]
        samples, predictions = [], {}
        for number, (label, p) in enumerate(zip(labels, chances, strict=True)):
            name = "abcdef"[number]
            samples.append(Sample(name, name, {}, {}, {}, targets={"smile": float(label), "hair": number % 3}))
            hair = np.full(3, 0.1 + 0.01 * number)
            hair[number % 3] = 1 - 2 * hair[0]
            predictions[name] = {"smile": {"probability": np.float64(p)}, "hair": {"probabilities": hair}}
        return samples, predictions

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, "abcdef"),
            ({"samples": "correct"}, "acde"),
            ({"samples": "true_positive"}, "de"),
            ({"samples": "correct", "at_most": 2}, "ad"),
            ({"samples": "true_positive", "at_most": 1}, "d"),
            ({"samples": "true_positive", "at_most": 9}, "de"),
            ({"at_most": 3}, "adf"),
        ],
    )
    def test_by_a_label(self, predicted_samples: Any, options: dict[str, Any], expected: str) -> None:
        """Samples are chosen by correctness and then confidence, and keep their order."""
        chosen = choose_samples(Explanation(GRADIENT, chosen_by="smile", **options), self.SPEC, *predicted_samples)
        assert "".join(one.id for one in chosen) == expected

    def test_by_a_class(self, predicted_samples: Any) -> None:
        """The confidence of a class target is the probability of the predicted class."""
        samples, predictions = predicted_samples
        predictions["a"]["hair"]["probabilities"] = np.array([0.1, 0.8, 0.1])
        explanation = Explanation(GRADIENT, chosen_by="hair", samples="correct", at_most=2)
        assert "".join(one.id for one in choose_samples(explanation, self.SPEC, samples, predictions)) == "bc"

    def test_equal_confidence_is_ordered_by_id(self, predicted_samples: Any) -> None:
        """Samples of equal confidence are chosen by id, so that their order does not matter."""
        samples, predictions = predicted_samples
        for one in predictions.values():
            one["smile"]["probability"] = np.float64(0.5)
        explanation = Explanation(GRADIENT, chosen_by="smile", at_most=2)
        found = choose_samples(explanation, self.SPEC, samples[::-1], predictions)
        assert "".join(one.id for one in found) == "ba"

    def test_single_classification_is_the_default(self) -> None:
        """A single classification target is used by default."""
        spec = NetworkSpec((), (AGE, SMILE))
        assert chosen_target(Explanation(GRADIENT, samples="correct"), spec) == SMILE

    def test_all_samples_need_no_classification(self) -> None:
        """If all samples are explained, ``chosen_by`` is ignored."""
        assert chosen_target(Explanation(GRADIENT, chosen_by="smile"), NetworkSpec((), (AGE,))) is None

    @pytest.mark.parametrize(
        ("targets", "options", "message"),
        [
            ((AGE,), {"samples": "correct"}, r"needs one binary or classes target, got none; set chosen_by="),
            ((AGE, SMILE, HAIR), {"samples": "correct"}, r"got smile, hair; set chosen_by="),
            ((AGE, SMILE), {"samples": "correct", "chosen_by": "age"}, r"got none"),
            ((SMILE,), {"at_most": 3, "chosen_by": "other"}, r"samples=tested at_most=3 needs one .* got none"),
            (
                (HAIR,),
                {"samples": "true_positive"},
                r"needs a binary target, but hair has classes; set samples=correct",
            ),
        ],
    )
    def test_invalid_choices_are_refused(self, targets: Any, options: dict[str, Any], message: str) -> None:
        """An ambiguous or unsuitable target for choosing samples is refused."""
        with pytest.raises(RequestError, match=message):
            chosen_target(Explanation(GRADIENT, **options), NetworkSpec((), targets))


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (3, [1, 1, 1]), (4, [1] * 4), (10, [3, 3, 2, 2])])
def test_blocks_have_nearly_equal_size(count: int, sizes: list[int]) -> None:
    """Subjects with one sample are divided into four blocks of nearly equal size, or one block per subject."""
    blocks = list(blocks_of([f"sub-{number}" for number in range(count)]))
    assert [len(one) for one in blocks] == sizes
    assert np.concatenate(blocks).tolist() == list(range(count))


def test_blocks_do_not_divide_subjects() -> None:
    """All samples of a subject are in one block, also if they do not follow one another."""
    blocks = [one.tolist() for one in blocks_of(["a", "b", "c", "d", "e", "b", "b", "a"])]
    assert blocks == [[0, 1, 5, 6, 7], [2], [3], [4]]
