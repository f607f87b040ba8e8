"""Whole volumes of several contrasts with covariates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from harness.adapters.volumes import volumes
from harness.core.errors import CellError, OutOfRange, RequestError, UnknownName
from harness.core.targets import Target
from harness.core.types import Array, Cohort, Reads, Sample
from harness.testing import check_adapter

SHAPE = (4, 5, 6)


@pytest.fixture(scope="module")
def cohort(in_memory: Callable[[Array], Any]) -> Cohort:
    """Two visits with a T1 map in ms and an NDI in [0, 1], a brain mask, an age and two targets."""
    rng = np.random.default_rng(0)
    brain = np.zeros(SHAPE, bool)
    brain[1:] = True
    samples = [
        Sample(
            f"sub-1_ses-{number}",
            "sub-1",
            {
                "qT1": in_memory(rng.uniform(0, 3000, SHAPE).astype(np.float32)),
                "NDI": in_memory(rng.random(SHAPE).astype(np.float32)),
            },
            {"brain": in_memory(brain)},
            {"age": 40.0 + number, "edss": None if number else 3.0},
            np.diag([3.0, 3.0, 3.0, 1.0]),
            (3.0, 3.0, 3.0),
            targets={"severe": float(number), "edss": 3.5},
        )
        for number in range(2)
    ]
    return Cohort("quantitative", tuple(samples), targets=(Target("severe", "binary"), Target("edss", "number")))


def test_meets_all_requirements_of_adapters(cohort: Cohort) -> None:
    """The adapter passes the checks that users run on theirs."""
    check_adapter(volumes(channels="qT1+NDI", covariates="age", scale="qT1:2500"), cohort)


def test_reads_contrasts_brain_and_covariates() -> None:
    """Nothing else enters the identity of a training."""
    found = volumes(channels="qT1+NDI", covariates="age").reads
    assert found == Reads(images=("qT1", "NDI"), masks=("brain",), covariates=("age",))
    assert volumes(channels="NDI", masked=False).reads == Reads(images=("NDI",))


def test_values_are_scaled_cut_and_masked(cohort: Cohort) -> None:
    """A T1 of 2500 ms is 1, larger values too; voxels outside of the brain are 0."""
    sample = cohort.samples[1]
    image, age = volumes(channels="qT1+NDI", covariates="age", covariate_scale=100, scale="qT1:2500").inputs(sample)
    assert (image.shape, image.dtype, age.tolist()) == ((1, 2, *SHAPE), np.float32, [[np.float32(0.41)]])
    assert not image[:, :, 0].any()
    expected = np.minimum(sample.images["qT1"].load() / 2500, 1)
    np.testing.assert_allclose(image[0, 0, 1:], expected[1:], rtol=1e-6)
    np.testing.assert_array_equal(image[0, 1, 1:], sample.images["NDI"].load()[1:])
    whole = volumes(channels="NDI", masked=False).inputs(sample)[0]
    np.testing.assert_array_equal(whole[0, 0], sample.images["NDI"].load())


def test_order_of_the_contrasts_is_that_of_the_channels(cohort: Cohort) -> None:
    """Channels keep the order of the option."""
    adapter = volumes(channels="NDI+qT1", scale="qT1:2500")
    assert adapter.spec(cohort).channels == ("NDI", "qT1")
    image = adapter.inputs(cohort.samples[0])[0]
    np.testing.assert_array_equal(image[0, 0, 1:], cohort.samples[0].images["NDI"].load()[1:])


def test_unscaled_values_are_refused_with_the_option(cohort: Cohort) -> None:
    """A T1 map in ms without a scale is refused before anything is trained."""
    with pytest.raises(RequestError, match=r"qT1 of sub-1_ses-0 has values from .*adapter\.scale=qT1:"):
        volumes(channels="qT1").spec(cohort)


def test_faults_of_a_cohort(cohort: Cohort) -> None:
    """Unknown contrasts, covariates without a number, other shapes and masks as targets are refused."""
    with pytest.raises(UnknownName, match="FLAIR"):
        volumes(channels="FLAIR").spec(cohort)
    with pytest.raises(RequestError, match=r"edss must be a number for every sample, but 1 have none: sub-1_ses-1"):
        volumes(channels="NDI", covariates="edss").spec(cohort)
    with pytest.raises(CellError, match="edss of sub-1_ses-1"):
        volumes(channels="NDI", covariates="edss").inputs(cohort.samples[1])
    masks = dataclasses.replace(cohort, targets=(Target("lesions", "mask"),))
    with pytest.raises(RequestError, match="one value per sample"):
        volumes(channels="NDI").spec(masks)
    first = cohort.samples[0]
    flat = {name: type(image)(np.zeros((4, 5, 7), np.float32)) for name, image in first.images.items()}
    other = dataclasses.replace(first, id="sub-2", images=flat)
    with pytest.raises(RequestError, match=r"one shape, got 4×5×6, 4×5×7; set cohort\.size"):
        volumes(channels="NDI").spec(dataclasses.replace(cohort, samples=(*cohort.samples, other)))


@pytest.mark.parametrize(
    "options",
    [
        {"channels": "NDI+NDI"},
        {"channels": ""},
        {"covariates": "age+"},
        {"scale": "qT1"},
        {"scale": "qT1:0"},
        {"scale": "qT1:many"},
        {"scale": ":3"},
        {"scale": "qT1:inf"},
    ],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, str]) -> None:
    """The message shows the form that is expected."""
    with pytest.raises(OutOfRange, match="like"):
        volumes(**{"channels": "NDI", **options})  # type: ignore[arg-type]
