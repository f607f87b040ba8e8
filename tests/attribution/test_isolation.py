"""Attribution methods leave the model, its inputs and global state unchanged; invalid requests are refused."""

import json
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.attribution import attribute, explain
from harness.core.errors import CellError, HarnessError, OutOfRange, UnknownName
from harness.core.registry import ATTRIBUTIONS
from harness.core.task import describe_component
from harness.testing import Formula, example_image, example_network

X = example_image(2, 2, 8, 9)


class FailsLater(nn.Module):
    """A network that raises on the second forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.calls = example_network(2), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 2:
            raise ZeroDivisionError("on purpose")
        return self.network(x)  # type: ignore[no-any-return]


def intrusive(model: nn.Module, inputs: Any, targets: Any) -> Any:
    """An attribution method that changes the model, its inputs and every kind of global state."""
    model.train()
    model.register_forward_hook(lambda *_: None)
    model.requires_grad_(True)
    out = model(*inputs)
    out.sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
        inputs[0].zero_()
    torch.rand(1), np.random.rand(), random.random()
    torch.set_grad_enabled(False)
    return [inputs for _ in targets]


def intrusive_and_failing(model: nn.Module, inputs: Any, targets: Any) -> Any:
    """The same as ``intrusive``, followed by an error."""
    intrusive(model, inputs, targets)
    raise ZeroDivisionError("on purpose")


def _explain(function: Callable[..., Any], model: nn.Module) -> None:
    try:
        explain(function, model, X, [0])
    except ZeroDivisionError:
        assert function is intrusive_and_failing


METHODS = pytest.mark.parametrize("function", [intrusive, intrusive_and_failing])


@METHODS
def test_hooks_are_as_before(function: Callable[..., Any]) -> None:
    """The user's own hook stays, and no hook is added."""
    model = example_network(2)
    model.register_forward_hook(lambda *_: None)
    _explain(function, model)
    assert len(model._forward_hooks) == 1


@METHODS
def test_gradients_are_as_before(function: Callable[..., Any]) -> None:
    """Gradients that the optimiser has not used yet keep their values."""
    model = example_network(2)
    model.second[0].bias.grad = torch.full_like(model.second[0].bias, 7.0)
    _explain(function, model)
    assert model.second[0].bias.grad.tolist() == [7.0] * 5
    assert model.second[0].weight.grad is None


@METHODS
def test_modes_are_as_before(function: Callable[..., Any]) -> None:
    """Every module keeps its training or evaluation mode."""
    model = example_network(2).train()
    model.second.eval()
    before = [module.training for module in model.modules()]
    _explain(function, model)
    assert [module.training for module in model.modules()] == before


@METHODS
def test_requires_grad_is_as_before(function: Callable[..., Any]) -> None:
    """Every parameter keeps its ``requires_grad`` flag."""
    model = example_network(2)
    model.second.requires_grad_(False)
    before = [parameter.requires_grad for parameter in model.parameters()]
    _explain(function, model)
    assert [parameter.requires_grad for parameter in model.parameters()] == before


