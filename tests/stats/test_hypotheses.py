"""Hypotheses of a paper judged by paired intervals, on hand-worked cases."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats

from harness.core.hypotheses import Hypothesis
from harness.core.types import Array, Direction
from harness.stats.hypotheses import Finding, judge, mean_contrast, pooled_contrast
from harness.stats.intervals import jackknife_interval

SUBJECTS = [f"s{number}" for number in range(6)]
BASE = [0.50, 0.60, 0.55, 0.70, 0.65, 0.58]
# Mean 0.1; differences ±0.02 about it: t interval 0.1 ± 2.5706 · 0.021909 / √6 = [0.0770, 0.1230]
UP = [0.62, 0.68, 0.67, 0.78, 0.77, 0.66]
# A tenth of that difference: mean 0.01, spread as before: [-0.0130, 0.0330]
NEAR = [0.53, 0.59, 0.58, 0.69, 0.68, 0.57]


def _values(**arms: list[float]) -> dict[str, dict[str, float]]:
    return {name: dict(zip(SUBJECTS, values, strict=False)) for name, values in arms.items()}


def _judge(hypothesis: Hypothesis, direction: Direction = "higher", **arms: list[float]) -> Finding:
    found = judge(hypothesis, list(arms), mean_contrast(_values(**arms)), direction=direction)
    assert found is not None
    return found


def _order(*groups: tuple[str, ...], **options: object) -> Hypothesis:
    return Hypothesis("D1", "statement", "dice", groups, "sequences", **options)  # type: ignore[arg-type]


class TestBetter:
    """Hypotheses with the relation "better"."""

    def test_supported(self) -> None:
        """Supported if the interval of the paired difference lies above zero."""
        found = _judge(_order(("a",), ("b",)), a=UP, b=BASE)
        assert found.outcome == "supported"
        assert found.pairs[0].difference == pytest.approx((0.1, 0.0770, 0.1230, 6), abs=1e-4)
        assert found.decisive.slack == pytest.approx(0.0770, abs=1e-4)

    def test_not_supported(self) -> None:
        """Not supported if the interval lies below zero."""
        found = _judge(_order(("b",), ("a",)), a=UP, b=BASE)
        assert (found.outcome, found.reason) == ("not supported", "the opposite in 1 of 1")

    def test_undecided(self) -> None:
        """Undecided if the interval contains zero."""
        found = _judge(_order(("a",), ("b",)), a=NEAR, b=BASE)
        assert (found.outcome, found.reason) == ("undecided", "0 of 1 supported")

    def test_lower_may_be_better(self) -> None:
        """For metrics where lower is better, the smaller value is better."""
        assert _judge(_order(("b",), ("a",)), "lower", a=UP, b=BASE).outcome == "supported"

    def test_margin(self) -> None:
        """With a margin, the near bound of the interval decides for support and the far bound against it."""
        assert _judge(_order(("a",), ("b",), margin=0.07), a=UP, b=BASE).outcome == "supported"
        assert _judge(_order(("a",), ("b",), margin=0.08), a=UP, b=BASE).outcome == "undecided"
        assert _judge(_order(("a",), ("b",), margin=0.13), a=UP, b=BASE).outcome == "not supported"

    def test_margin_where_lower_is_better(self) -> None:
        """The margin is a distance in the direction of better values."""
        assert _judge(_order(("b",), ("a",), margin=0.07), "lower", a=UP, b=BASE).outcome == "supported"
        assert _judge(_order(("b",), ("a",), margin=0.13), "lower", a=UP, b=BASE).outcome == "not supported"

    def test_every_member_against_every_member_of_the_next_group(self) -> None:
        """Each member is compared with each of the next group: two, one and two members make four pairs."""
        arms = {name: UP for name in "abcde"}
        found = _judge(_order(("a", "b"), ("c",), ("d", "e")), **arms)
        assert [(one.first, one.second) for one in found.pairs] == [("a", "c"), ("b", "c"), ("c", "d"), ("c", "e")]

    def test_all_pairs_must_be_supported(self) -> None:
        """One undecided pair makes the hypothesis undecided, and it is the decisive one."""
        found = _judge(_order(("a", "n"), ("b",)), a=UP, n=NEAR, b=BASE)
        assert (found.outcome, found.reason) == ("undecided", "1 of 2 supported")
        assert found.decisive.first == "n"

    def test_one_pair_contradicts(self) -> None:
        """One contradicted pair suffices for "not supported", and it is the decisive one."""
        found = _judge(
            _order(("a", "low"), ("b",)), a=UP, b=BASE, low=[2 * b - u for b, u in zip(BASE, UP, strict=True)]
        )
        assert (found.outcome, found.decisive.first) == ("not supported", "low")

    def test_contradiction_is_corrected_for_the_pairs(self) -> None:
        """Contradictions are corrected for the number of pairs: one of p = 0.02 counts alone and not among four."""
        # A mean of -0.03 with the spread of UP − BASE has t = -3.354: p = 0.020, above 0.05/4.
        low = [b - 0.13 + (u - b) for b, u in zip(BASE, UP, strict=True)]
        p = stats.ttest_rel(low, BASE).pvalue
        assert 0.05 / 4 < p < 0.05
        assert _judge(_order(("low",), ("b",)), low=low, b=BASE).outcome == "not supported"
        others = {name: UP for name in ("c", "d", "e")}
        assert _judge(_order(("low", "c", "d", "e"), ("b",)), low=low, b=BASE, **others).outcome == "undecided"

    def test_five_subjects_are_undecided(self) -> None:
        """With five subjects, the hypothesis is undecided, however large the difference."""
        found = _judge(_order(("a",), ("b",)), a=[9.0, 9.1, 9.2, 9.3, 9.1], b=BASE[:5])
        assert (found.outcome, found.reason) == ("undecided", "a and b share 5 subjects, fewer than 6")

    def test_only_common_subjects_are_compared(self) -> None:
        """A subject without a value on one side is left out of the pair."""
        found = _judge(_order(("a",), ("b",)), a=[*UP[:5], np.nan], b=BASE)
        assert found.pairs[0].difference.n == 5

    def test_no_common_subject(self) -> None:
        """Without common subjects, the difference is NaN and not zero."""
        contrast = mean_contrast({"a": {"s1": 1.0}, "b": {"s2": 1.0}})
        value, low, high, n = contrast("a", "b", 0.95)
        assert np.isnan([value, low, high]).all()
        assert n == 0


class TestPresence:
    """Hypotheses about configurations that are not in the run."""

    def test_does_not_apply(self) -> None:
        """Without any pair, the hypothesis does not apply."""
        assert judge(_order(("x",), ("b",)), ["b"], mean_contrast(_values(b=BASE)), direction="higher") is None

    def test_missing_pair_is_undecided(self) -> None:
        """With a missing pair, the hypothesis is undecided even if all others support it."""
        found = _judge(_order(("a", "x"), ("b",)), a=UP, b=BASE)
        assert (found.outcome, found.absent) == ("undecided", ("x",))
        assert found.reason == "1 of 1 supported; without x"

    def test_a_contradiction_counts_despite_a_missing_pair(self) -> None:
        """With a missing pair, a contradiction still counts."""
        assert _judge(_order(("b", "x"), ("a",)), a=UP, b=BASE).outcome == "not supported"

    def test_neighbours_of_a_missing_group_are_compared(self) -> None:
        """If a group is missing, its neighbours are compared: a > x > b implies a > b."""
        found = _judge(_order(("a",), ("x",), ("b",)), a=UP, b=BASE)
        assert [(pair.first, pair.second) for pair in found.pairs] == [("a", "b")]
        assert (found.outcome, found.absent) == ("undecided", ("x",))

    def test_labels_are_sets(self) -> None:
        """The order of joined names does not matter: FLAIR+T2w is T2w+FLAIR."""
        values = {"FLAIR+T2w": dict(zip(SUBJECTS, UP, strict=True)), "FLAIR": dict(zip(SUBJECTS, BASE, strict=True))}
        found = judge(_order(("T2w+FLAIR",), ("FLAIR",)), list(values), mean_contrast(values), direction="higher")
        assert found is not None
        assert (found.outcome, found.pairs[0].first) == ("supported", "FLAIR+T2w")


class TestEquivalent:
    """Hypotheses with the relation "equivalent", by two one-sided tests."""

    # 90 % interval of NEAR − BASE: 0.01 ± 2.0150 · 0.021909 / √6 = [-0.0080, 0.0280]
    def test_supported(self) -> None:
        """Supported if the 90 % interval lies within the margin, whatever the 95 % interval."""
        found = _judge(_order(("a", "b"), relation="equivalent", margin=0.03), a=NEAR, b=BASE)
        assert found.outcome == "supported"
        assert found.decisive.slack == pytest.approx(0.03 - 0.0280, abs=1e-4)
        assert found.decisive.difference.high == pytest.approx(0.0330, abs=1e-4)

    def test_undecided(self) -> None:
        """Undecided if the interval exceeds the margin."""
        found = _judge(_order(("a", "b"), relation="equivalent", margin=0.025), a=NEAR, b=BASE)
        assert found.outcome == "undecided"

    def test_not_supported(self) -> None:
        """Not supported if the interval lies outside the margin, on either side."""
        for pair in (("a", "b"), ("b", "a")):
            found = _judge(_order(pair, relation="equivalent", margin=0.05), a=UP, b=BASE)
            assert found.outcome == "not supported"

    @pytest.mark.parametrize("margin", [0.005, 0.012, 0.027, 0.029, 0.05])
    def test_agrees_with_scipy(self, margin: float) -> None:
        """The result agrees with scipy's two one-sided tests: supported if the larger p is below 5 %."""
        found = _judge(_order(("a", "b"), relation="equivalent", margin=margin), a=NEAR, b=BASE)
        delta = np.subtract(NEAR, BASE)
        above = stats.ttest_1samp(delta, -margin, alternative="greater").pvalue
        below = stats.ttest_1samp(delta, margin, alternative="less").pvalue
        assert (found.outcome == "supported") == (max(above, below) < 0.05)

    def test_every_two(self) -> None:
        """Three members make three pairs."""
        arms = {name: NEAR for name in "abc"}
        assert len(_judge(_order(tuple("abc"), relation="equivalent", margin=0.1), **arms).pairs) == 3


