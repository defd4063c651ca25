"""Near-duplicates are found whatever was done to them, and unrelated images are left apart."""

import csv
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from lungkit.audit import candidates, copies as siblings, registration, signature
from lungkit.audit.copies import find_pairs, link
from lungkit.audit.signature import NUM_FEATURES, describe
from lungkit.phantom.paint import draw_fluorescence, draw_tile
from lungkit.run.workers import mapper

LABELS = ("lung_aca", "lung_n", "lung_scc")


def turned(image, degrees, border=cv2.BORDER_REFLECT_101, scale=1.0):
    side = image.shape[0]
    matrix = cv2.getRotationMatrix2D(((side - 1) / 2,) * 2, degrees, scale)
    return cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_CUBIC, borderMode=border)


def resized(image, width, height):
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def compressed(image, quality):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)


def recoloured(image):
    return np.uint8(np.clip(image * np.array([1.06, 0.94, 1.03]) - 8, 0, 255))


CHANGES = {
    "turned 25 degrees, reflected border": lambda image: turned(image, 25),
    "turned back, black border": lambda image: turned(image, -20, cv2.BORDER_CONSTANT),
    "a quarter turn": lambda image: np.rot90(image).copy(),
    "flipped, compressed at 60": lambda image: compressed(image[:, ::-1].copy(), 60),
    "upside down and turned": lambda image: turned(image[::-1].copy(), 12),
    "enlarged 1.5 times, stretched 4:3": lambda image: resized(
        turned(image, -8, scale=1.5)[28:196], 224, 224),
    "cropped to a corner of 0.8": lambda image: image[:179, :179],
    "at 0.6 of the size": lambda image: resized(image, 134, 134),
    "at three times the size": lambda image: resized(image, 672, 672),
    "recoloured and flipped": lambda image: recoloured(image[:, ::-1]),
    "faded to a tenth of the contrast": lambda image: np.uint8(200 + image / 10.0),
    "grey": lambda image: cv2.cvtColor(image, cv2.COLOR_RGB2GRAY),
}


@pytest.fixture(scope="module")
def tiles():
    """Two patients; in both, tiles of the same stain and slide."""
    return [draw_tile(label, patient=patient, index=index).image
            for patient in (0, 1) for label in LABELS for index in range(2)]


@pytest.fixture(scope="module")
def described(tiles):
    return [describe(tile) for tile in tiles]


@pytest.fixture(scope="module")
def copies(tiles):
    """Three copies of each tile, each change on several tiles: (number of the tile, signature)."""
    changes = list(CHANGES.values())
    return [(i, describe(changes[(3 * i + k) % len(changes)](tile)))
            for i, tile in enumerate(tiles) for k in range(3)]


@pytest.mark.parametrize("name", CHANGES)
def test_a_copy_is_found_after(name, tiles, described):
    changed = [describe(CHANGES[name](tiles[i])) for i in (0, 4)]
    assert link([*described[:6], *changed]) == [0, 1, 2, 3, 4, 5, 0, 4]


def test_groups_are_the_tiles_and_tiles_of_one_patient_stay_apart(described, copies):
    signatures = described + [signature for _, signature in copies]
    assert link(signatures) == [*range(len(described)), *(i for i, _ in copies)]


def test_groups_do_not_depend_on_order_nor_on_processes(copies, forked_workers):
    signatures = [signature for _, signature in copies[:18]]
    groups = link(signatures)
    order = np.random.default_rng(0).permutation(len(signatures)).tolist()
    with mapper(2) as mapped:
        shuffled = link([signatures[i] for i in order], mapped)
    members = {frozenset(np.flatnonzero(np.array(groups) == g).tolist()) for g in groups}
    assert members == {frozenset(order[i] for i in np.flatnonzero(np.array(shuffled) == g))
                       for g in shuffled}
    assert all(group <= i and groups[group] == group for i, group in enumerate(groups))
    how = {frozenset(pair): result for *pair, result in find_pairs(signatures)}
    assert how == {frozenset((order[i], order[j])): result
                   for i, j, result in find_pairs([signatures[i] for i in order])}