@METHODS
def test_weights_are_as_before(function: Callable[..., Any]) -> None:
    """A method that writes into the weights does not change the caller's model."""
    model = example_network(2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _explain(function, model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@METHODS
def test_inputs_are_as_before(function: Callable[..., Any]) -> None:
    """A method that writes into its input does not change the caller's tensor."""
    before = X.clone()
    _explain(function, example_network(2))
    assert torch.equal(X, before)
    assert not X.requires_grad


@METHODS
def test_global_generators_are_as_before(function: Callable[..., Any]) -> None:
    """The global random states of torch, numpy and Python are restored."""
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = (float(torch.rand(1)), np.random.rand(), random.random())
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    _explain(function, example_network(2))
    assert (float(torch.rand(1)), np.random.rand(), random.random()) == expected


@METHODS
def test_gradient_mode_is_as_before(function: Callable[..., Any]) -> None:
    """A method that disables gradients does not disable them for the caller."""
    _explain(function, example_network(2))
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["deeplift", "guided_backprop", "gradcam", "occlusion", "gradient_shap"])
def test_a_failing_model_is_restored(name: str) -> None:
    """When the model raises, its error is passed on, no hook is left and the mode is unchanged."""
    model = FailsLater().train()
    with pytest.raises(ZeroDivisionError, match="on purpose"):
        attribute(name, model, X, [0])
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    assert (sum(hooks), model.training, model.calls) == (0, True, 0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_work_inside_no_grad(mode: Callable[..., Any]) -> None:
    """Gradient methods work when the caller is inside ``no_grad`` or ``inference_mode``."""
    expected = attribute("saliency", example_network(2), X, [0])[0]
    with mode():
        found = attribute("saliency", example_network(2), X.clone(), [0])[0]
    torch.testing.assert_close(found, expected)


def test_a_model_is_explained_in_evaluation_mode() -> None:
    """A model in training mode is explained in evaluation mode, so dropout does not affect the map."""
    model = nn.Sequential(nn.Dropout(0.5), example_network(2)).train()
    torch.testing.assert_close(attribute("saliency", model, X, [0]), attribute("saliency", example_network(2), X, [0]))


def test_global_generator_does_not_affect_a_method() -> None:
    """A third-party method that uses the global generator is reproducible from the seed."""

    def drawing(model: nn.Module, inputs: Any, targets: Any, *, seed: int) -> Any:
        return [tuple(torch.rand_like(x) for x in inputs) for _ in targets]

    torch.manual_seed(1)
    first = explain(drawing, example_network(2), X, [0], seed=5)[0]
    torch.manual_seed(2)
    assert torch.equal(explain(drawing, example_network(2), X, [0], seed=5)[0], first)
    assert not torch.equal(explain(drawing, example_network(2), X, [0], seed=6)[0], first)


def test_adding_a_target_changes_no_draw() -> None:
    """Explaining one more target does not change the random draws of the others."""
    model = example_network(2)
    both = attribute("gradient_shap", model, X, [0, 2], seed=4)
    assert torch.equal(attribute("gradient_shap", model, X, [2], seed=4)[0], both[1])


def test_several_inputs_give_a_list_of_lists() -> None:
    """Results are indexed ``result[target][input]``, and each map has the shape of its input."""
    model = Formula(lambda x, y: torch.stack([x.flatten(1).sum(1), y.flatten(1).sum(1)], dim=1))
    maps = attribute("saliency", model, (example_image(2, 1, 5), example_image(2, 3, 4, 4)), [1, 0])
    assert [[tuple(each.shape) for each in of_target] for of_target in maps] == [[(2, 1, 5), (2, 3, 4, 4)]] * 2


def test_unknown_method_is_refused_with_suggestions() -> None:
    """An unknown method raises an error that suggests the nearest name and lists all."""
    with pytest.raises(UnknownName, match=r"no attribution is named 'salency'\. Near: saliency\. All: .*smoothgrad"):
        attribute("salency", example_network(2), X, [0])


def test_unknown_option_is_refused_with_suggestions() -> None:
    """An unknown option raises an error that lists only the options that a user may set."""
    with pytest.raises(UnknownName, match=r"no option of attribution .* is named 'step'\. Near: steps\. All: basel"):
        attribute("integrated_gradients", example_network(2), X, [0], step=3)


@pytest.mark.parametrize("target", [-1, 3])
def test_a_target_must_be_an_output(target: int) -> None:
    """A target outside the model's outputs is refused with the valid range."""
    with pytest.raises(OutOfRange, match=rf"`0 <= target < 3` must hold for the outputs of the model, got {target}"):
        attribute("saliency", example_network(2), X, [target])


def test_a_segmentation_must_be_reduced_first() -> None:
    """A model with spatial output is refused, and the message explains how to wrap it."""
    with pytest.raises(HarnessError, match=r"must map one item to \(1, K\) scalars .* got \(1, 2, 8, 9\); wrap it"):
        attribute("saliency", nn.Identity(), X, [0])


def test_inputs_must_be_float() -> None:
    """Integer inputs are refused."""
    with pytest.raises(HarnessError, match=r"must be float tensors .* got \(1, 2, 3, 3\) torch.int64"):
        attribute("saliency", example_network(2), torch.ones(1, 2, 3, 3, dtype=torch.long), [0])


@pytest.mark.parametrize(
    ("inputs", "got"),
    [
        (np.zeros((1, 2, 3, 3), np.float32), r"ndarray \(1, 2, 3, 3\) float32"),
        ([X, X], r"list \(\)"),
        ((X, X[:1]), r"\(2, 2, 8, 9\) torch.float64, \(1, 2, 8, 9\)"),
        ((), "none"),
        (torch.tensor(1.0), r"\(\) torch.float32"),
        (None, r"NoneType \(\)"),
    ],
    ids=["array", "list", "different N", "no input", "scalar", "None"],
)
def test_inputs_must_be_tensors_of_equal_number(inputs: Any, got: str) -> None:
    """Other inputs are refused with what came and how to convert it."""
    with pytest.raises(HarnessError, match=rf"inputs must be float tensors .* got {got}.*; convert them \(torch\.as"):
        attribute("saliency", example_network(2), inputs, [0])


@pytest.mark.parametrize(
    "targets",
    [
        *(0, None, [0.5], ["0"], "0", [True], [np.True_], torch.tensor([True]), b"\0", {0}, {0: 1}, np.array([[0]])),
        torch.zeros(1, dtype=torch.long, device="meta"),
    ],
    ids=str,
)
def test_targets_must_be_indices(targets: Any) -> None:
    """A single index is refused as well, because it would be ambiguous with one map per target."""
    with pytest.raises(OutOfRange, match=r"targets must be a list of indices of outputs, got .*; for one output, pass"):
        attribute("saliency", example_network(2), X, targets)


@pytest.mark.parametrize("targets", [(0,), np.array([0]), torch.tensor([0]), range(1)])
def test_targets_may_be_any_sequence(targets: Any) -> None:
    """Of Python, numpy or torch."""
    (of_target,) = attribute("saliency", example_network(2), X, targets)
    assert of_target.shape == X.shape


@pytest.mark.parametrize("name", ATTRIBUTIONS.names())
def test_no_targets_give_no_maps(name: str) -> None:
    """An empty list, without a call of the model."""
    assert attribute(name, Formula(lambda x: pytest.fail("was called")), X, []) == []


@pytest.mark.parametrize("seed", [-1, 0.5, "a", None, True])
def test_seed_must_be_a_whole_number(seed: Any) -> None:
    """Negative and other values are refused."""
    with pytest.raises(OutOfRange, match="seed must be a whole number >= 0"):
        attribute("smoothgrad", example_network(2), X, [0], seed=seed)


def lazy() -> nn.Module:
    """A network that has not seen an input."""
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(2))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ATTRIBUTIONS.names())
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.jit.trace(example_network(2), X), "scripted layers; pass the module from which it was scripted"),
        (
            lambda: torch.export.export(example_network(2), (X,)).module(),
            "which is an exported program; pass the module",
        ),
        (lambda: nn.Sequential(torch.jit.script(nn.ReLU()), example_network(2)), "got Sequential, which has scripted"),
        (lazy, "got Sequential, whose lazy layers have no weights; call it once"),
        (lambda: example_network(2).forward, "got method; wrap it: a module whose forward calls it"),
        (lambda: lambda x: x.flatten(1), "got function; wrap it"),
        (lambda: nn.ReLU, "got type; wrap it"),
        (lambda: None, "got NoneType; wrap it"),
    ],
    ids=["traced", "exported", "scripted", "lazy", "method", "function", "class", "None"],
)
def test_model_must_have_layers_that_hooks_reach(name: str, make: Callable[[], Any], message: str) -> None:
    """Methods that change the rules of layers would be wrong without an error, so that all refuse such models."""
    with pytest.raises(HarnessError, match=f"must be a torch.nn.Module of Python layers to be explained, .*{message}"):
        attribute(name, make(), X, [0])


