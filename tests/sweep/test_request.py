"""Requests from overrides, and errors for invalid ones."""

from __future__ import annotations

from typing import Any

import pytest

from harness.core.errors import OutOfRange, RequestError, UnknownName
from harness.core.space import Interval, grids_of
from harness.core.task import describe
from harness.sweep.catalogue import load_task, task_names
from harness.sweep.grammar import parse, to_overrides
from harness.sweep.grid import at, points, without_effect
from harness.sweep.plan import Request
from harness.sweep.request import defaults_for_data, resolve


def request_of(*overrides: str) -> Request:
    """The request of overrides for the ePVS task."""
    return resolve(parse(["task=epvs", *overrides]), texts=("task=epvs", *overrides))


def test_task_alone_runs_its_experiment(epvs: Any) -> None:
    """By default, the task's own experiment runs with the quick profile."""
    request = request_of()
    assert (request.profile, request.seeds, request.folds) == ("quick", (0,), None)
    assert request.axes == epvs.experiments["ablation"]
    assert describe(request.task)["model"]["width"] == epvs.profiles["quick"]["model.width"]


def test_profile_applies_its_overrides() -> None:
    """The paper profile sets its sizes and seeds."""
    request = request_of("profile=paper")
    assert request.seeds == (0, 1, 2)
    assert describe(request.task)["recipe"]["copies"] == 398
    assert describe(request.task)["phantom_subjects"] == 21


def test_overrides_replace_the_profile() -> None:
    """Overrides replace values of the profile."""
    request = request_of("profile=paper", "recipe.epochs=2", "seed=5")
    assert describe(request.task)["recipe"]["epochs"] == 2
    assert request.seeds == (5,)


def test_defaults_for_own_data_are_named() -> None:
    """Options whose defaults differ for a user's data are listed with the values that apply."""
    assert defaults_for_data(request_of()) == ""
    assert defaults_for_data(request_of("data=x")) == ("cohort.crop=brain cohort.brain=compute")
    changed = request_of("data=x", "cohort.size=[96,96,32]", "cohort.brain=if_present")
    assert defaults_for_data(changed) == "cohort.crop=brain cohort.brain=if_present"


def test_models_of_generated_subjects_are_left_out() -> None:
    """With a user's data, an experiment has no model that knows the truth of generated subjects."""
    generated, given = (resolve(parse(["task=ms", *more])) for more in ((), ("data=x",)))
    assert generated.without == () and "tract_means" in generated.axes["model"]
    assert given.without == ("tract_means",)
    assert given.axes["model"] == tuple(one for one in generated.axes["model"] if one != "tract_means")
    assert "without tract_means (it knows the truth of generated subjects)" in defaults_for_data(given)
    assert resolve(parse(["task=ms", "data=x", "model=tract_means"])).without == ()
    # The covariate of generated subjects that other tables may lack
    for request, expected in ((generated, "age+lesion_ml"), (given, "age")):
        (task,) = (
            at(request.task, point)
            for point in points(request.task, request.grids)
            if point.get("model") == "covariates_only"
        )
        assert task.adapter.keywords["covariates"] == expected


def test_experiment_by_name(epvs: Any) -> None:
    """A named experiment sets the axes."""
    assert request_of("experiment=shapley").axes == epvs.experiments["shapley"]


def test_synonym_is_the_experiment() -> None:
    """``target=edss`` is the regression of the EDSS, also in the command of the run."""
    texts = ("task=ms", "target=edss", "recipe.epochs=2")
    found = resolve(parse(texts), texts=texts)
    same = resolve(parse(["task=ms", "experiment=regression", "recipe.epochs=2"]))
    assert describe(found.task) == describe(same.task)
    assert (found.grids, found.name) == (same.grids, same.name)
    assert found.typed == ("task=ms", "experiment=regression", "recipe.epochs=2")
    assert found.task.objective == "r2"


@pytest.mark.parametrize("more", ["target=age", "target=edss,severe", "target=edss experiment=fusion"])
def test_synonym_that_is_not_clear_is_refused(more: str) -> None:
    """Another value, several values and a second experiment are refused with the words that exist."""
    with pytest.raises(RequestError, match="target=edss is experiment=regression"):
        resolve(parse(["task=ms", *more.split()]))


