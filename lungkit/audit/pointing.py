"""Whether maps of where a network looks point at what was outlined: energy and pointing game.

Of a map and a mask the energy is the share of the map's sum that lies inside (Wang et al. 2020,
arXiv:1910.01279, of boxes), and the pointing game is won where its maximum does, or within a margin
(Zhang et al. 2018, arXiv:1608.00507, of 15 px; here half a place of the map, for no map can point
more finely). Where several pixels are the maximum the game is won by their share; a map of nothing
but 0 points everywhere alike.

Both say something beside two others alone: maps of a network that has learnt nothing (Adebayo et
al. 2018, arXiv:1810.03292), and a blob in the middle, where whoever cut the images put things.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from lungkit.audit.fidelity import FEWEST_GROUPS

DRAWS = 2000


def energy(heat: np.ndarray, mask: np.ndarray) -> float:
    """The share of a map float [S, S], 0 and more, that lies in a mask bool [S, S]."""
    total = float(heat.sum())
    return float(heat[mask].sum()) / total if total > 0 else float(mask.mean())


def points(heat: np.ndarray, mask: np.ndarray) -> float:
    """The share of the pixels of a map's maximum that lie in a mask bool [S, S]: mostly 0 or 1."""
    highest = heat == heat.max()
    return float((highest & mask).sum() / highest.sum())


def near(mask: np.ndarray, margin_px: float) -> np.ndarray:
    """bool [S, S]: a mask bool [S, S], not empty, and what is within a margin of it."""
    import cv2

    away = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return away <= margin_px


def centred_blob(mean: float, size: int) -> np.ndarray:
    """A Gaussian in the middle, float64 [size, size], 1 at its top and of a mean from 0 to 1."""
    away = ((np.indices((size, size)) - (size - 1) / 2)**2).sum(0)
    away -= away.min()
    narrow, wide = 1e-3, 1e4 * size
    for _ in range(200):
        middle = (narrow * wide)**0.5
        narrow, wide = (middle, wide) if np.exp(-away / (2 * middle**2)).mean() < mean \
            else (narrow, middle)
    return np.exp(-away / (2 * wide**2))


# ------------------------------------------------------------------ over images

@dataclass(frozen=True)
class Mean:
    """A mean over images; low, high: of its 95 % interval, None where there are too few groups."""

    value: float
    low: float | None
    high: float | None

    def as_json(self) -> dict[str, float | None]:
        return asdict(self)


def mean_by_group(values: np.ndarray, groups: np.ndarray, seed: int = 0) -> Mean:
    """The mean of float [N] or, of K draws of something, [K, N]; groups: str [N].

    The interval is of DRAWS bootstraps of whole groups, crossed with such of the K (Owen 2007):
    images of a group are alike, and so is what one shuffled network makes of all of them.
    """
    values = np.atleast_2d(values)
    names, index = np.unique(groups, return_inverse=True)
    if len(names) < FEWEST_GROUPS:
        return Mean(float(values.mean()), None, None)
    sums = np.stack([np.bincount(index, each) for each in values])
    sizes, rng, count = np.bincount(index), np.random.default_rng(seed), len(names)
    times = rng.multinomial(count, np.full(count, 1 / count), DRAWS)  # each group is drawn
    kept = rng.multinomial(len(values), np.full(len(values), 1 / len(values)), DRAWS)
    drawn = (kept @ sums * times).sum(1) / (len(values) * times @ sizes)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Mean(float(values.mean()), float(low), float(high))


def more_often(difference: Mean) -> str:
    """Whether a mean difference is above 0: yes, no, or that it cannot be told."""
    if difference.low is None:
        return "cannot be told"
    return "yes" if difference.low > 0 else "no" if difference.high < 0 else "cannot be told"
