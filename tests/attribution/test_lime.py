"""LIME: from its definition, against the package lime, and the weights of scales."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge

from harness.attribution import attribute
from harness.attribution.fills import filled
from harness.attribution.lime import LEVELS, combined, linear_fit, proximity, scale_weights
from harness.attribution.lime_segments import segments_of, squares
from harness.core.errors import OutOfRange
from harness.core.seeding import generator

SIDE = 12


class OfSquares(torch.nn.Module):
    """Linear in the mean colour of each part of a 3 × 3 grid, with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = torch.nn.functional.adaptive_avg_pool2d(x.mean(1, keepdim=True), 3).flatten(1)
        return parts @ self.weights.to(x).T


class Bent(torch.nn.Module):
    """A small random network, which is not linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(8 * (SIDE - 2) ** 2, 2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(x)
        return found


@pytest.fixture
def image() -> torch.Tensor:
    """One random RGB picture."""
    return torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


class TestFit:
    """The weighted linear model."""

    @pytest.mark.parametrize("penalty", [0.0, 1.0])
    def test_equals_scikit_learn(self, penalty: float) -> None:
        """Coefficients and R² are those of scikit-learn's weighted regressions."""
        rng = np.random.default_rng(0)
        shown, answers, weights = rng.random((60, 7)) < 0.5, rng.normal(size=(60, 2)), rng.random(60) + 0.1
        found = linear_fit(shown, answers, weights, penalty=penalty)
        reference = Ridge(alpha=penalty) if penalty else LinearRegression()
        reference.fit(shown, answers, sample_weight=weights)
        np.testing.assert_allclose(found.coefficients, reference.coef_.T, atol=1e-9)
        for number in range(2):
            own = (Ridge(alpha=penalty) if penalty else LinearRegression()).fit(shown, answers[:, number], weights)
            assert found.r2[number] == pytest.approx(own.score(shown, answers[:, number], weights))

    def test_constant_answers_have_no_quality(self) -> None:
        """A constant answer has coefficients of zero and no R²."""
        found = linear_fit(np.eye(4, dtype=bool), np.ones((4, 1)), np.ones(4))
        assert not found.coefficients.any() and np.isnan(found.r2[0])

    def test_fewer_images_than_segments(self) -> None:
        """An underdetermined fit is exact, with the coefficients of smallest norm."""
        rng = np.random.default_rng(0)
        shown, answers = rng.random((5, 20)) < 0.5, rng.normal(size=(5, 1))
        found = linear_fit(shown, answers, np.ones(5))
        assert found.r2[0] == pytest.approx(1)
        centred = shown - shown.mean(axis=0)
        np.testing.assert_allclose(found.coefficients, np.linalg.pinv(centred) @ (answers - answers.mean()), atol=1e-8)

    def test_proximity_by_hand(self) -> None:
        """d = 1 − cos: a quarter of the segments has a cosine of one half with all of them."""
        weights = proximity(np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool), 0.25)
        np.testing.assert_allclose(weights, [1, np.exp(-(0.5**2) / 0.25**2 / 2), np.exp(-1 / 0.25**2 / 2)])

    @pytest.mark.parametrize("penalty", [0.0, 1.0])
    def test_equals_the_package_lime(self, penalty: float) -> None:
        """The package lime gives the same coefficients for the same masks, distances and answers."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            base = pytest.importorskip("lime.lime_base").LimeBase
        rng = np.random.default_rng(1)
        shown = rng.random((80, 9)) < 0.5
        answers = rng.normal(size=(80, 2))
        distances = 1 - np.sqrt(shown.mean(axis=1))
        made: Any = base(lambda d: np.sqrt(np.exp(-(d**2) / 0.25**2)))
        regressor = Ridge(alpha=penalty) if penalty else LinearRegression()
        for number in range(2):
            _, pairs, score, _ = made.explain_instance_with_data(
                shown.astype(float), answers, distances, number, 9, feature_selection="none", model_regressor=regressor
            )
            found = linear_fit(shown, answers, proximity(shown, 0.25), penalty=penalty)
            np.testing.assert_allclose(found.coefficients[:, number], [dict(pairs)[one] for one in range(9)], atol=1e-6)
            assert found.r2[number] == pytest.approx(score, abs=1e-6)


class TestLime:
    """One scale."""

    def test_linear_model_is_recovered(self, image: torch.Tensor) -> None:
        """The coefficient of a square is what a linear model loses without it."""
        model = OfSquares()
        numbers: dict[str, Any] = {}
        maps = attribute(
            "lime", model, image, [0, 1], seed=3, numbers=numbers, segmentation="squares", segments=9, samples=200,
            fill="white",
        )  # fmt: skip
        labels = squares((SIDE, SIDE), 3)
        for number in range(2):
            for part in range(9):
                hidden = torch.where(torch.from_numpy(labels == part), torch.ones(()), image)
                lost = float(model(image)[0, number] - model(hidden)[0, number])
                inside = maps[number][0, :, torch.from_numpy(labels == part)]
                np.testing.assert_allclose(inside, lost, atol=1e-5)
        np.testing.assert_allclose(numbers["weighted_r2"], 1, atol=1e-6)
        assert numbers["segments"].tolist() == [[9.0], [9.0]]

    @pytest.mark.parametrize("response", ["output", "probability"])
    def test_replica(self, image: torch.Tensor, response: str) -> None:
        """Images made one by one, and a weighted regression of scikit-learn, give the same map."""
        model, labels = Bent().eval(), squares((SIDE, SIDE), 4)
        found = attribute(
            "lime", model, image, [1], seed=5, segmentation="squares", segments=16, samples=60, response=response,
            fill="mean", batch_size=7,
        )[0]  # fmt: skip
        shown = generator(5, "lime", 0, 0, 0).random((60, 16)) < 0.5
        mean = image.mean((2, 3), keepdim=True)
        answers = []
        for row in shown:
            mask = torch.from_numpy(row[labels])
            with torch.no_grad():
                answers.append(float(model(image * mask + mean * ~mask)[0, 1]))
        y = np.array(answers) if response == "output" else 1 / (1 + np.exp(-np.array(answers)))
        distance = 1 - shown.sum(axis=1) / np.sqrt(np.maximum(shown.sum(axis=1), 1) * 16)
        fit = LinearRegression().fit(shown, y, sample_weight=np.exp(-(distance**2) / 0.25**2 / 2))
        np.testing.assert_allclose(found[0, 0].numpy(), fit.coef_[labels], atol=1e-5)

    def test_repeats_are_averaged_and_vary(self, image: torch.Tensor) -> None:
        """Repeats use other random numbers; the first is that of a single run."""
        options: dict[str, Any] = {"segmentation": "squares", "segments": 16, "samples": 40}
        numbers: dict[str, Any] = {}
        one = attribute("lime", Bent(), image, [0], seed=0, **options)[0]
        several = attribute("lime", Bent(), image, [0], seed=0, numbers=numbers, repeats=4, **options)[0]
        assert not torch.allclose(one, several) and float(numbers["repeat_sd"][0, 0]) > 0
        assert torch.equal(several, attribute("lime", Bent(), image, [0], seed=0, repeats=4, **options)[0])

    def test_several_inputs_share_segments(self, image: torch.Tensor) -> None:
        """The channels of several inputs are hidden together; inputs of different shapes are refused."""

        class Sum(torch.nn.Module):
            def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                return x.flatten(1).sum(1, keepdim=True) + 2 * y.flatten(1).sum(1, keepdim=True)

        options: dict[str, Any] = {"segmentation": "squares", "segments": 4, "samples": 40}
        first, second = attribute("lime", Sum(), (image, image), [0], **options)[0]
        expected = 3 * image[0, :, : SIDE // 2, : SIDE // 2].sum()
        assert torch.equal(first, second) and float(first[0, 0, 0, 0]) == pytest.approx(float(expected), rel=1e-4)
        with pytest.raises(OutOfRange, match="LIME needs inputs of one shape, with two or three axes, got"):
            attribute("lime", Sum(), (image, image[..., 1:]), [0])

    def test_volumes(self) -> None:
        """A volume has supervoxels."""
        volume = torch.rand(1, 1, 6, 6, 6, generator=torch.Generator().manual_seed(0))

        class Mean(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x[:, :, :3].flatten(1).mean(1, keepdim=True)

        found = attribute("lime", Mean(), volume, [0], segmentation="squares", segments=8, samples=40)[0]
        assert float(found[0, 0, :3].min()) > 1e-3 and float(found[0, 0, 3:].abs().max()) < 1e-5


class TestScales:
    """Weights of scales, and maps of several scales."""

    def test_trapezoid_by_hand(self) -> None:
        """Half intervals to either side: 4, 10, 20 → 3, 8, 5 of 16."""
        np.testing.assert_allclose(scale_weights([4, 10, 20], "segments"), np.array([3, 8, 5]) / 16)

    def test_inverse_by_hand(self) -> None:
        """Scheme 2 over 1/4, 1/10, 1/20: intervals of .15 and .05, made positive."""
        np.testing.assert_allclose(scale_weights([4, 10, 20], "inverse"), np.array([0.075, 0.1, 0.025]) / 0.2)

    def test_sign_of_the_notebook(self) -> None:
        """All but the first interval are negative: .15 and −.05, whose halves are divided by their sum."""
        found = scale_weights([4, 10, 20], "inverse", notebook_sign=True)
        np.testing.assert_allclose(found, np.array([0.075, 0.05, -0.025]) / 0.1)

    def test_order_and_ties(self) -> None:
        """The order of scales does not matter; an interval between equal numbers has no width."""
        np.testing.assert_allclose(scale_weights([20, 4, 10], "segments"), np.array([5, 3, 8]) / 16)
        np.testing.assert_allclose(scale_weights([4, 4, 10], "segments"), [0, 0.5, 0.5])
        np.testing.assert_allclose(scale_weights([7, 7, 7], "inverse"), [1 / 3] * 3)
        assert scale_weights([9], "segments").tolist() == [1.0]

    @pytest.mark.parametrize("scheme", ["segments", "inverse", "gaussian"])
    def test_weights_sum_to_one(self, scheme: Any) -> None:
        """Weights are positive and sum to one."""
        weights = scale_weights(LEVELS, scheme)
        assert weights.sum() == pytest.approx(1) and (weights > 0).all()

    def test_schemes_favour_fine_and_coarse_scales(self) -> None:
        """C5: the centre of mass over the published scales lies higher for scheme 1 than for equal weights, and lower
        for scheme 2."""
        sizes = np.array(LEVELS, float)
        fine, coarse = (float(scale_weights(LEVELS, one) @ sizes) for one in ("segments", "inverse"))
        assert coarse < sizes.mean() < fine

    def test_near_scales_have_small_weights(self) -> None:
        """C4: the weight of a scale grows with the gap to its neighbours."""
        weights = scale_weights([10, 20, 30, 31, 32, 60], "segments")
        assert weights[3] < weights[1] < weights[4]

    def test_gaussian_by_definition(self) -> None:
        """exp(−(s − m)² / (2 v)) with the mean and the variance of the numbers."""
        sizes = np.array([4.0, 10, 20])
        expected = np.exp(-((sizes - sizes.mean()) ** 2) / (2 * sizes.var()))
        np.testing.assert_allclose(scale_weights([4, 10, 20], "gaussian"), expected / expected.sum())

    def test_equal_scales_can_be_merged(self) -> None:
        """Scales with as many segments are averaged before weighting."""
        maps = [np.array([1.0]), np.array([3.0]), np.array([10.0])]
        assert combined(maps, [4, 4, 10], "segments", merge_equal=True).item() == pytest.approx((2 + 10) / 2)
        assert combined(maps, [4, 4, 10], "segments").item() == pytest.approx((3 + 10) / 2)

    def test_map_is_the_weighted_mean_of_scaled_maps(self, image: torch.Tensor) -> None:
        """Each scale is a LIME map scaled to [0, 1]."""
        numbers: dict[str, Any] = {}
        found = attribute(
            "multiscale_lime", Bent(), image, [0], seed=2, numbers=numbers, segmentation="squares", levels=[4, 16],
            per_segment=10,
        )[0]  # fmt: skip
        expected = torch.zeros(SIDE, SIDE)
        for level, (count, weight) in enumerate(zip((4, 16), scale_weights([4, 16], "segments"), strict=True)):
            side = round(count**0.5)
            shown = generator(2, "lime", 0, level, 0).random((10 * count, count)) < 0.5
            labels = squares((SIDE, SIDE), side)
            with torch.no_grad():
                masks = torch.from_numpy(shown[:, labels])[:, None]
                answers = Bent()(image * masks).numpy()[:, :1]
            coefficients = linear_fit(shown, answers, proximity(shown, 0.25)).coefficients[:, 0]
            scaled = (coefficients - coefficients.min()) / np.ptp(coefficients)
            expected += float(weight) * torch.from_numpy(scaled[labels]).float()
        torch.testing.assert_close(found[0, 0], expected, atol=1e-4, rtol=0)
        assert numbers["segments"].tolist() == [[20.0]] and numbers["flat_levels"].tolist() == [[0.0]]

    def test_parts_are_the_scaled_maps_of_the_scales(self, image: torch.Tensor) -> None:
        """Their weighted mean is the map, also over repeats; each is constant in a segment and spans [0, 1]."""
        parts: dict[str, Any] = {}
        options = {"segmentation": "squares", "levels": [4, 16], "per_segment": 5, "scheme": "inverse"}
        found = attribute("multiscale_lime", Bent(), image, [0, 1], seed=2, parts=parts, **options)
        assert {name: one.shape for name, one in parts.items()} == {
            "1: 4 segments": (2, len(image), SIDE, SIDE), "2: 16 segments": (2, len(image), SIDE, SIDE),
        }  # fmt: skip
        first, second = scale_weights([4, 16], "inverse")
        for target, one in enumerate(found):
            mean = first * parts["1: 4 segments"][target] + second * parts["2: 16 segments"][target]
            torch.testing.assert_close(one[:, 0], torch.from_numpy(mean).float(), atol=1e-6, rtol=0)
        assert all((one.min(axis=(2, 3)) == 0).all() and (one.max(axis=(2, 3)) == 1).all() for one in parts.values())
        several: dict[str, Any] = {}
        repeated = attribute("multiscale_lime", Bent(), image, [0], seed=2, parts=several, repeats=3, **options)[0]
        mean = first * several["1: 4 segments"][0] + second * several["2: 16 segments"][0]
        torch.testing.assert_close(repeated[:, 0], torch.from_numpy(mean).float(), atol=1e-6, rtol=0)

    def test_flat_scale_is_zero_and_counted(self, image: torch.Tensor) -> None:
        """A network that ignores the image has flat scales."""

        class Constant(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x.new_ones(len(x), 1)

        numbers: dict[str, Any] = {}
        found = attribute(
            "multiscale_lime", Constant(), image, [0], numbers=numbers, segmentation="squares", levels=[4, 9]
        )[0]
        assert not found.any() and numbers["flat_levels"].tolist() == [[2.0]]


class TestSegments:
    """Segmentations and fills."""

    def test_squares_by_hand(self) -> None:
        """Parts of a 5 × 4 image in 2 × 2: rows 0–2 and 3–4, columns 0–1 and 2–3."""
        expected = [[0, 0, 1, 1]] * 3 + [[2, 2, 3, 3]] * 2
        assert squares((5, 4), 2).tolist() == expected

    def test_too_fine_a_grid_is_refused(self) -> None:
        """A grid needs at least one voxel for each part."""
        with pytest.raises(OutOfRange, match="a grid of 5 parts along each axis needs as many voxels"):
            squares((5, 4), 5)

    @pytest.mark.parametrize("method", ["slic", "quickshift", "felzenszwalb", "squares"])
    def test_labels_have_no_gaps(self, method: Any) -> None:
        """Labels are 0 to s − 1, and the same each time."""
        rng = np.random.default_rng(0)
        image = np.kron(rng.random((3, 4, 4)), np.ones((1, 8, 8))) * 0.9 + rng.random((3, 32, 32)) * 0.1
        labels = segments_of(image, method, count=16, compactness=5.0)
        assert labels.shape == (32, 32) and np.unique(labels).tolist() == list(range(labels.max() + 1))
        assert labels.max() > 0 and np.array_equal(labels, segments_of(image, method, count=16, compactness=5.0))

    def test_fills(self) -> None:
        """Black, white, mean colour; the background is the colour of the brightest pixels; a blur keeps the mean."""
        image = np.zeros((3, 10, 10))
        image[:, :2, :5] = np.array([0.9, 0.8, 0.95])[:, None, None]
        assert not filled(image, "black").any() and (filled(image, "white") == 1).all()
        np.testing.assert_allclose(filled(image, "mean")[:, 3, 3], np.array([0.9, 0.8, 0.95]) / 10)
        np.testing.assert_allclose(filled(image, "background")[:, 9, 9], [0.9, 0.8, 0.95])
        blurred = filled(image, "blur")
        assert blurred.mean() == pytest.approx(image.mean(), rel=0.5) and blurred.max() < 0.9
        with pytest.raises(OutOfRange, match="fill must be one of black, white, mean, blur, background, got 'red'"):
            filled(image, "red")  # type: ignore[arg-type]
