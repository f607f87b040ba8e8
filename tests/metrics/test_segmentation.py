"""Voxel-wise metrics against scikit-learn, MONAI and hand-worked numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score, recall_score, roc_auc_score

from harness.core.errors import OutOfRange, RequestError
from harness.metrics import compute


@pytest.fixture
def by_hand():
    """Eight voxels: TP = 2, FP = 1, FN = 2, TN = 3."""
    target = np.array([1, 1, 1, 1, 0, 0, 0, 0], dtype=bool).reshape(2, 2, 2)
    prediction = np.array([1, 1, 0, 0, 1, 0, 0, 0], dtype=bool).reshape(2, 2, 2)
    return prediction, target


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dice", 4 / 7),
        ("volumetric_similarity", 1 - 1 / 7),
        ("auc", (2 / 4 - 1 / 4 + 1) / 2),
        ("voxel_sensitivity", 2 / 4),
        ("voxel_precision", 2 / 3),
    ],
)
def test_values_worked_by_hand(by_hand, name, value):
    """With TP = 2, FP = 1, FN = 2 and TN = 3, values agree with those worked out by hand."""
    prediction, target = by_hand
    assert compute(name, prediction=prediction, target=target) == pytest.approx(value)


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("dice", f1_score),
        ("auc", balanced_accuracy_score),
        ("voxel_sensitivity", recall_score),
        ("voxel_precision", precision_score),
    ],
)
def test_overlap_agrees_with_scikit_learn(blobs, name, reference):
    """Overlap metrics agree with scikit-learn."""
    prediction, target = blobs(0) | blobs(2), blobs(0) | blobs(1)
    expected = reference(target.ravel(), prediction.ravel())
    assert compute(name, prediction=prediction, target=target) == pytest.approx(expected)


def test_dice_agrees_with_monai(blobs):
    """Dice agrees with MONAI."""
    prediction, target = blobs(0) | blobs(2), blobs(0) | blobs(1)
    expected = DiceMetric()(
        torch.from_numpy(prediction)[None, None].float(), torch.from_numpy(target)[None, None].float()
    )
    assert compute("dice", prediction=prediction, target=target) == pytest.approx(expected.item(), abs=1e-6)


def test_hard_auc_is_the_roc_area_of_the_mask(blobs):
    """The ROC area of a mask agrees with scikit-learn: (TPR − FPR + 1) / 2."""
    prediction, target = blobs(0) | blobs(2), blobs(0)
    expected = roc_auc_score(target.ravel(), prediction.ravel())
    assert compute("auc", prediction=prediction, target=target) == pytest.approx(expected)


def test_soft_auc_counts_concordant_pairs(by_hand):
    """The soft area is the share of (true, false) voxel pairs in the correct order."""
    prediction, target = by_hand
    probability = np.array([0.9, 0.8, 0.4, 0.3, 0.8, 0.2, 0.1, 0.3], dtype=np.float32).reshape(2, 2, 2)
    pairs = [(true > false) + 0.5 * (true == false) for true in probability[target] for false in probability[~target]]
    value = compute("auc", prediction=prediction, target=target, probability=probability, soft=True)
    assert value == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("decimals", [1, 2, 9])
def test_soft_auc_is_the_roc_area_of_the_probability(blobs, decimals):
    """The soft area agrees with scikit-learn for probabilities with many, few and no ties."""
    prediction, target = blobs(0) | blobs(2), blobs(0)
    noise = np.random.default_rng(3).normal(size=target.shape)
    probability = np.round(1 / (1 + np.exp(noise - 2.0 * target)), decimals).astype(np.float32)
    expected = roc_auc_score(target.ravel(), probability.ravel())
    value = compute("auc", prediction=prediction, target=target, probability=probability, soft=True)
    assert value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("soft", [False, True])
def test_auc_inside_the_brain_sees_only_the_brain(blobs, soft):
    """With ``inside="brain"``, voxels outside the brain have no effect."""
    target, prediction = blobs(0), blobs(0) | blobs(1)
    brain = np.zeros_like(target)
    brain[3:15, 2:16, 1:14] = True
    given = {"prediction": prediction, "probability": prediction * 0.7 + 0.1, "target": target}
    value = compute("auc", **given, brain=brain, soft=soft, inside="brain")
    cropped = {name: array[3:15, 2:16, 1:14] for name, array in given.items()}
    assert value == pytest.approx(compute("auc", **cropped, soft=soft))
    assert value != pytest.approx(compute("auc", **given, soft=soft))


def test_auc_names_a_missing_array(by_hand):
    """An option that needs a missing array raises an error that names it."""
    prediction, target = by_hand
    with pytest.raises(RequestError, match="inside=brain needs `brain`"):
        compute("auc", prediction=prediction, target=target, inside="brain")
    with pytest.raises(RequestError, match="soft=true needs `probability`"):
        compute("auc", prediction=prediction, target=target, soft=True)


def test_auc_refuses_an_unknown_value_of_inside(by_hand):
    """An unknown value of ``inside`` is refused, and the message lists the valid ones."""
    prediction, target = by_hand
    with pytest.raises(OutOfRange, match="inside of metric auc must be one of volume, brain, got 'brian'"):
        compute("auc", prediction=prediction, target=target, inside="brian")


def test_volumetric_similarity_ignores_position():
    """Volumetric similarity does not depend on position: disjoint masks of equal size score 1 and Dice 0."""
    target = np.zeros((4, 4, 4), dtype=bool)
    target[0, 0, :2] = True
    moved = np.roll(target, 2, axis=0)
    assert compute("volumetric_similarity", prediction=moved, target=target) == 1
    assert compute("dice", prediction=moved, target=target) == 0


@pytest.mark.parametrize(
    ("name", "both", "no_prediction", "no_target"),
    [
        ("dice", np.nan, 0, 0),
        ("volumetric_similarity", np.nan, 0, 0),
        ("auc", np.nan, 0.5, np.nan),
        ("voxel_sensitivity", np.nan, 0, np.nan),
        ("voxel_precision", np.nan, np.nan, 0),
    ],
)
def test_empty_masks(blobs, name, both, no_prediction, no_target):
    """With both masks, the prediction or the target empty, values are those documented."""
    some, none = blobs(0), np.zeros_like(blobs(0))
    values = [compute(name, prediction=p, target=t) for p, t in ((none, none), (none, some), (some, none))]
    np.testing.assert_equal(values, [both, no_prediction, no_target])


def test_volumes_count_the_voxel_size():
    """Volumes account for the voxel size: three voxels of 1 × 0.8 × 2 mm are 4.8 mm³."""
    mask = np.zeros((3, 3, 3), dtype=bool)
    mask[0, 0] = True
    assert compute("true_volume_mm3", target=mask, spacing_mm=(1, 0.8, 2)) == pytest.approx(4.8)
    assert compute("predicted_volume_mm3", prediction=mask, spacing_mm=(1, 0.8, 2)) == pytest.approx(4.8)


def test_random_voxels_have_the_precision_of_the_prevalence(blobs):
    """A random prediction scores the declared chance level."""
    target = blobs(0)
    random = np.random.default_rng(0).random(target.shape) < 0.5
    chance = compute("prevalence", target=target)
    assert compute("voxel_precision", prediction=random, target=target) == pytest.approx(chance, abs=0.01)
    assert compute("auc", prediction=random, target=target) == pytest.approx(0.5, abs=0.04)
