"""Tasks: description, restoration, and errors when a task is declared."""

from __future__ import annotations

import dataclasses
import importlib
import json
import socket
from functools import partial
from typing import Any

import pytest
import torch

from harness.core.errors import OutOfRange, RequestError, UnknownName
from harness.core.overrides import override
from harness.core.registry import KINDS, METRICS, MODELS
from harness.core.task import Configuration, Task, describe, describe_component, restore
from harness.metrics.register import metric


def test_importing_a_task_has_no_side_effects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing a task module makes no network and no tensor and opens no connection."""
    import harness.tasks.epvs as module

    def refuse(*given: Any, **named: Any) -> None:
        raise AssertionError("a task may only declare")

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "__init__", refuse)
        patch.setattr(torch, "tensor", refuse)
        patch.setattr(socket, "socket", refuse)
        assert isinstance(importlib.reload(module).TASK, Task)


def test_description_is_plain_json(epvs: Task) -> None:
    """A description is plain JSON and survives the conversion to text and back."""
    assert json.loads(json.dumps(describe(epvs))) == describe(epvs)


def test_description_names_every_option(epvs: Task) -> None:
    """A description contains every option, with defaults where the task sets nothing."""
    described = describe(epvs)
    assert described["model"] == {"use": "unet", "width": 32, "depth": 5, "output_bias": -3.0, "dropout": 0.0}
    assert described["metrics"]["sensitivity_1.5mm"]["tolerance_mm"] == 1.5


def test_restore_is_the_inverse_of_describe(epvs: Task) -> None:
    """A restored task has the same description."""
    assert describe(restore(json.loads(json.dumps(describe(epvs))))) == describe(epvs)


@pytest.mark.parametrize(("axis", "poses"), [("label", True), ("cohort.label", True), ("sequences", False)])
def test_axes_that_define_the_problem(epvs: Task, axis: str, poses: bool) -> None:
    """Axes that define the problem are found by short name or full key, also after a restore."""
    assert epvs.poses(axis) == poses
    assert restore(json.loads(json.dumps(describe(epvs)))).poses(axis) == poses


def test_unknown_problem_axis_is_refused(epvs: Task) -> None:
    """An unknown axis in ``problem`` is refused when the task is declared."""
    with pytest.raises(UnknownName, match=r"no key of task epvs .* is named 'lable'. Near: label"):
        dataclasses.replace(epvs, problem=("lable",))


def test_restored_components_are_the_same(epvs: Task) -> None:
    """Components of a restored task have the same functions and options."""
    back = restore(json.loads(json.dumps(describe(override(epvs, "sequences", "T2w+FLAIR")))))
    assert back.adapter().channels == ("T2w", "FLAIR")
    assert back.metrics["sensitivity_1-3_voxels"].keywords["size_bin"] == (1, 3)
    assert back.model.func is epvs.model.func


def test_restore_refuses_a_component_that_is_not_installed(epvs: Task) -> None:
    """Restoring a task with a component that is not installed raises an error that names it."""
    described = {**describe(epvs), "model": {"use": "theirs"}}
    with pytest.raises(UnknownName, match="no model is named 'theirs'"):
        restore(described)


def test_integer_and_float_values_are_the_same_configuration(epvs: Task) -> None:
    """Integers and floats of equal value give the same description."""
    declared = dataclasses.replace(
        epvs, metrics={**epvs.metrics, "sensitivity": partial(epvs.metrics["sensitivity"].func, tolerance_mm=3)}
    )
    assert json.dumps(describe(declared)) == json.dumps(describe(epvs))


def test_objective_must_be_a_metric_of_the_task(epvs: Task) -> None:
    """The objective must be a metric of the task."""
    with pytest.raises(UnknownName, match=r"no metric of task epvs \(its explanation_objective\) is named 'beauty'"):
        dataclasses.replace(epvs, explanation_objective="beauty")


def test_pooled_metric_needs_its_columns(epvs: Task) -> None:
    """A pooled metric needs its columns among the metrics of the task."""
    metrics = {label: part for label, part in epvs.metrics.items() if label != "true_count"}
    with pytest.raises(UnknownName, match=r"no metric of task epvs \(which icc_count pools\) is named 'true_count'"):
        dataclasses.replace(epvs, metrics=metrics)


def _pooling(needed: str) -> Any:
    """A pooled metric of one column; the caller restores the registry."""

    @metric("pooling", source="a test", direction="lower", range=(0, 1), level="pool", needs=(needed,))
    def pooling(columns: Any) -> float:
        return 0.0

    return partial(pooling)


def _second(needed: str) -> Any:
    """Another pooled metric of one column."""

    @metric("second", source="a test", direction="lower", range=(0, 1), level="pool", needs=(needed,))
    def second(columns: Any) -> float:
        return 0.0

    return partial(second)


def test_pooled_metric_may_use_one_that_is_chosen(epvs: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pooled metric may need another one, such as a threshold, but not one that needs a third."""
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    task = dataclasses.replace(epvs, metrics={**epvs.metrics, "pooling": _pooling("icc_count")})
    with pytest.raises(OutOfRange, match=r"twice of task epvs must pool metrics of samples or use .* got pooling"):
        dataclasses.replace(task, metrics={**task.metrics, "twice": _second("pooling")})


