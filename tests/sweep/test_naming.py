"""Names of runs: one for one command, another for another."""

from __future__ import annotations

import re

import pytest

from harness.sweep.grammar import parse, to_overrides
from harness.sweep.request import resolve


def name_of(*words: str) -> str:
    """The name of what a command runs."""
    return resolve(parse(words)).name


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("task=epvs",), "ablation"),
        (("task=epvs", "experiment=shapley"), "shapley"),
        (("task=lsm", "seed=0", "profile=quick", "out=elsewhere", "ray=off", "workers=2", "report=false"), "multi"),
    ],
)
def test_an_experiment_alone_is_its_own_name(words: tuple[str, ...], name: str) -> None:
    """Neither the defaults nor how and where it runs add to the name of an experiment."""
    assert name_of(*words) == name


@pytest.mark.parametrize(
    ("words", "start"),
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
def test_overrides_are_in_the_name(words: tuple[str, ...], start: str) -> None:
    """The experiment unless its axes are replaced, the data folder, the profile, the overrides, and a digest."""
    name = name_of(*words)
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
    """Order, short keys, spellings of numbers and paths, and defaults do not matter."""
    assert name_of(*one) == name_of(*other)


def test_different_runs_have_different_names() -> None:
    """Among them folders of one name in different places, and names that are cut at the same letter."""
    long = "sequences=T2w,T1w,FLAIR,T2w+T1w,T2w+FLAIR,T2w+FLAIR+T1w,T2w+FLAIR+T1w+SWI"
    commands = [
        ("data=a/masks",), ("data=b/masks",), ("fold=0",), ("fold=0,1",), ("seed=1",), ("attribution=random",),
        ("profile=paper",), ("profile=paper", "seed=0"), (long, "recipe.epochs=3"), (long, "recipe.epochs=4"),
        ("search=optuna", "space=recipe"), ("search=optuna", "space=recipe", "trials=3"),
        ("search=optuna", "recipe.lr=interval(1e-4,1e-2)"), ("search=optuna", "recipe.lr=interval(1e-4,1e-3)"),
    ]  # fmt: skip
    names = [name_of("task=epvs", *words) for words in commands]
    assert len(set(names)) == len(commands) and max(map(len, names)) < 80


def test_a_notebook_and_the_command_line_share_a_name() -> None:
    """Python values give the same name as the overrides typed for them."""
    typed = name_of("task=epvs", "sequences=T2w,FLAIR", "phantom.shape=[24,24,8]", "fold=1")
    read = to_overrides(task="epvs", sequences=("T2w", "FLAIR"), phantom__shape=[24, 24, 8], fold=1)
    assert resolve(read).name == typed


def test_a_name_is_a_value_of_the_command_line() -> None:
    """It is read back as it is, without quotes."""
    for words in (("task=epvs", "data=2024-05"), ("task=lsm", "model=ridge,mass_univariate", "noise=0.1,1e-3")):
        name = name_of(*words)
        assert parse([f"run={name}"]).values == {"run": name}
