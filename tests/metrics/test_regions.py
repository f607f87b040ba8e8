"""Restriction of metric inputs to regions, with whole lesions assigned by their centre."""

from __future__ import annotations

import numpy as np
import pytest

from harness.core.errors import OutOfRange, RequestError
from harness.core.registry import METRICS
from harness.metrics.metric_inputs import MetricInputs, find_lesions
from harness.metrics.regions import restrict, within
from harness.metrics.register import evaluate


@pytest.fixture
def halves():
    """Region 1 has x < 10 and region 2 the rest."""
    regions = np.ones((20, 18, 16), dtype=np.int16)
    regions[10:] = 2
    return regions


def test_lesion_across_a_border_belongs_to_the_region_of_its_centre(halves, spacing_mm):
    """Voxels 8 to 13 have their centre at 10.5, so the whole lesion belongs to region 2."""
    mask = np.zeros(halves.shape, dtype=bool)
    mask[8:14, 4, 4] = True
    mask[2, 9, 9] = True
    lesions = find_lesions(mask, spacing_mm)
    first, second = (restrict(mask, lesions, halves, value) for value in (1, 2))
    assert np.argwhere(first).tolist() == [[2, 9, 9]]
    assert np.argwhere(second)[:, 0].tolist() == [8, 9, 10, 11, 12, 13]


def test_every_lesion_belongs_to_one_region(blobs, halves, spacing_mm):
    """Every lesion voxel belongs to exactly one region."""
    mask = blobs(0)
    lesions = find_lesions(mask, spacing_mm)
    parts = [restrict(mask, lesions, halves, value) for value in (1, 2)]
    np.testing.assert_array_equal(np.add(*[part.astype(int) for part in parts]), mask.astype(int))
    assert sum(find_lesions(part, spacing_mm).count for part in parts) == lesions.count


def test_missing_region_is_empty(blobs, halves, spacing_mm):
    """A region that does not exist contains no lesions."""
    mask = blobs(0)
    assert not restrict(mask, find_lesions(mask, spacing_mm), halves, 7).any()


def test_an_empty_mask_stays_empty(halves, spacing_mm):
    """An empty mask stays empty."""
    mask = np.zeros(halves.shape, dtype=bool)
    assert not restrict(mask, find_lesions(mask, spacing_mm), halves, 1).any()


def test_shapes_must_agree(blobs, spacing_mm):
    """Masks and regions of different shapes are refused, and the message shows all shapes."""
    mask = blobs(0)
    with pytest.raises(OutOfRange, match=r"regions \(2, 2, 2\); resample the label image"):
        restrict(mask, find_lesions(mask, spacing_mm), np.ones((2, 2, 2), dtype=int), 1)


def test_counts_of_regions_add_up(blobs, halves, spacing_mm):
    """Lesion counts within regions sum to the count of the whole image."""
    inputs = MetricInputs(prediction=blobs(0), target=blobs(1), spacing_mm=spacing_mm)
    count = METRICS.get("true_count").function
    parts = [evaluate(count, within(inputs, halves, value)) for value in (1, 2)]
    assert sum(parts) == evaluate(count, inputs)
    assert min(parts) > 0


def test_brain_of_a_region_is_the_intersection(blobs, halves, spacing_mm):
    """The brain of a region is the intersection of brain and region."""
    brain = np.zeros(halves.shape, dtype=bool)
    brain[5:15] = True
    given = {"prediction": blobs(0), "target": blobs(1), "spacing_mm": spacing_mm}
    assert np.unique(np.argwhere(within(MetricInputs(**given, brain=brain), halves, 1).brain)[:, 0]).tolist() == [
        5,
        6,
        7,
        8,
        9,
    ]
    np.testing.assert_array_equal(within(MetricInputs(**given), halves, 2).brain, halves == 2)


def test_a_region_needs_both_masks(blobs, halves, spacing_mm):
    """Without a prediction, restricting to a region raises an error."""
    with pytest.raises(RequestError, match="needs `prediction`, `target` and `spacing_mm`"):
        within(MetricInputs(target=blobs(0), spacing_mm=spacing_mm), halves, 1)
