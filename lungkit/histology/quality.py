"""Judge one tile: is there tissue, is it sharp, is it free of ink, is its light recorded?

measure() looks at a tile and returns numbers, reason() holds them against limits. The ideas are
those of the published tools; what they leave to each laboratory is set here and explained:

- HistoQC (Janowczyk et al. 2019, JCO Clinical Cancer Informatics 3): blur by the Laplacian, light
  and dark regions by grey thresholds, pen marks by a classifier trained on examples;
- CLAM (Lu et al. 2021, Nature Biomedical Engineering 5): black patches, all channels below 20 on
  5 % of the patch (isBlackPatch_S) or below 40 on its mean (isBlackPatch);
- deep-histopath (CODAIT) and histolab: pen marks by lists of red, green and blue thresholds. They
  are not used: their blue ones mark 28 % of the median squamous tile of LC25000 as ink.

What each rule drops of good tissue and of drawn and real marks, on slides that it was not tuned
on, is in docs/quality.md; benchmarks/quality_rules.py measures it.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

# Blur has to be measured at one scale: at 0.2 um per pixel every microscope is soft.
SCALE_UM = 0.8      # ours: coarse enough for a x10 objective, fine enough for chromatin
SIDE_PX = 224       # ours: side a tile of unknown scale is shrunk to; 180 um in LC25000's manner
FINE_PX = (0.8, 1.6)  # ours: blurs between which detail is measured; the first removes noise
BLOCK_PX = 4        # ours: smaller than a nucleus, larger than grain
MIN_PIXELS = 100    # ours: of fewer tissue pixels no sharpness is measured

# Ink by optical density (natural log) of pixels blurred by INK_PX: less is the colour noise of JPEG
# and the fringes of lenses, more hides margin ink, which lies in grains of a few um.
# Blue, green: haematoxylin absorbs green more than red (0.70 and 0.65 of its density; Ruifrok and
# Johnston 2001), eosin and blood far more. The denser the tissue, the more so (below -0.1 where
# red is over 1.2), while ink over tissue comes near 0: so the least red over green falls with red.
# Red, orange, yellow: absorb blue and let red pass. Blood does too: blue over red is 0.95 at most.
# Black: alike in all colours, or nothing passes. The darkest keratin passes 0.67 of the density of
# green in blue; black pigment and a thick fold may be as black as ink, so they share its name.
# Ours, chosen on 450 tiles of LC25000, one of each source, and on drawn strokes over 50 of them;
# the least spread of black also on one slide of skin.
INK_PX = 1.5
INK_RED_OVER_GREEN, INK_FALL = 0.15, 0.1
RED_INK_BLUE_OVER_RED = 1.0
BLACK_DENSITY, BLACK_SPREAD, BLACK_CERTAIN = 1.3, 0.3, 2.0
CLIPPED_BLACK = 20         # CLAM's isBlackPatch_S


@dataclass(frozen=True)
class Quality:
    """What measure() finds; shares are 0..1."""

    tissue: float           # share of the tile
    contrast: float         # deviation of the tissue's optical density, or of a tile's grey / 255
    structure: float        # share of grey variance that outlives averaging 4 x 4 px; else NaN
    sharpness: float        # detail of 1 to 2 px over detail of 2 to 4 px; NaN without tissue
    ink: float              # share of the tile under blue or green ink; grey: 0
    red_ink: float          # share of the tile under red, orange or yellow ink; grey: 0
    black: float            # share of the tile under black: ink, pigment, a thick fold; grey: 0
    brightest: float        # 99th percentile of the brightest channel, 0..1; grey: 1
    saturated_white: float  # share of the tissue with a channel at 255: its colour is not recorded
    saturated_black: float  # share of the tissue with every channel under 20; grey: 0


@dataclass(frozen=True)
class Limits:
    """What a tile must reach to be kept. Figures: 2,250 tiles of LC25000, 360 simulated."""

    # ours: drops air alone, keeps one thin alveolar wall; LC25000's least is 0.19
    min_tissue: float = 0.05
    # ours: less is dust, and reported as "blank" and not as too little tissue
    blank_tissue: float = 0.005
    # ours: a pane of one colour has rounding alone, 0.01; LC25000's least is 0.09
    min_contrast: float = 0.03
    # ours: noise alone has 0.33 and less, even stretched to full contrast and smoothed, as
    # an empty fluorescence channel is; nuclei of a few px in as much noise 0.43
    min_structure: float = 0.38
    # ours: sharp tiles have 0.52 and more (0.41 as cropped from a camera that oversamples), tiles
    # blurred by a Gaussian of 3 px at 224 px a side 0.39 and less, by 2 px 0.41 in the median
    min_sharpness: float = 0.40
    # ours: grains of margin ink are visible from 0.01 on; LC25000's tiles reach 0.015
    max_ink: float = 0.02
    # CLAM's share of black pixels: strokes are a millimetre wide, tiles less; a lake of blood is
    # the nearest to red ink, LC25000's reach 0.003
    max_red_ink: float = 0.05
    max_black: float = 0.05
    # ours: the lamp was low, or black fills the tile; 0.83 is the tiles' least
    min_brightest: float = 0.55
    # ours: 0.63 in LC25000's tiles of one clipped channel, over 0.8 at twice the exposure
    max_saturated_white: float = 0.75
    # CLAM's isBlackPatch_S
    max_saturated_black: float = 0.05


def measure(tile, mask, *, scale: float | None = None) -> Quality:
    """Measure a tile.

    tile: uint8 [S, S, 3], white-balanced RGB on white, or [S, S] grey with stretched contrast.
    mask: bool [S, S], its tissue.
    scale: micrometres a pixel; None where unknown, then the tile is seen at SIDE_PX a side.
    """
    import cv2
    import numpy as np

    factor = scale / SCALE_UM if scale else SIDE_PX / min(tile.shape[:2])
    if factor < 1:
        size = tuple(max(1, round(side * factor)) for side in tile.shape[1::-1])
        tile = cv2.resize(tile, size, interpolation=cv2.INTER_AREA)
        mask = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_AREA)
    inside = mask.astype(np.uint8)
    count = cv2.countNonZero(inside)
    inks, top = (0.0, 0.0, 0.0), 1.0
    if tile.ndim == 2:
        grey = brightest = tile
        amount = grey.astype(np.float32) / 255
    else:
        grey = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)
        amount = cv2.LUT(grey, _density_table())
        red, green, blue = cv2.split(tile)
        brightest = cv2.max(cv2.max(red, green), blue)
        inks = _ink(tile)
        top = float(np.percentile(brightest[::3, ::3], 99)) / 255  # every ninth is enough
    white, dark = (cv2.countNonZero(cv2.inRange(brightest, *ends) & inside)
                   for ends in ((255, 255), (0, CLIPPED_BLACK - 1)))
    # even cells on an even ground are no blank: in grey the ground counts as well
    near = inside if tile.ndim == 3 else None
    if tile.ndim == 2:
        dark = 0  # where its contrast was stretched, the darkest is black by making
    return Quality(tissue=count / inside.size,
                   contrast=float(cv2.meanStdDev(amount, mask=near)[1][0, 0]),
                   structure=_structure(tile) if tile.ndim == 2 else float("nan"),
                   sharpness=_sharpness(grey, inside) if count >= MIN_PIXELS else float("nan"),
                   ink=inks[0], red_ink=inks[1], black=inks[2], brightest=top,
                   saturated_white=white / max(count, 1), saturated_black=dark / max(count, 1))


def _structure(grey) -> float:
    """Variance of the means of blocks over the variance of the pixels; noise averages out.

    NaN of small tiles: their nuclei are no larger than blocks.
    """
    import cv2

    if min(grey.shape) < SIDE_PX / 2:
        return float("nan")
    size = tuple(max(1, side // BLOCK_PX) for side in grey.shape[::-1])
    rough = cv2.meanStdDev(cv2.resize(grey, size, interpolation=cv2.INTER_AREA))[1][0, 0]
    return float((rough / max(cv2.meanStdDev(grey)[1][0, 0], 1e-6)) ** 2)


def _density_table():
    """Optical density (natural log) of each grey level, float32 [256]."""
    import numpy as np

    return -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)


def _sharpness(grey, inside) -> float:
    """Detail of the finest band over detail of the next, in and next to tissue.

    Blur takes the finer band first, whatever the contrast and the number of edges. A variance of
    the Laplacian (Pech-Pacheco et al. 2000; HistoQC) is the finer band alone: it drops pale or
    even tissue, and lets noise pass for detail.
    """
    import cv2
    import numpy as np

    near = cv2.dilate(inside, np.ones((5, 5), np.uint8))
    half = tuple(max(1, side // 2) for side in grey.shape[::-1])
    fine = _detail(grey, near)
    coarse = _detail(cv2.resize(grey, half, interpolation=cv2.INTER_AREA),
                     cv2.resize(near, half, interpolation=cv2.INTER_NEAREST))
    return fine / coarse if coarse > 0 else 0.0


def _detail(grey, near) -> float:
    """Standard deviation of what lies between blurs of FINE_PX, where near is not 0."""
    import cv2
    import numpy as np

    low, high = FINE_PX
    first = cv2.GaussianBlur(grey.astype(np.float32), (5, 5), low)
    second = cv2.GaussianBlur(first, (9, 9), (high ** 2 - low ** 2) ** 0.5)  # variances add
    return float(cv2.meanStdDev(first - second, mask=near)[1][0, 0])


def _ink(tile) -> tuple[float, float, float]:
    """Shares of uint8 [H, W, 3] under blue or green ink, under red ink, under black."""
    import cv2

    smooth = cv2.LUT(cv2.GaussianBlur(tile, (0, 0), INK_PX), _density_table())
    red, green, blue = cv2.split(smooth)
    least, most = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
    black = (least > BLACK_DENSITY) & (most - least < BLACK_SPREAD * most)
    black |= least > BLACK_CERTAIN
    cold = red - green > INK_RED_OVER_GREEN - INK_FALL * red
    warm = blue - red > RED_INK_BLUE_OVER_RED
    return tuple(float(found.mean()) for found in (cold & ~black, warm & ~black, black))


REASONS = ("blank", "too little tissue", "too dark", "coloured ink", "black: ink, pigment or fold",
           "over-exposed", "out of focus")


def reason(quality: Quality, limits: Limits = Limits()) -> str | None:
    """Why the tile is dropped, one of REASONS; None: it is kept."""
    if quality.tissue < limits.blank_tissue:
        return "blank"
    if quality.tissue < limits.min_tissue:
        return "too little tissue"
    if quality.brightest < limits.min_brightest:
        return "too dark"
    if quality.ink > limits.max_ink or quality.red_ink > limits.max_red_ink:
        return "coloured ink"
    if quality.black > limits.max_black or quality.saturated_black > limits.max_saturated_black:
        return "black: ink, pigment or fold"
    if quality.saturated_white > limits.max_saturated_white:
        return "over-exposed"
    if quality.contrast < limits.min_contrast or quality.structure < limits.min_structure:
        return "blank"
    if quality.sharpness < limits.min_sharpness:
        return "out of focus"
    return None


# qc.csv: one row per tile, kept or dropped; the box is in pixels of the source image
QC_COLUMNS = ("file_name", "label", "left_px", "top_px", "side_px", "tissue_fraction",
              "contrast_od", "structure_fraction", "sharpness", "ink_fraction",
              "red_ink_fraction", "black_fraction", "brightest_fraction",
              "saturated_white_fraction", "saturated_black_fraction", "reason")


def qc_row(file_name: str, label: str, box: tuple[int, int, int], quality: Quality,
           why: str | None) -> tuple:
    """One row of qc.csv. box: (top, left, side) px; why: reason(), written empty when kept."""
    top, left, side = box
    return (file_name, label, left, top, side,
            *(f"{value:.4f}" for value in astuple(quality)), why or "")
