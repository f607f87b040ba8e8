"""Intervals, comparisons and Shapley values against hand-worked numbers, libraries and definitions."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pytest
from scipy import stats

from harness.core.errors import OutOfRange
from harness.stats.intervals import (
    bootstrap_interval,
    holm,
    jackknife_interval,
    mean_interval,
    mean_score,
    paired_differences,
    pseudo_values,
    shapley,
    shapley_scores,
    variance_components,
)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first, second)[0, 1])


class TestJackknife:
    """Jackknife pseudo-values of a pooled statistic."""

    VALUES = np.array([0.71, 0.80, 0.64, 0.77, 0.69, 0.95])

    def test_pseudo_values_of_a_mean_are_the_values(self) -> None:
        """Pseudo-values of a mean are the values, and the interval is that of the t test."""
        found = pseudo_values(lambda kept: float(self.VALUES[kept].mean()), 6)
        assert found == pytest.approx(self.VALUES)
        _, low, high, se = jackknife_interval(found, float(self.VALUES.mean()))
        reference = mean_interval(self.VALUES)
        assert (low, high, se) == pytest.approx((reference.low, reference.high, reference.se))

    def test_mean_of_pseudo_values_is_the_statistic(self) -> None:
        """The mean of the pseudo-values is the statistic, also for the biased variance over n."""

        def variance(kept: np.ndarray) -> float:
            return float(self.VALUES[kept].var())

        found = pseudo_values(variance, 6)
        assert found.mean() == pytest.approx(variance(np.arange(6)))
        without = np.array([variance(np.delete(np.arange(6), one)) for one in range(6)])
        assert found.std(ddof=1) == pytest.approx(5 * without.std(ddof=1))

    def test_one_unit_has_no_pseudo_values(self) -> None:
        """With one unit there are no pseudo-values and no interval."""
        assert pseudo_values(lambda kept: 1.0, 1).size == 0
        assert math.isnan(jackknife_interval([], 1.0).low)


class TestMeanInterval:
    """Means with t intervals."""

    def test_equals_scipy(self) -> None:
        """The interval agrees with scipy's one-sample t test."""
        values = [0.71, 0.80, 0.64, 0.77, 0.69]
        reference = stats.ttest_1samp(values, 0.0)
        mean, low, high, se = mean_interval(values, level=0.9)
        assert mean == pytest.approx(np.mean(values))
        assert (low, high) == pytest.approx(tuple(reference.confidence_interval(0.9)))
        assert se == pytest.approx(stats.sem(values))

    def test_by_hand(self) -> None:
        """For mean 2, SD 1 and n 3, the half width is 4.3027 / √3 = 2.4841."""
        mean, low, high, se = mean_interval([1.0, 2.0, 3.0])
        assert (mean, low, high) == pytest.approx((2.0, -0.484138, 4.484138), abs=1e-6)
        assert se == pytest.approx(1 / math.sqrt(3))

    def test_skips_nan(self) -> None:
        """NaN values are left out."""
        assert mean_interval([1.0, math.nan, 2.0, 3.0]) == mean_interval([1.0, 2.0, 3.0])

    def test_one_subject_has_no_interval(self) -> None:
        """One subject has a mean without an interval."""
        mean, low, high, se = mean_interval([0.5])
        assert mean == 0.5
        assert all(math.isnan(part) for part in (low, high, se))

    def test_no_subjects(self) -> None:
        """Without subjects, the mean is NaN."""
        assert all(math.isnan(part) for part in mean_interval([math.nan]))

    def test_refuses_a_level_in_percent(self) -> None:
        """A level given in per cent is refused."""
        with pytest.raises(OutOfRange, match=r"0 < level < 1 must hold"):
            mean_interval([1.0, 2.0], level=95)

    def test_covers(self) -> None:
        """Of 2,000 samples of six from a normal distribution, 95 % of intervals cover the mean, within 2 points."""
        rng = np.random.default_rng(7)
        intervals = [mean_interval(rng.normal(3.0, 2.0, 6)) for _ in range(2000)]
        covered = np.mean([part.low <= 3.0 <= part.high for part in intervals])
        assert covered == pytest.approx(0.95, abs=0.02)

    def test_score_counts(self) -> None:
        """A score counts subjects with and without a value."""
        score = mean_score([0.4, math.nan, 0.6], chance=0.1)
        assert (score.value, score.n, score.missing, score.chance) == (0.5, 2, 1, 0.1)


