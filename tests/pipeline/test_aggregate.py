"""Pooling of hand-made records into rows of the leaderboard."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import r2_score, roc_auc_score

from harness.core.explanations import Explanation
from harness.core.overrides import override
from harness.core.task import VALIDATION, Component, Configuration, Task
from harness.core.types import Cohort, Folds, Score, Split
from harness.metrics import agreement, classification, diagnostic, regression
from harness.pipeline.aggregate import (
    Pooled,
    Table,
    _pooled_score,
    _pseudo_values,
    _sampled,
    has_fixed_test,
    metric_facts,
    pool,
    pooled_value,
)
from harness.pipeline.cell import ENSEMBLE, Job, ensembles, jobs, records_of
from harness.pipeline.ranking import score_of
from harness.pipeline.rows import MetricFacts
from harness.stats.intervals import pseudo_values
from harness.storage.store import CellRecord, Store, write_json, write_record
from harness.sweep.catalogue import load_task

Values = Mapping[str, Any]  # metric → value, or target → value


class ManualStore:
    """A store filled by hand, in which each subject is the test set of a fold and values are given."""

    def __init__(
        self,
        configured: Callable[..., Configuration],
        task: Task,
        cohort: Cohort,
        root: Path,
        subjects: Mapping[str, Sequence[str]],
        seeds: Sequence[int],
        fixed: Sequence[str] = (),
    ) -> None:
        patterns = cohort.samples
        samples = [
            dataclasses.replace(patterns[number % len(patterns)], id=sample, subject=subject)
            for subject, own in {**subjects, **{name: [name] for name in fixed}}.items()
            for number, sample in enumerate(own)
        ]
        training = [f"x{number}" for number in range(len(subjects))]
        samples += [dataclasses.replace(patterns[0], id=name, subject=name) for name in (*training, "y")]
        self.cohort: Cohort = dataclasses.replace(cohort, samples=tuple(samples))
        self.store, self.root = Store(root / "store"), root
        self.configuration = dataclasses.replace(configured(task, self.cohort), axes={"sequences": "T2w"})
        self.samples = subjects
        folds = Folds(
            tuple(
                Split((name,), tuple(own), ()) if fixed else Split((name,), ("y",), tuple(own))
                for name, own in zip(training, subjects.values(), strict=True)
            ),
            tuple(fixed),
        )
        made = list(jobs(self.configuration, self.cohort, folds, seeds))
        self.jobs = (*made, *ensembles(made, self.cohort, folds.test))

    def job(self, subject: str, seed: int = 0) -> Job:
        """The training whose test set is this subject."""
        return next(one for one in self.jobs if one.evaluated == tuple(self.samples[subject]) and one.seed == seed)

    def put(
        self,
        subject: str,
        values: Values | Sequence[tuple[str, Values]],
        *,
        seed: int = 0,
        job: Job | None = None,
        label: str = "",
        regions: Mapping[str, Values] | None = None,
        chance: Values | None = None,
        flags: Sequence[str] = (),
        seconds: float = 10.0,
        **more: Any,
    ) -> None:
        """Commit the cells of a training and one score, with values for all samples or sample by sample."""
        job = job or self.job(subject, seed)
        several = [(name, values) for name in job.evaluated] if isinstance(values, Mapping) else values
        for cell in job.cells:
            if cell.label in ("", label) and (not cell.metrics or cell.label == label):
                facts = {"flags": list(flags)} if cell.stage in ("explain" if label else "score",) else {}
                if cell.label:
                    facts = {**facts, "outputs": ["target"], "samples": [name for name, _ in several]}
                self.commit(cell, several, regions=regions, chance=chance, seconds=seconds, facts=facts, **more)

    def commit(
        self,
        cell: Any,
        scored: Sequence[tuple[str, Values]],
        *,
        regions: Mapping[str, Values] | None = None,
        chance: Values | None = None,
        state: Any = "done",
        **more: Any,
    ) -> None:
        """Commit one cell."""
        folder = self.root / f"work-{cell.identity}-{state}"
        folder.mkdir(exist_ok=True)
        if cell.metrics:
            content = {}
            for metric, identity in cell.metrics:
                known = [(name, one) for name, one in scored if metric in one]
                found = {
                    name: {
                        "targets": by_target(one[metric]),
                        "regions": {region: of[metric] for region, of in (regions or {}).items() if metric in of},
                    }
                    for name, one in known
                }
                by_chance = {
                    name: {"targets": by_target(chance[metric]), "regions": {}}
                    for name, _ in known
                    if chance and metric in chance
                }
                content[identity] = {"label": metric, "values": found, "chance": by_chance}
            write_json(folder / "values.json", content)
        record = CellRecord(
            cell.identity, cell.stage, state, cell.configuration, cell.fold, cell.seed, cell.label,
            group=cell.group, metrics=dict(cell.metrics), **more,
        )  # fmt: skip
        write_record(folder, record)
        self.store.commit(folder)

    def pool(self, **facts: Any) -> Pooled:
        """Pool all records."""
        return pool(self.configuration, self.jobs, self.cohort, self.store, facts=facts)

    def kept(self) -> list[str]:
        """Labels of the metrics with pooled values in the store, one for each record."""
        groups = (self.store.root / "pool").glob("*")
        return sorted(
            label for group in groups for one in self.store.evaluations("pool", group.name) for label in one.metrics
        )


def by_target(value: Any) -> Mapping[str, float | None]:
    """A plain value as that of the mask target."""
    return value if isinstance(value, Mapping) else {"target": value}


MakeStore = Callable[..., ManualStore]


@pytest.fixture
def made(toy_task: Task, toy_cohort: Cohort, configured: Callable[..., Configuration], tmp_path: Path) -> MakeStore:
    """A function that makes an empty store for the toy task, by default with one sample per subject."""

    def make(subjects: Any, *, seeds: Sequence[int] = (0,), task: Task = toy_task, **more: Any) -> ManualStore:
        named = subjects if isinstance(subjects, Mapping) else {name: [name] for name in subjects}
        return ManualStore(configured, task, toy_cohort, tmp_path, named, seeds, **more)

    return make


@pytest.fixture
def make_study(study: Task, crowd: Cohort, studied: Callable[..., Configuration], tmp_path: Path) -> MakeStore:
    """A function that makes an empty store for the study of pictures."""

    def make(subjects: Any, *, seeds: Sequence[int] = (0,), task: Task = study, **more: Any) -> ManualStore:
        named = subjects if isinstance(subjects, Mapping) else {name: [name] for name in subjects}
        return ManualStore(studied, task, crowd, tmp_path, named, seeds, **more)

    return make


def counts(truth: float, predicted: float, **more: float | None) -> dict[str, float | None]:
    """Values of one subject."""
    return {"dice": 0.5, "true_count": truth, "predicted_count": predicted, **more}


def test_values_by_metric_subject_and_seed(made: MakeStore) -> None:
    """Values are stored by metric, subject and seed."""
    one = made(["a", "b"], seeds=(0, 7))
    for number, (subject, seed) in enumerate([("a", 0), ("a", 7), ("b", 0), ("b", 7)]):
        one.put(subject, counts(1, 1, dice=number / 10), seed=seed)
    row = one.pool(data="toy").prediction
    assert row.values["dice"] == {"a": {0: 0.0, 7: 0.1}, "b": {0: 0.2, 7: 0.3}}
    assert (row.axes, row.attribution, row.complete, row.flags) == ({"sequences": "T2w"}, "", True, ())
    assert (row.facts["folds"], row.facts["seeds"], row.facts["train_s"], row.facts["data"]) == (2, 2, 10.0, "toy")


def test_samples_of_a_subject_are_averaged(made: MakeStore) -> None:
    """Samples of a subject are averaged without undefined values."""
    one = made({"a": ["a1", "a2"], "z": ["z"]})
    one.put("a", [("a1", counts(1, 1, dice=0.2, sensitivity=None)), ("a2", counts(1, 1, dice=0.6, sensitivity=0.9))])
    one.put("z", counts(1, 1, dice=1.0))
    values = one.pool().prediction.values
    assert values["dice"] == {"a": {0: pytest.approx(0.4)}, "z": {0: 1.0}}
    assert values["sensitivity"] == {"a": {0: 0.9}}


def test_undefined_values_are_nan(made: MakeStore) -> None:
    """An undefined value is NaN, not zero."""
    one = made(["a"])
    one.put("a", counts(1, 1, dice=None))
    assert math.isnan(one.pool().prediction.values["dice"]["a"][0])


def test_pooled_icc_is_that_of_the_columns(made: MakeStore) -> None:
    """The ICC agrees with (BMS − WMS) / (BMS + WMS) over subjects, averaged over seeds."""
    pairs = {"a": (10, 12), "b": (20, 15), "c": (30, 33), "d": (5, 5)}
    one = made(list(pairs), seeds=(0, 1))
    for subject, (truth, predicted) in pairs.items():
        one.put(subject, counts(truth, predicted - 1), seed=0)
        one.put(subject, counts(truth, predicted + 1), seed=1)
    expected = []
    for shift in (-1, 1):
        table = np.array(list(pairs.values()), float) + np.array([0, shift])
        means, n = table.mean(1), len(table)
        between = 2 * ((means - table.mean()) ** 2).sum() / (n - 1)
        within = ((table - means[:, None]) ** 2).sum() / n
        expected.append((between - within) / (between + within))
    score = one.pool().prediction.pooled["icc_count"]
    assert score.value == pytest.approx(np.mean(expected))
    assert score.n == 4 and math.isnan(score.low)


@pytest.mark.parametrize("count", [5, 6])
def test_interval_of_a_pooled_metric_needs_six_subjects(made: MakeStore, count: int) -> None:
    """With six subjects a pooled metric has an interval, with five it has none."""
    rng = np.random.default_rng(0)
    one = made([f"s{number}" for number in range(count)])
    for number in range(count):
        truth = float(rng.integers(5, 40))
        one.put(f"s{number}", counts(truth, truth + float(rng.integers(-4, 5))))
    score = one.pool().prediction.pooled["icc_count"]
    assert (score.low < score.value < score.high) if count == 6 else (math.isnan(score.low) and math.isnan(score.high))


def test_pooled_metrics_need_no_chance_of_every_subject(made: MakeStore) -> None:
    """Pooled metrics are computed if the chance level of one subject is missing."""
    one = made([f"s{number}" for number in range(7)])
    for number in range(7):
        more = {"sensitivity": 0.5}
        one.put(f"s{number}", counts(number + 1, 2 * number + 1, **more), chance={} if number == 2 else more)
    score = one.pool().prediction.pooled["icc_count"]
    assert (score.n, score.missing) == (7, 0)


def test_pooled_metrics_are_kept_and_follow_their_cells(made: MakeStore) -> None:
    """A pooled value is stored once, and one more cell gives another record."""
    one = made(["a", "b", "c"])
    for subject in ("a", "b"):
        one.put(subject, counts(3, 4))
    first = one.pool()
    assert one.kept() == ["icc_count"]
    one.pool()
    assert one.kept() == ["icc_count"]
    one.put("c", counts(9, 1))
    second = one.pool()
    assert one.kept() == ["icc_count"] * 2
    assert (first.prediction.pooled["icc_count"].n, second.prediction.pooled["icc_count"].n) == (2, 3)


def test_new_pooled_metric_is_computed_alone(made: MakeStore, toy_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new pooled metric is computed, and stored values of others are read."""
    one = made(["a", "b", "c"])
    for number, subject in enumerate("abc"):
        one.put(subject, counts(3 + number, 4))
    before = one.pool().prediction.pooled["icc_count"]
    metrics = {**toy_task.metrics, "bias": partial(agreement.count_bias)}
    two = made(["a", "b", "c"], task=dataclasses.replace(toy_task, metrics=metrics))
    computed: list[str] = []
    original = pooled_value

    def watched(task: Task, label: str, *given: Any, **named: Any) -> Any:
        computed.append(label)
        return original(task, label, *given, **named)

    monkeypatch.setattr("harness.pipeline.aggregate.pooled_value", watched)
    pooled = two.pool().prediction.pooled
    assert computed == ["bias"] and pooled["icc_count"] == before
    assert pooled["bias"].value == pytest.approx(0.0)


