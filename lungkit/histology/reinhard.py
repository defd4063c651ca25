"""Reinhard et al. 2001, "Color transfer between images": mean and spread of the tissue's colours.

IEEE Computer Graphics and Applications 21(5).

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from lungkit.histology.density import (
    MAX_STRENGTH_RATIO,
    OD_BETA,
    optical_density,
    sample_pixels,
    stained_pixels,
)

# Reinhard 2001, equations 4 and 6: RGB to cone responses, and their logarithms to l, alpha, beta
RGB_TO_LMS = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
LOG_LMS_TO_LAB = ((3 ** -0.5,) * 3, (6 ** -0.5, 6 ** -0.5, -2 * 6 ** -0.5),
                  (2 ** -0.5, -(2 ** -0.5), 0.0))
MIN_SPREAD = 0.002          # ours: deviation (log10) of half a grey level, what rounding makes


@dataclass(frozen=True)
class Colours:
    """Mean and standard deviation [3] of stained pixels in Reinhard's l, alpha, beta (log10)."""

    mean: object
    spread: object


def _lab_matrices():
    """RGB to cone responses, and their natural logarithms to l, alpha, beta: float32 [3, 3]."""
    import numpy as np

    return np.float32(RGB_TO_LMS), np.float32(LOG_LMS_TO_LAB) / np.float32(np.log(10))


def estimate_colours(pixels) -> Colours | None:
    """Measure the stained pixels of white-balanced uint8 [..., 3]; None of too few, or of one."""
    import numpy as np

    sample = sample_pixels(pixels)
    density = optical_density(sample)
    stained = stained_pixels(density)
    if stained is None:
        return None
    to_lms, to_lab = _lab_matrices()
    lab = to_lab @ np.log(to_lms @ np.exp(-stained))
    found = Colours(lab.mean(1, dtype=np.float64), lab.std(1, dtype=np.float64))
    return found if found.spread[0] > MIN_SPREAD else None


def reference_colours(found: list) -> Colours | None:
    """The median colours of several images; None of none."""
    import numpy as np

    found = [colours for colours in found if colours]
    if not found:
        return None
    return Colours(np.median([colours.mean for colours in found], axis=0),
                   np.median([colours.spread for colours in found], axis=0))


def normalise_colours(image, colours: Colours | None, reference: Colours | None):
    """Give the tissue of uint8 [H, W, 3] the reference's mean and spread; unchanged without them.

    Reinhard's shift would tint unstained glass: between no density and OD_BETA it fades in.
    """
    import cv2
    import numpy as np

    if colours is None or reference is None:
        return image
    to_lms, to_lab = _lab_matrices()
    ratio = np.maximum(reference.spread, MIN_SPREAD) / np.maximum(colours.spread, MIN_SPREAD)
    ratio = np.clip(ratio, 1 / MAX_STRENGTH_RATIO, MAX_STRENGTH_RATIO)
    back = np.linalg.inv(to_lab)
    change = np.c_[back @ np.diag(ratio) @ to_lab, back @ (reference.mean - ratio * colours.mean)]
    light = cv2.LUT(image, (np.maximum(np.arange(256), 1) / 255).astype(np.float32))
    lms = cv2.exp(cv2.transform(cv2.log(cv2.transform(light, to_lms)), change.astype(np.float32)))
    moved = cv2.transform(lms, 255 * np.linalg.inv(to_lms))
    fade = cv2.transform(optical_density(image), np.full((1, 3), 1 / 3 / OD_BETA, np.float32))
    fade = cv2.merge([np.minimum(fade, 1)] * 3)
    return np.uint8(np.clip(image + fade * (moved - image) + 0.5, 0, 255))
