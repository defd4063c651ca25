"""Tissue and lumen: masks drawn anew, with the statistics of a class's own.

A mask is a Gaussian random field, smoothed at its edges and cut at the level that leaves the share
of tissue asked for. The field's correlation is the one whose cut has the two-point function of the
class's masks: how often two places of a distance are both tissue, which holds how wide lumina and
septa are and how rough their walls (Quiblier 1984, doi:10.1016/0021-9797(84)90481-8, with the
integral of Sheppard 1899 and Plackett 1954 for what a cut does to a correlation). What two places
do not tell is not kept: the direction of septa, and that a gland closes to a ring.

Feeds lungkit.nuclei.layouts.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

GRID_PX = 128        # ours: side of a mask at most; a septum of 5 um is 3 px of it, in LC25000
EDGE = 1 / 64        # ours: the field is smoothed by this share of the side, as wide as the opening
                     # that finds tissue (histology/background.py): raw cuts are frayed
FULL = 0.02          # ours: a mask all but full or empty has no walls to learn from
NUM_SHARES = 9       # ours: quantiles of the shares that a correlation is inverted at
ROUNDS, NUM_TRIED = 2, 32  # ours: masks drawn to see by how much the two-point function is off
ANGLES = np.linspace(-np.pi / 2, np.pi / 2, 401)


def grid_side(image_size: int) -> int:
    """Pixels along the side of the masks of images of `image_size` px."""
    return min(image_size, GRID_PX)


def to_grid(mask: np.ndarray) -> np.ndarray:
    """A mask bool [S, S] on the grid of masks, bool [G, G]: where half of a cell or more is set."""
    import cv2

    side = grid_side(len(mask))
    return cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA) >= 0.5


def two_point(masks: np.ndarray) -> np.ndarray:
    """The two-point function of masks bool [N, G, G] by distance 0, 1, ... G // 2, float64.

    As covariance over variance, pooled over images: 1 at 0, and 0 where two places know nothing of
    each other. Of each image its own share of tissue is taken off. All full or empty: 0 beyond 0.
    """
    side = masks.shape[-1]
    shares = masks.mean((1, 2))
    variance = (shares * (1 - shares)).sum()
    if variance == 0:
        return np.eye(1, side // 2 + 1)[0]
    found = sum(_correlate(mask - share) for mask, share in zip(masks, shares, strict=True))
    return _ring_means(found) / variance


def ring_shares(chance: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How often two points drawn by a chance a cell lie so far apart: float64 [len(edges) - 1].

    chance: float64 [G, G], sums to 1, over a square. edges: ascending distances in shares of its
    side, at most half of it.
    """
    side = len(chance)
    fine = np.linspace(edges[0], edges[-1], 20 * (len(edges) - 1) + 1)
    overlap = np.interp(fine * side, np.arange(side // 2 + 1), _ring_means(_correlate(chance)))
    # what two cells have in common over how many pairs there are of such cells in the square
    pairs = np.diff(np.pi * fine**2 - 8 / 3 * fine**3 + fine**4 / 2) * side**4
    return ((overlap[1:] + overlap[:-1]) / 2 * pairs).reshape(-1, 20).sum(1)


def _ring_means(found: np.ndarray) -> np.ndarray:
    """Of sums over pairs, as `_correlate` gives them, the mean of a pair by distance 0 .. G // 2.
    """
    side = len(found) // 2
    rings = np.rint(_distances(2 * side)).astype(int)
    near = rings <= side // 2
    pairs = _correlate(np.ones((side, side)))
    return np.bincount(rings[near], found[near]) / np.bincount(rings[near], pairs[near])


def _distances(side: int) -> np.ndarray:
    """How far each cell of a torus lies from the first, float64 [side, side]."""
    along = np.minimum(np.arange(side), side - np.arange(side))
    return np.hypot(along[:, None], along[None])


def _correlate(values: np.ndarray) -> np.ndarray:
    """Sum over all pairs of cells by what lies between them, float64 [2 G, 2 G] as a torus."""
    shape = (2 * values.shape[0], 2 * values.shape[1])
    return np.fft.irfft2(np.abs(np.fft.rfft2(values, shape)) ** 2, shape)


def cut_covariance(shares: np.ndarray) -> np.ndarray:
    """Covariance over variance of a cut Gaussian field whose correlation is sin(ANGLES).

    shares: of tissue, each strictly between 0 and 1; pooled over them as in `two_point`.
    """
    total, variance = np.zeros(len(ANGLES)), 0.0
    middle = len(ANGLES) // 2
    for share in shares.tolist():
        level = NormalDist().inv_cdf(1 - share)
        slope = np.exp(-level**2 / np.maximum(1 + np.sin(ANGLES), 1e-12)) / (2 * np.pi)
        steps = (slope[1:] + slope[:-1]) / 2 * np.diff(ANGLES)
        covariance = np.concatenate([[0.0], np.cumsum(steps)])
        total += covariance - covariance[middle]
        variance += share * (1 - share)
    return total / variance


class TissueStatistics:
    """The tissue of a class, measured on its training masks bool [N, G, G], to draw new ones.

    Masks all of one kind teach no walls: then a class of which nothing else is known has white
    noise for a field, smoothed as every field is.
    """

    def __init__(self, masks: np.ndarray) -> None:
        self.side = masks.shape[-1]
        shares = masks.mean((1, 2))
        taught = (shares > FULL) & (shares < 1 - FULL)
        self.measured = two_point(masks[taught])
        spread = (np.arange(NUM_SHARES) + 0.5) / NUM_SHARES
        self.taught_shares = np.quantile(shares[taught], spread) if taught.any() \
            else np.full(1, 0.5)
        asked = self.measured
        self.amplitudes = self._amplitudes(asked)
        for _ in range(ROUNDS if taught.any() else 0):
            draw = np.random.default_rng(0)
            tried = np.stack([self.sample(share, draw) for share in
                              np.resize(self.taught_shares, NUM_TRIED)])
            asked = asked + self.measured - two_point(tried)
            self.amplitudes = self._amplitudes(asked)

    def _amplitudes(self, asked: np.ndarray) -> np.ndarray:
        """The field's amplitude by frequency, [2 G, 2 G], for a two-point function `asked`."""
        along = np.arange(len(asked))
        correlation = np.interp(asked, cut_covariance(self.taught_shares), np.sin(ANGLES))
        correlation[0] = 1
        correlation *= np.clip((self.side / 2 - along) / (self.side / 8), 0, 1)  # far: none
        spectrum = np.fft.fft2(np.interp(_distances(2 * self.side), along, correlation, right=0))
        power = np.maximum(spectrum.real, 0)  # a sum of measured ones need not be one of a field
        return np.sqrt(power / power.mean())

    def sample(self, share: float, draw: np.random.Generator) -> np.ndarray:
        """A new mask bool [G, G] of which the share `share` is tissue, to the cell."""
        import cv2

        noise = np.fft.fft2(draw.standard_normal(self.amplitudes.shape))
        field = np.fft.ifft2(self.amplitudes * noise).real[:self.side, :self.side]
        field = cv2.GaussianBlur(field, (0, 0), EDGE * self.side)
        number = round(share * field.size)
        mask = np.zeros(field.size, bool)
        mask[np.argsort(field, axis=None, kind="stable")[field.size - number:]] = True
        return mask.reshape(field.shape)


def depths(tissue: np.ndarray) -> np.ndarray:
    """How far each cell of bool [G, G] lies from lumen, float32 [G, G] in shares of the side.

    0 in lumen; 1, as far as can be, where there is none.
    """
    import cv2

    if tissue.all():
        return np.ones(tissue.shape, np.float32)
    inside = cv2.distanceTransform(tissue.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    return np.minimum(inside / len(tissue), 1)
