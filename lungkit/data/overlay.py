"""A sheet of images with outlines: what was to be found, and what was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lungkit.data.png import three_channels

TRUE, FOUND = (0, 220, 0), (255, 60, 60)  # green, and red, which lies above it
SIDE_PX, COLUMNS, GAP_PX = 192, 4, 4


@dataclass(frozen=True)
class Shown:
    """image: uint8 [S, S, 3 or 1]; true, found: bool [S, S]; words: beneath it."""

    image: np.ndarray
    true: np.ndarray
    found: np.ndarray
    words: str


def spread(places: Sequence[int], most: int) -> list[int]:
    """Up to `most` of `places`, evenly over all."""
    chosen = np.linspace(0, len(places) - 1, min(most, len(places))).round().astype(int)
    return [places[i] for i in chosen]


def sheet(shown: Sequence[Shown]) -> np.ndarray:
    """uint8 [H, W, 3], COLUMNS beside one another; none of `shown` is left out."""
    import cv2

    band = 16
    rows = -(-len(shown) // COLUMNS)
    canvas = np.full((rows * (SIDE_PX + band + GAP_PX), COLUMNS * (SIDE_PX + GAP_PX), 3), 255,
                     np.uint8)
    for number, each in enumerate(shown):
        row, column = divmod(number, COLUMNS)
        top, left = row * (SIDE_PX + band + GAP_PX), column * (SIDE_PX + GAP_PX)
        large = cv2.resize(three_channels(each.image), (SIDE_PX, SIDE_PX),
                           interpolation=cv2.INTER_NEAREST)
        for mask, colour in ((each.true, TRUE), (each.found, FOUND)):
            enlarged = cv2.resize(mask.astype(np.uint8), (SIDE_PX, SIDE_PX),
                                  interpolation=cv2.INTER_NEAREST)
            outlines, _ = cv2.findContours(enlarged, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(large, outlines, -1, colour, 1)
        canvas[top:top + SIDE_PX, left:left + SIDE_PX] = large
        cv2.putText(canvas, each.words, (left + 2, top + SIDE_PX + 12), cv2.FONT_HERSHEY_SIMPLEX,
                    0.36, (0, 0, 0), 1, cv2.LINE_AA)
    return canvas
