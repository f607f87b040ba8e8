"""Overrides return a changed copy of a task."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import OutOfRange, UnknownName
from harness.core.overrides import component_of, keys, narrowed, override, preset
from harness.core.task import Task, describe, restore
from harness.sweep.catalogue import load_task


def test_overriding_with_the_current_value_changes_nothing(epvs: Task) -> None:
    """Overriding any key with its current value does not change the description."""
    described = describe(epvs)
    for key in keys(epvs):
        value = _value(described, epvs.axes.get(key, key))
        assert describe(override(epvs, key, value)) == described, key


@pytest.mark.parametrize(
    ("key", "value", "where", "expected"),
    [
        ("sequences", "T2w+FLAIR", ("adapter", "channels"), "T2w+FLAIR"),
        ("adapter.channels", "SWI", ("adapter", "channels"), "SWI"),
        ("targets.mask.name", "lesion", ("targets", "mask", "name"), "lesion"),
        ("targets.mask", "number_column", ("targets", "mask", "use"), "number_column"),
        ("explanations.random.keep", "sums", ("explanations", "random", "keep"), "sums"),
        ("explanations.random.at_most", "3", ("explanations", "random", "at_most"), 3),
        ("recipe.lr", 1e-4, ("recipe", "lr"), 1e-4),
        ("recipe.lr", "1e-4", ("recipe", "lr"), 1e-4),
        ("recipe.balance", False, ("recipe", "balance"), False),
        ("cohort.session", 2, ("cohort", "session"), "2"),
        ("cohort.spacing_mm", 2, ("cohort", "spacing_mm"), [2.0]),
        ("cohort.exclude", 7, ("cohort", "exclude"), ["7"]),
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
    """Every kind of key changes only the component that it names, to a value of the declared type."""
    before, after = describe(epvs), describe(override(epvs, key, value))
    found: Any = after
    for step in where:
        found = found[step]
    assert found == expected and type(found) is type(expected)
    assert {name for name in after if after[name] != before[name]} == {where[0]}


def test_override_leaves_the_task_as_it_is(epvs: Task) -> None:
    """``override`` returns a new task and does not change the given one."""
    before = describe(epvs)
    override(epvs, "metrics.mine", "dice")
    assert describe(epvs) == before


def test_another_component_starts_with_its_own_defaults(epvs: Task) -> None:
    """Another model starts with its own defaults."""
    task = override(override(epvs, "model.width", 4), "model", "basic_unet")
    assert describe(task)["model"]["width"] == 16


def test_the_same_component_keeps_its_options(epvs: Task) -> None:
    """Overriding a model with the same model keeps its options."""
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
def test_unknown_names_are_refused_with_suggestions(epvs: Task, key: str, value: Any, message: str) -> None:
    """An unknown name raises an error with suggestions, and all valid names unless they are many."""
    with pytest.raises(UnknownName, match=message) as caught:
        override(epvs, key, value)
    assert len(caught.value.known) > 60 or f"All: {', '.join(caught.value.known) or '(none)'}." in str(caught.value)


def test_many_names_are_not_all_listed() -> None:
    """Of many valid names, the message has similar ones, or the first if none is similar."""
    names = [f"name-{number:03d}" for number in range(200)]
    assert str(UnknownName("thing", "nam-007", names)).startswith("no thing is named 'nam-007'. Near: name-007")
    assert len(str(UnknownName("thing", "nam-007", names))) < 100
    assert "60 of 200: name-000, name-001" in str(UnknownName("thing", "x", names))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("recipe.lr", -1, r"recipe\.lr must be a number > 0 and <= 1, got -1"),
        ("recipe.lr", 2, r"recipe\.lr must be a number > 0 and <= 1, got 2"),
        ("recipe.lr", float("nan"), r"recipe\.lr must be .*, got nan \(.*finite"),
        ("model.output_bias", float("inf"), r"model\.output_bias must be a number, got inf \(.*finite"),
        ("width", 0, r"width must be a whole number > 0 and <= 1024, got 0"),
        ("model.width", 8.5, r"model\.width must be a whole number > 0 and <= 1024, got 8\.5"),
        ("recipe.epochs", "many", r"recipe\.epochs must be a whole number >= 1, got 'many'"),
        ("recipe.balance", "perhaps", r"recipe\.balance must be yes/no, got 'perhaps'"),
        ("recipe.augmentation", "wild", r"recipe\.augmentation must be one of published, joint, none, got 'wild'"),
        ("phantom.shape", [1, 2], r"phantom\.shape must be a list of 3 whole numbers, got \[1, 2\] [^;]*$"),
        ("phantom_subjects", "six", r"phantom_subjects must be a whole number >= 1, got 'six'"),
        ("model", 3, r"model must be the name of a model, got 3; one of attention_densenet, basic_unet, .*unet"),
        ("sequences", None, r"sequences must be text, got None"),
        ("sequences", ["T1w", "T2w"], r"got \['T1w', 'T2w'\] .*; to compare several values, write sequences=A,B on"),
        (
            "model",
            ["ridge", "cnn"],
            r"got \['ridge', 'cnn'\]; to compare .* a tuple, model=\(A, B\), in Python; one of",
        ),
    ],
)
def test_values_out_of_range_are_refused(epvs: Task, key: str, value: Any, message: str) -> None:
    """A value out of range raises an error with the key, the valid range and the value."""
    with pytest.raises(OutOfRange, match=message):
        override(epvs, key, value)


def test_path_is_made_absolute_when_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path is absolute from the moment it is set, also after a description is restored."""
    monkeypatch.chdir(tmp_path)
    task = override(load_task("lsm"), "targets.scores.atlas", "regions.nii.gz")
    monkeypatch.chdir(tmp_path.parent)
    described = describe(task)
    assert described["targets"]["scores"]["atlas"] == str(tmp_path / "regions.nii.gz")
    assert restore(described).targets["scores"].keywords["atlas"] == tmp_path / "regions.nii.gz"


