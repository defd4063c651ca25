"""Nuclei: find them in H&E and in fluorescence.

The image becomes one plane of nuclear stain (colour deconvolution, Ruifrok and Johnston 2001, or
the light of the nuclear dye), a threshold that is global (Otsu 1979) and local at once makes it a
mask, watershed on depth and stain cuts the mask at every slight neck, and
`lungkit.nuclei.fragments` joins what belongs together. docs/nuclei.md has figures and pictures.

Coordinates are (x, y) in pixels of the given image; a pixel's centre is at whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lungkit.nuclei.fragments import hull_areas, hulls_of, join_fragments

# Optical densities of haematoxylin, eosin and DAB: Ruifrok and Johnston, Quantification of
# histochemical staining by color deconvolution, Anal Quant Cytol Histol 23(4), 2001; the rounded
# values are those of skimage.color.rgb_from_hed.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
UNMIX = np.linalg.inv(STAINS)[:, :2].astype(np.float32)

RECIPE = 2  # raise it when other nuclei are found: a dataset made by another is not complete
FIELD_UM = 180.0  # side of an LC25000 tile: its red cells, 6 um when fixed, are 1/30 of a tile
WORK_PX = 224  # smaller images are enlarged to this: a nucleus must be wider than its smoothing

# Ours, as everything below: chosen on simulated tissue (F1 of centroids, seeds below 100) and then
# by eye on LC25000, whose pale, large nuclei want more context than that.
SMOOTH_UM = 0.8
SHARP_UM = 0.4  # of the outline: at 0.8 um the necks between touching nuclei fill up
CONTEXT_UM = 24.0  # the surroundings a nucleus must stand out from: about two nuclei wide
OTSU = 0.9  # share of Otsu's threshold, which dark nuclei pull above the pale ones
HE_FLOOR = 0.35  # haematoxylin, natural optical density: glass and eosin stay below it
HE_CONTRAST = 0.04
FLUORESCENCE_OTSU = 0.6  # nuclei differ more in light than in stain: of 0.9 every tenth is lost
FLUORESCENCE_FLOOR = 0.12  # of full scale, above the image's background
BACKGROUND_UM = 40.0  # light uneven over more than this is background: wider than any nucleus
BLUE_SHARE = 0.25  # of the largest channel's contrast: from here blue is taken for DAPI or Hoechst
PROMINENCE = 0.5  # a nucleus rises above its threshold by this share of the floor: noise does not
MAX_HOLE_UM2 = 30.0
OPEN_UM = 2.0
# Fragments: as small as needed to part all touching nuclei (joined right, they give F1 0.98).
SEED_UM = 0.4
STAIN_WEIGHT_UM = 1.0  # um of depth that one unit of stain counts for in the watershed
MIN_DISTANCE_UM = 2.0
MIN_AREA_UM2 = 9.0  # a circle of 3.4 um ...
BORDER_SHARE = 0.5  # ... or this share of it at the image's border, which cuts nuclei in two
MAX_AREA_UM2 = 600.0  # a circle of 28 um
SOLIDITY = 0.75


@dataclass(frozen=True)
class Nuclei:
    """N nuclei of an image."""

    labels: np.ndarray     # int32 [H, W], 0 background
    centroids: np.ndarray  # float32 [N, 2], (x, y) px
    areas_px: np.ndarray   # float32 [N]

    def __len__(self) -> int:
        return len(self.centroids)


def detect_nuclei(image: np.ndarray, *, modality: str = "auto", solidity: float = SOLIDITY,
                  field_um: float = FIELD_UM) -> Nuclei:
    """Find the nuclei of a uint8 [S, S, 3] RGB image.

    modality: "he", "fluorescence" (bright on dark) or "auto" (see `guess_modality`).
    solidity: least share of its convex hull that a nucleus fills.
    field_um: side of the image in um, which sets the sizes searched for.
    Centroids and areas are of sub-pixel precision; a nucleus may be too small to own a pixel of
    `labels`, and then has none there.
    """
    import cv2

    if modality == "auto":
        modality = guess_modality(image)
    size = image.shape[0]
    work = max(size, WORK_PX)
    if work != size:
        image = cv2.resize(image, (work, work), interpolation=cv2.INTER_CUBIC)
    px_per_um = work / field_um
    labels, height, stain, excess, floor = cut_fragments(image, modality, px_per_um)
    labels = join_fragments(labels, height, stain, px_per_um)
    faint = _peaks(excess, labels) < PROMINENCE * floor
    return settle(np.where(faint[labels], 0, labels), px_per_um, solidity, size)


def settle(labels: np.ndarray, px_per_um: float, solidity: float, size: int) -> Nuclei:
    """Keep what has a nucleus's size and solidity, in a raster of `size` px a side.

    labels: int32 [W, W], 0 background, at px_per_um px per um; W need not be `size`.
    """
    labels, centroids, areas = _select(labels, px_per_um, solidity)
    work = len(labels)
    scale = size / work
    if work != size:
        at = np.minimum(((np.arange(size) + 0.5) / scale).astype(int), work - 1)
        labels = labels[np.ix_(at, at)]
    return Nuclei(labels, ((centroids + 0.5) * scale - 0.5).astype(np.float32),
                  (areas * scale * scale).astype(np.float32))


def cut_fragments(image: np.ndarray, modality: str,
                  px_per_um: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]:
    """Mask the nuclei of a uint8 [H, W, 3] image and cut the mask at every slight neck.

    Returns fragments int32 [H, W], 0 background; the height that the watershed flooded, the stain,
    and by how much it exceeds its threshold, float32 [H, W]; and the threshold's floor.
    """
    import cv2
    from skimage.segmentation import watershed

    raw, stain, threshold, floor = METHODS[modality](image, px_per_um)
    sharp = cv2.GaussianBlur(raw, (0, 0), SHARP_UM * px_per_um)
    mask = _smooth(sharp > threshold, px_per_um)
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5) / px_per_um
    height = cv2.GaussianBlur(depth + STAIN_WEIGHT_UM * stain * mask, (0, 0), SEED_UM * px_per_um)
    labels = watershed(-height, _seeds(height, mask, MIN_DISTANCE_UM * px_per_um), mask=mask)
    return labels.astype(np.int32), height, sharp, stain - threshold, floor


def guess_modality(image: np.ndarray) -> str:
    """ "fluorescence" for a mostly dark image, "he" for a mostly bright one."""
    return "fluorescence" if np.median(image.max(axis=2)) < 100 else "he"


def haematoxylin(image: np.ndarray) -> np.ndarray:
    """Concentration of haematoxylin, float32 [H, W], in natural optical density, not below 0.

    image: uint8 [H, W, 3], stained with haematoxylin and eosin. It lives here and not with the
    stains of histology, which stand above the nuclei and take UNMIX from here.

    Where there is more eosin than haematoxylin the surplus is taken off: red cells, which stain
    normalisation turns purple, hold haematoxylin by colour alone.
    """
    import cv2

    table = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
    haem, eosin = cv2.split(cv2.transform(cv2.LUT(image, table), UNMIX.T))
    return np.maximum(haem - np.maximum(eosin - haem, 0), 0)


def _he(image: np.ndarray, px_per_um: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Haematoxylin, raw and smooth, the threshold of nuclei, float32 [H, W], and its floor."""
    import cv2

    raw = haematoxylin(image)
    stain = cv2.GaussianBlur(raw, (0, 0), SMOOTH_UM * px_per_um)
    around = cv2.blur(stain, (2 * round(CONTEXT_UM * px_per_um / 2) + 1,) * 2)
    threshold = np.maximum(max(OTSU * _otsu(stain), HE_FLOOR), around + HE_CONTRAST)
    return raw, stain, threshold, HE_FLOOR


