"""Samples of a pixel: alpha or not by what the file says, and how many of 16 bits are in use."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest

from lungkit.formats import slides
from lungkit.formats.channels import Unreadable
from lungkit.formats.images import decode_image

SIDE = 48
RGB = np.random.default_rng(0).integers(30, 256, (SIDE, SIDE, 3)).astype(np.uint8)
FOURTH = np.add.outer(np.arange(SIDE), np.arange(SIDE)).astype(np.uint8) + 100
ALPHA = FOURTH[..., None] / 255
PREMULTIPLIED = np.rint(RGB * ALPHA).astype(np.uint8)
ON_WHITE = 255 - ALPHA * (255.0 - RGB)
GREY_ON_WHITE = ON_WHITE[..., 0]


def tiff(*samples, **options) -> bytes:
    import tifffile

    buffer = io.BytesIO()
    options = {"photometric": "rgb", "planarconfig": "contig", "metadata": None, **options}
    tifffile.imwrite(buffer, np.dstack(samples), **options)
    return buffer.getvalue()


def retagged(content: bytes, kind: int | None) -> bytes:
    """The same with another value of ExtraSamples, or without the tag."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        tag = file.pages[0].tags["ExtraSamples"]
    changed = bytearray(content)
    if kind is None:
        struct.pack_into("<H", changed, tag.offset, 60_000)  # a tag that nobody knows
    else:
        struct.pack_into("<H", changed, tag.valueoffset, kind)
    return bytes(changed)


INFRARED = tiff(RGB, FOURTH, extrasamples=["unspecified"])


@pytest.mark.parametrize(("content", "expected"), [
    (INFRARED, RGB),
    (tiff(RGB, 0 * FOURTH, extrasamples=["unspecified"]), RGB),
    (tiff(RGB, FOURTH, FOURTH, extrasamples=["unspecified"] * 2), RGB),
    (tiff(RGB, FOURTH, extrasamples=["unassalpha"]), ON_WHITE),
    (tiff(PREMULTIPLIED, FOURTH, extrasamples=["assocalpha"]), ON_WHITE),
    (tiff(RGB, 0 * FOURTH, FOURTH, extrasamples=["unspecified", "unassalpha"]), ON_WHITE),
    (tiff(RGB.astype(np.uint16) * 257, FOURTH.astype(np.uint16) * 257,
          extrasamples=["unspecified"]), RGB),
    (tiff(PREMULTIPLIED.astype(np.uint16) * 257, FOURTH.astype(np.uint16) * 257,
          extrasamples=["assocalpha"]), ON_WHITE),
    (tiff(RGB[..., 0], FOURTH, photometric="minisblack", extrasamples=["unassalpha"]),
     GREY_ON_WHITE),
    (tiff(PREMULTIPLIED[..., 0], FOURTH, photometric="minisblack", extrasamples=["assocalpha"]),
     GREY_ON_WHITE),
    (retagged(tiff(RGB, 0 * FOURTH + 255, extrasamples=["unspecified"]), None), RGB),
], ids=["infra-red", "zeros", "two of them", "alpha", "premultiplied", "zeros and alpha",
        "infra-red of 16 bits", "premultiplied of 16 bits", "grey and alpha",
        "grey premultiplied", "opaque without a tag"])
def test_a_further_sample_is_alpha_only_where_the_file_says_so(content, expected):
    image = decode_image(content)
    assert image.shape == expected.shape and image.dtype == np.uint8
    assert np.abs(image - expected).max() <= 1.5  # premultiplied values are rounded


@pytest.mark.parametrize(("content", "words"), [
    (retagged(INFRARED, None), "holds 4 samples a pixel and does not say what those after"),
    (retagged(INFRARED, 7), r"samples of the kinds 7 \(ExtraSamples\)"),
    (tiff(RGB, FOURTH, FOURTH, extrasamples=["unassalpha"] * 2), "of the kinds 2, 2"),
], ids=["no tag", "unknown", "two alphas"])
def test_a_sample_of_an_unknown_kind_is_refused(content, words):
    with pytest.raises(Unreadable, match=words):
        decode_image(content)


