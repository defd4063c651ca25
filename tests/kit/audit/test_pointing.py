"""Where maps point: energy and pointing game, a blob in the middle, intervals by group."""

from __future__ import annotations

import numpy as np
import pytest

from lungkit.audit import pointing


def square(size=8, top=2, left=3, side=2):
    mask = np.zeros((size, size), bool)
    mask[top:top + side, left:left + side] = True
    return mask


def test_energy_is_the_share_inside_and_points_where_the_maximum_is():
    heat, mask = np.zeros((8, 8)), square()
    heat[2, 3], heat[7, 7] = 1, 3
    assert pointing.energy(heat, mask) == 0.25 and pointing.points(heat, mask) == 0
    heat[3, 4] = 3
    assert pointing.points(heat, mask) == 0.5, "of two maxima one lies inside"
    assert pointing.energy(heat, mask) == pytest.approx(4 / 7)


def test_a_map_of_nothing_points_everywhere_alike():
    assert pointing.energy(np.zeros((8, 8)), square()) == 4 / 64
    assert pointing.points(np.zeros((8, 8)), square()) == 4 / 64


def test_near_is_within_the_margin():
    near = pointing.near(square(9, 4, 4, 1), 2.0)
    away = np.hypot(*(np.indices((9, 9)) - 4))
    assert np.array_equal(near, away <= 2)


@pytest.mark.parametrize("mean", [0.05, 0.2, 0.7])
@pytest.mark.parametrize("size", [16, 33])
def test_a_blob_is_in_the_middle_and_of_the_mean_asked_for(mean, size):
    blob = pointing.centred_blob(mean, size)
    assert blob.mean() == pytest.approx(mean, rel=1e-3) and blob.max() == pytest.approx(1)
    assert np.allclose(blob, blob[::-1, ::-1]) and np.allclose(blob, blob.T)
    assert (blob == blob.max())[(size - 1) // 2, (size - 1) // 2]


# ------------------------------------------------------------------ intervals

def test_a_mean_has_an_interval_of_groups_and_not_of_images():
    rng = np.random.default_rng(0)
    of_groups = rng.normal(size=20)
    many = pointing.mean_by_group(np.repeat(of_groups, 10), np.repeat(np.arange(20), 10))
    few = pointing.mean_by_group(of_groups, np.arange(20))
    assert many.value == pytest.approx(of_groups.mean())
    assert many.high - many.low == pytest.approx(few.high - few.low, rel=0.1)
    se = of_groups.std() / np.sqrt(20)
    assert (many.high - many.low) / (2 * 1.96 * se) == pytest.approx(1, abs=0.12)


def test_what_networks_of_shuffled_weights_differ_by_is_in_the_interval():
    groups = np.arange(40)
    alike = pointing.mean_by_group(np.zeros((5, 40)), groups)
    unlike = pointing.mean_by_group(np.repeat([[0.0], [0], [0], [1], [1]], 40, 1), groups)
    assert (alike.low, alike.high) == (0, 0)
    assert unlike.value == pytest.approx(0.4) and unlike.low <= 0.01 and unlike.high >= 0.8


def test_of_few_groups_there_is_no_interval():
    found = pointing.mean_by_group(np.arange(9.0), np.arange(9) % 3)
    assert found == pointing.Mean(4.0, None, None)
    assert pointing.more_often(found) == "cannot be told"


@pytest.mark.parametrize(("low", "high", "said"), [
    (0.1, 0.3, "yes"), (-0.3, -0.1, "no"), (-0.1, 0.2, "cannot be told"),
    (0.0, 0.2, "cannot be told")])
def test_more_often_needs_an_interval_above_nought(low, high, said):
    assert pointing.more_often(pointing.Mean(0.1, low, high)) == said
