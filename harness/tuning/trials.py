"""Candidates of searches: proposed by Optuna, trained in this process or as trials of Ray Tune."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from harness.core.errors import CellError, first_line
from harness.core.identity import Code, codes_read, remember
from harness.core.settings import RunSettings
from harness.core.space import Choice
from harness.data.table import open_cohort
from harness.pipeline.cell import restored
from harness.storage.process import Process
from harness.storage.store import Store
from harness.tuning.jobs import check_resources, fit, keep_to_granted_gpus, opened, storage
from harness.tuning.nested import FACTOR, Candidate, Report, Search, epochs_of, train_candidate
from harness.tuning.resources import cluster, room
from harness.tuning.spaces import decoded, distributions
from harness.tuning.studies import earlier, kept_in, reachable, sampler
from harness.tuning.watch import end_with

__all__ = ["Ended", "try_here", "try_on_ray"]

Ended = Callable[[Search, tuple[Candidate, ...], float, int], None]
"""Called when a search has ended, with its candidates, its seconds and the number of parallel trainings."""

_NUMBER = "search"  # key of the search's index in a trial's config; never the key of an option


def try_here(search: Search, settings: RunSettings) -> tuple[Candidate, ...]:
    """Run a search with Optuna in this process, one candidate after the other."""
    import optuna

    cohort = open_cohort(search.cohort)
    with _quiet(), reachable(settings):
        found = list(earlier(search, settings))
        study = optuna.create_study(
            direction="maximize",
            load_if_exists=True,
            **kept_in(search, settings),
            sampler=sampler(search, settings),
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=_grace(search), reduction_factor=FACTOR),
        )
        for _ in range(search.trials - len(found)):
            trial = study.ask(distributions(search.space))
            values = decoded(search.space, trial.params)
            curve: list[float] = []
            report = _pruned_report(trial, epochs_of(search, values), curve)
            try:
                train_candidate(search, values, cohort, report)
            except optuna.exceptions.StorageInternalError:
                raise
            except optuna.TrialPruned:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                found.append(Candidate(values, "stopped", curve[-1], len(curve)))
            except Exception as problem:  # the candidate failed; the search continues
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                found.append(Candidate(values, "failed", None, len(curve), first_line(problem)))
            else:
                study.tell(trial, curve[-1])
                found.append(Candidate(values, "done", curve[-1], len(curve)))
    return tuple(found)


def _pruned_report(trial: Any, epochs: int, curve: list[float]) -> Report:
    """A function that records each epoch in ``curve``, and ends the training if Optuna prunes it."""
    import optuna

    def report(epoch: int, best: float) -> None:
        curve.append(best)
        trial.report(best, epoch)
        if epoch < epochs and trial.should_prune():
            raise optuna.TrialPruned

    return report


def try_on_ray(searches: Sequence[Search], store: Store, settings: RunSettings, ended: Ended) -> None:
    """Run searches one after the other in one run of Ray Tune, each with parallel candidates.

    Notes
    -----
    Each run of Tune would start new workers, which takes seconds to import torch. A
    search starts when the previous one has ended, so that at most one is lost if the
    driver is killed.
    """

    check_resources(settings)
    with _quiet(), reachable(settings):
        known = [earlier(search, settings) for search in searches]
    for search, candidates in zip(searches, known, strict=True):
        if len(candidates) == search.trials:
            ended(search, candidates, 0.0, 1)
    left = [(search, own) for search, own in zip(searches, known, strict=True) if len(own) < search.trials]
    if left:
        _try_on_ray([search for search, _ in left], [own for _, own in left], store, settings, ended)


def _try_on_ray(
    searches: Sequence[Search],
    known: Sequence[tuple[Candidate, ...]],
    store: Store,
    settings: RunSettings,
    ended: Ended,
) -> None:
    """Run searches, of which some candidates are known."""
    from ray import tune

    counts = [search.trials - len(own) for search, own in zip(searches, known, strict=True)]
    at_once = min(room(cluster(), settings), max(counts))
    trainable = tune.with_parameters(
        _try_candidate,
        searches=list(searches),
        identities=[search.identity for search in searches],
        store=store,
        codes=codes_read(),
        driver=Process.current(),
    )
    with _quiet(), reachable(settings), storage(settings.folder / "ray") as folder:
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": settings.cpus, "gpu": settings.gpus}),
            tune_config=tune.TuneConfig(
                metric="value",
                mode="max",
                num_samples=sum(counts),
                search_alg=_proposals(searches, counts, settings),
                scheduler=_rungs(searches),
                max_concurrent_trials=at_once,
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(folder),
                verbose=0,
                callbacks=[_monitor(searches, known, at_once, ended)],
                # A trial fails only if its node or worker died, so it is retried.
                failure_config=tune.FailureConfig(max_failures=2),
            ),
        )
        fit(tuner, settings.folder)


def _trial_name(trial: Any) -> str:
    return f"candidate-{trial.trial_id}"


def _try_candidate(
    config: dict[str, Any],
    searches: list[Search],
    identities: list[str],
    store: Store,
    codes: Mapping[str, Code],
    driver: Process,
) -> None:
    """The trainable: train one candidate on a worker, whose actor is reused by other candidates."""
    from ray import tune

    end_with(driver)
    keep_to_granted_gpus()
    remember(codes)
    try:
        search = searches[config[_NUMBER]]
        if search.identity != identities[config[_NUMBER]]:
            raise CellError(
                "workers must run the same code as the driver, but this worker has another version; "
                "install the same version on every node"
            )
        values = decoded(search.space, config)
        train_candidate(
            search,
            values,
            opened(search.cohort, store),
            lambda epoch, best: tune.report({"epoch": epoch, "value": best}),
        )
    except Exception as problem:  # reported as a result, because Tune would retry and print an exception
        tune.report({"error": first_line(problem)})


def _proposals(searches: Sequence[Search], counts: Sequence[int], settings: RunSettings) -> Any:
    """The search algorithm for Tune; a factory function, because its base class needs Ray."""
    from ray.tune.search import Searcher
    from ray.tune.search.optuna import OptunaSearch

    class Proposals(Searcher):
        """Proposes candidates from one Optuna study per search; a search starts when the previous one has ended."""

        def __init__(self) -> None:
            super().__init__(metric="value", mode="max")
            self._number, self._asked, self._ended = 0, 0, 0
            self._study = self._next()
            self._studies: dict[str, Any] = {}
            self._epochs: dict[str, int] = {}  # last one that the study knows

        def suggest(self, trial_id: str) -> dict[str, Any] | None:
            """The next candidate; ``None`` while the last candidates of a search are still training."""
            if self._asked == counts[self._number]:
                if self._ended < self._asked or self._number + 1 == len(searches):
                    return None
                self._number, self._asked, self._ended = self._number + 1, 0, 0
                self._study = self._next()
            self._asked += 1
            self._studies[trial_id] = self._study
            return {_NUMBER: self._number, **self._study.suggest(trial_id)}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            """Pass an epoch's result to the study; failures have no value and are passed when the trial ends."""
            if "value" in result and result["epoch"] > self._epochs.get(trial_id, 0):
                self._epochs[trial_id] = result["epoch"]
                self._studies[trial_id].on_trial_result(trial_id, result)

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            """Pass the final result to the study."""
            failed = error or "value" not in (result or {})
            if not failed:  # the epoch at which ASHA stopped it was not passed yet
                self.on_trial_result(trial_id, result or {})
            self._studies[trial_id].on_trial_complete(trial_id, None if failed else result, failed)
            self._ended += 1

        def save(self, checkpoint_path: str) -> None:
            """Do nothing, because runs are resumed from the store."""

        def _next(self) -> Any:
            one = searches[self._number]
            return OptunaSearch(
                distributions(one.space), metric="value", mode="max",
                sampler=sampler(one, settings), **kept_in(one, settings),
            )  # fmt: skip

        def __reduce__(self) -> tuple[Any, tuple[()]]:
            """Leave out the studies when Tune pickles this, because the URI of their database may have a password."""
            return Searcher, ()

    return Proposals()


