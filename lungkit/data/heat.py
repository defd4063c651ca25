"""Sheets of images with maps upon them: each image, its maps beside it, what was outlined in green.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lungkit.data.png import three_channels

SIDE_PX, BAND_PX, GAP_PX, COLUMNS = 176, 18, 6, 2
OUTLINE = (0, 220, 0)
OPACITY = 0.75        # of a map's highest places; where it is 0 the image is seen as it is


@dataclass(frozen=True)
class Seen:
    """image: uint8 [S, S, 3 or 1]; maps: float [S, S], 0 to 1 each; mask: bool [S, S] or None;
    words: beneath.
    """

    image: np.ndarray
    maps: Sequence[np.ndarray]
    mask: np.ndarray | None
    words: str


def over(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """uint8 [S, S, 3]: a map float [S, S] from 0 to 1 upon a grey copy of uint8 [S, S, 3]."""
    import cv2

    colours = cv2.applyColorMap(np.rint(255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)
    grey = image.mean(-1, keepdims=True).repeat(3, -1)
    opacity = OPACITY * heat[..., None]
    return np.rint((1 - opacity) * grey + opacity * colours[..., ::-1]).astype(np.uint8)


def sheet(seen: Sequence[Seen]) -> np.ndarray:
    """uint8 [H, W, 3], COLUMNS beside one another, each its image and its maps side by side."""
    import cv2

    panels = 1 + max(len(each.maps) for each in seen)
    width = panels * (SIDE_PX + 2) + 3 * GAP_PX
    height = SIDE_PX + BAND_PX + GAP_PX
    canvas = np.full((-(-len(seen) // COLUMNS) * height, COLUMNS * width, 3), 255, np.uint8)
    for number, each in enumerate(seen):
        row, column = divmod(number, COLUMNS)
        top, left = row * height, column * width
        large = cv2.resize(three_channels(each.image), (SIDE_PX,) * 2,
                           interpolation=cv2.INTER_NEAREST)
        for place, heat in enumerate((None, *each.maps)):
            panel = large.copy() if heat is None else over(large, cv2.resize(
                np.asarray(heat, np.float32), (SIDE_PX,) * 2, interpolation=cv2.INTER_LINEAR))
            if each.mask is not None:
                mask = cv2.resize(each.mask.astype(np.uint8), (SIDE_PX,) * 2,
                                  interpolation=cv2.INTER_NEAREST)
                outlines, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
                cv2.drawContours(panel, outlines, -1, OUTLINE, 1)
            at = left + place * (SIDE_PX + 2)
            canvas[top:top + SIDE_PX, at:at + SIDE_PX] = panel
        cv2.putText(canvas, each.words, (left + 2, top + SIDE_PX + 13), cv2.FONT_HERSHEY_SIMPLEX,
                    0.38, (0, 0, 0), 1, cv2.LINE_AA)
    return canvas
