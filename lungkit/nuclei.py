"""Nuclei: find them.

Coordinates are (x, y) in pixels of the given image; a pixel's centre is at whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Optical densities of haematoxylin, eosin and DAB: Ruifrok and Johnston, Quantification of
# histochemical staining by color deconvolution, Anal Quant Cytol Histol 23(4), 2001; the rounded
# values are those of skimage.color.rgb_from_hed.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
UNMIX = np.linalg.inv(STAINS)[:, :2].astype(np.float32)

FIELD_UM = 180.0  # side of an LC25000 tile: its red cells, 6 um when fixed, are 1/30 of a tile
WORK_PX = 224  # smaller images are enlarged to this side: a nucleus must be wider than its smoothing

# Ours, as everything below: chosen on simulated tissue (F1 of centroids at 64 and 224 px) and
# then by eye on LC25000, whose pale, large nuclei want more context and more merging than that.
SMOOTH_UM = 0.8
CONTEXT_UM = 24.0  # the surroundings a nucleus must stand out from: about two nuclei wide
OTSU = 0.9  # share of Otsu's threshold, which dark nuclei pull above the pale ones
HE_FLOOR = 0.35  # haematoxylin, natural optical density: glass and eosin stay below it
HE_CONTRAST = 0.04
FLUORESCENCE_FLOOR = 0.12  # of full scale, above the image's background
PROMINENCE = 0.5  # a nucleus rises above its threshold by this share of the floor: noise does not
MAX_HOLE_UM2 = 30.0
OPEN_UM = 2.0
SEED_UM = 1.0
STAIN_WEIGHT_UM = 1.0  # um of depth that one unit of stain counts for in the watershed
MIN_DISTANCE_UM = 3.0
MERGE_SADDLE = 0.85
MERGE_ASPECT = 1.5  # two nuclei side by side make a longer shape, and must be ...
MERGE_SOLIDITY = 0.9
MERGE_LONG_SOLIDITY = 0.96  # ... all but convex to be taken for one
MIN_AREA_UM2 = 9.0  # a circle of 3.4 um
MAX_AREA_UM2 = 600.0  # a circle of 28 um
SOLIDITY = 0.75


@dataclass(frozen=True)
class Nuclei:
    """labels int32 [H, W], 0 background; centroids float32 [N, 2] (x, y) px; areas_px float32 [N]."""

    labels: np.ndarray
    centroids: np.ndarray
    areas_px: np.ndarray

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
    from skimage.segmentation import watershed

    if modality == "auto":
        modality = guess_modality(image)
    size = image.shape[0]
    work = max(size, WORK_PX)
    if work != size:
        image = cv2.resize(image, (work, work), interpolation=cv2.INTER_CUBIC)
    px_um = work / field_um
    stain, threshold, floor = METHODS[modality](image, px_um)
    mask = _smooth(stain > threshold, px_um)
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5) / px_um
    height = cv2.GaussianBlur(depth + STAIN_WEIGHT_UM * stain * mask, (0, 0), SEED_UM * px_um)
    labels = watershed(-height, _seeds(height, mask, MIN_DISTANCE_UM * px_um), mask=mask)
    labels = _merge(labels.astype(np.int32), height)
    faint = _peaks(stain - threshold, labels) < PROMINENCE * floor
    labels, centroids, areas = _select(np.where(faint[labels], 0, labels), px_um, solidity)
    scale = size / work
    if work != size:
        at = np.minimum(((np.arange(size) + 0.5) / scale).astype(int), work - 1)
        labels = labels[np.ix_(at, at)]
    return Nuclei(labels, ((centroids + 0.5) * scale - 0.5).astype(np.float32),
                  (areas * scale * scale).astype(np.float32))


def guess_modality(image: np.ndarray) -> str:
    """ "fluorescence" for a mostly dark image, "he" for a mostly bright one."""
    return "fluorescence" if np.median(image.max(axis=2)) < 100 else "he"


def haematoxylin(image: np.ndarray) -> np.ndarray:
    """Concentration of haematoxylin, float32 [H, W], in natural optical density, not below 0.

    Where there is more eosin than haematoxylin the surplus is taken off: red cells, which stain
    normalisation turns purple, hold haematoxylin by colour alone.
    """
    table = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
    haem, eosin = np.moveaxis(table[image] @ UNMIX, -1, 0)
    return np.maximum(haem - np.maximum(eosin - haem, 0), 0)


def _he(image: np.ndarray, px_um: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Haematoxylin and the threshold of nuclei, float32 [H, W], and the threshold's floor."""
    import cv2

    stain = cv2.GaussianBlur(haematoxylin(image), (0, 0), SMOOTH_UM * px_um)
    around = cv2.blur(stain, (2 * round(CONTEXT_UM * px_um / 2) + 1,) * 2)
    return stain, np.maximum(max(OTSU * _otsu(stain), HE_FLOOR), around + HE_CONTRAST), HE_FLOOR


