"""The generated MS cohort: published counts, effects on tissue, visits, masks."""

from __future__ import annotations

import numpy as np
import pytest

from harness.core.errors import OutOfRange
from harness.simulation.ms import CONTRASTS, LIMITS, edss_of, ms_phantom, tract_share
from harness.simulation.phantom import PhantomSubject


@pytest.fixture(scope="module")
def cohort() -> list[list[PhantomSubject]]:
    """All patients of one seed."""
    return [ms_phantom(1, number) for number in range(166)]


def test_counts_are_those_of_the_publication(cohort: list[list[PhantomSubject]]) -> None:
    """166 patients, 66 with two visits, 66 with progressive disease, 40 with EDSS of 5 or more, median 2.5."""
    first = [visits[0].covariates for visits in cohort]
    edss = np.array([float(one["edss"]) for one in first])
    assert sum(len(visits) for visits in cohort) == 232
    assert (int((edss >= 5).sum()), float(np.median(edss))) == (40, 2.5)
    assert sum(one["ms_type"] == "PMS" for one in first) == 66
    assert set(np.unique(2 * edss)) <= set(range(16))
    ages = np.array([float(one["age"]) for one in first])
    assert abs(ages.mean() - 45.9) < 3 and abs(ages.std() - 14.3) < 3
    assert all(visits[1].covariates["age"] == visits[0].covariates["age"] + 2 for visits in cohort if len(visits) > 1)


def test_images_have_units_and_ranges(cohort: list[list[PhantomSubject]]) -> None:
    """Values are within their limits, and zero outside of the brain."""
    visit = cohort[0][0]
    brain = visit.masks["brain"][0] > 0
    for name in CONTRASTS:
        image, affine = visit.images[name]
        low, high = LIMITS[name]
        assert image.shape == (24, 28, 24) and low <= image.min() and image.max() <= high
        assert not image[~brain].any()
        np.testing.assert_allclose(np.diag(affine)[:3], 6.25)


def test_disability_changes_the_tract_as_stated() -> None:
    """Without noise, damage raises qT1 in the tract and lowers MWF and NDI, and nothing outside depends on it."""
    with_effect = [ms_phantom(0, number, noise=0.0)[0] for number in range(40)]
    without = [ms_phantom(0, number, noise=0.0, effect=0.0)[0] for number in range(40)]
    tract = with_effect[0].masks["tract"][0] > 0
    outside = tract_share((24, 28, 24)) == 0
    for name, sign in zip(CONTRASTS, (1, -1, -1), strict=True):
        changes = np.array([a.images[name][0] - b.images[name][0] for a, b in zip(with_effect, without, strict=True)])
        assert not changes[:, outside].any()
        edss = np.array([float(one.covariates["edss"]) for one in with_effect])
        assert sign * np.corrcoef(changes[:, tract].mean(1), edss)[0, 1] > 0.5


@pytest.mark.parametrize(("name", "expected"), [("qT1", 1.40), ("MWF", 0.71), ("NDI", 1.17)])
def test_effect_sizes_are_those_that_were_fixed(name: str, expected: float) -> None:
    """One standard deviation of damage in units of the tract's other variation."""
    from harness.simulation.ms import TRACT

    _, damage, other = TRACT[name]
    assert abs(damage) / other == pytest.approx(expected, abs=0.02)


def test_patients_are_reproducible_and_independent_of_the_number_drawn() -> None:
    """The same seed gives the same visits; another seed gives others."""
    one, again, other = ms_phantom(3, 7), ms_phantom(3, 7), ms_phantom(4, 7)
    assert one[0].covariates == again[0].covariates != other[0].covariates
    np.testing.assert_array_equal(one[0].images["NDI"][0], again[0].images["NDI"][0])


def test_larger_images_show_the_same_tract() -> None:
    """The volume of the tract does not depend on the voxel size."""
    small, large = (tract_share(shape).sum() / np.prod(shape) for shape in ((24, 28, 24), (48, 56, 48)))
    assert small == pytest.approx(large, rel=0.1)
    assert 0.004 < small < 0.02


def test_edss_steps() -> None:
    """Mild below 126 of 166, severe from there, in steps of one half."""
    assert (edss_of(0.0), edss_of(125.9 / 166), edss_of(126 / 166), edss_of(1.0)) == (0.0, 4.5, 5.0, 7.5)


def test_out_of_range() -> None:
    """The message names both options."""
    with pytest.raises(OutOfRange, match=r"below phantom\.patients, got 166 and 166"):
        ms_phantom(0, 166)
    with pytest.raises(OutOfRange, match="at least 12 voxels"):
        ms_phantom(0, 0, shape=(8, 28, 24))
