"""The layers of a UNet under a LoRA or DoRA adapter, computed for training in fewer passes.

peft adds to each layer's output that of its low-rank path, and of DoRA also makes the whole update
by passing an identity through it, subtracts biases and adds scaled outputs: on small widths that
costs as much as the layer. The same functions, with the same gradients, are

    LoRA    y = F(x, W + s B A) + b
    DoRA    y = F(x, g (W + s B A)) + b          g = m / |W + s B A|, the norm without a gradient

Liu et al. 2024, arXiv:2402.09353, equation 5 and section 4.3 (the norm is held constant).
"""

from __future__ import annotations

import types

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import LoraLayer


def speed_up(unet) -> None:
    """Let each adapted linear and convolutional layer of `unet` compute what it is in one pass.

    The active adapter alone counts; dropout, and bias of its own, it must not have. Where weights
    are rounded, as on a GPU, the update stays a path beside them (`one_path_beside`): in the sum it
    would be lost until it outgrew their last bit, and LoRA's layers stay peft's. What peft saves,
    merges and unloads is untouched.
    """
    for module in unet.modules():
        if not isinstance(module, LoraLayer):
            continue
        exact = module.get_base_layer().weight.dtype == torch.float32
        if exact:
            module.forward = types.MethodType(in_one_weight, module)
        elif module.use_dora[module.active_adapters[0]]:
            module.forward = types.MethodType(one_path_beside, module)


def in_one_weight(layer: LoraLayer, x: torch.Tensor) -> torch.Tensor:
    """The layer's output by its updated weight, in the weight's own precision."""
    updated = layer.get_base_layer().weight + update(layer)
    if layer.use_dora[layer.active_adapters[0]]:
        updated = rescaling(layer, updated) * updated
    return apply(layer, x, updated, layer.get_base_layer().bias)


def one_path_beside(layer: LoraLayer, x: torch.Tensor) -> torch.Tensor:
    """The output of a DoRA layer whose update runs beside its rounded weight."""
    name, base = layer.active_adapters[0], layer.get_base_layer()
    with torch.no_grad():
        updated = base.weight.float() + update(layer)
    gain = rescaling(layer, updated).flatten()
    beside = layer.lora_B[name](layer.lora_A[name](x)) * layer.scaling[name]
    both = apply(layer, x, base.weight, None) + beside
    over = (1, -1, 1, 1) if base.weight.dim() == 4 else (-1,)
    scaled = gain.view(over) * both  # in float32: a gain is near 1, and what it moves by is small
    return (scaled if base.bias is None else scaled + base.bias.view(over)).to(both.dtype)


def update(layer: LoraLayer) -> torch.Tensor:
    """s B A, float32, of the weight's shape."""
    name = layer.active_adapters[0]
    down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
    with torch.autocast(down.device.type, enabled=False):
        product = up.flatten(1) @ down.flatten(1)
    return product.view_as(layer.get_base_layer().weight) * layer.scaling[name]


def rescaling(layer: LoraLayer, updated: torch.Tensor) -> torch.Tensor:
    """g of each output, to multiply `updated` by."""
    magnitude = layer.lora_magnitude_vector[layer.active_adapters[0]].weight
    norm = torch.linalg.vector_norm(updated.detach(), dim=tuple(range(1, updated.dim())),
                                    keepdim=True)
    return magnitude.view_as(norm) / norm


def apply(layer: LoraLayer, x: torch.Tensor, weight, bias) -> torch.Tensor:
    base = layer.get_base_layer()
    if weight.dim() == 4:
        return F.conv2d(x, weight, bias, base.stride, base.padding, base.dilation, base.groups)
    return F.linear(x, weight, bias)
