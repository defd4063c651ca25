"""Replicates as blocks, by hand and against statsmodels."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lungkit.compare import decide
from lungkit.compare.bootstrap import Mean, Trainings
from lungkit.compare.replicates import (
    between_splits,
    paired_mean,
    pooled_sd,
    seeds_mean,
    set_variance,
    sign_flip_p,
)

DIFFERENCES = [-0.021, 0.004, -0.013, 0.011, -0.006, 0.002, -0.009]


def test_independent_replicates_are_two_one_sided_paired_t_tests():
    """An independent implementation: statsmodels' ttost_paired."""
    from statsmodels.stats.weightstats import ttost_paired

    arm, real = np.array(DIFFERENCES) + 0.8, np.full(7, 0.8)
    p, (below, _, _), (above, _, _) = ttost_paired(arm, real, -0.02, 0.02)
    found = decide.estimate("C", paired_mean(DIFFERENCES, 0.0), alpha=0.05, margin=0.02, n_arm=7,
                            n_against=7, num_trainings=7)
    assert found.p_equivalent == pytest.approx(p)
    assert found.p_not_worse == pytest.approx(ttost_paired(arm, real, -0.02, 0.02)[1][1])
    assert (below > 0) and (above < 0) and found.df == 6


def test_level_a_is_welchs_two_one_sided_tests():
    from statsmodels.stats.weightstats import ttost_ind

    rng = np.random.default_rng(0)
    arm, real = rng.normal(0.81, 0.03, 9), rng.normal(0.80, 0.01, 20)
    p, low, _ = ttost_ind(arm, real, -0.02, 0.02, usevar="unequal")
    found = decide.estimate("A", seeds_mean([arm], [real]), alpha=0.05, margin=0.02, n_arm=9,
                            n_against=20, num_trainings=9)
    assert found.p_equivalent == pytest.approx(p) and found.p_not_worse == pytest.approx(low[1])


def test_overlapping_training_sets_widen_the_interval():
    alone, folds = paired_mean(DIFFERENCES, 0.0), paired_mean(DIFFERENCES, 0.25)
    assert folds.se / alone.se == pytest.approx(((1 / 7 + 0.25) * 7)**0.5)
    assert folds.value == alone.value and folds.df == 6


def test_the_sign_flip_test_is_its_enumeration():
    signs = itertools.product((1, -1), repeat=7)
    sums = [abs(np.dot(sign, DIFFERENCES)) for sign in signs]
    p = np.mean([each >= abs(sum(DIFFERENCES)) - 1e-12 for each in sums])
    assert sign_flip_p(DIFFERENCES) == pytest.approx(p)
    assert sign_flip_p([0.1] * 6) == 2 / 64 and sign_flip_p([0.0] * 6) == 1
    assert sign_flip_p([0.1] * 5) is None and sign_flip_p([0.1] * 17) is None


def test_several_splits_are_averaged_at_level_a():
    arm, real = [np.array([0.8, 0.9]), np.array([0.5, 0.7])], [np.array([0.8, 0.8])] * 2
    found = seeds_mean(arm, real)
    assert found.value == pytest.approx(-0.075)
    assert found.se == pytest.approx(((0.005 + 0.02) / 2 / 4)**0.5)


# ------------------------------------------------------------------ components

def test_the_variance_between_generated_sets_leaves_out_the_seeds():
    rng = np.random.default_rng(4)
    names = [f"set {k}" for k in range(400) for _ in range(5)]
    values = np.repeat(rng.normal(0, 0.03, 400), 5) + rng.normal(0, 0.02, 2000)
    variance, number = set_variance([(names, values)])
    assert variance**0.5 == pytest.approx(0.03, rel=0.1) and number == 400
    assert set_variance([(["one"] * 5, values[:5])]) is None
    assert set_variance([(["one", "one", "two", "two"], np.array([0.1, 0.9, 0.1, 0.9]))])[0] == 0


def test_what_replicates_add_leaves_out_what_is_known_within():
    within = [Mean(0, 0, 1, 0.0002, 0.0002, 0.0001)] * 4
    differences = [0.05, -0.05, 0.05, -0.05]
    assert between_splits(differences, within) == pytest.approx(0.01 / 3 - 0.0003)
    assert between_splits([0.001, -0.001, 0.0, 0.0], within) == 0


def test_the_spread_of_trainings_is_pooled_within_splits():
    ones = [Trainings(np.array([0.1, 0.3]), np.zeros((2, 1))),
            Trainings(np.array([0.8, 0.8, 0.8]), np.zeros((3, 1)))]
    assert pooled_sd(ones) == pytest.approx((0.02 / 3)**0.5)
    assert pooled_sd([Trainings(np.array([0.5]), np.zeros((1, 1)))]) == 0
