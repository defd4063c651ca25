"""The flips and turns by which an image stays valid, for arrays and tensors.

A dataset says in `symmetries` how many there are: 8 where nothing has an up, as in tissue (four
quarter turns, each mirrored or not); 2 where left and right alone may be exchanged; 1 where an
image stays as it is. Here and not beside the trainings, for the audit for copies turns images too.

Feeds cnn_classify.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import numpy as np

# which % 4 quarter turns, mirrored left to right from 4 on
ALLOWED = {8: tuple(range(8)), 2: (0, 4), 1: (0,)}
# the CNN's streams number the eight so: up and down, left and right, both; then their transposes
OF_PIXELS = {8: (0, 6, 4, 2, 7, 3, 1, 5), 2: (0, 1), 1: (0,)}


def orient(images, which: int, symmetries: int = 8, *, axes: tuple[int, int] = (-2, -1)):
    """Orientation `which` (0 to symmetries - 1) of square images, an array or a tensor.

    axes: those of rows and columns. 0 is the image as it is.
    """
    number = ALLOWED[symmetries][which]
    if isinstance(images, np.ndarray):
        rot90, flip = np.rot90, np.flip
    else:
        from torch import flip, rot90
    images = rot90(images, number % 4, axes)
    return flip(images, axes[1:]) if number >= 4 else images


def as_setting(symmetries: int) -> dict[str, int]:
    """The orientations among what decides a training: said where they are not the usual 8.

    What was trained before datasets said theirs still matches.
    """
    return {} if symmetries == 8 else {"symmetries": symmetries}


def square_symmetries(size: int, symmetries: int = 8):
    """The orientations of a square as orders of its pixels: int64 [symmetries, size * size]."""
    import torch

    pixels = torch.arange(size * size).view(size, size)
    return torch.stack([orient(pixels, which, symmetries).reshape(-1)
                        for which in OF_PIXELS[symmetries]])
