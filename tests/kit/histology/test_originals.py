"""One original image or slide: its squares by place and scale, its resolution, its overview."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lungkit.data.png import encode_png
from lungkit.formats import slides
from lungkit.formats.channels import Unreadable
from lungkit.histology import originals, tissue_grid
from lungkit.histology.originals import Cut, open_original, shrink, tile_boxes
from lungkit.run import files


def numbered(height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3]: red is the row, green the column, blue 200."""
    image = np.full((height, width, 3), 200, np.uint8)
    image[..., 0], image[..., 1] = np.ogrid[:height, :width]
    return image


def written(tmp_path, image) -> Path:
    (tmp_path / "x.png").write_bytes(encode_png(image))
    return tmp_path / "x.png"


def tiff(tmp_path, image, um_per_px: float) -> Path:
    import tifffile

    path = tmp_path / "x.tif"
    tifffile.imwrite(path, image, photometric="rgb", resolution=(10_000 / um_per_px,) * 2,
                     resolutionunit="centimeter", metadata=None)
    return path


# ------------------------------------------------------------------ pictures

@pytest.mark.parametrize("shape, side, size", [
    ((100, 60), 30, (50, 30)), ((60, 100), 30, (30, 50)), ((60, 100), 60, (60, 100)),
    ((60, 100), 90, (60, 100))])
def test_an_image_is_shrunk_by_its_shorter_side_and_never_enlarged(shape, side, size):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = shrink(image, side)
    assert found.shape == (*size, 3)
    if size != shape:  # averaged, not picked
        assert found.mean() == pytest.approx(image.mean(), abs=1) and found.std() < image.std()


@pytest.mark.parametrize("height, width, side, boxes", [
    (64, 100, None, [(0, 18, 64)]), (100, 64, None, [(18, 0, 64)]),
    (130, 64, None, [(1, 0, 64), (65, 0, 64)]),
    (50, 70, 30, [(10, 5, 30), (10, 35, 30)]), (20, 20, 30, [])])
def test_squares_are_full_centred_and_named_by_top_then_left(height, width, side, boxes):
    assert tile_boxes(height, width, side) == boxes


def test_a_square_is_read_from_its_place(tmp_path):
    with open_original(written(tmp_path, numbered(40, 90))) as picture:
        assert picture.size == (40, 90) and picture.colour and not picture.is_slide
        tile = picture.read((5, 60, 20), 100)
        np.testing.assert_array_equal(tile, numbered(40, 90)[5:25, 60:80])
        half = picture.read((4, 60, 20), 10)
        assert half.shape == (10, 10, 3) and half[0, 0].tolist() == [5, 61, 200]


def test_an_original_knows_its_bytes(tmp_path):
    path = written(tmp_path, numbered(40, 90))
    content = path.read_bytes()
    with open_original(path) as picture:
        assert (picture.sha256, picture.file_bytes) == (files.sha256(content), len(content))


def test_the_overview_is_the_whole_picture_with_a_shorter_side_of_512(tmp_path):
    with open_original(written(tmp_path, np.full((600, 1200, 3), (1, 2, 3), np.uint8))) as big:
        assert big.overview().shape == (512, 1024, 3)
    with open_original(written(tmp_path, numbered(40, 90))) as small:
        np.testing.assert_array_equal(small.overview(), numbered(40, 90))


def test_a_resolution_given_is_for_originals_that_say_none(tmp_path):
    with open_original(written(tmp_path, numbered(40, 90)), um_per_px=0.7) as picture:
        assert picture.um_per_px == 0.7
    with open_original(written(tmp_path, numbered(40, 90))) as picture:
        assert picture.um_per_px is None
    with open_original(tiff(tmp_path, numbered(40, 90), 0.5), um_per_px=0.7) as picture:
        assert picture.um_per_px == pytest.approx(0.5)


@pytest.mark.parametrize("cut, sides", [
    (Cut(64), {40}), (Cut(64, tile_size=20), {20}), (Cut(10, mpp=2.0), {40}),
    (Cut(10, mpp=0.5), {10}), (Cut(20, mpp=0.45), {18})])
def test_tiles_are_as_large_as_asked_in_micrometres_or_as_fits(tmp_path, cut, sides):
    with open_original(written(tmp_path, numbered(40, 90)), um_per_px=0.5) as picture:
        assert {side for *_, side in picture.boxes(cut)} == sides


