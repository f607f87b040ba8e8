"""Intervals, comparisons and Shapley values against hand-worked numbers, libraries and definitions."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pytest
from scipy import stats

from harness.core.errors import OutOfRange
from harness.stats.intervals import (
    Floats,
    Training,
    bootstrap_counts,
    bootstrap_interval,
    bounded_interval,
    few_decide,
    jackknife_interval,
    mean_interval,
    mean_score,
    paired_differences,
    pseudo_values,
    shapley,
    shapley_scores,
    variance_components,
    with_training,
)


class TestJackknife:
    """Jackknife pseudo-values of a pooled statistic."""

    VALUES = np.array([0.71, 0.80, 0.64, 0.77, 0.69, 0.95])

    def test_pseudo_values_of_a_mean_are_the_values(self) -> None:
        """Pseudo-values of a mean are the values, and the interval is that of the t test."""
        found = pseudo_values(lambda kept: float(self.VALUES[kept].mean()), 6)
        assert found == pytest.approx(self.VALUES)
        _, low, high, se, _ = jackknife_interval(found, float(self.VALUES.mean()))
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

    @pytest.mark.parametrize(
        ("values", "reason"),
        [
            ([1.0], "at least two subjects"),
            ([0.8, math.nan, 0.9], "undefined if one of 1 of 3 subjects or folds is left out"),
            ([1.0, 1.0, 1.0], "leaving out any subject or fold gives the same value"),
        ],
    )
    def test_no_interval_has_a_reason(self, values: list[float], reason: str) -> None:
        """Undefined or equal pseudo-values have no interval, and the reason is given."""
        found = jackknife_interval(values, 1.0)
        assert math.isnan(found.low)
        assert math.isnan(found.se)
        assert reason in found.reason

    def test_covers_an_auc_of_few_subjects(self) -> None:
        """Of 400 samples of 21 subjects, 95 % of the intervals of an AUC of .76 cover it, within 3 points."""
        rng = np.random.default_rng(3)
        truth = float(stats.norm.cdf(1 / math.sqrt(2)))
        covered = []
        for _ in range(400):
            label = np.arange(21) % 2
            score = rng.normal(size=21) + label

            def auc(kept: np.ndarray, label: np.ndarray = label, score: np.ndarray = score) -> float:
                own, other = score[kept][label[kept] == 1], score[kept][label[kept] == 0]
                return float(stats.mannwhitneyu(own, other).statistic / (own.size * other.size))

            interval = jackknife_interval(pseudo_values(auc, 21), auc(np.arange(21)), range=(0.0, 1.0))
            covered.append(interval.low <= truth <= interval.high)
        assert np.mean(covered) == pytest.approx(0.96, abs=0.03)


class TestBoundedInterval:
    """Intervals that stay inside the range of a metric."""

    def test_logit_scale_by_hand(self) -> None:
        """For .8 ± .1 with four degrees of freedom: logit 1.3863 ± 2.7764 · .1 / .16."""
        found = bounded_interval(0.8, 0.1, 4, range=(0.0, 1.0))
        half = 2.776445 * 0.1 / 0.16
        ends = [1 / (1 + math.exp(-(math.log(4) + sign * half))) for sign in (-1, 1)]
        assert (found.low, found.high) == pytest.approx(tuple(ends), rel=1e-6)

    def test_scale_of_the_range_has_no_effect(self) -> None:
        """An interval in [−1, 1] is the interval in [0, 1], stretched."""
        one, other = bounded_interval(0.7, 0.1, 9, range=(0.0, 1.0)), bounded_interval(0.4, 0.2, 9, range=(-1.0, 1.0))
        assert (other.low, other.high) == pytest.approx((2 * one.low - 1, 2 * one.high - 1))

    def test_logarithmic_scale_by_hand(self) -> None:
        """For 2 ± .5 mm: 2 · exp(±2.2281 · .5 / 2)."""
        found = bounded_interval(2.0, 0.5, 10, range=(0.0, math.inf))
        assert (found.low, found.high) == pytest.approx((2 * math.exp(-0.557035), 2 * math.exp(0.557035)), rel=1e-5)

    def test_wide_interval_of_a_distance(self) -> None:
        """A half width of more than twice the value gives the plain interval, cut at zero."""
        found = mean_interval([0.2, 0.2, 30.0], range=(0.0, math.inf))
        plain = mean_interval([0.2, 0.2, 30.0])
        assert (found.low, found.high) == pytest.approx((0.0, plain.high))

    def test_upper_end_alone_cuts(self) -> None:
        """With an upper end only, as for R², the t interval is cut at it."""
        found = bounded_interval(0.9, 0.1, 10, range=(-math.inf, 1.0))
        assert (found.low, found.high) == pytest.approx((0.9 - 0.222814, 1.0), rel=1e-5)

    def test_small_errors_give_the_t_interval(self) -> None:
        """Far from the ends, all scales agree to first order."""
        plain = bounded_interval(0.5, 1e-4, 30)
        for ends in ((0.0, 1.0), (0.0, math.inf), (-math.inf, 1.0)):
            found = bounded_interval(0.5, 1e-4, 30, range=ends)
            assert (found.low, found.high) == pytest.approx((plain.low, plain.high), abs=1e-7)

    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_value_at_the_end(self, value: float) -> None:
        """A value at the end of the range has an interval inside the range."""
        found = bounded_interval(value, 0.1, 5, range=(0.0, 1.0))
        assert 0.0 <= found.low <= value <= found.high <= 1.0
        assert found.low < found.high

    def test_covers_skewed_values(self) -> None:
        """Of 2,000 samples of twelve values of beta(9.5, .5), more intervals cover the mean than plain t intervals."""
        rng = np.random.default_rng(5)
        samples = rng.beta(9.5, 0.5, (2000, 12))
        inside = [mean_interval(one, range=(0.0, 1.0)) for one in samples]
        plain = [mean_interval(one) for one in samples]
        covered = [np.mean([one.low <= 0.95 <= one.high for one in several]) for several in (inside, plain)]
        assert covered[0] > 0.91
        assert covered[0] > covered[1] + 0.02
        assert all(0 <= one.low <= one.high <= 1 for one in inside)


class TestFewDecide:
    """Means that a few subjects decide."""

    def test_one_failure(self) -> None:
        """One of twelve subjects at zero decides the mean."""
        values = [0.78, 0.80, 0.82, 0.79, 0.81, 0.80, 0.77, 0.83, 0.80, 0.79, 0.81, 0.0]
        assert few_decide(values) == (1, pytest.approx(0.8))

    def test_failure_among_ties(self) -> None:
        """If most values are equal, one failure decides the mean, and small deviations do not count as far."""
        assert few_decide([0.9] * 9 + [0.88, 0.91, 0.1]) == (1, pytest.approx(0.8990909))

    def test_normal_values_rarely(self) -> None:
        """In normal samples of twelve, subjects decide in less than one of 20 samples."""
        rng = np.random.default_rng(0)
        assert np.mean([few_decide(rng.normal(size=12))[0] > 0 for _ in range(1000)]) < 0.05

    @pytest.mark.parametrize("values", [[0.8, 0.8, 0.8, 0.8, 0.0], [0.8] * 6 + [0.0] * 4, [0.8] * 12])
    def test_no_few_subjects_decide(self, values: list[float]) -> None:
        """Fewer than six subjects, a large group, or equal values are not a few subjects that decide."""
        assert few_decide(values)[0] == 0


class TestMeanInterval:
    """Means with t intervals."""

    def test_equals_scipy(self) -> None:
        """The interval agrees with scipy's one-sample t test."""
        values = [0.71, 0.80, 0.64, 0.77, 0.69]
        reference = stats.ttest_1samp(values, 0.0)
        mean, low, high, se, _ = mean_interval(values, level=0.9)
        assert mean == pytest.approx(np.mean(values))
        assert (low, high) == pytest.approx(tuple(reference.confidence_interval(0.9)))
        assert se == pytest.approx(stats.sem(values))

    def test_by_hand(self) -> None:
        """For mean 2, SD 1 and n 3, the half width is 4.3027 / √3 = 2.4841."""
        mean, low, high, se, _ = mean_interval([1.0, 2.0, 3.0])
        assert (mean, low, high) == pytest.approx((2.0, -0.484138, 4.484138), abs=1e-6)
        assert se == pytest.approx(1 / math.sqrt(3))

    def test_skips_nan(self) -> None:
        """NaN values are left out."""
        assert mean_interval([1.0, math.nan, 2.0, 3.0]) == mean_interval([1.0, 2.0, 3.0])

    def test_one_subject_has_no_interval(self) -> None:
        """One subject has a mean without an interval."""
        mean, low, high, se, _ = mean_interval([0.5])
        assert mean == 0.5
        assert all(math.isnan(part) for part in (low, high, se))

    def test_no_subjects(self) -> None:
        """Without subjects, the mean is NaN."""
        assert all(math.isnan(part) for part in mean_interval([math.nan])[:4])

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
        assert (found.low[2], found.high[2]) == pytest.approx(tuple(reference.confidence_interval(1 - 0.05 / 3)))
        assert found.p[2] == pytest.approx(reference.pvalue)

    def test_adjusts_for_all_pairs(self) -> None:
        """Bonferroni's correction covers all pairs of configurations, because the best was chosen from the data."""
        found = paired_differences(self.values, best=1)
        raw = [stats.ttest_rel(self.values[one], self.values[1]).pvalue for one in (0, 2)]
        assert found.p_adjusted[[0, 2]] == pytest.approx([min(1.0, 3 * p) for p in raw])

    def test_identical_configurations_count_once(self) -> None:
        """A configuration that occurs three times adds no comparisons."""
        rng = np.random.default_rng(2)
        first, second, third = rng.normal(size=(3, 12)) + np.array([[0.8], [0.4], [0.0]])
        once = paired_differences([first, second, third])
        thrice = paired_differences([first, second, third, third, third])
        np.testing.assert_allclose(thrice.p_adjusted[:3], once.p_adjusted)
        np.testing.assert_allclose(thrice.low[1:3], once.low[1:])
        np.testing.assert_allclose(thrice.p_adjusted[2:], once.p_adjusted[2])

    def test_intervals_agree_with_the_tests(self) -> None:
        """In 300 tables of five configurations, an interval excludes 0 exactly if the test is significant."""
        rng = np.random.default_rng(1)
        for _ in range(300):
            found = paired_differences(rng.normal(size=(5, 8)) + rng.normal(0, 1, (5, 1)))
            others = np.arange(5) != found.best
            excluded = (found.low > 0) | (found.high < 0)
            np.testing.assert_array_equal(excluded[others], ~found.indistinguishable[others])

    def test_ranks(self) -> None:
        """Two configurations that do not differ rank 1 to 2, the worse third ranks 3."""
        found = paired_differences(self.values, best=1)
        assert list(zip(found.rank_low, found.rank_high, strict=True)) == [(1, 2), (1, 2), (3, 3)]
        lower = paired_differences(self.values, higher_is_better=False)
        assert list(zip(lower.rank_low, lower.rank_high, strict=True)) == [(2, 3), (2, 3), (1, 1)]

    def test_intervals_of_ranks_cover(self) -> None:
        """In 300 tables of four different configurations, all rank intervals cover in at least 95 % (− 3 SE)."""
        rng = np.random.default_rng(2)
        true = np.array([0.0, 0.5, 0.5, 2.0])
        covered = []
        for _ in range(300):
            found = paired_differences(rng.normal(size=(4, 10)) + true[:, None])
            # The two equal configurations have the ranks 2 to 3.
            ranks = [(4, 4), (2, 3), (2, 3), (1, 1)]
            inside = [
                low <= first and last <= high
                for (first, last), low, high in zip(ranks, found.rank_low, found.rank_high, strict=True)
            ]
            covered.append(all(inside))
        assert np.mean(covered) >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 300)

    def test_indistinguishable_configurations(self) -> None:
        """The best and the configurations that do not differ from it are marked."""
        assert paired_differences(self.values, best=1).indistinguishable.tolist() == [True, True, False]

    @pytest.mark.parametrize(("higher", "best"), [(True, 1), (False, 2)])
    def test_best_mean_is_the_default_reference(self, higher: bool, best: int) -> None:
        """Without a reference, the configuration with the best mean is the best."""
        assert paired_differences(self.values, higher_is_better=higher).best == best

    def test_choosing_the_best_keeps_the_level(self) -> None:
        """Of eight equal configurations, one differs from the best in at most 5 % of cohorts (+ 3 SE)."""
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
        """Five subjects have a difference, but neither a p-value nor an interval, which could contradict it."""
        found = paired_differences(self.values[:, :5], best=1)
        assert found.difference[2] < 0
        assert math.isnan(found.low[2]) and math.isnan(found.high[2])
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
        assert (score.value, score.low, score.high, score.se) == pytest.approx(tuple(mean_interval(own)[:4]))

    def test_an_undefined_subject_is_missing_for_all(self) -> None:
        """A subject without one of the subsets is left out of all values."""
        game = {subset: np.arange(1.0, 8.0) for subset in _subsets(("a", "b"))}
        game[frozenset("a")] = np.array([math.nan, *range(2, 8)], dtype=float)
        scores = shapley_scores(game)
        assert [(score.n, score.missing) for score in scores.values()] == [(6, 1), (6, 1)]


