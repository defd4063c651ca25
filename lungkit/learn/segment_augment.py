"""Training pairs of image and mask, moved together: one resampling on the device, then grey.

Where each pixel of a patch is looked up is worked out at once: place, turn, mirror, scale, shear
and an elastic displacement; image and mask are then read there in one `grid_sample`. Grey is
changed by a power (gamma) and by noise. The ranges are ours, by what nnU-Net uses (Isensee et al.
2021, Nature Methods 18:203); the elastic field is Simard et al.'s (2003), of a coarse grid.

Feeds unet_segment.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import numpy as np

TURN = {8: np.pi, 2: np.radians(15), 1: np.radians(15)}  # by the symmetries of the images
SCALE, SHEAR, SHIFT = 0.25, 0.1, 0.1   # up to: log2 of size, of a side, of the patch's side
ELASTIC, GRID = 0.02, 5                # deviation as a share of the patch's side; cells a side
GAMMA, NOISE = 0.3, 0.05               # up to: log of the power; deviation, white is 1


def draw_moves(shape: tuple[int, int], symmetries: int,
               rng: np.random.Generator) -> dict[str, np.ndarray]:
    """How every patch of a training is moved and lit, float32 of `shape` [steps, batch] first.

    matrix [..., 2, 2]: from offsets in the patch to offsets in the image, x before y; shift
    [..., 2] and elastic [..., 2, GRID, GRID] in shares of the patch's side; gamma, noise.
    """
    turn = rng.uniform(-TURN[symmetries], TURN[symmetries], shape)
    mirrored = np.where((rng.random(shape) < 0.5) & (symmetries > 1), -1.0, 1.0)
    scale = 2 ** rng.uniform(-SCALE, SCALE, shape)
    shear = rng.uniform(-SHEAR, SHEAR, shape)
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    matrix = np.stack([np.stack([cos * mirrored, cos * shear - sin], -1),
                       np.stack([sin * mirrored, sin * shear + cos], -1)], -2)
    return {name: values.astype(np.float32) for name, values in {
        "matrix": matrix, "shift": rng.uniform(-SHIFT, SHIFT, (*shape, 2)),
        "elastic": ELASTIC * rng.standard_normal((*shape, 2, GRID, GRID)),
        "gamma": np.exp(rng.uniform(-GAMMA, GAMMA, shape)),
        "noise": rng.uniform(0, NOISE, shape)}.items()}


def place(images, masks, centre, moves: dict, patch_size: int):
    """Read patches around `centre` from images and their masks, moved: both by one resampling.

    images: float32 [B, C, S, S]; masks: float32 [B, M, S, S], 0 or 1; centre: float32 [B, 2], x and
    y in pixels from the image's corner. Returns float32 [B, C, P, P] and [B, M, P, P], 0 or 1. What
    lies outside an image is its mirror image.
    """
    import torch
    from torch.nn.functional import grid_sample, interpolate

    size = images.shape[-1]
    steps = torch.arange(patch_size, device=images.device) + 0.5 - patch_size / 2
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1)  # [P, P, x y]
    offsets = offsets.expand(len(images), -1, -1, -1)
    bent = interpolate(moves["elastic"], size=(patch_size,) * 2, mode="bicubic",
                       align_corners=True).permute(0, 2, 3, 1)
    at = torch.einsum("bij,bhwj->bhwi", moves["matrix"], offsets)
    at = at + centre[:, None, None] + patch_size * (bent + moves["shift"][:, None, None])
    pair = grid_sample(torch.cat([images, masks], 1), 2 * at / size - 1, mode="bilinear",
                       padding_mode="reflection", align_corners=False)
    channels = images.shape[1]
    return pair[:, :channels], (pair[:, channels:] >= 0.5).to(pair.dtype)


def light(images, moves: dict):
    """float32 [B, C, P, P] in 0..1, by another power and with noise.

    Draws from torch's own generator, so that lungkit.learn.loop.RandomStates resumes it.
    """
    import torch

    gamma, noise = (moves[name][:, None, None, None] for name in ("gamma", "noise"))
    return images.clamp(0, 1)**gamma + noise * torch.randn_like(images)