def _fluorescence(image: np.ndarray, px_um: float) -> tuple[np.ndarray, np.ndarray, float]:
    """As `_he`, for intensity above the background, 0..1."""
    import cv2

    light = cv2.GaussianBlur(image.max(axis=2).astype(np.float32) / 255, (0, 0), SMOOTH_UM * px_um)
    light -= np.percentile(light, 5)
    around = cv2.blur(light, (2 * round(CONTEXT_UM * px_um / 2) + 1,) * 2)
    threshold = np.maximum(max(OTSU * _otsu(light), FLUORESCENCE_FLOOR), around)
    return light, threshold, FLUORESCENCE_FLOOR


METHODS = {"he": _he, "fluorescence": _fluorescence}


def _otsu(values: np.ndarray) -> float:
    """Threshold of largest between-class variance (Otsu 1979) over 256 bins."""
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-6:
        return high
    counts, edges = np.histogram(values, 256, (low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    sums = np.cumsum(counts * centres)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = sums / below - (sums[-1] - sums) / above
    return float(centres[np.nanargmax(np.where((below > 0) & (above > 0), below * above * gap**2, -1))])


def _seeds(height: np.ndarray, mask: np.ndarray, distance_px: float) -> np.ndarray:
    """Markers int32 [H, W]: local maxima of `height` in `mask` within a disc of `distance_px`."""
    import cv2

    side = 2 * max(1, round(distance_px / 2)) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    peaks = (height >= cv2.dilate(height, disc)) & mask
    return cv2.connectedComponents(peaks.astype(np.uint8), connectivity=8)[1]


def _smooth(mask: np.ndarray, px_um: float) -> np.ndarray:
    """Fill holes up to MAX_HOLE_UM2 (pale chromatin, not a gland's lumen) and take off specks."""
    import cv2

    count, holes, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] <= MAX_HOLE_UM2 * px_um**2
    small[0] = False
    side = 2 * round(OPEN_UM * px_um / 2) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return cv2.morphologyEx((mask | small[holes]).astype(np.uint8), cv2.MORPH_OPEN, disc) > 0


def _peaks(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Largest value, not below 0, in each of regions 0..max of `labels`, float32 [max + 1]."""
    peaks = np.zeros(int(labels.max()) + 1, np.float32)
    np.maximum.at(peaks, labels.ravel(), values.ravel().astype(np.float32))
    return peaks


def _merge(labels: np.ndarray, height: np.ndarray) -> np.ndarray:
    """Join touching regions that no neck divides: one nucleus with two seeds.

    A neck is a saddle of `height` below MERGE_SADDLE of the lower of the two peaks; and the union
    must fill MERGE_SOLIDITY of its convex hull, a long one MERGE_LONG_SOLIDITY.
    """
    count = int(labels.max()) + 1
    peaks = _peaks(height, labels)
    found = []
    for one, other, a, b in ((labels[1:], labels[:-1], height[1:], height[:-1]),
                             (labels[:, 1:], labels[:, :-1], height[:, 1:], height[:, :-1])):
        touch = (one != other) & (one > 0) & (other > 0)
        pair = np.minimum(one, other)[touch].astype(np.int64) * count + np.maximum(one, other)[touch]
        found.append((pair, np.minimum(a, b)[touch]))
    pairs, where = np.unique(np.concatenate([pair for pair, _ in found]), return_inverse=True)
    saddle = np.zeros(len(pairs), np.float32)
    np.maximum.at(saddle, where, np.concatenate([value for _, value in found]))
    first, second = pairs // count, pairs % count
    ratio = saddle / np.minimum(peaks[first], peaks[second])
    boxes = _boxes(labels)
    for k in np.argsort(-ratio, kind="stable"):
        if ratio[k] < MERGE_SADDLE:
            break
        i, j = first[k], second[k]
        while boxes[i, 0] < 0:
            i = boxes[i, 1]
        while boxes[j, 0] < 0:
            j = boxes[j, 1]
        if i == j:
            continue
        top, left = np.minimum(boxes[i, :2], boxes[j, :2])
        bottom, right = np.maximum(boxes[i, 2:], boxes[j, 2:])
        window = labels[top:bottom, left:right]
        union = (window == i) | (window == j)
        hull = _hull(union)
        least = MERGE_SOLIDITY if _aspect(hull) <= MERGE_ASPECT else MERGE_LONG_SOLIDITY
        if union.sum() / _hull_area(hull) >= least:
            window[union] = i
            boxes[i] = top, left, bottom, right
            boxes[j] = -1, i, 0, 0
    return labels


def _boxes(labels: np.ndarray) -> np.ndarray:
    """Bounding boxes int [max + 1, 4] (top, left, bottom, right; ends excluded)."""
    ys, xs = np.nonzero(labels)
    ids = labels[ys, xs]
    boxes = np.zeros((int(labels.max()) + 1, 4), int)
    boxes[:, :2] = labels.shape
    for axis, values in enumerate((ys, xs)):
        np.minimum.at(boxes[:, axis], ids, values)
        np.maximum.at(boxes[:, axis + 2], ids, values + 1)
    return boxes


def _select(labels: np.ndarray, px_um: float,
            solidity: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keep regions of a nucleus's size and solidity: labels 1..N, centroids, areas (numbered by row)."""
    ys, xs = np.nonzero(labels)
    ids = labels[ys, xs]
    count = int(labels.max()) + 1
    areas = np.bincount(ids, minlength=count).astype(float)
    keep = (areas >= MIN_AREA_UM2 * px_um**2) & (areas <= MAX_AREA_UM2 * px_um**2)
    boxes = _boxes(labels)
    for label in np.flatnonzero(keep):
        top, left, bottom, right = boxes[label]
        region = labels[top:bottom, left:right] == label
        keep[label] = areas[label] / _hull_area(_hull(region)) >= solidity
    new = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    sums = np.stack([np.bincount(ids, values, count) for values in (xs, ys)], axis=1)
    return new[labels], (sums[keep] / areas[keep, None]).reshape(-1, 2), areas[keep]


def _hull(region: np.ndarray) -> np.ndarray:
    """Vertices int32 [V, 2] (x, y) of the convex hull of a bool region."""
    import cv2

    return cv2.convexHull(cv2.findNonZero(region.astype(np.uint8)))[:, 0]


def _hull_area(hull: np.ndarray) -> float:
    """Pixels within a hull, exact by Pick's theorem."""
    import cv2

    steps = np.abs(np.diff(hull, axis=0, append=hull[:1]))
    return cv2.contourArea(hull) + np.gcd(steps[:, 0], steps[:, 1]).sum() / 2 + 1


def _aspect(hull: np.ndarray) -> float:
    """Length over width of the smallest rectangle around a hull."""
    import cv2

    sides = np.array(cv2.minAreaRect(hull)[1]) + 1
    return float(sides.max() / sides.min())
