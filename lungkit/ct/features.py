"""What is measured of a nodule: its size, the ruler of every CT classification, and its texture.

Size alone tells much of the readers' grade (docs/ct.md): a network has learnt more than size only
where it scores more than SIZE does. SIZE is of metadata.csv, the logarithms of the nodule's
diameter (mm) and of its area on the slice shown (mm2); where one is unknown it is that of the disc
which the other describes. An image without a nodule has no size, and is refused: to have a size
would be the class itself.

LOOKS are of the pixels inside the image's own nodule mask, in HU where the window is known, else in
grey levels: attenuation, its step at the margin, grey-level co-occurrence (Haralick, Shanmugam and
Dinstein, IEEE Trans Syst Man Cybern 3, 1973) over pairs of neighbours inside the nodule in any of
four directions, and outline, as skimage.measure.regionprops has it. What cannot be measured is NaN:
the co-occurrence of one pixel, everything of an image whose mask is unknown.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from lungkit.data.dataset import Dataset, Row
from lungkit.run.faults import Fault, check_stop
from lungkit.run.files import sha256, sha256_file

RECIPE = 1      # raise it when values come out otherwise: results of two are not compared
SIZE = ("log_diameter_mm", "log_area_mm2")
LOOKS = ("mean", "sd", "p10", "p50", "p90", "margin", "surround",
         "contrast", "homogeneity", "energy", "correlation", "entropy",
         "eccentricity", "solidity", "circularity")
COLUMNS = {"size": SIZE, "nodule": (*SIZE, *LOOKS)}  # by baseline, the ruler first
GREY_STEP = 16  # ours: grey levels to one of 16, 88 HU in the default window: above the noise
RING_PX = 2     # ours: as wide as the soft margin of a nodule at 1 mm a pixel


# ------------------------------------------------------------------ size

def sizes(data: Dataset) -> dict[str, list[float]]:
    """SIZE of every image by file name. Raises Fault where an image has none."""
    found = {row.file_name: size(row) for row in data.rows}
    lacking = [row for row in data.rows if found[row.file_name] is None]
    if lacking:
        bare = [label for label in data.classes
                if not any(found[row.file_name] for row in data.rows if row.label == label)]
        why = (f"class {bare[0]} has no nodules, and to have a size would be the class itself: "
               "this task has no ruler" if bare else
               "name them in the column diameter_mm of the table that the dataset was made from, "
               "or leave these images out")
        raise Fault(f"{data.path}: {len(lacking)} of {len(data.rows)} images have no nodule of "
                    f"known size, the first is {lacking[0].file_name}: {why}")
    return found


def size(row: Row) -> list[float] | None:
    """SIZE of the nodule that a row is of; None: it has none, or its size is unknown."""
    diameter_mm, area_mm2 = (float(row.extra.get(name) or 0) for name in
                             ("diameter_mm", "area_mm2"))
    if not (diameter_mm > 0 or area_mm2 > 0):
        return None
    diameter_mm = diameter_mm or 2 * math.sqrt(area_mm2 / math.pi)
    return [math.log(diameter_mm), math.log(area_mm2 or math.pi * diameter_mm**2 / 4)]


# ------------------------------------------------------------------ looks

def own_nodule(mask: np.ndarray, is_crop: bool) -> np.ndarray:
    """The one nodule of bool [S, S] that an image is of: that nearest the centre of a crop, the
    largest of a slice. Pixels that touch by a corner are of one nodule."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, np.ones((3, 3)))
    if count < 2:
        return mask
    if is_crop:
        away = np.hypot(*(np.indices(mask.shape) - (len(mask) - 1) / 2))
        away[~mask] = np.inf
        return labels == labels.flat[away.argmin()]
    return labels == np.bincount(labels[mask]).argmax()


def looks(grey: np.ndarray, mask: np.ndarray, window: tuple[float, float] | None) -> list[float]:
    """LOOKS of the nodule bool [S, S] in an image uint8 [S, S]; NaN where it has no pixel.

    window: HU of grey 0 and 255; None: unknown.
    """
    if not mask.any():
        return [math.nan] * len(LOOKS)
    low, high = window or (0.0, 255.0)
    values = grey / 255 * (high - low) + low
    inside = values[mask]
    return [float(inside.mean()), float(inside.std()),
            *map(float, np.percentile(inside, (10, 50, 90))), *_margin(values, mask),
            *_co_occurrence(grey, mask), *_outline(mask)]


def _margin(values: np.ndarray, mask: np.ndarray) -> list[float]:
    """Mean gradient along the outline, a pixel; mean of a ring of RING_PX around the nodule."""
    from scipy import ndimage

    down, across = np.gradient(values)
    outline = mask & ~ndimage.binary_erosion(mask)
    ring = ndimage.binary_dilation(mask, np.ones((3, 3)), RING_PX) & ~mask
    return [float(np.hypot(down, across)[outline].mean()),
            float(values[ring].mean()) if ring.any() else math.nan]


def _co_occurrence(grey: np.ndarray, mask: np.ndarray) -> list[float]:
    """Haralick's contrast, homogeneity, energy, correlation and entropy (nats)."""
    from skimage.feature import graycomatrix, graycoprops

    levels = np.where(mask, grey // GREY_STEP + 1, 0).astype(np.uint8)  # 0: outside
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    pairs = graycomatrix(levels, [1], angles, 256 // GREY_STEP + 1, symmetric=True)
    pairs = pairs[1:, 1:].sum(3, keepdims=True)
    if not pairs.any():
        return [math.nan] * 5
    share = pairs[pairs > 0] / pairs.sum()
    return [*(float(graycoprops(pairs, name)[0, 0]) for name in
              ("contrast", "homogeneity", "energy", "correlation")),
            float(-(share * np.log(share)).sum())]


def _outline(mask: np.ndarray) -> list[float]:
    """Eccentricity, solidity and circularity 4 pi area / perimeter**2; NaN without a perimeter."""
    from skimage.measure import regionprops

    region, = regionprops(mask.astype(np.uint8))
    perimeter = region.perimeter
    return [float(region.eccentricity), float(region.solidity),
            4 * math.pi * float(region.area) / perimeter**2 if perimeter else math.nan]


# ------------------------------------------------------------------ of a dataset

def fingerprint(directory: Path, baseline: str) -> str:
    """What decides the features of a dataset made by ct_seg.py, another for each baseline: SHA-256
    of its name and of metadata.csv, which holds sizes and the SHA-256 of every image."""
    return sha256(f"{baseline}\t{sha256_file(directory / 'metadata.csv')}".encode())


def read_features(data: Dataset, baseline: str) -> dict[str, list[float]]:
    """The values of COLUMNS[baseline] by file name. Raises Fault where an image has no size."""
    found = sizes(data)
    if baseline == "size":
        return found
    if data.masks.get("nodule") != "binary":
        raise Fault(f"{data.path} holds no masks of nodules (masks/nodule): texture is measured "
                    "inside them; there is the baseline size")
    is_crop = data.manifest.get("parameters", {}).get("view") != "slice"
    window = data.intensity and tuple(data.intensity["window"])
    for row in data.rows:
        check_stop()
        mask = np.zeros((data.image_size,) * 2, bool)
        if data.mask_path("nodule", row).exists():  # pictures may come without
            mask = own_nodule(data.mask("nodule", row) > 0, is_crop)
        found[row.file_name] += looks(data.image(row)[..., 0], mask, window)
    return found
