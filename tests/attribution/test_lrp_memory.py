"""Layer-wise relevance propagation through memory: views, writes in place, and values that leave torch."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.attribution import attribute
from harness.attribution.lrp_tape import Composite, propagate, record
from harness.core.errors import CellError

WIDTH = 6
EXACT = Composite("epsilon", "epsilon", pool="epsilon", options={"epsilon": {"epsilon": 0.0}})


class Network(nn.Module):
    """A layer, an operation on it and the input, and a layer; without biases."""

    def __init__(self, operation: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.operation = operation
        self.layer, self.head = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, 1, bias=False)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.operation(self.layer(x), x))
        return found


def slopes(network: nn.Module, x: Tensor) -> Tensor:
    """Input times gradient by central differences, exact for piecewise linear networks."""
    found = torch.zeros_like(x)
    for item in range(x.shape[0]):
        for place in range(x.shape[1]):
            step = torch.zeros_like(x)
            step[item, place] = 1e-6
            with torch.no_grad():
                change = network(x + step)[item, 0] - network(x - step)[item, 0]
            found[item, place] = x[item, place] * change / 2e-6
    return found


def relevance(network: nn.Module, x: Tensor) -> Tensor:
    """The map by the ε-rule with ε = 0."""
    (found,) = attribute("lrp", network, x, [0], composite="epsilon", epsilon=0.0)
    result: Tensor = found
    return result


def added_to_a_slice(y: Tensor, x: Tensor) -> Tensor:
    """A sum in place in a slice."""
    y[:, :3] += x[:, :3]
    return y


def relu_of_a_slice(y: Tensor, x: Tensor) -> Tensor:
    """An activation in place of a slice."""
    functional.relu(y[:, :3], inplace=True)
    return y


def changed_after_use(y: Tensor, x: Tensor) -> Tensor:
    """A term that is changed after its sum."""
    z = y + x
    y.relu_()
    return z + y


def buffer(y: Tensor, x: Tensor) -> Tensor:
    """A buffer filled by two assignments."""
    found = torch.zeros(len(x), WIDTH, dtype=x.dtype)
    found[:, :3] = y[:, :3]
    found[:, 3:] = x[:, 3:]
    return found


def buffer_like(y: Tensor, x: Tensor) -> Tensor:
    """A buffer with views that are older than what is written."""
    found = y.new_zeros(y.shape)
    left, right = found[:, :3], found[:, 3:]
    left.copy_(y[:, 3:])
    right += x[:, :3]
    return found


def flat_view(y: Tensor, x: Tensor) -> Tensor:
    """A view of all values."""
    y.view(-1).relu_()
    return y


def transposed_view(y: Tensor, x: Tensor) -> Tensor:
    """Rows of a transposed view."""
    y.t()[1:3].add_(x.t()[2:4])
    return y


def older_view(y: Tensor, x: Tensor) -> Tensor:
    """A view that is read after its memory changed."""
    left = y[:, :3]
    y.mul_(2.0).relu_()
    return torch.cat([left, y[:, 3:]], 1)


def written_twice(y: Tensor, x: Tensor) -> Tensor:
    """Overlapping writes, and zeros."""
    y[:, :4] = x[:, :4]
    y[:, 2:5] = x[:, :3]
    y[:, 5].zero_()
    return y


def added_to_itself(y: Tensor, x: Tensor) -> Tensor:
    """Both terms are the memory that is written."""
    return y.add_(y)


def subtracted(y: Tensor, x: Tensor) -> Tensor:
    """A copy of the input is changed; networks that change the input itself are refused for all methods."""
    x = x.clone()
    x -= 0.5 * y
    return x


def sum_of_data(y: Tensor, x: Tensor) -> Tensor:
    """Memory by `data`."""
    y.data[:, :2] += x.data[:, 2:4]
    return y


FOLLOWED = (
    added_to_a_slice, relu_of_a_slice, changed_after_use, buffer, buffer_like, flat_view, transposed_view, older_view,
    written_twice, added_to_itself, subtracted, sum_of_data,
)  # fmt: skip


@pytest.mark.parametrize("operation", FOLLOWED)
def test_writes_in_place_are_followed(operation: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The map is input × gradient, and not that of the values before or after the write."""
    network, x = Network(operation), torch.rand(2, WIDTH).double() - 0.3
    torch.testing.assert_close(relevance(network, x), slopes(network, x), rtol=1e-6, atol=1e-9)


