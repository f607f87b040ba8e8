"""Hyper-parameter search: a phase of its own before the grid, nested in its folds.

For every configuration × outer fold × seed, candidates are trained on a part of
that fold's *training* subjects and judged on the rest of them (the inner
validation). Neither the outer test nor the outer validation subjects are read:
the first would leak, and the second select the epoch of the final training.
With ``search_subjects`` there is one search per configuration, on subjects that
the evaluation leaves out.

Optuna's tree-structured Parzen estimator (TPE) proposes, asynchronous
successive halving (ASHA) stops bad candidates by epoch. With Ray the candidates
of a search train at once; without, Optuna alone does the same in this process.
A candidate is no cell: the store keeps one record per search, written when it
ended::

    store/search/<identity>/record.json

so the same command never searches again, and a driver that was killed redoes at
most the search it was in.

Notes
-----
TPE learns from candidates in the order in which they end. One at a time
(``workers=1``, or ``ray=off``) the same seed gives the same winner; several at
once end in an order that nobody controls, and another winner may be found. What
was found stays: the record is the result.

The winner is the candidate with the best epoch on the inner validation. That
value is optimistic (the best of many) and is never reported as performance.

References
----------
Bergstra et al. 2011 (TPE); Li et al. 2020 (ASHA); Cawley and Talbot 2010 (why
selection must be nested).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.cell import digest, hardware, restored
from harness.data.cohort import open_cohort
from harness.errors import CellError, OutOfRange, RequestError, StoreError
from harness.identity import identify
from harness.seeding import generator, seed_of
from harness.settings import RunSettings
from harness.space import Choice, Dimension
from harness.spec import Configuration, Task, describe, override
from harness.stages import build_network
from harness.store import RECORD, Store, write_json
from harness.training import Epoch, train
from harness.tuning.bundles import check_resources as check_resources
from harness.types import JSON, Cohort, View

__all__ = [
    "Candidate",
    "Chosen",
    "Search",
    "as_chosen",
    "describe_space",
    "fit_space",
    "inner_split",
    "judge",
    "perform",
    "plan_search",
    "recorded",
    "with_values",
]

_FACTOR = 3  # one of three candidates passes a rung
# Enters every identity; the version is raised when proposals or rungs change.
_ALGORITHM = {"name": "optuna", "sampler": "tpe", "pruner": "asha", "factor": _FACTOR, "version": 1}
_SHARE = 1 / 5  # of the training subjects judge candidates
_TUNED = ("model", "recipe")
# Candidates must be judged alike.
_FIXED = ("recipe", "recipe.select")

_NUMBER = "search"  # which one, in a trial's config; no key of an option is a bare word but a part

Report = Callable[[int, float], None]
Ended = Callable[["Search", tuple["Candidate", ...], float, int], None]


@dataclass(frozen=True)
class Search:
    """One search: what is tuned, and on whom. Plain values that cross to a worker.

    Parameters
    ----------
    configuration : the grid's point, whose values hold wherever no dimension says otherwise
    space : dimensions
    train, validation : sample ids of the inner split
    fingerprint : of the images and masks of these samples
    fold : of the outer split; -1 if the search serves all folds
    seed : of proposals and trainings
    trials : candidates
    cohort : table of the cohort, on storage that every node sees
    """

    configuration: Configuration
    space: tuple[Dimension, ...]
    train: tuple[str, ...]
    validation: tuple[str, ...]
    fingerprint: str
    fold: int
    seed: int
    trials: int
    cohort: Path

    @property
    def identity(self) -> str:
        """Hash of exactly what determines the winner (when candidates run one at a time)."""
        return identify({**self._determined_by(), "code": self._code()})

    @property
    def body(self) -> str:
        """The identity without the code, by which ``accept_code`` finds older searches."""
        return identify(self._determined_by())

    def _determined_by(self) -> dict[str, JSON]:
        described = self.configuration.task
        return {
            "stage": "search",
            "task_version": described["version"],
            **{part: described[part] for part in ("view", *_TUNED)},
            "space": space_json(self.space),
            "train": self.train,
            "validation": self.validation,
            "cohort": self.fingerprint,
            "seed": self.seed,
            "trials": self.trials,
            "algorithm": _ALGORITHM,
        }

    def _code(self) -> list[str]:
        """Digests of what a candidate may run: several if the model itself is a dimension."""
        models = [one.values for one in self.space if isinstance(one, Choice) and one.key == "model"]
        settings: list[dict[str, JSON]] = [{"model": model} for model in models[0]] if models else [{}]
        return sorted({digest("train", restored(with_values(self.configuration, values))) for values in settings})


@dataclass(frozen=True)
class Candidate:
    """One trial of a search.

    Parameters
    ----------
    values : key → what was tried
    state : ``done``, ``stopped`` (by ASHA, before its last epoch) or ``failed``
    value : of its best epoch on the inner validation; ``None`` if it failed
    epochs : that it trained
    error : first line, if it failed
    """

    values: Mapping[str, JSON]
    state: Literal["done", "stopped", "failed"]
    value: float | None
    epochs: int
    error: str = ""


@dataclass(frozen=True)
class Chosen:
    """What a search found.

    Parameters
    ----------
    identity, body : of the search
    values : key → value of the winner; empty if every candidate failed
    value : of the winner on the inner validation, optimistic
    trials : all candidates, in the order in which they were proposed
    seconds : wall time
    at_once : candidates that trained at the same time
    reused_code : the search was accepted although the code has changed since
    """

    identity: str
    body: str
    values: Mapping[str, JSON]
    value: float | None
    trials: tuple[Candidate, ...]
    seconds: float = 0.0
    at_once: int = 1
    reused_code: bool = False

    @property
    def error(self) -> str:
        """Why there is no winner; empty if there is one."""
        if self.values:
            return ""
        first = next((trial.error for trial in self.trials if trial.error), "no candidate was tried")
        return f"all {len(self.trials)} candidates of the search failed, the first with {first}"

    def __str__(self) -> str:
        if self.error:
            return self.error
        states = [trial.state for trial in self.trials]
        counts = [f"{states.count(state)} {word}" for state, word in _COUNTED.items() if state in states]
        if len(states) > 1 and len({trial.value for trial in self.trials if trial.value is not None}) == 1:
            counts.append("none better than another, so the first was taken")
        chosen = " ".join(f"{key}={_short(value)}" for key, value in self.values.items())
        return f"{chosen} (inner validation {self.value:.3f}; {len(states)} trials{''.join(f', {c}' for c in counts)})"


_COUNTED = {"stopped": "stopped early", "failed": "failed"}


def plan_search(
    configuration: Configuration,
    space: Sequence[Dimension],
    cohort: Cohort,
    path: Path,
    training: Sequence[str],
    *,
    fold: int,
    seed: int,
    trials: int,
) -> Search:
    """The search of one fold.

    Parameters
    ----------
    cohort, path : opened, and its table
    training : sample ids of the fold's training subjects; of the cohort's other
        samples nothing is used, not even for the identity

    Raises
    ------
    OutOfRange
        With fewer than two training subjects.
    """
    own = dataclasses.replace(cohort, samples=tuple(one for one in cohort.samples if one.id in set(training)))
    inner, held_out = inner_split([(one.id, one.subject) for one in own.samples])
    view: View = restored(configuration).view()
    fingerprint = own.fingerprint(view.images, view.masks)
    return Search(configuration, tuple(space), inner, held_out, fingerprint, fold, seed, trials, path)


def inner_split(samples: Sequence[tuple[str, str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Who trains and who judges the candidates of a fold.

    Parameters
    ----------
    samples : (sample id, subject) of the fold's training samples

    Returns
    -------
    sample ids that train, sample ids that judge: one fifth of the subjects,
    rounded, at least one. The draw depends on the subjects alone, so that all
    seeds and configurations of a fold share it.

    Raises
    ------
    OutOfRange
        With fewer than two subjects.
    """
    subjects = sorted({subject for _, subject in samples})
    if len(subjects) < 2:
        raise OutOfRange(
            f"2 <= training subjects must hold for a nested search (some train, some judge), got {len(subjects)}: "
            f"{', '.join(subjects) or 'none'}; add subjects, or name search_subjects that the evaluation leaves out"
        )
    count = max(1, math.floor(_SHARE * len(subjects) + 0.5))
    order = generator(0, "search", "split", *subjects).permutation(len(subjects))
    judges = {subjects[number] for number in order[:count]}
    return (
        tuple(name for name, subject in samples if subject not in judges),
        tuple(name for name, subject in samples if subject in judges),
    )


