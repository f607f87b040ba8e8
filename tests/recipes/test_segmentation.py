"""Segmentation: loss, selection value and the order of an epoch."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch.nn import functional

from harness.core.errors import CellError
from harness.core.targets import Target
from harness.recipes.recipe import Batch
from harness.recipes.segmentation import mean_iou, segmentation

MASK = Target("target", "mask")


def iou(outputs: torch.Tensor, labels: torch.Tensor) -> float:
    """Mean IoU of a mask target."""
    return mean_iou([({"target": outputs}, Batch((), {"target": labels}))], (MASK,))


def order(recipe_rng: np.random.Generator, labels: np.ndarray, **options: object) -> np.ndarray:
    """Indices of the slices in one epoch."""
    return segmentation(**options).sample(recipe_rng, {"target": labels})


@pytest.fixture
def targets() -> np.ndarray:
    """(20, 4, 5) int64 labels, in which six slices contain a lesion."""
    found = np.zeros((20, 4, 5), np.int64)
    found[[1, 2, 5, 8, 13, 19], 2, 3] = 1
    return found


@pytest.mark.parametrize("seed", range(3))
def test_mean_iou_agrees_with_sklearn(seed: int) -> None:
    """The mean IoU agrees with scikit-learn's macro Jaccard score over all voxels."""
    rng = np.random.default_rng(seed)
    outputs, truth = rng.normal(size=(7, 2, 4, 5)), rng.integers(0, 2, (7, 4, 5))
    found = iou(torch.from_numpy(outputs), torch.from_numpy(truth))
    assert found == pytest.approx(jaccard_score(truth.ravel(), outputs.argmax(1).ravel(), average="macro"))


def test_mean_iou_does_not_depend_on_the_batches() -> None:
    """Voxels are counted over all batches; the mean IoU is not that of the batches."""
    rng = np.random.default_rng(0)
    outputs, truth = torch.from_numpy(rng.normal(size=(7, 2, 4, 5))), torch.from_numpy(rng.integers(0, 2, (7, 4, 5)))
    parts = [
        ({"target": outputs[part]}, Batch((), {"target": truth[part]})) for part in (slice(0, 4), slice(4, 6), [6])
    ]
    assert mean_iou(iter(parts), (MASK,)) == iou(outputs, truth)


def test_mean_iou_by_hand() -> None:
    """With one lesion voxel found and one missed of four voxels, the mean IoU is (2/3 + 1/2) / 2."""
    outputs = torch.tensor([[[[0.0, 1, 1, 1]], [[1.0, 0, 0, 0]]]])
    assert iou(outputs, torch.tensor([[[1, 1, 0, 0]]])) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_mean_iou_of_an_absent_class() -> None:
    """A class that occurs in neither mask has an IoU of 1."""
    outputs = torch.tensor([[[[1.0, 1]], [[0.0, 0]]]])
    assert iou(outputs, torch.tensor([[[0, 0]]])) == 1.0


def test_loss_is_the_weighted_cross_entropy() -> None:
    """The loss is the cross-entropy with a weight for lesions, divided by the sum of weights."""
    rng = np.random.default_rng(0)
    outputs, truth = rng.normal(size=(3, 2, 4, 5)), rng.integers(0, 2, (3, 4, 5))
    logs = outputs - np.log(np.exp(outputs).sum(1, keepdims=True))
    weights = np.where(truth == 1, 5.0, 1.0)
    expected = -(weights * np.take_along_axis(logs, truth[:, None], 1)[:, 0]).sum() / weights.sum()
    batch = Batch((), {"target": torch.from_numpy(truth)})
    found = segmentation(lesion_weight=5.0).loss({"target": torch.from_numpy(outputs).float()}, batch, (MASK,))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_balanced_epoch_draws_as_many_background_as_lesion_slices(targets: np.ndarray) -> None:
    """Six slices contain a lesion, so six different background slices are drawn."""
    drawn = order(np.random.default_rng(0), targets, copies=1, balance=True)
    lesion = targets.any((1, 2))[drawn]
    assert (lesion.sum(), (~lesion).sum()) == (6, 6)
    assert len(set(drawn.tolist())) == 12


def test_balance_repeats_scarce_background(targets: np.ndarray) -> None:
    """With fewer background than lesion slices, background slices are drawn repeatedly."""
    few = targets[[1, 2, 5, 8, 0]]
    drawn = order(np.random.default_rng(0), few, copies=1, balance=True)
    assert sorted(drawn.tolist()) == [0, 1, 2, 3, 4, 4, 4, 4]


