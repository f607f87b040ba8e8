"""Build the networks of a task, split their outputs, and compute the explained scalars."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.core.errors import CellError, RequestError, UnknownName
from harness.core.registry import MODELS, TARGETS
from harness.core.targets import Target
from harness.core.task import Task, describe_component
from harness.core.types import JSON, Adapter, Array, NetworkSpec
from harness.models.heads import HEADS

__all__ = [
    "MARGIN", "OWN", "Member", "Scalar", "Scalars", "build_network", "check_inputs", "device", "oracle_arguments",
    "scalars_of", "split_outputs", "tensor_of",
]  # fmt: skip


OWN = ":own"
"""End of the name of scalars of which each explains its own channel, e.g. ``attention:own``."""

MARGIN = ":margin"
"""End of the name of the difference between the logits of the predicted and the second most probable class."""


@dataclass(frozen=True)
class Member:
    """A trained network with its adapter.

    Parameters
    ----------
    network : network in evaluation mode
    adapter : adapter, fitted to the training samples of the network if necessary
    """

    network: torch.nn.Module
    adapter: Adapter


def tensor_of(array: Array) -> torch.Tensor:
    """A tensor of an array; a read-only array, such as a memory map, is copied, since a network may write into it."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def device() -> torch.device:
    """The GPU of this process if there is one, otherwise the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_inputs(task: Task, spec: NetworkSpec) -> None:
    """Check that the model builder takes all inputs of the adapter.

    Raises
    ------
    RequestError
        If the builder takes one input and the adapter gives several.
    """
    accepted = inspect.signature(task.model.func).parameters
    others = [one for one in spec.inputs[1:] if one.explained or one.shape or "covariates" not in accepted]
    if "in_channels" not in accepted or not others:
        return
    takes = [name for name in MODELS.names() if "covariates" in inspect.signature(MODELS.get(name).function).parameters]
    remedy = f"choose a model with a parameter `inputs` or, for covariates, `covariates` ({', '.join(takes)})"
    raise RequestError(
        f"model {MODELS.name_of(task.model.func)} takes one input, but the adapter gives {len(spec.inputs)} "
        f"({', '.join(one.name for one in spec.inputs)}); {remedy}"
    )


def build_network(task: Task, spec: NetworkSpec) -> torch.nn.Module:
    """Build an untrained network, with initial weights from torch's global generator.

    Model builders receive arguments by parameter name: ``inputs`` and ``targets`` of the
    specification, or, for a single image, ``in_channels``, ``image_shape``, the total
    number of ``outputs`` of all targets, and the number of ``covariates``.

    Raises
    ------
    RequestError
        As :func:`check_inputs`.
    """
    check_inputs(task, spec)
    accepted = inspect.signature(task.model.func).parameters
    supplied = {
        "inputs": spec.inputs,
        "targets": spec.targets,
        "in_channels": len(spec.inputs[0].channels),
        "outputs": spec.width,
        "image_shape": spec.inputs[0].shape,
        "covariates": sum(len(one.channels) for one in spec.inputs[1:]),
        **oracle_arguments(task),
    }
    if not spec.inputs[0].shape:
        del supplied["image_shape"]  # items differ in size; models that need a fixed size have a default
    own = {name: value for name, value in supplied.items() if name in accepted}
    network: torch.nn.Module = task.model(**own)
    return network


def oracle_arguments(task: Task) -> dict[str, JSON]:
    """Arguments of oracle models, from the options of simulated targets: shape, size and number of regions.

    Only those that the model of the task takes; empty if it is no oracle.
    """
    asked = inspect.signature(task.model.func).parameters
    found: dict[str, JSON] = {}
    for component in task.targets.values():
        arguments = TARGETS.get(TARGETS.name_of(component.func)).facts.get("oracle_arguments")
        found |= arguments(describe_component(TARGETS, component)) if arguments else {}
    return {name: value for name, value in found.items() if name in asked}


def split_outputs(outputs: Any, targets: Sequence[Target]) -> dict[str, torch.Tensor]:
    """Split the output of a network into the heads of its targets.

    Parameters
    ----------
    outputs : (N, Σ width, *space), the concatenated heads, or a mapping from target names
        to (N, width, *space)

    Raises
    ------
    CellError
        If the number of channels is wrong, or a target has no output.
    """
    if isinstance(outputs, Mapping):
        for target in targets:
            if target.name not in outputs or outputs[target.name].shape[1] != target.width:
                raise CellError(f"a network must give (N, {target.width}, …) for the target {target.name}")
        return {target.name: outputs[target.name] for target in targets}
    width = sum(target.width for target in targets)
    if outputs.shape[1] != width:
        raise CellError(
            f"a network must give {width} output channels for the targets "
            f"{', '.join(target.name for target in targets)}, got {tuple(outputs.shape)}"
        )
    if len(targets) == 1:
        return {targets[0].name: outputs}
    parts = torch.split(outputs, [target.width for target in targets], dim=1)
    return {target.name: part for target, part in zip(targets, parts, strict=True)}


@dataclass(frozen=True)
class Scalar:
    """A scalar that is explained.

    Parameters
    ----------
    name : name of the target, ``target:class``, ``target:margin``, or name under which the
        model exposes it
    target : target to which it belongs; ``None`` if the model exposes it
    index : index of the class, −1 for the predicted one; 0 for other kinds
    """

    name: str
    target: Target | None = None
    index: int = 0


def scalars_of(of: str, spec: NetworkSpec, network: torch.nn.Module) -> tuple[Scalar, ...]:
    """The scalars of an explanation (:class:`harness.core.explanations.Explanation`).

    Raises
    ------
    UnknownName
        If there is no such target, class or exposed scalar.
    """
    targets = {target.name: target for target in spec.targets}
    if not of:
        return tuple(_own(target) for target in spec.targets)
    name, _, label = of.partition(":")
    if name in targets and not label:
        return (_own(targets[name]),)
    if name in targets:
        if of.endswith(MARGIN) and targets[name].classes and label not in targets[name].classes:
            return (Scalar(of, targets[name], -1),)
        if label not in targets[name].classes:
            raise UnknownName(f"class of target {name}", label, targets[name].classes)
        return (Scalar(of, targets[name], targets[name].classes.index(label)),)
    exposed = tuple(getattr(network, "exposes", ()))
    if of.endswith(OWN):
        own = [f"{of.removesuffix(OWN)}:{channel}" for channel in spec.channels]
        if missing := [one for one in own if one not in exposed]:
            raise UnknownName("scalar of a channel that the model exposes,", missing[0], exposed)
        return tuple(Scalar(one) for one in own)
    if of not in exposed:
        raise UnknownName("target, or scalar that the model exposes,", of, (*targets, *exposed))
    return (Scalar(of),)


def _own(target: Target) -> Scalar:
    return Scalar(target.name, target, -1 if target.classes else 0)


class Scalars(torch.nn.Module):
    """A network that outputs the explained scalars, (N, K).

    Parameters
    ----------
    network : network that takes all inputs
    spec : specification of the network
    scalars : scalars to explain
    fixed : inputs that are not explained, by position, (1, C, *space) each
    added : arrays that are added to the explained inputs before they enter the network
    classes : class of each target for its scalar with index −1, and the class that is
        subtracted for its margin, under ``target:margin``
    """

    def __init__(
        self,
        network: torch.nn.Module,
        spec: NetworkSpec,
        scalars: Sequence[Scalar],
        *,
        fixed: Mapping[int, torch.Tensor] | None = None,
        added: Sequence[torch.Tensor | None] = (),
        classes: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self._spec, self._scalars = spec, tuple(scalars)
        self._fixed, self._added = dict(fixed or {}), tuple(added)
        self._classes = dict(classes or {})
        plain = [target.name for target in spec.targets if target.of_sample and target.width == 1]
        # If the scalars are the outputs themselves, the graph has only the network, as exact occlusion requires.
        self._whole = [scalar.name for scalar in scalars] == plain == [target.name for target in spec.targets]

    def __deepcopy__(self, memo: dict[int, Any]) -> Scalars:
        """Copy the network; the arrays in ``fixed`` and ``added``, which may be large, are shared."""
        twin = Scalars.__new__(Scalars)
        torch.nn.Module.__init__(twin)
        twin.__dict__.update(
            {key: value for key, value in self.__dict__.items() if key not in ("_modules", "training")}
        )
        twin.network = copy.deepcopy(self.network, memo)
        twin.training = self.training
        return twin

    def forward(self, *explained: torch.Tensor) -> torch.Tensor:
        """Compute the scalars (N, K) from the explained inputs, (N, C, *space) each."""
        if self._added:
            explained = tuple(
                one if more is None else one + more.to(one.dtype)
                for one, more in zip(explained, self._added, strict=True)
            )
        inputs = self._all(explained) if self._fixed else explained
        if self._whole:
            outputs = self.network(*inputs)
            whole: torch.Tensor = (
                torch.cat([outputs[scalar.name] for scalar in self._scalars], dim=1)
                if isinstance(outputs, Mapping)
                else outputs
            )
            return whole
        columns: list[torch.Tensor] = []
        heads: dict[str, torch.Tensor] = {}
        exposed: Mapping[str, torch.Tensor] = {}
        for scalar in self._scalars:
            if scalar.target is None:
                exposed = exposed or self.network.exposed(*inputs)  # type: ignore[operator]
                columns.append(exposed[scalar.name])
            else:
                heads = heads or split_outputs(self.network(*inputs), self._spec.targets)
                columns.append(self._scalar(scalar, scalar.target, heads[scalar.target.name]))
        return torch.stack(columns, dim=1)

    def _all(self, explained: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        # `shape[0]` can be traced, as exact occlusion requires, and `len` cannot.
        rest, count = iter(explained), explained[0].shape[0]
        return tuple(
            self._fixed[place].expand(count, *self._fixed[place].shape[1:]) if place in self._fixed else next(rest)
            for place in range(len(self._spec.inputs))
        )

    def _scalar(self, scalar: Scalar, target: Target, head: torch.Tensor) -> torch.Tensor:
        index = self._classes[target.name] if scalar.index < 0 else scalar.index
        found = HEADS[target.kind].scalar(head, index)
        if scalar.index < 0 and scalar.name.endswith(MARGIN):
            return found - HEADS[target.kind].scalar(head, self._classes[scalar.name])
        return found
