"""Decoding of user images: every kind that shall work, and a reason for each that cannot."""

from __future__ import annotations

import io
import struct
import sys
import zlib

import numpy as np
import pytest

from lungkit.formats.channels import MAX_PIXELS, Unreadable
from lungkit.formats.images import decode_image, pixel_size_um
from lungkit.formats.tiff import plausible_um

GREY = np.add.outer(np.arange(40), 3 * np.arange(50)).astype(np.uint8)
RGB = np.stack([GREY, 255 - GREY, GREY // 2], -1)
DEEP = GREY.astype(np.uint16) * 257
STACK = np.stack([DEEP + i for i in range(4)])


def pillow(array, kind, mode=None, **options) -> bytes:
    from PIL import Image

    image = Image.fromarray(array)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(array, **options) -> bytes:
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def opencv(array, suffix) -> bytes:
    import cv2

    return cv2.imencode(suffix, array)[1].tobytes()


def png_header(width, height) -> bytes:
    """A PNG that claims a size and holds nothing."""
    def chunk(name, body):
        checksum = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b""))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("content, expected", [
    (pillow(RGB, "PNG"), RGB),
    (pillow(GREY, "PNG"), GREY),
    (pillow(np.stack([GREY] * 3, -1), "PNG"), GREY),
    (pillow(GREY > 60, "PNG"), (GREY > 60) * np.uint8(255)),
    (opencv(DEEP, ".png"), DEEP),
    (opencv(RGB[..., ::-1].astype(np.uint16) * 257, ".png"), RGB),
    (pillow(RGB, "TIFF"), RGB),
    (pillow(RGB, "TIFF", compression="tiff_lzw"), RGB),
    (pillow(GREY, "TIFF", compression="tiff_lzw"), GREY),
    (opencv(DEEP, ".tif"), DEEP),  # OpenCV writes LZW
    (opencv(RGB[..., ::-1].astype(np.uint16) * 257, ".tif"), RGB),
    (tiff(DEEP, byteorder=">"), DEEP),
    (tiff(RGB, compression="zlib"), RGB),
    (tiff(RGB.astype(np.uint16) * 257), RGB),
    (tiff(np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate"), RGB),
    (tiff(GREY.astype(np.float32)), GREY.astype(np.float32)),
    (tiff(GREY, photometric="miniswhite"), 255 - GREY),
], ids=lambda value: None)
def test_lossless_kinds_keep_their_values(content, expected):
    image = decode_image(content)
    assert image.dtype == expected.dtype
    np.testing.assert_array_equal(image, expected)


def test_jpeg_is_close():
    ramp = np.tile(np.linspace(90, 160, 50, dtype=np.uint8), (40, 1))
    smooth = np.stack([ramp, ramp + 9, ramp + 30], -1)
    for content in (pillow(smooth, "JPEG", quality=95), pillow(smooth, "JPEG", "CMYK", quality=95),
                    pillow(smooth, "TIFF", compression="jpeg", quality=95)):
        assert abs(decode_image(content).astype(int) - smooth).mean() < 3


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("how", [{"quality": 95, "subsampling": 0}, {"quality": 75},
                                 {"quality": 30, "subsampling": 1}, {"progressive": True},
                                 {"optimize": True, "restart_marker_blocks": 3}],
                         ids=["4:4:4", "4:2:0", "4:2:2", "progressive", "restarts"])
def test_a_jpeg_is_what_pillow_makes_of_it(how, orientation):
    from PIL import Image, ImageOps

    exif = Image.Exif()
    exif[274] = orientation
    for side in (32, 47):
        content = pillow(np.ascontiguousarray(RGB[:side, :side + 2]), "JPEG", exif=exif, **how)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        np.testing.assert_array_equal(decode_image(content), np.asarray(expected))


def test_palette_keeps_its_colours():
    few = RGB // 64 * 64
    for kind in ("PNG", "TIFF"):
        image = decode_image(pillow(few, kind, "P"))
        assert image.shape == RGB.shape and np.abs(image.astype(int) - few).mean() < 40


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_transparency_is_laid_on_white(kind):
    alpha = np.full(GREY.shape, 255, np.uint8)
    alpha[:, :25], alpha[:, 25:30] = 0, 128
    image = decode_image(pillow(np.dstack([RGB, alpha]), kind))
    assert (image[:, :25] == 255).all()
    np.testing.assert_array_equal(image[:, 30:], RGB[:, 30:])
    np.testing.assert_allclose(image[:, 25:30], (RGB[:, 25:30] + 255.0) / 2, atol=1.5)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_orientation_is_applied(kind):
    from PIL import Image

    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: rotate by 90 degrees clockwise
    np.testing.assert_array_equal(decode_image(pillow(RGB, kind, exif=exif)), np.rot90(RGB, -1))


@pytest.mark.parametrize("content", [
    tiff(STACK, photometric="rgb", planarconfig="separate", metadata={"axes": "CYX"}),
    tiff(STACK, photometric="minisblack"),                 # pages
    tiff(np.moveaxis(STACK, 0, -1).copy(), photometric="minisblack", planarconfig="contig"),
    tiff(STACK, imagej=True, metadata={"axes": "CYX"}),
    tiff(STACK[None], imagej=True, metadata={"axes": "ZCYX"}),
], ids=["channels", "pages", "interleaved", "imagej", "one-plane stack"])
def test_channel_of_a_microscopy_stack(content):
    for channel in (0, 3):
        np.testing.assert_array_equal(decode_image(content, channel), STACK[channel])
    with pytest.raises(Unreadable, match="4 channels.*--channel.*0 to 3"):
        decode_image(content)
    with pytest.raises(Unreadable, match="no channel 4.*0 to 3"):
        decode_image(content, 4)


NAMES = ["DAPI", "PanCK & Ki-67", "CD8", "2"]


def ome(array, axes="CYX", names=NAMES, **metadata) -> bytes:
    return tiff(array, ome=True, photometric="minisblack",
                metadata={"axes": axes, "Channel": {"Name": names}, **metadata})


@pytest.mark.parametrize("content", [
    ome(STACK), tiff(STACK, imagej=True, metadata={"axes": "CYX", "Labels": NAMES}),
    tiff(STACK, ome=True, photometric="minisblack", bigtiff=True, tile=(16, 16),
         metadata={"axes": "CYX", "Channel": {"Name": NAMES}}),
], ids=["ome", "imagej", "tiled BigTIFF"])
def test_channels_are_chosen_by_name(content):
    with pytest.raises(Unreadable, match=r"--channel \(0 \(DAPI\), 1 \(PanCK"):
        decode_image(content)
    for channel, number in ((2, 2), ("cd8", 2), (" CD8 ", 2), ("panck & ki-67", 1),
                            ("dapi", 0), ("1", 1), ("2", 3)):
        np.testing.assert_array_equal(decode_image(content, channel), STACK[number])
    with pytest.raises(Unreadable, match=r"no channel 'CD4': it has 0 \(DAPI\), .*2 \(CD8\)"):
        decode_image(content, "CD4")


def test_names_of_channels_are_those_of_the_image():
    import tifffile

    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, ome=True) as file:  # an overview comes with names of its own
        for planes, names in ((STACK, list("ABCD")), (STACK[:2, :20, :20], ["A", "overview"])):
            file.write(planes, photometric="minisblack",
                       metadata={"axes": "CYX", "Channel": {"Name": names}})
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), "b"), STACK[1])
    with pytest.raises(Unreadable, match="2 channels named 'a': choose by number"):
        decode_image(ome(STACK, names=["a", "A", "b", "c"]), "a")
    with pytest.raises(Unreadable, match="no channel 'DAPI': it has channels 0 to 3"):
        decode_image(tiff(STACK, photometric="minisblack"), "DAPI")
    with pytest.raises(Unreadable, match="no channel -1"):
        decode_image(ome(STACK), -1)


