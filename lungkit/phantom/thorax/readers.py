"""Read a scan as LIDC's four radiologists did: miss, disagree, outline and grade.

Each reader of a scan is drawn anew, as LIDC's are anonymous. Small nodules are missed more often.
An outline is the nodule's surface moved by up to about a pixel and slightly bent; what a reader
takes for smaller than 3 mm is one point without grades. Of grades, LIDC's nodules with two or more
readers have a range of 0 in 26 %, 1 in 32 %, 2 in 31 % and 3 or 4 in 12 %: a normal deviation of
1.1 grades about the truth, and of 0.15 for a nodule in seven that nobody doubts, gives 28, 31, 28
and 13 % (found on a grid of such mixtures).

Masks are bool [Z, Y, X] of a window of the scan. An outline in LIDC's files is the first pixel
outside, so a mask is closed by a cross, after which outline and mask mean the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from lungkit.phantom.thorax import nodules
from lungkit.phantom.thorax.anatomy import Chest, lungs, to_patient
from lungkit.phantom.thorax.nodules import CALCIFIED, Nodule
from lungkit.phantom.thorax.scene import Grid

NUM_READERS = 4
PLAIN_SHARE, PLAIN_SPREAD, SPREAD = 0.15, 0.15, 1.1  # of grades; see above
HABIT_PX, HASTE_PX = 0.35, 0.3  # how far outlines lie out, by reader and by mark: deviations
MISSED = ((4, 0.25), (6, 0.12), (10, 0.05), (99, 0.02))  # up to this diameter in mm, this share
OTHERS, OTHER_SHARE = 3, 0.4  # vessels marked as no nodule in a scan, and by what share of readers
POINT_MM = 3.0  # below: LIDC's readers mark a point
SCALES = ("subtlety", "internalStructure", "calcification", "sphericity", "margin", "lobulation",
          "spiculation", "texture", "malignancy")
CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)


@dataclass(frozen=True)
class Mark:
    """What one reader says of one place."""

    reader: int
    nodule: int | None  # number in the scene; None: no nodule is there
    kind: str  # "outlined", "point" (a nodule below 3 mm) or "other" (not a nodule)
    at_px: tuple[int, int, int]  # column, row, slice
    ratings: dict  # by SCALES; empty unless outlined
    corner: tuple[int, int, int] = (0, 0, 0)  # of the mask in the scan: slice, row, column
    mask: np.ndarray | None = None
    holes: np.ndarray | None = None  # what the reader cut out of the mask again

    def solid(self) -> np.ndarray:
        """The outlined voxels without the holes."""
        return self.mask & ~self.holes


def _close(mask: np.ndarray) -> np.ndarray:
    """Close each slice by a cross, after filling what it encloses."""
    from scipy.ndimage import binary_fill_holes

    closed = np.zeros_like(mask)
    for number, plane in enumerate(mask):
        if plane.any():
            grown = cv2.dilate(binary_fill_holes(plane).astype(np.uint8), CROSS)
            closed[number] = cv2.erode(binary_fill_holes(grown).astype(np.uint8), CROSS)
    return closed


def surface(nodule: Nodule, chest: Chest, grid: Grid):
    """(corner, distance, share of the radius) of a nodule in its window [Z, Y, X] of a grid.

    The distance counts the chest wall as outside: nobody outlines a rib. The window leaves two
    pixels beyond any outline, unless the scan ends there.
    """
    xs, ys, zs = grid.axes()
    part = nodules.window(nodule, (xs, ys, zs), 4 + 3 * grid.spacing_mm)
    x, y, z = xs[part[2]], ys[part[1]][:, None], zs[part[0]][:, None, None]
    outside, relative = nodules.distance(nodule, x, y, z)
    if nodule.attached == "pleura":
        outside = np.maximum(outside, lungs(chest, *to_patient(chest, x, y), z))
    return tuple(each.start for each in part), outside, relative


def whole_ball(nodule: Nodule, grid: Grid) -> Nodule:
    """A round nodule as one ball of voxels, which a centre and a diameter give back.

    It lies around the nearest voxel, and has the nearest of those radii that are the radius of the
    disc that has the area of its own middle section.
    """
    reach = int(1.5 * nodule.radius_mm / grid.spacing_mm) + 2
    squares = np.arange(-reach, reach + 1) ** 2
    least, counts = np.unique(np.add.outer(squares, squares), return_counts=True)
    area = np.cumsum(counts)[:-1] / np.pi  # of the disc that reaches to `least`: radius squared
    fits = (area > least[:-1] + 4e-3) & (area < least[1:] - 4e-3)  # single precision loses less
    radii = grid.spacing_mm * np.sqrt(area[fits])
    at = np.rint(grid.index_of(nodule.centre_mm)) * (grid.spacing_mm, grid.spacing_mm, grid.step_mm)
    return replace(nodule, centre_mm=tuple(map(float, at + grid.origin_mm)),
                   radius_mm=float(radii[np.abs(radii - nodule.radius_mm).argmin()]))


def read(rng: np.random.Generator, chest: Chest, found: tuple, grid: Grid, vessels_mm: np.ndarray,
         *, alike: bool = False) -> list[Mark]:
    """All marks of a scan's readers on its nodules `found`, reader by reader.

    vessels_mm: places [N, 3] in the scan, a few of which are taken for findings that are none.
    alike: all who see a nodule, a round one, outline the same ball (see whole_ball).
    """
    habits = rng.normal(0.1, HABIT_PX, NUM_READERS)
    plain = rng.random(len(found)) < PLAIN_SHARE
    marks = []
    for number, nodule in enumerate(found):
        outlined = whole_ball(nodule, grid) if alike else nodule
        corner, outside, relative = surface(outlined, chest, grid)
        at = tuple(int(round(each)) for each in grid.index_of(nodule.centre_mm))
        missed = next(share for most, share in MISSED if nodule.diameter_mm <= most)
        for reader in range(NUM_READERS):
            if rng.random() < missed:
                continue
            small = nodule.diameter_mm * rng.normal(1, 0.1) < POINT_MM
            if small or not outside.size:
                kind = "point" if rng.random() < 0.8 else "other"
                marks.append(Mark(reader, number, kind, at, {}))
                continue
            shift = (habits[reader] + rng.normal(0, HASTE_PX)) * grid.spacing_mm
            mask = _close(outside < 0) if alike else _outlined(rng, outside, shift,
                                                               grid.spacing_mm)
            holes = np.zeros_like(mask)
            if nodule.cavity and rng.random() < 0.8:
                holes = _close((relative < nodule.cavity) & mask)
                inner = np.stack([cv2.erode(plane, CROSS, iterations=2)
                                  for plane in mask.astype(np.uint8)])
                holes &= inner.astype(bool)
            marks.append(Mark(reader, number, "outlined", at,
                              _ratings(rng, nodule, plain[number]), corner, mask, holes))
    for place in rng.permutation(vessels_mm)[:rng.poisson(OTHERS)]:
        at = tuple(int(round(each)) for each in grid.index_of(place))
        marks.extend(Mark(reader, None, "other", at, {}) for reader in range(NUM_READERS)
                     if rng.random() < OTHER_SHARE)
    return sorted(marks, key=lambda mark: mark.reader)


def _outlined(rng, outside: np.ndarray, shift_mm: float, spacing_mm: float) -> np.ndarray:
    """What a reader outlines, closed; at least the voxel nearest to the centre."""
    depth, height, width = outside.shape
    bend = cv2.resize(rng.standard_normal((3, 3)).astype(np.float32), (width, height),
                      interpolation=cv2.INTER_CUBIC)
    mask = outside < shift_mm + 0.3 * spacing_mm * bend
    mask[:, [0, 1, -2, -1]] = False
    mask[:, :, [0, 1, -2, -1]] = False
    if not mask.any():
        mask.flat[outside.argmin()] = True
    return _close(mask)


def _ratings(rng, nodule: Nodule, plain: bool) -> dict:
    """Grades of one reader on LIDC's scales."""
    def scale(value, spread=0.5):
        return int(np.clip(np.rint(value + rng.normal(0, spread)), 1, 5))

    calcified = CALCIFIED[nodule.calcified]
    return dict(zip(SCALES, (
        scale(2 + nodule.diameter_mm / 5 - (nodule.texture != nodules.SOLID)), 1,
        calcified if rng.random() < 0.9 else CALCIFIED["absent"],
        scale(5 - 3 * nodule.elongation), scale(5 - 3.2 * nodule.softness),
        scale(1 + 4 * nodule.lobulation), scale(1 + 4 * nodule.spiculation),
        scale(nodule.texture, 0.3),
        scale(nodule.grade, PLAIN_SPREAD if plain else SPREAD))))


