"""Grow the trees of the lung: arteries, veins and the airways beside the arteries.

A tree serves points spread evenly through a lung. At every fork the points that a branch serves are
split in two across their longest axis, and each daughter goes four tenths of the way to the centre
of its half, until one point is left (Tawhai, Pullan and Hunter 2000, Ann Biomed Eng 28:793, after
Wang et al. 1992). Radii follow Murray's law, r^3 = r1^3 + r2^3 (1926, PNAS 12:207): the cube of a
radius is proportional to the number of points served.

A branch is a row of BRANCH: a capsule whose radius goes evenly from one end to the other. Sums are
einsum's and not a BLAS's, whose last bit depends on its threads, and so on --workers.
"""

from __future__ import annotations

import numpy as np

from lungkit.phantom.thorax.anatomy import Chest, lungs, to_scanner

BRANCH = np.dtype([("start", np.float32, 3), ("stop", np.float32, 3),
                   ("radius", np.float32, 2), ("served", np.float32)])
POINTS = 900  # of a lung and tree: vessels end about a centimetre apart, as seen in CT
ARTERY_MM = 6.0  # radius at the hilum
VEIN_MM = 5.4
END_SHARE = 0.4  # of its radius that a last branch keeps at its end
AIRWAY_SHARE = 0.03  # airways beside arteries that serve more than this share of a lung
WALL_MM = 1.0  # of an airway, and a tenth of its radius more
ROOTS = {  # where a tree enters the left (1) and right (-1) lung, and which way it goes
    ("artery", -1): ((-34, 2, -14), (-52, 6, -26)), ("artery", 1): ((38, 6, -6), (54, 12, -20)),
    ("vein", -1): ((-30, 12, -30), (-50, 4, -36)), ("vein", 1): ((36, 14, -28), (52, 4, -34))}


def lung_points(rng: np.random.Generator, chest: Chest, side: int, count: int,
                depth_mm: float = 3.0) -> np.ndarray:
    """Points float32 [count, 3] spread evenly through the left (1) or right (-1) lung.

    In the patient's axes.
    """
    low = np.array([-chest.half_width, -chest.half_depth - 4, chest.diaphragm - 75], np.float32)
    high = np.array([chest.half_width, chest.half_depth + 8, chest.apex], np.float32)
    if side > 0:
        low[0] = 0
    else:
        high[0] = 0
    found = np.zeros((0, 3), np.float32)
    while len(found) < count:
        drawn = rng.uniform(low, high, (4 * count, 3)).astype(np.float32)
        found = np.concatenate([found, drawn[lungs(chest, *drawn.T) < -depth_mm]])
    return found[:count]


def _grow(rng: np.random.Generator, points: np.ndarray, root, ahead, radius_mm: float
          ) -> np.ndarray:
    """A tree BRANCH [N] from `root` over `ahead` to all points."""
    total, rows = len(points), []
    root, ahead = np.asarray(root, np.float32), np.asarray(ahead, np.float32)
    waiting = [(points, root, ahead, radius_mm)]
    while waiting:
        served, start, stop, before = waiting.pop()
        radius = radius_mm * (len(served) / total) ** (1 / 3)
        end = radius if len(served) > 1 else END_SHARE * radius
        rows.append((start, stop, (min(before, 1.15 * radius), end), len(served) / total))
        if len(served) == 1:
            continue
        centred = served - served.mean(0)
        if len(served) > 12:
            axis = np.linalg.eigh(np.einsum("ni,nj->ij", centred, centred))[1][:, 2]
            side = np.einsum("ni,i->n", centred, axis) > rng.normal(0, 3)
        else:  # the longest axis of a few is as good among x, y and z
            side = centred[:, np.square(centred).sum(0).argmax()] > 0
        if side.all() or not side.any():
            side = np.arange(len(served)) % 2 == 0
        for half in (served[side], served[~side]):
            way = half.mean(0) - stop
            length = float(np.linalg.norm(way))
            share = 0.4 if len(half) > 1 else 0.85
            bent = rng.normal(0, 0.07 * length, 3) if length > 6 else 0.0
            waiting.append((half, stop, (stop + share * way + bent).astype(np.float32), radius))
    return np.array(rows, BRANCH)


