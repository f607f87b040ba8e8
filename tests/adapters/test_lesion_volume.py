"""Whole lesion maps: inputs, fitted adjustments, and predictions on the scale of the scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from harness.adapters.lesion_volume import LesionVolume, lesion_volume
from harness.core.errors import CellError, OutOfRange, RequestError, UnknownName
from harness.core.targets import Target
from harness.core.types import Array, Cohort, FittedAdapter, Reads, Remarks, Sample, SparseAdapter

SHAPE = (6, 5, 4)
ONE, TWO = TARGETS = (Target("one", "number"), Target("two", "number"))
CONTROLS = ["none", "direct_total_lesion_volume", "regress_behaviour", "regress_lesion", "regress_both"]


@pytest.fixture(scope="module")
def cohort(in_memory: Callable[[Array], Any]) -> Cohort:
    """Eight fractional lesion maps with two scores that depend on volume to different degrees."""
    rng = np.random.default_rng(3)
    samples = []
    for number in range(8):
        mask = np.where(rng.random(SHAPE) < rng.uniform(0.2, 0.8), rng.random(SHAPE), 0).astype(np.float32)
        scores = {"one": float(0.1 * mask.sum() + rng.normal()), "two": float(5 + 3 * rng.normal())}
        name = f"sub-{number:02d}"
        samples.append(Sample(name, name, {}, {"lesion": in_memory(mask)}, {}, np.eye(4), (1.0, 1.0, 1.0), scores))
    return Cohort("maps", tuple(samples), targets=TARGETS)


def fitted(cohort: Cohort, **options: Any) -> LesionVolume:
    """An adapter fitted to the first six samples."""
    return lesion_volume(**options).fit(cohort.samples[:6], TARGETS)


def raw(sample: Sample) -> Array:
    """The sample's lesion map."""
    return sample.masks["lesion"].load()


def test_the_lesion_map_is_read() -> None:
    """Only the lesion mask is read: no images and no covariates."""
    assert lesion_volume().reads == Reads(masks=("lesion",))


@pytest.mark.parametrize(("scores", "expected"), [("", ("one", "two")), ("two", ("two",)), ("two+one", ("two", "one"))])
def test_scores_are_chosen_in_their_order(cohort: Cohort, scores: str, expected: tuple[str, ...]) -> None:
    """Scores are predicted in the order given; an empty string selects all scores of the cohort."""
    spec = lesion_volume(scores=scores).spec(cohort)
    assert tuple(target.name for target in spec.targets) == expected
    assert (spec.inputs[0].shape, spec.channels) == (SHAPE, ("lesion",))


@pytest.mark.parametrize("scores", ["one+", "one+one", "+"])
def test_invalid_scores_are_refused(scores: str) -> None:
    """An empty or repeated score name is refused."""
    with pytest.raises(OutOfRange, match=r"different names joined by '\+', like score_1\+score_2; got"):
        lesion_volume(scores=scores)


def test_unknown_score_is_refused_with_suggestions(cohort: Cohort) -> None:
    """An unknown score raises an error that lists near matches."""
    with pytest.raises(UnknownName, match=r"no score of maps is named 'ones'\. Near: one"):
        lesion_volume(scores="ones").spec(cohort)


def test_targets_that_are_not_numbers_are_refused(cohort: Cohort) -> None:
    """A target that is not a number is refused, and the message names it and its kind."""
    other = dataclasses.replace(cohort, targets=(ONE, Target("two", "binary")))
    with pytest.raises(RequestError, match="lesion_volume predicts numbers, but two is of kind binary"):
        lesion_volume().spec(other)


def test_maps_on_different_grids_are_refused(cohort: Cohort, in_memory: Callable[[Array], Any]) -> None:
    """Lesion maps on different grids are refused, since the network has one input shape."""
    odd = dataclasses.replace(cohort.samples[0], masks={"lesion": in_memory(np.ones((2, 2, 2), np.float32))})
    with pytest.raises(RequestError, match=r"must be on one grid, got \[\(2, 2, 2\), \(6, 5, 4\)\]"):
        lesion_volume().spec(dataclasses.replace(cohort, samples=(odd, *cohort.samples[1:])))


@pytest.mark.parametrize("control", CONTROLS)
def test_input_is_unchanged_unless_voxels_are_controlled(cohort: Cohort, control: Any) -> None:
    """The spec marks the input as unchanged exactly when it equals the lesion map of every sample."""
    expected = lesion_volume(volume_control=control).spec(cohort).inputs[0].unchanged
    adapter = fitted(cohort, volume_control=control)
    assert expected is all(np.array_equal(adapter.inputs(one)[0][0, 0], raw(one)) for one in cohort.samples)


