"""Scores of a segmentation, against sums by hand and a brute force over all surface voxels."""

from __future__ import annotations

import json

import monai_scores
import numpy as np
import pytest

from lungkit.data import segment_scores as scores
from lungkit.data.mask_items import Item


def ball(shape, centre, radius):
    away = [axis - middle for axis, middle in zip(np.indices(shape), centre)]
    return np.sqrt(sum(each**2 for each in away)) <= radius


def item(name, group=None, slices=None):
    return Item(name, group or name, (0,), slices, None)


def brute_distances(said, true, spacing):
    """mm between the surfaces, by every pair of surface voxels; a surface voxel has an empty face.

    Written apart from the code: by shifts instead of an erosion, by pairs instead of a transform.
    """
    from scipy.spatial.distance import cdist

    def surface(mask):
        wide = np.pad(mask, 1)
        buried = np.ones_like(mask)
        for axis in range(mask.ndim):
            for step in (-1, 1):
                shifted = np.roll(wide, step, axis)[(slice(1, -1),) * mask.ndim]
                buried &= shifted
        return np.argwhere(mask & ~buried) * np.array(spacing)

    pairs = cdist(surface(said), surface(true))
    return pairs.min(1), pairs.min(0)


@pytest.mark.parametrize(("shape", "spacing"), [((7, 20, 22), (2.5, 0.7, 0.7)), ((24, 26), (1, 2))])
@pytest.mark.parametrize("seed", range(3))
def test_surfaces_agree_with_every_pair_of_voxels(shape, spacing, seed):
    rng = np.random.default_rng(seed)
    middle = [length / 2 for length in shape]
    true = ball(shape, middle, 3) | (rng.random(shape) < 0.01)
    said = ball(shape, [each + 1 for each in middle], 3.5) | (rng.random(shape) < 0.01)
    to_true, to_said = brute_distances(said, true, spacing)
    found = scores.score_item(said, true, spacing)
    within = (to_true <= 2).sum() + (to_said <= 2).sum()
    assert found["surface_dice"] == pytest.approx(within / (len(to_true) + len(to_said)))
    assert 0 < found["surface_dice"] < 1
    assert found["hd95_mm"] == pytest.approx(max(np.percentile(to_true, 95),
                                                 np.percentile(to_said, 95)))
    assert found["true_mm"] == pytest.approx(true.sum() * np.prod(spacing))


OF_MONAI = json.loads(monai_scores.KEPT.read_text())


@pytest.mark.parametrize("case", list(monai_scores.cases()), ids=lambda case: case[0])
def test_scores_are_those_of_monai(case):
    name, said, true, spacing_mm = case
    found = scores.score_item(said, true, spacing_mm, tolerance_mm=monai_scores.TOLERANCE_MM)
    wanted = {key: np.nan if value is None else value for key, value in OF_MONAI[name].items()}
    if name == "said in vain":
        wanted["dice"] = 0.0  # MONAI leaves out what shows no foreground; so does `summarise`
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, abs=1e-5, nan_ok=True)


def test_lesions_are_found_and_false_positives_are_what_touches_none():
    true, said = np.zeros((2, 12, 12), bool), np.zeros((2, 12, 12), bool)
    true[0, 1:3, 1:3] = true[1, 3, 3] = True     # one lesion: the corner joins
    true[0, 8:10, 8:10] = True                   # another, missed
    said[1, 3:5, 3] = True                       # in the first
    said[0, 5, 9] = said[1, 11, 0] = True        # in vain, twice
    found = scores.score_item(said, true, None)
    assert (found["lesions"], found["found"], found["false_positives"]) == (2, 1, 2)
    assert (found["true"], found["said"], found["both"]) == (9, 4, 1)
    assert found["dice"] == pytest.approx(2 / 13)
    assert np.isnan([found["hd95_mm"], found["surface_dice"], found["true_mm"]]).all()


def test_what_touches_an_ignored_finding_and_no_lesion_is_neither_hit_nor_false_positive():
    marked, said = np.zeros((12, 12), np.uint8), np.zeros((12, 12), bool)
    marked[1:4, 1:4] = 1
    marked[1:4, 4] = marked[8:11, 8:11] = scores.IGNORED
    said[2, 2:6] = True          # the lesion, and into what is ignored beside it
    said[9, 5:9] = True          # what is ignored alone, and beyond
    said[6, 0] = True            # in vain
    kept, true = scores.of_interest(said, marked)
    assert (true == (marked == 1)).all() and kept.dtype == true.dtype == bool
    assert kept[2, 2:6].all() and kept[6, 0] and kept.sum() == 5
    found = scores.count_item(kept, true)
    assert (found["found"], found["false_positives"]) == (1, 1)
    assert scores.of_interest(said, marked == 1)[0] is said


@pytest.mark.parametrize(("true", "said", "dice", "surface"), [
    (False, False, None, None), (True, False, 0, 0), (False, True, 0, 0), (True, True, 1, 1)])
def test_what_is_empty_has_no_dice_or_none(true, said, dice, surface):
    masks = [np.full((4, 4), value) for value in (said, true)]
    found = scores.score_item(*masks, (1.0, 1.0))
    for name, wanted in (("dice", dice), ("surface_dice", surface)):
        assert np.isnan(found[name]) if wanted is None else found[name] == wanted


def test_without_all_slices_or_a_tolerance_surfaces_are_not_measured():
    mask = np.ones((3, 4, 4), bool)
    gaps = scores.score_item(mask, mask, (1.0,) * 3, with_surface=False)
    assert np.isnan([gaps["hd95_mm"], gaps["surface_dice"]]).all() and gaps["true_mm"] == 48
    tissue = scores.score_item(mask[0], mask[0], (1.0, 1.0), tolerance_mm=None)
    assert np.isnan(tissue["surface_dice"]) and tissue["hd95_mm"] == 0


def split():
    """Four items of three groups: perfect, missed, healthy and quiet, healthy with a false one."""
    true = np.zeros((4, 6, 6), bool)
    said = np.zeros((4, 6, 6), bool)
    true[:2, 1:3, 1:3] = True
    said[0, 1:3, 1:3] = said[3, 0, 0] = True
    items = [item("a", "p"), item("b", "q"), item("c", "q"), item("d", "r")]
    return items, [scores.score_item(s, t, (1.0, 1.0)) for s, t in zip(said, true)]


def test_a_split_s_dice_is_of_items_with_foreground_and_the_rest_counts_in_vain():
    found, about, arrays = scores.summarise(*split())
    assert found == {"dice": 0.5, "dice_pooled": pytest.approx(8 / 13), "lesion_sensitivity": 0.5,
                     "surface_dice": 0.5}
    assert about["false_positives"] == 0.25 and about["num_with_foreground"] == 2
    assert about["dice_by_group"] == {"p": 1.0, "q": 0.0}
    assert (about["volume_error"], about["volume_bias"], about["num_empty"]) == (0.5, -0.5, 1)
    assert about["hd95_mm"] == 0 and about["num_hd95"] == 1
    assert arrays["groups"].tolist() == ["p", "q", "q", "r"]
    assert np.isnan(arrays["dice"][2]) and arrays["dice"][3] == 0


def test_a_score_that_an_item_lacks_is_none_of_the_split():
    items, scored = split()
    scored[0]["surface_dice"] = float("nan")
    assert "surface_dice" not in scores.summarise(items, scored)[0]
