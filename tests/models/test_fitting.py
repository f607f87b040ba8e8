"""Properties of all fitted lesion models: protocol, storage, gradients, and errors."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import safetensors.torch
import scipy.sparse
import torch

from harness import models
from harness.attribution import attribute, occlusion
from harness.core.errors import OutOfRange
from harness.core.registry import MODELS
from harness.models.fitting import Fitted, Normalise, Sizes, TotalOf, lesion_sizes, merged, often_lesioned

SHAPE = (7, 6, 5)
VOXELS = int(np.prod(SHAPE))
NAMES = [
    name
    for name in MODELS.names()
    if MODELS.get(name).facts.get("fitted") and "in_channels" in inspect.signature(MODELS.get(name).function).parameters
]
SMALL: dict[str, dict[str, Any]] = {
    "lesion_field": {"minimum": 3, "steps": 30},
    "mass_univariate": {"minimum": 3},
    "matched_filter": {"roi_size": 2},
    "ridge": {"minimum": 3},
    "sparse_linear": {"minimum": 3, "alpha": 0.1},
    "svr_lsm": {"minimum": 3},
}

# Every model with its defaults, and with every way to normalise lesions.
SIZED: list[tuple[str, dict[str, str]]] = [(name, {}) for name in NAMES] + [
    (name, {"normalise": one})
    for name in NAMES
    if "normalise" in inspect.signature(MODELS.get(name).function).parameters
    for one in get_args(Normalise)
]


def cohort(patients: int = 40, outputs: int = 2, *, seed: int = 0) -> tuple[scipy.sparse.csr_array, np.ndarray]:
    """Boxes with partial edges as lesions, with the loads of one or two regions as scores."""
    rng = np.random.default_rng(seed)
    lesions = np.zeros((patients, *SHAPE), dtype=np.float32)
    for lesion in lesions:
        low = [rng.integers(0, size - 2) for size in SHAPE]
        lesion[tuple(slice(a, a + rng.integers(2, 5)) for a in low)] = 1
        lesion[tuple(slice(a, a + 1) for a in low)] = 0.25
    loads = [lesions[:, 2:4, 2:4, 2:4].mean((1, 2, 3)), lesions[:, 4:6, 3:5, 1:3].mean((1, 2, 3))]
    return scipy.sparse.csr_array(lesions.reshape(patients, -1)), np.stack(loads[:outputs], axis=1).astype(float)


def build(name: str, outputs: int = 2, **options: Any) -> Any:
    """A new model on the small grid."""
    return models.build(name, outputs=outputs, image_shape=SHAPE, **{**SMALL.get(name, {}), **options})


def fitted(name: str, outputs: int = 2, **options: Any) -> Any:
    """A model fitted to the small cohort."""
    model = build(name, outputs, **options)
    model.fit(*cohort(outputs=outputs), rng=np.random.default_rng(0))
    return model.eval()


def images(lesions: scipy.sparse.csr_array) -> torch.Tensor:
    """(n, 1, X, Y, Z) float32."""
    return torch.from_numpy(lesions.toarray().reshape(-1, 1, *SHAPE))


def test_classical_models_are_registered() -> None:
    """The classical models are registered as fitted models."""
    assert {*SMALL, "total_volume"} <= set(NAMES)


def test_only_the_matched_filter_is_an_oracle() -> None:
    """Only the matched filter, which uses the size of the region, is flagged as an oracle."""
    assert [name for name in NAMES if MODELS.get(name).facts.get("oracle")] == ["matched_filter"]


@pytest.mark.parametrize("name", NAMES)
def test_model_implements_the_protocol(name: str) -> None:
    """Every model can be fitted and has a non-empty float32 map for each score."""
    model = fitted(name)
    assert isinstance(model, Fitted)
    assert model.weight_map().shape == (2, 1, *SHAPE)
    assert model.weight_map().dtype == torch.float32
    assert bool(model.weight_map().flatten(1).any(1).all())


@pytest.mark.parametrize("name", NAMES)
def test_weights_can_be_stored(name: str, tmp_path: Path) -> None:
    """A new model with the stored weights gives identical predictions and maps."""
    model, other = fitted(name), build(name)
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    other.load_state_dict(safetensors.torch.load_file(file))
    x = images(cohort(5, seed=1)[0])
    assert torch.equal(other(x), model(x))
    assert torch.equal(other.weight_map(), model.weight_map())


@pytest.mark.parametrize("name", NAMES)
def test_unfitted_model_predicts_zero(name: str) -> None:
    """A model predicts zero before it is fitted."""
    assert not build(name)(images(cohort(5)[0])).any()


@pytest.mark.parametrize("name", NAMES)
def test_second_fit_forgets_the_first(name: str) -> None:
    """A second fit does not depend on the first."""
    model = build(name)
    model.fit(*cohort(seed=7), rng=np.random.default_rng(0))
    model.fit(*cohort(), rng=np.random.default_rng(0))
    for key, value in fitted(name).state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


@pytest.mark.parametrize("name", NAMES)
def test_prediction_does_not_depend_on_the_batch(name: str) -> None:
    """The prediction of a patient does not depend on the batch, up to rounding."""
    model, x = fitted(name), images(cohort(6, seed=1)[0])
    torch.testing.assert_close(model(x), torch.cat([model(x[i : i + 1]) for i in range(6)]))


@pytest.mark.parametrize(("name", "options"), SIZED)
def test_gradient_agrees_with_finite_differences(name: str, options: dict[str, str]) -> None:
    """The gradient with respect to the image agrees with finite differences."""
    model = fitted(name, **options).double()
    x = images(cohort(2, seed=3)[0]).double() + 0.1
    assert torch.autograd.gradcheck(model, (x.requires_grad_(),), eps=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["occlusion", "gradient_shap", "integrated_gradients", "saliency"])
def test_model_can_be_explained(name: str, method: str) -> None:
    """Attributions give finite, non-empty maps of every model."""
    model, x = fitted(name), images(cohort(8, seed=3)[0])
    for of_target in attribute(method, model, x, [0, 1]):
        assert of_target.shape == x.shape
        assert bool(torch.isfinite(of_target).all())
        assert bool(of_target.any())


@pytest.mark.parametrize(("name", "options"), SIZED)
def test_occlusion_is_incremental(name: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Occlusion computes windows incrementally, with the same effects as full passes."""
    model, x = fitted(name, **options).double(), images(cohort(3, seed=3)[0]).double()
    monkeypatch.setattr(occlusion, "_WORTH", -1.0)
    whole = attribute("occlusion", model, x, [0, 1], window=3, stride=2)
    monkeypatch.setattr(occlusion, "_WORTH", 0.9)
    monkeypatch.setattr(occlusion._Occluded, "_dense", lambda *_: pytest.fail("computed as a whole"))
    found = attribute("occlusion", model, x, [0, 1], window=3, stride=2, baseline=0.0)
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10 * float(other.abs().max()) + 1e-15)


