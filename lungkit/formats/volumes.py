"""One face of a CT volume, whatever file it came from: int16 HU [Z, Y, X] in a known place.

Millimetres are LPS, as in DICOM: x to the patient's left, y to the back, z to the head. A file may
store its axes in any order and direction; `canonical` permutes and flips them so that the array
runs z, y, x upwards, and says where its voxels lie. What remains of a rotation is kept, not
resampled away.

Feeds ct_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lungkit.run.faults import Fault

SHEAR = 0.02            # ours: cosine between two axes from which a grid is sheared: about 1 degree
OBLIQUE = 0.985         # ours: cosine to the body's axis below which a grid is oblique: 10 degrees
AIR_HU = -500           # ours: a chest CT without a voxel below it shows no lung, so is not in HU
LUNG_WINDOW = (-1000, 400)
SLAB = 16               # slices converted at a time, so that a float copy of the whole never is


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of an array [Z, Y, X] lie.

    origin_mm: float [3], x y z of the centre of voxel [0, 0, 0]; steps_mm: float [3, 3], row i is
    the x y z of one step along axis i of the array.
    """

    shape: tuple[int, int, int]
    origin_mm: np.ndarray
    steps_mm: np.ndarray

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance of voxels along z, y, x."""
        return tuple(float(np.linalg.norm(step)) for step in self.steps_mm)

    def to_world(self, voxels: np.ndarray) -> np.ndarray:
        """mm float [..., 3] in x y z of voxel coordinates [..., 3] in z y x."""
        return np.asarray(voxels, float) @ self.steps_mm + self.origin_mm

    def to_voxels(self, points_mm: np.ndarray) -> np.ndarray:
        """Voxel coordinates float [..., 3] in z y x of mm [..., 3] in x y z."""
        return (np.asarray(points_mm, float) - self.origin_mm) @ np.linalg.inv(self.steps_mm)

    def holds(self, voxel: np.ndarray) -> bool:
        """Whether voxel coordinates in z y x lie in the array, half a voxel of edge included."""
        return bool(((voxel >= -0.5) & (voxel <= np.array(self.shape) - 0.5)).all())

    def same_place(self, other: Geometry, tolerance_mm: float = 0.1) -> bool:
        """Whether both have one shape and their corner voxels lie on one another."""
        last = np.array(self.shape) - 1
        corners = np.array([np.zeros(3), last])
        return self.shape == other.shape and bool(
            np.abs(self.to_world(corners) - other.to_world(corners)).max() <= tolerance_mm)


@dataclass(frozen=True)
class Volume:
    """int16 HU [Z, Y, X] and where it lies."""

    hu: np.ndarray
    geometry: Geometry


@dataclass(frozen=True)
class Turn:
    """How the axes of a file become z, y, x: transposed, then flipped."""

    order: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """The array of the file as [Z, Y, X], a view."""
        return array.transpose(self.order)[tuple(slice(None, None, -1) if flip else slice(None)
                                                 for flip in self.flipped)]

    def back(self, array: np.ndarray) -> np.ndarray:
        """An array [Z, Y, X] along the file's axes, a view."""
        flipped = array[tuple(slice(None, None, -1) if flip else slice(None)
                              for flip in self.flipped)]
        return flipped.transpose(np.argsort(self.order))

    def grid(self, geometry: Geometry) -> Geometry:
        """Where the voxels of the file's own array lie; geometry: of the canonical one."""
        sign = np.where(self.flipped, -1.0, 1.0)[:, None]
        corner = np.array(self.flipped) * (np.array(geometry.shape) - 1)
        back = np.argsort(self.order)
        return Geometry(tuple(geometry.shape[axis] for axis in back),
                        geometry.to_world(corner), (sign * geometry.steps_mm)[back])

    def point(self, index: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
        """Voxel coordinates [..., 3] in z y x of coordinates along the file's axes.

        shape: of the canonical array.
        """
        turned = np.asarray(index, float)[..., list(self.order)]
        return np.where(self.flipped, np.array(shape) - 1 - turned, turned)


def canonical(shape: tuple[int, ...], origin_mm: np.ndarray,
              steps_mm: np.ndarray) -> tuple[Geometry, Turn]:
    """Bring axes of any order and direction to z, y, x upwards.

    shape: of the file's array; origin_mm: x y z of its first voxel; steps_mm: row i is the x y z
    of one step along axis i of the file. Raises Fault where the grid is sheared (a tilted gantry)
    or oblique.
    """
    steps_mm, origin_mm = np.asarray(steps_mm, float), np.asarray(origin_mm, float)
    length = np.linalg.norm(steps_mm, axis=1)
    if not (np.isfinite(steps_mm).all() and np.isfinite(origin_mm).all() and (length > 0).all()):
        raise Fault("voxels without a size: spacing and position must be numbers above 0")
    unit = steps_mm / length[:, None]
    cosine = np.abs(unit @ unit.T)[np.triu_indices(3, 1)].max()
    if cosine > SHEAR:
        raise Fault(f"the grid is sheared by {np.degrees(np.arcsin(min(1, cosine))):.1f} degrees "
                    "(gantry tilt): resample the scan to a straight grid first")
    nearest = np.abs(unit).argmax(1)
    if sorted(nearest) != [0, 1, 2] or np.abs(unit).max(1).min() < OBLIQUE:
        raise Fault("the grid is oblique, more than 10 degrees off the body's axes: resample it "
                    "first")
    order = tuple(int(np.flatnonzero(nearest == world)[0]) for world in (2, 1, 0))
    flipped = tuple(bool(steps_mm[axis, world] < 0) for axis, world in zip(order, (2, 1, 0)))
    turned_shape = tuple(int(shape[axis]) for axis in order)
    sign = np.where(flipped, -1.0, 1.0)
    turned = steps_mm[list(order)]
    first = origin_mm + (np.array(flipped) * (np.array(turned_shape) - 1)) @ turned
    return Geometry(turned_shape, first, turned * sign[:, None]), Turn(order, flipped)


# ------------------------------------------------------------------ values

def to_hu(raw: np.ndarray, slope: float = 1.0, intercept: float = 0.0) -> np.ndarray:
    """int16 HU of stored values, slope x value + intercept, rounded; of any shape.

    Raises Fault for values that are no numbers or beyond int16.
    """
    if raw.dtype == np.int16 and slope == 1 and intercept == 0:
        return raw
    hu = np.empty(raw.shape, np.int16)
    for start in range(0, len(raw), SLAB):
        part = raw[start:start + SLAB]
        whole = part.dtype.kind in "iu" and float(slope).is_integer() \
            and float(intercept).is_integer()
        part = (part.astype(np.int64) * int(slope) + int(intercept) if whole
                else np.rint(part * float(slope) + float(intercept)))
        if not np.isfinite(part).all():
            raise Fault("holds values that are no numbers (NaN or infinite)")
        if part.min(initial=0) < -32768 or part.max(initial=0) > 32767:
            raise Fault(f"holds values from {part.min():g} to {part.max():g}, which are no HU")
        hu[start:start + SLAB] = part
    return hu


def check_hu(least: float, most: float) -> None:
    """Raise Fault unless values from `least` to `most` can be a chest CT in HU."""
    if most <= 10:  # a fraction of 1000, or air alone
        raise Fault(f"values run from {least:g} to {most:g}: not HU; was it divided by 1000, or is "
                    "it a mask?")
    if least > AIR_HU:
        raise Fault(f"values run from {least:g} to {most:g}: no air, so not HU; give the scan as "
                    "it was reconstructed (slope and intercept lost?)")
    if least >= LUNG_WINDOW[0] and most <= LUNG_WINDOW[1]:
        raise Fault(f"values run from {least:g} to {most:g}: already cut to a window; give the "
                    "scan before windowing")


# ------------------------------------------------------------------ files

def read_turned(path: Path, read: Callable[[Path], np.ndarray], turn: Turn,
                geometry: Geometry) -> Volume:
    """A file's array, read by `read`, as a checked Volume; faults name the file."""
    try:
        hu = turn(to_hu(read(path)))
        check_hu(float(hu.min()), float(hu.max()))
    except Fault as fault:
        raise Fault(f"{path}: {fault}") from None
    return Volume(hu, geometry)
