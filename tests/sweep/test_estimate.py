"""Estimates of a run: missing cells, time, memory and disk."""

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

Overrides = Callable[..., dict[str, Any]]


@pytest.fixture
def planned(tiny_overrides: Overrides) -> Callable[..., Plan]:
    """A function that prepares a tiny run."""
    return lambda out, **more: prepare(resolve(to_overrides(**tiny_overrides(out, **more))))


def test_counts_before_anything_ran(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """Two configurations with three folds have 6 trainings and 30 cells, all missing."""
    found = estimate(planned(tmp_path, sequences="T2w,T2w+FLAIR"))
    assert (found.configurations, found.trainings, found.cells, found.done) == (2, 6, 30, 0)
    assert found.workers == 1 and found.seconds > 0 and found.memory_bytes > 0 and found.disk_bytes > 0
    assert len(found.of_training) == found.trainings and sum(found.of_training.values()) == found.seconds


def test_estimating_runs_nothing(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """Estimating creates no store and restores threads and random state."""
    plan = planned(tmp_path)
    torch.manual_seed(3)
    before = torch.get_num_threads(), torch.get_rng_state()
    estimate(plan)
    assert not plan.store.root.exists()
    assert torch.get_num_threads() == before[0] and torch.equal(torch.get_rng_state(), before[1])


def test_finished_run_costs_nothing(planned: Callable[..., Plan], finished: Path) -> None:
    """A finished run has no cells to compute and takes no time."""
    found = estimate(planned(finished))
    assert (found.cells, found.done, found.seconds, found.memory_bytes, found.disk_bytes) == (0, 15, 0.0, 0.0, 0.0)


def test_explanations_of_a_trained_network_cost_no_training(planned: Callable[..., Plan], finished: Path) -> None:
    """With a finished training, the estimate covers only the missing explanations."""
    found = estimate(planned(finished, attribution="random,saliency", recipe__epochs=1))
    assert (found.cells, found.done) == (6, 15)


def test_time_grows_with_the_work(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """A hundred epochs are estimated to take much longer than one."""
    short, long = (estimate(planned(tmp_path, recipe__epochs=epochs)) for epochs in (1, 300))
    assert long.seconds > 10 * short.seconds


def test_each_explanation_has_its_own_disk_space(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """If one explanation keeps maps and another sums, each takes the space of what it keeps."""

    def disk(**kept: str) -> float:
        more = {f"explanations.{label}.keep": keep for label, keep in kept.items()}
        return estimate(planned(tmp_path, attribution="random,saliency", **more)).disk_bytes

    maps, sums = disk(random="maps", saliency="maps"), disk(random="sums", saliency="sums")
    assert disk(random="maps", saliency="sums") == pytest.approx((maps + sums) / 2) != maps


def test_memory_mapped_images_need_no_memory(
    planned: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images above the memory limit are read from a file, so more of them need no more memory."""
    plan = planned(tmp_path)
    whole = estimate(plan).memory_bytes
    monkeypatch.setattr("harness.sweep.estimate.HELD_BYTES", 1000)
    bounded = estimate(plan).memory_bytes
    images = 2 * 8 * 24 * 24 * (4 + 8)  # two samples with eight slices, each with one channel and a label
    assert whole - bounded == images - 1000


def test_no_more_workers_than_jobs(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """With one training, several workers are no faster than one."""
    found = estimate(planned(tmp_path, fold=0, ray="auto", workers=64, cpus=0.01))
    assert found.workers == 1


def test_broken_model_does_not_stop_the_estimate(
    planned: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that cannot be built does not stop the estimate; it fails later in its own cell."""

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
    """Times are shown in the largest unit of which there are at least two."""
    zero = Estimate(0, 0, 0, 0, 0.0, 0.0, 0.0, 1, {})
    assert dataclasses.replace(zero, seconds=seconds).time_text == text
