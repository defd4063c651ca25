"""A small signature of one image, by which its copies are found: corners and a thumbnail.

SIFT: Lowe 2004, IJCV 60:91; square roots of it: Arandjelovic & Zisserman 2012.

Feeds tumor_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WORK_PX = 160           # ours: root of the area looked at; 112 is faster and finds fewer features
NUM_FEATURES = 96       # ours: the strongest; of 64 the index found 0.91 of true pairs, of 96 0.96
THUMB_PX = 48           # ours: a nucleus of an LC25000 tile is 2-3 px wide, and still correlates
CONTRAST = 0.02         # ours: half of OpenCV's default, so that pale tissue has features too
SPREAD = 50.0           # grey levels: standard deviation that every image is brought to
LEAST_SPREAD = 8.0      # grey levels: flatter images are not stretched up to show their noise
ROOT_STEP = 0.35 / 15   # of a square root of a normalised descriptor's bin, 4 bits of it kept
# OpenCV's descriptor is [row 4][column 4][direction 8] in the frame of its main direction: in a
# mirrored image rows are reversed and directions negated
MIRROR = np.arange(128).reshape(4, 4, 8)[::-1, :, -np.arange(8) % 8].ravel()


@dataclass(frozen=True, eq=False)
class Signature:
    """What of an image finds its copies: under 10 kB, and pickles."""

    codes: np.ndarray   # uint8 [K, 64]: square roots of SIFT descriptors, 4 bits a bin
    places: np.ndarray  # float16 [K, 4]: x, y, diameter (px of the working size), degrees
    thumb: np.ndarray   # uint8 [THUMB_PX, THUMB_PX], grey
    size: tuple[int, int]  # width, height (px) of the working size


def at_work(image: np.ndarray) -> np.ndarray:
    """The grey of uint8 [H, W, 3] RGB or [H, W], of any size, at the working size: uint8 [h, w]."""
    import cv2

    grey = image if image.ndim == 2 else cv2.cvtColor(
        np.ascontiguousarray(image[..., :3]), cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    scale = WORK_PX / np.sqrt(height * width)
    size = tuple(int(np.clip(round(side * scale), 16, 8 * WORK_PX)) for side in (width, height))
    return cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def describe(image: np.ndarray) -> Signature:
    """Signature of uint8 [H, W, 3] RGB or [H, W], of any size."""
    import cv2

    grey = at_work(image)
    thumb = cv2.resize(grey, (THUMB_PX, THUMB_PX), interpolation=cv2.INTER_AREA)
    even = grey.astype(np.float32)
    even = 128 + SPREAD / max(float(even.std()), LEAST_SPREAD) * (even - even.mean())
    even = np.uint8(np.clip(np.round(even), 0, 255))
    sift = cv2.SIFT_create(contrastThreshold=CONTRAST)
    points = sorted(sift.detect(even, None), key=lambda p: (-p.response, p.pt, p.angle))
    points, values = sift.compute(even, points[:NUM_FEATURES])
    if not points:
        values = np.zeros((0, 128), np.float32)
    root = np.sqrt(values / np.maximum(values.sum(1, keepdims=True), 1e-6))
    levels = np.uint8(np.clip(np.round(root / ROOT_STEP), 0, 15))
    places = np.array([(*p.pt, p.size, p.angle) for p in points], np.float16).reshape(-1, 4)
    return Signature(levels[:, ::2] << 4 | levels[:, 1::2], places, thumb, grey.shape[::-1])


def unpack(codes: np.ndarray) -> np.ndarray:
    """Descriptors float32 [K, 128], in levels 0-15, of uint8 [K, 64]."""
    levels = np.empty((len(codes), 128), np.float32)
    levels[:, ::2], levels[:, 1::2] = codes >> 4, codes & 15
    return levels