@pytest.mark.parametrize("override", ["sequences=SWI+T1w", "adapter.channels=SWI+T1w"])
def test_single_value_replaces_the_axis_of_the_experiment(override: str) -> None:
    """A single value, by short name or full key, replaces the axis of the experiment."""
    request = request_of(override)
    assert request.axes == {}
    assert describe(request.task)["adapter"]["channels"] == "SWI+T1w"


@pytest.mark.parametrize("key", ["sequences", "adapter.channels"])
def test_sweep_replaces_the_axis_of_the_experiment(key: str) -> None:
    """Several values, by short name or full key, replace the axis of the experiment."""
    assert request_of(f"{key}=T1w,SWI").axes == {key: ("T1w", "SWI")}


def union(task: str, *overrides: str) -> tuple[list[tuple[Any, ...]], tuple[str, ...]]:
    """Points of the grids of a request, as tuples of values with ``None`` for absent axes, and its remarks."""
    request = resolve(parse([f"task={task}", *overrides]))
    found = points(request.task, request.grids)
    names = list(dict.fromkeys(name for point in found for name in point))
    return [tuple(names), *(tuple(point.get(name) for name in names) for point in found)], request.remarks


ALL = "qT1+MWF+NDI"
NETWORK = "attention_densenet"


def test_experiment_may_unite_grids() -> None:
    """Points of several grids are run together; axes that a grid lacks have the value of the task, where they apply."""
    found, remarks = union("ms")
    assert found == [
        ("model", "contrasts", "fusion"),
        (NETWORK, ALL, "gated"),
        *((name, ALL, None) for name in ("voxel_ridge", "box_means", "covariates_only", "tract_means")),
        *((NETWORK, name, "gated") for name in ("qT1", "MWF", "NDI")),
        *((NETWORK, ALL, name) for name in ("attention", "concatenation")),
    ]
    assert remarks == ()


def test_presets_of_options_hold_at_their_points() -> None:
    """Maps of networks that lack a part are left out of the default table, unless they are asked for."""
    for more, expected in (((), 0), (("attribution=random",), 1)):
        request = resolve(parse(["task=ms", *more]))
        reached = {
            (point["model"], point["contrasts"], point.get("fusion")): at(request.task, point)
            for point in points(request.task, request.grids)
        }
        assert len(reached["attention_densenet", "qT1", "gated"].explanations) == expected
        assert len(reached["attention_densenet", ALL, "concatenation"].explanations) == expected
        assert len(reached["attention_densenet", ALL, "gated"].explanations) == (expected or 7)
    single = resolve(parse(["task=ms", "contrasts=qT1", f"model={NETWORK}", "fusion=gated"]))
    (point,) = points(single.task, single.grids)
    assert at(single.task, point).explanations == {}  # as in the row whose command this is


def test_experiments_can_be_united() -> None:
    """Several experiments on the command line are the union of their grids; a common configuration is run once."""
    found, _ = union("ms", "experiment=contrasts,fusion")
    assert found == [
        ("contrasts", "fusion"), (ALL, "gated"), ("qT1", "gated"), ("MWF", "gated"), ("NDI", "gated"),
        (ALL, "attention"), (ALL, "concatenation"),
    ]  # fmt: skip
    # Their presets differ, unless the option is overridden.
    assert len(union("ms", "experiment=scenarios,fusion", "attribution=none")[0]) == 1 + 4


def test_override_applies_to_all_grids() -> None:
    """An override replaces the axis of the grids that have it, applies to the others, and this is said."""
    found, remarks = union("ms", "contrasts=qT1,NDI", "model=attention_densenet,voxel_ridge")
    places = [found[0].index(name) for name in ("contrasts", "model", "fusion")]
    assert {tuple(point[place] for place in places) for point in found[1:]} == {
        (contrast, *rest)
        for contrast in ("qT1", "NDI")
        for rest in (*((NETWORK, name) for name in ("gated", "attention", "concatenation")), ("voxel_ridge", None))
    }
    assert len(found) == 1 + 2 * (3 + 1)
    assert remarks == (
        "contrasts= replaces an axis in 1 of the 3 grids of experiment=classification, and also applies to the others, "
        "which do not vary it",
    )