def fit_space(task: Task, space: Sequence[Dimension]) -> tuple[Dimension, ...]:
    """Dimensions that fit a task, those of parts first; refuses what cannot be searched on it.

    Returns
    -------
    tuple
        Intervals of options that are whole numbers draw whole numbers, and the
        others do not, however the ends were typed.

    Raises
    ------
    RequestError
        For keys outside model and recipe, or a recipe that does not judge by validation.
    UnknownName
        If there is no such option (of one of the models, where the model is searched).
    OutOfRange
        If an end or value breaks the option's own bound.
    """
    for one in space:
        if one.key.partition(".")[0] not in _TUNED or one.key in _FIXED:
            raise RequestError(
                "a search tunes the model and the options of its recipe, save recipe.select (all candidates are judged "
                f"alike), got {one.key}; make it an axis instead: {one.key}=a,b"
            )
    if task.recipe().select is None:
        raise RequestError(
            "a search needs a recipe that judges epochs by the validation subjects, recipe.select=last does not; "
            "leave it out or choose another"
        )
    models = [value for one in space if isinstance(one, Choice) and one.key == "model" for value in one.values]
    ordered = sorted(space, key=lambda one: "." in one.key)
    for model in models or [describe(task)["model"]["use"]]:
        fitted = tuple(_fitted(one, override(task, "model", model)) for one in ordered)
    return fitted