def test_row_without_any_cell(made: MakeStore) -> None:
    """Without any cell, the row has no values and states how many cells are missing."""
    pooled = made(["a", "b"]).pool()
    row = pooled.prediction
    assert row.values == {} and row.pooled == {} and not row.complete
    assert row.flags == ("incomplete: 0 of 6 cells",)
    assert math.isnan(row.facts["train_s"])
    assert [one.attribution for one in pooled.explanations] == ["random", "gradients"]


def test_missing_cells_make_a_row_incomplete(made: MakeStore) -> None:
    """With missing cells, the row has values of the others and states how many are missing."""
    one = made(["a", "b"])
    one.put("a", counts(1, 1))
    row = one.pool().prediction
    assert not row.complete and row.flags == ("incomplete: 3 of 6 cells",)
    assert set(row.values["dice"]) == {"a"}


def test_failed_cell_shows_its_error(made: MakeStore) -> None:
    """A failed cell shows its error in the flags, and the row is incomplete."""
    one = made(["a", "b"])
    one.put("a", counts(1, 1))
    one.commit(one.job("b").cells[0], [], state="failed", error="ValueError: no such width (unet.py:3)")
    row = one.pool().prediction
    assert not row.complete
    assert row.flags == ("failed: 1 of 6 cells, ValueError: no such width (unet.py:3)",)