@dataclass(frozen=True)
class Consensus:
    """What the readers make of one nodule together: the voxels at least half of its readers took"""

    nodule: int
    num_readers: int
    grade_median: float
    diameter_mm: float  # mean of the readers' 2 sqrt(largest area / pi)
    corner: tuple[int, int, int]  # of the mask in the scan: slice, row, column
    mask: np.ndarray  # bool [Z, Y, X]

    def box(self, number: int):
        """(x0, y0, x1, y1) in pixels, half open, in slice `number` of the mask; None: empty."""
        rows, columns = (np.flatnonzero(self.mask[number].any(axis)) for axis in (1, 0))
        if not len(rows):
            return None
        _, row, column = self.corner
        return (int(column + columns[0]), int(row + rows[0]), int(column + columns[-1] + 1),
                int(row + rows[-1] + 1))

    def centre_px(self) -> tuple[float, float, float]:
        """Column, row and slice of the middle of the largest box; of equals the middle one."""
        boxes = {number: box for number in range(len(self.mask))
                 if (box := self.box(number)) is not None}
        area = {number: (x1 - x0) * (y1 - y0) for number, (x0, y0, x1, y1) in boxes.items()}
        equal = [number for number, each in area.items() if each == max(area.values())]
        number = equal[(len(equal) - 1) // 2]
        x0, y0, x1, y1 = boxes[number]
        return (x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2, float(number + self.corner[0])


def agree(marks: list[Mark], spacing_mm: float) -> list[Consensus]:
    """The consensus on every nodule that a reader outlined, in the nodules' order."""
    by_nodule: dict[int, list[Mark]] = {}
    for mark in marks:
        if mark.kind == "outlined":
            by_nodule.setdefault(mark.nodule, []).append(mark)
    agreed = []
    for number, own in sorted(by_nodule.items()):
        masks = np.stack([mark.solid() for mark in own])
        areas = masks.sum((2, 3)).max(1)
        agreed.append(Consensus(
            number, len(own), float(np.median([mark.ratings["malignancy"] for mark in own])),
            float(np.mean(2 * np.sqrt(areas / np.pi)) * spacing_mm), own[0].corner,
            2 * masks.sum(0) >= len(own)))
    return agreed
