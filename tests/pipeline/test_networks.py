"""Networks with several inputs and targets, and the scalars that are explained."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from harness.core.errors import CellError, RequestError, UnknownName
from harness.core.overrides import override
from harness.core.targets import Target
from harness.core.task import Task
from harness.core.types import Input, NetworkSpec
from harness.pipeline.networks import Scalar, Scalars, build_network, oracle_arguments, scalars_of, split_outputs
from harness.sweep.catalogue import load_task

AGE, SMILE = Target("age", "number"), Target("smile", "binary")
HAIR = Target("hair", "classes", ("black", "blond", "red"))
LESION = Target("lesion", "mask")
SPEC = NetworkSpec((Input("image", ("a", "b"), (4, 4)), Input("age", ("age",), explained=False)), (AGE, SMILE, HAIR))


class Linear(torch.nn.Module):
    """Linear heads on the mean of a picture and a scalar input, with an exposed brightness."""

    exposes = ("brightness",)

    def __init__(self, *, named: bool = False, targets: tuple[Target, ...] = SPEC.targets) -> None:
        super().__init__()
        self.named, self.targets = named, targets
        self.head = torch.nn.Linear(3, sum(target.width for target in targets))

    def forward(self, image: torch.Tensor, age: torch.Tensor) -> torch.Tensor | Mapping[str, torch.Tensor]:
        outputs: torch.Tensor = self.head(torch.cat([image.mean((2, 3)), age], dim=1))
        if not self.named:
            return outputs
        parts = torch.split(outputs, [target.width for target in self.targets], dim=1)
        return {target.name: part for target, part in zip(self.targets, parts, strict=True)}

    def exposed(self, image: torch.Tensor, age: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"brightness": image.mean((1, 2, 3)) + age[:, 0]}


@pytest.fixture
def network() -> Linear:
    """A network for ``SPEC``."""
    torch.manual_seed(0)
    return Linear()


@pytest.fixture
def images() -> torch.Tensor:
    """Three pictures."""
    return torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))


AGE_INPUT = torch.tensor([[0.5]])


class TestSplitOutputs:
    """Separation of the outputs of a network by target."""

    def test_heads_lie_side_by_side(self) -> None:
        """In a tensor, the channels of the targets follow each other in order."""
        outputs = torch.arange(10.0).reshape(2, 5)
        found = split_outputs(outputs, SPEC.targets)
        assert list(found) == ["age", "smile", "hair"]
        assert torch.equal(found["age"], outputs[:, :1]) and torch.equal(found["smile"], outputs[:, 1:2])
        assert torch.equal(found["hair"], outputs[:, 2:])

    def test_heads_of_images(self) -> None:
        """The channel axis of spatial outputs is split."""
        outputs = torch.rand(2, 4, 5, 6)
        found = split_outputs(outputs, (LESION, dataclasses.replace(LESION, name="other")))
        assert torch.equal(found["lesion"], outputs[:, :2]) and torch.equal(found["other"], outputs[:, 2:])

    def test_heads_by_name(self) -> None:
        """A mapping may have any order and further entries; the result has the order of the targets."""
        outputs = {"hair": torch.rand(2, 3), "other": torch.rand(2, 7), "age": torch.rand(2, 1)}
        found = split_outputs(outputs, (AGE, HAIR))
        assert list(found) == ["age", "hair"]
        assert found["hair"] is outputs["hair"] and found["age"] is outputs["age"]

    def test_wrong_number_of_channels(self) -> None:
        """A wrong number of channels is refused, and the message names the targets and the shape."""
        with pytest.raises(
            CellError, match=r"must give 5 output channels for the targets age, smile, hair, got \(2, 4\)"
        ):
            split_outputs(torch.zeros(2, 4), SPEC.targets)

    @pytest.mark.parametrize(
        "outputs", [{"age": torch.zeros(2, 1)}, {"age": torch.zeros(2, 1), "hair": torch.zeros(2, 2)}]
    )
    def test_mapping_without_a_target(self, outputs: dict[str, torch.Tensor]) -> None:
        """A head that is missing or has a wrong width is refused by name."""
        with pytest.raises(CellError, match=r"a network must give \(N, 3, …\) for the target hair"):
            split_outputs(outputs, (AGE, HAIR))


class TestBuildNetwork:
    """Arguments passed to a model builder."""

    def test_inputs_and_targets_are_given_by_name(self, study: Task, crowd_spec: NetworkSpec) -> None:
        """A builder with ``inputs`` and ``targets`` receives the whole spec."""
        network = build_network(study, crowd_spec)
        outputs = network(torch.zeros(2, 3, 16, 16), torch.zeros(2, 1))
        assert outputs.shape == (2, crowd_spec.width) == (2, 5)

    def test_builder_of_one_input_receives_its_channels(self, toy_task: Task, epvs: Task) -> None:
        """A builder for one input receives its number of channels and the total number of outputs."""
        spec = NetworkSpec((Input("slices", ("T2w", "FLAIR")),), (Target("target", "mask"),))
        assert build_network(toy_task, spec)(torch.zeros(1, 2, 16, 16)).shape == (1, 2, 16, 16)

    def test_builder_of_one_input_refuses_several(self, toy_task: Task) -> None:
        """A builder for one input is refused if the adapter has several."""
        with pytest.raises(
            RequestError, match=r"model unet takes one input, but the adapter gives 2 \(image, age\); .*`inputs`"
        ):
            build_network(toy_task, SPEC)

    def test_covariates_are_given_to_models_that_read_them(self) -> None:
        """A model with a parameter `covariates` takes an image and scalars; other models refuse the scalars."""
        beside = Input("covariates", ("age", "sex"), explained=False)
        spec = NetworkSpec((Input("lesion", ("lesion",), (6, 5, 4)), beside), (Target("score", "number"),))
        network = build_network(override(load_task("lsm"), "model", "total_volume"), spec)
        assert network(torch.zeros(3, 1, 6, 5, 4), torch.zeros(3, 2)).shape == (3, 1)
        with pytest.raises(RequestError, match=r"ridge takes one input, .*`covariates` \(total_volume\)"):
            build_network(override(load_task("lsm"), "model", "ridge"), spec)

    def test_oracles_receive_facts_of_simulated_targets(self, toy_task: Task) -> None:
        """An oracle receives the region size of a simulated score, and nothing for a mask."""
        lsm = override(override(load_task("lsm"), "targets.scores.size", 4), "model", "matched_filter")
        assert oracle_arguments(lsm) == {"roi_shape": "cube", "roi_size": 4, "boxes": 1}
        assert oracle_arguments(toy_task) == {}

    def test_other_models_receive_no_facts_of_targets(self) -> None:
        """A model that is no oracle receives nothing, so that no identity of its trainings depends on it."""
        assert oracle_arguments(override(load_task("lsm"), "model", "ridge")) == {}


class TestScalarsOf:
    """Selection of the explained scalars."""

    def test_default_scalars_of_each_target(self, network: Linear) -> None:
        """By default, each target is explained: a number, a binary logit or the logit of the predicted class."""
        found = scalars_of("", SPEC, network)
        assert found == (Scalar("age", AGE, 0), Scalar("smile", SMILE, 0), Scalar("hair", HAIR, -1))

    def test_target_by_name(self, network: Linear) -> None:
        """A target is selected by its name."""
        assert scalars_of("smile", SPEC, network) == (Scalar("smile", SMILE, 0),)

    def test_class_by_name(self, network: Linear) -> None:
        """A class is selected by target and class name."""
        assert scalars_of("hair:blond", SPEC, network) == (Scalar("hair:blond", HAIR, 1),)

    def test_exposed_scalar_by_name(self, network: Linear) -> None:
        """A scalar exposed by the model is selected by its name."""
        assert scalars_of("brightness", SPEC, network) == (Scalar("brightness"),)

    @pytest.mark.parametrize(
        ("of", "message"),
        [
            ("hair:green", r"class of target hair is named 'green'.*black, blond, red"),
            ("smile:yes", r"class of target smile is named 'yes'"),
            (
                "attention",
                r"target, or scalar that the model exposes, is named 'attention'.*age, brightness, hair, smile",
            ),
        ],
    )
    def test_unknown_names(self, network: Linear, of: str, message: str) -> None:
        """An unknown name is refused, and the message lists the valid ones."""
        with pytest.raises(UnknownName, match=message):
            scalars_of(of, SPEC, network)

    def test_model_that_exposes_nothing(self) -> None:
        """For a model without exposed scalars, their names are refused."""
        with pytest.raises(UnknownName, match=r"'gate'.*All: age, hair, smile"):
            scalars_of("gate", SPEC, torch.nn.Linear(1, 1))


class TestScalars:
    """The scalars as a function of the explained inputs."""

    def made(self, network: Linear, of: str, **more: Any) -> Scalars:
        """Scalars of the network with a fixed age."""
        return Scalars(network, SPEC, scalars_of(of, SPEC, network), fixed={1: AGE_INPUT}, **more)

    @pytest.mark.parametrize("named", [False, True])
    @pytest.mark.parametrize(
        ("of", "columns"), [("", [0, 1, 4]), ("age", [0]), ("smile", [1]), ("hair", [4]), ("hair:black", [2])]
    )
    def test_columns_of_the_output(
        self, network: Linear, images: torch.Tensor, named: bool, of: str, columns: list[int]
    ) -> None:
        """Each scalar is a column of the network's output with the fixed age."""
        network.named = named
        found = self.made(network, of, classes={"hair": 2})(images)
        network.named = False
        expected = network(images, AGE_INPUT.expand(3, 1))
        assert isinstance(expected, torch.Tensor)
        assert torch.equal(found, expected[:, columns])

    def test_class_margin(self, network: Linear, images: torch.Tensor) -> None:
        """The margin is the logit of the predicted class minus that of the second most probable one."""
        found = self.made(network, "hair:margin", classes={"hair": 2, "hair:margin": 0})(images)
        expected = network(images, AGE_INPUT.expand(3, 1))
        assert isinstance(expected, torch.Tensor)
        assert torch.equal(found[:, 0], expected[:, 4] - expected[:, 2])

    def test_binary_targets_have_no_margin(self, network: Linear) -> None:
        """The logit of a binary target is its margin, so that it has no other."""
        with pytest.raises(UnknownName, match="no class of target smile is named 'margin'"):
            self.made(network, "smile:margin")

    def test_predicted_class_must_be_given(self, network: Linear, images: torch.Tensor) -> None:
        """The predicted class must be given and is not computed from the image."""
        with pytest.raises(KeyError, match="hair"):
            self.made(network, "hair")(images)

    def test_exposed_scalar(self, network: Linear, images: torch.Tensor) -> None:
        """An exposed scalar is computed from all inputs."""
        found = self.made(network, "brightness")(images)
        assert torch.allclose(found, images.mean((1, 2, 3))[:, None] + 0.5)

    @pytest.mark.parametrize("named", [False, True])
    def test_output_of_numbers_is_unchanged(self, images: torch.Tensor, named: bool) -> None:
        """If all scalars are explained, the output is returned as is, in the order of the targets."""
        torch.manual_seed(0)
        spec = dataclasses.replace(SPEC, targets=(AGE, SMILE))
        network = Linear(named=named, targets=spec.targets)
        found = Scalars(network, spec, scalars_of("", spec, network), fixed={1: AGE_INPUT})(images)
        network.named = False
        assert torch.equal(found, network(images, AGE_INPUT.expand(3, 1)))

    def test_lesion_evidence_of_a_mask(self) -> None:
        """The scalar of a mask is the sum of log(1 + exp(margin)) over voxels."""
        outputs = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(3))
        spec = NetworkSpec((Input("image", ("a", "b"), (3, 4)),), (LESION,))
        found = Scalars(torch.nn.Identity(), spec, scalars_of("", spec, torch.nn.Identity()))(outputs)
        margin = outputs[:, 1] - outputs[:, 0]
        assert torch.allclose(found, torch.log1p(torch.exp(margin)).sum((1, 2))[:, None])

    def test_added_component_is_added(self, network: Linear, images: torch.Tensor) -> None:
        """The network receives the sum of the explained and the added component."""
        more = torch.full((1, 2, 4, 4), 0.25)
        found = self.made(network, "age", added=(more,))(images)
        assert torch.allclose(found, self.made(network, "age")(images + more))

    def test_only_the_explained_input_receives_a_gradient(self, network: Linear, images: torch.Tensor) -> None:
        """Only the explained input receives a gradient."""
        images.requires_grad_()
        held = AGE_INPUT.clone().requires_grad_(False)
        Scalars(network, SPEC, scalars_of("age", SPEC, network), fixed={1: held})(images).sum().backward()
        assert images.grad is not None and held.grad is None
        expected = network.head.weight[0, :2].detach() / 16
        assert torch.allclose(images.grad[0, :, 0, 0], expected)

    def test_deep_copy_shares_fixed_and_added_tensors(self, network: Linear, images: torch.Tensor) -> None:
        """A deep copy shares fixed and added tensors, which may be large, and copies the network."""
        more = torch.full((1, 2, 4, 4), 0.25)
        before = self.made(network, "", added=(more,), classes={"hair": 0}).eval()
        after = copy.deepcopy(before)
        assert after._fixed[1] is AGE_INPUT and after._added[0] is more
        assert after.network is not before.network and not after.training
        assert torch.equal(after(images), before(images))
        with torch.no_grad():
            after.network.head.bias += 1  # type: ignore[operator]
        assert not torch.equal(after(images), before(images))
