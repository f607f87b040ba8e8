"""Quantile masks, voxel inversion and masked means, from their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from harness.core.errors import OutOfRange
from harness.metrics.inversion import (
    PERCENTS,
    inversion_area,
    inverted_auroc,
    inverted_logits,
    mask_recall,
    masked_mean_correlation,
    masked_mean_p,
    masked_means,
    quantile_masks,
    random_inverted_logits,
    random_mask_recall,
)

BRAIN = np.ones((2, 3, 1), bool)
MAP = np.array([[[[-1.0], [1], [2]], [[3], [4], [5]]]])


def linear(weights: np.ndarray):
    """A linear network."""
    return lambda images: (images * weights).sum(axis=(1, 2, 3, 4))


class TestQuantileMasks:
    """Masks of the most relevant voxels."""

    def test_percentile_of_positive_values(self) -> None:
        """The 60th percentile of 1, …, 5 is 3.4, so the top 40 % are 4 and 5."""
        assert quantile_masks(MAP, BRAIN, [40])[0, 0].ravel().tolist() == [False] * 4 + [True] * 2

    def test_limits(self) -> None:
        """0 % is empty, and 100 % has all positive voxels, or all voxels of the brain."""
        positive, whole = quantile_masks(MAP, BRAIN, [0, 100]), quantile_masks(MAP, BRAIN, [0, 100], of="brain")
        assert [positive[0].sum(), positive[1].sum(), whole[0].sum(), whole[1].sum()] == [0, 5, 0, 6]

    def test_values_outside_the_brain_do_not_count(self) -> None:
        """Without 4 and 5, the 60th percentile of 1, 2, 3 is 2.2."""
        brain = BRAIN.copy()
        brain[1, 1:] = False
        assert np.flatnonzero(quantile_masks(MAP, brain, [40])[0, 0]).tolist() == [3]

    def test_map_without_positive_values_has_an_empty_mask(self) -> None:
        """A map of zeros or of negative values has no mask."""
        assert not quantile_masks(-abs(MAP), BRAIN, PERCENTS).any()

    def test_each_channel_has_its_own_mask(self) -> None:
        """Each channel has the quantiles of its own values."""
        both = np.concatenate([MAP, MAP[:, ::-1] * 100])
        masks = quantile_masks(both, BRAIN, [40])[0]
        assert np.flatnonzero(masks[0]).tolist() == [4, 5] and np.flatnonzero(masks[1]).tolist() == [1, 2]


class TestMaskRecall:
    """Share of the true region in the mask."""

    def test_by_hand(self) -> None:
        """The top 40 % of six voxels are 3, 4 and 5: a third of the true voxels 1, 2 and 5, and half of the brain."""
        target = np.isin(MAP[0], (1, 2, 5))
        # The 60th percentile of −1, 1, …, 5 is 3.
        assert mask_recall(MAP, target, BRAIN, percent=40) == pytest.approx(1 / 3)
        assert random_mask_recall(MAP, target, BRAIN, percent=40) == pytest.approx(0.5)

    def test_perfect_random_and_undefined(self) -> None:
        """A perfect map finds a small region, and random maps as much as they mark; no true voxel has no recall."""
        rng = np.random.default_rng(0)
        target = np.zeros((20, 20, 5), bool)
        target[:5, :5] = True
        assert mask_recall(target[None] + rng.random((1, 20, 20, 5)) / 2, target, percent=10) == 1
        found = [mask_recall(rng.random((2, 20, 20, 5)), target) for _ in range(20)]
        assert np.mean(found) == pytest.approx(0.4, abs=0.03)
        assert math.isnan(mask_recall(MAP, np.zeros((2, 3, 1), bool)))

    def test_masks_of_channels_are_averaged(self) -> None:
        """Each channel has its own mask, and recalls are averaged."""
        target = np.zeros((2, 3, 1), bool)
        target[1, 2] = True
        assert mask_recall(np.concatenate([MAP, -MAP]), target, percent=20) == pytest.approx(0.5)


class TestInvertedLogits:
    """Logits of inverted images."""

    @pytest.mark.parametrize("channels", [1, 2])
    def test_linear_network(self, channels: int) -> None:
        """Inverting a voxel of a linear network changes the logit by w (1 − 2 x)."""
        rng = np.random.default_rng(0)
        image, weights = rng.random((2, 4, 3, 2)), rng.normal(size=(2, 4, 3, 2))
        explanation, brain = rng.normal(size=(channels, 4, 3, 2)), rng.random((4, 3, 2)) < 0.8
        found = inverted_logits(explanation, image, linear(weights), brain)
        assert list(found) == ["0", *map(str, PERCENTS)]
        assert found["0"] == pytest.approx((weights * image).sum())
        for percent in PERCENTS:
            mask = np.broadcast_to(quantile_masks(explanation, brain, [percent])[0], image.shape)
            assert found[str(percent)] == pytest.approx(found["0"] + (weights * (1 - 2 * image))[mask].sum())

    def test_whole_brain(self) -> None:
        """100 % of the brain inverts all channels inside the brain and nothing outside."""
        rng = np.random.default_rng(1)
        image, weights = rng.random((2, 4, 3, 2)), rng.normal(size=(2, 4, 3, 2))
        image[:, 0] = 0  # outside the brain
        for metric, more in ((inverted_logits, ()), (random_inverted_logits, (rng,))):
            found = metric(rng.normal(size=(1, 4, 3, 2)), image, linear(weights), *more, of="brain")
            assert found["100"] == pytest.approx((weights * (1 - image))[:, 1:].sum())

    def test_random_masks_have_the_same_size(self) -> None:
        """A network that counts ones counts the voxels of the mask if the image is (nearly) black."""
        rng = np.random.default_rng(2)
        image, brain = np.zeros((2, 4, 5, 3)), rng.random((4, 5, 3)) < 0.7
        explanation = rng.normal(size=(2, 4, 5, 3))
        expected = inverted_logits(explanation, image, linear(np.ones(image.shape)), brain)
        found = random_inverted_logits(explanation, image, linear(np.ones(image.shape)), rng, brain)
        assert found == expected and found["100"] > 0
        outside = random_inverted_logits(explanation, image, linear(np.broadcast_to(~brain, image.shape)), rng, brain)
        assert set(outside.values()) == {0}

    def test_images_outside_0_to_1_are_refused(self) -> None:
        """1 − x has no meaning for standardised images."""
        with pytest.raises(OutOfRange, match=r"needs images in \[0, 1\], got -1 to 5"):
            inverted_logits(MAP, MAP, linear(MAP), BRAIN)

    def test_wrong_number_of_maps_is_refused(self) -> None:
        """Two maps do not fit an image of three channels."""
        with pytest.raises(OutOfRange, match="each of the 3 channels of the image, got 2 maps"):
            inverted_logits(MAP.repeat(2, axis=0), np.zeros((3, 2, 3, 1)), linear(MAP), BRAIN)


def _columns(rng: np.random.Generator) -> dict[str, np.ndarray]:
    labels = (rng.random(40) < 0.4).astype(float)
    return {
        "target_label": labels,
        **{
            f"{name}@{percent}": np.round(labels * (1 - percent / 50) + rng.normal(size=40), 1)
            for name in ("inverted_logits", "random_inverted_logits")
            for percent in (0, *PERCENTS)
        },
    }


def test_auroc_and_area_agree_with_scikit_learn() -> None:
    """The curve is the AUC of scikit-learn, with ties, and the area its trapezoidal mean."""
    columns = _columns(np.random.default_rng(3))
    columns["inverted_logits@10"][0] = math.nan
    curve = []
    for percent in PERCENTS:
        kept = np.isfinite(columns[f"inverted_logits@{percent}"])
        assert inverted_auroc(columns, percent=percent) == pytest.approx(
            roc_auc_score(columns["target_label"][kept], columns[f"inverted_logits@{percent}"][kept])
        )
    for percent in PERCENTS:
        complete = slice(1, None)
        curve.append(roc_auc_score(columns["target_label"][complete], columns[f"inverted_logits@{percent}"][complete]))
    inner = (curve[0] + curve[-1]) / 2 + sum(curve[1:-1])
    assert inversion_area(columns) == pytest.approx(inner / (len(PERCENTS) - 1))


def test_one_class_has_no_auroc() -> None:
    """The AUC of one class is undefined."""
    columns = _columns(np.random.default_rng(4)) | {"target_label": np.ones(40)}
    assert math.isnan(inverted_auroc(columns)) and math.isnan(inversion_area(columns))


def test_percent_without_values_is_refused() -> None:
    """Only multiples of 5 have values."""
    with pytest.raises(OutOfRange, match=r"no values for inverted_logits@41; percent must be a multiple of 5"):
        inverted_auroc(_columns(np.random.default_rng(5)), percent=41)


def test_masked_means_and_their_correlation() -> None:
    """Means are those of the image inside the mask, and the correlation that of scipy."""
    image = np.concatenate([MAP, MAP * 10])
    found = masked_means(MAP, image, ("qT1", "NDI"), BRAIN)
    assert found["qT1:40"] == 4.5 and found["NDI:40"] == 45
    assert set(found) == {f"{name}:{percent}" for name in ("qT1", "NDI") for percent in (30, 40, 50)}
    rng = np.random.default_rng(6)
    means, values = rng.normal(size=(2, 30))
    values[3] = math.nan
    columns = {"masked_means@a:b:40": means, "masked_means@c:40": values, "covariate": values}
    columns["subject"] = np.arange(30.0) // 2
    kept = np.isfinite(values)
    expected = stats.spearmanr(means[kept], values[kept])
    assert masked_mean_correlation(columns, channel="a:b") == pytest.approx(expected.statistic)
    assert masked_mean_p(columns, channel="c", permutations=500) < 0.01
    with pytest.raises(OutOfRange, match=r"got channel=none percent=40; known: a:b:40, c:40"):
        masked_mean_correlation(columns)


def test_empty_mask_has_no_mean() -> None:
    """A map without positive relevance has no mean."""
    assert math.isnan(masked_means(-abs(MAP), MAP, ("qT1",), BRAIN)["qT1:40"])
