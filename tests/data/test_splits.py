"""Folds: published numbers, disjointness, whole subjects, determinism."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import LeaveOneGroupOut

from harness.core.errors import HarnessError, OutOfRange
from harness.core.registry import SPLITS
from harness.core.types import Split
from harness.data.splits import check_leaks, describe_validation, holdout, k_fold, leave_one_subject_out


def single(n: int) -> tuple[tuple[str, str], ...]:
    """One sample per subject."""
    return tuple((f"sub-{i:02d}", f"sub-{i:02d}") for i in range(n))


# Uneven: three sessions, one, two, …
SESSIONS = tuple(
    (f"sub-{i}_ses-{k}", f"sub-{i}") for i, count in enumerate([3, 1, 2, 1, 4, 1, 2]) for k in range(count)
)
SUBJECT_OF = dict(SESSIONS)


def folds_of(name: str, samples, **options) -> tuple[Split, ...]:
    """Folds of a registered split."""
    return SPLITS.get(name).function(samples, seed=3, **options)


@pytest.mark.parametrize("name", [name for name in SPLITS.names() if name != "holdout"])
def test_every_sample_is_tested_exactly_once(name):
    """The test sets are a partition of the cohort."""
    tested = [i for split in folds_of(name, SESSIONS) for i in split.test]
    assert sorted(tested) == sorted(SUBJECT_OF)


@pytest.mark.parametrize("name", SPLITS.names())
def test_each_fold_places_every_sample_once(name):
    """Train, validation and test are disjoint and leave nobody out."""
    for split in folds_of(name, SESSIONS):
        assert sorted(split.train + split.validation + split.test) == sorted(SUBJECT_OF)
        assert split.train and split.validation and split.test


@pytest.mark.parametrize("name", SPLITS.names())
def test_sessions_of_a_subject_stay_together(name):
    """No subject is on two sides."""
    for split in folds_of(name, SESSIONS):
        sides = [{SUBJECT_OF[i] for i in part} for part in (split.train, split.validation, split.test)]
        assert sum(map(len, sides)) == len(set.union(*sides))
        check_leaks(split, SUBJECT_OF)


@pytest.mark.parametrize("name", SPLITS.names())
def test_the_same_seed_gives_the_same_folds(name):
    """Twice the same, and another seed differs."""
    function = SPLITS.get(name).function
    samples = single(21)
    assert function(samples, seed=5) == function(samples, seed=5)
    assert function(samples, seed=5) != function(samples, seed=6)


@pytest.mark.parametrize("name", SPLITS.names())
def test_the_global_random_state_is_left_alone(name):
    """A split draws from its own stream."""
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    folds_of(name, SESSIONS)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("name", SPLITS.names())
def test_the_order_of_samples_does_not_change_the_subjects_of_a_fold(name):
    """Shuffled samples give the same sets of ids."""

    def sets(samples):
        return {tuple(frozenset(part) for part in (s.train, s.validation, s.test)) for s in folds_of(name, samples)}

    assert sets(SESSIONS) == sets(SESSIONS[::-1])


def test_published_sixteen_and_four():
    """Of 21 subjects, one is tested, 16 train and 4 validate, 21 times."""
    splits = leave_one_subject_out(single(21), seed=0)
    assert [(len(s.train), len(s.validation), len(s.test)) for s in splits] == [(16, 4, 1)] * 21


def test_leave_one_out_tests_the_subjects_in_order():
    """The same test folds as scikit-learn's LeaveOneGroupOut."""
    groups = [subject for _, subject in SESSIONS]
    expected = [
        tuple(SESSIONS[i][0] for i in test)
        for _, test in LeaveOneGroupOut().split(np.zeros(len(groups)), groups=groups)
    ]
    assert [split.test for split in leave_one_subject_out(SESSIONS, seed=0)] == expected


def test_three_subjects_one_trains_and_one_validates():
    """The smallest cohort that can be split."""
    for split in leave_one_subject_out(single(3), seed=1):
        assert (len(split.train), len(split.validation), len(split.test)) == (1, 1, 1)


def test_validation_differs_between_folds():
    """Each fold has its own draw: over 21 folds nearly everybody validates somewhere."""
    splits = leave_one_subject_out(single(21), seed=0)
    validating = {i for split in splits for i in split.validation}
    assert len(validating) >= 18
    assert len({split.validation for split in splits}) > 15


def test_validation_draw_is_uniform():
    """Over many seeds each of the five remaining subjects validates equally often."""
    counts = dict.fromkeys([f"sub-{i:02d}" for i in range(1, 6)], 0)
    for seed in range(1000):
        counts[leave_one_subject_out(single(6), seed=seed)[0].validation[0]] += 1
    # Five standard deviations of a binomial(1000, 1/5).
    assert all(abs(count - 200) < 64 for count in counts.values())


@pytest.mark.parametrize(("validation", "expected"), [(1, 1), (7, 7), (0.1, 2), (0.5, 10), (0.001, 1), ("auto", 4)])
def test_validation_as_number_share_or_auto(validation, expected):
    """A number is taken as it is; a share of the 20 that remain is rounded, at least one."""
    assert len(leave_one_subject_out(single(21), seed=0, validation=validation)[0].validation) == expected


