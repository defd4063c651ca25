"""The tumour map: it finds simulated tumour, spares benign lung, and says nothing of emptiness."""

import numpy as np
import pytest

from lungkit.histology import tumour_map
from lungkit.nuclei.detect import Nuclei, detect_nuclei
from lungkit.phantom.paint import draw_tile
from lungkit.phantom.tissue import FIELD_UM

EMPTY = np.zeros((0, 2), np.float32), np.zeros(0, np.float32)


def found(tile, size=None):
    return tumour_map.tumour_mask(tile.image, field_um=FIELD_UM)


def painted(radius_um: float, size: int = 224):
    """Tissue of pale eosin with nuclei of one radius every 18 um, and those nuclei."""
    import cv2

    px = size / FIELD_UM
    image = np.full((size, size, 3), (232, 180, 214), np.uint8)
    image[:, : size // 8] = 255
    labels = np.zeros((size, size), np.int32)
    centroids = [(x, y) for y in np.arange(9, 180, 18) for x in np.arange(36, 180, 18)]
    for number, (x, y) in enumerate(centroids, 1):
        at = (round(x * px), round(y * px))
        cv2.circle(labels, at, round(radius_um * px), number, -1)
    image[labels > 0] = (90, 60, 150)
    areas = np.bincount(labels.ravel(), minlength=len(centroids) + 1)[1:]
    return image, Nuclei(labels, np.array(centroids, np.float32) * px, areas.astype(np.float32))


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.fixture(scope="module")
def tiles():
    """Seeds beyond those of the fit and of the benchmark."""
    return [draw_tile(label, patient=patient, index=0, seed=950) for patient in range(8)
            for label in (("lung_aca", "lung_scc")[patient % 2], "lung_n")]


def test_tumour_is_found_and_benign_lung_spared(tiles):
    masks = [found(tile) for tile in tiles]
    for label, least in (("lung_aca", 0.75), ("lung_scc", 0.75)):
        pairs = [(mask, tile.tumour) for mask, tile in zip(masks, tiles) if tile.label == label]
        assert dice(*(np.stack(each) for each in zip(*pairs))) > least
    false = [mask.sum() / tile.tissue.sum() for mask, tile in zip(masks, tiles)
             if tile.label == "lung_n"]
    assert np.mean(false) < 0.15
    right = [(mask[tile.tissue & tile.tumour].mean(), mask[tile.tissue & ~tile.tumour].mean())
             for mask, tile in zip(masks, tiles)
             if tile.tumour.any() and (tile.tissue & ~tile.tumour).any()]
    assert np.mean([a - b for a, b in right]) > 0.3  # all tissue, or none, gives 0


def test_the_map_lies_within_the_tissue_and_nuclei_may_be_given(tiles):
    from lungkit.histology.background import background_light, balance_white, tissue_mask

    image = tiles[0].image
    mask = found(tiles[0])
    assert mask.dtype == bool and mask.shape == image.shape[:2] and mask.any()
    assert not (mask & ~tissue_mask(balance_white(image, background_light(image)))).any()
    nuclei = detect_nuclei(image, modality="he", field_um=FIELD_UM)
    assert (mask == tumour_map.tumour_mask(image, nuclei, field_um=FIELD_UM)).all()


def test_large_nuclei_make_tumour_and_small_ones_do_not():
    masks = {radius: tumour_map.tumour_mask(*painted(radius), field_um=FIELD_UM)
             for radius in (3.2, 5.5)}
    assert not masks[3.2].any()
    assert masks[5.5][40:-40, 80:-40].mean() > 0.95


@pytest.mark.parametrize("size", [64, 448])
def test_the_map_is_the_same_at_any_resolution(size):
    tile = draw_tile("lung_scc", patient=1, index=3, seed=951)
    other = draw_tile("lung_scc", patient=1, index=3, seed=951, image_size=size)
    truth, share = tile.tumour, tumour_map.tumour_share
    small, large = found(tile), found(other)
    assert large.shape == (size, size)
    assert abs(share(small, tile.tissue) - share(large, other.tissue)) < 0.2
    assert dice(large, other.tumour) > dice(small, truth) - 0.15


@pytest.mark.parametrize("value", [0, 255, 130])
def test_plain_images_hold_no_tumour(value):
    image = np.full((64, 64, 3), value, np.uint8)
    nothing = Nuclei(np.zeros((64, 64), np.int32), *EMPTY)
    assert not tumour_map.tumour_mask(image, nothing, field_um=FIELD_UM).any()
    assert not tumour_map.tumour_mask(image, field_um=FIELD_UM).any()


def test_small_regions_go_and_holes_are_filled_but_islands_are_not():
    tissue = np.zeros((100, 100), bool)
    tissue[10:80, 10:80] = True
    tissue[90:94, 90:94] = True  # an island of tissue in the air
    mask = tissue.copy()
    mask[80:, 80:] = False
    mask[40:44, 40:44] = False   # a hole of 16 um2 at 1 px per um
    mask[20:30, 60:80] = False
    mask[24:27, 70:73] = True    # a region of 9 um2 in a gap of 200 that opens outwards
    result = tumour_map.tidy(mask, tissue, 1.0)
    assert result[40:44, 40:44].all() and not result[22:28, 68:78].any()
    assert not result[85:, 85:].any() and not (result & ~tissue).any()
    tissue[40:44, 40:44] = False  # a lumen is no tissue, however small
    assert not tumour_map.tidy(mask, tissue, 1.0)[40:44, 40:44].any()


def test_a_region_drops_no_benign_tile_and_keeps_the_others_reasons():
    tissue = np.ones((10, 10), bool)
    half = np.zeros((10, 10), bool)
    half[:4] = True
    share = tumour_map.tumour_share(half, tissue)
    assert share == 0.4 and tumour_map.tumour_share(half, np.zeros_like(half)) == 0
    for region in ("all", "tissue"):
        assert tumour_map.reason_to_drop(region, share, "lung_aca") is None
    assert tumour_map.reason_to_drop("tumour", share, "lung_aca") == (
        "less than 0.5 of its tissue is tumour")
    assert tumour_map.reason_to_drop("tumour", 0.5, "lung_aca") is None
    assert tumour_map.reason_to_drop("tumour", 0.0, "lung_n", ("lung_n",)) is None
    assert tumour_map.reason_to_drop("tumour", share, "lung_aca", min_tumour=0.3) is None


@pytest.mark.parametrize("sigma", [3.0, 12.0, 50.0])
def test_the_coarse_blur_is_the_fine_one(sigma):
    import cv2

    values = np.random.default_rng(0).random((224, 224)).astype(np.float32)
    values[50:120, 30:200] += 1
    exact = cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
    assert np.abs(tumour_map._blur(values, sigma) - exact).max() < 0.05


# ------------------------------------------------------------------ rules, figure by figure

@pytest.mark.parametrize("measured, is_tumour", [
    ({"size": 1.65}, True), ({"size": 1.63}, False), ({"crowd": 0.59}, True),
    ({"crowd": 0.58}, False), ({"cytoplasm": 0.40}, True), ({"cytoplasm": 0.39}, False),
    ({"size": 0.5, "crowd": 0.2, "cytoplasm": 0.15}, True),
    ({"size": -1.0, "crowd": 0.2, "cytoplasm": 0.4}, False)])
def test_tumour_is_where_the_weighed_measurements_exceed_the_offset(monkeypatch, measured,
                                                                    is_tumour):
    tissue = np.ones((60, 60), bool)
    tissue[:, :20] = False
    values = {name: np.full((60, 60), measured.get(name, 0.0), np.float32)
              for name in ("size", "crowd", "cytoplasm")}
    monkeypatch.setattr(tumour_map, "measure", lambda *_, **__: (values, tissue, 1.0))
    mask = tumour_map.tumour_mask(np.zeros((120, 120, 3), np.uint8), object(), field_um=60)
    assert mask.shape == (120, 120) and (mask == np.kron(tissue, np.ones((2, 2))) * is_tumour).all()


def measured_at_centre(radius_um, field_um=FIELD_UM):
    values, tissue, px_per_um = tumour_map.measure(*painted(radius_um), field_um=field_um)
    middle = slice(len(tissue) // 2 - 20, len(tissue) // 2 + 20)
    return {name: float(value[middle, middle].mean()) for name, value in values.items()}, px_per_um


@pytest.mark.parametrize("radius_um", [3.2, 4.6, 6.0])
def test_size_is_nuclear_area_over_a_lymphocytes_in_doublings(radius_um):
    """100 nuclei per mm2 as small as a lymphocyte are added to the 3086 that are there."""
    image, nuclei = painted(radius_um)
    area_um2 = nuclei.areas_px.mean() * (FIELD_UM / 224) ** 2
    there = 1 / 18 ** 2
    found, px_per_um = measured_at_centre(radius_um)
    assert px_per_um == 224 / FIELD_UM
    assert found["size"] == pytest.approx(np.log2(area_um2 / 40) * there / (there + 1e-4), abs=0.04)


def test_crowd_is_the_share_of_tissue_under_nuclei_larger_than_55_um2():
    for radius_um in (3.8, 5.0):
        image, nuclei = painted(radius_um)
        area_um2 = nuclei.areas_px.mean() * (FIELD_UM / 224) ** 2
        assert (area_um2 > 55) == (radius_um == 5.0) and 40 < area_um2 < 85
        found, _ = measured_at_centre(radius_um)
        share = area_um2 / 18 ** 2 if radius_um == 5.0 else 0
        assert found["crowd"] == pytest.approx(share / 1.05, rel=0.05)


def test_cytoplasm_is_haematoxylin_between_nuclei_over_that_within():
    image, nuclei = painted(5.0)
    pale = measured_at_centre(5.0)[0]["cytoplasm"]
    image[(nuclei.labels == 0) & (image.max(2) < 255)] = (200, 150, 205)
    values, *_ = tumour_map.measure(image, nuclei, field_um=FIELD_UM)
    dark = values["cytoplasm"][90:134, 90:134].mean()
    assert 0 <= pale < 0.12 and dark > pale + 0.1 and dark < 0.5


def test_areas_are_in_micrometres_of_the_field_given():
    near, far = (measured_at_centre(5.0, field_um)[0]["size"] for field_um in (90, 180))
    assert far - near > 1.8  # twice the field: four times the area


@pytest.mark.parametrize("px_per_um", [1.0, 2.0])
def test_regions_and_holes_of_300_um2_are_the_smallest_that_stay(px_per_um):
    tissue = np.ones((200, 200), bool)
    for side_um, stays in ((15, False), (20, True)):
        side = int(side_um * px_per_um)
        mask = np.zeros_like(tissue)
        mask[80:80 + side, 80:80 + side] = True
        assert tumour_map.tidy(mask, tissue, px_per_um).any() == stays
        assert (~tumour_map.tidy(~mask, tissue, px_per_um)).any() == stays


def test_the_share_is_of_tissue_and_not_of_the_tile():
    tumour, tissue = np.zeros((2, 10, 10), bool)
    tumour[:, :6], tissue[:, 4:8] = True, True
    assert tumour_map.tumour_share(tumour, tissue) == 0.5