def test_axis_without_effect_is_left_out_of_a_union() -> None:
    """If the chosen model lacks the axis of one of the grids, that axis is left out, and this is said."""
    found, remarks = union("ms", "model=voxel_ridge")
    assert found == [("contrasts",), (ALL,), ("qT1",), ("MWF",), ("NDI",)]
    assert remarks == ("fusion is not varied, because model=voxel_ridge has no such option",)
    with pytest.raises(UnknownName, match="no option of model voxel_ridge is named 'fusion'"):
        resolve(parse(["task=ms", "model=voxel_ridge", "experiment=fusion"]))
    with pytest.raises(UnknownName, match="no option of model voxel_ridge is named 'fusion'"):
        resolve(parse(["task=ms", "model=voxel_ridge", "fusion=attention"]))


def test_option_of_one_grid_is_set_where_it_exists() -> None:
    """An option of a swept component is set in the grids that choose it, and is no error in the others."""
    found, _ = union("ms", "model=attention_densenet,covariates_only", "model.dropout=0.1")
    dropout = found[0].index("model.dropout")
    assert {(point[found[0].index("model")], point[dropout]) for point in found[1:]} == {
        (NETWORK, 0.1), ("covariates_only", None),
    }  # fmt: skip


@pytest.mark.parametrize("task", task_names())
def test_every_experiment_can_be_planned(task: str) -> None:
    """All grids of all experiments of all tasks have points, and every axis has an effect in its grid."""
    declared = load_task(task)
    for name, experiment in declared.experiments.items():
        request = resolve(parse([f"task={task}", f"experiment={name}"]))
        assert request.remarks == ()
        for one in grids_of(experiment):
            assert points(request.task, (one,)) and without_effect(request.task, one) == []


def test_further_axes_multiply_the_experiment() -> None:
    """An axis that the experiment does not have is added."""
    axes = request_of("experiment=ablation", "width=4,8").axes
    assert list(axes) == ["sequences", "width"] and len(axes["sequences"]) == 8


@pytest.mark.parametrize("overrides", [("model=basic_unet", "model.width=4"), ("model.width=4", "model=basic_unet")])
def test_order_of_overrides_does_not_matter(overrides: tuple[str, str]) -> None:
    """A component is chosen before its options are set, whatever the order of overrides."""
    assert describe(request_of(*overrides).task)["model"] == {
        "use": "basic_unet", "width": 4, "output_bias": -3.0, "dropout": 0.0
    }  # fmt: skip


@pytest.mark.parametrize("key", ["model.width", "width"])
def test_option_of_a_swept_component_applies_at_every_point(key: str) -> None:
    """An option of a swept component applies at every point of the grid."""
    request = request_of("model=unet,basic_unet", f"{key}=4", "sequences=T2w")
    tasks = [at(request.task, {"model": model, key: 4}) for model in request.axes["model"]]
    assert request.axes == {"model": ("unet", "basic_unet"), key: (4,)}
    assert [describe(task)["model"]["width"] for task in tasks] == [4, 4]


def test_point_of_the_grid_chooses_components_first() -> None:
    """At a point of the grid, components are chosen before their options are set."""
    request = request_of("model.width=4,6", "model=basic_unet", "sequences=T2w")
    task = at(request.task, {"model.width": 6, "model": "basic_unet"})
    assert describe(task)["model"]["width"] == 6


def test_options_of_the_other_model_can_be_swept() -> None:
    """An axis may be an option that only the chosen component has."""
    assert request_of("split=k_fold", "split.folds=2,3", "sequences=T2w").axes == {"split.folds": (2, 3)}


