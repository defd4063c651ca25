"""What makes up for classes of unlike size: the order of a training's images, or their weight.

sampler   every class equally often, the images of each in rounds without replacement
loss      an image of class c counts n / (k n_c) in the cross entropy, n images of k classes
upsample  every class repeated to the size of the largest; a copy is also moved, and lit STRONGER
          times as strongly, at each showing anew

A copy lives in memory alone, so that it stays in train with the image it is of. It is turned and
shifted but never scaled: size is what a grade is told by. Upsampling by augmented copies: Perez and
Wang 2017 (arXiv:1712.04621); the weights: King and Zeng 2001 (Political Analysis 9:137).

Feeds cnn_classify.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import math

import numpy as np

STRONGER = 2.0              # ours
TURN, SHIFT = 15.0, 0.05    # up to: degrees; a share of the image's side; ours, as is usual


def order(drawn: np.ndarray, labels: np.ndarray | None, balance: str, num_images: int,
          rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
    """The images of a whole training, in the order in which they are shown.

    drawn: indices int [M] of those to train on; labels: int [N] of the pool, None where nothing is
    balanced. Returns int64 [num_images], and, where classes are upsampled, which are copies: bool
    [num_images], else None.
    """
    if balance == "sampler":
        return _by_turns(drawn, labels, num_images, rng), None
    if balance == "upsample":
        repeated, copied = _repeated(drawn, labels, rng)
        places = epochs(np.arange(len(repeated)), num_images, rng)
        return repeated[places], copied[places]
    return epochs(drawn, num_images, rng), None


def epochs(drawn: np.ndarray, num_images: int, rng: np.random.Generator) -> np.ndarray:
    """The first `num_images` of epochs without replacement."""
    num_epochs = math.ceil(num_images / len(drawn))
    return np.concatenate([rng.permutation(drawn) for _ in range(num_epochs)])[:num_images]


def class_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """n / (k n_c) of every class, float32 [num_classes]; 0 of one without an image."""
    counts = np.bincount(labels, minlength=num_classes)
    there = counts > 0
    weights = np.zeros(num_classes, np.float32)
    weights[there] = len(labels) / (there.sum() * counts[there])
    return weights


def draw_moves(copied: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """How copies are moved: {"copied": bool, "move": float32 [..., 2, 3]}, `affine_grid`'s theta.

    copied: bool [steps, batch].
    """
    turn = np.radians(rng.uniform(-TURN, TURN, copied.shape))
    shift = 2 * rng.uniform(-SHIFT, SHIFT, (*copied.shape, 2))  # the grid's side is 2
    cos, sin = np.cos(turn), np.sin(turn)
    move = np.stack([np.stack([cos, -sin, shift[..., 0]], -1),
                     np.stack([sin, cos, shift[..., 1]], -1)], -2)
    return {"copied": copied, "move": move.astype(np.float32)}


def move_copies(batch, copied, move):
    """The copies of uint8 [B, S, S, C] moved, the others as they are: float32 [B, S, S, C].

    copied: bool [B]; move: float32 [B, 2, 3]. What lies outside an image is its mirror image.
    """
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    images = batch.permute(0, 3, 1, 2).float()
    grid = affine_grid(move, images.shape, align_corners=False)
    moved = grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return torch.where(copied[:, None, None, None], moved, images).permute(0, 2, 3, 1).contiguous()


def _by_turns(drawn: np.ndarray, labels: np.ndarray, num_images: int,
              rng: np.random.Generator) -> np.ndarray:
    """Classes in rounds, each in an order of its own; the images of each class in epochs."""
    there = np.unique(labels[drawn])
    turns = epochs(there, num_images, rng)
    shown = np.empty(num_images, np.int64)
    for label in there:
        places = turns == label
        if places.any():
            shown[places] = epochs(drawn[labels[drawn] == label], int(places.sum()), rng)
    return shown


def _repeated(drawn: np.ndarray, labels: np.ndarray,
              rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Every class's images, then copies of them up to the largest class: indices, which are copies.
    """
    classes = [drawn[labels[drawn] == label] for label in np.unique(labels[drawn])]
    largest = max(map(len, classes))
    copies = [epochs(images, largest - len(images), rng) if len(images) < largest
              else images[:0] for images in classes]
    repeated = np.concatenate([*classes, *copies])
    return repeated, np.arange(len(repeated)) >= len(drawn)
