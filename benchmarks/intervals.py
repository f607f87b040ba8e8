"""Coverage of intervals and error of tests, in simulated data.

Prints, for several numbers of subjects, how often 95 % intervals cover the true value:
means and pooled values with the plain scale and with the scale that this project uses,
and pooled values with the BCa bootstrap of SciPy. Then the error of the paired
comparisons under the null hypothesis: how often a table of equal configurations has a
significant difference, an unadjusted interval that excludes 0, and a first row whose own
interval covers its true mean. Then intervals of cross-validated values whose models
depend on the training subjects and on chance, for several shares of each in the variance. Last,
Spearman correlations with EDSS of patients of whom some have two visits, with the jackknife
and with the cluster bootstrap.

    python benchmarks/intervals.py [samples=1000] [only=correlations]
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.metrics import r2_score, roc_auc_score

from harness.metrics.agreement import icc
from harness.stats.intervals import (
    MOST_OF_TRAINING,
    UNBOUNDED,
    Range,
    Training,
    bootstrap_counts,
    bootstrap_interval,
    jackknife_interval,
    mean_interval,
    paired_differences,
    pseudo_values,
    with_training,
)
from harness.stats.permutation import resampled_spearman, spearman

Array = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Array]


def _failing(share: float) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> Array:
        return np.where(rng.random(n) < share, 0.0, rng.beta(48, 12, n))

    return draw


MEANS: dict[str, tuple[Draw, Range, float]] = {
    "normal, mean .5": (lambda rng, n: rng.normal(0.5, 0.1, n), (0.0, 1.0), 0.5),
    "beta, mean .8": (lambda rng, n: rng.beta(8, 2, n), (0.0, 1.0), 0.8),
    "beta, mean .95": (lambda rng, n: rng.beta(9.5, 0.5, n), (0.0, 1.0), 0.95),
    "one in ten fails": (_failing(0.1), (0.0, 1.0), 0.72),
    "one in five fails": (_failing(0.2), (0.0, 1.0), 0.64),
    "log-normal, SD 1": (lambda rng, n: rng.lognormal(0, 1, n), (0.0, math.inf), math.exp(0.5)),
}


def _labelled(shift: float) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> Array:
        label = (rng.random(n) < 0.5).astype(float)
        return np.stack([label, rng.normal(size=n) + shift * label])

    return draw


def _predicted(slope: float) -> Draw:
    def draw(rng: np.random.Generator, n: int) -> Array:
        true = rng.normal(size=n)
        return np.stack([true, slope * true + math.sqrt(1 - slope**2) * slope * rng.normal(size=n)])

    return draw


def _rated(rng: np.random.Generator, n: int) -> Array:
    true = rng.normal(size=n)
    return np.stack([true + rng.normal(0, 0.5, n), true + rng.normal(0, 0.5, n)])


def _auc(columns: Array) -> float:
    return float(roc_auc_score(*columns)) if 0 < columns[0].sum() < columns.shape[1] else math.nan


def _squared(columns: Array) -> float:
    return float(np.corrcoef(columns)[0, 1] ** 2)


def _icc(columns: Array) -> float:
    return icc(columns.T, form="3,1")


POOLED: dict[str, tuple[Callable[[Array], float], Draw, Range]] = {
    "AUC .76": (_auc, _labelled(1), (0.0, 1.0)),
    "AUC .92": (_auc, _labelled(2), (0.0, 1.0)),
    "R² .81": (lambda columns: float(r2_score(*columns)), _predicted(0.9), (-math.inf, 1.0)),
    "r² .05": (_squared, _predicted(0.22), (0.0, 1.0)),
    "ICC .8": (_icc, _rated, (-1.0, 1.0)),
}


def _share(found: Iterator[bool]) -> float:
    return float(np.mean(list(found)))


def show_means(samples: int, rng: np.random.Generator) -> None:
    """Coverage of intervals of means."""
    print(f"{'mean of':22}{'n':>4}{'plain t':>10}{'used here':>12}{'leaves range':>14}{'in range':>10}")
    for name, (draw, ends, true) in MEANS.items():
        for n in (6, 12, 21, 50):
            drawn = [draw(rng, n) for _ in range(4 * samples)]
            plain = [mean_interval(one, range=UNBOUNDED) for one in drawn]
            used = [mean_interval(one, range=ends) for one in drawn]
            print(
                f"{name:22}{n:4}{_share(one.low <= true <= one.high for one in plain):10.3f}"
                f"{_share(one.low <= true <= one.high for one in used):12.3f}"
                f"{_share(one.low < ends[0] or one.high > ends[1] for one in plain):14.2f}"
                f"{_share(ends[0] <= one.low and one.high <= ends[1] for one in used):10.2f}"
            )


def show_pooled(samples: int, rng: np.random.Generator) -> None:
    """Coverage of intervals of pooled values."""
    print(f"\n{'pooled value':22}{'n':>4}{'BCa':>10}{'plain':>10}{'used here':>12}{'no interval':>14}")
    for name, (statistic, draw, ends) in POOLED.items():
        true = float(np.mean([statistic(draw(rng, 20_000)) for _ in range(20)]))
        for n in (12, 21, 50):
            covered: dict[str, list[bool]] = {"bca": [], "plain": [], "used": []}
            without = 0
            for number in range(samples):
                columns = draw(rng, n)
                value = statistic(columns)
                pseudo = pseudo_values(_over(statistic, columns), n)
                found = jackknife_interval(pseudo, value, range=ends)
                without += bool(found.reason)
                if found.reason:
                    continue
                plain = jackknife_interval(pseudo, value)
                covered["used"].append(found.low <= true <= found.high)
                covered["plain"].append(plain.low <= true <= plain.high)
                if number < samples // 5:
                    bounds = _bca(statistic, columns, rng)
                    covered["bca"].append(bounds[0] <= true <= bounds[1])
            shares = [float(np.mean(covered[one])) if covered[one] else math.nan for one in ("bca", "plain", "used")]
            print(f"{name:22}{n:4}{shares[0]:10.3f}{shares[1]:10.3f}{shares[2]:12.3f}{without / samples:14.3f}")


def _over(statistic: Callable[[Array], float], columns: Array) -> Callable[[npt.NDArray[np.intp]], float]:
    """The statistic as a function of the indices of subjects."""
    return lambda kept: statistic(columns[:, kept])


def _bca(statistic: Callable[[Array], float], columns: Array, rng: np.random.Generator) -> tuple[float, float]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            tuple(columns), lambda *drawn: statistic(np.stack(drawn)), paired=True, vectorized=False,
            n_resamples=300, rng=rng,
        )  # fmt: skip
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def show_tables(samples: int, rng: np.random.Generator) -> None:
    """Tables of equal configurations."""
    print(f"\n{'equal rows':>12}{'n':>4}{'significant':>13}{'unadjusted':>12}{'contradicts':>13}{'first covers':>14}")
    for count, n in ((4, 6), (8, 6), (8, 12), (8, 21)):
        wrong, plain, contradicts, first = [], [], [], []
        for _ in range(samples):
            values = rng.normal(size=n) + rng.normal(0, 1, (count, n))
            found = paired_differences(values)
            others = [row for row in range(count) if row != found.best]
            wrong.append(not found.indistinguishable.all())
            alone = [mean_interval(values[row] - values[found.best]) for row in others]
            plain.append(any(one.low > 0 or one.high < 0 for one in alone))
            excluded = (found.low > 0) | (found.high < 0)
            contradicts.append(bool((excluded[others] == found.indistinguishable[others]).any()))
            own = mean_interval(values[found.best])
            first.append(own.low <= 0 <= own.high)
        shares = [float(np.mean(one)) for one in (wrong, plain, contradicts, first)]
        print(f"{count:12}{n:4}{shares[0]:13.3f}{shares[1]:12.3f}{shares[2]:13.3f}{shares[3]:14.3f}")


def show_trainings(samples: int, rng: np.random.Generator) -> None:
    """Cross-validated values that depend on test subjects, on training subjects and on chance.

    The value of a fold is the mean influence of its test subjects, plus the mean influence
    of its training subjects, as for any smooth statistic, plus the chance of each training.
    Two rows that are compared have the same true value, the same test subjects and
    trainings of their own. Intervals of maps and of predictions differ by the limit of what
    trainings add; the test is that of both.
    """
    print("\nvariance relative to that of test subjects; SD/SE in brackets")
    print(f"{'folds':>6}{'subjects':>10}{'chance':>8}{'seeds':>7}{'given models':>16}{'maps':>16}{'predictions':>16}"
          f"{'N. & B.':>16}{'test error':>12}")  # fmt: skip
    fits = [(ratio, 0.0, 1) for ratio in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 100.0)]
    trainings = [(ratio, chance, seeds) for seeds in (1, 2, 3) for ratio, chance in
                 ((0.0, 1.0), (0.0, 8.0), (1.0, 8.0), (4.0, 8.0), (8.0, 1.0))]  # fmt: skip
    for folds in (3, 5):
        for ratio, chance, seeds in (*fits, *trainings):
            training: Training = "random" if chance else "deterministic"
            names = ("models", "maps", "predictions", "corrected")
            found: dict[str, list[tuple[float, float, bool]]] = {name: [] for name in names}
            wrong = []
            for _ in range(4 * samples):
                test = rng.normal(size=(folds, 8))
                rows = [_fold_values(rng, test, ratio, chance, seeds) for _ in range(2)]
                pseudo, errors = [one.mean(axis=2) for one in rows], [_error(one) for one in rows]
                by_fold = pseudo[0].mean(axis=0)
                mean, given = float(by_fold.mean()), mean_interval(rows[0].mean(axis=0).ravel())
                for name, most in (("maps", math.inf), ("predictions", MOST_OF_TRAINING)):
                    values = with_training(pseudo[0], errors[0], training=training, most=most)
                    used = jackknife_interval(values, mean)
                    found[name].append((mean, used.se, used.low <= 0 <= used.high))
                error = by_fold.std(ddof=1) * math.sqrt(1 / folds + 1 / (folds - 1))
                half = stats.t.ppf(0.975, folds - 1) * error
                found["models"].append((mean, given.se, given.low <= 0 <= given.high))
                found["corrected"].append((mean, float(error), abs(mean) <= half))
                table = [with_training(one, training=training) for one in pseudo]
                wrong.append(not paired_differences(table, minimum=3).indistinguishable.all())
            cells = [_covered(np.array(one)) for one in found.values()]
            print(f"{folds:6}{ratio:10g}{chance:8.0f}{seeds:7}" + "".join(f"{cell:>16}" for cell in cells)
                  + f"{np.mean(wrong):12.3f}")  # fmt: skip


def show_correlations(samples: int, rng: np.random.Generator) -> None:
    """Spearman correlations of patients, of whom two in five have two visits: coverage and mean width.

    The MS study has 33 patients in its test set, and 166 in all. The score has steps of a
    half, and the visits of a patient are correlated by .9.
    """
    print(f"\n{'Spearman ρ':>11}{'n':>5}{'jackknife':>11}{'width':>7}{'bootstrap':>11}{'width':>7}")
    for n in (8, 16, 33, 100):
        for wanted in (0.0, 0.3, 0.6):
            true = spearman(*_visits(rng, 200_000, wanted)[:2])
            found: dict[str, list[tuple[bool, float]]] = {"jackknife": [], "bootstrap": []}
            for _ in range(samples):
                first, second, patients = _visits(rng, n, wanted)
                value = spearman(first, second)
                pseudo = pseudo_values(_of_patients(first, second, patients), n)
                drawn = resampled_spearman(first, second, bootstrap_counts(rng, n)[:, patients])
                intervals = (jackknife_interval(pseudo, value, range=(-1, 1)), bootstrap_interval(drawn, value))
                for one, into in zip(intervals, found.values(), strict=True):
                    into.append((one.low <= true <= one.high, one.high - one.low))
            shares = [float(np.nanmean([one[place] for one in each])) for each in found.values() for place in (0, 1)]
            print(f"{true:11.2f}{n:5}{shares[0]:11.3f}{shares[1]:7.2f}{shares[2]:11.3f}{shares[3]:7.2f}", flush=True)


def _of_patients(
    first: Array, second: Array, patients: npt.NDArray[np.intp]
) -> Callable[[npt.NDArray[np.intp]], float]:
    """Spearman correlation as a function of the indices of patients."""

    def statistic(kept: npt.NDArray[np.intp]) -> float:
        rows = np.isin(patients, kept)
        return spearman(first[rows], second[rows])

    return statistic


def _visits(rng: np.random.Generator, count: int, rho: float) -> tuple[Array, Array, npt.NDArray[np.intp]]:
    """A mean, a score in steps of a half, and the patient of each visit; ρ of single visits is about as wanted."""
    patients = np.concatenate([np.arange(count), np.flatnonzero(rng.random(count) < 0.4)])
    slope = 2 * math.sin(math.pi * rho / 6)

    def pair(size: int) -> Array:
        drawn = rng.normal(size=(2, size))
        return np.stack([drawn[0], slope * drawn[0] + math.sqrt(1 - slope**2) * drawn[1]])

    mean, score = math.sqrt(0.9) * pair(count)[:, patients] + math.sqrt(0.1) * pair(len(patients))
    return mean, np.clip(np.round((3 + 1.8 * score) * 2) / 2, 0, 9), patients


def _covered(found: Array) -> str:
    """Coverage, and the standard deviation of the values relative to the stated errors."""
    return f"{found[:, 2].mean():.3f} ({found[:, 0].std() / math.sqrt(np.mean(found[:, 1] ** 2)):.2f})"


def _error(values: Array) -> float:
    """Standard error over test subjects of values (seeds, folds, size), for the trained models."""
    return mean_interval(values.mean(axis=0).ravel()).se


def _fold_values(rng: np.random.Generator, test: Array, ratio: float, chance: float = 0.0, seeds: int = 1) -> Array:
    """Values (seeds, folds, size) of test subjects (folds, size).

    ``ratio`` and ``chance`` are the variances from training subjects and from the chance of
    each training over that from test subjects.
    """
    folds, size = test.shape
    influence = math.sqrt(ratio) * rng.normal(size=(folds, size)).mean(axis=1)
    trained = (influence.sum() - influence) / (folds - 1)
    own = math.sqrt(chance / size) * rng.normal(size=(seeds, folds))
    found: Array = test[None] + (trained + own)[..., None]
    return found


def main(arguments: Sequence[str]) -> None:
    """Run all simulations, or one of them, and print."""
    given = dict(argument.split("=", 1) for argument in arguments)
    count, only = int(given.get("samples", 1000)), given.get("only", "")
    rng = np.random.default_rng(0)
    every = (show_means, show_pooled, show_tables, show_trainings, show_correlations)
    for one in every:
        if not only or one.__name__ == f"show_{only}":
            one(count, rng)


if __name__ == "__main__":
    main(sys.argv[1:])
