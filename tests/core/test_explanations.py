"""Explanations as values: valid fields, overrides of one field, and descriptions."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from typing import Any

import pytest

from harness.attribution.controls import random_map
from harness.attribution.gradients import integrated_gradients, saliency
from harness.attribution.postprocessing import smoothed
from harness.core.errors import OutOfRange, UnknownName
from harness.core.explanations import FIELDS, Explanation
from harness.core.overrides import keys, override
from harness.core.task import Task, describe, restore

WHOLE = Explanation(
    partial(saliency),
    of="target",
    combine="sum",
    samples="correct",
    chosen_by="sex",
    at_most=3,
    postprocess=partial(smoothed, fwhm_mm=2.0),
    keep="maps+sums",
    judged="sums",
)


@pytest.fixture(scope="module")
def task(epvs: Task) -> Task:
    """A task with one explanation that sets every field and one that is only an attribution."""
    return dataclasses.replace(epvs, explanations={"chosen": WHOLE, "plain": partial(random_map)})


def fields(explanation: Any) -> dict[str, Any]:
    """All fields except the attribution."""
    return {one.name: getattr(explanation, one.name) for one in dataclasses.fields(explanation)[1:]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combine": "mean"}, "combine must be one of none, sum, relevance_times_input, within_nuisance, got 'mean'"),
        ({"samples": "wrong"}, "samples must be one of tested, correct, true_positive, got 'wrong'"),
        ({"keep": "all"}, "keep must be one of maps, sums, maps\\+sums, got 'all'"),
        ({"judged": "maps+sums"}, "judged must be one of auto, maps, sums, got 'maps\\+sums'"),
        ({"at_most": -1}, "`at_most >= 0` must hold, got -1"),
    ],
)
def test_values_outside_the_lists_are_refused(options: dict[str, Any], message: str) -> None:
    """A value outside the allowed list is refused, and the message lists the allowed values."""
    with pytest.raises(OutOfRange, match=message):
        Explanation(partial(saliency), **options)


@pytest.mark.parametrize(
    ("keep", "judged", "mapped", "summed", "judged_as_sum"),
    [
        ("maps", "auto", True, False, False),
        ("sums", "auto", False, True, True),
        ("maps+sums", "auto", True, True, False),
        ("maps+sums", "maps", True, True, False),
        ("maps+sums", "sums", True, True, True),
        ("sums", "maps", True, True, False),
        ("maps", "sums", True, True, True),
    ],
)
def test_what_is_kept_and_what_is_judged(
    keep: Any, judged: Any, mapped: bool, summed: bool, judged_as_sum: bool
) -> None:
    """What is judged is set by itself and always stored; by default, maps are judged if they are kept."""
    one = Explanation(partial(saliency), keep=keep, judged=judged)
    assert (one.mapped, one.summed, one.judged_as_sum) == (mapped, summed, judged_as_sum)


@pytest.mark.parametrize(
    ("options", "chooses"),
    [({}, False), ({"at_most": 2}, True), ({"samples": "correct"}, True), ({"samples": "true_positive"}, True)],
)
def test_samples_are_chosen_by_a_rule_or_a_number(options: dict[str, Any], chooses: bool) -> None:
    """Samples are chosen if a rule or a limit is set; otherwise all tested samples are explained."""
    assert Explanation(partial(saliency), **options).chooses is chooses


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("of", "sex", "sex"),
        ("combine", "relevance_times_input", "relevance_times_input"),
        ("samples", "true_positive", "true_positive"),
        ("chosen_by", "age", "age"),
        ("at_most", "7", 7),
        ("keep", "sums", "sums"),
        ("judged", "maps", "maps"),
    ],
)
@pytest.mark.parametrize("label", ["chosen", "plain"])
def test_override_changes_one_field(task: Task, label: str, name: str, value: Any, expected: Any) -> None:
    """``explanations.LABEL.FIELD`` changes only that field, also for a plain attribution."""
    before, after = task.explained, override(task, f"explanations.{label}.{name}", value).explained
    assert getattr(after[label], name) == expected
    assert after == {**before, label: dataclasses.replace(before[label], **{name: expected})}


def test_every_field_can_be_overridden(task: Task) -> None:
    """``test_override_changes_one_field`` covers every plain field, and ``keys`` lists them."""
    assert FIELDS == ("of", "combine", "samples", "chosen_by", "at_most", "keep", "judged")
    assert {f"explanations.{label}.{name}" for label in task.explanations for name in FIELDS} <= set(keys(task))


@pytest.mark.parametrize(
    ("key", "value", "error", "message"),
    [
        (
            "explanations.chosen.keep",
            "all",
            OutOfRange,
            r"chosen\.keep must be one of maps, sums, maps\+sums, got 'all'",
        ),
        (
            "explanations.chosen.at_most",
            -1,
            OutOfRange,
            r"chosen\.at_most must be a whole number >= 0, got -1",
        ),
        ("explanations.chosen.at_most", True, OutOfRange, "got True .*true and false are not numbers"),
        ("explanations.chosen.kep", "maps", UnknownName, r"no field of explanation chosen is named 'kep'\. Near: keep"),
        ("explanations.chosn.keep", "maps", UnknownName, r"no label in explanations is named 'chosn'\. Near: chosen"),
        ("explanations.chosen", "saliency", UnknownName, "no field of explanation chosen is named ''"),
        ("explanations", "saliency", UnknownName, "no key is named 'explanations'"),
        ("attributions.chosen.keep", "maps", UnknownName, "no option of attribution saliency is named 'keep'"),
    ],
)
def test_invalid_overrides_are_refused(task: Task, key: str, value: Any, error: type, message: str) -> None:
    """Invalid overrides are refused, and the message names the label, the field and the allowed values."""
    with pytest.raises(error, match=message):
        override(task, key, value)


def test_a_new_label_takes_the_fields_of_the_first(task: Task) -> None:
    """``attributions.mine=NAME`` adds an explanation with the fields of the task's first explanation."""
    made = override(task, "attributions.mine", "integrated_gradients").explained["mine"]
    assert made.attribution.func is integrated_gradients
    assert fields(made) == fields(WHOLE)


