"""Where a CNN looks: Grad-CAM++ of any of our networks.

Of the last convolutional feature map A that has more than one place, and the score S of a class
(before the softmax), a channel's weight is the sum over its places of alpha * relu(dS/dA), and the
map is relu of the weighted sum of the channels. With Y = exp(S), as in the paper,

    alpha = d2Y/dA2 / (2 d2Y/dA2 + sum_ab A_ab d3Y/dA3)  =  g^2 / (2 g^2 + sum_ab A_ab g^3),

g = dS/dA, where S is linear in A nearby: of networks that only average and multiply after it, all
of ours but ConvNeXt, whose last layer norm makes it an approximation. alpha and the relu differ
from Grad-CAM's plain mean of the gradients.

Chattopadhay et al. 2018 (arXiv:1710.11063), equations 10 and 19; Grad-CAM: Selvaraju et al. 2017
(arXiv:1610.02391).
"""

from __future__ import annotations

import numpy as np

from lungkit.learn.batches import as_inputs, scale_for
from lungkit.learn.feature_grid import Grid, Tracer
from lungkit.run.faults import Fault, check_stop

BATCH_SIZE = 32       # ours: images and their gradients held at a time


def feature_maps(model, inputs, least_side: int = 2):
    """Run `model` on float32 [B, 3, S, S]; the last feature map [B, C, H, W], scores [B, K], Grid.

    The last that any module puts out with `least_side` places a side or more, as what follows it
    takes it: after an activation in place, that. Raises Fault where there is none.
    """
    maps, tracer = [], Tracer()

    def note(module, shown, made) -> None:
        if getattr(made, "ndim", 0) == 4 and getattr(shown[0], "ndim", 0) == 4:
            tracer.note(module, shown[0].shape[-1], made.shape[-1])
            if made.shape[-1] >= least_side and made.shape[-1] in tracer.places:
                maps[:] = [made]

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        scores = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    size = inputs.shape[-1]
    if not maps:
        raise Fault(f"the network has no feature map of {least_side} x {least_side} places of "
                    f"images of {size} px: ask for fewer --places")
    return maps[0], scores, tracer.grid(maps[0].shape[-1], size)


def weigh(maps, gradients):
    """The weight [B, C] of every channel, of maps and dS/dA [B, C, H, W]: equations 10 and 19."""
    squares = gradients**2
    below = 2 * squares + maps.sum((2, 3), keepdim=True) * gradients**3
    alpha = squares / below.where(below != 0, below.new_ones(()))
    return (alpha * gradients.relu()).sum((2, 3))


def grad_cam_pp(model, inputs, classes=None, least_side: int = 2):
    """Maps float32 [B, H, W] from 0 on, scores [B, K] and Grid, of inputs float32 [B, 3, S, S].

    classes: int64 [B], whose scores are explained; None: the highest of each.
    """
    import torch

    with torch.enable_grad():
        maps, scores, grid = feature_maps(model, inputs.requires_grad_(), least_side)
        asked = scores.argmax(1) if classes is None else classes
        [gradients] = torch.autograd.grad(scores.gather(1, asked[:, None]).sum(), maps)
    maps = maps.detach()
    return (weigh(maps, gradients)[..., None, None] * maps).sum(1).relu(), scores.detach(), grid


def explain(model, images, classes: np.ndarray | None = None, *, least_side: int = 2,
            device=None) -> tuple[np.ndarray, np.ndarray, Grid]:
    """Maps float32 [N, S, S] from 0 to 1, class probabilities float32 [N, K], and the maps' Grid.

    images: uint8 [N, S, S, 3 or 1] as a tensor. classes: int64 [N], whose scores are explained;
    None: those that the network says. A map is enlarged by its grid and divided by its maximum; one
    of nothing but 0 stays so. In testing mode and float32 on any device.
    """
    import torch

    model.eval()
    device = device or next(model.parameters()).device
    scale, shift = scale_for(model, device)
    found, probabilities = [], []
    for start in range(0, len(images), BATCH_SIZE):
        batch = images[start:start + BATCH_SIZE].to(device)
        asked = None if classes is None else torch.from_numpy(
            classes[start:start + BATCH_SIZE]).to(device)
        maps, scores, grid = grad_cam_pp(model, as_inputs(batch, scale, shift), asked, least_side)
        maps = grid.enlarge(maps, batch.shape[1])
        highest = maps.amax((1, 2), keepdim=True)
        found.append(maps / highest.where(highest > 0, highest.new_ones(())))
        probabilities.append(scores.softmax(1))
        check_stop()
    return torch.cat(found).cpu().numpy(), torch.cat(probabilities).cpu().numpy(), grid


def shuffle_weights(model, images, seed: int):
    """A copy of `model` that has learnt nothing: each tensor's weights in a random order.

    Batch normalisation takes its statistics anew, from the images (uint8 [N, S, S, 3 or 1]): those
    of the learnt weights would leave the shuffled ones' features anywhere. After the sanity checks
    of Adebayo et al. 2018 (arXiv:1810.03292), who draw new weights; these keep each tensor's
    distribution.
    """
    import copy

    import torch

    shuffled, rng = copy.deepcopy(model), np.random.default_rng(seed)
    device = next(shuffled.parameters()).device
    with torch.no_grad():
        for parameter in shuffled.parameters():
            order = torch.from_numpy(rng.permutation(parameter.numel())).to(device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    norms = [module for module in shuffled.modules()
             if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return shuffled.eval()
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the plain mean over all batches
        module.train()
    scale, shift = scale_for(shuffled, device)
    with torch.no_grad():
        for batch in images.split(BATCH_SIZE):
            if len(batch) > 1:
                shuffled(as_inputs(batch.to(device), scale, shift))
            check_stop()
    return shuffled.eval()
