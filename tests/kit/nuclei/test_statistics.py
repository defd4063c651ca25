"""What is counted of an image's nuclei, in micrometres."""

from __future__ import annotations

import numpy as np
import pytest

from lungkit.nuclei import statistics
from lungkit.nuclei.detect import Nuclei


def nuclei(centroids, areas) -> Nuclei:
    return Nuclei(np.zeros((8, 8), np.int32), np.array(centroids, np.float32).reshape(-1, 2),
                  np.array(areas, np.float32))


def test_number_size_and_spacing():
    found = nuclei([[0, 0], [3, 4], [3, 6]], [10, 20, 90])
    assert statistics.measure(found, 0.5) == pytest.approx((3, 20 * 0.25, 2 * 0.5))


def test_what_an_image_has_too_few_nuclei_for_is_unknown():
    number, area, spacing = statistics.measure(nuclei([[2, 2]], [8]), 2.0)
    assert (number, area) == (1, 32) and np.isnan(spacing)
    number, *rest = statistics.measure(nuclei([], []), 2.0)
    assert number == 0 and np.isnan(rest).all()
