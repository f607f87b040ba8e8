"""Predictions of a network for a sample, and averages over several networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from harness.adapters.axial_slices import AxialSlices
from harness.core.targets import KINDS, Target
from harness.core.task import Task
from harness.core.types import Array, Cohort, Input, NetworkSpec, Sample
from harness.models.unet import unet
from harness.pipeline.networks import Member, build_network
from harness.pipeline.predict import outputs_of, predict

SLICES = AxialSlices(("T2w",))
AGE, SMILE = Target("age", "number"), Target("smile", "binary")
HAIR = Target("hair", "classes", ("black", "blond", "red"))
LESION = Target("lesion", "mask")


def slices_member(seed: int = 0) -> Member:
    """A network with a few hundred weights."""
    torch.manual_seed(seed)
    return Member(unet(1, 2, width=2, depth=1).eval(), SLICES)


@pytest.fixture
def member(study: Task, crowd_spec: NetworkSpec) -> Callable[[int], Member]:
    """A function that makes an untrained network of the study from a seed."""

    def made(seed: int) -> Member:
        torch.manual_seed(seed)
        return Member(build_network(study, crowd_spec).eval(), study.adapter())

    return made


def test_prediction_has_the_shape_of_its_sample(toy_cohort: Cohort) -> None:
    """The probability has the shape of the sample's own grid."""
    for sample in toy_cohort.samples:
        found = predict([slices_member()], SLICES.spec(toy_cohort), sample, batch_size=4)["target"]["probability"]
        assert found.shape == sample.masks["target"].shape and found.dtype == np.float32


def test_prediction_does_not_depend_on_the_batch(toy_cohort: Cohort) -> None:
    """The prediction does not depend on the batch size, and training mode is restored."""
    member = slices_member()
    member.network.train()
    one, two = (
        predict([member], SLICES.spec(toy_cohort), toy_cohort.samples[0], batch_size=size)["target"]["probability"]
        for size in (1, 6)
    )
    np.testing.assert_allclose(one, two, atol=1e-6)
    assert member.network.training


def test_mode_is_restored_after_an_exception(toy_cohort: Cohort) -> None:
    """Training mode is restored after an exception."""
    torch.manual_seed(0)
    member = Member(unet(2, 2, width=2, depth=1).train(), SLICES)
    with pytest.raises(RuntimeError, match="channels"):
        outputs_of(member, SLICES.spec(toy_cohort), toy_cohort.samples[0], batch_size=4)
    assert member.network.training


def test_values_of_each_kind_of_target(member: Callable[[int], Member], crowd: Cohort, crowd_spec: NetworkSpec) -> None:
    """Each kind of target has its values, computed from the network's output."""
    one, sample = member(0), crowd.samples[0]
    found = predict([one], crowd_spec, sample, batch_size=4)
    with torch.no_grad():
        output = one.network(*(torch.from_numpy(x) for x in one.adapter.inputs(sample)))[0].double().numpy()
    assert {name: set(kept) for name, kept in found.items()} == {
        "age": {"value"},
        "smile": {"logit", "probability"},
        "hair": {"logits", "probabilities"},
        "exposed scalars": {"gate"},
    }
    assert found["age"]["value"] == output[0] and found["smile"]["logit"] == output[1]
    np.testing.assert_array_equal(found["hair"]["logits"], output[2:])
    np.testing.assert_allclose(found["smile"]["probability"], 1 / (1 + np.exp(-output[1])))
    np.testing.assert_allclose(found["hair"]["probabilities"], np.exp(output[2:]) / np.exp(output[2:]).sum())


def test_one_network_is_not_averaged(member: Callable[[int], Member], crowd: Cohort, crowd_spec: NetworkSpec) -> None:
    """The logit of a single network is not limited, unlike that of an average."""
    one = member(0)
    with torch.no_grad():
        one.network.head.bias[1] = 90.0  # type: ignore[union-attr,index]
    assert predict([one], crowd_spec, crowd.samples[0], batch_size=4)["smile"]["logit"] > 80


def test_several_networks_are_averaged_target_by_target(
    member: Callable[[int], Member], crowd: Cohort, crowd_spec: NetworkSpec
) -> None:
    """Each target of an ensemble is the average over the networks."""
    members, sample = [member(seed) for seed in range(3)], crowd.samples[3]
    found = predict(members, crowd_spec, sample, batch_size=4)
    apart = [predict([one], crowd_spec, sample, batch_size=4) for one in members]
    for target in crowd_spec.targets:
        expected = KINDS[target.kind].average([one[target.name] for one in apart])
        assert found[target.name].keys() == expected.keys()
        for name in expected:
            np.testing.assert_array_equal(found[target.name][name], expected[name])