def test_compiled_model_is_explained_like_its_module() -> None:
    """The layers of a compiled model are those of the module that was compiled."""
    network = example_network(2)
    compiled = torch.compile(network, backend="eager")
    for name in ("saliency", "occlusion"):
        assert torch.equal(attribute(name, compiled, X, [0])[0], attribute(name, network, X, [0])[0])


@pytest.mark.parametrize("name", ATTRIBUTIONS.names())
@pytest.mark.parametrize(
    ("output", "got"),
    [
        (lambda y: (y * 10).long(), r"\(1, 3\) torch.int64"),
        (lambda y: y > 0, r"\(1, 3\) torch.bool"),
        (lambda y: y + 0j, r"\(1, 3\) torch.complex128"),
        (lambda y: y.to_sparse(), r"\(1, 3\) torch.float64 sparse_coo"),
    ],
    ids=["integers", "booleans", "complex", "sparse"],
)
def test_model_must_return_floats(name: str, output: Callable[[Tensor], Tensor], got: str) -> None:
    """Whatever else the model returns is named."""
    model = Formula(lambda x: output(x.flatten(1)[:, :3]))
    with pytest.raises(HarnessError, match=rf"must return \(N, K\) floats to be explained, got {got}"):
        attribute(name, model, X, [0])


@pytest.mark.parametrize("name", ATTRIBUTIONS.names())
@pytest.mark.parametrize(
    ("inputs", "given"),
    [
        (X.float(), r"\(1, 2, 8, 9\) torch.float32"),
        (X.half(), r"\(1, 2, 8, 9\) torch.float16"),
        (X.bfloat16(), r"\(1, 2, 8, 9\) torch.bfloat16"),
        (X[:, :1], r"\(1, 1, 8, 9\) torch.float64"),
        (X[..., None], r"\(1, 2, 8, 9, 1\) torch.float64"),
        ((X, X), r"\(1, 2, 8, 9\) torch.float64, \(1, 2, 8, 9\) torch.float64"),
        (X[..., :1, :1], r"\(1, 2, 1, 1\) torch.float64"),
    ],
    ids=["single", "half", "bfloat16", "channels", "axes", "inputs", "too small"],
)
def test_model_that_does_not_fit_its_input(name: str, inputs: Any, given: str) -> None:
    """The message says what the model was given, and what its weights are."""
    weights = r"first weights, first.0.0.weight, are \(4, 2, 3, 3\) torch.float64\. Number of inputs, channels"
    with pytest.raises(HarnessError, match=rf"_Network fails for {given} \(\w+Error: .*\); its {weights}"):
        attribute(name, example_network(2), inputs, [0])


