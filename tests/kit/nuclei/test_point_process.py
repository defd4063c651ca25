"""Nuclei in tissue: where they may lie, how near to lumen, how far apart beyond that."""

from __future__ import annotations

import numpy as np
import pytest

from lungkit.nuclei.architecture import depths
from lungkit.nuclei.layouts import Layout
from lungkit.nuclei.point_process import DEPTHS, PointStatistics, _band

SIZE = 64


def slabs(number: int, *, lining: bool = False, seed: int = 0) -> list[Layout]:
    """Layouts of tissue in a slab of growing width; nuclei anywhere in it, or along its edge."""
    rng, made = np.random.default_rng(seed), []
    for index in range(number):
        width = 20 + 2 * index
        tissue = np.tile(np.arange(SIZE) < width, (SIZE, 1))
        count = 2 * width
        x = rng.uniform(width - 4, width - 1, count) if lining else rng.uniform(0, width - 1, count)
        points = np.stack([x, rng.uniform(0, SIZE - 1, count)], 1).astype(np.float32)
        made.append(Layout(points, np.full(count, index + 1, np.float32), tissue))
    return made


@pytest.fixture(scope="module", params=[False, True], ids=["anywhere", "lining"])
def fitted(request):
    statistics = PointStatistics(slabs(10, lining=request.param), SIZE)
    return request.param, statistics, [statistics.sample(np.random.default_rng(i))
                                       for i in range(20)]


def cells_of(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    columns, rows = np.floor(layout.centroids + 0.5).astype(int).clip(0, SIZE - 1).T
    return rows, columns


def test_nuclei_lie_in_tissue_alone(fitted):
    for layout in fitted[2]:
        assert layout.tissue[cells_of(layout)].all() and layout.tissue.dtype == bool


def test_nuclei_lie_as_near_to_lumen_as_those_measured(fitted):
    lining, statistics, drawn = fitted
    bands = np.concatenate([_band(depths(layout.tissue)[cells_of(layout)]) for layout in drawn])
    areas = np.concatenate([_band(depths(layout.tissue)[layout.tissue]) for layout in drawn])
    near = (bands < 4).mean() / (areas < 4).mean()
    assert near > 1.3 if lining else near < 1.2  # of the masks drawn most is near to lumen
    slab = slabs(10)[9].tissue  # 38 px wide, of which the last 4 line it
    within = float(statistics.places(slab)[:, 34:].sum())
    assert within > 0.9 if lining else within == pytest.approx(4 / 38, abs=0.04)
    assert len(statistics.depth_weights) == len(DEPTHS)


def test_points_that_know_nothing_but_their_tissue_have_no_correlation(fitted):
    """In a slab pairs are twice as near as in the whole square, and that is the tissue's doing."""
    found = fitted[1].pair_correlation
    assert found[2:] == pytest.approx(1, abs=0.25) if not fitted[0] else found[2:].mean() < 1.3


def test_count_sizes_and_share_are_those_of_one_image(fitted):
    for layout in fitted[2]:
        index = int(layout.areas_px[0]) - 1
        assert set(layout.areas_px.tolist()) == {index + 1}
        assert len(layout.areas_px) == 2 * (20 + 2 * index)
        assert layout.tissue_share == pytest.approx((20 + 2 * index) / SIZE, abs=1 / SIZE**2)


def test_a_layout_depends_on_its_draw_alone(fitted):
    again = fitted[1].sample(np.random.default_rng(3))
    assert np.array_equal(again.tissue, fitted[2][3].tissue)
    assert np.array_equal(again.centroids, fitted[2][3].centroids)


@pytest.mark.parametrize("full", [False, True])
def test_where_there_is_no_tissue_or_no_lumen_nuclei_lie_anywhere(full):
    rng = np.random.default_rng(0)
    layouts = [Layout(rng.uniform(0, 63, (30, 2)).astype(np.float32), np.ones(30, np.float32),
                      np.full((SIZE, SIZE), full)) for _ in range(4)]
    drawn = PointStatistics(layouts, SIZE).sample(rng)
    assert len(drawn.centroids) == 30 and drawn.centroids.std(0).min() > 12
    assert drawn.tissue.all() if full else not drawn.tissue.any()


def test_a_coarse_mask_holds_nuclei_where_it_lies_in_the_image():
    """Masks of 128 cells over 256 px: x and y, and not rows and columns, and at the right scale."""
    tissue = np.zeros((128, 128), bool)
    tissue[:, :40] = True
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(0, 79, 50), rng.uniform(0, 255, 50)], 1).astype(np.float32)
    statistics = PointStatistics([Layout(points, np.ones(50, np.float32), tissue)] * 2, 256)
    chance = statistics.places(tissue)
    assert chance[:, 40:].max() == 0 and chance.sum() == pytest.approx(1)
    layout = statistics.sample(rng)
    rows, columns = (((layout.centroids + 0.5) / 2).astype(int).T)[::-1]
    assert layout.tissue[rows, columns].all() and layout.centroids[:, 1].max() > 150


def test_a_nucleus_that_was_found_in_lumen_says_nothing_of_depth():
    layouts = slabs(4)
    more = [Layout(np.vstack([each.centroids, [[SIZE - 2, 30]]]).astype(np.float32),
                   np.append(each.areas_px, 1).astype(np.float32), each.tissue)
            for each in layouts]
    assert np.array_equal(PointStatistics(more, SIZE).depth_weights,
                          PointStatistics(layouts, SIZE).depth_weights)


def test_where_tissue_is_smaller_than_a_ring_is_wide_nothing_is_known_of_pairs():
    tissue = np.zeros((SIZE, SIZE), bool)
    tissue[:7, :7] = True
    points = np.array([[2, 2], [4, 4], [3, 60], [60, 3]], np.float32)
    statistics = PointStatistics([Layout(points, np.ones(4, np.float32), tissue)] * 2, SIZE)
    assert np.isfinite(statistics.pair_correlation).all()
    assert statistics.pair_correlation.max() < 1e4
