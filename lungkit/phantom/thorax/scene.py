"""Turn a laid-out chest into attenuation on any grid, with partial volume, slice by slice.

Distances to organs are evaluated on cells of COARSE_MM in planes LEVEL_MM apart, whatever the
image's voxels, and interpolated; a voxel's share of an organ is 0.5 - d / width, clipped, which is
exact at a flat wall. What is finer than that grid - vessels, airways, nodules - is painted on the
image's own. A slice is the mean of planes at most PLANE_MM apart through its thickness.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from lungkit.phantom.thorax import anatomy, nodules, vessels
from lungkit.phantom.thorax.anatomy import Chest

COARSE_MM = 2.5
PLANE_MM = 1.25
LEVEL_MM = 2.5  # between the heights at which distances are evaluated
SLICES = 8  # painted at a time: a vessel meets several
AIR_HU, FAT_HU, MUSCLE_HU, SKIN_HU, LIVER_HU = -1000.0, -105.0, 52.0, 20.0, 62.0
CORTEX_HU, CARTILAGE_HU, WALL_HU = 820.0, 105.0, 10.0
FOAM_HU, SWALLOWED_HU = -940.0, -350.0  # within the table; a little air in the oesophagus
FISSURE_HU = 70.0  # above the lung in a pixel of a millimetre
CORTEX_MM = 1.3
TEXTURE_HU = 24.0  # deviation of the parenchyma's own unevenness


@dataclass(frozen=True)
class Grid:
    """Voxels of a scan: axial, square pixels, x and y rising with the column and the row."""

    size: int  # pixels along x and along y
    spacing_mm: float
    num_slices: int
    step_mm: float  # from slice to slice
    thickness_mm: float  # that a slice is the mean over
    origin_mm: tuple[float, float, float]  # centre of the first voxel (x, y, z): the lowest slice

    def axes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centres of columns, rows and slices in mm, float32."""
        x, y, z = self.origin_mm
        along = np.arange(self.size) * self.spacing_mm
        return ((x + along).astype(np.float32), (y + along).astype(np.float32),
                (z + np.arange(self.num_slices) * self.step_mm).astype(np.float32))

    def index_of(self, point_mm) -> np.ndarray:
        """Column, row and slice of a point, float [3]: voxel centres are whole numbers."""
        steps = (self.spacing_mm, self.spacing_mm, self.step_mm)
        return (np.asarray(point_mm, float) - self.origin_mm) / steps


@dataclass(frozen=True)
class Scene:
    """All that is in one patient's chest."""

    chest: Chest
    blood: np.ndarray  # vessels.BRANCH
    airways: np.ndarray
    nodules: tuple  # of nodules.Nodule
    texture: np.ndarray  # float32 [64, 64, 64] of unit deviation, repeated every 128 mm


def draw_texture(rng: np.random.Generator) -> np.ndarray:
    """Smooth noise that repeats itself: lobules of about 6 mm and finer, unit deviation."""
    white = np.fft.rfftn(rng.standard_normal((64, 64, 64), np.float32))
    steps = np.fft.fftfreq(64), np.fft.fftfreq(64), np.fft.rfftfreq(64)
    freq = np.sqrt(sum(np.square(each) for each in np.meshgrid(*steps, indexing="ij")))
    white /= 1 + (freq / 0.1) ** 2
    smooth = np.fft.irfftn(white, (64, 64, 64), (0, 1, 2)).astype(np.float32)
    return smooth / smooth.std()


def slices(scene: Scene, grid: Grid) -> Iterator[np.ndarray]:
    """Attenuation of the slices from the lowest up, HU float32 [size, size], before the scanner."""
    xs, ys, heights = grid.axes()
    distances_at = functools.lru_cache(maxsize=4)(functools.partial(_distances, scene, grid))
    count = max(1, int(np.ceil(grid.thickness_mm / PLANE_MM - 1e-6)))
    within = ((np.arange(count) + 0.5) / count - 0.5) * grid.thickness_mm
    at_once = SLICES if abs(grid.step_mm - grid.thickness_mm) < 1e-6 else 1  # evenly spaced planes
    for first in range(0, len(heights), at_once):
        zs = (heights[first:first + at_once, None] + within).reshape(-1).astype(np.float32)
        planes = np.stack([_plane(scene, grid, float(z), distances_at) for z in zs])
        _paint_trees(scene, planes, xs, ys, zs, grid.spacing_mm)
        for nodule in scene.nodules:
            nodules.paint(planes, nodule, xs, ys, zs, grid.spacing_mm)
        yield from planes.reshape(-1, count, grid.size, grid.size).mean(1)


ORGANS = ("table", "skin", "muscle", "wall", "belly", "blood", "gullet", "cartilage", "bone",
          "marrow", "lung", "fissure")  # in the order of _distances


