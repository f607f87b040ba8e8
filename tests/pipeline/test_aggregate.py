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
from sklearn.metrics import r2_score

from harness.core.task import Configuration, Task
from harness.core.types import Cohort, Split
from harness.metrics import regression
from harness.pipeline.aggregate import Pooled, _pooled_score, metric_facts, pool
from harness.pipeline.cell import Job, jobs
from harness.stats.intervals import bootstrap_interval
from harness.storage.store import CellRecord, Store, write_json, write_record

Values = Mapping[str, float | None]
NOBODY = Cohort("nobody", ())  # only the truth of a group is read from it


class Made:
    """A store that is filled by hand: one subject per fold, scores as they are given."""

    def __init__(self, configuration: Configuration, root: Path, subjects: Sequence[str], seeds: Sequence[int]) -> None:
        self.configuration, self.store, self.root = configuration, Store(root / "store"), root
        folds = [Split(("x",), ("y",), (subject,)) for subject in subjects]
        self.jobs = tuple(jobs(configuration, folds, seeds))

    def job(self, subject: str, seed: int = 0) -> Job:
        """The training that tests a subject."""
        return next(one for one in self.jobs if one.split.test == (subject,) and one.seed == seed)

    def put(
        self,
        subject: str,
        values: Values | Sequence[tuple[str, Values]],
        *,
        seed: int = 0,
        label: str = "",
        regions: Mapping[str, Values] | None = None,
        flags: Sequence[str] = (),
        seconds: float = 10.0,
        **more: Any,
    ) -> None:
        """Commit the cells of a training and of one score."""
        several = [(subject, values)] if isinstance(values, Mapping) else values
        scored = {
            f"{name}_{number}": {"subject": name, "values": one, "regions": regions or {}, "flags": list(flags)}
            for number, (name, one) in enumerate(several)
        }
        for cell in self.job(subject, seed).cells:
            if cell.label in ("", label) and (cell.stage != "score" or cell.label == label):
                facts = {"flags": list(flags)} if cell.stage == "score" else {}
                self.commit(cell, scored, seconds=seconds, facts=facts, **more)

    def commit(self, cell: Any, scored: Any, *, state: Any = "done", **more: Any) -> None:
        """Commit one cell."""
        folder = self.root / f"work-{cell.identity}-{state}"
        folder.mkdir(exist_ok=True)
        if cell.stage == "score":
            write_json(folder / "values.json", scored)
        record = CellRecord(
            cell.identity, cell.stage, state, cell.configuration, cell.fold, cell.seed, cell.label, **more
        )
        write_record(folder, record)
        self.store.commit(folder)

    def pool(self, **facts: Any) -> Pooled:
        """Pool all that there is."""
        return pool(self.configuration, self.jobs, NOBODY, self.store, facts=facts)


@pytest.fixture
def made(toy_task: Task, configured: Callable[[Task], Configuration], tmp_path: Path) -> Callable[..., Made]:
    """Make an empty store for the toy task."""

    def make(subjects: Sequence[str], *, seeds: Sequence[int] = (0,), task: Task = toy_task) -> Made:
        configuration = dataclasses.replace(configured(task), axes={"sequences": "T2w"})
        return Made(configuration, tmp_path, subjects, seeds)

    return make


def counts(truth: float, predicted: float, **more: float | None) -> dict[str, float | None]:
    """Scores of one subject."""
    return {"dice": 0.5, "true_count": truth, "predicted_count": predicted, **more}


def test_values_by_metric_subject_and_seed(made: Callable[..., Made]) -> None:
    """Each value is where its metric, subject and seed say."""
    one = made(["a", "b"], seeds=(0, 7))
    for number, (subject, seed) in enumerate([("a", 0), ("a", 7), ("b", 0), ("b", 7)]):
        one.put(subject, counts(1, 1, dice=number / 10), seed=seed)
    row = one.pool(data="toy").prediction
    assert row.values["dice"] == {"a": {0: 0.0, 7: 0.1}, "b": {0: 0.2, 7: 0.3}}
    assert (row.axes, row.attribution, row.complete, row.flags) == ({"sequences": "T2w"}, "", True, ())
    assert (row.facts["folds"], row.facts["seeds"], row.facts["train_s"], row.facts["data"]) == (2, 2, 10.0, "toy")


