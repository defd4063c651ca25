"""Optical density (natural log) of colour, and the pixels of an image that are stained.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

OD_BETA = 0.15              # optical density (natural log) of background; Macenko 2009
STAIN_PIXELS = 10_000       # ours: pixels of an image its stain is measured on
MIN_STAINED = 0.02          # ours: share of stained pixels below which stain is not measured
MIN_STAINED_PIXELS = 100    # ours: a percentile of fewer is one pixel's
MAX_STRENGTH_RATIO = 1.6    # ours: stronger amplification turns pale eosin into ink


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


def optical_density(pixels, convention: Convention = OURS):
    """uint8 [..., 3] -> float32 [..., 3], natural logarithm (Beer-Lambert)."""
    import cv2
    import numpy as np

    level = np.arange(256, dtype=np.float64)
    level = np.maximum(level, 1) if convention.offset is None else level + convention.offset
    table = -np.log(level / convention.light).astype(np.float32)
    return cv2.LUT(pixels, table) if pixels.ndim == 3 else table.take(pixels)


def sample_pixels(pixels):
    """About STAIN_PIXELS evenly spaced ones of uint8 [..., 3]: [N, 3]."""
    flat = pixels.reshape(-1, 3)
    return flat[::max(1, len(flat) // STAIN_PIXELS)]


def stained_pixels(density, convention: Convention = OURS):
    """Those of densities [N, 3] that are not background, as [3, M]; None if they are too few."""
    import numpy as np

    planes = np.ascontiguousarray(density.T)  # whole channels: short rows make numpy slow
    darkness = (planes.min(0) if convention.every_channel
                else (planes[0] + planes[1] + planes[2]) / 3)
    stained = planes.take(np.flatnonzero(darkness > OD_BETA), axis=1)
    enough = max(MIN_STAINED_PIXELS, MIN_STAINED * len(density))
    return stained if stained.shape[1] >= enough else None
