"""Registration and evaluation of metrics.

A metric receives its inputs by parameter name (see
:mod:`harness.metrics.metric_inputs`):

* a parameter without a default is a required input;
* a positional parameter with a default is an optional input;
* a keyword-only parameter with a default is an option that users can set.
"""

from __future__ import annotations

import difflib
import inspect
import typing
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, Literal, TypeVar

from harness.core.errors import RegistrationError, RequestError, UnknownName
from harness.core.registry import METRICS
from harness.core.targets import KINDS, Kind
from harness.core.types import Direction, Source
from harness.metrics.metric_inputs import METRIC_INPUTS, MetricInputs

__all__ = [
    "Level",
    "choose",
    "evaluate",
    "evaluate_all",
    "evaluate_ceiling",
    "evaluate_chance",
    "inputs_of",
    "kinds_of",
    "needs_target",
    "metric",
    "options",
]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
Level = Literal["subject", "explanation", "probe", "pool"]

NAN = float("nan")

# Inputs available at each level: pooled metrics use values rather than images, and
# metrics of predictions must not depend on explanations.
_OF_PROBE = frozenset({"image", "image_channels", "predict", "predict_logit"})
_OF_LEVEL: Mapping[str, frozenset[str]] = {
    "subject": frozenset(METRIC_INPUTS) - {"columns", "explanation", "channels", "nuisance", "numbers", *_OF_PROBE},
    "explanation": frozenset(METRIC_INPUTS) - {"columns", "covariates", *_OF_PROBE},
    "probe": frozenset(METRIC_INPUTS) - {"columns", "covariates"},
    "pool": frozenset({"columns"}),
}


def metric(
    name: str,
    *,
    source: Source | str,
    direction: Direction,
    range: tuple[float, float],
    level: Level = "subject",
    empty: str = "NaN, and the mean skips it",
    chance: float | str | None = None,
    ceiling: float | str | None = None,
    needs: tuple[str, ...] = (),
    interval: bool = True,
    kinds: tuple[Kind, ...] = (),
    fault: tuple[float, str] | None = None,
    several: bool = False,
) -> Callable[[F], F]:
    """Register the decorated function as a metric and return it unchanged.

    Parameters
    ----------
    name : name on the command line
    source : publication, or the library or convention that the metric follows
    direction : whether ``"higher"`` or ``"lower"`` values are better, or values closer to
        ``"zero"``; ``"none"`` for a descriptive metric
    range : lowest and highest possible value, both inclusive
    level : ``"subject"`` for one value per sample, ``"explanation"`` for one value per
        sample and explanation, ``"probe"`` for the same with access to the network
        (``predict``), ``"pool"`` for one value over all samples
    empty : result where the metric is undefined
    chance : score without skill: a number, or the name of a metric that computes it for
        each subject (see :func:`evaluate_chance`)
    ceiling : best possible score on the given data, if it is below the end of the range;
        a number or the name of a metric (see :func:`evaluate_ceiling`)
    needs : for pooled metrics, the metrics of samples whose values are pooled. If any of
        them evaluates explanations, so does the pooled metric: it has a value for each
        explanation, and metrics of predictions are those of the explained target. Without
        any, all columns of the target are given, and the metric must name its ``kinds``
    interval : whether an interval is computed for a pooled metric; not for a p value
    kinds : kinds of targets that the metric supports; by default, all kinds that provide
        its inputs. Tasks that use it for other targets are rejected
    fault : for pooled metrics, (bound, flag): a lower value means that something is wrong,
        and the row has the flag
    several : whether the metric returns several values by name, for pooled metrics only.
        Each is a column ``METRIC@NAME``; they are not shown in tables

    Raises
    ------
    RegistrationError
        If the function has an input that does not exist or is not available at its level,
        or if an argument is invalid.
    """

    def decorate(function: F) -> F:
        _verify(name, function, level)
        _verify_facts(name, direction, range, level, needs, kinds)
        METRICS.register(
            name,
            source=str(source),
            direction=direction,
            range=range,
            level=level,
            empty=empty,
            chance=chance,
            ceiling=ceiling,
            needs=needs,
            interval=interval,
            inputs=inputs_of(function),
            kinds=kinds,
            fault=fault,
            several=several,
        )(function)
        return function

    return decorate