def test_pooled_metric_of_explanations_cannot_rank_predictions(epvs: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric that pools values of explanations can rank explanations, but not configurations."""
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    task = dataclasses.replace(epvs, metrics={**epvs.metrics, "pooling": _pooling("relevance_ap")})
    assert dataclasses.replace(task, explanation_objective="pooling").of_explanations("pooling")
    with pytest.raises(OutOfRange, match="objective must be a metric of predictions .* got pooling"):
        dataclasses.replace(task, objective="pooling")


def test_options_by_position_are_refused(epvs: Task) -> None:
    """Positional options are refused, since a description could not name them."""
    with pytest.raises(RequestError, match=r"options of model unet must be given by name, got \(1,\) by position"):
        describe_component(KINDS["model"], partial(epvs.model.func, 1))


def test_unknown_options_are_refused(epvs: Task) -> None:
    """An unknown option is refused with suggestions."""
    with pytest.raises(UnknownName, match="no option of model unet is named 'widht'. Near: width"):
        describe_component(KINDS["model"], partial(epvs.model.func, widht=1))


def test_declared_values_are_checked(epvs: Task) -> None:
    """Values declared by a task are checked like overrides."""
    with pytest.raises(OutOfRange, match="width must be a whole number > 0 and <= 1024, got -4"):
        describe_component(KINDS["model"], partial(epvs.model.func, width=-4))


def test_configuration_id_ignores_explanations_and_metrics(epvs: Task) -> None:
    """The configuration id does not depend on attributions, metrics, objectives, axes or the profile."""
    plain = Configuration(describe(epvs), {}, "quick", "f")
    task = override(epvs, "attributions.integrated_gradients.steps", 3)
    task = override(override(task, "metrics.mine", "dice"), "objective", "auc")
    assert Configuration(describe(task), {"sequences": "x"}, "paper", "f").id == plain.id


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sequences", "SWI"),
        ("recipe.lr", 0.5),
        ("model.width", 3),
        ("split.validation", 2),
        ("recipe.threads", 2),
        ("targets.mask.name", "lesion"),
    ],
)
def test_configuration_id_changes_with_what_determines_a_training(epvs: Task, key: str, value: Any) -> None:
    """The configuration id depends on target, adapter, split, model and recipe."""
    plain = Configuration(describe(epvs), {}, "quick", "f")
    assert Configuration(describe(override(epvs, key, value)), {}, "quick", "f").id != plain.id


def test_configuration_id_changes_with_the_cohort(epvs: Task) -> None:
    """The configuration id depends on the fingerprint of the cohort."""
    assert Configuration(describe(epvs), {}, "quick", "f").id != Configuration(describe(epvs), {}, "quick", "g").id


def test_every_model_can_be_chosen(epvs: Task) -> None:
    """Every registered model can be chosen, described and restored."""
    for name in MODELS.names():
        assert describe(restore(describe(override(epvs, "model", name))))["model"]["use"] == name
