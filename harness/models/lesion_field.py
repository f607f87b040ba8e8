"""A network with one learned attention map over the brain per score.

A coarse-to-fine decoder generates the map, the lesion is pooled with it, and a monotone
curve maps the lesion load to the score.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn
from torch.nn import functional

from harness.core.registry import MODELS
from harness.core.types import Array
from harness.models.fitting import LesionModel

__all__ = ["lesion_field"]

# Unexplained variance, relative to the variance of a score, below which the loss hardly decreases.
_EXPLAINED = 1e-4
# Smallest difference between neighbouring voxels that counts as an edge, in units of the mean height of the map.
_EDGE = 1e-3


@MODELS.register(
    "lesion_field",
    source="this project",
    fitted=True,
    weights=True,
    assumes="that a score increases with the lesion load of a few compact regions",
)
def lesion_field(
    in_channels: int = 1,
    outputs: int = 1,
    *,
    image_shape: tuple[int, ...] = (),
    compactness: Annotated[float, Ge(0)] = 0.05,
    degree: Annotated[int, Ge(1), Le(8)] = 4,
    minimum: Annotated[int, Ge(1)] = 5,
    steps: Annotated[int, Ge(2)] = 300,
    lr: Annotated[float, Gt(0), Le(1)] = 0.05,
) -> nn.Module:
    """Attention map over voxels from a coarse-to-fine decoder, followed by a monotone curve.

    For each score, a field f is the sum of trilinearly upsampled grids, whose spacing is
    halved at each level down to one voxel. Its softmax over the voxels with enough lesions
    is the region m. The load is s = Σ m · occupancy in [0, 1]. The predicted score is bias
    + slope · h(s), where h is a monotone Bernstein polynomial with h(0) = 0 and h(1) = 1.
    Grids and curve are trained jointly by Adam with the loss

        ½ log(1 − r²) + compactness · TV(q) / (Σ q)^(2/3),

    where r is the correlation of h(s) and the score over the training patients, TV is the
    isotropic total variation with zero padding, and q is m divided by Σ m². The penalty
    therefore depends on the ratio of surface and volume of a region, but not on its size
    or height.

    Parameters
    ----------
    in_channels : must be 1, the lesion mask
    outputs : number of scores, K, which are fitted independently
    image_shape : shape of the image, (X, Y, Z)
    compactness : weight of the penalty on the surface of a region
    degree : degree of the polynomial h; 1 for a linear function
    minimum : minimum number of training patients with a lesion in a voxel of a region
    steps : number of steps of Adam, each on all training patients
    lr : maximum learning rate of the one-cycle schedule

    Returns
    -------
    nn.Module
        Maps (N, 1, X, Y, Z) float to (N, K); trained by its method ``fit``.

    Notes
    -----
    The model assumes that the score increases (or decreases) with the lesion load of a few
    compact regions, whose weights are proportional to their volumes. Shape, size, number
    and location of the regions are not assumed. The model is not suitable if lesions
    increase a score in some places and decrease it in others, if regions interact, or if
    total lesion volume matters everywhere, which the softmax cannot represent. It blurs
    thin or branched regions such as tracts.

    Scores that are simulated from the load of cubes are what the model assumes, so that
    its lead on them does not show that it leads on measured scores. The experiments
    ``assumptions`` and ``confounds`` of the task ``lsm`` simulate scores that violate the
    assumptions.

    Because of the logarithm, the penalty is relative to the unexplained variance: it has
    little influence if there is little noise, and much influence otherwise. Training stops
    after ``steps``, before the penalty has converged, because more steps would fit the
    noise. The grids also accelerate the training, which would be very slow with a
    separate parameter for each voxel.

    References
    ----------
    Attention pooling: Ilse, Tomczak & Welling 2018, arXiv:1802.04712. Total variation for
    brain maps: Michel et al. 2011, doi:10.1109/TMI.2011.2113378.
    """
    return _LesionField(compactness, degree, steps, lr, in_channels, outputs, image_shape, minimum)


class _LesionField(LesionModel):
    def __init__(
        self,
        compactness: float,
        degree: int,
        steps: int,
        lr: float,
        in_channels: int,
        outputs: int,
        image_shape: tuple[int, ...],
        minimum: int,
    ) -> None:
        super().__init__(in_channels, outputs, image_shape, minimum)
        self.compactness, self.degree, self.steps, self.lr = compactness, degree, steps, lr
        voxels = math.prod(image_shape)
        self.register_buffer("region", torch.full((outputs, 1, *image_shape), 1 / voxels))
        self.register_buffer("rises", torch.full((outputs, degree), 1 / degree))
        self.register_buffer("slope", torch.zeros(outputs))

    region: Tensor
    rises: Tensor
    slope: Tensor

    @property
    def reads_masks(self) -> bool:
        """True: the curve is defined for loads in [0, 1]."""
        return True

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, X, Y, Z) → (N, K)."""
        load = functional.linear(self._volumes(x), self.region.flatten(1))
        return self.bias + self.slope * _curve(load, self.rises)

    def weight_map(self) -> Tensor:
        """See :class:`harness.models.fitting.Fitted`; the effect of a complete lesion, distributed over the voxels."""
        return (self.slope[:, None, None, None, None] * self.region).float()

    def _learn(self, lesions: scipy.sparse.csr_array, targets: Array, rng: np.random.Generator) -> None:
        voxels = self._voxels(lesions)
        box = _bounding_box(voxels, self.image_shape)
        index = np.arange(math.prod(self.image_shape)).reshape(self.image_shape)[box]
        inside = lesions[:, index.ravel()].astype(np.float32)
        scores = torch.from_numpy(_standardised(targets).astype(np.float32))
        field = _Field(np.isin(index, voxels), self.outputs, self.degree)
        self._train(field, inside, scores)
        with torch.no_grad():
            regions, rises = field.regions(), field.rises.softmax(1)
            whole = torch.zeros(self.outputs, *self.image_shape)
            whole[(slice(None), *box)] = regions
            loads = torch.from_numpy(inside @ regions.flatten(1).T.numpy())
            curve = _curve(loads, rises).double().numpy()
        slope = _slope(curve, targets)
        self.region = whole[:, None].to(self.region)
        self.rises = rises.to(self.rises)
        self.slope = torch.from_numpy(slope).to(self.slope)
        self.bias = torch.from_numpy(targets.mean(0) - slope * curve.mean(0)).to(self.bias)

    def _train(self, field: _Field, lesions: scipy.sparse.csr_array, scores: Tensor) -> None:
        transposed = lesions.T.tocsr()
        optimiser = torch.optim.Adam(field.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.lr, total_steps=self.steps, pct_start=0.1)
        for step in range(self.steps):
            regions = field.regions()
            loads = _Loads.apply(regions.flatten(1).T, lesions, transposed)  # type: ignore[no-untyped-call]
            unexplained = 1 - _squared_correlation(_curve(loads, field.rises.softmax(1)), scores)
            loss = 0.5 * (unexplained + _EXPLAINED).log()
            if self.compactness:
                # The penalty increases slowly, so that the location is learned first.
                ramp = min(1.0, 2 * (step + 1) / self.steps)
                loss = loss + self.compactness * ramp * _surface(regions)
            optimiser.zero_grad()
            torch.autograd.backward(loss.sum())
            optimiser.step()
            schedule.step()


