"""Generated patches of tissue: labels, masks, slides, stains and the facts that a network can use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from skimage.color import rgb2hed

from harness.core.types import Array
from harness.simulation.histology import CENTRE, EOSIN, HAEMATOXYLIN, _slide, histology_phantom
from harness.simulation.phantom import PhantomPicture

CENTRAL = (slice(32, 64), slice(32, 64))


def made(slides: int, **options: Any) -> list[PhantomPicture]:
    """Patches of several slides."""
    return [one for number in range(slides) for one in histology_phantom(0, number, **options)]


@pytest.fixture(scope="module")
def patches() -> list[PhantomPicture]:
    """Patches of twelve slides."""
    return made(12, patches=20)


def mask_of(one: PhantomPicture) -> Array:
    """The tumour."""
    assert one.mask is not None
    return one.mask


def test_shapes_and_covariates(patches: list[PhantomPicture]) -> None:
    """RGB uint8 patches of 96 × 96 pixels, with the tumour as mask and three covariates."""
    for one in patches:
        assert one.image.shape == (96, 96, 3) and one.image.dtype == np.uint8
        assert mask_of(one).shape == (96, 96) and mask_of(one).dtype == bool
        assert sorted(one.covariates) == ["inflamed", "label", "tumour_share"]
        assert one.covariates["tumour_share"] == pytest.approx(mask_of(one).mean(), abs=1e-4)


def test_label_is_that_of_the_centre(patches: list[PhantomPicture]) -> None:
    """A patch is positive if, and only if, tumour touches the central 32 × 32 pixels."""
    assert CENTRE == 32
    for one in patches:
        assert one.covariates["label"] == int(mask_of(one)[CENTRAL].any())


def test_negative_patches_may_have_tumour_outside_the_centre(patches: list[PhantomPicture]) -> None:
    """About a third of them; a network must learn where it looks."""
    negative = [mask_of(one).any() for one in patches if not one.covariates["label"]]
    low, high = 1 / 3 - 4 * np.sqrt(2 / 9 / len(negative)), 1 / 3 + 4 * np.sqrt(2 / 9 / len(negative))
    assert low < np.mean(negative) < high


def test_inflammation_is_no_tumour(patches: list[PhantomPicture]) -> None:
    """Clusters of dark nuclei occur in patches of both classes."""
    inflamed = {(one.covariates["label"], one.covariates["inflamed"]) for one in patches}
    assert inflamed == {(label, other) for label in (0, 1) for other in (0, 1)}


def test_slides_differ_in_prevalence() -> None:
    """By more than samples of one prevalence would."""
    rates = [
        np.mean([float(str(one.covariates["label"])) for one in histology_phantom(0, n, patches=20)]) for n in range(20)
    ]
    mean = np.mean(rates)
    assert np.var(rates) > 1.5 * mean * (1 - mean) / 20


def test_slides_differ_in_stain(patches: list[PhantomPicture]) -> None:
    """Mean colours vary more between slides than within them; without ``stain_shift`` they do not."""

    def ratio(several: list[PhantomPicture]) -> float:
        colours = np.array([one.image.mean(axis=(0, 1)) for one in several]).reshape(-1, 20, 3)
        return float((colours.mean(axis=1).var(axis=0) / colours.var(axis=1).mean(axis=0)).mean())

    # Means of 20 patches that are drawn alike have a twentieth of their variance.
    assert ratio(patches) > 1 and ratio(made(12, patches=20, stain_shift=0.0)) < 0.15


def test_stains_lie_between_those_of_ruifrok_and_macenko() -> None:
    """Half way between the published vectors."""
    ruifrok = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    macenko = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
    np.testing.assert_allclose(np.stack([HAEMATOXYLIN, EOSIN]), (ruifrok + macenko) / 2, atol=2e-3)


def test_tumour_has_more_haematoxylin_in_larger_nuclei() -> None:
    """Colour deconvolution finds more haematoxylin in tumour; runs of dark pixels are longer there."""
    inside, outside, longest = [], [], {True: [], False: []}
    for one in made(6, patches=20, stain_shift=0.0):
        haematoxylin = rgb2hed(one.image)[..., 0]
        mask = mask_of(one)
        if mask.mean() < 0.1:
            continue
        inside.append(haematoxylin[mask].mean())
        outside.append(haematoxylin[~mask].mean())
        dark = haematoxylin > np.quantile(haematoxylin, 0.8)
        for where in (True, False):
            rows = (dark & (mask == where)).astype(int)
            edges = np.diff(np.pad(rows, ((0, 0), (1, 1))), axis=1)
            starts, ends = np.argwhere(edges == 1)[:, 1], np.argwhere(edges == -1)[:, 1]
            longest[where].append(np.quantile(ends - starts, 0.9))
    assert np.mean(inside) > np.mean(outside)
    assert np.mean(longest[True]) > 1.2 * np.mean(longest[False])


def test_patches_depend_on_seed_and_slide_alone() -> None:
    """More patches of a slide do not change the first ones."""
    first, again = histology_phantom(3, 2, patches=3), histology_phantom(3, 2, patches=5)[:3]
    for one, other in zip(first, again, strict=True):
        assert one.id == other.id and np.array_equal(one.image, other.image)
    assert not np.array_equal(first[0].image, histology_phantom(4, 2, patches=1)[0].image)
    assert not np.array_equal(first[0].image, histology_phantom(3, 1, patches=1)[0].image)


def test_slide_without_shift_is_the_reference() -> None:
    """The same stains for every slide; its prevalence still differs."""
    one, other = (_slide(np.random.default_rng(seed), 0.0) for seed in (0, 1))
    np.testing.assert_array_equal(one.stains, other.stains)
    np.testing.assert_array_equal(one.light, 1.0)
    assert (one.blur, one.strengths.tolist()) == (0.5, [1.0, 1.0]) and one.prevalence != other.prevalence


def test_subjects_are_slides(patches: list[PhantomPicture]) -> None:
    """So that a split keeps the patches of a slide together."""
    assert len({one.subject for one in patches}) == 12
    assert all(one.id.rpartition("_")[0] == one.subject for one in patches)