def test_another_attribution_keeps_the_fields_of_its_label(task: Task) -> None:
    """Another attribution under an existing label keeps the fields of that label."""
    made = override(task, "attributions.plain", "integrated_gradients").explained["plain"]
    assert made.attribution.func is integrated_gradients
    assert fields(made) == fields(task.explained["plain"])


def test_an_option_of_the_attribution_keeps_the_fields(task: Task) -> None:
    """Overriding an option of the attribution keeps all fields."""
    task = override(task, "attributions.chosen", "integrated_gradients")
    made = override(task, "attributions.chosen.steps", 4).explained["chosen"]
    assert made.attribution.keywords == {"steps": 4}
    assert fields(made) == fields(WHOLE)


def test_description_can_be_restored(task: Task) -> None:
    """Restoring a description gives the same explanations and the same description."""
    described = json.loads(json.dumps(describe(task)))
    back = restore(described)
    assert describe(back) == described
    for label, one in task.explained.items():
        assert back.explained[label].attribution.func is one.attribution.func
        assert {name: getattr(back.explained[label], name) for name in FIELDS} == {
            name: getattr(one, name) for name in FIELDS
        }
    done = back.explained["chosen"].postprocess
    assert done is not None and (done.func, done.keywords) == (smoothed, {"fwhm_mm": 2.0})
    assert back.explained["plain"].postprocess is None


def test_postprocessing_of_the_task_is_a_default(task: Task) -> None:
    """The task's postprocessing applies only to explanations without their own."""
    whole = dataclasses.replace(task, postprocessing=partial(smoothed, fwhm_mm=5.0)).explained
    found = {label: one.postprocess.keywords["fwhm_mm"] for label, one in whole.items() if one.postprocess}
    assert found == {"chosen": 2.0, "plain": 5.0}
