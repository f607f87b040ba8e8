"""Pooling: hand-made records in, rows out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import r2_score, roc_auc_score

from harness.core.seeding import generator
from harness.core.task import Configuration, Task
from harness.core.types import Cohort, Folds, Score, Split
from harness.metrics import agreement, classification, regression
from harness.pipeline.aggregate import (
    VALIDATION,
    Pooled,
    Table,
    _pooled_score,
    _sampled,
    metric_facts,
    pool,
    pooled_value,
)
from harness.pipeline.cell import ENSEMBLE, Job, ensembles, jobs
from harness.stats.intervals import bootstrap_interval
from harness.storage.store import CellRecord, Store, write_json, write_record
from harness.sweep.catalogue import load_task

Values = Mapping[str, Any]  # metric → value, or target → value


class Made:
    """A store that is filled by hand: each subject with its samples is a fold, scores are as they are given."""

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
        self.cohort: Cohort = dataclasses.replace(cohort, samples=tuple(samples))
        self.store, self.root = Store(root / "store"), root
        self.configuration = dataclasses.replace(configured(task, self.cohort), axes={"sequences": "T2w"})
        self.samples = subjects
        folds = Folds(
            tuple(
                Split((f"x{number}",), tuple(own), ()) if fixed else Split((f"x{number}",), ("y",), tuple(own))
                for number, own in enumerate(subjects.values())
            ),
            tuple(fixed),
        )
        made = list(jobs(self.configuration, self.cohort, folds, seeds))
        self.jobs = (*made, *ensembles(made, self.cohort, folds.test))

    def job(self, subject: str, seed: int = 0) -> Job:
        """The training that evaluates a subject."""
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
        """Commit the cells of a training and of one score; values are of all its samples, or sample by sample."""
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
        """Pool all that there is."""
        return pool(self.configuration, self.jobs, self.cohort, self.store, facts=facts)

    def kept(self) -> list[str]:
        """Labels of the metrics whose pooled values the store holds, one for each record."""
        groups = (self.store.root / "pool").glob("*")
        return sorted(
            label for group in groups for one in self.store.evaluations("pool", group.name) for label in one.metrics
        )


def by_target(value: Any) -> Mapping[str, float | None]:
    """Of a plain value, that of the mask."""
    return value if isinstance(value, Mapping) else {"target": value}


Making = Callable[..., Made]


@pytest.fixture
def made(toy_task: Task, toy_cohort: Cohort, configured: Callable[..., Configuration], tmp_path: Path) -> Making:
    """Make an empty store for the toy task; subjects have one sample each, unless samples are named."""

    def make(subjects: Any, *, seeds: Sequence[int] = (0,), task: Task = toy_task, **more: Any) -> Made:
        named = subjects if isinstance(subjects, Mapping) else {name: [name] for name in subjects}
        return Made(configured, task, toy_cohort, tmp_path, named, seeds, **more)

    return make


@pytest.fixture
def told(study: Task, crowd: Cohort, studied: Callable[..., Configuration], tmp_path: Path) -> Making:
    """Make an empty store for the study of pictures."""

    def make(subjects: Any, *, seeds: Sequence[int] = (0,), task: Task = study, **more: Any) -> Made:
        named = subjects if isinstance(subjects, Mapping) else {name: [name] for name in subjects}
        return Made(studied, task, crowd, tmp_path, named, seeds, **more)

    return make


def counts(truth: float, predicted: float, **more: float | None) -> dict[str, float | None]:
    """Scores of one subject."""
    return {"dice": 0.5, "true_count": truth, "predicted_count": predicted, **more}


def test_values_by_metric_subject_and_seed(made: Making) -> None:
    """Each value is where its metric, subject and seed say."""
    one = made(["a", "b"], seeds=(0, 7))
    for number, (subject, seed) in enumerate([("a", 0), ("a", 7), ("b", 0), ("b", 7)]):
        one.put(subject, counts(1, 1, dice=number / 10), seed=seed)
    row = one.pool(data="toy").prediction
    assert row.values["dice"] == {"a": {0: 0.0, 7: 0.1}, "b": {0: 0.2, 7: 0.3}}
    assert (row.axes, row.attribution, row.complete, row.flags) == ({"sequences": "T2w"}, "", True, ())
    assert (row.facts["folds"], row.facts["seeds"], row.facts["train_s"], row.facts["data"]) == (2, 2, 10.0, "toy")


def test_samples_of_a_subject_are_averaged(made: Making) -> None:
    """Sessions of one person are one value; what is undefined in one of them is left out."""
    one = made({"a": ["a1", "a2"], "z": ["z"]})
    one.put("a", [("a1", counts(1, 1, dice=0.2, sensitivity=None)), ("a2", counts(1, 1, dice=0.6, sensitivity=0.9))])
    one.put("z", counts(1, 1, dice=1.0))
    values = one.pool().prediction.values
    assert values["dice"] == {"a": {0: pytest.approx(0.4)}, "z": {0: 1.0}}
    assert values["sensitivity"] == {"a": {0: 0.9}}


def test_undefined_values_are_nan(made: Making) -> None:
    """A metric that is not defined for a subject is missing, not zero."""
    one = made(["a"])
    one.put("a", counts(1, 1, dice=None))
    assert math.isnan(one.pool().prediction.values["dice"]["a"][0])


def test_pooled_icc_is_that_of_the_columns(made: Making) -> None:
    """Replica: ICC(1,1) = (BMS − WMS) / (BMS + WMS) over subjects, of each seed, then their mean."""
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


def test_interval_of_a_pooled_metric_needs_six_subjects(made: Making) -> None:
    """Whole subjects are drawn, the same ones whenever it is computed."""
    rng = np.random.default_rng(0)
    one = made([f"s{number}" for number in range(8)])
    for number in range(8):
        truth = float(rng.integers(5, 40))
        one.put(f"s{number}", counts(truth, truth + float(rng.integers(-4, 5))))
    score = one.pool().prediction.pooled["icc_count"]
    assert score.low < score.value < score.high
    assert score == one.pool().prediction.pooled["icc_count"]


def test_pooled_metrics_survive_a_column_that_is_only_sometimes_there(made: Making) -> None:
    """The chance level of one subject may be unknown; the others keep their places."""
    one = made([f"s{number}" for number in range(7)])
    for number in range(7):
        more = {"sensitivity": 0.5}
        one.put(f"s{number}", counts(number + 1, 2 * number + 1, **more), chance={} if number == 2 else more)
    score = one.pool().prediction.pooled["icc_count"]
    assert (score.n, score.missing) == (7, 0)


def test_pooled_metrics_are_kept_and_follow_their_cells(made: Making) -> None:
    """What was pooled is read again; one cell more is another identity."""
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


def test_new_pooled_metric_is_computed_alone(made: Making, toy_task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the store holds is not pooled again; another option of a metric is another value."""
    one = made(["a", "b", "c"])
    for number, subject in enumerate("abc"):
        one.put(subject, counts(3 + number, 4))
    before = one.pool().prediction.pooled["icc_count"]
    metrics = {**toy_task.metrics, "bias": partial(agreement.count_bias)}
    two = made(["a", "b", "c"], task=dataclasses.replace(toy_task, metrics=metrics))
    asked: list[str] = []
    true_score = _pooled_score

    def watched(component: Any, sampled: Any, label: str) -> Score:
        asked.append(label)
        return true_score(component, sampled, label)

    monkeypatch.setattr("harness.pipeline.aggregate._pooled_score", watched)
    pooled = two.pool().prediction.pooled
    assert asked == ["bias"] and pooled["icc_count"] == before
    assert pooled["bias"].value == pytest.approx(0.0)


