"""Read whole slides: any region at any resolution, in memory that does not grow with the slide.

Vendor formats (Aperio SVS, Hamamatsu NDPI, MIRAX, Leica, Ventana, Philips, ...) are read by
OpenSlide (Goode et al. 2013, "OpenSlide: A vendor-neutral software foundation for digital
pathology", J Pathol Inform 4:27). OpenSlide sees only the largest level of an OME-TIFF, and of a
pyramid whose levels are not flagged as such; pyramids and OME-TIFF without a vendor are therefore
read tile by tile through tifffile.

Coordinates are pixels of level 0, the slide as scanned, from its top left corner; resolutions are
micrometres a pixel (mpp). Nothing is guessed: a slide that does not say its resolution has none,
and one whose tiles cannot be decoded is refused (images.Unreadable).
A Slide is not for sharing between processes: each opens its own.
"""

from __future__ import annotations

from collections import OrderedDict
from math import ceil, prod
from pathlib import Path
from typing import NamedTuple

from lungkit.images import (MAX_PIXELS, TIFF_STARTS, Unreadable, complaints, end_of_data, is_fatal,
                            on_white, plausible_um, tiff_pixel_size_um)

# Formats of one slide a file, whatever lies beside it. Not here: DICOM and VMS, where every one of
# many files could be taken for a slide. TIFF files are told apart by their content.
SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide")

BLOCK_PX = 2048          # ours: side of what is decoded at a time, 12 MB
CACHE_BYTES = 32 << 20   # decoded tiles kept; OpenSlide's own default
MAX_SEGMENT_BYTES = 256 << 20  # ours: larger tiles or strips are not decoded
MAX_LEVEL_ASPECT = 1.02  # ours: a level stretched by more does not show the same field

# Tissue is looked for at this resolution: between the 16 of CLAM's default (Lu et al. 2021, Nature
# Biomedical Engineering 5:555; 1/64 of a 40x scan) and what resolves one 64 um tile as 8 pixels.
SURVEY_MPP = 8.0
SURVEY_MAX_PX = 8192     # ours: bounds memory where a slide claims an absurd resolution
WINDOW_PX, HALO_PX = 256, 16  # ours: thresholds of tissue follow the slide, as they do in a tile
LIGHT_PX = 1024          # ours: longer side of what the colour of bare glass is measured on
NEAR = 8                 # ours: boxes come in blocks of 8 x 8, which fit into the cache
MIN_TISSUE = 0.25        # ours: half of what alveolar lung covers at SURVEY_MPP
FINER_THAN_SCAN = 0.9    # ours: nominal 0.25 um scans say 0.2253 to 0.2743; beyond is enlargement

_YCBCR = 6
_JPEGS = (6, 7, 33003, 33004, 33005, 34712, 34892, 33007)  # compressions that undo YCbCr themselves


class Box(NamedTuple):
    """A square of a slide, in px of level 0, and the share of it that is tissue, 0..1."""

    left: int
    top: int
    side: int
    tissue: float


def is_slide(path: Path) -> bool:
    """Whether a file is read as a slide, not decoded as a whole image.

    So are vendor formats; TIFF colour pyramids of any size; and TIFF images too large for
    images.decode_image. A damaged file is a slide by its name or size, so that it is not loaded.
    """
    path = Path(path)
    if path.suffix.lower() in SLIDE_SUFFIXES:
        return True
    with open(path, "rb") as file:
        if file.read(4) not in TIFF_STARTS:
            return False
    import tifffile

    try:
        with complaints(), tifffile.TiffFile(path) as file:
            page, series = file.pages[0], _largest(file)
            pixels = page.imagewidth * page.imagelength
            pyramid = len(series.levels) > 1 and "S" in series.axes
            return pixels > MAX_PIXELS or pyramid or (page.is_tiled and _vendor(path) is not None)
    except Exception:  # a damaged file may raise anything at all
        return path.stat().st_size > MAX_PIXELS


def open_slide(path: Path, mpp: float | None = None) -> Slide:
    """Open a slide. mpp: um a pixel of level 0; None: as the file says. Raises Unreadable."""
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(4)
    if not start:
        raise Unreadable("is empty (0 bytes)")
    tiff, vendor = start in TIFF_STARTS, _vendor(path)
    if tiff:
        _check_whole(path, strict=vendor is None)
    if vendor is not None:
        return Slide(_OpenSlideLevels(path), mpp)
    if not tiff:
        raise Unreadable("is no whole slide in a format that OpenSlide knows, or is damaged")
    return Slide(_TiffLevels(path), mpp)


def _vendor(path: Path) -> str | None:
    """The vendor OpenSlide detects; None of plain TIFF and of anything else."""
    import openslide

    vendor = openslide.OpenSlide.detect_format(path)
    return None if vendor == "generic-tiff" else vendor


