"""Folds by group inside a train split, and the rule of one standard error."""

from __future__ import annotations

import numpy as np
import pytest

from lungkit.data.dataset import Row
from lungkit.learn import folds
from lungkit.run.faults import Fault

CLASSES = ["a", "b"]


def images(num_groups: int, a_group: int = 3):
    """Labels and groups of a_group images in each of num_groups groups a class."""
    labels = np.repeat([0, 1], num_groups * a_group)
    return labels, np.repeat([f"g{k:02d}" for k in range(2 * num_groups)], a_group)


def test_every_image_is_held_out_once_and_no_group_is_on_both_sides():
    labels, groups = images(6)
    found = folds.grouped_folds(labels, groups, CLASSES, 3, seed=1)
    assert sorted(np.concatenate([fold.held_out for fold in found])) == list(range(len(labels)))
    for fold in found:
        assert not set(groups[fold.trained]) & set(groups[fold.held_out])
        assert sorted([*fold.trained, *fold.held_out]) == list(range(len(labels)))
        assert np.bincount(labels[fold.held_out]).tolist() == [6, 6]  # in proportion
    again = folds.grouped_folds(labels, groups, CLASSES, 3, seed=1)
    other = folds.grouped_folds(labels, groups, CLASSES, 3, seed=2)
    assert all((one.trained == two.trained).all() for one, two in zip(found, again))
    assert any((one.held_out != two.held_out).any() for one, two in zip(found, other))


def test_a_class_of_fewer_groups_than_folds_is_named_with_what_would_do():
    labels, groups = images(4)
    groups[labels == 1] = "one"
    with pytest.raises(Fault, match="5 folds .*: a has 4; b has 1: give --folds 2 "):
        folds.grouped_folds(labels, groups, CLASSES, 5, seed=0)


def test_a_division_that_leaves_a_class_out_is_drawn_again():
    labels, groups = np.repeat([0, 1, 2], 6), np.array([*"282265003737227700"])
    for seed in range(5):  # the first division leaves one out of 0, 1 and 2
        found = folds.grouped_folds(labels, groups, ["a", "b", "c"], 3, seed)
        for fold in found:
            assert not set(groups[fold.trained]) & set(groups[fold.held_out])
            assert {*labels[fold.trained]} == {*labels[fold.held_out]} == {0, 1, 2}
        assert sorted(np.concatenate([fold.held_out for fold in found])) == list(range(18))


def test_folds_drawn_again_are_those_of_no_other_seed():
    labels, groups = np.repeat([0, 1, 2], 6), np.array([*"282265003737227700"])
    drawn = [[tuple(fold.held_out) for fold in folds.grouped_folds(labels, groups, [*"abc"], 3, k)]
             for k in range(4)]
    assert len({tuple(sorted(each)) for each in drawn}) > 1, "each begins where another ends"


def test_a_fold_that_lacks_a_class_is_a_fault(monkeypatch):
    divide, drawn = folds._divide, []
    monkeypatch.setattr(folds, "_divide", lambda *given: drawn.append(given) or divide(*given))
    labels = np.repeat([0, 1], [19, 8])
    groups = np.repeat([*"vwxyxyz"], [7, 6, 3, 3, 1, 4, 3])
    with pytest.raises(Fault, match=r"fold 1 of 3 holds out no image of b \(one class only\), nor "
                                    "has any of 100 divisions .*: give fewer --folds"):
        folds.grouped_folds(labels, groups, CLASSES, 3, seed=0)
    assert len(drawn) == 100


def test_an_image_without_a_group_is_its_own():
    rows = [Row("train/a/0.png", "a", "train", "p"), Row("train/a/1.png", "a", "train")]
    assert folds.group_names(rows).tolist() == ["p", "train/a/1.png"]


# of three folds 0.8 0.9 1.0: mean 0.9, standard deviation 0.1, standard error 0.0577
BEST = [0.8, 0.9, 1.0]


@pytest.mark.parametrize(("other", "chosen", "alike"), [
    ([0.85, 0.85, 0.85], "cheap", ["cheap"]),     # 0.05 below: within one standard error
    ([0.84, 0.84, 0.84], "dear", []),             # 0.06 below
    ([0.95, 0.95, 0.95], "cheap", []),            # the cheap one is best, its own error is 0
])
def test_the_cheapest_within_one_standard_error_is_chosen(other, chosen, alike):
    found = folds.choose({"dear": BEST, "cheap": other}, {"dear": (2,), "cheap": (1,)})
    assert (found.chosen, found.alike) == (chosen, alike)
    assert found.within_noise == bool(alike)


def test_the_error_of_the_mean_is_by_n_less_one():
    assert folds.standard_error(BEST) == pytest.approx(0.1 / np.sqrt(3))
    assert folds.shown(BEST) == "0.900 +- 0.058"


def test_a_dearer_one_within_noise_is_told_and_not_chosen():
    found = folds.choose({"cheap": BEST, "dear": [0.9, 0.9, 0.89]}, {"cheap": (1,), "dear": (2,)})
    assert (found.chosen, found.best, found.alike) == ("cheap", "cheap", ["dear"])