@pytest.mark.parametrize("normalise", ["none", "unit", "dtlvc"])
@pytest.mark.parametrize("name", ["ridge", "svr_lsm"])
def test_occlusion_of_a_whole_lesion_in_single_precision(name: str, normalise: str) -> None:
    """If a window covers the whole lesion, rounding errors are not rescaled to unit size."""
    x = torch.zeros(1, 1, *SHAPE)
    x[..., 2:4, 2:4, 2:4] = 1
    model = fitted(name, normalise=normalise)
    found = attribute("occlusion", model, x, [0, 1], window=4, stride=1, verify=200)
    exact = attribute("occlusion", model.double(), x.double(), [0, 1], window=4, stride=1)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-6 * float(other.abs().max()) + 1e-7)


def test_subclass_of_a_described_module_is_analysed_again() -> None:
    """A subclass with another forward does not use the layer description of its base class."""

    class Twice(TotalOf):
        def forward(self, flat: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(flat)

    x = torch.rand(1, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    for layer, factor in ((TotalOf(torch.square), 1), (Twice(torch.square), 2)):
        network = torch.nn.Sequential(torch.nn.Flatten(), layer)
        (found,) = attribute("occlusion", network, x, [0], window=1, stride=1)
        torch.testing.assert_close(found, factor * x.square())


@pytest.mark.parametrize("name", NAMES)
def test_constant_score_is_predicted(name: str) -> None:
    """A constant score is predicted as that constant, with a finite map."""
    lesions, targets = cohort()
    model = build(name)
    model.fit(lesions, np.full_like(targets, 0.3), rng=np.random.default_rng(0))
    np.testing.assert_allclose(model(images(lesions)).detach(), 0.3, atol=1e-6)
    assert bool(torch.isfinite(model.weight_map()).all())


@pytest.mark.parametrize("name", NAMES)
def test_patients_without_lesion_are_accepted(name: str) -> None:
    """Patients without lesions are accepted."""
    lesions, targets = cohort()
    lesions = scipy.sparse.csr_array(scipy.sparse.vstack([lesions, scipy.sparse.csr_array((3, VOXELS), dtype="f4")]))
    model = build(name)
    model.fit(lesions, np.r_[targets, np.zeros((3, 2))], rng=np.random.default_rng(0))
    assert bool(torch.isfinite(model(images(lesions))).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:, :-1], y), r"lesions must be \(n, 210\) for image_shape \(7, 6, 5\)"),
        (lambda x, y: (x, y[:, :1]), r"targets \(n, 2\), got \(40, 210\) and \(40, 1\)"),
        (lambda x, y: (x[:2], y[:2]), r"needs n >= 3 training patients, got 2"),
        (lambda x, y: (x, np.where(y > 0.5, np.nan, y)), r"must be finite, got \d+ values that are not"),
    ],
)
def test_invalid_data_are_refused(change: Any, message: str) -> None:
    """Invalid training data are refused."""
    with pytest.raises(OutOfRange, match=message):
        build("ridge").fit(*change(*cohort()), rng=np.random.default_rng(0))