def _fitted(one: Dimension, task: Task) -> Dimension:
    if isinstance(one, Choice):
        for value in one.values:
            override(task, one.key, value)
        return one
    part, _, option = one.key.partition(".")
    # The option's own type says what it makes of a number: 8.0 becomes 8 where it is an int.
    taken = [describe(override(task, one.key, float(end)))[part][option] for end in (one.low, one.high)]
    if any(isinstance(end, bool) or not isinstance(end, int | float) for end in taken):
        raise OutOfRange(f"an interval needs an option that is a number, got {one.key}; say choice(a,b)")
    return dataclasses.replace(one, integer=all(isinstance(end, int) for end in taken))


def with_values(configuration: Configuration, values: Mapping[str, JSON]) -> Configuration:
    """The configuration with a candidate's values; what is searched is no longer noted in it."""
    task = restored(configuration)
    # A part starts with its own defaults, so it comes before its options.
    for key in sorted(values, key=lambda key: "." in key):
        task = override(task, key, values[key])
    described = describe(task)
    plain = {key: value for key, value in configuration.task.items() if key != "searched"}
    changed = {part: described[part] for part in {key.partition(".")[0] for key in values}}
    return dataclasses.replace(configuration, task=json.loads(json.dumps({**plain, **changed})))


def as_chosen(configuration: Configuration, chosen: Chosen) -> Configuration:
    """The configuration with what its search chose, and which search that was."""
    found = with_values(configuration, chosen.values)
    return dataclasses.replace(
        found, task={**found.task, "search": {"identity": chosen.identity, "reused_code": chosen.reused_code}}
    )