class TestBootstrap:
    """Bootstrap intervals of a pooled statistic."""

    @pytest.mark.parametrize(("method", "name"), [("bca", "BCa"), ("percentile", "percentile")])
    def test_equals_scipy(self, method: str, name: str) -> None:
        """The bounds agree with scipy for the same draws."""
        rng = np.random.default_rng(0)
        first = rng.normal(size=12)
        second = first + rng.normal(size=12)
        options = {"paired": True, "vectorized": False, "n_resamples": 300, "method": name}
        result = stats.bootstrap((first, second), _correlation, rng=np.random.default_rng(1), **options)
        reference = result.confidence_interval
        found = bootstrap_interval(
            _correlation, [first, second], rng=np.random.default_rng(1), draws=300, method=method
        )  # type: ignore[arg-type]
        assert (found.low, found.high) == pytest.approx((reference.low, reference.high))

    def test_no_interval_below_six_subjects(self) -> None:
        """Five subjects have a value without an interval, and the reason is given."""
        found = bootstrap_interval(np.mean, [np.arange(5.0)], rng=np.random.default_rng(0))
        assert found.value == 2.0
        assert math.isnan(found.low)
        assert found.reason == "5 subjects; a bootstrap needs at least 6"

    def test_pairs_are_dropped_together(self) -> None:
        """A subject with NaN in one column is left out of all columns and counted as missing."""
        first, second = np.arange(7.0), np.arange(7.0) ** 2
        first[3] = math.nan
        found = bootstrap_interval(_correlation, [first, second], rng=np.random.default_rng(0), draws=50)
        assert (found.n, found.missing) == (6, 1)
        assert found.value == pytest.approx(_correlation(np.delete(first, 3), np.delete(second, 3)))

    def test_no_spread(self) -> None:
        """If all subjects are equal, there is no interval."""
        found = bootstrap_interval(np.mean, [np.ones(8)], rng=np.random.default_rng(0), draws=50)
        assert math.isnan(found.high)
        assert "same value" in found.reason

    def test_rare_undefined_resamples_are_left_out(self) -> None:
        """A statistic that is undefined in about one of a hundred resamples has an interval."""

        undefined = []

        def fragile(values: np.ndarray) -> float:
            undefined.append(len(np.unique(values)) < 3)
            return math.nan if undefined[-1] else float(values.mean())

        found = bootstrap_interval(fragile, [np.arange(6.0)], rng=np.random.default_rng(3), draws=500)
        assert any(undefined)
        assert found.low < 2.5 < found.high

    def test_often_undefined_is_refused(self) -> None:
        """A statistic that is undefined in most resamples has no interval."""

        def fragile(values: np.ndarray) -> float:
            return float(values.mean()) if len(np.unique(values)) == 6 else math.nan

        found = bootstrap_interval(fragile, [np.arange(6.0)], rng=np.random.default_rng(3), draws=100)
        assert math.isnan(found.low)
        assert "undefined in" in found.reason

    def test_lengths_differ(self) -> None:
        """Columns of different lengths are refused."""
        with pytest.raises(OutOfRange, match=r"same subjects, got lengths \[6, 7\]"):
            bootstrap_interval(_correlation, [np.arange(6.0), np.arange(7.0)], rng=np.random.default_rng(0))


class TestHolm:
    """Holm's correction of p-values."""

    def test_by_hand(self) -> None:
        """Corrected values are .01·4, .02·3, .03·2, .04·1, made non-decreasing."""
        assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])

    def test_at_most_one(self) -> None:
        """Corrected values are at most 1."""
        assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])

    def test_nan_does_not_count(self) -> None:
        """NaN p-values do not count as tests."""
        adjusted = holm([0.01, math.nan, 0.04])
        assert adjusted[[0, 2]] == pytest.approx([0.02, 0.04])
        assert math.isnan(adjusted[1])

    def test_equals_pingouin(self) -> None:
        """Corrected values of twenty random p-values agree with pingouin."""
        pingouin = pytest.importorskip("pingouin")
        p = np.random.default_rng(5).uniform(size=20) ** 2
        assert holm(p) == pytest.approx(pingouin.multicomp(p, method="holm")[1])