@pytest.mark.parametrize(
    ("inputs", "got"),
    [
        (X.to_sparse(), r"\(2, 2, 8, 9\) torch.float64 sparse_coo"),
        (X.to("meta"), r"\(2, 2, 8, 9\) torch.float64 on meta"),
        (X[..., :0], r"\(2, 2, 8, 0\) torch.float64"),
        (X[:, :0], r"\(2, 0, 8, 9\) torch.float64"),
    ],
    ids=["sparse", "meta", "no voxels", "no channels"],
)
def test_inputs_must_have_values(inputs: Tensor, got: str) -> None:
    """Sparse, empty and other tensors without a value at each voxel are refused."""
    with pytest.raises(HarnessError, match=rf"inputs must .*, got {got}"):
        attribute("saliency", example_network(2), inputs, [0])


def test_model_must_have_values() -> None:
    """A model whose weights were never loaded is refused."""
    with pytest.raises(HarnessError, match="got _Network, whose weights have no values .*; load them"):
        attribute("saliency", example_network(2).to("meta"), X, [0])


@pytest.mark.parametrize("name", ATTRIBUTIONS.names())
def test_model_must_not_change_its_input(name: str) -> None:
    """Otherwise each forward pass would see another image, and the map would be wrong in silence."""
    with pytest.raises(HarnessError, match=r"must not change its input .* \(x = x \* 2 instead of x \*= 2"):
        attribute(name, Formula(lambda x: x.mul_(2).flatten(1).sum(1, keepdim=True)), X, [0])


@pytest.mark.parametrize(
    ("function", "why"),
    [
        ("saliency", "got str 'saliency'; for a registered method, call attribute"),
        (None, "got NoneType None"),
        (max, "got builtin_function_or_method"),
        (len, r"but len\(obj, /\) cannot be called so: too many"),
        (lambda: 1, r"but <lambda>\(\) cannot be called so: too many positional arguments"),
        (lambda model, inputs, targets, *, x: 1, "cannot be called so: missing a required .*'x'"),
    ],
    ids=["name", "None", "C", "length", "no parameters", "an option without default"],
)
def test_method_must_have_the_parameters_of_a_method(function: Any, why: str) -> None:
    """Whatever else is given is named."""
    with pytest.raises(HarnessError, match=rf"must be a function \(model, inputs, targets, \*, …\), .*{why}"):
        explain(function, example_network(2), X, [0])


@pytest.mark.parametrize("name", ["numbers", "parts"])
def test_reports_need_a_dictionary(name: str) -> None:
    """What receives numbers or parts must be able to."""
    with pytest.raises(OutOfRange, match=f"{name} must be a dictionary, which receives {name} by name, got list"):
        attribute("saliency", example_network(2), X, [0], **{name: []})


