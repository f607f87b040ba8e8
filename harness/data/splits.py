"""Splits into training, validation and test samples; all samples of a subject stay together.

A split takes what it may know of the samples (:class:`~harness.core.types.SplitSample`)
and gives :class:`~harness.core.types.Folds`. Validation subjects are drawn among
those that are not tested, so that a model is never selected on its test
subjects.
"""

from __future__ import annotations

import math
import warnings
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
    "check_leaks",
    "check_test_set",
    "describe_validation",
    "holdout",
    "k_fold",
    "leave_one_subject_out",
    "stratified_k_fold",
]

Validation = int | float | Literal["auto"]

_MANY_VALUES = 10  # a number with more is cut into fifths to stratify by it
_AUTO = 1 / 5  # of 20 subjects, 16 train and 4 validate (the ePVS study)


@SPLITS.register("leave_one_subject_out", source="the ePVS sequence study: of 20, 16 train and 4 validate")
def leave_one_subject_out(samples: Sequence[SplitSample], *, seed: int, validation: Validation = "auto") -> Folds:
    """One fold per subject: it is tested, the others train and validate.

    Parameters
    ----------
    samples : in the cohort's order
    seed : of the draw of validation subjects
    validation : subjects that validate: a number (0 for a recipe that keeps the last
        epoch), a share in (0, 1), or ``"auto"`` for one fifth; shares are rounded,
        and at least one subject validates

    Returns
    -------
    Folds
        One per subject, in the order of their first samples

    Raises
    ------
    OutOfRange
        With fewer than three subjects, or if no subject would be left to train.

    Notes
    -----
    The draw of a fold depends on the seed, the subject that it tests and the
    remaining subjects, not on their order.
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
    """Subjects are dealt at random into folds of equal size (± one); each fold is tested once.

    Parameters
    ----------
    samples, seed, validation : see :func:`leave_one_subject_out`
    folds : number of folds, from 2 to the number of subjects

    Raises
    ------
    OutOfRange
        If there are fewer subjects than folds, or none would be left to train.
    """
    subjects = _subjects_of(samples)
    if not 2 <= folds <= len(subjects):
        raise OutOfRange(
            f"2 <= folds <= subjects must hold for k_fold, got folds={folds} with {len(subjects)} subjects; "
            "ask for fewer folds, or use leave_one_subject_out"
        )
    # Sorted first: the same subjects in another order are dealt alike.
    dealt = generator(seed, "split", "k_fold").permutation(np.array(sorted(subjects), dtype=object))
    tested = [tuple(part) for part in np.array_split(dealt, folds)]
    return _folds(samples, tested, seed=seed, validation=validation)


@SPLITS.register("holdout", source="60 % train, 20 % validate, 20 % are tested")
def holdout(
    samples: Sequence[SplitSample],
    *,
    seed: int,
    test: Annotated[float, annotated_types.Gt(0), annotated_types.Lt(1)] = 0.2,
    validation: Validation = 0.25,
) -> Folds:
    """One fold: a share of the subjects is tested once.

    Parameters
    ----------
    samples, seed : see :func:`leave_one_subject_out`
    test : share of the subjects, rounded up: 822 are split 493, 164 and 165
    validation : among the others; a quarter of them is a fifth of all
    """
    subjects = sorted(_subjects_of(samples))
    count = max(1, math.ceil(round(test * len(subjects), 9)))  # .07 of 100 is a little more than 7
    drawn = generator(seed, "split", "holdout").permutation(np.array(subjects, dtype=object))
    return _folds(samples, [tuple(drawn[:count])], seed=seed, validation=validation)


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
    """A fixed test set, and folds of the other samples with about equal shares of each class.

    Each fold validates once and the others train; the test set is touched by none.
    All samples of a subject, whatever their classes, are on one side.

    Parameters
    ----------
    samples : in the cohort's order
    seed : of the draw
    by : target or covariate whose classes are spread evenly; a number with more than
        ten values is cut into fifths. Empty stratifies by nothing
    folds : of the samples outside the test set
    test : share of the samples in the test set, about: one half, one third, one fourth,
        …, whichever is nearest. 0 keeps none apart: each fold is tested once, and none
        validate
    test_subjects : subjects of the test set by name, instead of a draw

    Returns
    -------
    Folds
        Folds without a test set of their own, and the fixed test set; with neither
        ``test`` nor ``test_subjects``, folds that are tested

    Raises
    ------
    OutOfRange
        If there are too few subjects, or nothing would be left to train.
    UnknownName
        If no sample has the target or covariate, or there is no such subject.

    Notes
    -----
    The draw depends on the seed and the samples, not on their order.
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
                f"1 / test <= subjects must hold for stratified_k_fold, got test={test} with {len(subjects)} subjects; "
                "ask for a larger share"
            )
        held = _dealt(samples, class_of, count, seed=seed_of(seed, "split", "test"))[0]
    rest = [one for one in samples if one.subject not in held]
    left = len({one.subject for one in rest})
    if left < folds:
        raise OutOfRange(
            f"folds <= subjects outside the test set must hold for stratified_k_fold, got folds={folds} with "
            f"{left} subjects; ask for fewer folds, or a smaller test set"
        )
    found = []
    for chosen in _dealt(rest, class_of, folds, seed=seed_of(seed, "split", "stratified")):
        train = tuple(one.id for one in rest if one.subject not in chosen)
        apart = tuple(one.id for one in rest if one.subject in chosen)
        found.append(Split(train, apart, ()) if held else Split(train, (), apart))
    return Folds(tuple(found), tuple(one.id for one in samples if one.subject in held))


