"""The light behind tissue, white balance on it, where tissue is, the contrast of grey images.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

# Background of transmitted light: bright, and green not the weakest channel, because
# haematoxylin and eosin both absorb green most. Ours, chosen by eye on LC25000.
LIGHT_MEAN, LIGHT_MIN, LIGHT_RANGE, LIGHT_GREEN_LACK = 203, 165, 85, 16
LIGHT_MIN_SHARE = 0.01  # less background than this is not measured: white is taken as 255
# Tissue: Otsu's thresholds are kept within these ranges, because a tile that is all tissue, or
# all air, has no two modes to part. Ours, chosen by eye on LC25000.
TISSUE_DENSITY, TISSUE_COLOUR = (0.10, 0.20), (0.06, 0.14)


def otsu(values) -> float:
    """Otsu's threshold (1979) of uint8 values, 0..255."""
    import cv2

    return cv2.threshold(values, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)[0]


def background_light(image):
    """Colour of unstained background in uint8 [H, W, 3], float64 [3]; 255 where there is none."""
    import numpy as np

    pixels, light, found = _ground(image)
    if len(found) < LIGHT_MIN_SHARE * len(pixels):
        return np.full(3, 255.0)
    light = light[found]
    brightest = found[light >= percentiles(light, 70)]
    return np.median(pixels[brightest], axis=0).astype(np.float64)


def has_bright_ground(image) -> bool:
    """Whether uint8 [H, W, 3] shows enough unstained background to measure its light."""
    pixels, _, found = _ground(image)
    return len(found) >= LIGHT_MIN_SHARE * len(pixels)


def _ground(image):
    """Pixels [N, 3] at half size, their sums of channels [N], which look like background [M]."""
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
    return pixels, light, found


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

    smooth = without_hot_pixels(values).astype(np.float32)
    low, high = ends(smooth)
    bright = bool(np.median(smooth) > (low + high) / 2)
    if not bright:
        side = 96
        small = cv2.resize(smooth, (side, side), interpolation=cv2.INTER_AREA)
        ball = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side // 3, side // 3))
        ground = cv2.GaussianBlur(cv2.morphologyEx(small, cv2.MORPH_OPEN, ball), (0, 0), side / 12)
        smooth -= cv2.resize(ground, smooth.shape[::-1], interpolation=cv2.INTER_LINEAR)
        low, high = ends(smooth)
    if high <= low:  # even: white stays white
        top = np.iinfo(values.dtype).max if values.dtype.kind == "u" else max(float(high), 1.0)
        bright = float(np.median(values)) > top / 2
        return np.full(values.shape, 255 * bright, np.uint8), bright
    return stretched(smooth, low, high), bright


def without_hot_pixels(values):
    """Bring pixels of [H, W] beyond all of their neighbours back to these."""
    import cv2
    import numpy as np

    around = np.uint8([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    return np.clip(values, cv2.erode(values, around), cv2.dilate(values, around))


def ends(values):
    """The values of [H, W] that become black and white."""
    import numpy as np

    return np.percentile(values[::2, ::2], [0.5, 99.8])


def stretched(values, low: float, high: float):
    """Stretch [H, W] from low to high over uint8."""
    import numpy as np

    return (np.clip((values - low) / (high - low), 0, 1) * 255 + 0.5).astype(np.uint8)


def percentiles(values, *percents: float):
    """numpy's percentiles along the last axis, as a new last one; four times as fast by a sort."""
    import numpy as np

    values = np.sort(values)
    at = np.array(percents) / 100 * (values.shape[-1] - 1)
    low = at.astype(int)
    high = np.minimum(low + 1, values.shape[-1] - 1)
    share = at - low
    return (1 - share) * values[..., low] + share * values[..., high]