def test_input_is_the_map_as_one_item(cohort: Cohort) -> None:
    """The input is the lesion map as a single item of shape (1, 1, X, Y, Z), float32."""
    (inputs,) = lesion_volume().inputs(cohort.samples[2])
    assert (inputs.shape, inputs.dtype) == ((1, 1, *SHAPE), np.float32)
    np.testing.assert_array_equal(inputs[0, 0], raw(cohort.samples[2]))


@pytest.mark.parametrize("control", CONTROLS)
def test_explained_and_added_components_sum_to_the_input(cohort: Cohort, control: Any) -> None:
    """The explained component plus the added one is the input, and the explained one is zero outside the lesion."""
    adapter = fitted(cohort, volume_control=control)
    for sample in cohort.samples:
        ((explained, added),) = adapter.explained(sample)
        whole = explained if added is None else explained + added
        np.testing.assert_allclose(whole, adapter.inputs(sample)[0], atol=1e-6)
        assert not explained[0, 0][raw(sample) == 0].any()


@pytest.mark.parametrize("control", CONTROLS)
def test_voxels_are_the_input_without_its_zeros(cohort: Cohort, control: Any) -> None:
    """The sparse voxels hold the same values as the dense input."""
    adapter = fitted(cohort, volume_control=control)
    for sample in cohort.samples:
        voxels, values = adapter.voxels(sample)
        dense = np.zeros(np.prod(SHAPE), np.float32)
        dense[voxels] = values
        np.testing.assert_allclose(dense.reshape(SHAPE), adapter.inputs(sample)[0][0, 0], rtol=1e-6)


@pytest.mark.parametrize("targets", [TARGETS, (TWO, ONE), (TWO,)])
def test_targets_are_the_scores(cohort: Cohort, targets: tuple[Target, ...]) -> None:
    """Each target is one float32 value, stored under its name."""
    sample = cohort.samples[3]
    found = lesion_volume().targets(sample, targets)
    assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
        target.name: ((1,), np.float32) for target in targets
    }
    assert {name: value[0] for name, value in found.items()} == {
        target.name: np.float32(sample.targets[target.name]) for target in targets
    }


@pytest.mark.parametrize("target_range", ["given", "training"])
@pytest.mark.parametrize("control", CONTROLS)
def test_predictions_are_on_the_scale_of_the_scores(cohort: Cohort, control: Any, target_range: Any) -> None:
    """Exact network outputs are converted back to the original scores, also after saving and loading the state."""
    adapter = lesion_volume().load_state({})
    made = fitted(cohort, volume_control=control, target_range=target_range)
    adapter = lesion_volume(volume_control=control, target_range=target_range).load_state(made.state)
    for sample in cohort.samples:
        expected = {name: value[:, None] for name, value in adapter.targets(sample, TARGETS).items()}
        found = adapter.to_prediction(expected, sample, TARGETS)
        assert {name: float(kept["value"]) for name, kept in found.items()} == pytest.approx(sample.targets, rel=1e-5)


@pytest.mark.parametrize("control", ["none", "regress_both"])
def test_outputs_are_matched_by_name(cohort: Cohort, control: Any) -> None:
    """Outputs are matched to targets by name, whatever their order in the mapping."""
    adapter, sample = fitted(cohort, volume_control=control, target_range="training"), cohort.samples[0]
    expected = {"one": np.array([[0.25]]), "two": np.array([[0.75]])}
    found = adapter.to_prediction(expected, sample, TARGETS)
    swapped = adapter.to_prediction(dict(reversed(expected.items())), sample, TARGETS)
    assert {name: float(kept["value"]) for name, kept in swapped.items()} == {
        name: float(kept["value"]) for name, kept in found.items()
    }


def test_training_samples_reach_from_zero_to_one(cohort: Cohort) -> None:
    """With ``target_range=training``, the training targets span exactly 0 to 1."""
    adapter = fitted(cohort, target_range="training")
    values = np.array([[adapter.targets(one, TARGETS)[name][0] for name in ("one", "two")] for one in cohort.samples])
    np.testing.assert_allclose(values[:6].min(0), 0, atol=1e-6)
    np.testing.assert_allclose(values[:6].max(0), 1, atol=1e-6)


@pytest.mark.parametrize("options", [{"volume_control": "regress_both"}, {"target_range": "training"}])
def test_unfitted_adapter_is_refused(cohort: Cohort, options: dict[str, Any]) -> None:
    """An adapter that needs fitting raises an error when it is used before ``fit``."""
    adapter = lesion_volume(**options)
    for call in (adapter.inputs, lambda sample: adapter.targets(sample, TARGETS)):
        with pytest.raises(CellError, match="must be fitted to training subjects before it is used"):
            call(cohort.samples[0])


