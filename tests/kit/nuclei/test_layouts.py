"""Layouts: what is measured of them, the levels in words, and the structure map's geometry."""

from __future__ import annotations

import numpy as np
import pytest

from lungkit.data.dataset import SPLITS
from lungkit.data.writer import DatasetWriter
from lungkit.nuclei.layouts import (
    REACH,
    Layout,
    Levels,
    finder,
    load_layouts,
    measure_layouts,
    measurements,
    structure_map,
    tissue_mask_of,
)
from lungkit.run.output import Output

SIZE = 64


def layout_of(*points: tuple[float, float], area: float = 30.0) -> Layout:
    return Layout(np.array(points, np.float32).reshape(-1, 2),
                  np.full(len(points), area, np.float32))


# ------------------------------------------------------------------ measurements and levels

def test_count_mean_area_and_median_distance_to_the_nearest_are_measured():
    layout = Layout(np.array([[10, 10], [13, 14], [10, 22], [40, 10]], np.float32),
                    np.array([10, 20, 30, 60], np.float32))
    # nearest: 5, 5, sqrt(9 + 64) and sqrt(27^2 + 4^2); the median lies half way of the middle two
    assert measurements(layout, SIZE) == {"count": 4, "size": 30.0, "spacing": pytest.approx(
        (5 + np.sqrt(73)) / 2, rel=1e-6)}


@pytest.mark.parametrize(("layout", "expected"), [
    (layout_of(), {"count": 0, "size": 0.0, "spacing": 64.0}),
    (layout_of((3, 5), area=12), {"count": 1, "size": 12.0, "spacing": 64.0}),
])
def test_a_nucleus_without_neighbour_is_as_far_apart_as_the_image_is_wide(layout, expected):
    assert measurements(layout, SIZE) == expected


def row_of(number: int, gap: float = 2.0, area: float = 30.0) -> Layout:
    return layout_of(*((gap * i, 5.0) for i in range(number)), area=area)


def test_levels_are_the_quartiles_of_all_layouts_together():
    layouts = [row_of(number, gap=number, area=10 * number) for number in range(2, 10)]
    levels = Levels(layouts, SIZE)
    for key in ("count", "size", "spacing"):
        assert [levels.of(layout)[key] for layout in layouts] == [0, 0, 1, 1, 2, 2, 3, 3], key


def test_counts_that_lie_askew_have_quartiles_and_not_equal_steps():
    layouts = [row_of(number) for number in (2, 3, 4, 5, 6, 7, 8, 50)]
    assert [Levels(layouts, SIZE).of(layout)["count"] for layout in layouts] \
        == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_measurement_on_a_quartile_counts_to_the_upper_level():
    layouts = [row_of(number) for number in range(2, 7)]
    assert [Levels(layouts, SIZE).of(layout)["count"] for layout in layouts] == [0, 1, 2, 3, 3]


def test_a_layout_beyond_all_that_were_measured_has_an_outer_level():
    levels = Levels([row_of(number, gap=number, area=number) for number in range(2, 10)], SIZE)
    assert levels.of(layout_of()) == {"count": 0, "size": 0, "spacing": 3}
    assert levels.of(row_of(40, gap=0.5, area=99)) == {"count": 3, "size": 3, "spacing": 0}


def test_crowded_and_sparse_layouts_are_called_so():
    import random

    from lungkit.generate.prompts import Prompts

    layouts = [row_of(number, gap=60 / number, area=number) for number in range(2, 30)]
    levels = Levels(layouts, SIZE)

    def ending(layout: Layout) -> str:
        caption = Prompts().context_caption("lung_n", random.Random(0), levels.of(layout))
        return ", ".join(caption.split(", ")[-2:])
    assert ending(layouts[0]) == "very few tiny nuclei, far apart"
    assert ending(layouts[-1]) == "very many large nuclei, packed"


# ------------------------------------------------------------------ measuring a dataset

