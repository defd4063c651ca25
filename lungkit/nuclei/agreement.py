"""What was asked of an image, and what it shows; how far its layout lies from the training ones.

Feeds lungkit.nuclei.layouts.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lungkit.nuclei.layouts import Layout

QUANTITIES = ("num_nuclei", "density_per_kpx", "spacing_px", "tissue_share")
FEWEST = 4           # pairs; of fewer a correlation has no interval
MAP_PX = 64          # ours: side at most of the maps that layouts are compared on
MOST_COMPARED = 100  # ours: training layouts that are compared with the others of their class


def describe(layout: Layout, size: int) -> dict[str, float | None]:
    """QUANTITIES of a layout of an image of `size` px.

    density_per_kpx: nuclei per 1,000 px of tissue, None without tissue. spacing_px: mean distance
    to the nearest other nucleus, None of fewer than two. tissue_share: 0..1.
    """
    from scipy.spatial import cKDTree

    number, tissue_px = len(layout.areas_px), layout.tissue_share * size**2
    spacing = None
    if number > 1:
        nearest = cKDTree(layout.centroids).query(layout.centroids, k=2)[0][:, 1]
        spacing = round(float(nearest.mean()), 3)
    return {"num_nuclei": number,
            "density_per_kpx": round(1000 * number / tissue_px, 3) if tissue_px else None,
            "spacing_px": spacing, "tissue_share": round(layout.tissue_share, 4)}


def asked_and_measured(asked: Layout, shown: Layout | None, size: int) -> dict[str, float | None]:
    """Columns of metadata.csv: asked_<quantity> and measured_<quantity> of an image of `size` px.

    shown: what was found in the image; None: it was not looked at.
    """
    found = {name: None for name in QUANTITIES} if shown is None else describe(shown, size)
    return {f"asked_{name}": value for name, value in describe(asked, size).items()} \
        | {f"measured_{name}": value for name, value in found.items()}


def layout_report(records: list[dict], training: dict[str, list[Layout]], size: int) -> dict:
    """The manifest's `layouts`: asked against measured, and how far from the training layouts.

    records: of images, with `label`, `nearest_layout_px` and the columns of `asked_and_measured`.
    """
    among = {label: Nearest(own, size).among_training() for label, own in training.items()}
    return {"layouts": {"asked_against_measured": correlations(records),
                        "nearest_training": nearest_report(records, among)}}


def correlations(records: Iterable[dict]) -> dict[str, dict[str, dict]]:
    """{quantity: {"all" or class: {n, r, low, high}}} of asked against measured.

    records: of images, with `label` and the columns of both kinds, empty where unknown. r is
    Pearson's, low and high its 95 % interval (Fisher 1921); None where it is not defined.
    """
    records = list(records)
    found: dict[str, dict[str, dict]] = {}
    for name in QUANTITIES:
        pairs = [(record["label"], float(record[f"asked_{name}"]),
                  float(record[f"measured_{name}"])) for record in records
                 if record.get(f"asked_{name}") and record.get(f"measured_{name}")]
        groups = {"all": pairs} | {label: [pair for pair in pairs if pair[0] == label]
                                   for label in sorted({pair[0] for pair in pairs})}
        found[name] = {group: correlation([pair[1] for pair in own], [pair[2] for pair in own])
                       for group, own in groups.items()}
    return found


def correlation(asked: list[float], measured: list[float]) -> dict:
    """{n, r, low, high} of two lists of equal length."""
    number, none = len(asked), {"r": None, "low": None, "high": None}
    if number < FEWEST or min(np.ptp(asked), np.ptp(measured)) == 0:
        return {"n": number, **none}
    r = float(np.corrcoef(asked, measured)[0, 1])
    middle, half = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)), 1.96 / np.sqrt(number - 3)
    return {"n": number, "r": round(r, 3), "low": round(float(np.tanh(middle - half)), 3),
            "high": round(float(np.tanh(middle + half)), 3)}


class Nearest:
    """Distances of layouts to the training layouts of their class.

    The distance of two is the mean way from a nucleus of one to the nearest nucleus of the other,
    both ways averaged, in px: 0 for a copy, and the side where one of the two has no nucleus.
    """

    def __init__(self, training: list[Layout], size: int) -> None:
        self.training, self.size = training, size
        self.side = min(size, MAP_PX)
        cells = [self._cells(layout) for layout in training]
        self.maps = np.stack([self._map(own) for own in cells])
        self.cells = np.concatenate(cells)
        self.owners = np.repeat(np.arange(len(cells)), [len(own) for own in cells])
        self.counts = np.bincount(self.owners, minlength=len(cells))

    def _cells(self, layout: Layout) -> np.ndarray:
        """Rows and columns of the nuclei on the maps, int64 [N, 2]."""
        at = ((layout.centroids + 0.5) * (self.side / self.size)).astype(int)
        return np.clip(at, 0, self.side - 1)[:, ::-1]

    def _map(self, cells: np.ndarray) -> np.ndarray:
        """Distance of every place to the nearest of `cells`, px, float32 [side, side]."""
        import cv2

        free = np.ones((self.side, self.side), np.uint8)
        free[tuple(cells.T)] = 0
        if free.all():
            return np.full(free.shape, self.size, np.float32)
        return cv2.distanceTransform(free, cv2.DIST_L2, cv2.DIST_MASK_5) * (self.size / self.side)

    def distances(self, layout: Layout) -> np.ndarray:
        """To each training layout, px, float64 [N]."""
        own = self._cells(layout)
        if not len(own):
            return np.where(self.counts == 0, 0.0, float(self.size))
        there = self.maps[:, own[:, 0], own[:, 1]].mean(1)
        back = np.bincount(self.owners, self._map(own)[tuple(self.cells.T)],
                           minlength=len(self.counts))
        return np.where(self.counts == 0, float(self.size),
                        (there + back / np.maximum(self.counts, 1)) / 2)

    def least(self, layout: Layout) -> float:
        """To the nearest training layout, px."""
        return round(float(self.distances(layout).min()), 3)

    def among_training(self) -> float | None:
        """Median distance of a training layout to the nearest other, px; None of fewer than two."""
        if len(self.training) < 2:
            return None
        least = []
        for i in range(0, len(self.training), -(-len(self.training) // MOST_COMPARED)):
            distances = self.distances(self.training[i])
            least.append(np.delete(distances, i).min())
        return round(float(np.median(least)), 3)


def nearest_report(records: Iterable[dict], among_training: dict[str, float | None]) -> dict:
    """{class: {least_px, median_px, among_training_px}} of the column `nearest_layout_px`."""
    by_class: dict[str, list[float]] = {label: [] for label in among_training}
    for record in records:
        by_class[record["label"]].append(float(record["nearest_layout_px"]))
    return {label: {"least_px": min(values), "median_px": round(float(np.median(values)), 3),
                    "among_training_px": among_training[label]}
            for label, values in by_class.items() if values}