def test_nothing_done_is_an_empty_row(made: Making) -> None:
    """Before the first cell there is a row without values that says so."""
    pooled = made(["a", "b"]).pool()
    row = pooled.prediction
    assert row.values == {} and row.pooled == {} and not row.complete
    assert row.flags == ("incomplete: 0 of 6 cells",)
    assert math.isnan(row.facts["train_s"])
    assert [one.attribution for one in pooled.explanations] == ["random", "gradients"]


def test_missing_cells_make_a_row_incomplete(made: Making) -> None:
    """Values of what is done are shown, with how much is missing."""
    one = made(["a", "b"])
    one.put("a", counts(1, 1))
    row = one.pool().prediction
    assert not row.complete and row.flags == ("incomplete: 3 of 6 cells",)
    assert set(row.values["dice"]) == {"a"}


def test_failed_cell_shows_its_error(made: Making) -> None:
    """A failure names its first line and keeps the row out of the ranking."""
    one = made(["a", "b"])
    one.put("a", counts(1, 1))
    one.commit(one.job("b").cells[0], [], state="failed", error="ValueError: no such width (unet.py:3)")
    row = one.pool().prediction
    assert not row.complete
    assert row.flags == ("failed: 1 of 6 cells, ValueError: no such width (unet.py:3)",)