def write(path, image: np.ndarray, modality: str):
    """A dataset of `image` in every split."""
    side, channels = image.shape[1:]
    with DatasetWriter(Output(path, "dataset.json", {}), stage="test", classes=["a"],
                       image_size=side, channels=channels) as writer:
        for index, split in enumerate(SPLITS):
            writer.add(split, "a", index, image)
        return writer.publish(parents=[], seed=0, modality=modality, um_per_px=0.5)


@pytest.mark.parametrize("modality", ["fluorescence", "he"])
def test_a_grey_image_has_the_nuclei_that_it_has_in_three_equal_channels(modality, tmp_path):
    rows, columns = np.indices((SIZE, SIZE))
    near = np.hypot(rows - 30, columns - 20) < 7
    grey = np.where(near, 220, 20) if modality == "fluorescence" else np.where(near, 60, 230)
    grey = grey.astype(np.uint8)[..., None]
    data = [write(tmp_path / name, image, modality)
            for name, image in (("one", grey), ("three", grey.repeat(3, axis=2)))]
    [one], [three] = (measure_layouts(each, tmp_path / f"{each.name}.npz", finder(each, None))
                      for each in data)
    assert len(one.areas_px) == 1
    assert np.array_equal(one.centroids, three.centroids)
    assert np.array_equal(one.areas_px, three.areas_px)


@pytest.mark.parametrize(("modality", "looked_for"), [
    ("he", True), ("fluorescence", False), (None, True)])
def test_tissue_is_looked_for_where_lumen_can_be_seen_and_kept(modality, looked_for, tmp_path):
    image = np.full((SIZE, SIZE, 3), 240, np.uint8)
    image[:, :20] = 150
    data = write(tmp_path / "real", image, modality)
    [layout] = measure_layouts(data, tmp_path / "layouts.npz",
                               finder(data, lambda image: image[..., 0] < 200))
    assert layout.tissue_share == (20 / SIZE if looked_for else 1)
    again, = load_layouts(tmp_path / "layouts.npz")
    assert np.array_equal(again.tissue, layout.tissue) and again.tissue.dtype == bool


# ------------------------------------------------------------------ structure map

def centre_of(red: np.ndarray) -> tuple[float, float]:
    weight = red.astype(float)
    rows, columns = np.indices(red.shape)
    return tuple(float((at * weight).sum() / weight.sum()) for at in (columns, rows))


@pytest.mark.parametrize("point", [(10.0, 40.0), (40.25, 10.5), (31.5, 31.5)])
def test_a_nucleus_is_drawn_at_its_x_and_y_to_a_fraction_of_a_pixel(point):
    drawn = structure_map(layout_of(point), SIZE)[..., 0]
    assert centre_of(drawn) == pytest.approx(point, abs=0.15)


@pytest.mark.parametrize("area", [20.0, 80.0, 300.0])
def test_a_nucleus_is_drawn_with_its_area(area):
    red = structure_map(layout_of((30, 33), area=area), SIZE)[..., 0].astype(float)
    assert red.sum() / 255 == pytest.approx(area, rel=0.12)


def test_each_nucleus_has_its_own_area():
    layout = Layout(np.array([[16, 20], [48, 20]], np.float32), np.array([20, 200], np.float32))
    red = structure_map(layout, SIZE)[..., 0].astype(float) / 255
    assert red[:, 32:].sum() > 5 * red[:, :32].sum()


def test_the_map_of_a_turned_layout_is_the_turned_map():
    points = np.array([[10, 40], [30, 12], [50, 50], [22, 25]], np.float32)
    areas = np.array([20, 40, 60, 80], np.float32)
    mirrored = Layout(np.stack([SIZE - 1 - points[:, 0], points[:, 1]], 1), areas)
    turned = Layout(np.stack([points[:, 1], SIZE - 1 - points[:, 0]], 1), areas)  # np.rot90
    plain = structure_map(Layout(points, areas), SIZE).astype(int)
    for other, expected in ((mirrored, plain[:, ::-1]), (turned, np.rot90(plain))):
        assert np.abs(structure_map(other, SIZE) - expected).mean() < 4
    assert np.abs(plain - np.rot90(plain)).mean() > 20