@pytest.mark.parametrize("control", ["none", "direct_total_lesion_volume"])
def test_adapter_without_fitted_adjustment_has_an_empty_state(cohort: Cohort, control: Any) -> None:
    """Without anything to fit, ``fit`` and ``load_state`` return the same adapter and the state is empty."""
    adapter = lesion_volume(volume_control=control)
    assert adapter.fit(cohort.samples, TARGETS) is adapter
    assert adapter.state == {} and adapter.load_state({}) is adapter


def test_maps_go_back_to_the_volume(cohort: Cohort) -> None:
    """A map that equals the input comes back as the original lesion map."""
    adapter, sample = lesion_volume(), cohort.samples[0]
    np.testing.assert_array_equal(adapter.to_image(adapter.inputs(sample)[0], sample), raw(sample)[None])


def test_adapter_is_fitted_and_sparse() -> None:
    """The adapter implements both optional protocols."""
    assert isinstance(lesion_volume(), FittedAdapter) and isinstance(lesion_volume(), SparseAdapter)


def _with_table(cohort: Cohort, **columns: list[Any]) -> Cohort:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    pairs = zip(cohort.samples, rows, strict=True)
    return dataclasses.replace(cohort, samples=tuple(dataclasses.replace(one, covariates=row) for one, row in pairs))


@pytest.mark.parametrize("control", CONTROLS)
def test_covariates_are_a_second_input(cohort: Cohort, control: str) -> None:
    """Numbers, sexes and unknown values are one input that is not explained."""
    table = _with_table(cohort, age=[60.0, None, *[70.0] * 6], sex=["F", "male", *["M"] * 6])
    adapter = lesion_volume(covariates="sex+age", volume_control=control).fit(table.samples, TARGETS)
    _, beside = adapter.spec(table).inputs
    assert (beside.channels, beside.shape, beside.explained) == (("sex", "age"), (), False)
    assert adapter.reads == Reads(masks=("lesion",), covariates=("sex", "age"))
    np.testing.assert_array_equal(adapter.inputs(table.samples[0])[1], np.array([[0, 60]], np.float32))
    np.testing.assert_array_equal(adapter.inputs(table.samples[1])[1], np.array([[1, np.nan]], np.float32))
    (_, added), (explained, nothing) = adapter.explained(table.samples[0])
    assert nothing is None and (added is None) == (control not in ("regress_lesion", "regress_both"))
    np.testing.assert_array_equal(explained, adapter.inputs(table.samples[0])[1])


def test_covariates_of_the_table(cohort: Cohort) -> None:
    """Tables need not have age and sex; other columns must exist, and text must have a number."""
    assert len(lesion_volume(covariates="age+sex").spec(cohort).inputs) == 2
    assert np.isnan(lesion_volume(covariates="age+sex").inputs(cohort.samples[0])[1]).all()
    table = _with_table(cohort, agee=[1.0] * 8, group=["a"] * 8)
    with pytest.raises(UnknownName, match="no covariate of maps is named 'ages'"):
        lesion_volume(covariates="ages").spec(table)
    with pytest.raises(RequestError, match="covariate group must be a number, or F and M, but sub-00 has 'a'"):
        lesion_volume(covariates="group").spec(table)
    with pytest.raises(OutOfRange, match=r"covariates must be different names joined by '\+', like age\+sex; got"):
        lesion_volume(covariates="age+age")


def test_covariates_that_cannot_be_used_are_told(cohort: Cohort) -> None:
    """The usual ones are unknown where the table lacks them; words other than F and M are unknown, too."""
    adapter = lesion_volume(covariates="age+sex")
    assert isinstance(adapter, Remarks)
    assert adapter.notes(cohort) == (
        "the covariate age is not used, because no subject has a number, or F or M, in it",
        "the covariate sex is not used, because no subject has a number, or F or M, in it",
    )
    names = ["F", "weiblich", *["M"] * (len(cohort.samples) - 2)]
    rows = [{"age": 50.0, "sex": name} for name in names]
    pairs = zip(cohort.samples, rows, strict=True)
    table = dataclasses.replace(cohort, samples=tuple(dataclasses.replace(one, covariates=row) for one, row in pairs))
    assert adapter.notes(table) == (
        f"the covariate sex is unknown for {cohort.samples[1].id} (weiblich): it must be a number, or F or M",
    )
