"""Splits into training, validation and test samples, with all samples of a subject in the same subset.

A split takes samples (:class:`~harness.core.types.SplitSample`) and returns
:class:`~harness.core.types.Folds`. Validation subjects are drawn from subjects that are not
tested, so that models are never selected on test subjects.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import annotated_types
import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from harness.core.errors import HarnessError, OutOfRange, UnknownName
from harness.core.registry import SPLITS
from harness.core.seeding import generator, seed_of
from harness.core.types import Folds, Split, SplitSample

__all__ = [
    "Validation",
    "by_column",
    "check_leaks",
    "check_test_set",
    "describe_validation",
    "holdout",
    "k_fold",
    "leave_one_subject_out",
    "stratified_k_fold",
]

Validation = int | float | Literal["auto"]

_MANY_VALUES = 10  # numbers with more values are divided into quintiles for stratification
_LISTED = 8  # largest number of problems in a message
_AUTO = 1 / 5  # of 20 subjects, 16 train and 4 validate (the ePVS study)


@SPLITS.register("leave_one_subject_out", source="the ePVS sequence study: of 20, 16 train and 4 validate")
def leave_one_subject_out(samples: Sequence[SplitSample], *, seed: int, validation: Validation = "auto") -> Folds:
    """Leave-one-subject-out cross-validation.

    Parameters
    ----------
    samples : samples in the order of the cohort
    seed : seed for drawing validation subjects
    validation : validation subjects of each fold: a number, a share in (0, 1), or ``auto``
        for one fifth. Shares are rounded to at least one subject. 0 needs a recipe that
        keeps the last epoch

    Returns
    -------
    Folds
        One fold per subject, in the order of their first samples.

    Raises
    ------
    OutOfRange
        If there are fewer than three subjects, or no subject would remain for training.

    Notes
    -----
    The validation subjects of a fold depend on the seed, the test subject and the other
    subjects, but not on their order.
    """
    tested = [(subject,) for subject in _subjects_of(samples)]
    return _folds(samples, tested, seed=seed, validation=validation)


@SPLITS.register("k_fold")
def k_fold(
    samples: Sequence[SplitSample],
    *,
    seed: int,
    folds: Annotated[int, annotated_types.Ge(2)] = 5,
    validation: Validation = "auto",
) -> Folds:
    """K-fold cross-validation, with subjects assigned at random to folds of equal size (± one).

    Parameters
    ----------
    samples : samples in the order of the cohort
    seed : seed of the assignment, and for drawing validation subjects
    folds : number of folds, from 2 to the number of subjects
    validation : validation subjects of each fold: a number, a share in (0, 1), or ``auto``
        for one fifth. Shares are rounded to at least one subject. 0 needs a recipe that
        keeps the last epoch

    Raises
    ------
    OutOfRange
        If there are fewer subjects than folds, or no subject would remain for training.
    """
    subjects = _subjects_of(samples)
    if not 2 <= folds <= len(subjects):
        raise OutOfRange(
            f"2 <= folds <= subjects must hold for k_fold, got split.folds={folds} with {len(subjects)} subjects; "
            "reduce split.folds, or use split=leave_one_subject_out"
        )
    # Sorted, so that the result does not depend on the order of subjects.
    permuted = generator(seed, "split", "k_fold").permutation(np.array(sorted(subjects), dtype=object))
    tested = [tuple(fold) for fold in np.array_split(permuted, folds)]
    return _folds(samples, tested, seed=seed, validation=validation)


@SPLITS.register("holdout", source="60 % train, 20 % validate, 20 % are tested")
def holdout(
    samples: Sequence[SplitSample],
    *,
    seed: int,
    test: Annotated[float, annotated_types.Gt(0), annotated_types.Lt(1)] = 0.2,
    validation: Validation = 0.25,
) -> Folds:
    """Single random split into training, validation and test subjects.

    Parameters
    ----------
    samples : samples in the order of the cohort
    seed : seed for drawing test and validation subjects
    test : share of test subjects, rounded up; with the defaults, 822 subjects are split
        into 493, 164 and 165
    validation : validation subjects: a number, a share in (0, 1) of the subjects that are
        not tested, or ``auto`` for one fifth of them
    """
    subjects = sorted(_subjects_of(samples))
    count = max(1, math.ceil(round(test * len(subjects), 9)))  # .07 of 100 is a little more than 7
    drawn = generator(seed, "split", "holdout").permutation(np.array(subjects, dtype=object))
    return _folds(samples, [tuple(drawn[:count])], seed=seed, validation=validation)


@SPLITS.register("by_column", source="the official splits of the data", fixed=True)
def by_column(
    samples: Sequence[SplitSample],
    *,
    seed: int,
    column: str = "split",
    train: str = "train",
    validation: str = "valid",
    test: str = "test",
) -> Folds:
    """Fixed training, validation and test samples, from a column of the table of the data.

    Parameters
    ----------
    samples : samples in the order of the cohort
    seed : unused; the split is always the same
    column : name of the column
    train : value of the column for training samples
    validation : value of the column for validation samples; empty for none, which needs a
        recipe that keeps the last epoch
    test : value of the column for test samples

    Raises
    ------
    UnknownName
        If there is no such column.
    OutOfRange
        If there are fewer than three subjects, a subset has no sample, samples have another
        value, or a subject is in several subsets; all of these are listed.
    """
    _subjects_of(samples)  # at least three, and no id twice
    values = {one.id: one.covariates.get(column) for one in samples}
    if all(value is None for value in values.values()):
        raise UnknownName("covariate (split.column)", column, {name for one in samples for name in one.covariates})
    wanted = [value for value in (train, validation, test) if value]
    found = {value: tuple(name for name, own in values.items() if str(own) == value) for value in wanted}
    problems = [f"no sample has {column}={value}" for value, names in found.items() if not names]
    problems += [f"{len(names)} samples have {column}={own}" for own, names in _others(values, wanted).items()]
    subsets: dict[str, set[str]] = {}
    for one in samples:
        subsets.setdefault(one.subject, set()).add(str(values[one.id]))
    problems += [
        f"{subject} is in {' and '.join(sorted(own))}" for subject, own in sorted(subsets.items()) if len(own) > 1
    ]
    if problems:
        shown = "; ".join(problems[:_LISTED]) + ("; …" if len(problems) > _LISTED else "")
        raise OutOfRange(
            f"split=by_column needs samples with {column} = {', '.join(wanted)}, and each subject in one of them, but "
            f"{shown}; set split.train, split.validation or split.test, leave subjects out (exclude=), or use "
            "another split"
        )
    return Folds((Split(found[train], found[validation] if validation else (), found[test]),))


def _others(values: Mapping[str, float | str | None], wanted: Sequence[str]) -> dict[str, list[str]]:
    """Samples by their value, if it is not wanted."""
    found: dict[str, list[str]] = {}
    for name, value in values.items():
        if str(value) not in wanted:
            found.setdefault("n/a" if value is None else str(value), []).append(name)
    return found


@SPLITS.register("stratified_k_fold", source="scikit-learn's StratifiedGroupKFold")
def stratified_k_fold(
    samples: Sequence[SplitSample],
    *,
    seed: int,
    by: str = "",
    folds: Annotated[int, annotated_types.Ge(2)] = 3,
    test: Annotated[float, annotated_types.Ge(0), annotated_types.Le(0.5)] = 0.2,
    test_subjects: tuple[str, ...] = (),
) -> Folds:
    """Stratified cross-validation with an optional fixed test set.

    Each fold is used once for validation and the other folds for training. All samples of
    a subject are in the same subset, even if their classes differ.

    Parameters
    ----------
    samples : samples in the order of the cohort
    seed : seed of the random assignment
    by : target or covariate for stratification; numbers with more than ten values are
        divided into quintiles. Empty for no stratification
    folds : number of folds outside the test set
    test : approximate share of samples in the fixed test set, rounded to 1/2, 1/3, 1/4, …;
        with 0 there is no fixed test set, and each fold is tested once, without validation
    test_subjects : subjects of the fixed test set, instead of drawing them

    Returns
    -------
    Folds
        Folds without test samples, and the fixed test set. Without a fixed test set, folds
        with test samples.

    Raises
    ------
    OutOfRange
        If there are too few subjects, or no subject would remain for training.
    UnknownName
        If there is no such target, covariate or subject.

    Notes
    -----
    The assignment depends on the seed and the samples, but not on their order.
    """
    subjects = _subjects_of(samples)
    for name in test_subjects:
        if name not in subjects:
            raise UnknownName("subject of the cohort (split.test_subjects)", name, subjects)
    class_of = dict(zip((one.id for one in samples), _classes(samples, by), strict=True))
    held = frozenset(test_subjects)
    if test and not held:
        count = round(1 / test)
        if len(subjects) < count:
            raise OutOfRange(
                f"1 / test <= subjects must hold for stratified_k_fold, got split.test={test} with {len(subjects)} "
                "subjects; increase split.test, or set split.test=0 for no test set"
            )
        held = _stratified(samples, class_of, count, seed=seed_of(seed, "split", "test"))[0]
    rest = [one for one in samples if one.subject not in held]
    left = len({one.subject for one in rest})
    if left < folds:
        remedy = "name fewer split.test_subjects" if test_subjects else "set split.test=0 for no test set"
        raise OutOfRange(
            f"folds <= subjects outside the test set must hold for stratified_k_fold, got split.folds={folds} with "
            f"{left} subjects; reduce split.folds, or {remedy}"
        )
    found = []
    for chosen in _stratified(rest, class_of, folds, seed=seed_of(seed, "split", "stratified")):
        train = tuple(one.id for one in rest if one.subject not in chosen)
        other = tuple(one.id for one in rest if one.subject in chosen)
        found.append(Split(train, other, ()) if held else Split(train, (), other))
    return Folds(tuple(found), tuple(one.id for one in samples if one.subject in held))


def _stratified(
    samples: Sequence[SplitSample], class_of: Mapping[str, int], count: int, *, seed: int
) -> tuple[frozenset[str], ...]:
    """Groups of subjects with approximately equal shares of each class."""
    # Sorted, so that the result does not depend on the order of samples.
    ordered = sorted(samples, key=lambda one: (one.subject, one.id))
    classes = [class_of[one.id] for one in ordered]
    if max(np.bincount(classes)) < count:
        classes = [0] * len(ordered)  # no class has a sample for every group
    subjects = np.array([one.subject for one in ordered])
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        # Ignore the warning that a class has fewer samples than there are groups.
        warnings.simplefilter("ignore", UserWarning)
        return tuple(frozenset(subjects[chosen]) for _, chosen in splitter.split(subjects, classes, subjects))


def _classes(samples: Sequence[SplitSample], by: str) -> npt.NDArray[np.intp]:
    """Index of the class of each sample, (n,)."""
    if not by:
        return np.zeros(len(samples), np.intp)
    values = [one.targets[by] if by in one.targets else one.covariates.get(by) for one in samples]
    if all(value is None for value in values):
        known = sorted({name for one in samples for name in (*one.targets, *one.covariates)})
        raise UnknownName("target or covariate to stratify by", by, known)
    texts = ["" if value is None else str(value) for value in values]
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(set(numbers)) > _MANY_VALUES:
        edges = np.quantile(numbers, [0.2, 0.4, 0.6, 0.8])
        texts = [
            str(int(np.searchsorted(edges, value, side="right"))) if isinstance(value, int | float) else ""
            for value in values
        ]
    return np.unique(texts, return_inverse=True)[1]


def describe_validation(folds: Folds, samples: Sequence[tuple[str, str]], *, fixed: bool = False) -> str:
    """Describe the numbers of training, validation and test subjects in one sentence for the console.

    Parameters
    ----------
    folds : the folds
    samples : pairs of sample id and subject
    fixed : whether the data fix the subsets, rather than a random draw
    """
    subject_of = dict(samples)

    def counts(side: str) -> str:
        numbers = sorted({len({subject_of[i] for i in getattr(split, side)}) for split in folds.folds})
        return "/".join(map(str, numbers))

    total = len(dict.fromkeys(subject_of.values()))
    many = f"{len(folds.folds)} fold{'s' if len(folds.folds) != 1 else ''}"
    validated = any(split.validation for split in folds.folds)
    if folds.test:
        tested = len({subject_of[i] for i in folds.test})
        sentence = (
            f"{total} subjects: {tested} in a fixed test set, on which the networks of all folds are averaged; {many}: "
            f"train {counts('train')}, validate {counts('validation')}. All samples of a subject stay together."
        )
    elif validated:
        how = (
            "The data fix the subsets; no subject is in two of them."
            if fixed
            else "Validation subjects are drawn at random from those not tested, and all samples of a subject stay "
            "together."
        )
        sentence = (
            f"{total} subjects, {many}: train {counts('train')}, validate {counts('validation')} (to select the "
            f"epoch), test {counts('test')}. {how}"
        )
    else:
        sentence = (
            f"{total} subjects, {many}: train {counts('train')}, test {counts('test')}. No validation set; the last "
            "epoch is used. All samples of a subject stay together."
        )
    if total < 6:
        sentence += f" With only {total} subjects, intervals are wide and results depend on the split."
    return sentence


def check_leaks(split: Split, subjects: Mapping[str, str]) -> None:
    """Check that no subject is in two subsets of a fold.

    Parameters
    ----------
    split : sample ids of one fold
    subjects : sample id → subject

    Raises
    ------
    HarnessError
        If a subject is in two subsets, a sample is listed twice, or a sample is not in the
        cohort; all of them are listed.
    """
    subsets = {"train": split.train, "validation": split.validation, "test": split.test}
    unknown = sorted({i for ids in subsets.values() for i in ids if i not in subjects})
    if unknown:
        raise HarnessError(f"a split may only name samples of its cohort, got {', '.join(unknown)}")
    twice = sorted({name for ids in subsets.values() for name, count in Counter(ids).items() if count > 1})
    if twice:
        raise HarnessError(f"a split may name a sample once, got {', '.join(twice)} more than once")
    found: dict[str, list[str]] = {}
    for subset, ids in subsets.items():
        for subject in sorted({subjects[i] for i in ids}):
            found.setdefault(subject, []).append(subset)
    leaks = [f"{subject} in {' and '.join(where)}" for subject, where in sorted(found.items()) if len(where) > 1]
    if leaks:
        raise HarnessError(
            f"all samples of a subject must be in one subset of a split, got {'; '.join(leaks)}; split by subject"
        )


def check_test_set(folds: Folds, subjects: Mapping[str, str]) -> None:
    """Check that folds contain no subject of the fixed test set.

    Parameters
    ----------
    folds : the folds and the fixed test set
    subjects : sample id → subject

    Raises
    ------
    HarnessError
        If a fold contains subjects of the test set, or a sample is not in the cohort; all of
        them are listed.
    """
    named = {name for split in folds.folds for name in (*split.train, *split.validation, *split.test)}
    if unknown := sorted((named | set(folds.test)) - set(subjects)):
        raise HarnessError(f"a split may only name samples of its cohort, got {', '.join(unknown)}")
    held = {subjects[name] for name in folds.test}
    inside = {
        subjects[name]
        for split in folds.folds
        for name in (*split.train, *split.validation, *(split.test if folds.test else ()))
    }
    if shared := sorted(held & inside):
        raise HarnessError(
            f"no subject of the fixed test set may be in a fold, got {', '.join(shared)}; remove them from the folds"
        )


def _subjects_of(samples: Sequence[SplitSample]) -> list[str]:
    ids = [one.id for one in samples]
    if len(set(ids)) != len(ids):
        twice = sorted(name for name, count in Counter(ids).items() if count > 1)
        raise OutOfRange(f"sample ids must differ, got {', '.join(twice)} more than once")
    subjects = list(dict.fromkeys(one.subject for one in samples))
    if len(subjects) < 3:
        raise OutOfRange(
            f"subjects >= 3 must hold for a split (one trains, one validates, one is tested), got {len(subjects)}: "
            f"{', '.join(subjects) or 'none'}; add subjects"
        )
    return subjects


def _folds(
    samples: Sequence[SplitSample], tested: Sequence[Sequence[str]], *, seed: int, validation: Validation
) -> Folds:
    subjects = {one.subject for one in samples}
    splits = []
    for test in tested:
        remaining = sorted(subjects - set(test))
        count = _validation_count(len(remaining), validation)
        draw = generator(seed, "split", "validation", *sorted(test))
        chosen = {remaining[i] for i in draw.permutation(len(remaining))[:count]}
        splits.append(
            Split(
                train=tuple(one.id for one in samples if one.subject not in chosen and one.subject not in test),
                validation=tuple(one.id for one in samples if one.subject in chosen),
                test=tuple(one.id for one in samples if one.subject in test),
            )
        )
    return Folds(tuple(splits))


def _validation_count(remaining: int, validation: Validation) -> int:
    if isinstance(validation, bool) or (isinstance(validation, str) and validation != "auto"):
        raise OutOfRange(f"validation must be a number of subjects, a share in (0, 1) or 'auto', got {validation!r}")
    if isinstance(validation, int):
        count = validation
    else:
        share = _AUTO if isinstance(validation, str) else validation
        if not 0 < share < 1:
            raise OutOfRange(f"0 < validation < 1 must hold for a share of subjects, got {validation}")
        count = max(1, math.floor(share * remaining + 0.5))
    if not 0 <= count < remaining:
        raise OutOfRange(
            f"0 <= validation < subjects that are not tested must hold, got split.validation={count} with {remaining} "
            "not tested, so that some remain for training; reduce split.validation, increase split.folds, or add "
            "subjects"
        )
    return count
