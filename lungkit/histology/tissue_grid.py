"""Where on a slide tissue is, and the squares that hold it.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from lungkit.formats.channels import Unreadable
from lungkit.formats.slides import Slide

# Tissue is looked for at this resolution: between the 16 of CLAM's default (Lu et al. 2021, Nature
# Biomedical Engineering 5:555; 1/64 of a 40x scan) and what resolves one 64 um tile as 8 pixels.
SURVEY_MPP = 8.0
SURVEY_MAX_PX = 8192     # ours: bounds memory where a slide claims an absurd resolution
WINDOW_PX, HALO_PX = 256, 16  # ours: thresholds of tissue follow the slide, as they do in a tile
LIGHT_PX = 1024          # ours: longer side of what the colour of bare glass is measured on
NEAR = 8                 # ours: boxes come in blocks of 8 x 8, which fit into the cache
MIN_TISSUE = 0.25        # ours: keeps a few alveolar walls, whose air spaces the map fills
FINER_THAN_SCAN = 0.9    # ours: scanners round what they say; beyond, tiles are enlarged


class Box(NamedTuple):
    """A square of a slide, in px of level 0, and the share of it that is tissue, 0..1."""

    left: int
    top: int
    side: int
    tissue: float


def tissue_map(slide: Slide):
    """Look for tissue at SURVEY_MPP, a window at a time.

    Returns bool [h, w], tissue, and the px of level 0 along one of its pixels (not a whole number).
    Raises Unreadable of a slide of unknown mpp.
    """
    import numpy as np

    from lungkit.histology.background import background_light, balance_white, tissue_mask

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
              max_tiles: int | None = None, seed: int = 0, tissue=None) -> list[Box]:
    """Squares of tile_px pixels of mpp um that hold tissue, without overlap.

    They come in an order in which neighbours are near (NEAR), so that what one needed of the file
    is still there for the next.
    min_tissue: share of a square that must be tissue, measured at SURVEY_MPP: nothing is read at
    full resolution. max_tiles: so many of them, drawn by seed; None: all.
    tissue: as `tissue_map` returns it, which looks for it in H&E; None: it is asked.
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
    mask, step = tissue or tissue_map(slide)
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
                         "--source-mpp")
    return slide.mpp