def test_samples_of_a_subject_are_averaged(made: Callable[..., Made]) -> None:
    """Sessions of one person are one value; what is undefined in one of them is left out."""
    one = made(["a"])
    one.put(
        "a",
        [
            ("a", counts(1, 1, dice=0.2, auc=None)),
            ("a", counts(1, 1, dice=0.6, auc=0.9)),
            ("z", counts(1, 1, dice=1.0)),
        ],
    )
    values = one.pool().prediction.values
    assert values["dice"] == {"a": {0: pytest.approx(0.4)}, "z": {0: 1.0}}
    assert values["auc"] == {"a": {0: 0.9}}


def test_undefined_values_are_nan(made: Callable[..., Made]) -> None:
    """A metric that is not defined for a subject is missing, not zero."""
    one = made(["a"])
    one.put("a", counts(1, 1, dice=None))
    assert math.isnan(one.pool().prediction.values["dice"]["a"][0])


def test_pooled_icc_is_that_of_the_columns(made: Callable[..., Made]) -> None:
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


def test_interval_of_a_pooled_metric_needs_six_subjects(made: Callable[..., Made]) -> None:
    """Whole subjects are drawn, the same ones whenever it is computed."""
    rng = np.random.default_rng(0)
    one = made([f"s{number}" for number in range(8)])
    for number in range(8):
        truth = float(rng.integers(5, 40))
        one.put(f"s{number}", counts(truth, truth + float(rng.integers(-4, 5))))
    score = one.pool().prediction.pooled["icc_count"]
    assert score.low < score.value < score.high
    assert score == one.pool().prediction.pooled["icc_count"]


def test_pooled_metrics_survive_a_column_that_is_only_sometimes_there(made: Callable[..., Made]) -> None:
    """The chance level of one subject may be unknown; the others keep their places."""
    one = made([f"s{number}" for number in range(7)])
    for number in range(7):
        more = {} if number == 2 else {"sensitivity_chance": 0.1}
        one.put(f"s{number}", counts(number + 1, 2 * number + 1, **more))
    assert one.pool().prediction.pooled["icc_count"].n == 7


def test_pooled_metrics_are_kept_and_follow_their_cells(made: Callable[..., Made]) -> None:
    """What was pooled is read again; one cell more is another identity."""
    one = made(["a", "b", "c"])
    for subject in ("a", "b"):
        one.put(subject, counts(3, 4))
    first = one.pool()
    assert len(list(one.store.records("pool"))) == 1
    one.pool()
    assert len(list(one.store.records("pool"))) == 1
    one.put("c", counts(9, 1))
    second = one.pool()
    assert len(list(one.store.records("pool"))) == 2
    assert (first.prediction.pooled["icc_count"].n, second.prediction.pooled["icc_count"].n) == (2, 3)


def test_nothing_done_is_an_empty_row(made: Callable[..., Made]) -> None:
    """Before the first cell there is a row without values that says so."""
    pooled = made(["a", "b"]).pool()
    row = pooled.prediction
    assert row.values == {} and row.pooled == {} and not row.complete
    assert row.flags == ("incomplete: 0 of 4 cells",)
    assert math.isnan(row.facts["train_s"])
    assert [one.attribution for one in pooled.explanations] == ["random", "gradients"]


def test_missing_cells_make_a_row_incomplete(made: Callable[..., Made]) -> None:
    """Values of what is done are shown, with how much is missing."""
    one = made(["a", "b"])
    one.put("a", counts(1, 1))
    row = one.pool().prediction
    assert not row.complete and row.flags == ("incomplete: 2 of 4 cells",)
    assert set(row.values["dice"]) == {"a"}


