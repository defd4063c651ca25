"""The tumour map: it finds simulated tumour, spares benign lung, and says nothing of emptiness."""

import numpy as np
import pytest

from lungkit import tumour_map
from lungkit.nuclei import Nuclei, detect_nuclei
from lungkit.phantom import draw_tile
from lungkit.tissue import FIELD_UM

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
             for mask, tile in zip(masks, tiles) if tile.tumour.any() and (tile.tissue & ~tile.tumour).any()]
    assert np.mean([a - b for a, b in right]) > 0.3  # all tissue, or none, gives 0


def test_the_map_lies_within_the_tissue_and_nuclei_may_be_given(tiles):
    from lungkit.stain import background_light, balance_white, tissue_mask

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
