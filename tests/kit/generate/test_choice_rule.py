"""Which way to draw is best: the rule by exact tables, KID by class and its halves."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from lungkit.audit.fidelity import HALVES, Compared, discrepancy
from lungkit.generate import choice_rule
from lungkit.generate.choice_rule import (
    Figures,
    decide,
    distances,
    figures_of,
    sign_test,
    standard_error,
)

BEST, NOISE, CHOSEN = "the given one is best", "within noise", "least KID within one standard"


def of(right: int, kid: float, p_label: float | None = 1.0, p_kid: float | None = 1.0) -> Figures:
    return Figures(100, right, kid, p_label, p_kid)


# one standard error of 90 of 100 is 3.15 images, of 100 of 100 1.36; of two candidates 0.025 counts
@pytest.mark.parametrize(("found", "place", "words"), [
    ([of(80, 0.3), of(90, 0.2, 0.001)], 1, CHOSEN),
    ([of(80, 0.3), of(90, 0.2, 1.0, 0.001)], 1, CHOSEN),
    ([of(80, 0.3), of(90, 0.2, 0.025)], 1, CHOSEN),
    ([of(80, 0.3), of(90, 0.2, 0.026, 0.026)], 0, NOISE),
    ([of(80, 0.3), of(90, 0.2, None, None)], 0, NOISE),
    ([of(80, 0.3), of(90, 0.4, 0.001)], 1, CHOSEN),           # label fidelity comes first
    ([of(87, 0.3), of(90, 0.4, 0.001)], 0, BEST),             # within its standard error: KID
    ([of(86, 0.3), of(90, 0.4, 0.001)], 1, CHOSEN),
    ([of(90, 0.3), of(87, 0.2, 1.0, 0.001)], 1, CHOSEN),
    ([of(90, 0.3), of(86, 0.2, 1.0, 0.001)], 0, BEST),
    ([of(100, 0.3), of(99, 0.2, 1.0, 0.001)], 1, CHOSEN),     # its standard error is not 0
    ([of(100, 0.3), of(98, 0.2, 1.0, 0.001)], 0, BEST),
    ([of(90, 0.3), of(90, 0.3, 0.001, 0.001)], 0, BEST),      # of equals the given one
    ([of(80, 0.3), of(90, 0.2, 0.001), of(90, 0.1, 0.001)], 2, CHOSEN),
    ([of(80, 0.3), of(90, 0.2, 0.001), of(90, 0.2, 0.001)], 1, CHOSEN),
    ([of(80, 0.3), of(90, 0.2, 0.013), of(90, 0.1, 0.5)], 0, NOISE),   # of three 0.0125 counts
    ([of(80, 0.3), of(90, 0.2, 0.012), of(90, 0.1, 0.5)], 1, CHOSEN),  # the other is not shown
    ([of(90, 0.3), of(90, 0.2, 0.012), of(91, 0.1, 0.5)], 1, CHOSEN)])
def test_the_rule(found, place, words):
    chosen, because = decide(found)
    assert chosen == place and words in because


@pytest.mark.parametrize(("gained", "lost", "p"), [
    (0, 0, 1), (5, 0, 1 / 32), (3, 1, 5 / 16), (1, 3, 15 / 16), (2, 2, 11 / 16), (0, 4, 1)])
def test_the_sign_test_is_exact(gained, lost, p):
    assert sign_test(gained, lost) == p


def test_a_standard_error_has_two_of_each_added():
    assert standard_error(90, 100) == pytest.approx(math.sqrt(92 * 12 / 104**3))
    assert standard_error(100, 100) == pytest.approx(math.sqrt(102 * 2 / 104**3))


# ------------------------------------------------------------------ figures

@pytest.fixture(scope="module")
def sides():
    """Held-out features of two classes, their groups, and what three candidates drew.

    The third drew as the reference is; the second the same images as the first, far from it.
    """
    rng = np.random.default_rng(0)
    reference = [rng.normal(size=(number, 6)) for number in (10, 8)]
    groups = [np.array([f"{place // 2}" for place in range(len(each))]) for each in reference]
    far = [rng.normal(size=(12, 6)) + 2 for _ in reference]
    return reference, groups, [far, far, [rng.normal(size=(12, 6)) for _ in reference]]


def test_kid_is_of_each_class_with_its_own_held_out_images(sides):
    reference, groups, drawn = sides
    values, halves = distances(*sides)
    assert values.shape == (3, 2) and halves.shape == (HALVES, 3, 2)
    for place, candidate in enumerate(drawn):
        for number, images in enumerate(candidate):
            compared = Compared(reference[number], images)
            assert values[place, number] == pytest.approx(
                discrepancy(*compared.parts(*compared.all()), compared.width))


def test_halves_are_of_the_same_images_of_every_candidate_and_of_whole_groups(sides):
    reference, groups, drawn = sides
    _, halves = distances(*sides)
    assert np.array_equal(halves[:, 0], halves[:, 1])
    apart = np.ptp(halves[:, 0, 0])
    same = [np.repeat(each[::2], 2, axis=0) for each in reference]  # both of a group are one image
    _, of_groups = distances(same, groups, [drawn[0]])
    _, of_images = distances(same, [np.arange(len(each)).astype(str) for each in same], [drawn[0]])
    assert apart > 0 and of_groups[:, 0].mean() > of_images[:, 0].mean()


def test_a_half_holds_half_of_the_groups_and_of_the_images_and_the_first_is_the_whole(
        sides, monkeypatch):
    masks = []
    monkeypatch.setattr(choice_rule, "discrepancies", lambda compared, some, others:
                        masks.append((some, others)) or np.zeros(len(some)))
    distances(*sides)
    some, others = masks[0]  # of the first class: 10 images of 5 groups, and 12 drawn
    assert some[0].all() and others[0].all() and len(some) == len(others) == 1 + HALVES
    assert set(some[1:].sum(1)) == {2 * 2} and set(others[1:].sum(1)) == {6}
    assert some[1:].any(0).all() and others[1:].any(0).all()


def test_without_four_groups_in_every_class_no_spread_is_known(sides):
    reference, groups, drawn = sides
    values, halves = distances(reference, [groups[0], np.array(list("aaabbbcc"))], drawn)
    assert halves is None and values.shape == (3, 2)
    found = figures_of(np.ones((3, 24), bool), values, halves)
    assert [each.p_kid for each in found] == [None] * 3


def test_figures_are_of_pairs_with_the_given_one(sides):
    right = np.zeros((3, 24), bool)
    right[0, :4] = right[1, 3:12] = right[2, :4] = True  # gained 8, lost 3; the same
    values, halves = distances(*sides)
    given, alike, near = figures_of(right, values, halves)
    assert [each.right for each in (given, alike, near)] == [4, 9, 4] and given.n == 24
    assert (given.p_label, given.p_kid) == (None, None)
    assert (alike.p_label, alike.p_kid) == (sign_test(8, 3), 0.5)
    assert near.p_label == 1 and near.p_kid < 0.001 and near.kid == values[2].mean() < given.kid


def test_of_three_candidates_each_stands_beside_the_given_one_alone():
    right = np.zeros((3, 10), bool)
    right[0, :4] = right[1, 2:7] = right[2, :9] = True
    found = figures_of(right, np.array([[0.1, 0.3], [0.5, 0.5], [0.9, 0.7]]), None)
    assert [(each.n, each.right) for each in found] == [(10, 4), (10, 5), (10, 9)]
    assert [each.kid for each in found] == pytest.approx([0.2, 0.5, 0.8])
    assert [each.p_label for each in found] == [None, sign_test(3, 2), sign_test(5, 0)]


def test_what_varies_in_both_alike_is_no_doubt_which_is_nearer():
    rng = np.random.default_rng(0)
    both, each = rng.normal(size=HALVES), 0.02 * rng.normal(size=HALVES)
    halves = np.stack([both, both - 0.1 + each], axis=1)[..., None]
    _, nearer = figures_of(np.ones((2, 8), bool), np.array([[0.5], [0.4]]), halves)
    assert nearer.p_kid == pytest.approx(NormalDist().cdf(-0.1 / each.std()), rel=1e-6)