def kinds_of(component: Callable[..., Any]) -> tuple[Kind, ...]:
    """Kinds of targets that a metric, or a partial of one, supports.

    These are the declared kinds or, by default, the kinds that provide all inputs of the
    metric. For a pooled metric, they are the kinds supported by all of its columns.
    """
    entry = METRICS.get(METRICS.name_of(_unwrapped(component)))
    declared: tuple[Kind, ...] = entry.facts["kinds"]
    if declared:
        return declared
    if entry.facts["needs"]:
        of_columns = [kinds_of(METRICS.get(name).function) for name in entry.facts["needs"] if name in METRICS.names()]
        return tuple(kind for kind in KINDS if all(kind in kinds for kinds in of_columns))
    given = {kind: one.truth_inputs | one.prediction_inputs for kind, one in KINDS.items()}
    special = frozenset[str]().union(*given.values())
    if entry.facts["level"] in ("explanation", "probe"):
        special -= KINDS["mask"].truth_inputs  # the truth of a map can be a mask for any kind of target
    wanted = special.intersection(entry.facts["inputs"])
    return tuple(kind for kind in KINDS if wanted <= given[kind])


def inputs_of(component: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the inputs of a metric, or of a partial of one."""
    return tuple(_input_parameters(_unwrapped(component)))


def needs_target(component: Callable[..., Any]) -> bool:
    """Whether a metric has no value without a true mask, which is missing for measured data."""
    function = _unwrapped(component)
    found = inspect.signature(function).parameters.get("target")
    return found is not None and found.default is inspect.Parameter.empty


def options(component: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the options of a metric, or of a partial of one."""
    function = _unwrapped(component)
    return tuple(name for name in inspect.signature(function).parameters if name not in _input_parameters(function))


def evaluate(component: Callable[..., Any], inputs: MetricInputs) -> float:
    """Evaluate a metric.

    Parameters
    ----------
    component : a metric, or a ``functools.partial`` of one with options
    inputs : arrays of one subject, or columns of all subjects

    Returns
    -------
    float
        NaN where the metric is undefined.

    Raises
    ------
    RequestError
        If a required input is missing, or the metric has several values.
    """
    found = _call(component, inputs)
    if isinstance(found, Mapping):
        raise RequestError(
            f"metric {_unwrapped(component).__name__} has several values ({', '.join(found) or 'none here'}), and one "
            "is needed; call harness.metrics.register.evaluate_all"
        )
    return float(found)


def evaluate_all(component: Callable[..., Any], inputs: MetricInputs) -> float | dict[str, float]:
    """Evaluate a metric with one value, or with several values by name.

    Parameters
    ----------
    component, inputs : see :func:`evaluate`
    """
    found = _call(component, inputs)
    if isinstance(found, Mapping):
        return {name: float(value) for name, value in found.items()}
    return float(found)


def _call(component: Callable[..., Any], inputs: MetricInputs) -> Any:
    function = _unwrapped(component)
    given = component.keywords if isinstance(component, partial) else {}
    positional: list[Any] = []
    named: dict[str, Any] = dict(given)
    for name, parameter in _input_parameters(function).items():
        value = inputs.get(name)
        if value is None:
            if parameter.default is parameter.empty:
                raise RequestError(
                    f"metric {function.__name__} needs `{name}` ({METRIC_INPUTS[name]}), which is missing; "
                    f"{_remedy(name, inputs)}"
                )
            value = parameter.default
        if parameter.kind is parameter.KEYWORD_ONLY:
            named[name] = value
        else:
            positional.append(value)
    return function(*positional, **named)


def evaluate_chance(component: Callable[..., Any], inputs: MetricInputs) -> float:
    """Score without skill on these inputs, for the same options.

    Returns
    -------
    float
        The declared constant, or the value of the declared metric, evaluated with the
        options that both metrics have. NaN if none is declared.
    """
    return _evaluate_fact("chance", component, inputs)


def evaluate_ceiling(component: Callable[..., Any], inputs: MetricInputs) -> float:
    """Best possible score on these inputs, for the same options.

    Returns
    -------
    float
        As for :func:`evaluate_chance`; NaN if only the range is known.
    """
    return _evaluate_fact("ceiling", component, inputs)


def choose(option: str, value: str, table: Mapping[str, T]) -> T:
    """Look up the value of an option in a table.

    Raises
    ------
    UnknownName
        If the value is not in the table.
    """
    try:
        return table[value]
    except (KeyError, TypeError):  # TypeError: of a list, for example
        raise UnknownName(f"value of {option}", value, table) from None


def _evaluate_fact(fact: str, component: Callable[..., Any], inputs: MetricInputs) -> float:
    level = METRICS.get(METRICS.name_of(_unwrapped(component))).facts[fact]
    if level is None:
        return NAN
    if not isinstance(level, str):
        return float(level)
    function = METRICS.get(level).function
    given = component.keywords if isinstance(component, partial) else {}
    shared = {name: value for name, value in given.items() if name in options(function)}
    return evaluate(partial(function, **shared), inputs)


def _unwrapped(component: Callable[..., Any]) -> Callable[..., Any]:
    return component.func if isinstance(component, partial) else component


@cache
def _input_parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.default is parameter.empty
    }