@pytest.mark.parametrize(("kind", "image", "expected"), [
    ("unspecified", RGB, RGB), ("unassalpha", RGB, ON_WHITE),
    ("assocalpha", PREMULTIPLIED, ON_WHITE)])
def test_a_further_sample_of_a_slide_is_alpha_if_it_says_so(tmp_path, kind, image, expected):
    import tifffile

    path = tmp_path / "slide.tif"
    wide = np.tile(np.dstack([image, FOURTH]), (4, 4, 1))
    with tifffile.TiffWriter(path) as file:
        for step in (1, 2):
            file.write(wide[::step, ::step], subifds=2 - step, subfiletype=step - 1, tile=(96, 96),
                       photometric="rgb", extrasamples=[kind])
    with slides.open_slide(path) as slide:
        found = slide.read(0, 0, SIDE, SIDE)
    assert np.abs(found - expected).max() <= 1.5


# ------------------------------------------------------------------ bits in use

def deep(bits: int) -> np.ndarray:
    """RGB in uint16 of which so many bits are in use."""
    return np.rint(RGB * (((1 << bits) - 1) / 255)).astype(np.uint16)


def png(image: np.ndarray) -> bytes:
    order = [2, 1, 0, 3][:image.shape[2]]
    return cv2.imencode(".png", image[..., order])[1].tobytes()


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("write", [tiff, png])
def test_colour_of_fewer_bits_than_16_is_scaled_or_named(write, bits):
    content = write(deep(bits))
    with pytest.raises(Unreadable, match=f"only, {bits} bits: .*--source-bits"):
        decode_image(content)
    np.testing.assert_array_equal(decode_image(content, source_bits=bits), RGB)
    assert decode_image(content, source_bits=16).max() <= 64  # it may be as dark as that
    with pytest.raises(Unreadable, match=f"more than {bits - 1} bits"):
        decode_image(content, source_bits=bits - 1)


@pytest.mark.parametrize("write", [tiff, png])
def test_colour_of_16_bits_is_taken_as_it_is(write):
    np.testing.assert_array_equal(decode_image(write(deep(16))), RGB)
    assert not decode_image(write(0 * deep(16))).any()  # black is black


def test_what_a_file_says_of_its_bits_goes_before_the_option():
    packed = tiff(deep(12), bitspersample=12)
    described = tiff(deep(12), ome=True, metadata={"axes": "YXS", "SignificantBits": 12})
    for content in (packed, described):
        for bits in (None, 12, 16):
            np.testing.assert_array_equal(decode_image(content, source_bits=bits), RGB)
    wrong = tiff(deep(16), ome=True, metadata={"axes": "YXS", "SignificantBits": 12})
    np.testing.assert_array_equal(decode_image(wrong), RGB)


def test_alpha_may_have_more_bits_than_colour():
    opaque = np.dstack([deep(12), np.full((SIDE, SIDE), 65535, np.uint16)])
    np.testing.assert_array_equal(decode_image(png(opaque), source_bits=12), RGB)
    np.testing.assert_array_equal(
        decode_image(tiff(opaque, extrasamples=["unassalpha"]), source_bits=12), RGB)


def test_a_png_of_16_bits_is_rounded_and_turned_as_others_are():
    from PIL import Image

    values = np.random.default_rng(1).integers(0, 65536, (20, 24, 3)).astype(np.uint16)
    expected = np.round(values / 257.0).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(png(values)), expected)
    exif = Image.Exif()
    exif[274] = 6
    note = exif.tobytes().removeprefix(b"Exif\0\0")
    content = png(values)
    chunk = struct.pack(">I", len(note)) + b"eXIf" + note
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    turned = content[:33] + chunk + content[33:]
    np.testing.assert_array_equal(decode_image(turned), np.rot90(expected, -1))
