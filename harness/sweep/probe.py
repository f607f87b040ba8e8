"""Time one step of a network in a separate process, which may crash or hang without consequences for the run."""

from __future__ import annotations

import atexit
import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import torch

from harness.core.errors import HarnessError, UnknownName
from harness.core.seeding import generator
from harness.core.task import Task
from harness.core.types import Adapter, Cohort, FittedAdapter, NetworkSpec, Sample
from harness.data.table import open_cohort
from harness.models.fitting import Fitted, FittedToVolumes
from harness.pipeline.cell import Job, restored
from harness.pipeline.explain import BLOCKS
from harness.pipeline.networks import build_network, device, split_outputs, tensor_of
from harness.pipeline.train import controlled, train
from harness.recipes.recipe import Batch

__all__ = ["Cost", "ProbeError", "measure", "serve"]

LIMIT_S = 120.0
"""Seconds after which a network counts as one that cannot be timed."""

_QUIET_S = 5.0  # after this long, the user is told what is waited for
_START_S = 120.0  # imports of torch on a slow file system
_READY = "ready"
_IDLE_S = 20.0  # the process ends if nothing is asked for this long
_FITTED = 40  # training samples to which an adapter or a model is fitted for the timing
_PROBED = 2  # items in the timed batch; time is assumed to be proportional to their number
_STEPS = 3  # timed steps; the first one is a warm-up

_LOCK = threading.Lock()  # one question at a time, also if several threads plan runs

_CODE = "import sys; sys.path[:] = sys.argv[2:]; from harness.sweep.probe import serve; serve(int(sys.argv[1]))"


class ProbeError(HarnessError):
    """A network that cannot be timed."""


@dataclass(frozen=True)
class Cost:
    """Cost of one item of a configuration.

    Parameters
    ----------
    train_s, infer_s : seconds of a training step and of a prediction, per item
    fit_s : seconds per training sample of a model that fits itself; 0 for other models
    parameters : number of parameters of the network
    item_bytes : size of an item's inputs and targets
    share : items drawn per epoch, divided by the number of items
    slices : whether items are slices of a volume
    sums : number of sums of maps that an explanation keeps per fold, if it keeps sums
    """

    train_s: float
    infer_s: float
    fit_s: float
    parameters: int
    item_bytes: int
    share: float
    slices: bool
    sums: int


def measure(job: Job, cohort: Path, say: Callable[[str], None] = lambda _: None) -> Cost:
    """Time one training step and one prediction of a job's network in a separate process.

    Parameters
    ----------
    job : the job
    cohort : file of the cohort's table
    say : called with a message if the answer takes longer than a few seconds

    Raises
    ------
    ProbeError
        If the network raises an error, ends its process, or does not finish within
        ``LIMIT_S``.

    Notes
    -----
    A component that is registered in this process only, such as one of a notebook, is
    unknown elsewhere and therefore timed here.
    """
    with _LOCK:
        try:
            answer = _Process.ask((job, cohort, LIMIT_S), say)
        except OSError as error:
            raise ProbeError(f"the process for timing networks cannot be reached: {error}") from None
    if isinstance(answer, UnknownName):
        return _timed(job, open_cohort(cohort))
    if isinstance(answer, Cost):
        return answer
    raise ProbeError(str(answer))


class _Process:
    """The process in which networks are timed. It is kept for further networks, because its start takes seconds."""

    _running: _Process | None = None

    def __init__(self, path: Sequence[str]) -> None:
        self.path = tuple(path)
        self._here, there = Pipe()
        command = [sys.executable, "-c", _CODE, str(there.fileno()), *path]
        silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=(there.fileno(),), **silent)  # type: ignore[call-overload]
        there.close()
        answer = self._receive(_START_S, _START_S)
        if answer != _READY:
            raise ProbeError(f"the process for timing networks did not start: {answer}")

    @classmethod
    def current(cls) -> _Process:
        """The running process; a new one if there is none, or if this process imports from other folders now."""
        path = [one or str(Path.cwd()) for one in sys.path]
        if cls._running is None or cls._running._process.poll() is not None or cls._running.path != tuple(path):
            cls.stop()
            cls._running = cls(path)
        return cls._running

    def end(self) -> None:
        """End this process."""
        self._process.kill()
        self._process.wait()
        self._here.close()

    @classmethod
    def stop(cls) -> None:
        """End the running process, if there is one."""
        if cls._running is not None:
            cls._running.end()
            cls._running = None

    @classmethod
    def ask(cls, question: tuple[Job, Path, float], say: Callable[[str], None]) -> Any:
        """Answer to one question: a cost, an error of a component that is unknown there, or the text of an error."""
        running = cls.current()
        try:
            running._here.send(question)
        except OSError:  # it ended because it was idle; a new one is asked once
            cls.stop()
            running = cls.current()
            running._here.send(question)
        job, _, limit_s = question
        quiet_s = min(_QUIET_S, limit_s)
        if not running._answers(quiet_s):
            name = job.configuration.task["model"]["use"]
            say(f"timing a training step of the model {name} for the estimate, for at most {limit_s:.0f} s")
        return running._receive(limit_s - quiet_s, limit_s)

    def _answers(self, limit_s: float) -> bool:
        """Whether there is something to receive, also the end of the process."""
        try:
            return self._here.poll(limit_s)
        except (EOFError, OSError):
            return True

    def _receive(self, left_s: float, limit_s: float) -> Any:
        """What the process answers in the time that is left of its limit, or why it does not."""
        try:
            if self._here.poll(left_s):
                return self._here.recv()
            why = f"it did not finish within {limit_s:.0f} s"
        except (EOFError, OSError):
            code = self._process.wait()
            why = f"it ended the process ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"
        self.end()
        if _Process._running is self:
            _Process._running = None
        return why


