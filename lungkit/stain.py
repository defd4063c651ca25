"""Make the colours of tissue images comparable: background light, tissue, stain, grey contrast.

Stain normalisation is Macenko et al. 2009, "A method for normalizing histology slides for
quantitative analysis" (ISBI), after a white balance on the image's own background.
"""

from __future__ import annotations

from dataclasses import dataclass

# Background of transmitted light: bright, and green not the weakest channel, because
# haematoxylin and eosin both absorb green most. Ours, chosen by eye on LC25000.
LIGHT_MEAN, LIGHT_MIN, LIGHT_RANGE, LIGHT_GREEN_LACK = 203, 165, 85, 16
LIGHT_MIN_SHARE = 0.01  # less background than this is not measured: white is taken as 255
# Tissue: Otsu's thresholds are kept within these ranges, because a tile that is all tissue, or
# all air, has no two modes to part. Ours, chosen by eye on LC25000.
TISSUE_DENSITY, TISSUE_COLOUR = (0.10, 0.20), (0.06, 0.14)

OD_BETA = 0.15              # optical density (natural log) of background; Macenko 2009
ANGLE_PERCENTILE = 1        # robust extremes of the stain angle; Macenko 2009
STRENGTH_PERCENTILE = 99    # robust maximum of a stain's concentration; Macenko 2009
MIN_STAINED = 0.02          # ours: share of stained pixels below which stains are not estimated
MIN_STAIN_ANGLE_DEG = 12    # ours: closer ones are one stain and noise; Ruifrok's are 37 apart
MAX_STRENGTH_RATIO = 1.6    # ours: stronger amplification turns pale eosin into ink


def otsu(values) -> float:
    """Otsu's threshold (1979) of float values in 0..1."""
    import cv2
    import numpy as np

    return cv2.threshold((np.clip(values, 0, 1) * 255).astype(np.uint8), 0, 255,
                         cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0] / 255


def background_light(image):
    """Colour of unstained background in uint8 [H, W, 3], float64 [3]; 255 where there is none."""
    import cv2
    import numpy as np

    pixels = cv2.GaussianBlur(image, (0, 0), 1.5).reshape(-1, 3)[::3].astype(np.int16)
    low, high = pixels.min(1), pixels.max(1)
    lack = np.minimum(pixels[:, 0], pixels[:, 2]) - pixels[:, 1]
    background = pixels[(pixels.sum(1) > 3 * LIGHT_MEAN) & (low > LIGHT_MIN)
                        & (high - low < LIGHT_RANGE) & (lack < LIGHT_GREEN_LACK)]
    if len(background) < LIGHT_MIN_SHARE * len(pixels):
        return np.full(3, 255.0)
    light = background.mean(1)
    return np.median(background[light >= np.percentile(light, 70)], axis=0).astype(np.float64)


def balance_white(image, light):
    """Divide uint8 [H, W, 3] by the background light."""
    import cv2
    import numpy as np

    table = np.clip(np.arange(256)[:, None] * (255 / light) + 0.5, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table[:, None, :])


def tissue_mask(image):
    """Mark tissue: bool [H, W] of uint8 [H, W, 3] RGB on white, or of [H, W] bright on dark."""
    import cv2
    import numpy as np

    smooth = cv2.GaussianBlur(image, (0, 0), max(0.8, min(image.shape[:2]) / 150))
    if image.ndim == 2:
        mask = smooth > max(otsu(smooth / 255) * 255, 1)
    else:
        parts = cv2.split(smooth)
        grey = sum(part.astype(np.float32) for part in parts) / 3
        density = -np.log(np.maximum(grey, 1) / 255)
        low, high = cv2.min(cv2.min(*parts[:2]), parts[2]), cv2.max(cv2.max(*parts[:2]), parts[2])
        colour = (high - low).astype(np.float32) / 255
        mask = ((density > np.clip(otsu(density), *TISSUE_DENSITY))
                | (colour > np.clip(otsu(colour), *TISSUE_COLOUR)))
    speck = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, speck) > 0


