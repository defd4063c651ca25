"""The rank-sum test, its intervals, margins and adjustments: against enumeration, scipy and R."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from lungkit.compare import rank_sum
from rank_sums import X, Y, enumerate_p

# accuracies on a small test set: few distinct values, hence ties
tied = st.integers(0, 6).map(lambda k: k / 7)
small_samples = st.tuples(st.lists(tied, min_size=2, max_size=5),
                          st.lists(tied, min_size=2, max_size=5))


# ------------------------------------------------------------------ the exact test

@given(small_samples)
@settings(max_examples=80, deadline=None)
def test_p_equals_full_enumeration_with_ties(samples):
    a, b = samples
    test = rank_sum.rank_sum_test(a, b)
    greater, less, extreme = enumerate_p(a, b)
    assert test.p_greater == pytest.approx(greater, abs=1e-12)
    assert test.p_less == pytest.approx(less, abs=1e-12)
    assert test.p_two_sided == pytest.approx(min(1, 2 * min(greater, less)), abs=1e-12)
    assert test.p_smallest == pytest.approx(min(1, 2 * extreme), abs=1e-12)
    assert test.u == sum((x > y) + (x == y) / 2 for x in a for y in b)
    assert test.exact


@given(st.integers(2, 9), st.integers(2, 9), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_p_equals_scipy_exact_without_ties(num_a, num_b, rng):
    from scipy.stats import mannwhitneyu

    values = rng.sample(range(1000), num_a + num_b)
    a, b = values[:num_a], values[num_a:]
    test, golden = rank_sum.rank_sum_test(a, b), mannwhitneyu(a, b, method="exact")
    assert test.u == golden.statistic
    assert test.p_two_sided == pytest.approx(golden.pvalue, rel=1e-12)
    assert test.p_smallest == pytest.approx(rank_sum.smallest_p(num_a, num_b), rel=1e-12)


def test_p_equals_scipy_permutation_test_with_ties():
    from scipy.stats import permutation_test, rankdata

    a, b = [0.9, 0.9, 0.95, 0.85, 0.9, 0.95], [0.85, 0.85, 0.9, 0.8, 0.85, 0.9]
    ranks = rankdata([*a, *b])
    golden = permutation_test((ranks[:6], ranks[6:]), lambda x, y: x.sum(), n_resamples=np.inf,
                              vectorized=False, permutation_type="independent")
    assert rank_sum.rank_sum_test(a, b).p_two_sided == pytest.approx(golden.pvalue, rel=1e-12)


def test_r_golden_without_ties():
    # R 4.2.2: wilcox.test(X, Y, exact=TRUE, conf.int=TRUE); the same with conf.level=0.9
    test = rank_sum.rank_sum_test(X, Y)
    assert (test.u, test.p_two_sided) == (31, pytest.approx(0.0411255411255411, rel=1e-12))
    assert rank_sum.shift_with_interval(X, Y, 0.05) == pytest.approx((0.0975, 0.016, 0.183))
    assert rank_sum.shift_with_interval(X, Y, 0.10) == pytest.approx((0.0975, 0.019, 0.163))
    # a second, n = 10: wilcox.test(a, b, exact=TRUE, conf.int=TRUE)
    a = [0.905, 0.913, 0.927, 0.938, 0.944, 0.951, 0.962, 0.975, 0.983, 0.991]
    b = [0.901, 0.908, 0.911, 0.919, 0.9235, 0.9315, 0.9405, 0.9475, 0.9595, 0.9705]
    test = rank_sum.rank_sum_test(a, b)
    assert (test.u, test.p_two_sided) == (69, pytest.approx(0.165493948775683, rel=1e-12))
    assert rank_sum.shift_with_interval(a, b, 0.05) == pytest.approx((0.019, -0.0085, 0.0435))
    # wilcox.test(a, b, mu=0.02, alternative="less", exact=TRUE): b not worse than a by 0.02
    assert rank_sum.margin_tests(a, b, 0.02)[1] == pytest.approx(0.455898590573513, rel=1e-12)


def test_r_golden_with_ties():
    # R package exactRankTests 0.8-35: wilcox.exact(x, y, conf.int=TRUE), on counts of 20 images
    x, y = [15, 16, 16, 17, 17, 17, 18, 18, 19, 15], [13, 14, 15, 15, 15, 16, 16, 16, 17, 14]
    a, b = [k / 20 for k in x], [k / 20 for k in y]
    test = rank_sum.rank_sum_test(a, b)
    assert (test.u, test.p_two_sided) == (82.5, pytest.approx(0.0136720864275044, rel=1e-12))
    assert rank_sum.shift_with_interval(a, b, 0.05)[1:] == pytest.approx((0, 0.15), abs=1e-12)
    # wilcox.exact(x, y, mu=2, alternative="less"), (..., mu=-2, alternative="greater")
    assert rank_sum.margin_tests(a, b, 0.1) == pytest.approx(
        (1.62376323367035e-05, 0.324893372880989), rel=1e-12)
    # unequal n, one-sided: wilcox.exact(c(1,2,2,3,3,3,5), c(2,3,3,4,4,5,5,5,6,6,7), alternative=)
    test = rank_sum.rank_sum_test([1, 2, 2, 3, 3, 3, 5], [2, 3, 3, 4, 4, 5, 5, 5, 6, 6, 7])
    assert (test.p_less, test.p_greater) == pytest.approx(
        (0.0113436400201106, 0.992427099044746), rel=1e-12)


def test_r_golden_normal_approximation():
    # R: x <- rep(c(.70,.72,.74,.76,.78), 60); y <- rep(c(.70,.71,.74,.75,.76), 60)
    #    wilcox.test(x, y, exact=FALSE, correct=TRUE)
    a, b = [0.70, 0.72, 0.74, 0.76, 0.78] * 60, [0.70, 0.71, 0.74, 0.75, 0.76] * 60
    test = rank_sum.rank_sum_test(a, b)
    assert not test.exact
    assert (test.u, test.p_two_sided) == (52200, pytest.approx(5.82697389914745e-04, rel=1e-9))


@pytest.mark.parametrize("num_b", [101, 150])
def test_each_tail_above_200_values_is_scipys(num_b):
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(2)
    a, b = rng.binomial(60, 0.80, 100) / 60, rng.binomial(60, 0.83, num_b) / 60
    test = rank_sum.rank_sum_test(a, b)
    for tail, p in (("greater", test.p_greater), ("less", test.p_less),
                    ("two-sided", test.p_two_sided)):
        golden = mannwhitneyu(a, b, method="asymptotic", alternative=tail)
        assert (test.u, p) == (golden.statistic, pytest.approx(golden.pvalue, rel=1e-9)), tail
    assert test.p_less < 0.01 < 0.99 < test.p_greater


@pytest.mark.parametrize(("num_b", "exact"), [(100, True), (101, False)])
def test_up_to_200_values_are_exact(num_b, exact):
    from scipy.stats import hypergeom

    # of two values the rank sum counts the ones in a: Fisher's exact test
    test = rank_sum.rank_sum_test([0.0] * 60 + [1.0] * 40, [0.0] * 50 + [1.0] * (num_b - 50))
    golden = hypergeom(100 + num_b, 40 + num_b - 50, 100).cdf(40)
    assert test.exact == exact
    assert (test.p_less == pytest.approx(golden, rel=1e-9)) == exact


def test_values_that_are_all_tied_tell_nothing():
    with np.errstate(all="raise"):
        equal = rank_sum.rank_sum_test([0.5] * 4, [0.5] * 5)
    assert (equal.p_greater, equal.p_less, equal.p_two_sided, equal.p_smallest) == (1, 1, 1, 1)
    assert equal.exact and equal.u == 10


def test_above_200_values_the_smallest_p_is_that_of_complete_separation():
    low, high = np.arange(150) / 1000, 0.5 + np.arange(150) / 1000
    apart, mixed = rank_sum.rank_sum_test(low, high), rank_sum.rank_sum_test(
        np.r_[low[::2], high[::2]], np.r_[low[1::2], high[1::2]])
    assert apart.p_smallest == apart.p_two_sided == mixed.p_smallest < 1e-40 < mixed.p_two_sided
    equal = rank_sum.rank_sum_test([0.5] * 150, [0.5] * 150)
    assert (equal.p_greater, equal.p_less, equal.p_two_sided, equal.p_smallest) == (1, 1, 1, 1)


def test_shift_and_margins_above_200_values_have_the_direction_of_a_minus_b():
    rng = np.random.default_rng(3)
    b = rng.normal(0.80, 0.02, 101)
    a = rng.normal(0.83, 0.02, 100)
    shift, low, high = rank_sum.shift_with_interval(a, b, 0.05)
    assert 0.02 < low < shift < high < 0.04
    a_not_worse, b_not_worse = rank_sum.margin_tests(a, b, 0.02)
    assert a_not_worse < 1e-12 and b_not_worse > 0.99


def test_exact_joins_the_normal_approximation(monkeypatch):
    rng = np.random.default_rng(1)
    a, b = rng.binomial(60, 0.80, 100) / 60, rng.binomial(60, 0.82, 100) / 60
    exact = rank_sum.rank_sum_test(a, b)
    monkeypatch.setattr(rank_sum, "EXACT_LIMIT", 0)
    normal = rank_sum.rank_sum_test(a, b)
    assert exact.exact and not normal.exact
    assert exact.p_two_sided == pytest.approx(normal.p_two_sided, rel=0.05)


def test_last_bit_differences_are_ties():
    assert 0.9 - 0.85 != 0.85 - 0.8
    assert list(rank_sum.doubled_midranks([0.9 - 0.85, 0.85 - 0.8, 1.0])) == [3, 3, 6]


# ------------------------------------------------------------------ intervals, margins, Holm

@given(small_samples, st.sampled_from([0.05, 0.1, 0.3]))
@settings(max_examples=40, deadline=None)
def test_interval_holds_exactly_the_shifts_not_rejected(samples, alpha):
    """A scan over every difference and gap finds the interval that bisection found."""
    a, b = (np.array(sample) for sample in samples)
    points = np.unique(np.round(np.subtract.outer(a, b), 9))
    gaps = [points[0] - 1, *((points[1:] + points[:-1]) / 2), points[-1] + 1]
    shifts = sorted([*points, *gaps])
    kept = [d for d in shifts if min(enumerate_p(a - d, b)[:2]) * 2 > alpha]
    _, low, high = rank_sum.shift_with_interval(a, b, alpha)
    inside = [d for d in shifts if low - 1e-7 <= d <= high + 1e-7]
    # an end that is a gap is reported by the difference that bounds it
    assert set(kept) <= set(inside)
    assert all(any(abs(d - end) < 1e-7 for end in (low, high)) for d in set(inside) - set(kept))
    assert math.isinf(low) == (gaps[0] in kept) and math.isinf(high) == (gaps[-1] in kept)


def test_a_shift_whose_p_is_exactly_alpha_is_outside_the_interval():
    a, b = [0.80, 0.81, 0.82, 0.83], [0.70, 0.71, 0.72, 0.73]  # any p is a multiple of 2 / 70
    assert rank_sum.shift_with_interval(a, b, 2 / 70)[1:] == pytest.approx((0.07, 0.13))
    assert rank_sum.shift_with_interval(a, b, 2 / 71)[1:] == (-math.inf, math.inf)


@given(small_samples, st.sampled_from([0.1, 0.3]))
@settings(max_examples=40, deadline=None)
def test_interval_on_a_grid_agrees_with_the_test(samples, alpha):
    """Every shift of whole sevenths is inside if, and only if, the test keeps it."""
    a, b = (np.array(sample) for sample in samples)
    _, low, high = rank_sum.shift_with_interval(a, b, alpha, grid=1 / 7)
    for step in range(-8, 9):
        p = rank_sum.rank_sum_test(a - step / 7, b).p_two_sided
        assert (low <= step / 7 <= high) == (p > alpha), step
    assert all(math.isinf(end) or abs(end * 14 % 2 - 1) < 1e-6 for end in (low, high))


@given(small_samples, st.sampled_from([1 / 7, 2 / 7, 0.1]))
@settings(max_examples=40, deadline=None)
def test_margin_tests_are_one_sided_tests_of_the_shifted_samples(samples, margin):
    a, b = (np.array(sample) for sample in samples)
    assert rank_sum.margin_tests(a, b, margin) == pytest.approx(
        (enumerate_p(a + margin, b)[0], enumerate_p(a - margin, b)[1]), abs=1e-12)


def test_the_worse_dataset_is_the_one_not_shown_to_be_not_worse():
    low, high = [0.70, 0.71, 0.72, 0.73], [0.80, 0.81, 0.82, 0.83]
    assert rank_sum.margin_tests(low, high, 0.02) == pytest.approx((1, 1 / 70))
    assert rank_sum.margin_tests(high, low, 0.02) == pytest.approx((1 / 70, 1))
    assert rank_sum.shift_with_interval(high, low, 0.05)[0] == pytest.approx(0.1)


def test_an_interval_of_another_confidence_is_that_of_another_test():
    a = [0.70 + 0.010 * k for k in range(8)]
    b = [0.70 + 0.011 * k for k in range(8)]
    ends = [rank_sum.shift_with_interval(a, b, alpha)[1:] for alpha in (0.05, 0.10, 0.20)]
    for alpha, (low, high) in zip((0.05, 0.10, 0.20), ends):
        for inside, outside in ((low + 1e-6, low - 1e-6), (high - 1e-6, high + 1e-6)):
            kept, rejected = (rank_sum.rank_sum_test(np.array(a) - shift, b).p_two_sided
                              for shift in (inside, outside))
            assert rejected <= alpha < kept
    assert ends[0][0] < ends[1][0] < ends[2][0] < ends[2][1] < ends[1][1] < ends[0][1]


def test_margin_is_tested_in_whole_images():
    assert rank_sum.margin_on_grid(0.02, 1 / 60) == pytest.approx(1 / 60)
    assert rank_sum.margin_on_grid(0.02, 1 / 50) == pytest.approx(0.02)
    assert rank_sum.margin_on_grid(0.02, 1 / 40) == 0
    # 0.05 * 60 is 3.0000000004
    assert rank_sum.margin_on_grid(0.05, 1 / 60) == pytest.approx(3 / 60)
    assert rank_sum.margin_on_grid(0.29, 0.01) == pytest.approx(0.29)      # 0.29 / 0.01 is 28.99...
    assert rank_sum.margin_on_grid(0.02, 0) == 0.02


@given(small_samples, st.floats(0.01, 0.3))
@settings(max_examples=60, deadline=None)
def test_swapping_the_datasets_mirrors_everything(samples, margin):
    a, b = samples
    there, back = rank_sum.rank_sum_test(a, b), rank_sum.rank_sum_test(b, a)
    assert there.p_two_sided == pytest.approx(back.p_two_sided, rel=1e-12)
    shift, low, high = rank_sum.shift_with_interval(a, b, 0.1)
    assert rank_sum.shift_with_interval(b, a, 0.1) == pytest.approx((-shift, -high, -low), abs=1e-9)
    assert rank_sum.margin_tests(b, a, margin) == rank_sum.margin_tests(a, b, margin)[::-1]


def test_holm_golden():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005, 0.5), "holm")
    assert rank_sum.holm([0.01, 0.04, 0.03, 0.005, 0.5]) == pytest.approx([
        0.04, 0.09, 0.09, 0.025, 0.5])
    assert rank_sum.holm([0.02, 0.031, 0.9]) == pytest.approx([0.06, 0.062, 0.9])
    # a later product, here 2 * 0.031, must not undercut an earlier one
    assert rank_sum.holm([0.03, 0.031, 0.9]) == pytest.approx([0.09, 0.09, 0.9])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_holm_keeps_the_order_never_lowers_a_p_and_ends_at_1(p_values):
    adjusted = rank_sum.holm(p_values)
    for p, q in zip(p_values, adjusted):
        assert p <= q <= min(1, len(p_values) * p)
    assert min(adjusted) == pytest.approx(min(1, len(p_values) * min(p_values)))
    by_p = [adjusted[i] for i in sorted(range(len(p_values)), key=p_values.__getitem__)]
    assert by_p == sorted(by_p)


def test_smallest_p_and_n_needed():
    assert [round(rank_sum.smallest_p(n, n), 4) for n in (3, 4, 5, 6)] == [
        0.1, 0.0286, 0.0079, 0.0022]
    assert [rank_sum.n_needed(pairs, alpha)
            for pairs, alpha in ((1, 0.05), (10, 0.05), (10, 0.01))] == [4, 6, 7]


def test_wilson_interval_golden():
    # R: prop.test(81, 263, correct=FALSE)$conf.int
    assert rank_sum.wilson_interval(81 / 263, 263) == pytest.approx(
        (0.255288520, 0.366209577), abs=1e-8)
    assert rank_sum.wilson_interval(1, 10)[1] == pytest.approx(1)


def test_a_smallest_p_that_equals_alpha_is_significant_and_none_is_above_one():
    assert rank_sum.n_needed(1, rank_sum.smallest_p(4, 4)) == 4
    assert rank_sum.n_needed(1, rank_sum.smallest_p(4, 4) * 0.999) == 5
    assert rank_sum.smallest_p(3, 0) == 1
