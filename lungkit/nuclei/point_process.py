"""New layouts of nuclei, drawn from a class's measured point statistics."""

from __future__ import annotations

import numpy as np

from lungkit.nuclei.layouts import Layout
from lungkit.run.seeds import layout_draws

RING = 0.2            # ours: pair correlation is measured up to this share of the side
NUM_RINGS = 16
NUM_CANDIDATES = 24   # ours: uniform candidates weighed for each nucleus of a sampled layout


class PointStatistics:
    """A class's nuclei as a point process, measured on its training layouts, to draw new ones.

    Counts and areas are resampled from those observed. Places are drawn one by one: each nucleus
    is the one of NUM_CANDIDATES uniform points that a draw weighted by the product of the measured
    pair correlation g(r) to the nuclei before it takes. This is a sequential pairwise-interaction
    process (Illian et al. 2008, chapter 6): it keeps distances between neighbours and clustering,
    and not the larger architecture.
    """

    def __init__(self, layouts: list[Layout], image_size: int) -> None:
        self.image_size = image_size
        self.counts = np.array([len(layout.areas_px) for layout in layouts])
        self.areas_px = np.concatenate([layout.areas_px for layout in layouts])
        self.reach_px = RING * image_size
        self.pair_correlation = self._pair_correlation(layouts)

    def _pair_correlation(self, layouts: list[Layout]) -> np.ndarray:
        """g(r) in NUM_RINGS rings: pairs found over pairs that independent points would give.

        The latter is exact for a square, border included: two uniform points of the unit square
        lie within r <= 1 with probability pi r^2 - 8/3 r^3 + r^4/2 (Philip 2007, square line
        picking).
        """
        from scipy.spatial import cKDTree

        edges = np.linspace(0, self.reach_px, NUM_RINGS + 1)
        found, pairs = np.zeros(NUM_RINGS), 0
        for layout in layouts:
            number = len(layout.areas_px)
            if number > 1:
                tree = cKDTree(layout.centroids)
                found += np.diff(tree.count_neighbors(tree, edges).astype(float))
                pairs += number * (number - 1)
        r = edges / self.image_size
        expected = pairs * np.diff(np.pi * r**2 - 8 / 3 * r**3 + r**4 / 2)
        return found / expected if pairs else np.ones(NUM_RINGS)

    def sample(self, draw: np.random.Generator) -> Layout:
        """A new layout; depends on `draw` alone."""
        number = int(draw.choice(self.counts))
        areas = draw.choice(self.areas_px, number) if number else np.zeros(0)
        points = np.zeros((number, 2))
        weights = np.append(np.log(np.maximum(self.pair_correlation, 1e-3)), 0.0)
        for k in range(number):
            candidates = draw.uniform(-0.5, self.image_size - 0.5, (NUM_CANDIDATES, 2))
            distance = np.linalg.norm(candidates[:, None] - points[None, :k], axis=-1)
            ring = np.minimum((distance / self.reach_px * NUM_RINGS).astype(int), NUM_RINGS)
            score = weights[ring].sum(1)
            chance = np.exp(score - score.max())
            points[k] = candidates[draw.choice(NUM_CANDIDATES, p=chance / chance.sum())]
        return Layout(points.astype(np.float32), areas.astype(np.float32))


def layout_for(index: int, seed: int, mode: str, statistics: PointStatistics,
               training: list[Layout]) -> Layout:
    """The layout of item `index`: sampled from the statistics, or one of the training images'."""
    draw = layout_draws(seed, index)
    if mode == "sampled":
        return statistics.sample(draw)
    return training[int(draw.integers(len(training)))]
