"""One original image, whatever its format: its size and resolution, an overview, squares of it.

A picture is decoded whole; a whole slide is read a square at a time, so that its size does not
matter. Colour is as scanned; grey images are denoised and stretched (`background.enhance_grey`).
Fluorescence saved as colour (`dark_field`) is taken for what it is: its one channel, in grey.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lungkit.formats import channels, images, slides
from lungkit.histology import background, dark_field, tissue_grid
from lungkit.run import files

OVERVIEW_PX = 512  # ours: shorter side of a picture's overview
SLIDE_PX = 2048    # ours: longer side of a slide's overview; tissue is looked for at 8 um a pixel
LOOK_PX = 1024     # ours: longer side of what tells fluorescence; read whenever a slide is opened
SURVEY_UM, SURVEY_PX = 4.0, 4096  # ours: um a pixel that shows nuclei; longer side of a slide so
DARK_TISSUE = 0.02  # ours: on a dark ground nuclei alone shine, and cover little of a tile
FIELD_UM = 180.0   # a slide's tile covers what an LC25000 tile does, unless --mpp says otherwise


def shrink(image, side: int):
    """Area-average so that the shorter side has `side` pixels, where that is smaller."""
    import cv2

    scale = side / min(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def tile_boxes(height: int, width: int, tile_size: int | None) -> list[tuple[int, int, int]]:
    """(top, left, side) of the full squares that fit, centred. tile_size None: the shorter side."""
    side = tile_size or min(height, width)
    down, across = height // side, width // side
    top, left = (height - down * side) // 2, (width - across * side) // 2
    return [(top + i * side, left + j * side, side) for i in range(down) for j in range(across)]


@dataclass(frozen=True)
class Cut:
    """How large tiles are. Of tile_size and mpp at most one is given."""

    image_size: int                    # pixels of a tile as written
    tile_size: int | None = None       # pixels of the original
    mpp: float | None = None           # micrometres per pixel as written
    min_tissue: float = 0.0            # share in a slide's overview below which a tile is not read
    tiles_per_slide: int | None = None
    seed: int = 0


class Picture:
    """An image decoded whole. size: (height, width) px; um_per_px: None if unknown."""

    is_slide = False

    def __init__(self, content: bytes, channel: int | str | None, um_per_px: float | None,
                 pages_are: str, source_bits: int | None) -> None:
        self.sha256, self.file_bytes = files.sha256(content), len(content)
        self._pixels = images.decode_image(content, channel, pages_are=pages_are,
                                           source_bits=source_bits)
        if self._pixels.ndim == 3 and dark_field.is_dark_field(look := self.overview()):
            lit = dark_field.choose_channel(look, None)
            self._pixels = self._pixels[..., lit].copy()
        self.bright = False
        self.colour = self._pixels.ndim == 3
        self.size = self._pixels.shape[:2]
        self.um_per_px = images.pixel_size_um(content) or um_per_px
        if not self.colour:
            self._pixels, self.bright = background.enhance_grey(self._pixels)

    def overview(self):
        """The whole picture, uint8 [h, w, 3] or [h, w], its shorter side at most OVERVIEW_PX."""
        return shrink(self._pixels, OVERVIEW_PX)

    def boxes(self, cut: Cut) -> list[tuple[int, int, int]]:
        """(top, left, side) of its tiles in pixels: as large as fits, or as `cut` says."""
        side = cut.tile_size
        if cut.mpp:
            if not self.um_per_px:
                raise channels.Unreadable("does not say how large its pixels are: give micrometres "
                                        "a pixel with --source-mpp, or leave out --mpp")
            if cut.mpp < tissue_grid.FINER_THAN_SCAN * self.um_per_px:
                raise channels.Unreadable(
                    f"has {self.um_per_px:.3g} um a pixel, too coarse for tiles of {cut.mpp:.3g}: "
                    f"ask for at least {self.um_per_px:.3g} with --mpp")
            side = max(1, round(cut.image_size * cut.mpp / self.um_per_px))
        return tile_boxes(*self.size, side)

    def read(self, box: tuple[int, int, int], most_px: int):
        """A tile, uint8 [S, S, 3] or [S, S], area-averaged to at most most_px a side."""
        top, left, side = box
        return shrink(self._pixels[top:top + side, left:left + side], most_px)


class WholeSlide:
    """A slide, read a square at a time. size: (height, width) px; um_per_px: None if unknown."""

    is_slide, colour, bright = True, True, False

    def __init__(self, slide: slides.Slide, path: Path) -> None:
        self._slide, self._path = slide, path
        self.file_bytes = path.stat().st_size
        self.size, self.um_per_px = (slide.height, slide.width), slide.mpp

    @property
    def sha256(self) -> str:
        """Of the whole file, which is read for it: gigabytes, so only where it is asked for."""
        return files.sha256_file(self._path)

    def overview(self):
        """The whole slide, uint8 [h, w, 3], its longer side at most SLIDE_PX."""
        return self._slide.thumbnail(SLIDE_PX)

    def boxes(self, cut: Cut) -> list[tuple[int, int, int]]:
        """(top, left, side) of its tiles that hold tissue, in pixels of its largest level."""
        if cut.tile_size:
            mpp = cut.tile_size * tissue_grid.known_mpp(self._slide) / cut.image_size
        else:
            mpp = cut.mpp or FIELD_UM / cut.image_size
        return [(box.top, box.left, box.side) for box in tissue_grid.tile_grid(
            self._slide, mpp=mpp, tile_px=cut.image_size, min_tissue=self.least_tissue(cut),
            max_tiles=cut.tiles_per_slide, seed=cut.seed, tissue=self.tissue())]

    def least_tissue(self, cut: Cut) -> float:
        """The share of tissue, as `tissue` sees it, below which a tile is not read."""
        return cut.min_tissue

    def tissue(self):
        """(mask, step) for `tissue_grid.tile_grid`; None: as it sees H&E."""

    def read(self, box: tuple[int, int, int], most_px: int):
        """A tile, uint8 [S, S, 3], area-averaged to at most most_px a side."""
        top, left, side = box
        return self._slide.read(left, top, side, min(side, most_px))


class FluorescenceSlide(WholeSlide):
    """One channel of a slide on a dark ground, in grey, stretched alike all over the slide."""

    colour = False

    def __init__(self, slide: slides.Slide, path: Path, channel: int) -> None:
        super().__init__(slide, path)
        self._channel = channel

    @functools.cached_property
    def _survey(self):
        """The whole slide where nuclei can still be seen, uint8 [h, w]."""
        longest = max(self.size) * (self.um_per_px or SURVEY_UM) / SURVEY_UM
        return self._grey(self._slide.thumbnail(max(1, min(SURVEY_PX, round(longest)))))

    @functools.cached_property
    def _ends(self):
        return background.ends(self._survey)

    def _grey(self, pixels):
        return background.without_hot_pixels(pixels[..., self._channel].copy())

    def _stretched(self, grey):
        low, high = self._ends
        return background.stretched(grey, low, max(high, low + 1))

    def overview(self):
        """The whole slide, uint8 [h, w], its longer side at most SLIDE_PX."""
        return self._stretched(self._grey(super().overview()))

    def least_tissue(self, cut: Cut) -> float:
        return min(cut.min_tissue, DARK_TISSUE)

    def tissue(self):
        """(mask, step) for `tissue_grid.tile_grid`: what shines."""
        survey = self._stretched(self._survey)
        return survey > max(background.otsu(survey), 1), self.size[0] / len(survey)

    def read(self, box: tuple[int, int, int], most_px: int):
        """A tile, uint8 [S, S], area-averaged to at most most_px a side."""
        return self._stretched(self._grey(super().read(box, most_px)))


@contextlib.contextmanager
def open_original(path: Path, *, channel: int | str | None = None, um_per_px: float | None = None,
                  pages_are: str = "channels", source_bits: int | None = None
                  ) -> Iterator[Picture | WholeSlide]:
    """Open a picture or a slide; its content decides. Raises Unreadable.

    channel: of a multi-channel picture. um_per_px: micrometres per pixel of one that does not say.
    pages_are, source_bits: see images.decode_image.
    """
    if not slides.is_slide(path):
        yield Picture(path.read_bytes(), channel, um_per_px, pages_are, source_bits)
        return
    with slides.open_slide(path) as slide:
        slide.mpp = slide.mpp or um_per_px
        look = slide.thumbnail(LOOK_PX)
        if dark_field.is_dark_field(look):
            yield FluorescenceSlide(slide, path, dark_field.choose_channel(look, channel))
        elif channel is not None:
            raise channels.Unreadable("is a colour slide: it has no --channel to choose")
        else:
            yield WholeSlide(slide, path)
