"""Stain augmentation: flips, quarter turns, and changes of the stains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.color import hed2rgb, rgb2hed, rgb_from_hed

from harness.recipes.recipe import Batch
from harness.recipes.stained import _restained, augmented, stained_pictures


def batch(count: int = 16, shape: tuple[int, int] = (6, 6)) -> Batch:
    """Images away from black and white, and a scalar input."""
    images = torch.from_numpy(np.random.default_rng(0).uniform(0.3, 0.9, (count, 3, *shape)).astype(np.float32))
    return Batch((images, torch.ones(count, 1)), {"tumour": torch.arange(count)})


def test_unchanged_stains_give_the_same_image() -> None:
    """Deconvolution and mixing are inverse."""
    images = batch().inputs[0]
    same = _restained(images, torch.ones(16, 3), torch.zeros(16, 3))
    torch.testing.assert_close(same, images, atol=1e-4, rtol=0)


def test_stains_agree_with_scikit_image() -> None:
    """Amount · factor + shift in the space of ``rgb2hed``, which measures amounts in units of 6 optical densities."""
    amounts = np.random.default_rng(0).uniform(0.1, 0.4, (1, 6, 6, 3))  # scikit-image sets negative ones to 0
    images = torch.from_numpy(10 ** -(amounts @ rgb_from_hed)).permute(0, 3, 1, 2)
    factors, shifts = torch.tensor([[1.2, 0.9, 1.0]]), torch.tensor([[0.03, -0.02, 0.01]])
    found = _restained(images, factors, shifts)[0].permute(1, 2, 0).numpy()
    stains = rgb2hed(images[0].permute(1, 2, 0).numpy().astype(np.float64))
    expected = hed2rgb(stains * factors[0].numpy() + shifts[0].numpy() / 6)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("flips", "turns"), [(True, False), (False, True), (True, True)])
def test_flips_and_turns_move_pixels(flips: bool, turns: bool) -> None:
    """Each image keeps its pixels, and some images change."""
    before = batch(64)
    after = augmented(np.random.default_rng(1), before, flips=flips, quarter_turns=turns, stain=0.0)
    first, second = before.inputs[0].flatten(1), after.inputs[0].flatten(1)
    torch.testing.assert_close(first.sort(dim=1).values, second.sort(dim=1).values)
    changed = (first != second).any(dim=1).float().mean()
    assert 0.5 < float(changed) < 1


def test_pictures_that_are_not_square_are_not_turned() -> None:
    """Their shape is kept."""
    after = augmented(np.random.default_rng(1), batch(8, (4, 6)), flips=True, quarter_turns=True, stain=0.05)
    assert after.inputs[0].shape == (8, 3, 4, 6)


def test_only_images_change() -> None:
    """Scalar inputs, targets and weights are passed on."""
    before = batch()
    after = augmented(np.random.default_rng(1), before, flips=True, quarter_turns=True, stain=0.1)
    assert after.inputs[1] is before.inputs[1] and after.targets is before.targets
    assert not torch.equal(after.inputs[0], before.inputs[0])
    assert 0 <= float(after.inputs[0].min()) <= float(after.inputs[0].max()) <= 1


def test_nothing_to_do_leaves_images_unchanged() -> None:
    """Without flips, turns and stains."""
    before = batch()
    after = augmented(np.random.default_rng(1), before, flips=False, quarter_turns=False, stain=0.0)
    assert torch.equal(after.inputs[0], before.inputs[0])


def test_augmentation_depends_on_the_generator_alone() -> None:
    """Equal seeds give equal batches."""
    one, same, other = (
        stained_pictures().augment(np.random.default_rng(seed), batch()).inputs[0] for seed in (0, 0, 1)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_options_reach_the_recipe() -> None:
    """The rest is that of ``supervised``."""
    recipe = stained_pictures(epochs=3, batch_size=5, select="last")
    assert (recipe.epochs, recipe.batch_size, recipe.select) == (3, 5, None)
