"""Scores of a segmentation: of each item, an image or a volume, and of a whole test split.

Dice has no smoothing term. An item without foreground and without prediction has no Dice, instead
of one that says nothing: predicting nothing scored 0.5 by a smoothed Dice a slice, with every
predicted volume empty. So the mean is over items with foreground; what is found elsewhere counts
as false positives, and in the pooled Dice.

Lesions are connected foreground, corners included; one is found where a predicted voxel lies in
it, and a predicted component that touches none is a false positive. Surfaces are the foreground
voxels with a face at background or at the edge of the array, by their centres, as MONAI takes them.
Surface Dice: Nikolov et al. 2021 (JMIR 23:e26151), of voxels instead of surface elements; 95 %
Hausdorff: the larger of the two directions' 95th percentiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

TOLERANCE_MM = 2.0  # of surface Dice in CT: about two pixels of a clinical slice
IGNORED = 2         # of a truth: neither foreground, 1, nor background, 0
COUNTS = ("true", "said", "both", "lesions", "found", "false_positives")  # of an item: int
MEASURES = ("dice", "surface_dice", "hd95_mm", "true_mm", "said_mm")      # of an item: float, NaN


# ------------------------------------------------------------------ one item

def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Connected foreground of bool [Z, Y, X] or [Y, X]: labels int32 from 1, and their number."""
    from scipy import ndimage

    labels, number = ndimage.label(mask, np.ones((3,) * mask.ndim))
    return labels, int(number)


def of_interest(said: np.ndarray, marked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is said and what is true, bool, without what is neither right nor wrong.

    said: bool; marked: foreground 1, background 0, or IGNORED. A component that touches what is
    ignored and no foreground is left out, as LUNA16 counts (Setio et al. 2017, Med Image Anal
    42:1): neither a hit nor a false positive.
    """
    true, doubtful = marked == 1, marked == IGNORED
    if not doubtful.any():
        return said, true
    labels, number = components(said)
    kept = np.ones(number + 1, bool)
    kept[labels[doubtful & said]] = False
    kept[labels[true & said]] = True
    return said & kept[labels], true


def dice(true: np.ndarray | int, said: np.ndarray | int, both: np.ndarray | int) -> float:
    """Of numbers of voxels; NaN where there are none."""
    return float(2 * both / (true + said)) if true + said else float("nan")


def count_item(said: np.ndarray, true: np.ndarray) -> dict[str, int]:
    """COUNTS of an item: voxels and lesions of bool [Z, Y, X] or [Y, X]."""
    lesions, num_lesions = components(true)
    regions, num_regions = components(said)
    both = said & true
    return {"true": int(true.sum()), "said": int(said.sum()), "both": int(both.sum()),
            "lesions": num_lesions, "found": len(np.unique(lesions[both])),
            "false_positives": num_regions - len(np.unique(regions[both]))}


def score_item(said: np.ndarray, true: np.ndarray, spacing_mm: Sequence[float] | None, *,
               tolerance_mm: float | None = TOLERANCE_MM, with_surface: bool = True) -> dict:
    """COUNTS and MEASURES of an item, bool [Z, Y, X] or [Y, X].

    spacing_mm: along each axis; None: unknown. tolerance_mm: None where surface Dice means nothing.
    with_surface: False where slices are missing. true_mm, said_mm: mm3 of a volume, mm2 of an
    image. hd95_mm is NaN where either is empty; surface Dice 0 where one is, NaN where both are.
    """
    counts = count_item(said, true)
    measured = dict.fromkeys(MEASURES, float("nan"))
    measured["dice"] = dice(counts["true"], counts["said"], counts["both"])
    if spacing_mm is None:
        return counts | measured
    voxel_mm = float(np.prod(spacing_mm))
    measured |= {"true_mm": counts["true"] * voxel_mm, "said_mm": counts["said"] * voxel_mm}
    if with_surface and counts["true"] and counts["said"]:
        to_true, to_said = surface_distances(said, true, spacing_mm)
        measured["hd95_mm"] = float(max(np.percentile(to_true, 95), np.percentile(to_said, 95)))
        if tolerance_mm is not None:
            within = (to_true <= tolerance_mm).sum() + (to_said <= tolerance_mm).sum()
            measured["surface_dice"] = float(within / (len(to_true) + len(to_said)))
    elif with_surface and tolerance_mm is not None and (counts["true"] or counts["said"]):
        measured["surface_dice"] = 0.0
    return counts | measured


def surface_distances(said: np.ndarray, true: np.ndarray,
                      spacing_mm: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """mm from every surface voxel of `said` to the surface of `true`, and the other way round.

    Neither may be empty.
    """
    from scipy import ndimage

    boxes = ndimage.find_objects((said | true).astype(np.uint8))[0]  # all else is far from both
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (said[boxes], true[boxes])]
    away = [ndimage.distance_transform_edt(~edge, sampling=spacing_mm) for edge in edges]
    return away[1][edges[0]], away[0][edges[1]]


# ------------------------------------------------------------------ a split

def summarise(items: list, scored: list[dict]) -> tuple[dict, dict, dict[str, np.ndarray]]:
    """What a record says of a test split, and its .npz: scores, what they are of, arrays.

    items: `mask_items.Item`s; scored: `score_item` of each. At least one has foreground.
    """
    arrays = {name: np.array([each[name] for each in scored], np.int64) for name in COUNTS}
    arrays |= {name: np.array([each[name] for each in scored], np.float64) for name in MEASURES}
    lesion = arrays["true"] > 0
    assert lesion.any()
    groups = np.array([item.group for item in items])
    # an item without prediction has a Dice of 0 where it has foreground, so that none is NaN here
    scores = {"dice": float(arrays["dice"][lesion].mean()),
              "dice_pooled": dice(*(arrays[name].sum() for name in ("true", "said", "both"))),
              "lesion_sensitivity": float(arrays["found"].sum() / arrays["lesions"].sum())}
    surface = arrays["surface_dice"][lesion]
    if not np.isnan(surface).any():
        scores["surface_dice"] = float(surface.mean())
    error = (arrays["said"] / np.maximum(1, arrays["true"]) - 1)[lesion]
    distances = arrays["hd95_mm"][~np.isnan(arrays["hd95_mm"])]
    about = {
        "num_images": sum(len(item.images) for item in items), "num_items": len(items),
        "items": "images" if items[0].slices is None else "volumes",
        "num_with_foreground": int(lesion.sum()), "num_lesions": int(arrays["lesions"].sum()),
        "false_positives": float(arrays["false_positives"].mean()),
        "volume_error": float(np.abs(error).mean()), "volume_bias": float(error.mean()),
        "hd95_mm": float(np.median(distances)) if len(distances) else None,
        "num_hd95": len(distances), "num_empty": int((arrays["said"][lesion] == 0).sum()),
        "num_with_gaps": sum(item.has_gaps for item in items),
        "dice_by_group": {group: float(arrays["dice"][lesion & (groups == group)].mean())
                          for group in sorted(set(groups[lesion].tolist()))}}
    arrays |= {"file_names": np.array([item.name for item in items]), "groups": groups}
    return scores, about, arrays