def test_copies_repeat_every_slice(targets: np.ndarray) -> None:
    """Every slice occurs as often as there are copies."""
    drawn = order(np.random.default_rng(0), targets, copies=3, balance=False)
    assert np.array_equal(np.bincount(drawn), np.full(20, 3))


@pytest.mark.parametrize("lesions", [True, False])
def test_epoch_without_one_of_the_kinds(targets: np.ndarray, lesions: bool) -> None:
    """If all slices are of one kind, each is drawn once."""
    of_a_kind = targets[targets.any((1, 2)) == lesions]
    drawn = order(np.random.default_rng(0), of_a_kind, copies=1, balance=True)
    assert sorted(drawn.tolist()) == list(range(len(of_a_kind)))


def test_epochs_are_shuffled(targets: np.ndarray) -> None:
    """Epochs have different orders, which depend on the generator."""
    rng = np.random.default_rng(0)
    first, second, again = (
        order(one, targets, copies=1, balance=False) for one in (rng, rng, np.random.default_rng(0))
    )
    assert not np.array_equal(first, second) and np.array_equal(first, again)


def test_no_augmentation_returns_the_same_batch() -> None:
    """With ``augmentation="none"``, the batch is returned without resampling."""
    batch = Batch((torch.ones(2, 1, 4, 4),), {"target": torch.ones(2, 4, 4, dtype=torch.int64)})
    assert segmentation(augmentation="none").augment(np.random.default_rng(0), batch) is batch


def test_augmentation_moves_inputs_and_labels_together() -> None:
    """Inputs and labels are moved together, and weights stay with their items."""
    labels = torch.zeros(6, 8, 8, dtype=torch.int64)
    labels[:, 2:4, 5:7] = 1
    batch = Batch((labels[:, None].float(),), {"target": labels}, {"target": torch.arange(6.0)})
    found = segmentation(augmentation="joint", max_angle_deg=0, max_shift_px=2).augment(
        np.random.default_rng(0), dataclasses.replace(batch)
    )
    moved = found.targets["target"]
    assert not torch.equal(moved, labels)
    assert int(((found.inputs[0][:, 0] > 0.5) != (moved > 0)).sum()) <= 6
    assert torch.equal(found.weights["target"], batch.weights["target"])


def test_weights_of_samples_multiply_the_losses_of_their_slices() -> None:
    """Losses of slices are multiplied by the weights of their samples."""
    rng = np.random.default_rng(0)
    outputs, truth = torch.from_numpy(rng.normal(size=(3, 2, 4, 5))), torch.from_numpy(rng.integers(0, 2, (3, 4, 5)))
    weights = torch.tensor([1.0, 0.0, 2.5])
    of_class = torch.tensor([1.0, 5.0], dtype=torch.float64)
    each = [functional.cross_entropy(outputs[[i]], truth[[i]], weight=of_class, reduction="sum") for i in range(3)]
    expected = sum(float(weights[i] * each[i]) for i in range(3)) / float(of_class[truth].sum())
    loss = segmentation(lesion_weight=5.0).loss
    batch = Batch((), {"target": truth}, {"target": weights})
    assert float(loss({"target": outputs.float()}, batch, (MASK,))) == pytest.approx(expected, rel=1e-5)


def test_weights_of_one_change_nothing() -> None:
    """Weights of 1 give the same loss as no weights."""
    outputs = {"target": torch.from_numpy(np.random.default_rng(0).normal(size=(3, 2, 4, 5))).float()}
    labels = {"target": torch.ones(3, 4, 5, dtype=torch.int64)}
    loss = segmentation(lesion_weight=5.0).loss
    plain, stated = (loss(outputs, Batch((), labels, more), (MASK,)) for more in ({}, {"target": torch.ones(3)}))
    torch.testing.assert_close(stated, plain)


def test_other_targets_are_refused() -> None:
    """Targets of another kind than mask are refused."""
    batch = Batch((), {"target": torch.ones(1, 2, 2, dtype=torch.int64), "age": torch.ones(1)})
    with pytest.raises(CellError, match=r"segmentation trains targets of kind mask, got age \(number\); use recipe="):
        segmentation().loss({"target": torch.ones(1, 2, 2, 2)}, batch, (MASK, Target("age", "number")))


def test_select_last_has_no_selection_value() -> None:
    """With ``select="last"``, there is no selection value."""
    assert segmentation(select="last").select is None
    assert segmentation().select is mean_iou
