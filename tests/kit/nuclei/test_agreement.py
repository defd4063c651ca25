"""What was asked of an image against what it shows, and how far layouts lie from one another."""

from __future__ import annotations

import numpy as np
import pytest

from lungkit.nuclei.agreement import (
    QUANTITIES,
    Nearest,
    asked_and_measured,
    correlation,
    correlations,
    describe,
    layout_report,
)
from lungkit.nuclei.layouts import Layout

SIZE = 64


def layout(*points: tuple[float, float], tissue: np.ndarray | None = None) -> Layout:
    return Layout(np.array(points, np.float32).reshape(-1, 2),
                  np.full(len(points), 9, np.float32), tissue)


def half() -> np.ndarray:
    return np.indices((SIZE, SIZE))[1] < 32


def test_the_four_quantities_are_as_computed_by_hand():
    found = describe(layout((10, 10), (13, 14), (10, 22), tissue=half()), SIZE)
    # nearest: 5, 5 and sqrt(9 + 64); 3 nuclei in 32 * 64 px of tissue
    assert found == {"num_nuclei": 3, "tissue_share": 0.5,
                     "density_per_kpx": pytest.approx(3000 / 2048, abs=1e-3),
                     "spacing_px": pytest.approx((10 + np.sqrt(73)) / 3, abs=1e-3)}


@pytest.mark.parametrize(("given", "unknown"), [
    (layout(), {"spacing_px"}), (layout((5, 5)), {"spacing_px"}),
    (layout((5, 5), (9, 9), tissue=np.zeros((8, 8), bool)), {"density_per_kpx"})])
def test_what_cannot_be_measured_is_none(given, unknown):
    assert {name for name, value in describe(given, SIZE).items() if value is None} == unknown


def test_an_image_not_looked_at_has_empty_cells():
    columns = asked_and_measured(layout((5, 5), (9, 9)), None, SIZE)
    assert columns["asked_num_nuclei"] == 2 and len(columns) == 2 * len(QUANTITIES)
    assert {columns[f"measured_{name}"] for name in QUANTITIES} == {None}


def test_a_correlation_has_its_interval_and_too_few_have_none():
    found = correlation([1, 2, 3, 4, 5, 6, 7], [1, 3, 2, 4, 6, 5, 7])
    # sums of products by hand: 26 / 28
    assert found == {"n": 7, "r": 0.929, "low": 0.584, "high": 0.99}
    assert correlation([1, 2, 3], [1, 2, 3]) == {"n": 3, "r": None, "low": None, "high": None}
    assert correlation([1, 1, 1, 1], [1, 2, 3, 4])["r"] is None


def test_asked_and_measured_are_paired_by_image_and_told_by_class_and_over_all():
    rng = np.random.default_rng(0)
    records = []
    for index in range(40):
        asked = float(rng.uniform(10, 50))
        shown = asked if index % 2 else 60 - asked
        records.append({"label": "ab"[index % 2], **{f"asked_{name}": str(asked)
                                                     for name in QUANTITIES},
                        **{f"measured_{name}": str(shown) for name in QUANTITIES}})
    records.append({"label": "a", **{f"{kind}_{name}": "" for name in QUANTITIES
                                     for kind in ("asked", "measured")}})
    found = correlations(records)
    assert set(found) == set(QUANTITIES)
    for by_class in found.values():
        assert (by_class["a"]["r"], by_class["b"]["r"]) == (-1, 1)
        assert by_class["all"]["n"] == 40 and abs(by_class["all"]["r"]) < 0.5
        assert by_class["a"]["n"] == 20


# ------------------------------------------------------------------ the nearest training layout

def test_distances_are_the_mean_ways_both_ways():
    nearest = Nearest([layout((10, 10)), layout((10, 10), (40, 10))], SIZE)
    assert nearest.distances(layout((20, 10))).tolist() == pytest.approx([10, (10 + 15) / 2])
    assert nearest.least(layout((20, 10))) == 10
    two = nearest.distances(layout((20, 10), (10, 10)))
    assert two.tolist() == pytest.approx([(5 + 0) / 2, (5 + 10) / 2])


def test_a_copy_has_no_distance_and_no_nucleus_is_as_far_as_the_side():
    rng = np.random.default_rng(0)
    known = [layout(*rng.uniform(0, 63, (30, 2))) for _ in range(4)]
    nearest = Nearest([*known, layout()], SIZE)
    assert nearest.distances(known[2])[2] == 0 and nearest.distances(known[2])[:2].min() > 1
    assert nearest.distances(known[0])[4] == SIZE
    assert nearest.distances(layout()).tolist() == [SIZE] * 4 + [0]


@pytest.mark.parametrize("size", [32, 256])
def test_distances_are_in_pixels_of_the_image(size):
    scale = size / SIZE
    nearest = Nearest([layout((10 * scale, 10 * scale))], size)
    assert nearest.least(layout((20 * scale, 10 * scale))) == pytest.approx(10 * scale, rel=0.15)


def test_training_layouts_are_compared_with_the_others_alone():
    three = [layout((10, 10)), layout((14, 10)), layout((50, 10))]
    assert Nearest(three, SIZE).among_training() == 4
    assert Nearest(three[:1], SIZE).among_training() is None


def test_the_report_tells_the_nearest_of_every_class():
    records = [{"label": label, "nearest_layout_px": str(value), **dict.fromkeys(
        (f"{kind}_{name}" for kind in ("asked", "measured") for name in QUANTITIES), "")}
        for label, value in (("a", 3.0), ("a", 1.5), ("a", 9.0), ("b", 2.0))]
    training = {"a": [layout((1, 1)), layout((5, 1))], "b": [layout((1, 1))]}
    found = layout_report(records, training, SIZE)["layouts"]["nearest_training"]
    assert found == {"a": {"least_px": 1.5, "median_px": 3.0, "among_training_px": 4.0},
                     "b": {"least_px": 2.0, "median_px": 2.0, "among_training_px": None}}
