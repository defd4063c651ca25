"""Whole slides: every format that can be written here, and a reason for each that cannot be read.

The slides are mosaics of simulated tissue on glass, written by tifffile as the vendors' scanners
write theirs; the NDPI is put together tag by tag.
"""

from __future__ import annotations

import io
import struct
import tracemalloc

import numpy as np
import pytest

from lungkit.formats import slide_levels, slides
from lungkit.formats.channels import Unreadable
from lungkit.formats.images import decode_image
from lungkit.formats.slides import is_slide, open_slide
from lungkit.histology import tissue_grid
from lungkit.histology.tissue_grid import known_mpp, tile_grid, tissue_map

MPP = 0.5            # um a pixel of level 0
HEIGHT, WIDTH = 1536, 2048
GLASS = (243, 241, 244)
ISLANDS = ((256, 256), (256, 616), (616, 256), (900, 1500))  # top, left of 360 px = 180 um each


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """uint8 [HEIGHT, WIDTH, 3]: four tiles of tumour on glass."""
    from lungkit.phantom.paint import draw_tile

    picture = np.full((HEIGHT, WIDTH, 3), GLASS, np.uint8)
    for index, (top, left) in enumerate(ISLANDS):
        tile = draw_tile("lung_scc", patient=1, index=index, image_size=360)
        picture[top:top + 360, left:left + 360] = tile.image
    return picture


def smaller(picture: np.ndarray, factor: int) -> np.ndarray:
    import cv2

    size = (picture.shape[1] // factor, picture.shape[0] // factor)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


JPEG = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg",
        "compressionargs": {"level": 97}}
FULL_COLOUR = {**JPEG, "subsampling": (1, 1)}  # JPEG is else written with a quarter of the colours
DEFLATE = {"tile": (128, 256), "photometric": "rgb", "compression": "deflate"}


def write_svs(path, picture, said="|AppMag = 20|MPP = 0.5000"):
    import tifffile

    said = f"Aperio Image Library v11.2.1\n{WIDTH}x{HEIGHT} (256x256) JPEG/RGB Q=70{said}"
    with tifffile.TiffWriter(path) as file:
        file.write(picture, description=said, metadata=None, **JPEG)
        file.write(smaller(picture, 16), description=said, metadata=None, photometric="rgb",
                   compression="jpeg", rowsperstrip=16)
        file.write(smaller(picture, 4), description=said, metadata=None, **JPEG)
        file.write(smaller(picture, 16), description="label", metadata=None, photometric="rgb",
                   compression="lzw", subfiletype=1)


def write_pyramid(path, picture, flagged=True, resolution=10_000 / MPP, kind=FULL_COLOUR,
                  **options):
    import tifffile

    with tifffile.TiffWriter(path, **options) as file:
        for factor in (1, 2, 8):
            file.write(smaller(picture, factor), subfiletype=int(flagged and factor > 1),
                       resolution=(resolution / factor,) * 2, resolutionunit="centimeter",
                       metadata=None, **kind)


def write_ome(path, picture, kind=JPEG, planar=False, **options):
    import tifffile

    said = {"axes": "SYX" if planar else "YXS", "PhysicalSizeX": MPP * 1000,
            "PhysicalSizeXUnit": "nm", "PhysicalSizeY": MPP * 1000, "PhysicalSizeYUnit": "nm"}
    kind = {**kind, "planarconfig": "separate"} if planar else kind
    levels = [smaller(picture, factor) for factor in (1, 4, 16)]
    if planar:
        levels = [np.moveaxis(level, -1, 0).copy() for level in levels]
    with tifffile.TiffWriter(path, ome=True, **options) as file:
        for number, level in enumerate(levels):
            file.write(level, metadata=None if number else said, subfiletype=int(number > 0),
                       **({} if number else {"subifds": len(levels) - 1}), **kind)