def _rungs(searches: Sequence[Search]) -> Any:
    """The scheduler for Tune; a factory function, because its base class needs Ray."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    class Rungs(FIFOScheduler):
        """One ASHA scheduler per search, so that candidates are compared within their search."""

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self._own = [
                ASHAScheduler(
                    time_attr="epoch",
                    metric="value",
                    mode="max",
                    max_t=_longest(search),
                    grace_period=_grace(search),
                    reduction_factor=FACTOR,
                )
                for search in searches
            ]

        def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
            """Do nothing, because metric and mode are already set."""
            return True

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            self._of(trial).on_trial_add(tune_controller, trial)

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            decision: str = self._of(trial).on_trial_result(tune_controller, trial, result)
            return decision

        def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
            self._of(trial).on_trial_complete(tune_controller, trial, result)

        def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
            self._of(trial).on_trial_remove(tune_controller, trial)

        def _of(self, trial: Any) -> Any:
            return self._own[trial.config[_NUMBER]]

    return Rungs()


def _monitor(searches: Sequence[Search], known: Sequence[tuple[Candidate, ...]], at_once: int, ended: Ended) -> Any:
    """The driver's callback; a factory function, because its base class needs Ray.

    Notes
    -----
    Tune takes an error in most callbacks for one of the trial, which it repeats; only one that
    is raised at the end of a step ends the run.
    """
    from ray import tune

    fatal: list[Exception] = []

    class Monitor(tune.Callback):
        """Collects the reports of each trial and calls ``ended`` when a search has ended."""

        def __init__(self) -> None:
            self._seen: dict[int, dict[str, dict[str, Any]]] = {}
            self._finished: dict[int, int] = {}
            self._since = time.perf_counter()

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._of(trial)

        def on_trial_result(
            self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
        ) -> None:
            seen = self._of(trial)
            if "error" in result:
                seen["error"] = result["error"]
            elif "value" in result:  # by epoch, because a trial that moved to another node starts again
                seen["curve"][result["epoch"]] = result["value"]

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._end(trial)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._of(trial)["error"] = "its worker died"
            self._end(trial)

        def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
            if fatal:
                raise fatal[0]

        def _of(self, trial: Any) -> dict[str, Any]:
            """Reports of a trial; trials are kept in the order in which they started."""
            own = self._seen.setdefault(trial.config[_NUMBER], {})
            return own.setdefault(trial.trial_id, {"config": dict(trial.config), "curve": {}, "error": ""})

        def _end(self, trial: Any) -> None:
            number = trial.config[_NUMBER]
            self._finished[number] = self._finished.get(number, 0) + 1
            search = searches[number]
            if self._finished[number] + len(known[number]) == search.trials:
                now, before = time.perf_counter(), self._since
                self._since = now
                trials = tuple(_candidate(search, seen) for seen in self._seen.pop(number).values())
                try:
                    ended(search, (*known[number], *trials), now - before, at_once)
                except Exception as error:  # raised at the end of the step
                    fatal.append(error)

        def __reduce__(self) -> tuple[Any, tuple[()]]:
            """Replace the callback when Tune pickles it to restore a run; runs are resumed from the store instead."""
            return tune.Callback, ()

    return Monitor()


def _candidate(search: Search, seen: Mapping[str, Any]) -> Candidate:
    values = decoded(search.space, seen["config"])
    curve = [seen["curve"][epoch] for epoch in sorted(seen["curve"])]
    if seen["error"] or not curve:
        return Candidate(values, "failed", None, len(curve), seen["error"] or "it did not start")
    return Candidate(values, "done" if len(curve) == epochs_of(search, values) else "stopped", curve[-1], len(curve))


def _longest(search: Search) -> int:
    """Number of epochs of the longest candidate."""
    for one in search.space:
        if one.key == "recipe.epochs":
            return int(max(one.values) if isinstance(one, Choice) else one.high)
    return int(restored(search.configuration).recipe().epochs)


def _grace(search: Search) -> int:
    """Minimum number of epochs before a candidate may be stopped: one eighth, which leaves two or three rungs."""
    return max(1, _longest(search) // 8)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's log messages."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
