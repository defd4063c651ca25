"""What is said of results before they are compared."""

from __future__ import annotations

import itertools

import numpy as np

from lungkit.compare.refusals import shared_draws
from lungkit.data.draws import draw_images, shared_with_earlier

WANTED = [40]


def rows(arm: str, pool: int, repeats: int) -> list[dict]:
    labels = np.zeros(pool * WANTED[0], int)
    return [{"dataset": arm, "repeat": repeat, "draws": pool,
             "shared_with_earlier": shared_with_earlier(labels, WANTED, arm, repeat, 0, repeat)}
            for repeat in range(repeats)]


def test_what_repeats_share_is_said_as_the_mean_over_their_pairs():
    drawn = [draw_images(np.zeros(120, int), WANTED, "arm", repeat, 0) for repeat in range(7)]
    shares = [np.isin(a, b).mean() for a, b in itertools.combinations(drawn, 2)]
    real = {"dataset": "real", "repeat": 3}
    line, = shared_draws([real, *rows("arm", 3, 7), *rows("other", 7, 7)])
    assert line == (f"shared draws: two repeats of arm share {np.mean(shares):.0%} of their "
                    "training images on average: its pool holds 3 draws that share none")
    assert 0.2 < np.mean(shares) < 0.4


def test_of_results_without_pools_or_overlap_nothing_is_said():
    assert shared_draws([{"dataset": "real", "repeat": 0}, *rows("arm", 3, 3)]) == []