def test_tiles_finer_than_the_original_are_refused_and_those_of_unknown_scale(tmp_path):
    with open_original(written(tmp_path, numbered(40, 90)), um_per_px=0.5) as picture:
        with pytest.raises(Unreadable, match="0.5 um a pixel, too coarse for tiles of 0.44"):
            picture.boxes(Cut(10, mpp=0.44))
    with open_original(written(tmp_path, numbered(40, 90))) as picture:
        with pytest.raises(Unreadable, match="--source-mpp"):
            picture.boxes(Cut(10, mpp=2))


def test_grey_is_stretched_and_says_whether_its_ground_is_bright(tmp_path):
    dark = np.full((40, 40), 20, np.uint8)
    dark[10:20, 10:20] = 120
    for image, bright in ((dark, False), (255 - dark, True)):
        with open_original(written(tmp_path, image)) as picture:
            assert not picture.colour and picture.bright == bright
            pixels = picture.read((0, 0, 40), 40)
            assert pixels.ndim == 2 and (pixels.min(), pixels.max()) == (0, 255)
    with open_original(written(tmp_path, numbered(40, 40))) as picture:
        assert not picture.bright


def test_one_channel_of_a_colour_picture_may_be_chosen(tmp_path):
    with open_original(written(tmp_path, numbered(40, 90)), channel=1) as picture:
        row = picture.read((0, 0, 40), 40)[3].astype(int)
        assert not picture.colour and (np.diff(row[2:-2]) > 0).all()  # green: the column


# ------------------------------------------------------------------ slides

class FakeSlide:
    """A slide of 3000 x 2000 px that records what is read of it."""

    width, height, mpp = 3000, 2000, 0.25

    def __init__(self, mpp: float | None = 0.25) -> None:
        self.mpp, self.reads = mpp, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read(self, left, top, side, size):
        self.reads.append((left, top, side, size))
        return np.zeros((size, size, 3), np.uint8)

    def thumbnail(self, longest):
        return np.zeros((longest * 2 // 3, longest, 3), np.uint8)


@pytest.fixture
def grids(monkeypatch) -> list[dict]:
    """Every path is a slide; what its grid was asked for is recorded."""
    asked = []

    def tile_grid(slide, **options):
        asked.append(options)
        return [tissue_grid.Box(left=30, top=7, side=500, tissue=0.9)]

    monkeypatch.setattr(slides, "is_slide", lambda path: True)
    monkeypatch.setattr(tissue_grid, "tile_grid", tile_grid)
    return asked


def opened(monkeypatch, slide, **options):
    monkeypatch.setattr(slides, "open_slide", lambda path, mpp=None: slide)
    return open_original(Path(__file__), **options)


@pytest.mark.parametrize("cut, mpp", [
    (Cut(64), 180 / 64), (Cut(256), 180 / 256), (Cut(64, mpp=0.5), 0.5),
    (Cut(64, tile_size=512), 512 * 0.25 / 64)])
def test_a_tile_of_a_slide_covers_180_um_unless_a_scale_is_given(monkeypatch, grids, cut, mpp):
    with opened(monkeypatch, FakeSlide()) as slide:
        slide.boxes(cut)
    assert grids[0]["mpp"] == pytest.approx(mpp) and grids[0]["tile_px"] == cut.image_size


def test_a_slide_is_cut_and_read_as_asked(monkeypatch, grids):
    with opened(monkeypatch, FakeSlide()) as slide:
        assert slide.boxes(Cut(64, min_tissue=0.3, tiles_per_slide=9, seed=4)) == [(7, 30, 500)]
        assert {name: grids[0][name] for name in ("min_tissue", "max_tiles", "seed")} == {
            "min_tissue": 0.3, "max_tiles": 9, "seed": 4}
        assert slide.read((7, 30, 500), 100).shape == (100, 100, 3)
        slide.read((7, 30, 50), 100)
        assert slide._slide.reads == [(30, 7, 500, 100), (30, 7, 50, 50)]
        assert slide.is_slide and slide.colour and slide.size == (2000, 3000)
        assert max(slide.overview().shape) == originals.SLIDE_PX
        assert slide.sha256 == files.sha256_file(Path(__file__))


def test_a_slides_own_resolution_stands(monkeypatch, grids):
    for said, um_per_px in ((0.25, 0.25), (None, 0.7)):
        with opened(monkeypatch, FakeSlide(said), um_per_px=0.7) as slide:
            assert slide.um_per_px == um_per_px


def test_a_slide_has_no_channel_to_choose(monkeypatch, grids):
    with pytest.raises(Unreadable, match="--channel"):
        with opened(monkeypatch, FakeSlide(), channel=1):
            pass
