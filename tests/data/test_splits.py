"""Splits: published sizes, disjoint subsets, grouping by subject, determinism."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from sklearn.model_selection import LeaveOneGroupOut

from harness.core.errors import HarnessError, OutOfRange, UnknownName
from harness.core.registry import SPLITS
from harness.core.task import describe_component
from harness.core.types import Folds, Split, SplitSample
from harness.data import splits
from harness.data.splits import check_leaks, check_test_set, describe_validation, stratified_k_fold


def single(n: int) -> tuple[SplitSample, ...]:
    """One sample per subject."""
    return tuple(SplitSample(f"sub-{i:02d}", f"sub-{i:02d}", {}, subset(i)) for i in range(n))


def subset(number: int) -> dict[str, float | str | None]:
    """Covariate that fixes the subset of a subject."""
    return {"split": ("train", "valid", "test")[number % 3]}


# Subjects have different numbers of sessions.
SESSIONS = tuple(
    SplitSample(f"sub-{i}_ses-{k}", f"sub-{i}", {}, subset(i))
    for i, count in enumerate([3, 1, 2, 1, 4, 1, 2])
    for k in range(count)
)
SUBJECT_OF = {one.id: one.subject for one in SESSIONS}
# Splits that test all samples once; the others have a fixed test set.
ALL_TESTED = ("k_fold", "leave_one_subject_out")


def folds_of(name: str, samples, **options) -> Folds:
    """Folds of a registered split."""
    return SPLITS.get(name).function(samples, seed=3, **options)


def leave_one_subject_out(samples, **options) -> tuple[Split, ...]:
    """The folds alone; there is no fixed test set."""
    return _without_test_set(splits.leave_one_subject_out(samples, **options))


def k_fold(samples, **options) -> tuple[Split, ...]:
    """The folds alone; there is no fixed test set."""
    return _without_test_set(splits.k_fold(samples, **options))


def holdout(samples, **options) -> tuple[Split, ...]:
    """The folds alone; there is no fixed test set."""
    return _without_test_set(splits.holdout(samples, **options))


def _without_test_set(folds: Folds) -> tuple[Split, ...]:
    assert folds.test == ()
    return folds.folds


def ids_of(samples) -> list[tuple[str, str]]:
    """Sample id and subject of each."""
    return [(one.id, one.subject) for one in samples]


@pytest.mark.parametrize("name", ALL_TESTED)
def test_every_sample_is_tested_exactly_once(name):
    """The test sets are a partition of the cohort."""
    tested = [i for split in folds_of(name, SESSIONS).folds for i in split.test]
    assert sorted(tested) == sorted(SUBJECT_OF)


def test_all_registered_splits_are_tested():
    """A new split must be added to the tests of this module."""
    assert set(SPLITS.names()) == {*ALL_TESTED, "by_column", "holdout", "stratified_k_fold"}


@pytest.mark.parametrize("name", SPLITS.names())
def test_each_fold_places_every_sample_once(name):
    """Train, validation and test, or the fixed test set, are disjoint and leave no sample out."""
    folds = folds_of(name, SESSIONS)
    for split in folds.folds:
        tested = folds.test or split.test
        assert sorted(split.train + split.validation + tested) == sorted(SUBJECT_OF)
        assert split.train and split.validation and tested


@pytest.mark.parametrize("name", SPLITS.names())
def test_sessions_of_a_subject_stay_together(name):
    """No subject is in two subsets."""
    folds = folds_of(name, SESSIONS)
    for split in folds.folds:
        parts = (split.train, split.validation, split.test, folds.test)
        subjects = [{SUBJECT_OF[i] for i in part} for part in parts]
        assert sum(map(len, subjects)) == len(set.union(*subjects))
        check_leaks(split, SUBJECT_OF)
    check_test_set(folds, SUBJECT_OF)


@pytest.mark.parametrize("name", SPLITS.names())
def test_the_same_seed_gives_the_same_folds(name):
    """Another seed gives other folds, unless the data fix them."""
    function = SPLITS.get(name).function
    samples = single(21)
    assert function(samples, seed=5) == function(samples, seed=5)
    assert (function(samples, seed=5) != function(samples, seed=6)) is (name != "by_column")


@pytest.mark.parametrize("name", SPLITS.names())
def test_the_global_random_state_is_left_alone(name):
    """Splits use their own random generator."""
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    folds_of(name, SESSIONS)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("name", SPLITS.names())
def test_the_order_of_samples_does_not_change_the_subjects_of_a_fold(name):
    """Shuffled samples give the same sets of ids."""

    def sets(samples):
        folds = folds_of(name, samples)
        parts = {tuple(frozenset(part) for part in (s.train, s.validation, s.test)) for s in folds.folds}
        return parts, frozenset(folds.test)

    assert sets(SESSIONS) == sets(SESSIONS[::-1])


def test_leave_one_out_has_the_published_sizes():
    """21 subjects give 21 folds of 16 training, 4 validation and 1 test subject."""
    splits = leave_one_subject_out(single(21), seed=0)
    assert [(len(s.train), len(s.validation), len(s.test)) for s in splits] == [(16, 4, 1)] * 21


def test_leave_one_out_tests_the_subjects_in_order():
    """The same test folds as scikit-learn's LeaveOneGroupOut."""
    groups = [one.subject for one in SESSIONS]
    expected = [
        tuple(SESSIONS[i].id for i in test)
        for _, test in LeaveOneGroupOut().split(np.zeros(len(groups)), groups=groups)
    ]
    assert [split.test for split in leave_one_subject_out(SESSIONS, seed=0)] == expected


