"""Do metrics of explanations order them as the truth does?"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from harness.core.seeding import generator
from harness.pipeline.aggregate import Pooled
from harness.pipeline.leaderboard import read_facts
from harness.pipeline.rows import subject_means
from harness.report.wording import row_labels
from harness.stats.concordance import tau_interval

__all__ = ["Agreement", "agreement_sentences", "agreements"]

_FEWEST_EXPLANATIONS = 4
_SHOWN = 6  # metrics in a sentence
_FEWEST = 3  # metrics; fewer need no sentence
_MODELS = 3  # with a sentence of their own


@dataclass(frozen=True)
class Agreement:
    """Kendall's τ between a metric and the ranking metric over the explanations of a model.

    Parameters
    ----------
    label : the model
    metric : name of the metric
    explanations : number of explanations with both values
    tau : in [−1, 1]; positive if the metric orders explanations as the ranking metric does
    low, high : bootstrap interval over subjects; ``None`` if one of the metrics is pooled
    p : two-sided p value, not adjusted
    """

    label: str
    metric: str
    explanations: int
    tau: float
    low: float | None
    high: float | None
    p: float

    @property
    def sign(self) -> int:
        """1 if it agrees, −1 if it orders explanations the other way round, 0 if that is open."""
        if self.low is None or self.high is None:
            return int(np.sign(self.tau)) if self.p < 0.05 else 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def agreements(table: pa.Table, pooled: Mapping[str, Pooled]) -> list[Agreement]:
    """Agreement of each metric that has a better direction, for each model with enough explanations.

    Parameters
    ----------
    table : leaderboard of explanations
    pooled : rows of each configuration, by its id
    """
    facts, by_configuration = read_facts(table), dict[str, list[Mapping[str, Any]]]()
    for line in table.to_pylist():
        by_configuration.setdefault(line["configuration"], []).append(line)
    labels = dict(zip(table["configuration"].to_pylist(), row_labels(table, attribution=False), strict=True))
    made = []
    for configuration, lines in by_configuration.items():
        for metric in facts.metrics:
            if metric.name == facts.objective or metric.direction not in ("higher", "lower"):
                continue
            pairs = [(line[facts.objective], line[metric.name]) for line in lines]
            known = np.array([pair for pair in pairs if None not in pair], float).reshape(-1, 2)
            if len(known) < _FEWEST_EXPLANATIONS or np.ptp(known, axis=0).min() == 0:
                continue
            found = stats.kendalltau(known[:, 0], known[:, 1])
            sign = 1 if metric.direction == facts.metric(facts.objective).direction else -1
            known_rows = [line["attribution"] for line, pair in zip(lines, pairs, strict=True) if None not in pair]
            low, high = _tau_ends(pooled.get(configuration), known_rows, facts.objective, metric.name)
            ends = (low, high) if sign > 0 or low is None or high is None else (-high, -low)
            tau = sign * float(found.statistic)
            made.append(Agreement(labels[configuration], metric.name, len(known), tau, *ends, float(found.pvalue)))
    return made


def agreement_sentences(table: pa.Table, pooled: Mapping[str, Pooled], *, but: Collection[str] = ()) -> list[str]:
    """Sentences on models with several metrics of explanations: which of them agree with the ranking metric.

    After the first three models, a sentence refers to the table of the report.

    Parameters
    ----------
    table, pooled : see :func:`agreements`
    but : metrics that are left out, such as those that read the truth as the ranking metric does
    """
    by_label: dict[str, list[Agreement]] = {}
    for one in agreements(table, pooled) if table.num_rows else []:
        if one.metric not in but:
            by_label.setdefault(one.label, []).append(one)
    objective = read_facts(table).objective if table.num_rows else ""
    told = [_sentence(label, objective, several) for label, several in by_label.items() if len(several) >= _FEWEST]
    more = [f"The report says so for {len(told) - _MODELS} more models."] if len(told) > _MODELS else []
    return told[:_MODELS] + more


def _sentence(label: str, objective: str, several: list[Agreement]) -> str:
    with_it, against = (
        sorted((one for one in several if one.sign == sign), key=lambda one: -abs(one.tau)) for sign in (1, -1)
    )
    parts = [
        f"{len(found) or 'none'} order{'s' if len(found) == 1 else ''} them {how}{_listed(found)}"
        for found, how in ((with_it, f"as {objective} does"), (against, "the other way round"))
    ]
    open_ = len(several) - len(with_it) - len(against)
    what = f"Of {len(several)} metrics of explanations of {label}"
    return f"{what}, {' and '.join(parts)}; {open_} {'is' if open_ == 1 else 'are'} undecided (Kendall's τ)."


def _listed(found: list[Agreement]) -> str:
    names = [f"{one.metric} {one.tau:.2f}".replace("-", "−") for one in found]
    return f" ({', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''})" if names else ""


def _tau_ends(
    pooled: Pooled | None, labels: Collection[str], first: str, second: str
) -> tuple[float | None, float | None]:
    """Interval of τ over the subjects that all of these explanations have; ``None`` without one."""
    rows = [] if pooled is None else [row for row in pooled.explanations if row.attribution in labels]
    if any(name in row.pooled for row in rows for name in (first, second)):
        return None, None
    means = [(subject_means(row, first), subject_means(row, second)) for row in rows]
    shared = sorted(set.intersection(*(set(one) & set(two) for one, two in means))) if means else []
    if not shared:
        return None, None
    values = np.array([[[of[name] for name in shared] for of in pair] for pair in means])
    low, high = tau_interval(values[:, 0], values[:, 1], rng=generator(0, "tau", first, second))
    return (None, None) if np.isnan(low) else (low, high)