def _airways(tree: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """The airways that run beside the larger arteries of a tree; radius is the lumen's."""
    chosen = tree[tree["served"] > AIRWAY_SHARE].copy()
    chosen["radius"] *= 0.62
    beside = shift * (2.1 * chosen["radius"].mean(1, keepdims=True) + 2.2)
    chosen["start"] += beside
    chosen["stop"] += beside
    return chosen


def _trachea(airways: list[np.ndarray]) -> np.ndarray:
    """Windpipe and main bronchi down to where the trees begin."""
    stems = [((0, 14, 150), (-1, 4, 2), (9.0, 8.6), 1.0), ((-1, 4, 2), (-2, 2, -4), (8.6, 7), 1.0)]
    for tree, radius in zip(airways, (6.4, 5.8)):
        stems.append(((-2, 2, -4), tuple(tree["start"][0]), (radius, radius * 0.8), 0.5))
    return np.array(stems, BRANCH)


def draw_trees(rng: np.random.Generator, chest: Chest) -> tuple[np.ndarray, np.ndarray]:
    """One patient's blood vessels and airways, BRANCH [N] each, in the scanner's axes."""
    blood, airways = [], []
    for side in (-1, 1):
        for kind, radius in (("artery", ARTERY_MM), ("vein", VEIN_MM)):
            points = lung_points(rng, chest, side, POINTS)
            tree = _grow(rng, points, *ROOTS[kind, side], radius)
            blood.append(tree)
            if kind == "artery":
                airways.append(_airways(tree, np.array([-0.35 * side, 0.75, 0.1], np.float32)))
    found = np.concatenate(blood), np.concatenate([*airways, _trachea(airways)])
    for branches in found:
        for end in ("start", "stop"):
            branches[end] = to_scanner(chest, branches[end])
    return found


def paint(cover: np.ndarray, branches: np.ndarray, xs, ys, zs, width_mm: float, *,
          grow_mm: float = 0.0) -> None:
    """Raise `cover` float32 [Z, Y, X] to the share of each voxel that branches fill.

    xs, ys, zs: centres of the voxels, evenly spaced and rising. width_mm: over how much the share
    goes from 0 to 1. A branch thinner than a voxel fills at most its thickness of it.
    grow_mm: added to every radius.
    """
    steps = [axis[1] - axis[0] if len(axis) > 1 else 1.0 for axis in (xs, ys, zs)]
    radii = branches["radius"] + grow_mm
    reach = radii.max(1) + width_mm / 2
    low = np.minimum(branches["start"], branches["stop"]) - reach[:, None]
    high = np.maximum(branches["start"], branches["stop"]) + reach[:, None]
    firsts, lasts = [], []
    for axis, step, lowest, highest in zip((xs, ys, zs), steps, low.T, high.T):
        firsts.append(np.clip(np.ceil((lowest - axis[0]) / step), 0, len(axis)).astype(int))
        lasts.append(np.clip(np.floor((highest - axis[0]) / step) + 1, 0, len(axis)).astype(int))
    met = np.nonzero((np.array(lasts) > np.array(firsts)).all(0))[0]
    along = branches["stop"] - branches["start"]
    squares = np.maximum((along * along).sum(1), 1e-6)
    for each in met:
        (x0, y0, z0), (x1, y1, z1) = ((bounds[0][each], bounds[1][each], bounds[2][each])
                                      for bounds in (firsts, lasts))
        start, way = branches["start"][each], along[each]
        dx, dy = xs[x0:x1] - start[0], (ys[y0:y1] - start[1])[:, None]
        dz = (zs[z0:z1] - start[2])[:, None, None]
        share = np.clip((dx * way[0] + dy * way[1] + dz * way[2]) / squares[each], 0, 1)
        away = np.sqrt((dx - share * way[0]) ** 2 + (dy - share * way[1]) ** 2
                       + (dz - share * way[2]) ** 2)
        thick = radii[each, 0] + share * (radii[each, 1] - radii[each, 0])
        filled = np.minimum((thick - away) / width_mm + 0.5, 2 * thick / width_mm)
        view = cover[z0:z1, y0:y1, x0:x1]
        np.maximum(view, np.minimum(filled, 1), out=view)
