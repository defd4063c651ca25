"""Decode TIFF, BigTIFF, OME-TIFF and ImageJ hyperstacks, and read what they say of themselves.

Of a stack one channel is chosen by number or name, its focal planes (axis Z) are projected to one,
time series are refused. OME and ImageJ say which plane is what; of a plain TIFF of several grey
pages nothing does: PAGES_ARE, by option.

Pixel sizes: PhysicalSizeX of the OME model (Goldberg et al. 2005, Genome Biology 6:R47), ImageJ's
unit, or the resolution tags of TIFF 6.0.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import zlib
from math import prod
from xml.etree import ElementTree

import numpy as np

from lungkit.formats.channels import (
    ASSOCIATED,
    UNASSOCIATED,
    Unreadable,
    channel_words,
    check_size,
    find_channel,
    flatten,
    pick_channel,
    to_8_bits,
    without_extras,
)
from lungkit.formats.jpeg import check_jpeg

# Plausible side of a pixel in a microscope's image. Ours: half the finest sampling of a light
# microscope to that of its weakest objective; 72 to 2,400 dpi, written for printers, lie outside.
PLAUSIBLE_UM = (0.02, 10)
MAX_ASPECT = 1.05         # ours: pixels less square have no one size
OLD_JPEG, JPEGS = 6, (7, 33007)  # compressions; of the latter each piece is a JPEG stream
DEFLATES = (8, 32946)
_GREY, _RGB = (0, 1), 2  # TIFF photometric: white is zero, black is zero; RGB
_MICROMETRES = {"um": 1, "\u00b5m": 1, "\u03bcm": 1, "micron": 1, "microns": 1, "micrometer": 1,
                "nm": 1e-3, "pm": 1e-6, "\u00e5": 1e-4, "\u212b": 1e-4, "mm": 1e3, "cm": 1e4,
                "m": 1e6, "inch": 25_400, "in": 25_400}
# what tifffile merely logs: pages are missing, or the description of the channels (tag 270) is
_FATAL = ("page offset", "corrupt", "TiffTag 270 ")
# array operations that undo TIFF/EXIF orientation 2..8
_UPRIGHT = {2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
            5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
            7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, 1)}


def decode_tiff(content: bytes, channel: int | str | None, z_projection: str,
                pages_are: str, source_bits: int | None) -> np.ndarray:
    import tifffile

    try:
        with complaints() as said, tifffile.TiffFile(io.BytesIO(content)) as file:
            page, series = file.pages[0], file.series[0]  # further series: previews, pyramid levels
            pages = series.pages[:]
            len(file.pages)  # walks the chain of directories to its end
            if is_fatal(said):
                raise Unreadable("is truncated")
            check_size(page.imagelength, page.imagewidth)
            first, *others = ((s.keyframe.imagewidth, s.keyframe.imagelength) for s in file.series)
            larger = [other for other in others if prod(other) > prod(first)]
            if larger:
                raise Unreadable(f"holds {first[0]} x {first[1]} pixels first and {larger[0][0]} x "
                                 f"{larger[0][1]} later; export the image that is meant")
            if any(end_of_data(one) > len(content) for one in pages if one):
                raise Unreadable("is truncated")
            orientation = page.tags.get("Orientation")
            photometric = int(page.photometric)
            planes = prod(n for axis, n in zip(series.axes, series.shape) if axis not in "YXS")
            has_alpha = page.extrasamples in ((ASSOCIATED,), (UNASSOCIATED,)) and channel is None
            if (photometric == _RGB or photometric == 1 and page.samplesperpixel == 2 and has_alpha
                    ) and "S" in series.axes and planes == 1:
                _check_pieces(pages)
                image = _tiff_colour(file, source_bits)
            elif photometric not in (*_GREY, _RGB):  # palette, CMYK, YCbCr: Pillow knows them
                image = _tiff_other(content, page)
            else:
                return _upright(_tiff_channel(file, channel, z_projection, pages_are),
                                orientation)
    except Unreadable:
        raise
    except Exception as error:  # a damaged file may raise anything at all
        raise Unreadable(f"is truncated or damaged ({error})") from None
    return _upright(pick_channel(image, channel), orientation)


@contextlib.contextmanager
def complaints():
    """Collect what tifffile logs: of a chain of pages that ends too early it only complains."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("tifffile")
    before, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def is_fatal(said: list[str]) -> bool:
    """Whether one of these complaints of tifffile means that a part of the file is missing."""
    return any(fatal in one for one in said for fatal in _FATAL)


def end_of_data(page) -> float:
    """Where in the file the pixels of a TIFF page end, in bytes; infinity where it has none."""
    return max((o + n for o, n in zip(page.dataoffsets, page.databytecounts)), default=np.inf)