def judge(search: Search, values: Mapping[str, JSON], cohort: Cohort, report: Report) -> None:
    """Train one candidate; the objective function of every search.

    Parameters
    ----------
    cohort : only the samples of the inner split are read
    report : is told (epoch, best selection value so far) after each epoch, and
        may raise to end the training

    Raises
    ------
    CellError
        If the loss or the selection value is not finite.
    """
    task = restored(with_values(search.configuration, values))
    view: View = task.view()
    samples = {one.id: one for one in cohort.samples if one.id in {*search.train, *search.validation}}
    best = -math.inf

    def told(epoch: Epoch) -> None:
        nonlocal best
        if not math.isfinite(epoch.validation):
            raise CellError(f"the selection value became {epoch.validation} in epoch {epoch.epoch}")
        # The final training keeps its best epoch, so a candidate is worth its best one.
        best = max(best, epoch.validation)
        report(epoch.epoch, best)

    train(
        lambda: build_network(task, view),
        task.recipe(),
        view,
        [samples[name] for name in search.train],
        [samples[name] for name in search.validation],
        seed=search.seed,
        report=told,
    )


def perform(
    searches: Sequence[Search],
    store: Store,
    settings: RunSettings,
    *,
    found: Callable[[Search, Chosen], None] = lambda search, chosen: None,
) -> dict[str, Chosen]:
    """Carry out searches one after the other and keep what they found.

    Parameters
    ----------
    searches : those that the store does not hold
    settings : ``ray=off`` searches in this process, else Ray must have been started
    found : is told each search that ended and is in the store, in order

    Returns
    -------
    identity of the search → what it found. A search whose candidates all failed
    is among them and not in the store, so that the same command tries it again.
    """
    results: dict[str, Chosen] = {}

    def ended(search: Search, trials: tuple[Candidate, ...], seconds: float, at_once: int) -> None:
        best = _best(trials)
        chosen = Chosen(
            search.identity,
            search.body,
            {} if best is None else best.values,
            None if best is None else best.value,
            trials,
            round(seconds, 3),
            at_once,
        )
        if best is not None:
            _keep(store, search, chosen, "here" if settings.ray == "off" else "ray")
        results[search.identity] = chosen
        found(search, chosen)

    if settings.ray == "off":
        for search in searches:
            started = time.perf_counter()
            ended(search, _search_here(search), time.perf_counter() - started, 1)
    elif searches:
        _search_on_ray(searches, settings, ended)
    return results


def recorded(store: Store, search: Search, *, accept_code: bool = False) -> Chosen | None:
    """What a search found earlier, or ``None``.

    Parameters
    ----------
    accept_code : take a search of older code, flagged

    Raises
    ------
    StoreError
        If the record cannot be read or is another search's.
    """
    path = store.folder("search", search.identity) / RECORD
    if path.is_file():
        return _read(path, search.identity)
    if accept_code:
        for older in sorted((store.root / "search").glob(f"*/{RECORD}")):
            chosen = _read(older, older.parent.name)
            if chosen.body == search.body:
                return dataclasses.replace(chosen, reused_code=True)
    return None


def describe_space(space: Sequence[Dimension], *, trials: int, subjects: Sequence[str] = ()) -> str:
    """One line for the row of a searched configuration."""
    where = f"on {', '.join(subjects)}" if subjects else "in each fold and seed"
    return f"{', '.join(map(_describe, space))}; {trials} trials {where}"


def space_json(space: Sequence[Dimension]) -> list[JSON]:
    """Dimensions as plain JSON."""
    return [{"kind": type(one).__name__.lower(), **dataclasses.asdict(one)} for one in space]


# --- two roads, one objective ---


