"""The grid of a sweep: its points, and the task at each of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from harness.core.errors import RequestError
from harness.core.overrides import component_of, keys, override, preset
from harness.core.registry import TARGETS
from harness.core.space import grid
from harness.core.task import Task, describe, describe_component
from harness.core.types import JSON

__all__ = ["at", "columns_of", "idle_error", "idle_options", "points"]


def points(task: Task, axes: Mapping[str, tuple[JSON, ...]]) -> list[dict[str, JSON]]:
    """The points of a grid, each without options that have no effect there.

    An option that the chosen component does not have is left out:
    ``model=cnn,mass_univariate model.statistic=t,welch`` gives three points, one with the
    CNN and two with the other model. So are options of simulated targets where the target
    is measured.

    Raises
    ------
    UnknownName
        If none of the chosen components has an option.
    RequestError
        If an option of simulated scores is swept and all points use measured scores.
    """
    found: list[dict[str, JSON]] = []
    wanted = set(axes)
    for point in grid(axes):
        own = {key: value for key, value in point.items() if _applies(task, point, key)}
        idle = idle_options(at(task, own))
        own = {key: value for key, value in own.items() if task.axes.get(key, key) not in idle}
        wanted -= set(own)
        if own not in found or len(own) == len(point):
            found.append(own)
    if wanted:  # raises UnknownName with the options that exist
        at(task, next(iter(grid(axes))))
        raise idle_error(wanted)
    return found


def idle_error(keys: Iterable[str]) -> RequestError:
    """The error for keys that have no effect, see :func:`idle_options`."""
    return RequestError(
        f"{', '.join(sorted(keys))} applies to simulated scores only; remove it (or the experiment that sets it) when "
        "score= is set"
    )


def idle_options(task: Task) -> frozenset[str]:
    """Full keys of target options without effect, because the target is measured rather than simulated."""
    found: set[str] = set()
    for label, component in task.targets.items():
        facts = TARGETS.get(TARGETS.name_of(component.func)).facts
        described, measured = describe_component(TARGETS, component), facts.get("measured", "")
        if measured and described[measured]:
            effective = ("use", measured, *facts.get("of_measured", ()))
            found |= {f"targets.{label}.{name}" for name in described if name not in effective}
    return frozenset(found)


def _applies(task: Task, point: Mapping[str, JSON], key: str) -> bool:
    """Whether an option exists at a point, given the components chosen there."""
    component, option = component_of(task, key)
    chosen = [name for name in point if component_of(task, name) == (component, "")]
    if not option or not chosen:
        return True
    changed = override(task, chosen[0], point[chosen[0]])
    return f"{component}.{option}" in keys(changed)


def at(task: Task, point: Mapping[str, JSON]) -> Task:
    """The task at a point of the grid; components are chosen before their options are set."""
    components = [key for key in point if not component_of(task, key)[1]]
    for key in components:
        task = override(task, key, point[key])
    task = preset(task, but=[task.axes.get(key, key) for key in point])
    for key in point:
        if key not in components:
            task = override(task, key, point[key])
    return task


def columns_of(task: Task, searched: Collection[str] = ()) -> dict[str, JSON]:
    """Axes that every row of the leaderboard shows, with their current values.

    Parameters
    ----------
    task : task at a grid point
    searched : full keys that a search sets, so that the task's own value is not used
    """
    described, idle = describe(task), {*idle_options(task), *searched}
    found: dict[str, JSON] = {}
    for name in task.columns:
        key = task.axes.get(name, name)
        component, option = component_of(task, name)
        if key not in idle:
            head, _, label = component.partition(".")
            of_component = described[head][label] if label else described[head]
            found[name] = of_component[option] if option else of_component["use"]
    return found