def test_the_shares_of_a_sum_in_place_are_those_of_its_terms() -> None:
    """x += y has shares of x and y, and not of x + y and y."""

    class Sum(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            x = x.clone()
            x += y
            return x.sum(1, keepdim=True)

    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])
    ((first, second),) = attribute("lrp", Sum(), (x, y), [0], composite="epsilon", epsilon=0.0)
    torch.testing.assert_close((first, second), (x, y))


def random_network(seed: int) -> nn.Module:
    """A network of random operations on views, in place and not, without biases."""
    torch.manual_seed(seed)
    layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
    head = nn.Linear(WIDTH, 1, bias=False)

    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = layers, head

        def forward(self, x: Tensor) -> Tensor:
            rng, known = random.Random(seed), [x, self.layers[0](x)]
            for _ in range(rng.randint(3, 9)):
                known.append(step(rng, known, self.layers))
            found: Tensor = self.head(known[-1] + rng.choice(known))
            return found

    return Random().double().eval()


def part(rng: random.Random, tensor: Tensor) -> Tensor:
    """A view of three columns, by different operations."""
    first = rng.randint(0, 3)
    views: list[Callable[[], Tensor]] = [
        lambda: tensor[:, first : first + 3],
        lambda: tensor[:, ::2],
        lambda: tensor.narrow(1, first, 3),
        lambda: tensor.t()[first : first + 3].t(),
        lambda: tensor.chunk(2, 1)[first % 2],
        lambda: tensor.view(-1, 2, 3)[:, first % 2],
        lambda: tensor.data[:, first : first + 3],
    ]
    return rng.choice(views)()


def step(rng: random.Random, known: list[Tensor], layers: nn.ModuleList) -> Tensor:
    """A random operation on one or two known tensors."""
    one, other = rng.choice(known), rng.choice(known)
    chosen = rng.randint(0, 15)
    if chosen == 0:
        found: Tensor = rng.choice(list(layers))(one)
        return found
    if chosen == 1:
        return torch.cat([part(rng, one), part(rng, other)], 1)
    if chosen == 2:
        result = torch.zeros_like(one) if rng.random() < 0.5 else torch.zeros(one.shape, dtype=one.dtype)
        part(rng, result).copy_(part(rng, one))
        part(rng, result).add_(part(rng, other))
        return result
    simple: list[Callable[[], Tensor]] = [
        lambda: one + other,
        lambda: one - 2 * other,
        lambda: torch.relu(one),
        lambda: one.relu_(),
        lambda: one.add_(other, alpha=0.5),
        lambda: one.sub_(other),
        lambda: one.mul_(1.5),
        lambda: one.clone(),
        lambda: one.view(-1).relu_().view(one.shape),
        lambda: one.flip(1),
    ]
    if chosen < 13:
        return simple[chosen - 3]()
    target, source = part(rng, one), part(rng, other)
    written: list[Callable[[], Tensor]] = [
        lambda: target.copy_(source.clone()),
        lambda: target.add_(source.clone()),
        lambda: target.relu_(),
        lambda: target.zero_(),
        lambda: target.index_copy_(1, torch.arange(3), source.clone()),
        lambda: torch.add(source, source, out=target),
    ]
    rng.choice(written)()
    return one


@pytest.mark.parametrize("block", range(4))
def test_random_networks_are_right_or_refused(block: int) -> None:
    """The ε-rule is input × gradient in each of 100 random networks, or the network is refused."""
    refused = 0
    for seed in range(100 * block, 100 * block + 100):
        network = random_network(seed)
        x = torch.randn(2, WIDTH, dtype=torch.double)
        expected = slopes(network, x.clone())
        tolerance = 1e-5 * float(expected.abs().max()) + 1e-9
        try:
            tape = record(network, (x,))
            (found,) = propagate(tape, tape.value, EXACT)
        except CellError:
            refused += 1
            continue
        difference = float((expected if found is None else expected - found).abs().max())
        assert difference <= tolerance, f"network {seed}: {difference}"
    assert refused < 40


def through_numpy(y: Tensor, x: Tensor) -> Tensor:
    """All values."""
    return torch.as_tensor(y.detach().numpy() * 2)


def partly_through_numpy(y: Tensor, x: Tensor) -> Tensor:
    """One of two terms."""
    return y + torch.from_numpy(np.asarray(x) + 1)


def through_a_number(y: Tensor, x: Tensor) -> Tensor:
    """A factor."""
    return x * float(y.mean())


def through_a_list(y: Tensor, x: Tensor) -> Tensor:
    """A list."""
    return x + torch.tensor(y.tolist(), dtype=x.dtype)


