"""The declaration of a study.

A :class:`Task` is immutable. Its components are ``functools.partial`` objects of
registered functions. :func:`describe` converts a task to plain JSON and
:func:`restore` converts it back, on a worker without importing the module of the
task. :mod:`harness.core.overrides` creates copies with changed values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Annotated, Any

from annotated_types import Ge

from harness.core.errors import OutOfRange, RequestError, UnknownName
from harness.core.explanations import FIELDS, Explanation
from harness.core.hypotheses import Hypothesis, Published
from harness.core.identity import identify
from harness.core.registry import KINDS, Registry
from harness.core.space import Dimension, Experiment
from harness.core.types import JSON, Source
from harness.core.values import option_value, options_of, plain

__all__ = [
    "INITIAL_WEIGHTS",
    "LABELLED",
    "SCALARS",
    "SINGLE",
    "VALIDATION",
    "Component",
    "Configuration",
    "Task",
    "describe",
    "describe_component",
    "restore",
    "single_components",
]

Component = partial[Any]

SINGLE = ("phantom", "cohort", "adapter", "split", "model", "recipe", "postprocessing")
"""Kinds of components of which a task has at most one."""

LABELLED = {"targets": "target", "attributions": "attribution", "metrics": "metric"}
"""Fields that hold several labelled components → their kind."""

VALIDATION = "_validation"
"""Suffix of metrics on validation samples, if there is a fixed test set."""
INITIAL_WEIGHTS = "initial_weights"
"""Key of a described task: digest of the file from which the network starts, if there is one."""

SCALARS: Mapping[str, Any] = {
    "objective": str,
    "explanation_objective": str,
    "phantom_subjects": Annotated[int, Ge(1)],
    "phantom_seed": Annotated[int, Ge(0)],
}


@dataclass(frozen=True)
class Task:
    """The declaration of one study.

    Parameters
    ----------
    name : name on the command line
    version : version of the task, part of every identity; increase it when the meaning
        of the task changes
    question : research question, one sentence
    source : the paper
    phantom : generates a subject with a known truth; used when no data are given
    phantom_subjects : number of generated subjects
    phantom_seed : seed of the generated cohort; independent of the seed of the run
    cohort : reads a folder into a :class:`~harness.core.types.Cohort`
    targets : label → component that adds one or more targets to the cohort
    adapter : converts samples to network inputs and targets
    split : assigns samples to folds, and optionally to a fixed test set
    model : builds the network
    recipe : trains the network
    explanations : label → attribution, or an
        :class:`~harness.core.explanations.Explanation` to set more than the method
    postprocessing : applied to the map of each sample, unless an explanation has its
        own postprocessing; ``None`` for none
    metrics : label → metric of a prediction, an explanation or a probe, or pooled over
        samples
    objective : label of the metric that ranks configurations
    explanation_objective : label of the metric that ranks explanations
    axes : short name → key, e.g. ``sequences`` for ``adapter.channels``
    profiles : name → overrides; ``quick`` is the default profile
    data_profiles : name of a profile → further overrides when the user provides data
    presets : condition → overrides that apply where the condition holds, unless the
        user sets the key. A condition lists what must all be true of the profile, the
        experiment, the subjects (``generated`` or ``given`` by the user), the components and
        their options: ``"profile=paper experiment=noise subjects=given model=cnn model.width=8"``
    experiments : name → grid, or a tuple of grids that are run together: configurations of several grids
        run once, and axes that a grid lacks have the value of the task
    experiment : experiment that runs by default, when no key is swept
    synonyms : other words for an experiment, ``key=value`` → its name, e.g. ``target=edss``
    spaces : name → search space
    hypotheses : hypotheses of the paper, to be tested
    published : tables of published results, shown next to the results
    regional : labels of metrics that are also computed within each region and for each
        target alone. Without any, all metrics are computed for each of several targets
    columns : short names of keys that are always columns of the leaderboard, even if
        they are not swept
    problem : short names of keys that define the problem (noise, score, label) rather
        than the solution (model, recipe). Configurations are ranked and compared within
        one problem, see :meth:`poses`
    shown : labels of the metrics that the console shows, in order
    ranks_scalars_together : whether explanations of different scalars (an output, attention
        weights) answer one question and are ranked together, rather than by scalar
    """

    name: str
    version: int
    question: str
    source: Source
    phantom: Component
    cohort: Component
    targets: Mapping[str, Component]
    adapter: Component
    split: Component
    model: Component
    recipe: Component
    explanations: Mapping[str, Component | Explanation]
    metrics: Mapping[str, Component]
    objective: str
    explanation_objective: str
    postprocessing: Component | None = None
    phantom_subjects: int = 6
    phantom_seed: int = 0
    axes: Mapping[str, str] = field(default_factory=dict)
    profiles: Mapping[str, Mapping[str, JSON]] = field(default_factory=dict)
    data_profiles: Mapping[str, Mapping[str, JSON]] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, JSON]] = field(default_factory=dict)
    experiments: Mapping[str, Experiment] = field(default_factory=dict)
    experiment: str = ""
    synonyms: Mapping[str, str] = field(default_factory=dict)
    spaces: Mapping[str, tuple[Dimension, ...]] = field(default_factory=dict)
    hypotheses: tuple[Hypothesis, ...] = ()
    published: tuple[Published, ...] = ()
    regional: tuple[str, ...] = ()
    columns: tuple[str, ...] = ("model",)
    problem: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    ranks_scalars_together: bool = False

    @cached_property
    def explained(self) -> dict[str, Explanation]:
        """All explanations, with the task's postprocessing unless they have their own."""
        found = {}
        for label, one in self.explanations.items():
            whole = one if isinstance(one, Explanation) else Explanation(one)
            own = whole.postprocess is None and self.postprocessing is not None
            found[label] = dataclasses.replace(whole, postprocess=self.postprocessing) if own else whole
        return found

    @property
    def attributions(self) -> dict[str, Component]:
        """Attributions of all explanations by label."""
        return {label: one.attribution for label, one in self.explained.items()}

    def __post_init__(self) -> None:
        for name, objective in (("objective", self.objective), ("explanation_objective", self.explanation_objective)):
            if objective not in self.metrics:
                raise UnknownName(f"metric of task {self.name} (its {name})", objective, self.metrics)
            facts = KINDS["metric"].get(KINDS["metric"].name_of(self.metrics[objective].func)).facts
            explains = name == "explanation_objective"
            if not self.can_rank(objective) or self.of_explanations(objective) != explains:
                raise OutOfRange(
                    f"{name} must be a metric of {'explanations' if explains else 'predictions'} for which higher or "
                    f"lower is better, got {objective} ({facts['level']}, {facts['direction']} is better)"
                )
        tested = [hypothesis.metric for hypothesis in self.hypotheses]
        printed = [name.removesuffix(VALIDATION) for table in self.published for name in table.metrics]
        for metric in (*tested, *printed):
            if metric not in self.metrics:
                raise UnknownName(f"metric of task {self.name} (in the results of its paper)", metric, self.metrics)
        for label in self.metrics:
            for needed in self._needs(label):
                if needed not in self.metrics:
                    raise UnknownName(f"metric of task {self.name} (which {label} pools)", needed, self.metrics)
                # What is chosen on validation samples, such as a threshold; it must not depend on another choice.
                chosen = self._level(needed) == "pool"
                if chosen and (
                    self.of_explanations(needed) or any(self._level(one) == "pool" for one in self._needs(needed))
                ):
                    raise OutOfRange(
                        f"{label} of task {self.name} must pool metrics of samples or use a metric that pools those of "
                        f"predictions, got {needed}"
                    )
        for experiment in self.synonyms.values():
            if experiment not in self.experiments:
                raise UnknownName(f"experiment of task {self.name} (in its synonyms)", experiment, self.experiments)
        for name in self.problem:
            if self.axes.get(name, name).partition(".")[0] not in (*SINGLE, *LABELLED, *SCALARS):
                raise UnknownName(f"key of task {self.name} (in its problem)", name, self.axes)

    def _needs(self, metric: str) -> tuple[str, ...]:
        """Metrics that a metric pools."""
        found: tuple[str, ...] = (
            KINDS["metric"].get(KINDS["metric"].name_of(self.metrics[metric].func)).facts.get("needs", ())
        )
        return found

    def _level(self, metric: str) -> str:
        """Level of a metric, by its label."""
        return str(KINDS["metric"].get(KINDS["metric"].name_of(self.metrics[metric].func)).facts["level"])

    def can_rank(self, metric: str) -> bool:
        """Whether higher or lower values of a metric, by its label, are better."""
        facts = KINDS["metric"].get(KINDS["metric"].name_of(self.metrics[metric].func)).facts
        return facts["direction"] in ("higher", "lower")

    def of_explanations(self, metric: str) -> bool:
        """Whether a metric, by its label, evaluates explanations, or pools values of metrics that do."""
        facts = KINDS["metric"].get(KINDS["metric"].name_of(self.metrics[metric].func)).facts
        needed = [name for name in facts.get("needs", ()) if name in self.metrics]
        return facts["level"] in ("explanation", "probe") or any(map(self.of_explanations, needed))

    def poses(self, axis: str) -> bool:
        """Whether a key, full or as a short name, defines the problem."""
        return self.axes.get(axis, axis) in {self.axes.get(name, name) for name in self.problem}


