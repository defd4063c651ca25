"""A U-Net of two dimensions, residual or plain, and the losses that it is trained with.

U-Net: Ronneberger et al. 2015 (arXiv:1505.04597); residual blocks: He et al. 2016
(arXiv:1512.03385), in a U-Net: Zhang et al. 2018 (arXiv:1711.10684). Normalised by groups of
channels (Wu and He 2018, arXiv:1803.08494), which need no large batch and no running mean, so that
an average of weights is a network.

Feeds unet_segment.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUPS = 8
PRIOR = 0.01    # foreground expected of a pixel at first: Lin et al. 2017 (arXiv:1708.02002)
GAMMA = 2.0     # of the focal loss: Lin et al. 2017
# of the Tversky loss: Salehi et al. 2017 (arXiv:1706.05721), a missed pixel counts for more
FALSE_POSITIVE, FALSE_NEGATIVE = 0.3, 0.7


# ------------------------------------------------------------------ the network

class Residual(nn.Module):
    """Two convolutions around which the input goes; the first one halves the sides at stride 2."""

    def __init__(self, num_in: int, num_out: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False)
        self.first_norm = nn.GroupNorm(_groups(num_out), num_out)
        self.second = nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False)
        self.second_norm = nn.GroupNorm(_groups(num_out), num_out)
        # halved by a mean, as He et al. 2019 (arXiv:1812.01187) do; oneDNN's strided convolution of
        # one pixel, channels last, ends in a segmentation fault at some widths (torch 2.11, CPU)
        halved = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
        self.around = nn.Sequential(*([halved] if stride == 2 else []),
                                    *([] if num_in == num_out else
                                      [nn.Conv2d(num_in, num_out, 1, bias=False)]))

    def forward(self, inputs: Tensor) -> Tensor:
        inside = functional.relu(self.first_norm(self.first(inputs)), inplace=True)
        return functional.relu(self.second_norm(self.second(inside)) + self.around(inputs))


class Plain(nn.Sequential):
    """Two convolutions after one another, without normalisation; at stride 2 a maximum before."""

    def __init__(self, num_in: int, num_out: int, stride: int = 1) -> None:
        pool = [nn.MaxPool2d(2, ceil_mode=True)] if stride == 2 else []
        super().__init__(*pool, nn.Conv2d(num_in, num_out, 3, 1, 1), nn.ReLU(inplace=True),
                         nn.Conv2d(num_out, num_out, 3, 1, 1), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """float32 [B, C, H, W] to logits [B, 1, H, W]; any sides.

    widths: channels of each level, each of half the sides of the one before. residual: blocks are
    Residual and foreground is rare at first; else Plain and PyTorch's own initial bias.
    """

    def __init__(self, num_in: int, widths: Sequence[int], *, residual: bool = True) -> None:
        super().__init__()
        block = Residual if residual else Plain
        self.down = nn.ModuleList([block(num_in, widths[0])])
        self.down.extend(block(above, below, 2) for above, below in zip(widths, widths[1:]))
        self.up = nn.ModuleList(block(above + below, above)
                                for above, below in zip(widths, widths[1:]))
        self.head = nn.Conv2d(widths[0], 1, 1)
        if residual:
            nn.init.constant_(self.head.bias, float(torch.logit(torch.tensor(PRIOR))))

    def forward(self, inputs: Tensor) -> Tensor:
        levels = []
        for block in self.down:
            inputs = block(inputs)
            levels.append(inputs)
        for block, beside in zip(reversed(self.up), reversed(levels[:-1])):
            inputs = block(torch.cat([beside, enlarge(inputs, beside.shape[-2:])], 1))
        return self.head(inputs)


class _Doubled(torch.autograd.Function):
    """Both sides doubled, bilinear; its gradient as the convolution that it is.

    PyTorch's own gradient takes three to six times as long on a CPU.
    """

    LINE = (0.25, 0.75, 0.75, 0.25)  # what a pixel gives to the four that lie around it, in a row

    @staticmethod
    def forward(ctx, inputs: Tensor) -> Tensor:
        return functional.interpolate(inputs, scale_factor=2, mode="bilinear")

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        line, channels = grad.new_tensor(_Doubled.LINE), grad.shape[1]
        weight = (line[:, None] * line).expand(channels, 1, 4, 4).contiguous()
        around = functional.pad(grad, (1, 1, 1, 1), mode="replicate")  # the border is held
        return functional.conv2d(around, weight, stride=2, groups=channels)


def enlarge(inputs: Tensor, size: Sequence[int]) -> Tensor:
    """[B, C, h, w] to [B, C, H, W], bilinear; size: H, W."""
    if list(size) == [2 * side for side in inputs.shape[-2:]] and inputs.device.type == "cpu":
        return _Doubled.apply(inputs)
    return functional.interpolate(inputs, size=size, mode="bilinear")


def _groups(channels: int) -> int:
    """The most groups, up to GROUPS, that divide the channels with two or more in each."""
    return max(groups for groups in range(1, GROUPS + 1)
               if channels % groups == 0 and (channels >= 2 * groups or groups == 1))


# ------------------------------------------------------------------ losses

def dice_loss(logits: Tensor, true: Tensor) -> Tensor:
    """1 - soft Dice over the pixels of the whole batch (Milletari et al. 2016, with |p| + |t|).

    Of each image alone it would be undefined where it shows no foreground. No smoothing: a batch
    with neither is 1 by the least probability that floats hold.
    """
    return tversky_loss(logits, true, false_positive=0.5, false_negative=0.5)


def tversky_loss(logits: Tensor, true: Tensor, *, false_positive: float = FALSE_POSITIVE,
                 false_negative: float = FALSE_NEGATIVE) -> Tensor:
    """1 - both / (both + a x said in vain + b x missed), over the whole batch."""
    said = logits.float().sigmoid()
    both = (said * true).sum()
    vain, missed = (said * (1 - true)).sum(), ((1 - said) * true).sum()
    least = torch.finfo(torch.float32).tiny
    return 1 - both / (both + false_positive * vain + false_negative * missed).clamp_min(least)


def image_dice_loss(logits: Tensor, true: Tensor) -> Tensor:
    """1 - soft Dice of each image that shows foreground, the mean of these; 0 where none does.

    So that a small lesion counts as much as a large one, which it does not over the whole batch.
    """
    said, true = logits.float().sigmoid().flatten(1), true.flatten(1)
    size = true.sum(1)
    score = 2 * (said * true).sum(1) / (said.sum(1) + size).clamp_min(
        torch.finfo(torch.float32).tiny)
    shows = size > 0
    return ((1 - score) * shows).sum() / shows.sum().clamp_min(1)


def focal_loss(logits: Tensor, true: Tensor) -> Tensor:
    """Cross entropy, less of what is told well: mean of (1 - p of the truth)^GAMMA x -log p."""
    entropy = functional.binary_cross_entropy_with_logits(logits.float(), true, reduction="none")
    return ((1 - (-entropy).exp())**GAMMA * entropy).mean()


def dice_focal_loss(logits: Tensor, true: Tensor) -> Tensor:
    return dice_loss(logits, true) + focal_loss(logits, true)


def image_dice_focal_loss(logits: Tensor, true: Tensor) -> Tensor:
    """Half the Dice is of the batch, which images without foreground count in, half of each."""
    return (dice_loss(logits, true) + image_dice_loss(logits, true)) / 2 + focal_loss(logits, true)


def cross_entropy(logits: Tensor, true: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits.float(), true)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "dice-focal": dice_focal_loss, "image-dice-focal": image_dice_focal_loss,
    "tversky": tversky_loss, "bce": cross_entropy}
