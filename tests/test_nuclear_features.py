"""Features of nuclei: what they measure, on layouts whose measures are known."""

from __future__ import annotations

import numpy as np
import pytest

from lungkit.nuclear_features import measure_nuclei
from lungkit.nuclei import Nuclei


def lay(points: np.ndarray) -> Nuclei:
    return Nuclei(np.zeros((100, 100), np.int32), points.astype(np.float32),
                  np.linspace(10, 30, len(points)).astype(np.float32))


def test_measures_of_a_square_lattice():
    lattice = np.stack(np.meshgrid(*[np.arange(10) * 10 + 4.5] * 2), -1).reshape(-1, 2)
    measured = measure_nuclei(lay(lattice), 100)
    assert measured["count"] == 100 and measured["density_per_1e4_px"] == 100
    assert measured["nearest_neighbour_px"] == pytest.approx(10)
    assert measured["clark_evans"] == pytest.approx(2)  # 10 px; random would be 0.5 / sqrt(0.01) = 5
    assert measured["mean_area_px"] == pytest.approx(20)
    assert measured["area_cv"] == pytest.approx(np.linspace(10, 30, 100).std() / 20)


def test_clark_evans_tells_clusters_from_chance():
    rng = np.random.default_rng(1)
    chance = rng.uniform(0, 100, (300, 2))
    clusters = rng.uniform(10, 90, (12, 1, 2)) + rng.normal(0, 2, (12, 25, 2))
    assert measure_nuclei(lay(chance), 100)["clark_evans"] == pytest.approx(1, abs=0.12)
    assert measure_nuclei(lay(clusters.reshape(-1, 2)), 100)["clark_evans"] < 0.6


@pytest.mark.parametrize("count", [0, 1])
def test_measures_of_hardly_any_nuclei_are_finite(count):
    measured = measure_nuclei(lay(np.full((count, 2), 50.0)), 100)
    assert measured["count"] == count and measured["nearest_neighbour_px"] == 0
    assert all(np.isfinite(value) for value in measured.values())
