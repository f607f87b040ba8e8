"""Gradient methods against captum, replicas by hand, and completeness."""

import captum.attr
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.attribution import attribute
from harness.core.errors import CellError, HarnessError, OutOfRange
from harness.testing import Formula, example_image, example_network

MODEL = example_network(2)
X = example_image(2, 2, 10, 9, seed=1)


class Reused(nn.Module):
    """One ReLU module used for two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.first, self.second = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) → (N, 2)."""
        return self.relu(self.second(self.relu(self.first(x)))).flatten(2).mean(2)


class Functional(nn.Module):
    """A ReLU called as a function, not as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) → (N, 2)."""
        return torch.relu(self.first(x)).flatten(2).mean(2)


def _gradient(x: Tensor, target: int) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(MODEL(x)[:, target].sum(), x)[0]


def test_saliency_is_the_absolute_gradient() -> None:
    """Saliency is the absolute autograd gradient."""
    torch.testing.assert_close(attribute("saliency", MODEL, X, [2])[0], _gradient(X, 2).abs())


def test_signed_saliency_is_the_gradient() -> None:
    """With ``signed``, saliency is the signed autograd gradient."""
    torch.testing.assert_close(attribute("saliency", MODEL, X, [1], absolute=False)[0], _gradient(X, 1))


def test_input_x_gradient_is_the_product() -> None:
    """Input × gradient is the product of the input and the autograd gradient."""
    torch.testing.assert_close(attribute("input_x_gradient", MODEL, X, [1])[0], X * _gradient(X, 1))


def test_integrated_gradients_agree_with_a_riemann_sum() -> None:
    """The map agrees with a Riemann sum of 2,000 midpoints between a baseline of 0.3 and the input."""
    base, steps = torch.full_like(X, 0.3), 2000
    mean = sum(_gradient(base + (k + 0.5) / steps * (X - base), 0) for k in range(steps)) / steps
    ours = attribute("integrated_gradients", MODEL, X, [0], baseline=0.3, steps=300)[0]
    expected = (X - base) * mean
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize(("name", "options"), [("integrated_gradients", {"steps": 400}), ("deeplift", {})])
def test_map_sums_to_the_difference_from_the_baseline(name: str, options: dict[str, int]) -> None:
    """Completeness: the map sums to the difference from the baseline, with one baseline value per channel."""
    base = torch.tensor([0.5, -1.0], dtype=torch.float64).reshape(2, 1, 1).expand_as(X)
    total = attribute(name, MODEL, X, [2], baseline=[0.5, -1.0], **options)[0].flatten(1).sum(1)
    torch.testing.assert_close(total, (MODEL(X) - MODEL(base))[:, 2].detach(), rtol=5e-3, atol=1e-6)


def test_deeplift_sum_is_exact() -> None:
    """DeepLIFT attributions sum exactly to the difference from the baseline."""
    total = attribute("deeplift", MODEL, X, [1])[0].flatten(1).sum(1)
    torch.testing.assert_close(total, (MODEL(X) - MODEL(0 * X))[:, 1].detach(), rtol=1e-9, atol=1e-12)


def test_deeplift_by_hand() -> None:
    """For relu(2a − b − 1) at (2, 1) from (0, 0), the multiplier is (2 − 0)/(3 − 0) = 2/3: 8/3 and −2/3."""
    linear = nn.Conv2d(2, 1, 1)
    linear.weight.data[:] = torch.tensor([2.0, -1.0]).reshape(1, 2, 1, 1)
    linear.bias.data[:] = -1.0  # type: ignore[union-attr]
    model = nn.Sequential(linear, nn.ReLU(), nn.Flatten())
    x = torch.tensor([2.0, 1.0]).reshape(1, 2, 1, 1)
    torch.testing.assert_close(attribute("deeplift", model, x, [0])[0].flatten(), torch.tensor([8 / 3, -2 / 3]))


def test_deeplift_refuses_a_reused_activation() -> None:
    """DeepLIFT refuses a module that is used twice, and the message names it and the remedy."""
    with pytest.raises(HarnessError, match=r"called once in a forward pass, got relu \(2 times\); .*integrated_grad"):
        attribute("deeplift", Reused(), torch.ones(1, 1, 8, 8), [0])


def test_deeplift_refuses_a_functional_activation() -> None:
    """DeepLIFT refuses a functional activation, since its attributions would not be complete."""
    with pytest.raises(CellError, match=r"must sum to f\(input\) - f\(baseline\) = .* use modules for all"):
        attribute("deeplift", Functional(), example_image(2, 1, 8, 8).float(), [0])


def test_deeplift_tolerance_can_be_raised() -> None:
    """A large completeness tolerance makes DeepLIFT accept the same model."""
    maps = attribute("deeplift", Functional(), example_image(2, 1, 8, 8).float(), [0], tolerance=1e9)
    assert maps[0].shape == (2, 1, 8, 8)


def test_guided_backprop_by_hand() -> None:
    """For y = relu(a) − 3·relu(b), the negative gradient of b is set to zero and that of a passes."""
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 1, 1, bias=False), nn.Flatten())
    model[1].weight.data[:] = torch.tensor([1.0, -3.0]).reshape(1, 2, 1, 1)
    x = torch.tensor([2.0, 5.0]).reshape(1, 2, 1, 1)
    assert attribute("guided_backprop", model, x, [0])[0].flatten().tolist() == [1.0, 0.0]


