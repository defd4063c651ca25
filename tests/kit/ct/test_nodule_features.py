"""What is measured of a nodule: sizes from the table, looks inside its own mask."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ct_crops import write_crops

from lungkit.ct import features
from lungkit.data.dataset import Row, open_dataset
from lungkit.run.faults import Fault

WINDOW = (-1000.0, 400.0)


def disc(side: int, radius: float, row: float, column: float) -> np.ndarray:
    rows, columns = np.indices((side, side))
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def named(grey: np.ndarray, mask: np.ndarray, window=WINDOW) -> dict[str, float]:
    return dict(zip(features.LOOKS, features.looks(grey, mask, window), strict=True))


# ------------------------------------------------------------------ size

@pytest.mark.parametrize(("columns", "diameter_mm", "area_mm2"), [
    ({"diameter_mm": "8.0", "area_mm2": "40.0"}, 8, 40),
    ({"diameter_mm": "8.0"}, 8, 16 * math.pi), ({"diameter_mm": "8.0", "area_mm2": ""}, 8,
                                                16 * math.pi),
    ({"diameter_mm": "", "area_mm2": "100.0"}, 2 * math.sqrt(100 / math.pi), 100)])
def test_size_is_two_logarithms_of_a_disc_where_one_is_unknown(columns, diameter_mm, area_mm2):
    row = Row("test/a/000000.png", "a", "test", extra=columns)
    assert features.size(row) == pytest.approx([math.log(diameter_mm), math.log(area_mm2)])


@pytest.mark.parametrize("columns", [{}, {"diameter_mm": "", "area_mm2": ""},
                                     {"diameter_mm": "0", "area_mm2": "0.000"}])
def test_what_is_unknown_is_no_size(columns):
    assert features.size(Row("test/a/000000.png", "a", "test", extra=columns)) is None


@pytest.mark.parametrize(("bare", "said"), [
    (lambda label, _: label == "no_nodule", "class no_nodule has no nodules, and to have a size"),
    (lambda label, number: number == 1, "column diameter_mm of the table")])
def test_images_without_a_size_are_refused_and_told_apart(tmp_path, bare, said):
    """Healthy lung has none by nature, and a size would be its class; another was not written."""
    path = write_crops(tmp_path / "real", classes=("no_nodule", "nodule"), bare=bare)
    with pytest.raises(Fault, match=said) as fault:
        features.sizes(open_dataset(path))
    assert "of 24 images have no nodule of known size, the first is t" in str(fault.value)


# ------------------------------------------------------------------ which nodule

def test_a_crop_is_of_the_nodule_in_its_middle_and_a_slice_of_the_largest():
    middle, large = disc(32, 3, 15, 15), disc(32, 6, 6, 25)
    assert np.array_equal(features.own_nodule(middle | large, True), middle)
    assert np.array_equal(features.own_nodule(middle | large, False), large)
    assert np.array_equal(features.own_nodule(large, True), large)


def test_pixels_that_touch_by_a_corner_are_of_one_nodule():
    chain = np.eye(9, dtype=bool)
    assert np.array_equal(features.own_nodule(chain, True), chain)


# ------------------------------------------------------------------ looks

def test_attenuation_is_in_hu_of_the_window_or_in_grey_levels_without_one():
    mask, grey = disc(16, 4, 8, 8), np.full((16, 16), 51, np.uint8)
    grey[mask] = 204
    found = named(grey, mask)
    assert [found[name] for name in ("mean", "p10", "p50", "p90")] == pytest.approx([120] * 4)
    assert (found["sd"], found["surround"]) == pytest.approx((0, -720))
    assert named(grey, mask, None)["mean"] == pytest.approx(204)
    assert found["margin"] > 100 and (found["contrast"], found["energy"]) == (0, 1)


def test_co_occurrence_is_haralicks_over_pairs_in_four_directions():
    """Stripes three steps apart on 4 x 4: 12 pairs across and 18 aslant differ, 12 down do not."""
    grey = np.full((9, 9), 255, np.uint8)
    mask = np.zeros((9, 9), bool)
    mask[2:6, 3:7] = True
    grey[mask] = np.tile([8, 8 + 3 * features.GREY_STEP], 8)
    found = named(grey, mask)
    assert found["contrast"] == pytest.approx(9 * 30 / 42)
    assert found["homogeneity"] == pytest.approx((12 + 30 / (1 + 9)) / 42)
    shares = [6 / 42, 6 / 42, 15 / 42, 15 / 42]  # of (low, low), (high, high), and either way
    assert found["energy"] == pytest.approx(math.sqrt(sum(share**2 for share in shares)))
    assert found["entropy"] == pytest.approx(-sum(share * math.log(share) for share in shares))
    assert found["correlation"] == pytest.approx((12 - 30) / 42)


def test_what_lies_outside_the_nodule_changes_only_margin_and_surround():
    rng = np.random.default_rng(0)
    grey, mask = np.uint8(rng.integers(0, 256, (24, 24))), disc(24, 5, 11, 12)
    other = np.where(mask, grey, np.uint8(rng.integers(0, 256, (24, 24))))
    first, second = named(grey, mask), named(other, mask)
    assert {name for name in first if first[name] != second[name]} == {"margin", "surround"}


def test_outlines_round_long_and_jagged():
    grey = np.zeros((40, 40), np.uint8)
    found = named(grey, disc(40, 10, 20, 20))
    long = disc(40, 10, 20, 20) & (np.abs(np.arange(40) - 20) < 3)
    spiked = disc(40, 10, 20, 20) | (np.abs(np.arange(40) - 20) < 1)
    assert found["eccentricity"] < 0.1 < 0.9 < named(grey, long)["eccentricity"]
    assert found["solidity"] > 0.9 > named(grey, spiked)["solidity"]
    assert found["circularity"] > named(grey, spiked)["circularity"] + 0.2


def test_what_cannot_be_measured_is_nan_and_nothing_else_is():
    grey, mask = np.zeros((8, 8), np.uint8), np.zeros((8, 8), bool)
    assert np.isnan(features.looks(grey, mask, WINDOW)).all()
    mask[4, 4] = True
    gaps = {name for name, value in named(grey, mask).items() if math.isnan(value)}
    assert gaps == {"contrast", "homogeneity", "energy", "correlation", "entropy", "circularity"}
    mask[4:6, 4:7] = True
    assert not np.isnan(features.looks(grey, mask, WINDOW)).any()


# ------------------------------------------------------------------ a dataset's

def test_the_ruler_opens_no_image_and_the_nodule_is_that_of_the_view(tmp_path, monkeypatch):
    rows = {}
    for view in ("crop", "slice"):
        data = open_dataset(write_crops(tmp_path / view / "real", view=view, beside=6))
        rows[view] = features.read_features(data, "nodule")
        assert {len(each) for each in rows[view].values()} == {len(features.COLUMNS["nodule"])}
        monkeypatch.setattr(type(data), "image", None)
        sizes = features.read_features(data, "size")
        assert {name: each[:2] for name, each in rows[view].items()} == sizes
        monkeypatch.undo()
    name = next(iter(rows["crop"]))
    assert rows["crop"][name][:2] == rows["slice"][name][:2]
    assert rows["crop"][name][2:] != rows["slice"][name][2:]


def test_an_image_without_a_mask_has_gaps_and_a_dataset_without_one_no_texture(tmp_path):
    some = open_dataset(write_crops(tmp_path / "some/real", unmasked=lambda number: number == 3))
    found = features.read_features(some, "nodule")
    assert sum(math.isnan(each[2]) for each in found.values()) == 1
    none = open_dataset(write_crops(tmp_path / "none/real", unmasked=lambda number: True))
    assert features.read_features(none, "size")
    with pytest.raises(Fault, match="holds no masks of nodules"):
        features.read_features(none, "nodule")
