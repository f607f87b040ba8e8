"""How a function becomes a metric, and how a metric is evaluated.

A metric asks for its inputs by parameter name and gets exactly those:

* a parameter without default is an input that must be there;
* a positional parameter with a default is an input that may be absent;
* a keyword-only parameter with a default is an option of the user.
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
from harness.metrics.metric_inputs import KIND_INPUTS, METRIC_INPUTS, MetricInputs

__all__ = [
    "Level",
    "asks",
    "choose",
    "evaluate",
    "evaluate_ceiling",
    "evaluate_chance",
    "kinds_of",
    "metric",
    "options",
]

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
Level = Literal["subject", "explanation", "probe", "pool"]

NAN = float("nan")

# What each level can be asked for: a pooled metric sees values, never images,
# and a metric of a subject must not depend on how the subject was explained.
_OF_LEVEL: Mapping[str, frozenset[str]] = {
    "subject": frozenset(METRIC_INPUTS) - {"columns", "explanation", "channels", "image", "predict"},
    "explanation": frozenset(METRIC_INPUTS) - {"columns", "image", "predict"},
    "probe": frozenset(METRIC_INPUTS) - {"columns"},
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
) -> Callable[[F], F]:
    """Decorator: register a function as a metric and return it untouched.

    Parameters
    ----------
    name : what the user types
    source : who published it, or the library or convention it follows
    direction : ``"higher"`` or ``"lower"`` is better, ``"zero"``: the nearer to
        zero the better, ``"none"``: a description, not a quality
    range : lowest and highest possible value, both included
    level : ``"subject"``: one value per sample; ``"explanation"``: one per sample
        and explanation; ``"probe"``: likewise, with the network at hand (``predict``);
        ``"pool"``: one over all samples
    kinds : kinds of targets that it is for; by default those that supply what it asks
        for. A task that uses it for other targets is refused
    empty : what comes back when the metric is not defined
    chance : what no skill scores: a number, or the name of the metric that works
        it out for the subject at hand (see :func:`evaluate_chance`)
    ceiling : what no prediction can exceed on the data at hand, if that is less than the
        end of the range; as for ``chance`` (see :func:`evaluate_ceiling`)
    needs : for pooled metrics, the subject-level metrics whose columns it reads
    interval : whether a pooled metric estimates something; a p-value does not

    Raises
    ------
    RegistrationError
        If the function asks for something that does not exist or that its level
        cannot supply, or if a fact is nonsense.
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
            asks=asks(function),
            kinds=kinds,
        )(function)
        return function

    return decorate


def kinds_of(component: Callable[..., Any]) -> tuple[Kind, ...]:
    """Kinds of targets that a metric, or a partial of one, is for.

    Those that it declares, else those that supply everything it asks for; of a pooled
    metric, those that all of its columns are for.
    """
    entry = METRICS.get(METRICS.name_of(_unwrapped(component)))
    declared: tuple[Kind, ...] = entry.facts["kinds"]
    if declared:
        return declared
    if entry.facts["needs"]:
        of_columns = [kinds_of(METRICS.get(name).function) for name in entry.facts["needs"]]
        return tuple(kind for kind in KINDS if all(kind in kinds for kinds in of_columns))
    special = frozenset[str]().union(*KIND_INPUTS.values())
    if entry.facts["level"] in ("explanation", "probe"):
        special -= {"target", "target_lesions"}  # the truth of a map may be a mask whatever is predicted
    wanted = special.intersection(entry.facts["asks"])
    return tuple(kind for kind in KINDS if wanted <= KIND_INPUTS[kind])