def _check_pieces(pages) -> None:
    """Refuse pages of which a strip or tile is missing, or has lost data that decoders fill in."""
    for page in filter(None, pages):
        if not all(page.databytecounts):
            raise Unreadable("lacks a part of its image, which decoders fill with black")
        compression = int(page.keyframe.compression)
        if compression == OLD_JPEG:
            raise Unreadable("is a TIFF of the old JPEG kind, in which lost data would not be "
                             "noticed: save it anew")
        if compression in JPEGS:
            pieces = page.parent.filehandle.read_segments(page.dataoffsets, page.databytecounts)
            for piece, _ in pieces:
                check_jpeg(piece, page.jpegtables)


def _upright(image: np.ndarray, tag) -> np.ndarray:
    turn = _UPRIGHT.get(int(tag.value) if tag else 1)
    return np.ascontiguousarray(turn(image)) if turn else image


def _tiff_colour(file, source_bits: int | None) -> np.ndarray:
    """uint8 [H, W, 3] of RGB, or of grey and alpha, in 8 or 16 bits, with any further samples."""
    series, page = file.series[0], file.pages[0]
    image = np.moveaxis(series.asarray(), series.axes.index("S"), -1)
    image = image.reshape(image.shape[-3:])
    if image.shape[2] == 2:
        image = image[..., [0, 0, 0, 1]]
    if image.dtype == np.uint16:
        said = min(page.bitspersample, int(_ome_pixels(file).get("SignificantBits", 16)))
        image = to_8_bits(image, said if said < 16 else None, source_bits)
    if image.dtype != np.uint8:
        raise Unreadable(f"holds colour as {image.shape[2]} x {image.dtype}; "
                         "save it as 8 or 16-bit RGB")
    return image if image.shape[2] == 3 else without_extras(image, page.extrasamples)


def _tiff_other(content: bytes, page) -> np.ndarray:
    from PIL import Image

    _check_pieces([page])
    if int(page.compression) in DEFLATES:  # libtiff leaves out what it cannot inflate
        for piece, _ in page.parent.filehandle.read_segments(page.dataoffsets,
                                                             page.databytecounts):
            zlib.decompress(piece)
    image = Image.open(io.BytesIO(content), formats=("TIFF",))
    image.load()
    return flatten(image)


def _tiff_channel(file, channel: int | str | None, z_projection: str,
                  pages_are: str) -> np.ndarray:
    """[H, W] of uint8, uint16 or float32: the chosen channel, its focal planes projected to one."""
    series = file.series[0]
    stack = [(axis, length, place) for place, (axis, length)
             in enumerate(zip(series.axes, series.shape)) if axis not in "YX" and length > 1]
    planes = "ZIQ" if pages_are == "planes" else "Z"  # I and Q: pages that nothing names
    channels = [one for one in stack if one[0] not in planes + "T"]
    depth = [one for one in stack if one[0] in planes]
    times = [length for axis, length, _ in stack if axis == "T"]
    if times:
        raise Unreadable(f"is a time series of {times[0]} images; export one of them")
    if len(channels) > 1 or len(depth) > 1:
        sizes = " x ".join(f"{length} {axis}" for axis, length, _ in stack)
        raise Unreadable(f"is a stack of {sizes} planes; export one plane or one projection "
                         "per channel")
    count = channels[0][1] if channels else 1
    names = _channel_names(file, count)
    chosen = find_channel(channel, count, names)
    if chosen is None and count > 1:
        unnamed = ", or say --pages-are planes" if channels[0][0] in "IQ" else ""
        raise Unreadable(f"holds {count} channels: choose one with --channel "
                         f"({channel_words(count, names)}){unnamed}")
    place = [0] * len(series.shape)
    if channels:
        place[channels[0][2]] = chosen
    projected, num_planes = None, depth[0][1] if depth else 1
    for plane in _tiff_planes(series, place, depth[0][2] if depth else None, num_planes):
        plane = _tiff_values(plane, int(file.pages[0].photometric))
        if projected is None:
            projected = plane.astype(np.float64) if z_projection == "mean" else plane.copy()
        elif z_projection == "mean":
            projected += plane
        else:
            np.maximum(projected, plane, out=projected)
    if z_projection == "mean":
        projected /= num_planes
        projected = (projected if plane.dtype.kind == "f" else np.rint(projected)
                     ).astype(plane.dtype)
    return projected


