"""Who trains, who validates, who is tested: all samples of a subject together.

A split takes ``((sample id, subject), …)`` and gives one
:class:`~harness.core.types.Split` per fold. Validation subjects are drawn among
those that are not tested, so that a model is never selected on its test
subjects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import annotated_types
import numpy as np

from harness.core.errors import HarnessError, OutOfRange
from harness.core.registry import SPLITS
from harness.core.seeding import generator
from harness.core.types import Split

__all__ = ["Validation", "check_leaks", "describe_validation", "holdout", "k_fold", "leave_one_subject_out"]

Validation = int | float | Literal["auto"]

_AUTO = 1 / 5  # of 20 subjects, 16 train and 4 validate (the ePVS study)


@SPLITS.register("leave_one_subject_out", source="the ePVS sequence study: of 20, 16 train and 4 validate")
def leave_one_subject_out(
    samples: Sequence[tuple[str, str]], *, seed: int, validation: Validation = "auto"
) -> tuple[Split, ...]:
    """One fold per subject: it is tested, the others train and validate.

    Parameters
    ----------
    samples : (sample id, subject) each, in the cohort's order
    seed : of the draw of validation subjects
    validation : subjects that validate: a number (0 for a recipe that keeps the last
        epoch), a share in (0, 1), or ``"auto"`` for one fifth; shares are rounded,
        and at least one subject validates

    Returns
    -------
    one split per subject, in the order of their first samples

    Raises
    ------
    OutOfRange
        With fewer than three subjects, or if nobody would be left to train.

    Notes
    -----
    The draw of a fold depends on the seed, the subject that it tests and the
    remaining subjects, not on their order.
    """
    tested = [(subject,) for subject in _subjects_of(samples)]
    return _folds(samples, tested, seed=seed, validation=validation)


@SPLITS.register("k_fold")
def k_fold(
    samples: Sequence[tuple[str, str]],
    *,
    seed: int,
    folds: Annotated[int, annotated_types.Ge(2)] = 5,
    validation: Validation = "auto",
) -> tuple[Split, ...]:
    """Subjects are dealt at random into folds of equal size (± one); each fold is tested once.

    Parameters
    ----------
    samples, seed, validation : see :func:`leave_one_subject_out`
    folds : number of folds, from 2 to the number of subjects

    Raises
    ------
    OutOfRange
        If there are fewer subjects than folds, or nobody would be left to train.
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
    samples: Sequence[tuple[str, str]],
    *,
    seed: int,
    test: Annotated[float, annotated_types.Gt(0), annotated_types.Lt(1)] = 0.2,
    validation: Validation = 0.25,
) -> tuple[Split, ...]:
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


def describe_validation(splits: Sequence[Split], samples: Sequence[tuple[str, str]]) -> str:
    """One sentence for the screen: how many train, validate and are tested, and how it was drawn."""
    subject_of = dict(samples)

    def counts(part: str) -> str:
        numbers = sorted({len({subject_of[i] for i in getattr(split, part)}) for split in splits})
        return "/".join(map(str, numbers))

    total = len(dict.fromkeys(subject_of.values()))
    folds = f"{len(splits)} fold{'s' if len(splits) != 1 else ''}"
    if any(split.validation for split in splits):
        sentence = (
            f"{total} subjects, {folds}: train {counts('train')}, validate {counts('validation')} (they "
            f"select the model), test {counts('test')}; validation subjects are drawn by the seed among those not "
            "tested, and all samples of a subject stay together."
        )
    else:
        sentence = (
            f"{total} subjects, {folds}: train {counts('train')}, test {counts('test')}; nobody validates, the last "
            "epoch is kept, and all samples of a subject stay together."
        )
    if total < 6:
        sentence += f" With {total} subjects, intervals are what so few give, and one draw can decide a fold."
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


def _subjects_of(samples: Sequence[tuple[str, str]]) -> list[str]:
    ids = [i for i, _ in samples]
    if len(set(ids)) != len(ids):
        twice = sorted({i for i in ids if ids.count(i) > 1})
        raise OutOfRange(f"sample ids must differ, got {', '.join(twice)} more than once")
    subjects = list(dict.fromkeys(subject for _, subject in samples))
    if len(subjects) < 3:
        raise OutOfRange(
            f"subjects >= 3 must hold for a split (one trains, one validates, one is tested), got {len(subjects)}: "
            f"{', '.join(subjects) or 'none'}; add subjects"
        )
    return subjects


def _folds(
    samples: Sequence[tuple[str, str]], tested: Sequence[Sequence[str]], *, seed: int, validation: Validation
) -> tuple[Split, ...]:
    subjects = {subject for _, subject in samples}
    splits = []
    for test in tested:
        remaining = sorted(subjects - set(test))
        count = _validation_count(len(remaining), validation)
        draw = generator(seed, "split", "validation", *sorted(test))
        chosen = {remaining[i] for i in draw.permutation(len(remaining))[:count]}
        splits.append(
            Split(
                train=tuple(i for i, s in samples if s not in chosen and s not in test),
                validation=tuple(i for i, s in samples if s in chosen),
                test=tuple(i for i, s in samples if s in test),
            )
        )
    return tuple(splits)


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
            "not tested; somebody must train: ask for fewer validation subjects, more folds, or add subjects"
        )
    return count
