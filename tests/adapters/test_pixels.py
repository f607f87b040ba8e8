"""Pictures with covariates as scalar inputs and several kinds of target."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax

from harness.adapters.pixels import Pixels, pixels
from harness.core.errors import CellError, OutOfRange, RequestError, UnknownName
from harness.core.targets import Target
from harness.core.types import Array, Cohort, FittedAdapter, Reads, Sample
from harness.testing import check_adapter

TARGETS = (Target("age", "number"), Target("smile", "binary"), Target("hair", "classes", ("black", "blond", "red")))


@pytest.fixture(scope="module")
def cohort(in_memory: Callable[[Array], Any]) -> Cohort:
    """Three pictures of 5 × 7 pixels with a height, a weight and three targets."""
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            f"picture-{number}",
            "subject-1",
            {"rgb": in_memory(rng.integers(0, 256, (5, 7, 3), np.uint8))},
            {},
            {"height": 1.5 + number / 10, "weight": None if number == 2 else 70.0},
            targets={"age": 30.5, "smile": 1.0, "hair": 2.0},
        )
        for number in range(3)
    ]
    return Cohort("pictures", tuple(samples), targets=TARGETS)


def test_the_picture_and_the_covariates_are_read() -> None:
    """Only the picture and the named covariates are read."""
    assert pixels(covariates="height+weight").reads == Reads(images=("rgb",), covariates=("height", "weight"))
    assert pixels().reads == Reads(images=("rgb",))


def test_scalars_are_inputs_that_are_not_explained(cohort: Cohort) -> None:
    """The picture is the first, explained input; covariates are scalar inputs without explanation."""
    spec = pixels(covariates="height").spec(cohort)
    assert [(one.name, one.shape, one.explained) for one in spec.inputs] == [
        ("image", (5, 7), True),
        ("height", (), False),
    ]
    assert spec.channels == ("red", "green", "blue") and spec.targets == TARGETS


def test_inputs_are_scaled(cohort: Cohort) -> None:
    """Colours are scaled to [0, 1] with channels first, and a covariate is divided by its scale."""
    sample = cohort.samples[1]
    picture, height = pixels(covariates="height", covariate_scale=2.0).inputs(sample)
    assert (picture.shape, picture.dtype, height.shape, height.dtype) == ((1, 3, 5, 7), np.float32, (1, 1), np.float32)
    np.testing.assert_allclose(picture[0].transpose(1, 2, 0) * 255, sample.images["rgb"].load(), rtol=1e-6)
    assert height[0, 0] == np.float32(0.8)


def test_targets_have_the_types_of_their_losses(cohort: Cohort) -> None:
    """Numbers and binary labels are float32 and class labels are int64, with one item each."""
    found = pixels().targets(cohort.samples[0], TARGETS)
    assert {name: (value.tolist(), value.dtype) for name, value in found.items()} == {
        "age": ([30.5], np.float32),
        "smile": ([1.0], np.float32),
        "hair": ([2], np.int64),
    }


def test_predictions_of_every_kind(cohort: Cohort) -> None:
    """Outputs of every kind become values or probabilities, as computed by scipy's expit and softmax."""
    outputs = {"age": np.array([[4.0]]), "smile": np.array([[-1.5]]), "hair": np.array([[0.5, 2.0, -1.0]])}
    found = pixels().to_prediction(outputs, cohort.samples[0], TARGETS)
    assert float(found["age"]["value"]) == 4.0
    assert float(found["smile"]["probability"]) == pytest.approx(expit(-1.5))
    np.testing.assert_allclose(found["hair"]["probabilities"], softmax([0.5, 2.0, -1.0]))


def test_maps_go_back_to_the_picture(cohort: Cohort) -> None:
    """Maps go back to the shape of the picture, with one map per colour channel."""
    sample, adapter = cohort.samples[0], pixels()
    image = adapter.to_image(adapter.inputs(sample)[0], sample)
    np.testing.assert_allclose(image.transpose(1, 2, 0) * 255, sample.images["rgb"].load(), rtol=1e-6)


def test_masks_are_refused(cohort: Cohort) -> None:
    """A mask target is refused, since this adapter predicts one value per sample."""
    other = dataclasses.replace(cohort, targets=(*TARGETS, Target("target", "mask")))
    with pytest.raises(RequestError, match="pixels predicts one value per sample, but target is a mask"):
        pixels().spec(other)


@pytest.mark.parametrize(("column", "named"), [("weight", "picture-2"), ("shoes", "picture-0, picture-1, picture-2")])
def test_covariates_must_be_numbers_for_every_sample(cohort: Cohort, column: str, named: str) -> None:
    """A covariate that is not a number for every sample is refused, and all such samples are listed."""
    with pytest.raises(
        RequestError, match=rf"covariate {column} must be a number for every sample, .* have none: {named};"
    ):
        pixels(covariates=column).spec(cohort)


