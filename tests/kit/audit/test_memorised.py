"""The copy audit: it sees copies, turned, blurred and blended ones, names them, and no ghosts."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest

from chests import chest, cropped, turned
from lungkit.audit import leaks, memorised
from lungkit.audit.memorised import ALIKE, BLEND, REGISTERED, SAME, Audit, Known, Match, blend_of
from lungkit.phantom.paint import CLASSES, draw_tile

pytestmark = pytest.mark.usefixtures("found_once")


@functools.cache
def tiles(number: int, first: int) -> np.ndarray:
    return np.stack([draw_tile(CLASSES[i % 3], patient=i, index=i, seed=first, image_size=64).image
                     for i in range(number)])


def real_of(train, groups=None, held_out=(), *, labels=None, symmetries=8, modality="he"):
    """What the audit reads of a dataset: training images, and val images of class "a" or `labels`.

    """
    train = np.stack(list(train))
    rows = {"train": [SimpleNamespace(file_name=f"train/a/{i:06d}.png", label="a",
                                      group=groups[i] if groups else "")
                      for i in range(len(train))],
            "val": [SimpleNamespace(number=i, label=labels[i] if labels else "a")
                    for i in range(len(held_out))], "test": []}
    return SimpleNamespace(
        classes=["a", "b"], symmetries=symmetries, modality=modality, manifest={},
        select=lambda split: rows[split], load=lambda split: (train, None),
        image=lambda row: held_out[row.number])


@pytest.fixture(scope="module")
def asked(found_once):
    return Audit(real_of(tiles(24, 1)))


def names(*numbers: int) -> tuple[str, ...]:
    return tuple(f"train/a/{number:06d}.png" for number in numbers)


def test_independent_tissue_is_no_copy_nor_are_blurred_tiles(asked):
    import cv2

    fresh = tiles(24, 2)
    found = asked.matches([*fresh, *(cv2.GaussianBlur(image, (0, 0), 2) for image in fresh[:8])])
    assert [match.how for match in found] == [""] * 32
    summary = memorised.summary(asked, ["a"] * 32, found)
    assert summary["images"] == 32 and summary["share_near_copies"] == 0
    assert summary["likeness_median"] == pytest.approx(summary["real_likeness_median"], abs=0.15)


def warped(image, degrees, scale, shift):
    import cv2

    matrix = cv2.getRotationMatrix2D((31.5, 31.5), degrees, scale)
    matrix[:, 2] += shift
    return cv2.warpAffine(image, matrix, (64, 64), borderMode=cv2.BORDER_REFLECT_101)


def worn(image):
    import cv2

    turned = np.ascontiguousarray(np.rot90(image)[:, ::-1])
    return (cv2.GaussianBlur(turned, (0, 0), 2.5) * 0.8 + 30).astype(np.uint8)


CHANGES = {"turned by 10 degrees": (REGISTERED, lambda image: warped(image, 10, 1.0, 0)),
           "turned by -20 degrees": (REGISTERED, lambda image: warped(image, -20, 1.0, 0)),
           "cropped": (REGISTERED, lambda image: warped(image, 0, 1.25, 0)),
           "shifted": (REGISTERED, lambda image: warped(image, 0, 1.0, 4)),
           "re-stained": (REGISTERED, lambda image: np.uint8(np.clip(
               image * np.array([1.1, 0.9, 1.05]) - 8, 0, 255))),
           "turned, out of focus, pale": (ALIKE, worn),
           "as it is": (SAME, lambda image: image),
           "mirrored": (SAME, lambda image: np.ascontiguousarray(image[:, ::-1]))}


def test_a_copy_is_found_whatever_was_done_to_it_and_its_original_is_named(asked):
    changed = [change(image) for _, change in CHANGES.values() for image in tiles(24, 1)[:3]]
    found = iter(asked.matches(changed))
    for what, (how, _) in CHANGES.items():
        for number in range(3):
            match = next(found)
            assert (match.how, match.of) == (how, names(number)), what
            assert (match.agreement is None) == (how != REGISTERED)


def soft(number, first=0):
    """Images of too few corners to register, [N, 64, 64, 1]."""
    import cv2

    fields = [cv2.GaussianBlur(np.random.default_rng(first + i).normal(size=(64, 64)), (0, 0), 7)
              for i in range(number)]
    return np.stack([np.uint8(np.clip(128 + 40 * each / each.std(), 0, 255))[..., None]
                     for each in fields])


def test_a_turned_copy_that_has_no_corners_is_found_all_the_same_and_a_stranger_is_not():
    known = Audit(real_of(soft(20), modality="ct"))
    turned = [warped(np.ascontiguousarray(np.rot90(image)), degrees, 1.0, 0)[..., None]
              for image, degrees in zip(soft(8), (-14, -11, -8, -13, 7, 9, 12, 13))]
    found = known.matches([*turned, *soft(20, 50)])
    assert [match.how for match in found] == [ALIKE] * 8 + [""] * 20
    assert [match.of for match in found[:8]] == [names(i) for i in range(8)]
    assert {match.turns for match in found[:8]} == {(1,)}
    everything, least = known.turned
    assert everything.flat.shape == (8 * 7 * 20, memorised.ALIKE_PX**2)  # of -15 to 15 degrees
    assert np.array_equal(everything.flat[:20], memorised.thumbnails(
        (memorised.turn(image, -15) for image in soft(20)), memorised.ALIKE_PX))
    assert least > known.threshold  # turned, strangers come closer


def test_of_half_of_one_and_half_of_another_both_are_named(asked):
    train = tiles(24, 1).astype(float)
    halves = [np.uint8(np.round((train[i] + np.rot90(train[i + 8])) / 2)) for i in range(4)]
    for number, match in enumerate(asked.matches(halves)):
        assert match.how == BLEND and sorted(match.of) == sorted(names(number, number + 8))
        turned = dict(zip(match.of, match.turns, strict=True))
        assert turned[names(number + 8)[0]] == (turned[names(number)[0]] + 1) % 4


def test_what_is_found_of_an_image_does_not_depend_on_what_else_is_asked(asked):
    images = [tiles(24, 1)[5], tiles(24, 2)[0], worn(tiles(24, 1)[2])]
    assert asked.matches(images) == [match for image in images for match in asked.matches([image])]
    assert asked.matches([]) == []


def test_the_control_is_how_many_held_out_real_images_are_flagged_by_class():
    train = tiles(24, 1)
    held_out = [train[0], tiles(24, 2)[0], tiles(24, 2)[1]]
    known = Audit(real_of(train[:8], None, held_out, labels=["a", "a", "b"]))
    summary = memorised.summary(known, ["b", "b"], known.matches([train[1], tiles(24, 2)[2]]))
    assert memorised.control(known) == {"a": {"images": 2, "copies": 1},
                                        "b": {"images": 1, "copies": 0}}
    assert summary["by_class"] == {"a": {"images": 0, "copies": 0}, "b": {"images": 2, "copies": 1}}
    assert summary["share_near_copies"] == summary["share_same"] == 0.5


def test_two_originals_are_named_only_where_they_explain_more_than_one(asked, monkeypatch):
    image = worn(tiles(24, 1)[2])
    for likeness, how in ((0.9, ALIKE), (1.0, BLEND)):
        both = Match(BLEND, names(3, 4), (0, 0), likeness)
        monkeypatch.setattr(asked, "_blend", lambda image, both=both: both)
        assert asked.matches([image])[0].how == how


def test_the_original_that_agrees_best_is_named(monkeypatch):
    monkeypatch.setattr(memorised, "registered_copies", lambda *_: iter(
        [(0, 1, 0.8), (0, 2, 0.9), (0, 0, 0.7)]))
    known = Audit(real_of(coarse(3)))
    for likest, turns in ((2, (5,)), (1, (0,))):  # of another image than the likest: not known
        monkeypatch.setattr(known, "_alike", lambda *_, likest=likest: Match(
            ALIKE, names(likest), (5,), 0.3))
        match, = known.matches(coarse(1, 50))
        assert (match.how, match.of, match.agreement) == (REGISTERED, names(2), 0.9)
        assert match.turns == turns


def test_of_ct_only_what_agrees_as_copies_of_chests_do_is_a_copy(monkeypatch):
    least = []
    monkeypatch.setattr(leaks, "registered_among", lambda *signatures, least_agreement:
                        least.append(least_agreement) or iter([]))
    for modality in ("he", "ct"):
        known = Audit(real_of(coarse(3), modality=modality))
        known.matches(coarse(1, 50))
    assert least == [0.7, 0.95]


def test_a_slice_of_another_chest_is_no_copy_and_a_changed_one_is(monkeypatch):
    monkeypatch.setattr(leaks, "shows_slices", lambda _: True)
    monkeypatch.setattr(memorised, "AT_ONCE", 2)
    train = [chest(number) for number in range(4)]
    real = real_of(train, modality="ct", symmetries=1)
    rows = real.select("train")
    real.image = lambda row: train[rows.index(row)]
    asked = [chest(8), turned(chest(1)), chest(9), chest(2), cropped(chest(3))]
    known = Audit(real)
    known.threshold = known.blend_threshold = 1  # thumbnails have no say here
    found = [(match.how, match.of if match.how else ()) for match in known.matches(asked)]
    assert found == [("", ()), (REGISTERED, names(1)), ("", ()), (SAME, names(2)),
                     (REGISTERED, names(3))]
    monkeypatch.setattr(leaks, "SLICE_DETAIL", -1)
    assert {match.how for match in known.matches([chest(8), chest(9)])} == {REGISTERED}


# ------------------------------------------------------------------ exact cases

def coarse(number: int, first: int = 0) -> np.ndarray:
    """Images of 8 x 8 random greys in fields of 4 px, so that a thumbnail is the image:
    [N, 32, 32, 3]."""
    fields = [np.random.default_rng(first + i).integers(0, 256, (8, 8, 1), np.uint8)
              for i in range(number)]
    return np.stack(fields).repeat(4, 1).repeat(4, 2).repeat(3, 3)


def correlations(images: np.ndarray) -> np.ndarray:
    """The largest correlation of each pair over quarter turns and mirrors, float [N, N]; 0 on the
    diagonal."""
    best = np.full((len(images), len(images)), -1.0)
    fields = images[:, ::4, ::4, 0].astype(float)
    for k in range(4):
        for mirrored in (False, True):
            turned = np.rot90(fields, k, (1, 2))
            turned = turned[:, ::-1] if mirrored else turned
            table = np.corrcoef(fields.reshape(len(images), -1), turned.reshape(len(images), -1))
            best = np.maximum(best, table[:len(images), len(images):])
    return best - np.diag(np.diag(best))


@pytest.mark.parametrize(("symmetries", "which"), [(8, range(8)), (2, (0, 4)), (1, (0,))])
def test_a_copy_is_seen_in_the_orientations_that_the_dataset_allows_alone(symmetries, which):
    known = Audit(real_of(coarse(12), symmetries=symmetries))
    for k in range(8):
        turned = np.rot90(coarse(1)[0], k % 4)
        match, = known.matches([np.ascontiguousarray(turned[:, ::-1] if k >= 4 else turned)])
        assert (match.how == SAME) == (k in which)


def test_thumbnails_are_grey_so_that_a_stain_makes_no_copies():
    pink = np.array([60, -40, 20]) + 0.3 * coarse(12)
    flat = memorised.thumbnails(np.uint8(np.clip(pink, 0, 255)), 8)
    assert np.abs(flat @ flat.T - np.eye(12)).max() < 0.6
    assert memorised.thumbnails(coarse(2)[..., :1], 8) == pytest.approx(
        memorised.thumbnails(coarse(2), 8), abs=1e-6)
    assert not memorised.thumbnails([np.full((32, 32, 3), 77, np.uint8)], 8).any()


@pytest.mark.parametrize(("number", "siblings"), [(150, 1), (12, 3)])
def test_the_threshold_is_half_way_from_the_99th_percentile_of_other_groups_to_identity(
        number, siblings, monkeypatch):
    """However many siblings a group holds, they must not raise it; nor must one odd pair."""
    monkeypatch.setattr(memorised, "describe", lambda image: None)  # which no threshold is of
    images = coarse(number)
    images[1] = images[0] * 0.6 + images[1] * 0.4
    groups = [f"g{i}" for i in range(number)]
    known = Audit(real_of(np.concatenate([images] * siblings), groups * siblings))
    between = np.tile(correlations(images).max(1), siblings)
    assert known.likeness == pytest.approx(list(between), abs=1e-3)
    assert known.threshold == pytest.approx((np.percentile(between, 99) + 1) / 2, abs=1e-3)
    assert known.blend_threshold < 0.999


def test_images_without_a_group_are_groups_of_their_own(monkeypatch):
    monkeypatch.setattr(memorised, "describe", lambda image: None)
    one, other = (Audit(real_of(coarse(12), groups))
                  for groups in ([f"g{i}" for i in range(12)], None))
    assert (one.threshold, one.blend_threshold) == (other.threshold, other.blend_threshold)


def test_of_one_group_no_thumbnail_makes_a_copy():
    known = Audit(real_of(coarse(4), ["g"] * 4))
    assert (known.threshold, known.blend_threshold) == (1, 1)
    near = np.uint8(coarse(1)[0] * 0.5 + coarse(4)[3] * 0.5)
    assert not {match.how for match in known.matches([coarse(1, 50)[0], near])} & {ALIKE, BLEND}


def test_of_many_training_images_evenly_spaced_ones_set_the_thresholds(monkeypatch):
    monkeypatch.setattr(memorised, "MOST_IMAGES", 3)
    known = Audit(real_of(coarse(12)))
    assert known.likeness == pytest.approx(correlations(coarse(12)).max(1)[[0, 5, 11]], abs=1e-3)
    assert known.matches(coarse(12)[7:8])[0].of == names(7)


@pytest.mark.parametrize(("share", "is_blend"), [(0.5, True), (0.7, True), (0.95, False)])
def test_a_blend_has_enough_of_both_and_only_of_other_images(share, is_blend):
    known = Known(coarse(20), 8, 8)
    mixed = coarse(1)[0] * share + coarse(20)[6] * (1 - share)
    thumbnail = memorised.thumbnails([np.uint8(mixed)], 8)
    likeness, *rows = blend_of(known.correlate(thumbnail)[0], known)
    assert (sorted(row % 20 for row in rows) == [0, 6]) == is_blend
    assert (likeness > 0.995) == is_blend
    assert len({row % 20 for row in rows}) == 2
    apart = np.zeros((1, 20), bool)
    apart[0, 6] = True
    assert blend_of(known.correlate(thumbnail, apart)[0], known)[0] < 0.995
    mirrored = (coarse(1)[0].astype(int) + coarse(1)[0][:, ::-1]) // 2
    likeness, *rows = blend_of(
        known.correlate(memorised.thumbnails([mirrored.astype(np.uint8)], 8))[0], known)
    assert len({row % 20 for row in rows}) == 2 and likeness < 0.995


def test_an_image_of_one_colour_is_nobodys_copy():
    blank = np.full((1, 32, 32, 3), 200, np.uint8)
    known = Audit(real_of(np.concatenate([coarse(4), blank])))
    assert known.matches(blank)[0].how == ""


@pytest.mark.parametrize(("share", "words"), [
    (0.0, None), (0.02, None), (0.021, "2%"), (0.3, "30%"), (1.0, "100%")])
def test_above_two_in_a_hundred_near_copies_the_set_carries_a_warning(share, words):
    warnings = memorised.warnings_of("prompt", {"share_near_copies": share})
    assert bool(warnings) == (words is not None)
    for warning in warnings:
        assert warning.startswith(f"copies: {words} of the images of prompt ")