@pytest.mark.parametrize("name", ["01", "1.50", "ON", "a < b & \"c\"", "Hoechst, 405"])
def test_a_name_is_taken_as_it_is_written(name):
    content = ome(STACK, names=["x", name, "y", "z"])
    np.testing.assert_array_equal(decode_image(content, name), decode_image(content, 1))


def test_a_damaged_description_names_no_channel():
    content = ome(STACK)
    damaged = content.replace(b"</Pixels>", b"</Pixelz>")
    assert damaged != content and pixel_size_um(damaged) is None
    with pytest.raises(Unreadable, match="--channel"):
        decode_image(damaged, None)


def test_channel_of_a_colour_image():
    for channel in (1, "1", "green", "GREEN"):
        np.testing.assert_array_equal(decode_image(pillow(RGB, "PNG"), channel), RGB[..., 1])
    np.testing.assert_array_equal(decode_image(tiff(RGB), "blue"), RGB[..., 2])
    with pytest.raises(Unreadable, match="no channel 3: it has 0 .red., 1 .green., 2 .blue."):
        decode_image(pillow(RGB, "PNG"), 3)
    with pytest.raises(Unreadable, match="no channel 'DAPI'.*channel 0 only"):
        decode_image(pillow(GREY, "PNG"), "DAPI")


