"""Make the colours of tissue images comparable: background light, tissue, stain, grey contrast.

An image is white-balanced on its own background first. Then one of METHODS measures its stain,
makes a reference of many (training) images, and brings images to that reference:

- macenko: Macenko et al. 2009, "A method for normalizing histology slides for quantitative
  analysis" (ISBI): the two stains' colours and strengths;
- reinhard: Reinhard et al. 2001, "Color transfer between images" (IEEE Computer Graphics and
  Applications 21(5)): mean and spread of the tissue's colours;
- none.
"""

from __future__ import annotations

from collections.abc import Callable
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
STAIN_PIXELS = 10_000       # ours: pixels of an image its stain is measured on
MIN_STAINED = 0.02          # ours: share of stained pixels below which stain is not measured
MIN_STAINED_PIXELS = 100    # ours: a percentile of fewer is one pixel's
MIN_STAIN_ANGLE_DEG = 12    # ours: closer ones are one stain and noise; Ruifrok's are 37 apart
MAX_STRENGTH_RATIO = 1.6    # ours: stronger amplification turns pale eosin into ink
MIXTURE_PIXELS = 1000       # ours: kept of an image whose stains cannot be told apart, 6 kB

# Reinhard 2001, equations 4 and 6: RGB to cone responses, and their logarithms to l, alpha, beta
RGB_TO_LMS = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
LOG_LMS_TO_LAB = ((3 ** -0.5,) * 3, (6 ** -0.5, 6 ** -0.5, -2 * 6 ** -0.5),
                  (2 ** -0.5, -(2 ** -0.5), 0.0))
MIN_SPREAD = 0.002          # ours: deviation (log10) of half a grey level, what rounding makes


def otsu(values) -> float:
    """Otsu's threshold (1979) of uint8 values, 0..255."""
    import cv2

    return cv2.threshold(values, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0]