def test_cells_meet_half_way_between_two_nuclei_and_nowhere_else():
    green = structure_map(layout_of((16, 20), (46, 20)), SIZE)[..., 1]
    assert (green.max(0) > 60).nonzero()[0].tolist() in ([31], [30, 31], [31, 32])
    assert (green[:, 31].astype(int) > 60).all()
    assert structure_map(layout_of((16, 20)), SIZE)[..., 1].max() == 0, "one cell has no border"


def test_cells_above_one_another_have_a_border_too():
    green = structure_map(layout_of((20, 16), (20, 46)), SIZE)[..., 1]
    assert (green.min(1) > 60).nonzero()[0].tolist() in ([31], [30, 31], [31, 32])


def test_blue_is_the_distance_to_the_nearest_nucleus_white_from_the_reach_on():
    blue = structure_map(layout_of((10, 32), (60, 32)), SIZE)[32, :, 2].astype(float)
    reach_px = REACH * SIZE
    for away in range(2, 9):
        assert blue[10 + away] == pytest.approx(255 * away / reach_px, abs=12)
    assert (blue[21:50] == 255).all() and blue[10] < 20
    assert blue[57] == pytest.approx(255 * 3 / reach_px, abs=12), "of the nearer one"


def test_no_nuclei_give_black_black_white():
    image = structure_map(layout_of(), SIZE)
    assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
    assert (image == [0, 0, 255]).all()


def test_lumen_is_white_in_blue_without_cells_and_tissue_never_is():
    tissue = np.zeros((SIZE, SIZE), bool)
    tissue[:, :32] = True
    points = ((8, 10), (8, 50), (24, 30), (50, 10), (50, 50))
    plain = structure_map(layout_of(*points), SIZE)
    shown = structure_map(Layout(layout_of(*points).centroids, layout_of(*points).areas_px, tissue),
                          SIZE)
    assert np.array_equal(shown[..., 0], plain[..., 0]), "nuclei are where they are"
    assert (shown[:, 33:, 2] == 255).all() and shown[:, 33:, 1].max() == 0
    assert shown[:, :31, 2].max() == 128 < plain[:, :31, 2].max()
    assert np.array_equal(shown[:, :31, 1], plain[:, :31, 1]) and shown[:, :31, 1].max() > 60


def test_a_coarse_mask_is_drawn_at_the_size_asked_for():
    tissue = np.zeros((32, 32), bool)
    tissue[8:16, 4:28] = True
    mask = tissue_mask_of(Layout(np.zeros((0, 2)), np.zeros(0), tissue), 128)
    assert mask.shape == (128, 128) and set(np.unique(mask)) == {0, 255}
    rows, columns = np.nonzero(mask)
    assert [rows.min(), rows.max(), columns.min(), columns.max()] == pytest.approx(
        [32, 63, 16, 111], abs=1)
    assert (tissue_mask_of(layout_of(), 16) == 255).all(), "not looked for"


def test_a_nucleus_at_the_border_is_cut_there_and_not_moved():
    red = structure_map(layout_of((0, 63), area=100), SIZE)[..., 0].astype(float)
    assert red[63, 0] == 255 and red[:50].max() == 0 and red[:, 14:].max() == 0
    assert red.sum() / 255 == pytest.approx(100 / 4, rel=0.35)


@pytest.mark.parametrize("size", [32, 128])
def test_the_map_is_drawn_at_the_size_asked_for(size):
    scale = size / SIZE
    layout = layout_of((20 * scale, 40 * scale), area=60 * scale**2)
    red = structure_map(layout, size)[..., 0]
    assert red.shape == (size, size)
    assert centre_of(red) == pytest.approx((20 * scale, 40 * scale), abs=0.15)
