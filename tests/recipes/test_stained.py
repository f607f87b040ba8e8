"""Stain augmentation."""

from __future__ import annotations

import numpy as np
import torch
from skimage.color import hed2rgb, rgb2hed

from harness.recipes.recipe import Batch
from harness.recipes.stained import _restained, augmented, stained_pictures

IMAGES = 0.2 + 0.7 * torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_unchanged_amounts_give_the_same_picture() -> None:
    """Factors of 1 and shifts of 0 leave pictures unchanged."""
    torch.testing.assert_close(_restained(IMAGES, torch.ones(6, 3), torch.zeros(6, 3)), IMAGES, atol=1e-5, rtol=0)


def test_amounts_are_those_of_scikit_image() -> None:
    """Changing the amount of eosin equals the change by colour deconvolution in scikit-image."""
    amounts = rgb2hed(np.moveaxis(IMAGES[0].numpy().astype(float), 0, -1))
    # scikit-image clips negative amounts and takes the logarithm to the base 1e-6, i.e. 6 decades.
    plain = np.moveaxis(IMAGES[0].double().numpy(), 0, -1)
    from skimage.color import hed_from_rgb, rgb_from_hed

    own = -np.log10(plain) @ hed_from_rgb
    np.testing.assert_allclose(np.maximum(own, 0) / 6, amounts, atol=1e-9)
    own[..., 1] = own[..., 1] * 1.1 + 0.02
    expected = np.clip(10 ** -(own @ rgb_from_hed), 0, 1)
    found = _restained(IMAGES[:1].double(), torch.tensor([[1.0, 1.1, 1.0]]), torch.tensor([[0.0, 0.02, 0.0]]))
    np.testing.assert_allclose(np.moveaxis(found[0].numpy(), 0, -1), expected, atol=1e-9)
    assert hed2rgb(amounts).shape == plain.shape


def test_flips_and_turns_keep_the_pixels() -> None:
    """Without stains, augmentation only moves pixels; the same stream gives the same pictures."""
    batch = Batch((IMAGES,), {"tumour": torch.arange(6.0)})
    found = augmented(np.random.default_rng(0), batch, flips=True, quarter_turns=True, stain=0.0)
    again = augmented(np.random.default_rng(0), batch, flips=True, quarter_turns=True, stain=0.0)
    assert torch.equal(found.inputs[0], again.inputs[0]) and not torch.equal(found.inputs[0], IMAGES)
    assert torch.equal(found.inputs[0].flatten(2).sort(2).values, IMAGES.flatten(2).sort(2).values)
    assert torch.equal(found.targets["tumour"], batch.targets["tumour"])


def test_stains_change_colours_within_the_range() -> None:
    """Pictures differ in colour, stay in [0, 1], and no flip or turn is made unless asked for."""
    batch = Batch((IMAGES, torch.ones(6, 1)))
    found = augmented(np.random.default_rng(0), batch, flips=False, quarter_turns=False, stain=0.1)
    assert float(found.inputs[0].min()) >= 0 and float(found.inputs[0].max()) <= 1
    change = (found.inputs[0] - IMAGES).abs()
    assert 1e-3 < float(change.mean()) < 0.2 and torch.equal(found.inputs[1], batch.inputs[1])


def test_recipe_has_the_options_of_supervised_training() -> None:
    """The recipe is the supervised one with another augmentation."""
    recipe = stained_pictures(epochs=3, batch_size=5, balance="tumour")
    assert (recipe.epochs, recipe.batch_size) == (3, 5) and recipe.select is not None
    order = recipe.sample(np.random.default_rng(0), {"tumour": np.array([0.0] * 90 + [1.0] * 10)})
    assert 30 < (order >= 90).sum() < 70