def test_failed_explanation_shows_its_error_in_its_own_row_alone(made: Making) -> None:
    """Predictions and other attributions stay complete."""
    one = made(["a"])
    one.put("a", counts(1, 1))
    one.put("a", {"relevance_ap": 0.2}, label="gradients")
    explain = next(cell for cell in one.job("a").cells if (cell.stage, cell.label) == ("explain", "random"))
    one.commit(explain, [], state="failed", error="RuntimeError: no gradient (x.py:1)")
    pooled = one.pool()
    random, gradients = pooled.explanations
    assert pooled.prediction.complete and gradients.complete and gradients.flags == ()
    assert random.flags == ("failed: 1 of 5 cells, RuntimeError: no gradient (x.py:1)",)


def test_explanations_have_their_own_values_and_seconds(made: Making) -> None:
    """The row of an attribution holds its metrics and its time."""
    one = made(["a"])
    one.put("a", counts(1, 1))
    one.put("a", {"relevance_ap": 0.25}, label="random", seconds=3.0)
    row = one.pool().explanations[0]
    assert row.attribution == "random" and row.complete
    assert row.values == {"relevance_ap": {"a": {0: 0.25}}}
    assert (row.facts["explain_s"], row.facts["train_s"]) == (3.0, 10.0)


def test_collapse_is_counted_and_told_of_the_explanations_too(made: Making) -> None:
    """What explains a network that predicts nothing must not be ranked either."""
    one = made(["a", "b"])
    one.put("a", counts(1, 0), flags=["collapsed"])
    one.put("b", counts(1, 1))
    for subject in ("a", "b"):
        one.put(subject, {"relevance_ap": 0.25}, label="random", flags=["flat map"])
    pooled = one.pool()
    assert pooled.prediction.flags == ("collapsed in 1 of 2 cells",)
    assert pooled.explanations[0].flags == ("collapsed in 1 of 2 cells", "flat map in 2 of 2 cells")


@pytest.mark.parametrize("stage", ["train", "predict"])
def test_older_code_is_told_wherever_it_was_used(made: Making, stage: str) -> None:
    """A row whose training or predictions are of older code says so; values are always of today's code."""
    one = made(["a"])
    for cell in one.job("a").cells[:3]:
        one.commit(cell, [("a", counts(1, 1))], reused_code=cell.stage == stage)
    assert one.pool().prediction.flags == ("older code accepted",)


def test_regions_have_rows_of_their_own(made: Making) -> None:
    """Values within a region are those that were scored there."""
    one = made(["a", "b"])
    one.put("a", counts(1, 1), regions={"left": {"dice": 0.1}, "right": {"dice": None}})
    one.put("b", counts(1, 1), regions={"left": {"dice": 0.3}, "right": {"dice": 0.5}})
    regions = one.pool().regions
    assert regions["left"][0].values == {"dice": {"a": {0: 0.1}, "b": {0: 0.3}}}
    assert math.isnan(regions["right"][0].values["dice"]["a"][0])


