"""The road from text to a task and back."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import socket
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from annotated_types import Ge, Gt, Le

from harness.core.errors import OutOfRange, RequestError, UnknownName
from harness.core.registry import KINDS, MODELS
from harness.core.task import (
    Configuration,
    Task,
    allowed,
    checked,
    describe,
    describe_part,
    keys,
    modules_of,
    override,
    restore,
)
from harness.sweep.catalogue import load_task


def test_importing_a_task_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Declaring a task makes no network and no tensor, reads no data and calls nobody."""
    import harness.tasks.epvs as module

    def refuse(*given: Any, **named: Any) -> None:
        raise AssertionError("a task may only declare")

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "__init__", refuse)
        patch.setattr(torch, "tensor", refuse)
        patch.setattr(socket, "socket", refuse)
        assert isinstance(importlib.reload(module).TASK, Task)


def test_description_is_plain_json(epvs: Task) -> None:
    """A description crosses to a worker as text and comes back the same."""
    assert json.loads(json.dumps(describe(epvs))) == describe(epvs)


def test_description_names_every_option(epvs: Task) -> None:
    """Defaults stand beside what the task says."""
    described = describe(epvs)
    assert described["model"] == {"use": "unet", "width": 32, "depth": 5, "output_bias": -3.0, "dropout": 0.0}
    assert described["metrics"]["sensitivity_1.5mm"]["tolerance_mm"] == 1.5