atexit.register(_Process.stop)


def serve(descriptor: int) -> None:
    """Answer questions until the other process ends or asks nothing for some time.

    Parameters
    ----------
    descriptor : file descriptor of the connection
    """
    with Connection(descriptor) as other:
        other.send(_READY)
        while other.poll(_IDLE_S):
            with contextlib.suppress(EOFError):
                job, cohort, limit_s = other.recv()
                signal.alarm(int(limit_s) + 10)  # ends this process, should the other one be gone
                other.send(_answer(job, cohort))
                signal.alarm(0)
                continue
            return


def _answer(job: Job, cohort: Path) -> Cost | UnknownName | str:
    try:
        return _timed(job, open_cohort(cohort))
    except UnknownName as error:
        return error
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _timed(job: Job, cohort: Cohort) -> Cost:
    """Time a training step and a prediction, or the fit of a model that fits itself to some of the samples."""
    task = restored(job.configuration)
    own = {one.id: one for one in cohort.samples}
    adapter: Adapter = task.adapter()
    spec = adapter.spec(cohort)
    training = [own[name] for name in job.split.train]
    if isinstance(adapter, FittedAdapter):
        # The fitted state does not affect the time, so a few subjects suffice.
        adapter = adapter.fit(training[:_FITTED], spec.targets)
    with controlled(task.recipe().threads, 0):
        network = build_network(task, spec).to(device())
        if isinstance(network, Fitted | FittedToVolumes):
            return _fitted(task, network, adapter, spec, training)
        return _descended(task, network, adapter, spec, training[0])


def _descended(task: Task, network: torch.nn.Module, adapter: Adapter, spec: NetworkSpec, sample: Sample) -> Cost:
    recipe = task.recipe()
    targets, batch = adapter.targets(sample, spec.targets), _batch(adapter, spec, sample)
    optimiser = recipe.optimiser(list(network.parameters()))
    rng = generator(0, "probe")

    def step() -> None:
        changed = recipe.augment(rng, batch).to(device())
        loss = recipe.loss(split_outputs(network(*changed.inputs), spec.targets), changed, spec.targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        loss.item()

    count, items = len(batch.inputs[0]), len(adapter.inputs(sample)[0])
    return Cost(
        train_s=min([_elapsed(step) for _ in range(_STEPS)][1:]) / count,
        infer_s=_elapsed(partial(_predict, network, batch, spec)) / count,
        fit_s=0.0,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        item_bytes=_item_bytes(adapter, spec, sample),
        share=len(recipe.sample(generator(0, "probe"), targets)) / items,
        slices=items > 1,
        sums=BLOCKS * len(spec.targets),
    )


def _fitted(
    task: Task, network: torch.nn.Module, adapter: Adapter, spec: NetworkSpec, training: Sequence[Sample]
) -> Cost:
    """Cost of a model that fits itself, from a fit to at most 40 samples; its time is assumed to be proportional.

    A model that cannot be fitted to so few samples is fitted to all.
    """
    item_bytes = _item_bytes(adapter, spec, training[0])

    def fit(some: Sequence[Sample]) -> float:
        """Seconds per sample."""
        build = partial(build_network, task, spec)
        seconds = _elapsed(lambda: train(build, task.recipe(), adapter, spec, some, (), seed=0))
        return max(seconds, 1e-3) / len(some)

    try:
        fit_s = fit(training[:_FITTED])
    except (HarnessError, ValueError):
        fit_s = fit(training)
    batch = _batch(adapter, spec, training[0])
    infer_s = _elapsed(partial(_predict, network, batch, spec)) / len(batch.inputs[0])
    return Cost(
        train_s=3 * infer_s,  # of an explanation: a forward pass and a backward pass of twice its cost
        infer_s=infer_s,
        fit_s=fit_s,
        parameters=item_bytes // 4 * spec.width,
        item_bytes=item_bytes,
        share=0.0,
        slices=len(adapter.inputs(training[0])[0]) > 1,
        sums=BLOCKS * len(spec.targets),
    )


def _batch(adapter: Adapter, spec: NetworkSpec, sample: Sample) -> Batch:
    targets = adapter.targets(sample, spec.targets)
    return Batch(
        tuple(tensor_of(one[:_PROBED]) for one in adapter.inputs(sample)),
        {name: tensor_of(one[:_PROBED]) for name, one in targets.items()},
    )


def _item_bytes(adapter: Adapter, spec: NetworkSpec, sample: Sample) -> int:
    return sum(one[0].nbytes for one in (*adapter.inputs(sample), *adapter.targets(sample, spec.targets).values()))


@torch.inference_mode()
def _predict(network: torch.nn.Module, batch: Batch, spec: NetworkSpec) -> None:
    split_outputs(network(*batch.to(device()).inputs), spec.targets)


def _elapsed(step: Any) -> float:
    """Seconds of a step on an idle machine.

    Notes
    -----
    On the CPU, wall time includes the time of other programs on a busy machine, and the
    CPU time of several threads adds up. The smaller one is closest to the time that the
    step takes alone.
    """
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    step()
    if device().type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter() - wall_s
    return min(time.perf_counter() - wall_s, time.process_time() - cpu_s)
