"""Pictures that have lost data and decode all the same: refused in every format that holds JPEG."""

from __future__ import annotations

import io

import numpy as np
import pytest

from lungkit.formats import slides
from lungkit.formats.channels import Unreadable
from lungkit.formats.images import decode_image

SIDE = 160
RNG = np.random.default_rng(0)
RGB = np.clip(np.add.outer(np.arange(SIDE), np.arange(SIDE))[..., None] / 2
              + RNG.normal(20, 12, (SIDE, SIDE, 3)), 0, 255).astype(np.uint8)
GREY = RGB[..., 0]
END = b"\xff\xd9"


def pillow(array, kind="JPEG", mode=None, **options) -> bytes:
    from PIL import Image

    image, buffer = Image.fromarray(array), io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(array, **options) -> bytes:
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **{"compression": "jpeg", **options})
    return buffer.getvalue()


def turned() -> bytes:
    from PIL import Image

    exif = Image.Exif()
    exif[274] = 6
    return pillow(RGB, exif=exif)


KINDS = {
    "colour": pillow(RGB),
    "grey": pillow(GREY),
    "cmyk": pillow(RGB, mode="CMYK"),
    "turned": turned(),
    "4:4:4, optimised": pillow(RGB, quality=95, subsampling=0, optimize=True),
    "restarts": pillow(RGB, restart_marker_rows=1),
    "tiff, colour": tiff(RGB, photometric="rgb"),
    "tiff, YCbCr": tiff(RGB, photometric="ycbcr", subsampling=(2, 2)),
    "tiff, grey": tiff(GREY),
    "tiff, tiles": tiff(RGB, tile=(80, 80)),
    "tiff, pages": tiff(np.stack([GREY, GREY]), photometric="minisblack"),
    "tiff of libtiff": pillow(RGB, "TIFF", compression="jpeg"),
}
PROGRESSIVE = pillow(RGB, progressive=True)


def data_of(content: bytes) -> tuple[int, int]:
    """Where the data of the first scan begin, and the last stream of the file ends."""
    if content[:2] == b"\xff\xd8":
        start = content.index(b"\xff\xda")
        return start + 2 + int.from_bytes(content[start + 2:start + 4], "big"), len(content)
    import tifffile

    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page = file.pages[0]
        start = page.dataoffsets[0]
        stop = start + page.databytecounts[0]
    return content.index(b"\xff\xda", start) + 14, stop


def without_half(content: bytes, share: float = 0.5) -> bytes:
    """Half of the data lost, but for the marker of the end; a TIFF keeps its length."""
    start, stop = data_of(content)
    kept = content[:start + int(share * (stop - start))] + END
    return kept if content[:2] == b"\xff\xd8" else kept + bytes(stop - len(kept)) + content[stop:]


def with_a_hole(content: bytes, size: int = 512, share: float = 0.3) -> bytes:
    start, stop = data_of(content)
    at = start + int(share * (stop - start))
    return content[:at] + bytes(size) + content[at + size:]