def test_too_rare_lesions_are_refused() -> None:
    """A minimum that no voxel reaches is refused, and the message gives the highest number."""
    with pytest.raises(
        OutOfRange, match=r"at least 41 of 40 training patients, but the highest number in any voxel is \d+"
    ):
        build("ridge", minimum=41).fit(*cohort(), rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 2, "image_shape": SHAPE}, "reads one channel, the mask; got in_channels=2"),
        ({}, r"`image_shape` must be three positive numbers \(X, Y, Z\), got \(\)"),
        ({"image_shape": (4, 5)}, r"got \(4, 5\)"),
        (
            {"image_shape": SHAPE, "normalise": "l1"},
            "normalise of model ridge must be one of none, unit, dtlvc, got 'l1'",
        ),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    """Invalid options are refused when the model is built."""
    with pytest.raises(OutOfRange, match=message):
        models.build("ridge", **options)


def test_image_of_another_shape_is_refused() -> None:
    """An image of another shape than the model's is refused."""
    with pytest.raises(OutOfRange, match=r"built for \(N, 1, \*\(7, 6, 5\)\), got \(1, 1, 5, 6, 7\)"):
        build("ridge")(torch.zeros(1, 1, 5, 6, 7))


def test_identical_voxels_are_merged() -> None:
    """Columns 0 and 2 are the same and share a pattern; column 1 differs by degree only."""
    lesions = scipy.sparse.csr_array(np.array([[1, 0.5, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=float))
    patterns, pattern_of = merged(lesions, np.random.default_rng(0))
    assert patterns.shape == (3, 3)
    assert pattern_of[0] == pattern_of[2]
    np.testing.assert_array_equal(patterns.toarray()[:, pattern_of], lesions.toarray())


def test_merging_agrees_with_numpy() -> None:
    """There are as many patterns as unique columns, and each voxel refers to its own."""
    lesions = cohort()[0]
    patterns, pattern_of = merged(lesions, np.random.default_rng(1))
    assert patterns.shape[1] == len(np.unique(lesions.toarray().T, axis=0))
    np.testing.assert_array_equal(patterns.toarray()[:, pattern_of], lesions.toarray())


def test_a_voxel_counts_once_per_patient() -> None:
    """A voxel with any positive occupancy counts as lesioned, and an explicit zero does not."""
    lesions = scipy.sparse.csr_array((np.array([0.1, 1.0, 0.0, 1.0]), np.array([0, 1, 0, 1]), np.array([0, 2, 3, 4])))
    assert often_lesioned(lesions, 1).tolist() == [0, 1]
    assert often_lesioned(lesions, 2).tolist() == [1]


def test_sizes_worked_by_hand() -> None:
    """For 1, 1, .5 and .5, the length is √2.5 and the root of the volume √3; empty lesions get a lower bound."""
    lesions = scipy.sparse.csr_array(np.array([[1, 1, 0.5, 0.5, 0], [0, 0, 0, 0, 0]], dtype=np.float32))
    assert lesion_sizes(lesions, "unit").tolist() == pytest.approx([2.5**0.5, 1e-3])
    assert lesion_sizes(lesions, "dtlvc").tolist() == pytest.approx([3**0.5, 1e-3])
    assert lesion_sizes(lesions, "none").tolist() == [1, 1]


@pytest.mark.parametrize("normalise", ["unit", "dtlvc"])
def test_sparse_and_dense_lesions_are_scaled_alike(normalise: Any) -> None:
    """Sparse training data and dense inputs are divided by the same sizes."""
    lesions = cohort()[0]
    sizes = Sizes(normalise)(torch.from_numpy(lesions.toarray()))
    np.testing.assert_allclose(sizes.numpy()[:, 0], lesion_sizes(lesions, normalise), rtol=1e-12)


def test_binary_masks_have_unit_length_under_both_controls() -> None:
    """For binary masks, direct total lesion volume control and unit length are the same."""
    lesions = scipy.sparse.csr_array((cohort()[0].toarray() > 0.5).astype(np.float32))
    np.testing.assert_allclose(lesion_sizes(lesions, "unit"), lesion_sizes(lesions, "dtlvc"))
