"""Nested searches: inner splits, reproducibility, resuming and failed candidates."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.errors import OutOfRange, RequestError, StoreError, UnknownName
from harness.core.settings import RunSettings
from harness.core.space import Choice, Interval
from harness.core.targets import Target
from harness.core.types import Array, Cohort, Sample
from harness.data.bids_writing import write_phantom
from harness.pipeline.cell import restored
from harness.pipeline.networks import build_network
from harness.pipeline.train import train
from harness.report.runs import chosen_tags
from harness.report.searches import winners
from harness.report.tables import report_tables
from harness.simulation.phantom import PhantomSubject
from harness.storage.store import CellRecord, Store
from harness.sweep.collect import collect
from harness.sweep.grammar import parse
from harness.sweep.plan import Plan, Request, prepare
from harness.sweep.request import resolve
from harness.sweep.resume import recall
from harness.sweep.run import run
from harness.tuning import nested
from harness.tuning import search as searching
from harness.tuning import trials as trying
from harness.tuning.jobs import session
from harness.tuning.nested import Candidate, Search, inner_split, plan_search, train_candidate, with_values
from harness.tuning.search import Chosen, perform, recorded

LR = "recipe.lr=tag(log,interval(1e-4,1e-1))"
BATCH = "recipe.batch_size=tag(search,choice(2,4))"
FAILS = "recipe.lesion_weight=tag(search,choice(1e38))"  # overflows, so that the loss is not finite


def _subject(number: int) -> PhantomSubject:
    """A bright rod in noise, 16 × 12 × 3 voxels of 1 × 1.5 × 2 mm, with axes to the left and back."""
    rng = np.random.default_rng(number)
    affine = np.diag([-1.0, -1.5, 2.0, 1.0])
    target = np.zeros((16, 12, 3), np.uint8)
    target[4 + number : 7 + number, 3:8, :2] = 1
    image = rng.normal(size=target.shape) + 4 * target
    return PhantomSubject(
        {"T2w": (image.astype(np.float32), affine)},
        {"pvs": (target, affine), "brain": (np.ones_like(target), affine)},
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five subjects in a BIDS folder."""
    return write_phantom(tmp_path_factory.mktemp("data") / "tiny", map(_subject, range(5)), name="tiny")


Ask = Callable[..., Request]


@pytest.fixture
def ask(data: Path, tmp_path: Path) -> Ask:
    """A function that makes the request of a run of seconds from overrides."""
    return lambda *overrides, out=tmp_path: _ask(data, out, *overrides)


def _ask(data: Path, out: Path, *overrides: str) -> Request:
    given = {
        "task": "epvs", "data": str(data), "out": str(out), "sequences": "T2w", "attribution": "none", "ray": "off",
        "model.width": "2", "model.depth": "1", "recipe.epochs": "4", "trials": "4", "search": "optuna",
        "recipe.batch_size": "4", "recipe.augmentation": "none", "recipe.copies": "1", "split.validation": "1",
        "cohort.crop": "none", "cohort.size": "[]", "cohort.brain": "if_present",
    }  # fmt: skip
    for override in overrides:
        key, _, value = override.partition("=")
        given[key] = value
    texts = tuple(f"{key}={value}" for key, value in given.items() if value)
    return resolve(parse(texts), texts=texts)


@dataclasses.dataclass
class _Guarded:
    """An image that records that it was read."""

    values: Array
    name: str
    read: set[str]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def fingerprint(self) -> str:
        self.read.add(self.name)
        return str(float(self.values.sum()))

    def load(self) -> Array:
        self.read.add(self.name)
        return self.values


@pytest.fixture
def guarded() -> tuple[Cohort, set[str]]:
    """Seven subjects in memory, and the set of those that were read."""
    read: set[str] = set()
    samples = []
    for number in range(7):
        one, name = _subject(number), f"sub-{number:02d}"
        images = {"T2w": _Guarded(one.images["T2w"][0], name, read)}
        masks = {"target": _Guarded(one.masks["pvs"][0], name, read)}
        samples.append(Sample(name, name, images, masks, {}, one.images["T2w"][1], (1.0, 1.5, 2.0)))
    return Cohort("guarded", tuple(samples), targets=(Target("target", "mask"),)), read


