"""The predict stage: predictions of one network, or averages over several."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from harness.core.targets import KINDS
from harness.core.types import Array, NetworkSpec, Prediction, Sample
from harness.pipeline.networks import Member, split_outputs, tensor_of

__all__ = ["EXPOSED", "outputs_of", "predict"]

EXPOSED = "exposed scalars"
"""Key of the exposed scalars in a prediction, beside the names of targets."""


def predict(members: Sequence[Member], spec: NetworkSpec, sample: Sample, *, batch_size: int) -> Prediction:
    """Predict a sample with one network, or with the average of several.

    Parameters
    ----------
    members : one network, or those of all folds
    spec : specification of the networks
    sample : the sample
    batch_size : number of items in a forward pass

    Returns
    -------
    dict
        Stored arrays of each target, see :mod:`harness.core.targets`; if the networks expose
        scalars and the sample has one item, also their values, under :data:`EXPOSED`
    """
    found = [
        member.adapter.to_prediction(outputs_of(member, spec, sample, batch_size=batch_size), sample, spec.targets)
        for member in members
    ]
    exposed = [one for member in members if (one := _exposed(member, sample))]
    more = {EXPOSED: {name: np.mean([one[name] for one in exposed], axis=0) for name in exposed[0]}} if exposed else {}
    if len(found) == 1:
        return {**found[0], **more}
    averages = {target.name: KINDS[target.kind].average([one[target.name] for one in found]) for target in spec.targets}
    return {**averages, **more}


@torch.inference_mode()
def _exposed(member: Member, sample: Sample) -> dict[str, Array]:
    """Scalars that a network exposes for a sample with one item; empty if there are none."""
    if not getattr(member.network, "exposes", ()):
        return {}
    inputs = [tensor_of(one) for one in member.adapter.inputs(sample)]
    if len(inputs[0]) != 1:
        return {}
    where = next(itertools.chain(member.network.parameters(), member.network.buffers())).device
    found = member.network.exposed(*(one.to(where) for one in inputs))  # type: ignore[operator]
    return {name: np.asarray(float(value[0])) for name, value in found.items()}


@torch.inference_mode()
def outputs_of(member: Member, spec: NetworkSpec, sample: Sample, *, batch_size: int) -> dict[str, Array]:
    """Outputs (N, width, *space) of all items of a sample, by target."""
    network = member.network
    inputs = [tensor_of(one) for one in member.adapter.inputs(sample)]
    was_training = network.training
    network.eval()
    try:
        where = next(itertools.chain(network.parameters(), network.buffers())).device
        chunks = zip(*(one.split(batch_size) for one in inputs), strict=True)
        heads = [split_outputs(network(*(one.to(where) for one in chunk)), spec.targets) for chunk in chunks]
    finally:
        network.train(was_training)
    return {name: torch.cat([one[name].cpu() for one in heads]).numpy() for name in heads[0]}