FOCUS = np.random.default_rng(1).integers(0, 60_000, (5, 3, 40, 50)).astype(np.uint16)  # ZCYX


@pytest.mark.parametrize("content", [
    tiff(FOCUS, imagej=True, metadata={"axes": "ZCYX"}),
    tiff(FOCUS[None], imagej=True, metadata={"axes": "TZCYX"}),
    tiff(FOCUS[None], imagej=True, metadata={"axes": "TZCYX"}, bigtiff=False, byteorder=">"),
    ome(FOCUS, "ZCYX", NAMES[:3]),
    ome(FOCUS.swapaxes(0, 1), "CZYX", NAMES[:3]),
    tiff(FOCUS.swapaxes(0, 1), ome=True, photometric="minisblack", bigtiff=True, tile=(16, 16),
         compression="lzw", metadata={"axes": "CZYX", "Channel": {"Name": NAMES[:3]}}),
    tiff(np.moveaxis(FOCUS, 1, -1).copy(), photometric="minisblack", planarconfig="contig",
         metadata={"axes": "ZYXC"}),
], ids=["imagej", "imagej T=1", "imagej big-endian", "ome", "ome CZ", "BigTIFF", "interleaved"])
def test_focal_planes_are_projected(content):
    for channel in (0, 2):
        image = decode_image(content, channel)
        assert image.dtype == np.uint16
        np.testing.assert_array_equal(image, FOCUS[:, channel].max(0))
    mean = decode_image(content, 1, "mean")
    assert mean.dtype == np.uint16 and np.abs(mean - FOCUS[:, 1].mean(0)).max() <= 0.5
    with pytest.raises(Unreadable, match="3 channels.*--channel"):
        decode_image(content)


def test_focal_planes_of_one_channel_need_no_channel():
    content = tiff(FOCUS[:, 0], imagej=True, metadata={"axes": "ZYX"})
    np.testing.assert_array_equal(decode_image(content), FOCUS[:, 0].max(0))
    real = (FOCUS[:, 0] / 60_000).astype(np.float32)
    np.testing.assert_allclose(decode_image(tiff(real, metadata={"axes": "ZYX"}), None, "mean"),
                               real.mean(0), rtol=1e-5)
    dark = tiff(FOCUS[:, 0], photometric="miniswhite", metadata={"axes": "ZYX"})
    np.testing.assert_array_equal(decode_image(dark), (65535 - FOCUS[:, 0]).max(0))
    with pytest.raises(ValueError, match="median.*max, mean"):
        decode_image(content, None, "median")


def test_only_the_planes_asked_for_are_decoded(monkeypatch):
    import tifffile

    content, decoded = ome(FOCUS, "ZCYX", NAMES[:3], compression="zlib"), []
    whole = tifffile.TiffPage.asarray
    monkeypatch.setattr(tifffile.TiffPage, "asarray",
                        lambda page, *a, **k: decoded.append(page.index) or whole(page, *a, **k))
    decode_image(content, 1)
    assert 1 <= len(decoded) <= len(FOCUS)


def test_stacks_that_no_channel_and_projection_reduce_are_refused():
    with pytest.raises(Unreadable, match="time series of 2 images"):
        decode_image(tiff(STACK[:2], imagej=True, metadata={"axes": "TYX"}), 0)
    with pytest.raises(Unreadable, match="time series of 5 images"):
        decode_image(tiff(FOCUS, imagej=True, metadata={"axes": "TCYX"}), 0)
    with pytest.raises(Unreadable, match="stack of 5 . x 3 . planes"):
        decode_image(tiff(FOCUS, photometric="minisblack"), 0)


def test_a_missing_plane_is_not_filled_in():
    """Of an OME-TIFF spread over files, or stopped while it was taken, planes are elsewhere."""
    content = ome(STACK)
    lost = content.replace(b'<TiffData IFD="0" PlaneCount="4"/>',
                           b'<TiffData IFD="0" PlaneCount="2"/>')
    assert lost != content
    np.testing.assert_array_equal(decode_image(lost, 1), STACK[1])
    with pytest.raises(Unreadable, match="lacks a plane"):
        decode_image(lost, 2)


