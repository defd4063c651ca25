"""New layouts of nuclei, drawn from a class's measured statistics of points and of tissue.

Feeds lungkit.nuclei.layouts.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import numpy as np

from lungkit.nuclei.architecture import TissueStatistics, depths, ring_shares
from lungkit.nuclei.layouts import Layout
from lungkit.run.seeds import layout_draws

RING = 0.2            # ours: pair correlation is measured up to this share of the side
NUM_RINGS = 16
NUM_CANDIDATES = 24   # ours: candidates weighed for each nucleus of a sampled layout
# ours: how far from lumen, in shares of the side; a cell of epithelium is a twelfth of a tile wide
DEPTHS = np.array([0, 0.02, 0.04, 0.06, 0.09, 0.13, 0.2])


class PointStatistics:
    """A class's nuclei as a point process, measured on its training layouts, to draw new ones.

    Counts and areas are resampled from those observed. Where tissue was looked for, they and the
    share of tissue are those of one training image, for many small nuclei go together, and with
    much tissue; a new mask of that share is drawn (lungkit/nuclei/architecture.py), and nuclei lie
    in it alone, as near to lumen as the class's do. Places are drawn one by one: each nucleus is
    the one of NUM_CANDIDATES points, drawn by depth in tissue, that a draw weighted by the product
    of the measured pair correlation g(r) to the nuclei before it takes. This is a sequential
    pairwise-interaction process (Illian et al. 2008, chapter 6, there inhomogeneous): it keeps
    distances between neighbours and clustering.
    """

    def __init__(self, layouts: list[Layout], image_size: int) -> None:
        self.image_size = image_size
        self.counts = np.array([len(layout.areas_px) for layout in layouts])
        self.areas = [layout.areas_px for layout in layouts]
        self.areas_px = np.concatenate(self.areas)
        self.reach_px = RING * image_size
        self.tissue = None
        if all(layout.tissue is not None for layout in layouts):
            self.shares = np.array([layout.tissue_share for layout in layouts])
            self.tissue = TissueStatistics(np.stack([layout.tissue for layout in layouts]))
            self.depth_weights = self._depth_weights(layouts)
        self.pair_correlation = self._pair_correlation(layouts)

    def _depth_weights(self, layouts: list[Layout]) -> np.ndarray:
        """How much denser than in all tissue nuclei lie by depth, a value for each of DEPTHS."""
        found, expected = np.zeros(len(DEPTHS)), np.zeros(len(DEPTHS))
        for layout in layouts:
            if not layout.tissue.any() or not len(layout.areas_px):
                continue
            depth = depths(layout.tissue)
            of_nuclei = depth[self._cells(layout.centroids, len(depth))]
            of_nuclei = of_nuclei[of_nuclei > 0]
            found += np.bincount(_band(of_nuclei), minlength=len(DEPTHS))
            area = np.bincount(_band(depth[layout.tissue]), minlength=len(DEPTHS))
            expected += len(of_nuclei) * area / area.sum()
        return np.where(expected > 0, found / np.maximum(expected, 1e-9), 1.0)

    def _cells(self, centroids: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of points (x, y) px on a grid of `side` cells over the image."""
        at = ((centroids + 0.5) * (side / self.image_size)).astype(int)
        columns, rows = np.clip(at, 0, side - 1).T
        return rows, columns

    def places(self, tissue: np.ndarray) -> np.ndarray:
        """The chance of a nucleus by cell of bool [G, G]: float64 [G, G], sums to 1.

        Where the class has no nuclei at the depths there are, all tissue counts alike; without any
        tissue the whole image does.
        """
        chance = np.where(tissue, self.depth_weights[_band(depths(tissue))], 0.0)
        if not chance.any():
            chance = (tissue if tissue.any() else ~tissue).astype(float)
        return chance / chance.sum()

    def _pair_correlation(self, layouts: list[Layout]) -> np.ndarray:
        """g(r) in NUM_RINGS rings: pairs found over pairs that independent points would give.

        Where tissue was not looked for, the latter is exact for a square, border included: two
        uniform points of the unit square lie within r <= 1 with probability pi r^2 - 8/3 r^3 +
        r^4/2 (Philip 2007, square line picking). Else points are drawn by `places`, and how far
        two of them lie apart is that chance correlated with itself.
        """
        from scipy.spatial import cKDTree

        edges = np.linspace(0, self.reach_px, NUM_RINGS + 1)
        found, pairs, expected = np.zeros(NUM_RINGS), 0, np.zeros(NUM_RINGS)
        for layout in layouts:
            number = len(layout.areas_px)
            if number > 1:
                tree = cKDTree(layout.centroids)
                found += np.diff(tree.count_neighbors(tree, edges).astype(float))
                pairs += number * (number - 1)
                if self.tissue is not None:
                    expected += number * (number - 1) * ring_shares(
                        self.places(layout.tissue), edges / self.image_size)
        if self.tissue is None:
            r = edges / self.image_size
            expected = pairs * np.diff(np.pi * r**2 - 8 / 3 * r**3 + r**4 / 2)
        if not pairs:
            return np.ones(NUM_RINGS)
        # where no two places of tissue are so far apart, what is expected is rounding alone
        return np.where(expected > 1e-6, found / np.maximum(expected, 1e-6), 1.0)

    def sample(self, draw: np.random.Generator) -> Layout:
        """A new layout; depends on `draw` alone."""
        tissue, chance, sizes = None, None, self.areas_px
        if self.tissue is None:
            number = int(draw.choice(self.counts))
        else:
            like = int(draw.integers(len(self.counts)))
            number, sizes = int(self.counts[like]), self.areas[like]
            tissue = self.tissue.sample(self.shares[like], draw)
            chance = np.cumsum(self.places(tissue))
        areas = draw.choice(sizes, number) if number else np.zeros(0)
        points = np.zeros((number, 2))
        weights = np.append(np.log(np.maximum(self.pair_correlation, 1e-3)), 0.0)
        for k in range(number):
            candidates = self._candidates(chance, draw)
            distance = np.linalg.norm(candidates[:, None] - points[None, :k], axis=-1)
            ring = np.minimum((distance / self.reach_px * NUM_RINGS).astype(int), NUM_RINGS)
            score = weights[ring].sum(1)
            chosen = np.exp(score - score.max())
            points[k] = candidates[draw.choice(NUM_CANDIDATES, p=chosen / chosen.sum())]
        return Layout(points.astype(np.float32), areas.astype(np.float32), tissue)

    def _candidates(self, chance: np.ndarray | None, draw: np.random.Generator) -> np.ndarray:
        """Points (x, y) px, float64 [NUM_CANDIDATES, 2], by the running sum of a chance by cell."""
        within = draw.uniform(-0.5, self.image_size - 0.5, (NUM_CANDIDATES, 2))
        if chance is None:
            return within
        side = self.tissue.side
        cells = np.searchsorted(chance, draw.random(NUM_CANDIDATES) * chance[-1], side="right")
        corners = np.stack([cells % side, cells // side], 1)
        return (corners * self.image_size + within + 0.5) / side - 0.5


def _band(depth: np.ndarray) -> np.ndarray:
    """Which of DEPTHS each depth belongs to, int64."""
    return np.searchsorted(DEPTHS[1:], depth, side="right")


def layout_for(index: int, seed: int, mode: str, statistics: PointStatistics,
               training: list[Layout]) -> Layout:
    """The layout of item `index`: sampled from the statistics, or one of the training images'."""
    draw = layout_draws(seed, index)
    if mode == "sampled":
        return statistics.sample(draw)
    return training[int(draw.integers(len(training)))]