def test_three_subjects_can_be_split():
    """Each fold has one training, one validation and one test subject."""
    for split in leave_one_subject_out(single(3), seed=1):
        assert (len(split.train), len(split.validation), len(split.test)) == (1, 1, 1)


def test_validation_differs_between_folds():
    """Folds draw independently: over 21 folds nearly every subject is drawn."""
    splits = leave_one_subject_out(single(21), seed=0)
    validating = {i for split in splits for i in split.validation}
    assert len(validating) >= 18
    assert len({split.validation for split in splits}) > 15


def test_validation_draw_is_uniform():
    """Over many seeds each of the five remaining subjects is drawn equally often."""
    counts = dict.fromkeys([f"sub-{i:02d}" for i in range(1, 6)], 0)
    for seed in range(1000):
        counts[leave_one_subject_out(single(6), seed=seed)[0].validation[0]] += 1
    # Five standard deviations of a binomial(1000, 1/5).
    assert all(abs(count - 200) < 64 for count in counts.values())


@pytest.mark.parametrize(("validation", "expected"), [(1, 1), (7, 7), (0.1, 2), (0.5, 10), (0.001, 1), ("auto", 4)])
def test_validation_as_number_fraction_or_auto(validation, expected):
    """An int is the number of subjects; a float is a fraction of the 20 remaining ones, rounded, at least 1."""
    assert len(leave_one_subject_out(single(21), seed=0, validation=validation)[0].validation) == expected


def test_k_fold_sizes_differ_by_at_most_one():
    """21 subjects in five folds: 5, 4, 4, 4, 4."""
    assert [len(split.test) for split in k_fold(single(21), seed=0)] == [5, 4, 4, 4, 4]


@pytest.mark.parametrize("name", SPLITS.names())
@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_than_three_subjects_are_refused(name, n):
    """Training, validation and test set need one subject each."""
    with pytest.raises(OutOfRange, match=rf"subjects >= 3 must hold .* got {n}"):
        folds_of(name, single(n))


def test_sessions_do_not_count_as_subjects():
    """Ten sessions of two subjects count as two subjects."""
    samples = tuple(SplitSample(f"sub-{i % 2}_ses-{i}", f"sub-{i % 2}") for i in range(10))
    with pytest.raises(OutOfRange, match="got 2: sub-0, sub-1"):
        leave_one_subject_out(samples, seed=0)


@pytest.mark.parametrize("validation", [-1, 2, 5])
def test_training_set_must_not_be_empty(validation):
    """Of two subjects outside the test set, at most one can be used for validation."""
    with pytest.raises(OutOfRange, match=rf"0 <= validation < .* got split.validation={validation} with 2"):
        leave_one_subject_out(single(3), seed=0, validation=validation)


def test_validation_set_may_be_empty():
    """With validation=0 all subjects outside the test set are used for training."""
    for split in k_fold(single(10), seed=0, folds=5, validation=0):
        assert split.validation == ()
        assert len(split.train) == 8


def test_holdout_sizes():
    """822 samples give 493 (60 %) for training, 164 for validation and 165 for testing."""
    (split,) = holdout(single(822), seed=0)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [493, 164, 165]


@pytest.mark.parametrize(("subjects", "test", "expected"), [(100, 0.07, 7), (10, 0.25, 3), (5, 1e-12, 1)])
def test_size_of_the_test_set_is_rounded_up(subjects: int, test: float, expected: int) -> None:
    """0.07 of 100 subjects is 7 despite floating-point error; the test set has at least one subject."""
    (split,) = holdout(single(subjects), seed=0, test=test)
    assert len(split.test) == expected


