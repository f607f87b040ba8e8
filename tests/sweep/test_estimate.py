"""Estimates of a run: missing cells, time, memory and disk."""

from __future__ import annotations

import dataclasses
import importlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from harness.cli.console import console, show_estimate
from harness.core.registry import MODELS
from harness.models.unet import unet
from harness.sweep import probe
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


PLUGIN = """
import ctypes, os, time
from harness.core.registry import MODELS
from harness.models.unet import unet

@MODELS.register("broken")
def broken(in_channels, outputs):
    raise ValueError("too wide")

@MODELS.register("crashing")
def crashing(in_channels, outputs):
    ctypes.string_at(0)

@MODELS.register("exiting")
def exiting(in_channels, outputs):
    os._exit(7)

@MODELS.register("quitting")
def quitting(in_channels, outputs):
    raise SystemExit(3)

@MODELS.register("hanging")
def hanging(in_channels, outputs):
    time.sleep(1000)

@MODELS.register("printing")
def printing(in_channels, outputs):
    print("text " * 100_000)
    return unet(in_channels=in_channels, outputs=outputs, width=2, depth=2)
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A package with models that cannot be timed, as installed by pip."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "faulty_models.py").write_text(PLUGIN)
    (folder / "faulty-1.0.dist-info").mkdir()
    (folder / "faulty-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (folder / "faulty-1.0.dist-info" / "entry_points.txt").write_text("[harness.plugins]\nx = faulty_models\n")
    known = dict(MODELS._entries)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        importlib.import_module("faulty_models")
        yield "faulty_models"
    MODELS._entries = known


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("broken", "ValueError: too wide"),
        ("crashing", "it ended the process (SIGSEGV)"),
        ("exiting", "it ended the process (exit code 7)"),
        ("quitting", "it ended the process (exit code 3)"),
        ("hanging", "it did not finish within 20 s"),
    ],
)
def test_model_that_cannot_be_timed(
    planned: Callable[..., Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plugin: str, model: str, why: str
) -> None:
    """The estimate says why; the model fails later in its own cell, and other models are timed."""
    monkeypatch.setattr(probe, "LIMIT_S", 20.0 if model == "hanging" else 120.0)
    plan = planned(tmp_path, model=f"unet,{model}", model__width=None, model__depth=None, model__output_bias=None)
    said: list[str] = []
    found = estimate(plan, said.append)
    assert (found.cells, found.unknown) == (30, why)
    waits = f"timing a training step of the model {model} for the estimate, for at most 20 s"
    assert model != "hanging" or waits in said
    assert len(found.of_training) == 3 and found.seconds > 0


def test_estimate_of_unknown_time(
    planned: Callable[..., Plan], tmp_path: Path, plugin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """If no network could be timed, the time is unknown instead of zero."""
    plan = planned(tmp_path, model="exiting", model__width=None, model__depth=None, model__output_bias=None)
    found = estimate(plan)
    show_estimate(console(), plan, found)
    shown = capsys.readouterr().out
    assert "An unknown time with 1 at a time" in shown and "its process" not in shown
    assert "the estimate lacks their time: it ended the process (exit code 7)" in shown


def test_output_of_a_timed_model_is_not_shown(
    planned: Callable[..., Plan], tmp_path: Path, plugin: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """A model may print any amount of text."""
    found = estimate(planned(tmp_path, model="printing", model__width=None, model__depth=None, model__output_bias=None))
    assert found.unknown == "" and found.seconds > 0
    assert capfd.readouterr().out == ""


def only_here(in_channels: int, outputs: int) -> torch.nn.Module:
    """A small network."""
    return unet(in_channels, outputs, width=2, depth=1)


def test_model_of_this_process_is_timed(planned: Callable[..., Plan], tmp_path: Path) -> None:
    """A component that only this process knows, such as one of a notebook, is timed here."""
    known = dict(MODELS._entries)
    try:
        MODELS.register("only_here")(only_here)
        found = estimate(
            planned(tmp_path, model="only_here", model__width=None, model__depth=None, model__output_bias=None)
        )
    finally:
        MODELS._entries = known
    assert found.unknown == "" and found.seconds > 0


def test_model_that_needs_more_samples_is_timed_with_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit to a few samples that fails is repeated with all; if this fails too, the time is unknown instead of 0."""
    sizes: list[int] = []

    def fit(build: object, recipe: object, adapter: object, spec: object, some: Any, *given: Any, seed: int) -> None:
        sizes.append(len(some))
        if len(some) < least:
            raise ValueError(f"{least} samples are needed")

    class Adapter:
        """One item per sample."""

        def inputs(self, sample: object) -> list[Any]:
            return [np.zeros((1, 1, 2, 2), np.float32)]

        def targets(self, sample: object, targets: object) -> dict[str, Any]:
            return {}

    monkeypatch.setattr(probe, "train", fit)
    monkeypatch.setattr(probe, "_predict", lambda *given: None)
    given = (Mock(), Mock(), Adapter(), Mock(width=1, targets=()), [Mock()] * 100)
    least = 60
    cost = probe._fitted(*given)
    assert sizes == [40, 100] and 0 < cost.fit_s < 1e-3
    least = 200
    with pytest.raises(ValueError, match="200 samples are needed"):
        probe._fitted(*given)


def test_busy_time_of_other_programs_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, waiting is not part of a step."""
    assert probe._elapsed(lambda: time.sleep(0.3)) < 0.1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 seconds"), (119, "119 seconds"), (120, "2.0 minutes"), (9000, "2.5 hours"), (4.5 * 86400, "4.5 days")],
)
def test_time_in_words(seconds: float, text: str) -> None:
    """Times are shown in the largest unit of which there are at least two."""
    zero = Estimate(0, 0, 0, 0, 0.0, 0.0, 0.0, 1, {})
    assert dataclasses.replace(zero, seconds=seconds).time_text == text


def test_process_that_does_not_start_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the process for timing ends while it starts, the reason is given, and it is not started again and again."""
    probe._Process.stop()
    monkeypatch.setattr(probe, "_CODE", "import sys; sys.exit(3)")
    started: list[object] = []
    original = probe.subprocess.Popen

    def popen(*given: object, **named: object) -> object:
        started.append(given)
        return original(*given, **named)  # type: ignore[call-overload]

    monkeypatch.setattr(probe.subprocess, "Popen", popen)
    with pytest.raises(probe.ProbeError, match=r"did not start: it ended the process \(exit code 3\)"):
        probe._Process.ask(("job", "cohort", 1.0), print)  # type: ignore[arg-type]
    assert len(started) == 1
    assert probe._Process._running is None
