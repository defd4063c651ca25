"""Nuclei: found where they are, none where there are none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from lungkit.nuclei import detect as nuclei_module
from lungkit.nuclei.detect import (
    HE_FLOOR,
    PROMINENCE,
    STAINS,
    cut_fragments,
    detect_nuclei,
    guess_modality,
    haematoxylin,
    settle,
)
from lungkit.nuclei.fragments import join_fragments
from lungkit.phantom import paint

EOSIN, HAEMATOXYLIN = (225, 150, 190), (90, 60, 140)


def discs(size: int, centres: list, radius: float, *, ground: tuple, colour: tuple) -> np.ndarray:
    """Discs on an even ground, anti-aliased: uint8 [size, size, 3]."""
    y, x = np.mgrid[:size, :size]
    nearest, _ = cKDTree(np.array(centres)).query(np.stack([x, y], axis=-1))
    cover = np.clip(radius + 0.5 - nearest, 0, 1)
    image = cover[..., None] * colour + (1 - cover[..., None]) * np.array(ground)
    return np.round(image).astype(np.uint8)


def matched(found: np.ndarray, truth: np.ndarray, reach_px: float) -> int:
    """Pairs of a one-to-one assignment no farther apart than reach_px."""
    from scipy.optimize import linear_sum_assignment

    gap = np.hypot(*(found[:, None] - truth[None]).transpose(2, 0, 1))
    cost = np.where(gap <= reach_px, gap, 1e6)
    return int((cost[linear_sum_assignment(cost)] < 1e6).sum())


# ------------------------------------------------------------------ detection

@pytest.mark.parametrize(("size", "radius", "reach_px"), [
    (64, 2.2, 0.35), (224, 7.0, 0.7), (512, 16.0, 1.5)])
def test_discs_are_found_at_their_centres(size, radius, reach_px):
    at = (np.arange(5) + 0.5) / 5 * size
    centres = [(x + 0.03 * size, y - 0.02 * size) for x in at for y in at]
    nuclei = detect_nuclei(discs(size, centres, radius, ground=EOSIN, colour=HAEMATOXYLIN))
    assert len(nuclei) == 25
    assert matched(nuclei.centroids, np.array(centres), reach_px) == 25
    assert np.all(np.abs(nuclei.areas_px / (np.pi * radius**2) - 1) < 0.5)


@pytest.mark.parametrize("size", [64, 224])
def test_labels_number_the_nuclei_where_the_centroids_are(size):
    image = paint.draw_tile("lung_scc", patient=1, index=0, seed=3, image_size=size).image
    nuclei = detect_nuclei(image)
    assert nuclei.labels.shape == (size, size) and nuclei.labels.dtype == np.int32
    assert nuclei.centroids.dtype == nuclei.areas_px.dtype == np.float32
    assert nuclei.labels.max() <= len(nuclei) == len(nuclei.areas_px)
    for label in np.unique(nuclei.labels)[1:]:
        ys, xs = np.nonzero(nuclei.labels == label)
        assert np.hypot(xs.mean() - nuclei.centroids[label - 1, 0],
                        ys.mean() - nuclei.centroids[label - 1, 1]) < 1.0


def test_touching_nuclei_are_parted_and_a_pale_centre_is_not():
    pair = discs(224, [(100, 110), (114, 110)], 8, ground=EOSIN, colour=HAEMATOXYLIN)
    assert len(detect_nuclei(pair)) == 2
    vesicular = discs(224, [(110, 110)], 11, ground=EOSIN, colour=HAEMATOXYLIN)
    y, x = np.mgrid[:224, :224]
    vesicular[np.hypot(x - 110, y - 110) < 3] = EOSIN
    assert len(detect_nuclei(vesicular)) == 1


@pytest.mark.parametrize("radius", [3, 4])
def test_a_coarse_disc_is_one_nucleus(radius):
    """64 px, without anti-aliasing: enlarging leaves corners, and corners are fragments."""
    y, x = np.mgrid[:64, :64]
    for cx, cy in [(12, 12), (50, 20), (20.5, 50.5), (46.3, 48)]:
        image = np.full((64, 64, 3), EOSIN, np.uint8)
        image[np.hypot(x - cx, y - cy) < radius] = HAEMATOXYLIN
        nuclei = detect_nuclei(image)
        assert len(nuclei) == 1
        assert np.hypot(*(nuclei.centroids[0] - (cx, cy))) < 0.6


def halves(centres: list, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Discs cut in two regions at x = 50, and a height that has no neck there."""
    y, x = np.mgrid[:100, :100]
    inside = np.min([np.hypot(x - cx, y - cy) for cx, cy in centres], axis=0) <= radius
    return np.where(inside, np.where(x < 50, 1, 2), 0).astype(np.int32), inside.astype(np.float32)