@pytest.mark.parametrize("validation", [0.0, 1.0, -0.5])
def test_fraction_must_be_between_zero_and_one(validation):
    """The message states the relation and the value."""
    with pytest.raises(OutOfRange, match=f"0 < validation < 1 must hold .* got {validation}"):
        leave_one_subject_out(single(5), seed=0, validation=validation)


@pytest.mark.parametrize("validation", ["most", True])
def test_invalid_validation_raises(validation):
    """Neither other strings nor bools are accepted."""
    with pytest.raises(OutOfRange, match="validation must be a number of subjects"):
        leave_one_subject_out(single(5), seed=0, validation=validation)


@pytest.mark.parametrize("folds", [1, 6])
def test_number_of_folds_must_be_between_two_and_subjects(folds):
    """The message suggests leave_one_subject_out."""
    with pytest.raises(
        OutOfRange, match=rf"2 <= folds <= subjects .* got split.folds={folds} with 5.*leave_one_subject_out"
    ):
        k_fold(single(5), seed=0, folds=folds)


def test_a_sample_id_twice_is_refused():
    """Sample ids must be unique."""
    with pytest.raises(OutOfRange, match="sample ids must differ, got a more than once"):
        leave_one_subject_out([SplitSample("a", "1"), SplitSample("a", "2"), SplitSample("b", "3")], seed=0)


def test_leak_names_the_subject_and_both_subsets():
    """Sessions of the same subject in training and test set are a leak."""
    split = Split(train=("sub-0_ses-0",), validation=("sub-1_ses-0",), test=("sub-0_ses-1", "sub-0_ses-2"))
    with pytest.raises(HarnessError, match="one subset of a split, got sub-0 in train and test"):
        check_leaks(split, SUBJECT_OF)


def test_a_sample_the_cohort_does_not_have_is_refused():
    """A split of another cohort raises."""
    with pytest.raises(HarnessError, match="only name samples of its cohort, got sub-99"):
        check_leaks(Split(("sub-99",), ("sub-1_ses-0",), ("sub-2_ses-0",)), SUBJECT_OF)


def test_a_sample_listed_twice_is_refused():
    """A sample may occur once per split."""
    with pytest.raises(HarnessError, match="got sub-0_ses-0 more than once"):
        check_leaks(Split(("sub-0_ses-0",) * 2, ("sub-1_ses-0",), ("sub-2_ses-0",)), SUBJECT_OF)


def test_subjects_of_the_test_set_in_folds_raise():
    """The message names subjects used for training and for validation."""
    folds = Folds(
        (Split(("sub-0_ses-0",), ("sub-1_ses-0",), ()), Split(("sub-3_ses-0",), ("sub-2_ses-0",), ())),
        ("sub-0_ses-1", "sub-2_ses-1", "sub-4_ses-0"),
    )
    with pytest.raises(HarnessError, match="fixed test set may be in a fold, got sub-0, sub-2; remove them"):
        check_test_set(folds, SUBJECT_OF)


def test_folds_with_unknown_samples_are_refused():
    """Unknown samples of folds and of the test set are listed."""
    folds = Folds((Split(("sub-77",), ("sub-1_ses-0",), ()),), ("sub-99",))
    with pytest.raises(HarnessError, match="only name samples of its cohort, got sub-77, sub-99"):
        check_test_set(folds, SUBJECT_OF)


def sentence_of(folds, samples) -> str:
    """Description of the folds."""
    return describe_validation(folds, ids_of(samples))


def test_description_gives_the_sizes():
    """The sizes for 21 subjects, and how the validation set is drawn."""
    sentence = sentence_of(splits.leave_one_subject_out(single(21), seed=0), single(21))
    assert sentence.startswith("21 subjects, 21 folds: train 16, validate 4 (to select the epoch), test 1. ")
    assert "drawn at random from those not tested" in sentence
    assert "intervals are wide" not in sentence


def test_description_warns_of_few_subjects():
    """With three subjects the description says that results depend on the split."""
    sentence = sentence_of(splits.leave_one_subject_out(single(3), seed=0), single(3))
    assert "train 1, validate 1" in sentence
    assert "With only 3 subjects, intervals are wide and results depend on the split." in sentence