class _Field(nn.Module):
    """Stacks of grids, whose sum after upsampling is a field; one stack per map.

    Parameters
    ----------
    usable : (X, Y, Z) bool, voxels that can belong to a region
    maps : number of maps
    degree : degree of the curve of each map
    """

    def __init__(self, usable: npt.NDArray[np.bool_], maps: int, degree: int) -> None:
        super().__init__()
        self.shape = shape = usable.shape
        # Weights elsewhere would not affect the loss, but predictions for new patients.
        self.barrier = torch.from_numpy(np.where(usable, 0.0, -np.inf).astype(np.float32))
        levels = max(1, int(math.log2(max(min(shape), 2))))
        spacings = [2**level for level in reversed(range(levels))]
        self.grids = nn.ParameterList(
            torch.zeros(maps, 1, *((size - 2) // spacing + 2 for size in shape)) for spacing in spacings
        )
        self.rises = nn.Parameter(torch.zeros(maps, degree))

    def regions(self) -> Tensor:
        """Regions, (maps, X, Y, Z), non-negative with sum 1."""
        field: Tensor = self.grids[0]
        for finer in list(self.grids)[1:]:
            sizes = [2 * size - 1 for size in field.shape[2:]]
            field = functional.interpolate(field, size=sizes, mode="trilinear", align_corners=True)
            x, y, z = finer.shape[2:]
            field = field[:, :, :x, :y, :z] + finer
        x, y, z = self.shape
        field = field[:, 0, :x, :y, :z] + self.barrier
        return field.flatten(1).softmax(1).reshape(-1, x, y, z)


class _Loads(torch.autograd.Function):
    """Product of sparse lesions, (n, V), and regions, (V, maps), without gradient for the lesions."""

    @staticmethod
    def forward(ctx: Any, regions: Tensor, lesions: Any, transposed: Any) -> Tensor:
        ctx.transposed = transposed
        return torch.from_numpy(lesions @ np.ascontiguousarray(regions.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return torch.from_numpy(ctx.transposed @ np.ascontiguousarray(gradients[0].numpy())), None, None


class _TotalVariation(torch.autograd.Function):
    """Isotropic total variation: sum over voxels of the gradient magnitude; (maps, X, Y, Z) → (maps,).

    The explicit derivative is four times faster than automatic differentiation.
    """

    @staticmethod
    def forward(ctx: Any, image: Tensor) -> Tensor:
        steps = []
        for axis in (1, 2, 3):
            step = torch.zeros_like(image)
            length = image.shape[axis] - 1
            step.narrow(axis, 0, length).copy_(image.diff(dim=axis))
            steps.append(step)
        lengths = torch.full_like(image, _EDGE**2)
        for step in steps:
            lengths.addcmul_(step, step)
        lengths.sqrt_()
        gradient = torch.zeros_like(image)
        for axis, step in zip((1, 2, 3), steps, strict=True):
            step /= lengths
            length = image.shape[axis] - 1
            gradient -= step
            gradient.narrow(axis, 1, length).add_(step.narrow(axis, 0, length))
        ctx.save_for_backward(gradient)
        return (lengths - _EDGE).flatten(1).sum(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = ctx.saved_tensors
        scaled: Tensor = gradient * gradients[0][:, None, None, None]
        return scaled


def _surface(regions: Tensor) -> Tensor:
    """Surface relative to volume, independent of size and height of a region; (maps, X, Y, Z) → (maps,).

    For a region of constant height with volume V and surface A, this is A / V^(2/3).
    """
    height = regions.square().flatten(1).sum(1) / regions.flatten(1).sum(1)
    even = regions / height[:, None, None, None]
    surface: Tensor = _TotalVariation.apply(functional.pad(even, (1,) * 6))  # type: ignore[no-untyped-call]
    return surface / even.flatten(1).sum(1) ** (2 / 3)


def _curve(load: Tensor, rises: Tensor) -> Tensor:
    """Bernstein polynomial of loads (n, K), with coefficients 0 and the cumulative sums of ``rises`` (K, degree)."""
    degree = rises.shape[1]
    if degree == 1:
        return load * rises[:, 0]
    heights = rises.cumsum(1)
    terms = [
        math.comb(degree, j) * heights[:, j - 1] * load**j * (1 - load) ** (degree - j) for j in range(1, degree + 1)
    ]
    return sum(terms[1:], start=terms[0])


def _squared_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Squared correlation of each pair of columns, (n, K) → (K,), if ``other`` has mean 0; 0 for constant columns."""
    one = one - one.mean(0)
    together = (one * other).sum(0)
    alone = one.square().sum(0) * other.square().sum(0)
    return together.square() / alone.clamp(min=1e-20)


def _slope(curve: Array, targets: Array) -> Array:
    """Least-squares slope of each target on its curve; 0 if the curve is constant."""
    centred = curve - curve.mean(0)
    spread = (centred**2).sum(0)
    slope: Array = (centred * targets).sum(0) / np.maximum(spread, 1e-20)
    return slope


def _standardised(targets: Array) -> Array:
    """Columns with mean 0 and SD 1; zeros for constant columns."""
    centred = targets - targets.mean(0)
    spread = centred.std(0)
    scaled: Array = centred / np.where(spread > 1e-12, spread, 1.0)
    return scaled


def _bounding_box(voxels: Array, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Smallest box around voxels (flat indices), at least two voxels wide along axes where the image is."""
    places = np.unravel_index(voxels, shape)
    lows = [min(int(axis.min()), max(size - 2, 0)) for axis, size in zip(places, shape, strict=True)]
    highs = [max(int(axis.max()) + 1, min(low + 2, size)) for axis, low, size in zip(places, lows, shape, strict=True)]
    return tuple(slice(low, high) for low, high in zip(lows, highs, strict=True))