def test_two_seeds_in_one_nucleus_are_joined_and_two_nuclei_are_not():
    labels, height = halves([(50, 50)], 12)
    joined = join_fragments(labels, height, height, 1.25)
    assert len(np.unique(joined)) == 2 and ((joined > 0) == (labels > 0)).all()
    neck = np.where(np.abs(np.mgrid[:100, :100][1] - 49.5) < 1, 0.5, 1)
    necked = neck.astype(np.float32) * height
    assert len(np.unique(join_fragments(labels, necked, necked, 1.25))) == 3
    labels, height = halves([(40, 50), (60, 50)], 11)
    assert len(np.unique(join_fragments(labels, height, height, 1.25))) == 3


def test_a_shape_that_fills_little_of_its_hull_is_no_nucleus():
    crescent = discs(224, [(110, 110)], 11, ground=EOSIN, colour=HAEMATOXYLIN)
    crescent[discs(224, [(117, 110)], 10, ground=(0, 0, 0), colour=(1, 1, 1)) > 0] = 0
    crescent[crescent == 0] = np.broadcast_to(EOSIN, crescent.shape)[crescent == 0]
    strict, lax = (detect_nuclei(crescent, solidity=solidity) for solidity in (0.95, 0.0))
    assert len(strict) < len(lax)


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("colour", [(250, 250, 250), EOSIN, (200, 90, 150), (190, 150, 200),
                                    (180, 180, 180), (3, 3, 3), (40, 40, 40), (0, 0, 0)])
@pytest.mark.parametrize("noise", [0, 6])
def test_an_even_field_holds_no_nuclei(size, colour, noise):
    grain = np.random.default_rng(0).normal(0, noise, (size, size, 3))
    nuclei = detect_nuclei(np.clip(grain + colour, 0, 255).astype(np.uint8))
    assert len(nuclei) == 0 and not nuclei.labels.any()
    assert nuclei.centroids.shape == (0, 2)


@pytest.mark.parametrize("colour", [(215, 50, 85), (132, 27, 165)])  # as scanned, and normalised
def test_red_cells_are_no_nuclei(colour):
    image = discs(224, [(60, 60), (120, 130), (170, 80)], 7, ground=(240, 235, 238), colour=colour)
    assert len(detect_nuclei(image)) == 0


def test_fluorescent_nuclei_are_bright_on_dark():
    centres = [(40, 50), (120, 60), (90, 150), (190, 190)]
    image = discs(224, centres, 8, ground=(10, 10, 10), colour=(160, 160, 160))
    assert guess_modality(image) == "fluorescence"
    nuclei = detect_nuclei(image)
    assert matched(nuclei.centroids, np.array(centres), 1.0) == len(nuclei) == 4
    assert len(detect_nuclei(image, modality="he")) != 4
    assert guess_modality(255 - image) == "he"


def lit(centres: list, radius: float = 8, gain: float = 110) -> np.ndarray:
    """Light of discs 0..gain, float [224, 224]."""
    return discs(224, centres, radius, ground=(0, 0, 0), colour=(gain,) * 3)[..., 0].astype(float)


FAR = [(x, y) for x in range(25, 220, 43) for y in range(25, 220, 43)]


@pytest.mark.parametrize("tilt", [0, 90, 180])
def test_fluorescent_nuclei_on_an_uneven_ground(tilt):
    y, x = np.mgrid[:224, :224] / 223
    grain = np.random.default_rng(0).normal(0, 3, (224, 224))
    light = np.clip(lit(FAR, gain=60) + tilt * (x + 0.5 * y) / 1.5 + grain + 8, 0, 255)
    image = np.repeat(np.uint8(light)[..., None], 3, axis=2)
    nuclei = detect_nuclei(image, modality="fluorescence")
    assert matched(nuclei.centroids, np.array(FAR), 1.5) == len(nuclei) == len(FAR)
    assert np.all(np.abs(nuclei.areas_px / (np.pi * 64) - 1) < 0.3)


def test_touching_fluorescent_nuclei_are_parted():
    pairs = [(60, 60), (74, 60), (150, 150), (150, 165)]
    image = np.repeat(np.uint8(lit(pairs) + 10)[..., None], 3, axis=2)
    nuclei = detect_nuclei(image)
    assert matched(nuclei.centroids, np.array(pairs), 2.0) == len(nuclei) == 4