TRAINING = ("sub-01", "sub-02", "sub-04", "sub-06")


def _search(cohort: Cohort, request: Request, **changes: Any) -> Search:
    """The search of a fold with four of seven subjects in training."""
    configuration = prepare(request).configurations[0]
    options: dict[str, Any] = {"fold": 0, "seed": 0, "trials": 4} | changes
    return plan_search(configuration, request.space, cohort, Path("unused"), TRAINING, **options)


def _synthetic(curve: Callable[[Mapping[str, Any]], list[float]]) -> Callable[..., None]:
    """An objective that is computed without training."""

    def judged(search: Search, values: Mapping[str, Any], cohort: Cohort, report: Callable[[int, float], None]) -> None:
        for epoch, value in enumerate(curve(values), 1):
            report(epoch, value)

    return judged


# --- which subjects are read ---


def test_inner_split_keeps_subjects_together() -> None:
    """One fifth of the subjects is held out, with all their samples."""
    samples = [(f"s{subject}_{session}", f"s{subject}") for subject in range(10) for session in (1, 2)]
    inner, held_out = inner_split(samples)
    assert sorted(inner + held_out) == sorted(name for name, _ in samples)
    assert len({name.partition("_")[0] for name in held_out}) == 2
    assert not {name.partition("_")[0] for name in held_out} & {name.partition("_")[0] for name in inner}


@pytest.mark.parametrize(("subjects", "judges"), [(2, 1), (3, 1), (7, 1), (8, 2), (16, 3)])
def test_inner_split_holds_out_one_fifth(subjects: int, judges: int) -> None:
    """One fifth of the subjects is held out, rounded and at least one."""
    assert len(inner_split([(f"{n}", f"{n}") for n in range(subjects)])[1]) == judges


def test_inner_split_needs_two_subjects() -> None:
    """A search with one training subject is refused."""
    with pytest.raises(OutOfRange, match=r"a nested search needs at least 2 training subjects .* got 1: s1; add"):
        inner_split([("a", "s1"), ("b", "s1")])


def test_test_subjects_are_never_read(guarded: tuple[Cohort, set[str]], ask: Ask) -> None:
    """A search reads no subject outside the training set of its fold."""
    cohort, read = guarded
    search = _search(cohort, ask(LR))
    assert search.identity
    train_candidate(search, {"recipe.lr": 0.01}, cohort, lambda epoch, best: None)
    assert read == set(TRAINING)
    assert set(search.train) | set(search.validation) == set(TRAINING)