class TestPairedDifferences:
    """Paired comparisons with the best configuration."""

    values = np.array(
        [
            [0.70, 0.62, 0.81, 0.75, 0.66, 0.72],
            [0.72, 0.61, 0.82, 0.74, 0.69, 0.71],
            [0.50, 0.45, 0.63, 0.52, 0.49, 0.51],
        ]
    )

    def test_equals_scipy(self) -> None:
        """Difference, interval and p-value agree with scipy's paired t test."""
        found = paired_differences(self.values, best=1)
        reference = stats.ttest_rel(self.values[2], self.values[1])
        assert found.difference[2] == pytest.approx(np.mean(self.values[2] - self.values[1]))
        assert (found.low[2], found.high[2]) == pytest.approx(tuple(reference.confidence_interval(0.95)))
        assert found.p[2] == pytest.approx(reference.pvalue)

    def test_adjusts_for_all_pairs(self) -> None:
        """Holm's correction covers all pairs of configurations if the best was chosen from the data."""
        found = paired_differences(self.values, best=1)
        raw = [stats.ttest_rel(self.values[i], self.values[j]).pvalue for i, j in ((0, 1), (0, 2), (1, 2))]
        assert found.p_adjusted[[0, 2]] == pytest.approx(holm(raw)[[0, 2]])

    def test_adjusts_for_a_fixed_reference(self) -> None:
        """For a reference fixed beforehand, the correction covers only comparisons with it."""
        found = paired_differences(self.values, best=1, family="best")
        raw = [stats.ttest_rel(self.values[i], self.values[1]).pvalue for i in (0, 2)]
        assert found.p_adjusted[[0, 2]] == pytest.approx(holm(raw))

    def test_indistinguishable_configurations(self) -> None:
        """The best and the configurations that do not differ from it are marked."""
        assert paired_differences(self.values, best=1).indistinguishable.tolist() == [True, True, False]

    @pytest.mark.parametrize(("higher", "best"), [(True, 1), (False, 2)])
    def test_best_mean_is_the_default_reference(self, higher: bool, best: int) -> None:
        """Without a reference, the configuration with the best mean is the best."""
        assert paired_differences(self.values, higher_is_better=higher).best == best

    def test_choosing_the_best_keeps_the_level(self) -> None:
        """Of eight equal configurations, one differs from the best in at most 5 % of cohorts (± 3 SE)."""
        rng = np.random.default_rng(11)
        wrong = [not paired_differences(rng.normal(size=(8, 6))).indistinguishable.all() for _ in range(150)]
        assert np.mean(wrong) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 150)

    def test_missing_subjects_leave_their_pair_only(self) -> None:
        """A subject with NaN is left out of the comparisons of that configuration only."""
        values = np.column_stack([self.values, [0.7, 0.7, 0.5]])
        values[0, 0] = math.nan
        found = paired_differences(values, best=1)
        assert found.n.tolist() == [6, 7, 7]
        assert found.difference[0] == pytest.approx(np.mean(values[0, 1:] - values[1, 1:]))

    def test_too_few_subjects(self) -> None:
        """Five subjects have a difference and an interval, but no p-value."""
        found = paired_differences(self.values[:, :5], best=1)
        assert found.difference[2] < 0
        assert math.isfinite(found.low[2])
        assert np.isnan(found.p).all()
        assert found.indistinguishable.all()

    def test_rounding_is_not_a_difference(self) -> None:
        """Values that differ only by rounding are equal."""
        first = np.full((1, 6), 0.1 + 0.2)
        found = paired_differences(np.vstack([first, np.full((1, 6), 0.3)]), best=0)
        assert (found.difference[1], found.p[1]) == (0.0, 1.0)

    def test_index_out_of_range(self) -> None:
        """The reference must be one of the configurations."""
        with pytest.raises(OutOfRange, match=r"0 <= best < 3 must hold.*best=3"):
            paired_differences(self.values, best=3)


class TestVarianceComponents:
    """Variance of subjects and of seeds."""

    def test_by_hand(self) -> None:
        """For means 2, 4, 9: within 2, between (9+1+16)·2/2 = 26, subject (26 − 2)/2 = 12."""
        found = variance_components([[1.0, 3.0], [3.0, 5.0], [8.0, 10.0]])
        assert (found.subject, found.seed) == pytest.approx((12.0, 2.0))

    def test_equals_the_f_test(self) -> None:
        """The ratio of mean squares is scipy's F statistic, also for unequal numbers."""
        groups = [[1.0, 2.0, 4.0], [6.0, 5.0, math.nan], [3.0, 9.0, 8.0]]
        found = variance_components(groups)
        effective = (8 - (9 + 4 + 9) / 8) / 2
        f = stats.f_oneway([1.0, 2.0, 4.0], [6.0, 5.0], [3.0, 9.0, 8.0]).statistic
        assert found.subject * effective / found.seed + 1 == pytest.approx(f)

    def test_recovers_simulated_variances(self) -> None:
        """Variances are recovered from 3,000 simulated subjects with SDs of .1 and .03."""
        rng = np.random.default_rng(2)
        values = rng.normal(0, 0.1, (3000, 1)) + rng.normal(0, 0.03, (3000, 3))
        found = variance_components(values)
        assert (found.subject_sd, found.seed_sd) == pytest.approx((0.1, 0.03), rel=0.05)

    def test_never_negative(self) -> None:
        """The variance of subjects is never negative."""
        assert variance_components([[0.0, 2.0], [2.0, 0.0]]).subject == 0.0

    def test_one_seed(self) -> None:
        """With one seed, the variance of seeds is NaN."""
        found = variance_components([[1.0], [3.0]])
        assert found.subject == pytest.approx(2.0)
        assert math.isnan(found.seed_sd)