def write_ndpi(path, picture, resolution=10_000 / MPP):
    """As NDPI is described by OpenSlide: JPEGs with restart markers, offsets of eight bytes."""
    from PIL import Image

    content, link = bytearray(b"II*\0" + bytes(8)), 4  # where the next directory's place is noted
    for factor in (1, 4):
        level, buffer = smaller(picture, factor), io.BytesIO()
        Image.fromarray(level).save(buffer, "JPEG", quality=97, subsampling=0,
                                    restart_marker_blocks=16)
        start, size = len(content), len(buffer.getvalue())
        content += buffer.getvalue() + bytes(-size % 2)
        height, width = level.shape[:2]
        place = len(content)
        content += struct.pack("<II", int(resolution), factor)
        tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 7), (262, 3, 6),
                (271, 2, b"abc\0"), (273, 4, start), (277, 3, 3), (278, 4, height), (279, 4, size),
                (282, 5, place), (283, 5, place), (296, 3, 3), (65420, 4, 1),
                (65421, 11, struct.pack("<f", 20 / factor)), (65424, 9, 0)]
        content[link:link + 8] = struct.pack("<Q", len(content))
        content += struct.pack("<H", len(tags))
        for tag, kind, value in tags:
            value = value if isinstance(value, bytes) else struct.pack("<I", value)
            content += struct.pack("<HHI", tag, kind, 4 if kind == 2 else 1) + value
        link = len(content)
        content += bytes(8 + 4 * len(tags))  # and the upper halves of the values
    path.write_bytes(bytes(content))


# name: (writer, its options, whether every pixel of level 0 is kept)
FORMATS = {
    "aperio.svs": (write_svs, {}, False),
    "aperio_by_content.tif": (write_svs, {}, False),
    "hamamatsu.ndpi": (write_ndpi, {}, False),
    "pyramid.tif": (write_pyramid, {}, False),
    "unflagged_pyramid.tiff": (write_pyramid, {"flagged": False}, False),
    "bigtiff_pyramid.tif": (write_pyramid, {"kind": DEFLATE, "bigtiff": True}, True),
    "big_endian_pyramid.tif": (write_pyramid, {"kind": DEFLATE, "byteorder": ">"}, True),
    "jpeg.ome.tif": (write_ome, {}, False),
    "bigtiff.ome.tiff": (write_ome, {"kind": {**DEFLATE, "compression": "lzw"},
                                     "bigtiff": True}, True),
    "planar.ome.tif": (write_ome, {"kind": DEFLATE, "planar": True}, True),
    "jpeg2000.ome.tif": (write_ome, {"kind": {**DEFLATE, "compression": "jpeg2000"}}, True),
    "strips.ome.tif": (write_ome, {"kind": {"rowsperstrip": 64, "photometric": "rgb",
                                            "compression": "deflate"}}, True),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, picture):
    folder = tmp_path_factory.mktemp("slides")
    for name, (write, options, _) in FORMATS.items():
        write(folder / name, picture, **options)
    return folder


def every(lossless=(False, True)):
    return pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if f[2] in lossless])


def difference(found, expected) -> float:
    return float(np.abs(found.astype(int) - expected.astype(int)).mean())


@every()
def test_every_format_is_a_slide_of_known_size_and_resolution(folder, name):
    assert is_slide(folder / name)
    with open_slide(folder / name) as slide:
        assert (slide.width, slide.height) == (WIDTH, HEIGHT)
        assert slide.mpp == pytest.approx(MPP, rel=1e-4)


