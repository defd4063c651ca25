"""Layouts: where the nuclei of an image lie, in words (levels) and as a picture (structure map)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lungkit.data.manifest import side_um
from lungkit.data.png import three_channels
from lungkit.run.files import atomic_path
from lungkit.run.progress import Progress

SUPERSAMPLING = 4  # ours: discs of 2-3 px radius need sub-pixel edges at 64 px
REACH = 0.15       # ours: distance shown as white, as a share of the side; air spaces reach it


@dataclass(frozen=True)
class Layout:
    """Nuclei of one image: centroids float32 [N, 2] (x, y) px, areas float32 [N] px."""

    centroids: np.ndarray
    areas_px: np.ndarray


def measurements(layout: Layout, size: int) -> dict[str, float]:
    """Nuclei count, mean area (px) and median nearest-neighbour distance (px; alone: the side)."""
    from scipy.spatial import cKDTree

    number, spacing = len(layout.areas_px), float(size)
    if number > 1:
        nearest = cKDTree(layout.centroids).query(layout.centroids, k=2)[0][:, 1]
        spacing = float(np.median(nearest))
    return {"count": number, "size": float(layout.areas_px.mean()) if number else 0.0,
            "spacing": spacing}


class Levels:
    """Measurements as levels 0-3, by the quartiles over all training images of all classes."""

    def __init__(self, layouts: list[Layout], size: int) -> None:
        self.size = size
        table = [measurements(layout, size) for layout in layouts]
        shares = np.arange(1, NUM_LEVELS) / NUM_LEVELS
        self.edges = {key: np.quantile([row[key] for row in table], shares) for key in table[0]}

    def of(self, layout: Layout) -> dict[str, int]:
        """{count, size, spacing: 0..3}, what Prompts.context_caption takes."""
        return {key: int(np.searchsorted(self.edges[key], value, side="right"))
                for key, value in measurements(layout, self.size).items()}


def structure_map(layout: Layout, size: int) -> np.ndarray:
    """Draw a layout as the image ControlNet is conditioned on: uint8 [size, size, 3].

    Red: nuclei as discs of their area; green: borders of the Voronoi cells; blue: distance to the
    nearest nucleus, black to white over REACH of the side. No nuclei: black, black, white.
    """
    import cv2

    fine = size * SUPERSAMPLING
    nuclei = np.zeros((fine, fine), np.uint8)
    points = np.ones((fine, fine), np.uint8)
    shift = 4  # cv2 takes fixed-point coordinates with so many fractional bits
    for (x, y), area in zip(layout.centroids.tolist(), layout.areas_px.tolist(), strict=True):
        cx, cy = (x + 0.5) * SUPERSAMPLING, (y + 0.5) * SUPERSAMPLING
        radius = np.sqrt(max(area, 1.0) / np.pi) * SUPERSAMPLING
        cv2.circle(nuclei, (round(cx * 2**shift), round(cy * 2**shift)), round(radius * 2**shift),
                   255, -1, cv2.LINE_AA, shift)
        points[min(max(int(cy), 0), fine - 1), min(max(int(cx), 0), fine - 1)] = 0
    if len(layout.centroids):
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


NUM_LEVELS = 4  # words a measurement is put into


def measure_layouts(data, path: Path, nuclei_weights: Path | None = None,
                    device: str = "auto") -> list[Layout]:
    """Detect the nuclei of every training image, in the order of `select`; keep them in `path`.

    nuclei_weights: of an InstanSeg model, which runs on `device`; None: the rules of
        lungkit/nuclei/detect.py.
    """
    from lungkit.nuclei.detect import FIELD_UM, METHODS
    from lungkit.nuclei.instanseg import load_detector

    detect = partial(load_detector(nuclei_weights, device),
                     modality=data.modality if data.modality in METHODS else "auto",
                     field_um=side_um(data.manifest) or FIELD_UM)
    rows = data.select("train")
    if not path.exists():
        progress = Progress("nuclei of training images", len(rows))
        found = []
        for row in rows:
            nuclei = detect(three_channels(data.image(row)))
            found.append(Layout(nuclei.centroids, nuclei.areas_px))
            progress.update(len(found))
        with atomic_path(path) as hidden:
            np.savez(hidden, counts=[len(layout.areas_px) for layout in found],
                     centroids=np.concatenate([layout.centroids for layout in found]),
                     areas_px=np.concatenate([layout.areas_px for layout in found]))
    return load_layouts(path)


def load_layouts(path: Path) -> list[Layout]:
    """The layouts that `measure_layouts` kept in `path`, which is never measured again here."""
    with np.load(path) as saved:
        counts, centroids, areas_px = (saved[name] for name in ("counts", "centroids", "areas_px"))
    ends = np.cumsum(counts)
    return [Layout(centroids[end - n:end], areas_px[end - n:end])
            for n, end in zip(counts, ends, strict=True)]