def enhance_grey(values):
    """Denoise a grey image [H, W] of uint8, uint16 or float32 and stretch its contrast to uint8.

    Returns the image and whether its background is bright. A dark one (fluorescence) is evened
    out by subtracting a wide opening, in the spirit of Sternberg's rolling ball (1983).
    """
    import cv2
    import numpy as np

    smooth = cv2.medianBlur(values, 3).astype(np.float32)
    low, high = np.percentile(smooth[::2, ::2], [0.5, 99.8])
    bright = bool(np.median(smooth) > (low + high) / 2)
    if not bright:
        side = 96
        small = cv2.resize(smooth, (side, side), interpolation=cv2.INTER_AREA)
        ball = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side // 3, side // 3))
        ground = cv2.GaussianBlur(cv2.morphologyEx(small, cv2.MORPH_OPEN, ball), (0, 0), side / 12)
        smooth -= cv2.resize(ground, smooth.shape[::-1], interpolation=cv2.INTER_LINEAR)
        low, high = np.percentile(smooth[::2, ::2], [0.5, 99.8])
    if high <= low:
        return np.full(values.shape, 255 * bright, np.uint8), bright
    return (np.clip((smooth - low) / (high - low), 0, 1) * 255 + 0.5).astype(np.uint8), bright


@dataclass(frozen=True)
class Stains:
    """Optical densities [3, 2] of haematoxylin and eosin (unit columns), robust maxima [2]."""

    matrix: object
    strength: object


def optical_density(pixels):
    """uint8 [..., 3] -> float32 [..., 3], natural logarithm (Beer-Lambert)."""
    import numpy as np

    return (-np.log(np.maximum(np.arange(256), 1) / 255)).astype(np.float32)[pixels]


def estimate_stains(density) -> Stains | None:
    """Estimate stains from optical densities [N, 3]; None where it cannot be done.

    Macenko et al. 2009: the plane of the two largest principal components through the origin,
    and in it the robust extremes of the angle.
    """
    import numpy as np

    # the mean: pure eosin leaves red light alone, so asking it of every channel loses eosin
    stained = density[density.mean(1) > OD_BETA].astype(np.float64)
    if len(stained) < max(100, MIN_STAINED * len(density)):
        return None
    _, vectors = np.linalg.eigh(np.cov(stained.T))
    plane = vectors[:, [2, 1]] * np.where(vectors[0, [2, 1]] < 0, -1, 1)
    angle = np.arctan2(stained @ plane[:, 1], stained @ plane[:, 0])
    ends = np.percentile(angle, [ANGLE_PERCENTILE, 100 - ANGLE_PERCENTILE])
    if not MIN_STAIN_ANGLE_DEG < np.degrees(ends[1] - ends[0]) < 90:
        return None
    pair = plane @ np.stack([np.cos(ends), np.sin(ends)])
    if (pair < -0.1).any():
        return None  # a stain does not emit light
    pair = np.maximum(pair[:, np.argsort(-pair[0])], 0)  # haematoxylin absorbs more red than eosin
    pair /= np.linalg.norm(pair, axis=0)
    strength = np.percentile(stained @ np.linalg.pinv(pair).T, STRENGTH_PERCENTILE, axis=0)
    return Stains(pair, strength) if (strength > OD_BETA).all() else None


def reference_stains(found: list[Stains]) -> Stains | None:
    """The median stains of several images; None of none.

    The median, not one estimate from pooled pixels: pooled extremes are red cells and ink.
    """
    import numpy as np

    if not found:
        return None
    matrix = np.median([stains.matrix for stains in found], axis=0)
    return Stains(matrix / np.linalg.norm(matrix, axis=0),
                  np.median([stains.strength for stains in found], axis=0))


def normalise_stains(image, stains: Stains, reference: Stains):
    """Give uint8 [H, W, 3] the reference's stain colours and strengths."""
    import cv2
    import numpy as np

    ratio = reference.strength / stains.strength
    ratio = np.clip(ratio, 1 / MAX_STRENGTH_RATIO, MAX_STRENGTH_RATIO)
    change = reference.matrix @ np.diag(ratio) @ np.linalg.pinv(stains.matrix)  # of densities
    density = cv2.transform(optical_density(image), change.astype(np.float32))
    return np.clip(255 * cv2.exp(-density) + 0.5, 0, 255).astype(np.uint8)