def test_each_pair_is_registered_once_and_says_how_well(copies):
    pairs = list(find_pairs([signature for _, signature in copies]))
    assert len({pair[:2] for pair in pairs}) == len(pairs) > len(copies) / 2
    assert all(i < j and copies[i][0] == copies[j][0] for i, j, _ in pairs)
    assert all(registration.LEAST_AGREEMENT <= how.agreement <= 1 and how.overlap <= 1
               for *_, how in pairs)


def test_registration_knows_how_much_is_shared(tiles):
    left, right = describe(tiles[0][:, :150]), describe(tiles[0][:, 74:])  # 76 of 150 columns
    how = registration.register(left, right)
    assert how.inliers >= registration.LEAST_INLIERS and how.agreement > 0.9
    assert how.overlap == pytest.approx(76 / 150, abs=0.06)
    assert registration.register(describe(tiles[0]), left).overlap == pytest.approx(1, abs=0.06)


def test_fields_that_share_a_strip_are_no_copies(tiles):
    wide = np.hstack([tiles[5], tiles[6]])
    fields = [describe(wide[:, :224]), describe(wide[:, 146:370])]
    how = registration.register(*fields)
    # so only the share tells
    assert how.inliers >= registration.LEAST_INLIERS and how.agreement > 0.9
    assert how.overlap == pytest.approx(78 / 224, abs=0.05) and not how.are_copies
    assert link(fields) == [0, 1]


def test_a_mark_that_unrelated_tiles_share_does_not_join_them(tiles):
    """As a logo or a ruler in the picture; this one takes a quarter of it, in black and white."""
    mark = np.random.default_rng(0).integers(0, 2, (9, 9), np.uint8).repeat(12, 0).repeat(12, 1)
    marked = [tiles[0].copy(), tiles[5].copy()]
    for tile in marked:
        tile[58:166, 58:166] = 255 * mark[..., None]
    signatures = [describe(tile) for tile in marked]
    how = registration.register(*signatures)
    assert how.inliers >= registration.LEAST_INLIERS and how.overlap > 0.9
    assert not how.are_copies and link(signatures) == [0, 1]


def test_the_index_proposes_a_flipped_copy_before_any_other(tiles, described, monkeypatch):
    monkeypatch.setattr(candidates, "CANDIDATES", 1)
    flipped = [describe(turned(tile[:, ::-1].copy(), 10)) for tile in tiles]
    proposed = set(candidates.propose(described + flipped))
    assert {(i, i + len(tiles)) for i in range(len(tiles))} == proposed


def test_fluorescence_is_seen_too():
    nuclei = [draw_fluorescence("lung_aca", patient=0, index=index)[0, 0] for index in range(3)]
    nuclei = [np.uint8(np.clip(channel / np.percentile(channel, 99.9), 0, 1) * 255)
              for channel in nuclei]
    signatures = [describe(image) for image in (*nuclei, turned(nuclei[1][:, ::-1].copy(), 15))]
    assert link(signatures) == [0, 1, 2, 1]


def test_images_without_features_are_alone_whatever_their_shape(tiles):
    rng = np.random.default_rng(0)
    blank = [np.full((224, 224, 3), 255, np.uint8), np.zeros((224, 224), np.uint8),
             np.full((224, 224, 3), 240, np.uint8), np.zeros((1, 1, 3), np.uint8),
             np.zeros((2, 900, 3), np.uint8), np.full((3000, 10, 3), 7, np.uint8),
             *rng.normal(240, 2, (3, 224, 224, 3)).clip(0, 255).astype(np.uint8)]
    signatures = [describe(image) for image in (*blank, tiles[0], np.rot90(tiles[0]))]
    alone = list(range(len(blank) + 1))
    assert link(signatures) == [*alone, alone[-1]]
    assert link([describe(blank[0])] * 3) == [0, 1, 2]  # equal files are joined by their hash
    assert link([]) == [] and link(signatures[-1:]) == [0]


