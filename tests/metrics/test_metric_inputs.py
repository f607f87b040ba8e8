"""Metric inputs and the lesions derived from masks."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from harness.core.errors import OutOfRange, UnknownName
from harness.metrics.metric_inputs import METRIC_INPUTS, MetricInputs, find_lesions


def test_lesions_agree_with_scipy(blobs, spacing_mm):
    """Labels, sizes and centroids agree with scipy's 26-connected labelling."""
    mask = blobs(0)
    lesions = find_lesions(mask, spacing_mm)
    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    assert lesions.count == count > 5
    for label in range(1, count + 1):
        ours = lesions.labels[labels == label]
        assert len(set(ours)) == 1
        number = ours[0] - 1
        assert lesions.sizes_voxels[number] == np.count_nonzero(labels == label)
        centre = ndimage.center_of_mass(mask, labels, label)
        np.testing.assert_allclose(lesions.centroids_mm[number], np.multiply(centre, spacing_mm), atol=1e-9)


def test_voxels_that_touch_by_a_corner_are_one_lesion():
    """Diagonal neighbours belong to one lesion, and voxels two steps apart do not."""
    mask = np.zeros((5, 5, 5), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 3, 3] = True
    lesions = find_lesions(mask, (1, 1, 1))
    assert lesions.count == 2
    assert sorted(lesions.sizes_voxels) == [1, 2]


def test_centre_voxel_holds_the_centroid():
    """The centre voxel is the rounded centroid, whatever the spacing; halves are rounded up."""
    mask = np.zeros((6, 6, 6), dtype=bool)
    mask[1:3, 2, 3:6] = True
    lesions = find_lesions(mask, (2.0, 3.0, 0.5))
    assert lesions.centre_voxels.tolist() == [[2, 2, 4]]
    assert lesions.centroids_mm.tolist() == [[3.0, 6.0, 2.0]]


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_layout_does_not_matter(blobs, spacing_mm, order):
    """A mask in Fortran order has the same lesions as in C order."""
    mask = blobs(1)
    one, other = find_lesions(mask, spacing_mm), find_lesions(np.array(mask, order=order), spacing_mm)
    np.testing.assert_array_equal(one.labels, other.labels)


def test_empty_mask_has_no_lesions():
    """An empty mask gives empty arrays of the correct shape."""
    lesions = find_lesions(np.zeros((4, 5, 6), dtype=bool), (1, 1, 1))
    assert lesions.count == 0
    assert lesions.centroids_mm.shape == lesions.centre_voxels.shape == (0, 3)
    assert lesions.labels.shape == (4, 5, 6)


def test_lesions_are_found_once(blobs, spacing_mm):
    """Lesions are computed once and then cached."""
    inputs = MetricInputs(target=blobs(0), spacing_mm=spacing_mm)
    assert inputs.get("target_lesions") is inputs.get("target_lesions")


def test_every_listed_name_is_supplied(blobs, spacing_mm):
    """Every name in ``METRIC_INPUTS`` is available if all values are given."""
    mask = blobs(0)
    inputs = MetricInputs(
        prediction=mask,
        probability=mask.astype(np.float32),
        target=mask,
        nuisance=mask,
        spacing_mm=spacing_mm,
        brain=np.ones_like(mask),
        explanation=np.zeros((2, *mask.shape)),
        channels=("T1w", "T2w"),
        rois=np.stack([mask, ~mask]),
        exact=mask.astype(float),
        target_score=0.5,
        predicted_score=0.25,
        clean_score=0.75,
        target_label=1,
        predicted_probability=0.5,
        predicted_logit=0.0,
        target_class=2,
        class_probabilities=np.array([0.2, 0.3, 0.5]),
        numbers={"weighted_r2": 0.5},
        image=np.zeros((3, *mask.shape)),
        image_channels=("T1w", "T2w", "FLAIR"),
        predict=lambda images: images.sum(axis=(1, 2, 3, 4)),
        predict_logit=lambda images: images.sum(axis=(1, 2, 3, 4)),
        covariates={"age": 40.0},
        exposed={"attention:T1w": 0.5},
        rng=np.random.default_rng(0),
        columns={"true_count": np.ones(3)},
    )
    assert [name for name in METRIC_INPUTS if inputs.get(name) is None] == []


