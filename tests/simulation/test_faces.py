"""Generated faces: what each target changes, regions, nuisances and their correlation."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from harness.core.registry import PHANTOMS
from harness.core.types import Array
from harness.simulation.faces import GROUPS, _drawn, _Face, faces_phantom
from harness.simulation.phantom import PhantomPicture

USUAL = _Face(grey=0.3, wrinkles=0.3, jaw=2.4, brow=0.03, hue=0.1, glasses=False)
OF_TARGET = {
    "age": ({"grey": 0.9}, {"wrinkles": 1.0}),
    "sex": ({"jaw": 3.0}, {"brow": 0.06}),
    "ethnicity": ({"hue": 0.6},),
}


def faces(count: int, seed: int = 0, **options: object) -> list[PhantomPicture]:
    """Some faces."""
    return [faces_phantom(seed, number, **options)[0] for number in range(count)]  # type: ignore[arg-type]


def draw(face: _Face, seed: int) -> tuple[Array, dict[str, Array]]:
    """A face in the pose, light and colours of a seed."""
    return _drawn(face, 64, np.random.default_rng(seed))


def test_registered_as_pictures() -> None:
    """The phantom is written as a folder of pictures."""
    assert PHANTOMS.get("faces").facts["layout"] == "pictures"


def test_same_seed_gives_the_same_face() -> None:
    """Equal seed and number give equal pictures, and others differ."""
    first, again, other = faces_phantom(1, 2)[0], faces_phantom(1, 2)[0], faces_phantom(2, 2)[0]
    np.testing.assert_array_equal(first.image, again.image)
    assert first.covariates == again.covariates and not np.array_equal(first.image, other.image)


def test_labels_are_balanced() -> None:
    """Ages are uniform from 20 to 80, sexes and groups equally frequent and independent of each other."""
    found = [one.covariates for one in faces(1200)]
    age = np.array([float(one["age"]) for one in found])
    assert age.min() >= 20 and age.max() <= 80 and abs(age.mean() - 50) < 2 and abs(age.std() - 60 / 12**0.5) < 1
    female = np.array([one["sex"] == "female" for one in found])
    assert abs(female.mean() - 0.5) < 0.05
    for name in GROUPS:
        own = np.array([one["ethnicity"] == name for one in found])
        assert abs(own.mean() - 0.25) < 0.05
        assert abs(np.corrcoef(own, age)[0, 1]) < 0.09 and abs(np.corrcoef(own, female)[0, 1]) < 0.09


@pytest.mark.parametrize("target", OF_TARGET)
@pytest.mark.parametrize("seed", range(6))
def test_target_changes_its_region_only(target: str, seed: int) -> None:
    """What is visible of a target changes pixels of its region, and beyond it only edges, by a few grey levels."""
    before, regions = draw(USUAL, seed)
    inside = regions[f"truth_{target}"]
    for change in OF_TARGET[target]:
        after, same = draw(dataclasses.replace(USUAL, **change), seed)
        changed = np.abs(after.astype(int) - before).max(axis=2) > 12
        assert changed[inside].sum() > 5
        assert not (changed & ~binary_dilation(inside, iterations=2)).any()
        np.testing.assert_array_equal(same[f"truth_{target}"], inside)


def test_glasses_change_the_nuisance_only() -> None:
    """Glasses are drawn on their region, and the region does not depend on them."""
    without, regions = draw(USUAL, 3)
    worn, same = draw(dataclasses.replace(USUAL, glasses=True), 3)
    changed = (without != worn).any(axis=2)
    assert changed.any() and not (changed & ~regions["nuisance"]).any()
    np.testing.assert_array_equal(same["nuisance"], regions["nuisance"])


def test_regions_are_disjoint_and_move_with_the_face() -> None:
    """No pixel belongs to two regions, none is empty, and they differ between poses."""
    made = faces(20)
    for one in made:
        assert np.sum(list(one.masks.values()), axis=0).max() == 1
        assert all(0.005 < mask.mean() < 0.3 for mask in one.masks.values())
    assert len({one.masks["truth_sex"].tobytes() for one in made}) == 20


@pytest.mark.parametrize("correlated", ["sex", "age", "ethnicity"])
@pytest.mark.parametrize("correlation", [0.0, 0.6, 1.0])
def test_glasses_follow_a_target(correlated: str, correlation: float) -> None:
    """The correlation of glasses and the target is the one that was asked for; that with the others is none."""
    found = [one.covariates for one in faces(800, correlation=correlation, correlated=correlated)]
    glasses = np.array([float(one["glasses"]) for one in found])
    bits = {
        "sex": np.array([one["sex"] == "female" for one in found]),
        "age": np.array([float(one["age"]) >= 50 for one in found]),
        "ethnicity": np.array([one["ethnicity"] in "AB" for one in found]),
    }
    for name, bit in bits.items():
        expected = correlation if name == correlated else 0.0
        assert np.corrcoef(glasses, bit)[0, 1] == pytest.approx(expected, abs=0.1)


def test_correlation_changes_nothing_but_glasses() -> None:
    """A face with the same glasses has the same pixels, whatever the correlation."""
    free, tied = faces(40), faces(40, correlation=1.0)
    same = [(a, b) for a, b in zip(free, tied, strict=True) if a.covariates == b.covariates]
    assert 5 < len(same) < 35
    for a, b in same:
        np.testing.assert_array_equal(a.image, b.image)


def test_size() -> None:
    """Faces of another size have the same labels and masks of that size."""
    (small,), (large,) = faces_phantom(0, 5), faces_phantom(0, 5, size=200)
    assert large.image.shape == (200, 200, 3) and large.image.dtype == np.uint8
    assert small.covariates == large.covariates
    for name, mask in large.masks.items():
        assert mask.shape == (200, 200) and mask.mean() == pytest.approx(small.masks[name].mean(), rel=0.25)


def test_regions_tell_the_targets() -> None:
    """A linear model on the mean colours of the regions tells group and age, and one on the pixels tells the sex."""
    made = faces(400)
    colours = np.array([np.concatenate([one.image[mask].mean(0) for mask in one.masks.values()]) for one in made])
    saturation = np.array([np.ptp(one.image[one.masks["truth_age"]].astype(float), axis=1).mean() for one in made])
    age = np.array([float(one.covariates["age"]) for one in made])
    assert np.corrcoef(saturation, age)[0, 1] < -0.3
    group = [one.covariates["ethnicity"] for one in made]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    assert cross_val_score(model, colours, group, cv=4).mean() > 0.6
    sex = [one.covariates["sex"] for one in made]
    pixels = np.array([one.image[::2, ::2].mean(2).ravel() for one in made])
    assert cross_val_score(make_pipeline(StandardScaler(), LogisticRegression(C=1e-3)), pixels, sex, cv=4).mean() > 0.6