def _check_whole(path: Path, strict: bool) -> None:
    """Refuse a TIFF whose pixels lie beyond its end. strict: it must be a TIFF by the book."""
    import tifffile

    try:
        with complaints() as said, tifffile.TiffFile(path) as file:
            end = max((end_of_data(page) for series in file.series for level in series.levels
                       for page in level.pages
                       if page and page.parent is file and page.dataoffsets), default=0)
            size = file.filehandle.size
            len(file.pages)  # walks the chain of directories to its end
    except Exception as error:  # a damaged file may raise anything at all
        if not strict:
            return
        raise Unreadable(f"is truncated or damaged ({error})") from None
    if end > size:
        raise Unreadable(f"is truncated: it has {size:,} bytes of at least {end:,}")
    if strict and is_fatal(said):
        raise Unreadable("is truncated or damaged")


# ------------------------------------------------------------------ regions of any resolution

class Slide:
    """An open slide. width, height: px of level 0. mpp: um a pixel of level 0; None if unknown."""

    def __init__(self, levels, mpp: float | None = None):
        self._levels = levels
        self.width, self.height = levels.sizes[0]
        self.mpp = mpp or levels.mpp
        # (pixels of level 0 along a pixel, level), coarsest first
        self._steps = sorted(((((self.width / w) * (self.height / h)) ** 0.5, level)
                              for level, (w, h) in enumerate(levels.sizes)
                              if level == 0 or _same_aspect(self.width / w, self.height / h)),
                             reverse=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        self._levels.close()

    def read(self, left: float, top: float, side: float, size: int):
        """uint8 [size, size, 3] RGB of the square at (left, top) of `side` px of level 0.

        Area-averaged from the coarsest level that is fine enough, placed to the nearest pixel of
        that level; white outside the slide. Raises Unreadable.
        """
        return self._render(left, top, side, side, size, size)

    def thumbnail(self, max_side: int):
        """uint8 [h, w, 3] RGB of the whole slide, its longer side at most max_side px."""
        scale = min(1, max_side / max(self.width, self.height))
        return self._render(0, 0, self.width, self.height, max(1, round(self.width * scale)),
                            max(1, round(self.height * scale)))

    def _render(self, left, top, width, height, columns, rows):
        """Average a rectangle of level 0 into uint8 [rows, columns, 3], a block at a time."""
        import cv2
        import numpy as np

        factor = max(width / columns, height / rows)  # px of level 0 along a px of the result
        # 1 % of tolerance: the sizes of levels are rounded, and so are their ratios
        step, level = next((s for s in self._steps if s[0] <= 1.01 * factor), self._steps[-1])
        across = np.rint((left + np.arange(columns + 1) * width / columns) / step).astype(int)
        down = np.rint((top + np.arange(rows + 1) * height / rows) / step).astype(int)
        block = max(1, int(BLOCK_PX * step / factor))
        result = np.empty((rows, columns, 3), np.uint8)
        for y in range(0, rows, block):
            for x in range(0, columns, block):
                part = result[y:y + block, x:x + block]
                x0, x1 = int(across[x]), int(across[x + part.shape[1]])
                y0, y1 = int(down[y]), int(down[y + part.shape[0]])
                pixels = self._levels.read(level, x0, y0, max(1, x1 - x0), max(1, y1 - y0))
                finer = pixels.shape[0] < part.shape[0] or pixels.shape[1] < part.shape[1]
                part[:] = cv2.resize(pixels, part.shape[1::-1], interpolation=cv2.INTER_CUBIC
                                     if finer else cv2.INTER_AREA)
        return result


def _same_aspect(across: float, down: float) -> bool:
    return max(across, down) <= MAX_LEVEL_ASPECT * min(across, down)


# ------------------------------------------------------------------ readers of levels
# Each has sizes: (width, height) of its levels, the finest first; mpp: um a pixel of level 0 or
# None; read(level, left, top, width, height): uint8 [height, width, 3] RGB, in px of that level,
# white where there is nothing; close().

class _OpenSlideLevels:
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


class _TiffLevels:
    """Levels of a TIFF pyramid or OME-TIFF, its tiles (or strips) decoded as they are needed."""

    def __init__(self, path: Path):
        import tifffile

        with complaints():
            self._file = tifffile.TiffFile(path)
        try:
            series = _largest(self._file)
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
                tables = {"jpegtables": page.jpegtables} if page.jpegtables else {}
                decoded.append(page.decode(data, index, **tables)[0])
            except Exception as error:  # damaged data may raise anything at all
                raise Unreadable(f"is damaged: tile {number} of level {level} cannot be decoded "
                                 f"({error})") from None
        tile = np.concatenate(decoded, axis=-1)[0]
        return on_white(tile) if tile.shape[-1] == 4 else tile

    def close(self):
        self._file.close()


def _largest(file):
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
        raise Unreadable(f"is a slide of {what or 'grey'} planes, not of colour: export it as 8-bit "
                         "RGB, or fluorescence as tiles")
    if page.dtype != "uint8":
        raise Unreadable(f"holds colour as {page.dtype}: export the slide as 8-bit RGB")
    if int(page.photometric) == _YCBCR and int(page.compression) not in _JPEGS:
        raise Unreadable("holds YCbCr colour that is not JPEG: export the slide as RGB")
    largest = max(prod(_segment_shape(level.keyframe)) for level in series.levels) * sizes["S"]
    if largest > MAX_SEGMENT_BYTES:
        raise Unreadable(f"holds pieces of {largest >> 20:,} MB, which can only be decoded whole: "
                         "save it as a tiled pyramid")


# ------------------------------------------------------------------ tiles

def tissue_map(slide: Slide):
    """Look for tissue at SURVEY_MPP, a window at a time.

    Returns bool [h, w], tissue, and the px of level 0 along one of its pixels (not a whole number).
    Raises Unreadable of a slide of unknown mpp.
    """
    import numpy as np

    from lungkit.stain import background_light, balance_white, tissue_mask

    longest = max(slide.width, slide.height)
    step = max(1.0, SURVEY_MPP / known_mpp(slide), longest / SURVEY_MAX_PX)
    light = background_light(slide.thumbnail(min(LIGHT_PX, ceil(longest / step))))
    mask = np.zeros((ceil(slide.height / step), ceil(slide.width / step)), bool)
    size = WINDOW_PX + 2 * HALO_PX
    for y in range(0, mask.shape[0], WINDOW_PX):
        for x in range(0, mask.shape[1], WINDOW_PX):
            window = slide.read((x - HALO_PX) * step, (y - HALO_PX) * step, size * step, size)
            part = mask[y:y + WINDOW_PX, x:x + WINDOW_PX]
            found = tissue_mask(balance_white(window, light))
            part[:] = found[HALO_PX:, HALO_PX:][:part.shape[0], :part.shape[1]]
    return mask, step


def tile_grid(slide: Slide, *, mpp: float, tile_px: int, min_tissue: float = MIN_TISSUE,
              max_tiles: int | None = None, seed: int = 0) -> list[Box]:
    """Squares of tile_px pixels of mpp um that hold tissue, without overlap.

    They come in an order in which neighbours are near (NEAR), so that what one needed of the file
    is still there for the next.
    min_tissue: share of a square that must be tissue, measured at SURVEY_MPP: nothing is read at
    full resolution. max_tiles: so many of them, drawn by seed; None: all.
    slide.read(box.left, box.top, box.side, tile_px) is the tile. The grid is centred.
    Raises Unreadable: unknown resolution, or one coarser than mpp.
    """
    import numpy as np

    if mpp < FINER_THAN_SCAN * known_mpp(slide):
        raise Unreadable(f"was scanned at {slide.mpp:.3g} um a pixel, too coarse for tiles of "
                         f"{mpp:.3g}: ask for at least {slide.mpp:.3g} with --mpp")
    side = max(1, round(tile_px * mpp / slide.mpp))
    down, across = slide.height // side, slide.width // side
    if not down or not across:
        return []
    mask, step = tissue_map(slide)
    tops = (slide.height - down * side) // 2 + side * np.arange(down + 1)
    lefts = (slide.width - across * side) // 2 + side * np.arange(across + 1)
    share = _shares(mask, tops / step, lefts / step)
    rows, columns = np.nonzero(share >= max(min_tissue, np.finfo(float).tiny))
    order = np.lexsort((columns, rows, columns // NEAR, rows // NEAR))
    rows, columns = rows[order], columns[order]
    if max_tiles is not None and len(rows) > max_tiles:
        kept = np.sort(np.random.default_rng(seed).permutation(len(rows))[:max_tiles])
        rows, columns = rows[kept], columns[kept]
    return [Box(int(lefts[j]), int(tops[i]), side, float(share[i, j]))
            for i, j in zip(rows, columns)]


def _shares(mask, tops, lefts):
    """Share of tissue, [n, m], in the rectangles between the lines tops [n + 1], lefts [m + 1].

    mask: bool [h, w]; lines in its pixels, which they may cut.
    """
    import numpy as np

    rows = np.diff(_sums_above(mask, tops), axis=0)
    covered = np.diff(_sums_above(rows.T, lefts), axis=0).T
    return np.clip(covered / np.outer(np.diff(tops), np.diff(lefts)), 0, 1)


def _sums_above(values, lines):
    """Sums [n, w] of values [h, w] above each of n ascending lines, which may cut pixels."""
    import numpy as np

    sums, above, row = np.empty((len(lines), values.shape[1])), 0.0, 0
    for number, line in enumerate(lines):
        whole = min(int(line), len(values) - 1)
        above = above + values[row:whole].sum(0)
        sums[number] = above + (line - whole) * values[whole]
        row = whole
    return sums


def known_mpp(slide: Slide) -> float:
    """um a pixel of level 0. Raises Unreadable where neither file nor caller said."""
    if not slide.mpp:
        raise Unreadable("does not say how large its pixels are: give micrometres a pixel with "
                         "--slide-mpp")
    return slide.mpp
