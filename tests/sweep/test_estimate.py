"""The estimate: what is missing, and what it will cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.sweep.estimate import Estimate, estimate
from harness.sweep.grammar import to_overrides
from harness.sweep.plan import Plan, prepare
from harness.sweep.request import resolve

Words = Callable[..., dict[str, Any]]


@pytest.fixture
def planned(tiny_words: Words) -> Callable[..., Plan]:
    """Prepare a tiny run."""
    return lambda out, **more: prepare(resolve(to_overrides(**tiny_words(out, **more))))


def test_counts_before_anything_ran(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """Two configurations of three folds have 6 trainings and 30 cells, all missing."""
    found = estimate(planned(tmp_path, sequences="T2w,T2w+FLAIR"))
    assert (found.configurations, found.trainings, found.cells, found.done) == (2, 6, 30, 0)
    assert found.workers == 1 and found.seconds > 0 and found.memory_bytes > 0 and found.disk_bytes > 0
    assert len(found.of_training) == found.trainings and sum(found.of_training.values()) == found.seconds


def test_estimating_runs_nothing(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """No store is made, and threads and random numbers are put back."""
    plan = planned(tmp_path)
    torch.manual_seed(3)
    before = torch.get_num_threads(), torch.get_rng_state()
    estimate(plan)
    assert not plan.store.root.exists()
    assert torch.get_num_threads() == before[0] and torch.equal(torch.get_rng_state(), before[1])


def test_finished_run_costs_nothing(planned: Callable[..., Plan], finished: Path) -> None:
    """What is done is counted and not paid again."""
    found = estimate(planned(finished))
    assert (found.cells, found.done, found.seconds, found.memory_bytes, found.disk_bytes) == (0, 15, 0.0, 0.0, 0.0)


def test_explanations_of_a_trained_network_cost_no_training(planned: Callable[..., Plan], finished: Path) -> None:
    """Only the missing labels are paid for."""
    found = estimate(planned(finished, attribution="random,saliency", recipe__epochs=1))
    assert (found.cells, found.done) == (6, 15)


def test_time_grows_with_the_work(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """A hundred epochs take far longer than one on the same machine."""
    short, long = (estimate(planned(tmp_path, recipe__epochs=epochs)) for epochs in (1, 300))
    assert long.seconds > 10 * short.seconds


def test_what_is_not_held_in_memory_takes_none(
    planned: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images above the limit are read from a file: a larger cohort takes no more memory than the limit."""
    plan = planned(tmp_path)
    whole = estimate(plan).memory_bytes
    monkeypatch.setattr("harness.sweep.estimate.HELD_BYTES", 1000)
    bounded = estimate(plan).memory_bytes
    images = 2 * 8 * 24 * 24 * (4 + 8)  # two samples of eight slices, a channel and a label each
    assert whole - bounded == images - 1000


def test_no_more_workers_than_jobs(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """One training does not get faster by more workers."""
    found = estimate(planned(tmp_path, fold=0, ray="auto", workers=64, cpus=0.01))
    assert found.workers == 1


def test_network_that_cannot_run_is_no_reason_to_stop(
    planned: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken model fails in its own cell, with its error; planning goes on."""

    def broken(*given: Any) -> Any:
        raise ValueError("too wide")

    monkeypatch.setattr("harness.sweep.estimate.build_network", broken)
    found = estimate(planned(tmp_path))
    assert (found.cells, found.seconds, found.unknown) == (15, 0.0, "ValueError: too wide")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 seconds"), (119, "119 seconds"), (120, "2.0 minutes"), (9000, "2.5 hours"), (4.5 * 86400, "4.5 days")],
)
def test_time_in_words(seconds: float, text: str) -> None:
    """The largest unit of which there are at least two."""
    zero = Estimate(0, 0, 0, 0, 0.0, 0.0, 0.0, 1, {})
    assert dataclasses.replace(zero, seconds=seconds).time_text == text
