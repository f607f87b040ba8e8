"""Attribution methods based on the feature maps of a layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn
from torch.nn import functional

from harness.attribution.batches import BatchSize, Inputs, Maps, by_batch, connected, independent_size
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
    model, inputs, targets : see :mod:`harness.attribution`
    layer : dotted name of a module, or an unambiguous end of it. If empty, the last
        convolution in order of execution with a kernel larger than one voxel; the feature
        maps of a final 1×1×1 convolution are the output itself
    positive : set negative values to zero, as published
    batch_size : maximum number of items in a forward pass

    Returns
    -------
    list
        Maps interpolated linearly to the size of the input, the same for all channels and
        inputs.

    Raises
    ------
    UnknownName
        If there is no such layer.
    HarnessError
        If the name of the layer is ambiguous, the model has no suitable convolution, or the
        output has no gradient.
    """
    model = connected(model, inputs, targets)
    method = LayerGradCam(model, _layer(model, layer) if layer else _last_convolution(model, inputs))

    def weigh(x: Inputs, target: int) -> Inputs:
        leaves = tuple(each.requires_grad_() for each in x)
        try:
            coarse = method.attribute(leaves, target=target, relu_attributions=positive)
        except RuntimeError as error:
            if not any(text in str(error) for text in ("does not require grad", "not have been used in the graph")):
                raise
            raise HarnessError(
                "gradcam needs a layer with a gradient of the output, but the output does not depend on the layer, or "
                "it is computed under torch.no_grad; set `layer` to another one"
            ) from error
        return tuple(_enlarge(coarse.detach(), each) for each in x)

    return by_batch(inputs, targets, independent_size(model, inputs, batch_size, gradients=True), weigh)


def _enlarge(coarse: Tensor, like: Tensor) -> Tensor:
    mode = _SMOOTH[like.ndim - 2]
    return functional.interpolate(coarse, size=like.shape[2:], mode=mode, align_corners=False).expand_as(like).clone()


def _layer(model: nn.Module, layer: str) -> nn.Module:
    named = {name.removeprefix("model."): module for name, module in model.named_modules() if name != "model"}
    found = [name for name in named if name == layer] or [name for name in named if name.endswith(f".{layer}")]
    if len(found) > 1:
        raise HarnessError(f"only one layer may match {layer!r}, got {', '.join(found)}; use a longer name")
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
            f"gradcam needs a convolution wider than one voxel, but {type(model).__name__} calls none; "
            "set `layer` to the name of a module with output (N, C, *space)"
        )
    last: nn.Module = called[-1]
    return last