@pytest.mark.parametrize("content, expected", [
    (ome(STACK, PhysicalSizeX=0.25, PhysicalSizeXUnit="µm", PhysicalSizeY=0.25,
         PhysicalSizeYUnit="µm"), 0.25),
    (ome(STACK, PhysicalSizeX=0.5, PhysicalSizeY=0.5), 0.5),
    (ome(STACK, PhysicalSizeX=325, PhysicalSizeXUnit="nm", PhysicalSizeY=0.000325,
         PhysicalSizeYUnit="mm"), 0.325),
    (ome(STACK, PhysicalSizeX=0.25, PhysicalSizeY=0.5), None),     # not square
    (ome(STACK, PhysicalSizeX=1, PhysicalSizeXUnit="pixel", PhysicalSizeY=1,
         PhysicalSizeYUnit="pixel"), None),
    (ome(STACK), None),
    (tiff(STACK, imagej=True, resolution=(4, 4), metadata={"unit": "um"}), 0.25),
    (tiff(STACK, imagej=True, resolution=(2.5, 2.5), metadata={"unit": "micron"}), 0.4),
    (tiff(STACK, imagej=True, resolution=(2.5, 2.5), metadata={"unit": r"\u00B5m"}), 0.4),
    (tiff(STACK, imagej=True, resolution=(2500, 2500), metadata={"unit": "mm"}), 0.4),
    (tiff(RGB, resolution=(20_000, 20_000), resolutionunit="centimeter"), 0.5),
    (tiff(RGB, resolution=(50_800, 50_800), resolutionunit="inch"), 0.5),
    (tiff(RGB, resolution=(72, 72), resolutionunit="inch"), None),  # a printer's, not a lens's
    (tiff(RGB, resolution=(20_000, 20_000), resolutionunit="none"), None),
    (tiff(RGB), None), (pillow(RGB, "PNG", dpi=(50_800, 50_800)), None), (b"II*\0\x08", None),
])
def test_pixel_size(content, expected):
    found = pixel_size_um(content)
    assert found is None if expected is None else found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("content, reason", [
    (b"", "is empty"),
    (b"not an image at all\n", "not a PNG, JPEG or TIFF"),
    (opencv(RGB, ".bmp"), "not a PNG, JPEG or TIFF"),
    (png_header(100_000, 100_000), "100000 x 100000"),
    (png_header(20_000, MAX_PIXELS // 20_000 + 1), "megapixels"),
    (png_header(2, 2), "2 x 2"),
    (tiff(GREY.astype(np.int32)), "int32"),
    (tiff(np.full((40, 50), np.nan, np.float32)), "NaN"),
    (b"II*\0\x08\0\0\0", "truncated or damaged"),
])
def test_refusals_give_the_reason(content, reason):
    with pytest.raises(Unreadable, match=reason):
        decode_image(content)


# the last tifffile for Python 3.10 reads on without one byte more of the last tag
LOST_TAG_BYTES = 20 if sys.version_info >= (3, 11) else 21


@pytest.mark.parametrize("content", [
    pillow(RGB, "PNG"), pillow(RGB, "JPEG"), pillow(RGB, "TIFF"), tiff(RGB, compression="zlib"),
    pillow(RGB, "TIFF", compression="tiff_lzw"),
    tiff(STACK, photometric="minisblack", metadata={"axes": "CYX"}),
    tiff(STACK, photometric="minisblack", metadata=None),
    tiff(STACK, photometric="minisblack", ome=True),
    tiff(STACK, imagej=True, metadata={"axes": "CYX"}),
], ids=["png", "jpeg", "tiff", "deflate", "lzw", "channels", "pages", "ome", "imagej"])
def test_no_truncation_is_missed(content):
    """Cut anywhere: refused, or (only the end of a tag was lost) decoded to the same pixels."""
    channel = 0 if len(content) > 15_000 else None
    whole = decode_image(content, channel)
    for cut in (*range(1, 40), *np.linspace(40, len(content) - 1, 60).astype(int)):
        try:
            part = decode_image(content[:-int(cut)], channel)
        except Unreadable:
            continue
        assert cut < LOST_TAG_BYTES, f"accepted without its last {cut} bytes"
        np.testing.assert_array_equal(part, whole)


def test_a_changed_byte_never_ends_in_a_traceback():
    rng = np.random.default_rng(0)
    for content in (pillow(RGB, "PNG"), pillow(RGB, "JPEG"), tiff(RGB),
                    tiff(RGB, compression="zlib")):
        for _ in range(60):
            broken = bytearray(content)
            for place in rng.integers(4, min(len(broken), 400), 3):
                broken[place] = rng.integers(256)
            try:
                decode_image(bytes(broken))
            except Unreadable:
                pass


def test_pages_may_be_focal_planes():
    content = tiff(STACK, photometric="minisblack", metadata=None)
    with pytest.raises(Unreadable, match="--channel .*--pages-are planes"):
        decode_image(content)
    np.testing.assert_array_equal(decode_image(content, pages_are="planes"), STACK.max(0))
    named = tiff(STACK, photometric="minisblack", metadata={"axes": "CYX"})
    with pytest.raises(Unreadable, match="--channel"):  # the file itself says that they are none
        decode_image(named, pages_are="planes")
    with pytest.raises(ValueError, match="'z' is none of channels, planes"):
        decode_image(content, pages_are="z")


def test_a_preview_is_not_taken_for_the_picture():
    import tifffile

    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for image in (RGB[:20, :20], RGB):
            writer.write(np.ascontiguousarray(image), photometric="rgb", metadata=None)
    with pytest.raises(Unreadable, match="20 x 20 pixels first and .* later"):
        decode_image(file.getvalue())


# ------------------------------------------------------------------ values, exactly

def test_colour_of_16_bit_is_rounded_to_8():
    deep = np.random.default_rng(0).integers(0, 65536, (20, 24, 3)).astype(np.uint16)
    deep[0, :2] = [[0, 127, 129], [65535, 65407, 65405]]
    expected = np.round(deep / 257.0).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(tiff(deep, photometric="rgb")), expected)


def test_grey_of_16_bit_keeps_its_values_whatever_they_span():
    dim = np.random.default_rng(0).integers(0, 4096, (20, 24)).astype(np.uint16)  # 12 of 16 bits
    for content in (opencv(dim, ".png"), tiff(dim), tiff(dim, imagej=True)):
        found = decode_image(content)
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, dim)