def test_failed_cell_shows_its_error(made: Callable[..., Made]) -> None:
    """A failure names its first line and keeps the row out of the ranking."""
    one = made(["a", "b"])
    one.put("a", counts(1, 1))
    one.commit(one.job("b").cells[0], {}, state="failed", error="ValueError: no such width (unet.py:3)")
    row = one.pool().prediction
    assert not row.complete
    assert row.flags == ("failed: 1 of 4 cells, ValueError: no such width (unet.py:3)",)


def test_failed_explanation_shows_its_error_in_its_own_row_alone(made: Callable[..., Made]) -> None:
    """Predictions and other attributions stay complete."""
    one = made(["a"])
    one.put("a", counts(1, 1))
    one.put("a", {"relevance_ap": 0.2}, label="gradients")
    explain = next(cell for cell in one.job("a").cells if (cell.stage, cell.label) == ("explain", "random"))
    one.commit(explain, {}, state="failed", error="RuntimeError: no gradient (x.py:1)")
    pooled = one.pool()
    random, gradients = pooled.explanations
    assert pooled.prediction.complete and gradients.complete and gradients.flags == ()
    assert random.flags == ("failed: 1 of 4 cells, RuntimeError: no gradient (x.py:1)",)


def test_explanations_have_their_own_values_and_seconds(made: Callable[..., Made]) -> None:
    """The row of an attribution holds its metrics and its time."""
    one = made(["a"])
    one.put("a", counts(1, 1))
    one.put("a", {"relevance_ap": 0.25}, label="random", seconds=3.0)
    row = one.pool().explanations[0]
    assert row.attribution == "random" and row.complete
    assert row.values == {"relevance_ap": {"a": {0: 0.25}}}
    assert (row.facts["explain_s"], row.facts["train_s"]) == (3.0, 10.0)


def test_collapse_is_counted_and_told_of_the_explanations_too(made: Callable[..., Made]) -> None:
    """What explains a network that predicts nothing must not be ranked either."""
    one = made(["a", "b"])
    one.put("a", counts(1, 0), flags=["collapsed"])
    one.put("b", counts(1, 1))
    for subject in ("a", "b"):
        one.put(subject, {"relevance_ap": 0.25}, label="random", flags=["flat map"])
    pooled = one.pool()
    assert pooled.prediction.flags == ("collapsed in 1 of 2 cells",)
    assert pooled.explanations[0].flags == ("collapsed in 1 of 2 cells", "flat map in 2 of 2 cells")


@pytest.mark.parametrize("stage", ["train", "score"])
def test_older_code_is_told_wherever_it_was_used(made: Callable[..., Made], stage: str) -> None:
    """A row whose training or score is of older code says so."""
    one = made(["a"])
    for cell in one.job("a").cells[:2]:
        scored = {"a": {"subject": "a", "values": counts(1, 1), "regions": {}, "flags": []}}
        one.commit(cell, scored, reused_code=cell.stage == stage)
    assert one.pool().prediction.flags == ("older code accepted",)


def test_regions_have_rows_of_their_own(made: Callable[..., Made]) -> None:
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


def test_many_subjects_have_the_interval_of_the_jackknife() -> None:
    """It agrees with the bootstrap to a tenth of its width, and a p-value has none."""
    rng = np.random.default_rng(0)
    target = rng.normal(size=200)
    table = {"target_score": target, "predicted_score": 0.7 * target + rng.normal(scale=0.5, size=200)}
    score = _pooled_score(partial(regression.r2), [table], 200, "r2")
    drawn = bootstrap_interval(r2_score, [table["target_score"], table["predicted_score"]], rng=rng)
    assert score.value == pytest.approx(r2_score(table["target_score"], table["predicted_score"]))
    assert (score.low, score.high) == pytest.approx((drawn.low, drawn.high), abs=0.1 * (drawn.high - drawn.low))
    told = _pooled_score(partial(regression.r_squared_p), [table], 200, "p")
    assert told.value < 1e-10 and math.isnan(told.low)