def test_facts_of_metrics(toy_task: Task) -> None:
    """What a metric means comes from its registration."""
    facts = {one.name: one for one in metric_facts(toy_task, ("subject", "pool"))}
    assert list(facts) == ["dice", "sensitivity", "true_count", "predicted_count", "icc_count"]
    assert (facts["dice"].direction, facts["dice"].range, facts["dice"].ceiling) == ("higher", (0, 1), 1)
    assert facts["icc_count"].level == "pooled" and facts["dice"].level == "subject"
    assert facts["true_count"].direction == "none" and math.isnan(facts["true_count"].ceiling)
    assert "Dice" in facts["dice"].source and facts["dice"].summary.startswith("Dice coefficient")
    assert [one.name for one in metric_facts(toy_task, ("explanation",))] == ["relevance_ap"]


def table_of(columns: Mapping[str, Sequence[float]], *, seed: int = 0) -> Table:
    """Columns over samples ``0``, ``1``, … as a table; NaN is a value that is not defined."""
    table = Table()
    for metric, values in columns.items():
        for number, value in enumerate(values):
            table.put(metric, str(number), seed, None if math.isnan(value) else float(value))
    return table


def one_each(count: int) -> dict[str, str]:
    """Sample → subject, where everybody has one."""
    return {str(number): f"subject-{number}" for number in range(count)}


