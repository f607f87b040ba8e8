"""The grids of a sweep: their points, and the task at each of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from harness.core.errors import RequestError
from harness.core.identity import canonical
from harness.core.overrides import component_of, keys, override, preset, value_of
from harness.core.registry import TARGETS
from harness.core.space import Grid, grid
from harness.core.task import Task, describe, describe_component
from harness.core.types import JSON

__all__ = ["at", "columns_of", "idle_error", "idle_options", "points", "without_effect"]


def points(task: Task, grids: Sequence[Grid]) -> list[dict[str, JSON]]:
    """The points of a union of grids, each without options that have no effect there.

    An option that the chosen component does not have is left out:
    ``model=cnn,mass_univariate model.statistic=t,welch`` gives three points, one with the
    CNN and two with the other model. So are options of simulated targets where the target
    is measured.

    Parameters
    ----------
    task : the task
    grids : one grid, or several that are united

    Returns
    -------
    list of dict
        Points in the order of the grids. All of them have the axes of all grids that apply
        to them: one that its own grid lacks has the value of the task. A point that is the
        same task as a point of an earlier grid is left out.

    Raises
    ------
    UnknownName
        If none of the chosen components has an option.
    RequestError
        If an option of simulated scores is swept and all points use measured scores.
    """
    names = dict.fromkeys(key for axes in grids for key in axes)
    found: list[dict[str, JSON]] = []
    known: list[str] = []
    wanted = set(names)
    for axes in grids:
        own, used = _points(task, axes)
        wanted -= used
        whole = [_completed(task, point, [name for name in names if name not in axes]) for point in own]
        described = [canonical(describe(at(task, point))) for point in whole]
        earlier = set(known)
        found += [point for point, one in zip(whole, described, strict=True) if one not in earlier]
        known += described
    if wanted:
        lacking = next(axes for axes in grids if wanted & set(axes))
        at(task, next(iter(grid(lacking))))  # raises UnknownName with the options that exist
        raise idle_error(wanted)
    return [{name: point[name] for name in names if name in point} for point in found]


def _points(task: Task, axes: Grid) -> tuple[list[dict[str, JSON]], set[str]]:
    """The points of one grid, and the axes that have an effect at any of them."""
    found: list[dict[str, JSON]] = []
    used: set[str] = set()
    for point in grid(axes):
        own = {key: value for key, value in point.items() if _applies(task, point, key)}
        idle = idle_options(at(task, own))
        own = {key: value for key, value in own.items() if task.axes.get(key, key) not in idle}
        used |= set(own)
        if own not in found or len(own) == len(point):
            found.append(own)
    return found, used


def _completed(task: Task, point: Mapping[str, JSON], names: Iterable[str]) -> dict[str, JSON]:
    """A point with the values of further axes at it, of those that apply."""
    reached = at(task, point)
    idle = idle_options(reached)
    described, known = describe(reached), keys(reached)
    more = [name for name in names if task.axes.get(name, name) in known and task.axes.get(name, name) not in idle]
    return {**point, **{name: value_of(described, reached, name) for name in more}}


def without_effect(task: Task, axes: Grid) -> list[str]:
    """Axes of a grid that no component chosen in it has."""
    return [key for key in axes if not any(_applies(task, point, key) for point in grid(axes))]


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
    if not option:
        return True
    chosen = [name for name in point if component_of(task, name) == (component, "")]
    changed = override(task, chosen[0], point[chosen[0]]) if chosen else task
    return f"{component}.{option}" in keys(changed)


def at(task: Task, point: Mapping[str, JSON]) -> Task:
    """The task at a point of the grid; components are chosen before their options are set."""
    components = [key for key in point if not component_of(task, key)[1]]
    for key in components:
        task = override(task, key, point[key])
    chosen = [task.axes.get(key, key) for key in point]
    task = preset(task, but=chosen)
    for key in point:
        if key not in components:
            task = override(task, key, point[key])
    return preset(task, but=chosen, of_options=True)


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
        if key not in idle:
            found[name] = value_of(described, task, name)
    return found