@pytest.mark.parametrize(
    ("overrides", "labels"),
    [
        (["attribution=random"], ["random"]),
        (["attribution=random,channel_shapley"], ["random", "channel_shapley"]),
        (["attribution=saliency"], ["saliency"]),
        (["attribution=none"], []),
        (["attributions.mine=saliency", "attribution=mine,random"], ["mine", "random"]),
    ],
)
def test_attributions_are_selected(overrides: list[str], labels: list[str]) -> None:
    """Labels of the task keep their options, and other names add the method with its defaults."""
    assert list(request_of(*overrides).task.attributions) == labels


def test_selected_attribution_takes_options(epvs: Any) -> None:
    """Options of a selected attribution apply, and those of the profile are kept."""
    task = request_of("attributions.gradient_shap.samples=3", "attribution=gradient_shap,integrated_gradients").task
    assert describe(task)["attributions"]["gradient_shap"]["samples"] == 3
    steps = epvs.profiles["quick"]["attributions.integrated_gradients.steps"]
    assert describe(task)["attributions"]["integrated_gradients"]["steps"] == steps


def test_seeds_and_folds() -> None:
    """Seeds and folds may have one or several values."""
    request = request_of("seed=3", "fold=0,2")
    assert (request.seeds, request.folds) == ((3,), (0, 2))


def test_settings_are_not_part_of_the_task() -> None:
    """Run settings are not part of the task."""
    request = request_of("workers=2", "out=/tmp/x", "exclude=sub-01,sub-02")
    assert (request.settings.workers, request.settings.exclude) == (2, ("sub-01", "sub-02"))
    assert describe(request.task) == describe(request_of().task)


def test_command_of_a_row_excludes_the_axes() -> None:
    """The overrides for the command of a row exclude the axes."""
    request = request_of("experiment=ablation", "recipe.epochs=2", "model=unet,basic_unet", "model.width=4")
    assert request.shared == ("task=epvs", "recipe.epochs=2")


def test_search_and_space_need_each_other() -> None:
    """A search needs a search space, and a search space needs a search."""
    with pytest.raises(RequestError, match="search=optuna needs a space"):
        request_of("search=optuna", "sequences=T2w")
    with pytest.raises(
        RequestError, match="recipe.lr has a search space, but no search was requested; add search=optuna"
    ):
        request_of("recipe.lr=tag(log,interval(1e-4,1e-2))")


def test_override_replaces_a_dimension_of_a_named_space() -> None:
    """A dimension in an override replaces that of the named search space."""
    request = request_of("search=optuna", "space=recipe", "recipe.lr=interval(0.001,0.002)", "sequences=T2w")
    assert Interval("recipe.lr", 0.001, 0.002) in request.space
    assert {one.key for one in request.space} == {"recipe.lr", "recipe.batch_size", "recipe.lesion_weight"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"exactly one task must be given, got none; set task=NAME\. Tasks: epvs"),
        (["task=epvs,lsm"], r"exactly one task must be given, got epvs, lsm; set task=NAME"),
        (["task=epvs", "profile=quick,paper"], r"profile takes one value and cannot be swept; got quick, paper"),
        (["task=epvs", "experiment=ablation,ablation"], r"values of a sweep must differ"),
        (
            ["task=ms", "experiment=scenarios,fusion"],
            r"experiments scenarios and fusion cannot be run together.* values of attribution; set attribution=",
        ),
        (["task=epvs", "ray=auto,off"], r"ray takes one value and cannot be swept; got auto, off"),
        (["task=epvs", "sequences=T2w", "adapter.channels=T1w"], r"adapter\.channels and sequences are the same key"),
        (
            ["task=epvs", "sequences=T2w", "adapter.channels=T1w,T2w"],
            r"adapter\.channels and sequences are the same key",
        ),
        (
            ["task=epvs", "attributions.random.batch_size=2,4"],
            r"attributions\.random\.batch_size cannot be swept: .*label",
        ),
        (["task=epvs", "objective=dice,auc"], r"objective cannot be swept"),
    ],
)
def test_contradictory_requests_are_refused(overrides: list[str], message: str) -> None:
    """Contradictory or incomplete requests are refused."""
    with pytest.raises((RequestError, OutOfRange), match=message):
        resolve(parse(overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["profile=papr"], r"no profile of epvs is named 'papr'\. Near: paper"),
        (["experiment=ablatoin"], r"no experiment of epvs is named 'ablatoin'\. Near: ablation"),
        (["sequnces=T2w"], r"no key is named 'sequnces'\. Near: sequences"),
        (["worker=2"], r"no key is named 'worker'\. Near: workers"),
        (["recipe.lrr=2"], r"no option of recipe segmentation is named 'lrr'"),
        (["recipe.lrr=2,3"], r"no option of recipe segmentation is named 'lrr'"),
        (["model=unett"], r"no model is named 'unett'"),
        (["model=unet,unett"], r"no model is named 'unett'"),
        (["model=unet,basic_unet", "model.dpeth=2"], r"no option of model unet is named 'dpeth'. Near: depth"),
        (["attribution=salience"], r"no attribution is named 'salience'\. Near: saliency"),
        (["metrics.mine=dicee"], r"no metric is named 'dicee'"),
        (["metric=dice"], r"no key is named 'metric'\. Near: metrics\."),
        (["search=grid", "recipe.lr=interval(0.1,0.2)"], r"no search is named 'grid'"),
        (["space=recipes", "search=optuna"], r"no search space of epvs is named 'recipes'\. Near: recipe"),
    ],
)
def test_unknown_names(overrides: list[str], message: str) -> None:
    """Unknown names are refused with suggestions."""
    with pytest.raises(UnknownName, match=message):
        request_of(*overrides)