@pytest.mark.parametrize("channels", ["blue and green", "blue and red", "grey", "red alone"])
def test_the_nuclear_channel_of_a_composite_is_used(channels):
    image = np.full((224, 224, 3), 8, np.uint8)
    nuclear, other = {"blue and green": (2, 1), "blue and red": (2, 0), "grey": (slice(None), None),
                      "red alone": (0, None)}[channels]
    image[..., nuclear] += np.uint8(lit(FAR) if channels != "grey" else lit(FAR)[..., None])
    if other is not None:  # a cytoplasm marker, brighter than the nuclei, and elsewhere
        image[..., other] += np.uint8(lit([(x + 14, y + 12) for x, y in FAR[::2]], 13, gain=220))
    nuclei = detect_nuclei(image, modality="fluorescence")
    assert matched(nuclei.centroids, np.array(FAR), 1.0) == len(nuclei) == len(FAR)


@pytest.mark.parametrize("label", paint.CLASSES)
def test_simulated_dapi_is_found_again(label):
    hits = found = true = 0
    for patient in range(2):
        which = {"patient": patient, "index": 0, "seed": 1005, "image_size": 224}
        tile, painted = paint.draw_painted(label, **which)
        dapi = paint.photograph(painted, label, **which, num_planes=1)[0, 0].astype(float)
        low, high = np.percentile(dapi, (1, 99.8))
        image = np.uint8(np.clip((dapi - low) / (high - low), 0, 1) * 255)
        nuclei = detect_nuclei(np.repeat(image[..., None], 3, axis=2), modality="fluorescence")
        hits += matched(nuclei.centroids, tile.centroids, 6)
        found, true = found + len(nuclei), true + len(tile.centroids)
    assert 2 * hits / (found + true) > 0.88


def test_more_than_255_nuclei():
    at = np.arange(20) * 25 + 20.0
    centres = [(x, y) for x in at for y in at]
    nuclei = detect_nuclei(discs(512, centres, 9, ground=EOSIN, colour=HAEMATOXYLIN))
    assert len(nuclei) == nuclei.labels.max() == 400


@pytest.mark.parametrize("label", paint.CLASSES)
def test_simulated_tissue_is_found_again_in_coarse_images(label):
    hits = found = true = 0
    for patient in range(3):
        tile = paint.draw_tile(label, patient=patient, index=0, seed=5, image_size=64)
        nuclei = detect_nuclei(tile.image)
        hits += matched(nuclei.centroids, tile.centroids, 4 * 64 / 180)
        found, true = found + len(nuclei), true + len(tile.centroids)
    assert hits / found > 0.85, f"precision {hits / found:.2f}"
    assert hits / true > 0.6, f"recall {hits / true:.2f}"


@pytest.mark.parametrize("label", paint.CLASSES)
def test_f1_on_simulated_tissue_is_95(label):
    """Tiles that neither the fit (seeds below 50) nor its choices (below 100) have seen."""
    hits = total = 0
    for seed in range(1000, 1006):
        tile = paint.draw_tile(label, patient=seed % 7, index=seed % 3, seed=seed)
        nuclei = detect_nuclei(tile.image)
        hits += matched(nuclei.centroids, tile.centroids, 6)
        total += len(nuclei) + len(tile.centroids)
    assert 2 * hits / total >= 0.95


# ------------------------------------------------------------------ stain, exactly

def stained(haematoxylin, eosin, dab=0.0) -> np.ndarray:
    """Pixels [H, W, 3] of these concentrations by Beer and Lambert's law, natural logarithm."""
    amounts = np.stack(np.broadcast_arrays(haematoxylin, eosin, dab), -1)
    return np.clip(np.round(256 * np.exp(-amounts @ STAINS) - 1), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("amounts", "expected"), [
    ((0.0, 0.0), 0.0), ((1.0, 0.0), 1.0), ((0.8, 0.5), 0.8), ((0.6, 0.6), 0.6),
    ((0.6, 0.8), 0.4),  # a surplus of eosin is taken off
    ((0.3, 0.9), 0.0),
])
def test_haematoxylin_is_unmixed_from_rgb_and_a_surplus_of_eosin_taken_off(amounts, expected):
    found = haematoxylin(stained(*np.full((2, 4, 6), np.array(amounts)[:, None, None])))
    assert found.shape == (4, 6) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert found.min() >= 0