PLAYERS = ("FLAIR", "SWI", "T1w", "T2w")


def _subsets(players: tuple[str, ...] = PLAYERS) -> list[frozenset[str]]:
    return [frozenset(chosen) for size in range(1, len(players) + 1) for chosen in combinations(players, size)]


@pytest.fixture
def game_values() -> dict[frozenset[str], float]:
    """A game of four players with random values."""
    rng = np.random.default_rng(4)
    return {subset: float(rng.uniform()) for subset in _subsets()}


class TestShapley:
    """Exact Shapley values."""

    def test_equals_all_orders(self, game_values: dict[frozenset[str], float]) -> None:
        """Values agree with the mean marginal contribution over all 24 orders."""
        table = {frozenset[str](): 0.0, **game_values}
        expected = dict.fromkeys(PLAYERS, 0.0)
        for order in permutations(PLAYERS):
            for position, player in enumerate(order):
                before = frozenset(order[:position])
                expected[player] += (table[before | {player}] - table[before]) / math.factorial(4)
        assert shapley(game_values) == pytest.approx(expected)

    @pytest.mark.parametrize("empty", [0.0, 0.15])
    def test_efficiency(self, game_values: dict[frozenset[str], float], empty: float) -> None:
        """Values sum to the value of all players minus that of none."""
        assert sum(shapley(game_values, empty=empty).values()) == pytest.approx(game_values[frozenset(PLAYERS)] - empty)

    def test_symmetry(self) -> None:
        """Players with equal contributions have equal values."""
        shares = shapley({subset: math.sqrt(len(subset)) for subset in _subsets()})
        assert list(shares.values()) == pytest.approx([0.5] * 4)

    def test_player_without_contribution(self, game_values: dict[frozenset[str], float]) -> None:
        """A player without any contribution has the value 0."""
        ignored = {subset: game_values.get(subset - {"SWI"}, 0.0) for subset in _subsets()}
        assert shapley(ignored)["SWI"] == pytest.approx(0.0)

    def test_by_hand(self) -> None:
        """For a = 4, b = 5 and both = 10: ½·4 + ½·(10 − 5) = 4.5 and 5.5."""
        game = {frozenset("a"): 4.0, frozenset("b"): 5.0, frozenset("ab"): 10.0}
        assert shapley(game) == {"a": 4.5, "b": 5.5}

    def test_missing_subset_is_named(self, game_values: dict[frozenset[str], float]) -> None:
        """A missing subset is refused by name."""
        del game_values[frozenset({"FLAIR", "T1w"})]
        with pytest.raises(OutOfRange, match=r"15 subsets of FLAIR, SWI, T1w, T2w.*none for FLAIR\+T1w"):
            shapley(game_values)

    def test_per_subject_means_equal_the_share_of_means(self) -> None:
        """Values are linear: the mean over subjects is the value of the mean game."""
        rng = np.random.default_rng(6)
        game = {subset: rng.uniform(size=7) for subset in _subsets()}
        scores = shapley_scores(game)
        pooled = shapley({subset: float(value.mean()) for subset, value in game.items()})
        assert {name: score.value for name, score in scores.items()} == pytest.approx(pooled)

    def test_per_subject_interval(self) -> None:
        """The interval is the t interval of the subjects' own values."""
        rng = np.random.default_rng(6)
        game = {subset: rng.uniform(size=7) for subset in _subsets(("a", "b"))}
        own = [shapley({subset: float(value[index]) for subset, value in game.items()})["a"] for index in range(7)]
        score = shapley_scores(game)["a"]
        assert (score.value, score.low, score.high, score.se) == pytest.approx(tuple(mean_interval(own)))

    def test_an_undefined_subject_is_missing_for_all(self) -> None:
        """A subject without one of the subsets is left out of all values."""
        game = {subset: np.arange(1.0, 8.0) for subset in _subsets(("a", "b"))}
        game[frozenset("a")] = np.array([math.nan, *range(2, 8)], dtype=float)
        scores = shapley_scores(game)
        assert [(score.n, score.missing) for score in scores.values()] == [(6, 1), (6, 1)]