@pytest.mark.parametrize("place", [(0, 0), (1, 1), (39, 49)])
def test_one_coloured_pixel_makes_a_colour_image(place):
    grey = np.stack([GREY] * 3, -1)
    for channel in range(3):
        image = grey.copy()
        image[(*place, channel)] ^= 1
        np.testing.assert_array_equal(decode_image(pillow(image, "PNG")), image)
    assert decode_image(pillow(grey, "PNG")).ndim == 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_every_orientation_is_undone_as_pillow_does(kind, tag):
    from PIL import Image, ImageOps

    exif = Image.Exif()
    exif[274] = tag
    content = pillow(RGB, kind, exif=exif)
    upright = {1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1],
               5: RGB.swapaxes(0, 1), 6: np.rot90(RGB, -1), 7: np.rot90(RGB, 2).swapaxes(0, 1),
               8: np.rot90(RGB)}[tag]
    opened = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(np.asarray(opened), upright)
    np.testing.assert_array_equal(decode_image(content), upright)


def test_a_channel_is_turned_like_its_image():
    content = tiff(STACK, photometric="minisblack", metadata=None,
                   extratags=[(274, "H", 1, 6, True)])
    np.testing.assert_array_equal(decode_image(content, 2), np.rot90(STACK[2], -1))


def test_transparency_of_grey_and_of_palettes_is_laid_on_white():
    from PIL import Image

    alpha = np.where(np.arange(50) < 25, 0, 255).astype(np.uint8)[None].repeat(40, 0)
    grey = pillow(np.dstack([GREY, alpha]), "PNG")
    palette = Image.fromarray((np.arange(50) // 10).astype(np.uint8)[None].repeat(40, 0), "P")
    palette.putpalette([10, 20, 30, 90, 80, 70, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=1)
    found = decode_image(grey)
    assert (found[:, :25] == 255).all()
    np.testing.assert_array_equal(found[:, 25:], GREY[:, 25:])
    colours = decode_image(buffer.getvalue())[0, ::10].tolist()
    assert colours == [[10, 20, 30], [255, 255, 255], [200, 0, 0], [0, 200, 0], [0, 0, 200]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_palettes_colours_are_exact(kind):
    from PIL import Image

    index = np.random.default_rng(0).integers(0, 4, (30, 40)).astype(np.uint8)
    colours = np.array([[10, 20, 30], [90, 80, 70], [200, 0, 5], [0, 210, 100]], np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(colours.ravel().tolist())
    buffer = io.BytesIO()
    image.save(buffer, kind)
    np.testing.assert_array_equal(decode_image(buffer.getvalue()), colours[index])


def test_alpha_of_colour_is_laid_on_white_to_the_nearest_level():
    rgba = np.random.default_rng(0).integers(0, 256, (40, 50, 4), np.uint8)
    share = rgba[..., 3:] / 255.0
    expected = rgba[..., :3] * share + 255 * (1 - share)
    multiplied = np.dstack([np.round(rgba[..., :3] * share), rgba[..., 3]]).astype(np.uint8)
    for content in (pillow(rgba, "PNG"), tiff(rgba, photometric="rgb", extrasamples=["unassalpha"]),
                    tiff(multiplied, photometric="rgb", extrasamples=["assocalpha"])):
        assert np.abs(decode_image(content) - expected).max() <= 0.51


@pytest.mark.parametrize(("x", "y", "expected"), [
    (0.02, 0.02, 0.02), (0.019, 0.019, None), (10, 10, 10), (10.1, 10.1, None),
    (0.5, 0.524, (0.5 * 0.524) ** 0.5), (0.5, 0.53, None), (0.53, 0.5, None), (0, 0, None),
    (float("nan"), 0.5, None), (0.5, float("inf"), None), (-0.5, -0.5, None)])
def test_a_pixel_is_square_and_of_a_microscopes_size(x, y, expected):
    assert plausible_um(x, y) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(("options", "expected"), [
    ({"resolution": (20_000, 20_800), "resolutionunit": "centimeter"}, 0.4903),
    ({"resolution": (20_000, 10_000), "resolutionunit": "centimeter"}, None),
    ({"resolution": (20_000, 20_000), "resolutionunit": "inch"}, 1.27),
    ({"resolution": ((40_000, 2), (40_000, 2)), "resolutionunit": "centimeter"}, 0.5),
    ({"resolution": (2, 2), "imagej": True, "metadata": {"unit": "um"}}, 0.5)])
def test_resolution_tags_are_pixels_a_unit(options, expected):
    array = GREY if options.get("imagej") else RGB
    found = pixel_size_um(tiff(array, **options))
    assert found == (None if expected is None else pytest.approx(expected, rel=1e-3))


def test_omes_size_goes_before_the_tags():
    content = ome(STACK, PhysicalSizeX=0.25, PhysicalSizeY=0.25)
    assert pixel_size_um(content) == 0.25
    tagged = tiff(STACK, ome=True, photometric="minisblack", resolution=(20_000, 20_000),
                  resolutionunit="centimeter",
                  metadata={"axes": "CYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25})
    assert pixel_size_um(tagged) == 0.25
    unsaid = tiff(STACK, ome=True, photometric="minisblack", resolution=(20_000, 20_000),
                  resolutionunit="centimeter", metadata={"axes": "CYX"})
    assert pixel_size_um(unsaid) == pytest.approx(0.5)


def test_a_projection_is_of_the_chosen_channel_and_of_every_plane():
    planes = np.zeros((3, 2, 20, 24), np.uint16)  # ZCYX
    for z in range(3):
        planes[z, 0, z, 0] = 900 + z
        planes[z, 1, 10, z] = 90 + z
    content = ome(planes, "ZCYX", ["DAPI", "CD8"])
    found = decode_image(content, "cd8")
    assert found[10, :3].tolist() == [90, 91, 92] and found.sum() == 273
    assert decode_image(content, "cd8", "mean")[10, :3].tolist() == [30, 30, 31]
    assert decode_image(content, "DAPI")[:3, 0].tolist() == [900, 901, 902]


def test_a_short_side_is_refused_in_either_direction():
    for shape in ((15, 40), (40, 15)):
        with pytest.raises(Unreadable, match=f"is {shape[1]} x {shape[0]} pixels, less than 16"):
            decode_image(pillow(np.full(shape, 90, np.uint8), "PNG"))
        with pytest.raises(Unreadable, match="less than 16 a side"):
            decode_image(tiff(np.full(shape, 90, np.uint8)))
    assert decode_image(pillow(np.full((16, 40), 90, np.uint8), "PNG")).shape == (16, 40)
