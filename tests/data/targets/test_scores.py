"""Simulated and measured scores of lesion masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.core.errors import CohortError, OutOfRange, UnknownName
from harness.core.targets import Target
from harness.core.types import Cohort, Reads
from harness.data.lesions import lesions
from harness.data.targets.scores import scores

SMALL = {"patients": 3, "size": 3}


@pytest.fixture(scope="module")
def masks(lesion_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """The lesion masks on their native grid."""
    return lesions(lesion_root, tmp_path_factory.mktemp("cache"), box="native")


def of(cohort: Cohort, name: str) -> np.ndarray:
    """Values of one score for all samples."""
    return np.array([sample.targets[name] for sample in cohort.samples])


def names(cohort: Cohort) -> tuple[str, ...]:
    """Names of the targets, all of which must be numbers."""
    assert cohort.targets == tuple(Target(target.name, "number") for target in cohort.targets)
    return tuple(target.name for target in cohort.targets)


def test_scores_are_lesion_loads_of_their_regions(masks: Cohort, tmp_path: Path) -> None:
    """Without noise a score is the lesion load of its region, scaled to 0 to 1 over the cohort."""
    made = scores(masks, tmp_path, **SMALL)
    assert names(made) == ("score_1", "score_2", "score_3") and made.truth is not None
    for number in (1, 2, 3):
        roi = made.truth.rois[f"roi{number}"].load()
        load = np.array([sample.masks["lesion"].load()[roi].mean() for sample in made.samples])
        expected = (load - load.min()) / np.ptp(load)
        np.testing.assert_allclose(of(made, f"score_{number}"), expected, atol=1e-12)


def test_regions_lie_where_enough_patients_have_lesions(masks: Cohort, tmp_path: Path) -> None:
    """Each voxel of each region is lesioned in at least three patients."""
    made = scores(masks, tmp_path, **SMALL)
    counts = np.sum([sample.masks["lesion"].load() > 0 for sample in masks.samples], axis=0)
    assert made.truth is not None
    assert all(counts[roi.load()].min() >= 3 for roi in made.truth.rois.values())
    assert [line["touched"] >= 3 for line in made.truth.table] == [True] * 3


def test_clean_scores_are_independent_of_noise(masks: Cohort, tmp_path: Path) -> None:
    """Clean scores correlate perfectly with those simulated without noise."""
    plain, noisy = (scores(masks, tmp_path, noise=noise, **SMALL) for noise in (0.0, 0.3))
    clean = np.array([sample.clean["score_2"] for sample in noisy.samples])
    assert np.corrcoef(clean, of(plain, "score_2"))[0, 1] == pytest.approx(1)
    assert np.corrcoef(clean, of(noisy, "score_2"))[0, 1] < 0.999


def test_true_weights_of_correlated_scores(masks: Cohort, tmp_path: Path) -> None:
    """The second score has weight 0.7 on the second region and 0.3 on the third."""
    made = scores(masks, tmp_path, design="intercorrelation", b=0.7, **SMALL)
    assert made.truth is not None
    assert made.truth.weights["score_2"] == pytest.approx({"roi1": 0, "roi2": 0.7, "roi3": 0.3})


def test_shuffled_scores(masks: Cohort, tmp_path: Path) -> None:
    """Values are permuted across subjects (null control), and the true regions are kept."""
    plain, permuted = (scores(masks, tmp_path, shuffled=shuffled, **SMALL) for shuffled in (False, True))
    assert plain.truth is not None and permuted.truth == plain.truth
    assert not any(sample.clean for sample in permuted.samples)
    assert sorted(of(permuted, "score_1")) == sorted(of(plain, "score_1"))
    assert list(of(permuted, "score_1")) != list(of(plain, "score_1"))


def test_weights_apply_to_the_single_design_only(masks: Cohort, tmp_path: Path) -> None:
    """The other designs define their own weights."""
    made = scores(masks, tmp_path, design="single", weights=(0.5, 0.3, 0.2), **SMALL)
    assert made.truth is not None
    assert made.truth.weights["score_1"] == pytest.approx({"roi1": 0.5, "roi2": 0.3, "roi3": 0.2})
    with pytest.raises(OutOfRange, match="weights apply only to design=single, got design=multi"):
        scores(masks, tmp_path, weights=(0.5, 0.3, 0.2), **SMALL)


def test_nonlinear_scores_are_marked(masks: Cohort, tmp_path: Path) -> None:
    """The map of an exact model is known for linear scores only."""
    kinds = [scores(masks, tmp_path, nonlinearity=kind, **SMALL).truth for kind in ("none", "log", "exp")]
    assert [kind is not None and kind.linear for kind in kinds] == [True, False, False]


def test_scores_depend_on_volume_and_age(masks: Cohort, tmp_path: Path) -> None:
    """An effect of volume changes clean scores, one of age only the scores themselves."""
    aged = replace(
        masks,
        samples=tuple(
            replace(one, covariates={**one.covariates, "age": 60.0 + number})
            for number, one in enumerate(masks.samples)
        ),
    )
    plain = scores(aged, tmp_path, scaling="none", **SMALL)
    by_volume = scores(aged, tmp_path, scaling="none", volume_effect=1.0, **SMALL)
    by_age = scores(aged, tmp_path, scaling="none", age_effect=1.0, **SMALL)
    assert plain.truth is not None and by_volume.truth is not None and by_age.truth is not None
    assert (plain.truth.linear, by_volume.truth.linear, by_age.truth.linear) == (True, False, True)
    clean = [np.array([one.clean["score_1"] for one in made.samples]) for made in (plain, by_volume, by_age)]
    volumes = np.sqrt([one.masks["lesion"].load().sum() for one in masks.samples])
    assert np.corrcoef(clean[1] - clean[0], volumes)[0, 1] == pytest.approx(1)
    np.testing.assert_array_equal(clean[2], clean[0])
    added = np.array(list(of(by_age, "score_1"))) - np.array(list(of(plain, "score_1")))
    assert np.corrcoef(added, np.arange(len(added)))[0, 1] == pytest.approx(1)


def test_effect_of_age_needs_ages(masks: Cohort, tmp_path: Path) -> None:
    """Subjects without an age are listed."""
    with pytest.raises(
        OutOfRange, match=r"age_effect needs a number in the column age for every subject, but \d+ have"
    ):
        scores(masks, tmp_path, age_effect=1.0, **SMALL)


def test_a_measured_score(masks: Cohort, tmp_path: Path) -> None:
    """A column of participants.tsv has no truth; subjects without a value are ineligible."""
    made = scores(masks, tmp_path, column="severity")
    assert names(made) == ("severity",) and made.truth is None
    assert [one.subject for one in made.ineligible] == ["sub-14"]
    assert list(of(made, "severity")) == [number % 7 for number in range(1, 14)]


def test_unknown_column_raises(masks: Cohort, tmp_path: Path) -> None:
    """The message suggests a similar column."""
    with pytest.raises(UnknownName, match="severity"):
        scores(masks, tmp_path, column="severty")


def test_too_many_patients_raise(masks: Cohort, tmp_path: Path) -> None:
    """No voxel can be lesioned in 15 of 14 patients; the message gives the highest count."""
    with pytest.raises(OutOfRange, match="highest count of any voxel is"):
        scores(masks, tmp_path, patients=15)


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("column", ["", "severity"])
def test_existing_targets_are_kept(masks: Cohort, tmp_path: Path, column: str, shuffled: bool) -> None:
    """Scores are added to existing targets, and only scores are shuffled."""
    samples = [
        replace(one, targets={"age": float(number)}, clean={"age": -1.0}) for number, one in enumerate(masks.samples)
    ]
    both = replace(masks, samples=tuple(samples), targets=(Target("age", "number"),))
    made = scores(both, tmp_path, column=column, shuffled=shuffled, **SMALL)
    assert names(made) == ("age", *((column,) if column else ("score_1", "score_2", "score_3")))
    ages = {one.id: one.targets["age"] for one in both.samples}
    assert all(one.targets["age"] == ages[one.id] and one.clean["age"] == -1 for one in made.samples)


def test_fingerprint_depends_on_the_scores(masks: Cohort, tmp_path: Path) -> None:
    """Noise changes the fingerprint, and equal options give equal fingerprints."""
    reads = Reads(masks=("lesion",), targets=("score_1",))
    prints = [scores(masks, tmp_path, noise=noise, **SMALL).fingerprint(reads) for noise in (0.0, 0.1, 0.1)]
    assert prints[0] != prints[1] == prints[2]


def test_given_centres(masks: Cohort, tmp_path: Path) -> None:
    """Regions are cubes around the given centres."""
    made = scores(masks, tmp_path, centres=((12, 9, 8), (12, 13, 8)), size=3)
    assert made.truth is not None and names(made) == ("score_1", "score_2")
    voxels = np.argwhere(made.truth.rois["roi1"].load())
    assert voxels.min(0).tolist() == [11, 8, 7] and voxels.max(0).tolist() == [13, 10, 9]


def test_text_is_not_a_score(masks: Cohort, tmp_path: Path) -> None:
    """One invalid value names its subject; a column of text is one fault."""

    def with_group(*values: str | float | None) -> Cohort:
        own = [replace(one, covariates={"group": value}) for one, value in zip(masks.samples, values, strict=False)]
        return replace(masks, samples=tuple(own))

    one, other = masks.samples[:2]
    with pytest.raises(CohortError, match=f"group of {other.id} is 'F'") as found:
        scores(with_group(1.0, "F", 2.0), tmp_path, column="group")
    assert len(found.value.faults) == 1 and one.id not in str(found.value)
    with pytest.raises(CohortError, match="no value of group is a number, the first is 'M'") as found:
        scores(with_group(None, "M", "F"), tmp_path, column="group")
    assert len(found.value.faults) == 1
