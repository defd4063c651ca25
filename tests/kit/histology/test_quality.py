"""Quality control of a tile: real degradations of simulated tissue, and of LC25000 where given."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from lungkit.formats.slides import open_slide
from lungkit.histology import background, quality
from lungkit.histology.quality import QC_COLUMNS, REASONS, Limits, Quality, measure, qc_row, reason
from lungkit.phantom.paint import CLASSES, draw_tile

LC25000 = Path(os.environ.get("LC25000") or "no-lc25000")  # its folder: the test on it runs
SLIDES = Path(os.environ.get("SLIDES") or "no-slides")     # the same
# (left, top) of squares of 128 px: dark keratin and nuclei, and green ink at the tissue's margin
DARK = [(1174, 1675), (1174, 1803), (1174, 2059), (1558, 2571)]
MARGIN = [(1686, 1163), (1686, 1803), (1686, 1931), (1814, 1291), (1814, 2187)]


def judged(tile, scale=None):
    """Balance, mask and measure uint8 [S, S, 3]: (quality, reason)."""
    white = background.balance_white(tile, background.background_light(tile))
    quality = measure(white, background.tissue_mask(white), scale=scale)
    return quality, reason(quality)


def judged_grey(values):
    """The same for grey values as stored, bright or dark."""
    tile, bright = background.enhance_grey(values)
    quality = measure(tile, background.tissue_mask(255 - tile if bright else tile))
    return quality, reason(quality)


def blurred(tile, sigma_px):
    return cv2.GaussianBlur(tile, (0, 0), sigma_px)


def exposed(tile, times):
    return np.uint8(np.clip(tile.astype(float) * times, 0, 255))


def inked(tile, colour, width_px, seed=0):
    """Draw a stroke of a pen through the tile: ink of `colour` lies on the glass, out of focus."""
    ends = np.random.default_rng(seed).integers(0, tile.shape[0], (2, 2))
    ends[:, 0] = 0, tile.shape[1] - 1
    stroke = cv2.polylines(np.zeros(tile.shape[:2], np.float32), [ends], False, 1.0, width_px)
    stroke = cv2.GaussianBlur(stroke, (0, 0), 2)[..., None]
    return np.uint8(tile * (1 - stroke + stroke * np.array(colour) / 255))


@pytest.fixture(scope="module")
def drawn():
    """Five simulated tiles a class of five patients, their Tile records."""
    return [draw_tile(label, patient=patient, index=1, seed=5)
            for label in CLASSES for patient in range(5)]


@pytest.fixture(scope="module")
def tiles(drawn):
    return [tile.image for tile in drawn]


def test_sharp_clean_tiles_are_kept(tiles):
    assert [judged(tile)[1] for tile in tiles] == [None] * len(tiles)
    small = [cv2.resize(tile, (64, 64), interpolation=cv2.INTER_AREA) for tile in tiles]
    assert [judged(tile)[1] for tile in small] == [None] * len(tiles)


def test_blurred_tiles_are_out_of_focus_and_slightly_soft_ones_are_not(tiles):
    for tile in tiles:
        found = [judged(blurred(tile, sigma) if sigma else tile) for sigma in (0, 1, 2, 3, 5)]
        sharpness = [quality.sharpness for quality, _ in found]
        assert sharpness == sorted(sharpness, reverse=True)
        assert [why for _, why in found][:2] == [None, None]
        assert [why for _, why in found][3:] == ["out of focus"] * 2


def test_grain_and_compression_do_not_pass_for_sharpness(tiles):
    rng = np.random.default_rng(0)
    for tile in tiles:
        grainy = blurred(tile, 3) + rng.normal(0, 2, tile.shape)
        packed = cv2.imencode(".jpg", blurred(tile, 3), [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
        assert judged(np.uint8(np.clip(grainy, 0, 255)))[1] == "out of focus"
        assert judged(cv2.imdecode(packed, cv2.IMREAD_COLOR))[1] == "out of focus"


def test_pale_tissue_is_as_sharp_as_dark(tiles):
    for tile in tiles:
        white = background.balance_white(tile, background.background_light(tile))
        pale = np.uint8(np.round(255 * (white / 255.0) ** 0.4))
        assert judged(pale)[1] is None
        assert judged(pale)[0].contrast < 0.6 * judged(tile)[0].contrast
        assert judged(pale)[0].sharpness == pytest.approx(judged(tile)[0].sharpness, rel=0.15)


def test_sharpness_is_measured_at_one_scale():
    for label in CLASSES:
        far, near = (draw_tile(label, patient=2, index=0, image_size=size).image
                     for size in (224, 720))
        expected = judged(far, 180 / 224)[0].sharpness
        assert judged(near, 180 / 720)[0].sharpness == pytest.approx(expected, rel=0.15)
        assert judged(blurred(near, 9), 180 / 720)[1] == "out of focus"


INKED, BLACK = "coloured ink", "black: ink, pigment or fold"


@pytest.mark.parametrize("colour, why", [
    ((35, 60, 150), INKED), ((60, 110, 190), INKED), ((20, 110, 80), INKED),
    ((60, 160, 110), INKED), ((200, 25, 45), INKED), ((150, 10, 30), INKED),
    ((240, 120, 30), INKED), ((30, 30, 35), BLACK)])
def test_a_stroke_of_a_pen_is_found_and_named(tiles, colour, why):
    for seed, tile in enumerate(tiles[::3]):
        assert judged(inked(tile, colour, 45, seed))[1] == why


@pytest.mark.parametrize("colour, least", [
    ((97, 124, 196), 0.5), ((72, 168, 143), 0.9), ((123, 202, 168), 0.9)])
def test_ink_of_half_the_density_is_found_where_it_is_blue_or_green(tiles, colour, least):
    found = [judged(inked(tile, colour, 45, seed))[1] for seed, tile in enumerate(tiles)]
    assert found.count(INKED) >= least * len(tiles)


def test_nuclei_blood_and_eosin_are_no_ink_however_dense(tiles):
    for tile in tiles:
        white = background.balance_white(tile, background.background_light(tile))
        for times in (1.0, 1.6, 2.2):  # thick sections
            dense = np.uint8(255 * (white / 255.0) ** times)
            found = measure(dense, background.tissue_mask(dense))
            assert max(found.ink, found.black) < 0.01
            assert reason(found) is None


def keratin(seed):
    """Layers as dark as the darkest of a scanned skin, uint8 [224, 224, 3]."""
    rows = cv2.GaussianBlur(np.random.default_rng(seed).normal(0, 1, (224, 224)), (0, 0), 2)
    rows = (rows - rows.min()) / (rows.max() - rows.min())
    return np.uint8(255 * np.exp(-(0.6 + 0.6 * rows)[..., None] * (1.6, 2.4, 1.55)))


def test_dark_keratin_is_neither_ink_nor_black():
    for seed in range(3):
        found = measure(keratin(seed), np.ones((224, 224), bool))
        assert (found.ink, found.red_ink, found.black) == (0, 0, 0)


def test_grains_of_green_margin_ink_are_found_from_a_fiftieth_of_the_tile(tiles):
    for seed, tile in enumerate(tiles[::6]):
        rng, grains = np.random.default_rng(seed), np.zeros((224, 224), np.uint8)
        for x, y in rng.integers(0, 224, (60, 2)):
            cv2.circle(grains, (int(x), int(y)), 4, 1, -1)  # 3 um
        marked = tile.copy()
        marked[grains > 0] = marked[grains > 0] * np.array([0.1, 0.65, 0.55])
        assert judged(marked)[1] == INKED


def test_a_hair_of_ink_is_not_worth_a_tile(tiles):
    assert judged(inked(tiles[0], (30, 30, 35), 2))[1] is None


def test_light(tiles):
    for tile in tiles:
        assert judged(exposed(tile, 1.1))[1] is None
        assert judged(exposed(tile, 2.2))[1] == "over-exposed"
        assert [judged(exposed(tile, times))[1] for times in (0.5, 0.15)] == ["too dark"] * 2


def test_black_patches_are_named_with_ink(tiles):
    for tile in tiles[:3]:  # a frame's corner, a fold
        tile = tile.copy()
        tile[:224, :11] = 5
        tile[::8] = 5
        assert judged(tile)[1] == BLACK


def test_glass_and_torn_tissue(tiles):
    assert judged(np.full((224, 224, 3), 244, np.uint8))[1] == "blank"
    rng = np.random.default_rng(1)
    noisy_glass = np.uint8(np.clip(rng.normal(240, 3, (224, 224, 3)), 0, 255))
    assert judged(noisy_glass)[1] == "blank"
    assert judged(np.full((224, 224, 3), (200, 120, 180), np.uint8))[1] == "blank"  # one colour
    tissue = max(tiles, key=lambda tile: judged(tile)[0].tissue)
    corner, half = np.full_like(tissue, 244), np.full_like(tissue, 244)
    corner[:40, :40], half[:, :112] = tissue[:40, :40], tissue[:, :112]
    assert judged(corner)[1] == "too little tissue"
    assert judged(half)[1] is None


def test_fluorescence(drawn):
    rng = np.random.default_rng(0)
    for tile in drawn[::3]:
        nuclei = np.float32(tile.nuclei > 0)
        light = {sigma: cv2.GaussianBlur(nuclei, (0, 0), sigma) for sigma in (0.8, 4)}
        dark = rng.normal(300, 30, nuclei.shape)
        kept, soft, burnt = ((dark + 3000 * light[0.8]), (dark + 3000 * light[4]),
                             (dark + 1e6 * light[0.8]))
        assert [judged_grey(np.uint16(np.clip(v, 0, 65535)))[1] for v in (kept, soft, burnt)] == [
            None, "out of focus", "over-exposed"]
    assert judged_grey(np.uint16(dark))[1] == "blank"  # noise, stretched to full contrast
    assert judged_grey(np.full((64, 64), 9, np.uint16))[1] == "blank"


def test_grey_bright_field(tiles):
    for tile in tiles:
        grey = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)
        assert judged_grey(grey)[1] is None
        assert judged_grey(blurred(grey, 4))[1] == "out of focus"


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 5), (17, 31), (301, 300)])
def test_any_size_and_content_gets_an_answer(shape):
    rng = np.random.default_rng(0)
    for tile in (rng.integers(0, 256, (*shape, 3), dtype=np.uint8), np.zeros((*shape, 3), np.uint8),
                 np.full((*shape, 3), 255, np.uint8), rng.integers(0, 256, shape, dtype=np.uint8)):
        for mask in (np.zeros(shape, bool), np.ones(shape, bool)):
            for scale in (None, 0.25, 4.0):
                quality = measure(tile, mask, scale=scale)
                found = {name: value for name, value in asdict(quality).items()
                         if name not in ("sharpness", "structure")}
                assert all(np.isfinite(value) for value in found.values())
                assert reason(quality) is None or mask.all() or reason(quality) == "blank"


def test_limits_are_the_callers(tiles):
    soft, _ = judged(blurred(tiles[0], 3))
    assert reason(soft, Limits(min_sharpness=0.1)) is None
    assert reason(soft, Limits(min_tissue=1.01)) == "too little tissue"


def test_a_row_of_the_table(tiles):
    quality, why = judged(blurred(tiles[0], 3))
    row = dict(zip(QC_COLUMNS, qc_row("a/b.png", "a", (10, 20, 224), quality, why), strict=True))
    assert (row["left_px"], row["top_px"], row["side_px"]) == (20, 10, 224)
    assert row["sharpness"] == f"{quality.sharpness:.4f}" and row["reason"] == "out of focus"
    assert row["tissue_fraction"] == f"{quality.tissue:.4f}"
    assert row["saturated_black_fraction"] == f"{quality.saturated_black:.4f}"


# ------------------------------------------------------------------ limits, figure by figure

FINE = Quality(tissue=0.5, contrast=0.2, structure=0.6, sharpness=0.6, ink=0.0, red_ink=0.0,
               black=0.0, brightest=1.0, saturated_white=0.0, saturated_black=0.0)
NAN = float("nan")


@pytest.mark.parametrize("name, kept, dropped, why", [
    ("tissue", 0.05, 0.0499, "too little tissue"), ("tissue", 0.05, 0.0049, "blank"),
    ("tissue", 1.0, 0.005, "too little tissue"), ("contrast", 0.03, 0.0299, "blank"),
    ("structure", 0.38, 0.379, "blank"), ("structure", NAN, 0.1, "blank"),
    ("sharpness", 0.40, 0.399, "out of focus"), ("sharpness", NAN, 0.0, "out of focus"),
    ("ink", 0.02, 0.0201, INKED), ("red_ink", 0.05, 0.0501, INKED),
    ("black", 0.05, 0.0501, BLACK), ("brightest", 0.55, 0.549, "too dark"),
    ("saturated_white", 0.75, 0.751, "over-exposed"),
    ("saturated_black", 0.05, 0.0501, BLACK)])
def test_a_tile_at_a_limit_is_kept_and_one_beyond_it_is_dropped(name, kept, dropped, why):
    assert reason(FINE) is None
    assert reason(replace(FINE, **{name: kept})) is None
    assert reason(replace(FINE, **{name: dropped})) == why
    assert why in REASONS


@pytest.mark.parametrize("limit, name, value", [
    ("max_saturated_black", "saturated_black", 0.3), ("max_ink", "ink", 0.3),
    ("max_red_ink", "red_ink", 0.3), ("max_black", "black", 0.3),
    ("max_saturated_white", "saturated_white", 0.9), ("min_brightest", "brightest", 0.2),
    ("min_contrast", "contrast", 0.01), ("min_structure", "structure", 0.1),
    ("min_tissue", "tissue", 0.02),
    ("blank_tissue", "tissue", 0.002)])
def test_every_limit_can_be_changed(limit, name, value):
    found = replace(FINE, **{name: value})
    others = {"min_tissue": 0.001} if limit == "blank_tissue" else {}
    assert reason(found, Limits(**others)) is not None
    assert reason(found, Limits(**others | {limit: value})) is None


def test_the_first_fault_names_the_tile():
    """Emptiness before light, light before ink, ink before exposure, exposure before focus."""
    worst = Quality(tissue=0.0, contrast=0.0, structure=0.0, sharpness=0.0, ink=1.0, red_ink=1.0,
                    black=1.0, brightest=0.0, saturated_white=1.0, saturated_black=1.0)
    mended = {}
    for why, mend in (("blank", {"tissue": 0.01}), ("too little tissue", {"tissue": 0.5}),
                      ("too dark", {"brightest": 1.0}),
                      (INKED, {"ink": 0.0, "red_ink": 0.0}),
                      (BLACK, {"black": 0.0, "saturated_black": 0.0}),
                      ("over-exposed", {"saturated_white": 0.0}),
                      ("blank", {"contrast": 0.2, "structure": 0.6}),
                      ("out of focus", {"sharpness": 0.6})):
        assert reason(replace(worst, **mended)) == why
        mended |= mend
    assert reason(replace(worst, **mended)) is None


def plain(colour, side=224):
    """A tile of one colour and a mask of its upper half."""
    mask = np.zeros((side, side), bool)
    mask[:side // 2] = True
    return np.full((side, side, 3), colour, np.uint8), mask


@pytest.mark.parametrize("colour, found", [
    ((200, 120, 180), ""), ((120, 180, 200), "ink"),
    ((180, 201, 200), ""), ((180, 202, 200), "ink"),    # red 0.348: 0.115 over green and more
    ((30, 27, 90), ""), ((30, 29, 90), "ink"),          # red 2.140: -0.064 and more
    ((200, 30, 74), ""), ((200, 30, 73), "red_ink"),    # blue 1.0 over red
    ((69, 60, 69), "black"), ((70, 60, 70), ""),        # 1.3 in all
    ((60, 33, 60), "black"), ((60, 32, 60), ""),        # less than 0.3 of the most apart
    ((34, 14, 34), "black"), ((35, 14, 35), ""),        # 2.0 in all
    ((5, 5, 5), "black")])
def test_inks_are_told_by_optical_density_on_both_sides_of_each_limit(colour, found):
    measured = measure(*plain(colour))
    assert {name: getattr(measured, name) for name in ("ink", "red_ink", "black")} == {
        name: float(name == found) for name in ("ink", "red_ink", "black")}


def test_light_is_measured_on_the_tissue_alone_and_colour_by_its_brightest_channel():
    tile, mask = plain((200, 120, 180))
    tile[:28, :, 0], tile[112:] = 255, 255     # a quarter of the tissue is clipped in red
    found = measure(tile, mask)
    assert found.tissue == 0.5 and found.saturated_white == 0.25 and found.saturated_black == 0
    tile[:28], tile[28:56], tile[112:] = (19, 3, 0), (20, 3, 0), 5
    assert measure(tile, mask).saturated_black == 0.25
    assert measure(np.full_like(tile, (10, 153, 60)), mask).brightest == 0.6
    tile[:] = 60
    tile[:3] = 255  # above the 99th percentile lie 2.24 of 224 rows
    assert measure(tile, mask).brightest == 1
    tile[:3, 112:] = 60
    assert measure(tile, mask).brightest < 0.3


def test_grey_is_never_too_dark_and_its_ground_counts_for_contrast():
    tile, mask = plain((0, 0, 0))
    tile = tile[..., 0].copy()
    tile[mask] = 255
    found = measure(tile, mask)
    assert (found.saturated_black, found.brightest) == (0, 1)
    assert (found.ink, found.red_ink, found.black) == (0, 0, 0)
    assert found.saturated_white == 1 and found.contrast == pytest.approx(0.5)
    assert measure(tile, ~mask).saturated_black == 0
    colour = measure(cv2.merge([tile] * 3), mask)
    assert colour.contrast == 0 and np.isnan(colour.structure)
    assert measure(cv2.merge([tile] * 3), ~mask).saturated_black == 1


def test_contrast_is_of_optical_density():
    tile, mask = plain((200, 200, 200))
    tile[:56] = 100
    assert measure(tile, mask).contrast == pytest.approx(np.log(2) / 2, abs=1e-3)


def test_what_is_too_small_to_measure_is_not_judged():
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 256, (224, 224), dtype=np.uint8)
    for pixels in (99, 100):
        mask = np.zeros(224 * 224, bool)
        mask[:pixels] = True
        assert np.isnan(measure(tile, mask.reshape(224, 224)).sharpness) == (pixels == 99)
    for side in (111, 112):
        part = tile[:side, :side]
        assert np.isnan(measure(part, np.ones_like(part, bool)).structure) == (side == 111)
    assert measure(tile, np.ones_like(tile, bool)).structure < 0.1  # noise averages out


@pytest.mark.parametrize("side, scale, seen", [
    (448, None, 224), (100, None, 100), (448, 0.4, 224), (448, 0.8, 448), (224, 0.2, 56),
    (448, 3.2, 448)])
def test_a_tile_is_measured_at_08_um_a_pixel_or_at_224_px_and_never_enlarged(monkeypatch, side,
                                                                             scale, seen):
    asked = []
    monkeypatch.setattr(quality, "_sharpness", lambda grey, inside: asked.append(grey.shape) or 1.0)
    measure(np.zeros((side, side, 3), np.uint8), np.ones((side, side), bool), scale=scale)
    assert asked == [(seen, seen)]


@pytest.mark.skipif(not LC25000.is_dir(), reason="needs LC25000: set LC25000 to its folder")
@pytest.mark.parametrize("label", ["lung_aca", "lung_n", "lung_scc"])
def test_lc25000_loses_no_sharp_tile_and_every_blurred_one(label):
    for path in sorted((LC25000 / "lung_image_sets" / label).iterdir())[::25]:
        tile = cv2.imread(str(path))[..., ::-1].copy()
        assert judged(tile)[1] is None, path.name
        assert judged(blurred(tile, 3))[1] == "out of focus", path.name


@pytest.mark.skipif(not SLIDES.is_dir(), reason="needs scanned slides: set SLIDES to their folder, "
                    "as docs/quality.md says")
@pytest.mark.parametrize("why, places", [(None, DARK), (INKED, MARGIN)])
def test_a_scanned_slide_loses_tiles_with_margin_ink_and_no_dark_keratin(why, places):
    with open_slide(SLIDES / "CMU-1-Small-Region.svs") as skin:
        light = background.background_light(skin.thumbnail(2048))
        for place in places:
            tile = background.balance_white(skin.read(*place, 128, 128), light)
            found = measure(tile, background.tissue_mask(tile), scale=0.499)
            assert reason(found) == why, place