def test_failed_explanation_affects_only_its_own_row(made: MakeStore) -> None:
    """A failed explanation does not affect predictions and other attributions."""
    one = made(["a"])
    one.put("a", counts(1, 1))
    one.put("a", {"relevance_ap": 0.2}, label="gradients")
    explain = next(cell for cell in one.job("a").cells if (cell.stage, cell.label) == ("explain", "random"))
    one.commit(explain, [], state="failed", error="RuntimeError: no gradient (x.py:1)")
    pooled = one.pool()
    random, gradients = pooled.explanations
    assert pooled.prediction.complete and gradients.complete and gradients.flags == ()
    assert random.flags == ("failed: 1 of 5 cells, RuntimeError: no gradient (x.py:1)",)


def test_explanations_have_their_own_values_and_seconds(made: MakeStore) -> None:
    """The row of an attribution has its own metrics and time."""
    one = made(["a"])
    one.put("a", counts(1, 1))
    one.put("a", {"relevance_ap": 0.25}, label="random", seconds=3.0)
    row = one.pool().explanations[0]
    assert row.attribution == "random" and row.complete
    assert row.values == {"relevance_ap": {"a": {0: 0.25}}}
    assert (row.facts["explain_s"], row.facts["train_s"]) == (3.0, 10.0)


def test_collapse_flags_explanations_too(made: MakeStore) -> None:
    """Explanations of a collapsed network are flagged as well."""
    one = made(["a", "b"])
    one.put("a", counts(1, 0), flags=["collapsed"])
    one.put("b", counts(1, 1))
    for subject in ("a", "b"):
        one.put(subject, {"relevance_ap": 0.25}, label="random", flags=["flat map"])
    pooled = one.pool()
    assert pooled.prediction.flags == ("collapsed in 1 of 2 cells",)
    assert pooled.explanations[0].flags == ("collapsed in 1 of 2 cells", "flat map in 2 of 2 cells")


def test_flags_of_superseded_values_do_not_count(made: MakeStore) -> None:
    """A flag of values that older code computed does not affect the row."""
    one = made(["a"])
    one.put("a", counts(1, 1))
    score = next(cell for cell in one.job("a").cells if cell.stage == "score" and not cell.label)
    older = tuple((label, f"{identity}-older") for label, identity in score.metrics)
    old = dataclasses.replace(score, identity="older", metrics=older)
    one.commit(old, [("a", counts(1, 0))], facts={"flags": ["collapsed"]})
    assert len(records_of(score, one.store)) == 2
    assert one.pool().prediction.flags == ()


@pytest.mark.parametrize("stage", ["train", "predict"])
def test_older_code_is_flagged(made: MakeStore, stage: str) -> None:
    """A row is flagged if its training or predictions come from older code."""
    one = made(["a"])
    for cell in one.job("a").cells[:3]:
        one.commit(cell, [("a", counts(1, 1))], reused_code=cell.stage == stage)
    assert one.pool().prediction.flags == ("older code accepted",)


def test_regions_have_separate_rows(made: MakeStore) -> None:
    """Values within a region are in rows of that region."""
    one = made(["a", "b"])
    one.put("a", counts(1, 1), regions={"left": {"dice": 0.1}, "right": {"dice": None}})
    one.put("b", counts(1, 1), regions={"left": {"dice": 0.3}, "right": {"dice": 0.5}})
    regions = one.pool().regions
    assert regions["left"][0].values == {"dice": {"a": {0: 0.1}, "b": {0: 0.3}}}
    assert math.isnan(regions["right"][0].values["dice"]["a"][0])


def test_facts_of_metrics(toy_task: Task) -> None:
    """Facts of metrics come from their registration."""
    facts = {one.name: one for one in metric_facts(toy_task, ("subject", "pool"))}
    assert list(facts) == ["dice", "sensitivity", "true_count", "predicted_count", "icc_count"]
    assert (facts["dice"].direction, facts["dice"].range, facts["dice"].ceiling) == ("higher", (0, 1), 1)
    assert facts["icc_count"].level == "pooled" and facts["dice"].level == "subject"
    assert facts["true_count"].direction == "none" and math.isnan(facts["true_count"].ceiling)
    assert "Dice" in facts["dice"].source and facts["dice"].summary.startswith("Dice coefficient")
    assert [one.name for one in metric_facts(toy_task, ("explanation",))] == ["relevance_ap"]


def test_metric_without_a_best_value_has_no_ceiling(study: Task) -> None:
    """The ceiling of a metric is unknown if its better end is infinite."""
    facts = {one.name: one for one in metric_facts(study, ("pool", "probe"))}
    assert (facts["auroc"].ceiling, facts["fall_when_masked"].direction) == (1, "higher")
    assert math.isnan(facts["fall_when_masked"].ceiling)


