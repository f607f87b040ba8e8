"""Time of exact occlusion, compared with captum's, for the published networks at the published sizes.

Prints one row per network and subject: the number of windows with a lesion voxel; the
seconds for all three scores in one warm call (the shortest of three, or a single one if
it takes long); captum's seconds; their ratio; the difference of our effects of four
windows from those of full passes, relative to the largest effect; and the difference of
single full passes from the same passes in a batch, which is the precision of float32.

captum's seconds are extrapolated: at 152 × 179 × 142, it needs 138,650 forward passes per
score. Ten windows are timed in a batch, as in the publication, and multiplied by the
number of windows and scores. captum's overhead beyond the passes is not included. After
two stages, the 3D ResNet10 depends on the whole image (91 × 107 × 86, as published), so it
only profits from skipped windows and shared passes. There, our seconds are also
extrapolated from a few windows.

With a folder, a second table shows the time for all of its masks. Networks with local
layers are timed on sixteen masks, evenly spaced in the order of their number of windows,
and the mean is multiplied by the number of masks. For the ResNet10, the number of windows
of all masks is multiplied by the time of one window.

    python benchmarks/occlusion.py [folder with masks, *.nii.gz]

With few free cores, set OMP_NUM_THREADS=1; both methods are timed under the same conditions.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional

from harness.attribution import attribute
from harness.attribution.occlusion import Windows
from harness.models import build

SHAPE, WINDOW, STRIDE = (152, 179, 142), (5, 5, 5), (3, 3, 3)
SCORES, VOLUMES_ML, PASS = [0, 1, 2], (2, 8, 30, 100), 10
HALVED = (91, 107, 86)
SLOW = ("resnet10",)
# Seconds after which a call is not repeated.
LONGEST = 3.0
SAMPLED = 16


def lesions(seed: int, volume_ml: float) -> Tensor:
    """An irregular lesion of a given volume (1 mm voxels), (1, 1, *SHAPE) of zeros and ones."""
    rng = np.random.default_rng(seed)
    centre = [size * rng.uniform(0.35, 0.65) for size in SHAPE]
    axes = np.meshgrid(*(np.arange(n) - c for n, c in zip(SHAPE, centre, strict=True)), indexing="ij", sparse=True)
    distance = np.sqrt(sum((axis / width) ** 2 for axis, width in zip(axes, (1.0, 1.4, 0.8), strict=True)))
    ragged = distance + 40 * ndimage.gaussian_filter(rng.normal(size=SHAPE), 4)
    inside = ragged <= np.partition(ragged.ravel(), int(volume_ml * 1000))[int(volume_ml * 1000)]
    return torch.from_numpy(inside.astype(np.float32))[None, None]


def boxed(mask: np.ndarray) -> Tensor:
    """A mask, centrally cropped or padded to the published size."""
    for axis, size in enumerate(SHAPE):
        lack = max(0, size - mask.shape[axis])
        sides = [(0, 0)] * 3
        sides[axis] = (lack // 2, lack - lack // 2)
        start = max(0, mask.shape[axis] - size) // 2
        mask = np.pad(mask, sides).take(range(start, start + size), axis)
    return torch.from_numpy((mask > 0).astype(np.float32))[None, None]


def subjects(folder: str | None) -> Iterator[tuple[str, Tensor]]:
    """Name and mask of each subject: generated ones, and at most four from a folder."""
    for seed, volume in enumerate(VOLUMES_ML):
        yield f"generated, {volume} ml", lesions(seed, volume)
    files = sorted(Path(folder).rglob("*.nii.gz")) if folder else []
    # Masks of different sizes, because the size of a file increases with the surface of its mask.
    files = sorted(files, key=lambda file: file.stat().st_size)
    for file in files[len(files) // 8 :: max(1, len(files) // 4)][:4]:
        mask = boxed(np.asarray(nibabel.load(file).dataobj))
        yield f"{file.name[:14]}, {float(mask.sum()) / 1000:.0f} ml", mask


def plain(outputs: int) -> nn.Module:
    """A 3D network that is not from a publication: four convolutions with stride two, and a mean."""
    layers: list[nn.Module] = []
    for ins, outs in ((1, 8), (8, 16), (16, 32), (32, 64)):
        layers += [nn.Conv3d(ins, outs, 3, 2, 1), nn.BatchNorm3d(outs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(64, outputs))


def network(name: str) -> nn.Module:
    """An untrained network in evaluation mode, with non-default normalisation statistics."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        if name == "plain":
            model = plain(len(SCORES))
        else:
            model = build(name, image_shape=SHAPE, outputs=len(SCORES))
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm3d):
                nn.init.normal_(layer.running_mean, 0.0, 0.1)
                nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return model.eval()


