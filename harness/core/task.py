"""The declaration of a study.

A :class:`Task` is a frozen value whose components are ``functools.partial`` of
registered functions. :func:`describe` turns it into plain JSON, :func:`restore`
turns JSON back (on a worker, without importing the task's module).
:mod:`harness.core.overrides` makes changed copies.
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
from harness.core.space import Dimension
from harness.core.types import JSON, Source
from harness.core.values import option_value, options_of, plain

__all__ = [
    "LABELLED",
    "SCALARS",
    "SINGLE",
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
"""Kinds of components of which a task has one each."""

LABELLED = {"targets": "target", "attributions": "attribution", "metrics": "metric"}
"""Fields that hold several components by label → their kind."""

SCALARS: Mapping[str, Any] = {
    "objective": str,
    "explanation_objective": str,
    "phantom_subjects": Annotated[int, Ge(1)],
    "phantom_seed": Annotated[int, Ge(0)],
}


@dataclass(frozen=True)
class Task:
    """One study, declared.

    Parameters
    ----------
    name : what the user types
    version : raised when the meaning of the task changes; enters every identity
    question : what the study asks, one sentence
    source : the paper
    phantom : generates one subject with a known truth, used when no data are given
    phantom_subjects : how many
    phantom_seed : seed of the generated cohort, the same for all runs
    cohort : turns a folder into a :class:`~harness.core.types.Cohort`
    targets : label → component that gives the cohort one target or several
    adapter : what the network sees of a sample and what it should say
    split : samples → folds, and perhaps a fixed test set
    model : builds the network
    recipe : how it is trained
    explanations : label → attribution, or :class:`~harness.core.explanations.Explanation`
        where more than the method is chosen
    postprocessing : applied to each sample's map, unless an explanation has its own;
        ``None`` leaves maps as they are
    metrics : label → metric (of a sample, an explanation, a probe, or pooled)
    objective : label of the metric that ranks configurations
    explanation_objective : label of the metric that ranks explanations
    axes : short names of keys, e.g. ``sequences`` for ``adapter.channels``
    profiles : name → overrides; ``quick`` is the default
    data_profiles : name → further overrides when the user brings data
    presets : condition → overrides where it holds, unless the user gives the key.
        A condition is words that must all be true, of the profile, the experiment
        and the components: ``"profile=paper experiment=noise model=cnn"``
    experiments : name → axes, the published grids
    experiment : the one that runs when no axis is given
    spaces : name → search space
    hypotheses : what the paper says of its configurations, to be tested
    published : a table of the paper, to stand beside ours
    regional : labels of metrics that are also computed in each region
    columns : axes that every row of the leaderboard names, swept or not
    problem : axes that pose the problem (noise, score, label); the others answer it.
        Ranks and comparisons hold within one problem. See :meth:`poses`
    shown : metrics that the console shows, in order
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
    experiments: Mapping[str, Mapping[str, tuple[JSON, ...]]] = field(default_factory=dict)
    experiment: str = ""
    spaces: Mapping[str, tuple[Dimension, ...]] = field(default_factory=dict)
    hypotheses: tuple[Hypothesis, ...] = ()
    published: Published | None = None
    regional: tuple[str, ...] = ()
    columns: tuple[str, ...] = ("model",)
    problem: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()

    @cached_property
    def explained(self) -> dict[str, Explanation]:
        """Every explanation in full, with the task's postprocessing where it has none of its own."""
        found = {}
        for label, one in self.explanations.items():
            whole = one if isinstance(one, Explanation) else Explanation(one)
            own = whole.postprocess is None and self.postprocessing is not None
            found[label] = dataclasses.replace(whole, postprocess=self.postprocessing) if own else whole
        return found

    @property
    def summed(self) -> bool:
        """Whether any explanation is judged as a sum over samples."""
        return any(one.judged_as_sum for one in self.explained.values())

    @property
    def attributions(self) -> dict[str, Component]:
        """Label → attribution of every explanation."""
        return {label: one.attribution for label, one in self.explained.items()}

    def __post_init__(self) -> None:
        for name, objective in (("objective", self.objective), ("explanation_objective", self.explanation_objective)):
            if objective not in self.metrics:
                raise UnknownName(f"metric of task {self.name} (its {name})", objective, self.metrics)
            facts = KINDS["metric"].get(KINDS["metric"].name_of(self.metrics[objective].func)).facts
            explains = name == "explanation_objective"
            of_maps = facts["level"] in ("explanation", "probe")
            if facts["direction"] not in ("higher", "lower") or of_maps != explains:
                raise OutOfRange(
                    f"{name} must be a metric of {'explanations' if explains else 'predictions'} of which higher or "
                    f"lower is better, got {objective} ({facts['level']}, {facts['direction']} is better)"
                )
        claimed = [ordering.metric for ordering in self.hypotheses]
        for metric in (*claimed, *(self.published.metrics if self.published else ())):
            if metric not in self.metrics:
                raise UnknownName(f"metric of task {self.name} (in a claim of its paper)", metric, self.metrics)
        metrics = KINDS["metric"]
        for label, part in self.metrics.items():
            for needed in metrics.get(metrics.name_of(part.func)).facts.get("needs", ()):
                if needed not in self.metrics:
                    raise UnknownName(f"metric of task {self.name} (which {label} pools)", needed, self.metrics)

        for name in self.problem:
            if self.axes.get(name, name).partition(".")[0] not in (*SINGLE, *LABELLED, *SCALARS):
                raise UnknownName(f"axis of task {self.name} (in what poses its problem)", name, self.axes)

    def poses(self, axis: str) -> bool:
        """Whether an axis poses the problem; short names and full keys are the same axis."""
        return self.axes.get(axis, axis) in {self.axes.get(name, name) for name in self.problem}


