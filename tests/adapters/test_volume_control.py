"""Adjustments of masks and scores: fitted to training subjects, inverted for predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression

from harness.adapters.volume_control import Adjustment, fit_adjustment, fit_volume_line, unit_length
from harness.core.errors import OutOfRange
from harness.core.types import Array


def _data(n: int = 30) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(7)
    masks = rng.random((n, 3, 4, 2)) < rng.uniform(0.1, 0.9, n)[:, None, None, None]
    volumes = masks.sum(axis=(1, 2, 3)).astype(float)
    targets = 0.02 * volumes[:, None] * [1.0, 3.0] + rng.normal(size=(n, 2))
    return masks, targets, volumes


def _all(adjustment: Adjustment, masks: Array, targets: Array, volumes: Array) -> tuple[Array, Array]:
    """Adjusted masks and adjusted scores of all subjects."""
    adjusted_masks = [adjustment.mask(mask, volume) for mask, volume in zip(masks, volumes, strict=True)]
    adjusted_targets = [adjustment.targets(row, volume) for row, volume in zip(targets, volumes, strict=True)]
    return np.array(adjusted_masks), np.array(adjusted_targets)


def test_line_is_ordinary_least_squares() -> None:
    """The fitted line agrees with scikit-learn's linear regression, also when masks come from a generator."""
    masks, _, volumes = _data()
    line = fit_volume_line((mask for mask in masks), volumes)
    reference = LinearRegression().fit(volumes[:, None], masks.reshape(30, -1))
    np.testing.assert_allclose(line.slope.ravel(), reference.coef_.ravel(), atol=1e-12)
    np.testing.assert_allclose(line.intercept.ravel(), reference.intercept_, atol=1e-12)


@pytest.mark.parametrize("control", ["regress_behaviour", "regress_lesion", "regress_both"])
def test_residuals_of_training_subjects_do_not_follow_volume(control: Any) -> None:
    """Regressed values are uncorrelated with volume in training subjects; other values are unchanged."""
    masks, targets, volumes = _data()
    x, y = _all(fit_adjustment(control, masks, targets, volumes), masks, targets, volumes)
    steps = volumes - volumes.mean()
    if control == "regress_behaviour":
        assert np.array_equal(x, masks)
    else:
        np.testing.assert_allclose(np.tensordot(steps, x, 1), 0, atol=1e-9)
    if control == "regress_lesion":
        assert np.array_equal(y, targets)
    else:
        np.testing.assert_allclose(steps @ y, 0, atol=1e-9)


def test_held_out_subjects_are_adjusted_by_the_line_of_the_others() -> None:
    """Held-out subjects are adjusted by scikit-learn's regression line of the training subjects."""
    masks, targets, volumes = _data()
    adjustment = fit_adjustment("regress_both", masks[:20], targets[:20], volumes[:20])
    x, y = _all(adjustment, masks, targets, volumes)
    line = LinearRegression().fit(volumes[:20, None], np.c_[targets, masks.reshape(30, -1)][:20])
    expected = np.c_[targets, masks.reshape(30, -1)] - line.predict(volumes[:, None])
    np.testing.assert_allclose(np.c_[y, x.reshape(30, -1)], expected, atol=1e-12)


def test_direct_control_gives_unit_vectors() -> None:
    """Direct volume control scales each binary mask to unit length, and an empty mask stays empty."""
    masks, _, volumes = _data()
    masks[3], volumes[3] = 0, 0
    lengths = [np.linalg.norm(unit_length(mask, volume)) for mask, volume in zip(masks, volumes, strict=True)]
    assert lengths == pytest.approx([1.0] * 3 + [0.0] + [1.0] * 26)


@pytest.mark.parametrize("control", ["none", "regress_behaviour", "regress_both"])
@pytest.mark.parametrize("to_unit_range", [False, True])
def test_predictions_are_restored_to_the_scale_of_the_scores(control: Any, to_unit_range: bool) -> None:
    """``restored`` inverts the adjustment of the scores, also after saving and loading."""
    masks, targets, volumes = _data()
    made = fit_adjustment(control, masks, targets, volumes, to_unit_range=to_unit_range)
    adjustment = Adjustment.of_arrays(made.arrays())
    for row, volume in zip(targets, volumes, strict=True):
        np.testing.assert_allclose(adjustment.restored(adjustment.targets(row, volume), volume), row)


def test_training_subjects_give_the_range() -> None:
    """Training targets span 0 to 1; values of held-out subjects outside that range are not clipped."""
    values = np.array([[1.0], [3.0], [7.0], [0.0]])
    adjustment = fit_adjustment("none", [], values[:2], np.ones(2), to_unit_range=True)
    assert [float(adjustment.targets(row, 1.0)[0]) for row in values] == [0, 1, 3, -0.5]


def test_constant_training_score_is_refused() -> None:
    """A score that is constant in training is refused, and the message names the score, its value and the count."""
    with pytest.raises(OutOfRange, match=r"score 2 \(all 2\) over 2 subjects"):
        fit_adjustment("none", [], np.array([[1.0, 2.0], [3.0, 2.0]]), np.ones(2), to_unit_range=True)


def test_masks_are_not_read_where_they_are_not_regressed() -> None:
    """The masks are not read when only the scores are regressed."""
    masks, targets, volumes = _data()
    stream = iter(masks)
    fit_adjustment("regress_behaviour", stream, targets, volumes)
    assert len(list(stream)) == 30


def test_equal_volumes_give_a_slope_of_zero() -> None:
    """With equal volumes, the slope is zero and the intercept is the mean."""
    line = fit_volume_line(np.array([[1.0], [3.0]]), np.array([5.0, 5.0]))
    assert (line.slope.tolist(), line.intercept.tolist()) == ([0.0], [2.0])


@pytest.mark.parametrize(("subjects", "volumes"), [(2, 3), (3, 2), (0, 0)])
def test_number_of_volumes_must_match_the_masks(subjects: int, volumes: int) -> None:
    """A different number of volumes and masks, or none at all, is refused."""
    with pytest.raises(OutOfRange, match="one volume for each"):
        fit_volume_line(np.zeros((subjects, 2)), np.arange(volumes))