def background_light(image):
    """Colour of unstained background in uint8 [H, W, 3], float64 [3]; 255 where there is none."""
    import cv2
    import numpy as np

    # at half size noise is averaged and the blur is quick: five times faster than at full size
    half = tuple(max(1, side // 2) for side in image.shape[1::-1])
    small = cv2.resize(image, half, interpolation=cv2.INTER_AREA)
    pixels = cv2.GaussianBlur(small, (0, 0), 0.7).reshape(-1, 3)
    red, green, blue = np.ascontiguousarray(pixels.T)
    low, high = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    light = red.astype(np.uint16) + green + blue
    lack = cv2.subtract(np.minimum(red, blue), green).ravel()  # 0 where green is not the weakest
    found = np.flatnonzero((light > 3 * LIGHT_MEAN) & (low > LIGHT_MIN)
                           & (high - low < LIGHT_RANGE) & (lack < LIGHT_GREEN_LACK))
    if len(found) < LIGHT_MIN_SHARE * len(pixels):
        return np.full(3, 255.0)
    light = light[found]
    brightest = found[light >= _percentiles(light, 70)]
    return np.median(pixels[brightest], axis=0).astype(np.float64)


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
        mask = smooth > max(otsu(smooth), 1)
    else:
        red, green, blue = cv2.split(smooth)
        total = cv2.add(cv2.add(red, green, dtype=cv2.CV_16U), blue, dtype=cv2.CV_16U)
        density = -np.log(np.maximum(np.arange(766) / 3, 1) / 255)  # of each total; it falls
        level = (np.clip(density, 0, 1) * 255).astype(np.uint8).take(total)
        darkest = np.count_nonzero(density > np.clip(otsu(level) / 255, *TISSUE_DENSITY))
        colour = cv2.max(cv2.max(red, green), blue) - cv2.min(cv2.min(red, green), blue)
        mask = ((total < darkest)
                | (colour > 255 * np.clip(otsu(colour) / 255, *TISSUE_COLOUR)))
    speck = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    return cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, speck) > 0


def enhance_grey(values):
    """Denoise a grey image [H, W] of uint8, uint16 or float32 and stretch its contrast to uint8.

    Returns the image and whether its background is bright. Pixels beyond all of their neighbours
    come back to these (conservative smoothing: hot pixels go, and the gaps between nuclei stay,
    which a median fills). A dark background (fluorescence) is evened out by subtracting a wide
    opening, in the spirit of Sternberg's rolling ball (1983).
    """
    import cv2
    import numpy as np

    around = np.uint8([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    smooth = np.clip(values, cv2.erode(values, around), cv2.dilate(values, around))
    smooth = smooth.astype(np.float32)
    low, high = np.percentile(smooth[::2, ::2], [0.5, 99.8])
    bright = bool(np.median(smooth) > (low + high) / 2)
    if not bright:
        side = 96
        small = cv2.resize(smooth, (side, side), interpolation=cv2.INTER_AREA)
        ball = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side // 3, side // 3))
        ground = cv2.GaussianBlur(cv2.morphologyEx(small, cv2.MORPH_OPEN, ball), (0, 0), side / 12)
        smooth -= cv2.resize(ground, smooth.shape[::-1], interpolation=cv2.INTER_LINEAR)
        low, high = np.percentile(smooth[::2, ::2], [0.5, 99.8])
    if high <= low:  # even: white stays white
        top = np.iinfo(values.dtype).max if values.dtype.kind == "u" else max(float(high), 1.0)
        bright = float(np.median(values)) > top / 2
        return np.full(values.shape, 255 * bright, np.uint8), bright
    return (np.clip((smooth - low) / (high - low), 0, 1) * 255 + 0.5).astype(np.uint8), bright


# ------------------------------------------------------------------ Macenko

@dataclass(frozen=True)
class Convention:
    """The choices Macenko's text leaves open. The defaults are ours.

    light: grey level of no stain. Ours 255: the image is white-balanced before.
    offset: added to grey levels, so that 0 has a logarithm. None: levels under 1 are taken as 1.
    every_channel: stained pixels are denser than OD_BETA in every channel, not on the mean of the
        channels. Pure eosin leaves red light alone: of LC25000's stained pixels every_channel
        keeps 31 %, eosin least, and the stains of 9 % of its tiles lie too close to be told
        apart, against 2 %.
    of_all: a stain's strength is a percentile of all pixels, not of the stained ones. Then it
        measures air as well: LC25000's benign tiles read 22 % weaker, its squamous ones 1 %.
    max_ratio: a stain is made at most so many times stronger or weaker. Without it eosin would
        be amplified up to 4.3 times, and in 27 % of LC25000's tiles beyond 1.6.
    """

    light: float = 255
    offset: float | None = None
    every_channel: bool = False
    of_all: bool = False
    max_ratio: float = MAX_STRENGTH_RATIO


OURS = Convention()
# of the implementations in wide use (staining-normalization, HEnorm_python, torchstain)
TEXTBOOK = Convention(light=240, offset=1, every_channel=True, of_all=True, max_ratio=float("inf"))


@dataclass(frozen=True)
class Stains:
    """Optical densities [3, 2] of haematoxylin and eosin (unit columns), robust maxima [2]."""

    matrix: object
    strength: object


@dataclass(frozen=True)
class Mixture:
    """An image stained in one colour, or two too close to part: some of its densities [3, N]."""

    densities: object


def optical_density(pixels, convention: Convention = OURS):
    """uint8 [..., 3] -> float32 [..., 3], natural logarithm (Beer-Lambert)."""
    import cv2
    import numpy as np

    level = np.arange(256, dtype=np.float64)
    level = np.maximum(level, 1) if convention.offset is None else level + convention.offset
    table = -np.log(level / convention.light).astype(np.float32)
    return cv2.LUT(pixels, table) if pixels.ndim == 3 else table.take(pixels)


def _sample(pixels):
    """About STAIN_PIXELS evenly spaced ones of uint8 [..., 3]: [N, 3]."""
    flat = pixels.reshape(-1, 3)
    return flat[::max(1, len(flat) // STAIN_PIXELS)]


def _stained(density, convention: Convention = OURS):
    """Those of densities [N, 3] that are not background, as [3, M]; None if they are too few."""
    import numpy as np

    planes = np.ascontiguousarray(density.T)  # whole channels: short rows make numpy slow
    darkness = (planes.min(0) if convention.every_channel
                else (planes[0] + planes[1] + planes[2]) / 3)
    stained = planes.take(np.flatnonzero(darkness > OD_BETA), axis=1)
    enough = max(MIN_STAINED_PIXELS, MIN_STAINED * len(density))
    return stained if stained.shape[1] >= enough else None


def _percentiles(values, *percents: float):
    """numpy's percentiles along the last axis, as a new last one; four times as fast by a sort."""
    import numpy as np

    values = np.sort(values)
    at = np.array(percents) / 100 * (values.shape[-1] - 1)
    low = at.astype(int)
    high = np.minimum(low + 1, values.shape[-1] - 1)
    share = at - low
    return (1 - share) * values[..., low] + share * values[..., high]


def _strength(density, matrix):
    """Robust maxima [2] of the two stains' concentrations in densities [3, N]."""
    import numpy as np

    amounts = _inverse(matrix).astype(np.float32) @ density
    place = STRENGTH_PERCENTILE / 100 * (amounts.shape[1] - 1)
    low = min(int(place), amounts.shape[1] - 2)
    amounts.partition(low)  # as _percentiles, and twice as fast for one
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

    stained = _stained(density, convention)
    if stained is None:
        return None
    centred = stained - stained.mean(1, keepdims=True)
    _, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    plane = vectors[:, [2, 1]] * np.where(vectors[0, [2, 1]] < 0, -1, 1)
    across, along = plane.T.astype(np.float32)[::-1] @ stained
    ends = _percentiles(np.arctan2(across, along), ANGLE_PERCENTILE, 100 - ANGLE_PERCENTILE)
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

    density = optical_density(_sample(pixels))
    found = estimate_stains(density)
    stained = None if found else _stained(density)
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


# ------------------------------------------------------------------ Reinhard

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

    sample = _sample(pixels)
    density = optical_density(sample)
    stained = _stained(density)
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