def _verify(name: str, function: Callable[..., Any], level: str) -> None:
    if level not in _OF_LEVEL:
        raise RegistrationError(f"metric {name!r}: level must be one of {', '.join(_OF_LEVEL)}, got {level!r}")
    known = _OF_LEVEL[level]
    for wanted, parameter in _input_parameters(function).items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise RegistrationError(f"metric {name!r} has *{wanted}; every parameter must have the name of an input")
        if wanted in known:
            continue
        if wanted in METRIC_INPUTS:
            raise RegistrationError(
                f"metric {name!r} of level {level!r} has the input `{wanted}`, which is not available at that level; "
                f"available: {', '.join(sorted(known))}"
            )
        near = difflib.get_close_matches(wanted, sorted(known), n=3, cutoff=0.5)
        hint = f" Near: {', '.join(near)}." if near else ""
        raise RegistrationError(
            f"metric {name!r} has the input `{wanted}`, which does not exist.{hint} All: {', '.join(sorted(known))}. "
            "An option must be keyword-only and have a default."
        )


def _verify_facts(
    name: str,
    direction: str,
    bounds: tuple[float, float],
    level: str,
    needs: tuple[str, ...],
    kinds: tuple[str, ...],
) -> None:
    if direction not in typing.get_args(Direction):
        raise RegistrationError(
            f"metric {name!r}: direction must be one of {', '.join(typing.get_args(Direction))}, got {direction!r}"
        )
    if not bounds[0] < bounds[1]:
        raise RegistrationError(f"metric {name!r}: `range[0] < range[1]` must hold, got {bounds}")
    if needs and level != "pool":
        raise RegistrationError(f"metric {name!r}: only a pooled metric has columns, got needs={needs} at {level!r}")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise RegistrationError(f"metric {name!r}: kinds must be among {', '.join(KINDS)}, got {', '.join(unknown)}")


def _remedy(name: str, inputs: MetricInputs) -> str:
    if name.endswith("_lesions"):
        of = name.removesuffix("_lesions")
        absent = [given for given in (of, "spacing_mm") if inputs.get(given) is None]
        return f"pass {' and '.join(absent)}"
    return f"pass {name}=…"
