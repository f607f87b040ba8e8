"""Intraclass correlation and limits of agreement against published and library values."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from harness.core.errors import OutOfRange, UnknownName
from harness.metrics import compute
from harness.metrics.agreement import bland_altman, icc

# Shrout & Fleiss (1979), Table 2: six targets, four judges.
SHROUT_FLEISS = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
FORMS = ("1,1", "2,1", "3,1", "1,k", "2,k", "3,k")


def _pingouin(ratings: np.ndarray) -> dict[str, float]:
    """All forms as computed by pingouin."""
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pingouin

        n, k = ratings.shape
        table = pd.DataFrame(
            {"subject": np.repeat(np.arange(n), k), "rater": np.tile(np.arange(k), n), "score": ratings.ravel()}
        )
        result = pingouin.intraclass_corr(table, targets="subject", raters="rater", ratings="score")
    return dict(zip(FORMS, result["ICC"].to_numpy(), strict=True))


@pytest.mark.parametrize(
    ("form", "published"),
    [("1,1", 0.17), ("2,1", 0.29), ("3,1", 0.71), ("1,k", 0.44), ("2,k", 0.62), ("3,k", 0.91)],
)
def test_icc_gives_the_published_example(form, published):
    """ICC values agree with the worked example of the article, to its two digits."""
    assert round(icc(SHROUT_FLEISS, form=form), 2) == published


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(3))
def test_icc_agrees_with_pingouin(form, seed):
    """ICC values agree with pingouin on random pairs with a bias, such as true and predicted counts."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(680, 150, size=21)
    ratings = np.stack([truth, 0.7 * truth + rng.normal(0, 40, size=21)], axis=1)
    assert icc(ratings, form=form) == pytest.approx(_pingouin(ratings)[form], abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_icc_of_several_raters_agrees_with_pingouin(form):
    """ICC values agree with pingouin for four raters."""
    rng = np.random.default_rng(5)
    ratings = rng.normal(size=(30, 1)) + [0.0, 0.5, -0.2, 1.0] + 0.7 * rng.normal(size=(30, 4))
    assert icc(ratings, form=form) == pytest.approx(_pingouin(ratings)[form], abs=1e-6)


def test_perfect_agreement_is_one():
    """Equal ratings of different subjects score 1 in every form."""
    ratings = np.array([[1.0, 1.0], [5.0, 5.0], [2.5, 2.5]])
    assert [icc(ratings, form=form) for form in FORMS] == [1] * 6


def test_a_constant_offset_only_spoils_agreement():
    """A constant offset lowers the agreement forms and not the consistency form."""
    truth = np.arange(8.0)
    ratings = np.stack([truth, truth + 3], axis=1)
    assert icc(ratings, form="3,1") == pytest.approx(1)
    assert icc(ratings, form="1,1") < icc(ratings, form="2,1") < 0.8


def test_opposite_ratings_are_negative():
    """Two ratings that mirror each other score −1."""
    ratings = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]])
    assert icc(ratings, form="1,1") == pytest.approx(-1)


def test_shuffled_ratings_score_chance():
    """Ratings of shuffled subjects have a mean ICC of 0."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=200)
    values = [icc(np.stack([truth, rng.permutation(truth)], axis=1), form="1,1") for _ in range(50)]
    assert np.mean(values) == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("form", FORMS)
def test_icc_of_constant_ratings_is_nan(form):
    """The ICC of one subject, or of equal ratings, is NaN."""
    assert np.isnan(icc(np.array([[1.0, 2.0]]), form=form))
    assert np.isnan(icc(np.full((5, 2), 0.1), form=form))


def test_rows_with_a_gap_are_left_out():
    """A subject with a missing rating is left out."""
    ratings = SHROUT_FLEISS.astype(float)
    with_gap = np.vstack([ratings, [np.nan, 1, 2, 3]])
    assert icc(with_gap, form="2,1") == icc(ratings, form="2,1")


def test_icc_refuses_one_rater():
    """An ICC of one rater is refused."""
    with pytest.raises(OutOfRange, match=r"\(n, k\) with k >= 2 raters, got shape \(5, 1\)"):
        icc(np.ones((5, 1)))


def test_icc_refuses_an_unknown_form():
    """An unknown form is refused, and the message lists all forms."""
    with pytest.raises(UnknownName, match=r"no value of form is named '1\.1'.*1,1, 1,k, 2,1, 2,k, 3,1, 3,k"):
        icc(SHROUT_FLEISS, form="1.1")


def test_bland_altman_worked_by_hand():
    """Differences 1, 2, 3: bias 2, SD 1, limits 2 ∓ 1.96."""
    limits = bland_altman(np.array([10.0, 20.0, 30.0]), np.array([11.0, 22.0, 33.0]))
    assert (limits.bias, limits.lower, limits.upper) == pytest.approx((2, 0.04, 3.96))


def test_bland_altman_of_few():
    """With one subject there is a bias without limits, and with none both are NaN."""
    one, none = bland_altman(np.array([1.0]), np.array([3.0])), bland_altman(np.array([]), np.array([]))
    np.testing.assert_equal([one.bias, one.lower, one.upper], [2, np.nan, np.nan])
    assert np.isnan([none.bias, none.lower, none.upper]).all()


@pytest.mark.parametrize(
    ("of", "truth", "prediction"),
    [("count", "true_count", "predicted_count"), ("volume", "true_volume_mm3", "predicted_volume_mm3")],
)
def test_pooled_metrics_read_their_columns(of, truth, prediction):
    """Pooled metrics are the functions applied to the columns that they need."""
    columns = {truth: np.array([3.0, 8.0, 5.0, np.nan]), prediction: np.array([2.0, 9.0, 1.0, 4.0])}
    limits = bland_altman(columns[truth], columns[prediction])
    assert compute(f"{of}_bias", columns=columns) == pytest.approx(-4 / 3)
    assert compute(f"{of}_limits_width", columns=columns) == pytest.approx(limits.upper - limits.lower)
    for form in FORMS:
        expected = icc(np.array([[3.0, 2.0], [8.0, 9.0], [5.0, 1.0]]), form=form)
        assert compute(f"icc_{of}", columns=columns, form=form) == pytest.approx(expected)


def test_missing_column_is_named():
    """A missing column raises an error that names the required metric."""
    with pytest.raises(UnknownName, match=r"no column is named 'predicted_count'.*All: true_count"):
        compute("icc_count", columns={"true_count": np.ones(3)})
