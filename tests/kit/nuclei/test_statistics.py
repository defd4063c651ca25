"""What is counted of an image's nuclei, in micrometres."""

from __future__ import annotations

import numpy as np
import pytest

from lungkit.data.dataset import Dataset, Row
from lungkit.data.manifest import DEFAULTS
from lungkit.nuclei import statistics
from lungkit.nuclei.detect import FIELD_UM, Nuclei


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


@pytest.mark.parametrize("channels", [1, 3])
def test_nuclei_are_counted_once_of_a_field_and_anew_of_another(tmp_path, monkeypatch, channels):
    asked = []

    def found(image, *, modality, field_um):
        asked.append((image.shape, modality, field_um))
        return nuclei([[0, 0], [3, 4]], [10, 10])

    def measured(um_per_px):
        data = Dataset(tmp_path / "x", {
            **DEFAULTS, "name": "x", "classes": ["a"], "image_size": 8, "channels": channels,
            "fingerprint": "f", "warnings": [], "masks": {}, "targets": {}, "modality": "he",
            "symmetries": 8, "um_per_px": um_per_px}, [])
        return statistics.of_rows(data, [Row("train/a/0.png", "a", "train")], "some").tolist()

    monkeypatch.setattr(statistics, "detect_nuclei", found)
    monkeypatch.setattr(Dataset, "image", lambda self, row: np.zeros((8, 8, channels), np.uint8))
    for um_per_px, field_um in ((0.5, 4), (2.0, 16), (None, FIELD_UM), (2.0, None)):
        asked.clear()
        px_um = um_per_px or FIELD_UM / 8
        assert measured(um_per_px) == [[2, pytest.approx(10 * px_um**2), pytest.approx(5 * px_um)]]
        assert asked == ([((8, 8, 3), "he", field_um)] if field_um else [])
