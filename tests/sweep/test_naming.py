"""Names of runs: equal for the same command and different for others."""

from __future__ import annotations

import re

import pytest

from harness.sweep.grammar import parse, to_overrides
from harness.sweep.request import resolve


def name_of(*overrides: str) -> str:
    """The name of the run of a command."""
    return resolve(parse(overrides)).name


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (("task=epvs",), "ablation"),
        (("task=epvs", "experiment=shapley"), "shapley"),
        (("task=lsm", "seed=0", "profile=quick", "out=elsewhere", "ray=off", "workers=2", "report=false"), "multi"),
    ],
)
def test_name_of_an_experiment_without_overrides(overrides: tuple[str, ...], name: str) -> None:
    """The name of an experiment without overrides is that of the experiment, whatever the run settings."""
    assert name_of(*overrides) == name


@pytest.mark.parametrize(
    ("overrides", "start"),
    [
        (("task=epvs", "profile=paper"), "ablation_paper"),
        (("task=lsm", "data=my/lesion masks"), "multi_lesion-masks"),
        (("task=lsm", "experiment=noise", "recipe.lr=0.5"), "noise_recipe.lr-0.5"),
        (("task=lsm", "model=ridge", "noise=0,0.2"), "noise-0-0.2_model-ridge"),
        (("task=lsm", "experiment=noise", "model=ridge"), "noise_model-ridge"),
        (("task=epvs", "sequences=T2w,T2w+FLAIR", "seed=0,1"), "sequences-T2w-T2w+FLAIR_seed-0-1"),
        (("task=epvs", "exclude=sub-01"), "ablation_exclude-sub-01"),
        (("task=epvs", "search=optuna", "recipe.lr=interval(1e-4,1e-2)"), "ablation_search-optuna_recipe.lr-"),
    ],
)
def test_overrides_are_in_the_name(overrides: tuple[str, ...], start: str) -> None:
    """The name contains experiment or axes, data folder, profile, overrides and a digest."""
    name = name_of(*overrides)
    assert name.startswith(start) and re.fullmatch(r"[\w.+-]+-[0-9a-f]{6}", name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("task=lsm", "noise=0,0.2", "model=ridge"), ("task=lsm", "model=ridge", "targets.scores.noise=0.0,0.2")),
        (("task=epvs", "seed=[0,1]"), ("task=epvs", "seed=0,1", "mlflow=off")),
        (("task=epvs", "data=a/../b"), ("task=epvs", "data=b")),
        (("task=epvs", "experiment=ablation"), ("task=epvs",)),
    ],
)
def test_the_same_run_has_the_same_name(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    """Order, short names, spelling of numbers and paths, and defaults do not change the name."""
    assert name_of(*one) == name_of(*other)


def test_different_runs_have_different_names() -> None:
    """Different runs have different names, also if folders are called the same or long names are truncated."""
    long = "sequences=T2w,T1w,FLAIR,T2w+T1w,T2w+FLAIR,T2w+FLAIR+T1w,T2w+FLAIR+T1w+SWI"
    commands = [
        ("data=a/masks",), ("data=b/masks",), ("fold=0",), ("fold=0,1",), ("seed=1",), ("attribution=random",),
        ("profile=paper",), ("profile=paper", "seed=0"), (long, "recipe.epochs=3"), (long, "recipe.epochs=4"),
        ("search=optuna", "space=recipe"), ("search=optuna", "space=recipe", "trials=3"),
        ("search=optuna", "recipe.lr=interval(1e-4,1e-2)"), ("search=optuna", "recipe.lr=interval(1e-4,1e-3)"),
    ]  # fmt: skip
    names = [name_of("task=epvs", *overrides) for overrides in commands]
    assert len(set(names)) == len(commands) and max(map(len, names)) < 80


def test_a_notebook_and_the_command_line_share_a_name() -> None:
    """Values given in Python give the same name as their text."""
    typed = name_of("task=epvs", "sequences=T2w,FLAIR", "phantom.shape=[24,24,8]", "fold=1")
    read = to_overrides(task="epvs", sequences=("T2w", "FLAIR"), phantom__shape=[24, 24, 8], fold=1)
    assert resolve(read).name == typed


def test_a_name_is_a_value_of_the_command_line() -> None:
    """The name of a run can be used as a value without quotes."""
    for overrides in (("task=epvs", "data=2024-05"), ("task=lsm", "model=ridge,mass_univariate", "noise=0.1,1e-3")):
        name = name_of(*overrides)
        assert parse([f"run={name}"]).values == {"run": name}
