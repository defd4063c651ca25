"""Body and lungs of a scan on a coarse grid: air inside the body, closed over nodules at its edge.

Thresholding with morphology, as in Hu et al. 2001, "Automatic lung segmentation for accurate
quantitation of volumetric X-ray CT images", IEEE TMI 20:490, without their separation of left and
right. It is where nodules may be, not a measure of the lungs: airways count as lung, and lung that
is solid (a large tumour, effusion) is found only where it is enclosed.

Feeds ct_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lungkit.formats.volumes import Volume

GRID_MM = 2.0           # ours: coarse enough for a second a scan, finer than what is closed
AIR_HU = -320           # between lung and soft tissue, about the middle (Hu et al.: -350)
CLOSE_MM = 8.0          # ours: radius of a nodule at the pleura that is taken in
LEAST_ML = 50.0         # ours: smaller pockets of air are bowel or airway
LEAST_SHARE = 0.1       # ours: of the largest; the other lung is more


@dataclass(frozen=True)
class Lungs:
    """bool [Z', Y', X'] of body and of lung, and how many voxels of the scan a cell is."""

    body: np.ndarray
    lung: np.ndarray
    factor: tuple[float, float, float]

    def plane(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Body and lung, bool [Y', X'], at a slice of the scan."""
        z = min(int(index / self.factor[0]), len(self.lung) - 1)
        return self.body[z], self.lung[z]

    def centre(self) -> tuple[float, float]:
        """Row and column, in voxels of the scan, of the middle of what holds the lungs, or body."""
        mask = self.lung if self.lung.any() else self.body
        spans = [np.flatnonzero(mask.any((0, 2))), np.flatnonzero(mask.any((0, 1)))]
        return tuple(float((span[0] + span[-1] + 1) / 2 * factor - 0.5) if len(span) else
                     mask.shape[axis] * factor / 2
                     for axis, (span, factor) in enumerate(zip(spans, self.factor[1:]), 1))


def coarse(volume: Volume) -> tuple[np.ndarray, tuple[float, float, float]]:
    """The volume on cells of about GRID_MM: float32 [Z', Y', X'] mean HU, and voxels a cell."""
    import cv2

    depth, rows, columns = volume.hu.shape
    spacing = volume.geometry.spacing_mm
    thick = max(1, round(GRID_MM / spacing[0]))
    height, width = (max(8, round(n * mm / GRID_MM)) for n, mm in zip((rows, columns), spacing[1:]))
    planes = []
    for start in range(0, depth, thick):
        slab = np.clip(volume.hu[start:start + thick], -1024, 3071).astype(np.float32).mean(0)
        planes.append(cv2.resize(slab, (width, height), interpolation=cv2.INTER_AREA))
    return np.stack(planes), (thick, rows / height, columns / width)


def find_lungs(volume: Volume) -> Lungs:
    """Where body and lungs of a scan are; no lung where there is none."""
    import cv2
    from scipy import ndimage

    hu, factor = coarse(volume)
    cell_mm = np.array(volume.geometry.spacing_mm) * factor
    dense, count = ndimage.label(hu >= AIR_HU)
    if not count:
        return Lungs(np.zeros(hu.shape, bool), np.zeros(hu.shape, bool), factor)
    sizes = np.bincount(dense.ravel())
    sizes[0] = 0
    body = dense == sizes.argmax()
    for plane in body:  # what it encloses, slice by slice, is of it; the padded rim is not
        outside = np.pad((~plane).astype(np.uint8), 1, constant_values=1)
        cv2.floodFill(outside, None, (0, 0), 2)
        plane |= outside[1:-1, 1:-1] == 1
    air, count = ndimage.label(body & (hu < AIR_HU))
    volumes_ml = np.bincount(air.ravel(), minlength=count + 1) * cell_mm.prod() / 1000
    volumes_ml[0] = 0
    most = volumes_ml.max()
    least = max(LEAST_SHARE * most, LEAST_ML if most >= LEAST_ML else 0)  # 0: of a few slices only
    lung = ((volumes_ml >= least) & (volumes_ml > 0))[air]
    radius = [int(CLOSE_MM / mm) for mm in cell_mm[1:]]
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius[1] + 1, 2 * radius[0] + 1))
    for number, plane in enumerate(lung):
        pad = max(radius)
        closed = cv2.morphologyEx(np.pad(plane.astype(np.uint8), pad), cv2.MORPH_CLOSE, disc)
        closed = ndimage.binary_fill_holes(closed[pad:-pad or None, pad:-pad or None])
        lung[number] = closed & body[number]
    return Lungs(body, lung, factor)
