"""The threshold and the least component that val chooses."""

from __future__ import annotations

import numpy as np
import pytest

from lungkit.data import segment_choice
from lungkit.data.segment_choice import Choice, choose
from lungkit.data.segment_scores import IGNORED, count_item, dice
from lungkit.run.faults import Fault


def val(seed=0, number=6):
    """Lesions said with 0.35, a rim with 0.15, specks of 3 voxels with 0.9 in vain."""
    rng, found = np.random.default_rng(seed), []
    for i in range(number):
        true = np.zeros((24, 24), bool)
        if i % 3:
            true[4:10, 4:10] = True
        levels = np.where(true, 0.35, 0.0)
        if i % 3:
            levels[3:11, 3:11] = np.maximum(levels[3:11, 3:11], 0.15)
        levels[20, 5:8] = 0.9
        levels = np.rint(255 * levels + rng.integers(0, 3, true.shape))
        found.append((levels.astype(np.uint8), true))
    return found


def test_the_threshold_and_the_size_are_those_that_fit():
    chosen = choose(iter(val()))
    assert (chosen.threshold, chosen.least) == (0.3, 4)
    assert chosen.dice == 1 and chosen.false_positives == 0


def test_a_choice_scores_what_it_says():
    for chosen in (choose(val()), Choice(0.1, 0, 0, 0, 0), Choice(0.5, 2, 0, 0, 0)):
        counts = [count_item(chosen.mask(levels), true) for levels, true in val()]
        grid = ((chosen.threshold,), (chosen.least,))
        again = choose(val(), grid)
        scored = [dice(c["true"], c["said"], c["both"]) for c in counts if c["true"]]
        assert again.dice == pytest.approx(np.mean(scored))
        assert again.false_positives == np.mean([c["false_positives"] for c in counts])
        assert again.sensitivity == sum(c["found"] for c in counts) / sum(
            c["lesions"] for c in counts)


def test_of_nearly_equal_dice_the_one_with_fewest_false_positives_is_taken(monkeypatch):
    true, said = np.zeros((40, 40), bool), np.zeros((40, 40), np.uint8)
    true[5:25, 5:25] = True
    said[true] = 255
    true[30, 30:33] = said[30, 30:33] = True     # a small lesion, told with a high probability
    said[30, 30:33] = 255
    healthy = np.zeros_like(said)
    healthy[3, 3:6] = 255
    items = [(said, true), (healthy, np.zeros_like(true))]
    assert choose(items).least == 4              # 0.4 % of Dice against a false positive
    monkeypatch.setattr(segment_choice, "SLACK", 0.001)
    assert choose(items).least == 0


def scans(speck=40):
    """Three volumes with a large lesion, its rim less likely, and a small one of 3 voxels.

    In the second 3 voxels are found in vain, in the third `speck`.
    """
    found = []
    for in_vain in (0, 3, speck):
        true, levels = np.zeros((4, 60, 60), bool), np.zeros((4, 60, 60), np.uint8)
        levels[1:3, 4:26, 4:26] = 100
        true[1:3, 5:25, 5:25] = True
        true[2, 40, 30:33] = True
        levels[true] = 255
        levels[0].flat[40 * 60:40 * 60 + in_vain] = 255
        found.append((levels, true))
    return found


@pytest.mark.parametrize(("most", "least", "sensitivity", "false_positives"), [
    (None, 64, 0.5, 0), (0, 64, 0.5, 0), (0.5, 64, 0.5, 0), (0.7, 0, 1, 2 / 3), (9, 0, 1, 2 / 3)])
def test_the_most_lesions_within_what_may_be_found_in_vain(most, least, sensitivity,
                                                           false_positives):
    chosen = choose(scans(), most_false_positives=most)
    assert (chosen.least, chosen.sensitivity) == (least, sensitivity)
    assert chosen.false_positives == pytest.approx(false_positives)
    assert chosen.threshold > 100 / 255, "of as many lesions the best Dice"


@pytest.mark.parametrize(("slack", "threshold"), [(None, 0.4), (0, 0.1)])
def test_a_lesion_of_hundreds_is_not_worth_a_poor_dice(slack, threshold, monkeypatch):
    """One of 225 lesions is found only where all others are found with a rim."""
    if slack is not None:
        monkeypatch.setattr(segment_choice, "FOUND_SLACK", slack)
    true, levels = np.zeros((90, 90), bool), np.zeros((90, 90), np.uint8)
    true[2::6, 2::6] = True
    levels[2::6, 2::6] = 255
    levels[2::6, 3::6] = levels[2, 2] = 100
    assert choose([(levels, true)], most_false_positives=0).threshold == threshold


def test_where_none_has_so_few_the_fewest_in_vain_are_taken():
    chosen = choose(scans(speck=300), most_false_positives=0)
    assert (chosen.least, chosen.sensitivity) == (4, 0.5)
    assert chosen.false_positives == pytest.approx(1 / 3)


def test_a_lesion_is_found_by_the_largest_component_that_lies_in_it():
    true, levels = np.zeros((9, 9), bool), np.zeros((9, 9), np.uint8)
    true[1:8, 2] = True
    levels[1, 2] = levels[4:8, 2] = 255      # of 1 and of 4 voxels, one lesion
    for least in (0, 4):
        assert choose([(levels, true)], ((0.5,), (least,))).sensitivity == 1
    assert choose([(levels, true)] * 2, ((0.5,), (0, 5)), 0).least == 0


def test_what_is_said_of_ignored_findings_is_not_chosen_by():
    plain, doubtful = val(), [(levels.copy(), true.astype(np.uint8)) for levels, true in val()]
    for levels, marked in doubtful:
        levels[13:18, 13:18], marked[13:18, 13:18] = 250, IGNORED
    chosen = choose(doubtful)
    assert chosen == choose(plain) and chosen.false_positives == 0


def test_a_component_of_a_volume_goes_through_its_slices():
    levels = np.zeros((4, 5, 5), np.uint8)
    levels[:, 2, 2] = 255
    assert Choice(0.5, 4, 0, 0, 0).mask(levels).sum() == 4
    assert Choice(0.5, 5, 0, 0, 0).mask(levels).sum() == 0


def test_nothing_found_at_any_threshold_is_a_fault():
    true = np.ones((4, 4), bool)
    with pytest.raises(Fault, match=r"highest probability is 0\.09, the least threshold 0\.1"):
        choose([(np.full((4, 4), 24, np.uint8), true)])


def test_finding_nothing_is_not_as_good_where_all_is_poor():
    """A corner of a large lesion is found, and a component in vain: its Dice is below the slack."""
    true, levels = np.zeros((64, 64), bool), np.zeros((64, 64), np.uint8)
    true[:40, :40] = True
    levels[0, :3] = levels[50, 40:60] = 255
    chosen = choose([(levels, true)])
    assert chosen.dice > 0 and chosen.mask(levels)[0, 0]