def test_trainings_are_all_or_nothing_of_the_variance() -> None:
    """A statistic that test subjects do not change has K − 1 times the error of its folds."""
    values = np.array([0.1, 0.4, 0.2, 0.6, 0.3])
    plain = values.std(ddof=1) / math.sqrt(5)
    for error, expected in ((0.0, 4 * plain), (100 * plain, 100 * plain), (plain, math.sqrt(5) * plain)):
        found = with_training(values, error)
        assert found.mean() == pytest.approx(values.mean())
        assert found.std(ddof=1) / math.sqrt(5) == pytest.approx(expected, rel=1e-6)
    assert with_training(np.full(5, 0.5), 0.1).tolist() == [0.5] * 5


def test_trainings_add_at_most_a_multiple_of_the_rest() -> None:
    """The limit is relative to the variance of the trained models, or to that between folds if it is larger."""
    values = np.array([0.1, 0.4, 0.2, 0.6, 0.3])
    plain = values.std(ddof=1) / math.sqrt(5)
    for error, most, expected in (
        (plain, 1.0, math.sqrt(2)), (0.0, 1.0, 1.0), (0.0, 4.0, 2.0), (2.0 * plain, 0.0, 2.0),
        (100 * plain, 1.0, 100.0), (plain, math.inf, math.sqrt(5)),
    ):  # fmt: skip
        found = with_training(values, error, most=most)
        assert found.mean() == pytest.approx(values.mean())
        assert found.std(ddof=1) / math.sqrt(5) == pytest.approx(expected * plain, rel=1e-5)