def test_unknown_task() -> None:
    """An unknown task is refused with suggestions."""
    with pytest.raises(UnknownName, match=r"no task is named 'epsv'\. Near: epvs"):
        resolve(parse(["task=epsv"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recipe.lr=-1"], r"recipe\.lr must be a number > 0"),
        (["recipe.lr=0.1,-1"], r"recipe\.lr must be a number > 0 .*got -1"),
        (["seed=0.5"], r"seed must be a whole number >= 0, got 0\.5"),
        (["seed=true"], r"seed must be a whole number >= 0, got True \(true and false are not numbers\)"),
        (["seed=0,true"], r"seed must be a whole number >= 0, got True"),
        (["seed=-1"], r"seed must be a whole number >= 0, got -1"),
        (["phantom_subjects=true"], r"phantom_subjects must be a whole number >= 1, got True"),
        (["phantom_seed=-1"], r"phantom_seed must be a whole number >= 0, got -1"),
        (["workers=true"], r"workers must be a whole number >= 0, got True"),
        (["fold=true"], r"fold must be a whole number >= 0, got True"),
        (["seed=0,0"], r"the values of a sweep must differ, got 0 twice for seed"),
        (["fold=a"], r"fold must be a whole number >= 0, got 'a'"),
        (["width=4,4"], r"must differ, got 4 twice for width"),
        (["attribution=1"], r"attribution takes names, got 1"),
    ],
)
def test_values_out_of_range(overrides: list[str], message: str) -> None:
    """Values out of range are refused, also within a sweep."""
    with pytest.raises(OutOfRange, match=message):
        request_of(*overrides)


def test_empty_seeds_are_refused() -> None:
    """An empty tuple of seeds is refused."""
    with pytest.raises(OutOfRange, match="a sweep must have at least one value, got none for seed"):
        resolve(to_overrides(task="epvs", seed=()))


def test_all_faults_of_a_request_are_named_at_once() -> None:
    """Unknown keys and wrong settings come together, as do wrong values of components."""
    with pytest.raises(RequestError) as caught:
        request_of("profile=papr", "worker=2", "sequnces=T2w", "ray=maybe")
    lines = str(caught.value).splitlines()
    assert lines[0] == "4 faults in the request:"
    for name, line in zip(("'papr'", "'worker'", "'sequnces'", "'maybe'"), lines[1:], strict=True):
        assert line.startswith("- ") and name in line
    with pytest.raises(RequestError, match=r"2 faults in the request:\n- .*'unett'.*\n- .*'segmentatoin'"):
        request_of("model=unett", "recipe=segmentatoin")
