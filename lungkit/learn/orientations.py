"""The flips and turns by which an image stays valid, for tensors and arrays."""

from __future__ import annotations

NUM_ORIENTATIONS = 8  # tissue has no up: four quarter turns, each mirrored or not


def orient(images, which: int):
    """Orientation `which` (0-7) of [N, C, S, S]: which % 4 quarter turns, mirrored from 4 on."""
    import torch

    images = torch.rot90(images, which % 4, (-2, -1))
    return images.flip(-1) if which >= 4 else images


def square_symmetries(size: int, count: int = NUM_ORIENTATIONS):
    """Flips and turns of a square as orders of its pixels: int64 [count, size * size].

    count: 8, all; 2, as it is and with left and right exchanged; 1, as it is.
    """
    import torch

    pixels = torch.arange(size * size).view(size, size)
    half = [pixels, pixels.flip(0), pixels.flip(1), pixels.flip(0, 1)]
    found = {8: half + [each.t() for each in half], 2: [half[0], half[2]], 1: half[:1]}[count]
    return torch.stack([each.reshape(-1) for each in found])