class TestReaches:
    """Hypotheses with the relation "reaches"."""

    # BASE: mean 0.5967, SD 0.07118, interval ± 2.5706 · 0.07118 / √6 = [0.5220, 0.6714]
    @pytest.mark.parametrize(
        ("level", "direction", "outcome"),
        [
            (0.52, "higher", "supported"),
            (0.60, "higher", "undecided"),
            (0.68, "higher", "not supported"),
            (0.68, "lower", "supported"),
            (0.52, "lower", "not supported"),
        ],
    )
    def test_outcome(self, level: float, direction: Direction, outcome: str) -> None:
        """The interval of the mean is compared with the level, in the direction of better values."""
        found = _judge(_order(("a",), relation="reaches", margin=level), direction, a=BASE)
        assert found.outcome == outcome
        assert found.pairs[0].difference == pytest.approx((0.5967, 0.5220, 0.6714, 6), abs=1e-4)


class TestBelow:
    """Hypotheses with the relation "below"."""

    @pytest.mark.parametrize("direction", ["higher", "lower", "none"])
    @pytest.mark.parametrize(("bound", "outcome"), [(0.68, "supported"), (0.60, "undecided"), (0.52, "not supported")])
    def test_outcome(self, bound: float, direction: Direction, outcome: str) -> None:
        """The interval of the mean is compared with the bound, whatever is better."""
        found = _judge(_order(("a",), relation="below", margin=bound), direction, a=BASE)
        assert found.outcome == outcome