@dataclass(frozen=True)
class Configuration:
    """One grid point: everything that determines a training, as plain JSON.

    Parameters
    ----------
    task : ``describe(task)`` after all overrides
    axes : the keys that differ between grid points, with their values
    profile : ``quick`` or ``paper``
    fingerprint : hash of the data that this configuration reads
    """

    task: JSON
    axes: Mapping[str, JSON]
    profile: str
    fingerprint: str

    @property
    def id(self) -> str:
        """Identity of the configuration, independent of explanations, metrics, labels and objectives."""
        # With a hyper-parameter search, every fold trains with its own values.
        searched = {key: self.task[key] for key in ("searched", "search") if key in self.task}
        determining = {key: self.task[key] for key in _DETERMINING if key in self.task} | {"model": self.model}
        return identify({**determining, **searched, "cohort_fingerprint": self.fingerprint})

    @property
    def model(self) -> JSON:
        """The model with its options; a file of initial weights is identified by its content, not its path."""
        found = self.task.get("model", {})
        return {**found, "weights": self.task[INITIAL_WEIGHTS]} if INITIAL_WEIGHTS in self.task else found


_DETERMINING = ("name", "version", "targets", "adapter", "split", "model", "recipe")


def describe(task: Task) -> dict[str, JSON]:
    """Convert a task to plain JSON, with the values of all options, including defaults."""
    return {
        "name": task.name,
        "version": task.version,
        "question": task.question,
        "source": dataclasses.asdict(task.source),
        **{name: getattr(task, name) for name in SCALARS},
        "regional": list(task.regional),
        "columns": list(task.columns),
        "axes": dict(task.axes),
        "shown": list(task.shown),
        "problem": list(task.problem),
        "explanations": {label: _describe_explanation(one) for label, one in task.explanations.items()},
        **{kind: describe_component(KINDS[kind], component) for kind, component in single_components(task).items()},
        **{
            many: {label: describe_component(KINDS[kind], one) for label, one in getattr(task, many).items()}
            for many, kind in LABELLED.items()
        },
    }


