"""Values for which the network is run again on changed images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from harness.adapters.axial_slices import AxialSlices
from harness.core.errors import RequestError
from harness.core.task import Task
from harness.core.types import Array, Cohort, Input, NetworkSpec, Sample
from harness.models.unet import unet
from harness.pipeline.explain import Explained
from harness.pipeline.networks import Member, build_network, scalars_of
from harness.pipeline.predict import predict
from harness.pipeline.probe import predict_function, probe_sample


@pytest.fixture
def member(study: Task, crowd_spec: NetworkSpec) -> Callable[[int], Member]:
    """A function that makes an untrained network of the study from a seed."""

    def made(seed: int) -> Member:
        torch.manual_seed(seed)
        return Member(build_network(study, crowd_spec).eval(), study.adapter())

    return made


class TestPredictFunction:
    """The explained scalar as a function of the image."""

    @pytest.mark.parametrize(
        ("of", "classes", "target", "kept", "index"),
        [
            ("age", {}, "age", "value", ()),
            ("smile", {}, "smile", "logit", ()),
            ("hair", {"hair": 2}, "hair", "logits", (2,)),
            ("hair:blond", {"hair": 2}, "hair", "logits", (1,)),
        ],
    )
    def test_unchanged_image_gives_the_prediction(
        self,
        member: Callable[[int], Member],
        crowd: Cohort,
        crowd_spec: NetworkSpec,
        of: str,
        classes: dict[str, int],
        target: str,
        kept: str,
        index: tuple[int, ...],
    ) -> None:
        """For the unchanged image, the function returns the network's own prediction."""
        one, sample = member(0), crowd.samples[0]
        (scalar,) = scalars_of(of, crowd_spec, one.network)
        function, image = predict_function([one], crowd_spec, sample, scalar, batch_size=4, classes=classes)
        assert image.shape == (3, 16, 16, 1)
        np.testing.assert_array_equal(image[..., 0], one.adapter.inputs(sample)[0][0])
        expected = predict([one], crowd_spec, sample, batch_size=4)[target][kept][index]
        found = function(image[None])
        assert found.shape == (1,) and found.dtype == np.float64
        np.testing.assert_allclose(found[0], expected, rtol=1e-6)

    def test_exposed_scalar(self, member: Callable[[int], Member], crowd: Cohort, crowd_spec: NetworkSpec) -> None:
        """An exposed scalar is a function of the image as well."""
        one, sample = member(0), crowd.samples[0]
        (scalar,) = scalars_of("gate", crowd_spec, one.network)
        function, image = predict_function([one], crowd_spec, sample, scalar, batch_size=4)
        with torch.no_grad():
            expected = one.network.exposed(*map(torch.from_numpy, one.adapter.inputs(sample)))  # type: ignore[operator]
        np.testing.assert_allclose(function(image[None]), expected["gate"].numpy(), rtol=1e-6)

    def test_equal_images_are_computed_once(
        self, member: Callable[[int], Member], crowd: Cohort, crowd_spec: NetworkSpec
    ) -> None:
        """Within a call and between calls; metrics ask for the unchanged image again and again."""
        one, sample = member(0), crowd.samples[0]
        (scalar,) = scalars_of("age", crowd_spec, one.network)
        counted: list[int] = []
        function, image = predict_function([one], crowd_spec, sample, scalar, batch_size=4)
        dark = 0.5 * image
        function(np.stack([image, dark]))  # finds the size of batches
        one.network.register_forward_pre_hook(lambda module, given: counted.append(len(given[0])))
        half = image * np.linspace(0, 1, image.shape[1], dtype=np.float32)[:, None, None]
        found = function(np.stack([half, image, half, dark]).astype(np.float64))
        assert counted == [1] and found[0] == found[2] != found[1] != found[3]
        fresh, _ = predict_function([member(0)], crowd_spec, sample, scalar, batch_size=4)
        np.testing.assert_allclose(fresh(np.stack([half, image, half, dark])), found, rtol=1e-5)

    def test_images_are_given_in_batches(
        self, member: Callable[[int], Member], crowd: Cohort, crowd_spec: NetworkSpec
    ) -> None:
        """The value of an image does not depend on the batch size, and no images give no values."""
        one, sample = member(0), crowd.samples[0]
        (scalar,) = scalars_of("age", crowd_spec, one.network)
        function, image = predict_function([one], crowd_spec, sample, scalar, batch_size=4)
        several = np.stack([image * factor for factor in np.linspace(0, 1, 11)])
        whole, _ = predict_function([one], crowd_spec, sample, scalar, batch_size=100)
        np.testing.assert_allclose(function(several), whole(several), rtol=1e-5)
        np.testing.assert_allclose(function(several), [function(single[None])[0] for single in several], rtol=1e-5)
        assert len(set(function(several))) == 11
        assert function(several[:0]).shape == (0,)

    def test_networks_that_depend_on_the_batch_get_single_images(
        self, member: Callable[[int], Member], crowd: Cohort, crowd_spec: NetworkSpec
    ) -> None:
        """Several images have the values that each has alone."""
        one, sample = member(0), crowd.samples[0]

        class Joint(torch.nn.Module):
            def forward(self, x: torch.Tensor, *others: torch.Tensor) -> Any:
                return one.network(x - 0.5 * x.mean(dim=0, keepdim=True), *others)

        (scalar,) = scalars_of("age", crowd_spec, one.network)
        function, image = predict_function([Member(Joint(), one.adapter)], crowd_spec, sample, scalar, batch_size=4)
        several = np.stack([image * factor for factor in np.linspace(0, 1, 7)])
        np.testing.assert_allclose(function(several), [function(single[None])[0] for single in several], rtol=1e-5)

    def test_size_of_batches_is_found_once(
        self, member: Callable[[int], Member], crowd: Cohort, crowd_spec: NetworkSpec
    ) -> None:
        """For further samples, the networks are only given the images that are asked for."""
        one, sizes = member(0), {}
        (scalar,) = scalars_of("age", crowd_spec, one.network)
        counted: list[int] = []
        one.network.register_forward_pre_hook(lambda module, given: counted.append(len(given[0])))
        for sample in crowd.samples[:2]:
            counted.clear()
            function, image = predict_function([one], crowd_spec, sample, scalar, batch_size=4, sizes=sizes)
            function(np.stack([image * factor for factor in np.linspace(0, 1, 7)]))
        assert counted == [4, 3] and sizes == {("age", image.shape[:3]): 4}

    def test_several_networks_are_averaged(
        self, member: Callable[[int], Member], crowd: Cohort, crowd_spec: NetworkSpec
    ) -> None:
        """The scalar of an ensemble is the mean over its networks."""
        members, sample = [member(0), member(1)], crowd.samples[0]
        (scalar,) = scalars_of("age", crowd_spec, members[0].network)

        def scalar_of(several: list[Member]) -> float:
            function, image = predict_function(several, crowd_spec, sample, scalar, batch_size=4)
            return float(function(image[None])[0])

        assert scalar_of(members[:1]) != scalar_of(members[1:])
        assert scalar_of(members) == pytest.approx((scalar_of(members[:1]) + scalar_of(members[1:])) / 2)

    def test_ensemble_with_different_scaling_is_refused(
        self, member: Callable[[int], Member], crowd: Cohort, crowd_spec: NetworkSpec
    ) -> None:
        """One changed image is not the same input for adapters that scale it differently."""

        class Scaled:
            """An adapter that was fitted to other samples."""

            def __init__(self, adapter: Any, factor: float) -> None:
                self.adapter, self.factor = adapter, factor

            def inputs(self, sample: Sample) -> tuple[Array, ...]:
                image, *rest = self.adapter.inputs(sample)
                return image * np.float32(self.factor), *rest

        first, second = member(0), member(1)
        (scalar,) = scalars_of("age", crowd_spec, first.network)
        same = [first, Member(second.network, Scaled(second.adapter, 1.0))]  # type: ignore[arg-type]
        predict_function(same, crowd_spec, crowd.samples[0], scalar, batch_size=4)
        other = [first, Member(second.network, Scaled(second.adapter, 2.0))]  # type: ignore[arg-type]
        with pytest.raises(RequestError, match="adapters of 2 networks scale .* differently; use an adapter"):
            predict_function(other, crowd_spec, crowd.samples[0], scalar, batch_size=4)

    def test_network_is_unchanged(
        self, member: Callable[[int], Member], crowd: Cohort, crowd_spec: NetworkSpec
    ) -> None:
        """Weights are unchanged and have no gradients."""
        one = member(0)
        before = {name: value.clone() for name, value in one.network.state_dict().items()}
        (scalar,) = scalars_of("age", crowd_spec, one.network)
        function, image = predict_function([one], crowd_spec, crowd.samples[0], scalar, batch_size=4)
        function(image[None] * 0)
        assert all(value.grad is None and value.requires_grad for value in one.network.parameters())
        assert all(torch.equal(value, before[name]) for name, value in one.network.state_dict().items())

    def test_sample_of_several_items_is_refused(self, toy_cohort: Cohort) -> None:
        """A sample with several items is refused."""
        adapter = AxialSlices(("T2w",))
        spec, network = adapter.spec(toy_cohort), unet(1, 2, width=2, depth=1)
        (scalar,) = scalars_of("", spec, network)
        with pytest.raises(RequestError, match=r"need one item per sample .*got 6 items of \(16, 16\) for sub-01"):
            predict_function([Member(network, adapter)], spec, toy_cohort.samples[0], scalar, batch_size=4)

    def test_explained_inputs_of_several_shapes_are_refused(self, crowd: Cohort, crowd_spec: NetworkSpec) -> None:
        """Explained inputs of different shapes are refused."""

        class TwoSizes:
            """An adapter with two pictures of different size."""

            def inputs(self, sample: Sample) -> tuple[Array, ...]:
                return np.zeros((1, 1, 4, 4), np.float32), np.zeros((1, 1, 2, 3), np.float32)

        spec = dataclasses.replace(crowd_spec, inputs=(Input("a", ("a",)), Input("b", ("b",))))
        (scalar,) = scalars_of("age", spec, torch.nn.Identity())
        members: list[Any] = [Member(torch.nn.Identity(), TwoSizes())]  # type: ignore[arg-type]
        with pytest.raises(RequestError, match=r"explained inputs of one shape, got 1 items of \(2, 3\), \(4, 4\)"):
            predict_function(members, spec, crowd.samples[0], scalar, batch_size=4)