def through_items(y: Tensor, x: Tensor) -> Tensor:
    """One value."""
    return x + y[0, 0].item()


def through_another_array(y: Tensor, x: Tensor) -> Tensor:
    """A copy from array to array."""
    found = torch.zeros_like(y)
    np.copyto(found.numpy(), y.detach().numpy())
    return found


@pytest.mark.parametrize(
    "operation",
    [through_numpy, partly_through_numpy, through_a_number, through_a_list, through_items, through_another_array],
)
def test_values_that_leave_torch_are_refused(operation: Callable[[Tensor, Tensor], Tensor]) -> None:
    """A path that cannot be traced is an error that names the function, and not a map of zeros."""
    with pytest.raises(CellError, match=r"cannot trace a value that leaves the network"):
        relevance(Network(operation), torch.rand(1, WIDTH).double())


def test_a_truth_value_may_decide_what_runs() -> None:
    """Checks of values are no paths of relevance."""

    def operation(y: Tensor, x: Tensor) -> Tensor:
        return y if bool((x > -1).all()) and not torch.equal(x, y) else x

    network, x = Network(operation), torch.rand(1, WIDTH).double()
    torch.testing.assert_close(relevance(network, x), slopes(network, x), rtol=1e-6, atol=1e-9)


def test_an_output_that_is_cut_off_unseen_is_refused() -> None:
    """If no record leads to an input, the output must not change with it."""

    def operation(y: Tensor, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():  # as code in another language would
            return torch.from_numpy(y.detach().numpy().copy())

    with pytest.raises(CellError, match="how the output depends on input 0"):
        relevance(Network(operation), torch.rand(1, WIDTH).double())


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda y, x: torch.add(x, y, out=torch.empty_like(y)), r"add\.out"),
        (lambda y, x: y.index_put_((torch.tensor([0]),), x[0]), "index_put_"),
        (lambda y, x: y[None].baddbmm_(x[None, :, :1], x[None, :1])[0], "baddbmm_"),
    ],
)
def test_other_operations_in_place_are_refused_by_name(operation: Callable[..., Tensor], name: str) -> None:
    """Operations in place without a rule are named."""
    with pytest.raises(CellError, match=f"no rule for the operation {name}"):
        relevance(Network(operation), torch.rand(1, WIDTH).double())


def test_arguments_that_change_between_record_and_propagation_are_refused() -> None:
    """Weights that are changed after the record are noticed."""
    network, x = Network(lambda y, x: y), torch.rand(1, WIDTH).double()
    tape = record(network, (x,))
    with torch.no_grad():
        network.head.weight.mul_(2)
    with pytest.raises(CellError, match="arguments were changed after it ran"):
        propagate(tape, tape.value, EXACT)


def test_a_constant_that_changes_after_its_use_keeps_its_value() -> None:
    """A factor that the network changes later counts with its value at the time of the product."""

    def operation(y: Tensor, x: Tensor) -> Tensor:
        weights = torch.eye(WIDTH, dtype=x.dtype)
        z = x @ weights
        weights.mul_(3)
        return z + y @ weights

    network, x = Network(operation), torch.rand(1, WIDTH).double()
    torch.testing.assert_close(relevance(network, x), slopes(network, x), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.InstanceNorm1d(2, affine=True),
        lambda: nn.BatchNorm1d(2, track_running_stats=False),
    ],
)
@pytest.mark.parametrize("after_convolution", [False, True])
def test_statistics_of_the_image_or_batch_are_refused(make: Callable[[], nn.Module], after_convolution: bool) -> None:
    """Relevance would not pass unchanged through them, because the statistics depend on the input."""
    first = nn.Conv1d(2, 2, 3, padding=1, bias=False) if after_convolution else nn.Identity()
    network = nn.Sequential(first, make(), nn.Flatten(), nn.Linear(12, 1)).eval()
    with pytest.raises(CellError, match="native_batch_norm in the module 1 with statistics of the image or batch"):
        attribute("lrp", network, torch.rand(2, 2, 6), [0])


def test_instance_normalisation_with_stored_statistics_passes() -> None:
    """With running statistics, it is a factor and a bias, through which relevance passes."""
    norm = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
    network = nn.Sequential(norm, nn.Flatten(), nn.Linear(12, 1, bias=False)).double().eval()
    x = torch.rand(2, 2, 6).double()
    (found,) = attribute("lrp", network, x, [0], composite="epsilon", epsilon=0.0)
    torch.testing.assert_close(found.flatten(1).sum(1), network(x)[:, 0])