def table_of(columns: Mapping[str, Sequence[float]], *, seed: int = 0) -> Table:
    """A table with columns over samples ``0``, ``1``, …, where NaN is an undefined value."""
    table = Table()
    for metric, values in columns.items():
        for number, value in enumerate(values):
            table.put(metric, str(number), seed, None if math.isnan(value) else float(value))
    return table


def one_each(count: int) -> dict[str, str]:
    """A mapping of samples to subjects with one sample each."""
    return {str(number): f"subject-{number}" for number in range(count)}


def scored(
    component: Component, table: Table, subjects: Mapping[str, str], folds: Mapping[str, int] | None = None
) -> Score:
    """A pooled metric of one table."""
    sampled = _sampled([table], set(table.columns), subjects)
    pseudo, _ = _pseudo_values(component, sampled, folds or {}, "deterministic")
    return _pooled_score(component, sampled, list(pseudo.values()))


def test_pooled_values_have_a_jackknife_interval() -> None:
    """The interval agrees with scipy's bootstrap for many subjects; a p-value has no interval."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=200)
    columns = {"target_score": target, "predicted_score": 0.7 * target + rng.normal(scale=0.5, size=200)}
    table = table_of(columns)
    score = scored(partial(regression.r2), table, one_each(200))
    drawn = stats.bootstrap(
        tuple(columns.values()), r2_score, paired=True, vectorized=False, n_resamples=1000, rng=rng
    ).confidence_interval
    assert score.value == pytest.approx(r2_score(*columns.values()))
    assert (score.low, score.high) == pytest.approx((drawn.low, drawn.high), abs=0.1 * (drawn.high - drawn.low))
    p_value = scored(partial(regression.r_squared_p), table, one_each(200))
    assert p_value.value < 1e-10 and math.isnan(p_value.low)


def test_intervals_by_fold_include_the_trainings() -> None:
    """The variance is that over subjects and a share of that of the delete-a-group jackknife, times (K − 1)².

    In the interval, the second part is at most as large as the first, or as the variance between folds.
    """
    rng = np.random.default_rng(0)
    target = rng.normal(size=40)
    fold_of = np.arange(40) % 4
    table = table_of({"target_score": target, "predicted_score": target + 0.4 * fold_of + 0.3 * rng.normal(size=40)})
    folds = {f"subject-{number}": number % 4 for number in range(40)}
    found = scored(partial(regression.r2), table, one_each(40), folds)
    columns = table.columns
    values = np.array([[columns[name][str(one)][0] for one in range(40)] for name in columns])
    without = np.array([r2_score(*values[:, np.arange(40) % 4 != fold]) for fold in range(4)])
    jackknife = math.sqrt(3 / 4 * ((without - without.mean()) ** 2).sum())
    without_one = np.array([r2_score(*np.delete(values, one, axis=1)) for one in range(40)])
    subjects = math.sqrt(39 / 40 * ((without_one - without_one.mean()) ** 2).sum())
    share = jackknife**8 / (jackknife**4 + subjects**4) ** 2
    assert 0.01 < share < 0.99
    added = 9 * jackknife**2 * share
    assert added > max(subjects, jackknife) ** 2
    assert found.se == pytest.approx(math.sqrt(subjects**2 + max(subjects, jackknife) ** 2))
    assert found.n == 40
    half = stats.t.ppf(0.975, 3) * found.se
    assert (found.low, found.high) == pytest.approx((found.value - half, min(1.0, found.value + half)))
    task = override(load_task("lsm"), "model", "ridge")
    pairs = pooled_value(task, "r2", [table], one_each(40), folds=folds, paired=True)["paired"]
    assert list(pairs) == ["fold 00", "fold 01", "fold 02", "fold 03"]
    # Comparisons with other rows of the same test subjects
    assert np.std(list(pairs.values()), ddof=1) / 2 == pytest.approx(3 * jackknife)


def test_seeds_show_the_chance_of_trainings() -> None:
    """Variance within folds between the seeds of a network is not multiplied, so that the interval is shorter."""
    rng = np.random.default_rng(0)
    target, table, folds = rng.normal(size=40), Table(), {f"subject-{number}": number % 4 for number in range(40)}
    of_fold = 0.4 * np.arange(4)[np.arange(40) % 4]
    for seed, order in enumerate((1, -1)):  # a fold that is predicted well with one seed, and badly with the other
        shift = of_fold if order > 0 else 1.2 - of_fold
        for name, values in (("target_score", target), ("predicted_score", target + shift)):
            for number, value in enumerate(values):
                table.put(name, str(number), seed, float(value))

    def r2_of(rows: np.ndarray, seed: int) -> float:
        shift = (of_fold, 1.2 - of_fold)[seed]
        return float(r2_score(target[rows], (target + shift)[rows]))

    every = np.arange(40)
    without_one = [np.mean([r2_of(np.delete(every, one), seed) for seed in (0, 1)]) for one in every]
    of_subjects = 39 * np.var(without_one)
    by_seed = np.array(
        [pseudo_values(lambda kept, seed=seed: r2_of(every[np.isin(every % 4, kept)], seed), 4) for seed in (0, 1)]
    )
    of_folds = np.var(by_seed.mean(axis=0), ddof=1) / 4
    chance = np.var(by_seed, axis=0, ddof=1).mean() / 8
    assert chance > of_folds
    for model, fixed in (("cnn", of_subjects + chance), ("ridge", of_subjects)):
        task = override(load_task("lsm"), "model", model)
        value = pooled_value(task, "r2", [table], one_each(40), folds=folds, paired=True)
        share = of_folds**4 / (of_folds**2 + fixed**2) ** 2
        added = 9 * of_folds * share
        assert value["score"]["se"] == pytest.approx(math.sqrt(fixed + min(added, max(fixed, of_folds))))
        known = fixed - of_subjects  # in comparisons, whose rows share their test subjects
        share = of_folds**4 / (of_folds**2 + known**2) ** 2
        compared = math.sqrt(known + 9 * of_folds * share)
        assert np.std(list(value["paired"].values()), ddof=1) / 2 == pytest.approx(compared)


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([0, 1, 0, 1, 1], "5 subjects; an interval of a pooled value needs 6"),
        ([0, 0, 0, 0, 0, 1], "undefined if one of 1 of 6 subjects or folds is left out"),
        ([0, 0, 0, 1, 1, 1], "leaving out any subject or fold gives the same value"),
    ],
)
def test_no_interval_has_a_reason(labels: list[int], reason: str) -> None:
    """Few subjects, one subject of a class, or perfect separation have no interval, and the reason is given."""
    table = table_of({"target_label": labels, "predicted_logit": [one + 0.01 * i for i, one in enumerate(labels)]})
    found = scored(partial(classification.auroc), table, one_each(len(labels)))
    assert found.value == 1.0
    assert math.isnan(found.low)
    assert found.reason == reason


class TestSamplesOfSubjects:
    """Pooled metrics use samples, while intervals and missing values count subjects."""

    LABELS = (0, 1, 1, 1, 0, 0, 1, 0, 1, 0, 0, 1, 1, 0, 1, 1)
    CHANCES = (0.2, 0.7, 0.6, 0.9, 0.4, 0.1, 0.3, 0.35, 0.8, 0.6, 0.2, 0.9, 0.7, 0.1, 0.55, 0.45)

    @property
    def table(self) -> Table:
        """Sixteen labels with a probability each."""
        return table_of({"target_label": self.LABELS, "predicted_logit": self.CHANCES})

    @staticmethod
    def visits(count: int) -> dict[str, str]:
        """Two samples of each subject."""
        return {str(number): f"subject-{number // 2}" for number in range(count)}

    def auroc(self, table: Table, subjects: Mapping[str, str]) -> Score:
        """The area under the ROC curve of a table."""
        return scored(partial(classification.auroc), table, subjects)

    def test_visits_keep_their_own_labels(self) -> None:
        """The area is scikit-learn's over samples, also if visits of a subject have different labels."""
        found = self.auroc(self.table, self.visits(16))
        assert found.value == pytest.approx(roc_auc_score(self.LABELS, self.CHANCES))
        means = np.reshape(self.LABELS, (-1, 2)).mean(1)
        assert 0.5 in means
        assert found.n == 8

    def test_intervals_leave_out_whole_subjects(self) -> None:
        """The standard error agrees with a jackknife that leaves out subjects with all their samples."""
        rows = [np.delete(np.arange(16), (2 * one, 2 * one + 1)) for one in range(8)]
        without = [roc_auc_score(np.array(self.LABELS)[kept], np.array(self.CHANCES)[kept]) for kept in rows]
        found = self.auroc(self.table, self.visits(16))
        assert found.se == pytest.approx(7 * np.std(without, ddof=1) / math.sqrt(8))
        assert 0 < found.low < found.value < found.high < 1

    def test_repeated_samples_do_not_narrow_the_interval(self) -> None:
        """Two equal samples per subject have the same interval as one sample."""
        once = self.auroc(self.table, one_each(16))
        twice = table_of(
            {
                "target_label": np.repeat(self.LABELS, 2).tolist(),
                "predicted_logit": np.repeat(self.CHANCES, 2).tolist(),
            }
        )
        found = self.auroc(twice, self.visits(32))
        assert (found.value, found.low, found.high, found.n) == pytest.approx((once.value, once.low, once.high, 16))
        apart = self.auroc(twice, one_each(32))
        assert apart.high - apart.low < 0.9 * (once.high - once.low)

    def test_missing_counts_subjects_without_a_value(self) -> None:
        """A subject is missing only if none of its samples has all values."""
        chances = list(self.CHANCES)
        chances[0] = chances[4] = chances[5] = math.nan
        table = table_of({"target_label": self.LABELS, "predicted_logit": chances})
        found = self.auroc(table, self.visits(16))
        assert (found.n, found.missing) == (7, 1)
        kept = [number for number in range(16) if not math.isnan(chances[number])]
        expected = roc_auc_score([self.LABELS[one] for one in kept], [chances[one] for one in kept])
        assert found.value == pytest.approx(expected)

    def test_missing_is_known_where_there_is_no_interval(self) -> None:
        """Missing subjects are counted for p-values and for many subjects as well."""
        rng = np.random.default_rng(0)
        target = rng.normal(size=120)
        predicted = target + rng.normal(size=120)
        predicted[:5] = math.nan
        table = table_of({"target_score": target.tolist(), "predicted_score": predicted.tolist()})
        for component in (regression.r2, regression.r_squared_p):
            found = scored(partial(component), table, one_each(120))
            assert (found.n, found.missing) == (115, 5)
        found = scored(partial(regression.r2), table, one_each(120))
        assert found.value == pytest.approx(r2_score(target[5:], predicted[5:]))
        known = table_of({"target_score": target[5:].tolist(), "predicted_score": predicted[5:].tolist()})
        alone = scored(partial(regression.r2), known, one_each(115))
        assert (found.low, found.high, found.se) == pytest.approx((alone.low, alone.high, alone.se))

    def test_chance_is_computed_from_the_columns(self) -> None:
        """The chance level of balanced accuracy is one over the number of classes that occur."""
        table = table_of({"target_class": [0, 1, 3, 3, 1, 0], "predicted_class": [0, 1, 3, 1, 1, 1]})
        found = scored(partial(classification.balanced_accuracy), table, one_each(6))
        assert found.value == pytest.approx((0.5 + 1 + 0.5) / 3)
        assert found.chance == pytest.approx(1 / 3)

    def test_chance_that_is_constant_is_a_fact_of_the_metric(self, study: Task) -> None:
        """A constant chance level is a fact of the metric and not a value of the row."""
        facts = {one.name: one for one in metric_facts(study, ("pool",))}
        assert (facts["r2"].chance, facts["auroc"].chance) == (0.0, 0.5)
        assert math.isnan(facts["balanced_accuracy"].chance)
        assert math.isnan(self.auroc(self.table, one_each(16)).chance)

    def test_ceiling_is_computed_from_clean_scores(self) -> None:
        """The ceiling of R² uses the clean scores, which may be missing for some samples."""
        rng = np.random.default_rng(1)
        clean = rng.normal(size=20)
        target, clean = clean + rng.normal(size=20), np.r_[clean[:15], np.full(5, math.nan)]
        columns = {"target_score": target, "predicted_score": 0.5 * target, "clean_score": clean}
        task = load_task("lsm")
        found = pooled_value(task, "r2", [table_of(columns)], one_each(20), folds={}, paired=False)["score"]
        assert found["ceiling"] == pytest.approx(np.corrcoef(target[:15], clean[:15])[0, 1] ** 2)
        assert (found["n"], found["missing"]) == (20, 0)
        assert found["value"] == pytest.approx(r2_score(target, 0.5 * target))

    def test_seeds_are_pooled_separately_and_averaged(self) -> None:
        """A pooled value is the mean over seeds; a sample missing for one seed is left out for that seed only."""
        table = self.table
        other = [1 - one for one in self.CHANCES]
        for number, (label, chance) in enumerate(zip(self.LABELS, other, strict=True)):
            if number != 3:
                table.put("target_label", str(number), 1, label)
                table.put("predicted_logit", str(number), 1, chance)
        found = self.auroc(table, one_each(16))
        rest = [number for number in range(16) if number != 3]
        second = roc_auc_score([self.LABELS[one] for one in rest], [other[one] for one in rest])
        assert found.value == pytest.approx((roc_auc_score(self.LABELS, self.CHANCES) + second) / 2)


