"""Structure maps: a layout of nuclei drawn as the image that ControlNet is conditioned on."""

from __future__ import annotations

import numpy as np

SUPERSAMPLING = 4  # ours: discs of 2-3 px radius need sub-pixel edges at 64 px
REACH = 0.15       # ours: distance shown as white, as a share of the side; air spaces reach it


def structure_map(centroids: np.ndarray, areas_px: np.ndarray, size: int) -> np.ndarray:
    """Draw a layout as uint8 [size, size, 3].

    centroids: float [N, 2] (x, y) px; areas_px: float [N]. Red: nuclei as discs of their area;
    green: borders of the Voronoi cells; blue: distance to the nearest nucleus, black to white
    over REACH of the side. No nuclei: black, black, white.
    """
    import cv2

    fine = size * SUPERSAMPLING
    nuclei = np.zeros((fine, fine), np.uint8)
    points = np.ones((fine, fine), np.uint8)
    shift = 4  # cv2 takes fixed-point coordinates with so many fractional bits
    for (x, y), area in zip(np.asarray(centroids, float).reshape(-1, 2), areas_px, strict=True):
        cx, cy = (x + 0.5) * SUPERSAMPLING, (y + 0.5) * SUPERSAMPLING
        radius = np.sqrt(max(area, 1.0) / np.pi) * SUPERSAMPLING
        cv2.circle(nuclei, (round(cx * 2**shift), round(cy * 2**shift)), round(radius * 2**shift),
                   255, -1, cv2.LINE_AA, shift)
        points[min(max(int(cy), 0), fine - 1), min(max(int(cx), 0), fine - 1)] = 0
    if len(centroids):
        distance, cells = cv2.distanceTransformWithLabels(
            points, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL)
        borders = np.zeros((fine, fine), np.uint8)
        borders[:, 1:] |= (cells[:, 1:] != cells[:, :-1]).astype(np.uint8)
        borders[1:] |= (cells[1:] != cells[:-1]).astype(np.uint8)
        borders = cv2.dilate(borders, np.ones((SUPERSAMPLING // 2,) * 2, np.uint8)) * 255
        far = np.clip(distance / (REACH * fine) * 255, 0, 255).astype(np.uint8)
    else:
        borders, far = np.zeros_like(nuclei), np.full_like(nuclei, 255)
    stacked = np.stack([nuclei, borders, far], -1)
    return cv2.resize(stacked, (size, size), interpolation=cv2.INTER_AREA)