def test_a_sample_without_its_covariate_is_refused(cohort: Cohort) -> None:
    """Building the inputs of a sample without its covariate raises an error."""
    with pytest.raises(CellError, match="weight of picture-2 must be a number, got None"):
        pixels(covariates="weight").inputs(cohort.samples[2])


@pytest.mark.parametrize("covariates", ["age+", "age+age"])
def test_invalid_covariates_are_refused(covariates: str) -> None:
    """An empty or repeated column is refused."""
    with pytest.raises(OutOfRange, match=r"different columns joined by '\+', like age\+weight; got"):
        pixels(covariates=covariates)


def test_pictures_of_different_sizes_are_refused(cohort: Cohort, in_memory: Callable[[Array], Any]) -> None:
    """Pictures of different sizes are refused before training."""
    odd = dataclasses.replace(cohort.samples[2], images={"rgb": in_memory(np.zeros((5, 6, 3), np.uint8))})
    with pytest.raises(RequestError, match=r"must be of one size, got \(5, 6, 3\), \(5, 7, 3\)"):
        pixels().spec(dataclasses.replace(cohort, samples=(*cohort.samples[:2], odd)))


def test_adapter_is_not_fitted() -> None:
    """The adapter does not implement the optional fitted protocol."""
    assert not isinstance(Pixels(), FittedAdapter)


def numbered(cohort: Cohort, *ages: float) -> list[Sample]:
    """The samples with other ages."""
    return [
        dataclasses.replace(sample, targets={**sample.targets, "age": age})
        for sample, age in zip(cohort.samples, ages, strict=True)
    ]


def test_some_targets_are_predicted(cohort: Cohort) -> None:
    """Named targets are those of the network, in the given order; unknown ones are refused."""
    assert pixels(predicted="hair+age").spec(cohort).targets == (TARGETS[2], TARGETS[0])
    with pytest.raises(UnknownName, match="target of pictures is named 'size'"):
        pixels(predicted="age+size").spec(cohort)
    for wrong in ("age+", "age+age"):
        with pytest.raises(OutOfRange, match=r"predicted must be different targets joined by '\+', like age\+sex"):
            pixels(predicted=wrong)


def test_numbers_are_divided(cohort: Cohort) -> None:
    """A number is divided for the network, and its prediction multiplied; labels are unchanged."""
    adapter, sample = pixels(number_scale=100.0), cohort.samples[0]
    assert not isinstance(adapter, FittedAdapter)
    found = adapter.targets(sample, TARGETS)
    assert found["age"].tolist() == [np.float32(0.305)] and found["smile"].tolist() == [1] and found["hair"] == [2]
    made = adapter.to_prediction(
        {"age": np.array([[0.5]]), "smile": np.array([[2.0]]), "hair": np.array([[1.0, 2, 3]])}, sample, TARGETS
    )
    assert float(made["age"]["value"]) == pytest.approx(50) and float(made["smile"]["logit"]) == 2
    np.testing.assert_array_equal(made["hair"]["logits"], [1, 2, 3])


def test_numbers_are_standardised_by_the_training_samples(cohort: Cohort) -> None:
    """Training values have mean 0 and SD 1, predictions are in years, and labels are unchanged."""
    adapter = pixels(number_scale="standardised")
    assert isinstance(adapter, FittedAdapter)
    training = numbered(cohort, 20.0, 30.0, 70.0)
    fitted = adapter.fit(training, TARGETS)
    values = np.array([fitted.targets(sample, TARGETS)["age"][0] for sample in training])
    assert values.mean() == pytest.approx(0, abs=1e-6) and values.std() == pytest.approx(1)
    outputs = {"age": values[2:, None], "smile": np.array([[-1.0]]), "hair": np.array([[0.0, 1, 0]])}
    made = fitted.to_prediction(outputs, training[2], TARGETS)
    assert float(made["age"]["value"]) == pytest.approx(70, rel=1e-6) and float(made["smile"]["logit"]) == -1
    again = adapter.load_state(fitted.state)
    assert again.targets(training[0], TARGETS) == fitted.targets(training[0], TARGETS)
    assert set(fitted.state) == {"age"}
    assert adapter.targets(training[0], TARGETS)["age"] == [20]  # not fitted, and not changed by `fit`


def test_numbers_that_do_not_vary_cannot_be_standardised(cohort: Cohort) -> None:
    """All ages are equal."""
    with pytest.raises(CellError, match="age must vary in the training samples to be standardised, got 30.5"):
        pixels(number_scale="standardised").fit(cohort.samples, TARGETS)


@pytest.mark.parametrize("number_scale", [1.0, 100.0, "standardised"])
def test_adapter_conforms(cohort: Cohort, number_scale: float | str) -> None:
    """All scales pass the conformance checks of adapters."""
    varied = dataclasses.replace(cohort, samples=tuple(numbered(cohort, 20.0, 30.0, 70.0)))
    check_adapter(pixels(covariates="height", number_scale=number_scale), varied)  # type: ignore[arg-type]
