"""Geometric augmentation of 2D items: parameters are drawn first, then applied deterministically."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from harness.core.types import Array

__all__ = ["Pose", "draw_poses", "transform"]


@dataclass(frozen=True)
class Pose:
    """Transform parameters of N items.

    Parameters
    ----------
    flip : (N, 2) bool, whether to flip along X and Y
    angle_deg : (N,) rotation in the plane
    shift_px : (N, 2) translation along X and Y, in voxels
    """

    flip: Array
    angle_deg: Array
    shift_px: Array


def draw_poses(rng: np.random.Generator, n: int, *, kind: str, max_angle_deg: float, max_shift_px: float) -> Pose:
    """Draw transform parameters for N items.

    Parameters
    ----------
    kind : ``"none"`` leaves items unchanged. ``"published"`` draws one of the 398
        augmented copies per slice of the published scheme: 2 flips, 96 rotations and
        300 shifts, where rotations and shifts apply to the slice and to both of its
        flips. ``"joint"`` combines flip, rotation and shift
    max_angle_deg, max_shift_px : largest rotation and largest shift per axis

    Notes
    -----
    The public code enumerates ±16 angles and a 10 × 10 grid of shifts of up to 45 of
    256 voxels. We sample from this set instead of storing it, with shifts of whole
    voxels, and read "±16 angles" as whole degrees from 1 to 16.
    """
    axes = rng.integers(0, 3, n)  # no flip, along X, along Y
    flip = np.stack([axes == 1, axes == 2], axis=1)
    angle = rng.uniform(-max_angle_deg, max_angle_deg, n)
    shift = rng.uniform(-max_shift_px, max_shift_px, (n, 2))
    if kind == "none":
        return Pose(np.zeros_like(flip), np.zeros_like(angle), np.zeros_like(shift))
    if kind == "published":
        which = rng.choice(3, n, p=[2 / 398, 96 / 398, 300 / 398])
        unflipped = np.flatnonzero((which == 0) & (axes == 0))
        flip[unflipped, rng.integers(0, 2, len(unflipped))] = True  # a copy of kind "flip" is always flipped
        # Whole degrees from 1 to the maximum with equal probability, in both directions.
        whole = np.copysign(np.minimum(np.ceil(np.abs(angle)), max_angle_deg), angle)
        angle = np.where(which == 1, whole, 0.0)
        shift = np.where((which == 2)[:, None], np.round(shift), 0.0)
    return Pose(flip, angle, shift)


def transform(pose: Pose, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply transforms to items and their label maps.

    Parameters
    ----------
    inputs : (N, C, X, Y) float32; linear interpolation, zero padding
    targets : (N, X, Y) integer labels; nearest-neighbour interpolation, zero padding

    Returns
    -------
    tuple
        Transformed inputs and targets, with the same shapes and dtypes.
    """
    height, width = inputs.shape[-2:]
    grid = functional.affine_grid(_matrices(pose, height, width), [len(inputs), 1, height, width], align_corners=False)
    moved = functional.grid_sample(inputs, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    labels = functional.grid_sample(
        targets[:, None].to(inputs.dtype), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )
    return moved, labels[:, 0].to(targets.dtype)


def _matrices(pose: Pose, height: int, width: int) -> torch.Tensor:
    """(N, 2, 3) matrices for ``affine_grid``, which orders coordinates from the last axis (Y)."""
    radians = np.deg2rad(pose.angle_deg)
    cosine, sine = np.cos(radians), np.sin(radians)
    # Coordinates are normalised to [-1, 1] along each axis, so that a rotation in voxels
    # depends on the ratio of the sides.
    rotation = np.stack(
        [np.stack([cosine, -sine * height / width], axis=1), np.stack([sine * width / height, cosine], axis=1)], axis=1
    )
    signs = np.where(pose.flip[:, ::-1], -1.0, 1.0)
    offset = -2.0 * pose.shift_px[:, ::-1] / np.array([width, height])
    matrix = np.concatenate([rotation * signs[:, None, :], offset[:, :, None]], axis=2)
    return torch.from_numpy(matrix.astype(np.float32))