def test_inner_validation_subjects_are_not_trained_on(
    guarded: tuple[Cohort, set[str]], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A candidate is trained and validated on the inner split."""
    cohort, _ = guarded
    search = _search(cohort, ask(LR))
    seen: list[tuple[str, ...]] = []

    def spy(build: Any, recipe: Any, adapter: Any, spec: Any, training: Any, validation: Any, **more: Any) -> None:
        seen.extend([tuple(one.id for one in training), tuple(one.id for one in validation)])

    monkeypatch.setattr(nested, "train", spy)
    train_candidate(search, {"recipe.lr": 0.01}, cohort, lambda epoch, best: None)
    assert seen == [search.train, search.validation]
    assert not set(search.train) & set(search.validation)


def test_best_value_so_far_is_reported(guarded: tuple[Cohort, set[str]], ask: Ask) -> None:
    """The reported value is the best validation value so far of a training with these options."""
    cohort, _ = guarded
    search = _search(cohort, ask(LR))
    reported: list[tuple[int, float]] = []
    train_candidate(search, {"recipe.lr": 0.05}, cohort, lambda epoch, best: reported.append((epoch, best)))
    task = restored(with_values(search.configuration, {"recipe.lr": 0.05}))
    adapter, samples = task.adapter(), {one.id: one for one in cohort.samples}
    spec = adapter.spec(cohort)
    alone = train(
        lambda: build_network(task, spec),
        task.recipe(),
        adapter,
        spec,
        [samples[name] for name in search.train],
        [samples[name] for name in search.validation],
        seed=0,
    )
    values = [epoch.validation for epoch in alone.history]
    assert reported == [(number, max(values[:number])) for number in range(1, 5)]


# --- proposed, stopped and chosen candidates ---


def _on_disk(search: Search, data: Path, request: Request) -> Search:
    """The search with a cohort that can be loaded from a file."""
    return dataclasses.replace(search, cohort=next(iter(prepare(request).groups.values())).path)


def test_candidates_lie_in_the_space(
    guarded: tuple[Cohort, set[str]], ask: Ask, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proposed values lie in the search space and have its types."""
    request = ask("search=optuna", LR)
    space = (
        Interval("recipe.lr", 1e-4, 1e-2, log=True),
        Interval("recipe.epochs", 2, 9, integer=True),
        Choice("recipe.augmentation", ("none", "joint")),
    )
    search = dataclasses.replace(_on_disk(_search(guarded[0], request), data, request), space=space, trials=12)
    monkeypatch.setattr(trying, "train_candidate", _synthetic(lambda values: [values["recipe.lr"]]))
    trials = trying.try_here(search, request.settings)
    assert len(trials) == 12
    for trial in trials:
        assert list(trial.values) == ["recipe.lr", "recipe.epochs", "recipe.augmentation"]
        assert 1e-4 <= trial.values["recipe.lr"] <= 1e-2
        assert isinstance(trial.values["recipe.epochs"], int) and 2 <= trial.values["recipe.epochs"] <= 9
        assert trial.values["recipe.augmentation"] in ("none", "joint")
    assert len({trial.values["recipe.epochs"] for trial in trials}) > 1


def test_bad_candidates_are_stopped(
    guarded: tuple[Cohort, set[str]], ask: Ask, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Candidates that are worse at a rung are stopped, and the best one runs to the end."""
    request = ask(LR, "recipe.epochs=9", "trials=12")
    search = _on_disk(_search(guarded[0], request, trials=12), data, request)
    monkeypatch.setattr(
        trying, "train_candidate", _synthetic(lambda values: [values["recipe.lr"] * epoch for epoch in range(1, 10)])
    )
    trials = trying.try_here(search, request.settings)
    stopped = [trial for trial in trials if trial.state == "stopped"]
    best = max(trials, key=lambda trial: trial.values["recipe.lr"])
    assert stopped
    assert {trial.epochs for trial in stopped} <= {1, 3}  # rungs below nine epochs
    assert (best.state, best.epochs) == ("done", 9)
    assert searching._best(trials) is best


def test_finished_candidate_is_preferred() -> None:
    """Of candidates with equal values, a finished one is preferred to a stopped one, then the earlier one."""
    one = Candidate({"a": 1}, "stopped", 0.5, 1)
    two, three = dataclasses.replace(one, state="done"), dataclasses.replace(one, state="done", values={"a": 3})
    assert searching._best([one, two, three]) is two
    assert searching._best([dataclasses.replace(one, state="failed", value=None)]) is None


def test_text_of_a_result() -> None:
    """The text has values, inner validation value and number of trials, and mentions a tie."""
    done = Candidate({"recipe.lr": 0.0123456}, "done", 0.5, 4)
    stopped = dataclasses.replace(done, state="stopped", value=0.25)
    one = Chosen("i", "b", done.values, 0.5, (done, stopped))
    assert str(one) == "recipe.lr=0.01235 (inner validation 0.500; 2 trials, 1 stopped early)"
    assert "all with the same value, so the first was chosen" in str(dataclasses.replace(one, trials=(done, done)))


def test_same_seed_gives_the_same_search(ask: Ask, tmp_path: Path) -> None:
    """With one candidate at a time, a search is reproducible, and another seed proposes other values."""
    plans = [prepare(ask(LR, BATCH, "fold=0", f"seed={seed}", out=tmp_path / name)) for seed, name in
             ((0, "a"), (0, "b"), (1, "c"))]  # fmt: skip
    one, two, other = (next(iter(perform(p.searches, p.store, p.request.settings).values())).trials for p in plans)
    assert one == two
    assert [trial.values for trial in one] != [trial.values for trial in other]


# --- identity ---


def test_identity_depends_on_what_determines_the_result(guarded: tuple[Cohort, set[str]], ask: Ask) -> None:
    """The identity depends on trials, seed, space and training images, not on the fold or test subjects."""
    cohort, read = guarded
    request = ask(LR)
    search = _search(cohort, request)
    for changes in (
        {"trials": 5},
        {"seed": 1},
        {"space": (Interval("recipe.lr", 1e-3, 1e-1, log=True),)},
        {"train": search.train[:-1]},
        {"validation": ()},
        {"fingerprint": "another"},
    ):
        assert dataclasses.replace(search, **changes).identity != search.identity
    changed = [
        sample if sample.id in TRAINING else dataclasses.replace(
            sample, images={"T2w": _Guarded(sample.images["T2w"].load() + 1, sample.id, read)}
        )
        for sample in cohort.samples
    ]  # fmt: skip
    other = dataclasses.replace(cohort, name="other", samples=tuple(changed))
    assert _search(other, request, fold=3).identity == search.identity


# --- searches before the grid ---


def test_best_values_are_used_for_training(ask: Ask) -> None:
    """Each fold is trained with its own best values, and the leaderboard has one row for all folds."""
    plan = prepare(ask(LR, BATCH))
    # Folds with the same training subjects share a search.
    assert len(plan.searches) == len({job.split.train for job in plan.jobs})
    made = run(plan)
    assert not made.searches and not made.missing()
    for job in made.jobs:
        chosen = json.loads(next((made.store.root / "search").glob(f"{_search_id(job)}/record.json")).read_text())
        assert job.configuration.task["recipe"]["lr"] == chosen["values"]["recipe.lr"]
        assert {name for part in chosen["split"].values() for name in part} == set(job.split.train)
        assert job.row == plan.configurations[0].id
        assert made.store.configuration(job.train) == job.configuration
    (row,) = collect(made).prediction.to_pylist()
    assert (
        row["searched"]
        == "recipe.batch_size in {2, 4}, recipe.lr in [0.0001, 0.1] (log); 4 trials in each fold and seed"
    )
    assert (row["folds"], row["subjects"]) == (5, 5)


def _search_id(job: Any) -> str:
    return str(job.configuration.task["search"]["identity"])


def test_the_same_command_does_not_search_again(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeating a command does not repeat its searches, and the recalled leaderboard is the same."""
    first = run(prepare(ask(LR, "fold=0,2")))
    monkeypatch.setattr(trying, "train_candidate", None)
    again = prepare(ask(LR, "fold=0,2"))
    assert not again.searches and not again.missing()
    assert [job.train for job in again.jobs] == [job.train for job in first.jobs]
    table = collect(first).prediction
    assert collect(recall("epvs", first.request.settings)).prediction.equals(table)


def test_finished_searches_are_kept_after_a_kill(ask: Ask) -> None:
    """A finished search is stored before the next one starts."""
    plan = prepare(ask(LR, "fold=0,1,2"))

    def killed(search: Search, chosen: Chosen) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perform(plan.searches, plan.store, plan.request.settings, found=killed)
    assert [one.identity for one in prepare(ask(LR, "fold=0,1,2")).searches] == [
        one.identity for one in plan.searches[1:]
    ]


def test_cells_that_depend_on_a_search_are_missing(ask: Ask) -> None:
    """A cell whose options depend on a search is missing, although one without a search is done."""
    run(prepare(ask("search=", "fold=0")))
    plan = prepare(ask(LR, "fold=0"))
    assert [job.search for job in plan.missing()] == [plan.searches[0].identity]


def test_a_search_without_a_successful_candidate_fails(ask: Ask) -> None:
    """If all candidates fail, the training is recorded as failed and the search is repeated next time."""
    records: list[CellRecord] = []
    made = run(prepare(ask(FAILS, "fold=0", "trials=2")), committed=records.append)
    assert [(record.stage, record.state) for record in records] == [("train", "failed")]
    assert (
        "all 2 candidates of the search failed; the first error: CellError: the loss must be finite, got nan in epoch 1"
        in records[0].error
    )
    (row,) = collect(made).prediction.to_pylist()
    assert row["rank"] is None and row["flags"].startswith("failed: 1 of 3 cells, all 2 candidates")
    assert not list((made.store.root / "search").glob("*"))
    assert len(prepare(ask(FAILS, "fold=0", "trials=2")).searches) == 1


def test_search_continues_after_a_failed_candidate(ask: Ask) -> None:
    """A failed candidate is recorded with its error and without a value."""
    plan = prepare(ask("recipe.lesion_weight=tag(search,choice(1.0,1e38))", "fold=0", "trials=6"))
    (chosen,) = perform(plan.searches, plan.store, plan.request.settings).values()
    failed = [trial for trial in chosen.trials if trial.state == "failed"]
    assert failed and len(failed) < 6
    assert {trial.values["recipe.lesion_weight"] for trial in failed} == {1e38}
    assert all(trial.value is None and "the loss must be finite, got nan" in trial.error for trial in failed)
    assert chosen.values == {"recipe.lesion_weight": 1.0}


def test_search_subjects_are_left_out_of_the_evaluation(ask: Ask) -> None:
    """With ``search_subjects``, one search serves all folds and seeds, which exclude its subjects."""
    plan = prepare(ask(LR, "search_subjects=[sub-02,04]", "seed=0,1"))
    (search,) = plan.searches
    assert {*search.train, *search.validation} == {"sub-02", "sub-04"}
    assert len(plan.jobs) == 6
    for job in plan.jobs:
        split = job.split
        assert {*split.train, *split.validation, *split.test} == {"sub-01", "sub-03", "sub-05"}
        assert job.search == search.identity
    assert plan.configurations[0].fingerprint != prepare(ask(LR)).configurations[0].fingerprint


def test_the_report_shows_what_each_search_chose(ask: Ask) -> None:
    """The report has a table with the values chosen for each fold."""
    plan = run(prepare(ask(LR, BATCH, "fold=0,1")))
    (table,) = report_tables(recall("epvs", plan.request.settings), collect(plan), None)[-1:]
    assert table.title == "Values chosen by the searches"
    where, rate, batch = (table.columns.index(name) for name in ("searched for", "recipe.lr", "recipe.batch_size"))
    assert [line[where] for line in table.lines] == ["fold 0 seed 0", "fold 1 seed 0"]
    trained = [job.configuration.task["recipe"] for job in plan.jobs]
    assert [line[rate] for line in table.lines] == [f"{one['lr']:.4g}" for one in trained]
    assert [line[batch] for line in table.lines] == [str(one["batch_size"]) for one in trained]
    assert all(str(line[-1]).startswith("4 (") for line in table.lines)
    tags = chosen_tags(plan, plan.configurations[0].id)
    wanted = {f"recipe.lr={trained[1]['lr']:.4g}", f"recipe.batch_size={trained[1]['batch_size']}"}
    assert set(tags["chosen.fold 1 seed 0"].split()) == wanted
    assert len(tags) == 2


def test_a_search_for_all_folds_has_one_line(ask: Ask) -> None:
    """A search that serves all folds and seeds has one line."""
    plan = run(prepare(ask(LR, "search_subjects=[sub-02,04]", "seed=0,1")))
    ((_, where, chosen),) = winners(plan)
    assert where == "all folds and seeds" and chosen.values


def test_plan_before_its_searches_has_no_chosen_values(ask: Ask) -> None:
    """Before its searches, a plan has no chosen values."""
    assert winners(prepare(ask(LR))) == []


def test_search_subjects_must_exist(ask: Ask) -> None:
    """Unknown search subjects are refused."""
    with pytest.raises(UnknownName, match=r"no subject of the cohort \(search_subjects\) is named 'sub-9'"):
        prepare(ask(LR, "search_subjects=sub-9"))


def test_search_subjects_leave_enough(ask: Ask) -> None:
    """At least three subjects must remain for the evaluation."""
    with pytest.raises(OutOfRange, match=r"at least 3 subjects must be left for the evaluation, got 2 of 5"):
        prepare(ask(LR, "search_subjects=[sub-01,sub-02,sub-03]"))


def test_folds_too_small_for_a_search_are_refused(ask: Ask) -> None:
    """Folds with one training subject are too small for a search."""
    with pytest.raises(OutOfRange, match="set search_subjects= to search on separate subjects"):
        prepare(ask(LR, "exclude=[sub-01,sub-02]"))


def test_older_code_is_accepted_and_flagged(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of older code are used only with ``accept_code``, and flagged."""
    run(prepare(ask(LR, "fold=0")))
    monkeypatch.setattr(Search, "_code", lambda self: ["changed"])
    assert len(prepare(ask(LR, "fold=0")).searches) == 1
    accepted = prepare(ask(LR, "fold=0", "accept_code=true"))
    assert not accepted.searches
    assert collect(accepted).prediction["searched"][0].as_py().endswith("; older code accepted")


def test_a_damaged_record_is_refused(ask: Ask) -> None:
    """A damaged record of a search raises an error with a remedy."""
    plan = prepare(ask(LR, "fold=0"))
    perform(plan.searches, plan.store, plan.request.settings)
    (path,) = (plan.store.root / "search").glob("*/record.json")
    path.write_text(path.read_text()[:-20])
    with pytest.raises(Exception, match=r"record\.json cannot be read .*delete its folder and run the command again"):
        recorded(plan.store, plan.searches[0])


# --- requests ---


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (("search=", LR), RequestError, "recipe.lr has a search space.*add search=optuna"),
        (("search=", "space=recipe"), RequestError, "add search=optuna"),
        ((), RequestError, r"search=optuna needs a space.*named space of epvs \(.*space=recipe"),
        (("space=recipes",), UnknownName, "no search space of epvs is named 'recipes'. Near: recipe"),
        (("search=optima", LR), UnknownName, "no search is named 'optima'. Near: optuna"),
        (("search=optuna,none", LR), RequestError, "search and space take one value"),
        (("recipe.lr=interval(0.1,2.0)",), OutOfRange, "recipe.lr must be a number > 0 and <= 1, got 2.0"),
        (("recipe.epochs=interval(1.5,4)",), OutOfRange, "recipe.epochs must be a whole number >= 1, got 1.5"),
        (("recipe.balance=tag(search,choice(1,7))",), OutOfRange, "recipe.balance must be yes/no, got 7"),
        (("recipe.optimiser=interval(0,1)",), OutOfRange, "recipe.optimiser"),
        (("recipe.nothing=interval(0,1)",), UnknownName, "no option of recipe segmentation is named 'nothing'"),
        (("recipe.select=tag(search,choice(mean_iou,last))",), RequestError, "except recipe.select.*got recipe.select"),
        (("phantom_subjects=interval(4,8)",), RequestError, "can tune the model, its options.*got phantom_subjects"),
        (("metrics.dice=tag(search,choice(dice,auc))",), RequestError, "got metrics.dice"),
        ((LR, "recipe.select=last"), RequestError, "a search needs a recipe that selects epochs"),
        (("search=", "search_subjects=sub-01"), RequestError, "add search=optuna, or leave them out with exclude="),
    ],
)  # fmt: skip
def test_invalid_requests_are_refused(
    ask: Ask, overrides: tuple[str, ...], error: type[Exception], message: str
) -> None:
    """Invalid requests are refused, and the message suggests a remedy."""
    with pytest.raises(error, match=message):
        ask(*overrides)


def test_type_of_an_option_determines_the_proposals(ask: Ask) -> None:
    """The type of an option determines whether integers or real numbers are proposed."""
    space = ask("recipe.lesion_weight=interval(1,8)", "recipe.epochs=interval(2.0,8.0)").space
    assert {one.key: one.integer for one in space if isinstance(one, Interval)} == {
        "recipe.lesion_weight": False,
        "recipe.epochs": True,
    }


def test_overrides_change_a_named_space(ask: Ask) -> None:
    """A fixed value removes a dimension of a named space, and an override replaces one."""
    named = {one.key for one in ask("space=recipe", "recipe.batch_size=").space}
    assert {"recipe.lr", "recipe.batch_size"} <= named
    space = {one.key: one for one in ask("space=recipe", "recipe.batch_size=4", LR).space}
    assert space.keys() == named - {"recipe.batch_size"}
    assert space["recipe.lr"] == Interval("recipe.lr", 1e-4, 1e-1, log=True)


def test_short_names_are_searched_by_their_full_key(ask: Ask) -> None:
    """Short names of dimensions are resolved to full keys: ``width`` is ``model.width``."""
    assert [one.key for one in ask("width=interval(2,4)", "model.width=").space] == ["model.width"]


def test_a_model_comes_before_its_options(ask: Ask) -> None:
    """The model is chosen before its options are set."""
    request = ask("model.width=interval(2,4)", "model.depth=", "model=tag(search,choice(basic_unet,unet))")
    assert [one.key for one in request.space] == ["model", "model.width"]
    configuration = prepare(request).configurations[0]
    chosen = with_values(configuration, {"model.width": 3, "model": "basic_unet"})
    assert (chosen.task["model"]["use"], chosen.task["model"]["width"]) == ("basic_unet", 3)


def test_an_option_must_exist_in_every_model(ask: Ask) -> None:
    """A dimension must be an option of every model of the space."""
    with pytest.raises(UnknownName, match="no option of model basic_unet is named 'depth'"):
        ask("model.depth=interval(1,2)", "model=tag(search,choice(unet,basic_unet))")


# --- Ray ---


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """A Ray session for the tests of this module."""
    with session(RunSettings()):
        yield


@pytest.mark.ray
@pytest.mark.slow
def test_search_with_ray_agrees_with_this_process(ray: None, data: Path, tmp_path: Path) -> None:
    """With Ray and one candidate at a time, a search is reproducible and agrees with one in this process."""
    overrides = (LR, "fold=0,2", "ray=auto", "workers=1")
    plans = [prepare(_ask(data, tmp_path / name, *overrides)) for name in ("a", "b")]
    found = [perform(plan.searches, plan.store, plan.request.settings) for plan in plans]
    assert [chosen.trials for chosen in found[0].values()] == [chosen.trials for chosen in found[1].values()]
    alone = prepare(_ask(data, tmp_path / "c", LR, "fold=0,2"))
    local = perform(alone.searches, alone.store, alone.request.settings)
    for identity, chosen in found[0].items():
        # The two schedulers may stop at different epochs, but finished trainings are the same.
        pairs = [(a, b) for a, b in zip(chosen.trials, local[identity].trials, strict=True) if a.values == b.values]
        assert pairs  # both start with the same proposals from one sampler and seed
        assert all(a.value == b.value for a, b in pairs if a.state == b.state == "done")
    assert not prepare(_ask(data, tmp_path / "a", *overrides)).searches


@pytest.mark.ray
def test_search_with_ray_records_failed_candidates(ray: None, data: Path, tmp_path: Path) -> None:
    """With Ray, failed candidates are recorded once, and the run continues with the best values."""
    overrides = ("recipe.lesion_weight=tag(search,choice(1.0,1e38))", "fold=0", "trials=4", "ray=auto")
    made: Plan = run(prepare(_ask(data, tmp_path, *overrides)))
    assert not made.missing()
    (path,) = (made.store.root / "search").glob("*/record.json")
    trials = json.loads(path.read_text())["trials"]
    assert len(trials) == 4
    states = {(trial["values"]["recipe.lesion_weight"], trial["state"]) for trial in trials}
    assert (1e38, "failed") in states and (1e38, "done") not in states
    assert all("the loss must be finite, got nan" in trial["error"] for trial in trials if trial["state"] == "failed")
    assert made.jobs[0].configuration.task["recipe"]["lesion_weight"] == 1.0
    assert not list((tmp_path / "ray").glob("search-*"))


@pytest.mark.ray
def test_search_with_ray_ends_if_its_result_cannot_be_kept(
    ray: None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune takes an error in a callback for one of the trial; the run must not go on without the result."""

    def full(store: Store, name: str, what: object) -> None:
        raise StoreError("no space left for the search")

    plan = prepare(_ask(data, tmp_path, LR, "fold=0", "trials=2", "recipe.epochs=1", "ray=auto"))
    monkeypatch.setattr(Store, "keep", full)
    with pytest.raises(StoreError, match="no space left for the search"):
        perform(plan.searches, plan.store, plan.request.settings)