def test_probe_metrics_are_given_map_image_and_function(
    member: Callable[[int], Member],
    crowd: Cohort,
    crowd_spec: NetworkSpec,
    study: Task,
) -> None:
    """Values of the study's probe metric agree with a replica, for each explained scalar."""
    one, sample, whole = member(0), crowd.samples[0], study.explained["saliency"]
    prediction = predict([one], crowd_spec, sample, batch_size=4)
    rng = np.random.default_rng(0)
    explained = Explained(("age", "smile", "hair"), rng.random((3, 1, 16, 16)).astype(np.float32))
    values: dict[str, Any] = {}
    probe_sample(
        study, crowd_spec, [one], sample, whole, explained, prediction, ["fall_when_masked"], values,
        channels=("all",), seed=0, batch_size=4, classes={"hair": 1},
    )  # fmt: skip
    found = values["fall_when_masked"]
    assert found["label"] == "fall_when_masked" and list(found["values"]) == [sample.id]
    for number, (name, of) in enumerate((("age", "age"), ("smile", "smile"), ("hair", "hair:blond"))):
        (scalar,) = scalars_of(of, crowd_spec, one.network)
        function, image = predict_function([one], crowd_spec, sample, scalar, batch_size=4)
        relevance = np.abs(explained.maps[number, 0])
        masked = np.where((relevance >= np.quantile(relevance, 0.9))[None, ..., None], 0.5, image)
        expected = abs(function(image[None])[0] - function(masked[None])[0])
        assert found["values"][sample.id]["targets"][name] == pytest.approx(expected, abs=1e-6)
        assert expected > 1e-5
