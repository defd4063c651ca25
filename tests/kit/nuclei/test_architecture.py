"""Tissue drawn anew: two-point functions by hand and in theory, on simulated tissue, its depths."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lungkit.data.dataset import open_dataset
from lungkit.nuclei import architecture
from lungkit.nuclei.architecture import (
    ANGLES,
    TissueStatistics,
    cut_covariance,
    depths,
    ring_shares,
    to_grid,
    two_point,
)

SIDE = 64


@pytest.fixture(scope="module")
def simulated(real_dataset) -> np.ndarray:
    """The tissue of all simulated tiles, bool [36, 64, 64]: septa, glands and nests."""
    data = open_dataset(real_dataset)
    return np.stack([data.mask("tissue", row) > 0 for row in data.rows])


# ------------------------------------------------------------------ two places

def test_stripes_know_each_other_as_computed_by_hand():
    """Stripes 4 wide: one apart along the other axis 1, across 1/2, by 4 across -1."""
    stripes = np.tile(np.arange(32) // 4 % 2 == 0, (32, 1))
    found = two_point(stripes[None])
    assert found[0] == 1 and len(found) == 17
    # distance 1: as many pairs along (+1) as across (of 31 places 7 are edges: 1 - 2 * 7 / 31);
    # and the diagonals, at 1.41, count to ring 1 too
    across = 1 - 2 * 7 / 31
    straight, diagonal = 2 * 32 * 31, 2 * 31 * 31
    expected = (straight * (1 + across) / 2 + diagonal * across) / (straight + diagonal)
    assert found[1] == pytest.approx(expected, abs=1e-9)


def test_each_image_counts_about_its_own_share():
    even = np.indices((16, 16)).sum(0) % 2 == 0
    full = np.ones((16, 16), bool)
    assert two_point(np.stack([even, full])) == pytest.approx(two_point(even[None]))
    assert two_point(full[None]).tolist() == [1] + [0] * 8


def test_cut_at_its_middle_a_field_keeps_two_thirds_of_the_arcsine():
    """Sheppard 1899: of a field cut at its median the covariance is asin(rho) / (2 pi)."""
    found = cut_covariance(np.array([0.5]))
    assert found == pytest.approx(4 * ANGLES / (2 * math.pi), abs=1e-3)


def test_what_a_cut_does_to_a_correlation_is_that_of_drawn_pairs():
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, 400000))
    shares = np.array([0.2, 0.7])
    for rho in (-0.4, 0.3, 0.8):
        pair = rho * one + math.sqrt(1 - rho**2) * other
        covariance = sum(float(np.mean((one > cut) & (pair > cut)) - share**2) for share, cut in
                         ((0.2, 0.8416), (0.7, -0.5244)))
        expected = covariance / sum(share * (1 - share) for share in shares)
        found = np.interp(rho, np.sin(ANGLES), cut_covariance(shares))
        assert found == pytest.approx(expected, abs=0.01)


def test_how_far_two_points_of_a_chance_lie_apart_is_that_of_drawn_points():
    from scipy.spatial import cKDTree

    edges = np.linspace(0, 0.2, 9)
    chance = np.zeros((32, 32))
    chance[:, :16], chance[8:24, 16:] = 1, 3
    chance /= chance.sum()
    rng = np.random.default_rng(0)
    cells = rng.choice(chance.size, 1200, p=chance.ravel())
    points = (np.stack([cells // 32, cells % 32], 1) + rng.random((1200, 2))) / 32
    tree = cKDTree(points)
    found = np.diff(tree.count_neighbors(tree, edges).astype(float)) / (1200 * 1199)
    assert ring_shares(chance, edges) == pytest.approx(found, rel=0.1)
    even = np.full((32, 32), 1 / 1024)  # Philip 2007
    exact = np.diff(np.pi * edges**2 - 8 / 3 * edges**3 + edges**4 / 2)
    assert ring_shares(even, edges) == pytest.approx(exact, rel=1e-3)


# ------------------------------------------------------------------ drawn anew

def test_drawn_tissue_has_the_two_point_function_of_the_simulated(simulated):
    statistics, draw = TissueStatistics(simulated), np.random.default_rng(3)
    shares = simulated.mean((1, 2))
    drawn = np.stack([statistics.sample(share, draw) for share in np.resize(shares, 72)])
    assert np.abs(two_point(drawn) - statistics.measured).max() < 0.06
    white = np.stack([draw.permutation(mask.ravel()).reshape(SIDE, SIDE) for mask in drawn[:20]])
    assert np.abs(two_point(white) - statistics.measured).max() > 0.4, "the bound says nothing"
    assert drawn.mean((1, 2)) == pytest.approx(np.resize(shares, 72), abs=1 / SIDE**2)


def test_drawn_tissue_and_lumen_are_as_wide_as_the_simulated(simulated):
    """Mean depth of tissue in tissue and of lumen in lumen: what two places do not fix."""
    statistics, draw = TissueStatistics(simulated), np.random.default_rng(4)
    drawn = np.stack([statistics.sample(share, draw) for share in simulated.mean((1, 2))])

    def width(masks: np.ndarray) -> float:
        return float(np.concatenate([depths(mask)[mask] for mask in masks if not mask.all()])
                     .mean())
    assert width(drawn) == pytest.approx(width(simulated), rel=0.2)
    assert width(~drawn) == pytest.approx(width(~simulated), rel=0.25)


def test_a_mask_depends_on_its_draw_alone_and_its_share_is_met_to_the_cell(simulated):
    statistics = TissueStatistics(simulated)
    again = TissueStatistics(simulated)
    for share in (0.0, 0.3, 1.0):
        one = statistics.sample(share, np.random.default_rng(7))
        assert one.sum() == round(share * SIDE**2) and one.dtype == bool
        assert np.array_equal(one, again.sample(share, np.random.default_rng(7)))
    assert not np.array_equal(statistics.sample(0.3, np.random.default_rng(8)),
                              statistics.sample(0.3, np.random.default_rng(7)))


@pytest.mark.parametrize("share", [0, 1])
def test_a_class_without_walls_can_be_drawn_all_the_same(share):
    statistics = TissueStatistics(np.full((3, 32, 32), bool(share)))
    mask = statistics.sample(0.5, np.random.default_rng(0))
    assert mask.sum() == 512 and np.isfinite(statistics.amplitudes).all()


def test_rounds_bring_the_drawn_function_nearer_to_the_measured(simulated, monkeypatch):
    def error() -> float:
        statistics, draw = TissueStatistics(simulated), np.random.default_rng(3)
        drawn = np.stack([statistics.sample(share, draw)
                          for share in simulated.mean((1, 2))])
        return float(np.abs(two_point(drawn) - statistics.measured).mean())
    after = error()
    monkeypatch.setattr(architecture, "ROUNDS", 0)
    assert after < 0.75 * error()


def test_without_smoothing_and_rounds_theory_alone_gives_the_measured_function(simulated,
                                                                               monkeypatch):
    """But for what a small square hides of its mean: 0.045; a cut not allowed for costs 0.16."""
    monkeypatch.setattr(architecture, "ROUNDS", 0)
    monkeypatch.setattr(architecture, "EDGE", 1e-3)
    statistics, draw = TissueStatistics(simulated), np.random.default_rng(3)
    drawn = np.stack([statistics.sample(share, draw)
                      for share in np.resize(simulated.mean((1, 2)), 72)])
    assert np.abs(two_point(drawn) - statistics.measured)[1:11].mean() < 0.08


# ------------------------------------------------------------------ the grid

def test_a_mask_is_kept_at_most_128_cells_wide():
    mask = np.zeros((256, 256), bool)
    mask[:, :101] = True  # half of a cell and more is tissue, less is not
    assert to_grid(mask).shape == (128, 128) and to_grid(mask)[0].sum() == 51
    assert np.array_equal(to_grid(mask[:64, :64]), mask[:64, :64])


def test_depth_is_the_way_to_lumen_in_sides():
    tissue = np.zeros((20, 20), bool)
    tissue[:, :10] = True
    assert depths(tissue)[5, [0, 9, 10]] == pytest.approx([0.5, 0.05, 0], abs=0.02)
    assert (depths(np.ones((8, 8), bool)) == 1).all()