def _search_here(search: Search) -> tuple[Candidate, ...]:
    """Plain Optuna, one candidate after the other."""
    import optuna

    cohort = open_cohort(search.cohort)
    found: list[Candidate] = []
    with _quiet():
        study = optuna.create_study(
            direction="maximize",
            sampler=_sampler(search),
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=_grace(search), reduction_factor=_FACTOR),
        )
        for _ in range(search.trials):
            trial = study.ask(_distributions(search.space))
            values = _decoded(search.space, trial.params)
            curve: list[float] = []
            report = _pruned_report(trial, _epochs(search, values), curve)
            try:
                judge(search, values, cohort, report)
            except optuna.TrialPruned:
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                found.append(Candidate(values, "stopped", curve[-1], len(curve)))
            except Exception as problem:  # a broken candidate is broken, the search goes on
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                found.append(Candidate(values, "failed", None, len(curve), _first_line(problem)))
            else:
                study.tell(trial, curve[-1])
                found.append(Candidate(values, "done", curve[-1], len(curve)))
    return tuple(found)


def _pruned_report(trial: Any, epochs: int, curve: list[float]) -> Report:
    """Note each epoch in a curve, and end the training where Optuna says so."""
    import optuna

    def report(epoch: int, best: float) -> None:
        curve.append(best)
        trial.report(best, epoch)
        if epoch < epochs and trial.should_prune():
            raise optuna.TrialPruned

    return report


def _search_on_ray(searches: Sequence[Search], settings: RunSettings, ended: Ended) -> None:
    """All searches in one run of Ray Tune, one after the other; the candidates of one train at once.

    Notes
    -----
    One run, because each starts workers of its own (seconds: they import torch).
    A search begins when the one before it has ended, so that a driver that is
    killed loses no more than one.
    """
    from ray import tune

    check_resources(settings)
    at_once = _at_once(searches[0], settings)
    folder = settings.folder / "ray"
    folder.mkdir(parents=True, exist_ok=True)
    storage = Path(tempfile.mkdtemp(prefix="search-", dir=folder))
    # A candidate that failed reports its error and no value; Tune would end the run for that.
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"
    trainable = tune.with_parameters(
        _try_candidate, searches=list(searches), identities=[search.identity for search in searches]
    )
    with _quiet():
        tuner = tune.Tuner(
            tune.with_resources(trainable, {"cpu": settings.cpus, "gpu": settings.gpus}),
            tune_config=tune.TuneConfig(
                metric="value",
                mode="max",
                num_samples=sum(search.trials for search in searches),
                search_alg=_proposals(searches),
                scheduler=_rungs(searches),
                max_concurrent_trials=at_once,
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_name,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=str(storage),
                verbose=0,
                callbacks=[_witness(searches, at_once, ended)],
                # What ends a trial is the death of a node or worker, which is worth another try.
                failure_config=tune.FailureConfig(max_failures=2),
            ),
        )
        try:
            tuner.fit()
        finally:
            shutil.rmtree(storage, ignore_errors=True)


def _trial_name(trial: Any) -> str:
    return f"candidate-{trial.trial_id}"


def _try_candidate(config: dict[str, Any], searches: list[Search], identities: list[str]) -> None:
    """The trainable: one candidate on a worker, whose actor others use before and after."""
    from ray import tune

    try:
        search = searches[config[_NUMBER]]
        if search.identity != identities[config[_NUMBER]]:
            raise CellError(
                "this worker runs another version of the code than the driver; install the same version on every node"
            )
        values = _decoded(search.space, config)
        judge(
            search,
            values,
            open_cohort(search.cohort),
            lambda epoch, best: tune.report({"epoch": epoch, "value": best}),
        )
    except Exception as problem:  # told as a result: raising would be tried again and printed
        tune.report({"error": _first_line(problem)})


