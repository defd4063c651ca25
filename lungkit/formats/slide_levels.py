"""Two readers of the levels of a whole slide: OpenSlide's formats, and TIFF pyramids by tiles.

Each has sizes: (width, height) of its levels, the finest first; mpp: um a pixel of level 0, or
None; read(level, left, top, width, height): uint8 [height, width, 3] RGB, in px of that level,
white where there is nothing; and close(). Both raise images.Unreadable where data are damaged.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from math import prod
from pathlib import Path

from lungkit.formats.channels import Unreadable, on_white, without_extras
from lungkit.formats.jpeg import check_jpeg
from lungkit.formats.tiff import JPEGS, complaints, plausible_um, tiff_pixel_size_um

CACHE_BYTES = 32 << 20   # decoded tiles kept; OpenSlide's own default
MAX_SEGMENT_BYTES = 256 << 20  # ours: larger tiles or strips are not decoded
_YCBCR = 6
_JPEGS = (6, 7, 33003, 33004, 33005, 34712, 34892, 33007)  # compressions that undo YCbCr themselves


class OpenSlideLevels:
    """Levels of a vendor's format."""

    def __init__(self, path: Path):
        import openslide

        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise Unreadable(f"is damaged, or incomplete ({error})") from None
        self.sizes = list(self._slide.level_dimensions)
        said = [self._slide.properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
        self.mpp = plausible_um(*map(float, said)) if all(said) else None

    def read(self, level, left, top, width, height):
        import cv2
        import numpy as np
        import openslide

        step = self._slide.level_downsamples[level]
        try:
            region = self._slide.read_region((round(left * step), round(top * step)), level,
                                             (width, height))
        except openslide.OpenSlideError as error:
            raise Unreadable(f"is damaged: level {level} cannot be decoded at {left}, {top} "
                             f"({error})") from None
        pixels = np.asarray(region)
        opaque = pixels[..., 3].min() == 255
        return cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB) if opaque else on_white(pixels)

    def close(self):
        self._slide.close()


class TiffLevels:
    """Levels of a TIFF pyramid or OME-TIFF, its tiles (or strips) decoded as they are needed."""

    def __init__(self, path: Path):
        import tifffile

        with complaints():
            self._file = tifffile.TiffFile(path)
        try:
            series = largest_series(self._file)
            _check_colour(series)
            self._pages = [level.keyframe for level in series.levels]
            self.sizes = [(page.imagewidth, page.imagelength) for page in self._pages]
            self.mpp = tiff_pixel_size_um(self._file)
        except BaseException:
            self._file.close()
            raise
        self._cache: OrderedDict = OrderedDict()  # (level, number): uint8 [h, w, 3], or None
        self._cached_bytes = 0

    def read(self, level, left, top, width, height):
        import numpy as np

        page, (level_width, level_height) = self._pages[level], self.sizes[level]
        tile_height, tile_width = _segment_shape(page)
        across = -(-level_width // tile_width)
        pixels = np.full((height, width, 3), 255, np.uint8)
        right, bottom = min(left + width, level_width), min(top + height, level_height)
        for row in range(max(top, 0) // tile_height, -(-bottom // tile_height)):
            for column in range(max(left, 0) // tile_width, -(-right // tile_width)):
                tile = self._tile(level, row * across + column)
                if tile is None:
                    continue
                y, x = row * tile_height, column * tile_width
                y0, y1 = max(y, top), min(y + tile.shape[0], bottom)
                x0, x1 = max(x, left), min(x + tile.shape[1], right)
                pixels[y0 - top:y1 - top, x0 - left:x1 - left] = tile[y0 - y:y1 - y, x0 - x:x1 - x]
        return pixels

    def _tile(self, level: int, number: int):
        """uint8 [h, w, 3] of a tile, or None of one that is not stored: bare glass."""
        key = (level, number)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        tile = self._cache[key] = self._decode(self._pages[level], level, number)
        self._cached_bytes += 0 if tile is None else tile.nbytes
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            _, old = self._cache.popitem(last=False)
            self._cached_bytes -= 0 if old is None else old.nbytes
        return tile

    def _decode(self, page, level: int, number: int):
        import numpy as np

        separate = int(page.planarconfig) == 2  # a tile of each colour, all of one colour first
        planes = page.samplesperpixel if separate else 1
        decoded = []
        for plane in range(planes):
            index = number + plane * (len(page.dataoffsets) // planes)
            offset, count = page.dataoffsets[index], page.databytecounts[index]
            if count == 0:
                return None
            self._file.filehandle.seek(offset)
            data = self._file.filehandle.read(count)  # now: asking the page may move the file
            try:
                if int(page.compression) in JPEGS:
                    check_jpeg(data, page.jpegtables)
                tables = {"jpegtables": page.jpegtables} if page.jpegtables else {}
                decoded.append(page.decode(data, index, **tables)[0])
            except Unreadable as error:
                raise Unreadable(f"has lost data: tile {number} of level {level} {error}") from None
            except Exception as error:  # damaged data may raise anything at all
                raise Unreadable(f"is damaged: tile {number} of level {level} cannot be decoded "
                                 f"({error})") from None
        tile = np.concatenate(decoded, axis=-1)[0]
        if tile.shape[-1] == 3:
            return tile
        return without_extras(tile, page.extrasamples)

    def close(self):
        self._file.close()


def largest_series(file):
    """The series of most pixels: labels and overviews come beside the slide."""
    if not file.series:
        raise Unreadable("is damaged: it holds no image")
    return max(file.series, key=lambda series: prod(series.keyframe.shape))


def _segment_shape(page) -> tuple[int, int]:
    """(height, width) of a tile or strip in px."""
    return ((page.tilelength, page.tilewidth) if page.is_tiled
            else (page.rowsperstrip, page.imagewidth))


def _check_colour(series) -> None:
    """Refuse what is not one plane of 8-bit colour, or not cut into pieces that fit into memory."""
    page, sizes = series.keyframe, dict(zip(series.axes, series.shape))
    planes = prod(length for axis, length in sizes.items() if axis not in "YXS")
    if planes > 1 or sizes.get("S") not in (3, 4):
        what = " x ".join(f"{n} {axis}" for axis, n in sizes.items() if axis not in "YX" and n > 1)
        raise Unreadable(f"is a slide of {what or 'grey'} planes, not of colour: export it as "
                         "8-bit RGB, or fluorescence as tiles")
    if page.dtype != "uint8":
        raise Unreadable(f"holds colour as {page.dtype}: export the slide as 8-bit RGB")
    if int(page.photometric) == _YCBCR and int(page.compression) not in _JPEGS:
        raise Unreadable("holds YCbCr colour that is not JPEG: export the slide as RGB")
    largest = max(prod(_segment_shape(level.keyframe)) for level in series.levels) * sizes["S"]
    if largest > MAX_SEGMENT_BYTES:
        raise Unreadable(f"holds pieces of {largest >> 20:,} MB, which can only be decoded whole: "
                         "save it as a tiled pyramid")
