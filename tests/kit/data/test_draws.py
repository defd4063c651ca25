"""Draws from a pool: disjoint while it lasts, then as little shared as can be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lungkit.data.draws import draw_images, num_draws, shared_with_earlier

LABELS = np.repeat([0, 1, 2], [24, 31, 6])  # three draws of eight; three of ten and one; too few
WANTED = [8, 10, 9]


def draws(seeds, labels=LABELS, wanted=WANTED, arm="arm", replicate=0) -> list[set]:
    return [set(draw_images(labels, wanted, arm, seed, replicate).tolist()) for seed in seeds]


def test_a_draw_has_as_many_of_each_class_as_real_or_all():
    for seed in range(7):
        drawn = draw_images(LABELS, WANTED, "arm", seed, 0)
        assert np.bincount(LABELS[drawn]).tolist() == [8, 10, 6]
        assert (np.diff(drawn) > 0).all()


@pytest.mark.parametrize("first", [0, 3, 300])
def test_draws_share_nothing_until_the_pool_is_used_up(first):
    of_pool = [each - set(range(55, 61)) for each in draws(range(first, first + 3))]
    assert all(not one & other for one, other in itertools.combinations(of_pool, 2))
    assert set(range(24)) <= set().union(*of_pool)


def test_the_next_round_is_in_another_order_and_shares_a_third_on_average():
    labels = np.zeros(3000, int)
    one, other = (draws(range(first, first + 3), labels, [1000]) for first in (0, 3))
    shares = [len(a & b) / 1000 for a, b in itertools.product(one, other)]
    assert np.mean(shares) == pytest.approx(1 / 3) and 0.25 < min(shares) and max(shares) < 0.42


def test_arms_replicates_and_classes_have_orders_of_their_own():
    labels = np.repeat([0, 1], 90)
    found = [draws([0], labels, [30, 30], arm, replicate)[0]
             for arm, replicate in (("a", 0), ("b", 0), ("a", 1))]
    assert all(one != other for one, other in itertools.combinations(found, 2))
    assert {i for i in found[0] if i < 90} != {i - 90 for i in found[0] if i >= 90}
    assert found[0] == draws([0], labels, [30, 30], "a", 0)[0]
    assert found[0] != set(range(30)) | set(range(90, 120))  # random, not the first


def test_a_pool_of_one_draw_and_a_half_is_drawn_from_at_random():
    one, other = draws([0, 1], np.zeros(15, int), [10])
    assert one != other and len(one & other) >= 5


@pytest.mark.parametrize(("have", "wanted", "expected"), [
    ([24, 31], [8, 10], 3), ([24, 19], [8, 10], 1), ([5, 5], [8, 10], 1), ([8, 10], [8, 10], 1)])
def test_how_many_draws_a_pool_holds(have, wanted, expected):
    assert num_draws(have, wanted) == expected


def test_what_repeats_share_is_counted():
    labels = np.zeros(30, int)
    shared = [shared_with_earlier(labels, [10], "arm", 3 + repeat, 0, repeat)
              for repeat in range(5)]
    assert shared[:3] == [0, 0, 0]
    of_pool = draws(range(3, 8), labels, [10])
    common = [len(of_pool[4] & each) for each in of_pool[:4]]
    assert shared[4] == pytest.approx(np.mean(common) / 10)
    assert 0 < shared[4] < 1
    assert shared_with_earlier(labels[:10], [10], "arm", 4, 0, 2) == 1