def _proposals(searches: Sequence[Search]) -> Any:
    """What proposes candidates, search by search; a factory because its base class needs Ray."""
    from ray.tune.search import Searcher
    from ray.tune.search.optuna import OptunaSearch

    class Proposals(Searcher):
        """One study of Optuna per search; the next begins when all candidates of one have ended."""

        def __init__(self) -> None:
            super().__init__(metric="value", mode="max")
            self._number, self._asked, self._ended = 0, 0, 0
            self._study = self._next()
            self._studies: dict[str, Any] = {}

        def suggest(self, trial_id: str) -> dict[str, Any] | None:
            """A candidate; ``None`` while the last ones of a search still train."""
            if self._asked == searches[self._number].trials:
                if self._ended < self._asked or self._number + 1 == len(searches):
                    return None
                self._number, self._asked, self._ended = self._number + 1, 0, 0
                self._study = self._next()
            self._asked += 1
            self._studies[trial_id] = self._study
            return {_NUMBER: self._number, **self._study.suggest(trial_id)}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            """A result without a value is a failure, told when the trial ends."""
            if "value" in result:
                self._studies[trial_id].on_trial_result(trial_id, result)

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            """Tell the study."""
            failed = error or "value" not in (result or {})
            self._studies[trial_id].on_trial_complete(trial_id, None if failed else result, failed)
            self._ended += 1

        def save(self, checkpoint_path: str) -> None:
            """Nothing: what resumes a run is our own store."""

        def _next(self) -> Any:
            one = searches[self._number]
            return OptunaSearch(_distributions(one.space), metric="value", mode="max", sampler=_sampler(one))

    return Proposals()


def _rungs(searches: Sequence[Search]) -> Any:
    """ASHA for each search by itself; a factory because its base class needs Ray."""
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    class Rungs(FIFOScheduler):
        """Candidates are compared with those of their own search."""

        def __init__(self) -> None:
            super().__init__()
            self._own = [
                ASHAScheduler(
                    time_attr="epoch",
                    metric="value",
                    mode="max",
                    max_t=_longest(search),
                    grace_period=_grace(search),
                    reduction_factor=_FACTOR,
                )
                for search in searches
            ]

        def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
            """They are known."""
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


def _witness(searches: Sequence[Search], at_once: int, ended: Ended) -> Any:
    """The driver's callback; a factory because its base class needs Ray."""
    from ray import tune

    class Witness(tune.Callback):
        """Remembers what each trial reported and says when a search has ended."""

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
            elif "value" in result:  # by epoch: a trial that moved to another node begins again
                seen["curve"][result["epoch"]] = result["value"]

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._end(trial)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self._of(trial)["error"] = "its worker died"
            self._end(trial)

        def _of(self, trial: Any) -> dict[str, Any]:
            """What is known of a trial; trials in the order in which they began."""
            own = self._seen.setdefault(trial.config[_NUMBER], {})
            return own.setdefault(trial.trial_id, {"config": dict(trial.config), "curve": {}, "error": ""})

        def _end(self, trial: Any) -> None:
            number = trial.config[_NUMBER]
            self._finished[number] = self._finished.get(number, 0) + 1
            search = searches[number]
            if self._finished[number] == search.trials:
                now, before = time.perf_counter(), self._since
                self._since = now
                trials = tuple(_candidate(search, seen) for seen in self._seen.pop(number).values())
                ended(search, trials, now - before, at_once)

        def __reduce__(self) -> tuple[Any, tuple[()]]:
            """Tune pickles callbacks to restore a run; we resume from our own store instead."""
            return tune.Callback, ()

    return Witness()


def _candidate(search: Search, seen: Mapping[str, Any]) -> Candidate:
    values = _decoded(search.space, seen["config"])
    curve = [seen["curve"][epoch] for epoch in sorted(seen["curve"])]
    if seen["error"] or not curve:
        return Candidate(values, "failed", None, len(curve), seen["error"] or "it never began")
    return Candidate(values, "done" if len(curve) == _epochs(search, values) else "stopped", curve[-1], len(curve))


def _at_once(search: Search, settings: RunSettings) -> int:
    """How many candidates the cluster trains at the same time."""
    import ray

    there = ray.cluster_resources()
    able = there.get("CPU", 1.0) / settings.cpus
    if settings.gpus:
        able = min(able, there.get("GPU", 0.0) / settings.gpus)
    return max(1, min(int(able), settings.workers or search.trials, search.trials))


