"""Voronoi diagrams of nuclei as rasters: which cell each pixel belongs to."""

from __future__ import annotations

import numpy as np


def voronoi_labels(centroids: np.ndarray, size: int) -> np.ndarray:
    """Index of the nearest of `centroids` [N, 2] for each pixel centre, int32 [size, size].

    Exact; without centroids the whole image is cell 0.
    """
    from scipy.spatial import cKDTree

    if len(centroids) == 0:
        return np.zeros((size, size), np.int32)
    y, x = np.mgrid[:size, :size]
    _, nearest = cKDTree(np.asarray(centroids, np.float64)).query(np.stack([x, y], axis=-1))
    return nearest.astype(np.int32)