def _fluorescence(image: np.ndarray,
                  px_per_um: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """As `_he`, for intensity above the background, 0..1."""
    import cv2

    raw = nuclear_channel(image)
    raw -= _background(raw, px_per_um)
    light = cv2.GaussianBlur(raw, (0, 0), SMOOTH_UM * px_per_um)
    around = cv2.blur(light, (2 * round(CONTEXT_UM * px_per_um / 2) + 1,) * 2)
    threshold = np.maximum(max(FLUORESCENCE_OTSU * _otsu(light), FLUORESCENCE_FLOOR), around)
    return raw, light, threshold, FLUORESCENCE_FLOOR


def nuclear_channel(image: np.ndarray) -> np.ndarray:
    """The nuclear stain of a uint8 [H, W, 3] fluorescence image, float32 [H, W], 0..1.

    Blue where the image is a composite with signal in blue, as DAPI and Hoechst are shown; else
    the brightest channel of each pixel: grey images, or one stain in any colour.
    """
    spread = np.subtract(*np.percentile(image[::2, ::2].reshape(-1, 3), (99.5, 5), axis=0))
    composite = spread[2] >= BLUE_SHARE * spread.max()
    return (image[..., 2] if composite else image.max(axis=2)).astype(np.float32) / 255


def _background(light: np.ndarray, px_per_um: float) -> np.ndarray:
    """Light that varies over more than BACKGROUND_UM, float32 [H, W]: a smoothed opening."""
    import cv2

    height, width = light.shape
    step = max(1, round(BACKGROUND_UM * px_per_um / 16))  # 16 px a structure is fine enough
    small = cv2.resize(light, (-(-width // step), -(-height // step)), interpolation=cv2.INTER_AREA)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (17, 17))
    small = cv2.morphologyEx(small, cv2.MORPH_OPEN, disc, borderType=cv2.BORDER_REFLECT)
    return cv2.resize(cv2.GaussianBlur(small, (0, 0), 4), (width, height),
                      interpolation=cv2.INTER_LINEAR)


METHODS = {"he": _he, "fluorescence": _fluorescence}


def _otsu(values: np.ndarray) -> float:
    """Threshold of largest between-class variance (Otsu 1979) over 256 bins."""
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-6:
        return high
    bins = ((values - low) * (256 / (high - low))).astype(np.int32)  # np.histogram takes 2 ms
    counts = np.bincount(np.minimum(bins, 255).ravel(), minlength=256)
    centres = low + (np.arange(256) + 0.5) * (high - low) / 256
    below = np.cumsum(counts)
    sums = np.cumsum(counts * centres)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = sums / below - (sums[-1] - sums) / above
    between = np.where((below > 0) & (above > 0), below * above * gap**2, -1)
    return float(centres[np.nanargmax(between)])


def _seeds(height: np.ndarray, mask: np.ndarray, distance_px: float) -> np.ndarray:
    """Markers int32 [H, W]: local maxima of `height` in `mask` within a disc of `distance_px`."""
    import cv2

    side = 2 * max(1, round(distance_px / 2)) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    peaks = (height >= cv2.dilate(height, disc)) & mask
    return cv2.connectedComponents(peaks.astype(np.uint8), connectivity=8)[1]


def _smooth(mask: np.ndarray, px_per_um: float) -> np.ndarray:
    """Fill holes up to MAX_HOLE_UM2 (pale chromatin, not a gland's lumen) and take off specks."""
    import cv2

    _, holes, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] <= MAX_HOLE_UM2 * px_per_um**2
    small[0] = False
    side = 2 * round(OPEN_UM * px_per_um / 2) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return cv2.morphologyEx((mask | small[holes]).astype(np.uint8), cv2.MORPH_OPEN, disc) > 0


def _peaks(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Largest value, not below 0, in each of regions 1..max of `labels`, float32 [max + 1]."""
    peaks = np.zeros(int(labels.max()) + 1, np.float32)
    inside = np.flatnonzero(labels)
    np.maximum.at(peaks, labels.ravel()[inside], values.ravel()[inside])
    return peaks


def _select(labels: np.ndarray, px_per_um: float,
            solidity: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep regions of a nucleus's size and solidity: labels 1..N by row, centroids, areas."""
    inside = np.flatnonzero(labels)
    ids = labels.ravel()[inside]
    ys, xs = np.divmod(inside, labels.shape[1])
    count = int(labels.max()) + 1
    areas = np.bincount(ids, minlength=count).astype(float)
    least = np.full(count, MIN_AREA_UM2 * px_per_um**2)
    for border in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        least[border] = BORDER_SHARE * MIN_AREA_UM2 * px_per_um**2
    keep = (areas >= least) & (areas <= MAX_AREA_UM2 * px_per_um**2)
    keep &= areas >= solidity * hull_areas(hulls_of(labels))
    new = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    sums = np.stack([np.bincount(ids, values, count) for values in (xs, ys)], axis=1)
    return new[labels], (sums[keep] / areas[keep, None]).reshape(-1, 2), areas[keep]