def test_description_shows_uneven_folds():
    """Folds of five and four are shown as 4/5."""
    assert "test 4/5." in sentence_of(splits.k_fold(single(21), seed=0), single(21))


def test_description_says_that_there_is_no_validation_set():
    """Then the last epoch is used."""
    sentence = sentence_of(splits.k_fold(single(20), seed=0, validation=0), single(20))
    assert sentence.startswith("20 subjects, 5 folds: train 16, test 4. No validation set; the last epoch is used.")


def test_description_mentions_the_fixed_test_set():
    """It gives the number of subjects in the test set and how they are predicted."""
    sentence = sentence_of(stratified_k_fold(single(20), seed=0, folds=4), single(20))
    assert sentence.startswith(
        "20 subjects: 4 in a fixed test set, on which the networks of all folds are averaged; 4 folds: train 12, "
        "validate 4."
    )


# --- stratified folds with a fixed test set ---


def visits(seed: int, n: int = 60, *, share: float = 0.3) -> tuple[SplitSample, ...]:
    """Two visits per subject, with a rare class, a number and two covariates; targets may differ between visits."""
    rng = np.random.default_rng(seed)
    return tuple(
        SplitSample(
            f"sub-{i:02d}_ses-{k}",
            f"sub-{i:02d}",
            targets={"relapse": float(rng.random() < share), "age": float(rng.uniform(20, 80))},
            covariates={"site": "ABC"[i % 3], "scanner": None if i % 3 else "X"},
        )
        for i in range(n)
        for k in range(2)
    )


def share_of(ids, samples, value, by) -> float:
    """Frequency of a class among some samples."""
    known = {one.id: one.targets.get(by, one.covariates.get(by)) for one in samples}
    return float(np.mean([known[name] == value for name in ids]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("by", "value"), [("relapse", 1.0), ("site", "B"), ("scanner", "X"), ("scanner", None)])
def test_class_frequencies_are_preserved(seed, by, value):
    """In each fold and in the test set, for targets, covariates and missing values."""
    samples = visits(seed)
    folds = stratified_k_fold(samples, seed=seed, by=by, folds=4, test=0.2)
    expected = share_of([one.id for one in samples], samples, value, by)
    for ids in (folds.test, *(split.validation for split in folds.folds)):
        assert share_of(ids, samples, value, by) == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("seed", range(3))
def test_numbers_are_stratified_by_quintiles(seed):
    """Each fold has about a fifth of its samples in each quintile of age."""
    samples = visits(seed)
    edges = np.quantile([one.targets["age"] for one in samples], [0.2, 0.4, 0.6, 0.8])
    age = {one.id: one.targets["age"] for one in samples}
    folds = stratified_k_fold(samples, seed=seed, by="age", folds=3)
    for ids in (folds.test, *(split.validation for split in folds.folds)):
        counts = np.bincount(np.searchsorted(edges, [age[name] for name in ids]), minlength=5)
        np.testing.assert_allclose(counts / len(ids), 0.2, atol=0.08)


def test_each_sample_outside_the_test_set_is_validated_once():
    """Validation sets and test set are a partition of the cohort."""
    samples = visits(0)
    folds = stratified_k_fold(samples, seed=0, by="relapse", folds=5)
    validating = [name for split in folds.folds for name in split.validation]
    assert sorted((*validating, *folds.test)) == sorted(one.id for one in samples)


@pytest.mark.parametrize(("test", "part"), [(0.5, 2), (0.34, 3), (0.25, 4), (0.2, 5), (0.1, 10), (0.11, 9)])
def test_size_of_the_test_set(test, part):
    """``test`` is rounded to the nearest of 1/2, 1/3, 1/4, …."""
    folds = stratified_k_fold(single(180), seed=1, test=test)
    assert abs(len(folds.test) - 180 / part) <= 1


def test_test_subjects_are_the_test_set():
    """The test set holds all of their samples and no others, regardless of ``test`` and the seed."""
    samples = visits(0)
    folds = stratified_k_fold(samples, seed=0, by="relapse", test=0.5, test_subjects=("sub-40", "sub-03"))
    assert folds.test == ("sub-03_ses-0", "sub-03_ses-1", "sub-40_ses-0", "sub-40_ses-1")
    check_test_set(folds, {one.id: one.subject for one in samples})
    assert stratified_k_fold(samples, seed=9, test_subjects=("sub-40", "sub-03")).test == folds.test


def test_each_fold_is_tested_without_a_test_set():
    """There is no validation set, and every sample is tested once."""
    samples = visits(0)
    folds = stratified_k_fold(samples, seed=0, by="relapse", folds=4, test=0)
    assert folds.test == () and not any(split.validation for split in folds.folds)
    assert sorted(name for split in folds.folds for name in split.test) == sorted(one.id for one in samples)
    for split in folds.folds:
        check_leaks(split, {one.id: one.subject for one in samples})
        assert share_of(split.test, samples, 1.0, "relapse") == pytest.approx(0.3, abs=0.08)


def test_unique_values_are_not_stratified():
    """If each sample has a class of its own, folds have equal sizes."""
    samples = [SplitSample(f"s{i}", f"s{i}", covariates={"name": f"name {i}"}) for i in range(12)]
    folds = stratified_k_fold(samples, seed=0, by="name", folds=3, test=0.25)
    assert [len(split.validation) for split in folds.folds] == [3, 3, 3] and len(folds.test) == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"by": "relaps"}, UnknownName, r"no target or covariate to stratify by is named 'relaps'\. Near: relapse"),
        ({"test_subjects": ("sub-3",)}, UnknownName, r"no subject of the cohort \(split\.test_subjects\) .* 'sub-3'"),
        (
            {"folds": 49},
            OutOfRange,
            "folds <= subjects outside the test set .* got split.folds=49 with 48 subjects; reduce split.folds, "
            "or set split.test=0",
        ),
        (
            {"test": 0.01},
            OutOfRange,
            "1 / test <= subjects must hold .* got split.test=0.01 with 60 subjects; increase split.test, "
            "or set split.test=0",
        ),
        (
            {"test_subjects": tuple(f"sub-{i:02d}" for i in range(58))},
            OutOfRange,
            "got split.folds=3 with 2 subjects; reduce split.folds, or name fewer split.test_subjects",
        ),
    ],
)
def test_impossible_stratified_folds_are_refused(options, error, message):
    """The message states the relation, the value and the remedy."""
    with pytest.raises(error, match=message):
        stratified_k_fold(visits(0), seed=0, **options)


