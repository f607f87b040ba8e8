"""Mass-univariate maps against scipy, and corrections against slow replicas and on null data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from scipy import stats

from harness import models
from harness.core.errors import OutOfRange
from harness.models.lesion_univariate import brunner_munzel, regression_t, student_t, welch_t

SHAPE = (6, 5, 4)
VOXELS = int(np.prod(SHAPE))


def cohort(patients: int = 40, *, seed: int = 0, ties: bool = False) -> tuple[scipy.sparse.csr_array, np.ndarray]:
    """Voxels lesioned in about a third of the patients, and two scores that depend on a region."""
    rng = np.random.default_rng(seed)
    lesions = (rng.random((patients, VOXELS)) < 0.35).astype(np.float32)
    scores = np.stack([lesions[:, :4].mean(1), lesions[:, 50:60].mean(1)], axis=1) + 0.2 * rng.normal(
        size=(patients, 2)
    )
    return scipy.sparse.csr_array(lesions), np.round(scores, 1) if ties else scores


def fitted(lesions: Any, scores: np.ndarray, *, seed: int = 0, **options: Any) -> Any:
    """A fitted mass-univariate model."""
    model = models.build("mass_univariate", outputs=scores.shape[1], image_shape=SHAPE, **{"minimum": 3, **options})
    model.fit(lesions, scores, rng=np.random.default_rng(seed))
    return model.eval()


def flat(tensor: torch.Tensor) -> np.ndarray:
    """(K, V) values."""
    return tensor.flatten(1).numpy()


def by_voxel(lesions: Any, scores: np.ndarray, test: Callable[..., Any]) -> tuple[np.ndarray, np.ndarray]:
    """Statistic and p-value of lesioned against spared patients in each voxel, (V, K) each."""
    lesioned = lesions.toarray() >= 0.5
    found = [[test(score[voxel], score[~voxel]) for score in scores.T] for voxel in lesioned.T]
    return tuple(np.array([[getattr(one, key) for one in of] for of in found]) for key in ("statistic", "pvalue"))


def _reversed_brunner_munzel(one: np.ndarray, other: np.ndarray) -> Any:
    # scipy's statistic is positive if its second sample is the larger one.
    return stats.brunnermunzel(other, one)


TESTS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "t": (student_t, stats.ttest_ind),
    "welch": (welch_t, lambda one, other: stats.ttest_ind(one, other, equal_var=False)),
    "brunner_munzel": (brunner_munzel, _reversed_brunner_munzel),
}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", TESTS)
def test_statistic_agrees_with_scipy(name: str, ties: bool) -> None:
    """Statistic and p-value of every voxel agree with scipy, also with tied scores."""
    lesions, scores = cohort(ties=ties)
    function, reference = TESTS[name]
    statistic, p = by_voxel(lesions, scores, reference)
    found = function(lesions.astype(float), scores)
    np.testing.assert_allclose(found.value, statistic, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(2 * stats.t.sf(np.abs(found.value), found.freedom), p, rtol=1e-9)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_regression_agrees_with_scipy(offset: float) -> None:
    """The t statistic of the slope agrees with scipy for any offset of the scores."""
    lesions, scores = cohort()
    lesions.data = np.random.default_rng(1).integers(1, 5, size=lesions.nnz) / 4
    found = regression_t(lesions, scores + offset)
    for voxel, occupancy in enumerate(lesions.toarray().T):
        for k, score in enumerate(scores.T):
            line = stats.linregress(occupancy, score)
            assert found.value[voxel, k] == pytest.approx(line.slope / line.stderr, rel=1e-6)


def test_regression_on_binary_lesions_is_student_t() -> None:
    """On binary lesions, the t statistic of the regression equals Student's t."""
    lesions, scores = cohort()
    np.testing.assert_allclose(regression_t(lesions, scores).value, student_t(lesions, scores).value, rtol=1e-6)


@pytest.mark.parametrize("name", TESTS)
def test_map_holds_the_statistic(name: str) -> None:
    """The map contains the statistic of every voxel, positive if lesioned patients score higher."""
    lesions, scores = cohort()
    statistic, _ = by_voxel(lesions, scores, TESTS[name][1])
    np.testing.assert_allclose(flat(fitted(lesions, scores, statistic=name).weight_map()), statistic.T, rtol=1e-5)