# --- Optuna's words ---


def _sampler(search: Search) -> Any:
    import optuna

    # Optuna draws the first ten at random; a short search must learn from fewer.
    startup = min(10, max(1, search.trials // 2))
    return optuna.samplers.TPESampler(n_startup_trials=startup, seed=seed_of(search.seed, "search") % 2**32)


def _distributions(space: Sequence[Dimension]) -> dict[str, Any]:
    """Optuna's distributions; a choice is drawn by its number, so that it may hold lists."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for one in space:
        if isinstance(one, Choice):
            found[one.key] = CategoricalDistribution(range(len(one.values)))
        elif one.integer:
            found[one.key] = IntDistribution(int(one.low), int(one.high), log=one.log)
        else:
            found[one.key] = FloatDistribution(one.low, one.high, log=one.log)
    return found


def _decoded(space: Sequence[Dimension], drawn: Mapping[str, Any]) -> dict[str, JSON]:
    """What Optuna drew, as values of the options."""
    found: dict[str, JSON] = {}
    for one in space:
        value = drawn[one.key]
        if isinstance(one, Choice):
            found[one.key] = one.values[int(value)]
        else:
            found[one.key] = int(value) if one.integer else float(value)
    return found


def _epochs(search: Search, values: Mapping[str, JSON]) -> int:
    """Epochs that a candidate would train."""
    return int(restored(with_values(search.configuration, values)).recipe().epochs)


def _longest(search: Search) -> int:
    """Epochs of the longest candidate."""
    for one in search.space:
        if one.key == "recipe.epochs":
            return int(max(one.values) if isinstance(one, Choice) else one.high)
    return int(restored(search.configuration).recipe().epochs)


def _grace(search: Search) -> int:
    """Epochs before a candidate may be stopped: an eighth, which leaves two or three rungs."""
    return max(1, _longest(search) // 8)


def _best(trials: Sequence[Candidate]) -> Candidate | None:
    """The highest value; of equals one that ran to its end, then the earlier."""
    judged = [trial for trial in trials if trial.value is not None]
    return max(judged, key=lambda trial: (trial.value, trial.state == "done"), default=None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Optuna without its log lines."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


# --- records ---


def _keep(store: Store, search: Search, chosen: Chosen, runner: str) -> None:
    """Write a record, whole or not at all."""
    what: dict[str, JSON] = {
        **dataclasses.asdict(chosen),
        "configuration": search.configuration.id,
        "fold": search.fold,
        "seed": search.seed,
        "space": space_json(search.space),
        "split": {"train": search.train, "validation": search.validation},
        "algorithm": _ALGORITHM,
        "runner": runner,
        "hardware": hardware(),
    }
    write_json(store.folder("search", search.identity) / RECORD, what)


def _read(path: Path, identity: str) -> Chosen:
    try:
        content = json.loads(path.read_text())
        fields = {field.name: content[field.name] for field in dataclasses.fields(Chosen)}
        chosen = Chosen(**{**fields, "trials": tuple(Candidate(**trial) for trial in content["trials"])})
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"{path} cannot be read ({error}); delete its folder and run the command again") from None
    if chosen.identity != identity:
        raise StoreError(f"{path} is the record of {chosen.identity}; delete its folder and run the command again")
    return chosen


def _first_line(problem: BaseException) -> str:
    line = str(problem).strip().partition("\n")[0] or "no message"
    return f"{type(problem).__name__}: {line}"


def _describe(one: Dimension) -> str:
    if isinstance(one, Choice):
        return f"{one.key} in {{{', '.join(map(str, one.values))}}}"
    what = "log" if one.log else ""
    low, high = (int(one.low), int(one.high)) if one.integer else (one.low, one.high)
    return f"{one.key} in [{_short(low)}, {_short(high)}]{f' ({what})' if what else ''}"


def _short(value: JSON) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
