"""Features of nuclei: how large, how dense, how they lie."""

from __future__ import annotations

import numpy as np

from lungkit.nuclei import Nuclei


def measure_nuclei(nuclei: Nuclei, size: int) -> dict[str, float]:
    """Measure count, density per 1e4 px, size and spacing of the nuclei of a [size, size] image.

    clark_evans is the mean distance to the nearest neighbour over that of a random layout of the
    same density (Clark and Evans, Ecology 35(4), 1954): below 1 clustered, above 1 regular;
    no correction for the border. Sizes are 0 where there is no nucleus, spacings 0 below two,
    clark_evans 1.
    """
    from scipy.spatial import cKDTree

    count = len(nuclei)
    areas = nuclei.areas_px.astype(np.float64)
    measured = {"count": count, "density_per_1e4_px": count / size**2 * 1e4,
                "mean_area_px": float(areas.mean()) if count else 0.0,
                "area_cv": float(areas.std() / areas.mean()) if count else 0.0,
                "area_fraction": float(areas.sum() / size**2),
                "nearest_neighbour_px": 0.0, "clark_evans": 1.0}
    if count >= 2:
        points = nuclei.centroids.astype(np.float64)
        nearest = cKDTree(points).query(points, k=2)[0][:, 1]
        measured["nearest_neighbour_px"] = float(np.median(nearest))
        measured["clark_evans"] = float(nearest.mean() * 2 * np.sqrt(count) / size)
    return measured
