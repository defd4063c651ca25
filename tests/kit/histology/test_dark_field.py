"""Fluorescence saved as colour: told from stained tissue at any exposure, and read in grey."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from lungkit.data.png import encode_png
from lungkit.formats import slides
from lungkit.formats.channels import Unreadable
from lungkit.histology import qc_report
from lungkit.histology.dark_field import choose_channel, is_dark_field
from lungkit.histology.originals import Cut, open_original
from lungkit.histology.tiles import Recipe, examine
from lungkit.phantom.paint import CLASSES, draw_fluorescence, draw_tile

SLIDES = Path(os.environ.get("SLIDES") or "no-slides")  # its folder: the test on it runs
BLUE, CYAN = (0, 0, 255), (0, 255, 255)


def nuclei(side: int = 200, seed: int = 0) -> np.ndarray:
    """Bright discs on a dark, noisy ground, float32 [side, side], 0..1."""
    rng, light = np.random.default_rng(seed), np.zeros((side, side), np.float32)
    for x, y in rng.integers(10, side - 10, (side * side // 900, 2)):
        cv2.circle(light, (int(x), int(y)), 4, 0.9, -1)
    return np.clip(cv2.GaussianBlur(light, (0, 0), 1) + rng.normal(0.03, 0.01, light.shape), 0, 1)


def shown(light: np.ndarray, colour) -> np.ndarray:
    return np.uint8(light[..., None] * colour)


@pytest.fixture(scope="module")
def stained():
    return [draw_tile(label, patient=1, index=0, image_size=112).image for label in CLASSES]


@pytest.mark.parametrize("exposure", [1.0, 0.5, 0.15, 0.06])
def test_stained_tissue_is_no_fluorescence_however_dark(stained, exposure):
    assert not any(is_dark_field(np.uint8(image * exposure)) for image in stained)


def test_a_black_frame_around_stained_tissue_is_no_fluorescence(stained):
    for image in stained:
        framed = np.zeros((224, 224, 3), np.uint8)
        framed[:112, :112] = image
        framed[:30, :30] = 240  # bare glass
        assert not is_dark_field(framed)


@pytest.mark.parametrize("label", CLASSES)
def test_simulated_dapi_in_colour_is_fluorescence_however_it_is_exposed(label):
    dapi = draw_fluorescence(label, patient=3, index=0, image_size=112)[0, 0].astype(float)
    for top in (255, 60):
        image = shown(np.clip(dapi / np.percentile(dapi, 99.8), 0, 1), np.array(BLUE) * top / 255)
        assert is_dark_field(image) and choose_channel(image, None) == 2


@pytest.mark.parametrize("value", [0, 255])
def test_an_even_image_is_no_fluorescence(value):
    assert not is_dark_field(np.full((64, 64, 3), value, np.uint8))


@pytest.mark.parametrize("colour, asked, chosen", [
    (BLUE, None, 2), ((0, 255, 0), None, 1), (CYAN, None, 1), ((10, 20, 255), None, 2),
    (BLUE, "red", 0), (BLUE, 1, 1), (CYAN, "Blue", 2)])
def test_the_channel_is_the_one_lit_or_the_one_asked_for(colour, asked, chosen):
    assert choose_channel(shown(nuclei(), colour), asked) == chosen


def test_several_stains_want_a_choice_and_say_how():
    both = shown(nuclei(seed=1), BLUE) + shown(nuclei(seed=2), (255, 0, 0))
    with pytest.raises(Unreadable, match=r"--channel, 0 \(red\), 1 \(green\), 2 \(blue\)"):
        choose_channel(both, None)
    assert choose_channel(both, "blue") == 2
    with pytest.raises(Unreadable, match="has no channel 'dapi'"):
        choose_channel(both, "dapi")


def test_a_picture_of_fluorescence_in_colour_is_read_in_grey(tmp_path):
    light = nuclei()
    (tmp_path / "x.png").write_bytes(encode_png(shown(light, BLUE)))
    with open_original(tmp_path / "x.png") as picture:
        pixels = picture.read((0, 0, 200), 200)
        assert not picture.colour and not picture.bright and pixels.shape == (200, 200)
        assert pixels[light > 0.8].min() > 200 and np.median(pixels) < 40


class DarkSlide:
    """A slide of 2000 x 1500 px, the left half of it nuclei of 16 px in blue, the right dark."""

    width, height = 2000, 1500

    def __init__(self, mpp: float = 0.5) -> None:
        self.mpp = mpp
        rng = np.random.default_rng(0)
        light = np.clip(rng.normal(0.03, 0.005, (1500, 2000)), 0, 1).astype(np.float32)
        for x, y in rng.integers(10, 1490, (900, 2)):
            cv2.circle(light, (int(x * 0.65), int(y)), 8, 0.8, -1)
        self._pixels = shown(light, BLUE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read(self, left, top, side, size):
        part = self._pixels[int(top):int(top + side), int(left):int(left + side)]
        return cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA)

    def thumbnail(self, longest):
        size = (min(longest, 2000), min(longest, 2000) * 3 // 4)
        return cv2.resize(self._pixels, size, interpolation=cv2.INTER_AREA)


@pytest.fixture(scope="module")
def dark_slide():
    return DarkSlide()


@pytest.fixture
def dark(monkeypatch, dark_slide):
    monkeypatch.setattr(slides, "is_slide", lambda path: True)
    monkeypatch.setattr(slides, "open_slide", lambda path: dark_slide)
    return Path(__file__)


def test_a_slide_on_a_dark_ground_is_read_in_grey_where_it_shines(dark):
    with open_original(dark) as slide:
        boxes = slide.boxes(Cut(64, min_tissue=0.25))
        assert not slide.colour and slide.is_slide and slide.overview().shape == (1500, 2000)
        assert boxes and max(left for _, left, _ in boxes) < slide.size[1] / 2
        tile = slide.read(boxes[0], 512)
        assert tile.ndim == 2 and tile.max() == 255 and np.median(tile) < 10
        assert slide.read((0, 1600, 360), 360).max() < 20  # stretched as the slide is
    with open_original(dark, channel="red") as slide:
        assert slide.read(boxes[0], 512).max() == 0


def test_its_tiles_are_kept_and_called_fluorescence(dark):
    source = SimpleNamespace(path=dark, label="a", name="a/x.ndpi")
    original = examine(source, Recipe(Cut(64, min_tissue=0.25)))
    assert original.kept and len(original.kept) == len(original.tiles)
    assert original.light is None and original.stains is None and original.look[3] == "grey"
    assert qc_report.describe_scale([original], 64)["modality"] == "fluorescence"


@pytest.mark.skipif(not SLIDES.is_dir(), reason="needs scanned slides: set SLIDES to their folder, "
                    "as docs/quality.md says")
def test_scanned_slides_are_what_they_are():
    with open_original(SLIDES / "CMU-1-Small-Region.svs") as skin:
        assert skin.colour
    with open_original(SLIDES / "test3-DAPI-2-(387).ndpi") as dapi:
        assert not dapi.colour
        assert len(dapi.boxes(Cut(64, min_tissue=0.25))) > 20