def _dealt(
    samples: Sequence[SplitSample], class_of: Mapping[str, int], count: int, *, seed: int
) -> tuple[frozenset[str], ...]:
    """Subjects in groups that have about equal shares of each class."""
    # Sorted first: the same samples in another order are dealt alike.
    ordered = sorted(samples, key=lambda one: (one.subject, one.id))
    classes = [class_of[one.id] for one in ordered]
    if max(np.bincount(classes)) < count:
        classes = [0] * len(ordered)  # no class has a sample for every group
    subjects = np.array([one.subject for one in ordered])
    dealer = StratifiedGroupKFold(count, shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():
        # A class with fewer samples than groups cannot be in all of them.
        warnings.simplefilter("ignore", UserWarning)
        return tuple(frozenset(subjects[chosen]) for _, chosen in dealer.split(subjects, classes, subjects))


def _classes(samples: Sequence[SplitSample], by: str) -> npt.NDArray[np.intp]:
    """Number of the class of each sample, (n,)."""
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


def describe_validation(folds: Folds, samples: Sequence[tuple[str, str]]) -> str:
    """One sentence for the screen: how many subjects train, validate and are tested, and how they were drawn.

    Parameters
    ----------
    samples : (sample id, subject) each
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
        sentence = (
            f"{total} subjects, {many}: train {counts('train')}, validate {counts('validation')} (they select the "
            f"model), test {counts('test')}. Validation subjects are drawn by the seed among those not tested, and all "
            "samples of a subject stay together."
        )
    else:
        sentence = (
            f"{total} subjects, {many}: train {counts('train')}, test {counts('test')}. No validation set; the last "
            "epoch is used. All samples of a subject stay together."
        )
    if total < 6:
        sentence += f" With {total} subjects intervals are wide, and one draw can decide a fold."
    return sentence


def check_leaks(split: Split, subjects: Mapping[str, str]) -> None:
    """Refuse a fold in which a subject is on two sides.

    Parameters
    ----------
    split : sample ids of one fold
    subjects : sample id → subject

    Raises
    ------
    HarnessError
        Naming every subject in two parts, every sample listed twice and every
        sample that the cohort does not have.
    """
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    unknown = sorted({i for ids in parts.values() for i in ids if i not in subjects})
    if unknown:
        raise HarnessError(f"a split may only name samples of its cohort, got {', '.join(unknown)}")
    twice = sorted({i for ids in parts.values() for i in ids if ids.count(i) > 1})
    if twice:
        raise HarnessError(f"a split may name a sample once, got {', '.join(twice)} more than once")
    sides: dict[str, list[str]] = {}
    for part, ids in parts.items():
        for subject in sorted({subjects[i] for i in ids}):
            sides.setdefault(subject, []).append(part)
    leaks = [f"{subject} in {' and '.join(where)}" for subject, where in sorted(sides.items()) if len(where) > 1]
    if leaks:
        raise HarnessError(
            f"all samples of a subject must be on one side of a split, got {'; '.join(leaks)}; split by subject"
        )


def check_test_set(folds: Folds, subjects: Mapping[str, str]) -> None:
    """Refuse folds that touch the fixed test set.

    Parameters
    ----------
    folds : of a split
    subjects : sample id → subject

    Raises
    ------
    HarnessError
        Naming every subject of the test set that a fold trains on, validates on or tests.
    """
    held = {subjects[name] for name in folds.test}
    inside = {
        subjects[name]
        for split in folds.folds
        for name in (*split.train, *split.validation, *(split.test if folds.test else ()))
    }
    if shared := sorted(held & inside):
        raise HarnessError(
            f"no subject of the fixed test set may be in a fold, got {', '.join(shared)}; keep them apart in the split"
        )


def _subjects_of(samples: Sequence[SplitSample]) -> list[str]:
    ids = [one.id for one in samples]
    if len(set(ids)) != len(ids):
        twice = sorted({i for i in ids if ids.count(i) > 1})
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
            f"0 <= validation < subjects that are not tested must hold, got validation={count} with {remaining} "
            "not tested, so that some train; ask for fewer validation subjects, more folds, or add subjects"
        )
    return count