def restore(description: Mapping[str, JSON]) -> Task:
    """Convert the JSON of :func:`describe` back to a task; components are looked up by name."""

    def component(kind: str, described: Mapping[str, JSON]) -> Component:
        options = {key: value for key, value in described.items() if key != "use"}
        function = KINDS[kind].get(described["use"]).function
        return partial(function, **{key: option_value(function, key, value, key) for key, value in options.items()})

    more: dict[str, Any] = {name: description[name] for name in SCALARS}
    more |= {kind: component(kind, description[kind]) for kind in SINGLE if kind in description}
    for many, kind in LABELLED.items():
        more[many] = {label: component(kind, described) for label, described in description[many].items()}
    attributions = more.pop("attributions")
    more["explanations"] = {
        label: Explanation(
            attributions[label],
            **{name: described[name] for name in FIELDS},
            postprocess=component("postprocessing", described["postprocess"]) if described["postprocess"] else None,
        )
        for label, described in description["explanations"].items()
    }
    return Task(
        name=description["name"],
        version=description["version"],
        question=description["question"],
        source=Source(**description["source"]),
        regional=tuple(description["regional"]),
        columns=tuple(description["columns"]),
        axes=description["axes"],
        shown=tuple(description["shown"]),
        problem=tuple(description["problem"]),
        **more,
    )


def _describe_explanation(one: Component | Explanation) -> dict[str, JSON]:
    """All fields except the attribution, which is listed under ``attributions``."""
    whole = one if isinstance(one, Explanation) else Explanation(one)
    done = whole.postprocess
    return {
        **{name: getattr(whole, name) for name in FIELDS},
        "postprocess": None if done is None else describe_component(KINDS["postprocessing"], done),
    }


def describe_component(registry: Registry, component: Component) -> dict[str, JSON]:
    """Convert a component to JSON: ``{"use": name, option: value, …}``."""
    options = {name: parameter.default for name, parameter in options_of(component.func).items()}
    name = registry.name_of(component.func)
    if component.args:
        raise RequestError(
            f"options of {registry.kind} {name} must be given by name, got {component.args!r} by position"
        )
    unknown = set(component.keywords) - set(options)
    if unknown:
        raise UnknownName(f"option of {registry.kind} {name}", sorted(unknown)[0], options)
    # Converted to the declared type: 3 and 3.0 are the same float, and must give the same configuration.
    values = {
        key: option_value(component.func, key, value, key) for key, value in {**options, **component.keywords}.items()
    }
    return {"use": name, **{key: plain(value) for key, value in values.items()}}


def single_components(task: Task) -> dict[str, Component]:
    """Components of a task by kind, for the kinds of which it has at most one."""
    return {kind: component for kind in SINGLE if (component := getattr(task, kind)) is not None}