def test_the_stain_of_a_pixel_lies_at_its_row_and_column():
    amounts = np.zeros((5, 9))
    amounts[1, 7] = 1.0
    assert np.unravel_index(haematoxylin(stained(amounts, 0.0)).argmax(), (5, 9)) == (1, 7)


@pytest.mark.parametrize(("colour", "expected"), [
    ((200, 90, 150), "he"), ((120, 60, 90), "he"), ((95, 95, 95), "fluorescence"),
    ((0, 0, 90), "fluorescence"), ((0, 0, 220), "he")])
def test_the_modality_is_that_of_the_brightest_channel_of_most_pixels(colour, expected):
    image = np.full((20, 20, 3), colour, np.uint8)
    image[:9] = 255 if expected == "fluorescence" else 0
    assert guess_modality(image) == expected


def test_otsus_threshold_parts_two_kinds_of_values():
    from skimage.filters import threshold_otsu

    rng = np.random.default_rng(0)
    values = np.r_[rng.normal(0.2, 0.05, 3000), rng.normal(1.1, 0.2, 400)].astype(np.float32)
    assert nuclei_module._otsu(values) == pytest.approx(threshold_otsu(values, nbins=256), abs=0.01)


# ------------------------------------------------------------------ which regions are nuclei

PX_PER_UM = 2.0  # of the regions below: 9 um2 are 36 px, 600 um2 are 2,400 px


def block(top: int, left: int, height: int, width: int, size: int = 80) -> np.ndarray:
    labels = np.zeros((size, size), np.int32)
    labels[top:top + height, left:left + width] = 1
    return labels


@pytest.mark.parametrize(("labels", "kept"), [
    (block(20, 30, 6, 6), 1), (block(20, 30, 5, 7), 0),  # 36 and 35 px within the image
    (block(0, 30, 3, 6), 1), (block(77, 30, 3, 6), 1),   # 18 px at each of its four borders
    (block(30, 0, 6, 3), 1), (block(30, 77, 6, 3), 1),
    (block(0, 30, 1, 17), 0), (block(1, 30, 3, 6), 0),   # 17 px there; 18 beside it
    (block(10, 10, 48, 50), 1), (block(10, 10, 49, 49), 0),  # 2,400 and 2,401 px
    (block(0, 0, 48, 50), 1), (block(0, 0, 49, 49), 0)])
def test_a_nucleus_has_9_to_600_um2_and_half_of_9_where_the_border_cuts_it(labels, kept):
    assert len(settle(labels, PX_PER_UM, 0.75, 80)) == kept


@pytest.mark.parametrize(("solidity", "kept"), [(0.5, 1), (0.869, 1), (0.87, 0), (1, 0)])
def test_a_nucleus_fills_at_least_the_asked_share_of_its_hull(solidity, kept):
    labels = block(20, 20, 20, 20)
    labels[20:30, 20:30] = 0  # an L of 300 px; its hull holds 9 + 8 + ... + 1 more, 0.8696
    assert len(settle(labels, PX_PER_UM, solidity, 80)) == kept


@pytest.mark.parametrize("size", [80, 40, 20])
def test_nuclei_are_numbered_and_placed_in_the_raster_of_the_image(size):
    labels = block(9, 41, 8, 16)
    labels[2, 2] = 2                    # too small: its number is given to the next
    labels[60:72, 20:28] = 3
    nuclei, scale = settle(labels, PX_PER_UM, 0.75, size), size / 80
    assert nuclei.labels.shape == (size, size) and nuclei.labels.dtype == np.int32
    expected = np.array([[49, 13], [24, 66]]) * scale - 0.5  # (x, y), pixels' centres whole
    np.testing.assert_allclose(nuclei.centroids, expected, atol=1e-5)
    np.testing.assert_allclose(nuclei.areas_px, np.array([128, 96]) * scale**2)
    for number, (x, y) in enumerate(nuclei.centroids, start=1):
        rows, columns = np.nonzero(nuclei.labels == number)
        np.testing.assert_allclose([columns.mean(), rows.mean()], [x, y], atol=0.51)
        assert len(rows) == pytest.approx(nuclei.areas_px[number - 1], abs=1)


@pytest.mark.parametrize(("field_um", "found"), [(180, 1), (90, 1), (30, 0), (1000, 0)])
def test_the_sizes_searched_for_are_in_micrometres_of_the_field(field_um, found):
    image = discs(224, [(110, 110)], 7, ground=EOSIN, colour=HAEMATOXYLIN)
    assert len(detect_nuclei(image, field_um=field_um)) == found


