"""Make augmented siblings of a tile, as LC25000 made 5,000 images a class of 250.

Borkowski et al. 2019 (arXiv:1912.12142) turned every original by up to 25 degrees to the left or
right and flipped it at random along both axes, with Augmentor (Bloice et al. 2019, Bioinformatics
35:4522), which cuts the largest upright rectangle out of the turned image and enlarges it to the
old size. Here a sibling is also rescaled and saved as JPEG, as images are on their way through
collections: what finds near-duplicates must see through all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_TURN_DEG = 25.0  # Borkowski et al. 2019
FLIP_SHARE = 0.5  # Borkowski et al. 2019
SCALE = (0.75, 1.25)  # side of a sibling over the original's; ours
JPEG_QUALITY = (70, 95)  # ours: what collections use; LC25000's own files are 75


@dataclass(frozen=True)
class Change:
    """How a sibling differs from its original."""

    turn_deg: float
    flip_x: bool
    flip_y: bool
    scale: float
    jpeg_quality: int


def draw_change(rng) -> Change:
    return Change(round(rng.uniform(-MAX_TURN_DEG, MAX_TURN_DEG), 3),
                  bool(rng.random() < FLIP_SHARE), bool(rng.random() < FLIP_SHARE),
                  round(rng.uniform(*SCALE), 3),
                  int(rng.integers(JPEG_QUALITY[0], JPEG_QUALITY[1] + 1)))


def make_sibling(image: np.ndarray, change: Change) -> bytes:
    """Turn, cut, rescale and flip uint8 [S, S, 3] RGB; returns a JPEG file."""
    import cv2

    size = image.shape[0]
    angle = np.radians(change.turn_deg)
    inner = size / (abs(np.cos(angle)) + abs(np.sin(angle)))  # side of the largest upright square
    side = max(16, round(size * change.scale))
    shrink = inner / side  # px of the original in one of the sibling
    if shrink > 1:  # no aliasing where it is made smaller
        image = cv2.GaussianBlur(image, (0, 0), 0.5 * np.sqrt(shrink ** 2 - 1) + 1e-3)
    c, s, middle = np.cos(angle) * shrink, np.sin(angle) * shrink, (size - 1) / 2
    half = (side - 1) / 2
    back = np.array([[c, -s, middle - c * half + s * half], [s, c, middle - s * half - c * half]])
    turned = cv2.warpAffine(image, back, (side, side), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
                            borderMode=cv2.BORDER_REFLECT_101)
    turned = turned[::-1 if change.flip_y else 1, ::-1 if change.flip_x else 1]
    return cv2.imencode(".jpg", np.ascontiguousarray(turned[..., ::-1]),
                        [cv2.IMWRITE_JPEG_QUALITY, change.jpeg_quality])[1].tobytes()