def test_every_metric_gets_the_same_stream():
    """Each metric gets a fresh copy of the generator."""
    inputs = MetricInputs(rng=np.random.default_rng(7))
    assert inputs.get("rng").random() == inputs.get("rng").random()


def test_integer_mask_is_converted_to_bool():
    """An integer mask of zeros and ones is converted to bool."""
    mask = np.eye(3, dtype=np.uint8)[..., None]
    assert MetricInputs(target=mask).target.dtype == bool


def test_unknown_input_is_refused_with_suggestions():
    """An unknown metric input is refused with suggestions."""
    with pytest.raises(UnknownName, match=r"no metric input is named 'predictions'\. Near: prediction"):
        MetricInputs().get("predictions")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"prediction": np.zeros((2, 2, 2)), "target": np.zeros((2, 2, 3))},
            r"prediction \(2, 2, 2\), target \(2, 2, 3\)",
        ),
        ({"target": np.zeros((2, 2, 2)), "explanation": np.zeros((1, 2, 2, 3))}, r"without its channels \(2, 2, 3\)"),
        ({"explanation": np.zeros((3, 2, 2, 2)), "channels": ("T1w", "T2w")}, r"3 maps and 2 names \(T1w, T2w\)"),
        ({"target": np.full((2, 2, 2), 3)}, r"`target` must contain only 0 and 1, got 3"),
        ({"prediction": np.full((2, 2, 2), np.nan)}, r"`prediction` must contain only 0 and 1, got nan"),
        ({"probability": np.full((2, 2, 2), np.nan)}, r"`probability` must be finite everywhere, got 8 NaN"),
        ({"probability": np.full((2, 2, 2), 1.5)}, r"`0 <= probability <= 1` must hold, got 1\.5 to 1\.5"),
        ({"explanation": np.full((1, 2, 2, 2), np.inf)}, r"`explanation` must be finite everywhere, got 8"),
        ({"target": np.zeros((2, 2, 2)), "rois": np.zeros((3, 2, 2, 1))}, r"without their number \(2, 2, 1\)"),
        ({"rois": np.full((1, 2, 2, 2), 0.5)}, r"`rois` must contain only 0 and 1, got 0\.5"),
        ({"rois": np.zeros((2, 2, 2))}, r"`rois` must be \(R, X, Y, Z\) .* got shape \(2, 2, 2\)"),
        ({"target": np.zeros((4, 4))}, r"`target` must be \(X, Y, Z\) .* got shape \(4, 4\)"),
        ({"spacing_mm": (1, 0, 1)}, r"`spacing_mm` must be three positive numbers"),
        ({"spacing_mm": (1, 1)}, r"`spacing_mm` must be three positive numbers"),
        ({"target": np.zeros((2, 2, 2)), "image": np.zeros((3, 2, 2, 1))}, r"without its channels \(2, 2, 1\)"),
        ({"image": np.full((1, 2, 2, 2), np.nan)}, r"`image` must be finite everywhere, got 8 NaN"),
        ({"target_label": 0.5}, "`target_label` must be 0 or 1, got 0.5"),
        ({"predicted_probability": 1.5}, "`0 <= predicted_probability <= 1` must hold, got 1.5"),
        ({"predicted_probability": np.nan}, "`predicted_probability` must be a finite number, got nan"),
        ({"class_probabilities": [0.5, 1.5]}, r"`class_probabilities` must be .* got \[0.5, 1.5\]; apply the softmax"),
        ({"class_probabilities": [0.5, np.nan]}, r"`class_probabilities` must be .* got \[0.5, nan\]"),
        ({"class_probabilities": [[0.5, 0.5]]}, r"`class_probabilities` must be \(K,\) numbers"),
        ({"class_probabilities": [1.0]}, "of two classes or more"),
        ({"target_class": 2, "class_probabilities": [0.5, 0.5]}, "must be the index of one of the 2 classes, got 2"),
        ({"target_class": -1}, "`target_class` must be the index of a class, got -1"),
        ({"target_class": 0.5}, "`target_class` must be the index of a class, got 0.5"),
        ({"columns": {"a": np.zeros(2), "b": np.zeros(3)}}, r"a \(2,\), b \(3,\)"),
    ],
)
def test_invalid_inputs_are_refused(arrays, message):
    """Invalid arrays are refused, and the message names the array and the requirement."""
    with pytest.raises(OutOfRange, match=message):
        MetricInputs(**arrays)