def _distances(scene: Scene, grid: Grid, level: int) -> np.ndarray:
    """Distances in mm to ORGANS on coarse cells at the height level * LEVEL_MM: float32 [12, n, n]
    """
    chest, span = scene.chest, grid.size * grid.spacing_mm
    count = max(8, int(np.ceil(span / COARSE_MM)))
    cells = ((np.arange(count, dtype=np.float32) + 0.5) * np.float32(span / count)
             - np.float32(grid.spacing_mm / 2))
    x, y = (cells[None, :] + np.float32(grid.origin_mm[0]),
            cells[:, None] + np.float32(grid.origin_mm[1]))
    board = anatomy.table(chest, x, y)
    x, y = anatomy.to_patient(chest, x, y)
    z = np.full((1, 1), level * LEVEL_MM, np.float32)
    skin, wall = anatomy.body(chest, x, y, z), anatomy.cavity(chest, x, y, z)
    bone, spongy, cartilage = anatomy.bones(chest, x, y, z, wall)
    bone, lung = np.maximum(bone, skin + 3), anatomy.lungs(chest, x, y, z)
    found = (board, skin,
             np.maximum(anatomy.muscles(chest, x, y, z, wall), skin + 4), wall,
             np.maximum(wall + 2, anatomy.diaphragm(chest, x, y, z) + 1),
             anatomy.great_vessels(chest, x, y, z), anatomy.gullet(x, y, z), cartilage, bone,
             np.maximum(spongy + CORTEX_MM, bone), lung,
             np.maximum(anatomy.fissures(x, y, z) - 0.3, lung + 2))
    return np.stack([np.broadcast_to(each, (count, count)) for each in found]).astype(np.float32)


def _plane(scene: Scene, grid: Grid, height: float, distances_at: Callable) -> np.ndarray:
    """HU float32 [size, size] of everything but trees and nodules at one height.

    distances_at: `_distances` of a level. Between two levels distances are interpolated.
    """
    chest, size, width = scene.chest, grid.size, grid.spacing_mm
    level = math.floor(height / LEVEL_MM)
    share = np.float32(height / LEVEL_MM - level)
    below, above = distances_at(level), distances_at(level + 1)
    at = dict(zip(ORGANS, below + share * (above - below)))
    hu = np.full((size, size), AIR_HU, np.float32)

    def fill(distance, value):
        """Put `value`, a number or a plane, where `distance` is negative."""
        near = distance < width / 2 + 2 * COARSE_MM
        rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
        if not len(rows):
            return
        count = len(distance)
        y0, y1 = rows[0] * size // count, -(-(rows[-1] + 1) * size // count)
        x0, x1 = columns[0] * size // count, -(-(columns[-1] + 1) * size // count)
        fine = cv2.resize(distance, (size, size), interpolation=cv2.INTER_LINEAR)[y0:y1, x0:x1]
        part = hu[y0:y1, x0:x1]
        part += np.clip(0.5 - fine / width, 0, 1) * (
            (value[y0:y1, x0:x1] if np.ndim(value) else value) - part)

    fill(at["table"], 0.0)
    fill(at["table"] + 1.6, FOAM_HU)
    fill(at["skin"], SKIN_HU)
    fill(at["skin"] + 1.8, FAT_HU)
    fill(at["muscle"], MUSCLE_HU)
    fill(at["wall"] + 1.5, FAT_HU)  # of the mediastinum; the lungs take most of it below
    fill(at["belly"], LIVER_HU + 0.35 * (chest.blood_hu - 42))
    fill(at["blood"], chest.blood_hu)
    fill(at["gullet"], MUSCLE_HU)
    if np.sin(height / 17) > 0.4:
        fill(at["gullet"] + 4, SWALLOWED_HU)
    texture = _textured(scene, grid, height, 1)
    fill(at["cartilage"], CARTILAGE_HU)
    fill(at["bone"], CORTEX_HU)
    fill(at["marrow"], chest.marrow_hu + 60 * texture)
    fill(at["lung"], _parenchyma(scene, grid, height, texture))
    if at["fissure"].min() < 2:
        fine = cv2.resize(at["fissure"], (size, size))
        hu += np.clip(1 - fine / 1.5, 0, 1) * FISSURE_HU / max(width, 1)
    return hu


def _textured(scene: Scene, grid: Grid, z: float, scale: float) -> np.ndarray:
    """A plane of the scene's texture at `scale` times its 2 mm cells, float32 [size, size]."""
    cells = scene.texture.shape[0]
    height = z / (2 * scale) % cells
    low, share = int(height), height % 1
    plane = ((1 - share) * scene.texture[low] + share * scene.texture[(low + 1) % cells])
    xs, ys, _ = grid.axes()
    column, row = np.meshgrid(xs / (2 * scale), ys / (2 * scale))
    return cv2.remap(plane.astype(np.float32), column, row, cv2.INTER_LINEAR,
                     borderMode=cv2.BORDER_WRAP)


def _parenchyma(scene: Scene, grid: Grid, z: float, texture: np.ndarray) -> np.ndarray:
    """HU of lung tissue: heavier to the back, uneven, with holes where there is emphysema."""
    ys = grid.axes()[1][:, None]
    chest = scene.chest
    hu = chest.lung_hu + chest.gravity / 10 * ys + TEXTURE_HU * texture
    if chest.emphysema:
        upper = 1 / (1 + np.exp(-z / 25))
        holes = _textured(scene, grid, z, 1.6) - 1.9 + 1.6 * chest.emphysema * upper
        hu += np.clip(holes * 2, 0, 1) * (-985 - hu)
    return hu


def _paint_trees(scene: Scene, slab: np.ndarray, xs, ys, zs, width_mm: float) -> None:
    """Paint vessels, then the walls of airways and the air in them, into HU [Z, Y, X]."""
    cover = np.zeros_like(slab)
    vessels.paint(cover, scene.blood, xs, ys, zs, width_mm)
    slab += cover * np.maximum(scene.chest.blood_hu - slab, 0)
    for grow_mm, value in ((vessels.WALL_MM, WALL_HU), (0.0, AIR_HU + 15)):
        cover[:] = 0
        vessels.paint(cover, scene.airways, xs, ys, zs, width_mm, grow_mm=grow_mm)
        slab += cover * ((value - slab) if grow_mm == 0 else np.maximum(value - slab, 0))
