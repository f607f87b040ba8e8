"""A network that learns where lesions cost points: one attention map over the brain per score.

A decoder draws the map from coarse to fine, the lesion is pooled under it, and a
monotone curve turns the load into the score.
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

# Below this share of a score's variance, what is left unexplained counts as nothing.
_EXPLAINED = 1e-4
# Smallest step between neighbouring voxels that counts as an edge, in units of the map's mean height.
_EDGE = 1e-3


@MODELS.register("lesion_field", source="ours", fitted=True, weights=True)
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
    """Attention over voxels that a coarse-to-fine decoder draws, then a monotone curve.

    For each score a field f is the sum of trilinearly enlarged grids whose
    spacing halves from level to level down to one voxel. Its softmax over the
    voxels that are lesioned often enough is the region m, the load is s = Σ m · occupancy in [0, 1], and the
    score is bias + slope · h(s), where h is a monotone Bernstein polynomial from
    h(0) = 0 to h(1) = 1. Grids and curve are trained together by Adam on

        ½ log(1 − r²) + compactness · TV(q) / (Σ q)^(2/3),

    where r correlates h(s) with the score over the training patients, TV is the
    isotropic total variation, nothing but zeros lying around the image, and q is
    m divided by Σ m², so that neither the size nor the height of a region
    changes the penalty: only how much surface it has for its volume.

    Parameters
    ----------
    in_channels : must be 1, the lesion mask
    outputs : number of scores K; each is learned by itself
    image_shape : (X, Y, Z) voxels
    compactness : weight of the penalty on surface
    degree : of h; 1 is a straight line
    minimum : training patients who must have a lesion in a voxel for it to be part
        of a region
    steps : of Adam, all patients in each
    lr : largest learning rate of the one-cycle schedule

    Returns
    -------
    nn.Module
        (N, 1, X, Y, Z) float → (N, K), fitted by its ``fit``

    Notes
    -----
    What it assumes: the score rises (or falls) with the lesion load of a few
    compact regions, which weigh the same in proportion to their volume. It is
    told neither their shape, size and number nor where they may lie. It fails
    where a score falls with lesions in one place and rises with them in another,
    where regions interact, where total volume matters everywhere (the softmax
    has no term for it), and it blurs thin or branched regions such as tracts.

    The logarithm makes the unexplained variance the unit of the penalty: where
    there is little noise the data decide alone, where there is much the penalty
    does. Training is stopped after ``steps``, before the penalty has converged:
    many more steps fit the noise. A second reason for the grids is speed: a
    field of single voxels learns far too slowly to become a region.

    References
    ----------
    Attention as pooling: Ilse, Tomczak & Welling 2018, arXiv:1802.04712. Total
    variation for brain maps: Michel et al. 2011, doi:10.1109/TMI.2011.2113378.
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
        """A load is a share: the curve ends at 0 and 1."""
        return True

    def forward(self, x: Tensor) -> Tensor:
        """(N, 1, X, Y, Z) → (N, K)."""
        load = functional.linear(self._volumes(x), self.region.flatten(1))
        return self.bias + self.slope * _curve(load, self.rises)

    def weight_map(self) -> Tensor:
        """See :class:`harness.models.fitting.Fitted`; a complete lesion's score, shared out over the voxels."""
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
                # First the data say where, then the penalty says how compact.
                ramp = min(1.0, 2 * (step + 1) / self.steps)
                loss = loss + self.compactness * ramp * _surface(regions)
            optimiser.zero_grad()
            torch.autograd.backward(loss.sum())
            optimiser.step()
            schedule.step()


class _Field(nn.Module):
    """Grids whose sum, each enlarged to the image, is a field; one stack of grids per map.

    Parameters
    ----------
    usable : (X, Y, Z) bool, voxels that a region may have
    maps : number of maps
    degree : number of rises of each map's curve
    """

    def __init__(self, usable: npt.NDArray[np.bool_], maps: int, degree: int) -> None:
        super().__init__()
        self.shape = shape = usable.shape
        # Elsewhere a region could hide weight at no cost, and surprise with it in a new patient.
        self.barrier = torch.from_numpy(np.where(usable, 0.0, -np.inf).astype(np.float32))
        levels = max(1, int(math.log2(max(min(shape), 2))))
        spacings = [2**level for level in reversed(range(levels))]
        self.grids = nn.ParameterList(
            torch.zeros(maps, 1, *((size - 2) // spacing + 2 for size in shape)) for spacing in spacings
        )
        self.rises = nn.Parameter(torch.zeros(maps, degree))

    def regions(self) -> Tensor:
        """(maps, X, Y, Z), positive, each with sum 1."""
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
    """Sparse lesions (n, V) times regions (V, maps); the lesions take no gradient."""

    @staticmethod
    def forward(ctx: Any, regions: Tensor, lesions: Any, transposed: Any) -> Tensor:
        ctx.transposed = transposed
        return torch.from_numpy(lesions @ np.ascontiguousarray(regions.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return torch.from_numpy(ctx.transposed @ np.ascontiguousarray(gradients[0].numpy())), None, None


class _TotalVariation(torch.autograd.Function):
    """Sum over voxels of the length of the gradient; (maps, X, Y, Z) → (maps,).

    Written with its derivative, because the recorded one takes four times as long.
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
    """Surface for its volume of each region, whatever its size and height; (maps, X, Y, Z) → (maps,).

    A region of even height has volume V voxels and surface A: A / V^(2/3).
    """
    height = regions.square().flatten(1).sum(1) / regions.flatten(1).sum(1)
    even = regions / height[:, None, None, None]
    surface: Tensor = _TotalVariation.apply(functional.pad(even, (1,) * 6))  # type: ignore[no-untyped-call]
    return surface / even.flatten(1).sum(1) ** (2 / 3)


def _curve(load: Tensor, rises: Tensor) -> Tensor:
    """Bernstein polynomial of each load (n, K) with coefficients 0 and the running sums of ``rises`` (K, degree)."""
    degree = rises.shape[1]
    if degree == 1:
        return load * rises[:, 0]
    heights = rises.cumsum(1)
    terms = [
        math.comb(degree, j) * heights[:, j - 1] * load**j * (1 - load) ** (degree - j) for j in range(1, degree + 1)
    ]
    return sum(terms[1:], start=terms[0])


def _squared_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Column by column, ``other`` with mean 0; (n, K) → (K,); 0 for a constant column."""
    one = one - one.mean(0)
    together = (one * other).sum(0)
    alone = one.square().sum(0) * other.square().sum(0)
    return together.square() / alone.clamp(min=1e-20)


def _slope(curve: Array, targets: Array) -> Array:
    """Least squares of each target on its curve; 0 where the curve is flat."""
    centred = curve - curve.mean(0)
    spread = (centred**2).sum(0)
    slope: Array = (centred * targets).sum(0) / np.maximum(spread, 1e-20)
    return slope


def _standardised(targets: Array) -> Array:
    """Columns with mean 0 and SD 1; zeros for a constant one."""
    centred = targets - targets.mean(0)
    spread = centred.std(0)
    scaled: Array = centred / np.where(spread > 1e-12, spread, 1.0)
    return scaled


def _bounding_box(voxels: Array, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The smallest box around the voxels (flat indices), at least two voxels wide where the image is."""
    places = np.unravel_index(voxels, shape)
    lows = [min(int(axis.min()), max(size - 2, 0)) for axis, size in zip(places, shape, strict=True)]
    highs = [max(int(axis.max()) + 1, min(low + 2, size)) for axis, low, size in zip(places, lows, shape, strict=True)]
    return tuple(slice(low, high) for low, high in zip(lows, highs, strict=True))
