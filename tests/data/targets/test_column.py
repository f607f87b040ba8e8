"""Columns of participants.tsv as targets: numbers, binary and multi-class."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.errors import CohortError, OutOfRange, RequestError, UnknownName
from harness.core.targets import Target
from harness.core.types import Array, Cohort, Ineligible, Sample
from harness.data.lesions import lesions
from harness.data.targets.column import binary_column, class_column, number_column, shuffled_across_subjects

AGES = (61.5, 40, None, 52.0, 71.0)
SEXES = ("F", "M", "F", None, "F")
HAIRS = ("red", None, "black", "blond", "black")


@pytest.fixture(scope="module")
def make(in_memory: Callable[[Array], Any]) -> Callable[..., Cohort]:
    """Factory of cohorts with the given columns; the last two samples belong to one subject."""

    def cohort(**columns: tuple[Any, ...]) -> Cohort:
        image = in_memory(np.zeros((2, 2, 2), np.float32))
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        names = [f"sub-{min(number, len(rows) - 2)}_ses-{number}" for number in range(len(rows))]
        samples = [Sample(name, name[:5], {"T1w": image}, {}, row) for name, row in zip(names, rows, strict=True)]
        return Cohort("table", tuple(samples), ineligible=(Ineligible("sub-9", "no T1w"),))

    return cohort


@pytest.fixture(scope="module")
def cohort(make: Callable[..., Cohort]) -> Cohort:
    """Five samples with age, sex and hair colour; one value of each is missing."""
    return make(age=AGES, sex=SEXES, hair=HAIRS)


def values(cohort: Cohort, name: str) -> dict[str, float]:
    """Target of each sample."""
    return {one.id: one.targets[name] for one in cohort.samples}


def test_numbers_become_targets(cohort: Cohort, tmp_path: Path) -> None:
    """Values are floats, one per sample, so that visits of a subject may differ."""
    made = number_column(cohort, tmp_path, column="age", loss_weight=0.01)
    assert made.targets == (Target("age", "number", loss_weight=0.01),)
    assert values(made, "age") == {"sub-0_ses-0": 61.5, "sub-1_ses-1": 40, "sub-3_ses-3": 52, "sub-3_ses-4": 71}
    assert {type(value) for value in values(made, "age").values()} == {float}


def test_samples_without_a_value_are_ineligible(cohort: Cohort, tmp_path: Path) -> None:
    """They are appended to the ineligible subjects of the cohort."""
    made = number_column(cohort, tmp_path, column="age")
    assert made.ineligible == (*cohort.ineligible, Ineligible("sub-2_ses-2", "no value in age"))


def test_positive_class_by_name(cohort: Cohort, tmp_path: Path) -> None:
    """All other values are the negative class."""
    made = binary_column(cohort, tmp_path, column="sex", positive="F", loss_weight=2.0)
    assert made.targets == (Target("sex", "binary", loss_weight=2.0),)
    assert list(values(made, "sex").values()) == [1, 0, 1, 1]
    assert made.ineligible[-1].subject == "sub-3_ses-3"


@pytest.mark.parametrize(("threshold", "expected"), [(52.0, [1, 0, 1, 1]), (52.5, [1, 0, 0, 1])])
def test_positive_class_by_threshold(cohort: Cohort, tmp_path: Path, threshold: float, expected: list[float]) -> None:
    """The threshold itself is positive."""
    made = binary_column(cohort, tmp_path, column="age", at_least=threshold)
    assert list(values(made, "age").values()) == expected


def test_positive_class_by_number(make: Callable[..., Cohort], tmp_path: Path) -> None:
    """``1`` and ``1.0`` are the same class, because 0 and 1 are read as numbers."""
    cohort = make(case=(1.0, 0.0, 1.0, 0.0))
    for positive in ("1", "1.0"):
        assert list(values(binary_column(cohort, tmp_path, column="case", positive=positive), "case").values()) == [
            *(1, 0, 1, 0)
        ]


def test_classes_of_the_data_are_sorted(cohort: Cohort, tmp_path: Path) -> None:
    """Class indices do not depend on the order of rows."""
    made = class_column(cohort, tmp_path, column="hair", loss_weight=0.5)
    assert made.targets == (Target("hair", "classes", ("black", "blond", "red"), 0.5),)
    assert list(values(made, "hair").values()) == [2, 0, 1, 0]


def test_classes_can_be_given_in_order(cohort: Cohort, tmp_path: Path) -> None:
    """A class without samples keeps its index."""
    made = class_column(cohort, tmp_path, column="hair", classes=("red", "grey", "blond", "black"))
    assert made.targets[0].classes == ("red", "grey", "blond", "black")
    assert list(values(made, "hair").values()) == [0, 3, 2, 3]


def test_numeric_classes_have_short_names(make: Callable[..., Cohort], tmp_path: Path) -> None:
    """Integers are named ``1``, not ``1.0``, and sorted by value."""
    made = class_column(make(grade=(10.0, 2.0, 1.0, 2.0)), tmp_path, column="grade")
    assert made.targets[0].classes == ("1", "2", "10")
    assert list(values(made, "grade").values()) == [2, 1, 0, 1]


def test_several_targets_are_combined(make: Callable[..., Cohort], tmp_path: Path) -> None:
    """Targets keep the order of their declaration; samples that lack one are left out."""
    ages, sexes, hairs = (1.0, 2.0, 3.0, 4.0, None), ("F", "M", "F", "F", "M"), ("red", "red", "blond", None, "red")
    made = make(age=ages, sex=sexes, hair=hairs)
    for step in (
        partial(number_column, column="age"),
        partial(binary_column, column="sex", positive="F"),
        partial(class_column, column="hair"),
    ):
        made = step(made, tmp_path)
    assert [target.name for target in made.targets] == ["age", "sex", "hair"]
    assert [dict(one.targets) for one in made.samples] == [
        {"age": 1.0, "sex": 1.0, "hair": 1.0},
        {"age": 2.0, "sex": 0.0, "hair": 1.0},
        {"age": 3.0, "sex": 1.0, "hair": 0.0},
    ]
    assert [one.subject for one in made.ineligible[1:]] == ["sub-3_ses-4", "sub-3_ses-3"]


@pytest.mark.parametrize(
    ("target", "column", "faults"),
    [
        (number_column, ("50", 60.0, "sixty", 70.0, None), ["'50'; expected a number, or n/a", "'sixty'"]),
        (number_column, (1.0, float("nan"), 2.0, float("inf"), 3.0), ["is nan; expected a number", "is inf"]),
        (partial(binary_column, at_least=55.0), ("50", 60.0, "sixty", 70.0, None), ["'50'", "'sixty'"]),
        (
            partial(class_column, classes=("a", "b")),
            ("a", "A", "b", "c", None),
            ["'A'; expected one of a, b, or n/a", "'c'"],
        ),
    ],
)
def test_all_invalid_values_are_listed(
    make: Callable[..., Cohort], tmp_path: Path, target: Callable[..., Cohort], column: tuple[Any, ...], faults: Any
) -> None:
    """Each fault names the sample, the value and the remedy."""
    with pytest.raises(CohortError) as caught:
        target(make(x=column), tmp_path, column="x")
    assert [fault.kind for fault in caught.value.faults] == ["target-value"] * len(faults)
    for fault, text in zip(caught.value.faults, faults, strict=True):
        assert f"x of {fault.subject} is" in str(fault) and text in str(fault)
        assert "Correct the value, or leave the subject out (exclude=)." in str(fault)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (number_column, "no value of x is a number, the first is 'a'; expected a number, or n/a. Name another column."),
        (partial(binary_column, at_least=1.0), "no value of x is a number, the first is 'a'"),
        (partial(class_column, classes=("d", "e")), "no value of x is one of d, e, the first is 'a'"),
    ],
)
def test_column_without_valid_values_is_one_fault(
    make: Callable[..., Cohort], tmp_path: Path, target: Callable[..., Cohort], message: str
) -> None:
    """A wrong column is one fault, not one per subject."""
    with pytest.raises(CohortError, match=message) as caught:
        target(make(x=(None, "a", "b", "c", "c")), tmp_path, column="x")
    assert len(caught.value.faults) == 1


def test_decimal_commas_are_named(make: Callable[..., Cohort], tmp_path: Path) -> None:
    """A column of numbers with decimal commas is the right column."""
    with pytest.raises(CohortError, match=r"the first is '41,5'; .* Write decimal points, such as 41\.5\."):
        number_column(make(x=("41,5", "40,0", "39,2", None, "38,1")), tmp_path, column="x")


@pytest.mark.parametrize(
    ("target", "column", "refused"),
    [
        (number_column, (12.0, 7.0, -999.0, 3.0, 5.0), {"sub-2_ses-2": "-999"}),
        (number_column, (12, 7, -9, -99, 5), {"sub-2_ses-2": "-9", "sub-3_ses-3": "-99"}),
        (number_column, (12.0, 7.0, 999.0, 3.0, 5.0), {"sub-2_ses-2": "999"}),
        (partial(binary_column, positive="1"), (0, 1, -9, 1, 0), {"sub-2_ses-2": "-9"}),
        (partial(binary_column, at_least=5.0), (0.0, 9.0, 99.0, 1.0, 0.0), {"sub-2_ses-2": "99"}),
        (class_column, (0, 1, -9, 1, 2), {"sub-2_ses-2": "-9"}),
    ],
)
def test_codes_of_missing_values_are_refused(
    make: Callable[..., Cohort],
    tmp_path: Path,
    target: Callable[..., Cohort],
    column: tuple[Any, ...],
    refused: dict[str, str],
) -> None:
    """A value such as -999 would otherwise be a measured one."""
    with pytest.raises(CohortError) as caught:
        target(make(x=column), tmp_path, column="x")
    assert {fault.subject for fault in caught.value.faults} == set(refused)
    for fault in caught.value.faults:
        assert f"x of {fault.subject} is {refused[fault.subject]}, which is far from all other values" in str(fault)
        assert "Write n/a" in str(fault)


@pytest.mark.parametrize(
    ("target", "column"),
    [
        (number_column, (60.0, 98.0, 99.0, 97.0, 20.0)),
        (number_column, (-20.0, -9.0, 3.0, 5.0, 8.0)),
        (number_column, (400.0, 700.0, 999.0, 20.0, 50.0)),
        (partial(class_column, classes=("0", "1", "-9")), (0, 1, -9, 1, 0)),
    ],
)
def test_values_on_the_scale_of_the_others_are_no_codes(
    make: Callable[..., Cohort], tmp_path: Path, target: Callable[..., Cohort], column: tuple[Any, ...]
) -> None:
    """An age of 99, a negative score and a class that is named by the user are values."""
    assert len(target(make(x=column), tmp_path, column="x").samples) == 5


@pytest.mark.parametrize("target", [number_column, partial(binary_column, positive="F"), class_column])
def test_unknown_column_raises(cohort: Cohort, tmp_path: Path, target: Callable[..., Cohort]) -> None:
    """The message lists the columns, similar ones first."""
    with pytest.raises(UnknownName, match=r"is named 'hiar'\. Near: hair\. All: age, hair, sex"):
        target(cohort, tmp_path, column="hiar")


def test_an_unknown_positive_value_is_refused(make: Callable[..., Cohort], tmp_path: Path) -> None:
    """Otherwise all samples would be negative; the message lists the values."""
    with pytest.raises(UnknownName, match=r"no value of x \(targets\.x\.positive\) is named 'f'\..* All: F, M\."):
        binary_column(make(x=("F", "M", "F", "M", "M")), tmp_path, column="x", positive="f")


@pytest.mark.parametrize(
    ("target", "column", "message"),
    [
        (number_column, (1.0, 2.0, None, None, None), "only 2 of 5 samples have a value of x"),
        (number_column, (None, None, None, None, None), "no sample has a value of x: all 5 are n/a"),
        (number_column, (1.0, 1.0, 1.0, 1.0, None), "all 4 samples have x = 1;"),
        (partial(binary_column, positive="F"), ("F", "F", "F", "F", "F"), "all 5 samples have x = F;"),
        (
            partial(binary_column, at_least=5.0),
            (2.0, 2.0, 2.0, 2.0, None),
            "none of 4 .* x >= 5, because all have 2; .*Name another column",
        ),
        (class_column, ("a", "a", "a", "a", None), "x must have two classes or more, got a"),
        (class_column, (None, None, None, None, None), "x must have two classes or more, got none"),
        (partial(class_column, classes=("a", "b")), ("a", "a", "a", "a", None), "all 4 samples have x = a;"),
    ],
)
def test_constant_columns_raise(
    make: Callable[..., Cohort], tmp_path: Path, target: Callable[..., Cohort], column: tuple[Any, ...], message: str
) -> None:
    """At least three values and two different ones are needed."""
    with pytest.raises((CohortError, OutOfRange), match=message):
        target(make(x=column), tmp_path, column="x")


@pytest.mark.parametrize(
    ("at_least", "start"), [(5.0, "none of 4 samples has x >= 5"), (0.5, "all 4 samples have x >= 0.5")]
)
def test_a_threshold_outside_of_the_numbers_names_others(
    make: Callable[..., Cohort], tmp_path: Path, at_least: float, start: str
) -> None:
    """The numbers vary, the labels do not; the message has thresholds that separate them, one of which works."""
    cohort = make(x=(0.5, 1.0, 2.0, 2.0, None))
    told = (
        "Set targets.severe.at_least= to a number above 0.5, and at most 2, or predict x itself as a number "
        "(targets.severe=number_column targets.severe.column=x"
    )
    with pytest.raises(CohortError, match=re.escape(f"{start}; the numbers are 0.5 to 2;") + ".*" + re.escape(told)):
        binary_column(cohort, tmp_path, column="x", name="severe", at_least=at_least)
    made = binary_column(cohort, tmp_path, column="x", name="severe", at_least=2.0)
    assert [one.targets["severe"] for one in made.samples] == [0, 0, 1, 1]


def test_censored_values_that_are_all_equal_are_told(make: Callable[..., Cohort], tmp_path: Path) -> None:
    """The table had ``>20`` in every row; the notes of the cohort say so."""
    cohort = dataclasses.replace(make(x=(20.0,) * 5), notes=("sub-1, sub-2: x >20 is read as 20", "y >3 is read as 3"))
    with pytest.raises(CohortError) as caught:
        number_column(cohort, tmp_path, column="x")
    (fault,) = caught.value.faults
    assert fault.value == "all 5 samples have x = 20; sub-1, sub-2: x >20 is read as 20"
    assert "censored" in fault.remedy and caught.value.notes == cohort.notes


def test_cells_that_are_no_numbers_are_named(make: Callable[..., Cohort], tmp_path: Path) -> None:
    """A column of which half are numbers is read as text, but it has numbers."""
    with pytest.raises(CohortError) as caught:
        number_column(make(x=("1", "10-15", ">20", "10-15", None)), tmp_path, column="x")
    assert [fault.value for fault in caught.value.faults] == [
        "x of sub-1_ses-1 is '10-15'", "x of sub-3_ses-3 is '10-15'"
    ]  # fmt: skip
    assert caught.value.faults[0].expected == "a number, as in 2 of 4 cells, or n/a"


@pytest.mark.parametrize("note", ["there is no participants.tsv, but participants.csv; it is not read", ""])
def test_a_table_by_another_name_is_named(lesion_root: Path, tmp_path: Path, note: str) -> None:
    """Rather than that no column has that name."""
    root = Path(shutil.copytree(lesion_root, tmp_path / "own"))
    (root / "participants.tsv").unlink()
    if note:
        (root / "participants.csv").write_text("participant_id,severity\n")
    cohort = lesions(root, tmp_path / "cache")
    with pytest.raises(CohortError) as caught:
        number_column(cohort, tmp_path, column="severity")
    (fault,) = caught.value.faults
    assert fault.kind == "participants-missing" and "participant_id, severity" in fault.remedy
    assert fault.value.startswith(note or "it is missing, or has no column")


@pytest.mark.parametrize("options", [{}, {"positive": "F", "at_least": 1.0}])
def test_a_binary_target_needs_one_rule(cohort: Cohort, tmp_path: Path, options: dict[str, Any]) -> None:
    """Giving neither or both raises."""
    with pytest.raises(OutOfRange, match="exactly one of positive and at_least must be given for the target sex, got"):
        binary_column(cohort, tmp_path, column="sex", **options)


def test_duplicate_target_raises(cohort: Cohort, tmp_path: Path) -> None:
    """Names must be unique, also between kinds."""
    made = number_column(cohort, tmp_path, column="age")
    with pytest.raises(RequestError, match="targets of table must have different names, got age more than once"):
        binary_column(made, tmp_path, column="age", at_least=50.0)


def test_shuffled_values_move_between_subjects(in_memory: Callable[[Array], Any], tmp_path: Path) -> None:
    """Each subject has the values and weights of a subject with as many visits; single and double visits do not mix."""
    image = in_memory(np.zeros((2, 2, 2), np.float32))
    samples = [
        Sample(f"s{subject}-{visit}", f"s{subject}", {"T1w": image}, {}, {"edss": float(10 * subject + visit)})
        for subject in range(30)
        for visit in range(1 + subject % 2)
    ]
    cohort = Cohort("table", tuple(samples))
    plain = binary_column(cohort, tmp_path, column="edss", at_least=150.0, weight_span=100.0)
    found = binary_column(cohort, tmp_path, column="edss", at_least=150.0, weight_span=100.0, shuffled=True)
    assert [one.id for one in found.samples] == [one.id for one in plain.samples]
    for visits in (1, 2):
        own = [one for one in plain.samples if int(one.subject[1:]) % 2 == visits - 1]
        given = {one.id: one for one in found.samples}
        pairs = sorted((one.targets["edss"], one.weights["edss"]) for one in own)
        assert sorted((given[one.id].targets["edss"], given[one.id].weights["edss"]) for one in own) == pairs
    numbers = number_column(cohort, tmp_path, column="edss", shuffled=True)
    values = {one.id: one.targets["edss"] for one in numbers.samples}
    assert sum(values[one.id] == one.covariates["edss"] for one in samples) < 15
    for subject in range(1, 30, 2):  # visits keep their order
        assert values[f"s{subject}-1"] == values[f"s{subject}-0"] + 1
    other = shuffled_across_subjects(number_column(cohort, tmp_path, column="edss"), ["edss"], 1)
    assert [one.targets for one in other.samples] != [one.targets for one in numbers.samples]


def test_number_with_two_values_is_told(make: Callable[..., Cohort], tmp_path: Path) -> None:
    """It is probably a class; the metrics of numbers say little about it."""
    made = make(group=(0.0, 1.0, 0.0, 1.0), score=(0.0, 1.0, 2.0, 3.0))
    assert number_column(made, tmp_path, column="group").notes == (
        "group has only the values 0 and 1; it is predicted as a number, not as a class",
    )
    assert number_column(made, tmp_path, column="score").notes == ()
