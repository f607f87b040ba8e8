"""The predict stage: predictions of one network, or averages over several."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from harness.core.targets import KINDS
from harness.core.types import Array, NetworkSpec, Prediction, Sample
from harness.pipeline.networks import Member, split_outputs, tensor_of

__all__ = ["outputs_of", "predict"]


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
        Stored arrays of each target, see :mod:`harness.core.targets`
    """
    found = [
        member.adapter.to_prediction(outputs_of(member, spec, sample, batch_size=batch_size), sample, spec.targets)
        for member in members
    ]
    if len(found) == 1:
        return found[0]
    return {target.name: KINDS[target.kind].average([one[target.name] for one in found]) for target in spec.targets}


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
