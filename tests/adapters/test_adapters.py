"""Axial slices: from a sample to a network's items and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from harness.adapters.adapter import AxialSlices, axial_slices
from harness.core.errors import OutOfRange
from harness.core.types import Cohort


@pytest.fixture
def logits() -> np.ndarray:
    """(5, 2, 4, 3) float32, from tiny to huge."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(5, 2, 4, 3)) * 10.0 ** rng.integers(-2, 3, (5, 1, 4, 3))).astype(np.float32)


def test_channels_are_named_in_order() -> None:
    """The order that is typed is the order of the input channels, and only they are read."""
    view = axial_slices(channels="T2w+FLAIR+T1w")
    assert view.channels == view.images == ("T2w", "FLAIR", "T1w")


@pytest.mark.parametrize("channels", ["", "T2w+", "T2w+T2w"])
def test_channels_that_make_no_sense(channels: str) -> None:
    """Empty and repeated sequences are refused."""
    with pytest.raises(OutOfRange, match=r"different sequences joined by '\+', like T2w\+FLAIR; got"):
        axial_slices(channels=channels)


def test_items_are_the_slices(toy_cohort: Cohort) -> None:
    """Item z, channel c is the axial slice z of sequence c, and its target the slice of the mask."""
    sample = toy_cohort.samples[1]
    items = AxialSlices(("FLAIR", "T2w")).items(sample)
    x, y, z = sample.masks["target"].shape
    assert items.inputs.shape == (z, 2, x, y) and items.inputs.dtype == np.float32
    assert items.targets.shape == (z, x, y) and items.targets.dtype == np.int64
    for number in range(z):
        assert np.array_equal(items.inputs[number, 0], sample.images["FLAIR"].load()[:, :, number])
        assert np.array_equal(items.inputs[number, 1], sample.images["T2w"].load()[:, :, number])
        assert np.array_equal(items.targets[number], sample.masks["target"].load()[:, :, number])


def test_slices_go_back_to_the_volume(toy_cohort: Cohort) -> None:
    """Maps that equal the inputs come back as the images themselves."""
    sample = toy_cohort.samples[1]
    view = AxialSlices(("FLAIR", "T2w"))
    volume = view.volume(view.items(sample).inputs)
    assert np.array_equal(volume, np.stack([sample.images[name].load() for name in ("FLAIR", "T2w")]))


def test_probability_is_the_softmax_of_the_lesion(logits: np.ndarray, toy_cohort: Cohort) -> None:
    """Reference: scipy's softmax over the classes, back in (X, Y, Z)."""
    probability = AxialSlices(("T2w",)).prediction(logits, toy_cohort.samples[0])["probability"]
    assert probability.dtype == np.float32
    expected = np.moveaxis(softmax(logits.astype(np.float64), axis=1)[:, 1], 0, -1)
    np.testing.assert_allclose(probability, expected, rtol=1e-6, atol=1e-12)


def test_evidence_is_the_sum_of_log_odds(logits: np.ndarray) -> None:
    """Replica: Σ −log P(background) over the slice's voxels, one number per slice."""
    found = AxialSlices(("T2w",)).scalars(torch.from_numpy(logits))
    expected = -log_softmax(logits.astype(np.float64), axis=1)[:, 0].sum((1, 2))
    assert found.shape == (5, 1)
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-5)
