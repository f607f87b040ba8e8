"""Axial slices: conversion from a sample to network inputs and back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.special import softmax

from harness.adapters.axial_slices import AxialSlices, axial_slices
from harness.core.errors import OutOfRange, RequestError
from harness.core.targets import Target
from harness.core.types import Cohort, FittedAdapter, Reads, SparseAdapter

TARGETS = (Target("target", "mask"),)


@pytest.fixture
def logits() -> np.ndarray:
    """(5, 2, 4, 3) float32 with magnitudes over five decades."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(5, 2, 4, 3)) * 10.0 ** rng.integers(-2, 3, (5, 1, 4, 3))).astype(np.float32)


def test_channels_are_named_in_order(toy_cohort: Cohort) -> None:
    """Sequences become input channels in the order given, and no other image is read."""
    adapter = axial_slices(channels="T2w+FLAIR+T1w")
    assert adapter.reads == Reads(images=("T2w", "FLAIR", "T1w"))
    assert adapter.spec(toy_cohort).channels == ("T2w", "FLAIR", "T1w")


@pytest.mark.parametrize("channels", ["", "T2w+", "T2w+T2w"])
def test_invalid_channels_are_refused(channels: str) -> None:
    """An empty or repeated sequence is refused."""
    with pytest.raises(OutOfRange, match=r"different sequences joined by '\+', like T2w\+FLAIR; got"):
        axial_slices(channels=channels)


def test_spec_has_one_input_without_a_fixed_shape(toy_cohort: Cohort) -> None:
    """The spec has one explained input without a fixed shape, since slices of different samples differ in size."""
    (one,) = AxialSlices(("FLAIR", "T2w")).spec(toy_cohort).inputs
    assert (one.channels, one.shape, one.explained) == (("FLAIR", "T2w"), (), True)


@pytest.mark.parametrize("other", [Target("age", "number"), Target("vessels", "mask")])
def test_other_targets_than_the_mask_are_refused(toy_cohort: Cohort, other: Target) -> None:
    """Targets other than one mask are refused, and the message names them."""
    cohort = dataclasses.replace(toy_cohort, targets=(*TARGETS, other))
    with pytest.raises(RequestError, match=rf"predicts only the mask target, but toy has the targets {other.name};"):
        AxialSlices(("T2w",)).spec(cohort)


def test_inputs_are_the_slices(toy_cohort: Cohort) -> None:
    """Item z, channel c is axial slice z of sequence c."""
    sample = toy_cohort.samples[1]
    (inputs,) = AxialSlices(("FLAIR", "T2w")).inputs(sample)
    x, y, z = sample.masks["target"].shape
    assert inputs.shape == (z, 2, x, y) and inputs.dtype == np.float32
    for number in range(z):
        assert np.array_equal(inputs[number, 0], sample.images["FLAIR"].load()[:, :, number])
        assert np.array_equal(inputs[number, 1], sample.images["T2w"].load()[:, :, number])


def test_targets_are_the_slices_of_the_mask(toy_cohort: Cohort) -> None:
    """The mask becomes one int64 label slice per item, as torch's cross-entropy expects."""
    sample = toy_cohort.samples[1]
    found = AxialSlices(("T2w",)).targets(sample, TARGETS)
    x, y, z = sample.masks["target"].shape
    assert set(found) == {"target"}
    assert found["target"].shape == (z, x, y) and found["target"].dtype == np.int64
    for number in range(z):
        assert np.array_equal(found["target"][number], sample.masks["target"].load()[:, :, number])


def test_inputs_need_no_masks(toy_cohort: Cohort) -> None:
    """Inputs can be built for a new subject that has no masks."""
    bare = dataclasses.replace(toy_cohort.samples[0], masks={})
    adapter = AxialSlices(("T2w",))
    np.testing.assert_array_equal(adapter.inputs(bare)[0], adapter.inputs(toy_cohort.samples[0])[0])


def test_slices_go_back_to_the_volume(toy_cohort: Cohort) -> None:
    """Maps that equal the inputs come back as the original images."""
    sample = toy_cohort.samples[1]
    adapter = AxialSlices(("FLAIR", "T2w"))
    volume = adapter.to_image(adapter.inputs(sample)[0], sample)
    assert np.array_equal(volume, np.stack([sample.images[name].load() for name in ("FLAIR", "T2w")]))


def test_probability_is_the_softmax_of_the_lesion(logits: np.ndarray, toy_cohort: Cohort) -> None:
    """The lesion probability equals scipy's softmax over the classes, in (X, Y, Z) order."""
    found = AxialSlices(("T2w",)).to_prediction({"target": logits}, toy_cohort.samples[0], TARGETS)
    probability = found["target"]["probability"]
    assert {name: set(kept) for name, kept in found.items()} == {"target": {"probability"}}
    assert probability.dtype == np.float32
    expected = np.moveaxis(softmax(logits.astype(np.float64), axis=1)[:, 1], 0, -1)
    np.testing.assert_allclose(probability, expected, rtol=1e-6, atol=1e-12)


def test_adapter_is_neither_fitted_nor_sparse() -> None:
    """The adapter implements neither of the optional protocols."""
    assert not isinstance(AxialSlices(("T2w",)), FittedAdapter | SparseAdapter)