@every()
def test_regions_are_area_averages(folder, picture, name):
    tolerance = 0.6 if FORMATS[name][2] else 2.5  # grey levels: rounding of two averages, or JPEG
    with open_slide(folder / name) as slide:
        for left, top, side, size in ((256, 256, 512, 512), (256, 256, 512, 256),
                                      (216, 232, 960, 120), (0, 0, 1536, 192)):
            found = slide.read(left, top, side, size)
            assert found.shape == (size, size, 3) and found.dtype == np.uint8
            expected = smaller(picture[top:top + side, left:left + side], side // size)
            assert difference(found, expected) < tolerance, (left, top, side, size)
        thumbnail = slide.thumbnail(256)
        assert thumbnail.shape == (192, 256, 3)
        assert difference(thumbnail, smaller(picture, 8)) < tolerance


def test_any_scale_is_averaged_from_the_best_level(folder, picture):
    """Levels of 1, 4 and 16: a fifth is taken from the quarter, a third from the whole."""
    import cv2

    with open_slide(folder / "bigtiff.ome.tiff") as slide:
        quarter = smaller(picture, 4)[68:168, 100:200]
        expected = cv2.resize(quarter, (80, 80), interpolation=cv2.INTER_AREA)
        assert difference(slide.read(400, 272, 400, 80), expected) == 0
        expected = smaller(picture[272:272 + 402, 401:401 + 402], 3)
        assert difference(slide.read(401, 272, 402, 134), expected) == 0


@every(lossless=(True,))
def test_level_0_keeps_its_values(folder, picture, name):
    with open_slide(folder / name) as slide:
        np.testing.assert_array_equal(slide.read(301, 207, 500, 500), picture[207:707, 301:801])


@every()
def test_outside_is_white(folder, picture, name):
    with open_slide(folder / name) as slide:
        found = slide.read(-100, HEIGHT - 60, 200, 200)
        inside = picture[-60:, :100]
        assert (found[:, :90] == 255).all() and (found[70:] == 255).all()
        assert difference(found[:60, 100:], inside) < 2.5
        assert (slide.read(WIDTH + 10_000, -10_000, 500, 50) == 255).all()


def test_a_finer_region_than_was_scanned_is_enlarged(folder, picture):
    import cv2

    with open_slide(folder / "bigtiff_pyramid.tif") as slide:
        expected = cv2.resize(picture[300:400, 300:400], (400, 400), interpolation=cv2.INTER_CUBIC)
        assert difference(slide.read(300, 300, 100, 400), expected) < 0.6


def test_blocks_meet_without_a_seam(folder, picture, monkeypatch):
    with open_slide(folder / "bigtiff.ome.tiff") as slide:
        whole = slide.read(100, 100, 1200, 300)
        monkeypatch.setattr(slides, "BLOCK_PX", 200)
        np.testing.assert_array_equal(slide.read(100, 100, 1200, 300), whole)


def test_tiles_that_are_not_stored_are_glass(tmp_path, picture):
    """Scanners leave out tiles without tissue: their byte count is 0."""
    import tifffile

    def tiles(level):
        for y in range(0, level.shape[0], 256):
            for x in range(0, level.shape[1], 256):
                yield level[y:y + 256, x:x + 256] if x != 256 else None

    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for factor in (1, 2):
            level = smaller(picture, factor)
            file.write(tiles(level), shape=level.shape, dtype=level.dtype, metadata=None,
                       subfiletype=int(factor > 1), **DEFLATE | {"tile": (256, 256)})
    with open_slide(tmp_path / "a.tif") as slide:
        found = slide.read(0, 0, 1024, 1024)
    assert (found[:, 256:512] == 255).all()
    for columns in (slice(0, 256), slice(512, 1024)):
        np.testing.assert_array_equal(found[:, columns], picture[:1024, columns])


# ------------------------------------------------------------------ what is no slide

def test_images_are_no_slides(tmp_path, picture):
    import tifffile
    from PIL import Image

    small = smaller(picture, 4)
    Image.fromarray(small).save(tmp_path / "a.png")
    Image.fromarray(small).save(tmp_path / "a.jpg")
    tifffile.imwrite(tmp_path / "strips.tif", small, photometric="rgb")
    tifffile.imwrite(tmp_path / "tiled.tif", small, **DEFLATE)
    (tmp_path / "text.tif").write_text("no image")
    (tmp_path / "damaged.tif").write_bytes((tmp_path / "tiled.tif").read_bytes()[:100])
    (tmp_path / "empty.tif").write_bytes(b"")
    for path in tmp_path.iterdir():
        assert not is_slide(path), path.name


def test_a_fluorescence_pyramid_stays_an_image(tmp_path, picture):
    """Its channels are for images.decode_image to choose from."""
    import tifffile

    planes = np.moveaxis(picture, -1, 0).copy()
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        file.write(planes, subifds=1, photometric="minisblack", tile=(256, 256),
                   metadata={"axes": "CYX", "Channel": {"Name": ["DAPI", "CD3", "CD8"]}})
        file.write(planes[:, ::2, ::2], subfiletype=1, photometric="minisblack", tile=(256, 256))
    assert not is_slide(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(decode_image((tmp_path / "a.ome.tif").read_bytes(), "cd3"),
                                  planes[1])


def test_an_image_too_large_to_decode_whole_is_a_slide(tmp_path, picture, monkeypatch):
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", picture, **DEFLATE)
    assert not is_slide(tmp_path / "a.tif")
    monkeypatch.setattr(slides, "MAX_PIXELS", WIDTH * HEIGHT - 1)
    assert is_slide(tmp_path / "a.tif")
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.mpp is None
        assert difference(slide.thumbnail(256), smaller(picture, 8)) < 0.6


# ------------------------------------------------------------------ tiles

def true_share(picture, box) -> float:
    inside = picture[box.top:box.top + box.side, box.left:box.left + box.side]
    return float((inside != GLASS).any(-1).mean())


@pytest.mark.parametrize("name", ["aperio.svs", "hamamatsu.ndpi", "jpeg.ome.tif"])
def test_tiles_hold_tissue(folder, picture, name):
    with open_slide(folder / name) as slide:
        found = tile_grid(slide, mpp=1.0, tile_px=64, min_tissue=0.5)  # of 128 px
        every_one = tile_grid(slide, mpp=1.0, tile_px=64, min_tissue=0)
    assert len(found) == len(set(found)) >= 12
    for left, top, side, tissue in found:
        assert side == 128 and 0.5 <= tissue <= 1
        assert 0 <= left <= WIDTH - side and 0 <= top <= HEIGHT - side
    assert min(true_share(picture, box) for box in found) > 0.4
    assert max(true_share(picture, box) for box in every_one) > 0.99
    lost = {box[:2] for box in every_one} - {box[:2] for box in found}
    assert lost and found == [box for box in every_one if box.tissue >= 0.5]
    # what is covered, all in all: the map is coarse, and the walls of air spaces blur
    covered = sum(box.tissue for box in every_one) * 128 ** 2
    assert covered == pytest.approx((picture != GLASS).any(-1).sum(), rel=0.15)


def test_shares_are_exact_where_lines_cut_pixels():
    rng = np.random.default_rng(0)
    mask = rng.random((40, 60)) < 0.5
    tops, lefts = np.array([0.5, 10.25, 20, 40]), np.array([0, 7.75, 33.5, 60])
    fine = mask.repeat(4, 0).repeat(4, 1)
    found = tissue_grid._shares(mask, tops, lefts)
    for i in range(3):
        for j in range(3):
            part = fine[int(4 * tops[i]):int(4 * tops[i + 1]),
                        int(4 * lefts[j]):int(4 * lefts[j + 1])]
            assert found[i, j] == pytest.approx(part.mean())


def test_glass_is_never_read_at_full_resolution(folder, monkeypatch):
    with open_slide(folder / "jpeg.ome.tif") as slide:
        asked = []
        read = slide._levels.read
        monkeypatch.setattr(slide._levels, "read", lambda *a: asked.append(a) or read(*a))
        boxes = tile_grid(slide, mpp=MPP, tile_px=128)
        assert boxes and {level for level, *_ in asked} == {2}
        asked.clear()
        slide.read(*boxes[0][:3], 128)
        assert [level for level, *_ in asked] == [0]


def test_boxes_that_follow_one_another_are_near(folder, monkeypatch):
    """Each tile of the file is decoded about once, though the cache holds few."""
    monkeypatch.setattr(slide_levels, "CACHE_BYTES", 12 * 256 * 256 * 3)
    with open_slide(folder / "jpeg.ome.tif") as slide:
        monkeypatch.setattr(tissue_grid, "tissue_map",
                            lambda slide: (np.ones((96, 128), bool), 16))
        boxes = tile_grid(slide, mpp=MPP, tile_px=80)
        assert len(boxes) == len({box[:2] for box in boxes}) == (WIDTH // 80) * (HEIGHT // 80)
        decode, decoded = slide._levels._decode, []
        monkeypatch.setattr(slide._levels, "_decode",
                            lambda *a: decoded.append(a[2]) or decode(*a))
        for box in boxes:
            slide.read(*box[:3], 80)
    assert len(set(decoded)) == 48 and len(decoded) < 1.5 * 48


def test_a_draw_of_tiles_is_repeatable(folder):
    with open_slide(folder / "jpeg.ome.tif") as slide:
        whole = tile_grid(slide, mpp=MPP, tile_px=64)
        some = tile_grid(slide, mpp=MPP, tile_px=64, max_tiles=10, seed=3)
        assert some == tile_grid(slide, mpp=MPP, tile_px=64, max_tiles=10, seed=3)
        assert some != tile_grid(slide, mpp=MPP, tile_px=64, max_tiles=10, seed=4)
        assert len(some) == 10 and some == [box for box in whole if box in set(some)]
        assert tile_grid(slide, mpp=MPP, tile_px=64, max_tiles=10_000) == whole
        assert tile_grid(slide, mpp=MPP, tile_px=4096) == []


def test_resolution_is_needed_and_never_guessed(tmp_path, picture):
    write_svs(tmp_path / "a.svs", picture, said="|AppMag = 20")
    write_pyramid(tmp_path / "b.tif", picture, resolution=300 / 2.54)  # dots an inch, for print
    for name in ("a.svs", "b.tif"):
        with open_slide(tmp_path / name) as slide:
            assert slide.mpp is None
            with pytest.raises(Unreadable, match="how large its pixels are.*--source-mpp"):
                tile_grid(slide, mpp=1, tile_px=64)
        with open_slide(tmp_path / name, mpp=0.25) as slide:
            assert known_mpp(slide) == 0.25
            assert tile_grid(slide, mpp=1, tile_px=64)[0].side == 256


def test_tiles_finer_than_the_scan_are_refused(folder):
    with open_slide(folder / "aperio.svs") as slide:
        assert tile_grid(slide, mpp=0.46, tile_px=128)  # scanners' nominal resolutions are rounded
        with pytest.raises(Unreadable, match="scanned at 0.5 um.*0.25.*--mpp"):
            tile_grid(slide, mpp=0.25, tile_px=128)


def test_tissue_map_is_of_the_survey_resolution(folder, picture):
    with open_slide(folder / "aperio.svs") as slide:
        mask, step = tissue_map(slide)
    assert step == pytest.approx(tissue_grid.SURVEY_MPP / MPP)
    assert mask.shape == (HEIGHT // 16, WIDTH // 16)
    truth = smaller((picture != GLASS).any(-1).astype(np.float32), 16) > 0.5
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.9


# ------------------------------------------------------------------ levels made of numbers

class Levels:
    """Levels whose pixel at level 0's (x, y) is (x // 32, y // 32, level); notes what is read."""

    def __init__(self, *sizes: tuple[int, int], mpp: float | None = None) -> None:
        self.sizes, self.mpp, self.asked = list(sizes), mpp, []

    def read(self, level, left, top, width, height):
        self.asked.append((level, left, top, width, height))
        step = self.sizes[0][0] / self.sizes[level][0]
        x, y = ((start + np.arange(length) + 0.5) * step // 32
                for start, length in ((left, width), (top, height)))
        planes = np.broadcast_arrays(x[None], y[:, None], level)
        return np.stack(planes, -1).clip(0, 255).astype(np.uint8)

    def close(self):
        self.closed = True


@pytest.mark.parametrize(("side", "size", "level"), [
    (512, 512, 0), (512, 256, 0), (512, 131, 0), (512, 128, 1), (512, 127, 1), (512, 40, 1),
    (512, 32, 3), (512, 8, 3), (256, 512, 0)])
def test_the_coarsest_level_that_is_fine_enough_is_read(side, size, level):
    """Levels of 4 and 16 in any order; one of 8 and 16 across is stretched, and never read."""
    levels = Levels((4096, 2048), (1024, 512), (512, 128), (256, 128))
    found = slides.Slide(levels).read(1024, 512, side, size)
    step = (1, 4, None, 16)[level]
    assert levels.asked == [(level, 1024 // step, 512 // step, side // step, side // step)]
    assert found.shape == (size, size, 3)
    assert np.abs(found[0, 0, :2].astype(int) - (32, 16)).max() <= 1  # columns, then rows


@pytest.mark.parametrize(("sizes", "level"), [
    (((4000, 3000), (999, 750)), 1),    # 4.004 by 4: sizes are rounded
    (((4000, 3000), (1000, 740)), 1),   # 4 by 4.05: within 2 %
    (((4000, 3000), (1000, 730)), 0)])  # 4 by 4.11: another field
def test_a_stretched_level_does_not_show_the_same_field(sizes, level):
    levels = Levels(*sizes)
    slides.Slide(levels).read(0, 0, 1620, 400)
    assert levels.asked[0][0] == level


def test_a_thumbnail_is_of_the_whole_slide_by_its_longer_side_and_never_enlarged():
    for size, longest, shape in (((4096, 2048), 256, (128, 256)), ((2048, 4096), 256, (256, 128)),
                                 ((100, 60), 256, (60, 100)), ((5000, 3), 100, (1, 100))):
        levels = Levels(size)
        assert slides.Slide(levels).thumbnail(longest).shape == (*shape, 3)
        assert levels.asked[0][1:3] == (0, 0)
    with slides.Slide(levels):
        pass
    assert levels.closed


def test_what_the_caller_says_of_the_resolution_goes_before_the_file():
    for said, given, expected in ((0.5, None, 0.5), (0.5, 0.25, 0.25), (None, 0.25, 0.25)):
        slide = slides.Slide(Levels((4096, 2048), mpp=said), given)
        assert slide.mpp == known_mpp(slide) == expected


@pytest.fixture
def covered(monkeypatch):
    """Tissue on the left half of a slide; the grid asks for no pixel."""
    def surveyed(slide):
        mask = np.zeros((-(-slide.height // 4), -(-slide.width // 4)), bool)
        mask[:, :slide.width // 8] = True
        return mask, 4

    monkeypatch.setattr(tissue_grid, "tissue_map", surveyed)


def test_the_grid_is_centred_and_of_the_asked_micrometres(covered):
    levels = Levels((1100, 730), mpp=0.25)
    boxes = tile_grid(slides.Slide(levels), mpp=0.5, tile_px=50, min_tissue=0)  # 100 px of level 0
    assert {box.side for box in boxes} == {100} and not levels.asked
    assert sorted({box.left for box in boxes}) == [0, 100, 200, 300, 400, 500]
    assert sorted({box.top for box in boxes}) == [15, 115, 215, 315, 415, 515, 615]
    share = {box.left: box.tissue for box in boxes}
    assert share[400] == 1 and share[500] == pytest.approx(0.48)  # 137 map px: to 548
    assert len(boxes) == 6 * 7  # none of bare glass, even where no tissue is asked for


@pytest.mark.parametrize(("least", "columns"), [(0.25, 6), (0.48, 6), (0.49, 5), (1.0, 5)])
def test_a_tile_holds_at_least_the_asked_share_of_tissue(covered, least, columns):
    boxes = tile_grid(slides.Slide(Levels((1100, 730), mpp=0.25)), mpp=0.5, tile_px=50,
                      min_tissue=least)
    assert len({box.left for box in boxes}) == columns


@pytest.mark.parametrize(("mpp", "taken"), [
    (0.5, True), (0.46, True), (0.449, False), (0.25, False)])
def test_tiles_a_tenth_finer_than_the_scan_are_the_finest(covered, mpp, taken):
    slide = slides.Slide(Levels((1100, 730), mpp=0.5))
    if taken:
        assert tile_grid(slide, mpp=mpp, tile_px=50)
    else:
        with pytest.raises(Unreadable, match="too coarse for tiles"):
            tile_grid(slide, mpp=mpp, tile_px=50)


@pytest.mark.parametrize(("properties", "expected"), [
    ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25"}, 0.25),
    ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.5"}, None),
    ({"openslide.mpp-x": "0.25"}, None), ({"openslide.mpp-x": "25", "openslide.mpp-y": "25"}, None),
    ({}, None)])
def test_openslides_levels_are_placed_in_px_of_level_0(monkeypatch, properties, expected):
    import openslide

    class Opened:
        def __init__(self, path):
            self.level_dimensions, self.level_downsamples = ((400, 300), (100, 75)), (1.0, 4.0)
            self.properties = properties

        def read_region(self, place, level, size):
            rgba = np.full((size[1], size[0], 4), 255, np.uint8)
            rgba[..., :2] = place[0] // 4, place[1] // 4
            rgba[0, 0] = 9, 9, 9, 0
            return rgba

    monkeypatch.setattr(openslide, "OpenSlide", Opened)
    levels = slide_levels.OpenSlideLevels("a.svs")
    assert levels.sizes == [(400, 300), (100, 75)] and levels.mpp == expected
    found = levels.read(1, 10, 20, 6, 5)
    assert found.shape == (5, 6, 3)
    assert found[3, 3].tolist() == [10, 20, 255] and found[0, 0].tolist() == [255] * 3


def test_the_slide_is_the_series_of_most_pixels(tmp_path, picture):
    import tifffile

    small = smaller(picture, 16)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        file.write(255 - small, photometric="rgb", metadata={"axes": "YXS", "Name": "label"})
        for number, level in enumerate((picture[:512, :512], picture[:512:4, :512:4])):
            said = {"metadata": {"axes": "YXS", "Name": "slide"}, "subifds": 1} if not number else {
                "metadata": None, "subfiletype": 1}
            file.write(np.ascontiguousarray(level), **said, **DEFLATE)
    assert is_slide(tmp_path / "a.ome.tif")
    with open_slide(tmp_path / "a.ome.tif") as slide:
        assert (slide.width, slide.height) == (512, 512)
        np.testing.assert_array_equal(slide.read(200, 130, 300, 300), picture[130:430, 200:500])


def test_ycbcr_that_is_not_jpeg_is_refused(tmp_path, picture):
    import tifffile

    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for factor in (1, 2):
            file.write(smaller(picture[:512, :512], factor), photometric="ycbcr", tile=(256, 256),
                       compression="deflate", subfiletype=int(factor > 1), metadata=None)
    with pytest.raises(Unreadable, match="YCbCr colour that is not JPEG"):
        open_slide(tmp_path / "a.tif")


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
def test_alpha_of_a_slide_is_laid_on_white(tmp_path, picture, kind):
    import tifffile

    rgba = np.dstack([picture[256:768, 256:768], np.full((512, 512), 255, np.uint8)])
    rgba[:200] = (64, 32, 0, 128)
    shown = (191, 159, 127) if kind == "assocalpha" else (159, 143, 127)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for factor in (1, 2):
            file.write(np.ascontiguousarray(rgba[::factor, ::factor]), subfiletype=int(factor > 1),
                       metadata=None, extrasamples=[kind], **DEFLATE)
    with open_slide(tmp_path / "a.tif") as slide:
        found = slide.read(0, 0, 512, 512)
    assert np.abs(found[:200].astype(int) - shown).max() <= 1
    np.testing.assert_array_equal(found[200:], rgba[200:, :, :3])


# ------------------------------------------------------------------ damage

@every()
def test_no_truncation_is_missed(folder, tmp_path, name):
    content = (folder / name).read_bytes()
    suffix = "".join((folder / name).suffixes)
    for share in (0, 1e-5, 0.02, 0.3, 0.6, 0.9, 0.99):
        path = tmp_path / f"{share}{suffix}"
        path.write_bytes(content[:int(share * len(content))])
        with pytest.raises(Unreadable), open_slide(path) as slide:
            for top in range(0, HEIGHT, 512):
                for left in range(0, WIDTH, 512):
                    slide.read(left, top, 512, 512)


@pytest.mark.parametrize("name", ["aperio.svs", "bigtiff_pyramid.tif", "jpeg.ome.tif",
                                  "bigtiff.ome.tiff"])
def test_a_damaged_tile_is_refused(folder, tmp_path, name):
    import tifffile

    content = bytearray((folder / name).read_bytes())
    with tifffile.TiffFile(folder / name) as file:
        page = file.pages[0]
        start, size = page.dataoffsets[9], page.databytecounts[9]
        column, row = 9 % -(-WIDTH // page.tilewidth), 9 // -(-WIDTH // page.tilewidth)
        left, top = column * page.tilewidth, row * page.tilelength
    content[start:start + size] = bytes(size)
    path = tmp_path / name
    path.write_bytes(content)
    with open_slide(path) as slide:
        assert slide.read(left + 600, top, 128, 128).any()  # the rest of the slide is there
        with pytest.raises(Unreadable, match="level 0 cannot be decoded|tile 9 of level 0"):
            slide.read(left, top, 64, 64)


@pytest.mark.parametrize("change, reason", [
    (lambda picture: picture.astype(np.uint16) * 257, "uint16: export the slide as 8-bit"),
    (lambda picture: np.stack([picture] * 3), "slide of 3 . x 3 S planes"),
    (lambda picture: picture[..., 0], "grey planes, not of colour"),
])
def test_slides_that_are_not_8_bit_colour_are_refused(tmp_path, picture, change, reason):
    import tifffile

    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        pixels = change(picture[:512, :512])
        kind = "rgb" if pixels.shape[-1] == 3 else "minisblack"
        axes = "YX" if pixels.ndim == 2 else "ZYXS"[-pixels.ndim:]
        file.write(pixels, subifds=0, tile=(256, 256), photometric=kind, metadata={"axes": axes})
    with pytest.raises(Unreadable, match=reason):
        open_slide(tmp_path / "a.ome.tif")


def test_other_refusals_give_the_reason(tmp_path, picture, monkeypatch):
    from PIL import Image

    (tmp_path / "empty.svs").write_bytes(b"")
    (tmp_path / "text.svs").write_text("no slide at all")
    Image.fromarray(picture[:64, :64]).save(tmp_path / "picture.png")
    (tmp_path / "picture.png").rename(tmp_path / "picture.svs")
    for name, reason in (("empty.svs", "is empty"), ("text.svs", "is no whole slide"),
                         ("picture.svs", "is no whole slide")):
        assert is_slide(tmp_path / name)
        with pytest.raises(Unreadable, match=reason):
            open_slide(tmp_path / name)
    write_ome(tmp_path / "a.ome.tif", picture, {"rowsperstrip": HEIGHT, "photometric": "rgb"})
    monkeypatch.setattr(slide_levels, "MAX_SEGMENT_BYTES", 2 << 20)
    with pytest.raises(Unreadable, match="pieces of 9 MB.*tiled pyramid"):
        open_slide(tmp_path / "a.ome.tif")


# ------------------------------------------------------------------ memory

def peak_bytes(path) -> int:
    """Peak of what Python and numpy hold while every tile of a slide is read."""
    tracemalloc.start()
    with open_slide(path) as slide:
        for box in tile_grid(slide, mpp=MPP, tile_px=256, min_tissue=0.5):
            slide.read(*box[:3], 256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_slide(tmp_path, picture, monkeypatch):
    monkeypatch.setattr(slide_levels, "CACHE_BYTES", 4 << 20)
    monkeypatch.setattr(slides, "BLOCK_PX", 512)
    small = np.tile(picture[256:256 + 360, 256:256 + 720], (6, 3, 1))[:2048, :2048]
    large = np.tile(small, (2, 2, 1))
    for name, image in (("warm", small), ("small", small), ("large", large)):
        write_pyramid(tmp_path / f"{name}.tif", image,
                      kind={"tile": (256, 256), "photometric": "rgb"})
    peak_bytes(tmp_path / "warm.tif")  # what is imported stays
    least, most = peak_bytes(tmp_path / "small.tif"), peak_bytes(tmp_path / "large.tif")
    assert least < small.nbytes and most < large.nbytes / 5 and most < 1.5 * least
