"""Batches mixed with themselves, and their labels alike: MixUp and CutMix.

MixUp (Zhang et al. 2018, arXiv:1710.09412) shows share x image + (1 - share) x another; CutMix (Yun
et al. 2019, arXiv:1905.04899) puts a box of the other into the image, and the share is of the
pixels left. The share of a step is drawn from Beta(alpha, alpha). Where both are asked for, a coin
decides at each step.

Feeds cnn_classify.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def draw(shape: tuple[int, int], mixup: float, cutmix: float,
         rng: np.random.Generator) -> dict[str, np.ndarray]:
    """What is mixed with what, of every step, drawn beforehand; {} where nothing is mixed.

    shape: [steps, batch]. mixup, cutmix: alpha, 0 for none. Returns partner int64 [steps, batch],
    places in the batch; share float64 [steps] in 0..1; centre float64 [steps, 2], of CutMix's box
    in 0..1 of the height and of the width, NaN at a step of MixUp.
    """
    if not (mixup or cutmix):
        return {}
    steps, batch_size = shape
    cuts = rng.random(steps) < 0.5 if mixup and cutmix else np.full(steps, bool(cutmix))
    alpha = np.where(cuts, cutmix, mixup)
    partner = rng.permuted(np.tile(np.arange(batch_size), (steps, 1)), axis=1)
    return {"partner": partner, "share": rng.beta(alpha, alpha),
            "centre": np.where(cuts[:, None], rng.random((steps, 2)), np.nan)}


def mixer(plan: dict[str, np.ndarray], device) -> Callable | None:
    """What mixes a step's batch as `plan` says, on `device`; None where it mixes nothing.

    A function of step and inputs, float32 [B, C, S, S] or of MixUp features [B, D], to (mixed
    inputs, partners' places int64 [B], the share of an image itself).
    """
    import torch

    if "share" not in plan:
        return None
    partners = torch.from_numpy(plan["partner"]).to(device)

    def mix(step: int, batch):
        share, partner = float(plan["share"][step]), partners[step]
        if np.isnan(plan["centre"][step, 0]):
            return share * batch + (1 - share) * batch[partner], partner, share
        (top, left), (bottom, right) = box(share, plan["centre"][step], batch.shape[-1])
        mixed = batch.clone()
        mixed[..., top:bottom, left:right] = batch[partner, ..., top:bottom, left:right]
        return mixed, partner, 1 - (bottom - top) * (right - left) / batch.shape[-1]**2

    return mix


def box(share: float, centre: np.ndarray, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """((top, left), (bottom, right)) in pixels of a box of 1 - share of the image, cut at its edge.
    """
    half = size * np.sqrt(1 - share) / 2
    corners = np.array([centre * size - half, centre * size + half])
    (top, left), (bottom, right) = corners.round().clip(0, size).astype(int).tolist()
    return (top, left), (bottom, right)