def test_only_frequent_voxels_are_tested() -> None:
    """A voxel is tested if it is lesioned in at least ``minimum`` and spared in at least two patients."""
    lesions = np.zeros((12, VOXELS), dtype=np.float32)
    lesions[:5, 0] = 1
    lesions[:4, 1] = 1
    lesions[:5, 2] = 0.49
    lesions[:5, 3] = 0.5
    lesions[:10, 4] = 1
    lesions[:11, 5] = 1
    scores = np.r_[np.arange(5.0), np.arange(7.0) / 10][:, None]
    model = fitted(scipy.sparse.csr_array(lesions), scores, minimum=5)
    assert np.flatnonzero(flat(model.weight_map())[0]).tolist() == [0, 3, 4]


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize("correction", ["uncorrected", "fdr"])
def test_thresholds_agree_with_scipy(correction: Any, alternative: Any) -> None:
    """Significant voxels are those of scipy's p-values, corrected by its false discovery rate."""
    lesions, scores = cohort()
    statistic, p = by_voxel(lesions, scores, lambda a, b: stats.ttest_ind(a, b, alternative=alternative))
    if correction == "fdr":
        p = np.stack([stats.false_discovery_control(of) for of in p.T], axis=1)
    model = fitted(lesions, scores, correction=correction, alternative=alternative)
    np.testing.assert_array_equal(flat(model.significant), (p <= 0.05).T)
    np.testing.assert_allclose(flat(model.weight_map()), np.where(p <= 0.05, statistic, 0).T, rtol=1e-5)


def test_fdr_counts_voxels_and_not_patterns() -> None:
    """The false discovery rate counts voxels and not the patterns that they share."""
    lesions, scores = cohort()
    dense = lesions.toarray()
    dense[:, 20:90] = dense[:, :1]
    lesions = scipy.sparse.csr_array(dense)
    _, p = by_voxel(lesions, scores, stats.ttest_ind)
    expected = np.stack([stats.false_discovery_control(of) for of in p.T]) <= 0.05
    np.testing.assert_array_equal(flat(fitted(lesions, scores, correction="fdr").significant), expected)
    assert 70 <= expected[0].sum() < VOXELS


def test_map_can_be_unthresholded() -> None:
    """Without thresholding, the map has all values and ``significant`` marks the significant ones."""
    lesions, scores = cohort()
    whole, cut = (fitted(lesions, scores, correction="fdr", thresholded=t) for t in (False, True))
    np.testing.assert_allclose(flat(whole.weight_map()), flat(fitted(lesions, scores).weight_map()))
    np.testing.assert_array_equal(flat(cut.weight_map()), flat(whole.weight_map()) * flat(whole.significant))


@pytest.mark.parametrize("name", ["t", "welch", "brunner_munzel", "regression"])
def test_permutation_threshold_agrees_with_a_slow_replica(name: str) -> None:
    """Significance agrees with a slow replica: the largest statistic of each permutation."""
    lesions = scipy.sparse.csr_array(cohort(25)[0].toarray() * (np.arange(VOXELS) % 15 == 0))
    scores = lesions.toarray()[:, [15, 60]] + 0.6 * np.random.default_rng(0).normal(size=(25, 2))
    # On binary lesions, the t statistic of the slope is Student's t.
    test = stats.ttest_ind if name == "regression" else TESTS[name][1]
    options = {"correction": "permutation", "permutations": 39, "alpha": 0.3}
    model = fitted(lesions, scores, statistic=name, seed=3, **options)
    rng = np.random.default_rng(3)
    rng.normal(size=(25, 2))  # the numbers drawn for merging voxels
    orders = [rng.permutation(25) for _ in range(39)]
    tested = lesions[:, ::15]
    largest = np.array([np.abs(by_voxel(tested, scores[order], test)[0]).max(0) for order in orders])
    observed = np.abs(by_voxel(tested, scores, test)[0])
    p = (1 + (largest[:, None] >= observed).sum(0)) / 40
    np.testing.assert_array_equal(flat(model.significant)[:, ::15], (p <= 0.3).T)
    assert 0 < flat(model.significant).sum() < 16