def test_empty_path_is_refused() -> None:
    """An empty path is refused, since it would mean the working folder."""
    with pytest.raises(
        OutOfRange, match=r"targets\.scores\.atlas must be the path of a file or folder, got an empty one"
    ):
        override(load_task("lsm"), "targets.scores.atlas", "")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("width", ("model", "width")),
        ("model", ("model", "")),
        ("targets.mask.name", ("targets.mask", "name")),
        ("metrics.sensitivity_1.5mm.tolerance_mm", ("metrics.sensitivity_1.5mm", "tolerance_mm")),
        ("phantom_subjects", ("phantom_subjects", "")),
    ],
)
def test_component_of_a_key(epvs: Task, key: str, expected: tuple[str, str]) -> None:
    """Short names are resolved, and labels may contain dots."""
    assert component_of(epvs, key) == expected


@pytest.fixture
def preset_task(epvs: Task) -> Task:
    """A task with presets for a profile, an experiment and a model."""
    presets = {
        "profile=paper": {"recipe.epochs": 60},
        "profile=paper model=basic_unet": {"recipe.epochs": 70, "width": 4},
        "experiment=small model=basic_unet": {"recipe.batch_size": 2},
    }
    return dataclasses.replace(epvs, presets=presets)


def test_presets_apply_if_all_conditions_hold(preset_task: Task) -> None:
    """A preset applies if all of its conditions hold; the model may be chosen after profile and experiment."""
    paper = narrowed(preset_task, profile="paper", experiment="")
    assert describe(preset(paper))["recipe"]["epochs"] == 60
    chosen = describe(preset(override(paper, "model", "basic_unet")))
    assert (chosen["recipe"]["epochs"], chosen["model"]["width"], chosen["recipe"]["batch_size"]) == (70, 4, 32)


def test_presets_of_other_profiles_do_not_apply(preset_task: Task) -> None:
    """Presets of other profiles and experiments do not apply."""
    quick = override(narrowed(preset_task, profile="quick", experiment=""), "model", "basic_unet")
    assert describe(preset(quick)) == describe(quick)


def test_presets_yield_to_overrides(preset_task: Task) -> None:
    """A preset does not change a key that the user set, by its full or its short name."""
    paper = override(narrowed(preset_task, profile="paper", experiment=""), "model", "basic_unet")
    kept = describe(preset(paper, but=["model.width"]))
    assert (kept["recipe"]["epochs"], kept["model"]["width"]) == (70, 16)


def test_presets_of_options_apply_after_those_of_components(epvs: Any) -> None:
    """A condition may name an option, by its full or short name; such presets apply after the others."""
    presets = {
        "model.width=4": {"recipe.epochs": 2, "recipe.batch_size": 9},
        "width=4 model=basic_unet": {"recipe.epochs": 3},
        "model=basic_unet": {"recipe.epochs": 1},
    }
    task = override(dataclasses.replace(epvs, presets=presets), "model", "basic_unet")

    def applied(task: Task) -> tuple[int, int]:
        recipe = describe(preset(preset(task), of_options=True))["recipe"]
        return recipe["epochs"], recipe["batch_size"]

    default = describe(task)["recipe"]["batch_size"]
    assert applied(override(task, "model.width", 8)) == (1, default)
    assert applied(override(task, "model.width", 4)) == (3, 9)


def _value(described: dict[str, Any], path: str) -> Any:
    """The value at a dotted path; labels may contain dots, and a component is represented by its name."""
    found: Any = described
    while path:
        step = max((key for key in found if path == key or path.startswith(f"{key}.")), key=len)
        found, path = found[step], path[len(step) + 1 :]
    return found["use"] if isinstance(found, dict) else found