def test_path_is_absolute_once_it_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that names a file means the same file in any working folder, here and on a worker."""
    monkeypatch.chdir(tmp_path)
    task = override(load_task("lsm"), "outcome.atlas", "regions.nii.gz")
    monkeypatch.chdir(tmp_path.parent)
    described = describe(task)
    assert described["outcome"]["atlas"] == str(tmp_path / "regions.nii.gz")
    assert restore(described).outcome.keywords["atlas"] == tmp_path / "regions.nii.gz"


def test_empty_path_is_refused() -> None:
    """It would be the working folder."""
    with pytest.raises(OutOfRange, match=r"outcome\.atlas must be the path of a file or folder, got an empty one"):
        override(load_task("lsm"), "outcome.atlas", "")


def test_restore_is_the_inverse_of_describe(epvs: Task) -> None:
    """What comes back describes itself as what was sent."""
    assert describe(restore(json.loads(json.dumps(describe(epvs))))) == describe(epvs)


@pytest.mark.parametrize(("axis", "poses"), [("label", True), ("cohort.label", True), ("sequences", False)])
def test_axes_that_pose_the_problem(epvs: Task, axis: str, poses: bool) -> None:
    """By short name or full key, also of a task that was restored."""
    assert epvs.poses(axis) == poses
    assert restore(json.loads(json.dumps(describe(epvs)))).poses(axis) == poses


def test_an_axis_that_does_not_exist_poses_no_problem(epvs: Task) -> None:
    """A misspelt axis is refused when the task is made."""
    with pytest.raises(UnknownName, match=r"no axis of task epvs .* is named 'lable'. Near: label"):
        dataclasses.replace(epvs, problem=("lable",))


def test_restored_parts_give_the_same_values(epvs: Task) -> None:
    """Parts of a restored task are the same functions with the same options."""
    back = restore(json.loads(json.dumps(describe(override(epvs, "sequences", "T2w+FLAIR")))))
    assert back.view().channels == ("T2w", "FLAIR")
    assert back.metrics["sensitivity_1-3_voxels"].keywords["size_bin"] == (1, 3)
    assert back.model.func is epvs.model.func


def test_restore_refuses_a_part_that_is_not_installed(epvs: Task) -> None:
    """A worker without the plugin says which part it lacks."""
    described = {**describe(epvs), "model": {"use": "theirs"}}
    with pytest.raises(UnknownName, match="no model is named 'theirs'"):
        restore(described)


def test_every_option_takes_its_own_value(epvs: Task) -> None:
    """Setting any key to what it is changes nothing, so that it is the same configuration."""
    described = describe(epvs)
    for key in keys(epvs):
        value = _value(described, epvs.axes.get(key, key))
        assert describe(override(epvs, key, value)) == described, key


def test_whole_numbers_of_a_float_are_the_same_configuration(epvs: Task) -> None:
    """3 and 3.0 millimetres are one tolerance."""
    declared = dataclasses.replace(
        epvs, metrics={**epvs.metrics, "sensitivity": partial(epvs.metrics["sensitivity"].func, tolerance_mm=3)}
    )
    assert json.dumps(describe(declared)) == json.dumps(describe(epvs))


@pytest.mark.parametrize(
    ("key", "value", "where", "expected"),
    [
        ("sequences", "T2w+FLAIR", ("view", "channels"), "T2w+FLAIR"),
        ("view.channels", "SWI", ("view", "channels"), "SWI"),
        ("recipe.lr", 1e-4, ("recipe", "lr"), 1e-4),
        ("recipe.lr", "1e-4", ("recipe", "lr"), 1e-4),
        ("recipe.balance", False, ("recipe", "balance"), False),
        ("model.width", 8.0, ("model", "width"), 8),
        ("phantom.shape", [24, 24, 8], ("phantom", "shape"), [24, 24, 8]),
        ("model", "basic_unet", ("model", "use"), "basic_unet"),
        ("split", "k_fold", ("split", "use"), "k_fold"),
        ("phantom_subjects", 9, ("phantom_subjects",), 9),
        ("objective", "auc", ("objective",), "auc"),
        ("metrics.dice", "volumetric_similarity", ("metrics", "dice", "use"), "volumetric_similarity"),
        ("metrics.mine", "sensitivity", ("metrics", "mine", "use"), "sensitivity"),
        ("metrics.sensitivity.tolerance_mm", 2, ("metrics", "sensitivity", "tolerance_mm"), 2.0),
        ("metrics.sensitivity_1.5mm.tolerance_mm", 2, ("metrics", "sensitivity_1.5mm", "tolerance_mm"), 2.0),
        ("metrics.sensitivity_1.5mm", "dice", ("metrics", "sensitivity_1.5mm", "use"), "dice"),
        ("attributions.random", "saliency", ("attributions", "random", "use"), "saliency"),
        ("attributions.integrated_gradients.steps", 4, ("attributions", "integrated_gradients", "steps"), 4),
    ],
)
def test_override(epvs: Task, key: str, value: Any, where: tuple[str, ...], expected: Any) -> None:
    """Every kind of key changes what it names, as the type that it declares, and nothing else."""
    before, after = describe(epvs), describe(override(epvs, key, value))
    found: Any = after
    for step in where:
        found = found[step]
    assert found == expected and type(found) is type(expected)
    assert {name for name in after if after[name] != before[name]} == {where[0]}


def test_override_leaves_the_task_as_it_is(epvs: Task) -> None:
    """A task is a value: overriding gives another one."""
    before = describe(epvs)
    override(epvs, "metrics.mine", "dice")
    assert describe(epvs) == before


def test_another_part_starts_with_its_own_defaults(epvs: Task) -> None:
    """Options of one model are not handed to another."""
    task = override(override(epvs, "model.width", 4), "model", "basic_unet")
    assert describe(task)["model"]["width"] == 16


def test_the_same_part_keeps_its_options(epvs: Task) -> None:
    """Naming the model that a task has already changes nothing."""
    task = override(override(epvs, "model.width", 4), "model", "unet")
    assert describe(task)["model"]["width"] == 4


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("recipe.lrr", 1, r"no option of recipe segmentation is named 'lrr'\. Near: lr"),
        ("sequnces", "T2w", r"no key is named 'sequnces'\. Near: sequences"),
        ("model", "unett", r"no model is named 'unett'\. Near: unet"),
        ("metrics.mine", "dicee", r"no metric is named 'dicee'\. Near: dice"),
        ("metrics.dicee.tolerance_mm", 3, r"no label in metrics is named 'dicee'\. Near: dice"),
        ("metrics.dice.tolerance_mm", 3, r"no option of metric dice is named 'tolerance_mm'"),
        ("attributions.random.stepz", 3, r"no option of attribution random is named 'stepz'"),
        ("metrics", "dice", r"no key is named 'metrics'"),
        ("name", "x", r"no key is named 'name'"),
        ("objective", "dicee", r"no metric of task epvs \(its objective\) is named 'dicee'\. Near: dice"),
        ("objective.x", "dice", r"no key is named 'objective\.x'"),
    ],
)
def test_unknown_names_show_the_near_ones(epvs: Task, key: str, value: Any, message: str) -> None:
    """A name that is not known is answered by near names, then all."""
    with pytest.raises(UnknownName, match=message) as caught:
        override(epvs, key, value)
    assert "All: " in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("recipe.lr", -1, r"`float, recipe\.lr > 0 and recipe\.lr <= 1` must hold for recipe\.lr, got -1"),
        ("recipe.lr", 2, r"`float, recipe\.lr > 0 and recipe\.lr <= 1` must hold for recipe\.lr, got 2"),
        ("recipe.lr", float("nan"), r"must hold for recipe\.lr, got nan \(.*finite"),
        ("model.output_bias", float("inf"), r"`model\.output_bias: float` must hold .*got inf \(.*finite"),
        ("width", 0, r"`int, width > 0` must hold for width, got 0"),
        ("model.width", 8.5, r"`int, model\.width > 0` must hold for model\.width, got 8\.5"),
        ("recipe.epochs", "many", r"`int, recipe\.epochs >= 1` must hold for recipe\.epochs, got 'many'"),
        ("recipe.balance", "perhaps", r"`recipe\.balance: bool` must hold .*got 'perhaps'"),
        ("recipe.augmentation", "wild", r"Literal\['published', 'joint', 'none'\]` must hold .*got 'wild'"),
        ("phantom.shape", [1, 2], r"`phantom\.shape: tuple\[int, int, int\]` must hold .*got \[1, 2\]"),
        ("phantom_subjects", "six", r"`int, phantom_subjects >= 1` must hold for phantom_subjects, got 'six'"),
        ("model", 3, r"model must be the name of a model, got 3; one of basic_unet, .*unet"),
        ("sequences", None, r"`sequences: str` must hold for sequences, got None"),
    ],
)
def test_values_out_of_range_show_the_relation(epvs: Task, key: str, value: Any, message: str) -> None:
    """A wrong value is answered by the relation that must hold, what came, and where."""
    with pytest.raises(OutOfRange, match=message):
        override(epvs, key, value)


def test_objective_must_be_a_metric_of_the_task(epvs: Task) -> None:
    """A task that ranks by what it does not measure is refused when it is declared."""
    with pytest.raises(UnknownName, match=r"no metric of task epvs \(its explanation_objective\) is named 'beauty'"):
        dataclasses.replace(epvs, explanation_objective="beauty")


def test_pooled_metric_needs_its_columns(epvs: Task) -> None:
    """A task that pools what it does not measure is refused before anything trains."""
    metrics = {label: part for label, part in epvs.metrics.items() if label != "true_count"}
    with pytest.raises(UnknownName, match=r"no metric of task epvs \(which icc_count pools\) is named 'true_count'"):
        dataclasses.replace(epvs, metrics=metrics)


def test_options_by_position_are_refused(epvs: Task) -> None:
    """What a description cannot name would get lost on the way to a worker."""
    with pytest.raises(RequestError, match=r"options of model unet must be given by name, got \(1,\) by position"):
        describe_part(KINDS["model"], partial(epvs.model.func, 1))


def test_options_that_do_not_exist_are_refused(epvs: Task) -> None:
    """A task that declares an unknown option is told so before anything runs."""
    with pytest.raises(UnknownName, match="no option of model unet is named 'widht'. Near: width"):
        describe_part(KINDS["model"], partial(epvs.model.func, widht=1))


def test_declared_values_are_checked_like_typed_ones(epvs: Task) -> None:
    """A task cannot declare what a user may not say."""
    with pytest.raises(OutOfRange, match="`int, width > 0` must hold for width, got -4"):
        describe_part(KINDS["model"], partial(epvs.model.func, width=-4))


@pytest.mark.parametrize("kind", KINDS)
def test_no_number_of_any_part_takes_a_truth_value(kind: str) -> None:
    """To Python ``True`` is 1, so ``recipe.epochs=true`` would train for one epoch; alone or within a list."""
    for name in KINDS[kind].names():
        function = KINDS[kind].get(name).function
        for option in allowed(partial(function)):
            parameter = inspect.signature(function).parameters[option]
            first = parameter.default[0] if isinstance(parameter.default, tuple) and parameter.default else None
            wrong = (True, *parameter.default[1:]) if first is not None else True
            if type(first if first is not None else parameter.default) in (int, float):
                with pytest.raises(OutOfRange, match=f"must hold for {option}, got [(]?True"):
                    describe_part(KINDS[kind], partial(function, **{option: wrong}))


def test_truth_values_stay_where_they_belong() -> None:
    """Only a number refuses them."""
    assert checked(bool | int, True, "x") is True
    assert checked(tuple[bool, ...], [True], "x") == (True,)


def test_allowed_gives_the_text_of_every_bound(epvs: Task) -> None:
    """``describe`` can print what an option takes."""
    assert allowed(epvs.model) == {
        "width": "int, width > 0",
        "depth": "int, depth > 0",
        "output_bias": "output_bias: float",
        "dropout": "float, dropout >= 0 and dropout < 1",
    }


def test_modules_of_parts_are_where_they_are_defined(epvs: Task) -> None:
    """A code digest starts from the module of each part."""
    assert modules_of(epvs.model, epvs.recipe, epvs.model) == ("harness.models.unet", "harness.recipes.recipe")


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (int, "3", 3),
        (float, 3, 3.0),
        (bool, "yes", True),
        (tuple[int, ...], [1, 2], (1, 2)),
        (Literal["a", "b"], "b", "b"),
        (int | Literal["auto"], "auto", "auto"),
        (Annotated[float, Ge(0), Le(1)], 1, 1.0),
        (str, "12", "12"),
    ],
)
def test_checked_gives_the_declared_type(hint: Any, value: Any, expected: Any) -> None:
    """A value arrives as what its option declares."""
    found = checked(hint, value, "key")
    assert found == expected and type(found) is type(expected)


def test_checked_says_what_came() -> None:
    """The message holds relation, value and reason."""
    with pytest.raises(OutOfRange, match=r"`float, a > 0` must hold for a, got 0 \(Input should be greater than 0\)"):
        checked(Annotated[float, Gt(0)], 0, "a")


def test_configuration_id_ignores_what_stands_below_it(epvs: Task) -> None:
    """Attributions, metrics, objectives, labels and profile share a training."""
    plain = Configuration(describe(epvs), {}, "quick", "f")
    task = override(epvs, "attributions.integrated_gradients.steps", 3)
    task = override(override(task, "metrics.mine", "dice"), "objective", "auc")
    assert Configuration(describe(task), {"sequences": "x"}, "paper", "f").id == plain.id


@pytest.mark.parametrize(
    ("key", "value"),
    [("sequences", "SWI"), ("recipe.lr", 0.5), ("model.width", 3), ("split.validation", 2), ("recipe.threads", 2)],
)
def test_configuration_id_changes_with_what_determines_a_training(epvs: Task, key: str, value: Any) -> None:
    """View, split, model and recipe are the configuration."""
    plain = Configuration(describe(epvs), {}, "quick", "f")
    assert Configuration(describe(override(epvs, key, value)), {}, "quick", "f").id != plain.id


def test_configuration_id_changes_with_the_cohort(epvs: Task) -> None:
    """Other images are another configuration."""
    assert Configuration(describe(epvs), {}, "quick", "f").id != Configuration(describe(epvs), {}, "quick", "g").id


def test_every_model_can_be_chosen(epvs: Task) -> None:
    """Any registered model can stand in a task and survives the way to a worker."""
    for name in MODELS.names():
        assert describe(restore(describe(override(epvs, "model", name))))["model"]["use"] == name


def _value(described: dict[str, Any], path: str) -> Any:
    """The value at a dotted path; labels may hold dots, parts give their name."""
    here: Any = described
    while path:
        step = max((key for key in here if path == key or path.startswith(f"{key}.")), key=len)
        here, path = here[step], path[len(step) + 1 :]
    return here["use"] if isinstance(here, dict) else here