DAMAGE = {
    "half is lost": without_half,
    "a tenth is left": lambda content: without_half(content, 0.1),
    "the last hundredth is lost": lambda content: without_half(content, 0.99),
    "512 zeros": with_a_hole,
    "40 zeros": lambda content: with_a_hole(content, 40, 0.6),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("content", KINDS.values(), ids=KINDS)
def test_a_picture_that_has_lost_data_is_refused(content, damage):
    channel = 0 if content == KINDS["tiff, pages"] else None
    assert decode_image(content, channel).shape[:2] == (SIDE, SIDE)
    with pytest.raises(Unreadable, match="is damaged: (data are lost|a block of zeros)"):
        decode_image(damage(content), channel)


@pytest.mark.parametrize("name", ["colour", "grey", "cmyk", "turned"])
@pytest.mark.parametrize("behind", [b"\0" * 4096, END, b"a note of the camera", KINDS["grey"],
                                    PROGRESSIVE[:1500]],
                         ids=["zeros", "a second end", "text", "a second picture", "a cut one"])
def test_bytes_behind_the_end_do_not_matter(name, behind):
    np.testing.assert_array_equal(decode_image(KINDS[name] + behind), decode_image(KINDS[name]))


@pytest.mark.parametrize("share", np.linspace(0.02, 0.99, 15))
def test_a_progressive_picture_lacks_no_scan(share):
    content, (start, stop) = PROGRESSIVE, data_of(PROGRESSIVE)
    assert decode_image(content).shape == RGB.shape
    with pytest.raises(Unreadable, match="is damaged"):
        decode_image(content[:start + int(share * (stop - start))] + END)
    scans = [i for i in range(start, stop) if content[i:i + 2] == b"\xff\xda"]
    with pytest.raises(Unreadable, match="some of its scans are lost"):
        decode_image(content[:scans[int(share * len(scans))]] + END)  # a coarse picture, whole


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("how", [{"optimize": True}, {"progressive": True}, {}],
                         ids=["optimised", "progressive", "plain"])
def test_a_flat_or_regular_picture_may_be_full_of_zeros(mode, how):
    down, across, _ = np.mgrid[:SIDE, :SIDE, :3]
    for image in (np.full_like(RGB, 255), np.zeros_like(RGB), np.where(down < 80, RGB, 255),
                  255 * (across % 2)):
        image = image.astype(np.uint8)
        for quality in (10, 90):
            content = pillow(image, mode=mode, quality=quality, **how)
            assert decode_image(content).shape[:2] == (SIDE, SIDE)


def test_notes_of_an_odd_kind_are_no_loss():
    """A JFIF version that does not exist is warned of, too, before any data."""
    content = KINDS["colour"]
    version = content.index(b"JFIF\0") + 5
    odd = content[:version] + b"\x09" + content[version + 1:]
    np.testing.assert_array_equal(decode_image(odd), decode_image(content))
    with pytest.raises(Unreadable, match="data are lost"):
        decode_image(without_half(odd))


def test_a_jpeg_whose_loss_would_not_be_noticed_is_refused_as_such():
    with pytest.raises(Unreadable, match="JPEG of a rare kind .* save it as PNG or TIFF"):
        decode_image(pillow(RGB, mode="CMYK", subsampling=1))


def test_a_palette_that_cannot_be_inflated_is_refused():
    """libtiff leaves out the rest, and Pillow does not say so."""
    content = pillow(GREY, "TIFF", "P", compression="tiff_adobe_deflate")
    assert decode_image(content).shape[:2] == (SIDE, SIDE)
    middle = len(content) // 2
    with pytest.raises(Unreadable, match="is truncated or damaged"):
        decode_image(content[:middle] + bytes(300) + content[middle + 300:])


@pytest.mark.parametrize("compression", [None, "zlib", "jpeg"])
def test_a_page_that_lacks_a_strip_is_refused(compression):
    import struct

    import tifffile

    content = tiff(RGB, compression=compression, rowsperstrip=80, metadata=None)
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        tag = file.pages[0].tags["StripByteCounts"]
    lost = bytearray(content)
    struct.pack_into({3: "<H", 4: "<I"}[int(tag.dtype)], lost,
                     tag.valueoffset + {3: 2, 4: 4}[int(tag.dtype)], 0)
    with pytest.raises(Unreadable, match="lacks a part of its image"):
        decode_image(bytes(lost))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("shared", [False, True], ids=["own tables", "shared tables"])
def test_a_pyramid_of_jpeg_is_refused_where_it_lost_data(tmp_path, damage, shared):
    import tifffile

    path = tmp_path / "pyramid.tif"
    how = {"tile": (SIDE, SIDE), "compression": "jpeg", "photometric": "ycbcr",
           "subsampling": (2, 2)}
    if shared:
        how |= shared_tables()
    wide = np.hstack([RGB, RGB[:, ::-1]])
    with tifffile.TiffWriter(path) as file:
        file.write(how.pop("pieces", None) or wide, subifds=1, shape=wide.shape, dtype="uint8",
                   **how)
        file.write(wide[::2, ::2], subfiletype=1, **{**how, "tile": (80, 80), "compression": None,
                                                     "photometric": "rgb", "subsampling": None,
                                                     "jpegtables": None})
    content = path.read_bytes()
    with slides.open_slide(path) as slide:
        assert slide.read(0, 0, SIDE, SIDE).shape == RGB.shape
    path.write_bytes(damage(content))
    with slides.open_slide(path) as slide:
        assert slide.read(SIDE, 0, SIDE, SIDE).any()  # the rest of the slide is there
        with pytest.raises(Unreadable, match="has lost data: tile 0 of level 0 is damaged"):
            slide.read(0, 0, SIDE, SIDE)


def shared_tables() -> dict:
    """Tiles whose tables are apart, as scanners write them, and these tables."""
    pieces, tables = [], b""
    for image in (RGB, RGB[:, ::-1].copy()):
        content = pillow(image, quality=90)
        start = content.index(b"\xff\xdb")
        frame, scan = content.index(b"\xff\xc0"), content.index(b"\xff\xda")
        codes = content.index(b"\xff\xc4")
        tables = b"\xff\xd8" + content[start:frame] + content[codes:scan] + END
        pieces.append(b"\xff\xd8" + content[frame:codes] + content[scan:])
    return {"pieces": iter(pieces), "jpegtables": tables}
