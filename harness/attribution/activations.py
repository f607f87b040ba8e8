"""Methods that use the feature maps of a layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn
from torch.nn import functional

from harness.attribution.batches import BatchSize, Connected, Inputs, Maps, by_batch
from harness.core.errors import HarnessError, UnknownName
from harness.core.registry import ATTRIBUTIONS

__all__ = ["gradcam"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SMOOTH = {1: "linear", 2: "bilinear", 3: "trilinear"}


@ATTRIBUTIONS.register("gradcam", source="Selvaraju et al. 2017, doi:10.1109/ICCV.2017.74")
def gradcam(
    model: nn.Module,
    inputs: Inputs,
    targets: Sequence[int],
    *,
    layer: str = "",
    positive: bool = True,
    batch_size: BatchSize = 8,
) -> Maps:
    """Grad-CAM: feature maps of a layer, weighted by their mean gradient.

    Parameters
    ----------
    model, inputs, targets, batch_size : see :mod:`harness.attribution`
    layer : dotted name of a module, or its end if no other has the same. By
        default the last convolution, in order of execution, that is wider than
        one voxel: a final 1×1×1 convolution holds the output itself.
    positive : keep what speaks for the output only, as published

    Returns
    -------
    list
        Maps that are interpolated linearly to the input's size; all channels
        (and all inputs) have the same map.
    """
    model = Connected(model)
    method = LayerGradCam(model, _layer(model, layer) if layer else _last_convolution(model, inputs))

    def weigh(x: Inputs, target: int) -> Inputs:
        coarse = method.attribute(tuple(each.requires_grad_() for each in x), target=target, relu_attributions=positive)
        return tuple(_enlarge(coarse.detach(), each) for each in x)

    return by_batch(inputs, targets, batch_size, weigh)


def _enlarge(coarse: Tensor, like: Tensor) -> Tensor:
    mode = _SMOOTH[like.ndim - 2]
    return functional.interpolate(coarse, size=like.shape[2:], mode=mode, align_corners=False).expand_as(like).clone()


def _layer(model: nn.Module, layer: str) -> nn.Module:
    named = {name.removeprefix("model."): module for name, module in model.named_modules() if name != "model"}
    found = [name for name in named if name == layer] or [name for name in named if name.endswith(f".{layer}")]
    if len(found) > 1:
        raise HarnessError(f"one layer must have the name {layer!r}, got {', '.join(found)}; write more of it")
    if not found:
        raise UnknownName("layer", layer, filter(None, named))
    module: nn.Module = named[found[0]]
    return module


def _last_convolution(model: nn.Module, inputs: Inputs) -> nn.Module:
    called: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: called.append(module))
        for module in model.modules()
        if isinstance(module, _CONVOLUTIONS) and max(module.kernel_size) > 1
    ]
    with torch.no_grad():
        model(*(x[:1] for x in inputs))
    for hook in hooks:
        hook.remove()
    if not called:
        raise HarnessError(
            f"gradcam needs a convolution wider than one voxel, {type(model).__name__} calls none; "
            "name a module that gives (N, C, *space) with `layer`"
        )
    last: nn.Module = called[-1]
    return last
