"""Crossed variances: against enumeration, simulation, and the mixed model of statsmodels."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from lungkit.compare import bootstrap
from lungkit.compare.bootstrap import (
    UNSEEN,
    Mean,
    Trainings,
    crossed_draws,
    crossed_mean,
    group_weights,
    share_interval,
)


def trainings_of(cells):
    """Of scores float [R, G], groups of equal weight."""
    values = cells.mean(1)
    return Trainings(values, (cells - values[:, None]) / cells.shape[1])


def crossed(rng, num_groups=12, repeats=(6, 6), step=0.0, group=0.08, seed=0.05, rest=0.1):
    """Scores of two arms on the same groups: arm x group, training and residual deviations."""
    shared = rng.normal(0, 0.1, num_groups)
    return [0.8 - step * arm + shared + rng.normal(0, group, num_groups)
            + rng.normal(0, seed, (count, 1)) + rng.normal(0, rest, (count, num_groups))
            for arm, count in enumerate(repeats)]


def test_the_standard_error_of_a_difference_is_that_of_the_mixed_model():
    """An independent implementation: REML of the crossed random effects, one stratum."""
    import pandas
    import statsmodels.formula.api as models

    a, b = crossed(np.random.default_rng(0), step=0.03)
    lines = [(arm, f"{arm} {r}", f"{g}", f"{arm} {g}", value)
             for arm, cells in enumerate((a, b)) for r, row in enumerate(cells)
             for g, value in enumerate(row)]
    table = pandas.DataFrame(lines, columns=["arm", "training", "group", "both", "score"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = models.mixedlm("score ~ arm", table, groups=np.ones(len(table)), vc_formula={
            "training": "0 + C(training)", "group": "0 + C(group)", "both": "0 + C(both)"}).fit()
    found = crossed_mean([trainings_of(b)], np.zeros(12, int), [trainings_of(a)])
    assert found.value == pytest.approx(model.params["arm"], abs=1e-9)
    assert math.sqrt(found.groups + found.trainings - found.residual) == pytest.approx(
        model.bse["arm"], rel=1e-3)
    assert found.se**2 == pytest.approx(
        found.groups + found.trainings - found.residual + UNSEEN / 12**2)


def test_each_part_of_the_variance_is_that_of_its_own_source():
    rng = np.random.default_rng(1)
    strata = np.repeat([0, 1], 10)
    found = [crossed_mean([trainings_of(a)], strata, [trainings_of(b)]) for a, b in (
        crossed(rng, 20, (8, 5), group=0.06, seed=0.03, rest=0.05) for _ in range(400))]
    rest = 0.05**2 / 20 * (1 / 8 + 1 / 5)
    for name, truth in (("groups", 2 * 0.06**2 / 20 + rest),
                        ("trainings", 0.03**2 * (1 / 8 + 1 / 5) + rest), ("residual", rest)):
        parts = [getattr(one, name) for one in found]
        error = np.std(parts) / math.sqrt(len(parts))
        assert np.mean(parts) == pytest.approx(truth, abs=4 * error), name
    assert 18 < np.median([one.df for one in found]) < 50  # two strata of 10, some of the seeds


def test_what_differs_between_classes_is_no_variance_of_groups():
    strata, cells = np.repeat([0, 1], 5), np.zeros((3, 10))
    cells[:, 5:] = 1  # one class always right, one never
    found = crossed_mean([trainings_of(cells)], strata)
    assert (found.value, found.groups, found.trainings) == (0.5, 0, 0)
    assert crossed_mean([trainings_of(cells)], np.zeros(10, int)).groups > 0.02


def test_where_nothing_varies_a_part_of_a_group_unseen_still_does():
    found = crossed_mean([trainings_of(np.ones((4, 20)))], np.repeat([0, 1], 10),
                         [trainings_of(np.ones((4, 20)))])
    assert found.value == 0 and found.se == pytest.approx(math.sqrt(UNSEEN) / 20)
    assert found.p_above(0) == 0.5 and found.df == 19


def test_the_mean_over_splits_weighs_them_alike():
    rng = np.random.default_rng(3)
    a, b = crossed(rng, 12), crossed(rng, 12)
    wide = [Trainings(trainings_of(cells).values, np.pad(trainings_of(cells).influence, pad))
            for cells, pad in ((a[0], ((0, 0), (0, 12))), (b[0], ((0, 0), (12, 0))))]
    both = crossed_mean(wide, np.zeros(24, int))
    alone = [crossed_mean([trainings_of(cells)], np.zeros(12, int)) for cells in (a[0], b[0])]
    assert both.value == pytest.approx(np.mean([one.value for one in alone]))
    assert both.trainings == pytest.approx(sum(one.trainings for one in alone) / 4)
    assert both.groups == pytest.approx(sum(one.groups for one in alone) / 4 * (24 / 23) * 11 / 12)


# ------------------------------------------------------------------ the draws

def test_draws_take_as_many_groups_of_each_class_as_there_are():
    strata = np.array([0, 1, 0, 1, 1, 2, 2])
    weights = group_weights(strata, 50, np.random.default_rng(0))
    assert all((weights[:, strata == k].sum(1) == (strata == k).sum()).all() for k in range(3))
    assert len(np.unique(weights, axis=0)) > 10


def test_the_draws_vary_as_the_crossed_bootstrap_does_in_the_limit():
    """Owen 2007: groups + trainings + 3 x residual, each by (n - 1) / n; nearly."""
    a, b = crossed(np.random.default_rng(2), 30, (20, 10))
    arms = {"a": [trainings_of(a)], "b": [trainings_of(b)]}
    draws = crossed_draws(arms, np.zeros(30, int), draws=6000)
    found = crossed_mean(arms["a"], np.zeros(30, int), arms["b"])
    difference = draws["a"] - draws["b"]
    assert difference.mean() == pytest.approx(found.value, abs=0.002)
    limit = (found.groups * 29 / 30 + np.var(a.mean(1)) / 20 + np.var(b.mean(1)) / 10
             + found.residual)
    assert difference.var() == pytest.approx(limit, rel=0.08)
    again = crossed_draws(arms, np.zeros(30, int), draws=6000)
    assert (again["a"] == draws["a"]).all()  # seeded
    assert np.corrcoef(draws["a"], draws["b"])[0, 1] > 0.3  # the same groups for both arms


def test_draws_held_few_at_a_time_are_as_many(monkeypatch):
    monkeypatch.setattr(bootstrap, "CELLS", 70)
    draws = crossed_draws({"a": [trainings_of(np.eye(10))]}, np.zeros(10, int), draws=23)["a"]
    assert draws.shape == (23,) and len(set(draws.tolist())) > 5


# ------------------------------------------------------------------ intervals

def test_intervals_are_those_of_students_t():
    from scipy.stats import norm, t

    mean = Mean(0.1, 0.02, 7.0, 0, 0, 0)
    assert mean.interval(0.95) == pytest.approx(t.interval(0.95, 7, 0.1, 0.02))
    assert mean.p_above(0.06) == pytest.approx(t.sf(2, 7))
    assert Mean(0.1, 0.02, math.inf, 0, 0, 0).p_above(0.06) == pytest.approx(norm.sf(2))
    point = Mean(0.1, 0.0, 7.0, 0, 0, 0)
    assert [point.p_above(bound) for bound in (0.0, 0.1, 0.2)] == [0, 0.5, 1]


def test_the_interval_of_a_share_is_wilsons_at_the_effective_size():
    from lungkit.compare.rank_sum import wilson_interval

    simple = Mean(0.8, math.sqrt(0.8 * 0.2 / 50), math.inf, 0, 0, 0)
    assert share_interval(simple, 0.95, 20) == pytest.approx(wilson_interval(0.8, 50), abs=1e-6)
    low, high = share_interval(Mean(0.8, simple.se, 5.0, 0, 0, 0), 0.95, 20)
    assert low < wilson_interval(0.8, 50)[0] and high > wilson_interval(0.8, 50)[1]
    assert share_interval(Mean(1.0, 0.01, 9.0, 0, 0, 0), 0.95, 20) == pytest.approx(
        wilson_interval(1.0, 20), abs=1e-6)