class TestPooled:
    """Differences of a statistic over all subjects."""

    @staticmethod
    def _columns(rng: np.random.Generator, noise: float) -> dict[str, dict[str, float]]:
        truth = np.arange(12.0)
        return {
            "truth": dict(zip("abcdefghijkl", truth, strict=True)),
            "found": dict(zip("abcdefghijkl", truth + noise * rng.normal(size=12), strict=True)),
        }

    @staticmethod
    def _correlation(columns: Mapping[str, Array]) -> float:
        if np.ptp(columns["truth"]) == 0:
            return float("nan")
        return float(np.corrcoef(columns["truth"], columns["found"])[0, 1])

    def test_equals_a_paired_jackknife(self) -> None:
        """The interval is that of the jackknife of the difference: n − 1 times the SD of the leave-one-out values."""
        rng = np.random.default_rng(0)
        values = {"a": self._columns(rng, 0.5), "b": self._columns(rng, 6.0)}
        arrays = {arm: {name: np.array(list(one.values())) for name, one in values[arm].items()} for arm in "ab"}

        def difference(kept: Array) -> float:
            one, two = (self._correlation({name: column[kept] for name, column in arrays[arm].items()}) for arm in "ab")
            return one - two

        without = np.array([difference(np.delete(np.arange(12), one)) for one in range(12)])
        half = stats.t.ppf(0.975, 11) * 11 * without.std(ddof=1) / np.sqrt(12)
        value = difference(np.arange(12))
        found = pooled_contrast(values, self._correlation)("a", "b", 0.95)
        assert found == pytest.approx((value, value - half, value + half, 12), abs=1e-9)

    def test_difference_of_a_configuration_with_itself_is_zero(self) -> None:
        """The difference of a configuration with itself is 0 without an interval."""
        columns = self._columns(np.random.default_rng(0), 1.0)
        contrast = pooled_contrast({"a": columns, "b": columns}, self._correlation)
        value, low, _, n = contrast("a", "b", 0.95)
        assert (value, n) == (0.0, 12)
        assert np.isnan(low)

    def test_single_value_stays_in_range(self) -> None:
        """Without a second side, the interval of the statistic itself stays inside the range of the metric."""
        contrast = pooled_contrast(
            {"a": self._columns(np.random.default_rng(0), 1.0)}, self._correlation, range=(-1.0, 1.0)
        )
        value, low, high, n = contrast("a", "", 0.95)
        assert -1 < low < value < high < 1
        assert n == 12

    def test_too_few_subjects(self) -> None:
        """Five subjects have a difference without an interval."""
        columns = {
            name: dict(list(one.items())[:5]) for name, one in self._columns(np.random.default_rng(0), 1).items()
        }
        value, low, _, n = pooled_contrast({"a": columns}, self._correlation)("a", "", 0.95)
        assert np.isfinite(value)
        assert np.isnan(low)
        assert n == 5


def test_pooled_values_have_the_interval_of_the_leaderboard() -> None:
    """The interval of a pooled value alone is that of its pseudo-values, within the range of the metric."""
    pseudo = dict(enumerate([0.2, 1.6, 1.3, 0.4, 1.5, 0.6]))
    values = {"net": {str(key): value for key, value in pseudo.items()}}
    found = mean_contrast(values, range=(0, 1), pooled={"net": 0.9})("net", "", 0.95)
    expected = jackknife_interval(list(pseudo.values()), 0.9, range=(0, 1))
    assert (found.value, found.low, found.high, found.n) == (0.9, expected.low, expected.high, 6)
    assert 0 < found.low < 0.9 < found.high < 1
