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

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from pathlib import Path

from lungkit.formats.channels import MAX_PIXELS, Unreadable
from lungkit.formats.images import TIFF_STARTS
from lungkit.formats.slide_levels import OpenSlideLevels, TiffLevels, largest_series
from lungkit.formats.tiff import complaints, end_of_data, is_fatal

# Formats of one slide a file, whatever lies beside it. Not here: DICOM and VMS, where every one of
# many files could be taken for a slide. TIFF files are told apart by their content.
SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide")

BLOCK_PX = 2048          # ours: side of what is decoded at a time, 12 MB
MAX_LEVEL_ASPECT = 1.02  # ours: a level stretched by more does not show the same field


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
            page, series = file.pages[0], largest_series(file)
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
        return Slide(OpenSlideLevels(path), mpp)
    if not tiff:
        raise Unreadable("is no whole slide in a format that OpenSlide knows, or is damaged")
    return Slide(TiffLevels(path), mpp)


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