def test_chance_of_random_trainings_is_not_multiplied() -> None:
    """With one seed, a part of the variance is taken for chance; with several, that of the seeds is known."""
    values = np.array([0.1, 0.4, 0.2, 0.6, 0.3])
    plain = values.std(ddof=1) / math.sqrt(5)

    def error_of(values: Floats, error: float, training: Training) -> float:
        found = with_training(values, error, training=training)
        assert found.mean() == pytest.approx(values.mean())
        return float(found.std(ddof=1)) / math.sqrt(5)

    assert error_of(values, 0.0, "random") == pytest.approx(2 * plain)
    nadeau_bengio = math.sqrt(1 / 3 + 1 / 2) * values[:3].std(ddof=1)
    found = with_training(values[:3], training="random")
    assert found.std(ddof=1) / math.sqrt(3) == pytest.approx(nadeau_bengio)
    assert error_of(values, 7.0, "random") == pytest.approx(7.0)
    assert error_of(values, 7.0, "none") == pytest.approx(plain)
    # two seeds with the same values: no chance; with a large difference: nothing else
    assert error_of(np.stack([values, values]), 0.0, "random") == pytest.approx(4 * plain)
    far = np.stack([values + 10 * np.array([1, -1, 1, -1, 0]), values - 10 * np.array([1, -1, 1, -1, 0])])
    own = math.sqrt(far.var(axis=0, ddof=1).mean() / 10)
    assert error_of(far, 0.0, "random") == pytest.approx(own, rel=1e-3)
    assert error_of(far, 0.0, "deterministic") == pytest.approx(4 * plain)