def test_a_signature_is_small_and_of_the_pixels_alone(tiles):
    signature = describe(tiles[0])
    assert len(pickle.dumps(signature)) <= 10_000
    again = pickle.loads(pickle.dumps(describe(tiles[0].copy())))
    assert all(np.array_equal(one, other)
               for one, other in zip(vars(signature).values(), vars(again).values()))
    assert len(signature.codes) == NUM_FEATURES


def test_mirrored_descriptors_are_the_mirror_images(tiles):
    """The permutation against OpenCV's own descriptors of the mirrored image, at the same places.
    """
    grey = cv2.cvtColor(tiles[0], cv2.COLOR_RGB2GRAY)
    sift = cv2.SIFT_create()
    points, values = sift.detectAndCompute(grey, None)
    mirrored = [cv2.KeyPoint(223 - p.pt[0], p.pt[1], p.size, (180 - p.angle) % 360, p.response,
                             p.octave) for p in points]
    kept, found = sift.compute(grey[:, ::-1].copy(), mirrored)
    assert len(kept) == len(points)
    expected = values[:, signature.MIRROR]
    cosine = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(
        expected, axis=1)
    assert np.median(cosine) > 0.97


@pytest.mark.skipif("LC25000" not in os.environ, reason="needs LC25000=<folder of groups.csv>")
def test_copies_of_lc25000_are_found():
    root = Path(os.environ["LC25000"])
    with open(root / "groups.csv", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    wanted = sorted({row["group"] for row in rows})[::15]
    rows = [row for row in rows if row["group"] in wanted]
    images = [cv2.imread(str(root / "lung_image_sets" / row["file_name"])) for row in rows]
    groups = link([describe(image[..., ::-1]) for image in images])
    assert len(rows) == 5 * len(wanted) == 150
    wrong = sum(rows[group]["group"] != row["group"] for row, group in zip(rows, groups))
    assert wrong == 0 and len(set(groups)) <= len(wanted) + 1


# ------------------------------------------------------------------ many copies, few features

def speckled(tile, number):
    """`tile` with one pixel changed: a file of its own."""
    tile = tile.copy()
    tile[number // 100, number % 100] = 7 * number % 251
    return tile


def test_many_copies_do_not_hide_one_another(monkeypatch):
    """Eight of each where four are candidates: they are grouped when they are asked about again."""
    monkeypatch.setattr(candidates, "CANDIDATES", 4)
    monkeypatch.setattr(siblings, "CROWD", 4)
    tile = draw_tile("lung_aca", patient=3, index=0, image_size=160).image
    other = draw_tile("lung_aca", patient=4, index=0, image_size=160).image
    crowds = [tile, np.ascontiguousarray(turned(tile, 20)[:, ::-1]), other, turned(other, 70)]
    signatures = [describe(speckled(image, number)) for image in crowds for number in range(8)]
    assert link(signatures) == [0] * 16 + [16] * 16


def test_a_part_of_a_long_list_is_looked_at(monkeypatch):
    monkeypatch.setattr(candidates, "LONGEST_LIST", 4)
    tile = draw_tile("lung_aca", patient=3, index=0, image_size=160).image
    assert link([describe(speckled(tile, number)) for number in range(16)]) == [0] * 16


def test_copies_of_identical_files_are_found():
    tiles = [draw_tile("lung_n", patient=p, index=0, image_size=160).image for p in range(4)]
    signatures = [describe(image) for image in (*tiles, *(turned(tile, 10) for tile in tiles))]
    groups = link([signature for signature in signatures for _ in range(20)])
    assert groups == [20 * p for p in range(4) for _ in range(20)] * 2


def nearly_all_air(seed):
    """White, with three smooth clouds: too little for eight features."""
    y, x = np.mgrid[:96, :96]
    rng = np.random.default_rng(seed)
    clouds = sum(np.exp(-((x - left) ** 2 + (y - top) ** 2) / (2 * wide ** 2))
                 for left, top, wide in rng.uniform((10, 10, 5), (86, 86, 14), (3, 3)))
    return np.uint8(245 - np.minimum(clouds, 1)[..., None] * (30, 110, 60))


def test_copies_without_features_are_found():
    tiles = [nearly_all_air(seed) for seed in range(12)]
    copies = [np.ascontiguousarray(change(tile)) for tile, change in zip(tiles, (
        lambda t: np.rot90(t), lambda t: t[:, ::-1], lambda t: np.rot90(t[::-1], 3),
        lambda t: cv2.resize(t, (70, 70), interpolation=cv2.INTER_AREA),
        lambda t: cv2.imdecode(cv2.imencode(".jpg", t, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], 1)))]
    signatures = [describe(tile) for tile in tiles + copies]
    assert sum(len(s.codes) < registration.LEAST_INLIERS for s in signatures) > 10
    assert link(signatures) == [*range(12), *range(len(copies))]


# ------------------------------------------------------------------ rules, figure by figure

@pytest.mark.parametrize("inliers, agreement, overlap, are_copies", [
    (8, 0.7, 0.4, True), (7, 1.0, 1.0, False), (96, 0.69, 1.0, False), (96, 1.0, 0.39, False)])
def test_copies_agree_in_features_in_pixels_and_in_most_of_the_field(inliers, agreement, overlap,
                                                                     are_copies):
    assert registration.Registration(inliers, agreement, overlap).are_copies == are_copies


def drawn_features(count=20, extra=10, seed=0):
    """Places complex [count] on a grid, angles, diameters, and levels [count + extra, 128]."""
    rng = np.random.default_rng(seed)
    at = (60 + 8.0 * (np.arange(count) % 5)) + 1j * (60 + 8.0 * (np.arange(count) // 5))
    levels = (rng.random((count + extra, 128)) > 0.8) * rng.integers(8, 16, (count + extra, 128))
    return at, rng.uniform(0, 360, count), rng.uniform(6, 9, count), levels.astype(np.uint8)


def signed(at, angles, diameters, levels, seed):
    """A Signature of these features, and of others anywhere for the levels that are left."""
    rng = np.random.default_rng(seed)
    count, extra = len(at), len(levels) - len(at)
    places = np.c_[at.real, at.imag, diameters, angles % 360]
    places = np.r_[places, np.c_[rng.uniform(0, 160, (extra, 2)), np.full(extra, 7.0),
                                 rng.uniform(0, 360, extra)]].astype(np.float16)
    thumb = rng.integers(0, 256, (signature.THUMB_PX,) * 2, dtype=np.uint8)
    assert len(places) == count + extra
    return signature.Signature(levels[:, ::2] << 4 | levels[:, 1::2], places, thumb, (160, 160))


def registered(change, *, count=20, mirrored=False, growth=1.0, degrees=0.0):
    """Inliers of `count` features with their places changed, among ten that match nothing."""
    at, angles, diameters, levels = drawn_features(count)
    other = levels[:, signature.MIRROR] if mirrored else levels.copy()
    other[count:] = drawn_features(count, seed=9)[3][count:]
    one = signed(at, angles, diameters, levels, seed=1)
    two = signed(change(at), degrees + (-angles if mirrored else angles), diameters * growth,
                 other, seed=2)
    return registration.register(one, two).inliers


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("growth, degrees", [(1.0, 0), (0.5, 130), (2.8, 40), (1.3, 275)])
def test_any_turn_flip_and_scale_is_registered(mirrored, growth, degrees):
    spin = growth * np.exp(1j * np.radians(degrees))
    assert registered(lambda at: spin * (at.conj() if mirrored else at) + 3 - 9j,
                      mirrored=mirrored, growth=growth, degrees=degrees) == 20


@pytest.mark.parametrize("growth, found", [(0.34, 20), (3.0, 20), (0.28, 0), (3.5, 0)])
def test_a_scale_beyond_three_is_no_copy(growth, found):
    assert registered(lambda at: growth * at, growth=growth) == found


@pytest.mark.parametrize("stretch, found", [(4 / 3, 20), (1.9, 20), (2.2, 0)])
def test_oblongs_made_square_are_registered_and_stranger_stretches_are_not(stretch, found):
    assert registered(lambda at: stretch * at.real + 1j * at.imag, growth=stretch ** 0.5) == found


def test_features_agree_in_place_angle_and_size():
    rng = np.random.default_rng(5)
    least = registration.LEAST_INLIERS
    assert registered(lambda at: at, degrees=180, growth=1.0) < least  # turned, and yet in place
    assert registered(lambda at: at, degrees=rng.uniform(0, 360, 20)) < least
    assert registered(lambda at: at, growth=2.2 ** (np.arange(20) % 6 - 2.0)) < least
    assert registered(lambda at: at.conj() + 150j) < least
    assert registered(lambda at: rng.permutation(at)) < least
    assert registered(lambda at: at + 40 * (np.arange(20) < 6)) == 14


def test_eight_features_in_different_places_are_needed():
    assert registered(lambda at: at, count=8) == 8
    assert registered(lambda at: at, count=7) < 8
    at, angles, diameters, levels = drawn_features(extra=0)
    few = signed(at[np.arange(20) // 4 * 4], angles, diameters, levels, seed=1)
    assert registration.register(few, few).inliers == 5


def without_features(thumb, features=0):
    return signature.Signature(np.zeros((features, 64), np.uint8),
                              np.zeros((features, 4), np.float16), thumb, (160, 160))


def test_thumbnails_link_what_has_too_few_features_in_every_turn_and_flip():
    rng = np.random.default_rng(0)
    thumb = cv2.GaussianBlur(rng.integers(0, 256, (48, 48), dtype=np.uint8), (0, 0), 3)
    turns = [np.rot90(side, turn) for side in (thumb, thumb[:, ::-1]) for turn in range(4)]
    pairs = siblings.plain_copies([without_features(np.ascontiguousarray(t)) for t in turns])
    assert {(0, i) for i in range(1, 8)} <= set(pairs)
    noise = rng.normal(0, thumb.std(), thumb.shape)
    for share, linked in ((0.15, True), (0.3, False)):  # correlations of 0.989 and 0.958
        noisy = np.uint8(np.clip(thumb + share * noise, 0, 255))
        found = siblings.plain_copies([without_features(thumb), without_features(noisy)])
        assert bool(found) == linked
    for features, linked in (((0, 0), True), ((7, 23), True), ((7, 24), False), ((8, 8), False)):
        found = siblings.plain_copies([without_features(thumb, n) for n in features])
        assert bool(found) == linked
    blank = np.uint8(200 + 3 * np.sign(thumb - thumb.mean(dtype=float)))
    assert siblings.plain_copies([without_features(blank)] * 2) == []


def test_what_has_too_few_features_is_found_among_others_by_its_thumbnail():
    rng = np.random.default_rng(1)
    one, *different = (cv2.GaussianBlur(rng.integers(0, 256, (48, 48), dtype=np.uint8), (0, 0), 3)
                       for _ in range(3))
    turned = np.ascontiguousarray(np.rot90(one))
    asked, others = [[without_features(thumb) for thumb in side]
                     for side in ((different[0], one), (different[1], turned))]
    assert [pair[:2] for pair in siblings.registered_among(asked, others)] == [(1, 1)]
    assert not list(siblings.registered_among([*asked, asked[1]], others[:1]))  # nor themselves


def test_groups_are_joined_through_others_and_named_by_their_first(monkeypatch):
    pairs = (5, 3), (7, 8), (8, 3), (2, 7)
    monkeypatch.setattr(siblings, "plain_copies", lambda signatures: pairs)
    blank = describe(np.full((64, 64, 3), 255, np.uint8))
    assert link([blank] * 9) == [0, 1, 2, 2, 4, 2, 6, 2, 2]
