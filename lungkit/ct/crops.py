"""Square images of a fixed field in millimetres and a fixed window of HU, with their masks.

Never scaled by an image's own values: the same grey is the same HU in every image.

Feeds ct_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lungkit.ct.lung_mask import Lungs
from lungkit.ct.nodules import Nodule
from lungkit.data.mask_items import IGNORED
from lungkit.formats.volumes import Volume

OUTSIDE_HU = -1024.0
BONE_HU = 250.0         # ours: above enhanced blood, below cortical bone
VESSEL_HU = -300.0      # in the lung: vessel, airway wall, scar
LAYOUT = ("outside", "body", "lung", "bone", "vessel", "nodule")  # label values of masks/layout


@dataclass(frozen=True)
class Field:
    """What part of a slice an image shows: side in mm, in pixels, and its window in HU."""

    side_mm: float
    image_size: int
    window: tuple[float, float]

    @property
    def mm_per_px(self) -> float:
        return self.side_mm / self.image_size

    def to_pixels(self, rows_columns: np.ndarray, centre: tuple[float, float],
                  spacing_mm: tuple[float, float]) -> np.ndarray:
        """Pixel edges float [..., 2] in row, column of voxel coordinates; 0 is the image's edge."""
        return ((np.asarray(rows_columns) - centre) * spacing_mm / self.mm_per_px
                + self.image_size / 2)


def sample(plane: np.ndarray, field: Field, centre: tuple[float, float],
           spacing_mm: tuple[float, float], outside: float) -> np.ndarray:
    """float32 [S, S] of a plane [Y, X] around `centre` (row, column in voxels).

    A pixel is the mean of as many bilinear samples as it covers voxels: nothing is skipped.
    """
    import cv2

    fine = max(1, int(np.ceil(field.mm_per_px / min(spacing_mm) - 1e-6)))
    side = field.image_size * fine
    offset = ((np.arange(side) + 0.5) / fine - field.image_size / 2) * field.mm_per_px
    rows, columns = (np.float32(c + offset / mm) for c, mm in zip(centre, spacing_mm))
    # remap addresses with 5 bits of a pixel, so the grid is bilinear by hand: exact and separable
    found = along(along(plane.astype(np.float32), rows, outside).T, columns, outside).T
    return found if fine == 1 else cv2.resize(np.ascontiguousarray(found), (field.image_size,) * 2,
                                              interpolation=cv2.INTER_AREA)


def along(values: np.ndarray, at: np.ndarray, outside: float) -> np.ndarray:
    """Rows of [N, M] at fractional positions, bilinear; `outside` beyond half a row of the ends."""
    last = len(values) - 1
    low = np.clip(np.floor(at).astype(int), 0, last)
    high = np.minimum(low + 1, last)
    share = np.clip(at - low, 0, 1).astype(np.float32)[:, None]
    found = values[low] * (1 - share) + values[high] * share
    found[(at < -0.5) | (at > last + 0.5)] = outside
    return found


def to_grey(hu: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """uint8 of HU: window[0] and below is 0, window[1] and above 255."""
    low, high = window
    return np.rint(np.clip((hu - low) / (high - low), 0, 1) * 255).astype(np.uint8)


@dataclass(frozen=True)
class Picture:
    """One image with what lies in it."""

    grey: np.ndarray             # uint8 [S, S]
    masks: dict[str, np.ndarray] # nodule, lung, ignored: 0 and 255; layout: values of LAYOUT
    boxes: list[tuple]           # x0 y0 x1 y1 in pixels, of each nodule in it


def picture(volume: Volume, lungs: Lungs | None, index: int, centre: tuple[float, float],
            nodules: list[Nodule], field: Field, ignored: Sequence[Nodule] = ()) -> Picture:
    """The image of slice `index` around `centre` (row, column in voxels), with its masks.

    lungs None: no mask but the nodules', where there is one. ignored: findings that are neither
    nodules that count nor healthy; there is a mask of them where one shows.
    """
    spacing = volume.geometry.spacing_mm[1:]

    def shown(plane: np.ndarray, outside: float = 0.0) -> np.ndarray:
        return sample(plane, field, centre, spacing, outside)

    def covered(each: Nodule) -> np.ndarray | bool:
        """bool [S, S]: the pixels that a finding covers; one smaller than a pixel has one still."""
        plane = np.zeros(volume.hu.shape[1:], np.float32)
        _, row, column = each.start
        inside = each.mask[index - each.start[0]]
        plane[row:row + inside.shape[0], column:column + inside.shape[1]] = inside
        share = shown(plane)
        return share >= min(0.5, share.max()) if share.max() > 0 else False

    hu = shown(np.clip(volume.hu[index], OUTSIDE_HU, 3071), OUTSIDE_HU)
    nodule, doubtful, boxes = np.zeros(hu.shape, bool), np.zeros(hu.shape, bool), []
    for each in ignored:
        if each.box(index) is not None:
            doubtful |= covered(each)
    for each in nodules:
        edges = each.box(index)
        if edges is None:
            continue
        nodule |= covered(each)
        x0, y0, x1, y1 = edges
        (top, left), (bottom, right) = field.to_pixels([(y0, x0), (y1, x1)], centre, spacing)
        box = np.clip((left, top, right, bottom), 0, field.image_size)
        if box[0] < box[2] and box[1] < box[3]:
            boxes.append(tuple(float(v) for v in box))
    grey, marked = to_grey(hu, field.window), nodule * np.uint8(255)
    if lungs is None:
        return Picture(grey, {"nodule": marked} if nodules else {}, boxes)
    doubtful &= ~nodule
    beside = {IGNORED: doubtful * np.uint8(255)} if doubtful.any() else {}
    coarse_centre = tuple((c + 0.5) / f - 0.5 for c, f in zip(centre, lungs.factor[1:]))
    coarse_mm = tuple(mm * f for mm, f in zip(spacing, lungs.factor[1:]))
    body, lung = (sample(plane, field, coarse_centre, coarse_mm, 0.0) >= 0.5
                  for plane in lungs.plane(index))
    layout = body.astype(np.uint8)
    layout[lung] = 2
    layout[body & ~lung & (hu > BONE_HU)] = 3
    layout[lung & (hu > VESSEL_HU)] = 4
    layout[nodule] = 5
    masks = {"nodule": marked, "lung": lung * np.uint8(255), "layout": layout, **beside}
    return Picture(grey, masks, boxes)
