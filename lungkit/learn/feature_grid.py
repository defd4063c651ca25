"""Where in an image the places of a feature map lie, from what a network does on its way there.

A convolution of stride 2 with an odd kernel puts its places at every other pixel, beginning with
the first, and not in the middle of two: after four of them a map of 4 x 4 places of 64 px has its
first at pixel 0, where enlarging the map as a picture would put it at 7.5. Maps of where a network
looks would lie half a place too far to the right and below.

Centres of receptive fields: Dumoulin and Visin 2016 (arXiv:1603.07285), relationships 6 and 14.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """Place i of a map of `side` places lies at pixel start + i * step of the image."""

    start: float
    step: float
    side: int

    def enlarge(self, maps, size: int):
        """Maps float [B, side, side] as [B, size, size]: bilinear; outside the places, the nearest.
        """
        import torch
        from torch.nn.functional import grid_sample

        at = (torch.arange(size, device=maps.device) - self.start) / self.step
        at = 2 * at / (self.side - 1) - 1  # from -1, the first place, to 1, the last
        row, column = torch.meshgrid(at, at, indexing="ij")
        where = torch.stack([column, row], -1).to(maps.dtype).expand(len(maps), -1, -1, -1)
        return grid_sample(maps[:, None], where, mode="bilinear", padding_mode="border",
                           align_corners=True)[:, 0]


class Tracer:
    """Follows a network's run by forward hooks, and knows the grid of every size of its maps.

    Maps of one size share a grid: so it is of networks whose branches are added or joined.
    """

    def __init__(self) -> None:
        self.places: dict[int, tuple[float, float]] = {}  # side: start, step, of what came in first
        self.first = 0

    def note(self, module, shown, made) -> None:
        """Of a module that was shown a map [B, C, H, W] and made another, both square."""
        if not self.places:
            self.first = shown
            self.places[shown] = (0.0, 1.0)
        if made in self.places or shown not in self.places or not hasattr(module, "kernel_size"):
            return
        kernel, stride, padding, dilation = (
            _one(getattr(module, name, 1)) for name in ("kernel_size", "stride", "padding",
                                                        "dilation"))
        kernel = dilation * (kernel - 1) + 1
        if padding == 0:  # or padded by the module as it goes, the odd pixel at the end
            padding = max(0, (made - 1) * stride + kernel - shown) // 2
        start, step = self.places[shown]
        self.places[made] = (start + ((kernel - 1) / 2 - padding) * step, step * stride)

    def grid(self, side: int, size: int) -> Grid:
        """That of maps of `side` places, of images of `size` px, which the network may enlarge."""
        start, step = self.places[side]
        scale = size / self.first
        return Grid((start + 0.5) * scale - 0.5, step * scale, side)


def _one(value) -> int:
    """A number that holds for both axes; of words, such as "same", 0."""
    first = value[0] if isinstance(value, (tuple, list)) else value
    return 0 if isinstance(first, str) else int(first)