@dataclass(frozen=True)
class Configuration:
    """One point of the grid: what determines a training, as plain JSON.

    Parameters
    ----------
    task : ``describe(task)`` after all overrides
    axes : the labels by which a person tells this point from its neighbours
    profile : ``quick`` or ``paper``
    fingerprint : of the images and masks that this configuration reads
    """

    task: JSON
    axes: Mapping[str, JSON]
    profile: str
    fingerprint: str

    @property
    def id(self) -> str:
        """Identity; explanations, metrics, labels and objectives are not part of it."""
        # A searched row is not the plain one: its folds train with values of their own.
        searched = {key: self.task[key] for key in ("searched", "search") if key in self.task}
        determining = {key: self.task[key] for key in _DETERMINING if key in self.task}
        return identify({**determining, **searched, "cohort_fingerprint": self.fingerprint})


_DETERMINING = ("name", "version", "targets", "adapter", "split", "model", "recipe")


def describe(task: Task) -> dict[str, JSON]:
    """The task as plain JSON, every option with its value, defaults included."""
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
        **{kind: describe_component(KINDS[kind], part) for kind, part in single_components(task).items()},
        **{
            many: {label: describe_component(KINDS[kind], part) for label, part in getattr(task, many).items()}
            for many, kind in LABELLED.items()
        },
    }


def restore(description: Mapping[str, JSON]) -> Task:
    """The inverse of :func:`describe`; looks parts up by name, imports no task."""

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
    """Everything but the attribution, which is described among the attributions."""
    whole = one if isinstance(one, Explanation) else Explanation(one)
    done = whole.postprocess
    return {
        **{name: getattr(whole, name) for name in FIELDS},
        "postprocess": None if done is None else describe_component(KINDS["postprocessing"], done),
    }


def describe_component(registry: Registry, component: Component) -> dict[str, JSON]:
    """One component as JSON: ``{"use": name, option: value, …}``."""
    options = {name: parameter.default for name, parameter in options_of(component.func).items()}
    name = registry.name_of(component.func)
    if component.args:
        raise RequestError(
            f"options of {registry.kind} {name} must be given by name, got {component.args!r} by position"
        )
    unknown = set(component.keywords) - set(options)
    if unknown:
        raise UnknownName(f"option of {registry.kind} {name}", sorted(unknown)[0], options)
    # As its type has it: 3 and 3.0 are one value of a float, and must be one configuration.
    values = {
        key: option_value(component.func, key, value, key) for key, value in {**options, **component.keywords}.items()
    }
    return {"use": name, **{key: plain(value) for key, value in values.items()}}


def single_components(task: Task) -> dict[str, Component]:
    """The components of which a task has one each, without those that it does not have."""
    return {kind: part for kind in SINGLE if (part := getattr(task, kind)) is not None}