@pytest.mark.parametrize("output", [lambda x: (x, x), lambda x: {"y": x}, lambda x: None, lambda x: x.detach().numpy()])
def test_model_must_return_a_tensor(output: Callable[[Tensor], Any]) -> None:
    """Tuples, mappings and arrays are refused, and the message says what came."""
    model = Formula(lambda x: output(x.flatten(1).sum(1, keepdim=True)))
    with pytest.raises(HarnessError, match=r"must return one tensor to be explained, got \w+; wrap it in a module"):
        attribute("saliency", model, X, [0])


@pytest.mark.parametrize(
    ("result", "got"),
    [
        (lambda x: None, "NoneType"),
        (lambda x: x, "Tensor"),
        (lambda x: x.numpy(), "ndarray"),
        (lambda x: [x], "list of Tensor"),
        (lambda x: [(x.numpy(),)], "list of tuple of ndarray"),
        (lambda x: [(None,)], "list of tuple of NoneType"),
        (lambda x: [(x.to(torch.complex64),)], "list of tuple of Tensor of complex numbers"),
        (lambda x: {0: (x,)}, "dict"),
        (lambda x: [(x.to_sparse(),)], "list of tuple of Tensor that is not dense, .* sparse_coo"),
        (lambda x: [(x.to("meta"),)], "list of tuple of Tensor that is not dense, .* on meta"),
    ],
)
def test_method_must_return_tuples_of_tensors(result: Callable[[Tensor], Any], got: str) -> None:
    """Whatever else a method of the user returns is named."""

    def mine(model: nn.Module, inputs: Any, targets: Any) -> Any:
        return result(inputs[0].detach())

    with pytest.raises(
        HarnessError, match=f"mine must return a list with a tuple of tensors for each target, got {got}"
    ):
        explain(mine, example_network(2), X, [0])


def test_options_bound_to_a_method_are_checked() -> None:
    """A partial is a method with options, as in a task."""
    saliency = ATTRIBUTIONS.get("saliency").function
    maps = explain(partial(saliency, absolute=False), example_network(2), X, [0])
    assert torch.equal(maps[0], attribute("saliency", example_network(2), X, [0], absolute=False)[0])
    with pytest.raises(OutOfRange, match="batch_size of attribution saliency must be a whole number > 0, got 0"):
        explain(partial(saliency, batch_size=0), example_network(2), X, [0])


def test_options_without_a_known_type_are_passed_on() -> None:
    """A method of the user may have any type hints, also none."""

    class Own:
        """A class without a schema."""

    def mine(model: nn.Module, inputs: Any, targets: Any, *, own: Own, other=3) -> Any:  # type: ignore[no-untyped-def]
        assert isinstance(own, Own) and other == "x"
        return [inputs for _ in targets]

    mine.__annotations__["own"] = Own
    explain(mine, example_network(2), X, [0], own=Own(), other="x")


def test_a_map_of_nan_is_an_error() -> None:
    """A map with NaN or infinite values raises an error, here from the slope of sqrt at zero."""
    model = Formula(lambda x: x.sqrt().flatten(1).sum(1, keepdim=True))
    with pytest.raises(CellError, match="saliency returned NaN or infinity for output 0"):
        attribute("saliency", model, torch.zeros(1, 1, 3, 3), [0])


def test_a_method_must_give_maps_of_the_right_shape() -> None:
    """A third-party method that returns maps of the wrong shape is refused, and the message shows both shapes."""

    def summed(model: nn.Module, inputs: Any, targets: Any) -> Any:
        return [tuple(x.sum(1) for x in inputs) for _ in targets]

    with pytest.raises(HarnessError, match=r"summed must return one map .*\(2, 2, 8, 9\).* got .*\(2, 8, 9\)"):
        explain(summed, example_network(2), X, [0])


def test_a_model_that_cannot_be_copied_is_named() -> None:
    """A model that cannot be copied is refused, and the message explains how to fix it."""
    model = example_network(2)
    model.kept = model(X)  # type: ignore[assignment]
    with pytest.raises(HarnessError, match=r"must be copyable .* got _Network: .*detach tensors"):
        attribute("saliency", model, X, [0])


def test_options_are_plain_json_by_default() -> None:
    """Default options of every method can be written as JSON."""
    for name in ATTRIBUTIONS.names():
        json.dumps(describe_component(ATTRIBUTIONS, partial(ATTRIBUTIONS.get(name).function)))