def best(times: int, function: Callable[[], object]) -> float:
    """Shortest time of several calls in seconds."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def cut(x: Tensor, starts: Tensor) -> Tensor:
    """Copies of the image, one per window, with the window set to zero."""
    images = x.repeat(len(starts), 1, 1, 1, 1)
    for image, start in zip(images, starts.tolist(), strict=True):
        image[(slice(None), *(slice(low, low + edge) for low, edge in zip(start, WINDOW, strict=True)))] = 0
    return images


@torch.no_grad()
def whole_cohort(folder: str) -> Iterator[str]:
    """Rows of the second table: the time for all masks of a folder."""
    files = sorted(Path(folder).rglob("*.nii.gz"))
    for name in ("cnn", "residual_cnn", "resnet10"):
        model, shape = network(name), HALVED if name in SLOW else SHAPE
        grid = Windows(shape, WINDOW, STRIDE)
        counts = np.array([int(grid.touch(shaped(file, shape)[0] != 0).sum()) for file in files])
        order = np.argsort(counts)
        if name in SLOW:
            x = shaped(files[order[len(files) // 2]], shape)
            seconds = few_seconds(model, x, int(counts.sum()))
        else:
            chosen = order[np.linspace(0, len(files) - 1, SAMPLED).round().astype(int)]
            seconds = float(np.mean([all_seconds(model, shaped(files[one], shape)) for one in chosen])) * len(files)
        batch = torch.zeros(PASS, 1, *shape)
        of_captum = best(2, lambda m=model, b=batch: m(b)) / PASS * int(np.prod(grid.counts)) * len(SCORES) * len(files)
        total = int(np.prod(grid.counts))
        yield (
            f"{name:<13}{len(files):>7}{counts.mean():>10,.0f} of {total:>8,}{seconds / 60:>10,.1f}"
            f"{of_captum / 86400:>14,.1f}{of_captum / seconds:>10,.0f}"
        )


def shaped(file: Path, shape: tuple[int, ...]) -> Tensor:
    """The mask of a file on the input grid of a network."""
    mask = boxed(np.asarray(nibabel.load(file).dataobj))
    return mask if shape == SHAPE else functional.interpolate(mask, size=shape)


@torch.no_grad()
def line(name: str, model: nn.Module, subject: str, x: Tensor) -> str:
    """One row of the table."""
    grid = Windows(tuple(x.shape[2:]), WINDOW, STRIDE)
    places = grid.touch(x[0] != 0).nonzero()[:, 1:] * torch.tensor(STRIDE)
    batch = cut(x, places[:1].repeat(PASS, 1))
    of_captum = best(2, lambda: model(batch)) / PASS * int(np.prod(grid.counts)) * len(SCORES)
    mark = "*" if name in SLOW else ""
    seconds = few_seconds(model, x, len(places)) if mark else all_seconds(model, x)
    error, spread = difference(model, corner(x) if mark else x)
    return (
        f"{name:<13}{subject:<20}{len(places):>8,}{seconds:>9.2f}{mark or ' '}{of_captum:>11,.0f}"
        f"{of_captum / seconds:>9,.0f}{error:>9.0e}{spread:>9.0e}"
    )


def all_seconds(model: nn.Module, x: Tensor) -> float:
    """Seconds of a warm call for all windows and scores."""
    call = partial(attribute, "occlusion", model, x, SCORES, window=WINDOW, stride=STRIDE)
    first = best(1, call)
    return first if first > LONGEST else min(first, best(2, call))


def few_seconds(model: nn.Module, x: Tensor, windows: int) -> float:
    """Seconds of a call for a few windows, extrapolated to a number of windows."""
    few = corner(x)
    count = int(Windows(tuple(x.shape[2:]), WINDOW, STRIDE).touch(few[0] != 0).sum())
    call = partial(attribute, "occlusion", model, few, SCORES, window=WINDOW, stride=STRIDE)
    return best(1, call) / count * windows


def corner(x: Tensor) -> Tensor:
    """The image with only its first lesion voxel, which is in at most eight windows."""
    one = torch.zeros_like(x)
    one[tuple(x.nonzero()[0])] = 1
    return one


def difference(model: nn.Module, x: Tensor) -> tuple[float, float]:
    """Difference of our effects from full passes for four windows, and of single full passes from a batch.

    Both are relative to the largest effect. The windows do not overlap, so that the map
    has the effect of each.
    """
    grid = Windows(tuple(x.shape[2:]), WINDOW, WINDOW)
    places = grid.touch(x[0] != 0).nonzero()[:, 1:] * torch.tensor(WINDOW)
    places = places[torch.linspace(0, len(places) - 1, min(4, len(places))).long()]
    maps = torch.stack(attribute("occlusion", model, x, SCORES, window=WINDOW, stride=WINDOW))[:, 0, 0]
    found = torch.stack([maps[(slice(None), *place)] for place in places.tolist()])
    alone = torch.cat([model(x) - model(cut(x, place[None])) for place in places])
    among = model(x) - model(cut(x, places))
    largest = maps.abs().max()
    return float((found - alone).abs().max() / largest), float((among - alone).abs().max() / largest)


def main() -> None:
    """Print the table."""
    people = list(subjects(sys.argv[1] if len(sys.argv) > 1 else None))
    print(
        f"{'network':<13}{'subject':<20}{'windows':>8}{'seconds':>9} {'captum, s':>11}{'ratio':>9}"
        f"{'error':>9}{'float32':>9}"
    )
    for name in ("cnn", "residual_cnn", "plain", "resnet10"):
        model = network(name)
        for subject, x in people[: 1 if name in SLOW else None]:
            shown = functional.interpolate(x, size=HALVED) if name == "resnet10" else x
            print(line(name, model, subject, shown), flush=True)
    if len(sys.argv) > 1:
        print(f"\n{'network':<13}{'masks':>7}{'windows, mean':>22}{'minutes':>10}{'captum, days':>14}{'ratio':>10}")
        for text in whole_cohort(sys.argv[1]):
            print(text, flush=True)
    print("captum's seconds are extrapolated from ten windows; * ours as well, from eight")


if __name__ == "__main__":
    main()