def test_masks_of_several_networks_are_averaged(toy_cohort: Cohort) -> None:
    """The mask of an ensemble is the mean probability of each voxel."""
    members, spec, sample = [slices_member(0), slices_member(1)], SLICES.spec(toy_cohort), toy_cohort.samples[1]
    found = predict(members, spec, sample, batch_size=4)["target"]["probability"]
    apart = [predict([one], spec, sample, batch_size=4)["target"]["probability"].astype(float) for one in members]
    assert found.dtype == np.float32 and not np.array_equal(*apart)
    np.testing.assert_allclose(found, (apart[0] + apart[1]) / 2, rtol=1e-6)


def test_networks_may_write_into_read_only_images(crowd: Cohort, crowd_spec: NetworkSpec) -> None:
    """Images of a memory map are copied, so that a layer that works in place does not change them."""
    image = np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 1, 3, 4)
    image.setflags(write=False)

    class ReadOnly:
        """An adapter that returns the array of a memory map."""

        def inputs(self, sample: Sample) -> tuple[Array, ...]:
            return (image,)

    network = torch.nn.Sequential(torch.nn.ReLU(inplace=True), torch.nn.Flatten(), torch.nn.Linear(12, 1))
    spec = dataclasses.replace(crowd_spec, inputs=(Input("a", ("a",)),), targets=(AGE,))
    member = Member(network, ReadOnly())  # type: ignore[arg-type]
    outputs_of(member, spec, crowd.samples[0], batch_size=1)
    assert image.min() == -1


class TestAverage:
    """Averages of each kind agree with those worked out by hand."""

    def test_number(self) -> None:
        """A number is the mean value."""
        assert KINDS[AGE.kind].average([{"value": np.float64(3)}, {"value": np.float64(6)}]) == {"value": 4.5}

    def test_binary(self) -> None:
        """A binary target is the mean probability and its logit, not the mean logit."""
        several = [{"logit": np.log(p / (1 - p)), "probability": np.float64(p)} for p in (0.5, 0.9)]
        found = KINDS[SMILE.kind].average(several)
        assert found["probability"] == pytest.approx(0.7)
        assert found["logit"] == pytest.approx(np.log(0.7 / 0.3))
        assert found["logit"] != pytest.approx(np.mean([one["logit"] for one in several]), abs=0.1)

    def test_classes(self) -> None:
        """Classes are the mean probabilities, with logits whose softmax gives them."""
        several = [{"logits": np.log(np.array(p))} for p in ([0.8, 0.1, 0.1], [0.2, 0.6, 0.2])]
        found = KINDS[HAIR.kind].average(several)
        np.testing.assert_allclose(found["probabilities"], [0.5, 0.35, 0.15])
        powers = np.exp(found["logits"])
        np.testing.assert_allclose(powers / powers.sum(), [0.5, 0.35, 0.15])

    def test_mask(self) -> None:
        """A mask is the mean probability of each voxel, as float32."""
        several = [
            {"probability": np.array([[0.0, 0.5]], np.float32)},
            {"probability": np.array([[1, 0.25]], np.float32)},
        ]
        found = KINDS[LESION.kind].average(several)["probability"]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, [[0.5, 0.375]])

    @pytest.mark.parametrize("logit", [-900.0, 900.0])
    def test_certain_networks_have_a_finite_logit(self, logit: float) -> None:
        """A mean probability that is 0 or 1 after rounding has the logit of the exact probability."""
        p = np.float64(logit > 0)
        found = KINDS[SMILE.kind].average([{"logit": np.float64(one), "probability": p} for one in (logit, logit + 1)])
        assert found["probability"] == p
        # The smaller probability of the two classes decides: its mean is (1 + e) / 2 times that of the first network.
        expected = logit + np.log((1 + np.e) / 2) if logit < 0 else logit - np.log((1 + 1 / np.e) / 2)
        assert found["logit"] == pytest.approx(expected, abs=1e-9)

    def test_certain_classes_have_finite_logits(self) -> None:
        """Classes with a mean probability of 0 have finite logits."""
        found = KINDS[HAIR.kind].average([{"logits": np.array([0.0, -2000.0, -2000.0])}] * 2)
        assert np.isfinite(found["logits"]).all()
        np.testing.assert_array_equal(found["probabilities"], [1, 0, 0])


class TestPredictedClass:
    """The predicted class."""

    @pytest.mark.parametrize(("p", "expected"), [(0.49, 0), (0.5, 1), (1.0, 1)])
    def test_binary(self, p: float, expected: int) -> None:
        """A probability of one half or more is positive."""
        assert KINDS[SMILE.kind].predicted_class({"probability": np.float64(p)}) == expected

    def test_classes(self) -> None:
        """The class with the highest probability is predicted."""
        assert KINDS[HAIR.kind].predicted_class({"probabilities": np.array([0.2, 0.3, 0.5])}) == 2

    def test_runner_up(self) -> None:
        """The second most probable class is another one than the first, also if all are equally probable."""
        assert KINDS[HAIR.kind].runner_up({"probabilities": np.array([0.5, 0.2, 0.3])}) == 2
        assert KINDS[HAIR.kind].runner_up({"probabilities": np.full(3, 1 / 3)}) == 1
