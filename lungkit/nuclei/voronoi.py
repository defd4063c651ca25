"""Voronoi diagrams of nuclei as rasters: which cell each pixel belongs to, and the cells' geometry.

Coordinates are (x, y) in pixels; a pixel's centre is at whole numbers. A cell is the set of
pixels nearest to its nucleus, clipped to the image (Voronoi, J reine angew Math 134, 1908).

Feeds voronoi_seg.RECIPE: raise it when this gives other bytes.
"""

from __future__ import annotations

import numpy as np

FIRST_BLOCKS = 8  # blocks a side to begin with; as LAST_SIDE the fastest of 4, 8, 16 at 64-512 px
LAST_SIDE = 8     # pixels a side of the blocks in which every pixel is looked at
ROUNDING = 1e-12  # relative; above that of a squared distance in float64


def voronoi_labels(centroids: np.ndarray, size: int) -> np.ndarray:
    """Index of the nearest of `centroids` [N, 2] for each pixel centre, int32 [size, size].

    Exact: the smallest squared distance in float64, and the lowest index of equal ones. Without
    centroids the whole image is cell 0.

    Square blocks of pixels are split in four. A centroid that another beats in all of a block is
    no candidate there any more; a block of one candidate is filled, and in small blocks of
    several every pixel is compared with each of them.
    """
    x, y = np.asarray(centroids, np.float64).reshape(-1, 2).T.copy()
    assert np.isfinite(x).all() and np.isfinite(y).all(), "a centroid is not finite"
    if len(x) == 0:
        return np.zeros((size, size), np.int32)
    side = 1
    while side * FIRST_BLOCKS < size:
        side *= 2
    across = -(-size // side)
    cells = np.zeros((across, across), np.int32)
    top, left = (place.ravel() * side for place in np.indices(cells.shape))
    # candidate holds those of each block in turn, by index; counts says how many each has
    candidate, counts, best = _first_candidates(x, y, np.arange(across) * side, side)
    while True:
        cells[top // side, left // side] = best
        split = counts > 1
        candidate, counts = candidate[np.repeat(split, counts)], counts[split]
        top, left = top[split], left[split]
        if len(top) == 0 or side <= LAST_SIDE:
            break
        side //= 2
        cells = cells.repeat(2, axis=0).repeat(2, axis=1)
        candidate, counts = np.tile(candidate, 4), np.tile(counts, 4)
        top = np.concatenate([top, top, top + side, top + side])
        left = np.concatenate([left, left + side, left, left + side])
        candidate, counts, best = _prune(x, y, top, left, side, candidate, counts)
    across = len(cells)
    cells = cells.repeat(side, axis=0).repeat(side, axis=1)
    if len(top):
        # blocks of many candidates first: those of a rank are a view then, not a copy
        order = np.argsort(-counts, kind="stable")
        starts, top, left = (np.cumsum(counts) - counts)[order], top[order], left[order]
        blocks = cells.reshape(across, side, across, side).swapaxes(1, 2)
        blocks[top // side, left // side] = _nearest(x, y, top, left, side, candidate, starts,
                                                     counts[order])
    return np.ascontiguousarray(cells[:size, :size])


def _first_candidates(x: np.ndarray, y: np.ndarray, start: np.ndarray,
                      side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_prune`, of all centroids for each block of the grid that starts at `start` both ways."""
    middle = start[:, None] + (side - 1) / 2
    gap = (((middle - y) ** 2)[:, None] + (middle - x) ** 2).reshape(-1, len(x))
    best = gap.argmin(axis=1)  # the first of equal ones
    least = gap[np.arange(len(gap)), best][:, None]
    reach = np.abs(x - x[best, None]) + np.abs(y - y[best, None])
    kept = gap - least <= reach * (side - 1) + ROUNDING * (gap + side**2)
    block, candidate = np.nonzero(kept)
    return candidate, np.bincount(block, minlength=len(kept)), best


def _prune(x: np.ndarray, y: np.ndarray, top: np.ndarray, left: np.ndarray, side: int,
           candidate: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drop the candidates that the one nearest to a block's middle beats in all of the block.

    |p - a|^2 - |p - b|^2 is linear in p, so its least value in a block is at a corner.
    Returns the candidates left, how many each block has, and the nearest to each middle.
    """
    starts = np.cumsum(counts) - counts
    a, b = x[candidate], y[candidate]
    middle = (side - 1) / 2
    gap = (np.repeat(left + middle, counts) - a) ** 2 + (np.repeat(top + middle, counts) - b) ** 2
    least = np.repeat(np.minimum.reduceat(gap, starts), counts)
    nearest = np.flatnonzero(gap == least)
    nearest = nearest[np.searchsorted(nearest, starts)]  # the first of equal ones
    reach = np.abs(a - np.repeat(a[nearest], counts)) + np.abs(b - np.repeat(b[nearest], counts))
    kept = gap - least <= reach * (side - 1) + ROUNDING * (gap + side**2)
    return candidate[kept], np.add.reduceat(kept.astype(np.int64), starts), candidate[nearest]


def _nearest(x: np.ndarray, y: np.ndarray, top: np.ndarray, left: np.ndarray, side: int,
             candidate: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Compare every pixel of each block with all its candidates: int32 [blocks, side, side].

    A block's candidates are the `counts` ones from `starts`; counts [blocks] must not rise.
    """
    down, across = top + np.arange(side)[:, None], left + np.arange(side)[:, None]
    # the blocks are the last axis, for numpy is slow over short ones
    least, gap = np.empty((2, side, side, len(counts)))
    closer = np.empty(gap.shape, bool)
    winner = np.zeros(gap.shape, np.uint8 if counts[0] < 256 else np.int32)
    blocks_of_rank = np.searchsorted(-counts, -np.arange(counts[0]))  # how many have so many
    for rank, end in enumerate(blocks_of_rank.tolist()):
        index = candidate[starts[:end] + rank]
        dy, dx = (down[:, :end] - y[index]) ** 2, (across[:, :end] - x[index]) ** 2
        if rank == 0:
            np.add(dy[:, None], dx, out=least)
            continue
        np.add(dy[:, None], dx, out=gap[..., :end])
        np.less(gap[..., :end], least[..., :end], out=closer[..., :end])
        np.minimum(gap[..., :end], least[..., :end], out=least[..., :end])
        later = closer[..., :end] * winner.dtype.type(rank)  # ranks rise, so the last one wins
        np.maximum(winner[..., :end], later, out=winner[..., :end])
    return np.take(candidate.astype(np.int32), starts + winner).transpose(2, 0, 1)


# ------------------------------------------------------------------ geometry of the cells

def borders(cells: np.ndarray) -> np.ndarray:
    """Lines between `cells` int [S, S], bool [S, S]: pixels beside a cell of higher index.

    One pixel wide at any size: between two cells a line holds one pixel per row where it is
    steep and one per column where it is flat, on the side of the lower index, and without it no
    two cells touch by an edge. It is wider only where more than two cells come together.
    """
    line = np.zeros(cells.shape, bool)
    line[:, :-1] = cells[:, :-1] < cells[:, 1:]
    line[:, 1:] |= cells[:, 1:] < cells[:, :-1]
    line[:-1] |= cells[:-1] < cells[1:]
    line[1:] |= cells[1:] < cells[:-1]
    return line


def cell_areas_px(cells: np.ndarray, count: int) -> np.ndarray:
    """Pixels of each of `count` cells, int64 [count]; 0 where nuclei lie on one another."""
    return np.bincount(cells.ravel(), minlength=count)[:count]


def count_neighbours(cells: np.ndarray, count: int) -> np.ndarray:
    """Cells that share an edge of a pixel with each of `count` cells within the image, int64."""
    pairs = []
    for one, other in ((cells[:, 1:], cells[:, :-1]), (cells[1:], cells[:-1])):
        differ = one != other
        one, other = one[differ].astype(np.int64), other[differ]
        pairs.append(np.minimum(one, other) * count + np.maximum(one, other))
    low, high = np.divmod(np.unique(np.concatenate(pairs)), max(count, 1))
    return np.bincount(low, minlength=count) + np.bincount(high, minlength=count)


def touches_border(labels: np.ndarray, count: int) -> np.ndarray:
    """Which of labels 0..count-1 hold a pixel of the outermost rows and columns, bool [count]."""
    touching = np.zeros(count, bool)
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        touching[edge] = True
    return touching