def test_k_fold_sizes_differ_by_at_most_one():
    """21 subjects in five folds: 5, 4, 4, 4, 4."""
    assert [len(split.test) for split in k_fold(single(21), seed=0)] == [5, 4, 4, 4, 4]


@pytest.mark.parametrize("name", SPLITS.names())
@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_than_three_subjects_are_refused(name, n):
    """One must train, one validate, one be tested."""
    with pytest.raises(OutOfRange, match=rf"subjects >= 3 must hold .* got {n}"):
        folds_of(name, single(n))


def test_sessions_do_not_count_as_subjects():
    """Ten sessions of two subjects are still two subjects."""
    samples = tuple((f"sub-{i % 2}_ses-{i}", f"sub-{i % 2}") for i in range(10))
    with pytest.raises(OutOfRange, match="got 2: sub-0, sub-1"):
        leave_one_subject_out(samples, seed=0)


@pytest.mark.parametrize("validation", [-1, 2, 5])
def test_somebody_must_train(validation):
    """With two subjects not tested, only one can validate."""
    with pytest.raises(OutOfRange, match=rf"0 <= validation < .* got validation={validation} with 2"):
        leave_one_subject_out(single(3), seed=0, validation=validation)


def test_nobody_need_validate():
    """With validation=0 all that are not tested train."""
    for split in k_fold(single(10), seed=0, folds=5, validation=0):
        assert split.validation == ()
        assert len(split.train) == 8


def test_a_holdout_tests_a_fifth_once():
    """60 % train, 20 % validate, 20 % are tested, as of 822 masks 493, 164 and 165."""
    (split,) = holdout(single(822), seed=0)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [493, 164, 165]


@pytest.mark.parametrize(("subjects", "test", "expected"), [(100, 0.07, 7), (10, 0.25, 3), (5, 1e-12, 1)])
def test_the_share_that_is_tested_is_rounded_up(subjects: int, test: float, expected: int) -> None:
    """Seven of a hundred are seven, although .07 · 100 is a little more in binary; nobody is too few."""
    (split,) = holdout(single(subjects), seed=0, test=test)
    assert len(split.test) == expected


@pytest.mark.parametrize("validation", [0.0, 1.0, -0.5])
def test_a_share_lies_between_zero_and_one(validation):
    """The message says the relation and what came."""
    with pytest.raises(OutOfRange, match=f"0 < validation < 1 must hold .* got {validation}"):
        leave_one_subject_out(single(5), seed=0, validation=validation)


@pytest.mark.parametrize("validation", ["most", True])
def test_other_words_for_validation_are_refused(validation):
    """Neither another word nor a truth value is a number of subjects."""
    with pytest.raises(OutOfRange, match="validation must be a number of subjects"):
        leave_one_subject_out(single(5), seed=0, validation=validation)


@pytest.mark.parametrize("folds", [1, 6])
def test_number_of_folds_lies_between_two_and_subjects(folds):
    """The message names the other split."""
    with pytest.raises(OutOfRange, match=rf"2 <= folds <= subjects .* got folds={folds} with 5.*leave_one_subject_out"):
        k_fold(single(5), seed=0, folds=folds)


def test_a_sample_id_twice_is_refused():
    """Ids name samples."""
    with pytest.raises(OutOfRange, match="sample ids must differ, got a more than once"):
        leave_one_subject_out((("a", "1"), ("a", "2"), ("b", "3")), seed=0)


def test_a_leak_names_the_subject_and_both_sides():
    """One session trains and another of the same subject is tested."""
    split = Split(train=("sub-0_ses-0",), validation=("sub-1_ses-0",), test=("sub-0_ses-1", "sub-0_ses-2"))
    with pytest.raises(HarnessError, match="one side of a split, got sub-0 in train and test"):
        check_leaks(split, SUBJECT_OF)


def test_a_sample_the_cohort_does_not_have_is_refused():
    """A split of another cohort is noticed."""
    with pytest.raises(HarnessError, match="only name samples of its cohort, got sub-99"):
        check_leaks(Split(("sub-99",), ("sub-1_ses-0",), ("sub-2_ses-0",)), SUBJECT_OF)


def test_a_sample_listed_twice_is_refused():
    """Training twice on a sample is no split."""
    with pytest.raises(HarnessError, match="got sub-0_ses-0 more than once"):
        check_leaks(Split(("sub-0_ses-0",) * 2, ("sub-1_ses-0",), ("sub-2_ses-0",)), SUBJECT_OF)


def test_the_sentence_says_how_many_do_what():
    """21 subjects: the published numbers, and how they were drawn."""
    sentence = describe_validation(leave_one_subject_out(single(21), seed=0), single(21))
    assert sentence.startswith("21 subjects, 21 folds: train 16, validate 4 (they select the model), test 1; ")
    assert "drawn by the seed among those not tested" in sentence
    assert "so few" not in sentence


def test_the_sentence_warns_of_few_subjects():
    """Three subjects: one trains, one validates, and the reader is told what that means."""
    sentence = describe_validation(leave_one_subject_out(single(3), seed=0), single(3))
    assert "train 1, validate 1" in sentence
    assert "With 3 subjects, intervals are what so few give" in sentence


def test_the_sentence_shows_uneven_folds():
    """Folds of five and four are shown as 4/5."""
    assert "test 4/5;" in describe_validation(k_fold(single(21), seed=0), single(21))
