"""Generated H&E patches."""

from __future__ import annotations

import numpy as np
from skimage.color import hed_from_rgb

from harness.simulation.histology import CENTRE, EOSIN, HAEMATOXYLIN, histology_phantom

SLIDES = [histology_phantom(0, number, patches=25) for number in range(6)]
PATCHES = [one for slide in SLIDES for one in slide]


def test_the_centre_decides_the_label() -> None:
    """A patch is positive if and only if tumour touches its central square; many negative ones have tumour outside."""
    start = (96 - CENTRE) // 2
    for one in PATCHES:
        centre = one.mask[start : start + CENTRE, start : start + CENTRE]
        assert one.covariates["label"] == int(centre.any())
        assert one.covariates["tumour_share"] == round(float(one.mask.mean()), 4)
    negative = [one for one in PATCHES if not one.covariates["label"]]
    outside = np.mean([one.mask.any() for one in negative])
    assert 0.15 < outside < 0.55 and 0.3 < np.mean([one.covariates["label"] for one in PATCHES]) < 0.7


def test_same_seed_same_patches() -> None:
    """A slide depends on the seed and its number only, and each patch on its own number too."""
    again = histology_phantom(0, 2, patches=3)
    for one, other in zip(again, SLIDES[2], strict=False):
        np.testing.assert_array_equal(one.image, other.image)
    assert not np.array_equal(histology_phantom(1, 2, patches=1)[0].image, again[0].image)


def test_tumour_has_more_haematoxylin_and_so_has_inflammation() -> None:
    """Nuclei of both are darker than ordinary tissue, so that darkness alone does not tell tumour."""
    of_stain = [-np.log10((one.image + 1.0) / 256) @ np.linalg.pinv(np.stack([HAEMATOXYLIN, EOSIN])) for one in PATCHES]
    inside = np.mean(
        [stain[one.mask, 0].mean() for stain, one in zip(of_stain, PATCHES, strict=True) if one.mask.any()]
    )
    plain = [one for one in zip(of_stain, PATCHES, strict=True) if not one[1].mask.any()]
    inflamed = np.mean([np.quantile(stain[..., 0], 0.99) for stain, one in plain if one.covariates["inflamed"]])
    calm = np.mean([np.quantile(stain[..., 0], 0.99) for stain, one in plain if not one.covariates["inflamed"]])
    ordinary = np.mean([stain[..., 0].mean() for stain, one in plain if not one.covariates["inflamed"]])
    assert inside > ordinary and inflamed > calm


def test_slides_differ_in_colour_more_than_their_patches() -> None:
    """Stain and light are those of the slide; without a shift, slides differ no more than patches."""
    means = np.array([[one.image.mean((0, 1)) for one in slide] for slide in SLIDES])
    alike = np.array(
        [[one.image.mean((0, 1)) for one in histology_phantom(0, n, patches=25, stain_shift=0.0)] for n in range(6)]
    )

    def ratio(colours: np.ndarray) -> float:
        return float((colours.mean(1).std(0) / colours.std(1).mean(0)).mean())

    assert ratio(means) > 1 > ratio(alike)


def test_stains_are_those_of_haematoxylin_and_eosin() -> None:
    """Colour deconvolution of scikit-image finds mainly two stains: the residual is small."""
    density = -np.log10((PATCHES[0].image + 1.0) / 256) @ np.array(hed_from_rgb)
    assert abs(density[..., 2].mean()) < 0.3 * density[..., :2].sum(-1).mean()
