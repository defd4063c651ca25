"""Make the colours of tissue images comparable: background light, tissue, stain, grey contrast.

An image is white-balanced on its own background first. Then one of METHODS measures its stain,
makes a reference of many (training) images, and brings images to that reference:

- macenko: Macenko et al. 2009, "A method for normalizing histology slides for quantitative
  analysis" (ISBI): the two stains' colours and strengths;
- reinhard: Reinhard et al. 2001, "Color transfer between images" (IEEE Computer Graphics and
  Applications 21(5)): mean and spread of the tissue's colours;
- none.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lungkit.histology.background import percentiles
from lungkit.histology.density import (
    OD_BETA,
    OURS,
    Convention,
    optical_density,
    sample_pixels,
    stained_pixels,
)
from lungkit.histology.reinhard import estimate_colours, normalise_colours, reference_colours

ANGLE_PERCENTILE = 1        # robust extremes of the stain angle; Macenko 2009
STRENGTH_PERCENTILE = 99    # robust maximum of a stain's concentration; Macenko 2009
MIN_STAIN_ANGLE_DEG = 12    # ours: closer ones are one stain and noise; Ruifrok's are 37 apart
MIXTURE_PIXELS = 1000       # ours: kept of an image whose stains cannot be told apart, 6 kB


# ------------------------------------------------------------------ Macenko


@dataclass(frozen=True)
class Stains:
    """Optical densities [3, 2] of haematoxylin and eosin (unit columns), robust maxima [2]."""

    matrix: object
    strength: object


@dataclass(frozen=True)
class Mixture:
    """An image stained in one colour, or two too close to part: some of its densities [3, N]."""

    densities: object


def _strength(density, matrix):
    """Robust maxima [2] of the two stains' concentrations in densities [3, N]."""
    import numpy as np

    amounts = _inverse(matrix).astype(np.float32) @ density
    place = STRENGTH_PERCENTILE / 100 * (amounts.shape[1] - 1)
    low = min(int(place), amounts.shape[1] - 2)
    amounts.partition(low)  # as percentiles, and twice as fast for one
    share = place - low
    return (1 - share) * amounts[:, low] + share * amounts[:, low + 1:].min(1)


def _inverse(matrix):
    """Pseudo-inverse [2, 3] of two columns [3, 2] that are not parallel."""
    import numpy as np

    return np.linalg.solve(matrix.T @ matrix, matrix.T)  # eight times as fast as pinv


def estimate_stains(density, convention: Convention = OURS) -> Stains | None:
    """Estimate stains from optical densities [N, 3]; None where it cannot be done.

    Macenko et al. 2009: the plane of the two largest principal components through the origin,
    and in it the robust extremes of the angle.
    """
    import numpy as np

    stained = stained_pixels(density, convention)
    if stained is None:
        return None
    centred = stained - stained.mean(1, keepdims=True)
    _, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    plane = vectors[:, [2, 1]] * np.where(vectors[0, [2, 1]] < 0, -1, 1)
    across, along = plane.T.astype(np.float32)[::-1] @ stained
    ends = percentiles(np.arctan2(across, along), ANGLE_PERCENTILE, 100 - ANGLE_PERCENTILE)
    if not MIN_STAIN_ANGLE_DEG < np.degrees(ends[1] - ends[0]) < 90:
        return None
    pair = plane @ np.stack([np.cos(ends), np.sin(ends)])
    if (pair < -0.1).any():
        return None  # a stain does not emit light
    pair = np.maximum(pair[:, np.argsort(-pair[0])], 0)  # haematoxylin absorbs more red than eosin
    pair /= np.linalg.norm(pair, axis=0)
    strength = _strength(density.T if convention.of_all else stained, pair)
    return Stains(pair, strength) if (strength > OD_BETA).all() else None


def estimate_macenko(pixels) -> Stains | Mixture | None:
    """Measure the stains of white-balanced uint8 [..., 3]; None where too little is stained."""
    import numpy as np

    density = optical_density(sample_pixels(pixels))
    found = estimate_stains(density)
    stained = None if found else stained_pixels(density)
    if stained is None:
        return found
    return Mixture(stained[:, ::max(1, stained.shape[1] // MIXTURE_PIXELS)].astype(np.float16))


def reference_stains(found: list) -> Stains | None:
    """The median stains of the images where two were found; None of none.

    The median, not one estimate from pooled pixels: pooled extremes are red cells and ink.
    """
    import numpy as np

    found = [stains for stains in found if isinstance(stains, Stains)]
    if not found:
        return None
    matrix = np.median([stains.matrix for stains in found], axis=0)
    return Stains(matrix / np.linalg.norm(matrix, axis=0),
                  np.median([stains.strength for stains in found], axis=0))


def normalise_stains(image, stains: Stains | Mixture | None, reference: Stains | None,
                     convention: Convention = OURS):
    """Give uint8 [H, W, 3] the reference's stain colours and strengths.

    A mixture is taken apart by the reference's own stains, so that it moves into their plane (a
    tile of pure blue becomes as violet as the others) and keeps its ratio of blue to pink, but
    for the strengths. Unchanged where nothing was measured.
    """
    import cv2
    import numpy as np

    if stains is None or reference is None:
        return image
    if isinstance(stains, Mixture):
        stains = Stains(reference.matrix, np.maximum(
            _strength(stains.densities.astype(np.float32), reference.matrix), OD_BETA))
    ratio = reference.strength / stains.strength
    ratio = np.clip(ratio, 1 / convention.max_ratio, convention.max_ratio)
    change = reference.matrix @ np.diag(ratio) @ _inverse(stains.matrix)  # of densities
    density = cv2.transform(optical_density(image, convention), -change.astype(np.float32))
    return cv2.convertScaleAbs(cv2.exp(density), alpha=convention.light)


# ------------------------------------------------------------------ methods

@dataclass(frozen=True)
class Method:
    """One way to normalise. What it measures is picklable: it comes from other processes.

    estimate: white-balanced uint8 [..., 3] -> what was measured; None where it cannot be.
    reference: list of that, None among them -> the reference; None of none.
    normalise: uint8 [H, W, 3], measured, reference -> uint8 [H, W, 3]; without them unchanged.
    """

    estimate: Callable
    reference: Callable
    normalise: Callable


METHODS = {
    "macenko": Method(estimate_macenko, reference_stains, normalise_stains),
    "reinhard": Method(estimate_colours, reference_colours, normalise_colours),
    "none": Method(lambda pixels: None, lambda found: None, lambda image, own, reference: image),
}


def shortfall(measured, reference) -> str | None:
    """Why an image is not normalised in full, to count; None if it is."""
    if measured is None or reference is None:
        return "too little stained tissue to measure: white-balanced only"
    if isinstance(measured, Mixture):
        return "the stains cannot be told apart: taken apart by the reference's"
    return None


def describe(reference) -> dict | None:
    """The reference as numbers for a manifest."""
    return reference and {name: value.round(4).tolist() for name, value in vars(reference).items()}