@pytest.mark.parametrize(("option", "value"), [("test", 0.6), ("test", -0.1), ("folds", 1)])
def test_options_outside_their_bounds_are_refused(option, value):
    """Options are checked before data are read."""
    with pytest.raises(OutOfRange, match=rf"{option} must be a .*number >= .*, got {value}"):
        describe_component(SPLITS, partial(stratified_k_fold, **{option: value}))


COLUMN = tuple(
    SplitSample(f"s{n}", f"slide-{n // 2}", {}, {"split": ("train", "valid", "test")[n // 4], "site": "A"})
    for n in range(12)
)


def test_fixed_subsets_are_those_of_the_column() -> None:
    """Whatever the seed."""
    expected = Split(*(tuple(one.id for one in COLUMN[4 * n : 4 * n + 4]) for n in range(3)))
    assert [splits.by_column(COLUMN, seed=seed).folds for seed in (0, 1)] == [(expected,), (expected,)]


def test_a_fixed_split_may_have_no_validation_set() -> None:
    """Its value is then empty, and no sample may have another one."""
    (fold,) = splits.by_column(COLUMN[:8], seed=0, validation="", test="valid").folds
    assert (len(fold.train), fold.validation, len(fold.test)) == (4, (), 4)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        (COLUMN[:8], {}, "no sample has split=test"),
        (COLUMN, {"test": "held"}, "no sample has split=held; 4 samples have split=test"),
        ((*COLUMN, SplitSample("x", "slide-0", {}, {"split": "test"})), {}, "slide-0 is in test and train"),
        ((*COLUMN, SplitSample("x", "slide-9")), {}, "1 samples have split=n/a"),
    ],
)
def test_fixed_subsets_that_do_not_fit_are_refused(samples, options, message) -> None:
    """A leak, an empty subset and samples without a subset are errors."""
    with pytest.raises(OutOfRange, match=message):
        splits.by_column(samples, seed=0, **options)


def test_a_fixed_split_without_its_column_is_refused() -> None:
    """The message lists the columns."""
    with pytest.raises(UnknownName, match=r"'fold'.*All: site, split\."):
        splits.by_column(COLUMN, seed=0, column="fold")


def test_description_of_a_fixed_split() -> None:
    """No subject was drawn."""
    folds = splits.by_column(COLUMN, seed=0)
    assert describe_validation(folds, ids_of(COLUMN), fixed=True).endswith(
        "train 2, validate 2 (to select the epoch), test 2. The data fix the subsets; no subject is in two of them."
    )
