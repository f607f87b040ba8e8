"""The predict stage: predictions of one network, or averages over several."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.special
import torch

from harness.core.targets import Target, softmax
from harness.core.types import Array, NetworkSpec, Prediction, Sample
from harness.pipeline.networks import Member, split_outputs, tensor_of

__all__ = ["average", "is_correct", "outputs_of", "predict", "predicted_class"]


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
    return {target.name: average(target, [one[target.name] for one in found]) for target in spec.targets}


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


def average(target: Target, predictions: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Average the predictions of several networks: values or probabilities.

    Returns
    -------
    dict
        The same arrays as in one prediction; logits are those of the mean probability.
    """
    if target.kind == "number":
        return {"value": np.asarray(np.mean([one["value"] for one in predictions], axis=0))}
    if target.kind == "mask":
        mean = np.asarray(np.mean([one["probability"] for one in predictions], axis=0, dtype=np.float64))
        return {"probability": mean.astype(np.float32)}
    if target.kind == "binary":
        logits = np.stack([one["logit"] for one in predictions])
        positive, negative = (np.logaddexp.reduce(scipy.special.log_expit(one)) for one in (logits, -logits))
        p = np.mean([one["probability"] for one in predictions], axis=0)
        return {"logit": np.asarray(positive - negative), "probability": np.asarray(p)}
    each = np.stack([scipy.special.log_softmax(one["logits"]) for one in predictions])
    p = np.mean([softmax(one["logits"]) for one in predictions], axis=0)
    return {"logits": np.logaddexp.reduce(each) - np.log(len(each)), "probabilities": p}


def predicted_class(target: Target, prediction: Mapping[str, Array]) -> int:
    """The class with the highest probability; for a binary target, 1 if the probability is at least one half."""
    if target.kind == "binary":
        return int(prediction["probability"] >= 0.5)
    return int(np.argmax(prediction["probabilities"]))


def is_correct(target: Target, prediction: Mapping[str, Array], truth: float) -> bool:
    """Whether the predicted class is the true one."""
    return predicted_class(target, prediction) == int(truth)
