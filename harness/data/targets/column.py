"""Targets from columns of the participants table."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import annotated_types

from harness.core.errors import CohortError, OutOfRange, UnknownName
from harness.core.registry import TARGETS
from harness.core.seeding import generator
from harness.core.targets import Target
from harness.core.types import Cohort, Fault, Ineligible, Sample
from harness.data.participants import NO_TABLE, decimal_point, is_number, missing_codes

__all__ = ["binary_column", "class_column", "number_column", "shuffled_across_subjects"]

_FEWEST = 3
_Constant = Callable[[Mapping[str, float]], tuple[str, str]]
_TABLE, _PICTURE_TABLE = "participants.tsv", "labels.csv"


@TARGETS.register("number_column", source="the participants table of the data", control="shuffled")
def number_column(
    cohort: Cohort,
    cache: Path,
    *,
    column: str = "age",
    loss_weight: Annotated[float, annotated_types.Gt(0)] = 1.0,
    shuffled: bool = False,
    shuffle_seed: Annotated[int, annotated_types.Ge(0)] = 0,
) -> Cohort:
    """Number from a column of the participants table.

    Parameters
    ----------
    cohort : cohort with the column
    cache : folder of prepared arrays; unused
    column : name of the column, and of the target
    loss_weight : weight of the target in the total loss
    shuffled : permute the values across subjects, as a null control
    shuffle_seed : seed of the permutation

    Raises
    ------
    UnknownName
        If there is no such column.
    CohortError
        If values are not numbers; all of them are listed. If fewer than three samples have a
        value, if all values are equal, or if the table has no columns.
    """
    target = Target(column, "number", loss_weight=loss_weight)
    made = _with(
        cohort,
        target,
        column,
        _finite,
        constant=lambda found: (f"all {len(found)} samples have {column} = {next(iter(found.values())):g}", ""),
    )
    values = sorted({one.targets[column] for one in made.samples})
    if len(values) == 2:
        told = f"{column} has only the values {values[0]:g} and {values[1]:g}"
        made = dataclasses.replace(made, notes=(*made.notes, f"{told}; it is predicted as a number, not as a class"))
    return shuffled_across_subjects(made, [target.name], shuffle_seed) if shuffled else made


@TARGETS.register("binary_column", source="the participants table of the data", control="shuffled")
def binary_column(
    cohort: Cohort,
    cache: Path,
    *,
    column: str = "sex",
    name: str = "",
    positive: str = "",
    at_least: float | None = None,
    weight_span: Annotated[float, annotated_types.Ge(0)] = 0.0,
    loss_weight: Annotated[float, annotated_types.Gt(0)] = 1.0,
    shuffled: bool = False,
    shuffle_seed: Annotated[int, annotated_types.Ge(0)] = 0,
) -> Cohort:
    """Binary label from a column of the participants table.

    Parameters
    ----------
    cohort : cohort with the column
    cache : folder of prepared arrays; unused
    column : name of the column
    name : name of the target; empty for that of the column
    positive : value of the positive class (``1`` for the number 1); all other values are
        negative
    at_least : smallest number of the positive class; exactly one of ``positive`` and
        ``at_least`` must be given
    weight_span : if above 0, the weight of a sample in the loss is
        2 − |number − at_least| / weight_span, at least 0, so that samples near the threshold
        count more; 5 in the MS disability study
    loss_weight : weight of the target in the total loss
    shuffled : permute the values across subjects, as a null control
    shuffle_seed : seed of the permutation

    Raises
    ------
    OutOfRange
        If neither or both of ``positive`` and ``at_least`` are given, if ``weight_span`` is
        given without ``at_least``, or as for :func:`number_column`.
    UnknownName
        If there is no such column, or no sample has the positive value.
    """
    if weight_span and at_least is None:
        raise OutOfRange(f"weight_span needs at_least for the target {column}, got {weight_span} and none")
    if bool(positive) == (at_least is not None):
        raise OutOfRange(
            f"exactly one of positive and at_least must be given for the target {column}, "
            f"got {positive or 'none'!r} and {at_least}"
        )

    if positive:
        _check_value(cohort, column, positive, f"targets.{name or column}.positive")

    def read(value: float | str) -> float | None:
        if at_least is not None:
            number = _finite(value)
            return None if number is None else float(number >= at_least)
        return float(positive in _texts(value))

    target = Target(name or column, "binary", loss_weight=loss_weight)

    def constant(found: Mapping[str, float]) -> tuple[str, str]:
        if at_least is None:
            return f"{_how_many(found)} {column} = {positive}", ""
        return _one_sided(cohort, found, column, target.name, at_least)

    made = _with(cohort, target, column, read, constant=constant)
    if at_least is not None and weight_span:
        made = _weighted(made, target.name, column, at_least, weight_span)
    return shuffled_across_subjects(made, [target.name], shuffle_seed) if shuffled else made


@TARGETS.register("class_column", source="the participants table of the data", control="shuffled")
def class_column(
    cohort: Cohort,
    cache: Path,
    *,
    column: str = "group",
    classes: tuple[str, ...] = (),
    loss_weight: Annotated[float, annotated_types.Gt(0)] = 1.0,
    shuffled: bool = False,
    shuffle_seed: Annotated[int, annotated_types.Ge(0)] = 0,
) -> Cohort:
    """Class from a column of the participants table.

    Parameters
    ----------
    cohort : cohort with the column
    cache : folder of prepared arrays; unused
    column : name of the column, and of the target
    classes : values of the classes in the order of the logits; other values are faults. If
        empty, the sorted values in the data
    loss_weight : weight of the target in the total loss
    shuffled : permute the values across subjects, as a null control
    shuffle_seed : seed of the permutation

    Raises
    ------
    OutOfRange, UnknownName, CohortError
        As for :func:`number_column`.
    """
    _check_column(cohort, column, f"target {column}")
    found = {value for sample in cohort.samples if (value := sample.covariates.get(column)) is not None}
    of_data = sorted(found, key=lambda value: (isinstance(value, str), value))
    names = tuple(classes) or tuple(_texts(value)[0] for value in of_data)
    if len(names) < 2:
        raise OutOfRange(f"{column} must have two classes or more, got {', '.join(names) or 'none'}")

    def read(value: float | str) -> float | None:
        known = [name for name in _texts(value) if name in names]
        return float(names.index(known[0])) if known else None

    def constant(found: Mapping[str, float]) -> tuple[str, str]:
        return f"all {len(found)} samples have {column} = {names[int(next(iter(found.values())))]}", ""

    target = Target(column, "classes", names, loss_weight)
    made = _with(cohort, target, column, read, constant=constant, may_be_codes=bool(classes))
    return shuffled_across_subjects(made, [column], shuffle_seed) if shuffled else made


def shuffled_across_subjects(cohort: Cohort, names: Sequence[str], seed: int) -> Cohort:
    """Permute the values of targets, with their weights, across subjects (null control).

    Parameters
    ----------
    cohort : cohort with the targets
    names : targets that are permuted together
    seed : seed of the permutation

    Returns
    -------
    Cohort
        Each subject has the values of another one with as many samples, in their order, so
        that the values of repeated samples stay as similar as they were. No clean values.
    """
    own: dict[str, list[Sample]] = {}
    for sample in cohort.samples:
        own.setdefault(sample.subject, []).append(sample)
    alike: dict[int, list[str]] = {}
    for subject, several in own.items():
        alike.setdefault(len(several), []).append(subject)
    rng = generator(seed, "outcome", "shuffle")
    givers = {
        sample.id: giver
        for _, subjects in sorted(alike.items())
        for subject, place in zip(subjects, rng.permutation(len(subjects)), strict=True)
        for sample, giver in zip(own[subject], own[subjects[place]], strict=True)
    }
    samples = tuple(
        dataclasses.replace(
            sample,
            targets={**sample.targets, **{name: giver.targets[name] for name in names}},
            weights={
                **{name: weight for name, weight in sample.weights.items() if name not in names},
                **{name: weight for name, weight in giver.weights.items() if name in names},
            },
            clean={name: value for name, value in sample.clean.items() if name not in names},
        )
        for sample, giver in ((one, givers[one.id]) for one in cohort.samples)
    )
    return dataclasses.replace(cohort, samples=samples)


def _weighted(cohort: Cohort, target: str, column: str, at_least: float, span: float) -> Cohort:
    """Set the weights of samples by the distance of their number from the threshold."""
    samples = []
    for one in cohort.samples:
        number = float(one.covariates[column])  # type: ignore[arg-type]  # a label was made of it
        weight = max(2 - abs(number - at_least) / span, 0.0)
        samples.append(dataclasses.replace(one, weights={**one.weights, target: weight}))
    return dataclasses.replace(cohort, samples=tuple(samples))


def _finite(value: float | str) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _texts(value: float | str) -> tuple[str, ...]:
    """Texts that match a value: 1 and 1.0 for an integer."""
    if isinstance(value, int | float) and float(value).is_integer():
        return str(int(value)), str(float(value))
    return (str(value),)


def _table_of(cohort: Cohort) -> str:
    """Name of the table from which the covariates of a cohort were read; pictures have no affine."""
    return _TABLE if any(sample.affine is not None for sample in cohort.samples) else _PICTURE_TABLE


def _check_column(cohort: Cohort, column: str, use: str) -> None:
    known = sorted({name for sample in cohort.samples for name in sample.covariates})
    if not known and _table_of(cohort) == _TABLE:
        raise CohortError([_no_columns(cohort, column)], cohort.notes, cohort.ineligible)
    if column not in known:
        raise UnknownName(f"column of {cohort.name}'s {_table_of(cohort)} ({use})", column, known)


def _no_columns(cohort: Cohort, column: str) -> Fault:
    """The fault of a table without columns of values, or of one by another name, which a note of the index tells."""
    told = next((note for note in cohort.notes if note.startswith(NO_TABLE)), "")
    value = told or "it is missing, or has no column but participant_id"
    remedy = f"Write a tab-separated table with the columns participant_id, {column}."
    return Fault("participants-missing", _TABLE, "", value, f"a table with a column {column}", remedy)


def _check_value(cohort: Cohort, column: str, value: str, option: str) -> None:
    """Check that a sample has the positive value; otherwise all would silently be negative."""
    _check_column(cohort, column, f"target {column}")
    found = {one for sample in cohort.samples if (one := sample.covariates.get(column)) is not None}
    if found and not any(value in _texts(one) for one in found):
        raise UnknownName(f"value of {column} ({option})", value, [_texts(one)[0] for one in found])


def _with(
    cohort: Cohort,
    target: Target,
    column: str,
    read: Callable[[float | str], float | None],
    *,
    constant: _Constant,
    may_be_codes: bool = False,
) -> Cohort:
    """Add a target to the cohort; samples without a value become ineligible.

    ``constant`` says of values by sample, which are all equal, why they are no target, and what to do.
    Numbers that are probably codes for missing values are refused unless ``may_be_codes``.
    """
    _check_column(cohort, column, f"target {target.name}")
    found: dict[str, float] = {}
    wrong: dict[str, float | str] = {}
    for sample in cohort.samples:
        value = sample.covariates.get(column)
        if value is None:
            continue
        number = read(value)
        if number is None:
            wrong[sample.id] = value
        else:
            found[sample.id] = number
    faults = _faults(column, wrong, target, all_wrong=not found) if wrong else []
    faults += [] if may_be_codes else _code_faults(cohort, column)
    if faults:
        raise CohortError(faults, cohort.notes, cohort.ineligible)
    return _restricted(cohort, target, column, found, constant)


def _faults(column: str, wrong: Mapping[str, float | str], target: Target, *, all_wrong: bool) -> list[Fault]:
    """One fault per wrong value, or a single one if no value is valid, because the column is probably wrong."""
    expected = f"one of {', '.join(target.classes)}" if target.classes else "a number"
    texts = {sample: value for sample, value in wrong.items() if isinstance(value, str)}
    if all_wrong and not target.classes and len(texts) == len(wrong) and any(map(is_number, texts.values())):
        return _mixed_faults(column, texts)
    if all_wrong:
        first = next(iter(wrong.values()))
        what = f"no value of {column} is {expected}, the first is {first!r}"
        point = decimal_point(str(first))
        remedy = f"Write decimal points, such as {point}." if point else "Name another column."
        return [Fault("target-value", _TABLE, "", what, f"{expected}, or n/a", remedy)]
    remedy = "Correct the value, or leave the subject out (exclude=)."
    return [
        Fault("target-value", _TABLE, sample, f"{column} of {sample} is {value!r}", f"{expected}, or n/a", remedy)
        for sample, value in wrong.items()
    ]


def _mixed_faults(column: str, texts: Mapping[str, str]) -> list[Fault]:
    """Faults of the cells that are no numbers, in a column that was read as text because there are many of them."""
    numbers = sum(map(is_number, texts.values()))
    expected = f"a number, as in {numbers} of {len(texts)} cells, or n/a"
    return [
        Fault("target-value", _TABLE, sample, f"{column} of {sample} is {text!r}", expected,
              f"Write {decimal_point(text)}." if decimal_point(text) else "Write one number, or n/a.")
        for sample, text in texts.items() if not is_number(text)
    ]  # fmt: skip


def _too_alike(cohort: Cohort, target: Target, column: str, found: Mapping[str, float], constant: _Constant) -> Fault:
    """The fault of a column with too few values, or with only one."""
    table = _table_of(cohort)
    bounds = [note for note in cohort.notes if re.search(rf"(^|: ){re.escape(column)} \S+( \S+)? is read as ", note)]
    remedy = ""
    if not found:
        value = f"no sample has a value of {column}: all {len(cohort.samples)} are n/a"
    elif len(found) < _FEWEST:
        value = f"only {len(found)} of {len(cohort.samples)} samples have a value of {column}"
    else:
        value, remedy = constant(found)
    value += "".join(f"; {note}" for note in bounds[:2])
    if bounds:
        remedy = "Write the measured values instead of bounds (censored values such as >20), or name another column."
    expected = f"at least {_FEWEST} values, of which two differ"
    return Fault("target-value", table, "", value, expected, remedy or "Name another column.")


def _code_faults(cohort: Cohort, column: str) -> list[Fault]:
    """Faults of numbers that are probably codes for missing values."""
    values = {
        sample.id: value
        for sample in cohort.samples
        if isinstance(value := sample.covariates.get(column), int | float) and math.isfinite(value)
    }
    return [
        Fault(
            "target-value", _TABLE, sample,
            f"{column} of {sample} is {code:g}, which is far from all other values and often stands for a missing one",
            "a value on the scale of the others, or n/a", "Write n/a, or leave the subject out (exclude=).",
        )
        for sample, code in missing_codes(values).items()
    ]  # fmt: skip


def _how_many(found: Mapping[str, float]) -> str:
    """Start of a sentence on labels that are all equal."""
    return f"all {len(found)} samples have" if next(iter(found.values())) else f"none of {len(found)} samples has"


def _one_sided(cohort: Cohort, found: Mapping[str, float], column: str, name: str, at_least: float) -> tuple[str, str]:
    """Why a threshold gives one label only, and which ones give two."""
    numbers = sorted({float(one.covariates[column] or 0.0) for one in cohort.samples if one.id in found})
    told = f"{_how_many(found)} {column} >= {at_least:g}"
    if len(numbers) < 2:
        return f"{told}, because all have {numbers[0]:g}", f"Name another column (targets.{name}.column=)."
    return (
        f"{told}; the numbers are {numbers[0]:g} to {numbers[-1]:g}",
        f"Set targets.{name}.at_least= to a number above {numbers[0]:g}, and at most {numbers[-1]:g}, or predict "
        f"{column} itself as a number (targets.{name}=number_column targets.{name}.column={column}; for task=ms, "
        "experiment=regression).",
    )


def _restricted(cohort: Cohort, target: Target, column: str, found: Mapping[str, float], constant: _Constant) -> Cohort:
    if len(found) < _FEWEST or len(set(found.values())) < 2:
        raise CohortError([_too_alike(cohort, target, column, found, constant)], cohort.notes, cohort.ineligible)
    shared: dict[tuple[int, float], Mapping[str, float]] = {}  # patches have few different labels
    samples = tuple(
        dataclasses.replace(
            sample,
            targets=shared.setdefault(
                (id(sample.targets), found[sample.id]), {**sample.targets, target.name: found[sample.id]}
            ),
        )
        for sample in cohort.samples
        if sample.id in found
    )
    absent = tuple(
        Ineligible(sample.id, f"no value in {column}") for sample in cohort.samples if sample.id not in found
    )
    return dataclasses.replace(
        cohort, samples=samples, ineligible=(*cohort.ineligible, *absent), targets=(*cohort.targets, target)
    )