def test_guided_backprop_refuses_a_model_without_relu() -> None:
    """Guided backpropagation refuses a model without ReLU, for which it would be the plain gradient."""
    with pytest.raises(HarnessError, match=r"needs ReLU modules, but Functional has none; .*saliency"):
        attribute("guided_backprop", Functional(), torch.ones(1, 1, 8, 8), [0])


def test_gradcam_agrees_with_captum() -> None:
    """Grad-CAM agrees with captum's Grad-CAM of the second convolution, interpolated."""
    coarse = captum.attr.LayerGradCam(MODEL, MODEL.second[0]).attribute(X, target=1, relu_attributions=True)
    expected = nn.functional.interpolate(coarse, size=(10, 9), mode="bilinear").expand_as(X)
    torch.testing.assert_close(attribute("gradcam", MODEL, X, [1])[0], expected.detach())


def test_gradient_shap_is_exact_for_a_linear_model() -> None:
    """For a linear model, every draw of GradientSHAP gives weight × (input − baseline)."""
    weight = example_image(1, 2, 4, 4, seed=3)
    model = Formula(lambda x: (x * weight).flatten(1).sum(1, keepdim=True))
    x = example_image(2, 2, 4, 4)
    torch.testing.assert_close(attribute("gradient_shap", model, x, [0], baseline=0.2)[0], weight * (x - 0.2))


def test_gradient_shap_approximates_integrated_gradients() -> None:
    """With 4,000 draws, GradientSHAP agrees with integrated gradients within 5 %."""
    ours = attribute("gradient_shap", MODEL, X[:1], [0], samples=4000, batch_size=500)[0]
    exact = attribute("integrated_gradients", MODEL, X[:1], [0], steps=200)[0]
    assert float((ours - exact).norm() / exact.norm()) < 0.05


def test_gradient_shap_draws_from_a_distribution_of_baselines() -> None:
    """For a linear model with several baselines, the expected map is weight × (input − mean baseline)."""
    pool = torch.stack([torch.zeros(1, 3, 3), torch.ones(1, 3, 3)]).double()
    model = Formula(lambda x: x.flatten(1).sum(1, keepdim=True))
    x = torch.full((1, 1, 3, 3), 2.0, dtype=torch.float64)
    seen = {
        round(float(attribute("gradient_shap", model, x, [0], samples=1, baseline=pool, seed=s)[0][0, 0, 0, 0]), 9)
        for s in range(8)
    }
    assert seen == {1.0, 2.0}


def test_smoothgrad_is_the_mean_gradient_of_its_draws() -> None:
    """SmoothGrad is the mean gradient over its noisy inputs; the gradient 2wx of a quadratic model reveals them."""
    weight = example_image(1, 1, 6, 6, seed=5)
    model = Formula(lambda x: (weight * x**2).flatten(1).sum(1, keepdim=True))
    x = example_image(1, 1, 6, 6)
    mean = attribute("smoothgrad", model, x, [0], samples=2000, absolute=False, batch_size=200)[0]
    sd = 0.15 * float(x.max() - x.min())
    error = (mean - 2 * weight * x) / (2 * weight.abs() * sd / np.sqrt(2000))
    # 36 standard normal numbers: their mean square is 1 within four standard errors.
    assert abs(float((error**2).mean()) - 1) < 4 * np.sqrt(2 / 36)


def test_squared_smoothgrad_averages_squares() -> None:
    """Squared SmoothGrad averages squared gradients: E[(2w(x+n))²] = 4w²(x² + sd²), within 5 % at 4,000 draws."""
    model = Formula(lambda x: (x**2).flatten(1).sum(1, keepdim=True))
    x = example_image(1, 1, 6, 6)
    squares = attribute("smoothgrad", model, x, [0], samples=4000, squared=True, batch_size=400)[0]
    sd = 0.15 * float(x.max() - x.min())
    assert float(squares.sum()) == pytest.approx(float((4 * (x**2 + sd**2)).sum()), rel=0.05)


def test_smoothgrad_without_noise_is_saliency() -> None:
    """SmoothGrad without noise equals saliency."""
    torch.testing.assert_close(
        attribute("smoothgrad", MODEL, X, [1], noise=0.0, samples=3)[0], attribute("saliency", MODEL, X, [1])[0]
    )


def test_unused_input_gets_zero() -> None:
    """An input that the model does not use gets a map of zeros."""
    model = Formula(lambda x, y: x.flatten(1).sum(1, keepdim=True))
    maps = attribute("integrated_gradients", model, (X, X), [0])[0]
    assert float(maps[1].abs().max()) == 0.0


def test_saliency_of_a_flipped_image_is_flipped() -> None:
    """For a flip-symmetric model, the map of a flipped image is the flipped map."""
    model = Formula(lambda x: (x**3).flatten(1).mean(1, keepdim=True))
    torch.testing.assert_close(
        attribute("saliency", model, X.flip(-1), [0])[0], attribute("saliency", model, X, [0])[0].flip(-1)
    )


@pytest.mark.parametrize("name", ["saliency", "smoothgrad"])
def test_batch_size_must_be_positive(name: str) -> None:
    """A batch size below one is refused."""
    with pytest.raises(OutOfRange, match="batch_size of attribution .* must be a whole number > 0, got 0"):
        attribute(name, MODEL, X, [0], batch_size=0)


def test_a_baseline_must_fit_the_channels() -> None:
    """A baseline with another number of values than channels is refused, and the message shows both."""
    with pytest.raises(OutOfRange, match=r"must broadcast to its input, got \(3,\) for \(2, 2, 10, 9\)"):
        attribute("integrated_gradients", MODEL, X, [0], baseline=[0.0, 1.0, 2.0])