def asks(part: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the inputs that a metric, or a partial of one, asks for."""
    return tuple(_asked(_unwrapped(part)))


def options(part: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the options that a metric, or a partial of one, takes."""
    function = _unwrapped(part)
    return tuple(name for name in inspect.signature(function).parameters if name not in _asked(function))


def evaluate(part: Callable[..., Any], inputs: MetricInputs) -> float:
    """Call a metric with what it asks for.

    Parameters
    ----------
    part : a metric, or ``functools.partial`` of one with options
    inputs : one subject's arrays, or the columns of all subjects

    Returns
    -------
    float
        NaN where the metric is not defined.

    Raises
    ------
    RequestError
        If something that the metric must have is absent.
    """
    function = _unwrapped(part)
    given = part.keywords if isinstance(part, partial) else {}
    positional: list[Any] = []
    named: dict[str, Any] = dict(given)
    for name, parameter in _asked(function).items():
        value = inputs.get(name)
        if value is None:
            if parameter.default is parameter.empty:
                raise RequestError(
                    f"metric {function.__name__} needs `{name}` ({METRIC_INPUTS[name]}), which is absent; "
                    f"{_remedy(name, inputs)}"
                )
            value = parameter.default
        if parameter.kind is parameter.KEYWORD_ONLY:
            named[name] = value
        else:
            positional.append(value)
    return float(function(*positional, **named))


def evaluate_chance(part: Callable[..., Any], inputs: MetricInputs) -> float:
    """What no skill would score on these inputs, with the same options.

    Returns
    -------
    float
        The constant that the metric declares, the value of the metric it names
        (called with those of the part's options that it also takes), or NaN.
    """
    return _evaluate_fact("chance", part, inputs)


def evaluate_ceiling(part: Callable[..., Any], inputs: MetricInputs) -> float:
    """What no prediction can exceed on these inputs, with the same options.

    Returns
    -------
    float
        As for :func:`evaluate_chance`; NaN means that only the range is known.
    """
    return _evaluate_fact("ceiling", part, inputs)


def choose(option: str, value: str, table: Mapping[str, T]) -> T:
    """The entry of a closed table that an option names.

    Raises
    ------
    UnknownName
        With the near names, then all.
    """
    try:
        return table[value]
    except KeyError:
        raise UnknownName(f"value of {option}", value, table) from None


def _evaluate_fact(fact: str, part: Callable[..., Any], inputs: MetricInputs) -> float:
    level = METRICS.get(METRICS.name_of(_unwrapped(part))).facts[fact]
    if level is None:
        return NAN
    if not isinstance(level, str):
        return float(level)
    function = METRICS.get(level).function
    given = part.keywords if isinstance(part, partial) else {}
    shared = {name: value for name, value in given.items() if name in options(function)}
    return evaluate(partial(function, **shared), inputs)


def _unwrapped(part: Callable[..., Any]) -> Callable[..., Any]:
    return part.func if isinstance(part, partial) else part


@cache
def _asked(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    return {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.default is parameter.empty
    }


def _verify(name: str, function: Callable[..., Any], level: str) -> None:
    if level not in _OF_LEVEL:
        raise RegistrationError(f"metric {name!r}: level must be one of {', '.join(_OF_LEVEL)}, got {level!r}")
    known = _OF_LEVEL[level]
    for asked, parameter in _asked(function).items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise RegistrationError(
                f"metric {name!r} takes *{asked}; every parameter must have the name of what it asks"
            )
        if asked in known:
            continue
        if asked in METRIC_INPUTS:
            raise RegistrationError(
                f"metric {name!r} of level {level!r} asks for `{asked}`, which that level cannot supply; "
                f"it has: {', '.join(sorted(known))}"
            )
        near = difflib.get_close_matches(asked, sorted(known), n=3, cutoff=0.5)
        hint = f" Near: {', '.join(near)}." if near else ""
        raise RegistrationError(
            f"metric {name!r} asks for `{asked}`, which does not exist.{hint} All: {', '.join(sorted(known))}. "
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
        raise RegistrationError(f"metric {name!r}: only a pooled metric reads columns, got needs={needs} at {level!r}")
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise RegistrationError(f"metric {name!r}: kinds must be among {', '.join(KINDS)}, got {', '.join(unknown)}")


def _remedy(name: str, inputs: MetricInputs) -> str:
    if name.endswith("_lesions"):
        of = name.removesuffix("_lesions")
        absent = [part for part in (of, "spacing_mm") if inputs.get(part) is None]
        return f"give {' and '.join(absent)}"
    return f"give {name}=…"