# ------------------------------------------------------------------ the mask and its cuts

def test_a_wide_lumen_is_not_filled_into_a_nucleus():
    y, x = np.mgrid[:224, :224]
    gap = np.hypot(x - 110, y - 110)
    gland = np.where(((gap > 10) & (gap < 15))[..., None], HAEMATOXYLIN, EOSIN).astype(np.uint8)
    assert detect_nuclei(gland, solidity=0.0).labels[104:117, 104:117].max() == 0


def test_a_slow_change_of_stain_is_no_nucleus_and_a_nucleus_on_it_is_one():
    slope = np.linspace(0.2, 1.6, 224)[None].repeat(224, 0)
    assert len(detect_nuclei(stained(slope, 0.2), modality="he")) == 0
    y, x = np.mgrid[:224, :224]
    spots = [(60, 60), (110, 150), (165, 70)]
    for cx, cy in spots:
        slope = slope + 0.8 * (np.hypot(x - cx, y - cy) < 7)
    nuclei = detect_nuclei(stained(slope, 0.2), modality="he")
    assert matched(nuclei.centroids, np.array(spots), 1.5) == len(nuclei) == 3


def test_a_nucleus_rises_above_its_threshold_by_half_of_the_floor():
    y, x = np.mgrid[:224, :224]
    around = np.zeros((224, 224))
    for cx, cy in [(40, 40), (180, 40), (40, 180), (180, 180)]:  # these set Otsu's threshold
        around += 0.7 * (np.hypot(x - cx, y - cy) < 8)
    least = PROMINENCE * HE_FLOOR
    for above, found in ((0.5 * least, 4), (2.0 * least, 5)):
        middle = (HE_FLOOR + above) * (np.hypot(x - 110, y - 110) < 9)
        assert len(detect_nuclei(stained(around + middle, 0.1), modality="he")) == found


@pytest.mark.parametrize("turned", [False, True])
def test_the_watershed_cuts_touching_nuclei_at_their_neck(turned):
    y, x = np.mgrid[:224, :224]
    big, small = np.hypot(x - 90, y - 110) < 12, np.hypot(x - 109, y - 110) < 8
    stain = 1.0 * (big | small)
    labels, *_ = cut_fragments(stained(stain.T if turned else stain, 0.1), "he", 224 / 180)
    labels = labels.T if turned else labels
    assert len(np.unique(labels)) == 3
    assert (labels[106:115, 80:98] == labels[110, 90]).all()
    assert (labels[106:115, 104:114] == labels[110, 109]).all()
    assert labels[110, 90] != labels[110, 109]


def test_a_pale_waist_is_cut_where_the_outline_has_no_neck():
    y, x = np.mgrid[:224, :224]
    capsule = (np.abs(y - 110) < 8) & (np.abs(x - 110) < 24)
    for dip, count in ((0.0, 1), (0.7, 2)):
        stain = capsule * (1.6 - dip * np.exp(-((x - 110) / 5.0) ** 2))
        labels, height, stained_as, excess, floor = cut_fragments(stained(stain, 0.1), "he",
                                                                  224 / 180)
        inner = np.unique(labels[106:115, 95:126])
        assert len(inner[inner > 0]) == count, dip
        assert floor == HE_FLOOR and stained_as[110, 90] == pytest.approx(1.6, abs=0.05)
        assert height.shape == excess.shape == (224, 224)


@pytest.mark.parametrize("ground", [8, 60, 120])
@pytest.mark.parametrize(("gain", "found"), [(28, 0), (60, len(FAR))])
def test_light_counts_above_the_background_whatever_that_is(ground, gain, found):
    image = np.repeat(np.uint8(lit(FAR, gain=gain) + ground)[..., None], 3, axis=2)
    assert len(detect_nuclei(image, modality="fluorescence")) == found


def test_a_pale_centre_belongs_to_its_nucleus():
    y, x = np.mgrid[:224, :224]
    gap = np.hypot(x - 110, y - 110)
    vesicular = np.where(((gap > 3) & (gap < 9))[..., None], HAEMATOXYLIN, EOSIN).astype(np.uint8)
    nuclei = detect_nuclei(vesicular)
    assert len(nuclei) == 1 and (nuclei.labels[gap < 7] == 1).all()
    assert nuclei.areas_px[0] == pytest.approx(np.pi * 81, rel=0.1)
