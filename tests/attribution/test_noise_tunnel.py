"""The noise tunnel averages the wrapped attribution and depends on its code."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from harness.attribution import attribute
from harness.attribution.noise_tunnel import noise_tunnel
from harness.core.errors import OutOfRange, UnknownName
from harness.core.identity import digest_of
from harness.core.registry import ATTRIBUTIONS
from harness.core.seeding import generator, seed_of


class Square(nn.Module):
    """Σ x², whose gradient is 2x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, *space) → (N, 1)."""
        return (x**2).flatten(1).sum(1, keepdim=True)


IMAGE = torch.linspace(-1, 1, 24).reshape(1, 1, 4, 6)


def test_without_noise_the_tunnel_equals_the_method() -> None:
    """With a noise level of zero, the tunnel gives the map of the wrapped method."""
    (plain,) = attribute("saliency", Square(), IMAGE, [0], absolute=False)
    (found,) = attribute("noise_tunnel", Square(), IMAGE, [0], noise=0.0, options={"absolute": False})
    torch.testing.assert_close(found, plain)


def test_variance_is_the_mean_square_minus_the_squared_mean() -> None:
    """On the same draws, the variance is the mean square minus the squared mean."""
    options = {"options": {"absolute": False}, "noise": 0.5, "samples": 7, "seed": 3}
    mean, square, variance = (
        attribute("noise_tunnel", Square(), IMAGE, [0], kind=kind, **options)[0]
        for kind in ("mean", "mean_square", "variance")
    )
    torch.testing.assert_close(variance, square - mean**2)
    assert float(variance.max()) > 0.1


def test_variance_of_a_linear_gradient_is_that_of_the_noise() -> None:
    """The gradient of x² is 2x, so noise of SD s gives a variance of about 4 s²."""
    image = torch.zeros(1, 1, 30, 30)
    (found,) = attribute(
        "noise_tunnel", Square(), image, [0], kind="variance", noise=0.5, samples=60, options={"absolute": False}
    )
    assert float(found.mean()) == pytest.approx(4 * 0.25 * 59 / 60, rel=0.05)


@pytest.mark.parametrize("method", ["integrated_gradients", "gradient_shap"])
def test_map_is_the_statistic_over_the_noisy_copies(method: str) -> None:
    """For two images, the map is the mean square of the maps of the copies, with the noise drawn copy by copy."""
    images = torch.cat([IMAGE, IMAGE.flip(2) / 2])
    options = {"samples": 3} if method == "gradient_shap" else {"steps": 4}
    (found,) = attribute(
        "noise_tunnel", Square(), images, [0], method=method, options=options, kind="mean_square", noise=0.3,
        samples=5, seed=2,
    )  # fmt: skip
    rng = generator(2, "noise_tunnel", "noise")
    copies = [images + 0.3 * torch.from_numpy(rng.standard_normal(tuple(images.shape))).float() for _ in range(5)]
    given = {"seed": seed_of(2, "noise_tunnel")} if method == "gradient_shap" else {}
    (maps,) = attribute(method, Square(), torch.cat(copies), [0], **options, **given)
    expected = torch.stack(
        [(maps[[number, number + 2, number + 4, number + 6, number + 8]] ** 2).mean(0) for number in (0, 1)]
    )
    torch.testing.assert_close(found, expected)


def test_code_digest_follows_the_wrapped_method() -> None:
    """The code digest follows the option that names the wrapped method."""
    digests = {digest_of(partial(noise_tunnel, method=name), ATTRIBUTIONS) for name in ("saliency", "occlusion")}
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "noise_tunnel"}, OutOfRange, "an attribution other than"),
        ({"method": "no_such"}, UnknownName, "no_such"),
        ({"options": {"stepz": 3}}, UnknownName, "stepz"),
    ],
)
def test_methods_that_cannot_be_wrapped_are_refused(
    options: dict[str, object], error: type[Exception], message: str
) -> None:
    """Methods that cannot be wrapped are refused by name."""
    with pytest.raises(error, match=message):
        attribute("noise_tunnel", Square(), IMAGE, [0], **options)
