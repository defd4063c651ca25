"""Where in an image tumour is: a mask from nuclear size, nuclear density and haematoxylin.

Tumour epithelium has large nuclei (malignancy is graded by their size), many of them, in a
cytoplasm that takes more haematoxylin than collagen does; lymphocytes are as many and small,
fibroblasts few (WHO Classification of Thoracic Tumours, 5th ed., 2021). So three measurements are
taken around each pixel and summed by a fixed rule:

  size       mean log2 of nuclear area over that of a lymphocyte, within some 40 um
  crowd      share of the tissue that large nuclei cover, within some 10 um: their number per mm2
             times their area; the plain number per mm2 tells nothing, inflamed septa have as many
  cytoplasm  haematoxylin between the nuclei over that within them, within some 4 um

A pixel of tissue is tumour where WEIGHTS x measurements + OFFSET > 0; then small regions and holes
go. The weights are a logistic regression on simulated tissue, rounded (`benchmarks/tumour_map.py`
repeats the fit and scores the rule on other patients). It is a map for choosing
tiles, no diagnosis: macrophages and reactive pneumocytes are large, keratin has no nuclei.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

REGIONS = ("all", "tissue", "tumour")
MIN_TUMOUR = 0.5       # ours: a tile is tumour if half of its tissue is

PX_PER_UM = 1.25       # finest raster worked on: LC25000's at 224 px
LYMPHOCYTE_UM2 = 40.0  # a nucleus of 7 um: the small lymphocyte, the pathologist's ruler
LARGE_UM2 = 55.0       # ours: above nearly every lymphocyte of simulated tissue, below most tumour
SIZE_UM, CROWD_UM, CYTOPLASM_UM = 40.0, 10.0, 4.0  # ours: best of 8-40, 10-20 and 2-15 there
FEW_PER_UM2 = 1e-4     # ours: 100 nuclei per mm2; among fewer, size counts for little
THIN = 0.05            # ours: share of tissue below which a share of it is not trusted
WEIGHTS = {"size": 2.5, "crowd": 7.0, "cytoplasm": 10.5}
OFFSET = -4.1          # the fit's -4.7 raised by the best Dice over all classes
SMOOTH_UM = 3.0        # ours: diameter of the closing and opening, less than a nucleus
MIN_REGION_UM2 = 300.0  # ours: some three tumour cells
MAX_HOLE_UM2 = 300.0


def tumour_mask(image, nuclei=None, *, field_um: float):
    """Mark tumour in uint8 [S, S, 3] RGB, H&E: bool [S, S], within the tissue.

    nuclei: `lungkit.nuclei.detect.Nuclei` of this image, None to find them here.
    field_um: side in um.
    """
    import cv2
    import numpy as np

    if nuclei is None:
        from lungkit.nuclei.detect import detect_nuclei
        nuclei = detect_nuclei(image, modality="he", field_um=field_um)
    measured, tissue, px_per_um = measure(image, nuclei, field_um=field_um)
    score = sum(WEIGHTS[name] * values for name, values in measured.items()) + OFFSET
    mask = tidy((score > 0) & tissue, tissue, px_per_um)
    size = (image.shape[1], image.shape[0])
    return cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0


def measure(image, nuclei, *, field_um: float):
    """The three measurements float32 [W, W] by name, tissue bool [W, W], and px per um of both."""
    import cv2
    import numpy as np

    from lungkit.histology.background import background_light, balance_white, tissue_mask

    size = image.shape[0]
    work = min(size, round(PX_PER_UM * field_um))
    px_per_um = work / field_um
    areas_um2 = np.maximum(nuclei.areas_px * (field_um / size) ** 2, 1)
    labels = nuclei.labels
    if work != size:
        image = cv2.resize(image, (work, work), interpolation=cv2.INTER_AREA)
        at = ((np.arange(work) + 0.5) * size / work).astype(int)
        labels = labels[np.ix_(at, at)]
    image = balance_white(image, background_light(image))
    tissue = tissue_mask(image)
    inside = labels > 0
    stain = _haematoxylin(image) if inside.any() else np.zeros(inside.shape, np.float32)
    large = np.r_[False, areas_um2 > LARGE_UM2][labels]
    between = tissue & ~inside
    dark = max(float(np.median(stain[inside])), 0.1) if inside.any() else 1.0

    place = np.clip(np.floor((nuclei.centroids + 0.5) * work / size).astype(int), 0, work - 1)
    number, log_area = np.zeros((2, work, work), np.float32)
    np.add.at(number, (place[:, 1], place[:, 0]), px_per_um**2)
    np.add.at(log_area, (place[:, 1], place[:, 0]),
              px_per_um**2 * np.log2(areas_um2 / LYMPHOCYTE_UM2))
    return {
        "size": _blur(log_area, SIZE_UM * px_per_um)
        / (_blur(number, SIZE_UM * px_per_um) + FEW_PER_UM2),
        "crowd": _blur(large, CROWD_UM * px_per_um) / (_blur(tissue, CROWD_UM * px_per_um) + THIN),
        "cytoplasm": _blur(stain * between, CYTOPLASM_UM * px_per_um)
        / (_blur(between, CYTOPLASM_UM * px_per_um) + THIN) / dark}, tissue, px_per_um


def tidy(mask, tissue, px_per_um: float):
    """Close and open a bool mask, drop small regions, fill the tissue of small holes."""
    import cv2
    import numpy as np

    side = 2 * round(SMOOTH_UM * px_per_um / 2) + 1
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, disc)
    mask = cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc) > 0
    mask &= ~_small(mask, MIN_REGION_UM2 * px_per_um**2)
    return (mask | _small(~mask, MAX_HOLE_UM2 * px_per_um**2)) & tissue


def tumour_share(tumour, tissue) -> float:
    """Share of the tissue that is tumour, two bool [S, S]; 0 where there is no tissue."""
    import numpy as np

    return float(np.count_nonzero(tumour & tissue) / max(1, np.count_nonzero(tissue)))


def reason_to_drop(region: str, share: float, label: str, benign: tuple[str, ...] = (),
                   min_tumour: float = MIN_TUMOUR) -> str | None:
    """Why a tile does not belong to --region, None where it does.

    region: "all" or "tissue" ask nothing of the tumour. "tumour" wants tiles whose tumour_share is
    at least min_tumour, but for the classes in `benign`, whose images are of their class without
    any tumour: of these every tile stays, wherever the map sees large nuclei.
    """
    if region != "tumour" or label in benign or share >= min_tumour:
        return None
    return f"less than {min_tumour:g} of its tissue is tumour"


def _haematoxylin(image):
    """Haematoxylin of white-balanced uint8 [H, W, 3], optical density along Ruifrok's vector."""
    import cv2
    import numpy as np

    from lungkit.histology.density import optical_density
    from lungkit.nuclei.detect import UNMIX

    return np.maximum(cv2.transform(optical_density(image), UNMIX.T[:1]), 0)


def _blur(values, sigma_px: float):
    """Gaussian of float or bool [H, W], float32; a wide one on a coarser raster, for speed."""
    import cv2
    import numpy as np

    values = np.asarray(values, np.float32)
    step = max(1, int(sigma_px / 5))  # ours: five px to a deviation change the result by under 1 %
    if step == 1:
        return cv2.GaussianBlur(values, (0, 0), sigma_px, borderType=cv2.BORDER_REFLECT)
    height, width = values.shape
    small = cv2.resize(values, (max(1, width // step), max(1, height // step)),
                       interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), sigma_px * small.shape[1] / width,
                             borderType=cv2.BORDER_REFLECT)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def _small(mask, area_px: float):
    """The 8-connected regions of a bool mask that are smaller than area_px, bool."""
    import cv2
    import numpy as np

    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    small = stats[:, cv2.CC_STAT_AREA] < area_px
    small[0] = False
    return small[labels]