def test_permutations_that_tie_count() -> None:
    """Of 20 permutations of a binary score, nine give the same groups and one a larger difference: p is .5."""
    lesions = np.zeros((6, VOXELS), dtype=np.float32)
    lesions[:3, 7] = 1
    scores = np.array([[0.3], [0.3], [0.1], [0.1], [0.1], [0.3]])
    options = {"correction": "permutation", "permutations": 199, "alternative": "greater"}
    found = [fitted(scipy.sparse.csr_array(lesions), scores, alpha=a, **options).significant for a in (0.4, 0.6)]
    assert [bool(one.any()) for one in found] == [False, True]


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_family_wise_error_is_nominal(alternative: Any) -> None:
    """On random scores, about 5 % of maps have a significant voxel."""
    scores = np.random.default_rng(1).normal(size=(30, 400))
    model = fitted(cohort(30, seed=1)[0], scores, correction="permutation", alternative=alternative, permutations=199)
    # Two standard errors, of 400 maps and of 199 permutations that they share, are .04.
    assert flat(model.significant).any(1).mean() == pytest.approx(0.05, abs=0.035)


def test_uncorrected_maps_have_many_false_positives() -> None:
    """Without correction, more than 90 % of maps of random scores have a significant voxel."""
    scores = np.random.default_rng(0).normal(size=(30, 50))
    model = fitted(cohort(30)[0], scores, correction="uncorrected")
    assert flat(model.significant).any(1).mean() > 0.9


def test_permutations_come_from_the_generator() -> None:
    """The same seed gives the same permutations, and another seed others."""
    lesions, scores = cohort(30)[0], np.random.default_rng(0).normal(size=(30, 100))
    options = {"correction": "permutation", "permutations": 19, "alpha": 0.5}
    first, same = (fitted(lesions, scores, **options).significant for _ in range(2))
    assert torch.equal(first, same)
    assert not torch.equal(first, fitted(lesions, scores, seed=1, **options).significant)


def test_number_of_permutations_held_at_once_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of permutations held at once does not change the result."""
    lesions, scores = cohort(30)
    options = {"statistic": "brunner_munzel", "correction": "permutation", "permutations": 19, "alpha": 0.3}
    whole = fitted(lesions, scores, **options)
    monkeypatch.setattr("harness.models.lesion_univariate._HELD", 500)
    for key, value in fitted(lesions, scores, **options).state_dict().items():
        assert torch.equal(value, whole.state_dict()[key])


def test_prediction_is_a_line_on_the_weighted_load() -> None:
    """The prediction is the least-squares line of the score on Σ map · occupancy."""
    lesions, scores = cohort()
    model = fitted(lesions, scores)
    loads = lesions.toarray().astype(float) @ flat(model.weight_map()).T
    with torch.no_grad():
        predicted = model(torch.from_numpy(lesions.toarray().reshape(-1, 1, *SHAPE))).numpy()
    for k, score in enumerate(scores.T):
        slope, bias = np.polyfit(loads[:, k], score, 1)
        np.testing.assert_allclose(predicted[:, k], slope * loads[:, k] + bias, rtol=1e-4, atol=1e-5)


def test_nothing_significant_predicts_the_mean() -> None:
    """Without significant voxels, the mean score is predicted."""
    lesions, _ = cohort(30)
    scores = np.random.default_rng(0).normal(size=(30, 1))
    model = fitted(lesions, scores, correction="permutation", permutations=199, alpha=0.01)
    assert not model.weight_map().any()
    assert float(model.bias[0]) == pytest.approx(scores.mean(), rel=1e-5)


@pytest.mark.parametrize("name", TESTS)
def test_perfect_separation_has_the_highest_value(name: str) -> None:
    """An infinite statistic becomes the highest finite value of the map and is significant."""
    lesions, _ = cohort(30)
    scores = lesions.toarray()[:, :1].astype(float)
    model = fitted(lesions, scores, statistic=name, correction="fdr", thresholded=False)
    values = flat(model.weight_map())[0]
    assert np.isfinite(values).all()
    assert values[0] == values.max()
    assert flat(model.significant)[0, 0]


def test_cohort_without_spared_patients_is_refused() -> None:
    """A cohort in which no voxel is spared in two patients is refused."""
    lesions = scipy.sparse.csr_array(np.ones((5, VOXELS), dtype=np.float32))
    with pytest.raises(OutOfRange, match="at least two training patients must have no lesion"):
        fitted(lesions, np.arange(5.0)[:, None])


@pytest.mark.parametrize("option", ["statistic", "correction", "alternative"])
def test_unknown_options_are_refused(option: str) -> None:
    """Unknown options are refused, and the message lists the valid ones."""
    with pytest.raises(OutOfRange, match=rf"{option} of model \w+ must be one of .*, got 'other'"):
        models.build("mass_univariate", image_shape=SHAPE, **{option: "other"})
