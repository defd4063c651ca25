"""Layouts: where nuclei and tissue of an image lie, in words (levels) and as a picture.

Feeds nothing but what `RECIPE` guards: the layouts, maps and words of the context arm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from lungkit.data.manifest import side_um
from lungkit.data.png import three_channels
from lungkit.nuclei.architecture import to_grid
from lungkit.run.files import atomic_path
from lungkit.run.progress import Progress

RECIPE = 1         # raise it when layouts are measured, drawn or pictured otherwise
SUPERSAMPLING = 4  # ours: discs of 2-3 px radius need sub-pixel edges at 64 px
REACH = 0.15       # ours: distance shown as white, as a share of the side; air spaces reach it
FAR_IN_TISSUE = 128  # ours: blue of tissue far from any nucleus, so that white is lumen alone


@dataclass(frozen=True)
class Layout:
    """Nuclei of one image: centroids float32 [N, 2] (x, y) px, areas float32 [N] px.

    tissue: where there is tissue, bool [G, G] over the whole image (`architecture.to_grid`), or
        None: not looked for.
    """

    centroids: np.ndarray
    areas_px: np.ndarray
    tissue: np.ndarray | None = None

    @property
    def tissue_share(self) -> float:
        return 1.0 if self.tissue is None else float(self.tissue.mean())


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
    Where tissue was looked for, lumen is white in blue and without cells, and in tissue blue ends
    at FAR_IN_TISSUE.
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
    if layout.tissue is not None:
        tissue = tissue_mask_of(layout, fine) > 0
        far = np.where(tissue, np.minimum(far, FAR_IN_TISSUE), 255).astype(np.uint8)
        borders = borders * tissue
    stacked = np.stack([nuclei, borders, far], -1)
    return cv2.resize(stacked, (size, size), interpolation=cv2.INTER_AREA)


def tissue_mask_of(layout: Layout, size: int) -> np.ndarray:
    """The tissue of a layout as uint8 [size, size], 0 and 255; 255 where it was not looked for."""
    import cv2

    if layout.tissue is None:
        return np.full((size, size), 255, np.uint8)
    share = cv2.resize(layout.tissue.astype(np.float32), (size, size),
                       interpolation=cv2.INTER_LINEAR)
    return np.where(share >= 0.5, 255, 0).astype(np.uint8)


NUM_LEVELS = 4  # words a measurement is put into


def finder(data, find_tissue: Callable | None, nuclei_weights: Path | None = None,
           device: str = "auto") -> Callable[[np.ndarray], Layout]:
    """layout_of(image), by the detectors for the images of `data`: uint8 [S, S, C] -> Layout.

    find_tissue: uint8 [S, S, 3] -> bool [S, S]; None: tissue is not looked for. It is not in
        fluorescence, where lumen is as dark as stroma: all of it counts as tissue.
    nuclei_weights: of an InstanSeg model, which runs on `device`; None: the rules of
        lungkit/nuclei/detect.py.
    """
    from lungkit.nuclei.detect import FIELD_UM, METHODS, guess_modality
    from lungkit.nuclei.instanseg import load_detector

    known = data.modality if data.modality in METHODS else "auto"
    detect = partial(load_detector(nuclei_weights, device), modality=known,
                     field_um=side_um(data.manifest) or FIELD_UM)

    def layout_of(image: np.ndarray) -> Layout:
        image = three_channels(image)
        nuclei, tissue = detect(image), None
        if find_tissue is not None:
            modality = guess_modality(image) if known == "auto" else known
            tissue = to_grid(find_tissue(image) if modality == "he"
                             else np.ones(image.shape[:2], bool))
        return Layout(nuclei.centroids, nuclei.areas_px, tissue)
    return layout_of


def measure_layouts(data, path: Path, layout_of: Callable[[np.ndarray], Layout]) -> list[Layout]:
    """Measure the layout of every training image, in the order of `select`; keep them in `path`."""
    rows = data.select("train")
    if not path.exists():
        progress = Progress("layouts of training images", len(rows))
        found = []
        for row in rows:
            found.append(layout_of(data.image(row)))
            progress.update(len(found))
        masks = [layout.tissue for layout in found if layout.tissue is not None]
        tissue = {"tissue": np.packbits(masks, axis=-1)} if masks else {}
        with atomic_path(path) as hidden:
            np.savez(hidden, counts=[len(layout.areas_px) for layout in found],
                     centroids=np.concatenate([layout.centroids for layout in found]),
                     areas_px=np.concatenate([layout.areas_px for layout in found]), **tissue)
    return load_layouts(path)


def load_layouts(path: Path) -> list[Layout]:
    """The layouts that `measure_layouts` kept in `path`, which is never measured again here."""
    with np.load(path) as saved:
        counts, centroids, areas_px = (saved[name] for name in ("counts", "centroids", "areas_px"))
        masks = [None] * len(counts)
        if "tissue" in saved.files:
            packed = saved["tissue"]
            masks = np.unpackbits(packed, axis=-1, count=packed.shape[1]).astype(bool)
    ends = np.cumsum(counts)
    return [Layout(centroids[end - n:end], areas_px[end - n:end], mask)
            for n, end, mask in zip(counts, ends, masks, strict=True)]