def test_many_subjects_have_the_interval_of_the_jackknife() -> None:
    """It agrees with the bootstrap to a tenth of its width, and a p-value has none."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=200)
    table = {"target_score": target, "predicted_score": 0.7 * target + rng.normal(scale=0.5, size=200)}
    sampled = _sampled([table_of(table)], set(table), one_each(200))
    score = _pooled_score(partial(regression.r2), sampled, "r2")
    drawn = bootstrap_interval(r2_score, [table["target_score"], table["predicted_score"]], rng=rng)
    assert score.value == pytest.approx(r2_score(table["target_score"], table["predicted_score"]))
    assert (score.low, score.high) == pytest.approx((drawn.low, drawn.high), abs=0.1 * (drawn.high - drawn.low))
    told = _pooled_score(partial(regression.r_squared_p), sampled, "p")
    assert told.value < 1e-10 and math.isnan(told.low)


class TestSamplesOfSubjects:
    """Pooled metrics see samples; intervals and missing values go by subject."""

    LABELS = (0, 1, 1, 1, 0, 0, 1, 0, 1, 0, 0, 1, 1, 0, 1, 1)
    CHANCES = (0.2, 0.7, 0.6, 0.9, 0.4, 0.1, 0.3, 0.35, 0.8, 0.6, 0.2, 0.9, 0.7, 0.1, 0.55, 0.45)

    @property
    def table(self) -> Table:
        """Sixteen labels with a probability each."""
        return table_of({"target_label": self.LABELS, "predicted_probability": self.CHANCES})

    @staticmethod
    def visits(count: int) -> dict[str, str]:
        """Two samples of each subject."""
        return {str(number): f"subject-{number // 2}" for number in range(count)}

    def auroc(self, table: Table, subjects: Mapping[str, str]) -> Score:
        """The area under the curve of a table."""
        sampled = _sampled([table], {"target_label", "predicted_probability"}, subjects)
        return _pooled_score(partial(classification.auroc), sampled, "auroc")

    def test_visits_with_different_labels_keep_them(self) -> None:
        """Scikit-learn's area over samples: a subject who was healthy and then ill is no label of one half."""
        found = self.auroc(self.table, self.visits(16))
        assert found.value == pytest.approx(roc_auc_score(self.LABELS, self.CHANCES))
        means = np.reshape(self.LABELS, (-1, 2)).mean(1)
        assert 0.5 in means
        assert found.n == 8

    def test_intervals_draw_whole_subjects(self) -> None:
        """Replica: each draw of subjects takes all of their samples."""
        labels, chances = np.array(self.LABELS), np.array(self.CHANCES)

        def area(subjects: Any) -> float:
            rows = np.concatenate([[2 * int(one), 2 * int(one) + 1] for one in np.sort(subjects)])
            if len(np.unique(labels[rows])) < 2:
                return math.nan
            return float(roc_auc_score(labels[rows], chances[rows]))

        drawn = bootstrap_interval(area, [np.arange(8)], rng=generator(0, "pool", "auroc"), draws=2000)
        found = self.auroc(self.table, self.visits(16))
        assert (found.low, found.high) == pytest.approx((drawn.low, drawn.high))
        assert found.low < found.value < found.high

    def test_a_repeated_visit_adds_no_certainty(self) -> None:
        """Two equal samples of everybody have the interval of one: what is drawn is the subject."""
        once = self.auroc(self.table, one_each(16))
        twice = table_of(
            {
                "target_label": np.repeat(self.LABELS, 2).tolist(),
                "predicted_probability": np.repeat(self.CHANCES, 2).tolist(),
            }
        )
        found = self.auroc(twice, self.visits(32))
        assert (found.value, found.low, found.high, found.n) == pytest.approx((once.value, once.low, once.high, 16))
        apart = self.auroc(twice, one_each(32))
        assert apart.high - apart.low < 0.9 * (once.high - once.low)

    def test_missing_counts_subjects_without_a_value(self) -> None:
        """A subject counts as long as one of its samples has all values, and its other samples are left out."""
        chances = list(self.CHANCES)
        chances[0] = chances[4] = chances[5] = math.nan
        table = table_of({"target_label": self.LABELS, "predicted_probability": chances})
        found = self.auroc(table, self.visits(16))
        assert (found.n, found.missing) == (7, 1)
        kept = [number for number in range(16) if not math.isnan(chances[number])]
        expected = roc_auc_score([self.LABELS[one] for one in kept], [chances[one] for one in kept])
        assert found.value == pytest.approx(expected)

    def test_missing_is_known_where_there_is_no_interval(self) -> None:
        """Also of a p-value, and of many subjects."""
        rng = np.random.default_rng(0)
        target = rng.normal(size=120)
        predicted = target + rng.normal(size=120)
        predicted[:5] = math.nan
        table = table_of({"target_score": target.tolist(), "predicted_score": predicted.tolist()})
        sampled = _sampled([table], {"target_score", "predicted_score"}, one_each(120))
        for component, label in ((regression.r2, "r2"), (regression.r_squared_p, "p")):
            found = _pooled_score(partial(component), sampled, label)
            assert (found.n, found.missing) == (115, 5)
        assert _pooled_score(partial(regression.r2), sampled, "r2").value == pytest.approx(
            r2_score(target[5:], predicted[5:])
        )

    def test_chance_is_worked_out_from_the_columns(self) -> None:
        """The balanced accuracy of a constant answer is one over the number of classes that occur."""
        table = table_of({"target_class": [0, 1, 3, 3, 1, 0], "predicted_class": [0, 1, 3, 1, 1, 1]})
        sampled = _sampled([table], {"target_class", "predicted_class"}, one_each(6))
        found = _pooled_score(partial(classification.balanced_accuracy), sampled, "balanced_accuracy")
        assert found.value == pytest.approx((0.5 + 1 + 0.5) / 3)
        assert found.chance == pytest.approx(1 / 3)

    def test_chance_that_is_constant_is_a_fact_of_the_metric(self, study: Task) -> None:
        """R² of the mean is zero and a random ranking has an area of one half, whatever the columns."""
        facts = {one.name: one for one in metric_facts(study, ("pool",))}
        assert (facts["r2"].chance, facts["auroc"].chance) == (0.0, 0.5)
        assert math.isnan(facts["balanced_accuracy"].chance)
        assert math.isnan(self.auroc(self.table, one_each(16)).chance)

    def test_ceiling_is_worked_out_from_columns_of_its_own(self) -> None:
        """Noise bounds R²; a sample whose clean score is unknown is not missing, it says nothing of the bound."""
        rng = np.random.default_rng(1)
        clean = rng.normal(size=20)
        target, clean = clean + rng.normal(size=20), np.r_[clean[:15], np.full(5, math.nan)]
        columns = {"target_score": target, "predicted_score": 0.5 * target, "clean_score": clean}
        task = load_task("lsm")
        found = pooled_value(task, "r2", [table_of(columns)], one_each(20), paired=False)["score"]
        assert found["ceiling"] == pytest.approx(np.corrcoef(target[:15], clean[:15])[0, 1] ** 2)
        assert (found["n"], found["missing"]) == (20, 0)
        assert found["value"] == pytest.approx(r2_score(target, 0.5 * target))

    def test_seeds_are_pooled_apart_and_averaged(self) -> None:
        """The mean over seeds of the area of each; a seed without a sample leaves that sample out."""
        table = self.table
        other = [1 - one for one in self.CHANCES]
        for number, (label, chance) in enumerate(zip(self.LABELS, other, strict=True)):
            if number != 3:
                table.put("target_label", str(number), 1, label)
                table.put("predicted_probability", str(number), 1, chance)
        found = self.auroc(table, one_each(16))
        rest = [number for number in range(16) if number != 3]
        second = roc_auc_score([self.LABELS[one] for one in rest], [other[one] for one in rest])
        assert found.value == pytest.approx((roc_auc_score(self.LABELS, self.CHANCES) + second) / 2)