def test_few_pairs_have_neither_test_nor_interval() -> None:
    """An interval that excludes 0 would contradict the missing test."""
    values = np.array([[0.9, 0.8, 0.9, 0.85, 0.9, np.nan], [0.1, 0.2, 0.1, 0.15, 0.1, 0.2]])
    found = paired_differences(values, minimum=6)
    assert found.difference[1] < -0.6 and found.n[1] == 5
    assert math.isnan(found.low[1]) and math.isnan(found.high[1]) and math.isnan(found.p[1])
    assert found.indistinguishable[1]
    assert paired_differences(values, minimum=5).high[1] < 0


class TestBootstrap:
    """Percentile intervals over subjects."""

    def test_interval_of_a_mean_agrees_with_scipy(self) -> None:
        """Quantiles and standard deviation of the samples are those of scipy's percentile bootstrap."""
        values = np.random.default_rng(0).normal(size=40)
        counts = bootstrap_counts(np.random.default_rng(1), 40, samples=20_000)
        assert counts.shape == (20_000, 40) and set(counts.sum(axis=1)) == {40}
        found = bootstrap_interval(counts @ values / 40, float(values.mean()))
        drawn = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=2)
        reference = (*drawn.confidence_interval, drawn.standard_error)
        assert (found.low, found.high, found.se) == pytest.approx(reference, abs=0.01)
        assert found.value == values.mean() and found.reason == ""

    @pytest.mark.parametrize(
        ("values", "estimate", "reason"),
        [
            ([math.nan, 1.0, 2.0, 3.0], 1.5, "undefined in 1 of 4 bootstrap samples"),
            ([1.0, 1.5, 2.0], math.nan, "undefined in 0 of 3 bootstrap samples"),
            ([0.5, 0.5, 0.5], 0.5, "all bootstrap samples give the same value"),
        ],
    )
    def test_without_an_interval_there_is_a_reason(self, values: list[float], estimate: float, reason: str) -> None:
        """An undefined or constant statistic has no interval."""
        found = bootstrap_interval(values, estimate)
        assert math.isnan(found.low) and math.isnan(found.high) and math.isnan(found.se) and found.reason == reason