def values_of(age: float, smile: float, hair: float, *, predicted: tuple[float, float, float]) -> dict[str, Any]:
    """Values of one picture: its true and predicted targets."""
    return {
        "target_score": {"age": age},
        "predicted_score": {"age": predicted[0]},
        "target_label": {"smile": smile},
        "predicted_logit": {"smile": predicted[1]},
        "brier": {"smile": (predicted[1] - smile) ** 2},
        "target_class": {"hair": hair},
        "predicted_class": {"hair": predicted[2]},
    }


class TestSeveralTargets:
    """Rows of a study with three targets of different kinds and two pictures per subject."""

    # true age, smile and hair of eight pictures, two per subject, and their predictions
    TRUTH = (
        *((20.0, 0, 0), (25.0, 1, 0), (40.0, 1, 1), (50.0, 1, 1)),
        *((60.0, 0, 2), (70.0, 1, 2), (33.0, 0, 1), (44.0, 0, 1)),
    )
    PREDICTED = (
        *((25.0, 0.3, 0), (25.0, 0.6, 1), (30.0, 0.8, 1), (60.0, 0.2, 1)),
        *((50.0, 0.4, 2), (72.0, 0.9, 0), (30.0, 0.5, 1), (41.0, 0.1, 2)),
    )

    @pytest.fixture
    def four(self, make_study: MakeStore) -> ManualStore:
        """Four subjects with two pictures each, in one fold per subject."""
        one = make_study({f"p{number}": [f"p{number}-1", f"p{number}-2"] for number in range(4)})
        self.fill(one)
        return one

    def fill(self, one: ManualStore, *, factor: float = 1) -> None:
        """Commit true and predicted values of eight pictures, with predicted ages times a factor."""
        predicted = [(factor * age, smile, hair) for age, smile, hair in self.PREDICTED]
        for number in range(4):
            one.put(
                f"p{number}",
                [
                    (
                        f"p{number}-{visit + 1}",
                        values_of(*self.TRUTH[2 * number + visit], predicted=predicted[2 * number + visit]),
                    )
                    for visit in range(2)
                ],
            )

    def test_each_pooled_metric_is_of_the_target_that_has_its_columns(self, four: ManualStore) -> None:
        """Each pooled metric is computed for the target with its columns: R², ROC area and balanced accuracy."""
        pooled = four.pool().prediction.pooled
        truth, predicted = (np.array(one).T for one in (self.TRUTH, self.PREDICTED))
        assert pooled["r2"].value == pytest.approx(r2_score(truth[0], predicted[0]))
        assert pooled["auroc"].value == pytest.approx(roc_auc_score(truth[1], predicted[1]))
        assert pooled["balanced_accuracy"].value == pytest.approx(np.mean([1 / 2, 3 / 4, 1 / 2]))
        assert {score.n for score in pooled.values()} == {4}

    def test_a_fault_flags_the_row(self, make_study: MakeStore) -> None:
        """An R² that only predictions on another scale can have flags the row; a poor R² does not."""
        flags = []
        for factor in (1, 12):
            one = make_study({f"p{number}": [f"p{number}-1", f"p{number}-2"] for number in range(4)})
            one.store = Store(one.root / f"store-{factor}")
            self.fill(one, factor=factor)
            flags.append([flag for flag in one.pool().prediction.flags if "incomplete" not in flag])
        assert flags == [[], ["scale fault: R² below -1 cannot come from overfitting alone"]]

    def test_values_of_samples_are_of_their_target(self, four: ManualStore) -> None:
        """Metrics of one target are not averaged with those of others."""
        values = four.pool().prediction.values
        expected = [(self.PREDICTED[one][1] - self.TRUTH[one][1]) ** 2 for one in (0, 1)]
        assert values["brier"]["p0"] == {0: pytest.approx(np.mean(expected))}
        assert values["target_score"]["p1"] == {0: 45.0}

    def test_each_target_has_separate_rows(self, four: ManualStore) -> None:
        """The table of regions has rows for each target with one value per sample."""
        lines = four.pool().regions
        assert list(lines) == ["age", "smile", "hair"]
        assert set(lines["smile"][0].values) == {"target_label", "predicted_logit", "brier", "auroc"}

    def test_targets_have_pooled_metrics_without_a_list_of_regional_ones(self, four: ManualStore) -> None:
        """If the task names no regional metrics, each of several targets has all of its metrics."""
        pooled = four.pool()
        found = {name: set(rows[0].pooled) for name, rows in pooled.regions.items()}
        assert found == {"age": {"r2"}, "smile": {"auroc"}, "hair": {"balanced_accuracy"}}
        assert pooled.regions["age"][0].pooled["r2"] == pooled.prediction.pooled["r2"]

    def test_the_only_target_has_no_separate_rows(self, four: ManualStore) -> None:
        """Without regional metrics, rows of the only target would repeat those of the whole."""
        four.cohort = dataclasses.replace(four.cohort, targets=four.cohort.targets[1:2])
        assert list(four.pool().regions) == []

    def test_the_objective_is_compared_subject_by_subject(self, four: ManualStore, study: Task) -> None:
        """Pseudo-values of the objective have one number per subject, as in the jackknife."""
        row = four.pool().prediction
        assert study.objective == "auroc"
        assert list(row.values["auroc"]) == ["p0", "p1", "p2", "p3"]
        truth, predicted = (np.array(one).T for one in (self.TRUTH, self.PREDICTED))
        whole = roc_auc_score(truth[1], predicted[1])
        kept = [np.delete(np.arange(8), (2 * one, 2 * one + 1)) for one in range(4)]
        without = np.array([roc_auc_score(truth[1][rows], predicted[1][rows]) for rows in kept])
        assert [of[0] for of in row.values["auroc"].values()] == pytest.approx(whole - 3 * (without - without.mean()))

    def test_explained_scalars_have_separate_rows(self, make_study: MakeStore) -> None:
        """The value of an explanation is the mean over its scalars, and each scalar has a separate row."""
        one = make_study({"p0": ["p0-1", "p0-2"]})
        values = [("p0-1", values_of(20.0, 0, 0, predicted=(25.0, 0.3, 0)))]
        one.put("p0", values)
        maps = {"relevance_ap": {"age": 0.2, "smile": 0.4, "hair": 0.9}}
        one.put("p0", [("p0-1", maps)], label="random")
        pooled = one.pool()
        row = next(row for row in pooled.explanations if row.attribution == "random")
        assert row.values["relevance_ap"] == {"p0": {0: pytest.approx(0.5)}}
        lines = {name: [row for row in rows if row.attribution == "random"] for name, rows in pooled.regions.items()}
        assert lines["smile"][0].values["relevance_ap"] == {"p0": {0: 0.4}}

    def test_pooled_metric_of_an_explanation_reads_labels_of_the_explained_target(self, four: ManualStore) -> None:
        """The ROC area of masked images is that of probe values and labels, for the explained samples."""
        masked = [0.4, 1.3, 0.2, 0.9, 0.6, 0.7, 0.1]  # the last sample is not explained
        for number in range(4):
            values = [
                (f"p{sample // 2}-{sample % 2 + 1}", {"score_when_masked": {"age": 50.0, "smile": masked[sample]}})
                for sample in (2 * number, 2 * number + 1)
                if sample < len(masked)
            ]
            one = [(name, {"score_when_masked": {"gate": 0.5}}) for name, _ in values]
            four.put(f"p{number}", values, label="random")
            four.put(f"p{number}", one, label="gate")
        pooled = four.pool()
        rows = {row.attribution: row for row in pooled.explanations}
        found = rows["random"].pooled["auroc_when_masked"]
        assert found.value == pytest.approx(roc_auc_score([one[1] for one in self.TRUTH[:7]], masked))
        assert (found.n, found.missing) == (4, 0)
        assert rows["gate"].pooled == {}  # the gate is no target and has no labels
        assert "auroc_when_masked" not in pooled.prediction.pooled
        assert four.pool().explanations[3].pooled == rows["random"].pooled

    def test_facts_of_pooled_metrics_of_explanations(self, study: Task) -> None:
        """A pooled metric of values of explanations is a column of explanations only."""
        names = [one.name for one in metric_facts(study, ("subject", "pool"), fixed_test=True)]
        assert "auroc_when_masked" not in names
        (facts,) = (one for one in metric_facts(study, ("explanation", "probe")) if one.name == "auroc_when_masked")
        assert (facts.level, facts.direction, facts.chance) == ("pooled", "lower", 0.5)

    def test_pooled_metric_ranks_explanations_in_pairs(self, make_study: MakeStore, study: Task) -> None:
        """A pooled metric can rank explanations, with pseudo-values by subject for comparisons."""
        task = dataclasses.replace(study, explanation_objective="auroc_when_masked")
        one = make_study({f"p{number}": [f"p{number}-1", f"p{number}-2"] for number in range(4)}, task=task)
        self.fill(one)
        for number in range(4):
            values = [
                (f"p{number}-{visit + 1}", {"score_when_masked": {"smile": self.PREDICTED[2 * number + visit][1]}})
                for visit in range(2)
            ]
            one.put(f"p{number}", values, label="random")
        row = next(row for row in one.pool().explanations if row.attribution == "random")
        values = [of[0] for of in row.values["auroc_when_masked"].values()]
        assert len(values) == 4 and np.mean(values) == pytest.approx(row.pooled["auroc_when_masked"].value)

    def test_rows_state_what_they_explain(self, four: ManualStore) -> None:
        """The row of an explanation states its scalar, the rule of its samples, and which network applied it."""
        rows = {row.attribution: row.explains for row in four.pool().explanations}
        assert rows["saliency"] == {"explained_scalar": "all targets", "explained_samples": "tested"}
        assert rows["gate"] == {"explained_scalar": "gate", "explained_samples": "tested"}
        assert rows["smiles"] == {
            "explained_scalar": "smile",
            "explained_samples": "correct by smile, at most 3",
            "samples_chosen_by": "sequences=T2w",
        }

    def test_default_scalar_of_a_single_target_is_that_target(self, made: MakeStore, toy_task: Task) -> None:
        """With one target, an explanation of that target and one of all targets explain the same scalar."""
        named = Explanation(toy_task.attributions["random"], of="target")
        task = dataclasses.replace(toy_task, explanations={**toy_task.explanations, "named": named})
        found = {row.attribution: row.explains for row in made(["a"], task=task).pool().explanations}
        assert found["named"] == found["random"] == {"explained_scalar": "target", "explained_samples": "tested"}

    def test_validation_samples_have_separate_columns(self, make_study: MakeStore) -> None:
        """Plain columns are of the ensemble on the test set, and those of validation samples have a suffix."""
        names = [f"t{number}" for number in range(4)]
        one = make_study({f"p{number}": [f"p{number}-1", f"p{number}-2"] for number in range(4)}, fixed=names)
        self.fill(one)
        ensemble = one.jobs[-1]
        assert (ensemble.fold, ensemble.evaluated) == (ENSEMBLE, tuple(names))
        one.put(
            "",
            [
                (name, values_of(*self.TRUTH[number], predicted=self.PREDICTED[number + 2]))
                for number, name in enumerate(names)
            ],
            job=ensemble,
        )
        row = one.pool().prediction
        truth, predicted = (np.array(one).T for one in (self.TRUTH, self.PREDICTED))
        assert row.pooled["r2"].value == pytest.approx(r2_score(truth[0][:4], predicted[0][2:6]))
        assert row.pooled["r2" + VALIDATION].value == pytest.approx(r2_score(truth[0], predicted[0]))
        assert list(row.values["brier"]) == names
        assert list(row.values["brier" + VALIDATION]) == ["p0", "p1", "p2", "p3"]
        assert row.facts["folds"] == 4 and row.complete

    def test_a_threshold_is_chosen_on_validation_samples(self, make_study: MakeStore, study: Task) -> None:
        """Rates at the best threshold use that of the validation samples, and have no column for those."""
        metrics = {
            **study.metrics,
            "predicted_probability": partial(classification.predicted_probability),
            "best_threshold": partial(diagnostic.best_threshold),
            "tuned_sensitivity": partial(diagnostic.tuned_sensitivity),
        }
        task = dataclasses.replace(study, metrics=metrics)
        one = make_study({f"p{number}": [f"p{number}"] for number in range(4)}, fixed=["t0", "t1"], task=task)

        def decided(label: float, probability: float) -> dict[str, Any]:
            return {"target_label": {"smile": label}, "predicted_probability": {"smile": probability}}

        for number, (label, probability) in enumerate([(0, 0.1), (0, 0.2), (1, 0.3), (1, 0.9)]):
            one.put(f"p{number}", decided(label, probability))
        one.put("", [("t0", decided(1, 0.27)), ("t1", decided(1, 0.2))], job=one.jobs[-1])
        row = one.pool().prediction
        # The best threshold of the validation samples is .25, and that of the test samples would be 0 or 1.
        assert row.pooled["best_threshold" + VALIDATION].value == pytest.approx(0.25)
        assert row.pooled["tuned_sensitivity"].value == 0.5
        assert "tuned_sensitivity" + VALIDATION not in row.pooled
        names = [fact.name for fact in metric_facts(task, ("pool",), fixed_test=True)]
        assert "tuned_sensitivity" in names and "tuned_sensitivity" + VALIDATION not in names

    def test_folds_without_an_ensemble_have_validation_values_only(self, make_study: MakeStore) -> None:
        """If only some folds run, no ensemble predicts the fixed test set, and the row has no plain values."""
        one = make_study({f"p{number}": [f"p{number}-1", f"p{number}-2"] for number in range(4)}, fixed=["t0"])
        one.jobs = tuple(job for job in one.jobs if not job.is_ensemble)
        self.fill(one)
        assert has_fixed_test(one.jobs)
        row = one.pool().prediction
        assert row.pooled and all(name.endswith(VALIDATION) for name in (*row.pooled, *row.values))
        assert not row.complete
        assert row.flags[-1] == "incomplete: no ensemble on the fixed test set, which needs all folds"

    def test_chance_of_validation_samples(self, make_study: MakeStore) -> None:
        """A chance level of validation samples is the chance level of their column in the table."""
        one = make_study({f"p{number}": [f"p{number}-1"] for number in range(4)}, fixed=["t0"])
        for number in range(4):
            one.put(f"p{number}", {"brier": {"smile": 0.1}}, chance={"brier": {"smile": 0.3}})
        row = one.pool().prediction
        assert list(row.values) == ["brier" + VALIDATION, "brier" + VALIDATION + "_chance"]
        score = score_of(row, MetricFacts("brier" + VALIDATION, "lower"), 0.95)
        assert (score.value, score.chance) == (pytest.approx(0.1), pytest.approx(0.3))

    def test_facts_of_validation_columns(self, study: Task) -> None:
        """Each metric of predictions has a second column whose summary mentions validation samples."""
        facts = metric_facts(study, ("subject", "pool"), fixed_test=True)
        names = [one.name for one in facts]
        plain = [one.name for one in metric_facts(study, ("subject", "pool"))]
        assert names == [name for label in plain for name in (label, label + VALIDATION)]
        by_name = {one.name: one for one in facts}
        assert by_name["r2" + VALIDATION].summary.endswith(
            "On validation samples, predicted by the network of their fold."
        )
        assert by_name["r2" + VALIDATION].chance == 0.0
        assert all(not one.name.endswith(VALIDATION) for one in metric_facts(study, ("probe",), fixed_test=True))

    def test_pooled_values_are_read_from_the_store(self, four: ManualStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pooled values read from the store equal those computed, including missing values."""
        before = four.pool()
        monkeypatch.setattr("harness.pipeline.aggregate.pooled_value", lambda *given, **named: 1 / 0)
        after = four.pool()
        assert repr(after.prediction) == repr(before.prediction)
        assert repr(after.regions) == repr(before.regions)


def test_ceiling_reads_columns_that_the_metric_itself_does_not_need(toy_task: Task) -> None:
    """The ceiling of R² follows from the clean scores, which R² itself does not need."""
    rng = np.random.default_rng(4)
    clean = rng.normal(size=40)
    noisy = clean + rng.normal(0, 0.5, 40)
    table = table_of({"target_score": noisy, "predicted_score": clean, "clean_score": clean})
    task = dataclasses.replace(
        toy_task,
        metrics={
            **toy_task.metrics,
            "target_score": partial(regression.target_score),
            "predicted_score": partial(regression.predicted_score),
            "clean_score": partial(regression.clean_score),
            "r2": partial(regression.r2),
        },
    )
    found = pooled_value(task, "r2", [table], one_each(40), folds={}, paired=False)["score"]
    slope, intercept = np.polyfit(clean, noisy, 1)
    assert found["ceiling"] == pytest.approx(r2_score(noisy, slope * clean + intercept))
    assert found["missing"] == 0