def answers(age: float, smile: float, hair: float, *, said: tuple[float, float, float]) -> dict[str, Any]:
    """Scores of one picture: its truth and what was said of it."""
    return {
        "target_score": {"age": age},
        "predicted_score": {"age": said[0]},
        "target_label": {"smile": smile},
        "predicted_probability": {"smile": said[1]},
        "brier": {"smile": (said[1] - smile) ** 2},
        "target_class": {"hair": hair},
        "predicted_class": {"hair": said[2]},
    }


class TestSeveralTargets:
    """Rows of a study with three targets of different kinds and two pictures a subject."""

    # age, smile and hair of eight pictures, two of each subject, and what is said of them
    TRUTH = (
        *((20.0, 0, 0), (25.0, 1, 0), (40.0, 1, 1), (50.0, 1, 1)),
        *((60.0, 0, 2), (70.0, 1, 2), (33.0, 0, 1), (44.0, 0, 1)),
    )
    SAID = (
        *((25.0, 0.3, 0), (25.0, 0.6, 1), (30.0, 0.8, 1), (60.0, 0.2, 1)),
        *((50.0, 0.4, 2), (72.0, 0.9, 0), (30.0, 0.5, 1), (41.0, 0.1, 2)),
    )

    @pytest.fixture
    def four(self, told: Making) -> Made:
        """Four subjects with two pictures each, in a fold of their own."""
        one = told({f"p{number}": [f"p{number}-1", f"p{number}-2"] for number in range(4)})
        self.fill(one)
        return one

    def fill(self, one: Made) -> None:
        """Put what is true and said of eight pictures."""
        for number in range(4):
            one.put(
                f"p{number}",
                [
                    (
                        f"p{number}-{visit + 1}",
                        answers(*self.TRUTH[2 * number + visit], said=self.SAID[2 * number + visit]),
                    )
                    for visit in range(2)
                ],
            )

    def test_each_pooled_metric_is_of_the_target_that_has_its_columns(self, four: Made) -> None:
        """R² of the age, the area of the smile and the balanced accuracy of the hair, over pictures."""
        pooled = four.pool().prediction.pooled
        truth, said = (np.array(one).T for one in (self.TRUTH, self.SAID))
        assert pooled["r2"].value == pytest.approx(r2_score(truth[0], said[0]))
        assert pooled["auroc"].value == pytest.approx(roc_auc_score(truth[1], said[1]))
        assert pooled["balanced_accuracy"].value == pytest.approx(np.mean([1 / 2, 3 / 4, 1 / 2]))
        assert {score.n for score in pooled.values()} == {4}

    def test_values_of_samples_are_of_their_target(self, four: Made) -> None:
        """A metric of one target is not averaged with those of others."""
        values = four.pool().prediction.values
        expected = [(self.SAID[one][1] - self.TRUTH[one][1]) ** 2 for one in (0, 1)]
        assert values["brier"]["p0"] == {0: pytest.approx(np.mean(expected))}
        assert values["target_score"]["p1"] == {0: 45.0}

    def test_each_target_has_lines_of_its_own(self, four: Made) -> None:
        """The regions' table lists every target that is one value of a sample."""
        lines = four.pool().regions
        assert list(lines) == ["age", "smile", "hair"]
        assert set(lines["smile"][0].values) == {"target_label", "predicted_probability", "brier"}

    def test_the_objective_is_compared_subject_by_subject(self, four: Made, study: Task) -> None:
        """Pseudo-values of the area have one number per subject, and their mean is near the area."""
        row = four.pool().prediction
        assert study.objective == "auroc"
        assert list(row.values["auroc"]) == ["p0", "p1", "p2", "p3"]
        truth, said = (np.array(one).T for one in (self.TRUTH, self.SAID))
        whole = roc_auc_score(truth[1], said[1])
        kept = [np.delete(np.arange(8), (2 * one, 2 * one + 1)) for one in range(4)]
        without = np.array([roc_auc_score(truth[1][rows], said[1][rows]) for rows in kept])
        assert [of[0] for of in row.values["auroc"].values()] == pytest.approx(whole - 3 * (without - without.mean()))

    def test_explained_scalars_have_rows_of_their_own(self, told: Making) -> None:
        """The whole row is the mean over scalars, and each scalar has a line beside its target's."""
        one = told({"p0": ["p0-1", "p0-2"]})
        values = [("p0-1", answers(20.0, 0, 0, said=(25.0, 0.3, 0)))]
        one.put("p0", values)
        maps = {"relevance_ap": {"age": 0.2, "smile": 0.4, "hair": 0.9}}
        one.put("p0", [("p0-1", maps)], label="random")
        pooled = one.pool()
        row = next(row for row in pooled.explanations if row.attribution == "random")
        assert row.values["relevance_ap"] == {"p0": {0: pytest.approx(0.5)}}
        lines = {name: [row for row in rows if row.attribution == "random"] for name, rows in pooled.regions.items()}
        assert lines["smile"][0].values["relevance_ap"] == {"p0": {0: 0.4}}

    def test_folds_beside_a_fixed_test_set_have_columns_of_their_own(self, told: Making) -> None:
        """Plain names are of the ensemble on the test set; those of validation samples end with a word that says so."""
        names = [f"t{number}" for number in range(4)]
        one = told({f"p{number}": [f"p{number}-1", f"p{number}-2"] for number in range(4)}, fixed=names)
        self.fill(one)
        ensemble = one.jobs[-1]
        assert (ensemble.fold, ensemble.evaluated) == (ENSEMBLE, tuple(names))
        one.put(
            "",
            [(name, answers(*self.TRUTH[number], said=self.SAID[number + 2])) for number, name in enumerate(names)],
            job=ensemble,
        )
        row = one.pool().prediction
        truth, said = (np.array(one).T for one in (self.TRUTH, self.SAID))
        assert row.pooled["r2"].value == pytest.approx(r2_score(truth[0][:4], said[0][2:6]))
        assert row.pooled["r2" + VALIDATION].value == pytest.approx(r2_score(truth[0], said[0]))
        assert list(row.values["brier"]) == names
        assert list(row.values["brier" + VALIDATION]) == ["p0", "p1", "p2", "p3"]
        assert row.facts["folds"] == 4 and row.complete

    def test_facts_of_validation_columns(self, study: Task) -> None:
        """Each metric of predictions is there twice, with a sentence that says what the second is of."""
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

    def test_pooled_again_is_read_from_the_store(self, four: Made, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was pooled is the same when it is read, missing values and all."""
        before = four.pool()
        monkeypatch.setattr("harness.pipeline.aggregate.pooled_value", lambda *given, **named: 1 / 0)
        after = four.pool()
        assert repr(after.prediction) == repr(before.prediction)
        assert repr(after.regions) == repr(before.regions)


def test_ceiling_reads_columns_that_the_metric_itself_does_not_need(toy_task: Task) -> None:
    """The highest R² that noisy scores allow follows from the scores without noise, and misses nobody."""
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
    found = pooled_value(task, "r2", [table], one_each(40), paired=False)["score"]
    slope, intercept = np.polyfit(clean, noisy, 1)
    assert found["ceiling"] == pytest.approx(r2_score(noisy, slope * clean + intercept))
    assert found["missing"] == 0
