"""Scalars of which each explains its own channel, exposed scalars in predictions, and the choice of explanations."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from harness.adapters.volumes import volumes
from harness.attribution.gradients import saliency
from harness.core.errors import UnknownName
from harness.core.explanations import Explanation
from harness.core.overrides import override
from harness.core.targets import Target
from harness.core.types import Cohort, Sample
from harness.models.attention import attention_densenet
from harness.pipeline.cell import explanations_of
from harness.pipeline.explain import explain
from harness.pipeline.networks import Member, scalars_of
from harness.pipeline.predict import EXPOSED, predict
from harness.pipeline.probe import predict_function
from harness.sweep.catalogue import load_task
from harness.testing import ArrayImage

CONTRASTS = ("qT1", "MWF", "NDI")
SHAPE = (12, 14, 12)


@pytest.fixture(scope="module")
def member() -> tuple[Member, Any, Sample]:
    """A network with attention, its specification and a sample."""
    rng = np.random.default_rng(0)
    images = {name: ArrayImage(rng.random(SHAPE).astype(np.float32)) for name in CONTRASTS}
    masks = {"brain": ArrayImage(np.ones(SHAPE, bool))}
    sample = Sample("sub-1", "sub-1", images, masks, {"age": 40.0}, np.eye(4), (1.0, 1.0, 1.0), {"severe": 1.0})
    adapter = volumes(channels="+".join(CONTRASTS), covariates="age", covariate_scale=100)
    spec = adapter.spec(Cohort("one", (sample,), targets=(Target("severe", "binary"),)))
    torch.manual_seed(0)
    network = attention_densenet(spec.inputs, spec.targets, blocks=2, stem_stride=2).eval()
    return Member(network, adapter), spec, sample


def test_each_channel_is_explained_by_its_own_scalar(member: tuple[Member, Any, Sample]) -> None:
    """``attention:own`` has, for each contrast, the map of its own attention weight."""
    one, spec, sample = member
    own = explain([one], spec, sample, Explanation(partial(saliency), of="attention:own"), seed=0)
    assert own.outputs == ("attention:own",) and own.maps.shape == (1, 3, *SHAPE)
    for index, name in enumerate(CONTRASTS):
        alone = explain([one], spec, sample, Explanation(partial(saliency), of=f"attention:{name}"), seed=0)
        np.testing.assert_allclose(own.maps[0, index], alone.maps[0, index], rtol=1e-5, atol=1e-9)
    combined = Explanation(partial(saliency), of="attention:own", combine="relevance_times_input")
    image = one.adapter.inputs(sample)[0][0]
    found = explain([one], spec, sample, combined, seed=0).maps
    np.testing.assert_allclose(found[0, 0], (own.maps[0] * image).sum(0), rtol=1e-4, atol=1e-8)


def test_unknown_scalars_of_channels(member: tuple[Member, Any, Sample]) -> None:
    """The message names the scalar of the channel that is missing."""
    one, spec, _ = member
    with pytest.raises(UnknownName, match="gate:qT1"):
        scalars_of("gate:own", spec, one.network)


def test_predictions_have_the_exposed_scalars(member: tuple[Member, Any, Sample]) -> None:
    """Attention weights are stored with the prediction; an ensemble has their means."""
    one, spec, sample = member
    found = predict([one], spec, sample, batch_size=2)[EXPOSED]
    with torch.inference_mode():
        exposed = one.network.exposed(*(torch.from_numpy(each) for each in one.adapter.inputs(sample)))
    assert {name: pytest.approx(float(value)) for name, value in found.items()} == {
        name: float(value[0]) for name, value in exposed.items()
    }
    torch.manual_seed(1)
    other = Member(attention_densenet(spec.inputs, spec.targets, blocks=2, stem_stride=2).eval(), one.adapter)
    both = predict([one, other], spec, sample, batch_size=2)[EXPOSED]
    second = predict([other], spec, sample, batch_size=2)[EXPOSED]
    assert float(both["attention:NDI"]) == pytest.approx(float(found["attention:NDI"] + second["attention:NDI"]) / 2)


def test_probes_know_the_output_whatever_is_explained(member: tuple[Member, Any, Sample]) -> None:
    """The function for the output is the logit of the target."""
    one, spec, sample = member
    function, image = predict_function([one], spec, sample, scalars_of("severe", spec, one.network)[0], batch_size=2)
    logit = predict([one], spec, sample, batch_size=2)["severe"]["logit"]
    assert float(function(image[None])[0]) == pytest.approx(float(logit), rel=1e-5)


def test_models_have_the_explanations_that_they_support() -> None:
    """Attention is explained for networks with attention only, and weights for models that have them."""
    task = load_task("ms")
    assert "aw_proposal" in explanations_of(task) and "weights" not in explanations_of(task)
    linear = override(task, "model", "voxel_ridge")
    assert "weights" in explanations_of(linear) and not any(
        label.startswith("aw_") for label in explanations_of(linear)
    )
    joined = override(task, "model.fusion", "concatenation")
    assert "f_proposal" in explanations_of(joined) and "aw_proposal" not in explanations_of(joined)


def test_controls_show_the_channels_that_there_are() -> None:
    """Each contrast is a control of its own, as many as the network has."""
    task = load_task("ms")
    contrasts = ["contrast_1", "contrast_2", "contrast_3"]
    for channels, count in (("qT1+MWF+NDI", 3), ("T1w+FLAIR", 2), ("NDI", 1)):
        own = override(task, "adapter.channels", channels)
        assert [one for one in explanations_of(own) if one.startswith("contrast_")] == contrasts[:count]


def test_explanations_can_be_chosen() -> None:
    """Presets choose explanations by labels joined by a plus sign, or none; others are refused with the labels."""
    task = load_task("ms")
    assert explanations_of(override(task, "attribution", "random+f_saliency")) == ["random", "f_saliency"]
    assert explanations_of(override(task, "attribution", "none")) == []
    with pytest.raises(UnknownName, match="f_salience"):
        override(task, "attribution", "f_salience")
