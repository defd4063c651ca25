"""Cells as polygons and as labels on a raster: what overlaps, what is seen of each, and where."""

from __future__ import annotations

import numpy as np  # OpenCV is imported where it is used: --help must not wait for it


def outlines(rng, cells, scale):
    """Polygons int32 [N, 24, 2] in 1/16 px: ellipses bent by low harmonics. scale is px per um."""
    turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    bend = np.ones((len(cells), 24))
    for order in (2, 3, 4):
        phase = rng.uniform(0, 2 * np.pi, (len(cells), 1))
        bend += rng.normal(0, 0.1 / order, (len(cells), 1)) * np.cos(order * turn + phase)
    u, v = cells["a"][:, None] * bend * np.cos(turn), cells["b"][:, None] * bend * np.sin(turn)
    c, s = np.cos(cells["angle"])[:, None], np.sin(cells["angle"])[:, None]
    x, y = cells["x"][:, None] + c * u - s * v, cells["y"][:, None] + s * u + c * v
    return np.round((np.stack([x, y], -1) * scale - 0.5) * 16).astype(np.int32)


def separate(cells, field_um):
    """Drop cells outside the tile and, of two that overlap much, the later one."""
    from scipy.spatial import cKDTree

    points = np.stack([cells["x"], cells["y"]], 1)
    seen = ((points > -cells["a"][:, None]) & (points < field_um + cells["a"][:, None])).all(1)
    cells, points = cells[seen], points[seen]
    if len(cells) < 2:
        return cells
    radius = np.sqrt(cells["a"] * cells["b"])
    pairs = cKDTree(points).query_pairs(2 * float(radius.max()), output_type="ndarray")
    gap = np.hypot(*(points[pairs[:, 0]] - points[pairs[:, 1]]).T)
    pairs = np.sort(pairs[gap < 0.85 * radius[pairs].sum(1)], axis=1)
    kept = np.ones(len(cells), bool)
    for first, second in pairs[np.lexsort(pairs.T[::-1])]:
        kept[second] &= not kept[first]
    return cells[kept]


def label_map(outlines, size):
    """Fill outlines into int32 [size, size] with labels 1..N; earlier cells lie on top."""
    import cv2

    labels = np.zeros((size, size), np.int32)
    for label in range(len(outlines), 0, -1):
        cv2.fillPoly(labels, [outlines[label - 1]], label, cv2.LINE_8, 4)
    return labels


def centroids(labels, count):
    """Mean pixel position float64 [count, 2] (x, y) and area [count] of labels 1..count."""
    y, x = np.nonzero(labels)
    ids = labels[y, x]
    area = np.bincount(ids, minlength=count + 1)[1:]
    total = np.stack([np.bincount(ids, axis, count + 1)[1:] for axis in (x, y)], 1)
    return total / np.maximum(area, 1)[:, None], area


def visible(labels, count, least_area):
    """Keep labels of at least least_area px that hold their own centroid; number them 1..N anew.

    Returns the new labels, their centroids and a bool [count] telling which were kept.
    """
    centre, area = centroids(labels, count)
    x, y = np.round(centre).astype(int).T
    kept = (area >= max(least_area, 1)) & (labels[y, x] == np.arange(1, count + 1))
    return np.r_[0, np.cumsum(kept) * kept].astype(np.int32)[labels], centre[kept], kept