def _tiff_planes(series, place: list[int], depth: int | None, num_planes: int):
    """Yield [H, W] of each focal plane. place: index along every axis but Y and X; depth: axis Z.

    Where a page is a plane, only the planes asked for are decoded, one at a time.
    """
    shape, pages = series.shape, series.pages
    outer = next((k for k in range(len(shape)) if prod(shape[:k]) == len(pages) > 1
                  and pages[0] is not None and prod(shape[k:]) == prod(pages[0].shape)), 0)
    if not outer:
        _check_pieces(pages)
    whole = None if outer else series.asarray()
    for number in range(num_planes):
        if depth is not None:
            place[depth] = number
        at = [slice(None) if axis in "YX" else i for axis, i in zip(series.axes, place)]
        if whole is not None:
            yield whole[tuple(at)]
            continue
        page = pages[int(np.ravel_multi_index(place[:outer], shape[:outer]))]
        if page is None:
            raise Unreadable("lacks a plane that its description puts into another file; "
                             "save all planes in one")
        _check_pieces([page])
        yield page.asarray().reshape(shape[outer:])[tuple(at[outer:])]


def _tiff_values(plane: np.ndarray, photometric: int) -> np.ndarray:
    """Check the values of a plane; black is zero, true is 255."""
    if plane.dtype == bool:
        plane = plane.astype(np.uint8) * 255
    if plane.dtype.kind == "f":
        plane = plane.astype(np.float32)
        if not np.isfinite(plane).all():
            raise Unreadable("holds NaN or infinite values")
    elif plane.dtype not in (np.uint8, np.uint16):
        raise Unreadable(f"holds {plane.dtype} values; save it as 8 or 16 bit")
    if photometric == 0:  # white is zero
        return (plane.max() if plane.dtype.kind == "f" else np.iinfo(plane.dtype).max) - plane
    return plane


# ------------------------------------------------------------------ what a TIFF says of itself

def _ome_pixels(file) -> ElementTree.Element:
    """<Pixels> of the first image of OME-XML; an empty element where there is none.

    Not by tifffile.xml2dict, which makes numbers and truth values of names that look like them.
    """
    nothing = ElementTree.Element("Pixels")
    try:
        root = ElementTree.fromstring(file.ome_metadata) if file.is_ome else nothing
    except ElementTree.ParseError:
        return nothing
    pixels = root.find("{*}Image/{*}Pixels")
    return nothing if pixels is None else pixels


def _channel_names(file, count: int) -> list[str] | None:
    """The names OME or ImageJ give the channels; None unless every channel has one."""
    names = [channel.get("Name") for channel in _ome_pixels(file).findall("{*}Channel")]
    if not any(names) and file.is_imagej:
        names = (file.imagej_metadata or {}).get("Labels") or []
    return [str(name) for name in names] if len(names) == count and None not in names else None


def tiff_pixel_size_um(file) -> float | None:
    """Side of a pixel of the first image of an open TIFF in um; None where it does not say.

    None, too, of pixels that are not square (MAX_ASPECT) or of no PLAUSIBLE_UM size.
    """
    x, y = _ome_pixel_um(file) or _tagged_pixel_um(file) or (0.0, 0.0)
    return plausible_um(x, y)


def plausible_um(x: float, y: float) -> float | None:
    """The side of a pixel of x by y um, where that is square and plausible."""
    low, high = PLAUSIBLE_UM
    if not (low <= x <= high and low <= y <= high and max(x, y) <= MAX_ASPECT * min(x, y)):
        return None
    return (x * y) ** 0.5


def _ome_pixel_um(file) -> tuple[float, float] | None:
    """PhysicalSizeX and Y of OME-XML in um; the model's default unit is um."""
    said, sizes = _ome_pixels(file).attrib, []
    for axis in "XY":
        unit = said.get(f"PhysicalSize{axis}Unit", "um")
        try:
            sizes.append(float(said[f"PhysicalSize{axis}"]) * _MICROMETRES[unit.strip().lower()])
        except (KeyError, ValueError):
            return None
    return tuple(sizes)


def _tagged_pixel_um(file) -> tuple[float, float] | None:
    """The resolution tags in um a pixel, in ImageJ's unit where it gives one."""
    tags = file.pages[0].tags
    unit = {2: "inch", 3: "cm"}.get(int(tags.valueof("ResolutionUnit", 2)))
    if file.is_imagej:
        unit = str((file.imagej_metadata or {}).get("unit", unit)).replace("\\u00B5", "\u00b5")
    length = _MICROMETRES.get((unit or "").strip().lower())
    sizes = [tags.valueof(f"{axis}Resolution") for axis in "XY"]  # pixels a unit, as fractions
    if not length or not all(sizes) or any(0 in size for size in sizes):
        return None
    return tuple(length * below / above for above, below in sizes)
